//! The Gateway API's own definitions beside ours, and every object that our pages show.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tulle_tests::cluster::{ApiServer, Caller};

use crate::{gateway_api, ours, shown};

/// What the server has against objects that pages show, each with its place.
async fn refused(caller: &Caller, shown: &[(String, Value)]) -> Vec<String> {
    let mut refused = Vec::new();
    for (place, object) in shown {
        let name = &object["metadata"]["name"];
        if let Err(why) = caller.try_out(object).await {
            refused.push(format!("{place}: {} {name}: {why}", object["kind"]));
        }
    }
    refused
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
async fn every_object_that_the_pages_show_is_taken_field_by_field() {
    let server = ApiServer::start().await;
    let caller = server.administrator();
    server.define(&gateway_api("experimental")).await;
    server.define(&ours()).await;
    let shown = shown();
    let namespaces = shown.iter().filter_map(|(_, object)| object["metadata"]["namespace"].as_str());
    for namespace in namespaces.collect::<BTreeSet<_>>() {
        server.namespace(namespace, json!({})).await;
    }
    assert!(shown.len() > 40, "{}", shown.len());
    assert_eq!(refused(caller, &shown).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
async fn the_standard_channel_lacks_what_the_pages_say_it_lacks() {
    let server = ApiServer::start().await;
    let caller = server.administrator();
    server.define(&gateway_api("standard")).await;
    let mut shown = shown();
    shown.retain(|(_, object)| {
        object["apiVersion"].as_str().is_some_and(|version| version.starts_with("gateway.networking.k8s.io/"))
    });
    for namespace in shown.iter().filter_map(|(_, object)| object["metadata"]["namespace"].as_str()) {
        server.namespace(namespace, json!({})).await;
    }
    // Timeouts are of the standard channel, retries and sessions are not.
    let refused = refused(caller, &shown).await;
    let lacking = ["retry", "sessionPersistence"];
    for one in &refused {
        assert!(
            lacking.iter().any(|field| one.contains(&format!("unknown field \"spec.rules[0].{field}\""))),
            "{one}"
        );
    }
    for field in lacking {
        assert!(refused.iter().any(|one| one.contains(field)), "{field} is in the standard channel by now");
    }
}
