//! What several TrafficPolicies, RateLimitPolicies, FaultPolicies and TelemetryPolicies come to, for each port, rule and workload.
//!
//! Of the policies of a kind on the very same target, the first in order of precedence holds and the others do not (GEP-713). What a
//! more specific target says holds before what a less specific one does, field by field: a port before its Service, and what a rule's
//! route says itself, before a policy on the rule, before one on its route. What rules say and what ports say is put together by
//! proxies.

use std::collections::{BTreeMap, BTreeSet};

use tulle_api::v1;

use super::build::{Context, Serving};
use super::patterns::{Choice, Room};
use super::wire;
use crate::index::Index;
use crate::kinds::Direction;
use crate::object::{
    Kind, Limit, NamespacedName, ObjectKey, Port, Resilience, Rule, Says, Service, Target, Telemetry,
    zones_by_default,
};

/// What `panicThresholdPercent` is where nobody says it.
const PANIC: u32 = 50;

/// Where policies are attached to an object, and who does what they say there: policies that share it are in conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place<'p> {
    pub(super) kind: Kind,
    pub(super) direction: Direction,
    pub(super) section: Option<&'p str>,
}

/// The policies that hold at a Service or route and its sections: looked up once for the object, however many ports or rules it has.
pub(super) struct Attached<'i> {
    object: ObjectKey,
    first: BTreeMap<Place<'i>, &'i Resilience>,
}

// === impl Place ===

impl<'p> Place<'p> {
    pub(super) fn of(policy: &Resilience, target: &'p Target) -> Self {
        Self { kind: policy.kind, direction: policy.direction(target), section: target.section.as_deref() }
    }

    /// The more specific place of that name; none for a rule or port without a name, to which nothing can be attached.
    pub(super) fn section(self, name: &'p str) -> Option<Self> {
        (!name.is_empty()).then_some(Self { section: Some(name), ..self })
    }

    /// The place for the whole object.
    pub(super) fn whole(self) -> Self {
        Self { section: None, ..self }
    }
}

// === impl Attached ===

impl<'i> Attached<'i> {
    pub(super) fn to(index: &'i Index, object: ObjectKey) -> Self {
        let mut first = BTreeMap::new();
        for policy in index.resilience_of(&object) {
            for target in policy.targets.iter().filter(|target| target.object == object) {
                first.entry(Place::of(policy, target)).or_insert(policy);
            }
        }
        Self { object, first }
    }

    pub(super) fn to_service(index: &'i Index, service: &Service) -> Self {
        Self::to(index, ObjectKey { kind: Kind::Service, name: service.name.clone() })
    }

    /// The policy that holds there.
    pub(super) fn at(&self, place: Place<'_>) -> Option<&'i Resilience> {
        self.first.get(&place).copied()
    }

    /// What there is to choose from at a section of that name; none where nothing is attached.
    fn choice<'n>(&self, kind: Kind, direction: Direction, name: &'n str) -> Option<Choice<'i, 'n>> {
        let whole = Place { kind, direction, section: None };
        let policies = [whole.section(name).and_then(|place| self.at(place)), self.at(whole)];
        let is_any = policies.iter().any(Option::is_some);
        is_any.then(|| Choice { object: self.object.clone(), section: name, policies })
    }

    /// The policies by which clients' proxies make faults and count requests at a port or rule of that name.
    pub(super) fn outbound<'n>(&self, name: &'n str) -> impl Iterator<Item = Choice<'i, 'n>> + use<'i, 'n> {
        let choices = [Kind::FaultPolicy, Kind::RateLimitPolicy]
            .map(|kind| self.choice(kind, Direction::Outbound, name));
        choices.into_iter().flatten()
    }

    /// The TrafficPolicies that say something of a port or rule of that name, the more specific first.
    fn traffic(&self, name: &str) -> impl Iterator<Item = &'i v1::Traffic> + use<'i> {
        let choice = self.choice(Kind::TrafficPolicy, Direction::Outbound, name);
        let policies = choice.map(|choice| choice.policies).into_iter().flatten().flatten();
        policies.filter_map(|policy| match &policy.says {
            Says::Traffic(traffic) => Some(&**traffic),
            Says::Limits(..) | Says::Faults(_) | Says::Telemetry(_) => None,
        })
    }

    /// What TelemetryPolicies say at a port or rule of that name.
    fn telemetry(&self, name: &str) -> Option<Telemetry> {
        let choice = self.choice(Kind::TelemetryPolicy, Direction::Outbound, name)?;
        let said = choice.policies.into_iter().flatten().filter_map(|policy| match &policy.says {
            Says::Telemetry(said) => Some(Telemetry::clone(said)),
            Says::Traffic(_) | Says::Limits(..) | Says::Faults(_) => None,
        });
        said.reduce(Telemetry::over)
    }
}

// === impl Context ===

impl Context<'_> {
    /// How clients treat a port; none where nobody says anything. `attached` and `room` are the Service's.
    pub(super) fn traffic(
        &self,
        service: &Service,
        port: &Port,
        attached: &Attached<'_>,
        room: &Room<'_>,
    ) -> Option<v1::Traffic> {
        let mut traffic = traffic_of(attached, port);
        if service.prefers_zone {
            let balancer = traffic.load_balancer.get_or_insert_with(balancer_by_default);
            balancer.zones.get_or_insert_with(zones_by_default);
        } else if traffic.outlier_detection.is_some() || traffic.health_check.is_some() {
            traffic.load_balancer.get_or_insert_with(balancer_by_default);
        }
        let own = traffic.requests.take().unwrap_or_default();
        let requests = self.with_others(own, attached, &port.name, room);
        traffic.requests = (requests != v1::RequestPolicy::default()).then_some(requests);
        (traffic != v1::Traffic::default()).then_some(traffic)
    }

    /// What is done for the requests that follow a rule. `attached` is the route's, and `room` that of all the routes.
    pub(super) fn requests(
        &self,
        rule: &Rule,
        attached: &Attached<'_>,
        room: &Room<'_>,
    ) -> v1::RequestPolicy {
        self.with_others(requests_of(attached, rule), attached, &rule.name, room)
    }

    /// With the faults and the rate limits that clients' proxies make and count.
    fn with_others(
        &self,
        mut requests: v1::RequestPolicy,
        attached: &Attached<'_>,
        section: &str,
        room: &Room<'_>,
    ) -> v1::RequestPolicy {
        for policy in attached.outbound(section).filter_map(|choice| room.first_of(&choice)) {
            match &policy.says {
                Says::Faults(faults) => requests.faults.clone_from(faults),
                Says::Limits(_, limits) => requests.rate_limits = self.limits(limits),
                Says::Traffic(_) | Says::Telemetry(_) => {}
            }
        }
        if let Some(said) = attached.telemetry(section) {
            (requests.access_log, requests.sampling) = (said.logged(), said.sampled());
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
            let policy = inbound(self.index, one).and_then(|choice| room.first_of(&choice));
            let Some(Says::Limits(_, said)) = policy.map(|policy| &policy.says) else {
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

    /// What the proxy of a workload tells of what comes to one of its ports; of several Services the first by name counts.
    pub(super) fn inbound_telemetry(&self, serving: &[Serving], port: u16) -> Option<Telemetry> {
        let mut services: Vec<&Serving> = serving.iter().filter(|one| one.port == port).collect();
        services.sort_by_key(|one| (&one.service, one.service_port));
        let said = services.into_iter().filter_map(|one| {
            let (service, port) = served(self.index, one)?;
            Attached::to_service(self.index, service).telemetry(&port.name)
        });
        said.reduce(Telemetry::over)
    }

    /// What the proxy of a workload tells of all that it carries, where the Service or route does not say it; `known`: what is said of
    /// the workload's namespace.
    pub(super) fn workload_telemetry(&self, name: &NamespacedName, known: Option<&Telemetry>) -> Telemetry {
        let said = self.telemetry_at(ObjectKey { kind: Kind::Workload, name: name.clone() });
        said.unwrap_or_default().over(known.cloned().unwrap_or_default())
    }

    /// What is said of all workloads of a namespace.
    pub(super) fn namespace_telemetry(&self, namespace: &str) -> Option<Telemetry> {
        let name = NamespacedName::new("", namespace);
        self.telemetry_at(ObjectKey { kind: Kind::Namespace, name })
    }

    fn telemetry_at(&self, object: ObjectKey) -> Option<Telemetry> {
        Attached::to(self.index, object).telemetry("")
    }

    /// How old the connections of clients outside the mesh become at one port of a workload; of several Services the least counts.
    pub(super) fn maximum_age(&self, serving: &[Serving], port: u16) -> Option<prost_types::Duration> {
        let ages = serving.iter().filter(|one| one.port == port).filter_map(|one| {
            let (service, port) = served(self.index, one)?;
            traffic_of(&Attached::to_service(self.index, service), port).connections?.maximum_age
        });
        let ages = ages.filter(|age| (age.seconds, age.nanos) != (0, 0));
        ages.min_by_key(|age| (age.seconds, age.nanos))
    }
}

/// The Service's port that is served, and the Service.
fn served<'i>(index: &'i Index, serving: &Serving) -> Option<(&'i Service, &'i Port)> {
    let service = index.service(&serving.service)?;
    Some((service, service.port(serving.service_port?)?))
}

/// The policies by which the proxy of a workload counts what comes to a port.
pub(super) fn inbound<'i>(index: &'i Index, serving: &Serving) -> Option<Choice<'i, 'i>> {
    let (service, port) = served(index, serving)?;
    Attached::to_service(index, service).choice(Kind::RateLimitPolicy, Direction::Inbound, &port.name)
}

/// What TrafficPolicies say of a Service's port.
pub(super) fn traffic_of(attached: &Attached<'_>, port: &Port) -> v1::Traffic {
    let mut traffic = v1::Traffic::default();
    for general in attached.traffic(&port.name) {
        let v1::Traffic {
            load_balancer,
            outlier_detection,
            health_check,
            limits,
            connections,
            retry_budget,
            requests,
        } = general.clone();
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
pub(super) fn requests_of(attached: &Attached<'_>, rule: &Rule) -> v1::RequestPolicy {
    let policies = attached.traffic(&rule.name).filter_map(|traffic| traffic.requests.as_ref());
    policies.fold(wire::requests(rule), fill_requests)
}

/// What `specific` does not say is said by `general`. Neither has faults, rate limits or what is told yet.
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
        Says::Telemetry(said) => return said.fields(),
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
