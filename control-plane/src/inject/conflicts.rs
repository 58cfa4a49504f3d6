//! What keeps a Pod from having a proxy, or from being better off with one.
//!
//! [`excluded`]: it should have none, whoever asks. [`conflict`]: it cannot have one as it is, and its author can mend that. [`warnings`]: it can, and
//! something is probably not as it was meant.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::annotations::{Effective, seconds};
use super::image::repository;
use super::quantity::{Quantity, same};
use super::shape::short;
use super::{
    INIT, Namespace, PROXY, Reason, STATUS, Settings, VOLUME, annotation, containers, list, name_of, said,
    stays,
};

/// Ports of proxies, which are never led to one.
pub(super) const RESERVED: RangeInclusive<u16> = tulle_api::PROXY_PORTS;
/// Those that our proxy listens on, besides that of its metrics.
const LISTENING: [u16; 3] = [15000, 15001, 15006];
/// Where it answers queries of names, if it does.
const DNS: u16 = 15053;
/// Namespaces of Kubernetes' own.
pub(super) const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// Containers of other meshes.
const STRANGERS: [&str; 5] =
    ["istio-proxy", "linkerd-proxy", "kuma-sidecar", "consul-dataplane", "cilium-envoy"];
/// The label by which a namespace says how safe its Pods must be.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";
/// Labels of nodes that say which system they run; the second is the older one.
const OS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];
/// How long a Pod may take to end unless it says.
const GRACE: u32 = 30;

/// Why nobody puts a proxy there.
pub(super) fn excluded(pod: &Value, namespace: &Namespace, settings: &Settings) -> Option<(Reason, String)> {
    let flag = |pointer: &str| pod.pointer(pointer).and_then(Value::as_bool) == Some(true);
    let because = |reason| Some((reason, said(reason)));
    if namespace.name == settings.namespace {
        return because(Reason::ControlPlane);
    }
    if SYSTEM.contains(&namespace.name.as_str()) {
        return because(Reason::SystemNamespace);
    }
    if settings.excluded_namespaces.contains(&namespace.name) {
        return because(Reason::ExcludedNamespace);
    }
    if pod.pointer("/metadata/annotations/kubernetes.io~1config.mirror").is_some() {
        return because(Reason::StaticPod);
    }
    if is_for_windows(pod) {
        return because(Reason::Windows);
    }
    if flag("/spec/hostNetwork") {
        let remedy = "set `hostNetwork: false`, or `tulle.dev/inject: disabled` on the pod if it is to stay outside the mesh";
        return Some((Reason::HostNetwork, format!("{}; {remedy}", said(Reason::HostNetwork))));
    }
    let stranger = containers(pod).filter_map(name_of).find(|name| STRANGERS.contains(name));
    stranger.map(|name| {
        let why = format!("the container `{name}` is another mesh's proxy, and two in one pod do not work; take the pod out of that mesh");
        (Reason::OtherMesh, why)
    })
}

/// Whether it runs on nodes of Windows alone, by any of the words for that.
fn is_for_windows(pod: &Value) -> bool {
    let is_windows = |value: Option<&Value>| value.and_then(Value::as_str) == Some("windows");
    let is_of_host = |value: &Value| {
        let of_host = value.pointer("/securityContext/windowsOptions/hostProcess");
        of_host.and_then(Value::as_bool) == Some(true)
    };
    // Each of the terms is enough for a node.
    let terms = list(
        pod,
        "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms",
    );
    let asks = |term: &Value| {
        list(term, "/matchExpressions").iter().any(|rule| {
            let key = rule.get("key").and_then(Value::as_str);
            let values = list(rule, "/values");
            key.is_some_and(|key| OS.contains(&key))
                && rule.get("operator").and_then(Value::as_str) == Some("In")
                && !values.is_empty()
                && values.iter().all(|value| is_windows(Some(value)))
        })
    };
    let selector = pod.pointer("/spec/nodeSelector");
    is_windows(pod.pointer("/spec/os/name"))
        || OS.iter().any(|label| is_windows(selector.and_then(|selector| selector.get(*label))))
        || (!terms.is_empty() && terms.iter().all(asks))
        || pod.get("spec").is_some_and(is_of_host)
        || containers(pod).any(is_of_host)
}

/// What is odd about the proxy that a Pod comes with: whoever makes a Pod may call anything so, which then speaks for no mesh.
pub(super) fn foreign_proxy(pod: &Value, namespace: &Namespace, settings: &Settings) -> Option<String> {
    let metadata = pod.get("metadata").unwrap_or(&Value::Null);
    let effective = Effective::of(metadata, namespace, settings, &mut Vec::new());
    let expected = effective.map_or_else(|_| settings.image(), |effective| effective.image());
    let init = list(pod, "/spec/initContainers").iter();
    let mut added = init.filter_map(|container| {
        let name = name_of(container).filter(|name| [INIT, PROXY].contains(name))?;
        Some((name, container))
    });
    added.find_map(|(name, container)| {
        let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
        if repository(image) != repository(&expected) {
            return Some(format!(
                "the pod comes with a container `{name}` of the image `{}`, and the mesh's is `{}`: if that is none of ours, the pod is outside the mesh; \
                 `tulle uninject` takes it out",
                short(image),
                short(&expected)
            ));
        }
        (name == PROXY && !stays(container)).then(|| {
            format!("the pod comes with a container `{name}` without `restartPolicy: Always`, which no pod waits for; `tulle uninject` takes it out")
        })
    })
}

/// Why a proxy cannot be put there, and what to do.
pub(super) fn conflict(
    pod: &Value,
    namespace: &Namespace,
    effective: &Effective,
) -> Option<(Reason, String)> {
    let ephemeral = list(pod, "/spec/ephemeralContainers");
    let mut names = containers(pod).chain(ephemeral).filter_map(name_of);
    if let Some(name) = names.find(|name| [PROXY, INIT].contains(name)) {
        let why = format!(
            "the pod has a container `{name}` of its own, which is the name of one that is added; call it otherwise"
        );
        return Some((Reason::NameConflict, why));
    }
    if list(pod, "/spec/volumes").iter().filter_map(name_of).any(|name| name == VOLUME) {
        let why = format!(
            "the pod has a volume `{VOLUME}` of its own, which is the name of the one that is added; call it otherwise"
        );
        return Some((Reason::VolumeConflict, why));
    }
    for container in containers(pod) {
        let name = short(name_of(container).unwrap_or_default());
        let taken = ports(container).find(|port| {
            LISTENING.contains(port)
                || *port == effective.metrics_port
                || (effective.settings.dns && *port == DNS)
        });
        if let Some(port) = taken {
            let mend = match port == effective.metrics_port {
                true => "give one of them another (config.tulle.dev/metrics-port)",
                false => "let the application have another",
            };
            let why =
                format!("the container `{name}` listens on port {port}, and so would the proxy; {mend}");
            return Some((Reason::PortConflict, why));
        }
        let uid = |value: &Value| value.pointer("/securityContext/runAsUser").and_then(Value::as_u64);
        let of_pod = pod.get("spec").and_then(uid);
        if uid(container).or(of_pod) == Some(u64::from(effective.settings.uid)) {
            let uid = effective.settings.uid;
            let why = format!(
                "the container `{name}` runs as user {uid}, the proxy's, whose connections are not intercepted; let it run as another"
            );
            return Some((Reason::ProxyUid, why));
        }
    }
    let level = namespace.labels.get(POD_SECURITY).map(String::as_str);
    let level = level.filter(|level| matches!(*level, "baseline" | "restricted"))?;
    let why = format!(
        "the namespace enforces the Pod Security level `{level}`, under which the API server refuses a container with NET_ADMIN, which writes the \
         rules of interception; label the namespace {POD_SECURITY}=privileged, or the pod {}=disabled",
        super::INJECT
    );
    Some((Reason::PodSecurity, why))
}

/// What is probably not meant so.
pub(super) fn warnings(pod: &Value, effective: &Effective) -> Vec<String> {
    let mut warnings = Vec::new();
    let flag = |pointer: &str| pod.pointer(pointer).and_then(Value::as_bool) == Some(true);
    if pod.pointer(&annotation(STATUS)).is_some() {
        warnings.push(format!(
            "the pod comes with the annotation {STATUS}, and without the proxy of which that speaks: it is written anew"
        ));
    }
    for container in containers(pod) {
        let name = short(name_of(container).unwrap_or_default());
        for port in ports(container).filter(|port| RESERVED.contains(port)) {
            warnings.push(format!(
                "the container `{name}` listens on port {port}: connections to 15000–15090 never come by the proxy, and are outside the mesh"
            ));
        }
    }
    for (pointer, what) in
        [("/spec/shareProcessNamespace", "shareProcessNamespace"), ("/spec/hostPID", "hostPID")]
    {
        if flag(pointer) {
            warnings.push(format!(
                "with `{what}`, whoever is root in another container can read the proxy's memory, its keys among it"
            ));
        }
    }
    let grace = grace_of(pod);
    let wanted = &effective.settings.shutdown_grace_period;
    if seconds(wanted).is_ok_and(|wanted| wanted > f64::from(grace)) {
        warnings.push(format!(
            "the proxy may go on for {wanted} once it is told to drain, and the pod ends after {grace} s (terminationGracePeriodSeconds)"
        ));
    }
    if is_guaranteed(pod) && !stays_guaranteed(pod, effective) {
        warnings.push(
            "the pod is of the QoS class Guaranteed, and is Burstable with the proxy; to keep it, set the annotations \
             config.tulle.dev/proxy-cpu-limit and proxy-memory-limit, and the requests to the same"
                .to_owned(),
        );
    }
    warnings
}

/// How many seconds the Pod has to end.
pub(super) fn grace_of(pod: &Value) -> u32 {
    let said = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64);
    said.map_or(GRACE, |seconds| u32::try_from(seconds).unwrap_or(u32::MAX))
}

/// The TCP ports that a container declares.
pub(super) fn ports(container: &Value) -> impl Iterator<Item = u16> + '_ {
    let tcp = |port: &&Value| matches!(port.get("protocol").and_then(Value::as_str), None | Some("TCP"));
    let number = |port: &Value| u16::try_from(port.get("containerPort")?.as_u64()?).ok();
    list(container, "/ports").iter().filter(tcp).filter_map(number)
}

/// Whether the pod is of the QoS class Guaranteed, and can be with the proxy that it gets.
pub(super) fn stays_guaranteed(pod: &Value, effective: &Effective) -> bool {
    let resources = &effective.settings.resources;
    let mut of_proxy = [
        (&resources.cpu_request, &resources.cpu_limit),
        (&resources.memory_request, &resources.memory_limit),
    ]
    .into_iter();
    let amount = |text: &String| Quantity::parse(text);
    let is_proxy = of_proxy.all(|(request, limit)| {
        limit.is_some() && (request.is_none() || request.as_ref().map(amount) == limit.as_ref().map(amount))
    });
    is_proxy && is_guaranteed(pod)
}

/// Whether each container, those that only start the pod too, has limits of CPU and memory, and requests no less.
fn is_guaranteed(pod: &Value) -> bool {
    let mut any = false;
    for container in containers(pod) {
        any = true;
        for resource in ["cpu", "memory"] {
            let limit = container.pointer(&format!("/resources/limits/{resource}"));
            let request = container.pointer(&format!("/resources/requests/{resource}"));
            // A limit of nothing counts for none.
            let is_limited = |limit: &&Value| Quantity::of(limit).is_none_or(|limit| limit.is_positive());
            let Some(limit) = limit.filter(is_limited) else { return false };
            if request.is_some_and(|request| !same(request, limit)) {
                return false;
            }
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{injected, namespace, pod};
    use super::super::{Decision, inject};
    use super::*;

    #[test]
    fn a_pod_for_windows_is_known_by_whatever_says_so() {
        let terms = |terms: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
        let rule = |key: &str, operator: &str, values: Value| {
            json!({"matchExpressions": [
                {"key": "zone", "operator": "Exists"},
                {"key": key, "operator": operator, "values": values},
            ]})
        };
        let windows = rule("kubernetes.io/os", "In", json!(["windows"]));
        let of_host = json!({"windowsOptions": {"hostProcess": true}});
        for (spec, expected) in [
            (json!({"os": {"name": "windows"}}), true),
            (json!({"nodeSelector": {"kubernetes.io/os": "windows"}}), true),
            (json!({"nodeSelector": {"beta.kubernetes.io/os": "windows"}}), true),
            (json!({"nodeSelector": {"kubernetes.io/os": "linux"}}), false),
            (terms(json!([windows])), true),
            (terms(json!([windows, rule("beta.kubernetes.io/os", "In", json!(["windows"]))])), true),
            (terms(json!([windows, rule("zone", "In", json!(["a"]))])), false),
            (terms(json!([rule("kubernetes.io/os", "In", json!(["windows", "linux"]))])), false),
            (terms(json!([rule("kubernetes.io/os", "NotIn", json!(["windows"]))])), false),
            (terms(json!([])), false),
            (json!({"securityContext": of_host}), true),
            (json!({"initContainers": [{"name": "i", "securityContext": of_host}]}), true),
            (json!({"securityContext": {"windowsOptions": {"hostProcess": false}}}), false),
        ] {
            assert_eq!(is_for_windows(&json!({ "spec": spec })), expected, "{spec}");
        }
    }

    #[test]
    fn a_proxy_of_another_image_or_a_status_without_one_is_told() {
        let told = |pod: &Value| match inject(pod, &namespace(), &Settings::default()) {
            Decision::Leave { warnings, .. } | Decision::Inject { warnings, .. } => warnings,
            other => panic!("{other:?}"),
        };
        let ours = injected(&pod());
        assert_eq!(told(&ours), Vec::<String>::new());
        let mut older = ours.clone();
        older["spec"]["initContainers"][1]["image"] = json!("tulle:0.0.1");
        assert_eq!(told(&older), Vec::<String>::new());
        let mut foreign = ours.clone();
        foreign["spec"]["initContainers"][1]["image"] = json!("registry.example/mine:1");
        let warnings = told(&foreign);
        assert!(warnings.len() == 1 && warnings[0].contains("registry.example/mine:1"), "{warnings:?}");
        let mut ending = ours;
        ending["spec"]["initContainers"][1].as_object_mut().unwrap().remove("restartPolicy");
        assert!(told(&ending)[0].contains("restartPolicy: Always"));
        let mut forged = pod();
        forged["metadata"]["annotations"] = json!({(STATUS): "{\"version\": \"9\"}"});
        assert!(told(&forged)[0].contains("written anew"));
    }
}
