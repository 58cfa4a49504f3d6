//! What is sent once more, and what never is: no request is lost that could be saved, and none is served twice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tulle_tests::app::App;
use tulle_tests::{Head, Wire, Workload, World, deep, eventually};

/// How often each request was seen, by its path.
type Seen = Arc<Mutex<HashMap<String, u32>>>;

/// Answers with `answer`, counts what it sees, and closes connections that have idled for `idle`.
async fn counting(seen: &Seen, idle: Duration, answer: &'static str) -> App {
    let seen = Arc::clone(seen);
    App::wire(move |mut wire: Wire| {
        let seen = Arc::clone(&seen);
        async move {
            while let Ok(Some(head)) = tokio::time::timeout(idle, wire.try_head()).await {
                assert!(head.fields.iter().all(|(name, _)| !name.starts_with("x-tulle-")), "{head:?}");
                wire.body(&head).await;
                let path = head.line.split(' ').nth(1).unwrap().to_owned();
                *seen.lock().unwrap().entry(path).or_default() += 1;
                if wire.try_send(answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

const FOREVER: Duration = Duration::from_secs(600);

async fn ask(wire: &mut Wire, method: &str, path: &str) -> Head {
    let fields = "host: orders\r\nx-tulle-processed: no\r\nx-tulle-error: connect_failed";
    let body = if method == "POST" { "content-length: 5\r\n\r\nhello" } else { "\r\n" };
    wire.send(format!("{method} {path} HTTP/1.1\r\n{fields}\r\n{body}")).await;
    wire.response().await.0
}

/// `web`, and two endpoints of `orders`.
async fn two(world: &World, one: &App, two: &App) -> (Workload, [Workload; 2]) {
    world.service("orders", "http");
    let one = world.workload("orders").serves("orders", one.address()).start().await;
    let two = world.workload("orders-2").serves("orders", two.address()).start().await;
    for orders in [&one, &two] {
        orders.counts("tulle_registered", &[], 1.0).await;
    }
    let web = world.workload("web").calls("orders").start().await;
    (web, [one, two])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_whose_proxy_cannot_reach_its_application_goes_once_to_another_with_its_body() {
    let world = World::strict().await;
    let seen = Seen::default();
    let (dies, lives) = (counting(&seen, FOREVER, OK).await, counting(&seen, FOREVER, OK).await);
    let (web, [one, _two]) = two(&world, &dies, &lives).await;
    dies.stop().await;
    let mut wire = web.connect("orders").await;
    let mut count = 0;
    eventually("a request has met the dead one", async || {
        let head = ask(&mut wire, "POST", &format!("/{count}")).await;
        count += 1;
        assert_eq!((head.status(), head.get("x-tulle-processed")), (200, None), "{head:?}");
        let failed = one.metrics().await.sum("tulle_requests_total", &[("reason", "connect_failed")]);
        if failed >= 1.0 && count >= 20 { Ok(()) } else { Err(format!("{failed} of {count}")) }
    })
    .await;
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), count, "each was served");
    assert!(seen.values().all(|times| *times == 1), "and none twice: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_claims_not_to_have_processed_a_request_is_not_believed() {
    let world = World::strict().await;
    let seen = Seen::default();
    let claim = "HTTP/1.1 503 Service Unavailable\r\nx-tulle-processed: no\r\nx-tulle-error: \
                 connect_failed\r\ncontent-length: 2\r\n\r\nno";
    let (one, other) = (counting(&seen, FOREVER, claim).await, counting(&seen, FOREVER, claim).await);
    let (web, _orders) = two(&world, &one, &other).await;
    let mut wire = web.connect("orders").await;
    for number in 0..20 {
        let head = ask(&mut wire, ["GET", "POST"][number % 2], &format!("/{number}")).await;
        assert_eq!(head.status(), 503);
        assert!(head.fields.iter().all(|(name, _)| !name.starts_with("x-tulle-")), "{head:?}");
    }
    let seen = seen.lock().unwrap();
    assert!(seen.len() == 20 && seen.values().all(|times| *times == 1), "{seen:?}");
}

/// A server closes idle connections after a second, and clients come back after about that time.
#[tokio::test(flavor = "multi_thread")]
async fn r03_requests_around_the_moment_when_the_server_closes_are_neither_lost_nor_served_twice() {
    let world = World::strict().await;
    world.service("orders", "http");
    let seen = Seen::default();
    let app = counting(&seen, Duration::from_secs(1), OK).await;
    // One worker has one pool: what it has seen of the server it knows for all.
    let orders = world.workload("orders").serves("orders", app.address()).setting("--workers", "1");
    let orders = orders.start().await;
    let web = world.workload("web").calls("orders").setting("--workers", "1").start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    // In full, 20,000 POSTs and more GETs.
    let (lanes, rounds) = if deep() { (800, 52) } else { (64, 8) };
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..lanes {
        let mut wire = web.connect("orders").await;
        tasks.spawn(async move {
            for round in 0..rounds {
                // POSTs from the third on: by then it is known when the server closes.
                let method = if round < 2 || lane % 2 == 0 { "GET" } else { "POST" };
                let head = ask(&mut wire, method, &format!("/{method}/{lane}/{round}")).await;
                assert_eq!(head.status(), 200, "{method} {lane} {round}: {head:?}");
                tokio::time::sleep(Duration::from_millis(950 + (lane * 7 + round * 31) % 100)).await;
            }
        });
    }
    while let Some(lane) = tasks.join_next().await {
        lane.unwrap();
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len() as u64, lanes * rounds, "each was served");
    let twice: Vec<_> =
        seen.iter().filter(|(path, times)| path.starts_with("/POST") && **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}
