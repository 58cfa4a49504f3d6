//! Whether a request is sent again, and what is done until then.
//!
//! One place decides it, with and without a `retry` of a rule or policy. Without one: what provably was not processed is, and what may
//! have been hardly and is idempotent (RFC 9110 §9.2.2), once ([`is_replayed`]). With one: for the causes that it names, where the method is
//! idempotent unless it says otherwise, and for answers that it does not take, whatever the method ([`wants`]); as far as attempts, time,
//! the body, the server and the budget allow. What it is not for, or has no time, room or budget for, is as without one. It must never buffer a body
//! that nobody may want again. Called by `outbound`, and by `inbound`, which has no routes.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{Method, Request};
use http_body_util::BodyExt as _;

use super::context::Worker;
use super::exchange::{Answer, Failed};
use super::headers::{self, Said};
use super::pushback::{Pushback, pushback};
use super::record;
use super::target::Target;
use crate::endpoint::Endpoint;
use crate::route::{Budget, Retry};
use crate::state::Peer;
use crate::telemetry::Reason;
use crate::telemetry::metrics::{ReplayCause, RetryCause, RetryOutcome, Unretried};
use crate::wire::{Body, Framing, Spare};

/// How much of a body is kept for what another proxy may find that it cannot pass on, or a connection that is about to be closed.
pub(super) const REPLAYED: u64 = 16 * 1024;
/// So long is waited at most because a server says so; what is to wait longer is not sent again.
const MAX_PUSHBACK: Duration = Duration::from_secs(10);
/// How much of an answer that is not taken is read, so that its connection can serve again.
const MAX_ANSWER: usize = 64 * 1024;

/// Why a request that was tried could be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// No connection could be had.
    Unreached,
    /// Likewise, since our own limits on those to its endpoint left no room in time: another may have some, and there it would only wait again.
    Full,
    /// There was none in the time for one try.
    Slow,
    /// It was sent, and provably not processed.
    Unprocessed,
    /// Likewise, since the connection, which had served another, was at its end: that says nothing against its endpoint.
    Ended,
    /// A connection that had served another failed before any byte of an answer: closed for having idled, most likely, but its server may have died
    /// over this very request, so that it may be done.
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
    worker: &'a Worker,
    retry: Option<&'a Retry>,
    /// Where there is a retry, what is counted over all requests to the same port.
    budget: Option<Arc<Budget>>,
    /// When the whole request must be over.
    deadline: Option<Instant>,
    /// How often it was sent again.
    made: u32,
    /// Why it is now, if a retry says so: what becomes of that is to be counted.
    again: Option<RetryCause>,
    /// The endpoints that have failed it, the last one last.
    pub(super) failed: Vec<Failing>,
    /// As of a [`Leg`](super::exchange::Leg).
    pub(super) fresh: Option<Instant>,
}

/// An endpoint that has failed a request.
#[derive(Debug)]
pub(super) struct Failing {
    pub endpoint: Arc<Endpoint>,
    /// It was reached, and did not answer well or in time.
    pub reached: bool,
}

/// Whether what has come to this is sent once more where nothing is said of it.
fn is_replayed(cause: Cause, method: &Method) -> bool {
    match cause {
        Cause::Unreached | Cause::Full | Cause::Slow | Cause::Unprocessed | Cause::Ended => true,
        Cause::Stale => method.is_idempotent(),
        Cause::Broken | Cause::Late | Cause::Status => false,
    }
}

/// Whether a retry is for what has come to this.
///
/// # Errors
/// [`Unretried::Method`], if it is but for the method; `None`: it is not.
fn wants(retry: &Retry, cause: Cause, method: &Method) -> Result<(), Option<Unretried>> {
    let causes = &retry.causes;
    let (named, may_be_done) = match cause {
        Cause::Unreached | Cause::Full => (causes.connect_failure, false),
        Cause::Slow => (causes.connect_failure || causes.timeout, false),
        Cause::Unprocessed | Cause::Ended => (causes.refused, false),
        Cause::Stale | Cause::Broken => (causes.reset, true),
        Cause::Late => (causes.timeout, true),
        Cause::Status => (true, false),
    };
    match named {
        false => Err(None),
        true if may_be_done && !method.is_idempotent() && !retry.non_idempotent => {
            Err(Some(Unretried::Method))
        }
        true => Ok(()),
    }
}

/// Why a request that failed is sent once more where nothing is said of it; `None`: it is not.
pub(super) fn replay(failed: &Failed, method: &Method) -> Option<ReplayCause> {
    failed.again.filter(|cause| is_replayed(*cause, method)).map(ReplayCause::from)
}

/// Whether the next try may not go over a connection that has idled: one has failed, and the others may be as old. Of those of HTTP/2 it is
/// known when a single stream has failed, and not they.
pub(super) fn needs_fresh(failed: &Failed, framing: Framing) -> bool {
    framing == Framing::Http1 || failed.again == Some(Cause::Stale)
}

/// Why an answer need not be taken.
fn not_taken(answer: &Answer, retry: Option<&Retry>) -> Option<Cause> {
    if answer.said == Said::Unprocessed {
        return Some(if headers::has_left(&answer.response) { Cause::Unprocessed } else { Cause::Unreached });
    }
    let (retry, fields) = (retry?, answer.response.headers());
    let by_status = || {
        let grpc = record::grpc_status(fields).is_some_and(|status| retry.is_for_grpc(status));
        (grpc || retry.is_for(answer.response.status().as_u16())).then_some(Cause::Status)
    };
    match fields.get(headers::ERROR) {
        None => by_status(),
        // Another endpoint may have room.
        Some(told) if LIMITS.iter().any(|reason| told == reason) => by_status(),
        // Only of another proxy of the mesh has such a field come through. It is not the application's answer, so that no status of it
        // can be meant: either the application gave none, or another proxy would say the same.
        Some(told) => {
            let broke = [Reason::UpstreamReset, Reason::UpstreamMalformed];
            broke.iter().any(|reason| told == reason.code()).then_some(Cause::Broken)
        }
    }
}

/// What another proxy says of its own limits.
const LIMITS: [&str; 2] = ["overloaded", "rate_limited"];

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
    /// Of a request to `target` that must be over at `deadline`.
    pub(super) fn new(
        worker: &'a Worker,
        retry: Option<&'a Retry>,
        deadline: Option<Instant>,
        target: &Target,
    ) -> Self {
        let budget = retry.filter(|retry| retry.attempts > 0).and_then(|_| target.retry_budget());
        Self { worker, retry, budget, deadline, made: 0, again: None, failed: Vec::new(), fresh: None }
    }

    /// Has what passes of the request's body kept on its way to this endpoint, as far as it is short, if it may have to be sent again
    /// although it was taken.
    pub(super) fn spare(
        &self,
        request: &mut Request<Body>,
        framing: Framing,
        endpoint: &Endpoint,
    ) -> Option<Spare> {
        let by_retry = self.retry.filter(|retry| self.made < retry.attempts).map(|retry| retry.maximum_body);
        // What another proxy cannot pass on may go to another endpoint, if there is one; what a server of HTTP/2 refuses unread
        // (RFC 9113 §8.7), or crosses its GOAWAY or a proxy's farewell, to the same.
        let may_refuse = matches!(endpoint.peer, Peer::Mesh(_)) || framing == Framing::Http2;
        let unasked = (self.may_replay() && may_refuse).then_some(REPLAYED);
        // Of both the greater; `None` is less than any.
        Some(request.body_mut().keep(by_retry.max(unasked)?))
    }

    /// Whether what is said of nothing may be sent once more.
    fn may_replay(&self) -> bool {
        self.made == 0 && self.retry.is_none_or(|retry| retry.attempts > 0)
    }

    /// Whether the request, which was tried at this endpoint of the target and is made whole for it, is to be sent again, after which
    /// time. Whoever still sends its body then is broken off.
    pub(super) fn next(
        &mut self,
        tried: &Result<Answer, Failed>,
        request: &mut Request<Body>,
        spare: Option<Spare>,
        (target, endpoint): (&Target, Option<&Arc<Endpoint>>),
    ) -> Option<Duration> {
        if let Some(budget) = self.budget.as_ref().filter(|_| self.made == 0) {
            budget.request(self.worker.proxy.now());
        }
        let has_other = || endpoint.is_some_and(|than| target.has_other(than));
        // What is not a retry's, and did not cross the other proxy's farewell, is for another endpoint alone.
        let has_use =
            |answer: &Answer| self.retry.is_some() || headers::has_left(&answer.response) || has_other();
        let (cause, is_whole) = match tried {
            Ok(answer) => (not_taken(answer, self.retry).filter(|_| has_use(answer)), false),
            Err(failed) => (failed.again.filter(|cause| *cause != Cause::Full || has_other()), failed.whole),
        };
        let taken = tried.is_ok() && cause.is_none();
        self.is_over(if taken { RetryOutcome::Answered } else { RetryOutcome::Failed });
        let (cause, method) = (cause?, request.method());
        let passed = if is_whole { Some(0) } else { spare.as_ref().and_then(Spare::bytes) };
        let is_replayed = self.may_replay() && is_replayed(cause, method) && passed.is_some();
        let by_retry = self.retry.map(|retry| {
            wants(retry, cause, method)?;
            let has_body = passed.is_some_and(|bytes| bytes <= retry.maximum_body);
            self.allowed(retry, tried, has_body).map_err(Some)
        });
        let wait = match by_retry {
            Some(Ok(wait)) => Some(wait),
            // It is asked for no less than where nothing is said.
            None | Some(Err(None | Some(Unretried::Budget | Unretried::Time | Unretried::Body)))
                if is_replayed =>
            {
                None
            }
            Some(Err(Some(why))) => {
                self.worker.metrics.unretried(why);
                return None;
            }
            None | Some(Err(None)) => return None,
        };
        if !is_whole {
            *request.body_mut() = spare.and_then(Spare::body)?;
        }
        match wait {
            None => self.worker.metrics.replayed(cause.into()),
            Some(_) => self.again = Some(cause.into()),
        }
        self.made += 1;
        Some(wait.unwrap_or_default())
    }

    /// How long to wait before a request is sent again that the retry wants to be, which then counts as sent.
    fn allowed(
        &self,
        retry: &Retry,
        tried: &Result<Answer, Failed>,
        has_body: bool,
    ) -> Result<Duration, Unretried> {
        if self.made >= retry.attempts {
            return Err(Unretried::Attempts);
        }
        let least = retry.wait(self.made + 1, rand::random());
        let answered = tried.as_ref().ok().map(|answer| answer.response.headers());
        let wait = match answered.map_or(Pushback::Silent, |fields| pushback(fields, SystemTime::now())) {
            Pushback::Silent => least,
            Pushback::After(wait) if wait <= MAX_PUSHBACK => wait.max(least),
            Pushback::After(_) | Pushback::Never => return Err(Unretried::Pushback),
        };
        if self.deadline.is_some_and(|by| Instant::now().checked_add(wait).is_none_or(|then| then >= by)) {
            return Err(Unretried::Time);
        }
        if !has_body {
            return Err(Unretried::Body);
        }
        let now = self.worker.proxy.now();
        match self.budget.as_ref().is_none_or(|budget| budget.retry(now)) {
            true => Ok(wait),
            false => Err(Unretried::Budget),
        }
    }

    /// What became of it where a retry had it sent again.
    fn is_over(&mut self, outcome: RetryOutcome) {
        if let Some(cause) = self.again.take() {
            self.worker.metrics.retried(cause, outcome);
        }
    }

    /// An endpoint has failed the request: the next try is another's, if there is one.
    pub(super) fn has_failed(
        &mut self,
        endpoint: Arc<Endpoint>,
        tried: &Result<Answer, Failed>,
        framing: Framing,
    ) {
        if self.failed.iter().any(|known| Arc::ptr_eq(&known.endpoint, &endpoint)) {
            // All have: from the beginning.
            self.failed.clear();
        }
        let reached = match tried {
            Ok(answer) => answer.said != Said::Unprocessed,
            Err(failed) => failed.again == Some(Cause::Late),
        };
        self.failed.push(Failing { endpoint, reached });
        if self.fresh.is_none() && tried.as_ref().is_err_and(|failed| needs_fresh(failed, framing)) {
            self.fresh = Some(Instant::now());
        }
    }

    /// Whether waiting belongs to it.
    pub(super) fn is_retry(&self) -> bool {
        self.retry.is_some()
    }
}

impl Drop for Tries<'_> {
    /// Its time was over, or its client gone.
    fn drop(&mut self) {
        self.is_over(RetryOutcome::Unfinished);
    }
}

// === impl Cause ===

impl From<Cause> for ReplayCause {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Unreached | Cause::Full | Cause::Slow | Cause::Unprocessed | Cause::Ended => {
                Self::Unprocessed
            }
            Cause::Stale | Cause::Broken | Cause::Late | Cause::Status => Self::Idempotent,
        }
    }
}

impl From<Cause> for RetryCause {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Unreached | Cause::Full | Cause::Slow | Cause::Unprocessed | Cause::Ended => {
                Self::Unprocessed
            }
            Cause::Stale | Cause::Broken => Self::Broken,
            Cause::Late => Self::Late,
            Cause::Status => Self::Status,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::fault::Fault;
    use super::super::tests::{knows, lone_worker};
    use super::*;
    use crate::route::Causes;

    /// A POST of so many bytes whose stream is refused by a server of HTTP/2 that has taken its body: after which time it is sent again.
    async fn refused(retry: Option<&Retry>, left: Duration, bytes: usize) -> Option<Duration> {
        let worker = lone_worker("web");
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let target = Target::Service(knows(&worker, "shop", &[address]), 80);
        let endpoint = Endpoint::new(address, Peer::Plaintext, None, "default/shop:80".into(), 1);
        let mut tries = Tries::new(&worker, retry, Some(Instant::now() + left), &target);
        let body = Body::full(Bytes::from(vec![0; bytes]));
        let mut request = Request::post("http://shop/").body(body).unwrap();
        let spare = tries.spare(&mut request, Framing::Http2, &endpoint);
        std::mem::take(request.body_mut()).collect().await.unwrap();
        let fault = Fault::unsent(Reason::UpstreamReset, "refused");
        let failed = Err(Failed { fault, again: Some(Cause::Unprocessed), whole: false });
        let wait = tries.next(&failed, &mut request, spare, (&target, Some(&endpoint)));
        if wait.is_some() {
            let body = std::mem::take(request.body_mut()).collect().await.unwrap();
            assert_eq!(body.to_bytes().len(), bytes);
        }
        wait
    }

    #[tokio::test]
    async fn a_retry_that_has_no_time_or_room_takes_nothing_from_what_is_done_without_one() {
        let (long, short) = (Duration::from_secs(3600), Duration::from_secs(60));
        let (now, later) = (Some(Duration::ZERO), long / 2);
        let retry = Retry { attempts: 1, backoff: later, maximum_body: 1000, ..Retry::default() };
        let never = Retry::default();
        for (retry, left, bytes, wait) in [
            (None, short, 5000, now),
            (None, short, 20_000, None),
            (Some(&retry), short, 500, now),
            (Some(&retry), short, 5000, now),
            (Some(&retry), long, 5000, now),
            (Some(&retry), long, 20_000, None),
            (Some(&never), long, 500, None),
        ] {
            assert_eq!(refused(retry, left, bytes).await, wait, "{retry:?} {left:?} {bytes}");
        }
        let waited = refused(Some(&retry), long, 500).await.expect("it has time and room");
        assert!(waited >= later, "{waited:?}");
    }

    #[tokio::test]
    async fn what_our_own_limits_keep_from_its_endpoint_is_for_another_alone() {
        let worker = lone_worker("web");
        let retry = Retry { attempts: 3, ..Retry::default() };
        for others in [0, 1] {
            let addresses: Vec<_> =
                (1..=1 + others).map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port))).collect();
            let state = knows(&worker, "shop", &addresses);
            let endpoint = Arc::clone(&state.endpoints().unwrap().port(80).unwrap().members[0].endpoint);
            let target = Target::Service(state, 80);
            for retry in [None, Some(&retry)] {
                for (again, wait) in [(Cause::Full, others > 0), (Cause::Unreached, true)] {
                    let mut tries = Tries::new(&worker, retry, None, &target);
                    let fault = Fault::unsent(Reason::Overloaded, "");
                    let failed = Err(Failed { fault, again: Some(again), whole: true });
                    let mut request = Request::post("http://shop/").body(Body::empty()).unwrap();
                    let next = tries.next(&failed, &mut request, None, (&target, Some(&endpoint)));
                    assert_eq!(next.is_some(), wait, "{again:?} {others} {retry:?}");
                }
            }
        }
    }

    #[test]
    fn the_status_of_another_proxys_own_answer_is_nobodys_but_that_of_its_limits() {
        let retry =
            Retry { codes: [403, 502, 503].into(), attempts: 1, grpc_codes: 1 << 14, ..Retry::default() };
        let of = |status, fields: &[(&'static str, &'static str)], unprocessed| {
            let mut response = http::Response::builder().status(status).body(Body::empty()).unwrap();
            for (name, value) in fields {
                response.headers_mut().insert(*name, http::HeaderValue::from_static(value));
            }
            let said = if unprocessed { Said::Unprocessed } else { Said::Something };
            let answer = Answer { response, in_flight: None, said, bounds: None, guard: None };
            not_taken(&answer, Some(&retry))
        };
        type Case = (u16, &'static [(&'static str, &'static str)], bool, Option<Cause>);
        let cases: &[Case] = &[
            (200, &[], false, None),
            (200, &[("grpc-status", "14")], false, Some(Cause::Status)),
            (200, &[("grpc-status", "13")], false, None),
            (200, &[("grpc-status", "x")], false, None),
            (403, &[], false, Some(Cause::Status)),
            (403, &[("x-tulle-error", "policy_denied")], false, None),
            (403, &[("x-tulle-error", "a_reason_to_come")], false, None),
            (502, &[("x-tulle-error", "upstream_reset")], false, Some(Cause::Broken)),
            (502, &[("x-tulle-error", "upstream_malformed")], false, Some(Cause::Broken)),
            (503, &[("x-tulle-error", "connect_failed")], true, Some(Cause::Unreached)),
            (502, &[("x-tulle-error", "upstream_reset")], true, Some(Cause::Unprocessed)),
            (503, &[("x-tulle-error", "draining")], true, Some(Cause::Unprocessed)),
            (503, &[("x-tulle-error", "overloaded")], false, Some(Cause::Status)),
            (429, &[("x-tulle-error", "rate_limited")], false, None),
            (200, &[("x-tulle-error", "rate_limited"), ("grpc-status", "14")], false, Some(Cause::Status)),
        ];
        for (status, fields, unprocessed, cause) in cases {
            assert_eq!(of(*status, fields, *unprocessed), *cause, "{status} {fields:?}");
        }
    }

    #[test]
    fn what_may_have_been_processed_is_sent_again_only_where_that_does_no_harm() {
        let retry = Retry { codes: [503].into(), attempts: 1, ..Retry::default() };
        let any = Retry { non_idempotent: true, ..retry.clone() };
        // By GET and POST: without a retry, with one, and with one for any method.
        for (cause, get, post) in [
            (Cause::Unreached, [true, true, true], [true, true, true]),
            (Cause::Full, [true, true, true], [true, true, true]),
            (Cause::Slow, [true, true, true], [true, true, true]),
            (Cause::Unprocessed, [true, true, true], [true, true, true]),
            (Cause::Ended, [true, true, true], [true, true, true]),
            (Cause::Stale, [true, true, true], [false, false, true]),
            (Cause::Broken, [false, true, true], [false, false, true]),
            (Cause::Late, [false, true, true], [false, false, true]),
            (Cause::Status, [false, true, true], [false, true, true]),
        ] {
            let by = |method: Method| {
                let wants = |retry| wants(retry, cause, &method).is_ok();
                [is_replayed(cause, &method), wants(&retry), wants(&any)]
            };
            assert_eq!((by(Method::GET), by(Method::POST)), (get, post), "{cause:?}");
            assert_eq!((by(Method::PUT), by(Method::PATCH)), (get, post), "{cause:?}");
        }
        assert_eq!(wants(&retry, Cause::Late, &Method::POST), Err(Some(Unretried::Method)));
    }

    #[test]
    fn a_retry_is_for_the_causes_that_it_names_and_always_for_answers() {
        type Name = fn(&mut Causes) -> &mut bool;
        let each: [(Name, &[Cause]); 4] = [
            (|all| &mut all.connect_failure, &[Cause::Unreached, Cause::Full, Cause::Slow]),
            (|all| &mut all.refused, &[Cause::Unprocessed, Cause::Ended]),
            (|all| &mut all.reset, &[Cause::Stale, Cause::Broken]),
            (|all| &mut all.timeout, &[Cause::Slow, Cause::Late]),
        ];
        let all = [
            Cause::Unreached,
            Cause::Full,
            Cause::Slow,
            Cause::Unprocessed,
            Cause::Ended,
            Cause::Stale,
            Cause::Broken,
            Cause::Late,
            Cause::Status,
        ];
        for (name, causes) in each {
            let mut only = Causes::NONE;
            *name(&mut only) = true;
            let retry = Retry { causes: only, ..Retry::default() };
            for cause in all {
                let wanted = wants(&retry, cause, &Method::GET).is_ok();
                assert_eq!(wanted, causes.contains(&cause) || cause == Cause::Status, "{only:?} {cause:?}");
            }
        }
    }
}
