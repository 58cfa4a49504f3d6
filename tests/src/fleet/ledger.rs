//! What was changed and when, and at whom it has arrived.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use hdrhistogram::Histogram;

use super::plan::Plan;

/// Everything that is counted; shared by all proxies of a fleet.
#[derive(Debug)]
pub struct Ledger {
    /// By service and endpoint: when its generations from 1 on were made.
    made: Vec<Mutex<Vec<Vec<Instant>>>>,
    /// By service: how many proxies use it.
    users: Vec<i64>,
    /// By service: bytes of its `Endpoints`.
    sizes: Vec<AtomicU64>,
    /// Changes that are on their way, each as often as there are proxies to hear of it.
    awaited: AtomicI64,
    /// From a change to a proxy that has taken it, in microseconds.
    latencies: Mutex<Histogram<u64>>,
    pub(super) counts: Counts,
}

/// Sums over all proxies since the fleet was started.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) wire_in: AtomicU64,
    pub(super) wire_out: AtomicU64,
    pub(super) responses: AtomicU64,
    pub(super) resources: AtomicU64,
    pub(super) resource_bytes: AtomicU64,
    pub(super) endpoints_bytes: AtomicU64,
    pub(super) least_bytes: AtomicU64,
    pub(super) unasked: AtomicU64,
    pub(super) repeated: AtomicU64,
    pub(super) failures: AtomicU64,
    /// Proxies whose streams are open and which have been answered about everything.
    pub(super) ready: AtomicUsize,
    /// (proxy, service) of which every endpoint is known.
    pub(super) whole: AtomicI64,
}

/// [`Counts`] at one moment, or between two.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Bytes of TCP that the control plane sent.
    pub wire_in: u64,
    /// Bytes of TCP that the proxies sent.
    pub wire_out: u64,
    /// Responses of ADS.
    pub responses: u64,
    /// Resources in them.
    pub resources: u64,
    /// Bytes of those, encoded.
    pub resource_bytes: u64,
    /// Bytes of `Endpoints` among those.
    pub endpoints_bytes: u64,
    /// Bytes of the changed `Endpoints` once for each change and proxy that uses the service.
    pub least_bytes: u64,
    /// Resources that nobody had asked for.
    pub unasked: u64,
    /// Resources of the very version that was held.
    pub repeated: u64,
    /// Streams that ended and attempts to join or connect that failed.
    pub failures: u64,
}

// === impl Ledger ===

impl Ledger {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut users = vec![0; plan.services];
        for proxy in 0..plan.proxies {
            plan.used_by(proxy).into_iter().for_each(|service| users[service] += 1);
        }
        let made = || Mutex::new(vec![Vec::new(); plan.endpoints]);
        Self {
            made: (0..plan.services).map(|_| made()).collect(),
            users,
            sizes: (0..plan.services).map(|_| AtomicU64::new(0)).collect(),
            awaited: AtomicI64::new(0),
            latencies: Mutex::new(Histogram::new_with_bounds(1, 120_000_000, 3).expect("bounds")),
            counts: Counts::default(),
        }
    }

    /// An endpoint is about to change; says to which generation.
    pub(super) fn make(&self, service: usize, endpoint: usize) -> u32 {
        let mut made = self.made[service].lock().expect("no panic");
        made[endpoint].push(Instant::now());
        let generation = u32::try_from(made[endpoint].len()).expect("few changes");
        let users = self.users[service];
        self.awaited.fetch_add(users, Ordering::Relaxed);
        let bytes = self.sizes[service].load(Ordering::Relaxed) * users.unsigned_abs();
        self.counts.least_bytes.fetch_add(bytes, Ordering::Relaxed);
        generation
    }

    /// The generation of each endpoint of a service.
    pub(super) fn generations(&self, service: usize) -> Vec<u32> {
        let made = self.made[service].lock().expect("no panic");
        made.iter().map(|made| u32::try_from(made.len()).expect("few changes")).collect()
    }

    /// A proxy has taken an endpoint of generation `to` in place of `from`.
    pub(super) fn seen(&self, service: usize, endpoint: usize, from: u32, to: u32) {
        let now = Instant::now();
        let made = self.made[service].lock().expect("no panic");
        let mut latencies = self.latencies.lock().expect("no panic");
        let (from, to) = (from as usize, to as usize);
        for at in &made[endpoint][from..to] {
            let micros = u64::try_from(now.duration_since(*at).as_micros()).unwrap_or(u64::MAX);
            latencies.saturating_record(micros);
        }
        self.awaited.fetch_sub((to - from) as i64, Ordering::Relaxed);
    }

    pub(super) fn size(&self, service: usize, bytes: usize) {
        self.sizes[service].store(bytes as u64, Ordering::Relaxed);
    }

    /// Changes that are on their way, each as often as there are proxies to hear of it.
    pub fn awaited(&self) -> i64 {
        self.awaited.load(Ordering::Relaxed)
    }

    /// (proxy, service) of which every endpoint is to be known.
    pub(super) fn uses(&self) -> i64 {
        self.users.iter().sum()
    }

    /// How long changes took, in microseconds, since this was last asked.
    pub fn take_latencies(&self) -> Histogram<u64> {
        let mut latencies = self.latencies.lock().expect("no panic");
        let taken = latencies.clone();
        latencies.reset();
        taken
    }

    /// What has been counted so far.
    pub fn counted(&self) -> Counted {
        let counts = &self.counts;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counted {
            wire_in: load(&counts.wire_in),
            wire_out: load(&counts.wire_out),
            responses: load(&counts.responses),
            resources: load(&counts.resources),
            resource_bytes: load(&counts.resource_bytes),
            endpoints_bytes: load(&counts.endpoints_bytes),
            least_bytes: load(&counts.least_bytes),
            unasked: load(&counts.unasked),
            repeated: load(&counts.repeated),
            failures: load(&counts.failures),
        }
    }
}

// === impl Counts ===

impl Counts {
    pub(super) fn add(count: &AtomicU64, by: usize) {
        count.fetch_add(by as u64, Ordering::Relaxed);
    }
}

impl std::ops::Sub for Counted {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            wire_in: self.wire_in - before.wire_in,
            wire_out: self.wire_out - before.wire_out,
            responses: self.responses - before.responses,
            resources: self.resources - before.resources,
            resource_bytes: self.resource_bytes - before.resource_bytes,
            endpoints_bytes: self.endpoints_bytes - before.endpoints_bytes,
            least_bytes: self.least_bytes - before.least_bytes,
            unasked: self.unasked - before.unasked,
            repeated: self.repeated - before.repeated,
            failures: self.failures - before.failures,
        }
    }
}
