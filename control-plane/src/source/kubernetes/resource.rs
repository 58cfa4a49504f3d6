//! The kinds that are read, and where an API server has them.

use super::super::decode::versions;
use crate::cluster::NOT_OURS;
use crate::object::Kind;

/// A kind as an API server serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    /// As in paths, and in roles.
    pub(super) plural: &'static str,
    /// Every API server has it; others may come and go with their definitions.
    pub(super) always: bool,
    /// What is asked for, of all that there is, by fields and by labels; empty: all of it.
    pub(super) fields: &'static str,
    pub(super) labels: &'static str,
}

// === impl Resource ===

impl Resource {
    /// Every kind that is read.
    pub(super) fn all() -> Vec<Self> {
        Kind::ALL.into_iter().map(Self::of).collect()
    }

    pub(super) fn of(kind: Kind) -> Self {
        let plural = match kind {
            Kind::Service => "services",
            Kind::EndpointSlice => "endpointslices",
            Kind::HttpRoute => "httproutes",
            Kind::GrpcRoute => "grpcroutes",
            Kind::TlsRoute => "tlsroutes",
            Kind::TcpRoute => "tcproutes",
            Kind::ReferenceGrant => "referencegrants",
            Kind::AuthorizationPolicy => "authorizationpolicies",
            Kind::PeerAuthentication => "peerauthentications",
            Kind::ExternalAuthorization => "externalauthorizations",
            Kind::RequestAuthentication => "requestauthentications",
            Kind::EgressPolicy => "egresspolicies",
            Kind::TrafficPolicy => "trafficpolicies",
            Kind::RateLimitPolicy => "ratelimitpolicies",
            Kind::FaultPolicy => "faultpolicies",
            Kind::TelemetryPolicy => "telemetrypolicies",
            Kind::Mesh => "meshes",
            Kind::Pod => "pods",
            // Not read.
            Kind::Workload | Kind::Namespace => "",
        };
        // What has ended has no address any more; Jobs leave thousands of them.
        let fields = if kind == Kind::Pod { "status.phase!=Succeeded,status.phase!=Failed" } else { "" };
        // Those that control planes write themselves are read by whom they are for.
        let labels = if kind == Kind::EndpointSlice { NOT_OURS } else { "" };
        let always = matches!(kind, Kind::Service | Kind::EndpointSlice | Kind::Pod);
        Self { kind, plural, always, fields, labels }
    }

    /// The API group; empty for the core.
    pub(super) fn group(&self) -> &'static str {
        let version = self.versions().first().copied().unwrap_or_default();
        version.split_once('/').map_or("", |(group, _)| group)
    }

    /// Its definition comes with our chart.
    pub(super) fn is_ours(&self) -> bool {
        self.group() == "policy.tulle.dev"
    }

    /// The versions that are read, the best first.
    pub(super) fn versions(&self) -> &'static [&'static str] {
        if self.kind == Kind::Pod { &["v1"] } else { versions(self.kind) }
    }

    /// Where all objects of a version are.
    pub(super) fn path(&self, version: &str) -> String {
        format!("{}/{}", version_path(version), self.plural)
    }

    /// As roles and error messages have it: `pods`, `httproutes.gateway.networking.k8s.io`.
    pub(super) fn name(&self) -> String {
        match self.group() {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }
}

/// Where an API server says what a version has (`v1`, `discovery.k8s.io/v1`), or a group (`gateway.networking.k8s.io`).
pub(super) fn version_path(version: &str) -> String {
    // The core's version is named without a group. A group by itself is told from it by its dot, which each that is read here has (`apps` would not).
    let root = if version.contains(['/', '.']) { "apis" } else { "api" };
    format!("/{root}/{version}")
}

#[cfg(test)]
mod tests {
    use kube::Resource as _;

    use super::*;
    use crate::kinds;

    #[test]
    fn each_kind_is_where_its_definition_says() {
        let ours = [
            (Kind::AuthorizationPolicy, kinds::AuthorizationPolicy::url_path(&(), None)),
            (Kind::PeerAuthentication, kinds::PeerAuthentication::url_path(&(), None)),
            (Kind::ExternalAuthorization, kinds::ExternalAuthorization::url_path(&(), None)),
            (Kind::RequestAuthentication, kinds::RequestAuthentication::url_path(&(), None)),
            (Kind::EgressPolicy, kinds::EgressPolicy::url_path(&(), None)),
            (Kind::TrafficPolicy, kinds::TrafficPolicy::url_path(&(), None)),
            (Kind::RateLimitPolicy, kinds::RateLimitPolicy::url_path(&(), None)),
            (Kind::FaultPolicy, kinds::FaultPolicy::url_path(&(), None)),
            (Kind::TelemetryPolicy, kinds::TelemetryPolicy::url_path(&(), None)),
            (Kind::Mesh, kinds::Mesh::url_path(&(), None)),
            (Kind::Service, k8s_openapi::api::core::v1::Service::url_path(&(), None)),
            (Kind::Pod, k8s_openapi::api::core::v1::Pod::url_path(&(), None)),
            (Kind::EndpointSlice, k8s_openapi::api::discovery::v1::EndpointSlice::url_path(&(), None)),
        ];
        for (kind, path) in ours {
            let resource = Resource::of(kind);
            assert_eq!(resource.path(resource.versions()[0]), path);
        }
        let grant = Resource::of(Kind::ReferenceGrant);
        assert_eq!(grant.name(), "referencegrants.gateway.networking.k8s.io");
        assert!(Resource::all().iter().all(|one| !one.plural.is_empty() && !one.versions().is_empty()));
    }
}
