//! HTTPRoute, GRPCRoute, TLSRoute, TCPRoute and ReferenceGrant: where requests and connections to a Service go.
//!
//! All kinds of route become the same [`Route`]: a gRPC method is a path, and a rule for connections matches all of them. What the Gateway API's own schema and rules (OpenAPI and CEL)
//! forbid refuses the object, as a Kubernetes API server would. What this version cannot do makes a [`Fault`] of
//! its rule, which is then never served as if it asked for less: that would send requests where nobody wanted them.
//!
//! - `http`, `grpc`, `stream`: the kinds; here: what both have, parents, backends and names;
//! - `matches`: what requests must look like; `filters`, `cors`, `retry`: what is done to them; `session`: who stays at which endpoint; `grant`: ReferenceGrant.

mod cors;
mod filters;
mod grant;
mod grpc;
mod http;
mod matches;
mod retry;
mod session;
mod stream;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use self::cors::Cors;
use self::filters::Written;
pub use self::filters::{Filter, HeaderModifier, Mirror, PathModifier, Redirect, Rewrite};
pub use self::grant::{Grant, GrantTarget};
pub(super) use self::http::read_duration;
pub use self::matches::{Match, PathMatch, ValueMatch, ValuePattern};
pub(super) use self::matches::{REGEX_HINT, check_header_value, check_name, regex_fault};
pub use self::retry::Retry;
pub use self::session::SessionPersistence;
use super::{Kind, NamespacedName, ObjectKey, is_label, is_subdomain, port};
use crate::finding::Notes;

/// The largest weight that the Gateway API allows.
const MAX_WEIGHT: i32 = 1_000_000;
/// How many hosts, rules, filters, backends, and values in a match or a header modifier the Gateway API allows.
const MAX_LIST: usize = 16;
/// How many parents the Gateway API allows.
const MAX_PARENTS: usize = 32;

/// A route, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// As which it is written.
    pub kind: RouteKind,
    /// Its own name, one of its kind.
    pub name: NamespacedName,
    /// Seconds since 1970; none (newest of all) unless the object says.
    pub created: Option<i64>,
    /// Of the spec that this is, where an API server counts them.
    pub generation: Option<i64>,
    /// Services only; parents of other kinds are somebody else's.
    pub parents: Vec<Parent>,
    /// A TLSRoute's server names, exact or with a leading `*.`; empty for other kinds.
    pub server_names: Vec<String>,
    /// All of them, in order.
    pub rules: Vec<Rule>,
}

/// The kinds of route, in order of precedence: on a port that has routes of several kinds, only those of the first hold
/// (GEP-1426).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// GRPCRoute.
    Grpc,
    /// HTTPRoute.
    Http,
    /// TLSRoute.
    Tls,
    /// TCPRoute.
    Tcp,
}

/// A Service that a route is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The Service.
    pub service: NamespacedName,
    /// Only this port.
    pub port: Option<u16>,
    /// Only the port of this name.
    pub section: Option<String>,
    /// Its place in `parentRefs`.
    pub index: usize,
}

/// One rule of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its place in `rules`.
    pub index: usize,
    /// May be empty.
    pub name: String,
    /// Any of them; never empty, except where a fault is.
    pub matches: Vec<Match>,
    /// In the order in which they are applied.
    pub filters: Vec<Filter>,
    /// By weight.
    pub backends: Vec<Backend>,
    /// The whole request; none: it does not say, 0: no limit.
    pub request_timeout: Option<Duration>,
    /// One try; none: it does not say, 0: no limit.
    pub backend_request_timeout: Option<Duration>,
    /// None: it does not say.
    pub retry: Option<Retry>,
    /// None: each request is balanced by itself.
    pub session: Option<SessionPersistence>,
    /// Why it is not served as it is written; already told.
    pub fault: Option<Fault>,
}

/// Why a rule, or a backend's share of one, is not served as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What becomes of its requests.
    pub effect: Effect,
    /// Which field asks for what cannot be done.
    pub field: String,
    /// What it asks for.
    pub message: String,
}

/// What becomes of the requests that a faulty rule is for. The greater one prevails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// They are matched, and answered with 500.
    Refused,
    /// The rule is left out: which requests it means cannot be told.
    LeftOut,
}

/// Where a rule sends a share of the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its place in `backendRefs`.
    pub index: usize,
    /// The Service; the reference may not resolve.
    pub service: NamespacedName,
    /// False for a kind that is not a Service.
    pub is_service: bool,
    /// The Service's port.
    pub port: u16,
    /// 0–1,000,000.
    pub weight: u32,
    /// What is done to what goes there, after the rule's own; header modifiers only.
    pub filters: Vec<Filter>,
    /// Why its share is answered with 500; already told.
    pub fault: Option<Fault>,
}

// === impl RouteKind ===

impl From<RouteKind> for Kind {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Grpc => Self::GrpcRoute,
            RouteKind::Http => Self::HttpRoute,
            RouteKind::Tls => Self::TlsRoute,
            RouteKind::Tcp => Self::TcpRoute,
        }
    }
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Kind::from(*self).fmt(f)
    }
}

impl RouteKind {
    /// All, in order of precedence.
    pub const ALL: [Self; 4] = [Self::Grpc, Self::Http, Self::Tls, Self::Tcp];

    /// Whether its routes are for whole connections, and not for requests.
    pub fn is_for_streams(self) -> bool {
        matches!(self, Self::Tls | Self::Tcp)
    }
}

// === impl Route ===

impl Route {
    /// Which object it is.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind.into(), name: self.name.clone() }
    }

    /// The order that breaks ties between routes: oldest first, then by `<namespace>/<name>` (`HTTPRoute.spec.rules.matches`).
    pub fn precedence(&self) -> impl Ord + use<> {
        (self.created.is_none(), self.created, self.name.to_string(), self.kind)
    }

    /// The Services that it is attached to; may name one more than once.
    pub fn services(&self) -> impl Iterator<Item = &NamespacedName> {
        self.parents.iter().map(|parent| &parent.service)
    }

    /// The Services that it sends requests to; may name one more than once.
    pub fn backends(&self) -> impl Iterator<Item = &NamespacedName> {
        let backends = self.rules.iter().flat_map(|rule| rule.backends.iter().chain(rule.mirrors()));
        backends.map(|backend| &backend.service)
    }

    /// Whether the route applies to every client of `service`, and not only to those in its own namespace (GEP-1426).
    pub fn is_producer_for(&self, service: &NamespacedName) -> bool {
        self.name.namespace == service.namespace
    }
}

// === impl Rule ===

impl Rule {
    /// Where copies of requests go.
    pub fn mirrors(&self) -> impl Iterator<Item = &Backend> {
        self.filters.iter().filter_map(|filter| match filter {
            Filter::Mirror(mirror) => Some(&mirror.backend),
            _ => None,
        })
    }
}

// === impl Fault ===

impl Fault {
    /// Tells it, and keeps in `slot` whichever fault weighs more.
    fn tell(self, slot: &mut Option<Self>, hint: &str, notes: &mut Notes) {
        let meanwhile = match self.effect {
            Effect::Refused => "every request that the rule takes gets 500 `route_invalid`",
            Effect::LeftOut => {
                "the whole rule is left out, and a request that only it would match gets 404 `route_not_found`"
            }
        };
        notes.error(self.field.as_str(), format!("{}: {meanwhile}", self.message), hint);
        if slot.as_ref().is_none_or(|known| known.effect < self.effect) {
            *slot = Some(self);
        }
    }
}

/// What is written of a parent, whatever the kind of route.
struct WrittenParent<'a> {
    group: Option<&'a str>,
    kind: Option<&'a str>,
    namespace: Option<&'a str>,
    name: &'a str,
    port: Option<i32>,
    section: Option<&'a str>,
}

/// What is written of a backend, whatever the kind of route.
struct WrittenBackend<'a> {
    group: Option<&'a str>,
    kind: Option<&'a str>,
    namespace: Option<&'a str>,
    name: &'a str,
    port: Option<i32>,
    weight: Option<i32>,
    filters: Vec<Written<'a>>,
}

/// The generated types differ by name only.
macro_rules! written_parents {
    ($refs:expr) => {
        $refs.iter().flatten().map(|one| WrittenParent {
            group: one.group.as_deref(),
            kind: one.kind.as_deref(),
            namespace: one.namespace.as_deref(),
            name: &one.name,
            port: one.port,
            section: one.section_name.as_deref(),
        })
    };
}
use written_parents;

/// The generated types differ by name only.
macro_rules! written_backends {
    ($refs:expr) => {
        $refs.iter().flatten().map(|one| WrittenBackend {
            group: one.group.as_deref(),
            kind: one.kind.as_deref(),
            namespace: one.namespace.as_deref(),
            name: &one.name,
            port: one.port,
            weight: one.weight,
            filters: one.filters.iter().flatten().map(Written::from).collect(),
        })
    };
}
use written_backends;

/// Seconds since 1970, where the object says.
pub(super) fn created(metadata: &ObjectMeta) -> Option<i64> {
    metadata.creation_timestamp.as_ref().map(|time| time.0.as_second())
}

/// Refuses a list that is longer than the Gateway API allows.
fn at_most(max: usize, length: usize, field: impl Into<String>, notes: &mut Notes) {
    if length > max {
        notes.refuse(field, format!("{length} entries: more than the {max} that are allowed"), "");
    }
}

fn read_parents<'a>(
    route: &NamespacedName,
    refs: impl Iterator<Item = WrittenParent<'a>>,
    notes: &mut Notes,
) -> Vec<Parent> {
    let mut parents: Vec<Parent> = Vec::new();
    let mut length = 0;
    for (index, parent) in refs.enumerate() {
        length = index + 1;
        let at = format!("spec.parentRefs[{index}]");
        // Without a kind it is a Gateway: a route's default parent.
        let group = parent.group.unwrap_or("gateway.networking.k8s.io");
        let kind = parent.kind.unwrap_or("Gateway");
        if !matches!((group, kind), ("" | "core", "Service")) {
            if kind == "Service" {
                notes.error(
                    format!("{at}.group"),
                    format!("`{group}` has no kind Service; the route is not attached there"),
                    "write `group: \"\"`, which is the group of Services",
                );
            }
            continue;
        }
        let read = Parent {
            service: NamespacedName::new(parent.namespace.unwrap_or(&route.namespace), parent.name),
            port: parent.port.map(|number| port(number, format!("{at}.port"), notes)),
            section: parent.section.map(str::to_owned),
            index,
        };
        let same = |known: &Parent| {
            (&known.service, known.port, &known.section) == (&read.service, read.port, &read.section)
        };
        if parents.iter().any(same) {
            notes.refuse(
                at,
                format!("Service {} is a parent twice", read.service),
                "remove one, or let each name another port",
            );
        } else {
            parents.push(read);
        }
    }
    at_most(MAX_PARENTS, length, "spec.parentRefs", notes);
    if parents.is_empty() && !notes.refused() {
        notes.warn(
            "spec.parentRefs",
            "no parent is a Service, so the route does nothing in a mesh",
            "attach it: `parentRefs: [{group: \"\", kind: Service, name: …, port: …}]`",
        );
    }
    parents
}

/// A route's host names are checked and, where a Service is a parent, mean nothing (GEP-1426): only the address that a client dials says
/// what it means.
fn check_hostnames(hostnames: Option<&[String]>, parents: &[Parent], notes: &mut Notes) {
    let hostnames = hostnames.unwrap_or_default();
    at_most(MAX_LIST, hostnames.len(), "spec.hostnames", notes);
    read_hostnames("spec.hostnames", hostnames, notes);
    if !hostnames.is_empty() && !parents.is_empty() {
        notes.warn(
            "spec.hostnames",
            "not looked at where a Service is the parent: the rules hold for every host (GEP-1426)",
            "remove it, or match the header `Host` in the rules",
        );
    }
}

/// Host names, each as it is written; `field` is where they are.
pub(super) fn read_hostnames(field: &str, hostnames: &[String], notes: &mut Notes) -> Vec<String> {
    for (index, hostname) in hostnames.iter().enumerate() {
        if !is_hostname(hostname.strip_prefix("*.").unwrap_or(hostname)) {
            notes.refuse(
                format!("{field}[{index}]"),
                format!("`{hostname}` is not a host name"),
                "lower case, no port and no IP address, with at most a leading `*.`, such as `*.example.com`",
            );
        }
    }
    hostnames.to_vec()
}

/// A host name without a wildcard; no IP address.
fn is_hostname(text: &str) -> bool {
    is_subdomain(text) && text.parse::<std::net::IpAddr>().is_err()
}

/// The names of rules, each unique.
fn check_rule_names<'a>(names: impl Iterator<Item = Option<&'a str>>, notes: &mut Notes) {
    let mut seen = BTreeSet::new();
    for (index, name) in names.enumerate() {
        let Some(name) = name else {
            continue;
        };
        let at = format!("spec.rules[{index}].name");
        if !is_subdomain(name) {
            notes.refuse(
                at.as_str(),
                format!("`{name}` cannot be a rule's name"),
                "lower case letters, digits, `-` and `.`",
            );
        }
        if !seen.insert(name) {
            notes.refuse(at, format!("two rules are called `{name}`"), "rename one");
        }
    }
}

fn read_backends<'a>(
    route: &NamespacedName,
    at: &str,
    matches: &[Match],
    refs: impl Iterator<Item = WrittenBackend<'a>>,
    notes: &mut Notes,
) -> Vec<Backend> {
    let backends: Vec<_> = refs
        .enumerate()
        .map(|(index, backend)| {
            read_backend(route, &format!("{at}.backendRefs[{index}]"), index, &backend, matches, notes)
        })
        .collect();
    at_most(MAX_LIST, backends.len(), format!("{at}.backendRefs"), notes);
    backends
}

/// `at` is the backend itself.
fn read_backend(
    route: &NamespacedName,
    at: &str,
    index: usize,
    backend: &WrittenBackend<'_>,
    matches: &[Match],
    notes: &mut Notes,
) -> Backend {
    let weight = backend.weight.unwrap_or(1);
    if !(0..=MAX_WEIGHT).contains(&weight) {
        notes.refuse(format!("{at}.weight"), format!("{weight} is not a weight"), "weights are 0 to 1000000");
    }
    let is_service =
        matches!(backend.group, None | Some("" | "core")) && matches!(backend.kind, None | Some("Service"));
    let number = match backend.port {
        Some(number) => port(number, format!("{at}.port"), notes),
        None if is_service => {
            notes.refuse(
                format!("{at}.port"),
                "a Service needs its port here",
                "write `port:` with the Service's port number",
            );
            0
        }
        None => 0,
    };
    let namespace = backend.namespace.unwrap_or(&route.namespace);
    if !is_label(namespace) || !is_subdomain(backend.name) {
        notes.refuse(
            format!("{at}.name"),
            format!("`{namespace}/{}` cannot be the name of an object", backend.name),
            "lower case letters, digits and `-`; the namespace has its own field",
        );
    }
    let (filters, fault) = filters::read_of_backend(at, &backend.filters, matches, notes);
    Backend {
        index,
        service: NamespacedName::new(namespace, backend.name),
        is_service,
        port: number,
        weight: weight.unsigned_abs(),
        filters,
        fault,
    }
}
