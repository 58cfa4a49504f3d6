//! The Pods of a cluster: which one is behind an endpoint, and which Services are in front of one.
//!
//! A Pod's Services are told by their selectors, and not only by EndpointSlices: a Pod is in a slice some time after it has an
//! address, and until then its policies would be missing.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Index, Links, Objects, Registration, linked};
use crate::object::{NamespacedName, Pod, Service};

/// A namespace, and a label with its value.
pub(super) type Selector = (Arc<str>, Box<str>, Box<str>);

/// Who is behind an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind<'i> {
    /// This Pod.
    Pod(&'i Pod),
    /// A Pod that is not known yet, or no more: whether it is in the mesh nobody can say.
    Unknown,
    /// No Pod.
    Other,
}

/// By which label a service is found from its Pods; none if it selects none.
pub(super) fn selector(service: &Service) -> Option<Selector> {
    let (key, value) = service.selector.first()?;
    Some((service.name.namespace.clone(), key.clone(), value.clone()))
}

/// The namespace of a Pod with a proxy.
pub(super) fn meshed_in(pod: &Pod) -> Option<&Arc<str>> {
    pod.meshed.then_some(&pod.name.namespace)
}

/// By which labels a Pod is found from its services.
pub(super) fn labels(pod: &Pod) -> Vec<Selector> {
    let namespace = &pod.name.namespace;
    pod.labels.iter().map(|(key, value)| (namespace.clone(), key.clone(), value.clone())).collect()
}

/// The Pods that a service selects, among those with the rarest of the labels that it asks for: a namespace may be full of others.
pub(super) fn selected<'i>(
    pods: &'i Objects<Pod>,
    labelled: &'i Links<Selector>,
    service: &Service,
) -> impl Iterator<Item = &'i Pod> {
    let namespace = &service.name.namespace;
    let with = service.selector.iter().map(|(key, value)| {
        let names = labelled.get(&(namespace.clone(), key.clone(), value.clone()));
        names.map_or((0, None), |names| (names.len(), Some(names)))
    });
    let rarest = with.min_by_key(|(count, _)| *count).and_then(|(_, names)| names);
    let pods = rarest.into_iter().flatten().filter_map(move |name| pods.get(name));
    pods.map(|stored| &stored.object).filter(move |pod| service.selects(pod))
}

impl Index {
    /// The index of a source that tells every Pod: an endpoint whose Pod is not known is not dialled.
    pub fn of_cluster() -> Self {
        Self { knows_pods: true, ..Self::default() }
    }

    /// Whether every Pod that there is is told.
    pub fn knows_pods(&self) -> bool {
        self.knows_pods
    }

    /// All Pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().map(|stored| &stored.object)
    }

    /// A Pod by name.
    pub fn pod(&self, name: &NamespacedName) -> Option<&Pod> {
        self.pods.get(name).map(|stored| &stored.object)
    }

    /// The Pod with this address; of several one that stays.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        let pods = linked(&self.links.pods_at, &address).filter_map(|name| self.pod(name));
        pods.min_by_key(|pod| pod.ending)
    }

    /// Who is behind an endpoint at `address` that names `workload`. The address is believed before the name.
    pub fn behind(&self, workload: Option<&NamespacedName>, address: IpAddr) -> Behind<'_> {
        let named = workload.and_then(|name| self.pod(name));
        if let Some(pod) = named.filter(|pod| pod.addresses.contains(&address)) {
            return Behind::Pod(pod);
        }
        match (self.pod_at(address).or(named), workload) {
            (Some(pod), _) => Behind::Pod(pod),
            (None, Some(_)) if self.knows_pods => Behind::Unknown,
            (None, _) => Behind::Other,
        }
    }

    /// The services that select a Pod.
    pub fn services_selecting<'i>(&'i self, pod: &'i Pod) -> impl Iterator<Item = &'i Service> {
        let namespace = &pod.name.namespace;
        let services = pod.labels.iter().flat_map(move |(key, value)| {
            linked(&self.links.selectors, &(namespace.clone(), key.clone(), value.clone()))
        });
        services.filter_map(|name| self.service(name)).filter(move |service| service.selects(pod))
    }

    /// The namespaces that have a Pod with a proxy, sorted.
    pub fn meshed_namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.links.meshed.keys()
    }

    /// The Pods without a proxy, by name.
    pub fn bare_pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().map(|stored| &stored.object).filter(|pod| !pod.meshed)
    }

    /// Whether a registration counts: what another control plane tells is no word about another namespace's Pod, nor about who a Pod is.
    /// Whoever may write EndpointSlices in a namespace could make it up.
    pub(super) fn is_believed(&self, registration: &Registration) -> bool {
        if !registration.told {
            return true;
        }
        let mut at = linked(&self.links.pods_at, &registration.address);
        let foreign = at.any(|pod| pod.namespace != registration.workload.namespace);
        !foreign && self.pod(&registration.workload).is_none_or(|pod| registration.is_of(&pod.identity))
    }

    /// Whether there is a Pod of that name, without a proxy.
    pub fn is_bare(&self, name: &NamespacedName) -> bool {
        self.pod(name).is_some_and(|pod| !pod.meshed)
    }
}
