//! Whether a token's claims are what its issuer's policy asks, and how claims are told to the application.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value};
use tulle_certs::jwt::{ReadError, SignatureError};

use super::Issuer;
use crate::policy::Claims;
use crate::telemetry::Reason;
use crate::telemetry::metrics::TokenResult;

/// Why a request's token is not taken, or why it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the request has no token")]
    Missing,
    #[error("the request has several tokens that differ")]
    Several,
    #[error("{0}")]
    Unreadable(#[from] ReadError),
    #[error("the token's issuer is none that is taken here")]
    Issuer,
    #[error("the token does not say when it expires (`exp`)")]
    Endless,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("a time of the token is not a number")]
    Time,
    #[error("the token is for another audience")]
    Audience,
    #[error("{0}")]
    Unsigned(#[from] SignatureError),
    #[error("a claim of the token has a character in it that no header may have")]
    Claim,
    #[error("the keys of the token's issuer could not be fetched")]
    NoKeys,
}

// === impl Refusal ===

impl Refusal {
    /// As it is told to clients and logged.
    pub fn reason(self) -> Reason {
        match self {
            Self::Missing => Reason::TokenRequired,
            Self::NoKeys => Reason::JwksUnavailable,
            _ => Reason::TokenInvalid,
        }
    }

    /// As it is counted.
    pub fn result(self) -> TokenResult {
        match self {
            Self::Missing => TokenResult::Missing,
            Self::Several => TokenResult::Several,
            Self::Unreadable(ReadError::TooLong) => TokenResult::TooLong,
            Self::Unreadable(ReadError::Malformed(_)) | Self::Time => TokenResult::Malformed,
            Self::Unreadable(ReadError::Algorithm) => TokenResult::Algorithm,
            Self::Issuer => TokenResult::Issuer,
            Self::Endless | Self::Expired => TokenResult::Expired,
            Self::NotYet => TokenResult::NotYet,
            Self::Audience => TokenResult::Audience,
            Self::Unsigned(SignatureError::NoKey) => TokenResult::Key,
            Self::Unsigned(SignatureError::Wrong) => TokenResult::Signature,
            Self::Claim => TokenResult::Claim,
            Self::NoKeys => TokenResult::NoKeys,
        }
    }
}

// === impl Issuer ===

impl Issuer {
    /// Whether claims, of which `iss` is this issuer's, hold at `now`, in seconds since 1970 (RFC 7519 §4.1); until when they do.
    ///
    /// # Errors
    /// Where they do not. `exp` must be there: what never ends could never be taken back.
    pub fn check(&self, claims: &Map<String, Value>, now: f64) -> Result<f64, Refusal> {
        let leeway = self.spec.leeway.as_secs_f64();
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            // A NumericDate may have a fraction (RFC 7519 §2).
            Some(value) => value.as_f64().map(Some).ok_or(Refusal::Time),
        };
        let (expires, begins, issued) = (time("exp")?.ok_or(Refusal::Endless)?, time("nbf")?, time("iat")?);
        if now >= expires + leeway {
            return Err(Refusal::Expired);
        }
        if [begins, issued].into_iter().flatten().any(|from| from > now + leeway) {
            return Err(Refusal::NotYet);
        }
        if !self.is_for_us(claims.get("aud")) {
            return Err(Refusal::Audience);
        }
        Ok(expires + leeway)
    }

    fn is_for_us(&self, audience: Option<&Value>) -> bool {
        let ours = &self.spec.audiences;
        let is_ours = |said: &Value| said.as_str().is_some_and(|said| ours.iter().any(|own| **own == *said));
        match audience {
            _ if ours.is_empty() => true,
            Some(Value::Array(all)) => all.iter().any(is_ours),
            Some(one) => is_ours(one),
            None => false,
        }
    }

    /// What is told to the application of verified claims. Claims that are not there, or null, are not.
    ///
    /// # Errors
    /// [`Refusal::Claim`]: one could end its header, or be taken for another than it is.
    pub fn told(&self, claims: &Claims) -> Result<Vec<(HeaderName, HeaderValue)>, Refusal> {
        let mut told = Vec::with_capacity(self.spec.claims_to_headers.len());
        for one in &self.spec.claims_to_headers {
            match claims.at(one.claim.iter().map(|element| &**element)) {
                None | Some(Value::Null) => {}
                Some(claim) => told.push((one.header.clone(), value(claim).ok_or(Refusal::Claim)?)),
            }
        }
        Ok(told)
    }
}

/// A claim as text: strings as they are, numbers and truth values as JSON has them, and lists and objects as base64 of their JSON, as Envoy does
/// (`claim_to_headers`): JSON has commas, by which several values of a header are told apart.
fn value(claim: &Value) -> Option<HeaderValue> {
    let text = match claim {
        Value::String(text) => text.clone(),
        Value::Array(_) | Value::Object(_) => STANDARD.encode(claim.to_string()),
        other => other.to_string(),
    };
    // Also a tab, which is allowed in a header, and spaces at its ends, which are cut off: it would not be the same claim.
    if text.chars().any(char::is_control) || text.trim() != text {
        return None;
    }
    HeaderValue::from_bytes(text.as_bytes()).ok()
}
