//! FaultPolicy.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attached::{Duration, GrpcCode, HeaderMatch, SectionTargetRef, not_zero, rule};
use super::status::PolicyStatus;

/// What goes wrong on purpose: each client's proxy holds or answers a share of the requests, each of their tries by itself.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[kube(
    group = "policy.tulle.dev",
    version = "v1alpha1",
    kind = "FaultPolicy",
    plural = "faultpolicies",
    namespaced,
    status = "PolicyStatus",
    label("gateway.networking.k8s.io/policy", "Inherited"),
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct FaultPolicySpec {
    /// Services, HTTPRoutes and GRPCRoutes in the policy's own namespace.
    #[schemars(length(min = 1, max = 16))]
    #[schemars(extend("x-kubernetes-validations" = [
        rule("self.all(a, self.exists_one(b, b.kind == a.kind && b.name == a.name && (has(b.sectionName) ? b.sectionName : '') == (has(a.sectionName) ? a.sectionName : '')))", "each target once")
    ]))]
    pub target_refs: Vec<SectionTargetRef>,
    /// The first that describes a request holds.
    #[schemars(length(min = 1, max = 16))]
    pub rules: Vec<FaultRule>,
}

/// What goes wrong with some requests: at least one of `delay` and `abort`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("has(self.delay) || has(self.abort)", "at least one of delay and abort")
]))]
pub struct FaultRule {
    /// Shown in logs and metrics; the rule's index by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Only requests that have all of these; all requests by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// Some are held. At least one of `delay` and `abort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// Some are answered, and sent nowhere; chosen by themselves, after the delay. Exactly one of `httpStatus` and `grpcStatus`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
}

/// Requests are held.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Delay {
    /// Of a hundred requests, such as 5 or 0.1; counted to the ten thousandth.
    #[serde(default = "hundred")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: f64,
    /// How long.
    #[schemars(extend("x-kubernetes-validations" = [not_zero()]))]
    pub duration: Duration,
}

/// Requests are answered: exactly one of `httpStatus` and `grpcStatus`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("[has(self.httpStatus), has(self.grpcStatus)].exists_one(one, one)", "exactly one of httpStatus and grpcStatus")
]))]
pub struct Abort {
    /// Of a hundred requests, such as 5 or 0.1; counted to the ten thousandth.
    #[serde(default = "hundred")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: f64,
    /// With this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 200, max = 599))]
    pub http_status: Option<i32>,
    /// With this status of gRPC; requests that are not gRPC get the status of HTTP that stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<GrpcCode>,
}

fn hundred() -> f64 {
    100.0
}
