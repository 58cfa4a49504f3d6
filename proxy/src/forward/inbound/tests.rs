//! What becomes of a connection to the application, where others than the mesh may call too.

use std::time::SystemTime;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tulle_certs::TrustDomain;
use tulle_certs::issue::Authority;

use super::*;
use crate::accept::{Accepted, Destination};
use crate::forward::tests;
use crate::policy::{Inbound, InboundSpec};
use crate::state::ObjectName;

/// The proxy of `orders`, permissive, with a port of its application's, and that of `web`.
struct Scene {
    orders: Arc<Worker>,
    web: Arc<Worker>,
    application: TcpListener,
}

impl Scene {
    async fn new(protocol: Protocol) -> Self {
        let day = Duration::from_secs(86_400);
        let authority = Authority::generate(&TrustDomain::default(), day, SystemTime::now()).unwrap();
        let (orders, web) =
            (tests::worker(&authority, "orders", None), tests::worker(&authority, "web", None));
        let inbound = Inbound::new(InboundSpec {
            workload: ObjectName::new("default", "orders"),
            mode: Mode::Permissive,
            ports: vec![(80, PortPolicy { protocol, mode: Mode::Permissive })],
            rules: Vec::new(),
        });
        orders.proxy.store.update(|snapshot| snapshot.inbound = Some(Arc::new(inbound)));
        let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { orders, web, application }
    }

    /// A client's connection to the proxy.
    async fn connect(&self) -> TcpStream {
        let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(near.local_addr().unwrap()).await.unwrap();
        let (stream, from) = near.accept().await.unwrap();
        let (worker, application) = (Arc::clone(&self.orders), self.application.local_addr().unwrap());
        let destination = Destination::Application { application, port: 80 };
        tokio::spawn(async move { serve(&worker, Accepted { stream, client: from, destination }).await });
        client
    }

    /// The mesh's TLS with the proxy.
    async fn meshed(&self) -> Io {
        let creds = self.web.proxy.creds.load_full().unwrap();
        let peer = self.orders.proxy.creds.load_full().unwrap().id().clone();
        tls::connect(self.connect().await, &creds, &peer, Alpn::Tcp).await.unwrap()
    }

    fn remembered(&self) -> Option<First> {
        self.orders.proxy.spoken.first(self.application.local_addr().unwrap())
    }

    /// What the application hears first of the next connection; it says `greeting` before.
    async fn hears(&self, greeting: &[u8]) -> Vec<u8> {
        let (mut stream, _) = self.application.accept().await.unwrap();
        stream.write_all(greeting).await.unwrap();
        let mut heard = vec![0; 64];
        let length = stream.read(&mut heard).await.unwrap();
        heard.truncate(length);
        heard
    }
}

#[tokio::test]
async fn r01_that_another_proxy_speaks_first_says_nothing_of_who_speaks_inside() {
    let scene = Scene::new(Protocol::Detect).await;
    for seen in [None, Some(First::Server)] {
        let mut client = scene.meshed().await;
        let (mut application, _) = scene.application.accept().await.unwrap();
        assert_eq!(scene.remembered(), seen, "else it is opened a second late");
        application.write_all(b"220 hi").await.unwrap();
        let mut greeting = [0; 6];
        client.read_exact(&mut greeting).await.unwrap();
        assert_eq!((&greeting, scene.remembered()), (b"220 hi", Some(First::Server)));
    }
}

#[tokio::test]
async fn r01_on_a_port_declared_opaque_the_first_byte_is_not_waited_after_nor_taken_for_http() {
    let scene = Scene::new(Protocol::Tcp).await;
    // Less than a request line, or all of one: the same.
    for said in [&b"PING"[..], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut client = scene.connect().await;
        client.write_all(said).await.unwrap();
        let before = Instant::now();
        assert_eq!(scene.hears(b"").await, said);
        assert!(before.elapsed() < scene.orders.proxy.settings.detect_timeout, "{:?}", before.elapsed());
        drop(client);
        // Late: on the one stream that was opened.
        let mut client = scene.connect().await;
        let late = async {
            let mut greeting = [0; 6];
            client.read_exact(&mut greeting).await.unwrap();
            client.write_all(said).await.unwrap();
        };
        let (heard, ()) = tokio::join!(scene.hears(b"220 hi"), late);
        assert_eq!(heard, said);
    }
}

#[tokio::test]
async fn a_proxy_that_leaves_amid_its_handshake_is_not_refused() {
    let scene = Scene::new(Protocol::Detect).await;
    let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = std::net::TcpStream::connect(near.local_addr().unwrap()).unwrap();
    let (stream, from) = near.accept().await.unwrap();
    let creds = scene.web.proxy.creds.load_full().unwrap();
    let peer = scene.orders.proxy.creds.load_full().unwrap().id().clone();
    let config = creds.client(&peer, Alpn::Tcp);
    let mut session = rustls::ClientConnection::new(config, tulle_certs::creds::server_name()).unwrap();
    session.write_tls(&mut &client).unwrap();
    drop(client);
    let application = scene.application.local_addr().unwrap();
    let destination = Destination::Application { application, port: 80 };
    serve(&scene.orders, Accepted { stream, client: from, destination }).await;
    let metrics = scene.orders.proxy.telemetry.metrics.render();
    let refused = metrics.lines().filter(|line| line.contains("tls_malformed") && !line.ends_with(" 0"));
    assert_eq!(refused.collect::<Vec<_>>(), Vec::<&str>::new());
}
