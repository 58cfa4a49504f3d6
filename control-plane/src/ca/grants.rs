//! Which services an identity may register as an endpoint of: what the join tokens granted that it has joined with, be it nothing.
//!
//! The claim is seen only when a token is shown, while the certificate lives on and renews itself without one; so it is
//! kept, in the [`Store`], before the certificate is handed out. Several workloads may share an
//! identity, and each has its token: their grants add up, also those that several control planes have seen. By which token something was granted is kept with
//! it: what a token that is revoked since has granted, and no other has, counts no more. Asked by [`crate::report`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tulle_certs::SpiffeId;
use tulle_certs::token::Claims;
use zeroize::Zeroizing;

use super::CaError;
use super::ledger::Revoked;
use super::store::{GRANTS, Store};

/// So many tokens of one identity are told apart; of those beyond, what they granted stays, unless they are revoked by then.
const TOKENS_EACH: usize = 64;

/// By SPIFFE ID.
type Granted = BTreeMap<String, Grant>;

/// What one identity may register for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
struct Grant {
    /// Written by hand, or by a version that did not keep tokens apart.
    services: BTreeSet<String>,
    /// By the IDs of the tokens that it joined with.
    tokens: BTreeMap<String, ByToken>,
}

/// What one token has granted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct ByToken {
    #[serde(default)]
    services: BTreeSet<String>,
    /// When it ends, in seconds since the epoch.
    #[serde(default)]
    expires: u64,
}

/// A grant as JSON: a list of services where no token is known.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Services(BTreeSet<String>),
    Whole {
        #[serde(default)]
        services: BTreeSet<String>,
        #[serde(default)]
        tokens: BTreeMap<String, ByToken>,
    },
}

/// The grants of one authority.
pub(super) struct Grants {
    state: Arc<State>,
    /// Held by who writes.
    turn: Arc<tokio::sync::Mutex<()>>,
}

struct State {
    store: Arc<dyn Store>,
    revoked: Arc<Revoked>,
    kept: Mutex<Granted>,
    /// To be written.
    staged: Mutex<Vec<(SpiffeId, Grant)>>,
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
    pub(super) fn open(store: Arc<dyn Store>, text: Option<&str>, revoked: Arc<Revoked>) -> Self {
        let kept = text.map(|text| read(text, &*store)).unwrap_or_default();
        let state = State { store, revoked, kept: Mutex::new(kept), staged: Mutex::default() };
        Self { state: Arc::new(state), turn: Arc::default() }
    }

    /// Another control plane has written: what it has granted counts here too.
    pub(super) fn take_in(&self, text: &str) {
        let theirs = read(text, &*self.state.store);
        add_up(&mut self.state.kept.lock(), theirs, &self.state.revoked);
    }

    /// As it is kept; `None` if nothing is granted.
    pub(super) fn text(&self) -> Option<Zeroizing<String>> {
        let kept = self.state.kept.lock();
        (!kept.is_empty()).then(|| serde_json::to_string_pretty(&*kept).ok()).flatten().map(Zeroizing::new)
    }

    /// Adds what a token grants. It is kept before it counts; those who join at once are written together.
    pub(super) async fn add(&self, claims: &Claims) -> Result<(), CaError> {
        self.add_grant(&claims.sub, Grant::by(claims)).await
    }

    /// Whether what this very token grants is kept.
    pub(super) fn has(&self, claims: &Claims) -> bool {
        self.state.holds(&claims.sub, &Grant::by(claims))
    }

    /// Whether nothing that this token grants is new. What other replicas have granted is looked for, of which nobody may have told yet.
    ///
    /// # Errors
    /// When what is kept cannot be read.
    pub(super) async fn covers(&self, claims: &Claims) -> Result<bool, CaError> {
        let found: Mutex<Option<String>> = Mutex::default();
        // It changes nothing: what tells of changes by itself is read by no other means.
        let look = |text: Option<&str>| {
            *found.lock() = text.map(str::to_owned);
            None::<String>
        };
        self.state.store.change(GRANTS, &look).await?;
        if let Some(text) = found.into_inner() {
            self.take_in(&text);
        }
        let kept = self.state.kept.lock();
        Ok(kept.get(claims.sub.as_str()).is_some_and(|known| known.covers(&Grant::by(claims))))
    }

    /// Adds services that no token is known of.
    #[cfg(test)]
    pub(super) async fn add_services(&self, id: &SpiffeId, services: &[String]) -> Result<(), CaError> {
        let services = services.iter().cloned().collect();
        self.add_grant(id, Grant { services, ..Grant::default() }).await
    }

    async fn add_grant(&self, id: &SpiffeId, grant: Grant) -> Result<(), CaError> {
        if self.state.holds(id, &grant) {
            return Ok(());
        }
        let id = id.clone();
        self.state.staged.lock().push((id.clone(), grant.clone()));
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let state = Arc::clone(&self.state);
        // With its turn: a caller that goes away meanwhile must not let another write beside it.
        let written = tokio::spawn(async move {
            let _turn = turn;
            state.write(id, grant).await
        });
        let place = || self.state.store.place(GRANTS);
        written
            .await
            .unwrap_or_else(|panicked| Err(CaError::Store { place: place(), why: panicked.to_string() }))
    }

    pub(super) fn check(
        &self,
        id: &SpiffeId,
        service: &str,
        is_revoked: impl Fn(&str) -> bool,
    ) -> Result<(), NotGranted> {
        let kept = self.state.kept.lock();
        if kept.get(id.as_str()).is_some_and(|grant| grant.names(service, is_revoked)) {
            return Ok(());
        }
        Err(NotGranted { id: id.clone(), service: service.to_owned() })
    }

    /// Whether it has joined with a join token that still counts, be it one that grants nothing.
    pub(super) fn knows(&self, id: &SpiffeId, is_revoked: impl Fn(&str) -> bool) -> bool {
        self.state.kept.lock().get(id.as_str()).is_some_and(|grant| grant.counts(is_revoked))
    }
}

// === impl Grant ===

impl Grant {
    /// What a token grants.
    fn by(claims: &Claims) -> Self {
        let expires = claims.exp.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let services = claims.services.iter().cloned().collect();
        let tokens = BTreeMap::from([(claims.jti.clone(), ByToken { services, expires })]);
        Self { tokens, ..Self::default() }
    }

    fn names(&self, service: &str, is_revoked: impl Fn(&str) -> bool) -> bool {
        let by_token = |(jti, by): (&String, &ByToken)| by.services.contains(service) && !is_revoked(jti);
        self.services.contains(service) || self.tokens.iter().any(by_token)
    }

    fn counts(&self, is_revoked: impl Fn(&str) -> bool) -> bool {
        let by_hand = self.tokens.is_empty() || !self.services.is_empty();
        by_hand || self.tokens.keys().any(|jti| !is_revoked(jti))
    }

    fn holds(&self, other: &Self) -> bool {
        let held = |(jti, by): (&String, &ByToken)| {
            self.tokens.get(jti).is_some_and(|own| own.services.is_superset(&by.services))
        };
        self.services.is_superset(&other.services) && other.tokens.iter().all(held)
    }

    /// Whether it holds another, or all that its tokens grant where these may have had no room any more.
    fn covers(&self, other: &Self) -> bool {
        let is_full = self.tokens.len() >= TOKENS_EACH;
        let is_left = |by: &ByToken| is_full && self.services.is_superset(&by.services);
        self.holds(other) || other.tokens.values().all(is_left)
    }

    fn add(&mut self, more: Self, is_revoked: impl Fn(&str) -> bool) {
        self.services.extend(more.services);
        for (jti, by) in more.tokens {
            let own = self.tokens.entry(jti).or_default();
            own.services.extend(by.services);
            own.expires = own.expires.max(by.expires);
        }
        while self.tokens.len() > TOKENS_EACH {
            let Some(first) = self.tokens.iter().min_by_key(|(_, by)| by.expires).map(|(jti, _)| jti.clone())
            else {
                return;
            };
            let granted = self.tokens.remove(&first).unwrap_or_default().services;
            if !is_revoked(&first) {
                self.services.extend(granted);
            }
        }
    }
}

impl From<Written> for Grant {
    fn from(written: Written) -> Self {
        match written {
            Written::Services(services) => Self { services, ..Self::default() },
            Written::Whole { services, tokens } => Self { services, tokens },
        }
    }
}

impl From<Grant> for Written {
    fn from(Grant { services, tokens }: Grant) -> Self {
        match tokens.is_empty() {
            true => Self::Services(services),
            false => Self::Whole { services, tokens },
        }
    }
}

// === impl State ===

impl State {
    /// Writes what is staged and this; nothing, if somebody before has written this already.
    async fn write(&self, id: SpiffeId, grant: Grant) -> Result<(), CaError> {
        if self.holds(&id, &grant) {
            return Ok(());
        }
        let mut next = self.kept.lock().clone();
        let staged = std::mem::take(&mut *self.staged.lock());
        for (id, grant) in staged.into_iter().chain([(id, grant)]) {
            next.entry(id.to_string()).or_default().add(grant, |jti| self.revoked.is_token(jti));
        }
        let merged = Mutex::new(Granted::new());
        let change = |before: Option<&str>| {
            let mut all = before.map(|text| read(text, &*self.store)).unwrap_or_default();
            add_up(&mut all, next.clone(), &self.revoked);
            // Names in lists are always JSON.
            let text = serde_json::to_string_pretty(&all).ok();
            *merged.lock() = all;
            text
        };
        self.store.change(GRANTS, &change).await?;
        add_up(&mut self.kept.lock(), merged.into_inner(), &self.revoked);
        Ok(())
    }

    fn holds(&self, id: &SpiffeId, grant: &Grant) -> bool {
        self.kept.lock().get(id.as_str()).is_some_and(|known| known.holds(grant))
    }
}

fn add_up(into: &mut Granted, more: Granted, revoked: &Revoked) {
    for (id, grant) in more {
        into.entry(id).or_default().add(grant, |jti| revoked.is_token(jti));
    }
}

fn read(text: &str, store: &dyn Store) -> Granted {
    serde_json::from_str(text).unwrap_or_else(|error| {
        let place = store.place(GRANTS);
        tracing::error!(place, %error, "what is kept is damaged; workloads must join again with their tokens before they can register");
        Granted::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(services: &[&str], expires: u64) -> ByToken {
        ByToken { services: services.iter().map(|one| (*one).to_owned()).collect(), expires }
    }

    #[test]
    fn grants_are_read_as_older_versions_and_people_write_them() {
        let text = r#"{"a": ["x"], "b": {"services": ["y"], "tokens": {"t": {"services": ["z"], "expires": 5}}}, "c": []}"#;
        let read: Granted = serde_json::from_str(text).unwrap();
        assert_eq!(read["a"].services, BTreeSet::from(["x".to_owned()]));
        assert_eq!(read["b"].tokens["t"], by(&["z"], 5));
        let again: Granted = serde_json::from_str(&serde_json::to_string(&read).unwrap()).unwrap();
        assert_eq!(again, read);
        assert!(serde_json::to_string(&read).unwrap().contains(r#""a":["x"]"#), "a list, as before");
        assert!(read["c"].counts(|_| true), "it has joined, with nothing granted");
    }

    #[test]
    fn what_a_revoked_token_alone_has_granted_counts_no_more() {
        let mut grant = Grant::default();
        for (jti, services) in [("a", &["x", "y"][..]), ("b", &["y"][..])] {
            let tokens = BTreeMap::from([(jti.to_owned(), by(services, 1))]);
            grant.add(Grant { tokens, ..Grant::default() }, |_| false);
        }
        let names = |service, revoked: &[&str]| grant.names(service, |jti| revoked.contains(&jti));
        assert!(names("x", &[]) && names("y", &[]) && !names("z", &[]));
        assert!(!names("x", &["a"]) && names("y", &["a"]) && !names("y", &["a", "b"]));
        assert!(grant.counts(|jti| jti == "a") && !grant.counts(|_| true));
    }

    #[test]
    fn the_tokens_that_end_first_are_those_that_are_not_told_apart() {
        let mut grant = Grant::default();
        for number in 0..TOKENS_EACH as u64 + 2 {
            let tokens =
                BTreeMap::from([(format!("t{number}"), by(&[&format!("s{number}")], 1000 - number))]);
            // The first to go is revoked.
            grant.add(Grant { tokens, ..Grant::default() }, |jti| jti == format!("t{TOKENS_EACH}"));
        }
        assert_eq!(grant.tokens.len(), TOKENS_EACH);
        assert_eq!(grant.services, BTreeSet::from([format!("s{}", TOKENS_EACH + 1)]), "what is revoked goes");
        assert!(grant.names(&format!("s{}", TOKENS_EACH + 1), |_| true), "its services stay");
        let covers = |number: usize, service: usize| {
            let tokens = BTreeMap::from([(format!("t{number}"), by(&[&format!("s{service}")], 1))]);
            grant.covers(&Grant { tokens, ..Grant::default() })
        };
        assert!(
            covers(0, 0) && covers(TOKENS_EACH + 1, TOKENS_EACH + 1),
            "one that is not told apart any more, too"
        );
        assert!(!covers(0, 1) && !covers(TOKENS_EACH, TOKENS_EACH));
    }
}
