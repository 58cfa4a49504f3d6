//! AuthorizationPolicy.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attached::rule;
use super::status::PolicyStatus;
use super::target::{AccessTargetRef, once};

/// Who may do what at workloads. A DENY that describes what is asked refuses it; else, once any ALLOW speaks of it, whatever none allows is
/// refused. An AUDIT refuses nothing, and tells what it describes.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[kube(
    group = "policy.tulle.dev",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    plural = "authorizationpolicies",
    namespaced,
    status = "PolicyStatus",
    label("gateway.networking.k8s.io/policy", "Inherited"),
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self.action != 'ALLOW' || self.rules.all(r, has(r.from) || has(r.to) || (has(r.when) && r.when.size() > 0))",
        "a rule that allows says who, what or when; everybody is from: [{networks: [0.0.0.0/0, '::/0']}]"
    )
]))]
pub struct AuthorizationPolicySpec {
    /// Services, workloads, HTTPRoutes and GRPCRoutes in the policy's own namespace. None: every workload of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-validations" = [once()]))]
    pub target_refs: Vec<AccessTargetRef>,
    /// What it does to what its rules describe. `ALLOW` by default.
    #[serde(default)]
    pub action: PolicyAction,
    /// `DryRun`: what the policy would have refused is told, and not refused. `Enforce` by default.
    #[serde(default)]
    pub mode: PolicyMode,
    /// Any of them describes; none at all describes nothing, so that an `ALLOW` allows nobody.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub rules: Vec<PolicyRule>,
}

/// What a policy does to what its rules describe.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum PolicyAction {
    /// Lets it through, and refuses all else of which the policy speaks.
    #[default]
    Allow,
    /// Refuses it, whatever allows it.
    Deny,
    /// Tells it.
    Audit,
}

/// Whether a policy is in force.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum PolicyMode {
    /// It is.
    #[default]
    Enforce,
    /// What it would have refused is told.
    DryRun,
}

/// Describes what comes from any of the sources, is any of the operations, and fits all of the conditions.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// Shown in logs and metrics; the rule's index by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Any of these sources; anybody by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub from: Option<Vec<PolicySource>>,
    /// The ports that the rule speaks of; every port by default. Of a target that is a Service or a route, the Service's ports by number; of
    /// others, the workload's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 1, max = 65535)))]
    pub to_ports: Vec<i32>,
    /// Any of these operations; every one by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub to: Option<Vec<PolicyOperation>>,
    /// All of these conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub when: Vec<PolicyCondition>,
}

/// Describes clients by all of the fields that are written, and by any value of each; `not…` by none of its values.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "[has(self.identities), has(self.notIdentities), has(self.namespaces), has(self.notNamespaces), has(self.serviceAccounts), has(self.notServiceAccounts), has(self.networks), has(self.notNetworks), has(self.requestPrincipals), has(self.notRequestPrincipals)].exists(one, one)",
        "a source says who"
    )
]))]
pub struct PolicySource {
    /// Each a SPIFFE ID, or `<namespace>/<service account>` in the mesh's own trust domain. `*` at the end is any end, and at the
    /// beginning any beginning of the whole SPIFFE ID; `*` alone is whoever proves an identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 2048)))]
    pub identities: Option<Vec<String>>,
    /// As `identities`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 2048)))]
    pub not_identities: Option<Vec<String>>,
    /// Namespaces of the mesh's own trust domain; with `*` at the beginning or the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 64)))]
    pub namespaces: Option<Vec<String>>,
    /// As `namespaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 64)))]
    pub not_namespaces: Option<Vec<String>>,
    /// `<namespace>/<service account>` of the mesh's own trust domain, with `*` at the beginning or the end; without a namespace, of the
    /// policy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 320)))]
    pub service_accounts: Option<Vec<String>>,
    /// As `serviceAccounts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 320)))]
    pub not_service_accounts: Option<Vec<String>>,
    /// CIDR blocks or addresses of the client, as the connection has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 64)))]
    pub networks: Option<Vec<String>>,
    /// As `networks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 64)))]
    pub not_networks: Option<Vec<String>>,
    /// `<issuer>/<subject>` of a token that a RequestAuthentication has verified, with `*` at the beginning or the end; `*` alone is any
    /// verified token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 2048)))]
    pub request_principals: Option<Vec<String>>,
    /// As `requestPrincipals`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 2048)))]
    pub not_request_principals: Option<Vec<String>>,
}

/// Describes what is asked by all of the fields that are written, and by any value of each; `not…` by none of its values. With anything but
/// ports it is about HTTP only.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "[has(self.ports), has(self.notPorts), has(self.hosts), has(self.notHosts), has(self.methods), has(self.notMethods), has(self.paths), has(self.notPaths), has(self.grpcMethods), has(self.notGrpcMethods)].exists(one, one)",
        "an operation says what"
    )
]))]
pub struct PolicyOperation {
    /// Ports by number: of a target that is a Service or a route the Service's, of others the workload's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(range(min = 1, max = 65535)))]
    pub ports: Option<Vec<i32>>,
    /// As `ports`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(range(min = 1, max = 65535)))]
    pub not_ports: Option<Vec<i32>>,
    /// Hosts of requests, without a port, with `*` at the beginning or the end; case does not matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 254)))]
    pub hosts: Option<Vec<String>>,
    /// As `hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 254)))]
    pub not_hosts: Option<Vec<String>>,
    /// Methods, in capitals, such as `GET`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 64)))]
    pub methods: Option<Vec<String>>,
    /// As `methods`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 64)))]
    pub not_methods: Option<Vec<String>>,
    /// Normalised paths, without the query: `/a/b`; `/a/*`, any beginning with `/a/`; `*/b`, any ending with `/b`; `/a/{*}/b`, one segment
    /// between; `/a/{**}`, any number of segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 1024)))]
    pub paths: Option<Vec<String>>,
    /// As `paths`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 1024)))]
    pub not_paths: Option<Vec<String>>,
    /// `<package>.<Service>/<Method>`, `<package>.<Service>/*` or `*/<Method>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 1024)))]
    pub grpc_methods: Option<Vec<String>>,
    /// As `grpcMethods`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 1024)))]
    pub not_grpc_methods: Option<Vec<String>>,
}

/// What must hold of a request besides: exactly one of `header`, `claim` and `claimPath`, and its values. Without values it must be there.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("[has(self.header), has(self.claim), has(self.claimPath)].exists_one(one, one)", "exactly one of header, claim and claimPath")
]))]
pub struct PolicyCondition {
    /// A header, by name; case does not matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub header: Option<String>,
    /// A claim of a token that a RequestAuthentication has verified; a dot leads into it, as in `realm_access.roles`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub claim: Option<String>,
    /// The same, step by step, where a name has a dot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 256)))]
    pub claim_path: Option<Vec<String>>,
    /// Any of them, with `*` at the beginning or the end. Of a claim that is a list, any of its entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(max = 4096)))]
    pub values: Option<Vec<String>>,
    /// None of them; what is not there has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(max = 4096)))]
    pub not_values: Option<Vec<String>>,
}
