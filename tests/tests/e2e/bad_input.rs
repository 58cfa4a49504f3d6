//! Input that should not be: answered with a reason or refused and counted, never a crash, never smuggled.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tulle_certs::alpn::HTTP1;
use tulle_tests::app::App;
use tulle_tests::identity::{self, Identity};
use tulle_tests::{Wire, World, eventually, within};

use super::Pair;

/// Heads that RFC 9112 forbids or that can be read in two ways.
const MALFORMED: &[(&str, &[u8])] = &[
    (
        "length and chunked",
        b"POST / HTTP/1.1\r\nhost: o\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked and length",
        b"POST / HTTP/1.1\r\nhost: o\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    ),
    ("two lengths", b"POST / HTTP/1.1\r\nhost: o\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcde"),
    ("two lengths in a list", b"POST / HTTP/1.1\r\nhost: o\r\ncontent-length: 4, 5\r\n\r\nabcde"),
    ("a negative length", b"POST / HTTP/1.1\r\nhost: o\r\ncontent-length: -1\r\n\r\n"),
    ("a signed length", b"POST / HTTP/1.1\r\nhost: o\r\ncontent-length: +4\r\n\r\nabcd"),
    ("a hexadecimal length", b"POST / HTTP/1.1\r\nhost: o\r\ncontent-length: 0x4\r\n\r\nabcd"),
    (
        "a length beyond 64 bits",
        b"POST / HTTP/1.1\r\nhost: o\r\ncontent-length: 18446744073709551616\r\n\r\n",
    ),
    ("an unknown coding", b"POST / HTTP/1.1\r\nhost: o\r\ntransfer-encoding: banana\r\n\r\n"),
    (
        "chunked, but not last",
        b"POST / HTTP/1.1\r\nhost: o\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ),
    ("chunked twice", b"POST / HTTP/1.1\r\nhost: o\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    (
        "an obfuscated coding",
        b"POST / HTTP/1.1\r\nhost: o\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    ),
    ("obsolete folding", b"GET / HTTP/1.1\r\nhost: o\r\nx-a: 1\r\n folded\r\n\r\n"),
    ("a space before the colon", b"GET / HTTP/1.1\r\nhost: o\r\nx-a : 1\r\n\r\n"),
    ("a space before the length's colon", b"POST / HTTP/1.1\r\nhost: o\r\ncontent-length : 4\r\n\r\nabcd"),
    ("a bare CR in a value", b"GET / HTTP/1.1\r\nhost: o\r\nx-a: 1\rx-b: 2\r\n\r\n"),
    ("a NUL in a value", b"GET / HTTP/1.1\r\nhost: o\r\nx-a: 1\x002\r\n\r\n"),
    ("a NUL in a name", b"GET / HTTP/1.1\r\nhost: o\r\nx\0a: 1\r\n\r\n"),
    ("no name", b"GET / HTTP/1.1\r\nhost: o\r\n: 1\r\n\r\n"),
    ("no colon", b"GET / HTTP/1.1\r\nhost: o\r\nnonsense\r\n\r\n"),
    ("two hosts", b"GET / HTTP/1.1\r\nhost: o\r\nhost: p\r\n\r\n"),
    ("no host", b"GET / HTTP/1.1\r\nx-a: 1\r\n\r\n"),
];

/// An application that notes every request that reaches it.
async fn noting() -> (std::sync::Arc<std::sync::Mutex<Vec<String>>>, App) {
    let seen = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
    let log = std::sync::Arc::clone(&seen);
    let app = App::wire(move |mut wire| {
        let log = std::sync::Arc::clone(&log);
        async move {
            while let Some(head) = wire.try_head().await {
                wire.body(&head).await;
                log.lock().unwrap().push(head.line);
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    (seen, app)
}

async fn refused_as_malformed(wire: &mut Wire, what: &str, by: &str) {
    let (head, _) = wire.response().await;
    assert_eq!((head.status(), head.reason()), (400, Some("malformed_request")), "{what}: {head:?}");
    assert_eq!(head.get("x-tulle-error-by"), Some(by), "{what}");
    assert_eq!(wire.to_end_or_reset().await, b"", "{what}: the connection goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_ambiguous_heads_are_answered_with_400_and_reach_nobody() {
    let (seen, app) = noting().await;
    let pair = Pair::start(app, "http").await;
    for (what, bytes) in MALFORMED {
        // As the first request of a connection, …
        let mut wire = pair.web.connect("orders").await;
        wire.send(bytes).await;
        refused_as_malformed(&mut wire, what, "default/web/outbound").await;
        // … and after a good one, with another hidden behind it.
        let mut wire = pair.web.connect("orders").await;
        wire.send("GET /good HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        assert_eq!(wire.response().await.0.status(), 200, "{what}");
        wire.send(bytes).await;
        let _ = wire.try_send("GET /smuggled HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        refused_as_malformed(&mut wire, what, "default/web/outbound").await;
    }
    let reached = seen.lock().unwrap().clone();
    assert!(reached.iter().all(|line| line.contains("/good")), "{reached:?}");
    let reason = [("reason", "malformed_request")];
    pair.web.counts("tulle_requests_total", &reason, 2.0 * MALFORMED.len() as f64).await;
    pair.web.logs(&[("reason", json!("malformed_request")), ("status", json!(400))]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_the_mesh_may_not_smuggle_either() {
    let (seen, app) = noting().await;
    let pair = Pair::start(app, "http").await;
    let web = Identity::issue(&pair.world.authority(), "web");
    for (what, bytes) in MALFORMED {
        let mut wire = identity::connect(pair.orders.inbound(), Some(&web), &[HTTP1]).await.unwrap();
        wire.send(bytes).await;
        let (head, _) = wire.response().await;
        assert_eq!((head.status(), head.reason()), (400, Some("malformed_request")), "{what}: {head:?}");
        assert_eq!(head.get("x-tulle-error-by"), Some("default/orders/inbound"), "{what}");
    }
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_chunk_reaches_the_application_as_a_broken_body() {
    let (seen, app) = noting().await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send("POST / HTTP/1.1\r\nhost: orders\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nGET /smuggled HTTP/1.1\r\n\r\n")
        .await;
    let answer = wire.to_end_or_reset().await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_large_is_answered_with_431() {
    let (_, app) = noting().await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    let _ = wire
        .try_send(format!("GET / HTTP/1.1\r\nhost: orders\r\nx-big: {}\r\n\r\n", "v".repeat(200_000)))
        .await;
    let (head, _) = wire.response().await;
    assert_eq!((head.status(), head.reason()), (431, Some("head_too_large")));
    pair.web.counts("tulle_requests_total", &[("reason", "head_too_large")], 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_no_http_is_told_as_malformed() {
    let app = App::wire(async move |mut wire: Wire| {
        wire.head().await;
        wire.send("this is not HTTP\r\n\r\n").await;
    })
    .await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    let (head, _) = wire.response().await;
    assert_eq!((head.status(), head.reason()), (502, Some("upstream_malformed")));
    assert_eq!(head.get("x-tulle-error-by"), Some("default/orders/inbound"));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_place_of_tls_is_counted_and_closed() {
    let (_, app) = noting().await;
    let pair = Pair::start(app, "http").await;
    // The head of a TLS record, then nonsense: never a ClientHello of the mesh.
    let mut wire = Wire::connect(pair.orders.inbound()).await;
    wire.send([&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], &[0xff; 1000]].concat()).await;
    wire.finish().await;
    wire.to_end_or_reset().await;
    // A handshake of the mesh that breaks off.
    let web = Identity::issue(&pair.world.authority(), "web");
    let config = identity::client(Some(&web), &[HTTP1]);
    let mut session =
        rustls::ClientConnection::new(config, rustls::pki_types::ServerName::try_from("x.invalid").unwrap())
            .unwrap();
    let mut hello = Vec::new();
    session.write_tls(&mut hello).unwrap();
    let mut wire = Wire::connect(pair.orders.inbound()).await;
    wire.send(&hello).await;
    wire.send([0xff; 100]).await;
    wire.to_end_or_reset().await;
    pair.orders.counts("tulle_refused_total", &[("reason", "tls_malformed")], 1.0).await;
    works(&pair).await;
}

/// After all that: a request passes.
async fn works(pair: &Pair) {
    let mut wire = pair.web.connect("orders").await;
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    assert_eq!(wire.response().await.0.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_http2_ends_its_connection_and_nothing_else() {
    let (seen, app) = noting().await;
    let pair = Pair::start(app, "").await;
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let frames: &[(&str, &[u8])] = &[
        (
            "a frame larger than allowed",
            b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\xff\xff\xff\x00\x00\x00\x00\x00\x01",
        ),
        (
            "HEADERS on stream 0",
            b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x01\x05\x00\x00\x00\x00\x82",
        ),
        (
            "DATA on an idle stream",
            b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x07x",
        ),
        (
            "HPACK nonsense",
            b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x02\x01\x05\x00\x00\x00\x01\xff\xff",
        ),
        (
            "a PING of the wrong length",
            b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x03\x06\x00\x00\x00\x00\x00abc",
        ),
    ];
    for (what, bytes) in frames {
        let mut wire = Wire::connect(pair.web.outbound("orders")).await;
        wire.send([PREFACE, bytes].concat()).await;
        let answer = within(what, wire.to_end_or_reset()).await;
        // GOAWAY is frame type 7; a plain close is fine too.
        assert!(!answer.windows(3).any(|window| window == b"200"), "{what}");
    }
    assert!(seen.lock().unwrap().is_empty());
    works(&pair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_and_silent_connections_do_not_stand_in_anybodys_way() {
    let (_, app) = noting().await;
    let pair = Pair::start(app, "http").await;
    let mut silent = Vec::new();
    for target in [pair.web.outbound("orders"), pair.orders.inbound()] {
        for bytes in [&b""[..], b"G", b"GET / HTTP/1.1\r\nhost:", b"\x16\x03"] {
            for _ in 0..25 {
                let mut wire = Wire::connect(target).await;
                wire.send(bytes).await;
                silent.push(wire);
            }
        }
    }
    works(&pair).await;
    drop(silent);
    eventually("they are forgotten", async || {
        let open = pair.web.metrics().await.sum("tulle_connections_active", &[]);
        if open <= 1.0 { Ok(()) } else { Err(open.to_string()) }
    })
    .await;
    works(&pair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_takes_too_long_ends_its_connection_on_both_sides() {
    let (seen, app) = noting().await;
    let world = World::strict().await;
    world.service("orders", "http");
    let limit = Duration::from_secs(1);
    let flag = "--header-read-timeout";
    let orders = world.workload("orders").serves("orders", app.address()).setting(flag, "1s");
    let orders = orders.start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = world.workload("web").calls("orders").setting(flag, "1s").start().await;
    let id = Identity::issue(&world.authority(), "web");
    let outbound = async || Wire::connect(web.outbound("orders")).await;
    let inbound = async || identity::connect(orders.inbound(), Some(&id), &[HTTP1]).await.unwrap();
    tokio::join!(
        late(outbound().await, false, limit),
        late(outbound().await, true, limit),
        late(inbound().await, false, limit),
        late(inbound().await, true, limit),
    );
    let reached = seen.lock().unwrap().clone();
    assert!(reached.iter().all(|line| line.contains("/good")), "{reached:?}");
}

/// A whole request, perhaps, and the beginning of another, of which a byte comes now and then, or no more.
async fn late<S>(mut wire: Wire<S>, drips: bool, limit: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    wire.send("GET /good HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    assert_eq!(wire.response().await.0.status(), 200);
    let begun = Instant::now();
    wire.send("GET /late HTTP/1.1\r\nhost: orders\r\nx-a: ").await;
    while drips && begun.elapsed() < 20 * limit && wire.try_send("a").await.is_ok() {
        tokio::time::sleep(limit / 10).await;
    }
    assert_eq!(wire.to_end_or_reset().await, b"", "it is nobody's answer");
    let lasted = begun.elapsed();
    assert!(lasted >= limit && lasted < 20 * limit, "{lasted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_arrives_byte_by_byte_is_a_head() {
    let (_, app) = noting().await;
    let pair = Pair::start(app, "").await;
    let mut stream = tokio::net::TcpStream::connect(pair.web.outbound("orders")).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in b"GET /slowly HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n" {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = Vec::new();
    within("the answer", stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}
