//! Which node a certificate may speak for, where more is known than its namespace.
//!
//! A certificate names a service account, `Node.id` a workload. Without an API server a workload's name is its own word, and its certificate's
//! namespace must fit. In a cluster the workload is a pod, and the pod must run as the certificate's service account: otherwise any pod of a namespace
//! could have what concerns another. Asked once for each stream, by ADS and by the reports.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tulle_certs::SpiffeId;

use super::caller::Caller;
use super::session::Refusal;
use crate::object::NamespacedName;

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is one of the identity's.
    Own,
    /// It runs as another service account.
    Other(String),
    /// Nobody knows of it, or not yet.
    Unknown,
}

/// How long a node may be unknown that has just come: a pod's proxy is there sooner than the watch of pods may tell of it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(100);

type Ask = dyn Fn(&SpiffeId, &NamespacedName) -> Standing + Send + Sync;

/// Knows the nodes. Cheap to clone.
#[derive(Clone, Default)]
pub struct Nodes(Option<Arc<Ask>>);

// === impl Nodes ===

impl Nodes {
    /// By what `ask` knows. By default nothing is known but the namespace.
    pub fn by(ask: impl Fn(&SpiffeId, &NamespacedName) -> Standing + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(ask)))
    }

    /// Whether `id` may call itself so.
    pub(crate) fn check(&self, id: &SpiffeId, caller: &Caller) -> Result<(), Refusal> {
        let Some(ask) = &self.0 else { return Ok(()) };
        let node = caller.node().to_owned();
        match ask(id, caller.workload()) {
            Standing::Own => Ok(()),
            Standing::Other(service_account) => {
                Err(Refusal::NodeNotYours { node, id: id.to_string(), service_account })
            }
            Standing::Unknown => Err(Refusal::NodeUnknown(node)),
        }
    }

    /// As [`check`](Self::check), and waits a while for a node that is not known yet.
    pub(crate) async fn admit(&self, id: &SpiffeId, caller: &Caller) -> Result<(), Refusal> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.check(id, caller) {
                Err(Refusal::NodeUnknown(_)) if Instant::now() < end => tokio::time::sleep(LOOK).await,
                known => return known,
            }
        }
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Nodes").field(&self.0.is_some()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_its_service_accounts_alone() {
        let web = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap();
        let nodes = Nodes::by(|id, node| match &*node.name {
            "web-1" if id.service_account() == "web" => Standing::Own,
            "web-1" => Standing::Other("web".into()),
            _ => Standing::Unknown,
        });
        let check = |nodes: &Nodes, id, node| nodes.check(id, &Caller::new("shop", node).unwrap());
        assert_eq!(check(&nodes, &web, "shop/web-1"), Ok(()));
        let unknown = check(&nodes, &web, "shop/web-2").unwrap_err();
        assert_eq!(tonic::Status::from(&unknown).code(), tonic::Code::Unavailable, "it may come");
        let orders = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/orders").unwrap();
        let foreign = check(&nodes, &orders, "shop/web-1").unwrap_err();
        assert_eq!(tonic::Status::from(&foreign).code(), tonic::Code::PermissionDenied);
        assert!(foreign.to_string().contains("shop/web-1") && foreign.to_string().contains("sa/orders"));
        assert_eq!(check(&Nodes::default(), &orders, "shop/web-1"), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_nobody_has_told_of_yet_is_waited_for_and_no_longer_than_that() {
        let begun = Instant::now();
        let nodes = Nodes::by(move |_, node| match &*node.name {
            "late" if begun.elapsed() > Duration::from_secs(1) => Standing::Own,
            "foreign" => Standing::Other("web".into()),
            _ => Standing::Unknown,
        });
        let web = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap();
        let caller = |node: &str| Caller::new("shop", node).unwrap();
        assert!(matches!(
            nodes.admit(&web, &caller("shop/foreign")).await,
            Err(Refusal::NodeNotYours { .. })
        ));
        assert_eq!(begun.elapsed(), Duration::ZERO, "that will not change");
        assert_eq!(nodes.admit(&web, &caller("shop/late")).await, Ok(()));
        let asked = Instant::now();
        assert!(matches!(nodes.admit(&web, &caller("shop/nobody")).await, Err(Refusal::NodeUnknown(_))));
        assert!(asked.elapsed() >= PATIENCE && asked.elapsed() < 2 * PATIENCE);
    }
}
