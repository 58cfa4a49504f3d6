//! RateLimitPolicy.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attached::{Duration, HeaderMatch, Present, SectionTargetRef, not_zero, rule};
use super::authorization::PolicyMode;
use super::status::PolicyStatus;

/// How often requests may be sent. Each proxy counts by itself.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[kube(
    group = "policy.tulle.dev",
    version = "v1alpha1",
    kind = "RateLimitPolicy",
    plural = "ratelimitpolicies",
    namespaced,
    status = "PolicyStatus",
    label("gateway.networking.k8s.io/policy", "Inherited"),
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("!has(self.direction) || self.direction != 'Inbound' || self.targetRefs.all(t, t.kind == 'Service')", "what follows a route is counted by clients: direction Outbound")
]))]
pub struct RateLimitPolicySpec {
    /// Services, HTTPRoutes and GRPCRoutes in the policy's own namespace.
    #[schemars(length(min = 1, max = 16))]
    #[schemars(extend("x-kubernetes-validations" = [
        rule("self.all(a, self.exists_one(b, b.kind == a.kind && b.name == a.name && (has(b.sectionName) ? b.sectionName : '') == (has(a.sectionName) ? a.sectionName : '')))", "each target once")
    ]))]
    pub target_refs: Vec<SectionTargetRef>,
    /// Who counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// All of them hold.
    #[schemars(length(min = 1, max = 16))]
    pub limits: Vec<RateLimit>,
}

/// Who counts: `Inbound`, the proxy of each workload behind the Service, whoever its clients are; or `Outbound`, the proxy of each
/// client, for itself. By default `Inbound` for a Service, and `Outbound` for a route, which can have no other.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
pub enum Direction {
    /// The proxy of each workload behind the Service, whoever its clients are.
    Inbound,
    /// The proxy of each client, for itself.
    Outbound,
}

/// How often some requests may be sent.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("has(self.by) || !has(self.overrides) || self.overrides.size() == 0", "overrides need by, which tells requests apart")
]))]
pub struct RateLimit {
    /// Shown in logs and metrics; the limit's index by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Only requests that have all of these; all requests by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// What has a count of its own, exactly one of these; all requests are counted together by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<CountBy>,
    /// How often.
    pub rate: Rate,
    /// Rates for some of the identities or values that `by` tells apart. Of several with the same, the first holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub overrides: Vec<RateOverride>,
    /// `DryRun`: what the limit would have refused is told, and not refused. `Enforce` by default.
    #[serde(default)]
    pub mode: PolicyMode,
}

/// What has a count of its own: exactly one of these.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("[has(self.identity), has(self.header)].exists_one(one, one)", "exactly one of identity and header")
]))]
pub struct CountBy {
    /// Each client's identity, `{}`; clients without one are counted together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Present>,
    /// Each value of a header; requests without it are counted together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

/// `requests` in each `per`, evenly spread but for a burst (GCRA).
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("duration(self.per) <= duration('0s') || int(self.requests) <= duration(self.per).getMilliseconds() * 1000000", "at most one request each nanosecond of per")
]))]
pub struct Rate {
    /// How many; at most one each nanosecond of `per` (1000000 in `1ms`).
    #[schemars(range(min = 1))]
    pub requests: i32,
    /// Within how long.
    #[serde(default = "one_second")]
    #[schemars(extend("x-kubernetes-validations" = [not_zero()]))]
    pub per: Duration,
    /// How many at once; `requests` by default, so that a client which was silent for `per` may send a whole `per`'s worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub burst: Option<i32>,
}

/// Another rate for some.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateOverride {
    /// Identities, each a SPIFFE ID or `<namespace>/<service account>`, or values of the header. Each still has a count of
    /// its own.
    #[schemars(length(min = 1, max = 256))]
    pub values: Vec<String>,
    /// In place of the limit's `rate`.
    pub rate: Rate,
}

fn one_second() -> Duration {
    Duration::of("1s")
}
