//! The compiled policy for destinations outside the mesh.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Denial, Verdict};
use crate::route::Hostname;

/// What a policy says, before it is compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressSpec {
    /// For destinations that no rule describes.
    pub action: Action,
    /// Who says so: `<namespace>/<policy>`, or `mesh`.
    pub action_name: Arc<str>,
    /// Of several that describe a destination the strictest holds, and of those the first is named.
    pub rules: Vec<EgressRule>,
}

/// Describes destinations by all of its fields that are not empty, and by any value of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressRule {
    /// `<namespace>/<policy>/<rule>`.
    pub name: Arc<str>,
    pub action: Action,
    pub networks: Vec<IpNet>,
    pub ports: Vec<u16>,
    pub names: Names,
}

/// What is done to a connection or request; in order of strictness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    Allow,
    /// Let through, counted and logged.
    Audit,
    Deny,
}

/// The names that a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// It is about any connection, whether it names anybody or not.
    Any,
    /// Server names of TLS.
    Sni(Vec<Hostname>),
    /// Hosts of HTTP in plain text.
    Host(Vec<Hostname>),
}

/// A destination outside the mesh, as the original destination and the client's first bytes tell it. What a client says can
/// only be judged: it never changes where the connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// Where the connection was going.
    pub address: SocketAddr,
    pub name: Name,
}

/// Whom a client says that it wants to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// Nobody: neither TLS nor HTTP, or not known yet.
    None,
    /// TLS; the server name in lower case, where the client sends one.
    Tls(Option<Box<str>>),
    /// HTTP in plain text; the request's host, without a port.
    Http(Box<str>),
}

/// A workload's policy for what it reaches outside the mesh.
#[derive(Debug)]
pub struct Egress {
    spec: EgressSpec,
}

// === impl Egress ===

impl Egress {
    pub fn new(spec: EgressSpec) -> Self {
        Self { spec }
    }

    /// What this was compiled from.
    pub fn spec(&self) -> &EgressSpec {
        &self.spec
    }

    /// Judges a connection or request.
    pub fn evaluate(&self, outside: &Outside) -> Verdict {
        let mut strictest: Option<&EgressRule> = None;
        for rule in &self.spec.rules {
            let stricter = strictest.is_none_or(|held| rule.action > held.action);
            if stricter && rule.describes(outside) {
                strictest = Some(rule);
            }
        }
        let (action, rule) = match strictest {
            Some(rule) => (rule.action, &rule.name),
            None => (self.spec.action, &self.spec.action_name),
        };
        let rule = Arc::clone(rule);
        match action {
            Action::Allow => Verdict::Allow { rule },
            Action::Audit => Verdict::Audit { rule },
            Action::Deny => Verdict::Deny { reason: Denial::EgressDenied, rule: Some(rule) },
        }
    }

    /// Whether a connection to `address` is denied for as long as it names nobody, and may be let through once it does.
    pub fn awaits_a_name(&self, address: SocketAddr) -> bool {
        let nobody = Outside { address, name: Name::None };
        let here = || self.spec.rules.iter().filter(|rule| rule.is_at(address));
        !self.evaluate(&nobody).is_allowed()
            && here().all(|rule| rule.action != Action::Deny || rule.names != Names::Any)
            && (self.spec.action != Action::Deny || here().any(|rule| rule.action != Action::Deny))
    }
}

// === impl EgressRule ===

impl EgressRule {
    /// A rule that denies at an address or port, by name besides, is not passed by with bytes that hide the name. One that
    /// denies by name alone would deny everything that has none: it binds only those who give theirs.
    fn describes(&self, outside: &Outside) -> bool {
        let placed = !self.ports.is_empty() || !self.networks.is_empty();
        self.is_at(outside.address)
            && (self.names.has(&outside.name)
                || (self.action == Action::Deny && placed && self.names.may_be_hidden_by(&outside.name)))
    }

    fn is_at(&self, address: SocketAddr) -> bool {
        (self.ports.is_empty() || self.ports.contains(&address.port()))
            && (self.networks.is_empty() || self.networks.iter().any(|net| net.contains(&address.ip())))
    }
}

// === impl Names ===

impl Names {
    fn has(&self, name: &Name) -> bool {
        match (self, name) {
            (Self::Any, _) => true,
            (Self::Sni(names), Name::Tls(Some(name))) | (Self::Host(names), Name::Http(name)) => {
                names.iter().any(|hostname| hostname.matches(name))
            }
            (Self::Sni(_) | Self::Host(_), _) => false,
        }
    }

    /// Whether the server may still be reached under one of these by a client that is heard to say `name`: it names nobody in
    /// a protocol that could.
    fn may_be_hidden_by(&self, name: &Name) -> bool {
        match (self, name) {
            (Self::Sni(_) | Self::Host(_), Name::None) | (Self::Sni(_), Name::Tls(None)) => true,
            (Self::Host(_), Name::Http(name)) => name.is_empty(),
            (Self::Any | Self::Sni(_) | Self::Host(_), _) => false,
        }
    }
}

// === impl Name ===

impl Name {
    /// The name itself, if there is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::None | Self::Tls(None) => None,
            Self::Tls(Some(name)) | Self::Http(name) => Some(name),
        }
    }
}

#[cfg(test)]
mod tests;
