//! The mesh's certificate authority: its keys in the state folder or in a Secret, its own or one that cert-manager writes, the
//! certificate service, and the control plane's own certificate.
//!
//! Decides who may have which certificate: the bearer of a join token the identity that the token names, a pod that of its
//! service account, by the word of the API server ([`Reviewer`]), and
//! the holder of a still valid certificate the same identity again; in a cluster, where certificates are of pods that end, only if it had joined
//! with a join token and the certificate goes back to one, and a pod shows its token each time. Never issues for an identity that a request
//! merely asks for, and never for the control plane's own. Called by the server, which opens it once per
//! [`Store`] (after locking the folder, where it is one) and mounts [`Ca::service`] on the TLS port.

mod foreign;
mod grants;
mod joining;
pub mod ledger;
mod remains;
mod review;
pub mod rotation;
mod service;
mod store;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use self::grants::Grants;
use self::ledger::Revoked;
use self::rotation::{InEffect, Record, Reports, Root};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tulle_api::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use tulle_certs::creds::CredsError;
use tulle_certs::issue::{Authority, AuthorityError, DEFAULT_LIFETIME, IssueError, Issued};
use tulle_certs::key::{KeyError, csr};
use tulle_certs::token::{JoinTokens, TokenError};
use tulle_certs::{
    Creds, Lineage, Pin, PrivateKey, SpiffeId, TrustBundle, TrustDomain, control_plane_id, renewal,
};

use crate::model::SessionKey;

pub use foreign::{Foreign, NoCertificates};
pub use grants::NotGranted;
pub use joining::{GrantError, change_ledger_in, change_ledger_of, stored_signer};
pub(crate) use remains::unusable;
pub use review::{Bearer, ReviewError, Reviewer};
pub use service::{Caller, CertificateService, Client, Outcome, Proof};
pub(crate) use store::{BESIDE_ISSUER, CA_CERTIFICATES, CA_KEY, ROOTS, ROTATION, complete_tokens};
pub use store::{Change, Condition, Kept, NAMES, Store, complete};

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
    #[error(
        "{missing} is missing although {present} is there; restore it, or remove the other to begin with a new root (every workload must then join again)"
    )]
    Half {
        /// What is there.
        present: String,
        /// What is not.
        missing: String,
    },
    /// Something that should be kept is not.
    #[error(
        "{place}: not found; is this the state folder (or the Secret) of a control plane that has been started once?"
    )]
    Absent {
        /// Where it should be.
        place: String,
    },
    /// What is kept cannot be read or written.
    #[error("{place}: {why}")]
    Store {
        /// Where it is kept.
        place: String,
        /// Why.
        why: String,
    },
    /// The stored authority cannot be used.
    #[error("{place}: {why}")]
    Authority {
        /// Where the key is, or the certificates are.
        place: String,
        /// Why.
        why: AuthorityError,
    },
    /// The stored authority is over, or not valid yet.
    #[error(
        "{place}: {why}. `tulle identity repair` makes a new root in the place of one of the control plane's own that has expired (docs/identity.md)"
    )]
    Expired {
        /// Where the certificates are.
        place: String,
        /// Which one, and its times.
        why: AuthorityError,
    },
    /// The stored token key cannot be used.
    #[error("{place}: {why}")]
    Tokens {
        /// Where the key is.
        place: String,
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
    domain: TrustDomain,
    store: Arc<dyn Store>,
    issuing: ArcSwap<Issuing>,
    /// Told of every change.
    bundle: watch::Sender<Arc<TrustBundle>>,
    /// How far a rotation of the root is; told of every change.
    record: watch::Sender<Arc<Record>>,
    /// What each of several control planes says of itself meanwhile.
    reports: Mutex<Arc<Reports>>,
    session_key: SessionKey,
    grants: Grants,
    revoked: Arc<Revoked>,
    reviewer: Option<Arc<dyn Reviewer>>,
    lifetime: Duration,
    creds: ArcSwap<Creds>,
    renewal: Mutex<Renewal>,
    /// Held by who takes in what has changed.
    taking: Mutex<()>,
    /// Held by who changes how far a rotation is, until that is taken in: a folder tells two of one process from one another no more than it tells them anything.
    stepping: tokio::sync::Mutex<()>,
    observer: Observer,
}

/// What is kept, ready for use.
struct Issuing {
    kept: Kept,
    authority: Authority,
    pin: Pin,
    tokens: Arc<JoinTokens>,
    record: Arc<Record>,
    /// The record is of another root.
    void: bool,
    /// The root that a rotation follows, or would.
    root: Root,
    /// What is shown behind the control plane's own root.
    shown: Vec<CertificateDer<'static>>,
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
    /// Says whose the tokens of service accounts are, where there is an API server.
    pub reviewer: Option<Arc<dyn Reviewer>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { lifetime: DEFAULT_LIFETIME, observer: Box::new(|_| {}), reviewer: None }
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
        let folder = store::folder::Folder::new(state_dir);
        let mut kept = folder.read()?;
        let made = complete(&mut kept, &|name| folder.path_of(name), domain, now)?;
        folder.write(&kept, &made)?;
        Self::with_store(Arc::new(folder), kept, domain, now, options)
    }

    /// Opens the authority with what a store holds, which is [complete].
    pub fn with_store(
        store: Arc<dyn Store>,
        kept: Kept,
        domain: &TrustDomain,
        now: SystemTime,
        options: Options,
    ) -> Result<Self, CaError> {
        let reports = Arc::new(rotation::reports(&kept));
        let tokens = kept.get(store::TOKENS).map(|text| text.as_str());
        let revoked = Arc::new(Revoked::open(Arc::clone(&store), tokens)?);
        let grants = kept.get(store::GRANTS).map(|text| text.as_str());
        let grants = Grants::open(Arc::clone(&store), grants, Arc::clone(&revoked));
        let issuing = Issuing::read(kept, &*store, domain, now)?;
        let creds = own_creds(&issuing, options.lifetime, now)?;
        let due = now + renewal::next(now, creds.not_after(), now, 0, 0.0);
        tracing::info!(trust_domain = %domain, root = %issuing.pin, kept = store.place(CA_KEY), "certificate authority open");
        Ok(Self(Arc::new(Inner {
            domain: domain.clone(),
            store,
            bundle: watch::Sender::new(Arc::new(issuing.authority.bundle().clone())),
            record: watch::Sender::new(Arc::clone(&issuing.record)),
            reports: Mutex::new(reports),
            session_key: SessionKey::derive(issuing.tokens.key().to_pem().as_bytes()),
            issuing: ArcSwap::from_pointee(issuing),
            grants,
            revoked,
            reviewer: options.reviewer,
            lifetime: options.lifetime,
            creds: ArcSwap::from_pointee(creds),
            renewal: Mutex::new(Renewal { failures: 0, due }),
            taking: Mutex::default(),
            stepping: tokio::sync::Mutex::default(),
            observer: options.observer,
        })))
    }

    /// Takes in what somebody else has written into the store: all of what is kept by these `names`; what is kept by others is as it was. What
    /// cannot be used is refused as a whole, and what is in use stays.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn take_in(&self, written: Kept, names: &[&'static str], now: SystemTime) -> Result<(), CaError> {
        let inner = &self.0;
        if let Some(grants) = written.get(store::GRANTS) {
            inner.grants.take_in(grants);
        }
        if written.contains_key(store::REPORTS) {
            *inner.reports.lock() = Arc::new(rotation::reports(&written));
        }
        if let Some(tokens) = written.get(store::TOKENS) {
            inner.revoked.take_in(tokens);
        }
        // Two Secrets may change at once, each of which tells half.
        let _turn = inner.taking.lock();
        let current = inner.issuing.load();
        let mut kept = current.kept.clone();
        kept.retain(|name, _| !names.contains(name));
        kept.extend(written);
        let differs = |name: &str| kept.get(name) != current.kept.get(name);
        if ![CA_KEY, CA_CERTIFICATES, store::TOKEN_KEY, ROTATION].into_iter().any(differs) {
            return Ok(());
        }
        let issuing = Issuing::read(kept, &*inner.store, &inner.domain, now)?;
        let record = Arc::clone(&issuing.record);
        if issuing.is_as(&current) {
            inner.issuing.store(Arc::new(issuing));
            inner.tell(record);
            return Ok(());
        }
        let creds = own_creds(&issuing, inner.lifetime, now)?;
        let due = now + renewal::next(now, creds.not_after(), now, 0, 0.0);
        let bundle = Arc::new(issuing.authority.bundle().clone());
        tracing::info!(root = %issuing.pin, ?bundle, "the certificate authority has changed");
        // The new roots are told before anything is signed that needs them.
        inner.bundle.send_if_modified(|before| {
            let differs = *before != bundle;
            *before = bundle;
            differs
        });
        inner.issuing.store(Arc::new(issuing));
        *inner.renewal.lock() = Renewal { failures: 0, due };
        inner.creds.store(Arc::new(creds));
        inner.tell(record);
        Ok(())
    }

    /// What is in use, to write it again where it was lost.
    pub fn kept(&self) -> Kept {
        let mut kept = self.0.issuing.load().kept.clone();
        kept.extend(self.0.grants.text().map(|text| (store::GRANTS, text)));
        kept.extend(self.0.revoked.text().map(|text| (store::TOKENS, text)));
        kept
    }

    /// Whether half an authority is there at least.
    pub(crate) fn is_begun(kept: &Kept) -> bool {
        [CA_KEY, CA_CERTIFICATES].into_iter().any(|name| kept.contains_key(name))
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
            match own_creds(&inner.issuing.load(), inner.lifetime, now) {
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
        self.0.bundle.borrow().clone()
    }

    /// The same, and every later one.
    pub fn bundles(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.0.bundle.subscribe()
    }

    /// The pin of the root, for join token files.
    pub fn pin(&self) -> Pin {
        self.0.issuing.load().pin
    }

    /// What seals the tokens of sessions: derived from the key of join tokens, which outlives roots, as it was at the start.
    pub fn session_key(&self) -> SessionKey {
        self.0.session_key.clone()
    }

    /// Mints and verifies join tokens.
    pub fn tokens(&self) -> Arc<JoinTokens> {
        Arc::clone(&self.0.issuing.load().tokens)
    }

    /// Whether a join token that `id` joined with lets it register as an endpoint of a service of its namespace.
    pub fn may_register(&self, id: &SpiffeId, service: &str) -> Result<(), NotGranted> {
        self.0.grants.check(id, service, |jti| self.0.revoked.is_token(jti))
    }

    /// Whether it has joined with a join token.
    pub fn has_joined(&self, id: &SpiffeId) -> bool {
        self.0.grants.knows(id, |jti| self.0.revoked.is_token(jti))
    }

    /// Whom it issues for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.domain
    }

    /// When the issuing chain expires, for the expiry metric.
    pub fn not_after(&self) -> SystemTime {
        self.validity().1
    }

    /// First and last valid moment of the issuing chain, for warnings.
    pub fn validity(&self) -> (SystemTime, SystemTime) {
        self.0.issuing.load().authority.validity()
    }

    /// The same of the root that it ends in.
    pub fn root_validity(&self) -> (SystemTime, SystemTime) {
        let issuing = self.0.issuing.load();
        // It was read when it was taken in.
        issuing.authority.root_validity().unwrap_or_else(|_| issuing.authority.validity())
    }

    /// Issues for an identity that the caller has authenticated; never longer than the configured lifetime.
    fn issue(
        &self,
        request: &str,
        id: &SpiffeId,
        wanted: Option<Duration>,
        lineage: Option<Lineage>,
        now: SystemTime,
    ) -> Result<Issued, IssueError> {
        let lifetime = wanted.map_or(self.0.lifetime, |wanted| wanted.min(self.0.lifetime));
        self.0.issuing.load().authority.issue_of(request, id, lifetime, now, lineage)
    }
}

// === impl Issuing ===

impl Issuing {
    fn read(kept: Kept, store: &dyn Store, domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        let place = |name: &str| store.place(name);
        let InEffect { authority, record, void, root, shown } =
            rotation::in_effect(&kept, &place, domain, now)?;
        let tokens = Arc::new(store::tokens(&kept, &place)?);
        let pin = authority.pin().map_err(|why| store::in_authority(&place, why))?;
        Ok(Self { kept, authority, pin, tokens, record: Arc::new(record), void, root, shown })
    }

    /// Whether both issue, trust and show the same.
    fn is_as(&self, other: &Self) -> bool {
        let keys = [CA_KEY, CA_CERTIFICATES, store::TOKEN_KEY];
        keys.into_iter().all(|name| self.kept.get(name) == other.kept.get(name))
            && self.record.state.word() == other.record.state.word()
            && self.authority.bundle() == other.authority.bundle()
            && self.pin == other.pin
            && self.shown == other.shown
    }
}

impl Inner {
    fn tell(&self, record: Arc<Record>) {
        self.record.send_if_modified(|before| {
            let differs = *before != record;
            *before = record;
            differs
        });
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("authority", &self.0.issuing.load().authority).finish_non_exhaustive()
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
    let folder = store::folder::Folder::new(state_dir);
    store::stored_tokens(&folder.read()?, &|name| folder.path_of(name))
}

/// The same of what a store holds with an authority of our own.
pub(crate) fn stored_tokens_of(kept: &Kept, place: &dyn Fn(&str) -> String) -> Result<StoredTokens, CaError> {
    store::stored_tokens(kept, place)
}

/// The same where somebody else makes the issuing certificate, under one of these roots (PEM, kept at `place_of_roots`).
pub(crate) fn stored_tokens_under(
    kept: &Kept,
    place: &dyn Fn(&str) -> String,
    (roots, place_of_roots): (&str, String),
) -> Result<StoredTokens, CaError> {
    let tokens = store::tokens(kept, place)?;
    let wrong = |why: String| CaError::Store { place: place_of_roots.clone(), why };
    let read = tulle_certs::pem::certificates(roots).map_err(|error| wrong(error.to_string()))?;
    let [root] = &read[..] else {
        let count = read.len();
        return Err(wrong(format!(
            "it holds {count} roots, and a token pins one; make it once one has taken the other's place"
        )));
    };
    let pin = Pin::of(root).map_err(wrong)?;
    let trust_domain = TrustBundle::trust_domain_in(roots).map_err(|error| wrong(error.to_string()))?;
    Ok(StoredTokens { tokens, pin, trust_domain })
}

/// A key and certificate for the control plane itself, the root in the chain so that pins can be checked, and behind it what leads there from the pins
/// of former roots.
fn own_creds(issuing: &Issuing, lifetime: Duration, now: SystemTime) -> Result<Creds, CaError> {
    let (authority, shown) = (&issuing.authority, &issuing.shown);
    let key = PrivateKey::generate()?;
    let request = csr(&key, None)?;
    let id = control_plane_id(authority.trust_domain());
    let issued = authority.issue(&request, &id, lifetime, now)?;
    let mut chain = issued.chain_with_root();
    // A bridge has the root's own key, and ends sooner: who looks for that key finds the root first.
    chain.retain(|certificate| !shown.contains(certificate));
    chain.extend(shown.iter().cloned());
    Ok(Creds::new(chain, key, Arc::new(authority.bundle().clone()), now)?)
}

#[cfg(test)]
mod tests;
