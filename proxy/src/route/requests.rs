//! What is said of requests: their timeouts, when they are sent again, and what goes wrong with them on purpose.
//!
//! It is said twice at most: by the rule that a request follows, and by the port of the service that was dialled, for whatever the rule
//! leaves open ([`Requests`]). Pure; `forward` carries it out.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use tulle_api::PATTERN_INPUT;

use super::condition::{Asked, HeaderMatch, header_len, holds};
use super::retry::Retry;
use crate::limit::RateLimit;
use crate::telemetry::access;
use crate::telemetry::trace::Sampling;

/// What one rule or port says. Of durations, zero is said too: no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestPolicy {
    /// The whole request, from its head to the response's end.
    pub request_timeout: Option<Duration>,
    /// One try at one backend, until the response's head.
    pub backend_timeout: Option<Duration>,
    /// How long neither side may send anything of its body.
    pub idle_timeout: Option<Duration>,
    /// The header in which clients say how long they wait, in milliseconds.
    pub deadline_header: Option<HeaderName>,
    /// `None`: what provably was not processed is sent once more, and nothing else.
    pub retry: Option<Retry>,
    /// The first that describes a request holds.
    pub faults: Box<[FaultRule]>,
    /// Those of a rule and of a port all hold.
    pub rate_limits: Box<[RateLimit]>,
    /// What is logged of them; `None`: nothing is said.
    pub access_log: Option<Arc<access::Said>>,
    /// Which of their traces are recorded.
    pub sampling: Sampling,
}

/// What goes wrong on purpose, at each try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRule {
    /// `<namespace>/<policy>/<rule>`
    pub name: Box<str>,
    /// Requests that have all of them; none: all requests.
    pub headers: Box<[HeaderMatch]>,
    /// How many of a million are held, and for how long.
    pub delay: Option<(u32, Duration)>,
    /// How many of a million are answered, and with what.
    pub abort: Option<(u32, Abort)>,
}

/// What is answered in a backend's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// From 200 to 599.
    Http(StatusCode),
    /// A status of gRPC, from 1 to 16.
    Grpc(u8),
}

/// What goes wrong with one try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// For so long it is held.
    pub delay: Option<Duration>,
    /// And then so answered.
    pub abort: Option<Abort>,
}

/// What holds for one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Requests<'a> {
    /// Of the rule that it follows.
    pub rule: Option<&'a RequestPolicy>,
    /// Of the port that was dialled.
    pub port: Option<&'a RequestPolicy>,
}

/// That many of a million are all.
pub const MILLION: u32 = 1_000_000;

// === impl RequestPolicy ===

impl RequestPolicy {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

// === impl FaultRule ===

impl FaultRule {
    /// Whether it describes a request. None is described by a pattern whose header is too long to be compared with it.
    fn is_for(&self, asked: &Asked<'_>) -> bool {
        let fits =
            |one: &HeaderMatch| !one.value.is_pattern() || header_len(asked, &one.name) <= PATTERN_INPUT;
        self.headers.iter().all(fits) && holds(&self.headers, asked)
    }

    /// What goes wrong with a try, by two random numbers.
    pub fn draw(&self, random: [u32; 2]) -> Injected {
        let is_drawn = |of: u32, random: u32| u64::from(random) * u64::from(MILLION) < u64::from(of) << 32;
        Injected {
            delay: self.delay.filter(|(of, _)| is_drawn(*of, random[0])).map(|(_, delay)| delay),
            abort: self.abort.filter(|(of, _)| is_drawn(*of, random[1])).map(|(_, abort)| abort),
        }
    }
}

// === impl Abort ===

impl Abort {
    /// What a client gets that does not speak gRPC.
    pub fn http(self) -> StatusCode {
        match self {
            Self::Http(status) => status,
            // As in google.rpc.Code.
            Self::Grpc(code) => match code {
                1 => StatusCode::from_u16(499).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                3 | 9 | 11 => StatusCode::BAD_REQUEST,
                4 => StatusCode::GATEWAY_TIMEOUT,
                5 => StatusCode::NOT_FOUND,
                6 | 10 => StatusCode::CONFLICT,
                7 => StatusCode::FORBIDDEN,
                8 => StatusCode::TOO_MANY_REQUESTS,
                12 => StatusCode::NOT_IMPLEMENTED,
                14 => StatusCode::SERVICE_UNAVAILABLE,
                16 => StatusCode::UNAUTHORIZED,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }

    /// What a client gets that speaks gRPC (its "HTTP to gRPC Status Code Mapping").
    pub fn grpc(self) -> u8 {
        match self {
            Self::Grpc(code) => code,
            Self::Http(status) => match status.as_u16() {
                400 => 13,
                401 => 16,
                403 => 7,
                404 => 12,
                429 | 502 | 503 | 504 => 14,
                _ => 2,
            },
        }
    }
}

// === impl Requests ===

impl<'a> Requests<'a> {
    /// What is said of their log, the more specific first.
    #[inline]
    pub fn access_logs(&self) -> [Option<Arc<access::Said>>; 2] {
        [self.rule, self.port].map(|said| said?.access_log.clone())
    }

    /// What is said of their traces.
    #[inline]
    pub fn sampling(&self) -> Sampling {
        let [rule, port] =
            [self.rule, self.port].map(|said| said.map(|said| said.sampling).unwrap_or_default());
        rule.over(port)
    }

    /// Within which time the whole request must be over.
    #[inline]
    pub fn request_timeout(&self) -> Option<Duration> {
        self.limit(|said| said.request_timeout)
    }

    /// Within which time the response's head must be there, at each try.
    #[inline]
    pub fn backend_timeout(&self) -> Option<Duration> {
        self.limit(|said| said.backend_timeout)
    }

    /// How long neither side may send anything of its body.
    #[inline]
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.limit(|said| said.idle_timeout)
    }

    /// In which header the client says how long it waits.
    #[inline]
    pub fn deadline_header(&self) -> Option<&'a HeaderName> {
        self.said(|said| said.deadline_header.as_ref())
    }

    /// When the request is sent again.
    #[inline]
    pub fn retry(&self) -> Option<&'a Retry> {
        self.said(|said| said.retry.as_ref())
    }

    /// Whether anything goes wrong with any request on purpose.
    #[inline]
    pub fn has_faults(&self) -> bool {
        self.rule.is_some_and(|said| !said.faults.is_empty())
            || self.port.is_some_and(|said| !said.faults.is_empty())
    }

    /// What goes wrong with a request on purpose.
    pub fn fault(&self, asked: &Asked<'_>) -> Option<&'a FaultRule> {
        let one = |said: &'a RequestPolicy| said.faults.iter().find(|one| one.is_for(asked));
        self.said(one)
    }

    /// Every rate limit.
    pub fn rate_limits(&self) -> impl Iterator<Item = &'a RateLimit> {
        [self.rule, self.port].into_iter().flatten().flat_map(|said| &said.rate_limits)
    }

    fn limit(&self, of: impl Fn(&RequestPolicy) -> Option<Duration>) -> Option<Duration> {
        self.said(of).filter(|limit| !limit.is_zero())
    }

    fn said<T>(&self, of: impl Fn(&'a RequestPolicy) -> Option<T>) -> Option<T> {
        self.rule.and_then(&of).or_else(|| self.port.and_then(&of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rule_does_not_say_its_port_does_and_zero_is_said() {
        let seconds = Duration::from_secs;
        let of = |request: Option<u64>, idle: Option<u64>| RequestPolicy {
            request_timeout: request.map(seconds),
            idle_timeout: idle.map(seconds),
            ..RequestPolicy::default()
        };
        let (rule, port) = (of(Some(0), None), of(Some(5), Some(7)));
        let both = Requests { rule: Some(&rule), port: Some(&port) };
        assert_eq!((both.request_timeout(), both.idle_timeout()), (None, Some(seconds(7))));
        assert_eq!(both.backend_timeout(), None);
        let port = Requests { rule: None, port: Some(&port) };
        assert_eq!(port.request_timeout(), Some(seconds(5)));
        assert_eq!(Requests::default().request_timeout(), None);
    }

    #[test]
    fn what_a_rule_does_not_say_of_traces_its_port_does() {
        let of = |millionths, parent_based| RequestPolicy {
            sampling: Sampling { millionths, parent_based },
            ..RequestPolicy::default()
        };
        let (rule, port) = (of(Some(0), None), of(Some(5), Some(false)));
        let both = Requests { rule: Some(&rule), port: Some(&port) };
        assert_eq!(both.sampling(), Sampling { millionths: Some(0), parent_based: Some(false) });
        assert_eq!(Requests { rule: None, ..both }.sampling(), port.sampling);
        assert_eq!(Requests { port: None, ..both }.sampling(), rule.sampling);
        assert!(Requests::default().sampling().is_empty());
    }

    #[test]
    fn as_many_are_drawn_as_are_said() {
        let fault = |delayed, aborted| FaultRule {
            name: "".into(),
            headers: [].into(),
            delay: Some((delayed, Duration::from_secs(1))),
            abort: Some((aborted, Abort::Grpc(14))),
        };
        let ends = [0, u32::MAX];
        assert!(ends.iter().all(|random| fault(0, 0).draw([*random; 2]) == Injected::default()));
        assert!(ends.iter().all(|random| fault(MILLION, 0).draw([*random; 2]).delay.is_some()));
        // A quarter of the numbers, evenly spread.
        let drawn =
            |of| (0..4000_u32).filter(move |i| fault(0, of).draw([0, i * (u32::MAX / 4000)]).abort.is_some());
        assert!((990..=1010).contains(&drawn(MILLION / 4).count()));
    }

    #[test]
    fn the_statuses_of_both_kinds_stand_for_each_other() {
        for (abort, http, grpc) in [
            (Abort::Http(StatusCode::SERVICE_UNAVAILABLE), 503, 14),
            (Abort::Http(StatusCode::IM_A_TEAPOT), 418, 2),
            (Abort::Grpc(8), 429, 8),
            (Abort::Grpc(1), 499, 1),
            (Abort::Grpc(4), 504, 4),
        ] {
            assert_eq!((abort.http().as_u16(), abort.grpc()), (http, grpc), "{abort:?}");
        }
    }
}
