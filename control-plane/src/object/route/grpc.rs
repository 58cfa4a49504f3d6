//! GRPCRoute, as written: a method is a path, `/<service>/<method>` (gRPC over HTTP/2).

use gateway_api::experimental::grpcroutes::{
    GrpcRoute, GrpcRouteRules, GrpcRouteRulesBackendRefsFilters, GrpcRouteRulesBackendRefsFiltersType,
    GrpcRouteRulesFilters, GrpcRouteRulesFiltersType, GrpcRouteRulesMatches,
    GrpcRouteRulesMatchesHeadersType, GrpcRouteRulesMatchesMethod, GrpcRouteRulesMatchesMethodType,
    GrpcRouteRulesSessionPersistenceCookieConfigLifetimeType as LifetimeType,
    GrpcRouteRulesSessionPersistenceType as SessionType,
};

use super::filters::{self, FilterType, Written, written_headers, written_mirror};
use super::matches::{self, Match, Part, PathMatch, WrittenValue};
use super::session::{self, written_session};
use super::{
    Fault, MAX_LIST, Route, RouteKind, Rule, WrittenBackend, WrittenParent, at_most, check_hostnames,
    check_rule_names, created, read_backends, read_parents, written_backends, written_parents,
};
use crate::finding::Notes;
use crate::object::NamespacedName;

/// The longest name of a service or a method that the Gateway API allows, in characters.
const MAX_NAME: usize = 1024;

impl Route {
    pub(in super::super) fn read_grpc(object: &GrpcRoute, notes: &mut Notes) -> Self {
        let name = NamespacedName::of(&object.metadata);
        let spec = &object.spec;
        let parents = read_parents(&name, written_parents!(spec.parent_refs), notes);
        check_hostnames(spec.hostnames.as_deref(), &parents, notes);
        let rules = spec.rules.as_deref().unwrap_or_default();
        at_most(MAX_LIST, rules.len(), "spec.rules", notes);
        check_rule_names(rules.iter().map(|rule| rule.name.as_deref()), notes);
        matches::check_count(rules.iter().map(|rule| rule.matches.as_ref().map_or(0, Vec::len)), notes);
        let rules = rules.iter().enumerate();
        let rules: Vec<Rule> = rules.map(|(index, rule)| read_rule(&name, index, rule, notes)).collect();
        session::check_names(
            rules.iter().filter_map(|rule| Some((rule.index, rule.session.as_ref()?))),
            notes,
        );
        Self {
            kind: RouteKind::Grpc,
            created: created(&object.metadata),
            generation: object.metadata.generation,
            parents,
            server_names: Vec::new(),
            rules,
            name,
        }
    }
}

fn read_rule(route: &NamespacedName, index: usize, rule: &GrpcRouteRules, notes: &mut Notes) -> Rule {
    let at = format!("spec.rules[{index}]");
    let mut fault = None;
    let matches = read_matches(&at, rule.matches.as_deref().unwrap_or_default(), &mut fault, notes);
    let written: Vec<Written<'_>> = rule.filters.iter().flatten().map(Written::from).collect();
    let backends = read_backends(route, &at, &matches, written_backends!(rule.backend_refs), notes);
    let filters = filters::read_of_rule(route, &at, &written, &matches, backends.len(), &mut fault, notes);
    let name = rule.name.clone().unwrap_or_default();
    let of = session::Of { kind: RouteKind::Grpc, route, index, name: &name };
    let written = written_session!(rule.session_persistence, SessionType, LifetimeType);
    let session = session::read(&of, written.as_ref(), &mut fault, notes);
    Rule {
        index,
        name,
        matches,
        filters,
        backends,
        request_timeout: None,
        backend_request_timeout: None,
        retry: None,
        session,
        fault,
    }
}

fn read_matches(
    at: &str,
    matches: &[GrpcRouteRulesMatches],
    fault: &mut Option<Fault>,
    notes: &mut Notes,
) -> Vec<Match> {
    if matches.is_empty() {
        return vec![Match::default()];
    }
    let mut read = Vec::with_capacity(matches.len());
    for (index, one) in matches.iter().enumerate() {
        let at = format!("{at}.matches[{index}]");
        let headers = one.headers.iter().flatten().map(|one| WrittenValue {
            name: &one.name,
            value: &one.value,
            is_regex: one.r#type == Some(GrpcRouteRulesMatchesHeadersType::RegularExpression),
        });
        read.push(Match {
            path: one
                .method
                .as_ref()
                .and_then(|method| read_method(&format!("{at}.method"), method, fault, notes)),
            headers: matches::read_values(&format!("{at}.headers"), Part::Header, headers, fault, notes),
            ..Match::default()
        });
    }
    read
}

/// The path of a method; none, told, where the match is not valid.
fn read_method(
    at: &str,
    written: &GrpcRouteRulesMatchesMethod,
    fault: &mut Option<Fault>,
    notes: &mut Notes,
) -> Option<PathMatch> {
    let said = |text: &'_ Option<String>| text.clone().filter(|text| !text.is_empty());
    let (service, method) = (said(&written.service), said(&written.method));
    if service.is_none() && method.is_none() {
        notes.refuse(at, "neither `service` nor `method` is said", "say one of them, or leave `method` out");
        return None;
    }
    let is_regex = written.r#type == Some(GrpcRouteRulesMatchesMethodType::RegularExpression);
    let mut is_valid = true;
    for (field, text) in [("service", &service), ("method", &method)] {
        let Some(text) = text else {
            continue;
        };
        let field = format!("{at}.{field}");
        if text.chars().count() > MAX_NAME {
            notes.refuse(field, format!("longer than {MAX_NAME} characters"), "");
            is_valid = false;
        } else if is_regex {
            is_valid &= matches::check_regex(field, text, fault, notes);
        } else if !is_name(text, field.ends_with(".service")) {
            let message = format!("`{text}` cannot be a name in gRPC");
            let hint = "letters, digits and `_`, and in a service's name dots; or `type: RegularExpression`";
            notes.refuse(field, message, hint);
            is_valid = false;
        }
    }
    if !is_valid {
        return None;
    }
    let path = match (is_regex, service, method) {
        (false, Some(service), Some(method)) => PathMatch::Exact(format!("/{service}/{method}")),
        (false, Some(service), None) => PathMatch::Prefix(format!("/{service}")),
        (false, None, method) => PathMatch::Regex(format!("/[^/]+/{}", method.unwrap_or_default())),
        (true, service, method) => {
            let part =
                |text: Option<String>| text.map_or_else(|| "[^/]+".to_owned(), |text| format!("(?:{text})"));
            PathMatch::Regex(format!("/{}/{}", part(service), part(method)))
        }
    };
    if let PathMatch::Regex(regex) = &path
        && !matches::check_regex(at.to_owned(), regex, fault, notes)
    {
        return None;
    }
    Some(path)
}

/// The Gateway API's own rules for what is matched exactly.
fn is_name(text: &str, may_have_dots: bool) -> bool {
    let text = if may_have_dots { text.strip_prefix('.').unwrap_or(text) } else { text };
    let is_word = |word: &str| {
        let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
        word.bytes().next().is_some_and(letter)
            && word.bytes().all(|byte| letter(byte) || byte.is_ascii_digit())
    };
    if may_have_dots { text.split('.').all(is_word) } else { is_word(text) }
}

/// The generated types for rules and for backends differ by name only.
macro_rules! written_filters {
    ($filter:ty, $type:ident) => {
        impl<'a> From<&'a $filter> for Written<'a> {
            fn from(one: &'a $filter) -> Self {
                let fields = [
                    (FilterType::RequestHeaderModifier, one.request_header_modifier.is_some()),
                    (FilterType::ResponseHeaderModifier, one.response_header_modifier.is_some()),
                    (FilterType::RequestMirror, one.request_mirror.is_some()),
                    (FilterType::ExtensionRef, one.extension_ref.is_some()),
                ];
                Self {
                    filter: match one.r#type {
                        $type::RequestHeaderModifier => FilterType::RequestHeaderModifier,
                        $type::ResponseHeaderModifier => FilterType::ResponseHeaderModifier,
                        $type::RequestMirror => FilterType::RequestMirror,
                        $type::ExtensionRef => FilterType::ExtensionRef,
                    },
                    fields: fields
                        .into_iter()
                        .filter(|(_, is_there)| *is_there)
                        .map(|(field, _)| field)
                        .collect(),
                    request_headers: written_headers!(one.request_header_modifier),
                    response_headers: written_headers!(one.response_header_modifier),
                    redirect: None,
                    rewrite: None,
                    cors: None,
                    mirror: written_mirror!(one.request_mirror),
                }
            }
        }
    };
}

written_filters!(GrpcRouteRulesFilters, GrpcRouteRulesFiltersType);
written_filters!(GrpcRouteRulesBackendRefsFilters, GrpcRouteRulesBackendRefsFiltersType);
