//! What one endpoint's answers and silence tell about its load.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The time in which an average loses all but 1/e of what it was, in nanoseconds.
pub const DECAY: u64 = 10_000_000_000;

/// What an endpoint that never answered is taken for while it is being tried, in nanoseconds.
pub const UNKNOWN_LATENCY: u64 = 30_000_000;

/// What an endpoint's latency counts as at least, in nanoseconds. Below it differences tell of a scheduler's time slices, a
/// collector's pauses and who was asked last, not of endpoints; requests in flight tell of load there. 5 ms is also the least
/// that the metrics' histograms tell apart. Without it, of four equal endpoints on loopback that were asked one request after the other, one got
/// half of all and one next to nothing.
const LATENCY_FLOOR: f64 = 5_000_000.0;

/// Latencies of which one is up to this many times the other count as the same, and larger differences as that much smaller: two averages of
/// the same endpoint at different times differ so. Below 2, so that twice as slow is told from as fast.
const SAME: f64 = 1.5;

/// How far an answer that took longer moves the average towards it. With all of the way, as in Finagle, one pause of a collector cost an
/// endpoint its share for half a minute; with a sixteenth one that is ten times slower, and above the floor, is still told by its first or
/// second answer.
const RISE: f64 = 1.0 / 16.0;

/// A failure counts as this many times the average, so that failing fast does not look like being fast …
const FAILURE_FACTOR: f64 = 4.0;
/// … and at most as this, in nanoseconds, so that an endpoint that works again is tried again.
const FAILURE_MAX: f64 = 10_000_000_000.0;

/// For so long, in nanoseconds, or for a part of its silence where that is longer, nothing is sent to an endpoint that only owes answers, before
/// it is tried again. One that has hung gets fewer and fewer requests; one that is busy with a long poll has its share again with the first
/// that it answers.
const TRY: u64 = 1_000_000_000;
const TRY_FACTOR: u64 = 4;

/// No latency was ever observed. (NaN, so that no sum can be mistaken for it.)
const UNKNOWN: u64 = f64::NAN.to_bits();

/// The load of one endpoint, over all workers: peak EWMA as Finagle has it, but for [`LATENCY_FLOOR`], [`SAME`] and [`RISE`], which keep load
/// even where endpoints do not truly differ (R14). The tests' `shares_…` show what that does to those that do.
///
/// Each request calls [`Load::start`], then once [`Load::answer`] when the response's head is there (or has failed), then
/// once [`Load::end`] when the response is over; [`Load::finish`] is both at once. A request that is given up before its
/// answer calls [`Load::abandon`] instead, and one that came to nothing by no fault of the endpoint's [`Load::withdraw`]. Of a connection that
/// nobody looks into, the answer is that it is made; [`Load::disappoint`] takes that back.
/// Latencies have the time in them that a request waits for its connection, unless that is for our own limits ([`Load::hold`]).
#[derive(Debug)]
pub struct Load {
    /// `f64` bits, nanoseconds; [`UNKNOWN`] before the first answer.
    latency: AtomicU64,
    /// When `latency` was last brought up to date.
    stamp: AtomicU64,
    /// When the endpoint last answered, or began to owe an answer.
    progress: AtomicU64,
    /// When a request was last sent there.
    sent: AtomicU64,
    /// Requests without an answer yet.
    awaiting: AtomicU32,
    /// Requests that are not over.
    in_flight: AtomicU32,
}

/// A request that our own limits keep from its endpoint: until this is dropped, that owes it no answer.
#[derive(Debug)]
#[must_use = "the endpoint owes an answer once this is dropped"]
pub struct Held<'l>(&'l Load);

/// What sending one more request to an endpoint would cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Nanoseconds until it would answer.
    pub(super) latency: f64,
    /// Requests in flight with this one, by its weight.
    pub(super) queue: f64,
}

/// What is told of a request.
#[derive(Clone, Copy)]
enum Told {
    Answer,
    Failure,
    /// No answer until it was given up.
    Silence,
}

// === impl Cost ===

impl Cost {
    pub fn is_less_than(self, other: Self) -> bool {
        let counted = |one: f64, other: f64| if one < other { (one * SAME).min(other) } else { one };
        counted(self.latency, other.latency) * self.queue < counted(other.latency, self.latency) * other.queue
    }
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
            sent: AtomicU64::new(0),
            awaiting: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
        }
    }

    /// A request is sent.
    pub fn start(&self, now: u64) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.sent.store(now, Ordering::Relaxed);
        if self.awaiting.fetch_add(1, Ordering::Relaxed) == 0 {
            self.progress.fetch_max(now, Ordering::Relaxed);
        }
    }

    /// A request that was started has yet to wait for our own limits. [`Load::goes`] says when it is over.
    pub fn hold(&self) -> Option<Held<'_>> {
        let held = self.awaiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        held.is_ok().then_some(Held(self))
    }

    /// A request that was held goes to the endpoint, at `now`.
    pub fn goes(&self, now: u64) {
        self.progress.fetch_max(now, Ordering::Relaxed);
    }

    /// The response's head is there after `latency` nanoseconds, or the request failed after them.
    pub fn answer(&self, now: u64, latency: u64, success: bool) {
        decrement(&self.awaiting);
        self.progress.fetch_max(now, Ordering::Relaxed);
        self.observe(now, latency, if success { Told::Answer } else { Told::Failure });
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
            self.observe(now, waited, Told::Silence);
        }
        self.end();
    }

    /// The request came to nothing before an answer, which tells nothing of the endpoint.
    pub fn withdraw(&self) {
        decrement(&self.awaiting);
        self.end();
    }

    /// What looked like an answer has come to nothing, after `latency` nanoseconds in all.
    pub fn disappoint(&self, now: u64, latency: u64) {
        self.observe(now, latency, Told::Failure);
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

    /// What one more request here would cost, where an endpoint gets `weight` times the requests of others.
    pub fn cost(&self, now: u64, weight: f64) -> Cost {
        let in_flight = f64::from(self.in_flight());
        let latency = match self.latency(now) {
            Some(latency) => latency.max(LATENCY_FLOOR),
            // A newcomer is tried at once, with one request.
            None if in_flight == 0.0 => 0.0,
            None => UNKNOWN_LATENCY as f64,
        };
        // Whoever owes answers and gives none is as slow as the silence is long …
        let silence = if self.awaiting.load(Ordering::Relaxed) > 0 {
            now.saturating_sub(self.progress.load(Ordering::Relaxed))
        } else {
            0
        };
        // … but is tried at times: all that it owes may be one long answer.
        let is_tried = silence > 0
            && now.saturating_sub(self.sent.load(Ordering::Relaxed)) >= TRY.max(silence / TRY_FACTOR);
        let silence = if is_tried { 0.0 } else { silence as f64 };
        Cost { latency: latency.max(silence), queue: in_flight / weight + 1.0 }
    }

    fn observe(&self, now: u64, latency: u64, told: Told) {
        // Whoever moves the stamp forward applies the decay of just that time.
        let before = self.stamp.fetch_max(now, Ordering::Relaxed);
        let kept = weight(now.saturating_sub(before));
        let next = |bits: u64| {
            let old = f64::from_bits(bits);
            let usual = old * kept;
            let sample = match told {
                Told::Answer | Told::Silence => latency as f64,
                Told::Failure => failure(latency as f64, usual),
            };
            let moved = match told {
                _ if old.is_nan() => sample,
                _ if sample <= usual => usual + (sample - usual) * (1.0 - kept),
                Told::Answer => usual + (sample - usual) * RISE.max(1.0 - kept),
                Told::Failure | Told::Silence => sample,
            };
            Some(moved.to_bits())
        };
        // Never fails: `next` always answers.
        let _ = self.latency.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.awaiting.fetch_add(1, Ordering::Relaxed);
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
