use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::*;
use crate::wire::Body;

fn dial() -> Dial {
    Dial {
        creds: None,
        timeout: Duration::from_secs(10),
        http1: h1::Limits::default(),
        http2: http2::Limits::default(),
    }
}

fn ignore(_: Result<(), &ConnectError>, _: Duration) {}

fn request(endpoint: &Endpoint) -> Request<Body> {
    Request::get(format!("http://{}/", endpoint.address)).body(Body::empty()).unwrap()
}

/// A server that takes `streams` at a time and answers once it is told to. Returns how many connections it has taken
/// and what tells it to answer.
async fn server(streams: u32) -> (Arc<Endpoint>, Arc<AtomicUsize>, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::new(listener.local_addr().unwrap(), Peer::Plaintext, None, 1);
    let (taken, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (count, told) = (Arc::clone(&taken), Arc::clone(&answer));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let told = Arc::clone(&told);
            let service = service_fn(move |_| {
                let told = Arc::clone(&told);
                async move {
                    told.notified().await;
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"x"))))
                }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .max_concurrent_streams(streams)
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (endpoint, taken, answer)
}

#[tokio::test]
async fn one_http2_dial_serves_all_who_wait_and_its_error_reaches_them() {
    let (endpoint, taken, _answer) = server(100).await;
    let all = (0..20).map(|_| endpoint.http2(0, dial, ignore));
    for connection in futures_util::future::join_all(all).await {
        assert!(connection.is_ok());
    }
    assert_eq!(taken.load(Ordering::Relaxed), 1);

    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let nobody = Endpoint::new(address, Peer::Plaintext, None, 1);
    let dials = Arc::new(AtomicUsize::new(0));
    let all = (0..20).map(|_| {
        let dials = Arc::clone(&dials);
        nobody.http2(0, dial, move |_: Result<(), &ConnectError>, _| {
            dials.fetch_add(1, Ordering::Relaxed);
        })
    });
    for connection in futures_util::future::join_all(all).await {
        assert!(matches!(connection.unwrap_err().as_ref(), ConnectError::Tcp { .. }));
    }
    assert_eq!(dials.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn streams_beyond_the_servers_limit_go_on_further_connections() {
    let (endpoint, taken, answer) = server(2).await;
    // The first exchange tells what the server takes.
    answer.notify_one();
    let Http2 { mut sender, place } = endpoint.http2(0, dial, ignore).await.unwrap();
    drop(sender.send(request(&endpoint), place).await.unwrap());
    assert_eq!(sender.max_streams(), 2);

    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let Http2 { mut sender, place } = endpoint.http2(0, dial, ignore).await.unwrap();
        let request = request(&endpoint);
        streams.spawn(async move { sender.send(request, place).await.map(drop) });
        tokio::task::yield_now().await;
    }
    // New connections are believed to take a hundred until they say less.
    assert!(taken.load(Ordering::Relaxed) >= 2);
    while !streams.is_empty() {
        answer.notify_one();
        streams.join_next().await.unwrap().unwrap().unwrap();
    }
    let used = endpoint.http2(0, dial, ignore).await.unwrap();
    assert!(used.place.id.is_some());
}

#[tokio::test]
async fn a_place_is_free_again_when_its_response_is_over_or_dropped() {
    let (endpoint, _taken, answer) = server(100).await;
    let streams = || endpoint.pools[0].http2.lock().streams();
    answer.notify_one();
    let Http2 { mut sender, place } = endpoint.http2(0, dial, ignore).await.unwrap();
    let response = sender.send(request(&endpoint), place).await.unwrap();
    assert_eq!(streams(), 1);
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
    assert_eq!((streams(), &body.to_bytes()[..]), (0, &b"x"[..]));

    answer.notify_one();
    let Http2 { mut sender, place } = endpoint.http2(0, dial, ignore).await.unwrap();
    let response = sender.send(request(&endpoint), place).await.unwrap();
    assert_eq!(streams(), 1);
    drop(response);
    assert_eq!(streams(), 0);

    // Given up before it was sent.
    drop(endpoint.http2(0, dial, ignore).await.unwrap());
    assert_eq!(streams(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_leaves_no_place_behind() {
    let (endpoint, _taken, _answer) = server(100).await;
    {
        let mut waits = std::pin::pin!(endpoint.http2(0, dial, ignore));
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
    }
    let stays = endpoint.http2(0, dial, ignore).await.unwrap();
    assert_eq!(endpoint.pools[0].http2.lock().streams(), 1);
    drop(stays);
}
