//! A control plane that the test plays: what a real one would never send.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::{fs, path::Path};

use prost::{Message, Name};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::ServerTlsConfig;
use tonic::{Request, Response, Status, Streaming};
use tulle_api::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use tulle_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use tulle_api::v1;
use tulle_certs::pem::encode_certificate;
use tulle_certs::{PrivateKey, control_plane_id};
use tulle_tests::app::App;
use tulle_tests::{Folder, Process, Program, Wire, binary, eventually, identity};

/// Type URL and name.
type Key = (String, String);

/// What the fake serves, and what it was told.
#[derive(Debug, Default)]
struct Script {
    resources: HashMap<Key, Resource>,
    /// Resource, field and reason of each rejection, with the message of its NACK.
    rejections: Vec<(v1::Rejection, String)>,
}

#[derive(Clone, Debug)]
pub(super) struct Fake {
    script: Arc<Mutex<Script>>,
    changed: watch::Sender<u64>,
}

impl Fake {
    pub(super) fn new() -> Self {
        Self { script: Arc::default(), changed: watch::Sender::new(0) }
    }

    pub(super) fn set<M: Message + Name>(&self, name: &str, message: &M) {
        self.set_bytes::<M>(name, message.encode_to_vec());
    }

    /// Whatever `bytes` are, they are said to be an `M`.
    fn set_bytes<M: Name>(&self, name: &str, bytes: Vec<u8>) {
        let version = (*self.changed.borrow() + 1).to_string();
        let any = prost_types::Any { type_url: M::type_url(), value: bytes };
        let resource =
            Resource { name: name.to_owned(), version, resource: Some(any), ..Resource::default() };
        self.script.lock().unwrap().resources.insert((M::type_url(), name.to_owned()), resource);
        self.changed.send_modify(|count| *count += 1);
    }

    /// As if it had never been, or had been deleted.
    pub(super) fn remove<M: Name>(&self, name: &str) {
        self.script.lock().unwrap().resources.remove(&(M::type_url(), name.to_owned()));
        self.changed.send_modify(|count| *count += 1);
    }

    async fn rejected(&self, resource: &str, field: &str) -> (v1::Rejection, String) {
        eventually(&format!("{resource} is rejected for {field}"), async || {
            let script = self.script.lock().unwrap();
            let found = script
                .rejections
                .iter()
                .find(|(rejection, _)| rejection.resource == resource && rejection.field.contains(field));
            found.cloned().ok_or_else(|| format!("{:?}", script.rejections))
        })
        .await
    }
}

/// One stream: what is subscribed, and which version of it has been sent.
#[derive(Default)]
struct Stream {
    subscribed: HashSet<Key>,
    sent: HashMap<Key, String>,
    nonce: u64,
}

impl Stream {
    fn take_in(&mut self, request: DeltaDiscoveryRequest, script: &Mutex<Script>) {
        if let Some(error) = request.error_detail {
            let rejections =
                error.details.iter().map(|detail| v1::Rejection::decode(detail.value.as_slice()).unwrap());
            let told = rejections.map(|rejection| (rejection, error.message.clone()));
            script.lock().unwrap().rejections.extend(told);
        }
        for name in request.resource_names_subscribe {
            self.subscribed.insert((request.type_url.clone(), name));
        }
    }

    /// One response for each type that has news.
    fn news(&mut self, script: &Mutex<Script>) -> Vec<DeltaDiscoveryResponse> {
        let script = script.lock().unwrap();
        let mut responses: HashMap<String, DeltaDiscoveryResponse> = HashMap::new();
        for key in &self.subscribed {
            let resource = script.resources.get(key);
            let version = resource.map_or("absent", |resource| resource.version.as_str());
            if self.sent.get(key).is_some_and(|sent| sent == version) {
                continue;
            }
            self.sent.insert(key.clone(), version.to_owned());
            let response = responses.entry(key.0.clone()).or_default();
            match resource {
                Some(resource) => response.resources.push(resource.clone()),
                None => response.removed_resources.push(key.1.clone()),
            }
        }
        let finish = |(type_url, mut response): (String, DeltaDiscoveryResponse)| {
            self.nonce += 1;
            response.nonce = self.nonce.to_string();
            response.type_url = type_url;
            response
        };
        responses.into_iter().map(finish).collect()
    }
}

type Responses<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Fake {
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let mut requests = request.into_inner();
        let (responses, receiver) = mpsc::channel(64);
        let (script, mut changed) = (Arc::clone(&self.script), self.changed.subscribe());
        tokio::spawn(async move {
            let mut stream = Stream::default();
            loop {
                tokio::select! {
                    request = requests.message() => match request {
                        Ok(Some(request)) => stream.take_in(request, &script),
                        _ => return,
                    },
                    changed = changed.changed() => if changed.is_err() { return },
                }
                for response in stream.news(&script) {
                    if responses.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Serves with a control plane's certificate.
pub(super) async fn serve(fake: Fake, authority: &tulle_certs::issue::Authority) -> SocketAddr {
    let (chain, key) = issue(authority, &control_plane_id(authority.trust_domain()));
    let tls = ServerTlsConfig::new().identity(tonic::transport::Identity::from_pem(chain, key));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder()
        .tls_config(tls)
        .unwrap()
        .add_service(AggregatedDiscoveryServiceServer::new(fake))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    address
}

/// Chain and key as PEM.
fn issue(authority: &tulle_certs::issue::Authority, id: &tulle_certs::SpiffeId) -> (String, String) {
    let key = PrivateKey::generate().unwrap();
    let csr = tulle_certs::key::csr(&key, Some(id)).unwrap();
    let hour = std::time::Duration::from_secs(3600);
    let issued = authority.issue(&csr, id, hour, std::time::SystemTime::now()).unwrap();
    let chain: String = issued.chain.iter().map(|certificate| encode_certificate(certificate)).collect();
    (chain, key.to_pem().to_string())
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// The proxy of `default/web`, with a certificate from files.
pub(super) fn proxy(
    folder: &Folder,
    control_plane: SocketAddr,
    authority: &tulle_certs::issue::Authority,
) -> Program {
    let (chain, key) = issue(authority, &identity::spiffe_id(authority.trust_domain(), "web"));
    let path = |name: &str| folder.path(name);
    write(&path("cert.pem"), &chain);
    write(&path("key.pem"), &key);
    write(&path("roots.pem"), &authority.bundle().to_pem());
    let program = Program::new("web", binary("tulle-proxy"));
    let addresses = program.addresses_file(&folder.run());
    program
        .flag("--workload", "default/web")
        .flag("--control-plane-address", control_plane.to_string())
        .flag("--identity-cert-file", path("cert.pem"))
        .flag("--identity-key-file", path("key.pem"))
        .flag("--identity-trust-bundle-file", path("roots.pem"))
        .flag("--inbound-listen", "none")
        .flag("--outbound-listen", "none")
        .flag("--outbound-services", "127.0.0.1:0=default/orders:8080")
        .flag("--admin-address", "none")
        .flag("--metrics-address", "127.0.0.1:0")
        .flag("--addresses-file", addresses)
}

pub(super) fn name(name: &str) -> Option<v1::ObjectName> {
    Some(v1::ObjectName { namespace: "default".to_owned(), name: name.to_owned() })
}

fn endpoints(address: &str, port: u32) -> v1::Endpoints {
    let plaintext = v1::Peer { peer: Some(v1::peer::Peer::Plaintext(v1::Plaintext {})) };
    let port = v1::EndpointPort { service_port: 8080, port, peer: Some(plaintext) };
    let endpoint = v1::Endpoint {
        address: address.to_owned(),
        ports: vec![port],
        ready: true,
        ..v1::Endpoint::default()
    };
    v1::Endpoints { name: name("orders"), endpoints: vec![endpoint] }
}

fn routes(prefix: &str) -> v1::Routes {
    let path = Some(v1::http_match::Path::Prefix(prefix.to_owned()));
    let backend =
        v1::WeightedBackend { service: name("orders"), port: 8080, weight: 1, ..Default::default() };
    let rule = v1::HttpRule {
        matches: vec![v1::HttpMatch { path, ..Default::default() }],
        backends: vec![backend],
        ..Default::default()
    };
    let route = v1::HttpRoute { name: name("orders"), rules: vec![rule], ..Default::default() };
    v1::Routes { service: name("orders"), http: vec![route], ..Default::default() }
}

/// A strict mesh of `authority`.
pub(super) fn mesh(fake: &Fake, authority: &tulle_certs::issue::Authority) {
    let mtls = v1::MtlsMode::Strict as i32;
    let mesh =
        v1::Mesh { trust_domain: "cluster.local".to_owned(), mtls, networks: vec![], ..v1::Mesh::default() };
    fake.set(tulle_api::MESH, &mesh);
    let roots = authority.bundle().roots().iter().map(|root| root.to_vec().into()).collect();
    let bundle = v1::TrustBundle { trust_domain: "cluster.local".to_owned(), x509_authorities: roots };
    fake.set("cluster.local", &bundle);
}

async fn status(address: SocketAddr, path: &str) -> u16 {
    let mut wire = Wire::connect(address).await;
    wire.send(format!("GET {path} HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n")).await;
    wire.response().await.0.status()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_rejected_by_resource_and_field_and_the_last_good_serves_on() {
    let authority = identity::authority(&identity::trust_domain());
    let app = App::saying("ok").await;
    let port = u32::from(app.address().port());
    let fake = Fake::new();
    mesh(&fake, &authority);
    let strict = v1::MtlsMode::Strict as i32;
    fake.set("default/web", &v1::InboundPolicy { workload: name("web"), mode: strict, ..Default::default() });
    let http = v1::Protocol::Http as i32;
    let service_port = v1::ServicePort { port: 8080, name: "main".to_owned(), protocol: http, traffic: None };
    fake.set(
        "default/orders",
        &v1::Service { name: name("orders"), ports: vec![service_port], ..Default::default() },
    );
    fake.set("default/orders", &endpoints("127.0.0.1", port));
    fake.set("default/default/orders", &routes("/"));

    let address = serve(fake.clone(), &authority).await;
    let folder = Folder::new();
    let mut process = Process::start(proxy(&folder, address, &authority), &folder);
    let outbound = process.addresses().await["outbound/default/orders:8080"];
    eventually("what is good is served", async || {
        let status = status(outbound, "/").await;
        if status == 200 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;

    // Bytes that are no protobuf, a value that is out of range, an address that is none, a mode that was forgotten.
    fake.set_bytes::<v1::Endpoints>("default/orders", b"\xff\xff\xff\xff".to_vec());
    fake.rejected("default/orders", "").await;
    fake.set("default/orders", &endpoints("127.0.0.1", 70_000));
    fake.rejected("default/orders", "endpoints[0].ports[0].port").await;
    fake.set("default/orders", &endpoints("nowhere", port));
    let (rejection, message) = fake.rejected("default/orders", "endpoints[0].address").await;
    assert!(rejection.reason.contains("nowhere"), "{rejection:?}");
    assert!(message.contains("default/orders"), "{message}");
    fake.set("default/default/orders", &routes("no-slash"));
    fake.rejected("default/default/orders", "http[0].rules[0].matches[0]").await;
    fake.set("default/web", &v1::InboundPolicy { workload: name("web"), ..Default::default() });
    fake.rejected("default/web", "mode").await;
    assert_eq!(status(outbound, "/").await, 200, "the last good state");

    // The next good one is used.
    fake.set("default/default/orders", &routes("/only"));
    eventually("the mended route holds", async || {
        let status = status(outbound, "/").await;
        if status == 404 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    fake.set("default/orders", &endpoints("127.0.0.1", port));
    assert_eq!(status(outbound, "/only").await, 200);
}
