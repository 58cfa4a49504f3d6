//! Which routes the clients of a namespace follow to a service (GAMMA, GEP-1426).
//!
//! A route in the service's own namespace (a producer's) holds for every client. Routes in another namespace (a
//! consumer's) hold for the clients of that namespace only, and take the producer's place there, port by port.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tulle_api::{ResourceType, v1};

use super::Encoded;
use super::build::{Context, object_name};
use crate::index::Index;
use crate::object::{Backend, Match, NamespacedName, Parent, Route, Rule, Service};

/// The routes to one service.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RouteSet {
    /// For every namespace that is not in `consumers`.
    producer: Arc<Encoded>,
    consumers: BTreeMap<Arc<str>, Arc<Encoded>>,
}

/// Why something written in a route is not done, and what to do.
pub(super) struct Unresolved {
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
        let service = self.index.service(name)?;
        let mut producers = Vec::new();
        let mut consumers: BTreeMap<Arc<str>, Vec<(&Route, Ports)>> = BTreeMap::new();
        for route in self.index.routes_of(name) {
            let Some(ports) = attachment(service, route) else {
                continue;
            };
            if route.is_producer_for(name) {
                producers.push((route, ports));
            } else {
                let namespace = route.name.namespace.clone();
                consumers.entry(namespace).or_default().push((route, ports));
            }
        }
        let consumers = consumers.into_iter().map(|(namespace, own)| {
            let routes = in_place_of(service, &producers, own);
            let encoded = self.encode_routes(&namespace, name, &routes);
            (namespace, encoded)
        });
        Some(Arc::new(RouteSet {
            consumers: consumers.collect(),
            producer: self.encode_routes("", name, &producers),
        }))
    }

    fn encode_routes(
        &self,
        client_namespace: &str,
        service: &NamespacedName,
        routes: &[(&Route, Ports)],
    ) -> Arc<Encoded> {
        let http = routes.iter().map(|(route, ports)| v1::HttpRoute {
            name: Some(object_name(&route.name)),
            ports: match ports {
                Ports::All => Vec::new(),
                Ports::Only(ports) => ports.iter().copied().map(u32::from).collect(),
            },
            hostnames: route.hostnames.clone(),
            rules: route.rules.iter().map(|rule| self.rule(route, rule)).collect(),
            kind: v1::RouteKind::Http.into(),
        });
        let message = v1::Routes {
            client_namespace: client_namespace.to_owned(),
            service: Some(object_name(service)),
            http: http.collect(),
        };
        Arc::new(Encoded::new(ResourceType::Routes, &message))
    }

    fn rule(&self, route: &Route, rule: &Rule) -> v1::HttpRule {
        let matches = rule.matches.iter().map(|one| v1::HttpMatch {
            path: Some(match one {
                Match::Exact(path) => v1::http_match::Path::Exact(path.clone()),
                Match::Prefix(path) => v1::http_match::Path::Prefix(path.clone()),
            }),
            ..Default::default()
        });
        let backends = rule.backends.iter().map(|backend| v1::WeightedBackend {
            service: Some(object_name(&backend.service)),
            port: backend.port.into(),
            weight: backend.weight,
            invalid: match resolve(self.index, route, backend) {
                Ok(()) => String::new(),
                Err(unresolved) => unresolved.message,
            },
            filters: Vec::new(),
        });
        v1::HttpRule {
            name: rule.name.clone(),
            matches: matches.collect(),
            backends: backends.collect(),
            request_timeout: rule.request_timeout.and_then(|d| d.try_into().ok()),
            backend_request_timeout: rule.backend_request_timeout.and_then(|d| d.try_into().ok()),
            filters: Vec::new(),
        }
    }
}

/// A consumer's own routes, and the producer's on the ports that the consumer's leave alone, in order of precedence.
fn in_place_of<'r>(
    service: &Service,
    producers: &[(&'r Route, Ports)],
    mut own: Vec<(&'r Route, Ports)>,
) -> Vec<(&'r Route, Ports)> {
    let mut left: BTreeSet<u16> = service.ports.iter().map(|port| port.number).collect();
    for (_, ports) in &own {
        match ports {
            Ports::All => return own,
            Ports::Only(ports) => left.retain(|port| !ports.contains(port)),
        }
    }
    for (route, ports) in producers {
        let ports = match ports {
            Ports::All => left.clone(),
            Ports::Only(ports) => ports.intersection(&left).copied().collect(),
        };
        if !ports.is_empty() {
            own.push((route, Ports::Only(ports)));
        }
    }
    own.sort_by_key(|(route, _)| route.precedence());
    own
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
            message: format!(
                "Service {} has no such port called `{section}`; the route is not attached there",
                service.name
            ),
            hint: "`sectionName` is the name of one of the Service's ports, and must agree with `port`",
        }),
    }
}

/// Whether requests can be sent to a backend.
///
/// The service that a route is attached to needs no grant: the client has dialled it already.
pub(super) fn resolve(index: &Index, route: &Route, backend: &Backend) -> Result<(), Unresolved> {
    let name = &backend.service;
    if !backend.is_service {
        return Err(Unresolved {
            message: "only a Service can be a backend".to_owned(),
            hint: "refer to a Service: `group: \"\"`, `kind: Service`",
        });
    }
    let abroad = name.namespace != route.name.namespace;
    if abroad
        && route.services().all(|parent| parent != name)
        && !index.is_granted(&route.name.namespace, name)
    {
        return Err(Unresolved {
            message: format!("a route in namespace {} may not refer to Service {name}", route.name.namespace),
            hint: "a ReferenceGrant in the Service's namespace allows it",
        });
    }
    let Some(service) = index.service(name) else {
        return Err(Unresolved {
            message: format!("there is no Service {name}"),
            hint: "write the Service, or correct the reference",
        });
    };
    if service.port(backend.port).is_none() {
        return Err(Unresolved {
            message: format!("Service {name} has no port {}", backend.port),
            hint: "refer to one of the Service's ports",
        });
    }
    Ok(())
}
