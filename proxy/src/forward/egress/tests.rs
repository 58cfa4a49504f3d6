//! What becomes of a connection to an address that the mesh does not know, before anybody there hears of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tulle_certs::TrustDomain;
use tulle_certs::issue::Authority;

use super::NAMED;
use crate::accept::{Accepted, Destination};
use crate::forward::{Worker, outbound, tests};
use crate::policy::{Action, Egress, EgressRule, EgressSpec, Names};
use crate::state::KnownAddress;
use crate::telemetry::metrics::{EgressLabels, EgressProtocol, VerdictKind};

/// A proxy's worker, and a listener outside the mesh.
struct Border {
    worker: Arc<Worker>,
    outside: std::net::TcpListener,
    to: SocketAddr,
}

impl Border {
    async fn new(policy: Option<EgressSpec>) -> Self {
        let day = Duration::from_secs(86_400);
        let authority = Authority::generate(&TrustDomain::default(), day, SystemTime::now()).unwrap();
        let worker = tests::worker(&authority, "web", None);
        let outside = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        outside.set_nonblocking(true).unwrap();
        let to = outside.local_addr().unwrap();
        worker.proxy.store.update(|snapshot| {
            snapshot.addresses.insert(to.ip(), Arc::new(KnownAddress::new(None, 0)));
            snapshot.egress = policy.map(|policy| Arc::new(Egress::new(policy)));
        });
        Self { worker, outside, to }
    }

    /// A connection of the application to the listener outside.
    async fn connect(&self) -> TcpStream {
        let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let application = TcpStream::connect(near.local_addr().unwrap()).await.unwrap();
        let (stream, client) = near.accept().await.unwrap();
        let (worker, destination) = (Arc::clone(&self.worker), Destination::Address(self.to));
        tokio::spawn(async move {
            outbound::serve(&worker, Accepted { stream, client, destination, at: Instant::now() }).await
        });
        application
    }

    /// Nobody has come there.
    fn is_untouched(&self) {
        let came = self.outside.accept();
        assert_eq!(came.map(drop).map_err(|error| error.kind()), Err(std::io::ErrorKind::WouldBlock));
    }
}

/// By TLS server name or nothing.
fn only(name: &str) -> EgressSpec {
    let rule = EgressRule {
        name: "shop/p/r".into(),
        action: Action::Allow,
        networks: Vec::new(),
        ports: Vec::new(),
        names: Names::Sni(vec![name.parse().unwrap()]),
    };
    EgressSpec { action: Action::Deny, action_name: "shop/p".into(), rules: vec![rule] }
}

/// A ClientHello that asks for `name`.
fn hello(name: &'static str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    #[allow(clippy::disallowed_methods, reason = "an application's own TLS")]
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

async fn ended(mut stream: TcpStream) -> Result<usize, std::io::ErrorKind> {
    stream.read(&mut [0; 16]).await.map_err(|error| error.kind())
}

#[tokio::test(start_paused = true)]
async fn r18_without_a_policy_nothing_leaves_and_it_is_said_why() {
    let border = Border::new(None).await;
    let mut http = border.connect().await;
    http.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    http.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("x-tulle-error: policy_unavailable"),
        "{answer}"
    );
    let mut tls = border.connect().await;
    tls.write_all(&hello("a.example")).await.unwrap();
    assert_eq!(ended(tls).await, Err(std::io::ErrorKind::ConnectionReset));
    border.is_untouched();
    assert!(border.worker.proxy.connections.is_empty());
}

#[tokio::test]
async fn r18_a_request_that_names_two_hosts_is_not_judged_by_one_and_served_by_the_other() {
    let mut policy = only("good.example");
    policy.rules[0].names = Names::Host(vec!["good.example".parse().unwrap()]);
    let border = Border::new(Some(policy)).await;
    let mut http = border.connect().await;
    let request = b"GET http://good.example/ HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n";
    http.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(30), http.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(ended.is_ok(), "not answered and closed within 30 s; so far: {answer:?}");
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains("x-tulle-error: malformed_request"),
        "{answer}"
    );
    border.is_untouched();
}

#[tokio::test(start_paused = true)]
async fn r18_a_client_that_is_late_is_judged_by_its_name() {
    let border = Border::new(Some(only("a.example"))).await;
    for (name, allowed) in [("a.example", true), ("b.example", false)] {
        let mut tls = border.connect().await;
        tokio::time::sleep(NAMED - Duration::from_secs(1)).await;
        let hello = hello(name);
        tls.write_all(&hello).await.unwrap();
        if allowed {
            let outside = TcpListener::from_std(border.outside.try_clone().unwrap()).unwrap();
            let (mut server, _) = outside.accept().await.unwrap();
            let mut came = vec![0; hello.len()];
            server.read_exact(&mut came).await.unwrap();
            assert_eq!(came, hello);
        } else {
            assert_eq!(ended(tls).await, Err(std::io::ErrorKind::ConnectionReset));
            border.is_untouched();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r18_a_client_that_names_nobody_is_denied_after_a_while() {
    let border = Border::new(Some(only("a.example"))).await;
    let silent = border.connect().await;
    let before = tokio::time::Instant::now();
    assert_eq!(ended(silent).await, Err(std::io::ErrorKind::ConnectionReset));
    assert!(before.elapsed() >= NAMED, "{:?}", before.elapsed());
    border.is_untouched();
}

/// Anybody may leave, by that rule.
fn all() -> EgressSpec {
    EgressSpec { action: Action::Allow, action_name: "shop/all".into(), rules: Vec::new() }
}

#[tokio::test]
async fn r18_a_client_that_is_late_with_its_name_is_counted_once() {
    let border = Border::new(Some(all())).await;
    let outside = TcpListener::from_std(border.outside.try_clone().unwrap()).unwrap();
    let mut late = border.connect().await;
    let (mut early, _) = outside.accept().await.unwrap();
    late.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n").await.unwrap();
    assert_eq!(early.read(&mut [0; 16]).await.unwrap(), 0, "unused");
    let (mut server, _) = outside.accept().await.unwrap();
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    late.read_to_end(&mut Vec::new()).await.unwrap();
    let count = |protocol, name| {
        let labels = EgressLabels { verdict: VerdictKind::Allow, protocol, name };
        border.worker.metrics.egress(&labels).get()
    };
    assert_eq!((count(EgressProtocol::Tcp, ""), count(EgressProtocol::Http, "a.example")), (0, 1));
    // What is used counts.
    let mut silent = border.connect().await;
    let (mut server, _) = outside.accept().await.unwrap();
    server.write_all(b"220 hi").await.unwrap();
    silent.read_exact(&mut [0; 6]).await.unwrap();
    assert_eq!(count(EgressProtocol::Tcp, ""), 1);
}

#[tokio::test]
async fn r18_what_is_silent_on_both_sides_ends_with_its_permission() {
    let border = Border::new(Some(all())).await;
    let outside = TcpListener::from_std(border.outside.try_clone().unwrap()).unwrap();
    let silent = border.connect().await;
    let _server = outside.accept().await.unwrap();
    let denied = Egress::new(EgressSpec { action: Action::Deny, ..all() });
    border.worker.proxy.connections.rejudge_egress(&denied);
    assert_eq!(ended(silent).await, Err(std::io::ErrorKind::ConnectionReset));
    assert!(border.worker.proxy.connections.is_empty());
}
