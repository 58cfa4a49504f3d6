//! How often and how much at once: rate limits (R16), limits on what is under way, and the age of connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tulle_tests::app::{App, full};
use tulle_tests::{Head, Wire, Workload, World, eventually, within};

/// `web` → `orders`, whose application is `app`, under a policy that is there from the start.
pub(super) async fn pair(app: &App, protocol: &str, policy: &str) -> (World, Workload, Workload) {
    let world = World::strict().await;
    // Before the Service, so that nobody hears of that one without it.
    world.yaml("policy.yaml", policy);
    world.service("orders", protocol);
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    let web = world.workload("web").calls("orders").start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    (world, orders, web)
}

/// `limits`: in YAML.
pub(super) fn rate_limits(direction: &str, limits: &str) -> String {
    format!(
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata:\n  name: often\nspec:\n  \
         targetRefs: [{{group: \"\", kind: Service, name: orders}}]\n  direction: {direction}\n  limits: {limits}\n"
    )
}

/// `spec`: in YAML.
pub(super) fn traffic(spec: &str) -> String {
    format!(
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata:\n  name: much\nspec:\n  \
         targetRefs: [{{group: \"\", kind: Service, name: orders}}]\n  {spec}\n"
    )
}

/// So many requests, one after the other, on a connection of `client`'s; how many pass, and what the others get.
async fn ask(client: &Workload, count: usize, fields: &str) -> (usize, Vec<Head>) {
    let mut wire = client.connect("orders").await;
    let (mut passed, mut others) = (0, Vec::new());
    for _ in 0..count {
        wire.send(format!("GET / HTTP/1.1\r\nhost: orders\r\n{fields}\r\n")).await;
        let (head, _) = wire.response().await;
        if head.status() == 200 { passed += 1 } else { others.push(head) }
    }
    (passed, others)
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_exactly_as_many_pass_as_may_over_many_connections_and_workers() {
    let app = App::saying("ok").await;
    let limits = "[{name: all, rate: {requests: 20, per: 1h, burst: 20}}]";
    let (_world, orders, web) = pair(&app, "http", &rate_limits("Inbound", limits)).await;
    let to = web.outbound("orders");
    let asked: JoinSet<_> = (0..80)
        .map(|_| async move {
            let mut wire = Wire::connect(to).await;
            wire.send("GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await;
            wire.response().await.0
        })
        .collect();
    let heads = asked.join_all().await;
    assert_eq!(heads.iter().filter(|head| head.status() == 200).count(), 20);
    for head in heads.iter().filter(|head| head.status() != 200) {
        assert_eq!((head.status(), head.reason()), (429, Some("rate_limited")), "{head:?}");
        assert!(head.get("x-tulle-error-by").unwrap().ends_with("/inbound"), "{head:?}");
        let wait: u64 = head.get("retry-after").unwrap().parse().unwrap();
        assert!((1..=180).contains(&wait), "{head:?}");
        assert_eq!(head.get("ratelimit-policy"), Some("\"default/often/all\";q=20;w=3600"));
        assert_eq!(head.get("ratelimit").unwrap(), format!("\"default/often/all\";r=0;t={wait}"));
    }
    for (outcome, count) in [("allowed", 20.0), ("refused", 60.0)] {
        let labels = [("limit", "default/often/all"), ("outcome", outcome)];
        let counted = orders.metrics().await.sum("tulle_rate_limit_requests_total", &labels);
        assert!((counted - count).abs() < 0.5, "{counted} {outcome}");
    }
    orders.logs(&[("reason", json!("rate_limited")), ("rule", json!("default/often/all"))]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_identities_and_headers_have_counts_of_their_own_and_overrides_hold() {
    let app = App::saying("ok").await;
    let limits = "
  - {name: callers, by: {identity: {}}, rate: {requests: 5, per: 1h, burst: 5}, overrides: [{values: [default/batch], rate: {requests: 2, per: 1h, burst: 2}}]}
  - {name: users, by: {header: x-user}, headers: [{name: x-plan, value: free}], rate: {requests: 1, per: 1h, burst: 1}}";
    let (world, _orders, web) = pair(&app, "http", &rate_limits("Inbound", limits)).await;
    let batch = world.workload("batch").calls("orders").start().await;
    assert_eq!(ask(&batch, 6, "").await.0, 2, "the override");
    // What one limit refuses uses up nothing of the other.
    let (passed, others) = ask(&web, 9, "x-user: a\r\nx-plan: free\r\n").await;
    assert_eq!(passed, 1);
    assert!(others[0].get("ratelimit").unwrap().starts_with("\"default/often/users\""), "{others:?}");
    assert_eq!(ask(&web, 1, "x-user: b\r\nx-plan: free\r\n").await.0, 1);
    assert_eq!(ask(&web, 9, "x-user: a\r\n").await.0, 3, "of five, two were used");
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_grpc_clients_are_told_by_a_status_and_when_to_come_back() {
    let app = App::http2(|_| async { Response::new(full("ok")) }).await;
    let limits = "[{name: all, rate: {requests: 1, per: 1h, burst: 1}}]";
    let (_world, _orders, web) = pair(&app, "kubernetes.io/h2c", &rate_limits("Inbound", limits)).await;
    let call = async || -> HeaderMap {
        let stream = TcpStream::connect(web.outbound("orders")).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = within("an HTTP/2 handshake", handshake).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::post("http://orders/a.B/C").header("content-type", "application/grpc");
        let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap());
        let response = within("an answer", response).await.unwrap();
        assert_eq!(response.status(), 200);
        let (parts, body) = response.into_parts();
        within("its end", body.collect()).await.unwrap();
        connection.abort();
        parts.headers
    };
    assert!(!call().await.contains_key("grpc-status"));
    let refused = call().await;
    assert_eq!(refused["grpc-status"], "8", "{refused:?}");
    let millis: u64 = refused["grpc-retry-pushback-ms"].to_str().unwrap().parse().unwrap();
    assert!((1..=3_600_000).contains(&millis), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_a_clients_own_proxy_counts_what_leaves_it() {
    let app = App::saying("ok").await;
    let limits = "[{name: all, rate: {requests: 3, per: 1h, burst: 3}}]";
    let (world, _orders, web) = pair(&app, "http", &rate_limits("Outbound", limits)).await;
    let (passed, others) = ask(&web, 5, "").await;
    assert_eq!(passed, 3);
    assert_eq!(others[0].reason(), Some("rate_limited"));
    assert!(others[0].get("x-tulle-error-by").unwrap().ends_with("/outbound"), "{others:?}");
    // Each client's proxy counts by itself.
    let other = world.workload("other").calls("orders").start().await;
    assert_eq!(ask(&other, 5, "").await.0, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_a_limit_requests_wait_in_line_and_without_time_are_refused() {
    let (held, arrived) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let app = App::http1({
        let (held, arrived) = (Arc::clone(&held), Arc::clone(&arrived));
        move |_| {
            let (held, arrived) = (Arc::clone(&held), Arc::clone(&arrived));
            async move {
                arrived.fetch_add(1, Ordering::SeqCst);
                held.acquire().await.unwrap().forget();
                Response::new(full("ok"))
            }
        }
    })
    .await;
    let policy = traffic("limits: {maximumRequestsPerEndpoint: 2, queueTimeout: 1h}");
    let (world, _orders, web) = pair(&app, "http", &policy).await;
    let to = web.outbound("orders");
    let mut asked: JoinSet<_> = (0..5)
        .map(|_| async move {
            let mut wire = Wire::connect(to).await;
            wire.send("GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await;
            wire.response().await.0.status()
        })
        .collect();
    let labels = [("service", "default/orders:8080"), ("limit", "requests_per_endpoint")];
    web.counts("tulle_limit_waiting", &labels, 3.0).await;
    eventually("two are at the application", async || match arrived.load(Ordering::SeqCst) {
        2 => Ok(()),
        other => Err(format!("{other} are")),
    })
    .await;
    held.add_permits(5);
    while let Some(status) = asked.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    assert_eq!(arrived.load(Ordering::SeqCst), 5);

    // With no time to wait, at once: both that are there, and those that come.
    world.yaml("policy.yaml", &traffic("limits: {maximumRequestsPerEndpoint: 2, queueTimeout: 0s}"));
    let mut first = Vec::new();
    for _ in 0..2 {
        let mut wire = Wire::connect(to).await;
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        first.push(wire);
    }
    eventually("two are at the application", async || match arrived.load(Ordering::SeqCst) {
        7 => Ok(()),
        other => Err(format!("{other} are")),
    })
    .await;
    eventually("the policy holds", async || {
        let mut wire = Wire::connect(to).await;
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await;
        let answer = tokio::time::timeout(std::time::Duration::from_millis(500), wire.response()).await;
        let Ok((head, body)) = answer else { return Err("it waits".to_owned()) };
        assert_eq!((head.status(), head.reason()), (503, Some("overloaded")), "{head:?}");
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(body.contains("requests_per_endpoint of default/orders:8080 is 2"), "{body}");
        Ok(())
    })
    .await;
    held.add_permits(10);
    for mut wire in first {
        assert_eq!(wire.response().await.0.status(), 200);
    }
    web.counts("tulle_limit_reached_total", &[labels[0], labels[1], ("outcome", "refused")], 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_connections_that_are_too_old_are_replaced_and_no_request_fails() {
    let app = App::saying("ok").await;
    let (_world, _orders, web) = pair(&app, "http", &traffic("connections: {maximumAge: 1s}")).await;
    let mut wire = web.connect("orders").await;
    let grown_old = async {
        loop {
            for _ in 0..50 {
                wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
                assert_eq!(wire.response().await.0.status(), 200);
            }
            let closed = web.metrics().await.sum("tulle_pool_closed_total", &[("cause", "age")]);
            if closed >= 1.0 {
                break;
            }
        }
    };
    within("a connection that has grown too old", grown_old).await;
}
