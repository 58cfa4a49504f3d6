//! Whether a request still fits the rate limits that speak of it, and what is told of that.
//!
//! Asked once policy has let it in, so that whoever may not ask at all uses up nothing. What is opaque is not limited: limits
//! count requests. Called by `inbound`; by `outbound` for what its workload asks of others, and for what goes to itself.

use std::sync::Arc;
use std::time::Instant;

use http::Request;

use super::context::Worker;
use super::fault::Fault;
use super::filters;
use super::record::Record;
use super::target::Target;
use crate::limit::{Asking, Refused};
use crate::policy;
use crate::route::Requests;
use crate::wire::Body;

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
    let asking = Asking { asked: filters::asked(request), identity: open.peer.as_ref(), port: open.port };
    let now = Instant::now();
    limits.take(&asking, now, tells(worker)).map_err(|refused| refuse(record, refused))?;
    would_refuse(record, limits.would_refuse(|_| true, &asking, now, tells_of_dry_run(worker)));
    Ok(())
}

/// Counts a request of this workload to a service by what is said of it there, once, however often it is sent.
pub(super) fn outbound(
    worker: &Worker,
    record: &mut Record,
    request: &Request<Body>,
    target: &Target,
    said: &Requests<'_>,
) -> Result<(), Fault> {
    if said.rate_limits().next().is_none() {
        return Ok(());
    }
    let Target::Service(service, port) = target else { return Ok(()) };
    let Some(limits) = service.rates() else { return Ok(()) };
    let creds = worker.proxy.creds.load();
    let identity = creds.as_ref().map(|creds| creds.id());
    let asking = Asking { asked: filters::asked(request), identity, port: *port };
    let among = |name: &str| said.rate_limits().any(|limit| &*limit.name == name);
    let now = Instant::now();
    let taken = limits.take_of(among, &asking, now, tells(worker));
    taken.map_err(|refused| refuse(record, refused))?;
    would_refuse(record, limits.would_refuse(among, &asking, now, tells_of_dry_run(worker)));
    Ok(())
}

fn tells(worker: &Worker) -> impl FnMut(&Arc<str>, bool) {
    move |name: &Arc<str>, allowed: bool| {
        worker.metrics.rate_limit(name, if allowed { "allowed" } else { "refused" });
    }
}

fn tells_of_dry_run(worker: &Worker) -> impl FnMut(&Arc<str>, bool) {
    move |name: &Arc<str>, allowed: bool| {
        worker.metrics.rate_limit(name, if allowed { "allowed" } else { "would_refuse" });
    }
}

/// A limit in dry run has no room for a request that goes on; the first that would refuse it is told.
fn would_refuse(record: &mut Record, limit: Option<Arc<str>>) {
    if record.would_deny.is_none() {
        record.would_deny = limit;
    }
}

fn refuse(record: &mut Record, refused: Refused) -> Fault {
    record.rule = Some(Arc::clone(&refused.name));
    let fault = Fault::limited(&refused);
    record.limited = Some(Box::new(refused));
    fault
}
