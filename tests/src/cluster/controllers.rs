//! What controllers make of Services and pods.

use serde_json::{Value, json};

use super::ApiServer;

impl ApiServer {
    /// Writes the EndpointSlices of a Service, as the API server has it, whose endpoints are these pods; a pod that is not ready is said not
    /// to be, and one that is being deleted to be terminating.
    pub async fn endpoints(&self, service: &Value, pods: &[&Value]) {
        for slice in slices(service, pods) {
            self.administrator().apply(&slice).await.expect("an EndpointSlice");
        }
    }
}

/// One slice for each family: pods that call a port by other numbers are not for these tests.
fn slices(service: &Value, pods: &[&Value]) -> Vec<Value> {
    let (name, namespace) = (&service["metadata"]["name"], &service["metadata"]["namespace"]);
    let families = [("IPv4", '.'), ("IPv6", ':')];
    let slices = families.iter().map(|(family, separator)| {
        let ports = array(&service["spec"]["ports"]).iter().map(|port| {
            let number = pods.first().map_or(Value::Null, |pod| target(port, pod));
            let mut port = json!({"name": port["name"], "protocol": "TCP", "appProtocol": port["appProtocol"], "port": number});
            if let Some(fields) = port.as_object_mut() {
                fields.retain(|_, value| !value.is_null());
            }
            port
        });
        let endpoints = pods.iter().flat_map(|pod| {
            let ips = array(&pod["status"]["podIPs"]).iter().filter_map(|one| one["ip"].as_str());
            let ready = array(&pod["status"]["conditions"])
                .iter()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
            let terminating = pod["metadata"]["deletionTimestamp"].is_string();
            let conditions =
                json!({"ready": ready && !terminating, "serving": ready, "terminating": terminating});
            let reference = json!({
                "kind": "Pod", "name": pod["metadata"]["name"], "namespace": pod["metadata"]["namespace"],
                "uid": pod["metadata"]["uid"],
            });
            ips.filter(|ip| ip.contains(*separator)).map(move |ip| {
                json!({
                    "addresses": [ip], "conditions": conditions,
                    "targetRef": reference,
                })
            })
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}", name.as_str().unwrap_or_default(), family.to_lowercase()),
                "namespace": namespace,
                "labels": {
                    "kubernetes.io/service-name": name,
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
            },
            "addressType": family,
            "ports": ports.collect::<Vec<_>>(),
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    });
    slices.collect()
}

/// The number of a Service's port at a pod.
fn target(port: &Value, pod: &Value) -> Value {
    match &port["targetPort"] {
        Value::Null => port["port"].clone(),
        Value::String(name) => {
            let mut all =
                array(&pod["spec"]["containers"]).iter().flat_map(|container| array(&container["ports"]));
            let named = all.find(|one| one["name"] == **name);
            named.unwrap_or_else(|| panic!("no port {name} in {pod:#}"))["containerPort"].clone()
        }
        number => number.clone(),
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
