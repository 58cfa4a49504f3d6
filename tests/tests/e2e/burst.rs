//! Everybody at once: a burst is queued for as long as it takes, and nobody is turned away.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tulle_tests::app::{App, full};
use tulle_tests::machine::raise_file_limit;
use tulle_tests::{Wire, Workload, World, deep, eventually, long, within};

use super::Pair;

/// What one new connection's only request came to.
async fn http1(to: SocketAddr) -> String {
    let mut wire = Wire::connect(to).await;
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await;
    let (head, _) = wire.response().await;
    format!("{} {}", head.status(), head.reason().unwrap_or_default())
}

async fn http2(to: SocketAddr) -> String {
    let request = Request::get("http://orders/").body(Empty::<Bytes>::new()).unwrap();
    let response = asked(to, request).await;
    let reason = response.headers().get("x-tulle-error").map(|reason| reason.to_str().unwrap());
    format!("{} {}", response.status().as_u16(), reason.unwrap_or_default())
}

async fn grpc(to: SocketAddr) -> String {
    let request = Request::post("http://orders/shop.Orders/Place").header("content-type", "application/grpc");
    let response = asked(to, request.header("te", "trailers").body(Empty::<Bytes>::new()).unwrap()).await;
    let text = |name: &str| response.headers().get(name).map_or("", |value| value.to_str().unwrap());
    format!("{} {}", text("grpc-status"), text("x-tulle-error"))
}

async fn asked(to: SocketAddr, request: Request<Empty<Bytes>>) -> Response<Incoming> {
    let stream = TcpStream::connect(to).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = within("an HTTP/2 handshake", handshake).await.unwrap();
    let connection = tokio::spawn(connection);
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    connection.abort();
    response
}

/// How often each outcome was met.
async fn burst<R>(pair: &Pair, ask: fn(SocketAddr) -> R) -> BTreeMap<String, usize>
where
    R: Future<Output = String> + Send + 'static,
{
    let count = if deep() || long() { 2_000 } else { 300 };
    raise_file_limit();
    let to = pair.web.outbound("orders");
    let asked: JoinSet<String> = (0..count).map(|_| ask(to)).collect();
    let mut outcomes = BTreeMap::new();
    for outcome in asked.join_all().await {
        *outcomes.entry(outcome).or_default() += 1;
    }
    assert_eq!(outcomes.values().sum::<usize>(), count);
    outcomes
}

#[tokio::test(flavor = "multi_thread")]
async fn r02_a_burst_of_new_http1_connections_meets_no_error_of_the_proxies() {
    let pair = Pair::start(App::saying("ok").await, "http").await;
    for _ in 0..2 {
        let outcomes = burst(&pair, http1).await;
        assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200 "], "{outcomes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r02_a_burst_of_new_http2_connections_meets_no_error_of_the_proxies() {
    let app = App::http2(|_| async { Response::new(full("ok")) }).await;
    let pair = Pair::start(app, "kubernetes.io/h2c").await;
    for _ in 0..2 {
        let outcomes = burst(&pair, http2).await;
        assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200 "], "{outcomes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_ask_for_nothing_open_none_to_the_endpoint() {
    let pair = Pair::start(App::saying("ok").await, "http").await;
    let to = pair.web.outbound("orders");
    for _ in 0..100 {
        drop(Wire::connect(to).await);
    }
    pair.web.counts("tulle_detect_total", &[("result", "closed")], 100.0).await;
    // What they had opened would have come before these.
    let outcomes = burst(&pair, http1).await;
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200 "], "{outcomes:?}");
    let records = pair.web.access_log();
    let relayed: Vec<_> = records.iter().filter(|record| record["protocol"] == "TCP").collect();
    assert!(relayed.is_empty(), "{relayed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r02_a_burst_of_grpc_calls_on_new_connections_meets_no_error_of_the_proxies() {
    let app = App::http2(|_| async {
        Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "0")
            .body(full(""))
            .unwrap()
    })
    .await;
    let pair = Pair::start(app, "grpc").await;
    let outcomes = burst(&pair, grpc).await;
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["0 "], "{outcomes:?}");
}

fn split(other: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: split\n  namespace: default\n\
         spec:\n  parentRefs:\n    - {{group: \"\", kind: Service, name: split, port: 8080}}\n  rules:\n    - backendRefs:\n        \
         - {{name: good, port: 8080, weight: 1}}\n        - {{name: {other}, port: 8080, weight: 1}}\n"
    )
}

/// Of two backends, with half of the requests each, one never answers, or has nobody behind it.
#[tokio::test(flavor = "multi_thread")]
async fn r02_an_unavailable_backend_of_a_split_fails_no_request_of_the_other() {
    let world = World::strict().await;
    let good = App::saying("ok").await;
    let (waiting, count) = (Arc::<AtomicUsize>::default(), 200);
    let begun = Arc::clone(&waiting);
    let mute = App::wire(move |mut wire: Wire| {
        let begun = Arc::clone(&begun);
        async move {
            if wire.try_exactly(1).await.is_some() {
                begun.fetch_add(1, Ordering::SeqCst);
                while wire.try_exactly(1).await.is_some() {}
            }
        }
    })
    .await;
    for service in ["split", "good", "mute", "nobody"] {
        world.service(service, "http");
    }
    world.yaml("route.yaml", &split("mute"));
    let orders = world.workload("orders").serves("good", good.address()).serves("mute", mute.address());
    let orders = orders.start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = world.workload("web").calls("split").start().await;
    let to = web.outbound("split");

    // While those of the one wait for ever, every one of the other is answered.
    let mut asked: JoinSet<String> = (0..count).map(|_| http1(to)).collect();
    let mut answered = 0;
    eventually("all are answered but those that the mute one has", async || {
        while let Some(outcome) = asked.try_join_next() {
            assert_eq!(outcome.unwrap(), "200 ");
            answered += 1;
        }
        let waiting = waiting.load(Ordering::SeqCst);
        if answered + waiting == count { Ok(()) } else { Err(format!("{answered} and {waiting} of {count}")) }
    })
    .await;
    // Half of them: six standard deviations are 43.
    assert!((57..=143).contains(&answered), "{answered} of {count}");
    drop(asked);

    world.yaml("route.yaml", &split("nobody"));
    eventually("the new route is followed", async || {
        let told = tokio::time::timeout(Duration::from_secs(1), http1(to)).await.unwrap_or_default();
        if told == "503 no_healthy_endpoint" { Ok(()) } else { Err(told) }
    })
    .await;
    let asked: JoinSet<String> = (0..count).map(|_| http1(to)).collect();
    let mut outcomes = BTreeMap::<String, usize>::new();
    for outcome in asked.join_all().await {
        *outcomes.entry(outcome).or_default() += 1;
    }
    // Its own share fails, as Gateway API has it, and says why.
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200 ", "503 no_healthy_endpoint"], "{outcomes:?}");
    assert!((57..=143).contains(&outcomes["200 "]), "{outcomes:?}");
}

/// None of its threads runs any more.
async fn stop(workload: &mut Workload) {
    let process = workload.process();
    process.signal(Signal::STOP);
    let tasks = format!("/proc/{}/task", process.pid());
    eventually("the proxy is stopped", async || {
        let stopped = std::fs::read_dir(&tasks).unwrap().all(|task| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
            // After the name, which may hold anything, in parentheses (proc_pid_stat(5)).
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        });
        if stopped { Ok(()) } else { Err("it runs".to_owned()) }
    })
    .await;
}

/// Those of so many new connections that are made within `patience` while the proxy does not run.
async fn made(to: SocketAddr, count: usize, patience: Duration) -> Vec<TcpStream> {
    let connecting: JoinSet<_> =
        (0..count).map(|_| tokio::time::timeout(patience, TcpStream::connect(to))).collect();
    connecting.join_all().await.into_iter().filter_map(|made| made.ok()?.ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn r02_connections_wait_for_a_proxy_that_is_behind_as_many_as_its_backlog_says() {
    raise_file_limit();
    let mut pair = Pair::start(App::saying("ok").await, "http").await;
    pair.web.reaches("orders").await;
    let few = pair.world.workload("few").calls("orders").setting("--listen-backlog", "8");
    let mut few = few.setting("--workers", "1").start().await;
    few.reaches("orders").await;
    let to = few.outbound("orders");
    stop(&mut few).await;
    let made_few = made(to, 100, Duration::from_secs(2)).await.len();
    few.process().signal(Signal::CONT);
    // The kernel takes one more than it is told.
    assert!((8..=16).contains(&made_few), "{made_few} with a backlog of 8");

    let most: usize =
        std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    assert!(most >= 1024, "net.core.somaxconn is {most}: this machine allows no more");
    let to = pair.web.outbound("orders");
    stop(&mut pair.web).await;
    let waiting = made(to, 1024, Duration::from_secs(30)).await;
    pair.web.process().signal(Signal::CONT);
    assert_eq!(waiting.len(), 1024, "as they were not refused");
    let mut answered = JoinSet::new();
    for stream in waiting {
        answered.spawn(async move {
            let mut wire = Wire::new(stream);
            wire.send("GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await;
            wire.response().await.0.status()
        });
    }
    assert!(answered.join_all().await.iter().all(|status| *status == 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn r02_connections_beyond_the_limit_are_refused_with_a_reason_that_is_counted() {
    let pair = Pair::start(App::saying("ok").await, "http").await;
    let web = pair.world.workload("small").calls("orders").setting("--max-connections", "10").start().await;
    web.reaches("orders").await;
    web.idle().await;
    let mut held = Vec::new();
    for _ in 0..10 {
        let mut wire = web.connect("orders").await;
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        assert_eq!(wire.response().await.0.status(), 200);
        held.push(wire);
    }
    for _ in 0..5 {
        // The reset may come before it is known that there is a connection.
        if let Ok(stream) = TcpStream::connect(web.outbound("orders")).await {
            assert!(Wire::new(stream).to_end_or_reset().await.is_empty());
        }
    }
    let refused = [("direction", "outbound"), ("reason", "overloaded")];
    web.counts("tulle_refused_total", &refused, 5.0).await;
    assert!((web.metrics().await.sum("tulle_refused_total", &refused) - 5.0).abs() < 0.5);
    eventually("it is logged", async || match web.diagnostics() {
        said if said.contains("overloaded") => Ok(()),
        said => Err(said),
    })
    .await;
    // Those that were there go on, and what they leave is given to others.
    for wire in &mut held {
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        assert_eq!(wire.response().await.0.status(), 200);
    }
    drop(held);
    web.idle().await;
    web.reaches("orders").await;
}
