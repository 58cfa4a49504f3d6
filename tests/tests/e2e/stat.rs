//! What `tulle stat | edges | routes` show is what was carried, from the proxies' own reports.

use std::sync::atomic::{AtomicU64, Ordering};

use http::Response;
use rustix::process::Signal;
use serde_json::Value;
use tulle_tests::app::{App, full};
use tulle_tests::{Program, Workload, World, binary, eventually};

/// What a verb prints as JSON, or says on standard error.
fn ask(world: &World, arguments: &[&str]) -> Result<Value, String> {
    let program = Program::new("stat", binary("tulle"));
    let program = arguments.iter().fold(program, |program, one| program.arg(*one));
    let output = program
        .flag("--control-plane", world.metrics_address().to_string())
        .flag("--output", "json")
        .output();
    let error = || String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).map_err(|_| error())
}

fn rows(world: &World, arguments: &[&str]) -> Result<Vec<Value>, String> {
    ask(world, arguments).map(|said| said["rows"].as_array().unwrap().clone())
}

/// Answers 500 to `/broken`.
async fn application() -> App {
    App::http1(async |request| {
        let mut response = Response::new(full("hello"));
        if request.uri().path() == "/broken" {
            *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        }
        response
    })
    .await
}

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: by-path, namespace: default}\nspec:\n  \
                     parentRefs: [{group: '', kind: Service, name: orders, port: 8080}]\n  rules:\n    - backendRefs: [{name: orders, port: 8080}]\n";

async fn send(web: &Workload, path: &str, times: usize) {
    for _ in 0..times {
        let mut wire = web.connect("orders").await;
        wire.send(format!("GET {path} HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(wire.response().await.0.status(), if path == "/broken" { 500 } else { 200 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_carried_is_shown_by_service_workload_edge_and_route() {
    let world = World::strict().await;
    world.service("orders", "http");
    world.service("idle", "http");
    world.yaml("route.yaml", ROUTE);
    let error = ask(&world, &["stat"]).unwrap_err();
    assert!(error.contains("no proxy reports to the control plane at 127.0.0.1:"), "{error}");
    let app = application().await;
    let often = ["--load-report-interval", "1s"];
    let start =
        async |name: &str| world.workload(name).calls("orders").setting(often[0], often[1]).start().await;
    let orders =
        world.workload("orders").serves("orders", app.address()).setting(often[0], often[1]).start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let (mut web, other) = (start("web").await, start("other").await);
    let early = AtomicU64::new(0);
    for client in [&web, &other] {
        eventually("the endpoint is there", async || {
            let mut wire = client.connect("orders").await;
            wire.send("GET /warm HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await;
            let status = wire.response().await.0.status();
            if status == 200 {
                return Ok(());
            }
            early.fetch_add(1, Ordering::Relaxed);
            Err(status.to_string())
        })
        .await;
    }
    // What was asked before the endpoint was known.
    let early = early.into_inner();
    send(&web, "/", 30).await;
    send(&web, "/broken", 10).await;
    send(&other, "/", 10).await;

    let service = eventually("the service's numbers", async || {
        let of = rows(&world, &["stat", "services", "default/orders"])?;
        let done = of[0]["failures"] == 10 + early && of[0]["requests"] == 52 + early;
        if done { Ok(of[0].clone()) } else { Err(format!("{of:?}")) }
    })
    .await;
    assert_eq!(service["meshed"], "1/1", "{service}");
    let requests = service["requests"].as_u64().unwrap();
    let success = service["success_rate"].as_f64().unwrap();
    assert!((success - 42.0 / requests as f64).abs() < 1e-9, "{service}");
    assert!(service["rps"].as_f64().unwrap() > 0.5, "{service}");
    let latency = |q: &str| service[format!("latency_{q}_ms")].as_f64().unwrap();
    assert!(0.0 < latency("p50") && latency("p50") <= latency("p95") && latency("p95") <= latency("p99"));

    // Who was called by nobody is there too, and only what is asked for.
    let all = rows(&world, &["stat", "--namespace", "default"]).unwrap();
    let names: Vec<&str> = all.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["default/idle", "default/orders"]);
    assert_eq!(all[0]["success_rate"], Value::Null, "{all:?}");
    assert!(rows(&world, &["stat", "--namespace", "bank"]).unwrap().is_empty());
    let error = ask(&world, &["stat", "services", "default/none"]).unwrap_err();
    assert!(error.contains("the control plane knows no Service default/none"), "{error}");

    eventually("the workload's own proxy says the same", async || {
        let of = rows(&world, &["stat", "workloads", "orders", "-n", "default"])?;
        if of[0]["failures"] == 10 && of[0]["requests"] == 52 { Ok(()) } else { Err(format!("{of:?}")) }
    })
    .await;

    let edges = rows(&world, &["edges"]).unwrap();
    let edges: Vec<Value> = edges.into_iter().filter(|edge| edge["secured"] == "mtls").collect();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let pairs: Vec<_> = edges.iter().map(|row| (text(row, "src"), text(row, "dst"))).collect();
    let expected = [("default/other", "default/orders"), ("default/web", "default/orders")];
    assert_eq!(pairs, expected.map(|(from, to)| (from.to_owned(), to.to_owned())), "{edges:?}");
    for (edge, client) in edges.iter().zip([&other, &web]) {
        assert_eq!(
            (text(edge, "src_identity"), text(edge, "dst_identity")),
            (client.identity(), orders.identity())
        );
    }

    // Of one client's only its own.
    let of_other = rows(&world, &["stat", "services", "orders", "-n", "default", "--from", "other"]).unwrap();
    assert!((11..=11 + early).contains(&of_other[0]["requests"].as_u64().unwrap()), "{of_other:?}");
    let served = rows(&world, &["stat", "workloads", "default/orders", "--from", "default/web"]).unwrap();
    assert_eq!((&served[0]["requests"], &served[0]["failures"]), (&41.into(), &10.into()), "{served:?}");
    let sent = rows(&world, &["stat", "workloads", "--to", "default/orders"]).unwrap();
    assert_eq!(
        sent.iter().map(|row| text(row, "name")).collect::<Vec<_>>(),
        ["default/other", "default/web"]
    );

    let routes = rows(&world, &["routes", "default/orders"]).unwrap();
    let of_route: u64 = routes
        .iter()
        .filter(|row| row["route"] == "default/by-path" && row["backend"] == "default/orders:8080")
        .map(|row| row["requests"].as_u64().unwrap())
        .sum();
    assert!(of_route >= 52, "{routes:?}");

    // Who has gone is no longer connected, and what it had carried stays known for a while.
    web.process().signal(Signal::KILL);
    eventually("the proxy is gone", async || {
        let of = rows(&world, &["stat", "workloads", "default/web"])?;
        if of[0]["meshed"] == "0/1" { Ok(()) } else { Err(format!("{of:?}")) }
    })
    .await;
    let gone = rows(&world, &["stat", "workloads", "--to", "default/orders"]).unwrap();
    let gone = gone.iter().find(|row| row["name"] == "default/web").unwrap();
    assert!(
        gone["requests"].as_u64().unwrap() >= 41 && gone["rps"] == 0.0,
        "who is gone sends nothing: {gone}"
    );
    assert!(rows(&world, &["edges"]).unwrap().iter().any(|row| row["src"] == "default/web"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_carries_before_it_ends_is_told_though_no_report_is_due() {
    let world = World::strict().await;
    world.service("orders", "http");
    let app = application().await;
    let rarely = ["--load-report-interval", "30s"];
    let orders =
        world.workload("orders").serves("orders", app.address()).setting(rarely[0], rarely[1]).start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let mut web = world.workload("web").calls("orders").setting(rarely[0], rarely[1]).start().await;
    web.reaches("orders").await;
    send(&web, "/", 20).await;
    let carried = web.metrics().await.sum("tulle_requests_total", &[("direction", "outbound")]);
    assert!(carried >= 21.0, "{carried}");
    let status = web.process().stop().await;
    assert!(status.success(), "{status}");
    eventually("the last requests are told", async || {
        let of = rows(&world, &["stat", "workloads", "--to", "default/orders"])?;
        let of_web = of.iter().find(|row| row["name"] == "default/web").ok_or("no web")?;
        let is_all = of_web["requests"].as_f64().is_some_and(|requests| requests >= carried);
        if is_all && of_web["meshed"] == "0/1" && of_web["rps"] == 0.0 {
            Ok(())
        } else {
            Err(of_web.to_string())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_no_request_is_counted_while_it_is_open() {
    let world = World::strict().await;
    world.service("orders", "tcp");
    let app = App::echo().await;
    let often = ["--load-report-interval", "1s"];
    let orders =
        world.workload("orders").serves("orders", app.address()).setting(often[0], often[1]).start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = world.workload("web").calls("orders").setting(often[0], often[1]).start().await;
    let wire = eventually("the endpoint is there", async || {
        let mut wire = web.connect("orders").await;
        wire.send("ping\n").await;
        let echo = wire.until(b"\n").await.ok_or("closed")?;
        if echo == b"ping\n" { Ok(wire) } else { Err(format!("{echo:?}")) }
    })
    .await;
    let open = async |expected: u64| {
        eventually(&format!("{expected} open"), async || {
            let of = rows(&world, &["stat", "services", "default/orders"])?;
            let is_open = of[0]["open_connections"] == expected && of[0]["requests"] == 0;
            // Bytes may be told when it is over.
            let bytes = |way: &str| of[0][way].as_u64().unwrap();
            if is_open && (expected > 0 || bytes("read_bytes") >= 5 && bytes("write_bytes") >= 5) {
                Ok(())
            } else {
                Err(format!("{of:?}"))
            }
        })
        .await;
    };
    open(1).await;
    drop(wire);
    open(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_page_of_a_browser_asks_for_is_not_told() {
    let world = World::strict().await;
    let mut wire = tulle_tests::Wire::connect(world.metrics_address()).await;
    wire.send("GET /load HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n").await;
    assert_eq!(wire.response().await.0.status(), 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_was_told_not_to_tell_apart_or_not_to_report_is_said() {
    let world = World::strict().await;
    world.service("orders", "http");
    let app = application().await;
    let silent = world.workload("orders").serves("orders", app.address());
    let silent = silent.setting("--load-report-interval", "none").start().await;
    silent.counts("tulle_registered", &[], 1.0).await;
    let web = world.workload("web").calls("orders").setting("--load-report-interval", "1s");
    let _web = web.setting("--metrics-labels", "service").start().await;
    let said = eventually("a report", async || ask(&world, &["stat"])).await;
    assert_eq!(said["untold"], serde_json::json!({"default/web": ["backend", "peer", "route"]}), "{said}");
    // It is connected, and nothing is known of it.
    let of = rows(&world, &["stat", "workloads", "default/orders"]).unwrap();
    assert_eq!((&of[0]["meshed"], &of[0]["requests"]), (&"1/1".into(), &0.into()), "{of:?}");
}
