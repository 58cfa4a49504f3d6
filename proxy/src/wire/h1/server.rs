//! A connection on which requests come: one after the other, each answered before the next is looked at.
//!
//! Decides when the connection is used again and when and how it is closed. It must never answer `100 Continue` of itself,
//! read a request's body before its handler asks for it, or end a response that broke off as if it were whole. Called
//! by `forward`.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version};
use tokio::time::{Instant, Sleep};

use super::buf::Output;
use super::coding::{BodyError, Decoder};
use super::head::{HeadError, Length, Limits, RequestHead, Scan};
use super::incoming::{Body, Exchange, Upload};
use super::outgoing::{self, Asked};
use super::reuse;
use super::shared::{Shared, State};
use crate::io::Transport;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How HTTP/1 connections are served and used.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub limits: Limits,
    /// How long a head may take, from its first byte.
    pub head_timeout: Duration,
    /// How long a connection may wait for its next request.
    pub idle_timeout: Duration,
    /// Said before an idle connection is closed, to a client that takes it for the answer to a request that it has sent meanwhile.
    pub farewell: &'static [u8],
}

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    #[error("closed by the client between requests")]
    ByClient,
    #[error("closed by the client within a request's head")]
    Truncated,
    #[error("no request within the idle timeout")]
    Idle,
    #[error("a request's head took too long")]
    HeadTimeout,
    #[error("drained")]
    Drained,
    /// As the client, the response, or what was left of a request's body demanded.
    #[error("closed after a response")]
    AfterResponse,
    #[error("{0}")]
    Refused(HeadError),
    #[error("a response could not be finished: {0}")]
    Aborted(BodyError),
    #[error("the connection is no longer HTTP")]
    Upgraded,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// One connection being served.
struct Server<I: Transport> {
    shared: Arc<Shared<I>>,
    out: Output,
    settings: Settings,
    timer: Pin<Box<Sleep>>,
    drained: bool,
    /// Closed as it should be; else the client must see that it was cut.
    ended: bool,
}

/// What the next response must know of its request.
struct Serving {
    asked: Asked,
    /// The client may be waiting for `100 Continue` before it sends a body.
    expects_continue: bool,
}

/// What is read of a request's body that its handler did not want, rather than close the connection.
const LEFTOVER: usize = 64 * 1024;
/// How long that, and a client's own close after ours, may take.
const LINGER: Duration = Duration::from_secs(2);
/// How long a client that has ended its side is taken to wait for an answer of which nothing comes. Whether it is gone cannot be seen
/// until something is sent to it.
const HALF_CLOSED: Duration = Duration::from_secs(10);

/// When draining, how long a request may still come that was sent before the client could know.
const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// Serves the requests that come on `io`, of which `initial` was already read, until the connection ends.
///
/// A head that is refused is answered with what `refuse` says. When `drain` is ready, the connection closes after the
/// exchange that is under way. A handler whose response body fails aborts the connection ([`Transport::abort`]).
pub async fn serve<I, H, F, B, R>(
    io: I,
    initial: &[u8],
    settings: Settings,
    handler: H,
    refuse: impl Fn(HeadError) -> Response<R>,
    drain: impl Future<Output = ()>,
) -> Closed
where
    I: Transport,
    H: FnMut(Request<Body>) -> F,
    F: Future<Output = Response<B>>,
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    R: http_body::Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    let mut server = Server {
        shared: Arc::new(Shared::new(io, initial, settings.limits)),
        out: Output::default(),
        settings,
        timer: Box::pin(tokio::time::sleep(settings.idle_timeout)),
        drained: false,
        ended: false,
    };
    let closed = server.run(handler, drain).await;
    match closed {
        Closed::Refused(error) => server.refuse(refuse(error)).await,
        Closed::Aborted(_) | Closed::Io(_) => server.abort(),
        Closed::Upgraded => {}
        Closed::AfterResponse => server.close(true).await,
        Closed::Drained | Closed::Idle => {
            server.out.small().extend_from_slice(settings.farewell);
            server.close(false).await;
        }
        _ => server.close(false).await,
    }
    server.ended = true;
    closed
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(600),
            farewell: b"",
        }
    }
}

// === impl Server ===

impl<I: Transport> Server<I> {
    async fn run<H, F, B>(&mut self, mut handler: H, drain: impl Future<Output = ()>) -> Closed
    where
        H: FnMut(Request<Body>) -> F,
        F: Future<Output = Response<B>>,
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let mut drain = pin!(drain);
        loop {
            let head = match self.head(drain.as_mut()).await {
                Ok(head) => head,
                Err(closed) => return closed,
            };
            let (request, serving) = self.begin(head);
            let response = match self.handle(pin!(handler(request)), drain.as_mut()).await {
                Ok(response) => response,
                Err(error) => return Closed::Io(error),
            };
            self.poll_drain(drain.as_mut(), &mut Context::from_waker(Waker::noop()));
            match self.respond(response, serving).await {
                Ok(true) => {}
                Ok(false) => return Closed::AfterResponse,
                Err(closed) => return closed,
            }
        }
    }

    /// Waits for the next request's head.
    async fn head(&mut self, mut drain: Pin<&mut impl Future<Output = ()>>) -> Result<RequestHead, Closed> {
        let since = Instant::now();
        let (mut begun, mut drain_seen): (Option<Instant>, Option<Instant>) = (None, None);
        let mut scan = Scan::default();
        let Self { shared, settings, timer, drained, out, .. } = self;
        out.rest();
        std::future::poll_fn(|cx| {
            let mut state = shared.0.lock();
            let State { io, input, .. } = &mut *state;
            let Some(io) = io else { return Poll::Ready(Err(Closed::ByClient)) };
            loop {
                match scan.request(&mut input.buf, &settings.limits) {
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Err(Closed::Refused(error))),
                }
                match input.poll_fill(io, cx) {
                    Poll::Ready(Ok(0)) if input.buf.is_empty() => {
                        return Poll::Ready(Err(Closed::ByClient));
                    }
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(Closed::Truncated)),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Closed::Io(error))),
                    Poll::Pending => break,
                }
            }
            let (deadline, late) = if input.buf.is_empty() {
                input.rest();
                *drained = *drained || drain.as_mut().poll(cx).is_ready();
                if *drained {
                    let seen = *drain_seen.get_or_insert_with(Instant::now);
                    (seen + DRAIN_GRACE, Closed::Drained)
                } else {
                    (since + settings.idle_timeout, Closed::Idle)
                }
            } else {
                (*begun.get_or_insert_with(Instant::now) + settings.head_timeout, Closed::HeadTimeout)
            };
            ready!(poll_until(timer, deadline, cx));
            Poll::Ready(Err(late))
        })
        .await
    }

    /// Makes the request of its head.
    fn begin(&mut self, head: RequestHead) -> (Request<Body>, Serving) {
        let (exchange, length) = {
            let mut state = self.shared.0.lock();
            state.exchange += 1;
            state.decoder = Decoder::new(head.length);
            state.answered = head.version == Version::HTTP_10;
            state.continued = false;
            (Exchange::new(self.shared.clone(), state.exchange), head.length)
        };
        let body = match length {
            Length::Exact(0) => Body::empty(),
            length => Body::served(exchange.clone(), length),
        };
        let asked = Asked { method: head.method.clone(), version: head.version, keep_alive: head.keep_alive };
        let serving =
            Serving { asked, expects_continue: head.expects_continue && length != Length::Exact(0) };
        let mut request = Request::new(body);
        *request.method_mut() = head.method;
        *request.uri_mut() = head.uri;
        *request.version_mut() = head.version;
        *request.headers_mut() = head.headers;
        *request.extensions_mut() = reuse::extensions(head.original);
        request.extensions_mut().insert(exchange);
        (request, serving)
    }

    /// Runs the handler; meanwhile interim responses go out, and it is noticed if the client goes.
    async fn handle<T>(
        &mut self,
        mut handler: Pin<&mut impl Future<Output = T>>,
        mut drain: Pin<&mut impl Future<Output = ()>>,
    ) -> io::Result<T> {
        let Self { shared, out, timer, drained, .. } = self;
        let (mut silent, mut written) = (None, out.written);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(response) = handler.as_mut().poll(cx) {
                return Poll::Ready(Ok(response));
            }
            let mut state = shared.0.lock();
            if !state.server.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.server = Some(cx.waker().clone());
            }
            state.take_interim(out);
            if !out.is_empty()
                && let Some(io) = &mut state.io
                && let Poll::Ready(Err(error)) = out.poll_write(io, cx)
            {
                return Poll::Ready(Err(error));
            }
            if std::mem::replace(&mut written, out.written) != out.written {
                silent = None;
            }
            let drained = |cx: &mut Context<'_>| {
                *drained = *drained || drain.as_mut().poll(cx).is_ready();
                *drained
            };
            poll_gone(&mut state, timer, &mut silent, drained, cx).map(Err)
        })
        .await
    }

    /// Writes a response; false: the connection must be closed now.
    async fn respond<B>(&mut self, response: Response<B>, serving: Serving) -> Result<bool, Closed>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = response.into_parts();
        let Serving { mut asked, expects_continue } = serving;
        {
            let mut state = self.shared.0.lock();
            state.take_interim(&mut self.out);
            state.answered = true;
            // A client that was not told to continue may or may not send its body: what comes next is anybody's guess.
            let in_doubt = expects_continue && !state.continued && !state.decoder.is_done();
            asked.keep_alive &= !self.drained && !state.failed && !in_doubt;
        }
        let (mut sending, keep_alive) =
            outgoing::response(&parts, &body, &asked, &mut self.out).map_err(Closed::Aborted)?;
        let (status, upload) = (parts.status, parts.extensions.get::<Upload>().cloned());
        reuse::give(parts.headers, parts.extensions);
        let mut body = pin!(body);
        let Self { shared, out, timer, drained, .. } = self;
        let (mut silent, mut written) = (None, out.written);
        std::future::poll_fn(|cx| {
            loop {
                let taken = sending.poll_take(body.as_mut(), out, cx);
                let mut state = shared.0.lock();
                let Some(io) = &mut state.io else { return Poll::Ready(Err(Closed::ByClient)) };
                if let Poll::Ready(Err(error)) = taken {
                    // What came before it broke off is the client's, as far as that takes it at once: its end tells that it is not all.
                    drop(out.poll_write(io, cx));
                    return Poll::Ready(Err(Closed::Aborted(error)));
                }
                if out.poll_write(io, cx)?.is_pending() {
                    drop(state);
                    // A client that does not read yet may still be sending, and its request goes on.
                    if let Some(upload) = &upload {
                        upload.poll(cx);
                    }
                    return Poll::Pending;
                }
                if sending.ended {
                    return Poll::Ready(Ok(()));
                }
                if taken.is_pending() {
                    if std::mem::replace(&mut written, out.written) != out.written {
                        silent = None;
                    }
                    return poll_gone(&mut state, timer, &mut silent, |_| *drained, cx)
                        .map(|error| Err(Closed::Io(error)));
                }
            }
        })
        .await?;
        if outgoing::is_upgrade(&asked.method, status) {
            self.shared.upgrade();
            return Err(Closed::Upgraded);
        }
        Ok(self.finish().await && keep_alive)
    }

    /// Reads what is left of the request's body, if it is little; false: it is not.
    async fn finish(&mut self) -> bool {
        let deadline = {
            let mut state = self.shared.0.lock();
            state.exchange += 1;
            state.upgrade.give_up();
            if state.failed {
                return false;
            }
            if state.decoder.is_done() {
                return true;
            }
            Instant::now() + LINGER
        };
        let mut left = LEFTOVER;
        let Self { shared, timer, .. } = self;
        std::future::poll_fn(|cx| {
            let mut state = shared.0.lock();
            loop {
                let polled = match state.poll_part(cx) {
                    Poll::Ready(polled) => polled,
                    Poll::Pending => return poll_until(timer, deadline, cx).map(|()| false),
                };
                let data = match polled.frame {
                    Some(Err(_)) => return Poll::Ready(false),
                    Some(Ok(frame)) => frame.into_data().map_or(0, |data| data.len()),
                    None => 0,
                };
                match left.checked_sub(data) {
                    _ if polled.end => return Poll::Ready(true),
                    Some(less) => left = less,
                    None => return Poll::Ready(false),
                }
            }
        })
        .await
    }

    async fn refuse<B>(&mut self, response: Response<B>)
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let asked = Asked { method: http::Method::GET, version: Version::HTTP_11, keep_alive: false };
        let serving = Serving { asked, expects_continue: false };
        self.shared.0.lock().failed = true;
        if self.respond(response, serving).await.is_ok() {
            self.close(true).await;
        }
    }

    /// Ends our side. To `linger` is to wait until the client has ended its own, if it may still be sending: a close with
    /// unread bytes would be a reset, which may destroy a response on its way (RFC 9112 §9.6).
    async fn close(&mut self, linger: bool) {
        let deadline = Instant::now() + LINGER;
        let Self { shared, timer, out, .. } = self;
        let mut shut = false;
        let mut left = 16 * LEFTOVER;
        std::future::poll_fn(|cx| {
            let mut state = shared.0.lock();
            let State { io, input, decoder, failed, .. } = &mut *state;
            let Some(io) = io else { return Poll::Ready(()) };
            if !shut {
                let shutting = match out.poll_write(io, cx) {
                    Poll::Ready(Ok(())) => Pin::new(&mut *io).poll_shutdown(cx),
                    other => other,
                };
                match shutting {
                    Poll::Ready(Ok(())) => shut = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return poll_until(timer, deadline, cx),
                }
            }
            // Nothing is on its way.
            if !linger || (decoder.is_done() && !*failed && input.buf.is_empty()) {
                return Poll::Ready(());
            }
            loop {
                input.buf.clear();
                match input.poll_fill(io, cx) {
                    Poll::Ready(Ok(read)) if read > 0 && read < left => left -= read,
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return poll_until(timer, deadline, cx),
                }
            }
        })
        .await;
    }

    fn abort(&mut self) {
        if let Some(mut io) = self.shared.0.lock().io.take() {
            io.abort();
        }
    }

    fn poll_drain(&mut self, drain: Pin<&mut impl Future<Output = ()>>, cx: &mut Context<'_>) {
        self.drained = self.drained || drain.poll(cx).is_ready();
    }
}

impl<I: Transport> Drop for Server<I> {
    fn drop(&mut self) {
        if !self.ended {
            self.abort();
        }
        self.shared.over();
    }
}

/// Ready when the client is gone: it has reset the connection, or has ended its side and been `silent`ly waiting since for longer than
/// anybody would who can have an answer.
fn poll_gone<I: Transport>(
    state: &mut State<I>,
    timer: &mut Pin<Box<Sleep>>,
    silent: &mut Option<Instant>,
    drained: impl FnOnce(&mut Context<'_>) -> bool,
    cx: &mut Context<'_>,
) -> Poll<io::Error> {
    if let Poll::Ready(error) = state.poll_watch(cx) {
        return Poll::Ready(error);
    }
    if !state.input.eof {
        return Poll::Pending;
    }
    if state.io.as_ref().is_some_and(Transport::may_half_close) {
        let patience = if drained(cx) { LINGER } else { HALF_CLOSED };
        ready!(poll_until(timer, *silent.get_or_insert_with(Instant::now) + patience, cx));
    }
    Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "the client has ended its side"))
}

/// Ready at `deadline`. One timer serves all of a connection's deadlines: most move on before it goes off.
fn poll_until(timer: &mut Pin<Box<Sleep>>, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
    if deadline < timer.deadline() {
        timer.as_mut().reset(deadline);
    }
    loop {
        ready!(timer.as_mut().poll(cx));
        if timer.deadline() >= deadline {
            return Poll::Ready(());
        }
        timer.as_mut().reset(deadline);
    }
}
