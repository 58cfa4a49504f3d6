//! How objects fail to fit together: the part of `tulle check` that no single object can tell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tulle_api::PATTERNS;

use super::policies::Judge;
use super::routes::{attach, beyond_patterns_of, clash, conflicts, resolve};
use super::{Settings, access, modes, policies};
use crate::finding::{Finding, Notes, Origin};
use crate::index::{Behind, Index, Stored};
use crate::object::{
    Filter, Kind, Mesh, NamespacedName, OWN_PORTS, ObjectKey, PolicyTarget, Route, Service, Slice,
    SliceEndpoint,
};

/// Everything that does not fit, sorted.
pub fn findings(index: &Index, settings: &Settings) -> Vec<Finding> {
    let mut all = Vec::new();
    let mut tell = |kind: Kind, name: &NamespacedName, origin: Option<&Origin>, notes: Notes| {
        let key = ObjectKey { kind, name: name.clone() };
        let notes = notes.into_inner().into_iter();
        all.extend(notes.map(|note| Finding::new(note, Some(&key), origin)));
    };
    let trust_domain = settings.trust_domain(index.mesh().map(|stored| &stored.object));
    if let Some(Stored { object, origin }) = index.mesh() {
        let notes = mesh(index, object, settings);
        tell(Kind::Mesh, &object.name, origin.as_ref(), notes);
    }
    let mut virtual_ips = BTreeMap::new();
    for Stored { object, origin } in index.services() {
        let notes = service(object, &mut virtual_ips);
        tell(Kind::Service, &object.name, origin.as_ref(), notes);
    }
    for Stored { object, origin } in index.slices() {
        let notes = slice(index, object);
        tell(Kind::EndpointSlice, &object.name, origin.as_ref(), notes);
    }
    let services = index.services().map(|stored| &stored.object);
    let mut beyond: BTreeMap<ObjectKey, BTreeSet<usize>> = BTreeMap::new();
    for (route, rule) in services.flat_map(|service| beyond_patterns_of(index, service)) {
        beyond.entry(route.key()).or_default().insert(rule);
    }
    for Stored { object, origin } in index.routes() {
        let mut notes = route(index, object);
        for rule in beyond.get(&object.key()).into_iter().flatten() {
            notes.error(
                format!("spec.rules[{rule}].matches"),
                format!(
                    "more than the {PATTERNS} regular expressions that a Service's routes may have: the whole rule is left out, \
                     and a request that only it would match gets 404 `route_not_found`"
                ),
                "use exact values and prefixes where they serve",
            );
        }
        tell(object.kind.into(), &object.name, origin.as_ref(), notes);
    }
    for Stored { object, origin } in index.access_policies() {
        let notes = access::findings(index, object, &trust_domain);
        tell(object.kind, &object.name, origin.as_ref(), notes);
    }
    for Stored { object, origin } in index.egress_policies() {
        let mut notes = Notes::default();
        targets(index, &object.targets, &mut notes);
        tell(Kind::EgressPolicy, &object.name, origin.as_ref(), notes);
    }
    let judge = Judge::new(index);
    for Stored { object, origin } in index.resilience() {
        tell(object.kind, &object.name, origin.as_ref(), policies::findings(&judge, object));
    }
    all.sort();
    all
}

fn mesh(index: &Index, mesh: &Mesh, settings: &Settings) -> Notes {
    let mut notes = Notes::default();
    modes::disagreements_with_mesh(index, mesh.mode(), &mut notes);
    if let (Some(running), Some(written)) = (&settings.trust_domain, &mesh.trust_domain)
        && **running != **written
    {
        notes.error(
            "spec.trustDomain",
            format!("the control plane runs with the trust domain `{running}`, which stays in force"),
            "a trust domain is chosen when the certificate authority is made; write that one here",
        );
    }
    notes
}

fn service<'i>(service: &'i Service, seen: &mut BTreeMap<IpAddr, &'i NamespacedName>) -> Notes {
    let mut notes = Notes::default();
    for address in &service.addresses {
        if let Some(first) = seen.get(address) {
            notes.error(
                "spec.clusterIP",
                format!("{address} is the virtual IP of Service {first} too, which keeps it"),
                "give each Service its own, or none",
            );
        } else {
            seen.insert(*address, &service.name);
        }
    }
    notes
}

fn slice(index: &Index, slice: &Slice) -> Notes {
    let mut notes = Notes::default();
    let Some(service) = index.service(&slice.service) else {
        notes.warn(
            "metadata.labels[\"kubernetes.io/service-name\"]",
            format!("there is no Service {}, so nobody is sent here", slice.service),
            "write the Service, or correct the label",
        );
        return notes;
    };
    let names: BTreeSet<&str> = service.ports.iter().map(|port| port.name.as_str()).collect();
    for (at, (name, _)) in slice.ports.iter().enumerate() {
        if !names.contains(name.as_str()) {
            let called =
                if name.is_empty() { "without a name".to_owned() } else { format!("called `{name}`") };
            notes.error(
                format!("ports[{at}]"),
                format!("Service {} has no port {called}; nobody is sent here", slice.service),
                "a slice's port has the name of the Service's port that it serves",
            );
        }
    }
    // Where no proxy stands, its ports are free: the control plane itself listens on some.
    let is_bare = |one: &SliceEndpoint| match index.behind(one.workload.as_ref(), one.address) {
        Behind::Pod(pod) => !pod.meshed,
        Behind::Unknown => true,
        Behind::Other => false,
    };
    let all_bare = !slice.endpoints.is_empty() && slice.endpoints.iter().all(is_bare);
    for (at, (_, number)) in slice.ports.iter().enumerate() {
        if OWN_PORTS.contains(number) && !all_bare {
            notes.warn(
                format!("ports[{at}].port"),
                format!(
                    "{number} is among the proxy's own ports, where an inbound proxy refuses connections"
                ),
                "let the program listen outside 15000–15090",
            );
        }
    }
    // A Service of UDP ports alone is none of the mesh's business.
    if slice.ports.is_empty() && !service.ports.is_empty() {
        notes.error(
            "ports",
            "the slice has no TCP port, so nobody is sent to its endpoints",
            "list the ports to dial, by the names of the Service's ports",
        );
    }
    notes
}

fn route(index: &Index, route: &Route) -> Notes {
    let mut notes = Notes::default();
    for parent in &route.parents {
        let at = format!("spec.parentRefs[{}]", parent.index);
        match index.service(&parent.service) {
            None => notes.error(
                format!("{at}.name"),
                format!("there is no Service {}; the route is not attached there", parent.service),
                "write the Service, or correct the reference",
            ),
            Some(service) => {
                if let Err(unresolved) = attach(service, parent) {
                    let field = if parent.section.is_some() { "sectionName" } else { "port" };
                    notes.error(format!("{at}.{field}"), unresolved.message, unresolved.hint);
                }
            }
        }
    }
    for parent in &route.parents {
        for (port, other) in conflicts(index, route, parent) {
            notes.error(
                format!("spec.parentRefs[{}]", parent.index),
                format!(
                    "{} {} is attached to port {port} too, where this route does not hold then",
                    other.kind, other.name
                ),
                "routes of one kind for a port: of several, GRPCRoutes hold, then HTTPRoutes, TLSRoutes, TCPRoutes",
            );
        }
    }
    if let Some((rule, clash)) = clash(index, route) {
        notes.error(
            format!("spec.rules[{}].sessionPersistence", rule.index),
            format!("{clash}: the route is not accepted, and every request that one of its rules takes gets 500 `route_invalid`"),
            "remove one of the two",
        );
    }
    for rule in &route.rules {
        let at = format!("spec.rules[{}]", rule.index);
        for backend in &rule.backends {
            if let Err(unresolved) = resolve(index, route, backend) {
                let meanwhile = if route.kind.is_for_streams() {
                    "its share of the connections is refused with `backend_not_found`"
                } else {
                    "its share of the requests gets 500 `backend_not_found`"
                };
                notes.error(
                    format!("{at}.backendRefs[{}]", backend.index),
                    format!("{}: {meanwhile}", unresolved.message),
                    unresolved.hint,
                );
            }
        }
        for filter in &rule.filters {
            if let Filter::Mirror(mirror) = filter
                && let Err(unresolved) = resolve(index, route, &mirror.backend)
            {
                notes.error(
                    format!("{at}.filters[{}].requestMirror.backendRef", mirror.index),
                    format!("{}: nobody gets copies of the requests", unresolved.message),
                    unresolved.hint,
                );
            }
        }
        let redirects = rule.filters.iter().any(|filter| matches!(filter, Filter::Redirect(_)));
        if rule.fault.is_none() && !redirects && rule.backends.iter().all(|backend| backend.weight == 0) {
            let meanwhile = if route.kind.is_for_streams() {
                "no backend takes a connection, so every connection is refused with `route_without_backend`"
            } else {
                "no backend takes a request, so every request gets 500 `route_without_backend`"
            };
            notes.warn(format!("{at}.backendRefs"), meanwhile, "give one a weight above 0");
        }
    }
    notes
}

/// What is not there of what an EgressPolicy is attached to.
fn targets(index: &Index, targets: &[PolicyTarget], notes: &mut Notes) {
    for target in targets.iter().filter(|target| index.service(&target.service).is_none()) {
        notes.error(
            format!("spec.targetRefs[{}].name", target.index),
            format!("there is no Service {}; the policy is not attached there", target.service),
            "write the Service, or correct the reference",
        );
    }
}
