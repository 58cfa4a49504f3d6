//! The types of resource, by name.

use prost::Name;

use crate::v1;

/// The types of resource that a proxy can subscribe to, in the order in which they are answered.
///
/// ADS names a type by its URL; everything inside Tulle names it by this, so that an unknown one is told
/// apart once, at the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// [`v1::Mesh`]
    Mesh,
    /// [`v1::TrustBundle`]
    TrustBundle,
    /// [`v1::Workload`]
    Workload,
    /// [`v1::InboundPolicy`]
    InboundPolicy,
    /// [`v1::EgressPolicy`]
    EgressPolicy,
    /// [`v1::Address`]
    Address,
    /// [`v1::Service`]
    Service,
    /// [`v1::Endpoints`]
    Endpoints,
    /// [`v1::Routes`]
    Routes,
}

impl ResourceType {
    /// Every type.
    pub const ALL: [Self; 9] = [
        Self::Mesh,
        Self::TrustBundle,
        Self::Workload,
        Self::InboundPolicy,
        Self::EgressPolicy,
        Self::Address,
        Self::Service,
        Self::Endpoints,
        Self::Routes,
    ];

    /// The message's name, such as `InboundPolicy`: for logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => v1::Mesh::NAME,
            Self::TrustBundle => v1::TrustBundle::NAME,
            Self::Workload => v1::Workload::NAME,
            Self::InboundPolicy => v1::InboundPolicy::NAME,
            Self::EgressPolicy => v1::EgressPolicy::NAME,
            Self::Address => v1::Address::NAME,
            Self::Service => v1::Service::NAME,
            Self::Endpoints => v1::Endpoints::NAME,
            Self::Routes => v1::Routes::NAME,
        }
    }

    /// `type.googleapis.com/tulle.v1.<Message>`.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Mesh => "type.googleapis.com/tulle.v1.Mesh",
            Self::TrustBundle => "type.googleapis.com/tulle.v1.TrustBundle",
            Self::Workload => "type.googleapis.com/tulle.v1.Workload",
            Self::InboundPolicy => "type.googleapis.com/tulle.v1.InboundPolicy",
            Self::EgressPolicy => "type.googleapis.com/tulle.v1.EgressPolicy",
            Self::Address => "type.googleapis.com/tulle.v1.Address",
            Self::Service => "type.googleapis.com/tulle.v1.Service",
            Self::Endpoints => "type.googleapis.com/tulle.v1.Endpoints",
            Self::Routes => "type.googleapis.com/tulle.v1.Routes",
        }
    }

    /// The type of that [name](Self::as_str).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The type that a URL names, if it is one of ours.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }
}

impl std::fmt::Display for ResourceType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_those_of_the_generated_messages() {
        let generated = [
            v1::Mesh::type_url(),
            v1::TrustBundle::type_url(),
            v1::Workload::type_url(),
            v1::InboundPolicy::type_url(),
            v1::EgressPolicy::type_url(),
            v1::Address::type_url(),
            v1::Service::type_url(),
            v1::Endpoints::type_url(),
            v1::Routes::type_url(),
        ];
        for (kind, url) in ResourceType::ALL.into_iter().zip(generated) {
            assert_eq!(kind.type_url(), url);
            assert_eq!(ResourceType::from_type_url(&url), Some(kind));
        }
        assert_eq!(ResourceType::from_type_url("type.googleapis.com/envoy.config.cluster.v3.Cluster"), None);
    }
}
