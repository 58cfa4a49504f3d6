use std::time::SystemTime;

use http::Method;
use serde_json::json;
use tulle_certs::TrustDomain;
use tulle_certs::issue::{Authority, ROOT_LIFETIME};

use super::*;
use crate::cluster::testing::{ApiServer, Failure};

fn roots() -> Arc<TrustBundle> {
    let authority = Authority::generate(&TrustDomain::default(), ROOT_LIFETIME, SystemTime::now()).unwrap();
    Arc::new(authority.bundle().clone())
}

fn path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps/{BUNDLE}")
}

/// A control plane that keeps the roots in a cluster.
struct World {
    server: Arc<ApiServer>,
    bundles: watch::Sender<Arc<TrustBundle>>,
    meshed: watch::Sender<BTreeSet<Arc<str>>>,
    held: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl World {
    fn start() -> Self {
        let server = ApiServer::start();
        let bundles = watch::Sender::new(roots());
        let held = watch::Sender::new(true);
        let meshed = watch::Sender::new(BTreeSet::new());
        let keeping = Bundles::new(server.client(), "tulle-system").keep(
            bundles.subscribe(),
            meshed.subscribe(),
            Holder::of(held.subscribe()),
        );
        Self { server, bundles, meshed, held, task: tokio::spawn(keeping) }
    }

    fn namespace(&self, name: &str, inject: Option<&str>) {
        let mut object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        if let Some(inject) = inject {
            object["metadata"]["labels"] = json!({"tulle.dev/inject": inject});
        }
        self.server.put(&format!("/api/v1/namespaces/{name}"), object);
    }

    fn says(&self, namespace: &str) -> Option<String> {
        let copy = self.server.object(&path(namespace))?;
        copy["data"][KEY].as_str().map(str::to_owned)
    }

    async fn has(&self, namespace: &str) {
        for _ in 0..3000 {
            if self.says(namespace) == Some(self.bundles.borrow().to_pem()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{namespace} has {:?}", self.says(namespace));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn the_roots_are_where_pods_are_injected_and_nowhere_else() {
    let world = World::start();
    world.namespace("shop", Some("enabled"));
    world.namespace("bank", Some("disabled"));
    world.namespace("cafe", None);
    world.has("tulle-system").await;
    world.has("shop").await;
    world.namespace("cafe", Some("enabled"));
    world.has("cafe").await;
    assert_eq!(world.says("bank"), None);

    // A new root goes everywhere, also where nobody is injected any more: pods there live on.
    world.namespace("cafe", None);
    world.bundles.send_replace(roots());
    for namespace in ["tulle-system", "shop", "cafe"] {
        world.has(namespace).await;
    }
}

#[tokio::test]
async fn a_pod_with_a_proxy_has_the_roots_also_where_the_namespace_does_not_ask() {
    let world = World::start();
    world.namespace("shop", Some("enabled"));
    world.namespace("cafe", Some("disabled"));
    world.has("shop").await;
    world.meshed.send_replace(BTreeSet::from(["cafe".into()]));
    world.has("cafe").await;
    world.meshed.send_replace(BTreeSet::new());
    world.bundles.send_replace(roots());
    world.has("cafe").await;
}

#[tokio::test]
async fn what_is_changed_or_deleted_is_put_right() {
    let world = World::start();
    world.namespace("shop", Some("enabled"));
    world.has("shop").await;
    let mut forged = world.server.object(&path("shop")).unwrap();
    forged["data"][KEY] = json!("forged");
    world.server.put(&path("shop"), forged);
    world.has("shop").await;
    world.server.delete(&path("shop"));
    world.has("shop").await;
}

#[tokio::test]
async fn a_config_map_of_the_name_that_is_somebody_elses_is_left_alone_where_nobody_is_injected() {
    let world = World::start();
    let theirs =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": BUNDLE}, "data": {"x": "y"}});
    world.server.put(&path("bank"), theirs);
    world.namespace("shop", Some("enabled"));
    world.has("shop").await;
    assert_eq!(world.says("bank"), None);
}

#[tokio::test(start_paused = true)]
async fn only_the_holder_writes_and_a_write_that_fails_is_tried_again() {
    let world = World::start();
    world.has("tulle-system").await;
    world.held.send_replace(false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.namespace("shop", Some("enabled"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.says("shop"), None);

    world.server.fail(|method, _| (*method == Method::PATCH).then_some(Failure::Status(500)));
    world.held.send_replace(true);
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.server.mend();
    world.has("shop").await;
}
