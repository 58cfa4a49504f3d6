mod arrived;
mod hop;
mod limits;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::drain;
use crate::io::Io;
use crate::wire::{Body, BodyError};

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// A body that nothing breaks off.
struct Frames<B>(B);

impl<B: http_body::Body<Data = bytes::Bytes, Error = BodyError> + Unpin> http_body::Body for Frames<B> {
    type Data = bytes::Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, BodyError>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }
}

impl<B: http_body::Body<Data = bytes::Bytes, Error = BodyError> + Unpin> Outgoing for Frames<B> {
    fn poll_over(&mut self, _cx: &mut Context<'_>) -> Poll<BodyError> {
        Poll::Pending
    }
}

/// A client that allows everything and reads nothing.
#[tokio::test]
async fn what_waits_to_be_written_is_bounded_by_us_and_not_by_the_clients_windows() {
    const STREAMS: usize = 100;
    let (client, server) = pair().await;
    let (_signal, drain) = drain::channel();
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let answer = move |_| {
        let count = Arc::clone(&count);
        async move {
            let frames = std::iter::repeat_with(move || {
                count.fetch_add(16 * 1024, Ordering::Relaxed);
                Ok::<_, BodyError>(http_body::Frame::data(bytes::Bytes::from_static(&[0; 16 * 1024])))
            });
            Response::new(Frames(http_body_util::StreamBody::new(tokio_stream::iter(frames))))
        }
    };
    tokio::spawn(async move { serve(Io::tcp(server), &Limits::default(), answer, drain.draining()).await });
    let (mut requests, connection) = h2::client::Builder::new()
        .initial_window_size(i32::MAX as u32)
        .initial_connection_window_size(i32::MAX as u32)
        .handshake::<_, bytes::Bytes>(client)
        .await
        .unwrap();
    let mut answers = Vec::new();
    for _ in 0..STREAMS {
        let request = Request::get("http://orders/").version(http::Version::HTTP_2).body(()).unwrap();
        answers.push(requests.send_request(request, true).unwrap());
    }
    // Polled until the requests are written and something comes; never again.
    let mut connection = std::pin::pin!(connection);
    while taken.load(Ordering::Relaxed) == 0 {
        assert!(futures_util::poll!(connection.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    let (mut last, mut same) = (0, 0);
    while same < 1000 {
        tokio::task::yield_now().await;
        let now = taken.load(Ordering::Relaxed);
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    // What the kernel holds on loopback comes on top.
    assert!(last < STREAMS * 100 * 1024 + (8 << 20), "{last} bytes wait");
}

#[tokio::test]
async fn a_connection_that_comes_during_the_drain_is_served_its_first_request() {
    let (client, server) = pair().await;
    let (signal, drain) = drain::channel();
    signal.start();
    let limits = Limits { max_concurrent_streams: 77, ..Limits::default() };
    let serving = tokio::spawn(async move {
        let answer = |_| async { Response::new(Body::empty()) };
        serve(Io::tcp(server), &limits, answer, drain.draining()).await
    });
    let (sender, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    // The server's settings have come, and with them whatever it said at first.
    while sender.current_max_send_streams() != 77 {
        tokio::task::yield_now().await;
    }
    let request = Request::get("http://orders/").version(http::Version::HTTP_2).body(()).unwrap();
    let (response, _) = sender.ready().await.unwrap().send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().status(), 200);
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_that_nobody_can_send_on_any_more_is_closed() {
    let (client, server) = pair().await;
    let serving = tokio::spawn(async move {
        let mut connection = h2::server::handshake(server).await.unwrap();
        // It may be closed before it has read what we said.
        !matches!(connection.accept().await, Some(Ok(_)))
    });
    let mut sender = connect(Io::tcp(client), &Limits::default(), true).await.unwrap();
    assert!(sender.is_open());
    drop(sender);
    assert!(serving.await.unwrap());
}
