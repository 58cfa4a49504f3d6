//! One body type for whatever a message's body comes from.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::ahead::{self, Ahead, Beginning};
use super::h1;
use super::http2::Incoming;
use super::kept::{Reader, Spare};
use super::tee::{self, Copied, Copy};
use super::trimmed::Trimmed;

/// A message's body: streamed, with its trailers, as its receiver asks for it.
#[derive(Debug, Default)]
pub struct Body {
    kind: Kind,
    transfer: Option<Arc<Transfer>>,
    trim: Option<fn(&mut HeaderMap)>,
    then: Option<Then>,
}

struct Then(Box<dyn FnOnce() + Send>);

#[derive(Debug, Default)]
pub(super) enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    /// Sent after everything else: an answer that consists of nothing but trailers keeps them here.
    Trailers(Box<HeaderMap>),
    Http2(Incoming),
    Http1(h1::Body),
    Kept(Reader),
    Copied(Box<Copied>),
    Copy(Box<Copy>),
    Ahead(Box<Ahead>),
    Trimmed(Box<Trimmed>),
}

/// What has passed of a body so far, readable while it passes.
#[derive(Debug, Default)]
pub struct Transfer {
    bytes: AtomicU64,
    /// As of [`Transfer::is_owed`].
    owed: AtomicBool,
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
#[error("the body broke off: {source}")]
pub struct BodyError {
    #[source]
    source: Box<dyn StdError + Send + Sync>,
}

// === impl Body ===

impl Body {
    pub fn empty() -> Self {
        Self::default()
    }

    pub fn full(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::empty() } else { Self::of(Kind::Full(bytes)) }
    }

    pub fn trailers(trailers: HeaderMap) -> Self {
        Self::of(Kind::Trailers(Box::new(trailers)))
    }

    pub(super) fn http2(incoming: Incoming) -> Self {
        Self::of(Kind::Http2(incoming))
    }

    pub fn http1(body: h1::Body) -> Self {
        Self::of(Kind::Http1(body))
    }

    /// Counts what passes from now on in `transfer`.
    pub fn counted(mut self, transfer: Arc<Transfer>) -> Self {
        self.transfer = Some(transfer);
        self
    }

    /// Passes trailers on as `trim` leaves them.
    pub fn trimmed(mut self, trim: fn(&mut HeaderMap)) -> Self {
        self.trim = Some(trim);
        self
    }

    /// Passes trailers on as `trim` leaves them, too.
    pub fn trimmed_by(&mut self, trim: impl Fn(&mut HeaderMap) + Send + 'static) {
        let body = std::mem::take(self);
        *self = Self::of(Kind::Trimmed(Box::new(Trimmed::new(body, trim))));
    }

    /// Calls `then` once the whole body has passed.
    pub(super) fn then(mut self, then: impl FnOnce() + Send + 'static) -> Self {
        self.then = Some(Then(Box::new(then)));
        self.at_end();
        self
    }

    /// The means to have the body again, if no more than `limit` bytes of it have passed by then.
    pub fn keep(&mut self, limit: u64) -> Spare {
        if http_body::Body::is_end_stream(self) {
            return Spare::Empty;
        }
        if http_body::Body::size_hint(self).lower() > limit {
            return Spare::Lost;
        }
        if let Self { kind: Kind::Kept(reader), transfer: None, trim: None, then: None } = self
            && let Some(spare) = reader.spare(limit)
        {
            return spare;
        }
        let first = self.arrived();
        if let Some(data) = first.as_ref().and_then(Frame::data_ref)
            && http_body::Body::is_end_stream(self)
        {
            let spare = if data.len() as u64 <= limit { Spare::Full(data.clone()) } else { Spare::Lost };
            *self = Self::full(data.clone());
            return spare;
        }
        let (reader, spare) = Reader::first(std::mem::take(self), first, limit);
        *self = Self::of(Kind::Kept(reader));
        spare
    }

    /// What has come of it already, if that can be told without asking for more.
    fn arrived(&mut self) -> Option<Frame<Bytes>> {
        let Kind::Http2(incoming) = &mut self.kind else { return None };
        if !incoming.has_arrived() {
            return None;
        }
        let mut nobody = Context::from_waker(Waker::noop());
        match http_body::Body::poll_frame(Pin::new(&mut *self), &mut nobody) {
            Poll::Ready(Some(Ok(frame))) => Some(frame),
            // A stream says once more that it was reset.
            Poll::Ready(Some(Err(_)) | None) | Poll::Pending => None,
        }
    }

    /// The same body, and a copy of what will pass of it.
    pub fn copied(self) -> (Self, Self) {
        if http_body::Body::is_end_stream(&self) {
            return (self, Self::empty());
        }
        let (body, copy) = tee::copied(self);
        (Self::of(Kind::Copied(Box::new(body))), Self::of(Kind::Copy(Box::new(copy))))
    }

    /// The first `limit` bytes of the body, which passes whole all the same. The client is waited for, however long it takes.
    ///
    /// # Errors
    /// When it broke off before; then there is no body any more.
    pub async fn read_ahead(&mut self, limit: usize) -> Result<Beginning, BodyError> {
        let (body, beginning) = ahead::read(std::mem::take(self), limit).await?;
        *self = Self::of(Kind::Ahead(Box::new(body)));
        Ok(beginning)
    }

    pub(super) fn reader(reader: Reader) -> Self {
        Self::of(Kind::Kept(reader))
    }

    fn poll_kind(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(match &mut self.kind {
            Kind::Empty => None,
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Empty;
                Some(Ok(Frame::data(bytes)))
            }
            Kind::Trailers(trailers) => {
                let trailers = std::mem::take(&mut **trailers);
                self.kind = Kind::Empty;
                Some(Ok(Frame::trailers(trailers)))
            }
            Kind::Http2(incoming) => {
                ready!(incoming.poll_frame(cx)).map(|frame| frame.map_err(BodyError::new))
            }
            Kind::Http1(body) => ready!(http_body::Body::poll_frame(Pin::new(body), cx))
                .map(|frame| frame.map_err(BodyError::new)),
            Kind::Kept(reader) => ready!(reader.poll_frame(cx)),
            Kind::Copied(copied) => ready!(copied.poll_frame(cx)),
            Kind::Copy(copy) => ready!(copy.poll_frame(cx)),
            Kind::Ahead(ahead) => ready!(ahead.poll_frame(cx)),
            Kind::Trimmed(trimmed) => ready!(trimmed.poll_frame(cx)),
        })
    }

    fn at_end(&mut self) {
        if http_body::Body::is_end_stream(self)
            && let Some(Then(then)) = self.then.take()
        {
            then();
        }
    }

    pub(super) fn of(kind: Kind) -> Self {
        Self { kind, ..Self::default() }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.poll_kind(cx);
        if let Some(transfer) = &self.transfer {
            transfer.owed.store(polled.is_pending(), Ordering::Relaxed);
        }
        let mut frame = ready!(polled);
        if let (Some(transfer), Some(Ok(frame))) = (&self.transfer, &frame)
            && let Some(data) = frame.data_ref()
        {
            transfer.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        if let (Some(trim), Some(Ok(frame))) = (self.trim, &mut frame)
            && let Some(trailers) = frame.trailers_mut()
        {
            trim(trailers);
        }
        if frame.is_none() {
            self.kind = Kind::Empty;
        }
        self.at_end();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(_) | Kind::Trailers(_) => false,
            Kind::Http2(incoming) => incoming.is_end_stream(),
            Kind::Http1(body) => body.is_end_stream(),
            Kind::Kept(reader) => reader.is_end_stream(),
            Kind::Copied(copied) => copied.is_end_stream(),
            Kind::Copy(copy) => copy.is_end_stream(),
            Kind::Ahead(ahead) => ahead.is_end_stream(),
            Kind::Trimmed(trimmed) => trimmed.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty | Kind::Trailers(_) => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Http2(incoming) => incoming.size_hint(),
            Kind::Http1(body) => body.size_hint(),
            Kind::Kept(reader) => reader.size_hint(),
            Kind::Copied(copied) => copied.size_hint(),
            Kind::Copy(copy) => copy.size_hint(),
            Kind::Ahead(ahead) => ahead.size_hint(),
            Kind::Trimmed(trimmed) => trimmed.size_hint(),
        }
    }
}

impl fmt::Debug for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Then")
    }
}

// === impl Transfer ===

impl Transfer {
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether more was asked for and has not come: who sends it is waited for, and not who receives it.
    pub fn is_owed(&self) -> bool {
        self.owed.load(Ordering::Relaxed)
    }
}

// === impl BodyError ===

impl BodyError {
    pub fn new(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { source: source.into() }
    }
}
