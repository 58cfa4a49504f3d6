//! Whether a request is sent again, and what is done until then.
//!
//! One place decides it, with and without a rule's `retry` ([`is_allowed`]): what provably was not processed may always be; what may have been
//! only where its method is idempotent (RFC 9110 §9.2.2), and without `retry` only where it hardly was; an answer of a status that the
//! user names is not taken, whatever the method. It must never buffer a body that nobody may want again. Called by
//! `outbound`, and by `inbound`, which has no routes.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request};
use http_body_util::BodyExt as _;

use super::context::Worker;
use super::exchange::{Answer, Failed};
use super::headers;
use super::target::Target;
use crate::endpoint::Endpoint;
use crate::route::Retry;
use crate::state::Peer;
use crate::telemetry::Reason;
use crate::telemetry::metrics::{ReplayCause, RetryCause, Unretried};
use crate::wire::{Body, Framing, Spare};

/// How much of a body is kept for what another proxy may find that it cannot pass on.
const REPLAYED: u64 = 16 * 1024;
/// How much of one is kept where a rule says that its requests are sent again.
const RETRIED: u64 = 64 * 1024;
/// How much of an answer that is not taken is read, so that its connection can serve again.
const MAX_ANSWER: usize = 64 * 1024;

/// Why a request that was tried could be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// It provably was not processed.
    Unprocessed,
    /// A connection that had served another failed before any byte of an answer: it was about to be closed, most likely.
    Stale,
    /// It got no answer, or none that can be read.
    Broken,
    /// It got none in time.
    Late,
    /// The answer's status is one of the rule's.
    Status,
}

/// What is known of one request's tries.
#[derive(Debug)]
pub(super) struct Tries<'a> {
    retry: Option<&'a Retry>,
    /// When the whole request must be over.
    deadline: Option<Instant>,
    /// How often it was sent again.
    made: u32,
    /// The endpoints that have failed it, the last one last.
    pub(super) failed: Vec<Failing>,
    /// Not over a connection that has idled: one has failed, and the others may be as old.
    pub(super) fresh: bool,
}

/// An endpoint that has failed a request.
#[derive(Debug)]
pub(super) struct Failing {
    pub endpoint: Arc<Endpoint>,
    /// It was reached, and did not answer well or in time.
    pub reached: bool,
}

/// Whether what has come to this may be sent again.
fn is_allowed(cause: Cause, method: &Method, retry: Option<&Retry>) -> bool {
    match (cause, retry) {
        (Cause::Unprocessed, _) | (Cause::Status, Some(_)) => true,
        (Cause::Stale, _) | (Cause::Broken | Cause::Late, Some(_)) => method.is_idempotent(),
        (Cause::Broken | Cause::Late | Cause::Status, None) => false,
    }
}

/// Why a request that failed is sent once more where no rule says anything of it; `None`: it is not.
pub(super) fn replay(failed: &Failed, method: &Method) -> Option<ReplayCause> {
    let cause = failed.again.filter(|cause| is_allowed(*cause, method, None))?;
    Some(if cause == Cause::Unprocessed { ReplayCause::Unprocessed } else { ReplayCause::Idempotent })
}

/// Why an answer need not be taken.
fn not_taken(answer: &Answer, retry: Option<&Retry>) -> Option<Cause> {
    if answer.unprocessed {
        return Some(Cause::Unprocessed);
    }
    let retry = retry?;
    match answer.response.headers().get(headers::ERROR) {
        None => retry.is_for(answer.response.status().as_u16()).then_some(Cause::Status),
        // Only of another proxy of the mesh has such a field come through. It is not the application's answer, so that no status of it
        // can be meant: either the application gave none, or another proxy would say the same.
        Some(told) => {
            let broke = [Reason::UpstreamReset, Reason::UpstreamMalformed];
            broke.iter().any(|reason| told == reason.code()).then_some(Cause::Broken)
        }
    }
}

/// Waits, and meanwhile reads what is left of an answer that was not taken, so that its connection can serve again; what is
/// too long or too slow for that is broken off.
pub(super) async fn pause(wait: Duration, answer: Option<Body>) {
    let over = tokio::time::sleep(wait);
    let Some(mut body) = answer else { return over.await };
    let read = async move {
        let mut left = MAX_ANSWER;
        while let Some(Ok(frame)) = body.frame().await {
            let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, bytes::Bytes::len)) else { return };
            left = rest;
        }
    };
    let mut over = pin!(over);
    tokio::select! {
        biased;
        () = read => over.await,
        () = &mut over => {}
    }
}

// === impl Tries ===

impl<'a> Tries<'a> {
    pub(super) fn new(retry: Option<&'a Retry>, deadline: Option<Instant>) -> Self {
        Self { retry, deadline, made: 0, failed: Vec::new(), fresh: false }
    }

    /// Has what passes of the request's body kept on its way to this endpoint, as far as it is short, if it may have to be sent again
    /// although it was taken.
    pub(super) fn spare(
        &self,
        request: &mut Request<Body>,
        framing: Framing,
        target: &Target,
        endpoint: &Arc<Endpoint>,
    ) -> Option<Spare> {
        let limit = match self.retry {
            Some(retry) => (self.made < retry.attempts).then_some(RETRIED),
            // What another proxy cannot pass on, or a server of HTTP/2 refuses unread (RFC 9113 §8.7), may go to another endpoint, if
            // there is one.
            None => {
                let may_refuse = matches!(endpoint.peer, Peer::Mesh(_)) || framing == Framing::Http2;
                (self.made == 0 && may_refuse && target.has_other(endpoint)).then_some(REPLAYED)
            }
        }?;
        let (body, spare) = std::mem::take(request.body_mut()).kept(limit);
        *request.body_mut() = body;
        Some(spare)
    }

    /// Whether the request, which is made whole for it, is to be sent again, after which time. Whoever still sends its body then is
    /// broken off.
    pub(super) fn next(
        &mut self,
        worker: &Worker,
        tried: &Result<Answer, Failed>,
        request: &mut Request<Body>,
        spare: Option<Spare>,
    ) -> Option<Duration> {
        let (cause, is_whole) = match tried {
            Ok(answer) => (not_taken(answer, self.retry)?, false),
            Err(failed) => (failed.again?, failed.whole),
        };
        if !is_allowed(cause, request.method(), self.retry) {
            return None;
        }
        let wait = match self.retry {
            None if self.made > 0 => return None,
            None => Duration::ZERO,
            Some(retry) if self.made >= retry.attempts => {
                worker.metrics.unretried(Unretried::Attempts);
                return None;
            }
            Some(retry) => retry.wait(self.made + 1, rand::random()),
        };
        let by = self.deadline.filter(|_| self.retry.is_some());
        if by.is_some_and(|by| Instant::now().checked_add(wait).is_none_or(|then| then >= by)) {
            worker.metrics.unretried(Unretried::Time);
            return None;
        }
        if !is_whole {
            let Some(body) = spare.and_then(Spare::body) else {
                if self.retry.is_some() {
                    worker.metrics.unretried(Unretried::Body);
                }
                return None;
            };
            *request.body_mut() = body;
        }
        match (self.retry, cause) {
            (None, Cause::Unprocessed) => worker.metrics.replayed(ReplayCause::Unprocessed),
            (None, _) => worker.metrics.replayed(ReplayCause::Idempotent),
            (Some(_), cause) => worker.metrics.retried(cause.into()),
        }
        self.made += 1;
        Some(wait)
    }

    /// An endpoint has failed the request: the next try is another's, if there is one.
    pub(super) fn has_failed(&mut self, endpoint: Arc<Endpoint>, tried: &Result<Answer, Failed>) {
        if self.failed.iter().any(|known| Arc::ptr_eq(&known.endpoint, &endpoint)) {
            // All have: from the beginning.
            self.failed.clear();
        }
        let reached = match tried {
            Ok(answer) => !answer.unprocessed,
            Err(failed) => failed.again == Some(Cause::Late),
        };
        self.failed.push(Failing { endpoint, reached });
        self.fresh |= tried.is_err();
    }

    /// Whether waiting belongs to it.
    pub(super) fn is_retry(&self) -> bool {
        self.retry.is_some()
    }
}

// === impl RetryCause ===

impl From<Cause> for RetryCause {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Unprocessed => Self::Unprocessed,
            Cause::Stale | Cause::Broken => Self::Broken,
            Cause::Late => Self::Late,
            Cause::Status => Self::Status,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_another_proxys_own_answer_is_nobodys() {
        let retry = Retry { codes: [403, 502].into(), attempts: 1, ..Retry::default() };
        let of = |status, told: Option<&'static str>, unprocessed| {
            let mut response = http::Response::builder().status(status).body(Body::empty()).unwrap();
            if let Some(told) = told {
                response.headers_mut().insert(headers::ERROR, http::HeaderValue::from_static(told));
            }
            let answer = Answer { response, in_flight: None, unprocessed, deadline: None, guard: None };
            not_taken(&answer, Some(&retry))
        };
        for (status, told, unprocessed, cause) in [
            (200, None, false, None),
            (403, None, false, Some(Cause::Status)),
            (403, Some("policy_denied"), false, None),
            (403, Some("a_reason_to_come"), false, None),
            (502, Some("upstream_reset"), false, Some(Cause::Broken)),
            (502, Some("upstream_malformed"), false, Some(Cause::Broken)),
            (503, Some("connect_failed"), true, Some(Cause::Unprocessed)),
        ] {
            assert_eq!(of(status, told, unprocessed), cause, "{status} {told:?}");
        }
    }

    #[test]
    fn what_may_have_been_processed_is_sent_again_only_where_that_does_no_harm() {
        let retry = Retry { codes: [503].into(), attempts: 1, ..Retry::default() };
        // By GET and POST, without a rule and with one.
        for (cause, get, post) in [
            (Cause::Unprocessed, [true, true], [true, true]),
            (Cause::Stale, [true, true], [false, false]),
            (Cause::Broken, [false, true], [false, false]),
            (Cause::Late, [false, true], [false, false]),
            (Cause::Status, [false, true], [false, true]),
        ] {
            let by = |method| [None, Some(&retry)].map(|retry| is_allowed(cause, &method, retry));
            assert_eq!((by(Method::GET), by(Method::POST)), (get, post), "{cause:?}");
            assert_eq!((by(Method::PUT), by(Method::PATCH)), (get, post), "{cause:?}");
        }
    }
}
