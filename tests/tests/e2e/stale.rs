//! Stale endpoints (R7): whatever is killed, partitioned or changed meanwhile, proxies come to use exactly what the folder says.
//!
//! It is waited for the exact state, and that nothing else is held; how long that takes is held to R7 in the long form only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use tulle_tests::app::App;
use tulle_tests::{Program, Workload, World, binary, eventually, long};

/// Addresses of endpoints by service, in the namespace of tests.
type Endpoints = BTreeMap<String, BTreeSet<String>>;

fn endpoints(expected: &[(&str, &[u8])]) -> Endpoints {
    let address = |last: &u8| format!("127.0.0.{last}:9000");
    let of = |(name, hosts): &(&str, &[u8])| (format!("default/{name}"), hosts.iter().map(address).collect());
    expected.iter().map(of).collect()
}

/// A service with these endpoints, `127.0.0.<host>:9000`, nobody of which is there.
fn service(world: &World, name: &str, hosts: &[u8]) {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec: {{clusterIP: None, ports: \
         [{{name: main, port: 8080, appProtocol: http}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-1, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\n\
         ports: [{{name: main, port: 9000}}]\nendpoints:\n"
    );
    for host in hosts {
        text.push_str(&format!("  - addresses: [127.0.0.{host}]\n    conditions: {{ready: true}}\n"));
    }
    if hosts.is_empty() {
        text.push_str("  []\n");
    }
    world.yaml(&format!("{name}.yaml"), &text);
}

/// A proxy that uses these services, none of which answers.
async fn client(world: &World, name: &str, services: &[&str]) -> Workload {
    let builder = services.iter().fold(world.workload(name), |builder, service| builder.calls(service));
    let client = builder.start().await;
    for service in services {
        let mut wire = client.connect(service).await;
        wire.send("GET / HTTP/1.1\r\nhost: nobody\r\nconnection: close\r\n\r\n").await;
        assert_eq!(wire.response().await.0.status(), 503);
    }
    client
}

/// What `tulle diagnostics endpoints -o json` says, and whether it exits with 0.
fn diagnostics(world: &World) -> (Value, bool) {
    let output = Program::new("diagnostics", binary("tulle"))
        .arg("diagnostics")
        .arg("endpoints")
        .flag("--control-plane", world.metrics_address().to_string())
        .flag("--output", "json")
        .output();
    let said = serde_json::from_slice(&output.stdout);
    (said.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr))), output.status.success())
}

fn addresses(endpoints: &Value) -> BTreeSet<String> {
    let addresses = endpoints.as_array().unwrap().iter();
    addresses.map(|one| one["address"].as_str().unwrap().to_owned()).collect()
}

/// What a proxy itself shows that it uses.
async fn in_use(proxy: &Workload) -> Endpoints {
    let dump: Value = serde_json::from_str(&proxy.config_dump().await).unwrap();
    let services = dump["services"].as_array().unwrap().iter();
    services.map(|one| (one["name"].as_str().unwrap().to_owned(), addresses(&one["endpoints"]))).collect()
}

/// Waits until these proxies, and no others, use these endpoints, and the control plane says so too.
async fn all_use(world: &World, proxies: &[&Workload], expected: &Endpoints, gone: &[&str]) {
    eventually("every proxy uses what the folder says", async || {
        for proxy in proxies {
            let used = in_use(proxy).await;
            if used != *expected {
                return Err(format!("{} uses {used:?}", proxy.name()));
            }
        }
        let (said, equal) = diagnostics(world);
        let mut names: Vec<&str> = proxies.iter().map(|proxy| proxy.name()).collect();
        names.sort_unstable();
        for (service, endpoints) in expected {
            let one = &said["services"][service];
            let users: Vec<&str> = one["proxies"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|proxy| proxy["proxy"].as_str())
                .collect();
            let exists = !gone.contains(&service.as_str());
            let names: Vec<String> = names.iter().map(|name| format!("default/{name}")).collect();
            if users != names || one["exists"] != exists || addresses(&one["control_plane"]) != *endpoints {
                return Err(format!("{service}: {said}"));
            }
        }
        if equal { Ok(()) } else { Err(said.to_string()) }
    })
    .await;
}

/// The time of R7, where nothing else slows the machine down.
fn soon(mended: Instant) {
    let took = mended.elapsed();
    assert!(!long() || took <= Duration::from_secs(35), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r07_proxies_equal_the_folder_that_changed_while_the_control_plane_was_dead() {
    let mut world = World::strict().await;
    service(&world, "moved", &[11, 12]);
    service(&world, "gone", &[21]);
    service(&world, "same", &[31, 32]);
    service(&world, "empty", &[41]);
    let services = ["moved", "gone", "same", "empty"];
    let web = client(&world, "web", &services).await;
    let mut cart = client(&world, "cart", &services).await;
    let before = endpoints(&[("moved", &[11, 12]), ("gone", &[21]), ("same", &[31, 32]), ("empty", &[41])]);
    all_use(&world, &[&web, &cart], &before, &[]).await;

    world.kill_control_plane().await;
    cart.process().signal(Signal::STOP);
    service(&world, "moved", &[12, 13]);
    service(&world, "empty", &[]);
    world.remove_yaml("gone.yaml");
    world.restart_control_plane().await;
    let back = Instant::now();
    let after = endpoints(&[("moved", &[12, 13]), ("gone", &[]), ("same", &[31, 32]), ("empty", &[])]);
    all_use(&world, &[&web], &after, &["default/gone"]).await;
    soon(back);
    // Who was partitioned from all of it has missed the end of one control plane and the beginning of another.
    cart.process().signal(Signal::CONT);
    let back = Instant::now();
    all_use(&world, &[&web, &cart], &after, &["default/gone"]).await;
    soon(back);

    // And both ends have compared, and found nothing to mend.
    for proxy in [&web, &cart] {
        proxy.counts("tulle_ads_comparisons_total", &[("result", "equal")], 1.0).await;
        let metrics = proxy.metrics().await;
        assert_eq!(metrics.sum("tulle_ads_repairs_total", &[]), 0.0, "{}", proxy.diagnostics());
    }
    let metrics = world.metrics().await;
    assert!(metrics.sum("tulle_control_plane_comparisons_total", &[("result", "equal")]) >= 2.0);
    assert_eq!(metrics.sum("tulle_control_plane_comparisons_total", &[("result", "different")]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn r07_a_partitioned_proxy_is_named_and_catches_up() {
    let world = World::strict().await;
    service(&world, "orders", &[11, 12]);
    let web = client(&world, "web", &["orders"]).await;
    let mut cart = client(&world, "cart", &["orders"]).await;
    all_use(&world, &[&web, &cart], &endpoints(&[("orders", &[11, 12])]), &[]).await;

    cart.process().signal(Signal::STOP);
    eventually("who does not answer is named", async || {
        let (said, equal) = diagnostics(&world);
        let named = !equal && said["silent"] == serde_json::json!(["default/cart"]);
        if named { Ok(()) } else { Err(said.to_string()) }
    })
    .await;
    for hosts in [&[12][..], &[12, 13, 14], &[13]] {
        service(&world, "orders", hosts);
        eventually("who is not partitioned uses them", async || {
            let used = in_use(&web).await;
            if used == endpoints(&[("orders", hosts)]) { Ok(()) } else { Err(format!("{used:?}")) }
        })
        .await;
    }
    cart.process().signal(Signal::CONT);
    let back = Instant::now();
    all_use(&world, &[&web, &cart], &endpoints(&[("orders", &[13])]), &[]).await;
    soon(back);
}

#[tokio::test(flavor = "multi_thread")]
async fn r07_a_control_plane_that_stood_still_takes_no_endpoint_away() {
    let mut world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let _orders = world.workload("orders").serves("orders", app.address()).start().await;
    let web = world.workload("web").calls("orders").start().await;
    web.reaches("orders").await;
    let registered = |world: &mut World| {
        let log = world.control_plane().stdout();
        log.lines().filter(|line| line.contains("registered a workload")).count()
    };
    let before = registered(&mut world);
    world.control_plane().signal(Signal::STOP);
    // Its proxies give it up meanwhile.
    tokio::time::sleep(Duration::from_secs(20)).await;
    world.control_plane().signal(Signal::CONT);
    let mut wire = web.connect("orders").await;
    while registered(&mut world) == before {
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        assert_eq!(wire.response().await.0.status(), 200);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    world.control_plane_says(&["this process stood still"]).await;
    let failed = web.metrics().await.sum("tulle_requests_total", &[("reason", "no_healthy_endpoint")]);
    assert!(failed == 0.0, "{failed} requests found no endpoint");
}
