//! Servers that take their time, or all of it: silence, dribble, closed windows, floods without end. Whoever has set a time
//! is told when it has passed; whoever has not may leave; neither leaves anything behind, nor costs memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tulle_tests::app::App;
use tulle_tests::frames::{
    self, CONTINUATION, END_STREAM, Frames, HEADERS, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, PING,
    SETTINGS, WINDOW_UPDATE, data, frame, headers,
};
use tulle_tests::{Wire, eventually, usage};

use super::{Kind, LEGS, Neighbours, Stage, ask1, ask2, connect2};

/// What a server does with a connection.
type Does = fn(Wire) -> BoxFuture<'static, ()>;

/// A name, what is done, and what a client is told that has set a time by a rule.
type Case = (&'static str, Does, &'static str);

const LATE: &str = "504 backend_timeout by default/web/outbound";
const NONSENSE: &str = "502 upstream_malformed by {by}";
const MIB: u64 = 1 << 20;

/// Values of `x-limited`.
const SOON: &str = "soon";
const AT_LAST: &str = "at-last";

/// By a field, a request is to be answered soon, or at last, on either leg.
fn limited() -> String {
    let rule = |service: &str, value: &str, time: &str| {
        format!(
            "    - matches:\n        - headers: [{{name: x-limited, value: {value}}}]\n      timeouts: {{backendRequest: {time}}}\n      \
             backendRefs: [{{name: {service}, port: 8080}}]\n"
        )
    };
    LEGS.map(|(service, _)| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: {service}\n  namespace: default\n\
             spec:\n  parentRefs:\n    - {{group: \"\", kind: Service, name: {service}, port: 8080}}\n  rules:\n{}{}    \
             - backendRefs: [{{name: {service}, port: 8080}}]\n",
            rule(service, SOON, "300ms"),
            rule(service, AT_LAST, "60s"),
        )
    })
    .join("---\n")
}

/// A server that does on every connection what `now` says, until that changes.
struct Server {
    now: watch::Sender<usize>,
    begun: AtomicUsize,
    ended: AtomicUsize,
}

// === impl Server ===

impl Server {
    async fn start(cases: &'static [Case]) -> (Arc<Self>, App) {
        let (begun, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let server = Arc::new(Self { now: watch::Sender::new(0), begun, ended });
        let shared = Arc::clone(&server);
        let app = App::tcp(move |stream| {
            let server = Arc::clone(&shared);
            async move { server.serve(cases, stream).await }
        });
        (server, app.await)
    }

    async fn serve(&self, cases: &'static [Case], stream: TcpStream) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let twin = SockRef::from(&stream).try_clone().unwrap();
        let mut twin = TcpStream::from_std(twin.into()).unwrap();
        let mut now = self.now.subscribe();
        let (_, does, _) = cases[*now.borrow_and_update()];
        tokio::select! {
            () = does(Wire::new(stream)) => {}
            _ = now.changed() => {}
        }
        // Over only when the proxy knows.
        let _ = twin.shutdown().await;
        let mut scratch = vec![0; 64 * 1024];
        while twin.read(&mut scratch).await.is_ok_and(|count| count > 0) {}
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    /// From now on this, on connections that are new.
    async fn turn_to(&self, number: usize) {
        self.now.send_replace(number);
        eventually("the connections of before are over", async || {
            let [begun, ended] = [&self.begun, &self.ended].map(|count| count.load(Ordering::SeqCst));
            if begun == ended { Ok(()) } else { Err(format!("{begun} have begun, {ended} have ended")) }
        })
        .await;
    }
}

/// Says the same again and again, and reads whatever comes, until nobody takes it.
async fn endlessly(wire: &mut Wire, says: &[u8]) {
    let mut scratch = vec![0; 64 * 1024];
    while wire.try_send(says).await.is_ok() {
        while wire.stream().try_read(&mut scratch).is_ok_and(|count| count > 0) {}
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Reads whatever comes, and says nothing.
async fn silent(wire: &mut Wire) {
    while wire.try_exactly(1).await.is_some() {}
}

/// Says this to the first request of HTTP/1, and then the rest without end.
async fn http1(wire: &mut Wire, says: &str, without_end: &str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Some(byte) = wire.try_exactly(1).await else { return };
        head.extend(byte);
    }
    if wire.try_send(says).await.is_err() {
        return;
    }
    match without_end {
        "" => silent(wire).await,
        _ => endlessly(wire, without_end.repeat(4000 / without_end.len()).as_bytes()).await,
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\n";

const HTTP1: &[Case] = &[
    ("it says nothing", |mut wire| Box::pin(async move { silent(&mut wire).await }), LATE),
    (
        "it reads nothing",
        |wire| {
            Box::pin(async move {
                std::future::pending::<()>().await;
                drop(wire)
            })
        },
        LATE,
    ),
    ("half a head", |mut wire| Box::pin(async move { http1(&mut wire, "HTTP/1.1 20", "").await }), LATE),
    (
        "only that it goes on",
        |mut wire| Box::pin(async move { http1(&mut wire, "HTTP/1.1 100 Continue\r\n\r\n", "").await }),
        LATE,
    ),
    (
        "interim answers",
        |mut wire| {
            Box::pin(async move { http1(&mut wire, "", "HTTP/1.1 103 Early\r\nlink: a\r\n\r\n").await })
        },
        NONSENSE,
    ),
    (
        "a status line",
        |mut wire| Box::pin(async move { http1(&mut wire, "HTTP/1.1 200 ", "O").await }),
        NONSENSE,
    ),
    (
        "fields",
        |mut wire| Box::pin(async move { http1(&mut wire, OK, "x-field: value\r\n").await }),
        NONSENSE,
    ),
    (
        "one field",
        |mut wire| Box::pin(async move { http1(&mut wire, "HTTP/1.1 200 OK\r\nx-field: ", "v").await }),
        NONSENSE,
    ),
    (
        "a chunk's extensions",
        |mut wire| {
            Box::pin(async move {
                http1(&mut wire, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;", "x=y;").await
            })
        },
        "200 cut",
    ),
    (
        "trailers",
        |mut wire| {
            Box::pin(async move {
                http1(
                    &mut wire,
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
                    "x-field: value\r\n",
                )
                .await
            })
        },
        "200 cut",
    ),
];

/// Says this to the first request of HTTP/2, and then the rest without end.
async fn http2(wire: Wire, says: fn(u32) -> Vec<u8>, without_end: fn(u32) -> Vec<u8>) {
    let Some(mut frames) = Frames::accept(wire, &[]).await else { return };
    let Some((stream, _)) = frames.request().await else { return };
    let mut wire = frames.into_wire();
    if wire.try_send(says(stream)).await.is_ok() {
        endlessly(&mut wire, &without_end(stream)).await;
    }
}

/// Serves nothing, with these settings.
async fn with_settings(wire: Wire, settings: &[(u16, u32)]) {
    let Some(mut frames) = Frames::accept(wire, settings).await else { return };
    while frames.request().await.is_some() {}
}

fn nothing(_: u32) -> Vec<u8> {
    Vec::new()
}

/// A block that is small, and large once it is read (CVE-2016-6581): an entry of the table, and then its index.
fn bomb(stream: u32) -> Vec<u8> {
    let entry = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'v'; 4000]].concat();
    let status = frames::block(&[(":status", "200")]);
    frame(HEADERS, 0x5, stream, [status, entry, vec![0xbe; 10_000]].concat())
}

const HTTP2: &[Case] = &[
    ("it says nothing", |mut wire| Box::pin(async move { silent(&mut wire).await }), LATE),
    (
        "it reads nothing",
        |wire| {
            Box::pin(async move {
                std::future::pending::<()>().await;
                drop(wire)
            })
        },
        LATE,
    ),
    ("no answer", |wire| Box::pin(async move { with_settings(wire, &[]).await }), LATE),
    (
        "no window",
        |wire| Box::pin(async move { with_settings(wire, &[(INITIAL_WINDOW_SIZE, 0)]).await }),
        LATE,
    ),
    (
        "no stream",
        |wire| Box::pin(async move { with_settings(wire, &[(MAX_CONCURRENT_STREAMS, 0)]).await }),
        LATE,
    ),
    (
        "interim answers",
        |wire| Box::pin(http2(wire, nothing, |s| headers(0, s, &[(":status", "103")]).repeat(50))),
        LATE,
    ),
    ("SETTINGS", |wire| Box::pin(http2(wire, nothing, |_| frame(SETTINGS, 0, 0, []).repeat(50))), LATE),
    ("PING", |wire| Box::pin(http2(wire, nothing, |_| frame(PING, 0, 0, [7; 8]).repeat(50))), LATE),
    ("PRIORITY", |wire| Box::pin(http2(wire, nothing, |s| frame(2, 0, s, [0; 5]).repeat(50))), LATE),
    (
        "unknown frames",
        |wire| Box::pin(http2(wire, nothing, |s| frame(0xfa, 0, s, [0; 50]).repeat(50))),
        LATE,
    ),
    (
        "answers to settings",
        |wire| Box::pin(http2(wire, nothing, |_| frame(SETTINGS, 1, 0, []).repeat(50))),
        NONSENSE,
    ),
    (
        "windows",
        |wire| Box::pin(http2(wire, nothing, |s| frame(WINDOW_UPDATE, 0, s, [0, 0, 0, 1]).repeat(50))),
        LATE,
    ),
    (
        "fields",
        |wire| {
            Box::pin(http2(
                wire,
                |s| frame(HEADERS, 0, s, []),
                |s| frame(CONTINUATION, 0, s, frames::block(&[("x-a", "1")])).repeat(50),
            ))
        },
        NONSENSE,
    ),
    (
        "empty fields",
        |wire| {
            Box::pin(http2(wire, |s| frame(HEADERS, 0, s, []), |s| frame(CONTINUATION, 0, s, []).repeat(50)))
        },
        NONSENSE,
    ),
    ("a bomb", |wire| Box::pin(http2(wire, bomb, nothing)), NONSENSE),
];

/// Goes through the table: with a time set; then without one, the client leaving once the server has it.
async fn all<A, L>(cases: &'static [Case], protocol: &str, ask: A, leave: L)
where
    A: AsyncFn(&Stage, &str, &'static str) -> String,
    L: AsyncFn(&Stage, &str, &Server),
{
    let (server, app) = Server::start(cases).await;
    let mut stage = Stage::with(app, protocol, &limited()).await;
    stage.web.reaches("good").await;
    let before = [&mut stage.web, &mut stage.orders].map(|proxy| usage::resident(proxy.process().pid()));
    let neighbours = Neighbours::of(&stage);
    let mut wrong = Vec::new();
    for (number, (what, _, expected)) in cases.iter().enumerate() {
        server.turn_to(number).await;
        let time = if *expected == LATE { SOON } else { AT_LAST };
        let [(meshed, _), (plain, _)] = LEGS;
        let told = tokio::join!(ask(&stage, meshed, time), ask(&stage, plain, time));
        for ((service, by), told) in LEGS.into_iter().zip([told.0, told.1]) {
            if told != expected.replace("{by}", by) {
                wrong.push(format!("{service}, {what}: {told}; {expected}"));
            }
            leave(&stage, service, &server).await;
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    server.turn_to(0).await;
    neighbours.are_well().await;
    stage.is_at_rest().await;
    for (proxy, before) in [&mut stage.web, &mut stage.orders].into_iter().zip(before) {
        let after = usage::resident(proxy.process().pid());
        assert!(after < before + 32 * MIB, "{}: {} → {} KiB", proxy.name(), before >> 10, after >> 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_server_of_http1_without_end_is_told_in_time_or_leaves_nothing_behind() {
    let ask = async |stage: &Stage, service: &str, time: &'static str| {
        let fields = format!("x-limited: {time}\r\n");
        ask1(stage.web.outbound(service), "POST", "/", "hello", &fields).await
    };
    let leave = async |stage: &Stage, service: &str, server: &Server| {
        let before = server.begun.load(Ordering::SeqCst);
        let mut wire = stage.web.connect(service).await;
        wire.send("POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 5\r\n\r\nhello").await;
        eventually("the server has the connection", async || {
            let begun = server.begun.load(Ordering::SeqCst);
            if begun > before { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    };
    all(HTTP1, "http", ask, leave).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_server_of_http2_without_end_is_told_in_time_or_leaves_nothing_behind() {
    let ask = async |stage: &Stage, service: &str, time: &'static str| {
        let mut requests = connect2(stage.web.outbound(service)).await;
        let mut others = requests.clone();
        let told = ask2(&mut requests, Kind::Post, "hello", Some(time));
        if time == AT_LAST {
            return told.await;
        }
        let (told, called) = tokio::join!(told, ask2(&mut others, Kind::Grpc, "hello", Some(time)));
        if called == told.replace("504 ", "grpc 4 ") { told } else { format!("{told}, a call: {called}") }
    };
    let leave = async |stage: &Stage, service: &str, _: &Server| {
        let mut requests = connect2(stage.web.outbound(service)).await;
        let asked = tokio::spawn(async move { ask2(&mut requests, Kind::Post, "hello", None).await });
        // What tells is that the proxy has it: the connection to the server may have been there before.
        eventually("the request is under way", async || {
            let active = stage.web.metrics().await.sum("tulle_requests_active", &[]);
            if active > 0.5 || asked.is_finished() { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        asked.abort();
    };
    all(HTTP2, "kubernetes.io/h2c", ask, leave).await;
}

/// A body that comes byte by byte; the path says how it is framed.
async fn dribbling(mut wire: Wire) {
    let head = wire.head().await;
    let text = "slow but sure";
    let (head, framed): (_, fn(char) -> String) = match head.line.split(' ').nth(1).unwrap() {
        "/length" => (format!("{OK}content-length: {}\r\n\r\n", text.len()), |byte| byte.to_string()),
        "/chunks" => (format!("{OK}transfer-encoding: chunked\r\n\r\n"), |byte| format!("1\r\n{byte}\r\n")),
        _ => (format!("{OK}connection: close\r\n\r\n"), |byte| byte.to_string()),
    };
    let end = if head.contains("chunked") { "0\r\n\r\n" } else { "" };
    for part in std::iter::once(head.clone()).chain(text.chars().map(framed)).chain([end.to_owned()]) {
        for byte in part.into_bytes() {
            wire.send([byte]).await;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_on_reading_gets_all_of_what_comes_byte_by_byte() {
    let mut stage = Stage::with(App::wire(dribbling).await, "http", &limited()).await;
    stage.web.reaches("good").await;
    let mut asked = JoinSet::new();
    for (service, _) in LEGS {
        for path in ["/length", "/chunks", "/end"] {
            let to = stage.web.outbound(service);
            // The time that the rule allows is for the head.
            asked.spawn(async move { ask1(to, "GET", path, "", "x-limited: soon\r\n").await });
        }
    }
    for told in asked.join_all().await {
        assert_eq!(told, "200 whole slow but sure");
    }
    stage.is_at_rest().await;
}

/// Serves one stream at a time, and that only after it has said that it serves none.
async fn one_by_one(wire: Wire) {
    let Some(mut frames) = Frames::accept(wire, &[(MAX_CONCURRENT_STREAMS, 1)]).await else { return };
    while let Some((stream, _)) = frames.request().await {
        let answer = [
            frames::settings(&[(MAX_CONCURRENT_STREAMS, 0)]),
            headers(0, stream, &[(":status", "200")]),
            data(END_STREAM, stream, "one"),
        ];
        if frames.try_send(answer.concat()).await.is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        if frames.try_send(frames::settings(&[(MAX_CONCURRENT_STREAMS, 1)])).await.is_none() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_wait_for_a_server_that_takes_one_at_a_time_or_for_a_while_none() {
    let mut stage = Stage::new(App::wire(one_by_one).await, "kubernetes.io/h2c").await;
    for (service, _) in LEGS {
        let requests = connect2(stage.web.outbound(service)).await;
        let mut asked = JoinSet::new();
        for number in 0..30 {
            let mut requests = requests.clone();
            let kind = [Kind::Get, Kind::Post, Kind::Grpc][number % 3];
            asked.spawn(async move { ask2(&mut requests, kind, "hello", None).await });
        }
        for told in asked.join_all().await {
            assert_eq!(told, "200 whole one", "{service}");
        }
    }
    stage.is_at_rest().await;
}

/// Answers by the head alone, and by the path: reads no body, and closes or ends its side.
async fn early(mut wire: Wire) {
    let head = wire.head().await;
    let full = "HTTP/1.1 413 Content Too Large\r\ncontent-length: 7\r\nconnection: close\r\n\r\ntoo big";
    match head.line.split(' ').nth(1).unwrap() {
        "/answered" => {
            wire.send(full).await;
            wire.finish().await;
            silent(&mut wire).await;
        }
        // With bytes unread, that is a reset.
        "/closed" => wire.send(full).await,
        _ => {
            wire.finish().await;
            silent(&mut wire).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_before_the_request_has_been_read_reaches_its_client_or_its_loss_is_told() {
    let mut stage = Stage::new(App::wire(early).await, "http").await;
    let body = "b".repeat(2 << 20);
    for (service, by) in LEGS {
        let to = stage.web.outbound(service);
        let lost = format!("502 upstream_reset by {by}");
        assert_eq!(ask1(to, "POST", "/answered", &body, "").await, "413 whole too big", "{service}");
        assert_eq!(ask1(to, "POST", "/ended", &body, "").await, lost);
        let told = ask1(to, "POST", "/closed", &body, "").await;
        // The reset may destroy it on its way.
        let known =
            ["413 whole too big", "413 cut", "nothing", &lost, "502 upstream_reset by default/web/outbound"];
        assert!(known.contains(&&*told), "{service}: {told}");
    }
    stage.is_at_rest().await;
}
