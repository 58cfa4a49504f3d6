//! Join tokens: how a workload outside of Kubernetes proves, once, who it may become.
//!
//! A compact JWT, ES256 and nothing else (RFC 7515, RFC 8725 §3.1): `sub` the SPIFFE ID, `services` the names
//! that it may register under, `exp`, `jti`, `aud` = `tulle`. The control plane mints and verifies with a key of
//! its own that certifies nothing. Tokens are secrets: no `Debug` and no error shows one.
//!
//! One that is good for one time has another audience, so that a control plane which does not count how often a token is shown takes none of them.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_lc_rs::constant_time;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::bundle::{Pin, PinError};
use crate::id::{IdError, SpiffeId};
use crate::key::{KeyError, PrivateKey};
use crate::{pem, x509};

/// `aud` of every join token.
pub const AUDIENCE: &str = "tulle";
/// `aud` of a join token that is good for one time.
pub const AUDIENCE_ONCE: &str = "tulle-once";
/// Clocks may differ by so much.
pub const LEEWAY: Duration = Duration::from_secs(60);
/// Longer tokens are refused unread.
const MAX_TOKEN: usize = 16 * 1024;

/// Why a token or token file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three base64url parts of JSON.
    #[error("join token: it is malformed ({0})")]
    Malformed(String),
    /// Any `alg` but ES256.
    #[error("join token: only the algorithm ES256 is accepted")]
    Algorithm,
    /// Signed by another key.
    #[error("join token: the signature is not this control plane's; was it made for another one?")]
    Signature,
    /// Past `exp`.
    #[error(
        "join token: it expired at {0}; make a new one with `tulle token create`, or compare the clocks if that is still to come"
    )]
    Expired(String),
    /// `nbf` in the future.
    #[error("join token: it is valid from {0} on; compare the clocks")]
    NotYetValid(String),
    /// Meant for someone else.
    #[error("join token: its audience is not {AUDIENCE:?}")]
    Audience,
    /// `sub` is no SPIFFE ID of ours.
    #[error("join token: {0}")]
    Subject(#[from] IdError),
    /// The signing key cannot be used.
    #[error("join tokens: {0}")]
    Key(#[from] KeyError),
    /// The key is no P-256 key.
    #[error("join tokens: the signing key must be on P-256 (ES256)")]
    Curve,
    /// Signing failed.
    #[error("join tokens: signing failed")]
    Signing,
    /// The file lacks the token.
    #[error("token file: line 1 must be the join token")]
    NoToken,
    /// The file lacks the pin or it is bad.
    #[error("token file: line 2 must be the pin of the control plane's root: {0}")]
    Pin(#[from] PinError),
    /// The file cannot be read.
    #[error("token file {path}: {why}")]
    File {
        /// Which file.
        path: String,
        /// What the system said.
        why: String,
    },
}

/// What a verified token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Who its bearer may become.
    pub sub: SpiffeId,
    /// Services, in the bearer's namespace, that it may register as an endpoint of.
    pub services: Vec<String>,
    /// When it ends.
    pub exp: SystemTime,
    /// Its own ID, for revoking it.
    pub jti: String,
    /// It is good for one time; whoever takes it must count.
    pub once: bool,
}

/// The claims as JSON.
#[derive(Serialize, Deserialize)]
struct Wire {
    sub: String,
    #[serde(default)]
    services: Vec<String>,
    exp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    jti: String,
    /// One or a list (RFC 7519 §4.1.3); compared by the library.
    #[serde(default)]
    aud: serde_json::Value,
}

/// Mints and verifies join tokens with one ES256 key.
#[derive(Clone)]
pub struct JoinTokens {
    key: PrivateKey,
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
}

// === impl JoinTokens ===

impl JoinTokens {
    /// With a new key.
    pub fn generate() -> Result<Self, TokenError> {
        Self::new(PrivateKey::generate()?)
    }

    /// With a stored key.
    pub fn from_pem(text: &str) -> Result<Self, TokenError> {
        Self::new(PrivateKey::from_pem(text)?)
    }

    /// With this key, on P-256.
    pub fn new(key: PrivateKey) -> Result<Self, TokenError> {
        if !key.is_p256() {
            return Err(TokenError::Curve);
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[AUDIENCE, AUDIENCE_ONCE]);
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        // Times are compared below, with the time that is passed in.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let encoding = EncodingKey::from_ec_der(key.pkcs8());
        let decoding = DecodingKey::from_ec_der(key.point());
        Ok(Self { key, encoding, decoding, validation })
    }

    /// The key, to store it.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// A token for `sub`, valid for `lifetime` from `now`.
    pub fn mint(
        &self,
        sub: &SpiffeId,
        services: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, TokenError> {
        self.sign(sub, services, AUDIENCE, lifetime, now)
    }

    /// The same, good for one time.
    pub fn mint_once(
        &self,
        sub: &SpiffeId,
        services: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, TokenError> {
        self.sign(sub, services, AUDIENCE_ONCE, lifetime, now)
    }

    fn sign(
        &self,
        sub: &SpiffeId,
        services: &[String],
        audience: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, TokenError> {
        let mut jti = [0_u8; 16];
        aws_lc_rs::rand::fill(&mut jti).map_err(|_| TokenError::Signing)?;
        let claims = Wire {
            sub: sub.to_string(),
            services: services.to_vec(),
            exp: x509::seconds(now).saturating_add(lifetime.as_secs()),
            nbf: None,
            // Of letters and digits: people type it.
            jti: jti.iter().map(|byte| format!("{byte:02x}")).collect(),
            aud: audience.into(),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.encoding)
            .map_err(|_| TokenError::Signing)
    }

    /// Verifies signature, algorithm, audience and times (60 s of leeway), in constant dislike of everything else.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, TokenError> {
        let token = token.trim();
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Malformed(format!("it is longer than {MAX_TOKEN} bytes")));
        }
        check_header(token)?;
        let data = jsonwebtoken::decode::<Wire>(token, &self.decoding, &self.validation).map_err(refused)?;
        let claims = data.claims;
        let now = x509::seconds(now);
        if claims.exp.saturating_add(LEEWAY.as_secs()) < now {
            return Err(TokenError::Expired(show(claims.exp)));
        }
        if let Some(nbf) = claims.nbf.filter(|nbf| *nbf > now.saturating_add(LEEWAY.as_secs())) {
            return Err(TokenError::NotYetValid(show(nbf)));
        }
        claims.read()
    }
}

// === impl Wire ===

impl Wire {
    fn read(self) -> Result<Claims, TokenError> {
        let sub = SpiffeId::parse(&self.sub)?;
        // Of several audiences the strictest counts.
        let once = match &self.aud {
            serde_json::Value::Array(all) => all.iter().any(|one| one == AUDIENCE_ONCE),
            one => one == AUDIENCE_ONCE,
        };
        Ok(Claims { sub, services: self.services, exp: time(self.exp), jti: self.jti, once })
    }
}

impl fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinTokens").field("key", &self.key).finish_non_exhaustive()
    }
}

/// ES256 is asked for before anything else is looked at, so that even an algorithm that nobody knows is told as
/// what it is. Critical extensions must be understood (RFC 7515 §4.1.11), and we know none.
fn check_header(token: &str) -> Result<(), TokenError> {
    #[derive(Deserialize)]
    struct Head {
        alg: String,
        crit: Option<serde_json::Value>,
    }
    let malformed = |why: &str| TokenError::Malformed(why.to_owned());
    let (header, _) = token.split_once('.').ok_or_else(|| malformed("it does not have three parts"))?;
    let json = URL_SAFE_NO_PAD.decode(header).map_err(|_| malformed("a part is not base64url"))?;
    let head: Head =
        serde_json::from_slice(&json).map_err(|_| malformed("its header is not that of a JWT"))?;
    if head.alg != "ES256" {
        return Err(TokenError::Algorithm);
    }
    if head.crit.is_some() {
        return Err(malformed("it has critical extensions"));
    }
    Ok(())
}

/// What the claims of a compact JWT say, *not verified*; `None`: it is none, or does not say that.
pub(crate) fn unverified<T: serde::de::DeserializeOwned>(token: &str) -> Option<T> {
    let mut parts = token.split('.');
    let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(payload).ok()?);
    serde_json::from_slice(&json).ok()
}

fn time(seconds: u64) -> SystemTime {
    x509::system_time(i64::try_from(seconds).unwrap_or(i64::MAX))
}

fn show(seconds: u64) -> String {
    x509::show(time(seconds))
}

/// Maps the library's reasons to ours; none of them quotes the token.
fn refused(error: jsonwebtoken::errors::Error) -> TokenError {
    match error.kind() {
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::MissingAlgorithm => {
            TokenError::Algorithm
        }
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAudience => TokenError::Audience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => TokenError::Audience,
        ErrorKind::MissingRequiredClaim(claim) => {
            TokenError::Malformed(format!("the claim {claim} is missing"))
        }
        ErrorKind::InvalidToken => TokenError::Malformed("it does not have three parts".into()),
        ErrorKind::Base64(_) => TokenError::Malformed("a part is not base64url".into()),
        ErrorKind::Json(e) => TokenError::Malformed(format!("JSON, column {}", e.column())),
        _ => TokenError::Malformed("it cannot be read".into()),
    }
}

/// What a workload is given to join with: line 1 the token, line 2 the pin of the control plane's root.
#[derive(Clone)]
pub struct TokenFile {
    /// The compact JWT; wiped when dropped.
    pub token: Zeroizing<String>,
    /// The root's pin.
    pub pin: Pin,
}

// === impl TokenFile ===

impl TokenFile {
    /// Of a token and a pin.
    pub fn new(token: String, pin: Pin) -> Self {
        Self { token: Zeroizing::new(token), pin }
    }

    /// Reads a file's content; CRLF, blank lines and lines that begin with `#` are fine.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim_start_matches('\u{feff}');
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let token = lines.next().filter(|line| line.split('.').count() == 3).ok_or(TokenError::NoToken)?;
        let pin = lines.next().unwrap_or_default().parse()?;
        Ok(Self::new(token.to_owned(), pin))
    }

    /// Reads the file; the error names it.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let file = |why: String| TokenError::File { path: path.display().to_string(), why };
        let text = pem::read_file(path).map_err(|e| file(e.to_string()))?;
        Self::parse(&text).map_err(|e| file(e.to_string()))
    }

    /// The file's content, for a file of mode 0600.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}\n{}\n", self.token.as_str(), self.pin))
    }

    /// [`claims_of`] its token.
    pub fn claims(&self) -> Result<Claims, TokenError> {
        claims_of(&self.token)
    }
}

/// What a join token says, *not verified*: for a bearer to choose its own name by, and to see that the token is of no use
/// any more; for people to name it by. Only the control plane's verification gives it any authority.
pub fn claims_of(token: &str) -> Result<Claims, TokenError> {
    let payload = token.split('.').nth(1).ok_or(TokenError::NoToken)?;
    let json = URL_SAFE_NO_PAD
        .decode(payload)
        .map_err(|_| TokenError::Malformed("a part is not base64url".into()))?;
    let claims: Wire = serde_json::from_slice(&json)
        .map_err(|e| TokenError::Malformed(format!("JSON, column {}", e.column())))?;
    claims.read()
}

impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenFile").field("pin", &self.pin).finish_non_exhaustive()
    }
}

impl PartialEq for TokenFile {
    /// In constant time for tokens of one length.
    fn eq(&self, other: &Self) -> bool {
        let same = constant_time::verify_slices_are_equal(self.token.as_bytes(), other.token.as_bytes());
        same.is_ok() && self.pin == other.pin
    }
}

impl Eq for TokenFile {}

#[cfg(test)]
mod tests;
