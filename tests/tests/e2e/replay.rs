//! What is sent once more, and what never is: no request is lost that could be saved, and none is served twice.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tulle_tests::app::{App, full};
use tulle_tests::closing::{Closing, LONG, SHORT, around_the_end, closes_after_a_second};
use tulle_tests::machine::raise_file_limit;
use tulle_tests::{Head, Wire, Workload, World, deep, eventually, long, within};

use super::mtls::endpoint_slice;

/// How often each request was seen, by its path.
type Seen = Arc<Mutex<HashMap<String, u32>>>;

/// Answers with `answer` and counts what it sees.
async fn counting(seen: &Seen, answer: &'static str) -> App {
    let seen = Arc::clone(seen);
    App::wire(move |mut wire: Wire| {
        let seen = Arc::clone(&seen);
        async move {
            while let Some(head) = wire.try_head().await {
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
    let (dies, lives) = (counting(&seen, OK).await, counting(&seen, OK).await);
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
    web.counts("tulle_replays_total", &[("cause", "unprocessed")], 1.0).await;
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
    let (one, other) = (counting(&seen, claim).await, counting(&seen, claim).await);
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

/// Answers every request but the first for each path that has `silent` in it; takes down who was asked.
async fn silent_once(name: &'static str, seen: &Arc<Mutex<Vec<(&'static str, String)>>>) -> App {
    let seen = Arc::clone(seen);
    App::http2(move |request: Request<Incoming>| {
        let path = request.uri().path().to_owned();
        let is_first = {
            let mut seen = seen.lock().unwrap();
            seen.push((name, path.clone()));
            seen.iter().filter(|(_, known)| *known == path).count() == 1
        };
        async move {
            if is_first && path.contains("silent") {
                std::future::pending::<()>().await;
            }
            Response::new(full("ok"))
        }
    })
    .await
}

/// The proxy of an endpoint dies with requests under way on a connection of HTTP/2 that has served others: no GOAWAY, no answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_get_whose_endpoints_proxy_dies_goes_to_another_and_a_post_is_told() {
    let world = World::strict().await;
    let seen = Arc::<Mutex<Vec<(&'static str, String)>>>::default();
    let apps = [silent_once("one", &seen).await, silent_once("two", &seen).await];
    world.service("orders", "kubernetes.io/h2c");
    for (method, expected) in [(Method::GET, "200 "), (Method::POST, "502 upstream_reset")] {
        let mut workloads = Vec::new();
        for (name, app) in ["one", "two"].into_iter().zip(&apps) {
            let orders = world.workload(&format!("{name}-{}", method.as_str().to_lowercase()));
            let orders = orders.serves("orders", app.address()).start().await;
            orders.counts("tulle_registered", &[], 1.0).await;
            workloads.push(orders);
        }
        // One worker has one connection to each.
        let web = format!("web-{}", method.as_str().to_lowercase());
        let web = world.workload(&web).calls("orders").setting("--workers", "1").start().await;
        let stream = TcpStream::connect(web.outbound("orders")).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let ask = |path: &str| {
            let request = Request::builder().method(&method).uri(format!("http://orders/{method}/{path}"));
            request.body(Full::new(Bytes::from_static(b""))).unwrap()
        };
        let mut count = 0;
        eventually("both have served", async || {
            count += 1;
            sender.send_request(ask(&format!("warm/{count}"))).await.unwrap();
            let at = |name| {
                let begins = format!("/{method}/warm/");
                seen.lock()
                    .unwrap()
                    .iter()
                    .filter(|(by, path)| *by == name && path.starts_with(&begins))
                    .count()
            };
            if at("one") > 0 && at("two") > 0 { Ok(()) } else { Err(format!("{count} requests")) }
        })
        .await;
        let path = format!("/{method}/silent");
        let under_way = tokio::spawn(sender.send_request(ask("silent")));
        let mut asked = String::new();
        eventually("an application has the request", async || {
            let seen = seen.lock().unwrap();
            let Some((by, _)) = seen.iter().find(|(_, known)| *known == path) else {
                return Err("none".to_owned());
            };
            (*by).clone_into(&mut asked);
            Ok(())
        })
        .await;
        workloads[usize::from(asked == "two")].process().kill().await;
        let answer = within("an answer", under_way).await.unwrap().unwrap();
        let reason = answer.headers().get("x-tulle-error").map_or("", |reason| reason.to_str().unwrap());
        assert_eq!(format!("{} {reason}", answer.status().as_u16()), expected, "{method}");
        let times = seen.lock().unwrap().iter().filter(|(_, known)| *known == path).count();
        let times = u32::try_from(times).unwrap();
        assert_eq!(times, if method == Method::GET { 2 } else { 1 }, "{method}");
        let replays = web.metrics().await.sum("tulle_replays_total", &[("cause", "idempotent")]);
        assert_eq!(replays, f64::from(times - 1), "{method}");
    }
}

/// A server closes idle connections after a second, and clients come back after about that time.
#[tokio::test(flavor = "multi_thread")]
async fn r03_requests_around_the_moment_when_the_server_closes_are_neither_lost_nor_served_twice() {
    raise_file_limit();
    let world = World::strict().await;
    world.service("orders", "http");
    let closing = Closing::default();
    let app = closes_after_a_second(TcpListener::bind("127.0.0.1:0").unwrap(), &closing);
    // One worker has one pool: what it has seen of the server it knows for all.
    let orders = world.workload("orders").serves("orders", app.address()).setting("--workers", "1");
    let orders = orders.start().await;
    let web = world.workload("web").calls("orders").setting("--workers", "1").start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let (lanes, rounds) = if deep() || long() { LONG } else { SHORT };
    around_the_end(&web.outbound("orders").into(), &closing, lanes, rounds).await;
}

/// Answers one request of each connection, and closes at the next once it has read that.
async fn answers_once(seen: &Seen) -> App {
    let seen = Arc::clone(seen);
    App::wire(move |mut wire: Wire| {
        let seen = Arc::clone(&seen);
        async move {
            for turn in 0..2 {
                let Some(head) = wire.try_head().await else { return };
                let body = wire.body(&head).await;
                assert_eq!(body, b"hello");
                let path = head.line.split(' ').nth(1).unwrap().to_owned();
                *seen.lock().unwrap().entry(path).or_default() += 1;
                if turn == 0 {
                    wire.send(OK).await;
                }
            }
        }
    })
    .await
}

/// Its application is outside the mesh, or in it: then the proxy beside the application does it.
#[tokio::test(flavor = "multi_thread")]
async fn r03_a_put_with_a_body_on_a_connection_that_ends_is_sent_again_and_a_post_is_not() {
    let world = World::strict().await;
    let seen = Seen::default();
    let app = answers_once(&seen).await;
    world.service("orders", "http");
    world.service("plain", "http");
    world.yaml("plain-slice.yaml", &endpoint_slice("plain", app.address(), None));
    // One worker has one pool.
    let orders = world.workload("orders").serves("orders", app.address()).setting("--workers", "1");
    let orders = orders.start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = world.workload("web").calls("orders").calls("plain").setting("--workers", "1").start().await;
    for service in ["orders", "plain"] {
        let mut wire = web.connect(service).await;
        // What was answered leaves a connection that has served one, and so does what was sent again.
        for (method, path, expected, times) in [
            ("PUT", "first", "200 ", 1),
            ("PUT", "put", "200 ", 2),
            ("DELETE", "delete", "200 ", 2),
            ("POST", "post", "502 upstream_reset", 1),
        ] {
            let path = format!("/{service}/{path}");
            let fields = "host: orders\r\ncontent-length: 5";
            wire.send(format!("{method} {path} HTTP/1.1\r\n{fields}\r\n\r\nhello")).await;
            let (head, _) = wire.response().await;
            let told = format!("{} {}", head.status(), head.reason().unwrap_or_default());
            assert_eq!((&*told, seen.lock().unwrap()[&path]), (expected, times), "{path}");
        }
    }
}
