//! Whether a request still fits the rate limits that speak of it, and what is told of that.
//!
//! Asked once policy has let it in, so that whoever may not ask at all uses up nothing. What is opaque is not limited: limits
//! count requests. Called by `inbound`, and by `outbound` for what goes to its own workload.

use std::sync::Arc;
use std::time::Instant;

use http::Request;

use super::context::Worker;
use super::fault::Fault;
use super::filters;
use super::record::Record;
use crate::limit::{Asking, RateLimits};
use crate::policy;
use crate::wire::Body;
use tulle_certs::SpiffeId;

/// Counts a request to the application beside this proxy, which policy has let in as `guard`.
pub(super) fn inbound(
    worker: &Worker,
    record: &mut Record,
    request: &Request<Body>,
    guard: &policy::Guard,
) -> Result<(), Fault> {
    let snapshot = worker.proxy.store.load();
    let Some(limits) = snapshot.inbound.as_ref().and_then(|inbound| inbound.rate_limits()) else {
        return Ok(());
    };
    let open = guard.open();
    take(worker, limits, record, request, open.peer.as_ref(), open.port)
}

fn take(
    worker: &Worker,
    limits: &RateLimits,
    record: &mut Record,
    request: &Request<Body>,
    identity: Option<&SpiffeId>,
    port: u16,
) -> Result<(), Fault> {
    let asking = Asking { asked: filters::asked(request), identity, port };
    let told = |name: &Arc<str>, allowed| worker.metrics.rate_limit(name, allowed);
    limits.take(&asking, Instant::now(), told).map_err(|refused| {
        record.rule = Some(Arc::clone(&refused.name));
        let fault = Fault::limited(&refused);
        record.limited = Some(Box::new(refused));
        fault
    })
}
