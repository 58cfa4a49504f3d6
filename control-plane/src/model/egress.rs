//! `EgressPolicy`: what each workload may reach outside the mesh. Pure, total and deterministic.
//!
//! Built for the mesh, for each namespace that has policies for every workload (both once for workloads that are registered
//! and once for others), and for each workload that has policies by a Service besides;
//! [`Model::get`](super::Model::get) gives a workload the narrowest.

use std::collections::BTreeSet;
use std::sync::Arc;

use tulle_api::{MESH, ResourceType, v1};

use super::Encoded;
use super::build::{Context, encode};
use crate::kinds::EgressAction;
use crate::object::{Egress, NamespacedName};

/// What is the same for many workloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shared {
    /// For those that are registered.
    registered: Arc<Encoded>,
    /// For all others, known or not.
    pub(super) other: Arc<Encoded>,
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(policy: v1::EgressPolicy) -> Self {
        let encode = |policy: &v1::EgressPolicy| Arc::new(Encoded::new(ResourceType::EgressPolicy, policy));
        let other = encode(&policy);
        Self { registered: encode(&v1::EgressPolicy { registered: true, ..policy }), other }
    }
}

// === impl Context ===

impl Context<'_> {
    /// For workloads of whom no policy speaks.
    pub(super) fn egress_of_mesh(&self) -> Shared {
        Shared::new(self.egress(&[]))
    }

    /// For the workloads of a namespace; none where no policy is for all of them.
    pub(super) fn egress_of_namespace(&self, namespace: &str) -> Option<Shared> {
        let policies: Vec<&Egress> = self.index.egress_of_namespace(namespace).collect();
        (!policies.is_empty()).then(|| Shared::new(self.egress(&policies)))
    }

    /// For one workload, where `shared` is for all of its namespace; none where it is not registered and no policy speaks of a
    /// Service that it is behind.
    pub(super) fn egress_of_workload(&self, name: &NamespacedName, shared: &Shared) -> Option<Arc<Encoded>> {
        let is_registered = self.index.registrations_of_workload(name).next().is_some();
        let registered = self.index.registrations_of_workload(name).flat_map(|known| known.services());
        // Nobody reads what a Pod without a proxy is told.
        let is_bare = self.index.is_bare(name);
        let listed = self.index.slices_of_workload(name).filter(|_| !is_bare).map(|slice| &slice.service);
        let pods = self.index.pod(name).filter(|pod| pod.meshed).into_iter();
        let selecting = pods.flat_map(|pod| self.index.services_selecting(pod)).map(|service| &service.name);
        let services: BTreeSet<&NamespacedName> = registered.chain(listed).chain(selecting).collect();
        let own = services.into_iter().flat_map(|service| self.index.egress_of(service));
        let own = own.filter(|policy| policy.name.namespace == name.namespace);
        let own: BTreeSet<&NamespacedName> = own.map(|policy| &policy.name).collect();
        if own.is_empty() {
            return is_registered.then(|| Arc::clone(&shared.registered));
        }
        let own = own.into_iter().filter_map(|policy| self.index.egress_policy(policy));
        let policies: Vec<&Egress> = self.index.egress_of_namespace(&name.namespace).chain(own).collect();
        let policy = v1::EgressPolicy { registered: is_registered, ..self.egress(&policies) };
        encode(ResourceType::EgressPolicy, &policy)
    }

    /// All of these together.
    fn egress(&self, policies: &[&Egress]) -> v1::EgressPolicy {
        let said = policies.iter().filter_map(|policy| Some((policy.action?, policy.name.to_string())));
        // Of two that say the same, the first by name is the one that is told.
        let said = said.reduce(|held, said| if said.0 > held.0 { said } else { held });
        let mesh = || {
            (self.index.mesh().map_or_else(EgressAction::default, |mesh| mesh.object.egress), MESH.to_owned())
        };
        let (default, action_name) = said.unwrap_or_else(mesh);
        let rules = policies.iter().flat_map(|policy| {
            policy.rules.iter().map(|rule| v1::EgressRule {
                name: format!("{}/{}", policy.name, rule.name),
                action: action(rule.action).into(),
                networks: rule.networks.iter().map(ToString::to_string).collect(),
                ports: rule.ports.iter().copied().map(u32::from).collect(),
                sni: rule.sni.clone(),
                hosts: rule.hosts.clone(),
            })
        });
        v1::EgressPolicy {
            action: action(default).into(),
            action_name,
            rules: rules.collect(),
            registered: false,
        }
    }
}

fn action(action: EgressAction) -> v1::EgressAction {
    match action {
        EgressAction::Allow => v1::EgressAction::Allow,
        EgressAction::Audit => v1::EgressAction::Audit,
        EgressAction::Deny => v1::EgressAction::Deny,
    }
}
