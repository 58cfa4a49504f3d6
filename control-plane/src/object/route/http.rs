//! HTTPRoute, as written.

use std::time::Duration;

use gateway_api::experimental::httproutes::{
    HttpRoute, HttpRouteRules, HttpRouteRulesBackendRefsFilters,
    HttpRouteRulesBackendRefsFiltersRequestRedirectPathType,
    HttpRouteRulesBackendRefsFiltersRequestRedirectScheme, HttpRouteRulesBackendRefsFiltersType,
    HttpRouteRulesBackendRefsFiltersUrlRewritePathType, HttpRouteRulesFilters,
    HttpRouteRulesFiltersRequestRedirectPathType, HttpRouteRulesFiltersRequestRedirectScheme,
    HttpRouteRulesFiltersType, HttpRouteRulesFiltersUrlRewritePathType, HttpRouteRulesMatches,
    HttpRouteRulesMatchesHeadersType, HttpRouteRulesMatchesMethod as Method,
    HttpRouteRulesMatchesPathType as PathType, HttpRouteRulesMatchesQueryParamsType,
    HttpRouteRulesSessionPersistenceCookieConfigLifetimeType as LifetimeType,
    HttpRouteRulesSessionPersistenceType as SessionType, HttpRouteRulesTimeouts,
};

use super::cors::written_cors;
use super::filters::{
    self, FilterType, Written, WrittenPath, WrittenRedirect, written_headers, written_mirror,
};
use super::matches::{self, Match, Part, PathMatch, WrittenValue};
use super::retry::Retry;
use super::session::{self, written_session};
use super::{
    Fault, MAX_LIST, Route, RouteKind, Rule, WrittenBackend, WrittenParent, at_most, check_hostnames,
    check_rule_names, created, read_backends, read_parents, written_backends, written_parents,
};
use crate::finding::Notes;
use crate::object::NamespacedName;

impl Route {
    pub(in super::super) fn read_http(object: &HttpRoute, notes: &mut Notes) -> Self {
        let name = NamespacedName::of(&object.metadata);
        let spec = &object.spec;
        let parents = read_parents(&name, written_parents!(spec.parent_refs), notes);
        check_hostnames(spec.hostnames.as_deref(), &parents, notes);
        // The API's own default: one rule for everything, without a backend.
        let default = [HttpRouteRules::default()];
        let rules = spec.rules.as_deref().unwrap_or(&default);
        at_most(MAX_LIST, rules.len(), "spec.rules", notes);
        check_rule_names(rules.iter().map(|rule| rule.name.as_deref()), notes);
        matches::check_count(rules.iter().map(|rule| rule.matches.as_ref().map_or(1, Vec::len)), notes);
        let rules = rules.iter().enumerate();
        let rules: Vec<Rule> = rules.map(|(index, rule)| read_rule(&name, index, rule, notes)).collect();
        session::check_names(
            rules.iter().filter_map(|rule| Some((rule.index, rule.session.as_ref()?))),
            notes,
        );
        Self {
            kind: RouteKind::Http,
            created: created(&object.metadata),
            generation: object.metadata.generation,
            parents,
            server_names: Vec::new(),
            rules,
            name,
        }
    }
}

fn read_rule(route: &NamespacedName, index: usize, rule: &HttpRouteRules, notes: &mut Notes) -> Rule {
    let at = format!("spec.rules[{index}]");
    let mut fault = None;
    let matches = read_matches(&at, rule.matches.as_deref().unwrap_or_default(), &mut fault, notes);
    let written: Vec<Written<'_>> = rule.filters.iter().flatten().map(Written::from).collect();
    let backends = read_backends(route, &at, &matches, written_backends!(rule.backend_refs), notes);
    let filters = filters::read_of_rule(route, &at, &written, &matches, backends.len(), &mut fault, notes);
    let (request_timeout, backend_request_timeout) = read_timeouts(&at, rule.timeouts.as_ref(), notes);
    let retry = rule.retry.as_ref();
    let retry = retry.map(|written| Retry::read(&format!("{at}.retry"), written, request_timeout, notes));
    let name = rule.name.clone().unwrap_or_default();
    let of = session::Of { kind: RouteKind::Http, route, index, name: &name };
    let written = written_session!(rule.session_persistence, SessionType, LifetimeType);
    let session = session::read(&of, written.as_ref(), &mut fault, notes);
    Rule {
        index,
        name,
        matches,
        filters,
        backends,
        request_timeout,
        backend_request_timeout,
        retry,
        session,
        fault,
    }
}

fn read_matches(
    at: &str,
    matches: &[HttpRouteRulesMatches],
    fault: &mut Option<Fault>,
    notes: &mut Notes,
) -> Vec<Match> {
    if matches.is_empty() {
        return vec![Match { path: Some(PathMatch::Prefix("/".to_owned())), ..Match::default() }];
    }
    let mut read = Vec::with_capacity(matches.len());
    for (index, one) in matches.iter().enumerate() {
        let at = format!("{at}.matches[{index}]");
        let path = read_path(&at, one, fault, notes);
        let headers = one.headers.iter().flatten().map(|one| WrittenValue {
            name: &one.name,
            value: &one.value,
            is_regex: one.r#type == Some(HttpRouteRulesMatchesHeadersType::RegularExpression),
        });
        let query = one.query_params.iter().flatten().map(|one| WrittenValue {
            name: &one.name,
            value: &one.value,
            is_regex: one.r#type == Some(HttpRouteRulesMatchesQueryParamsType::RegularExpression),
        });
        read.push(Match {
            path,
            headers: matches::read_values(&format!("{at}.headers"), Part::Header, headers, fault, notes),
            query: matches::read_values(&format!("{at}.queryParams"), Part::Query, query, fault, notes),
            method: one.method.as_ref().map(method),
        });
    }
    read
}

fn read_path(
    at: &str,
    one: &HttpRouteRulesMatches,
    fault: &mut Option<Fault>,
    notes: &mut Notes,
) -> Option<PathMatch> {
    let path = one.path.clone().unwrap_or_default();
    let value = path.value.unwrap_or_else(|| "/".to_owned());
    let field = format!("{at}.path.value");
    match path.r#type {
        Some(PathType::Exact) => {
            matches::check_path(field, &value, notes);
            Some(PathMatch::Exact(value))
        }
        None | Some(PathType::PathPrefix) => {
            matches::check_path(field, &value, notes);
            Some(PathMatch::Prefix(value))
        }
        Some(PathType::RegularExpression) => {
            matches::check_path_regex(field, &value, fault, notes).then_some(PathMatch::Regex(value))
        }
    }
}

fn method(method: &Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
        Method::Connect => "CONNECT",
        Method::Options => "OPTIONS",
        Method::Trace => "TRACE",
        Method::Patch => "PATCH",
    }
}

fn read_timeouts(
    at: &str,
    timeouts: Option<&HttpRouteRulesTimeouts>,
    notes: &mut Notes,
) -> (Option<Duration>, Option<Duration>) {
    let Some(timeouts) = timeouts else {
        return (None, None);
    };
    let mut read =
        |field: &str, text: Option<&String>| read_duration(&format!("{at}.timeouts.{field}"), text?, notes);
    let request = read("request", timeouts.request.as_ref());
    let backend_request = read("backendRequest", timeouts.backend_request.as_ref());
    if let (Some(whole), Some(one)) = (request.filter(|whole| !whole.is_zero()), backend_request)
        && one > whole
    {
        notes.refuse(
            format!("{at}.timeouts.backendRequest"),
            "one try may not last longer than the whole request",
            "make it at most `timeouts.request`",
        );
    }
    (request, backend_request)
}

/// A duration; none, told, where it is none.
pub(in crate::object) fn read_duration(field: &str, text: &str, notes: &mut Notes) -> Option<Duration> {
    match text.parse::<gateway_api::Duration>() {
        Ok(read) => Some(Duration::new(read.as_secs(), read.subsec_nanos())),
        Err(_) => {
            notes.refuse(
                field,
                format!("`{text}` is not a duration"),
                "whole numbers with units, such as `300ms`, `10s` or `1m30s` (GEP-2257)",
            );
            None
        }
    }
}

/// The generated types for rules and for backends differ by name only.
macro_rules! written_filters {
    ($filter:ty, $type:ident, $scheme:ident, $redirect_path:ident, $rewrite_path:ident) => {
        impl<'a> From<&'a $filter> for Written<'a> {
            fn from(one: &'a $filter) -> Self {
                let fields = [
                    (FilterType::RequestHeaderModifier, one.request_header_modifier.is_some()),
                    (FilterType::ResponseHeaderModifier, one.response_header_modifier.is_some()),
                    (FilterType::RequestMirror, one.request_mirror.is_some()),
                    (FilterType::RequestRedirect, one.request_redirect.is_some()),
                    (FilterType::UrlRewrite, one.url_rewrite.is_some()),
                    (FilterType::ExtensionRef, one.extension_ref.is_some()),
                    (FilterType::Cors, one.cors.is_some()),
                    (FilterType::ExternalAuth, one.external_auth.is_some()),
                ];
                Self {
                    filter: match one.r#type {
                        $type::RequestHeaderModifier => FilterType::RequestHeaderModifier,
                        $type::ResponseHeaderModifier => FilterType::ResponseHeaderModifier,
                        $type::RequestMirror => FilterType::RequestMirror,
                        $type::RequestRedirect => FilterType::RequestRedirect,
                        $type::UrlRewrite => FilterType::UrlRewrite,
                        $type::ExtensionRef => FilterType::ExtensionRef,
                        $type::Cors => FilterType::Cors,
                        $type::ExternalAuth => FilterType::ExternalAuth,
                    },
                    fields: fields
                        .into_iter()
                        .filter(|(_, is_there)| *is_there)
                        .map(|(field, _)| field)
                        .collect(),
                    request_headers: written_headers!(one.request_header_modifier),
                    response_headers: written_headers!(one.response_header_modifier),
                    redirect: one.request_redirect.as_ref().map(|one| WrittenRedirect {
                        scheme: one.scheme.as_ref().map(|scheme| match scheme {
                            $scheme::Http => "http",
                            $scheme::Https => "https",
                        }),
                        hostname: one.hostname.as_deref(),
                        path: one.path.as_ref().map(|path| WrittenPath {
                            is_full: path.r#type == $redirect_path::ReplaceFullPath,
                            full: path.replace_full_path.as_deref(),
                            prefix: path.replace_prefix_match.as_deref(),
                        }),
                        port: one.port,
                        status: one.status_code,
                    }),
                    rewrite: one.url_rewrite.as_ref().map(|one| {
                        let path = one.path.as_ref().map(|path| WrittenPath {
                            is_full: path.r#type == $rewrite_path::ReplaceFullPath,
                            full: path.replace_full_path.as_deref(),
                            prefix: path.replace_prefix_match.as_deref(),
                        });
                        (one.hostname.as_deref(), path)
                    }),
                    cors: written_cors!(one.cors),
                    mirror: written_mirror!(one.request_mirror),
                }
            }
        }
    };
}

written_filters!(
    HttpRouteRulesFilters,
    HttpRouteRulesFiltersType,
    HttpRouteRulesFiltersRequestRedirectScheme,
    HttpRouteRulesFiltersRequestRedirectPathType,
    HttpRouteRulesFiltersUrlRewritePathType
);
written_filters!(
    HttpRouteRulesBackendRefsFilters,
    HttpRouteRulesBackendRefsFiltersType,
    HttpRouteRulesBackendRefsFiltersRequestRedirectScheme,
    HttpRouteRulesBackendRefsFiltersRequestRedirectPathType,
    HttpRouteRulesBackendRefsFiltersUrlRewritePathType
);
