//! Names of Kubernetes objects.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// `<namespace>/<name>` of a Kubernetes object. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// Whether `text` is a DNS label in lower case, as Kubernetes names its services (RFC 1123 §2.1): 1 to 63 letters, digits
/// and `-`, with a letter or digit at both ends.
pub fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_subdomain(text) && !text.contains('.')
}

/// Whether `text` is a subdomain in lower case, as Kubernetes names its pods: up to 253 characters, labels between dots, of which none has a bound of
/// its own (apimachinery's `IsDNS1123Subdomain`, which is laxer there than RFC 1123).
pub fn is_subdomain(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_part = |part: &str| {
        !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(is_part)
}

/// Text that is not `<namespace>/<name>`.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not <namespace>/<name>")]
pub struct InvalidName(String);

// === impl ObjectName ===

impl ObjectName {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ObjectName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::new(namespace, name))
            }
            _ => Err(InvalidName(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_name_may_be_as_long_as_kubernetes_has_it() {
        let long = "a".repeat(253);
        for name in ["web-0", "a", "web.shop-1", &format!("{}-x2bq7", "a".repeat(70)), &long] {
            assert!(is_subdomain(name), "{name}");
        }
        for name in ["", ".", "a.", ".a", "a..b", "-a", "a-", "a.-b", "A", "a_b", "a/b", &format!("{long}a")]
        {
            assert!(!is_subdomain(name), "{name}");
        }
        assert!(is_label(&long[..63]) && !is_label(&long[..64]) && !is_label("a.b") && !is_label(""));
    }
}
