//! JSON values as YAML, as people write manifests.

use serde_json::Value;

/// What comes first in an object of Kubernetes'; the rest follows by name.
const FIRST: [&str; 5] = ["apiVersion", "kind", "metadata", "name", "image"];

/// A document, ending in a line break.
pub(super) fn yaml(value: &Value) -> String {
    let mut lines = Vec::new();
    match value {
        Value::Object(object) if !object.is_empty() => entries(value, 0, &mut lines),
        Value::Array(items) if !items.is_empty() => entries(value, 0, &mut lines),
        _ => lines.push(scalar(value)),
    }
    lines.join("\n") + "\n"
}

/// `key: value`, indented.
pub(super) fn entry(key: &str, value: &Value, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    pair(key, value, indent, &mut lines);
    lines
}

/// `- value`, indented.
pub(super) fn item(value: &Value, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    listed(value, indent, &mut lines);
    lines
}

/// The lines of an object or a list that is not empty.
fn entries(value: &Value, indent: usize, lines: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            let mut keys: Vec<&String> = object.keys().collect();
            let rank = |key: &str| FIRST.iter().position(|first| *first == key).unwrap_or(FIRST.len());
            keys.sort_by_key(|key| (rank(key), (*key).clone()));
            for key in keys {
                pair(key, &object[key], indent, lines);
            }
        }
        Value::Array(items) => items.iter().for_each(|value| listed(value, indent, lines)),
        _ => lines.push(format!("{:indent$}{}", "", scalar(value))),
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(object) => !object.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

fn pair(key: &str, value: &Value, indent: usize, lines: &mut Vec<String>) {
    let key = text(key);
    if is_block(value) {
        lines.push(format!("{:indent$}{key}:", ""));
        let deeper = if value.is_array() { indent } else { indent + 2 };
        entries(value, deeper, lines);
    } else {
        lines.push(format!("{:indent$}{key}: {}", "", scalar(value)));
    }
}

fn listed(value: &Value, indent: usize, lines: &mut Vec<String>) {
    if is_block(value) {
        let at = lines.len();
        entries(value, indent + 2, lines);
        if let Some(first) = lines.get_mut(at) {
            first.replace_range(indent..=indent, "-");
        }
    } else {
        lines.push(format!("{:indent$}- {}", "", scalar(value)));
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(said) => text(said),
        Value::Object(_) => "{}".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        other => other.to_string(),
    }
}

/// Plain where no reader of YAML 1.1 or 1.2 could take it for something else.
fn text(said: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/ $()@+~".contains(&b);
    let first = said.as_bytes().first().is_some_and(|b| b.is_ascii_alphabetic() || b"/.$(".contains(b));
    let last = said.as_bytes().last().is_some_and(|b| *b != b' ');
    let words = ["true", "false", "yes", "no", "on", "off", "null", "y", "n", ".nan", ".inf"];
    let is_word = words.contains(&said.to_ascii_lowercase().as_str());
    let is_number = said.parse::<f64>().is_ok();
    if first && last && !is_word && !is_number && said.bytes().all(plain) {
        return said.to_owned();
    }
    if !said.contains(['\'', '\\'])
        && said.chars().all(|c| !c.is_control() && c != '\u{feff}')
        && !said.is_empty()
    {
        return format!("'{said}'");
    }
    Value::String(said.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::source::parse_one;

    #[test]
    fn what_is_written_is_read_as_the_same() {
        let value = json!({
            "a": ["x", "1", "1.5", "0x1f", "yes", "Off", "null", "~", "", " a", "a ", "- a", "a: b", "a#b", "a #b", "{}", "[x]", "*a",
                  "&a", "!a", "%a", "`a", "'a'", "\"a\"", "a\nb\n", "ü", "\u{7}", "a\\b", "$(A)/$(B)", "12e3", "0o17", "2026-01-01", "="],
            "b": {"c": {}, "d": [], "e": null, "f": true, "g": -1, "h": 1.5, "yes": 1, "a/b": 2, "1": 3},
            "l": [[1, [2]], {"x": [{"y": 1, "name": 2}]}, []],
        });
        let written = yaml(&value);
        assert_eq!(parse_one(&written), value, "{written}");
        for scalar in [json!({}), json!([]), json!("a"), json!([1])] {
            assert_eq!(parse_one(&yaml(&scalar)), scalar);
        }
    }
}
