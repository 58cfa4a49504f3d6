//! What leads from one JSON value to another, as a JSON Patch (RFC 6902).
//!
//! Lists of things with names (containers, volumes) are compared by name, so that a patch says what was added and not the whole list again.

use std::collections::HashMap;

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
    let Some(known) = aligned(from, to) else { return false };
    for index in gone(from, &known).into_iter().rev() {
        out.push(json!({"op": "remove", "path": format!("{at}/{index}")}));
    }
    for (index, (known, item)) in known.iter().zip(to).enumerate() {
        match known.and_then(|known| from.get(known)) {
            Some(old) => differ(&format!("{at}/{index}"), old, item, out),
            None => out.push(json!({"op": "add", "path": format!("{at}/{index}"), "value": item})),
        }
    }
    true
}

/// For each item of `to` its place in `from`, found by its name; `None`: not every item has a name of its own, or they have another order.
pub(super) fn aligned(from: &[Value], to: &[Value]) -> Option<Vec<Option<usize>>> {
    let before = names(from)?;
    names(to)?;
    let place = |item: &Value| before.get(super::name_of(item)?).copied();
    let known: Vec<Option<usize>> = to.iter().map(place).collect();
    known.iter().flatten().is_sorted().then_some(known)
}

/// The places in `from` that nothing of `to` has ([`aligned`]), in their order.
pub(super) fn gone(from: &[Value], known: &[Option<usize>]) -> Vec<usize> {
    let mut is_kept = vec![false; from.len()];
    for index in known.iter().flatten() {
        if let Some(kept) = is_kept.get_mut(*index) {
            *kept = true;
        }
    }
    is_kept.iter().enumerate().filter(|(_, kept)| !**kept).map(|(index, _)| index).collect()
}

/// The names of all items with their places, if each has one of its own.
fn names(items: &[Value]) -> Option<HashMap<&str, usize>> {
    let mut names = HashMap::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        if names.insert(super::name_of(item)?, index).is_some() {
            return None;
        }
    }
    Some(names)
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
            (json!({"l": [named("a", 1), named("a", 2)]}), json!({"l": [named("a", 1)]}), 1),
        ] {
            let operations = patch(&from, &to);
            assert_eq!(operations.len(), count, "{operations:?}");
            let typed: json_patch::Patch = serde_json::from_value(Value::Array(operations)).unwrap();
            let mut patched = from.clone();
            json_patch::patch(&mut patched, &typed).unwrap();
            assert_eq!(patched, to);
        }
    }

    #[test]
    fn a_long_list_is_looked_through_once() {
        let named = |from: usize| (from..40_000).map(|n| json!({"name": n.to_string()})).collect::<Vec<_>>();
        let (from, to) = (json!({"l": named(0)}), json!({"l": named(1)}));
        assert_eq!(patch(&from, &to), [json!({"op": "remove", "path": "/l/0"})]);
        assert_eq!(patch(&to, &from).len(), 1);
    }
}
