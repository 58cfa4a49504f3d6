//! Where policies that are about what comes in speak of a workload: for each of their targets, at which of its ports, and of which requests.
//!
//! The same for every kind of them. A policy speaks of workloads of its own namespace only, whatever its targets lead to: whoever may write
//! in one namespace must not change another's traffic.
//!
//! # Routes
//!
//! Clients' proxies follow routes, and policies are judged where requests arrive: at the workloads behind the Services of the route's parents,
//! and behind its rules' backends. There a request looks as the client's proxy has sent it on, so that a rule is described as its requests
//! look **on arrival**: with the rewritten path where it rewrites the path. Where it changes a header that it matches, or rewrites the host and
//! matches that, its requests cannot be told from others on arrival; the scope is then what is left of the match, and
//! [`Spoken::is_blurred`] says that it is wider than what the rule takes. Each kind must then do what is never looser.
//!
//! A proxy refuses a policy with more regular expressions than it bears ([`PATTERNS`](tulle_api::PATTERNS)), and with it all that holds for its
//! workload. Those of the requests that it counts come first, then those of these policies, by kind and name; a target for whose there is no room
//! is left without any, and blurred.

use std::collections::{BTreeMap, BTreeSet};

use tulle_api::v1;

use super::build::{Serving, serving_of};
use super::patterns::Room;
use super::resilience::inbound;
use super::routes::attach;
use super::wire;
use crate::index::Index;
use crate::object::{
    Access, AccessTarget, Effect, Filter, HeaderModifier, Kind, Match, NamespacedName, ObjectKey, PathMatch,
    PathModifier, Rewrite, Route, Rule, ValueMatch,
};

/// A policy, where it speaks of a workload by one of its targets.
pub(super) struct Spoken<'i> {
    pub(super) policy: &'i Access,
    pub(super) target: &'i AccessTarget,
    /// Of which ports of the workload; none: of every port.
    ports: Option<BTreeSet<u16>>,
    /// Each number of a Service's port by which the target is served, with the workload's port; none: numbers in the policy are the
    /// workload's own.
    numbers: Option<BTreeSet<(u16, u16)>>,
    /// The requests; empty: all of them, and connections that are not HTTP.
    pub(super) routes: Vec<v1::RouteScope>,
    /// The requests are more than those that the target means.
    pub(super) is_blurred: bool,
    /// That, for want of room for its regular expressions.
    pub(super) is_beyond: bool,
}

/// A rule of a route, as its requests look where they arrive.
pub(super) struct Arriving {
    pub(super) scope: v1::RouteScope,
    /// What keeps its requests from being told from others, in words; empty where nothing does.
    pub(super) blurred: Vec<String>,
    /// Its path is another than the one that the rule matches.
    pub(super) is_rewritten: bool,
}

// === impl Spoken ===

impl Spoken<'_> {
    /// As the wire has them: empty for every port.
    pub(super) fn ports_on_the_wire(&self) -> Vec<u32> {
        self.ports.iter().flatten().copied().map(u32::from).collect()
    }

    /// The ports of which it speaks; none: of every port.
    pub(super) fn ports(&self) -> Option<&BTreeSet<u16>> {
        self.ports.as_ref()
    }

    /// The workload's ports that a port number in the policy means: a Service's where the target leads through Services, else the
    /// workload's own. May be none.
    pub(super) fn means(&self, number: u16) -> BTreeSet<u16> {
        match &self.numbers {
            None => BTreeSet::from([number]),
            Some(numbers) => {
                let ports = numbers.iter().filter(|(of_service, _)| *of_service == number);
                ports.map(|(_, port)| *port).collect()
            }
        }
    }

    /// The regular expressions of its requests.
    fn patterns(&self) -> impl Iterator<Item = &str> {
        let matches = self.routes.iter().flat_map(|scope| &scope.matches);
        matches.flat_map(|one| {
            let path = match &one.path {
                Some(v1::http_match::Path::Regex(regex)) => Some(regex.as_str()),
                _ => None,
            };
            let values = one.headers.iter().chain(&one.query).filter_map(|value| match &value.value {
                Some(v1::value_match::Value::Regex(regex)) => Some(regex.as_str()),
                _ => None,
            });
            path.into_iter().chain(values)
        })
    }

    /// Without any: wider.
    fn blur(&mut self) {
        let is_exact =
            |value: &v1::ValueMatch| !matches!(value.value, Some(v1::value_match::Value::Regex(_)));
        for one in self.routes.iter_mut().flat_map(|scope| &mut scope.matches) {
            if matches!(one.path, Some(v1::http_match::Path::Regex(_))) {
                one.path = Some(v1::http_match::Path::Prefix("/".to_owned()));
            }
            one.headers.retain(is_exact);
            one.query.retain(is_exact);
        }
        (self.is_blurred, self.is_beyond) = (true, true);
    }
}

/// Where the policies of a kind speak of a workload, by name, and by the order of their targets. `serving` is what the workload serves.
pub(super) fn spoken<'i>(
    index: &'i Index,
    workload: &NamespacedName,
    serving: &[Serving],
    kind: Kind,
) -> Vec<Spoken<'i>> {
    if !index.has_access(kind) {
        return Vec::new();
    }
    let mut spoken = of_kind(index, workload, serving, Some(kind));
    // Almost never is there any.
    if spoken.iter().any(|one| one.patterns().next().is_some()) {
        let beyond = beyond(index, workload, serving);
        let is_beyond = |one: &Spoken<'_>| beyond.contains(&(one.policy.key(), one.target.index));
        spoken.iter_mut().filter(|one| is_beyond(one)).for_each(Spoken::blur);
    }
    spoken
}

/// Of one kind, or of each.
fn of_kind<'i>(
    index: &'i Index,
    workload: &NamespacedName,
    serving: &[Serving],
    kind: Option<Kind>,
) -> Vec<Spoken<'i>> {
    let own = serving.iter().filter(|one| one.service.namespace == workload.namespace);
    let services: BTreeSet<&NamespacedName> = own.map(|one| &one.service).collect();
    let policies = index.access_to(kind, workload, &services).into_iter();
    let policies = policies.filter(|policy| policy.name.namespace == workload.namespace);
    let targets = policies.flat_map(|policy| policy.targets.iter().map(move |target| (policy, target)));
    targets.flat_map(|(policy, target)| at(index, workload, serving, policy, target)).collect()
}

/// The targets, by their places, for whose regular expressions there is no room at a workload.
fn beyond(index: &Index, workload: &NamespacedName, serving: &[Serving]) -> BTreeSet<(ObjectKey, usize)> {
    let all = of_kind(index, workload, serving, None);
    let mut room = Room::default().with(serving.iter().filter_map(|one| inbound(index, one)));
    let beyond = all.iter().filter(|one| !room.take(one.patterns()));
    beyond.map(|one| (one.policy.key(), one.target.index)).collect()
}

/// The workloads at which there is no room for all of a policy's regular expressions.
pub(super) fn without_room(index: &Index, policy: &Access) -> Vec<NamespacedName> {
    let routes = policy.targets.iter().filter_map(|target| index.route(&target.object));
    let matches = routes.flat_map(|route| &route.rules).flat_map(|rule| &rule.matches);
    if matches.flat_map(Match::patterns).next().is_none() {
        return Vec::new();
    }
    let workloads = index.workloads().into_iter();
    let own = workloads.filter(|workload| workload.namespace == policy.name.namespace);
    let without = own.filter(|workload| {
        let serving = serving_of(index, workload).unwrap_or_default();
        let spoken = spoken(index, workload, &serving, policy.kind);
        spoken.iter().any(|one| one.is_beyond && one.policy.name == policy.name)
    });
    without.collect()
}

fn at<'i>(
    index: &'i Index,
    workload: &NamespacedName,
    serving: &[Serving],
    policy: &'i Access,
    target: &'i AccessTarget,
) -> Vec<Spoken<'i>> {
    let whole = |is_so: bool| {
        let all = is_so.then_some(Spoken {
            policy,
            target,
            ports: None,
            numbers: None,
            routes: Vec::new(),
            is_blurred: false,
            is_beyond: false,
        });
        all.into_iter().collect::<Vec<_>>()
    };
    match target.object.kind {
        Kind::Namespace => {
            let is_its = target.object.name.name == workload.namespace;
            whole(is_its && target.selects(index.pod(workload)))
        }
        Kind::Workload => whole(target.object.name == *workload),
        Kind::Service => {
            let served = serving.iter().filter(|one| is_served(index, target, one));
            let (mut ports, mut numbers) = (BTreeSet::new(), BTreeSet::new());
            for one in served {
                ports.insert(one.port);
                numbers.extend(one.service_port.map(|number| (number, one.port)));
            }
            let spoken = (!ports.is_empty()).then_some(Spoken {
                policy,
                target,
                ports: Some(ports),
                numbers: Some(numbers),
                routes: Vec::new(),
                is_blurred: false,
                is_beyond: false,
            });
            spoken.into_iter().collect()
        }
        _ => match index.route(&target.object) {
            Some(route) => by_route(index, serving, policy, target, route),
            None => Vec::new(),
        },
    }
}

/// Whether a port of a workload is that of a targeted Service, or the one of its ports that is named.
fn is_served(index: &Index, target: &AccessTarget, serving: &Serving) -> bool {
    serving.service == target.object.name
        && target.section.as_ref().is_none_or(|section| {
            let service = index.service(&serving.service);
            let port = serving.service_port.and_then(|number| service?.port(number));
            port.is_some_and(|port| port.name == *section)
        })
}

/// The rules of a route by the ports at which their requests arrive.
fn by_route<'i>(
    index: &Index,
    serving: &[Serving],
    policy: &'i Access,
    target: &'i AccessTarget,
    route: &Route,
) -> Vec<Spoken<'i>> {
    type Place = (BTreeSet<(u16, u16)>, bool);
    let mut places: BTreeMap<Place, Vec<v1::RouteScope>> = BTreeMap::new();
    for rule in route.rules.iter().filter(|rule| target.is_about(&rule.name)) {
        let Some(arriving) = arriving(rule) else { continue };
        let served = serving.iter().filter_map(|one| {
            let number = one.service_port?;
            leads_to(index, route, rule, &one.service, number).then_some((number, one.port))
        });
        let numbers: BTreeSet<(u16, u16)> = served.collect();
        if !numbers.is_empty() {
            places.entry((numbers, !arriving.blurred.is_empty())).or_default().push(arriving.scope);
        }
    }
    let places = places.into_iter();
    places
        .map(|((numbers, is_blurred), routes)| Spoken {
            policy,
            target,
            ports: Some(numbers.iter().map(|(_, port)| *port).collect()),
            numbers: Some(numbers),
            routes,
            is_blurred,
            is_beyond: false,
        })
        .collect()
}

/// Whether a rule's requests arrive at that port of a Service, and the Service is of the route's own namespace.
fn leads_to(index: &Index, route: &Route, rule: &Rule, service: &NamespacedName, number: u16) -> bool {
    if service.namespace != route.name.namespace {
        return false;
    }
    let is_backend = rule
        .backends
        .iter()
        .any(|backend| backend.is_service && backend.service == *service && backend.port == number);
    is_backend
        || route.parents.iter().filter(|parent| parent.service == *service).any(|parent| {
            let service = index.service(&parent.service);
            service.is_some_and(|service| {
                attach(service, parent).is_ok_and(|port| port.is_none_or(|port| port == number))
            })
        })
}

/// A rule's requests as they look on arrival; none for a rule that is left out, by which nothing goes anywhere.
pub(super) fn arriving(rule: &Rule) -> Option<Arriving> {
    if rule.fault.as_ref().is_some_and(|fault| fault.effect == Effect::LeftOut) || rule.matches.is_empty() {
        return None;
    }
    let rewrite = rule.filters.iter().find_map(|filter| match filter {
        Filter::Rewrite(rewrite) => Some(rewrite),
        _ => None,
    });
    let changed = changed_headers(rule, rewrite);
    let mut blurred: BTreeSet<String> = BTreeSet::new();
    let matches = rule.matches.iter().map(|one| {
        let mut one = one.clone();
        one.headers.retain(|header: &ValueMatch| {
            let is_kept = !changed.contains(&header.name);
            if !is_kept {
                blurred.insert(format!("it changes `{}`, by which it matches", header.name));
            }
            is_kept
        });
        if let Some(modifier) = rewrite.and_then(|rewrite| rewrite.path.as_ref()) {
            one.path = Some(rewritten(&one, modifier));
        }
        wire::http_match(&one)
    });
    let matches = matches.collect();
    Some(Arriving {
        scope: v1::RouteScope { hostnames: Vec::new(), matches },
        blurred: blurred.into_iter().collect(),
        is_rewritten: rewrite.is_some_and(|rewrite| rewrite.path.is_some()),
    })
}

/// The headers that are others on arrival than those that the rule matches, in lower case.
fn changed_headers(rule: &Rule, rewrite: Option<&Rewrite>) -> BTreeSet<String> {
    let filters = rule.filters.iter().chain(rule.backends.iter().flat_map(|backend| &backend.filters));
    let modifiers = filters.filter_map(|filter| match filter {
        Filter::RequestHeaders(modifier) => Some(modifier),
        _ => None,
    });
    let names = |modifier: &HeaderModifier| {
        let set = modifier.set.iter().chain(&modifier.add).map(|(name, _)| name);
        let names = set.chain(&modifier.remove).map(|name| name.to_ascii_lowercase());
        names.collect::<Vec<String>>()
    };
    let mut changed: BTreeSet<String> = modifiers.flat_map(names).collect();
    if rewrite.is_some_and(|rewrite| rewrite.hostname.is_some()) {
        changed.insert("host".to_owned());
    }
    changed
}

/// A prefix takes the place of the one that was matched; without one, nothing was matched but `/`.
fn rewritten(one: &Match, modifier: &PathModifier) -> PathMatch {
    match modifier {
        PathModifier::Full(path) => PathMatch::Exact(path.clone()),
        PathModifier::Prefix(prefix) => match (prefix.trim_end_matches('/'), &one.path) {
            // That of a whole path, which the Gateway API does not allow.
            (prefix, Some(PathMatch::Exact(_))) => {
                PathMatch::Exact(format!("/{}", prefix.trim_start_matches('/')))
            }
            ("", _) => PathMatch::Prefix("/".to_owned()),
            (prefix, _) => PathMatch::Prefix(prefix.to_owned()),
        },
    }
}
