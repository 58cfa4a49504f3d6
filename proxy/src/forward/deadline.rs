//! When a request must be over: as its policy says, or as long as its client waits, whichever is less.
//!
//! A client says so in `grpc-timeout` (gRPC over HTTP/2, "Requests"), or in the header that the policy names, in milliseconds; at each
//! try what is left is passed on there. What says nothing that can be read is passed on as it is, and does not count. Called by
//! `outbound` and, for `grpc-timeout` alone, by `inbound`, which is nearest to the application.

use std::fmt;
use std::pin::Pin;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::exchange::Bounds;
use super::fault::Fault;
use super::idle::Idle;
use crate::route::Requests;
use crate::state::ObjectName;
use crate::telemetry::Reason;

/// When one request must be over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline<'a> {
    at: Instant,
    limit: Duration,
    by: By<'a>,
    /// What is left is passed on in `grpc-timeout`.
    grpc: bool,
    /// Likewise in this header.
    header: Option<&'a HeaderName>,
}

/// Who says so.
#[derive(Clone, Copy, Debug)]
enum By<'a> {
    Route(&'a ObjectName),
    Service,
    Client,
}

pub(super) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// A number of more digits is not a time that anybody waits.
const DIGITS: usize = 15;

/// What is left of a request that began at `started`; `None`: as long as it takes. `rule`: the route whose rule it follows. `grpc`:
/// whether it is gRPC's.
#[inline]
pub(super) fn find<'a>(
    said: &Requests<'a>,
    rule: Option<&'a ObjectName>,
    started: Instant,
    grpc: bool,
    fields: &HeaderMap,
) -> Option<Deadline<'a>> {
    let (limit, header) = (said.request_timeout(), said.deadline_header());
    if limit.is_none() && !grpc && header.is_none() {
        return None;
    }
    let in_grpc = if grpc { one(fields, &GRPC_TIMEOUT).and_then(grpc_timeout) } else { None };
    let in_header = header.and_then(|name| one(fields, name)).and_then(milliseconds);
    let by_client = in_grpc.into_iter().chain(in_header).min();
    let of_rule = said.rule.is_some_and(|said| said.request_timeout.is_some());
    let by = rule.filter(|_| of_rule).map_or(By::Service, By::Route);
    let (limit, by) = match (limit, by_client) {
        (Some(limit), None) => (limit, by),
        (Some(limit), Some(client)) if limit <= client => (limit, by),
        (_, Some(client)) => (client, By::Client),
        (None, None) => return None,
    };
    let at = started.checked_add(limit)?;
    Some(Deadline { at, limit, by, grpc: in_grpc.is_some(), header: header.filter(|_| in_header.is_some()) })
}

/// The work, as far as it is done by then, and not idle for too long before. It is borrowed: whoever takes it by value keeps it twice.
pub(super) async fn by<T>(
    deadline: Option<Deadline<'_>>,
    idle: Option<&Idle>,
    work: Pin<&mut impl Future<Output = Result<T, Fault>>>,
) -> Result<T, Fault> {
    if deadline.is_none() && idle.is_none() {
        return work.await;
    }
    let over = Box::pin(async {
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.at.into()).await,
                None => std::future::pending().await,
            }
        };
        let idle = async {
            match idle {
                Some(idle) => idle.over().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = late => deadline.map(|deadline| Fault::maybe(deadline.reason(), deadline.to_string())),
            fault = idle => Some(fault),
        }
    });
    tokio::select! {
        biased;
        done = work => done,
        Some(fault) = over => Err(fault),
    }
}

/// How long an answer may take then; `None`: as long as it does.
pub(super) fn bounds(deadline: Option<Deadline<'_>>, idle: Option<Idle>) -> Option<Box<Bounds>> {
    if deadline.is_none() && idle.is_none() {
        return None;
    }
    Some(Box::new(Bounds { deadline: deadline.map(|deadline| (deadline.at, deadline.reason())), idle }))
}

/// The field, if it is there once.
fn one<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    // Most have none.
    let first = fields.get(name)?;
    fields.get_all(name).iter().nth(1).is_none().then_some(first.as_bytes())
}

/// `TimeoutValue TimeoutUnit`: at most eight digits, and one of `H M S m u n`.
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let number = number(digits, 8)?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

fn milliseconds(value: &[u8]) -> Option<Duration> {
    number(value, DIGITS).map(Duration::from_millis)
}

fn number(digits: &[u8], most: usize) -> Option<u64> {
    if digits.is_empty() || digits.len() > most || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The same in the finest unit that has room for it, rounded down.
pub(super) fn as_grpc_timeout(left: Duration) -> String {
    const ROOM: u128 = 99_999_999;
    let units = [(left.as_nanos(), 'n'), (left.as_micros(), 'u'), (left.as_millis(), 'm')];
    match units.into_iter().find(|(number, _)| *number <= ROOM) {
        Some((number, unit)) => format!("{number}{unit}"),
        None if left.as_secs() <= ROOM as u64 => format!("{}S", left.as_secs()),
        None => format!("{}H", (left.as_secs() / 3600).min(ROOM as u64)),
    }
}

// === impl Deadline ===

impl Deadline<'_> {
    /// When it is, unless the client itself says so: then nobody need have been slow.
    pub(super) fn of_policy(&self) -> Option<Instant> {
        (!matches!(self.by, By::Client)).then_some(self.at)
    }

    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// What is told of a request that was not over by then.
    pub(super) fn reason(&self) -> Reason {
        match self.by {
            By::Route(_) | By::Service => Reason::RequestTimeout,
            By::Client => Reason::DeadlineExceeded,
        }
    }

    /// Passes on what is left `now`, at each try.
    ///
    /// # Errors
    /// [`Deadline::reason`], where nothing is.
    pub(super) fn pass_on(&self, fields: &mut HeaderMap, now: Instant) -> Result<(), Fault> {
        let left = self.at.saturating_duration_since(now);
        if left.is_zero() {
            return Err(Fault::unsent(self.reason(), self.to_string()));
        }
        let mut set = |name: &HeaderName, value: String| {
            if let Ok(value) = HeaderValue::try_from(value) {
                fields.insert(name, value);
            }
        };
        if self.grpc {
            set(&GRPC_TIMEOUT, as_grpc_timeout(left));
        }
        if let Some(name) = self.header {
            set(name, left.as_millis().to_string());
        }
        Ok(())
    }
}

/// For people.
impl fmt::Display for Deadline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = self.limit;
        match self.by {
            By::Route(route) => write!(f, "{limit:?}, by route {route}"),
            By::Service => write!(f, "{limit:?}, by the policy of its Service"),
            By::Client => write!(f, "{limit:?}, as its client says"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::RequestPolicy;

    const ROUTE: &str = "shop/orders";

    fn fields(of: &[(&'static str, &str)]) -> HeaderMap {
        of.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_timeout_of_grpc_is_read_as_it_is_specified() {
        let of = |text: &str| grpc_timeout(text.as_bytes());
        for (text, taken) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("0n", Some(Duration::ZERO)),
        ] {
            assert_eq!(of(text), taken, "{text}");
        }
        for text in ["", "S", "123456789S", "1", "1s", "1 S", "-1S", "+1S", "1.5S", "1SS", "١S"] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_left_is_written_so_that_it_is_read_again_and_never_longer() {
        for nanos in [1, 99_999_999, 100_000_000, 1_500_000_000, 123_456_789_012, 86_400_000_000_123_456] {
            let left = Duration::from_nanos(nanos);
            let again = grpc_timeout(as_grpc_timeout(left).as_bytes()).unwrap();
            assert!(again <= left && again >= left.mul_f64(0.999_9), "{left:?} {again:?}");
        }
        let years = Duration::from_secs(99_999_999 * 3600);
        assert_eq!(grpc_timeout(as_grpc_timeout(years).as_bytes()), Some(years));
    }

    #[test]
    fn the_least_of_what_is_said_holds_and_is_passed_on() {
        let header = HeaderName::from_static("x-deadline");
        let ms = Duration::from_millis;
        let route: ObjectName = ROUTE.parse().unwrap();
        // The policy's limit, what the client says, whether it is gRPC; the limit, the reason, and what is passed on after 1 ms.
        type Case = (
            Option<u64>,
            &'static [(&'static str, &'static str)],
            bool,
            Option<(u64, Reason, &'static [(&'static str, &'static str)])>,
        );
        let cases: &[Case] = &[
            (None, &[], true, None),
            (None, &[("grpc-timeout", "5m")], false, None),
            (Some(9), &[], false, Some((9, Reason::RequestTimeout, &[]))),
            (
                None,
                &[("grpc-timeout", "5m")],
                true,
                Some((5, Reason::DeadlineExceeded, &[("grpc-timeout", "4000000n")])),
            ),
            (
                Some(3),
                &[("grpc-timeout", "5m")],
                true,
                Some((3, Reason::RequestTimeout, &[("grpc-timeout", "2000000n")])),
            ),
            (
                Some(9),
                &[("x-deadline", "5")],
                false,
                Some((5, Reason::DeadlineExceeded, &[("x-deadline", "4")])),
            ),
            (
                None,
                &[("x-deadline", "5"), ("grpc-timeout", "1S")],
                true,
                Some((5, Reason::DeadlineExceeded, &[("x-deadline", "4"), ("grpc-timeout", "4000000n")])),
            ),
            // What cannot be read is passed on as it is.
            (None, &[("x-deadline", "soon")], false, None),
            (None, &[("x-deadline", "5"), ("x-deadline", "6")], false, None),
            (None, &[("x-deadline", "1234567890123456")], false, None),
            (
                Some(9),
                &[("grpc-timeout", "5")],
                true,
                Some((9, Reason::RequestTimeout, &[("grpc-timeout", "5")])),
            ),
        ];
        for (limit, sent, grpc, expected) in cases {
            let policy = RequestPolicy {
                request_timeout: limit.map(ms),
                deadline_header: Some(header.clone()),
                ..RequestPolicy::default()
            };
            let (said, now) = (Requests { rule: Some(&policy), port: None }, Instant::now());
            let mut fields = fields(sent);
            let found = find(&said, Some(&route), now, *grpc, &fields);
            let found = found.map(|deadline| {
                deadline.pass_on(&mut fields, now + ms(1)).unwrap();
                assert_eq!(deadline.at(), now + deadline.limit);
                (deadline.limit.as_millis() as u64, deadline.reason())
            });
            let (limit, passed) = match expected {
                Some((limit, reason, passed)) => (Some((*limit, *reason)), *passed),
                None => (None, *sent),
            };
            assert_eq!(found, limit, "{sent:?}");
            assert_eq!(fields, self::fields(passed), "{sent:?}");
        }
    }

    #[test]
    fn what_is_over_is_not_begun() {
        let now = Instant::now();
        let mut fields = fields(&[("grpc-timeout", "0n")]);
        let over = find(&Requests::default(), None, now, true, &fields).unwrap();
        let fault = over.pass_on(&mut fields, now).unwrap_err();
        assert_eq!((fault.reason, fault.processed), (Reason::DeadlineExceeded, crate::wire::Processed::No));
    }

    #[test]
    fn the_longest_limit_is_none() {
        let policy = RequestPolicy { request_timeout: Some(Duration::MAX), ..RequestPolicy::default() };
        let said = Requests { rule: None, port: Some(&policy) };
        assert!(find(&said, None, Instant::now(), false, &HeaderMap::new()).is_none());
    }
}
