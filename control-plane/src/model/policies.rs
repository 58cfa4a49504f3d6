//! What GEP-713 says of the state of TrafficPolicies, RateLimitPolicies, FaultPolicies and TelemetryPolicies: conditions, for each target.
//!
//! Pure: follows from the index alone, so that `tulle check` shows what would be written to an API server. Says nothing of
//! policies that are refused, which only their source knows.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tulle_api::{PATTERNS, v1};

use super::patterns::{Carried, Extent, carried};
use super::resilience::{Attached, Place, fields, fields_of_rule, requests_of, traffic_of};
use super::status::Condition;
use crate::finding::Notes;
use crate::index::{Behind, Index};
use crate::kinds::Direction;
use crate::object::{Kind, ObjectKey, Port, Protocol, Resilience, Rule, Says, Target};

/// How many places a message names.
const TOLD: usize = 5;

/// The state of one policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyStatus {
    /// As written in `kind:`.
    pub kind: String,
    /// Of the policy.
    pub namespace: String,
    /// Of the policy.
    pub name: String,
    /// In the order of `targetRefs`.
    pub ancestors: Vec<AncestorStatus>,
    /// Of the policy that this is said of, where an API server counts them.
    #[serde(skip)]
    pub generation: Option<i64>,
}

/// The state of a policy at one of its targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AncestorStatus {
    /// Which target.
    pub ancestor_ref: AncestorRef,
    /// `Accepted`, and `Programmed` where it is.
    pub conditions: Vec<Condition>,
}

/// A target, as it is referred to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AncestorRef {
    /// Empty for a Service or a namespace.
    pub group: &'static str,
    /// `Service`, `HTTPRoute` or `GRPCRoute`; `Workload`, or `Namespace` where `targetRefs` names nothing.
    pub kind: &'static str,
    /// Of the target; empty where that is a namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Of the target.
    pub name: String,
    /// As written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// What becomes of a policy at a target.
enum Outcome<'i> {
    /// There is no such Service or route, or no such port or rule of it: which, in words.
    NotThere(String),
    /// Another policy comes first there.
    Conflicted(&'i Resilience),
    /// It holds, but for what more specific ones say.
    Holds(Vec<Overridden>, Left),
}

/// Fields of a policy that something more specific says.
struct Overridden {
    /// The port or rule, in words.
    at: String,
    /// The policy or route, in words.
    by: String,
    /// Where the other policy is left out, so that this one holds: in words.
    not_for: BTreeSet<String>,
    fields: BTreeSet<&'static str>,
}

/// How much of a policy more specific ones leave.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    All,
    Some,
    None,
}

/// A port or rule of a target.
struct Section<'i> {
    name: &'i str,
    /// In words.
    at: String,
    /// The fields that it says itself.
    own: Vec<&'static str>,
}

/// What policies are attached to.
struct Known<'i> {
    attached: Attached<'i>,
    /// Its ports or rules; `None`: it is not there.
    sections: Option<Vec<Section<'i>>>,
}

/// What policies' states follow from.
pub(super) struct Judge<'i> {
    index: &'i Index,
    carried: Carried,
    /// Looked at once, however many policies are attached to it.
    known: BTreeMap<ObjectKey, Known<'i>>,
}

/// The state of every TrafficPolicy, then every RateLimitPolicy, FaultPolicy and TelemetryPolicy.
pub fn policy_statuses(index: &Index) -> Vec<PolicyStatus> {
    let judge = Judge::new(index);
    let policies = index.resilience().map(|stored| &stored.object);
    policies.map(|policy| judge.status(policy)).collect()
}

/// What is wrong with a policy at its targets.
pub(super) fn findings(judge: &Judge<'_>, policy: &Resilience) -> Notes {
    let index = judge.index;
    let mut notes = Notes::default();
    for target in &policy.targets {
        let Some(known) = judge.known.get(&target.object) else {
            continue;
        };
        let at = format!("spec.targetRefs[{}]", target.index);
        match judge.outcome(policy, target, known) {
            Outcome::NotThere(message) => {
                let field =
                    if target.section.is_some() && is_there(index, target) { "sectionName" } else { "name" };
                notes.error(
                    format!("{at}.{field}"),
                    format!("{message}; the policy is not attached there"),
                    "correct the reference, or write what it refers to",
                );
            }
            Outcome::Conflicted(winner) if target.object.kind == Kind::Namespace => notes.error(
                "spec",
                format!("{}; nothing of this policy holds", judge.conflict(policy, winner, target)),
                "put what both say into one policy, or name its `targetRefs`",
            ),
            Outcome::Conflicted(winner) => notes.error(
                at,
                format!("{}; nothing of this policy holds there", judge.conflict(policy, winner, target)),
                "put what both say into one policy, or let one name a `sectionName`",
            ),
            Outcome::Holds(overridden, Left::None) => notes.warn(
                at,
                format!(
                    "all that the policy says there is said by what is more specific: {}",
                    told(&overridden)
                ),
                "remove this target, or what is more specific",
            ),
            Outcome::Holds(..) => {}
        }
        if let Some(message) = judge.beyond_patterns(policy, target, &known.attached) {
            notes.error(
                format!("spec.targetRefs[{}]", target.index),
                message,
                "use exact values where they serve, or fewer headers",
            );
        }
        if policy.kind == Kind::TrafficPolicy {
            never_again(index, policy, target, &known.attached, &mut notes);
        }
        if target.object.kind == Kind::Service {
            opaque(index, policy, target, &mut notes);
            uncounted(index, policy, target, &mut notes);
        }
    }
    notes
}

/// Tells that there is never time for a retry where the policy's back-off is as long as what something else says a request may take. What
/// one object says is told when it is read.
fn never_again(
    index: &Index,
    policy: &Resilience,
    target: &Target,
    attached: &Attached<'_>,
    notes: &mut Notes,
) {
    let Says::Traffic(traffic) = &policy.says else {
        return;
    };
    let own = traffic.requests.clone().unwrap_or_default();
    let Some(retry) = own.retry.filter(|retry| retry.attempts > 0) else {
        return;
    };
    let all: Vec<(String, v1::RequestPolicy)> = match target.object.kind {
        Kind::Service => {
            let ports = index.service(&target.object.name).into_iter().flat_map(|service| &service.ports);
            let ports = ports.filter(|port| target.is_about(&port.name));
            let said = ports.map(|port| {
                let said = traffic_of(attached, port).requests.unwrap_or_default();
                (format!("port {}", port.number), said)
            });
            said.collect()
        }
        _ => {
            let rules = index.route(&target.object).into_iter().flat_map(|route| &route.rules);
            let rules = rules.filter(|rule| target.is_about(&rule.name));
            let said = rules.map(|rule| (format!("rule {}", rule.index), requests_of(attached, rule)));
            said.collect()
        }
    };
    let length = |one: &prost_types::Duration| (one.seconds, one.nanos);
    let backoff = retry.backoff.as_ref().map(length);
    for (at, said) in all {
        let whole = said.request_timeout.as_ref().map(length).filter(|whole| *whole != (0, 0));
        let is_mine = said.request_timeout == own.request_timeout;
        if said.retry.as_ref() == Some(&retry) && !is_mine && whole.is_some() && backoff >= whole {
            notes.warn(
                "spec.retry.backoff.base",
                format!(
                    "at {at} of {} a request may take no longer than that: there is never time for a retry",
                    target.object
                ),
                "make it shorter than the `timeouts.request` that holds there",
            );
        }
    }
}

/// Tells of requests that nobody can tell apart, since every port that the policy is about is declared not to be HTTP.
fn opaque(index: &Index, policy: &Resilience, target: &Target, notes: &mut Notes) {
    let ports = index.service(&target.object.name).into_iter().flat_map(|service| &service.ports);
    let mut ports = ports.filter(|port| target.is_about(&port.name)).peekable();
    let is_opaque =
        ports.peek().is_some() && ports.all(|port| matches!(port.protocol, Protocol::Tcp | Protocol::Tls));
    let of_requests = match &policy.says {
        Says::Traffic(traffic) => traffic.requests.is_some() || traffic.retry_budget.is_some(),
        Says::Limits(..) | Says::Faults(_) => true,
        // The proxies behind the Service log connections by it too.
        Says::Telemetry(_) => false,
    };
    if is_opaque && of_requests {
        notes.warn(
            format!("spec.targetRefs[{}]", target.index),
            "what it says of requests means nothing there: no port is HTTP, by what the Service declares",
            "declare what the port speaks, by `appProtocol`, or attach the policy to another",
        );
    }
}

/// Tells of endpoints beside which nobody counts: rates are kept by the proxies behind the Service, and they have none.
fn uncounted(index: &Index, policy: &Resilience, target: &Target, notes: &mut Notes) {
    if policy.kind != Kind::RateLimitPolicy || policy.direction(target) != Direction::Inbound {
        return;
    }
    let service = &target.object.name;
    let slices = index.slices_of(service).filter(|slice| slice.identity.is_none());
    let endpoints = slices.flat_map(|slice| &slice.endpoints).filter(|endpoint| !endpoint.gone);
    let endpoints = endpoints.filter(|one| match index.behind(one.workload.as_ref(), one.address) {
        Behind::Pod(pod) => !pod.meshed,
        Behind::Unknown => false,
        Behind::Other => true,
    });
    let mut bare: BTreeSet<_> = endpoints.map(|endpoint| endpoint.address).collect();
    for registration in index.registrations_of(service) {
        bare.remove(&registration.address);
    }
    if let Some(first) = bare.first() {
        let others = match bare.len() {
            1 => String::new(),
            all => format!(" and {} more", all - 1),
        };
        notes.warn(
            format!("spec.targetRefs[{}]", target.index),
            format!("nobody counts what goes to {first}{others} of {}: no proxy stands there", target.object),
            "let clients' proxies count, each for itself: `direction: Outbound`; or annotate the EndpointSlice with its `tulle.dev/identity`, if \
             there are proxies",
        );
    }
}

// === impl Judge ===

impl<'i> Judge<'i> {
    pub(super) fn new(index: &'i Index) -> Self {
        let mut known: BTreeMap<ObjectKey, Known<'i>> = BTreeMap::new();
        for target in index.resilience().flat_map(|stored| &stored.object.targets) {
            if !known.contains_key(&target.object) {
                let attached = Attached::to(index, target.object.clone());
                known.insert(
                    target.object.clone(),
                    Known { attached, sections: sections(index, &target.object) },
                );
            }
        }
        Self { index, carried: carried(index), known }
    }

    fn status(&self, policy: &Resilience) -> PolicyStatus {
        let ancestors = policy.targets.iter().map(|target| AncestorStatus {
            ancestor_ref: AncestorRef {
                group: match target.object.kind {
                    Kind::Service | Kind::Namespace => "",
                    Kind::Workload => "policy.tulle.dev",
                    _ => "gateway.networking.k8s.io",
                },
                kind: target.object.kind.as_str(),
                namespace: target.object.name.namespace.to_string(),
                name: target.object.name.name.to_string(),
                section_name: target.section.clone(),
            },
            conditions: self.conditions(policy, target),
        });
        PolicyStatus {
            kind: policy.kind.to_string(),
            namespace: policy.name.namespace.to_string(),
            name: policy.name.name.to_string(),
            ancestors: ancestors.collect(),
            generation: policy.generation,
        }
    }

    /// Reasons are GEP-713's.
    fn conditions(&self, policy: &Resilience, target: &Target) -> Vec<Condition> {
        let one = |condition, is_so: bool, reason, message| Condition {
            condition,
            status: if is_so { "True" } else { "False" },
            reason,
            message,
        };
        let Some(known) = self.known.get(&target.object) else {
            return Vec::new();
        };
        let (overridden, left) = match self.outcome(policy, target, known) {
            Outcome::NotThere(message) => return vec![one("Accepted", false, "TargetNotFound", message)],
            Outcome::Conflicted(winner) => {
                let message = self.conflict(policy, winner, target);
                return vec![one("Accepted", false, "Conflicted", message)];
            }
            Outcome::Holds(overridden, left) => (overridden, left),
        };
        let extent = self.extent(policy, target);
        let (holds, reason) = match (extent.map(|extent| extent.held), left) {
            (Some(0), _) => (false, "Invalid"),
            (Some(_), _) | (None, Left::Some) => (true, "PartiallyProgrammed"),
            (None, Left::All) => (true, "Programmed"),
            (None, Left::None) => (false, "Overridden"),
        };
        let messages =
            [told(&overridden), self.beyond_patterns(policy, target, &known.attached).unwrap_or_default()];
        let messages: Vec<String> = messages.into_iter().filter(|message| !message.is_empty()).collect();
        vec![
            one("Accepted", true, "Accepted", String::new()),
            one("Programmed", holds, reason, messages.join("; ")),
        ]
    }

    /// How far a policy is carried out at a target where it is left out somewhere.
    fn extent(&self, policy: &Resilience, target: &Target) -> Option<&Extent> {
        self.carried.of(policy, &target.object, target.section.as_deref())
    }

    /// Where a policy is left out at a target since there are too many regular expressions, and what holds instead, in words.
    fn beyond_patterns(
        &self,
        policy: &Resilience,
        target: &Target,
        attached: &Attached<'_>,
    ) -> Option<String> {
        let extent = self.extent(policy, target)?;
        let place = Place::of(policy, target);
        let instead = target.section.as_ref().and_then(|_| attached.at(place.whole())).filter(|wider| {
            let wider = self.carried.of(wider, &target.object, None);
            wider.is_none_or(|wider| wider.left_out.is_disjoint(&extent.left_out))
        });
        let instead = match instead {
            Some(wider) => format!(", and {} holds in its place", wider.key()),
            None => String::new(),
        };
        let elsewhere = match extent.held {
            0 => String::new(),
            1 => "; it holds at one other place".to_owned(),
            held => format!("; it holds at {held} other places"),
        };
        Some(format!(
            "for {} its regular expressions, with those of the routes and of the policies that come before, are more than the {PATTERNS} that \
             a proxy takes; nothing of this policy holds there{instead}{elsewhere}",
            places(&extent.left_out)
        ))
    }

    fn conflict(&self, policy: &Resilience, winner: &Resilience, target: &Target) -> String {
        let section = target.section.as_ref().map(|name| format!(", `{name}`,")).unwrap_or_default();
        let because = if winner.created == policy.created { "the first by name" } else { "older" };
        // One that is left out does not hold, and still comes first: of two on one target nobody could tell which is meant.
        let holds = if self.extent(winner, target).is_some() { "comes first" } else { "holds" };
        format!("{} is attached to {}{section} too and {holds}, being {because}", winner.key(), target.object)
    }

    fn outcome(&self, policy: &Resilience, target: &Target, known: &Known<'i>) -> Outcome<'i> {
        let (object, attached) = (&target.object, &known.attached);
        let Some(sections) = &known.sections else {
            return Outcome::NotThere(format!("there is no {object}"));
        };
        if let Some(section) = &target.section
            && sections.iter().all(|one| one.name != section)
        {
            let what = if object.kind == Kind::Service { "port" } else { "rule" };
            return Outcome::NotThere(format!("{object} has no {what} called `{section}`"));
        }
        let place = Place::of(policy, target);
        if let Some(winner) = attached.at(place)
            && winner.name != policy.name
        {
            return Outcome::Conflicted(winner);
        }
        let said: BTreeSet<&'static str> = fields(&policy.says).into_iter().collect();
        let mut overridden: Vec<Overridden> = Vec::new();
        let (mut all, mut left, mut is_partial) = (0, 0, false);
        for Section { name, at, own } in sections.iter().filter(|one| target.is_about(one.name)) {
            let mut rest = said.clone();
            let mut take = |by: String, theirs: &[&'static str], not_for: BTreeSet<String>| {
                let taken: BTreeSet<&'static str> =
                    theirs.iter().copied().filter(|field| rest.remove(field)).collect();
                if !taken.is_empty() {
                    is_partial |= !not_for.is_empty();
                    overridden.push(Overridden { at: at.clone(), by, not_for, fields: taken });
                }
            };
            if policy.kind == Kind::TrafficPolicy {
                take(format!("{object} itself"), own, BTreeSet::new());
            }
            let specific = place.section(name).filter(|_| target.section.is_none());
            if let Some(other) = specific.and_then(|place| attached.at(place)) {
                let extent = self.carried.of(other, object, Some(name));
                // What is left out everywhere overrides nothing.
                if extent.is_none_or(|extent| extent.held > 0) {
                    let not_for = extent.map(|extent| extent.left_out.clone()).unwrap_or_default();
                    take(other.key().to_string(), &fields(&other.says), not_for);
                }
            }
            all += said.len();
            left += rest.len();
        }
        let left = match left {
            0 if all > 0 && !is_partial => Left::None,
            left if left == all => Left::All,
            _ => Left::Some,
        };
        Outcome::Holds(overridden, left)
    }
}

/// The ports or rules of what policies are attached to; none if it is not there. Workloads are whole, and always there: whoever serves
/// nothing is known to nobody.
fn sections<'i>(index: &'i Index, object: &ObjectKey) -> Option<Vec<Section<'i>>> {
    if matches!(object.kind, Kind::Workload | Kind::Namespace) {
        return Some(vec![Section { name: "", at: object.to_string(), own: Vec::new() }]);
    }
    if object.kind == Kind::Service {
        let ports = index.service(&object.name)?.ports.iter();
        let section = |port: &'i Port| Section {
            name: &port.name,
            at: format!("port {}", port.number),
            own: Vec::new(),
        };
        return Some(ports.map(section).collect());
    }
    let rules = index.route(object)?.rules.iter();
    let section = |rule: &'i Rule| Section {
        name: &rule.name,
        at: format!("rule {}", rule.index),
        own: fields_of_rule(rule),
    };
    Some(rules.map(section).collect())
}

fn told(overridden: &[Overridden]) -> String {
    let told = overridden.iter().map(|one| {
        let fields: Vec<&str> = one.fields.iter().copied().collect();
        let but = match one.not_for.is_empty() {
            true => String::new(),
            false => format!(", but not for {}", places(&one.not_for)),
        };
        format!("`{}` at {} by {}{but}", fields.join("`, `"), one.at, one.by)
    });
    told.collect::<Vec<_>>().join("; ")
}

/// The first of them, and how many more.
fn places(all: &BTreeSet<String>) -> String {
    let told: Vec<&str> = all.iter().map(String::as_str).take(TOLD).collect();
    match all.len() - told.len() {
        0 => told.join(", "),
        more => format!("{} and {more} more", told.join(", ")),
    }
}

fn is_there(index: &Index, target: &Target) -> bool {
    match target.object.kind {
        Kind::Service => index.service(&target.object.name).is_some(),
        Kind::Workload | Kind::Namespace => true,
        _ => index.route(&target.object).is_some(),
    }
}
