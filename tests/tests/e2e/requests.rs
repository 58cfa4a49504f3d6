//! What is done for requests by a TrafficPolicy and a FaultPolicy: retries and their budget, timeouts, deadlines, faults. Counts are the
//! applications'.

mod attached;
mod faults;
mod targets;

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_stream::StreamExt as _;
use tulle_tests::app::{App, full};
use tulle_tests::script::{Seen, scripted, step, visits};
use tulle_tests::{Head, Workload, World, eventually};

/// The same in gRPC: a step is a status (and after `+` when it may be asked again), or `silent`, or `stalls` after a message, or `promised`
/// where that was to be longer.
fn grpc(listener: TcpListener, seen: &Seen) -> App {
    let seen = Arc::clone(seen);
    App::http2_on(listener, move |request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let field = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap());
            let script = field("x-script").unwrap_or("0");
            let step = step(&seen, request.uri().path(), script, field("grpc-timeout"));
            let answer = Response::builder().header("content-type", "application/grpc");
            match &*step {
                "silent" => std::future::pending().await,
                step @ ("stalls" | "promised") => {
                    let answer =
                        if step == "promised" { answer.header("content-length", "99") } else { answer };
                    let message = Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"\0\0\0\0\x02ok")));
                    let frames = tokio_stream::iter([message]).chain(tokio_stream::pending());
                    answer.body(StreamBody::new(frames).boxed()).unwrap()
                }
                status => {
                    let (status, after) = status.split_once('+').unwrap_or((status, ""));
                    let status = if status == "200" { "0" } else { status };
                    let answer = answer.header("grpc-status", status);
                    let answer = if after.is_empty() {
                        answer
                    } else {
                        answer.header("grpc-retry-pushback-ms", after)
                    };
                    answer.body(full("")).unwrap()
                }
            }
        }
    })
}

/// `web`, which calls `shop`, which does what requests ask for.
struct Shop {
    web: Workload,
    seen: Seen,
    world: World,
    _workload: Workload,
    _app: App,
}

/// Of every policy: with it is known that the policy is in force.
const PROBE: &str = "x-deadline";

impl Shop {
    /// With the spec of a TrafficPolicy for `shop`, and the rules of a FaultPolicy, if any.
    async fn start(protocol: &str, timeouts: &str, traffic: &str, faults: &str) -> Self {
        Self::with(protocol, timeouts, traffic, faults, "").await
    }

    /// With more YAML.
    async fn with(protocol: &str, timeouts: &str, traffic: &str, faults: &str, more: &str) -> Self {
        let (world, seen) = (World::strict().await, Seen::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let app = if protocol == "http" { scripted(listener, &seen) } else { grpc(listener, &seen) };
        world.service("shop", protocol);
        let target = "targetRefs: [{group: \"\", kind: Service, name: shop}]";
        let of = |kind: &str, spec: &str| {
            let kind =
                format!("apiVersion: policy.tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: shop}}");
            format!("{kind}\nspec:\n  {target}\n{spec}\n")
        };
        let traffic = format!("  timeouts: {{deadlineHeader: {PROBE}, {timeouts}}}\n{traffic}");
        world.yaml("traffic.yaml", &of("TrafficPolicy", &traffic));
        if !faults.is_empty() {
            world.yaml("faults.yaml", &of("FaultPolicy", faults));
        }
        if !more.is_empty() {
            world.yaml("more.yaml", more);
        }
        let workload = world.workload("shop").serves("shop", app.address()).start().await;
        workload.counts("tulle_registered", &[], 1.0).await;
        let web = world.workload("web").calls("shop").start().await;
        let shop = Self { web, seen, world, _workload: workload, _app: app };
        eventually("the policy is in force", async || match protocol {
            "http" => {
                let head = shop.ask("GET", "/probe", "x-deadline: 0", b"").await;
                if head.reason() == Some("deadline_exceeded") { Ok(()) } else { Err(format!("{head:?}")) }
            }
            _ => {
                let answer = shop.call(&mut shop.http2().await, "/probe", &[("x-deadline", "0")]).await;
                if grpc_status(&answer) == "4" { Ok(()) } else { Err(format!("{answer:?}")) }
            }
        })
        .await;
        shop
    }

    async fn ask(&self, method: &str, path: &str, fields: &str, body: &[u8]) -> Head {
        let mut wire = self.web.connect("shop").await;
        let fields = if fields.is_empty() { String::new() } else { format!("{fields}\r\n") };
        let length = format!("content-length: {}", body.len());
        let head = format!("{method} {path} HTTP/1.1\r\nhost: shop\r\n{fields}{length}\r\n\r\n");
        wire.send([head.as_bytes(), body].concat()).await;
        wire.response().await.0
    }

    async fn http2(&self) -> Sender {
        let stream = TcpStream::connect(self.web.outbound("shop")).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// A call of gRPC.
    async fn call(&self, sender: &mut Sender, path: &str, fields: &[(&str, &str)]) -> Response<Incoming> {
        let request = Request::post(format!("http://shop{path}")).header("content-type", "application/grpc");
        let request = fields
            .iter()
            .fold(request.header("te", "trailers"), |it, (name, value)| it.header(*name, *value));
        let request = request.body(Full::new(Bytes::from_static(b"\0\0\0\0\x02hi"))).unwrap();
        tulle_tests::within(path, sender.send_request(request)).await.unwrap()
    }

    async fn retried(&self, labels: &[(&str, &str)]) -> f64 {
        self.web.metrics().await.sum("tulle_retries_total", labels)
    }

    async fn withheld(&self, cause: &str) -> f64 {
        self.web.metrics().await.sum("tulle_retries_withheld_total", &[("cause", cause)])
    }
}

type Sender = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

fn grpc_status(answer: &Response<Incoming>) -> &str {
    answer.headers().get("grpc-status").map_or("", |status| status.to_str().unwrap())
}

/// Enough for whatever a test sends again.
const PLENTY: &str = "retryBudget: {percent: 100, minimumRetryRate: {count: 1000, interval: 1s}}";

#[tokio::test(flavor = "multi_thread")]
async fn r04_without_a_retry_nothing_is_sent_again_that_may_have_been_processed() {
    let shop = Shop::start("http", "request: 60s", "", "").await;
    for (method, path, script, outcome) in [
        ("GET", "/status", "503,200", "503 "),
        ("GET", "/reset", "reset,200", "502 upstream_reset"),
        ("POST", "/post", "reset,200", "502 upstream_reset"),
    ] {
        let head = shop.ask(method, path, &format!("x-script: {script}"), b"").await;
        assert_eq!(format!("{} {}", head.status(), head.reason().unwrap_or_default()), outcome);
        assert_eq!(visits(&shop.seen, path).len(), 1, "{path}");
    }
    assert_eq!(shop.retried(&[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_a_policys_retries_are_for_what_it_says_and_no_more() {
    let traffic = format!(
        "  retry: {{attempts: 2, statuses: [503], causes: [Reset], backoff: {{base: 1ms}}, maximumBodyBytes: 1000}}\n  {PLENTY}"
    );
    let shop = Shop::start("http", "perTry: 3s", &traffic, "").await;
    let long = [b'x'; 2000];
    for (method, path, script, bytes, outcome, times) in [
        ("GET", "/status", "503,503,200", 0, "200 ", 3),
        ("GET", "/exhausted", "503,503,503", 0, "503 ", 3),
        ("GET", "/other", "500,200", 0, "500 ", 1),
        ("GET", "/reset", "reset,200", 0, "200 ", 2),
        ("POST", "/reset-post", "reset,200", 10, "502 upstream_reset", 1),
        ("POST", "/kept", "503,200", 1000, "200 ", 2),
        ("POST", "/too-long", "503,200", 2000, "503 ", 1),
        ("GET", "/late", "silent,200", 0, "504 backend_timeout", 1),
        ("GET", "/too-far", "503+60,200", 0, "503 ", 1),
        ("GET", "/soon", "503+1,200", 0, "200 ", 2),
    ] {
        let head = shop.ask(method, path, &format!("x-script: {script}"), &long[..bytes]).await;
        assert_eq!(format!("{} {}", head.status(), head.reason().unwrap_or_default()), outcome, "{path}");
        assert_eq!(visits(&shop.seen, path).len(), times, "{path}");
    }
    let soon = visits(&shop.seen, "/soon");
    assert!(soon[1].0 - soon[0].0 >= Duration::from_secs(1), "{soon:?}");
    for (cause, count) in
        [("attempts", 1.0), ("method", 1.0), ("body", 1.0), ("pushback", 1.0), ("budget", 0.0)]
    {
        assert_eq!(shop.withheld(cause).await, count, "{cause}");
    }
    assert_eq!(shop.retried(&[("cause", "status"), ("outcome", "answered")]).await, 3.0);
    assert_eq!(shop.retried(&[("cause", "status"), ("outcome", "failed")]).await, 3.0);
    assert_eq!(shop.retried(&[("cause", "broken"), ("outcome", "answered")]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_a_server_that_always_fails_is_asked_no_more_than_the_budget_says() {
    let traffic = "  retry: {attempts: 5, statuses: [503], backoff: {base: 0s}}\n  \
                   retryBudget: {percent: 20, interval: 60s, minimumRetryRate: {count: 3, interval: 60s}}";
    let shop = Shop::start("http", "request: 60s", traffic, "").await;
    const REQUESTS: usize = 100;
    let mut wire = shop.web.connect("shop").await;
    let script = "503,".repeat(REQUESTS * 2);
    for _ in 0..REQUESTS {
        let fields = format!("host: shop\r\nx-script: {script}\r\n");
        wire.send(format!("GET /fails HTTP/1.1\r\n{fields}\r\n")).await;
        assert_eq!(wire.response().await.0.status(), 503);
    }
    let asked = visits(&shop.seen, "/fails").len();
    assert!((REQUESTS + 3..=REQUESTS * 12 / 10 + 3).contains(&asked), "{asked}");
    let retried = shop.retried(&[("cause", "status")]).await;
    assert_eq!(retried as usize, asked - REQUESTS);
    assert!(shop.withheld("budget").await >= 90.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_a_grpc_server_says_when_it_is_asked_again_and_whether() {
    let traffic =
        format!("  retry: {{attempts: 2, grpcCodes: [UNAVAILABLE], backoff: {{base: 300ms}}}}\n  {PLENTY}");
    let shop = Shop::start("kubernetes.io/h2c", "request: 60s", &traffic, "").await;
    let mut sender = shop.http2().await;
    // The script, the status, what the client is told of it, how often it was asked, and after how many milliseconds at least.
    for (path, script, status, told, times, least) in [
        ("/a/later", "14+1500,0", "0", "", 2, 1500),
        ("/a/sooner", "14+1,0", "0", "", 2, 300),
        // Each answer says it anew.
        ("/a/twice", "14+700,14+1200,0", "0", "", 3, 1900),
        ("/a/again", "14,14+1000,0", "0", "", 3, 1300),
        ("/a/never", "14+-1,0", "14", "-1", 1, 0),
        ("/a/then_never", "14,14+-1,0", "14", "-1", 2, 300),
        ("/a/unread", "14+soon,0", "14", "soon", 1, 0),
        ("/a/too_far", "14+10001,0", "14", "10001", 1, 0),
        // Nobody would have waited for it.
        ("/a/too_late", "14+9000,0", "14", "9000", 1, 0),
        ("/a/not_named", "8+1,0", "8", "1", 1, 0),
    ] {
        let timeout = if path == "/a/too_late" { "8S" } else { "60S" };
        let answer = shop.call(&mut sender, path, &[("x-script", script), ("grpc-timeout", timeout)]).await;
        let pushback = answer.headers().get("grpc-retry-pushback-ms");
        let pushback = pushback.map_or("", |value| value.to_str().unwrap());
        assert_eq!((grpc_status(&answer), pushback), (status, told), "{path}: {answer:?}");
        let visits = visits(&shop.seen, path);
        assert_eq!(visits.len(), times, "{path}");
        let waited = visits[times - 1].0 - visits[0].0;
        assert!(waited >= Duration::from_millis(least), "{path}: {waited:?}");
    }
    for (cause, count) in [("pushback", 4.0), ("time", 1.0), ("attempts", 0.0), ("budget", 0.0)] {
        assert_eq!(shop.withheld(cause).await, count, "{cause}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_a_stream_that_could_be_sent_again_is_not_held_back() {
    let traffic = format!("  retry: {{attempts: 2, statuses: [503], maximumBodyBytes: 1000}}\n  {PLENTY}");
    let shop = Shop::start("http", "request: 600s", &traffic, "").await;
    let mut wire = shop.web.connect("shop").await;
    let fields = "host: shop\r\nx-script: echo\r\ntransfer-encoding: chunked\r\n";
    wire.send(format!("POST /echo HTTP/1.1\r\n{fields}\r\n")).await;
    let head = wire.head().await;
    assert_eq!(head.status(), 200);
    for round in 0..50 {
        wire.send(format!("64\r\n{round:0100}\r\n")).await;
        assert_eq!(wire.line().await.trim(), "64");
        assert_eq!(wire.exactly(102).await, format!("{round:0100}\r\n").as_bytes());
    }
    wire.send("0\r\n\r\n").await;
    assert_eq!(wire.chunks().await.0, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_idle_is_cut_and_what_moves_is_not() {
    let shop = Shop::start("http", "idle: 2s", "", "").await;
    let mut wire = shop.web.connect("shop").await;
    wire.send("GET /drips HTTP/1.1\r\nhost: shop\r\nx-script: drips\r\n\r\n").await;
    let (head, body) = wire.response().await;
    assert_eq!((head.status(), &*body), (200, &b"xxxxxx"[..]));
    let head = shop.ask("GET", "/silent", "x-script: silent", b"").await;
    assert_eq!((head.status(), head.reason()), (504, Some("idle_timeout")));
    let mut wire = shop.web.connect("shop").await;
    wire.send("GET /stalls HTTP/1.1\r\nhost: shop\r\nx-script: stalls\r\n\r\n").await;
    assert_eq!(wire.head().await.status(), 200);
    assert_eq!(wire.to_end_or_reset().await, b"2\r\nok\r\n");
    shop.web.logs(&[("path", json!("/stalls")), ("reason", json!("idle_timeout"))]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_in_a_header_is_passed_on_with_what_is_left() {
    let traffic = format!("  retry: {{attempts: 1, statuses: [503], backoff: {{base: 300ms}}}}\n  {PLENTY}");
    let shop = Shop::start("http", "request: 60s", &traffic, "").await;
    let head = shop.ask("GET", "/left", "x-deadline: 30000\r\nx-script: 503,200", b"").await;
    assert_eq!(head.status(), 200);
    let told: Vec<u64> = visits(&shop.seen, "/left").iter().map(|(_, told)| told.parse().unwrap()).collect();
    assert!(told[0] <= 30_000 && told[1] <= told[0] - 300, "{told:?}");
    let head = shop.ask("GET", "/over", "x-deadline: 1000\r\nx-script: silent", b"").await;
    assert_eq!((head.status(), head.reason()), (504, Some("deadline_exceeded")));
    // A retry that could not begin in time is none.
    let head = shop.ask("GET", "/short", "x-deadline: 200\r\nx-script: 503,200", b"").await;
    assert!(head.status() == 503 || head.reason() == Some("deadline_exceeded"), "{head:?}");
    let head = shop.ask("GET", "/unread", "x-deadline: soon\r\nx-script: 200", b"").await;
    assert_eq!((head.status(), &*visits(&shop.seen, "/unread")[0].1), (200, "soon"));
}

/// In seconds.
fn timeout(text: &str) -> f64 {
    let (number, unit) = text.split_at(text.len() - 1);
    let unit = match unit {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "S" => 1.0,
        other => panic!("{other}"),
    };
    number.parse::<f64>().unwrap() * unit
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_timeout_is_kept_and_passed_on_with_what_is_left() {
    let traffic =
        format!("  retry: {{attempts: 1, grpcCodes: [UNAVAILABLE], backoff: {{base: 300ms}}}}\n  {PLENTY}");
    let shop = Shop::start("kubernetes.io/h2c", "idle: 2s", &traffic, "").await;
    let mut sender = shop.http2().await;
    let of = |script: &'static str, timeout: &'static str| [("x-script", script), ("grpc-timeout", timeout)];
    let answer = shop.call(&mut sender, "/a/left", &of("14,0", "30S")).await;
    assert_eq!(grpc_status(&answer), "0");
    let told: Vec<f64> = visits(&shop.seen, "/a/left").iter().map(|(_, told)| timeout(told)).collect();
    assert!(told[0] < 30.0 && told[1] <= told[0] - 0.3, "{told:?}");
    for (path, script, timeout, status, times) in [
        ("/a/silent", "silent", "1S", "4", 1),
        ("/a/over", "0", "0n", "4", 0),
        ("/a/not-named", "8,0", "30S", "8", 1),
        ("/a/unread", "0", "soon", "0", 1),
    ] {
        let answer = shop.call(&mut sender, path, &of(script, timeout)).await;
        assert_eq!(grpc_status(&answer), status, "{path}: {answer:?}");
        assert_eq!(visits(&shop.seen, path).len(), times, "{path}");
    }
    shop.web.logs(&[("path", json!("/a/silent")), ("reason", json!("deadline_exceeded"))]).await;
    // A stream that is broken off ends with a status.
    for (path, timeout, status) in [("/a/late", "1S", "4"), ("/a/idle", "60S", "14")] {
        let answer = shop.call(&mut sender, path, &of("stalls", timeout)).await;
        let whole = tulle_tests::within(path, answer.into_body().collect()).await.unwrap();
        let trailers = whole.trailers().cloned().unwrap_or_default();
        assert_eq!(trailers.get("grpc-status"), Some(&HeaderValue::from_str(status).unwrap()), "{path}");
    }
    // Where more bytes were promised, trailers would be an error of the protocol: only a reset can end it.
    let answer = shop.call(&mut sender, "/a/promised", &of("promised", "1S")).await;
    let error = tulle_tests::within("the end", answer.into_body().collect()).await.unwrap_err();
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    let told = cause.map(|cause| (cause.is_remote(), cause.reason()));
    assert_eq!(told, Some((true, Some(h2::Reason::INTERNAL_ERROR))), "{error:?}");
}
