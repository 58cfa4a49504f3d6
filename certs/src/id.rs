//! Trust domains and SPIFFE IDs, by the letter of the SPIFFE-ID specification (§2).
//!
//! Tulle's IDs have one shape, `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`; anything else
//! is refused here, so that no other code has to look at a path again.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest SPIFFE ID in bytes (SPIFFE-ID §2.3).
const MAX_ID: usize = 2048;
/// The longest trust domain in bytes (SPIFFE-ID §2.3).
const MAX_TRUST_DOMAIN: usize = 255;
const SCHEME: &str = "spiffe://";

/// Namespace of the control plane.
pub const CONTROL_PLANE_NAMESPACE: &str = "tulle-system";
/// Service account of the control plane.
pub const CONTROL_PLANE_SERVICE_ACCOUNT: &str = "tulle-control-plane";
/// The trust domain where none is configured.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// Why a text is no trust domain or no SPIFFE ID of ours. Says the text (shortened) and the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a trust domain.
    #[error("trust domain {text:?} is not valid: {why}")]
    TrustDomain {
        /// What was given, at most 100 characters of it.
        text: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// Not `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    #[error("SPIFFE ID {text:?} is not valid: {why}")]
    Id {
        /// What was given, at most 100 characters of it.
        text: String,
        /// The rule it breaks.
        why: &'static str,
    },
}

impl IdError {
    fn domain(text: &str, why: &'static str) -> Self {
        Self::TrustDomain { text: text.chars().take(100).collect(), why }
    }

    fn id(text: &str, why: &'static str) -> Self {
        Self::Id { text: text.chars().take(100).collect(), why }
    }
}

/// A trust domain: lower-case letters, digits, `.`, `-` and `_`; 1–255 bytes (SPIFFE-ID §2.1). Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

// === impl TrustDomain ===

impl TrustDomain {
    /// Checks `name` and keeps it.
    pub fn new(name: &str) -> Result<Self, IdError> {
        check_trust_domain(name).map_err(|why| IdError::domain(name, why))?;
        Ok(Self(name.into()))
    }

    /// The name, without a scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `spiffe://<trust domain>`, which a root certificate carries as its URI.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }
}

impl Default for TrustDomain {
    /// `cluster.local`.
    fn default() -> Self {
        Self(DEFAULT_TRUST_DOMAIN.into())
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::new(text)
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::new(&text)
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.as_str().to_owned()
    }
}

impl AsRef<str> for TrustDomain {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.0)
    }
}

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. Cheap to clone; equality is that of the text.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the trust domain ends in `text`; lengths are at most [`MAX_ID`].
    domain_end: u16,
    namespace_end: u16,
}

// === impl SpiffeId ===

impl SpiffeId {
    /// The ID of a service account. Names take letters, digits, `.`, `-` and `_` (SPIFFE-ID §2.2).
    pub fn new(domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, IdError> {
        Self::parse(&format!("{SCHEME}{domain}/ns/{namespace}/sa/{service_account}"))
    }

    /// Parses the text form strictly: no other scheme, port, query, fragment, empty segment or percent sign.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let error = |why| IdError::id(text, why);
        if text.len() > MAX_ID {
            return Err(error("longer than 2048 bytes"));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| error("does not begin with spiffe://"))?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| error(SHAPE))?;
        check_trust_domain(domain).map_err(error)?;
        let mut segments = path.split('/');
        let (Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (segments.next(), segments.next(), segments.next(), segments.next(), segments.next())
        else {
            return Err(error(SHAPE));
        };
        check_segment(namespace).and_then(|()| check_segment(account)).map_err(error)?;
        let domain_end = SCHEME.len() + domain.len();
        let namespace_end = domain_end + "/ns/".len() + namespace.len();
        Ok(Self { text: text.into(), domain_end: domain_end as u16, namespace_end: namespace_end as u16 })
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain's name.
    pub fn trust_domain_str(&self) -> &str {
        &self.text[SCHEME.len()..self.domain_end.into()]
    }

    /// The trust domain (allocates; compare with [`trust_domain_str`](Self::trust_domain_str)).
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_str().into())
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.text[usize::from(self.domain_end) + "/ns/".len()..self.namespace_end.into()]
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.text[usize::from(self.namespace_end) + "/sa/".len()..]
    }
}

const SHAPE: &str = "the form is spiffe://<trust domain>/ns/<namespace>/sa/<service account>";

/// The control plane's own ID in `domain`: `ns/tulle-system/sa/tulle-control-plane`.
pub fn control_plane_id(domain: &TrustDomain) -> SpiffeId {
    let domain_end = SCHEME.len() + domain.0.len();
    let namespace_end = domain_end + "/ns/".len() + CONTROL_PLANE_NAMESPACE.len();
    SpiffeId {
        text: format!("{SCHEME}{domain}/ns/{CONTROL_PLANE_NAMESPACE}/sa/{CONTROL_PLANE_SERVICE_ACCOUNT}")
            .into(),
        domain_end: domain_end as u16,
        namespace_end: namespace_end as u16,
    }
}

fn check_trust_domain(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("the trust domain is empty");
    }
    if name.len() > MAX_TRUST_DOMAIN {
        return Err("the trust domain is longer than 255 bytes");
    }
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if !name.bytes().all(allowed) {
        return Err("a trust domain takes lower-case letters, digits, '.', '-' and '_' only");
    }
    Ok(())
}

fn check_segment(segment: &str) -> Result<(), &'static str> {
    if segment.is_empty() {
        return Err("a path segment is empty");
    }
    if segment == "." || segment == ".." {
        return Err("a path segment is '.' or '..'");
    }
    if !segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) {
        return Err("a path segment takes letters, digits, '.', '-' and '_' only");
    }
    Ok(())
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl std::hash::Hash for SpiffeId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl Borrow<str> for SpiffeId {
    fn borrow(&self) -> &str {
        &self.text
    }
}

impl AsRef<str> for SpiffeId {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::parse(&text)
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_apart() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        assert_eq!(id.trust_domain(), TrustDomain::default());
        assert_eq!(
            (id.trust_domain_str(), id.namespace(), id.service_account()),
            ("cluster.local", "shop", "web")
        );
        assert_eq!(id, SpiffeId::new(&TrustDomain::default(), "shop", "web").unwrap());
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
        let cp = control_plane_id(&TrustDomain::default());
        assert_eq!(cp, SpiffeId::parse(cp.as_str()).unwrap());
        assert_eq!((cp.namespace(), cp.service_account()), ("tulle-system", "tulle-control-plane"));
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"spiffe://cluster.local/ns/shop/sa/web\"");
        assert!(serde_json::from_str::<SpiffeId>("\"spiffe://x\"").is_err());
    }

    #[test]
    fn nothing_else_is_an_id() {
        for bad in [
            "",
            "spiffe://",
            "spiffe:///ns/a/sa/b",
            "spiffe://td",
            "spiffe://td/",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/ns/../sa/b",
            "spiffe://td/ns/a/sa/.",
            "spiffe://td/ns/a%20/sa/b",
            "spiffe://td/ns/a/sa/b?x=1",
            "spiffe://td/ns/a/sa/b#x",
            "spiffe://td:8443/ns/a/sa/b",
            "spiffe://user@td/ns/a/sa/b",
            "spiffe://TD/ns/a/sa/b",
            "SPIFFE://td/ns/a/sa/b",
            "https://td/ns/a/sa/b",
            " spiffe://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b\n",
            "spiffe://td/sa/b/ns/a",
            "spiffe://td/NS/a/sa/b",
            "spiffe://td/ns/a/sa/é",
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad:?}");
        }
        let long = format!("spiffe://td/ns/a/sa/{}", "b".repeat(2048 - "spiffe://td/ns/a/sa/".len()));
        assert!(SpiffeId::parse(&long).is_ok());
        let error = SpiffeId::parse(&format!("{long}b")).unwrap_err();
        assert!(error.to_string().len() < 250, "errors shorten what they quote: {error}");
    }

    #[test]
    fn trust_domains() {
        for good in ["a", "cluster.local", "my_td-1.example", &"a".repeat(255)] {
            assert!(TrustDomain::new(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "a b", "a/b", "spiffe://a", "a:1", "é", &"a".repeat(256)] {
            assert!(TrustDomain::new(bad).is_err(), "{bad}");
        }
    }
}
