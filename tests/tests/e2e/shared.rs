//! Requests of HTTP/1 that are in flight together: they share a connection between the proxies, and nobody can tell.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tulle_tests::app::App;
use tulle_tests::{Head, Wire, chunked};

use super::Pair;

/// Requests in flight together.
const TOGETHER: usize = 24;

/// An application that tells of each request's head when it has read the request, and answers once it is let.
async fn held() -> (App, mpsc::UnboundedReceiver<Head>, Arc<Semaphore>) {
    let (sender, heads) = mpsc::unbounded_channel();
    let answers = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&answers);
    let app = App::wire(move |mut wire: Wire| {
        let (sender, held) = (sender.clone(), Arc::clone(&held));
        async move {
            while let Some(head) = wire.try_head().await {
                let body = wire.body(&head).await;
                let number = head.get("x-number").unwrap().to_owned();
                sender.send(head).unwrap();
                held.acquire().await.unwrap().forget();
                let begin = format!(
                    "HTTP/1.1 200 Quite Fine\r\nX-NumBer: {number}\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
                );
                let body = chunked(&body, 5000);
                let body = body.strip_suffix(b"\r\n").unwrap();
                if wire.try_send([begin.as_bytes(), body, b"X-Sum: 7\r\n\r\n"].concat()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (app, heads, answers)
}

/// Sends one request on each of so many connections, and waits until the application has them all.
async fn ask(pair: &Pair, heads: &mut mpsc::UnboundedReceiver<Head>) -> Vec<Wire> {
    let mut wires = Vec::new();
    for number in 0..TOGETHER {
        let mut wire = pair.web.connect("orders").await;
        let body = chunked(&body(number), 900);
        let head = format!("POST /{number} HTTP/1.1\r\nHOST: orders\r\nX-NuMber: {number}\r\n");
        wire.send(format!("{head}B-c: 1\r\na-C: 2\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
        wire.send(body).await;
        wires.push(wire);
    }
    for _ in 0..TOGETHER {
        let head = heads.recv().await.unwrap();
        let names: Vec<_> = head.fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[..4], ["HOST", "X-NuMber", "B-c", "a-C"]);
    }
    wires
}

fn body(number: usize) -> Vec<u8> {
    vec![u8::try_from(number).unwrap(); 1 + number * 4000]
}

async fn answered(wires: &mut [Wire]) {
    for (number, wire) in wires.iter_mut().enumerate() {
        let head = wire.head().await;
        assert_eq!(head.line, "HTTP/1.1 200 Quite Fine");
        assert!(head.fields.contains(&("X-NumBer".to_owned(), number.to_string())), "{head:?}");
        let (came, trailers) = wire.chunks().await;
        assert!(came == body(number), "the body of {number}");
        assert_eq!(trailers.len(), 1);
    }
}

async fn handshakes(pair: &Pair) -> f64 {
    pair.orders.metrics().await.sum("tulle_tls_handshakes_total", &[("direction", "inbound")])
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_together_share_a_connection_and_pass_as_they_came() {
    let (app, mut heads, answers) = held().await;
    let pair = Pair::start(app, "http").await;
    for _ in 0..3 {
        let mut wires = ask(&pair, &mut heads).await;
        answers.add_permits(TOGETHER);
        answered(&mut wires).await;
    }
    // A few of their own, as long as there were few, and one that all others share, on each worker.
    let handshakes = handshakes(&pair).await;
    assert!(handshakes < 12.0, "{handshakes} connections for {TOGETHER} requests at a time");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_share_a_connection_are_answered_when_the_other_proxy_drains() {
    let (app, mut heads, answers) = held().await;
    let mut pair = Pair::start(app, "http").await;
    let mut wires = ask(&pair, &mut heads).await;
    pair.orders.process().signal(rustix::process::Signal::TERM);
    pair.orders.unready().await;
    answers.add_permits(TOGETHER);
    answered(&mut wires).await;
    assert!(pair.orders.process().wait().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_policy_that_was_taken_back_cuts_no_request_that_comes_later() {
    let (app, mut heads, answers) = held().await;
    let pair = Pair::start(app, "http").await;
    let mut cut = ask(&pair, &mut heads).await;
    let allow = |who: &str| {
        let policy = format!(
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: orders\n  namespace: \
             default\nspec:\n  targetRefs:\n    - {{group: \"\", kind: Service, name: orders}}\n  action: ALLOW\n  rules:\n    \
             - name: only\n      from:\n        - identities: [\"default/{who}\"]\n"
        );
        pair.world.yaml("policy.yaml", &policy);
    };
    allow("other");
    for wire in &mut cut {
        let (head, _) = wire.response().await;
        assert_ne!(head.status(), 200, "{head:?}");
    }
    // The application does not know yet: it may answer those.
    answers.add_permits(TOGETHER);
    allow("web");
    tulle_tests::eventually("web to be let in again", async || {
        answers.add_permits(1);
        let mut wire = pair.web.connect("orders").await;
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\nx-number: 0\r\nconnection: close\r\n\r\n").await;
        let head = wire.head().await;
        if head.status() == 200 { Ok(()) } else { Err(format!("{head:?}")) }
    })
    .await;
    answers.forget_permits(usize::MAX);
    while heads.try_recv().is_ok() {}
    // On the connection that was there before, where it still is; for longer than what is cut would last.
    let mut wires = ask(&pair, &mut heads).await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    answers.add_permits(TOGETHER);
    answered(&mut wires).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_share_a_connection_are_answered_for_when_the_other_proxy_dies() {
    let (app, mut heads, _answers) = held().await;
    let mut pair = Pair::start(app, "http").await;
    let mut wires = ask(&pair, &mut heads).await;
    pair.orders.process().kill().await;
    for wire in &mut wires {
        let (head, _) = wire.response().await;
        assert_eq!((head.status(), head.reason()), (502, Some("upstream_reset")));
    }
}
