//! What GEP-713 says of the state of TrafficPolicies, RateLimitPolicies and FaultPolicies: conditions, for each target.
//!
//! Pure: follows from the index alone, so that `tulle check` shows what would be written to an API server. Says nothing of
//! policies that are refused: an API server has none of them.

use std::collections::BTreeSet;

use serde::Serialize;
use tulle_api::{PATTERNS, v1};

use super::patterns::{LeftOut, left_out};
use super::resilience::{Place, fields, fields_of_rule, requests_of, traffic_of};
use super::status::Condition;
use crate::finding::Notes;
use crate::index::Index;
use crate::kinds::Direction;
use crate::object::{Kind, Protocol, Resilience, Says, Target};

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
    /// Empty for a Service.
    pub group: &'static str,
    /// `Service`, `HTTPRoute` or `GRPCRoute`.
    pub kind: &'static str,
    /// Of the target.
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
    /// Another policy holds there.
    Conflicted(&'i Resilience),
    /// It holds, but for what more specific ones say.
    Holds(Vec<Overridden>, Extent),
}

/// Fields of a policy that something more specific says.
struct Overridden {
    /// The port or rule, in words.
    at: String,
    /// The policy or route, in words.
    by: String,
    fields: BTreeSet<&'static str>,
}

/// How much of a policy holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    All,
    Some,
    None,
}

/// The state of every TrafficPolicy, then every RateLimitPolicy and FaultPolicy.
pub fn policy_statuses(index: &Index) -> Vec<PolicyStatus> {
    let left_out = left_out(index);
    let policies = index.resilience().map(|stored| &stored.object);
    policies.map(|policy| of_policy(index, policy, &left_out)).collect()
}

/// What is wrong with a policy at its targets.
pub(super) fn findings(index: &Index, policy: &Resilience, left_out: &LeftOut) -> Notes {
    let mut notes = Notes::default();
    for target in &policy.targets {
        let at = format!("spec.targetRefs[{}]", target.index);
        match outcome(index, policy, target) {
            Outcome::NotThere(message) => {
                let field =
                    if target.section.is_some() && is_there(index, target) { "sectionName" } else { "name" };
                notes.error(
                    format!("{at}.{field}"),
                    format!("{message}; the policy is not attached there"),
                    "correct the reference, or write what it refers to",
                );
            }
            Outcome::Conflicted(winner) => notes.error(
                at,
                format!("{}; nothing of this policy holds there", conflict(policy, winner, target)),
                "put what both say into one policy, or let one name a `sectionName`",
            ),
            Outcome::Holds(overridden, Extent::None) => notes.warn(
                at,
                format!(
                    "all that the policy says there is said by what is more specific: {}",
                    told(&overridden)
                ),
                "remove this target, or what is more specific",
            ),
            Outcome::Holds(..) => {}
        }
        if let Some(message) = beyond_patterns(policy, target, left_out) {
            notes.error(
                format!("spec.targetRefs[{}]", target.index),
                message,
                "use exact values where they serve, or fewer headers",
            );
        }
        if policy.kind == Kind::TrafficPolicy {
            never_again(index, policy, target, &mut notes);
        }
        if target.object.kind == Kind::Service {
            opaque(index, policy, target, &mut notes);
            uncounted(index, policy, target, &mut notes);
        }
    }
    notes
}

/// Where a policy is left out at a target since there are too many regular expressions, in words.
fn beyond_patterns(policy: &Resilience, target: &Target, left_out: &LeftOut) -> Option<String> {
    let places = left_out.get(&(policy.key(), target.object.clone()))?;
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    Some(format!(
        "for {} its regular expressions, with those of the routes and of the policies that come before, are more than the {PATTERNS} that \
         a proxy takes; nothing of this policy holds there",
        places.join(", ")
    ))
}

/// Tells that there is never time for a retry where the policy's back-off is as long as what something else says a request may take. What
/// one object says is told when it is read.
fn never_again(index: &Index, policy: &Resilience, target: &Target, notes: &mut Notes) {
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
                let said = traffic_of(index, &target.object, port).requests.unwrap_or_default();
                (format!("port {}", port.number), said)
            });
            said.collect()
        }
        _ => {
            let rules = index.route(&target.object).into_iter().flat_map(|route| &route.rules);
            let rules = rules.filter(|rule| target.is_about(&rule.name));
            let said =
                rules.map(|rule| (format!("rule {}", rule.index), requests_of(index, &target.object, rule)));
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
    let is_registered = |address| index.registrations_of(service).any(|one| one.address == address);
    let bare = endpoints.filter(|endpoint| !is_registered(endpoint.address)).map(|endpoint| endpoint.address);
    let bare: BTreeSet<_> = bare.collect();
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

fn of_policy(index: &Index, policy: &Resilience, left_out: &LeftOut) -> PolicyStatus {
    let ancestors = policy.targets.iter().map(|target| AncestorStatus {
        ancestor_ref: AncestorRef {
            group: if target.object.kind == Kind::Service { "" } else { "gateway.networking.k8s.io" },
            kind: target.object.kind.as_str(),
            namespace: target.object.name.namespace.to_string(),
            name: target.object.name.name.to_string(),
            section_name: target.section.clone(),
        },
        conditions: conditions(policy, target, outcome(index, policy, target), left_out),
    });
    PolicyStatus {
        kind: policy.kind.to_string(),
        namespace: policy.name.namespace.to_string(),
        name: policy.name.name.to_string(),
        ancestors: ancestors.collect(),
    }
}

/// Reasons are GEP-713's.
fn conditions(
    policy: &Resilience,
    target: &Target,
    outcome: Outcome<'_>,
    left_out: &LeftOut,
) -> Vec<Condition> {
    let one = |condition, is_so: bool, reason, message| Condition {
        condition,
        status: if is_so { "True" } else { "False" },
        reason,
        message,
    };
    let (overridden, extent) = match outcome {
        Outcome::NotThere(message) => return vec![one("Accepted", false, "TargetNotFound", message)],
        Outcome::Conflicted(winner) => {
            return vec![one("Accepted", false, "Conflicted", conflict(policy, winner, target))];
        }
        Outcome::Holds(overridden, extent) => (overridden, extent),
    };
    if let Some(message) = beyond_patterns(policy, target, left_out) {
        return vec![
            one("Accepted", true, "Accepted", String::new()),
            one("Programmed", false, "Invalid", message),
        ];
    }
    let reason = match extent {
        Extent::All => "Programmed",
        Extent::Some => "PartiallyProgrammed",
        Extent::None => "Overridden",
    };
    vec![
        one("Accepted", true, "Accepted", String::new()),
        one("Programmed", extent != Extent::None, reason, told(&overridden)),
    ]
}

fn conflict(policy: &Resilience, winner: &Resilience, target: &Target) -> String {
    let section = target.section.as_ref().map(|name| format!(", `{name}`,")).unwrap_or_default();
    let because = if winner.created == policy.created { "the first by name" } else { "older" };
    format!("{} is attached to {}{section} too and holds, being {because}", winner.key(), target.object)
}

fn told(overridden: &[Overridden]) -> String {
    let told = overridden.iter().map(|one| {
        let fields: Vec<&str> = one.fields.iter().copied().collect();
        format!("`{}` at {} by {}", fields.join("`, `"), one.at, one.by)
    });
    told.collect::<Vec<_>>().join("; ")
}

fn is_there(index: &Index, target: &Target) -> bool {
    match target.object.kind {
        Kind::Service => index.service(&target.object.name).is_some(),
        _ => index.route(&target.object).is_some(),
    }
}

fn outcome<'i>(index: &'i Index, policy: &Resilience, target: &Target) -> Outcome<'i> {
    let object = &target.object;
    let sections = match object.kind {
        Kind::Service => index.service(&object.name).map(|service| {
            service
                .ports
                .iter()
                .map(|port| (port.name.as_str(), format!("port {}", port.number), Vec::new()))
                .collect()
        }),
        _ => index.route(object).map(|route| {
            let rules = route.rules.iter();
            rules
                .map(|rule| (rule.name.as_str(), format!("rule {}", rule.index), fields_of_rule(rule)))
                .collect()
        }),
    };
    let sections: Vec<(&str, String, Vec<&'static str>)> = match sections {
        Some(sections) => sections,
        None => return Outcome::NotThere(format!("there is no {object}")),
    };
    if let Some(section) = &target.section
        && sections.iter().all(|(name, ..)| name != section)
    {
        let what = if object.kind == Kind::Service { "port" } else { "rule" };
        return Outcome::NotThere(format!("{object} has no {what} called `{section}`"));
    }
    let place = Place::of(policy, target);
    if let Some(winner) = place.winner(index)
        && winner.name != policy.name
    {
        return Outcome::Conflicted(winner);
    }
    let said: BTreeSet<&'static str> = fields(&policy.says).into_iter().collect();
    let mut overridden = Vec::new();
    let (mut all, mut left) = (0, 0);
    for (name, at, own) in sections {
        if !target.is_about(name) {
            continue;
        }
        let mut rest = said.clone();
        let mut take = |by: String, theirs: Vec<&'static str>| {
            let taken: BTreeSet<&'static str> =
                theirs.into_iter().filter(|field| rest.remove(field)).collect();
            if !taken.is_empty() {
                overridden.push(Overridden { at: at.clone(), by, fields: taken });
            }
        };
        if policy.kind == Kind::TrafficPolicy {
            take(format!("{object} itself"), own);
        }
        let specific = place.section(name).filter(|_| target.section.is_none());
        if let Some(other) = specific.and_then(|place| place.winner(index)) {
            take(other.key().to_string(), fields(&other.says));
        }
        all += said.len();
        left += rest.len();
    }
    let extent = match left {
        0 if all > 0 => Extent::None,
        left if left == all => Extent::All,
        _ => Extent::Some,
    };
    Outcome::Holds(overridden, extent)
}
