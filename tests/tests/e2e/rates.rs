//! Rate limits over time: how much passes of what is too much (R16), and what a change of them does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::Response;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tulle_tests::app::{App, full};
use tulle_tests::{Head, Wire, eventually};

use super::limits::{pair, rate_limits, traffic};

const GET: &str = "GET / HTTP/1.1\r\nhost: orders\r\n\r\n";

/// Whether it passed; else it must be refused by a limit.
fn passed(head: &Head) -> bool {
    match (head.status(), head.reason()) {
        (200, None) => true,
        (429, Some("rate_limited")) => false,
        _ => panic!("{head:?}"),
    }
}

/// Asks, one after the other, until one is refused; how many passed, and when that was, at the earliest and at the latest.
async fn until_refused(to: SocketAddr) -> (u64, [Instant; 2]) {
    let (mut wire, mut count) = (Wire::connect(to).await, 0);
    loop {
        let sent = Instant::now();
        wire.send(GET).await;
        if !passed(&wire.response().await.0) {
            return (count, [sent, Instant::now()]);
        }
        count += 1;
    }
}

/// `requests` a second, each `lanes` by turns, for so long; how many passed, and how many did not.
async fn overload(to: SocketAddr, lanes: u32, requests: u32, lasts: Duration) -> (u64, u64) {
    let begun = Instant::now();
    let lane = |number: u32| async move {
        let (mut wire, mut counts) = (Wire::connect(to).await, (0, 0));
        let every = Duration::from_secs(1) * lanes / requests;
        let mut pace = tokio::time::interval_at(begun + every * number / lanes, every);
        while begun.elapsed() < lasts {
            pace.tick().await;
            wire.send(GET).await;
            match passed(&wire.response().await.0) {
                true => counts.0 += 1,
                false => counts.1 += 1,
            }
        }
        counts
    };
    let lanes: JoinSet<(u64, u64)> = (0..lanes).map(lane).collect();
    lanes.join_all().await.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

/// From one moment at which there is no room to another exactly so many pass as the time between brings, however the requests came,
/// as long as the burst is never whole again between.
async fn keeps_to_the_rate(direction: &'static str) {
    const RATE: u32 = 50;
    let app = App::saying("ok").await;
    // Five seconds' worth: a machine that sleeps for less loses nothing.
    let limits = format!("[{{name: all, rate: {{requests: {RATE}, per: 1s, burst: {}}}}}]", RATE * 5);
    let (_world, _orders, web) = pair(&app, "http", &rate_limits(direction, &limits)).await;
    let to = web.outbound("orders");
    let (_, [begun, began]) = until_refused(to).await;
    let (mut count, refused) = overload(to, 10, RATE * 4, Duration::from_secs(10)).await;
    let (more, [ending, ended]) = until_refused(to).await;
    count += more;
    let brings = |time: Duration| f64::from(RATE) * time.as_secs_f64();
    let (least, most) = (brings(ending - began), brings(ended - begun));
    assert!(
        count as f64 >= least * 0.98 - 1.0 && count as f64 <= most * 1.02 + 1.0,
        "{direction}: {count} passed, and neither {least:.1} nor {most:.1}; {refused} were refused"
    );
    assert!(refused > 0, "{direction}: nothing was too much");
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
