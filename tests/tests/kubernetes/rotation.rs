//! The root of the control plane's own authority, rotated by several replicas, of which the one that takes the steps is killed.

use std::sync::Arc;

use serde_json::{Value, json};
use tulle_tests::eventually;
use tulle_tests::load::{Orders, Seen, Speech, Tally};
use tulle_tests::netns::in_a_node;

use crate::chart::{CONTROL_PLANE, SYSTEM};
use crate::mesh::{Mesh, Running, SHOP, load};

/// What a replica answers to whoever forwards ports to it.
async fn identity(replica: &Running, method: &str, page: &str) -> Value {
    let url = format!("http://localhost:15014{page}");
    let ran = replica.pod.run("curl", &["-sS", "-X", method, &url]).await;
    serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{page}: {}{}", ran.stdout, ran.stderr))
}

async fn phase(replica: &Running, wanted: &str) {
    eventually(&format!("the rotation is {wanted}"), async || {
        let now = identity(replica, "GET", "/identity").await;
        if now["rotation"]["phase"] == wanted { Ok(()) } else { Err(now["rotation"].to_string()) }
    })
    .await;
}

/// Pins of the roots that a pod trusts.
async fn trusted(running: &Running) -> Vec<String> {
    let shown: Value = serde_json::from_str(&running.pod.admin("GET /certs").await).unwrap();
    let roots = shown["trust_bundles"][0]["roots"].as_array().unwrap().iter();
    roots.map(|root| root["pin"].as_str().unwrap().to_owned()).collect()
}

#[test]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
fn r10_a_root_is_rotated_by_replicas_of_which_one_is_killed_and_no_request_is_lost() {
    in_a_node(async || {
        let mut mesh = Mesh::start_with(2, &[], json!({"identity": {"leafLifetime": "30s"}})).await;
        let (web, orders) = futures_util::future::join(mesh.app("web"), mesh.app("orders")).await;
        let seen = Seen::default();
        let _app = Orders::start_on(orders.pod.listen("[::]:8080"), Speech::Http1, &seen);
        let to = mesh.service("orders", &[&orders]).await;
        eventually("web reaches orders", async || web.pod.curl_port(to).await.map(drop)).await;
        let tally = Arc::<Tally>::default();
        let load = load(&web, to, &tally);

        let caller = mesh.server.administrator();
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"namespace": SYSTEM, "name": CONTROL_PLANE},
        });
        let holder = caller.now(&lease).await.unwrap()["spec"]["holderIdentity"].as_str().unwrap().to_owned();
        let leads = usize::from(holder.contains(&format!("{CONTROL_PLANE}-1")));
        // Whichever is asked, the one that holds the lease takes the steps.
        let before = identity(&mesh.replicas[1 - leads], "GET", "/identity").await;
        let old = before["root"]["pin"].as_str().unwrap().to_owned();
        assert_eq!(before["rotation"]["leads"], false);
        let asked = identity(&mesh.replicas[1 - leads], "POST", "/identity/rotate-root").await;
        assert!(
            asked["rotation"]["wanted"] == "rotation" || asked["rotation"]["phase"] == "published",
            "{asked}"
        );
        for replica in &mesh.replicas {
            phase(replica, "draining").await;
        }
        let new = identity(&mesh.replicas[leads], "GET", "/identity").await["root"]["pin"].clone();
        let new = new.as_str().unwrap().to_owned();
        assert_ne!(new, old);
        assert_eq!(trusted(&web).await, [old, new.clone()]);

        mesh.replicas[leads].process_mut("control-plane").kill().await;
        mesh.replicas.remove(leads);
        mesh.announce().await;
        phase(&mesh.replicas[0], "idle").await;
        for running in [&web, &orders] {
            eventually("the new root alone is trusted", async || match trusted(running).await {
                pins if pins == [new.clone()] => Ok(()),
                pins => Err(format!("{pins:?}")),
            })
            .await;
        }
        let bundle = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": SHOP, "name": "tulle-trust-bundle"},
        });
        eventually("pods that come are told the new root alone", async || {
            let roots = caller.now(&bundle).await.map_err(|refused| refused.to_string())?;
            let roots = roots["data"]["ca.crt"].as_str().unwrap_or_default().to_owned();
            if roots.matches("BEGIN CERTIFICATE").count() == 1 { Ok(()) } else { Err(roots) }
        })
        .await;
        let late = mesh.app("late").await;
        eventually("late reaches orders", async || late.pod.curl_port(to).await.map(drop)).await;
        load.leave_after(0).await;
        tally.assert_nothing_lost();
        assert_eq!(seen.twice(), [""; 0]);
        mesh.nothing_was_forbidden();
    });
}
