//! Access policies, compiled by port, and what they say of a connection or a request.
//!
//! Decides whether a rule describes what is asked, as far as that is known ([`What`]). Where it cannot be known, or may be read in several
//! ways, a rule that denies describes what it may be, and one that allows only what it is for sure; but whether *some* request on a
//! connection could pass is asked the other way round. Rules that name nothing but whole identities are found by a hash of the client's;
//! the rest are tried one after the other. Nothing is allocated but for paths that are not written plainly. Pure; called by
//! [`Inbound`](super::Inbound).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use http::{HeaderMap, HeaderName, header};
use serde_json::Value;
use tulle_certs::{SpiffeId, TrustDomain};

use super::access::{
    AccessAction, AccessPolicy, AccessRule, Condition, Operation, RouteScope, Source, Subject,
};
use super::claims::Claims;
use super::host::{self, Host};
use super::path::{self, Readings, Unclear};
use super::text::{Text, is_taken_for};
use crate::route::{
    Asked, Conditions, Match, PathMatch, RequestMatch, Route, RouteKind, RouteRule, Routes,
    Rule as RoutedRule, Table,
};
use crate::state::ObjectName;

/// A request, as far as policies look at it.
#[derive(Clone, Copy, Debug)]
pub struct Requested<'a> {
    pub asked: Asked<'a>,
    /// Its content type is gRPC's.
    pub grpc: bool,
    /// Of the token that came with it, verified.
    pub claims: Option<&'a Claims>,
    /// Its headers are no longer known: it is judged once more, long after it came.
    pub headless: bool,
}

/// What is asked of a connection's application.
#[derive(Clone, Copy)]
pub(super) enum What<'a> {
    /// Whether there could be a request that passes.
    Some,
    /// To relay bytes, which are no HTTP.
    Bytes,
    Request(&'a Requested<'a>),
}

/// Who asks what.
pub(super) struct Facts<'a> {
    port: u16,
    identity: Option<&'a SpiffeId>,
    /// Of the mesh; `None`: not known, and then whatever was proven is the mesh's.
    domain: Option<&'a TrustDomain>,
    client: IpAddr,
    what: What<'a>,
    /// Of a request, where they are looked at, and known.
    readings: Option<Readings<'a>>,
    host: Option<Host>,
}

/// The policies of all ports.
#[derive(Debug, Default)]
pub(super) struct Access {
    /// Of ports that some policy names, those of every port included.
    named: HashMap<u16, Port, RandomState>,
    /// Of all other ports.
    every: Port,
}

/// The policies of one port.
#[derive(Debug, Default)]
pub(super) struct Port {
    pub(super) deny: Group,
    pub(super) allow: Group,
    pub(super) audit: Group,
    /// Those that are not in force.
    pub(super) dry_deny: Group,
    pub(super) dry_allow: Group,
    /// Some rule that allows asks for an identity.
    pub(super) names_identities: bool,
    /// What those that are in force look at.
    pub(super) in_force: Looks,
    /// What any does.
    all: Looks,
}

/// At what of requests policies look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Looks {
    pub(super) at_hosts: bool,
    pub(super) at_paths: bool,
}

/// Policies of one action, in their order.
#[derive(Debug, Default)]
pub(super) struct Group {
    policies: Vec<Policy>,
    rules: Vec<Rule>,
    index: Option<Index>,
}

#[derive(Debug)]
struct Policy {
    name: Arc<str>,
    /// `None`: it speaks of whatever comes.
    scope: Option<Arc<Scope>>,
}

#[derive(Debug)]
struct Rule {
    /// Its number in the group.
    policy: u32,
    said: Arc<AccessRule>,
}

/// The requests that a policy speaks of, which is attached to routes.
#[derive(Debug)]
pub struct Scope {
    all: Table,
    /// By all that is asked but headers, where any are.
    headless: Option<Box<Table>>,
}

/// The rules by whom they describe.
#[derive(Debug, Default)]
struct Index {
    /// Each in order.
    identities: HashMap<SpiffeId, Vec<u32>, RandomState>,
    /// Those that may describe others, in order.
    others: Vec<u32>,
}

/// Fewer are tried one after the other.
const INDEXED: usize = 4;

// === impl Access ===

impl Access {
    pub(super) fn new(policies: &[AccessPolicy], domain: Option<&TrustDomain>) -> Self {
        let compiled: Vec<_> = policies.iter().map(Compiled::new).collect();
        let every = Port::new(&compiled, |policy| policy.ports.is_empty(), domain);
        let mut named: HashMap<u16, Port, RandomState> = HashMap::default();
        for port in policies.iter().flat_map(|policy| &policy.ports) {
            named.entry(*port).or_insert_with(|| {
                Port::new(&compiled, |policy| policy.ports.is_empty() || policy.ports.contains(port), domain)
            });
        }
        Self { named, every }
    }

    pub(super) fn port(&self, port: u16) -> &Port {
        self.named.get(&port).unwrap_or(&self.every)
    }
}

/// What all ports share of a policy.
struct Compiled<'p> {
    said: &'p AccessPolicy,
    scope: Option<Arc<Scope>>,
    rules: Vec<Arc<AccessRule>>,
}

impl<'p> Compiled<'p> {
    fn new(said: &'p AccessPolicy) -> Self {
        let scope = (!said.routes.is_empty()).then(|| Arc::new(Scope::new(&said.routes)));
        Self { said, scope, rules: said.rules.iter().map(|rule| Arc::new(normal(rule))).collect() }
    }
}

/// The rule with its hosts as they are compared.
fn normal(rule: &AccessRule) -> AccessRule {
    let mut rule = rule.clone();
    for operation in &mut rule.to {
        for hosts in [&mut operation.hosts, &mut operation.not_hosts] {
            *hosts = std::mem::take(hosts).into_iter().map(host::normal).collect();
        }
    }
    rule
}

// === impl Port ===

impl Port {
    fn new(
        policies: &[Compiled<'_>],
        speaks: impl Fn(&AccessPolicy) -> bool,
        domain: Option<&TrustDomain>,
    ) -> Self {
        let mut port = Self::default();
        for policy in policies.iter().filter(|policy| speaks(policy.said)) {
            port.look(policy);
            let group = match (policy.said.action, policy.said.dry_run) {
                (AccessAction::Deny, false) => &mut port.deny,
                (AccessAction::Allow, false) => &mut port.allow,
                // It does nothing but tell.
                (AccessAction::Audit, _) => &mut port.audit,
                (AccessAction::Deny, true) => &mut port.dry_deny,
                (AccessAction::Allow, true) => &mut port.dry_allow,
            };
            group.push(policy);
        }
        for group in
            [&mut port.deny, &mut port.allow, &mut port.audit, &mut port.dry_deny, &mut port.dry_allow]
        {
            group.index = Index::new(&group.rules, domain);
        }
        port
    }

    /// Takes in what a policy looks at.
    fn look(&mut self, policy: &Compiled<'_>) {
        let said = policy.said;
        let operations = || said.rules.iter().flat_map(|rule| &rule.to);
        let at_hosts = said.routes.iter().any(looks_at_host)
            || operations().any(Operation::looks_at_hosts)
            || said.rules.iter().flat_map(|rule| &rule.when).any(|one| is_host(&one.of));
        let at_paths = said.routes.iter().flat_map(|scope| &scope.matches).any(looks_at_path)
            || operations().any(Operation::looks_at_paths);
        self.all.add(Looks { at_hosts, at_paths });
        if !said.dry_run && said.action != AccessAction::Audit {
            self.in_force.add(Looks { at_hosts, at_paths });
        }
        let allows = said.action == AccessAction::Allow && !said.dry_run;
        let mut sources = said.rules.iter().flat_map(|rule| &rule.from);
        self.names_identities |= allows && sources.any(Source::names_identities);
    }

    /// Whether any policy is in force here, if only one that lets nobody in.
    pub(super) fn speaks(&self) -> bool {
        !(self.deny.policies.is_empty() && self.allow.policies.is_empty())
    }

    /// # Errors
    /// Why nobody can tell what is asked, where policies that are in force look at it.
    pub(super) fn facts<'a>(
        &self,
        (port, identity, client): (u16, Option<&'a SpiffeId>, IpAddr),
        domain: Option<&'a TrustDomain>,
        what: What<'a>,
    ) -> Result<Facts<'a>, Unclear> {
        let (mut readings, mut host) = (None, None);
        if let What::Request(requested) = what {
            if self.all.at_paths {
                readings = match Readings::of(requested.asked.path) {
                    Err(unclear) if self.in_force.at_paths => return Err(unclear),
                    read => read.ok(),
                };
            }
            if self.all.at_hosts {
                host = match Host::of(requested.asked.authority) {
                    Err(unclear) if self.in_force.at_hosts => return Err(unclear),
                    read => read.ok().flatten(),
                };
            }
        }
        Ok(Facts { port, identity, domain, client: client.to_canonical(), what, readings, host })
    }
}

// === impl Looks ===

impl Looks {
    fn add(&mut self, other: Self) {
        self.at_hosts |= other.at_hosts;
        self.at_paths |= other.at_paths;
    }
}

fn looks_at_host(scope: &RouteScope) -> bool {
    let conditions = scope.matches.iter().filter_map(|one| one.when.as_ref());
    !scope.hostnames.is_empty() || conditions.flat_map(|one| &one.headers).any(|one| one.name == header::HOST)
}

fn is_host(of: &Subject) -> bool {
    matches!(of, Subject::Header(name) if *name == header::HOST)
}

fn looks_at_path(one: &RequestMatch) -> bool {
    !matches!(&one.path, PathMatch::Prefix(prefix) if **prefix == *"/")
}

// === impl Group ===

impl Group {
    fn push(&mut self, policy: &Compiled<'_>) {
        let number = self.policies.len() as u32;
        let rules = policy.rules.iter();
        self.rules.extend(rules.map(|rule| Rule { policy: number, said: Arc::clone(rule) }));
        let name = Arc::clone(&policy.said.name);
        self.policies.push(Policy { name, scope: policy.scope.clone() });
    }

    /// The name of the first rule that describes what is asked: as far as is known, or, where it `denies`, may describe it.
    pub(super) fn find(&self, facts: &Facts<'_>, denies: bool) -> Option<&Arc<str>> {
        // Rules of one policy follow each other.
        let mut known: Option<(u32, bool)> = None;
        let mut takes = |rule: &Rule| {
            let speaks = match known {
                Some((policy, speaks)) if policy == rule.policy => speaks,
                _ => {
                    let policy = self.policies.get(rule.policy as usize);
                    let speaks = policy.is_some_and(|policy| policy.speaks(facts, denies));
                    known = Some((rule.policy, speaks));
                    speaks
                }
            };
            speaks && describes(&rule.said, facts, denies)
        };
        let Some(index) = &self.index else {
            return self.rules.iter().find(|rule| takes(rule)).map(|rule| &rule.said.name);
        };
        let (mut here, mut others) = (index.of(facts.identity), &index.others[..]);
        loop {
            let next = match (here, others) {
                ([], []) => return None,
                ([a, rest @ ..], []) => {
                    here = rest;
                    a
                }
                ([a, rest @ ..], [b, ..]) if a < b => {
                    here = rest;
                    a
                }
                (_, [b, rest @ ..]) => {
                    others = rest;
                    b
                }
            };
            let rule = self.rules.get(*next as usize)?;
            if takes(rule) {
                return Some(&rule.said.name);
            }
        }
    }

    /// The first policy that speaks of whatever comes, where there is one and no policy has a rule.
    pub(super) fn letting_nobody_in(&self) -> Option<&Arc<str>> {
        let whole = self.policies.iter().find(|policy| policy.scope.is_none());
        whole.filter(|_| self.rules.is_empty()).map(|policy| &policy.name)
    }

    /// The name of the first policy that may speak of what is asked. Whether some request could pass is asked of those that speak of all.
    pub(super) fn speaker(&self, facts: &Facts<'_>) -> Option<&Arc<str>> {
        let speaks = |policy: &&Policy| match facts.what {
            What::Some | What::Bytes => policy.scope.is_none(),
            What::Request(_) => policy.speaks(facts, true),
        };
        self.policies.iter().find(speaks).map(|policy| &policy.name)
    }
}

// === impl Policy ===

impl Policy {
    /// Whether it speaks of what is asked; where it does not `deny`, for sure.
    fn speaks(&self, facts: &Facts<'_>, denies: bool) -> bool {
        let Some(scope) = &self.scope else { return true };
        match facts.what {
            What::Some => !denies,
            What::Bytes => false,
            What::Request(requested) => scope.has(requested, facts.readings.as_ref(), !denies),
        }
    }
}

// === impl Scope ===

impl Scope {
    pub fn new(scopes: &[RouteScope]) -> Self {
        let asks_headers =
            |one: &RequestMatch| one.when.as_ref().is_some_and(|when| !when.headers.is_empty());
        let headless = scopes.iter().flat_map(|scope| &scope.matches).any(asks_headers).then(|| {
            let headless: Vec<_> = scopes.iter().map(without_headers).collect();
            Box::new(table(&headless))
        });
        Self { all: table(scopes), headless }
    }

    /// Whether a request may be one of these, by any way to read its path; where nobody can tell, it may.
    pub fn may_have(&self, asked: &Asked<'_>) -> bool {
        let requested = Requested { asked: *asked, grpc: false, claims: None, headless: false };
        match Readings::of(asked.path) {
            Ok(readings) => self.has(&requested, Some(&readings), false),
            Err(_) => true,
        }
    }

    /// Whether a request is one of these: by each way to read its path, if it must be for sure, else by any. Where its headers are no longer known, what is
    /// asked of them allows, and denies nothing.
    fn has(&self, requested: &Requested<'_>, readings: Option<&Readings<'_>>, for_sure: bool) -> bool {
        let headless = self.headless.as_deref().filter(|_| requested.headless && for_sure);
        let table = headless.unwrap_or(&self.all);
        let found = |asked: &Asked<'_>| match table.find(0, asked) {
            Match::Rule(_) => true,
            Match::NoRoutes | Match::NotFound => false,
            // What is too long to be compared may be one.
            Match::TooLong(_) => !for_sure,
        };
        let asked = requested.asked;
        let read = |path| found(&Asked { path, ..asked });
        match (for_sure, readings) {
            (true, Some(readings)) => found(&asked) && readings.others().all(read),
            (false, Some(readings)) => found(&asked) || readings.all().any(read),
            (_, None) => found(&asked),
        }
    }
}

/// What routes find is a rule of them; which one is all the same here.
fn table(scopes: &[RouteScope]) -> Table {
    let name = ObjectName::new("", "");
    let rule = RoutedRule {
        name: "".into(),
        route: name.clone(),
        label: "".into(),
        kind: RouteKind::Http,
        invalid: None,
        filters: None,
        backends: Box::default(),
        requests: None,
        session: None,
    };
    let rule = Arc::new(rule);
    let routes = scopes.iter().map(|scope| Route {
        name: name.clone(),
        ports: Vec::new(),
        hostnames: scope.hostnames.clone(),
        rules: vec![RouteRule { matches: scope.matches.clone(), rule: Arc::clone(&rule) }],
    });
    let routes = routes.collect();
    Table::new(Routes { client_namespace: "".into(), service: name, routes, streams: Vec::new() })
}

fn without_headers(scope: &RouteScope) -> RouteScope {
    let mut scope = scope.clone();
    for one in &mut scope.matches {
        let when = one.when.take().map(|when| Conditions { headers: Vec::new(), ..Conditions::clone(&when) });
        one.when = when.filter(|when| !when.is_empty()).map(Arc::new);
    }
    scope
}

// === impl Index ===

impl Index {
    /// `None` where it would not help.
    fn new(rules: &[Rule], domain: Option<&TrustDomain>) -> Option<Self> {
        if rules.len() <= INDEXED {
            return None;
        }
        let mut index = Self::default();
        for (number, rule) in (0_u32..).zip(rules) {
            let Some(identities) = only(&rule.said, domain) else {
                index.others.push(number);
                continue;
            };
            for identity in identities {
                let numbers = index.identities.entry(identity).or_default();
                // One that names an identity twice is there once.
                if numbers.last() != Some(&number) {
                    numbers.push(number);
                }
            }
        }
        (!index.identities.is_empty()).then_some(index)
    }

    fn of(&self, identity: Option<&SpiffeId>) -> &[u32] {
        identity.and_then(|identity| self.identities.get(identity)).map_or(&[], |numbers| numbers)
    }
}

/// The only identities that a rule can describe; `None`: it may describe others, or nobody in particular.
fn only(rule: &AccessRule, domain: Option<&TrustDomain>) -> Option<Vec<SpiffeId>> {
    let mut all = Vec::new();
    for source in &rule.from {
        let (texts, prefix) = match domain {
            _ if !source.identities.is_empty() => (&source.identities, None),
            Some(domain) => (&source.service_accounts, Some(domain)),
            None => return None,
        };
        if texts.is_empty() {
            return None;
        }
        for text in texts {
            let Text::Exact(text) = text else { return None };
            let identity = match prefix {
                None => SpiffeId::parse(text),
                Some(domain) => {
                    let (namespace, account) = text.split_once('/')?;
                    SpiffeId::new(domain, namespace, account)
                }
            };
            // What is no identity is nobody's.
            all.extend(identity);
        }
    }
    (!rule.from.is_empty()).then_some(all)
}

// === impl Facts ===

impl Facts<'_> {
    /// Whether a part that looks at requests holds where there is none to look at.
    fn without_request(&self, denies: bool) -> bool {
        match self.what {
            What::Some | What::Request(_) => !denies,
            What::Bytes => denies,
        }
    }

    /// Whether an identity is the mesh's own.
    fn is_own(&self, identity: &SpiffeId) -> bool {
        self.domain.is_none_or(|domain| domain.as_str() == identity.trust_domain_str())
    }
}

fn describes(rule: &AccessRule, facts: &Facts<'_>, denies: bool) -> bool {
    (rule.from.is_empty() || rule.from.iter().any(|source| comes_from(source, facts, denies)))
        && (rule.to.is_empty() || rule.to.iter().any(|operation| asks(operation, facts, denies)))
        && rule.when.iter().all(|condition| holds(condition, facts, denies))
}

fn comes_from(source: &Source, facts: &Facts<'_>, denies: bool) -> bool {
    let identity = facts.identity;
    let own = identity.filter(|identity| facts.is_own(identity));
    let is =
        |texts: &[Text]| identity.is_some_and(|id| texts.iter().any(|text| text.is(id.as_str().as_bytes())));
    let is_of =
        |texts: &[Text]| own.is_some_and(|id| texts.iter().any(|text| text.is(id.namespace().as_bytes())));
    let is_account = |texts: &[Text]| {
        own.is_some_and(|id| texts.iter().any(|text| text.is_pair(id.namespace(), id.service_account())))
    };
    let is_in = |networks: &[ipnet::IpNet]| networks.iter().any(|network| network.contains(&facts.client));
    (!source.any_identity || identity.is_some())
        && (source.identities.is_empty() || is(&source.identities))
        && !is(&source.not_identities)
        && (source.namespaces.is_empty() || is_of(&source.namespaces))
        && !is_of(&source.not_namespaces)
        && (source.service_accounts.is_empty() || is_account(&source.service_accounts))
        && !is_account(&source.not_service_accounts)
        && (source.networks.is_empty() || is_in(&source.networks))
        && !is_in(&source.not_networks)
        && (!source.is_of_requests() || is_for(source, facts, denies))
}

/// Whether the token that came with a request is of whom a source describes.
fn is_for(source: &Source, facts: &Facts<'_>, denies: bool) -> bool {
    let What::Request(requested) = facts.what else { return facts.without_request(denies) };
    let principal = requested.claims.and_then(|claims| Some((claims.issuer(), claims.subject()?)));
    let is = |texts: &[Text]| {
        principal.is_some_and(|(issuer, subject)| texts.iter().any(|text| text.is_pair(issuer, subject)))
    };
    (source.request_principals.is_empty() || is(&source.request_principals))
        && !is(&source.not_request_principals)
}

fn asks(operation: &Operation, facts: &Facts<'_>, denies: bool) -> bool {
    let at_port = (operation.ports.is_empty() || operation.ports.contains(&facts.port))
        && !operation.not_ports.contains(&facts.port);
    if !at_port || !operation.is_of_requests() {
        return at_port;
    }
    let What::Request(requested) = facts.what else { return facts.without_request(denies) };
    // What a rule that denies names it names wherever it may be meant, and excepts only what it is for sure.
    let (named, excepted) = (!denies, denies);
    let hosts = |texts: &[Text], for_sure: bool| match &facts.host {
        Some(host) => texts.iter().any(|text| text.is(host.as_bytes())),
        // Who names no host may reach any.
        None => !for_sure,
    };
    let methods = |methods: &[http::Method], for_sure: bool| {
        let asked = requested.asked.method;
        methods.iter().any(|method| {
            method == asked || (!for_sure && method.as_str().eq_ignore_ascii_case(asked.as_str()))
        })
    };
    let readings = facts.readings.as_ref();
    let paths = |paths: &[path::PathText], for_sure: bool| match readings {
        Some(readings) => path::describe(paths, readings, for_sure),
        None => !for_sure,
    };
    let calls = |methods: &[super::access::GrpcMethod], for_sure: bool| {
        let is = |path: &str| methods.iter().any(|method| method.is(path));
        match readings {
            Some(readings) if for_sure => requested.grpc && readings.all().all(is),
            Some(readings) => readings.all().any(is),
            None => !for_sure,
        }
    };
    (operation.hosts.is_empty() || hosts(&operation.hosts, named))
        && (operation.not_hosts.is_empty() || !hosts(&operation.not_hosts, excepted))
        && (operation.methods.is_empty() || methods(&operation.methods, named))
        && !methods(&operation.not_methods, excepted)
        && (operation.paths.is_empty() || paths(&operation.paths, named))
        && (operation.not_paths.is_empty() || !paths(&operation.not_paths, excepted))
        && (operation.grpc_methods.is_empty() || calls(&operation.grpc_methods, named))
        && (operation.not_grpc_methods.is_empty() || !calls(&operation.not_grpc_methods, excepted))
}

fn holds(condition: &Condition, facts: &Facts<'_>, denies: bool) -> bool {
    let What::Request(requested) = facts.what else { return facts.without_request(denies) };
    let Condition { of, values, not_values } = condition;
    match of {
        Subject::Header(_) if requested.headless => facts.without_request(denies),
        Subject::Header(name) => {
            let asked = &requested.asked;
            let is = |texts: &[Text], for_sure: bool| {
                let fits = |value: &[u8]| texts.iter().any(|text| text.is(value));
                // Several lines are one value (RFC 9110, section 5.3); some applications take one of them.
                asked.with_header(name, |value| value.is_some_and(fits))
                    || (!for_sure && lines(asked.headers, name).any(fits))
            };
            let is_there = || {
                asked.with_header(name, |value| value.is_some())
                    || (denies && lines(asked.headers, name).next().is_some())
            };
            match (values.is_empty(), not_values.is_empty()) {
                (true, true) => is_there(),
                (_, _) => {
                    (values.is_empty() || is(values, !denies))
                        && (not_values.is_empty() || !is(not_values, denies))
                }
            }
        }
        Subject::Claim(path) => {
            let claim = requested.claims.and_then(|claims| claims.at(path.iter().map(|element| &**element)));
            let claim = claim.filter(|claim| !claim.is_null());
            let is_scope = matches!(&**path, [only] if **only == *"scope");
            let is = |texts: &[Text]| claim.is_some_and(|claim| has(claim, texts, is_scope));
            match (values.is_empty(), not_values.is_empty()) {
                (true, true) => claim.is_some(),
                (_, _) => (values.is_empty() || is(values)) && !is(not_values),
            }
        }
    }
}

/// Of a header, and of those that some application takes for it.
fn lines<'a>(headers: &'a HeaderMap, called: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |(name, _)| is_taken_for(name, called)).map(|(_, value)| value.as_bytes())
}

/// Whether a claim, or an element of it where it is a list, is as some of `texts` says. Scopes are words (RFC 8693, section 4.2).
fn has(claim: &Value, texts: &[Text], is_scope: bool) -> bool {
    let fits = |text: &str| texts.iter().any(|one| one.is(text.as_bytes()));
    match claim {
        Value::String(text) => fits(text) || (is_scope && text.split(' ').any(fits)),
        Value::Array(all) => all.iter().any(|one| !one.is_array() && has(one, texts, false)),
        Value::Bool(value) => fits(if *value { "true" } else { "false" }),
        Value::Number(number) => fits(&number.to_string()),
        Value::Null | Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests;
