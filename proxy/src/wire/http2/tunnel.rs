//! A stream that CONNECT has made a tunnel of (RFC 9113 §8.5, RFC 8441).

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::io::Transport;

/// The stream's bytes, both ways. Dropped before its end was sent, it is reset.
pub struct Tunnel {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Received and not yet read.
    read: Bytes,
    ended: bool,
    /// Held for as long as the stream lasts.
    _place: Box<dyn Send>,
}

/// The tunnel, once the answer says that there is one. In the extensions of the request of a client, and of the response of a
/// server.
#[derive(Clone, Debug)]
pub struct OnTunnel(Arc<Mutex<Option<oneshot::Receiver<Tunnel>>>>);

// === impl OnTunnel ===

impl OnTunnel {
    /// And what gives it.
    pub(super) fn new() -> (oneshot::Sender<Tunnel>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(Arc::new(Mutex::new(Some(receiver)))))
    }

    /// The tunnel; the first who asks gets it. `None`: the stream stayed HTTP.
    pub async fn tunnel(self) -> Option<Tunnel> {
        let receiver = self.0.lock().take()?;
        receiver.await.ok()
    }
}

// === impl Tunnel ===

impl Tunnel {
    /// `place` is dropped with it.
    pub(super) fn new(send: SendStream<Bytes>, receive: RecvStream, place: impl Send + 'static) -> Self {
        Self { send, receive, read: Bytes::new(), ended: false, _place: Box::new(place) }
    }
}

impl Transport for Tunnel {}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("stream", &self.receive.stream_id()).finish_non_exhaustive()
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.read.is_empty() {
            match ready!(this.receive.poll_data(cx)) {
                Some(Ok(data)) => this.read = data,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = this.read.len().min(buf.remaining());
        buf.put_slice(&this.read[..count]);
        this.read.advance(count);
        // Fails when the stream is over, and then it does not matter.
        drop(this.receive.flow_control().release_capacity(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.send.reserve_capacity(buf.len());
        while this.send.capacity() == 0 {
            match ready!(this.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let count = this.send.capacity().min(buf.len());
        this.send.send_data(Bytes::copy_from_slice(&buf[..count]), false).map_err(broken)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task writes.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.ended, true) {
            this.send.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
