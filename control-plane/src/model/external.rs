//! ExternalAuthorizations, as the proxy of a workload is told of them.
//!
//! Whoever asks comes to an authorizer as any other client does. Were its proxy told to ask about that too, two authorizers would ask about each
//! other without end: about the ports behind the Services that such policies name, nobody is asked, by none of the policies that
//! speak of all ports, or of these among others. A policy whose Service may not be asked takes no port out.

use std::collections::BTreeSet;

use tulle_api::v1;

use super::build::{Context, Serving};
use super::targets::spoken;
use crate::finding::Notes;
use crate::index::Index;
use crate::object::{Access, External, Kind, NamespacedName, Protocol};

// === impl Context ===

impl Context<'_> {
    /// Who is asked about requests to a workload that serves these. A policy is there once for each place where it speaks of them.
    pub(super) fn external(
        &self,
        workload: &NamespacedName,
        serving: &[Serving],
    ) -> Vec<v1::ExternalAuthorization> {
        let mut all: Vec<v1::ExternalAuthorization> = Vec::new();
        let mut listening: Option<BTreeSet<u16>> = None;
        for one in spoken(self.index, workload, serving, Kind::ExternalAuthorization) {
            let Some(says) = one.policy.external() else { continue };
            let listening = listening.get_or_insert_with(|| authorizers(self.index, serving));
            let ports = one.ports_on_the_wire();
            let asked: Vec<u32> = ports
                .iter()
                .copied()
                .filter(|port| !listening.iter().any(|own| u32::from(*own) == *port))
                .collect();
            if !ports.is_empty() && asked.is_empty() {
                continue;
            }
            let not_ports = if ports.is_empty() {
                listening.iter().copied().map(u32::from).collect()
            } else {
                Vec::new()
            };
            let mut told = v1::ExternalAuthorization {
                ports: asked,
                not_ports,
                routes: one.routes.clone(),
                ..says.wire.clone()
            };
            if let Some((_, why, _)) = unresolved(self.index, one.policy, says) {
                told.invalid = why;
            }
            if !all.contains(&told) {
                all.push(told);
            }
        }
        all
    }
}

/// The ports of a workload behind which authorizers listen.
fn authorizers(index: &Index, serving: &[Serving]) -> BTreeSet<u16> {
    let policies = index.access_policies().map(|stored| &stored.object);
    let policies = policies.filter_map(|policy| Some((policy, policy.external()?)));
    let asked: BTreeSet<(&NamespacedName, u16)> = policies
        .filter(|(policy, says)| unresolved(index, policy, says).is_none())
        .filter_map(|(_, says)| Some((says.service.as_ref()?, says.port)))
        .collect();
    let behind = serving
        .iter()
        .filter(|one| one.service_port.is_some_and(|number| asked.contains(&(&one.service, number))));
    behind.map(|one| one.port).collect()
}

/// Why nobody can be asked by a policy: the field, in words, and what to do; none where somebody can.
pub(super) fn unresolved(
    index: &Index,
    policy: &Access,
    says: &External,
) -> Option<(&'static str, String, &'static str)> {
    let Some(name) = &says.service else {
        return Some(("", says.wire.invalid.clone(), ""));
    };
    let namespace = &policy.name.namespace;
    if name.namespace != *namespace && !index.is_granted(Kind::ExternalAuthorization, namespace, name) {
        return Some((
            "namespace",
            format!("ExternalAuthorizations in namespace {namespace} may not refer to Service {name}"),
            "a ReferenceGrant in the Service's namespace allows it, `from` the group policy.tulle.dev",
        ));
    }
    let Some(service) = index.service(name) else {
        return Some((
            "name",
            format!("there is no Service {name}"),
            "write the Service, or correct the reference",
        ));
    };
    if let Some(external) = &service.external_name {
        return Some((
            "name",
            format!("Service {name} is another name for `{external}`, and has no endpoints"),
            "refer to a Service that has endpoints",
        ));
    }
    let missing = service.port(says.port).is_none();
    missing.then(|| {
        ("port", format!("Service {name} has no port {}", says.port), "refer to one of the Service's ports")
    })
}

/// What becomes of requests meanwhile.
pub(super) fn meanwhile(says: &External) -> &'static str {
    match (says.wire.dry_run, says.wire.failure_allows) {
        (true, _) => "nothing is told of requests but that nobody can be asked",
        (false, true) => "every request goes on",
        (false, false) => "every request is refused with 503 `authorizer_unavailable`",
    }
}

/// What is wrong with what a policy says.
pub(super) fn findings(index: &Index, policy: &Access, says: &External, notes: &mut Notes) {
    // What cannot be read is told where it is.
    if says.service.is_none() {
        return;
    }
    if let Some((field, message, hint)) = unresolved(index, policy, says) {
        notes.error(format!("spec.service.{field}"), format!("{message}: {}", meanwhile(says)), hint);
    }
    for target in policy.targets.iter().filter(|target| target.object.kind == Kind::Service) {
        let at = format!("spec.targetRefs[{}]", target.index);
        let Some(service) = index.service(&target.object.name) else { continue };
        let is_own = |number: u16| says.service.as_ref() == Some(&service.name) && number == says.port;
        let ports: Vec<_> = service.ports.iter().filter(|port| target.is_about(&port.name)).collect();
        if ports.iter().any(|port| is_own(port.number)) {
            notes.warn(
                at.as_str(),
                format!(
                    "port {} of {} is the authorizer's own: nobody is asked about requests to it",
                    says.port, target.object
                ),
                "say by an AuthorizationPolicy who may ask the authorizer",
            );
        }
        let is_opaque = !ports.is_empty()
            && ports.iter().all(|port| matches!(port.protocol, Protocol::Tcp | Protocol::Tls));
        if is_opaque {
            notes.warn(
                at,
                "nobody is asked there: no port is HTTP, by what the Service declares",
                "declare what the port speaks, by `appProtocol`, or attach the policy to another",
            );
        }
    }
}
