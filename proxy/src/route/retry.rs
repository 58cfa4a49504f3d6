//! Which answers are not taken, how often a request is sent again, and how long is waited before (GEP-1731, `HTTPRoute.spec.rules.retry`).

use std::time::Duration;

/// So many times as long as the first wait, without jitter, is the longest.
const MOST: u32 = 10;

/// What a rule's `retry` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Answers of these statuses are not taken, as long as the request may be sent again.
    pub codes: Box<[u16]>,
    /// How often it may be, after the first time; 0: never, whatever has failed.
    pub attempts: u32,
    /// The least time before that.
    pub backoff: Duration,
}

// === impl Retry ===

impl Retry {
    /// Whether an answer of this status is not taken.
    pub fn is_for(&self, status: u16) -> bool {
        self.codes.contains(&status)
    }

    /// How long to wait before a request is sent again for the `nth` time, from 1 on: each time twice as long, up to ten times the
    /// first, and up to half as long again by `random`, so that those who failed together do not come back together.
    pub fn wait(&self, nth: u32, random: u32) -> Duration {
        let times = 1_u32.checked_shl(nth.saturating_sub(1)).map_or(MOST, |times| times.clamp(1, MOST));
        let least = self.backoff.saturating_mul(times);
        let jitter = (least / 2).mul_f64(f64::from(random) / f64::from(u32::MAX));
        least.saturating_add(jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(backoff: Duration) -> Retry {
        Retry { codes: [503].into(), attempts: 1, backoff }
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
    fn the_longest_backoff_does_not_overflow_and_none_does_not_wait() {
        assert_eq!(retry(Duration::MAX).wait(9, u32::MAX), Duration::MAX);
        assert_eq!(retry(Duration::ZERO).wait(9, u32::MAX), Duration::ZERO);
    }
}
