//! What must not pass at the gRPC port, and must disturb nobody who is let in.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use prost::Name;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Streaming};
use tulle_api::ca::IstioCertificateRequest;
use tulle_api::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tulle_api::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tulle_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use tulle_api::v1::proxy_client::ProxyClient;
use tulle_api::v1::{self, RegisteredPort, RegisteredService, Registration, ReportRequest, report_request};
use tulle_certs::issue::{Authority, ROOT_LIFETIME, split_chain};
use tulle_certs::key::csr;
use tulle_certs::token::JoinTokens;
use tulle_certs::{
    Alpn, Creds, Pin, PrivateKey, SpiffeId, TrustBundle, TrustDomain, control_plane_id, peer_id,
};
use tulle_control_plane::app::ControlPlane;
use tulle_control_plane::config::Config;

const HOUR: Duration = Duration::from_secs(3600);

/// A control plane, and the authority that it issues with.
struct World {
    control_plane: ControlPlane,
    authority: Authority,
    folder: tempfile::TempDir,
}

fn web() -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), "default", "web").unwrap()
}

/// The client's end of TLS as `default/web` by `issuer`, trusting `roots`.
fn tls(issuer: &Authority, roots: TrustBundle) -> ClientConfig {
    let key = PrivateKey::generate().unwrap();
    let now = SystemTime::now();
    let issued = issuer.issue(&csr(&key, None).unwrap(), &web(), HOUR, now).unwrap();
    let creds = Creds::new(issued.chain, key, Arc::new(roots), now).unwrap();
    (*creds.client(&control_plane_id(&TrustDomain::default()), Alpn::Grpc)).clone()
}

async fn channel(address: SocketAddr, tls: Arc<ClientConfig>) -> Result<Channel, tonic::transport::Error> {
    let connect = tower::service_fn(move |_| {
        let tls = TlsConnector::from(Arc::clone(&tls));
        async move {
            let stream = TcpStream::connect(address).await?;
            std::io::Result::Ok(TokioIo::new(tls.connect(tulle_certs::creds::server_name(), stream).await?))
        }
    });
    Endpoint::from_static("http://control.plane").connect_with_connector(connect).await
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (yaml, state) = (folder.path().join("yaml"), folder.path().join("state"));
        std::fs::create_dir(&yaml).unwrap();
        let arguments =
            ["tulle-control-plane", "--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"];
        let mut arguments: Vec<std::ffi::OsString> = arguments.map(Into::into).to_vec();
        arguments.extend(["--config-dir".into(), yaml.into(), "--state-dir".into(), state.clone().into()]);
        let control_plane = ControlPlane::start(&Config::load(arguments).unwrap()).await.unwrap();
        let read = |name: &str| std::fs::read_to_string(state.join(name)).unwrap();
        let (key, certificates) = (read("ca-key.pem"), read("ca.pem"));
        let authority =
            Authority::from_pem(&key, &certificates, &TrustDomain::default(), SystemTime::now()).unwrap();
        Self { control_plane, authority, folder }
    }

    fn tls(&self) -> ClientConfig {
        tls(&self.authority, self.authority.bundle().clone())
    }

    async fn channel(&self) -> Channel {
        channel(self.control_plane.grpc_address(), Arc::new(self.tls())).await.unwrap()
    }

    /// The text of `/metrics`.
    async fn metrics(&self) -> String {
        let mut metrics = TcpStream::connect(self.control_plane.metrics_address()).await.unwrap();
        metrics.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        metrics.read_to_string(&mut text).await.unwrap();
        text
    }

    /// Whether one refusal of this reason is counted within a while.
    async fn refused(&self, reason: &str) -> bool {
        let line = format!("tulle_control_plane_refused_total{{reason=\"{reason}\"}} 1");
        for _ in 0..200 {
            if self.metrics().await.contains(&line) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    /// How many connections of the gRPC port are open.
    async fn connections(&self) -> u64 {
        let text = self.metrics().await;
        let mut values =
            text.lines().filter_map(|line| line.strip_prefix("tulle_control_plane_connections "));
        values.next().unwrap().parse().unwrap()
    }
}

/// A stream of a proxy that is let in.
struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    async fn open(channel: Channel) -> Self {
        let (requests, outgoing) = mpsc::channel(4);
        let node = Node { id: "default/web".into(), ..Node::default() };
        requests.send(DeltaDiscoveryRequest { node: Some(node), ..ask("mesh") }).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let call = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await.unwrap();
        let mut stream = Self { requests, responses: call.into_inner() };
        assert_eq!(stream.told().await.resources[0].name, "mesh");
        stream
    }

    async fn told(&mut self) -> DeltaDiscoveryResponse {
        let response = self.responses.message().await.unwrap().unwrap();
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(ack).await.unwrap();
        response
    }

    /// It still carries questions and answers.
    async fn works(&mut self) {
        self.requests.send(ask("another")).await.unwrap();
        assert_eq!(self.told().await.removed_resources, ["another"]);
        let forget = DeltaDiscoveryRequest {
            resource_names_unsubscribe: vec!["another".into()],
            resource_names_subscribe: Vec::new(),
            ..ask("another")
        };
        self.requests.send(forget).await.unwrap();
    }
}

fn ask(name: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: v1::Mesh::type_url(),
        resource_names_subscribe: vec![name.to_owned()],
        ..DeltaDiscoveryRequest::default()
    }
}

#[tokio::test]
async fn garbage_is_refused_with_a_reason_and_disturbs_nobody() {
    let world = World::start().await;
    let address = world.control_plane.grpc_address();
    let mut stream = Stream::open(world.channel().await).await;

    let mut garbage = TcpStream::connect(address).await.unwrap();
    garbage.write_all(&[0x5a; 4096]).await.unwrap();
    // Closed or reset: either way over.
    let _over = garbage.read_to_end(&mut Vec::new()).await;
    assert!(world.refused("tls_failed").await);
    stream.works().await;

    for request in ["", "GET / HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let mut tls = world.tls();
        tls.alpn_protocols.clear();
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = tulle_certs::creds::server_name();
        let mut http1 = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap();
        let _refused_already = http1.write_all(request.as_bytes()).await;
        let _over = http1.read_to_end(&mut Vec::new()).await;
        stream.works().await;
        assert!(!request.is_empty() || world.refused("tls_no_protocol").await);
    }

    let stranger = Authority::generate(&TrustDomain::default(), ROOT_LIFETIME, SystemTime::now()).unwrap();
    let mut both = stranger.bundle().roots().to_vec();
    both.extend(world.authority.bundle().roots().iter().cloned());
    let both = TrustBundle::new(TrustDomain::default(), both).unwrap();
    // In TLS 1.3 the refusal comes after the client's side of the handshake is done.
    let _refused_late = channel(address, Arc::new(tls(&stranger, both))).await;
    assert!(world.refused("tls_unknown_root").await);
    stream.works().await;

    let mut large = Stream::open(world.channel().await).await;
    large.requests.send(ask(&"x".repeat(32 << 20))).await.unwrap();
    while let Ok(Some(_)) = large.responses.message().await {}
    stream.works().await;
    world.control_plane.stop().await;
}

#[tokio::test]
async fn who_opens_many_connections_and_says_nothing_keeps_nobody_from_asking_whether_it_lives() {
    let world = World::start().await;
    let mut silent = Vec::new();
    for _ in 0..128 {
        silent.push(TcpStream::connect(world.control_plane.metrics_address()).await.unwrap());
    }
    silent.push(TcpStream::connect(world.control_plane.metrics_address()).await.unwrap());
    // The oldest had to go for the last, and nobody else.
    assert_eq!(silent[0].read(&mut [0]).await.unwrap(), 0);
    for stream in [1, 128] {
        let stream = &mut silent[stream];
        stream.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    world.control_plane.stop().await;
}

/// Registers `default/web` for a service, beside its certificate by a join token or by none; what it is told first.
async fn register(
    channel: &Channel,
    service: &str,
    token: Option<&str>,
) -> Result<Option<v1::ReportResponse>, tonic::Status> {
    let ports = vec![RegisteredPort { service_port: 80, port: 8080 }];
    let services = vec![RegisteredService { name: service.to_owned(), ports }];
    let registration = Registration { address: "127.0.0.1".into(), services, locality: None, ready: true };
    let first = ReportRequest {
        node: Some(Node { id: "default/web".into(), ..Node::default() }),
        report: Some(report_request::Report::Registration(registration)),
    };
    let (requests, outgoing) = mpsc::channel(1);
    requests.send(first).await.unwrap();
    let mut call = Request::new(ReceiverStream::new(outgoing));
    if let Some(token) = token {
        call.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    ProxyClient::new(channel.clone()).report(call).await?.into_inner().message().await
}

#[tokio::test]
async fn a_registration_that_no_token_grants_is_refused_with_the_remedy() {
    let world = World::start().await;
    let channel = world.channel().await;
    let register = async |service: &str| register(&channel, service, None).await;
    let refused = register("web").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let remedy = "tulle token create --workload-identity default/web --service web";
    assert!(refused.message().contains(remedy), "{refused}");
    assert!(world.refused("registration_not_granted").await);

    let token = world
        .control_plane
        .ca()
        .unwrap()
        .tokens()
        .mint(&web(), &["web".into()], HOUR, SystemTime::now())
        .unwrap();
    let csr = csr(&PrivateKey::generate().unwrap(), None).unwrap();
    let mut join = Request::new(IstioCertificateRequest { csr, validity_duration: 0, metadata: None });
    join.metadata_mut().insert("authorization", format!("Bearer {}", &*token).parse().unwrap());
    IstioCertificateServiceClient::new(channel.clone()).create_certificate(join).await.unwrap();
    assert!(register("web").await.unwrap().is_some());
    assert_eq!(register("orders").await.unwrap_err().code(), Code::PermissionDenied);
    world.control_plane.stop().await;
}

#[tokio::test]
async fn a_join_token_that_has_expired_takes_away_nothing_that_was_granted() {
    let world = World::start().await;
    let channel = world.channel().await;
    let tokens = world.control_plane.ca().unwrap().tokens();
    let minted = |at| tokens.mint(&web(), &["web".into()], Duration::from_secs(60), at).unwrap();
    let (past, good) = (minted(SystemTime::now() - HOUR), minted(SystemTime::now()));
    let refused = register(&channel, "web", Some(&past)).await.unwrap_err();
    assert!(refused.message().contains("tulle token create"), "it grants nothing itself: {refused}");
    assert!(register(&channel, "web", Some(&good)).await.unwrap().is_some());
    // A stream that is opened a day later shows the same file.
    assert!(register(&channel, "web", Some(&past)).await.unwrap().is_some());
    let refused = register(&channel, "web", Some("a.b.c")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    world.control_plane.stop().await;
}

#[tokio::test]
async fn a_connection_without_a_certificate_is_not_kept_for_ever() {
    let world = World::start().await;
    let mut known = Stream::open(world.channel().await).await;
    let pin = world.control_plane.ca().unwrap().pin();
    let tls = tulle_certs::bootstrap::pinned(pin, &TrustDomain::default()).unwrap();
    // An HTTP/2 client that answers pings, and asks for nothing.
    let stranger = channel(world.control_plane.grpc_address(), tls).await.unwrap();
    let join = || {
        let request = IstioCertificateRequest { csr: String::new(), validity_duration: 0, metadata: None };
        let mut client = IstioCertificateServiceClient::new(stranger.clone());
        async move { client.create_certificate(request).await.unwrap_err() }
    };
    assert_eq!(join().await.code(), Code::Unauthenticated, "that is what it may do");
    assert_eq!(world.connections().await, 2);

    tokio::time::pause();
    for _ in 0..70 {
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
    tokio::time::resume();
    assert_eq!(world.connections().await, 1);
    known.works().await;
    world.control_plane.stop().await;
}

#[tokio::test]
async fn neither_a_certificate_nor_a_token_obtains_what_is_anothers() {
    let world = World::start().await;
    let domain = TrustDomain::default();
    let orders = SpiffeId::new(&domain, "default", "orders").unwrap();
    let certificate = async |channel: &Channel, bearer: Option<&str>, wanted: &SpiffeId| {
        let csr = csr(&PrivateKey::generate().unwrap(), Some(wanted)).unwrap();
        let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: 0, metadata: None });
        if let Some(token) = bearer {
            let bearer = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", bearer);
        }
        let mut client = IstioCertificateServiceClient::new(channel.clone());
        let answer = client.create_certificate(request).await?.into_inner();
        let (chain, _) = split_chain(&answer.cert_chain, &TrustDomain::default()).unwrap();
        Ok::<_, tonic::Status>(peer_id(&chain).unwrap())
    };
    let key = std::fs::read_to_string(world.folder.path().join("state/token-key.pem")).unwrap();
    let tokens = JoinTokens::from_pem(&key).unwrap();
    let token = tokens.mint(&orders, &["orders".into()], HOUR, SystemTime::now()).unwrap();

    // Whatever is asked for: by a certificate, that of its holder; by a token, that of the token.
    let as_web = world.channel().await;
    assert_eq!(certificate(&as_web, None, &orders).await.unwrap(), web());
    let pin = Pin::of(&world.authority.bundle().roots()[0]).unwrap();
    let joining = tulle_certs::bootstrap::pinned(pin, &domain).unwrap();
    let joining = channel(world.control_plane.grpc_address(), joining).await.unwrap();
    assert_eq!(certificate(&joining, Some(&token), &web()).await.unwrap(), orders);
    assert_eq!(certificate(&joining, None, &web()).await.unwrap_err().code(), Code::Unauthenticated);
    let both = certificate(&as_web, Some(&token), &orders).await.unwrap_err();
    assert_eq!(both.code(), Code::PermissionDenied, "{both}");

    // Without a certificate there is no stream.
    let (_requests, outgoing) = mpsc::channel::<DeltaDiscoveryRequest>(1);
    let mut client = AggregatedDiscoveryServiceClient::new(joining);
    let nobody = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated, "{nobody}");

    // Nobody speaks for a workload of another namespace, and what is for another workload is as if it were not there.
    let (requests, outgoing) = mpsc::channel(1);
    let node = Node { id: "bank/web".into(), ..Node::default() };
    requests.send(DeltaDiscoveryRequest { node: Some(node), ..ask("mesh") }).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(as_web.clone());
    let foreign = match client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await {
        Ok(call) => call.into_inner().message().await.unwrap_err(),
        Err(refused) => refused,
    };
    assert_eq!(foreign.code(), Code::PermissionDenied, "{foreign}");
    let mut stream = Stream::open(as_web).await;
    for (type_url, name) in [
        (v1::InboundPolicy::type_url(), "default/orders"),
        (v1::Workload::type_url(), "default/orders"),
        (v1::EgressPolicy::type_url(), "default/orders"),
        (v1::Routes::type_url(), "bank/default/orders"),
    ] {
        let wanted = DeltaDiscoveryRequest { type_url, ..ask(name) };
        stream.requests.send(wanted).await.unwrap();
        assert_eq!(stream.told().await.removed_resources, [name]);
    }
    world.control_plane.stop().await;
}
