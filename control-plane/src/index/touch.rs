//! What a change touches: the resources that must be looked at again ([`Dirty`]), rather too many than too few.

use std::collections::BTreeMap;

use super::{Dirty, Index, IndexLinks, Objects, Registration, RegistrationId, Stored, linked};
use crate::object::{Kind, NamespacedName, ObjectKey, Slice, Target};

impl Index {
    pub(super) fn touch_service(&mut self, name: &NamespacedName) {
        let dirty = &mut self.dirty;
        dirty.services.insert(name.clone());
        dirty.endpoints.insert(name.clone());
        dirty.routes.insert(name.clone());
        if let Some(service) = self.services.get(name) {
            dirty.addresses.extend(&service.object.addresses);
        }
        // Protocols and port names come from the service.
        for slice in linked(&self.links.slices, name).filter_map(|slice| self.slices.get(slice)) {
            dirty.addresses.extend(slice.object.addresses());
            dirty.workloads.extend(slice.object.workloads().cloned());
        }
        for id in linked(&self.links.registrations, name) {
            if let Some(registration) = self.registrations.get(id) {
                dirty.workloads.insert(registration.workload.clone());
                dirty.addresses.insert(registration.address);
            }
        }
        // A backend may have begun or ceased to resolve; and by its affinity a Service rejects a whole route, at other parents too.
        let routes = linked(&self.links.backends, name).chain(linked(&self.links.routes, name));
        for route in routes.filter_map(|route| self.routes.get(route)) {
            dirty.routes.extend(route.object.services().cloned());
        }
    }

    pub(super) fn touch_slice(&mut self, name: &NamespacedName) {
        if let Some(Stored { object, .. }) = self.slices.get(name) {
            self.dirty.endpoints.insert(object.service.clone());
            self.dirty.addresses.extend(object.addresses());
            self.dirty.workloads.extend(object.workloads().cloned());
        }
    }

    pub(super) fn touch_route(&mut self, key: &ObjectKey) {
        if let Some(Stored { object, .. }) = self.routes.get(key) {
            self.dirty.routes.extend(object.services().cloned());
        }
    }

    pub(super) fn touch_all_routes(&mut self) {
        self.dirty.routes.extend(self.links.routes.keys().cloned());
    }

    pub(super) fn touch_policy(&mut self, name: &NamespacedName) {
        let Some(Stored { object, .. }) = self.policies.get(name) else {
            return;
        };
        for target in &object.targets {
            touch_workloads(&mut self.dirty, &self.links, &self.slices, &self.registrations, &target.service);
        }
    }

    pub(super) fn touch_resilience(&mut self, key: &ObjectKey) {
        let Some(Stored { object, .. }) = self.resilience.get(key) else {
            return;
        };
        for Target { object: target, .. } in &object.targets {
            match target.kind {
                Kind::Service => {
                    self.dirty.services.insert(target.name.clone());
                    touch_workloads(
                        &mut self.dirty,
                        &self.links,
                        &self.slices,
                        &self.registrations,
                        &target.name,
                    );
                }
                Kind::Workload => {
                    self.dirty.workloads.insert(target.name.clone());
                }
                Kind::Namespace => {
                    self.dirty.inbound.insert(target.name.name.clone());
                }
                _ => {
                    let route = self.routes.get(target).into_iter();
                    self.dirty.routes.extend(route.flat_map(|route| route.object.services()).cloned());
                }
            }
        }
    }

    pub(super) fn touch_registration(&mut self, id: RegistrationId) {
        if let Some(registration) = self.registrations.get(&id) {
            self.dirty.endpoints.extend(registration.services().cloned());
            self.dirty.addresses.insert(registration.address);
            self.dirty.workloads.insert(registration.workload.clone());
        }
    }
}

/// The workloads behind a service; without the whole index, so that what is read of it may be held.
fn touch_workloads(
    dirty: &mut Dirty,
    links: &IndexLinks,
    slices: &Objects<Slice>,
    registrations: &BTreeMap<RegistrationId, Registration>,
    service: &NamespacedName,
) {
    for slice in linked(&links.slices, service).filter_map(|name| slices.get(name)) {
        dirty.workloads.extend(slice.object.workloads().cloned());
    }
    let registered = linked(&links.registrations, service).filter_map(|id| registrations.get(id));
    dirty.workloads.extend(registered.map(|known| known.workload.clone()));
}
