//! The access log: its forms and what is left out of it, by settings and by YAML, and a log that cannot be written.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde_json::{Value, json};
use tulle_tests::app::App;
use tulle_tests::{Program, Wire, Workload, World, binary, eventually};

use super::Pair;

async fn get(wire: &mut Wire, path: &str) -> u16 {
    wire.send(format!("GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n")).await;
    wire.response().await.0.status()
}

/// Waits for a line that has this in it.
async fn line_with(workload: &Workload, part: &str) -> String {
    eventually(&format!("{} logs {part}", workload.name()), async || {
        let lines = workload.access_lines();
        let line = lines.iter().find(|line| line.contains(part)).cloned();
        line.ok_or_else(|| lines.join("\n"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_each_form_is_written_as_it_is_asked_for() {
    let world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let orders = world.workload("orders").serves("orders", app.address());
    let orders = orders.setting("--access-log", "ecs").start().await;
    let web = world.workload("web").calls("orders").setting("--access-log", "apache").start().await;
    let template = "{{{direction}}} {status} \"{path}\" {reason} {destination} {bytes_out} {attempts}";
    let shop = world.workload("shop").calls("orders").setting("--access-log", template).start().await;
    for (client, path) in [(&web, "/cart?card=4111"), (&shop, "/basket?card=4111")] {
        client.reaches("orders").await;
        assert_eq!(get(&mut client.connect("orders").await, path).await, 200);
    }
    let line = line_with(&web, "/cart").await;
    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
    assert!(line.ends_with("] \"GET /cart HTTP/1.1\" 200 5 \"-\" \"-\""), "{line}");
    let line = line_with(&shop, "/basket").await;
    assert_eq!(line, format!("{{outbound}} 200 \"/basket\" - {} 5 1", orders.identity()));
    let line = line_with(&orders, "/cart").await;
    let ecs: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&ecs["url"]["path"], &ecs["http"]["response"]["status_code"], &ecs["tulle"]["source"]),
        (&json!("/cart"), &json!(200), &json!(web.identity())),
        "{ecs}"
    );
    assert_eq!((&ecs["event"]["outcome"], &ecs["tls"]["established"]), (&json!("success"), &json!(true)));
    let mut wire = web.connect("orders").await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    wire.send(format!(
        "GET /traced HTTP/1.1\r\nhost: orders\r\ntraceparent: 00-{trace}-00f067aa0ba902b7-01\r\n\r\n"
    ))
    .await;
    assert_eq!(wire.response().await.0.status(), 200);
    let line = line_with(&orders, "/traced").await;
    let ecs: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(ecs["trace"]["id"], trace, "{ecs}");
    for workload in [&web, &shop, &orders] {
        let lines = workload.access_lines().join("\n");
        assert!(!lines.contains("4111"), "a query may be secret: {lines}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_what_no_condition_describes_is_left_out_and_errors_are_not() {
    let world = World::strict().await;
    world.service("orders", "http");
    world.service("absent", "http");
    let app = App::saying("hello").await;
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let client = |name: &str| world.workload(name).calls("orders").calls("absent");
    // Each leaves out what is answered 200 at once, in its own way.
    for (name, flag, value) in [
        ("by-status", "--access-log-statuses", "404,5xx"),
        ("by-duration", "--access-log-min-duration", "1h"),
        ("by-chance", "--access-log-sample-percent", "0"),
    ] {
        let web = client(name).setting(flag, value).start().await;
        let mut wire = web.connect("orders").await;
        assert_eq!(get(&mut wire, "/good").await, 200);
        assert_eq!(get(&mut web.connect("absent").await, "/bad").await, 503);
        let record = web.logs(&[("reason", json!("no_healthy_endpoint"))]).await;
        assert_eq!(record["path"], "/bad");
        assert!(!web.access_lines().iter().any(|line| line.contains("/good")), "{name}");
    }
    // Where errors are asked for like everything else, only those that took that long.
    let web = client("filtered").setting("--access-log-errors", "filtered");
    let mut web = web.setting("--access-log-min-duration", "1h").start().await;
    assert_eq!(get(&mut web.connect("absent").await, "/bad").await, 503);
    web.process().stop().await;
    assert_eq!(web.access_lines(), Vec::<String>::new());
}

#[test]
fn a_template_that_names_no_field_stops_the_start() {
    let program = Program::new("mistyped", binary("tulle-proxy"));
    let output = program.flag("--access-log", "{status} {pth}").output();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for part in ["--access-log", "`{pth}` is no field", "did you mean `{path}`?"] {
        assert!(said.contains(part), "{said}");
    }
}

const MESH: &str = "apiVersion: policy.tulle.dev/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec: {mtls: strict, trustDomain: cluster.local, networks: [127.0.0.0/8], accessLog: {format: ecs}}
";

fn policy(target: &str, access_log: &str) -> String {
    format!(
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: TelemetryPolicy\nmetadata: {{name: log}}\nspec:\n  targetRefs: [{target}]\n  \
         accessLog: {access_log}\n"
    )
}

/// Asks until a line about it has this in it: until what was written in YAML has arrived.
async fn logged_as(asks: &Workload, logs: &Workload, expected: &str) {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    let mut wire = asks.connect("orders").await;
    eventually(&format!("{} logs {expected}", logs.name()), async || {
        let path = format!("/asked/{}/", ASKED.fetch_add(1, Relaxed));
        get(&mut wire, &path).await;
        // Lines leave a proxy some milliseconds later.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let lines = logs.access_lines();
        let line = lines.iter().rev().find(|line| line.contains(&path));
        match line {
            Some(line) if line.contains(expected) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_the_mesh_and_policies_say_what_is_logged_and_settings_win() {
    let pair = Pair::start(App::saying("hello").await, "http").await;
    let own = pair.world.workload("own").calls("orders").setting("--access-log", "json").start().await;
    pair.web.reaches("orders").await;
    own.reaches("orders").await;
    pair.world.yaml("mesh.yaml", MESH);
    let ecs = "\"ecs\":{\"version\"";
    for workload in [&pair.web, &pair.orders] {
        logged_as(&pair.web, workload, ecs).await;
    }
    logged_as(&own, &own, "\"target\":\"access\"").await;
    // Of a Service: both its clients' proxies and those behind it.
    let service = "{group: '', kind: Service, name: orders}";
    pair.world.yaml("log.yaml", &policy(service, "{format: '{direction} to {service} {path} of-service'}"));
    logged_as(&pair.web, &pair.web, "outbound to default/orders:8080").await;
    logged_as(&pair.web, &pair.orders, "inbound to").await;
    logged_as(&own, &own, "\"target\":\"access\"").await;
    // Of a route, which its clients follow; what it does not say, the Service's does.
    let route = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: all}
spec:
  parentRefs: [{group: '', kind: Service, name: orders, port: 8080}]
  rules: [{name: rest, backendRefs: [{name: orders, port: 8080}]}]
---
";
    let of_route =
        policy("{group: gateway.networking.k8s.io, kind: HTTPRoute, name: all}", "{statuses: ['404']}");
    let of_route = of_route.replace("name: log", "name: route");
    pair.world.yaml("route.yaml", &format!("{route}{of_route}"));
    let mut wire = pair.web.connect("orders").await;
    let mut times = 0;
    eventually("what follows the route is left out", async || {
        times += 1;
        let path = format!("/followed/{times}");
        assert_eq!(get(&mut wire, &path).await, 200);
        logged_as(&pair.web, &pair.orders, "inbound to").await;
        let told = pair.web.access_lines().iter().any(|line| line.contains(&path));
        if told { Err(path) } else { Ok(()) }
    })
    .await;
    // What is wrong is told, and what was in force stays.
    pair.world.yaml("log.yaml", &policy(service, "{format: '{statsu}'}"));
    pair.world.control_plane_says(&["spec.accessLog.format", "did you mean `{status}`"]).await;
    logged_as(&pair.web, &pair.orders, "inbound to").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_a_workloads_policy_says_what_its_own_proxy_logs_of_all_that_it_carries() {
    let pair = Pair::start(App::saying("hello").await, "http").await;
    let shop = pair.world.workload("shop").calls("orders").start().await;
    pair.web.reaches("orders").await;
    shop.reaches("orders").await;
    let json = "\"target\":\"access\"";
    let workload = |name: &str| format!("{{group: policy.tulle.dev, kind: Workload, name: {name}}}");
    let template = |name: &str| format!("{{format: '{{direction}} {{path}} of-{name}'}}");
    // One that only calls others, and one that serves.
    pair.world
        .yaml("web.yaml", &policy(&workload("web"), &template("web")).replace("name: log", "name: web"));
    logged_as(&pair.web, &pair.web, "outbound").await;
    logged_as(&pair.web, &pair.web, "of-web").await;
    logged_as(&pair.web, &pair.orders, json).await;
    logged_as(&shop, &shop, json).await;
    pair.world.yaml("orders.yaml", &policy(&workload("orders"), &template("orders")));
    logged_as(&pair.web, &pair.orders, "of-orders").await;
    // Every workload of the namespace: less specific than each of them.
    pair.world.yaml("all.yaml", &policy("", &template("all")).replace("name: log", "name: all"));
    logged_as(&shop, &shop, "of-all").await;
    logged_as(&shop, &pair.orders, "of-orders").await;
    // What is said of the Service is more specific.
    let service = policy("{group: '', kind: Service, name: orders}", &template("service"));
    pair.world.yaml("service.yaml", &service.replace("name: log", "name: service"));
    for workload in [&pair.web, &pair.orders] {
        logged_as(&pair.web, workload, "of-service").await;
    }
    // Of what is gone, the next less specific is left.
    for file in ["service.yaml", "web.yaml"] {
        pair.world.remove_yaml(file);
    }
    logged_as(&pair.web, &pair.web, "of-all").await;
    logged_as(&pair.web, &pair.orders, "of-orders").await;
    // Only what is asked for; of no status, which is said by an empty list, nothing is.
    let mut wire = shop.connect("orders").await;
    let mut times = 0;
    for statuses in ["['404']", "[]"] {
        let says = |statuses: &str| {
            let said = policy(&workload("shop"), &format!("{{statuses: {statuses}}}"));
            pair.world.yaml("shop.yaml", &said.replace("name: log", "name: shop"));
        };
        says(statuses);
        eventually(&format!("what the workload does not log is left out by {statuses}"), async || {
            times += 1;
            let path = format!("/left-out/{times}");
            assert_eq!(get(&mut wire, &path).await, 200);
            logged_as(&shop, &pair.orders, "of-orders").await;
            let told = shop.access_lines().iter().any(|line| line.contains(&path));
            if told { Err(path) } else { Ok(()) }
        })
        .await;
        says("[all]");
        logged_as(&shop, &shop, "of-all").await;
    }
}

/// Leads the proxy's standard error elsewhere, as a shell does.
fn redirected(program: Program, to: &str) -> Program {
    in_shell(program, &format!("exec \"$0\" \"$@\" {to}"))
}

fn in_shell(program: Program, commands: &str) -> Program {
    let (proxy, path) = (program.path.clone(), "/bin/sh".into());
    Program { path, ..program }.arg("-c").arg(commands).arg(proxy)
}

const DROPPED: &str = "tulle_log_lines_dropped_total";
const OF_ACCESS: [(&str, &str); 1] = [("log", "access")];

#[tokio::test(flavor = "multi_thread")]
async fn r21_a_full_disk_costs_lines_and_no_request() {
    let world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    // Of every write, `/dev/full` says that there is no space left; a closed one, nothing at all.
    let orders = world.workload("orders").program(|program| redirected(program, "2>/dev/full"));
    let orders = orders.serves("orders", app.address()).start().await;
    let web = world.workload("web").program(|program| redirected(program, "2>&-"));
    let web = web.calls("orders").start().await;
    web.reaches("orders").await;
    let mut wire = web.connect("orders").await;
    for number in 0..50 {
        assert_eq!(get(&mut wire, &format!("/{number}")).await, 200);
    }
    orders.counts(DROPPED, &OF_ACCESS, 50.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_a_log_that_may_not_grow_costs_lines_and_no_request() {
    let world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    // The kernel ends who writes beyond it, unless they have said what they do then.
    let web = world.workload("web").program(|program| in_shell(program, "ulimit -f 8; exec \"$0\" \"$@\""));
    let web = web.calls("orders").start().await;
    web.reaches("orders").await;
    let mut wire = web.connect("orders").await;
    for number in 0..100 {
        assert_eq!(get(&mut wire, &format!("/{number}")).await, 200);
    }
    web.counts(DROPPED, &OF_ACCESS, 50.0).await;
    drop(orders);
}

fn fifo(world: &World) -> PathBuf {
    let path = world.folder().path("access");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    path
}

/// Does not wait for a writer.
fn reader(path: &Path) -> File {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(path).unwrap()
}

/// Asks until what is read has a line about it.
async fn comes_through(web: &Workload, reader: &mut File, name: &str) -> String {
    let mut wire = web.connect("orders").await;
    let (mut read, mut times) = (Vec::new(), 0);
    eventually("lines come through", async || {
        times += 1;
        assert_eq!(get(&mut wire, &format!("/{name}/{times}")).await, 200);
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Until nothing is there; what a reader that does not wait is told then is an error.
        let _ = reader.read_to_end(&mut read);
        let text = String::from_utf8_lossy(&read).into_owned();
        if text.contains(&format!("/{name}/")) { Ok(text) } else { Err(format!("{} bytes", text.len())) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_a_reader_that_is_slow_or_leaves_costs_lines_and_lines_come_again_when_it_is_back() {
    let world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let path = fifo(&world);
    let mut first = reader(&path);
    let to = format!("2>'{}'", path.display());
    let web = world.workload("web").program(|program| redirected(program, &to));
    let web = web.setting("--workers", "1").calls("orders").start().await;
    web.reaches("orders").await;
    // More than the pipe and the queue hold.
    let long = "x".repeat(900);
    let mut wire = web.connect("orders").await;
    eventually("lines are dropped", async || {
        for number in 0..200 {
            assert_eq!(get(&mut wire, &format!("/{long}/{number}")).await, 200);
        }
        let dropped = web.metrics().await.sum(DROPPED, &OF_ACCESS);
        if dropped >= 1.0 { Ok(()) } else { Err(format!("{dropped}")) }
    })
    .await;
    let text = comes_through(&web, &mut first, "slow").await;
    // Whatever was not dropped is whole; what is read last may be under way.
    let (whole, _) = text.rsplit_once('\n').unwrap();
    for line in whole.lines() {
        let record: Result<Value, _> = serde_json::from_str(line);
        assert!(record.is_ok(), "{line}");
    }
    // Nobody reads at all; then somebody does again.
    drop(first);
    let before = web.metrics().await.sum(DROPPED, &OF_ACCESS);
    for number in 0..20 {
        assert_eq!(get(&mut wire, &format!("/unread/{number}")).await, 200);
    }
    web.counts(DROPPED, &OF_ACCESS, before + 20.0).await;
    let mut second = reader(&path);
    comes_through(&web, &mut second, "again").await;
}
