//! Many byte streams on one connection between two proxies (`tulle-streams`).
//!
//! One TLS connection then serves many HTTP/1 connections that are busy at the same time: what they have to say in one turn
//! of the worker leaves in one record and one system call, and comes so. Each stream carries exactly the bytes that a
//! connection of its own would, so nothing of what applications see can differ.
//!
//! A frame is its payload's length (2 bytes), its kind (1), its stream (4, all big-endian), and the payload:
//!
//! | kind | payload | meaning |
//! | --- | --- | --- |
//! | 0 | bytes | data; the first for a stream, which has none, opens it |
//! | 1 | | the sender's end of the stream |
//! | 2 | | the sender has no use for the stream any more: what is missing will not come, nothing more is read |
//! | 3 | 4 bytes | so many more bytes may be sent on the stream |
//! | 4 | | no new stream, please: the sender drains |
//! | 4 | 4 bytes | it has looked at no stream after that number, and will not: it ends the connection with the last of those up to there |
//!
//! The side that dialled opens streams, under ascending numbers. On each, either side may have [`WINDOW`] bytes under way
//! that were not granted anew, so that a reader who is slow delays nobody else; writers of much take turns, and those of
//! little do not wait for them. A stream is over for one side once it has let go of it and has the other's end (kind 1 or
//! 2), and each side sends one: so neither ever has more than [`MAX_STREAMS`]. `state` decides this and does no I/O; the [`Driver`] reads and writes. The end of the connection is a
//! reset of all its streams. Called by `endpoint` and `forward`.

mod state;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::state::State;
use super::Transport;

/// Bytes under way on a stream, at most, in either direction.
pub const WINDOW: u32 = 64 * 1024;
/// Streams on a connection, at most.
pub const MAX_STREAMS: usize = 256;

/// The right to open streams on a connection. Once it is dropped, the connection ends with its last stream.
#[derive(Debug)]
pub struct Opener(Arc<Mutex<State>>);

/// What reads and writes the connection. Nothing moves on its streams unless it is polled; dropped, it resets them.
#[derive(Debug)]
pub struct Driver<I: Transport> {
    io: I,
    state: Arc<Mutex<State>>,
    /// The beginning of a frame whose rest has not come.
    partial: Vec<u8>,
    /// What is being written: `writing[written..]`.
    writing: Vec<u8>,
    written: usize,
    unflushed: bool,
}

/// One of the streams. Dropped before its end, it is reset.
#[derive(Debug)]
pub struct Stream {
    state: Arc<Mutex<State>>,
    id: u32,
}

/// The peer was going when the stream was opened, and has not looked at it: what was sent on it provably was not processed.
#[derive(Debug, thiserror::Error)]
#[error("the other proxy was going, and has not looked at the stream")]
pub struct Unseen;

/// Whether that is what an error comes from.
pub fn is_unseen(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        if error.is::<Unseen>() {
            return true;
        }
        // An io::Error's `source` is its inner error's source: the inner error itself must be asked for.
        source = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// The connection's dialling side.
pub fn dialled<I: Transport>(io: I) -> (Opener, Driver<I>) {
    let driver = Driver::new(io, State::new(true));
    (Opener(Arc::clone(&driver.state)), driver)
}

/// The connection's accepting side.
pub fn accepted<I: Transport>(io: I) -> Driver<I> {
    Driver::new(io, State::new(false))
}

// === impl Opener ===

impl Opener {
    /// A new stream; `None` when there may be no more on this connection, now or ever.
    pub fn open(&self) -> Option<Stream> {
        let id = self.0.lock().open()?;
        Some(Stream { state: Arc::clone(&self.0), id })
    }

    /// Whether it can ever have new streams.
    pub fn is_open(&self) -> bool {
        self.0.lock().is_open()
    }

    /// Whether there is no stream.
    pub fn is_idle(&self) -> bool {
        self.0.lock().is_idle()
    }

    /// Whether nobody here has a stream; the peer may not have let go of all yet.
    pub fn is_unused(&self) -> bool {
        self.0.lock().is_unused()
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.0.lock().finish();
    }
}

// === impl Driver ===

impl<I: Transport> Driver<I> {
    fn new(io: I, state: State) -> Self {
        let state = Arc::new(Mutex::new(state));
        Self { io, state, partial: Vec::new(), writing: Vec::new(), written: 0, unflushed: false }
    }

    /// Reads and writes until the peer opens a stream; `None` at the connection's orderly end.
    ///
    /// # Errors
    /// What broke the connection; its streams have learnt of it.
    pub async fn next(&mut self) -> io::Result<Option<Stream>> {
        poll_fn(|cx| self.poll_next(cx)).await.map_err(|error| self.state.lock().fail(error))
    }

    /// Asks the peer to open no more streams.
    pub fn go_away(&self) {
        self.state.lock().go_away();
    }

    /// Ends the connection once there is no stream left. The peer's streams that come later are not looked at, and it is told so.
    pub fn finish(&self) {
        self.state.lock().finish();
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Stream>>> {
        loop {
            let written = match self.poll_write(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.why(error, cx))),
                Poll::Ready(Ok(())) => Poll::Ready(()),
                Poll::Pending => Poll::Pending,
            };
            let (opened, over) = {
                let mut state = self.state.lock();
                state.driven_by(cx.waker());
                (state.accept(), state.is_over())
            };
            if let Some(id) = opened {
                return Poll::Ready(Ok(Some(Stream { state: Arc::clone(&self.state), id })));
            }
            if over {
                ready!(written);
                ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
                return Poll::Ready(Ok(None));
            }
            if ready!(self.poll_read(cx))? == 0 {
                // In order only if there was nothing that it could cut.
                let mut state = self.state.lock();
                let ended = || io::ErrorKind::UnexpectedEof.into();
                if !state.is_idle() {
                    return Poll::Ready(Err(ended()));
                }
                let _ = state.fail(ended());
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// What broke the connection: what the peer had to say, its alert perhaps, tells more than a failed write.
    fn why(&mut self, write: io::Error, cx: &mut Context<'_>) -> io::Error {
        loop {
            match self.poll_read(cx) {
                Poll::Ready(Err(read)) => return read,
                Poll::Ready(Ok(0)) | Poll::Pending => return write,
                Poll::Ready(Ok(_)) => {}
            }
        }
    }

    /// Reads once, and gives the streams what came.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        super::relay::with_scratch(|scratch| {
            let mut read = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            let read = read.filled();
            let mut state = self.state.lock();
            if self.partial.is_empty() {
                let taken = state.receive(read)?;
                self.partial.extend_from_slice(&read[taken..]);
            } else {
                self.partial.extend_from_slice(read);
                let taken = state.receive(&self.partial)?;
                self.partial.drain(..taken);
            }
            if self.partial.is_empty() {
                self.partial = Vec::new();
            }
            Poll::Ready(Ok(read.len()))
        })
    }

    /// Writes what there is to be written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.written == self.writing.len() {
                self.state.lock().take_out(&mut self.writing);
                self.written = 0;
                if self.writing.is_empty() {
                    break;
                }
            }
            let rest = &self.writing[self.written..];
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: Transport> Drop for Driver<I> {
    fn drop(&mut self) {
        let _ = self.state.lock().fail(io::ErrorKind::ConnectionAborted.into());
    }
}

// === impl Stream ===

impl Stream {
    /// Lets the peer see that what was sent is not all.
    pub(super) fn reset(&self) {
        self.state.lock().reset(self.id);
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.state.lock().poll_read(self.id, cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.state.lock().poll_write(self.id, cx, buf)
    }

    /// What is written leaves with the connection's next write.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.lock().end(self.id);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.state.lock().let_go(self.id);
    }
}

impl Transport for Stream {
    fn abort(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests;
