//! What is told about a request once it is over: one metric, one line in the access log, one update of the load.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, header};
use http_body::{Body as _, Frame, SizeHint};
use tulle_certs::SpiffeId;

use super::admit;
use super::context::Worker;
use super::exchange::{Answer, Bounds};
use super::fault::{self, Fault, GRPC_STATUS};
use super::headers;
use super::idle::Idle;
use crate::balance;
use crate::endpoint::{Endpoint, RequestSeat};
use crate::limit::Refused;
use crate::policy;
use crate::state::Peer;
use crate::telemetry::metrics::{DetectResult, Direction, Outcome, RequestLabels, SessionResult, TlsKind};
use crate::telemetry::{Reason, access};
use crate::wire::http2::{self, Outgoing};
use crate::wire::{Body, BodyError, Transfer};

/// One request, from its head to the end of its response.
#[derive(Debug)]
pub(super) struct Record {
    worker: Arc<Worker>,
    direction: Direction,
    connection: u64,
    started: Instant,
    client: SocketAddr,
    method: http::Method,
    /// The target and `Host`, when they will be logged.
    target: Option<(Uri, Option<HeaderValue>)>,
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
    /// The rate limit that has no room for it.
    pub(super) limited: Option<Box<Refused>>,
    /// A change of policy that revokes it ends the request.
    pub(super) guard: Option<Arc<policy::Guard>>,
    upstream: Duration,
    ended: bool,
}

/// A request under way at an endpoint: its load counts it until this is dropped.
#[derive(Debug)]
pub(super) struct InFlight {
    endpoint: Arc<Endpoint>,
    worker: Arc<Worker>,
    started: u64,
    answered: bool,
    /// What it came to, if the answer is whole.
    pub(super) later: Option<balance::Outcome>,
    /// When there must be an answer, by the proxy's clock: without one by then, it is the endpoint's fault.
    pub(super) until: u64,
    /// Its place, where these are limited.
    _seat: Option<RequestSeat>,
}

/// A response's body that ends its [`Record`] when it ends, breaks, or is dropped.
#[derive(Debug)]
pub(super) struct Tracked {
    body: Body,
    downloaded: u64,
    record: Option<Box<Record>>,
    /// What may break it off.
    until: Option<Until>,
    in_flight: Option<InFlight>,
}

/// Resolves, with the reason, when a response that is under way must be broken off.
struct Until(Pin<Box<dyn Future<Output = Reason> + Send>>);

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
            *request.body_mut() = body.counted(Arc::clone(&uploaded)).trimmed(headers::strip_ours);
            uploaded
        });
        let target = worker
            .access
            .is_enabled()
            .then(|| (request.uri().clone(), request.headers().get(header::HOST).cloned()));
        Box::new(Self {
            worker: Arc::clone(worker),
            direction,
            connection,
            started: Instant::now(),
            client,
            method: request.method().clone(),
            target,
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
            tls: TlsKind::None,
            attempts: 0,
            status: 0,
            grpc_status: None,
            reason: None,
            by: None,
            detail: Box::default(),
            rule: None,
            limited: None,
            guard: None,
            upstream: Duration::ZERO,
            ended: false,
        })
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

    /// Time spent waiting for others: it is not the proxy's own.
    pub(super) fn waited(&mut self, duration: Duration) {
        self.upstream += duration;
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
        let Answer { response, in_flight, bounds, guard, .. } = answer;
        let told = response.headers().get(headers::ERROR).and_then(|error| error.to_str().ok());
        self.reason = told.and_then(Reason::from_code);
        if self.reason.is_some() {
            let by = response.headers().get(headers::ERROR_BY).cloned();
            self.by = Some(by.unwrap_or(HeaderValue::from_static("")));
        }
        let down = bounds.idle.as_ref().map(Idle::down);
        let response = match down {
            Some(down) => response.map(|body| body.counted(down)),
            None => response,
        };
        let until = Until::new(Arc::clone(&self.worker), bounds, guard);
        self.track(response, in_flight, until)
    }

    fn track(
        mut self: Box<Self>,
        response: Response<Body>,
        in_flight: Option<InFlight>,
        until: Option<Until>,
    ) -> Response<Tracked> {
        self.status = response.status().as_u16();
        if self.grpc {
            self.grpc_status = grpc_status(response.headers());
        }
        response.map(|body| Tracked {
            body: body.trimmed(headers::strip_ours),
            downloaded: 0,
            record: Some(self),
            until,
            in_flight,
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

    /// Why it ends when nobody wants the answer any more.
    fn gone(&self) -> Reason {
        match &self.guard {
            Some(guard) if guard.is_revoked() => admit::revocation(&self.worker, guard).reason,
            _ => Reason::ClientClosed,
        }
    }

    fn end(&mut self, downloaded: u64) {
        self.ended = true;
        self.worker.metrics.request_ended(self.direction);
        let duration = self.started.elapsed();
        let peer = match self.direction {
            Direction::Inbound => &self.source,
            Direction::Outbound => &self.destination,
        };
        let (service, route, backend) = (text(&self.service), text(&self.route), text(&self.backend));
        let cells = self.worker.metrics.requests(&RequestLabels {
            direction: self.direction,
            tls: self.tls,
            peer: id(peer),
            service,
            route,
            backend,
        });
        let outcome = Outcome {
            method: (&self.method).into(),
            status: self.status,
            grpc_status: self.grpc_status,
            reason: self.reason,
            by_peer: self.by.is_some(),
        };
        cells.record(outcome, duration);
        let access = &self.worker.access;
        if !access.is_enabled() {
            return;
        }
        let own = || self.worker.proxy.speaker(self.direction).as_str();
        let target = self.target.as_ref();
        access.write(&access::Record {
            time: SystemTime::now(),
            direction: self.direction,
            protocol: protocol(self.version, self.grpc),
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
            client: Some(self.client),
            source: id(&self.source),
            destination: id(&self.destination),
            service,
            route,
            backend,
            session: self.session.map_or("", SessionResult::as_str),
            detected: "",
            endpoint: self.endpoint,
            rule: text(&self.rule),
            tls: self.tls,
            bytes_in: self.uploaded.as_ref().map_or(0, |uploaded| uploaded.bytes()),
            bytes_out: downloaded,
            duration,
            processing: Some(duration.saturating_sub(self.upstream)),
            attempts: self.attempts,
            connection: self.connection,
        });
    }
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

/// What is told about a connection that carried no HTTP, or was refused.
#[derive(Debug)]
pub(super) struct ConnectionRecord<'a> {
    pub direction: Direction,
    pub id: u64,
    pub client: SocketAddr,
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
    pub endpoint: Option<SocketAddr>,
    /// How it was found that it is not HTTP.
    pub detected: Option<DetectResult>,
    pub tls: TlsKind,
    pub started: Instant,
    /// Bytes from and to the client.
    pub bytes: (u64, u64),
    pub refused: Option<(Reason, &'a str)>,
}

impl<'a> ConnectionRecord<'a> {
    /// Of a connection about which nothing more is known.
    pub(super) fn new(worker: &Worker, direction: Direction, client: SocketAddr) -> Self {
        Self {
            direction,
            id: worker.proxy.connection_id(),
            client,
            source: None,
            destination: None,
            service: "",
            authority: "",
            route: "",
            backend: "",
            rule: "",
            endpoint: None,
            detected: None,
            tls: TlsKind::None,
            started: Instant::now(),
            bytes: (0, 0),
            refused: None,
        }
    }

    pub(super) fn refused(self, reason: Reason, detail: &'a str) -> Self {
        Self { refused: Some((reason, detail)), ..self }
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
            let (client, reason, direction) = (self.client, reason.code(), self.direction.as_str());
            tracing::warn!(%client, direction, reason, detail, service = self.service, "refused a connection");
        }
        worker.access.write(&access::Record {
            time: SystemTime::now(),
            direction: self.direction,
            protocol: if self.tls == TlsKind::App { "TLS" } else { "TCP" },
            method: "",
            path: "",
            authority: self.authority,
            status: None,
            grpc_status: None,
            reason,
            by: reason.map_or("", |_| worker.proxy.speaker(self.direction).as_str()),
            detail: detail.unwrap_or_default(),
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
            tls: self.tls,
            bytes_in: self.bytes.0,
            bytes_out: self.bytes.1,
            duration: self.started.elapsed(),
            processing: None,
            attempts: u32::from(self.endpoint.is_some()),
            connection: self.id,
        });
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

pub(super) fn grpc_status(fields: &HeaderMap) -> Option<u32> {
    fields.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

// === impl InFlight ===

impl InFlight {
    /// Where it is.
    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    pub(super) fn start(worker: &Arc<Worker>, endpoint: &Arc<Endpoint>) -> Self {
        let started = worker.proxy.now();
        endpoint.load.start(started);
        Self {
            endpoint: Arc::clone(endpoint),
            worker: Arc::clone(worker),
            started,
            answered: false,
            later: None,
            until: u64::MAX,
            _seat: None,
        }
    }

    /// Keeps its place until it is over.
    pub(super) fn seated(mut self, seat: Option<RequestSeat>) -> Self {
        self._seat = seat;
        self
    }

    pub(super) fn now(&self) -> u64 {
        self.worker.proxy.now()
    }

    /// The response's head is there, or the request failed.
    pub(super) fn answered(&mut self, success: bool) {
        if !std::mem::replace(&mut self.answered, true) {
            let now = self.worker.proxy.now();
            self.endpoint.load.answer(now, now.saturating_sub(self.started), success);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.answered {
            self.endpoint.load.end();
        } else {
            self.given_up();
            let now = self.worker.proxy.now();
            self.endpoint.load.abandon(now, now.saturating_sub(self.started));
        }
    }
}

// === impl Until ===

impl Until {
    /// `guard`: what it is registered as.
    fn new(worker: Arc<Worker>, bounds: Bounds, guard: Option<Arc<policy::Guard>>) -> Option<Self> {
        let Bounds { deadline, idle } = bounds;
        if deadline.is_none() && idle.is_none() && guard.is_none() {
            return None;
        }
        Some(Self(Box::pin(async move {
            let late = async {
                match deadline {
                    Some((at, reason)) => {
                        tokio::time::sleep_until(at.into()).await;
                        reason
                    }
                    None => std::future::pending().await,
                }
            };
            let idle = async {
                match &idle {
                    Some(idle) => idle.over().await.reason,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                reason = late => reason,
                reason = idle => reason,
                fault = admit::revoked_for_long(&worker, guard.as_deref()) => fault.reason,
            }
        })))
    }
}

impl std::fmt::Debug for Until {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Until")
    }
}

// === impl Tracked ===

impl Tracked {
    /// Why it must be broken off, once it must.
    fn poll_reason(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        let Some(Until(until)) = &mut self.until else { return Poll::Pending };
        let reason = ready!(until.as_mut().poll(cx));
        self.until = None;
        if let Some(record) = self.record.as_mut().filter(|record| record.grpc) {
            record.grpc_status = Some(u16::from(reason.grpc_status()).into());
        }
        if reason == Reason::RequestTimeout {
            self.in_flight.iter_mut().for_each(InFlight::broke);
        }
        self.end(Some(reason));
        Poll::Ready(reason)
    }

    fn end(&mut self, reason: Option<Reason>) {
        if reason.is_none() {
            self.in_flight.iter_mut().for_each(|in_flight| in_flight.is_over(None));
        }
        if let Some(mut record) = self.record.take() {
            if record.reason.is_none() {
                record.reason = reason;
            }
            record.end(self.downloaded);
        }
    }
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let is_grpc = self.record.as_ref().is_some_and(|record| record.ends_with_a_status());
        if let Poll::Ready(reason) = self.poll_reason(cx) {
            if is_grpc {
                // What its backend would still send is given up.
                self.body = Body::empty();
                return Poll::Ready(Some(Ok(Frame::trailers(fault::grpc_trailers(reason)))));
            }
            return Poll::Ready(Some(Err(BodyError::new(reason.message()))));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                self.downloaded += frame.data_ref().map_or(0, |data| data.len() as u64);
                if let (Some(trailers), Some(record)) = (frame.trailers_ref(), &mut self.record)
                    && record.grpc
                {
                    record.grpc_status = grpc_status(trailers);
                    let status = record.grpc_status;
                    self.in_flight.iter_mut().for_each(|in_flight| in_flight.is_over(status));
                }
            }
            Some(Err(error)) => {
                self.in_flight.iter_mut().for_each(InFlight::broke);
                let reason = Reason::UpstreamReset;
                // A reset is passed on as what it is; nothing else would tell the client whose fault it is.
                // Where a length was promised, nothing else can end it.
                let promised = self.body.size_hint().exact().is_some();
                let ends = is_grpc && !promised && !http2::is_reset(error);
                let last = ends.then(|| fault::grpc_trailers(reason));
                if let (Some(_), Some(record)) = (&last, &mut self.record) {
                    record.grpc_status = Some(u16::from(reason.grpc_status()).into());
                }
                self.end(Some(reason));
                if let Some(trailers) = last {
                    self.body = Body::empty();
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            }
            None => self.end(None),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Outgoing for Tracked {
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        self.poll_reason(cx).map(|reason| BodyError::new(reason.message()))
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        // A codec that knows the length need not ask for the end.
        let over = self.body.is_end_stream() || self.body.size_hint().exact() == Some(0);
        let gone = self.record.as_ref().map(|record| record.gone());
        self.end(gone.filter(|_| !over));
    }
}
