//! What a policy is attached to that is about what comes in at workloads.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::attached::rule;

/// Of a list of [`AccessTargetRef`]s: none of those that have a name is there twice.
pub(super) fn once() -> Value {
    rule(
        "self.all(a, a.name == '' || self.exists_one(b, b.kind == a.kind && b.name == a.name && (has(b.sectionName) ? b.sectionName : '') == (has(a.sectionName) ? a.sectionName : '')))",
        "each target once",
    )
}

/// What a policy is attached to that is about what comes in at workloads (GEP-713).
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self.kind == 'Service' ? self.group in ['', 'core'] : self.kind == 'Workload' ? self.group == 'policy.tulle.dev' : self.kind in ['HTTPRoute', 'GRPCRoute'] && self.group == 'gateway.networking.k8s.io'",
        "a Service of the group \"\", a Workload of the group policy.tulle.dev, or an HTTPRoute or a GRPCRoute of the group gateway.networking.k8s.io"
    ),
    rule(
        "self.kind == 'Workload' ? (self.name == '') == has(self.selector) : self.name != '' && !has(self.selector)",
        "a name; of a Workload, a name or a selector"
    ),
    rule(
        "self.kind != 'Workload' || !has(self.sectionName) || self.sectionName == ''",
        "a Workload has no sections"
    ),
]))]
pub struct AccessTargetRef {
    /// The API group: empty for a Service, `policy.tulle.dev` for workloads, `gateway.networking.k8s.io` for a route.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub group: String,
    /// `Service`, `Workload`, `HTTPRoute` or `GRPCRoute`.
    #[schemars(length(max = 63))]
    pub kind: String,
    /// The name, in the policy's own namespace; a workload's is that by which its proxy calls itself. Empty where there is a `selector`.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub name: String,
    /// The name of one of the Service's ports, or of one of the route's rules; all of them by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub section_name: Option<String>,
    /// In place of a name: all workloads of the namespace whose Pods have these labels. Nothing but a Pod has labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// Of other kinds' references, and not of this one: read so that nobody is attached elsewhere than they think.
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub namespace: Option<String>,
}

/// Which workloads of a namespace.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSelector {
    /// Labels that a Pod must have, all of them, such as `app: orders`.
    #[schemars(extend(
        "minProperties" = 1,
        "maxProperties" = 16,
        "additionalProperties" = json!({ "type": "string", "maxLength": 63 })
    ))]
    pub match_labels: BTreeMap<String, String>,
}
