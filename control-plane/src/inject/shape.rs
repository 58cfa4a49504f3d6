//! Whether what came is of the shape of a Pod, and what comes of it still is: what the API server, or the kernel, would refuse is told by the place.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::Value;

use super::{INIT, PROXY, list, name_of};

/// What a Pod's annotations may have together: the API server takes no more.
const ANNOTATIONS: usize = 256 << 10;
/// What a variable may have with its name: Linux starts no program with more (`MAX_ARG_STRLEN`).
const VARIABLE: usize = 128 << 10;
/// So much is told of what people wrote.
const TOLD: usize = 80;

/// Which list of a Pod's is none of things with names.
pub(super) fn malformed(pod: &Value) -> Option<String> {
    let fields = ["containers", "initContainers", "ephemeralContainers", "volumes"];
    fields.into_iter().find_map(|field| {
        let place = format!("spec.{field}");
        match pod.get("spec")?.get(field)? {
            Value::Null => None,
            Value::Array(items) => unnamed(&place, items),
            other => Some(format!("{place} is {}, where there should be a list", called(other))),
        }
    })
}

fn unnamed(place: &str, items: &[Value]) -> Option<String> {
    let mut names = HashSet::new();
    items.iter().enumerate().find_map(|(index, item)| {
        let place = format!("{place}[{index}]");
        if !item.is_object() {
            return Some(format!("{place} is {}, where there should be an object", called(item)));
        }
        match item.get("name") {
            None | Some(Value::Null) => Some(format!("{place} has no name")),
            Some(Value::String(name)) if name.is_empty() => Some(format!("{place} has an empty name")),
            Some(Value::String(name)) => {
                let is_new = names.insert(name.as_str());
                (!is_new).then(|| format!("{place} has the name of another before it, `{}`", short(name)))
            }
            Some(other) => Some(format!("{place} has {} for a name", called(other))),
        }
    })
}

/// What is there in place of something else.
fn called(value: &Value) -> Cow<'static, str> {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) | Value::Number(_) => format!("`{value}`").into(),
        Value::String(text) => format!("the text `{}`", short(text)).into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

/// What has become too large by what is added.
pub(super) fn too_large(pod: &Value, with_proxy: &Value) -> Option<String> {
    let size = |pod: &Value| -> usize {
        let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object);
        let pairs = annotations.into_iter().flatten();
        pairs.map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum()
    };
    let after = size(with_proxy);
    if after > ANNOTATIONS && size(pod) <= ANNOTATIONS {
        return Some(format!(
            "with what is to be remembered of its probes and hooks, the pod's annotations would have {after} bytes, and Kubernetes takes {ANNOTATIONS}; \
             give it fewer or shorter ones"
        ));
    }
    let added = list(with_proxy, "/spec/initContainers")
        .iter()
        .filter(|container| [Some(INIT), Some(PROXY)].contains(&name_of(container)));
    let mut variables = added.flat_map(|container| list(container, "/env"));
    variables.find_map(|variable| {
        let (name, value) = (name_of(variable)?, variable.get("value")?.as_str()?);
        let size = name.len() + value.len() + 2;
        (size > VARIABLE).then(|| {
            format!(
                "what the proxy is told of the pod in {name} would have {size} bytes, and Linux takes {VARIABLE}; give the pod fewer or shorter probes, hooks \
                 or annotations"
            )
        })
    })
}

/// The beginning of what somebody wrote: a message is read by people, and an event holds 1 KiB.
pub(super) fn short(text: &str) -> Cow<'_, str> {
    shorter(text, TOLD)
}

/// At most so many characters.
pub(super) fn shorter(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]).into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{namespace, pod};
    use super::super::{Decision, Reason, Settings, inject};
    use super::*;

    #[test]
    fn what_is_no_list_of_things_with_names_is_told_by_its_place() {
        for (spec, says) in [
            (
                json!({"containers": {"name": "a"}}),
                "spec.containers is an object, where there should be a list",
            ),
            (json!({"containers": "a"}), "spec.containers is the text `a`"),
            (json!({"containers": [null]}), "spec.containers[0] is null"),
            (json!({"containers": [{"name": "a"}, {"image": "b"}]}), "spec.containers[1] has no name"),
            (json!({"containers": [{"name": 1}]}), "spec.containers[0] has `1` for a name"),
            (json!({"containers": [{"name": ""}]}), "spec.containers[0] has an empty name"),
            (
                json!({"containers": [{"name": "a"}, {"name": "a"}]}),
                "spec.containers[1] has the name of another",
            ),
            (json!({"containers": [{"name": "a"}], "initContainers": 1}), "spec.initContainers is `1`"),
            (json!({"containers": [{"name": "a"}], "volumes": [[]]}), "spec.volumes[0] is a list"),
        ] {
            let pod = json!({"metadata": {}, "spec": spec});
            let told = malformed(&pod).unwrap();
            assert!(told.starts_with(says), "{told}");
            let decided = inject(&pod, &namespace(), &Settings::default());
            let Decision::Leave { reason: Reason::Malformed, message, .. } = decided else {
                panic!("{decided:?}")
            };
            assert_eq!(message, told);
        }
        assert_eq!(malformed(&json!({"spec": {"containers": [{"name": "a"}], "volumes": null}})), None);
    }

    #[test]
    fn what_would_be_too_large_with_a_proxy_has_none() {
        let probe = |container: &str, length: usize| {
            let headers = json!([{"name": "x", "value": "y".repeat(length)}]);
            json!({
                "name": container,
                "livenessProbe": {"httpGet": {"port": 8443, "scheme": "HTTPS", "httpHeaders": headers}},
            })
        };
        let large = |containers: Vec<Value>| {
            let mut pod = pod();
            pod["spec"]["containers"] = json!(containers);
            inject(&pod, &namespace(), &Settings::default())
        };
        assert!(matches!(large(vec![probe("a", 1000)]), Decision::Inject { .. }));
        for (containers, says) in [
            (vec![probe("a", 140 << 10)], "TULLE_PROXY_PROBES"),
            (vec![probe("a", 100 << 10), probe("b", 100 << 10), probe("c", 100 << 10)], "annotations"),
        ] {
            let decided = large(containers);
            let Decision::Leave { reason: Reason::TooLarge, message, .. } = decided else {
                panic!("{decided:?}")
            };
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn long_texts_are_told_by_their_beginning() {
        assert_eq!(short("as it is"), "as it is");
        assert_eq!(short(&"ü".repeat(1000)).chars().count(), TOLD + 1);
        let mut pod = pod();
        pod["metadata"]["annotations"] = json!({"config.tulle.dev/skip-inbound-ports": "x".repeat(10_000)});
        let Decision::Refuse { message, .. } = inject(&pod, &namespace(), &Settings::default()) else {
            panic!("not refused")
        };
        assert!(message.len() < 600, "{message}");
    }
}
