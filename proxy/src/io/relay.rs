//! Relaying two streams to each other.
//!
//! Decides nothing about what passes. It must never keep a buffer for a stream that has nothing to say: most connections of
//! a mesh are idle, and there may be tens of thousands. What is read is written at once from a buffer that the thread's
//! relays share; only what the other side does not take yet is kept.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Transport;

/// What is taken from one side before it is given to the other: some TLS records, so that a body costs few system calls.
const BUFFER: usize = 64 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into());
}

/// Runs `read` with the buffer that all on this thread share. It must not come here again within.
pub(super) fn with_scratch<R>(read: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| read(scratch))
}

/// The two ends of a relay. Dropped before it is over, they are cut.
struct Relay<A: Transport, B: Transport> {
    client: A,
    server: B,
    over: bool,
}

/// Why a relay came to no end.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct Broken {
    /// The server's side broke, not the client's.
    pub by_server: bool,
    pub source: io::Error,
}

/// The side of a [`Way`] that broke.
#[derive(Debug)]
enum Lost {
    From(io::Error),
    To(io::Error),
}

/// One of the two ways.
#[derive(Debug, Default)]
struct Way {
    /// Read and not taken yet by the other side: `left[taken..]`.
    left: Vec<u8>,
    taken: usize,
    unflushed: bool,
    /// The reader has ended; `over` once the writer has been told.
    ended: bool,
    over: bool,
}

/// Relays both ways, an end as an end, until both sides have ended. Both are reset when one of them breaks, or when this is
/// dropped before.
///
/// # Errors
/// That of the side that broke.
pub fn relay(
    client: impl Transport,
    server: impl Transport,
) -> impl Future<Output = Result<(), Broken>> + Send + 'static {
    // Not an async function, which would keep both streams twice.
    let mut relay = Relay { client, server, over: false };
    let (mut up, mut down) = (Way::default(), Way::default());
    poll_fn(move |cx| {
        let Relay { client, server, over } = &mut relay;
        let up = up.poll(client, server, cx).map_err(|lost| lost.of(false))?;
        let down = down.poll(server, client, cx).map_err(|lost| lost.of(true))?;
        *over = up.is_ready() && down.is_ready();
        if *over { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
}

// === impl Relay ===

impl<A: Transport, B: Transport> Drop for Relay<A, B> {
    fn drop(&mut self) {
        if !self.over {
            self.client.abort();
            self.server.abort();
        }
    }
}

// === impl Lost ===

impl Lost {
    /// `down`: on the way from the server to the client.
    fn of(self, down: bool) -> Broken {
        match self {
            Self::From(source) => Broken { by_server: down, source },
            Self::To(source) => Broken { by_server: !down, source },
        }
    }
}

// === impl Way ===

impl Way {
    /// Ready once the end of `from` has been passed on to `to`.
    fn poll(
        &mut self,
        from: &mut impl Transport,
        to: &mut impl Transport,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Lost>> {
        while !self.over {
            if !self.left.is_empty() {
                ready!(self.poll_rest(to, cx)).map_err(Lost::To)?;
            } else if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Lost::To)?;
                self.over = true;
            } else if with_scratch(|scratch| self.poll_fresh(from, to, scratch, cx))?.is_pending() {
                // Nothing to read: what was written must not wait in a buffer of the writer's.
                if self.unflushed {
                    ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Lost::To)?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes it as far as it is taken.
    fn poll_fresh(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Lost>> {
        let mut read = ReadBuf::new(scratch);
        ready!(Pin::new(from).poll_read(cx, &mut read)).map_err(Lost::From)?;
        let read = read.filled();
        if read.is_empty() {
            self.ended = true;
            return Poll::Ready(Ok(()));
        }
        let mut written = 0;
        while written < read.len() {
            match Pin::new(&mut *to).poll_write(cx, &read[written..]).map_err(Lost::To)? {
                Poll::Ready(0) => return Poll::Ready(Err(Lost::To(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(more) => written += more,
                Poll::Pending => {
                    self.left = read[written..].to_vec();
                    break;
                }
            }
        }
        self.unflushed = true;
        Poll::Ready(Ok(()))
    }

    /// Writes what is left, and gives its memory back.
    fn poll_rest(
        &mut self,
        to: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.taken < self.left.len() {
            match ready!(Pin::new(&mut *to).poll_write(cx, &self.left[self.taken..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                more => self.taken += more,
            }
        }
        (self.left, self.taken) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// Both far ends, and the relay between them.
    fn relayed(buffer: usize) -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<Result<(), Broken>>) {
        let ((client, near), (far, server)) = (duplex(buffer), duplex(buffer));
        (client, server, tokio::spawn(relay(near, far)))
    }

    #[tokio::test]
    async fn an_end_is_passed_on_and_the_other_way_goes_on() {
        let (mut client, mut server, relay) = relayed(64);
        client.write_all(b"ask").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = Vec::new();
        server.read_to_end(&mut asked).await.unwrap();
        assert_eq!(asked, b"ask");
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answered = Vec::new();
        client.read_to_end(&mut answered).await.unwrap();
        assert_eq!(answered, b"answer");
        relay.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_a_slow_reader_does_not_take_waits_in_order() {
        let (client, server, relay) = relayed(17);
        let sent: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        let (mut client_reads, mut client_writes) = tokio::io::split(client);
        let (mut server_reads, mut server_writes) = tokio::io::split(server);
        let both = tokio::spawn({
            let sent = sent.clone();
            async move {
                let (up, down) = tokio::join!(client_writes.write_all(&sent), server_writes.write_all(&sent));
                up.and(down).unwrap();
                client_writes.shutdown().await.unwrap();
                server_writes.shutdown().await.unwrap();
            }
        });
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let (first, second) =
            tokio::join!(server_reads.read_to_end(&mut up), client_reads.read_to_end(&mut down));
        first.and(second).unwrap();
        assert!(up == sent && down == sent);
        both.await.unwrap();
        relay.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_writer_that_is_gone_is_an_error() {
        let (mut client, server, relay) = relayed(64);
        drop(server);
        let _ = client.write_all(b"ask").await;
        client.shutdown().await.unwrap();
        let broken = relay.await.unwrap().unwrap_err();
        assert_eq!((broken.by_server, broken.source.kind()), (true, io::ErrorKind::BrokenPipe));
    }

    #[tokio::test]
    async fn a_client_that_is_gone_is_not_its_servers_fault() {
        let (client, mut server, relay) = relayed(64);
        drop(client);
        let _ = server.write_all(b"answer").await;
        server.shutdown().await.unwrap();
        assert!(!relay.await.unwrap().unwrap_err().by_server);
    }
}
