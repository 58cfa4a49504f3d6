use std::sync::atomic::AtomicUsize;
use std::time::{Instant, SystemTime};

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
use crate::route::RequestPolicy;
use crate::state::{Connections, Limits, ServiceState, Traffic};

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
    tokio::spawn(async move {
        serve(&worker, Accepted { stream, client: address, destination, at: Instant::now() }).await
    });
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

/// Gives its one port this protocol, and ejects who fails in any way.
fn watched(state: &ServiceState, protocol: Protocol) {
    let mut info = (*state.info().unwrap()).clone();
    info.ports[0].protocol = protocol;
    info.ports[0].traffic = Arc::new(Traffic { outlier_detection: Some(strict()), ..Traffic::default() });
    let how = Balanced { service: Some(&info), ..Balanced::new(1) };
    state.set_endpoints(state.endpoints().unwrap().balanced(&how));
    state.set_info(Some(Arc::new(info)));
}

/// The endpoint there.
fn at(state: &ServiceState, address: SocketAddr) -> Arc<Endpoint> {
    Arc::clone(&state.endpoints().unwrap().at(80, address).unwrap().endpoint)
}

/// Takes connections, hears a word on each and says one, or breaks it off.
async fn opaque_server(answers: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut word = [0; 4];
                drop(stream.read_exact(&mut word).await);
                match answers {
                    true => drop(stream.write_all(&word).await),
                    false => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap(),
                }
            });
        }
    });
    address
}

/// What comes back to a word on a connection of its own.
async fn echoed(worker: &Arc<Worker>, service: &str) -> bool {
    let mut client = calls(worker, service).await;
    let mut word = [0; 4];
    client.write_all(b"ping").await.is_ok() && client.read_exact(&mut word).await.is_ok() && word == *b"ping"
}

#[tokio::test]
async fn a_dead_endpoint_loses_no_opaque_connection_and_is_ejected() {
    let good = opaque_server(true).await;
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let worker = tests::lone_worker("web");
    let state = tests::knows(&worker, "db", &[dead, good]);
    watched(&state, Protocol::Tcp);
    for _ in 0..100 {
        assert!(echoed(&worker, "db").await);
    }
    let (dead, good) = (at(&state, dead), at(&state, good));
    assert!(!dead.standing.is_usable() && good.standing.is_usable());
    assert!(dead.load.latency(worker.proxy.now()).is_some(), "it has failed, and that counts");
    under_way(&good, 0).await;
    under_way(&dead, 0).await;
}

#[tokio::test]
async fn an_endpoint_that_breaks_opaque_connections_off_without_a_word_is_ejected() {
    let (good, bad) = (opaque_server(true).await, opaque_server(false).await);
    let worker = tests::lone_worker("web");
    let state = tests::knows(&worker, "db", &[bad, good]);
    watched(&state, Protocol::Tcp);
    let mut failed = 0;
    for _ in 0..100 {
        failed += usize::from(!echoed(&worker, "db").await);
    }
    assert_eq!(failed, 1);
    assert!(!at(&state, bad).standing.is_usable() && at(&state, good).standing.is_usable());
}

#[tokio::test]
async fn an_opaque_connection_goes_where_there_is_room_for_it() {
    let servers = [opaque_server(true).await, opaque_server(true).await];
    let worker = tests::lone_worker("web");
    let state = tests::knows(&worker, "db", &servers);
    watched(&state, Protocol::Tcp);
    let gate = Arc::clone(at(&state, servers[0]).room.gate().unwrap());
    gate.say(Some(Limits { connections_per_endpoint: 1, ..Limits::default() }), Connections::default());
    let held = [calls(&worker, "db").await, calls(&worker, "db").await];
    for server in servers {
        under_way(&at(&state, server), 1).await;
    }
    assert!(!echoed(&worker, "db").await, "there is none");
    for server in servers {
        let endpoint = at(&state, server);
        assert!(endpoint.standing.is_usable(), "our own limits are not its fault");
        assert_eq!(endpoint.load.in_flight(), 1);
    }
    drop(held);
}

/// A server of HTTP/2 whose connections answer one request, and tell the second that they are over and have not looked at it.
async fn short_lived() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async |mut stream: TcpStream| {
        stream.read_exact(&mut [0; 24]).await?;
        stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await?;
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            stream.read_exact(&mut vec![0; length as usize]).await?;
            match (head[3], head[8]) {
                // HEADERS: `:status` 200 and the end.
                (1, 1) => stream.write_all(b"\0\0\x01\x01\x05\0\0\0\x01\x88").await?,
                // GOAWAY, its last stream being the first.
                (1, _) => {
                    return stream.write_all(b"\0\0\x08\x07\0\0\0\0\0\0\0\0\x01\0\0\0\0").await;
                }
                // SETTINGS that want to be acknowledged.
                (4, _) if head[4] == 0 => stream.write_all(b"\0\0\0\x04\x01\0\0\0\0").await?,
                _ => {}
            }
        }
    };
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream));
        }
    });
    address
}

#[tokio::test]
async fn an_endpoint_is_not_ejected_for_connections_that_end_as_they_should() {
    let worker = tests::lone_worker("web");
    // HTTP/2: GOAWAY crosses a request.
    let server = short_lived().await;
    let state = tests::knows(&worker, "shop", &[server]);
    watched(&state, Protocol::Http);
    let (mut requests, connection) = h2::client::handshake(calls(&worker, "shop").await).await.unwrap();
    tokio::spawn(connection);
    let replayed = || {
        let text = worker.proxy.telemetry.metrics.render();
        let of =
            |line: &str| line.strip_prefix("tulle_replays_total{")?.rsplit(' ').next()?.parse::<u64>().ok();
        text.lines().filter_map(of).sum::<u64>()
    };
    for _ in 0..10 {
        let request = Request::get("http://shop/").version(http::Version::HTTP_2).body(()).unwrap();
        let (response, _) = requests.send_request(request, true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
    }
    assert!(replayed() >= 1);
    assert!(at(&state, server).standing.is_usable());

    // HTTP/1: one that closes after its first answer, and does not say so.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                drop(stream.read(&mut [0; 1024]).await);
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await);
                drop(stream.read(&mut [0; 1024]).await);
            });
        }
    });
    let state = tests::knows(&worker, "cart", &[server]);
    watched(&state, Protocol::Http);
    let before = replayed();
    let mut client = calls(&worker, "cart").await;
    for _ in 0..10 {
        client.write_all(b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(client.read_u8().await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    }
    assert!(replayed() > before);
    assert!(at(&state, server).standing.is_usable());
}

/// A service whose one endpoint reads what it gets, answers with the head that the request's path says and then, for ever, with what
/// comes after it; ejected for any failure, where tries and requests may take so long.
async fn mute(
    worker: &Arc<Worker>,
    name: &str,
    says: &'static [u8],
    more: &'static [u8],
    limit: Duration,
) -> Arc<Endpoint> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                tokio::spawn(
                    async move { while read.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {} },
                );
                drop(write.write_all(says).await);
                while !more.is_empty() && write.write_all(more).await.is_ok() {}
                std::future::pending::<()>().await;
            });
        }
    });
    let state = tests::knows(worker, name, &[address]);
    watched(&state, Protocol::Http);
    let mut info = (*state.info().unwrap()).clone();
    let requests = RequestPolicy {
        backend_timeout: Some(limit),
        request_timeout: Some(2 * limit),
        ..RequestPolicy::default()
    };
    let traffic = Traffic {
        outlier_detection: Some(strict()),
        requests: Some(Box::new(requests)),
        ..Traffic::default()
    };
    info.ports[0].traffic = Arc::new(traffic);
    state.set_info(Some(Arc::new(info)));
    at(&state, address)
}

const LIMIT: Duration = Duration::from_millis(300);
const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_slow_client_is_not_its_endpoints_fault() {
    let worker = tests::lone_worker("web");
    let now = || worker.proxy.now();
    let head = |method: &str, length: usize| {
        format!("{method} / HTTP/1.1\r\nHost: shop\r\nContent-Length: {length}\r\n\r\nhel")
    };
    // It sends its request slower than a try may take.
    let endpoint = mute(&worker, "slow", b"", b"", LIMIT).await;
    let mut client = calls(&worker, "slow").await;
    client.write_all(head("POST", 9).as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 504");
    under_way(&endpoint, 0).await;
    assert!(endpoint.standing.is_usable());
    assert_eq!(endpoint.load.latency(now()), None);
    // Nor if it leaves before that.
    let endpoint = mute(&worker, "leaves", b"", b"", NEVER).await;
    let mut client = calls(&worker, "leaves").await;
    client.write_all(head("POST", 9).as_bytes()).await.unwrap();
    under_way(&endpoint, 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(client);
    under_way(&endpoint, 0).await;
    assert_eq!(endpoint.load.latency(now()), None);
    // What it has sent to its end, and gets no answer to, is another matter.
    let endpoint = mute(&worker, "whole", b"", b"", LIMIT).await;
    let mut client = calls(&worker, "whole").await;
    client.write_all(head("POST", 3).as_bytes()).await.unwrap();
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 504");
    assert!(!endpoint.standing.is_usable() && endpoint.load.latency(now()).is_some());
}

#[tokio::test]
async fn an_answer_that_its_reader_does_not_take_in_time_is_not_its_endpoints_fault() {
    let worker = tests::lone_worker("web");
    let ask = async |name: &str, reads: bool| {
        let mut client = calls(&worker, name).await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
        if reads {
            drop(client.read_to_end(&mut Vec::new()).await);
        }
        client
    };
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\nhello";
    let endless = mute(&worker, "endless", HEAD, &[7; 65_536], LIMIT).await;
    let mut client = ask("endless", false).await;
    under_way(&endless, 1).await;
    // Its time is over long before the client goes on.
    tokio::time::sleep(4 * LIMIT).await;
    drop(client.read_to_end(&mut Vec::new()).await);
    under_way(&endless, 0).await;
    assert!(endless.standing.is_usable());
    // It stops within its answer.
    let stops = mute(&worker, "stops", HEAD, b"", LIMIT).await;
    drop(ask("stops", true).await);
    under_way(&stops, 0).await;
    assert!(!stops.standing.is_usable());
}
