//! Which services an identity may register as an endpoint of: what the join tokens granted that it has joined with.
//!
//! The claim is seen only when a token is shown, while the certificate lives on and renews itself without one; so it is
//! kept, in `grants.json` of the state folder, before the certificate is handed out. Several workloads may share an
//! identity, and each has its token: their grants add up. Asked by [`crate::report`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tulle_certs::SpiffeId;

use super::{CaError, store};

/// Services by SPIFFE ID.
type Kept = BTreeMap<String, BTreeSet<String>>;

/// The grants of one state folder.
pub(super) struct Grants {
    state: Arc<State>,
    /// Held by who writes.
    turn: Arc<tokio::sync::Mutex<()>>,
}

struct State {
    dir: PathBuf,
    kept: Mutex<Kept>,
    /// To be written.
    staged: Mutex<Vec<(SpiffeId, Vec<String>)>>,
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
        let state = State { dir: dir.to_owned(), kept: Mutex::new(kept), staged: Mutex::default() };
        Ok(Self { state: Arc::new(state), turn: Arc::default() })
    }

    /// Adds what a token grants. In the file before it counts; those who join at once are written together.
    pub(super) async fn add(&self, id: &SpiffeId, services: &[String]) -> Result<(), CaError> {
        if self.state.holds(id, services) {
            return Ok(());
        }
        let (id, services) = (id.clone(), services.to_vec());
        self.state.staged.lock().push((id.clone(), services.clone()));
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let state = Arc::clone(&self.state);
        // With its turn: a caller that goes away meanwhile must not let another write beside it.
        let written = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            state.write(id, services)
        });
        written.await.unwrap_or_else(|panicked| Err(self.state.failed(std::io::Error::other(panicked))))
    }

    pub(super) fn check(&self, id: &SpiffeId, service: &str) -> Result<(), NotGranted> {
        let kept = self.state.kept.lock();
        if kept.get(id.as_str()).is_some_and(|services| services.contains(service)) {
            return Ok(());
        }
        Err(NotGranted { id: id.clone(), service: service.to_owned() })
    }
}

// === impl State ===

impl State {
    /// Writes what is staged and this; nothing, if somebody before has written this already.
    fn write(&self, id: SpiffeId, services: Vec<String>) -> Result<(), CaError> {
        if self.holds(&id, &services) {
            return Ok(());
        }
        let mut next = self.kept.lock().clone();
        let staged = std::mem::take(&mut *self.staged.lock());
        for (id, services) in staged.into_iter().chain([(id, services)]) {
            next.entry(id.to_string()).or_default().extend(services);
        }
        let text = serde_json::to_string_pretty(&next).map_err(|error| self.failed(error.into()))?;
        store::write_grants(&self.dir, &text)?;
        *self.kept.lock() = next;
        Ok(())
    }

    fn holds(&self, id: &SpiffeId, services: &[String]) -> bool {
        let kept = self.kept.lock();
        let known = kept.get(id.as_str());
        services.iter().all(|service| known.is_some_and(|known| known.contains(service)))
    }

    fn failed(&self, why: std::io::Error) -> CaError {
        CaError::Io { path: self.dir.join(store::GRANTS), why }
    }
}
