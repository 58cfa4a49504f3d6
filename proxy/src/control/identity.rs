//! This workload's identity: obtained, published, renewed.
//!
//! Decides when a certificate is asked for and by which proof: the token once, then the certificate itself, in a pod with its token. What tells
//! of a new one by itself, a Workload API or files, is followed, and says whom to trust, too.
//! A new one replaces the old one only after it has been checked; while the control plane is away, the old one
//! serves on. Never writes a key anywhere. Started by `app`; read by everything that speaks TLS.

mod files;
mod service;
mod source;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwapOption, Guard};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, watch};
use tulle_certs::creds::CredsError;
use tulle_certs::{Creds, TrustBundle, renewal};
use tulle_identity::{Follower, SourceError};

use crate::telemetry::metrics::{CertKind, ControlMetrics};

pub use service::Service;
pub use source::{IdentityError, Source};

/// No two tries come closer than this, whatever the clocks say.
const LEAST_WAIT: Duration = Duration::from_secs(1);

/// Why the control plane's roots are not in use.
#[derive(Debug, thiserror::Error)]
pub enum BundleRefused {
    /// They disown us.
    #[error(transparent)]
    Creds(#[from] CredsError),
    /// Others are in use, which lack one of them.
    #[error("this proxy trusts the roots of its own source, {0}, which lack one of these; add it there")]
    Lacks(String),
}

/// The current credentials, published by one task and read by all threads.
pub struct Identity {
    current: Arc<ArcSwapOption<Creds>>,
    changed: watch::Sender<Option<Arc<Creds>>>,
    /// Held while a change is made from what is current; never across an await.
    writing: Mutex<()>,
    /// When the next certificate is asked for.
    renews_at: Mutex<Option<SystemTime>>,
    /// Where it comes from, for people.
    source: OnceLock<String>,
    /// The roots come from where the certificate does: the control plane's are not taken.
    brings_roots: AtomicBool,
    /// The control plane has told a root that the source had not brought.
    lacks_root: AtomicBool,
    /// The source has brought others since.
    has_other_roots: Notify,
}

/// Publishes what a source tells.
struct Following {
    identity: Arc<Identity>,
    metrics: Arc<ControlMetrics>,
}

// === impl Identity ===

impl Identity {
    /// Without credentials yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            current: Arc::default(),
            changed: watch::Sender::new(None),
            writing: Mutex::new(()),
            renews_at: Mutex::new(None),
            source: OnceLock::new(),
            brings_roots: AtomicBool::new(false),
            lacks_root: AtomicBool::new(false),
            has_other_roots: Notify::new(),
        })
    }

    /// With these credentials (fixed configuration, tests).
    pub fn fixed(creds: Creds) -> Arc<Self> {
        let identity = Self::new();
        identity.publish(creds);
        identity
    }

    /// The current credentials, to keep.
    pub fn current(&self) -> Option<Arc<Creds>> {
        self.current.load_full()
    }

    /// When the next certificate is asked for; after a failure, when it is tried again. `None`: by nobody here, since others
    /// write the files that it is read from, say.
    pub fn renews_at(&self) -> Option<SystemTime> {
        *self.renews_at.lock()
    }

    /// Where it comes from, for people; empty where it is fixed.
    pub fn source(&self) -> &str {
        self.source.get().map_or("", String::as_str)
    }

    /// The cell that the workers read, always the current credentials.
    pub fn cell(&self) -> Arc<ArcSwapOption<Creds>> {
        self.current.clone()
    }

    /// The current credentials, for the moment: no reference count is touched.
    pub fn load(&self) -> Guard<Option<Arc<Creds>>> {
        self.current.load()
    }

    /// Told of every change, the first credentials included.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Creds>>> {
        self.changed.subscribe()
    }

    /// Waits for the first credentials.
    pub async fn ready(&self) -> Arc<Creds> {
        let mut changes = self.subscribe();
        loop {
            if let Some(creds) = self.current() {
                return creds;
            }
            if changes.changed().await.is_err() {
                // The sender lives in `self`: it cannot be gone.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Takes the bundle that the control plane has sent. Refused, and the old one kept, if our own certificate
    /// would not verify against it. Without credentials there is nothing to do: joining brings a bundle. Where the certificate's source brings
    /// the roots, these are not touched, and what the control plane says is refused if it names one that they lack: it must not believe that
    /// peers under that one are trusted here.
    pub fn set_bundle(&self, bundle: TrustBundle, now: SystemTime) -> Result<(), BundleRefused> {
        let _writing = self.writing.lock();
        let Some(current) = self.current() else { return Ok(()) };
        if **current.bundle() == bundle {
            return Ok(());
        }
        if self.brings_roots.load(Ordering::Relaxed) {
            let held = current.bundle().roots();
            let lacks = !bundle.roots().iter().all(|root| held.contains(root));
            self.lacks_root.store(lacks, Ordering::Relaxed);
            return if lacks { Err(BundleRefused::Lacks(self.source().to_owned())) } else { Ok(()) };
        }
        let creds = current.with_bundle(Arc::new(bundle), now)?;
        tracing::info!(bundle = ?creds.bundle(), "the trust bundle has changed");
        self.publish(creds);
        Ok(())
    }

    /// Returns when the source has brought other roots since it lacked one that the control plane had told: what that says is to be looked at again.
    pub async fn other_roots(&self) {
        self.has_other_roots.notified().await;
    }

    fn publish(&self, creds: impl Into<Arc<Creds>>) {
        let creds = creds.into();
        self.current.store(Some(creds.clone()));
        self.changed.send_replace(Some(creds));
    }

    /// Obtains credentials from `source` and renews them, forever. Failures are logged and tried again with a
    /// growing delay.
    pub async fn keep(self: Arc<Self>, source: Source, metrics: Arc<ControlMetrics>) {
        let described = self.source.get_or_init(|| source.describe());
        tracing::info!(source = described, "where this workload's identity comes from");
        if let Source::Given(given) = &source {
            self.brings_roots.store(true, Ordering::Relaxed);
            let mut following = Following { identity: Arc::clone(&self), metrics };
            match given.follow(&mut following).await {}
        }
        let mut failures = 0;
        let mut obtained = SystemTime::now();
        loop {
            match self.obtain(&source).await {
                Ok(changed) => {
                    failures = 0;
                    if changed {
                        obtained = SystemTime::now();
                        metrics.identity_renewed(true);
                    }
                }
                Err(error) => {
                    failures += 1;
                    metrics.identity_renewed(false);
                    self.report(&error, failures);
                }
            }
            if let Some(creds) = &*self.load() {
                show_expiry(&metrics, creds);
            }
            let wait = self.wait(obtained, failures);
            *self.renews_at.lock() = Some(SystemTime::now() + wait);
            tokio::time::sleep(wait).await;
        }
    }

    /// One try. Says whether there are new credentials.
    async fn obtain(&self, source: &Source) -> Result<bool, IdentityError> {
        let current = self.current();
        let now = SystemTime::now();
        let Some(obtained) = source.obtain(current.as_ref(), now).await? else { return Ok(false) };
        let _writing = self.writing.lock();
        let creds = obtained.check(self.current().as_deref(), SystemTime::now())?;
        tracing::info!(?creds, "obtained a certificate");
        self.publish(creds);
        Ok(true)
    }

    fn wait(&self, obtained: SystemTime, failures: u32) -> Duration {
        let jitter = rand::random();
        let now = SystemTime::now();
        match &*self.load() {
            Some(creds) if !creds.is_expired(now) => {
                renewal::next(obtained, creds.not_after(), now, failures, jitter).max(LEAST_WAIT)
            }
            // Nothing works without one: at most 4 s between tries.
            _ => renewal::backoff(failures.clamp(1, 3), jitter),
        }
    }

    fn report(&self, error: &dyn fmt::Display, failures: u32) {
        match &*self.load() {
            None => tracing::warn!(%error, failures, "no certificate yet; trying again"),
            Some(creds) if creds.is_expired(SystemTime::now()) => {
                tracing::error!(%error, failures, id = %creds.id(), "the certificate has expired: peers refuse this workload; trying again");
            }
            Some(creds) => {
                let left = creds.not_after().duration_since(SystemTime::now()).unwrap_or_default();
                tracing::warn!(%error, failures, id = %creds.id(), valid_for = ?left, "renewing the certificate failed; the old one serves on");
            }
        }
    }
}

// === impl Following ===

impl Follower for Following {
    fn take(&mut self, creds: Arc<Creds>) {
        let Self { identity, metrics } = self;
        tracing::info!(?creds, "obtained a certificate");
        show_expiry(metrics, &creds);
        let _writing = identity.writing.lock();
        let before = identity.current();
        let differs = before.is_none_or(|before| before.bundle() != creds.bundle());
        identity.publish(creds);
        metrics.identity_renewed(true);
        if differs && identity.lacks_root.swap(false, Ordering::Relaxed) {
            identity.has_other_roots.notify_one();
        }
    }

    fn failed(&mut self, error: &SourceError, failures: u32) {
        self.metrics.identity_renewed(false);
        self.identity.report(error, failures);
    }
}

/// When the leaf, its issuer below the root, and the first of the roots expire.
fn show_expiry(metrics: &ControlMetrics, creds: &Creds) {
    metrics.identity_expires(CertKind::Leaf, creds.not_after());
    let ends = |certificates: &[CertificateDer<'_>]| {
        certificates.iter().filter_map(|der| Some(tulle_certs::validity(der).ok()?.1)).min()
    };
    if let Some(at) = creds.chain().get(1..).and_then(ends) {
        metrics.identity_expires(CertKind::Issuer, at);
    }
    if let Some(at) = ends(creds.bundle().roots()) {
        metrics.identity_expires(CertKind::Root, at);
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("current", &*self.load()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
