//! The generic cell rate algorithm: how often something may happen, from one number. Pure.
//!
//! What is counted has a *theoretical arrival time* (TAT), in nanoseconds: when it would be at rest again if nothing more came. Each
//! request moves it on by the interval between two requests, and may come while it is ahead of the clock by no more than what
//! the burst allows. A number in the past says nothing: whoever forgets it forgets nothing.

use std::time::Duration;

/// So many in each `per`, spread evenly but for a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At least 1.
    pub requests: u32,
    /// More than nothing.
    pub per: Duration,
    /// How many at once; at least 1.
    pub burst: u32,
}

/// A rate, compiled. In nanoseconds, rounded so that never more is let through than the rate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// Between two requests; at least 1.
    interval: u64,
    /// How far ahead of the clock a request may find the TAT.
    tolerance: u64,
}

// === impl Pace ===

impl Pace {
    pub(super) fn new(rate: &Rate) -> Self {
        let interval = rate.per.as_nanos().div_ceil(u128::from(rate.requests.max(1)));
        let interval = u64::try_from(interval).unwrap_or(u64::MAX).max(1);
        Self { interval, tolerance: interval.saturating_mul(u64::from(rate.burst.max(1)) - 1) }
    }

    /// The TAT after one more request at `now`.
    ///
    /// # Errors
    /// In how many nanoseconds there is room for one.
    pub(super) fn next(&self, tat: u64, now: u64) -> Result<u64, u64> {
        let from = tat.max(now);
        match (from - now).checked_sub(self.tolerance) {
            None | Some(0) => Ok(from.saturating_add(self.interval)),
            Some(wait) => Err(wait),
        }
    }

    /// The TAT without one request that was counted.
    pub(super) fn back(&self, tat: u64) -> u64 {
        tat.saturating_sub(self.interval)
    }

    /// What a TAT of this pace is by another: as many requests as before are still to be waited for, up to the new burst.
    pub(super) fn moved_to(&self, new: &Self, tat: u64, now: u64) -> u64 {
        let owed = u128::from(tat.saturating_sub(now)) * u128::from(new.interval) / u128::from(self.interval);
        let most = new.tolerance.saturating_add(new.interval);
        now.saturating_add(u64::try_from(owed).unwrap_or(u64::MAX).min(most))
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(requests: u32, per: u64, burst: u32) -> Rate {
        Rate { requests, per: Duration::from_nanos(per), burst }
    }

    #[test]
    fn a_burst_passes_at_once_and_then_one_in_each_interval() {
        let pace = Pace::new(&rate(10, SECOND, 3));
        let mut tat = 0;
        for _ in 0..3 {
            tat = pace.next(tat, SECOND).unwrap();
        }
        assert_eq!(pace.next(tat, SECOND), Err(SECOND / 10));
        tat = pace.next(tat, SECOND + SECOND / 10).unwrap();
        assert_eq!(pace.next(tat, SECOND + SECOND / 10), Err(SECOND / 10));
        assert_eq!(pace.next(pace.back(tat), SECOND + SECOND / 10), Ok(tat), "given back");
    }

    /// In any window no more than the burst and what the time brings; never less for who keeps to the rate.
    #[test]
    fn seeded_no_window_has_more_than_burst_and_time_allow_and_who_conforms_is_never_refused() {
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let requests = rng.random_range(1..1000);
            let burst = rng.random_range(1..50);
            let per = rng.random_range(1..10 * SECOND);
            let pace = Pace::new(&rate(requests, per, burst));
            let (mut tat, mut now, mut passed) = (0, rng.random_range(0..SECOND), Vec::new());
            // A bucket of `burst` that fills at the rate, to compare with.
            let (mut room, mut at) = (u128::from(burst) * u128::from(pace.interval), now);
            for step in 0..500 {
                now += rng.random_range(0..3 * pace.interval);
                let full = u128::from(burst) * u128::from(pace.interval);
                room = (room + u128::from(now - at)).min(full);
                at = now;
                let fits = room >= u128::from(pace.interval);
                match pace.next(tat, now) {
                    Ok(next) => {
                        assert!(fits, "seed {seed}, step {step}: more than the rate");
                        room -= u128::from(pace.interval);
                        (tat, _) = (next, passed.push(now));
                    }
                    Err(wait) => {
                        assert!(!fits, "seed {seed}, step {step}: less than the rate");
                        assert!(pace.next(tat, now + wait).is_ok(), "seed {seed}, step {step}: {wait}");
                        assert!(pace.next(tat, now + wait - 1).is_err(), "seed {seed}, step {step}: {wait}");
                    }
                }
            }
            for (i, from) in passed.iter().enumerate() {
                for (more, to) in passed[i..].iter().enumerate() {
                    let most = u64::from(burst) + (to - from) / pace.interval;
                    assert!((more as u64) < most, "seed {seed}: {more} from {from} to {to}");
                }
            }
        }
    }

    #[test]
    fn clocks_and_rates_without_measure_saturate() {
        let slow = Pace::new(&Rate { requests: 1, per: Duration::MAX, burst: u32::MAX });
        let tat = slow.next(0, u64::MAX).unwrap();
        assert_eq!(tat, u64::MAX);
        // A clock that went back finds it far ahead, and waits no longer than it must.
        assert_eq!(slow.next(tat, 0), Ok(u64::MAX), "the burst is as large");
        let fast = Pace::new(&Rate { requests: u32::MAX, per: Duration::from_nanos(1), burst: 1 });
        assert_eq!(fast.next(0, 5), Ok(6));
        assert_eq!(slow.moved_to(&fast, u64::MAX, 7), 7, "less than one is owed");
        assert_eq!(fast.moved_to(&slow, 9, 7), u64::MAX);
    }

    #[test]
    fn another_rate_keeps_what_was_used() {
        let (hourly, fast) = (Pace::new(&rate(10, 3600 * SECOND, 10)), Pace::new(&rate(10, SECOND, 20)));
        let mut tat = 0;
        for _ in 0..10 {
            tat = hourly.next(tat, SECOND).unwrap();
        }
        let mut tat = hourly.moved_to(&fast, tat, SECOND);
        let mut passed = 0;
        while let Ok(next) = fast.next(tat, SECOND) {
            (tat, passed) = (next, passed + 1);
        }
        assert_eq!(passed, 10, "of twenty, ten are used");
        assert_eq!(hourly.moved_to(&fast, SECOND / 2, SECOND), SECOND, "what is past is past");
    }
}
