//! Routes: by host, by path, by weight.

use serde_json::json;
use tulle_tests::app::App;
use tulle_tests::{Wire, Workload, World, eventually};

fn service_route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: payments\n  namespace: default\n\
         spec:\n  parentRefs:\n    - {{group: \"\", kind: Service, name: payments, port: 8080}}\n  rules:\n{rules}"
    )
}

fn weighted(first: u32, second: u32) -> String {
    service_route(&format!(
        "    - backendRefs:\n        - {{name: payments-v1, port: 8080, weight: {first}}}\n        - {{name: \
         payments-v2, port: 8080, weight: {second}}}\n"
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_hold_and_follow_the_yaml_within_a_connection() {
    let world = World::strict().await;
    for service in ["payments", "payments-v1", "payments-v2"] {
        world.service(service, "http");
    }
    world.yaml("route.yaml", &weighted(90, 10));
    let (one, two) = (App::saying("v1").await, App::saying("v2").await);
    let first = world.workload("payments-v1").serves("payments-v1", one.address()).start().await;
    let second = world.workload("payments-v2").serves("payments-v2", two.address()).start().await;
    let web = world.workload("web").calls("payments").start().await;
    let mut wire = web.connect("payments").await;
    let mut ask = async || {
        wire.send("GET /pay HTTP/1.1\r\nhost: payments\r\n\r\n").await;
        let (head, body) = wire.response().await;
        (head, String::from_utf8(body).unwrap())
    };
    eventually("both versions answer", async || {
        let mut answers: Vec<_> = Vec::new();
        for _ in 0..50 {
            let (head, body) = ask().await;
            if let Some(reason) = head.reason() {
                return Err(reason.to_owned());
            }
            answers.push(body);
        }
        if answers.contains(&"v2".to_owned()) { Ok(()) } else { Err("only one does".to_owned()) }
    })
    .await;
    let mut seconds = 0;
    for _ in 0..1000 {
        let (head, body) = ask().await;
        assert_eq!(head.status(), 200);
        seconds += usize::from(body == "v2");
    }
    // Binomial with p = 0.1: five standard deviations are 47.
    assert!((50..=150).contains(&seconds), "{seconds} of 1000 went to the tenth");
    let record = web.logs(&[("backend", json!("default/payments-v2:8080"))]).await;
    assert_eq!(
        (&record["route"], &record["destination"]),
        (&json!("default/payments"), &json!(second.identity()))
    );

    world.yaml("route.yaml", &weighted(0, 1));
    eventually("all goes to v2", async || {
        for _ in 0..30 {
            if ask().await.1 != "v2" {
                return Err("v1 still answers".to_owned());
            }
        }
        Ok(())
    })
    .await;
    assert_eq!(first.name(), "payments-v1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_route_cannot_answer_has_a_reason() {
    let world = World::strict().await;
    world.service("payments", "http");
    world.yaml(
        "route.yaml",
        &service_route(
            "    - matches:\n        - path: {type: PathPrefix, value: /none}\n    - matches:\n        - path: {type: \
             PathPrefix, value: /gone}\n      backendRefs:\n        - {name: nowhere, port: 8080}\n    - matches:\n        - \
             path: {type: PathPrefix, value: /empty}\n      backendRefs:\n        - {name: payments, port: 8080}\n",
        ),
    );
    let web = world.workload("web").calls("payments").start().await;
    let mut wire = web.connect("payments").await;
    for (path, status, reason) in [
        ("/none/x", 500, "route_without_backend"),
        ("/gone", 500, "backend_not_found"),
        ("/empty", 503, "no_healthy_endpoint"),
        ("/emptyish", 404, "route_not_found"),
        ("/", 404, "route_not_found"),
    ] {
        eventually(&format!("{path} is answered with {status} {reason}"), async || {
            wire.send(format!("GET {path} HTTP/1.1\r\nhost: payments\r\n\r\n")).await;
            let (head, _) = wire.response().await;
            if (head.status(), head.reason()) == (status, Some(reason)) {
                Ok(())
            } else {
                Err(format!("{head:?}"))
            }
        })
        .await;
        web.logs(&[("path", json!(path)), ("reason", json!(reason)), ("by", json!("default/web/outbound"))])
            .await;
        web.counts("tulle_requests_total", &[("reason", reason)], 1.0).await;
    }
}

/// What `web` gets from `payments`, whose route has these timeouts, for a path that is never answered. The connection stays open.
async fn unanswered(timeouts: &str) -> (World, App, [Workload; 2], Wire) {
    let world = World::strict().await;
    world.service("payments", "http");
    world.yaml(
        "route.yaml",
        &service_route(&format!(
            "    - timeouts: {timeouts}\n      backendRefs:\n        - {{name: payments, port: 8080}}\n"
        )),
    );
    let app = App::wire(async move |mut wire: Wire| {
        while let Some(head) = wire.try_head().await {
            if head.line.contains("/silent") {
                // Until the proxy gives up.
                wire.to_end_or_reset().await;
                return;
            }
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let payments = world.workload("payments").serves("payments", app.address()).start().await;
    let web = world.workload("web").calls("payments").start().await;
    web.reaches("payments").await;
    let mut wire = web.connect("payments").await;
    wire.send("GET /silent HTTP/1.1\r\nhost: payments\r\n\r\n").await;
    (world, app, [payments, web], wire)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_longer_than_its_route_allows_is_told_so() {
    let (_world, _app, _workloads, mut wire) = unanswered("{request: 200ms}").await;
    let (head, _) = wire.response().await;
    assert_eq!((head.status(), head.reason()), (504, Some("request_timeout")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_does_not_answer_within_its_time_is_told_of() {
    let (_world, _app, _workloads, mut wire) = unanswered("{request: 60s, backendRequest: 300ms}").await;
    let (head, _) = wire.response().await;
    assert_eq!((head.status(), head.reason()), (504, Some("backend_timeout")));
    // The client's connection serves on.
    wire.send("GET /soon HTTP/1.1\r\nhost: payments\r\n\r\n").await;
    assert_eq!(wire.response().await.0.status(), 200);
}
