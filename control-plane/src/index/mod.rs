//! Everything that is known, and what a change to it may change for proxies.
//!
//! Pure: no client, no clock, no task. Sources tell it objects ([`Index::apply`], [`Index::delete`],
//! [`Index::reset`]), the Report streams tell it workloads ([`Index::register`]), and [`crate::model`] reads it.
//! It decides which resources must be looked at again ([`Dirty`]), always too many rather than too few; whether
//! anything is really different, the model decides by comparing bytes.

mod access;
mod pods;
mod registration;
mod touch;
mod virtual_ip;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;

pub use self::pods::Behind;
pub use self::registration::{Registration, RegistrationError, RegistrationId};
pub use self::virtual_ip::NETWORKS as VIRTUAL_NETWORKS;
use crate::finding::Origin;
use crate::object::{
    Access, Egress, Grant, Kind, Mesh, NamespacedName, Object, ObjectKey, Pod, Resilience, Route, RouteKind,
    Service, Slice,
};

/// An object and where it is written.
#[derive(Debug, Clone)]
pub struct Stored<T> {
    /// The object.
    pub object: T,
    /// None for what does not come from a file.
    pub origin: Option<Origin>,
}

/// A change that a source has seen.
#[derive(Debug, Clone)]
pub enum Change {
    /// New, or in place of what had the same key.
    Apply(Box<Object>, Option<Origin>),
    /// Gone.
    Delete(ObjectKey),
}

type Objects<T> = BTreeMap<NamespacedName, Stored<T>>;
type Links<K, V = NamespacedName> = BTreeMap<K, BTreeSet<V>>;

/// What is known.
#[derive(Debug, Default)]
pub struct Index {
    services: Objects<Service>,
    slices: Objects<Slice>,
    /// By kind too: routes of different kinds may have the same name.
    routes: BTreeMap<ObjectKey, Stored<Route>>,
    grants: Objects<Grant>,
    /// What is about what comes in at workloads. By kind too: policies of different kinds may have the same name.
    access: BTreeMap<ObjectKey, Stored<Access>>,
    egress: Objects<Egress>,
    /// By kind too: policies of different kinds may have the same name.
    resilience: BTreeMap<ObjectKey, Stored<Resilience>>,
    mesh: Option<Stored<Mesh>>,
    pods: Objects<Pod>,
    /// Every Pod that there is is told; see [`Index::of_cluster`].
    knows_pods: bool,
    /// Holds where there is no other.
    default_mesh: Option<Stored<Mesh>>,
    registrations: BTreeMap<RegistrationId, Registration>,
    bundles: BTreeMap<String, Vec<Bytes>>,
    /// Virtual IPs of the services that were given none; as of when it was last asked what is dirty.
    assigned: BTreeMap<NamespacedName, Vec<IpAddr>>,
    /// Services have come or gone since.
    services_changed: bool,
    links: IndexLinks,
    dirty: Dirty,
}

/// The same, found from the other end.
#[derive(Debug, Default)]
struct IndexLinks {
    /// Service → its slices.
    slices: Links<NamespacedName>,
    /// Service → registrations for it.
    registrations: Links<NamespacedName, RegistrationId>,
    /// Service → routes attached to it.
    routes: Links<NamespacedName, ObjectKey>,
    /// Service → routes that send requests to it.
    backends: Links<NamespacedName, ObjectKey>,
    /// Service, route, workload or namespace → policies attached to it that are about what comes in.
    access: Links<ObjectKey, ObjectKey>,
    /// Service → EgressPolicies attached to it.
    egress: Links<NamespacedName>,
    /// Service, route, workload or namespace → what is attached to it.
    resilience: Links<ObjectKey, ObjectKey>,
    /// The first label that a service selects by, and its namespace → services.
    selectors: Links<pods::Selector>,
    /// A label, and its namespace → pods with it.
    labelled: Links<pods::Selector>,
    /// Address → pods with it.
    pods_at: Links<IpAddr>,
    /// Namespace → its pods with a proxy.
    meshed: Links<Arc<str>>,
    /// Virtual IP → services.
    services_at: Links<IpAddr>,
    /// Address → slices with an endpoint there.
    slices_at: Links<IpAddr>,
    /// Address → registrations there.
    registrations_at: Links<IpAddr, RegistrationId>,
    /// Workload → its registrations.
    registrations_of_workload: Links<NamespacedName, RegistrationId>,
    /// Workload → slices with an endpoint of it.
    slices_of_workload: Links<NamespacedName>,
}

/// Resources that may have changed since the model was last built.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Everything, whatever else is said.
    pub all: bool,
    /// The trust bundles.
    pub bundles: bool,
    /// `Service` resources.
    pub services: BTreeSet<NamespacedName>,
    /// `Endpoints` resources.
    pub endpoints: BTreeSet<NamespacedName>,
    /// `Routes` resources, by service.
    pub routes: BTreeSet<NamespacedName>,
    /// `Address` resources.
    pub addresses: BTreeSet<IpAddr>,
    /// `Workload` and `InboundPolicy` resources, and `EgressPolicy` where the workload has one of its own.
    pub workloads: BTreeSet<NamespacedName>,
    /// The `EgressPolicy` of these namespaces' workloads, of those with one of their own too.
    pub egress: BTreeSet<Arc<str>>,
    /// The `InboundPolicy` of these namespaces' workloads, known or not.
    pub inbound: BTreeSet<Arc<str>>,
}

// === impl Dirty ===

impl Dirty {
    /// Whether nothing can have changed.
    pub fn is_empty(&self) -> bool {
        !self.all
            && !self.bundles
            && self.services.is_empty()
            && self.endpoints.is_empty()
            && self.routes.is_empty()
            && self.addresses.is_empty()
            && self.workloads.is_empty()
            && self.egress.is_empty()
            && self.inbound.is_empty()
    }
}

// === impl Index: changes ===

impl Index {
    /// Takes in a source's changes, in order; whether any of them changes what is known.
    pub fn change(&mut self, changes: impl IntoIterator<Item = Change>) -> bool {
        let mut changed = false;
        for change in changes {
            changed |= match change {
                Change::Apply(object, origin) => self.apply(*object, origin),
                Change::Delete(key) => {
                    let known = self.holds(&key);
                    self.delete(&key);
                    known
                }
            };
        }
        changed
    }

    /// Takes in an object, in place of the one with the same key; whether it is another than that.
    pub fn apply(&mut self, object: Object, origin: Option<Origin>) -> bool {
        if origin.is_none() && self.has(&object) {
            return false;
        }
        self.delete(&object.key());
        match object {
            Object::Service(object) => {
                let name = object.name.clone();
                link(&mut self.links.services_at, &object.addresses, &name);
                link(&mut self.links.selectors, &pods::selector(&object), &name);
                self.services.insert(name.clone(), Stored { object, origin });
                self.services_changed = true;
                self.touch_service(&name);
            }
            Object::EndpointSlice(object) => {
                let name = object.name.clone();
                link(&mut self.links.slices, [&object.service], &name);
                link(&mut self.links.slices_at, object.addresses(), &name);
                link(&mut self.links.slices_of_workload, object.workloads(), &name);
                self.slices.insert(name.clone(), Stored { object, origin });
                self.touch_slice(&name);
            }
            Object::Route(object) => {
                let key = object.key();
                link(&mut self.links.routes, object.services(), &key);
                link(&mut self.links.backends, object.backends(), &key);
                self.routes.insert(key.clone(), Stored { object, origin });
                self.touch_route(&key);
            }
            Object::ReferenceGrant(object) => {
                self.grants.insert(object.name.clone(), Stored { object, origin });
                self.touch_granted();
            }
            Object::Access(object) => {
                let key = object.key();
                link(&mut self.links.access, object.targets.iter().map(|target| &target.object), &key);
                self.access.insert(key.clone(), Stored { object, origin });
                self.touch_access(&key);
            }
            Object::EgressPolicy(object) => {
                let name = object.name.clone();
                let targets = object.targets.iter().map(|target| &target.service);
                link(&mut self.links.egress, targets, &name);
                self.dirty.egress.insert(name.namespace.clone());
                self.egress.insert(name, Stored { object, origin });
            }
            Object::Resilience(object) => {
                let key = object.key();
                link(&mut self.links.resilience, object.targets.iter().map(|target| &target.object), &key);
                self.resilience.insert(key.clone(), Stored { object, origin });
                self.touch_resilience(&key);
            }
            Object::Mesh(object) => {
                self.mesh = Some(Stored { object, origin });
                self.dirty.all = true;
            }
            Object::Pod(object) => {
                let name = object.name.clone();
                link(&mut self.links.pods_at, &object.addresses, &name);
                link(&mut self.links.meshed, pods::meshed_in(&object), &name);
                link(&mut self.links.labelled, &pods::labels(&object), &name);
                self.pods.insert(name.clone(), Stored { object, origin });
                self.touch_pod(&name);
            }
        }
        true
    }

    /// Whether this very object is known, and from no file: most of what an API server tells is of fields that nobody reads.
    fn has(&self, object: &Object) -> bool {
        fn same<T: PartialEq>(known: Option<&Stored<T>>, object: &T) -> bool {
            known.is_some_and(|known| known.origin.is_none() && known.object == *object)
        }
        match object {
            Object::Service(object) => same(self.services.get(&object.name), object),
            Object::EndpointSlice(object) => same(self.slices.get(&object.name), object),
            Object::Route(object) => same(self.routes.get(&object.key()), object),
            Object::ReferenceGrant(object) => same(self.grants.get(&object.name), object),
            Object::Access(object) => same(self.access.get(&object.key()), object),
            Object::EgressPolicy(object) => same(self.egress.get(&object.name), object),
            Object::Resilience(object) => same(self.resilience.get(&object.key()), object),
            Object::Mesh(object) => same(self.mesh.as_ref(), object),
            Object::Pod(object) => same(self.pods.get(&object.name), object),
        }
    }

    /// Forgets an object; nothing happens if it is not known.
    pub fn delete(&mut self, key: &ObjectKey) {
        let name = &key.name;
        match key.kind {
            Kind::Service => {
                self.touch_service(name);
                if let Some(Stored { object, .. }) = self.services.remove(name) {
                    unlink(&mut self.links.services_at, &object.addresses, name);
                    unlink(&mut self.links.selectors, &pods::selector(&object), name);
                    self.services_changed = true;
                }
            }
            Kind::EndpointSlice => {
                self.touch_slice(name);
                if let Some(Stored { object, .. }) = self.slices.remove(name) {
                    unlink(&mut self.links.slices, [&object.service], name);
                    unlink(&mut self.links.slices_at, object.addresses(), name);
                    unlink(&mut self.links.slices_of_workload, object.workloads(), name);
                }
            }
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                self.touch_route(key);
                if let Some(Stored { object, .. }) = self.routes.remove(key) {
                    unlink(&mut self.links.routes, object.services(), key);
                    unlink(&mut self.links.backends, object.backends(), key);
                }
            }
            Kind::ReferenceGrant => {
                if self.grants.remove(name).is_some() {
                    self.touch_granted();
                }
            }
            Kind::AuthorizationPolicy
            | Kind::PeerAuthentication
            | Kind::ExternalAuthorization
            | Kind::RequestAuthentication => {
                self.touch_access(key);
                if let Some(Stored { object, .. }) = self.access.remove(key) {
                    let targets = object.targets.iter().map(|target| &target.object);
                    unlink(&mut self.links.access, targets, key);
                }
            }
            Kind::EgressPolicy => {
                if let Some(Stored { object, .. }) = self.egress.remove(name) {
                    let targets = object.targets.iter().map(|target| &target.service);
                    unlink(&mut self.links.egress, targets, name);
                    self.dirty.egress.insert(name.namespace.clone());
                }
            }
            Kind::TrafficPolicy | Kind::RateLimitPolicy | Kind::FaultPolicy | Kind::TelemetryPolicy => {
                self.touch_resilience(key);
                if let Some(Stored { object, .. }) = self.resilience.remove(key) {
                    let targets = object.targets.iter().map(|target| &target.object);
                    unlink(&mut self.links.resilience, targets, key);
                }
            }
            Kind::Mesh => self.dirty.all |= self.mesh.take().is_some(),
            Kind::Pod => {
                self.touch_pod(name);
                if let Some(Stored { object, .. }) = self.pods.remove(name) {
                    unlink(&mut self.links.pods_at, &object.addresses, name);
                    unlink(&mut self.links.meshed, pods::meshed_in(&object), name);
                    unlink(&mut self.links.labelled, &pods::labels(&object), name);
                }
            }
            Kind::Workload | Kind::Namespace => {}
        }
    }

    /// Forgets every object and takes in these; registrations, bundles and the default Mesh stay.
    pub fn reset(&mut self, objects: impl IntoIterator<Item = (Object, Option<Origin>)>) {
        let fresh = Self {
            registrations: std::mem::take(&mut self.registrations),
            bundles: std::mem::take(&mut self.bundles),
            default_mesh: self.default_mesh.take(),
            services_changed: true,
            knows_pods: self.knows_pods,
            dirty: Dirty { all: true, ..Dirty::default() },
            ..Self::default()
        };
        *self = fresh;
        for (id, registration) in &self.registrations {
            self.links.link_registration(*id, registration);
        }
        for (object, origin) in objects {
            self.apply(object, origin);
        }
        self.assign_virtual_ips();
    }

    /// Makes a workload an endpoint of the services that it names, in place of what was said under the same ID. A
    /// workload with several registrations is one with several replicas. Of two that speak of the same place, the later is
    /// believed as an endpoint of their service, the earlier about the address dialled directly. What is said by a stream of this
    /// control plane is believed before what another one tells ([`Registration::told`]), which says nothing at all about what a Pod is.
    pub fn register(&mut self, id: RegistrationId, registration: Registration) {
        self.unregister(id);
        self.links.link_registration(id, &registration);
        self.registrations.insert(id, registration);
        self.touch_registration(id);
    }

    /// Forgets a registration; nothing happens if there is none of that ID.
    pub fn unregister(&mut self, id: RegistrationId) {
        self.touch_registration(id);
        if let Some(registration) = self.registrations.remove(&id) {
            self.links.unlink_registration(id, &registration);
        }
    }

    /// Sets the DER certificates that vouch for a trust domain.
    pub fn set_bundle(&mut self, trust_domain: &str, authorities: Vec<Bytes>) {
        self.bundles.insert(trust_domain.to_owned(), authorities);
        self.dirty.bundles = true;
    }

    /// What may have changed since this was last asked.
    pub fn take_dirty(&mut self) -> Dirty {
        self.assign_virtual_ips();
        self.touch_clients();
        std::mem::take(&mut self.dirty)
    }

    /// For all services at once, and only where one has come or gone.
    fn assign_virtual_ips(&mut self) {
        if !std::mem::take(&mut self.services_changed) {
            return;
        }
        let services = self.services.values().map(|stored| &stored.object);
        let given: BTreeSet<IpAddr> =
            services.clone().flat_map(|service| &service.addresses).copied().collect();
        let without = services.filter(|service| service.addresses.is_empty() && !service.headless);
        let assigned = virtual_ip::assign(without.map(|service| &service.name), &given);
        let before = std::mem::take(&mut self.assigned);
        for (name, addresses) in
            before.iter().filter(|(name, addresses)| assigned.get(*name) != Some(addresses))
        {
            unlink(&mut self.links.services_at, addresses, name);
            self.dirty.services.insert(name.clone());
            self.dirty.addresses.extend(addresses);
        }
        for (name, addresses) in
            assigned.iter().filter(|(name, addresses)| before.get(*name) != Some(addresses))
        {
            link(&mut self.links.services_at, addresses, name);
            self.dirty.services.insert(name.clone());
            self.dirty.addresses.extend(addresses);
        }
        self.assigned = assigned;
    }
}

// === impl Index: reading ===

impl Index {
    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.slices.len(),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                self.routes.keys().filter(|key| key.kind == kind).count()
            }
            Kind::ReferenceGrant => self.grants.len(),
            Kind::AuthorizationPolicy
            | Kind::PeerAuthentication
            | Kind::ExternalAuthorization
            | Kind::RequestAuthentication => self.access.keys().filter(|key| key.kind == kind).count(),
            Kind::EgressPolicy => self.egress.len(),
            Kind::TrafficPolicy | Kind::RateLimitPolicy | Kind::FaultPolicy | Kind::TelemetryPolicy => {
                self.resilience.keys().filter(|key| key.kind == kind).count()
            }
            Kind::Mesh => usize::from(self.mesh.is_some()),
            Kind::Pod => self.pods.len(),
            Kind::Workload | Kind::Namespace => 0,
        }
    }

    /// Whether that object is there.
    pub fn holds(&self, key: &ObjectKey) -> bool {
        match key.kind {
            Kind::Service => self.services.contains_key(&key.name),
            Kind::EndpointSlice => self.slices.contains_key(&key.name),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                self.routes.contains_key(key)
            }
            Kind::ReferenceGrant => self.grants.contains_key(&key.name),
            Kind::AuthorizationPolicy
            | Kind::PeerAuthentication
            | Kind::ExternalAuthorization
            | Kind::RequestAuthentication => self.access.contains_key(key),
            Kind::EgressPolicy => self.egress.contains_key(&key.name),
            Kind::TrafficPolicy | Kind::RateLimitPolicy | Kind::FaultPolicy | Kind::TelemetryPolicy => {
                self.resilience.contains_key(key)
            }
            Kind::Mesh => self.mesh.as_ref().is_some_and(|mesh| mesh.object.name.name == key.name.name),
            Kind::Pod => self.pods.contains_key(&key.name),
            Kind::Workload | Kind::Namespace => false,
        }
    }

    /// Every Service.
    pub fn services(&self) -> impl Iterator<Item = &Stored<Service>> {
        self.services.values()
    }

    /// A Service by name.
    pub fn service(&self, name: &NamespacedName) -> Option<&Service> {
        self.services.get(name).map(|stored| &stored.object)
    }

    /// A service's virtual IPs, written or assigned; none for one that is headless or not known.
    pub fn virtual_ips(&self, name: &NamespacedName) -> &[IpAddr] {
        let written = self.service(name).map(|service| service.addresses.as_slice());
        let assigned = || self.assigned.get(name).map(Vec::as_slice);
        written.filter(|addresses| !addresses.is_empty()).or_else(assigned).unwrap_or_default()
    }

    /// Every EndpointSlice.
    pub fn slices(&self) -> impl Iterator<Item = &Stored<Slice>> {
        self.slices.values()
    }

    /// Every HTTPRoute, then every GRPCRoute, TLSRoute and TCPRoute.
    pub fn routes(&self) -> impl Iterator<Item = &Stored<Route>> {
        self.routes.values()
    }

    /// Every EgressPolicy.
    pub fn egress_policies(&self) -> impl Iterator<Item = &Stored<Egress>> {
        self.egress.values()
    }

    /// The EgressPolicies for every workload of a namespace, by name.
    pub fn egress_of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Egress> {
        let of_namespace = self.egress.range(NamespacedName::new(namespace, "")..);
        let of_namespace = of_namespace.take_while(move |(name, _)| &*name.namespace == namespace);
        of_namespace.map(|(_, stored)| &stored.object).filter(|policy| policy.targets.is_empty())
    }

    /// An EgressPolicy by name.
    pub fn egress_policy(&self, name: &NamespacedName) -> Option<&Egress> {
        self.egress.get(name).map(|stored| &stored.object)
    }

    /// The EgressPolicies attached to a service, by name.
    pub fn egress_of<'a>(&'a self, service: &NamespacedName) -> impl Iterator<Item = &'a Egress> + use<'a> {
        let policies = linked(&self.links.egress, service);
        policies.filter_map(|name| Some(&self.egress.get(name)?.object))
    }

    /// Every TrafficPolicy, then every RateLimitPolicy, FaultPolicy and TelemetryPolicy.
    pub fn resilience(&self) -> impl Iterator<Item = &Stored<Resilience>> {
        self.resilience.values()
    }

    /// The workloads that policies name, known or not; or the namespaces to whose workloads policies are attached, as the names. One may
    /// come twice.
    pub fn attached_to(&self, kind: Kind) -> impl Iterator<Item = &NamespacedName> {
        let objects = self.links.resilience.keys().chain(self.links.access.keys());
        objects.filter(move |object| object.kind == kind).map(|object| &object.name)
    }

    /// Whether a policy names a workload.
    pub fn names_workload(&self, name: &NamespacedName) -> bool {
        let object = ObjectKey { kind: Kind::Workload, name: name.clone() };
        self.links.resilience.contains_key(&object) || self.links.access.contains_key(&object)
    }

    /// The policies of these with a target in a Service, route, workload or namespace, in order of precedence.
    pub fn resilience_of(&self, object: &ObjectKey) -> Vec<&Resilience> {
        let policies = linked(&self.links.resilience, object);
        let mut policies: Vec<&Resilience> =
            policies.filter_map(|key| Some(&self.resilience.get(key)?.object)).collect();
        policies.sort_by_cached_key(|policy| policy.precedence());
        policies
    }

    /// A route by kind and name.
    pub fn route(&self, key: &ObjectKey) -> Option<&Route> {
        self.routes.get(key).map(|stored| &stored.object)
    }

    /// The Mesh, if one is written: by the source, or else as the default.
    pub fn mesh(&self) -> Option<&Stored<Mesh>> {
        self.mesh.as_ref().or(self.default_mesh.as_ref())
    }

    /// What holds for as long as the source has no Mesh.
    pub fn set_default_mesh(&mut self, mesh: Stored<Mesh>) {
        self.default_mesh = Some(mesh);
        self.dirty.all = true;
    }

    /// Every registration, oldest first.
    pub fn registrations(&self) -> impl Iterator<Item = &Registration> {
        self.registrations.values()
    }

    /// The registrations of a workload: what is told, then what is said here, each oldest first.
    pub fn registrations_of_workload<'a>(
        &'a self,
        workload: &NamespacedName,
    ) -> impl Iterator<Item = &'a Registration> + use<'a> {
        let ids = || linked(&self.links.registrations_of_workload, workload);
        self.believed(ids(), true).chain(self.believed(ids(), false))
    }

    /// Trust domains and their DER certificates.
    pub fn bundles(&self) -> impl Iterator<Item = (&str, &[Bytes])> {
        let bundles = self.bundles.iter();
        bundles.map(|(domain, authorities)| (domain.as_str(), authorities.as_slice()))
    }

    /// The slices of a service, by name.
    pub fn slices_of<'a>(&'a self, service: &NamespacedName) -> impl Iterator<Item = &'a Slice> + use<'a> {
        let slices = linked(&self.links.slices, service);
        slices.filter_map(|name| Some(&self.slices.get(name)?.object))
    }

    /// The registrations for a service: what is told, then what is said here, each oldest first.
    pub fn registrations_of<'a>(
        &'a self,
        service: &NamespacedName,
    ) -> impl Iterator<Item = &'a Registration> + use<'a> {
        let ids = || linked(&self.links.registrations, service);
        self.believed(ids(), true).chain(self.believed(ids(), false))
    }

    /// The routes attached to a service, in order of precedence.
    pub fn routes_of(&self, service: &NamespacedName) -> Vec<&Route> {
        self.routes_of_kinds(service, &RouteKind::ALL.map(Kind::from))
    }

    /// The same, of some kinds of route only.
    pub fn routes_of_kinds(&self, service: &NamespacedName, kinds: &[Kind]) -> Vec<&Route> {
        let routes = linked(&self.links.routes, service).filter(|key| kinds.contains(&key.kind));
        let mut routes: Vec<&Route> = routes.filter_map(|key| Some(&self.routes.get(key)?.object)).collect();
        routes.sort_by_cached_key(|route| route.precedence());
        routes
    }

    /// The services with this virtual IP, by name.
    pub fn services_at(&self, address: IpAddr) -> impl Iterator<Item = &Service> {
        let services = linked(&self.links.services_at, &address);
        services.filter_map(|name| Some(&self.services.get(name)?.object))
    }

    /// The slices with an endpoint at this address, by name.
    pub fn slices_at(&self, address: IpAddr) -> impl Iterator<Item = &Slice> {
        let slices = linked(&self.links.slices_at, &address);
        slices.filter_map(|name| Some(&self.slices.get(name)?.object))
    }

    /// The registrations at this address: what is said here, then what is told, each oldest first.
    pub fn registrations_at(&self, address: IpAddr) -> impl Iterator<Item = &Registration> {
        let ids = || linked(&self.links.registrations_at, &address);
        self.believed(ids(), false).chain(self.believed(ids(), true))
    }

    /// Of these registrations those that are `told`, or not, and are believed.
    fn believed<'a>(
        &'a self,
        ids: impl Iterator<Item = &'a RegistrationId>,
        told: bool,
    ) -> impl Iterator<Item = &'a Registration> {
        let registrations = ids.filter_map(|id| self.registrations.get(id));
        registrations.filter(move |one| one.told == told && self.is_believed(one))
    }

    /// The slices with an endpoint of this workload, by name.
    pub fn slices_of_workload<'a>(
        &'a self,
        workload: &NamespacedName,
    ) -> impl Iterator<Item = &'a Slice> + use<'a> {
        let slices = linked(&self.links.slices_of_workload, workload);
        slices.filter_map(|name| Some(&self.slices.get(name)?.object))
    }

    /// Every address that belongs to something.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let links = &self.links;
        let at = [&links.services_at, &links.slices_at, &links.pods_at];
        let at = at.into_iter().flat_map(|links| links.keys());
        at.chain(links.registrations_at.keys()).copied().collect()
    }

    /// Every workload: registered, a Pod with a proxy, or named by a slice and no Pod without one.
    pub fn workloads(&self) -> BTreeSet<NamespacedName> {
        let named = self.links.slices_of_workload.keys().filter(|name| !self.is_bare(name));
        let meshed = self.pods.iter().filter(|(_, pod)| pod.object.meshed).map(|(name, _)| name);
        named.chain(meshed).chain(self.links.registrations_of_workload.keys()).cloned().collect()
    }

    /// Whether a route of this kind in `namespace` may send requests to a service of another namespace, or a policy have it asked.
    pub fn is_granted(&self, kind: impl Into<Kind>, namespace: &str, service: &NamespacedName) -> bool {
        let kind = kind.into();
        let mut grants = self.grants.values();
        grants.any(|grant| grant.object.allows(kind, namespace, service))
    }
}

// === impl IndexLinks ===

impl IndexLinks {
    fn link_registration(&mut self, id: RegistrationId, registration: &Registration) {
        link(&mut self.registrations, registration.services(), &id);
        link(&mut self.registrations_at, [&registration.address], &id);
        link(&mut self.registrations_of_workload, [&registration.workload], &id);
    }

    fn unlink_registration(&mut self, id: RegistrationId, registration: &Registration) {
        unlink(&mut self.registrations, registration.services(), &id);
        unlink(&mut self.registrations_at, [&registration.address], &id);
        unlink(&mut self.registrations_of_workload, [&registration.workload], &id);
    }
}

fn link<'a, K: Ord + Clone + 'a, V: Ord + Clone>(
    links: &mut Links<K, V>,
    from: impl IntoIterator<Item = &'a K>,
    to: &V,
) {
    for key in from {
        links.entry(key.clone()).or_default().insert(to.clone());
    }
}

fn unlink<'a, K: Ord + Clone + 'a, V: Ord>(
    links: &mut Links<K, V>,
    from: impl IntoIterator<Item = &'a K>,
    to: &V,
) {
    for key in from {
        if let Some(ends) = links.get_mut(key) {
            ends.remove(to);
            if ends.is_empty() {
                links.remove(key);
            }
        }
    }
}

fn linked<'a, K: Ord, V>(links: &'a Links<K, V>, key: &K) -> impl Iterator<Item = &'a V> + use<'a, K, V> {
    links.get(key).into_iter().flatten()
}
