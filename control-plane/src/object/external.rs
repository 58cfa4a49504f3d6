//! ExternalAuthorization: who else is asked about requests.
//!
//! Read straight into what a proxy is told, but for where it speaks and whether its Service may be asked, which `model::external` decides.

use std::collections::BTreeSet;
use std::time::Duration;

use tulle_api::{is_protected_header, v1};

use super::route::{check_header_value, check_name, read_duration};
use super::{NamespacedName, is_label};
use crate::finding::Notes;
use crate::kinds::{self, AuthorizerRef, FailureMode, PolicyMode};

/// How many headers a list may name.
const MAX_NAMES: usize = 64;
/// How many headers may tell questions apart.
const MAX_CACHE: usize = 16;
/// How many things may be told with each question.
const MAX_CONTEXT: usize = 32;
/// How much of a body may be told, in bytes.
const MAX_BODY: i32 = 1_048_576;
/// How long an answer may take.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// What an ExternalAuthorization says.
#[derive(Debug, Clone, PartialEq)]
pub struct External {
    /// Without ports, routes, and what may be wrong with the Service.
    pub wire: v1::ExternalAuthorization,
    /// Who is asked; none in place of a policy that cannot be read.
    pub service: Option<NamespacedName>,
    /// Which of its ports.
    pub port: u16,
}

// === impl External ===

impl External {
    pub(super) fn read(
        policy: &NamespacedName,
        spec: &kinds::ExternalAuthorizationSpec,
        notes: &mut Notes,
    ) -> Self {
        let (service, port) = read_service(policy, &spec.service, notes);
        let timeout = spec.timeout.as_ref().and_then(|text| read_time("spec.timeout", &text.0, notes));
        if timeout.is_some_and(|timeout| timeout > MAX_TIMEOUT) {
            notes.refuse("spec.timeout", "a request would be held for too long", "1m at most");
        }
        let cache = spec.cache.as_ref();
        let (body_bytes, partial_body) = match &spec.body {
            None => (0, false),
            Some(body) => (read_body(body.max_bytes, notes), body.partial),
        };
        let wire = v1::ExternalAuthorization {
            name: policy.to_string(),
            service: Some(v1::ObjectName {
                namespace: service.namespace.to_string(),
                name: service.name.to_string(),
            }),
            service_port: port.into(),
            timeout: timeout.and_then(|timeout| timeout.try_into().ok()),
            failure_allows: spec.failure_mode == FailureMode::Allow,
            headers: read_matches("spec.headers", &spec.headers, notes),
            body_bytes,
            partial_body,
            context: read_context(spec, notes),
            cache: cache
                .and_then(|cache| read_time("spec.cache.for", &cache.holds.0, notes))
                .and_then(|holds| holds.try_into().ok()),
            cache_headers: cache
                .map(|cache| read_names(MAX_CACHE, "spec.cache.headers", &cache.headers, notes))
                .unwrap_or_default(),
            dry_run: spec.mode == PolicyMode::DryRun,
            allowed_headers: read_allowed(&spec.allowed_headers, notes),
            ..v1::ExternalAuthorization::default()
        };
        if wire.cache.is_some() && wire.cache_headers.is_empty() {
            notes.warn(
                "spec.cache.headers",
                "an answer holds for all requests of a client to the same path, whatever headers but `authorization` and `cookie` say",
                "name all the headers by which the authorizer decides",
            );
        }
        Self { wire, service: Some(service), port }
    }

    /// What holds in place of a policy that cannot be read: nobody can be asked. None where that would refuse nothing.
    pub(crate) fn closed(policy: &NamespacedName, mode: Option<&str>, failure: Option<&str>) -> Option<Self> {
        if mode == Some("DryRun") || failure == Some("Allow") {
            return None;
        }
        let wire = v1::ExternalAuthorization {
            name: policy.to_string(),
            invalid: "the policy cannot be read".to_owned(),
            ..v1::ExternalAuthorization::default()
        };
        Some(Self { wire, service: None, port: 0 })
    }
}

fn read_service(
    policy: &NamespacedName,
    written: &AuthorizerRef,
    notes: &mut Notes,
) -> (NamespacedName, u16) {
    let namespace = written.namespace.as_deref().unwrap_or(&policy.namespace);
    for (field, text) in [("name", written.name.as_str()), ("namespace", namespace)] {
        if !is_label(text) {
            let message = format!("`{text}` cannot be a {field} here");
            notes.refuse(format!("spec.service.{field}"), message, "lower case letters, digits and `-`");
        }
    }
    let port = super::port(written.port, "spec.service.port".to_owned(), notes);
    (NamespacedName::new(namespace, written.name.as_str()), port)
}

fn read_time(field: &str, text: &str, notes: &mut Notes) -> Option<Duration> {
    let read = read_duration(field, text, notes)?;
    if read.is_zero() {
        notes.refuse(field, format!("`{text}` is too short"), "more than 0s");
    }
    Some(read)
}

fn read_body(bytes: i32, notes: &mut Notes) -> u32 {
    if !(1..=MAX_BODY).contains(&bytes) {
        let message = format!("{bytes} is out of bounds");
        notes.refuse("spec.body.maxBytes", message, &format!("1 to {MAX_BODY}"));
    }
    u32::try_from(bytes).unwrap_or_default()
}

fn read_context(spec: &kinds::ExternalAuthorizationSpec, notes: &mut Notes) -> Vec<v1::Header> {
    at_most(MAX_CONTEXT, spec.context.len(), "spec.context", notes);
    for (name, value) in &spec.context {
        if name.is_empty() {
            notes.refuse("spec.context", "a name is empty", "give it one");
        }
        if !value.is_empty() {
            check_header_value(format!("spec.context[\"{name}\"]"), value, notes);
        }
    }
    let context = spec.context.iter();
    context.map(|(name, value)| v1::Header { name: name.clone(), value: value.clone() }).collect()
}

/// In lower case, each once.
fn read_names(max: usize, field: &str, names: &[String], notes: &mut Notes) -> Vec<String> {
    at_most(max, names.len(), field, notes);
    let mut seen = BTreeSet::new();
    for (index, name) in names.iter().enumerate() {
        if check_name(format!("{field}[{index}]"), name, notes) {
            seen.insert(name.to_ascii_lowercase());
        }
    }
    seen.into_iter().collect()
}

fn read_allowed(names: &[String], notes: &mut Notes) -> Vec<String> {
    let field = "spec.allowedHeaders";
    let read = read_names(MAX_NAMES, field, names, notes);
    for (index, name) in names.iter().enumerate().filter(|(_, name)| is_protected_header(name)) {
        notes.refuse(
            format!("{field}[{index}]"),
            format!("`{name}` frames the message, belongs to the connection or is the mesh's own: nobody may change it"),
            "remove it",
        );
    }
    read
}

/// With `*` at one end.
fn read_matches(field: &str, texts: &[String], notes: &mut Notes) -> Vec<v1::TextMatch> {
    use v1::text_match::Match;

    at_most(MAX_NAMES, texts.len(), field, notes);
    let mut read = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let text = text.to_ascii_lowercase();
        let one = match (text.strip_suffix('*'), text.strip_prefix('*')) {
            (Some(start), _) => Match::Prefix(start.to_owned()),
            (None, Some(end)) => Match::Suffix(end.to_owned()),
            (None, None) => Match::Exact(text.clone()),
        };
        let (Match::Exact(part) | Match::Prefix(part) | Match::Suffix(part)) = &one;
        // `*` alone is every header.
        let is_all = matches!(&one, Match::Prefix(start) if start.is_empty());
        if part.contains('*') {
            notes.refuse(
                format!("{field}[{index}]"),
                format!("`{text}` has more than one `*`, or has it in its middle"),
                "`*` at the beginning or the end",
            );
        } else if is_all || check_name(format!("{field}[{index}]"), part, notes) {
            read.push(v1::TextMatch { r#match: Some(one) });
        }
    }
    read
}

fn at_most(max: usize, length: usize, field: &str, notes: &mut Notes) {
    if length > max {
        let message = format!("{length} entries: more than the {max} that are allowed");
        notes.refuse(field, message, "leave some out");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (External, Vec<String>) {
        let spec = serde_json::from_value(crate::source::parse_one(text)).unwrap();
        let mut notes = Notes::default();
        let read = External::read(&NamespacedName::new("shop", "opa"), &spec, &mut notes);
        let told = notes.into_inner().into_iter().map(|note| format!("{}: {}", note.field, note.message));
        (read, told.collect())
    }

    #[test]
    fn a_policy_is_read_as_a_whole_and_with_its_defaults() {
        let (read, told) = read("service: {name: opa, port: 9191}");
        assert_eq!(told, [""; 0]);
        assert_eq!((read.service, read.port), (Some(NamespacedName::new("shop", "opa")), 9191));
        let expected = v1::ExternalAuthorization {
            name: "shop/opa".to_owned(),
            service: Some(v1::ObjectName { namespace: "shop".to_owned(), name: "opa".to_owned() }),
            service_port: 9191,
            ..v1::ExternalAuthorization::default()
        };
        assert_eq!(read.wire, expected);
    }

    #[test]
    fn what_is_written_is_what_a_proxy_is_told() {
        let text = "{service: {name: opa, namespace: auth, port: 9191}, mode: DryRun, timeout: 300ms, failureMode: Allow, \
             headers: [Authorization, x-*, '*-id', '*'], body: {maxBytes: 8192, partial: true}, context: {tier: gold}, \
             cache: {for: 30s, headers: [Cookie]}, allowedHeaders: [Cookie]}";
        let (read, told) = read(text);
        assert_eq!(told, [""; 0]);
        let wire = read.wire;
        assert_eq!(read.service, Some(NamespacedName::new("auth", "opa")));
        assert!(wire.dry_run && wire.failure_allows && wire.partial_body && wire.body_bytes == 8192);
        assert_eq!(wire.timeout, Some(prost_types::Duration { seconds: 0, nanos: 300_000_000 }));
        assert_eq!(wire.cache, Some(prost_types::Duration { seconds: 30, nanos: 0 }));
        assert_eq!(
            (wire.cache_headers, wire.allowed_headers),
            (vec!["cookie".to_owned()], vec!["cookie".to_owned()])
        );
        assert_eq!(wire.context, [v1::Header { name: "tier".to_owned(), value: "gold".to_owned() }]);
        let shown: Vec<String> =
            wire.headers.iter().map(|one| format!("{:?}", one.r#match.as_ref().unwrap())).collect();
        assert_eq!(shown, ["Exact(\"authorization\")", "Prefix(\"x-\")", "Suffix(\"-id\")", "Prefix(\"\")"]);
    }

    #[test]
    fn what_makes_no_policy_is_refused_where_it_stands() {
        for (text, field) in [
            ("service: {name: A, port: 1}", "spec.service.name"),
            ("service: {name: a, namespace: b_c, port: 1}", "spec.service.namespace"),
            ("service: {name: a, port: 0}", "spec.service.port"),
            ("{service: {name: a, port: 1}, timeout: 0s}", "spec.timeout"),
            ("{service: {name: a, port: 1}, timeout: 2m}", "spec.timeout"),
            ("{service: {name: a, port: 1}, timeout: soon}", "spec.timeout"),
            ("{service: {name: a, port: 1}, headers: ['x*y']}", "spec.headers[0]"),
            ("{service: {name: a, port: 1}, headers: ['a b']}", "spec.headers[0]"),
            ("{service: {name: a, port: 1}, body: {maxBytes: 0}}", "spec.body.maxBytes"),
            ("{service: {name: a, port: 1}, body: {maxBytes: 1048577}}", "spec.body.maxBytes"),
            ("{service: {name: a, port: 1}, cache: {for: 0s, headers: [a]}}", "spec.cache.for"),
            ("{service: {name: a, port: 1}, cache: {for: 1s, headers: ['']}}", "spec.cache.headers[0]"),
            ("{service: {name: a, port: 1}, cache: {for: 1s}}", "spec.cache.headers"),
            ("{service: {name: a, port: 1}, allowedHeaders: [a, Host]}", "spec.allowedHeaders[1]"),
            ("{service: {name: a, port: 1}, allowedHeaders: [x-tulle-a]}", "spec.allowedHeaders[0]"),
        ] {
            let (_, told) = read(text);
            assert!(told.iter().any(|told| told.starts_with(&format!("{field}: "))), "{text}: {told:?}");
        }
    }

    #[test]
    fn what_stands_for_one_that_cannot_be_read_refuses_unless_it_never_would_have() {
        let name = NamespacedName::new("shop", "opa");
        assert!(
            External::closed(&name, Some("Enforce"), Some("Deny"))
                .is_some_and(|one| !one.wire.invalid.is_empty())
        );
        assert!(External::closed(&name, None, None).is_some(), "what it says of these cannot be read either");
        assert_eq!(External::closed(&name, Some("DryRun"), Some("Deny")), None);
        assert_eq!(External::closed(&name, Some("Enforce"), Some("Allow")), None);
    }
}
