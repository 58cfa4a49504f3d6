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
use crate::telemetry::metrics::Metrics;
use crate::wire::{Body, Upgrade};

fn metrics() -> Metrics {
    Metrics::new(1, 2000, &[])
}

fn dial() -> Dial {
    dial_counted(&metrics())
}

fn dial_counted(metrics: &Metrics) -> Dial {
    Dial {
        creds: Arc::default(),
        timeout: Duration::from_secs(10),
        mark: None,
        namespace: None,
        http1: h1::Limits::default(),
        http2: http2::Limits::default(),
        metrics: metrics.worker(0),
    }
}

fn at(address: SocketAddr) -> Arc<Endpoint> {
    Endpoint::new(address, Peer::Plaintext, None, "default/orders:80".into(), 1)
}

/// The value of the line of `/metrics` that begins with `series`.
fn shown(metrics: &Metrics, series: &str) -> u64 {
    let text = metrics.render();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in {text}")).parse().unwrap()
}

/// Connections of the pool, and those of them that are idle.
fn pooled(metrics: &Metrics) -> (u64, u64) {
    let of = |name: &str| shown(metrics, &format!("{name}{{service=\"default/orders:80\"}}"));
    (of("tulle_pool_connections"), of("tulle_pool_connections_idle"))
}

fn closed(metrics: &Metrics, cause: PoolClose) -> u64 {
    shown(metrics, &format!("tulle_pool_closed_total{{cause=\"{}\"}}", cause.as_str()))
}

fn request(endpoint: &Endpoint) -> Request<Body> {
    Request::get(format!("http://{}/", endpoint.address)).body(Body::empty()).unwrap()
}

/// A server that takes `streams` at a time and answers once it is told to. Returns how many connections it has taken
/// and what tells it to answer.
async fn server(streams: u32) -> (Arc<Endpoint>, Arc<AtomicUsize>, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = at(listener.local_addr().unwrap());
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
    let all = (0..20).map(|_| endpoint.http2(0, None, dial));
    for connection in futures_util::future::join_all(all).await {
        assert!(connection.is_ok());
    }
    assert_eq!(taken.load(Ordering::Relaxed), 1);

    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let nobody = at(address);
    let metrics = metrics();
    let all = (0..20).map(|_| nobody.http2(0, None, || dial_counted(&metrics)));
    for connection in futures_util::future::join_all(all).await {
        assert!(matches!(connection.unwrap_err().as_ref(), ConnectError::Tcp { .. }));
    }
    let failed = "tulle_pool_dials_total{result=\"failed\",reason=\"connect_failed\"}";
    assert_eq!(shown(&metrics, failed), 1);
}

#[tokio::test]
async fn streams_beyond_the_servers_limit_go_on_further_connections() {
    let (endpoint, taken, answer) = server(2).await;
    // The first exchange tells what the server takes.
    answer.notify_one();
    let Http2 { mut sender, place, .. } = endpoint.http2(0, None, dial).await.unwrap();
    drop(sender.send(request(&endpoint), place).await.unwrap());
    assert_eq!(sender.max_streams(), 2);

    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let Http2 { mut sender, place, .. } = endpoint.http2(0, None, dial).await.unwrap();
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
    let used = endpoint.http2(0, None, dial).await.unwrap();
    assert!(used.place.id.is_some());
}

#[tokio::test]
async fn a_place_is_free_again_when_its_response_is_over_or_dropped() {
    let (endpoint, _taken, answer) = server(100).await;
    let streams = || endpoint.pools[0].http2(|shared| shared.streams());
    answer.notify_one();
    let Http2 { mut sender, place, .. } = endpoint.http2(0, None, dial).await.unwrap();
    let response = sender.send(request(&endpoint), place).await.unwrap();
    assert_eq!(streams(), 1);
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
    assert_eq!((streams(), &body.to_bytes()[..]), (0, &b"x"[..]));

    answer.notify_one();
    let Http2 { mut sender, place, .. } = endpoint.http2(0, None, dial).await.unwrap();
    let response = sender.send(request(&endpoint), place).await.unwrap();
    assert_eq!(streams(), 1);
    drop(response);
    assert_eq!(streams(), 0);

    // Given up before it was sent.
    drop(endpoint.http2(0, None, dial).await.unwrap());
    assert_eq!(streams(), 0);
}

/// A server that takes two streams at a time, and makes a tunnel of every CONNECT.
async fn tunnels_server() -> (Arc<Endpoint>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = at(listener.local_addr().unwrap());
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let handler = async |request: Request<Body>| {
                if let Some(tunnel) = request.extensions().get::<http2::OnTunnel>().cloned() {
                    tokio::spawn(async move {
                        let _open = tunnel.tunnel().await;
                        std::future::pending::<()>().await;
                    });
                }
                Response::new(Body::empty())
            };
            let limits = http2::Limits { max_concurrent_streams: 2, ..http2::Limits::default() };
            let never = std::future::pending();
            tokio::spawn(async move { http2::serve(Io::tcp(stream), &limits, handler, never).await });
        }
    });
    (endpoint, taken)
}

#[tokio::test]
async fn a_tunnel_has_its_place_until_it_is_over() {
    let (endpoint, taken) = tunnels_server().await;
    let (pool, streams) = (&endpoint.pools[0], || endpoint.pools[0].http2(|shared| shared.streams()));
    let ask = async |request: Request<Body>| {
        let Http2 { mut sender, place, .. } = endpoint.http2(0, None, dial).await.unwrap();
        sender.send(request, place).await.unwrap()
    };
    // The first exchange tells what the server takes.
    drop(ask(request(&endpoint)).await);
    let connect = || Request::connect("orders:80").body(Body::empty()).unwrap();
    let tunnels = [ask(connect()).await, ask(connect()).await];
    let tunnels = tunnels.map(|mut response| {
        assert_eq!(response.status(), 200);
        Upgrade::of_response(&mut response)
    });
    assert_eq!((streams(), taken.load(Ordering::Relaxed)), (2, 1));

    // There is no room for a third.
    let third = tokio::time::timeout(Duration::from_secs(30), ask(request(&endpoint))).await;
    assert_eq!(third.expect("it does not wait for them").status(), 200);
    assert_eq!(taken.load(Ordering::Relaxed), 2);
    pool.sweep(Instant::now() + Duration::from_secs(3600), Duration::ZERO, None);
    assert_eq!((pool.connections(), streams()), (1, 2), "theirs is not idle");
    drop(tunnels);
    assert_eq!(streams(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_leaves_no_place_behind() {
    let (endpoint, _taken, _answer) = server(100).await;
    {
        let mut waits = std::pin::pin!(endpoint.http2(0, None, dial));
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
    }
    let stays = endpoint.http2(0, None, dial).await.unwrap();
    assert_eq!(endpoint.pools[0].http2(|shared| shared.streams()), 1);
    drop(stays);
}

const OWN: Preferred = Preferred { way: Way::Own, or_other: false };

/// A server of HTTP/1 that answers every request, and closes its connections once `closing` is told.
async fn http1_server(closing: Arc<Notify>) -> Arc<Endpoint> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = at(listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let closing = Arc::clone(&closing);
            tokio::spawn(async move {
                let answer = service_fn(|request: Request<hyper::body::Incoming>| async move {
                    let last = request.uri().path() == "/last";
                    let mut response = Response::new(Full::new(Bytes::from_static(b"x")));
                    if last {
                        let close = http::HeaderValue::from_static("close");
                        response.headers_mut().insert(http::header::CONNECTION, close);
                    }
                    Ok::<_, Infallible>(response)
                });
                let io = TokioIo::new(stream);
                let serving = hyper::server::conn::http1::Builder::new().serve_connection(io, answer);
                tokio::select! {
                    _ = serving => {}
                    () = closing.notified() => {}
                }
            });
        }
    });
    endpoint
}

/// One exchange, its connection given back if it can be used again.
async fn exchange(endpoint: &Arc<Endpoint>, metrics: &Metrics, path: &str) {
    let idle = Duration::from_secs(60);
    let http1 = endpoint.http1(0, OWN, Some(idle), || dial_counted(metrics)).await.unwrap();
    let Http1 { client, pooled: counted, .. } = http1;
    let (open, idle) = pooled(metrics);
    assert!(open > idle, "one is in use: {open} {idle}");
    let to = Arc::clone(endpoint);
    let mut request = Request::get(path).header("host", "orders").body(()).unwrap();
    let done = move |client| {
        to.keep_http1(
            0,
            Http1 { client, pooled: counted, reused: true, way: Way::Own, until: None, held: false },
        )
    };
    let response = client.send(&mut request, Body::empty(), |_| (), done).await.unwrap();
    http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
}

#[tokio::test]
async fn http1_connections_are_counted_from_their_dial_to_their_end() {
    let (closing, metrics) = (Arc::new(Notify::new()), metrics());
    let endpoint = http1_server(Arc::clone(&closing)).await;
    let idle = Duration::from_secs(60);
    exchange(&endpoint, &metrics, "/").await;
    assert_eq!(pooled(&metrics), (1, 1));
    exchange(&endpoint, &metrics, "/last").await;
    assert_eq!((pooled(&metrics), closed(&metrics, PoolClose::Ended)), ((0, 0), 1));

    // Two at a time; one comes back, the other is given up.
    let first = endpoint.http1(0, OWN, Some(idle), || dial_counted(&metrics)).await.unwrap();
    let second = endpoint.http1(0, OWN, Some(idle), || dial_counted(&metrics)).await.unwrap();
    assert_eq!(pooled(&metrics), (2, 0));
    endpoint.keep_http1(0, first);
    assert_eq!(pooled(&metrics), (2, 1));
    drop(second);
    assert_eq!((pooled(&metrics), closed(&metrics, PoolClose::Ended)), ((1, 1), 2));
    endpoint.sweep(0, Duration::ZERO);
    assert_eq!((pooled(&metrics), closed(&metrics, PoolClose::Idle)), ((0, 0), 1));

    exchange(&endpoint, &metrics, "/").await;
    closing.notify_waiters();
    while pooled(&metrics) != (0, 0) {
        tokio::task::yield_now().await;
        endpoint.sweep(0, idle);
    }
    assert_eq!(closed(&metrics, PoolClose::Peer), 1);

    // An update takes the endpoint away, on another thread.
    exchange(&endpoint, &metrics, "/").await;
    assert_eq!(pooled(&metrics), (1, 1));
    std::thread::spawn(move || drop(endpoint)).join().unwrap();
    assert_eq!((pooled(&metrics), closed(&metrics, PoolClose::Retired)), ((0, 0), 1));
}

#[tokio::test]
async fn http2_connections_are_counted_until_their_last_stream_is_over() {
    let metrics = metrics();
    let (endpoint, _taken, _answer) = server(100).await;
    let first = endpoint.http2(0, None, || dial_counted(&metrics)).await.unwrap();
    let second = endpoint.http2(0, None, || dial_counted(&metrics)).await.unwrap();
    assert_eq!(pooled(&metrics), (1, 0));
    drop(first);
    assert_eq!(pooled(&metrics), (1, 0));
    drop(second);
    assert_eq!(pooled(&metrics), (1, 1));
    endpoint.pools[0].sweep(Instant::now() + Duration::from_secs(3600), Duration::ZERO, None);
    assert_eq!((pooled(&metrics), closed(&metrics, PoolClose::Idle)), ((0, 0), 1));

    drop(endpoint.http2(0, None, || dial_counted(&metrics)).await.unwrap());
    assert_eq!(pooled(&metrics), (1, 1));
    drop(endpoint);
    assert_eq!((pooled(&metrics), closed(&metrics, PoolClose::Retired)), ((0, 0), 1));
}
