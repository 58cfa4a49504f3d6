//! What control planes write of a policy's state where there is an API server. Nothing of it is read from a folder.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What has become of the policy, at each of its targets (GEP-713).
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
pub struct PolicyStatus {
    /// One for each target and control plane.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub ancestors: Vec<PolicyAncestorStatus>,
}

/// What has become of it at one target.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyAncestorStatus {
    /// The target.
    pub ancestor_ref: PolicyAncestorRef,
    /// Who says so, a domain and a path.
    #[schemars(length(min = 1, max = 253))]
    pub controller_name: String,
    /// `Accepted`, and `Programmed` where it is.
    #[schemars(
        length(min = 1, max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

/// A target, as it is referred to.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyAncestorRef {
    /// Empty for a Service or a namespace.
    #[schemars(length(max = 253))]
    pub group: String,
    /// `Service`, `HTTPRoute`, `GRPCRoute` or `Workload`; `Namespace` where the policy names no target.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Of the target; absent where that is a namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Of the target.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// A port of the Service, or a rule of the route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
}
