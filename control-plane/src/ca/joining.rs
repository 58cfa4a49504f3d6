//! Join tokens beside the certificates that they give: what they grant, and whether they are revoked.
//!
//! What of it is kept are two texts of the [`Store`]: what was granted (`grants`), and the book of tokens (`ledger`), which `tulle token` changes
//! beside a running control plane.

use std::path::Path;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;
use tulle_certs::token::{Claims, JoinTokens, TokenError};
use tulle_certs::{Lineage, SpiffeId};

use super::grants::Grants;
use super::ledger::{Ledger, Revoked};
use super::store::{self, Store};
use super::{Ca, CaError};

/// How often it is looked whether a join token was revoked, where nobody tells it.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// How often past join tokens are forgotten.
const FORGET: Duration = Duration::from_secs(3600);

impl Ca {
    /// Remembers what a verified join token grants.
    pub(crate) async fn grant_by(&self, token: &Claims) -> Result<(), CaError> {
        self.0.grants.add(token).await
    }

    /// The same for who has proved by a certificate to be `id`.
    pub(crate) async fn grant_to(
        &self,
        id: &SpiffeId,
        token: &str,
        now: SystemTime,
    ) -> Result<(), GrantError> {
        let tokens = self.tokens();
        grant_to(id, token, now, (&tokens, &self.0.revoked, &self.0.grants)).await
    }

    /// Remembers services, as if somebody had written them down.
    #[cfg(test)]
    pub(crate) async fn grant(&self, id: &SpiffeId, services: &[String]) -> Result<(), CaError> {
        self.0.grants.add_services(id, services).await
    }

    /// Whether this join token is good for one time and was used, as far as is known here.
    pub(super) fn is_used(&self, jti: &str) -> bool {
        self.0.revoked.is_used(jti)
    }

    /// Uses a join token that is good for one time; says whether it still was.
    pub(super) async fn spend(&self, token: &Claims, now: SystemTime) -> Result<bool, CaError> {
        self.0.revoked.spend(token, now).await
    }

    /// Whether this join token was revoked.
    pub fn is_revoked(&self, jti: &str) -> bool {
        self.0.revoked.is_token(jti)
    }

    /// Whether the join token was revoked that a certificate goes back to.
    pub fn is_revoked_lineage(&self, lineage: Lineage) -> bool {
        self.0.revoked.is_lineage(lineage)
    }

    /// Looks whether a join token was revoked since, where nobody tells it.
    pub(crate) async fn look_at_tokens(&self) {
        if let Err(error) = self.0.revoked.look().await {
            tracing::error!(%error, "cannot read which join tokens are revoked; what was known holds");
        }
    }

    /// The same again and again, so that what a token has granted ends soon after it is revoked; and forgets tokens that are long past. Runs until it
    /// is dropped.
    pub(crate) async fn keep_tokens(self) {
        let mut forgotten = Instant::now();
        loop {
            tokio::time::sleep(LOOK).await;
            self.look_at_tokens().await;
            if forgotten.elapsed() < FORGET {
                continue;
            }
            forgotten = Instant::now();
            if let Err(error) = self.0.revoked.forget(SystemTime::now()).await {
                tracing::warn!(%error, "cannot take past join tokens out of the book");
            }
        }
    }
}

/// Changes the book of join tokens of a state folder, beside a control plane that may be running; it takes the change up within seconds. `None` leaves it as it is. Says what the book was before.
///
/// # Errors
/// When it cannot be read or written, or is damaged; when the folder is no control plane's, where a book would be nobody's.
pub async fn change_ledger_of(
    state_dir: &Path,
    change: impl Fn(Ledger) -> Option<Ledger> + Send + Sync,
) -> Result<Ledger, CaError> {
    let key = state_dir.join(store::TOKEN_KEY);
    match key.try_exists() {
        Ok(true) => change_ledger_in(&store::folder::Folder::new(state_dir), change).await,
        Ok(false) => Err(CaError::Absent { place: key.display().to_string() }),
        Err(why) => Err(CaError::Io { path: key, why }),
    }
}

/// The same of a store, all of whose replicas take it up at once.
///
/// # Errors
/// When it cannot be read or written, or is damaged.
pub async fn change_ledger_in(
    store: &dyn Store,
    change: impl Fn(Ledger) -> Option<Ledger> + Send + Sync,
) -> Result<Ledger, CaError> {
    let before = Mutex::new(Ok(Ledger::default()));
    let place = store.place(store::TOKENS);
    let apply = |text: Option<&str>| {
        let read = Ledger::read(text, &place);
        let changed = read.as_ref().ok().and_then(|ledger| change(ledger.clone()));
        *before.lock() = read;
        changed.map(|ledger| ledger.to_text())
    };
    store.change(store::TOKENS, &apply).await?;
    before.into_inner()
}

/// What signs join tokens in the state folder of a control plane that issues no certificates; `None`: there is an authority, or no such key.
///
/// # Errors
/// When it cannot be read or used.
pub fn stored_signer(state_dir: &Path) -> Result<Option<JoinTokens>, CaError> {
    let folder = store::folder::Folder::new(state_dir);
    let kept = folder.read()?;
    if Ca::is_begun(&kept) || !kept.contains_key(store::TOKEN_KEY) {
        return Ok(None);
    }
    store::tokens(&kept, &|name| folder.path_of(name)).map(Some)
}

/// Why a join token grants its bearer nothing, though that one has proved by a certificate who it is.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// It is no good token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// It was revoked.
    #[error("the join token {0} is revoked; make another with `tulle token create`")]
    Revoked(String),
    /// It is good for one time, and was used for something else.
    #[error("{0}")]
    Used(String),
    /// It is another's.
    #[error("the join token is for {of}, the certificate for {id}")]
    Other {
        /// Whose the token is.
        of: SpiffeId,
        /// Who shows it.
        id: SpiffeId,
    },
    /// What it grants cannot be kept.
    #[error("what the join token grants cannot be kept: {0}")]
    Kept(#[from] CaError),
}

/// What whoever shows a token a second time is told that is good for one time.
pub(super) fn used(Claims { jti, sub, .. }: &Claims) -> String {
    format!(
        "the join token {jti} of {sub} is good for one time, and was used; make another with `tulle token create --once`. If it was used by none of yours, `tulle token revoke {jti}` \
         shuts out who did"
    )
}

/// Remembers what a join token grants to `id`, which has proved to be that. A token that is good for one time may be shown again by whom it has granted just that: it proves nothing here, and a proxy
/// shows it on each of its streams.
pub(super) async fn grant_to(
    id: &SpiffeId,
    token: &str,
    now: SystemTime,
    (tokens, revoked, grants): (&JoinTokens, &Revoked, &Grants),
) -> Result<(), GrantError> {
    revoked.look().await?;
    let claims = tokens.verify(token, now)?;
    if revoked.is_token(&claims.jti) {
        return Err(GrantError::Revoked(claims.jti));
    }
    if claims.sub != *id {
        return Err(GrantError::Other { of: claims.sub, id: id.clone() });
    }
    if claims.once && !grants.has(&claims) && !revoked.spend(&claims, now).await? {
        // By this very proxy, perhaps, whom another replica has let in a moment ago.
        return match grants.covers(&claims).await? {
            true => Ok(()),
            false => Err(GrantError::Used(used(&claims))),
        };
    }
    Ok(grants.add(&claims).await?)
}
