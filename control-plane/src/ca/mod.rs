//! The mesh's certificate authority: its keys in the state folder, the certificate service, and the control
//! plane's own certificate.
//!
//! Decides who may have which certificate: the bearer of a join token the identity that the token names, and
//! the holder of a still valid certificate the same identity again. Never issues for an identity that a request
//! merely asks for, and never for the control plane's own. Called by the server, which opens it once per state
//! folder (after locking the folder) and mounts [`Ca::service`] on the TLS port.

mod grants;
mod service;
mod store;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use self::grants::Grants;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tulle_api::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use tulle_certs::creds::CredsError;
use tulle_certs::issue::{Authority, AuthorityError, DEFAULT_LIFETIME, IssueError, Issued};
use tulle_certs::key::{KeyError, csr};
use tulle_certs::token::{JoinTokens, TokenError};
use tulle_certs::{Creds, Pin, PrivateKey, SpiffeId, TrustBundle, TrustDomain, control_plane_id, renewal};

use crate::model::SessionKey;

pub use grants::NotGranted;
pub use service::{Caller, CertificateService, Outcome, Proof};

/// Why the authority cannot start. Each message names the file and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file or folder cannot be read or written.
    #[error("{path}: {why}", path = path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        why: std::io::Error,
    },
    /// A private key that others can read.
    #[error("{path}: the private key is readable by others (mode {mode:04o}); chmod 600 it, and replace it if it may have been read", path = path.display())]
    Permissions {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Key without certificate or certificate without key.
    #[error("{missing} is missing although {present} is there; restore it, or remove the other to begin with a new root (every workload must then join again)", missing = missing.display(), present = present.display())]
    Half {
        /// What is there.
        present: PathBuf,
        /// What is not.
        missing: PathBuf,
    },
    /// The stored authority cannot be used.
    #[error("{path}: {why}", path = path.display())]
    Authority {
        /// The file of the key or of the certificates.
        path: PathBuf,
        /// Why.
        why: AuthorityError,
    },
    /// The stored token key cannot be used.
    #[error("{path}: {why}", path = path.display())]
    Tokens {
        /// The key file.
        path: PathBuf,
        /// Why.
        why: TokenError,
    },
    /// A key could not be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The control plane's own certificate could not be issued.
    #[error("the control plane's own certificate: {0}")]
    Issue(#[from] IssueError),
    /// The control plane's own certificate could not be used.
    #[error("the control plane's own certificate: {0}")]
    Creds(#[from] CredsError),
}

/// The authority. Cheap to clone.
#[derive(Clone)]
pub struct Ca(Arc<Inner>);

struct Inner {
    authority: Authority,
    bundle: Arc<TrustBundle>,
    pin: Pin,
    tokens: JoinTokens,
    grants: Grants,
    lifetime: Duration,
    creds: ArcSwap<Creds>,
    renewal: Mutex<Renewal>,
    observer: Observer,
}

/// Told of every request's outcome, for metrics.
type Observer = Box<dyn Fn(Outcome) + Send + Sync>;

/// When the control plane's own certificate is due again.
struct Renewal {
    failures: u32,
    due: SystemTime,
}

/// How the authority is opened.
pub struct Options {
    /// How long leaves live at most; a shorter life may be asked for. 24 h unless set.
    pub lifetime: Duration,
    /// Called with the outcome of every request.
    pub observer: Observer,
}

impl Default for Options {
    fn default() -> Self {
        Self { lifetime: DEFAULT_LIFETIME, observer: Box::new(|_| {}) }
    }
}

// === impl Ca ===

impl Ca {
    /// [`open_with`](Self::open_with) with the default options.
    pub fn open(state_dir: &Path, domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        Self::open_with(state_dir, domain, now, Options::default())
    }

    /// Opens the authority of a state folder, making root, key and token key where there are none.
    ///
    /// `ca-key.pem` and `ca.pem` may be given instead: an issuing key with its certificate, those above it and the
    /// root, in any order. The folder must be locked by the caller.
    pub fn open_with(
        state_dir: &Path,
        domain: &TrustDomain,
        now: SystemTime,
        options: Options,
    ) -> Result<Self, CaError> {
        let authority = store::authority(state_dir, domain, now)?;
        let tokens = store::tokens(state_dir)?;
        let pin = authority.pin().map_err(|why| store::in_authority(state_dir, why))?;
        let creds = own_creds(&authority, options.lifetime, now)?;
        let due = now + renewal::next(now, creds.not_after(), now, 0, 0.0);
        tracing::info!(trust_domain = %domain, root = %pin, state_dir = %state_dir.display(), "certificate authority open");
        Ok(Self(Arc::new(Inner {
            bundle: Arc::new(authority.bundle().clone()),
            authority,
            pin,
            tokens,
            grants: Grants::open(state_dir)?,
            lifetime: options.lifetime,
            creds: ArcSwap::from_pointee(creds),
            renewal: Mutex::new(Renewal { failures: 0, due }),
            observer: options.observer,
        })))
    }

    /// The gRPC service to mount on the TLS port, which puts a [`Caller`] into the extensions of requests that
    /// come with a client certificate.
    pub fn service(&self) -> IstioCertificateServiceServer<CertificateService> {
        IstioCertificateServiceServer::new(CertificateService::new(self.clone()))
            .max_decoding_message_size(128 * 1024)
    }

    /// The control plane's own credentials, for the TLS port: ask at every accepted connection. They are renewed
    /// in passing when due.
    pub fn creds(&self) -> Arc<Creds> {
        self.creds_at(SystemTime::now())
    }

    /// [`creds`](Self::creds) at a given time.
    pub fn creds_at(&self, now: SystemTime) -> Arc<Creds> {
        let inner = &self.0;
        // Whoever finds it locked takes what there is.
        if let Some(mut renewal) = inner.renewal.try_lock()
            && renewal.due <= now
        {
            match own_creds(&inner.authority, inner.lifetime, now) {
                Ok(creds) => {
                    let wait = renewal::next(now, creds.not_after(), now, 0, 0.0);
                    *renewal = Renewal { failures: 0, due: now + wait.max(Duration::from_secs(1)) };
                    tracing::info!(?creds, "renewed the control plane's own certificate");
                    inner.creds.store(Arc::new(creds));
                }
                Err(error) => {
                    renewal.failures = renewal.failures.saturating_add(1);
                    renewal.due = now + renewal::backoff(renewal.failures, 1.0);
                    tracing::error!(%error, "renewing the control plane's own certificate failed");
                }
            }
        }
        inner.creds.load_full()
    }

    /// The roots that every proxy is given.
    pub fn bundle(&self) -> Arc<TrustBundle> {
        self.0.bundle.clone()
    }

    /// The pin of the root, for join token files.
    pub fn pin(&self) -> Pin {
        self.0.pin
    }

    /// What seals the tokens of sessions: derived from the key of join tokens, which outlives roots.
    pub fn session_key(&self) -> SessionKey {
        SessionKey::derive(self.0.tokens.key().to_pem().as_bytes())
    }

    /// Mints and verifies join tokens.
    pub fn tokens(&self) -> &JoinTokens {
        &self.0.tokens
    }

    /// Whether a join token that `id` joined with lets it register as an endpoint of a service of its namespace.
    pub fn may_register(&self, id: &SpiffeId, service: &str) -> Result<(), NotGranted> {
        self.0.grants.check(id, service)
    }

    /// Remembers what a verified join token grants.
    async fn grant(&self, id: &SpiffeId, services: &[String]) -> Result<(), CaError> {
        self.0.grants.add(id, services).await
    }

    /// Whom it issues for.
    pub fn trust_domain(&self) -> &TrustDomain {
        self.0.authority.trust_domain()
    }

    /// When the issuing chain expires, for warnings and the expiry metric.
    pub fn not_after(&self) -> SystemTime {
        self.0.authority.not_after()
    }

    /// Issues for an identity that the caller has authenticated; never longer than the configured lifetime.
    fn issue(
        &self,
        request: &str,
        id: &SpiffeId,
        wanted: Option<Duration>,
        now: SystemTime,
    ) -> Result<Issued, IssueError> {
        let lifetime = wanted.map_or(self.0.lifetime, |wanted| wanted.min(self.0.lifetime));
        self.0.authority.issue(request, id, lifetime, now)
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("authority", &self.0.authority).finish_non_exhaustive()
    }
}

/// What join tokens are made with.
#[derive(Debug)]
pub struct StoredTokens {
    /// Signs them.
    pub tokens: JoinTokens,
    /// Of the root that the authority's certificates chain to.
    pub pin: Pin,
    /// What the root was made for, if it says.
    pub trust_domain: Option<TrustDomain>,
}

/// What a state folder holds for making join tokens, without opening the authority for
/// issuing: for `tulle token create` beside a running control plane. Nothing is made that is not there.
pub fn stored_tokens(state_dir: &Path) -> Result<StoredTokens, CaError> {
    store::stored_tokens(state_dir)
}

/// A key and certificate for the control plane itself, the root in the chain so that pins can be checked.
fn own_creds(authority: &Authority, lifetime: Duration, now: SystemTime) -> Result<Creds, CaError> {
    let key = PrivateKey::generate()?;
    let request = csr(&key, None)?;
    let id = control_plane_id(authority.trust_domain());
    let issued = authority.issue(&request, &id, lifetime, now)?;
    Ok(Creds::new(issued.chain_with_root(), key, Arc::new(authority.bundle().clone()), now)?)
}

#[cfg(test)]
mod tests;
