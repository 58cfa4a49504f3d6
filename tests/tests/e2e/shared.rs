//! Requests of HTTP/1 that are in flight together: they share a connection between the proxies, and nobody can tell.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tulle_tests::app::{App, full};
use tulle_tests::{Head, Wire, Workload, World, chunked, within};

use super::Pair;
use super::rolling::ends;

/// Requests in flight together.
const TOGETHER: usize = 24;

/// An application that tells of each request's head when it has read the request, and answers once it is let.
async fn held() -> (App, mpsc::UnboundedReceiver<Head>, Arc<Semaphore>) {
    let (sender, heads) = mpsc::unbounded_channel();
    let answers = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&answers);
    let app = App::wire(move |mut wire: Wire| {
        let (sender, held) = (sender.clone(), Arc::clone(&held));
        async move {
            while let Some(head) = wire.try_head().await {
                let body = wire.body(&head).await;
                let number = head.get("x-number").unwrap().to_owned();
                sender.send(head).unwrap();
                held.acquire().await.unwrap().forget();
                let begin = format!(
                    "HTTP/1.1 200 Quite Fine\r\nX-NumBer: {number}\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
                );
                let body = chunked(&body, 5000);
                let body = body.strip_suffix(b"\r\n").unwrap();
                if wire.try_send([begin.as_bytes(), body, b"X-Sum: 7\r\n\r\n"].concat()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (app, heads, answers)
}

/// Sends one request on each of so many connections, and waits until the application has them all.
async fn ask(pair: &Pair, heads: &mut mpsc::UnboundedReceiver<Head>) -> Vec<Wire> {
    let mut wires = Vec::new();
    for number in 0..TOGETHER {
        let mut wire = pair.web.connect("orders").await;
        let body = chunked(&body(number), 900);
        let head = format!("POST /{number} HTTP/1.1\r\nHOST: orders\r\nX-NuMber: {number}\r\n");
        wire.send(format!("{head}B-c: 1\r\na-C: 2\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
        wire.send(body).await;
        wires.push(wire);
    }
    for _ in 0..TOGETHER {
        let head = heads.recv().await.unwrap();
        let names: Vec<_> = head.fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[..4], ["HOST", "X-NuMber", "B-c", "a-C"]);
    }
    wires
}

fn body(number: usize) -> Vec<u8> {
    vec![u8::try_from(number).unwrap(); 1 + number * 4000]
}

async fn answered(wires: &mut [Wire]) {
    for (number, wire) in wires.iter_mut().enumerate() {
        let head = wire.head().await;
        assert_eq!(head.line, "HTTP/1.1 200 Quite Fine");
        assert!(head.fields.contains(&("X-NumBer".to_owned(), number.to_string())), "{head:?}");
        let (came, trailers) = wire.chunks().await;
        assert!(came == body(number), "the body of {number}");
        assert_eq!(trailers.len(), 1);
    }
}

async fn handshakes(pair: &Pair) -> f64 {
    pair.orders.metrics().await.sum("tulle_tls_handshakes_total", &[("direction", "inbound")])
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_together_share_a_connection_and_pass_as_they_came() {
    let (app, mut heads, answers) = held().await;
    let pair = Pair::start(app, "http").await;
    for _ in 0..3 {
        let mut wires = ask(&pair, &mut heads).await;
        answers.add_permits(TOGETHER);
        answered(&mut wires).await;
    }
    // A few of their own, as long as there were few, and one that all others share, on each worker.
    let handshakes = handshakes(&pair).await;
    assert!(handshakes < 12.0, "{handshakes} connections for {TOGETHER} requests at a time");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_share_a_connection_are_answered_when_the_other_proxy_drains() {
    let (app, mut heads, answers) = held().await;
    let mut pair = Pair::start(app, "http").await;
    let mut wires = ask(&pair, &mut heads).await;
    pair.orders.process().signal(rustix::process::Signal::TERM);
    pair.orders.unready().await;
    answers.add_permits(TOGETHER);
    answered(&mut wires).await;
    assert!(pair.orders.process().wait().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_policy_that_was_taken_back_cuts_no_request_that_comes_later() {
    let (app, mut heads, answers) = held().await;
    let pair = Pair::start(app, "http").await;
    let mut cut = ask(&pair, &mut heads).await;
    let allow = |who: &str| {
        let policy = format!(
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: orders\n  namespace: \
             default\nspec:\n  targetRefs:\n    - {{group: \"\", kind: Service, name: orders}}\n  action: ALLOW\n  rules:\n    \
             - name: only\n      from:\n        - identities: [\"default/{who}\"]\n"
        );
        pair.world.yaml("policy.yaml", &policy);
    };
    allow("other");
    for wire in &mut cut {
        let (head, _) = wire.response().await;
        assert_ne!(head.status(), 200, "{head:?}");
    }
    // The application does not know yet: it may answer those.
    answers.add_permits(TOGETHER);
    allow("web");
    tulle_tests::eventually("web to be let in again", async || {
        answers.add_permits(1);
        let mut wire = pair.web.connect("orders").await;
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\nx-number: 0\r\nconnection: close\r\n\r\n").await;
        let head = wire.head().await;
        if head.status() == 200 { Ok(()) } else { Err(format!("{head:?}")) }
    })
    .await;
    answers.forget_permits(usize::MAX);
    while heads.try_recv().is_ok() {}
    // On the connection that was there before, where it still is; for longer than what is cut would last.
    let mut wires = ask(&pair, &mut heads).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    answers.add_permits(TOGETHER);
    answered(&mut wires).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_share_a_connection_are_answered_for_when_the_other_proxy_dies() {
    let (app, mut heads, _answers) = held().await;
    let mut pair = Pair::start(app, "http").await;
    let mut wires = ask(&pair, &mut heads).await;
    pair.orders.process().kill().await;
    for wire in &mut wires {
        let (head, _) = wire.response().await;
        assert_eq!((head.status(), head.reason()), (502, Some("upstream_reset")));
    }
}

/// How often each POST was seen, by its path.
type Posts = Arc<Mutex<HashMap<String, u32>>>;

/// Sends a body back, and takes its time for it: what is asked for at once is in flight together.
async fn slow(is_http2: bool, posts: &Posts) -> App {
    let posts = Arc::clone(posts);
    let answer = move |request: Request<Incoming>| {
        let posts = Arc::clone(&posts);
        async move {
            if request.method() == http::Method::POST {
                *posts.lock().unwrap().entry(request.uri().path().to_owned()).or_default() += 1;
            }
            let Ok(body) = request.into_body().collect().await else { return Response::new(full("")) };
            tokio::time::sleep(Duration::from_millis(20)).await;
            Response::new(full(body.to_bytes()))
        }
    };
    if is_http2 { App::http2(answer).await } else { App::http1(answer).await }
}

/// Asks one thing after the other until it is told to stop; how many POSTs, each answered with its body, as all of them must be.
async fn http1_lane(to: SocketAddr, lane: usize, stop: Arc<AtomicBool>) -> usize {
    let (mut wire, mut posts) = (Wire::connect(to).await, 0);
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let (method, length) = if number % 2 == 0 { ("POST", 3000 + number) } else { ("GET", 0) };
        let head =
            format!("{method} /{lane}/{number} HTTP/1.1\r\nhost: orders\r\ncontent-length: {length}\r\n\r\n");
        wire.send([head.as_bytes(), &vec![b'x'; length]].concat()).await;
        let (head, body) = wire.response().await;
        assert_eq!(
            (head.status(), head.reason(), body.len()),
            (200, None, length),
            "/{lane}/{number}: {head:?}"
        );
        assert!(!head.has("connection", "close"), "its own proxy does not go: {head:?}");
        posts += usize::from(method == "POST");
    }
    posts
}

/// The same, on a connection of HTTP/2 that it shares with others.
async fn http2_lane(
    mut sender: http2::SendRequest<Full<Bytes>>,
    lane: usize,
    stop: Arc<AtomicBool>,
) -> usize {
    let mut posts = 0;
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let (method, length) = if number % 2 == 0 { ("POST", 3000 + number) } else { ("GET", 0) };
        let request = Request::builder().method(method).uri(format!("http://orders/{lane}/{number}"));
        let request = request.body(Full::new(Bytes::from(vec![b'x'; length]))).unwrap();
        let answer = within("an answer", sender.send_request(request)).await.unwrap();
        let (head, body) = answer.into_parts();
        let body = within("a body", body.collect()).await.unwrap().to_bytes();
        let reason = head.headers.get("x-tulle-error");
        assert_eq!((head.status.as_u16(), reason, body.len()), (200, None, length), "/{lane}/{number}");
        posts += usize::from(method == "POST");
    }
    posts
}

/// Under load, proxies of the server's come and drain; nothing is lost, and no POST is seen twice.
async fn drained_under_load(is_http2: bool) {
    const LANES: usize = 48;
    let world = World::strict().await;
    world.service("orders", if is_http2 { "kubernetes.io/h2c" } else { "http" });
    let posts = Posts::default();
    let app = slow(is_http2, &posts).await;
    let server = async |number: usize| -> Workload {
        let workload = world.workload(&format!("orders-{number}")).serves("orders", app.address());
        let workload = workload.setting("--drain-grace", "1h").start().await;
        workload.counts("tulle_registered", &[], 1.0).await;
        workload
    };
    let mut orders = server(0).await;
    let web = world.workload("web").calls("orders").start().await;
    let (to, stop) = (web.outbound("orders"), Arc::new(AtomicBool::default()));
    let mut lanes = JoinSet::new();
    if is_http2 {
        let stream = TcpStream::connect(to).await.unwrap();
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = within("an HTTP/2 handshake", handshake).await.unwrap();
        tokio::spawn(connection);
        (0..LANES).for_each(|lane| drop(lanes.spawn(http2_lane(sender.clone(), lane, Arc::clone(&stop)))));
    } else {
        (0..LANES).for_each(|lane| drop(lanes.spawn(http1_lane(to, lane, Arc::clone(&stop)))));
    }
    for number in 1..=4 {
        // All lanes have been here by then.
        let labels = [("direction", "inbound"), ("status", "200")];
        let asked = async || orders.counts("tulle_requests_total", &labels, (LANES * 4) as f64).await;
        tokio::select! {
            () = asked() => {}
            lane = lanes.join_next() => panic!("a lane has ended: {lane:?}"),
        }
        let handshakes =
            orders.metrics().await.sum("tulle_tls_handshakes_total", &[("direction", "inbound")]);
        assert!(handshakes < LANES as f64 / 2.0, "{handshakes} connections for {LANES} requests at a time");
        let next = server(number).await;
        let mut before = std::mem::replace(&mut orders, next);
        before.process().signal(rustix::process::Signal::TERM);
        ends(before).await;
    }
    stop.store(true, Ordering::SeqCst);
    let answered: usize = within("the lanes' ends", lanes.join_all()).await.into_iter().sum();
    let posts = posts.lock().unwrap();
    let twice: Vec<_> = posts.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(posts.len(), answered);
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_requests_that_share_a_connection_are_not_lost_nor_doubled_while_proxies_drain_under_load() {
    drained_under_load(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_streams_of_http2_are_not_lost_nor_doubled_while_proxies_drain_under_load() {
    drained_under_load(true).await;
}
