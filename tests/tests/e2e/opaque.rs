//! Bytes that are none of the proxy's business.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tulle_tests::app::App;
use tulle_tests::{Wire, World, eventually, identity};

use super::Pair;
use super::mtls::endpoint_slice;

#[tokio::test(flavor = "multi_thread")]
async fn each_direction_ends_by_itself() {
    // Answers only after the client has said that it is done.
    let app = App::tcp(async move |mut stream: tokio::net::TcpStream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(format!("{} bytes", all.len()).as_bytes()).await.unwrap();
    })
    .await;
    let pair = Pair::start(app, "tcp").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send(vec![7; 300_000]).await;
    wire.finish().await;
    assert_eq!(wire.to_end().await, b"300000 bytes");

    let record = pair.orders.logs(&[("direction", json!("inbound")), ("protocol", json!("TCP"))]).await;
    assert_eq!((&record["bytes_in"], &record["bytes_out"]), (&json!(300_000), &json!(12)), "{record}");
    assert_eq!(
        (&record["tls"], &record["source"]),
        (&json!("mtls"), &json!(pair.web.identity())),
        "{record}"
    );
    let metrics = pair.web.metrics().await;
    let labels = [("direction", "outbound"), ("service", "default/orders:8080"), ("tls", "mtls")];
    assert!(metrics.sum("tulle_connections_total", &labels) >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_first_is_heard_on_a_declared_port() {
    let app = App::wire(async move |mut wire: Wire| {
        wire.send("220 ready\r\n").await;
        let line = wire.line().await;
        wire.send(format!("you said {line}\r\n")).await;
    })
    .await;
    let pair = Pair::start(app, "tcp").await;
    let mut wire = pair.web.connect("orders").await;
    assert_eq!(wire.line().await, "220 ready");
    wire.send("HELO\r\n").await;
    assert_eq!(wire.line().await, "you said HELO");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_never_were_http_pass_on_an_undeclared_port() {
    let pair = Pair::start(App::echo().await, "").await;
    for bytes in [&b"\x00\x01\x02binary"[..], b"hello?\n", b"GET\0/ HTTP/1.1\r\n\r\n"] {
        let mut wire = pair.web.connect("orders").await;
        wire.send(bytes).await;
        assert_eq!(wire.exactly(bytes.len()).await, bytes);
        wire.finish().await;
        assert_eq!(wire.to_end().await, b"");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applications_own_tls_passes_inside_ours() {
    let authority = identity::authority(&identity::trust_domain());
    let own = identity::Identity::issue(&authority, "own");
    let acceptor = tokio_rustls::TlsAcceptor::from(own.server(&[b"http/1.1"]));
    let app = App::tcp(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut buffer = [0; 4];
            stream.read_exact(&mut buffer).await.unwrap();
            stream.write_all(&buffer).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    })
    .await;
    let pair = Pair::start(app, "").await;
    let mut wire = identity::connect(pair.web.outbound("orders"), None, &[b"http/1.1"]).await.unwrap();
    {
        let (_, session) = wire.stream().get_ref();
        assert_eq!(
            session.peer_certificates().unwrap()[0],
            own.chain[0],
            "the application's own certificate"
        );
    }
    wire.send("ping").await;
    assert_eq!(wire.to_end().await, b"ping");
    drop(wire);
    let record = pair.orders.logs(&[("direction", json!("inbound"))]).await;
    assert_eq!(record["tls"], "mtls", "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_passed_on_as_a_reset() {
    let app = App::tcp(async move |mut stream: tokio::net::TcpStream| {
        let mut buffer = [0; 4];
        stream.read_exact(&mut buffer).await.unwrap();
        stream.write_all(b"half").await.unwrap();
        // Data that nobody has read makes the close a reset.
        stream.peek(&mut buffer).await.unwrap();
        drop(stream);
    })
    .await;
    let pair = Pair::start(app, "tcp").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send("ping").await;
    assert_eq!(wire.exactly(4).await, b"half");
    wire.send("more").await;
    let error = wire.stream().read(&mut [0; 16]).await;
    assert!(error.is_err(), "a clean end in place of a reset");
}

/// Whether a word comes back on a connection of its own.
async fn is_echoed(to: std::net::SocketAddr) -> bool {
    let mut wire = Wire::connect(to).await;
    wire.try_send("ping").await.is_ok() && wire.try_exactly(4).await.is_some_and(|said| said == b"ping")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_beside_a_good_one_loses_no_connection() {
    let world = World::strict().await;
    let (good, dead) = (App::echo().await, App::echo().await);
    world.service("db", "tcp");
    let slices = [("db-1", &good), ("db-2", &dead)].map(|(name, app)| {
        endpoint_slice("db", app.address(), None).replace("name: db-1", &format!("name: {name}"))
    });
    world.yaml("slices.yaml", &slices.join("---\n"));
    dead.stop().await;
    let web = world.workload("web").calls("db").start().await;
    for number in 0..100 {
        assert!(is_echoed(web.outbound("db")).await, "connection {number}");
    }
    let metrics = web.metrics().await;
    let again = metrics.sum("tulle_replays_total", &[("cause", "unprocessed")]);
    let failed = metrics.sum("tulle_pool_dials_total", &[("result", "failed"), ("reason", "connect_failed")]);
    // It is tried, and then hardly any more.
    assert!((1.0..=20.0).contains(&again) && again == failed, "{again} again, {failed} failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_whose_proxy_cannot_reach_its_application_is_ejected_for_connections_too() {
    let world = World::strict().await;
    let (good, dead) = (App::echo().await, App::echo().await);
    world.service("db", "tcp");
    world.yaml(
        "policy.yaml",
        "apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: db, namespace: default}
spec:
  targetRefs: [{group: \"\", kind: Service, name: db}]
  outlierDetection: {consecutiveConnectFailures: 1, ejectionTime: 1h, maximumEjectionTime: 1h}
",
    );
    let a = world.workload("a").serves("db", good.address()).start().await;
    let b = world.workload("b").serves("db", dead.address()).start().await;
    for proxy in [&a, &b] {
        proxy.counts("tulle_registered", &[], 1.0).await;
    }
    dead.stop().await;
    let web = world.workload("web").calls("db").start().await;
    eventually("it is ejected", async || {
        is_echoed(web.outbound("db")).await;
        let labels = [("service", "default/db:8080"), ("cause", "consecutive_connect_failures")];
        let ejected = web.metrics().await.sum("tulle_balancer_ejections_total", &labels);
        if ejected == 1.0 { Ok(()) } else { Err(format!("{ejected}")) }
    })
    .await;
    for number in 0..50 {
        assert!(is_echoed(web.outbound("db")).await, "connection {number}");
    }
}
