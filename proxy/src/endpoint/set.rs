//! The endpoints of a service, by port; what has not changed is carried over an update.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;

use super::Endpoint;
use crate::state::{EndpointsInfo, ObjectName, Peer};

/// A service's endpoints at one moment.
#[derive(Debug, Default)]
pub struct EndpointSet {
    ports: Vec<(u16, Vec<Member>)>,
    /// Where a port's endpoint stands, by its address; made when it is first asked for.
    by_address: OnceLock<HashMap<(u16, SocketAddr), usize, RandomState>>,
}

/// One endpoint and what may change about it without making it another.
#[derive(Clone, Debug)]
pub struct Member {
    pub endpoint: Arc<Endpoint>,
    /// False while it starts or drains.
    pub ready: bool,
}

// === impl EndpointSet ===

impl EndpointSet {
    /// The set that `info` describes. An endpoint with the address, port and peer of one in `old` is that one,
    /// with its load and its connections.
    pub fn apply(old: Option<&Self>, info: &EndpointsInfo, workers: usize) -> Self {
        let mut known: HashMap<(u16, SocketAddr, &Peer), &Arc<Endpoint>, RandomState> = HashMap::default();
        for (port, members) in old.into_iter().flat_map(|set| &set.ports) {
            let endpoints = members.iter().map(|member| &member.endpoint);
            known.extend(endpoints.map(|endpoint| ((*port, endpoint.address, &endpoint.peer), endpoint)));
        }
        let mut ports: Vec<(u16, Vec<Member>)> = Vec::new();
        for told in &info.endpoints {
            let port = told.service_port;
            let kept = known.get(&(port, told.addr, &told.peer));
            let endpoint = kept.map_or_else(
                || {
                    let (peer, workload) = (told.peer.clone(), told.workload.clone());
                    Endpoint::new(told.addr, peer, workload, service(&ports, port, &info.name), workers)
                },
                |known| Arc::clone(known),
            );
            let member = Member { endpoint, ready: told.ready };
            match ports.iter_mut().find(|(known, _)| *known == port) {
                Some((_, members)) => members.push(member),
                None => ports.push((port, vec![member])),
            }
        }
        Self { ports, by_address: OnceLock::new() }
    }

    /// The endpoints of one of the service's ports.
    pub fn port(&self, port: u16) -> &[Member] {
        self.ports.iter().find(|(p, _)| *p == port).map_or(&[], |(_, members)| members)
    }

    /// The endpoint of a port that is at `address`.
    pub fn at(&self, port: u16, address: SocketAddr) -> Option<&Member> {
        let by_address = self.by_address.get_or_init(|| {
            let of = |(port, members): &(u16, Vec<Member>)| {
                let addresses: Vec<_> =
                    members.iter().map(|member| (*port, member.endpoint.address)).collect();
                addresses.into_iter().zip(0..)
            };
            self.ports.iter().flat_map(of).collect()
        });
        self.port(port).get(*by_address.get(&(port, address))?)
    }

    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.ports.iter().flat_map(|(_, members)| members)
    }
}

/// `<namespace>/<name>:<port>`, shared by all endpoints of the port.
fn service(ports: &[(u16, Vec<Member>)], port: u16, name: &ObjectName) -> Arc<str> {
    let known = ports.iter().find(|(known, _)| *known == port).and_then(|(_, members)| members.first());
    known.map_or_else(|| format!("{name}:{port}").into(), |member| Arc::clone(&member.endpoint.service))
}

#[cfg(test)]
mod tests {
    use tulle_certs::SpiffeId;

    use super::*;
    use crate::state::EndpointInfo;

    fn info(endpoints: &[(u16, &str, Peer)]) -> EndpointsInfo {
        let endpoints = endpoints.iter().map(|(service_port, addr, peer)| EndpointInfo {
            addr: addr.parse().unwrap(),
            service_port: *service_port,
            peer: peer.clone(),
            workload: None,
            zone: None,
            ready: true,
        });
        EndpointsInfo { name: ObjectName::new("default", "orders"), endpoints: endpoints.collect() }
    }

    #[test]
    fn an_endpoint_is_the_same_as_long_as_address_port_and_peer_are() {
        let mesh = |account: &str| {
            Peer::Mesh(SpiffeId::parse(&format!("spiffe://cluster.local/ns/default/sa/{account}")).unwrap())
        };
        let here = "10.0.0.1:80";
        let before = EndpointSet::apply(None, &info(&[(80, here, mesh("a")), (81, here, mesh("a"))]), 1);
        let after = info(&[(80, "10.0.0.2:80", mesh("a")), (80, here, mesh("a")), (81, here, mesh("b"))]);
        let after = EndpointSet::apply(Some(&before), &after, 1);
        assert!(Arc::ptr_eq(&before.port(80)[0].endpoint, &after.port(80)[1].endpoint));
        assert!(!Arc::ptr_eq(&before.port(80)[0].endpoint, &after.port(80)[0].endpoint));
        assert!(!Arc::ptr_eq(&before.port(81)[0].endpoint, &after.port(81)[0].endpoint), "somebody else");
        for (port, at) in [(80, 0), (80, 1), (81, 0)] {
            let member = &after.port(port)[at];
            let found = after.at(port, member.endpoint.address).unwrap();
            assert!(Arc::ptr_eq(&found.endpoint, &member.endpoint));
        }
        assert!(after.at(81, "10.0.0.2:80".parse().unwrap()).is_none(), "another port's");
    }
}
