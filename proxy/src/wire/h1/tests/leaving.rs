//! Clients that end their side, to wait or to go.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use tokio::io::AsyncWriteExt;

use super::super::{Body, Closed, Exchange};
use super::exchanges::{channel, data};
use super::{converse, served, served_until};

/// Sends a request, ends its side, and is never answered; how long that lasts.
async fn given_up(drain: impl Future<Output = ()> + Send + 'static) -> Duration {
    let begun = tokio::time::Instant::now();
    let (mut io, closed) = served_until(|_| std::future::pending::<Response<Empty<Bytes>>>(), drain);
    io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    io.shutdown().await.unwrap();
    let closed = closed.await.unwrap();
    assert!(
        matches!(&closed, Closed::Io(error) if error.kind() == std::io::ErrorKind::ConnectionAborted),
        "{closed}"
    );
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_ended_its_side_is_not_taken_to_wait_for_ever() {
    assert_eq!(given_up(std::future::pending()).await.as_secs(), 10);
    assert_eq!(given_up(std::future::ready(())).await.as_secs(), 2);
    assert_eq!(given_up(tokio::time::sleep(Duration::from_secs(5))).await.as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_ended_its_side_gets_its_answer_as_long_as_something_comes() {
    let handler = async |_: Request<Body>| {
        tokio::time::sleep(Duration::from_secs(9)).await;
        let (sender, body) = channel();
        tokio::spawn(async move {
            for piece in ["a", "b", "c"] {
                tokio::time::sleep(Duration::from_secs(9)).await;
                sender.send(data(piece)).await.unwrap();
            }
        });
        Response::new(body)
    };
    let (io, closed) = served(handler);
    let answer = converse(io, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(answer.ends_with("1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n"), "{answer}");
    assert!(matches!(closed.await.unwrap(), Closed::ByClient));
}

#[tokio::test(start_paused = true)]
async fn interim_responses_are_something_that_comes() {
    let handler = |request: Request<Body>| async move {
        let exchange = request.extensions().get::<Exchange>().unwrap().clone();
        let mut processing = Response::new(());
        *processing.status_mut() = StatusCode::PROCESSING;
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            assert!(exchange.interim(&processing));
        }
        tokio::time::sleep(Duration::from_secs(9)).await;
        Response::new(Empty::<Bytes>::new())
    };
    let (io, closed) = served(handler);
    let answer = converse(io, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(answer.matches("HTTP/1.1 102 ").count(), 3, "{answer}");
    assert!(answer.contains("HTTP/1.1 200 "), "{answer}");
    assert!(matches!(closed.await.unwrap(), Closed::ByClient));
}
