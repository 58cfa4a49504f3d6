//! Against a control plane that the test plays, over gRPC in memory: what a real one would never do.

use std::time::SystemTime;

use hyper_util::rt::TokioIo;
use prost::{Message, Name};
use tokio::io::DuplexStream;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tulle_api::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use tulle_api::discovery::{Node, Resource};
use tulle_api::v1;
use tulle_certs::issue::{Authority, ROOT_LIFETIME};
use tulle_certs::key::csr;
use tulle_certs::{Creds, PrivateKey, SpiffeId, TrustDomain};

use super::*;
use crate::control::gate::Gate;
use crate::policy;
use crate::state::{Mode, ObjectName, Store};
use crate::telemetry::Metrics;

/// One ADS stream, at the control plane's end.
struct Served {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

struct Fake(mpsc::UnboundedSender<Served>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Fake {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, outgoing) = mpsc::channel(4);
        self.0.send(Served { requests: request.into_inner(), responses }).unwrap();
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// A proxy of `shop/web` and the control plane that it talks to.
struct Bench {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    streams: mpsc::UnboundedReceiver<Served>,
}

fn creds() -> Creds {
    let domain = TrustDomain::default();
    let now = SystemTime::now();
    let authority = Authority::generate(&domain, ROOT_LIFETIME, now).unwrap();
    let id = SpiffeId::new(&domain, "shop", "web").unwrap();
    let key = PrivateKey::generate().unwrap();
    let issued = authority.issue(&csr(&key, None).unwrap(), &id, Duration::from_secs(3600), now).unwrap();
    Creds::new(issued.chain, key, Arc::new(authority.bundle().clone()), now).unwrap()
}

impl Bench {
    fn start() -> Self {
        let (connections, incoming) = mpsc::unbounded_channel::<Result<DuplexStream, std::io::Error>>();
        let (streams, served) = mpsc::unbounded_channel();
        let server = Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(Fake(streams)))
            .serve_with_incoming(UnboundedReceiverStream::new(incoming));
        tokio::spawn(server);
        let channel = Endpoint::from_static("http://control.plane").connect_with_connector_lazy(
            tower::service_fn(move |_| {
                let (ours, theirs) = tokio::io::duplex(64 * 1024);
                let sent = connections.send(Ok(theirs));
                async move {
                    sent.map(|()| TokioIo::new(ours))
                        .map_err(|_| std::io::Error::from(std::io::ErrorKind::NotConnected))
                }
            }),
        );
        let (store, wants) = Store::new(Duration::from_secs(1));
        let store = Arc::new(store);
        let metrics = Arc::new(Metrics::new(1, 1000, &[]));
        let identity = Identity::fixed(creds());
        let applier = Applier::new(
            Arc::clone(&store),
            Arc::new(policy::Connections::new()),
            Arc::clone(&identity),
            ObjectName::new("shop", "web"),
            Gate::new(Vec::new()),
            1,
        );
        let (_, registered) = watch::channel(Default::default());
        let node = Node { id: "shop/web".to_owned(), ..Node::default() };
        let session = Session::new(node);
        let control = Arc::clone(metrics.control());
        let ads = Ads { channel, identity, session, applier, wants, registered, metrics: control };
        tokio::spawn(ads.run());
        Self { store, metrics, streams: served }
    }

    /// The next stream that the proxy opens, and what it asks for first, by type.
    async fn stream(&mut self) -> (Served, Vec<DeltaDiscoveryRequest>) {
        let mut served = self.streams.recv().await.unwrap();
        let mut asked = Vec::new();
        for _ in 0..5 {
            asked.push(served.requests.message().await.unwrap().unwrap());
        }
        (served, asked)
    }

    fn mode(&self) -> Option<Mode> {
        self.store.load().mesh.as_ref().map(|mesh| mesh.mode)
    }
}

impl Served {
    /// Sends a response and returns the proxy's answer to it.
    async fn tell(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let nonce = response.nonce.clone();
        self.responses.send(Ok(response)).await.unwrap();
        let answer = self.requests.message().await.unwrap().unwrap();
        assert_eq!(answer.response_nonce, nonce);
        answer
    }
}

fn resource(name: &str, version: &str, type_url: &str, value: Vec<u8>) -> Resource {
    let any = prost_types::Any { type_url: type_url.to_owned(), value };
    Resource { name: name.into(), version: version.into(), resource: Some(any), aliases: Vec::new() }
}

fn mesh(version: &str, mode: v1::MtlsMode) -> Resource {
    let mesh = v1::Mesh {
        trust_domain: "cluster.local".into(),
        mtls: mode.into(),
        networks: Vec::new(),
        ..v1::Mesh::default()
    };
    resource(tulle_api::MESH, version, &v1::Mesh::type_url(), mesh.encode_to_vec())
}

fn about(type_url: String, nonce: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse { type_url, nonce: nonce.into(), resources, ..DeltaDiscoveryResponse::default() }
}

fn meshes(nonce: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    about(v1::Mesh::type_url(), nonce, resources)
}

/// What a NACK says, by resource.
fn rejections(answer: &DeltaDiscoveryRequest) -> Vec<v1::Rejection> {
    let status = answer.error_detail.as_ref().expect("is a NACK");
    status.details.iter().map(|detail| v1::Rejection::decode(&detail.value[..]).unwrap()).collect()
}

#[tokio::test]
async fn garbage_is_rejected_by_name_and_the_last_good_stays() {
    let mut bench = Bench::start();
    let (mut served, asked) = bench.stream().await;
    assert_eq!(asked.iter().filter(|request| request.node.is_some()).count(), 1);
    let ack = served.tell(meshes("1", vec![mesh("v1", v1::MtlsMode::Strict)])).await;
    assert!(ack.error_detail.is_none());
    assert_eq!(bench.mode(), Some(Mode::Strict));

    let url = v1::Mesh::type_url();
    let unset = v1::Mesh { trust_domain: "cluster.local".into(), ..v1::Mesh::default() }.encode_to_vec();
    let garbage = [
        (resource("mesh", "v2", &url, vec![0xff; 100]), ""),
        (resource("mesh", "v2", &url, unset), "mtls"),
        (
            resource(
                "mesh",
                "v2",
                &v1::Workload::type_url(),
                mesh("", v1::MtlsMode::Off).resource.unwrap().value,
            ),
            "",
        ),
        (Resource { resource: None, ..mesh("v2", v1::MtlsMode::Off) }, ""),
    ];
    for (resource, field) in garbage {
        let nack = served.tell(meshes("2", vec![resource])).await;
        let rejected = rejections(&nack);
        assert_eq!((rejected[0].resource.as_str(), rejected[0].field.as_str()), ("mesh", field));
        assert_eq!(bench.mode(), Some(Mode::Strict));
    }
    // Half of a response that is good is used.
    let both = vec![mesh("v3", v1::MtlsMode::Permissive), resource("mesh", "v4", &url, vec![0xff])];
    assert_eq!(rejections(&served.tell(meshes("3", both)).await).len(), 1);
    assert_eq!(bench.mode(), Some(Mode::Permissive));
}

#[tokio::test]
async fn what_was_not_asked_for_changes_nothing() {
    let mut bench = Bench::start();
    let (mut served, _) = bench.stream().await;
    served.tell(meshes("7", vec![mesh("v1", v1::MtlsMode::Strict)])).await;
    let other = Resource { name: "another".into(), ..mesh("v2", v1::MtlsMode::Off) };
    // The nonce is the server's own business: it may go back.
    served.tell(meshes("3", vec![other])).await;
    assert_eq!(bench.mode(), Some(Mode::Strict));
    let unknown = "type.googleapis.com/envoy.config.listener.v3.Listener";
    for number in 0..3 {
        let url = format!("{unknown}{number}");
        let response = about(url.clone(), "8", vec![resource("x", "1", &url, vec![1, 2, 3])]);
        served.tell(response).await;
    }
    let text = bench.metrics.render();
    assert!(!text.contains("Listener"), "the server chooses no labels: {text}");
}

#[tokio::test]
async fn a_stream_that_breaks_is_opened_again_and_says_what_is_held() {
    let mut bench = Bench::start();
    let (mut served, _) = bench.stream().await;
    served.tell(meshes("1", vec![mesh("v1", v1::MtlsMode::Strict)])).await;
    served.tell(meshes("2", vec![resource("mesh", "v2", &v1::Mesh::type_url(), vec![0xff])])).await;
    served.tell(meshes("3", vec![mesh("v3", v1::MtlsMode::Strict)])).await;
    served.responses.send(Err(Status::internal("broken"))).await.unwrap();
    let (served, asked) = bench.stream().await;
    let held = |asked: &[DeltaDiscoveryRequest]| {
        let request = asked.iter().find(|request| request.type_url == v1::Mesh::type_url()).unwrap();
        assert_eq!(request.resource_names_subscribe, ["mesh"]);
        request.initial_resource_versions.get("mesh").cloned()
    };
    assert_eq!(held(&asked), Some("v3".to_owned()));
    assert_eq!(asked.iter().filter(|request| request.node.is_some()).count(), 1);

    // Larger than a proxy takes: the stream ends, the state does not.
    let huge = resource("mesh", "v4", &v1::Mesh::type_url(), vec![0; MAX_MESSAGE + 1]);
    served.responses.send(Ok(meshes("1", vec![huge]))).await.unwrap();
    let (served, asked) = bench.stream().await;
    assert_eq!(held(&asked), Some("v3".to_owned()));
    drop(served);
    let (mut served, asked) = bench.stream().await;
    assert_eq!(held(&asked), Some("v3".to_owned()));
    // What is gone meanwhile is told as removed; of the mesh the last word stays.
    let removed = vec!["mesh".to_owned()];
    served.tell(DeltaDiscoveryResponse { removed_resources: removed, ..meshes("1", Vec::new()) }).await;
    assert_eq!(bench.mode(), Some(Mode::Strict));
}

impl Served {
    /// The next question what should be held.
    async fn asked_view(&mut self) {
        let asked = self.requests.message().await.unwrap().unwrap();
        assert_eq!(asked.type_url, v1::View::type_url());
        assert_eq!(asked.resource_names_subscribe, [tulle_api::VIEW]);
    }
}

fn view(nonce: &str, mesh: Option<&str>) -> DeltaDiscoveryResponse {
    let own = [v1::EgressPolicy::type_url(), v1::InboundPolicy::type_url(), v1::Workload::type_url()];
    let mut types: Vec<(String, &str, Option<&str>)> =
        own.into_iter().map(|type_url| (type_url, "shop/web", None)).collect();
    types.push((v1::TrustBundle::type_url(), "cluster.local", None));
    types.push((v1::Mesh::type_url(), tulle_api::MESH, mesh));
    let types = types.into_iter().map(|(type_url, name, version)| {
        let mut digest = tulle_api::Digest::default();
        digest.add(name, version);
        v1::TypeView { type_url, names: digest.names, hash: digest.hash, in_flight: String::new() }
    });
    let value = v1::View { types: types.collect() }.encode_to_vec();
    about(v1::View::type_url(), nonce, vec![resource(tulle_api::VIEW, nonce, &v1::View::type_url(), value)])
}

/// Answers all that is asked for first.
async fn settle(served: &mut Served, mesh_version: &str) {
    served.tell(meshes("1", vec![mesh(mesh_version, v1::MtlsMode::Strict)])).await;
    let absent = [
        (v1::EgressPolicy::type_url(), "shop/web"),
        (v1::InboundPolicy::type_url(), "shop/web"),
        (v1::Workload::type_url(), "shop/web"),
        (v1::TrustBundle::type_url(), "cluster.local"),
    ];
    for (type_url, name) in absent {
        let removed_resources = vec![name.to_owned()];
        served.tell(DeltaDiscoveryResponse { removed_resources, ..about(type_url, "2", Vec::new()) }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn r07_where_both_ends_differ_the_stream_is_opened_anew() {
    let mut bench = Bench::start();
    let (mut served, _) = bench.stream().await;
    settle(&mut served, "v1").await;
    let value = |bench: &Bench, line: &str| bench.metrics.render().lines().any(|found| found == line);
    for nonce in ["7", "8"] {
        served.asked_view().await;
        assert!(served.tell(view(nonce, Some("v1"))).await.error_detail.is_none());
    }
    assert!(value(&bench, r#"tulle_ads_comparisons_total{result="equal"} 2"#), "{}", bench.metrics.render());
    served.asked_view().await;
    let nack = served.tell(view("9", Some("v2"))).await;
    assert_eq!(nack.error_detail.unwrap().message, "Mesh: other versions of 1 names");
    let (mut served, asked) = bench.stream().await;
    let mesh = asked.iter().find(|request| request.type_url == v1::Mesh::type_url()).unwrap();
    assert_eq!(mesh.initial_resource_versions.get("mesh").map(String::as_str), Some("v1"));
    assert!(
        value(&bench, "tulle_ads_repairs_total 1")
            && value(&bench, r#"tulle_ads_differences_total{type="Mesh"} 1"#)
    );
    settle(&mut served, "v2").await;
    served.asked_view().await;
    assert!(served.tell(view("9", Some("v2"))).await.error_detail.is_none());
}

#[tokio::test(start_paused = true)]
async fn r07_a_resource_that_was_rejected_is_told_and_so_no_difference() {
    let mut bench = Bench::start();
    let (mut served, _) = bench.stream().await;
    settle(&mut served, "v1").await;
    let bad = resource("mesh", "v2", &v1::Mesh::type_url(), vec![0xff]);
    assert_eq!(rejections(&served.tell(meshes("3", vec![bad])).await).len(), 1);
    for nonce in ["7", "8", "9"] {
        served.asked_view().await;
        assert!(served.tell(view(nonce, Some("v2"))).await.error_detail.is_none());
    }
    let text = bench.metrics.render();
    assert!(text.contains(r#"tulle_ads_rejected_resources{type="Mesh"} 1"#), "{text}");
    assert!(!text.contains("tulle_ads_repairs_total 1"), "{text}");
    assert_eq!(bench.mode(), Some(Mode::Strict), "the last good one");
}

#[tokio::test(start_paused = true)]
async fn r07_a_control_plane_that_says_nothing_any_more_is_left() {
    let mut bench = Bench::start();
    let (mut served, _) = bench.stream().await;
    settle(&mut served, "v1").await;
    served.asked_view().await;
    // It is not answered. Neither is what is said last.
    let (_served, _) = bench.stream().await;
    assert!(bench.metrics.render().contains("tulle_ads_repairs_total 1"));
}

#[tokio::test(start_paused = true)]
async fn an_older_control_plane_that_knows_of_no_views_is_not_asked_again() {
    let mut bench = Bench::start();
    let (mut served, _) = bench.stream().await;
    settle(&mut served, "v1").await;
    served.asked_view().await;
    let removed_resources = vec![tulle_api::VIEW.to_owned()];
    let absent = DeltaDiscoveryResponse { removed_resources, ..about(v1::View::type_url(), "4", Vec::new()) };
    served.responses.send(Ok(absent)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    served.tell(meshes("5", vec![mesh("v9", v1::MtlsMode::Off)])).await;
    assert_eq!(bench.mode(), Some(Mode::Off), "the stream is the same, and nothing was asked meanwhile");
}
