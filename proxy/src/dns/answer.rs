//! Responses about services of the mesh: pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_resolver::proto::op::{Edns, Message, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, PTR, SOA, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use crate::state::{ObjectName, ServiceInfo};

/// Seconds that an answer may be kept, as CoreDNS has it for Kubernetes.
const TTL: u32 = 5;
/// The largest datagram that gets through nearly everywhere (RFC 9715 §3).
pub(super) const MAX_UDP: u16 = 1232;

/// A response to `request` without records yet. It repeats the question, as RFC 1035 §4.1.2 has it.
pub(super) fn response(request: &Message, code: ResponseCode) -> Message {
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP).set_version(0);
        response.set_edns(edns);
    }
    response
}

/// The addresses of a service, of the family asked for; of any other type it has nothing.
pub(super) fn service(request: &Message, query: &Query, info: &ServiceInfo, domain: &Name) -> Message {
    let records = info.addresses.iter().filter_map(|ip| match (ip, query.query_type()) {
        (IpAddr::V4(ip), RecordType::A) => Some(RData::A(A(*ip))),
        (IpAddr::V6(ip), RecordType::AAAA) => Some(RData::AAAA(AAAA(*ip))),
        _ => None,
    });
    authoritative(request, query, records.collect(), domain)
}

/// Where a named port of a service is (RFC 2782).
pub(super) fn port(
    request: &Message,
    query: &Query,
    info: &ServiceInfo,
    port: &str,
    domain: &Name,
) -> Message {
    let found = info.ports.iter().find(|known| known.name == port);
    let target = found.and_then(|found| Some((found.port, full_name(&info.name, domain)?)));
    match (target, query.query_type()) {
        (None, _) => absent(request, domain),
        (Some((port, target)), RecordType::SRV) => {
            authoritative(request, query, vec![RData::SRV(SRV::new(0, 100, port, target))], domain)
        }
        (Some(_), _) => authoritative(request, query, Vec::new(), domain),
    }
}

/// Whose virtual IP it is.
pub(super) fn reverse(request: &Message, query: &Query, service: &ObjectName, domain: &Name) -> Message {
    let name = full_name(service, domain).filter(|_| query.query_type() == RecordType::PTR);
    authoritative(request, query, name.map(|name| RData::PTR(PTR(name))).into_iter().collect(), domain)
}

/// This host.
pub(super) fn localhost(request: &Message, query: &Query, domain: &Name) -> Message {
    let address = match query.query_type() {
        RecordType::A => Some(RData::A(A(Ipv4Addr::LOCALHOST))),
        RecordType::AAAA => Some(RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))),
        _ => None,
    };
    authoritative(request, query, address.into_iter().collect(), domain)
}

/// There is no such name in the cluster's domain.
pub(super) fn absent(request: &Message, domain: &Name) -> Message {
    let mut response = response(request, ResponseCode::NXDomain);
    response.metadata.authoritative = true;
    response.add_authority(start_of_authority(domain));
    response
}

fn authoritative(request: &Message, query: &Query, records: Vec<RData>, domain: &Name) -> Message {
    let mut response = response(request, ResponseCode::NoError);
    response.metadata.authoritative = true;
    if records.is_empty() {
        // Without it, nobody may keep that there is nothing (RFC 2308 §3).
        response.add_authority(start_of_authority(domain));
    }
    response.add_answers(records.into_iter().map(|data| Record::from_rdata(query.name().clone(), TTL, data)));
    response
}

fn start_of_authority(domain: &Name) -> Record {
    let host =
        |label: &str| Name::from_labels([label.as_bytes()]).and_then(|name| name.append_domain(domain));
    let (server, mailbox) = (host("dns").unwrap_or_default(), host("hostmaster").unwrap_or_default());
    let soa = SOA::new(server, mailbox, 1, 7200, 1800, 86400, TTL);
    Record::from_rdata(domain.clone(), TTL, RData::SOA(soa))
}

fn full_name(service: &ObjectName, domain: &Name) -> Option<Name> {
    let labels = [&*service.name, &*service.namespace, "svc"].map(str::as_bytes);
    Name::from_labels(labels).and_then(|name| name.append_domain(domain)).ok()
}
