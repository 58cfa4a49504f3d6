//! Whose a token of the platform is: the question that an authority asks where there is an API server. [`crate::cluster`] answers it.

use std::net::IpAddr;

/// The pod that a token is bound to, and what it runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// Of the pod and of its service account.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// The pod's name.
    pub pod: String,
}

/// Why a token says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// It is not valid here; who shows it must get another.
    #[error("the service-account token is refused: {0}")]
    Refused(String),
    /// Nobody can say; the same token may be shown again.
    #[error("the service-account token cannot be reviewed now: {0}; ask again")]
    Unavailable(String),
}

/// Says whose a token is.
#[tonic::async_trait]
pub trait Reviewer: Send + Sync {
    /// Never says more than the API server does. `client`: where the token comes from, which must not keep others from being answered.
    async fn review(&self, token: &str, client: Option<IpAddr>) -> Result<Bearer, ReviewError>;
}
