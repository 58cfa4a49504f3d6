//! What becomes of a connection to the application, where others than the mesh may call too.

use std::time::{Instant, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tulle_certs::issue::Authority;
use tulle_certs::{Alpn, TrustDomain};

use super::*;
use crate::accept::{Accepted, Destination};
use crate::forward::tests;
use crate::limit::{Key, Rate, RateLimit};
use crate::policy::{Allow, Inbound, InboundSpec, Unspoken};
use crate::state::{First, ObjectName};
use crate::tls;

/// The proxy of `orders`, permissive, with a port of its application's, and that of `web`.
struct Scene {
    orders: Arc<Worker>,
    web: Arc<Worker>,
    application: TcpListener,
}

impl Scene {
    async fn new(protocol: Protocol) -> Self {
        Self::limited(protocol, Vec::new()).await
    }

    async fn limited(protocol: Protocol, rate_limits: Vec<RateLimit>) -> Self {
        let day = Duration::from_secs(86_400);
        let authority = Authority::generate(&TrustDomain::default(), day, SystemTime::now()).unwrap();
        let (orders, web) =
            (tests::worker(&authority, "orders", None), tests::worker(&authority, "web", None));
        let inbound = Inbound::new(
            InboundSpec {
                workload: ObjectName::new("default", "orders"),
                mode: Mode::Permissive,
                ports: vec![(80, PortPolicy { protocol, mode: Mode::Permissive })],
                rules: Vec::new(),
                policies: Vec::new(),
                trust_domain: None,
                unspoken: Default::default(),
                rate_limits,
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
        tokio::spawn(async move {
            serve(&worker, Accepted { stream, client: from, destination, at: Instant::now() }).await
        });
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
async fn r16_what_goes_over_a_limit_is_answered_here_and_the_connection_serves_on() {
    let rate = Rate { requests: 2, per: Duration::from_secs(3600), burst: 2 };
    let limit = RateLimit {
        name: "default/web/all".into(),
        headers: Vec::new(),
        key: Key::All,
        rate,
        overrides: Vec::new(),
        ports: vec![80],
        dry_run: false,
    };
    let scene = Scene::limited(Protocol::Http, vec![limit]).await;
    let mut client = scene.connect().await;
    let serve = async {
        let (mut stream, _) = scene.application.accept().await.unwrap();
        let mut heard = [0; 1024];
        while stream.read(&mut heard).await.unwrap() > 0 {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        }
    };
    let ask = async {
        let mut answers = Vec::new();
        for _ in 0..3 {
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let mut answer = vec![0; 4096];
            let length = client.read(&mut answer).await.unwrap();
            answers.push(String::from_utf8_lossy(&answer[..length]).into_owned());
        }
        answers
    };
    let answers = tokio::select! {
        answers = ask => answers,
        () = serve => panic!("the connection to the application has ended"),
    };
    assert!(answers[..2].iter().all(|answer| answer.starts_with("HTTP/1.1 200 ")), "{answers:?}");
    let refused = &answers[2];
    for part in [
        "HTTP/1.1 429 ",
        "\r\nretry-after: 1",
        "\r\nratelimit: \"default/web/all\";r=0;t=1",
        "\r\nratelimit-policy: \"default/web/all\";q=2;w=3600\r\n",
        "\r\nx-tulle-error: rate_limited\r\n",
    ] {
        assert!(refused.contains(part), "{part:?} in {refused}");
    }
    let counted = scene.orders.proxy.telemetry.metrics.render();
    for (outcome, count) in [("allowed", 2), ("refused", 1)] {
        let line = format!(
            "tulle_rate_limit_requests_total{{limit=\"default/web/all\",outcome=\"{outcome}\"}} {count}\n"
        );
        assert!(counted.contains(&line), "{line}");
    }
}

/// All that comes back for a request that asks for the connection's end.
async fn answer(mut client: impl AsyncRead + AsyncWrite + Unpin) -> String {
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn of_the_networks_that_are_meant_and_the_rule_that_lets_nobody_in_only_the_mesh_is_told() {
    let scene = Scene::new(Protocol::Http).await;
    let spec = scene.orders.proxy.store.load().inbound.as_ref().unwrap().spec().clone();
    let unspoken = Unspoken { networks: vec!["192.0.2.0/24".parse().unwrap()], audited: false };
    let nobody = Allow { name: "default/p/none".into(), ports: Vec::new(), identities: Vec::new() };
    for (spec, parts) in [
        (
            InboundSpec { unspoken, ..spec.clone() },
            ["127.0.0.1 is in none of the networks", "the Mesh's spec.networks"],
        ),
        (
            InboundSpec { rules: vec![nobody], ..spec },
            ["the rule default/p/none lets nobody in", "port 80 of"],
        ),
    ] {
        let inbound = Inbound::new(spec, Instant::now());
        scene.orders.proxy.store.update(|snapshot| snapshot.inbound = Some(Arc::new(inbound)));
        let told = answer(scene.meshed().await).await;
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
        let stranger = answer(scene.connect().await).await;
        for answer in [&told, &stranger] {
            assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
            assert!(answer.contains("\r\nx-tulle-error: policy_denied\r\n"), "{answer}");
        }
        let (_, body) = stranger.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "policy does not allow this client, or what it asks\n");
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
    serve(&scene.orders, Accepted { stream, client: from, destination, at: Instant::now() }).await;
    let metrics = scene.orders.proxy.telemetry.metrics.render();
    let refused = metrics.lines().filter(|line| line.contains("tls_malformed") && !line.ends_with(" 0"));
    assert_eq!(refused.collect::<Vec<_>>(), Vec::<&str>::new());
}

#[tokio::test]
async fn bytes_that_were_let_in_are_told_of_once_when_a_change_of_policy_has_them_audited() {
    let scene = Scene::new(Protocol::Tcp).await;
    let proxy = &scene.orders.proxy;
    let spec = proxy.store.load().inbound.as_ref().unwrap().spec().clone();
    let mut client = scene.connect().await;
    let (mut application, _) = scene.application.accept().await.unwrap();
    application.write_all(b"220 hi").await.unwrap();
    // Once it is here, it was judged.
    client.read_exact(&mut [0; 6]).await.unwrap();
    let told = || {
        scene.orders.sweep();
        let metrics = proxy.telemetry.metrics.render();
        let audited =
            |line: &&str| line.starts_with("tulle_policy_verdicts_total{verdict=\"audit\",rule=\"default\"");
        let line = metrics.lines().find(audited);
        line.map(|line| line.rsplit_once(' ').unwrap().1.to_owned())
    };
    assert_eq!(told(), None);
    let change = |audited| {
        let unspoken = Unspoken { networks: Vec::new(), audited };
        let inbound = Arc::new(Inbound::new(InboundSpec { unspoken, ..spec.clone() }, Instant::now()));
        proxy.store.update(|snapshot| snapshot.inbound = Some(Arc::clone(&inbound)));
        assert_eq!(proxy.connections.rejudge(&inbound), 0);
    };
    // Twice: another change that leaves it so is nothing new.
    for _ in 0..2 {
        change(true);
        assert_eq!(told().as_deref(), Some("1"));
    }
    change(false);
    change(true);
    assert_eq!(told().as_deref(), Some("2"), "it ended meanwhile");
}
