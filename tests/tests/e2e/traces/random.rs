//! Clients that choose what spans and lines are made of (R11, R20): neither memory nor series grow by it.

use std::net::TcpListener as StdListener;

use tulle_tests::app::App;
use tulle_tests::memory::resident;
use tulle_tests::{Workload, World, deep};

use super::{ALWAYS, traced};

/// How many lines its page has, and how much memory it holds.
async fn page(workload: &mut Workload) -> (usize, u64) {
    let lines = workload.metrics().await.len();
    (lines, resident(workload.process()))
}

#[tokio::test(flavor = "multi_thread")]
async fn r11_random_paths_methods_calls_and_traces_add_nothing_where_all_is_traced_and_logged() {
    // A collector that never answers, so that as many spans as may wait do.
    let mute = StdListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", mute.local_addr().unwrap());
    let world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let settings = [
        ALWAYS,
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*url),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "500"),
    ];
    let mut orders = traced(&world, "orders", &settings, |it| it.serves("orders", app.address())).await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let mut web = traced(&world, "web", &settings, |it| it.calls("orders")).await;
    let mut wire = web.connect("orders").await;
    let (rounds, burst) = if deep() { (1_000_u64, 100) } else { (50, 100) };
    let mut before = None;
    for round in 0..=rounds {
        let requests: String = (0..burst)
            .map(|n| {
                // All different, and in no order.
                let random = (1 + round * burst + n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let target = format!("/s{random:x}.{n}/M{random:x}");
                let trace = match n % 3 {
                    0 => format!("traceparent: 00-{random:032x}-{random:016x}-01"),
                    1 => format!("b3: {random:032x}-{random:016x}-1"),
                    _ => format!("tracestate: a{random:x}={random:x}"),
                };
                // Some are calls of gRPC.
                let kind = if n % 2 == 0 { "application/grpc" } else { "text/plain" };
                let method = if n % 2 == 0 { "POST".to_owned() } else { format!("M{random:x}") };
                format!(
                    "{method} {target}?{n} HTTP/1.1\r\nhost: h{random:x}.example\r\ncontent-type: {kind}\r\ncontent-length: 0\r\n{trace}\r\n\r\n"
                )
            })
            .collect();
        wire.send(requests).await;
        for _ in 0..burst {
            assert_eq!(wire.response().await.0.status(), 200);
        }
        // What waits to be sent has filled by then.
        if round == 10 {
            before = Some([page(&mut web).await, page(&mut orders).await]);
        }
    }
    let after = [page(&mut web).await, page(&mut orders).await];
    for ((lines, resident), (lines_after, resident_after)) in before.unwrap().into_iter().zip(after) {
        assert!(lines_after <= lines + 3, "{lines} → {lines_after} lines");
        assert!(lines_after <= 2_000, "{lines_after} lines");
        assert!(resident_after < resident + (8 << 20), "{} → {} KiB", resident >> 10, resident_after >> 10);
    }
    for workload in [&web, &orders] {
        workload.counts("tulle_trace_spans_dropped_total", &[("cause", "queue_full")], 1000.0).await;
    }
}
