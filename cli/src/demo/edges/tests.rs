use std::time::{Duration, Instant};

use super::*;
use crate::demo::driver::Traffic;
use crate::demo::report::Report;
use crate::demo::scrape::parse;

const V1: &str = "spiffe://cluster.local/ns/demo/sa/payments-v1";

fn edges() -> Vec<Edge> {
    crate::demo::topology::edges()
}

/// `/metrics` of orders' proxy: so many requests to both versions, each 1.5 ms long.
fn metrics(v1: u32, v2: u32, failed_v2: u32) -> String {
    let mut text = String::new();
    for (version, requests) in [("v1", v1), ("v2", v2)] {
        let labels = format!(
            r#"tls="mtls",peer="spiffe://cluster.local/ns/demo/sa/payments-{version}",service="demo/payments:8080",route="demo/payments",backend="demo/payments-{version}:8080",method="GET",status="200""#
        );
        text.push_str(&format!("tulle_requests_total{{direction=\"outbound\",{labels}}} {requests}\n"));
        for (bound, count) in [("0.001", 0), ("0.002", requests), ("+Inf", requests)] {
            let name = "http_client_request_duration_seconds_bucket";
            text.push_str(&format!("{name}{{{labels},le=\"{bound}\"}} {count}\n"));
        }
    }
    let backend = r#"direction="outbound",tls="mtls",backend="demo/payments-v2:8080""#;
    text.push_str(&format!(
        "tulle_requests_total{{{backend},reason=\"connect_failed\",status=\"503\"}} {failed_v2}\n"
    ));
    text.push_str(
        "tulle_requests_total{direction=\"inbound\",service=\"demo/orders:8080\",status=\"200\"} 1000\n",
    );
    text
}

fn scrapes(orders: &str) -> Vec<(&'static str, Vec<Line>)> {
    let identity = "spiffe://cluster.local/ns/demo/sa/orders";
    let web = format!(
        "tulle_requests_total{{direction=\"outbound\",tls=\"mtls\",peer=\"{identity}\",service=\"demo/orders:8080\",status=\"200\"}} 7\n"
    );
    vec![("web", parse(&web)), ("orders", parse(orders))]
}

fn traffic(requests: u64, failed: u64) -> Traffic {
    let mut traffic = Traffic::new().unwrap();
    (traffic.requests, traffic.failed) = (requests, failed);
    traffic
}

#[test]
fn rates_and_shares_are_of_the_last_seconds_and_counts_of_all() {
    let begin = Instant::now();
    let at = |seconds: u64| begin + Duration::from_secs(seconds);
    let mut history = History::new(edges(), begin, &scrapes(&metrics(100, 100, 0)));
    history.push(at(1), &scrapes(&metrics(190, 110, 0)));
    history.push(at(2), &scrapes(&metrics(280, 120, 0)));
    let rows = history.live();
    assert_eq!((rows[1].requests, rows[1].rps, rows[1].share), (180, 90.0, Some(0.9)));
    assert_eq!((rows[2].requests, rows[2].rps, rows[2].share), (20, 10.0, Some(0.1)));
    assert!(rows[1].mtls && rows[2].mtls);
    assert_eq!(rows[1].identity, V1);
    let p50 = rows[1].p50.unwrap().as_secs_f64();
    assert!((p50 - 0.0015).abs() < 1e-6, "{p50}");
    // The weights are turned round: two seconds later the table shows nothing else.
    history.push(at(3), &scrapes(&metrics(290, 210, 0)));
    history.push(at(4), &scrapes(&metrics(300, 300, 0)));
    assert_eq!(history.live()[1].share, Some(0.1));
    let total = history.total();
    assert_eq!((total[1].requests, total[1].rps), (200, 50.0));
    assert_eq!(history.elapsed(), Duration::from_secs(4));
}

#[test]
fn old_samples_go_and_the_baseline_stays() {
    let begin = Instant::now();
    let mut history = History::new(edges(), begin, &scrapes(&metrics(0, 0, 0)));
    for second in 1..=100 {
        history
            .push(begin + Duration::from_secs(u64::from(second)), &scrapes(&metrics(second * 9, second, 0)));
    }
    assert!(history.recent.len() <= 12, "{}", history.recent.len());
    assert_eq!(history.total()[1].requests, 900);
    assert_eq!(history.live()[1].rps, 9.0);
}

#[test]
fn the_verdict_names_the_edge_that_carried_nothing_and_the_one_that_failed() {
    let begin = Instant::now();
    let mut history = History::new(edges(), begin, &scrapes(&metrics(0, 0, 0)));
    history.push(begin + Duration::from_secs(1), &scrapes(&metrics(9, 3, 1)));
    let report = Report::new(&history.total(), &traffic(13, 1), history.elapsed(), Vec::new());
    assert!(!report.is_ok());
    let verdict = report.verdict().join("\n");
    assert!(verdict.contains("web → orders: carried no request"), "{verdict}");
    assert!(verdict.contains("orders → payments-v2: 1 of 4 requests failed (connect_failed)"), "{verdict}");
    assert!(verdict.contains("1 of 13 requests to web failed"), "{verdict}");
    assert!(!verdict.contains("payments-v1"), "{verdict}");
}

#[test]
fn requests_fail_as_for_stat_and_the_rules() {
    let cases = include_str!("../../../../tests/rules/failures.txt").lines();
    for case in cases.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = case.split_whitespace().collect();
        let names = ["method", "status", "grpc_status", "reason"];
        let labels = names.iter().zip(&words).filter(|(_, word)| **word != "-");
        let labels: String = labels.map(|(name, word)| format!(r#",{name}="{word}""#)).collect();
        let text = format!(
            "tulle_requests_total{{direction=\"outbound\",service=\"demo/orders:8080\"{labels}}} 3\n"
        );
        let counters = Counters::read(&parse(&text), "demo/orders:8080");
        let failed = if words[4] == "failed" { 3.0 } else { 0.0 };
        assert_eq!((counters.requests, counters.failed), (3.0, failed), "{case}");
    }
}

#[test]
fn plaintext_or_another_identity_is_not_mtls() {
    let begin = Instant::now();
    let none = scrapes("");
    for (before, after) in [("tls=\"mtls\"", "tls=\"none\""), ("sa/payments-v1", "sa/intruder")] {
        let mut history = History::new(edges(), begin, &none);
        history.push(begin, &scrapes(&metrics(9, 1, 0).replace(before, after)));
        let row = &history.total()[1];
        assert!(!row.mtls, "{after}");
        let report = Report::new(&history.total(), &traffic(10, 0), Duration::from_secs(1), Vec::new());
        assert!(
            report
                .verdict()
                .join("\n")
                .contains("orders → payments-v1: not every request went over mutual TLS")
        );
    }
}

#[test]
fn the_json_object_has_the_documented_shape() {
    let begin = Instant::now();
    let mut history = History::new(edges(), begin, &[]);
    history.push(begin + Duration::from_secs(2), &scrapes(&metrics(90, 10, 0)));
    let report = Report::new(&history.total(), &traffic(100, 0), history.elapsed(), Vec::new());
    assert!(report.is_ok(), "{:?}", report.verdict());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["ok"], true);
    assert_eq!(json["problems"], serde_json::json!([]));
    assert_eq!(
        json["edges"][1],
        serde_json::json!({
            "from": "orders", "to": "payments-v1", "requests": 90, "success_rate": 1.0, "rps": 45.0,
            "p50_ms": 1.5, "p99_ms": 1.99, "mtls": true, "identity": V1,
        })
    );
    assert_eq!(json["edges"].as_array().unwrap().len(), 3);
}
