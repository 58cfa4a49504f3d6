//! Which policies have more regular expressions than a proxy takes in one resource ([`PATTERNS`]).
//!
//! Counted as proxies do, each expression once: those of the policies on a Service's ports; those of the rules that clients follow to a
//! Service, with those of the policies on them; and those of what the proxy of one workload counts. Policies are taken in order of
//! precedence, after the rules; one that does not fit is left out there as a whole, since a proxy would refuse the whole resource. Called
//! by what builds these resources, and by what tells of it.

use std::collections::{BTreeMap, BTreeSet};

use tulle_api::PATTERNS;

use super::build::serving_of;
use super::resilience::{inbound, outbound};
use super::routes::rooms_of_routes;
use crate::index::Index;
use crate::object::{Kind, ObjectKey, Resilience, Service};

/// A policy, by what it is attached to.
pub(super) type Attached<'i> = (ObjectKey, &'i Resilience);

/// What a resource has of regular expressions.
#[derive(Default)]
pub(super) struct Room<'i> {
    patterns: BTreeSet<&'i str>,
    /// The policies that did not fit, by what they are attached to.
    left_out: BTreeSet<(ObjectKey, ObjectKey)>,
}

/// Where policies are left out, in words, by the policy and what it is attached to.
pub(super) type LeftOut = BTreeMap<(ObjectKey, ObjectKey), BTreeSet<String>>;

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

    /// With the policies that fit, the first in order of precedence first.
    pub(super) fn with(mut self, policies: impl Iterator<Item = Attached<'i>>) -> Self {
        let mut policies: Vec<Attached<'i>> =
            policies.filter(|(_, policy)| policy.patterns().next().is_some()).collect();
        policies.sort_by_cached_key(|(object, policy)| (policy.precedence(), policy.key(), object.clone()));
        for (object, policy) in policies {
            if !self.take(policy.patterns()) {
                self.left_out.insert((policy.key(), object));
            }
        }
        self
    }

    /// Whether the policy holds here.
    pub(super) fn has(&self, policy: &Resilience) -> bool {
        self.left_out.is_empty() || !self.left_out.iter().any(|(left_out, _)| *left_out == policy.key())
    }

    fn tell(&self, place: &str, told: &mut LeftOut) {
        for left_out in &self.left_out {
            told.entry(left_out.clone()).or_default().insert(place.to_owned());
        }
    }
}

/// Of a Service's ports.
pub(super) fn room_of_service<'i>(index: &'i Index, service: &Service) -> Room<'i> {
    let object = ObjectKey { kind: Kind::Service, name: service.name.clone() };
    let ports = service.ports.iter();
    Room::default().with(ports.flat_map(|port| outbound(index, &object, &port.name)))
}

/// Every policy that is left out somewhere.
pub(super) fn left_out(index: &Index) -> LeftOut {
    let mut told = LeftOut::new();
    let policies = || index.resilience().flat_map(|stored| stored.object.patterns());
    if policies().next().is_none() {
        return told;
    }
    for stored in index.services() {
        let (service, place) = (&stored.object, format!("Service {}", stored.object.name));
        room_of_service(index, service).tell(&place, &mut told);
        for room in rooms_of_routes(index, service) {
            room.tell(&place, &mut told);
        }
    }
    // All policies together fit into one workload, mostly.
    if policies().collect::<BTreeSet<_>>().len() > PATTERNS {
        for workload in index.workloads() {
            let serving = serving_of(index, &workload).unwrap_or_default();
            let room = Room::default().with(serving.iter().filter_map(|one| inbound(index, one)));
            room.tell(&format!("the workload {workload}"), &mut told);
        }
    }
    told
}
