//! What the kinds that say how Services and routes are treated have in common.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A rule over several fields of an object, as API servers check it (CEL). Each is a rule by which [`crate::object`] refuses.
pub(super) fn rule(rule: &str, message: &str) -> Value {
    json!({ "rule": rule, "message": message })
}

/// Of a [`Duration`] that must not be 0.
pub(super) fn not_zero() -> Value {
    rule("duration(self) > duration('0s')", "more than 0s")
}

/// Of a [`Duration`] at which something is done again and again.
pub(super) fn interval() -> Value {
    rule("duration(self) >= duration('10ms')", "10ms or more")
}

/// What a policy is attached to (GEP-713).
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("self.kind == 'Service' ? self.group in ['', 'core'] : self.kind in ['HTTPRoute', 'GRPCRoute'] && self.group == 'gateway.networking.k8s.io'", "a Service of the group \"\", or an HTTPRoute or a GRPCRoute of the group gateway.networking.k8s.io")
]))]
pub struct SectionTargetRef {
    /// The API group: empty for a Service, `gateway.networking.k8s.io` for a route.
    #[serde(default)]
    pub group: String,
    /// `Service`, `HTTPRoute` or `GRPCRoute`.
    #[schemars(length(max = 63))]
    pub kind: String,
    /// The name, in the policy's own namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The name of one of the Service's ports, or of one of the route's rules; all of them by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub section_name: Option<String>,
    /// Of other kinds' references, and not of this one: read so that nobody is attached elsewhere than they think.
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub namespace: Option<String>,
}

/// The schema of a [`SectionTargetRef`] of a policy that may be about workloads, too.
pub(super) enum WorkloadTargetRef {}

/// A time as the Gateway API writes it (GEP-2257): `300ms`, `10s`, `1m30s`, `2h`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(transparent)]
pub struct Duration(pub String);

/// `{}`: it is there, and there is nothing to say of it.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub struct Present {}

/// A header that a request must have.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// The header; case does not matter.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// Its value, or what its whole value must look like.
    #[schemars(length(min = 1, max = 4096))]
    pub value: String,
    /// How `value` is compared; `Exact` by default.
    #[serde(default)]
    pub r#type: MatchType,
}

/// How a value is compared.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum MatchType {
    /// It is the same, case and all.
    #[default]
    Exact,
    /// The whole of it matches, in the syntax of RE2.
    RegularExpression,
}

/// A status of gRPC, by its name.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "gRPC's own names")]
pub enum GrpcCode {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

// === impl WorkloadTargetRef ===

impl JsonSchema for WorkloadTargetRef {
    fn schema_name() -> Cow<'static, str> {
        "WorkloadTargetRef".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = SectionTargetRef::json_schema(generator);
        let rules = json!([
            rule(
                "self.kind == 'Service' ? self.group in ['', 'core'] : self.kind == 'Workload' ? self.group == 'policy.tulle.dev' : self.kind in ['HTTPRoute', 'GRPCRoute'] && self.group == 'gateway.networking.k8s.io'",
                "a Service of the group \"\", a Workload of the group policy.tulle.dev, or an HTTPRoute or a GRPCRoute of the group gateway.networking.k8s.io"
            ),
            rule(
                "self.kind != 'Workload' || !has(self.sectionName) || self.sectionName == ''",
                "a Workload has no sections"
            ),
        ]);
        schema.insert("x-kubernetes-validations".to_owned(), rules);
        for (place, text) in [
            ("", "What a policy is attached to that may be about workloads, too (GEP-713)."),
            (
                "/properties/group",
                "The API group: empty for a Service, `policy.tulle.dev` for a workload, `gateway.networking.k8s.io` for a route.",
            ),
            ("/properties/kind", "`Service`, `Workload`, `HTTPRoute` or `GRPCRoute`."),
            (
                "/properties/name",
                "The name, in the policy's own namespace; a workload's is that by which its proxy calls itself.",
            ),
        ] {
            if let Some(description) = schema.pointer_mut(&format!("{place}/description")) {
                *description = text.into();
            }
        }
        schema
    }
}

// === impl Duration ===

impl Duration {
    pub(super) fn of(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 28, "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$" })
    }
}
