//! `EgressPolicy`: what each workload may reach outside the mesh. Pure, total and deterministic.
//!
//! Built once for the mesh, for each namespace that has policies for every workload, and for each workload that has
//! policies by a Service besides; [`Model::get`](super::Model::get) gives a workload the narrowest.

use std::collections::BTreeSet;
use std::sync::Arc;

use tulle_api::{MESH, ResourceType, v1};

use super::Encoded;
use super::build::{Context, encode};
use crate::kinds::EgressAction;
use crate::object::{Egress, NamespacedName};

// === impl Context ===

impl Context<'_> {
    /// For workloads of whom no policy speaks.
    pub(super) fn egress_of_mesh(&self) -> Encoded {
        Encoded::new(ResourceType::EgressPolicy, &self.egress(&[]))
    }

    /// For the workloads of a namespace; none where no policy is for all of them.
    pub(super) fn egress_of_namespace(&self, namespace: &str) -> Option<Arc<Encoded>> {
        let policies: Vec<&Egress> = self.index.egress_of_namespace(namespace).collect();
        if policies.is_empty() {
            return None;
        }
        encode(ResourceType::EgressPolicy, &self.egress(&policies))
    }

    /// For one workload; none where no policy speaks of a Service that it is behind.
    pub(super) fn egress_of_workload(&self, name: &NamespacedName) -> Option<Arc<Encoded>> {
        let registered = self.index.registrations_of_workload(name).flat_map(|known| known.services());
        let listed = self.index.slices_of_workload(name).map(|slice| &slice.service);
        let services: BTreeSet<&NamespacedName> = registered.chain(listed).collect();
        let own = services.into_iter().flat_map(|service| self.index.egress_of(service));
        let own = own.filter(|policy| policy.name.namespace == name.namespace);
        let own: BTreeSet<&NamespacedName> = own.map(|policy| &policy.name).collect();
        if own.is_empty() {
            return None;
        }
        let own = own.into_iter().filter_map(|policy| self.index.egress_policy(policy));
        let policies: Vec<&Egress> = self.index.egress_of_namespace(&name.namespace).chain(own).collect();
        encode(ResourceType::EgressPolicy, &self.egress(&policies))
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
        v1::EgressPolicy { action: action(default).into(), action_name, rules: rules.collect() }
    }
}

fn action(action: EgressAction) -> v1::EgressAction {
    match action {
        EgressAction::Allow => v1::EgressAction::Allow,
        EgressAction::Audit => v1::EgressAction::Audit,
        EgressAction::Deny => v1::EgressAction::Deny,
    }
}
