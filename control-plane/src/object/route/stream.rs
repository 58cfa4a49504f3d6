//! TLSRoute and TCPRoute, as written: where whole connections go.

use gateway_api::experimental::tcproutes::TcpRoute;
use gateway_api::experimental::tlsroutes::TlsRoute;

use super::{
    Fault, Match, Route, RouteKind, Rule, WrittenBackend, WrittenParent, at_most, check_rule_names, created,
    read_backends, read_hostnames, read_parents, written_parents,
};
use crate::finding::Notes;
use crate::object::NamespacedName;

/// How many rules a TCPRoute may have.
const MAX_TCP_RULES: usize = 16;
/// How many host names and rules a TLSRoute may have.
const MAX_TLS_LIST: usize = 4096;

/// The generated types differ by name only.
macro_rules! written_rules {
    ($rules:expr) => {
        $rules.iter().map(|rule| {
            let backends = rule.backend_refs.iter().map(|one| WrittenBackend {
                group: one.group.as_deref(),
                kind: one.kind.as_deref(),
                namespace: one.namespace.as_deref(),
                name: &one.name,
                port: one.port,
                weight: one.weight,
                filters: Vec::new(),
            });
            (rule.name.as_deref(), backends.collect())
        })
    };
}

impl Route {
    pub(in super::super) fn read_tls(object: &TlsRoute, notes: &mut Notes) -> Self {
        let name = NamespacedName::of(&object.metadata);
        let spec = &object.spec;
        let parents = read_parents(&name, written_parents!(spec.parent_refs), notes);
        at_most(MAX_TLS_LIST, spec.hostnames.len(), "spec.hostnames", notes);
        at_most(MAX_TLS_LIST, spec.rules.len(), "spec.rules", notes);
        if spec.hostnames.is_empty() {
            notes.refuse(
                "spec.hostnames",
                "no server name is said, so the route would take no connection",
                "name the servers, such as `db.example.com` or `*.example.com`; a TCPRoute takes every connection",
            );
        }
        Self {
            kind: RouteKind::Tls,
            created: created(&object.metadata),
            generation: object.metadata.generation,
            parents,
            server_names: read_hostnames("spec.hostnames", &spec.hostnames, notes),
            rules: read_rules(&name, written_rules!(spec.rules).collect(), notes),
            name,
        }
    }

    pub(in super::super) fn read_tcp(object: &TcpRoute, notes: &mut Notes) -> Self {
        let name = NamespacedName::of(&object.metadata);
        let spec = &object.spec;
        let parents = read_parents(&name, written_parents!(spec.parent_refs), notes);
        at_most(MAX_TCP_RULES, spec.rules.len(), "spec.rules", notes);
        Self {
            kind: RouteKind::Tcp,
            created: created(&object.metadata),
            generation: object.metadata.generation,
            parents,
            server_names: Vec::new(),
            rules: read_rules(&name, written_rules!(spec.rules).collect(), notes),
            name,
        }
    }
}

fn read_rules(
    route: &NamespacedName,
    rules: Vec<(Option<&str>, Vec<WrittenBackend<'_>>)>,
    notes: &mut Notes,
) -> Vec<Rule> {
    check_rule_names(rules.iter().map(|(name, _)| *name), notes);
    if rules.is_empty() {
        notes.refuse("spec.rules", "there is no rule", "write one, with `backendRefs`");
    }
    let mut read = Vec::with_capacity(rules.len());
    for (index, (name, backends)) in rules.into_iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        if index > 0 {
            notes.warn(
                at.as_str(),
                "takes no connection: nothing tells its connections from those of the first rule",
                "one rule; weights divide connections among its backends",
            );
        }
        if backends.is_empty() {
            notes.refuse(format!("{at}.backendRefs"), "there is no backend", "name at least one Service");
        }
        read.push(Rule {
            index,
            name: name.unwrap_or_default().to_owned(),
            matches: vec![Match::default()],
            filters: Vec::new(),
            backends: read_backends(route, &at, &[], backends.into_iter(), notes),
            request_timeout: None,
            backend_request_timeout: None,
            retry: None,
            session: None,
            fault: None::<Fault>,
        });
    }
    read
}
