//! What is added to a Pod: two init containers, the second of which stays (a native sidecar, Kubernetes 1.29 and later), and a volume.

use serde_json::{Map, Value, json};
use tulle_certs::token::AUDIENCE;

use super::annotations::{Effective, METRICS_PORT, seconds};
use super::conflicts::{RESERVED, grace_of, stays_guaranteed};
use super::probes::Probes;
use super::{INIT, PROXY, VOLUME, list};
use crate::cluster::BUNDLE;

/// The proxy in the image.
const BINARY: &str = "/bin/tulle-proxy";
/// Where the volume is.
const FOLDER: &str = "/var/run/tulle";
/// The kubelet renews a token at four fifths of this; it is needed for the first certificate, and at each renewal.
const TOKEN_SECONDS: u32 = 3600;
/// OpenTelemetry's annotation for `service.name`.
const SERVICE_NAME: &str = "resource.opentelemetry.io/service.name";
/// The proxy takes no longer durations, in seconds.
const LONGEST_GRACE: u32 = 86_400;

/// The containers that are added to `pod`, in the order in which they start.
pub(super) fn containers(pod: &Value, effective: &Effective, probes: &Probes) -> [Value; 2] {
    [init(pod, effective), proxy(pod, effective, probes)]
}

/// The token and the roots: one volume, so that both are of one moment.
pub(super) fn volume() -> Value {
    json!({
        "name": VOLUME,
        "projected": {
            // The proxy's user is not the application's.
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": BUNDLE, "items": [{"key": "ca.crt", "path": "bundle/ca.crt"}]}},
            ],
        },
    })
}

/// Writes the rules, and tries them: a Pod whose connections are not led to the proxy does not start.
fn init(pod: &Value, effective: &Effective) -> Value {
    let settings = &effective.settings;
    let limits = json!({"cpu": "100m", "memory": "50Mi"});
    // To the class of a pod every container counts, also one that ends.
    let requests = match stays_guaranteed(pod, effective) {
        true => limits.clone(),
        false => json!({"cpu": "10m", "memory": "20Mi"}),
    };
    let mut env = Environment::default();
    let given = |text: &Option<String>| text.clone().filter(|text| text != "none");
    let mut inbound: Vec<String> = given(&settings.skip_inbound_ports).into_iter().collect();
    if !RESERVED.contains(&effective.metrics_port) {
        inbound.push(effective.metrics_port.to_string());
    }
    env.set("TULLE_PROXY_INTERCEPT_PROXY_UID", settings.uid.to_string());
    env.given(
        "TULLE_PROXY_INTERCEPT_SKIP_INBOUND_PORTS",
        Some(inbound.join(",")).filter(|all| !all.is_empty()),
    );
    env.given("TULLE_PROXY_INTERCEPT_SKIP_OUTBOUND_PORTS", given(&settings.skip_outbound_ports));
    env.given("TULLE_PROXY_INTERCEPT_SKIP_SUBNETS", given(&settings.skip_subnets));
    env.given("TULLE_PROXY_INTERCEPT_DNS", settings.dns.then(|| "true".to_owned()));
    env.given("TULLE_PROXY_INTERCEPT_DROP_QUIC", settings.drop_quic.then(|| "true".to_owned()));
    json!({
        "name": INIT,
        "image": effective.image(),
        "imagePullPolicy": settings.image_pull_policy,
        "command": [BINARY, "intercept", "install", "--check"],
        "env": env.0,
        "resources": {"limits": limits, "requests": requests},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            // The second for iptables, where the kernel has no nf_tables.
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            // A capability of a container's is for root alone, whatever the pod says of its users.
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

fn proxy(pod: &Value, effective: &Effective, probes: &Probes) -> Value {
    let settings = &effective.settings;
    let port = effective.metrics_port;
    let get = |path: &str| json!({"path": path, "port": port, "scheme": "HTTP"});
    json!({
        "name": PROXY,
        "image": effective.image(),
        "imagePullPolicy": settings.image_pull_policy,
        "command": [BINARY],
        // A native sidecar: started before the application, told to end after it, and no Job waits for it.
        "restartPolicy": "Always",
        "env": environment(pod, effective, probes).0,
        "ports": [{"name": "tulle-metrics", "containerPort": port, "protocol": "TCP"}],
        // The application does not start before the proxy is ready.
        "startupProbe": {
            "httpGet": get("/ready"), "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": settings.startup_seconds,
        },
        "readinessProbe": {"httpGet": get("/ready"), "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {"httpGet": get("/live"), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        // The proxy's own SIGTERM comes after the application has gone: here it learns that the pod ends.
        "lifecycle": {"preStop": {"exec": {"command": [BINARY, "drain"]}}},
        "resources": resources(effective),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": settings.uid,
            "runAsNonRoot": true,
            "runAsUser": settings.uid,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": VOLUME, "mountPath": FOLDER, "readOnly": true}],
    })
}

/// How long the proxy goes on once the pod ends: at least as long as its application may, which the proxy serves to the last.
fn grace(pod: &Value, effective: &Effective) -> String {
    let wanted = &effective.settings.shutdown_grace_period;
    let of_pod = grace_of(pod).min(LONGEST_GRACE);
    match seconds(wanted) {
        Ok(wanted) if wanted < f64::from(of_pod) => format!("{of_pod}s"),
        _ => wanted.clone(),
    }
}

fn environment(pod: &Value, effective: &Effective, probes: &Probes) -> Environment {
    let settings = &effective.settings;
    let mut env = Environment::default();
    // Not of the proxy's settings: it warns of what begins as they do and is none.
    env.field("TULLE_POD_NAMESPACE", "metadata.namespace");
    env.field("TULLE_POD_NAME", "metadata.name");
    env.field("TULLE_POD_IP", "status.podIP");
    env.set("TULLE_PROXY_WORKLOAD", "$(TULLE_POD_NAMESPACE)/$(TULLE_POD_NAME)");
    env.set("TULLE_PROXY_CONTROL_PLANE_ADDRESS", settings.control_plane());
    env.set("TULLE_PROXY_IDENTITY_TOKEN_FILE", format!("{FOLDER}/token"));
    env.set("TULLE_PROXY_IDENTITY_TRUST_BUNDLE_FILE", format!("{FOLDER}/bundle/ca.crt"));
    env.set("TULLE_PROXY_IDENTITY_TRUST_DOMAIN", settings.trust_domain.clone());
    env.set("TULLE_PROXY_CLUSTER_DOMAIN", settings.cluster_domain.clone());
    env.given("TULLE_PROXY_CPU_REQUEST", settings.resources.cpu_request.clone());
    env.set("TULLE_PROXY_DRAIN_GRACE", grace(pod, effective));
    env.set("TULLE_PROXY_LOG_LEVEL", settings.log_level.clone());
    env.set("TULLE_PROXY_LOG_FORMAT", settings.log_format.clone());
    env.given("TULLE_PROXY_ACCESS_LOG", settings.access_log.as_deref().map(literal));
    env.given("TULLE_PROXY_OPAQUE_PORTS", settings.opaque_ports.clone());
    env.given("OTEL_SERVICE_NAME", service_name(pod).map(|name| literal(&name)));
    env.given("TULLE_PROXY_DNS_LISTEN", settings.dns.then(|| "[::]:15053".to_owned()));
    env.given("TULLE_PROXY_INBOUND_CLIENT_CERT_HEADER", effective.client_cert_header.clone());
    let port = effective.metrics_port;
    env.given("TULLE_PROXY_METRICS_ADDRESS", (port != METRICS_PORT).then(|| format!("[::]:{port}")));
    if let Some(declared) = probes.declared() {
        env.set("TULLE_PROXY_PROBES", literal(&declared));
        env.set("TULLE_PROXY_PROBES_ADDRESS", "$(TULLE_POD_IP)");
    }
    env
}

/// What spans call the pod, since its own name is another with every restart: what its annotation says, else what owns it, else what its labels call
/// it; `None`: its name. Of OpenTelemetry's conventions for Kubernetes the owner goes before the labels here, so that two versions of an application
/// stay apart.
fn service_name(pod: &Value) -> Option<String> {
    let metadata = &pod["metadata"];
    let said = |map: &str, key: &str| {
        metadata[map][key].as_str().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned)
    };
    let owners = list(pod, "/metadata/ownerReferences").iter();
    let owner = owners.clone().find(|owner| owner["controller"] == true).and_then(|owner| {
        let name = owner["name"].as_str()?;
        let of_another = match owner["kind"].as_str()? {
            // A Deployment's, which appends what it also writes into this label.
            "ReplicaSet" => {
                metadata["labels"]["pod-template-hash"].as_str().and_then(|hash| name.strip_suffix(hash))
            }
            // A CronJob's, which appends the minute.
            "Job" => Some(name.trim_end_matches(|digit: char| digit.is_ascii_digit()))
                .filter(|rest| name.len() - rest.len() >= 8),
            // Such a pod is the node's.
            "Node" => return None,
            _ => None,
        };
        let of_another = of_another.and_then(|rest| rest.strip_suffix('-')).filter(|rest| !rest.is_empty());
        Some(of_another.unwrap_or(name).to_owned())
    });
    said("annotations", SERVICE_NAME)
        .or(owner)
        .or_else(|| said("labels", "app.kubernetes.io/name"))
        .or_else(|| said("labels", "app"))
}

fn resources(effective: &Effective) -> Value {
    let said = &effective.settings.resources;
    let of = |pairs: [(&str, &Option<String>); 2]| {
        let given =
            pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?))));
        given.collect::<Map<String, Value>>()
    };
    let mut resources = Map::new();
    for (key, quantities) in [
        ("limits", of([("cpu", &said.cpu_limit), ("memory", &said.memory_limit)])),
        ("requests", of([("cpu", &said.cpu_request), ("memory", &said.memory_request)])),
    ] {
        if !quantities.is_empty() {
            resources.insert(key.to_owned(), Value::Object(quantities));
        }
    }
    Value::Object(resources)
}

/// A value as it is: `$(X)` would be another variable's, and `$$` is how the kubelet reads `$`.
fn literal(value: &str) -> String {
    value.replace('$', "$$")
}

/// Variables of a container, in their order: one may refer to those before it.
#[derive(Debug, Default)]
struct Environment(Vec<Value>);

// === impl Environment ===

impl Environment {
    fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(json!({"name": name, "value": value.into()}));
    }

    fn given(&mut self, name: &str, value: Option<String>) {
        if let Some(value) = value {
            self.set(name, value);
        }
    }

    /// Of the Pod, by the downward API.
    fn field(&mut self, name: &str, path: &str) {
        self.0
            .push(json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_call_a_pod_as_what_owns_it() {
        let owned = |kind: &str, name: &str| json!([{"kind": "Other", "name": "x"}, {"kind": kind, "name": name, "controller": true}]);
        let labels = json!({"pod-template-hash": "5d8f9", "app": "label"});
        for (metadata, expected) in [
            (
                json!({"ownerReferences": owned("ReplicaSet", "orders-v1-5d8f9"), "labels": labels}),
                Some("orders-v1"),
            ),
            (json!({"ownerReferences": owned("ReplicaSet", "orders-5d8f9")}), Some("orders-5d8f9")),
            (json!({"ownerReferences": owned("ReplicaSet", "5d8f9"), "labels": labels}), Some("5d8f9")),
            (json!({"ownerReferences": owned("StatefulSet", "db")}), Some("db")),
            (json!({"ownerReferences": owned("Job", "report-29301120")}), Some("report")),
            (json!({"ownerReferences": owned("Job", "report-2")}), Some("report-2")),
            (json!({"ownerReferences": owned("Job", "29301120")}), Some("29301120")),
            (json!({"ownerReferences": owned("Node", "node-1"), "labels": {"app": "label"}}), Some("label")),
            (json!({"labels": {"app": "label", "app.kubernetes.io/name": "name"}}), Some("name")),
            (json!({"labels": {"app": " "}}), None),
            (json!({}), None),
            (
                json!({"annotations": {(SERVICE_NAME): "said"}, "ownerReferences": owned("StatefulSet", "db")}),
                Some("said"),
            ),
        ] {
            let pod = json!({"metadata": metadata});
            assert_eq!(service_name(&pod).as_deref(), expected, "{pod}");
        }
    }
}
