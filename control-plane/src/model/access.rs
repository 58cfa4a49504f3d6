//! What GEP-713 says of the state of AuthorizationPolicies and EgressPolicies: conditions, for each target.
//!
//! Pure, and silent of policies that are refused, as [`super::policies`].

use super::policies::{AncestorRef, AncestorStatus, PolicyStatus};
use super::status::Condition;
use crate::index::Index;
use crate::object::{Kind, NamespacedName, PolicyTarget};

/// The state of every AuthorizationPolicy, then of every EgressPolicy.
pub fn access_statuses(index: &Index) -> Vec<PolicyStatus> {
    let authorization = index.policies().map(|stored| {
        let policy = &stored.object;
        of(index, Kind::AuthorizationPolicy, &policy.name, policy.generation, &policy.targets)
    });
    let egress = index.egress_policies().map(|stored| {
        let policy = &stored.object;
        of(index, Kind::EgressPolicy, &policy.name, policy.generation, &policy.targets)
    });
    authorization.chain(egress).collect()
}

fn of(
    index: &Index,
    kind: Kind,
    name: &NamespacedName,
    generation: Option<i64>,
    targets: &[PolicyTarget],
) -> PolicyStatus {
    let mut ancestors: Vec<AncestorStatus> = targets.iter().map(|target| at(index, target)).collect();
    if kind == Kind::EgressPolicy && targets.is_empty() {
        let ancestor_ref = AncestorRef {
            group: "",
            kind: Kind::Namespace.as_str(),
            namespace: String::new(),
            name: name.namespace.to_string(),
            section_name: None,
        };
        ancestors.push(AncestorStatus { ancestor_ref, conditions: vec![accepted()] });
    }
    PolicyStatus {
        kind: kind.to_string(),
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        ancestors,
        generation,
    }
}

fn at(index: &Index, target: &PolicyTarget) -> AncestorStatus {
    let condition = if index.service(&target.service).is_some() {
        accepted()
    } else {
        Condition {
            condition: "Accepted",
            status: "False",
            reason: "TargetNotFound",
            message: format!("there is no Service {}", target.service),
        }
    };
    let ancestor_ref = AncestorRef {
        group: "",
        kind: Kind::Service.as_str(),
        namespace: target.service.namespace.to_string(),
        name: target.service.name.to_string(),
        section_name: None,
    };
    AncestorStatus { ancestor_ref, conditions: vec![condition] }
}

fn accepted() -> Condition {
    Condition { condition: "Accepted", status: "True", reason: "Accepted", message: String::new() }
}
