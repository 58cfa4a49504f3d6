//! Which endpoint takes a request where limits say how many may be under way at once: one with room, and until there is one
//! the request waits, for as long as the limits let it.
//!
//! Without limits it is the balancer's pick and nothing else. A session's request waits for its own endpoint. What does not get a place in
//! time is answered `overloaded`: it provably was not processed, and sending it again would only have it wait again. Called by `outbound`.

use std::sync::Arc;

use super::again::Failing;
use super::context::Worker;
use super::fault::Fault;
use super::record::Record;
use super::target::Target;
use crate::endpoint::{Endpoint, Full, Gate, RequestSeat, ServiceSeat};
use crate::state::Store;
use crate::telemetry::Reason;
use crate::telemetry::metrics::Metrics;

/// A place for a request at the endpoint that was picked for it, or at the one that the balancer picks of those that have room; by `key`, where
/// endpoints are chosen by hash, so that what one has no room for always goes to the same other.
pub(super) async fn seat(
    worker: &Worker,
    record: &mut Record,
    target: &Target,
    failed: &[Failing],
    picked: Arc<Endpoint>,
    key: Option<u64>,
) -> Result<(Arc<Endpoint>, Option<RequestSeat>), Fault> {
    let Some(gate) = picked.room.limited().cloned() else { return Ok((picked, None)) };
    record.waits(worker.proxy.now());
    let seated = Box::pin(seated(worker, target, failed, picked, key, gate)).await;
    record.waited(worker.proxy.now());
    seated
}

/// Has `/metrics` show what is taken of limits.
pub(super) fn show(store: &Arc<Store>, metrics: &Metrics) {
    let store = Arc::clone(store);
    metrics.limits(move || {
        let snapshot = store.load();
        let gates = snapshot.services.values().flat_map(|service| service.gates());
        gates.flat_map(|(_, gate)| gate.read()).collect()
    });
}

async fn seated(
    worker: &Worker,
    target: &Target,
    failed: &[Failing],
    picked: Arc<Endpoint>,
    key: Option<u64>,
    gate: Arc<Gate>,
) -> Result<(Arc<Endpoint>, Option<RequestSeat>), Fault> {
    let full = |full: Full| Fault::unsent(Reason::Overloaded, full.to_string());
    let patience = gate.patience(&worker.metrics);
    let mut seat = Some(gate.request(&patience).await.map_err(full)?);
    let take_at =
        |endpoint: Arc<Endpoint>, seat: &mut Option<ServiceSeat>| match endpoint.room.request(seat.take()?) {
            Ok(taken) => Some((endpoint, Some(taken))),
            Err(back) => {
                *seat = Some(back);
                None
            }
        };
    if matches!(target, Target::Session(..)) && failed.is_empty() {
        let (only, room) = (Arc::clone(&picked), Arc::clone(&picked.room));
        let take = || take_at(Arc::clone(&only), &mut seat);
        return gate.endpoint(Some(&room), &patience, take).await.map_err(full);
    }
    let take = || {
        let endpoint = next(worker, target, failed, &picked, key)?;
        take_at(endpoint, &mut seat)
    };
    gate.endpoint(None, &patience, take).await.map_err(full)
}

/// Where there may be a place: at the picked one, or at another; `None`: not yet. While the request waited, endpoints may have come
/// and gone; and where the service itself has gone, it is the picked one or none.
fn next(
    worker: &Worker,
    target: &Target,
    failed: &[Failing],
    picked: &Arc<Endpoint>,
    key: Option<u64>,
) -> Option<Arc<Endpoint>> {
    let (Target::Service(service, number) | Target::Session(service, number, _)) = target else {
        return Some(Arc::clone(picked));
    };
    let endpoints = service.serving(*number);
    let Some((endpoints, port)) = endpoints.as_ref().and_then(|all| Some((all, all.port(*number)?))) else {
        return Some(Arc::clone(picked));
    };
    let member = endpoints.at(*number, picked.address).filter(|one| Arc::ptr_eq(&one.endpoint, picked));
    if picked.room.has_room() && member.is_some_and(|member| port.may_take(member)) {
        return Some(Arc::clone(picked));
    }
    target.with_room(worker, failed, key).or_else(|| {
        // Where none should take anything, the balancer's pick is as good as any.
        let all_out = !port.members.iter().any(|member| port.may_take(member));
        all_out.then(|| Arc::clone(picked))
    })
}

#[cfg(test)]
mod tests;
