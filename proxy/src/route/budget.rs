//! How many requests may be sent again beside those that are sent the first time (GEP-3388), counted over all workers.
//!
//! One that is sent again counts where it goes, whatever route led it there. So many are let through as are the given share of the
//! requests within an interval, and at any rate the given number within another. When one is let through, then, at that moment, those
//! within `minimum_interval` are at most `minimum`, or those within `interval` at most `percent` of the requests within it. Where
//! workers ask in the same instant, each but the first may be let through beyond that once.
//!
//! Pure: the time is passed in, in nanoseconds of one clock; a worker that is a moment behind counts into the present. Without locks. Called by
//! `forward`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a budget is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetSpec {
    /// Of the requests within `interval`.
    pub percent: u8,
    pub interval: Duration,
    /// At any rate so many within `minimum_interval`.
    pub minimum: u32,
    pub minimum_interval: Duration,
}

/// A budget and what was taken from it.
#[derive(Debug)]
pub struct Budget {
    spec: BudgetSpec,
    requests: Window,
    retries: Window,
    recent: Window,
}

/// What happened lately, by parts of an interval.
#[derive(Debug)]
struct Window {
    /// Of one part, in nanoseconds.
    part: u64,
    /// The number of the part in the upper 40 bits, what was counted in it in the lower 24.
    parts: [AtomicU64; PARTS + 1],
}

/// An interval is told to this part of it.
const PARTS: usize = 8;
/// No part is shorter, in nanoseconds: their numbers fit for decades.
const MIN_PART: u64 = 1_000_000;

// === impl BudgetSpec ===

impl Default for BudgetSpec {
    /// 20 % within 10 s, or 10 within 1 s.
    fn default() -> Self {
        let (interval, minimum_interval) = (Duration::from_secs(10), Duration::from_secs(1));
        Self { percent: 20, interval, minimum: 10, minimum_interval }
    }
}

// === impl Budget ===

impl Budget {
    pub fn new(spec: BudgetSpec) -> Self {
        let retries = Window::new(spec.interval);
        Self {
            spec,
            requests: Window::new(spec.interval),
            retries,
            recent: Window::new(spec.minimum_interval),
        }
    }

    pub fn spec(&self) -> &BudgetSpec {
        &self.spec
    }

    /// A request is sent the first time.
    pub fn request(&self, now: u64) {
        self.requests.count(now);
    }

    /// Whether one may be sent again; then it is taken for sent.
    pub fn retry(&self, now: u64) -> bool {
        // Of requests rather too few, of retries rather too many.
        let within = self.requests.sum(now, PARTS);
        let share = within * u64::from(self.spec.percent) / 100;
        let allowed = self.recent.sum(now, PARTS + 1) < self.spec.minimum.into()
            || self.retries.sum(now, PARTS + 1) < share;
        if allowed {
            self.recent.count(now);
            self.retries.count(now);
        }
        allowed
    }
}

// === impl Window ===

impl Window {
    fn new(interval: Duration) -> Self {
        let part = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX) / PARTS as u64;
        Self { part: part.max(MIN_PART), parts: Default::default() }
    }

    /// Of the part that `now` lies in.
    fn number(&self, now: u64) -> u64 {
        now / self.part + 1
    }

    fn count(&self, now: u64) {
        let number = self.number(now);
        let part = &self.parts[(number % self.parts.len() as u64) as usize];
        let counted = |known: u64| {
            // Another worker's clock may be ahead: what is newer is not thrown away.
            let (of, count) =
                if known >> BITS < number { (number, 0) } else { (known >> BITS, known & COUNT) };
            Some(of << BITS | (count + 1).min(COUNT))
        };
        let _counted = part.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
    }

    /// What was counted in the last so many parts, and in any that are newer.
    fn sum(&self, now: u64, parts: usize) -> u64 {
        let first = (self.number(now) + 1).saturating_sub(parts as u64);
        let known = self.parts.iter().map(|part| part.load(Ordering::Relaxed));
        known.filter(|known| known >> BITS >= first).map(|known| known & COUNT).sum()
    }
}

const BITS: u32 = 24;
const COUNT: u64 = (1 << BITS) - 1;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn spec(percent: u8, minimum: u32) -> BudgetSpec {
        BudgetSpec { percent, minimum, ..BudgetSpec::default() }
    }

    #[test]
    fn a_share_of_the_requests_may_be_sent_again_and_some_at_any_rate() {
        for (percent, minimum, requests, retries) in
            [(20, 0, 100, 20), (20, 10, 10, 10), (0, 0, 1000, 0), (100, 3, 50, 50), (0, 3, 1000, 3)]
        {
            let budget = Budget::new(spec(percent, minimum));
            (0..requests).for_each(|_| budget.request(SECOND));
            let allowed = (0..1000).filter(|_| budget.retry(SECOND)).count();
            assert_eq!(allowed, retries, "{percent} % of {requests}, or {minimum}");
        }
    }

    #[test]
    fn what_was_taken_comes_back_with_time() {
        let budget = Budget::new(spec(0, 10));
        let taken = |at| (0..100).filter(|_| budget.retry(at)).count();
        assert_eq!((taken(0), taken(SECOND / 2)), (10, 0));
        assert_eq!(taken(SECOND * 2), 10);
        assert_eq!(taken(SECOND * 3600), 10);
    }

    #[test]
    fn a_clock_that_is_behind_counts_into_the_present() {
        let budget = Budget::new(spec(0, 10));
        assert!(budget.retry(SECOND * 100));
        let allowed = (0..100).filter(|_| budget.retry(SECOND * 100 - SECOND / 100)).count();
        assert_eq!(allowed, 9);
        assert_eq!((0..100).filter(|_| budget.retry(0)).count(), 0, "however far behind");
    }

    /// The invariant of the module, after each of many random steps, against what really happened.
    #[test]
    fn r04_retries_are_never_more_than_the_budget_says() {
        for seed in 0..40 {
            let mut random = SmallRng::seed_from_u64(seed);
            let spec = BudgetSpec {
                percent: random.random_range(0..=100),
                interval: Duration::from_millis(random.random_range(8..20_000)),
                minimum: random.random_range(0..20),
                minimum_interval: Duration::from_millis(random.random_range(8..5_000)),
            };
            let budget = Budget::new(spec);
            let [interval, recent] = [spec.interval, spec.minimum_interval].map(|one| one.as_nanos() as u64);
            let (mut now, mut requests, mut retries) = (0, Vec::new(), Vec::<u64>::new());
            for _ in 0..2000 {
                now += match random.random_range(0..100) {
                    0 => random.random_range(0..interval * 2),
                    _ => random.random_range(0..interval / 50),
                };
                if random.random_bool(0.6) {
                    budget.request(now);
                    requests.push(now);
                } else if budget.retry(now) {
                    retries.push(now);
                    let within = |all: &[u64], long| {
                        all.iter().rev().take_while(|at| now - **at < long).count() as u64
                    };
                    let by_share = within(&retries, interval) * 100
                        <= within(&requests, interval) * u64::from(spec.percent);
                    let by_number = within(&retries, recent) <= u64::from(spec.minimum);
                    assert!(by_share || by_number, "seed {seed}: {spec:?} at {now}");
                }
            }
        }
    }

    #[test]
    fn r04_over_many_threads_no_more_than_one_beyond_the_budget_for_each() {
        const THREADS: usize = 8;
        let (budget, taken) = (Arc::new(Budget::new(spec(20, 10))), Arc::new(AtomicUsize::new(0)));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (budget, taken) = (Arc::clone(&budget), Arc::clone(&taken));
                std::thread::spawn(move || {
                    for _ in 0..1000 {
                        budget.request(SECOND);
                        if budget.retry(SECOND) {
                            taken.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let (taken, most) = (taken.load(Ordering::Relaxed), THREADS * 1000 / 5);
        assert!((most - THREADS..=most + THREADS).contains(&taken), "{taken} of {most}");
    }
}
