//! A workload that asks itself: by its own policy, and without a way through its own inbound side.

use serde_json::json;
use tokio::io::AsyncReadExt;
use tulle_tests::app::App;
use tulle_tests::{Workload, World, eventually};

use super::live::{NOBODY, echoing_upgrade};

const GET: &str = "GET /cart HTTP/1.1\r\nhost: orders\r\n\r\n";

/// `orders`, which serves and calls `orders`.
async fn orders(world: &World, app: &App, protocol: &str) -> Workload {
    world.service("orders", protocol);
    let orders = world.workload("orders").serves("orders", app.address()).calls("orders").start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    orders
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_asks_itself_reaches_its_application_directly_by_its_own_policy() {
    let world = World::strict().await;
    let app = App::saying("hello").await;
    let orders = orders(&world, &app, "http").await;
    orders.reaches("orders").await;
    let mut wire = orders.connect("orders").await;
    wire.send(GET).await;
    let (head, body) = wire.response().await;
    assert_eq!((head.status(), body.as_slice()), (200, b"hello".as_slice()));
    assert!(head.fields.iter().all(|(name, _)| !name.starts_with("x-tulle-")), "{head:?}");

    let record = orders.logs(&[("path", json!("/cart"))]).await;
    assert_eq!((&record["direction"], &record["tls"]), (&json!("outbound"), &json!("own")), "{record}");
    assert_eq!((&record["destination"], &record["rule"]), (&json!(orders.identity()), &json!("default")));
    assert_eq!(record["endpoint"], json!(app.address().to_string()), "{record}");
    let metrics = orders.metrics().await;
    assert!(metrics.sum("tulle_requests_total", &[("tls", "own")]) >= 1.0);
    assert!(metrics.sum("tulle_policy_verdicts_total", &[("verdict", "allow")]) >= 1.0);
    let inbound = [("direction", "inbound")];
    assert!(metrics.sum("tulle_connections_total", &inbound) == 0.0, "it went through its own inbound side");

    world.yaml("policy.yaml", NOBODY);
    let denied = eventually("the policy holds for itself too", async || {
        wire.send(GET).await;
        let (head, _) = wire.response().await;
        if head.status() == 403 { Ok(head) } else { Err(head.line) }
    })
    .await;
    assert_eq!(denied.reason(), Some("policy_denied"));
    assert_eq!(denied.get("x-tulle-error-by"), Some("default/orders/outbound"));
    orders.counts("tulle_policy_verdicts_total", &[("verdict", "deny")], 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_workload_on_the_same_address_is_not_oneself() {
    let world = World::strict().await;
    let (one, two) = (App::saying("one").await, App::saying("two").await);
    let orders = orders(&world, &one, "http").await;
    let other = world.workload("orders-2").serves("orders", two.address()).start().await;
    other.counts("tulle_registered", &[], 1.0).await;
    let mut wire = orders.connect("orders").await;
    let mut seen = (false, false);
    eventually("both answer", async || {
        wire.send(GET).await;
        let (head, body) = wire.response().await;
        assert_eq!(head.status(), 200, "{head:?}");
        seen = (seen.0 || body == b"one", seen.1 || body == b"two");
        if seen == (true, true) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    let own = orders.logs(&[("tls", json!("own"))]).await;
    assert_eq!(own["endpoint"], json!(one.address().to_string()), "{own}");
    let across = orders.logs(&[("tls", json!("mtls")), ("direction", json!("outbound"))]).await;
    assert_eq!(across["endpoint"], json!(other.inbound().to_string()), "{across}");
    assert_eq!(across["destination"], json!(other.identity()), "{across}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_policy_cuts_what_a_workload_has_open_to_itself() {
    let world = World::strict().await;
    let app = App::echo().await;
    let opaque = orders(&world, &app, "tcp").await;
    let mut wire = eventually("it knows itself", async || {
        let mut wire = opaque.connect("orders").await;
        wire.try_send("ping").await.map_err(|error| error.to_string())?;
        let read = wire.stream().read_exact(&mut [0; 4]).await;
        read.map(|_| wire).map_err(|error| error.to_string())
    })
    .await;
    world.yaml("policy.yaml", NOBODY);
    assert_eq!(wire.to_end_or_reset().await, b"");
    let record = opaque.logs(&[("reason", json!("policy_denied")), ("protocol", json!("TCP"))]).await;
    assert_eq!((&record["direction"], &record["tls"]), (&json!("outbound"), &json!("own")), "{record}");

    let world = World::strict().await;
    let app = echoing_upgrade().await;
    let http = orders(&world, &app, "http").await;
    let mut wire = eventually("it knows itself", async || {
        let mut wire = http.connect("orders").await;
        wire.send("GET /chat HTTP/1.1\r\nhost: orders\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n").await;
        let head = wire.head().await;
        if head.status() == 101 { Ok(wire) } else { Err(format!("{head:?}")) }
    })
    .await;
    wire.send("ping\n").await;
    assert_eq!(wire.until(b"\n").await.unwrap(), b"ping\n");
    world.yaml("policy.yaml", NOBODY);
    assert_eq!(wire.to_end_or_reset().await, b"");
    let reason = [("direction", "outbound"), ("reason", "policy_denied")];
    http.counts("tulle_refused_total", &reason, 1.0).await;
}
