//! Who speaks first, where nothing says what a port speaks.
//!
//! Decides when the server is opened although its client has said nothing, which one of the two is heard first, and what
//! that means: a server that speaks first is relayed, a client that speaks HTTP is served as such, however late. It must never
//! keep either waiting for the other's word, and never pass on a byte before it is known whose. Called by `outbound`, and
//! by `inbound` for what is not HTTP by its ALPN.

use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::context::Worker;
use super::fault::Fault;
use super::sniff::{self, Sniffed, Tell};
use crate::detect::{self, Detection};
use crate::drain;
use crate::state::First;
use crate::telemetry::Reason;
use crate::telemetry::metrics::{DetectResult, EarlyOpen};

/// What most clients that speak first need at most until they do.
const HEAD_START: Duration = Duration::from_millis(20);

/// The same where clients were seen to speak first: some servers count, and some block, who connects and says nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is made room for to hear a server.
const GREETING: usize = 512;

/// How long a client may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    /// Until its server is opened.
    pub wait: Duration,
    /// After that has failed, to say that it speaks HTTP and be answered in HTTP.
    pub chance: Duration,
    /// Whether servers were seen to speak first: then one is opened even for a client that has ended what it says.
    pub greeted: bool,
}

/// Who was heard, and what was read to find out.
#[derive(Debug)]
pub(super) struct Heard<S, C> {
    pub sniffed: Sniffed,
    /// What is to be remembered of the port.
    pub first: Option<First>,
    /// Whether the server was opened before the client had spoken.
    pub early: Option<EarlyOpen>,
    /// The server, where it was opened and its bytes are to be relayed; `None`: it is not open (any more).
    pub server: Option<Result<Opened<S, C>, Fault>>,
}

/// A server's stream, with what has been read of it.
#[derive(Debug)]
pub(super) struct Opened<S, C> {
    pub stream: S,
    pub said: Bytes,
    pub context: C,
}

/// How far the server is.
enum Server<S, C> {
    Closed,
    Opening,
    Open(S, C),
    Failed(Fault),
}

/// Who is to be remembered as the first, if it is certain.
fn remembered(detection: &Detection, result: DetectResult, head: &[u8], said: &[u8]) -> Option<First> {
    match result {
        // It gave up on its client: 408, or an end without a word.
        DetectResult::ServerFirst if said.is_empty() || said.starts_with(b"HTTP/") => None,
        DetectResult::ServerFirst if is_settings(said) => None,
        DetectResult::ServerFirst => Some(First::Server),
        // A proxy always speaks first; what it was given to carry is yet to be heard.
        _ if matches!(detection, Detection::Tls(hello) if hello.is_mesh.is_some()) => None,
        _ if head.is_empty() => None,
        _ => Some(First::Client),
    }
}

/// Whether it is what an HTTP/2 server may say before it has heard its client: a SETTINGS frame that acknowledges nothing
/// (RFC 9113 §3.4, §6.5).
fn is_settings(said: &[u8]) -> bool {
    matches!(said, [0, high, low, 4, 0, 0, 0, 0, 0, ..] if u16::from_be_bytes([*high, *low]) % 6 == 0)
}

/// Listens to the client for as long as `times.wait`; then opens the server by `open`, and listens to both. `tell`: what the
/// client's bytes are; `relayed`: what of them goes to the server that is open; for anything else it is closed; `broke` hears of
/// one that breaks before it says anything. Counts what came of it.
///
/// Where both are silent while the proxy drains, the server is closed and the client given up: [`Sniffed::is_nothing`].
///
/// # Errors
/// When the client's connection breaks.
pub(super) async fn hear<R, S, C>(
    worker: &Worker,
    client: &mut R,
    times: Times,
    tell: Tell,
    relayed: fn(&Detection) -> bool,
    (open, broke): (impl Future<Output = Result<(S, C), Fault>>, fn(C)),
) -> io::Result<Heard<S, C>>
where
    R: AsyncRead + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let started = Instant::now();
    let (rest, drain) = (worker.proxy.settings.detect_timeout, &worker.proxy.drain);
    let heard = race(client, times, (rest, drain), tell, relayed, (open, broke)).await?;
    let Sniffed { detection, result, .. } = &heard.sniffed;
    worker.metrics.detect(*result, sniff::protocol(detection), started.elapsed());
    if let Some(early) = heard.early {
        worker.metrics.opened_early(early);
    }
    Ok(heard)
}

async fn race<R, S, C>(
    client: &mut R,
    times: Times,
    (rest, drain): (Duration, &drain::Watch),
    tell: Tell,
    relayed: fn(&Detection) -> bool,
    (open, broke): (impl Future<Output = Result<(S, C), Fault>>, fn(C)),
) -> io::Result<Heard<S, C>>
where
    R: AsyncRead + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut head, mut said) = (BytesMut::with_capacity(sniff::FIRST_READ), BytesMut::new());
    let mut server = Server::Closed;
    let (mut open, mut drained) = (pin!(open), pin!(sniff::drained(drain, rest)));
    // What is waited for next: the first bytes, the rest of them, or the last chance to say that they are HTTP.
    let (mut timer, mut timed) = (pin!(tokio::time::sleep(times.wait)), true);
    let (detection, result) = loop {
        let begun = !head.is_empty();
        let limit = tokio::select! {
            biased;
            read = sniff::read(client, &mut head, tell) => match read? {
                Some(told) => break told,
                None if begun => continue,
                None => rest,
            },
            opened = &mut open, if matches!(server, Server::Opening) => match opened {
                Ok((stream, context)) => {
                    server = Server::Open(stream, context);
                    continue;
                }
                Err(fault) => {
                    server = Server::Failed(fault);
                    times.chance
                }
            },
            heard = server.hear(&mut said) => match heard {
                // HTTP/2: its client speaks, too.
                Ok(1..) if is_settings(&said) && said.len() < detect::MAX => continue,
                Ok(_) => break (Detection::Opaque, DetectResult::ServerFirst),
                Err(error) => {
                    server.broke(&said, broke);
                    server = Server::Failed(Fault::maybe(Reason::UpstreamReset, error.to_string()));
                    times.chance
                }
            },
            () = &mut timer, if timed => match server {
                Server::Closed if !begun => {
                    (server, timed) = (Server::Opening, false);
                    continue;
                }
                _ => break (Detection::Opaque, DetectResult::Timeout),
            },
            // Who has begun to speak has the rest of its time.
            () = &mut drained, if !begun => break (Detection::Opaque, DetectResult::Drained),
        };
        // Once it has begun to speak, only the rest is waited for.
        if !begun {
            timer.set(tokio::time::sleep(limit));
            timed = true;
        }
    };
    let first = remembered(&detection, result, &head, &said);
    if head.is_empty() && result == DetectResult::Closed && times.greeted && matches!(server, Server::Closed)
    {
        server = Server::Opening;
    }
    let is_relayed = relayed(&detection) && result != DetectResult::Drained;
    let (server, early) = match server {
        Server::Closed => (None, None),
        Server::Failed(fault) => (is_relayed.then_some(Err(fault)), Some(EarlyOpen::Failed)),
        server if !is_relayed => {
            server.close().await;
            (None, Some(EarlyOpen::Unused))
        }
        Server::Open(stream, context) => (Some(Ok((stream, context))), Some(EarlyOpen::Used)),
        Server::Opening => {
            let opened = open.await;
            let early = if opened.is_ok() { EarlyOpen::Used } else { EarlyOpen::Failed };
            (Some(opened), Some(early))
        }
    };
    let said = said.freeze();
    let server = server.map(|opened| opened.map(|(stream, context)| Opened { stream, said, context }));
    Ok(Heard { sniffed: Sniffed { detection, result, head: head.freeze() }, first, early, server })
}

// === impl Times ===

impl Times {
    /// For a connection that was just accepted, by who was seen to speak first there.
    pub(super) fn accepted(first: Option<First>) -> Self {
        let wait = match first {
            None => HEAD_START,
            Some(First::Client) => PATIENCE,
            Some(First::Server) => Duration::ZERO,
        };
        Self { wait, chance: PATIENCE, greeted: first == Some(First::Server) }
    }

    /// As [`Times::accepted`], where another proxy's ClientHello may come too: it must not be answered by a greeting, so
    /// the server is never opened at once.
    pub(super) fn accepted_plain(first: Option<First>) -> Self {
        let times = Self::accepted(first);
        Self { wait: times.wait.max(HEAD_START), ..times }
    }

    /// For a stream of another proxy's, which has waited itself and waits when this one is reset.
    pub(super) fn waited(first: Option<First>) -> Self {
        let wait = if first == Some(First::Client) { PATIENCE } else { Duration::ZERO };
        Self { wait, chance: Duration::ZERO, greeted: first == Some(First::Server) }
    }
}

// === impl Server ===

impl<S: AsyncRead + AsyncWrite + Unpin, C> Server<S, C> {
    /// Reads what it says; never, while it is not open.
    async fn hear(&mut self, said: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Open(stream, _) => {
                said.reserve(GREETING);
                stream.read_buf(said).await
            }
            Self::Closed | Self::Opening | Self::Failed(_) => std::future::pending().await,
        }
    }

    fn broke(self, said: &[u8], broke: fn(C)) {
        if let Self::Open(_, context) = self
            && said.is_empty()
        {
            broke(context);
        }
    }

    /// Ends it in order: nothing was cut, nothing was asked.
    async fn close(self) {
        if let Self::Open(mut stream, _) = self {
            // Gone is as good as ended.
            drop(stream.shutdown().await);
        }
    }
}

#[cfg(test)]
mod tests;
