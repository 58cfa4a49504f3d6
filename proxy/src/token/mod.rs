//! Tokens that requests carry (JWT): where they are looked for, whose are taken, and what is told to the application of them.
//!
//! Decides which policies speak of a request ([`Authentications::about`]), which token it carries ([`Pool::find`]), and whether that is
//! its issuer's, for this audience, and valid now ([`Issuer::check`]). Pure: the time of day is passed in. It must never do I/O, and never tell of a token
//! or a claim but in [`Claims`](crate::policy::Claims) and in the headers that a policy names. Signatures are `tulle-certs`'; keys that are fetched are
//! put here by `control/jwks.rs` ([`Source`]); `forward/authenticate.rs` calls.

mod cache;
mod check;
mod find;
mod source;
mod spec;

use std::sync::Arc;

pub use cache::Cache;
pub use check::Refusal;
pub use find::{Found, Pool};
pub use source::Source;
pub use spec::{AuthenticationSpec, ClaimHeader, IssuerSpec, KeysSpec, Place, RemoteSpec};

use http::HeaderName;
use tulle_certs::jwks::KeySet;

use crate::policy::Scope;
use crate::route::Asked;

/// Which tokens requests to the workload may carry, compiled.
#[derive(Debug)]
pub struct Authentications(Vec<Authentication>);

/// One policy.
#[derive(Debug)]
pub struct Authentication {
    pub name: Arc<str>,
    ports: Vec<u16>,
    /// Of a policy that is attached to routes.
    requests: Option<Scope>,
    issuers: Vec<Arc<Issuer>>,
    /// A request without a token is refused.
    pub required: bool,
    /// What it would have refused is told, and nothing is changed.
    pub dry_run: bool,
    /// What clients send under these is removed.
    pub headers: Vec<HeaderName>,
}

/// Whose tokens are taken. It stays the same object for as long as a policy says the same of it.
#[derive(Debug)]
pub struct Issuer {
    pub spec: IssuerSpec,
    keys: Keys,
}

#[derive(Debug)]
enum Keys {
    Here(Arc<KeySet>),
    Fetched(Arc<Source>),
}

// === impl Authentications ===

impl Authentications {
    /// `None`: there are none. Keys that `old` has fetched stay where they are from the same place.
    pub fn after(old: Option<&Self>, specs: &[AuthenticationSpec]) -> Option<Self> {
        if specs.is_empty() {
            return None;
        }
        let mut sources: Vec<Arc<Source>> =
            old.map(|old| old.sources().cloned().collect()).unwrap_or_default();
        let known: Vec<Arc<Issuer>> = old.map(|old| old.issuers().cloned().collect()).unwrap_or_default();
        let mut issuer = |spec: &IssuerSpec| {
            if let Some(same) = known.iter().find(|known| known.spec == *spec) {
                return Arc::clone(same);
            }
            let keys = match &spec.keys {
                KeysSpec::Inline(keys) => Keys::Here(Arc::clone(keys)),
                KeysSpec::Remote(remote) => {
                    let same = sources.iter().find(|source| source.spec == *remote).cloned();
                    Keys::Fetched(same.unwrap_or_else(|| {
                        let new = Arc::new(Source::new(remote.clone()));
                        sources.push(Arc::clone(&new));
                        new
                    }))
                }
            };
            Arc::new(Issuer { spec: spec.clone(), keys })
        };
        let one = |spec: &AuthenticationSpec| Authentication {
            name: Arc::clone(&spec.name),
            ports: spec.ports.clone(),
            requests: (!spec.routes.is_empty()).then(|| Scope::new(&spec.routes)),
            issuers: spec.issuers.iter().map(&mut issuer).collect(),
            required: spec.required,
            dry_run: spec.dry_run,
            headers: headers(&spec.issuers),
        };
        Some(Self(specs.iter().map(one).collect()))
    }

    /// Those that speak of the port.
    pub fn at(&self, port: u16) -> impl Iterator<Item = &Authentication> {
        self.0.iter().filter(move |one| one.ports.is_empty() || one.ports.contains(&port))
    }

    /// Those of them that speak of what is asked there.
    pub fn about<'a>(&'a self, port: u16, asked: &Asked<'_>) -> impl Iterator<Item = &'a Authentication> {
        self.at(port).filter(move |one| one.is_about(asked))
    }

    /// Where keys are fetched from, each once.
    pub fn sources(&self) -> impl Iterator<Item = &Arc<Source>> {
        let all = self.issuers().filter_map(|issuer| match &issuer.keys {
            Keys::Here(_) => None,
            Keys::Fetched(source) => Some(source),
        });
        let mut seen: Vec<*const Source> = Vec::new();
        all.filter(move |source| {
            let is_new = !seen.contains(&Arc::as_ptr(source));
            seen.push(Arc::as_ptr(source));
            is_new
        })
    }

    fn issuers(&self) -> impl Iterator<Item = &Arc<Issuer>> {
        self.0.iter().flat_map(|one| &one.issuers)
    }
}

/// The headers that claims go to, each once.
fn headers(issuers: &[IssuerSpec]) -> Vec<HeaderName> {
    let mut names: Vec<HeaderName> = Vec::new();
    for claim in issuers.iter().flat_map(|issuer| &issuer.claims_to_headers) {
        if !names.contains(&claim.header) {
            names.push(claim.header.clone());
        }
    }
    names
}

// === impl Authentication ===

impl Authentication {
    /// Whose tokens it takes.
    pub fn issuers(&self) -> &[Arc<Issuer>] {
        &self.issuers
    }

    /// What cannot be told for sure could be meant.
    fn is_about(&self, asked: &Asked<'_>) -> bool {
        self.requests.as_ref().is_none_or(|requests| requests.may_have(asked))
    }
}

// === impl Issuer ===

impl Issuer {
    /// The keys as they are now; `None`: none have been fetched yet.
    pub fn current(&self) -> Option<Arc<KeySet>> {
        match &self.keys {
            Keys::Here(keys) => Some(Arc::clone(keys)),
            Keys::Fetched(source) => source.current(),
        }
    }

    /// The keys, waiting for them a moment where they are being fetched for the first time; `None`: there are none.
    pub async fn keys(&self) -> Option<Arc<KeySet>> {
        match &self.keys {
            Keys::Here(keys) => Some(Arc::clone(keys)),
            Keys::Fetched(source) => source.keys().await,
        }
    }

    /// Others than these, which are fetched if that has not been tried in vain a moment ago: a token names a key that these have not.
    pub async fn newer(&self, than: &Arc<KeySet>) -> Option<Arc<KeySet>> {
        match &self.keys {
            Keys::Here(_) => None,
            Keys::Fetched(source) => source.newer(than).await,
        }
    }
}

#[cfg(test)]
mod tests;
