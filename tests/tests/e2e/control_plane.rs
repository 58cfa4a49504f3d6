//! The control plane comes and goes; its YAML breaks and is mended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use tulle_tests::app::App;
use tulle_tests::{Mode, Program, Wire, Workload, World, eventually};

use super::Pair;

const GET: &str = "GET / HTTP/1.1\r\nhost: orders\r\n\r\n";

/// Requests without a pause, on connections that live long and on new ones, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    tasks: tokio::task::JoinSet<()>,
}

impl Load {
    fn start(address: std::net::SocketAddr) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut tasks = tokio::task::JoinSet::new();
        for long in [true, true, false] {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            tasks.spawn(async move {
                let mut wire = Wire::connect(address).await;
                while !stop.load(Ordering::SeqCst) {
                    if !long {
                        wire = Wire::connect(address).await;
                    }
                    wire.send(GET).await;
                    let (head, body) = wire.response().await;
                    assert_eq!((head.status(), body.as_slice()), (200, b"ok".as_slice()), "{head:?}");
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self { stop, answered, tasks }
    }

    /// Waits for so many more answers.
    async fn more(&self, count: usize) {
        let wanted = self.answered.load(Ordering::SeqCst) + count;
        eventually(&format!("{count} more answers"), async || {
            let answered = self.answered.load(Ordering::SeqCst);
            if answered >= wanted { Ok(()) } else { Err(format!("{answered} of {wanted}")) }
        })
        .await;
    }

    /// Stops; no request may have failed.
    async fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

async fn connected(workload: &Workload, wanted: bool) {
    eventually(&format!("{} is connected: {wanted}", workload.name()), async || {
        let connected = workload.metrics().await.sum("tulle_ads_connected", &[]);
        if (connected > 0.5) == wanted { Ok(()) } else { Err(connected.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_the_control_plane_is_killed_and_comes_back() {
    let mut pair = Pair::start(App::saying("ok").await, "http").await;
    let load = Load::start(pair.web.outbound("orders"));
    load.more(50).await;
    for _ in 0..2 {
        pair.world.kill_control_plane().await;
        connected(&pair.web, false).await;
        connected(&pair.orders, false).await;
        load.more(100).await;
        pair.world.restart_control_plane().await;
        connected(&pair.web, true).await;
        connected(&pair.orders, true).await;
        load.more(100).await;
    }
    // What came back serves: a change still arrives.
    pair.world.yaml("route.yaml", &route("orders", "/only"));
    load.end().await;
    let mut wire = pair.web.connect("orders").await;
    eventually("the new route holds", async || {
        wire.send(GET).await;
        let (head, _) = wire.response().await;
        if head.reason() == Some("route_not_found") { Ok(()) } else { Err(head.line) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_whose_proxy_ends_is_taken_off_without_a_failed_request() {
    let mut pair = Pair::start(App::saying("ok").await, "http").await;
    let app = App::saying("ok").await;
    let mut second = pair.world.workload("orders-2").serves("orders", app.address()).start().await;
    let load = Load::start(pair.web.outbound("orders"));
    let labels = [("direction", "inbound"), ("status", "200")];
    second.counts("tulle_requests_total", &labels, 10.0).await;
    // Told to end, it drains: it leaves the endpoints first, and what was sent to it is answered.
    let status = second.process().stop().await;
    assert!(status.success(), "{status}");
    load.more(100).await;
    load.end().await;
    assert!(pair.orders.process().ended().is_none());
}

fn route(service: &str, prefix: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: {service}\n  namespace: default\n\
         spec:\n  parentRefs:\n    - {{group: \"\", kind: Service, name: {service}, port: 8080}}\n  rules:\n    - \
         matches:\n        - path: {{type: PathPrefix, value: {prefix}}}\n      backendRefs:\n        - {{name: {service}, \
         port: 8080}}\n"
    )
}

async fn status_of(wire: &mut Wire, path: &str) -> (u16, Option<String>) {
    wire.send(format!("GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n")).await;
    let (head, _) = wire.response().await;
    (head.status(), head.reason().map(str::to_owned))
}

async fn answers(pair: &Pair, path: &str, status: u16) {
    let mut wire = pair.web.connect("orders").await;
    eventually(&format!("{path} is answered with {status}"), async || {
        let answer = status_of(&mut wire, path).await;
        if answer.0 == status { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_yaml_is_reported_and_what_was_good_serves_on() {
    let pair = Pair::start(App::saying("ok").await, "http").await;
    pair.world.yaml("route.yaml", &route("orders", "/a"));
    answers(&pair, "/a", 200).await;
    answers(&pair, "/b", 404).await;

    // Not YAML at all. The line is told.
    pair.world
        .yaml("route.yaml", "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: [oops\n");
    pair.world.control_plane_says(&["route.yaml"]).await;
    answers(&pair, "/a", 200).await;
    answers(&pair, "/b", 404).await;

    // YAML, but a field is wrong. Other files are read on.
    pair.world
        .yaml("route.yaml", &route("orders", "/a").replace("port: 8080}}\n  rules", "port: many}}\n  rules"));
    pair.world.yaml("bad.yaml", &route("orders", "no-slash"));
    pair.world.service("later", "http");
    pair.world.control_plane_says(&["bad.yaml", "value"]).await;
    answers(&pair, "/a", 200).await;

    // Mended.
    pair.world.remove_yaml("bad.yaml");
    pair.world.yaml("route.yaml", &route("orders", "/b"));
    answers(&pair, "/b", 200).await;
    answers(&pair, "/a", 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_starts_without_a_control_plane_is_not_ready_and_says_why() {
    let mut pair = Pair::start(App::saying("ok").await, "http").await;
    pair.world.kill_control_plane().await;
    let late = {
        // The token is made from the state folder: it needs no control plane that runs.
        let builder = pair.world.workload("late").calls("orders");
        builder.start_unready().await
    };
    let mut wire = late.connect("orders").await;
    let (status, reason) = status_of(&mut wire, "/").await;
    assert_eq!((status, reason.as_deref()), (503, Some("discovery_unavailable")));
    late.logs(&[("reason", json!("discovery_unavailable"))]).await;
    pair.world.restart_control_plane().await;
    // On the same connection.
    eventually("the late proxy is served", async || {
        let answer = status_of(&mut wire, "/").await;
        if answer.0 == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_are_told_to_who_names_this_host_alone() {
    let world = World::strict().await;
    world.service("shop", "http");
    let status = async |path: &str, host: &str| {
        let mut wire = Wire::connect(world.metrics_address()).await;
        wire.send(&format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")).await;
        wire.response().await.0.status()
    };
    eventually("the Service is served", async || {
        match status("/resources/Service/default/shop", "127.0.0.1").await {
            200 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    for (path, host, expected) in [
        ("/resources/Service/default/shop", "localhost:15014", 200),
        ("/resources/Service/default/shop", "[::1]:15014", 200),
        ("/resources/Service/default/shop", "rebound.example", 403),
        ("/resources/Service/default/shop", "10.0.0.1", 403),
        ("/resources/Service/default/none", "localhost", 204),
        ("/resources/Secret/default/shop", "localhost", 404),
        ("/resources/Service", "localhost", 404),
        ("/metrics", "rebound.example", 200),
    ] {
        assert_eq!(status(path, host).await, expected, "{path} of {host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_a_change_takes_and_what_people_wrote_is_counted() {
    let pair = Pair::start(App::saying("ok").await, "http").await;
    pair.web.reaches("orders").await;
    let (push, convergence) =
        ("tulle_control_plane_push_duration_seconds", "tulle_control_plane_convergence_duration_seconds");
    let counted = async |name: &str| pair.world.metrics().await.sum(&format!("{name}_count"), &[]);
    let before = counted(convergence).await;
    let route = |backend: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: orders\nspec:\n  \
             parentRefs: [{{group: \"\", kind: Service, name: orders}}]\n  rules:\n    - backendRefs: [{{name: {backend}, port: 8080}}]\n"
        )
    };
    let objects = async |status: &str, count: f64| {
        eventually(&format!("{count} routes are {status}"), async || {
            let labels = [("kind", "HTTPRoute"), ("status", status)];
            let shown = pair.world.metrics().await.sum("tulle_control_plane_objects", &labels);
            if (shown - count).abs() < 0.1 { Ok(()) } else { Err(shown.to_string()) }
        })
        .await;
    };
    pair.world.yaml("route.yaml", &route("orders"));
    objects("ok", 1.0).await;
    eventually("the change has been pushed and answered", async || {
        let counts = [counted(push).await, counted(convergence).await];
        if counts[1] > before && counts[0] >= counts[1] { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
    pair.world.yaml("route.yaml", &route("nobody"));
    objects("ok", 0.0).await;
    let metrics = pair.world.metrics().await;
    let wrong = |status| [("kind", "HTTPRoute"), ("status", status)];
    let sum = |status| metrics.sum("tulle_control_plane_objects", &wrong(status));
    assert!((sum("warning") + sum("error") - 1.0).abs() < 0.1, "{metrics:?}");
    pair.world.remove_yaml("route.yaml");
    objects("warning", 0.0).await;
    objects("error", 0.0).await;
    // Certificates were issued for both, and nothing else of the kind.
    let issued = pair.world.metrics().await;
    let of = |outcome| issued.sum("tulle_control_plane_certificate_requests_total", &[("outcome", outcome)]);
    assert!(of("issued_by_token") > 1.5 && of("denied").abs() < 0.1, "{issued:?}");
}

/// A mesh's certificates run out within the same hours where nobody renews them: were that not ready, all would be taken out of their Services at
/// once, also for what needs none.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_whose_certificate_has_run_out_for_want_of_a_control_plane_stays_ready() {
    let short = |program: Program| program.flag("--leaf-lifetime", "20s");
    let mut world = World::start_with(Mode::Strict, short).await;
    world.service("orders", "http");
    let app = App::saying("ok").await;
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    let web = world.workload("web").calls("orders").start().await;
    web.reaches("orders").await;
    world.kill_control_plane().await;
    for workload in [&web, &orders] {
        eventually(&format!("the certificate of {} has run out", workload.name()), async || {
            let name = "tulle_identity_cert_expiration_timestamp_seconds";
            let at = workload.metrics().await.sum(name, &[("kind", "leaf")]);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
            if now > at + 1.0 { Ok(()) } else { Err(format!("{} s left", at - now)) }
        })
        .await;
    }
    // Nobody has asked since, so that no connection of before is left.
    let mut wire = Wire::connect(web.outbound("orders")).await;
    wire.send(GET).await;
    let (head, body) = wire.response().await;
    let told = String::from_utf8_lossy(&body);
    assert_eq!((head.status(), head.get("x-tulle-error")), (503, Some("not_ready")), "{told}");
    for workload in [&web, &orders] {
        let mut wire = Wire::connect(workload.public()).await;
        wire.send("GET /ready HTTP/1.1\r\nhost: ready\r\nconnection: close\r\n\r\n").await;
        let (head, body) = wire.response().await;
        assert_eq!((head.status(), &body[..]), (200, &b"ready\n"[..]), "{}", workload.name());
    }
}
