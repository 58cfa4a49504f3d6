//! Who asks, and so what may be asked for. Pure; called by [the session](super::Session) alone.

use tulle_api::ResourceType;

use super::session::Refusal;

/// A proxy that has said which workload it stands beside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Of its SPIFFE ID and of its node alike.
    namespace: String,
    /// `<namespace>/<workload>`, as in `Node.id`.
    node: String,
}

impl Caller {
    /// `namespace` is the certificate's, `node_id` the caller's own word, which must fit it.
    pub(super) fn new(namespace: &str, node_id: &str) -> Result<Self, Refusal> {
        let malformed = || Refusal::NodeMalformed(node_id.chars().take(128).collect());
        let (node_namespace, workload) = node_id.split_once('/').ok_or_else(malformed)?;
        if node_namespace.is_empty() || !is_name(workload) || !is_name(node_namespace) {
            return Err(malformed());
        }
        if node_namespace != namespace {
            return Err(Refusal::NodeForeign { node: node_id.to_owned(), namespace: namespace.to_owned() });
        }
        Ok(Self { namespace: namespace.to_owned(), node: node_id.to_owned() })
    }

    /// `<namespace>/<workload>`.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What concerns one workload is for that workload, routes are for the clients that follow them, and the
    /// rest is what anybody may know who wants to call anybody.
    pub(super) fn may(&self, resource_type: ResourceType, name: &str) -> bool {
        match resource_type {
            ResourceType::Workload | ResourceType::InboundPolicy => name == self.node,
            ResourceType::Routes => {
                name.split_once('/').is_some_and(|(client_namespace, _)| client_namespace == self.namespace)
            }
            ResourceType::Mesh
            | ResourceType::TrustBundle
            | ResourceType::Address
            | ResourceType::Service
            | ResourceType::Endpoints => true,
        }
    }
}

/// What Kubernetes accepts as an object's name (RFC 1123 subdomain).
pub(crate) fn is_name(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        && !text.starts_with(['-', '.'])
        && !text.ends_with(['-', '.'])
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
