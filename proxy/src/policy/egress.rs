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
            if stricter && rule.is_at(outside.address) && rule.names.has(&outside.name) {
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
        self.spec.action == Action::Deny
            && self.spec.rules.iter().any(|rule| rule.action != Action::Deny && rule.is_at(address))
            && self.spec.rules.iter().all(|rule| rule.names != Names::Any || !rule.is_at(address))
    }
}

// === impl EgressRule ===

impl EgressRule {
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
