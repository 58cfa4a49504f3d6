//! Ports that declare nothing: whoever speaks first is heard, and nobody waits for the other's word.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Response;
use serde_json::json;
use tokio::net::TcpStream;
use tulle_tests::app::{App, full};
use tulle_tests::{Mode, Wire, Workload, World, eventually};

use super::Pair;

/// Speaks first, and counts the connections that it was offered.
async fn greets() -> (App, Arc<AtomicUsize>) {
    let offered = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&offered);
    let app = App::wire(move |mut wire: Wire| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            wire.send("220 ready\r\n").await;
            if let Some(line) = wire.until(b"\r\n").await {
                wire.send([b"you said ", &line[..]].concat()).await;
            }
        }
    });
    (app.await, offered)
}

/// HTTP/1.1; counts the connections that it was offered.
async fn answers() -> (App, Arc<AtomicUsize>) {
    let offered = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&offered);
    let app = App::wire(move |mut wire: Wire| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            while wire.try_head().await.is_some() {
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    });
    (app.await, offered)
}

/// Until the proxy has opened the server for as many silent clients, whatever came of it.
async fn opened(workload: &Workload, result: &str, least: f64) {
    workload.counts("tulle_detect_opened_early_total", &[("result", result)], least).await;
}

async fn get(wire: &mut Wire) -> u16 {
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    wire.response().await.0.status()
}

async fn greeted(wire: &mut Wire) {
    assert_eq!(wire.line().await, "220 ready");
    wire.send("HELO\r\n").await;
    assert_eq!(wire.line().await, "you said HELO");
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_a_server_that_speaks_first_on_an_undeclared_port_is_heard_and_remembered() {
    let (app, _) = greets().await;
    let pair = Pair::start(app, "").await;
    for _ in 0..2 {
        greeted(&mut pair.web.connect("orders").await).await;
    }
    for workload in [&pair.web, &pair.orders] {
        workload
            .counts("tulle_detect_total", &[("result", "server_first"), ("protocol", "opaque")], 2.0)
            .await;
        opened(workload, "used", 2.0).await;
    }
    let record = pair.orders.logs(&[("direction", json!("inbound")), ("protocol", json!("TCP"))]).await;
    let source = json!(pair.web.identity());
    assert_eq!((&record["tls"], &record["source"]), (&json!("mtls"), &source), "{record}");
    assert_eq!(record["detected"], "server_first", "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_a_request_that_comes_after_the_server_was_opened_is_routed() {
    let (app, offered) = answers().await;
    let world = World::strict().await;
    world.service("orders", "");
    world.yaml(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: late, namespace: default}\nspec:\n  \
         parentRefs: [{group: '', kind: Service, name: orders, port: 8080}]\n  \
         rules: [{matches: [{path: {type: PathPrefix, value: /}}], backendRefs: [{name: orders, port: 8080}]}]\n",
    );
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    let web = world.workload("web").calls("orders").start().await;
    orders.counts("tulle_registered", &[], 1.0).await;

    let mut wire = web.connect("orders").await;
    eventually("the server is opened", async || match offered.load(Ordering::SeqCst) {
        0 => Err("not yet".to_owned()),
        _ => Ok(()),
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(get(&mut wire).await, 200);
    assert_eq!(get(&mut wire).await, 200);
    opened(&web, "unused", 1.0).await;
    drop(wire);
    let record = web.logs(&[("protocol", json!("HTTP/1.1"))]).await;
    assert_eq!((&record["route"], &record["status"]), (&json!("default/late"), &json!(200)), "{record}");
    // At the other proxy too it was HTTP, and the stream that was opened too early has ended as nothing.
    orders.logs(&[("protocol", json!("HTTP/1.1")), ("status", json!(200))]).await;
    let unused = orders.logs(&[("protocol", json!("TCP"))]).await;
    assert_eq!((&unused["bytes_in"], &unused["bytes_out"]), (&json!(0), &json!(0)), "{unused}");
    assert!(unused.get("reason").is_none(), "{unused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_where_clients_speak_first_those_that_leave_without_a_word_never_reach_the_application() {
    let (app, offered) = answers().await;
    let pair = Pair::start(app, "").await;
    let mut first = pair.web.connect("orders").await;
    assert_eq!(get(&mut first).await, 200);
    let before = offered.load(Ordering::SeqCst);
    for _ in 0..20 {
        drop(pair.web.connect("orders").await);
    }
    pair.web.counts("tulle_detect_total", &[("result", "closed")], 20.0).await;
    // What had been opened would have been offered before this.
    assert_eq!(get(&mut pair.web.connect("orders").await).await, 200);
    let metrics = pair.web.metrics().await;
    assert_eq!(metrics.sum("tulle_detect_opened_early_total", &[]), 0.0);
    assert!(offered.load(Ordering::SeqCst) <= before + 1, "one for the last request at most");
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_a_port_whose_clients_spoke_first_may_become_one_whose_server_does() {
    // Who sends nothing is greeted; who speaks first is answered.
    let app = App::tcp(async move |stream: TcpStream| {
        let mut peeked = [0; 1];
        let spoken = tokio::time::timeout(Duration::from_millis(1), stream.peek(&mut peeked)).await;
        let mut wire = Wire::new(stream);
        if spoken.is_err() {
            wire.send("220 ready\r\n").await;
        }
        while let Some(line) = wire.until(b"\r\n").await {
            wire.send([b"you said ", &line[..]].concat()).await;
        }
    })
    .await;
    let pair = Pair::start(app, "").await;
    let mut eager = pair.web.connect("orders").await;
    eager.send("\0HELO\r\n").await;
    eager.line().await;
    for _ in 0..2 {
        greeted(&mut pair.web.connect("orders").await).await;
    }
    pair.web.counts("tulle_detect_total", &[("result", "server_first")], 2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_a_silent_client_of_a_server_that_is_down_is_refused_with_the_reason() {
    let (app, _) = greets().await;
    let pair = Pair::start(app, "").await;
    pair._app.stop().await;
    let mut wire = pair.web.connect("orders").await;
    assert_eq!(wire.to_end_or_reset().await, b"");
    let record = pair.orders.logs(&[("direction", json!("inbound")), ("protocol", json!("TCP"))]).await;
    assert_eq!(record["reason"], "connect_failed", "{record}");
    pair.web.counts("tulle_refused_total", &[("direction", "outbound")], 1.0).await;

    // Whoever speaks HTTP after all is told in HTTP.
    let mut wire = pair.web.connect("orders").await;
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    let (head, _) = wire.response().await;
    assert_eq!((head.status(), head.reason()), (503, Some("connect_failed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_policy_is_asked_before_the_application_is_opened_for_a_silent_client() {
    let (app, offered) = greets().await;
    let pair = Pair::start(app, "").await;
    pair.world.yaml(
        "policy.yaml",
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: default}\nspec:\n  \
         targetRefs: [{group: '', kind: Service, name: orders}]\n  action: ALLOW\n  rules: []\n",
    );
    eventually("nobody is let in", async || {
        let mut wire = pair.web.connect("orders").await;
        match wire.to_end_or_reset().await.is_empty() {
            true => Ok(()),
            false => Err("greeted".to_owned()),
        }
    })
    .await;
    let offers = offered.load(Ordering::SeqCst);
    let mut wire = pair.web.connect("orders").await;
    assert_eq!(wire.to_end_or_reset().await, b"");
    assert_eq!(offered.load(Ordering::SeqCst), offers);
    pair.orders.counts("tulle_refused_total", &[("reason", "policy_denied")], 2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_a_client_without_a_proxy_hears_a_server_that_speaks_first() {
    for protocol in ["", "tcp"] {
        let (app, _) = greets().await;
        let world = World::start(Mode::Permissive).await;
        world.service("orders", protocol);
        let orders = world.workload("orders").serves("orders", app.address()).start().await;
        let web = world.workload("web").calls("orders").start().await;
        orders.counts("tulle_registered", &[], 1.0).await;
        for _ in 0..2 {
            greeted(&mut Wire::connect(orders.inbound()).await).await;
            greeted(&mut web.connect("orders").await).await;
        }
        let record = orders.logs(&[("tls", json!("none"))]).await;
        assert_eq!(record["detected"], "server_first", "{record}");
        orders.logs(&[("tls", json!("mtls"))]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_a_request_without_a_proxy_that_comes_late_is_http() {
    let app = App::http1(|_| async { Response::new(full("ok")) }).await;
    let world = World::start(Mode::Permissive).await;
    world.service("orders", "");
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let mut wire = Wire::connect(orders.inbound()).await;
    orders.counts("tulle_pool_dials_total", &[("result", "ok")], 1.0).await;
    assert_eq!(get(&mut wire).await, 200);
    opened(&orders, "unused", 1.0).await;
    orders.logs(&[("protocol", json!("HTTP/1.1")), ("tls", json!("none"))]).await;
}
