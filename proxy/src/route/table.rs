//! The routes to one service, compiled.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use foldhash::fast::RandomState;
use http::HeaderName;
use tulle_api::PATTERN_INPUT;

use super::candidates::Candidate;
use super::condition::{self, Asked, Conditions};
use super::filter::Filters;
use super::host::{Hostname, RequestHost};
use super::paths::Paths;
use super::pattern::Pattern;
use super::requests::RequestPolicy;
use super::session::Session;
use super::stream::{self, StreamRoute, Streams};
use crate::state::ObjectName;

/// The routes that this proxy's clients follow to one service, before they are compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    /// Empty where the routes are the same for clients of every namespace.
    pub client_namespace: Arc<str>,
    pub service: ObjectName,
    /// Oldest first.
    pub routes: Vec<Route>,
    /// Likewise. A port's connections follow those attached to it, if there are any, whatever they carry.
    pub streams: Vec<StreamRoute>,
}

/// One `HTTPRoute` or `GRPCRoute`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub name: ObjectName,
    /// The service's ports that it is attached to; empty: every port.
    pub ports: Vec<u16>,
    /// Empty: any host.
    pub hostnames: Vec<Hostname>,
    pub rules: Vec<RouteRule>,
}

/// When a rule applies, and what it does then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRule {
    /// Any of them; empty: every request.
    pub matches: Vec<RequestMatch>,
    pub rule: Arc<Rule>,
}

/// Which requests match: by their path, and by all else that is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestMatch {
    pub path: PathMatch,
    /// `None`: whatever the rest is.
    pub when: Option<Arc<Conditions>>,
}

/// Which paths match; queries never count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// Byte for byte.
    Exact(Box<str>),
    /// Begins with a slash. Element by element: `/a` matches `/a`, `/a/` and `/a/b`, not `/ab`. A slash at its end does not matter.
    /// `/` matches every request, also those for `*` and CONNECT's.
    Prefix(Box<str>),
    /// The whole path.
    Pattern(Pattern),
    /// The whole path, of a gRPC method whatever its service.
    Method(Pattern),
}

/// Whose rules say what the proxy itself answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    Http,
    /// A `GRPCRoute`: the proxy's own answers are a status in trailers.
    Grpc,
}

/// What is done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name in the route, or empty.
    pub name: Arc<str>,
    /// The route that it belongs to.
    pub route: ObjectName,
    /// The same as text, for metrics and logs.
    pub label: Arc<str>,
    pub kind: RouteKind,
    /// Why its requests are all answered with 500 `route_invalid`.
    pub invalid: Option<Invalid>,
    pub filters: Option<Box<Filters>>,
    pub backends: Box<[Backend]>,
    /// What it says of its requests; `None`: nothing.
    pub requests: Option<Box<RequestPolicy>>,
    /// `None`: each request is balanced by itself.
    pub session: Option<Box<Session>>,
}

/// Why a rule is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// The control plane says so.
    Said(Box<str>),
    /// This proxy cannot decode what stands in this field of its `Routes`. What it could read of the rule's matches chooses
    /// the rule's requests, so that none of them falls to another rule.
    Undecoded { field: Box<str>, reason: Box<str> },
}

/// Where a rule sends a share of its requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub service: ObjectName,
    pub port: u16,
    /// `<namespace>/<name>:<port>`, for metrics and logs.
    pub label: Arc<str>,
    /// Its share is `weight` of the sum of all; 0 takes nothing.
    pub weight: u32,
    /// Why the reference does not resolve: its share is answered with `backend_not_found`.
    pub invalid: Option<Arc<str>>,
    /// After the rule's own; they modify headers only.
    pub filters: Option<Box<Filters>>,
}

/// What [`Table::find`] found.
#[derive(Clone, Copy, Debug)]
pub enum Match<'a> {
    /// No route is attached to the port: the request goes to the service itself.
    NoRoutes,
    Rule(Found<'a>),
    /// There are routes, and none takes the request: 404 `route_not_found`.
    NotFound,
    /// Regular expressions would have to be tried on what is too long: 431 `head_too_large`.
    TooLong(TooLong<'a>),
}

/// What of a request is longer than [`PATTERN_INPUT`].
#[derive(Clone, Copy, Debug)]
pub enum TooLong<'a> {
    Path,
    Header(&'a HeaderName),
    Query(&'a str),
}

/// The rule that takes a request.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    pub rule: &'a Arc<Rule>,
    /// Bytes of the request's path that the rule's prefix takes, without a slash at its end; 0 where it matched otherwise.
    pub prefix: usize,
    /// Bytes of it that are the same for all that the rule takes by this match, up to the end of an element; 0: it need not have any in common.
    pub common: usize,
}

/// [`Routes`], compiled.
#[derive(Debug)]
pub struct Table {
    routes: Routes,
    rules: Vec<Arc<Rule>>,
    tried: Tried,
    /// Ports that some route names, with the routes of every port.
    named: HashMap<u16, Hosts, RandomState>,
    /// All other ports.
    every: Hosts,
    streams: stream::Ports,
}

/// What of requests patterns are tried on.
#[derive(Debug, Default)]
struct Tried {
    path: bool,
    headers: Vec<HeaderName>,
    query: Vec<Box<str>>,
}

/// The routes of one port, by host.
#[derive(Debug, Default)]
struct Hosts {
    attached: bool,
    exact: HashMap<Box<str>, Paths, RandomState>,
    suffixes: HashMap<Box<str>, Paths, RandomState>,
    any: Paths,
}

// === impl Table ===

impl Table {
    pub fn new(routes: Routes) -> Self {
        let rules: Vec<_> =
            routes.routes.iter().flat_map(|route| &route.rules).map(|rule| rule.rule.clone()).collect();
        let every = Hosts::new(&routes.routes, |route| route.ports.is_empty());
        let mut named: HashMap<u16, Hosts, RandomState> = HashMap::default();
        for port in routes.routes.iter().flat_map(|route| &route.ports) {
            named.entry(*port).or_insert_with(|| {
                Hosts::new(&routes.routes, |route| route.ports.is_empty() || route.ports.contains(port))
            });
        }
        let streams = stream::Ports::new(&routes.streams);
        Self { tried: Tried::new(&routes), routes, rules, named, every, streams }
    }

    /// The routes for whole connections to `port` of the service; `None` where there are none.
    pub fn streams(&self, port: u16) -> Option<&Arc<Streams>> {
        self.streams.at(port)
    }

    /// What this was compiled from.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// The rule for a request to `port` of the service.
    pub fn find(&self, port: u16, asked: &Asked<'_>) -> Match<'_> {
        let hosts = self.named.get(&port).unwrap_or(&self.every);
        if !hosts.attached {
            return Match::NoRoutes;
        }
        if let Some(what) = self.tried.too_long(asked) {
            return Match::TooLong(what);
        }
        let found = hosts.find(asked);
        let found = found.and_then(|found| {
            let rule = self.rules.get(found.rule as usize)?;
            Some(Found { rule, prefix: found.prefix as usize, common: found.common as usize })
        });
        found.map_or(Match::NotFound, Match::Rule)
    }
}

// === impl Hosts ===

impl Hosts {
    fn new(routes: &[Route], attached: impl Fn(&Route) -> bool) -> Self {
        let mut hosts = Self::default();
        let mut first = 0_u32;
        for route in routes {
            if attached(route) {
                hosts.attached = true;
                hosts.insert(route, first);
            }
            first += route.rules.len() as u32;
        }
        hosts.exact.values_mut().chain(hosts.suffixes.values_mut()).for_each(Paths::sort);
        hosts.any.sort();
        hosts
    }

    /// Adds a route whose first rule has the number `first`.
    fn insert(&mut self, route: &Route, first: u32) {
        let insert = |paths: &mut Paths| {
            for (number, rule) in (first..).zip(&route.rules) {
                if rule.matches.is_empty() {
                    paths.insert(&RequestMatch { path: PathMatch::Prefix("/".into()), when: None }, number);
                }
                for one in &rule.matches {
                    paths.insert(one, number);
                }
            }
        };
        for hostname in &route.hostnames {
            match hostname {
                Hostname::Exact(name) => insert(self.exact.entry(name.clone()).or_default()),
                Hostname::Suffix(name) => insert(self.suffixes.entry(name.clone()).or_default()),
            }
        }
        if route.hostnames.is_empty() {
            insert(&mut self.any);
        }
    }

    fn find(&self, asked: &Asked<'_>) -> Option<&Candidate> {
        if (self.exact.is_empty() && self.suffixes.is_empty()) || asked.authority.is_empty() {
            return self.any.find(asked);
        }
        let host = RequestHost::new(asked.authority);
        let named = host.as_ref().and_then(|host| self.find_named(host.as_str(), asked));
        named.or_else(|| self.any.find(asked))
    }

    fn find_named(&self, host: &str, asked: &Asked<'_>) -> Option<&Candidate> {
        if let Some(found) = self.exact.get(host).and_then(|paths| paths.find(asked)) {
            return Some(found);
        }
        if self.suffixes.is_empty() {
            return None;
        }
        // From the longest: everything after the first dot, after the second, and so on.
        host.match_indices('.')
            .filter(|(dot, _)| *dot > 0)
            .find_map(|(dot, _)| self.suffixes.get(&host[dot + 1..])?.find(asked))
    }
}

// === impl Tried ===

impl Tried {
    fn new(routes: &Routes) -> Self {
        let mut tried = Self::default();
        let rules = routes.routes.iter().flat_map(|route| &route.rules);
        for one in rules.flat_map(|rule| &rule.matches) {
            tried.path |= matches!(one.path, PathMatch::Pattern(_) | PathMatch::Method(_));
            let Some(when) = &one.when else { continue };
            for one in when.headers.iter().filter(|one| one.value.is_pattern()) {
                if !tried.headers.contains(&one.name) {
                    tried.headers.push(one.name.clone());
                }
            }
            for one in when.query.iter().filter(|one| one.value.is_pattern()) {
                if !tried.query.contains(&one.name) {
                    tried.query.push(one.name.clone());
                }
            }
        }
        tried
    }

    /// What of the request is longer than any pattern is tried on.
    fn too_long(&self, asked: &Asked<'_>) -> Option<TooLong<'_>> {
        if self.path && asked.path.len() > PATTERN_INPUT {
            return Some(TooLong::Path);
        }
        let header = self.headers.iter().find(|name| condition::header_len(asked, name) > PATTERN_INPUT);
        if let Some(name) = header {
            return Some(TooLong::Header(name));
        }
        if asked.query.len() <= PATTERN_INPUT {
            return None;
        }
        let mut names = self.query.iter().map(|name| &**name);
        names.find(|name| condition::parameter_len(asked.query, name) > PATTERN_INPUT).map(TooLong::Query)
    }
}

impl fmt::Display for TooLong<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path => f.write_str("the path")?,
            Self::Header(name) => write!(f, "the header {name}")?,
            Self::Query(name) => write!(f, "the query parameter {name}")?,
        }
        write!(f, " is longer than the {PATTERN_INPUT} bytes that routes try regular expressions on")
    }
}

// === impl Invalid ===

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Said(why) => f.write_str(why),
            Self::Undecoded { field, reason } => write!(f, "{field} as this proxy was sent it: {reason}"),
        }
    }
}

/// A backend by weight, from a uniformly random number; `None` if there is none with a weight.
pub fn pick(backends: &[Backend], random: u64) -> Option<&Backend> {
    let total: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    let mut at = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    backends.iter().find(|backend| {
        let weight = u64::from(backend.weight);
        let here = at < weight;
        at = at.saturating_sub(weight);
        here
    })
}
