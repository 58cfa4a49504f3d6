//! The injector: which pods get a proxy, and what they look like then.
//!
//! [`inject`] is a pure function of a Pod, its namespace and the [`Settings`]: a Pod with a proxy, or a stable [`Reason`] why there is none.
//! [`uninject`] takes away what it has added. Everything that puts a proxy beside a Pod calls them: the webhook ([`review`] decides, [`webhook`]
//! serves), `tulle inject`, and who tells which Pods should have a proxy and have none ([`unmeshed`]). So they cannot disagree.
//!
//! Pods are JSON, as they come: what is not touched stays as it was, whatever version of Kubernetes wrote it. Only what asks for the impossible is
//! refused, and only if the Pod itself asks for it: a namespace's label must not keep Pods from starting.

mod annotations;
mod conflicts;
mod image;
pub mod keys;
pub mod kubernetes;
pub mod manifest;
mod patch;
mod probes;
mod quantity;
pub mod review;
mod settings;
mod shape;
mod sidecar;
mod text;
mod undo;
pub mod unmeshed;
pub mod webhook;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use self::annotations::{Asked, Effective};
pub use self::annotations::{KEYS, Key, reference};
pub use self::patch::patch;
pub use self::quantity::same as same_amount;
pub use self::settings::{Resources, Settings, SettingsError};
pub use self::undo::uninject;
pub use crate::object::INJECT;

/// The annotation of a Pod that has a proxy: what was added ([`Status`]).
pub const STATUS: &str = crate::object::INJECTED;
/// What annotations of the proxy's configuration begin with.
pub const CONFIG: &str = "config.tulle.dev/";

/// The container of the proxy.
pub const PROXY: &str = crate::object::PROXY_CONTAINER;
/// The container that writes the rules of interception, and tries them.
pub const INIT: &str = "tulle-init";
/// The volume of the token and the trust bundle.
pub const VOLUME: &str = "tulle-identity";

/// A namespace, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What becomes of a Pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It gets a proxy.
    Inject {
        /// The Pod with it.
        pod: Box<Value>,
        /// What is probably not as it was meant.
        warnings: Vec<String>,
    },
    /// It stays as it is.
    Leave {
        /// Why.
        reason: Reason,
        /// The same for people, with the remedy.
        message: String,
        /// What is probably not as it was meant.
        warnings: Vec<String>,
    },
    /// It asks by itself for a proxy, and cannot have one so.
    Refuse {
        /// Why.
        reason: Reason,
        /// The same for people, with the remedy.
        message: String,
    },
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident $text:literal $meaning:literal)*) => {
        /// Why a Pod has no proxy. The words are stable: they are in metrics, events, logs and `tulle check`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[$doc])* $name),* }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The stable word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// What it means, for the reference.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning),* }
            }
        }
    };
}

reasons! {
    /// Nobody asks.
    NotAsked "not_asked" "Neither the pod nor its namespace asks for a proxy."
    /// The Pod does not want one.
    DisabledByPod "disabled_by_pod" "The pod says `tulle.dev/inject: disabled`."
    /// Its namespace does not.
    DisabledByNamespace "disabled_by_namespace" "The namespace says `tulle.dev/inject: disabled`, and the pod does not ask."
    /// It has one.
    AlreadyInjected "already_injected" "The pod has a proxy: its manifest came from `tulle inject`, or the webhook is called once more."
    /// The control plane cannot wait for itself.
    ControlPlane "control_plane" "The pod is in the control plane's namespace, which never is in the mesh."
    /// Kubernetes' own.
    SystemNamespace "system_namespace" "The pod is in `kube-system`, `kube-public` or `kube-node-lease`: the cluster must not wait for the mesh."
    /// The chart's values leave it out.
    ExcludedNamespace "excluded_namespace" "The pod is in a namespace of `webhook.excludedNamespaces`."
    /// The kubelet's own.
    StaticPod "static_pod" "The pod is a node's static one, which the API server only mirrors."
    /// No Linux.
    Windows "windows" "The pod is for Windows, where there is no interception."
    /// It shares its node's network.
    HostNetwork "host_network" "The pod uses its node's network, where rules would lead away the connections of all."
    /// Another mesh's.
    OtherMesh "other_mesh" "The pod has a proxy of another mesh."
    /// A name of ours is taken.
    NameConflict "name_conflict" "A container of the pod's own is called `tulle-proxy` or `tulle-init`."
    /// A volume of ours is taken.
    VolumeConflict "volume_conflict" "A volume of the pod's own is called `tulle-identity`."
    /// A port of ours is taken.
    PortConflict "port_conflict" "A container listens on a port that the proxy listens on."
    /// It would not be intercepted.
    ProxyUid "proxy_uid" "A container runs as the proxy's user, whose connections are not intercepted."
    /// The cluster would refuse it.
    PodSecurity "pod_security" "The namespace enforces a level of Pod Security under which no container may write rules of interception."
    /// Neither the API server nor the kernel would take it.
    TooLarge "too_large" "With what is added, the pod's annotations or the proxy's variables would be larger than Kubernetes or Linux takes."
    /// A setting cannot be read.
    BadAnnotation "bad_annotation" "An annotation of the pod's cannot be read."
    /// No Pod.
    Malformed "malformed" "What came is no pod."
    /// Its namespace is not known yet.
    NamespaceUnknown "namespace_unknown" "The control plane does not know the namespace (yet): `webhook.failurePolicy` decides."
}

/// What the annotation [`STATUS`] says.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Of the injector.
    pub version: String,
    /// A hash of everything that was added: another means that the injection is out of date.
    pub hash: String,
    /// Annotations that were added, since a namespace's or the mesh's settings hold for the Pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub annotations: Vec<String>,
    /// Probes and hooks that lead to the proxy, as they were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rewritten: Vec<Rewritten>,
}

/// A probe or hook as it was.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Rewritten {
    /// Whose.
    pub container: String,
    /// `livenessProbe`, `lifecycle.preStop`, ….
    pub field: String,
    /// `httpGet` or `tcpSocket`, and what it said.
    pub was: Value,
}

/// Whether a Pod has a proxy: the annotation says so, and its containers are there. Who wrote only the annotation has none.
pub fn is_injected(pod: &Value) -> bool {
    status(pod).is_some()
        && [INIT, PROXY].iter().all(|name| {
            list(pod, "/spec/initContainers").iter().any(|container| name_of(container) == Some(name))
        })
}

/// What the annotation says that an injection has left.
pub fn status(pod: &Value) -> Option<Status> {
    serde_json::from_str(pod.pointer(&annotation(STATUS))?.as_str()?).ok()
}

/// What becomes of a Pod. Never fails, whatever the JSON is.
pub fn inject(pod: &Value, namespace: &Namespace, settings: &Settings) -> Decision {
    if list(pod, "/spec/containers").is_empty() {
        let message =
            shape::malformed(pod).unwrap_or_else(|| "there are no containers: this is no pod".to_owned());
        return Decision::Leave { reason: Reason::Malformed, message, warnings: Vec::new() };
    }
    let metadata = pod.get("metadata").unwrap_or(&Value::Null);
    let (own, mut warnings) = Asked::of_pod(metadata);
    let of_namespace = Asked::of_namespace(namespace);
    let by_itself = own == Asked::Yes;
    let leave = |reason: Reason, message: String, warnings: Vec<String>| Decision::Leave {
        reason,
        message,
        warnings,
    };
    // By the one who wrote it alone, before an API server has seen it.
    if let Some(message) = annotations::no_text(metadata) {
        return Decision::Refuse { reason: Reason::BadAnnotation, message };
    }
    match (own, of_namespace) {
        (Asked::No, _) => return leave(Reason::DisabledByPod, said(Reason::DisabledByPod), warnings),
        (Asked::Nothing, Asked::No) => {
            return leave(Reason::DisabledByNamespace, said(Reason::DisabledByNamespace), warnings);
        }
        (Asked::Nothing, Asked::Nothing) => return leave(Reason::NotAsked, said(Reason::NotAsked), warnings),
        (Asked::Yes, _) | (Asked::Nothing, Asked::Yes) => {}
    }
    if is_injected(pod) {
        warnings.extend(conflicts::foreign_proxy(pod, namespace, settings));
        return leave(Reason::AlreadyInjected, said(Reason::AlreadyInjected), warnings);
    }
    if let Some((reason, message)) = conflicts::excluded(pod, namespace, settings) {
        return leave(reason, message, warnings);
    }
    let cannot = |reason: Reason, message: String, warnings: Vec<String>| match by_itself {
        true => Decision::Refuse { reason, message },
        false => leave(reason, message, warnings),
    };
    if let Some(message) = shape::malformed(pod) {
        return cannot(Reason::Malformed, message, warnings);
    }
    let effective = match Effective::of(metadata, namespace, settings, &mut warnings) {
        Ok(effective) => effective,
        Err(message) => return Decision::Refuse { reason: Reason::BadAnnotation, message },
    };
    if let Some((reason, message)) = conflicts::conflict(pod, namespace, &effective) {
        return cannot(reason, message, warnings);
    }
    warnings.extend(conflicts::warnings(pod, &effective));
    let with_proxy = Box::new(with_proxy(pod.clone(), &effective, &mut warnings));
    match shape::too_large(pod, &with_proxy) {
        Some(message) => cannot(Reason::TooLarge, message, warnings),
        None => Decision::Inject { pod: with_proxy, warnings },
    }
}

/// The Pod with everything that is added.
fn with_proxy(mut pod: Value, effective: &Effective, warnings: &mut Vec<String>) -> Value {
    // Of an injection that is none: its containers have gone.
    undo::forget(&mut pod);
    let probes = probes::lead_to_proxy(&mut pod, effective, warnings);
    let added = sidecar::containers(&pod, effective, &probes);
    let volume = sidecar::volume();
    let mut status = Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hash: hash(&json!([added, volume])),
        rewritten: probes.rewritten,
        ..Status::default()
    };
    for (key, value) in &effective.inherited {
        let annotations = object(&mut pod, &["metadata", "annotations"]);
        if !annotations.contains_key(key) {
            annotations.insert(key.clone(), json!(value));
            status.annotations.push(key.clone());
        }
    }
    let written = serde_json::to_string(&status).unwrap_or_default();
    object(&mut pod, &["metadata", "annotations"]).insert(STATUS.to_owned(), Value::String(written));
    let spec = object(&mut pod, &["spec"]);
    // Before all others: those that come after have the network through the proxy, which is ready then.
    array(spec, "initContainers").splice(0..0, added);
    array(spec, "volumes").push(volume);
    pod
}

/// Equal on all replicas and in every build of a version: FNV-1a, of 64 bits.
fn hash(value: &Value) -> String {
    let written = value.to_string();
    let hash = written.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

fn said(reason: Reason) -> String {
    reason.meaning().trim_end_matches('.').to_owned()
}

// === impl Reason ===

impl Reason {
    /// Whether somebody asked for a proxy who has none: worth an event, and a word of `tulle check`.
    pub const fn is_worth_telling(self) -> bool {
        !matches!(
            self,
            Self::NotAsked
                | Self::DisabledByPod
                | Self::DisabledByNamespace
                | Self::AlreadyInjected
                | Self::ControlPlane
                | Self::SystemNamespace
                | Self::ExcludedNamespace
                | Self::StaticPod
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// What is read of a Pod.

fn annotation(key: &str) -> String {
    format!("/metadata/annotations/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// The items there; none if there is no list.
fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn name_of(value: &Value) -> Option<&str> {
    value.get("name").and_then(Value::as_str)
}

/// Whether an init container is one that stays.
fn stays(container: &Value) -> bool {
    container.get("restartPolicy").and_then(Value::as_str) == Some("Always")
}

/// All containers that the Pod brings, also those that start it.
fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(pod, "/spec/initContainers").iter().chain(list(pod, "/spec/containers"))
}

/// The object there, made if it is missing.
fn object<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let mut at = value;
    for key in path {
        at = as_object(at).entry((*key).to_owned()).or_insert(Value::Null);
    }
    as_object(at)
}

fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(object) => object,
        // It has just been made one.
        _ => unreachable!("an object"),
    }
}

/// The list there, made if it is missing.
fn array<'a>(object: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let value = object.entry(key.to_owned()).or_insert(Value::Null);
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    match value {
        Value::Array(items) => items,
        // It has just been made one.
        _ => unreachable!("a list"),
    }
}

#[cfg(test)]
mod tests;
