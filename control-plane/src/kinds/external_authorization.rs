//! ExternalAuthorization.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::PolicyMode;
use super::attached::{Duration, not_zero, rule};
use super::status::PolicyStatus;
use super::target::{AccessTargetRef, once};

/// Another program is asked whether requests are let in: any server of Envoy's external authorization over gRPC
/// (`envoy.service.auth.v3.Authorization`). It is asked last, about what all other policies let in; where several policies are about a
/// request, all must agree.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[kube(
    group = "policy.tulle.dev",
    version = "v1alpha1",
    kind = "ExternalAuthorization",
    plural = "externalauthorizations",
    namespaced,
    status = "PolicyStatus",
    label("gateway.networking.k8s.io/policy", "Inherited"),
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct ExternalAuthorizationSpec {
    /// Services, workloads, HTTPRoutes and GRPCRoutes in the policy's own namespace. None: every workload of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-validations" = [once()]))]
    pub target_refs: Vec<AccessTargetRef>,
    /// `DryRun`: it is asked, what it would have refused is told, and nothing is changed. `Enforce` by default.
    #[serde(default)]
    pub mode: PolicyMode,
    /// Who is asked: through the mesh, with the identity of the workload that the request is for.
    pub service: AuthorizerRef,
    /// Within which it must have answered, connecting included; 1s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [
        not_zero(),
        rule("duration(self) <= duration('1m')", "1m at most")
    ]))]
    pub timeout: Option<Duration>,
    /// What becomes of a request about which there is no answer, or none that can be read. `Deny` by default.
    #[serde(default)]
    pub failure_mode: FailureMode,
    /// Which of the request's headers it is told; case does not matter, and `*` at the end is any end, at the beginning any beginning. All of them
    /// by default, but for those of the connection.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub headers: Vec<String>,
    /// It is told the request's body, too; nothing of it by default. Never of CONNECT, nor of gRPC over HTTP/2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<ToldBody>,
    /// Told with each question (`context_extensions`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = json!({ "type": "string", "maxLength": 1024 })))]
    pub context: BTreeMap<String, String>,
    /// Its answer holds for the same question for a while; by default it is asked about each request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<AnswerCache>,
    /// Headers of the request that it may set or remove, besides `authorization` and those that begin with `x-`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub allowed_headers: Vec<String>,
}

/// A port of a Service.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizerRef {
    /// The Service.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Where it is; the policy's own namespace by default. In another, a ReferenceGrant must allow it, from `kind: ExternalAuthorization`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// The number of the Service's port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

/// What becomes of a request about which there is no answer.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum FailureMode {
    /// It is refused, with 503 `authorizer_unavailable`.
    #[default]
    Deny,
    /// It goes on.
    Allow,
}

/// How much of a body is told.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToldBody {
    /// At most so many bytes; the proxy holds a request until it has as many, or all.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_bytes: i32,
    /// Of a longer body the beginning is told. By default its request is refused, with 413 `body_too_large`.
    #[serde(default)]
    pub partial: bool,
}

/// How long an answer holds. The same are questions of the same client about the same method, host, path and query, and body as far as it is told.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AnswerCache {
    /// How long.
    #[serde(rename = "for")]
    #[schemars(extend("x-kubernetes-validations" = [not_zero()]))]
    pub holds: Duration,
    /// Headers that must be the same, too: all by which the authorizer decides; `authorization` and `cookie` by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    pub headers: Vec<String>,
}
