//! Which services an identity may register as an endpoint of: what the join tokens granted that it has joined with.
//!
//! The claim is seen only when a token is shown, while the certificate lives on and renews itself without one; so it is
//! kept, in `grants.json` of the state folder, before the certificate is handed out. Several workloads may share an
//! identity, and each has its token: their grants add up. Asked by [`crate::report`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use parking_lot::Mutex;
use tulle_certs::SpiffeId;

use super::{CaError, store};

/// Services by SPIFFE ID.
type Kept = BTreeMap<String, BTreeSet<String>>;

/// The grants of one state folder.
pub(super) struct Grants {
    kept: Mutex<Kept>,
}

/// A service that no join token of the identity names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{id} may not register for the service {service:?}: no join token that it joined with names it; make one with `tulle token create --workload-identity {}/{} --service {service}` and start the proxy with that",
    id.namespace(), id.service_account()
)]
pub struct NotGranted {
    /// Who wanted to.
    pub id: SpiffeId,
    /// For which service, in its namespace.
    pub service: String,
}

// === impl Grants ===

impl Grants {
    /// Reads what the folder holds.
    pub(super) fn open(dir: &Path) -> Result<Self, CaError> {
        let kept = match store::grants(dir)? {
            None => Kept::new(),
            Some(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::error!(path = %dir.join(store::GRANTS).display(), %error, "the file is damaged; workloads must join again with their tokens before they can register");
                Kept::new()
            }),
        };
        Ok(Self { kept: Mutex::new(kept) })
    }

    /// Adds what a token grants. In the file before it counts.
    pub(super) fn add(&self, dir: &Path, id: &SpiffeId, services: &[String]) -> Result<(), CaError> {
        let mut kept = self.kept.lock();
        let known = kept.get(id.as_str());
        if services.iter().all(|service| known.is_some_and(|known| known.contains(service))) {
            return Ok(());
        }
        let mut next = kept.clone();
        next.entry(id.to_string()).or_default().extend(services.iter().cloned());
        let text = serde_json::to_string_pretty(&next)
            .map_err(|error| CaError::Io { path: dir.join(store::GRANTS), why: error.into() })?;
        store::write_grants(dir, &text)?;
        *kept = next;
        Ok(())
    }

    pub(super) fn check(&self, id: &SpiffeId, service: &str) -> Result<(), NotGranted> {
        let kept = self.kept.lock();
        if kept.get(id.as_str()).is_some_and(|services| services.contains(service)) {
            return Ok(());
        }
        Err(NotGranted { id: id.clone(), service: service.to_owned() })
    }
}
