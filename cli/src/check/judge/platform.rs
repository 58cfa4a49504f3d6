//! What the cluster is: its versions, definitions, network and other meshes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tulle_control_plane::inject::INJECT;
use tulle_control_plane::kinds;

use super::super::count;
use super::super::seen::{Seen, Stage, list, name, namespace, said, text};
use super::super::version::Version;
use super::{Judged, Verdict, error, ok, warning};

/// The first with native sidecars that are on by default.
const OLDEST: Version = Version::new(1, 29);
/// The first kernel whose table `inet` can redirect.
const OLDEST_KERNEL: Version = Version::new(5, 2);
/// The first bundle of the Gateway API with routes for meshes.
const OLDEST_GATEWAY_API: Version = Version::new(1, 1);
const GATEWAY_API: &str = ".gateway.networking.k8s.io";
const OURS: &str = ".policy.tulle.dev";

/// Another mesh.
struct Other {
    mesh: &'static str,
    /// What the names of its webhook configurations begin with.
    webhooks: &'static [&'static str],
    /// How namespaces ask it for a proxy: a label or annotation, and its value; empty: any.
    signs: &'static [(&'static str, &'static str)],
}

const OTHERS: &[Other] = &[
    Other {
        mesh: "Istio",
        webhooks: &["istio-sidecar-injector", "istio-revision-tag"],
        signs: &[("istio-injection", "enabled"), ("istio.io/rev", "")],
    },
    Other {
        mesh: "Linkerd",
        webhooks: &["linkerd-proxy-injector"],
        signs: &[("linkerd.io/inject", "enabled")],
    },
    Other {
        mesh: "Kuma",
        webhooks: &["kuma-admission-mutating", "kong-mesh-admission-mutating"],
        signs: &[("kuma.io/sidecar-injection", "enabled")],
    },
    Other {
        mesh: "Consul",
        webhooks: &["consul-connect-injector", "consul-consul-connect-injector"],
        signs: &[],
    },
    Other {
        mesh: "Open Service Mesh",
        webhooks: &["osm-webhook"],
        signs: &[("openservicemesh.io/monitored-by", "")],
    },
];

pub(crate) fn api_server(seen: &Seen) -> Judged {
    seen.version.as_ref()?;
    ok(format!("{} answers", seen.server)).some()
}

pub(crate) fn kubernetes_version(seen: &Seen) -> Judged {
    let said = seen.version.as_ref()?;
    match Version::parse(said) {
        Some(version) if version < OLDEST => {
            error(format!("the API server is {said}; {OLDEST} is the oldest that has native sidecars")).some()
        }
        Some(_) => ok(format!("the API server is {said}")).some(),
        None => warning(format!("the API server says that it is `{said}`, which is no version")).some(),
    }
}

pub(crate) fn node_versions(seen: &Seen) -> Judged {
    let nodes = seen.nodes.as_ref()?;
    let info = |node: &Value, field: &str| text(node, &format!("/status/nodeInfo/{field}")).to_owned();
    let (linux, others): (Vec<_>, Vec<_>) =
        nodes.iter().partition(|node| matches!(info(node, "operatingSystem").as_str(), "linux" | ""));
    let is_older = |said: &str, than| Version::parse(said).is_some_and(|version| version < than);
    let mut kubelets = Vec::new();
    let mut kernels = Vec::new();
    for node in &linux {
        let (kubelet, kernel) = (info(node, "kubeletVersion"), info(node, "kernelVersion"));
        if is_older(&kubelet, OLDEST) {
            kubelets.push(format!("{}: kubelet {kubelet}", name(node)));
        } else if is_older(&kernel, OLDEST_KERNEL) {
            kernels.push(format!("{}: Linux {kernel}", name(node)));
        }
    }
    if !kubelets.is_empty() {
        let message = format!(
            "{} of {} {} older than {OLDEST}, and would start a pod's proxy as an init container that never ends",
            kubelets.len(),
            count(linux.len(), "node"),
            if kubelets.len() == 1 { "is" } else { "are" },
        );
        return error(message).details([kubelets, kernels].concat()).some();
    }
    if !kernels.is_empty() {
        let message = format!("{} with a kernel older than {OLDEST_KERNEL}", count(kernels.len(), "node"));
        let hint = "an older kernel intercepts only if its distribution has brought nf_tables' NAT for `inet` (RHEL 8 has); try one pod there, whose \
                    tulle-init says what is missing";
        return warning(message).details(kernels).hint(hint).some();
    }
    let windows = match others.len() {
        0 => String::new(),
        number => format!("; {} without Linux, whose pods get no proxy", count(number, "node")),
    };
    ok(format!("{} with kubelet {OLDEST} or newer{windows}", count(linux.len(), "node"))).some()
}

pub(crate) fn gateway_api(seen: &Seen) -> Judged {
    let definitions = seen.definitions.as_ref()?;
    let all = definitions.iter().filter(|(name, _)| name.ends_with(GATEWAY_API));
    let (mut present, mut missing) = (Vec::new(), Vec::new());
    for (name, definition) in all {
        match definition {
            Some(definition) => present.push((name.as_str(), definition)),
            None => missing.push(name.trim_end_matches(GATEWAY_API).to_owned()),
        }
    }
    if present.is_empty() {
        return warning("none is there; until they are, no route means anything").some();
    }
    let mut unknown = Vec::new();
    let mut bundles = BTreeSet::new();
    for (name, definition) in &present {
        bundles.insert(said(definition, "annotations", "gateway.networking.k8s.io/bundle-version"));
        let serves = served(definition);
        if !understood(name).iter().any(|version| serves.contains(version)) {
            unknown.push(format!("{name}: serves {}", serves.join(", ")));
        }
    }
    if !unknown.is_empty() {
        return error(format!("of {} no version is understood", count(unknown.len(), "kind")))
            .details(unknown)
            .some();
    }
    let bundle = bundles.iter().copied().collect::<Vec<_>>().join(", ");
    if bundles.iter().filter_map(|one| Version::parse(one)).any(|version| version < OLDEST_GATEWAY_API) {
        return warning(format!("the bundle is {bundle}; routes for meshes came with v{OLDEST_GATEWAY_API}"))
            .some();
    }
    if bundles.len() > 1 {
        return warning(format!("they are of several bundles: {bundle}")).some();
    }
    let bundle = if bundle.is_empty() { "a bundle without a version".to_owned() } else { bundle };
    let without = match missing.is_empty() {
        true => String::new(),
        false => format!(", without {}", missing.join(", ")),
    };
    ok(format!("{bundle}{without}")).some()
}

pub(crate) fn ours(seen: &Seen) -> Judged {
    let definitions = seen.definitions.as_ref()?;
    let all = definitions.iter().filter(|(name, _)| name.ends_with(OURS));
    let mut own = own_fields();
    let (mut missing, mut wrong, mut newer, mut foreign, mut present) = (vec![], vec![], vec![], vec![], 0);
    for (name, definition) in all {
        let Some(definition) = definition else {
            missing.push(name.clone());
            continue;
        };
        present += 1;
        let established = list(definition, "/status/conditions").iter().any(|condition| {
            text(condition, "/type") == "Established" && text(condition, "/status") == "True"
        });
        let (here, there) = (own.remove(name).unwrap_or_default(), fields_of(definition));
        let lacking: Vec<&str> = here.difference(&there).map(String::as_str).collect();
        if !established {
            wrong.push(format!("{name}: the API server does not serve it (kubectl describe crd {name})"));
        } else if !understood(name).iter().any(|version| served(definition).contains(version)) {
            wrong.push(format!("{name}: serves {}", served(definition).join(", ")));
        } else if let Some(first) = lacking.first() {
            wrong.push(format!("{name}: is of an older version, without {}", and_more(first, lacking.len())));
        } else if let Some(first) = there.difference(&here).next() {
            newer.push(format!("{name}: has {first}, which this command does not know"));
        }
        let release = said(definition, "annotations", "meta.helm.sh/release-namespace");
        if !release.is_empty() && release != seen.namespace {
            foreign.push(format!("{name}: of a release in the namespace {release}"));
        }
    }
    if seen.stage == Stage::Before {
        return before(present, foreign);
    }
    if !missing.is_empty() {
        let message =
            format!("{} missing: policies of them cannot be written", count(missing.len(), "definition"));
        return error(message).details([missing, wrong].concat()).some();
    }
    if !wrong.is_empty() {
        return error(format!("{} not this version's", count(wrong.len(), "definition")))
            .details(wrong)
            .some();
    }
    if !newer.is_empty() {
        let hint = "use the command of the version that is installed";
        return warning("they are newer than this command").details(newer).hint(hint).some();
    }
    ok(format!("all {present} are there, of this version")).some()
}

/// The chart brings them, and upgrades those that are there.
fn before(present: usize, foreign: Vec<String>) -> Judged {
    if !foreign.is_empty() {
        let hint = "Helm does not take what another release has: install into that namespace (--namespace), or with crds.install=false";
        return error("they are another release's").details(foreign).hint(hint).some();
    }
    match present {
        0 => ok("none yet; the chart brings them").some(),
        number => ok(format!("{number} from before; the chart brings them to its version")).some(),
    }
}

fn and_more(first: &str, all: usize) -> String {
    match all {
        1 => first.to_owned(),
        _ => format!("{first} and {} more", count(all - 1, "field")),
    }
}

/// Versions of a definition that the mesh reads, without the group.
fn understood(definition: &str) -> Vec<&'static str> {
    let all = tulle_control_plane::source::kubernetes::definitions();
    let found = all.into_iter().find(|(name, _)| name == definition);
    let versions = found.map(|(_, versions)| versions).unwrap_or_default();
    versions.iter().filter_map(|version| Some(version.split_once('/')?.1)).collect()
}

fn served(definition: &Value) -> Vec<&str> {
    let all = list(definition, "/spec/versions").iter();
    all.filter(|version| version["served"] == true).map(|version| text(version, "/name")).collect()
}

/// The fields of this command's own version of each definition, by its name.
fn own_fields() -> BTreeMap<String, BTreeSet<String>> {
    let fields = kinds::definitions().into_iter().filter_map(|definition| {
        let name = definition.metadata.name.clone()?;
        Some((name, fields_of(&serde_json::to_value(definition).ok()?)))
    });
    fields.collect()
}

fn fields_of(definition: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let version = list(definition, "/spec/versions").iter().find(|version| version["name"] == "v1alpha1");
    if let Some(schema) =
        version.and_then(|version| version.pointer("/schema/openAPIV3Schema/properties/spec"))
    {
        gather(schema, "spec", &mut found);
    }
    found
}

fn gather(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        gather(field, &path, found);
        found.insert(path);
    }
    for within in ["items", "additionalProperties"] {
        if let Some(schema) = schema.get(within).filter(|schema| schema.is_object()) {
            gather(schema, path, found);
        }
    }
}

pub(crate) fn cilium(seen: &Seen) -> Judged {
    let Some(config) = seen.cilium.as_ref()? else { return ok("there is no Cilium").some() };
    let is = |key: &str, values: &[&str]| {
        let said = config.get("data").and_then(|data| data.get(key)).and_then(Value::as_str);
        said.is_some_and(|said| values.contains(&said))
    };
    let at_the_socket = is("bpf-lb-sock", &["true"]) || is("kube-proxy-replacement", &["true", "strict"]);
    if !at_the_socket {
        return ok("Cilium does not balance at the socket").some();
    }
    if is("bpf-lb-sock-hostns-only", &["true"]) {
        return ok("Cilium balances at the socket for nodes only").some();
    }
    let message = "Cilium balances at the socket of pods: proxies see the addresses of pods in place of Services, whose routes and policies do not hold";
    error(message).some()
}

pub(crate) fn other_meshes(seen: &Seen) -> Judged {
    let webhooks = seen.webhooks.as_ref()?;
    let is_there = |names: &[&str]| {
        let mut all = webhooks.iter().map(name);
        all.any(|found| names.iter().any(|begin| found.starts_with(begin)))
    };
    let there: Vec<_> = OTHERS.iter().filter(|other| is_there(other.webhooks)).collect();
    if there.is_empty() {
        return ok("no other mesh puts proxies into pods").some();
    }
    let meshes = there.iter().map(|other| other.mesh).collect::<Vec<_>>().join(", ");
    let both = asked_by_both(seen, &there)?;
    if !both.is_empty() {
        return error(format!("{} asked for two proxies", count(both.len(), "namespace")))
            .details(both)
            .some();
    }
    let found: Verdict = match seen.stage {
        Stage::Before => warning(format!("{meshes} puts proxies into pods too")),
        Stage::After => ok(format!("{meshes} puts proxies into pods too, in other namespaces")),
    };
    found.some()
}

fn asked_by_both(seen: &Seen, others: &[&Other]) -> Result<Vec<String>, super::Unread> {
    let mut both = Vec::new();
    for object in seen.namespaces.as_ref()? {
        let asked = namespace(object);
        let says = |key: &str, value: &str| {
            let texts = [&asked.labels, &asked.annotations];
            texts.iter().filter_map(|texts| texts.get(key)).any(|said| value.is_empty() || said == value)
        };
        if !says(INJECT, "enabled") {
            continue;
        }
        for Other { mesh, signs, .. } in others {
            if let Some((key, _)) = signs.iter().find(|(key, value)| says(key, value)) {
                both.push(format!("{}: {mesh}'s ({key}) and ours ({INJECT})", asked.name));
            }
        }
    }
    Ok(both)
}
