//! A TLS connection's bytes, by rustls's unbuffered interface.
//!
//! Decides only where bytes wait. It must never keep a buffer for a connection that has nothing to say: records are read and
//! written by way of buffers that the thread's connections share, and a connection keeps only the part of a record that has come, what
//! its reader has not taken and what its socket has not. Who the peer is, every key and every record are rustls's to judge. Called by
//! the room `tls`, which is where peers are known.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection over `S` whose handshake is over.
pub struct TlsStream<S> {
    io: S,
    session: Session,
    /// The part of a record that has come; during the handshake, what rustls still needs of it.
    incoming: Vec<u8>,
    /// Decrypted and not taken by the reader yet: `plain[taken..]`.
    plain: Vec<u8>,
    taken: usize,
    /// Records that the socket has not taken yet: `outgoing[sent..]`.
    outgoing: Vec<u8>,
    sent: usize,
    /// The peer has said that nothing more will come.
    ended: bool,
    /// We have said so.
    closed: bool,
}

enum Session {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What the threads' connections share.
struct Shared {
    /// Records as they are read.
    read: Vec<u8>,
    /// What is gathered of several slices.
    gathered: Vec<u8>,
    /// Records as they are written.
    written: Vec<u8>,
}

/// The longest record (RFC 8446 §5.2).
const RECORD: usize = 5 + 16 * 1024 + 256;
/// What is read or written at once: some records, so that a body costs few system calls.
const CHUNK: usize = 64 * 1024;
/// The most that one carries.
const MAX_FRAGMENT: usize = 16 * 1024;
/// Room for messages of rustls's own: a key update, a close.
const SPARE: usize = 256;
/// Header, content type and tag of a record of TLS 1.3 (RFC 8446 §5.2).
const OVERHEAD: usize = 5 + 1 + 16;

thread_local! {
    static SHARED: RefCell<Shared> = const {
        RefCell::new(Shared { read: Vec::new(), gathered: Vec::new(), written: Vec::new() })
    };
}

/// What a look at the session came to.
enum Next {
    /// Something was handled: look again.
    Again,
    /// There is nothing more in what has come.
    Read,
}

// === impl Session ===

impl Session {
    fn common(&self) -> &CommonState {
        match self {
            Self::Client(client) => client,
            Self::Server(server) => server,
        }
    }

    /// Handles what is next in `incoming`: says how much of its beginning is done with. Decrypted bytes go to `plain`, messages
    /// of rustls's own to `outgoing`.
    fn step(
        &mut self,
        incoming: &mut [u8],
        plain: &mut dyn FnMut(&[u8]),
        outgoing: &mut Vec<u8>,
        ended: &mut bool,
    ) -> (usize, Result<Next, rustls::Error>) {
        match self {
            Self::Client(client) => step(client.process_tls_records(incoming), plain, outgoing, ended),
            Self::Server(server) => step(server.process_tls_records(incoming), plain, outgoing, ended),
        }
    }

    /// Handles all of `incoming`. After an error, `outgoing` ends with the alert that tells the peer.
    fn process(
        &mut self,
        incoming: &mut [u8],
        plain: &mut dyn FnMut(&[u8]),
        outgoing: &mut Vec<u8>,
        ended: &mut bool,
    ) -> (usize, Result<(), rustls::Error>) {
        let mut done = 0;
        loop {
            let (discard, next) = self.step(&mut incoming[done..], plain, outgoing, ended);
            done += discard;
            match next {
                Ok(Next::Again) => {}
                Ok(Next::Read) => return (done, Ok(())),
                Err(error) => {
                    // Not once more than there are alerts: a record that was refused must not be looked at again.
                    while self.common().wants_write() {
                        drop(self.step(&mut incoming[done..], plain, outgoing, ended));
                    }
                    return (done, Err(error));
                }
            }
        }
    }

    /// Puts `bytes` into records in `space`, or the close; says how much of `space` they took.
    fn seal(&mut self, incoming: &mut [u8], bytes: Option<&[u8]>, space: &mut [u8]) -> io::Result<usize> {
        let mut used = 0;
        loop {
            let space = &mut space[used..];
            let (more, done) = match self {
                Self::Client(client) => seal(client.process_tls_records(incoming), bytes, space)?,
                Self::Server(server) => seal(server.process_tls_records(incoming), bytes, space)?,
            };
            used += more;
            if done {
                return Ok(used);
            }
        }
    }
}

fn step<Data>(
    UnbufferedStatus { mut discard, state, .. }: UnbufferedStatus<'_, '_, Data>,
    plain: &mut dyn FnMut(&[u8]),
    outgoing: &mut Vec<u8>,
    ended: &mut bool,
) -> (usize, Result<Next, rustls::Error>) {
    match state {
        Err(error) => return (discard, Err(error)),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => {
                        discard += record.discard;
                        plain(record.payload);
                    }
                    Err(error) => return (discard, Err(error)),
                }
            }
        }
        Ok(ConnectionState::EncodeTlsData(mut message)) => {
            let start = outgoing.len();
            // Without space it says how much it needs.
            if let Err(EncodeError::InsufficientSize(needs)) = message.encode(&mut []) {
                outgoing.resize(start + needs.required_size, 0);
                if let Err(error) = message.encode(&mut outgoing[start..]) {
                    return (discard, Err(rustls::Error::General(error.to_string())));
                }
            }
        }
        Ok(ConnectionState::TransmitTlsData(message)) => message.done(),
        Ok(ConnectionState::PeerClosed) => *ended = true,
        Ok(_) => return (discard, Ok(Next::Read)),
    }
    (discard, Ok(Next::Again))
}

/// How much was written, and whether `bytes` were among it.
fn seal<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    bytes: Option<&[u8]>,
    space: &mut [u8],
) -> io::Result<(usize, bool)> {
    match status.state.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
        ConnectionState::WriteTraffic(mut traffic) => {
            let sealed = match bytes {
                Some(bytes) => traffic.encrypt(bytes, space),
                None => traffic.queue_close_notify(space),
            };
            Ok((sealed.map_err(io::Error::other)?, true))
        }
        // A key update, which must come before what is under the new key.
        ConnectionState::EncodeTlsData(mut message) => {
            Ok((message.encode(space).map_err(io::Error::other)?, false))
        }
        ConnectionState::TransmitTlsData(message) => {
            message.done();
            Ok((0, false))
        }
        _ => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

// === impl TlsStream ===

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Opens TLS as a client.
    ///
    /// # Errors
    /// When either side refuses the other; the cause is a [`rustls::Error`].
    pub async fn connect(config: Arc<ClientConfig>, name: ServerName<'static>, io: S) -> io::Result<Self> {
        let session = UnbufferedClientConnection::new(config, name).map_err(io::Error::other)?;
        Self::handshake(Session::Client(session), io).await
    }

    /// Takes TLS that a client opens.
    ///
    /// # Errors
    /// As [`TlsStream::connect`].
    pub async fn accept(config: Arc<ServerConfig>, io: S) -> io::Result<Self> {
        let session = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        Self::handshake(Session::Server(session), io).await
    }

    async fn handshake(session: Session, io: S) -> io::Result<Self> {
        let mut stream = Self {
            io,
            session,
            incoming: Vec::new(),
            plain: Vec::new(),
            taken: 0,
            outgoing: Vec::new(),
            sent: 0,
            ended: false,
            closed: false,
        };
        poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let Self { session, incoming, plain, outgoing, ended, .. } = self;
            let (done, result) =
                session.process(incoming, &mut |bytes| plain.extend_from_slice(bytes), outgoing, ended);
            incoming.drain(..done);
            if let Err(error) = result {
                return Poll::Ready(Err(self.fail(cx, error)));
            }
            let sent = self.poll_send(cx)?;
            if !self.session.common().is_handshaking() {
                ready!(sent);
                // What came with the last message may be most of nothing.
                self.incoming.shrink_to_fit();
                return Poll::Ready(Ok(()));
            }
            // Also while the socket takes no more: the peer may be waiting for us to read.
            let (io, incoming) = (&mut self.io, &mut self.incoming);
            let read = SHARED.with_borrow_mut(|Shared { read, .. }| {
                let mut space = ReadBuf::new(at_least(read, RECORD));
                ready!(Pin::new(io).poll_read(cx, &mut space))?;
                incoming.extend_from_slice(space.filled());
                Poll::Ready(io::Result::Ok(space.filled().len()))
            });
            if ready!(read)? == 0 {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the TLS handshake was broken off",
                )));
            }
        }
    }

    pub fn get_ref(&self) -> &S {
        &self.io
    }

    /// The protocol that was agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.session.common().alpn_protocol()
    }

    /// The peer's certificates, the leaf first.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.session.common().peer_certificates().unwrap_or_default()
    }

    /// Nothing works any more; the peer is told why, if that can be done at once.
    fn fail(&mut self, cx: &mut Context<'_>, error: rustls::Error) -> io::Error {
        (self.ended, self.closed) = (true, true);
        self.incoming = Vec::new();
        drop(self.poll_send(cx));
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    /// Gives the socket what it has not taken yet.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outgoing.len() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.outgoing[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                more => self.sent += more,
            }
        }
        (self.outgoing, self.sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// Reads once, and has rustls look at it. Whether there is something for the reader, or the end.
    fn poll_records(
        &mut self,
        cx: &mut Context<'_>,
        space: &mut Vec<u8>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<bool>> {
        let (had, before) = (self.incoming.len(), buf.filled().len());
        let space = at_least(space, had + buf.remaining().clamp(RECORD, CHUNK));
        let mut read = ReadBuf::new(&mut space[had..]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
        let count = read.filled().len();
        if count == 0 {
            let what = "the peer closed the connection without saying so in TLS";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, what)));
        }
        space[..had].copy_from_slice(&self.incoming);
        let Self { session, incoming, plain, outgoing, ended, .. } = self;
        let mut take = |bytes: &[u8]| {
            let (now, later) = bytes.split_at(bytes.len().min(buf.remaining()));
            buf.put_slice(now);
            plain.extend_from_slice(later);
        };
        let (done, result) = session.process(&mut space[..had + count], &mut take, outgoing, ended);
        let rest = &space[done..had + count];
        if rest.is_empty() || *ended {
            *incoming = Vec::new();
        } else {
            incoming.clear();
            incoming.extend_from_slice(rest);
        }
        if let Err(error) = result {
            return Poll::Ready(Err(self.fail(cx, error)));
        }
        // The answer to a key update; whoever writes next learns of an error.
        drop(self.poll_send(cx));
        Poll::Ready(Ok(self.ended || buf.filled().len() > before))
    }

    /// Writes `bytes` by way of `space`: what the socket does not take waits.
    fn write_now(&mut self, cx: &mut Context<'_>, bytes: &[u8], space: &mut Vec<u8>) -> io::Result<()> {
        let space = at_least(space, bytes.len() + (bytes.len() / MAX_FRAGMENT + 1) * OVERHEAD + SPARE);
        let sealed = self.session.seal(&mut self.incoming, Some(bytes), space)?;
        let mut sent = 0;
        while sent < sealed {
            match Pin::new(&mut self.io).poll_write(cx, &space[sent..sealed])? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(more) => sent += more,
                Poll::Pending => {
                    self.outgoing = space[sent..sealed].to_vec();
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether there may be written now.
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.poll_send(cx)
    }
}

/// The first `length` bytes of `space`, which is made longer where it is too short.
fn at_least(space: &mut Vec<u8>, length: usize) -> &mut [u8] {
    if space.len() < length {
        space.resize(length, 0);
    }
    &mut space[..length]
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.taken < this.plain.len() {
            let count = buf.remaining().min(this.plain.len() - this.taken);
            buf.put_slice(&this.plain[this.taken..this.taken + count]);
            this.taken += count;
            if this.taken == this.plain.len() {
                (this.plain, this.taken) = (Vec::new(), 0);
            }
            return Poll::Ready(Ok(()));
        }
        while !this.ended && buf.remaining() > 0 {
            let read = SHARED.with_borrow_mut(|shared| this.poll_records(cx, &mut shared.read, buf));
            if ready!(read)? {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_writable(cx))?;
        let bytes = &buf[..buf.len().min(CHUNK)];
        if !bytes.is_empty() {
            SHARED.with_borrow_mut(|shared| this.write_now(cx, bytes, &mut shared.written))?;
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [buf] = bufs {
            return self.poll_write(cx, buf);
        }
        let this = self.get_mut();
        ready!(this.poll_writable(cx))?;
        SHARED.with_borrow_mut(|Shared { gathered, written, .. }| {
            gathered.clear();
            for buf in bufs {
                gathered.extend_from_slice(&buf[..buf.len().min(CHUNK - gathered.len())]);
            }
            if !gathered.is_empty() {
                this.write_now(cx, gathered, written)?;
            }
            Poll::Ready(Ok(gathered.len()))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed {
            this.closed = true;
            let mut space = [0; SPARE];
            let sealed = this.session.seal(&mut this.incoming, None, &mut space)?;
            this.outgoing.extend_from_slice(&space[..sealed]);
        }
        ready!(this.poll_send(cx))?;
        match ready!(Pin::new(&mut this.io).poll_shutdown(cx)) {
            // It has gone by itself.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            shut => Poll::Ready(shut),
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("io", &self.io).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
