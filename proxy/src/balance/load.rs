//! What one endpoint's answers and silence tell about its load.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The time in which an average loses all but 1/e of what it was, in nanoseconds.
pub const DECAY: u64 = 10_000_000_000;

/// What an endpoint that never answered is taken for while it is being tried, in nanoseconds.
pub const UNKNOWN_LATENCY: u64 = 30_000_000;

/// A failure counts as this many times the average, so that failing fast does not look like being fast …
const FAILURE_FACTOR: f64 = 4.0;
/// … and at most as this, in nanoseconds, so that an endpoint that works again is tried again.
const FAILURE_MAX: f64 = 10_000_000_000.0;

/// No latency was ever observed. (NaN, so that no sum can be mistaken for it.)
const UNKNOWN: u64 = f64::NAN.to_bits();

/// The load of one endpoint, over all workers.
///
/// Each request calls [`Load::start`], then once [`Load::answer`] when the response's head is there (or has failed), then
/// once [`Load::end`] when the response is over; [`Load::finish`] is both at once. A request that is given up before its
/// answer calls [`Load::abandon`] instead. Latencies leave out the time of connecting.
#[derive(Debug)]
pub struct Load {
    /// `f64` bits, nanoseconds; [`UNKNOWN`] before the first answer.
    latency: AtomicU64,
    /// When `latency` was last brought up to date.
    stamp: AtomicU64,
    /// When the endpoint last answered, or began to owe an answer.
    progress: AtomicU64,
    /// Requests without an answer yet.
    awaiting: AtomicU32,
    /// Requests that are not over.
    in_flight: AtomicU32,
}

// === impl Load ===

impl Default for Load {
    fn default() -> Self {
        Self::new()
    }
}

impl AsRef<Self> for Load {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl Load {
    pub const fn new() -> Self {
        Self {
            latency: AtomicU64::new(UNKNOWN),
            stamp: AtomicU64::new(0),
            progress: AtomicU64::new(0),
            awaiting: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
        }
    }

    /// A request is sent.
    pub fn start(&self, now: u64) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        if self.awaiting.fetch_add(1, Ordering::Relaxed) == 0 {
            self.progress.fetch_max(now, Ordering::Relaxed);
        }
    }

    /// The response's head is there after `latency` nanoseconds, or the request failed after them.
    pub fn answer(&self, now: u64, latency: u64, success: bool) {
        decrement(&self.awaiting);
        self.progress.fetch_max(now, Ordering::Relaxed);
        self.observe(now, latency, success);
    }

    /// The response is over.
    pub fn end(&self) {
        decrement(&self.in_flight);
    }

    /// Answered and over.
    pub fn finish(&self, now: u64, latency: u64, success: bool) {
        self.answer(now, latency, success);
        self.end();
    }

    /// The request was given up, by the client or by a timeout, after `waited` nanoseconds without an answer. That
    /// tells something only if it is longer than the endpoint usually takes.
    pub fn abandon(&self, now: u64, waited: u64) {
        decrement(&self.awaiting);
        if self.latency(now).unwrap_or(UNKNOWN_LATENCY as f64) < waited as f64 {
            self.observe(now, waited, true);
        }
        self.end();
    }

    /// Requests that are not over.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The average latency in nanoseconds; `None` before the first answer.
    pub fn latency(&self, now: u64) -> Option<f64> {
        let latency = f64::from_bits(self.latency.load(Ordering::Relaxed));
        let age = now.saturating_sub(self.stamp.load(Ordering::Relaxed));
        (!latency.is_nan()).then(|| latency * weight(age))
    }

    /// What sending one more request here would cost; only comparisons mean anything.
    pub fn cost(&self, now: u64) -> f64 {
        let in_flight = f64::from(self.in_flight());
        let latency = match self.latency(now) {
            Some(latency) => latency,
            // A newcomer is tried at once, with one request.
            None if in_flight == 0.0 => 0.0,
            None => UNKNOWN_LATENCY as f64,
        };
        // Whoever owes answers and gives none is as slow as the silence is long.
        let silence = if self.awaiting.load(Ordering::Relaxed) > 0 {
            now.saturating_sub(self.progress.load(Ordering::Relaxed)) as f64
        } else {
            0.0
        };
        latency.max(silence) * (in_flight + 1.0)
    }

    fn observe(&self, now: u64, latency: u64, success: bool) {
        // Whoever moves the stamp forward applies the decay of just that time.
        let before = self.stamp.fetch_max(now, Ordering::Relaxed);
        let kept = weight(now.saturating_sub(before));
        let next = |bits: u64| {
            let old = f64::from_bits(bits);
            let sample = if success { latency as f64 } else { failure(latency as f64, old * kept) };
            // True also for the first, when `old` is NaN.
            let risen = old.is_nan() || sample > old * kept;
            Some(if risen { sample } else { old * kept + sample * (1.0 - kept) }.to_bits())
        };
        // Never fails: `next` always answers.
        let _ = self.latency.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

/// What is left after `age` nanoseconds of something that was 1.
fn weight(age: u64) -> f64 {
    (-(age as f64) / DECAY as f64).exp()
}

/// What a failure counts as. `average` may be NaN.
fn failure(latency: f64, average: f64) -> f64 {
    let usual = average.max(UNKNOWN_LATENCY as f64);
    latency.max((usual * FAILURE_FACTOR).min(FAILURE_MAX))
}

/// Counts down, never below 0, whatever the caller does.
fn decrement(count: &AtomicU32) {
    let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
}
