//! EndpointSlice: where a Service is answered.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as discovery;

use super::policy::IDENTITY_HINT;
use super::{DEFAULT_NAMESPACE, IDENTITY, Identity, NamespacedName, WEIGHT, is_label, is_subdomain, port};
use crate::finding::Notes;

/// The label that says which Service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// An EndpointSlice, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Its own name.
    pub name: NamespacedName,
    /// The Service it belongs to, in the same namespace.
    pub service: NamespacedName,
    /// Whom to expect on every port; none: plaintext.
    pub identity: Option<Identity>,
    /// What each endpoint gets beside others, 1–1,000; 0: it does not say, which is 100.
    pub weight: u32,
    /// Port name (of the Service's port) and the port to dial.
    pub ports: Vec<(String, u16)>,
    /// In the order written.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One address of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Where to dial.
    pub address: IpAddr,
    /// The pod, where it is named.
    pub workload: Option<NamespacedName>,
    /// Empty when unknown.
    pub zone: String,
    /// May be picked.
    pub ready: bool,
    /// Said not to answer: nothing is sent there, whoever else is not ready.
    pub gone: bool,
}

// === impl Slice ===

impl Slice {
    pub(super) fn read(object: &discovery::EndpointSlice, notes: &mut Notes) -> Self {
        let name = NamespacedName::of(&object.metadata);
        let label = |key: &str| object.metadata.labels.as_ref()?.get(key).map(String::as_str);
        let service = label(SERVICE_NAME).unwrap_or_default();
        if service.is_empty() {
            notes.refuse(
                "metadata.labels",
                "the slice belongs to no Service",
                &format!("add the label `{SERVICE_NAME}: <Service>`"),
            );
        }
        Self {
            service: NamespacedName::new(name.namespace.clone(), service),
            identity: read_identity(object, notes),
            weight: read_weight(object, notes),
            ports: read_ports(object, notes),
            endpoints: read_endpoints(&name, object, notes),
            name,
        }
    }
}

impl Slice {
    /// Where its endpoints are; may name one more than once.
    pub fn addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.endpoints.iter().map(|endpoint| &endpoint.address)
    }

    /// The pods behind its endpoints, as far as they are named.
    pub fn workloads(&self) -> impl Iterator<Item = &NamespacedName> {
        self.endpoints.iter().filter_map(|endpoint| endpoint.workload.as_ref())
    }
}

/// An identity that cannot be read refuses the slice: it must not turn into plaintext.
fn read_identity(object: &discovery::EndpointSlice, notes: &mut Notes) -> Option<Identity> {
    let text = object.metadata.annotations.as_ref()?.get(IDENTITY)?;
    let identity = Identity::parse(text);
    if identity.is_none() {
        notes.refuse(
            format!("metadata.annotations[\"{IDENTITY}\"]"),
            format!("`{text}` is not an identity"),
            IDENTITY_HINT,
        );
    }
    identity
}

/// A weight that cannot be read is told, and the endpoints get as much as others.
fn read_weight(object: &discovery::EndpointSlice, notes: &mut Notes) -> u32 {
    let Some(text) = object.metadata.annotations.as_ref().and_then(|annotations| annotations.get(WEIGHT))
    else {
        return 0;
    };
    match text.parse::<u32>() {
        Ok(weight @ 1..=1000) => weight,
        _ => {
            notes.error(
                format!("metadata.annotations[\"{WEIGHT}\"]"),
                format!("`{text}` is not a weight; the endpoints get as much as others, which is 100"),
                "a whole number, 1 to 1000",
            );
            0
        }
    }
}

fn read_ports(object: &discovery::EndpointSlice, notes: &mut Notes) -> Vec<(String, u16)> {
    let mut ports: Vec<(String, u16)> = Vec::new();
    for (index, entry) in object.ports.iter().flatten().enumerate() {
        let at = format!("ports[{index}]");
        if !matches!(entry.protocol.as_deref(), None | Some("TCP")) {
            continue;
        }
        let name = entry.name.clone().unwrap_or_default();
        let Some(number) = entry.port else {
            notes.error(at, "a port without a number is not supported; it is left out", "write `port:`");
            continue;
        };
        if ports.iter().any(|(known, _)| *known == name) {
            notes.refuse(format!("{at}.name"), format!("two ports are called `{name}`"), "rename one");
        }
        ports.push((name, port(number, format!("{at}.port"), notes)));
    }
    ports
}

fn read_endpoints(
    slice: &NamespacedName,
    object: &discovery::EndpointSlice,
    notes: &mut Notes,
) -> Vec<SliceEndpoint> {
    let wants_v6 = match object.address_type.as_str() {
        "IPv4" => false,
        "IPv6" => true,
        other => {
            notes.refuse("addressType", format!("`{other}` is not supported"), "`IPv4` or `IPv6`");
            return Vec::new();
        }
    };
    let mut endpoints = Vec::new();
    for (index, endpoint) in object.endpoints.iter().flatten().enumerate() {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let serving = conditions.serving.unwrap_or(ready);
        let terminating = conditions.terminating.unwrap_or(false);
        // Kubernetes falls back to those that go away and still serve, and to no others: a Pod that has not started yet, or fails its probe, is
        // written as not serving. Where `publishNotReadyAddresses` wants it all the same, it is written as ready.
        let gone = !serving && (terminating || (!ready && conditions.serving.is_some()));
        let workload = read_workload(slice, endpoint, &format!("endpoints[{index}].targetRef"), notes);
        for (at, text) in endpoint.addresses.iter().enumerate() {
            let parsed = text.parse::<IpAddr>().ok();
            // 0.0.0.0, dialled, is the proxy's own host.
            let dialled = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast();
            let Some(address) = parsed.filter(|ip| ip.is_ipv6() == wants_v6 && dialled(ip)) else {
                notes.refuse(
                    format!("endpoints[{index}].addresses[{at}]"),
                    format!("`{text}` is not an {} address of a workload", object.address_type),
                    "a slice holds addresses of one family, which `addressType` names; each is somebody's own",
                );
                continue;
            };
            endpoints.push(SliceEndpoint {
                address: address.to_canonical(),
                workload: workload.clone(),
                zone: endpoint.zone.clone().unwrap_or_default(),
                ready: ready && !terminating,
                gone,
            });
        }
    }
    endpoints
}

/// The Pod behind an endpoint, where one is named as Pods are.
fn read_workload(
    slice: &NamespacedName,
    endpoint: &discovery::Endpoint,
    field: &str,
    notes: &mut Notes,
) -> Option<NamespacedName> {
    let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"))?;
    let namespace = target.namespace.as_deref().unwrap_or(&slice.namespace);
    let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
    let name = target.name.as_deref()?;
    if is_label(namespace) && is_subdomain(name) {
        return Some(NamespacedName::new(namespace, name));
    }
    notes.warn(
        field,
        format!("`{namespace}/{name}` cannot be a Pod; the endpoint is served without a name of its own"),
        "a Pod's name and namespace are small letters, digits and `-`",
    );
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_ready_and_does_not_serve_is_no_stand_by() {
        for (conditions, ready, gone) in [
            (json!({}), true, false),
            (json!({"ready": true, "serving": true, "terminating": false}), true, false),
            // As the controller writes a Pod that is not ready, one that goes away and still answers, and one that does not any more.
            (json!({"ready": false, "serving": false, "terminating": false}), false, true),
            (json!({"ready": false, "serving": true, "terminating": true}), false, false),
            (json!({"ready": false, "serving": false, "terminating": true}), false, true),
            // And one that is not ready, of a Service with `publishNotReadyAddresses`.
            (json!({"ready": true, "serving": false, "terminating": false}), true, false),
            // As people write them.
            (json!({"ready": false}), false, false),
        ] {
            let slice = json!({
                "metadata": {"name": "a", "labels": {(SERVICE_NAME): "a"}}, "addressType": "IPv4", "ports": [],
                "endpoints": [{"addresses": ["10.0.0.1"], "conditions": conditions}],
            });
            let object: discovery::EndpointSlice = serde_json::from_value(slice).unwrap();
            let read = Slice::read(&object, &mut Notes::default());
            assert_eq!((read.endpoints[0].ready, read.endpoints[0].gone), (ready, gone), "{conditions}");
        }
    }
}
