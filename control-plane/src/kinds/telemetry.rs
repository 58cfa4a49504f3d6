//! TelemetryPolicy, and what it has in common with the Mesh: what proxies tell of requests.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attached::{Duration, SectionTargetRef, WorkloadTargetRef, rule};
use super::status::PolicyStatus;

/// What proxies tell of requests and connections: those of clients of what they follow, those of the workloads behind a Service of
/// what comes to them, and that of a workload of all that it carries.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[kube(
    group = "policy.tulle.dev",
    version = "v1alpha1",
    kind = "TelemetryPolicy",
    plural = "telemetrypolicies",
    namespaced,
    status = "PolicyStatus",
    label("gateway.networking.k8s.io/policy", "Inherited"),
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct TelemetryPolicySpec {
    /// Services, workloads, HTTPRoutes and GRPCRoutes in the policy's own namespace. None: every workload of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<WorkloadTargetRef>", length(max = 16))]
    #[schemars(extend("x-kubernetes-validations" = [
        rule("self.all(a, self.exists_one(b, b.kind == a.kind && b.name == a.name && (has(b.sectionName) ? b.sectionName : '') == (has(a.sectionName) ? a.sectionName : '')))", "each target once")
    ]))]
    pub target_refs: Vec<SectionTargetRef>,
    /// What is logged of them, and how. What it does not say a less specific target's policy says, or else the Mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
    /// Which of their traces are recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<RequestTracing>,
}

/// Which traces of requests are recorded; where they go the Mesh says.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestTracing {
    /// Which are recorded. What it does not say a less specific target's policy says, or else the Mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<RequestSampling>,
}

/// Which traces are recorded. A proxy's own variables (`OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG`) win over it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestSampling {
    /// Of a hundred traces that begin at a proxy with such a request, such as 5 or 0.1: 100 records each, 0 none. Counted to the ten
    /// thousandth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: Option<f64>,
    /// Whether what a request's headers say holds; else `percent` is for all requests, and not only for those that begin a trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_based: Option<bool>,
}

/// What is logged of requests and connections, and how. A proxy's own settings (`TULLE_PROXY_ACCESS_LOG…`) win over it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessLog {
    /// `json`, `apache`, `ecs`, `none`, or a template: a line with names of the JSON form's fields in braces, such as `{status} {path}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub format: Option<String>,
    /// Only what was answered with one of these: a status (`404`), a range (`500-599`) or a class (`5xx`). A call of gRPC counts as what its
    /// status stands for in HTTP. An empty list: nothing, for its status. `all`: whatever its status is, and without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 3, max = 7)))]
    pub statuses: Option<Vec<String>>,
    /// Only what took as long or longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_duration: Option<Duration>,
    /// Only so many of a hundred, such as 5 or 0.1, by chance; all proxies choose the same traces. Counted to the ten thousandth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub sample_percent: Option<f64>,
    /// Whether what a proxy answered, refused or gave up by itself is written whatever else is said here. `Always` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<LoggedErrors>,
}

/// What becomes of what a proxy answered, refused or gave up by itself: `Always`, the default, writes it whatever else is said;
/// `Filtered` only where all conditions describe it.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum LoggedErrors {
    /// It is written.
    Always,
    /// It is written where all conditions describe it.
    Filtered,
}
