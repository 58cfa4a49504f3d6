//! What a status should say, and how it is put among what others have said there. Pure.

use serde_json::{Value, json};

use super::CONTROLLER;
use crate::finding::{Finding, Severity};
use crate::model::{Condition, PolicyStatus, RouteStatus};
use crate::object::{Kind, ObjectKey};

/// Longer messages are cut; the log has all of it.
const LONGEST: usize = 1000;

/// Where in the status of a kind its entries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    /// The list.
    pub(super) list: &'static str,
    /// What an entry is about, within it.
    pub(super) about: &'static str,
    /// The list in the spec that it follows.
    pub(super) refs: &'static str,
    /// The most entries, those of others included.
    most: usize,
}

/// What is said at one parent or target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The parent or target.
    pub(super) about: Value,
    pub(super) conditions: Vec<Said>,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) condition: &'static str,
    pub(super) status: &'static str,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// What is said of an object, and of which of its generations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) generation: Option<i64>,
    pub(super) entries: Vec<Entry>,
}

// === impl Form ===

impl Form {
    /// `None`: nothing is said of such objects.
    pub(super) fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                Some(Self { list: "parents", about: "parentRef", refs: "parentRefs", most: 32 })
            }
            Kind::AuthorizationPolicy
            | Kind::PeerAuthentication
            | Kind::ExternalAuthorization
            | Kind::RequestAuthentication
            | Kind::EgressPolicy
            | Kind::TrafficPolicy
            | Kind::RateLimitPolicy
            | Kind::FaultPolicy
            | Kind::TelemetryPolicy => {
                Some(Self { list: "ancestors", about: "ancestorRef", refs: "targetRefs", most: 16 })
            }
            _ => None,
        }
    }

    fn is_of_routes(self) -> bool {
        self.list == "parents"
    }

    /// What the spec of an object is attached to, read as far as it can be: it may be one that is refused.
    pub(super) fn refs(self, namespace: &str, spec: &Value) -> Vec<Value> {
        let written = spec[self.refs].as_array().map(Vec::as_slice).unwrap_or_default();
        let default = if self.is_of_routes() { "gateway.networking.k8s.io" } else { "" };
        let mut refs = Vec::new();
        for one in written {
            let text = |field: &str| one[field].as_str();
            let (group, kind) = (text("group").unwrap_or(default), text("kind").unwrap_or_default());
            let Some(name) = text("name").filter(|name| !name.is_empty()) else { continue };
            if self.is_of_routes() && (!group.is_empty() || kind != "Service") {
                continue;
            }
            let mut about = json!({
                "group": group, "kind": kind, "namespace": text("namespace").unwrap_or(namespace), "name": name,
            });
            for field in ["port", "sectionName"] {
                if !one[field].is_null() {
                    about[field] = one[field].clone();
                }
            }
            if !refs.contains(&about) {
                refs.push(about);
            }
        }
        if refs.is_empty() && !self.is_of_routes() {
            refs.push(json!({"group": "", "kind": "Namespace", "name": namespace}));
        }
        refs
    }

    /// The list as it should be; `None`: it is so already. What others have said stays as it is and where it is.
    pub(super) fn put(self, status: &Value, entries: &[Entry], generation: i64, now: &str) -> Option<Value> {
        let before = status[self.list].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_ours = |entry: &&Value| entry["controllerName"] == CONTROLLER;
        let others = before.iter().filter(|entry| !is_ours(entry)).count();
        let mut left: Vec<&Entry> = entries
            .iter()
            .filter(|entry| !entry.conditions.is_empty())
            .take(self.most.saturating_sub(others))
            .collect();
        let mut after = Vec::new();
        for entry in before {
            if !is_ours(&entry) {
                after.push(entry.clone());
            } else if let Some(at) = left.iter().position(|wanted| wanted.about == entry[self.about]) {
                after.push(self.entry(left.remove(at), Some(entry), generation, now));
            }
        }
        after.extend(left.into_iter().map(|entry| self.entry(entry, None, generation, now)));
        (after != before).then_some(Value::Array(after))
    }

    fn entry(self, entry: &Entry, before: Option<&Value>, generation: i64, now: &str) -> Value {
        let before = before.and_then(|before| before["conditions"].as_array());
        let conditions = entry.conditions.iter().map(|said| {
            let same = |one: &&Value| one["type"] == said.condition && one["status"] == said.status;
            let since = before.and_then(|before| before.iter().find(same));
            let since = since.and_then(|one| one["lastTransitionTime"].as_str()).unwrap_or(now);
            json!({
                "type": said.condition, "status": said.status, "reason": said.reason, "message": said.message,
                "observedGeneration": generation, "lastTransitionTime": since,
            })
        });
        let mut value = json!({ "controllerName": CONTROLLER, "conditions": conditions.collect::<Vec<_>>() });
        value[self.about] = entry.about.clone();
        value
    }
}

// === impl Judgement ===

impl Judgement {
    /// Of a route that is in force, and which one that is.
    pub(super) fn of_route(status: &RouteStatus) -> Option<(ObjectKey, Self)> {
        let entries = status.parents.iter().map(|parent| Entry {
            about: json!(parent.parent_ref),
            conditions: parent.conditions.iter().map(Said::from).collect(),
        });
        let key = ObjectKey::parse(&format!("{} {}/{}", status.kind, status.namespace, status.name))?;
        Some((key, Self { generation: status.generation, entries: entries.collect() }))
    }

    /// Of a policy that is in force, and which one that is.
    pub(super) fn of_policy(status: &PolicyStatus) -> Option<(ObjectKey, Self)> {
        let entries = status.ancestors.iter().map(|ancestor| Entry {
            about: json!(ancestor.ancestor_ref),
            conditions: ancestor.conditions.iter().map(Said::from).collect(),
        });
        let key = ObjectKey::parse(&format!("{} {}/{}", status.kind, status.namespace, status.name))?;
        Some((key, Self { generation: status.generation, entries: entries.collect() }))
    }

    /// Of an object that is refused, at everything that it is attached to.
    pub(super) fn refused(kind: Kind, refs: &[Value], generation: i64, message: &str) -> Self {
        let is_route = Form::of(kind).is_some_and(Form::is_of_routes);
        // The Gateway API's reason, and GEP-713's.
        let reason = if is_route { "UnsupportedValue" } else { "Invalid" };
        let said = Said { condition: "Accepted", status: "False", reason, message: cut(message) };
        let entries = refs.iter().map(|about| Entry { about: about.clone(), conditions: vec![said.clone()] });
        Self { generation: Some(generation), entries: entries.collect() }
    }
}

impl From<&Condition> for Said {
    fn from(condition: &Condition) -> Self {
        Self {
            condition: condition.condition,
            status: condition.status,
            reason: condition.reason,
            message: cut(&condition.message),
        }
    }
}

/// What is wrong with an object, in one message; empty, if nothing that keeps it from being served as it is written is.
pub(super) fn errors(findings: &[&Finding]) -> String {
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error);
    let errors = errors.map(|finding| match &finding.field {
        Some(field) => format!("{field}: {}", finding.message),
        None => finding.message.clone(),
    });
    errors.collect::<Vec<_>>().join("; ")
}

fn cut(message: &str) -> String {
    if message.chars().count() <= LONGEST {
        return message.to_owned();
    }
    message.chars().take(LONGEST - 1).chain(['…']).collect()
}
