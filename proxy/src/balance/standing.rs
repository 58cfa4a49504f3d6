//! Whether an endpoint may be picked, and how much it has failed.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::settings::WarmUp;

/// The standing of one endpoint, over all workers and updates. Read on every pick; changed by its [`Group`](super::Group)
/// under that one's lock, but for the counts.
#[derive(Debug, Default)]
pub struct Standing {
    flags: AtomicU8,
    /// When its share began to grow.
    pub(super) since: AtomicU64,
    /// When its ejection ends; of one that is back, when it last came back or its count last went down.
    pub(super) until: AtomicU64,
    /// On probation, when a request was last let try it.
    probed: AtomicU64,
    /// Its ejections in a row.
    pub(super) times: AtomicU32,
    /// Failures in a row, by detector.
    pub(super) in_a_row: [AtomicU32; 4],
    /// Of the window.
    pub(super) requests: AtomicU32,
    pub(super) failures: AtomicU32,
}

/// What is shown of an endpoint: the first that describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It starts or drains.
    Unready,
    /// It failed its health checks.
    Unhealthy,
    Ejected,
    /// It was ejected, and gets one request at a time.
    Probation,
    /// Its share grows.
    Warming,
    Usable,
}

/// After so long, in nanoseconds, an endpoint on probation is tried again, whatever is still under way there.
pub(super) const PROBE: u64 = 1_000_000_000;

pub(super) const UNHEALTHY: u8 = 1;
pub(super) const EJECTED: u8 = 2;
pub(super) const PROBATION: u8 = 4;
pub(super) const GROWING: u8 = 8;
/// Of the proxy's own zone.
pub(super) const LOCAL: u8 = 16;
/// No longer one of its group.
pub(super) const GONE: u8 = 32;

// === impl State ===

impl State {
    pub const ALL: [Self; 6] =
        [Self::Usable, Self::Warming, Self::Probation, Self::Ejected, Self::Unhealthy, Self::Unready];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unready => "unready",
            Self::Unhealthy => "unhealthy",
            Self::Ejected => "ejected",
            Self::Probation => "probation",
            Self::Warming => "warming",
            Self::Usable => "usable",
        }
    }
}

// === impl Standing ===

impl Standing {
    pub fn state(&self, ready: bool) -> State {
        match self.flags() {
            _ if !ready => State::Unready,
            flags if flags & UNHEALTHY != 0 => State::Unhealthy,
            flags if flags & EJECTED != 0 => State::Ejected,
            flags if flags & PROBATION != 0 => State::Probation,
            flags if flags & GROWING != 0 => State::Warming,
            _ => State::Usable,
        }
    }

    pub(super) fn flags(&self) -> u8 {
        self.flags.load(Relaxed)
    }

    pub(super) fn has(&self, flags: u8) -> bool {
        self.flags() & flags != 0
    }

    pub(super) fn set(&self, flags: u8) {
        self.flags.fetch_or(flags, Relaxed);
    }

    pub(super) fn clear(&self, flags: u8) {
        self.flags.fetch_and(!flags, Relaxed);
    }

    pub(super) fn put(&self, flags: u8, on: bool) {
        if on { self.set(flags) } else { self.clear(flags) }
    }

    /// It is of the proxy's own zone, which is preferred.
    pub fn set_local(&self, local: bool) {
        self.put(LOCAL, local);
    }

    /// Neither unhealthy nor ejected.
    pub fn is_usable(&self) -> bool {
        !self.has(UNHEALTHY | EJECTED)
    }

    /// Whether a request may try an endpoint on probation: nothing is under way there, or what is was let in long ago, a stream of before
    /// its ejection, say.
    pub(super) fn may_try(&self, idle: bool, now: u64) -> bool {
        let last = self.probed.load(Relaxed);
        (idle || now.saturating_sub(last) >= PROBE)
            && self.probed.compare_exchange(last, now, Relaxed, Relaxed).is_ok()
    }

    /// Whether it is on probation, and this is no time to try it: as [`Standing::may_try`], but nobody's turn is taken.
    pub fn is_held_back(&self, idle: bool, now: u64) -> bool {
        self.has(PROBATION) && !idle && now.saturating_sub(self.probed.load(Relaxed)) < PROBE
    }

    /// Whether it is tried only, and serves nobody else.
    pub fn is_on_probation(&self) -> bool {
        self.has(PROBATION)
    }

    /// It is tried, since there is nobody else.
    pub(super) fn tried(&self, now: u64) {
        if self.has(PROBATION) {
            self.probed.store(now, Relaxed);
        }
    }

    /// Its share grows from now on.
    pub fn grow(&self, now: u64) {
        self.since.store(now, Relaxed);
        self.set(GROWING);
    }

    /// The part of its share that it gets, up to 1.
    pub(super) fn share(&self, flags: u8, now: u64, growth: WarmUp) -> f64 {
        if flags & GROWING == 0 {
            return 1.0;
        }
        let age = now.saturating_sub(self.since.load(Relaxed)) as f64;
        let least = f64::from(growth.minimum_percent) / 100.0;
        (least + (1.0 - least) * age / (growth.duration.as_nanos() as f64).max(1.0)).min(1.0)
    }
}
