//! Which requests are sent again, how often, and what each application saw (GEP-1731, `HTTPRoute.spec.rules.retry`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tulle_tests::app::{App, full};
use tulle_tests::{Head, Wire, Workload, World, eventually};

/// One request as an application saw it.
#[derive(Clone, Debug)]
struct Visit {
    by: &'static str,
    body: Vec<u8>,
    at: Instant,
}

/// What both applications saw, by path, and how many connections they had.
#[derive(Debug, Default)]
struct Seen {
    visits: Mutex<HashMap<String, Vec<Visit>>>,
    connections: AtomicUsize,
    cut: AtomicUsize,
}

impl Seen {
    /// Takes a visit down, and tells which step of `x-script` it is for.
    fn step(&self, by: &'static str, path: &str, script: &str, body: Vec<u8>) -> String {
        let mut visits = self.visits.lock().unwrap();
        let visits = visits.entry(path.to_owned()).or_default();
        let step = script.split(',').nth(visits.len()).unwrap_or("200").to_owned();
        visits.push(Visit { by, body, at: Instant::now() });
        step
    }

    fn of(&self, path: &str) -> Vec<Visit> {
        self.visits.lock().unwrap().get(path).cloned().unwrap_or_default()
    }
}

/// Does with the nth request for a path what is nth in its field `x-script`: answers with a status, or misbehaves.
async fn scripted(by: &'static str, seen: &Arc<Seen>) -> App {
    let seen = Arc::clone(seen);
    App::wire(move |mut wire: Wire| {
        let seen = Arc::clone(&seen);
        async move {
            seen.connections.fetch_add(1, Ordering::Relaxed);
            while let Some(head) = wire.try_head().await {
                let early = head.get("x-script").is_some_and(|script| script.starts_with("early"));
                let path = head.line.split(' ').nth(1).unwrap().to_owned();
                let body = match early && seen.of(&path).is_empty() {
                    true => Vec::new(),
                    false => wire.body(&head).await,
                };
                let step = seen.step(by, &path, head.get("x-script").unwrap_or("200"), body);
                let answer = match &*step {
                    // With a byte of an answer, so that it is not for its own proxy to send it again.
                    "reset" => return wire.send("H").await,
                    "junk" => "HELLO\r\n\r\n".to_owned(),
                    "silent" => return drop(wire.to_end_or_reset().await),
                    "endless" => {
                        wire.send("HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n").await;
                        wire.to_end_or_reset().await;
                        seen.cut.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    "early" => {
                        wire.send("HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno").await;
                        return drop(wire.to_end_or_reset().await);
                    }
                    status => format!("HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n\r\n{by}", by.len()),
                };
                if wire.try_send(answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

const RULES: &str = "
  - matches: [{path: {value: /codes}}]
    retry: {codes: [503], attempts: 2, backoff: 1ms}
  - matches: [{path: {value: /default}}]
    retry: {codes: [503]}
  - matches: [{path: {value: /none}}]
    retry: {codes: [503], attempts: 0}
  - matches: [{path: {value: /plain}}]
  - matches: [{path: {value: /late}}]
    retry: {attempts: 1}
    timeouts: {backendRequest: 3s}
  - matches: [{path: {value: /time}}]
    retry: {codes: [503], attempts: 5, backoff: 20s}
    timeouts: {request: 15s}
  - matches: [{path: {value: /backoff}}]
    retry: {codes: [503], attempts: 3, backoff: 100ms}
  - matches: [{path: {value: /gone}}]
    retry: {codes: [503], attempts: 3, backoff: 600s}
  - matches: [{path: {value: /mirror}}]
    retry: {codes: [503], attempts: 2, backoff: 1ms}
    filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: copies, port: 8080}}}";

/// `web`, and `shop` with two endpoints, to which these rules lead.
struct Shop {
    world: World,
    web: Workload,
    seen: Arc<Seen>,
    apps: [App; 2],
    workloads: [Workload; 2],
}

// === impl Shop ===

impl Shop {
    async fn start() -> Self {
        let seen = Arc::<Seen>::default();
        let apps = [scripted("one", &seen).await, scripted("two", &seen).await];
        Self::of("http", seen, apps).await
    }

    async fn of(protocol: &str, seen: Arc<Seen>, apps: [App; 2]) -> Self {
        let world = World::strict().await;
        world.service("shop", protocol);
        let start = async |name: &str, app: &App| {
            let workload = world.workload(name).serves("shop", app.address()).start().await;
            workload.counts("tulle_registered", &[], 1.0).await;
            workload
        };
        let workloads = [start("one", &apps[0]).await, start("two", &apps[1]).await];
        let rules =
            RULES.replace("\n  - matches", "\n    backendRefs: [{name: shop, port: 8080}]\n  - matches");
        let rules = rules.trim_start_matches("\n    backendRefs: [{name: shop, port: 8080}]");
        world.yaml(
            "route.yaml",
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: shop}}\nspec:\n  parentRefs:\n  - \
                 {{group: \"\", kind: Service, name: shop, port: 8080}}\n  rules:\n{rules}\n    backendRefs: [{{name: shop, port: 8080}}]\n"
            ),
        );
        // Whatever is sent again here, in however short a time.
        world.yaml(
            "budget.yaml",
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: shop}\nspec:\n  targetRefs: [{group: \"\", \
             kind: Service, name: shop}]\n  retryBudget: {percent: 100, minimumRetryRate: {count: 1000, interval: 1s}}\n",
        );
        let web = world.workload("web").calls("shop").start().await;
        let shop = Self { world, web, seen, apps, workloads };
        eventually("the rules are in force", async || {
            let (head, _) = shop.ask("GET", "/elsewhere", "200", b"").await;
            if head.status() == 404 { Ok(()) } else { Err(format!("{head:?}")) }
        })
        .await;
        shop
    }

    async fn ask(&self, method: &str, path: &str, script: &str, body: &[u8]) -> (Head, Vec<u8>) {
        let mut wire = self.web.connect("shop").await;
        send(&mut wire, method, path, script, body).await;
        wire.response().await
    }

    async fn retried(&self, cause: &str) -> f64 {
        self.web.metrics().await.sum("tulle_retries_total", &[("cause", cause)])
    }

    async fn withheld(&self, cause: &str) -> f64 {
        self.web.metrics().await.sum("tulle_retries_withheld_total", &[("cause", cause)])
    }

    /// What `tulle explain` says of being sent again.
    fn explained(&self, method: &str, path: &str) -> Value {
        let to = format!("http://shop:8080{path}");
        self.world.explain(&["--from", "default/web", "--to", &to, "-X", method])["requests"]["retry"].clone()
    }
}

async fn send(wire: &mut Wire, method: &str, path: &str, script: &str, body: &[u8]) {
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    let head = format!("{method} {path} HTTP/1.1\r\nhost: shop\r\nx-script: {script}\r\n{length}\r\n");
    wire.send([head.as_bytes(), body].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_sent_again_as_often_as_the_rule_says_and_no_more() {
    let shop = Shop::start().await;
    let long = vec![b'x'; 100_000];
    // Who asks, what the applications do, the bytes of a body, then the status with the proxy's reason, and how often it was seen.
    let cases: &[(&str, &str, &str, usize, &str, usize)] = &[
        ("GET", "/codes/to-success", "503,200", 0, "200", 2),
        ("GET", "/codes/to-the-end", "503,503,200", 0, "200", 3),
        ("GET", "/codes/exhausted", "503,503,503,200", 0, "503", 3),
        ("GET", "/codes/not-named", "500,200", 0, "500", 1),
        ("POST", "/codes/named", "503,200", 5, "200", 2),
        ("POST", "/codes/kept", "503,503,200", 60_000, "200", 3),
        ("POST", "/codes/too-long", "503,200", 100_000, "503", 1),
        ("GET", "/codes/reset", "reset,200", 0, "200", 2),
        ("GET", "/codes/reset-and-code", "reset,503,200", 0, "200", 3),
        ("PUT", "/codes/reset-with-body", "reset,200", 5, "200", 2),
        ("POST", "/codes/reset-post", "reset,200", 5, "502 upstream_reset", 1),
        ("GET", "/codes/junk", "junk,200", 0, "200", 2),
        ("POST", "/codes/junk-post", "junk,200", 0, "502 upstream_malformed", 1),
        ("GET", "/default/once", "503,503,200", 0, "503", 2),
        ("GET", "/none/code", "503,200", 0, "503", 1),
        ("GET", "/none/reset", "reset,200", 0, "502 upstream_reset", 1),
        ("GET", "/plain/code", "503,200", 0, "503", 1),
        ("GET", "/plain/reset", "reset,200", 0, "502 upstream_reset", 1),
        ("GET", "/late/get", "silent,200", 0, "200", 2),
        ("GET", "/late/twice", "silent,silent,200", 0, "504 backend_timeout", 2),
        ("POST", "/late/post", "silent,200", 5, "504 backend_timeout", 1),
        // The answer is there before a retry could begin in time.
        ("GET", "/time/none-left", "503,200", 0, "503", 1),
    ];
    let mut wrong = Vec::new();
    for (method, path, script, bytes, outcome, times) in cases {
        let (head, _) = shop.ask(method, path, script, &long[..*bytes]).await;
        let visits = shop.seen.of(path);
        let seen = format!("{} {}", head.status(), head.reason().unwrap_or_default());
        if (seen.trim_end(), visits.len()) != (*outcome, *times) {
            wrong.push(format!("{method} {path}: {head:?} after {}", visits.len()));
        }
        if visits.iter().any(|visit| visit.body != long[..*bytes]) {
            let lengths: Vec<_> = visits.iter().map(|visit| visit.body.len()).collect();
            wrong.push(format!("{method} {path}: bodies of {lengths:?}"));
        }
        if visits.windows(2).any(|two| two[0].by == two[1].by) {
            wrong.push(format!("{method} {path}: the same endpoint again"));
        }
        let record = shop.web.logs(&[("path", json!(path))]).await;
        if record["attempts"] != json!(times) {
            wrong.push(format!("{method} {path}: {record}"));
        }
        let explained = shop.explained(method, path);
        let unanswered = ["GET", "PUT"].contains(method);
        let most = match path.split('/').nth(1).unwrap() {
            "codes" => json!(2),
            "default" | "late" => json!(1),
            "time" => json!(5),
            "none" => json!(0),
            _ => Value::Null,
        };
        if explained["attempts"] != most || (!most.is_null() && explained["unanswered"] != json!(unanswered))
        {
            wrong.push(format!("{method} {path}: explained {explained}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(
        shop.explained("POST", "/codes"),
        json!({"attempts": 2, "codes": [503], "grpc_codes": [], "backoff": "1ms", "unanswered": false})
    );
    let retried = [shop.retried("status").await, shop.retried("broken").await, shop.retried("late").await];
    assert_eq!(retried, [10.0, 4.0, 2.0]);
    let withheld =
        [shop.withheld("attempts").await, shop.withheld("body").await, shop.withheld("time").await];
    assert_eq!(withheld, [5.0, 1.0, 1.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_grow_and_never_are_shorter_than_the_rule_says() {
    let shop = Shop::start().await;
    let (head, _) = shop.ask("GET", "/backoff/a", "503,503,503,200", b"").await;
    assert_eq!(head.status(), 200);
    let visits = shop.seen.of("/backoff/a");
    let waits: Vec<_> = visits.windows(2).map(|two| two[1].at - two[0].at).collect();
    let least = [100, 200, 400].map(Duration::from_millis);
    assert!(waits.len() == 3 && waits.iter().zip(least).all(|(wait, least)| *wait >= least), "{waits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_again_for_a_client_that_has_left() {
    let shop = Shop::start().await;
    let mut wire = shop.web.connect("shop").await;
    send(&mut wire, "GET", "/gone/a", "503,200", b"").await;
    eventually("the answer is not taken, and the next try waited for", async || {
        let mut answered = 0.0;
        for workload in &shop.workloads {
            let labels = [("direction", "inbound"), ("status", "503")];
            answered += workload.metrics().await.sum("tulle_requests_total", &labels);
        }
        if answered == 1.0 { Ok(()) } else { Err(answered.to_string()) }
    })
    .await;
    // A client that only says no more may still be waiting.
    wire.into_stream().set_zero_linger().unwrap();
    let record = shop.web.logs(&[("path", json!("/gone/a"))]).await;
    assert_eq!((&record["reason"], &record["attempts"]), (&json!("client_closed"), &json!(1)));
    assert_eq!(shop.seen.of("/gone/a").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_application_saw_is_sent_again_whatever_its_method() {
    let shop = Shop::start().await;
    shop.apps[0].stop().await;
    let mut count = 0;
    eventually("a request has met the dead one", async || {
        count += 1;
        let path = format!("/codes/{count}");
        let (head, _) = shop.ask("POST", &path, "200", b"hello").await;
        let visits = shop.seen.of(&path);
        assert_eq!((head.status(), visits.len(), &*visits[0].body), (200, 1, &b"hello"[..]), "{head:?}");
        let again = shop.retried("unprocessed").await;
        if again >= 1.0 { Ok(()) } else { Err(format!("{again} of {count}")) }
    })
    .await;
    shop.apps[1].stop().await;
    for (path, attempts) in [("/codes/dead", 3), ("/default/dead", 2), ("/none/dead", 1), ("/plain/dead", 2)]
    {
        let (head, _) = shop.ask("POST", path, "200", b"hello").await;
        assert_eq!((head.status(), head.reason()), (503, Some("connect_failed")), "{path}");
        let record = shop.web.logs(&[("path", json!(path))]).await;
        assert_eq!(record["attempts"], json!(attempts), "{path}: {record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_before_its_connection_is_made_was_not_processed() {
    let world = World::strict().await;
    world.service("shop", "http");
    // It never answers the handshake.
    let mute = App::wire(async |mut wire: Wire| drop(wire.to_end_or_reset().await)).await;
    world.yaml("slice.yaml", &crate::mtls::endpoint_slice("shop", mute.address(), Some("default/mute")));
    world.yaml(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: shop, port: 8080}]
  rules:
  - retry: {attempts: 2, backoff: 1ms}
    timeouts: {backendRequest: 100ms}
    backendRefs: [{name: shop, port: 8080}]
",
    );
    let web = world.workload("web").calls("shop").start().await;
    eventually("the rule is in force", async || {
        let mut wire = web.connect("shop").await;
        send(&mut wire, "POST", "/", "", b"hello").await;
        let (head, _) = wire.response().await;
        if head.reason() == Some("backend_timeout") { Ok(()) } else { Err(format!("{head:?}")) }
    })
    .await;
    let record = web.logs(&[("reason", json!("backend_timeout"))]).await;
    assert_eq!(record["attempts"], json!(3), "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_taken_leaves_its_connection_usable_or_closes_it() {
    let shop = Shop::start().await;
    let mut wire = shop.web.connect("shop").await;
    for round in 0..20 {
        // Long enough for the rest of an answer to come.
        send(&mut wire, "GET", &format!("/backoff/{round}"), "503,200", b"").await;
        assert_eq!(wire.response().await.0.status(), 200);
    }
    // One to each application, but for what had to be opened since the other was still being read.
    let connections = shop.seen.connections.load(Ordering::Relaxed);
    assert!(connections < 20, "{connections} connections for 40 requests");
    let (head, _) = shop.ask("GET", "/codes/endless", "endless,200", b"").await;
    assert_eq!((head.status(), shop.seen.of("/codes/endless").len()), (200, 2));
    eventually("the endless answer is broken off", async || {
        let cut = shop.seen.cut.load(Ordering::Relaxed);
        if cut == 1 { Ok(()) } else { Err(cut.to_string()) }
    })
    .await;
    // What is refused before its body has come goes to the other with all of it.
    let mut wire = shop.web.connect("shop").await;
    let fields = "host: shop\r\nx-script: early,200\r\ncontent-length: 10\r\n";
    wire.send(format!("POST /codes/early HTTP/1.1\r\n{fields}\r\nhello")).await;
    eventually("the other has the request", async || {
        let Some(first) = shop.seen.of("/codes/early").first().map(|visit| visit.by) else {
            return Err("nobody has it".to_owned());
        };
        let other = &shop.workloads[usize::from(first == "one")];
        let active = other.metrics().await.sum("tulle_requests_active", &[("direction", "inbound")]);
        if active == 1.0 { Ok(()) } else { Err(active.to_string()) }
    })
    .await;
    wire.send("world").await;
    assert_eq!(wire.response().await.0.status(), 200);
    let visits = shop.seen.of("/codes/early");
    assert_eq!((visits.len(), &*visits[1].body), (2, &b"helloworld"[..]));
}

/// The client leaves its body unended while the proxy still looks for somebody who takes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_upload_is_whole_for_no_endpoint() {
    // What came after each head, and how many heads there were. Whoever is stopped meanwhile tells nothing.
    let (bodies, heads) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let under_way = Arc::new(());
    let app = async || {
        let (bodies, heads, under_way) =
            (Arc::clone(&bodies), Arc::clone(&heads), Arc::downgrade(&under_way));
        App::wire(move |mut wire: Wire| {
            let (bodies, heads, under_way) = (Arc::clone(&bodies), Arc::clone(&heads), under_way.upgrade());
            async move {
                let Some(head) = wire.try_head().await else { return };
                // Asked until the rules are in force.
                if head.line.contains("/elsewhere") {
                    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                    return wire.send(answer).await;
                }
                let _under_way = under_way;
                heads.fetch_add(1, Ordering::SeqCst);
                if head.line.contains("/refused/") {
                    let answer = "HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno";
                    drop(wire.try_send(answer).await);
                }
                let body = wire.to_end_or_reset().await;
                bodies.lock().unwrap().push(body);
            }
        })
        .await
    };
    let apps = [app().await, app().await];
    let shop = Shop::of("http", Arc::default(), apps).await;
    for round in 0..15 {
        if round == 10 {
            shop.apps[0].stop().await;
        }
        for path in ["/codes/silent", "/codes/refused", "/plain/silent", "/plain/refused"] {
            let path = format!("{path}/{round}");
            let mut wire = shop.web.connect("shop").await;
            let fields = "host: shop\r\ntransfer-encoding: chunked";
            let before = heads.load(Ordering::SeqCst);
            wire.send(format!("POST {path} HTTP/1.1\r\n{fields}\r\n\r\n5\r\nhello\r\n")).await;
            // In every other round it breaks off when an application has begun to read it, else perhaps before.
            if round % 2 == 1 {
                eventually("an application reads it", async || {
                    if heads.load(Ordering::SeqCst) > before { Ok(()) } else { Err("none".to_owned()) }
                })
                .await;
            }
            wire.finish().await;
            wire.to_end_or_reset().await;
            shop.web.logs(&[("path", json!(path))]).await;
        }
    }
    eventually("no upload is under way any more", async || match Arc::strong_count(&under_way) - 1 {
        0 => Ok(()),
        some => Err(format!("{some} are")),
    })
    .await;
    let bodies = bodies.lock().unwrap();
    assert!(!bodies.is_empty());
    assert!(bodies.iter().all(|body| !body.ends_with(b"0\r\n\r\n")), "{bodies:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_gets_one_copy_however_often_the_request_is_sent() {
    let shop = Shop::start().await;
    shop.world.service("copies", "http");
    let copied = Arc::<Seen>::default();
    let app = scripted("copies", &copied).await;
    let copies = shop.world.workload("copies").serves("copies", app.address()).start().await;
    eventually("copies are made", async || {
        shop.ask("POST", "/mirror/first", "200", b"hello").await;
        if copied.of("/mirror/first").is_empty() { Err("none".to_owned()) } else { Ok(()) }
    })
    .await;
    let (head, _) = shop.ask("POST", "/mirror/one", "503,503,200", b"hello").await;
    assert_eq!((head.status(), shop.seen.of("/mirror/one").len()), (200, 3));
    copies.logs(&[("path", json!("/mirror/one"))]).await;
    // A later one is there, so that no other of the first is still on its way.
    shop.ask("POST", "/mirror/two", "200", b"hello").await;
    copies.logs(&[("path", json!("/mirror/two"))]).await;
    let visits = copied.of("/mirror/one");
    assert_eq!((visits.len(), &*visits[0].body), (1, &b"hello"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_and_grpc_are_sent_again_too() {
    let seen = Arc::<Seen>::default();
    let app = async |by: &'static str| {
        let seen = Arc::clone(&seen);
        App::http2(move |request: Request<Incoming>| {
            let seen = Arc::clone(&seen);
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let script = head.headers.get("x-script").map_or("200", |script| script.to_str().unwrap());
                let step = seen.step(by, head.uri.path(), script, body.to_vec());
                if step == "silent" {
                    std::future::pending::<()>().await;
                }
                let status: u16 = step.parse().unwrap();
                Response::builder().status(status).body(full(by)).unwrap()
            }
        })
        .await
    };
    let apps = [app("one").await, app("two").await];
    let shop = Shop::of("kubernetes.io/h2c", Arc::clone(&seen), apps).await;
    let stream = TcpStream::connect(shop.web.outbound("shop")).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let short = vec![b'x'; 5];
    let long = vec![b'x'; 100_000];
    for (method, path, script, body, status, grpc, times) in [
        ("GET", "/codes/get", "503,503,200", &[][..], 200, None, 3),
        ("POST", "/codes/post", "503,200", &short, 200, None, 2),
        ("POST", "/codes/long", "503,200", &long, 503, None, 1),
        ("GET", "/late/get", "silent,200", &[], 200, None, 2),
        ("POST", "/late/post", "silent,200", &short, 504, None, 1),
        ("POST", "/codes/call", "503,200", &short, 200, Some(None), 2),
        ("POST", "/late/call", "silent,200", &short, 200, Some(Some("4")), 1),
    ] {
        let request = Request::builder().method(method).uri(format!("http://shop{path}"));
        let request = request.header("x-script", script);
        let request = match grpc {
            Some(_) => request.header("content-type", "application/grpc").header("te", "trailers"),
            None => request,
        };
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
        let answer = tulle_tests::within(path, sender.send_request(request)).await.unwrap();
        let told = answer.headers().get("grpc-status").map(|status| status.to_str().unwrap());
        assert_eq!((answer.status().as_u16(), told), (status, grpc.flatten()), "{path}: {answer:?}");
        let visits = seen.of(path);
        assert_eq!(visits.len(), times, "{path}");
        assert!(visits.iter().all(|visit| visit.body == body), "{path}");
        assert!(visits.windows(2).all(|two| two[0].by != two[1].by), "{path}: {visits:?}");
    }
    // The same connection all the time: no stream was left over.
    let served = shop.web.logs(&[("path", json!("/late/call"))]).await;
    assert_eq!(served["grpc_status"], json!(4), "{served}");
}
