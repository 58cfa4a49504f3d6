//! Services and pods of every kind, as a real API server has them: headless, with named target ports, of both families, with an endpoint that ends,
//! with a pod on its node's network, and pods that are dialled by their own addresses.

use std::net::{IpAddr, SocketAddr};

use futures_util::future::join;
use http::Response;
use serde_json::{Value, json};
use tulle_tests::app::{App, full};
use tulle_tests::eventually;
use tulle_tests::netns::in_a_node;
use tulle_tests::pod::Pod;

use crate::disturbed::is_told;
use crate::mesh::{Mesh, Running, SHOP};

/// A pod `name` of the application `of`, in the mesh, whose ports have these names.
async fn run(mesh: &Mesh, of: &str, name: &str, ports: &[(&str, u16)]) -> Running {
    mesh.server.account(SHOP, of).await;
    let template = json!({
        "metadata": {"labels": {"app": of}},
        "spec": {
            "serviceAccountName": of, "hostname": name, "subdomain": of,
            "containers": [{"name": "app", "image": "app", "ports": declared(ports)}],
        },
    });
    mesh.run(&template, SHOP, name).await
}

fn declared(ports: &[(&str, u16)]) -> Value {
    ports.iter().map(|(name, number)| json!({"name": name, "containerPort": number})).collect()
}

/// The application in a pod, at a port.
fn answers(pod: &Pod, port: u16, text: &'static str) -> App {
    App::http1_on(pod.listen(&format!("[::]:{port}")), move |_| async move { Response::new(full(text)) })
}

/// A Service over the pods of the application of its name, with more of its spec; gives its virtual IPs.
async fn service(mesh: &Mesh, name: &str, ports: Value, more: Value, pods: &[&Value]) -> Vec<IpAddr> {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SHOP},
        "spec": {"selector": {"app": name}, "ipFamilyPolicy": "PreferDualStack", "ports": ports},
    });
    service["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let service = mesh.server.administrator().apply(&service).await.unwrap();
    mesh.server.endpoints(&service, pods).await;
    let ips = service["spec"]["clusterIPs"].as_array().unwrap().iter();
    ips.filter_map(|ip| ip.as_str().unwrap().parse().ok()).collect()
}

/// A port of a Service that leads to the port of pods that has this name.
fn port(name: &str, number: u16) -> Value {
    json!({"name": name, "port": number, "targetPort": name, "appProtocol": "http"})
}

/// What an access log says of who is at the other end.
fn other_end(direction: &str, field: &'static str, account: &str) -> [(&'static str, Value); 4] {
    [
        ("direction", json!(direction)),
        ("status", json!(200)),
        (field, json!(format!("spiffe://cluster.local/ns/{SHOP}/sa/{account}"))),
        ("tls", json!("mtls")),
    ]
}

/// A pair as a StatefulSet makes it, behind a Service without a virtual IP: each is reached by its own addresses.
async fn headless(mesh: &Mesh, web: &Running) {
    let main = [("main", 8080)];
    let (first, second) =
        join(run(mesh, "ledger", "ledger-0", &main), run(mesh, "ledger", "ledger-1", &main)).await;
    let _apps = [answers(&first.pod, 8080, "ledger-0"), answers(&second.pod, 8080, "ledger-1")];
    let pods = [&first.containers.object, &second.containers.object];
    let none = json!({"clusterIP": "None"});
    let ips = service(mesh, "ledger", json!([port("main", 8080)]), none, &pods).await;
    assert!(ips.is_empty(), "a headless Service has none: {ips:?}");
    for (running, says) in [(&first, "ledger-0"), (&second, "ledger-1")] {
        let addresses: [IpAddr; 2] = [running.pod.v4().into(), running.pod.v6().into()];
        for ip in addresses {
            web.gets(SocketAddr::new(ip, 8080), says).await;
        }
        running.process("tulle-proxy").logs(&other_end("inbound", "source", "web")).await;
    }
    web.process("tulle-proxy").logs(&other_end("outbound", "destination", "ledger")).await;
}

/// Each of a Service's ports leads to the port of its pod that has the name, by virtual IPs of both families.
async fn named_ports(mesh: &Mesh, web: &Running) {
    let prices = run(mesh, "prices", "prices", &[("main", 8080), ("other", 9090)]).await;
    let _apps = [answers(&prices.pod, 8080, "main"), answers(&prices.pod, 9090, "other")];
    let ports = json!([port("main", 80), port("other", 81)]);
    let ips = service(mesh, "prices", ports, json!({}), &[&prices.containers.object]).await;
    assert!(ips.len() == 2 && ips[0].is_ipv4() != ips[1].is_ipv4(), "{ips:?}");
    for ip in ips {
        web.gets(SocketAddr::new(ip, 80), "main").await;
        web.gets(SocketAddr::new(ip, 81), "other").await;
    }
    web.process("tulle-proxy").logs(&other_end("outbound", "destination", "prices")).await;
}

/// So many answers, one after the other.
async fn answered(web: &Running, to: SocketAddr, count: usize) -> Result<Vec<String>, String> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        all.push(web.pod.curl_port(to).await?);
    }
    Ok(all)
}

/// An endpoint that ends gets nothing new, while another serves.
async fn terminating(mesh: &Mesh, web: &Running) {
    let main = [("main", 8080)];
    let (stays, ends) =
        join(run(mesh, "orders", "orders-0", &main), run(mesh, "orders", "orders-1", &main)).await;
    let _apps = [answers(&stays.pod, 8080, "stays"), answers(&ends.pod, 8080, "ends")];
    let policy = json!({
        "apiVersion": "policy.tulle.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": "orders", "namespace": SHOP},
        "spec": {"targetRefs": [{"kind": "Service", "name": "orders"}], "loadBalancer": {"algorithm": "RoundRobin"}},
    });
    mesh.server.administrator().apply(&policy).await.unwrap();
    let ports = json!([port("main", 80)]);
    let both = [&stays.containers.object, &ends.containers.object];
    let ips = service(mesh, "orders", ports.clone(), json!({}), &both).await;
    let to = SocketAddr::new(ips[0], 80);
    eventually("both are asked", async || {
        let all = answered(web, to, 6).await?;
        let has = |text: &str| all.iter().any(|one| one == text);
        if has("stays") && has("ends") { Ok(()) } else { Err(format!("{all:?}")) }
    })
    .await;

    // As the controller writes it once the pod is being deleted; it answers on.
    let mut ending = ends.containers.object.clone();
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    service(mesh, "orders", ports, json!({}), &[&stays.containers.object, &ending]).await;
    eventually("what ends is asked no more", async || {
        let all = answered(web, to, 6).await?;
        if all.iter().all(|one| one == "stays") { Ok(()) } else { Err(format!("{all:?}")) }
    })
    .await;
    let all = answered(web, to, 20).await.unwrap();
    assert!(all.iter().all(|one| one == "stays"), "{all:?}");
}

/// A pod on its node's network gets no proxy, is told of, and is called in plain text.
async fn host_network(mesh: &Mesh, web: &Running) {
    let node = mesh.outside("node");
    let _app = answers(&node, 8080, "agent");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "agent", "namespace": SHOP, "labels": {"app": "agent"}},
        "spec": {
            "hostNetwork": true,
            "containers": [{"name": "app", "image": "app", "ports": declared(&[("main", 8080)])}],
        },
    });
    let caller = mesh.server.administrator();
    let kept = caller.create(&pod).await.unwrap();
    assert!(kept["metadata"]["annotations"]["tulle.dev/status"].is_null(), "{kept:#}");
    assert!(kept["spec"]["initContainers"].is_null(), "{kept:#}");
    is_told(mesh, SHOP, "agent", "NotInMesh", &["host_network", "uses its node's network"]).await;
    let status = json!({
        "phase": "Running", "podIP": node.v4().to_string(), "podIPs": [{"ip": node.v4().to_string()}],
        "hostIP": node.v4().to_string(), "hostIPs": [{"ip": node.v4().to_string()}],
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    });
    let agent = caller.set_status(&kept, status).await.unwrap();
    let ips = service(mesh, "agent", json!([port("main", 82)]), json!({}), &[&agent]).await;
    web.gets(SocketAddr::new(ips[0], 82), "agent").await;
    let plain = [("direction", json!("outbound")), ("status", json!(200)), ("tls", json!("none"))];
    web.process("tulle-proxy").logs(&plain).await;
}

#[test]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
fn services_and_pods_of_every_kind_are_reached_as_they_are() {
    in_a_node(async || {
        let mesh = Mesh::start(1).await;
        let web = mesh.app("web").await;
        headless(&mesh, &web).await;
        named_ports(&mesh, &web).await;
        terminating(&mesh, &web).await;
        host_network(&mesh, &web).await;
        mesh.nothing_was_forbidden();
    });
}
