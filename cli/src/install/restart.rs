//! What becomes of pods in the mesh once they are made anew under other settings: whose proxy is another then, and who gets one. Pure.
//!
//! By the injector itself: each pod without its proxy gets one as the chart to come says, and what it would have is put beside what it has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::Value;
use tulle_control_plane::inject::unmeshed::{NOT_INJECTED, unmeshed};
use tulle_control_plane::inject::{
    Decision, INIT, Namespace, PROXY, Reason, Settings, inject, is_injected, status, uninject,
};

use super::drift;
use crate::check::seen::{name, text};

/// Workloads that are shown.
const MOST: usize = 30;
/// Settings of one workload that are shown.
const FIELDS: usize = 5;

/// What changes for a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Change {
    /// `<namespace>/<kind>/<name>` of what the pod was made by.
    workload: String,
    what: String,
}

/// What would be otherwise with a pod that is made in this one's place; `None`: nothing.
pub(super) fn of(pod: &Value, namespace: &Namespace, settings: &Settings) -> Option<Change> {
    if !text(pod, "/metadata/deletionTimestamp").is_empty() {
        return None;
    }
    let what = match is_injected(pod) {
        true => of_proxy(pod, namespace, settings)?,
        false => match unmeshed(pod, namespace, settings)?.reason {
            NOT_INJECTED => "gets a proxy: it is asked for, and there is none".to_owned(),
            reason => format!("stays without the proxy that is asked for ({reason})"),
        },
    };
    let (kind, owner) = owner(pod);
    Some(Change { workload: format!("{}/{kind}/{owner}", namespace.name), what })
}

/// All of them, a line for each workload; empty if there are none.
pub(super) fn table(changes: Vec<Change>) -> String {
    let mut pods: BTreeMap<Change, usize> = BTreeMap::new();
    for change in changes {
        *pods.entry(change).or_default() += 1;
    }
    if pods.is_empty() {
        return String::new();
    }
    let head = "workload";
    let names = pods.keys().take(MOST).map(|change| change.workload.chars().count());
    let width = names.chain([head.len()]).max().unwrap_or_default();
    let mut text = String::from("What changes once pods are made anew:\n");
    let _ = writeln!(text, "  {head:<width$}  pods  what changes");
    for (Change { workload, what }, pods) in pods.iter().take(MOST) {
        let _ = writeln!(text, "  {workload:<width$}  {pods:>4}  {what}");
    }
    if pods.len() > MOST {
        let _ = writeln!(text, "  and {} more", pods.len() - MOST);
    }
    text
}

fn of_proxy(pod: &Value, namespace: &Namespace, settings: &Settings) -> Option<String> {
    let new = match inject(&uninject(pod)?, namespace, settings) {
        Decision::Inject { pod, .. } => pod,
        Decision::Refuse { reason, .. } => return Some(format!("is refused ({reason})")),
        Decision::Leave { reason, .. }
            if reason.is_worth_telling() || reason == Reason::DisabledByNamespace =>
        {
            return Some(format!("has no proxy any more ({reason})"));
        }
        // Its own manifest may have brought the proxy, by `tulle inject`: then it will again.
        Decision::Leave { .. } => return None,
    };
    let (before, after) = (status(pod)?, status(&new)?);
    if before.hash == after.hash {
        return None;
    }
    let mut told = Vec::new();
    let mut fields = BTreeSet::new();
    for container in [PROXY, INIT] {
        let (Some(said), Some(live)) = (init_container(&new, container), init_container(pod, container))
        else {
            continue;
        };
        for differs in changed(said, live) {
            if differs.at != "image" {
                fields.insert(field(&differs.at).to_owned());
            } else if container == PROXY {
                // In full: what tells two images apart stands at their ends.
                let of = |value: &Value| drift::plain(value.as_str().unwrap_or("none"));
                told.push(format!("image {} → {}", of(&differs.live), of(&differs.said)));
            }
        }
    }
    if before.version != after.version && (!told.is_empty() || !fields.is_empty()) {
        told.insert(0, format!("version {} → {}", drift::plain(&before.version), after.version));
    }
    let more = fields.len().saturating_sub(FIELDS);
    if !fields.is_empty() {
        let mut all = fields.into_iter().take(FIELDS).collect::<Vec<_>>().join(", ");
        if more > 0 {
            let _ = write!(all, " and {more} more");
        }
        told.push(all);
    }
    (!told.is_empty()).then(|| told.join("; "))
}

fn init_container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    let all = pod.pointer("/spec/initContainers").and_then(Value::as_array);
    all.into_iter().flatten().find(|container| container["name"] == name)
}

/// What of a container is not as it would be, but for what others put into every container.
fn changed(said: &Value, live: &Value) -> Vec<drift::Differs> {
    let mut said = said.clone();
    if let Some(said) = said.as_object_mut() {
        // The API server adds the token of the service account.
        said.remove("volumeMounts");
    }
    let mut found = drift::between(&said, live);
    found.retain(|differs| !differs.said.is_null() || differs.at.starts_with("env[TULLE_"));
    found
}

/// What a person calls it: the variable, or the container's own field.
fn field(at: &str) -> &str {
    match at.strip_prefix("env[").and_then(|rest| rest.split(']').next()) {
        Some(variable) => variable,
        None => at.split(['.', '[']).next().unwrap_or(at),
    }
}

/// Kind and name of what a pod was made by, as far as the pod says.
fn owner(pod: &Value) -> (String, String) {
    let owners = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let Some(owner) = owners.into_iter().flatten().find(|owner| owner["controller"] == true) else {
        return ("Pod".to_owned(), name(pod).to_owned());
    };
    let (kind, name) = (text(owner, "/kind"), text(owner, "/name"));
    let above = match kind {
        // A Deployment's, which appends what it also writes into this label.
        "ReplicaSet" => {
            let hash = text(pod, "/metadata/labels/pod-template-hash");
            name.strip_suffix(hash).filter(|_| !hash.is_empty()).map(|rest| ("Deployment", rest))
        }
        // A CronJob's, which appends the minute.
        "Job" => {
            let rest = name.trim_end_matches(|digit: char| digit.is_ascii_digit());
            (name.len() - rest.len() >= 8).then_some(("CronJob", rest))
        }
        _ => None,
    };
    let above = above.and_then(|(kind, rest)| Some((kind, rest.strip_suffix('-')?)));
    let (kind, name) = above.unwrap_or((kind, name));
    (kind.to_owned(), name.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tulle_control_plane::inject::INJECT;

    use super::*;

    fn namespace() -> Namespace {
        let labels = [(INJECT.to_owned(), "enabled".to_owned())].into();
        Namespace { name: "shop".to_owned(), labels, annotations: BTreeMap::new() }
    }

    fn old() -> Settings {
        Settings { image_tag: "0.0.9".to_owned(), ..Settings::default() }
    }

    fn bare() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "orders-7d9-x", "namespace": "shop", "labels": {"pod-template-hash": "7d9"},
                "ownerReferences": [{"kind": "ReplicaSet", "name": "orders-7d9", "controller": true}],
            },
            "spec": {"containers": [{"name": "app", "image": "app"}]},
        })
    }

    /// As it runs in a cluster.
    fn injected(settings: &Settings) -> Value {
        let Decision::Inject { mut pod, .. } = inject(&bare(), &namespace(), settings) else { panic!() };
        for container in pod["spec"]["initContainers"].as_array_mut().unwrap() {
            container["terminationMessagePath"] = "/dev/termination-log".into();
            let mount = json!({"name": "kube-api-access", "mountPath": "/var/run/secrets/x"});
            match container["volumeMounts"].as_array_mut() {
                Some(mounts) => mounts.push(mount),
                None => container["volumeMounts"] = json!([mount]),
            }
            let variables = container["env"].as_array_mut().unwrap();
            variables.push(json!({"name": "AWS_REGION", "value": "x"}));
        }
        *pod
    }

    fn told(pod: &Value, settings: &Settings) -> Option<String> {
        of(pod, &namespace(), settings).map(|change| format!("{}: {}", change.workload, change.what))
    }

    #[test]
    fn a_proxy_that_would_be_another_is_told_by_its_workload() {
        assert_eq!(told(&injected(&old()), &old()), None);
        let new = Settings { log_level: "debug".to_owned(), image_tag: "0.1.0".to_owned(), ..old() };
        let said = told(&injected(&old()), &new).unwrap();
        let expected = format!("image {} → {}; TULLE_PROXY_LOG_LEVEL", old().image(), new.image());
        assert_eq!(said, format!("shop/Deployment/orders: {expected}"));
        // A hash that others would make of the same proxy is no other proxy.
        let mut same = injected(&old());
        let other = json!({"version": "0.0.1", "hash": "0"}).to_string();
        same["metadata"]["annotations"]["tulle.dev/status"] = other.into();
        assert_eq!(told(&same, &old()), None);
        // A setting that is no more.
        let with = Settings { access_log: Some("off".to_owned()), ..old() };
        assert!(told(&injected(&with), &old()).unwrap().ends_with(": TULLE_PROXY_ACCESS_LOG"));
        let mut ending = injected(&old());
        ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(told(&ending, &new), None);
    }

    #[test]
    fn who_has_no_proxy_and_should_and_who_loses_it_is_told() {
        let who = "shop/Deployment/orders";
        assert_eq!(
            told(&bare(), &old()).unwrap(),
            format!("{who}: gets a proxy: it is asked for, and there is none")
        );
        let mut host = bare();
        host["spec"]["hostNetwork"] = true.into();
        assert_eq!(
            told(&host, &old()).unwrap(),
            format!("{who}: stays without the proxy that is asked for (host_network)")
        );
        let mut out = namespace();
        out.labels.insert(INJECT.to_owned(), "disabled".to_owned());
        let said = of(&injected(&old()), &out, &old()).unwrap();
        assert_eq!(said.what, "has no proxy any more (disabled_by_namespace)");
        assert_eq!(of(&bare(), &out, &old()), None);
    }

    #[test]
    fn a_pod_is_of_what_made_it() {
        let of = |kind: &str, name: &str| {
            let mut pod = bare();
            pod["metadata"]["ownerReferences"][0] = json!({"kind": kind, "name": name, "controller": true});
            let (kind, name) = owner(&pod);
            format!("{kind}/{name}")
        };
        assert_eq!(of("ReplicaSet", "orders-7d9"), "Deployment/orders");
        assert_eq!(of("ReplicaSet", "alone"), "ReplicaSet/alone");
        assert_eq!(of("StatefulSet", "db"), "StatefulSet/db");
        assert_eq!(of("Job", "nightly-29123456"), "CronJob/nightly");
        assert_eq!(of("Job", "once-1"), "Job/once-1");
        assert_eq!(owner(&json!({"metadata": {"name": "a"}})), ("Pod".to_owned(), "a".to_owned()));
    }

    #[test]
    fn the_table_counts_pods_and_ends() {
        assert_eq!(table(Vec::new()), "");
        let change = |name: &str| Change { workload: format!("shop/Job/{name}"), what: "image".to_owned() };
        assert_eq!(
            table(vec![change("b"), change("a"), change("b")]),
            "What changes once pods are made anew:\n  workload    pods  what changes\n  shop/Job/a     1  image\n  shop/Job/b     2  \
             image\n"
        );
        let many = (0..MOST + 2).map(|at| change(&at.to_string())).collect();
        let text = table(many);
        assert!(text.ends_with("  and 2 more\n") && text.lines().count() == MOST + 3, "{text}");
    }
}
