//! Copies of requests, to backends whose answers nobody waits for (GEP-3171, `HTTPRoute.spec.rules.filters.requestMirror`).
//!
//! Decides which requests are copied, and how many copies are under way at once: what is too much is left out, and counted. A copy must
//! never delay, change or fail the request itself. Called by `outbound`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, header};
use http_body_util::BodyExt as _;

use super::admit;
use super::context::Worker;
use super::exchange::{self, Leg, Tunnels};
use super::fault::Fault;
use super::headers;
use super::record::InFlight;
use super::target::{self, Target};
use crate::route::{Found, Mirror};
use crate::telemetry::Reason;
use crate::telemetry::metrics::MirrorResult;
use crate::wire::h1::OriginalHead;
use crate::wire::{Body, Framing};

/// How many copies one worker has under way at once; each keeps at most 64 KiB of its request.
pub(super) const MOST: usize = 64;
/// How long one may take, its answer included.
const LIMIT: Duration = Duration::from_secs(10);
/// How much of an answer is read, so that its connection can serve again.
const MAX_ANSWER: usize = 1024 * 1024;

/// Sends copies of a request, as it is now, where the rule wants them.
pub(super) fn start(
    worker: &Arc<Worker>,
    client: SocketAddr,
    framing: Framing,
    found: &Found<'_>,
    request: &mut Request<Body>,
) {
    let Some(filters) = found.rule.filters.as_deref().filter(|filters| !filters.mirrors.is_empty()) else {
        return;
    };
    // What becomes of these is a connection, not a request.
    let is_tunnel = *request.method() == Method::CONNECT
        || framing == Framing::Http1 && headers::is_upgrade(request.headers());
    for mirror in filters.mirrors.iter().filter(|mirror| !is_tunnel && mirror.takes(rand::random())) {
        let Ok(place) = Arc::clone(&worker.mirrors).try_acquire_owned() else {
            worker.metrics.mirrored(MirrorResult::Dropped);
            continue;
        };
        let (request, mirror, worker) = (copy(request), mirror.clone(), Arc::clone(worker));
        tokio::spawn(async move {
            let sent = Box::pin(send(&worker, client, framing, &mirror, request));
            let result = match tokio::time::timeout(LIMIT, sent).await {
                Ok(Ok(())) => MirrorResult::Answered,
                Ok(Err(fault)) => {
                    let (reason, detail) = (fault.reason.code(), &*fault.detail);
                    tracing::debug!(service = %mirror.service, reason, detail, "a copy of a request failed");
                    MirrorResult::Failed
                }
                Err(_) => MirrorResult::TimedOut,
            };
            worker.metrics.mirrored(result);
            drop(place);
        });
    }
}

/// A request like this one, whose body follows as that one's passes.
fn copy(request: &mut Request<Body>) -> Request<Body> {
    let (body, copied) = std::mem::take(request.body_mut()).copied();
    *request.body_mut() = body;
    let mut copy = Request::new(copied);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    // Nobody waits for its backend to say `100 Continue`.
    copy.headers_mut().remove(header::EXPECT);
    if let Some(original) = request.extensions().get::<OriginalHead>() {
        copy.extensions_mut().insert(original.clone());
    }
    copy
}

async fn send(
    worker: &Arc<Worker>,
    client: SocketAddr,
    framing: Framing,
    mirror: &Mirror,
    mut request: Request<Body>,
) -> Result<(), Fault> {
    let service = target::service(worker, &mirror.service).await?;
    let endpoint = Target::Service(service, mirror.port).pick(worker, None)?;
    let application = worker.proxy.own_application(&endpoint);
    let own = admit::own(worker, &endpoint, application, client).await?;
    let mut in_flight = InFlight::start(worker, &endpoint);
    let (to, guard) = match &own {
        Some(own) => (&own.application, Some(&own.guard)),
        None => (&endpoint, None),
    };
    let tunnels = Tunnels::default();
    let leg = Leg { endpoint: to, framing, limit: None, tunnels: &tunnels, fresh: false, keep: false, guard };
    let sent = admit::unless_revoked(worker, guard, exchange::send(worker, leg, &mut request)).await;
    in_flight.answered(sent.as_ref().is_ok_and(|response| !response.status().is_server_error()));
    let mut body = sent.map_err(|failed| failed.fault)?.into_body();
    let mut left = MAX_ANSWER;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Fault::maybe(Reason::UpstreamReset, error.to_string()))?;
        let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, bytes::Bytes::len)) else { break };
        left = rest;
    }
    Ok(())
}
