//! Host names: those that routes carry, and the request's.

use std::fmt;
use std::str::FromStr;

/// The longest host name that can match; DNS allows 253 bytes (RFC 1035 §2.3.4).
pub(super) const MAX: usize = 255;

/// A host name that a route is for: exact, or `*.` before the labels that it ends in. In lower case, without the
/// root's dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hostname {
    Exact(Box<str>),
    /// Any one or more labels, then a dot and this: `*.example.com` is `example.com` here, and matches
    /// `a.example.com` and `a.b.example.com`, but not `example.com`.
    Suffix(Box<str>),
}

/// Text that is not a host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a host name, with or without a leading \"*.\"")]
pub struct InvalidHostname(String);

// === impl Hostname ===

impl Hostname {
    /// Whether this is about `host`: a host name without a port, compared without case and without the root's dot.
    pub fn matches(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        match self {
            Self::Exact(name) => host.eq_ignore_ascii_case(name),
            Self::Suffix(name) => {
                let at = host.len().checked_sub(name.len()).filter(|at| *at > 1);
                let split = at.and_then(|at| host.split_at_checked(at));
                split.is_some_and(|(labels, end)| labels.ends_with('.') && end.eq_ignore_ascii_case(name))
            }
        }
    }
}

impl FromStr for Hostname {
    type Err = InvalidHostname;

    fn from_str(text: &str) -> Result<Self, InvalidHostname> {
        let (suffix, name) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        let label = |label: &str| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if name.len() > MAX || !name.split('.').all(label) {
            return Err(InvalidHostname(text.to_owned()));
        }
        let name = name.to_ascii_lowercase().into_boxed_str();
        Ok(if suffix { Self::Suffix(name) } else { Self::Exact(name) })
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(name) => write!(f, "*.{name}"),
        }
    }
}

/// A request's host as routes compare it: without user, port and the root's dot, in lower case; on the stack.
pub(super) struct RequestHost {
    bytes: [u8; MAX],
    len: usize,
}

// === impl RequestHost ===

impl RequestHost {
    /// `None` if it is empty or longer than any name, so that only routes without host names can match.
    pub(super) fn new(authority: &str) -> Option<Self> {
        let name = host_of(authority);
        let name = name.strip_suffix('.').unwrap_or(name).as_bytes();
        if name.is_empty() || name.len() > MAX {
            return None;
        }
        let mut bytes = [0; MAX];
        for (to, from) in bytes.iter_mut().zip(name) {
            *to = from.to_ascii_lowercase();
        }
        Some(Self { bytes, len: name.len() })
    }

    pub(super) fn as_str(&self) -> &str {
        // Lowering ASCII letters keeps UTF-8 what it was.
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

/// `authority` without a user and a port: digits after the last colon, which in `[::1]:80` follow the bracket.
pub(super) fn host_of(authority: &str) -> &str {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    match authority.rsplit_once(':') {
        Some((host, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')) =>
        {
            host
        }
        _ => authority,
    }
}
