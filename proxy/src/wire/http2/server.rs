//! A client's connection.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderValue, Method, Request, Response, header};
use tokio::sync::{Notify, oneshot};

use super::super::{Body, Upgrade};
use super::alive::Alive;
use super::pipe::Pipe;
use super::{Error, Incoming, Limits, MAX_ERROR_RESETS, OnTunnel, Outgoing, Tunnel};
use crate::io::Io;

/// How long a connection that is new when the drain begins, or comes later, has for its first request: who dials a
/// proxy that drains, because it has not heard of it yet, is served once and told then.
const NEWCOMER: Duration = Duration::from_secs(1);

/// What a CONNECT may become.
struct Offered {
    receive: RecvStream,
    taker: oneshot::Sender<Tunnel>,
}

/// Serves requests on `io` until the client is done, or, once `drain` is ready, until those under way are
/// (GOAWAY in two phases, RFC 9113 §6.8). A request that its client resets is dropped.
///
/// # Errors
/// What broke the connection.
pub async fn serve<H, F, B>(
    mut io: Io,
    limits: &Limits,
    handler: H,
    drain: impl Future<Output = ()>,
) -> Result<(), Error>
where
    H: Fn(Request<Body>) -> F,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Outgoing + Send + 'static,
{
    let meter = io.meter();
    let (begun, first) = (tokio::time::Instant::now(), Notify::new());
    let mut connection = h2::server::Builder::new()
        .max_header_list_size(limits.max_header_list)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window())
        .max_send_buffer_size(limits.send_buffer)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        .enable_connect_protocol()
        .handshake::<_, Bytes>(io)
        .await?;
    let mut alive = connection.ping_pong().map(|pings| Alive::new(pings, limits.keep_alive, meter));
    let mut told = pin!(async {
        drain.await;
        // Past that time, at once.
        drop(tokio::time::timeout_at(begun + NEWCOMER, first.notified()).await);
    });
    let (mut leaving, mut heard) = (false, false);
    poll_fn(|cx| {
        if !leaving && told.as_mut().poll(cx).is_ready() {
            leaving = true;
            connection.graceful_shutdown();
        }
        while let Poll::Ready(accepted) = connection.poll_accept(cx) {
            let Some(accepted) = accepted else { return Poll::Ready(Ok(())) };
            let (request, reply) = accepted?;
            if !heard {
                heard = true;
                first.notify_one();
            }
            accept(request, reply, &handler);
        }
        // Last, so that what has come is known to it.
        match &mut alive {
            Some(alive) => alive.poll(cx).map(|()| Err(Error::Silent(limits.keep_alive))),
            None => Poll::Pending,
        }
    })
    .await
}

/// Has a request handled in a task of its own.
fn accept<H, F, B>(request: Request<RecvStream>, mut reply: SendResponse<Bytes>, handler: &H)
where
    H: Fn(Request<Body>) -> F,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Outgoing + Send + 'static,
{
    let (mut head, receive) = request.into_parts();
    if head.method != Method::CONNECT {
        let body = Body::http2(Incoming::of_request(receive, &head.headers));
        // Boxed, both, before they are spawned, which would copy all their states several times.
        tokio::spawn(Box::pin(answer(Box::pin(handler(Request::from_parts(head, body))), reply, None)));
        return;
    }
    if head.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0") {
        // What comes is the tunnel's (RFC 9110 §9.3.6).
        return reply.send_reset(Reason::PROTOCOL_ERROR);
    }
    let (taker, tunnel) = OnTunnel::new();
    head.extensions.insert(tunnel);
    let offered = Some(Offered { receive, taker });
    tokio::spawn(answer(Box::pin(handler(Request::from_parts(head, Body::empty()))), reply, offered));
}

/// Sends the answer, once there is one.
async fn answer<F, B>(mut answered: Pin<Box<F>>, mut reply: SendResponse<Bytes>, offered: Option<Offered>)
where
    F: Future<Output = Response<B>>,
    B: Outgoing,
{
    let response = poll_fn(|cx| {
        // Asked first: reset by the client, or its connection has ended. A request's body that broke off by that is nobody's fault
        // whom it was on its way to.
        if reply.poll_reset(cx).is_ready() {
            return Poll::Ready(None);
        }
        answered.as_mut().poll(cx).map(Some)
    })
    .await;
    drop(answered);
    let Some(response) = response else { return };
    if let Some(mut pipe) = begin(response, &mut reply, offered) {
        // It writes to the stream itself.
        drop(reply);
        poll_fn(|cx| pipe.poll(cx)).await;
    }
}

/// Sends the head; the body's way, if there is one.
fn begin<B>(
    response: Response<B>,
    reply: &mut SendResponse<Bytes>,
    offered: Option<Offered>,
) -> Option<Pipe<B>>
where
    B: Outgoing,
{
    let (mut head, body) = response.into_parts();
    let tunnel = offered.filter(|_| Upgrade::is_agreed(&Method::CONNECT, head.status));
    let ended = tunnel.is_none() && body.is_end_stream();
    if tunnel.is_some() {
        head.headers.remove(header::CONTENT_LENGTH);
    } else if let Some(length) = body.size_hint().exact().filter(|_| !ended) {
        head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    let stream = match reply.send_response(Response::from_parts(head, ()), ended) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "a response could not be sent");
            reply.send_reset(Reason::INTERNAL_ERROR);
            return None;
        }
    };
    match tunnel {
        // Nobody takes it who has gone meanwhile; then it is reset.
        Some(Offered { receive, taker }) => drop(taker.send(Tunnel::new(stream, receive, ()))),
        None if ended => {}
        None => return Some(Pipe::new(body, stream)),
    }
    None
}
