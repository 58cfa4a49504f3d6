//! Pod: who is behind an address, and whether a proxy of ours stands beside it.
//!
//! A Pod is large, and there are many: it is read into a form of its own ([`PodForm`]) that knows only what is kept, so that
//! the rest is dropped while it is parsed. What a Pod means to the injector is decided there and not here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde::Deserialize;

use super::service::read_port_list;
use super::{DEFAULT_NAMESPACE, DefaultInbound, Identity, NamespacedName, OPAQUE_PORTS, OWN_PORTS};
use crate::finding::Notes;

/// The annotation that the injector leaves on a Pod: there is a proxy in it, and connections are led there.
pub const INJECTED: &str = "tulle.dev/status";
/// The container of the proxy. The annotation alone says nothing: a template that was copied from a Pod has it too.
pub const PROXY_CONTAINER: &str = "tulle-proxy";
/// The annotation that lists ports whose connections are not led to the proxy.
pub const SKIP_INBOUND_PORTS: &str = "config.tulle.dev/skip-inbound-ports";

/// The annotation with the port of the proxy's metrics, which are not led to it as an application's are.
const METRICS_PORT: &str = "config.tulle.dev/metrics-port";

/// The label of namespaces, and label or annotation of Pods, that says whether Pods get a proxy. A namespace's annotation says nothing: the API server selects
/// by labels.
pub const INJECT: &str = "tulle.dev/inject";

/// The service account of a Pod that names none.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// A Pod, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its own name.
    pub name: NamespacedName,
    /// Its own addresses, sorted; none before it has one, after it has ended, and where it uses its node's network.
    pub addresses: Vec<IpAddr>,
    /// The identity that its proxy proves.
    pub identity: Identity,
    /// A proxy of ours stands beside it.
    pub meshed: bool,
    /// It asks for one by itself.
    pub asks: bool,
    /// Ports whose connections its proxy does not see.
    pub skipped: Vec<RangeInclusive<u16>>,
    /// Ports whose bytes are not looked into.
    pub opaque: Vec<RangeInclusive<u16>>,
    /// Who is let in at ports of which no policy speaks, if it says so.
    pub default_inbound: Option<DefaultInbound>,
    /// By which Services select it, sorted.
    pub labels: Vec<(Box<str>, Box<str>)>,
    /// The TCP ports that it names: what a Service's `targetPort` may refer to.
    pub ports: Vec<(Box<str>, u16)>,
    /// It is about to end: what has its address next is believed rather.
    pub ending: bool,
}

/// What is parsed of a Pod; all else is skipped.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PodForm {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    namespace: Option<String>,
    name: Option<String>,
    labels: Option<BTreeMap<Box<str>, Box<str>>>,
    annotations: Option<Annotations>,
    deletion_timestamp: Option<String>,
    resource_version: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "tulle.dev/status")]
    injected: Option<String>,
    #[serde(rename = "tulle.dev/inject")]
    inject: Option<String>,
    #[serde(rename = "config.tulle.dev/skip-inbound-ports")]
    skip_inbound_ports: Option<String>,
    #[serde(rename = "config.tulle.dev/metrics-port")]
    metrics_port: Option<String>,
    #[serde(rename = "config.tulle.dev/opaque-ports")]
    opaque_ports: Option<String>,
    #[serde(rename = "config.tulle.dev/default-inbound-policy")]
    default_inbound_policy: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    service_account_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Container {
    name: Option<String>,
    ports: Option<Vec<ContainerPort>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerPort {
    name: Option<Box<str>>,
    container_port: i64,
    protocol: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: Option<String>,
}

// === impl PodForm ===

impl PodForm {
    /// Its `metadata.resourceVersion`.
    pub fn version(&self) -> Option<&str> {
        self.metadata.resource_version.as_deref()
    }

    /// What it is called.
    pub fn name(&self) -> NamespacedName {
        let Metadata { namespace, name, .. } = &self.metadata;
        NamespacedName::new(
            namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE),
            name.as_deref().unwrap_or_default(),
        )
    }
}

// === impl Pod ===

impl Pod {
    pub(super) fn read(form: &PodForm, notes: &mut Notes) -> Self {
        let PodForm { metadata, spec, status } = form;
        let namespace = metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let on_host = spec.host_network == Some(true);
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty());
        let annotations = metadata.annotations.clone().unwrap_or_default();
        let mut ports = |key: &str, text: Option<&str>| {
            text.map(|text| read_port_list(key, text, notes)).unwrap_or_default()
        };
        let labels = metadata.labels.iter().flatten();
        let label = metadata.labels.as_ref().and_then(|labels| labels.get(INJECT));
        let says = label.map(|label| &**label).or(annotations.inject.as_deref());
        let asks = says == Some("enabled");
        let mut skipped = ports(SKIP_INBOUND_PORTS, annotations.skip_inbound_ports.as_deref());
        skipped.extend(ports(METRICS_PORT, annotations.metrics_port.as_deref()));
        let opaque = ports(OPAQUE_PORTS, annotations.opaque_ports.as_deref());
        let default_inbound = annotations.default_inbound_policy.as_deref();
        Self {
            name: form.name(),
            addresses: if on_host || ended { Vec::new() } else { read_addresses(status) },
            identity: Identity::ServiceAccount {
                namespace: namespace.to_owned(),
                name: account.unwrap_or(DEFAULT_SERVICE_ACCOUNT).to_owned(),
            },
            meshed: annotations.injected.is_some() && has_proxy(spec) && !on_host && !ended,
            asks,
            skipped,
            opaque,
            default_inbound: default_inbound.map(|text| DefaultInbound::read(text, notes)),
            labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
            ports: read_ports(spec),
            ending: metadata.deletion_timestamp.is_some(),
        }
    }

    /// Whether its proxy stands before this port: neither a port that is skipped nor one of the proxy's own.
    pub fn is_meshed_at(&self, port: u16) -> bool {
        self.meshed && !OWN_PORTS.contains(&port) && !contain(&self.skipped, port)
    }

    /// Whether it says that bytes at this port are not looked into.
    pub fn is_opaque_at(&self, port: u16) -> bool {
        contain(&self.opaque, port)
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        self.labels.get(at).map(|(_, value)| &**value)
    }

    /// The port that it calls so.
    pub fn port_called(&self, name: &str) -> Option<u16> {
        self.ports.iter().find(|(known, _)| **known == *name).map(|(_, port)| *port)
    }
}

fn contain(ranges: &[RangeInclusive<u16>], port: u16) -> bool {
    ranges.iter().any(|range| range.contains(&port))
}

/// The kubelet writes them; what it cannot mean is left out.
fn read_addresses(status: &Status) -> Vec<IpAddr> {
    let many = status.pod_ips.iter().flatten().filter_map(|one| one.ip.as_deref());
    let addresses = many.chain(status.pod_ip.as_deref()).filter_map(|text| text.parse::<IpAddr>().ok());
    let mut addresses: Vec<IpAddr> = addresses.map(|address| address.to_canonical()).collect();
    addresses.retain(|address| !address.is_unspecified() && !address.is_loopback());
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn has_proxy(spec: &Spec) -> bool {
    let mut containers = spec.init_containers.iter().chain(&spec.containers).flatten();
    containers.any(|container| container.name.as_deref() == Some(PROXY_CONTAINER))
}

/// Sidecars are init containers that stay, so that those are looked at too.
fn read_ports(spec: &Spec) -> Vec<(Box<str>, u16)> {
    let containers = spec.containers.iter().chain(&spec.init_containers).flatten();
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let tcp = ports.filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")));
    let named = tcp.filter_map(|port| {
        let number = u16::try_from(port.container_port).ok().filter(|number| *number > 0)?;
        Some((port.name.clone()?, number))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{DEFAULT_INBOUND_POLICY, Object};
    use super::*;

    fn read(pod: serde_json::Value) -> (Pod, Vec<String>) {
        let form: PodForm = serde_json::from_value(pod).unwrap();
        let mut notes = Notes::default();
        let Some(Object::Pod(pod)) = Object::pod(&form, &mut notes) else { panic!("refused") };
        (pod, notes.into_inner().into_iter().map(|note| note.field).collect())
    }

    fn meshed(mut change: impl FnMut(&mut serde_json::Value)) -> Pod {
        let mut pod = json!({
            "metadata": {
                "namespace": "shop", "name": "orders-0",
                "labels": {"app": "orders", "tier": "back"},
                "annotations": {"tulle.dev/status": "{}", "other.dev/thing": "x"},
            },
            "spec": {"serviceAccountName": "orders", "nodeName": "n", "initContainers": [{"name": "tulle-proxy"}], "containers": [
                {"name": "app", "image": "i", "ports": [
                    {"name": "web", "containerPort": 8080}, {"containerPort": 9090},
                    {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                ]},
            ]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "fd00::1"}, {"ip": "10.0.0.1"}]},
        });
        change(&mut pod);
        read(pod).0
    }

    #[test]
    fn a_pod_with_a_proxy_is_its_service_account() {
        let pod = meshed(|_| ());
        assert_eq!(pod.name.to_string(), "shop/orders-0");
        assert_eq!(pod.identity.spiffe_id("cluster.local"), "spiffe://cluster.local/ns/shop/sa/orders");
        assert_eq!(
            pod.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.1", "fd00::1"]
        );
        assert!(pod.is_meshed_at(8080) && !pod.is_meshed_at(15020), "its own ports are not led to it");
        assert_eq!((pod.label("tier"), pod.label("none")), (Some("back"), None));
        assert_eq!((pod.port_called("web"), pod.port_called("dns")), (Some(8080), None));
    }

    #[test]
    fn a_pod_asks_by_its_label_or_else_by_its_annotation() {
        let asks = |label: &str, annotation: &str| {
            meshed(|pod| {
                pod["metadata"]["labels"][INJECT] = json!(label);
                pod["metadata"]["annotations"][INJECT] = json!(annotation);
            })
            .asks
        };
        assert_eq!((asks("enabled", "disabled"), asks("disabled", "enabled")), (true, false));
        let annotated = meshed(|pod| pod["metadata"]["annotations"][INJECT] = json!("enabled"));
        assert!(annotated.asks && !meshed(|_| ()).asks);
    }

    #[test]
    fn who_has_no_proxy_is_not_in_the_mesh() {
        let bare = meshed(|pod| pod["metadata"]["annotations"] = json!(null));
        assert!(!bare.is_meshed_at(8080) && bare.addresses.len() == 2);
        let copied = meshed(|pod| pod["spec"]["initContainers"] = json!([{"name": "migrate"}]));
        assert!(!copied.is_meshed_at(8080), "the annotation of another pod, and no proxy");
        let on_host = meshed(|pod| pod["spec"]["hostNetwork"] = json!(true));
        assert!(!on_host.meshed && on_host.addresses.is_empty(), "its addresses are its node's");
        for phase in ["Succeeded", "Failed"] {
            let ended = meshed(|pod| pod["status"]["phase"] = json!(phase));
            assert!(!ended.meshed && ended.addresses.is_empty(), "another may have its address");
        }
    }

    #[test]
    fn ports_are_skipped_one_by_one_and_in_ranges() {
        let pod = meshed(|pod| {
            pod["metadata"]["annotations"][SKIP_INBOUND_PORTS] = json!("9000, 9100-9102");
            pod["metadata"]["annotations"][OPAQUE_PORTS] = json!("3306");
        });
        let skipped = [9000, 9100, 9102].map(|port| pod.is_meshed_at(port));
        assert_eq!((skipped, pod.is_meshed_at(9103)), ([false; 3], true));
        assert!(pod.is_opaque_at(3306) && !pod.is_opaque_at(8080));
    }

    #[test]
    fn the_port_of_the_proxys_metrics_is_not_led_to_the_proxy() {
        let pod = meshed(|pod| {
            pod["metadata"]["annotations"][SKIP_INBOUND_PORTS] = json!("none");
            pod["metadata"]["annotations"][METRICS_PORT] = json!("9999");
        });
        assert_eq!([9998, 9999].map(|port| pod.is_meshed_at(port)), [true, false]);
        let annotations = json!({SKIP_INBOUND_PORTS: "none", OPAQUE_PORTS: "none"});
        assert!(read(json!({"metadata": {"name": "a", "annotations": annotations}})).1.is_empty());
    }

    #[test]
    fn a_list_of_ports_that_cannot_be_read_is_told_and_the_rest_counts() {
        let annotations = json!({"tulle.dev/status": "", "config.tulle.dev/skip-inbound-ports": "http,9000"});
        let spec = json!({"containers": [{"name": "app"}, {"name": "tulle-proxy"}]});
        let (pod, fields) =
            read(json!({"metadata": {"name": "a", "annotations": annotations}, "spec": spec}));
        assert!(!pod.is_meshed_at(9000) && pod.is_meshed_at(80));
        assert_eq!(fields, ["metadata.annotations[\"config.tulle.dev/skip-inbound-ports\"]"]);
        let none = json!({"config.tulle.dev/opaque-ports": "none"});
        let (pod, fields) = read(json!({"metadata": {"name": "a", "annotations": none}}));
        assert!(pod.opaque.is_empty() && fields.is_empty(), "{fields:?}");
    }

    #[test]
    fn a_default_policy_that_cannot_be_read_is_told_and_lets_nobody_in() {
        let read = |policy: &str| {
            read(json!({"metadata": {"name": "a", "annotations": {DEFAULT_INBOUND_POLICY: policy}}}))
        };
        for (text, choice) in DefaultInbound::ALL {
            let (pod, fields) = read(text);
            assert!(pod.default_inbound == Some(choice) && fields.is_empty(), "{text}");
        }
        let (pod, fields) = read("denied");
        assert_eq!(pod.default_inbound, Some(DefaultInbound::Deny));
        assert_eq!(fields, ["metadata.annotations[\"config.tulle.dev/default-inbound-policy\"]"]);
    }

    #[test]
    fn nearly_nothing_is_a_pod_too() {
        let (pod, fields) = read(json!({"metadata": {"name": "a"}}));
        assert_eq!(pod.identity.spiffe_id("t"), "spiffe://t/ns/default/sa/default");
        assert!(pod.addresses.is_empty() && !pod.meshed && fields.is_empty());
    }
}
