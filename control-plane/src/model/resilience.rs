//! What several TrafficPolicies, RateLimitPolicies and FaultPolicies come to, for each port, rule and workload.
//!
//! Of the policies of a kind on the very same target, the first in order of precedence holds and the others do not (GEP-713). What a
//! more specific target says holds before what a less specific one does, field by field: a port before its Service, and what a rule's
//! route says itself, before a policy on the rule, before one on its route. What rules say and what ports say is put together by
//! proxies.

use std::collections::{BTreeMap, BTreeSet};

use tulle_api::v1;

use super::build::{Context, Serving};
use super::patterns::{Attached, Room};
use super::wire;
use crate::index::Index;
use crate::kinds::Direction;
use crate::object::{
    Kind, Limit, ObjectKey, Port, Resilience, Route, Rule, Says, Service, Target, zones_by_default,
};

/// What `panicThresholdPercent` is where nobody says it.
const PANIC: u32 = 50;

/// What a policy is attached to, and who does what it says there: policies that share it are in conflict.
#[derive(Clone, Copy)]
pub(super) struct Place<'p> {
    pub(super) kind: Kind,
    pub(super) object: &'p ObjectKey,
    pub(super) section: Option<&'p str>,
    pub(super) direction: Direction,
}

// === impl Place ===

impl<'p> Place<'p> {
    pub(super) fn of(policy: &Resilience, target: &'p Target) -> Self {
        Self {
            kind: policy.kind,
            object: &target.object,
            section: target.section.as_deref(),
            direction: policy.direction(target),
        }
    }

    /// The policy that holds here.
    pub(super) fn winner<'i>(&self, index: &'i Index) -> Option<&'i Resilience> {
        let is_here = |policy: &&Resilience| {
            policy.targets.iter().any(|target| {
                target.object == *self.object
                    && target.section.as_deref() == self.section
                    && policy.direction(target) == self.direction
            })
        };
        index.resilience_of(self.kind, self.object).into_iter().find(is_here)
    }

    /// The more specific place of that name; none for a rule or port without a name, to which nothing can be attached.
    pub(super) fn section(self, name: &'p str) -> Option<Self> {
        (!name.is_empty()).then_some(Self { section: Some(name), ..self })
    }

    /// What holds at the section, and what holds for the whole.
    fn both<'i>(self, section: &'p str, index: &'i Index) -> [Option<&'i Resilience>; 2] {
        let specific = self.section(section).and_then(|place| place.winner(index));
        [specific, self.winner(index)]
    }
}

// === impl Context ===

impl Context<'_> {
    /// How clients treat a port; none where nobody says anything. `room` is the Service's.
    pub(super) fn traffic(&self, service: &Service, port: &Port, room: &Room<'_>) -> Option<v1::Traffic> {
        let object = ObjectKey { kind: Kind::Service, name: service.name.clone() };
        let mut traffic = traffic_of(self.index, &object, port);
        if service.prefers_zone {
            let balancer = traffic.load_balancer.get_or_insert_with(balancer_by_default);
            balancer.zones.get_or_insert_with(zones_by_default);
        } else if traffic.outlier_detection.is_some() || traffic.health_check.is_some() {
            traffic.load_balancer.get_or_insert_with(balancer_by_default);
        }
        let own = traffic.requests.take().unwrap_or_default();
        let requests = self.with_others(own, &object, &port.name, room);
        traffic.requests = (requests != v1::RequestPolicy::default()).then_some(requests);
        (traffic != v1::Traffic::default()).then_some(traffic)
    }

    /// What is done for the requests that follow a rule. `room` is that of all the routes.
    pub(super) fn requests(&self, route: &Route, rule: &Rule, room: &Room<'_>) -> v1::RequestPolicy {
        let object = route.key();
        self.with_others(requests_of(self.index, &object, rule), &object, &rule.name, room)
    }

    /// With the faults and the rate limits that clients' proxies make and count.
    fn with_others(
        &self,
        mut requests: v1::RequestPolicy,
        object: &ObjectKey,
        section: &str,
        room: &Room<'_>,
    ) -> v1::RequestPolicy {
        for (_, policy) in outbound(self.index, object, section).filter(|(_, policy)| room.has(policy)) {
            match &policy.says {
                Says::Faults(faults) => requests.faults.clone_from(faults),
                Says::Limits(_, limits) => requests.rate_limits = self.limits(limits),
                Says::Traffic(_) => {}
            }
        }
        requests
    }

    fn limits(&self, limits: &[Limit]) -> Vec<v1::RateLimit> {
        limits.iter().map(|limit| limit.on_the_wire(&self.trust_domain)).collect()
    }

    /// What the proxy of a workload counts that serves these. A limit that is attached to several of them has one count.
    pub(super) fn inbound_limits(&self, serving: &[Serving]) -> Vec<v1::RateLimit> {
        let room = Room::default().with(serving.iter().filter_map(|one| inbound(self.index, one)));
        let mut limits: BTreeMap<String, v1::RateLimit> = BTreeMap::new();
        for one in serving {
            let policy = inbound(self.index, one).filter(|(_, policy)| room.has(policy));
            let Some(Says::Limits(_, said)) = policy.map(|(_, policy)| &policy.says) else {
                continue;
            };
            for limit in self.limits(said) {
                let limit = limits.entry(limit.name.clone()).or_insert(limit);
                limit.ports.push(one.port.into());
            }
        }
        let limits = limits.into_values();
        let limits = limits.map(|limit| {
            let ports: BTreeSet<u32> = limit.ports.into_iter().collect();
            v1::RateLimit { ports: ports.into_iter().collect(), ..limit }
        });
        limits.collect()
    }

    /// How old the connections of clients outside the mesh become at one port of a workload; of several Services the least counts.
    pub(super) fn maximum_age(&self, serving: &[Serving], port: u16) -> Option<prost_types::Duration> {
        let ages = serving.iter().filter(|one| one.port == port).filter_map(|one| {
            let object = ObjectKey { kind: Kind::Service, name: one.service.clone() };
            traffic_of(self.index, &object, served(self.index, one)?).connections?.maximum_age
        });
        let ages = ages.filter(|age| (age.seconds, age.nanos) != (0, 0));
        ages.min_by_key(|age| (age.seconds, age.nanos))
    }
}

impl<'p> Place<'p> {
    fn outbound(kind: Kind, object: &'p ObjectKey) -> Self {
        Self { kind, object, section: None, direction: Direction::Outbound }
    }
}

/// The Service's port that is served.
fn served<'i>(index: &'i Index, serving: &Serving) -> Option<&'i Port> {
    index.service(&serving.service)?.port(serving.service_port?)
}

/// The policies by which clients' proxies make faults and count requests at a port or rule of `object`.
pub(super) fn outbound<'i>(
    index: &'i Index,
    object: &ObjectKey,
    section: &str,
) -> impl Iterator<Item = Attached<'i>> + use<'i> {
    let policies = [Kind::FaultPolicy, Kind::RateLimitPolicy]
        .map(|kind| Place::outbound(kind, object).both(section, index).into_iter().flatten().next());
    let object = object.clone();
    policies.into_iter().flatten().map(move |policy| (object.clone(), policy))
}

/// The policy by which the proxy of a workload counts what comes to a port.
pub(super) fn inbound<'i>(index: &'i Index, serving: &Serving) -> Option<Attached<'i>> {
    let port = served(index, serving)?;
    let object = ObjectKey { kind: Kind::Service, name: serving.service.clone() };
    let place =
        Place { kind: Kind::RateLimitPolicy, object: &object, section: None, direction: Direction::Inbound };
    let policy = place.both(&port.name, index).into_iter().flatten().next()?;
    Some((object, policy))
}

/// What TrafficPolicies say of a Service's port.
pub(super) fn traffic_of(index: &Index, object: &ObjectKey, port: &Port) -> v1::Traffic {
    let policies = Place::outbound(Kind::TrafficPolicy, object).both(&port.name, index);
    let mut traffic = v1::Traffic::default();
    for policy in policies.into_iter().flatten() {
        let Says::Traffic(general) = &policy.says else {
            continue;
        };
        let v1::Traffic {
            load_balancer,
            outlier_detection,
            health_check,
            limits,
            connections,
            retry_budget,
            requests,
        } = v1::Traffic::clone(general);
        traffic.load_balancer = traffic.load_balancer.or(load_balancer);
        traffic.outlier_detection = traffic.outlier_detection.or(outlier_detection);
        traffic.health_check = traffic.health_check.or(health_check);
        traffic.limits = traffic.limits.or(limits);
        traffic.connections = traffic.connections.or(connections);
        traffic.retry_budget = traffic.retry_budget.or(retry_budget);
        traffic.requests = match (traffic.requests, requests) {
            (Some(specific), Some(general)) => Some(fill_requests(specific, &general)),
            (specific, general) => specific.or(general),
        };
    }
    traffic
}

/// What a rule and TrafficPolicies say of the requests that follow it.
pub(super) fn requests_of(index: &Index, route: &ObjectKey, rule: &Rule) -> v1::RequestPolicy {
    let policies = Place::outbound(Kind::TrafficPolicy, route).both(&rule.name, index);
    let policies = policies.into_iter().flatten().filter_map(|policy| match &policy.says {
        Says::Traffic(traffic) => traffic.requests.as_ref(),
        Says::Limits(..) | Says::Faults(_) => None,
    });
    policies.fold(wire::requests(rule), fill_requests)
}

/// What `specific` does not say is said by `general`. Neither has faults or rate limits yet.
fn fill_requests(specific: v1::RequestPolicy, general: &v1::RequestPolicy) -> v1::RequestPolicy {
    let general = general.clone();
    v1::RequestPolicy {
        request_timeout: specific.request_timeout.or(general.request_timeout),
        backend_request_timeout: specific.backend_request_timeout.or(general.backend_request_timeout),
        idle_timeout: specific.idle_timeout.or(general.idle_timeout),
        deadline_header: if specific.deadline_header.is_empty() {
            general.deadline_header
        } else {
            specific.deadline_header
        },
        retry: specific.retry.or(general.retry),
        ..specific
    }
}

fn balancer_by_default() -> v1::LoadBalancer {
    v1::LoadBalancer { panic_percent: PANIC, ..Default::default() }
}

/// The fields that a policy says something in, by the names that they have in YAML.
pub(super) fn fields(says: &Says) -> Vec<&'static str> {
    let traffic = match says {
        Says::Traffic(traffic) => traffic,
        Says::Limits(..) => return vec!["limits"],
        Says::Faults(_) => return vec!["rules"],
    };
    let mut fields = vec![
        ("loadBalancer", traffic.load_balancer.is_some()),
        ("outlierDetection", traffic.outlier_detection.is_some()),
        ("healthCheck", traffic.health_check.is_some()),
        ("limits", traffic.limits.is_some()),
        ("connections", traffic.connections.is_some()),
        ("retryBudget", traffic.retry_budget.is_some()),
    ];
    fields.extend(traffic.requests.iter().flat_map(fields_of_requests));
    fields.into_iter().filter(|(_, is_there)| *is_there).map(|(field, _)| field).collect()
}

/// The same of what a rule says itself.
pub(super) fn fields_of_rule(rule: &Rule) -> Vec<&'static str> {
    let said = fields_of_requests(&wire::requests(rule));
    said.into_iter().filter(|(_, is_there)| *is_there).map(|(field, _)| field).collect()
}

fn fields_of_requests(requests: &v1::RequestPolicy) -> [(&'static str, bool); 5] {
    [
        ("timeouts.request", requests.request_timeout.is_some()),
        ("timeouts.perTry", requests.backend_request_timeout.is_some()),
        ("timeouts.idle", requests.idle_timeout.is_some()),
        ("timeouts.deadlineHeader", !requests.deadline_header.is_empty()),
        ("retry", requests.retry.is_some()),
    ]
}
