//! Which policies have more regular expressions than a proxy takes in one resource ([`PATTERNS`]).
//!
//! Counted as proxies do, each expression once: those of the policies on a Service's ports; those of the rules that clients follow to a
//! Service, with those of the policies on them; and those of what the proxy of one workload counts. Policies are taken in order of
//! precedence, after the rules; one that does not fit is left out there as a whole, since a proxy would refuse the whole resource.
//! What is left out is there as if it were not written: the policy on the whole Service or route holds in its place, if that fits. Such
//! policies are taken after all others, so that nothing is left out for their sake. Called by what builds these resources, and by what
//! tells of it.

use std::collections::{BTreeMap, BTreeSet};

use tulle_api::PATTERNS;

use super::build::serving_of;
use super::resilience::{Attached, inbound};
use super::routes::rooms_of_routes;
use crate::index::Index;
use crate::object::{ObjectKey, Resilience, Service};

/// The policies of a kind that may hold at a port or rule: the one on it, and the one on the whole object.
pub(super) struct Choice<'i, 'n> {
    /// What they are attached to.
    pub(super) object: ObjectKey,
    /// The name of the port or rule.
    pub(super) section: &'n str,
    /// The more specific first.
    pub(super) policies: [Option<&'i Resilience>; 2],
}

/// What a resource has of regular expressions.
#[derive(Default)]
pub(super) struct Room<'i> {
    patterns: BTreeSet<&'i str>,
    choices: Vec<Choice<'i, 'i>>,
    /// The policies that did not fit.
    left_out: BTreeSet<ObjectKey>,
}

/// What becomes of the policies with regular expressions, where there are too many.
#[derive(Default)]
pub(super) struct Carried(BTreeMap<Spot, Extent>);

/// A policy, what it is attached to, and the name of the port or rule if it is not attached to the whole.
type Spot = (ObjectKey, ObjectKey, Option<String>);

/// How far a policy is carried out at what it is attached to.
#[derive(Default)]
pub(super) struct Extent {
    /// At so many places.
    pub(super) held: usize,
    /// Not at these, in words.
    pub(super) left_out: BTreeSet<String>,
}

// === impl Choice ===

impl<'i> Choice<'i, '_> {
    /// With the name of the section that each is attached to.
    fn all(&self) -> impl Iterator<Item = (Option<&str>, &'i Resilience)> {
        let sections = [Some(self.section), None].into_iter();
        sections.zip(self.policies).filter_map(|(section, policy)| Some((section, policy?)))
    }
}

// === impl Room ===

impl<'i> Room<'i> {
    /// Takes all of these, or none. Whether it has.
    pub(super) fn take(&mut self, patterns: impl Iterator<Item = &'i str>) -> bool {
        let own: BTreeSet<&str> = patterns.collect();
        let fits = own.is_empty() || self.patterns.union(&own).count() <= PATTERNS;
        if fits {
            self.patterns.extend(own);
        }
        fits
    }

    /// With what holds by each of the choices, as far as it fits.
    pub(super) fn with(mut self, choices: impl IntoIterator<Item = Choice<'i, 'i>>) -> Self {
        self.choices.extend(choices);
        let mut taken = BTreeSet::new();
        loop {
            let wanted = self.choices.iter().filter_map(|choice| self.first_of(choice));
            let wanted = wanted.filter(|policy| policy.patterns().next().is_some());
            let mut wanted: Vec<_> =
                wanted.map(|policy| (policy.key(), policy)).filter(|(key, _)| !taken.contains(key)).collect();
            if wanted.is_empty() {
                return self;
            }
            wanted.sort_by_cached_key(|(key, policy)| (policy.precedence(), key.clone()));
            wanted.dedup_by(|(one, _), (other, _)| one == other);
            for (key, policy) in wanted {
                if self.take(policy.patterns()) {
                    taken.insert(key);
                } else {
                    self.left_out.insert(key);
                }
            }
        }
    }

    /// The policy that holds by a choice.
    pub(super) fn first_of<'p>(&self, choice: &Choice<'p, '_>) -> Option<&'p Resilience> {
        let mut policies = choice.policies.into_iter().flatten();
        policies.find(|policy| self.left_out.is_empty() || !self.left_out.contains(&policy.key()))
    }

    fn tell(&self, place: &str, carried: &mut Carried) {
        // Of several ports or rules each policy is told once.
        let mut told: BTreeMap<Spot, bool> = BTreeMap::new();
        for choice in &self.choices {
            for (section, policy) in choice.all() {
                let key = policy.key();
                let fits = !self.left_out.contains(&key);
                told.insert((key, choice.object.clone(), section.map(str::to_owned)), fits);
                if fits {
                    break;
                }
            }
        }
        for (spot, fits) in told {
            let extent = carried.0.entry(spot).or_default();
            if fits {
                extent.held += 1;
            } else {
                extent.left_out.insert(place.to_owned());
            }
        }
    }
}

// === impl Carried ===

impl Carried {
    /// Of a policy that is left out somewhere at what it is attached to.
    pub(super) fn of(
        &self,
        policy: &Resilience,
        object: &ObjectKey,
        section: Option<&str>,
    ) -> Option<&Extent> {
        if self.0.is_empty() {
            // Nobody has any, which is almost always so.
            return None;
        }
        let spot = (policy.key(), object.clone(), section.map(str::to_owned));
        self.0.get(&spot).filter(|extent| !extent.left_out.is_empty())
    }
}

/// Of a Service's ports. `attached` is what is attached to the Service.
pub(super) fn room_of_service<'i>(service: &'i Service, attached: &Attached<'i>) -> Room<'i> {
    Room::default().with(service.ports.iter().flat_map(|port| attached.outbound(&port.name)))
}

/// What becomes of every policy that is left out somewhere.
pub(super) fn carried(index: &Index) -> Carried {
    let mut carried = Carried::default();
    let policies = || index.resilience().flat_map(|stored| stored.object.patterns());
    if policies().next().is_none() {
        return carried;
    }
    for stored in index.services() {
        let service = &stored.object;
        let place = format!("Service {}", service.name);
        room_of_service(service, &Attached::to_service(index, service)).tell(&place, &mut carried);
        for (clients, room) in rooms_of_routes(index, service) {
            let place = match clients {
                Some(clients) => format!("{place} and clients in the namespace `{clients}`"),
                None => place.clone(),
            };
            room.tell(&place, &mut carried);
        }
    }
    // All policies together fit into one workload, mostly.
    if policies().collect::<BTreeSet<_>>().len() > PATTERNS {
        for workload in index.workloads() {
            let serving = serving_of(index, &workload).unwrap_or_default();
            let room = Room::default().with(serving.iter().filter_map(|one| inbound(index, one)));
            room.tell(&format!("the workload {workload}"), &mut carried);
        }
    }
    carried
}
