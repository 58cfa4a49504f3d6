//! The buckets in which proxies report latencies, and the quantiles that are read from them.
//!
//! Each bound is a fifth above the one before it: the middle of a bucket is off by a tenth at most from whatever lies in it.

use std::time::Duration;

/// How many bounds there are; what is longer than the last lies in one more bucket.
const COUNT: usize = 76;
/// Of the first bucket.
const FIRST: u64 = 50_000;

/// Upper bounds in nanoseconds, ascending: from 50 µs to about 43 s.
pub const LATENCY_BOUNDS: [u64; COUNT] = {
    let mut bounds = [FIRST; COUNT];
    let mut index = 1;
    while index < COUNT {
        bounds[index] = bounds[index - 1] * 6 / 5;
        index += 1;
    }
    bounds
};

/// How many observations lie in each bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latencies([u64; COUNT + 1]);

// === impl Latencies ===

impl Default for Latencies {
    fn default() -> Self {
        Self([0; COUNT + 1])
    }
}

impl Latencies {
    /// Adds what was observed in the bucket of that number; a number that no bucket has counts in the last.
    pub fn add(&mut self, bucket: u32, count: u64) {
        let bucket = usize::try_from(bucket).map_or(COUNT, |bucket| bucket.min(COUNT));
        self.0[bucket] = self.0[bucket].saturating_add(count);
    }

    /// Adds what was observed up to `bound`, in nanoseconds, and above each lesser bound of the same kind.
    pub fn add_up_to(&mut self, bound: u64, count: u64) {
        let bucket = LATENCY_BOUNDS.partition_point(|own| *own < bound);
        self.0[bucket] = self.0[bucket].saturating_add(count);
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: &Self) {
        for (own, other) in self.0.iter_mut().zip(other.0) {
            *own = own.saturating_add(other);
        }
    }

    /// What was observed since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = self.clone();
        since.0.iter_mut().zip(earlier.0).for_each(|(now, then)| *now = now.saturating_sub(then));
        since
    }

    /// The buckets that hold anything, with their numbers.
    pub fn sparse(&self) -> impl Iterator<Item = (u32, u64)> {
        (0..).zip(self.0).filter(|(_, count)| *count > 0)
    }

    /// How many observations there are.
    pub fn count(&self) -> u64 {
        self.0.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The duration that the share `q` (0 to 1) of the observations did not exceed, within a tenth; beyond the last bound, that bound. `None` without
    /// observations.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * total as f64;
        let mut up_to = 0.0;
        for (bucket, count) in self.sparse() {
            up_to += count as f64;
            if up_to >= rank {
                let at = |index: usize| LATENCY_BOUNDS[index.min(COUNT - 1)] as f64;
                let bucket = usize::try_from(bucket).unwrap_or(COUNT);
                // Of the first bucket nothing is known but that it is short.
                let lower = bucket.checked_sub(1).map_or_else(|| at(0) / 4.0, at);
                return Some(Duration::from_nanos((lower * at(bucket)).sqrt() as u64));
            }
        }
        LATENCY_BOUNDS.last().map(|last| Duration::from_nanos(*last))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn observed(nanos: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::default();
        for one in nanos {
            latencies.add_up_to(one, 1);
        }
        latencies
    }

    #[test]
    fn quantiles_are_off_by_a_tenth_at_most() {
        for scale in [100_000_u64, 1_000_000, 30_000_000, 9_000_000_000] {
            // All alike, and spread evenly.
            let alike = observed(std::iter::repeat_n(scale, 1000));
            let spread = observed((1..=1000).map(|step| scale * step / 250));
            for (latencies, q, expected) in [
                (&alike, 0.5, scale),
                (&alike, 0.99, scale),
                (&spread, 0.5, scale * 2),
                (&spread, 0.95, scale * 19 / 5),
                (&spread, 0.99, scale * 99 / 25),
            ] {
                let found = latencies.quantile(q).unwrap().as_nanos() as f64;
                let off = (found / expected as f64 - 1.0).abs();
                assert!(off <= 0.11, "{q} of {expected}: {found}");
            }
        }
    }

    #[test]
    fn what_is_reported_is_what_was_observed() {
        let latencies = observed([0, 1, 50_000, 50_001, 2_000_000, u64::MAX]);
        let mut again = Latencies::default();
        for (bucket, count) in latencies.sparse() {
            again.add(bucket, count);
        }
        assert_eq!((again.count(), &again), (6, &latencies));
        assert_eq!(latencies.sparse().next(), Some((0, 3)));
        again.add(u32::MAX, 1);
        again.merge(&latencies);
        assert_eq!(again.since(&latencies).since(&latencies).sparse().last(), Some((76, 1)));
        assert_eq!(Latencies::default().quantile(0.5), None);
        assert_eq!(observed([u64::MAX]).quantile(0.5).unwrap().as_nanos(), LATENCY_BOUNDS[75].into());
    }
}
