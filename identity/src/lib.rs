//! Identities that the mesh's own authority does not issue: in files that something else keeps, or from a SPIFFE Workload API.
//!
//! Decides when what such a source gives is taken: as a whole, once it has been checked as peers will check it, and for whom it should be; until
//! then what was good serves on. Never writes anything, never shows a key, and asks nobody but its source. The proxy and the control plane each
//! follow one, in a task of their own; what becomes of a certificate is for whoever follows.
//!
//! | module | holds |
//! | --- | --- |
//! | `files` | certificate, key and roots in files, looked at every second |
//! | `workload_api` | X.509-SVIDs as a stream (SPIRE) |
#![warn(missing_docs)]

mod files;
#[cfg(test)]
mod testing;
mod workload_api;

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use tulle_certs::creds::CredsError;
use tulle_certs::{Creds, PrivateKey, SpiffeId, TrustBundle};

pub use files::Files;
pub use workload_api::{Address, AddressError, ENDPOINT_VARIABLE, WorkloadApi};

/// Where an identity comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// Files.
    Files(Files),
    /// A SPIFFE Workload API.
    WorkloadApi(WorkloadApi),
}

/// Who follows a source.
pub trait Follower: Send {
    /// Credentials that have been checked: from now on these hold. Not called again for what has not changed.
    fn take(&mut self, creds: Arc<Creds>);

    /// There is nothing new that could be used; what was taken before serves on, and the source is asked again. `failures`: how often in a row, this
    /// one included.
    fn failed(&mut self, error: &SourceError, failures: u32);
}

/// Why a source gave nothing that can be used. Names the place and what to do; never shows a key.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// A file.
    #[error("{path}: {why}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system or the parser said.
        why: String,
    },
    /// The parts do not go together, or peers would refuse them.
    #[error("{place}: {why}")]
    Unusable {
        /// Where they come from.
        place: String,
        /// Why.
        why: CredsError,
    },
    /// A certificate, but another's.
    #[error("{place}: the certificate is for {got}, and it should be for {wanted}; {remedy}")]
    OtherIdentity {
        /// Where it comes from.
        place: String,
        /// Whom it names.
        got: SpiffeId,
        /// Whom it should name.
        wanted: SpiffeId,
        /// What to do.
        remedy: &'static str,
    },
    /// The Workload API did not give an identity.
    #[error("the Workload API at {at}: {why}")]
    WorkloadApi {
        /// Its address.
        at: Address,
        /// What it said, or what was wrong with that, and what to do.
        why: String,
    },
}

// === impl Given ===

impl Given {
    /// Tells `follower` of all that comes, for as long as it is polled.
    pub async fn follow(&self, follower: &mut dyn Follower) -> Infallible {
        match self {
            Self::Files(files) => files.follow(follower).await,
            Self::WorkloadApi(api) => api.follow(follower).await,
        }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(files) => write!(f, "{files}"),
            Self::WorkloadApi(api) => write!(f, "the Workload API at {}", api.address),
        }
    }
}

/// The parts of an identity, as a source gave them.
struct Parts {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
    bundle: TrustBundle,
}

// === impl Parts ===

impl Parts {
    /// Checked as a whole.
    fn creds(self, now: SystemTime) -> Result<Creds, CredsError> {
        Creds::new(self.chain, self.key, Arc::new(self.bundle), now)
    }
}

/// Whether two say the same: a key goes with its certificate.
fn is_same(current: &Creds, chain: &[CertificateDer<'_>], bundle: &TrustBundle) -> bool {
    current.chain() == chain && **current.bundle() == *bundle
}
