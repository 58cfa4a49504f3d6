//! The rules of routes: what they match, where they send it, and what they do with it.

use std::collections::HashSet;
use std::sync::Arc;

use http::{HeaderName, Method};
use tulle_api::v1;

use super::filter::{Of, filters};
use super::{Result, duration, each, fault, object, port};
use crate::route::{
    Backend, Conditions, HeaderMatch, PathMatch, Pattern, QueryMatch, RequestMatch, RouteKind, RouteRule,
    Rule, ValueMatch,
};
use crate::state::ObjectName;

const MAX_WEIGHT: u32 = 1_000_000;
/// How the path of a gRPC method begins that may be any service's.
const ANY_SERVICE: &str = "/[^/]+/";

/// The rules of one route.
pub(super) fn rules(
    rules: Vec<v1::HttpRule>,
    kind: i32,
    route: &ObjectName,
    at: &str,
) -> Result<Vec<RouteRule>> {
    let kind = match v1::RouteKind::try_from(kind) {
        Ok(v1::RouteKind::Http) => RouteKind::Http,
        Ok(v1::RouteKind::Grpc) => RouteKind::Grpc,
        Err(_) => return Err(fault(format!("{at}.kind"), format!("{kind} is not known"))),
    };
    each(rules, &format!("{at}.rules"), |rule, at| self::rule(rule, kind, route, at))
}

fn rule(rule: v1::HttpRule, kind: RouteKind, route: &ObjectName, at: &str) -> Result<RouteRule> {
    let matches = each(rule.matches, &format!("{at}.matches"), |one, at| self::one(one, kind, at))?;
    let by_prefix = matches.iter().all(|one| matches!(one.path, PathMatch::Prefix(_)));
    let of = Of::Rule { by_prefix, has_backends: !rule.backends.is_empty() };
    let rule = Rule {
        name: rule.name.into(),
        route: route.clone(),
        label: route.to_string().into(),
        kind,
        filters: filters(rule.filters, of, at)?,
        backends: each(rule.backends, &format!("{at}.backends"), backend)?.into(),
        request_timeout: duration(rule.request_timeout, &format!("{at}.request_timeout"))?,
        backend_timeout: duration(rule.backend_request_timeout, &format!("{at}.backend_request_timeout"))?,
    };
    Ok(RouteRule { matches, rule: Arc::new(rule) })
}

fn one(one: v1::HttpMatch, kind: RouteKind, at: &str) -> Result<RequestMatch> {
    use v1::http_match::Path;
    let slash = |path: String, field: &str| match path.starts_with('/') {
        true => Ok(path.into_boxed_str()),
        false => Err(fault(format!("{at}.{field}"), format!("{path:?} does not begin with a slash"))),
    };
    let path = match one.path {
        None => PathMatch::Prefix("/".into()),
        Some(Path::Exact(path)) => PathMatch::Exact(slash(path, "exact")?),
        Some(Path::Prefix(path)) => PathMatch::Prefix(slash(path, "prefix")?),
        Some(Path::Regex(text)) => {
            let pattern = pattern(&text, &format!("{at}.regex"))?;
            let is_method = kind == RouteKind::Grpc && text.starts_with(ANY_SERVICE);
            if is_method { PathMatch::Method(pattern) } else { PathMatch::Pattern(pattern) }
        }
    };
    let method = match &*one.method {
        "" => None,
        method => Some(
            Method::from_bytes(method.as_bytes())
                .map_err(|_| fault(format!("{at}.method"), format!("{method:?} is not a method")))?,
        ),
    };
    let headers = each(one.headers, &format!("{at}.headers"), |header, at| {
        let name = header_name(&header.name, &format!("{at}.name"))?;
        Ok(HeaderMatch { name, value: value(header.value, at)? })
    })?;
    once(headers.iter().map(|header| &header.name), &format!("{at}.headers"))?;
    let query = each(one.query, &format!("{at}.query"), |parameter, at| {
        if parameter.name.is_empty() {
            return Err(fault(format!("{at}.name"), "is missing"));
        }
        Ok(QueryMatch { name: parameter.name.into(), value: value(parameter.value, at)? })
    })?;
    once(query.iter().map(|parameter| &parameter.name), &format!("{at}.query"))?;
    let when = Conditions { method, headers, query };
    Ok(RequestMatch { path, when: (!when.is_empty()).then(|| Arc::new(when)) })
}

fn value(value: Option<v1::value_match::Value>, at: &str) -> Result<ValueMatch> {
    use v1::value_match::Value;
    match value {
        Some(Value::Exact(value)) => Ok(ValueMatch::Exact(value.into_bytes().into())),
        Some(Value::Regex(text)) => pattern(&text, &format!("{at}.regex")).map(ValueMatch::Pattern),
        None => Err(fault(format!("{at}.value"), "is missing")),
    }
}

/// Refuses names that come again: which of the two counts would be a guess.
fn once<T: std::hash::Hash + Eq>(names: impl Iterator<Item = T>, at: &str) -> Result<()> {
    let mut seen = HashSet::new();
    match names.enumerate().find_map(|(i, name)| (!seen.insert(name)).then_some(i)) {
        None => Ok(()),
        Some(i) => Err(fault(format!("{at}[{i}].name"), "is there twice")),
    }
}

fn pattern(text: &str, at: &str) -> Result<Pattern> {
    Pattern::new(text).map_err(|error| fault(at, error.to_string()))
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
