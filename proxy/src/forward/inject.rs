//! What goes wrong with a try on purpose.
//!
//! Held tries are as slow backends, and answered ones as backends that answer so: timeouts and retries see no difference. Nothing is
//! sent, and no endpoint is thought the worse of for it. Called by `outbound`.

use std::time::Duration;

use super::again::Cause;
use super::context::Worker;
use super::exchange::Failed;
use super::fault::Fault;
use super::record::Record;
use crate::route::{Abort, FaultRule, Injected, Retry};
use crate::telemetry::Reason;
use crate::telemetry::metrics::FaultKind;

/// Lets one try go wrong, if it is drawn for it. `limit`: how long the try may take; then what is left of it.
///
/// # Errors
/// What the try has come to.
pub(super) async fn inject(
    worker: &Worker,
    record: &mut Record,
    rule: &FaultRule,
    retry: Option<&Retry>,
    limit: Option<Duration>,
) -> Result<Option<Duration>, Failed> {
    let Injected { delay, abort } = rule.draw([rand::random(), rand::random()]);
    let mut left = limit;
    if let Some(delay) = delay {
        worker.metrics.injected(FaultKind::Delay);
        let held = limit.map_or(delay, |limit| limit.min(delay));
        record.waits(worker.proxy.now());
        tokio::time::sleep(held).await;
        record.waited(worker.proxy.now());
        left = limit.map(|limit| limit.saturating_sub(delay));
    }
    if let (Some(limit), Some(Duration::ZERO)) = (limit, left) {
        record.attempts += 1;
        let detail = format!("{limit:?}, all of it held by fault {}", rule.name);
        let fault = Fault::maybe(Reason::BackendTimeout, detail);
        return Err(Failed { fault, again: Some(Cause::Late), whole: true });
    }
    let Some(abort) = abort else { return Ok(left) };
    record.attempts += 1;
    worker.metrics.injected(FaultKind::Abort);
    let fault = Fault::unsent(Reason::FaultInjected, format!("fault {}", rule.name)).answering(abort);
    let again = retry.is_some_and(|retry| is_for(retry, abort, record.grpc)).then_some(Cause::Status);
    Err(Failed { fault, again, whole: true })
}

/// Whether the answer would not be taken, were it a backend's.
fn is_for(retry: &Retry, abort: Abort, grpc: bool) -> bool {
    match abort {
        Abort::Http(status) if retry.is_for(status.as_u16()) => true,
        _ if grpc => retry.is_for_grpc(abort.grpc().into()),
        _ => retry.is_for(abort.http().as_u16()),
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn an_injected_answer_is_as_a_backends() {
        let retry = Retry { codes: [503].into(), grpc_codes: 1 << 14, ..Retry::default() };
        let http = |status| Abort::Http(StatusCode::from_u16(status).unwrap());
        for (abort, grpc, again) in [
            (http(503), false, true),
            (http(503), true, true),
            (http(504), false, false),
            // gRPC's client gets UNAVAILABLE for it.
            (http(504), true, true),
            (Abort::Grpc(14), true, true),
            (Abort::Grpc(14), false, true),
            (Abort::Grpc(8), true, false),
            (Abort::Grpc(8), false, false),
        ] {
            assert_eq!(is_for(&retry, abort, grpc), again, "{abort:?} {grpc}");
        }
    }
}
