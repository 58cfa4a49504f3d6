//! A connection on which requests are sent, one after the other.
//!
//! Decides what is known of a request that got no answer, and whether the connection can be used again. It must never be
//! used again while anything of an exchange is missing, or after bytes that nobody asked for. Called by `forward` and
//! kept by `endpoint`.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use parking_lot::Mutex;

use super::buf::{Input, Output};
use super::coding::{BodyError, Decoder};
use super::head::{self, HeadError, Length, Limits, ResponseHead, Scan};
use super::incoming::{Body, Polled, Received, Upload};
use super::outgoing::{self, Sending};
use super::reuse;
use super::shared::poll_part;
use super::upgrade::{Switched, Upgraded};
use crate::io::Transport;
use crate::wire::Processed;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type AnyBody = dyn http_body::Body<Data = Bytes, Error = BoxError> + Send;

/// A connection between two exchanges.
pub struct Client<I>(Box<Connection<I>>);

struct Connection<I> {
    io: I,
    input: Input,
    out: Output,
    limits: Limits,
    stirred: Arc<Stirred>,
    /// Of `stirred`.
    waker: Waker,
    exchanges: u64,
    idle_hint: Option<Duration>,
    // Of the exchange under way:
    decoder: Decoder,
    reusable: bool,
    /// What is left of the request's body once the response has begun.
    upload: Option<(Sending, Pin<Box<AnyBody>>)>,
    /// Why that cannot be sent to its end.
    upload_failed: Option<BodyError>,
    done: Option<Box<dyn FnOnce(Client<I>) + Send>>,
}

/// When something was first heard from a connection that nobody reads.
#[derive(Default)]
struct Stirred(Mutex<Option<Instant>>);

/// A request that got no answer.
pub struct SendError<B> {
    pub failure: Failure,
    pub processed: Processed,
    /// Whether any byte of an answer came.
    pub answered: bool,
    /// The request's body, if nothing was taken out of it.
    pub body: Option<B>,
}

/// What went wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("writing the request")]
    Write(#[source] io::Error),
    #[error("reading the response")]
    Read(#[source] io::Error),
    #[error("the connection was closed before a response")]
    Closed,
    #[error("the response is not HTTP/1 as it should be")]
    Response(#[source] HeadError),
    #[error("the request's body broke off")]
    Body(#[source] BodyError),
}

/// One exchange until its response's head.
struct Sent<B> {
    sending: Sending,
    body: B,
    scan: Scan,
    /// Bytes of interim responses so far.
    interim: usize,
    answered: bool,
    broken: Option<io::Error>,
}

// === impl Client ===

impl<I: Transport> Client<I> {
    pub fn new(io: I, limits: Limits) -> Self {
        let stirred = Arc::<Stirred>::default();
        Self(Box::new(Connection {
            io,
            input: Input::default(),
            out: Output::default(),
            limits,
            waker: Waker::from(Arc::clone(&stirred)),
            stirred,
            exchanges: 0,
            idle_hint: None,
            decoder: Decoder::new(Length::Exact(0)),
            reusable: true,
            upload: None,
            upload_failed: None,
            done: None,
        }))
    }

    /// When the connection was closed, as closely as is known; `None`: it can take a request, as far as can be seen
    /// without waiting. Bytes that nobody asked for are as good as a close.
    pub fn closed(&mut self) -> Option<Instant> {
        let Connection { io, input, stirred, waker, .. } = self.0.as_mut();
        let at = stirred.0.lock().take();
        // What happens from here on wakes the waker, which only notes the time.
        let open = input.buf.is_empty() && input.poll_fill(io, &mut Context::from_waker(waker)).is_pending();
        (!open).then(|| at.unwrap_or_else(Instant::now))
    }

    /// For how long the server says that it keeps the connection when idle: `Keep-Alive: timeout` of its last answer.
    pub fn idle_hint(&self) -> Option<Duration> {
        self.0.idle_hint
    }

    /// How many exchanges it has carried.
    pub fn exchanges(&self) -> u64 {
        self.0.exchanges
    }

    /// Sends a request, the head as it is in `request` and then `body`, and returns the head of its response, whose body
    /// goes on sending what is left of the request's. Interim responses go to `interim`; once the exchange is over and
    /// the connection can be used again, it goes to `done`. Dropping the future or the response's body closes the connection.
    ///
    /// # Errors
    /// When there is no response, with what is known of how far the request got.
    pub async fn send<T, B>(
        mut self,
        request: &mut Request<T>,
        body: B,
        mut interim: impl FnMut(Response<()>),
        done: impl FnOnce(Self) + Send + 'static,
    ) -> Result<Response<Body>, Box<SendError<B>>>
    where
        B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let before = self.0.out.written;
        let sending = match outgoing::request(request, &body, &mut self.0.out) {
            Ok(sending) => sending,
            Err(error) => {
                let (failure, processed) = (Failure::Body(error), Processed::No);
                return Err(Box::new(SendError { failure, processed, answered: false, body: Some(body) }));
            }
        };
        let mut sent =
            Sent { sending, body, scan: Scan::default(), interim: 0, answered: false, broken: None };
        self.0.done = Some(Box::new(done));
        let received = std::future::poll_fn(|cx| {
            // Held alone: what it carries besides need not be fit for sharing.
            let request = &mut *request;
            self.0.poll_head(request.method(), request.headers(), &mut sent, &mut interim, cx)
        });
        match received.await {
            Ok(head) => Ok(self.respond(request.method(), sent, head)),
            Err(failure) => {
                let Sent { sending, body, answered, .. } = sent;
                let processed = if self.0.out.written == before { Processed::No } else { Processed::Maybe };
                let body = (!sending.taken).then_some(body);
                Err(Box::new(SendError { failure, processed, answered, body }))
            }
        }
    }

    /// Makes the response of its head.
    fn respond<B>(mut self, method: &Method, sent: Sent<B>, head: ResponseHead) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let connection = self.0.as_mut();
        connection.reusable = head.keep_alive && sent.broken.is_none();
        connection.decoder = Decoder::new(head.length);
        connection.idle_hint = idle_hint(&head.headers);
        if !sent.sending.ended {
            connection.upload = Some((sent.sending, Box::pin(AsAny(sent.body))));
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = head.status;
        *response.version_mut() = head.version;
        *response.headers_mut() = head.headers;
        *response.extensions_mut() = reuse::extensions(head.original);
        if outgoing::is_upgrade(method, head.status) {
            let Connection { io, input, .. } = *self.0;
            response.extensions_mut().insert(Switched::new(Upgraded::new(io, input.buf)));
        } else if head.length == Length::Exact(0) {
            self.0.finish();
        } else if self.0.upload.is_some() {
            let upload = Upload::new(self.0);
            response.extensions_mut().insert(upload.clone());
            *response.body_mut() = Body::early(upload, head.length);
        } else {
            *response.body_mut() = Body::received(self.0, head.length);
        }
        response
    }
}

impl<I> fmt::Debug for Client<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("exchanges", &self.0.exchanges).finish_non_exhaustive()
    }
}

impl Wake for Stirred {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.lock().get_or_insert_with(Instant::now);
    }
}

// === impl Connection ===

impl<I: Transport> Connection<I> {
    fn poll_head<B>(
        &mut self,
        method: &Method,
        headers: &HeaderMap,
        sent: &mut Sent<B>,
        interim: &mut impl FnMut(Response<()>),
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, Failure>>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        if sent.broken.is_none() {
            match self.poll_send(&mut sent.sending, Pin::new(&mut sent.body), cx) {
                Poll::Ready(Err(Unsent::Body(error))) => return Poll::Ready(Err(Failure::Body(error))),
                // The answer may be there all the same.
                Poll::Ready(Err(Unsent::Write(error))) => sent.broken = Some(error),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        loop {
            let found = sent.scan.response(&mut self.input.buf, method, &self.limits);
            match found.map_err(Failure::Response)? {
                Some(head) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                    let over = sent.sending.ended && self.out.is_empty();
                    if !over || !headers.contains_key(header::UPGRADE) {
                        let what = HeadError::Malformed("it switches protocols unasked");
                        return Poll::Ready(Err(Failure::Response(what)));
                    }
                    return Poll::Ready(Ok(head));
                }
                Some(head) if head.status.is_informational() => {
                    // Whoever reads them may be slower than whoever sends them.
                    sent.interim += head.original.len();
                    if sent.interim > self.limits.head {
                        let what = HeadError::TooLarge(self.limits.head);
                        return Poll::Ready(Err(Failure::Response(what)));
                    }
                    interim(as_interim(head));
                }
                Some(head) => return Poll::Ready(Ok(head)),
                None => match ready!(self.input.poll_fill(&mut self.io, cx)) {
                    Ok(0) => {
                        return Poll::Ready(Err(match sent.broken.take() {
                            Some(error) => Failure::Write(error),
                            None => Failure::Closed,
                        }));
                    }
                    Ok(_) => sent.answered = true,
                    // It tells more than a failed write: TLS alerts arrive here.
                    Err(error) => return Poll::Ready(Err(Failure::Read(error))),
                },
            }
        }
    }

    /// Sends what the request's body has ready. Ready: all of it is sent.
    fn poll_send<B>(
        &mut self,
        sending: &mut Sending,
        mut body: Pin<&mut B>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Unsent>>
    where
        B: http_body::Body<Data = Bytes> + ?Sized,
        B::Error: Into<BoxError>,
    {
        loop {
            let taken = sending.poll_take(body.as_mut(), &mut self.out, cx);
            if let Poll::Ready(Err(error)) = taken {
                return Poll::Ready(Err(Unsent::Body(error)));
            }
            ready!(self.out.poll_write(&mut self.io, cx)).map_err(Unsent::Write)?;
            if sending.ended {
                return Poll::Ready(Ok(()));
            }
            if taken.is_pending() {
                return Poll::Pending;
            }
        }
    }
}

/// Why a request could not be sent to its end.
enum Unsent {
    Write(io::Error),
    Body(BodyError),
}

impl<I: Transport> Received for Connection<I> {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Polled> {
        self.poll_upload(cx);
        if let Some(error) = self.upload_failed.take() {
            return Poll::Ready(Polled::error(error));
        }
        let Self { io, input, decoder, limits, .. } = self;
        poll_part(decoder, input, Some(io), limits, cx)
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) {
        let Some((mut sending, mut body)) = self.upload.take() else { return };
        match self.poll_send(&mut sending, body.as_mut(), cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Pending => self.upload = Some((sending, body)),
            Poll::Ready(Err(Unsent::Body(error))) => {
                self.io.abort();
                self.upload_failed = Some(error);
            }
            // The response may be whole all the same.
            Poll::Ready(Err(Unsent::Write(_))) => self.reusable = false,
        }
    }

    fn finish(mut self: Box<Self>) {
        let whole = self.reusable && self.upload.is_none() && self.out.is_empty();
        if let (Some(done), true) = (self.done.take(), whole && self.input.buf.is_empty() && !self.input.eof)
        {
            self.exchanges += 1;
            self.input.rest();
            self.out.rest();
            done(Client(self));
        }
    }
}

fn as_interim(head: ResponseHead) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.version_mut() = head.version;
    *response.headers_mut() = head.headers;
    response.extensions_mut().insert(head.original);
    response
}

/// A server that says more means as much.
const LONGEST_IDLE: Duration = Duration::from_secs(86_400);

/// The `timeout` of a `Keep-Alive` field (draft-thomson-hybi-http-timeout §2, as servers send it), in whole seconds.
fn idle_hint(headers: &HeaderMap) -> Option<Duration> {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    let value = headers.get(&KEEP_ALIVE)?.to_str().ok()?;
    value.split(',').find_map(|parameter| {
        let (name, seconds) = parameter.split_once('=')?;
        let is_timeout = name.trim().eq_ignore_ascii_case("timeout");
        let seconds = is_timeout.then(|| head::decimal(seconds.trim().as_bytes())).flatten()?;
        Some(Duration::from_secs(seconds).min(LONGEST_IDLE))
    })
}

// === impl SendError ===

impl<B> fmt::Debug for SendError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError")
            .field("failure", &self.failure)
            .field("processed", &self.processed)
            .field("answered", &self.answered)
            .finish_non_exhaustive()
    }
}

impl<B> fmt::Display for SendError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

impl<B> std::error::Error for SendError<B> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.failure.source()
    }
}

// === impl AsAny ===

/// A body whose error's type is forgotten.
struct AsAny<B>(B);

impl<B> http_body::Body for AsAny<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.0).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
    }
}
