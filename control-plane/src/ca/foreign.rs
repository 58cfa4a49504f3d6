//! A mesh whose identities others issue: the control plane has its own certificate, and the roots, from files or a SPIFFE Workload API.
//!
//! Decides nothing about identities: whoever shows a certificate under the source's roots is who it says, and there is nothing to ask for here. What remains
//! is the state folder's: what identities may register for, by join tokens that grant just that, and the key of sessions. Its certificate must name the control plane's own
//! identity, since that is whom proxies look for.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tonic::{Request, Response, Status};
use tulle_api::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use tulle_api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tulle_certs::token::JoinTokens;
use tulle_certs::{Creds, SpiffeId, TrustBundle, TrustDomain, validity};
use tulle_identity::{Follower, Given, SourceError};

use super::grants::Grants;
use super::joining::{self, GrantError, LOOK};
use super::ledger::Revoked;
use super::store::{self, GRANTS, TOKENS};
use super::{CaError, NotGranted};
use crate::model::SessionKey;

/// The source, and what is kept beside it. Cheap to clone; the source is followed until the last one is dropped.
#[derive(Clone)]
pub struct Foreign(Arc<Inner>);

struct Inner {
    /// The source, for people.
    given: String,
    domain: TrustDomain,
    state: Arc<State>,
    session_key: SessionKey,
    tokens: JoinTokens,
    revoked: Arc<Revoked>,
    grants: Grants,
    following: AbortHandle,
}

/// What the source has told.
struct State {
    creds: ArcSwapOption<Creds>,
    /// `None`: nothing yet.
    bundle: watch::Sender<Option<Arc<TrustBundle>>>,
}

struct Following(Arc<State>);

/// Answers everybody that nothing is issued here.
#[derive(Debug)]
pub struct NoCertificates {
    pub(super) given: String,
}

// === impl Foreign ===

impl Foreign {
    /// With what the state folder holds, once the source has told who the control plane is; that may have to be waited for. The folder must be
    /// locked by the caller. `given` must want nobody but the control plane of `domain`.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub async fn open(state_dir: &Path, given: Given, domain: &TrustDomain) -> Result<Self, CaError> {
        let folder = store::folder::Folder::new(state_dir);
        let place = |name: &str| folder.path_of(name);
        let mut kept = folder.read()?;
        let made = store::complete_tokens(&mut kept, &place)?;
        folder.write(&kept, &made)?;
        let tokens = store::tokens(&kept, &place)?;
        let session_key = SessionKey::derive(tokens.key().to_pem().as_bytes());
        let kept = |name: &str| kept.get(name).map(|text| text.as_str());
        let revoked = Arc::new(Revoked::open(Arc::new(folder.clone()), kept(TOKENS))?);
        let grants = Grants::open(Arc::new(folder.clone()), kept(GRANTS), Arc::clone(&revoked));

        let state = Arc::new(State { creds: ArcSwapOption::empty(), bundle: watch::Sender::new(None) });
        let (described, mut told) = (given.to_string(), state.bundle.subscribe());
        let mut following = Following(Arc::clone(&state));
        let task = tokio::spawn(async move {
            given.follow(&mut following).await;
        });
        let inner = Inner {
            given: described,
            domain: domain.clone(),
            state,
            session_key,
            tokens,
            revoked,
            grants,
            following: task.abort_handle(),
        };
        tracing::info!(source = inner.given, "waiting for the control plane's own identity");
        // The sender lives as long as `inner`.
        let _told = told.wait_for(Option::is_some).await;
        Ok(Self(Arc::new(inner)))
    }

    /// The control plane's own credentials, now.
    pub fn creds(&self) -> Option<Arc<Creds>> {
        self.0.state.creds.load_full()
    }

    /// The roots that the source tells, and every later ones.
    pub fn bundles(&self) -> watch::Receiver<Option<Arc<TrustBundle>>> {
        self.0.state.bundle.subscribe()
    }

    /// Whose control plane it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.domain
    }

    /// What seals the tokens of sessions.
    pub fn session_key(&self) -> SessionKey {
        self.0.session_key.clone()
    }

    /// Whether what is kept lets `id` register as an endpoint of a service of its namespace.
    pub fn may_register(&self, id: &SpiffeId, service: &str) -> Result<(), NotGranted> {
        self.0.grants.check(id, service, |jti| self.0.revoked.is_token(jti))
    }

    /// Whether anything is kept of it.
    pub fn has_joined(&self, id: &SpiffeId) -> bool {
        self.0.grants.knows(id, |jti| self.0.revoked.is_token(jti))
    }

    /// Remembers what a join token grants to `id`, which has proved to be that.
    pub(crate) async fn grant_to(
        &self,
        id: &SpiffeId,
        token: &str,
        now: SystemTime,
    ) -> Result<(), GrantError> {
        let Inner { tokens, revoked, grants, .. } = &*self.0;
        joining::grant_to(id, token, now, (tokens, revoked, grants)).await
    }

    /// Looks again and again whether a join token was revoked. Runs until it is dropped.
    pub(crate) async fn keep_tokens(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = self.0.revoked.look().await {
                tracing::error!(%error, "cannot read which join tokens are revoked; what was known holds");
            }
        }
    }

    /// When the first of those that vouch for the control plane's certificate expires.
    pub fn not_after(&self) -> Option<SystemTime> {
        let creds = self.creds()?;
        let above = creds.chain().iter().skip(1).chain(creds.bundle().roots());
        above.filter_map(|certificate| Some(validity(certificate).ok()?.1)).min()
    }

    /// The certificate service, which says to whoever asks where identities come from.
    pub fn service(&self) -> IstioCertificateServiceServer<NoCertificates> {
        IstioCertificateServiceServer::new(NoCertificates { given: self.0.given.clone() })
    }
}

impl fmt::Debug for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Foreign").field("given", &self.0.given).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.following.abort();
    }
}

// === impl Following ===

impl Follower for Following {
    fn take(&mut self, creds: Arc<Creds>) {
        tracing::info!(?creds, "obtained the control plane's own certificate");
        let bundle = Arc::clone(creds.bundle());
        self.0.creds.store(Some(creds));
        self.0.bundle.send_if_modified(|before| {
            let differs = before.as_ref() != Some(&bundle);
            *before = Some(bundle);
            differs
        });
    }

    fn failed(&mut self, error: &SourceError, failures: u32) {
        match self.0.creds.load_full() {
            None => {
                tracing::warn!(%error, failures, "the control plane has no certificate yet; trying again")
            }
            Some(creds) if creds.is_expired(SystemTime::now()) => {
                tracing::error!(%error, failures, "the control plane's own certificate has expired: no proxy takes it; trying again");
            }
            Some(_) => {
                tracing::warn!(%error, failures, "nothing new of the control plane's own certificate; the old one serves on");
            }
        }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for NoCertificates {
    async fn create_certificate(
        &self,
        _: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        Err(Status::permission_denied(format!(
            "this control plane issues no certificates: its own is from {}, and those of workloads must come from where its roots do \
             (TULLE_PROXY_IDENTITY_WORKLOAD_API, TULLE_PROXY_IDENTITY_CERT_FILE, TULLE_PROXY_IDENTITY_CA_ADDRESS)",
            self.given
        )))
    }
}
