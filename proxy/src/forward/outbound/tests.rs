use std::sync::atomic::AtomicUsize;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tulle_certs::TrustDomain;
use tulle_certs::issue::Authority;

use super::super::tests;
use super::*;
use crate::accept::Destination;
use crate::balance::{Load, Outliers};
use crate::endpoint::How as Balanced;
use crate::state::{Connections, Limits, Traffic};

fn of<A, B, F: Future>(_: impl Fn(A, B) -> F) -> usize {
    size_of::<F>()
}

/// It is copied when it is made, and touched all over while it runs.
#[test]
fn a_requests_future_is_small() {
    let size = of(Connection::request);
    assert!(size <= 8192, "{size} bytes");
}

/// A server of HTTP/2 that answers with what it is sent, or refuses all; how much it was asked for.
async fn server(refuses: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((mut request, mut reply))) = connection.accept().await {
                    seen.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(async move {
                        // By then the body is on its way.
                        let data = request.body_mut().data().await;
                        if refuses {
                            return reply.send_reset(h2::Reason::REFUSED_STREAM);
                        }
                        let mut answer = reply.send_response(Response::new(()), false).unwrap();
                        answer.send_data(data.unwrap().unwrap(), true).unwrap();
                    });
                }
            });
        }
    });
    (address, asked)
}

/// A connection of the worker's application to a service.
async fn calls(worker: &Arc<Worker>, service: &str) -> TcpStream {
    let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(near.local_addr().unwrap()).await.unwrap();
    let (stream, address) = near.accept().await.unwrap();
    let destination = Destination::Service { service: ObjectName::new("default", service), port: 80 };
    let worker = Arc::clone(worker);
    tokio::spawn(async move { serve(&worker, Accepted { stream, client: address, destination }).await });
    client
}

#[tokio::test]
async fn a_post_that_a_server_refuses_unread_goes_to_another_with_its_body() {
    let ((refusing, refused), (other, answered)) = (server(true).await, server(false).await);
    let worker = tests::lone_worker("web");
    tests::knows(&worker, "shop", &[refusing, other]);
    let client = calls(&worker, "shop").await;
    let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    let mut sent = 0;
    while refused.load(Ordering::Relaxed) == 0 || sent < 10 {
        let request = Request::post("http://shop/").version(http::Version::HTTP_2).body(()).unwrap();
        let (response, mut upload) = requests.send_request(request, false).unwrap();
        upload.send_data(Bytes::from_static(b"hello"), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200, "{:?}", response.headers());
        assert_eq!(response.into_body().data().await.unwrap().unwrap(), "hello");
        sent += 1;
        assert_eq!(answered.load(Ordering::Relaxed), sent, "none is served twice");
        assert!(sent < 1000, "it is never asked");
    }
}

/// Ejects at the first failure of any kind.
fn strict() -> Outliers {
    Outliers {
        consecutive: [1; 4],
        grpc_codes: 1 << 14,
        success_rate: None,
        failure_percentage: None,
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(3600),
        maximum_ejection: Duration::from_secs(3600),
        maximum_ejected_percent: 100,
    }
}

#[tokio::test]
async fn an_endpoint_is_not_ejected_nor_thought_slower_for_our_own_expired_certificate() {
    let day = Duration::from_secs(86_400);
    let authority =
        Authority::generate(&TrustDomain::default(), 9 * day, SystemTime::now() - 3 * day).unwrap();
    let worker = tests::worker(&authority, "web", None);
    let expired = tests::creds(&authority, "web", SystemTime::now() - day);
    worker.proxy.creds.store(Some(Arc::new(expired)));
    let (server, _) = server(false).await;
    tests::knows_orders(&worker, &authority, server);
    let state = Arc::clone(&worker.proxy.store.load().services[&tests::orders()]);
    let mut info = (*state.info().unwrap()).clone();
    info.ports[0].traffic = Arc::new(Traffic { outlier_detection: Some(strict()), ..Traffic::default() });
    let how = Balanced { service: Some(&info), ..Balanced::new(1) };
    state.set_endpoints(state.endpoints().unwrap().balanced(&how));
    let mut client = calls(&worker, "orders").await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("x-tulle-error: not_ready") && answer.contains("has expired"), "{answer}");
    let endpoints = state.endpoints().unwrap();
    let endpoint = &endpoints.port(80).unwrap().members[0].endpoint;
    assert!(endpoint.group.as_ref().unwrap().is_watched() && endpoint.standing.is_usable());
    assert_eq!((endpoint.load.latency(worker.proxy.now()), endpoint.load.in_flight()), (None, 0));
}

/// Until so many requests are under way there.
async fn under_way(endpoint: &Endpoint, requests: u32) {
    while endpoint.load.in_flight() != requests {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn an_endpoint_is_not_thought_slower_for_who_leaves_while_our_own_limit_keeps_him_from_it() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let worker = tests::lone_worker("web");
    let state = tests::knows(&worker, "shop", &[silent.local_addr().unwrap()]);
    let endpoints = state.endpoints().unwrap();
    let endpoint = &endpoints.port(80).unwrap().members[0].endpoint;
    let limits = Limits { connections: 1, queue_timeout: Duration::from_secs(3600), ..Limits::default() };
    endpoint.room.gate().unwrap().say(Some(limits), Connections::default());
    let latency = || endpoint.load.latency(worker.proxy.now());
    let mut clients = Vec::new();
    for requests in 1..=2 {
        let mut client = calls(&worker, "shop").await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
        under_way(endpoint, requests).await;
        clients.push(client);
    }
    while !endpoint.room.is_short() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Longer than an endpoint that is not known is thought to take.
    tokio::time::sleep(Duration::from_millis(60)).await;
    let leaves =
        |client: TcpStream| socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    leaves(clients.remove(1));
    under_way(endpoint, 1).await;
    assert_eq!(latency(), None);
    // What was sent there and has got no answer is another matter.
    leaves(clients.remove(0));
    under_way(endpoint, 0).await;
    assert!(latency().is_some_and(|latency| latency > 5e7), "{:?}", latency());
}

#[tokio::test]
async fn an_endpoint_is_not_thought_slower_for_the_time_that_our_own_limit_keeps_a_request_from_it() {
    const ASKED: &[u8] = b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let worker = tests::lone_worker("web");
    let state = tests::knows(&worker, "shop", &[server.local_addr().unwrap()]);
    let endpoints = state.endpoints().unwrap();
    let endpoint = &endpoints.port(80).unwrap().members[0].endpoint;
    let limits =
        Limits { connections_per_endpoint: 1, queue_timeout: Duration::from_secs(3600), ..Limits::default() };
    endpoint.room.gate().unwrap().say(Some(limits), Connections::default());
    let latency = || endpoint.load.latency(worker.proxy.now()).unwrap();
    // One that is twice as slow as a second.
    let slow = Load::new();
    slow.start(0);
    slow.finish(worker.proxy.now(), 2_000_000_000, true);
    let mut clients = [calls(&worker, "shop").await, calls(&worker, "shop").await];
    clients[0].write_all(ASKED).await.unwrap();
    let (mut served, _) = server.accept().await.unwrap();
    let mut head = [0; 4096];
    assert!(served.read(&mut head).await.unwrap() > 0);
    // Its head is there, and its body goes on: the connection is not free.
    served.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no").await.unwrap();
    let mut some = [0; 17];
    clients[0].read_exact(&mut some).await.unwrap();
    assert_eq!(&some, b"HTTP/1.1 200 OK\r\n");
    let before = latency();
    clients[1].write_all(ASKED).await.unwrap();
    while !endpoint.room.is_short() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let now = worker.proxy.now();
    let (cost, slow) = (endpoint.load.cost(now, 1.0), slow.cost(now, 0.5));
    assert!(cost.is_less_than(slow), "it owes no answer: {cost:?} {slow:?}");
    served.write_all(b"k").await.unwrap();
    assert!(served.read(&mut head).await.unwrap() > 0);
    served.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    clients[1].read_exact(&mut some).await.unwrap();
    assert_eq!(&some, b"HTTP/1.1 200 OK\r\n");
    // With the three seconds it would be more.
    assert!(latency() < before + 400e6, "{before} → {}", latency());
}
