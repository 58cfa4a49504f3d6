//! RequestAuthentication.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attached::{Duration, not_zero, rule};
use super::authorization::PolicyMode;
use super::status::PolicyStatus;
use super::target::{AccessTargetRef, once};

/// Whose tokens (JWT) requests to workloads may carry. A token that is not valid is refused with 401; one that is says who asks, to AuthorizationPolicies
/// and to the application. Of several policies that are about a request, the issuers of all are taken.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[kube(
    group = "policy.tulle.dev",
    version = "v1alpha1",
    kind = "RequestAuthentication",
    plural = "requestauthentications",
    namespaced,
    status = "PolicyStatus",
    label("gateway.networking.k8s.io/policy", "Inherited"),
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct RequestAuthenticationSpec {
    /// Services, workloads, HTTPRoutes and GRPCRoutes in the policy's own namespace. None: every workload of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-validations" = [once()]))]
    pub target_refs: Vec<AccessTargetRef>,
    /// `DryRun`: what the policy would have refused is told, and not refused, and nothing of the request is changed. `Enforce` by default.
    #[serde(default)]
    pub mode: PolicyMode,
    /// Whether a request without a token is refused, with 401, and a connection that is not HTTP; `true` by default. `false`: it goes on without
    /// claims, and only an AuthorizationPolicy can refuse it.
    #[serde(default = "yes")]
    pub required: bool,
    /// Whose tokens are taken.
    #[schemars(length(min = 1, max = 16))]
    pub issuers: Vec<TokenIssuer>,
}

/// Whose tokens are taken, by whose keys, and what becomes of them.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenIssuer {
    /// What `iss` says, letter by letter.
    #[schemars(length(min = 1, max = 2048))]
    pub issuer: String,
    /// One of these must be in `aud`. None: `aud` is not looked at, so that a token for any other application of the issuer is taken here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub audiences: Vec<String>,
    /// By which keys tokens are verified.
    pub jwks: Jwks,
    /// Where a token is looked for; `authorization: Bearer …` by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub from: Vec<TokenPlace>,
    /// Claims that are told to the application. What clients send under these headers is removed, of all requests to the targets' ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub claims_to_headers: Vec<ClaimHeader>,
    /// Whether the token goes on to the application; `false` by default: it is removed.
    #[serde(default)]
    pub forward: bool,
    /// How far clocks may differ; `60s` by default, `5m` at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [
        rule("duration(self) <= duration('5m')", "5m or less")
    ]))]
    pub leeway: Option<Duration>,
}

/// A set of public keys (JWKS, RFC 7517): exactly one of `inline` and `url`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("[has(self.inline), has(self.url)].exists_one(one, one)", "exactly one of inline and url"),
    rule(
        "has(self.url) || !(has(self.refresh) || has(self.timeout) || has(self.service) || has(self.roots))",
        "inline keys are not fetched: refresh, timeout, service and roots are for a url"
    ),
    rule(
        "!has(self.url) || (has(self.service) ? self.url.startsWith('http://') : self.url.startsWith('https://'))",
        "https://; http:// with a service, which is asked through the mesh"
    ),
    rule("!has(self.service) || !has(self.roots)", "a service is known by its identity, not by roots"),
]))]
pub struct Jwks {
    /// The set itself. Public keys only; whoever can read the policy can read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub inline: Option<String>,
    /// Where it is fetched from, by each workload's proxy: `https://…`, or `http://…` with `service`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
    /// How long it is used before it is fetched again; `5m` by default, `10s` at least. A token whose key is not in it leads to a fetch before that, at
    /// most once in 10 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [
        rule("duration(self) >= duration('10s')", "10s or more")
    ]))]
    pub refresh: Option<Duration>,
    /// How long a fetch may take; `5s` by default, `30s` at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [
        not_zero(),
        rule("duration(self) <= duration('30s')", "30s or less")
    ]))]
    pub timeout: Option<Duration>,
    /// The Service of the mesh that serves it: it is asked through the mesh, with the workload's identity, over mutual TLS where it is in the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<JwksService>,
    /// Roots by which the server is known, in PEM; those of the proxy's system by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub roots: Option<String>,
}

/// A Service that serves keys.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JwksService {
    /// Its namespace; the policy's own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Its port, by number.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

/// A header that has a token in it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenPlace {
    /// The header; case does not matter.
    #[schemars(length(min = 1, max = 256))]
    pub header: String,
    /// What stands before the token, such as `Bearer `; case does not matter. Nothing by default.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub prefix: String,
}

/// A claim that is told to the application: exactly one of `claim` and `claimPath`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("[has(self.claim), has(self.claimPath)].exists_one(one, one)", "exactly one of claim and claimPath")
]))]
pub struct ClaimHeader {
    /// The header; not one that HTTP or the mesh needs.
    #[schemars(length(min = 1, max = 256))]
    pub header: String,
    /// The claim; a dot leads into it, as in `realm_access.roles`. Text goes as it is, numbers and truth values as in JSON, lists and objects as base64 of
    /// their JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub claim: Option<String>,
    /// The same, name by name, where a name has a dot in it: `["https://example.com/roles"]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    pub claim_path: Option<Vec<String>>,
}

/// By default.
fn yes() -> bool {
    true
}
