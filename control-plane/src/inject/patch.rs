//! What leads from one JSON value to another, as a JSON Patch (RFC 6902).
//!
//! Lists of things with names (containers, volumes) are compared by name, so that a patch says what was added and not the whole list again.

use serde_json::{Map, Value, json};

/// The operations, in the order in which they are to be applied; none if the values are equal.
pub fn patch(from: &Value, to: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    differ("", from, to, &mut operations);
    operations
}

fn differ(at: &str, from: &Value, to: &Value, out: &mut Vec<Value>) {
    match (from, to) {
        _ if from == to => {}
        (Value::Object(from), Value::Object(to)) => objects(at, from, to, out),
        (Value::Array(from), Value::Array(to)) => {
            if !lists(at, from, to, out) {
                out.push(json!({"op": "replace", "path": at, "value": to}));
            }
        }
        _ => out.push(json!({"op": "replace", "path": at, "value": to})),
    }
}

fn objects(at: &str, from: &Map<String, Value>, to: &Map<String, Value>, out: &mut Vec<Value>) {
    let path = |key: &str| format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
    for (key, value) in to {
        match from.get(key) {
            Some(before) => differ(&path(key), before, value, out),
            None => out.push(json!({"op": "add", "path": path(key), "value": value})),
        }
    }
    // Last, so that no object is empty on the way: in a text of YAML that would be none.
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        out.push(json!({"op": "remove", "path": path(key)}));
    }
}

/// False: the items have no names by which they could be told apart, or another order.
fn lists(at: &str, from: &[Value], to: &[Value], out: &mut Vec<Value>) -> bool {
    let (Some(before), Some(after)) = (names(from), names(to)) else { return false };
    let kept: Vec<&str> = before.iter().copied().filter(|name| after.contains(name)).collect();
    if !after.iter().filter(|name| before.contains(name)).eq(&kept) {
        return false;
    }
    for (index, _) in before.iter().enumerate().rev().filter(|(_, name)| !after.contains(name)) {
        out.push(json!({"op": "remove", "path": format!("{at}/{index}")}));
    }
    for (index, (name, item)) in after.iter().zip(to).enumerate() {
        match before.iter().zip(from).find(|(known, _)| *known == name) {
            Some((_, old)) => differ(&format!("{at}/{index}"), old, item, out),
            None => out.push(json!({"op": "add", "path": format!("{at}/{index}"), "value": item})),
        }
    }
    true
}

/// The names of all items, if each has one of its own.
fn names(items: &[Value]) -> Option<Vec<&str>> {
    let names: Vec<&str> = items.iter().map(super::name_of).collect::<Option<_>>()?;
    let is_once = |(index, name): (usize, &&str)| !names[..index].contains(name);
    names.iter().enumerate().all(is_once).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_leads_from_one_to_the_other() {
        let named = |name: &str, x: u64| json!({"name": name, "x": x});
        for (from, to, count) in [
            (json!({}), json!({}), 0),
            (json!({"a": 1}), json!({"a": 2}), 1),
            (json!({"a": 1, "c/d~e": 1}), json!({"b": {"c": []}}), 3),
            (json!({"l": [1, 2]}), json!({"l": [1, 3]}), 1),
            (json!({"l": [named("a", 1)]}), json!({"l": [named("i", 0), named("j", 0), named("a", 2)]}), 3),
            (
                json!({"l": [named("a", 1), named("b", 1), named("c", 1)]}),
                json!({"l": [named("b", 1), named("d", 1)]}),
                3,
            ),
            (json!({"l": [named("a", 1), named("b", 1)]}), json!({"l": [named("b", 1), named("a", 1)]}), 1),
            (json!({"l": [named("a", 1)]}), json!({"l": []}), 1),
        ] {
            let operations = patch(&from, &to);
            assert_eq!(operations.len(), count, "{operations:?}");
            let typed: json_patch::Patch = serde_json::from_value(Value::Array(operations)).unwrap();
            let mut patched = from.clone();
            json_patch::patch(&mut patched, &typed).unwrap();
            assert_eq!(patched, to);
        }
    }
}
