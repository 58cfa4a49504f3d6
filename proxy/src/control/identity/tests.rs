//! Joining and renewing against a small certificate service over real TLS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status};
use tulle_api::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use tulle_api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tulle_certs::issue::{Authority, ROOT_LIFETIME};
use tulle_certs::key::csr;
use tulle_certs::token::{JoinTokens, TokenFile};
use tulle_certs::{PodToken, PrivateKey, SpiffeId, TrustDomain, control_plane_id, peer_id, pem};
use tulle_identity::{Files, Given};

use super::*;
use crate::config::HostPort;

mod pods;
mod service;

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::now()
}

fn web() -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), "shop", "web").unwrap()
}

/// What a control plane keeps over a restart.
struct State {
    authority: Authority,
    tokens: JoinTokens,
    /// How long leaves live.
    lifetime: Duration,
}

impl State {
    fn new() -> Arc<Self> {
        Self::with_lifetime(HOUR)
    }

    fn with_lifetime(lifetime: Duration) -> Arc<Self> {
        let authority = Authority::generate(&TrustDomain::default(), ROOT_LIFETIME, now()).unwrap();
        Arc::new(Self { authority, tokens: JoinTokens::generate().unwrap(), lifetime })
    }

    fn creds(&self, id: &SpiffeId) -> Creds {
        let key = PrivateKey::generate().unwrap();
        let issued = self.authority.issue(&csr(&key, None).unwrap(), id, HOUR, now()).unwrap();
        let bundle = Arc::new(self.authority.bundle().clone());
        Creds::new(issued.chain_with_root(), key, bundle, now()).unwrap()
    }

    fn token_file(&self, dir: &Path, lifetime: Duration, at: SystemTime) -> PathBuf {
        let token = self.tokens.mint(&web(), &[], lifetime, at).unwrap();
        let path = dir.join("token");
        std::fs::write(&path, &*TokenFile::new(token, self.authority.pin().unwrap()).to_text()).unwrap();
        path
    }
}

struct Service {
    state: Arc<State>,
    /// Tells by what each request was proven.
    asked: tokio::sync::mpsc::UnboundedSender<&'static str>,
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let (id, proof) = match request.metadata().get("authorization") {
            Some(value) => {
                let token = value.to_str().unwrap().strip_prefix("Bearer ").unwrap();
                if let Some(pod) = PodToken::parse(token) {
                    let id = pod.id(self.state.authority.trust_domain()).unwrap();
                    return self.issue(&id, "pod", request.get_ref());
                }
                let claims = self.state.tokens.verify(token, now());
                (claims.map_err(|e| Status::unauthenticated(e.to_string()))?.sub, "token")
            }
            None => (peer_id(&request.peer_certs().unwrap()).unwrap(), "certificate"),
        };
        self.issue(&id, proof, request.get_ref())
    }
}

impl Service {
    fn issue(
        &self,
        id: &SpiffeId,
        proof: &'static str,
        request: &IstioCertificateRequest,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.asked.send(proof).unwrap();
        let issued = self.state.authority.issue(&request.csr, id, self.state.lifetime, now());
        let issued = issued.map_err(|e| Status::invalid_argument(e.to_string()))?;
        Ok(Response::new(IstioCertificateResponse { cert_chain: issued.to_pem() }))
    }
}

/// A running certificate service; stopped when dropped.
struct ControlPlane {
    address: SocketAddr,
    asked: tokio::sync::mpsc::UnboundedReceiver<&'static str>,
    task: AbortHandle,
}

impl ControlPlane {
    async fn start(state: &Arc<State>) -> Self {
        Self::start_as(state, &control_plane_id(&TrustDomain::default())).await
    }

    async fn start_as(state: &Arc<State>, id: &SpiffeId) -> Self {
        Self::start_behind(state, state.creds(id).control_plane()).await
    }

    async fn start_behind(state: &Arc<State>, tls: Arc<rustls::ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(tls);
        let (sender, asked) = tokio::sync::mpsc::unbounded_channel();
        let service = IstioCertificateServiceServer::new(Service { state: state.clone(), asked: sender });
        let (streams, incoming) = tokio::sync::mpsc::channel(1);
        let accepting = async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if let Ok(stream) = acceptor.accept(stream).await {
                    streams.send(Ok::<_, std::io::Error>(stream)).await.unwrap();
                }
            }
        };
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(tokio_stream::wrappers::ReceiverStream::new(incoming));
        let task = tokio::spawn(async move {
            tokio::select! {
                () = accepting => {}
                served = serving => served.unwrap(),
            }
        });
        Self { address, asked, task: task.abort_handle() }
    }

    fn source(&self, token_file: PathBuf) -> Source {
        let address = HostPort { host: "127.0.0.1".into(), port: self.address.port() };
        let way = crate::control::channel::Way { address, mark: None };
        Source::ControlPlane { way, token_file, bundle_file: None, trust_domain: None }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn a_workload_joins_by_token_and_renews_by_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::new();
    let mut cp = ControlPlane::start(&state).await;
    let source = cp.source(state.token_file(dir.path(), HOUR, now()));
    let identity = Identity::new();
    let mut changes = identity.subscribe();
    assert!(identity.current().is_none());
    assert!(identity.obtain(&source).await.unwrap());
    let first = identity.ready().await;
    assert_eq!(first.id(), &web());
    assert_eq!(**first.bundle(), *state.authority.bundle());
    assert_eq!(cp.asked.recv().await, Some("token"));
    assert!(changes.has_changed().unwrap());
    assert!(Arc::ptr_eq(&first, changes.borrow_and_update().as_ref().unwrap()));

    // The token has done its work: it may be gone.
    std::fs::remove_file(dir.path().join("token")).unwrap();
    assert!(identity.obtain(&source).await.unwrap());
    assert_eq!(cp.asked.recv().await, Some("certificate"));
    let second = identity.current().unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    assert_ne!(first.key().public_key(), second.key().public_key(), "every certificate has a key of its own");
    assert!(changes.has_changed().unwrap());
}

#[tokio::test]
async fn a_short_life_is_not_over_at_once_because_leaves_are_backdated() {
    let dir = tempfile::tempdir().unwrap();
    // Shorter than leaves are back-dated.
    let state = State::with_lifetime(Duration::from_secs(12));
    let mut cp = ControlPlane::start(&state).await;
    let source = cp.source(state.token_file(dir.path(), HOUR, now()));
    let metrics = Arc::new(ControlMetrics::default());
    let identity = Identity::new();
    let keeping = tokio::spawn(identity.clone().keep(source.clone(), metrics));
    let creds = identity.ready().await;
    assert_eq!(cp.asked.recv().await, Some("token"));
    let wait = identity.wait(now(), 0);
    assert!(wait > Duration::from_secs(6) && wait <= Duration::from_secs(9), "{wait:?}");
    assert!(!creds.is_expired(now()));
    // And that is what people are told.
    while identity.renews_at().is_none() {
        tokio::task::yield_now().await;
    }
    let told = identity.renews_at().unwrap().duration_since(now()).unwrap();
    assert!(told > Duration::from_secs(5) && told <= Duration::from_secs(9), "{told:?}");
    keeping.abort();
}

#[tokio::test]
async fn the_old_certificate_serves_on_while_the_control_plane_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::new();
    let cp = ControlPlane::start(&state).await;
    let source = cp.source(state.token_file(dir.path(), HOUR, now()));
    let identity = Identity::new();
    identity.obtain(&source).await.unwrap();
    let first = identity.current().unwrap();
    drop(cp);
    let error = identity.obtain(&source).await.unwrap_err();
    assert!(matches!(error, IdentityError::Unreachable { .. } | IdentityError::TimedOut), "{error}");
    assert!(Arc::ptr_eq(&first, &identity.current().unwrap()));
    let wait = |failures| identity.wait(now(), failures);
    assert_eq!(wait(1), LEAST_WAIT);
    assert!(wait(20) >= Duration::from_secs(30) && wait(20) <= Duration::from_secs(60));
    let waits_less_without = Identity::new().wait(now(), 20);
    assert!(waits_less_without <= Duration::from_secs(4), "{waits_less_without:?}");
}

#[tokio::test]
async fn an_impostor_is_not_given_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::new();
    let token_file = state.token_file(dir.path(), HOUR, now());
    let workload = SpiffeId::new(&TrustDomain::default(), "shop", "orders").unwrap();
    let other = State::new();
    let pins = |state: &State| state.authority.pin().unwrap().to_string();
    let cases = [
        (ControlPlane::start(&other).await, vec!["tls_unknown_root".to_owned(), pins(&state), pins(&other)]),
        (ControlPlane::start_as(&state, &workload).await, vec!["tls_wrong_identity".to_owned()]),
    ];
    for (mut cp, words) in cases {
        let identity = Identity::new();
        let error = identity.obtain(&cp.source(token_file.clone())).await.unwrap_err();
        assert!(matches!(error, IdentityError::Unreachable { tls: true, .. }), "{error:?}");
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(text.contains(&cp.address.to_string()), "{text}");
        assert!(identity.current().is_none());
        assert!(cp.asked.try_recv().is_err());
    }
}

#[tokio::test]
async fn bad_tokens_are_told_without_showing_them() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::new();
    let cp = ControlPlane::start(&state).await;
    let identity = Identity::new();
    let expired = cp.source(state.token_file(dir.path(), HOUR, now() - 2 * HOUR));
    let error = identity.obtain(&expired).await.unwrap_err();
    assert!(matches!(error, IdentityError::Refused(_)), "{error}");
    assert!(error.to_string().contains("expired") && error.to_string().contains("token create"), "{error}");
    let token = std::fs::read_to_string(dir.path().join("token")).unwrap();
    assert!(!error.to_string().contains(token.lines().next().unwrap()));
    let missing = cp.source(dir.path().join("nothing"));
    let error = identity.obtain(&missing).await.unwrap_err().to_string();
    assert!(error.contains("nothing"), "{error}");
}

#[tokio::test]
async fn a_control_plane_that_lost_its_root_is_rejoined_with_a_new_token_file() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::new();
    let identity = Identity::new();
    let cp = ControlPlane::start(&state).await;
    identity.obtain(&cp.source(state.token_file(dir.path(), HOUR, now()))).await.unwrap();
    let new = State::new();
    let mut cp = ControlPlane::start(&new).await;
    let source = cp.source(dir.path().join("token"));
    assert!(identity.obtain(&source).await.is_err(), "the old pin");
    new.token_file(dir.path(), HOUR, now());
    assert!(identity.obtain(&source).await.unwrap());
    assert_eq!(cp.asked.recv().await, Some("token"));
    assert_eq!(**identity.current().unwrap().bundle(), *new.authority.bundle());
}

#[tokio::test]
async fn a_bundle_from_the_control_plane_replaces_the_roots_but_never_disowns_us() {
    let (old, new) = (State::new(), State::new());
    let identity = Identity::fixed(old.creds(&web()));
    let mut both = old.authority.bundle().clone();
    both.merge(new.authority.bundle()).unwrap();
    identity.set_bundle(both.clone(), now()).unwrap();
    let merged = identity.current().unwrap();
    assert_eq!(merged.bundle().roots().len(), 2);
    identity.set_bundle(both, now()).unwrap();
    assert!(Arc::ptr_eq(&merged, &identity.current().unwrap()), "nothing changes for the same bundle");
    assert!(identity.set_bundle(new.authority.bundle().clone(), now()).is_err());
    assert!(Arc::ptr_eq(&merged, &identity.current().unwrap()));
    assert!(Identity::new().set_bundle(new.authority.bundle().clone(), now()).is_ok());
}

#[test]
fn a_renewal_adds_the_root_that_it_is_under_and_brings_none_back_that_is_trusted_no_more() {
    let (old, new) = (State::new(), State::new());
    let bridge = old.authority.bridge_to(&new.authority, now()).unwrap();
    let mut both = old.authority.bundle().clone();
    both.merge(new.authority.bundle()).unwrap();
    let renewed = || {
        let key = PrivateKey::generate().unwrap();
        let issued = new.authority.issue(&csr(&key, None).unwrap(), &web(), HOUR, now()).unwrap();
        let chain = issued.chain.into_iter().chain([bridge.clone()]).collect();
        let (bundle, expected) = (both.clone(), Some(web()));
        source::Obtained { chain, key, bundle, expected, keep_roots: false }.adding_its_own_root(now())
    };
    // The answer was on its way when the bundle came.
    let current = new.creds(&web());
    let creds = renewed().check(Some(&current), now()).unwrap();
    assert_eq!(creds.bundle(), current.bundle());
    // The bundle has not come yet.
    let current = old.creds(&web());
    let creds = renewed().check(Some(&current), now()).unwrap();
    assert_eq!(creds.bundle().roots(), both.roots());
}

#[tokio::test(start_paused = true)]
async fn files_are_followed_and_say_whom_to_trust() {
    let dir = tempfile::tempdir().unwrap();
    let (state, other) = (State::new(), State::new());
    let path = |name: &str| dir.path().join(name);
    let write = |creds: &Creds| {
        let chain: String = creds.chain().iter().rev().map(|der| pem::encode_certificate(der)).collect();
        std::fs::write(path("cert"), chain).unwrap();
        std::fs::write(path("key"), &*creds.key().to_pem()).unwrap();
        std::fs::write(path("roots"), creds.bundle().to_pem()).unwrap();
    };
    let files = Files { cert: path("cert"), key: path("key"), bundle: path("roots"), wanted: None };
    let source = Source::Given(Given::Files(files));
    let first = state.creds(&web());
    write(&first);
    let identity = Identity::new();
    let mut changes = identity.subscribe();
    let keeping = tokio::spawn(identity.clone().keep(source, Arc::new(ControlMetrics::default())));
    let taken = identity.ready().await;
    assert_eq!(taken.chain(), first.chain());
    assert!(identity.source().contains("cert") && identity.renews_at().is_none());

    // The control plane's roots are not taken from here on; who lacks one of them says so.
    assert!(identity.set_bundle(state.authority.bundle().clone(), now()).is_ok());
    let mut both = state.authority.bundle().clone();
    both.merge(other.authority.bundle()).unwrap();
    let refused = identity.set_bundle(both, now()).unwrap_err().to_string();
    assert!(refused.contains("cert") && refused.contains("add it there"), "{refused}");
    assert!(Arc::ptr_eq(&taken, &identity.current().unwrap()));

    changes.borrow_and_update();
    let second = state.creds(&web());
    write(&second);
    changes.changed().await.unwrap();
    assert_eq!(identity.current().unwrap().chain(), second.chain());

    // Once the files have it too, the control plane is to be asked again.
    let mut asked = std::pin::pin!(identity.other_roots());
    assert!(tokio::time::timeout(HOUR, &mut asked).await.is_err(), "the roots are the same");
    let mut all = state.authority.bundle().clone();
    all.merge(other.authority.bundle()).unwrap();
    std::fs::write(path("roots"), all.to_pem()).unwrap();
    asked.await;
    identity.set_bundle(all, now()).unwrap();
    keeping.abort();
}
