//! HTTPRoute and ReferenceGrant: where requests to a Service go.
//!
//! What a rule asks for and this version cannot do (header, query and method matches, regular expressions, filters)
//! drops the whole rule and is told: serving it as if it asked for less would send requests where nobody wanted them.

use std::collections::BTreeSet;
use std::time::Duration;

use gateway_api::experimental::httproutes::{
    HttpRoute, HttpRouteParentRefs, HttpRouteRules, HttpRouteRulesBackendRefs, HttpRouteRulesMatches,
    HttpRouteRulesMatchesPathType as PathType, HttpRouteRulesTimeouts,
};
use gateway_api::experimental::referencegrants::ReferenceGrant;

use super::{NamespacedName, is_label, is_subdomain, port};
use crate::finding::Notes;

/// The largest weight that the Gateway API allows.
const MAX_WEIGHT: i32 = 1_000_000;
/// The longest path that the Gateway API allows, in characters.
const MAX_PATH: usize = 1024;

/// An HTTPRoute, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its own name.
    pub name: NamespacedName,
    /// Seconds since 1970; none (newest of all) unless the object says.
    pub created: Option<i64>,
    /// Services only; parents of other kinds are somebody else's.
    pub parents: Vec<Parent>,
    /// Lower case, `*.` prefix allowed; empty: any.
    pub hostnames: Vec<String>,
    /// Those that can be served.
    pub rules: Vec<Rule>,
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
    /// Any of them; never empty.
    pub matches: Vec<Match>,
    /// By weight.
    pub backends: Vec<Backend>,
    /// The whole request; none: no limit.
    pub request_timeout: Option<Duration>,
    /// One try; none: no limit.
    pub backend_request_timeout: Option<Duration>,
}

/// What a request must look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// The whole path.
    Exact(String),
    /// By path elements.
    Prefix(String),
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
}

// === impl Route ===

impl Route {
    pub(super) fn read(object: &HttpRoute, notes: &mut Notes) -> Self {
        let name = NamespacedName::of(&object.metadata);
        let spec = &object.spec;
        Self {
            created: object.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
            parents: read_parents(&name, spec.parent_refs.as_deref().unwrap_or_default(), notes),
            hostnames: read_hostnames("spec.hostnames", spec.hostnames.as_deref().unwrap_or_default(), notes),
            rules: read_rules(&name, spec.rules.as_deref(), notes),
            name,
        }
    }

    /// The order that breaks ties between routes: oldest first, then by name (GEP-1722).
    pub fn precedence(&self) -> impl Ord {
        (self.created.is_none(), self.created, self.name.clone())
    }

    /// The Services that it is attached to; may name one more than once.
    pub fn services(&self) -> impl Iterator<Item = &NamespacedName> {
        self.parents.iter().map(|parent| &parent.service)
    }

    /// The Services that it sends requests to; may name one more than once.
    pub fn backends(&self) -> impl Iterator<Item = &NamespacedName> {
        let backends = self.rules.iter().flat_map(|rule| &rule.backends);
        backends.map(|backend| &backend.service)
    }

    /// Whether the route applies to every client of `service`, and not only to those in its own namespace (GEP-1426).
    pub fn is_producer_for(&self, service: &NamespacedName) -> bool {
        self.name.namespace == service.namespace
    }
}

fn read_parents(route: &NamespacedName, refs: &[HttpRouteParentRefs], notes: &mut Notes) -> Vec<Parent> {
    let mut parents: Vec<Parent> = Vec::with_capacity(refs.len());
    for (index, parent) in refs.iter().enumerate() {
        let at = format!("spec.parentRefs[{index}]");
        // Without a kind it is a Gateway: an HTTPRoute's default parent.
        let group = parent.group.as_deref().unwrap_or("gateway.networking.k8s.io");
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
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
        let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
        let read = Parent {
            service: NamespacedName::new(namespace, parent.name.as_str()),
            port: parent.port.map(|number| port(number, format!("{at}.port"), notes)),
            section: parent.section_name.clone(),
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
    if parents.is_empty() && !notes.refused() {
        notes.warn(
            "spec.parentRefs",
            "no parent is a Service, so the route does nothing in a mesh",
            "attach it: `parentRefs: [{group: \"\", kind: Service, name: …, port: …}]`",
        );
    }
    parents
}

/// Host names, each as it is written; `field` is where they are.
pub(super) fn read_hostnames(field: &str, hostnames: &[String], notes: &mut Notes) -> Vec<String> {
    for (index, hostname) in hostnames.iter().enumerate() {
        let bare = hostname.strip_prefix("*.").unwrap_or(hostname);
        if !is_subdomain(bare) || bare.parse::<std::net::IpAddr>().is_ok() {
            notes.refuse(
                format!("{field}[{index}]"),
                format!("`{hostname}` is not a host name"),
                "lower case, no port and no IP address, with at most a leading `*.`, such as `*.example.com`",
            );
        }
    }
    hostnames.to_vec()
}

fn read_rules(route: &NamespacedName, rules: Option<&[HttpRouteRules]>, notes: &mut Notes) -> Vec<Rule> {
    // The API's own default: one rule for everything, without a backend.
    let default = [HttpRouteRules::default()];
    let rules = rules.unwrap_or(&default);
    let mut names = BTreeSet::new();
    let mut read = Vec::with_capacity(rules.len());
    for (index, rule) in rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        if let Some(name) = &rule.name {
            if !is_subdomain(name) {
                notes.refuse(
                    format!("{at}.name"),
                    format!("`{name}` cannot be a rule's name"),
                    "lower case letters, digits, `-` and `.`",
                );
            }
            if !names.insert(name) {
                notes.refuse(format!("{at}.name"), format!("two rules are called `{name}`"), "rename one");
            }
        }
        let supported = is_supported(&at, rule, notes);
        let (request, backend_request) = read_timeouts(&at, rule.timeouts.as_ref(), notes);
        let rule = Rule {
            index,
            name: rule.name.clone().unwrap_or_default(),
            matches: read_matches(&at, rule.matches.as_deref().unwrap_or_default(), notes),
            backends: read_backends(route, &at, rule.backend_refs.as_deref().unwrap_or_default(), notes),
            request_timeout: request,
            backend_request_timeout: backend_request,
        };
        if supported {
            read.push(rule);
        }
    }
    read
}

/// Tells everything in the rule that cannot be served; false if the rule must be left out for it.
fn is_supported(at: &str, rule: &HttpRouteRules, notes: &mut Notes) -> bool {
    let mut unsupported: Vec<String> = Vec::new();
    for (index, one) in rule.matches.iter().flatten().enumerate() {
        let at = format!("{at}.matches[{index}]");
        let asks = |list: Option<usize>| list.is_some_and(|length| length > 0);
        if asks(one.headers.as_ref().map(Vec::len)) {
            unsupported.push(format!("{at}.headers"));
        }
        if asks(one.query_params.as_ref().map(Vec::len)) {
            unsupported.push(format!("{at}.queryParams"));
        }
        if one.method.is_some() {
            unsupported.push(format!("{at}.method"));
        }
        if let Some(path) = &one.path
            && path.r#type == Some(PathType::RegularExpression)
        {
            unsupported.push(format!("{at}.path.type"));
        }
    }
    if rule.filters.as_ref().is_some_and(|filters| !filters.is_empty()) {
        unsupported.push(format!("{at}.filters"));
    }
    for (index, backend) in rule.backend_refs.iter().flatten().enumerate() {
        if backend.filters.as_ref().is_some_and(|filters| !filters.is_empty()) {
            unsupported.push(format!("{at}.backendRefs[{index}].filters"));
        }
    }
    for field in &unsupported {
        notes.error(
            field.as_str(),
            "not supported yet: the whole rule is left out, and a request that only it would match gets 404 \
             `route_not_found`",
            "",
        );
    }
    if rule.retry.is_some() {
        notes.warn(format!("{at}.retry"), "not supported yet: served without", "");
    }
    if rule.session_persistence.is_some() {
        notes.warn(format!("{at}.sessionPersistence"), "not supported yet: served without", "");
    }
    unsupported.is_empty()
}

fn read_matches(at: &str, matches: &[HttpRouteRulesMatches], notes: &mut Notes) -> Vec<Match> {
    if matches.is_empty() {
        return vec![Match::Prefix("/".to_owned())];
    }
    let mut read = Vec::with_capacity(matches.len());
    for (index, one) in matches.iter().enumerate() {
        let path = one.path.clone().unwrap_or_default();
        let value = path.value.unwrap_or_else(|| "/".to_owned());
        let field = format!("{at}.matches[{index}].path.value");
        read.push(match path.r#type {
            Some(PathType::Exact) => {
                check_path(field, &value, notes);
                Match::Exact(value)
            }
            None | Some(PathType::PathPrefix) => {
                check_path(field, &value, notes);
                Match::Prefix(value)
            }
            // Told as unsupported; the rule is left out.
            Some(PathType::RegularExpression) => continue,
        });
    }
    read
}

/// The Gateway API's own rules for `HTTPPathMatch.value`.
fn check_path(field: String, value: &str, notes: &mut Notes) {
    if !value.starts_with('/') {
        notes.refuse(field, format!("`{value}` does not begin with `/`"), &format!("write `/{value}`"));
        return;
    }
    if value.chars().count() > MAX_PATH {
        notes.refuse(field, format!("longer than {MAX_PATH} characters"), "");
        return;
    }
    let inside = ["//", "/./", "/../", "%2f", "%2F", "#"];
    let at_end = ["/..", "/."];
    let wrong = inside
        .iter()
        .find(|part| value.contains(**part))
        .or_else(|| at_end.iter().find(|part| value.ends_with(**part)));
    if let Some(part) = wrong {
        notes.refuse(
            field,
            format!("`{value}` contains `{part}`, which no normal path does"),
            "write the path as a server sees it",
        );
    }
}

fn read_backends(
    route: &NamespacedName,
    at: &str,
    refs: &[HttpRouteRulesBackendRefs],
    notes: &mut Notes,
) -> Vec<Backend> {
    let mut backends = Vec::with_capacity(refs.len());
    for (index, backend) in refs.iter().enumerate() {
        let at = format!("{at}.backendRefs[{index}]");
        let weight = backend.weight.unwrap_or(1);
        if !(0..=MAX_WEIGHT).contains(&weight) {
            notes.refuse(
                format!("{at}.weight"),
                format!("{weight} is not a weight"),
                "weights are 0 to 1000000",
            );
        }
        let is_service = matches!(backend.group.as_deref(), None | Some("" | "core"))
            && matches!(backend.kind.as_deref(), None | Some("Service"));
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
        let namespace = backend.namespace.as_deref().unwrap_or(&route.namespace);
        if !is_label(namespace) || !is_subdomain(&backend.name) {
            notes.refuse(
                format!("{at}.name"),
                format!("`{namespace}/{}` cannot be the name of an object", backend.name),
                "lower case letters, digits and `-`; the namespace has its own field",
            );
        }
        backends.push(Backend {
            index,
            service: NamespacedName::new(namespace, backend.name.as_str()),
            is_service,
            port: number,
            weight: weight.unsigned_abs(),
        });
    }
    backends
}

fn read_timeouts(
    at: &str,
    timeouts: Option<&HttpRouteRulesTimeouts>,
    notes: &mut Notes,
) -> (Option<Duration>, Option<Duration>) {
    let Some(timeouts) = timeouts else {
        return (None, None);
    };
    let mut read = |field: &str, text: Option<&String>| {
        let text = text?;
        let parsed = text.parse::<gateway_api::Duration>();
        match parsed {
            // Zero means that there is no limit.
            Ok(read) => Some(Duration::new(read.as_secs(), read.subsec_nanos()))
                .filter(|duration| !duration.is_zero()),
            Err(_) => {
                notes.refuse(
                    format!("{at}.timeouts.{field}"),
                    format!("`{text}` is not a duration"),
                    "whole numbers with units, such as `300ms`, `10s` or `1m30s` (GEP-2257)",
                );
                None
            }
        }
    };
    let request = read("request", timeouts.request.as_ref());
    let backend_request = read("backendRequest", timeouts.backend_request.as_ref());
    if let (Some(whole), Some(one)) = (request, backend_request)
        && one > whole
    {
        notes.refuse(
            format!("{at}.timeouts.backendRequest"),
            "one try may not last longer than the whole request",
            "make it at most `timeouts.request`",
        );
    }
    (request, backend_request)
}

/// A ReferenceGrant, read: which namespaces' routes may send requests to this namespace's Services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Its own name; what it grants is in the same namespace.
    pub name: NamespacedName,
    /// Namespaces whose HTTPRoutes are let in.
    pub from: BTreeSet<String>,
    /// What they may refer to.
    pub to: GrantTarget,
}

/// What a grant lets routes refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrantTarget {
    /// Every Service of the namespace.
    AllServices,
    /// These Services; none if the grant is about other kinds.
    Services(BTreeSet<String>),
}

// === impl Grant ===

impl Grant {
    pub(super) fn read(object: &ReferenceGrant) -> Self {
        let from = object
            .spec
            .from
            .iter()
            .filter(|from| from.group == "gateway.networking.k8s.io" && from.kind == "HTTPRoute");
        let to = object
            .spec
            .to
            .iter()
            .filter(|to| matches!(to.group.as_str(), "" | "core") && to.kind == "Service");
        let names: Option<BTreeSet<String>> =
            to.map(|to| to.name.clone().filter(|name| !name.is_empty())).collect();
        Self {
            name: NamespacedName::of(&object.metadata),
            from: from.map(|from| from.namespace.clone()).collect(),
            to: names.map_or(GrantTarget::AllServices, GrantTarget::Services),
        }
    }

    /// Whether a route in `namespace` may refer to `service`.
    pub fn allows(&self, namespace: &str, service: &NamespacedName) -> bool {
        self.name.namespace == service.namespace
            && self.from.contains(namespace)
            && match &self.to {
                GrantTarget::AllServices => true,
                GrantTarget::Services(names) => names.contains(&*service.name),
            }
    }
}
