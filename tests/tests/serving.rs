//! The control plane's port, from within one process: who may call, what is answered, what outlives a restart.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::large_futures, reason = "tests")]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tulle_api::ca::IstioCertificateRequest;
use tulle_api::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tulle_api::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tulle_api::discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use tulle_api::v1::proxy_client::ProxyClient;
use tulle_api::v1::report_request::Report;
use tulle_api::v1::{self, ReportRequest, ReportResponse, report_response};
use tulle_api::{ResourceType, type_url};
use tulle_certs::issue::split_chain;
use tulle_certs::key::csr;
use tulle_certs::{Alpn, Creds, PrivateKey, SpiffeId, TrustDomain, bootstrap, control_plane_id};
use tulle_control_plane::app::ControlPlane;
use tulle_control_plane::config::{Config, LogFormat, SourceKind};
use tulle_proxy::config::HostPort;
use tulle_proxy::control::channel;

const ORDERS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\nspec:\n  ports: [{name: http, port: 80}]\n";
const POLICY: &str = "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n\
                      spec:\n  targetRefs: [{group: \"\", kind: Service, name: orders}]\n  action: ALLOW\n  rules: [{from: [{identities: [shop/web]}]}]\n";

/// A control plane and its two folders.
struct Served {
    control_plane: Option<ControlPlane>,
    folder: tempfile::TempDir,
    config: Config,
}

/// A stream of ADS.
struct Ads {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

/// A stream of reports.
struct Reports {
    requests: mpsc::Sender<ReportRequest>,
    responses: Streaming<ReportResponse>,
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("within a minute")
}

/// Asks until it holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let asked = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asked).await.unwrap_or_else(|_| panic!("{what}"));
}

// === impl Served ===

impl Served {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config {
            source: SourceKind::Folder,
            config_dir: Some(folder.path().join("config")),
            state_dir: Some(folder.path().join("state")),
            namespace: "tulle-system".to_owned(),
            issuer_secret: None,
            identity_workload_api: None,
            identity_cert_file: None,
            identity_key_file: None,
            identity_trust_bundle_file: None,
            mesh_file: None,
            grpc_address: any,
            metrics_address: any,
            pod: None,
            webhook_address: any,
            injection_file: None,
            trust_domain: TrustDomain::default(),
            leaf_lifetime: Duration::from_secs(3600),
            root_rotate_before: Duration::ZERO,
            registration_grace: Duration::from_secs(30),
            addresses_file: None,
            log_level: tulle_api::log_filter("off").unwrap(),
            log_format: LogFormat::Text,
        };
        change(&mut config);
        std::fs::create_dir(folder.path().join("config")).unwrap();
        let mut served = Self { control_plane: None, folder, config };
        served.write("orders.yaml", ORDERS);
        served.resume().await;
        served
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.folder.path().join("config").join(file), text).unwrap();
    }

    async fn resume(&mut self) {
        self.control_plane = Some(ControlPlane::start(&self.config).await.unwrap());
    }

    async fn stop(&mut self) {
        soon(self.control_plane.take().expect("runs").stop()).await;
    }

    fn running(&self) -> &ControlPlane {
        self.control_plane.as_ref().expect("runs")
    }

    fn channel(&self, tls: Arc<rustls::ClientConfig>) -> Channel {
        let address = self.running().grpc_address();
        let address = HostPort { host: address.ip().to_string(), port: address.port() };
        let way = channel::Way { address, mark: None };
        channel::lazy(&way, move || Some(Arc::clone(&tls))).unwrap()
    }

    /// The way of a caller without a certificate.
    fn stranger(&self) -> Channel {
        let tls = bootstrap::pinned(self.running().ca().unwrap().pin(), &TrustDomain::default()).unwrap();
        self.channel(tls)
    }

    /// The way of a caller with one.
    fn known(&self, creds: &Creds) -> Channel {
        let control_plane = control_plane_id(&TrustDomain::default());
        self.channel(creds.client(&control_plane, Alpn::Grpc))
    }

    /// Joins with a token, as a proxy does.
    async fn join(&self, namespace: &str, account: &str, services: &[&str]) -> Creds {
        let domain = TrustDomain::default();
        let id = SpiffeId::new(&domain, namespace, account).unwrap();
        let services: Vec<String> = services.iter().map(|name| (*name).to_owned()).collect();
        let ca = self.running().ca().unwrap();
        let token = ca.tokens().mint(&id, &services, Duration::from_secs(60), SystemTime::now()).unwrap();
        let key = PrivateKey::generate().unwrap();
        let request = IstioCertificateRequest { csr: csr(&key, None).unwrap(), ..Default::default() };
        let mut request = Request::new(request);
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let mut client = IstioCertificateServiceClient::new(self.stranger());
        let answer = soon(client.create_certificate(request)).await.unwrap().into_inner();
        let (chain, bundle) = split_chain(&answer.cert_chain, &domain).unwrap();
        Creds::new(chain, key, Arc::new(bundle), SystemTime::now()).unwrap()
    }

    async fn ads(&self, creds: &Creds) -> Ads {
        let mut client = AggregatedDiscoveryServiceClient::new(self.known(creds));
        let (requests, outgoing) = mpsc::channel(16);
        let responses = soon(client.delta_aggregated_resources(ReceiverStream::new(outgoing))).await.unwrap();
        Ads { requests, responses: responses.into_inner() }
    }

    async fn reports(&self, creds: &Creds) -> Reports {
        let mut client = ProxyClient::new(self.known(creds));
        let (requests, outgoing) = mpsc::channel(16);
        let responses = soon(client.report(ReceiverStream::new(outgoing))).await.unwrap();
        Reports { requests, responses: responses.into_inner() }
    }

    /// The endpoints of `shop/orders`: address and readiness.
    fn endpoints(&self) -> Vec<(String, bool)> {
        let model = self.running().publisher().model();
        let Some(encoded) = model.get(ResourceType::Endpoints, "shop/orders") else { return Vec::new() };
        let endpoints = v1::Endpoints::decode(encoded.bytes.clone()).unwrap();
        endpoints.endpoints.into_iter().map(|endpoint| (endpoint.address, endpoint.ready)).collect()
    }

    /// A page of the metrics port: status and body.
    async fn page(&self, method: &str, path: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(self.running().metrics_address()).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(socket.read_to_string(&mut answer)).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn metric(&self, line: &str) -> String {
        let (_, text) = self.page("GET", "/metrics").await;
        let found = text.lines().find_map(|found| found.strip_prefix(line)).unwrap_or(" none");
        found.trim().to_owned()
    }
}

// === impl Ads ===

impl Ads {
    async fn say(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    async fn subscribe(
        &self,
        node: &str,
        resource_type: ResourceType,
        names: &[&str],
        held: &[(&str, &str)],
    ) {
        let pairs = held.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned()));
        self.say(DeltaDiscoveryRequest {
            node: Some(Node { id: node.to_owned(), ..Node::default() }),
            type_url: resource_type.type_url().to_owned(),
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            initial_resource_versions: pairs.collect(),
            ..Default::default()
        })
        .await;
    }

    async fn hear(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        soon(self.responses.message()).await.map(|response| response.expect("goes on"))
    }

    async fn accept(&self, response: &DeltaDiscoveryResponse) {
        self.say(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        })
        .await;
    }

    async fn reject(&self, response: &DeltaDiscoveryResponse, resource: &str) {
        let rejection = v1::Rejection {
            resource: resource.to_owned(),
            field: "ports[0].port".to_owned(),
            reason: "is 0".to_owned(),
        };
        let details =
            prost_types::Any { type_url: type_url::<v1::Rejection>(), value: rejection.encode_to_vec() };
        let status = discovery::Status { code: 3, message: "no".to_owned(), details: vec![details] };
        self.say(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: Some(status),
            ..Default::default()
        })
        .await;
    }
}

// === impl Reports ===

impl Reports {
    async fn register(&self, node: &str, said: v1::Registration) {
        let node = Some(Node { id: node.to_owned(), ..Node::default() });
        self.requests.send(ReportRequest { node, report: Some(Report::Registration(said)) }).await.unwrap();
    }

    async fn hear(&mut self) -> Result<Vec<String>, Status> {
        let response = soon(self.responses.message()).await?.expect("goes on");
        let Some(report_response::Response::Registered(registered)) = response.response else {
            panic!("nothing said");
        };
        Ok(registered.pending)
    }
}

fn said(address: &str, service: &str) -> v1::Registration {
    let ports = vec![v1::RegisteredPort { service_port: 80, port: 8080 }];
    let services = vec![v1::RegisteredService { name: service.to_owned(), ports }];
    v1::Registration { address: address.to_owned(), services, locality: None, ready: true }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| &*resource.name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_not_sent_again_not_even_by_a_control_plane_that_was_restarted() {
    let mut served = Served::start().await;
    let creds = served.join("shop", "web", &[]).await;
    let mut ads = served.ads(&creds).await;
    ads.subscribe("shop/web", ResourceType::Service, &["shop/orders", "shop/none"], &[]).await;
    let response = ads.hear().await.unwrap();
    assert_eq!(names(&response), ["shop/orders"]);
    assert_eq!(response.removed_resources, ["shop/none"]);
    ads.accept(&response).await;
    let version = response.resources[0].version.clone();

    served.stop().await;
    assert_eq!(ads.hear().await.unwrap_err().code(), Code::Unavailable, "the stream is told");
    served.resume().await;
    let mut ads = served.ads(&creds).await;
    let held = [("shop/orders", &*version)];
    ads.subscribe("shop/web", ResourceType::Service, &["shop/orders"], &held).await;
    // Nothing comes of it; the next answer is to the next question.
    ads.subscribe("shop/web", ResourceType::Mesh, &["mesh"], &[]).await;
    assert_eq!(names(&ads.hear().await.unwrap()), ["mesh"]);
    // But a change does come.
    served.write("orders.yaml", &ORDERS.replace("port: 80", "port: 81"));
    let changed = ads.hear().await.unwrap();
    assert_eq!(names(&changed), ["shop/orders"]);
    assert_ne!(changed.resources[0].version, version);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nack_is_kept_and_shown_until_the_resource_is_accepted() {
    let served = Served::start().await;
    let creds = served.join("shop", "web", &[]).await;
    let mut ads = served.ads(&creds).await;
    ads.subscribe("shop/web", ResourceType::Service, &["shop/orders"], &[]).await;
    let first = ads.hear().await.unwrap();
    ads.reject(&first, "shop/orders").await;
    let rejected = || {
        let proxies = served.running().proxies().list();
        proxies.first().map(|proxy| proxy.rejected.clone()).unwrap_or_default()
    };
    until("the rejection is known", async || !rejected().is_empty()).await;
    let proxies = served.running().proxies().list();
    assert_eq!(
        (&*proxies[0].node, &*proxies[0].identity),
        ("shop/web", "spiffe://cluster.local/ns/shop/sa/web")
    );
    let known = rejected();
    assert_eq!(known[0].version, first.resources[0].version);
    assert_eq!((&*known[0].faults[0].field, &*known[0].faults[0].reason), ("ports[0].port", "is 0"));
    assert_eq!(served.metric("tulle_control_plane_rejected_resources{type=\"Service\"}").await, "1");
    assert_eq!(served.metric("tulle_control_plane_nacks_total{type=\"Service\"}").await, "1");

    served.write("orders.yaml", &ORDERS.replace("port: 80", "port: 81"));
    let second = ads.hear().await.unwrap();
    ads.accept(&second).await;
    until("nothing is rejected", async || rejected().is_empty()).await;
    drop(ads);
    until("it is gone", async || served.running().proxies().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_is_published_with_its_policy_before_it_is_answered() {
    let served = Served::start().await;
    served.write("policy.yaml", POLICY);
    let creds = served.join("shop", "orders", &["orders"]).await;
    let mut ads = served.ads(&creds).await;
    let policy = |response: &DeltaDiscoveryResponse| {
        let body = response.resources[0].resource.as_ref().unwrap();
        v1::InboundPolicy::decode(&*body.value).unwrap()
    };
    ads.subscribe("shop/orders-1", ResourceType::InboundPolicy, &["shop/orders-1"], &[]).await;
    let before = ads.hear().await.unwrap();
    assert_eq!(policy(&before).rules, []);

    let mut reports = served.reports(&creds).await;
    reports.register("shop/orders-1", said("10.0.0.1", "orders")).await;
    assert_eq!(reports.hear().await.unwrap(), [""; 0]);
    assert_eq!(served.endpoints(), [("10.0.0.1".to_owned(), true)]);
    ads.accept(&before).await;
    // Asked for again, it is answered as it is now; a change may have come by itself just before.
    ads.subscribe("shop/orders-1", ResourceType::InboundPolicy, &["shop/orders-1"], &[]).await;
    until("the policy has its rule", async || {
        let response = ads.hear().await.unwrap();
        ads.accept(&response).await;
        policy(&response).rules.len() == 1
    })
    .await;

    let draining = v1::Registration { ready: false, ..said("10.0.0.1", "orders") };
    reports.register("shop/orders-1", draining).await;
    reports.hear().await.unwrap();
    assert_eq!(served.endpoints(), [("10.0.0.1".to_owned(), false)]);
    drop(reports);
    until("the endpoint is gone", async || served.endpoints().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_comes_later_is_waited_for() {
    let served = Served::start().await;
    let creds = served.join("shop", "orders", &["orders", "later"]).await;
    let mut reports = served.reports(&creds).await;
    reports.register("shop/orders-1", said("10.0.0.1", "later")).await;
    assert_eq!(reports.hear().await.unwrap(), ["later"]);
    served.write("later.yaml", &ORDERS.replace("name: orders", "name: later"));
    assert_eq!(reports.hear().await.unwrap(), [""; 0], "told as soon as it is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_outlives_a_restart_until_its_grace_is_over() {
    let mut served = Served::with(|config| config.registration_grace = Duration::from_secs(2)).await;
    let creds = served.join("shop", "orders", &["orders"]).await;
    let mut reports = served.reports(&creds).await;
    reports.register("shop/orders-1", said("10.0.0.1", "orders")).await;
    reports.hear().await.unwrap();
    served.stop().await;
    assert_eq!(reports.hear().await.unwrap_err().code(), Code::Unavailable);
    served.resume().await;
    assert_eq!(served.endpoints().len(), 1, "from the first moment on");
    until("the grace is over", async || served.endpoints().is_empty()).await;
    served.stop().await;
    served.resume().await;
    assert_eq!(served.endpoints().len(), 0, "forgotten for good");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_for_what_is_not_ones_own_is_refused_with_the_reason() {
    let served = Served::start().await;
    let creds = served.join("shop", "orders", &["orders"]).await;
    for (node, registration, code, text) in [
        ("shop/o", said("10.0.0.1", "web"), Code::PermissionDenied, "--service web"),
        ("bank/o", said("10.0.0.1", "orders"), Code::PermissionDenied, "namespace"),
        ("o", said("10.0.0.1", "orders"), Code::InvalidArgument, "<namespace>/<workload>"),
        ("shop/o", said("0.0.0.0", "orders"), Code::InvalidArgument, "address"),
        ("shop/o", said("orders.example", "orders"), Code::InvalidArgument, "address"),
    ] {
        let mut reports = served.reports(&creds).await;
        reports.register(node, registration).await;
        let status = reports.hear().await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(text), "{status}");
    }
    let refused = "tulle_control_plane_refused_total{reason=\"registration_not_granted\"}";
    assert_eq!(served.metric(refused).await, "1");
    assert!(served.endpoints().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_certificate_gets_nothing_but_the_chance_to_join() {
    let served = Served::start().await;
    let mut ads = AggregatedDiscoveryServiceClient::new(served.stranger());
    let status = soon(ads.delta_aggregated_resources(tokio_stream::pending())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let mut reports = ProxyClient::new(served.stranger());
    let status = soon(reports.report(tokio_stream::pending())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert_eq!(served.metric("tulle_control_plane_refused_total{reason=\"no_identity\"}").await, "2");
    // Of another mesh.
    let other = Served::start().await;
    let creds = other.join("shop", "web", &[]).await;
    let mut ads = AggregatedDiscoveryServiceClient::new(served.known(&creds));
    assert!(soon(ads.delta_aggregated_resources(tokio_stream::pending())).await.is_err());
    // Of the mesh, but for another namespace.
    let creds = served.join("shop", "web", &[]).await;
    let mut ads = served.ads(&creds).await;
    ads.subscribe("bank/web", ResourceType::Mesh, &["mesh"], &[]).await;
    assert_eq!(ads.hear().await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(served.metric("tulle_control_plane_refused_total{reason=\"node_foreign\"}").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_its_certificate_and_the_endpoint_waits_for_its_workload() {
    let served = Served::with(|config| config.leaf_lifetime = Duration::from_secs(10)).await;
    let creds = served.join("shop", "orders", &["orders"]).await;
    let mut reports = served.reports(&creds).await;
    reports.register("shop/orders-1", said("10.0.0.1", "orders")).await;
    reports.hear().await.unwrap();
    assert!(reports.hear().await.is_err(), "the certificate has expired");
    assert_eq!(served.endpoints().len(), 1);
    let mut again = ProxyClient::new(served.known(&creds));
    assert!(soon(again.report(tokio_stream::pending())).await.is_err(), "and opens no door");
    let fresh = served.join("shop", "orders", &[]).await;
    let mut reports = served.reports(&fresh).await;
    reports.register("shop/orders-1", said("10.0.0.1", "orders")).await;
    reports.hear().await.unwrap();
    assert_eq!(served.endpoints(), [("10.0.0.1".to_owned(), true)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_what_sent_it_and_nothing_else() {
    let served = Served::start().await;
    let creds = served.join("shop", "web", &["orders"]).await;
    let mut good = served.ads(&creds).await;
    good.subscribe("shop/web", ResourceType::Mesh, &["mesh"], &[]).await;
    let response = good.hear().await.unwrap();
    good.accept(&response).await;
    // Not TLS.
    let mut socket = TcpStream::connect(served.running().grpc_address()).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _reset = soon(socket.read_to_end(&mut rest)).await;
    until("it is counted", async || {
        let refused = "tulle_control_plane_refused_total{reason=\"tls_failed\"}";
        served.metric(refused).await == "1"
    })
    .await;
    // Not our messages: field 1 of a request is a message, and this is a string that is none.
    let mut client = ProxyClient::new(served.known(&creds));
    let (requests, outgoing) = mpsc::channel(1);
    let mut reports = soon(client.report(ReceiverStream::new(outgoing))).await.unwrap().into_inner();
    let bad = v1::RegisteredService { name: "\u{fffd}".repeat(9), ports: Vec::new() };
    let node = Some(Node { id: bad.name, ..Node::default() });
    requests.send(ReportRequest { node, report: None }).await.unwrap();
    assert_eq!(soon(reports.message()).await.unwrap_err().code(), Code::InvalidArgument);
    let mut bytes = garbage(&served, &creds).await;
    assert_eq!(soon(bytes.message()).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(served.metric("tulle_control_plane_refused_total{reason=\"malformed_message\"}").await, "1");
    // The others never noticed.
    good.subscribe("shop/web", ResourceType::Service, &["shop/orders"], &[]).await;
    assert_eq!(names(&good.hear().await.unwrap()), ["shop/orders"]);
}

/// A stream whose request does not decode.
async fn garbage(served: &Served, creds: &Creds) -> Streaming<DeltaDiscoveryResponse> {
    let mut grpc = tonic::client::Grpc::new(served.known(creds));
    soon(grpc.ready()).await.unwrap();
    let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
    let codec = tonic_prost::ProstCodec::<v1::RegisteredService, DeltaDiscoveryResponse>::default();
    // Field 1, `node`, would have to be a message.
    let message = v1::RegisteredService { name: "\u{7}\u{7}\u{7}".to_owned(), ports: Vec::new() };
    let once = tokio_stream::StreamExt::chain(tokio_stream::once(message), tokio_stream::pending());
    soon(grpc.streaming(Request::new(once), path.parse().unwrap(), codec)).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_control_plane_on_the_folder_is_told_whose_it_is() {
    let served = Served::start().await;
    let Err(error) = ControlPlane::start(&served.config).await else { panic!("it started") };
    let text = format!("{error:#}");
    assert!(text.contains("state") && text.contains(&std::process::id().to_string()), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_public_pages_answer_get_and_head_only() {
    let served = Served::start().await;
    assert_eq!(served.page("GET", "/ready").await, (200, "ready\n".to_owned()));
    assert_eq!(served.page("HEAD", "/live").await, (200, String::new()));
    assert_eq!(served.page("POST", "/metrics").await.0, 405);
    assert_eq!(served.page("GET", "/").await.0, 404);
    assert_eq!(served.metric("tulle_control_plane_resources{type=\"Service\"}").await, "1");
    served.write("bad.yaml", "kind: [");
    until("the finding is counted", async || {
        served.metric("tulle_control_plane_findings{severity=\"error\"}").await == "1"
    })
    .await;
}
