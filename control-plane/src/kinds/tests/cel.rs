//! The rules over several fields that API servers evaluate (CEL), beside what our own reading says of the same objects: what a cluster
//! takes must be what a folder takes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cel::{Context, Env};
use serde_json::{Value, json};

use super::cases::{GOOD, changes, set};
use super::{definitions, is_taken, specimen};

/// A value as rules see it: with defaults, and without what is null.
fn seen(schema: &Value, value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut all: serde_json::Map<String, Value> = fields.clone();
            all.retain(|_, value| !value.is_null());
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                if !field["default"].is_null() {
                    all.entry(name.as_str()).or_insert_with(|| field["default"].clone());
                }
            }
            let all = all.into_iter().map(|(name, value)| {
                let value = seen(&schema["properties"][&name], &value);
                (name, value)
            });
            Value::Object(all.collect())
        }
        Value::Array(items) => items.iter().map(|item| seen(&schema["items"], item)).collect(),
        other => other.clone(),
    }
}

/// Calls `each` for every rule, by its path and message, with what it is about in `value`; with nothing where `value` has no such field.
fn walk(
    schema: &Value,
    value: Option<&Value>,
    path: &str,
    each: &mut impl FnMut(String, &str, Option<&Value>),
) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let named = format!("{path}: {}", rule["message"].as_str().unwrap());
        each(named, rule["rule"].as_str().unwrap(), value);
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        walk(field, value.and_then(|value| value.get(name)), &path, each);
    }
    if schema["items"].is_object() {
        let path = format!("{path}[]");
        let items = value.and_then(Value::as_array).filter(|items| !items.is_empty());
        for item in items.into_iter().flatten() {
            walk(&schema["items"], Some(item), &path, each);
        }
        if items.is_none() {
            walk(&schema["items"], None, &path, each);
        }
    }
}

#[test]
fn an_api_servers_rules_refuse_what_our_reading_refuses() {
    let env = Arc::new(Env::stdlib());
    let schemas: BTreeMap<String, Value> = definitions()
        .into_iter()
        .map(|mut definition| {
            let kind = definition["spec"]["names"]["kind"].as_str().unwrap().to_owned();
            (kind, definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take())
        })
        .collect();
    let mut rules = BTreeSet::new();
    for (kind, schema) in &schemas {
        walk(schema, None, "", &mut |named, _, _| {
            rules.insert((kind.as_str(), named));
        });
    }
    assert!(!rules.is_empty());
    let (mut held, mut refused) = (BTreeSet::new(), BTreeSet::new());
    let mut judge = |kind: &'static str, object: &Value, expected: &BTreeSet<&str>| {
        let schema = &schemas[kind];
        let mut broken = BTreeSet::new();
        walk(schema, Some(&seen(schema, object)), "", &mut |named, rule, value| {
            let Some(value) = value else { return };
            let program = env.compile(rule).unwrap_or_else(|error| panic!("{named}: {error}"));
            let mut context = Context::with_env(Arc::clone(&env));
            context.add_variable("self", value.clone()).unwrap();
            match program.execute(&context) {
                Ok(cel::Value::Bool(true)) => held.insert((kind, named)),
                Ok(cel::Value::Bool(false)) => broken.insert(named),
                other => panic!("{kind} {named}: {other:?} of {value}"),
            };
        });
        assert_eq!(
            broken.iter().map(String::as_str).collect::<BTreeSet<_>>(),
            *expected,
            "{kind}: {object:#}"
        );
        assert_eq!(is_taken(object), broken.is_empty(), "our reading: {kind}: {object:#}");
        refused.extend(broken.into_iter().map(|named| (kind, named)));
    };
    for (kind, spec) in GOOD {
        judge(kind, &specimen(kind, spec), &BTreeSet::new());
        for (_, at, text, expected) in changes(kind) {
            let mut object = specimen(kind, spec);
            set(&mut object, at, serde_json::from_str(text).unwrap());
            judge(kind, &object, &expected.iter().copied().collect());
        }
    }
    for (what, judged) in [("refuses nothing", refused), ("takes nothing", held)] {
        let silent: Vec<_> = rules.difference(&judged).collect();
        assert_eq!(silent, Vec::<&(&str, String)>::new(), "{what} of what stands above");
    }
}

#[test]
fn what_is_null_or_left_out_is_as_its_default() {
    let schema = json!({"properties": {
        "a": {"default": 1}, "b": {"nullable": true}, "c": {"items": {"properties": {"d": {"default": {}, "properties": {"e": {"default": 2}}}}}},
    }});
    let value = json!({"a": null, "b": null, "c": [{}]});
    assert_eq!(seen(&schema, &value), json!({"a": 1, "c": [{"d": {"e": 2}}]}));
}
