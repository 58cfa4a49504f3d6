//! What is generated from the kinds.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use self::cases::{SPECIMENS, bounds};
use crate::source::{parse_one, read_text};

mod cases;
mod cel;

/// As JSON, each with the example that the reference shows first.
fn definitions() -> Vec<Value> {
    let shown = shown();
    let mut all: Vec<Value> =
        super::definitions().iter().map(|definition| serde_json::to_value(definition).unwrap()).collect();
    for definition in &mut all {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        let example = parse_one(example(&shown, &kind))["spec"].take();
        let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        schema["properties"]["spec"]["example"] = example;
    }
    all
}

/// Every document of YAML that a page shows, the reference first.
fn shown() -> Vec<String> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut found = Vec::new();
    for folder in [docs.join("reference"), docs] {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut pages: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
        pages.sort();
        for page in pages {
            let text = std::fs::read_to_string(page).unwrap();
            let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0));
            found.extend(blocks.flat_map(|block| block.split("---\n")).map(str::to_owned));
        }
    }
    found
}

/// The first whole object of this kind.
fn example<'a>(shown: &'a [String], kind: &str) -> &'a str {
    let begin = format!("apiVersion: policy.tulle.dev/v1alpha1\nkind: {kind}\n");
    let found = shown.iter().find(|document| document.starts_with(&begin));
    found.unwrap_or_else(|| panic!("no page shows a whole {kind}: its definition needs an example"))
}

#[test]
fn every_definitions_example_is_read_without_a_complaint() {
    let shown = shown();
    for definition in super::definitions() {
        let read = read_text(example(&shown, &definition.spec.names.kind));
        assert_eq!((read.findings, read.changes.len()), (Vec::new(), 1), "{}", definition.spec.names.kind);
    }
}

/// A value in YAML's block style, after its key or dash.
fn write_yaml(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                write!(out, "\n{}{name}:", "  ".repeat(depth)).unwrap();
                write_yaml(out, value, depth + 1);
            }
        }
        Value::Array(values) if !values.is_empty() => {
            for value in values {
                write!(out, "\n{}-", "  ".repeat(depth)).unwrap();
                write_yaml(out, value, depth + 1);
            }
        }
        // JSON's own form is YAML's.
        other => write!(out, " {other}").unwrap(),
    }
}

#[test]
fn the_definitions_in_the_chart_are_those_of_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/tulle/files/crds");
    let mut stale = Vec::new();
    for definition in definitions() {
        let name = definition["spec"]["names"]["plural"].as_str().unwrap();
        let mut text = "# Generated from control-plane/src/kinds.rs; a test compares.".to_owned();
        write_yaml(&mut text, &definition, 0);
        text.push('\n');
        let path = folder.join(format!("{name}.yaml"));
        if std::env::var_os("TULLE_UPDATE_DOCS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        if std::fs::read_to_string(&path).unwrap_or_default() != text {
            stale.push(path);
        }
    }
    assert_eq!(
        stale,
        [""; 0].map(std::path::PathBuf::from),
        "run `TULLE_UPDATE_DOCS=1 cargo test -p tulle-control-plane`"
    );
}

/// A row for each field below `schema`, in the order of their names.
fn write_rows(out: &mut String, schema: &Value, path: &str) {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let items = &field["items"];
        let list = if items.is_object() { "[]" } else { "" };
        let path = format!("{path}{name}{list}");
        let default = match &field["default"] {
            Value::Null if required.contains(&name.as_str()) => "required".to_owned(),
            Value::Null => String::new(),
            // Each of its fields has its own.
            Value::Object(_) => String::new(),
            Value::String(text) if text.is_empty() => "empty".to_owned(),
            Value::String(text) => format!("`{text}`"),
            Value::Number(number) => format!("{}", number.as_f64().unwrap()),
            other => format!("`{}`", other.to_string().replace('"', "").replace(',', ", ")),
        };
        let what = field["description"].as_str().unwrap_or_default().replace("\n", " ");
        writeln!(
            out,
            "| `{path}` | {} | {default} | {what} |",
            values(if list.is_empty() { field } else { items })
        )
        .unwrap();
        write_rows(out, if list.is_empty() { field } else { items }, &format!("{path}."));
    }
}

/// What can stand there, in words.
fn values(schema: &Value) -> String {
    let number = |name: &str| schema[name].as_f64();
    if let Some(all) = schema["enum"].as_array() {
        let all: Vec<String> = all.iter().filter_map(Value::as_str).map(|one| format!("`{one}`")).collect();
        return if all.len() > 8 { "a name, such as `UNAVAILABLE`".to_owned() } else { all.join(", ") };
    }
    match (schema["type"].as_str().unwrap_or_default(), number("minimum"), number("maximum")) {
        ("string", ..) if schema["pattern"].is_string() => "time".to_owned(),
        ("string", ..) => "text".to_owned(),
        ("boolean", ..) => "`true`, `false`".to_owned(),
        ("integer" | "number", Some(least), Some(most)) => format!("{least}–{most}"),
        ("integer" | "number", Some(least), None) => format!("{least} or more"),
        ("object", ..) if schema["properties"].is_object() => "mapping".to_owned(),
        ("object", ..) if schema["additionalProperties"].is_object() => "names and texts".to_owned(),
        ("object", ..) => "`{}`".to_owned(),
        (other, ..) => other.to_owned(),
    }
}

#[test]
fn the_reference_names_every_field() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/policies.md");
    let written = std::fs::read_to_string(&path).unwrap();
    let mut page = written.clone();
    for definition in definitions() {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
        let (begin, end) = (format!("<!-- fields of {kind} -->\n"), format!("<!-- end of {kind} -->\n"));
        let Some((before, rest)) = page.split_once(&begin) else {
            continue;
        };
        let (_, after) = rest.split_once(&end).unwrap();
        let mut table = "\n| field | values | default | meaning |\n| --- | --- | --- | --- |\n".to_owned();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        write_rows(&mut table, schema, "");
        page = format!("{before}{begin}{table}\n{end}{after}");
    }
    if std::env::var_os("TULLE_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    } else {
        assert_eq!(written, page, "run `TULLE_UPDATE_DOCS=1 cargo test -p tulle-control-plane`");
    }
    for kind in [
        "TrafficPolicy",
        "RateLimitPolicy",
        "FaultPolicy",
        "TelemetryPolicy",
        "AuthorizationPolicy",
        "PeerAuthentication",
        "ExternalAuthorization",
    ] {
        assert!(page.contains(&format!("<!-- end of {kind} -->")), "{kind}");
    }
}

#[test]
fn the_documents_examples_are_read_without_a_complaint() {
    let pages = [
        include_str!("../../../docs/reference/policies.md"),
        include_str!("../../../docs/resilience.md"),
        include_str!("../../../docs/authorization.md"),
        include_str!("../../../docs/jwt.md"),
    ];
    let blocks = pages.iter().flat_map(|page| page.split("```yaml\n").skip(1));
    let examples: Vec<&str> = blocks.filter_map(|rest| Some(rest.split_once("```")?.0)).collect();
    assert!(examples.len() > pages.len());
    for example in examples {
        // Where only the spec is shown, its fields tell the kind.
        let kind = match example {
            _ if example.contains("action:") || example.contains("from:") => "AuthorizationPolicy",
            _ if example.contains("mtls:") => "PeerAuthentication",
            _ if example.contains("rate:") => "RateLimitPolicy",
            _ if example.contains("rules:") => "FaultPolicy",
            _ if example.contains("accessLog:") || example.contains("sampling:") => "TelemetryPolicy",
            _ => "TrafficPolicy",
        };
        let text = match example.starts_with("spec:") {
            true => format!(
                "apiVersion: policy.tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: a}}\n{example}"
            ),
            false => example.to_owned(),
        };
        let read = read_text(&text);
        assert_eq!(read.findings, [], "{text}");
        assert!(!read.changes.is_empty(), "{text}");
    }
}

#[test]
fn what_the_schema_bounds_is_refused_beyond_and_taken_at_its_bounds() {
    let mut unseen = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for definition in definitions() {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
        let mut all = Vec::new();
        bounds(&definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "", &mut all);
        unseen.extend(all.iter().map(|(path, ..)| format!("{kind}{path}")));
        for (_, spec) in SPECIMENS.iter().filter(|(of, _)| *of == kind) {
            let mut object = specimen(kind, spec);
            assert!(is_taken(&object), "{kind}: {spec}");
            for (path, least, most) in &all {
                let Some(number) = object.pointer(path).cloned() else {
                    continue;
                };
                seen.insert(format!("{kind}{path}"));
                let is_whole = number.is_i64();
                for (bound, beyond) in [(least, -1.0), (most, 1.0)] {
                    let Some(bound) = *bound else { continue };
                    for (value, expected) in [(bound, true), (bound + beyond, false)] {
                        let whole = is_whole && value.fract() == 0.0;
                        let value = if whole { Value::from(value as i64) } else { Value::from(value) };
                        *object.pointer_mut(path).unwrap() = value.clone();
                        assert_eq!(is_taken(&object), expected, "{kind}{path}: {value}");
                    }
                }
                *object.pointer_mut(path).unwrap() = number;
            }
        }
    }
    assert_eq!(unseen.difference(&seen).collect::<Vec<_>>(), Vec::<&String>::new(), "are in no specimen");
}

fn specimen(kind: &str, spec: &str) -> Value {
    parse_one(&cases::text(kind, spec))
}

/// Whether it is read, by the code that reads folders.
fn is_taken(object: &Value) -> bool {
    let read = read_text(&object.to_string());
    // What is refused may have something in its place.
    let is_refused = read.findings.iter().any(|one| one.message.starts_with("until it is mended"));
    !read.changes.is_empty() && !is_refused
}

/// What an API server refuses in a schema that is to be structural (KEP-1693 and the API reference of `JSONSchemaProps`), at `path`.
fn unstructural(schema: &Value, path: &str, wrong: &mut Vec<String>) {
    const KNOWN: [&str; 26] = [
        "additionalProperties",
        "default",
        "description",
        "enum",
        "example",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "nullable",
        "pattern",
        "properties",
        "required",
        "title",
        "type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-validations",
    ];
    let fields = schema.as_object().unwrap();
    let unknown = fields.keys().filter(|field| !KNOWN.contains(&field.as_str()));
    wrong.extend(unknown.map(|field| format!("{path}: `{field}`")));
    let is_of = |value: &Value| match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64(),
        Some("number") => value.is_number(),
        _ => false,
    };
    if schema["type"].is_null() {
        wrong.push(format!("{path}: no type"));
    }
    let values = schema["enum"]
        .as_array()
        .into_iter()
        .flatten()
        .chain(fields.get("default"))
        .chain(fields.get("example"));
    wrong.extend(
        values
            .filter(|value| !is_of(value) && (!value.is_null() || schema["nullable"] != true))
            .map(|value| format!("{path}: {value} is of another type")),
    );
    let properties = schema["properties"].as_object();
    for name in schema["required"].as_array().into_iter().flatten() {
        if properties.is_none_or(|fields| !fields.contains_key(name.as_str().unwrap())) {
            wrong.push(format!("{path}: {name} is required and is not there"));
        }
    }
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        // A rule whose names are not those of the fields would never hold: what it looks at must be there.
        let text = rule["rule"].as_str().unwrap();
        let named =
            text.split("self.").skip(1).filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric()).next());
        let macros = ["all", "exists", "size"];
        // Of an object as a whole, rules may look at the name.
        let is_whole = !path.contains('.');
        let missing = named.filter(|name| {
            !(macros.contains(name) || is_whole && *name == "metadata")
                && properties.is_none_or(|fields| !fields.contains_key(*name))
        });
        wrong.extend(missing.map(|name| format!("{path}: a rule is about `{name}`")));
        assert!(rule["message"].as_str().is_some_and(|message| !message.is_empty()), "{path}: {rule}");
    }
    for (name, field) in properties.into_iter().flatten() {
        unstructural(field, &format!("{path}.{name}"), wrong);
    }
    if schema["additionalProperties"].is_object() {
        unstructural(&schema["additionalProperties"], &format!("{path}.*"), wrong);
        if properties.is_some() {
            wrong.push(format!("{path}: has names of its own, and any name"));
        }
    }
    match (schema["type"].as_str(), &schema["items"]) {
        (Some("array"), Value::Object(_)) => unstructural(&schema["items"], &format!("{path}[]"), wrong),
        (Some("array"), _) | (_, Value::Object(_)) => {
            wrong.push(format!("{path}: a list has `items`, and nothing else has"))
        }
        _ => {}
    }
}

#[test]
fn an_api_server_would_take_the_definitions() {
    let mut wrong = Vec::new();
    for definition in definitions() {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
        let version = &definition["spec"]["versions"][0];
        let schema = &version["schema"]["openAPIV3Schema"];
        assert_eq!(schema["required"], serde_json::json!(["spec"]), "{kind}");
        unstructural(schema, kind, &mut wrong);
        // GEP-713, "Classes of metaresources": on several kinds, on their sections, or adding up, is inherited.
        let label = &definition["metadata"]["labels"]["gateway.networking.k8s.io/policy"];
        if kind == "Mesh" {
            assert_eq!((label, &version["subresources"]), (&Value::Null, &Value::Null));
            continue;
        }
        assert_eq!(label, "Inherited", "{kind}");
        assert_eq!(version["subresources"], serde_json::json!({ "status": {} }), "{kind}");
        let ancestor = &schema["properties"]["status"]["properties"]["ancestors"]["items"];
        assert_eq!(ancestor["required"], serde_json::json!(["ancestorRef", "conditions", "controllerName"]));
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn the_status_that_an_api_server_has_is_nobodys_business_in_a_folder() {
    for status in ["{ancestors: []}", "{conditions: nonsense}", "[]", "null"] {
        let text = format!(
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: a}}\nspec: {{targetRefs: [{{kind: Service, name: a}}], retry: {{}}}}\nstatus: {status}\n"
        );
        let read = read_text(&text);
        assert_eq!((read.findings, read.changes.len()), (Vec::new(), 1), "{status}");
    }
}
