//! The rules of routes: what they match, where they send it, and what they do with it.
//!
//! A rule that cannot be decoded is [`Invalid`], and its requests are refused. What cannot be read of a match describes every
//! request then: a request that the rule may have been meant for must not go where another rule leads.

use std::collections::HashSet;
use std::sync::Arc;

use http::{HeaderName, Method};
use tulle_api::{PATTERNS, v1};

use super::filter::{Of, filters};
use super::requests::requests;
use super::session;
use super::{Fault, Result, each, fault, object, port};
use crate::route::{
    Backend, Conditions, HeaderMatch, Invalid, PathMatch, Pattern, QueryMatch, RequestMatch, RouteKind,
    RouteRule, Rule, ValueMatch,
};
use crate::state::ObjectName;

const MAX_WEIGHT: u32 = 1_000_000;
/// How the path of a gRPC method begins that may be any service's.
const ANY_SERVICE: &str = "/[^/]+/";
/// Describes every path.
const ANY_PATH: &str = "(?s:.*)";

/// The different regular expressions of a service's routes.
#[derive(Default)]
pub(super) struct Patterns(HashSet<Box<str>>);

/// Reads matches, and keeps the first thing that cannot be read.
struct Matches<'a> {
    patterns: &'a mut Patterns,
    kind: RouteKind,
    fault: Option<Fault>,
}

/// The rules of one route.
pub(super) fn rules(
    rules: Vec<v1::HttpRule>,
    kind: i32,
    route: &ObjectName,
    patterns: &mut Patterns,
    at: &str,
) -> Vec<RouteRule> {
    let (known, unknown) = match v1::RouteKind::try_from(kind) {
        Ok(v1::RouteKind::Http) => (RouteKind::Http, None),
        Ok(v1::RouteKind::Grpc) => (RouteKind::Grpc, None),
        Err(_) => (RouteKind::Http, Some(fault(format!("{at}.kind"), format!("{kind} is not known")))),
    };
    let rules = rules.into_iter().enumerate().map(|(i, message)| {
        let mut matches = Matches { patterns, kind: known, fault: unknown.clone() };
        rule(message, &mut matches, route, &format!("{at}.rules[{i}]"))
    });
    rules.collect()
}

fn rule(message: v1::HttpRule, matches: &mut Matches<'_>, route: &ObjectName, at: &str) -> RouteRule {
    let read = message.matches.into_iter().enumerate();
    let read: Vec<_> = read.map(|(i, one)| matches.one(one, &format!("{at}.matches[{i}]"))).collect();
    let rule = Rule {
        name: message.name.into(),
        route: route.clone(),
        label: route.to_string().into(),
        kind: matches.kind,
        invalid: (!message.invalid.is_empty()).then(|| Invalid::Said(message.invalid.into())),
        filters: None,
        backends: Box::default(),
        requests: None,
        session: None,
    };
    let rule = match matches.fault.take() {
        None if rule.invalid.is_some() => Ok(rule),
        None => {
            let by_prefix = read.iter().all(|one| matches!(one.path, PathMatch::Prefix(_)));
            let of = Of::Rule { by_prefix, has_backends: !message.backends.is_empty() };
            let done = || -> Result<Rule> {
                let backends = backends(message.backends, at)?;
                let session = message.session_persistence;
                let session = session.map(|one| session::session(one, &backends, at)).transpose()?;
                Ok(Rule {
                    filters: filters(message.filters, of, at)?,
                    backends,
                    session: session.map(Box::new),
                    requests: requests(message.requests, matches.patterns, &format!("{at}.requests"))?,
                    ..rule.clone()
                })
            };
            done().map_err(|fault| (rule.clone(), fault))
        }
        Some(fault) => Err((rule, fault)),
    };
    let rule = rule.unwrap_or_else(|(rule, Fault { field, reason })| {
        let undecoded = Invalid::Undecoded { field: field.into(), reason: reason.into() };
        Rule { invalid: Some(undecoded), ..rule }
    });
    RouteRule { matches: read, rule: Arc::new(rule) }
}

/// Requests that are described for themselves, at `at`, and not for a rule: here what cannot be read is rejected.
pub(super) fn matches(
    messages: Vec<v1::HttpMatch>,
    patterns: &mut Patterns,
    at: &str,
) -> Result<Vec<RequestMatch>> {
    let mut matches = Matches { patterns, kind: RouteKind::Http, fault: None };
    let read = messages.into_iter().enumerate();
    let read: Vec<_> = read.map(|(i, one)| matches.one(one, &format!("{at}[{i}]"))).collect();
    matches.fault.map_or(Ok(read), Err)
}

/// Backends by weight, of what is at `at`.
pub(super) fn backends(backends: Vec<v1::WeightedBackend>, at: &str) -> Result<Box<[Backend]>> {
    Ok(each(backends, &format!("{at}.backends"), backend)?.into())
}

impl Matches<'_> {
    /// The value, or why there is none.
    fn or_told<T>(&mut self, read: Result<T>) -> Option<T> {
        read.map_err(|fault| self.fault.get_or_insert(fault)).ok()
    }

    fn one(&mut self, one: v1::HttpMatch, at: &str) -> RequestMatch {
        let path = self.path(one.path, at);
        let path = match self.or_told(path) {
            Some(path) => path,
            // It compiles; were there no such pattern, `/` would describe as much, after other rules.
            None => Pattern::new(ANY_PATH).map_or_else(|_| PathMatch::Prefix("/".into()), PathMatch::Pattern),
        };
        let method = match &*one.method {
            "" => None,
            method => {
                let read = Method::from_bytes(method.as_bytes())
                    .map_err(|_| fault(format!("{at}.method"), format!("{method:?} is not a method")));
                self.or_told(read)
            }
        };
        let mut headers: Vec<HeaderMatch> = Vec::new();
        for (i, header) in one.headers.into_iter().enumerate() {
            let at = format!("{at}.headers[{i}]");
            let read = header_name(&header.name, &format!("{at}.name"))
                .and_then(|name| once(headers.iter().all(|known| known.name != name), &at).map(|()| name))
                .and_then(|name| Ok(HeaderMatch { name, value: value(self.patterns, header.value, &at)? }));
            headers.extend(self.or_told(read));
        }
        let mut query: Vec<QueryMatch> = Vec::new();
        for (i, parameter) in one.query.into_iter().enumerate() {
            let at = format!("{at}.query[{i}]");
            let name: Box<str> = parameter.name.into();
            let named = match name.is_empty() {
                true => Err(fault(format!("{at}.name"), "is missing")),
                false => once(query.iter().all(|known| known.name != name), &at),
            };
            let read = named
                .and_then(|()| value(self.patterns, parameter.value, &at))
                .map(|value| QueryMatch { name, value });
            query.extend(self.or_told(read));
        }
        let when = Conditions { method, headers, query };
        RequestMatch { path, when: (!when.is_empty()).then(|| Arc::new(when)) }
    }

    fn path(&mut self, path: Option<v1::http_match::Path>, at: &str) -> Result<PathMatch> {
        use v1::http_match::Path;
        let slash = |path: String, field: &str| match path.starts_with('/') {
            true => Ok(path.into_boxed_str()),
            false => Err(fault(format!("{at}.{field}"), format!("{path:?} does not begin with a slash"))),
        };
        Ok(match path.ok_or_else(|| fault(format!("{at}.path"), "is missing"))? {
            Path::Exact(path) => PathMatch::Exact(slash(path, "exact")?),
            Path::Prefix(path) => PathMatch::Prefix(slash(path, "prefix")?),
            Path::Regex(text) => {
                let pattern = self.patterns.pattern(&text, &format!("{at}.regex"))?;
                let is_method = self.kind == RouteKind::Grpc && text.starts_with(ANY_SERVICE);
                if is_method { PathMatch::Method(pattern) } else { PathMatch::Pattern(pattern) }
            }
        })
    }
}

/// What a value must be, of what is at `at`.
pub(super) fn value(
    patterns: &mut Patterns,
    value: Option<v1::value_match::Value>,
    at: &str,
) -> Result<ValueMatch> {
    use v1::value_match::Value;
    match value {
        Some(Value::Exact(value)) => Ok(ValueMatch::Exact(value.into_bytes().into())),
        Some(Value::Regex(text)) => patterns.pattern(&text, &format!("{at}.regex")).map(ValueMatch::Pattern),
        None => Err(fault(format!("{at}.value"), "is missing")),
    }
}

impl Patterns {
    fn pattern(&mut self, text: &str, at: &str) -> Result<Pattern> {
        if !self.0.contains(text) && self.0.len() >= PATTERNS {
            let why = format!("is another regular expression than the {PATTERNS} that a service may have");
            return Err(fault(at, why));
        }
        let pattern = Pattern::new(text).map_err(|error| fault(at, error.to_string()))?;
        self.0.insert(text.into());
        Ok(pattern)
    }
}

/// Refuses names that come again: which of the two counts would be a guess.
fn once(is_new: bool, at: &str) -> Result<()> {
    if is_new { Ok(()) } else { Err(fault(format!("{at}.name"), "is there twice")) }
}

pub(super) fn header_name(text: &str, at: &str) -> Result<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes());
    name.map_err(|_| fault(at, format!("{text:?} is not a header's name")))
}

fn backend(backend: v1::WeightedBackend, at: &str) -> Result<Backend> {
    let invalid = (!backend.invalid.is_empty()).then(|| Arc::from(backend.invalid.as_str()));
    let port = match (&invalid, backend.port) {
        // What does not resolve need not have a port.
        (Some(_), 0) => 0,
        _ => port(backend.port, &format!("{at}.port"))?,
    };
    if backend.weight > MAX_WEIGHT {
        return Err(fault(format!("{at}.weight"), format!("{} is above {MAX_WEIGHT}", backend.weight)));
    }
    let service = object(backend.service, &format!("{at}.service"))?;
    let label = format!("{service}:{port}").into();
    let filters = filters(backend.filters, Of::Backend, at)?;
    Ok(Backend { service, port, label, weight: backend.weight, invalid, filters })
}
