//! What holds for connections to a Pod at ports of which no AuthorizationPolicy speaks: the annotation
//! `config.tulle.dev/default-inbound-policy`, with the choices that Linkerd's users know.
//!
//! Never looser than the Mesh: where that is strict, so is every choice. What cannot be read is [`DefaultInbound::Deny`], since who was to be kept
//! out is not known.

use crate::finding::Notes;

/// The annotation. A namespace's is written on its Pods by the injector.
pub const DEFAULT_INBOUND_POLICY: &str = "config.tulle.dev/default-inbound-policy";

/// Who is let in where no rule says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultInbound {
    /// Everybody: what holds where nothing is said.
    AllUnauthenticated,
    /// Who proves an identity of the mesh.
    AllAuthenticated,
    /// Who calls from the Mesh's networks.
    ClusterUnauthenticated,
    /// Who calls from the Mesh's networks and proves an identity.
    ClusterAuthenticated,
    /// Nobody.
    Deny,
    /// Everybody, and it is told.
    Audit,
}

/// Where the Mesh names no networks: addresses of private use (RFC 1918, RFC 6598, RFC 4193).
pub const PRIVATE_NETWORKS: [&str; 5] =
    ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8"];

// === impl DefaultInbound ===

impl DefaultInbound {
    /// Every choice, as it is written.
    pub const ALL: [(&str, Self); 6] = [
        ("all-unauthenticated", Self::AllUnauthenticated),
        ("all-authenticated", Self::AllAuthenticated),
        ("cluster-unauthenticated", Self::ClusterUnauthenticated),
        ("cluster-authenticated", Self::ClusterAuthenticated),
        ("deny", Self::Deny),
        ("audit", Self::Audit),
    ];

    /// `None`: it is none of the choices.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(name, _)| *name == text).map(|(_, choice)| choice)
    }

    pub(super) fn read(text: &str, notes: &mut Notes) -> Self {
        Self::parse(text.trim()).unwrap_or_else(|| {
            let choices = Self::ALL.map(|(name, _)| format!("`{name}`")).join(", ");
            notes.error(
                format!("metadata.annotations[\"{DEFAULT_INBOUND_POLICY}\"]"),
                format!("`{text}` is no default policy; nobody is let in where no AuthorizationPolicy says who may"),
                &format!("one of {choices}"),
            );
            Self::Deny
        })
    }

    /// Whether an identity must be proven.
    pub fn is_authenticated(self) -> bool {
        matches!(self, Self::AllAuthenticated | Self::ClusterAuthenticated)
    }

    /// Whether clients must be in the Mesh's networks.
    pub fn is_of_cluster(self) -> bool {
        matches!(self, Self::ClusterUnauthenticated | Self::ClusterAuthenticated)
    }
}
