//! PeerAuthentication.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Mtls;
use super::attached::rule;
use super::authorization::PolicyMode;
use super::status::PolicyStatus;
use super::target::{AccessTargetRef, once};

/// Whether connections to workloads must be mutually authenticated, where that is to be otherwise than the Mesh says. What is more specific holds
/// before what is less: a Service's port, then its Service, a workload by name, workloads by labels, the namespace, the Mesh.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[kube(
    group = "policy.tulle.dev",
    version = "v1alpha1",
    kind = "PeerAuthentication",
    plural = "peerauthentications",
    namespaced,
    status = "PolicyStatus",
    label("gateway.networking.k8s.io/policy", "Inherited"),
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    /// Services and workloads in the policy's own namespace. None: every workload of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-validations" = [
        rule("self.all(t, t.kind in ['Service', 'Workload'])", "a Service or a Workload: who a client is shows before what it asks"),
        once(),
    ]))]
    pub target_refs: Vec<AccessTargetRef>,
    /// `strict`: mutual TLS or nothing. `permissive`: mutual TLS between workloads of the mesh, and plaintext from others. `off`: plaintext, also
    /// between workloads of the mesh.
    pub mtls: Mtls,
    /// `DryRun`: whom `strict` would have refused is told, and not refused; the other modes would refuse nobody. `Enforce` by default.
    #[serde(default)]
    pub mode: PolicyMode,
}
