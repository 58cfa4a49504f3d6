//! Connections that stop being HTTP: upgrades (RFC 9110 §7.8) and CONNECT (§9.3.6).
//!
//! Decides nothing; hands the connection over with what was already read from it. Called by whoever relays the two sides.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::incoming::Exchange;
use crate::io::Transport;

/// A connection that is no longer HTTP.
pub struct Upgraded {
    io: Box<dyn Transport>,
    read: BytesMut,
}

/// The server's side of a connection, once it is no longer HTTP; `None`: it stayed HTTP.
#[derive(Debug)]
pub struct OnUpgrade(pub(super) Exchange);

/// The client's side of a connection that is no longer HTTP. In the extensions of the response that says so.
#[derive(Clone, Debug)]
pub struct Switched(Arc<Mutex<Option<Upgraded>>>);

impl Transport for tokio::io::DuplexStream {}

// === impl OnUpgrade ===

impl Future for OnUpgrade {
    type Output = Option<Upgraded>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_upgrade(cx)
    }
}

// === impl Switched ===

impl Switched {
    pub(super) fn new(upgraded: Upgraded) -> Self {
        Self(Arc::new(Mutex::new(Some(upgraded))))
    }

    /// The connection; the first who asks gets it.
    pub fn take(&self) -> Option<Upgraded> {
        self.0.lock().take()
    }
}

// === impl Upgraded ===

impl Upgraded {
    pub(super) fn new(io: impl Transport, read: BytesMut) -> Self {
        Self { io: Box::new(io), read }
    }
}

impl Transport for Upgraded {
    fn abort(&mut self) {
        self.io.abort();
    }
}

impl fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgraded").field("read", &self.read.len()).finish_non_exhaustive()
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let n = self.read.len().min(buf.remaining());
        buf.put_slice(self.read.get(..n).unwrap_or_default());
        self.read.advance(n);
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
