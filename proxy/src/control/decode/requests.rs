//! `RequestPolicy` and `RetryBudget`: what is done for requests, of a rule or of a service's port.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tulle_api::v1;

use super::logged::{access_log, sampling};
use super::rate::rate_limits;
use super::rule::{Patterns, header_name, value};
use super::{Result, duration, each, fault};
use crate::route::{Abort, BudgetSpec, Causes, FaultRule, HeaderMatch, MILLION, RequestPolicy, Retry};

/// No more is allowed by the resource; what is beyond it is no reason to refuse a whole service.
const MAX_ATTEMPTS: u32 = 100;

/// What is said at `at`; `None`: nothing.
pub(super) fn requests(
    message: Option<v1::RequestPolicy>,
    patterns: &mut Patterns,
    at: &str,
) -> Result<Option<Box<RequestPolicy>>> {
    let Some(message) = message else { return Ok(None) };
    let header = match &*message.deadline_header {
        "" => None,
        name => Some(header_name(name, &format!("{at}.deadline_header"))?),
    };
    let logged = access_log(message.access_log.unwrap_or_default(), &format!("{at}.access_log"))?;
    let policy = RequestPolicy {
        request_timeout: limit(message.request_timeout, &format!("{at}.request_timeout"))?,
        backend_timeout: limit(message.backend_request_timeout, &format!("{at}.backend_request_timeout"))?,
        idle_timeout: limit(message.idle_timeout, &format!("{at}.idle_timeout"))?,
        deadline_header: header,
        retry: message.retry.map(|one| retry(one, &format!("{at}.retry"))).transpose()?,
        faults: each(message.faults, &format!("{at}.faults"), |one, at| injected(one, patterns, at))?.into(),
        rate_limits: rate_limits(message.rate_limits, patterns, &format!("{at}.rate_limits"))?.into(),
        access_log: (!logged.is_empty()).then(|| Arc::new(logged)),
        sampling: sampling(message.sampling, &format!("{at}.sampling"))?,
    };
    Ok((!policy.is_empty()).then(|| Box::new(policy)))
}

/// A duration of which 0 is said too: no limit.
fn limit(message: Option<prost_types::Duration>, at: &str) -> Result<Option<Duration>> {
    let is_said = message.is_some();
    Ok(duration(message, at)?.or_else(|| is_said.then_some(Duration::ZERO)))
}

fn retry(retry: v1::Retry, at: &str) -> Result<Retry> {
    let codes = each(retry.codes, &format!("{at}.codes"), |code, at| match u16::try_from(code) {
        Ok(code @ 400..=599) => Ok(code),
        _ => Err(fault(at, format!("{code} is not from 400 to 599"))),
    })?;
    let grpc_codes = each(retry.grpc_codes, &format!("{at}.grpc_codes"), grpc_code)?;
    Ok(Retry {
        codes: codes.into(),
        grpc_codes: grpc_codes.into_iter().fold(0, |all, code| all | 1 << code),
        attempts: retry.attempts.min(MAX_ATTEMPTS),
        backoff: duration(retry.backoff, &format!("{at}.backoff"))?.unwrap_or_default(),
        maximum_backoff: duration(retry.maximum_backoff, &format!("{at}.maximum_backoff"))?,
        causes: causes(&retry.causes, &format!("{at}.causes"))?,
        non_idempotent: retry.non_idempotent,
        maximum_body: match retry.maximum_body {
            0 => Retry::BODY,
            most => most.into(),
        },
    })
}

fn causes(said: &[i32], at: &str) -> Result<Causes> {
    if said.is_empty() {
        return Ok(Causes::ALL);
    }
    let mut causes = Causes::NONE;
    for (i, cause) in said.iter().enumerate() {
        let taken = match v1::RetryCause::try_from(*cause) {
            Ok(v1::RetryCause::ConnectFailure) => &mut causes.connect_failure,
            Ok(v1::RetryCause::Reset) => &mut causes.reset,
            Ok(v1::RetryCause::Refused) => &mut causes.refused,
            Ok(v1::RetryCause::Timeout) => &mut causes.timeout,
            Ok(v1::RetryCause::Unspecified) => return Err(fault(format!("{at}[{i}]"), "is not set")),
            Err(_) => return Err(fault(format!("{at}[{i}]"), format!("{cause} is not known"))),
        };
        *taken = true;
    }
    Ok(causes)
}

fn grpc_code(code: u32, at: &str) -> Result<u8> {
    let known = u8::try_from(code).ok().filter(|code| (1..=16).contains(code));
    known.ok_or_else(|| fault(at, format!("{code} is not from 1 to 16")))
}

fn injected(message: v1::Fault, patterns: &mut Patterns, at: &str) -> Result<FaultRule> {
    use v1::fault::Abort as Said;
    let headers = each(message.headers, &format!("{at}.headers"), |header, at| {
        let name = header_name(&header.name, &format!("{at}.name"))?;
        Ok(HeaderMatch { name, value: value(patterns, header.value, at)? })
    })?;
    let share = |of: u32, field: &str| match of {
        0..=MILLION => Ok(of),
        _ => Err(fault(format!("{at}.{field}"), format!("{of} is more than a million"))),
    };
    let delay = duration(message.delay, &format!("{at}.delay"))?;
    let abort = match message.abort {
        None => None,
        Some(Said::HttpStatus(status)) => {
            let known = u16::try_from(status).ok().filter(|status| (200..=599).contains(status));
            let known = known.and_then(|status| StatusCode::from_u16(status).ok());
            let why = || fault(format!("{at}.http_status"), format!("{status} is not from 200 to 599"));
            Some(Abort::Http(known.ok_or_else(why)?))
        }
        Some(Said::GrpcStatus(code)) => Some(Abort::Grpc(grpc_code(code, &format!("{at}.grpc_status"))?)),
    };
    let (delayed, aborted) = (share(message.delayed, "delayed")?, share(message.aborted, "aborted")?);
    if delayed > 0 && delay.is_none() {
        return Err(fault(format!("{at}.delay"), "is missing"));
    }
    if aborted > 0 && abort.is_none() {
        return Err(fault(format!("{at}.abort"), "is missing"));
    }
    Ok(FaultRule {
        name: message.name.into(),
        headers: headers.into(),
        delay: delay.filter(|_| delayed > 0).map(|delay| (delayed, delay)),
        abort: abort.filter(|_| aborted > 0).map(|abort| (aborted, abort)),
    })
}

/// How many requests may be sent again; absent: what holds where nothing is said.
pub(super) fn budget(message: Option<v1::RetryBudget>, at: &str) -> Result<BudgetSpec> {
    let Some(message) = message else { return Ok(BudgetSpec::default()) };
    let percent = u8::try_from(message.percent).ok().filter(|percent| *percent <= 100);
    let some = |message: Option<prost_types::Duration>, field: &str| {
        let at = format!("{at}.{field}");
        duration(message, &at)?.ok_or_else(|| fault(at, "is missing or zero"))
    };
    Ok(BudgetSpec {
        percent: percent
            .ok_or_else(|| fault(format!("{at}.percent"), format!("{} is more than 100", message.percent)))?,
        interval: some(message.interval, "interval")?,
        minimum: message.minimum_retries,
        minimum_interval: some(message.minimum_interval, "minimum_interval")?,
    })
}

#[cfg(test)]
mod tests {
    use prost_types::Duration as Wire;

    use super::*;

    fn seconds(seconds: i64) -> Option<Wire> {
        Some(Wire { seconds, nanos: 0 })
    }

    fn whole() -> v1::RequestPolicy {
        let exact = Some(v1::value_match::Value::Exact("1".to_owned()));
        v1::RequestPolicy {
            request_timeout: seconds(0),
            backend_request_timeout: None,
            idle_timeout: seconds(9),
            deadline_header: "x-deadline".to_owned(),
            retry: Some(v1::Retry {
                codes: vec![503],
                attempts: 101,
                backoff: seconds(1),
                maximum_backoff: seconds(4),
                grpc_codes: vec![14, 8],
                causes: vec![v1::RetryCause::Timeout.into()],
                non_idempotent: true,
                maximum_body: 0,
            }),
            faults: vec![v1::Fault {
                name: "shop/chaos/first".to_owned(),
                headers: vec![v1::ValueMatch { name: "x-chaos".to_owned(), value: exact }],
                delayed: 0,
                delay: seconds(1),
                aborted: 1_000_000,
                abort: Some(v1::fault::Abort::GrpcStatus(14)),
            }],
            rate_limits: Vec::new(),
            access_log: Some(v1::AccessLog { sampled: Some(1), ..Default::default() }),
            sampling: Some(v1::Sampling { millionths: Some(0), ignores_parent: None }),
        }
    }

    #[test]
    fn all_that_is_said_is_taken_and_zero_is_said() {
        let policy = requests(Some(whole()), &mut Patterns::default(), "requests").unwrap().unwrap();
        assert_eq!(policy.request_timeout, Some(Duration::ZERO));
        assert_eq!((policy.backend_timeout, policy.idle_timeout), (None, Some(Duration::from_secs(9))));
        assert_eq!(policy.deadline_header.as_ref().unwrap(), "x-deadline");
        let retry = policy.retry.as_ref().unwrap();
        assert_eq!((retry.attempts, retry.maximum_body, retry.non_idempotent), (100, Retry::BODY, true));
        assert_eq!(retry.causes, Causes { timeout: true, ..Causes::NONE });
        assert!(retry.is_for_grpc(14) && retry.is_for_grpc(8) && !retry.is_for_grpc(13));
        assert_eq!(policy.faults[0].delay, None, "none are delayed");
        assert_eq!(policy.faults[0].abort, Some((MILLION, Abort::Grpc(14))));
        assert_eq!((policy.sampling.millionths, policy.sampling.parent_based), (Some(0), None));
        let nothing = Some(v1::RequestPolicy::default());
        assert_eq!(requests(nothing, &mut Patterns::default(), "requests").unwrap(), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        type Spoil = fn(&mut v1::RequestPolicy, &mut v1::Retry, &mut v1::Fault);
        let cases: &[(&str, Spoil)] = &[
            ("request_timeout", |policy, _, _| policy.request_timeout = seconds(-1)),
            ("idle_timeout", |policy, _, _| policy.idle_timeout = seconds(-1)),
            ("sampling.millionths", |policy, _, _| {
                policy.sampling = Some(v1::Sampling { millionths: Some(1_000_001), ignores_parent: None });
            }),
            ("deadline_header", |policy, _, _| policy.deadline_header = "a b".to_owned()),
            ("retry.maximum_backoff", |_, retry, _| retry.maximum_backoff = seconds(-1)),
            ("retry.grpc_codes[1]", |_, retry, _| retry.grpc_codes = vec![1, 17]),
            ("retry.grpc_codes[0]", |_, retry, _| retry.grpc_codes = vec![0]),
            ("retry.causes[0]", |_, retry, _| retry.causes = vec![0]),
            ("retry.causes[0]", |_, retry, _| retry.causes = vec![77]),
            ("faults[0].headers[0].name", |_, _, fault| fault.headers[0].name = "a b".to_owned()),
            ("faults[0].headers[0].value", |_, _, fault| fault.headers[0].value = None),
            ("faults[0].delayed", |_, _, fault| fault.delayed = 1_000_001),
            ("faults[0].delay", |_, _, fault| (fault.delayed, fault.delay) = (1, None)),
            ("faults[0].aborted", |_, _, fault| fault.aborted = u32::MAX),
            ("faults[0].abort", |_, _, fault| fault.abort = None),
            ("faults[0].http_status", |_, _, fault| {
                fault.abort = Some(v1::fault::Abort::HttpStatus(101));
            }),
            ("faults[0].grpc_status", |_, _, fault| fault.abort = Some(v1::fault::Abort::GrpcStatus(0))),
        ];
        for (field, spoil) in cases {
            let mut policy = whole();
            let (mut retry, mut fault) = (policy.retry.take().unwrap(), policy.faults.remove(0));
            spoil(&mut policy, &mut retry, &mut fault);
            (policy.retry, policy.faults) = (Some(retry), vec![fault]);
            let wrong = requests(Some(policy), &mut Patterns::default(), "requests").unwrap_err();
            assert_eq!(wrong.field, format!("requests.{field}"), "{}", wrong.reason);
        }
    }

    #[test]
    fn a_budget_says_all_or_nothing() {
        let whole = v1::RetryBudget {
            percent: 0,
            interval: seconds(10),
            minimum_retries: 0,
            minimum_interval: seconds(1),
        };
        let none = budget(Some(whole), "budget").unwrap();
        assert_eq!((none.percent, none.minimum), (0, 0), "nothing is ever sent again");
        assert_eq!(budget(None, "budget").unwrap(), BudgetSpec::default());
        for (field, spoilt) in [
            ("percent", v1::RetryBudget { percent: 101, ..whole }),
            ("interval", v1::RetryBudget { interval: None, ..whole }),
            ("minimum_interval", v1::RetryBudget { minimum_interval: seconds(0), ..whole }),
        ] {
            assert_eq!(budget(Some(spoilt), "budget").unwrap_err().field, format!("budget.{field}"));
        }
    }

    #[test]
    fn what_is_sent_again_for_ever_is_sent_again_a_hundred_times() {
        for (said, taken) in [(0, 0), (100, 100), (101, 100), (u32::MAX, 100)] {
            let message = v1::Retry { attempts: said, ..Default::default() };
            assert_eq!(retry(message, "retry").unwrap().attempts, taken);
        }
    }
}
