//! What was read of a cluster, as it came: the only thing that checks look at, so that they can be tried without one.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tulle_control_plane::inject::{Namespace, Settings};

use super::rights::Right;
use crate::demo::scrape::Line;

/// One part of it.
pub(crate) type Part<T> = Result<T, Unread>;

/// Why a part is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unread {
    /// The user may not; what it would take.
    Forbidden(String),
    /// There was no answer, or one that says nothing.
    Failed(String),
    /// Nobody asked, since what was read before says that there is nothing to ask.
    NotAsked,
}

/// When checks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Before an install.
    Before,
    /// Of a mesh that is there.
    After,
}

/// All of it. Objects are JSON, without what no check looks at.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) stage: Stage,
    pub(super) now: SystemTime,
    /// Where the API server is.
    pub(super) server: String,
    /// The control plane's namespace.
    pub(super) namespace: String,
    /// The API server's.
    pub(super) version: Part<String>,
    /// Definitions of the Gateway API and ours, by their names; `None`: there is none.
    pub(super) definitions: Part<BTreeMap<String, Option<Value>>>,
    pub(super) nodes: Part<Vec<Value>>,
    /// Cilium's ConfigMap, where there is Cilium.
    pub(super) cilium: Part<Option<Value>>,
    /// Every MutatingWebhookConfiguration.
    pub(super) webhooks: Part<Vec<Value>>,
    pub(super) namespaces: Part<Vec<Value>>,
    pub(super) deployment: Part<Option<Value>>,
    /// Of whoever asks before an install, of the control plane after it.
    pub(super) rights: Part<Vec<(Right, bool)>>,
    /// The control plane's Pods.
    pub(super) replicas: Part<Vec<Value>>,
    /// What each of them counts, by name.
    pub(super) pages: BTreeMap<String, Part<Vec<Line>>>,
    /// Whether the API server reaches the webhook of each.
    pub(super) hooks: BTreeMap<String, Part<()>>,
    /// What becomes of a Pod that asks for a proxy.
    pub(super) trial: Part<Trial>,
    pub(super) lease: Part<Option<Lease>>,
    /// The injector's settings.
    pub(super) settings: Part<Settings>,
    /// The ConfigMaps `tulle-trust-bundle`.
    pub(super) bundles: Part<Vec<Value>>,
    /// Pods that have a proxy, or may be meant to.
    pub(super) pods: Part<Vec<Value>>,
    /// What the proxies of some of them count, by `<namespace>/<pod>`.
    pub(super) proxies: BTreeMap<String, Part<Vec<Line>>>,
}

/// What became of a Pod that was made for no more than a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trial {
    /// It would get a proxy.
    Injected,
    /// It would run without one.
    Left,
    /// It would not be made: what the API server says.
    Refused(String),
}

/// Who writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    /// Nobody, if empty.
    pub(super) holder: String,
    pub(super) renewed: Option<SystemTime>,
    pub(super) duration: Duration,
    /// Whether it was renewed while somebody looked, where its time looked wrong.
    pub(super) moves: bool,
}

// === impl Unread ===

impl From<&Self> for Unread {
    fn from(other: &Self) -> Self {
        other.clone()
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forbidden(needs) => write!(f, "you may not {needs}"),
            Self::Failed(why) => f.write_str(why),
            Self::NotAsked => f.write_str("not asked"),
        }
    }
}

// === impl Lease ===

impl Lease {
    /// Clocks agree nearly always: then its time says that somebody is there, without a second look.
    pub(super) fn is_fresh(&self, now: SystemTime) -> bool {
        let Some(renewed) = self.renewed else { return false };
        let apart = now.duration_since(renewed).unwrap_or_else(|error| error.duration());
        !self.holder.is_empty() && apart <= self.duration
    }
}

// === impl Seen ===

impl Seen {
    /// Nothing yet.
    pub(super) fn new(stage: Stage, now: SystemTime, server: String, namespace: String) -> Self {
        Self {
            stage,
            now,
            server,
            namespace,
            version: Err(Unread::NotAsked),
            definitions: Err(Unread::NotAsked),
            nodes: Err(Unread::NotAsked),
            cilium: Err(Unread::NotAsked),
            webhooks: Err(Unread::NotAsked),
            namespaces: Err(Unread::NotAsked),
            deployment: Err(Unread::NotAsked),
            rights: Err(Unread::NotAsked),
            replicas: Err(Unread::NotAsked),
            pages: BTreeMap::new(),
            hooks: BTreeMap::new(),
            trial: Err(Unread::NotAsked),
            lease: Err(Unread::NotAsked),
            settings: Err(Unread::NotAsked),
            bundles: Err(Unread::NotAsked),
            pods: Err(Unread::NotAsked),
            proxies: BTreeMap::new(),
        }
    }
}

/// What an object of Kubernetes says there; empty if it says nothing.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The items there; none if there is no list.
pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// `<namespace>/<name>`.
pub(super) fn place(object: &Value) -> String {
    format!("{}/{}", text(object, "/metadata/namespace"), name(object))
}

/// A label or an annotation; empty if there is none.
pub(super) fn said<'a>(object: &'a Value, of: &str, key: &str) -> &'a str {
    object.get("metadata").and_then(|metadata| metadata.get(of)?.get(key)?.as_str()).unwrap_or_default()
}

/// As the injector looks at it.
pub(crate) fn namespace(object: &Value) -> Namespace {
    let texts = |of: &str| {
        let all = object.get("metadata").and_then(|metadata| metadata.get(of)?.as_object());
        let pairs = all.into_iter().flatten();
        pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    };
    Namespace { name: name(object).to_owned(), labels: texts("labels"), annotations: texts("annotations") }
}
