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

use super::super::incoming::LEFTOVER;
use super::super::*;
use super::pair;
use crate::drain;
use crate::io::Io;
use crate::wire::{self, Body, BodyError, Processed, Upgrade};

const PATIENCE: Duration = Duration::from_secs(10);

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let becomes_so = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, becomes_so).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

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
                tokio::spawn(wire::tunnel(client, Upgrade::of_response(&mut response), Default::default()));
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

#[tokio::test]
async fn a_streams_place_is_free_only_when_both_of_its_halves_have_ended() {
    let (client, server) = pair().await;
    let mut sender = connect(Io::tcp(client), &Limits::default(), true).await.unwrap();
    // What the request's body comes from.
    let (upload, body) = upload().await;
    let place = std::sync::Arc::new(());
    let sent = tokio::spawn({
        let place = std::sync::Arc::clone(&place);
        async move { sender.send(get().map(|()| body), place).await }
    });
    let mut server = h2::server::handshake(server).await.unwrap();
    let (request, mut reply) = server.accept().await.unwrap().unwrap();
    tokio::spawn(async move { while server.accept().await.is_some() {} });
    reply.send_response(Response::new(()), true).unwrap();
    let response = sent.await.unwrap().unwrap();
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    assert_eq!(std::sync::Arc::strong_count(&place), 2, "the request's body goes on");
    drop(upload);
    assert_eq!(request.into_body().data().await.unwrap().unwrap_err().reason(), Some(Reason::CANCEL));
    until("the place is free", || std::sync::Arc::strong_count(&place) == 1).await;
}

#[tokio::test]
async fn an_answer_that_was_complete_stays_so_when_the_rest_of_the_request_is_refused() {
    let (mut requests, server) = hop().await;
    let (response, upload) = requests.send_request(get(), false).unwrap();
    let (request, mut reply) = accepted(server).await;
    let mut stream = reply.send_response(Response::new(()), false).unwrap();
    stream.send_data(Bytes::from_static(b"whole"), true).unwrap();
    // All that h2 has of it: RST_STREAM with NO_ERROR follows (RFC 9113 §8.1).
    drop((request, reply, stream));
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "whole");
    assert!(body.data().await.is_none());
    drop(upload);
}

// On a real clock: a paused one goes on while bytes are on their way.
#[tokio::test]
async fn the_client_of_an_early_answer_may_go_on_for_a_while_and_a_little() {
    let (client, ours) = pair().await;
    tokio::spawn(async move {
        let answer = |_| std::future::ready(Response::new(Body::full(Bytes::from_static(b"no"))));
        serve(Io::tcp(ours), &Limits::default(), answer, std::future::pending()).await
    });
    let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    let (response, mut upload) = requests.send_request(get(), false).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "no");
    assert!(body.data().await.is_none());
    let begun = std::time::Instant::now();
    let mut taken = 0;
    let reset = loop {
        upload.reserve_capacity(16 * 1024);
        let told = poll_fn(|cx| match upload.poll_reset(cx) {
            Poll::Ready(reset) => Poll::Ready(Some(reset.unwrap())),
            Poll::Pending => upload.poll_capacity(cx).map(|_| None),
        });
        match told.await {
            Some(reset) => break reset,
            None => {
                let room = upload.capacity();
                upload.send_data(Bytes::from(vec![0; room]), false).unwrap();
                taken += room;
            }
        }
    };
    assert_eq!(reset, Reason::NO_ERROR);
    let lasted = begun.elapsed();
    assert!(lasted >= Duration::from_millis(1900) && lasted < PATIENCE, "{lasted:?}");
    let window = Limits::default().stream_window as usize;
    assert!((window + LEFTOVER..=window + 128 * 1024).contains(&taken), "{taken} bytes");
}

/// A request's body of which nothing comes, until what it comes from is dropped: then it breaks off.
async fn upload() -> (SendStream<Bytes>, Body) {
    let (client, ours) = pair().await;
    let (handed, taken) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let hand = move |request: Request<Body>| {
            let handed = handed.clone();
            async move {
                handed.send(request.into_body()).await.unwrap();
                std::future::pending::<Response<Body>>().await
            }
        };
        serve(Io::tcp(ours), &Limits::default(), hand, std::future::pending()).await
    });
    let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    let (_, upload) = requests.send_request(get(), false).unwrap();
    let mut taken = taken;
    (upload, taken.recv().await.unwrap())
}

/// What becomes of a request when its server says `last`.
async fn refused_by(
    body: Body,
    last: impl FnOnce(&mut h2::server::Connection<TcpStream, Bytes>, SendResponse<Bytes>),
) -> SendError {
    let (client, server) = pair().await;
    let mut sender = connect(Io::tcp(client), &Limits::default(), true).await.unwrap();
    let sent = tokio::spawn(async move { sender.send(get().map(|()| body), ()).await });
    let mut server = h2::server::handshake(server).await.unwrap();
    let (_request, reply) = server.accept().await.unwrap().unwrap();
    last(&mut server, reply);
    while server.accept().await.is_some() {}
    drop(server);
    sent.await.unwrap().unwrap_err()
}

#[tokio::test]
async fn only_what_a_server_says_that_it_refuses_is_unprocessed() {
    for (reason, expected) in [
        (Reason::REFUSED_STREAM, Processed::No),
        (Reason::CANCEL, Processed::Maybe),
        (Reason::NO_ERROR, Processed::Maybe),
        (Reason::ENHANCE_YOUR_CALM, Processed::Maybe),
    ] {
        for body in [Body::empty(), Body::full(Bytes::from_static(b"x"))] {
            let error = refused_by(body, |_, mut reply| reply.send_reset(reason)).await;
            assert_eq!(error.processed, expected, "{reason:?}: {error:?}");
            assert!(!error.source.is_of_request());
        }
    }
    // It was begun, as the last stream of this GOAWAY says.
    let error = refused_by(Body::empty(), |server, reply| {
        server.abrupt_shutdown(Reason::INTERNAL_ERROR);
        drop(reply);
    })
    .await;
    assert_eq!(error.processed, Processed::Maybe, "{error:?}");
}

#[tokio::test]
async fn a_request_that_cannot_be_sent_to_anybody_is_its_own_fault() {
    let (client, _server) = pair().await;
    let mut sender = connect(Io::tcp(client), &Limits::default(), true).await.unwrap();
    let request = Request::get("/").version(Version::HTTP_2).body(Body::empty()).unwrap();
    let error = sender.send(request, ()).await.unwrap_err();
    assert!(error.source.is_of_request() && error.processed == Processed::No, "{error:?}");
}

#[tokio::test]
async fn extended_connect_is_sent_only_to_who_allows_it() {
    for allowed in [true, false] {
        let (client, server) = pair().await;
        let mut sender = connect(Io::tcp(client), &Limits::default(), false).await.unwrap();
        let mut server = tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            if allowed {
                builder.enable_connect_protocol();
            }
            let mut server = builder.handshake::<_, Bytes>(server).await.unwrap();
            server.accept().await.map(Result::unwrap)
        });
        let request =
            Request::connect("http://orders/chat").version(Version::HTTP_2).body(Body::empty()).unwrap();
        let mut request = request;
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let mut sent = Box::pin(sender.send(request, ()));
        tokio::select! {
            error = &mut sent => {
                let error = error.unwrap_err();
                assert!(!allowed && error.source.is_of_request() && error.request.is_some(), "{error:?}");
            }
            came = &mut server => assert!(allowed && came.unwrap().is_some()),
        }
    }
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
    until("one stream is allowed", || sender.max_streams() == 1).await;
    let request = || get().map(|()| Body::empty());
    let mut other = sender.clone();
    let first = tokio::spawn(async move { other.send(request(), ()).await });
    assert_eq!(frame(&mut server, &[HEADERS]).await, (HEADERS, 1));
    let mut other = sender.clone();
    let mut second = Box::pin(other.send(request(), ()));
    assert!(poll!(second.as_mut()).is_pending());
    // All streams that were begun will be served.
    server.write_all(&[0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]).await.unwrap();
    until("the sender is closed", || !sender.is_open()).await;
    assert!(poll!(second.as_mut()).is_pending());
    let refused = sender.send(request(), ()).await.unwrap_err();
    assert!(refused.processed == Processed::No && refused.request.is_some(), "{refused:?}");
    server.write_all(&ok(1)).await.unwrap();
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    assert_eq!(frame(&mut server, &[HEADERS]).await, (HEADERS, 3));
    server.write_all(&ok(3)).await.unwrap();
    assert_eq!(second.await.unwrap().status(), 200);
}
