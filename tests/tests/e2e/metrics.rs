//! What the proxies' metrics say, against what happens.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use serde_json::json;
use tokio::sync::Semaphore;
use tulle_tests::app::{self, App};
use tulle_tests::memory::resident;
use tulle_tests::{Metrics, Wire, Workload, World, deep, eventually};

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
    let world = World::strict().await;
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
    // Needs interception: see tests/tests/netns/egress.rs.
    "tulle_egress_total",
    "tulle_accept_errors_total",
    // Where a policy says how endpoints are balanced: in the tests of balance.
    "tulle_balancer_endpoints",
    "tulle_balancer_ejections_total",
    "tulle_balancer_ejections_withheld_total",
    "tulle_balancer_panics_total",
    "tulle_balancer_zone_picks_total",
    "tulle_accept_handed_over_total",
    "tulle_ads_nacks_total",
    "tulle_log_lines_dropped_total",
    "tulle_metrics_limited",
    "tulle_mirrors_total",
    // Where something was lost or refused: in the proxy's own tests of ADS.
    "tulle_ads_rejected_resources",
    "tulle_ads_differences_total",
    "tulle_ads_repairs_total",
    // Where a connection breaks, or another proxy refuses: in the tests of replay.
    "tulle_replays_total",
    // By a rule that says so: in the routing cases' retries.
    "tulle_retries_total",
    "tulle_retries_withheld_total",
    // Where a collector is configured: in the tests of traces.
    "tulle_trace_spans_exported_total",
    "tulle_trace_spans_dropped_total",
    "tulle_trace_export_failures_total",
    "tulle_faults_injected_total",
    // Where somebody looks on: in the tests of tap.
    "tulle_taps",
    "tulle_tap_requests_total",
    // Where nothing is declared and the client is silent: in the tests of first.
    "tulle_detect_opened_early_total",
    // Where names are answered: in the tests of dns.
    "tulle_dns_queries_total",
    // Where a policy has a health check: in the tests of health.
    "tulle_health_checks_total",
    // Where policies limit: in the tests of limits and connections.
    "tulle_rate_limit_requests_total",
    "tulle_limit_reached_total",
    "tulle_limit_used",
    "tulle_limit_waiting",
    // Where tokens are looked at, or authorizers asked: in the tests of jwt and ext_authz.
    "tulle_tokens_total",
    "tulle_jwks_fetches_total",
    "tulle_jwks_last_fetch_timestamp_seconds",
    "tulle_external_checks_total",
    "tulle_external_check_duration_seconds",
    // Where a rule keeps sessions: in those of routing cases.
    "tulle_sessions_total",
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

#[tokio::test(flavor = "multi_thread")]
async fn r11_random_hosts_paths_and_methods_add_no_series_and_no_memory() {
    let mut pair = Pair::start(App::saying("hello").await, "http").await;
    let mut wire = pair.web.connect("orders").await;
    let (rounds, burst) = if deep() { (1_000_u32, 100) } else { (30, 100) };
    let mut before = None;
    for round in 0..=rounds {
        let requests: String = (0..burst)
            .map(|n| {
                // All different, and in no order.
                let random = u64::from(round * burst + n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                format!("M{random:x} /{random}?{n} HTTP/1.1\r\nhost: h{random:x}.example\r\n\r\n")
            })
            .collect();
        wire.send(requests).await;
        for _ in 0..burst {
            assert_eq!(wire.response().await.0.status(), 200);
        }
        // The first round brings whatever is needed at all.
        if round == 0 {
            before = Some(pages(&mut pair).await);
        }
    }
    let ([web, orders], after) = (before.unwrap(), pages(&mut pair).await);
    for ((lines, resident), (lines_after, resident_after)) in [web, orders].into_iter().zip(after) {
        assert!(lines_after <= lines + 3, "{lines} → {lines_after} lines");
        assert!(lines_after <= 2_000, "{lines_after} lines");
        assert!(resident_after < resident + (8 << 20), "{} → {} KiB", resident >> 10, resident_after >> 10);
    }
    let others = [("method", "_OTHER"), ("direction", "outbound")];
    let counted = pair.web.metrics().await.sum("tulle_requests_total", &others);
    assert!((counted - f64::from((rounds + 1) * burst)).abs() < 0.1, "{counted}");
}

/// How many lines each of the two pages has, and how much memory its proxy.
async fn pages(pair: &mut Pair) -> [(usize, u64); 2] {
    let lines = [pair.web.metrics().await.len(), pair.orders.metrics().await.len()];
    let resident = [resident(pair.web.process()), resident(pair.orders.process())];
    [(lines[0], resident[0]), (lines[1], resident[1])]
}

#[tokio::test(flavor = "multi_thread")]
async fn r19_an_answer_of_the_other_proxy_is_told_with_its_reason_and_who_made_it() {
    let app = App::saying("hello").await;
    let address = app.address();
    app.stop().await;
    let world = World::strict().await;
    world.service("silent", "http");
    let silent = world.workload("silent").serves("silent", address).start().await;
    silent.counts("tulle_registered", &[], 1.0).await;
    let web = world.workload("web").calls("silent").start().await;
    let mut wire = web.connect("silent").await;
    wire.send("GET / HTTP/1.1\r\nhost: silent\r\n\r\n").await;
    let head = wire.response().await.0;
    assert_eq!((head.status(), head.get("x-tulle-error-by")), (503, Some("default/silent/inbound")));
    let record = web.logs(&[("direction", json!("outbound")), ("method", json!("GET"))]).await;
    assert_eq!(record["reason"], "connect_failed", "{record}");
    assert_eq!(record["by"], "default/silent/inbound", "{record}");
    let labels = |direction, by| [("direction", direction), ("reason", "connect_failed"), ("reason_by", by)];
    web.counts("tulle_requests_total", &labels("outbound", "peer"), 1.0).await;
    silent.counts("tulle_requests_total", &labels("inbound", "self"), 1.0).await;
    // It was not refused here.
    assert!(web.metrics().await.sum("tulle_refused_total", &[]).abs() < 0.1);
}
