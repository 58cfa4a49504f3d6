//! One resource at a time, from the index: pure, total and deterministic (everything is sorted).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use tulle_api::{ResourceType, v1};

use super::modes::Modes;
use super::patterns::room_of_service;
use super::resilience::Attached;
use super::{Encoded, SessionKey};
use crate::index::{Behind, Index, VIRTUAL_NETWORKS};
use crate::object::{Mesh, NamespacedName, OWN_PORTS, Pod, Service, Slice, SliceEndpoint, TargetPort};

/// What every resource is built from.
pub(super) struct Context<'a> {
    pub(super) index: &'a Index,
    pub(super) trust_domain: Arc<str>,
    pub(super) mode: v1::MtlsMode,
    pub(super) session_key: Option<SessionKey>,
}

/// What tells endpoints apart: the address, and each service port with the port to dial.
type EndpointKey = (IpAddr, Vec<(u16, u16)>);

/// Why nobody is let in to a workload of a cluster that is no Pod with a proxy, and has not registered: what holds for it is not known.
pub(super) const NO_POD: &str = "control-plane:no-pod-with-a-proxy/nobody";

/// What a Pod says of the zone that it is in, where no slice does.
const ZONE: &str = "topology.kubernetes.io/zone";

/// A port of a workload, and the service's port that it serves.
#[derive(PartialEq, Eq)]
pub(super) struct Serving {
    pub(super) service: NamespacedName,
    /// None where the slice's port name is none of the service's.
    pub(super) service_port: Option<u16>,
    /// The port that clients dial.
    pub(super) port: u16,
}

// === impl Context ===

impl Context<'_> {
    pub(super) fn mesh(&self, mesh: &Mesh) -> Encoded {
        let message = v1::Mesh {
            trust_domain: self.trust_domain.to_string(),
            mtls: self.mode.into(),
            networks: mesh.networks.iter().chain(&VIRTUAL_NETWORKS).map(ToString::to_string).collect(),
            session_key: self.session_key.as_ref().map(|key| key.0.to_vec()).unwrap_or_default().into(),
            tracing: mesh.tracing.clone(),
            access_log: (mesh.access_log != v1::AccessLog::default()).then(|| mesh.access_log.clone()),
        };
        Encoded::new(ResourceType::Mesh, &message)
    }

    pub(super) fn bundles(&self) -> Vec<(String, Option<Arc<Encoded>>)> {
        let bundles = self.index.bundles();
        bundles
            .map(|(domain, authorities)| {
                let message = v1::TrustBundle {
                    trust_domain: domain.to_owned(),
                    x509_authorities: authorities.to_vec(),
                };
                (domain.to_owned(), encode(ResourceType::TrustBundle, &message))
            })
            .collect()
    }

    pub(super) fn service(&self, name: &NamespacedName) -> Option<Arc<Encoded>> {
        let service = self.index.service(name)?;
        let attached = Attached::to_service(self.index, service);
        let room = room_of_service(service, &attached);
        let ports = service.ports.iter().map(|port| v1::ServicePort {
            port: port.number.into(),
            name: port.name.clone(),
            protocol: port.protocol.into(),
            traffic: self.traffic(service, port, &attached, &room),
        });
        let message = v1::Service {
            name: Some(object_name(name)),
            addresses: self.index.virtual_ips(name).iter().map(ToString::to_string).collect(),
            ports: ports.collect(),
        };
        encode(ResourceType::Service, &message)
    }

    /// An endpoint is told apart by its address and the ports to dial there. Where a slice and a registration speak of
    /// the same one, the registration is believed: its workload has proved who it is.
    pub(super) fn endpoints(&self, name: &NamespacedName) -> Option<Arc<Encoded>> {
        let service = self.index.service(name)?;
        let mut endpoints: BTreeMap<EndpointKey, v1::Endpoint> = BTreeMap::new();
        for registration in self.index.registrations_of(name) {
            let served = registration
                .ports
                .iter()
                .filter(|(to, number, _)| to == name && service.port(*number).is_some());
            let ports: Vec<(u16, u16)> = served.map(|(_, number, port)| (*number, *port)).collect();
            if ports.is_empty() {
                continue;
            }
            let modes = self.dialled(Some(&registration.workload));
            let endpoint = v1::Endpoint {
                address: registration.address.to_string(),
                ports: self.endpoint_ports(&ports, &modes, |_| Some(registration.spiffe_id.to_string())),
                workload: registration.workload.to_string(),
                locality: locality(&registration.region, &registration.zone),
                ready: registration.ready || service.publish_not_ready,
                weight: 0,
            };
            // The newest word about a place holds: its workload may have come back before the old stream was missed.
            endpoints.insert((registration.address, ports), endpoint);
        }
        let registered: BTreeSet<_> = endpoints.keys().cloned().collect();
        for slice in self.index.slices_of(name) {
            self.slice_endpoints(service, slice, &registered, &mut endpoints);
        }
        let message =
            v1::Endpoints { name: Some(object_name(name)), endpoints: endpoints.into_values().collect() };
        encode(ResourceType::Endpoints, &message)
    }

    fn slice_endpoints(
        &self,
        service: &Service,
        slice: &Slice,
        registered: &BTreeSet<EndpointKey>,
        endpoints: &mut BTreeMap<EndpointKey, v1::Endpoint>,
    ) {
        let mut ports: Vec<(u16, u16)> = Vec::with_capacity(slice.ports.len());
        for (name, number) in &slice.ports {
            if let Some(port) = service.ports.iter().find(|port| port.name == *name) {
                ports.push((port.number, *number));
            }
        }
        ports.sort_unstable();
        if ports.is_empty() {
            return;
        }
        for one in slice.endpoints.iter().filter(|one| !one.gone) {
            let key = (one.address, ports.clone());
            if registered.contains(&key) {
                continue;
            }
            // In plaintext one would talk to a Pod that may turn out to be in the mesh.
            let Some(behind) = self.known(one) else { continue };
            let workload = behind.map(|pod| &pod.name).or(one.workload.as_ref());
            let modes = self.dialled(workload);
            let endpoint = v1::Endpoint {
                address: one.address.to_string(),
                ports: self.endpoint_ports(&ports, &modes, |port| self.expected(slice, behind, port)),
                workload: text(one.workload.as_ref().or(workload)),
                locality: locality("", &one.zone),
                ready: one.ready || service.publish_not_ready,
                weight: slice.weight,
            };
            match endpoints.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(endpoint);
                }
                // While slices are rewritten, an endpoint may stand in two of them.
                Entry::Occupied(mut entry) if endpoint.ready && !entry.get().ready => {
                    entry.insert(endpoint);
                }
                Entry::Occupied(_) => {}
            }
        }
    }

    /// The Pod behind an endpoint, if there is one; none at all where there must be one and it is not known.
    fn known(&self, endpoint: &SliceEndpoint) -> Option<Option<&Pod>> {
        match self.index.behind(endpoint.workload.as_ref(), endpoint.address) {
            Behind::Pod(pod) => Some(Some(pod)),
            Behind::Other => Some(None),
            Behind::Unknown => None,
        }
    }

    /// Whom to expect at a port of an endpoint: what its Pod is, and for what is no Pod, what the slice says.
    fn expected(&self, slice: &Slice, behind: Option<&Pod>, port: u16) -> Option<String> {
        match behind {
            Some(pod) => pod.is_meshed_at(port).then(|| pod.identity.spiffe_id(&self.trust_domain)),
            None => self.slice_identity(slice),
        }
    }

    /// `expected`: whom to expect at a port that is dialled, where it takes mutual TLS.
    fn endpoint_ports(
        &self,
        ports: &[(u16, u16)],
        modes: &Modes,
        expected: impl Fn(u16) -> Option<String>,
    ) -> Vec<v1::EndpointPort> {
        let ports = ports.iter();
        ports
            .map(|(service_port, port)| v1::EndpointPort {
                service_port: (*service_port).into(),
                port: (*port).into(),
                peer: Some(self.peer(expected(*port).as_deref(), modes.at(*port))),
            })
            .collect()
    }

    pub(super) fn address(&self, ip: IpAddr) -> Option<Arc<Encoded>> {
        let target = match self.index.services_at(ip).next() {
            Some(service) => v1::address::Target::Service(object_name(&service.name)),
            None => v1::address::Target::Host(self.host(ip)?),
        };
        let message = v1::Address { ip: ip.to_string(), target: Some(target) };
        encode(ResourceType::Address, &message)
    }

    fn host(&self, ip: IpAddr) -> Option<v1::Host> {
        let mut known = false;
        let mut ports: BTreeMap<u16, v1::HostPort> = BTreeMap::new();
        for registration in self.index.registrations_at(ip) {
            known = true;
            let modes = self.dialled(Some(&registration.workload));
            for (service, number, port) in &registration.ports {
                let serving = Serving { service: service.clone(), service_port: Some(*number), port: *port };
                let workload = registration.workload.to_string();
                let host_port = self.host_port(&serving, &workload, &modes, Some(&registration.spiffe_id));
                merge(&mut ports, *port, host_port);
            }
        }
        for slice in self.index.slices_at(ip) {
            let endpoint = slice.endpoints.iter().find(|endpoint| endpoint.address == ip);
            let Some(behind) = endpoint.map_or(Some(None), |endpoint| self.known(endpoint)) else { continue };
            known = true;
            let workload = endpoint.and_then(|endpoint| endpoint.workload.as_ref());
            let modes = self.dialled(behind.map(|pod| &pod.name).or(workload));
            let workload = text(workload.or_else(|| behind.map(|pod| &pod.name)));
            for serving in serving(self.index, slice) {
                let identity = self.expected(slice, behind, serving.port);
                let host_port = self.host_port(&serving, &workload, &modes, identity.as_deref());
                merge(&mut ports, serving.port, host_port);
            }
        }
        let pod = self.index.pod_at(ip);
        if let Some(pod) = pod {
            known = true;
            let identity = pod.identity.spiffe_id(&self.trust_domain);
            let modes = self.dialled(Some(&pod.name));
            for serving in selected(self.index, pod) {
                let identity = Some(identity.as_str()).filter(|_| pod.is_meshed_at(serving.port));
                let host_port = self.host_port(&serving, &pod.name.to_string(), &modes, identity);
                merge(&mut ports, serving.port, host_port);
            }
            for (port, host_port) in &mut ports {
                if pod.is_opaque_at(*port) {
                    host_port.protocol = v1::Protocol::Tcp.into();
                }
            }
        }
        let other = pod.filter(|pod| pod.meshed).map(|pod| self.other_ports(pod));
        known.then(|| v1::Host { ports: ports.into_values().collect(), other })
    }

    fn host_port(
        &self,
        serving: &Serving,
        workload: &str,
        modes: &Modes,
        spiffe_id: Option<&str>,
    ) -> v1::HostPort {
        v1::HostPort {
            port: serving.port.into(),
            workload: workload.to_owned(),
            protocol: self.protocol(&serving.service, serving.service_port).into(),
            peer: Some(self.peer(spiffe_id, modes.at(serving.port))),
        }
    }

    /// A Pod's proxy stands before every port, also before those of which no Service speaks.
    fn other_ports(&self, pod: &Pod) -> v1::OtherPorts {
        let range = |range: &std::ops::RangeInclusive<u16>| v1::PortRange {
            first: (*range.start()).into(),
            last: (*range.end()).into(),
        };
        v1::OtherPorts {
            workload: pod.name.to_string(),
            peer: Some(
                self.peer(
                    Some(&pod.identity.spiffe_id(&self.trust_domain)),
                    self.dialled(Some(&pod.name)).base,
                ),
            ),
            opaque: pod.opaque.iter().map(range).collect(),
            skipped: pod.skipped.iter().chain([&OWN_PORTS]).map(range).collect(),
        }
    }

    pub(super) fn workload(&self, name: &NamespacedName) -> Option<Arc<Encoded>> {
        let registered = || self.index.registrations_of_workload(name);
        let message = if let Some(registration) = registered().last() {
            let addresses: BTreeSet<IpAddr> = registered().map(|replica| replica.address).collect();
            v1::Workload {
                name: Some(object_name(name)),
                spiffe_id: registration.spiffe_id.to_string(),
                addresses: addresses.iter().map(ToString::to_string).collect(),
                locality: locality(&registration.region, &registration.zone),
            }
        } else if let Some(pod) = self.index.pod(name) {
            return self.workload_of_pod(pod);
        } else {
            let mut addresses = BTreeSet::new();
            let mut zone = "";
            let mut spiffe_id = None;
            for slice in self.index.slices_of_workload(name) {
                spiffe_id = spiffe_id.or_else(|| self.slice_identity(slice));
                for endpoint in slice.endpoints.iter().filter(|one| one.workload.as_ref() == Some(name)) {
                    addresses.insert(endpoint.address);
                    zone = &endpoint.zone;
                }
            }
            if addresses.is_empty() {
                return None;
            }
            v1::Workload {
                name: Some(object_name(name)),
                // Without an identity it is not in the mesh, and no proxy stands beside it.
                spiffe_id: spiffe_id?,
                addresses: addresses.iter().map(ToString::to_string).collect(),
                locality: locality("", zone),
            }
        };
        encode(ResourceType::Workload, &message)
    }

    fn workload_of_pod(&self, pod: &Pod) -> Option<Arc<Encoded>> {
        // Without an address it is not running yet.
        if !pod.meshed || pod.addresses.is_empty() {
            return None;
        }
        let slices = self.index.slices_of_workload(&pod.name);
        let mut endpoints = slices.flat_map(|slice| &slice.endpoints);
        let told = endpoints.find(|one| one.workload.as_ref() == Some(&pod.name) && !one.zone.is_empty());
        let zone = told.map(|one| one.zone.as_str()).or_else(|| pod.label(ZONE)).unwrap_or_default();
        let message = v1::Workload {
            name: Some(object_name(&pod.name)),
            spiffe_id: pod.identity.spiffe_id(&self.trust_domain),
            addresses: pod.addresses.iter().map(ToString::to_string).collect(),
            locality: locality("", zone),
        };
        encode(ResourceType::Workload, &message)
    }

    pub(super) fn protocol(&self, service: &NamespacedName, port: Option<u16>) -> v1::Protocol {
        let service = self.index.service(service);
        service
            .and_then(|service| service.port(port?))
            .map_or(v1::Protocol::Unspecified, |port| port.protocol)
    }

    fn slice_identity(&self, slice: &Slice) -> Option<String> {
        let identity = slice.identity.as_ref()?;
        Some(identity.spiffe_id(&self.trust_domain))
    }

    /// Without mTLS at a port nobody is asked for an identity there.
    fn peer(&self, spiffe_id: Option<&str>, mode: v1::MtlsMode) -> v1::Peer {
        let peer = match spiffe_id {
            Some(id) if mode != v1::MtlsMode::Off => v1::peer::Peer::SpiffeId(id.to_owned()),
            _ => v1::peer::Peer::Plaintext(v1::Plaintext {}),
        };
        v1::Peer { peer: Some(peer) }
    }
}

/// Lets nobody in, where no other rule does: of every port, so that some rule speaks of each. `why` has a colon, so that no rule of a policy is called as
/// this one: an object's name has none (RFC 1123).
pub(super) fn nobody(namespace: &str, why: &str) -> v1::AllowRule {
    v1::AllowRule { name: format!("{namespace}/{why}"), ports: Vec::new(), identities: Vec::new() }
}

/// What a workload serves; none if nobody knows of the workload, or no proxy stands beside it.
pub(super) fn serving_of(index: &Index, workload: &NamespacedName) -> Option<Vec<Serving>> {
    let mut all: Vec<Serving> = Vec::new();
    let mut known = false;
    for registration in index.registrations_of_workload(workload) {
        known = true;
        all.extend(registration.ports.iter().map(|(service, number, port)| Serving {
            service: service.clone(),
            service_port: Some(*number),
            port: *port,
        }));
    }
    if index.is_bare(workload) {
        return known.then_some(all);
    }
    if let Some(pod) = index.pod(workload) {
        known = true;
        all.extend(selected(index, pod));
    }
    for slice in index.slices_of_workload(workload) {
        known = true;
        // Whoever may write a slice in another namespace has no say in what this one's workloads do.
        if slice.name.namespace != workload.namespace {
            continue;
        }
        for one in serving(index, slice) {
            if !all.contains(&one) {
                all.push(one);
            }
        }
    }
    known.then_some(all)
}

/// What a Pod serves by the Services that select it.
fn selected(index: &Index, pod: &Pod) -> Vec<Serving> {
    let ports = index.services_selecting(pod).flat_map(|service| {
        service.ports.iter().filter_map(|port| {
            let target = match &port.target {
                TargetPort::Number(number) => Some(*number).filter(|number| *number > 0),
                TargetPort::Named(name) => pod.port_called(name),
            };
            let service_port = Some(port.number);
            Some(Serving { service: service.name.clone(), service_port, port: target? })
        })
    });
    ports.collect()
}

fn serving(index: &Index, slice: &Slice) -> Vec<Serving> {
    let service = index.service(&slice.service);
    let ports = slice.ports.iter();
    ports
        .map(|(name, number)| Serving {
            service: slice.service.clone(),
            service_port: service
                .and_then(|service| service.ports.iter().find(|port| port.name == *name))
                .map(|port| port.number),
            port: *number,
        })
        .collect()
}

/// The first to speak of a port is believed, but for a protocol that it did not know, and for plaintext where another
/// names an identity.
fn merge(ports: &mut BTreeMap<u16, v1::HostPort>, port: u16, new: v1::HostPort) {
    match ports.entry(port) {
        Entry::Vacant(entry) => {
            entry.insert(new);
        }
        Entry::Occupied(mut entry) => {
            let known = entry.get_mut();
            if known.protocol == i32::from(v1::Protocol::Unspecified) {
                known.protocol = new.protocol;
            }
            let plaintext = |port: &v1::HostPort| {
                matches!(
                    port.peer.as_ref().and_then(|peer| peer.peer.as_ref()),
                    Some(v1::peer::Peer::Plaintext(_))
                )
            };
            if plaintext(known) && !plaintext(&new) {
                known.peer = new.peer;
                known.workload = new.workload;
            }
        }
    }
}

pub(super) fn object_name(name: &NamespacedName) -> v1::ObjectName {
    v1::ObjectName { namespace: name.namespace.to_string(), name: name.name.to_string() }
}

pub(super) fn encode(resource_type: ResourceType, message: &impl prost::Message) -> Option<Arc<Encoded>> {
    Some(Arc::new(Encoded::new(resource_type, message)))
}

fn locality(region: &str, zone: &str) -> Option<v1::Locality> {
    (!region.is_empty() || !zone.is_empty())
        .then(|| v1::Locality { region: region.to_owned(), zone: zone.to_owned() })
}

fn text(name: Option<&NamespacedName>) -> String {
    name.map(ToString::to_string).unwrap_or_default()
}
