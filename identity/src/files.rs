//! Certificate, key and roots in files that something else keeps: cert-manager, spiffe-helper, a Secret in a pod, an operator.
//!
//! Whoever writes three files does not write them at once. What does not fit together is therefore waited for, without a word, for as long as a writer
//! may need; a folder whose files are replaced by a link (as Kubernetes does) is never seen half. Files are looked at, not watched: that is
//! the same on every file system.

use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tulle_certs::{Creds, PrivateKey, SpiffeId, TrustBundle, peer_id, pem};
use zeroize::Zeroizing;

use crate::{Follower, Parts, SourceError, is_same};

/// How often the file system is asked whether they have changed.
const LOOK: Duration = Duration::from_secs(1);
/// How often they are read although it says that they have not.
const READ_ANYWAY: Duration = Duration::from_secs(60);
/// For so long files that do not fit together may be half written.
const HALF_WRITTEN: Duration = Duration::from_secs(10);
/// How often the same failure is told.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// The files of one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// PEM certificates: the leaf, and those between it and the root; in any order.
    pub cert: PathBuf,
    /// The leaf's PEM key.
    pub key: PathBuf,
    /// PEM roots, to trust peers by.
    pub bundle: PathBuf,
    /// Whose they must be, where that is known.
    pub wanted: Option<SpiffeId>,
}

/// What the file system says of a file: a change of its content changes this.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// Since when there is something wrong, and when it was told.
#[derive(Debug)]
struct Trouble {
    since: Instant,
    told: Option<(String, Instant)>,
    failures: u32,
}

// === impl Files ===

impl Files {
    /// See [`Given::follow`](crate::Given::follow).
    pub(crate) async fn follow(&self, follower: &mut dyn Follower) -> Infallible {
        let mut current: Option<Arc<Creds>> = None;
        let (mut seen, mut read) = (None, Instant::now());
        let mut trouble: Option<Trouble> = None;
        loop {
            let stamps = self.stamps();
            if seen != Some(stamps) || trouble.is_some() || read.elapsed() >= READ_ANYWAY {
                (seen, read) = (Some(stamps), Instant::now());
                match self.load(current.as_deref(), SystemTime::now()) {
                    Ok(loaded) => {
                        trouble = None;
                        if let Some(creds) = loaded.map(Arc::new) {
                            current = Some(Arc::clone(&creds));
                            follower.take(creds);
                        }
                    }
                    Err(error) => {
                        let trouble = trouble.get_or_insert_with(Trouble::new);
                        // At the start nothing serves on, and somebody waits to hear why.
                        if trouble.is_to_be_told(&error, current.is_none()) {
                            follower.failed(&error, trouble.failures);
                        }
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn stamps(&self) -> [Stamp; 3] {
        [&self.cert, &self.key, &self.bundle].map(|path| {
            let found = fs::metadata(path).ok()?;
            Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
        })
    }

    /// Reads all three; `None` if they say what `current` holds already. The identity is that in the certificate.
    ///
    /// # Errors
    /// When one cannot be read, they do not go together, are not `wanted`'s, or peers would refuse them at `now`.
    pub fn load(&self, current: Option<&Creds>, now: SystemTime) -> Result<Option<Creds>, SourceError> {
        let chain = pem::certificates(&read(&self.cert)?).and_then(pem::order_chain);
        let chain = chain.map_err(|error| file(&self.cert, error))?;
        let id = peer_id(&chain).map_err(|refusal| file(&self.cert, refusal))?;
        if let Some(wanted) = self.wanted.as_ref().filter(|wanted| **wanted != id) {
            return Err(SourceError::OtherIdentity {
                place: self.cert.display().to_string(),
                got: id,
                wanted: wanted.clone(),
                remedy: "have one issued with that URI as its only SAN",
            });
        }
        let bundle = TrustBundle::from_pem(id.trust_domain(), &read(&self.bundle)?);
        let bundle = bundle.map_err(|error| file(&self.bundle, error))?;
        if let Some(current) = current.filter(|current| is_same(current, &chain, &bundle)) {
            let expired = "it has expired: peers refuse it until whoever keeps the file has renewed it";
            return if current.is_expired(now) { Err(file(&self.cert, expired)) } else { Ok(None) };
        }
        let key = PrivateKey::from_pem(&read(&self.key)?).map_err(|error| file(&self.key, error))?;
        let creds = Parts { chain, key, bundle }.creds(now);
        creds.map(Some).map_err(|why| SourceError::Unusable { place: self.to_string(), why })
    }
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cert, key, bundle, .. } = self;
        write!(f, "the files {}, {} and {}", cert.display(), key.display(), bundle.display())
    }
}

// === impl Trouble ===

impl Trouble {
    fn new() -> Self {
        Self { since: Instant::now(), told: None, failures: 0 }
    }

    /// Whether this is news, and not what may be half written.
    fn is_to_be_told(&mut self, error: &SourceError, at_once: bool) -> bool {
        let text = error.to_string();
        let is_new = match &self.told {
            Some((told, at)) => *told != text || at.elapsed() >= SAY_AGAIN,
            None => at_once || self.since.elapsed() >= HALF_WRITTEN,
        };
        if is_new {
            self.failures = self.failures.saturating_add(1);
            self.told = Some((text, Instant::now()));
        }
        is_new
    }
}

fn read(path: &Path) -> Result<Zeroizing<String>, SourceError> {
    pem::read_file(path).map_err(|error| file(path, error))
}

fn file(path: &Path, why: impl ToString) -> SourceError {
    SourceError::File { path: path.to_owned(), why: why.to_string() }
}

#[cfg(test)]
mod tests;
