//! Which requests a policy is about that is attached to routes: those that the routes match.
//!
//! Pure. Compared as routes do, path as it was sent; what is too long to be compared with a pattern is described, so that nobody gets around a
//! policy by sending more.

use std::sync::Arc;

use crate::route::{Asked, Hostname, Match, RequestMatch, Route, RouteKind, RouteRule, Routes, Rule, Table};
use crate::state::ObjectName;

/// The requests of one rule of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeSpec {
    /// Empty: of every host.
    pub hostnames: Vec<Hostname>,
    /// Any of them; empty: every request.
    pub matches: Vec<RequestMatch>,
}

/// Compiled: requests that any of some rules describe.
#[derive(Debug)]
pub struct Scope(Option<Box<Table>>);

// === impl Scope ===

impl Scope {
    /// Without any rule: every request.
    pub fn new(scopes: &[ScopeSpec]) -> Self {
        if scopes.is_empty() {
            return Self(None);
        }
        let name = ObjectName::new("-", "-");
        let rule = Arc::new(Rule {
            name: "".into(),
            route: name.clone(),
            label: "".into(),
            kind: RouteKind::Http,
            invalid: None,
            filters: None,
            backends: Box::default(),
            requests: None,
            session: None,
        });
        let route = |scope: &ScopeSpec| Route {
            name: name.clone(),
            ports: Vec::new(),
            hostnames: scope.hostnames.clone(),
            rules: vec![RouteRule { matches: scope.matches.clone(), rule: Arc::clone(&rule) }],
        };
        let routes = Routes {
            client_namespace: "".into(),
            service: name.clone(),
            routes: scopes.iter().map(route).collect(),
            streams: Vec::new(),
        };
        Self(Some(Box::new(Table::new(routes))))
    }

    /// Whether this request is described.
    pub fn describes(&self, asked: &Asked<'_>) -> bool {
        // The port is no matter: all are attached to every one.
        let found = self.0.as_ref().map(|table| table.find(0, asked));
        !matches!(found, Some(Match::NotFound | Match::NoRoutes))
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};
    use tulle_api::PATTERN_INPUT;

    use super::*;
    use crate::route::{PathMatch, Pattern};

    fn scope(hostnames: &[&str], path: PathMatch) -> ScopeSpec {
        let hostnames = hostnames.iter().map(|name| name.parse().unwrap()).collect();
        ScopeSpec { hostnames, matches: vec![RequestMatch { path, when: None }] }
    }

    fn describes(scopes: &[ScopeSpec], authority: &str, path: &str) -> bool {
        let headers = HeaderMap::new();
        let asked = Asked { method: &Method::GET, authority, path, query: "", headers: &headers };
        Scope::new(scopes).describes(&asked)
    }

    #[test]
    fn what_any_rule_matches_is_described_whichever_comes_first() {
        let scopes = [
            scope(&["a.example"], PathMatch::Exact("/one".into())),
            scope(&["*.example"], PathMatch::Prefix("/two".into())),
            scope(&[], PathMatch::Prefix("/three".into())),
        ];
        for (authority, path, is) in [
            ("a.example:8080", "/one", true),
            ("a.example", "/two/x", true),
            ("a.example", "/three", true),
            ("b.example", "/one", false),
            ("b.example", "/two", true),
            ("elsewhere", "/two", false),
            ("", "/three/x", true),
            ("", "/", false),
        ] {
            assert_eq!(describes(&scopes, authority, path), is, "{authority} {path}");
        }
        assert!(describes(&[], "", "/"), "not attached to routes");
    }

    #[test]
    fn what_is_too_long_for_a_pattern_is_described() {
        let scopes = [scope(&[], PathMatch::Pattern(Pattern::new("/admin/[0-9]+").unwrap()))];
        assert!(!describes(&scopes, "", "/other"));
        assert!(describes(&scopes, "", &format!("/{}", "x".repeat(PATTERN_INPUT))));
    }
}
