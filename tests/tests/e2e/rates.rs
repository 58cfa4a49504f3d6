//! Rate limits over time: how much passes of what is too much (R16), and what a change of them does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::Response;
use tokio::task::JoinSet;
use tulle_tests::app::{App, full};
use tulle_tests::rates::{BURST, GET, is_kept_to, passed};
use tulle_tests::{Wire, eventually};

use super::limits::{pair, rate_limits, traffic};

async fn keeps_to_the_rate(direction: &'static str) {
    const RATE: u32 = 50;
    let app = App::saying("ok").await;
    let limits = format!("[{{name: all, rate: {{requests: {RATE}, per: 1s, burst: {}}}}}]", RATE * BURST);
    let (_world, _orders, web) = pair(&app, "http", &rate_limits(direction, &limits)).await;
    is_kept_to(direction, &web.outbound("orders").into(), RATE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_within_two_percent_of_the_rate_pass_over_ten_seconds_at_four_times_as_many() {
    tokio::join!(keeps_to_the_rate("Inbound"), keeps_to_the_rate("Outbound"));
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_a_budget_counts_over_all_workers() {
    let seen = Arc::new(AtomicU64::default());
    let app = App::http1({
        let seen = Arc::clone(&seen);
        move |_| {
            seen.fetch_add(1, Ordering::SeqCst);
            async { Response::builder().status(503).body(full("no")).unwrap() }
        }
    })
    .await;
    let policy = "retry: {attempts: 1, statuses: [503]}\n  \
                  retryBudget: {percent: 0, minimumRetryRate: {count: 5, interval: 1h}}";
    let (world, _orders, _web) = pair(&app, "http", &traffic(policy)).await;
    let many = world.workload("many").calls("orders").setting("--workers", "4").start().await;
    for _ in 0..30 {
        let mut wire = many.connect("orders").await;
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await;
        let head = wire.response().await.0;
        assert_eq!((head.status(), head.reason()), (503, None), "{head:?}");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 35);
    let withheld = many.metrics().await.sum("tulle_retries_withheld_total", &[("cause", "budget")]);
    assert!((withheld - 25.0).abs() < 0.1, "{withheld}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_a_rate_that_changes_under_load_takes_hold_and_lets_no_more_through_than_it_says() {
    let limit = |requests: u32| {
        rate_limits(
            "Inbound",
            &format!("[{{name: all, rate: {{requests: {requests}, per: 1h, burst: {requests}}}}}]"),
        )
    };
    let app = App::saying("ok").await;
    let (world, orders, web) = pair(&app, "http", &limit(10)).await;
    let (to, stop, passed_so_far) =
        (web.outbound("orders"), Arc::new(AtomicBool::default()), Arc::new(AtomicU64::default()));
    let lanes: JoinSet<()> = (0..4)
        .map(|_| {
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&passed_so_far));
            async move {
                let mut wire = Wire::connect(to).await;
                while !stop.load(Ordering::SeqCst) {
                    wire.send(GET).await;
                    if passed(&wire.response().await.0) {
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        })
        .collect();
    // What was used stays used; of a lower limit at most all.
    for (requests, all) in [(10, 10), (30, 30), (5, 30), (40, 65), (40, 65)] {
        world.yaml("policy.yaml", &limit(requests));
        eventually(&format!("{requests} hold"), async || {
            let mut wire = Wire::connect(to).await;
            wire.send(GET).await;
            let head = wire.response().await.0;
            if passed(&head) {
                passed_so_far.fetch_add(1, Ordering::SeqCst);
            }
            match head.get("ratelimit-policy") {
                Some(said) if said.contains(&format!(";q={requests};")) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        // Those that had passed are counted once they are answered.
        eventually("all that may have passed", async || match passed_so_far.load(Ordering::SeqCst) {
            count if count == all => Ok(()),
            count => Err(count.to_string()),
        })
        .await;
    }
    stop.store(true, Ordering::SeqCst);
    lanes.join_all().await;
    assert_eq!(passed_so_far.load(Ordering::SeqCst), 65);
    let labels = [("limit", "default/often/all"), ("outcome", "allowed")];
    let counted = orders.metrics().await.sum("tulle_rate_limit_requests_total", &labels);
    assert!((counted - 65.0).abs() < 0.1, "{counted}");
}
