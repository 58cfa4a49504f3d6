//! Which services an identity may register as an endpoint of: what the join tokens granted that it has joined with, be it nothing.
//!
//! The claim is seen only when a token is shown, while the certificate lives on and renews itself without one; so it is
//! kept, in the [`Store`], before the certificate is handed out. Several workloads may share an
//! identity, and each has its token: their grants add up, also those that several control planes have seen. Asked by [`crate::report`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tulle_certs::SpiffeId;
use zeroize::Zeroizing;

use super::CaError;
use super::store::{GRANTS, Store};

/// Services by SPIFFE ID.
type Granted = BTreeMap<String, BTreeSet<String>>;

/// The grants of one authority.
pub(super) struct Grants {
    state: Arc<State>,
    /// Held by who writes.
    turn: Arc<tokio::sync::Mutex<()>>,
}

struct State {
    store: Arc<dyn Store>,
    kept: Mutex<Granted>,
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
    /// With what is kept, if anything is.
    pub(super) fn open(store: Arc<dyn Store>, text: Option<&str>) -> Self {
        let kept = text.map(|text| read(text, &*store)).unwrap_or_default();
        let state = State { store, kept: Mutex::new(kept), staged: Mutex::default() };
        Self { state: Arc::new(state), turn: Arc::default() }
    }

    /// Another control plane has written: what it has granted counts here too.
    pub(super) fn take_in(&self, text: &str) {
        let theirs = read(text, &*self.state.store);
        add_up(&mut self.state.kept.lock(), theirs);
    }

    /// As it is kept; `None` if nothing is granted.
    pub(super) fn text(&self) -> Option<Zeroizing<String>> {
        let kept = self.state.kept.lock();
        (!kept.is_empty()).then(|| serde_json::to_string_pretty(&*kept).ok()).flatten().map(Zeroizing::new)
    }

    /// Adds what a token grants. It is kept before it counts; those who join at once are written together.
    pub(super) async fn add(&self, id: &SpiffeId, services: &[String]) -> Result<(), CaError> {
        if self.state.holds(id, services) {
            return Ok(());
        }
        let (id, services) = (id.clone(), services.to_vec());
        self.state.staged.lock().push((id.clone(), services.clone()));
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let state = Arc::clone(&self.state);
        // With its turn: a caller that goes away meanwhile must not let another write beside it.
        let written = tokio::spawn(async move {
            let _turn = turn;
            state.write(id, services).await
        });
        let place = || self.state.store.place(GRANTS);
        written
            .await
            .unwrap_or_else(|panicked| Err(CaError::Store { place: place(), why: panicked.to_string() }))
    }

    pub(super) fn check(&self, id: &SpiffeId, service: &str) -> Result<(), NotGranted> {
        let kept = self.state.kept.lock();
        if kept.get(id.as_str()).is_some_and(|services| services.contains(service)) {
            return Ok(());
        }
        Err(NotGranted { id: id.clone(), service: service.to_owned() })
    }

    /// Whether it has joined with a join token, be it one that grants nothing.
    pub(super) fn knows(&self, id: &SpiffeId) -> bool {
        self.state.kept.lock().contains_key(id.as_str())
    }
}

// === impl State ===

impl State {
    /// Writes what is staged and this; nothing, if somebody before has written this already.
    async fn write(&self, id: SpiffeId, services: Vec<String>) -> Result<(), CaError> {
        if self.holds(&id, &services) {
            return Ok(());
        }
        let mut next = self.kept.lock().clone();
        let staged = std::mem::take(&mut *self.staged.lock());
        for (id, services) in staged.into_iter().chain([(id, services)]) {
            next.entry(id.to_string()).or_default().extend(services);
        }
        let merged = Mutex::new(Granted::new());
        let change = |before: Option<&str>| {
            let mut all = before.map(|text| read(text, &*self.store)).unwrap_or_default();
            add_up(&mut all, next.clone());
            // Names in lists are always JSON.
            let text = serde_json::to_string_pretty(&all).ok();
            *merged.lock() = all;
            text
        };
        self.store.change(GRANTS, &change).await?;
        add_up(&mut self.kept.lock(), merged.into_inner());
        Ok(())
    }

    fn holds(&self, id: &SpiffeId, services: &[String]) -> bool {
        let kept = self.kept.lock();
        let known = kept.get(id.as_str());
        known.is_some_and(|known| services.iter().all(|service| known.contains(service)))
    }
}

fn add_up(into: &mut Granted, more: Granted) {
    for (id, services) in more {
        into.entry(id).or_default().extend(services);
    }
}

fn read(text: &str, store: &dyn Store) -> Granted {
    serde_json::from_str(text).unwrap_or_else(|error| {
        let place = store.place(GRANTS);
        tracing::error!(place, %error, "what is kept is damaged; workloads must join again with their tokens before they can register");
        Granted::new()
    })
}
