//! How many lines `/metrics` may have (R11).
//!
//! A label value may be chosen by peers and applications; memory, and Prometheus's cost, may not be. Once the cap is
//! reached, what is new is counted in overflow series. Nothing is ever taken away, so that no counter goes back.

use std::collections::HashSet;

use parking_lot::Mutex;

/// How many names that clients choose are told apart.
pub(super) const MAX_NAMES: usize = 100;

/// Families whose series come and grow with use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Group {
    Requests,
    Durations,
    Connections,
    Verdicts,
    Egress,
    HealthChecks,
    Pools,
    /// See [`Balancer`](super::Balancer).
    Balancers,
    RateLimits,
    Externals,
    Limits,
    /// What is taken of them.
    LimitUses,
}

/// Series that are there, over all workers.
#[derive(Debug)]
pub(super) struct Budget {
    lines: usize,
    lines_per_histogram: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    known: HashSet<(Group, u64, Box<[u8]>), foldhash::fast::RandomState>,
    names: HashSet<Box<str>, foldhash::fast::RandomState>,
}

// === impl Budget ===

impl Budget {
    /// `cap` lines in all; `buckets` finite bounds in a histogram.
    pub(super) fn new(cap: usize, buckets: usize) -> Self {
        let lines_per_histogram = buckets + 3;
        let reserved = super::FIXED_LINES + super::FIXED_HISTOGRAMS * lines_per_histogram;
        Self { lines: cap.saturating_sub(reserved), lines_per_histogram, state: Mutex::default() }
    }

    /// Whether the series may be there: it is already (on another worker, say), or there is room for it.
    ///
    /// Histograms may fill three quarters, so that counts of errors find room when latencies no longer do.
    pub(super) fn admit(&self, group: Group, key: &[u8], sub: u64) -> bool {
        let mut state = self.state.lock();
        let entry = (group, sub, Box::from(key));
        if state.known.contains(&entry) {
            return true;
        }
        let (lines, limit) = match group {
            Group::Requests
            | Group::Verdicts
            | Group::Egress
            | Group::RateLimits
            | Group::Externals
            | Group::Limits
            | Group::HealthChecks => (1, self.lines),
            Group::Pools | Group::LimitUses => (2, self.lines),
            Group::Connections => (4, self.lines),
            Group::Balancers => (17, self.lines),
            Group::Durations => (self.lines_per_histogram, self.lines / 4 * 3),
        };
        if state.used + lines > limit {
            return false;
        }
        state.used += lines;
        state.known.insert(entry);
        true
    }

    /// Whether a name that clients choose may be a label's value: it is one already, or there are not too many yet.
    pub(super) fn admit_name(&self, name: &str) -> bool {
        let names = &mut self.state.lock().names;
        names.contains(name) || (names.len() < MAX_NAMES && names.insert(name.into()))
    }

    /// How many label sets of requests a worker keeps, with or without outcomes.
    pub(super) fn most_label_sets(&self) -> usize {
        self.lines.max(1)
    }
}
