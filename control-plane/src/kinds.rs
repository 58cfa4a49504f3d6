//! The kinds that are ours, as people write them: API group `policy.tulle.dev/v1alpha1`.
//!
//! Holds types and their documentation only; the same text becomes the custom resource definitions. What the
//! fields mean to a proxy is decided in [`crate::object`] and [`crate::model`].

mod attached;
mod authorization;
mod external_authorization;
mod fault;
mod peer_authentication;
mod rate_limit;
mod request_authentication;
mod status;
mod target;
mod telemetry;
mod traffic;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResource, CustomResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::attached::rule;
pub use self::attached::{Duration, GrpcCode, HeaderMatch, MatchType, Present, SectionTargetRef};
pub use self::authorization::{
    AuthorizationPolicy, AuthorizationPolicySpec, PolicyAction, PolicyCondition, PolicyMode, PolicyOperation,
    PolicyRule, PolicySource,
};
pub use self::external_authorization::{
    AnswerCache, AuthorizerRef, ExternalAuthorization, ExternalAuthorizationSpec, FailureMode, ToldBody,
};
pub use self::fault::{Abort, Delay, FaultPolicy, FaultPolicySpec, FaultRule};
pub use self::peer_authentication::{PeerAuthentication, PeerAuthenticationSpec};
pub use self::rate_limit::{
    CountBy, Direction, Rate, RateLimit, RateLimitPolicy, RateLimitPolicySpec, RateOverride,
};
pub use self::request_authentication::{
    ClaimHeader, Jwks, JwksService, RequestAuthentication, RequestAuthenticationSpec, TokenIssuer, TokenPlace,
};
pub use self::status::{PolicyAncestorRef, PolicyAncestorStatus, PolicyStatus};
pub use self::target::{AccessTargetRef, WorkloadSelector};
pub use self::telemetry::{
    AccessLog, LoggedErrors, RequestSampling, RequestTracing, TelemetryPolicy, TelemetryPolicySpec,
};
pub use self::traffic::{
    Algorithm, Backoff, Connections, FailurePercentage, GrpcHealthCheck, HashOn, HealthCheck,
    HttpHealthCheck, KeepAlive, Limits, LoadBalancer, OutlierDetection, Retry, RetryBudget, RetryCause,
    RetryRate, SuccessRate, Timeouts, TrafficPolicy, TrafficPolicySpec, WarmUp, Zones,
};

/// What the whole mesh shares. There is one, named `mesh`; without it every field has its default.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[kube(
    group = "policy.tulle.dev",
    version = "v1alpha1",
    kind = "Mesh",
    plural = "meshes",
    validation = Rule::new("self.metadata.name == 'mesh'").message("there is one Mesh, named mesh"),
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct MeshSpec {
    /// Whether connections between workloads of the mesh must be mutually authenticated. `permissive` by default.
    #[serde(default)]
    pub mtls: Mtls,
    /// The trust domain of every identity in the mesh; `cluster.local` by default. It is read when the control
    /// plane starts; changing it needs a restart and new certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    /// CIDR blocks where workloads and virtual IPs of the mesh live. An address in them that cannot be resolved
    /// is refused rather than passed through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// What becomes of destinations outside the mesh where no EgressPolicy says so. `allow` by default.
    #[serde(default)]
    pub egress: EgressAction,
    /// Where the proxies send traces, and which; without it nothing is traced. A proxy's own variables (`OTEL_…`) win.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<Tracing>,
    /// What proxies log of requests and connections, where no TelemetryPolicy says it: all of them, as JSON, by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
}

/// Distributed tracing, by OTLP.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tracing {
    /// The collector's address, such as `http://otel-collector.observability:4317`. Over HTTP, `/v1/traces` is added to it.
    pub collector: String,
    /// How OTLP is spoken. `http/protobuf` by default where the collector's port is 4318, else `grpc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<OtlpProtocol>,
    /// Which traces are recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
    /// Whether connections that carry no HTTP are traced too, each as a trace of its own. `false` by default.
    #[serde(default)]
    pub connections: bool,
}

/// How OTLP is spoken. `http/protobuf` by default where the collector's port is 4318, else `grpc`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum OtlpProtocol {
    /// gRPC.
    #[serde(rename = "grpc")]
    Grpc,
    /// HTTP, bodies of protobuf.
    #[serde(rename = "http/protobuf")]
    Http,
}

/// Which traces are recorded.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sampling {
    /// Of a hundred traces that begin at a proxy, such as 1 or 0.1; counted to the ten thousandth.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: f64,
    /// Whether what a request's headers say holds; else each proxy goes by `percent` alone. `true` by default.
    #[serde(default = "yes")]
    pub parent_based: bool,
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

/// What becomes of a destination outside the mesh.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EgressAction {
    /// It may be reached.
    #[default]
    Allow,
    /// It may be reached; each connection or request is counted and logged.
    Audit,
    /// It may not be reached.
    Deny,
}

/// How plaintext is treated.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mtls {
    /// Mutual TLS between workloads of the mesh; plaintext from others is accepted.
    #[default]
    Permissive,
    /// Mutual TLS or nothing.
    Strict,
    /// Plaintext everywhere.
    Off,
}

/// What a policy is attached to.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTargetRef {
    /// The API group; empty for a Service.
    #[serde(default)]
    pub group: String,
    /// `Service`.
    pub kind: String,
    /// The name, in the policy's own namespace.
    pub name: String,
    /// Of other kinds' references, and not of this one: read so that nobody is attached elsewhere than they think.
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub namespace: Option<String>,
}

/// What workloads may reach outside the mesh. Of several rules that describe a destination, whichever policy they are
/// of, the strictest holds: deny over audit over allow.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[kube(
    group = "policy.tulle.dev",
    version = "v1alpha1",
    kind = "EgressPolicy",
    plural = "egresspolicies",
    namespaced,
    status = "PolicyStatus",
    label("gateway.networking.k8s.io/policy", "Inherited"),
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct EgressPolicySpec {
    /// Services in the policy's own namespace (GEP-713): the policy is for the workloads behind them. None: for every
    /// workload of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-validations" = [
        rule("self.all(t, t.group == '' && t.kind == 'Service')", "Services of the group \"\"")
    ]))]
    pub target_refs: Vec<PolicyTargetRef>,
    /// What becomes of destinations that no rule describes. Of several policies the strictest holds; where none says
    /// it, the Mesh's `egress`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<EgressAction>,
    /// What becomes of the destinations that they describe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    #[schemars(extend("x-kubernetes-validations" = [
        rule("self.all(a, !has(a.name) || self.exists_one(b, has(b.name) && b.name == a.name))", "rules have different names")
    ]))]
    pub rules: Vec<EgressRule>,
}

/// Describes destinations by all of the fields that are written, and by any value of each.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("[has(self.cidrs) && self.cidrs.size() > 0, has(self.ports) && self.ports.size() > 0, has(self.sni) && self.sni.size() > 0, has(self.hosts) && self.hosts.size() > 0].exists(one, one)", "at least one of cidrs, ports, sni and hosts"),
    rule("!(has(self.sni) && self.sni.size() > 0 && has(self.hosts) && self.hosts.size() > 0)", "not both sni and hosts")
]))]
pub struct EgressRule {
    /// Shown in logs and metrics; the rule's index by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub name: Option<String>,
    /// What becomes of them.
    pub action: EgressAction,
    /// CIDR blocks of the addresses that are dialled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<String>,
    /// Ports that are dialled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<i32>,
    /// Server names that clients give in TLS, exact or with a leading `*.`. Not together with `hosts`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sni: Vec<String>,
    /// Hosts of HTTP requests in plain text, exact or with a leading `*.`. Not together with `sni`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
}

/// Every kind that is ours, as a custom resource definition.
pub fn definitions() -> [CustomResourceDefinition; 10] {
    [
        Mesh::crd(),
        AuthorizationPolicy::crd(),
        PeerAuthentication::crd(),
        ExternalAuthorization::crd(),
        RequestAuthentication::crd(),
        EgressPolicy::crd(),
        TrafficPolicy::crd(),
        RateLimitPolicy::crd(),
        FaultPolicy::crd(),
        TelemetryPolicy::crd(),
    ]
}

#[cfg(test)]
mod tests;
