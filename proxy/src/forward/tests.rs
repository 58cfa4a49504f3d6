//! The whole way of a request, through both proxies with mTLS between them, in one thread: what it allocates.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tulle_certs::issue::Authority;
use tulle_certs::key::csr;
use tulle_certs::{Creds, PrivateKey, SpiffeId, TrustDomain};

use super::{OwnEndpoints, Proxy, Settings, Worker, inbound, outbound};
use crate::accept::{Accepted, Destination};
use crate::config::Config;
use crate::drain;
use crate::endpoint::EndpointSet;
use crate::policy::{Inbound, InboundSpec, PortPolicy};
use crate::route::{Backend, Route, RouteKind, RouteRule, Routes, Rule, Table};
use crate::state::{
    EndpointInfo, EndpointsInfo, Mode, ObjectName, Peer, Protocol, ServiceInfo, ServicePort, ServiceState,
    Store,
};
use crate::telemetry::Telemetry;
use crate::telemetry::lines::LineOutput;
use crate::testing::allocations;

pub(super) fn orders() -> ObjectName {
    ObjectName::new("default", "orders")
}

/// What `account` proves who it is with, for an hour from `now` on.
pub(super) fn creds(authority: &Authority, account: &str, now: SystemTime) -> Creds {
    let key = PrivateKey::generate().unwrap();
    let id = SpiffeId::new(authority.trust_domain(), "default", account).unwrap();
    let issued = authority.issue(&csr(&key, None).unwrap(), &id, Duration::from_secs(3600), now).unwrap();
    Creds::new(issued.chain, key, Arc::new(authority.bundle().clone()), now).unwrap()
}

/// A worker of the proxy of `account`, with nothing in its store.
pub(super) fn worker(authority: &Authority, account: &str, access: Option<LineOutput>) -> Arc<Worker> {
    let creds = creds(authority, account, SystemTime::now());
    let config = Config::default();
    let settings = Settings {
        connect_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(60),
        detect_timeout: Duration::from_secs(1),
        http1: Default::default(),
        http2: Default::default(),
        opaque_ports: config.opaque_ports.clone(),
        mark: None,
        namespace: None,
        probes: Vec::new(),
        client_cert: config.inbound_client_cert_header,
    };
    let (store, _questions) = Store::new(Duration::from_secs(1));
    let telemetry = Telemetry::with_access_output(&config, 1, None, access);
    // For as long as the process: a signal that is gone begins the drain.
    let (signal, drain) = drain::channel();
    Box::leak(Box::new(signal));
    let creds = Arc::new(ArcSwapOption::from_pointee(creds));
    let workload = Some(format!("default/{account}"));
    let (store, own) = (Arc::new(store), OwnEndpoints::default());
    Worker::new(0, Arc::new(Proxy::new(store, creds, settings, telemetry, drain, own, workload)))
}

/// A worker of a proxy that is alone in its mesh.
pub(super) fn lone_worker(account: &str) -> Arc<Worker> {
    let day = Duration::from_secs(86_400);
    let authority = Authority::generate(&TrustDomain::default(), day, SystemTime::now()).unwrap();
    worker(&authority, account, None)
}

/// Gives a proxy a service without routes, whose port 80 is HTTP's, with these endpoints outside the mesh.
pub(super) fn knows(worker: &Worker, service: &str, endpoints: &[SocketAddr]) -> Arc<ServiceState> {
    let name = ObjectName::new("default", service);
    let state = Arc::new(ServiceState::new(name.clone()));
    state.set_info(Some(Arc::new(ServiceInfo {
        name: name.clone(),
        addresses: Vec::new(),
        ports: vec![ServicePort {
            port: 80,
            name: String::new(),
            protocol: Protocol::Http,
            traffic: Arc::default(),
        }],
    })));
    let endpoints = endpoints.iter().map(|addr| EndpointInfo {
        service_port: 80,
        addr: *addr,
        peer: Peer::Plaintext,
        workload: None,
        zone: None,
        ready: true,
        weight: 100,
    });
    let endpoints = EndpointsInfo { name: name.clone(), endpoints: endpoints.collect() };
    state.set_endpoints(EndpointSet::apply(None, &endpoints, 1));
    let routes = Routes {
        client_namespace: "default".into(),
        service: name.clone(),
        routes: Vec::new(),
        streams: Vec::new(),
    };
    state.set_routes(Some(Arc::new(Table::new(routes))));
    worker.proxy.store.update(|snapshot| {
        snapshot.services.insert(name, Arc::clone(&state));
    });
    state
}

/// Gives a proxy the service `orders`, whose one endpoint is `address`.
pub(super) fn knows_orders(worker: &Worker, authority: &Authority, address: SocketAddr) {
    let id = SpiffeId::new(authority.trust_domain(), "default", "orders").unwrap();
    let service = ServiceState::new(orders());
    service.set_info(Some(Arc::new(ServiceInfo {
        name: orders(),
        addresses: Vec::new(),
        ports: vec![ServicePort {
            port: 80,
            name: String::new(),
            protocol: Protocol::Http,
            traffic: Arc::default(),
        }],
    })));
    let endpoint = EndpointInfo {
        service_port: 80,
        addr: address,
        peer: Peer::Mesh(id),
        workload: None,
        zone: None,
        ready: true,
        weight: 100,
    };
    let endpoints = EndpointsInfo { name: orders(), endpoints: vec![endpoint] };
    service.set_endpoints(EndpointSet::apply(None, &endpoints, 1));
    let backend = Backend {
        service: orders(),
        port: 80,
        label: "default/orders:80".into(),
        weight: 1,
        invalid: None,
        filters: None,
    };
    let rule = Rule {
        name: "".into(),
        route: ObjectName::new("default", "split"),
        label: "default/split".into(),
        kind: RouteKind::Http,
        invalid: None,
        filters: None,
        backends: [backend].into(),
        requests: None,
        session: None,
    };
    let rules = vec![RouteRule { matches: Vec::new(), rule: Arc::new(rule) }];
    let route = Route { name: ObjectName::new("default", "split"), ports: vec![], hostnames: vec![], rules };
    let routes = Routes {
        client_namespace: "default".into(),
        service: orders(),
        routes: vec![route],
        streams: Vec::new(),
    };
    service.set_routes(Some(Arc::new(Table::new(routes))));
    worker.proxy.store.update(|snapshot| {
        snapshot.services.insert(orders(), Arc::new(service));
    });
}

fn lets_all_in(worker: &Worker) {
    let inbound = Inbound::new(
        InboundSpec {
            workload: orders(),
            mode: Mode::Strict,
            ports: vec![(80, PortPolicy { protocol: Protocol::Http, mode: Mode::Strict })],
            rules: Vec::new(),
            policies: Vec::new(),
            trust_domain: None,
            unspoken: Default::default(),
            rate_limits: Vec::new(),
            connection_ages: Vec::new(),
            access_logs: Vec::new(),
            samplings: Vec::new(),
            access_log: Default::default(),
            sampling: Default::default(),
            external: Vec::new(),
            authentications: Vec::new(),
        },
        Instant::now(),
    );
    worker.proxy.store.update(|snapshot| snapshot.inbound = Some(Arc::new(inbound)));
}

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nDate: now\r\nContent-Length: 2\r\n\r\nok";

/// An application, which allocates nothing for a request.
async fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut space = [0; 4096];
                let mut filled = 0;
                loop {
                    filled += stream.read(&mut space[filled..]).await.unwrap();
                    if space[..filled].ends_with(b"\r\n\r\n") {
                        stream.write_all(ANSWER).await.unwrap();
                        filled = 0;
                    }
                }
            });
        }
    });
    address
}

/// A client of `web`, whose proxy reaches that of `orders`, before `application`.
async fn client(application: SocketAddr, access: impl Fn() -> Option<LineOutput>) -> TcpStream {
    let authority =
        Authority::generate(&TrustDomain::default(), Duration::from_secs(86_400), SystemTime::now()).unwrap();
    let (web, server) = (worker(&authority, "web", access()), worker(&authority, "orders", access()));
    let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
    knows_orders(&web, &authority, far.local_addr().unwrap());
    lets_all_in(&server);
    let client = TcpStream::connect(near.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    tokio::spawn(async move {
        let (stream, client) = near.accept().await.unwrap();
        let destination = Destination::Service { service: orders(), port: 80 };
        outbound::serve(&web, Accepted { stream, client, destination, at: Instant::now() }).await;
    });
    tokio::spawn(async move {
        let (stream, client) = far.accept().await.unwrap();
        let destination = Destination::Application { application, port: 80 };
        inbound::serve(&server, Accepted { stream, client, destination, at: Instant::now() }).await;
    });
    client
}

/// Allocations of each of so many requests.
async fn requests(client: &mut TcpStream, times: usize) -> Vec<usize> {
    let request =
        b"GET /orders/1?a=b HTTP/1.1\r\nHost: orders.default\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\
                    Accept-Encoding: gzip\r\nCookie: a=b\r\n\r\n";
    let mut space = vec![0; ANSWER.len()];
    let mut counts = Vec::with_capacity(times);
    for _ in 0..times {
        let before = allocations();
        client.write_all(request).await.unwrap();
        client.read_exact(&mut space).await.unwrap();
        assert!(space.ends_with(b"ok"), "{}", String::from_utf8_lossy(&space));
        counts.push(allocations() - before);
    }
    counts
}

/// What a request may allocate on its way through both proxies: 10, of which the codec takes 2 in each, and the record one.
/// Two more are a reader's business; three are to be told why.
const MOST: usize = 12;

#[tokio::test]
async fn a_request_through_both_proxies_allocates_little() {
    let file = tempfile::tempfile().unwrap();
    for logged in [false, true] {
        let access = || logged.then(|| LineOutput::new(file.try_clone().unwrap()));
        let mut client = client(application().await, access).await;
        let counts = requests(&mut client, 60).await;
        // The first ones dial and find buffers too small; the log's queue doubles now and then.
        let mut usual = counts[20..].to_vec();
        usual.sort_unstable();
        assert!(usual[usual.len() / 2] <= MOST, "logged: {logged}: {counts:?}");
    }
}

/// Behind both proxies it is the end of a connection that may be half-closed, but for the one between them.
#[tokio::test]
async fn the_application_learns_at_once_that_who_asked_is_gone() {
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = client(application.local_addr().unwrap(), || None).await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
    let (mut asked, _) = application.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        assert_ne!(asked.read_buf(&mut request).await.unwrap(), 0);
    }
    // It resets.
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let ended = tokio::time::timeout(Duration::from_secs(5), asked.read(&mut [0; 1])).await;
    assert!(!matches!(ended.expect("it goes on being asked"), Ok(1..)));
}
