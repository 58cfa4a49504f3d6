//! AuthorizationPolicies, as the proxy of a workload is told of them.
//!
//! `policies` say all of it. `rules` are for proxies that do not know those, and say it as far as exact identities and ports can: never looser.
//! Where they can say all of it, there are no `policies`, and every proxy goes by the same rules.
//!
//! Proxies that do not know `policies` know neither tokens nor authorizers. Where one of these must agree, `rules` close the port, so that such a proxy lets
//! nobody in; there are `policies` then whatever the others say, if only one that does nothing, so that newer proxies do not go by `rules`.
//!
//! # What a rule speaks of
//!
//! A policy speaks of the ports of its target, and of those alone that its rules' `toPorts` name, where each rule has some. Beyond
//! these it says nothing. What a rule's `to` and `when` leave out is spoken of and not described: an `ALLOW` refuses it.

use std::collections::{BTreeMap, BTreeSet};

use tulle_api::v1;

use super::build::{Context, Serving, nobody};
use super::targets::{Spoken, spoken};
use crate::object::{Authorization, Identity, Kind, NamespacedName, PolicyRule, Source, Subject};

/// Who lets nobody in where a Pod says `deny`; no policy is called so, as an object's name has no colon.
const DENIED_BY_DEFAULT: &str = "annotation:default-inbound-policy";

/// What does nothing, but that a proxy which knows it does not look at `rules`.
const NOTHING: &str = "control-plane:rules-are-for-older-proxies";

/// What a workload's proxy is told.
pub(super) struct Told {
    /// Empty where `rules` say all of it.
    pub(super) policies: Vec<v1::AccessPolicy>,
    pub(super) rules: Vec<v1::AllowRule>,
}

/// Ports of a workload; none: every port.
pub(super) type Ports = Option<BTreeSet<u16>>;

/// One rule, where its policy speaks of a workload.
struct Judged<'p> {
    rule: &'p PolicyRule,
    /// Those that it speaks of.
    ports: Ports,
    /// None: nothing that can be asked of this workload.
    wire: Option<v1::AccessRule>,
}

/// The rules that older proxies go by.
#[derive(Default)]
struct Older {
    /// By name, and by whether it lets nobody in: a policy may say the one at some ports and the other at others.
    rules: BTreeMap<(String, bool), (Ports, BTreeSet<String>)>,
    /// Nobody is let in at these, whatever `rules` allow: what is denied there, and by what name.
    closed: BTreeMap<String, Ports>,
}

// === impl Context ===

impl Context<'_> {
    /// What AuthorizationPolicies say of a workload that serves these, and whether nobody is let in where none of them speaks. `beyond`: what else must
    /// agree that older proxies cannot ask, by name, and at which ports; `dry`: what else is to be told, and not done.
    pub(super) fn authorization(
        &self,
        workload: &NamespacedName,
        serving: &[Serving],
        denies_by_default: bool,
        (beyond, dry): (BTreeMap<String, Ports>, Vec<v1::AccessPolicy>),
    ) -> Told {
        let mut policies: Vec<v1::AccessPolicy> = Vec::new();
        let is_beyond = !beyond.is_empty();
        let mut older = Older { closed: beyond, ..Older::default() };
        let mut is_plain = !is_beyond && dry.is_empty();
        for one in spoken(self.index, workload, serving, Kind::AuthorizationPolicy) {
            let Some(says) = one.policy.authorization() else { continue };
            let judged: Vec<Judged<'_>> =
                says.rules.iter().filter_map(|rule| self.judged(&one, rule)).collect();
            // All of its rules are about ports that are not served here.
            if judged.is_empty() && !says.rules.is_empty() {
                continue;
            }
            is_plain &= is_plainly_said(&one, says);
            self.for_older(&one, says, &judged, &mut older);
            if let Some(policy) = on_the_wire(&one, says, judged) {
                put(&mut policies, policy);
            }
        }
        let served: BTreeSet<u16> = serving.iter().map(|one| one.port).collect();
        let mut rules = older.rules(&served);
        if is_plain {
            policies.clear();
        }
        policies.extend(dry);
        let alone = |name: &str, action: v1::AccessAction| v1::AccessPolicy {
            name: format!("{}/{name}", workload.namespace),
            action: action.into(),
            ..v1::AccessPolicy::default()
        };
        if denies_by_default {
            if is_beyond || !policies.is_empty() {
                policies.push(alone(DENIED_BY_DEFAULT, v1::AccessAction::Allow));
            }
            rules.push(nobody(&workload.namespace, &format!("{DENIED_BY_DEFAULT}/deny")));
        } else if is_beyond && policies.is_empty() {
            policies.push(alone(NOTHING, v1::AccessAction::Audit));
        }
        Told { policies, rules }
    }

    /// None, if the rule is about ports that are not served here.
    fn judged<'p>(&self, spoken: &Spoken<'_>, rule: &'p PolicyRule) -> Option<Judged<'p>> {
        let ports: Ports = match &rule.ports[..] {
            [] => spoken.ports().cloned(),
            numbers => Some(numbers.iter().flat_map(|number| spoken.means(*number)).collect()),
        };
        if ports.as_ref().is_some_and(BTreeSet::is_empty) {
            return None;
        }
        let only = ports.as_ref().filter(|_| !rule.ports.is_empty());
        let to: Vec<v1::AccessOperation> = match &rule.to[..] {
            [] => only
                .map(|ports| v1::AccessOperation { ports: wire_ports(ports), ..Default::default() })
                .into_iter()
                .collect(),
            all => all.iter().filter_map(|one| operation(spoken, one, only)).collect(),
        };
        let describes = !to.is_empty() || (rule.to.is_empty() && only.is_none());
        // Of one that excepts nothing but ports that are not served here, nothing is left: it describes everything. Proxies refuse it.
        let to = if to.contains(&v1::AccessOperation::default()) { Vec::new() } else { to };
        let wire = describes.then(|| v1::AccessRule {
            name: rule.name.clone(),
            from: rule.from.iter().map(|source| self.source(source)).collect(),
            to,
            when: rule.when.clone(),
        });
        Some(Judged { rule, ports, wire })
    }

    fn source(&self, source: &Source) -> v1::AccessSource {
        let wire = |all: &[Subject]| all.iter().map(|one| one.on_the_wire(&self.trust_domain)).collect();
        v1::AccessSource {
            identities: wire(&source.identities),
            not_identities: wire(&source.not_identities),
            ..source.others.clone()
        }
    }

    /// Tells older proxies what a policy comes to.
    fn for_older(&self, spoken: &Spoken<'_>, says: &Authorization, judged: &[Judged<'_>], older: &mut Older) {
        let name = |rule: &str| format!("{}/{rule}", spoken.policy.name);
        match (says.action, says.dry_run) {
            (_, true) | (v1::AccessAction::Audit | v1::AccessAction::Unspecified, _) => {}
            (v1::AccessAction::Deny, false) => {
                for one in judged.iter().filter(|one| one.wire.is_some()) {
                    let closed = older.closed.entry(name(&one.rule.name));
                    let closed = closed.or_insert_with(|| Some(BTreeSet::new()));
                    unite(closed, &one.ports);
                }
            }
            (v1::AccessAction::Allow, false) => {
                if judged.is_empty() {
                    let no_rule = if says.is_unreadable { "unreadable" } else { "none" };
                    older.allow(name(no_rule), &spoken.ports().cloned(), BTreeSet::new());
                }
                for one in judged {
                    let plain = plain_identities(one.rule).filter(|_| spoken.routes.is_empty());
                    let identities = plain.into_iter().flatten();
                    let identities = identities.map(|who| who.spiffe_id(&self.trust_domain)).collect();
                    older.allow(name(&one.rule.name), &one.ports, identities);
                }
            }
        }
    }
}

/// A policy, in whole. None, if nothing of it can be told on arrival and it refuses nothing.
fn on_the_wire(
    spoken: &Spoken<'_>,
    says: &Authorization,
    judged: Vec<Judged<'_>>,
) -> Option<v1::AccessPolicy> {
    let is_blurred = spoken.is_blurred;
    if is_blurred && (says.dry_run || says.action == v1::AccessAction::Audit) {
        return None;
    }
    let mut ports: Ports = Some(BTreeSet::new());
    for one in &judged {
        unite(&mut ports, &one.ports);
    }
    if judged.is_empty() {
        ports = spoken.ports().cloned();
    }
    // Whom it was to allow cannot be told from whom it was not to.
    let is_nobody = is_blurred && says.action == v1::AccessAction::Allow;
    let rules = judged.into_iter().filter(|_| !is_nobody).filter_map(|one| one.wire);
    Some(v1::AccessPolicy {
        name: spoken.policy.name.to_string(),
        action: says.action.into(),
        dry_run: says.dry_run,
        ports: ports.as_ref().map(wire_ports).unwrap_or_default(),
        routes: spoken.routes.clone(),
        rules: rules.collect(),
    })
}

/// An operation at the ports of a workload; `only` where its rule speaks of some alone. None: it is none that can be asked of it.
fn operation(
    spoken: &Spoken<'_>,
    written: &v1::AccessOperation,
    only: Option<&BTreeSet<u16>>,
) -> Option<v1::AccessOperation> {
    let means = |numbers: &[u32]| -> BTreeSet<u16> {
        let numbers = numbers.iter().filter_map(|number| u16::try_from(*number).ok());
        numbers.flat_map(|number| spoken.means(number)).collect()
    };
    let named = (!written.ports.is_empty()).then(|| means(&written.ports));
    let ports = match (named, only) {
        (Some(named), Some(only)) => Some(named.intersection(only).copied().collect()),
        (named, only) => named.or_else(|| only.cloned()),
    };
    if ports.as_ref().is_some_and(BTreeSet::is_empty) {
        return None;
    }
    Some(v1::AccessOperation {
        ports: ports.as_ref().map(wire_ports).unwrap_or_default(),
        not_ports: wire_ports(&means(&written.not_ports)),
        ..written.clone()
    })
}

/// Beside those that are there; one that differs in its ports alone is put together with them.
fn put(policies: &mut Vec<v1::AccessPolicy>, new: v1::AccessPolicy) {
    let rest = |one: &v1::AccessPolicy| v1::AccessPolicy { ports: Vec::new(), ..one.clone() };
    let known = policies.iter_mut().rev().take_while(|known| known.name == new.name);
    for known in known {
        if rest(known) == rest(&new) {
            let is_all = known.ports.is_empty() || new.ports.is_empty();
            let both: BTreeSet<u32> = known.ports.iter().chain(&new.ports).copied().collect();
            known.ports = if is_all { Vec::new() } else { both.into_iter().collect() };
            return;
        }
    }
    policies.push(new);
}

/// Whether `rules` say all that the policy does.
fn is_plainly_said(spoken: &Spoken<'_>, says: &Authorization) -> bool {
    says.action == v1::AccessAction::Allow
        && !says.dry_run
        && spoken.routes.is_empty()
        && says.rules.iter().all(|rule| plain_identities(rule).is_some())
}

/// The identities that a rule allows, if it says nothing else but `toPorts`.
fn plain_identities(rule: &PolicyRule) -> Option<Vec<&Identity>> {
    let is_plain =
        |source: &Source| source.not_identities.is_empty() && source.others == v1::AccessSource::default();
    if rule.from.is_empty() || !rule.to.is_empty() || !rule.when.is_empty() || !rule.from.iter().all(is_plain)
    {
        return None;
    }
    let subjects = rule.from.iter().flat_map(|source| &source.identities);
    let exact = subjects.map(|subject| match subject {
        Subject::Exact(identity) => Some(identity),
        _ => None,
    });
    exact.collect()
}

/// Adds ports to others.
pub(super) fn unite(ports: &mut Ports, more: &Ports) {
    match (ports.as_mut(), more) {
        (Some(ports), Some(more)) => ports.extend(more),
        _ => *ports = None,
    }
}

fn wire_ports(ports: &BTreeSet<u16>) -> Vec<u32> {
    ports.iter().copied().map(u32::from).collect()
}

// === impl Older ===

impl Older {
    /// No identities: nobody.
    fn allow(&mut self, name: String, ports: &Ports, identities: BTreeSet<String>) {
        let known = self.rules.entry((name, identities.is_empty()));
        let (known_ports, known_identities) =
            known.or_insert_with(|| (Some(BTreeSet::new()), BTreeSet::new()));
        unite(known_ports, ports);
        known_identities.extend(identities);
    }

    /// `served`: the ports of which the workload is known to serve something.
    fn rules(mut self, served: &BTreeSet<u16>) -> Vec<v1::AllowRule> {
        let mut closed: Ports = Some(BTreeSet::new());
        for ports in self.closed.values() {
            unite(&mut closed, ports);
        }
        let is_any_closed = closed.as_ref().is_none_or(|ports| !ports.is_empty());
        let mut are_all_closed = false;
        if is_any_closed {
            self.rules.retain(|_, (ports, identities)| {
                if identities.is_empty() {
                    return true;
                }
                let left = match (ports.as_ref(), &closed) {
                    (_, None) => BTreeSet::new(),
                    (Some(ports), Some(closed)) => ports.difference(closed).copied().collect(),
                    (None, Some(closed)) => {
                        // No rule can say of which ports it does not speak; what is not served is closed with the others.
                        are_all_closed = true;
                        served.difference(closed).copied().collect()
                    }
                };
                let is_left = !left.is_empty();
                *ports = Some(left);
                is_left
            });
        }
        for (name, ports) in self.closed {
            self.rules.insert((name, true), (ports.filter(|_| !are_all_closed), BTreeSet::new()));
        }
        let rules = self.rules.into_iter();
        rules
            .map(|((name, _), (ports, identities))| v1::AllowRule {
                name,
                ports: ports.as_ref().map(wire_ports).unwrap_or_default(),
                identities: identities.into_iter().collect(),
            })
            .collect()
    }
}
