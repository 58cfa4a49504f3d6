//! Counting what passes through a stream, while it passes.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Transport;

/// Bytes that passed through a [`Metered`] stream. One thread adds them, that of the stream, and any reads them: so it takes no locked
/// instruction.
#[derive(Debug, Default)]
pub struct Meter {
    received: AtomicU64,
    sent: AtomicU64,
    tally: Option<Box<dyn Tally>>,
}

/// Who else counts the bytes that a [`Meter`] does, as they pass and on the same thread.
pub trait Tally: fmt::Debug + Send + Sync {
    /// So many have come.
    fn received(&self, bytes: u64);
    /// So many have gone.
    fn sent(&self, bytes: u64);
}

/// A stream whose bytes a meter counts, if it has one.
#[derive(Debug)]
pub struct Metered<S> {
    pub(super) inner: S,
    pub(super) meter: Option<Arc<Meter>>,
}

// === impl Meter ===

impl Meter {
    /// Tells `tally` too.
    pub fn telling(tally: impl Tally + 'static) -> Self {
        Self { tally: Some(Box::new(tally)), ..Self::default() }
    }

    /// Bytes that have come.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes that have gone.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn add_received(&self, bytes: usize) {
        self.received.store(self.received() + bytes as u64, Ordering::Relaxed);
        if let Some(tally) = &self.tally {
            tally.received(bytes as u64);
        }
    }

    pub(crate) fn add_sent(&self, bytes: usize) {
        self.sent.store(self.sent() + bytes as u64, Ordering::Relaxed);
        if let Some(tally) = &self.tally {
            tally.sent(bytes as u64);
        }
    }
}

// === impl Metered ===

impl<S> Metered<S> {
    /// Counts what passes from now on.
    pub fn new(inner: S, meter: Arc<Meter>) -> Self {
        Self { inner, meter: Some(meter) }
    }

    #[inline]
    fn count_sent(&self, result: &Poll<io::Result<usize>>) {
        if let (Some(meter), Poll::Ready(Ok(n))) = (&self.meter, result) {
            meter.add_sent(*n);
        }
    }
}

impl<S: Transport> Transport for Metered<S> {
    fn abort(&mut self) {
        self.inner.abort();
    }

    fn may_half_close(&self) -> bool {
        self.inner.may_half_close()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Some(meter) = &self.meter {
            meter.add_received(buf.filled().len() - before);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.count_sent(&result);
        result
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    #[inline]
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.count_sent(&result);
        result
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_stream_of_any_kind_is_counted_both_ways_and_one_without_a_meter_is_not() {
        let meter = Arc::<Meter>::default();
        let (one, mut other) = tokio::io::duplex(64);
        let mut metered = Metered::new(one, Arc::clone(&meter));
        other.write_all(b"hello").await.unwrap();
        metered.read_exact(&mut [0; 5]).await.unwrap();
        metered.write_all(b"abc").await.unwrap();
        assert_eq!(metered.write_vectored(&[IoSlice::new(b"de"), IoSlice::new(b"f")]).await.unwrap(), 3);
        assert_eq!((meter.received(), meter.sent()), (5, 6));
        let mut bare = Metered { inner: metered.inner, meter: None };
        bare.write_all(b"more").await.unwrap();
        assert_eq!(meter.sent(), 6);
    }
}
