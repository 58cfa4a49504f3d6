//! Who is let in where no AuthorizationPolicy speaks: `config.tulle.dev/default-inbound-policy`, from a namespace's annotation to what a client is
//! answered.

use std::net::SocketAddr;

use http::Response;
use serde_json::{Value, json};
use tulle_tests::app::{App, full};
use tulle_tests::cluster::Caller;
use tulle_tests::netns::in_a_node;
use tulle_tests::pod::Pod;
use tulle_tests::{eventually, scrape};

use crate::mesh::{Mesh, Running, SHOP};

const DEFAULT: &str = "config.tulle.dev/default-inbound-policy";
/// The port of which a rule speaks, and another.
const SPOKEN_OF: u16 = 8080;
const UNSPOKEN_OF: u16 = 9090;

/// Status and reason that a request is answered with.
async fn asks(from: &Pod, to: SocketAddr, path: &str) -> String {
    let mut wire = from.connect(to);
    wire.send(format!("GET {path} HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n")).await;
    let head = wire.response().await.0;
    format!("{} {}", head.status(), head.reason().unwrap_or_default())
}

/// Asks until the answer is this one.
async fn comes_to_be_told(from: &Pod, to: SocketAddr, expected: &str) {
    eventually(&format!("{} is told {expected:?}", from.name()), async || {
        let told = asks(from, to, "/cart").await;
        if told == expected { Ok(()) } else { Err(told) }
    })
    .await;
}

/// What the API server says is annotated on pods that are made now.
async fn of_new_pods(caller: &Caller, expected: &str) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": SHOP, "name": "tried"},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    });
    eventually("the webhook knows what the namespace says", async || {
        let tried = caller.try_out(&pod).await.map_err(|refused| refused.to_string())?;
        let annotations = &tried["metadata"]["annotations"];
        if annotations[DEFAULT] == expected { Ok(()) } else { Err(format!("{annotations:#}")) }
    })
    .await;
}

/// Changes it while the pod runs.
async fn annotate(caller: &Caller, running: &Running, policy: &str) {
    let metadata = &running.containers.object["metadata"];
    let change = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": metadata["namespace"], "name": metadata["name"], "annotations": {DEFAULT: policy}},
    });
    caller.apply(&change).await.unwrap();
}

fn only_web() -> Value {
    json!({
        "apiVersion": "policy.tulle.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "orders", "namespace": SHOP},
        "spec": {
            "targetRefs": [{"kind": "Service", "name": "orders"}],
            "rules": [{"name": "web", "from": [{"identities": [format!("{SHOP}/web")]}]}],
        },
    })
}

/// What was told of connections that are audited.
fn audited(running: &Running) -> Vec<String> {
    let log = running.process("tulle-proxy").stdout();
    log.lines().filter(|line| line.contains("audited what is let in")).map(str::to_owned).collect()
}

#[test]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
fn what_a_namespace_says_of_who_is_let_in_holds_for_its_new_pods_until_the_pod_says_otherwise() {
    in_a_node(async || {
        let networks = json!(["10.77.0.0/24", "10.96.0.0/16", "fd77::/64", "fd96::/64"]);
        let permissive = json!({"mesh": {"mtls": "permissive", "networks": networks}});
        let mesh = Mesh::start_with(1, &[], permissive).await;
        let caller = mesh.server.administrator();
        // It was made before, and says nothing.
        let web = mesh.app("web").await;
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": SHOP, "labels": {"tulle.dev/inject": "enabled"}, "annotations": {DEFAULT: "deny"}},
        });
        caller.apply(&namespace).await.unwrap();
        of_new_pods(caller, "deny").await;
        let orders = mesh.app("orders").await;
        assert_eq!(orders.containers.object["metadata"]["annotations"][DEFAULT], "deny");
        let _apps = [SPOKEN_OF, UNSPOKEN_OF].map(|port| {
            let listener = orders.pod.listen(&format!("[::]:{port}"));
            App::http1_on(listener, |_| async { Response::new(full("orders")) })
        });
        let to = mesh.service("orders", &[&orders]).await;
        let at = |port| SocketAddr::new(orders.pod.v4().into(), port);
        let outside = mesh.outside("outside");

        // Nobody, whoever it is: an identity would not help, and is not asked for.
        assert_eq!(asks(&outside, at(UNSPOKEN_OF), "/cart").await, "403 policy_denied");
        comes_to_be_told(&web.pod, at(UNSPOKEN_OF), "403 policy_denied").await;
        let labels = [
            ("verdict", "deny"),
            ("rule", "shop/annotation:default-inbound-policy/deny"),
            ("reason", "policy_denied"),
        ];
        let denied = scrape(orders.pod.public()).await.sum("tulle_policy_verdicts_total", &labels);
        assert!(denied >= 2.0, "{denied}");
        // But for what a policy says, and the probe that the pod declares.
        caller.apply(&only_web()).await.unwrap();
        web.gets(to, "orders").await;
        assert_eq!(asks(&outside, at(SPOKEN_OF), "/cart").await, "403 identity_required");
        assert_eq!(asks(&outside, at(SPOKEN_OF), "/").await, "200 ", "the kubelet's");

        annotate(caller, &orders, "all-authenticated").await;
        comes_to_be_told(&web.pod, at(UNSPOKEN_OF), "200 ").await;
        assert_eq!(asks(&outside, at(UNSPOKEN_OF), "/cart").await, "403 mtls_required");

        annotate(caller, &orders, "audit").await;
        comes_to_be_told(&outside, at(UNSPOKEN_OF), "200 ").await;
        let mut wire = outside.connect(at(UNSPOKEN_OF));
        for number in 0..20 {
            wire.send(format!("GET /{number} HTTP/1.1\r\nhost: orders\r\n\r\n")).await;
            assert_eq!(wire.response().await.0.status(), 200, "{number}");
        }
        orders.process("tulle-proxy").logs(&[("path", json!("/19")), ("rule", json!("default"))]).await;
        eventually("both connections are told of", async || match audited(&orders) {
            told if told.len() >= 2 => Ok(()),
            told => Err(format!("{told:?}")),
        })
        .await;
        // One each, and another for who was taken for silent at first; not one for each request.
        let told = audited(&orders);
        assert!(told.len() <= 4 && told.iter().all(|line| line.contains("default")), "{told:#?}");
        mesh.nothing_was_forbidden();
    });
}
