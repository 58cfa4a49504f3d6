//! Which routes the clients of a namespace follow to a service (GAMMA, GEP-1426).
//!
//! A route in the service's own namespace (a producer's) holds for every client. Routes in another namespace (a
//! consumer's) hold for the clients of that namespace only, and take the producer's place there, port by port. Where what is left
//! for a port is of several kinds, only those of the first kind hold: GRPCRoutes, HTTPRoutes, TLSRoutes, TCPRoutes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tulle_api::{ResourceType, v1};

use super::Encoded;
use super::build::{Context, object_name};
use super::patterns::Room;
use super::resilience::Attached;
use super::wire;
use crate::index::Index;
use crate::object::{
    Backend, Effect, Filter, Kind, Match, NamespacedName, Parent, Route, RouteKind, Rule, Service,
};

/// The routes to one service.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RouteSet {
    /// For every namespace that is not in `consumers`.
    producer: Arc<Encoded>,
    consumers: BTreeMap<Arc<str>, Arc<Encoded>>,
}

/// Why something written in a route is not done, and what to do.
pub(super) struct Unresolved {
    /// Of the Gateway API's conditions.
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) hint: &'static str,
}

/// The ports of a service that a route is attached to.
#[derive(Clone, PartialEq, Eq)]
enum Ports {
    All,
    Only(BTreeSet<u16>),
}

// === impl RouteSet ===

impl RouteSet {
    pub(super) fn of(&self, client_namespace: &str) -> Arc<Encoded> {
        let own = self.consumers.get(client_namespace);
        own.unwrap_or(&self.producer).clone()
    }
}

// === impl Context ===

impl Context<'_> {
    pub(super) fn routes(&self, name: &NamespacedName) -> Option<Arc<RouteSet>> {
        let Followed { producer, consumers } = followed(self.index, self.index.service(name)?);
        let consumers = consumers.into_iter().map(|(namespace, routes)| {
            let encoded = self.encode_routes(&namespace, name, &routes);
            (namespace, encoded)
        });
        let consumers = consumers.collect();
        Some(Arc::new(RouteSet { consumers, producer: self.encode_routes("", name, &producer) }))
    }

    fn encode_routes(
        &self,
        client_namespace: &str,
        service: &NamespacedName,
        routes: &[(&Route, Ports)],
    ) -> Arc<Encoded> {
        let Counted { beyond, room } = counted(self.index, routes);
        let is_served = |route: &Route, rule: &Rule| {
            !beyond.iter().any(|(other, index)| other.key() == route.key() && *index == rule.index)
        };
        let of =
            |streams: bool| routes.iter().filter(move |(route, _)| route.kind.is_for_streams() == streams);
        let http = of(false).map(|(route, ports)| v1::HttpRoute {
            name: Some(object_name(&route.name)),
            ports: ports.on_the_wire(),
            // They mean nothing where a Service is the parent (GEP-1426).
            hostnames: Vec::new(),
            rules: {
                let clash = clash(self.index, route).map(|(_, message)| message);
                let attached = Attached::to(self.index, route.key());
                let rules = route.rules.iter().filter(|rule| is_served(route, rule));
                let rules = rules.filter_map(|rule| {
                    let requests = || self.requests(rule, &attached, &room);
                    self.rule(route, rule, requests, clash.as_deref())
                });
                rules.collect()
            },
            kind: match route.kind {
                RouteKind::Grpc => v1::RouteKind::Grpc.into(),
                RouteKind::Http | RouteKind::Tls | RouteKind::Tcp => v1::RouteKind::Http.into(),
            },
        });
        let streams = of(true).map(|(route, ports)| v1::StreamRoute {
            name: Some(object_name(&route.name)),
            ports: ports.on_the_wire(),
            server_names: route.server_names.clone(),
            // Connections are told apart by the server name alone, which is the whole route's.
            backends: route.rules.first().map(|rule| self.backends(route, rule)).unwrap_or_default(),
        });
        let message = v1::Routes {
            client_namespace: client_namespace.to_owned(),
            service: Some(object_name(service)),
            http: http.collect(),
            streams: streams.collect(),
        };
        Arc::new(Encoded::new(ResourceType::Routes, &message))
    }

    /// Those of a rule. A mirror whose backend is not there gets no copies, and the rule holds (`HTTPRequestMirrorFilter.backendRef`).
    fn filters(&self, route: &Route, rule: &Rule) -> Vec<v1::HttpFilter> {
        let mut filters = wire::filters(rule.filters.iter());
        for (filter, sent) in rule.filters.iter().zip(&mut filters) {
            if let (Filter::Mirror(mirror), Some(v1::http_filter::Filter::Mirror(sent))) =
                (filter, &mut sent.filter)
                && let Err(unresolved) = resolve(self.index, route, &mirror.backend)
            {
                *sent = v1::Mirror { numerator: 0, invalid: unresolved.message, ..sent.clone() };
            }
        }
        filters
    }

    /// None for a rule that is left out. `clash` is why its route is rejected, where it is.
    fn rule(
        &self,
        route: &Route,
        rule: &Rule,
        requests: impl FnOnce() -> v1::RequestPolicy,
        clash: Option<&str>,
    ) -> Option<v1::HttpRule> {
        let matches = rule.matches.iter().map(wire::http_match).collect();
        let name = rule.name.clone();
        match &rule.fault {
            Some(fault) if fault.effect == Effect::LeftOut => return None,
            Some(fault) => {
                let invalid = format!("{}: {}", fault.field, fault.message);
                return Some(v1::HttpRule { name, matches, invalid, ..Default::default() });
            }
            None => {}
        }
        if let Some(clash) = clash {
            return Some(v1::HttpRule { name, matches, invalid: clash.to_owned(), ..Default::default() });
        }
        Some(v1::HttpRule {
            name,
            matches,
            backends: self.backends(route, rule),
            filters: self.filters(route, rule),
            session_persistence: rule.session.as_ref().map(wire::session),
            invalid: String::new(),
            requests: Some(requests()),
        })
    }

    fn backends(&self, route: &Route, rule: &Rule) -> Vec<v1::WeightedBackend> {
        let backends = rule.backends.iter().map(|backend| {
            let invalid = match (resolve(self.index, route, backend), &backend.fault) {
                (Err(unresolved), _) => unresolved.message,
                (Ok(()), Some(fault)) => fault.message.clone(),
                (Ok(()), None) => String::new(),
            };
            v1::WeightedBackend {
                service: Some(object_name(&backend.service)),
                port: backend.port.into(),
                weight: backend.weight,
                filters: if invalid.is_empty() { wire::filters(backend.filters.iter()) } else { Vec::new() },
                invalid,
            }
        });
        backends.collect()
    }
}

// === impl Ports ===

impl Ports {
    /// Empty for all.
    fn on_the_wire(&self) -> Vec<u32> {
        match self {
            Self::All => Vec::new(),
            Self::Only(ports) => ports.iter().copied().map(u32::from).collect(),
        }
    }

    fn numbers(&self, service: &Service) -> BTreeSet<u16> {
        match self {
            Self::All => service.ports.iter().map(|port| port.number).collect(),
            Self::Only(ports) => ports.clone(),
        }
    }

    /// Those that are not taken; none if all are.
    fn without(&self, service: &Service, taken: &BTreeSet<u16>) -> Option<Self> {
        if taken.is_empty() {
            return Some(self.clone());
        }
        let left: BTreeSet<u16> = self.numbers(service).difference(taken).copied().collect();
        (!left.is_empty()).then_some(Self::Only(left))
    }
}

/// The routes that clients follow to a service, in order of precedence.
struct Followed<'r> {
    /// From every namespace that is not in `consumers`.
    producer: Vec<(&'r Route, Ports)>,
    consumers: BTreeMap<Arc<str>, Vec<(&'r Route, Ports)>>,
}

impl<'r> Followed<'r> {
    fn all(&self) -> impl Iterator<Item = &[(&'r Route, Ports)]> {
        let consumers = self.consumers.values().map(Vec::as_slice);
        std::iter::once(self.producer.as_slice()).chain(consumers)
    }
}

fn followed<'r>(index: &'r Index, service: &Service) -> Followed<'r> {
    let mut producers = Vec::new();
    let mut consumers: BTreeMap<Arc<str>, Vec<(&Route, Ports)>> = BTreeMap::new();
    for route in index.routes_of(&service.name) {
        let Some(ports) = attachment(service, route) else {
            continue;
        };
        if route.is_producer_for(&service.name) {
            producers.push((route, ports));
        } else {
            let namespace = route.name.namespace.clone();
            consumers.entry(namespace).or_default().push((route, ports));
        }
    }
    let consumers = consumers
        .into_iter()
        .map(|(namespace, own)| (namespace, of_one_kind(service, in_place_of(service, &producers, own))));
    let consumers = consumers.collect();
    Followed { producer: of_one_kind(service, producers), consumers }
}

/// The rules, by their places, that are left out since their regular expressions are more than a service may have, whoever its
/// clients are.
pub(super) fn beyond_patterns_of<'r>(index: &'r Index, service: &Service) -> Vec<(&'r Route, usize)> {
    let followed = followed(index, service);
    let mut beyond: Vec<_> = followed.all().flat_map(|routes| counted(index, routes).beyond).collect();
    beyond.sort_by_key(|(route, rule)| (route.key(), *rule));
    beyond.dedup_by_key(|(route, rule)| (route.key(), *rule));
    beyond
}

/// What there is of regular expressions in the routes to a service, for each kind of clients: who they are, if not all the others.
pub(super) fn rooms_of_routes<'i>(index: &'i Index, service: &Service) -> Vec<(Option<Arc<str>>, Room<'i>)> {
    let Followed { producer, consumers } = followed(index, service);
    let consumers =
        consumers.iter().map(|(clients, routes)| (Some(clients.clone()), counted(index, routes).room));
    std::iter::once((None, counted(index, &producer).room)).chain(consumers).collect()
}

/// The regular expressions of routes and of the policies on them, as far as there is room for them.
struct Counted<'r> {
    /// The rules, by their places, that are left out.
    beyond: Vec<(&'r Route, usize)>,
    room: Room<'r>,
}

fn counted<'r>(index: &'r Index, routes: &[(&'r Route, Ports)]) -> Counted<'r> {
    let (mut room, mut beyond, mut policies) = (Room::default(), Vec::new(), Vec::new());
    for (route, _) in routes {
        let attached = (!route.kind.is_for_streams()).then(|| Attached::to(index, route.key()));
        for rule in &route.rules {
            if rule.fault.as_ref().is_some_and(|fault| fault.effect == Effect::LeftOut) {
                continue;
            }
            if !room.take(rule.matches.iter().flat_map(Match::patterns)) {
                beyond.push((*route, rule.index));
            } else if let Some(attached) = &attached {
                policies.extend(attached.outbound(&rule.name));
            }
        }
    }
    Counted { beyond, room: room.with(policies) }
}

/// A consumer's own routes, and the producer's on the ports that the consumer's leave alone, in order of precedence.
fn in_place_of<'r>(
    service: &Service,
    producers: &[(&'r Route, Ports)],
    mut own: Vec<(&'r Route, Ports)>,
) -> Vec<(&'r Route, Ports)> {
    let taken = taken_by(service, own.iter());
    for (route, ports) in producers {
        if let Some(left) = ports.without(service, &taken) {
            own.push((route, left));
        }
    }
    own.sort_by_cached_key(|(route, _)| route.precedence());
    own
}

/// The routes without those on ports that have routes of a kind that comes first (GEP-1426).
fn of_one_kind<'r>(service: &Service, routes: Vec<(&'r Route, Ports)>) -> Vec<(&'r Route, Ports)> {
    let kinds: BTreeSet<RouteKind> = routes.iter().map(|(route, _)| route.kind).collect();
    let taken: Vec<_> = kinds
        .into_iter()
        .map(|kind| (kind, taken_by(service, routes.iter().filter(|(route, _)| route.kind < kind))))
        .collect();
    let left = routes.into_iter().filter_map(|(route, ports)| {
        let (_, taken) = taken.iter().find(|(kind, _)| *kind == route.kind)?;
        Some((route, ports.without(service, taken)?))
    });
    left.collect()
}

/// The ports to which any of the routes is attached.
fn taken_by<'a, 'r: 'a>(
    service: &Service,
    routes: impl Iterator<Item = &'a (&'r Route, Ports)>,
) -> BTreeSet<u16> {
    routes.flat_map(|(_, ports)| ports.numbers(service)).collect()
}

/// The ports of a route's parent that a route of another kind takes from it, and which does.
pub(super) fn conflicts<'i>(index: &'i Index, route: &Route, parent: &Parent) -> Vec<(u16, &'i Route)> {
    let Some(service) = index.service(&parent.service) else {
        return Vec::new();
    };
    let own = match attach(service, parent) {
        Ok(Some(port)) => BTreeSet::from([port]),
        Ok(None) => Ports::All.numbers(service),
        Err(_) => return Vec::new(),
    };
    let prevails = |other: &&Route| {
        // A consumer's routes and the producer's never meet on a port.
        let same_side = other.is_producer_for(&service.name) && route.is_producer_for(&service.name)
            || other.name.namespace == route.name.namespace;
        other.kind < route.kind && same_side
    };
    // Mostly all are of one kind, and none of them is looked at.
    let before = RouteKind::ALL.into_iter().filter(|kind| *kind < route.kind).map(Kind::from);
    let before: Vec<Kind> = before.collect();
    let mut found = Vec::new();
    for other in index.routes_of_kinds(&service.name, &before).into_iter().filter(prevails) {
        let theirs = attachment(service, other).map(|ports| ports.numbers(service)).unwrap_or_default();
        let both = own.intersection(&theirs).copied();
        found.extend(both.map(|port| (port, other)));
    }
    found.sort_by_key(|(port, _)| *port);
    found.dedup_by_key(|(port, _)| *port);
    found
}

/// Where the route is attached to the service; none if every parent names a port that the service has not.
fn attachment(service: &Service, route: &Route) -> Option<Ports> {
    let mut attached = BTreeSet::new();
    for parent in route.parents.iter().filter(|parent| parent.service == service.name) {
        match attach(service, parent) {
            Ok(None) => return Some(Ports::All),
            Ok(Some(port)) => {
                attached.insert(port);
            }
            Err(_) => {}
        }
    }
    (!attached.is_empty()).then_some(Ports::Only(attached))
}

/// The port that a parent reference means; none: every port.
pub(super) fn attach(service: &Service, parent: &Parent) -> Result<Option<u16>, Unresolved> {
    let by_number = match parent.port {
        Some(number) => Some(service.port(number).ok_or_else(|| Unresolved {
            reason: "NoMatchingParent",
            message: format!(
                "Service {} has no port {number}; the route is not attached there",
                service.name
            ),
            hint: "name one of the Service's ports, or leave `port` out for all of them",
        })?),
        None => None,
    };
    let Some(section) = &parent.section else {
        return Ok(by_number.map(|port| port.number));
    };
    let mut ports = service.ports.iter();
    let found = ports.find(|port| {
        port.name == *section && by_number.is_none_or(|by_number| by_number.number == port.number)
    });
    match found {
        Some(port) => Ok(Some(port.number)),
        None => Err(Unresolved {
            reason: "NoMatchingParent",
            message: format!(
                "Service {} has no such port called `{section}`; the route is not attached there",
                service.name
            ),
            hint: "`sectionName` is the name of one of the Service's ports, and must agree with `port`",
        }),
    }
}

/// The first rule that cannot keep sessions, and why: a Service that it is about keeps clients at an endpoint by their address. The
/// whole route is rejected then (GEP-1619, "Session Affinity in K8S Services").
pub(super) fn clash<'r>(index: &Index, route: &'r Route) -> Option<(&'r Rule, String)> {
    let is_clashing = |name: &&NamespacedName| index.service(name).is_some_and(|one| one.client_ip_affinity);
    route.rules.iter().filter(|rule| rule.session.is_some()).find_map(|rule| {
        let mut services = route.services().chain(rule.backends.iter().map(|backend| &backend.service));
        let name = services.find(is_clashing)?;
        let message = format!(
            "Service {name} has `sessionAffinity: ClientIP`, which cannot be beside `sessionPersistence`"
        );
        Some((rule, message))
    })
}

/// Whether requests can be sent to a backend.
///
/// The service that a route is attached to needs no grant: the client has dialled it already.
pub(super) fn resolve(index: &Index, route: &Route, backend: &Backend) -> Result<(), Unresolved> {
    let name = &backend.service;
    if !backend.is_service {
        return Err(Unresolved {
            reason: "InvalidKind",
            message: "only a Service can be a backend".to_owned(),
            hint: "refer to a Service: `group: \"\"`, `kind: Service`",
        });
    }
    let abroad = name.namespace != route.name.namespace;
    if abroad
        && route.services().all(|parent| parent != name)
        && !index.is_granted(route.kind, &route.name.namespace, name)
    {
        return Err(Unresolved {
            reason: "RefNotPermitted",
            message: format!(
                "{}s in namespace {} may not refer to Service {name}",
                route.kind, route.name.namespace
            ),
            hint: "a ReferenceGrant in the Service's namespace allows it",
        });
    }
    let Some(service) = index.service(name) else {
        return Err(Unresolved {
            reason: "BackendNotFound",
            message: format!("there is no Service {name}"),
            hint: "write the Service, or correct the reference",
        });
    };
    if let Some(external) = &service.external_name {
        return Err(Unresolved {
            reason: "BackendNotFound",
            message: format!("Service {name} is another name for `{external}`, to which no route leads"),
            hint: "refer to a Service that has endpoints",
        });
    }
    if service.port(backend.port).is_none() {
        return Err(Unresolved {
            reason: "BackendNotFound",
            message: format!("Service {name} has no port {}", backend.port),
            hint: "refer to one of the Service's ports",
        });
    }
    Ok(())
}
