//! Byte streams: a socket, bare or under TLS, that first replays what was already read from it; and relaying two of them.
//!
//! A leaf: it knows nothing of the rooms above it. What was cut must never look to a peer as if it had ended.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

mod meter;
mod relay;
pub mod resolver;
pub mod streams;
mod tls;

pub use self::meter::{Meter, Metered, Tally};
pub use self::relay::{Broken, relay};
pub use self::tls::TlsStream;

/// Connects. `mark`, where the proxy has one, keeps the kernel's rules from leading the connection back to it.
///
/// # Errors
/// As `connect(2)`; also without CAP_NET_ADMIN, where there is a mark.
pub async fn connect(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    socket.connect(address).await
}

/// Whether a [`connect`] to `ip` has failed so because this process or this host has no descriptor, memory or local port left: that
/// tells nothing of who is there.
pub fn is_exhausted(error: &io::Error, ip: IpAddr) -> bool {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => true,
        // Every local port is taken; or there is no address to come from, as to an IPv6 address where there is none, which is no shortage.
        Some(Errno::ADDRNOTAVAIL) => source(ip).is_ok(),
        _ => false,
    }
}

/// Whether `ip` is an address of this host, or of this network namespace. What is sent there comes from there, as the kernel
/// chooses sources (RFC 6724 §5, rule 1); nothing is sent to find out.
pub fn is_own_address(ip: IpAddr) -> bool {
    source(ip).is_ok_and(|source| source == ip)
}

/// Where what is sent to `ip` comes from.
fn source(ip: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // Connecting a datagram socket only looks up the way; the port is that of `discard`.
    socket.connect((ip, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// A stream that yields `head` before it yields what its inner stream has.
///
/// Detection *reads* the first bytes (peeking would spin on a partial head) and the next stage replays them.
#[derive(Debug)]
pub struct Replay<S> {
    head: Bytes,
    inner: S,
}

/// See [`Io::shared_by_many`].
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// A connection's stream, whatever is underneath.
#[derive(Debug)]
pub struct Io(Box<Metered<Layers>>);

/// Apart, since a stream is handed on from future to future, each of which has room for it.
#[derive(Debug)]
struct Layers {
    head: Bytes,
    inner: Inner,
    /// See [`Io::of_a_proxys_exchanges`].
    is_of_exchanges: bool,
    /// See [`Io::holding`].
    held: Option<Held>,
}

/// Whatever is to be dropped with a connection.
pub type Held = Box<dyn std::any::Any + Send + Sync>;

#[derive(Debug)]
enum Inner {
    Tcp(Replay<TcpStream>),
    Tls(Box<TlsStream<Replay<TcpStream>>>),
    /// One of many on a connection.
    Stream(streams::Stream),
}

/// A byte stream that can be cut.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Has the peer see that what was sent is not all: dropping the stream after this must not look like an orderly end.
    fn abort(&mut self) {}

    /// Whether a peer that has ended its side may still want to hear us.
    fn may_half_close(&self) -> bool {
        true
    }
}

/// Puts what is left of `head` into `buf`; false when nothing is.
fn replay(head: &mut Bytes, buf: &mut ReadBuf<'_>) -> bool {
    if head.is_empty() {
        return false;
    }
    let n = head.len().min(buf.remaining());
    buf.put_slice(&head[..n]);
    head.advance(n);
    if head.is_empty() {
        // Gives the memory back.
        *head = Bytes::new();
    }
    true
}

// === impl Replay ===

impl<S> Replay<S> {
    pub fn new(head: Bytes, inner: S) -> Self {
        Self { head, inner }
    }

    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if replay(&mut self.head, buf) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

// === impl Transport ===

impl Transport for Io {
    fn abort(&mut self) {
        self.reset_on_drop();
    }

    fn may_half_close(&self) -> bool {
        !self.0.inner.is_of_exchanges
    }
}

impl Transport for Box<dyn Transport> {
    fn abort(&mut self) {
        (**self).abort();
    }

    fn may_half_close(&self) -> bool {
        (**self).may_half_close()
    }
}

// === impl Io ===

impl Io {
    pub fn tcp(stream: TcpStream) -> Self {
        Self::replay(Replay::new(Bytes::new(), stream))
    }

    pub fn replay(stream: Replay<TcpStream>) -> Self {
        Self::of(Inner::Tcp(stream))
    }

    pub fn tls(stream: TlsStream<Replay<TcpStream>>) -> Self {
        Self::of(Inner::Tls(Box::new(stream)))
    }

    fn of(inner: Inner) -> Self {
        let layers = Layers { head: Bytes::new(), inner, is_of_exchanges: false, held: None };
        Self(Box::new(Metered { inner: layers, meter: None }))
    }

    pub fn stream(stream: streams::Stream) -> Self {
        Self::of(Inner::Stream(stream)).of_a_proxys_exchanges()
    }

    /// Another proxy sends requests on it, and has no use for one that it has ended its side of: its own client has gone. (Where
    /// it only relays, it passes on what may be waiting.)
    pub fn of_a_proxys_exchanges(mut self) -> Self {
        self.0.inner.is_of_exchanges = true;
        self
    }

    /// Drops `held` when the connection is.
    pub fn holding(mut self, held: Held) -> Self {
        self.0.inner.held = Some(held);
        self
    }

    /// Yields `head` before anything else: bytes that were read from it to see what it carries.
    pub fn rewind(mut self, head: Bytes) -> Self {
        self.0.inner.head = head;
        self
    }

    /// Counts what passes from now on.
    pub fn metered(mut self, meter: Arc<Meter>) -> Self {
        self.0.meter = Some(meter);
        self
    }

    /// Has the kernel break it once nothing that was sent has been acknowledged for [`UNACKNOWLEDGED`]: a host that is gone
    /// must not hold up those who are still to come for as long as it is asked again and again, a quarter of an hour.
    /// Not for connections of one stream, whose peer may have reason not to read.
    pub fn shared_by_many(&self) {
        let socket = match &self.0.inner.inner {
            Inner::Tcp(stream) => stream.get_ref(),
            Inner::Tls(stream) => stream.get_ref().get_ref(),
            Inner::Stream(_) => return,
        };
        // A socket whose peer has already gone refuses options; reading it will tell.
        drop(SockRef::from(socket).set_tcp_user_timeout(Some(UNACKNOWLEDGED)));
    }

    /// What counts what passes.
    pub fn meter(&mut self) -> Arc<Meter> {
        Arc::clone(self.0.meter.get_or_insert_default())
    }

    /// Has the close look like a reset instead of an orderly end.
    pub fn reset_on_drop(&self) {
        match &self.0.inner.inner {
            Inner::Tcp(stream) => reset_on_drop(stream.get_ref()),
            Inner::Tls(stream) => reset_on_drop(stream.get_ref().get_ref()),
            Inner::Stream(stream) => stream.reset(),
        }
    }
}

/// Has the kernel answer the drop of `socket` with a reset.
pub fn reset_on_drop(socket: &TcpStream) {
    // A socket that is already gone cannot be reset either.
    drop(SockRef::from(socket).set_linger(Some(Duration::ZERO)));
}

impl AsyncRead for Io {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, buf)
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    #[inline]
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write_vectored(cx, bufs)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

impl AsyncRead for Layers {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { head, inner, .. } = &mut *self;
        match inner {
            _ if replay(head, buf) => Poll::Ready(Ok(())),
            Inner::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Inner::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
            Inner::Stream(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Layers {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Inner::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
            Inner::Stream(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Inner::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            Inner::Stream(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    #[inline]
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Inner::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            Inner::Stream(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Inner::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
            Inner::Stream(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        match &self.inner {
            Inner::Tcp(stream) => stream.is_write_vectored(),
            Inner::Tls(stream) => stream.is_write_vectored(),
            Inner::Stream(stream) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn what_is_lacking_here_is_told_from_what_is_lacking_there() {
        let of = |errno: Errno, ip: [u8; 4]| is_exhausted(&errno.into(), ip.into());
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL] {
            assert!(of(errno, [127, 0, 0, 1]), "{errno}");
        }
        for errno in [Errno::CONNREFUSED, Errno::CONNRESET, Errno::NETUNREACH, Errno::HOSTUNREACH] {
            assert!(!of(errno, [127, 0, 0, 1]), "{errno}");
        }
        // There is no way there, whatever ports are left.
        assert!(!of(Errno::ADDRNOTAVAIL, [255, 255, 255, 255]));
        assert!(!is_exhausted(&io::ErrorKind::TimedOut.into(), [127, 0, 0, 1].into()));
    }
}
