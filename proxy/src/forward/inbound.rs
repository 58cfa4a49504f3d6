//! From the mesh, or from outside it, to the application.
//!
//! A connection: is it another proxy's TLS, the application's own, or plaintext ([`arrive`])? The mesh's is terminated
//! there, and who the peer is known from then on. The connection is registered, *then* judged, so that no change of policy
//! slips between; before it is judged, nothing is opened. Opaque bytes are relayed to the application; each HTTP request is judged again and sent
//! ([`Connection::request`]). Nothing is let in before the workload's policy is known: a connection waits for it as long
//! as for any answer of the control plane, then it is refused, in HTTP where it speaks that. Where another program has its say too, it is asked
//! about each request last of all ([`external`]).

mod arrival;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response};
use tokio_util::task::TaskTracker;

use self::arrival::{Arrived, Way, arrive, register};
use super::admit::{self, Passed};
use super::again;
use super::authenticate;
use super::context::Worker;
use super::deadline;
use super::exchange::{self, Answer, Fields, Leg, Tunnels};
use super::external::{self, Asker};
use super::fault::Fault;
use super::headers::{self, Said};
use super::in_flight::{Begun, InFlight};
use super::limited;
use super::opaque::{self, Ended};
use super::record::{self, ConnectionRecord, Record, Relayed, Tracked};
use crate::accept::{Accepted, Destination};
use crate::endpoint::{self, Endpoint};
use crate::io::{Io, streams};
use crate::policy::{self, Open, PortPolicy};
use crate::route::Requests;
use crate::state::{Mode, Peer, Protocol};
use crate::telemetry::Reason;
use crate::telemetry::metrics::{ConnectionLabels, DetectResult, Direction, TlsKind};
use crate::wire::{Body, Framing, Processed, h1};

/// One connection to the application, from wherever.
#[derive(Debug)]
struct Connection {
    worker: Arc<Worker>,
    id: u64,
    client: SocketAddr,
    /// When it was accepted.
    at: Instant,
    application: Arc<Endpoint>,
    framing: Framing,
    guard: Arc<policy::Guard>,
    tunnels: Tunnels,
    /// What the application is told of who the client has proven to be.
    proven: Option<HeaderValue>,
}

/// Serves one connection to the application until it ends.
pub async fn serve(worker: &Arc<Worker>, accepted: Accepted) {
    let Accepted { stream, client, destination, at } = accepted;
    let (application, port) = match destination {
        Destination::Application { application, port } => (application, port),
        Destination::Address(address) => (address, address.port()),
        Destination::Service { .. } => return,
    };
    let known = worker.proxy.store.inbound().await.map(|inbound| inbound.port(port));
    // Without a policy it is read only to be refused in its own language, by `admit`.
    let policy = known.unwrap_or(PortPolicy { protocol: Protocol::Detect, mode: Mode::Permissive });
    let policy = PortPolicy { protocol: worker.proxy.settings.protocol(policy.protocol, port), ..policy };
    let application = worker.loose_endpoint(application, &Peer::Plaintext);
    // Apart, since it is handed on from future to future, each of which has room for it.
    let way = Box::new(Way { client, at, application, port, policy, proven: OnceLock::new() });
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
    way: Box<Way>,
    guard: Arc<policy::Guard>,
    framing: Option<Framing>,
    detected: DetectResult,
    server: Option<Result<Io, Fault>>,
) {
    match framing {
        Some(framing) => {
            let id = worker.proxy.connection_id();
            let (worker, tunnels) = (Arc::clone(worker), Tunnels::default());
            let Way { client, at, application, proven, .. } = *way;
            let proven = proven.into_inner();
            let connection =
                Connection { worker, id, client, at, application, framing, guard, tunnels, proven };
            // Apart, so that the task of an opaque connection is small.
            Box::pin(Arc::new(connection).serve(io)).await;
        }
        None => {
            let (passed, server) = Box::pin(opened(worker, &way, &guard, server)).await;
            relay(worker, io, &way, &guard, (detected, passed.as_ref()), server).await;
        }
    }
}

/// The stream to the application for opaque bytes, opened now unless it was, and what has let them in.
async fn opened(
    worker: &Worker,
    way: &Way,
    guard: &policy::Guard,
    server: Option<Result<Io, Fault>>,
) -> (Option<Passed>, Result<Io, Fault>) {
    if let Some(Err(fault)) = server {
        return (None, Err(fault));
    }
    // What was opened to find out was not judged as what it is now known to be.
    match (judge_bytes(worker, guard), server) {
        (Err(fault), _) => (None, Err(fault)),
        (Ok(passed), Some(server)) => (Some(passed), server),
        (Ok(passed), None) => (Some(passed), open(worker, way, guard).await),
    }
}

/// Judges bytes that are no HTTP, which can have no token, and of which no authorizer can be told.
fn judge_bytes(worker: &Worker, guard: &policy::Guard) -> Result<Passed, Fault> {
    let passed = admit::judge_bytes(worker, guard)?;
    authenticate::opaque(worker, guard)?;
    external::opaque(worker, guard)?;
    Ok(passed)
}

/// Serves each stream as a connection of its own, of the same peer, until the client is done; once the drain begins, until
/// those that are left are, and those that the client had begun before it could know.
async fn serve_streams(worker: &Arc<Worker>, arrived: Arrived, way: Box<Way>) {
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
                    let (worker, io) = (Arc::clone(worker), Io::stream(stream));
                    let way = Box::new(Way { at: Instant::now(), ..Way::clone(&way) });
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

/// The record of a connection that was accepted `at`, and registered.
fn registered<'a>(
    worker: &Worker,
    guard: &'a policy::Guard,
    client: SocketAddr,
    at: Instant,
) -> ConnectionRecord<'a> {
    let open = guard.open();
    let record = ConnectionRecord::new(worker, Direction::Inbound, client, at);
    ConnectionRecord { source: open.peer.as_ref(), port: open.port, tls: metrics_tls(open.tls), ..record }
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

/// A stream to the application for opaque bytes, unless policy lets in nothing of its client's.
async fn open(worker: &Worker, way: &Way, guard: &policy::Guard) -> Result<Io, Fault> {
    admit::may_open(worker, guard)?;
    let opened = Box::pin(exchange::dial(worker).opaque(&way.application)).await;
    opened.map_err(|error| exchange::connect_fault(&error))
}

/// Relays opaque bytes to the application, if they have `passed` policy and it could be reached.
async fn relay(
    worker: &Arc<Worker>,
    io: Io,
    way: &Way,
    guard: &policy::Guard,
    (detected, passed): (DetectResult, Option<&Passed>),
    server: Result<Io, Fault>,
) {
    let record = registered(worker, guard, way.client, way.at);
    let record = ConnectionRecord {
        detected: Some(detected),
        rule: passed.map_or("", |passed| &*passed.rule),
        would_deny: passed.and_then(|passed| passed.would_deny.as_deref()).unwrap_or(""),
        ..record
    };
    let server = match server {
        Ok(server) => server,
        Err(fault) => {
            record.refused(fault.reason, &fault.detail).write(worker);
            return io.reset_on_drop();
        }
    };
    let open = worker.metrics.connections(&labels(guard.open())).open();
    let meter = exchange::meter(&open);
    let record = ConnectionRecord { endpoint: Some(way.application.address), ..record };
    let relayed = Relayed::new(worker, Arc::clone(&meter), record);
    let ended = opaque::relay(io.metered(meter), server, Some(guard)).await;
    let Some(record) = relayed.over() else { return };
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
        let meter = exchange::meter(&open);
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
        let record = registered(&worker, &self.guard, self.client, self.at);
        let cut = tokio::select! {
            biased;
            () = served => false,
            // New requests are denied one by one; what is still under way, a watch say, would go on for hours.
            _ = admit::revoked_for_long(&worker, Some(&self.guard)) => true,
        };
        self.tunnels.ended().await;
        if cut {
            let (endpoint, bytes) = (Some(self.application.address), exchange::bytes(&meter));
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

    /// `tunnel`: what a request that asks for one is registered as.
    fn leg<'a>(
        &'a self,
        fresh: Option<Instant>,
        begun: &'a Begun,
        tunnel: Option<&'a Arc<policy::Guard>>,
    ) -> Leg<'a> {
        let (endpoint, tunnels, guard) = (&self.application, &self.tunnels, tunnel.or(Some(&self.guard)));
        Leg { endpoint, framing: self.framing, limit: None, tunnels, fresh, keep: false, guard, begun }
    }

    fn record(&self, request: &mut Request<Body>) -> Box<Record> {
        let mut record = Record::new(&self.worker, Direction::Inbound, self.id, self.client, request);
        record.guard = Some(Arc::clone(&self.guard));
        record.tls = metrics_tls(self.guard.open().tls);
        record.port = self.guard.open().port;
        if let Some(peer) = &self.guard.open().peer {
            record.set_peer(peer.clone());
        }
        let port = record.port;
        record.sample(request, || record::sampling(&self.worker, port));
        record
    }

    /// One request to the application: its whole life.
    async fn request(self: Arc<Self>, mut request: Request<Body>) -> Response<Tracked> {
        let mut record = self.record(&mut request);
        // First, so that a client's `Connection` cannot name, and so take away, what the application is told here, or what policy has seen.
        headers::strip_requests_hop(request.headers_mut(), self.framing == Framing::Http1);
        headers::take_claims(request.headers_mut(), self.proven.as_ref());
        match self.forward(&mut record, &mut request).await {
            Ok(answer) => record.answer(answer),
            Err(fault) => record.fault(&fault),
        }
    }

    async fn forward(&self, record: &mut Record, request: &mut Request<Body>) -> Result<Answer, Fault> {
        headers::check_host(request)?;
        let mut named = authenticate::Named::default();
        let claims = authenticate::request(&self.worker, request, &self.guard, &mut named).await;
        (record.rule, record.would_deny) = (named.rule, named.would_deny);
        let claims = claims?;
        record.claims.clone_from(&claims);
        let judged = admit::judge_request(&self.worker, &self.guard, record, request, claims.as_ref());
        judged.map_err(|fault| authenticate::judged(fault, claims.as_deref()))?;
        limited::inbound(&self.worker, record, request, &self.guard)?;
        record.pass_on(request);
        let deadline =
            deadline::find(&Requests::default(), None, record.started(), record.grpc, request.headers());
        let asker = Asker {
            worker: &self.worker,
            guard: &self.guard,
            client: self.client,
            application: self.application.address,
            framing: self.framing,
        };
        let changes = match external::about(asker, request) {
            None => Vec::new(),
            Some(about) => {
                let mut asked = Box::pin(external::ask(asker, about, Some(&mut *record), request));
                deadline::by(deadline, None, asked.as_mut()).await?
            }
        };
        record.endpoint = Some(self.application.address);
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
        changes.iter().for_each(|changes| changes.answer(&mut answer.response));
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
        let tunnel = admit::tunnel(&self.worker, &self.guard, record.under_way.as_ref(), request)?;
        record.attempts += 1;
        let asked = self.worker.proxy.now();
        record.waits(asked);
        let in_flight = InFlight::start(&self.worker, &self.application, asked);
        let mut in_flight = in_flight.uploading(record.uploaded());
        let mut lent = Fields::default();
        let leg = self.leg(*fresh, &in_flight.begun, tunnel.as_ref());
        let sent = {
            let sent = pin!(exchange::send(&self.worker, leg, &mut *request, &mut lent));
            admit::unless_changed(&self.worker, &self.guard, record.under_way.as_ref(), sent).await
        };
        let answered = self.worker.proxy.now();
        record.waited(answered);
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
                let _told = in_flight.failed(&failed, answered);
                match again::replay(&failed, request.method()).filter(|_| failed.whole) {
                    Some(cause) if record.attempts == 1 => {
                        *fresh = again::needs_fresh(&failed, self.framing).then(Instant::now);
                        self.worker.metrics.replayed(cause);
                        lent.give_back(request);
                        record.sent_again(Err(&failed), Some(&*self.application));
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
