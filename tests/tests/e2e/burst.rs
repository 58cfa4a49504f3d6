//! Everybody at once: a burst is queued for as long as it takes, and nobody is turned away.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tulle_tests::app::{App, full};
use tulle_tests::{Wire, deep, within};

use super::Pair;

/// What one new connection's only request came to.
async fn http1(to: SocketAddr) -> String {
    let mut wire = Wire::connect(to).await;
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await;
    let (head, _) = wire.response().await;
    format!("{} {}", head.status(), head.reason().unwrap_or_default())
}

async fn http2(to: SocketAddr) -> String {
    let stream = TcpStream::connect(to).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = within("an HTTP/2 handshake", handshake).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get("http://orders/").body(Empty::<Bytes>::new()).unwrap();
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    let reason = response.headers().get("x-tulle-error").map(|reason| reason.to_str().unwrap());
    let outcome = format!("{} {}", response.status().as_u16(), reason.unwrap_or_default());
    connection.abort();
    outcome
}

/// Many machines allow many files only to those who ask.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

/// How often each outcome was met.
async fn burst<R>(pair: &Pair, ask: fn(SocketAddr) -> R) -> BTreeMap<String, usize>
where
    R: Future<Output = String> + Send + 'static,
{
    let count = if deep() { 2_000 } else { 300 };
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
