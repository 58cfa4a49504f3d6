//! ReferenceGrant: which namespaces' routes may send requests to this namespace's Services, and which policies may have them asked.

use std::collections::BTreeSet;

use gateway_api::experimental::referencegrants::ReferenceGrant;

use super::super::{Kind, NamespacedName};

/// A ReferenceGrant, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Its own name; what it grants is in the same namespace.
    pub name: NamespacedName,
    /// Routes and policies of which kind, of which namespaces, are let in.
    pub from: BTreeSet<(Kind, String)>,
    /// What they may refer to.
    pub to: GrantTarget,
}

/// What a grant lets them refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrantTarget {
    /// Every Service of the namespace.
    AllServices,
    /// These Services; none if the grant is about other kinds.
    Services(BTreeSet<String>),
}

// === impl Grant ===

impl Grant {
    pub(in super::super) fn read(object: &ReferenceGrant) -> Self {
        let from = object.spec.from.iter().filter_map(|from| {
            let kind = match (from.group.as_str(), from.kind.as_str()) {
                ("gateway.networking.k8s.io", "HTTPRoute") => Kind::HttpRoute,
                ("gateway.networking.k8s.io", "GRPCRoute") => Kind::GrpcRoute,
                ("gateway.networking.k8s.io", "TLSRoute") => Kind::TlsRoute,
                ("gateway.networking.k8s.io", "TCPRoute") => Kind::TcpRoute,
                ("policy.tulle.dev", "ExternalAuthorization") => Kind::ExternalAuthorization,
                _ => return None,
            };
            Some((kind, from.namespace.clone()))
        });
        let to = object
            .spec
            .to
            .iter()
            .filter(|to| matches!(to.group.as_str(), "" | "core") && to.kind == "Service");
        let names: Option<BTreeSet<String>> =
            to.map(|to| to.name.clone().filter(|name| !name.is_empty())).collect();
        Self {
            name: NamespacedName::of(&object.metadata),
            from: from.collect(),
            to: names.map_or(GrantTarget::AllServices, GrantTarget::Services),
        }
    }

    /// Whether a route or policy of this kind in `namespace` may refer to `service`.
    pub fn allows(&self, kind: impl Into<Kind>, namespace: &str, service: &NamespacedName) -> bool {
        let kind = kind.into();
        self.name.namespace == service.namespace
            && self.from.iter().any(|from| (from.0, from.1.as_str()) == (kind, namespace))
            && match &self.to {
                GrantTarget::AllServices => true,
                GrantTarget::Services(names) => names.contains(&*service.name),
            }
    }
}
