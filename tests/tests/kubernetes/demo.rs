//! The page's way from an empty cluster to traces in Jaeger (docs/kubernetes.md), with the manifests that it applies: the demo's services as
//! the Deployments say them, in pods that the API server had injected, their traces in a real Jaeger.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};
use tulle_tests::cluster::ApiServer;
use tulle_tests::eventually;
use tulle_tests::jaeger::{GRPC, Jaeger, assert_whole};
use tulle_tests::netns::in_a_node;

use crate::manifest;
use crate::mesh::{Mesh, NODE, Running, SHOP};

const SERVICES: &str = "docs/examples/kubernetes/shop.yaml";
const COLLECTOR: &str = "docs/examples/kubernetes/jaeger.yaml";
/// Where Jaeger is, as its manifest has it.
const JAEGER: &str = "jaeger.tracing.svc.cluster.local";
/// Who is called, before whoever calls: a pod is ready once its application listens.
const DEPLOYMENTS: [&str; 4] = ["payments-v1", "payments-v2", "orders", "web"];

/// A Deployment's pod, as its ReplicaSet would make it.
async fn pod(mesh: &Mesh, deployment: &Value) -> Running {
    let name = deployment["metadata"]["name"].as_str().unwrap();
    let mut template = deployment["spec"]["template"].clone();
    template["metadata"]["labels"]["pod-template-hash"] = "5d8f9".into();
    template["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{name}-5d8f9"), "controller": true,
        "uid": deployment["metadata"]["uid"],
    }]);
    mesh.run(&template, SHOP, &format!("{name}-5d8f9-x7x2b")).await
}

/// The pods whose labels a Service selects.
fn selected<'a>(service: &Value, pods: &'a BTreeMap<&str, Running>) -> Vec<&'a Value> {
    let selector = service["spec"]["selector"].as_object().unwrap();
    let objects = pods.values().map(|running| &running.containers.object);
    objects
        .filter(|pod| selector.iter().all(|(key, value)| pod["metadata"]["labels"][key] == *value))
        .collect()
}

async fn apply(server: &ApiServer, objects: &[Value]) -> Vec<Value> {
    let caller = server.administrator();
    let mut kept = Vec::new();
    for object in objects {
        kept.push(caller.apply(object).await.unwrap_or_else(|refused| panic!("{object:#}: {refused}")));
    }
    kept
}

/// What `web` answers on its own loopback, as through `kubectl port-forward`: the versions on the request's way.
async fn asked(web: &Running) -> Result<[String; 3], String> {
    let said = web.pod.curl_port(SocketAddr::from(([127, 0, 0, 1], 8080))).await?;
    let answer: Value = serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))?;
    let hops =
        ["", "/upstream", "/upstream/upstream"].map(|at| answer.pointer(at).cloned().unwrap_or_default());
    if hops.iter().any(|hop| hop["service"].is_null()) {
        return Err(said);
    }
    Ok(hops.map(|hop| format!("{}-{}", hop["service"].as_str().unwrap(), hop["version"].as_str().unwrap())))
}

#[test]
#[ignore = "needs kube-apiserver, etcd and Jaeger; `.ci/run kubernetes` builds and installs them"]
fn the_demos_services_run_as_their_manifests_say_and_are_traced_through_the_end_of_either_replica() {
    in_a_node(async || {
        let tracing = json!({"collector": {"endpoint": format!("http://{JAEGER}:{GRPC}")}, "sampling": {"percent": 100}});
        let mut mesh = Mesh::start_with(2, &[], json!({"tracing": tracing})).await;
        let jaeger = Jaeger::start(mesh.server.folder(), NODE).await;
        // Both families: what is not in the file is asked of DNS, and there is none.
        for at in [NODE.into(), NODE.to_ipv6_mapped().into()] {
            mesh.names.push((at, JAEGER.to_owned()));
        }
        // Its Service has no address that is anywhere; the server says whether the manifest is right.
        apply(&mesh.server, &manifest(COLLECTOR)).await;
        let kept = apply(&mesh.server, &manifest(SERVICES)).await;
        let of = |kind: &str| kept.iter().filter(|object| object["kind"] == kind).collect::<Vec<_>>();
        for service in of("Service") {
            let ip = service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
            mesh.names.push((ip, service["metadata"]["name"].as_str().unwrap().to_owned()));
        }
        let mut pods = BTreeMap::new();
        for name in DEPLOYMENTS {
            let all = of("Deployment");
            let deployment = all.iter().find(|object| object["metadata"]["name"] == name).unwrap();
            pods.insert(name, pod(&mesh, deployment).await);
        }
        assert_eq!(pods.len(), of("Deployment").len(), "each has a pod");
        for service in of("Service") {
            mesh.server.endpoints(service, &selected(service, &pods)).await;
        }
        let web = &pods["web"];
        eventually("a request goes all the way", async || asked(web).await.map(drop)).await;
        // What is traced from here on has no failures in it.
        let begun = u64::try_from(UNIX_EPOCH.elapsed().unwrap().as_micros()).unwrap();
        let mut versions = BTreeMap::<String, usize>::new();
        for _ in 0..100 {
            let [of_web, of_orders, payments] = asked(web).await.unwrap();
            assert_eq!([of_web, of_orders], ["web-v1", "orders-v1"]);
            *versions.entry(payments).or_default() += 1;
        }
        let of_v2 = versions["payments-v2"];
        assert!((1..=30).contains(&of_v2), "one in ten, by the route: {versions:?}");

        // Mutual TLS all the way, and nobody but orders at payments.
        let id = |account: &str| json!(format!("spiffe://cluster.local/ns/{SHOP}/sa/{account}"));
        for (at, from) in [("orders", "web"), ("payments-v1", "orders"), ("payments-v2", "orders")] {
            let came = [
                ("direction", json!("inbound")),
                ("status", json!(200)),
                ("source", id(from)),
                ("tls", json!("mtls")),
            ];
            pods[at].process("tulle-proxy").logs(&came).await;
        }
        let (payments, _) = mesh.names.iter().find(|(_, name)| name == "payments").unwrap();
        let refused = web.pod.curl_port(SocketAddr::new(*payments, 80)).await.unwrap_err();
        assert!(refused.contains("403"), "{refused}");

        // Either replica ends, and then the other: nobody notices.
        for number in [0, 1] {
            mesh.replicas[number].process_mut("control-plane").kill().await;
            for _ in 0..20 {
                asked(web).await.unwrap();
            }
        }

        let traces = eventually("every trace is there as a whole", async || {
            let mut traces = jaeger.traces("orders").await?;
            traces.retain(|spans| spans.first().is_some_and(|span| span.start >= begun));
            match traces.iter().find(|spans| spans.len() != 4) {
                Some(spans) => Err(format!("not of four spans: {spans:#?}")),
                None if traces.len() != 140 => {
                    let services = jaeger.services().await;
                    let sent = web.process("tulle-proxy").stdout();
                    let sent: Vec<&str> = sent.lines().filter(|line| line.contains("spans")).collect();
                    Err(format!("{} traces; Jaeger knows {services:?}; web says {sent:?}", traces.len()))
                }
                None => Ok(traces),
            }
        })
        .await;
        traces.iter().for_each(|spans| assert_whole(spans));
        jaeger.stop().await;
    });
}
