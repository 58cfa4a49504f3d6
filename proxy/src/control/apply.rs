//! What an update changes: the only place that writes the snapshot.
//!
//! Decides which resources are subscribed to for what is wanted, and gives each that comes to the state. What cannot
//! be decoded is rejected by name and its last good version stays. Of routes that have none, the rules that can be decoded are put to
//! use beside those that cannot, whose requests are refused. A policy is in force, and open connections are
//! judged by it, before its update is acknowledged.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use foldhash::fast::RandomState;
use prost::Name;
use tulle_api::v1::Rejection;
use tulle_api::{ResourceType, v1};

use super::decode::{self, Decoded};
use super::gate::{Gate, HeldBack};
use super::identity::Identity;
use super::session::{ResourceName, Session, Update};
use crate::endpoint::{EndpointSet, How};
use crate::io;
use crate::policy::{self, Action, EgressSpec};
use crate::route;
use crate::state::{AddressInfo, KnownAddress, ObjectName, ServiceInfo, ServiceState, Snapshot, Store, Want};

/// Writes the state of one proxy.
pub struct Applier {
    store: Arc<Store>,
    connections: Arc<policy::Connections>,
    identity: Arc<Identity>,
    workload: ObjectName,
    gate: Gate,
    /// Addresses that no answer has come about yet, and since when.
    asked: HashMap<IpAddr, u64, RandomState>,
    /// Answers of the update that is being applied.
    learned: Vec<(IpAddr, Option<Arc<AddressInfo>>)>,
    workers: usize,
    /// This proxy's own, by its configuration, until the control plane knows better: it does not know every workload's.
    zone: Option<Arc<str>>,
}

/// What became of an update.
#[derive(Debug, Default)]
pub struct Applied {
    pub rejected: Vec<Rejection>,
    /// Those of `rejected`, by name, that are in force but for the part that cannot be read: nothing better was known.
    pub partly: Vec<String>,
    /// What the update's resources lead to.
    pub wanted: Vec<ResourceName>,
    /// What had to be forgotten to make room for them.
    pub unwanted: Vec<ResourceName>,
}

impl Applied {
    /// What holds of a resource of which something was rejected, for people.
    pub fn meanwhile(&self, resource: &str) -> &'static str {
        if self.partly.iter().any(|partly| partly == resource) {
            "rejected a part of a resource: what is for that is answered 500, the rest is in force"
        } else {
            "rejected a resource: what was in force before, if anything was, stays so"
        }
    }
}

/// A service or address that nothing has used for this long, in seconds, is unsubscribed.
const UNUSED: u64 = 600;
/// Addresses outside the mesh that are remembered, at most: a program that dials everything must not make the proxy
/// grow. Beyond, the least recently used go, a tenth at once. As many may wait for their answer.
const MAX_ABSENT: usize = 10_000;
/// An address that was asked about this long ago, in seconds, without an answer is no longer asked about: who waited
/// for it was refused after a second.
const UNANSWERED: u64 = 60;

impl Applier {
    pub fn new(
        store: Arc<Store>,
        connections: Arc<policy::Connections>,
        identity: Arc<Identity>,
        workload: ObjectName,
        gate: Gate,
        workers: usize,
    ) -> Self {
        Self {
            store,
            connections,
            identity,
            workload,
            gate,
            asked: HashMap::default(),
            learned: Vec::new(),
            workers,
            zone: None,
        }
    }

    /// The proxy runs in this zone, unless the control plane says otherwise.
    #[must_use]
    pub fn in_zone(mut self, zone: &str) -> Self {
        self.zone = Some(zone).filter(|zone| !zone.is_empty()).map(Arc::from);
        self
    }

    /// The workload is registered; returns what must be asked for again, since only what comes now counts.
    pub fn registered(&mut self) -> [ResourceName; 2] {
        self.gate.registered();
        let own = self.workload.to_string();
        [resource::<v1::InboundPolicy>(own.clone()), resource::<v1::EgressPolicy>(own)]
    }

    /// The roots of `trust_domain`, which may have to be asked for again.
    pub fn roots(&self, trust_domain: String) -> ResourceName {
        resource::<v1::TrustBundle>(trust_domain)
    }

    /// What a proxy of `trust_domain` subscribes to before anything is used.
    pub fn always(&self, trust_domain: String) -> Vec<ResourceName> {
        let own = self.workload.to_string();
        vec![
            resource::<v1::Mesh>(tulle_api::MESH.to_owned()),
            resource::<v1::Workload>(own.clone()),
            resource::<v1::InboundPolicy>(own.clone()),
            resource::<v1::EgressPolicy>(own),
            resource::<v1::TrustBundle>(trust_domain),
        ]
    }

    /// What to subscribe to so that a question is answered.
    pub fn want(&mut self, want: &Want) -> Vec<ResourceName> {
        match want {
            Want::Address(ip) => {
                if self.asked.len() >= MAX_ABSENT && !self.asked.contains_key(ip) {
                    // It is asked for again at its next use.
                    return Vec::new();
                }
                self.asked.entry(*ip).or_insert_with(|| self.store.now());
                vec![address(*ip)]
            }
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
    pub fn forget(&mut self) -> Vec<ResourceName> {
        self.forget_at(self.store.now())
    }

    fn forget_at(&mut self, now: u64) -> Vec<ResourceName> {
        let old = |since: u64, limit: u64| now.saturating_sub(since) > limit;
        let unanswered = self.asked.extract_if(|_, since| old(*since, UNANSWERED));
        let mut forgotten: Vec<ResourceName> = unanswered.map(|(ip, _)| address(ip)).collect();
        let snapshot = self.store.load();
        // A connection that is open holds on to its service.
        let unused = snapshot.services.values().filter(|service| Arc::strong_count(service) == 1);
        let unused = unused.filter(|service| old(service.last_used(), UNUSED)).cloned();
        let unused: Vec<Arc<ServiceState>> = unused.collect();
        let idle = snapshot.addresses.iter().filter(|(_, known)| old(known.last_used(), UNUSED));
        let idle: Vec<IpAddr> = idle.map(|(ip, _)| *ip).collect();
        drop(snapshot);
        if unused.is_empty() && idle.is_empty() {
            return forgotten;
        }
        self.store.update(|snapshot| {
            unused.iter().for_each(|service| drop(snapshot.services.remove(&service.name)));
            idle.iter().for_each(|ip| drop(snapshot.addresses.remove(ip)));
        });
        // Who has just taken one up, or still may out of the last snapshot, would have it for as long as its connection lasts,
        // and hear of no change.
        let (taken, unused): (Vec<_>, Vec<_>) =
            unused.into_iter().partition(|service| Arc::strong_count(service) > 1);
        if !taken.is_empty() {
            self.store.update(|snapshot| {
                let taken = taken.into_iter().map(|service| (service.name.clone(), service));
                snapshot.services.extend(taken);
            });
        }
        forgotten.extend(unused.iter().flat_map(|service| self.service_resources(&service.name)));
        forgotten.extend(idle.into_iter().map(address));
        forgotten
    }

    /// Forgets the least recently used absent addresses if there are too many; returns what to unsubscribe from.
    fn make_room(&self) -> Vec<ResourceName> {
        let snapshot = self.store.load();
        let mut absent: Vec<(u64, IpAddr)> = snapshot
            .addresses
            .iter()
            .filter(|(_, known)| known.info.is_none())
            .map(|(ip, known)| (known.last_used(), *ip))
            .collect();
        drop(snapshot);
        if absent.len() <= MAX_ABSENT {
            return Vec::new();
        }
        absent.sort_unstable();
        absent.truncate(absent.len() - MAX_ABSENT * 9 / 10);
        self.store.update(|snapshot| {
            absent.iter().for_each(|(_, ip)| drop(snapshot.addresses.remove(ip)));
        });
        absent.into_iter().map(|(_, ip)| address(ip)).collect()
    }

    /// What is not in use as it was told and accepted: nothing, unless something is wrong here.
    pub fn lost(&self, session: &Session) -> Vec<ResourceName> {
        let snapshot = self.store.load();
        let lost = session.told().filter(|(type_url, name, is_held)| {
            ResourceType::from_type_url(type_url)
                .is_some_and(|kind| !is_as_told(&snapshot, kind, name, *is_held))
        });
        lost.map(|(type_url, name, _)| ResourceName { type_url: type_url.to_owned(), name: name.to_owned() })
            .collect()
    }

    /// Puts an update to use, as far as it can be.
    pub fn apply(&mut self, update: &Update) -> Applied {
        let mut applied = Applied::default();
        for received in &update.resources {
            match decode::any(&update.type_url, &received.name, &received.resource) {
                Ok(decoded) => {
                    if let Decoded::Routes(routes) = &decoded {
                        let rejections = decode::rejections(&received.name, routes);
                        let is_whole = rejections.is_empty();
                        applied.rejected.extend(rejections);
                        if !is_whole {
                            if self.has_good_routes(&routes.service) {
                                continue;
                            }
                            applied.partly.push(received.name.clone());
                        }
                    }
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
        self.learn();
        if update.type_url == v1::Address::type_url() && !update.removed.is_empty() {
            applied.unwanted = self.make_room();
        }
        self.store.announce();
        applied
    }

    /// Whether routes to the service are in use of which every rule was decoded.
    fn has_good_routes(&self, service: &ObjectName) -> bool {
        let routes = self.service(service).and_then(|service| service.routes());
        routes.is_some_and(|table| decode::rejections("", table.routes()).is_empty())
    }

    fn put(&mut self, decoded: Decoded, wanted: &mut Vec<ResourceName>) -> Result<(), String> {
        let store = Arc::clone(&self.store);
        match decoded {
            Decoded::Mesh(mesh) => store.update(|snapshot| snapshot.mesh = Some(Arc::from(mesh))),
            Decoded::Workload(mut workload) => {
                // What goes to these is taken for one's own, and given to the application in plain text.
                workload.addresses.retain(|ip| io::is_own_address(*ip));
                store.update(|snapshot| snapshot.workload = Some(Arc::new(workload)));
                let services: Vec<_> = store.load().services.values().cloned().collect();
                services.iter().for_each(|service| self.rebalance(service));
            }
            Decoded::InboundPolicy(mut spec) => {
                if let Err(why) = self.gate.check(&spec) {
                    held_back("InboundPolicy", &why);
                    return Ok(());
                }
                // Known when the first request comes that they are asked about.
                let authorizers = spec.external.iter().filter(|one| one.invalid.is_none());
                let authorizers: Vec<_> = authorizers.map(|one| one.service.clone()).collect();
                for service in authorizers {
                    wanted.extend(self.want(&Want::Service(service)));
                }
                spec.trust_domain = self.identity.load().as_ref().map(|creds| creds.id().trust_domain());
                let old = store.load().inbound.clone();
                let inbound = Arc::new(policy::Inbound::after(old.as_deref(), *spec, Instant::now()));
                store.update(|snapshot| snapshot.inbound = Some(Arc::clone(&inbound)));
                let cut = self.connections.rejudge(&inbound);
                if cut > 0 {
                    tracing::info!(connections = cut, "a change of policy has cut open connections");
                }
            }
            Decoded::EgressPolicy { spec, registered } => match self.gate.check_egress(registered) {
                Ok(()) => self.put_egress(spec),
                Err(why) => held_back("EgressPolicy", &why),
            },
            Decoded::TrustBundle(bundle) => {
                self.identity.set_bundle(bundle, SystemTime::now()).map_err(|error| error.to_string())?;
            }
            Decoded::Address(info) => self.learned.push((info.ip, Some(Arc::new(info)))),
            Decoded::Service(info) => {
                if let Some(service) = self.service(&info.name) {
                    // Endpoints and routes may be told before it, and then requests are sent as soon as it is there: by its balancer.
                    self.rebalance_for(&service, Some(&info));
                    service.set_info(Some(Arc::new(info)));
                }
            }
            Decoded::Endpoints(info) => {
                if let Some(service) = self.service(&info.name) {
                    let old = service.endpoints();
                    let told = service.info();
                    let balanced = self
                        .balanced(told.as_deref(), |how| EndpointSet::applied(old.as_deref(), &info, how));
                    service.set_endpoints(balanced);
                }
            }
            Decoded::Routes(routes) => {
                // A backend that is asked for now is there when the first request comes.
                for rule in routes.routes.iter().flat_map(|route| &route.rules).map(|rule| &rule.rule) {
                    let backends = rule.backends.iter();
                    let backends = backends.filter(|backend| backend.weight > 0 && backend.invalid.is_none());
                    let mirrors = rule.filters.iter().flat_map(|filters| &filters.mirrors);
                    let services = backends.map(|one| &one.service).chain(mirrors.map(|one| &one.service));
                    for service in services {
                        wanted.extend(self.want(&Want::Service(service.clone())));
                    }
                }
                let backends = routes.streams.iter().flat_map(|route| &route.backends);
                for backend in backends.filter(|backend| backend.weight > 0 && backend.invalid.is_none()) {
                    wanted.extend(self.want(&Want::Service(backend.service.clone())));
                }
                if let Some(service) = self.service(&routes.service) {
                    service.set_routes(Some(Arc::new(route::Table::new(routes))));
                }
            }
        }
        Ok(())
    }

    fn put_egress(&self, spec: EgressSpec) {
        let egress = Arc::new(policy::Egress::new(spec));
        self.store.update(|snapshot| snapshot.egress = Some(Arc::clone(&egress)));
        let cut = self.connections.rejudge_egress(&egress);
        if cut > 0 {
            tracing::info!(connections = cut, "a change of policy has cut connections that leave the mesh");
        }
    }

    /// The control plane has no such resource (any more).
    fn remove(&mut self, type_url: &str, name: &str) {
        let store = Arc::clone(&self.store);
        let service = |applier: &Self, name: &str| name.parse().ok().and_then(|name| applier.service(&name));
        if type_url == v1::Address::type_url() {
            if let Ok(ip) = name.parse() {
                self.learned.push((ip, None));
            }
        } else if type_url == v1::Service::type_url() {
            if let Some(service) = service(self, name) {
                service.set_info(None);
                self.rebalance(&service);
            }
        } else if type_url == v1::Endpoints::type_url() {
            if let Some(service) = service(self, name) {
                service.set_endpoints(EndpointSet::default());
            }
        } else if type_url == v1::Routes::type_url() {
            let name = name.split_once('/').map_or("", |(_, name)| name);
            if let Some(service) = service(self, name) {
                service.set_routes(None);
            }
        } else if type_url == v1::InboundPolicy::type_url() {
            // Without a policy nothing is let in: that fails closed, and loudly.
            tracing::error!(name, "the control plane has no InboundPolicy for this workload");
            store.update(|snapshot| snapshot.inbound = None);
            let cut = self.connections.revoke_all();
            if cut > 0 {
                tracing::info!(connections = cut, "without a policy, open connections were cut");
            }
        } else if type_url == v1::EgressPolicy::type_url() && store.load().egress.is_none() {
            // One that knows policies for egress has one for everybody; where there are none, nothing can be denied.
            tracing::warn!(
                name,
                "the control plane knows no EgressPolicy; what lies outside the mesh may be reached"
            );
            let action_name = "unknown".into();
            self.put_egress(EgressSpec { action: Action::Allow, action_name, rules: Vec::new() });
        } else if type_url == v1::Workload::type_url() {
            // Nobody knows a workload before it registers, and not everyone does.
            tracing::debug!(name, "the control plane does not know this workload");
            store.update(|snapshot| snapshot.workload = None);
        } else {
            tracing::warn!(
                type_url,
                name,
                "the control plane has no such resource; what is known stays in use"
            );
        }
    }

    /// Takes in answers about addresses, all at once: each change copies the snapshot's map. One counts as used when it
    /// was asked about, else since it last was.
    fn learn(&mut self) {
        let learned = std::mem::take(&mut self.learned);
        if learned.is_empty() {
            return;
        }
        let now = self.store.now();
        let asked: Vec<Option<u64>> = learned.iter().map(|(ip, _)| self.asked.remove(ip)).collect();
        self.store.update(|snapshot| {
            for ((ip, info), asked) in learned.into_iter().zip(asked) {
                let known = snapshot.addresses.get(&ip).map(|known| known.last_used());
                let used = known.max(asked).unwrap_or(now);
                snapshot.addresses.insert(ip, Arc::new(KnownAddress::new(info, used)));
            }
        });
    }

    /// The service is treated otherwise, or this proxy's own zone has become known.
    fn rebalance(&self, service: &ServiceState) {
        self.rebalance_for(service, service.info().as_deref());
    }

    fn rebalance_for(&self, service: &ServiceState, info: Option<&ServiceInfo>) {
        if let Some(endpoints) = service.endpoints() {
            service.set_endpoints(self.balanced(info, |how| endpoints.balanced(how)));
        }
    }

    fn balanced(
        &self,
        info: Option<&ServiceInfo>,
        balance: impl FnOnce(&How<'_>) -> EndpointSet,
    ) -> EndpointSet {
        let workload = self.store.load().workload.clone();
        balance(&How {
            service: info,
            zone: workload.as_ref().and_then(|workload| workload.zone.as_deref()).or(self.zone.as_deref()),
            now: self.store.nanos(),
            random: rand::random(),
            workers: self.workers,
        })
    }

    fn service(&self, name: &ObjectName) -> Option<Arc<ServiceState>> {
        self.store.load().services.get(name).cloned()
    }
}

/// Expected at every start; later the last policy stays in force, and that must be seen.
fn held_back(kind: &str, why: &HeldBack) {
    match why {
        HeldBack::NotRegistered => tracing::debug!(%why, "held back an {kind}"),
        HeldBack::PortUnknown(_) | HeldBack::Unregistered => {
            tracing::warn!(%why, "held back an {kind}; what is in force stays");
        }
    }
}

/// Whether the snapshot has a resource if it is held, and has heard that there is none if it is not.
fn is_as_told(snapshot: &Snapshot, kind: ResourceType, name: &str, is_held: bool) -> bool {
    let service = |name: &str| name.parse().ok().and_then(|name: ObjectName| snapshot.services.get(&name));
    match kind {
        ResourceType::Mesh => snapshot.mesh.is_some() || !is_held,
        ResourceType::Workload => snapshot.workload.is_some() == is_held,
        ResourceType::Address => {
            let known = name.parse().ok().and_then(|ip: IpAddr| snapshot.addresses.get(&ip));
            known.is_some_and(|known| known.info.is_some() == is_held)
        }
        ResourceType::Service => service(name).is_some_and(|service| service.info().is_some() == is_held),
        ResourceType::Endpoints => service(name)
            .and_then(|service| service.endpoints())
            .is_some_and(|endpoints| is_held || endpoints.all().next().is_none()),
        ResourceType::Routes => {
            let name = name.split_once('/').map_or("", |(_, name)| name);
            service(name).is_some_and(|service| service.routes().is_some() == is_held)
        }
        // The last ones stay in use whatever comes, and a policy may be held back by the gate.
        ResourceType::TrustBundle | ResourceType::InboundPolicy | ResourceType::EgressPolicy => true,
    }
}

fn address(ip: IpAddr) -> ResourceName {
    resource::<v1::Address>(ip.to_string())
}

fn resource<M: Name>(name: String) -> ResourceName {
    ResourceName { type_url: M::type_url(), name }
}

#[cfg(test)]
mod tests;
