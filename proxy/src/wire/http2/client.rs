//! A connection to a server.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use h2::ext::Protocol;
use http::{Method, Request, Response, header};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::super::{Body, Processed, Upgrade};
use super::alive::Alive;
use super::heard::HeardOut;
use super::pipe::Pipe;
use super::{Error, Incoming, Limits, MAX_ERROR_RESETS, OnTunnel, Tunnel};
use crate::io::Io;
use crate::telemetry::trace;

/// A connection that requests can be sent on, shared by cloning.
#[derive(Clone, Debug)]
pub struct Sender {
    requests: SendRequest<Bytes>,
    server: Arc<Server>,
    /// What we allow.
    shared_by: usize,
}

/// What its connection's task knows of the server.
#[derive(Debug)]
struct Server {
    /// What it last allowed.
    max_streams: AtomicUsize,
    /// It has answered a request on this connection.
    answered: AtomicBool,
    /// Among so many more requests is looked for the first that says of which trace it is.
    unnamed: AtomicUsize,
    /// Something may have come from it.
    heard: Notify,
}

/// How long a server may take to say, first of all, whether it allows extended CONNECT.
const SETTINGS: Duration = Duration::from_secs(1);

/// In how many requests of a connection that is looked for: where none is traced, none that follows should pay for it.
const UNNAMED: usize = 16;

/// A request that got no response.
#[derive(Debug)]
pub struct SendError {
    pub source: Error,
    pub processed: Processed,
    /// Its connection, which had served another before, broke before anything of an answer came.
    pub stale: bool,
    /// It provably was not processed, since its connection, which had served another before, was at its end.
    pub ended: bool,
    /// The request, when nothing of it has been taken.
    pub request: Option<Box<Request<Body>>>,
}

/// Opens HTTP/2 with prior knowledge on `io`; the connection's own task is spawned on the current runtime. With `ping`
/// the peer is asked every [`Limits::keep_alive`] whether it is still there.
///
/// # Errors
/// When the connection breaks.
pub async fn connect(mut io: Io, limits: &Limits, ping: bool) -> Result<Sender, Error> {
    let meter = io.meter();
    let shared_by = usize::try_from(limits.shared_by).unwrap_or(usize::MAX);
    let (requests, mut connection) = h2::client::Builder::new()
        // Until the server says how many it takes.
        .initial_max_send_streams(shared_by)
        .max_header_list_size(limits.max_header_list)
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window())
        .max_send_buffer_size(limits.send_buffer)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        .enable_push(false)
        .handshake::<_, Bytes>(HeardOut::new(io))
        .await?;
    let pings = if ping { connection.ping_pong() } else { None };
    let (mut alive, keep_alive) =
        (pings.map(|pings| Alive::new(pings, limits.keep_alive, meter)), limits.keep_alive);
    let max_streams = AtomicUsize::new(connection.max_concurrent_send_streams());
    let (answered, unnamed, heard) = (AtomicBool::new(false), AtomicUsize::new(UNNAMED), Notify::new());
    let server = Arc::new(Server { max_streams, answered, unnamed, heard });
    let told = Arc::clone(&server);
    tokio::spawn(async move {
        let ended = poll_fn(|cx| {
            let ended = Pin::new(&mut connection).poll(cx);
            // Polled for every request at least, so that it is known before it matters.
            told.max_streams.store(connection.max_concurrent_send_streams(), Ordering::Relaxed);
            told.heard.notify_waiters();
            match (ended, &mut alive) {
                (Poll::Ready(ended), _) => Poll::Ready(ended.map_err(Error::from)),
                (Poll::Pending, Some(alive)) => alive.poll(cx).map(|()| Err(Error::Silent(keep_alive))),
                (Poll::Pending, None) => Poll::Pending,
            }
        });
        if let Err(error) = ended.await {
            tracing::debug!(%error, "HTTP/2 connection to an endpoint ended");
        }
    });
    Ok(Sender { requests, server, shared_by })
}

// === impl Sender ===

impl Sender {
    /// Whether new requests can go on this connection: it is not over, and no GOAWAY came.
    pub fn is_open(&mut self) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        matches!(self.requests.poll_ready(&mut nobody), Poll::Ready(Ok(())))
    }

    /// How many streams may share the connection: as many as the server takes at a time, and as there is window for, so
    /// that nobody waits because of somebody else who does not read.
    pub fn max_streams(&self) -> usize {
        self.server.max_streams.load(Ordering::Relaxed).min(self.shared_by)
    }

    /// Whether it has served another request.
    pub fn is_reused(&self) -> bool {
        self.server.answered.load(Ordering::Relaxed)
    }

    /// Sends a request and returns the head of its response; the bodies stream on, and `done` is dropped once both have ended, or that of
    /// the response is no longer wanted; with the tunnel, where the stream becomes one. Dropped before, it resets the stream, and so does a response's body.
    ///
    /// # Errors
    /// When no response came; it tells whether the request may be sent again.
    pub async fn send<D>(&mut self, request: Request<Body>, done: D) -> Result<Response<Body>, SendError>
    where
        D: Send + Sync + 'static,
    {
        let reused = self.is_reused();
        let unsent = |source: h2::Error, request| SendError {
            source: source.into(),
            processed: Processed::No,
            stale: false,
            ended: reused,
            request,
        };
        if let Err(source) = poll_fn(|cx| self.requests.poll_ready(cx)).await {
            return Err(unsent(source, Some(Box::new(request))));
        }
        let connects = *request.method() == Method::CONNECT;
        if connects
            && request.extensions().get::<Protocol>().is_some()
            && !self.takes_extended_connect().await
        {
            let request = Some(Box::new(request));
            let (source, processed) = (Error::NoExtendedConnect, Processed::No);
            return Err(SendError { source, processed, stale: false, ended: false, request });
        }
        let ended = !connects && http_body::Body::is_end_stream(request.body());
        let (mut head, body) = request.into_parts();
        let unnamed = self.server.unnamed.load(Ordering::Relaxed);
        if unnamed > 0 {
            let left = if trace::name_once(&mut head.headers) { 0 } else { unnamed - 1 };
            self.server.unnamed.store(left, Ordering::Relaxed);
        }
        let sent = self.requests.send_request(Request::from_parts(head, ()), ended);
        let (mut answered, stream) = sent.map_err(|source| unsent(source, None))?;
        // Until the server takes another stream, nothing is sent. What ends the connection to new requests meanwhile, a GOAWAY that is
        // graceful, need not end this one (RFC 9113 §6.8): its answer tells.
        let mut woken = false;
        let takes_more = poll_fn(|cx| {
            let ready = self.requests.poll_ready(cx);
            woken |= ready.is_pending();
            ready
        });
        drop(takes_more.await);
        let (mut upload, tunnel) = match (connects, ended) {
            (true, _) => (None, Some(stream)),
            (false, true) => (None, None),
            (false, false) => (Some(Pipe::new(body, stream)), None),
        };
        let mut interim = false;
        let response = poll_fn(|cx| {
            if upload.as_mut().is_some_and(|upload| upload.poll(cx).is_ready()) {
                upload = None;
            }
            while woken && matches!(answered.poll_informational(cx), Poll::Ready(Some(Ok(_)))) {
                interim = true;
            }
            woken = true;
            Pin::new(&mut answered).poll(cx)
        });
        let response = response.await.map_err(|source| {
            let processed = if unprocessed(&source) { Processed::No } else { Processed::Maybe };
            let stale = reused && !interim && source.is_io();
            let ended = reused && processed == Processed::No && source.is_go_away();
            SendError { source: source.into(), processed, stale, ended, request: None }
        })?;
        if !reused {
            self.server.answered.store(true, Ordering::Relaxed);
        }
        // That of the request may end after that of the response (RFC 9113 §8.1).
        let (mut done, both) =
            if upload.is_some() { (None, Some(Arc::new(done))) } else { (Some(done), None) };
        let upload = upload.map(|mut upload| {
            let both = both.clone();
            AbortOnDropHandle::new(tokio::spawn(async move {
                poll_fn(|cx| upload.poll(cx)).await;
                drop(both);
            }))
        });
        let (mut head, receive) = response.into_parts();
        let body = match tunnel.filter(|_| Upgrade::is_agreed(&Method::CONNECT, head.status)) {
            Some(stream) => {
                // It means nothing there (RFC 9110 §9.3.6).
                head.headers.remove(header::CONTENT_LENGTH);
                let (taker, tunnel) = OnTunnel::new();
                drop(taker.send(Tunnel::new(stream, receive, done.take())));
                head.extensions.insert(tunnel);
                Body::empty()
            }
            None => Body::http2(Incoming::of_response(receive, &head.headers)),
        };
        let over = move || {
            drop(upload.map(AbortOnDropHandle::detach));
            drop((done, both));
        };
        Ok(Response::from_parts(head, body.then(over)))
    }

    /// Whether the server allows it (RFC 8441 §3), which it says when the connection begins.
    async fn takes_extended_connect(&self) -> bool {
        let allowed = async {
            loop {
                let heard = self.server.heard.notified();
                if self.requests.is_extended_connect_protocol_enabled() {
                    return;
                }
                heard.await;
            }
        };
        tokio::time::timeout(SETTINGS, allowed).await.is_ok()
    }
}

/// Whether the server said that it did not look at the request: REFUSED_STREAM (RFC 9113 §8.7), or a GOAWAY
/// whose last stream lies before it.
fn unprocessed(error: &h2::Error) -> bool {
    error.is_remote()
        && (error.is_go_away() || (error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM)))
}
