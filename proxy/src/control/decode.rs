//! Protobuf → compiled model. Total: any bytes give a value or a rejection that names resource, field and reason.
//!
//! Pure; called by `apply`, and by other programs that read what the control plane serves. Nothing is guessed: a value
//! that is missing, unknown or out of range is rejected rather than replaced, and the resource's name must be the one
//! that it was subscribed by. Fields that this version does not know are passed over (a newer control plane's).
//!
//! A route's rule is the one part that is taken as [`Invalid`] instead, so that the other rules of a service hold, also for a proxy
//! that has no last good version of them ([`rejections`]).

mod access;
mod authentication;
mod balance;
mod external;
mod filter;
mod health;
mod limits;
mod logged;
mod rate;
mod requests;
mod rule;
mod session;
mod traffic;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use prost::{Message, Name};
use tulle_api::v1::{self, Rejection};
use tulle_certs::{SpiffeId, TrustBundle, TrustDomain};

use crate::config::{Tracing, otel};
use crate::policy::{Action, Allow, EgressRule, EgressSpec, InboundSpec, Names, PortPolicy, Unspoken};
use crate::route::{Hostname, Invalid, Route, Routes, SessionKey, StreamRoute};
use crate::state::{
    AddressInfo, AddressTarget, EndpointInfo, EndpointsInfo, HostInfo, HostPort, MeshInfo, Mode, ObjectName,
    OtherPorts, Peer, Protocol, ServiceInfo, ServicePort, WorkloadInfo,
};
use crate::telemetry::trace;

/// A resource, decoded and checked.
#[derive(Clone, Debug)]
pub enum Decoded {
    Address(AddressInfo),
    Service(ServiceInfo),
    Endpoints(EndpointsInfo),
    Routes(Routes),
    Workload(WorkloadInfo),
    InboundPolicy(Box<InboundSpec>),
    EgressPolicy {
        spec: EgressSpec,
        /// Whether it is what holds for this workload once that is registered.
        registered: bool,
    },
    Mesh(Box<MeshInfo>),
    TrustBundle(TrustBundle),
}

/// What is wrong, and where in the message.
#[derive(Clone, Debug)]
struct Fault {
    field: String,
    reason: String,
}

type Result<T, E = Fault> = std::result::Result<T, E>;

/// Decodes the resource `name` of a type.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn decode(type_url: &str, name: &str, bytes: &[u8]) -> Result<Decoded, Rejection> {
    let decoded = match type_url {
        url if url == v1::Address::type_url() => message(bytes).and_then(|m| address(m, name)),
        url if url == v1::Service::type_url() => message(bytes).and_then(|m| service(m, name)),
        url if url == v1::Endpoints::type_url() => message(bytes).and_then(|m| endpoints(m, name)),
        url if url == v1::Routes::type_url() => message(bytes).and_then(|m| routes(m, name)),
        url if url == v1::Workload::type_url() => message(bytes).and_then(|m| workload(m, name)),
        url if url == v1::InboundPolicy::type_url() => message(bytes).and_then(|m| inbound_policy(m, name)),
        url if url == v1::EgressPolicy::type_url() => message(bytes).and_then(|m| egress_policy(m, name)),
        url if url == v1::Mesh::type_url() => message(bytes).and_then(|m| mesh(m, name)),
        url if url == v1::TrustBundle::type_url() => message(bytes).and_then(|m| trust_bundle(m, name)),
        other => Err(fault("", format!("resources of type {other:?} are not known to this version"))),
    };
    decoded.map_err(|Fault { field, reason }| Rejection { resource: name.to_owned(), field, reason })
}

/// Decodes a resource as it came, in a response about `type_url`.
///
/// # Errors
/// As [`decode`], and when the resource says that it is of another type, or is not there.
pub fn any(type_url: &str, name: &str, any: &prost_types::Any) -> Result<Decoded, Rejection> {
    if any.type_url != type_url {
        let reason = format!("is of type {:?} in a response about {type_url:?}", any.type_url);
        return Err(Rejection { resource: name.to_owned(), field: String::new(), reason });
    }
    decode(type_url, name, &any.value)
}

/// What could not be decoded of routes that are used nevertheless.
pub fn rejections(name: &str, routes: &Routes) -> Vec<Rejection> {
    let rules = routes.routes.iter().flat_map(|route| &route.rules);
    let undecoded = rules.filter_map(|rule| match rule.rule.invalid.as_ref()? {
        Invalid::Undecoded { field, reason } => {
            let (field, reason) = (field.to_string(), reason.to_string());
            Some(Rejection { resource: name.to_owned(), field, reason })
        }
        Invalid::Said(_) => None,
    });
    undecoded.collect()
}

fn fault(field: impl Into<String>, reason: impl Into<String>) -> Fault {
    Fault { field: field.into(), reason: reason.into() }
}

fn message<M: Message + Default>(bytes: &[u8]) -> Result<M> {
    M::decode(bytes).map_err(|error| fault("", format!("is not a valid message: {error}")))
}

// === impl each resource ===

fn address(message: v1::Address, name: &str) -> Result<Decoded> {
    use v1::address::Target;
    named(&message.ip, name, "ip")?;
    let ip = ip(&message.ip, "ip")?;
    // Who asks for an address knows only this form of it.
    let canonical = ip.to_string();
    if canonical != message.ip {
        return Err(fault("ip", format!("{:?} is written {canonical:?} in canonical form", message.ip)));
    }
    let target = match message.target.ok_or_else(|| fault("target", "is missing"))? {
        Target::Service(service) => AddressTarget::Service(object(Some(service), "service")?),
        Target::Host(host) => AddressTarget::Host(HostInfo {
            ports: each(host.ports, "host.ports", |port, at| {
                Ok(HostPort {
                    port: self::port(port.port, &format!("{at}.port"))?,
                    workload: optional_object(&port.workload, &format!("{at}.workload"))?,
                    protocol: protocol(port.protocol, &format!("{at}.protocol"))?,
                    peer: peer(port.peer, &format!("{at}.peer"))?,
                })
            })?,
            other: host.other.map(other_ports).transpose()?,
        }),
    };
    Ok(Decoded::Address(AddressInfo { ip, target }))
}

fn other_ports(other: v1::OtherPorts) -> Result<OtherPorts> {
    let range = |range: v1::PortRange, at: &str| {
        let first = port(range.first, &format!("{at}.first"))?;
        let last = port(range.last, &format!("{at}.last"))?;
        // One that is the wrong way round would hold no port, and so hide what it was meant for.
        if last < first {
            return Err(fault(at, format!("{first} comes after {last}")));
        }
        Ok(first..=last)
    };
    Ok(OtherPorts {
        workload: optional_object(&other.workload, "host.other.workload")?,
        peer: peer(other.peer, "host.other.peer")?,
        opaque: each(other.opaque, "host.other.opaque", range)?,
        skipped: each(other.skipped, "host.other.skipped", range)?,
    })
}

fn service(message: v1::Service, name: &str) -> Result<Decoded> {
    let mut patterns = rule::Patterns::default();
    Ok(Decoded::Service(ServiceInfo {
        name: named_object(message.name, name, "name")?,
        addresses: each(message.addresses, "addresses", |address, at| ip(&address, at))?,
        ports: each(message.ports, "ports", |port, at| {
            Ok(ServicePort {
                port: self::port(port.port, &format!("{at}.port"))?,
                protocol: protocol(port.protocol, &format!("{at}.protocol"))?,
                name: port.name,
                traffic: Arc::new(traffic::traffic(port.traffic, &mut patterns, &format!("{at}.traffic"))?),
            })
        })?,
    }))
}

fn endpoints(message: v1::Endpoints, name: &str) -> Result<Decoded> {
    let name = named_object(message.name, name, "name")?;
    let mut endpoints = Vec::new();
    for (i, endpoint) in message.endpoints.into_iter().enumerate() {
        let at = format!("endpoints[{i}]");
        let ip = ip(&endpoint.address, &format!("{at}.address"))?;
        if ip.is_unspecified() || ip.is_multicast() {
            // Dialling 0.0.0.0 reaches this host.
            return Err(fault(format!("{at}.address"), format!("{ip} is no address of a workload")));
        }
        let workload = optional_object(&endpoint.workload, &format!("{at}.workload"))?;
        let zone = zone(endpoint.locality);
        let weight = match endpoint.weight {
            0 => 100,
            weight @ 1..=1_000 => weight,
            other => return Err(fault(format!("{at}.weight"), format!("{other} is not from 1 to 1000"))),
        };
        for (j, port) in endpoint.ports.into_iter().enumerate() {
            let at = format!("{at}.ports[{j}]");
            endpoints.push(EndpointInfo {
                service_port: self::port(port.service_port, &format!("{at}.service_port"))?,
                addr: SocketAddr::new(ip, self::port(port.port, &format!("{at}.port"))?),
                peer: peer(port.peer, &format!("{at}.peer"))?,
                workload: workload.clone(),
                zone: zone.clone(),
                ready: endpoint.ready,
                weight,
            });
        }
    }
    Ok(Decoded::Endpoints(EndpointsInfo { name, endpoints }))
}

fn routes(message: v1::Routes, name: &str) -> Result<Decoded> {
    let (client_namespace, service_name) = name
        .split_once('/')
        .ok_or_else(|| fault("", "is not named <client namespace>/<namespace>/<name>"))?;
    let service = named_object(message.service, service_name, "service")?;
    // Content that is the same for all clients says nothing about whose it is.
    if !message.client_namespace.is_empty() {
        named(&message.client_namespace, client_namespace, "client_namespace")?;
    }
    let mut patterns = rule::Patterns::default();
    let routes = each(message.http, "http", |http, at| {
        let route = object(http.name, &format!("{at}.name"))?;
        Ok(Route {
            ports: each(http.ports, &format!("{at}.ports"), port)?,
            hostnames: each(http.hostnames, &format!("{at}.hostnames"), hostname)?,
            rules: rule::rules(http.rules, http.kind, &route, &mut patterns, at),
            name: route,
        })
    })?;
    let streams = each(message.streams, "streams", |stream, at| {
        let route = object(stream.name, &format!("{at}.name"))?;
        Ok(StreamRoute {
            label: route.to_string().into(),
            name: route,
            ports: each(stream.ports, &format!("{at}.ports"), port)?,
            server_names: each(stream.server_names, &format!("{at}.server_names"), hostname)?,
            backends: rule::backends(stream.backends, at)?,
        })
    })?;
    Ok(Decoded::Routes(Routes { client_namespace: client_namespace.into(), service, routes, streams }))
}

fn workload(message: v1::Workload, name: &str) -> Result<Decoded> {
    Ok(Decoded::Workload(WorkloadInfo {
        name: named_object(message.name, name, "name")?,
        id: spiffe_id(&message.spiffe_id, "spiffe_id")?,
        addresses: each(message.addresses, "addresses", |address, at| ip(&address, at))?,
        zone: zone(message.locality),
    }))
}

fn inbound_policy(message: v1::InboundPolicy, name: &str) -> Result<Decoded> {
    let workload = named_object(message.workload, name, "workload")?;
    let default = mode(message.mode, "mode")?;
    let mut ports: Vec<(u16, PortPolicy)> = Vec::with_capacity(message.ports.len());
    let (mut seen, mut connection_ages) = (HashSet::new(), Vec::new());
    let (mut access_logs, mut samplings) = (Vec::new(), Vec::new());
    for (i, port) in message.ports.into_iter().enumerate() {
        let at = format!("ports[{i}]");
        let number = self::port(port.port, &format!("{at}.port"))?;
        if !seen.insert(number) {
            return Err(fault(format!("{at}.port"), format!("{number} is there twice")));
        }
        let protocol = protocol(port.protocol, &format!("{at}.protocol"))?;
        let (mode_at, age_at) = (format!("{at}.mode"), format!("{at}.maximum_connection_age"));
        let mode = mode(port.mode, &mode_at)?;
        let age = duration(port.maximum_connection_age, &age_at)?;
        connection_ages.extend(age.map(|age| (number, age)));
        let said = logged::access_log(port.access_log.unwrap_or_default(), &format!("{at}.access_log"))?;
        access_logs.extend((!said.is_empty()).then_some((number, said)));
        let said = logged::sampling(port.sampling, &format!("{at}.sampling"))?;
        samplings.extend((!said.is_empty()).then_some((number, said)));
        ports.push((number, PortPolicy { protocol, mode }));
    }
    let rules = each(message.rules, "rules", |rule, at| {
        if rule.name.is_empty() {
            return Err(fault(format!("{at}.name"), "is missing"));
        }
        Ok(Allow {
            name: rule.name.into(),
            ports: each(rule.ports, &format!("{at}.ports"), port)?,
            identities: each(rule.identities, &format!("{at}.identities"), |id, at| spiffe_id(&id, at))?,
        })
    })?;
    let unspoken = Unspoken {
        networks: each(message.default_networks, "default_networks", network)?,
        audited: message.default_audited,
    };
    let mut patterns = rule::Patterns::default();
    let rate_limits = rate::rate_limits(message.rate_limits, &mut patterns, "rate_limits")?;
    let policies = access::policies(message.policies, &mut patterns, "policies")?;
    Ok(Decoded::InboundPolicy(Box::new(InboundSpec {
        workload,
        mode: default,
        ports,
        rules,
        policies,
        trust_domain: None,
        unspoken,
        rate_limits,
        connection_ages,
        access_logs,
        samplings,
        access_log: logged::said(message.access_log)?,
        sampling: logged::sampling(message.sampling, "sampling")?,
        authentications: authentication::authentications(message.authentications, "authentications")?,
        external: external::external(message.external, "external")?,
    })))
}

fn egress_policy(message: v1::EgressPolicy, name: &str) -> Result<Decoded> {
    name.parse::<ObjectName>().map_err(|error| fault("", error.to_string()))?;
    if message.action_name.is_empty() {
        return Err(fault("action_name", "is missing"));
    }
    let rules = each(message.rules, "rules", |rule, at| {
        if rule.name.is_empty() {
            return Err(fault(format!("{at}.name"), "is missing"));
        }
        let sni = each(rule.sni, &format!("{at}.sni"), hostname)?;
        let hosts = each(rule.hosts, &format!("{at}.hosts"), hostname)?;
        let names = match (sni.is_empty(), hosts.is_empty()) {
            (true, true) => Names::Any,
            (false, true) => Names::Sni(sni),
            (true, false) => Names::Host(hosts),
            (false, false) => {
                return Err(fault(format!("{at}.hosts"), "is there beside `sni`; no connection has both"));
            }
        };
        Ok(EgressRule {
            name: rule.name.into(),
            action: action(rule.action, &format!("{at}.action"))?,
            networks: each(rule.networks, &format!("{at}.networks"), network)?,
            ports: each(rule.ports, &format!("{at}.ports"), port)?,
            names,
        })
    })?;
    let action = action(message.action, "action")?;
    let spec = EgressSpec { action, action_name: message.action_name.into(), rules };
    Ok(Decoded::EgressPolicy { spec, registered: message.registered })
}

fn mesh(message: v1::Mesh, name: &str) -> Result<Decoded> {
    if name != tulle_api::MESH {
        return Err(fault("", format!("is named {name:?}; the only one is named {:?}", tulle_api::MESH)));
    }
    Ok(Decoded::Mesh(Box::new(MeshInfo {
        trust_domain: trust_domain(&message.trust_domain)?,
        mode: mode(message.mtls, "mtls")?,
        networks: each(message.networks, "networks", network)?,
        session_key: match &*message.session_key {
            [] => None,
            secret => Some(SessionKey::new(secret).ok_or_else(|| fault("session_key", "is not 32 bytes"))?),
        },
        tracing: message.tracing.map(|said| tracing(said, "tracing")).transpose()?,
        access_log: logged::said(message.access_log)?,
    })))
}

fn tracing(message: v1::Tracing, at: &str) -> Result<Tracing> {
    let uri = otel::uri(&message.collector).map_err(|why| fault(format!("{at}.collector"), why))?;
    let protocol = match v1::OtlpProtocol::try_from(message.protocol) {
        Ok(v1::OtlpProtocol::Unspecified) => None,
        Ok(v1::OtlpProtocol::Grpc) => Some(trace::Protocol::Grpc),
        Ok(v1::OtlpProtocol::Http) => Some(trace::Protocol::Http),
        Err(unknown) => return Err(fault(format!("{at}.protocol"), unknown.to_string())),
    };
    let sampling = message.sampling.map(|said| {
        let ignores_parent = said.ignores_parent.unwrap_or_default();
        let name = if ignores_parent { "traceidratio" } else { "parentbased_traceidratio" };
        (name.to_owned(), f64::from(said.millionths.unwrap_or_default()) / 1e6)
    });
    let (sampler, ratio) = sampling.unzip();
    let endpoint = Some(otel::Endpoint { uri, is_whole: false });
    let connections = Some(message.connections);
    Ok(Tracing { endpoint, protocol, sampler, ratio, connections, ..Tracing::default() })
}

fn trust_bundle(message: v1::TrustBundle, name: &str) -> Result<Decoded> {
    named(&message.trust_domain, name, "trust_domain")?;
    let domain = trust_domain(&message.trust_domain)?;
    TrustBundle::from_der(domain, &message.x509_authorities)
        .map(Decoded::TrustBundle)
        .map_err(|error| fault("x509_authorities", error.to_string()))
}

// === impl the parts ===

/// Decodes each element; the closure gets its path.
fn each<T, U>(items: Vec<T>, field: &str, mut decode: impl FnMut(T, &str) -> Result<U>) -> Result<Vec<U>> {
    items.into_iter().enumerate().map(|(i, item)| decode(item, &format!("{field}[{i}]"))).collect()
}

fn port(number: u32, at: &str) -> Result<u16> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| fault(at, format!("{number} is not a port from 1 to 65535")))
}

fn ip(text: &str, at: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| fault(at, format!("{text:?} is not an IP address")))
}

fn network(text: String, at: &str) -> Result<IpNet> {
    text.parse().map_err(|_| fault(at, format!("{text:?} is not a CIDR block")))
}

fn hostname(text: String, at: &str) -> Result<Hostname> {
    text.parse::<Hostname>().map_err(|error| fault(at, error.to_string()))
}

fn named(said: &str, name: &str, at: &str) -> Result<()> {
    if said == name { Ok(()) } else { Err(fault(at, format!("is {said:?} in the resource named {name:?}"))) }
}

fn object(name: Option<v1::ObjectName>, at: &str) -> Result<ObjectName> {
    let v1::ObjectName { namespace, name } = name.ok_or_else(|| fault(at, "is missing"))?;
    let whole = |part: &str| !part.is_empty() && !part.contains('/');
    if !whole(&namespace) || !whole(&name) {
        return Err(fault(at, format!("{namespace:?} and {name:?} are not a namespace and a name")));
    }
    Ok(ObjectName::new(&namespace, &name))
}

fn named_object(said: Option<v1::ObjectName>, name: &str, at: &str) -> Result<ObjectName> {
    let said = object(said, at)?;
    named(&said.to_string(), name, at)?;
    Ok(said)
}

fn optional_object(text: &str, at: &str) -> Result<Option<ObjectName>> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| fault(at, format!("{error}")))
}

fn spiffe_id(text: &str, at: &str) -> Result<SpiffeId> {
    SpiffeId::parse(text).map_err(|error| fault(at, error.to_string()))
}

fn trust_domain(text: &str) -> Result<TrustDomain> {
    TrustDomain::new(text).map_err(|error| fault("trust_domain", error.to_string()))
}

fn peer(peer: Option<v1::Peer>, at: &str) -> Result<Peer> {
    use v1::peer::Peer as P;
    // Silence is never taken for plaintext.
    match peer.and_then(|peer| peer.peer).ok_or_else(|| fault(at, "is missing"))? {
        P::SpiffeId(id) => spiffe_id(&id, at).map(Peer::Mesh),
        P::Plaintext(_) => Ok(Peer::Plaintext),
    }
}

fn protocol(number: i32, at: &str) -> Result<Protocol> {
    let known = v1::Protocol::try_from(number).map_err(|_| fault(at, format!("{number} is not known")))?;
    Ok(match known {
        v1::Protocol::Unspecified => Protocol::Detect,
        v1::Protocol::Http => Protocol::Http,
        v1::Protocol::Http2 => Protocol::Http2,
        v1::Protocol::Grpc => Protocol::Grpc,
        v1::Protocol::Tcp => Protocol::Tcp,
        v1::Protocol::Tls => Protocol::Tls,
    })
}

fn mode(number: i32, at: &str) -> Result<Mode> {
    match v1::MtlsMode::try_from(number) {
        Ok(v1::MtlsMode::Permissive) => Ok(Mode::Permissive),
        Ok(v1::MtlsMode::Strict) => Ok(Mode::Strict),
        Ok(v1::MtlsMode::Off) => Ok(Mode::Off),
        Ok(v1::MtlsMode::Unspecified) => Err(fault(at, "is not set")),
        Err(_) => Err(fault(at, format!("{number} is not known"))),
    }
}

fn action(number: i32, at: &str) -> Result<Action> {
    match v1::EgressAction::try_from(number) {
        Ok(v1::EgressAction::Allow) => Ok(Action::Allow),
        Ok(v1::EgressAction::Audit) => Ok(Action::Audit),
        Ok(v1::EgressAction::Deny) => Ok(Action::Deny),
        Ok(v1::EgressAction::Unspecified) => Err(fault(at, "is not set")),
        Err(_) => Err(fault(at, format!("{number} is not known"))),
    }
}

fn duration(duration: Option<prost_types::Duration>, at: &str) -> Result<Option<Duration>> {
    let Some(duration) = duration else { return Ok(None) };
    let duration =
        Duration::try_from(duration).map_err(|error| fault(at, format!("is not a duration: {error}")))?;
    Ok((!duration.is_zero()).then_some(duration))
}

fn zone(locality: Option<v1::Locality>) -> Option<Arc<str>> {
    locality.map(|locality| locality.zone).filter(|zone| !zone.is_empty()).map(Arc::from)
}

#[cfg(test)]
mod tests;
