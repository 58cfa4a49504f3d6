//! Objects as the control plane keeps them: read once from their Kubernetes form into only what is served.
//!
//! Decides what a single object means, looking at nothing but the object: what a Kubernetes API server would
//! refuse is refused here too ([`Notes::refuse`]), and what this version cannot serve is told. How objects fit
//! together is decided in [`crate::model`]. Called by every source; does no I/O and never panics on input.

mod access;
mod authentication;
mod authorization;
mod default_inbound;
mod egress;
mod external;
mod mesh;
mod pod;
mod policy;
mod resilience;
mod route;
mod service;
mod slice;
mod target;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use gateway_api::experimental::grpcroutes::GrpcRoute;
use gateway_api::experimental::httproutes::HttpRoute;
use gateway_api::experimental::referencegrants::ReferenceGrant;
use gateway_api::experimental::tcproutes::TcpRoute;
use gateway_api::experimental::tlsroutes::TlsRoute;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use self::access::{Access, AccessSays};
pub use self::authentication::Authentication;
pub use self::authorization::{Authorization, Rule as PolicyRule, Source, Subject};
pub use self::default_inbound::{DEFAULT_INBOUND_POLICY, DefaultInbound, PRIVATE_NETWORKS};
pub use self::egress::{Egress, EgressRule};
pub use self::external::External;
pub use self::mesh::{DEFAULT_TRUST_DOMAIN, Mesh};
pub use self::pod::{INJECT, INJECTED, PROXY_CONTAINER, Pod, PodForm, SKIP_INBOUND_PORTS};
pub(crate) use self::policy::foreign;
pub use self::policy::{Identity, PolicyTarget};
pub use self::resilience::{Limit, Resilience, Says, Target, Telemetry, zones_by_default};
pub use self::route::{
    Backend, Cors, Effect, Fault, Filter, Grant, GrantTarget, HeaderModifier, Match, Mirror, Parent,
    PathMatch, PathModifier, Redirect, Retry, Rewrite, Route, RouteKind, Rule, SessionPersistence,
    ValueMatch, ValuePattern,
};
pub use self::service::{Port, Protocol, Service, TargetPort};
pub use self::slice::{Slice, SliceEndpoint};
pub use self::target::AccessTarget;

use crate::finding::Notes;
use crate::kinds;

/// The namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// `<namespace>/<name>`; the namespace is empty for kinds that have none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName {
    /// Empty for cluster-wide kinds.
    pub namespace: Arc<str>,
    /// The name, unique by kind and namespace.
    pub name: Arc<str>,
}

/// A kind of object that the control plane reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `gateway.networking.k8s.io/v1` HTTPRoute.
    HttpRoute,
    /// `gateway.networking.k8s.io/v1` GRPCRoute.
    GrpcRoute,
    /// `gateway.networking.k8s.io/v1` TLSRoute.
    TlsRoute,
    /// `gateway.networking.k8s.io/v1` TCPRoute.
    TcpRoute,
    /// `gateway.networking.k8s.io/v1` ReferenceGrant.
    ReferenceGrant,
    /// `policy.tulle.dev/v1alpha1` AuthorizationPolicy.
    AuthorizationPolicy,
    /// `policy.tulle.dev/v1alpha1` PeerAuthentication.
    PeerAuthentication,
    /// `policy.tulle.dev/v1alpha1` ExternalAuthorization.
    ExternalAuthorization,
    /// `policy.tulle.dev/v1alpha1` RequestAuthentication.
    RequestAuthentication,
    /// `policy.tulle.dev/v1alpha1` EgressPolicy.
    EgressPolicy,
    /// `policy.tulle.dev/v1alpha1` TrafficPolicy.
    TrafficPolicy,
    /// `policy.tulle.dev/v1alpha1` RateLimitPolicy.
    RateLimitPolicy,
    /// `policy.tulle.dev/v1alpha1` FaultPolicy.
    FaultPolicy,
    /// `policy.tulle.dev/v1alpha1` TelemetryPolicy.
    TelemetryPolicy,
    /// `policy.tulle.dev/v1alpha1` Mesh.
    Mesh,
    /// `v1` Pod: in a cluster only; no folder has any.
    Pod,
    /// A workload: not read, but what policies are attached to, by the name by which its proxy calls itself.
    Workload,
    /// The workloads of a namespace, likewise.
    Namespace,
}

/// Which object: two of the same key are the same object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// What it is.
    pub kind: Kind,
    /// What it is called.
    pub name: NamespacedName,
}

/// One object, read.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A Service.
    Service(Service),
    /// An EndpointSlice.
    EndpointSlice(Slice),
    /// An HTTPRoute, GRPCRoute, TLSRoute or TCPRoute.
    Route(Route),
    /// A ReferenceGrant.
    ReferenceGrant(Grant),
    /// An AuthorizationPolicy, a PeerAuthentication, an ExternalAuthorization or a RequestAuthentication.
    Access(Access),
    /// An EgressPolicy.
    EgressPolicy(Egress),
    /// A TrafficPolicy, RateLimitPolicy, FaultPolicy or TelemetryPolicy.
    Resilience(Resilience),
    /// The Mesh.
    Mesh(Mesh),
    /// A Pod.
    Pod(Pod),
}

// === impl NamespacedName ===

impl NamespacedName {
    /// Neither part is checked.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Reads `<namespace>/<name>`; none unless both parts are names as Kubernetes has them.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        (is_label(namespace) && is_subdomain(name)).then(|| Self::new(namespace, name))
    }

    fn of(meta: &ObjectMeta) -> Self {
        Self::new(
            meta.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

// === impl Kind ===

impl Kind {
    /// Every kind that is read.
    pub const ALL: [Self; 18] = [
        Self::Service,
        Self::EndpointSlice,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::ReferenceGrant,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::ExternalAuthorization,
        Self::RequestAuthentication,
        Self::EgressPolicy,
        Self::TrafficPolicy,
        Self::RateLimitPolicy,
        Self::FaultPolicy,
        Self::TelemetryPolicy,
        Self::Mesh,
        Self::Pod,
    ];

    /// As written in `kind:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::ExternalAuthorization => "ExternalAuthorization",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::EgressPolicy => "EgressPolicy",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::RateLimitPolicy => "RateLimitPolicy",
            Self::FaultPolicy => "FaultPolicy",
            Self::TelemetryPolicy => "TelemetryPolicy",
            Self::Mesh => "Mesh",
            Self::Pod => "Pod",
            Self::Workload => "Workload",
            Self::Namespace => "Namespace",
        }
    }

    /// False for kinds that belong to the whole cluster.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Mesh | Self::Namespace)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl ObjectKey ===

impl ObjectKey {
    /// Of `<Kind> <namespace>/<name>` or `<Kind> <name>`, as it is shown.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once(' ')?;
        let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        Some(Self { kind, name: NamespacedName { namespace: namespace.into(), name: name.into() } })
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

// === impl Object ===

impl Object {
    /// Reads a Service; none if it is refused.
    pub fn service(object: &core::Service, notes: &mut Notes) -> Option<Self> {
        let read = Service::read(object, notes);
        finish(Self::Service(read), &object.metadata, notes)
    }

    /// Reads an EndpointSlice; none if it is refused.
    pub fn endpoint_slice(object: &discovery::EndpointSlice, notes: &mut Notes) -> Option<Self> {
        let read = Slice::read(object, notes);
        finish(Self::EndpointSlice(read), &object.metadata, notes)
    }

    /// Reads an HTTPRoute; none if it is refused.
    pub fn http_route(object: &HttpRoute, notes: &mut Notes) -> Option<Self> {
        let read = Route::read_http(object, notes);
        finish(Self::Route(read), &object.metadata, notes)
    }

    /// Reads a GRPCRoute; none if it is refused.
    pub fn grpc_route(object: &GrpcRoute, notes: &mut Notes) -> Option<Self> {
        let read = Route::read_grpc(object, notes);
        finish(Self::Route(read), &object.metadata, notes)
    }

    /// Reads a TLSRoute; none if it is refused.
    pub fn tls_route(object: &TlsRoute, notes: &mut Notes) -> Option<Self> {
        let read = Route::read_tls(object, notes);
        finish(Self::Route(read), &object.metadata, notes)
    }

    /// Reads a TCPRoute; none if it is refused.
    pub fn tcp_route(object: &TcpRoute, notes: &mut Notes) -> Option<Self> {
        let read = Route::read_tcp(object, notes);
        finish(Self::Route(read), &object.metadata, notes)
    }

    /// Reads a ReferenceGrant; none if it is refused.
    pub fn reference_grant(object: &ReferenceGrant, notes: &mut Notes) -> Option<Self> {
        let read = Grant::read(object);
        finish(Self::ReferenceGrant(read), &object.metadata, notes)
    }

    /// Reads an AuthorizationPolicy; none if it is refused.
    pub fn authorization_policy(object: &kinds::AuthorizationPolicy, notes: &mut Notes) -> Option<Self> {
        let read = Access::read_authorization(object, notes);
        finish(Self::Access(read), &object.metadata, notes)
    }

    /// Reads a PeerAuthentication; none if it is refused.
    pub fn peer_authentication(object: &kinds::PeerAuthentication, notes: &mut Notes) -> Option<Self> {
        let read = Access::read_peers(object, notes);
        finish(Self::Access(read), &object.metadata, notes)
    }

    /// Reads an ExternalAuthorization; none if it is refused.
    pub fn external_authorization(object: &kinds::ExternalAuthorization, notes: &mut Notes) -> Option<Self> {
        let read = Access::read_external(object, notes);
        finish(Self::Access(read), &object.metadata, notes)
    }

    /// Reads a RequestAuthentication; none if it is refused.
    pub fn request_authentication(object: &kinds::RequestAuthentication, notes: &mut Notes) -> Option<Self> {
        let read = Access::read_tokens(object, notes);
        finish(Self::Access(read), &object.metadata, notes)
    }

    /// Reads an EgressPolicy; none if it is refused.
    pub fn egress_policy(object: &kinds::EgressPolicy, notes: &mut Notes) -> Option<Self> {
        let read = Egress::read(object, notes);
        finish(Self::EgressPolicy(read), &object.metadata, notes)
    }

    /// Reads a TrafficPolicy; none if it is refused.
    pub fn traffic_policy(object: &kinds::TrafficPolicy, notes: &mut Notes) -> Option<Self> {
        let read = Resilience::read_traffic(object, notes);
        finish(Self::Resilience(read), &object.metadata, notes)
    }

    /// Reads a RateLimitPolicy; none if it is refused.
    pub fn rate_limit_policy(object: &kinds::RateLimitPolicy, notes: &mut Notes) -> Option<Self> {
        let read = Resilience::read_limits(object, notes);
        finish(Self::Resilience(read), &object.metadata, notes)
    }

    /// Reads a FaultPolicy; none if it is refused.
    pub fn fault_policy(object: &kinds::FaultPolicy, notes: &mut Notes) -> Option<Self> {
        let read = Resilience::read_faults(object, notes);
        finish(Self::Resilience(read), &object.metadata, notes)
    }

    /// Reads a TelemetryPolicy; none if it is refused.
    pub fn telemetry_policy(object: &kinds::TelemetryPolicy, notes: &mut Notes) -> Option<Self> {
        let read = Resilience::read_telemetry(object, notes);
        finish(Self::Resilience(read), &object.metadata, notes)
    }

    /// Reads the Mesh; none if it is refused.
    pub fn mesh(object: &kinds::Mesh, notes: &mut Notes) -> Option<Self> {
        let read = Mesh::read(object, notes);
        finish(Self::Mesh(read), &object.metadata, notes)
    }

    /// Reads a Pod, of which nothing is refused.
    pub fn pod(form: &PodForm, notes: &mut Notes) -> Option<Self> {
        Some(Self::Pod(Pod::read(form, notes)))
    }

    /// What it is and what it is called.
    pub fn key(&self) -> ObjectKey {
        let (kind, name) = match self {
            Self::Service(object) => (Kind::Service, &object.name),
            Self::EndpointSlice(object) => (Kind::EndpointSlice, &object.name),
            Self::Route(object) => (object.kind.into(), &object.name),
            Self::ReferenceGrant(object) => (Kind::ReferenceGrant, &object.name),
            Self::Access(object) => (object.kind, &object.name),
            Self::EgressPolicy(object) => (Kind::EgressPolicy, &object.name),
            Self::Resilience(object) => (object.kind, &object.name),
            Self::Mesh(object) => (Kind::Mesh, &object.name),
            Self::Pod(object) => (Kind::Pod, &object.name),
        };
        ObjectKey { kind, name: name.clone() }
    }
}

/// The annotation on an EndpointSlice that makes its endpoints part of the mesh.
pub const IDENTITY: &str = "tulle.dev/identity";
/// The annotation on an EndpointSlice that says how much each of its endpoints gets beside others.
pub const WEIGHT: &str = "tulle.dev/weight";
/// The annotation that lists ports whose bytes are not looked into.
pub const OPAQUE_PORTS: &str = "config.tulle.dev/opaque-ports";

/// Ports that an inbound proxy refuses as a destination: the proxy's own, and some to spare. Connections to them are not led to it.
pub const OWN_PORTS: RangeInclusive<u16> = tulle_api::PROXY_PORTS;

/// Annotations and labels of ours, on any object; those for pods are told elsewhere.
const KNOWN_KEYS: [&str; 4] = [IDENTITY, OPAQUE_PORTS, WEIGHT, INJECT];

/// What is the same for every kind: unknown keys of ours are told, and a refused object is dropped.
fn finish(object: Object, meta: &ObjectMeta, notes: &mut Notes) -> Option<Object> {
    for (part, keys) in [("annotations", &meta.annotations), ("labels", &meta.labels)] {
        for key in keys.iter().flatten().map(|(key, _)| key) {
            let ours = key.starts_with("tulle.dev/") || key.starts_with("config.tulle.dev/");
            if ours && !KNOWN_KEYS.contains(&key.as_str()) {
                notes.warn(
                    format!("metadata.{part}[\"{key}\"]"),
                    format!("`{key}` means nothing here and is ignored"),
                    &format!("on these objects: {}", KNOWN_KEYS.join(", ")),
                );
            }
        }
    }
    (!notes.refused()).then_some(object)
}

/// A port number as people write them; refused outside 1–65535.
fn port(number: i32, field: impl Into<String>, notes: &mut Notes) -> u16 {
    match u16::try_from(number) {
        Ok(port) if port > 0 => port,
        _ => {
            let message = format!("{number} is not a port");
            notes.refuse(field, message, "ports are 1 to 65535");
            0
        }
    }
}

/// RFC 1123 label, as Kubernetes has it: the names of Services and namespaces.
pub fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_subdomain(text) && !text.contains('.')
}

/// RFC 1123 subdomain, as Kubernetes has it: the names of most objects.
pub(crate) fn is_subdomain(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            let bytes = label.as_bytes();
            let ends = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            ends(bytes.first())
                && ends(bytes.last())
                && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        })
}

#[cfg(test)]
mod tests;
