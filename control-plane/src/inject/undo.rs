//! The way back: what an injection has added is taken away, and its probes are as they were.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{INIT, PROXY, Rewritten, STATUS, Status, VOLUME, name_of, probes, status};

/// The Pod as it was before it got a proxy; `None`: it has none. What was changed by hand since stays.
pub fn uninject(pod: &Value) -> Option<Value> {
    let status = status(pod)?;
    let mut pod = pod.clone();
    let spec = pod.get_mut("spec").and_then(Value::as_object_mut)?;
    without(spec, "initContainers", &[INIT, PROXY]);
    without(spec, "volumes", &[VOLUME]);
    restore(spec, &status.rewritten);
    forget(&mut pod);
    Some(pod)
}

/// Takes away the annotations of an injection.
pub(super) fn forget(pod: &mut Value) {
    let Status { annotations: added, .. } = status(pod).unwrap_or_default();
    let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) else { return };
    let mut removed = annotations.remove(STATUS).is_some();
    for key in added {
        removed |= annotations.remove(&key).is_some();
    }
    if !removed || !annotations.is_empty() {
        return;
    }
    metadata.remove("annotations");
    // A template may have had none.
    if metadata.is_empty()
        && let Some(pod) = pod.as_object_mut()
    {
        pod.remove("metadata");
    }
}

/// Takes away items by name, and the list with the last of them.
fn without(spec: &mut Map<String, Value>, key: &str, names: &[&str]) {
    let Some(items) = spec.get_mut(key).and_then(Value::as_array_mut) else { return };
    let before = items.len();
    items.retain(|item| name_of(item).is_none_or(|name| !names.contains(&name)));
    if items.is_empty() && before > 0 {
        spec.remove(key);
    }
}

/// Probes that still lead to the proxy are as they were again.
fn restore(spec: &mut Map<String, Value>, rewritten: &[Rewritten]) {
    let mut of_containers: BTreeMap<&str, Vec<&Rewritten>> = BTreeMap::new();
    for rewritten in rewritten {
        of_containers.entry(&rewritten.container).or_default().push(rewritten);
    }
    for key in ["containers", "initContainers"] {
        let Some(containers) = spec.get_mut(key).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            let of_it = name_of(container).and_then(|name| of_containers.get(name));
            for rewritten in of_it.into_iter().flatten() {
                restore_one(container, rewritten);
            }
        }
    }
}

fn restore_one(container: &mut Value, rewritten: &Rewritten) {
    let Some(handler) = probes::field(container, &rewritten.field) else { return };
    let path = handler.get("httpGet").and_then(|get| get.get("path")).and_then(Value::as_str);
    if !path.is_some_and(|path| path.starts_with("/probe/")) {
        return;
    }
    handler.remove("httpGet");
    let was = rewritten.was.as_object().into_iter().flatten();
    handler.extend(was.map(|(key, value)| (key.clone(), value.clone())));
}
