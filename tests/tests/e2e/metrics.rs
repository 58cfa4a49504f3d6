//! What the proxies' metrics say, against what happens.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use tokio::sync::Semaphore;
use tulle_tests::app::{self, App};
use tulle_tests::{Metrics, Wire, Workload, eventually};

use super::Pair;

const OPEN: &str = "tulle_pool_connections";
const IDLE: &str = "tulle_pool_connections_idle";

/// Waits until a proxy shows so many pooled connections, and so many of them idle.
async fn pooled(workload: &Workload, service: &[(&str, &str)], open: f64, idle: f64) {
    eventually(&format!("{} has {open} pooled connections, {idle} idle", workload.name()), async || {
        let metrics = workload.metrics().await;
        let shown = (metrics.sum(OPEN, service), metrics.sum(IDLE, service));
        if shown == (open, idle) { Ok(()) } else { Err(format!("{shown:?}")) }
    })
    .await;
}

fn all_closed(metrics: &Metrics) -> f64 {
    metrics.sum("tulle_pool_closed_total", &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_are_shown_as_they_grow_and_come_back_to_nothing() {
    let answers = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&answers);
    let app = App::http1(move |_| {
        let held = Arc::clone(&held);
        async move {
            held.acquire().await.unwrap().forget();
            Response::new(app::full(Bytes::from_static(b"hello")))
        }
    })
    .await;
    let pair = Pair::start(app, "http").await;
    let service = [("service", "default/orders:8080")];
    let mut wires: Vec<Wire> = Vec::new();
    for _ in 0..5 {
        let mut wire = pair.web.connect("orders").await;
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        wires.push(wire);
    }
    // In use: to the other proxy by service, to the application by none.
    pooled(&pair.web, &service, 5.0, 0.0).await;
    pooled(&pair.orders, &[], 5.0, 0.0).await;
    let active = [("direction", "outbound")];
    assert!((pair.web.metrics().await.sum("tulle_requests_active", &active) - 5.0).abs() < 0.1);
    answers.add_permits(5);
    for wire in &mut wires {
        assert_eq!(wire.response().await.0.status(), 200);
    }
    // Given back, and closed once they have idled too long.
    pooled(&pair.web, &service, 0.0, 0.0).await;
    pooled(&pair.orders, &[], 0.0, 0.0).await;
    for workload in [&pair.web, &pair.orders] {
        let metrics = workload.metrics().await;
        assert!((all_closed(&metrics) - 5.0).abs() < 0.1, "{metrics:?}");
        assert!(metrics.sum("tulle_requests_active", &[]).abs() < 0.1, "{metrics:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pool_of_an_endpoint_that_is_gone_is_shown_empty() {
    let app = App::saying("hello").await;
    let world = tulle_tests::World::strict().await;
    world.service("orders", "http");
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    // It would keep idle connections for longer than this test takes.
    let web = world.workload("web").calls("orders").setting("--idle-timeout", "1h").start().await;
    let service = [("service", "default/orders:8080")];
    let mut wire = web.connect("orders").await;
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    assert_eq!(wire.response().await.0.status(), 200);
    pooled(&web, &service, 1.0, 1.0).await;
    drop(orders);
    pooled(&web, &service, 0.0, 0.0).await;
    assert!((all_closed(&web.metrics().await) - 1.0).abs() < 0.1);
}

/// Families that stay at zero, or away, when all goes well.
const QUIET: &[&str] = &[
    "tulle_accept_errors_total",
    "tulle_accept_handed_over_total",
    "tulle_ads_nacks_total",
    "tulle_log_lines_dropped_total",
    "tulle_metrics_limited",
    "tulle_replays_total",
    // Only for a while: in the tests of pools.
    "tulle_pool_connections",
    "tulle_pool_connections_idle",
    "tulle_requests_active",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_family_of_the_reference_is_fed_by_something() {
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/metrics.md");
    let reference = std::fs::read_to_string(reference).unwrap();
    let rows = reference.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let families: Vec<(&str, bool)> = rows
        .filter(|(_, row)| ["counter", "gauge", "histogram"].iter().any(|kind| row.starts_with(kind)))
        .map(|(name, row)| (name, row.starts_with("histogram")))
        .collect();
    assert!(families.len() > 40, "{families:?}");
    let pair = Pair::start(App::saying("hello").await, "http").await;
    let mut wire = pair.web.connect("orders").await;
    for _ in 0..2 {
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        assert_eq!(wire.response().await.0.status(), 200);
    }
    // Without a certificate: refused.
    let mut wire = Wire::connect(pair.orders.inbound()).await;
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    assert_eq!(wire.response().await.0.status(), 403);
    eventually("every family is above zero on one of the two pages", async || {
        let pages = [pair.web.metrics().await, pair.orders.metrics().await];
        let fed = |(name, histogram): &(&str, bool)| {
            let name = if *histogram { format!("{name}_count") } else { (*name).to_owned() };
            pages.iter().any(|page| page.sum(&name, &[]) > 0.0)
        };
        let dead: Vec<_> = families
            .iter()
            .filter(|family| !fed(family) && !QUIET.contains(&family.0))
            .map(|(name, _)| *name)
            .collect();
        if dead.is_empty() { Ok(()) } else { Err(format!("{dead:?}")) }
    })
    .await;
}
