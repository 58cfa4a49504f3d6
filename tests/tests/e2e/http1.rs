//! HTTP/1.1 as applications see it: every byte that matters, through two proxies.

use serde_json::json;
use tulle_tests::app::{App, full};
use tulle_tests::{Head, Wire, chunked};

use super::Pair;

/// An application that answers each request with what it saw: its head as text.
async fn mirror() -> App {
    App::wire(async move |mut wire: Wire| {
        while let Some(head) = wire.try_head().await {
            let body = wire.body(&head).await;
            let seen = seen(&head, &body);
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{seen}", seen.len())).await;
        }
    })
    .await
}

fn seen(head: &Head, body: &[u8]) -> String {
    let fields: Vec<_> = head.fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    format!("{}\n{}\n\n{}", head.line, fields.join("\n"), String::from_utf8_lossy(body))
}

/// An application that sends these bytes after each request's head, then goes on.
async fn answering(answer: impl Into<Vec<u8>>) -> App {
    let answer = answer.into();
    App::wire(move |mut wire| {
        let answer = answer.clone();
        async move {
            while let Some(head) = wire.try_head().await {
                wire.body(&head).await;
                if wire.try_send(&answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

async fn ask(wire: &mut Wire, request: &str) -> (Head, String) {
    wire.send(request).await;
    let (head, body) = wire.response().await;
    (head, String::from_utf8(body).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_kept_alive_at_both_ends() {
    let (connections, app) = counted("ok").await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    for _ in 0..20 {
        let (head, body) = ask(&mut wire, "GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        assert_eq!((head.status(), body.as_str()), (200, "ok"));
    }
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 1, "connections to the application");
}

async fn counted(text: &'static str) -> (std::sync::Arc<std::sync::atomic::AtomicUsize>, App) {
    let count = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let counter = std::sync::Arc::clone(&count);
    let app = App::wire(move |mut wire| {
        counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async move {
            while wire.try_head().await.is_some() {
                wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len())).await;
            }
        }
    })
    .await;
    (count, app)
}

#[tokio::test(flavor = "multi_thread")]
async fn names_keep_their_case_and_hop_by_hop_fields_stay_on_their_hop() {
    let pair = Pair::start(mirror().await, "http").await;
    let mut wire = pair.web.connect("orders").await;
    let (_, saw) = ask(
        &mut wire,
        "GET /a?b=c HTTP/1.1\r\nHost: orders.example:99\r\nX-CaSe: Kept\r\nx-two: 1\r\nx-two: 2\r\nConnection: X-Hop, \
         keep-alive\r\nX-Hop: mine\r\nKeep-Alive: timeout=3\r\nX-Tulle-Error: forged\r\n\r\n",
    )
    .await;
    assert!(saw.starts_with("GET /a?b=c HTTP/1.1\n"), "{saw}");
    assert!(saw.contains("\nHost: orders.example:99\n"), "{saw}");
    assert!(saw.contains("\nX-CaSe: Kept\n"), "{saw}");
    assert!(saw.contains("\nx-two: 1\nx-two: 2\n"), "{saw}");
    for gone in ["x-hop: ", "keep-alive: ", "x-tulle-", "via: ", "x-forwarded-", "forged"] {
        assert!(!saw.to_lowercase().contains(gone), "{gone} in {saw}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applications_answer_keeps_its_case_and_cannot_use_our_names() {
    let app = answering(
        "HTTP/1.1 200 Fine\r\nX-Answer-Case: Kept\r\nX-Tulle-Error: forged\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    let (head, body) = ask(&mut wire, "GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    assert_eq!((head.line.as_str(), body.as_str()), ("HTTP/1.1 200 Fine", "ok"));
    assert!(head.fields.contains(&("X-Answer-Case".to_owned(), "Kept".to_owned())), "{head:?}");
    for name in ["x-tulle-error", "server", "via", "date"] {
        assert_eq!(head.get(name), None, "{head:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_their_order() {
    let pair = Pair::start(mirror().await, "http").await;
    let mut wire = pair.web.connect("orders").await;
    let requests: Vec<_> = (0..50).map(|n| format!("GET /{n} HTTP/1.1\r\nhost: orders\r\n\r\n")).collect();
    wire.send(requests.concat()).await;
    for n in 0..50 {
        let (_, body) = wire.response().await;
        let saw = String::from_utf8(body).unwrap();
        assert!(saw.starts_with(&format!("GET /{n} HTTP/1.1\n")), "{n}: {saw}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_bodies_pass_in_both_directions_as_they_come() {
    let app = App::wire(async move |mut wire: Wire| {
        while let Some(head) = wire.try_head().await {
            assert!(head.has("transfer-encoding", "chunked"), "{head:?}");
            wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            // Each chunk is answered before the next one is sent.
            loop {
                let size = usize::from_str_radix(&wire.line().await, 16).unwrap();
                let chunk = wire.exactly(size).await;
                wire.line().await;
                if size == 0 {
                    break;
                }
                wire.send(format!("{size:x}\r\n")).await;
                wire.send(chunk.to_ascii_uppercase()).await;
                wire.send("\r\n").await;
            }
            wire.send("0\r\n\r\n").await;
        }
    })
    .await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    for _ in 0..2 {
        wire.send("POST / HTTP/1.1\r\nhost: orders\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let mut answered = None;
        for word in ["one", "three", "seventeen"] {
            wire.send(format!("{:x}\r\n{word}\r\n", word.len())).await;
            if answered.is_none() {
                answered = Some(wire.head().await);
            }
            let size = usize::from_str_radix(&wire.line().await, 16).unwrap();
            assert_eq!(wire.exactly(size).await, word.to_uppercase().as_bytes());
            wire.line().await;
        }
        wire.send("0\r\n\r\n").await;
        assert_eq!(wire.line().await, "0");
        assert_eq!(wire.line().await, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_is_sent_after_100_continue_and_not_before() {
    let app = App::wire(async move |mut wire: Wire| {
        while let Some(head) = wire.try_head().await {
            assert_eq!(head.get("expect"), Some("100-continue"), "{head:?}");
            if head.line.contains("/refuse") {
                wire.send(
                    "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                )
                .await;
                return;
            }
            wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            let body = wire.body(&head).await;
            wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len())).await;
            wire.send(body).await;
        }
    })
    .await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    let head = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: orders\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
    };
    wire.send(head("/take")).await;
    assert_eq!(wire.head().await.status(), 100);
    wire.send("data").await;
    let (answer, body) = wire.response().await;
    assert_eq!((answer.status(), body.as_slice()), (200, b"data".as_slice()));

    wire.send(head("/refuse")).await;
    assert_eq!(wire.head().await.status(), 417, "a final answer in place of 100");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_body_leave_the_connection_usable() {
    let app = App::wire(async move |mut wire: Wire| {
        while let Some(head) = wire.try_head().await {
            let answer = match head.line.split(' ').collect::<Vec<_>>()[..2] {
                ["HEAD", _] => "200 OK\r\nContent-Length: 12345",
                [_, "/204"] => "204 No Content",
                [_, "/304"] => "304 Not Modified\r\nETag: \"x\"",
                _ => "200 OK\r\nContent-Length: 0",
            };
            wire.send(format!("HTTP/1.1 {answer}\r\n\r\n")).await;
        }
    })
    .await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    for (request, status, length) in [
        ("HEAD /", 200, Some("12345")),
        ("GET /204", 204, None),
        ("GET /304", 304, None),
        ("GET /empty", 200, Some("0")),
        ("HEAD /", 200, Some("12345")),
    ] {
        wire.send(format!("{request} HTTP/1.1\r\nhost: orders\r\n\r\n")).await;
        let head = wire.head().await;
        assert_eq!((head.status(), head.get("content-length")), (status, length), "{request}: {head:?}");
        assert!(!head.has("transfer-encoding", "chunked"), "{request}: {head:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn declared_trailers_pass_in_both_directions() {
    let app = App::wire(async move |mut wire: Wire| {
        while let Some(head) = wire.try_head().await {
            assert!(head.has("trailer", "x-sum"), "{head:?}");
            let (body, trailers) = wire.chunks().await;
            let sum =
                trailers.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-sum")).map(|(_, value)| value);
            wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-answer-sum\r\n\r\n").await;
            let text = format!("{} {sum:?}", body.len());
            wire.send(format!("{:x}\r\n{text}\r\n0\r\nx-answer-sum: 42\r\n\r\n", text.len())).await;
        }
    })
    .await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send(
        "POST / HTTP/1.1\r\nhost: orders\r\nte: trailers\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n\
         4\r\ndata\r\n0\r\nx-sum: 7\r\n\r\n",
    )
    .await;
    let head = wire.head().await;
    assert!(head.has("trailer", "x-answer-sum"), "{head:?}");
    let (body, trailers) = wire.chunks().await;
    assert_eq!(String::from_utf8(body).unwrap(), "4 Some(\"7\")");
    assert_eq!(trailers, [("x-answer-sum".to_owned(), "42".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_block_of_64_kib_passes_in_both_directions() {
    let big = "v".repeat(64 * 1024 - 200);
    let answer = format!("HTTP/1.1 200 OK\r\nx-big: {big}\r\ncontent-length: 2\r\n\r\nok");
    let app = App::wire(move |mut wire| {
        let answer = answer.clone();
        async move {
            while let Some(head) = wire.try_head().await {
                assert_eq!(head.get("x-big").map(str::len), Some(64 * 1024 - 200));
                wire.send(&answer).await;
            }
        }
    })
    .await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send(format!("GET / HTTP/1.1\r\nhost: orders\r\nx-big: {big}\r\n\r\n")).await;
    let (head, body) = wire.response().await;
    assert_eq!((head.status(), body.as_slice()), (200, b"ok".as_slice()), "{}", head.line);
    assert_eq!(head.get("x-big").map(str::len), Some(big.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_ends_with_the_connection_is_whole() {
    let app = App::wire(async move |mut wire: Wire| {
        let head = wire.head().await;
        let version = if head.line.contains("/old") { "1.0" } else { "1.1" };
        wire.send(format!("HTTP/{version} 200 OK\r\nconnection: close\r\n\r\n")).await;
        wire.send(vec![b'x'; 100_000]).await;
    })
    .await;
    let pair = Pair::start(app, "http").await;
    for path in ["/", "/old"] {
        let mut wire = pair.web.connect("orders").await;
        wire.send(format!("GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n")).await;
        let (head, body) = wire.response().await;
        assert_eq!((head.status(), body.len()), (200, 100_000), "{path}: {head:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_without_host_and_absolute_form_are_understood() {
    let pair = Pair::start(mirror().await, "http").await;
    let mut wire = pair.web.connect("orders").await;
    let (head, saw) = ask(&mut wire, "GET /old HTTP/1.0\r\n\r\n").await;
    assert_eq!(head.status(), 200);
    assert!(saw.starts_with("GET /old HTTP/1."), "{saw}");
    assert_eq!(wire.to_end().await, b"", "HTTP/1.0 closes unless asked not to");

    // The absolute form (RFC 9112 §3.2.2) passes as it is: which of the two names counts is the application's business.
    let mut wire = pair.web.connect("orders").await;
    let (head, saw) =
        ask(&mut wire, "GET http://shop.example/x HTTP/1.1\r\nHost: other.example\r\n\r\n").await;
    assert_eq!(head.status(), 200);
    assert!(saw.starts_with("GET http://shop.example/x HTTP/1.1\n"), "{saw}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_becomes_a_tunnel() {
    let app = App::wire(async move |mut wire: Wire| {
        let head = wire.head().await;
        assert!(head.has("connection", "upgrade"), "{head:?}");
        assert_eq!(head.get("upgrade"), Some("shout"), "{head:?}");
        // What follows the head at once belongs to the new protocol.
        wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\nhi!")
            .await;
        while let Some(word) = wire.until(b"\n").await {
            wire.send(word.to_ascii_uppercase()).await;
        }
    })
    .await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send("GET /chat HTTP/1.1\r\nhost: orders\r\nconnection: Upgrade\r\nupgrade: shout\r\n\r\n").await;
    let head = wire.head().await;
    assert_eq!((head.status(), head.get("upgrade")), (101, Some("shout")), "{head:?}");
    assert_eq!(wire.exactly(3).await, b"hi!");
    wire.send("abc\n").await;
    assert_eq!(wire.until(b"\n").await.unwrap(), b"ABC\n");
    wire.finish().await;
    assert_eq!(wire.to_end().await, b"");
    pair.orders.logs(&[("path", json!("/chat")), ("status", json!(101))]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_becomes_a_tunnel() {
    let app = App::wire(async move |mut wire: Wire| {
        let head = wire.head().await;
        assert_eq!(head.line, "CONNECT db.example:5432 HTTP/1.1");
        wire.send("HTTP/1.1 200 Connected\r\n\r\n").await;
        while let Some(word) = wire.until(b"\n").await {
            wire.send(word).await;
        }
    })
    .await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send("CONNECT db.example:5432 HTTP/1.1\r\nhost: db.example:5432\r\n\r\n").await;
    assert_eq!(wire.head().await.status(), 200);
    wire.send("SELECT 1\n").await;
    assert_eq!(wire.until(b"\n").await.unwrap(), b"SELECT 1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_the_end_of_the_request_is_passed_on() {
    let app = App::wire(async move |mut wire: Wire| {
        wire.head().await;
        wire.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 7\r\nconnection: close\r\n\r\ntoo big")
            .await;
    })
    .await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send("POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 1000000\r\n\r\n").await;
    wire.send(vec![b'x'; 1000]).await;
    let (head, body) = wire.response().await;
    assert_eq!((head.status(), body.as_slice()), (413, b"too big".as_slice()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_dies_before_its_answer_is_told_apart_from_one_that_is_not_there() {
    let app = App::wire(async move |mut wire: Wire| {
        wire.head().await;
        drop(wire);
    })
    .await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    let (head, _) = ask(&mut wire, "POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!((head.status(), head.reason()), (502, Some("upstream_reset")));
    assert_eq!(head.get("x-tulle-error-by"), Some("default/orders/inbound"));
    let Pair { web, _app: app, .. } = &pair;
    app.stop().await;
    let mut wire = web.connect("orders").await;
    let (head, _) = ask(&mut wire, "GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    assert_eq!((head.status(), head.reason()), (503, Some("connect_failed")));
    pair.orders.logs(&[("reason", json!("connect_failed")), ("by", json!("default/orders/inbound"))]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_sent_once_even_if_its_reused_connection_died() {
    // Answers the first request of each connection and closes upon the second.
    let seen = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
    let log = std::sync::Arc::clone(&seen);
    let app = App::wire(move |mut wire| {
        let log = std::sync::Arc::clone(&log);
        async move {
            let first = wire.head().await;
            wire.body(&first).await;
            log.lock().unwrap().push(first.line);
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            if let Some(second) = wire.try_head().await {
                log.lock().unwrap().push(second.line);
            }
        }
    })
    .await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    let request = |method: &str, path: &str| {
        format!("{method} {path} HTTP/1.1\r\nhost: orders\r\ncontent-length: 0\r\n\r\n")
    };
    assert_eq!(ask(&mut wire, &request("GET", "/1")).await.0.status(), 200);
    // Idempotent: replayed on a new connection, once.
    assert_eq!(ask(&mut wire, &request("GET", "/2")).await.0.status(), 200);
    // Not idempotent: told.
    let (head, _) = ask(&mut wire, &request("POST", "/3")).await;
    assert_eq!((head.status(), head.reason()), (502, Some("upstream_reset")));
    let seen = seen.lock().unwrap();
    let count = |path: &str| seen.iter().filter(|line| line.contains(&format!(" {path} "))).count();
    assert_eq!((count("/1"), count("/2"), count("/3")), (1, 2, 1), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_chunk_size_arrives_whole() {
    let pair = Pair::start(
        App::http1(async move |request| {
            use http_body_util::BodyExt;
            http::Response::new(full(request.into_body().collect().await.unwrap().to_bytes()))
        })
        .await,
        "http",
    )
    .await;
    let data: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    let mut wire = pair.web.connect("orders").await;
    for size in [1000, 4096, 16_384, 65_537] {
        wire.send("PUT / HTTP/1.1\r\nhost: orders\r\ntransfer-encoding: chunked\r\n\r\n").await;
        wire.send(chunked(&data, size)).await;
        let (head, body) = wire.response().await;
        assert_eq!(head.status(), 200);
        assert!(body == data, "chunks of {size}: {} bytes came back", body.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_ours_pass_neither_in_interim_responses_nor_in_trailers() {
    let app = App::wire(async move |mut wire: Wire| {
        while let Some(head) = wire.try_head().await {
            let (_, trailers) = wire.chunks().await;
            assert_eq!(head.get("x-tulle-a"), None, "{head:?}");
            assert_eq!(trailers, [("x-sum".to_owned(), "1".to_owned())]);
            wire.send("HTTP/1.1 103 Early\r\nx-tulle-error: forged\r\nlink: a\r\n\r\n").await;
            wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n").await;
            wire.send("0\r\nx-tulle-error: forged\r\nx-answer: 2\r\n\r\n").await;
        }
    })
    .await;
    let pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send("POST / HTTP/1.1\r\nhost: orders\r\nx-tulle-a: 1\r\ntransfer-encoding: chunked\r\n\r\n").await;
    wire.send("1\r\na\r\n0\r\nx-tulle-b: 1\r\nx-sum: 1\r\n\r\n").await;
    let interim = wire.head().await;
    assert_eq!(interim.fields, [("link".to_owned(), "a".to_owned())], "{interim:?}");
    assert_eq!(wire.head().await.status(), 200);
    assert_eq!(wire.chunks().await, (b"a".to_vec(), vec![("x-answer".to_owned(), "2".to_owned())]));
}
