//! Who asks, and so what may be asked for. Pure; called by [the session](super::Session) alone.

use tulle_api::ResourceType;

use super::session::Refusal;
use crate::object::NamespacedName;

/// A proxy that has said which workload it stands beside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// `<namespace>/<workload>`, as in `Node.id`.
    node: String,
    /// The same, taken apart; its namespace is that of the SPIFFE ID.
    workload: NamespacedName,
}

impl Caller {
    /// `namespace` is the certificate's, `node_id` the caller's own word, which must fit it.
    pub(crate) fn new(namespace: &str, node_id: &str) -> Result<Self, Refusal> {
        let workload = NamespacedName::parse(node_id)
            .ok_or_else(|| Refusal::NodeMalformed(node_id.chars().take(128).collect()))?;
        if &*workload.namespace != namespace {
            return Err(Refusal::NodeForeign { node: node_id.to_owned(), namespace: namespace.to_owned() });
        }
        Ok(Self { node: node_id.to_owned(), workload })
    }

    /// `<namespace>/<workload>`.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The same, taken apart.
    pub fn workload(&self) -> &NamespacedName {
        &self.workload
    }

    /// What concerns one workload is for that workload, routes are for the clients that follow them, and the
    /// rest is what anybody may know who wants to call anybody.
    pub(crate) fn may(&self, resource_type: ResourceType, name: &str) -> bool {
        match resource_type {
            ResourceType::Workload | ResourceType::InboundPolicy | ResourceType::EgressPolicy => {
                name == self.node
            }
            ResourceType::Routes => {
                name.split_once('/').is_some_and(|(client, _)| client == &*self.workload.namespace)
            }
            ResourceType::Mesh
            | ResourceType::TrustBundle
            | ResourceType::Address
            | ResourceType::Service
            | ResourceType::Endpoints => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_held_to_its_own_namespace_and_workload() {
        let caller = Caller::new("shop", "shop/web").unwrap();
        for (resource_type, name, permitted) in [
            (ResourceType::Workload, "shop/web", true),
            (ResourceType::Workload, "shop/orders", false),
            (ResourceType::InboundPolicy, "shop/web", true),
            (ResourceType::InboundPolicy, "bank/web", false),
            (ResourceType::EgressPolicy, "shop/web", true),
            (ResourceType::EgressPolicy, "shop/orders", false),
            (ResourceType::Routes, "shop/bank/ledger", true),
            (ResourceType::Routes, "bank/shop/web", false),
            (ResourceType::Routes, "shop", false),
            (ResourceType::Service, "bank/ledger", true),
            (ResourceType::Mesh, "mesh", true),
        ] {
            assert_eq!(caller.may(resource_type, name), permitted, "{resource_type} {name}");
        }
    }

    #[test]
    fn a_node_id_that_does_not_fit_the_certificate_is_refused() {
        assert!(matches!(Caller::new("shop", "bank/web"), Err(Refusal::NodeForeign { .. })));
        for id in ["", "shop", "shop/", "/web", "shop/web/x", "shop/Web", "shop/-web", "shop/w b"] {
            assert!(matches!(Caller::new("shop", id), Err(Refusal::NodeMalformed(_))), "{id:?}");
        }
    }
}
