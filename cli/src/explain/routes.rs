//! Which rule takes the request, why the others do not, and what then.
//!
//! Why a rule does not is found by asking the same tables again, each of a route that has but one condition of one match.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http::Request;
use http::uri::PathAndQuery;
use tulle_proxy::forward::{is_grpc, refusal};
use tulle_proxy::policy::{Connection, Denial, Inbound, Requested, TlsKind, Verdict};
use tulle_proxy::route::{
    Abort, Asked, Backend, Conditions, Cors, FaultRule, Filters, Found, HeaderModifier, Hostname, MILLION,
    Match, PathMatch, PathModifier, RequestMatch, Requests, Route, RouteKind, RouteRule, Routes, Rule, Table,
    TokenPlace, ValueMatch, cookie_path,
};
use tulle_proxy::state::{EndpointInfo, ObjectName, Peer, Protocol, ServiceInfo};
use tulle_proxy::telemetry::Reason;
use tulle_proxy::wire::h1::{Limits, Scan};

use super::Asking;
use super::answer::{
    self, Answer, Endpoint, Failure, Handled, Injected, Judged, Logged, NotTaken, Redirected, Retried,
    RuleName, Session, Share, Taken, To,
};
use super::mesh::Mesh;
use super::told;

/// A request to `port` of a Service.
struct Question<'a> {
    asked: Asked<'a>,
    port: u16,
}

/// # Errors
/// The control plane cannot be asked.
pub(super) fn explain(mesh: &Mesh, asking: &Asking, info: &ServiceInfo, to: To) -> Result<Answer> {
    let (service, port) = (&info.name, to.port);
    let mut answer = Answer {
        request: format!("{} {}", asking.method, asking.uri),
        from: asking.from.clone(),
        to,
        taken: None,
        requests: Handled::default(),
        not_taken: Vec::new(),
        backends: Vec::new(),
        fails: None,
        some_fail: false,
        cannot_tell: false,
        notes: Vec::new(),
    };
    let table = mesh.routes(&asking.from.workload.namespace, service)?;
    if let Some(table) = table.as_ref().filter(|table| table.streams(port).is_some()) {
        let attached = table.routes().streams.iter();
        let attached = attached.filter(|route| route.ports.is_empty() || route.ports.contains(&port));
        let names: Vec<&str> = attached.map(|route| &*route.label).collect();
        bail!(
            "--to: whole connections to port {port} of Service {service} follow its TLSRoutes or TCPRoutes ({}), and no request is looked at",
            names.join(", ")
        );
    }
    if let Some(refused) = asking.refused(&answer.to) {
        return Ok(Answer { fails: Some(refused), some_fail: true, ..answer });
    }
    let question = Question { asked: asking.asked(), port };
    let found = table.as_ref().map_or(Match::NoRoutes, |table| table.find(port, &question.asked));
    let said = Requests {
        rule: if let Match::Rule(found) = &found { found.rule.requests.as_deref() } else { None },
        port: info.port(port).and_then(|port| port.traffic.requests.as_deref()),
    };
    answer.requests = handled(&said, &question.asked);
    let workload = mesh.inbound(&asking.from.workload)?;
    told::add(&mut answer.requests, &said, workload.as_ref().map(Inbound::spec));
    let table = table.as_ref();
    let rules = || table.into_iter().flat_map(|table| &table.routes().routes).flat_map(numbered);
    match found {
        Match::NoRoutes => {
            answer.backends.push(asking.share(mesh, service, port, 100.0, &question.asked)?);
        }
        Match::TooLong(what) => answer.fails = Some(Failure::new(Reason::HeadTooLarge, what.to_string())),
        Match::NotFound => {
            let detail = format!("no rule of the routes to {service}:{port} takes it");
            answer.fails = Some(Failure::new(Reason::RouteNotFound, detail));
        }
        Match::Rule(found) => {
            let named = rules().find(|(.., rule)| std::ptr::eq(&*rule.rule, &**found.rule));
            let (route, index, rule) = named.context("the rule is of no route")?;
            answer.taken = Some(question.taken(route, index, rule, found));
            if let Some(invalid) = &found.rule.invalid {
                let detail = format!("route {}: {invalid}", found.rule.route);
                answer.fails = Some(Failure::new(Reason::RouteInvalid, detail));
            } else if !redirects(found.rule) && !is_preflight(found.rule, &question.asked) {
                answer.backends = asking.shares(mesh, found)?;
                answer.fails = no_share(found.rule, &answer.backends);
            }
        }
    }
    let taken =
        |rule: &RouteRule| matches!(found, Match::Rule(found) if std::ptr::eq(&*rule.rule, &**found.rule));
    let others = rules().filter(|(.., rule)| !taken(rule));
    answer.not_taken = others
        .map(|(route, index, rule)| NotTaken {
            rule: name(rule, index),
            because: question.against(route, rule),
        })
        .collect();
    if answer.fails.is_none() && answer.backends.iter().all(|share| share.fails.is_some()) {
        answer.fails = answer.backends.iter().find_map(|share| share.fails.clone());
    }
    answer.some_fail = answer.fails.is_some() || answer.backends.iter().any(Share::fails_some);
    answer.cannot_tell = answer.backends.iter().any(Share::cannot_tell);
    let by_rule = matches!(found, Match::Rule(found) if found.rule.kind == RouteKind::Grpc);
    Ok(answer.of_grpc(by_rule, is_grpc(&asking.headers)))
}

/// What is said of such a request.
fn handled(said: &Requests<'_>, asked: &Asked<'_>) -> Handled {
    let long = |duration: Duration| format!("{duration:?}");
    let share = |of: u32| f64::from(of) / f64::from(MILLION / 100);
    let fault = said.fault(asked);
    let by_route = said.rule.map(|rule| {
        let is_own = |fault: &FaultRule| rule.faults.iter().any(|one| std::ptr::eq(one, fault));
        let fields = [
            ("request_timeout", rule.request_timeout.is_some()),
            ("backend_timeout", rule.backend_timeout.is_some()),
            ("idle_timeout", rule.idle_timeout.is_some()),
            ("deadline_header", rule.deadline_header.is_some()),
            ("retry", rule.retry.is_some()),
            ("fault", fault.is_some_and(is_own)),
        ];
        fields.into_iter().filter(|(_, is_said)| *is_said).map(|(name, _)| name).collect()
    });
    Handled {
        by_route: by_route.unwrap_or_default(),
        request_timeout: said.request_timeout().map(long),
        backend_timeout: said.backend_timeout().map(long),
        idle_timeout: said.idle_timeout().map(long),
        deadline_header: said.deadline_header().map(ToString::to_string),
        retry: said.retry().map(|retry| Retried {
            attempts: retry.attempts,
            codes: retry.codes.clone(),
            grpc_codes: (1..=16).filter(|code| retry.is_for_grpc(*code)).collect(),
            backoff: long(retry.backoff),
            unanswered: (asked.method.is_idempotent() || retry.non_idempotent)
                && (retry.causes.reset || retry.causes.timeout),
        }),
        fault: fault.map(|fault| Injected {
            rule: fault.name.to_string(),
            delay: fault.delay.map(|(of, delay)| (share(of), long(delay))),
            abort: fault.abort.map(|(of, abort)| {
                let with = match abort {
                    Abort::Http(status) => status.as_u16().to_string(),
                    Abort::Grpc(code) => format!("with gRPC's status {code}"),
                };
                (share(of), with)
            }),
        }),
        // By `told`.
        sampling_percent: None,
        sampling_parent_based: None,
        access_log: Logged::default(),
        by_workload: Vec::new(),
    }
}

fn numbered(route: &Route) -> impl Iterator<Item = (&Route, usize, &RouteRule)> {
    route.rules.iter().enumerate().map(move |(index, rule)| (route, index, rule))
}

fn redirects(rule: &Rule) -> bool {
    rule.filters.as_ref().is_some_and(|filters| filters.redirect.is_some())
}

/// Whether the proxy answers it itself, saying who may ask for what.
fn is_preflight(rule: &Rule, asked: &Asked<'_>) -> bool {
    rule.filters.as_ref().is_some_and(|filters| filters.cors.is_some()) && Cors::is_preflight(asked)
}

fn no_share(rule: &Rule, shares: &[Share]) -> Option<Failure> {
    shares.is_empty().then(|| {
        let what =
            if rule.backends.is_empty() { "names no backend" } else { "has no backend of a weight above 0" };
        Failure::new(Reason::RouteWithoutBackend, format!("the rule of route {} {what}", rule.route))
    })
}

fn name(rule: &RouteRule, index: usize) -> RuleName {
    let kind = match rule.rule.kind {
        RouteKind::Http => "HTTPRoute",
        RouteKind::Grpc => "GRPCRoute",
    };
    RuleName { kind, route: rule.rule.route.to_string(), index, name: rule.rule.name.to_string() }
}

// === impl Question ===

impl Question<'_> {
    fn taken(&self, route: &Route, index: usize, rule: &RouteRule, found: Found<'_>) -> Taken {
        let filters = found.rule.filters.as_deref();
        let redirect = filters.and_then(|filters| filters.redirect.as_ref());
        let redirect = redirect.map(|redirect| Redirected {
            status: redirect.status.as_u16(),
            location: redirect.location(&self.asked, found.prefix, self.port),
        });
        let one = self.chosen(route, rule);
        Taken {
            rule: name(rule, index),
            because: one.map_or_else(Vec::new, all_of),
            filters: filters.map_or_else(Vec::new, said),
            redirect,
            session: found
                .rule
                .session
                .as_deref()
                .map(|session| kept(session, self.asked.path.get(..found.common).unwrap_or_default())),
        }
    }

    /// The match by which the rule takes the request, by the order of precedence among its own.
    fn chosen<'a>(&self, route: &Route, rule: &'a RouteRule) -> Option<&'a RequestMatch> {
        let each = |one: &RequestMatch| RouteRule {
            matches: vec![one.clone()],
            // Another one each, to be known again.
            rule: Arc::new((*rule.rule).clone()),
        };
        let rules: Vec<_> = rule.matches.iter().map(each).collect();
        let table = table(Route { rules: rules.clone(), ..route.clone() });
        let Match::Rule(found) = table.find(self.port, &self.asked) else { return None };
        let at = rules.iter().position(|one| Arc::ptr_eq(&one.rule, found.rule))?;
        rule.matches.get(at)
    }

    /// Why this rule is not the one.
    fn against(&self, route: &Route, rule: &RouteRule) -> Vec<String> {
        if !route.ports.is_empty() && !route.ports.contains(&self.port) {
            let ports: Vec<String> = route.ports.iter().map(u16::to_string).collect();
            return vec![format!("the route is attached to port {} only", ports.join(", "))];
        }
        let host = Route { rules: vec![only(rule, None)], ..route.clone() };
        if !self.takes(host) {
            let names: Vec<String> = route.hostnames.iter().map(hostname).collect();
            return vec![format!("the host is not {}", names.join(" or "))];
        }
        let first = "another rule comes first, by the order of precedence";
        if rule.matches.is_empty() {
            return vec![first.to_owned()];
        }
        let why = |one| match &*self.why_not(route, rule, one) {
            [] => first.to_owned(),
            missing => missing.join("; "),
        };
        rule.matches.iter().map(why).collect()
    }

    /// What of a match does not hold.
    fn why_not(&self, route: &Route, rule: &RouteRule, one: &RequestMatch) -> Vec<String> {
        let everywhere = Route { ports: Vec::new(), hostnames: Vec::new(), ..route.clone() };
        let parts = parts(one).into_iter();
        let not = parts.filter(|(part, _)| {
            !self.takes(Route { rules: vec![only(rule, Some(part.clone()))], ..everywhere.clone() })
        });
        not.map(|(_, text)| format!("not {text}")).collect()
    }

    fn takes(&self, route: Route) -> bool {
        matches!(table(route).find(self.port, &self.asked), Match::Rule(_))
    }
}

fn table(route: Route) -> Table {
    let service = route.name.clone();
    Table::new(Routes { client_namespace: "".into(), service, routes: vec![route], streams: Vec::new() })
}

fn only(rule: &RouteRule, one: Option<RequestMatch>) -> RouteRule {
    RouteRule { matches: one.into_iter().collect(), rule: rule.rule.clone() }
}

/// A match of each of its conditions alone, and how that is said.
fn parts(one: &RequestMatch) -> Vec<(RequestMatch, String)> {
    let path = match &one.path {
        PathMatch::Exact(path) => format!("path {path}"),
        PathMatch::Prefix(path) => format!("path prefix {path}"),
        PathMatch::Pattern(pattern) => format!("path like {}", pattern.as_str()),
        PathMatch::Method(pattern) => format!("gRPC method {} of any service", pattern.as_str()),
    };
    let mut parts = vec![(RequestMatch { path: one.path.clone(), when: None }, path)];
    let Some(when) = one.when.as_deref() else { return parts };
    let mut add = |when: Conditions, text| {
        parts.push((RequestMatch { path: PathMatch::Prefix("/".into()), when: Some(when.into()) }, text));
    };
    if let Some(method) = &when.method {
        let only = Conditions { method: Some(method.clone()), ..Conditions::default() };
        add(only, format!("method {method}"));
    }
    for header in &when.headers {
        let only = Conditions { headers: vec![header.clone()], ..Conditions::default() };
        add(only, format!("header {}{}", header.name, value(&header.value)));
    }
    for query in &when.query {
        let only = Conditions { query: vec![query.clone()], ..Conditions::default() };
        add(only, format!("query parameter {}{}", query.name, value(&query.value)));
    }
    parts
}

fn all_of(one: &RequestMatch) -> Vec<String> {
    parts(one).into_iter().map(|(_, text)| text).collect()
}

fn value(value: &ValueMatch) -> String {
    match value {
        ValueMatch::Exact(exact) => format!(": {}", String::from_utf8_lossy(exact)),
        ValueMatch::Pattern(pattern) => format!(" like {}", pattern.as_str()),
    }
}

fn hostname(name: &Hostname) -> String {
    match name {
        Hostname::Exact(name) => name.to_string(),
        Hostname::Suffix(name) => format!("*.{name}"),
    }
}

/// What filters do, in the order in which it is done.
fn said(filters: &Filters) -> Vec<String> {
    let Filters { request, response, redirect, rewrite, cors, mirrors } = filters;
    let mut said = Vec::new();
    modifier("request", request, &mut said);
    if let Some(rewrite) = rewrite {
        said.extend(rewrite.hostname.as_ref().map(|host| format!("rewrites the host to {host}")));
        said.extend(rewrite.path.as_ref().map(|new| format!("rewrites the path {}", path(new))));
    }
    said.extend(mirrors.iter().map(|mirror| {
        let share = f64::from(mirror.numerator) * 100.0 / f64::from(mirror.denominator);
        let to = format!("to {}:{}", mirror.service, mirror.port);
        match &mirror.invalid {
            None => format!("copies {share}% of the requests {to}"),
            Some(why) => format!("copies nothing {to}: {why}"),
        }
    }));
    if let Some(redirect) = redirect {
        said.push(format!("redirects with {}", redirect.status.as_u16()));
    }
    modifier("response", response, &mut said);
    if let Some(cors) = cors {
        said.push(format!("says to pages of {} origins that they may read the answer", cors.origins.len()));
    }
    said
}

fn kept(kept: &tulle_proxy::route::Session, common: &str) -> Session {
    let long = |timeout: Duration| format!("{timeout:?}");
    let (place, name, path, permanent) = match &kept.place {
        TokenPlace::Cookie { name, permanent } => ("cookie", &**name, Some(cookie_path(common)), *permanent),
        TokenPlace::Header(name) => ("header", name.as_str(), None, false),
    };
    Session {
        place,
        name: name.to_owned(),
        path: path.map(str::to_owned),
        absolute_timeout: kept.absolute_timeout.map(long),
        idle_timeout: kept.idle_timeout.map(long),
        permanent,
    }
}

fn path(modifier: &PathModifier) -> String {
    match modifier {
        PathModifier::Full(new) => format!("to {new}"),
        PathModifier::Prefix(new) => format!("prefix to {new:?}"),
    }
}

fn modifier(of: &str, modifier: &HeaderModifier, said: &mut Vec<String>) {
    let HeaderModifier { set, add, remove } = modifier;
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    said.extend(remove.iter().map(|name| format!("removes the {of} header {name}")));
    said.extend(set.iter().map(|(name, value)| format!("sets the {of} header {name}: {}", text(value))));
    said.extend(add.iter().map(|(name, value)| format!("adds the {of} header {name}: {}", text(value))));
}

/// The target and host of a request.
fn shown(request: &Request<()>) -> String {
    let host = request.headers().get(http::header::HOST).map(|host| host.as_bytes().to_vec());
    let host = String::from_utf8_lossy(&host.unwrap_or_default()).into_owned();
    format!("{} {} of {host}", request.method(), request.uri())
}

/// What routes and policies look at of a request.
fn asked(request: &Request<()>) -> Asked<'_> {
    let host = request.headers().get(http::header::HOST).and_then(|host| host.to_str().ok());
    let named = request.uri().authority().map(|authority| authority.as_str());
    Asked {
        method: request.method(),
        authority: named.or(host).unwrap_or_default(),
        path: request.uri().path(),
        query: request.uri().query().unwrap_or(""),
        headers: request.headers(),
    }
}

// === impl Asking ===

impl Asking {
    /// Why the proxy reads no further than the head, by its own reading of HTTP/1 and its default limits. What is called by HTTP/2 is framed by other rules.
    fn refused(&self, to: &To) -> Option<Failure> {
        if [Protocol::Http2, Protocol::Grpc].map(answer::protocol).contains(&to.protocol) {
            return None;
        }
        let target = self.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let mut head = format!("{} {target} HTTP/1.1\r\n", self.method).into_bytes();
        for (name, value) in &self.headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                head.extend_from_slice(part);
            }
        }
        head.extend_from_slice(b"\r\n");
        let read = Scan::default().request(&mut head[..].into(), &Limits::default());
        read.err().map(|error| Failure::new(refusal(error), error.to_string()))
    }

    fn asked(&self) -> Asked<'_> {
        let host = self.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        Asked {
            method: &self.method,
            authority: host.unwrap_or_default(),
            path: self.uri.path(),
            query: self.uri.query().unwrap_or(""),
            headers: &self.headers,
        }
    }

    /// The rule's backends that get anything.
    fn shares(&self, mesh: &Mesh, found: Found<'_>) -> Result<Vec<Share>> {
        let total: f64 = found.rule.backends.iter().map(|backend| f64::from(backend.weight)).sum();
        let served = found.rule.backends.iter().filter(|backend| backend.weight > 0);
        let share = |backend: &Backend| {
            let percent = f64::from(backend.weight) * 100.0 / total;
            let empty = || Share::empty(&backend.service, backend.port, percent);
            let mut share = match (&backend.invalid, self.sent(found, backend)) {
                (_, Err(failure)) => Share { fails: Some(failure), ..empty() },
                (invalid, Ok(sent)) => {
                    let share = match invalid {
                        None => self.share(mesh, &backend.service, backend.port, percent, &asked(&sent))?,
                        Some(why) => {
                            Share { fails: Some(Failure::new(Reason::BackendNotFound, &**why)), ..empty() }
                        }
                    };
                    let (before, after) = (shown(&self.whole()), shown(&sent));
                    Share { sees: (after != before).then_some(after), ..share }
                }
            };
            share.filters = backend.filters.as_deref().map_or_else(Vec::new, said);
            Ok(share)
        };
        served.map(share).collect()
    }

    /// The request as the client sends it.
    fn whole(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        let query = self.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        // It has been read as a target before.
        *request.uri_mut() = format!("{}{query}", self.uri.path()).parse().unwrap_or_default();
        *request.headers_mut() = self.headers.clone();
        request
    }

    /// The same as the backend gets it.
    fn sent(&self, found: Found<'_>, backend: &Backend) -> Result<Request<()>, Failure> {
        let mut request = self.whole();
        for filters in [&found.rule.filters, &backend.filters].into_iter().flatten() {
            filters.request.apply(request.headers_mut());
            if let Some(rewrite) = &filters.rewrite {
                let rewritten = rewrite.apply(&mut request, found.prefix);
                rewritten
                    .map_err(|error| Failure::new(Reason::HeadTooLarge, format!("rewritten: {error}")))?;
            }
        }
        Ok(request)
    }

    /// A Service's endpoints, each with what it says to the client.
    fn share(
        &self,
        mesh: &Mesh,
        service: &ObjectName,
        port: u16,
        percent: f64,
        asked: &Asked<'_>,
    ) -> Result<Share> {
        let mut share = Share::empty(service, port, percent);
        let mut all = mesh.endpoints(service)?;
        all.retain(|endpoint| endpoint.service_port == port);
        share.endpoints =
            all.iter().map(|endpoint| self.endpoint(mesh, endpoint, asked)).collect::<Result<_>>()?;
        let refused = share.picked().find_map(|endpoint| endpoint.refusal());
        share.fails = match refused {
            _ if share.endpoints.is_empty() => {
                let tokens = "what has joined by a token is not in a folder";
                let seen = if mesh.is_folder() { format!(" ({tokens})") } else { String::new() };
                let detail = format!("{service}:{port} has no endpoint{seen}");
                Some(Failure::new(Reason::NoHealthyEndpoint, detail))
            }
            Some(reason) if share.picked().all(|endpoint| endpoint.refusal().is_some()) => {
                let detail = format!("no endpoint of {service}:{port} lets {} in", self.from.shown());
                Some(Failure::new(Reason::from_code(reason).unwrap_or(Reason::PolicyDenied), detail))
            }
            Some(_) | None => None,
        };
        Ok(share)
    }

    fn endpoint(&self, mesh: &Mesh, endpoint: &EndpointInfo, asked: &Asked<'_>) -> Result<Endpoint> {
        let (tls, identity) = match &endpoint.peer {
            Peer::Mesh(id) => (TlsKind::Mesh, Some(id)),
            Peer::Plaintext => (TlsKind::None, None),
        };
        let workload = endpoint.workload.as_ref();
        // Only where a workload is known is there a proxy that judges.
        let known = workload.map(|workload| mesh.workload(workload)).transpose()?.flatten();
        let policy = known.map(|known| mesh.inbound(&known.name)).transpose()?.flatten();
        let policy = policy.map(|policy| {
            let port = endpoint.addr.port();
            let peer = self.from.identity.as_ref();
            let unknown = tls == TlsKind::Mesh && peer.is_none();
            if unknown && policy.has_rules(port) {
                return Judged { allowed: None, rule: None, reason: None };
            }
            // Where no rule speaks of the port, one identity is as good as another.
            let peer = peer.or(identity);
            // Where that is looked at, nobody can tell: `judged`.
            let client = std::net::Ipv4Addr::UNSPECIFIED.into();
            let connection = Connection { port, peer, tls, client };
            let grpc = is_grpc(asked.headers);
            // What a token would say, nobody knows.
            let requested = Requested { asked: *asked, grpc, claims: None, headless: false };
            let verdict = policy.evaluate_request(&connection, &requested).verdict;
            judged(verdict, tls != TlsKind::Mesh && policy.names_identities(port))
        });
        Ok(Endpoint {
            address: endpoint.addr.to_string(),
            workload: workload.map(ToString::to_string),
            identity: identity.map(ToString::to_string),
            ready: endpoint.ready,
            policy,
        })
    }
}

/// `asks`: the rules that allow ask for an identity, and the client has none.
fn judged(verdict: Verdict, asks: bool) -> Judged {
    match verdict {
        Verdict::Allow { rule } | Verdict::Audit { rule } => {
            Judged { allowed: Some(true), rule: Some(rule.to_string()), reason: None }
        }
        // From where the client would call is not said.
        Verdict::Deny { reason: Denial::NetworkDenied, .. } => {
            Judged { allowed: None, rule: None, reason: None }
        }
        Verdict::Deny { reason, rule } => {
            let reason = match reason {
                Denial::PolicyDenied if asks && rule.is_none() => Reason::IdentityRequired.code(),
                reason => reason.as_str(),
            };
            Judged { allowed: Some(false), rule: rule.map(|rule| rule.to_string()), reason: Some(reason) }
        }
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Why its proxy refuses the client.
    fn refusal(&self) -> Option<&'static str> {
        self.policy.as_ref().and_then(|judged| judged.reason)
    }
}

// === impl Share ===

impl Share {
    fn empty(service: &ObjectName, port: u16, percent: f64) -> Self {
        let service = format!("{service}:{port}");
        Self { service, percent, filters: Vec::new(), sees: None, endpoints: Vec::new(), fails: None }
    }

    /// The endpoints that requests go to: those that are ready, as long as there are any.
    fn picked(&self) -> impl Iterator<Item = &Endpoint> {
        let any = self.endpoints.iter().any(|endpoint| endpoint.ready);
        self.endpoints.iter().filter(move |endpoint| endpoint.ready || !any)
    }

    fn fails_some(&self) -> bool {
        self.fails.is_some() || self.picked().any(|endpoint| endpoint.refusal().is_some())
    }

    /// Whether the client's identity decides, and is not known.
    fn cannot_tell(&self) -> bool {
        self.picked().any(|endpoint| endpoint.policy.as_ref().is_some_and(|judged| judged.allowed.is_none()))
    }
}
