//! Which answers are not taken, how often a request is sent again, and how long is waited before (GEP-1731, `HTTPRoute.spec.rules.retry`).

use std::time::Duration;

/// So many times as long as the first wait, without jitter, is the longest where nothing else is said.
const MOST: u32 = 10;

/// What is said of requests that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Answers of these statuses are not taken, as long as the request may be sent again.
    pub codes: Box<[u16]>,
    /// Likewise answers of nothing but such a status of gRPC, from 1 to 16: a bit for each.
    pub grpc_codes: u32,
    /// How often it may be, after the first time; 0: never, whatever has failed.
    pub attempts: u32,
    /// The least time before that.
    pub backoff: Duration,
    /// The most time before that; `None`: ten times `backoff`, and half as long again.
    pub maximum_backoff: Option<Duration>,
    /// What it is sent again for, beside answers.
    pub causes: Causes,
    /// Also what may have been processed and is not idempotent.
    pub non_idempotent: bool,
    /// Of how many bytes a body may be that is kept for it.
    pub maximum_body: u64,
}

/// What may happen to a request in place of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Causes {
    /// No connection could be had.
    pub connect_failure: bool,
    /// It broke before an answer.
    pub reset: bool,
    /// The server said that it did not look at it.
    pub refused: bool,
    /// There was none in the time for one try.
    pub timeout: bool,
}

// === impl Retry ===

impl Retry {
    /// Of what is kept of a body where nothing else is said.
    pub const BODY: u64 = 64 * 1024;

    /// Whether an answer of this status is not taken.
    pub fn is_for(&self, status: u16) -> bool {
        self.codes.contains(&status)
    }

    /// Whether an answer of nothing but this status of gRPC is not taken.
    pub fn is_for_grpc(&self, status: u32) -> bool {
        1_u32.checked_shl(status).is_some_and(|bit| self.grpc_codes & bit != 0)
    }

    /// How long to wait before a request is sent again for the `nth` time, from 1 on: each time twice as long, up to the longest, and up
    /// to half as long again by `random`, so that those who failed together do not come back together.
    pub fn wait(&self, nth: u32, random: u32) -> Duration {
        let most = self.backoff.saturating_mul(MOST);
        // Room for the jitter is kept below the longest.
        let most = self.maximum_backoff.map_or(most, |longest| longest.max(self.backoff) / 3 * 2);
        let times = 1_u32.checked_shl(nth.saturating_sub(1)).unwrap_or(u32::MAX);
        let least = self.backoff.saturating_mul(times).min(most).max(self.backoff);
        let jitter = (least / 2).mul_f64(f64::from(random) / f64::from(u32::MAX));
        let wait = least.saturating_add(jitter);
        self.maximum_backoff.map_or(wait, |longest| wait.min(longest.max(self.backoff)))
    }
}

impl Default for Retry {
    /// Never.
    fn default() -> Self {
        Self {
            codes: [].into(),
            grpc_codes: 0,
            attempts: 0,
            backoff: Duration::ZERO,
            maximum_backoff: None,
            causes: Causes::ALL,
            non_idempotent: false,
            maximum_body: Self::BODY,
        }
    }
}

// === impl Causes ===

impl Causes {
    pub const ALL: Self = Self { connect_failure: true, reset: true, refused: true, timeout: true };
    pub const NONE: Self = Self { connect_failure: false, reset: false, refused: false, timeout: false };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(backoff: Duration) -> Retry {
        Retry { codes: [503].into(), attempts: 1, backoff, ..Retry::default() }
    }

    #[test]
    fn each_wait_is_twice_as_long_up_to_ten_times_and_never_shorter() {
        let retry = retry(Duration::from_millis(100));
        for (nth, least) in [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1000), (32, 1000), (u32::MAX, 1000)]
        {
            let waits = [0, u32::MAX / 2, u32::MAX].map(|random| retry.wait(nth, random));
            assert_eq!(waits[0].as_millis(), least, "{nth}");
            assert!(waits.is_sorted(), "{nth}: {waits:?}");
            assert_eq!(waits[2].as_millis(), least * 3 / 2, "{nth}");
        }
    }

    #[test]
    fn no_wait_is_longer_than_the_longest_or_shorter_than_the_first() {
        for (longest, nth, least, most) in [
            (3000, 1, 100, 150),
            (3000, 5, 1600, 2400),
            (3000, 9, 2000, 3000),
            (120, 1, 100, 120),
            (120, 9, 100, 120),
            // Shorter than the first: the first holds.
            (50, 3, 100, 100),
        ] {
            let maximum_backoff = Some(Duration::from_millis(longest));
            let retry = Retry { maximum_backoff, ..retry(Duration::from_millis(100)) };
            let waits = [0, u32::MAX].map(|random| retry.wait(nth, random).as_millis());
            assert_eq!(waits, [least, most], "{longest} {nth}");
        }
    }

    #[test]
    fn the_longest_backoff_does_not_overflow_and_none_does_not_wait() {
        assert_eq!(retry(Duration::MAX).wait(9, u32::MAX), Duration::MAX);
        assert_eq!(retry(Duration::ZERO).wait(9, u32::MAX), Duration::ZERO);
    }

    #[test]
    fn statuses_of_grpc_are_told_apart() {
        let retry = Retry { grpc_codes: 1 << 14 | 1 << 8, ..Retry::default() };
        let of = |status| retry.is_for_grpc(status);
        assert!(of(14) && of(8));
        assert!(!of(0) && !of(13) && !of(15) && !of(32) && !of(40) && !of(u32::MAX));
    }
}
