//! Service: a name, its ports, and what they speak.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tulle_api::v1;

use super::{NamespacedName, OPAQUE_PORTS, Pod, port};
use crate::finding::Notes;

/// A Service, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its own name.
    pub name: NamespacedName,
    /// Virtual IPs as written, sorted; none for a headless service and in most folders.
    pub addresses: Vec<IpAddr>,
    /// `clusterIP: None`: it has no virtual IP, and its name means its endpoints.
    pub headless: bool,
    /// TCP ports only, by number.
    pub ports: Vec<Port>,
    /// Endpoints count as ready whatever their conditions say.
    pub publish_not_ready: bool,
    /// `sessionAffinity: ClientIP`.
    pub client_ip_affinity: bool,
    /// The labels of the Pods behind it, sorted; none: nobody is told by labels.
    pub selector: Vec<(Box<str>, Box<str>)>,
    /// `type: ExternalName`: another name for this one, which DNS follows; it has no endpoints.
    pub external_name: Option<String>,
    /// `trafficDistribution: PreferSameZone`, or `PreferClose`, which is the same; for `PreferSameNode` the nearest that there is.
    pub prefers_zone: bool,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// 1–65535.
    pub number: u16,
    /// Empty for a single unnamed port.
    pub name: String,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Where its Pods answer.
    pub target: TargetPort,
}

/// The port of a Pod that a Service's port leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// This one.
    Number(u16),
    /// The one that the Pod calls so.
    Named(Box<str>),
}

/// What a port speaks, as far as it is declared.
pub type Protocol = v1::Protocol;

// === impl Service ===

impl Service {
    pub(super) fn read(object: &core::Service, notes: &mut Notes) -> Self {
        let default = core::ServiceSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&default);
        let opaque = object
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(OPAQUE_PORTS))
            .map(|text| read_port_list(OPAQUE_PORTS, text, notes));
        let external_name =
            spec.external_name.clone().filter(|_| spec.type_.as_deref() == Some("ExternalName"));
        let selector = spec.selector.iter().flatten().filter(|_| external_name.is_none());
        Self {
            name: NamespacedName::of(&object.metadata),
            addresses: read_addresses(spec, notes),
            headless: spec.cluster_ip.as_deref() == Some("None") || external_name.is_some(),
            selector: selector.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
            external_name,
            ports: read_ports(spec, opaque.as_deref(), notes),
            client_ip_affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
            prefers_zone: read_distribution(spec, notes),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        }
    }

    /// Whether a Pod's labels are those that it selects.
    pub fn selects(&self, pod: &Pod) -> bool {
        !self.selector.is_empty()
            && self.name.namespace == pod.name.namespace
            && self.selector.iter().all(|(key, value)| pod.label(key) == Some(value))
    }

    /// The port of that number, if it has one.
    pub fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }
}

/// Kubernetes takes it for a wish, and falls back to all endpoints; so is a value that is not known.
fn read_distribution(spec: &core::ServiceSpec, notes: &mut Notes) -> bool {
    match spec.traffic_distribution.as_deref() {
        None => false,
        Some("PreferClose" | "PreferSameZone") => true,
        Some("PreferSameNode") => {
            notes.warn(
                "spec.trafficDistribution",
                "`PreferSameNode` is taken for `PreferSameZone`: proxies know zones, and no nodes",
                "write `PreferSameZone`",
            );
            true
        }
        Some(other) => {
            notes.warn(
                "spec.trafficDistribution",
                format!("`{other}` is not known; all endpoints are taken alike"),
                "known: PreferSameZone, PreferClose",
            );
            false
        }
    }
}

fn read_addresses(spec: &core::ServiceSpec, notes: &mut Notes) -> Vec<IpAddr> {
    let many = spec.cluster_ips.iter().flatten().enumerate();
    let mut texts: Vec<(String, &str)> =
        many.map(|(index, text)| (format!("spec.clusterIPs[{index}]"), text.as_str())).collect();
    texts.extend(spec.cluster_ip.iter().map(|text| ("spec.clusterIP".to_owned(), text.as_str())));
    let mut addresses = Vec::with_capacity(texts.len());
    for (field, text) in texts {
        if text.is_empty() || text == "None" {
            continue;
        }
        match text.parse::<IpAddr>() {
            Ok(address) => addresses.push(address.to_canonical()),
            Err(_) => notes.refuse(
                field,
                format!("`{text}` is not an IP address"),
                "an IPv4 or IPv6 address, or `None`",
            ),
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn read_ports(
    spec: &core::ServiceSpec,
    opaque: Option<&[RangeInclusive<u16>]>,
    notes: &mut Notes,
) -> Vec<Port> {
    let written = spec.ports.as_deref().unwrap_or_default();
    let mut ports: Vec<Port> = Vec::with_capacity(written.len());
    for (index, entry) in written.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        match entry.protocol.as_deref() {
            None | Some("TCP") => {}
            // The mesh carries TCP; other ports go their way beside it.
            Some("UDP" | "SCTP") => continue,
            Some(other) => {
                notes.refuse(
                    format!("{at}.protocol"),
                    format!("`{other}` is not a protocol"),
                    "`TCP`, `UDP` or `SCTP`; what is spoken on it goes into `appProtocol`",
                );
                continue;
            }
        }
        let number = port(entry.port, format!("{at}.port"), notes);
        let name = entry.name.clone().unwrap_or_default();
        if ports.iter().any(|known| known.number == number) {
            notes.refuse(format!("{at}.port"), format!("port {number} is listed twice"), "remove one");
        }
        if ports.iter().any(|known| known.name == name) {
            if name.is_empty() {
                notes.warn(
                    at.clone(),
                    "of several ports, more than one has no name; Kubernetes would refuse the Service",
                    "name the ports: EndpointSlices refer to them by name",
                );
            } else {
                notes.refuse(format!("{at}.name"), format!("two ports are called `{name}`"), "rename one");
            }
        }
        let protocol = protocol(&at, number, entry, opaque, notes);
        ports.push(Port { protocol, number, name, target: target(entry, number) });
    }
    ports.sort_unstable_by_key(|port| port.number);
    ports
}

/// The port itself unless another is written. A number that is no port leads nowhere, as in Kubernetes.
fn target(port: &core::ServicePort, number: u16) -> TargetPort {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::Int(target)) => TargetPort::Number(u16::try_from(*target).unwrap_or_default()),
        Some(IntOrString::String(name)) => TargetPort::Named(name.as_str().into()),
    }
}

/// The most explicit wins: our annotation, `appProtocol`, the name's prefix, well-known opaque ports.
fn protocol(
    at: &str,
    number: u16,
    port: &core::ServicePort,
    opaque: Option<&[RangeInclusive<u16>]>,
    notes: &mut Notes,
) -> Protocol {
    if opaque.is_some_and(|ranges| ranges.iter().any(|range| range.contains(&number))) {
        return Protocol::Tcp;
    }
    if let Some(declared) = port.app_protocol.as_deref().filter(|text| !text.is_empty()) {
        return by_name(declared).unwrap_or_else(|| {
            notes.warn(
                format!("{at}.appProtocol"),
                format!("`{declared}` is not known; what is spoken is told from the first bytes"),
                "known: http, kubernetes.io/h2c, grpc, tcp, tls, https",
            );
            Protocol::Unspecified
        });
    }
    let prefix = port.name.as_deref().map(|name| name.split_once('-').map_or(name, |(prefix, _)| prefix));
    if let Some(declared) = prefix.and_then(by_name) {
        return declared;
    }
    // An annotation replaces the well-known ports, so that one of them can be looked into.
    let is_well_known =
        |number: u16| tulle_api::OPAQUE_PORTS.split(',').any(|port| port.parse::<u16>() == Ok(number));
    if opaque.is_none() && is_well_known(number) {
        return Protocol::Tcp;
    }
    Protocol::Unspecified
}

fn by_name(text: &str) -> Option<Protocol> {
    Some(match text.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => Protocol::Http,
        "http2" | "h2c" | "kubernetes.io/h2c" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "tls" | "https" | "kubernetes.io/wss" => Protocol::Tls,
        "tcp" | "mongo" | "mysql" | "postgres" | "postgresql" | "redis" | "amqp" | "kafka" | "mqtt"
        | "memcached" | "nats" | "smtp" | "ssh" | "ldap" => Protocol::Tcp,
        _ => return None,
    })
}

/// `4222,6379-6380` or `none`, of the annotation `key`. What cannot be read is told and left out; the rest counts.
pub(super) fn read_port_list(key: &str, text: &str, notes: &mut Notes) -> Vec<RangeInclusive<u16>> {
    let mut ranges = Vec::new();
    // As the injector and the proxy take it.
    if text.trim() == "none" {
        return ranges;
    }
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        match tulle_api::port_range(item) {
            Ok(range) => ranges.push(range),
            Err(_) => notes.error(
                format!("metadata.annotations[\"{key}\"]"),
                format!("`{item}` is neither a port nor a range of ports; it is left out"),
                "a list of ports and ranges, such as `4222,6379-6380`",
            ),
        }
    }
    ranges
}
