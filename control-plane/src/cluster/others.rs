//! The other replicas, as a rotation of the root sees them: the control plane's pods that run, and who holds the lease.
//!
//! A pod that runs counts whether it answers or not: proxies may be connected to one that has lost the API server. One that has ended does not.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::sync::watch;

use super::lease::Holder;
use super::{asked, chance};
use crate::ca::rotation::Replicas;

/// What the control plane's pods are found by, in their namespace.
const SELECTOR: &str = "app.kubernetes.io/name=tulle-control-plane";

/// The replicas beside this one.
pub struct Others {
    pods: Api<Pod>,
    /// The pod's, which nobody else has at the same time.
    name: String,
    holder: Holder,
}

impl Others {
    /// In `namespace`, seen from the pod of this name, or from a process that is in none.
    pub(super) fn new(client: Client, namespace: &str, pod: Option<&str>, holder: Holder) -> Self {
        let name = pod.map_or_else(|| format!("{:08x}", chance()), str::to_owned);
        Self { pods: Api::namespaced(client, namespace), name, holder }
    }
}

#[tonic::async_trait]
impl Replicas for Others {
    fn name(&self) -> &str {
        &self.name
    }

    fn leads(&self) -> bool {
        self.holder.is_held()
    }

    fn leading(&self) -> watch::Receiver<bool> {
        self.holder.watch()
    }

    async fn running(&self) -> Result<Vec<String>, String> {
        let params = ListParams::default().labels(SELECTOR);
        let pods = asked(self.pods.list(&params)).await.map_err(|error| error.to_string())?;
        Ok(pods.items.into_iter().filter(runs).filter_map(|pod| pod.metadata.name).collect())
    }
}

/// Whether proxies may be connected to it.
fn runs(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    // It has not begun, or has ended.
    !matches!(phase, None | Some("Pending" | "Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::testing::{ApiServer, Failure};

    #[tokio::test]
    async fn pods_that_run_are_there_whether_they_answer_or_not() {
        let server = ApiServer::start();
        for (name, app, phase) in [
            ("a", "tulle-control-plane", "Running"),
            ("b", "tulle-control-plane", "Unknown"),
            ("c", "tulle-control-plane", "Pending"),
            ("d", "tulle-control-plane", "Failed"),
            ("e", "other", "Running"),
        ] {
            let labels = json!({"app.kubernetes.io/name": app});
            let metadata = json!({"name": name, "namespace": "tulle-system", "labels": labels});
            let pod =
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": {"phase": phase}});
            server.put(&format!("/api/v1/namespaces/tulle-system/pods/{name}"), pod);
        }
        let (_sender, held) = watch::channel(true);
        let others = Others::new(server.client(), "tulle-system", Some("a"), Holder::of(held));
        assert_eq!(others.running().await.unwrap(), ["a", "b"]);
        assert!(others.leads() && others.name() == "a");
        server.fail(|_, _| Some(Failure::Status(500)));
        assert!(others.running().await.is_err());
    }
}
