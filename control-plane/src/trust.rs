//! Who the control plane is at its port, and whom it believes there: by the mesh's own authority ([`Ca`]), or by a source of identities
//! outside of it ([`Foreign`]).
//!
//! Decides nothing itself; it is what the port, the registrations and the pages ask, so that none of them has to know which of the two there is.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;
use tulle_certs::{Creds, SpiffeId, TrustBundle, TrustDomain};

use crate::ca::{Ca, Foreign, GrantError, NotGranted};
use crate::model::SessionKey;

/// Where identities come from. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Trust {
    /// The mesh's own authority.
    Own(Ca),
    /// Others.
    Foreign(Foreign),
}

/// Roots as they change.
pub enum Bundles {
    /// Of the mesh's own authority.
    Own(watch::Receiver<Arc<TrustBundle>>),
    /// Of a source.
    Foreign(watch::Receiver<Option<Arc<TrustBundle>>>),
}

// === impl Trust ===

impl Trust {
    /// The mesh's own authority, if it has one.
    pub fn ca(&self) -> Option<&Ca> {
        match self {
            Self::Own(ca) => Some(ca),
            Self::Foreign(_) => None,
        }
    }

    /// The control plane's own credentials: ask at every accepted connection. `None`: there are none yet.
    pub fn creds(&self) -> Option<Arc<Creds>> {
        match self {
            Self::Own(ca) => Some(ca.creds()),
            Self::Foreign(foreign) => foreign.creds(),
        }
    }

    /// The roots that every proxy is told.
    pub fn bundle(&self) -> Option<Arc<TrustBundle>> {
        match self {
            Self::Own(ca) => Some(ca.bundle()),
            Self::Foreign(foreign) => foreign.creds().map(|creds| Arc::clone(creds.bundle())),
        }
    }

    /// Every later ones.
    pub fn bundles(&self) -> Bundles {
        match self {
            Self::Own(ca) => Bundles::Own(ca.bundles()),
            Self::Foreign(foreign) => Bundles::Foreign(foreign.bundles()),
        }
    }

    /// Whose identities count.
    pub fn trust_domain(&self) -> &TrustDomain {
        match self {
            Self::Own(ca) => ca.trust_domain(),
            Self::Foreign(foreign) => foreign.trust_domain(),
        }
    }

    /// What seals the tokens of sessions.
    pub fn session_key(&self) -> SessionKey {
        match self {
            Self::Own(ca) => ca.session_key(),
            Self::Foreign(foreign) => foreign.session_key(),
        }
    }

    /// Whether `id` may register as an endpoint of a service of its namespace.
    pub fn may_register(&self, id: &SpiffeId, service: &str) -> Result<(), NotGranted> {
        match self {
            Self::Own(ca) => ca.may_register(id, service),
            Self::Foreign(foreign) => foreign.may_register(id, service),
        }
    }

    /// Takes a join token for the services that it grants, from who has proved by a certificate to be `id`.
    pub(crate) async fn grant_to(
        &self,
        id: &SpiffeId,
        token: &str,
        now: SystemTime,
    ) -> Result<(), GrantError> {
        match self {
            Self::Own(ca) => ca.grant_to(id, token, now).await,
            Self::Foreign(foreign) => foreign.grant_to(id, token, now).await,
        }
    }

    /// Whether it has joined with a join token.
    pub fn has_joined(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Own(ca) => ca.has_joined(id),
            Self::Foreign(foreign) => foreign.has_joined(id),
        }
    }

    /// When the control plane's own certificate expires, when that does which stands above it, and when the root.
    pub fn expires(&self) -> (SystemTime, SystemTime, SystemTime) {
        let leaf = self.creds().map_or(SystemTime::UNIX_EPOCH, |creds| creds.not_after());
        let (issuer, root) = match self {
            Self::Own(ca) => (ca.not_after(), ca.root_validity().1),
            Self::Foreign(foreign) => {
                let ends = |root| tulle_certs::validity(root).ok().map(|(_, until)| until);
                let bundle = self.bundle();
                let root = bundle.as_ref().and_then(|bundle| bundle.roots().iter().filter_map(ends).min());
                let none = SystemTime::UNIX_EPOCH;
                (foreign.not_after().unwrap_or(none), root.unwrap_or(none))
            }
        };
        (leaf, issuer, root)
    }
}

// === impl Bundles ===

impl Bundles {
    /// Waits for roots that were not told before; `None`: there will be none.
    pub async fn next(&mut self) -> Option<Arc<TrustBundle>> {
        match self {
            Self::Own(bundles) => {
                bundles.changed().await.ok()?;
                Some(Arc::clone(&bundles.borrow_and_update()))
            }
            Self::Foreign(bundles) => loop {
                bundles.changed().await.ok()?;
                let told = bundles.borrow_and_update().clone();
                if told.is_some() {
                    return told;
                }
            },
        }
    }
}
