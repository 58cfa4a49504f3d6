//! Servers that break the rules, or die at the worst moment: the client is told exactly that, never of a success that was
//! none; nobody else notices; nothing is done twice; and afterwards nothing is left of it.
//!
//! Each table is gone through on both legs: with the hostile application behind a proxy of its own, and with an endpoint in
//! plain text that has none. Meanwhile [`Neighbours`] use another service of the same proxies.

mod halves;
mod http1;
mod http2;
mod stalls;
mod storm;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tulle_tests::app::App;
use tulle_tests::{Wire, Workload, World, eventually, usage, within};

use super::mtls::endpoint_slice;

/// The same hostile application, behind its proxy and as a plain endpoint; beside it one that behaves.
struct Stage {
    _world: World,
    web: Workload,
    orders: Workload,
    _apps: [App; 2],
}

/// The service whose endpoint is behind its proxy, and the one whose endpoint has none; with who tells of a fault there.
const LEGS: [(&str, &str); 2] = [("meshed", "default/orders/inbound"), ("plain", "default/web/outbound")];

// === impl Stage ===

impl Stage {
    async fn new(hostile: App, protocol: &str) -> Self {
        Self::with(hostile, protocol, "").await
    }

    /// With more YAML.
    async fn with(hostile: App, protocol: &str, yaml: &str) -> Self {
        let world = World::strict().await;
        let good = App::saying("good").await;
        world.service("good", "http");
        for (service, _) in LEGS {
            world.service(service, protocol);
        }
        world.yaml("plain-slice.yaml", &endpoint_slice("plain", hostile.address(), None));
        if !yaml.is_empty() {
            world.yaml("more.yaml", yaml);
        }
        let orders = world.workload("orders");
        let orders = orders.serves("meshed", hostile.address()).serves("good", good.address());
        let orders = orders.start().await;
        let web = world.workload("web").calls("meshed").calls("plain").calls("good").start().await;
        orders.counts("tulle_registered", &[], 1.0).await;
        Self { _world: world, web, orders, _apps: [hostile, good] }
    }

    /// Nothing is under way any more, on neither proxy, nobody holds on to what was, and nobody turns in circles.
    async fn is_at_rest(&mut self) {
        for proxy in [&mut self.web, &mut self.orders] {
            let name = proxy.name().to_owned();
            eventually(&format!("{name} has nothing under way"), async || {
                let metrics = proxy.metrics().await;
                let requests = metrics.sum("tulle_requests_active", &[]);
                // Of the other proxy's pool some may stay for a while; the applications' connections are all gone.
                let connections = metrics.sum("tulle_connections_active", &[("direction", "outbound")]);
                if requests + connections < 0.5 {
                    Ok(())
                } else {
                    Err(format!("{requests} requests, {connections} connections"))
                }
            })
            .await;
            let pid = proxy.process().pid();
            eventually(&format!("{name} rests"), async || {
                let before = usage::cpu(pid);
                tokio::time::sleep(Duration::from_millis(250)).await;
                let used = (usage::cpu(pid) - before).total;
                if used < 50_000.0 { Ok(()) } else { Err(format!("{used} µs of CPU time in 250 ms")) }
            })
            .await;
        }
    }
}

/// Requests of others, to another service by way of the same proxies, one after the other.
struct Neighbours {
    enough: Arc<AtomicBool>,
    tasks: JoinSet<usize>,
}

// === impl Neighbours ===

impl Neighbours {
    fn of(stage: &Stage) -> Self {
        let (enough, mut tasks) = (Arc::<AtomicBool>::default(), JoinSet::new());
        for method in ["GET", "POST"] {
            let (to, enough) = (stage.web.outbound("good"), Arc::clone(&enough));
            tasks.spawn(async move {
                let (mut wire, mut count) = (Wire::connect(to).await, 0);
                while !enough.load(Ordering::Relaxed) || count == 0 {
                    wire.send(format!(
                        "{method} /{count} HTTP/1.1\r\nhost: good\r\ncontent-length: 0\r\n\r\n"
                    ))
                    .await;
                    let (head, body) = wire.response().await;
                    assert_eq!((head.status(), body.as_slice()), (200, b"good".as_slice()), "{head:?}");
                    count += 1;
                    // Not as many as can be: the machine has other things to do.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                count
            });
        }
        Self { enough, tasks }
    }

    /// Panics if one of their requests failed.
    async fn are_well(self) {
        self.enough.store(true, Ordering::Relaxed);
        assert!(self.tasks.join_all().await.iter().all(|count| *count > 0));
    }
}

/// What a client of HTTP/1 is told, after all interim responses: `<status> <reason> by <whom>` by a proxy; of the application
/// `<status> whole <body>`, or `<status> cut` if the connection ended before the body did, or broke; else `nothing`.
fn told(bytes: &[u8], broken: bool) -> String {
    let mut rest = bytes;
    loop {
        let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") else {
            return "nothing".into();
        };
        let (head, body) = rest.split_at(end + 4);
        let head = tulle_tests::Head::parse(head);
        if head.status() < 200 {
            rest = body;
            continue;
        }
        let status = head.status();
        if let Some(reason) = head.reason() {
            return format!("{status} {reason} by {}", head.get("x-tulle-error-by").unwrap_or_default());
        }
        let whole = match (head.get("content-length"), head.has("transfer-encoding", "chunked")) {
            (Some(length), false) => body.get(..length.parse().unwrap()).map(<[u8]>::to_vec),
            (None, true) => unchunked(body),
            (None, false) => (!broken).then(|| body.to_vec()),
            (Some(_), true) => panic!("two lengths: {head:?}"),
        };
        return match whole {
            Some(body) => format!("{status} whole {}", String::from_utf8_lossy(&body)),
            None => format!("{status} cut"),
        };
    }
}

/// A chunked body, if it is whole.
fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            let end = if rest.starts_with(b"\r\n") { Some(0) } else { None };
            return end.or_else(|| rest.windows(4).position(|window| window == b"\r\n\r\n")).map(|_| body);
        }
        body.extend(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}

/// One request of HTTP/1 with these fields on a connection of its own, and what its client is [`told`].
async fn ask1(to: SocketAddr, method: &str, path: &str, body: &str, fields: &str) -> String {
    let length = body.len();
    let mut wire = Wire::connect(to).await;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: orders\r\n{fields}connection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    // Who answers early may not take it all.
    let _ = wire.try_send([head.as_bytes(), body.as_bytes()].concat()).await;
    let (bytes, broken) = wire.to_end_and_how().await;
    told(&bytes, broken)
}

/// A client's connection of HTTP/2.
pub(super) async fn connect2(to: SocketAddr) -> SendRequest<Bytes> {
    let stream = within("a connection", TcpStream::connect(to)).await.unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    requests
}

/// What is asked over HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Get,
    Post,
    Grpc,
}

/// One request of HTTP/2, perhaps with a time set (as in [`stalls`]), and what its client is told, as of [`told`]; a proxy's answer to gRPC is
/// `grpc <status> <reason> by <whom>`, a stream that was reset is `<status> cut <code>` or `nothing <code>`.
async fn ask2(requests: &mut SendRequest<Bytes>, kind: Kind, body: &str, limited: Option<&str>) -> String {
    let builder = match kind {
        Kind::Get => Request::get("http://orders/"),
        Kind::Post => Request::post("http://orders/"),
        Kind::Grpc => {
            let call = Request::post("http://orders/shop.Orders/Place");
            call.header("content-type", "application/grpc").header("te", "trailers")
        }
    };
    let builder = limited.into_iter().fold(builder, |builder, time| builder.header("x-limited", time));
    let cause = |error: h2::Error| match error.reason() {
        Some(reason) if error.is_reset() => format!("{reason:?}"),
        _ => format!("{error}"),
    };
    let mut ready = within("room for a request", requests.clone().ready()).await.unwrap();
    let sent = ready.send_request(builder.body(()).unwrap(), kind == Kind::Get);
    let (response, mut upload) = sent.unwrap();
    if kind != Kind::Get {
        // Who answers early may not take it all.
        let _ = upload.send_data(Bytes::from(body.to_owned()), true);
    }
    let response = match within("an answer", response).await {
        Ok(response) => response,
        Err(error) => return format!("nothing {}", cause(error)),
    };
    let (head, mut stream) = response.into_parts();
    let status = head.status.as_u16();
    let text = |name: &str| head.headers.get(name).map_or("", |value| value.to_str().unwrap());
    let reason = text("x-tulle-error");
    if !reason.is_empty() {
        let by = text("x-tulle-error-by");
        return match kind {
            Kind::Grpc => format!("grpc {} {reason} by {by}", text("grpc-status")),
            Kind::Get | Kind::Post => format!("{status} {reason} by {by}"),
        };
    }
    let mut had = Vec::new();
    while let Some(data) = within("data", stream.data()).await {
        match data {
            Ok(data) => {
                let _ = stream.flow_control().release_capacity(data.len());
                had.extend(data);
            }
            Err(error) => return format!("{status} cut {}", cause(error)),
        }
    }
    let trailers = match within("the end", stream.trailers()).await {
        Ok(trailers) => trailers.unwrap_or_default(),
        Err(error) => return format!("{status} cut {}", cause(error)),
    };
    let grpc = trailers.get("grpc-status").map(|status| format!(" grpc {}", status.to_str().unwrap()));
    format!("{status} whole {}{}", String::from_utf8_lossy(&had), grpc.unwrap_or_default())
}
