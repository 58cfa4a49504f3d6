//! One request to one endpoint and its answer; what both directions share.
//!
//! Decides what is known of a request that failed; whether it is sent again is [`again`](super::again)'s.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::admit;
use super::again::{self, Cause};
use super::context::Worker;
use super::fault::Fault;
use super::headers::{self, Said};
use super::idle::Idle;
use super::in_flight::{Begun, InFlight};
use super::record::{Record, Tracked};
use crate::endpoint::{ConnectError, Dial, Endpoint, Http1, Http2, Preferred, Way};
use crate::io::{self, Io, Meter, Transport as _, streams};
use crate::policy;
use crate::route::{Cors, CorsInPlace};
use crate::state::Peer;
use crate::telemetry::Reason;
use crate::telemetry::metrics::{ConnectionCells, Direction, OpenConnection};
use crate::tls;
use crate::wire::{self, Body, Framing, Processed, Spare, Upgrade, h1, http2};

/// A request that got no answer from its endpoint.
#[derive(Debug)]
pub(super) struct Failed {
    pub fault: Fault,
    /// Why it could be sent again; `None`: that would come to the same.
    pub again: Option<Cause>,
    /// What is left of the request is all of it.
    pub whole: bool,
}

/// Where a request goes, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leg<'a> {
    pub endpoint: &'a Arc<Endpoint>,
    /// As the application uses it.
    pub framing: Framing,
    /// How long the answer's head may take.
    pub limit: Option<Duration>,
    pub tunnels: &'a Tunnels,
    /// Not over a connection that has idled, or of HTTP/2 was dialled before then ([`needs_fresh`](super::again::needs_fresh)).
    pub fresh: Option<Instant>,
    /// The request may have to be sent again though there is an answer, which may say that there was none.
    pub keep: bool,
    /// Of what goes to the application beside this proxy, the registration with its policy.
    pub guard: Option<&'a Arc<policy::Guard>>,
    /// Told once there is a connection for it.
    pub begun: &'a Begun,
}

/// What an endpoint answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub response: Response<Body>,
    /// `None`: the proxy answers itself, by a rule.
    pub in_flight: Option<InFlight>,
    /// What the other proxy says of it.
    pub said: Said,
    /// How long it may take; `None`: as long as it does.
    pub bounds: Option<Box<Bounds>>,
    /// What goes with the response, and breaks it off when it is revoked.
    pub guard: Option<Arc<policy::Guard>>,
}

/// How long an answer may take.
#[derive(Debug)]
pub(super) struct Bounds {
    /// When the whole must be over, and what is told where it is not.
    pub deadline: Option<(Instant, Reason)>,
    /// How long nothing may pass.
    pub idle: Option<Idle>,
}

/// The connections that one client's connection has turned into, by upgrade or CONNECT. They are part of it: while any
/// lasts, it counts as open, is bound by the limit on connections and registered with the policy.
#[derive(Debug, Default)]
pub(super) struct Tunnels {
    tasks: TaskTracker,
}

/// A tunnel that was opened: it takes the record of its request, and ends it when it ends itself. In the extensions of the response that
/// says so.
#[derive(Clone, Debug)]
pub(super) struct Tunnelled {
    record: Arc<Mutex<Option<oneshot::Sender<Box<Record>>>>>,
    /// What passes, from the client and to it.
    pub meter: Arc<Meter>,
}

/// Counts what passes in the connection's metrics.
#[derive(Debug)]
struct Counted(Arc<ConnectionCells>);

/// What a dial from this worker goes by.
pub(super) fn dial(worker: &Worker) -> Dial {
    worker.proxy.dial(worker.metrics.clone())
}

/// The fields of a request while somebody else has them: copied into a list, which is cheaper than another map.
#[derive(Debug, Default)]
pub(super) struct Fields {
    lent: Vec<(HeaderName, HeaderValue)>,
    /// As they were before they were changed for one endpoint only.
    before: Option<Box<HeaderMap>>,
}

/// Sends a request and returns its answer's head. What is left of `request` is [whole](Failed) where it failed so; its head is where it
/// did, or where it is to be [kept](Leg), once what was `lent` of it is [back](Fields::give_back).
pub(super) async fn send(
    worker: &Worker,
    leg: Leg<'_>,
    request: &mut Request<Body>,
    lent: &mut Fields,
) -> Result<Response<Body>, Failed> {
    let Leg { endpoint, framing, limit, tunnels, guard, begun, .. } = leg;
    let upgrade = headers::strip_requests_hop(request.headers_mut(), framing == Framing::Http1);
    let method = request.method().clone();
    if framing == Framing::Http2 && request.uri().authority().is_none() {
        // The client named its host in `host` only (RFC 9113 §8.3.1), and so do we: h2 takes that of older versions.
        *request.version_mut() = Version::HTTP_11;
    }
    let client = (upgrade || method == Method::CONNECT).then(|| Upgrade::of_request(request));
    // Pinned, so that it is not there once for each of the two ways to wait for it.
    let send = pin!(async {
        match framing {
            Framing::Http1 => send_http1(worker, leg, &mut *request, upgrade).await,
            Framing::Http2 => send_http2(worker, leg, &mut *request, lent).await,
        }
    });
    let mut response = match limit {
        None => send.await?,
        Some(limit) => match tokio::time::timeout(limit, send).await {
            Ok(sent) => sent?,
            Err(_) => {
                let detail = format!("{} within {limit:?}", endpoint.address);
                return Err(match begun.is_so() {
                    true => {
                        let fault = Fault::maybe(Reason::BackendTimeout, detail);
                        Failed { fault, again: Some(Cause::Late), whole: false }
                    }
                    false => {
                        let fault = Fault::unsent(Reason::BackendTimeout, detail);
                        Failed { fault, again: Some(Cause::Slow), whole: true }
                    }
                });
            }
        },
    };
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    headers::strip_hop(response.headers_mut(), upgraded);
    if let Some(client) = client.filter(|_| Upgrade::is_agreed(&method, response.status())) {
        let opened = tunnels.open(client, Upgrade::of_response(&mut response), guard.cloned());
        response.extensions_mut().insert(opened);
    }
    Ok(response)
}

/// Has what passes of the request's body kept, as far as it is short, where it may have to be sent again and nobody sees to that yet: a
/// connection that has served others may be about to be closed, which harms what is idempotent not at all.
fn spare(keep: bool, reused: bool, request: &mut Request<Body>) -> Option<Spare> {
    let may_break = reused && !keep && request.method().is_idempotent();
    may_break.then(|| request.body_mut().keep(again::REPLAYED))
}

async fn send_http1(
    worker: &Worker,
    leg: Leg<'_>,
    request: &mut Request<Body>,
    upgrade: bool,
) -> Result<Response<Body>, Failed> {
    let Leg { endpoint, fresh, keep, begun, .. } = leg;
    let idle = fresh.is_none().then_some(worker.proxy.settings.idle_timeout);
    let preferred = preferred(endpoint, request, fresh.is_some(), upgrade);
    let connection = endpoint.http1(worker.index, preferred, idle, || dial(worker)).await;
    let Http1 { client, pooled, reused, way, until, held } = match connection {
        Ok(connection) => connection,
        Err(error) => return Err(unconnected(&error)),
    };
    if reused {
        worker.metrics.pool_reused();
    }
    let done = {
        let (endpoint, index) = (Arc::clone(endpoint), worker.index);
        move |client| {
            endpoint.keep_http1(index, Http1 { client, pooled, reused: true, way, until, held: false })
        }
    };
    let downstream = request.extensions().get::<h1::Exchange>().cloned();
    let in_place = request.extensions().get::<CorsInPlace>().is_some();
    let interim = |mut response: Response<()>| {
        headers::strip_hop(response.headers_mut(), false);
        // No proxy sends any of its own.
        headers::strip_ours(response.headers_mut());
        if in_place {
            Cors::strip(response.headers_mut());
        }
        downstream.as_ref().map(|downstream| downstream.interim(&response));
    };
    begins(worker, endpoint, begun, held.then_some(reused));
    let spare = spare(keep, reused, request);
    let body = std::mem::take(request.body_mut());
    match client.send(request, body, interim, done).await {
        Ok(response) => Ok(response.map(Body::http1)),
        Err(error) => {
            let refused = tls::refused_by_peer(&error.failure);
            let unseen = refused || streams::is_unseen(&error.failure);
            let processed = if unseen { Processed::No } else { error.processed };
            let again = match processed {
                _ if matches!(error.failure, h1::Failure::Body(_)) => None,
                Processed::No if reused && !refused => Some(Cause::Ended),
                Processed::No => Some(Cause::Unprocessed),
                Processed::Maybe if reused && !error.answered => Some(Cause::Stale),
                Processed::Maybe => Some(Cause::Broken),
            };
            let reason = match error.failure {
                _ if refused => Reason::PeerRefusedTls,
                h1::Failure::Response(_) => Reason::UpstreamMalformed,
                h1::Failure::Body(_) => Reason::MalformedRequest,
                _ => Reason::UpstreamReset,
            };
            let detail = format!("{}: {}", endpoint.address, Chain(&error.failure));
            let fault = Fault::new(reason, processed, detail);
            let body = error.body.or_else(|| spare.and_then(Spare::body));
            let whole = body.map(|body| *request.body_mut() = body).is_some();
            Err(Failed { fault, again, whole })
        }
    }
}

/// A request goes to its endpoint. `held`: it has waited for its connection under our own limits, and whether that had served others, so that it
/// was waited for until now; else until it had its place, and then for the endpoint.
fn begins(worker: &Worker, endpoint: &Endpoint, begun: &Begun, held: Option<bool>) {
    let Some(reused) = held else { return begun.at_once() };
    let since = match endpoint.room.seated().filter(|_| !reused) {
        Some(seated) => worker.proxy.nanos(seated),
        None => worker.proxy.now(),
    };
    endpoint.load.goes(since);
    begun.at(since);
}

/// From so many requests in flight on, the leg to another proxy is shared: there is enough to say in one turn for a record
/// and a system call fewer to pay for the frames.
const SHARED_FROM: u32 = 4;
/// A body that is known to be longer than this has a connection of its own: it gains nothing, and would be copied.
const SHARED_BODY: u64 = 32 * 1024;

/// Which way a request of HTTP/1 goes to an endpoint.
fn preferred(endpoint: &Endpoint, request: &Request<Body>, fresh: bool, upgrade: bool) -> Preferred {
    let is_short = http_body::Body::size_hint(request.body()).lower() <= SHARED_BODY;
    let stays_http = *request.method() != Method::CONNECT && !upgrade;
    let or_other = endpoint.peer != Peer::Plaintext && is_short && stays_http;
    let is_busy = endpoint.load.in_flight() >= SHARED_FROM;
    Preferred { way: if or_other && is_busy && !fresh { Way::Shared } else { Way::Own }, or_other }
}

async fn send_http2(
    worker: &Worker,
    leg: Leg<'_>,
    request: &mut Request<Body>,
    lent: &mut Fields,
) -> Result<Response<Body>, Failed> {
    let Leg { endpoint, fresh, keep, begun, .. } = leg;
    let Http2 { mut sender, place, held } = match endpoint.http2(worker.index, fresh, || dial(worker)).await {
        Ok(connection) => connection,
        Err(error) => return Err(unconnected(&error)),
    };
    begins(worker, endpoint, begun, held.then(|| sender.is_reused()));
    // A stream does not give back what it has taken; a request without a body is copied cheaply.
    let bodyless = http_body::Body::is_end_stream(request.body());
    let spare = if bodyless { None } else { spare(keep, sender.is_reused(), request) };
    let is_kept = keep || spare.as_ref().is_some_and(|spare| spare.bytes().is_some());
    let rest = if bodyless || is_kept { lent.lend(request) } else { without_fields(request) };
    let sent = sender.send(std::mem::replace(request, rest), place).await;
    let error = match sent {
        Ok(response) => return Ok(response),
        Err(error) => error,
    };
    let refused = tls::refused_by_peer(&error.source);
    let processed = if refused { Processed::No } else { error.processed };
    let reason = match &error.source {
        _ if refused => Reason::PeerRefusedTls,
        broken if broken.is_of_peer() => Reason::UpstreamMalformed,
        _ => Reason::UpstreamReset,
    };
    let detail = format!("{}: {}", endpoint.address, Chain(&error.source));
    let given = error.request.map(|given| *request = *given).is_some();
    if given {
        lent.lent.clear();
    }
    let spared = if given { None } else { spare.and_then(Spare::body) };
    let whole = bodyless || given || spared.is_some();
    if let Some(body) = spared {
        *request.body_mut() = body;
    }
    let again = match processed {
        _ if error.source.is_of_request() => None,
        Processed::No if error.ended => Some(Cause::Ended),
        Processed::No => Some(Cause::Unprocessed),
        Processed::Maybe if error.stale => Some(Cause::Stale),
        Processed::Maybe => Some(Cause::Broken),
    };
    let fault = Fault::new(reason, processed, detail);
    Err(Failed { fault, again, whole })
}

/// Another endpoint may be reached, unless it is the service that is full.
pub(super) fn unconnected(error: &ConnectError) -> Failed {
    let again = match error {
        ConnectError::Limited(full) => full.of_endpoint.then_some(Cause::Full),
        _ => Some(Cause::Unreached),
    };
    Failed { fault: connect_fault(error), again, whole: true }
}

/// The fault of a request or connection that could not be made because its endpoint could not be reached.
pub(super) fn connect_fault(error: &ConnectError) -> Fault {
    Fault::unsent(error.reason(), error.to_string())
}

/// Serves the requests of one connection, until it ends, or once `drain` is ready until those under way are answered;
/// `refuse` answers what is no request. `drain` may become ready without waking anybody by the time a handler is.
pub(super) async fn serve<H, F>(
    worker: &Worker,
    direction: Direction,
    framing: Framing,
    io: Io,
    handler: H,
    refuse: impl Fn(&Fault) -> Response<Tracked>,
    drain: impl Future<Output = ()>,
) where
    H: Fn(Request<Body>) -> F,
    F: Future<Output = Response<Tracked>> + Send + 'static,
{
    let settings = &worker.proxy.settings;
    match framing {
        Framing::Http2 => {
            if let Err(error) = http2::serve(io, &settings.http2, handler, drain).await {
                tracing::debug!(error = %Chain(&error), direction = direction.as_str(), "HTTP/2 connection ended");
            }
        }
        Framing::Http1 => {
            let handler = |request: Request<h1::Body>| handler(request.map(Body::http1));
            let refuse = |error: h1::HeadError| refuse(&Fault::unsent(refusal(error), error.to_string()));
            // Between proxies, where the next request may be on its way already.
            let farewell = if io.may_half_close() { &b""[..] } else { headers::FAREWELL };
            let http1 = h1::Settings { farewell, ..settings.http1 };
            let closed = h1::serve(io, &[], http1, handler, refuse, drain).await;
            tracing::debug!(end = %Chain(&closed), direction = direction.as_str(), "HTTP/1 connection ended");
        }
    }
}

/// What a client is told whose head cannot be read.
pub fn refusal(error: h1::HeadError) -> Reason {
    match error {
        h1::HeadError::Malformed(_) => Reason::MalformedRequest,
        h1::HeadError::TooLarge(_) | h1::HeadError::TooManyFields(_) => Reason::HeadTooLarge,
    }
}

/// Counts what a connection carries in its metrics, as it passes: one that lives for days is seen all the while.
pub(super) fn meter(open: &OpenConnection) -> Arc<Meter> {
    Arc::new(Meter::telling(Counted(Arc::clone(open.cells()))))
}

/// Bytes from and to the client.
pub(super) fn bytes(meter: &Meter) -> (u64, u64) {
    (meter.received(), meter.sent())
}

/// What is always known of a request that was sent: what may be done about it goes by its method.
fn without_fields(request: &Request<Body>) -> Request<Body> {
    let mut rest = Request::default();
    rest.method_mut().clone_from(request.method());
    rest
}

// === impl Fields ===

impl Fields {
    /// The same request, without a body and the fields.
    fn lend(&mut self, request: &Request<Body>) -> Request<Body> {
        let fields = request.headers();
        self.lent.reserve_exact(fields.len());
        self.lent.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
        let mut rest = without_fields(request);
        *rest.uri_mut() = request.uri().clone();
        *rest.version_mut() = request.version();
        if !request.extensions().is_empty() {
            *rest.extensions_mut() = request.extensions().clone();
        }
        rest
    }

    /// Gives the request back what is not there any more.
    pub(super) fn give_back(&mut self, request: &mut Request<Body>) {
        if let Some(before) = self.before.take() {
            *request.headers_mut() = *before;
            return self.lent.clear();
        }
        for (name, value) in self.lent.drain(..) {
            request.headers_mut().append(name, value);
        }
    }

    /// Whoever the request goes to next, if it is sent again, gets the fields as they are now.
    pub(super) fn keep(&mut self, request: &Request<Body>) {
        self.before = Some(Box::new(request.headers().clone()));
    }
}

// === impl Tunnels ===

impl Tunnels {
    /// Relays what is no longer HTTP, until `guard` is revoked.
    fn open(&self, client: Upgrade, server: Upgrade, guard: Option<Arc<policy::Guard>>) -> Tunnelled {
        let (sender, record) = oneshot::channel::<Box<Record>>();
        let meter = Arc::new(Meter::default());
        let opened = Tunnelled { record: Arc::new(Mutex::new(Some(sender))), meter: Arc::clone(&meter) };
        self.tasks.spawn(async move {
            let revoked = tokio::select! {
                ended = wire::tunnel(client, server, meter) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "an upgraded connection was reset");
                    }
                    None
                },
                () = admit::revoked(guard.as_deref()) => guard,
            };
            if let Ok(record) = record.await {
                record.tunnel_ended(revoked.as_deref());
            }
        });
        opened
    }

    /// Waits for the end of all, once their connection is no longer HTTP.
    pub(super) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

// === impl Tunnelled ===

impl Tunnelled {
    /// Hands the record over. Where the tunnel is gone already, the record ends here.
    pub(super) fn takes(&self, record: Box<Record>) {
        if let Some(tunnel) = self.record.lock().take() {
            drop(tunnel.send(record));
        }
    }
}

// === impl Counted ===

impl io::Tally for Counted {
    fn received(&self, bytes: u64) {
        self.0.received(bytes);
    }

    fn sent(&self, bytes: u64) {
        self.0.sent(bytes);
    }
}

/// An error with all its causes, for people.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut told = self.0.to_string();
        f.write_str(&told)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            let cause = error.to_string();
            // Some tell their cause themselves.
            if !told.ends_with(&cause) {
                write!(f, ": {cause}")?;
            }
            told = cause;
            source = error.source();
        }
        Ok(())
    }
}
