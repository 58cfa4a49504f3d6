//! Copies of requests, to backends whose answers nobody waits for (GEP-3171, `HTTPRoute.spec.rules.filters.requestMirror`).
//!
//! Decides which requests are copied, and how many copies are under way at once: what is too much is left out, and counted. A copy must
//! never delay, change or fail the request itself. Called by `outbound`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use http::{Method, Request, header};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;

use super::admit;
use super::asked::Asked;
use super::context::Worker;
use super::exchange::{self, Fields, Leg, Tunnels};
use super::external::{self, Asker};
use super::fault::Fault;
use super::headers;
use super::in_flight::InFlight;
use super::target::{self, Target};
use crate::route::{Found, Mirror};
use crate::state::ObjectName;
use crate::telemetry::Reason;
use crate::telemetry::metrics::MirrorResult;
use crate::wire::h1::OriginalHead;
use crate::wire::{Body, Framing};

/// Room for the copies that one worker has under way. Each service has its own, so that one that is slow takes none of another's.
#[derive(Debug, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<ObjectName, usize, RandomState>>>);

/// Taken until it is dropped.
struct Place {
    taken: Arc<Mutex<HashMap<ObjectName, usize, RandomState>>>,
    service: ObjectName,
}

/// How many copies to one service a worker has under way at once; each keeps at most 64 KiB of its request.
const MOST: usize = 64;
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
        let Some(place) = worker.mirrors.take(&mirror.service) else {
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
    let endpoint = {
        let asked = Asked { client, request: Some(&request) };
        Target::Service(service, mirror.port).pick(worker, &[], &asked)?
    };
    let application = worker.proxy.own_application(&endpoint);
    if application.is_some() {
        headers::take_claims(request.headers_mut(), None);
    }
    let own = admit::own(worker, &endpoint, application, client, Some(&mut request)).await?;
    if let Some(own) = &own {
        let (guard, application) = (&*own.guard, own.application.address);
        let asker = Asker { worker, guard, client, application, framing };
        if let Some(about) = external::about(asker, &request) {
            Box::pin(external::ask(asker, about, None, &mut request)).await?;
        }
    }
    let mut in_flight = InFlight::start(worker, &endpoint, worker.proxy.now());
    let (to, guard) = match &own {
        Some(own) => (&own.application, Some(&own.guard)),
        None => (&endpoint, None),
    };
    let (tunnels, begun, mut lent) = (&Tunnels::default(), &in_flight.begun, Fields::default());
    let leg = Leg { endpoint: to, framing, limit: None, tunnels, fresh: None, keep: false, guard, begun };
    let sent =
        admit::unless_revoked(worker, guard, exchange::send(worker, leg, &mut request, &mut lent)).await;
    let answered = worker.proxy.now();
    let mut response = sent.map_err(|failed| {
        let _told = in_flight.failed(&failed, answered);
        failed.fault
    })?;
    in_flight.answered(!response.status().is_server_error(), answered);
    headers::take_ours(response.headers_mut(), &endpoint.peer);
    // The backend's proxy says why its application has not got it.
    let refused =
        response.headers().get(headers::ERROR).and_then(|code| Reason::from_code(code.to_str().ok()?));
    let mut body = response.into_body();
    let mut left = MAX_ANSWER;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Fault::maybe(Reason::UpstreamReset, error.to_string()))?;
        let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, bytes::Bytes::len)) else { break };
        left = rest;
    }
    match refused {
        None => Ok(()),
        Some(reason) => Err(Fault::maybe(reason, format!("says the proxy at {}", endpoint.address))),
    }
}

// === impl Places ===

impl Places {
    fn take(&self, service: &ObjectName) -> Option<Place> {
        let mut all = self.0.lock();
        let taken = all.entry(service.clone()).or_default();
        if *taken >= MOST {
            return None;
        }
        *taken += 1;
        Some(Place { taken: Arc::clone(&self.0), service: service.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.taken.lock();
        if let Some(taken) = all.get_mut(&self.service) {
            *taken -= 1;
            if *taken == 0 {
                all.remove(&self.service);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_service_takes_no_place_of_another() {
        let places = Places::default();
        let [slow, other] = ["slow", "other"].map(|name| ObjectName::new("default", name));
        let taken: Vec<_> = std::iter::from_fn(|| places.take(&slow)).collect();
        assert_eq!(taken.len(), MOST);
        assert!(places.take(&other).is_some());
        drop(taken);
        assert!(places.0.lock().is_empty(), "nothing is remembered of what is over");
        assert!(places.take(&slow).is_some());
    }
}
