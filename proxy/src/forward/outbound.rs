//! From the application into the mesh.
//!
//! A connection: where was it going ([`target`])? What does it speak ([`speaks`]; where nothing says so, an endpoint is
//! opened in case the server speaks first)? Where it follows a route as a whole, nothing of this is asked ([`routed`]). Opaque bytes get an endpoint ([`connect`]) and are relayed ([`relay`]). Each
//! HTTP request goes `route → balance → endpoint → wire` ([`Connection::request`]): the route picks a backend ([`Connection::forward`]), the balancer an endpoint ([`Connection::attempts`]), and [`exchange`] sends
//! it there and brings the answer back ([`Connection::attempt`]); [`again`] says what is sent again. What
//! goes to this very workload is judged by its policy here and given to the application directly, and what leaves the mesh
//! by the policy for that ([`egress`]). Whatever fails is answered by the proxy itself, with its reason.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use http::{Request, Response};

use super::admit::{self, Own};
use super::again::{self, Failing, Tries};
use super::asked::Asked;
use super::authenticate;
use super::context::Worker;
use super::deadline::{self, Deadline};
use super::egress::{self, Out};
use super::exchange::{self, Answer, Failed, Fields, Leg, Tunnels};
use super::external::{self, Asker};
use super::fault::Fault;
use super::filters;
use super::first::{self, Opened, Times};
use super::headers;
use super::idle::Idle;
use super::in_flight::InFlight;
use super::inject::inject;
use super::limited;
use super::mirror;
use super::opaque::{self, Ended};
use super::queue;
use super::record::{self, ConnectionRecord, Record, Relayed, Tracked};
use super::routed;
use super::session;
use super::sniff::{self, Sniffed};
use super::target::{self, Going, Target};
use crate::accept::Accepted;
use crate::detect::{self, Detection};
use crate::endpoint::{Endpoint, RequestSeat};
use crate::io::{Io, Replay};
use crate::policy::{self, Name};
use crate::route::{self, Backend, FaultRule, Found, Match, Requests, RouteKind};
use crate::state::{ObjectName, Protocol};
use crate::telemetry::Reason;
use crate::telemetry::metrics::{ConnectionLabels, DetectResult, Direction, ReplayCause, TlsKind};
use crate::wire::{Body, Framing, h1};

/// One connection from the application.
#[derive(Debug)]
struct Connection {
    worker: Arc<Worker>,
    id: u64,
    client: SocketAddr,
    going: Going,
    /// `<namespace>/<name>:<port>`, for metrics and logs.
    service: Arc<str>,
    framing: Framing,
    tunnels: Tunnels,
    /// It closes once what is under way is answered: the next may go another way.
    over: AtomicBool,
}

/// Serves one connection of the application until it ends.
pub async fn serve(worker: &Arc<Worker>, accepted: Accepted) {
    let Accepted { mut stream, client, destination, at } = accepted;
    let (going, protocol) = Box::pin(Going::find(worker, destination)).await;
    if let Some((streams, service)) = going.streams() {
        return Box::pin(routed::serve(worker, stream, (client, at), &streams, &service)).await;
    }
    let Some(Spoken { sniffed, server }) =
        Box::pin(speaks(worker, &mut stream, (client, at), &going, protocol)).await
    else {
        return;
    };
    let io = Io::replay(Replay::new(sniffed.head, stream));
    match sniff::framing(&sniffed.detection) {
        Some(framing) => {
            let (id, service) = (worker.proxy.connection_id(), going.service());
            let (worker, tunnels) = (Arc::clone(worker), Tunnels::default());
            let over = AtomicBool::new(false);
            let connection = Connection { worker, id, client, going, service, framing, tunnels, over };
            // Apart, so that the task of an opaque connection is small.
            Box::pin(Arc::new(connection).serve(io)).await;
        }
        None => {
            let name = egress::name(&sniffed.detection);
            let authority = name.as_str().map(Box::<str>::from).unwrap_or_default();
            let server = match server {
                Some(server) => server,
                None => {
                    Box::pin(async { connect(worker, client, &going.whole(worker).await?, name).await }).await
                }
            };
            let service = going.service();
            let record = ConnectionRecord::new(worker, Direction::Outbound, client, at);
            let (service, authority, detected) = (&*service, &*authority, Some(sniffed.result));
            relay(worker, io, ConnectionRecord { service, authority, detected, ..record }, server).await;
        }
    }
}

/// What a connection speaks, and the server if that was opened to find out.
struct Spoken {
    sniffed: Sniffed,
    server: Option<Result<Connected, Fault>>,
}

/// What the connection speaks: as declared, else as its first bytes tell, or the server's. `None`: nothing, it is over. A
/// declared port is never waited for longer than its client takes. `at`: when it was accepted.
async fn speaks(
    worker: &Arc<Worker>,
    stream: &mut tokio::net::TcpStream,
    (client, at): (SocketAddr, Instant),
    going: &Going,
    protocol: Protocol,
) -> Option<Spoken> {
    let spoken = match protocol {
        Protocol::Tcp | Protocol::Tls => {
            let (detection, result) = (Detection::Opaque, DetectResult::Declared);
            worker.metrics.detect(result, sniff::protocol(&detection), Duration::ZERO);
            let sniffed = Sniffed { detection, result, head: bytes::Bytes::new() };
            return Some(Spoken { sniffed, server: None });
        }
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
            let started = Instant::now();
            let sniffed = sniff::sniff(stream, detect::detect, None, worker.last_word()).await.ok()?;
            worker.metrics.detect(sniffed.result, sniff::protocol(&sniffed.detection), started.elapsed());
            Spoken { sniffed, server: None }
        }
        Protocol::Detect => Box::pin(undeclared(worker, stream, (client, at), going)).await?,
    };
    if spoken.sniffed.result == DetectResult::Drained {
        let record = ConnectionRecord::new(worker, Direction::Outbound, client, at);
        let record = ConnectionRecord { service: &going.service(), ..record };
        record.given_up(worker, spoken.sniffed.head.len());
        return None;
    }
    // Opened ahead of need, or to see whether the port is open: no endpoint is troubled with it.
    (!spoken.sniffed.is_nothing() || spoken.server.is_some()).then_some(spoken)
}

/// Told from what is said first, the endpoint being opened when the client is silent.
async fn undeclared(
    worker: &Arc<Worker>,
    stream: &mut tokio::net::TcpStream,
    (client, at): (SocketAddr, Instant),
    going: &Going,
) -> Option<Spoken> {
    let times = Times::accepted(going.first(worker));
    let (times, opaque): (_, fn(&Detection) -> bool) = match going.outside() {
        None => (times, |detection| sniff::framing(detection).is_none()),
        // What has a name is judged by it, and not let out as what was silent.
        Some(to) => (egress::times(worker, to, times), |detection| *detection == Detection::Opaque),
    };
    type Context = (Box<InFlight>, Option<Box<Own>>, Option<Box<Out>>);
    let (opened, guarded) = tokio::sync::oneshot::channel();
    let open = async {
        let target = going.whole(worker).await?;
        let Connected { in_flight, own, out, server } = connect(worker, client, &target, Name::None).await?;
        let outside = || out.as_ref().map(|out| &out.guard);
        let guard = own.as_ref().map(|own| &own.guard).or_else(outside);
        if let Some(guard) = guard {
            // It is listened to for as long as this runs.
            drop(opened.send(Arc::clone(guard)));
        }
        Ok((server, (in_flight, own, out)))
    };
    let broke: fn(Context) = |(in_flight, ..)| in_flight.never_spoke();
    let revoked = async {
        let Ok(guard) = guarded.await else { return std::future::pending().await };
        guard.revoked().await;
        guard
    };
    let heard = tokio::select! {
        heard = first::hear(worker, stream, times, detect::detect_undeclared, opaque, (open, broke)) => heard.ok()?,
        guard = revoked => {
            let record = ConnectionRecord::new(worker, Direction::Outbound, client, at);
            ConnectionRecord { service: &going.service(), ..record }.cut(worker, &guard);
            crate::io::reset_on_drop(stream);
            return None;
        }
    };
    if let Some(first) = heard.first {
        going.saw(worker, first);
    }
    let server = heard.server.map(|opened| {
        let Opened { stream, said, context: (in_flight, own, out) } = opened?;
        Ok(Connected { in_flight, own, out, server: stream.rewind(said) })
    });
    Some(Spoken { sniffed: heard.sniffed, server })
}

// === impl Connection ===

impl Connection {
    async fn serve(self: Arc<Self>, io: Io) {
        let labels = ConnectionLabels {
            direction: Direction::Outbound,
            // Each request has an endpoint of its own, and with it a peer.
            tls: TlsKind::Unknown,
            peer: "",
            service: &self.service,
            route: "",
            backend: "",
        };
        let open = self.worker.metrics.connections(&labels).open();
        let io = io.metered(exchange::meter(&open));
        let handler = |request| Arc::clone(&self).request(request);
        let refuse = |fault: &Fault| self.record(&mut Request::default()).unread().fault(fault);
        let direction = Direction::Outbound;
        let mut draining = pin!(self.worker.proxy.drain.draining());
        let drain = poll_fn(|cx| match self.over.load(Ordering::Relaxed) {
            true => Poll::Ready(()),
            false => draining.as_mut().poll(cx),
        });
        exchange::serve(&self.worker, direction, self.framing, io, handler, refuse, drain).await;
        self.tunnels.ended().await;
    }

    fn record(&self, request: &mut Request<Body>) -> Box<Record> {
        let mut record = Record::new(&self.worker, Direction::Outbound, self.id, self.client, request);
        record.service = Some(Arc::clone(&self.service));
        record
    }

    /// One request of the application: its whole life.
    async fn request(self: Arc<Self>, mut request: Request<Body>) -> Response<Tracked> {
        let mut record = self.record(&mut request);
        headers::strip_ours(request.headers_mut());
        match self.forward(&mut record, &mut request).await {
            Ok(answer) => record.answer(answer),
            Err(fault) => {
                if fault.reason == Reason::RouteChanged {
                    self.over.store(true, Ordering::Relaxed);
                }
                record.fault(&fault)
            }
        }
    }

    /// By the rule that matches to a backend, within the time that the rule allows; without routes, where it was going.
    async fn forward(&self, record: &mut Record, request: &mut Request<Body>) -> Result<Answer, Fault> {
        headers::check_host(request)?;
        let target = self.going.target(&self.worker).await?;
        let mut out = None;
        if let Target::Outside(endpoint) = &target {
            headers::check_only_host(request)?;
            let host = Name::Http(headers::host(request).to_ascii_lowercase().into());
            let allowed = egress::let_out(&self.worker, endpoint.address, self.client, host).await?;
            allowed.leaves(&self.worker, self.client);
            record.rule = Some(allowed.rule);
            out = Some(allowed.guard);
        }
        // Routes are looked at anew for each request, so that connections which live long obey changes.
        let routes = match &target {
            Target::Service(service, _) | Target::Session(service, ..) => service.routes(),
            Target::Address(_) | Target::Outside(_) => None,
        };
        let found = rule(routes.as_deref(), &target, request);
        let traffic = target.traffic();
        let said = Requests {
            rule: found.as_ref().ok().and_then(|found| found.as_ref()?.rule.requests.as_deref()),
            port: traffic.as_ref().and_then(|traffic| traffic.requests.as_deref()),
        };
        // What is told of a request that no rule takes is as the Service says, too.
        record.logged = said.access_logs();
        record.sample(request, || said.sampling());
        let found = found?;
        record.pass_on(request);
        if found.as_ref().is_some_and(|found| found.rule.kind == RouteKind::Grpc) {
            record.grpc = true;
        }
        let route = found.as_ref().map(|found| &found.rule.route);
        let deadline = deadline::find(&said, route, record.started(), record.grpc, request.headers());
        limited::outbound(&self.worker, record, request, &target, &said)?;
        let idle = said.idle_timeout().map(|limit| Idle::new(limit, record.uploaded()));
        let fault = if said.has_faults() { said.fault(&filters::asked(request)) } else { None };
        let Some(found) = found else {
            let to = Sending { target: &target, said, fault, deadline, out };
            let mut answer = {
                let send = pin!(self.attempts(record, request, to));
                deadline::by(deadline, idle.as_ref(), send).await?
            };
            answer.bounds = deadline::bounds(deadline, idle);
            return Ok(answer);
        };
        let rule = found.rule;
        record.route = Some(Arc::clone(&rule.label));
        if let Some(invalid) = &rule.invalid {
            return Err(Fault::unsent(Reason::RouteInvalid, format!("route {}: {invalid}", rule.route)));
        }
        let cors = filters::cors(&found, &mut *request);
        if let Target::Service(_, port) = &target
            && let Some(answer) = filters::answer(&found, request, *port, cors.as_deref())
        {
            return answer;
        }
        let session = {
            let begin = pin!(session::begin(&self.worker, &found, request));
            deadline::by(deadline, None, begin).await?
        };
        let kept = session.as_ref().and_then(|session| session.kept());
        let backend = match &kept {
            Some((backend, _)) => *backend,
            None => choose(&rule.route, &rule.backends)?,
        };
        record.backend = Some(Arc::clone(&backend.label));
        filters::request(&found, rule.filters.as_deref(), self.framing, request)?;
        mirror::start(&self.worker, self.client, self.framing, &found, request);
        filters::request(&found, backend.filters.as_deref(), self.framing, request)?;
        // Pinned here: whoever takes it by value keeps it twice.
        let sent = {
            let send = pin!(async {
                let target = match kept {
                    Some((_, target)) => target,
                    None => {
                        Target::Service(target::service(&self.worker, &backend.service).await?, backend.port)
                    }
                };
                let to = Sending { target: &target, said, fault, deadline, out: None };
                self.attempts(record, request, to).await
            });
            deadline::by(deadline, idle.as_ref(), send).await
        };
        let mut answer = sent?;
        filters::response(&found, backend, cors.as_deref(), &mut answer.response);
        if let Some(session) = session {
            record.session = session.answer(&self.worker, backend, &mut answer);
        }
        answer.bounds = deadline::bounds(deadline, idle);
        Ok(answer)
    }

    /// To an endpoint of the target; again, preferably to another, as far as [`again`] lets it.
    async fn attempts(
        &self,
        record: &mut Record,
        request: &mut Request<Body>,
        to: Sending<'_>,
    ) -> Result<Answer, Fault> {
        let Sending { target, said, fault, deadline, out } = to;
        let (limit, retry) = (said.backend_timeout(), said.retry());
        let mut tries = Tries::new(&self.worker, retry, deadline.map(|deadline| deadline.at()), target);
        loop {
            let limit = match fault {
                None => Ok(limit),
                Some(rule) => Box::pin(inject(&self.worker, record, rule, retry, limit)).await,
            };
            let (mut spare, mut at, mut lent) = (None, None, Fields::default());
            let tried = match limit {
                Err(failed) => Err(failed),
                Ok(limit) => {
                    let (endpoint, key) = {
                        let asked = Asked { client: self.client, request: Some(request) };
                        let endpoint = target.pick(&self.worker, &tries.failed, &asked)?;
                        let key = endpoint.room.limited().and_then(|_| target.key(&asked));
                        (endpoint, key)
                    };
                    let (endpoint, seat) =
                        queue::seat(&self.worker, record, target, &tries.failed, endpoint, key).await?;
                    if let Some(deadline) = deadline {
                        deadline.pass_on(request.headers_mut(), Instant::now())?;
                    }
                    spare = tries.spare(request, self.framing, &endpoint);
                    let until = deadline.and_then(|deadline| deadline.of_policy());
                    let how =
                        How { limit, keep: spare.is_some(), fresh: tries.fresh, until, out: out.as_ref() };
                    let endpoint = &*at.insert(endpoint);
                    self.attempt(record, endpoint, seat, request, how, &mut lent).await
                }
            };
            let Some(wait) = tries.next(&tried, request, spare, (target, at.as_ref())) else {
                return match tried {
                    Ok(answer) => {
                        h1::done_with(request);
                        Ok(answer)
                    }
                    Err(failed) => Err(failed.fault),
                };
            };
            lent.give_back(request);
            record.sent_again(tried.as_ref(), at.as_deref());
            if let Some(endpoint) = at {
                tries.has_failed(endpoint, &tried, self.framing);
            }
            if tries.is_retry() {
                record.waits(self.worker.proxy.now());
                Box::pin(again::pause(wait, tried.ok().map(|answer| answer.response.into_body()))).await;
                record.waited(self.worker.proxy.now());
            }
        }
    }

    /// To this endpoint; to the application itself, if it is that of this very workload.
    async fn attempt(
        &self,
        record: &mut Record,
        endpoint: &Arc<Endpoint>,
        seat: Option<RequestSeat>,
        request: &mut Request<Body>,
        how: How<'_>,
        lent: &mut Fields,
    ) -> Result<Answer, Failed> {
        let How { limit, keep, fresh, until, out } = how;
        let application = self.worker.proxy.own_application(endpoint);
        if application.is_some() {
            headers::take_claims(request.headers_mut(), None);
        }
        record.sent_to(endpoint, application);
        let port = endpoint.address.port();
        let is_changed =
            || authenticate::speaks(&self.worker, port).is_some() || external::speaks(&self.worker, port);
        if application.is_some() && is_changed() {
            lent.keep(request);
        }
        let own = admit::own(&self.worker, endpoint, application, self.client, Some(&mut *request)).await;
        let own = own.map_err(|fault| Failed { fault, again: None, whole: false })?;
        let mut changes = Vec::new();
        if let Some(own) = &own {
            record.rule = Some(Arc::clone(&own.passed.rule));
            if own.passed.would_deny.is_some() {
                record.would_deny.clone_from(&own.passed.would_deny);
            }
            record.claims.clone_from(&own.claims);
            let refused = |fault| Failed { fault, again: None, whole: false };
            limited::inbound(&self.worker, record, request, &own.guard).map_err(refused)?;
            let asker = Asker {
                worker: &self.worker,
                guard: &own.guard,
                client: self.client,
                application: own.application.address,
                framing: self.framing,
            };
            if let Some(about) = external::about(asker, request) {
                let asked = Box::pin(external::ask(asker, about, Some(&mut *record), request)).await;
                changes = asked.map_err(refused)?;
            }
        }
        let asked = self.worker.proxy.now();
        record.waits(asked);
        let mut in_flight =
            InFlight::start(&self.worker, endpoint, asked).seated(seat).uploading(record.uploaded());
        if let Some(until) = until {
            in_flight.until = self.worker.proxy.nanos(until);
        }
        let (endpoint, guard) = match &own {
            Some(own) => (&own.application, Some(&own.guard)),
            None => (endpoint, out),
        };
        let (framing, tunnels) = (self.framing, &self.tunnels);
        let begun = &in_flight.begun;
        let leg = Leg { endpoint, framing, limit, tunnels, fresh, keep, guard, begun };
        // Pinned here: whoever takes it by value keeps it twice.
        let sent = {
            let sent = pin!(exchange::send(&self.worker, leg, request, lent));
            admit::unless_revoked(&self.worker, guard, sent).await
        };
        let answered = self.worker.proxy.now();
        record.waited(answered);
        let mut response = sent.inspect_err(|failed| {
            if let Some(outcome) = in_flight.failed(failed, answered) {
                in_flight.tell(outcome);
            }
        })?;
        in_flight.answered(!response.status().is_server_error(), answered);
        let said = headers::take_ours(response.headers_mut(), &endpoint.peer);
        in_flight.came_to(&response, record.grpc);
        changes.iter().for_each(|changes| changes.answer(&mut response));
        let guard = own.map(|own| own.guard).or_else(|| out.cloned());
        Ok(Answer { response, in_flight: Some(in_flight), said, bounds: None, guard })
    }
}

/// Where one request goes, and what is said of it.
struct Sending<'a> {
    target: &'a Target,
    said: Requests<'a>,
    /// What goes wrong with it on purpose.
    fault: Option<&'a FaultRule>,
    deadline: Option<Deadline<'a>>,
    /// What a request that leaves the mesh is registered as.
    out: Option<Arc<policy::Guard>>,
}

/// How a request is sent once.
#[derive(Clone, Copy)]
struct How<'a> {
    /// How long the answer's head may take.
    limit: Option<Duration>,
    /// As of a [`Leg`].
    keep: bool,
    /// As of a [`Leg`].
    fresh: Option<Instant>,
    /// When there must be an answer, by a policy.
    until: Option<Instant>,
    /// What a request that leaves the mesh is registered as.
    out: Option<&'a Arc<policy::Guard>>,
}

/// The rule that says what becomes of a request; `None` where no route speaks of it.
fn rule<'a>(
    routes: Option<&'a route::Table>,
    target: &Target,
    request: &Request<Body>,
) -> Result<Option<Found<'a>>, Fault> {
    let (Some(table), Target::Service(service, port)) = (routes, target) else { return Ok(None) };
    if table.streams(*port).is_some() {
        return Err(target::rerouted(service, *port));
    }
    let path = request.uri().path();
    match table.find(*port, &filters::asked(request)) {
        Match::NoRoutes => Ok(None),
        Match::Rule(found) => Ok(Some(found)),
        Match::NotFound => {
            let what = format!("{} {path} to {}:{port}", request.method(), service.name);
            Err(Fault::unsent(Reason::RouteNotFound, what))
        }
        Match::TooLong(what) => Err(Fault::unsent(Reason::HeadTooLarge, what.to_string())),
    }
}

/// The backend of a route for one request or connection, by weight.
pub(super) fn choose<'a>(route: &ObjectName, backends: &'a [Backend]) -> Result<&'a Backend, Fault> {
    let backend = route::pick(backends, rand::random())
        .ok_or_else(|| Fault::unsent(Reason::RouteWithoutBackend, format!("route {route}")))?;
    match &backend.invalid {
        None => Ok(backend),
        Some(why) => Err(Fault::unsent(Reason::BackendNotFound, format!("route {route}: {why}"))),
    }
}

/// A stream to an endpoint for opaque bytes, or to the application itself, if the endpoint is this very workload's.
pub(super) struct Connected {
    /// At its endpoint; a box, so that the task of an idle connection is small.
    in_flight: Box<InFlight>,
    own: Option<Box<Own>>,
    out: Option<Box<Out>>,
    server: Io,
}

/// So many endpoints are tried for one connection: each may take a whole connect timeout.
const MOST_TRIED: usize = 3;

/// Opens a stream to an endpoint of the target; `name`: whom the client says it wants to reach. Nothing is sent before, so that another one
/// is tried where one cannot be reached, or has no room for it.
pub(super) async fn connect(
    worker: &Arc<Worker>,
    client: SocketAddr,
    target: &Target,
    name: Name,
) -> Result<Connected, Fault> {
    let out = match target {
        Target::Outside(to) => {
            let out = Box::pin(egress::let_out(worker, to.address, client, name)).await?;
            Some(Box::new(out))
        }
        Target::Service(..) | Target::Session(..) | Target::Address(_) => None,
    };
    let pick = |tried: &[Failing]| target.pick(worker, tried, &Asked { client, request: None });
    let mut endpoint = pick(&[])?;
    let mut tried: Vec<Failing> = Vec::new();
    loop {
        let Failed { fault, again, .. } = match Box::pin(open(worker, client, &endpoint)).await {
            Ok((in_flight, own, server)) => return Ok(Connected { in_flight, own, out, server }),
            Err(failed) => failed,
        };
        tried.push(Failing { endpoint, reached: false });
        let is_new = |other: &Arc<Endpoint>| !tried.iter().any(|one| Arc::ptr_eq(&one.endpoint, other));
        let other = again.filter(|_| tried.len() < MOST_TRIED).and_then(|_| pick(&tried).ok().filter(is_new));
        let Some(other) = other else {
            if let Some(out) = &out {
                out.leaves(worker, client);
            }
            return Err(fault);
        };
        worker.metrics.replayed(ReplayCause::Unprocessed);
        endpoint = other;
    }
}

/// Opens one to this endpoint.
async fn open(
    worker: &Arc<Worker>,
    client: SocketAddr,
    endpoint: &Arc<Endpoint>,
) -> Result<(Box<InFlight>, Option<Box<Own>>, Io), Failed> {
    let application = worker.proxy.own_application(endpoint);
    let own = match application {
        // Apart: most go elsewhere.
        Some(_) => Box::pin(admit::own(worker, endpoint, application, client, None)).await,
        None => Ok(None),
    };
    let own = own.map_err(|fault| Failed { fault, again: None, whole: true })?;
    if let Some(own) = &own {
        external::opaque(worker, &own.guard).map_err(|fault| Failed { fault, again: None, whole: true })?;
    }
    let mut in_flight = Box::new(InFlight::start(worker, endpoint, worker.proxy.now()));
    let to = own.as_ref().map_or(endpoint, |own| &own.application);
    let dialled = exchange::dial(worker).opaque(to).await;
    let now = worker.proxy.now();
    match dialled {
        Ok(server) => {
            in_flight.answered(true, now);
            Ok((in_flight, own, server))
        }
        Err(error) => {
            let failed = exchange::unconnected(&error);
            if let Some(outcome) = in_flight.failed(&failed, now) {
                in_flight.tell(outcome);
            }
            Err(failed)
        }
    }
}

/// Relays opaque bytes to the endpoint, if one could be reached.
pub(super) async fn relay(
    worker: &Arc<Worker>,
    io: Io,
    record: ConnectionRecord<'_>,
    server: Result<Connected, Fault>,
) {
    let Connected { in_flight, own, out, server } = match server {
        Ok(connected) => connected,
        Err(fault) => {
            record.refused(fault.reason, &fault.detail).write(worker);
            return io.reset_on_drop();
        }
    };
    let (service, client) = (record.service, record.client);
    if let Some(out) = &out {
        out.leaves(worker, client);
    }
    let endpoint = &Arc::clone(in_flight.endpoint());
    let tls = match out.as_ref().map(|out| out.guard.open().tls) {
        Some(policy::TlsKind::ApplicationTls) => TlsKind::App,
        _ => record::tls_kind(endpoint, own.is_some()),
    };
    let open = {
        let peer = endpoint.identity().map_or("", |id| id.as_str());
        let (route, backend) = (record.route, record.backend);
        let labels = ConnectionLabels { direction: Direction::Outbound, tls, peer, service, route, backend };
        worker.metrics.connections(&labels).open()
    };
    let meter = exchange::meter(&open);
    let passed = own.as_ref().map(|own| (&*own.guard, &*own.passed.rule));
    let (guard, rule) = passed.or_else(|| out.as_ref().map(|out| (&*out.guard, &*out.rule))).unzip();
    let record = ConnectionRecord {
        tls,
        endpoint: Some(own.as_ref().map_or(endpoint.address, |own| own.application.address)),
        destination: endpoint.identity(),
        rule: rule.unwrap_or_default(),
        ..record
    };
    let relayed = Relayed::new(worker, Arc::clone(&meter), record);
    let ended = {
        let mut relay = pin!(opaque::relay(io.metered(Arc::clone(&meter)), server, guard));
        let mut spoke = false;
        poll_fn(|cx| {
            let ended = relay.as_mut().poll(cx);
            if !spoke && meter.sent() > 0 {
                spoke = true;
                in_flight.spoke();
            }
            ended
        })
        .await
    };
    let Some(record) = relayed.over() else { return };
    match (ended, guard) {
        (Ended::Revoked, Some(guard)) => return record.cut(worker, guard),
        (Ended::Reset(error), _) => {
            if error.by_server && meter.sent() == 0 {
                in_flight.never_spoke();
            }
            tracing::debug!(%client, %service, %error, "a relayed connection was reset");
        }
        (Ended::Closed | Ended::Revoked, _) => {}
    }
    record.write(worker);
}

#[cfg(test)]
mod tests;
