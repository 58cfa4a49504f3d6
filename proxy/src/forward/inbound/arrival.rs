//! What has come, from the mesh or from outside it: whose TLS it is, who the peer is, what is spoken.
//!
//! Decides by the connection's first bytes, by what its port is declared to speak, and between proxies by the name that the peer gives the protocol. Another
//! proxy's TLS is terminated here ([`terminate`]), any other left as it is. Whatever arrives is registered with policy, and nothing is opened
//! before that lets it in; where nothing says what a port speaks, the application is opened while its client is silent ([`listen`]). Whoever says nothing
//! where he must speak, or does not prove who he is, ends here. Called by `inbound`.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::HeaderValue;
use tokio::io::AsyncRead;
use tokio::net::TcpStream;
use tulle_certs::{Alpn, SpiffeId};

use super::{open, registered};
use crate::config::ClientCert;
use crate::detect::{self, Detection};
use crate::endpoint::Endpoint;
use crate::forward::context::Worker;
use crate::forward::fault::Fault;
use crate::forward::first::{self, Opened, Times};
use crate::forward::headers;
use crate::forward::record::ConnectionRecord;
use crate::forward::sniff::{self, Sniffed, Tell};
use crate::io::{Io, Replay};
use crate::policy::{self, Open, PortPolicy};
use crate::state::{First, Mode, Protocol};
use crate::telemetry::Reason;
use crate::telemetry::metrics::{DetectResult, Direction};
use crate::tls;
use crate::wire::Framing;

/// Where a connection comes from and goes to.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) client: SocketAddr,
    /// When it was accepted.
    pub(super) at: Instant,
    pub(super) application: Arc<Endpoint>,
    /// That which the client dialled, by which policy is chosen.
    pub(super) port: u16,
    pub(super) policy: PortPolicy,
    /// What the application is told of who the client has proven to be, where it is to be told.
    pub(super) proven: OnceLock<HeaderValue>,
}

/// A stream whose protection is known, registered with policy, and what it seems to carry.
pub(super) struct Arrived {
    pub(super) io: Io,
    pub(super) guard: policy::Guard,
    pub(super) framing: Option<Framing>,
    pub(super) detected: DetectResult,
    /// The application, where it was opened to find out; then the connection has been judged.
    pub(super) server: Option<Result<Io, Fault>>,
    /// It carries many streams, each of which is framed so.
    pub(super) is_shared: bool,
}

/// What was heard on a stream, and the application if that was opened to find out.
struct Heard {
    sniffed: Sniffed,
    server: Option<Result<Io, Fault>>,
}

/// Reads as far as is needed to know how the connection is protected and framed; `None` when it is over already.
pub(super) async fn arrive(worker: &Worker, mut stream: TcpStream, way: &Way) -> Option<Arrived> {
    // A plaintext client of a server that speaks first sends nothing; where only the mesh is let in, or HTTP or TLS is
    // spoken, the client does.
    let patience = match (way.policy.mode, way.policy.protocol) {
        (Mode::Strict, _) | (_, Protocol::Tls) => Some(SILENCE),
        (_, Protocol::Http | Protocol::Http2 | Protocol::Grpc) => {
            Some(worker.proxy.settings.http1.idle_timeout)
        }
        (Mode::Permissive | Mode::Off, Protocol::Tcp | Protocol::Detect) => None,
    };
    let sniffed = match patience {
        Some(patience) => {
            Box::pin(must_speak(worker, &mut stream, way, patience, crate::io::reset_on_drop)).await?
        }
        None => {
            let (Heard { sniffed, server }, guard) = Box::pin(overhear(worker, &mut stream, way)).await?;
            if server.is_some() {
                let io = Io::replay(Replay::new(sniffed.head, stream));
                let (framing, detected) = (None, sniffed.result);
                return Some(Arrived { io, guard, framing, detected, server, is_shared: false });
            }
            sniffed
        }
    };
    if sniffed.is_nothing() {
        return None;
    }
    let Sniffed { detection, result: detected, head } = sniffed;
    let stream = Replay::new(head, stream);
    let (tls, framing) = match detection {
        Detection::Tls(hello) if hello.is_mesh.is_some() => {
            return Box::pin(terminate(worker, stream, way)).await;
        }
        Detection::Tls(_) => (policy::TlsKind::ApplicationTls, None),
        detection => (policy::TlsKind::None, sniff::framing(&detection).filter(|_| !way.is_opaque())),
    };
    let guard = register(worker, way, None, tls);
    let io = Io::replay(stream);
    Some(Arrived { io, guard, framing, detected, server: None, is_shared: false })
}

/// Terminates the mesh's TLS. An opaque port's streams are opaque whatever protocol the peer names, and what a
/// `tulle-tcp` stream carries to another port is told from its bytes: a peer does not choose by which rules it is judged.
async fn terminate(worker: &Worker, stream: Replay<TcpStream>, way: &Way) -> Option<Arrived> {
    let tls::Terminated { mut io, peer, alpn, .. } = handshake(worker, stream, way).await?;
    let guard = register(worker, way, Some(peer), policy::TlsKind::Mesh);
    let detects = way.policy.protocol == Protocol::Detect;
    let framing = match alpn {
        Alpn::H2 => Some(Framing::Http2),
        Alpn::Http1 | Alpn::Streams => Some(Framing::Http1),
        _ => None,
    };
    if way.is_opaque() || framing.is_some() {
        if detects {
            way.saw(worker, First::Client);
        }
        let framing = framing.filter(|_| !way.is_opaque());
        let (detected, is_shared) = (DetectResult::Declared, alpn == Alpn::Streams);
        let io = if framing.is_some() { io.of_a_proxys_exchanges() } else { io };
        return Some(Arrived { io, guard, framing, detected, server: None, is_shared });
    }
    let Heard { sniffed, server } = if detects {
        let times = Times::waited(way.seen(worker));
        let bytes = |detection: &Detection| sniff::framing(detection).is_none();
        listen(worker, &mut io, way, &guard, times, (detect::detect_undeclared, bytes)).await.or_else(
            || {
                io.reset_on_drop();
                None
            },
        )?
    } else {
        let patience = worker.proxy.settings.http1.idle_timeout;
        let sniffed = must_speak(worker, &mut io, way, patience, Io::reset_on_drop).await?;
        Heard { sniffed, server: None }
    };
    if sniffed.is_nothing() && server.is_none() {
        return None;
    }
    let Sniffed { detection, result: detected, head } = sniffed;
    let (io, framing) = (io.rewind(head), sniff::framing(&detection));
    Some(Arrived { io, guard, framing, detected, server, is_shared: false })
}

/// What is said first where a client may come without the mesh's TLS; `None` when it is over.
async fn overhear(worker: &Worker, stream: &mut TcpStream, way: &Way) -> Option<(Heard, policy::Guard)> {
    let guard = register(worker, way, None, policy::TlsKind::None);
    let relayed = |detection: &Detection| matches!(detection, Detection::Opaque);
    let (times, tell): (_, Tell) = match way.is_opaque() {
        // What it speaks is not asked; only whether it is the mesh that calls.
        true => (Times { greeted: true, ..Times::accepted_plain(None) }, detect::detect_tls_alone),
        false => (Times::accepted_plain(way.seen(worker)), detect::detect_undeclared),
    };
    let heard = listen(worker, stream, way, &guard, times, (tell, relayed)).await;
    if heard.is_none() {
        crate::io::reset_on_drop(stream);
    }
    Some((heard?, guard))
}

/// What a client says that speaks first; `None` when it does not, or is over.
async fn must_speak<S>(
    worker: &Worker,
    stream: &mut S,
    way: &Way,
    patience: Duration,
    reset: fn(&S),
) -> Option<Sniffed>
where
    S: AsyncRead + Unpin,
{
    let started = Instant::now();
    let sniffed = sniff::sniff(stream, detect::detect, Some(patience), worker.last_word()).await.ok()?;
    worker.metrics.detect(sniffed.result, sniff::protocol(&sniffed.detection), started.elapsed());
    if sniffed.result == DetectResult::Timeout {
        refuse(worker, way, Reason::DetectTimeout, "the client has not said what it speaks");
        reset(stream);
        return None;
    }
    if sniffed.result == DetectResult::Drained {
        given_up(worker, way, sniffed.head.len());
        return None;
    }
    Some(sniffed)
}

/// What is said first, by the client or by the application, which is opened when the client is silent and policy lets it
/// in; `None` when it is over, and to be reset.
async fn listen<S>(
    worker: &Worker,
    stream: &mut S,
    way: &Way,
    guard: &policy::Guard,
    times: Times,
    (tell, relayed): (Tell, fn(&Detection) -> bool),
) -> Option<Heard>
where
    S: AsyncRead + Unpin,
{
    let open = async { Ok((open(worker, way, guard).await?, ())) };
    let heard = tokio::select! {
        heard = first::hear(worker, stream, times, tell, relayed, (open, drop)) => heard.ok()?,
        () = guard.revoked() => {
            registered(worker, guard, way.client, way.at).cut(worker, guard);
            return None;
        }
    };
    if heard.sniffed.result == DetectResult::Drained {
        // Another proxy learns by the reset that its client was not answered.
        given_up(worker, way, heard.sniffed.head.len());
        return None;
    }
    if let Some(first) = heard.first.filter(|_| way.policy.protocol == Protocol::Detect) {
        way.saw(worker, first);
    }
    let server = heard.server.map(|opened| opened.map(|Opened { stream, said, .. }| stream.rewind(said)));
    Some(Heard { sniffed: heard.sniffed, server })
}

/// Completes the handshake of the mesh's TLS. Whoever leaves before was not refused: another proxy does that whose client
/// was silent, and has spoken HTTP meanwhile.
async fn handshake(worker: &Worker, stream: Replay<TcpStream>, way: &Way) -> Option<tls::Terminated> {
    let started = Instant::now();
    let Some(creds) = worker.proxy.creds.load_full() else {
        refuse(worker, way, Reason::NotReady, "no certificate yet");
        crate::io::reset_on_drop(stream.get_ref());
        return None;
    };
    let accepted = tokio::time::timeout(HANDSHAKE, tls::accept(stream, &creds)).await;
    let (reason, detail) = match accepted {
        Ok(Ok(terminated)) => {
            worker.metrics.handshake(Direction::Inbound, Ok(()), started.elapsed());
            if worker.proxy.settings.client_cert == ClientCert::Set {
                let tls::Terminated { peer, certificate, .. } = &terminated;
                let told = headers::client_cert(creds.id(), peer, certificate);
                // Once for each connection: nothing is there before.
                let _ = told.map(|told| way.proven.set(told));
            }
            return Some(terminated);
        }
        Ok(Err(tls::AcceptError::Failed(error))) if has_left(&error) => return None,
        Ok(Err(error)) => (refusal(&error), error.to_string()),
        Err(_) => (Reason::TlsMalformed, "the handshake was not finished in time".to_owned()),
    };
    worker.metrics.handshake(Direction::Inbound, Err(reason), started.elapsed());
    refuse(worker, way, reason, &detail);
    None
}

pub(super) fn register(
    worker: &Worker,
    way: &Way,
    peer: Option<SpiffeId>,
    tls: policy::TlsKind,
) -> policy::Guard {
    worker.proxy.connections.register(Open {
        port: way.port,
        peer,
        tls,
        client: way.client.ip(),
        outside: None,
    })
}

/// Whether the peer has left, without a word of why.
fn has_left(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

fn refusal(error: &tls::AcceptError) -> Reason {
    match error {
        tls::AcceptError::Refused { refusal, .. } => (*refusal).into(),
        tls::AcceptError::Failed(_) | tls::AcceptError::NoProtocol => Reason::TlsMalformed,
    }
}

/// Tells of a connection that was refused before it was known what it is.
fn refuse(worker: &Worker, way: &Way, reason: Reason, detail: &str) {
    let record = ConnectionRecord::new(worker, Direction::Inbound, way.client, way.at);
    ConnectionRecord { port: way.port, ..record }.refused(reason, detail).write(worker);
}

/// Tells of a client that the proxy waits for no longer, since it drains; it had `said` so many bytes.
fn given_up(worker: &Worker, way: &Way, said: usize) {
    let record = ConnectionRecord::new(worker, Direction::Inbound, way.client, way.at);
    ConnectionRecord { port: way.port, ..record }.given_up(worker, said);
}

/// How long a client that must speak first may be silent, or take for what tells its protocol, before it is given up:
/// whoever never says who it is must not hold on to a place under the limit of connections.
const SILENCE: Duration = Duration::from_secs(30);

/// How long a handshake may take before its peer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

// === impl Way ===

impl Way {
    /// Whether the port's bytes are none of the proxy's business, as is declared.
    fn is_opaque(&self) -> bool {
        matches!(self.policy.protocol, Protocol::Tcp | Protocol::Tls)
    }

    /// Who was last seen to speak first.
    fn seen(&self, worker: &Worker) -> Option<First> {
        worker.proxy.spoken.first(self.application.address)
    }

    /// Remembers who was seen to.
    fn saw(&self, worker: &Worker, first: First) {
        worker.proxy.spoken.saw(self.application.address, first);
    }
}
