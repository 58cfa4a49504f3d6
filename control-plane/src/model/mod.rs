//! What proxies should know: an immutable snapshot of every resource, encoded once and shared by all.
//!
//! Built from the [`Index`] by pure functions (`build`), whole or only as far as something may have changed
//! ([`Model::next`]); both give the same. A resource keeps its version, and even its place in memory, for as long as its
//! bytes stay the same, so ADS sends nothing that did not change. Versions are a hash of the bytes: equal on every
//! replica and after every restart. [`Publisher`] hands the newest snapshot to the ADS sessions.
//!
//! # A new workload, in order
//!
//! A proxy asks for its own `InboundPolicy` before anybody knows it, since it must be configured before it is ready.
//! The answer is the mode and what is said of all workloads of its namespace, and no ports; and for its `EgressPolicy`, what holds for its whole
//! namespace. In a cluster there is one rule, which lets nobody in, until its Pod is known or it has registered. Rules for it can exist as soon
//! as it registers, so:
//! 1. the proxy binds its inbound listeners and does not accept on them; connections wait in the backlog;
//! 2. it registers; [`Publisher::register`] returns, and `Registered` is sent, only after a snapshot with the
//!    registration is published. That very snapshot holds its policy, with every rule;
//! 3. it subscribes to its `InboundPolicy` and `EgressPolicy` *again*. A server answers a repeated subscription with the resource as it is
//!    now (xDS, "Subscribing to resources"), so the next that arrive are from that snapshot or a later one;
//! 4. only then it accepts.

mod access;
mod authentication;
mod authorization;
mod build;
mod egress;
mod external;
mod findings;
mod history;
mod inbound;
mod modes;
mod patterns;
mod policies;
mod publish;
mod resilience;
mod routes;
mod status;
mod table;
mod targets;
mod wire;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::{constant_time, digest, hmac};
use bytes::Bytes;
use prost::Message;
use tulle_api::{MESH, ResourceType, v1};
use zeroize::Zeroizing;

pub use self::access::access_statuses;
pub use self::findings::findings;
use self::history::History;
pub use self::policies::{AncestorRef, AncestorStatus, PolicyStatus, policy_statuses};
pub use self::publish::{Publisher, Registered, Submitted};
use self::routes::RouteSet;
pub use self::status::{Condition, ParentRef, ParentStatus, RouteStatus, route_statuses};
use self::table::Table;
use crate::index::{Dirty, Index};
use crate::object::{DEFAULT_TRUST_DOMAIN, Kind, Mesh, NamespacedName, Telemetry};

/// A resource as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The first 16 bytes of the SHA-256 of `bytes`, in hex.
    pub version: Arc<str>,
    /// What the bytes are.
    pub resource_type: ResourceType,
    /// The encoded message.
    pub bytes: Bytes,
}

/// What the control plane was started with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The trust domain that the certificate authority issues in. None: what the Mesh says, for want of an authority.
    pub trust_domain: Option<Arc<str>>,
    /// Seals the tokens of sessions. None: no proxy keeps sessions.
    pub session_key: Option<SessionKey>,
}

/// 32 bytes that only the mesh's proxies are told; wiped when dropped, and compared in constant time.
#[derive(Clone)]
pub struct SessionKey(Zeroizing<[u8; 32]>);

/// Every resource, at one moment.
#[derive(Debug, Clone)]
pub struct Model {
    settings: Settings,
    mesh: Arc<Encoded>,
    mode: v1::MtlsMode,
    /// There are Pods: a workload that nobody knows lets nobody in.
    knows_pods: bool,
    trust_domain: Arc<str>,
    bundles: Table<Arc<Encoded>>,
    addresses: Table<Arc<Encoded>>,
    services: Table<Arc<Encoded>>,
    endpoints: Table<Arc<Encoded>>,
    workloads: Table<Arc<Encoded>>,
    /// Of workloads that are known, or that a policy names.
    inbound: Table<Arc<Encoded>>,
    /// What is said of all workloads of a namespace.
    telemetry: Table<Telemetry>,
    /// Who is let in at workloads of a namespace that nobody knows yet.
    unknown: Table<Arc<v1::InboundPolicy>>,
    /// For workloads that none of the next two is for.
    egress: egress::Shared,
    egress_of_namespaces: Table<egress::Shared>,
    egress_of_workloads: Table<Arc<Encoded>>,
    /// By service.
    routes: Table<Arc<RouteSet>>,
    history: History,
    taken_in: Option<Instant>,
}

// === impl Encoded ===

impl Encoded {
    /// Encodes a message; the same message gives the same bytes and the same version, always and everywhere.
    pub fn new(resource_type: ResourceType, message: &impl Message) -> Self {
        let bytes = Bytes::from(message.encode_to_vec());
        let hash = digest::digest(&digest::SHA256, &bytes);
        let mut version = String::with_capacity(32);
        for byte in hash.as_ref().iter().take(16) {
            for digit in [byte >> 4, byte & 0xf] {
                version.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            }
        }
        Self { version: version.into(), resource_type, bytes }
    }

    /// As carried in the ADS envelope.
    pub fn to_any(&self) -> prost_types::Any {
        prost_types::Any { type_url: self.resource_type.type_url().to_owned(), value: self.bytes.to_vec() }
    }
}

// === impl SessionKey ===

impl SessionKey {
    /// Derived from a secret that stays: the same for every replica that has it, and after restarts.
    pub fn derive(secret: &[u8]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let tag = hmac::sign(&key, b"tulle session persistence");
        Self(Zeroizing::new(tag.as_ref().first_chunk().copied().unwrap_or_default()))
    }
}

impl PartialEq for SessionKey {
    fn eq(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0[..], &other.0[..]).is_ok()
    }
}

impl Eq for SessionKey {}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey")
    }
}

// === impl Settings ===

impl Settings {
    /// The trust domain in force: what the control plane was started with, else the Mesh's, else `cluster.local`.
    pub fn trust_domain(&self, mesh: Option<&Mesh>) -> Arc<str> {
        let written = || mesh?.trust_domain.as_deref().map(Arc::from);
        let set = self.trust_domain.clone();
        set.or_else(written).unwrap_or_else(|| DEFAULT_TRUST_DOMAIN.into())
    }
}

// === impl Model ===

impl Model {
    /// Builds everything from nothing.
    pub fn build(index: &Index, settings: Settings) -> Self {
        let mesh = Arc::new(Encoded::new(ResourceType::Mesh, &v1::Mesh::default()));
        let empty = Self {
            mode: v1::MtlsMode::Unspecified,
            knows_pods: false,
            trust_domain: settings.trust_domain(None),
            settings,
            mesh,
            egress: egress::Shared::new(v1::EgressPolicy::default()),
            egress_of_namespaces: Table::default(),
            egress_of_workloads: Table::default(),
            bundles: Table::default(),
            addresses: Table::default(),
            services: Table::default(),
            endpoints: Table::default(),
            workloads: Table::default(),
            inbound: Table::default(),
            telemetry: Table::default(),
            unknown: Table::default(),
            routes: Table::default(),
            history: History::default(),
            taken_in: None,
        };
        let all = Dirty { all: true, ..Dirty::default() };
        empty.next(index, &all)
    }

    /// The snapshot after this one: looks only at what may have changed, and keeps the rest.
    pub fn next(&self, index: &Index, dirty: &Dirty) -> Self {
        let mut next = Self { taken_in: None, ..self.clone() };
        if dirty.all {
            next.rebuild(index);
            next.history.push(None);
            return next;
        }
        let context = next.context(index);
        let mut changed: Vec<(ResourceType, Arc<str>)> = Vec::new();
        let mut note = |is_new: bool, resource_type: ResourceType, name: &str| {
            if is_new {
                changed.push((resource_type, name.into()));
            }
        };
        for name in &dirty.services {
            let text = name.to_string();
            note(next.services.set(text.clone(), context.service(name)), ResourceType::Service, &text);
        }
        for name in &dirty.endpoints {
            let text = name.to_string();
            note(next.endpoints.set(text.clone(), context.endpoints(name)), ResourceType::Endpoints, &text);
        }
        for name in &dirty.routes {
            let text = name.to_string();
            note(next.routes.set(text.clone(), context.routes(name)), ResourceType::Routes, &text);
        }
        for address in &dirty.addresses {
            let text = address.to_string();
            note(next.addresses.set(text.clone(), context.address(*address)), ResourceType::Address, &text);
        }
        for namespace in &dirty.egress {
            next.egress_of_namespaces.set(namespace.to_string(), context.egress_of_namespace(namespace));
        }
        let shared = |workload: &NamespacedName| {
            next.egress_of_namespaces.get(&workload.namespace).unwrap_or(&next.egress)
        };
        for namespace in &dirty.inbound {
            next.telemetry.set(namespace.to_string(), context.namespace_telemetry(namespace));
            next.unknown.set(namespace.to_string(), context.inbound_of_namespace(namespace));
        }
        for name in &dirty.workloads {
            let text = name.to_string();
            note(next.workloads.set(text.clone(), context.workload(name)), ResourceType::Workload, &text);
            let inbound = context.inbound(name, next.telemetry.get(&name.namespace));
            note(next.inbound.set(text.clone(), inbound), ResourceType::InboundPolicy, &text);
            let egress = context.egress_of_workload(name, shared(name));
            note(next.egress_of_workloads.set(text.clone(), egress), ResourceType::EgressPolicy, &text);
        }
        if !dirty.egress.is_empty() {
            let workloads = index.workloads();
            for workload in workloads.iter().filter(|workload| dirty.egress.contains(&workload.namespace)) {
                let egress = context.egress_of_workload(workload, shared(workload));
                next.egress_of_workloads.set(workload.to_string(), egress);
            }
        }
        if !dirty.inbound.is_empty() {
            let workloads = named(index).into_iter();
            for workload in workloads.filter(|workload| dirty.inbound.contains(&workload.namespace)) {
                let inbound = context.inbound(&workload, next.telemetry.get(&workload.namespace));
                next.inbound.set(workload.to_string(), inbound);
            }
        }
        if dirty.bundles {
            for (domain, bundle) in context.bundles() {
                note(next.bundles.set(domain.clone(), bundle), ResourceType::TrustBundle, &domain);
            }
        }
        // Workloads that nobody knows yet follow a namespace's policy too, so that not all names are known.
        let are_known = dirty.egress.is_empty() && dirty.inbound.is_empty();
        next.history.push(are_known.then_some(changed));
        next
    }

    fn rebuild(&mut self, index: &Index) {
        let default = Mesh::default();
        let mesh = index.mesh().map_or(&default, |stored| &stored.object);
        self.mode = mesh.mode();
        self.knows_pods = index.knows_pods();
        self.trust_domain = self.settings.trust_domain(Some(mesh));
        let context = self.context(index);
        let encoded = Arc::new(context.mesh(mesh));
        if self.mesh != encoded {
            self.mesh = encoded;
        }
        let services = || index.services().map(|stored| &stored.object.name);
        let workloads = index.workloads();
        self.services.replace(services().map(|name| (name.to_string(), context.service(name))));
        self.endpoints.replace(services().map(|name| (name.to_string(), context.endpoints(name))));
        self.routes.replace(services().map(|name| (name.to_string(), context.routes(name))));
        let addresses = index.addresses().into_iter();
        self.addresses.replace(addresses.map(|ip| (ip.to_string(), context.address(ip))));
        self.workloads.replace(workloads.iter().map(|name| (name.to_string(), context.workload(name))));
        let namespaces: BTreeSet<&Arc<str>> =
            index.attached_to(Kind::Namespace).map(|namespace| &namespace.name).collect();
        let each = || namespaces.iter().map(|name| name.to_string());
        self.telemetry.replace(each().map(|name| (name.clone(), context.namespace_telemetry(&name))));
        self.unknown.replace(each().map(|name| (name.clone(), context.inbound_of_namespace(&name))));
        let said = |workload: &NamespacedName| self.telemetry.get(&workload.namespace);
        let inbound = named(index).into_iter();
        self.inbound.replace(inbound.map(|name| (name.to_string(), context.inbound(&name, said(&name)))));
        self.bundles.replace(context.bundles());
        let egress = context.egress_of_mesh();
        if self.egress != egress {
            self.egress = egress;
        }
        let namespaces = index.egress_policies().map(|stored| &stored.object.name.namespace);
        let namespaces: BTreeSet<&Arc<str>> = namespaces.collect();
        let namespaces = namespaces.into_iter();
        self.egress_of_namespaces
            .replace(namespaces.map(|name| (name.to_string(), context.egress_of_namespace(name))));
        let shared = |workload: &NamespacedName| {
            self.egress_of_namespaces.get(&workload.namespace).unwrap_or(&self.egress)
        };
        self.egress_of_workloads.replace(
            workloads.iter().map(|name| (name.to_string(), context.egress_of_workload(name, shared(name)))),
        );
    }

    fn context<'a>(&self, index: &'a Index) -> build::Context<'a> {
        build::Context {
            index,
            trust_domain: self.trust_domain.clone(),
            mode: self.mode,
            session_key: self.settings.session_key.clone(),
        }
    }

    /// A resource by name, or none if there is none of that name (and the name goes into `removed_resources`).
    ///
    /// Names are those of `resources.proto`, without the type. An `InboundPolicy` and an `EgressPolicy` are there for every
    /// workload whose name can be one, known or not (see the [module's documentation](self)).
    pub fn get(&self, resource_type: ResourceType, name: &str) -> Option<Arc<Encoded>> {
        match resource_type {
            ResourceType::Mesh => (name == MESH).then(|| self.mesh.clone()),
            ResourceType::TrustBundle => self.bundles.get(name).cloned(),
            ResourceType::Workload => self.workloads.get(name).cloned(),
            ResourceType::InboundPolicy => {
                let known = self.inbound.get(name).cloned();
                known.or_else(|| self.unknown_inbound(name))
            }
            ResourceType::EgressPolicy => {
                let workload = NamespacedName::parse(name)?;
                let shared = || self.egress_of_namespaces.get(&workload.namespace).unwrap_or(&self.egress);
                Some(self.egress_of_workloads.get(name).unwrap_or_else(|| &shared().other).clone())
            }
            ResourceType::Address => self.addresses.get(name).cloned(),
            ResourceType::Service => self.services.get(name).cloned(),
            ResourceType::Endpoints => self.endpoints.get(name).cloned(),
            ResourceType::Routes => {
                let (client, service) = name.split_once('/')?;
                Some(self.routes.get(service)?.of(client))
            }
        }
    }

    /// What a workload is told that nobody knows yet.
    fn unknown_inbound(&self, name: &str) -> Option<Arc<Encoded>> {
        let name = NamespacedName::parse(name)?;
        let said = self.telemetry.get(&name.namespace);
        let closed = self.knows_pods.then(|| build::nobody(&name.namespace, build::NO_POD));
        let unsaid = || v1::InboundPolicy {
            mode: self.mode.into(),
            rules: closed.into_iter().collect(),
            ..v1::InboundPolicy::default()
        };
        let judging = self.unknown.get(&name.namespace);
        let policy = v1::InboundPolicy {
            workload: Some(build::object_name(&name)),
            access_log: said.and_then(Telemetry::logged),
            sampling: said.and_then(Telemetry::sampled),
            ..judging.map_or_else(unsaid, |judging| v1::InboundPolicy::clone(judging))
        };
        Some(Arc::new(Encoded::new(ResourceType::InboundPolicy, &policy)))
    }

    /// Names of the resources of a type, sorted: for dumps. For [`ResourceType::Routes`], the services; for
    /// [`ResourceType::EgressPolicy`], the workloads that are registered or have one of their own.
    pub fn names(&self, resource_type: ResourceType) -> Vec<Arc<str>> {
        match resource_type {
            ResourceType::Mesh => vec![MESH.into()],
            ResourceType::TrustBundle => self.bundles.names(),
            ResourceType::Workload => self.workloads.names(),
            ResourceType::InboundPolicy => self.inbound.names(),
            ResourceType::EgressPolicy => self.egress_of_workloads.names(),
            ResourceType::Address => self.addresses.names(),
            ResourceType::Service => self.services.names(),
            ResourceType::Endpoints => self.endpoints.names(),
            ResourceType::Routes => self.routes.names(),
        }
    }

    /// Tells this snapshot from the others of its line; each has a greater number than the one before.
    pub fn number(&self) -> u64 {
        self.history.number()
    }

    /// What is not as it was in the snapshot of that number, each by type and name ([`ResourceType::Routes`] by service),
    /// perhaps more than once. `None`: it may be everything, or the snapshot is too old to tell.
    pub fn changed_since(&self, number: u64) -> Option<impl Iterator<Item = (ResourceType, &str)>> {
        self.history.since(number)
    }

    /// When the oldest of the changes that made this snapshot of the one before was taken in; `None` for the first.
    pub fn taken_in(&self) -> Option<Instant> {
        self.taken_in
    }

    /// Says when.
    pub(super) fn taken_in_at(self, taken_in: Option<Instant>) -> Self {
        Self { taken_in, ..self }
    }

    /// The trust domain in force.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The mesh's mode.
    pub fn mode(&self) -> v1::MtlsMode {
        self.mode
    }
}

/// The workloads that are known, and those that policies name.
fn named(index: &Index) -> BTreeSet<NamespacedName> {
    index.workloads().into_iter().chain(index.attached_to(Kind::Workload).cloned()).collect()
}

impl PartialEq for Model {
    /// Whether a proxy would see no difference.
    fn eq(&self, other: &Self) -> bool {
        self.mesh == other.mesh
            && self.bundles == other.bundles
            && self.addresses == other.addresses
            && self.services == other.services
            && self.endpoints == other.endpoints
            && self.workloads == other.workloads
            && self.inbound == other.inbound
            && self.telemetry == other.telemetry
            && self.unknown == other.unknown
            && self.egress == other.egress
            && self.egress_of_namespaces == other.egress_of_namespaces
            && self.egress_of_workloads == other.egress_of_workloads
            && self.routes == other.routes
    }
}

#[cfg(test)]
mod tests;
