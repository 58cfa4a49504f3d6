//! From the mesh, or from outside it, to the application.
//!
//! A connection: is it another proxy's TLS, the application's own, or plaintext ([`arrive`])? The mesh's is terminated
//! here ([`terminate`]), and who the peer is known from then on. Where nothing says what the port speaks, the application is
//! opened while its client is silent ([`listen`]). The connection is registered, *then* judged, so that no change of policy
//! slips between; before it is judged, nothing is opened. Opaque bytes are relayed to the application; each HTTP request is judged again and sent
//! ([`Connection::request`]). Nothing is let in before the workload's policy is known: a connection waits for it as long
//! as for any answer of the control plane, then it is refused, in HTTP where it speaks that.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::{Request, Response};
use tokio::io::AsyncRead;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::admit;
use super::again;
use super::context::Worker;
use super::deadline;
use super::exchange::{self, Answer, Fields, Leg, Tunnels};
use super::fault::Fault;
use super::first::{self, Opened, Times};
use super::headers::{self, Said};
use super::in_flight::InFlight;
use super::limited;
use super::opaque::{self, Ended};
use super::record::{ConnectionRecord, Record, Tracked};
use super::sniff::{self, Sniffed, Tell};
use crate::accept::{Accepted, Destination};
use crate::detect::{self, Detection};
use crate::endpoint::{self, Endpoint};
use crate::io::{Io, Meter, Replay, streams};
use crate::policy::{self, Open, PortPolicy};
use crate::route::Requests;
use crate::state::{First, Mode, Peer, Protocol};
use crate::telemetry::Reason;
use crate::telemetry::metrics::{ConnectionLabels, DetectResult, Direction, TlsKind};
use crate::tls;
use crate::wire::{Body, Framing, Processed, h1};
use tulle_certs::{Alpn, Refusal, SpiffeId};

/// One connection to the application, from wherever.
#[derive(Debug)]
struct Connection {
    worker: Arc<Worker>,
    id: u64,
    client: SocketAddr,
    application: Arc<Endpoint>,
    framing: Framing,
    guard: Arc<policy::Guard>,
    tunnels: Tunnels,
}

/// Where a connection comes from and goes to.
#[derive(Clone)]
struct Way {
    client: SocketAddr,
    application: Arc<Endpoint>,
    /// That which the client dialled, by which policy is chosen.
    port: u16,
    policy: PortPolicy,
}

/// A stream whose protection is known, registered with policy, and what it seems to carry.
struct Arrived {
    io: Io,
    guard: policy::Guard,
    framing: Option<Framing>,
    detected: DetectResult,
    /// The application, where it was opened to find out; then the connection has been judged.
    server: Option<Result<Io, Fault>>,
    /// It carries many streams, each of which is framed so.
    is_shared: bool,
}

/// What was heard on a stream, and the application if that was opened to find out.
struct Heard {
    sniffed: Sniffed,
    server: Option<Result<Io, Fault>>,
}

/// Serves one connection to the application until it ends.
pub async fn serve(worker: &Arc<Worker>, accepted: Accepted) {
    let Accepted { stream, client, destination } = accepted;
    let (application, port) = match destination {
        Destination::Application { application, port } => (application, port),
        Destination::Address(address) => (address, address.port()),
        Destination::Service { .. } => return,
    };
    let known = worker.proxy.store.inbound().await.map(|inbound| inbound.port(port));
    // Without a policy it is read only to be refused in its own language, by `judge`.
    let policy = known.unwrap_or(PortPolicy { protocol: Protocol::Detect, mode: Mode::Permissive });
    let policy = PortPolicy { protocol: worker.proxy.settings.protocol(policy.protocol, port), ..policy };
    let application = worker.loose_endpoint(application, &Peer::Plaintext);
    let way = Way { client, application, port, policy };
    let Some(arrived) = arrive(worker, stream, &way).await else { return };
    if arrived.is_shared {
        Box::pin(serve_streams(worker, arrived, way)).await;
    } else {
        let Arrived { io, guard, framing, detected, server, .. } = arrived;
        serve_one(worker, io, way, Arc::new(guard), framing, detected, server).await;
    }
}

/// Serves what arrived, or one of the streams on it.
async fn serve_one(
    worker: &Arc<Worker>,
    io: Io,
    way: Way,
    guard: Arc<policy::Guard>,
    framing: Option<Framing>,
    detected: DetectResult,
    server: Option<Result<Io, Fault>>,
) {
    match framing {
        Some(framing) => {
            let id = worker.proxy.connection_id();
            let (worker, tunnels) = (Arc::clone(worker), Tunnels::default());
            let Way { client, application, .. } = way;
            let connection = Connection { worker, id, client, application, framing, guard, tunnels };
            // Apart, so that the task of an opaque connection is small.
            Box::pin(Arc::new(connection).serve(io)).await;
        }
        None => {
            let server = match server {
                Some(server) => server,
                None => open(worker, &way, &guard).await,
            };
            relay(worker, io, &way, &guard, detected, server).await;
        }
    }
}

/// Serves each stream as a connection of its own, of the same peer, until the client is done; once the drain begins, until
/// those that are left are, and those that the client had begun before it could know.
async fn serve_streams(worker: &Arc<Worker>, arrived: Arrived, way: Way) {
    let Arrived { io, guard, framing, detected, .. } = arrived;
    let peer = guard.open().peer.clone();
    drop(guard);
    io.shared_by_many();
    let (tasks, mut driver) = (TaskTracker::new(), streams::accepted(io));
    let mut draining = pin!(worker.proxy.drain.draining());
    let mut grace = pin!(tokio::time::sleep(DRAIN_GRACE));
    let (mut told, mut finishing) = (false, false);
    loop {
        tokio::select! {
            next = driver.next() => match next {
                Ok(Some(stream)) => {
                    let (worker, way, io) = (Arc::clone(worker), way.clone(), Io::stream(stream));
                    // Registered by itself: what a change of policy has cut stays cut, and no other that is still to come.
                    let guard = Arc::new(register(&worker, &way, peer.clone(), policy::TlsKind::Mesh));
                    tasks.spawn(async move {
                        serve_one(&worker, io, way, guard, framing, detected, None).await;
                    });
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, client = %way.client, "a connection of streams ended");
                    break;
                }
            },
            () = draining.as_mut(), if !told => {
                told = true;
                driver.go_away();
                grace.as_mut().reset(tokio::time::Instant::now() + DRAIN_GRACE);
            }
            () = grace.as_mut(), if told && !finishing => {
                finishing = true;
                driver.finish();
            }
        }
    }
    drop(driver);
    tasks.close();
    tasks.wait().await;
}

/// When draining, how long a stream may still come that was opened before the client could know.
const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// Reads as far as is needed to know how the connection is protected and framed; `None` when it is over already.
async fn arrive(worker: &Worker, mut stream: TcpStream, way: &Way) -> Option<Arrived> {
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
    let Sniffed { detection, result: detected, head } = sniffed;
    if head.is_empty() && detected == DetectResult::Closed {
        return None;
    }
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
    let tls::Terminated { mut io, peer, alpn } = handshake(worker, stream, way.client).await?;
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
    let Sniffed { detection, result: detected, head } = sniffed;
    if head.is_empty() && detected == DetectResult::Closed && server.is_none() {
        return None;
    }
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
    let sniffed = sniff::sniff(stream, detect::detect, Some(patience), &worker.proxy.drain).await.ok()?;
    worker.metrics.detect(sniffed.result, sniff::protocol(&sniffed.detection), started.elapsed());
    if sniffed.result == DetectResult::Timeout {
        refuse(worker, way.client, Reason::DetectTimeout, "the client has not said what it speaks");
        reset(stream);
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
        heard = first::hear(worker, stream, times, tell, relayed, open) => heard.ok()?,
        () = guard.revoked() => {
            registered(worker, guard, way.client).cut(worker, guard);
            return None;
        }
    };
    if let Some(first) = heard.first.filter(|_| way.policy.protocol == Protocol::Detect) {
        way.saw(worker, first);
    }
    let server = heard.server.map(|opened| opened.map(|Opened { stream, said, .. }| stream.rewind(said)));
    Some(Heard { sniffed: heard.sniffed, server })
}

/// Completes the handshake of the mesh's TLS. Whoever leaves before was not refused: another proxy does that whose client
/// was silent, and has spoken HTTP meanwhile.
async fn handshake(
    worker: &Worker,
    stream: Replay<TcpStream>,
    client: SocketAddr,
) -> Option<tls::Terminated> {
    let started = Instant::now();
    let Some(creds) = worker.proxy.creds.load_full() else {
        refuse(worker, client, Reason::NotReady, "no certificate yet");
        crate::io::reset_on_drop(stream.get_ref());
        return None;
    };
    let accepted = tokio::time::timeout(HANDSHAKE, tls::accept(stream, &creds)).await;
    let (reason, detail) = match accepted {
        Ok(Ok(terminated)) => {
            worker.metrics.handshake(Direction::Inbound, Ok(()), started.elapsed());
            return Some(terminated);
        }
        Ok(Err(tls::AcceptError::Failed(error))) if given_up(&error) => return None,
        Ok(Err(error)) => (refusal(&error), error.to_string()),
        Err(_) => (Reason::TlsMalformed, "the handshake was not finished in time".to_owned()),
    };
    worker.metrics.handshake(Direction::Inbound, Err(reason), started.elapsed());
    refuse(worker, client, reason, &detail);
    None
}

fn register(worker: &Worker, way: &Way, peer: Option<SpiffeId>, tls: policy::TlsKind) -> policy::Guard {
    worker.proxy.connections.register(Open {
        port: way.port,
        peer,
        tls,
        client: way.client.ip(),
        outside: None,
    })
}

/// How long a client that must speak first may be silent, or take for what tells its protocol, before it is given up:
/// whoever never says who it is must not hold on to a place under the limit of connections.
const SILENCE: Duration = Duration::from_secs(30);

/// How long a handshake may take before its peer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Whether the peer has left, without a word of why.
fn given_up(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

fn refusal(error: &tls::AcceptError) -> Reason {
    match error {
        tls::AcceptError::Refused { refusal, .. } => match refusal {
            Refusal::NoCertificate => Reason::TlsNoCertificate,
            Refusal::UnknownRoot => Reason::TlsUnknownRoot,
            Refusal::OtherTrustDomain => Reason::TlsOtherTrustDomain,
            Refusal::Expired | Refusal::NotYetValid => Reason::TlsExpired,
            Refusal::WrongIdentity | Refusal::NoSpiffeId | Refusal::SeveralUris => Reason::TlsWrongIdentity,
            Refusal::Malformed | Refusal::BadSignature => Reason::TlsMalformed,
        },
        tls::AcceptError::Failed(_) | tls::AcceptError::NoProtocol => Reason::TlsMalformed,
    }
}

/// Tells of a connection that was refused before it was known what it is.
fn refuse(worker: &Worker, client: SocketAddr, reason: Reason, detail: &str) {
    ConnectionRecord::new(worker, Direction::Inbound, client).refused(reason, detail).write(worker);
}

/// The record of a connection that was registered.
fn registered<'a>(worker: &Worker, guard: &'a policy::Guard, client: SocketAddr) -> ConnectionRecord<'a> {
    let open = guard.open();
    let record = ConnectionRecord::new(worker, Direction::Inbound, client);
    ConnectionRecord { source: open.peer.as_ref(), tls: metrics_tls(open.tls), ..record }
}

fn metrics_tls(tls: policy::TlsKind) -> TlsKind {
    match tls {
        policy::TlsKind::Mesh => TlsKind::Mtls,
        policy::TlsKind::None => TlsKind::None,
        policy::TlsKind::ApplicationTls => TlsKind::App,
    }
}

fn labels(open: &Open) -> ConnectionLabels<'_> {
    ConnectionLabels {
        direction: Direction::Inbound,
        tls: metrics_tls(open.tls),
        peer: open.peer.as_ref().map_or("", |peer| peer.as_str()),
        service: "",
        route: "",
        backend: "",
    }
}

/// A stream to the application for opaque bytes, once policy has let them in.
async fn open(worker: &Worker, way: &Way, guard: &policy::Guard) -> Result<Io, Fault> {
    admit::judge(worker, guard)?;
    let opened = Box::pin(exchange::dial(worker).opaque(&way.application)).await;
    opened.map_err(|error| exchange::connect_fault(&error))
}

/// Relays opaque bytes to the application, if they were let in and it could be reached.
async fn relay(
    worker: &Arc<Worker>,
    io: Io,
    way: &Way,
    guard: &policy::Guard,
    detected: DetectResult,
    server: Result<Io, Fault>,
) {
    let record = ConnectionRecord { detected: Some(detected), ..registered(worker, guard, way.client) };
    let server = match server {
        Ok(server) => server,
        Err(fault) => {
            record.refused(fault.reason, &fault.detail).write(worker);
            return io.reset_on_drop();
        }
    };
    let meter = Arc::new(Meter::default());
    let open = worker.metrics.connections(&labels(guard.open())).open();
    let ended = opaque::relay(io.metered(Arc::clone(&meter)), server, Some(guard)).await;
    let (endpoint, bytes) = (Some(way.application.address), exchange::count(&open, &meter));
    let record = ConnectionRecord { endpoint, bytes, ..record };
    match ended {
        Ended::Revoked => record.cut(worker, guard),
        Ended::Closed | Ended::Reset(_) => record.write(worker),
    }
}

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

// === impl Connection ===

impl Connection {
    async fn serve(self: Arc<Self>, io: Io) {
        let worker = Arc::clone(&self.worker);
        let open = worker.metrics.connections(&labels(self.guard.open())).open();
        let meter = Arc::new(Meter::default());
        let io = io.metered(Arc::clone(&meter));
        let handler = |request| Arc::clone(&self).request(request);
        let refuse = |fault: &Fault| self.record(&mut Request::default()).unread().fault(fault);
        let direction = Direction::Inbound;
        let (mut draining, mut old) = (pin!(worker.proxy.drain.draining()), self.old());
        let drain = poll_fn(|cx| match old.as_mut().map(|old| old.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(()),
            Some(Poll::Pending) | None => draining.as_mut().poll(cx),
        });
        let served = exchange::serve(&worker, direction, self.framing, io, handler, refuse, drain);
        let record = registered(&worker, &self.guard, self.client);
        let closed = tokio::select! {
            biased;
            () = served => false,
            // New requests are denied one by one; what is still under way, a watch say, would go on for hours.
            _ = admit::revoked_for_long(&worker, Some(&self.guard)) => true,
        };
        let cut = self.tunnels.ended().await.is_some() || closed;
        let bytes = exchange::count(&open, &meter);
        if cut {
            let endpoint = Some(self.application.address);
            ConnectionRecord { id: self.id, endpoint, bytes, ..record }.cut(&worker, &self.guard);
        }
    }

    /// When the client is asked to open another connection; a client in the mesh never is, since its proxy sees to that.
    fn old(&self) -> Option<Pin<Box<tokio::time::Sleep>>> {
        let open = self.guard.open();
        let age = match open.peer {
            Some(_) => None,
            None => self.worker.proxy.store.load().inbound.as_ref()?.connection_age(open.port),
        };
        Some(Box::pin(tokio::time::sleep(endpoint::jittered(age?))))
    }

    fn leg(&self, fresh: Option<Instant>) -> Leg<'_> {
        let (endpoint, tunnels, guard) = (&self.application, &self.tunnels, Some(&self.guard));
        Leg { endpoint, framing: self.framing, limit: None, tunnels, fresh, keep: false, guard }
    }

    fn record(&self, request: &mut Request<Body>) -> Box<Record> {
        let mut record = Record::new(&self.worker, Direction::Inbound, self.id, self.client, request);
        record.guard = Some(Arc::clone(&self.guard));
        record.tls = metrics_tls(self.guard.open().tls);
        if let Some(peer) = &self.guard.open().peer {
            record.set_peer(peer.clone());
        }
        record
    }

    /// One request to the application: its whole life.
    async fn request(self: Arc<Self>, mut request: Request<Body>) -> Response<Tracked> {
        let mut record = self.record(&mut request);
        headers::strip_ours(request.headers_mut());
        match self.forward(&mut record, &mut request).await {
            Ok(answer) => record.answer(answer),
            Err(fault) => record.fault(&fault),
        }
    }

    async fn forward(&self, record: &mut Record, request: &mut Request<Body>) -> Result<Answer, Fault> {
        headers::check_host(request)?;
        record.rule = Some(admit::judge(&self.worker, &self.guard)?);
        limited::inbound(&self.worker, record, request, &self.guard)?;
        record.endpoint = Some(self.application.address);
        let deadline =
            deadline::find(&Requests::default(), None, record.started(), record.grpc, request.headers());
        let send = pin!(async {
            let mut fresh = None;
            loop {
                if let Some(deadline) = deadline {
                    deadline.pass_on(request.headers_mut(), Instant::now())?;
                }
                if let Some(answer) = self.attempt(record, request, &mut fresh).await? {
                    return Ok(answer);
                }
            }
        });
        let mut answer = deadline::by(deadline, None, send).await?;
        answer.bounds = deadline::bounds(deadline, None);
        Ok(answer)
    }

    /// `None`: it is to be sent once more; `fresh`: as of a [`Leg`].
    async fn attempt(
        &self,
        record: &mut Record,
        request: &mut Request<Body>,
        fresh: &mut Option<Instant>,
    ) -> Result<Option<Answer>, Fault> {
        record.attempts += 1;
        let asked = self.worker.proxy.now();
        let mut in_flight = InFlight::start(&self.worker, &self.application, asked);
        let mut lent = Fields::default();
        let sent = exchange::send(&self.worker, self.leg(*fresh), &mut *request, &mut lent).await;
        let answered = self.worker.proxy.now();
        record.waited(Duration::from_nanos(answered.saturating_sub(asked)));
        match sent {
            Ok(mut response) => {
                h1::done_with(request);
                in_flight.answered(!response.status().is_server_error(), answered);
                headers::strip_ours(response.headers_mut());
                // The guard is the connection's.
                let (in_flight, said) = (Some(in_flight), Said::Nothing);
                Ok(Some(Answer { response, in_flight, said, bounds: None, guard: None }))
            }
            Err(failed) => {
                in_flight.answered(false, answered);
                match again::replay(&failed, request.method()).filter(|_| failed.whole) {
                    Some(cause) if record.attempts == 1 => {
                        *fresh = again::needs_fresh(&failed, self.framing).then(Instant::now);
                        self.worker.metrics.replayed(cause);
                        lent.give_back(request);
                        Ok(None)
                    }
                    // What the application has refused twice, another proxy would bring it in vain.
                    _ if record.attempts > 1 && failed.fault.reason == Reason::UpstreamReset => {
                        Err(Fault { processed: Processed::Maybe, ..failed.fault })
                    }
                    _ => Err(failed.fault),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
