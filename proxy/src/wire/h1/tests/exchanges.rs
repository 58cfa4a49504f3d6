use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::{
    Body, Client, Closed, Exchange, Failure, HeadError, Limits, OriginalHead, Settings, serve,
};
use super::{converse, describe, echo, read_until, refusal, send, served, served_until};
use crate::wire::Processed;

type Frames = Vec<Result<Frame<Bytes>, std::io::Error>>;

fn stream(frames: Frames) -> impl http_body::Body<Data = Bytes, Error = std::io::Error> + Send + Unpin {
    StreamBody::new(tokio_stream::iter(frames))
}

pub(super) fn data(bytes: &'static str) -> Result<Frame<Bytes>, std::io::Error> {
    Ok(Frame::data(Bytes::from_static(bytes.as_bytes())))
}

fn broken() -> Result<Frame<Bytes>, std::io::Error> {
    Err(std::io::Error::other("broken"))
}

pub(super) type Sender = tokio::sync::mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>;

pub(super) fn channel()
-> (Sender, impl http_body::Body<Data = Bytes, Error = std::io::Error> + Send + Unpin + std::fmt::Debug) {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    (sender, StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver)))
}

// === The server's side ===

#[tokio::test]
async fn requests_are_answered_in_their_order() {
    let (io, closed) = served(describe);
    let requests = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n\
        POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
        POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ndef\r\n0\r\nT: u\r\n\r\n\
        GET /4 HTTP/1.1\r\nHost: a\r\n\r\n";
    let answers = converse(io, requests.as_bytes()).await;
    let bodies: Vec<_> = answers.split("\r\n\r\n").skip(1).collect();
    assert!(bodies[0].starts_with("GET /1 \"\" None"), "{answers}");
    assert!(bodies[1].starts_with("POST /2 \"abc\" None"), "{answers}");
    assert!(bodies[2].starts_with("POST /3 \"def\" Some({\"t\": \"u\"})"), "{answers}");
    assert!(bodies[3].starts_with("GET /4 \"\" None"), "{answers}");
    assert!(matches!(closed.await.unwrap(), Closed::ByClient));
}

#[tokio::test]
async fn every_split_of_the_bytes_gives_the_same_answers() {
    let requests = "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
        POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ndef\r\n0\r\nT: u\r\n\r\n\
        GET /4 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let whole = converse(served(describe).0, requests.as_bytes()).await;
    for at in 0..requests.len() {
        let (mut io, _closed) = served(describe);
        io.write_all(&requests.as_bytes()[..at]).await.unwrap();
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        assert_eq!(converse(io, &requests.as_bytes()[at..]).await, whole, "at {at}");
    }
    let (client, server) = tokio::io::duplex(1);
    let serving = serve(server, &[], Settings::default(), describe, refusal, std::future::pending());
    let (_, bytewise) = tokio::join!(serving, converse_both(client, requests.as_bytes()));
    assert_eq!(bytewise, whole);
}

/// Writes and reads at once.
async fn converse_both(io: DuplexStream, bytes: &[u8]) -> String {
    let (mut read, mut write) = tokio::io::split(io);
    let mut answer = String::new();
    let (written, got) = tokio::join!(write.write_all(bytes), read.read_to_string(&mut answer));
    written.unwrap();
    got.unwrap();
    answer
}

#[tokio::test]
async fn what_detection_has_read_comes_first() {
    let (client, server) = tokio::io::duplex(1024);
    let initial = b"GET /1 HTTP/1.1\r\nHo";
    let serving = serve(server, initial, Settings::default(), describe, refusal, std::future::pending());
    let (_, answer) = tokio::join!(serving, converse(client, b"st: a\r\n\r\n"));
    assert!(answer.contains("GET /1"), "{answer}");
}

#[tokio::test]
async fn a_malformed_head_is_answered_by_the_callback_and_ends_the_connection() {
    let requests = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost : a\r\n\r\nGET /3 HTTP/1.1\r\n";
    let (io, closed) = served(describe);
    let answers = converse(io, requests.as_bytes()).await;
    assert!(answers.contains("GET /1"), "{answers}");
    assert!(answers.contains("HTTP/1.1 400 Bad Request\r\ncontent-length: "), "{answers}");
    assert!(answers.ends_with("whitespace before a colon"), "{answers}");
    assert!(answers.contains("connection: close\r\n"), "{answers}");
    assert!(matches!(closed.await.unwrap(), Closed::Refused(_)));
}

#[tokio::test]
async fn http_1_0_is_kept_alive_only_when_asked() {
    let closing = converse(served(describe).0, b"GET /1 HTTP/1.0\r\n\r\nGET /2 HTTP/1.0\r\n\r\n").await;
    assert!(
        closing.starts_with("HTTP/1.0 200 OK\r\n") && closing.contains("connection: close\r\n"),
        "{closing}"
    );
    assert!(!closing.contains("/2"), "{closing}");
    let requests = b"GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /2 HTTP/1.0\r\n\r\n";
    let keeping = converse(served(describe).0, requests).await;
    assert!(keeping.contains("connection: keep-alive\r\n") && keeping.contains("GET /2"), "{keeping}");
}

#[tokio::test]
async fn a_body_of_unknown_length_is_chunked_or_ends_the_connection() {
    let handler = |_: Request<Body>| async { Response::new(stream(vec![data("a"), data("bc")])) };
    let chunked = converse(served(handler).0, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(
        chunked,
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"
    );
    let keep = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    let closing = converse(served(handler).0, keep).await;
    assert_eq!(closing, "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nabc");
}

#[tokio::test]
async fn trailers_go_out_without_having_been_announced() {
    let handler = |_: Request<Body>| async {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        Response::new(stream(vec![data("a"), Ok(Frame::trailers(trailers))]))
    };
    let answer = converse(served(handler).0, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(answer.ends_with("\r\n\r\n1\r\na\r\n0\r\nx-sum: 1\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn responses_that_have_no_body_are_sent_without() {
    let handler = |request: Request<Body>| async move {
        let mut response = Response::new(Full::new(Bytes::from_static(b"body")));
        *response.status_mut() = request.uri().path()[1..].parse().unwrap();
        if request.method() == Method::HEAD {
            response.headers_mut().insert("content-length", HeaderValue::from_static("1234"));
        }
        response
    };
    let requests = "HEAD /200 HTTP/1.1\r\nHost: a\r\n\r\nGET /204 HTTP/1.1\r\nHost: a\r\n\r\n\
        GET /304 HTTP/1.1\r\nHost: a\r\n\r\nGET /200 HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(
        converse(served(handler).0, requests.as_bytes()).await,
        "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n\
         HTTP/1.1 304 Not Modified\r\ncontent-length: 4\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody"
    );
}

#[tokio::test]
async fn a_response_that_breaks_off_is_not_ended_as_if_whole() {
    let handler = |_: Request<Body>| async { Response::new(stream(vec![data("a"), broken()])) };
    let (mut io, closed) = served(handler);
    io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
    assert!(matches!(closed.await.unwrap(), Closed::Aborted(_)));
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    let (mut io, _closed) = served(echo);
    io.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    read_until(&mut io, "\r\n\r\n").await;
    for word in ["one", "two!", "three"] {
        io.write_all(format!("{:x}\r\n{word}\r\n", word.len()).as_bytes()).await.unwrap();
        assert_eq!(
            read_until(&mut io, &format!("{word}\r\n")).await,
            format!("{:x}\r\n{word}\r\n", word.len())
        );
    }
    io.write_all(b"0\r\n\r\n").await.unwrap();
    read_until(&mut io, "0\r\n\r\n").await;
}

#[tokio::test]
async fn what_a_handler_leaves_of_a_body_is_read_if_it_is_little() {
    let ignore = |_: Request<Body>| async { Response::new(Empty::<Bytes>::new()) };
    let little = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{}GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "x".repeat(1000)
    );
    let answers = converse(served(ignore).0, little.as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
    let much = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n{}GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "x".repeat(300_000)
    );
    let answers = converse(served(ignore).0, much.as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 1, "{answers}");
}

#[tokio::test]
async fn a_request_body_that_breaks_off_is_an_error_and_ends_the_connection() {
    for (body, what) in [
        ("Content-Length: 9\r\n\r\nabc", "the connection ended before the body did"),
        ("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "the connection ended before the body did"),
        ("Transfer-Encoding: chunked\r\n\r\nzz\r\n", "malformed chunked body"),
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{body}");
        let (io, closed) = served(describe);
        let answer = converse(io, request.as_bytes()).await;
        assert!(answer.contains(what) && answer.contains("connection: close"), "{answer}");
        assert!(matches!(closed.await.unwrap(), Closed::AfterResponse));
    }
}

#[tokio::test]
async fn interim_responses_go_before_the_final_one() {
    let handler = |request: Request<Body>| async move {
        let exchange = request.extensions().get::<Exchange>().unwrap().clone();
        let mut hints = Response::new(());
        *hints.status_mut() = StatusCode::EARLY_HINTS;
        hints.headers_mut().insert("link", HeaderValue::from_static("</a.css>"));
        let sent = exchange.interim(&hints);
        *hints.status_mut() = StatusCode::OK;
        assert!(!exchange.interim(&hints));
        Response::new(Full::new(Bytes::from(format!("{sent}"))))
    };
    let answer = converse(served(handler).0, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(
        answer,
        "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrue"
    );
    let answer = converse(served(handler).0, b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK") && answer.ends_with("false"), "{answer}");
}

#[tokio::test]
async fn nobody_is_told_to_continue_but_by_the_handler() {
    let handler = |request: Request<Body>| async move {
        let exchange = request.extensions().get::<Exchange>().unwrap().clone();
        if request.uri().path() == "/yes" {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::CONTINUE;
            exchange.interim(&response);
            let body = request.into_body().collect().await.unwrap().to_bytes();
            return Response::new(Full::new(body));
        }
        let mut response = Response::new(Full::new(Bytes::new()));
        *response.status_mut() = StatusCode::EXPECTATION_FAILED;
        response
    };
    let (mut io, closed) = served(handler);
    let head = |path| {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    };
    io.write_all(head("/yes").as_bytes()).await.unwrap();
    assert_eq!(read_until(&mut io, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    io.write_all(b"abc").await.unwrap();
    assert!(read_until(&mut io, "abc").await.starts_with("HTTP/1.1 200 OK\r\n"));
    // Whether a body follows is not known: the connection cannot be used again.
    let answer = converse(io, head("/no").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 417 ") && answer.contains("connection: close"), "{answer}");
    assert!(matches!(closed.await.unwrap(), Closed::AfterResponse));
}

#[tokio::test]
async fn a_drain_lets_the_exchange_under_way_end_and_then_closes() {
    let (start, started) = tokio::sync::oneshot::channel::<()>();
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let gone = Arc::new(Mutex::new(Some(gone)));
    let handler = move |_: Request<Body>| {
        let gone = gone.lock().take();
        async move {
            gone.unwrap().await.unwrap();
            Response::new(Empty::<Bytes>::new())
        }
    };
    let drain = async { drop(started.await) };
    let (mut io, closed) = served_until(handler, drain);
    io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    start.send(()).unwrap();
    go.send(()).unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(matches!(closed.await.unwrap(), Closed::AfterResponse));
}

#[tokio::test(start_paused = true)]
async fn a_drain_closes_idle_connections_but_answers_what_was_on_its_way() {
    let started = tokio::time::Instant::now();
    let (_io, closed) = served_until(describe, std::future::ready(()));
    assert!(matches!(closed.await.unwrap(), Closed::Drained));
    assert!(started.elapsed() < Duration::from_secs(1));

    let (mut io, closed) = served_until(describe, std::future::ready(()));
    tokio::time::sleep(Duration::from_millis(100)).await;
    io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("connection: close"), "{answer}");
    assert!(matches!(closed.await.unwrap(), Closed::AfterResponse));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_with_the_farewell_that_is_asked_for() {
    let (mut io, server) = tokio::io::duplex(4096);
    let settings =
        Settings { farewell: b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n", ..Settings::default() };
    let drain = std::future::ready(());
    let closed = tokio::spawn(serve(server, &[], settings, describe, refusal, drain));
    // What has crossed it gets no second answer.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut said = String::new();
    io.read_to_string(&mut said).await.unwrap();
    assert_eq!(said.as_bytes(), settings.farewell);
    assert!(matches!(closed.await.unwrap(), Closed::Drained));
}

#[tokio::test(start_paused = true)]
async fn idle_and_slow_clients_are_told_apart() {
    let (_io, closed) = served(describe);
    assert!(matches!(closed.await.unwrap(), Closed::Idle));

    let (mut io, closed) = served(describe);
    let started = tokio::time::Instant::now();
    tokio::time::sleep(Duration::from_secs(100)).await;
    io.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    assert!(matches!(closed.await.unwrap(), Closed::HeadTimeout));
    assert_eq!(started.elapsed().as_secs(), 110);

    // A timer that was set for an earlier deadline does not go off in a later one.
    let (mut io, closed) = served(describe);
    for _ in 0..3 {
        io.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        tokio::time::sleep(Duration::from_secs(9)).await;
        io.write_all(b"st: a\r\n\r\n").await.unwrap();
        read_until(&mut io, "None").await;
        tokio::time::sleep(Duration::from_secs(500)).await;
    }
    drop(io);
    assert!(matches!(closed.await.unwrap(), Closed::ByClient));
}

#[tokio::test]
async fn a_response_is_not_lost_because_its_request_was_too_long() {
    let ignore = |_: Request<Body>| async { Response::new(Full::new(Bytes::from_static(b"no"))) };
    let (client, server) = tokio::io::duplex(1024);
    let serving = serve(server, &[], Settings::default(), ignore, refusal, std::future::pending());
    let request =
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n{}", "x".repeat(300_000));
    let (_, answer) = tokio::join!(serving, converse_both(client, request.as_bytes()));
    assert!(answer.ends_with("no"), "{answer}");
}

#[tokio::test]
async fn a_slow_reader_does_not_make_memory_grow() {
    struct Endless(Arc<AtomicUsize>);
    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.fetch_add(4096, Ordering::Relaxed);
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[7; 4096])))))
        }
    }
    let taken = Arc::new(AtomicUsize::new(0));
    let handler = {
        let taken = Arc::clone(&taken);
        move |_: Request<Body>| {
            let body = Endless(Arc::clone(&taken));
            async { Response::new(body) }
        }
    };
    let (mut client, server) = tokio::io::duplex(1024);
    tokio::spawn(serve(server, &[], Settings::default(), handler, refusal, std::future::pending()));
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read_until(&mut client, "\r\n\r\n").await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(taken.load(Ordering::Relaxed) <= 32 * 1024, "{taken:?}");
}

// === The client's side ===

fn client() -> (Client<DuplexStream>, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(256 * 1024);
    (Client::new(ours, Limits::default()), theirs)
}

fn get() -> Request<Empty<Bytes>> {
    Request::get("/x?y").header("host", "a").body(Empty::new()).unwrap()
}

type Pool = Arc<Mutex<Vec<Client<DuplexStream>>>>;

fn pool() -> (Pool, impl FnOnce(Client<DuplexStream>) + Send + 'static) {
    let pool = Pool::default();
    let done = Arc::clone(&pool);
    (pool, move |client| done.lock().push(client))
}

fn no_interim(response: Response<()>) {
    panic!("an interim response: {response:?}");
}

#[tokio::test]
async fn a_connection_is_given_back_when_its_exchange_is_over() {
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nKeep-Alive: timeout=5, max=9\r\n\r\nabc", Some("abc")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", Some("abc")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n\r\n", Some("")),
        ("HTTP/1.1 204 No Content\r\n\r\n", Some("")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc", None),
        ("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcX", None),
        ("HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n", None),
    ] {
        let (client, mut server) = client();
        let (pool, done) = pool();
        let serving = async {
            assert_eq!(read_until(&mut server, "\r\n\r\n").await, "GET /x?y HTTP/1.1\r\nhost: a\r\n\r\n");
            server.write_all(answer.as_bytes()).await.unwrap();
        };
        let (response, ()) = tokio::join!(send(client, get(), no_interim, done), serving);
        let body = response.unwrap().into_body().collect().await.unwrap().to_bytes();
        let given_back = pool.lock().pop();
        assert_eq!(given_back.is_some(), expected.is_some(), "{answer:?}");
        let Some(mut client) = given_back else { continue };
        assert_eq!(body, expected.unwrap(), "{answer:?}");
        assert_eq!(client.idle_hint(), answer.contains("timeout=5").then(|| Duration::from_secs(5)));
        assert!(client.closed().is_none());
        assert_eq!(client.exchanges(), 1);
        server.write_all(b"H").await.unwrap();
        assert!(client.closed().is_some(), "bytes that nobody asked for");
    }
}

#[tokio::test]
async fn a_response_may_end_with_its_connection() {
    let (client, mut server) = client();
    let (pool, done) = pool();
    let sending = send(client, get(), no_interim, done);
    server.write_all(b"HTTP/1.1 200 OK\r\n\r\nabc").await.unwrap();
    let response = sending.await.unwrap();
    drop(server);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "abc");
    assert!(pool.lock().is_empty());
}

#[tokio::test]
async fn a_response_that_breaks_off_is_an_error() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
    ] {
        let (client, mut server) = client();
        let (pool, done) = pool();
        server.write_all(answer.as_bytes()).await.unwrap();
        let response = send(client, get(), no_interim, done).await.unwrap();
        drop(server);
        assert!(response.into_body().collect().await.is_err(), "{answer:?}");
        assert!(pool.lock().is_empty());
    }
}

#[tokio::test]
async fn a_request_without_an_answer_comes_back_with_what_is_known() {
    let post = || Request::post("/").body(stream(vec![data("abc"), data("def")])).unwrap();

    let (ours, server) = tokio::io::duplex(1024);
    drop(server);
    let client = Client::new(ours, Limits::default());
    let error = send(client, get(), no_interim, drop).await.unwrap_err();
    assert_eq!((error.processed, error.answered), (Processed::No, false));
    assert!(error.body.is_some() && matches!(error.failure, Failure::Write(_)), "{error:?}");

    let (client, mut server) = self::client();
    let (sent, ()) = tokio::join!(send(client, get(), no_interim, drop), async {
        read_until(&mut server, "\r\n\r\n").await;
        drop(server);
    });
    let error = sent.unwrap_err();
    assert_eq!((error.processed, error.answered), (Processed::Maybe, false));
    assert!(error.body.is_some() && matches!(error.failure, Failure::Closed), "{error:?}");

    let (client, mut server) = self::client();
    let (sent, ()) = tokio::join!(send(client, post(), no_interim, drop), async {
        read_until(&mut server, "0\r\n\r\n").await;
        server.write_all(b"HTTP/1.1 2").await.unwrap();
        drop(server);
    });
    let error = sent.unwrap_err();
    assert_eq!((error.processed, error.answered), (Processed::Maybe, true));
    assert!(error.body.is_none());

    let (client, mut server) = self::client();
    server.write_all(b"SSH-2.0-OpenSSH\r\n").await.unwrap();
    let error = send(client, get(), no_interim, drop).await.unwrap_err();
    assert!(error.answered && matches!(error.failure, Failure::Response(_)), "{error:?}");

    let (client, _server) = self::client();
    let broken = Request::post("/").body(stream(vec![data("abc"), broken()])).unwrap();
    let error = send(client, broken, no_interim, drop).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Body(_)), "{error:?}");
}

#[tokio::test]
async fn an_answer_that_comes_early_is_taken_and_the_body_goes_on() {
    let (client, mut server) = client();
    let (pool, done) = pool();
    let (sender, body) = channel();
    let request = Request::post("/").body(body).unwrap();
    server.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    let response = send(client, request, no_interim, done).await.unwrap();
    let mut body = response.into_body();
    read_until(&mut server, "\r\n\r\n").await;
    for word in ["one", "two"] {
        sender.send(data(word)).await.unwrap();
        let echo = async {
            let chunk = read_until(&mut server, &format!("{word}\r\n")).await;
            server.write_all(chunk.as_bytes()).await.unwrap();
        };
        let (frame, ()) = tokio::join!(body.frame(), echo);
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), word);
    }
    drop(sender);
    let end = async {
        read_until(&mut server, "0\r\n\r\n").await;
        server.write_all(b"0\r\n\r\n").await.unwrap();
    };
    let (frame, ()) = tokio::join!(body.frame(), end);
    assert!(frame.is_none());
    assert_eq!(pool.lock().len(), 1);
}

#[tokio::test]
async fn a_response_that_does_not_wait_for_its_request_ends_the_connection() {
    let (client, mut server) = client();
    let (pool, done) = pool();
    let (_sender, body) = channel();
    server.write_all(b"HTTP/1.1 413 Too much\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    let response = send(client, Request::post("/").body(body).unwrap(), no_interim, done).await.unwrap();
    assert_eq!(response.status(), 413);
    assert!(pool.lock().is_empty());
}

#[tokio::test]
async fn interim_responses_are_told_as_they_come() {
    let (client, mut server) = client();
    server
        .write_all(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 299 Fine\r\nContent-Length: 0\r\n\r\n",
        )
        .await
        .unwrap();
    let mut seen = Vec::new();
    let response =
        send(client, get(), |interim| seen.push((interim.status().as_u16(), interim.headers().len())), drop);
    assert_eq!(response.await.unwrap().status().as_u16(), 299);
    assert_eq!(seen, [(100, 0), (103, 1)]);
}

#[tokio::test]
async fn requests_are_framed_by_the_body_they_have() {
    let chunked = stream(vec![data("abc"), data("d")]);
    let full = |bytes: &'static str| Full::new(Bytes::from_static(bytes.as_bytes()));
    let cases = [
        (
            Request::post("/").body(chunked.boxed()).unwrap(),
            "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
        ),
        (Request::post("/").body(boxed(full("abc"))).unwrap(), "content-length: 3\r\n\r\nabc"),
        (Request::post("/").body(boxed(full(""))).unwrap(), "POST / HTTP/1.1\r\n\r\n"),
        (
            Request::post("/").header("content-length", "0").body(boxed(full(""))).unwrap(),
            "content-length: 0\r\n\r\n",
        ),
        (
            Request::post("/").header("content-length", "3").body(stream(vec![data("abc")]).boxed()).unwrap(),
            "content-length: 3\r\n\r\nabc",
        ),
        (
            Request::post("/").version(Version::HTTP_10).body(boxed(full("abc"))).unwrap(),
            "POST / HTTP/1.0\r\ncontent-length: 3\r\n\r\nabc",
        ),
    ];
    for (request, expected) in cases {
        let (client, mut server) = client();
        let (_, written) = tokio::join!(send(client, request, no_interim, drop), async {
            let written = read_until(&mut server, expected).await;
            drop(server);
            written
        });
        assert!(written.starts_with("POST / HTTP/1."), "{written}");
        assert!(!(written.contains("content-length") && written.contains("transfer-encoding")), "{written}");
    }
}

fn boxed(body: Full<Bytes>) -> http_body_util::combinators::BoxBody<Bytes, std::io::Error> {
    body.map_err(|never: Infallible| match never {}).boxed()
}

// === Both ===

/// A proxy: each request goes to `upstream` over the same connection, as long as that is given back.
fn proxied(upstream: DuplexStream) -> (DuplexStream, tokio::task::JoinHandle<Closed>) {
    let pool: Pool = Arc::new(Mutex::new(vec![Client::new(upstream, Limits::default())]));
    served(move |request: Request<Body>| {
        let pool = Arc::clone(&pool);
        async move {
            let client = pool.lock().pop().unwrap();
            let exchange = request.extensions().get::<Exchange>().unwrap().clone();
            let interim = |response: Response<()>| assert!(exchange.interim(&response));
            send(client, request, interim, move |client| pool.lock().push(client)).await.unwrap()
        }
    })
}

#[tokio::test]
async fn messages_pass_a_proxy_byte_for_byte() {
    let exchanges = [
        (
            "GET /a%20b?c HTTP/1.1\r\nHOST: x\r\nX-A:1\r\naccept:  */* \r\n\r\n",
            "HTTP/1.1 200 Wie gehabt\r\nSERVER: y\r\nContent-length: 3\r\nServer: z\r\n\r\nabc",
        ),
        (
            "POST / HTTP/1.1\r\nTRANSFER-ENCODING: chunked\r\nHost: x\r\n\r\n3\r\nabc\r\n0\r\nz: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-Encoding: chunked\r\nTrailer: t\r\n\r\n5\r\nhello\r\n0\r\nt: u\r\n\r\n",
        ),
        ("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\nCONTENT-LENGTH: 99\r\n\r\n"),
        ("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-encoding: chunked\r\n\r\n"),
        (
            "GET http://h/x HTTP/1.1\r\nHost: other\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
        ),
        (
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 103 Hinweis\r\nLink: a\r\n\r\nHTTP/1.1 204 No Content\r\nX-B: \r\n\r\n",
        ),
        (
            "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n\0\r\n\x7f",
            "HTTP/1.1 599 \r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
    ];
    let (upstream, mut origin) = tokio::io::duplex(64 * 1024);
    let (mut client, _closed) = proxied(upstream);
    for (request, response) in exchanges {
        client.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(read_until(&mut origin, request).await, request);
        origin.write_all(response.as_bytes()).await.unwrap();
        assert_eq!(read_until(&mut client, response).await, response);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_goes_on_while_its_client_does_not_read_the_response_yet() {
    const SIZE: usize = 200_000;
    let (upstream, mut origin) = tokio::io::duplex(1024);
    let (mut client, near) = tokio::io::duplex(1024);
    let pool: Pool = Arc::new(Mutex::new(vec![Client::new(upstream, Limits::default())]));
    let kept = Arc::clone(&pool);
    let handler = move |request: Request<Body>| {
        let pool = Arc::clone(&pool);
        async move {
            let client = pool.lock().pop().unwrap();
            send(client, request, no_interim, move |client| pool.lock().push(client)).await.unwrap()
        }
    };
    tokio::spawn(serve(near, &[], Settings::default(), handler, refusal, std::future::pending()));
    // The origin answers at once, and takes the request whatever becomes of its answer.
    tokio::spawn(async move {
        read_until(&mut origin, "\r\n\r\n").await;
        let (mut read, mut write) = tokio::io::split(origin);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n{}", "a".repeat(SIZE));
        let mut body = vec![0; SIZE];
        let (written, got) = tokio::join!(write.write_all(answer.as_bytes()), read.read_exact(&mut body));
        written.unwrap();
        got.unwrap();
        std::future::pending::<()>().await;
    });
    let exchange = async {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&vec![b'q'; SIZE]).await.unwrap();
        read_until(&mut client, "\r\n\r\n").await;
        let mut answer = vec![0; SIZE];
        client.read_exact(&mut answer).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(60), exchange).await.expect("nobody waits for the other");
    assert_eq!(kept.lock().len(), 1, "both messages were whole");
}

#[tokio::test]
async fn a_connection_that_is_cut_within_a_response_does_not_look_ended() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let io = crate::io::Io::tcp(listener.accept().await.unwrap().0);
    let (sender, body) = channel();
    let mut body = Some(body);
    let handler = move |_: Request<Body>| std::future::ready(Response::new(body.take().unwrap()));
    let serving = tokio::spawn(serve(io, &[], Settings::default(), handler, refusal, std::future::pending()));
    // To HTTP/1.0, the end of the connection is the end of the response.
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    sender.send(data("half")).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"half") {
        assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
    }
    serving.abort();
    let rest = client.read_buf(&mut answer).await;
    assert_eq!(rest.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_server_may_not_send_interim_responses_without_end() {
    let (client, mut server) = client();
    tokio::spawn(async move {
        let hints = format!("HTTP/1.1 103 Hints\r\nLink: {}\r\n\r\n", "x".repeat(4000));
        while server.write_all(hints.as_bytes()).await.is_ok() {}
    });
    let mut seen = 0;
    let error = send(client, get(), |_| seen += 1, drop).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Response(HeadError::TooLarge(_))), "{error:?}");
    assert!((1..40).contains(&seen), "{seen}");
}

#[tokio::test]
async fn a_reset_by_the_origin_is_passed_on() {
    let (upstream, mut origin) = tokio::io::duplex(64 * 1024);
    let (mut client, closed) = proxied(upstream);
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read_until(&mut origin, "\r\n\r\n").await;
    origin.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await.unwrap();
    read_until(&mut client, "abc\r\n").await;
    drop(origin);
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "");
    assert!(matches!(closed.await.unwrap(), Closed::Aborted(_)));
}

#[tokio::test]
async fn requests_that_carry_their_original_head_keep_it_over_a_change() {
    let (upstream, mut origin) = tokio::io::duplex(64 * 1024);
    let pool: Pool = Arc::new(Mutex::new(vec![Client::new(upstream, Limits::default())]));
    let (mut client, _closed) = served(move |mut request: Request<Body>| {
        let pool = Arc::clone(&pool);
        async move {
            let names = request.extensions().get::<OriginalHead>().unwrap().names();
            assert_eq!(names.collect::<Vec<_>>(), [&b"HOST"[..], b"X-One", b"x-TWO"]);
            request.headers_mut().remove("x-one");
            request.headers_mut().insert("x-three", HeaderValue::from_static("3"));
            let client = pool.lock().pop().unwrap();
            send(client, request, no_interim, drop).await.unwrap()
        }
    });
    client.write_all(b"GET / HTTP/1.1\r\nHOST: a\r\nX-One: 1\r\nx-TWO: 2\r\n\r\n").await.unwrap();
    let got = read_until(&mut origin, "\r\n\r\n").await;
    assert_eq!(got, "GET / HTTP/1.1\r\nHOST: a\r\nx-TWO: 2\r\nx-three: 3\r\n\r\n");
}

#[tokio::test]
async fn a_request_whose_body_broke_off_is_not_given_back_as_if_it_had_none() {
    let (client, _server) = client();
    let request = Request::post("/").body(stream(vec![broken()])).unwrap();
    let error = send(client, request, no_interim, drop).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Body(_)) && error.body.is_none(), "{error:?}");
}
