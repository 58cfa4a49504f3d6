//! What a connection has read and not yet used, and what it has still to write.
//!
//! Decides how much is read at once, what is copied together and what is written from where it lies. It must never hold
//! more than one piece of a body and a little beside it, so that a slow peer costs no memory, and a connection that waits
//! holds next to nothing. Called by [`super::server`] and [`super::client`].

use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What is read at first goes through the stack, and then to a buffer of its size.
const SCRATCH: usize = 8 * 1024;
/// What is read at once from a connection that carries much.
const MAX_READ: usize = 64 * 1024;
/// A piece of a body up to this size is copied behind what stands before it.
const COPY: usize = 2 * 1024;
/// With this much waiting, nothing more is taken in.
const FULL: usize = 16 * 1024;
/// Space that a waiting connection keeps.
const KEEP: usize = 2 * 1024;

/// Bytes that were read and not used yet.
#[derive(Debug, Default)]
pub(super) struct Input {
    pub(super) buf: BytesMut,
    /// How much to ask for, following what comes.
    next: usize,
    /// The buffer has grown over what a waiting connection keeps.
    large: bool,
    pub(super) eof: bool,
}

/// Bytes to be written: at most one large piece, small ones before and after it.
#[derive(Debug, Default)]
pub(super) struct Output {
    small: Vec<u8>,
    /// What of `small` is written.
    done: usize,
    /// Where in `small` the large piece goes.
    split: usize,
    large: Bytes,
    /// All that was ever written.
    pub(super) written: u64,
    unflushed: bool,
}

// === impl Input ===

impl Input {
    pub(super) fn new(initial: &[u8]) -> Self {
        Self { buf: BytesMut::from(initial), ..Self::default() }
    }

    /// Reads once. Ready with 0: the peer has ended its side.
    pub(super) fn poll_fill<I: AsyncRead + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        let asked = self.next.max(SCRATCH);
        let read = if asked > SCRATCH {
            self.buf.reserve(asked);
            self.large = true;
            let mut space = (&mut self.buf).limit(asked);
            let read = pin!(io.read_buf(&mut space));
            ready!(read.poll(cx))?
        } else {
            let mut space = [const { MaybeUninit::uninit() }; SCRATCH];
            let mut space = ReadBuf::uninit(&mut space);
            ready!(Pin::new(io).poll_read(cx, &mut space))?;
            self.buf.extend_from_slice(space.filled());
            self.large |= self.buf.len() > KEEP;
            space.filled().len()
        };
        self.eof = read == 0;
        if read == asked {
            self.next = (asked * 2).min(MAX_READ);
        } else if read < asked / 4 {
            self.next = asked / 2;
        }
        Poll::Ready(Ok(read))
    }

    /// Nothing is expected for a while.
    pub(super) fn rest(&mut self) {
        if self.large && self.buf.is_empty() {
            self.buf = BytesMut::new();
            self.large = false;
        }
    }
}

// === impl Output ===

impl Output {
    pub(super) fn is_empty(&self) -> bool {
        self.done == self.small.len() && self.large.is_empty()
    }

    /// Whether another piece of a body may be put.
    pub(super) fn has_room(&self) -> bool {
        self.large.is_empty() && self.small.len() - self.done < FULL
    }

    /// Where heads, chunk lines and trailers go.
    pub(super) fn small(&mut self) -> &mut Vec<u8> {
        &mut self.small
    }

    /// Puts a piece of a body; only where there [`is room`](Self::has_room).
    pub(super) fn put(&mut self, data: Bytes) {
        if data.len() <= COPY || !self.large.is_empty() {
            self.small.put_slice(&data);
        } else {
            self.split = self.small.len();
            self.large = data;
        }
    }

    /// Writes all there is.
    pub(super) fn poll_write<I: AsyncWrite + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let written = if self.large.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, self.small.get(self.done..).unwrap_or_default()))?
            } else {
                let split = self.split.max(self.done);
                let all = [
                    IoSlice::new(self.small.get(self.done..split).unwrap_or_default()),
                    IoSlice::new(&self.large),
                    IoSlice::new(self.small.get(split..).unwrap_or_default()),
                ];
                let from = usize::from(all[0].is_empty());
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &all[from..]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        self.written += written as u64;
        if !self.large.is_empty() {
            let before = self.split.saturating_sub(self.done).min(written);
            self.done += before;
            written -= before;
            let of_large = self.large.len().min(written);
            self.large.advance(of_large);
            written -= of_large;
            if self.large.is_empty() {
                // Gives the memory back to where it is read into.
                self.large = Bytes::new();
            }
        }
        self.done += written;
        if self.is_empty() {
            self.small.clear();
            (self.done, self.split) = (0, 0);
        }
    }

    /// Nothing is to be written for a while.
    pub(super) fn rest(&mut self) {
        if self.is_empty() && self.small.capacity() > KEEP {
            self.small = Vec::new();
        }
    }
}
