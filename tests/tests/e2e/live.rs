//! What is open while the world changes: policy, drain, endpoints that lose their application.

use std::time::Duration;

use serde_json::json;
use tulle_certs::alpn::H2;
use tulle_tests::app::App;
use tulle_tests::identity::{self, Identity};
use tulle_tests::{Wire, World, eventually, within};

use super::Pair;

pub(super) const NOBODY: &str = "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: nobody\n  \
                      namespace: default\nspec:\n  targetRefs:\n    - {group: \"\", kind: Service, name: orders}\n  \
                      action: ALLOW\n  rules:\n    - name: other\n      from:\n        - identities: \
                      [\"default/other\"]\n";

/// Echoes lines on connections that are upgraded, or tunnels by CONNECT.
pub(super) async fn echoing_upgrade() -> App {
    App::wire(async move |mut wire: Wire| {
        let connect = wire.head().await.line.starts_with("CONNECT ");
        let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
        wire.send(if connect { "HTTP/1.1 200 OK\r\n\r\n" } else { switched }).await;
        while let Some(word) = wire.until(b"\n").await {
            wire.send(word).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_policy_cuts_an_upgraded_connection() {
    let pair = Pair::start(echoing_upgrade().await, "http").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send("GET /chat HTTP/1.1\r\nhost: orders\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n").await;
    assert_eq!(wire.head().await.status(), 101);
    wire.send("ping\n").await;
    assert_eq!(wire.until(b"\n").await.unwrap(), b"ping\n");
    pair.world.yaml("policy.yaml", NOBODY);
    assert_eq!(wire.to_end_or_reset().await, b"");
    cut(&pair, 1, "HTTP/1.1").await;
    let told = pair.orders.access_log();
    assert_eq!(
        told.iter().filter(|record| record["reason"] == "policy_denied").count(),
        1,
        "once: {told:#?}"
    );
    assert_eq!(pair.orders.logs(&[("path", json!("/chat"))]).await["bytes_out"], 5);
}

/// What is told of connections that a change of policy has cut.
async fn cut(pair: &Pair, connections: u32, protocol: &str) {
    let reason = [("direction", "inbound"), ("reason", "policy_denied")];
    pair.orders.counts("tulle_refused_total", &reason, f64::from(connections)).await;
    let record = pair.orders.logs(&[("reason", json!("policy_denied")), ("protocol", json!(protocol))]).await;
    assert_eq!(record["source"], json!(pair.web.identity()), "{record}");
    assert!(record["detail"].as_str().unwrap().starts_with("policy has changed"), "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_policy_ends_a_response_that_goes_on_for_ever() {
    let app = App::wire(async move |mut wire: Wire| {
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
        wire.until(b"never").await;
    })
    .await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send("GET /watch HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    assert_eq!(wire.head().await.status(), 200);
    assert_eq!(wire.until(b"hello\r\n").await.unwrap(), b"5\r\nhello\r\n");
    pair.world.yaml("policy.yaml", NOBODY);
    // Broken off, and not ended: the last chunk never comes.
    assert_eq!(wire.to_end_or_reset().await, b"");
    cut(&pair, 1, "TCP").await;
    let request = [("path", json!("/watch")), ("direction", json!("inbound"))];
    assert_eq!(pair.orders.logs(&request).await["reason"], "policy_denied", "nobody else has ended it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_names_http_on_an_opaque_port_gets_its_bytes_through_as_they_are() {
    let pair = Pair::start(App::echo().await, "tcp").await;
    let caller = Identity::issue(&pair.world.authority(), "web");
    let mut wire = identity::connect(pair.orders.inbound(), Some(&caller), &[H2]).await.unwrap();
    wire.send("no preface at all").await;
    assert_eq!(wire.exactly(17).await, b"no preface at all");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_whose_application_is_gone_sends_the_request_to_another() {
    let world = World::strict().await;
    world.service("orders", "http");
    let (dies, lives) = (App::saying("hello").await, App::saying("hello").await);
    let one = world.workload("orders").serves("orders", dies.address()).start().await;
    let two = world.workload("orders-2").serves("orders", lives.address()).start().await;
    let web = world.workload("web").calls("orders").start().await;
    for orders in [&one, &two] {
        orders.counts("tulle_registered", &[], 1.0).await;
    }
    let mut wire = web.connect("orders").await;
    let mut ask = async || {
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        wire.response().await.0
    };
    // Both are used, and their connections kept.
    eventually("both are used", async || {
        assert_eq!(ask().await.status(), 200);
        let used = async |orders: &tulle_tests::Workload| {
            orders.metrics().await.sum("tulle_requests_total", &[("direction", "inbound")])
        };
        if used(&one).await > 0.0 && used(&two).await > 0.0 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    dies.stop().await;
    eventually("a request has met the dead one", async || {
        let head = ask().await;
        assert_eq!(head.status(), 200, "{head:?}");
        assert!(head.get("x-tulle-processed").is_none(), "{head:?}");
        let failed = one.metrics().await.sum("tulle_requests_total", &[("reason", "connect_failed")]);
        if failed > 0.0 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_with_nothing_but_idle_connections_ends_soon() {
    let mut pair = Pair::start(App::saying("hello").await, "http").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    assert_eq!(wire.response().await.0.status(), 200);
    for workload in [&mut pair.web, &mut pair.orders] {
        workload.process().signal(rustix::process::Signal::TERM);
        let status = tokio::time::timeout(Duration::from_secs(5), workload.process().wait()).await;
        assert!(status.expect("ends long before the grace period").success());
    }
    assert_eq!(within("the end", wire.to_end()).await, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_by_the_admin_listener_makes_the_endpoint_unready_too() {
    let pair = Pair::start(App::saying("hello").await, "http").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    assert_eq!(wire.response().await.0.status(), 200);
    let mut admin = Wire::connect(pair.orders.admin()).await;
    admin.send("POST /drain HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(admin.head().await.status() < 300);
    eventually("the endpoint is seen as not ready", async || {
        let dump: serde_json::Value = serde_json::from_str(&pair.web.config_dump().await).unwrap();
        match &dump["services"][0]["endpoints"][0]["ready"] {
            ready if *ready == json!(false) => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
}
