//! What the control plane has told, decoded: plain data, one type for each kind of resource.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use tulle_certs::{SpiffeId, TrustDomain};

use super::{ObjectName, Traffic};
use crate::config::Tracing;
use crate::route::SessionKey;
use crate::telemetry::access;

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Not declared: told from the first bytes.
    Detect,
    /// HTTP/1, or HTTP/2 with prior knowledge.
    Http,
    Http2,
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// The application's own TLS.
    Tls,
}

/// Whom to expect behind an endpoint's port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// TLS, always, and exactly this identity.
    Mesh(SpiffeId),
    Plaintext,
}

/// Whether inbound connections must be mutual TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Permissive,
    Strict,
    Off,
}

/// One endpoint of one port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointInfo {
    pub service_port: u16,
    pub addr: SocketAddr,
    pub peer: Peer,
    pub workload: Option<ObjectName>,
    pub zone: Option<Arc<str>>,
    /// False while starting or draining.
    pub ready: bool,
    /// Its share beside the others', 1–1,000; 100 where nothing is said.
    pub weight: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointsInfo {
    pub name: ObjectName,
    pub endpoints: Vec<EndpointInfo>,
}

/// Who answers on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressInfo {
    pub ip: IpAddr,
    pub target: AddressTarget,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressTarget {
    /// The address is this service's virtual IP.
    Service(ObjectName),
    /// The address belongs to one or more workloads.
    Host(HostInfo),
}

/// What is known of the ports of an address that belongs to workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostInfo {
    pub ports: Vec<HostPort>,
    /// The ports that `ports` does not name; none: they are outside the mesh.
    pub other: Option<OtherPorts>,
}

/// Ports of which is known only whose they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherPorts {
    pub workload: Option<ObjectName>,
    pub peer: Peer,
    pub opaque: Vec<RangeInclusive<u16>>,
    /// Outside the mesh.
    pub skipped: Vec<RangeInclusive<u16>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub port: u16,
    pub workload: Option<ObjectName>,
    pub protocol: Protocol,
    pub peer: Peer,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServiceInfo {
    pub name: ObjectName,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    pub port: u16,
    pub name: String,
    pub protocol: Protocol,
    pub traffic: Arc<Traffic>,
}

/// What the proxy knows about its own workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadInfo {
    pub name: ObjectName,
    pub id: SpiffeId,
    /// In the snapshot only those of this host: a workload may have replicas on others.
    pub addresses: Vec<IpAddr>,
    pub zone: Option<Arc<str>>,
}

/// What the whole mesh shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshInfo {
    pub trust_domain: TrustDomain,
    pub mode: Mode,
    /// Where the mesh's workloads and virtual IPs live.
    pub networks: Vec<IpNet>,
    /// Seals the tokens of sessions; `None`: there are no sessions.
    pub session_key: Option<SessionKey>,
    /// What is said of tracing for all.
    pub tracing: Option<Tracing>,
    /// What is logged, where nothing more specific says it.
    pub access_log: Option<access::Said>,
}

// === impl HostInfo ===

impl HostInfo {
    /// Whom to expect at a port, and what it speaks; none: it is outside the mesh.
    pub fn port(&self, port: u16) -> Option<(&Peer, Protocol)> {
        if let Some(known) = self.ports.iter().find(|known| known.port == port) {
            return Some((&known.peer, known.protocol));
        }
        let within = |ranges: &[RangeInclusive<u16>]| ranges.iter().any(|range| range.contains(&port));
        let other = self.other.as_ref().filter(|other| !within(&other.skipped))?;
        Some((&other.peer, if within(&other.opaque) { Protocol::Tcp } else { Protocol::Detect }))
    }
}

// === impl ServiceInfo ===

impl ServiceInfo {
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.port == port)
    }
}

// === impl MeshInfo ===

impl MeshInfo {
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.networks.iter().any(|n| n.contains(&ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_no_service_speaks_of_is_the_pods_too_unless_it_is_skipped() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/orders").unwrap();
        let named = HostPort { port: 80, workload: None, protocol: Protocol::Http, peer: Peer::Plaintext };
        let alone = HostInfo { ports: vec![named.clone()], other: None };
        assert_eq!(alone.port(80), Some((&Peer::Plaintext, Protocol::Http)));
        assert_eq!(alone.port(81), None);
        let peer = Peer::Mesh(id);
        let other = OtherPorts {
            workload: None,
            peer: peer.clone(),
            opaque: vec![3306..=3306],
            skipped: vec![9000..=9001, 15_000..=15_090],
        };
        let pod = HostInfo { ports: vec![named], other: Some(other) };
        assert_eq!(pod.port(80), Some((&Peer::Plaintext, Protocol::Http)), "what is said of a port holds");
        assert_eq!(pod.port(81), Some((&peer, Protocol::Detect)));
        assert_eq!(pod.port(3306), Some((&peer, Protocol::Tcp)));
        assert_eq!([9000, 9001, 15_020].map(|port| pod.port(port)), [None; 3]);
    }
}
