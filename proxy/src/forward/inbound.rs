//! From the mesh, or from outside it, to the application.
//!
//! A connection: is it another proxy's TLS, the application's own, or plaintext ([`arrive`])? The mesh's is terminated
//! here, and who the peer is known from then on. The connection is registered, *then* judged, so that no change of
//! policy slips between. Opaque bytes are relayed to the application; each HTTP request is judged again and sent
//! ([`Connection::request`]). Nothing is let in before the workload's policy is known: a connection waits for it as long
//! as for any answer of the control plane, then it is refused, in HTTP where it speaks that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};

use super::admit;
use super::context::Worker;
use super::exchange::{self, Answer, Failed, Leg, Tunnels};
use super::fault::Fault;
use super::headers;
use super::opaque::{self, Ended};
use super::record::{ConnectionRecord, InFlight, Record, Tracked};
use super::sniff;
use crate::accept::{Accepted, Destination};
use crate::detect::Detection;
use crate::endpoint::Endpoint;
use crate::io::{Io, Meter, Replay};
use crate::policy::{self, Open, PortPolicy};
use crate::state::{Mode, Peer, Protocol};
use crate::telemetry::Reason;
use crate::telemetry::metrics::{ConnectionLabels, DetectResult, Direction, TlsKind};
use crate::tls;
use crate::wire::{Body, Framing};
use tulle_certs::{Alpn, Refusal};

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

/// A stream whose protection is known, and what it seems to carry.
struct Arrived {
    io: Io,
    peer: Option<tulle_certs::SpiffeId>,
    tls: policy::TlsKind,
    framing: Option<Framing>,
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
    let Some(arrived) = arrive(worker, stream, client, policy).await else { return };
    let Arrived { io, peer, tls, framing } = arrived;
    let guard =
        worker.proxy.connections.register(Open { port, peer, tls, client: client.ip(), outside: None });
    let application = worker.loose_endpoint(application, &Peer::Plaintext);
    match framing {
        Some(framing) => {
            let id = worker.proxy.connection_id();
            let (worker, guard, tunnels) = (Arc::clone(worker), Arc::new(guard), Tunnels::default());
            let connection = Connection { worker, id, client, application, framing, guard, tunnels };
            // Apart, so that the task of an opaque connection is small.
            Box::pin(Arc::new(connection).serve(io)).await;
        }
        None => match admit::judge(worker, &guard) {
            Ok(_) => relay(worker, io, &application, &guard, client).await,
            Err(fault) => {
                relayed(worker, &guard, client).refused(fault.reason, &fault.detail).write(worker);
                io.reset_on_drop();
            }
        },
    }
}

/// Reads as far as is needed to know how the connection is protected and framed; `None` when it is over already.
async fn arrive(
    worker: &Worker,
    mut stream: tokio::net::TcpStream,
    client: SocketAddr,
    policy: PortPolicy,
) -> Option<Arrived> {
    let started = Instant::now();
    // A plaintext client of a server that speaks first sends nothing; where only the mesh is let in, or HTTP is
    // spoken, the client does.
    let client_speaks = match (policy.mode, policy.protocol) {
        (Mode::Strict, _) | (_, Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Tls) => true,
        (Mode::Permissive | Mode::Off, Protocol::Tcp | Protocol::Detect) => false,
    };
    let patience = if client_speaks { SILENCE } else { worker.proxy.settings.detect_timeout };
    let sniffed = sniff::sniff(&mut stream, Some(patience), &worker.proxy.drain).await.ok()?;
    worker.metrics.detect(sniffed.result, sniff::protocol(&sniffed.detection), started.elapsed());
    if client_speaks && sniffed.result == DetectResult::Timeout {
        refuse(worker, client, Reason::DetectTimeout, "the client has not said what it speaks");
        crate::io::reset_on_drop(&stream);
        return None;
    }
    if sniffed.head.is_empty() && sniffed.result == DetectResult::Closed {
        return None;
    }
    let stream = Replay::new(sniffed.head, stream);
    let opaque = matches!(policy.protocol, Protocol::Tcp | Protocol::Tls);
    Some(match sniffed.detection {
        Detection::Tls(hello) if hello.is_mesh.is_some() => {
            return Box::pin(terminate(worker, stream, client, opaque)).await;
        }
        Detection::Tls(_) => Arrived {
            io: Io::replay(stream),
            peer: None,
            tls: policy::TlsKind::ApplicationTls,
            framing: None,
        },
        detection => {
            let framing = sniff::framing(&detection).filter(|_| !opaque);
            Arrived { io: Io::replay(stream), peer: None, tls: policy::TlsKind::None, framing }
        }
    })
}

/// Terminates the mesh's TLS. An opaque port's streams are opaque whatever protocol the peer names, and what a
/// `tulle-tcp` stream carries to another port is told from its bytes: a peer does not choose by which rules it is judged.
async fn terminate(
    worker: &Worker,
    stream: Replay<tokio::net::TcpStream>,
    client: SocketAddr,
    opaque: bool,
) -> Option<Arrived> {
    let started = Instant::now();
    let Some(creds) = worker.proxy.creds.load_full() else {
        refuse(worker, client, Reason::NotReady, "no certificate yet");
        crate::io::reset_on_drop(stream.get_ref());
        return None;
    };
    let accepted = tokio::time::timeout(HANDSHAKE, tls::accept(stream, &creds)).await;
    let terminated = match accepted {
        Ok(Ok(terminated)) => terminated,
        Ok(Err(error)) => {
            let reason = refusal(&error);
            worker.metrics.handshake(Direction::Inbound, Err(reason), started.elapsed());
            refuse(worker, client, reason, &error.to_string());
            return None;
        }
        Err(_) => {
            worker.metrics.handshake(Direction::Inbound, Err(Reason::TlsMalformed), started.elapsed());
            refuse(worker, client, Reason::TlsMalformed, "the handshake was not finished in time");
            return None;
        }
    };
    worker.metrics.handshake(Direction::Inbound, Ok(()), started.elapsed());
    let tls::Terminated { mut io, peer, alpn } = terminated;
    let framing = match alpn {
        _ if opaque => None,
        Alpn::H2 => Some(Framing::Http2),
        Alpn::Http1 => Some(Framing::Http1),
        _ => {
            let patience = worker.proxy.settings.detect_timeout;
            let sniffed = sniff::sniff(&mut io, Some(patience), &worker.proxy.drain).await.ok()?;
            io = io.rewind(sniffed.head);
            sniff::framing(&sniffed.detection)
        }
    };
    Some(Arrived { io, peer: Some(peer), tls: policy::TlsKind::Mesh, framing })
}

/// How long a client that must speak first may be silent, or take for what tells its protocol, before it is given up:
/// whoever never says who it is must not hold on to a place under the limit of connections.
const SILENCE: Duration = Duration::from_secs(30);

/// How long a handshake may take before its peer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

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
fn relayed<'a>(worker: &Worker, guard: &'a policy::Guard, client: SocketAddr) -> ConnectionRecord<'a> {
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
    }
}

/// Relays opaque bytes to the application.
async fn relay(
    worker: &Arc<Worker>,
    io: Io,
    application: &Arc<Endpoint>,
    guard: &policy::Guard,
    client: SocketAddr,
) {
    let mut record =
        ConnectionRecord { endpoint: Some(application.address), ..relayed(worker, guard, client) };
    let server = match Box::pin(exchange::dial(worker).opaque(application)).await {
        Ok(server) => server,
        Err(error) => {
            let fault = exchange::connect_fault(&error);
            record.refused(fault.reason, &fault.detail).write(worker);
            return io.reset_on_drop();
        }
    };
    let meter = Arc::new(Meter::default());
    let open = worker.metrics.connections(&labels(guard.open())).open();
    let ended = opaque::relay(io.metered(Arc::clone(&meter)), server, Some(guard)).await;
    record.bytes = exchange::count(&open, &meter);
    match ended {
        Ended::Revoked => record.cut(worker, guard),
        Ended::Closed | Ended::Reset(_) => record.write(worker),
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
        let (direction, drain) = (Direction::Inbound, &worker.proxy.drain);
        let served = exchange::serve(&worker, direction, self.framing, io, handler, refuse, drain);
        let record = relayed(&worker, &self.guard, self.client);
        let closed = tokio::select! {
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

    fn leg(&self, fresh: bool) -> Leg<'_> {
        let (endpoint, tunnels, guard) = (&self.application, &self.tunnels, Some(&self.guard));
        Leg { endpoint, framing: self.framing, limit: None, tunnels, fresh, guard }
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
        match self.forward(&mut record, request).await {
            Ok(answer) => record.answer(answer),
            Err(fault) => record.fault(&fault),
        }
    }

    async fn forward(&self, record: &mut Record, mut request: Request<Body>) -> Result<Answer, Fault> {
        headers::check_host(&request)?;
        record.rule = Some(admit::judge(&self.worker, &self.guard)?);
        record.endpoint = Some(self.application.address);
        loop {
            record.attempts += 1;
            let mut in_flight = InFlight::start(&self.worker, &self.application);
            let asked = Instant::now();
            let sent = exchange::send(&self.worker, self.leg(record.attempts > 1), request).await;
            record.waited(asked.elapsed());
            match sent {
                Ok(mut response) => {
                    in_flight.answered(!response.status().is_server_error());
                    headers::strip_ours(response.headers_mut());
                    // The guard is the connection's.
                    let (unprocessed, deadline, guard) = (false, None, None);
                    return Ok(Answer { response, in_flight, unprocessed, deadline, guard });
                }
                Err(Failed { fault, again }) => {
                    in_flight.answered(false);
                    match again {
                        Some(again) if record.attempts == 1 => {
                            self.worker.metrics.replayed(again.cause);
                            request = *again.request;
                        }
                        _ => return Err(fault),
                    }
                }
            }
        }
    }
}
