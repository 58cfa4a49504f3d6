//! What clients say of themselves is not believed, and what is secret is shown to nobody.

use std::convert::Infallible;
use std::fs;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpStream;
use tulle_certs::alpn::HTTP1;
use tulle_tests::app::{App, full};
use tulle_tests::identity::{self, Identity};
use tulle_tests::{Head, Mode, Wire, World, eventually, within};

use super::Pair;

/// Each in a spelling that some server takes for the name of one.
const CLAIMS: &str = "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/default/sa/admin\r\nX-Forwarded-Client-Cert: \
                      Hash=00;URI=spiffe://cluster.local/ns/default/sa/root\r\nx_forwarded_client_cert: admin\r\nX-Forwarded_Client-Cert: \
                      admin\r\nx-tulle-peer: admin\r\nX_Tulle_Peer: admin\r\n";

/// An application that answers with the fields and trailers that it saw, one on a line, names in lower case and `_` as `-`.
async fn application() -> App {
    App::wire(async move |mut wire: Wire| {
        while let Some(head) = wire.try_head().await {
            let mut fields = head.fields.clone();
            if head.has("transfer-encoding", "chunked") {
                fields.extend(wire.chunks().await.1);
            } else {
                wire.body(&head).await;
            }
            let line = |(name, value): &(String, String)| {
                format!("{}: {value}\n", name.to_lowercase().replace('_', "-"))
            };
            let seen: String = fields.iter().map(line).collect();
            wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{seen}", seen.len())).await;
        }
    })
    .await
}

/// What the application saw of who the client is.
async fn told<S>(wire: &mut Wire<S>, fields: &str) -> Vec<String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    wire.send(format!("GET / HTTP/1.1\r\nhost: orders\r\nx-kept: 1\r\n{fields}\r\n")).await;
    let (head, body) = wire.response().await;
    saw(&head, &body)
}

fn saw(head: &Head, body: &[u8]) -> Vec<String> {
    let seen = String::from_utf8_lossy(body);
    assert_eq!(head.status(), 200, "{head:?}: {seen}");
    assert!(seen.contains("x-kept: 1"), "{seen}");
    let is_claim = |line: &&str| line.starts_with("x-forwarded-client-cert") || line.starts_with("x-tulle");
    seen.lines().filter(is_claim).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_a_client_says_it_is_never_reaches_an_application() {
    let pair = Pair::start(application().await, "http").await;
    pair.web.reaches("orders").await;
    assert_eq!(told(&mut pair.web.connect("orders").await, CLAIMS).await, [""; 0], "through both proxies");
    let web = Identity::issue(&pair.world.authority(), "web");
    let mut direct = identity::connect(pair.orders.inbound(), Some(&web), &[HTTP1]).await.unwrap();
    assert_eq!(told(&mut direct, CLAIMS).await, [""; 0], "to the server's proxy alone");
    direct
        .send(format!("POST / HTTP/1.1\r\nhost: orders\r\nx-kept: 1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n{CLAIMS}\r\n"))
        .await;
    let (head, body) = direct.response().await;
    assert_eq!(saw(&head, &body), [""; 0], "in trailers");
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_does_it_over_http_2() {
    let app = App::http2(async move |request: Request<Incoming>| {
        let (head, body) = request.into_parts();
        let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
        let names = head.headers.keys().chain(trailers.keys()).map(HeaderName::as_str);
        let told: Vec<&str> = names.filter(|name| name.starts_with('x')).collect();
        Response::new(full(told.join(",")))
    })
    .await;
    let pair = Pair::start(app, "kubernetes.io/h2c").await;
    let stream = TcpStream::connect(pair.web.outbound("orders")).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = within("an HTTP/2 handshake", handshake).await.unwrap();
    tokio::spawn(connection);
    let mut claims = HeaderMap::new();
    for name in
        ["x-forwarded-client-cert", "x_forwarded_client_cert", "x-tulle-peer", "x_tulle_peer", "x-kept"]
    {
        claims.insert(HeaderName::from_static(name), HeaderValue::from_static("admin"));
    }
    let body = [Frame::data(Bytes::from_static(b"a")), Frame::trailers(claims.clone())];
    let body = StreamBody::new(tokio_stream::iter(body.map(Ok::<_, Infallible>)));
    let mut request = Request::post("http://orders/").body(body).unwrap();
    request.headers_mut().extend(claims);
    let answer = within("an answer", sender.send_request(request)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let told = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(told, "x-kept,x-kept", "once in its fields, once in its trailers");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_identity_nobody_is_told_to_be_somebody() {
    for header in ["remove", "set"] {
        let world = World::start(Mode::Permissive).await;
        world.service("orders", "http");
        let app = application().await;
        let orders = world.workload("orders").serves("orders", app.address());
        let orders = orders.setting("--inbound-client-cert-header", header).start().await;
        let mut plain = Wire::connect(orders.inbound()).await;
        assert_eq!(told(&mut plain, CLAIMS).await, [""; 0], "{header}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_told_who_its_client_has_proven_to_be_and_nothing_else() {
    let world = World::strict().await;
    world.service("orders", "http");
    let app = application().await;
    let orders = world.workload("orders").serves("orders", app.address()).calls("orders");
    let orders = orders.setting("--inbound-client-cert-header", "set").start().await;
    let web = world.workload("web").calls("orders").start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    web.reaches("orders").await;

    // Also on connections that many requests share: none is answered before all have been sent.
    let begins = format!("x-forwarded-client-cert: By={};Hash=", orders.identity());
    let ends = format!(";URI={}", web.identity());
    let mut wires = Vec::new();
    for _ in 0..8 {
        let mut wire = web.connect("orders").await;
        let fields = format!("host: orders\r\nx-kept: 1\r\ncontent-length: 1\r\n{CLAIMS}");
        wire.send(format!("POST / HTTP/1.1\r\n{fields}\r\n")).await;
        wires.push(wire);
    }
    for mut wire in wires {
        wire.send("a").await;
        let (head, body) = wire.response().await;
        let told = saw(&head, &body);
        assert_eq!(told.len(), 1, "{told:?}");
        let hash = told[0].strip_prefix(&begins).and_then(|rest| rest.strip_suffix(&ends));
        let is_hash =
            hash.is_some_and(|hash| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()));
        assert!(is_hash, "{told:?}");
    }

    // Another certificate is another hash, and the same one the same.
    let billing = Identity::issue(&world.authority(), "billing");
    let mut hashes = Vec::new();
    for identity in [&billing, &billing, &Identity::issue(&world.authority(), "billing")] {
        let mut direct = identity::connect(orders.inbound(), Some(identity), &[HTTP1]).await.unwrap();
        let told = told(&mut direct, CLAIMS).await;
        let [told] = &told[..] else { panic!("{told:?}") };
        assert!(told.ends_with(";URI=spiffe://cluster.local/ns/default/sa/billing"), "{told}");
        hashes.push(told.clone());
    }
    assert_eq!(hashes[0], hashes[1]);
    assert_ne!(hashes[0], hashes[2]);
    let mut direct = identity::connect(orders.inbound(), Some(&billing), &[HTTP1]).await.unwrap();
    let told_off = told(&mut direct, "connection: x-forwarded-client-cert\r\n").await;
    assert_eq!(told_off, hashes[..1], "no client takes away what is said of it");

    // What a workload asks of itself comes from nobody else.
    orders.reaches("orders").await;
    assert_eq!(told(&mut orders.connect("orders").await, CLAIMS).await, [""; 0]);
}

/// A key's lines and a token's parts, each long enough to be nothing else.
fn parts(text: &str) -> impl Iterator<Item = String> + '_ {
    let lines = text.lines().filter(|line| !line.starts_with('-') && !line.starts_with("sha256:"));
    // A token's first part says how it is signed, and is the same of all.
    lines.flat_map(|line| line.split('.').filter(|part| part.len() > 40)).map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_secret_stands_in_no_log_and_on_no_page() {
    let mut world = World::start_with(Mode::Strict, |program| program.flag("--log-level", "debug")).await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let orders = world.workload("orders").serves("orders", app.address());
    let orders = orders.setting("--log-level", "debug").start().await;
    let web = world.workload("web").calls("orders").setting("--log-level", "debug").start().await;
    web.reaches("orders").await;
    let mut wire = web.connect("orders").await;
    let secret = "s3cr3t-of-the-client-that-nobody-may-see-0123456789";
    wire.send(format!(
        "GET /cart HTTP/1.1\r\nhost: orders\r\nauthorization: Bearer {secret}\r\ncookie: {secret}\r\n\r\n"
    ))
    .await;
    assert_eq!(wire.response().await.0.status(), 200);
    for workload in [&web, &orders] {
        workload.logs(&[("path", json!("/cart"))]).await;
    }

    let mut secrets = vec![secret.to_owned()];
    for file in ["ca-key.pem", "token-key.pem"] {
        // What comes after is the public half.
        secrets.extend(parts(&fs::read_to_string(world.state_folder().join(file)).unwrap()).take(2));
    }
    for workload in ["orders", "web"] {
        let token = world.folder().run().join(format!("default-{workload}.token"));
        secrets.extend(parts(&fs::read_to_string(token).unwrap()));
    }
    assert_eq!(secrets.len(), 1 + 2 * 2 + 2 * 2);

    let mut shown = vec![("the control plane's log", {
        let control_plane = world.control_plane();
        control_plane.stdout() + &control_plane.stderr()
    })];
    for path in ["/metrics", "/resources/Mesh/mesh", "/endpoints", "/load"] {
        shown.push((path, page(world.metrics_address(), path).await));
    }
    for workload in [&web, &orders] {
        shown.push(("a proxy's log", workload.diagnostics() + &workload.access_lines().join("\n")));
        for path in ["/config_dump", "/connections", "/certs", "/log-level"] {
            shown.push((path, page(workload.admin(), path).await));
        }
        shown.push(("a proxy's metrics", page(workload.public(), "/metrics").await));
    }
    for (place, text) in shown {
        assert!(!text.is_empty(), "{place}");
        let found = secrets.iter().find(|secret| text.contains(secret.as_str()));
        assert_eq!(found, None, "{place}");
    }
}

/// Everything that is answered, until the server closes.
async fn page(address: std::net::SocketAddr, path: &str) -> String {
    eventually(&format!("{path} is answered"), async || {
        let mut wire = Wire::connect(address).await;
        wire.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")).await;
        let answer = wire.to_end().await;
        if answer.is_empty() {
            Err("nothing".to_owned())
        } else {
            Ok(String::from_utf8_lossy(&answer).into_owned())
        }
    })
    .await
}
