//! Both ends at once: what one side does to a stream, and what the other sees of it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::poll;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, Version};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::*;
use super::pair;
use crate::drain;
use crate::io::Io;
use crate::wire::{self, Body, BodyError, Processed, Upgrade};

const PATIENCE: Duration = Duration::from_secs(10);

/// A proxy of nothing else: a client of it, and the server behind it.
async fn hop() -> (h2::client::SendRequest<Bytes>, h2::server::Connection<TcpStream, Bytes>) {
    let (client, ours) = pair().await;
    let (upstream, server) = pair().await;
    let sender = connect(Io::tcp(upstream), &Limits::default(), true).await.unwrap();
    let pass = move |request: Request<Body>| {
        let mut sender = sender.clone();
        async move {
            let (method, client) = (request.method().clone(), Upgrade::of_request(&request));
            let mut response = sender.send(request, ()).await.unwrap();
            if Upgrade::is_agreed(&method, response.status()) {
                tokio::spawn(wire::tunnel(client, Upgrade::of_response(&mut response)));
            }
            response
        }
    };
    tokio::spawn(async move {
        let (_signal, drain) = drain::channel();
        serve(Io::tcp(ours), &Limits::default(), pass, drain.draining()).await
    });
    let (requests, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    let mut server = h2::server::Builder::new().enable_connect_protocol().handshake(server).await.unwrap();
    while !requests.is_extended_connect_protocol_enabled() {
        // Both sides' settings are on their way.
        assert!(poll!(poll_fn(|cx| server.poll_accept(cx))).is_pending());
        tokio::task::yield_now().await;
    }
    (requests, server)
}

fn get() -> Request<()> {
    Request::get("http://orders/").version(Version::HTTP_2).body(()).unwrap()
}

/// The next request that comes; its connection is served on.
async fn accepted(
    mut server: h2::server::Connection<TcpStream, Bytes>,
) -> (Request<RecvStream>, SendResponse<Bytes>) {
    let accepted = server.accept().await.unwrap().unwrap();
    tokio::spawn(async move { while server.accept().await.is_some() {} });
    accepted
}

/// A response through a hop of which there is more to come, at its server and at its client.
async fn unfinished() -> (SendStream<Bytes>, RecvStream) {
    let (mut requests, server) = hop().await;
    let (response, _) = requests.send_request(get(), true).unwrap();
    let (_, mut reply) = accepted(server).await;
    let mut stream = reply.send_response(Response::new(()), false).unwrap();
    stream.send_data(Bytes::from_static(b"part"), false).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "part");
    (stream, body)
}

#[tokio::test]
async fn a_response_that_is_reset_breaks_off_whatever_the_reason() {
    for (said, seen) in [
        (Reason::CANCEL, Reason::CANCEL),
        (Reason::ENHANCE_YOUR_CALM, Reason::ENHANCE_YOUR_CALM),
        // The rest is missing, so that it cannot end without an error; and the request was looked at.
        (Reason::NO_ERROR, Reason::INTERNAL_ERROR),
        (Reason::REFUSED_STREAM, Reason::INTERNAL_ERROR),
    ] {
        let (mut stream, mut body) = unfinished().await;
        stream.send_reset(said);
        let error = body.data().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(seen), "{said:?}");
        assert!(error.is_remote());
    }
}

#[tokio::test]
async fn what_breaks_a_connection_is_no_reason_to_the_other_side() {
    let (mut requests, mut server) = hop().await;
    let (response, _) = requests.send_request(get(), true).unwrap();
    let (_, mut reply) = server.accept().await.unwrap().unwrap();
    let _stream = reply.send_response(Response::new(()), false).unwrap();
    let closing = poll_fn(|cx| server.poll_closed(cx));
    tokio::pin!(closing);
    let mut body = tokio::select! {
        response = response => response.unwrap().into_body(),
        closed = closing => panic!("{closed:?}"),
    };
    server.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
    tokio::spawn(async move { while server.accept().await.is_some() {} });
    assert_eq!(body.data().await.unwrap().unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
}

#[tokio::test]
async fn trailers_pass_both_ways_and_a_body_may_be_nothing_else() {
    let (mut requests, server) = hop().await;
    let (response, mut upload) = requests.send_request(get(), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("checksum", "1".parse().unwrap());
    upload.send_trailers(trailers.clone()).unwrap();
    let (request, mut reply) = accepted(server).await;
    let mut received = request.into_body();
    assert!(received.data().await.is_none());
    assert_eq!(received.trailers().await.unwrap().unwrap(), trailers);
    let mut stream = reply.send_response(Response::new(()), false).unwrap();
    stream.send_trailers(trailers.clone()).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert!(body.data().await.is_none());
    assert_eq!(body.trailers().await.unwrap().unwrap(), trailers);
}

#[tokio::test]
async fn extended_connect_keeps_its_protocol_and_makes_a_tunnel_whose_reset_is_no_end() {
    let (mut requests, server) = hop().await;
    let request = Request::connect("http://orders/chat").version(Version::HTTP_2).body(()).unwrap();
    let (mut request, protocol) = (request, h2::ext::Protocol::from_static("websocket"));
    request.extensions_mut().insert(protocol.clone());
    let (response, mut upload) = requests.send_request(request, false).unwrap();
    let (request, mut reply) = accepted(server).await;
    assert_eq!(request.uri().path(), "/chat");
    assert_eq!(request.extensions().get(), Some(&protocol));
    let mut received = request.into_body();
    let mut stream = reply.send_response(Response::new(()), false).unwrap();
    upload.send_data(Bytes::from_static(b"ping"), false).unwrap();
    assert_eq!(received.data().await.unwrap().unwrap(), "ping");
    stream.send_data(Bytes::from_static(b"pong"), false).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "pong");
    stream.send_reset(Reason::NO_ERROR);
    assert!(body.data().await.unwrap().is_err());
}

/// A request whose body never ends, and its answer's body, which does not end either; the upload's server.
async fn uploading() -> (SendStream<Bytes>, Response<Body>, RecvStream, SendStream<Bytes>) {
    let (client, ours) = pair().await;
    let (upstream, server) = pair().await;
    let mut sender = connect(Io::tcp(upstream), &Limits::default(), true).await.unwrap();
    let (handed, taken) = tokio::sync::oneshot::channel();
    let handed = parking_lot::Mutex::new(Some(handed));
    tokio::spawn(async move {
        let (_signal, drain) = drain::channel();
        let take = move |request: Request<Body>| {
            drop(handed.lock().take().unwrap().send(request));
            std::future::pending::<Response<Body>>()
        };
        serve(Io::tcp(ours), &Limits::default(), take, drain.draining()).await
    });
    let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    let (answered, upload) = requests.send_request(get(), false).unwrap();
    // Dropped, it would end the upload.
    tokio::spawn(answered);
    let server = h2::server::handshake(server).await.unwrap();
    let request = taken.await.unwrap();
    let sent = tokio::spawn(async move { sender.send(request, ()).await.unwrap() });
    let (request, mut reply) = accepted(server).await;
    let stream = reply.send_response(Response::new(()), false).unwrap();
    (upload, sent.await.unwrap(), request.into_body(), stream)
}

#[tokio::test]
async fn an_upload_ends_with_its_response_when_that_is_given_up() {
    let (_upload, response, mut received, _stream) = uploading().await;
    drop(response);
    let ended = tokio::time::timeout(PATIENCE, received.data()).await.expect("the upload goes on");
    assert_eq!(ended.unwrap().unwrap_err().reason(), Some(Reason::CANCEL));
}

#[tokio::test]
async fn an_upload_goes_on_when_its_response_has_ended_before() {
    let (mut upload, response, mut received, mut stream) = uploading().await;
    stream.send_data(Bytes::new(), true).unwrap();
    let mut body = response.into_body();
    assert!(body.frame().await.is_none_or(|frame| frame.unwrap().is_data()));
    assert!(body.frame().await.is_none());
    drop(body);
    upload.send_data(Bytes::from_static(b"more"), true).unwrap();
    assert_eq!(received.data().await.unwrap().unwrap(), "more");
}

/// A body without an end, until it is told to break off.
struct Endless(tokio::sync::oneshot::Receiver<()>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(&[0; 1024])))))
    }
}

impl Outgoing for Endless {
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        Pin::new(&mut self.0).poll(cx).map(|_| BodyError::new("it took too long"))
    }
}

#[tokio::test]
async fn a_response_is_broken_off_in_time_though_its_client_reads_nothing() {
    let (client, ours) = pair().await;
    let (over, told) = tokio::sync::oneshot::channel();
    let told = parking_lot::Mutex::new(Some(told));
    tokio::spawn(async move {
        let (_signal, drain) = drain::channel();
        let answer = move |_| std::future::ready(Response::new(Endless(told.lock().take().unwrap())));
        serve(Io::tcp(ours), &Limits::default(), answer, drain.draining()).await
    });
    let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    let (response, _) = requests.send_request(get(), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    // All that the windows allow, and no word that any of it was taken.
    let mut received = 0;
    while received < 65_535 {
        received += body.data().await.unwrap().unwrap().len();
    }
    over.send(()).unwrap();
    let ended = tokio::time::timeout(PATIENCE, body.data()).await.expect("it goes on waiting for room");
    assert_eq!(ended.unwrap().unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
}

// --- a server by hand ---------------------------------------------------------------------------------------------------

const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;

/// The kind and the stream of the next frame of one of these kinds.
async fn frame(stream: &mut TcpStream, wanted: &[u8]) -> (u8, u32) {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.unwrap();
        if wanted.contains(&head[3]) {
            return (head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
        }
    }
}

/// `:status: 200`, and nothing more.
fn ok(stream: u32) -> Vec<u8> {
    let mut frame = vec![0, 0, 1, HEADERS, 0x5];
    frame.extend(stream.to_be_bytes());
    frame.push(0x88);
    frame
}

#[tokio::test]
async fn a_goaway_that_is_graceful_fails_no_request_that_waits_for_its_stream() {
    let (client, mut server) = pair().await;
    let mut sender = connect(Io::tcp(client), &Limits::default(), false).await.unwrap();
    server.read_exact(&mut [0; 24]).await.unwrap();
    // SETTINGS_MAX_CONCURRENT_STREAMS: 1.
    server.write_all(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1]).await.unwrap();
    while sender.max_streams() != 1 {
        tokio::task::yield_now().await;
    }
    let request = || get().map(|()| Body::empty());
    let mut other = sender.clone();
    let first = tokio::spawn(async move { other.send(request(), ()).await });
    assert_eq!(frame(&mut server, &[HEADERS]).await, (HEADERS, 1));
    let mut other = sender.clone();
    let mut second = Box::pin(other.send(request(), ()));
    assert!(poll!(second.as_mut()).is_pending());
    // All streams that were begun will be served.
    server.write_all(&[0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]).await.unwrap();
    while sender.is_open() {
        tokio::task::yield_now().await;
    }
    assert!(poll!(second.as_mut()).is_pending());
    let refused = sender.send(request(), ()).await.unwrap_err();
    assert!(refused.processed == Processed::No && refused.request.is_some(), "{refused:?}");
    server.write_all(&ok(1)).await.unwrap();
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    assert_eq!(frame(&mut server, &[HEADERS]).await, (HEADERS, 3));
    server.write_all(&ok(3)).await.unwrap();
    assert_eq!(second.await.unwrap().status(), 200);
}
