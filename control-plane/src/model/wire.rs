//! Parts of routes, as the wire has them.

use tulle_api::v1;

use super::build::object_name;
use crate::object::{
    Cors, Filter, HeaderModifier, Match, PathMatch, PathModifier, Redirect, Retry, Rewrite, Rule,
    SessionPersistence, ValueMatch, ValuePattern,
};

pub(super) fn http_match(one: &Match) -> v1::HttpMatch {
    v1::HttpMatch {
        path: Some(match &one.path {
            None => v1::http_match::Path::Prefix("/".to_owned()),
            Some(PathMatch::Exact(path)) => v1::http_match::Path::Exact(path.clone()),
            Some(PathMatch::Prefix(path)) => v1::http_match::Path::Prefix(path.clone()),
            Some(PathMatch::Regex(path)) => v1::http_match::Path::Regex(path.clone()),
        }),
        headers: one.headers.iter().map(value_match).collect(),
        query: one.query.iter().map(value_match).collect(),
        method: one.method.unwrap_or_default().to_owned(),
    }
}

fn value_match(one: &ValueMatch) -> v1::ValueMatch {
    v1::ValueMatch {
        name: one.name.clone(),
        value: Some(match &one.value {
            ValuePattern::Exact(value) => v1::value_match::Value::Exact(value.clone()),
            ValuePattern::Regex(value) => v1::value_match::Value::Regex(value.clone()),
        }),
    }
}

/// What a rule says of its requests.
pub(super) fn requests(rule: &Rule) -> v1::RequestPolicy {
    v1::RequestPolicy {
        request_timeout: rule.request_timeout.and_then(|d| d.try_into().ok()),
        backend_request_timeout: rule.backend_request_timeout.and_then(|d| d.try_into().ok()),
        retry: rule.retry.as_ref().map(retry),
        ..Default::default()
    }
}

fn retry(one: &Retry) -> v1::Retry {
    v1::Retry {
        codes: one.codes.iter().copied().map(u32::from).collect(),
        attempts: one.attempts,
        backoff: one.backoff.try_into().ok(),
        ..Default::default()
    }
}

pub(super) fn filters<'f>(filters: impl Iterator<Item = &'f Filter>) -> Vec<v1::HttpFilter> {
    use v1::http_filter::Filter as Wire;

    let filters = filters.map(|one| match one {
        Filter::RequestHeaders(one) => Wire::RequestHeaders(header_modifier(one)),
        Filter::ResponseHeaders(one) => Wire::ResponseHeaders(header_modifier(one)),
        Filter::Redirect(one) => Wire::Redirect(redirect(one)),
        Filter::Rewrite(one) => Wire::Rewrite(rewrite(one)),
        Filter::Cors(one) => Wire::Cors(cors(one)),
        Filter::Mirror(one) => Wire::Mirror(v1::Mirror {
            service: Some(object_name(&one.backend.service)),
            port: one.backend.port.into(),
            numerator: one.numerator,
            denominator: one.denominator,
            invalid: String::new(),
        }),
    });
    filters.map(|filter| v1::HttpFilter { filter: Some(filter) }).collect()
}

fn header_modifier(one: &HeaderModifier) -> v1::HeaderModifier {
    let header = |(name, value): &(String, String)| v1::Header { name: name.clone(), value: value.clone() };
    v1::HeaderModifier {
        set: one.set.iter().map(header).collect(),
        add: one.add.iter().map(header).collect(),
        remove: one.remove.clone(),
    }
}

fn redirect(one: &Redirect) -> v1::Redirect {
    v1::Redirect {
        scheme: one.scheme.unwrap_or_default().to_owned(),
        hostname: one.hostname.clone().unwrap_or_default(),
        path: one.path.as_ref().map(path_modifier),
        port: one.port.map(u32::from).unwrap_or_default(),
        status: one.status.into(),
    }
}

fn rewrite(one: &Rewrite) -> v1::Rewrite {
    v1::Rewrite {
        hostname: one.hostname.clone().unwrap_or_default(),
        path: one.path.as_ref().map(path_modifier),
    }
}

fn cors(one: &Cors) -> v1::Cors {
    v1::Cors {
        allow_origins: one.origins.clone(),
        allow_credentials: one.credentials,
        allow_methods: one.methods.clone(),
        allow_headers: one.headers.clone(),
        expose_headers: one.expose.clone(),
        max_age: one.max_age,
    }
}

fn path_modifier(one: &PathModifier) -> v1::PathModifier {
    use v1::path_modifier::Modifier;

    let modifier = match one {
        PathModifier::Full(path) => Modifier::Full(path.clone()),
        PathModifier::Prefix(path) => Modifier::Prefix(path.clone()),
    };
    v1::PathModifier { modifier: Some(modifier) }
}

pub(super) fn session(one: &SessionPersistence) -> v1::SessionPersistence {
    let place = if one.is_header { v1::SessionTokenPlace::Header } else { v1::SessionTokenPlace::Cookie };
    v1::SessionPersistence {
        name: one.name.clone(),
        place: place.into(),
        scope: one.scope.clone(),
        absolute_timeout: one.absolute_timeout.and_then(|d| d.try_into().ok()),
        idle_timeout: one.idle_timeout.and_then(|d| d.try_into().ok()),
        permanent: one.permanent,
    }
}
