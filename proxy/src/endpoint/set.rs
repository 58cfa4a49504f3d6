//! The endpoints of a service, by port; what has not changed is carried over an update.

use std::sync::Arc;

use super::Endpoint;
use crate::state::{EndpointsInfo, ObjectName};

/// A service's endpoints at one moment.
#[derive(Debug, Default)]
pub struct EndpointSet {
    ports: Vec<(u16, Vec<Member>)>,
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
        let mut ports: Vec<(u16, Vec<Member>)> = Vec::new();
        for endpoint in &info.endpoints {
            let kept = old
                .into_iter()
                .flat_map(|set| set.port(endpoint.service_port))
                .find(|m| m.endpoint.address == endpoint.addr && m.endpoint.peer == endpoint.peer);
            let member = Member {
                endpoint: kept.map_or_else(
                    || {
                        Endpoint::new(
                            endpoint.addr,
                            endpoint.peer.clone(),
                            endpoint.workload.clone(),
                            service(&ports, endpoint.service_port, &info.name),
                            workers,
                        )
                    },
                    |member| Arc::clone(&member.endpoint),
                ),
                ready: endpoint.ready,
            };
            match ports.iter_mut().find(|(port, _)| *port == endpoint.service_port) {
                Some((_, members)) => members.push(member),
                None => ports.push((endpoint.service_port, vec![member])),
            }
        }
        Self { ports }
    }

    /// The endpoints of one of the service's ports.
    pub fn port(&self, port: u16) -> &[Member] {
        self.ports.iter().find(|(p, _)| *p == port).map_or(&[], |(_, members)| members)
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
