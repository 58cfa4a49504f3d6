//! Latency histograms as `/metrics` has them: differences, sums and quantiles.

use std::time::Duration;

/// Counts of observations by upper bound, cumulative, ascending; the last bound is infinity once anything was counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Histogram {
    /// (upper bound in seconds, observations at most that long).
    buckets: Vec<(f64, f64)>,
}

// === impl Histogram ===

impl Histogram {
    /// Adds one `_bucket` line of one series; those of several series sum up.
    pub(crate) fn add(&mut self, upper_bound: &str, count: f64) {
        let Ok(bound) = upper_bound.parse::<f64>() else { return };
        if bound.is_nan() || !count.is_finite() || count < 0.0 {
            return;
        }
        match self.buckets.binary_search_by(|(other, _)| other.total_cmp(&bound)) {
            Ok(index) => self.buckets[index].1 += count,
            Err(index) => self.buckets.insert(index, (bound, count)),
        }
    }

    /// What was counted since `earlier`. A counter that went back began anew with its process: all of it is new.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let before = |bound: f64| {
            let found = earlier.buckets.iter().find(|(other, _)| other.total_cmp(&bound).is_eq());
            found.map_or(0.0, |(_, count)| *count)
        };
        if self.count() < earlier.count() {
            return self.clone();
        }
        let buckets = self.buckets.iter().map(|&(bound, count)| (bound, (count - before(bound)).max(0.0)));
        Self { buckets: buckets.collect() }
    }

    /// How many observations there are.
    pub(crate) fn count(&self) -> f64 {
        self.buckets.last().map_or(0.0, |(_, count)| *count)
    }

    /// The duration that the share `q` (0 to 1) of the observations did not exceed, interpolated within its bucket as
    /// Prometheus's `histogram_quantile` does; in the infinite bucket it is the greatest finite bound. `None` without
    /// observations.
    pub(crate) fn quantile(&self, q: f64) -> Option<Duration> {
        let total = self.count();
        if total <= 0.0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * total;
        let (mut lower_bound, mut below) = (0.0, 0.0);
        for &(bound, count) in &self.buckets {
            if count >= rank && count > below {
                if bound.is_infinite() {
                    break;
                }
                let seconds =
                    lower_bound + (bound - lower_bound) * ((rank - below) / (count - below)).max(0.0);
                return Duration::try_from_secs_f64(seconds).ok();
            }
            (lower_bound, below) = (bound, count);
        }
        let finite = self.buckets.iter().rev().find(|(bound, _)| bound.is_finite());
        finite.and_then(|(bound, _)| Duration::try_from_secs_f64(*bound).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(buckets: &[(&str, f64)]) -> Histogram {
        let mut histogram = Histogram::default();
        for (bound, count) in buckets {
            histogram.add(bound, *count);
        }
        histogram
    }

    fn milliseconds(histogram: &Histogram, q: f64) -> Option<f64> {
        histogram.quantile(q).map(|duration| duration.as_secs_f64() * 1e3)
    }

    #[test]
    fn quantiles_are_interpolated_within_their_bucket() {
        type Case<'a> = (&'a [(&'a str, f64)], f64, Option<f64>);
        let cases: &[Case<'_>] = &[
            (&[], 0.5, None),
            (&[("0.005", 0.0), ("+Inf", 0.0)], 0.5, None),
            (&[("0.010", 100.0), ("+Inf", 100.0)], 0.5, Some(5.0)),
            (&[("0.010", 50.0), ("0.020", 100.0), ("+Inf", 100.0)], 0.5, Some(10.0)),
            (&[("0.010", 50.0), ("0.020", 100.0), ("+Inf", 100.0)], 0.75, Some(15.0)),
            // An empty bucket between is passed over.
            (&[("0.001", 1.0), ("0.010", 1.0), ("0.020", 2.0), ("+Inf", 2.0)], 0.75, Some(15.0)),
            // Beyond the greatest bound nothing finer is known.
            (&[("0.010", 1.0), ("+Inf", 10.0)], 0.99, Some(10.0)),
            (&[("+Inf", 10.0)], 0.99, None),
            // The first observation lies in the first bucket that has any.
            (&[("0.001", 0.0), ("0.010", 4.0), ("+Inf", 4.0)], 0.0, Some(1.0)),
            (&[("0.010", 4.0), ("+Inf", 4.0)], 1.0, Some(10.0)),
        ];
        for (buckets, q, expected) in cases {
            let found = milliseconds(&histogram(buckets), *q);
            let equal = match (found, expected) {
                (Some(found), Some(expected)) => (found - expected).abs() < 1e-6,
                (None, None) => true,
                _ => false,
            };
            assert!(equal, "{buckets:?} at {q}: {found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn series_sum_up_whatever_their_order() {
        let mut both = histogram(&[("+Inf", 3.0), ("0.010", 2.0)]);
        both.add("0.010", 1.0);
        both.add("+Inf", 1.0);
        assert_eq!(both, histogram(&[("0.010", 3.0), ("+Inf", 4.0)]));
        both.add("x", 1.0);
        both.add("1", f64::NAN);
        assert_eq!(both.count(), 4.0);
    }

    #[test]
    fn a_difference_is_of_counters_and_a_restarted_counter_is_all_new() {
        let earlier = histogram(&[("0.010", 3.0), ("+Inf", 4.0)]);
        let later = histogram(&[("0.010", 5.0), ("+Inf", 7.0)]);
        assert_eq!(later.since(&earlier), histogram(&[("0.010", 2.0), ("+Inf", 3.0)]));
        assert_eq!(later.since(&Histogram::default()), later);
        let restarted = histogram(&[("0.010", 1.0), ("+Inf", 1.0)]);
        assert_eq!(restarted.since(&later), restarted);
    }
}
