//! What several control planes tell each other of registrations: for each service of one, a [`Part`].
//!
//! Decides which of what the others say is in force here: nothing that is registered here too, nothing that its identity may not register
//! for, and of two identities that use the name of one workload the first. Each is looked at again with every change.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest;
use tulle_certs::SpiffeId;

use super::{Held, Known, Registrations};
use crate::index::{Registration, RegistrationId};
use crate::object::NamespacedName;

/// One service of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it is called everywhere: by who and where it is, whatever else is said of it.
    pub key: NamespacedName,
    /// Who.
    pub workload: NamespacedName,
    /// Of the same namespace.
    pub identity: SpiffeId,
    /// What clients dial.
    pub address: IpAddr,
    /// By name; in the workload's namespace.
    pub service: Arc<str>,
    /// (service port, port to dial), sorted.
    pub ports: Vec<(u16, u16)>,
    /// Empty when unknown.
    pub region: String,
    /// Empty when unknown.
    pub zone: String,
    /// False while draining.
    pub ready: bool,
}

/// A part that a stream of this control plane stands for.
#[derive(Debug, Clone)]
pub struct HeldPart {
    /// What is said.
    pub part: Arc<Part>,
    /// When it was first said by this stream.
    pub since: tokio::time::Instant,
}

/// A part that another control plane stands for.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) part: Arc<Part>,
    /// As what it is in force.
    published: Option<RegistrationId>,
    /// What is in force is what was told before.
    outdated: bool,
    /// What is told of it is not believed, and that is logged.
    unbelieved: bool,
}

// === impl Part ===

impl Part {
    /// Those of a registration of `identity`, one for each service that it names ports of.
    pub fn of(registration: &Registration, identity: &SpiffeId) -> Vec<Arc<Self>> {
        let mut ports: BTreeMap<&Arc<str>, Vec<(u16, u16)>> = BTreeMap::new();
        for (service, number, port) in &registration.ports {
            ports.entry(&service.name).or_default().push((*number, *port));
        }
        let parts = ports.into_iter().map(|(service, ports)| Self {
            key: key(registration, identity, service, &ports),
            workload: registration.workload.clone(),
            identity: identity.clone(),
            address: registration.address,
            service: Arc::clone(service),
            ports,
            region: registration.region.clone(),
            zone: registration.zone.clone(),
            ready: registration.ready,
        });
        parts.map(Arc::new).collect()
    }

    fn registration(&self) -> Registration {
        let service = NamespacedName::new(self.workload.namespace.clone(), Arc::clone(&self.service));
        let ports = self.ports.iter().map(|(number, port)| (service.clone(), *number, *port));
        Registration {
            workload: self.workload.clone(),
            spiffe_id: self.identity.as_str().into(),
            address: self.address,
            ports: ports.collect(),
            region: self.region.clone(),
            zone: self.zone.clone(),
            ready: self.ready,
            told: true,
        }
    }
}

/// Nobody finds another place of the same key.
fn key(
    registration: &Registration,
    identity: &SpiffeId,
    service: &str,
    ports: &[(u16, u16)],
) -> NamespacedName {
    let Registration { workload, address, .. } = registration;
    let mut text = format!("{workload}\n{identity}\n{address}\n{service}");
    for (number, port) in ports {
        text.push_str(&format!("\n{number}:{port}"));
    }
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    let mut name = format!("tulle-{service}-");
    for byte in hash.as_ref().iter().take(10) {
        name.push_str(&format!("{byte:02x}"));
    }
    NamespacedName::new(workload.namespace.clone(), name)
}

// === impl Told ===

impl Told {
    /// Whether it is in force, and `workload` is its identity's and not `identity`'s.
    pub(super) fn takes(&self, workload: &str, identity: &str) -> bool {
        self.published.is_some()
            && self.part.identity.as_str() != identity
            && self.part.workload.to_string() == workload
    }
}

// === impl Registrations ===

impl Registrations {
    /// What streams of this control plane stand for, and the number of the last change to that; for [`Registrations::kept`].
    pub fn parts(&self) -> (u64, Vec<HeldPart>) {
        let held = self.held.lock();
        let known = held.awaited.values().chain(held.live.values());
        let parts = known.flat_map(|known| {
            known.parts.iter().map(|part| HeldPart { part: Arc::clone(part), since: known.since })
        });
        (held.changes, parts.collect())
    }

    /// Returns once what [`Registrations::parts`] says may have changed.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes in all that the others stand for now, the oldest first.
    pub fn tell(&self, parts: Vec<Arc<Part>>) {
        let mut held = self.held.lock();
        let before = std::mem::take(&mut held.told).into_iter();
        let mut before: BTreeMap<NamespacedName, Told> =
            before.map(|told| (told.part.key.clone(), told)).collect();
        held.told = parts
            .into_iter()
            .map(|part| match before.remove(&part.key) {
                Some(told) if told.part == part => told,
                Some(told) => Told { part, outdated: true, ..told },
                None => Told { part, published: None, outdated: false, unbelieved: false },
            })
            .collect();
        self.settle(&mut held);
        // Only now: what is told in place of it is in force.
        for told in before.into_values() {
            if let Some(id) = told.published {
                self.publisher.unregister(id);
            }
        }
    }

    /// Looks again at what is told and was not believed: its identity may have joined meanwhile.
    pub fn look_again(&self) {
        let mut held = self.held.lock();
        if held.told.iter().any(|told| told.unbelieved) {
            self.settle(&mut held);
        }
    }

    /// Brings what is told in force, or takes it back.
    pub(super) fn settle(&self, held: &mut Held) {
        let moved = held.moved();
        for id in &moved {
            held.remove(*id);
        }
        let mut told = std::mem::take(&mut held.told);
        let mut names: BTreeMap<String, SpiffeId> = BTreeMap::new();
        for one in &mut told {
            let wanted = held.leaves(&one.part) && one.is_permitted(&self.permit) && {
                let name = names.entry(one.part.workload.to_string());
                *name.or_insert_with(|| one.part.identity.clone()) == one.part.identity
            };
            match one.published {
                Some(_) if wanted && !one.outdated => {}
                before if wanted => {
                    let submitted = self.publisher.submit(one.part.registration(), before);
                    one.published = Some(submitted.registered.id);
                }
                Some(id) => {
                    self.publisher.unregister(id);
                    one.published = None;
                }
                None => {}
            }
            one.outdated = false;
        }
        held.told = told;
        for id in moved {
            self.publisher.unregister(id);
        }
    }
}

impl Told {
    /// Whether its identity has joined by a token that names the service, as if it had registered here.
    fn is_permitted(&mut self, permit: &super::Permit) -> bool {
        let permitted = permit(&self.part.identity, &self.part.service);
        if let Err(error) = &permitted
            && !std::mem::replace(&mut self.unbelieved, true)
        {
            tracing::warn!(
                workload = %self.part.workload, %error,
                "an EndpointSlice says that this workload is registered; that is not believed"
            );
        }
        self.unbelieved = permitted.is_err();
        permitted.is_ok()
    }
}

// === impl Held ===

impl Held {
    /// Registrations that are waited for, and whose every part another control plane stands for by now.
    fn moved(&self) -> Vec<RegistrationId> {
        let told = |part: &Arc<Part>| self.told.iter().any(|told| told.part.key == part.key);
        let moved = |known: &Known| !known.parts.is_empty() && known.parts.iter().all(told);
        self.awaited.iter().filter(|(_, known)| moved(known)).map(|(id, _)| *id).collect()
    }

    /// Whether nothing here speaks of the same place, or of another identity's workload by the name.
    fn leaves(&self, part: &Part) -> bool {
        let workload = part.workload.to_string();
        let mut known = self.of_workload(&workload);
        !known.any(|(_, known)| {
            known.spiffe_id != part.identity.as_str() || known.parts.iter().any(|here| here.key == part.key)
        })
    }
}
