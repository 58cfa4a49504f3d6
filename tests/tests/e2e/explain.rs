//! What `tulle explain` says of who is let in is what happens.

use serde_json::Value;
use tulle_tests::app::App;
use tulle_tests::{Wire, World, eventually};

const GET: &str = "GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n";

/// Status and reason that a request of `from` gets, and what is explained of it.
async fn both(off: bool) -> Vec<((u16, Option<String>), Value)> {
    let world = World::strict().await;
    if off {
        world.yaml(
            "mesh.yaml",
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: Mesh\nmetadata: {name: mesh}\nspec: {mtls: off, trustDomain: cluster.local, \
             networks: [127.0.0.0/8]}\n",
        );
    }
    world.service("shop", "http");
    world.yaml(
        "policy.yaml",
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: shop, namespace: default}\nspec:\n  \
         targetRefs: [{group: '', kind: Service, name: shop}]\n  action: ALLOW\n  rules: [{name: web, from: [{identities: [default/web]}]}]\n",
    );
    let app = App::saying("ok").await;
    let _shop = world.workload("shop").serves("shop", app.address()).start().await;
    let mut answers = Vec::new();
    for (name, expected) in [("web", if off { 403 } else { 200 }), ("other", 403)] {
        let client = world.workload(name).calls("shop").start().await;
        let got = eventually(&format!("{name} gets {expected}"), async || {
            let mut wire = Wire::connect(client.outbound("shop")).await;
            wire.send(GET).await;
            let (head, _) = wire.response().await;
            let reason = head.get("x-tulle-error").map(str::to_owned);
            if head.status() == expected { Ok((head.status(), reason)) } else { Err(format!("{head:?}")) }
        })
        .await;
        // It serves nothing, so the control plane does not know it by its registration.
        let identity = format!("spiffe://cluster.local/ns/default/sa/{name}");
        let from = format!("default/{name}");
        let arguments = ["--from", &from, "--identity", &identity, "--to", "http://shop:8080/"];
        answers.push((got, world.explain(&arguments)));
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_let_in_is_told_with_the_rule_and_who_is_not_with_the_reason() {
    let answers = both(false).await;
    let ((_, reason), said) = &answers[0];
    let policy = &said["backends"][0]["endpoints"][0]["policy"];
    assert_eq!((reason, &said["fails"]), (&None, &Value::Null), "{said}");
    assert_eq!(
        (policy["allowed"].as_bool(), policy["rule"].as_str()),
        (Some(true), Some("default/shop/web"))
    );
    let ((status, reason), said) = &answers[1];
    assert_eq!(said["fails"]["status"], *status, "{said}");
    assert_eq!(said["fails"]["reason"].as_str(), reason.as_deref(), "{said}");
    // Without TLS nobody is known; and what a proxy says is not believed, so that its reason does not arrive.
    for ((status, _), said) in both(true).await {
        assert_eq!(said["fails"]["status"], status, "{said}");
        assert_eq!(said["fails"]["reason"], "identity_required", "{said}");
    }
}
