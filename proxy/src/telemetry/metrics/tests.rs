use std::time::{Duration, SystemTime};

use tulle_api::openmetrics;

use super::families::FAMILIES;
use super::*;
use crate::telemetry::Reason;
use crate::telemetry::trace::Context;

const MESH: &str = "spiffe://cluster.local/ns/default/sa/web";

fn metrics(workers: usize, max_lines: usize) -> Metrics {
    Metrics::new(workers, max_lines, &crate::config::Config::default().metrics_latency_buckets)
}

fn labels<'a>(service: &'a str) -> RequestLabels<'a> {
    let (direction, tls) = (Direction::Outbound, TlsKind::Mtls);
    RequestLabels {
        direction,
        tls,
        peer: MESH,
        service,
        route: "default/split",
        backend: "default/payments-v1:80",
    }
}

fn ok() -> Outcome {
    Outcome { method: Method::Get, status: 200, grpc_status: None, reason: None, by_peer: false }
}

/// The value of the one line that begins with `name` and holds every one of `parts`.
fn value(text: &str, name: &str, parts: &[&str]) -> f64 {
    let matches = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']))
            && parts.iter().all(|part| line.contains(part))
    };
    let lines: Vec<_> = text.lines().filter(matches).collect();
    assert_eq!(lines.len(), 1, "{name} {parts:?}: {lines:#?}");
    lines[0].rsplit(' ').next().unwrap().parse().unwrap()
}

fn lines(text: &str) -> usize {
    text.lines().filter(|line| !line.starts_with('#')).count()
}

#[test]
fn workers_are_added_up() {
    let metrics = metrics(3, 2000);
    for index in 0..3 {
        let worker = metrics.worker(index);
        let cells = worker.requests(&labels("default/payments:80"));
        for _ in 0..=index {
            cells.record(ok(), Duration::from_millis(7));
        }
        cells.record(
            Outcome { status: 503, reason: Some(Reason::ConnectFailed), ..ok() },
            Duration::from_secs(60),
        );
    }
    let text = metrics.render();
    let service = r#"service="default/payments:80""#;
    assert_eq!(value(&text, "tulle_requests_total", &[service, r#"status="200""#]), 6.0);
    let failed = [service, r#"reason="connect_failed",reason_by="self""#];
    assert_eq!(value(&text, "tulle_requests_total", &failed), 3.0);
    let duration = "http_client_request_duration_seconds";
    let of_ok = [service, r#"status="200""#];
    assert_eq!(value(&text, &format!("{duration}_count"), &of_ok), 6.0);
    assert_eq!(value(&text, &format!("{duration}_bucket"), &[of_ok[0], of_ok[1], r#"le="0.005""#]), 0.0);
    assert_eq!(value(&text, &format!("{duration}_bucket"), &[of_ok[0], of_ok[1], r#"le="0.01""#]), 6.0);
    assert!((value(&text, &format!("{duration}_sum"), &of_ok) - 0.042).abs() < 1e-9);
    let failed = [service, r#"status="503""#];
    assert_eq!(value(&text, &format!("{duration}_bucket"), &[failed[0], failed[1], r#"le="10""#]), 0.0);
    assert_eq!(value(&text, &format!("{duration}_bucket"), &[failed[0], failed[1], r#"le="+Inf""#]), 3.0);
    assert!(!text.contains("http_server_request_duration_seconds"), "nothing came in");
    assert_eq!(value(&text, "tulle_workers", &[]), 3.0);
}

#[test]
fn the_labels_are_those_of_the_table_in_its_order() {
    let metrics = metrics(1, 2000);
    let inbound = RequestLabels {
        direction: Direction::Inbound,
        route: "",
        backend: "",
        ..labels("default/orders:8080")
    };
    let outcome =
        Outcome { method: Method::Post, grpc_status: Some(14), reason: Some(Reason::PolicyDenied), ..ok() };
    metrics.worker(0).requests(&inbound).record(outcome, Duration::ZERO);
    let text = metrics.render();
    let expected = format!(
        "tulle_requests_total{{direction=\"inbound\",tls=\"mtls\",peer=\"{MESH}\",service=\"default/orders:8080\",\
         method=\"POST\",status=\"200\",grpc_status=\"14\",reason=\"policy_denied\",reason_by=\"self\"}} 1\n"
    );
    assert!(text.contains(&expected), "{text}");
    let expected = format!(
        "http_server_request_duration_seconds_count{{tls=\"mtls\",peer=\"{MESH}\",service=\"default/orders:8080\",\
         method=\"POST\",status=\"200\"}} 1\n"
    );
    assert!(text.contains(&expected), "{text}");
}

/// What follows the samples of buckets: the bound, the trace and the value.
fn exemplars(page: &str) -> Vec<(String, u64, f64)> {
    let linked = page.lines().filter_map(|line| line.split_once(" # "));
    let read = linked.map(|(sample, exemplar)| {
        let bound = sample.split("le=\"").nth(1).unwrap().split('"').next().unwrap();
        let trace = exemplar.strip_prefix("{trace_id=\"").unwrap().split('"').next().unwrap();
        let (_, rest) = exemplar.split_once("} ").unwrap();
        let (value, time) = rest.split_once(' ').unwrap();
        assert!(time.parse::<f64>().unwrap() > 0.0, "{exemplar}");
        (bound.to_owned(), u64::from_str_radix(trace, 16).unwrap(), value.parse().unwrap())
    });
    read.collect()
}

#[test]
fn the_latest_recorded_request_of_each_bucket_is_linked_in_openmetrics_alone() {
    let metrics = metrics(2, 2000);
    let at = |worker: usize, service: &str, trace: u64, millis: u64, end: u64| {
        let worker = metrics.worker(worker);
        let (cells, duration) = (worker.requests(&labels(service)), Duration::from_millis(millis));
        let histogram = cells.record(ok(), duration);
        if trace > 0 {
            let of = Context { trace: u128::from(trace).into(), span: trace.into() };
            worker.exemplify(histogram, duration, of, SystemTime::UNIX_EPOCH + Duration::from_secs(end));
        }
    };
    at(0, "default/a:80", 0, 1, 1);
    assert!(exemplars(&metrics.render_open()).is_empty(), "nothing was recorded");
    // Of two workers, the later one.
    at(0, "default/a:80", 1, 7, 10);
    at(1, "default/a:80", 2, 8, 20);
    at(1, "default/a:80", 3, 5, 30);
    at(0, "default/a:80", 4, 60_000, 5);
    at(0, "default/b:80", 5, 7, 40);
    // What is not recorded takes nobody's place.
    at(0, "default/a:80", 0, 7, 50);
    let page = metrics.render_open();
    let one = |bound: &str, trace, value| (bound.to_owned(), trace, value);
    assert_eq!(
        exemplars(&page),
        [one("0.005", 3, 0.005), one("0.01", 2, 0.008), one("+Inf", 4, 60.0), one("0.01", 5, 0.007)]
    );
    let text = metrics.render();
    assert!(!text.contains(" # "), "{text}");
    // But for what the process uses from one moment to the next.
    let samples = |page: &str| -> Vec<String> {
        let lines = page.lines().filter(|line| !line.contains("process_"));
        lines.map(|line| line.split(" # ").next().unwrap().to_owned()).collect()
    };
    assert_eq!(samples(&openmetrics::from_text(&text)), samples(&page));
}

#[test]
fn what_does_not_fit_under_the_cap_is_linked_too_and_holds_no_more() {
    let metrics = metrics(1, 0);
    let worker = metrics.worker(0);
    for number in 1..=1000_u64 {
        let cells = worker.requests(&labels(&format!("default/{number}:80")));
        let histogram = cells.record(ok(), Duration::from_millis(7));
        let of = Context { trace: u128::from(number).into(), span: number.into() };
        worker.exemplify(histogram, Duration::from_millis(7), of, SystemTime::now());
    }
    let linked = exemplars(&metrics.render_open());
    assert_eq!(linked.last().map(|(bound, trace, _)| (&**bound, *trace)), Some(("0.01", 1000)));
    assert!(linked.len() < 10, "{linked:?}");
}

#[test]
fn cells_are_found_again_and_keep_their_outcomes() {
    let worker = metrics(1, 2000).worker(0);
    let first = worker.requests(&labels("default/a:80"));
    assert!(Arc::ptr_eq(&first, &worker.requests(&labels("default/a:80"))));
    assert!(!Arc::ptr_eq(&first, &worker.requests(&labels("default/b:80"))));
}

#[test]
fn connections_are_active_until_dropped() {
    let metrics = metrics(2, 2000);
    let labels = ConnectionLabels {
        direction: Direction::Inbound,
        tls: TlsKind::None,
        peer: "",
        service: "",
        route: "",
        backend: "",
    };
    let cells = metrics.worker(0).connections(&labels);
    let open = cells.open();
    let kept = metrics.worker(1).connections(&labels).open();
    drop(open);
    cells.sent(10);
    kept.cells().received(5);
    let text = metrics.render();
    assert_eq!(value(&text, "tulle_connections_total", &[r#"{direction="inbound",tls="none"}"#]), 2.0);
    assert_eq!(value(&text, "tulle_connections_active", &["inbound"]), 1.0);
    assert_eq!(value(&text, "tulle_connection_bytes_total", &[r#"way="sent""#]), 10.0);
    assert_eq!(value(&text, "tulle_connection_bytes_total", &[r#"way="received""#]), 5.0);
}

#[test]
fn what_a_worker_counts_by_itself_is_there() {
    let metrics = metrics(1, 2000);
    let worker = metrics.worker(0);
    worker.request_began(Direction::Outbound);
    worker.handshake(Direction::Inbound, Err(Reason::TlsExpired), Duration::from_millis(2));
    worker.handshake(Direction::Inbound, Ok(()), Duration::from_millis(2));
    worker.refused(Direction::Inbound, Reason::TlsExpired);
    worker.detect(DetectResult::Timeout, DetectProtocol::Opaque, Duration::from_secs(10));
    worker.opened_early(EarlyOpen::Unused);
    worker.discovery(DiscoveryResult::Found, Duration::from_millis(3));
    worker.dial(Err(Reason::ConnectTimeout), Duration::from_secs(1));
    worker.dial(Ok(()), Duration::from_millis(1));
    worker.pool_reused();
    worker.replayed(ReplayCause::Idempotent);
    worker.retried(RetryCause::Status, RetryOutcome::Answered);
    worker.unretried(Unretried::Body);
    worker.accept_error();
    worker.handed_over();
    let verdict = VerdictLabels { verdict: VerdictKind::Deny, rule: "", reason: Some(Reason::PolicyDenied) };
    worker.verdicts(&verdict).inc();
    let text = metrics.render();
    for (name, parts, expected) in [
        ("tulle_requests_active", vec!["outbound"], 1.0),
        ("tulle_requests_active", vec!["inbound"], 0.0),
        ("tulle_tls_handshakes_total", vec![r#"result="failed",reason="tls_expired""#], 1.0),
        ("tulle_tls_handshakes_total", vec![r#"direction="inbound",result="ok"}"#], 1.0),
        ("tulle_tls_handshake_duration_seconds_count", vec!["inbound"], 2.0),
        ("tulle_refused_total", vec!["tls_expired"], 1.0),
        ("tulle_detect_total", vec![r#"{result="timeout",protocol="opaque"}"#], 1.0),
        ("tulle_detect_opened_early_total", vec!["unused"], 1.0),
        ("tulle_discovery_total", vec!["found"], 1.0),
        ("tulle_pool_dials_total", vec!["connect_timeout"], 1.0),
        ("tulle_pool_dials_total", vec![r#"{result="ok"}"#], 1.0),
        ("tulle_pool_reused_total", vec![], 1.0),
        ("tulle_replays_total", vec!["idempotent"], 1.0),
        ("tulle_retries_total", vec!["status", "answered"], 1.0),
        ("tulle_retries_withheld_total", vec!["body"], 1.0),
        ("tulle_accept_errors_total", vec![], 1.0),
        ("tulle_accept_handed_over_total", vec![], 1.0),
        ("tulle_policy_verdicts_total", vec![r#"{verdict="deny",reason="policy_denied"}"#], 1.0),
        ("tulle_metrics_limited", vec![], 0.0),
        ("tulle_build_info", vec![r#"component="proxy""#], 1.0),
    ] {
        assert_eq!(value(&text, name, &parts), expected, "{name} {parts:?}");
    }
    worker.request_ended(Direction::Outbound);
    assert_eq!(value(&metrics.render(), "tulle_requests_active", &["outbound"]), 0.0);
}

#[test]
fn pooled_connections_are_counted_until_they_are_dropped_by_whichever_thread() {
    let metrics = metrics(2, 2000);
    let (ours, other) = (metrics.worker(0).pool("default/orders:80"), metrics.worker(1).pool(""));
    let (used, idle) = (ours.open(PoolClose::Ended), ours.open(PoolClose::Ended));
    let elsewhere = other.open(PoolClose::Peer);
    ours.idle(0, 1);
    let orders = [r#"{service="default/orders:80"}"#];
    let text = metrics.render();
    assert_eq!(value(&text, "tulle_pool_connections", &orders), 2.0);
    assert_eq!(value(&text, "tulle_pool_connections_idle", &orders), 1.0);
    assert!(text.contains("tulle_pool_connections 1\n"), "{text}");
    ours.idle(1, 2);
    ours.idle(2, 1);
    drop(used);
    std::thread::spawn(move || {
        ours.dropped(1);
        idle.closing(PoolClose::Retired);
        drop((idle, elsewhere));
    })
    .join()
    .unwrap();
    let text = metrics.render();
    for name in ["tulle_pool_connections", "tulle_pool_connections_idle"] {
        assert_eq!(value(&text, name, &orders), 0.0, "{name}");
    }
    for cause in ["ended", "retired", "peer"] {
        assert_eq!(value(&text, "tulle_pool_closed_total", &[cause]), 1.0, "{cause}");
    }
    assert_eq!(value(&text, "tulle_pool_closed_total", &["idle"]), 0.0);
}

#[test]
fn the_control_threads_values_are_there() {
    let metrics = metrics(1, 2000);
    let control = metrics.control();
    assert_eq!(value(&metrics.render(), "tulle_ads_connected", &[]), 0.0, "from the start");
    control.ads_connected(true);
    control.ads_acked("Endpoints");
    control.ads_acked("Endpoints");
    control.ads_nacked("Routes");
    control.ads_resources("Endpoints", 3);
    control.ads_subscriptions("Address", 4);
    control.identity_renewed(true);
    control.registered(true);
    control.identity_expires(CertKind::Leaf, SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000));
    let text = metrics.render();
    assert_eq!(value(&text, "tulle_ads_connected", &[]), 1.0);
    assert_eq!(value(&text, "tulle_ads_acks_total", &[r#"type="Endpoints""#]), 2.0);
    assert_eq!(value(&text, "tulle_ads_nacks_total", &["Routes"]), 1.0);
    assert_eq!(value(&text, "tulle_ads_resources", &["Endpoints"]), 3.0);
    assert_eq!(value(&text, "tulle_registered", &[]), 1.0);
    assert!(value(&text, "tulle_ads_last_update_timestamp_seconds", &[]) > 1.7e9);
    assert_eq!(
        value(&text, "tulle_identity_cert_expiration_timestamp_seconds", &[r#"kind="leaf""#]),
        1_900_000_000.0
    );
    control.ads_connected(false);
    assert_eq!(value(&metrics.render(), "tulle_ads_connected", &[]), 0.0);
}

#[test]
fn values_from_elsewhere_are_read_at_the_scrape() {
    let metrics = metrics(1, 2000);
    metrics.at_scrape(|samples| {
        samples.push(Sample {
            family: &families::LOG_DROPPED,
            labels: vec!["access".to_owned()],
            value: 7.0,
        });
    });
    assert_eq!(value(&metrics.render(), "tulle_log_lines_dropped_total", &[r#"log="access""#]), 7.0);
}

#[test]
fn r11_a_hundred_thousand_label_sets_stay_under_the_cap() {
    let metrics = metrics(2, 2000);
    let outcome = |n: u32| Outcome { status: 200 + (n % 400) as u16, grpc_status: Some(n % 30), ..ok() };
    for n in 0..100_000_u32 {
        let worker = metrics.worker(n as usize % 2);
        let service = format!("default/s{n}:80");
        worker.requests(&labels(&service)).record(outcome(n), Duration::from_millis(1));
        let (direction, tls) = (Direction::Inbound, TlsKind::Mtls);
        worker
            .connections(&ConnectionLabels {
                direction,
                tls,
                peer: &service,
                service: "",
                route: "",
                backend: "",
            })
            .open();
        worker.verdicts(&VerdictLabels { verdict: VerdictKind::Allow, rule: &service, reason: None }).inc();
        let (verdict, protocol) = (VerdictKind::Deny, EgressProtocol::Http);
        worker.egress(&EgressLabels { verdict, protocol, name: &service }).inc();
        drop(worker.pool(&service).open(PoolClose::Ended));
        for reason in Reason::ALL {
            worker.refused(Direction::Inbound, *reason);
            worker.refused(Direction::Outbound, *reason);
            worker.handshake(Direction::Inbound, Err(*reason), Duration::ZERO);
            worker.handshake(Direction::Outbound, Err(*reason), Duration::ZERO);
            worker.dial(Err(*reason), Duration::ZERO);
        }
    }
    let text = metrics.render();
    assert!(lines(&text) <= 2000, "{} lines", lines(&text));
    assert_eq!(value(&text, "tulle_metrics_limited", &[]), 1.0);
    let all = |name: &str| -> f64 {
        let of_name = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        of_name.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    assert_eq!(all("tulle_requests_total"), 100_000.0, "nothing is lost");
    assert_eq!(all("http_client_request_duration_seconds_count"), 100_000.0);
    assert_eq!(all("tulle_connections_total"), 100_000.0);
    assert_eq!(all("tulle_policy_verdicts_total"), 100_000.0);
    assert_eq!(all("tulle_egress_total"), 100_000.0);
    assert_eq!(all("tulle_pool_closed_total"), 100_000.0);
    assert!(value(&text, "tulle_requests_total", &[r#"{direction="outbound",overflow="true"}"#]) > 0.0);
}

#[test]
fn r18_a_hundred_names_outside_the_mesh_are_told_apart_over_all_workers() {
    let metrics = metrics(2, 1_000_000);
    let (verdict, protocol) = (VerdictKind::Allow, EgressProtocol::Tls);
    for n in 0..400 {
        let name = format!("{}.example.com", n / 2);
        metrics.worker(n % 2).egress(&EgressLabels { verdict, protocol, name: &name }).inc();
    }
    metrics.worker(0).egress(&EgressLabels { verdict, protocol, name: "" }).inc();
    let text = metrics.render();
    let series = text.lines().filter(|line| line.starts_with("tulle_egress_total")).count();
    assert_eq!(series, 100 + 1 + 1);
    assert_eq!(value(&text, "tulle_egress_total", &[r#"{verdict="allow",protocol="tls"}"#]), 1.0);
    assert_eq!(value(&text, "tulle_egress_total", &[r#"name="99.example.com"}"#]), 2.0);
    assert_eq!(value(&text, "tulle_egress_total", &[r#"name="_OTHER"}"#]), 200.0);
    assert_eq!(value(&text, "tulle_metrics_limited", &[]), 0.0);
}

#[test]
fn an_application_with_random_statuses_cannot_grow_its_own_series() {
    let metrics = metrics(1, 1_000_000);
    let cells = metrics.worker(0).requests(&labels("default/a:80"));
    for status in 100..1000 {
        cells.record(Outcome { status, ..ok() }, Duration::ZERO);
    }
    let text = metrics.render();
    let series = text.lines().filter(|line| line.starts_with("tulle_requests_total")).count();
    assert_eq!(series, 64 + 1);
    assert_eq!(value(&text, "tulle_requests_total", &["overflow"]), 900.0 - 64.0);
}

#[test]
fn the_same_series_on_two_workers_takes_the_room_of_one() {
    let budget = Budget::new(1000, 0);
    let admitted = |group, key: &str| budget.admit(group, key.as_bytes(), 0);
    let mut taken = 0;
    while admitted(budget::Group::Connections, &format!("k{taken}")) {
        taken += 1;
    }
    assert!(taken > 0);
    assert!(admitted(budget::Group::Connections, "k0"));
    assert!(!admitted(budget::Group::Connections, "other"));
}

#[test]
fn every_family_is_named_by_the_conventions() {
    // As OpenMetrics has them, where a counter and a gauge must not differ by `_total` alone.
    let bare = |family: &Family| family.name.trim_end_matches("_total");
    for (index, family) in FAMILIES.iter().enumerate() {
        assert!(FAMILIES[index + 1..].iter().all(|other| bare(other) != bare(family)), "{}", family.name);
        assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{}", family.name);
        assert!(
            family.kind != Kind::Histogram
                || family.name.ends_with("_seconds")
                || family.name.ends_with("_bytes"),
            "{}",
            family.name
        );
        assert!(!family.labels.contains(&"le") && !family.help.contains('|'), "{}", family.name);
    }
}

#[test]
fn sizes_are_counted_in_bytes_and_lags_in_seconds() {
    let metrics = metrics(2, 2000);
    for worker in 0..2 {
        metrics.worker(worker).sizes(Direction::Inbound, 0, 300);
        metrics.worker(worker).lag(Duration::from_millis(20));
    }
    let text = metrics.render();
    let (requests, responses) =
        ("http_server_request_body_size_bytes", "http_server_response_body_size_bytes");
    assert_eq!(value(&text, &format!("{requests}_bucket"), &[r#"le="0""#]), 2.0);
    assert_eq!(value(&text, &format!("{responses}_bucket"), &[r#"le="256""#]), 0.0);
    assert_eq!(value(&text, &format!("{responses}_bucket"), &[r#"le="1024""#]), 2.0);
    assert_eq!(value(&text, &format!("{responses}_sum"), &[]), 600.0);
    assert_eq!(value(&text, "http_client_request_body_size_bytes_count", &[]), 0.0);
    assert!((value(&text, "tulle_worker_lag_seconds_sum", &[]) - 0.04).abs() < 1e-9);
}

#[test]
fn labels_that_are_not_to_be_shown_are_added_up() {
    let shown = SeriesLabels([false, true, false, false]);
    let metrics = Metrics::showing(shown, 1, 2000, &[], true);
    for (service, peer) in [("default/a:80", "one"), ("default/a:80", "another"), ("default/b:80", "one")] {
        let labels = RequestLabels { peer, ..labels(service) };
        metrics.worker(0).requests(&labels).record(ok(), Duration::ZERO);
        let RequestLabels { direction, tls, route, backend, .. } = labels;
        let labels = ConnectionLabels { direction, tls, peer, service, route, backend };
        drop(metrics.worker(0).connections(&labels).open());
    }
    let text = metrics.render();
    for (name, service, count) in [
        ("tulle_requests_total", "default/a:80", 2.0),
        ("tulle_requests_total", "default/b:80", 1.0),
        ("tulle_connections_total", "default/a:80", 2.0),
    ] {
        assert_eq!(value(&text, name, &[&format!("service=\"{service}\"")]), count, "{text}");
    }
    for label in ["peer=", "route=", "backend="] {
        assert!(!text.contains(label), "{label}: {text}");
    }
}

#[test]
fn the_process_is_measured() {
    let text = metrics(1, 2000).render();
    for name in
        ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_threads"]
    {
        assert!(value(&text, name, &[]) > 0.0, "{name}");
    }
}

#[test]
fn the_reference_page_says_what_the_table_says() {
    crate::telemetry::docs::compare("metrics.md", &reference());
}

#[test]
fn renewals_are_shown_before_there_are_any() {
    let text = Metrics::new(1, 1000, &[]).render();
    for result in ["ok", "failed"] {
        assert_eq!(value(&text, "tulle_identity_renewals_total", &[&format!("result=\"{result}\"")]), 0.0);
    }
}
