//! A control plane of this version that hears bytes as they are, also those that this version's own messages could not hold.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tulle_api::ca::IstioCertificateResponse;
use tulle_certs::issue::split_chain;
use tulle_certs::key::csr;
use tulle_certs::{Alpn, Creds, PrivateKey, SpiffeId, TrustDomain, bootstrap, control_plane_id};
use tulle_control_plane::app::ControlPlane;
use tulle_control_plane::config::Config;
use tulle_proxy::config::HostPort;
use tulle_proxy::control::channel;

use crate::made::fixtures;

const ADS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const REPORT: &str = "/tulle.v1.Proxy/Report";
const CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

pub(crate) struct Served {
    pub(crate) control_plane: ControlPlane,
    _folder: tempfile::TempDir,
}

/// A stream on which bytes are sent and messages come.
pub(crate) struct Raw<M> {
    requests: mpsc::Sender<Bytes>,
    responses: Streaming<M>,
}

/// Sends bytes for messages.
struct AsIs<M>(PhantomData<M>);

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("within a minute")
}

// === impl Served ===

impl Served {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let yaml = folder.path().join("config");
        std::fs::create_dir(&yaml).unwrap();
        std::fs::copy(fixtures().join("mesh.yaml"), yaml.join("mesh.yaml")).unwrap();
        let state = folder.path().join("state");
        let flags = [
            ("--config-dir", yaml.to_str().unwrap()),
            ("--state-dir", state.to_str().unwrap()),
            ("--grpc-address", "127.0.0.1:0"),
            ("--metrics-address", "127.0.0.1:0"),
            ("--log-level", "off"),
        ];
        let flags = flags.into_iter().flat_map(|(flag, value)| [flag, value]);
        let arguments = std::iter::once("tulle-control-plane").chain(flags).map(Into::into);
        let config = Config::load(arguments).unwrap();
        let control_plane = ControlPlane::start(&config).await.unwrap();
        Self { control_plane, _folder: folder }
    }

    fn channel(&self, tls: Arc<rustls::ClientConfig>) -> Channel {
        let address = self.control_plane.grpc_address();
        let address = HostPort { host: address.ip().to_string(), port: address.port() };
        let way = channel::Way { address, mark: None };
        channel::lazy(&way, move || Some(Arc::clone(&tls))).unwrap()
    }

    /// Asks for a certificate by these bytes, with a token.
    pub(crate) async fn certify(&self, request: Vec<u8>) -> Result<IstioCertificateResponse, Status> {
        let id = SpiffeId::new(&TrustDomain::default(), "shop", "orders").unwrap();
        let ca = self.control_plane.ca().unwrap();
        let services = ["orders".to_owned()];
        let token = ca.tokens().mint(&id, &services, Duration::from_secs(60), SystemTime::now()).unwrap();
        let tls = bootstrap::pinned(ca.pin(), &TrustDomain::default()).unwrap();
        let mut grpc = Grpc::new(self.channel(tls));
        soon(grpc.ready()).await.unwrap();
        let mut request = Request::new(Bytes::from(request));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let codec = AsIs(PhantomData);
        soon(grpc.unary(request, PathAndQuery::from_static(CERTIFICATE), codec))
            .await
            .map(tonic::Response::into_inner)
    }

    /// Joins as the workload whose messages are recorded.
    pub(crate) async fn join(&self) -> Creds {
        let key = PrivateKey::generate().unwrap();
        let request =
            tulle_api::ca::IstioCertificateRequest { csr: csr(&key, None).unwrap(), ..Default::default() };
        let answer = self.certify(request.encode_to_vec()).await.unwrap();
        let (chain, bundle) = split_chain(&answer.cert_chain, &TrustDomain::default()).unwrap();
        Creds::new(chain, key, Arc::new(bundle), SystemTime::now()).unwrap()
    }

    pub(crate) async fn ads(&self, creds: &Creds) -> Raw<tulle_api::discovery::DeltaDiscoveryResponse> {
        self.stream(creds, ADS).await
    }

    pub(crate) async fn reports(&self, creds: &Creds) -> Raw<tulle_api::v1::ReportResponse> {
        self.stream(creds, REPORT).await
    }

    async fn stream<M: Message + Default + 'static>(&self, creds: &Creds, path: &'static str) -> Raw<M> {
        let tls = creds.client(&control_plane_id(&TrustDomain::default()), Alpn::Grpc);
        let mut grpc = Grpc::new(self.channel(tls));
        soon(grpc.ready()).await.unwrap();
        let (requests, outgoing) = mpsc::channel(64);
        let request = Request::new(ReceiverStream::new(outgoing));
        let codec = AsIs(PhantomData);
        let responses = soon(grpc.streaming(request, PathAndQuery::from_static(path), codec)).await.unwrap();
        Raw { requests, responses: responses.into_inner() }
    }
}

// === impl Raw ===

impl<M> Raw<M> {
    pub(crate) async fn say(&self, bytes: Vec<u8>) {
        self.requests.send(bytes.into()).await.unwrap();
    }

    pub(crate) async fn hear(&mut self) -> Result<M, Status> {
        soon(self.responses.message()).await.map(|message| message.expect("goes on"))
    }
}

// === impl AsIs ===

impl<M: Message + Default + 'static> Codec for AsIs<M> {
    type Encode = Bytes;
    type Decode = M;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(PhantomData)
    }

    fn decoder(&mut self) -> Self {
        Self(PhantomData)
    }
}

impl<M: Send + 'static> Encoder for AsIs<M> {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl<M: Message + Default + 'static> Decoder for AsIs<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        M::decode(bytes).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
