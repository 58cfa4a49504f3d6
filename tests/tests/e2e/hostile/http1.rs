//! What a server of HTTP/1 may do wrong with its answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::AsyncWriteExt;
use tulle_tests::app::App;
use tulle_tests::{Head, Wire};

use super::{LEGS, Neighbours, Stage, ask1};

/// What a server does once it has said what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Close,
    Reset,
    /// Says that nothing more comes, and goes on reading.
    Half,
    /// Waits for what the proxy does.
    Wait,
    /// Reads no more, before it says anything.
    Deaf,
}

use Then::{Close, Deaf, Half, Reset, Wait};

/// What is said to a request, how it ends, and what the client is told; `{by}` stands for the proxy next to the server.
type Case = (&'static str, &'static str, Then, &'static str);

const BROKEN: &str = "502 upstream_reset by {by}";
const NONSENSE: &str = "502 upstream_malformed by {by}";

const CASES: &[Case] = &[
    ("no byte, closed", "", Close, BROKEN),
    ("no byte, half-closed", "", Half, BROKEN),
    ("no byte, reset", "", Reset, BROKEN),
    ("half a status line, closed", "HTTP/1.1 20", Close, BROKEN),
    ("half a status line, reset", "HTTP/1.1 20", Reset, BROKEN),
    ("half a head, closed", "HTTP/1.1 200 OK\r\ncontent-le", Close, BROKEN),
    ("half a head, half-closed", "HTTP/1.1 200 OK\r\ncontent-le", Half, BROKEN),
    ("half a head, reset", "HTTP/1.1 200 OK\r\ncontent-le", Reset, BROKEN),
    ("only interim responses", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\n\r\n", Close, BROKEN),
    ("a head, closed", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", Close, "200 cut"),
    ("a head, reset", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", Reset, "200 cut"),
    ("half a body, closed", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", Close, "200 cut"),
    ("half a body, half-closed", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", Half, "200 cut"),
    ("half a body, reset", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", Reset, "200 cut"),
    ("no chunk, closed", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", Close, "200 cut"),
    (
        "half a chunk, closed",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
        Close,
        "200 cut",
    ),
    (
        "no last chunk, closed",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n",
        Close,
        "200 cut",
    ),
    (
        "no last chunk, reset",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n",
        Reset,
        "200 cut",
    ),
    (
        "half the last chunk",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n0\r\n",
        Close,
        "200 cut",
    ),
    ("half a trailer", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-su", Close, "200 cut"),
    (
        "a chunk's size is none",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhe\r\n0\r\n\r\n",
        Wait,
        "200 cut",
    ),
    (
        "a chunk's size overflows",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhe",
        Wait,
        "200 cut",
    ),
    (
        "a chunk without its end",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhello",
        Wait,
        "200 cut",
    ),
    ("a body to the end, closed", "HTTP/1.1 200 OK\r\n\r\nhello", Close, "200 whole hello"),
    ("a body to the end, half-closed", "HTTP/1.1 200 OK\r\n\r\nhello", Half, "200 whole hello"),
    ("a body to the end, reset", "HTTP/1.1 200 OK\r\n\r\nhel", Reset, "200 cut"),
    ("an old body to the end, closed", "HTTP/1.0 200 OK\r\n\r\nhello", Close, "200 whole hello"),
    ("an old body to the end, reset", "HTTP/1.0 200 OK\r\n\r\nhel", Reset, "200 cut"),
    ("whole, closed", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", Close, "200 whole hello"),
    ("whole, half-closed", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", Half, "200 whole hello"),
    (
        "whole, by one that reads no more",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        Deaf,
        "200 whole hello",
    ),
    (
        "whole, by one that keeps connections for ever",
        "HTTP/1.1 200 OK\r\nkeep-alive: timeout=18446744073709551615\r\ncontent-length: 5\r\n\r\nhello",
        Wait,
        "200 whole hello",
    ),
    ("whole, waits", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", Wait, "200 whole hello"),
    (
        "longer than it says",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello, world",
        Wait,
        "200 whole hello",
    ),
    (
        "two answers",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        Wait,
        "200 whole hello",
    ),
    (
        "an answer after interim ones",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        Wait,
        "200 whole ok",
    ),
    ("204 with a body", "HTTP/1.1 204 No Content\r\n\r\nevil", Wait, "204 whole "),
    (
        "it switches protocols unasked",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        Wait,
        NONSENSE,
    ),
    ("no HTTP", "220 smtp.example ESMTP\r\n\r\n", Wait, NONSENSE),
    ("no HTTP, closed", "this is not HTTP\r\n\r\n", Close, NONSENSE),
    ("HTTP/2 unasked", "\0\0\0\x04\0\0\0\0\0\r\n\r\n", Wait, NONSENSE),
    ("no status", "HTTP/1.1 OK\r\n\r\n", Wait, NONSENSE),
    ("a status of two digits", "HTTP/1.1 20 OK\r\n\r\n", Wait, NONSENSE),
    ("a status below 100", "HTTP/1.1 099 What\r\n\r\n", Wait, NONSENSE),
    ("another version", "HTTP/3.0 200 OK\r\n\r\n", Wait, NONSENSE),
    ("a NUL in a field", "HTTP/1.1 200 OK\r\nx-a: \0\r\ncontent-length: 0\r\n\r\n", Wait, NONSENSE),
    ("a space before the colon", "HTTP/1.1 200 OK\r\ncontent-length : 0\r\n\r\n", Wait, NONSENSE),
    ("no colon", "HTTP/1.1 200 OK\r\ncontent-length\r\n\r\n", Wait, NONSENSE),
    ("two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nhello", Wait, NONSENSE),
    ("a negative length", "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", Wait, NONSENSE),
    (
        "length and chunked",
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        Wait,
        NONSENSE,
    ),
];

/// Which case each path asks for, and how often each request came.
type Seen = Arc<Mutex<BTreeMap<String, usize>>>;

async fn server(seen: &Seen) -> App {
    let seen = Arc::clone(seen);
    App::wire(move |wire| serve(wire, Arc::clone(&seen))).await
}

async fn serve(mut wire: Wire, seen: Seen) {
    while let Some(head) = request(&mut wire).await {
        let [method, path] = [0, 1].map(|at| head.line.split(' ').nth(at).unwrap());
        *seen.lock().unwrap().entry(format!("{method} {path}")).or_default() += 1;
        let case = path.rsplit('/').next().unwrap();
        let (_, says, then, _) = CASES[case.parse::<usize>().unwrap()];
        if then == Deaf {
            wire.deafen();
        }
        if wire.try_send(says).await.is_err() {
            return;
        }
        match then {
            Close => return,
            // On loopback nothing overtakes what was written before.
            Reset => return wire.reset(),
            Half => {
                // The other side may have closed it by then.
                let _ = wire.stream().shutdown().await;
                return drop(wire.to_end_or_reset().await);
            }
            Wait | Deaf => {}
        }
    }
}

pub(super) async fn request(wire: &mut Wire) -> Option<Head> {
    let end = b"\r\n\r\n";
    let mut head = Vec::new();
    while !head.ends_with(end) {
        head.extend(wire.try_exactly(1).await?);
    }
    let head = Head::parse(&head);
    if let Some(length) = head.get("content-length") {
        wire.try_exactly(length.parse().unwrap()).await?;
    }
    Some(head)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http1_is_told_what_became_of_its_answer_and_never_of_a_success_that_was_none() {
    let seen = Seen::default();
    let mut stage = Stage::new(server(&seen).await, "http").await;
    stage.web.reaches("good").await;
    let neighbours = Neighbours::of(&stage);
    let mut wrong = Vec::new();
    for (service, by) in LEGS {
        for method in ["GET", "POST"] {
            for (number, (what, _, _, expected)) in CASES.iter().enumerate() {
                let path = format!("/{service}/{number}");
                let body = if method == "POST" { "hello" } else { "" };
                let told = ask1(stage.web.outbound(service), method, &path, body, "").await;
                let expected = expected.replace("{by}", by);
                let came = seen.lock().unwrap().get(&format!("{method} {path}")).copied().unwrap_or_default();
                if told != expected || came != 1 {
                    wrong.push(format!("{service} {method} {what}: {told}, came {came} times; {expected}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    neighbours.are_well().await;
    stage.is_at_rest().await;
}
