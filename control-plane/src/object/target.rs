//! `targetRefs` of the policies that are about what comes in at workloads: Services, workloads by name or by labels, routes, or all workloads
//! of the policy's namespace.
//!
//! Decides what is written, of one policy alone. What it comes to for a workload is decided in `model::targets`.

use super::policy::{foreign, refuse_foreign};
use super::{Kind, NamespacedName, ObjectKey, Pod, is_label, is_subdomain};
use crate::finding::Notes;
use crate::kinds::{AccessTargetRef, WorkloadSelector};

/// How many targets a policy may have, and labels each of them.
const MAX_LIST: usize = 16;
/// The group of routes.
const GATEWAY: &str = "gateway.networking.k8s.io";
/// The group of workloads, and of the policies themselves.
const OWN: &str = "policy.tulle.dev";

/// The object, the labels, and the section of a target.
pub(crate) type Place<'a> = (&'a ObjectKey, &'a [(Box<str>, Box<str>)], Option<&'a str>);

/// What a policy is attached to; it may not be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessTarget {
    /// A Service, a workload, an HTTPRoute or a GRPCRoute in the policy's namespace; or that, with all of its workloads.
    pub object: ObjectKey,
    /// Of a namespace: only the workloads whose Pod has all of these labels; sorted. Empty: all of them.
    pub labels: Vec<(Box<str>, Box<str>)>,
    /// Only the Service's port, or the route's rule, of this name.
    pub section: Option<String>,
    /// Its place in `targetRefs`; 0 where there are none.
    pub index: usize,
}

/// What a kind of policy may be attached to, besides Services, workloads and namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attachable {
    /// HTTPRoutes and GRPCRoutes.
    Routes,
    /// Nothing: what it says is of connections.
    NoRoutes,
}

// === impl AccessTarget ===

impl AccessTarget {
    /// All workloads of the policy's namespace.
    pub(super) fn namespace(policy: &NamespacedName) -> Self {
        let name = NamespacedName::new("", policy.namespace.clone());
        Self {
            object: ObjectKey { kind: Kind::Namespace, name },
            labels: Vec::new(),
            section: None,
            index: 0,
        }
    }

    /// Whether the port or rule of this name is meant.
    pub fn is_about(&self, name: &str) -> bool {
        self.section.as_deref().is_none_or(|section| section == name)
    }

    /// Whether it is a selector.
    pub fn is_by_labels(&self) -> bool {
        !self.labels.is_empty()
    }

    /// Whether it is a route.
    pub fn is_route(&self) -> bool {
        matches!(self.object.kind, Kind::HttpRoute | Kind::GrpcRoute)
    }

    /// Whether a workload has the labels that it asks for; `pod` is the workload's, which has none without one.
    pub fn selects(&self, pod: Option<&Pod>) -> bool {
        self.labels.iter().all(|(key, value)| pod.and_then(|pod| pod.label(key)) == Some(&**value))
    }

    /// Two of the same place are the same target.
    pub(crate) fn place(&self) -> Place<'_> {
        (&self.object, &self.labels, self.section.as_deref())
    }
}

/// Reads `spec.targetRefs`; none at all stand for the whole namespace. What cannot be read is refused and left out.
pub(super) fn read_targets(
    policy: &NamespacedName,
    refs: &[AccessTargetRef],
    attachable: Attachable,
    notes: &mut Notes,
) -> Vec<AccessTarget> {
    if refs.is_empty() {
        return vec![AccessTarget::namespace(policy)];
    }
    if refs.len() > MAX_LIST {
        notes.refuse(
            "spec.targetRefs",
            format!("{} entries: more than the {MAX_LIST} that are allowed", refs.len()),
            "leave some out, or write several policies",
        );
    }
    let mut targets: Vec<AccessTarget> = Vec::with_capacity(refs.len());
    for (index, written) in refs.iter().enumerate() {
        let Some(target) = read_target(policy, index, written, attachable, notes) else {
            continue;
        };
        if targets.iter().all(|known| known.place() != target.place()) {
            targets.push(target);
        } else if !target.is_by_labels() {
            let message = format!("{} is a target twice", target.object);
            notes.refuse(format!("spec.targetRefs[{index}]"), message, "remove one");
        }
    }
    targets
}

fn read_target(
    policy: &NamespacedName,
    index: usize,
    written: &AccessTargetRef,
    attachable: Attachable,
    notes: &mut Notes,
) -> Option<AccessTarget> {
    let at = format!("spec.targetRefs[{index}]");
    let kind = read_kind(&at, written, attachable, notes)?;
    if let Some(other) = foreign(policy, written.namespace.as_deref()) {
        refuse_foreign(index, other, notes);
        return None;
    }
    let section = written.section_name.clone().filter(|name| !name.is_empty());
    if kind == Kind::Workload && section.is_some() {
        notes.refuse(
            format!("{at}.sectionName"),
            "a workload has neither ports nor rules that could be named",
            "remove it, or attach the policy to a Service's port",
        );
    }
    if let Some(selector) = &written.selector {
        if kind != Kind::Workload {
            notes.refuse(
                format!("{at}.selector"),
                format!("a {kind} has a name, and is not selected by labels"),
                "write its `name`, or `group: policy.tulle.dev` and `kind: Workload`",
            );
            return None;
        }
        if !written.name.is_empty() {
            notes.refuse(
                format!("{at}.selector"),
                "a workload is meant by its name or by its labels, not by both",
                "remove one of `name` and `selector`",
            );
            return None;
        }
        let labels = read_labels(&at, selector, notes)?;
        return Some(AccessTarget { labels, index, ..AccessTarget::namespace(policy) });
    }
    let is_name = if kind == Kind::Service { is_label } else { is_subdomain };
    if !is_name(&written.name) {
        let message = match written.name.as_str() {
            "" if kind == Kind::Workload => "it has neither a name nor a selector".to_owned(),
            "" => "it has no name".to_owned(),
            name => format!("`{name}` cannot be the name of a {kind}"),
        };
        notes.refuse(format!("{at}.name"), message, "lower case letters, digits and `-`");
    }
    let name = NamespacedName::new(policy.namespace.clone(), written.name.as_str());
    Some(AccessTarget { object: ObjectKey { kind, name }, labels: Vec::new(), section, index })
}

fn read_kind(at: &str, written: &AccessTargetRef, attachable: Attachable, notes: &mut Notes) -> Option<Kind> {
    let with_routes = attachable == Attachable::Routes;
    let (kind, group) = match written.kind.as_str() {
        "Service" => (Kind::Service, ""),
        "Workload" => (Kind::Workload, OWN),
        "HTTPRoute" if with_routes => (Kind::HttpRoute, GATEWAY),
        "GRPCRoute" if with_routes => (Kind::GrpcRoute, GATEWAY),
        kind => {
            notes.refuse(
                format!("{at}.kind"),
                format!("a policy of this kind cannot be attached to a `{kind}`"),
                match with_routes {
                    true => "attach it to a Service, a Workload, an HTTPRoute or a GRPCRoute",
                    false => "attach it to a Service or a Workload",
                },
            );
            return None;
        }
    };
    if written.group == group || kind == Kind::Service && written.group == "core" {
        return Some(kind);
    }
    notes.refuse(
        format!("{at}.group"),
        format!("`{}` has no kind {kind}", written.group),
        &format!("write `group: \"{group}\"`"),
    );
    None
}

/// None, if who is meant cannot be told.
fn read_labels(
    at: &str,
    selector: &WorkloadSelector,
    notes: &mut Notes,
) -> Option<Vec<(Box<str>, Box<str>)>> {
    let at = format!("{at}.selector.matchLabels");
    let labels = &selector.match_labels;
    if labels.is_empty() || labels.len() > MAX_LIST {
        notes.refuse(
            at.as_str(),
            format!("{} labels", labels.len()),
            &format!("1 to {MAX_LIST}; for all workloads of the namespace, leave `targetRefs` out"),
        );
        return None;
    }
    let mut valid = true;
    for (key, value) in labels {
        if !is_label_key(key) || !is_label_value(value) {
            valid = false;
            notes.refuse(
                format!("{at}[\"{key}\"]"),
                format!("`{key}: {value}` cannot be a label of a Pod"),
                "letters, digits, `-`, `_` and `.`, at most 63; before the key, a DNS name and `/` at most",
            );
        }
    }
    let read = labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into()));
    valid.then(|| read.collect())
}

/// Kubernetes, "Labels and Selectors", syntax and character set.
fn is_label_key(key: &str) -> bool {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_subdomain) && !name.is_empty() && is_label_value(name)
}

fn is_label_value(value: &str) -> bool {
    let bytes = value.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, attachable: Attachable) -> (Vec<AccessTarget>, Vec<String>) {
        let refs: Vec<AccessTargetRef> = serde_json::from_value(crate::source::parse_one(text)).unwrap();
        let mut notes = Notes::default();
        let targets = read_targets(&NamespacedName::new("shop", "p"), &refs, attachable, &mut notes);
        let told = notes.into_inner().into_iter().map(|note| format!("{}: {}", note.field, note.message));
        (targets, told.collect())
    }

    #[test]
    fn targets_are_in_the_policys_own_namespace() {
        let text = "[{kind: Service, name: a, sectionName: http}, {group: policy.tulle.dev, kind: Workload, name: a.b}, \
             {group: gateway.networking.k8s.io, kind: GRPCRoute, name: r}, \
             {group: policy.tulle.dev, kind: Workload, selector: {matchLabels: {tier: x, a.b/app: orders}}}]";
        let (targets, told) = read(text, Attachable::Routes);
        assert_eq!(told, [""; 0]);
        let shown: Vec<String> = targets
            .iter()
            .map(|one| {
                let section = one.section.as_deref().unwrap_or_default();
                let labels = one.labels.iter().map(|(key, value)| format!(" {key}={value}"));
                format!("{} {} {section}{}", one.index, one.object, labels.collect::<String>())
            })
            .collect();
        let expected = [
            "0 Service shop/a http",
            "1 Workload shop/a.b ",
            "2 GRPCRoute shop/r ",
            "3 Namespace shop  a.b/app=orders tier=x",
        ];
        assert_eq!(shown, expected);
        assert_eq!(
            read("[]", Attachable::NoRoutes).0,
            [AccessTarget::namespace(&NamespacedName::new("shop", "p"))]
        );
    }

    #[test]
    fn what_is_no_target_is_refused_where_it_stands() {
        let workload = |rest: &str| format!("[{{group: policy.tulle.dev, kind: Workload, {rest}}}]");
        let cases = [
            ("[{kind: Pod, name: a}]".to_owned(), "spec.targetRefs[0].kind"),
            ("[{kind: Workload, name: a}]".to_owned(), "spec.targetRefs[0].group"),
            ("[{group: apps, kind: Service, name: a}]".to_owned(), "spec.targetRefs[0].group"),
            ("[{kind: Service, name: A}]".to_owned(), "spec.targetRefs[0].name"),
            ("[{kind: Service}]".to_owned(), "spec.targetRefs[0].name"),
            ("[{kind: Service, name: a, namespace: billing}]".to_owned(), "spec.targetRefs[0].namespace"),
            (
                "[{kind: Service, name: a}, {kind: Service, name: a, group: core}]".to_owned(),
                "spec.targetRefs[1]",
            ),
            ("[{kind: Service, selector: {matchLabels: {a: b}}}]".to_owned(), "spec.targetRefs[0].selector"),
            (workload("name: a, namespace: billing"), "spec.targetRefs[0].namespace"),
            (workload("selector: {matchLabels: {a: b}}, namespace: billing"), "spec.targetRefs[0].namespace"),
            (
                "[{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, namespace: billing}]"
                    .to_owned(),
                "spec.targetRefs[0].namespace",
            ),
            (workload("name: a, sectionName: b"), "spec.targetRefs[0].sectionName"),
            (workload("name: a, selector: {matchLabels: {a: b}}"), "spec.targetRefs[0].selector"),
            (workload("selector: {matchLabels: {}}"), "spec.targetRefs[0].selector.matchLabels"),
            (
                workload("selector: {matchLabels: {'a b': c}}"),
                "spec.targetRefs[0].selector.matchLabels[\"a b\"]",
            ),
        ];
        for (text, field) in cases {
            let (_, told) = read(&text, Attachable::Routes);
            assert!(matches!(&told[..], [one] if one.starts_with(&format!("{field}: "))), "{text}: {told:?}");
        }
        let route = "[{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}]";
        assert_eq!(read(route, Attachable::NoRoutes).0, []);
    }
}
