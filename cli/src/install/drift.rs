//! What of an object in the cluster is not as a manifest says: somebody has changed it since. Pure.
//!
//! Only what the manifest says is compared: what the API server adds by itself (defaults, `status`, `managedFields`), and what others write beside
//! it, is no difference. An item more in a list that the manifest gives is one.

use std::collections::BTreeSet;

use serde_json::Value;
use tulle_control_plane::inject::same_amount;
use tulle_control_plane::tap::printable;

use crate::brief::beginning;

/// What is shown of a value, in characters.
const SHOWN: usize = 60;

/// A place in which the two differ.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Differs {
    /// `spec.template.spec.containers[control-plane].image`.
    pub(super) at: String,
    /// As the manifest has it; null: it has nothing there.
    pub(super) said: Value,
    /// As the cluster has it; null: it has nothing there.
    pub(super) live: Value,
}

/// Where an object is not as a manifest has it.
pub(super) fn between(said: &Value, live: &Value) -> Vec<Differs> {
    let mut found = Vec::new();
    for (key, said) in said.as_object().into_iter().flatten() {
        match key.as_str() {
            "apiVersion" | "kind" | "status" => {}
            "metadata" => {
                for of in ["labels", "annotations"] {
                    compare(&format!("metadata.{of}"), &said[of], &live["metadata"][of], &mut found);
                }
            }
            key => compare(key, said, &live[key], &mut found),
        }
    }
    found
}

/// A value as a person reads it.
pub(super) fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => return "nothing".to_owned(),
        Value::String(text) => printable(text),
        other => other.to_string(),
    };
    beginning(&text, SHOWN)
}

fn compare(at: &str, said: &Value, live: &Value, found: &mut Vec<Differs>) {
    if is_nothing(said) && is_nothing(live) {
        return;
    }
    match (said, live) {
        (Value::Null, _) => {}
        (Value::Object(fields), Value::Object(_)) => {
            for (key, said) in fields {
                compare(&format!("{at}.{key}"), said, &live[key.as_str()], found);
            }
        }
        (Value::Array(said), Value::Array(live)) => items(at, said, live, found),
        // A number may come back as a text, and an amount in other words.
        _ if same_amount(said, live) => {}
        _ => found.push(Differs { at: at.to_owned(), said: said.clone(), live: live.clone() }),
    }
}

/// Items are the same by their names where all have one, or else by their places.
fn items(at: &str, said: &[Value], live: &[Value], found: &mut Vec<Differs>) {
    let Some(names) = names(said) else {
        if said.len() != live.len() {
            found.push(Differs { at: at.to_owned(), said: said.to_vec().into(), live: live.to_vec().into() });
            return;
        }
        for (index, (said, live)) in said.iter().zip(live).enumerate() {
            compare(&format!("{at}[{index}]"), said, live, found);
        }
        return;
    };
    let of_name = |name: &str| live.iter().find(|item| item["name"] == name);
    for item in said {
        let name = item["name"].as_str().unwrap_or_default();
        compare(&format!("{at}[{name}]"), item, of_name(name).unwrap_or(&Value::Null), found);
    }
    for item in live {
        let name = item["name"].as_str().unwrap_or_default();
        if !names.contains(name) {
            found.push(Differs { at: format!("{at}[{name}]"), said: Value::Null, live: item.clone() });
        }
    }
}

/// The names of all, if each has one of its own.
fn names(items: &[Value]) -> Option<BTreeSet<&str>> {
    let names: Option<BTreeSet<&str>> = items.iter().map(|item| item["name"].as_str()).collect();
    names.filter(|names| !names.is_empty() && names.len() == items.len())
}

/// What the API server may leave out without saying anything else.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(yes) => !yes,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_nothing),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn differences(said: &Value, live: &Value) -> Vec<String> {
        let all = between(said, live).into_iter();
        all.map(|one| format!("{}: {} / {}", one.at, shown(&one.said), shown(&one.live))).collect()
    }

    fn deployment() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "one", "labels": {"app": "one"}},
            "spec": {
                "replicas": 1, "paused": false, "template": {"metadata": {"annotations": {}}, "spec": {
                    "containers": [{"name": "app", "image": "app:1", "args": ["--a", "--b"], "resources": {"requests": {"cpu": "1000m"}}}],
                    "tolerations": [],
                }},
            },
        })
    }

    #[test]
    fn what_the_api_server_adds_is_no_difference() {
        let mut live = deployment();
        live["metadata"]["managedFields"] = json!([{"manager": "helm"}]);
        live["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "Helm".into();
        live["metadata"]["resourceVersion"] = "7".into();
        live["status"] = json!({"replicas": 1});
        live["spec"]["progressDeadlineSeconds"] = json!(600);
        let spec = live["spec"].as_object_mut().unwrap();
        spec.remove("paused");
        let pod = &mut spec["template"]["spec"];
        pod.as_object_mut().unwrap().remove("tolerations");
        pod["containers"][0]["terminationMessagePath"] = "/dev/termination-log".into();
        pod["containers"][0]["resources"]["requests"]["cpu"] = "1".into();
        assert_eq!(differences(&deployment(), &live), Vec::<String>::new());
    }

    #[test]
    fn what_somebody_changed_is_told_with_its_place() {
        let changed = |pointer: &str, value: Value| {
            let mut live = deployment();
            *live.pointer_mut(pointer).unwrap() = value;
            differences(&deployment(), &live)
        };
        assert_eq!(changed("/spec/replicas", json!(5)), ["spec.replicas: 1 / 5"]);
        assert_eq!(changed("/spec/paused", json!(true)), ["spec.paused: false / true"]);
        assert_eq!(changed("/metadata/labels", json!({})), ["metadata.labels.app: one / nothing"]);
        let containers = "/spec/template/spec/containers";
        let at = "spec.template.spec.containers";
        assert_eq!(
            changed(&format!("{containers}/0/image"), json!("app:2")),
            [format!("{at}[app].image: app:1 / app:2")]
        );
        assert_eq!(
            changed(&format!("{containers}/0/args"), json!(["--a", "--c"])),
            [format!("{at}[app].args[1]: --b / --c")]
        );
        assert_eq!(
            changed(&format!("{containers}/0/args"), json!(["--a"])),
            [format!("{at}[app].args: [\"--a\",\"--b\"] / [\"--a\"]")]
        );
        let mut two = deployment()["spec"]["template"]["spec"]["containers"].clone();
        two.as_array_mut().unwrap().insert(0, json!({"name": "more"}));
        assert_eq!(changed(containers, two), [format!("{at}[more]: nothing / {{\"name\":\"more\"}}")]);
        assert_eq!(shown(&json!("a\n\u{1b}[0m")), r"a\u000a\u001b[0m");
        assert_eq!(shown(&json!("é".repeat(100))), format!("{}…", "é".repeat(SHOWN)));
    }
}
