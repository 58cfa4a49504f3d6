//! What policies say of tokens, before it is compiled.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Uri, header};
use tulle_certs::jwks::KeySet;

use crate::policy::RouteScope;
use crate::state::ObjectName;

/// One policy: whose tokens requests to ports may carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthenticationSpec {
    /// `<namespace>/<policy>`.
    pub name: Arc<str>,
    /// Empty: every port.
    pub ports: Vec<u16>,
    /// Empty: every request.
    pub routes: Vec<RouteScope>,
    pub issuers: Vec<IssuerSpec>,
    /// A request without a token is refused.
    pub required: bool,
    /// What it would have refused is told, and nothing is changed.
    pub dry_run: bool,
}

/// Whose tokens are taken, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerSpec {
    /// As `iss` says it, exactly (RFC 7519 §4.1.1).
    pub issuer: Arc<str>,
    /// One of them must be in `aud`; empty: not looked at.
    pub audiences: Vec<Box<str>>,
    pub keys: KeysSpec,
    /// Where it is looked for; at least one.
    pub from: Vec<Place>,
    pub claims_to_headers: Vec<ClaimHeader>,
    /// The token goes on to the application.
    pub forward: bool,
    /// How far clocks may differ.
    pub leeway: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysSpec {
    Inline(Arc<KeySet>),
    Remote(RemoteSpec),
}

/// Where keys are fetched from, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteSpec {
    pub url: Uri,
    /// How long a set is used before it is fetched again.
    pub refresh: Duration,
    pub timeout: Duration,
    /// The Service of the mesh that serves it, and its port.
    pub service: Option<(ObjectName, u16)>,
    /// PEM; empty: the system's.
    pub roots: Arc<str>,
}

/// A header that has a token in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub header: HeaderName,
    /// Before the token; letters compare without case (RFC 9110 §11.1).
    pub prefix: Box<str>,
}

/// A claim that is told to the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimHeader {
    pub header: HeaderName,
    /// The way to it, element by element.
    pub claim: Vec<Box<str>>,
}

// === impl Place ===

impl Place {
    /// `Authorization: Bearer …` (RFC 6750 §2.1).
    pub fn bearer() -> Self {
        Self { header: header::AUTHORIZATION, prefix: "Bearer ".into() }
    }

    /// The token in a value of the header, if there is one.
    pub(super) fn token<'v>(&self, value: &'v [u8]) -> Option<&'v [u8]> {
        let (prefix, token) = value.split_at_checked(self.prefix.len())?;
        let token = token.trim_ascii();
        (prefix.eq_ignore_ascii_case(self.prefix.as_bytes()) && !token.is_empty()).then_some(token)
    }
}
