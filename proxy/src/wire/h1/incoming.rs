//! Bodies that are read from their connection as they are asked for.
//!
//! Decides nothing but who reads: there is no task and no channel behind a body, polling it polls the connection. It must
//! never hold a lock while its reader waits. Given out by [`super::server`] and [`super::client`].

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;

use super::coding::BodyError;
use super::head::Length;
use super::upgrade::OnUpgrade;

/// The body of a message that is being received.
#[derive(Debug)]
pub struct Body {
    source: Source,
    /// What is left of a body whose length is known.
    left: Option<u64>,
}

enum Source {
    Over,
    /// A request's: the connection is shared with what writes the response.
    Served(Exchange),
    /// A response's: the body owns the connection. (The lock is never taken: it only makes the body `Sync`.)
    Received(Mutex<Box<dyn Received>>),
    /// A response's that began before its request had ended.
    Early(Upload),
}

/// A connection that receives a response while the rest of the request is still being sent. In the response's extensions, so
/// that sending goes on while the response waits for its reader; the body ends it.
#[derive(Clone)]
pub(super) struct Upload(Arc<Mutex<Option<Box<dyn Received>>>>);

/// A request's connection, as its handler may use it. In the request's extensions.
#[derive(Clone)]
pub struct Exchange {
    connection: Arc<dyn Served>,
    number: u64,
}

/// What a poll of a connection's body found.
#[derive(Debug)]
pub(super) struct Polled {
    pub(super) frame: Option<Result<Frame<Bytes>, BodyError>>,
    /// Nothing comes after `frame`.
    pub(super) end: bool,
}

/// A connection that serves exchanges, one after the other.
pub(super) trait Served: Send + Sync {
    fn poll_body(&self, exchange: u64, cx: &mut Context<'_>) -> Poll<Polled>;
    fn interim(&self, exchange: u64, response: &Response<()>) -> bool;
    fn ask_upgrade(&self, exchange: u64);
    fn poll_upgrade(&self, exchange: u64, cx: &mut Context<'_>) -> Poll<Option<super::Upgraded>>;
}

/// A connection from which a response is received.
pub(super) trait Received: Send {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Polled>;
    /// Sends what the request's body has ready; what goes wrong is told by `poll_body`.
    fn poll_upload(&mut self, cx: &mut Context<'_>);
    /// The response is over.
    fn finish(self: Box<Self>);
}

// === impl Polled ===

impl Polled {
    pub(super) fn data(data: Bytes, end: bool) -> Self {
        Self { frame: Some(Ok(Frame::data(data))), end }
    }

    pub(super) fn trailers(trailers: HeaderMap) -> Self {
        Self { frame: Some(Ok(Frame::trailers(trailers))), end: true }
    }

    pub(super) fn end() -> Self {
        Self { frame: None, end: true }
    }

    pub(super) fn error(error: impl Into<BodyError>) -> Self {
        Self { frame: Some(Err(error.into())), end: true }
    }
}

// === impl Exchange ===

impl Exchange {
    pub(super) fn new(connection: Arc<dyn Served>, number: u64) -> Self {
        Self { connection, number }
    }

    /// Sends an interim response (1xx other than 101) before the final one. False: there is nobody to send it to, because
    /// the final response has begun or the client speaks HTTP/1.0 (RFC 9110 §15.2).
    pub fn interim(&self, response: &Response<()>) -> bool {
        self.connection.interim(self.number, response)
    }

    /// The connection, once the response has ended HTTP on it (101, or 2xx to CONNECT).
    pub fn on_upgrade(&self) -> OnUpgrade {
        self.connection.ask_upgrade(self.number);
        OnUpgrade(self.clone())
    }

    pub(super) fn poll_upgrade(&self, cx: &mut Context<'_>) -> Poll<Option<super::Upgraded>> {
        self.connection.poll_upgrade(self.number, cx)
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Exchange").field(&self.number).finish()
    }
}

// === impl Body ===

impl Body {
    pub fn empty() -> Self {
        Self { source: Source::Over, left: Some(0) }
    }

    pub(super) fn served(exchange: Exchange, length: Length) -> Self {
        Self { source: Source::Served(exchange), left: exact(length) }
    }

    pub(super) fn received(connection: Box<dyn Received>, length: Length) -> Self {
        Self { source: Source::Received(Mutex::new(connection)), left: exact(length) }
    }

    pub(super) fn early(upload: Upload, length: Length) -> Self {
        Self { source: Source::Early(upload), left: exact(length) }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Source::Early(upload) = &self.source {
            drop(upload.take());
        }
    }
}

fn exact(length: Length) -> Option<u64> {
    match length {
        Length::Exact(length) => Some(length),
        Length::Chunked | Length::UntilEof => None,
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Polled { frame, end } = match &mut self.source {
            Source::Over => return Poll::Ready(None),
            Source::Served(exchange) => ready!(exchange.connection.poll_body(exchange.number, cx)),
            Source::Received(connection) => ready!(connection.get_mut().poll_body(cx)),
            Source::Early(upload) => ready!(upload.poll_body(cx)),
        };
        if let (Some(left), Some(Ok(frame))) = (&mut self.left, &frame) {
            *left -= frame.data_ref().map_or(0, |data| data.len() as u64).min(*left);
        }
        if end {
            let connection = match std::mem::replace(&mut self.source, Source::Over) {
                Source::Received(connection) => Some(connection.into_inner()),
                Source::Early(upload) => upload.take(),
                Source::Over | Source::Served(_) => None,
            };
            if let Some(connection) = connection.filter(|_| !matches!(frame, Some(Err(_)))) {
                connection.finish();
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.source, Source::Over)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

// === impl Upload ===

impl Upload {
    pub(super) fn new(connection: Box<dyn Received>) -> Self {
        Self(Arc::new(Mutex::new(Some(connection))))
    }

    /// Sends what there is to send. The caller must not hold the lock of the request's connection.
    pub(super) fn poll(&self, cx: &mut Context<'_>) {
        if let Some(connection) = self.0.lock().as_mut() {
            connection.poll_upload(cx);
        }
    }

    fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Polled> {
        match self.0.lock().as_mut() {
            Some(connection) => connection.poll_body(cx),
            None => Poll::Ready(Polled::error(BodyError::Abandoned)),
        }
    }

    fn take(&self) -> Option<Box<dyn Received>> {
        self.0.lock().take()
    }
}

// === impl Source ===

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Over => f.write_str("Over"),
            Self::Served(exchange) => exchange.fmt(f),
            Self::Received(_) => f.write_str("Received"),
            Self::Early(_) => f.write_str("Early"),
        }
    }
}
