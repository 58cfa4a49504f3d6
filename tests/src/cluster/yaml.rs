//! YAML as the API server is given it: JSON values.

use serde_json::Value;

/// The documents of a text, without empty ones.
///
/// # Panics
/// If it is no YAML.
pub fn documents(text: &str) -> Vec<Value> {
    let read: Vec<Value> =
        serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
    read.into_iter().filter(|document| !document.is_null()).collect()
}
