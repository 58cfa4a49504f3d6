//! The policies that are about what comes in at workloads: how they are found, and what a change of one touches.

use std::collections::BTreeSet;

use super::{Index, Stored, linked};
use crate::kinds::Mtls;
use crate::object::{Access, AccessTarget, Kind, NamespacedName, ObjectKey};

impl Index {
    /// Every AuthorizationPolicy, then every one of the other kinds.
    pub fn access_policies(&self) -> impl Iterator<Item = &Stored<Access>> {
        self.access.values()
    }

    /// One of them by kind and name.
    pub fn access_policy(&self, key: &ObjectKey) -> Option<&Access> {
        self.access.get(key).map(|stored| &stored.object)
    }

    /// Whether there is any of that kind.
    pub fn has_access(&self, kind: Kind) -> bool {
        let first = ObjectKey { kind, name: NamespacedName::new("", "") };
        self.access.range(first..).next().is_some_and(|(key, _)| key.kind == kind)
    }

    /// Those with a target in a Service, route, workload or namespace (of its workloads by labels, too), by kind and name.
    pub fn access_of<'a>(&'a self, object: &ObjectKey) -> impl Iterator<Item = &'a Access> + use<'a> {
        let policies = linked(&self.links.access, object);
        policies.filter_map(move |key| self.access_policy(key))
    }

    /// Those of a kind, or of each, that may speak of a workload that serves `services`, by kind and name.
    pub fn access_to<'a>(
        &'a self,
        kind: Option<Kind>,
        workload: &NamespacedName,
        services: &BTreeSet<&NamespacedName>,
    ) -> Vec<&'a Access> {
        let mut keys: BTreeSet<&ObjectKey> = BTreeSet::new();
        let mut take = |object: &ObjectKey| {
            let linked = linked(&self.links.access, object);
            keys.extend(linked.filter(|key| kind.is_none_or(|kind| key.kind == kind)));
        };
        take(&ObjectKey { kind: Kind::Namespace, name: NamespacedName::new("", workload.namespace.clone()) });
        take(&ObjectKey { kind: Kind::Workload, name: workload.clone() });
        for service in services {
            take(&ObjectKey { kind: Kind::Service, name: (*service).clone() });
            for route in linked(&self.links.routes, *service).chain(linked(&self.links.backends, *service)) {
                take(route);
            }
        }
        keys.into_iter().filter_map(|key| self.access_policy(key)).collect()
    }

    /// What a policy's coming or going touches.
    pub(super) fn touch_access(&mut self, key: &ObjectKey) {
        let Some(Stored { object, .. }) = self.access.get(key) else {
            return;
        };
        // How workloads are dialled follows from it, whoever their clients are.
        self.dirty.all |= object.kind == Kind::PeerAuthentication;
        let authorizer = object.external().and_then(|says| says.service.clone());
        let targets: Vec<ObjectKey> = object.targets.iter().map(|target| target.object.clone()).collect();
        for target in targets {
            match target.kind {
                Kind::Service => self.touch_workloads(&target.name),
                Kind::Workload => {
                    self.dirty.workloads.insert(target.name);
                }
                Kind::Namespace => {
                    self.dirty.inbound.insert(target.name.name);
                }
                _ => self.touch_route_ends(&target),
            }
        }
        // About being asked itself, nobody asks.
        if let Some(service) = authorizer {
            self.touch_workloads(&service);
        }
    }

    /// A Service may have begun or ceased to be one that can be asked about requests.
    pub(super) fn touch_asking(&mut self, service: &NamespacedName) {
        if !self.has_access(Kind::ExternalAuthorization) {
            return;
        }
        let policies = self.access.values().map(|stored| &stored.object);
        let asking = policies
            .filter(|policy| policy.external().is_some_and(|says| says.service.as_ref() == Some(service)));
        let asking: Vec<ObjectKey> = asking.map(Access::key).collect();
        asking.iter().for_each(|key| self.touch_access(key));
    }

    /// The workloads to which a route leads.
    pub(super) fn touch_route_ends(&mut self, key: &ObjectKey) {
        let route = self.routes.get(key).map(|stored| &stored.object);
        let services = route.into_iter().flat_map(|route| route.services().chain(route.backends()));
        let services: BTreeSet<NamespacedName> = services.cloned().collect();
        for service in &services {
            self.touch_workloads(service);
        }
    }

    /// What clients are told of the workloads that may be treated otherwise: they follow what the workloads do.
    pub(super) fn touch_clients(&mut self) {
        let is_off = self.mesh().is_some_and(|mesh| mesh.object.mtls == Mtls::Off);
        if self.dirty.all || !is_off && !self.has_access(Kind::PeerAuthentication) {
            return;
        }
        for workload in self.dirty.workloads.clone() {
            for slice in linked(&self.links.slices_of_workload, &workload) {
                if let Some(Stored { object, .. }) = self.slices.get(slice) {
                    self.dirty.endpoints.insert(object.service.clone());
                    self.dirty.addresses.extend(object.addresses());
                }
            }
            for id in linked(&self.links.registrations_of_workload, &workload) {
                if let Some(registration) = self.registrations.get(id) {
                    self.dirty.endpoints.extend(registration.services().cloned());
                    self.dirty.addresses.insert(registration.address);
                }
            }
            let addresses = self.pods.get(&workload).map(|stored| stored.object.addresses.as_slice());
            for address in addresses.unwrap_or_default() {
                self.dirty.addresses.insert(*address);
                for slice in linked(&self.links.slices_at, address) {
                    let slice = self.slices.get(slice);
                    self.dirty.endpoints.extend(slice.map(|slice| slice.object.service.clone()));
                }
            }
        }
    }

    /// Whether anything is attached to the very place of a target by an older policy of the same kind, and what. One in dry run takes no place of one in force.
    pub fn before<'a>(&'a self, policy: &Access, target: &AccessTarget) -> Option<&'a Access> {
        let same = |other: &&Access| {
            other.rivals(policy) && other.targets.iter().any(|one| one.place() == target.place())
        };
        let first = self.access_of(&target.object).filter(same).min_by_key(|other| other.precedence());
        first.filter(|first| first.name != policy.name)
    }
}
