//! What a change touches: the resources that must be looked at again ([`Dirty`]), rather too many than too few.

use super::pods::selected;
use super::{Index, RegistrationId, Stored, linked};
use crate::object::{Kind, NamespacedName, ObjectKey, Target};

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
        if let Some(service) = self.services.get(name) {
            for pod in selected(&self.pods, &self.links.labelled, &service.object) {
                dirty.workloads.insert(pod.name.clone());
                dirty.addresses.extend(&pod.addresses);
            }
        }
        // A backend may have begun or ceased to resolve; and by its affinity a Service rejects a whole route, at other parents too.
        let routes = linked(&self.links.backends, name).chain(linked(&self.links.routes, name));
        for route in routes.filter_map(|route| self.routes.get(route)) {
            dirty.routes.extend(route.object.services().cloned());
        }
        self.touch_asking(name);
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
        if self.links.access.contains_key(key) {
            self.touch_route_ends(key);
        }
    }

    /// A ReferenceGrant has come or gone.
    pub(super) fn touch_granted(&mut self) {
        self.dirty.routes.extend(self.links.routes.keys().cloned());
        // Who may be asked about requests, and about what nobody is asked then.
        self.dirty.all |= self.has_access(Kind::ExternalAuthorization);
    }

    pub(super) fn touch_resilience(&mut self, key: &ObjectKey) {
        let Some(Stored { object, .. }) = self.resilience.get(key) else {
            return;
        };
        let mut behind = Vec::new();
        for Target { object: target, .. } in &object.targets {
            match target.kind {
                Kind::Service => {
                    self.dirty.services.insert(target.name.clone());
                    behind.push(target.name.clone());
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
        for service in &behind {
            self.touch_workloads(service);
        }
    }

    pub(super) fn touch_pod(&mut self, name: &NamespacedName) {
        let Some(Stored { object: pod, .. }) = self.pods.get(name) else {
            return;
        };
        self.dirty.workloads.insert(name.clone());
        self.dirty.addresses.extend(&pod.addresses);
        // What is told of registrations at its address, or by its name, is believed or not.
        let registered =
            pod.addresses.iter().flat_map(|address| linked(&self.links.registrations_at, address));
        for id in registered.chain(linked(&self.links.registrations_of_workload, name)) {
            if let Some(registration) = self.registrations.get(id).filter(|one| one.told) {
                self.dirty.endpoints.extend(registration.services().cloned());
                self.dirty.addresses.insert(registration.address);
                self.dirty.workloads.insert(registration.workload.clone());
            }
        }
        // Who is behind an endpoint says whom to expect there.
        let at = pod.addresses.iter().flat_map(|address| linked(&self.links.slices_at, address));
        for slice in linked(&self.links.slices_of_workload, name).chain(at) {
            if let Some(Stored { object: slice, .. }) = self.slices.get(slice) {
                self.dirty.endpoints.insert(slice.service.clone());
                let of_pod = slice.endpoints.iter().filter(|one| one.workload.as_ref() == Some(name));
                self.dirty.addresses.extend(of_pod.map(|one| one.address));
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

    /// The workloads behind a service.
    pub(super) fn touch_workloads(&mut self, service: &NamespacedName) {
        for slice in linked(&self.links.slices, service).filter_map(|name| self.slices.get(name)) {
            self.dirty.workloads.extend(slice.object.workloads().cloned());
        }
        let registered = linked(&self.links.registrations, service);
        let registered = registered.filter_map(|id| self.registrations.get(id));
        self.dirty.workloads.extend(registered.map(|known| known.workload.clone()));
        if let Some(Stored { object, .. }) = self.services.get(service) {
            let pods = selected(&self.pods, &self.links.labelled, object);
            self.dirty.workloads.extend(pods.map(|pod| pod.name.clone()));
        }
    }
}
