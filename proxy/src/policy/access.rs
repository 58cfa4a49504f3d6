//! What policies say of who may connect and what may be asked, before it is compiled.
//!
//! As `AccessPolicy` of the wire has it; [`rules`](super::rules) compiles and evaluates it.

use std::sync::Arc;

use http::{HeaderName, Method};
use ipnet::IpNet;
use tulle_certs::SpiffeId;

use super::path::PathText;
use super::text::Text;
use crate::route::{Hostname, RequestMatch};

/// One policy. Any that denies refuses; else, where some that allow speak of what is asked, one of them must describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessPolicy {
    /// `<namespace>/<policy>`.
    pub name: Arc<str>,
    pub action: AccessAction,
    /// What it would have done is told, and not done.
    pub dry_run: bool,
    /// The ports that it speaks of; empty: every port.
    pub ports: Vec<u16>,
    /// The requests that it speaks of; empty: every request, and connections that are not HTTP.
    pub routes: Vec<RouteScope>,
    /// Any of them describes; none: nothing.
    pub rules: Vec<AccessRule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessAction {
    Allow,
    Deny,
    /// Let through as far as it is concerned, counted and logged.
    Audit,
}

/// The requests of a rule of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteScope {
    /// Empty: every host.
    pub hostnames: Vec<Hostname>,
    /// Any of them; empty: every request.
    pub matches: Vec<RequestMatch>,
}

/// Describes what has a source of `from`, an operation of `to`, and all of `when`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRule {
    /// `<namespace>/<policy>/<rule>`.
    pub name: Arc<str>,
    /// Empty: from anywhere.
    pub from: Vec<Source>,
    /// Empty: whatever is asked.
    pub to: Vec<Operation>,
    pub when: Vec<Condition>,
}

/// Describes clients by all of its fields that are not empty, and by any value of each; `not_` by none of its values. Who has no identity is
/// described by no `identities`, `namespaces` and `service_accounts`, and by every `not_` of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Some identity is proven.
    pub any_identity: bool,
    /// Whole SPIFFE IDs.
    pub identities: Vec<Text>,
    pub not_identities: Vec<Text>,
    /// Of the mesh's own trust domain.
    pub namespaces: Vec<Text>,
    pub not_namespaces: Vec<Text>,
    /// `<namespace>/<service account>`, of the mesh's own trust domain.
    pub service_accounts: Vec<Text>,
    pub not_service_accounts: Vec<Text>,
    /// The client's address as the connection has it.
    pub networks: Vec<IpNet>,
    pub not_networks: Vec<IpNet>,
    /// `<issuer>/<subject>` of a verified token.
    pub request_principals: Vec<Text>,
    pub not_request_principals: Vec<Text>,
}

/// Describes what is asked, likewise. What has fields besides ports describes HTTP only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    pub ports: Vec<u16>,
    pub not_ports: Vec<u16>,
    pub hosts: Vec<Text>,
    pub not_hosts: Vec<Text>,
    pub methods: Vec<Method>,
    pub not_methods: Vec<Method>,
    pub paths: Vec<PathText>,
    pub not_paths: Vec<PathText>,
    pub grpc_methods: Vec<GrpcMethod>,
    pub not_grpc_methods: Vec<GrpcMethod>,
}

/// Methods of gRPC; what is `None` may be any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcMethod {
    /// `<package>.<Service>`
    pub service: Option<Box<str>>,
    pub method: Option<Box<str>>,
}

/// What must hold of a request besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub of: Subject,
    /// Any of them; empty, as `not_values` are: it is there.
    pub values: Vec<Text>,
    /// None of them; what is not there has none.
    pub not_values: Vec<Text>,
}

/// Of what something must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Header(HeaderName),
    /// The way to a claim of a verified token, element by element.
    Claim(Box<[Box<str>]>),
}

// === impl AccessPolicy ===

impl AccessPolicy {
    /// One that lets these in, by this name, as control planes said it that knew no other policies.
    pub(super) fn allowing(name: &Arc<str>, ports: &[u16], identities: &[SpiffeId]) -> Self {
        let identities: Vec<_> = identities.iter().map(|id| Text::Exact(id.as_str().into())).collect();
        let rule = |identities| {
            let from = vec![Source { identities, ..Source::default() }];
            AccessRule { name: Arc::clone(name), from, ..AccessRule::default() }
        };
        Self {
            name: Arc::clone(name),
            action: AccessAction::Allow,
            dry_run: false,
            ports: ports.to_vec(),
            routes: Vec::new(),
            // Without identities it would describe everybody.
            rules: if identities.is_empty() { Vec::new() } else { vec![rule(identities)] },
        }
    }
}

// === impl AccessAction ===

impl AccessAction {
    /// As policies are written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
        }
    }
}

// === impl Source ===

impl Source {
    /// Whether it describes only who has an identity.
    pub(super) fn names_identities(&self) -> bool {
        self.any_identity
            || !(self.identities.is_empty() && self.namespaces.is_empty() && self.service_accounts.is_empty())
    }

    /// Whether it looks at more than the connection.
    pub(super) fn is_of_requests(&self) -> bool {
        !(self.request_principals.is_empty() && self.not_request_principals.is_empty())
    }
}

// === impl Operation ===

impl Operation {
    pub(super) fn looks_at_hosts(&self) -> bool {
        !(self.hosts.is_empty() && self.not_hosts.is_empty())
    }

    pub(super) fn looks_at_paths(&self) -> bool {
        !(self.paths.is_empty()
            && self.not_paths.is_empty()
            && self.grpc_methods.is_empty()
            && self.not_grpc_methods.is_empty())
    }

    /// Whether it looks at more than the port.
    pub(super) fn is_of_requests(&self) -> bool {
        self.looks_at_hosts()
            || self.looks_at_paths()
            || !(self.methods.is_empty() && self.not_methods.is_empty())
    }
}

// === impl GrpcMethod ===

impl GrpcMethod {
    /// Whether it is what `path` calls (gRPC over HTTP/2, "Requests").
    pub(super) fn is(&self, path: &str) -> bool {
        let called = path.strip_prefix('/').and_then(|path| path.split_once('/'));
        called.is_some_and(|(service, method)| {
            !service.is_empty()
                && !method.is_empty()
                && self.service.as_deref().is_none_or(|said| said == service)
                && self.method.as_deref().is_none_or(|said| said == method)
        })
    }
}

impl std::fmt::Display for GrpcMethod {
    /// As policies are written.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [service, method] = [&self.service, &self.method].map(|part| part.as_deref().unwrap_or("*"));
        write!(f, "{service}/{method}")
    }
}
