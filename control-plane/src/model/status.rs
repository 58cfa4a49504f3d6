//! What the Gateway API says of the state of routes: conditions, for each parent that is a Service.
//!
//! Pure: follows from the index alone, so that `tulle check` shows what would be written to an API server. Says nothing of
//! routes that are refused, which only their source knows.

use serde::Serialize;

use super::routes::{Unresolved, attach, clash, conflicts, resolve};
use crate::index::Index;
use crate::object::{Fault, Parent, Route, Service};

/// The state of one route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteStatus {
    /// As written in `kind:`.
    pub kind: String,
    /// Of the route.
    pub namespace: String,
    /// Of the route.
    pub name: String,
    /// In the order of `parentRefs`, without those that are no Services.
    pub parents: Vec<ParentStatus>,
    /// Of the route that this is said of, where an API server counts them.
    #[serde(skip)]
    pub generation: Option<i64>,
}

/// The state of a route at one of its parents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// Which parent.
    pub parent_ref: ParentRef,
    /// `Accepted`, `ResolvedRefs`, and `PartiallyInvalid` where it is so.
    pub conditions: Vec<Condition>,
}

/// A Service, as it is referred to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// Empty, which is the group of Services.
    pub group: &'static str,
    /// `Service`.
    pub kind: &'static str,
    /// Of the Service.
    pub namespace: String,
    /// Of the Service.
    pub name: String,
    /// As written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// As written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// One condition, as in Kubernetes, without what only an API server knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// `Accepted`, `ResolvedRefs` or `PartiallyInvalid` of a route, `Accepted` or `Programmed` of a policy.
    #[serde(rename = "type")]
    pub condition: &'static str,
    /// `True` or `False`.
    pub status: &'static str,
    /// One of the Gateway API's reasons, or of GEP-713's.
    pub reason: &'static str,
    /// Why, in words; may be empty.
    pub message: String,
}

/// The state of every route, HTTPRoutes first, then GRPCRoutes, TLSRoutes and TCPRoutes.
pub fn route_statuses(index: &Index) -> Vec<RouteStatus> {
    let routes = index.routes().map(|stored| &stored.object);
    routes.map(|route| of_route(index, route)).collect()
}

fn of_route(index: &Index, route: &Route) -> RouteStatus {
    let parents = route.parents.iter().map(|parent| {
        let conditions =
            [Some(accepted(index, route, parent)), Some(resolved(index, route)), partially(index, route)];
        ParentStatus {
            parent_ref: ParentRef {
                group: "",
                kind: "Service",
                namespace: parent.service.namespace.to_string(),
                name: parent.service.name.to_string(),
                port: parent.port,
                section_name: parent.section.clone(),
            },
            conditions: conditions.into_iter().flatten().collect(),
        }
    });
    RouteStatus {
        kind: route.kind.to_string(),
        namespace: route.name.namespace.to_string(),
        name: route.name.name.to_string(),
        parents: parents.collect(),
        generation: route.generation,
    }
}

fn accepted(index: &Index, route: &Route, parent: &Parent) -> Condition {
    let because = |reason, message| Condition { condition: "Accepted", status: "False", reason, message };
    let attached = match index.service(&parent.service) {
        Some(service) => ports_of(service, parent),
        None => Err(Unresolved {
            reason: "NoMatchingParent",
            message: format!("there is no Service {}", parent.service),
            hint: "",
        }),
    };
    let ports = match attached {
        Ok(ports) => ports,
        Err(unresolved) => return because(unresolved.reason, unresolved.message),
    };
    if let Some((rule, clash)) = clash(index, route) {
        let message = format!("spec.rules[{}].sessionPersistence: {clash}", rule.index);
        return because("UnsupportedValue", message);
    }
    let dropped = dropped(route);
    if !dropped.is_empty() && dropped.len() == route.rules.len() {
        return because("UnsupportedValue", dropped.join("; "));
    }
    // GEP-1426 names the reason.
    let taken = conflicts(index, route, parent);
    if let Some((_, other)) = taken.first()
        && taken.len() == ports
    {
        return because("Conflicted", format!("{} {} is attached there too", other.kind, other.name));
    }
    Condition { condition: "Accepted", status: "True", reason: "Accepted", message: String::new() }
}

/// To how many ports the parent attaches a route.
fn ports_of(service: &Service, parent: &Parent) -> Result<usize, Unresolved> {
    Ok(attach(service, parent)?.map_or(service.ports.len(), |_| 1))
}

fn resolved(index: &Index, route: &Route) -> Condition {
    let backends = route.rules.iter().flat_map(|rule| rule.backends.iter().chain(rule.mirrors()));
    let unresolved: Vec<Unresolved> =
        backends.filter_map(|backend| resolve(index, route, backend).err()).collect();
    let messages: Vec<&str> = unresolved.iter().map(|one| one.message.as_str()).collect();
    Condition {
        condition: "ResolvedRefs",
        status: if unresolved.is_empty() { "True" } else { "False" },
        reason: unresolved.first().map_or("ResolvedRefs", |one| one.reason),
        message: messages.join("; "),
    }
}

fn partially(index: &Index, route: &Route) -> Option<Condition> {
    let dropped = dropped(route);
    (clash(index, route).is_none() && !dropped.is_empty() && dropped.len() < route.rules.len()).then(|| {
        Condition {
            condition: "PartiallyInvalid",
            status: "True",
            reason: "UnsupportedValue",
            message: dropped.join("; "),
        }
    })
}

/// The rules that are not served as they are written. That the message begins so is the Gateway API's rule.
fn dropped(route: &Route) -> Vec<String> {
    let rules = route.rules.iter().filter_map(|rule| Some((rule.index, rule.fault.as_ref()?)));
    rules
        .map(|(index, Fault { field, message, .. })| format!("Dropped Rule {index}: {field}: {message}"))
        .collect()
}
