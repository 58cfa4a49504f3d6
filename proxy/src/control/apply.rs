//! What an update changes: the only place that writes the snapshot.
//!
//! Decides which resources are subscribed to for what is wanted, and gives each that comes to the state. What cannot
//! be decoded is rejected by name and its last good version stays. A policy is in force, and open connections are
//! judged by it, before its update is acknowledged.

use std::sync::Arc;
use std::time::SystemTime;

use prost::Name;
use tulle_api::v1;
use tulle_api::v1::Rejection;

use super::decode::{self, Decoded};
use super::gate::{Gate, HeldBack};
use super::identity::Identity;
use super::session::{ResourceName, Update};
use crate::endpoint::EndpointSet;
use crate::policy;
use crate::route;
use crate::state::{ObjectName, ServiceState, Store, Want};

/// Writes the state of one proxy.
pub struct Applier {
    store: Arc<Store>,
    connections: Arc<policy::Connections>,
    identity: Arc<Identity>,
    workload: ObjectName,
    gate: Gate,
    workers: usize,
}

/// What became of an update.
#[derive(Debug, Default)]
pub struct Applied {
    pub rejected: Vec<Rejection>,
    /// What the update's resources lead to.
    pub wanted: Vec<ResourceName>,
}

/// A service that nothing has used for this long, in seconds, is unsubscribed.
const UNUSED: u64 = 600;
/// Addresses that are remembered, at most; beyond, all are forgotten, and asked for again when used.
const MAX_ADDRESSES: usize = 10_000;

impl Applier {
    pub fn new(
        store: Arc<Store>,
        connections: Arc<policy::Connections>,
        identity: Arc<Identity>,
        workload: ObjectName,
        gate: Gate,
        workers: usize,
    ) -> Self {
        Self { store, connections, identity, workload, gate, workers }
    }

    /// The workload is registered; returns what must be asked for again, since only what comes now counts.
    pub fn registered(&mut self) -> ResourceName {
        self.gate.registered();
        resource::<v1::InboundPolicy>(self.workload.to_string())
    }

    /// What a proxy of `trust_domain` subscribes to before anything is used.
    pub fn always(&self, trust_domain: String) -> Vec<ResourceName> {
        let own = self.workload.to_string();
        vec![
            resource::<v1::Mesh>(tulle_api::MESH.to_owned()),
            resource::<v1::Workload>(own.clone()),
            resource::<v1::InboundPolicy>(own),
            resource::<v1::TrustBundle>(trust_domain),
        ]
    }

    /// What to subscribe to so that a question is answered.
    pub fn want(&self, want: &Want) -> Vec<ResourceName> {
        match want {
            Want::Address(ip) => vec![resource::<v1::Address>(ip.to_string())],
            Want::Service(name) => {
                if !self.store.load().services.contains_key(name) {
                    let state = Arc::new(ServiceState::new(name.clone()));
                    state.touch(self.store.now());
                    self.store.update(|snapshot| {
                        snapshot.services.insert(name.clone(), state);
                    });
                }
                self.service_resources(name)
            }
        }
    }

    fn service_resources(&self, name: &ObjectName) -> Vec<ResourceName> {
        vec![
            resource::<v1::Service>(name.to_string()),
            resource::<v1::Endpoints>(name.to_string()),
            resource::<v1::Routes>(format!("{}/{name}", self.workload.namespace)),
        ]
    }

    /// Forgets what has not been used for long; returns what to unsubscribe from.
    pub fn forget(&self) -> Vec<ResourceName> {
        let now = self.store.now();
        let snapshot = self.store.load();
        let unused: Vec<ObjectName> = snapshot
            .services
            .values()
            .filter(|service| {
                // A connection that is open holds on to its service.
                let held = Arc::strong_count(service) > 1;
                !held && now.saturating_sub(service.last_used()) > UNUSED
            })
            .map(|service| service.name.clone())
            .collect();
        let forget_addresses = snapshot.addresses.len() > MAX_ADDRESSES;
        let mut forgotten: Vec<_> = unused.iter().flat_map(|name| self.service_resources(name)).collect();
        if forget_addresses {
            forgotten.extend(snapshot.addresses.keys().map(|ip| resource::<v1::Address>(ip.to_string())));
        }
        drop(snapshot);
        if !forgotten.is_empty() {
            self.store.update(|snapshot| {
                for name in &unused {
                    snapshot.services.remove(name);
                }
                if forget_addresses {
                    snapshot.addresses.clear();
                }
            });
        }
        forgotten
    }

    /// Puts an update to use, as far as it can be.
    pub fn apply(&self, update: &Update) -> Applied {
        let mut applied = Applied::default();
        for received in &update.resources {
            match decode::decode(&update.type_url, &received.name, &received.resource.value) {
                Ok(decoded) => {
                    if let Err(reason) = self.put(decoded, &mut applied.wanted) {
                        let (resource, field) = (received.name.clone(), String::new());
                        applied.rejected.push(Rejection { resource, field, reason });
                    }
                }
                Err(rejection) => applied.rejected.push(rejection),
            }
        }
        for name in &update.removed {
            self.remove(&update.type_url, name);
        }
        self.store.announce();
        applied
    }

    fn put(&self, decoded: Decoded, wanted: &mut Vec<ResourceName>) -> Result<(), String> {
        let store = &*self.store;
        match decoded {
            Decoded::Mesh(mesh) => store.update(|snapshot| snapshot.mesh = Some(Arc::new(mesh))),
            Decoded::Workload(workload) => {
                store.update(|snapshot| snapshot.workload = Some(Arc::new(workload)));
            }
            Decoded::InboundPolicy(spec) => {
                if let Err(why) = self.gate.check(&spec) {
                    // Expected once at every start; later the last policy stays in force, and that must be seen.
                    match why {
                        HeldBack::NotRegistered => tracing::debug!(%why, "held back an InboundPolicy"),
                        HeldBack::PortUnknown(_) => {
                            tracing::warn!(%why, "held back an InboundPolicy; what is in force stays")
                        }
                    }
                    return Ok(());
                }
                let inbound = Arc::new(policy::Inbound::new(spec));
                store.update(|snapshot| snapshot.inbound = Some(Arc::clone(&inbound)));
                let cut = self.connections.rejudge(&inbound);
                if cut > 0 {
                    tracing::info!(connections = cut, "a change of policy has cut open connections");
                }
            }
            Decoded::TrustBundle(bundle) => {
                self.identity.set_bundle(bundle, SystemTime::now()).map_err(|error| error.to_string())?;
            }
            Decoded::Address(info) => store.update(|snapshot| {
                snapshot.addresses.insert(info.ip, Some(Arc::new(info)));
            }),
            Decoded::Service(info) => {
                if let Some(service) = self.service(&info.name) {
                    service.set_info(Some(Arc::new(info)));
                }
            }
            Decoded::Endpoints(info) => {
                if let Some(service) = self.service(&info.name) {
                    let old = service.endpoints();
                    service.set_endpoints(EndpointSet::apply(old.as_deref(), &info, self.workers));
                }
            }
            Decoded::Routes(routes) => {
                // A backend that is asked for now is there when the first request comes.
                for backend in
                    routes.routes.iter().flat_map(|route| &route.rules).flat_map(|r| &r.rule.backends)
                {
                    if backend.weight > 0 && backend.invalid.is_none() {
                        wanted.extend(self.want(&Want::Service(backend.service.clone())));
                    }
                }
                if let Some(service) = self.service(&routes.service) {
                    service.set_routes(Some(Arc::new(route::Table::new(routes))));
                }
            }
        }
        Ok(())
    }

    /// The control plane has no such resource (any more).
    fn remove(&self, type_url: &str, name: &str) {
        let store = &*self.store;
        let service = |name: &str| name.parse().ok().and_then(|name| self.service(&name));
        if type_url == v1::Address::type_url() {
            if let Ok(ip) = name.parse() {
                store.update(|snapshot| {
                    snapshot.addresses.insert(ip, None);
                });
            }
        } else if type_url == v1::Service::type_url() {
            if let Some(service) = service(name) {
                service.set_info(None);
            }
        } else if type_url == v1::Endpoints::type_url() {
            if let Some(service) = service(name) {
                service.set_endpoints(EndpointSet::default());
            }
        } else if type_url == v1::Routes::type_url() {
            let name = name.split_once('/').map_or("", |(_, name)| name);
            if let Some(service) = service(name) {
                service.set_routes(None);
            }
        } else if type_url == v1::InboundPolicy::type_url() {
            // Without a policy nothing is let in: that fails closed, and loudly.
            tracing::error!(name, "the control plane has no InboundPolicy for this workload");
            store.update(|snapshot| snapshot.inbound = None);
        } else {
            tracing::warn!(
                type_url,
                name,
                "the control plane has no such resource; what is known stays in use"
            );
        }
    }

    fn service(&self, name: &ObjectName) -> Option<Arc<ServiceState>> {
        self.store.load().services.get(name).cloned()
    }
}

fn resource<M: Name>(name: String) -> ResourceName {
    ResourceName { type_url: M::type_url(), name }
}
