//! TrafficPolicy: what holds for requests.

use std::time::Duration;

use tulle_api::v1;

use super::traffic::MIN_TIME;
use super::{check_name, grpc_codes, on_the_wire, time, time_from, within};
use crate::finding::Notes;
use crate::kinds::{self, RetryCause};

/// `timeouts` and `retry`; none where neither is written.
pub(super) fn read(spec: &kinds::TrafficPolicySpec, notes: &mut Notes) -> Option<v1::RequestPolicy> {
    if spec.timeouts.is_none() && spec.retry.is_none() {
        return None;
    }
    let timeouts = spec.timeouts.clone().unwrap_or_default();
    let mut maybe = |field: &str, written: &Option<kinds::Duration>| {
        written.as_ref().and_then(|one| time(&format!("spec.timeouts.{field}"), one, notes))
    };
    let request = maybe("request", &timeouts.request);
    let per_try = maybe("perTry", &timeouts.per_try);
    let idle = maybe("idle", &timeouts.idle);
    let is_limit = |time: &Duration| !time.is_zero();
    if let (Some(whole), Some(one)) = (request.filter(is_limit), per_try)
        && one > whole
    {
        notes.refuse(
            "spec.timeouts.perTry",
            "one try may not last longer than the whole request",
            "make it at most `timeouts.request`",
        );
    }
    let deadline_header = timeouts.deadline_header.as_ref().map(|name| {
        let field = "spec.timeouts.deadlineHeader";
        check_name(field.to_owned(), name, notes);
        if name.eq_ignore_ascii_case("grpc-timeout") {
            let message = "`grpc-timeout` is obeyed in any case, and is not written in milliseconds";
            notes.refuse(field, message, "leave it out, or name a header of your own");
        }
        name.to_ascii_lowercase()
    });
    Some(v1::RequestPolicy {
        request_timeout: on_the_wire(request),
        backend_request_timeout: on_the_wire(per_try),
        idle_timeout: on_the_wire(idle),
        deadline_header: deadline_header.unwrap_or_default(),
        retry: spec.retry.as_ref().map(|written| retry(written, request.filter(is_limit), notes)),
        faults: Vec::new(),
        rate_limits: Vec::new(),
        access_log: None,
        sampling: None,
    })
}

/// `request` is how long the whole may take.
fn retry(written: &kinds::Retry, request: Option<Duration>, notes: &mut Notes) -> v1::Retry {
    let at = "spec.retry";
    let mut codes: Vec<u32> = Vec::with_capacity(written.statuses.len());
    for (index, status) in written.statuses.iter().enumerate() {
        codes.push(within(format!("{at}.statuses[{index}]"), *status, 400..=599, notes));
    }
    codes.sort_unstable();
    codes.dedup();
    let mut causes: Vec<RetryCause> = written.causes.clone();
    causes.sort_unstable();
    causes.dedup();
    let causes = causes.into_iter().map(|cause| match cause {
        RetryCause::ConnectFailure => v1::RetryCause::ConnectFailure,
        RetryCause::Reset => v1::RetryCause::Reset,
        RetryCause::RefusedStream => v1::RetryCause::Refused,
        RetryCause::Timeout => v1::RetryCause::Timeout,
    });
    let attempts = within(format!("{at}.attempts"), written.attempts, 0..=100, notes);
    let base = time(&format!("{at}.backoff.base"), &written.backoff.base, notes);
    let field = format!("{at}.backoff.maximum");
    let maximum = written.backoff.maximum.as_ref().and_then(|one| time(&field, one, notes));
    if let (Some(base), Some(maximum)) = (base, maximum)
        && maximum < base
    {
        notes.refuse(field, "shorter than `base`", "make it at least as long");
    }
    if let (Some(base), Some(request)) = (base, request)
        && base >= request
        && attempts > 0
    {
        notes.warn(
            format!("{at}.backoff.base"),
            "as long as the whole request may take, or longer: there is never time for a retry",
            "make it shorter than `timeouts.request`",
        );
    }
    v1::Retry {
        codes,
        attempts,
        backoff: on_the_wire(base),
        maximum_backoff: on_the_wire(maximum),
        grpc_codes: grpc_codes(&written.grpc_codes),
        causes: causes.map(i32::from).collect(),
        non_idempotent: written.non_idempotent,
        maximum_body: within(
            format!("{at}.maximumBodyBytes"),
            written.maximum_body_bytes,
            1..=16_777_216,
            notes,
        ),
    }
}

pub(super) fn budget(written: &kinds::RetryBudget, notes: &mut Notes) -> v1::RetryBudget {
    let at = "spec.retryBudget";
    let rate = &written.minimum_retry_rate;
    let percent = within(format!("{at}.percent"), written.percent, 0..=100, notes);
    let count = within(format!("{at}.minimumRetryRate.count"), rate.count, 0..=1_000_000, notes);
    if percent == 0 && count == 0 && !notes.refused() {
        notes.warn(
            at,
            "0 percent, and 0 at any rate: requests are never sent again but as without a `retry`",
            "leave `retry` out, or give one of them more than 0; not `attempts: 0`, by which not even what provably was not processed is sent \
             once more",
        );
    }
    let interval = time_from(MIN_TIME, &format!("{at}.interval"), &written.interval, notes);
    let minimum_interval =
        time_from(MIN_TIME, &format!("{at}.minimumRetryRate.interval"), &rate.interval, notes);
    v1::RetryBudget {
        percent,
        interval: on_the_wire(interval),
        minimum_retries: count,
        minimum_interval: on_the_wire(minimum_interval),
    }
}
