//! A connection that is heard out though it can no longer be written.
//!
//! A server may have answered and closed with some of what we said unread, which resets the connection. `h2` writes before it reads, and
//! would lose the answer by the write that fails. Here that is told only once all that had come is read. Called by `client`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// See the module.
#[derive(Debug)]
pub(super) struct HeardOut<I> {
    io: I,
    /// Why it cannot be written any more.
    broken: Option<io::Error>,
}

// === impl HeardOut ===

impl<I> HeardOut<I> {
    pub(super) fn new(io: I) -> Self {
        Self { io, broken: None }
    }

    /// Takes what says that the peer is gone for a success: what was sent is lost like what it has not read.
    fn outlive<T>(&mut self, result: io::Result<T>, instead: T) -> io::Result<T> {
        match result {
            Err(error) if is_gone(&error) => {
                self.broken = Some(error);
                Ok(instead)
            }
            result => result,
        }
    }
}

/// Whether such a connection soon is at its end for who reads it, too.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

impl<I: AsyncRead + Unpin> AsyncRead for HeardOut<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        match self.broken.take_if(|_| buf.filled().len() == before && buf.remaining() > 0) {
            Some(error) => Poll::Ready(Err(error)),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for HeardOut<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.broken.is_some() {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        Poll::Ready(self.outlive(written, buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken.is_some() {
            return Poll::Ready(Ok(()));
        }
        let flushed = ready!(Pin::new(&mut self.io).poll_flush(cx));
        Poll::Ready(self.outlive(flushed, ()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = || bufs.iter().map(|buf| buf.len()).sum();
        if self.broken.is_some() {
            return Poll::Ready(Ok(all()));
        }
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs));
        Poll::Ready(self.outlive(written, all()))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What has come, of a connection that the peer has reset.
    struct Reset<'a>(&'a [u8], io::ErrorKind);

    impl AsyncRead for Reset<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Reset<'_> {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(self.1.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(self.1.into()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(self.1.into()))
        }
    }

    #[tokio::test]
    async fn an_answer_is_read_though_nothing_can_be_written_and_then_the_break_is_told() {
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe] {
            let mut io = HeardOut::new(Reset(b"whole", kind));
            io.write_all(b"acknowledged").await.unwrap();
            io.flush().await.unwrap();
            let (mut answer, mut more) = ([0; 5], [0; 5]);
            io.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"whole");
            io.write_all(b"more").await.unwrap();
            assert_eq!(io.read(&mut more).await.unwrap_err().kind(), kind);
        }
        // Who cannot write for another reason may wait for a reader's end for ever.
        let mut io = HeardOut::new(Reset(b"whole", io::ErrorKind::PermissionDenied));
        assert!(io.write_all(b"more").await.is_err());
    }
}
