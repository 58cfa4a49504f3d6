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

use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode, Version};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

use super::buf::{Input, Output};
use super::coding::{BodyError, Decoder, Step};
use super::head::{HeadError, Length, Limits, RequestHead, Scan};
use super::incoming::{Body, Exchange, Polled, Served};
use super::original::{Fields, OriginalHead, Told, write_status_line};
use super::outgoing::{self, Asked};
use super::upgrade::{Transport, Upgraded};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How HTTP/1 connections are served and used.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub limits: Limits,
    /// How long a head may take, from its first byte.
    pub head_timeout: Duration,
    /// How long a connection may wait for its next request.
    pub idle_timeout: Duration,
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

/// What a connection's server and the bodies it gave out share.
struct Shared<I>(Mutex<State<I>>);

struct State<I> {
    /// `None` once the connection is over or no longer HTTP.
    io: Option<I>,
    input: Input,
    limits: Limits,
    /// Counts exchanges, so that what is left of an old one cannot reach into a new one.
    exchange: u64,
    decoder: Decoder,
    /// The request's body broke off; nothing more can be read.
    failed: bool,
    /// The final response has begun, or nobody understands interim ones.
    answered: bool,
    continued: bool,
    interim: Vec<u8>,
    upgrade: Upgrade,
    server: Option<Waker>,
}

enum Upgrade {
    NotAsked,
    Asked(Option<Waker>),
    Ready(Upgraded),
    Over,
}

/// One connection being served.
struct Server<I> {
    shared: Arc<Shared<I>>,
    out: Output,
    settings: Settings,
    timer: Pin<Box<Sleep>>,
    drained: bool,
}

/// What the next response must know of its request.
struct Serving {
    asked: Asked,
    /// The client may be waiting for `100 Continue` before it sends a body.
    expects_continue: bool,
}

/// Read ahead while a response is being made; the client's next requests may wait in there.
const READ_AHEAD: usize = 16 * 1024;
/// What is read of a request's body that its handler did not want, rather than close the connection.
const LEFTOVER: usize = 64 * 1024;
/// How long that, and a client's own close after ours, may take.
const LINGER: Duration = Duration::from_secs(2);

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
        shared: Arc::new(Shared(Mutex::new(State {
            io: Some(io),
            input: Input::new(initial),
            limits: settings.limits,
            exchange: 0,
            decoder: Decoder::new(Length::Exact(0)),
            failed: false,
            answered: true,
            continued: false,
            interim: Vec::new(),
            upgrade: Upgrade::NotAsked,
            server: None,
        }))),
        out: Output::default(),
        settings,
        timer: Box::pin(tokio::time::sleep(settings.idle_timeout)),
        drained: false,
    };
    let closed = server.run(handler, drain).await;
    match closed {
        Closed::Refused(error) => server.refuse(refuse(error)).await,
        Closed::Aborted(_) | Closed::Io(_) => server.abort(),
        Closed::Upgraded => {}
        Closed::AfterResponse => server.close(true).await,
        _ => server.close(false).await,
    }
    closed
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(600),
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
            let response = match self.handle(pin!(handler(request))).await {
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
        request.extensions_mut().insert(head.original);
        request.extensions_mut().insert(exchange);
        (request, serving)
    }

    /// Runs the handler; meanwhile interim responses go out and a reset by the client is noticed.
    async fn handle<T>(&mut self, mut handler: Pin<&mut impl Future<Output = T>>) -> io::Result<T> {
        let Self { shared, out, .. } = self;
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
            if let Poll::Ready(error) = state.poll_watch(cx) {
                return Poll::Ready(Err(error));
            }
            Poll::Pending
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
        let mut body = pin!(body);
        let Self { shared, out, .. } = self;
        std::future::poll_fn(|cx| {
            loop {
                let taken = sending.poll_take(body.as_mut(), out, cx);
                if let Poll::Ready(Err(error)) = taken {
                    return Poll::Ready(Err(Closed::Aborted(error)));
                }
                let mut state = shared.0.lock();
                let Some(io) = &mut state.io else { return Poll::Ready(Err(Closed::ByClient)) };
                ready!(out.poll_write(io, cx))?;
                if sending.ended {
                    return Poll::Ready(Ok(()));
                }
                if taken.is_pending() {
                    return state.poll_watch(cx).map(|error| Err(Closed::Io(error)));
                }
            }
        })
        .await?;
        if outgoing::is_upgrade(&asked.method, parts.status) {
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

// === impl State ===

impl<I: Transport> State<I> {
    /// The next part of the request's body.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Polled> {
        if self.failed {
            return Poll::Ready(Polled::error(BodyError::Abandoned));
        }
        let polled =
            ready!(poll_part(&mut self.decoder, &mut self.input, self.io.as_mut(), &self.limits, cx));
        self.failed = matches!(polled.frame, Some(Err(_)));
        Poll::Ready(polled)
    }

    fn take_interim(&mut self, out: &mut Output) {
        if !self.interim.is_empty() {
            out.small().append(&mut self.interim);
        }
    }

    /// Ready when the client has reset the connection. (Having ended its own side is its right.)
    fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Self { io: Some(io), input, decoder, failed, .. } = self else { return Poll::Pending };
        if !decoder.is_done() || *failed {
            return Poll::Pending;
        }
        while !input.eof && input.buf.len() < READ_AHEAD {
            if let Err(error) = ready!(input.poll_fill(io, cx)) {
                return Poll::Ready(error);
            }
        }
        Poll::Pending
    }
}

/// The next part of a body, read from its connection.
pub(super) fn poll_part<I: Transport>(
    decoder: &mut Decoder,
    input: &mut Input,
    mut io: Option<&mut I>,
    limits: &Limits,
    cx: &mut Context<'_>,
) -> Poll<Polled> {
    loop {
        match decoder.decode(&mut input.buf, limits) {
            Ok(Step::Data(data)) => {
                decoder.settle(&mut input.buf);
                return Poll::Ready(Polled::data(data, decoder.is_done()));
            }
            Ok(Step::Trailers(trailers)) => return Poll::Ready(Polled::trailers(trailers)),
            Ok(Step::End) => return Poll::Ready(Polled::end()),
            Ok(Step::More) => {}
            Err(error) => return Poll::Ready(Polled::error(error)),
        }
        let Some(io) = &mut io else { return Poll::Ready(Polled::error(BodyError::Abandoned)) };
        match ready!(input.poll_fill(*io, cx)) {
            Ok(0) if decoder.ends_at_eof() => return Poll::Ready(Polled::end()),
            Ok(0) => return Poll::Ready(Polled::error(BodyError::Truncated)),
            Ok(_) => {}
            Err(error) => return Poll::Ready(Polled::error(error)),
        }
    }
}

// === impl Shared ===

impl<I> Shared<I> {
    /// Hands the connection to who asked for it.
    fn upgrade(&self)
    where
        I: Transport,
    {
        let mut state = self.0.lock();
        let State { io, input, upgrade, .. } = &mut *state;
        if let (Upgrade::Asked(waker), Some(io)) = (upgrade, io.take()) {
            let waker = waker.take();
            let read = std::mem::replace(&mut input.buf, BytesMut::new());
            state.upgrade = Upgrade::Ready(Upgraded::new(io, read));
            drop(state);
            if let Some(_waker) = waker {
                Waker::wake(_waker)
            }
        }
    }

    /// The connection has ended.
    fn over(&self) {
        let mut state = self.0.lock();
        let io = state.io.take();
        state.exchange += 1;
        state.server = None;
        state.upgrade.give_up();
        drop(state);
        drop(io);
    }
}

impl Upgrade {
    /// The connection stays HTTP, or is over.
    fn give_up(&mut self) {
        if let Self::Asked(waker) = self {
            let waker = waker.take();
            *self = Self::Over;
            if let Some(_waker) = waker {
                Waker::wake(_waker)
            }
        }
    }
}

impl<I> Drop for Server<I> {
    fn drop(&mut self) {
        self.shared.over();
    }
}

impl<I: Transport> Served for Shared<I> {
    fn poll_body(&self, exchange: u64, cx: &mut Context<'_>) -> Poll<Polled> {
        let mut state = self.0.lock();
        if state.exchange != exchange {
            return Poll::Ready(Polled::error(BodyError::Abandoned));
        }
        state.poll_part(cx)
    }

    fn interim(&self, exchange: u64, response: &Response<()>) -> bool {
        let mut state = self.0.lock();
        let (status, headers) = (response.status(), response.headers());
        let original = response.extensions().get::<OriginalHead>();
        let allowed = status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS;
        if state.exchange != exchange || state.answered || !allowed {
            return false;
        }
        state.continued |= status == StatusCode::CONTINUE;
        write_status_line(&mut state.interim, status, Version::HTTP_11, original);
        let fields = Fields { original, headers, told: Told::Nothing, connection: None };
        fields.write(&mut state.interim);
        let server = state.server.clone();
        drop(state);
        if let Some(_server) = server {
            Waker::wake(_server)
        }
        true
    }

    fn ask_upgrade(&self, exchange: u64) {
        let mut state = self.0.lock();
        if state.exchange == exchange && matches!(state.upgrade, Upgrade::NotAsked | Upgrade::Over) {
            state.upgrade = Upgrade::Asked(None);
        }
    }

    fn poll_upgrade(&self, exchange: u64, cx: &mut Context<'_>) -> Poll<Option<Upgraded>> {
        let mut state = self.0.lock();
        match &mut state.upgrade {
            Upgrade::Asked(waker) => {
                *waker = Some(cx.waker().clone());
                if state.exchange == exchange { Poll::Pending } else { Poll::Ready(None) }
            }
            Upgrade::Ready(_) => match std::mem::replace(&mut state.upgrade, Upgrade::Over) {
                Upgrade::Ready(upgraded) => Poll::Ready(Some(upgraded)),
                _ => Poll::Ready(None),
            },
            Upgrade::NotAsked | Upgrade::Over => Poll::Ready(None),
        }
    }
}
