//! Exemplars: from a bucket of the metrics to a trace that was counted in it (R19, R20).

use tulle_tests::app::App;
use tulle_tests::{Wire, Workload, World, eventually};

use super::collector::{Collector, Span};
use super::{ALWAYS, SPAN, TRACE, of, slowest, traced};

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

/// The page in the form that is asked for.
async fn page(workload: &Workload, accept: &str) -> String {
    let mut wire = Wire::connect(workload.public()).await;
    wire.send(format!(
        "GET /metrics HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\nconnection: close\r\n\r\n"
    ))
    .await;
    let (head, body) = wire.response().await;
    assert_eq!(head.status(), 200, "{head:?}");
    String::from_utf8(body).unwrap()
}

const OPEN: &str = "application/openmetrics-text;version=1.0.0";

/// The samples that are linked to a trace, each with what links it.
async fn linked(workload: &Workload) -> Vec<(String, String)> {
    let page = page(workload, OPEN).await;
    let linked = page.lines().filter_map(|line| line.split_once(" # "));
    linked.map(|(sample, exemplar)| (sample.to_owned(), exemplar.to_owned())).collect()
}

/// Asks in the trace that is always the same, recorded or not.
async fn ask(web: &Workload, flags: &str) {
    let mut wire = web.connect("orders").await;
    wire.send(format!("GET / HTTP/1.1\r\nhost: orders\r\ntraceparent: 00-{TRACE}-{SPAN}-{flags}\r\n\r\n"))
        .await;
    assert_eq!(wire.response().await.0.status(), 200);
}

/// Waits for a proxy's one linked sample, which is the bucket of this family that the span's duration is in.
async fn links_to(workload: &Workload, family: &str, span: &Span) -> String {
    let (sample, exemplar) = eventually("a linked bucket", async || {
        let linked = linked(workload).await;
        if linked.len() == 1 { Ok(linked[0].clone()) } else { Err(format!("{linked:#?}")) }
    })
    .await;
    assert!(sample.starts_with(&format!("{family}_bucket{{")), "{sample}");
    let labels = format!("{{trace_id=\"{}\",span_id=\"{}\"}} ", span.trace, span.id);
    let (value, time) = exemplar.strip_prefix(&labels).and_then(|rest| rest.split_once(' ')).unwrap();
    let value: f64 = value.parse().unwrap();
    let bound = sample.split("le=\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(bound == "+Inf" || value <= bound.parse().unwrap(), "{value} {sample}");
    let took = (span.end - span.start) as f64 / 1e9;
    assert!((value - took).abs() < 1e-6, "{value} is not {took}");
    let ended = time.parse::<f64>().unwrap() - span.end as f64 / 1e9;
    assert!(ended.abs() < 60.0, "{exemplar}");
    exemplar
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_bucket_is_linked_to_the_last_recorded_request_that_was_counted_in_it() {
    let collector = Collector::grpc().await;
    let url = collector.url();
    let world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*url), ALWAYS];
    let orders = traced(&world, "orders", &settings, |it| it.serves("orders", app.address())).await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = traced(&world, "web", &settings, |it| it.calls("orders")).await;
    let untraced = traced(&world, "untraced", &[], |it| it.calls("orders")).await;
    // What is not recorded is linked to nothing.
    ask(&web, "00").await;
    web.counts("tulle_requests_total", &[("direction", "outbound")], 1.0).await;
    orders.counts("tulle_requests_total", &[("direction", "inbound")], 1.0).await;
    for workload in [&web, &orders] {
        assert!(linked(workload).await.is_empty());
    }
    ask(&web, "01").await;
    let spans = collector.collected.spans(2).await;
    let (out, into) = (of(&spans, "web", SpanKind::Client), of(&spans, "orders", SpanKind::Server));
    let before = links_to(&web, "http_client_request_duration_seconds", out).await;
    links_to(&orders, "http_server_request_duration_seconds", into).await;
    // Nor does it take anybody's place.
    for _ in 0..5 {
        ask(&web, "00").await;
    }
    web.counts("tulle_requests_total", &[("direction", "outbound")], 7.0).await;
    assert_eq!(links_to(&web, "http_client_request_duration_seconds", out).await, before);
    let text = page(&web, "text/plain").await;
    assert!(text.contains("http_client_request_duration_seconds_bucket{") && !text.contains(" # "), "{text}");
    // However many are recorded, there is one for each bucket of a series at most.
    slowest(&web, 200).await;
    let linked = eventually("another one", async || {
        let linked = linked(&web).await;
        let is_new = linked.iter().any(|(_, exemplar)| !exemplar.contains(TRACE));
        if is_new { Ok(linked) } else { Err(format!("{linked:#?}")) }
    })
    .await;
    let mut samples: Vec<_> = linked.iter().map(|(sample, _)| sample.rsplit_once(' ').unwrap().0).collect();
    let count = samples.len();
    samples.dedup();
    assert_eq!(samples.len(), count, "{linked:#?}");
    slowest(&untraced, 3).await;
    assert!(self::linked(&untraced).await.is_empty());
}
