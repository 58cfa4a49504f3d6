//! What a record says of a request or a connection, in the access log and in metrics: its times, its bytes, how it was protected.

use std::time::Duration;

use serde_json::{Value, json};
use tulle_tests::app::App;
use tulle_tests::{Wire, World};

use super::Pair;
use super::live::echoing_upgrade;

/// Long enough to be told from what a busy machine takes.
const LONG: Duration = Duration::from_secs(3);

fn nanos(record: &Value, field: &str) -> Duration {
    Duration::from_nanos(record[field].as_u64().unwrap_or_else(|| panic!("no {field}: {record}")))
}

const HANGS: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders}
spec:
  parentRefs: [{group: '', kind: Service, name: orders, port: 8080}]
  rules:
    - matches: [{path: {value: /hangs}}]
      timeouts: {request: 3s}
      backendRefs: [{name: orders, port: 8080}]
    - backendRefs: [{name: orders, port: 8080}]
";

#[tokio::test(flavor = "multi_thread")]
async fn r21_neither_what_a_server_takes_nor_what_a_client_takes_is_the_proxys_own_time() {
    let app = App::wire(async move |mut wire: Wire| {
        while let Some(head) = wire.try_head().await {
            match head.line.split(' ').nth(1).unwrap() {
                "/head" => {
                    tokio::time::sleep(LONG).await;
                    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
                "/body" => {
                    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").await;
                    tokio::time::sleep(LONG).await;
                    wire.send("world").await;
                }
                _ => std::future::pending().await,
            }
        }
    })
    .await;
    let world = World::strict().await;
    world.service("orders", "http");
    world.yaml("route.yaml", HANGS);
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    let web = world.workload("web").calls("orders").start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let ask = async |path: &str| {
        let mut wire = web.connect("orders").await;
        wire.send(format!("GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n")).await;
        wire
    };
    let answered = async |path: &str| ask(path).await.response().await.0.status();
    let left = async || {
        let wire = ask("/left").await;
        tokio::time::sleep(LONG).await;
        drop(wire);
    };
    let (head, body, hangs, ()) =
        tokio::join!(answered("/head"), answered("/body"), answered("/hangs"), left());
    assert_eq!((head, body, hangs), (200, 200, 504));
    for workload in [&web, &orders] {
        for path in ["/head", "/body", "/hangs", "/left"] {
            let record = workload.logs(&[("path", json!(path))]).await;
            assert!(nanos(&record, "duration_ns") >= LONG - Duration::from_millis(200), "{record}");
            assert!(nanos(&record, "processing_ns") < LONG / 2, "{record}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_a_connection_are_counted_while_it_lives() {
    let pair = Pair::start(App::echo().await, "tcp").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send(vec![7; 100_000]).await;
    wire.exactly(100_000).await;
    for (workload, direction) in [(&pair.web, "outbound"), (&pair.orders, "inbound")] {
        for way in ["received", "sent"] {
            let labels = [("direction", direction), ("way", way)];
            workload.counts("tulle_connection_bytes_total", &labels, 100_000.0).await;
        }
        let active = workload.metrics().await.sum("tulle_connections_active", &[("direction", direction)]);
        assert_eq!(active, 1.0, "it lives");
    }
    drop(wire);
    let record = pair.orders.logs(&[("protocol", json!("TCP"))]).await;
    assert_eq!((&record["bytes_in"], &record["bytes_out"]), (&json!(100_000), &json!(100_000)), "{record}");
    let metrics = pair.orders.metrics().await;
    let labels = [("direction", "inbound"), ("way", "sent")];
    assert_eq!(metrics.sum("tulle_connection_bytes_total", &labels), 100_000.0, "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_of_a_connection_is_not_told_as_plain_text() {
    let world = World::strict().await;
    world.service("orders", "http");
    world.service("absent", "http");
    let app = App::saying("hello").await;
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    let web = world.workload("web").calls("orders").calls("absent").start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    web.reaches("orders").await;
    let mut wire = web.connect("absent").await;
    wire.send("GET /absent HTTP/1.1\r\nhost: absent\r\n\r\n").await;
    assert_eq!(wire.response().await.0.status(), 503);
    let record = web.logs(&[("path", json!("/absent"))]).await;
    assert_eq!(record["tls"], Value::Null, "no endpoint was chosen: {record}");
    let metrics = web.metrics().await;
    assert!(metrics.sum("tulle_requests_total", &[("direction", "outbound"), ("tls", "mtls")]) >= 1.0);
    for family in ["tulle_requests_total", "tulle_connections_total"] {
        assert!(metrics.sum(family, &[("direction", "outbound")]) >= 2.0);
        assert_eq!(metrics.sum(family, &[("tls", "none")]), 0.0, "{family}");
    }
}

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nhost: orders\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n";
const CONNECT: &str = "CONNECT db.example:5432 HTTP/1.1\r\nhost: db.example:5432\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn r21_a_tunnel_is_told_once_when_it_is_over_with_all_its_bytes() {
    for (asks, status, method) in [(UPGRADE, 101, "GET"), (CONNECT, 200, "CONNECT")] {
        let pair = Pair::start(echoing_upgrade().await, "http").await;
        let mut wire = pair.web.connect("orders").await;
        wire.send(asks).await;
        assert_eq!(wire.head().await.status(), status);
        wire.send("ping\n").await;
        assert_eq!(wire.until(b"\n").await.unwrap(), b"ping\n");
        tokio::time::sleep(LONG).await;
        for workload in [&pair.web, &pair.orders] {
            let told = workload.access_log();
            assert!(told.iter().all(|record| record["method"] != method), "it goes on: {told:#?}");
            workload.counts("tulle_requests_total", &[("method", method)], 1.0).await;
        }
        wire.finish().await;
        wire.to_end_or_reset().await;
        for workload in [&pair.web, &pair.orders] {
            let record = workload.logs(&[("method", json!(method))]).await;
            let said = (&record["status"], &record["bytes_in"], &record["bytes_out"]);
            assert_eq!(said, (&json!(status), &json!(5), &json!(5)), "{record}");
            assert!(nanos(&record, "duration_ns") >= LONG, "{record}");
            assert!(nanos(&record, "processing_ns") < LONG / 2, "{record}");
            assert_eq!((&record["reason"], &record["tls"]), (&Value::Null, &json!("mtls")), "{record}");
            // How long people talk is no latency.
            let family = "http_server_request_duration_seconds_sum";
            assert!(workload.metrics().await.sum(family, &[]) < LONG.as_secs_f64(), "{record}");
            let lines = workload.access_log();
            assert_eq!(lines.iter().filter(|line| line["method"] == method).count(), 1, "{lines:#?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lasts_from_when_it_was_accepted() {
    let pair = Pair::start(App::echo().await, "http").await;
    // Whoever is silent at first.
    let (mut out, mut plain) = (pair.web.connect("orders").await, Wire::connect(pair.orders.inbound()).await);
    tokio::time::sleep(LONG).await;
    out.send("\u{1}no HTTP\n").await;
    assert_eq!(out.until(b"\n").await.unwrap(), "\u{1}no HTTP\n".as_bytes());
    drop(out);
    plain.send("\u{1}no HTTP\n").await;
    plain.to_end_or_reset().await;
    let least = LONG - Duration::from_millis(200);
    let record = pair.web.logs(&[("protocol", json!("TCP")), ("bytes_in", json!(9))]).await;
    assert!(nanos(&record, "duration_ns") >= least, "{record}");
    let record = pair.orders.logs(&[("protocol", json!("TCP")), ("reason", json!("mtls_required"))]).await;
    assert!(nanos(&record, "duration_ns") >= least, "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_what_the_end_of_a_drain_cuts_off_is_told_and_why() {
    let world = World::strict().await;
    let hangs = App::wire(async move |mut wire: Wire| {
        wire.head().await;
        std::future::pending().await
    })
    .await;
    let (chat, bytes) = (echoing_upgrade().await, App::echo().await);
    for (service, protocol) in [("chat", "http"), ("bytes", "tcp"), ("hangs", "http")] {
        world.service(service, protocol);
    }
    let orders = world.workload("orders").setting("--drain-grace", "2s").serves("chat", chat.address());
    let orders = orders.serves("bytes", bytes.address()).serves("hangs", hangs.address());
    let mut orders = orders.start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = world.workload("web").setting("--drain-grace", "2s");
    let mut web = web.calls("chat").calls("bytes").calls("hangs").start().await;
    let mut tunnel = web.connect("chat").await;
    tunnel.send("GET /chat HTTP/1.1\r\nhost: chat\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n").await;
    assert_eq!(tunnel.head().await.status(), 101);
    let mut opaque = web.connect("bytes").await;
    for wire in [&mut tunnel, &mut opaque] {
        wire.send("ping\n").await;
        assert_eq!(wire.exactly(5).await, b"ping\n");
    }
    let mut hanging = web.connect("hangs").await;
    hanging.send("GET /hangs HTTP/1.1\r\nhost: hangs\r\n\r\n").await;
    orders.counts("tulle_requests_active", &[("direction", "inbound")], 1.0).await;
    // The client's proxy first: else it would tell what the server's has cut off.
    web.process().stop().await;
    orders.process().stop().await;
    let told = web.access_log();
    let of = |field: &str, value: &str| {
        let found: Vec<_> = told.iter().filter(|record| record[field] == value).collect();
        assert_eq!(found.len(), 1, "{field} {value}: {told:#?}");
        assert_eq!(found[0]["reason"], "draining", "{}", found[0]);
        found[0].clone()
    };
    of("path", "/hangs");
    for record in [of("path", "/chat"), of("protocol", "TCP")] {
        assert_eq!((&record["bytes_in"], &record["bytes_out"]), (&json!(5), &json!(5)), "{record}");
    }
}
