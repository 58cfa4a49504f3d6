//! Answers about names for applications that have no cluster DNS: services of the mesh by their virtual IPs, the rest
//! as the host's name servers say.
//!
//! Decides what a question is about ([`names`]) and what to say ([`answer`]). It never answers about a name of the
//! cluster's domain from outside unless the servers there are the cluster's own, so that what is internal stays
//! inside, and never asks itself ([`upstream`]). Runs on the control thread; called by [`crate::app`].

mod answer;
mod listen;
mod names;
mod upstream;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record};

pub use self::listen::{BindError, Sockets};
use self::names::Meaning;
pub use self::upstream::Servers;
use self::upstream::Upstream;
use crate::io::resolver;
use crate::state::{AddressTarget, ObjectName, ServiceInfo, Store};
use crate::telemetry::metrics::{ControlMetrics, DnsResult};

/// How long the control plane may take to say whether a name is a service's that may as well be a name outside.
const PATIENCE: Duration = Duration::from_millis(250);

/// Answers questions. Shared by the listeners.
pub struct Dns {
    store: Arc<Store>,
    metrics: Arc<ControlMetrics>,
    /// Of the workload that asks.
    namespace: Arc<str>,
    domain: Domain,
    upstream: Upstream,
}

/// The cluster's domain, as text and as a name.
struct Domain {
    text: String,
    name: Name,
}

/// What is to be known about a service's name.
enum Known {
    Here(Arc<ServiceInfo>),
    Absent,
    Unanswered,
}

type Said = (Message, DnsResult);

/// The Service that `host` names to an application in `namespace`, in any of the usual spellings within the cluster's `domain`:
/// `orders`, `orders.shop`, `orders.shop.svc`, `orders.shop.svc.cluster.local`.
pub fn service_named(host: &str, namespace: &str, domain: &str) -> Option<ObjectName> {
    let name = Name::from_ascii(host).ok()?;
    match names::meaning(&name, namespace, domain) {
        Meaning::Service { name, .. } => Some(name),
        _ => None,
    }
}

// === impl Dns ===

impl Dns {
    /// For a workload of `namespace` in a cluster with `domain`; `own`: where its questions arrive; `sockets`:
    /// how others are asked.
    ///
    /// # Errors
    /// When `domain` is not a domain.
    pub fn new(
        store: Arc<Store>,
        metrics: Arc<ControlMetrics>,
        namespace: Arc<str>,
        domain: &str,
        servers: Servers,
        own: Vec<SocketAddr>,
        sockets: resolver::Sockets,
    ) -> anyhow::Result<Self> {
        let text = domain.trim_matches('.').to_ascii_lowercase();
        let mut name = Name::from_ascii(&text)?;
        name.set_fqdn(true);
        let upstream = Upstream::new(servers, own, sockets);
        metrics.dns_started();
        Ok(Self { store, metrics, namespace, domain: Domain { text, name }, upstream })
    }

    /// The response to a message; `None` for what is not a question, or cannot be told to be one.
    async fn answer(&self, message: &[u8]) -> Option<(Message, u16)> {
        let said = match Message::from_vec(message) {
            Ok(request) if request.metadata.message_type == MessageType::Query => {
                let said = self.respond(&request).await;
                Some((said, request.edns.as_ref().map_or(512, |edns| edns.max_payload())))
            }
            // A response to nothing that we asked: answering could go on for ever.
            Ok(_) => None,
            Err(_) => malformed(message).map(|said| (said, 512)),
        };
        let result = said.as_ref().map_or(DnsResult::Malformed, |((_, result), _)| *result);
        self.metrics.dns_query(result);
        said.map(|((response, _), payload)| (response, payload.clamp(512, answer::MAX_UDP)))
    }

    async fn respond(&self, request: &Message) -> Said {
        let refuse = |code| (answer::response(request, code), DnsResult::Refused);
        if request.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        if request.version() > 0 {
            return refuse(ResponseCode::BADVERS);
        }
        let [query] = request.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
        if query.query_class() != DNSClass::IN {
            return refuse(ResponseCode::Refused);
        }
        let domain = &self.domain.name;
        match names::meaning(query.name(), &self.namespace, &self.domain.text) {
            Meaning::Service { name, within } => match self.service(&name, within).await {
                Known::Here(info) => (answer::service(request, query, &info, domain), DnsResult::Mesh),
                Known::Absent if within => self.nowhere(request, query).await,
                Known::Unanswered if within => self.unanswered(request),
                Known::Absent | Known::Unanswered => self.forward(request, query).await,
            },
            Meaning::Port { service, port } => match self.service(&service, true).await {
                Known::Here(info) => (answer::port(request, query, &info, &port, domain), DnsResult::Mesh),
                Known::Absent => self.nowhere(request, query).await,
                Known::Unanswered => self.unanswered(request),
            },
            Meaning::Reverse(ip) => match self.owner(ip).await {
                Some(service) => (answer::reverse(request, query, &service, domain), DnsResult::Mesh),
                None => self.forward(request, query).await,
            },
            Meaning::Within => self.nowhere(request, query).await,
            Meaning::Localhost => (answer::localhost(request, query, domain), DnsResult::Mesh),
            Meaning::Other => self.forward(request, query).await,
        }
    }

    /// A service that has none is one whose name means its endpoints.
    async fn service(&self, name: &ObjectName, within: bool) -> Known {
        let asked = self.store.service(name);
        let found = if within {
            asked.await.ok()
        } else {
            tokio::time::timeout(PATIENCE, asked).await.ok().and_then(Result::ok)
        };
        let Some(state) = found else { return Known::Unanswered };
        let Some(info) = state.info() else { return Known::Absent };
        if !info.addresses.is_empty() {
            return Known::Here(info);
        }
        let endpoints = state.endpoints();
        let ready = endpoints.iter().flat_map(|set| set.all()).filter(|member| member.ready);
        let addresses: BTreeSet<IpAddr> = ready.map(|member| member.endpoint.address.ip()).collect();
        let addresses = addresses.into_iter().collect();
        Known::Here(Arc::new(ServiceInfo { addresses, ..ServiceInfo::clone(&info) }))
    }

    /// The service whose virtual IP this is. Nobody is asked about an address that is none of the mesh's.
    async fn owner(&self, ip: IpAddr) -> Option<ObjectName> {
        if !self.store.load().mesh.as_ref().is_some_and(|mesh| mesh.contains(ip)) {
            return None;
        }
        match &self.store.address(ip).await.ok()??.target {
            AddressTarget::Service(name) => Some(name.clone()),
            AddressTarget::Host(_) => None,
        }
    }

    /// The mesh has no such name; the cluster may.
    async fn nowhere(&self, request: &Message, query: &Query) -> Said {
        if self.upstream.serves(&self.domain.name) {
            return self.forward(request, query).await;
        }
        (answer::absent(request, &self.domain.name), DnsResult::Absent)
    }

    fn unanswered(&self, request: &Message) -> Said {
        (answer::response(request, ResponseCode::ServFail), DnsResult::Failed)
    }

    async fn forward(&self, request: &Message, query: &Query) -> Said {
        let error = match self.upstream.ask(query).await {
            Ok(lookup) => {
                let mut response = answer::response(request, ResponseCode::NoError);
                response.add_answers(lookup.answers().iter().cloned());
                return (response, DnsResult::Forwarded);
            }
            Err(error) => error,
        };
        if let NetError::Dns(DnsError::NoRecordsFound(none)) = error {
            let mut response = answer::response(request, none.response_code);
            if let Some(soa) = none.soa {
                let ttl = none.negative_ttl.unwrap_or(soa.ttl);
                response.add_authority(Record::from_rdata(soa.name.clone(), ttl, RData::SOA(soa.data)));
            }
            return (response, DnsResult::Forwarded);
        }
        tracing::debug!(name = %query.name(), %error, "a name outside the mesh could not be resolved");
        (answer::response(request, ResponseCode::ServFail), DnsResult::Failed)
    }
}

/// The answer to what cannot be read but for its ID (RFC 1035 §4.1.1).
fn malformed(message: &[u8]) -> Option<Said> {
    let &[first, second, flags, ..] = message else { return None };
    let is_response = flags & 0x80 != 0;
    (message.len() >= 12 && !is_response).then(|| {
        let id = u16::from_be_bytes([first, second]);
        (Message::error_msg(id, OpCode::Query, ResponseCode::FormErr), DnsResult::Malformed)
    })
}

#[cfg(test)]
mod tests;
