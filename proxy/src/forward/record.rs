//! What is told about a request once it is over, or a connection without any: one metric, one line in the access log, and the same to who looks on.
//!
//! A request is over when its response's body is ([`Tracked`]), or is given up. Called by `outbound` and `inbound`.

mod tracked;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use http_body::Body as _;
use tulle_certs::SpiffeId;

pub(super) use self::tracked::Tracked;

use self::tracked::Until;
use super::admit::{self, UnderWay};
use super::context::Worker;
use super::exchange::{Answer, Failed, Tunnelled};
use super::fault::{self, Fault, GRPC_STATUS};
use super::headers::{self, Said};
use super::idle::Idle;
use super::in_flight::InFlight;
use crate::endpoint::Endpoint;
use crate::io::Meter;
use crate::limit::Refused;
use crate::policy::{self, Claims};
use crate::state::Peer;
use crate::telemetry::Reason;
use crate::telemetry::access;
use crate::telemetry::metrics::{DetectResult, Direction, Outcome, RequestLabels, SessionResult, TlsKind};
use crate::telemetry::tap::Watched;
use crate::telemetry::timestamp::wall;
use crate::telemetry::trace::{self, KeyValue, Sampling, TraceId, Tracing};
use crate::wire::{Body, Transfer, Upgrade};

/// One request, from its head to the end of its response.
#[derive(Debug)]
pub(super) struct Record {
    worker: Arc<Worker>,
    direction: Direction,
    connection: u64,
    started: Instant,
    client: SocketAddr,
    method: http::Method,
    /// The target, and `Host` where that does not say it, when they will be logged or told by a span.
    target: Option<(Uri, Option<HeaderValue>)>,
    /// The trace that it belongs to, when it will be logged.
    trace: Option<TraceId>,
    version: http::Version,
    /// The proxy's own answer is gRPC's.
    pub(super) grpc: bool,
    /// The fault's answer tells the peer's proxy whether the request was processed.
    to_mesh: bool,
    /// `None`: the request has no body.
    uploaded: Option<Arc<Transfer>>,
    pub(super) source: Option<SpiffeId>,
    pub(super) service: Option<Arc<str>>,
    pub(super) route: Option<Arc<str>>,
    pub(super) backend: Option<Arc<str>>,
    pub(super) session: Option<SessionResult>,
    pub(super) destination: Option<SpiffeId>,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) tls: TlsKind,
    pub(super) attempts: u32,
    status: u16,
    grpc_status: Option<u32>,
    reason: Option<Reason>,
    /// Who says the reason, if that is the other workload's proxy.
    by: Option<HeaderValue>,
    detail: Box<str>,
    pub(super) rule: Option<Arc<str>>,
    /// What its token says, where one was verified.
    pub(super) claims: Option<Arc<Claims>>,
    /// The rule in dry run that would have refused it.
    pub(super) would_deny: Option<Arc<str>>,
    /// Inbound: what a change of policy judges it by, as long as nothing else waits for that.
    pub(super) under_way: Option<UnderWay>,
    /// The rate limit that has no room for it.
    pub(super) limited: Option<Box<Refused>>,
    /// A change of policy that revokes it ends the request.
    pub(super) guard: Option<Arc<policy::Guard>>,
    /// Inbound: the port that the client dialled, by which policy is chosen.
    pub(super) port: u16,
    /// Outbound: what its rule and its port say of the access log.
    pub(super) logged: [Option<Arc<access::Said>>; 2],
    /// How long it has waited for others.
    upstream: Duration,
    /// Since when it waits for others, if it does, by the proxy's clock.
    waits: Option<u64>,
    /// When it last had waited, by the same clock: when the head of an answer came, if one did.
    waited: u64,
    /// The proxy's own part of the time until there was an answer.
    processing: Option<Duration>,
    /// What passes through the tunnel that it has become.
    tunnel: Option<Arc<Meter>>,
    /// Its place in a trace, where requests are traced.
    tracing: Option<Tracing>,
    /// Who looks on, if anybody does.
    watched: Option<Box<Watched>>,
    ended: bool,
}

// === impl Record ===

impl Record {
    pub(super) fn new(
        worker: &Arc<Worker>,
        direction: Direction,
        connection: u64,
        client: SocketAddr,
        request: &mut Request<Body>,
    ) -> Box<Self> {
        worker.metrics.request_began(direction);
        let uploaded = (!request.body().is_end_stream()).then(|| {
            let uploaded = Arc::new(Transfer::default());
            let body = std::mem::take(request.body_mut());
            *request.body_mut() = body.counted(Arc::clone(&uploaded)).trimmed(headers::strip_claims);
            uploaded
        });
        let tracer = worker.proxy.telemetry.traces.get();
        let watched = worker.proxy.telemetry.taps.begin(direction, request);
        let logged = worker.access.is_enabled() || watched.is_some();
        let (mut tracing, mut target, mut trace) = (None, None, None);
        if logged || tracer.is_some() {
            // One walk over the fields for all.
            let (values, host) = walked(request.headers());
            tracing = tracer.map(|tracer| Tracing::begin(tracer, request.headers(), &values));
            let told = logged || tracing.as_ref().is_some_and(Tracing::is_recorded);
            target = told.then(|| (request.uri().clone(), headers::needed_of(request.uri(), host).cloned()));
            trace = match &tracing {
                Some(tracing) => Some(tracing.trace()),
                None => trace::heard(&values),
            };
        }
        Box::new(Self {
            worker: Arc::clone(worker),
            direction,
            connection,
            started: Instant::now(),
            client,
            method: request.method().clone(),
            target,
            trace,
            version: request.version(),
            grpc: headers::is_grpc(request.headers()),
            to_mesh: false,
            uploaded,
            source: None,
            service: None,
            route: None,
            backend: None,
            session: None,
            destination: None,
            endpoint: None,
            tls: TlsKind::Unknown,
            attempts: 0,
            status: 0,
            grpc_status: None,
            reason: None,
            by: None,
            detail: Box::default(),
            rule: None,
            claims: None,
            would_deny: None,
            under_way: None,
            limited: None,
            guard: None,
            port: 0,
            logged: [None, None],
            upstream: Duration::ZERO,
            waits: None,
            waited: 0,
            processing: None,
            tunnel: None,
            tracing,
            watched,
            ended: false,
        })
    }

    /// Whether its trace is recorded is decided anew, by what policies say of it.
    pub(super) fn sample(&mut self, request: &Request<Body>, said: impl FnOnce() -> Sampling) {
        let Some(tracing) = &mut self.tracing else { return };
        tracing.sample(said(), request.headers(), self.started);
        if self.target.is_none() && tracing.is_recorded() {
            self.target = Some(target_of(request));
        }
    }

    /// Says in what goes on of the request to which span of which trace that belongs.
    pub(super) fn pass_on(&self, request: &mut Request<Body>) {
        if let Some(tracing) = &self.tracing {
            let version = request.version();
            tracing.pass_on(request.headers_mut(), version);
        }
    }

    /// Something has happened to it, which its span tells.
    pub(super) fn happened(&mut self, name: &'static str, attributes: impl FnOnce() -> Vec<KeyValue>) {
        if let Some(tracing) = &mut self.tracing {
            tracing.event(name, attributes);
        }
    }

    /// A call of gRPC is made for it, of which its trace tells where that is recorded, and `fields` whoever is called.
    pub(super) fn calls(
        &self,
        method: &'static str,
        attributes: impl FnOnce() -> Vec<KeyValue>,
        fields: &mut HeaderMap,
    ) -> Option<trace::Child> {
        self.tracing.as_ref()?.child(method, attributes, fields)
    }

    /// It is sent again, after this came of the last try, to that endpoint if one was chosen.
    pub(super) fn sent_again(&mut self, tried: Result<&Answer, &Failed>, endpoint: Option<&Endpoint>) {
        let Some(tracing) = &mut self.tracing else { return };
        let grpc = self.grpc;
        tracing.event("tulle.retry", || {
            let mut told = match tried {
                Ok(answer) => vec![answered(&answer.response, grpc)],
                Err(Failed { fault, .. }) => vec![
                    KeyValue::new("tulle.reason", fault.reason.code()),
                    KeyValue::new("tulle.detail", fault.detail.to_string()),
                ],
            };
            let endpoint = endpoint.map(|endpoint| endpoint.address.to_string());
            told.extend(endpoint.map(|endpoint| KeyValue::new("tulle.endpoint", endpoint)));
            told
        });
    }

    /// Of a request whose head was refused: nothing in it can be believed.
    pub(super) fn unread(mut self: Box<Self>) -> Box<Self> {
        self.method = http::Method::from_bytes(b"-").unwrap_or_default();
        self.target = None;
        self
    }

    /// The request came from another proxy, which a fault's answer may tell more than an application.
    pub(super) fn set_peer(&mut self, peer: SpiffeId) {
        self.source = Some(peer);
        self.tls = TlsKind::Mtls;
        self.to_mesh = true;
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// One more attempt, at this endpoint; `application` is dialled in its place where the endpoint is this very workload's.
    pub(super) fn sent_to(&mut self, endpoint: &Endpoint, application: Option<SocketAddr>) {
        self.attempts += 1;
        self.endpoint = Some(application.unwrap_or(endpoint.address));
        self.destination = endpoint.identity().cloned();
        self.tls = tls_kind(endpoint, application.is_some());
    }

    /// From now on, by the proxy's clock, it waits for others, until it [has waited](Self::waited) or is given up meanwhile: that time is not
    /// the proxy's own.
    pub(super) fn waits(&mut self, now: u64) {
        self.waits = Some(now);
    }

    /// As of [`Self::waits`].
    pub(super) fn waited(&mut self, now: u64) {
        if let Some(since) = self.waits.take() {
            self.upstream += Duration::from_nanos(now.saturating_sub(since));
            self.waited = now;
        }
    }

    /// The head of an answer has come, when it last had waited: that spares the clock.
    fn came(&mut self) {
        let since = |started| Duration::from_nanos(self.waited.saturating_sub(started));
        if self.waits.is_none() && self.waited > 0 {
            let taken = since(self.worker.proxy.nanos(self.started));
            self.processing.get_or_insert_with(|| taken.saturating_sub(self.upstream));
        }
    }

    /// There is an answer, or will be none. What follows goes as fast as both ends let it, and is not the proxy's own time.
    fn decided(&mut self) -> Duration {
        if self.waits.is_some() {
            self.waited(self.worker.proxy.now());
        }
        let processing = || self.started.elapsed().saturating_sub(self.upstream);
        *self.processing.get_or_insert_with(processing)
    }

    /// The proxy's own answer.
    pub(super) fn fault(mut self: Box<Self>, fault: &Fault) -> Response<Tracked> {
        self.reason = Some(fault.reason);
        self.detail = fault.detail.clone();
        self.worker.metrics.refused(self.direction, fault.reason);
        let speaker = self.worker.proxy.speaker(self.direction);
        let mut response = fault.response(speaker, self.grpc, self.to_mesh);
        if let Some(refused) = &self.limited {
            fault::mark_limited(refused, response.headers_mut(), self.grpc);
        }
        if self.method == http::Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        self.track(response, None, None)
    }

    /// The answer of whoever the request went to, or of a rule. The other workload's proxy may have made it itself; from nobody else has
    /// a field come through that says so.
    pub(super) fn answer(mut self: Box<Self>, answer: Answer) -> Response<Tracked> {
        let Answer { response, in_flight, bounds, guard, said } = answer;
        if said != Said::Nothing {
            let told = response.headers().get(headers::ERROR).and_then(|error| error.to_str().ok());
            self.reason = told.and_then(Reason::from_code);
        }
        if self.reason.is_some() {
            let by = response.headers().get(headers::ERROR_BY).cloned();
            self.by = Some(by.unwrap_or(HeaderValue::from_static("")));
        }
        let down = bounds.as_ref().and_then(|bounds| bounds.idle.as_ref()).map(Idle::down);
        let response = match down {
            Some(down) => response.map(|body| body.counted(down)),
            None => response,
        };
        // Only where it will be told.
        if self.target.is_some() {
            self.came();
        }
        let under_way = if bounds.is_some() || guard.is_some() { self.lasts() } else { None };
        let until = Until::new(&self.worker, bounds, guard, under_way);
        self.track(response, in_flight, until)
    }

    fn track(
        mut self: Box<Self>,
        mut response: Response<Body>,
        in_flight: Option<InFlight>,
        until: Option<Until>,
    ) -> Response<Tracked> {
        self.status = response.status().as_u16();
        if self.grpc {
            self.grpc_status = grpc_status(response.headers());
        }
        // Only where it will be told.
        if self.target.is_some() {
            self.decided();
        }
        if let Some(watched) = &mut self.watched {
            watched.answered(response.headers());
        }
        if Upgrade::is_agreed(&self.method, response.status())
            && let Some(tunnel) = response.extensions_mut().remove::<Tunnelled>()
        {
            self.count(self.started.elapsed(), [0, 0]);
            self.tunnel = Some(Arc::clone(&tunnel.meter));
            tunnel.takes(self);
            return response.map(|body| Tracked {
                body,
                downloaded: 0,
                record: None,
                until: None,
                in_flight,
                waits: false,
            });
        }
        response.map(|body| Tracked {
            body: body.trimmed(headers::strip_ours),
            downloaded: 0,
            record: Some(self),
            until,
            in_flight,
            waits: false,
        })
    }

    /// Whether its client is told in trailers why a response is broken off.
    fn ends_with_a_status(&self) -> bool {
        self.grpc && self.version == http::Version::HTTP_2
    }

    /// What passes of its body, if it has one.
    pub(super) fn uploaded(&self) -> Option<Arc<Transfer>> {
        self.uploaded.clone()
    }

    /// What a change of policy judges it by from now on, on which connection.
    fn lasts(&mut self) -> Option<(Arc<policy::Guard>, UnderWay)> {
        Some((self.guard.clone()?, self.under_way.take()?))
    }

    /// Why it ends when nobody wants the answer any more.
    fn gone(&self) -> Reason {
        match &self.guard {
            Some(guard) if guard.is_revoked() => admit::revocation(&self.worker, guard).reason,
            _ if self.worker.proxy.is_stopped() => Reason::Draining,
            _ => Reason::ClientClosed,
        }
    }

    /// The tunnel that it has become is over; `revoked`: a change of policy has cut it.
    pub(super) fn tunnel_ended(mut self: Box<Self>, revoked: Option<&policy::Guard>) {
        if let Some(guard) = revoked {
            let Fault { reason, detail, .. } = admit::revocation(&self.worker, guard);
            self.worker.metrics.refused(self.direction, reason);
            tell_of_refusal(self.direction, self.client, text(&self.service), reason, &detail);
            (self.reason, self.detail) = (Some(reason), detail);
        }
        self.end(0);
    }

    /// Its metrics. Those of a tunnel are of the answer that made it one: how long people talk is no latency.
    fn count(&mut self, duration: Duration, [uploaded, downloaded]: [u64; 2]) {
        self.worker.metrics.request_ended(self.direction);
        let peer = match self.direction {
            Direction::Inbound => &self.source,
            Direction::Outbound => &self.destination,
        };
        let cells = self.worker.metrics.requests(&RequestLabels {
            direction: self.direction,
            tls: self.tls,
            peer: id(peer),
            service: text(&self.service),
            route: text(&self.route),
            backend: text(&self.backend),
        });
        let outcome = Outcome {
            method: (&self.method).into(),
            status: self.status,
            grpc_status: self.grpc_status,
            reason: self.reason,
            by_peer: self.by.is_some(),
        };
        let histogram = cells.record(outcome, duration);
        if let Some(span) = self.tracing.as_ref().and_then(Tracing::span) {
            self.worker.metrics.exemplify(histogram, duration, span, SystemTime::now());
        }
        self.worker.metrics.sizes(self.direction, uploaded, downloaded);
    }

    fn end(&mut self, downloaded: u64) {
        self.ended = true;
        let now = Instant::now();
        let duration = now.saturating_duration_since(self.started);
        let uploaded = self.uploaded.as_ref().map_or(0, |uploaded| uploaded.bytes());
        let (bytes_in, bytes_out) = match &self.tunnel {
            Some(meter) => (meter.received(), meter.sent()),
            None => {
                self.count(duration, [uploaded, downloaded]);
                (uploaded, downloaded)
            }
        };
        let mut tracing = self.tracing.take();
        let span = tracing.as_ref().and_then(Tracing::span);
        let access = &self.worker.access;
        let watched = self.watched.take();
        if !access.is_enabled() && span.is_none() && watched.is_none() {
            return;
        }
        let processing = Some(self.decided());
        let own = || self.worker.proxy.speaker(self.direction).as_str();
        let target = self.target.as_ref();
        let told = access::Record {
            time: wall(now),
            direction: self.direction,
            protocol: protocol(self.version, self.grpc),
            version: Some(self.version),
            method: self.method.as_str(),
            path: target.map_or("", |(target, _)| target.path()),
            authority: target.map_or("", |(target, host)| headers::host_of(target, host.as_ref())),
            status: (self.status != 0).then_some(self.status),
            grpc_status: self.grpc_status,
            reason: self.reason,
            by: match (self.reason, &self.by) {
                (None, _) => "",
                (Some(_), None) => own(),
                (Some(_), Some(by)) => by.to_str().unwrap_or_default(),
            },
            detail: &self.detail,
            trace_id: self.trace,
            span_id: span.map(|span| span.span),
            client: Some(self.client),
            source: id(&self.source),
            destination: id(&self.destination),
            service: text(&self.service),
            route: text(&self.route),
            backend: text(&self.backend),
            session: self.session.map_or("", SessionResult::as_str),
            detected: "",
            endpoint: self.endpoint,
            rule: text(&self.rule),
            would_deny: text(&self.would_deny),
            issuer: self.claims.as_ref().map_or("", |claims| claims.issuer()),
            tls: self.tls,
            bytes_in,
            bytes_out,
            duration,
            processing,
            attempts: self.attempts,
            connection: self.connection,
        };
        let [rule, port] = &self.logged;
        log(&self.worker, &told, self.port, [rule.as_deref(), port.as_deref()]);
        if let Some(watched) = watched {
            watched.end(&told);
        }
        if let Some(tracing) = &mut tracing {
            tracing.end(&told);
        }
    }
}

/// What is said of the traces of what comes to a port.
pub(super) fn sampling(worker: &Worker, port: u16) -> Sampling {
    let snapshot = worker.proxy.store.load();
    snapshot.inbound.as_ref().map(|policy| policy.sampling(port)).unwrap_or_default()
}

/// Writes a line of the access log, if the policies that hold for it want one, or those for the workload, or else the mesh.
fn log(worker: &Worker, record: &access::Record<'_>, port: u16, outbound: [Option<&access::Said>; 2]) {
    if !worker.access.is_enabled() {
        return;
    }
    let snapshot = worker.proxy.store.load();
    let mesh = snapshot.mesh.as_ref().and_then(|mesh| mesh.access_log.as_ref());
    let own = snapshot.inbound.as_ref().and_then(|policy| policy.spec().access_log.as_ref());
    let [first, second] = match record.direction {
        Direction::Inbound => [snapshot.inbound.as_ref().and_then(|policy| policy.access_log(port)), None],
        Direction::Outbound => outbound,
    };
    worker.access.write(record, [first, second, own, mesh]);
}

fn target_of(request: &Request<Body>) -> (Uri, Option<HeaderValue>) {
    (request.uri().clone(), headers::needed_host(request).cloned())
}

/// What a head says of traces, and its `Host`.
fn walked(fields: &HeaderMap) -> (trace::Values<'_>, Option<&HeaderValue>) {
    let (mut values, mut host) = (trace::Values::default(), None);
    for (name, value) in fields {
        match *name {
            http::header::HOST => drop(host.get_or_insert(value)),
            _ => values.take(name, value),
        }
    }
    (values, host)
}

fn id(id: &Option<SpiffeId>) -> &str {
    id.as_ref().map_or("", SpiffeId::as_str)
}

fn text(text: &Option<Arc<str>>) -> &str {
    text.as_deref().unwrap_or("")
}

/// How what goes to `endpoint` is protected; it is `own` where the endpoint is this very workload's.
pub(super) fn tls_kind(endpoint: &Endpoint, own: bool) -> TlsKind {
    match &endpoint.peer {
        Peer::Mesh(_) if own => TlsKind::Own,
        Peer::Mesh(_) => TlsKind::Mtls,
        Peer::Plaintext => TlsKind::None,
    }
}

fn protocol(version: http::Version, grpc: bool) -> &'static str {
    match version {
        _ if grpc => "gRPC",
        http::Version::HTTP_2 => "HTTP/2",
        http::Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

impl Drop for Record {
    /// The client went away before there was an answer, or was cut off.
    fn drop(&mut self) {
        if !self.ended {
            self.reason = Some(self.gone());
            self.end(0);
        }
    }
}

/// What a span tells of the answer of a try: gRPC's status where there is one, since HTTP's says nothing then.
fn answered<B>(answer: &Response<B>, grpc: bool) -> KeyValue {
    match grpc_status(answer.headers()).filter(|_| grpc) {
        Some(status) => KeyValue::new("rpc.response.status_code", trace::grpc_name(status)),
        None => KeyValue::new("http.response.status_code", i64::from(answer.status().as_u16())),
    }
}

pub(super) fn grpc_status(fields: &HeaderMap) -> Option<u32> {
    fields.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// What is told about a connection that carried no HTTP, or was refused.
#[derive(Debug)]
pub(super) struct ConnectionRecord<'a> {
    pub direction: Direction,
    pub id: u64,
    pub client: SocketAddr,
    /// Inbound: the port that the client dialled, by which policy is chosen; 0 where that is not known.
    pub port: u16,
    pub source: Option<&'a SpiffeId>,
    pub destination: Option<&'a SpiffeId>,
    pub service: &'a str,
    /// The server name that the client gave in TLS of its own, where anything was decided by it.
    pub authority: &'a str,
    /// The TLSRoute or TCPRoute that it follows, and the backend that this chose.
    pub route: &'a str,
    pub backend: &'a str,
    /// The rule that let it through.
    pub rule: &'a str,
    /// That in dry run which would not.
    pub would_deny: &'a str,
    pub endpoint: Option<SocketAddr>,
    /// How it was found that it is not HTTP.
    pub detected: Option<DetectResult>,
    pub tls: TlsKind,
    pub started: Instant,
    /// Bytes from and to the client.
    pub bytes: (u64, u64),
    pub refused: Option<(Reason, &'a str)>,
}

/// Tells of a connection that its worker ends with itself, as all others are told when they are over.
pub(super) struct Relayed<'a> {
    worker: &'a Worker,
    meter: Arc<Meter>,
    record: Option<ConnectionRecord<'a>>,
}

// === impl Relayed ===

impl<'a> Relayed<'a> {
    /// `record` is of a connection whose bytes `meter` counts.
    pub(super) fn new(worker: &'a Worker, meter: Arc<Meter>, record: ConnectionRecord<'a>) -> Self {
        Self { worker, meter, record: Some(record) }
    }

    /// It is over; what is told of it.
    pub(super) fn over(mut self) -> Option<ConnectionRecord<'a>> {
        self.take()
    }

    fn take(&mut self) -> Option<ConnectionRecord<'a>> {
        let bytes = (self.meter.received(), self.meter.sent());
        self.record.take().map(|record| ConnectionRecord { bytes, ..record })
    }
}

impl Drop for Relayed<'_> {
    fn drop(&mut self) {
        let worker = self.worker;
        let refused = worker.proxy.is_stopped().then_some((Reason::Draining, ""));
        if let Some(record) = self.take() {
            ConnectionRecord { refused, ..record }.tell(worker);
        }
    }
}

/// Tells of a connection that is refused before anything is known of it but where it came from.
pub fn refused(worker: &Worker, direction: Direction, client: SocketAddr, reason: Reason, detail: &str) {
    ConnectionRecord::new(worker, direction, client, Instant::now()).refused(reason, detail).write(worker);
}

fn tell_of_refusal(direction: Direction, client: SocketAddr, service: &str, reason: Reason, detail: &str) {
    let (direction, reason) = (direction.as_str(), reason.code());
    tracing::warn!(%client, direction, reason, detail, service, "refused a connection");
}

impl<'a> ConnectionRecord<'a> {
    /// Of a connection about which nothing more is known; `started`: when it was accepted.
    pub(super) fn new(worker: &Worker, direction: Direction, client: SocketAddr, started: Instant) -> Self {
        Self {
            direction,
            id: worker.proxy.connection_id(),
            client,
            port: 0,
            source: None,
            destination: None,
            service: "",
            authority: "",
            route: "",
            backend: "",
            rule: "",
            would_deny: "",
            endpoint: None,
            detected: None,
            tls: TlsKind::Unknown,
            started,
            bytes: (0, 0),
            refused: None,
        }
    }

    pub(super) fn refused(self, reason: Reason, detail: &'a str) -> Self {
        Self { refused: Some((reason, detail)), ..self }
    }

    /// Tells of a client that a proxy which drains has given up: it had not said what it speaks, only so many bytes.
    pub(super) fn given_up(self, worker: &Worker, said: usize) {
        if said == 0 {
            // As an idle connection: nothing was asked, so that nobody misses an answer.
            let (client, direction) = (self.client, self.direction.as_str());
            tracing::debug!(%client, direction, "draining: closed a connection on which nothing was said");
            return;
        }
        let detail = "the client had begun, and not said in time what it speaks (TULLE_PROXY_DETECT_TIMEOUT)";
        let record = Self { bytes: (said as u64, 0), detected: Some(DetectResult::Drained), ..self };
        record.refused(Reason::Draining, detail).write(worker);
    }

    /// Tells of a connection that a change of policy has cut.
    pub(super) fn cut(self, worker: &Worker, guard: &policy::Guard) {
        let fault = admit::revocation(worker, guard);
        ConnectionRecord { refused: Some((fault.reason, &fault.detail)), ..self }.write(worker);
    }

    /// Counts the refusal, if it is one, and writes the line.
    pub(super) fn write(&self, worker: &Worker) {
        let (reason, detail) = self.refused.unzip();
        if let Some(reason) = reason {
            worker.metrics.refused(self.direction, reason);
            tell_of_refusal(self.direction, self.client, self.service, reason, detail.unwrap_or_default());
        }
        self.tell(worker);
    }

    /// Writes the line.
    fn tell(&self, worker: &Worker) {
        let (reason, detail) = self.refused.unzip();
        let duration = self.started.elapsed();
        let tracer = worker.proxy.telemetry.traces.get();
        let mut tracing = tracer.and_then(|tracer| {
            let said = match self.direction {
                Direction::Inbound => sampling(worker, self.port),
                Direction::Outbound => Sampling::default(),
            };
            Tracing::connection(tracer, said, self.started)
        });
        let span = tracing.as_ref().and_then(Tracing::span);
        let told = access::Record {
            time: SystemTime::now(),
            direction: self.direction,
            protocol: if self.tls == TlsKind::App { "TLS" } else { "TCP" },
            version: None,
            method: "",
            path: "",
            authority: self.authority,
            status: None,
            grpc_status: None,
            reason,
            by: reason.map_or("", |_| worker.proxy.speaker(self.direction).as_str()),
            detail: detail.unwrap_or_default(),
            trace_id: span.map(|span| span.trace),
            span_id: span.map(|span| span.span),
            client: Some(self.client),
            source: self.source.map_or("", SpiffeId::as_str),
            destination: self.destination.map_or("", SpiffeId::as_str),
            service: self.service,
            route: self.route,
            backend: self.backend,
            session: "",
            detected: self.detected.map_or("", DetectResult::as_str),
            endpoint: self.endpoint,
            rule: self.rule,
            would_deny: self.would_deny,
            issuer: "",
            tls: self.tls,
            bytes_in: self.bytes.0,
            bytes_out: self.bytes.1,
            duration,
            processing: None,
            attempts: u32::from(self.endpoint.is_some()),
            connection: self.id,
        };
        log(worker, &told, self.port, [None, None]);
        worker.proxy.telemetry.taps.connection(&told);
        if let Some(tracing) = &mut tracing {
            tracing.end(&told);
        }
    }
}
