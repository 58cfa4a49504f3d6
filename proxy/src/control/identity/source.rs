//! Where certificates come from: the control plane (a token first, after that the certificate itself, and in a pod its token each time),
//! another [certificate service](super::service), or what tells them by itself: files that something else keeps, a Workload API ([`Given`]).
//!
//! Peers are judged by the roots that the control plane tells, in its answer and in its bundle. Those of a file are what it is known by itself, and
//! no more: in a pod the file is a ConfigMap of the namespace, and whoever may write that must not become everybody.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tulle_api::ca::IstioCertificateRequest;
use tulle_api::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tulle_certs::bundle::BundleError;
use tulle_certs::creds::CredsError;
use tulle_certs::id::IdError;
use tulle_certs::issue::split_chain;
use tulle_certs::key::{KeyError, csr};
use tulle_certs::token::{TokenError, TokenFile};
use tulle_certs::{
    Alpn, Creds, Pin, PodToken, PrivateKey, SpiffeId, TrustBundle, TrustDomain, bootstrap, control_plane_id,
};
use tulle_identity::{Files, Given, WorkloadApi};
use zeroize::Zeroizing;

use super::files;
use super::service::Service;
use crate::config::Config;
use crate::control::channel::{self, DialError};

/// How long one request for a certificate may take, dialling included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no (new) certificate. Says what to look at; never shows the token or a key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The token file.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The trust bundle, in a file or in the answer.
    #[error("{whence}: {why}")]
    Bundle {
        /// Which file, or the control plane.
        whence: String,
        /// What is wrong.
        why: BundleError,
    },
    /// A file.
    #[error("{path}: {why}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system or the parser said.
        why: String,
    },
    /// Our own key or request.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The control plane's address.
    #[error("the control plane's address is not usable: {0}")]
    Address(#[source] tonic::transport::Error),
    /// It did not issue.
    #[error("the control plane issued no certificate: {0}")]
    Refused(String),
    /// It could not be asked.
    #[error("the control plane could not be asked: {why}")]
    Unreachable {
        /// The innermost reason.
        why: String,
        /// Whether one side refused the other's certificate.
        tls: bool,
    },
    /// No answer in time.
    #[error("the control plane did not answer within {REQUEST_TIMEOUT:?}")]
    TimedOut,
    /// What came is not usable.
    #[error(transparent)]
    Creds(#[from] CredsError),
    /// A certificate, but another's.
    #[error("the certificate is for {got}, this workload is {expected}")]
    OtherIdentity {
        /// Who we are.
        expected: SpiffeId,
        /// Whom it names.
        got: SpiffeId,
    },
    /// A pod's token, and nothing to trust the control plane by.
    #[error("{path}: the token of a service account of Kubernetes comes without a pin; set TULLE_PROXY_IDENTITY_TRUST_BUNDLE_FILE to the mesh's roots", path = path.display())]
    NoRoots {
        /// The token file.
        path: PathBuf,
    },
    /// A pod's token that names nobody.
    #[error("{path}: {why}", path = path.display())]
    PodToken {
        /// The token file.
        path: PathBuf,
        /// Why.
        why: IdError,
    },
    /// TLS.
    #[error("TLS configuration: {0}")]
    Tls(#[from] rustls::Error),
    /// Another certificate service did not issue, or could not be asked.
    #[error("the certificate service at {address}: {why}")]
    Service {
        /// Where it is.
        address: String,
        /// What it said, and what to look at.
        why: String,
    },
}

impl IdentityError {
    /// Whether another proof of who we are, or other roots, could help.
    fn is_about_identity(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Unreachable { tls: true, .. })
    }
}

/// Where certificates come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// The control plane's certificate service.
    ControlPlane {
        /// Where it listens.
        way: channel::Way,
        /// The join token, or that of the pod's service account; read anew whenever it is needed.
        token_file: PathBuf,
        /// Roots to know the control plane by, in place of the token file's pin; read anew whenever they are needed.
        bundle_file: Option<PathBuf>,
        /// Of a pod's token, which does not say it.
        trust_domain: Option<TrustDomain>,
    },
    /// Another certificate service.
    Service(Box<Service>),
    /// Files that something else keeps, or a Workload API: followed, and not asked.
    Given(Given),
}

/// What a source gave, not yet checked as a whole.
pub(super) struct Obtained {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKey,
    pub(super) bundle: TrustBundle,
    /// Who it must be for, where that is known before.
    pub(super) expected: Option<SpiffeId>,
    /// Whether roots that are already trusted stay so beside the new ones.
    pub(super) keep_roots: bool,
}

// === impl Obtained ===

impl Obtained {
    pub(super) fn check(self, current: Option<&Creds>, now: SystemTime) -> Result<Creds, IdentityError> {
        let mut bundle = self.bundle;
        if let Some(current) = current.filter(|_| self.keep_roots) {
            // What is trusted is the control plane's to say, by its bundle: a renewal only adds.
            let mut merged = (**current.bundle()).clone();
            merged
                .merge(&bundle)
                .map_err(|why| IdentityError::Bundle { whence: "the control plane's answer".into(), why })?;
            bundle = merged;
        }
        let creds = Creds::new(self.chain, self.key, Arc::new(bundle), now)?;
        match self.expected {
            Some(expected) if &expected != creds.id() => {
                Err(IdentityError::OtherIdentity { expected, got: creds.id().clone() })
            }
            _ => Ok(creds),
        }
    }

    /// As a renewal by the control plane, which adds the root that the leaf is under to what is trusted, and none of the others in the answer: while the root is
    /// rotated that may hold one that the bundle, which may overtake it, has taken away.
    pub(super) fn adding_its_own_root(self, now: SystemTime) -> Self {
        let roots = self.bundle.roots();
        let own = match roots {
            [_] => None,
            _ => roots.iter().find_map(|root| self.under(root, now)),
        };
        Self { keep_roots: true, bundle: own.unwrap_or(self.bundle), ..self }
    }

    /// This root alone, if the leaf is under it by itself, and not by the certificate of another root that it has signed.
    fn under(&self, root: &CertificateDer<'static>, now: SystemTime) -> Option<TrustBundle> {
        let pins = self.bundle.pins();
        let is_bridge =
            |certificate: &CertificateDer<'_>| Pin::of(certificate).is_ok_and(|pin| pins.contains(&pin));
        let chain = self.chain.iter().filter(|certificate| !is_bridge(certificate)).cloned().collect();
        let alone = TrustBundle::new(self.bundle.trust_domain().clone(), vec![root.clone()]).ok()?;
        Creds::new(chain, self.key.clone(), Arc::new(alone.clone()), now).is_ok().then_some(alone)
    }
}

// === impl Source ===

impl Source {
    /// Of the configuration; `None` where it names no source (fixed configuration, tests).
    ///
    /// Errors name the settings that are missing or do not go together.
    pub fn of(config: &Config) -> Result<Option<Self>, &'static str> {
        let from = &config.identity_from;
        let bundle_file = config.identity_trust_bundle_file.clone();
        if let Some(address) = from.workload_api.clone() {
            let (wanted, hint) = (from.spiffe_id.clone(), from.svid_hint.clone());
            return Ok(Some(Self::Given(Given::WorkloadApi(WorkloadApi { address, wanted, hint }))));
        }
        if from.ca_address.is_some() {
            return Service::of(config).map(|service| Some(Self::Service(Box::new(service))));
        }
        match (&config.identity_cert_file, &config.identity_key_file, &config.identity_token_file) {
            (Some(cert), Some(key), _) => Ok(Some(Self::Given(Given::Files(Files {
                cert: cert.clone(),
                key: key.clone(),
                bundle: bundle_file.ok_or("IDENTITY_CERT_FILE needs IDENTITY_TRUST_BUNDLE_FILE")?,
                wanted: from.spiffe_id.clone(),
            })))),
            (Some(_), None, _) => Err("IDENTITY_CERT_FILE needs IDENTITY_KEY_FILE"),
            (None, Some(_), _) => Err("IDENTITY_KEY_FILE needs IDENTITY_CERT_FILE"),
            (None, None, Some(token_file)) => Ok(Some(Self::ControlPlane {
                way: channel::Way {
                    address: config
                        .control_plane_address
                        .clone()
                        .ok_or("IDENTITY_TOKEN_FILE needs CONTROL_PLANE_ADDRESS")?,
                    mark: config.intercept.proxy_mark,
                },
                token_file: token_file.clone(),
                bundle_file,
                trust_domain: config.identity_trust_domain.clone(),
            })),
            (None, None, None) if config.control_plane_address.is_some() => Err(
                "CONTROL_PLANE_ADDRESS needs IDENTITY_TOKEN_FILE, IDENTITY_CERT_FILE with its key and bundle, IDENTITY_WORKLOAD_API or IDENTITY_CA_ADDRESS",
            ),
            (None, None, None) => Ok(None),
        }
    }

    /// With what the control plane is asked: `creds`, and the roots of the file beside those that it has told. Where it has another root since it
    /// was last connected, nothing but the file can tell.
    pub fn toward_control_plane(&self, creds: Arc<Creds>, now: SystemTime) -> Arc<Creds> {
        let path = match self {
            Self::ControlPlane { bundle_file, .. } => bundle_file.as_ref(),
            Self::Service(service) => service.bundle_file.as_ref(),
            Self::Given(_) => None,
        };
        let Some(path) = path else { return creds };
        let mut roots = (**creds.bundle()).clone();
        let read = files::bundle(path, &creds.id().trust_domain()).map_err(|error| error.to_string());
        let widened = read.and_then(|file| {
            roots.merge(&file).map_err(|error| error.to_string())?;
            match roots == **creds.bundle() {
                true => Ok(None),
                false => creds.with_bundle(Arc::new(roots), now).map(Some).map_err(|error| error.to_string()),
            }
        });
        match widened {
            Ok(None) => creds,
            Ok(Some(widened)) => Arc::new(widened),
            Err(error) => {
                tracing::warn!(error, path = %path.display(), "the roots in the file are not used");
                creds
            }
        }
    }

    /// What people are told of it.
    pub fn describe(&self) -> String {
        match self {
            Self::ControlPlane { way, .. } => format!("the control plane at {}", way.address),
            Self::Service(service) => format!("the certificate service at {}", service.way.address),
            Self::Given(given) => given.to_string(),
        }
    }

    /// One try; `None` of a source that tells by itself what is new.
    pub(super) async fn obtain(
        &self,
        current: Option<&Arc<Creds>>,
        now: SystemTime,
    ) -> Result<Option<Obtained>, IdentityError> {
        match self {
            Self::Given(_) => Ok(None),
            Self::Service(service) => service.obtain().await.map(Some),
            Self::ControlPlane { way, token_file, bundle_file, trust_domain } => {
                if let Some(creds) = current.filter(|creds| !creds.is_expired(now)) {
                    let creds = self.toward_control_plane(Arc::clone(creds), now);
                    match renew(way, &creds, pod_token(token_file)).await {
                        // The certificate is not taken, or leads to another control plane than before: the token
                        // file may be newer.
                        Err(error) if error.is_about_identity() => {
                            tracing::warn!(%error, "the certificate does not renew itself; trying the token");
                        }
                        result => return result.map(Some),
                    }
                }
                let proof = Proof::read(token_file, bundle_file.as_deref(), trust_domain.as_ref())?;
                join(way, proof).await.map(Some)
            }
        }
    }
}

/// The token of a pod's service account, which is shown at each renewal: a certificate is good for no longer than the pod is there. A join token has done
/// its work, and may be gone.
fn pod_token(token_file: &Path) -> Option<Zeroizing<String>> {
    PodToken::parse(&files::read(token_file).ok()?).map(|pod| pod.token)
}

/// By the certificate that is still valid; in a pod by its token, beside which a certificate proves nothing more and might be refused: by a control plane
/// with another root.
async fn renew(
    way: &channel::Way,
    creds: &Creds,
    token: Option<Zeroizing<String>>,
) -> Result<Obtained, IdentityError> {
    let domain = creds.id().trust_domain();
    let config = match &token {
        Some(_) => bootstrap::with_bundle(Arc::clone(creds.bundle()))?,
        None => creds.client(&control_plane_id(&domain), Alpn::Grpc),
    };
    let token = token.as_ref().map(|token| token.as_str());
    let obtained = request(way, config, token, creds.id(), &domain).await?;
    Ok(obtained.adding_its_own_root(SystemTime::now()))
}

/// What a workload without a certificate has to say for itself, and by what it knows the control plane.
struct Proof {
    token: Zeroizing<String>,
    id: SpiffeId,
    trusts: Trusts,
}

enum Trusts {
    Pin(Pin),
    Roots(TrustBundle),
}

impl Proof {
    /// A join token with a pin beside it, or the token of a pod's service account. Both files may have changed since they were last read.
    fn read(
        token_file: &Path,
        bundle_file: Option<&Path>,
        trust_domain: Option<&TrustDomain>,
    ) -> Result<Self, IdentityError> {
        if let Some(pod) = PodToken::parse(&files::read(token_file)?) {
            let roots = bundle_file.ok_or_else(|| IdentityError::NoRoots { path: token_file.to_owned() })?;
            let domain = match trust_domain {
                Some(domain) => domain.clone(),
                None => files::trust_domain(roots)?.unwrap_or_default(),
            };
            let id = pod.id(&domain);
            let id = id.map_err(|why| IdentityError::PodToken { path: token_file.to_owned(), why })?;
            let trusts = Trusts::Roots(files::bundle(roots, &domain)?);
            return Ok(Self { token: pod.token, id, trusts });
        }
        let file = TokenFile::read(token_file)?;
        let id = file.claims()?.sub;
        let given = bundle_file.map(|path| files::bundle(path, &id.trust_domain())).transpose()?;
        Ok(Self { token: file.token, id, trusts: given.map_or(Trusts::Pin(file.pin), Trusts::Roots) })
    }
}

/// By a token.
async fn join(way: &channel::Way, proof: Proof) -> Result<Obtained, IdentityError> {
    let Proof { token, id, trusts } = proof;
    let domain = id.trust_domain();
    let config = match trusts {
        Trusts::Roots(bundle) => bootstrap::with_bundle(Arc::new(bundle))?,
        Trusts::Pin(pin) => bootstrap::pinned(pin, &domain)?,
    };
    request(way, config, Some(&token), &id, &domain).await
}

/// Asks the control plane; by its answer, the roots too.
async fn request(
    way: &channel::Way,
    config: Arc<ClientConfig>,
    token: Option<&str>,
    id: &SpiffeId,
    domain: &TrustDomain,
) -> Result<Obtained, IdentityError> {
    let channel = channel::lazy(way, move || Some(config.clone())).map_err(IdentityError::Address)?;
    let Answer { key, texts } = ask(channel, token, id, 0, REQUEST_TIMEOUT).await?;
    let (chain, bundle) = split_chain(&texts, domain)
        .map_err(|why| IdentityError::Bundle { whence: "the control plane's answer".into(), why })?;
    Ok(Obtained { chain, key, bundle, expected: Some(id.clone()), keep_roots: false })
}

/// A new key, and the certificates for it.
pub(super) struct Answer {
    pub(super) key: PrivateKey,
    pub(super) texts: Vec<String>,
}

/// One request for a certificate that lives for `seconds` (0: as the authority likes), answered within `patience`.
pub(super) async fn ask(
    channel: Channel,
    token: Option<&str>,
    id: &SpiffeId,
    seconds: i64,
    patience: Duration,
) -> Result<Answer, IdentityError> {
    let key = PrivateKey::generate()?;
    let mut request = Request::new(IstioCertificateRequest {
        csr: csr(&key, Some(id))?,
        validity_duration: seconds,
        metadata: None,
    });
    if let Some(token) = token {
        let mut value: MetadataValue<_> =
            format!("Bearer {token}").parse().map_err(|_| TokenError::Malformed("it is not ASCII".into()))?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    let mut client = IstioCertificateServiceClient::new(channel);
    let answer = tokio::time::timeout(patience, client.create_certificate(request))
        .await
        .map_err(|_| IdentityError::TimedOut)?
        .map_err(|status| refused(&status))?
        .into_inner();
    Ok(Answer { key, texts: answer.cert_chain })
}

/// An answer of the authority, or no answer at all; the reason is at the end of the error's sources.
fn refused(status: &Status) -> IdentityError {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument => {
            IdentityError::Refused(format!("{} ({:?})", status.message(), status.code()))
        }
        _ => {
            let mut why = status.message().to_owned();
            let mut tls = false;
            let mut source = std::error::Error::source(status);
            while let Some(error) = source {
                why = error.to_string();
                // What we said ourselves is said best; below it come the library's words.
                if let Some(dial) = error.downcast_ref::<DialError>() {
                    tls |= matches!(dial, DialError::Tls(..));
                    break;
                }
                source = error.source();
            }
            tls |= crate::tls::refused_by_peer(status);
            IdentityError::Unreachable { why, tls }
        }
    }
}
