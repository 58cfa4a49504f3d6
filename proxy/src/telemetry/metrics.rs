//! What is measured.
//!
//! Each worker thread counts in cells of its own ([`WorkerMetrics`]); a scrape adds them up ([`Metrics::render`]). A
//! label set is looked up by its values as they lie ([`table`]), and its cells are an [`Arc`] that may be kept: counting
//! then takes a nanosecond. No label takes a value that a client chooses freely, but for a hundred names of what
//! leaves the mesh, and the number of lines is capped (R11). Families, their labels and meanings are in one table, from which `docs/reference/metrics.md` is made.

mod balancers;
mod budget;
mod cells;
mod control;
mod exemplars;
mod families;
mod labels;
mod load;
mod pools;
mod process;
mod render;
mod table;
#[cfg(test)]
mod tests;
mod uses;
mod worker;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::config::SeriesLabels;

pub use self::balancers::Balancer;
use self::budget::Budget;
pub use self::cells::{ConnectionCells, Counter, Histogram, OpenConnection, RequestCells};
pub use self::control::{CertKind, ControlMetrics};
pub use self::families::{Family, Kind, reference};
pub use self::labels::{
    CheckResult, ConnectionLabels, DetectProtocol, DetectResult, Direction, DiscoveryResult, DnsResult,
    EarlyOpen, EgressLabels, EgressProtocol, ExternalLabels, FaultKind, LimitOutcome, Method, MirrorResult,
    Outcome, PoolClose, ReplayCause, RequestLabels, RetryCause, RetryOutcome, SessionResult, TlsKind,
    TokenResult, Unretried, VerdictKind, VerdictLabels,
};
pub use self::load::Load;
pub use self::pools::{PoolCells, PooledConnection};
pub use self::uses::LimitUse;
pub use self::worker::WorkerMetrics;
use super::tap::Taps;
use super::trace::export::Counts;

/// Lines that may be there beside histograms whatever happens: every value of every bounded label.
const FIXED_LINES: usize = 430;
/// Histograms that may be there whatever happens: handshakes and overflow by direction, detection, dials, discovery, lag, external
/// checks. (Those of sizes are among the lines.)
const FIXED_HISTOGRAMS: usize = 9;

/// Everything that is measured. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    workers: Vec<WorkerMetrics>,
    control: Arc<ControlMetrics>,
    bounds: Arc<[u64]>,
    /// Of requests: those of `bounds`, and those by which loads are reported.
    finer: Arc<[u64]>,
    budget: Arc<Budget>,
    shown: SeriesLabels,
    extra: Arc<Mutex<Vec<ExtraFn>>>,
}

/// A value that is read when metrics are scraped, for what is counted elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// One of the table of families.
    pub family: &'static Family,
    /// The values of the family's labels, in order.
    pub labels: Vec<String>,
    /// The value.
    pub value: f64,
}

struct ExtraFn(ReadSamples);

type ReadSamples = Box<dyn Fn(&mut Vec<Sample>) + Send + Sync>;

// === impl Metrics ===

impl Metrics {
    /// For `workers` worker threads; `max_lines` and `buckets` as of the configuration.
    pub fn new(workers: usize, max_lines: usize, buckets: &[Duration]) -> Self {
        Self::showing(SeriesLabels::default(), workers, max_lines, buckets, true)
    }

    /// As [`Metrics::new`], with these labels of requests and connections. Without loads to report, latencies need no finer bounds than are
    /// shown.
    pub fn showing(
        shown: SeriesLabels,
        workers: usize,
        max_lines: usize,
        buckets: &[Duration],
        reports_load: bool,
    ) -> Self {
        let bounds: Arc<[u64]> =
            buckets.iter().map(|bound| u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX)).collect();
        // A line for each worker's time.
        let budget = Arc::new(Budget::new(max_lines.saturating_sub(workers), bounds.len()));
        let finer = if reports_load { load::finer(&bounds) } else { Arc::clone(&bounds) };
        let worker = || WorkerMetrics::new(&bounds, &finer, &budget, shown);
        let workers = (0..workers.max(1)).map(|_| worker()).collect();
        process::start();
        let control = Arc::<ControlMetrics>::default();
        // Never connected is a 0 that an alert can see, not a gap.
        control.ads_connected(false);
        control.registered(false);
        control.identity_started();
        Self { workers, control, bounds, finer, budget, shown, extra: Arc::default() }
    }

    /// The cells of the worker thread of that index. An index that is not there gets the last one's.
    pub fn worker(&self, index: usize) -> WorkerMetrics {
        // There is at least one, by construction.
        self.workers[index.min(self.workers.len() - 1)].clone()
    }

    /// What the control thread counts.
    pub fn control(&self) -> &Arc<ControlMetrics> {
        &self.control
    }

    /// Cells for what must be counted somewhere and is not shown, being told otherwise: of the control thread's dials.
    pub fn unseen(&self) -> WorkerMetrics {
        WorkerMetrics::new(&self.bounds, &self.finer, &self.budget, self.shown)
    }

    /// A health check of an endpoint of `service` (as [`RequestLabels::service`]) is over.
    pub fn health_checked(&self, service: &str, outcome: &str) {
        let key = [service.as_bytes(), b"\0", outcome.as_bytes()].concat();
        let admitted = self.budget.admit(budget::Group::HealthChecks, &key, 0);
        self.control.health_checked(admitted.then_some([service, outcome]));
    }

    /// Adds values that `read` gives whenever metrics are scraped.
    pub fn at_scrape(&self, read: impl Fn(&mut Vec<Sample>) + Send + Sync + 'static) {
        self.extra.lock().push(ExtraFn(Box::new(read)));
    }

    /// Shows how long each worker was busy, by what its runtime counts of itself.
    pub fn busy(&self, runtimes: Vec<tokio::runtime::RuntimeMetrics>) {
        self.at_scrape(move |samples| {
            samples.extend(runtimes.iter().enumerate().map(|(worker, runtime)| Sample {
                family: &families::WORKER_BUSY,
                labels: vec![worker.to_string()],
                // Each has one thread.
                value: runtime.worker_total_busy_duration(0).as_secs_f64(),
            }));
        });
    }

    /// Labels by which nothing is told apart.
    pub fn untold(&self) -> Vec<String> {
        let labels = SeriesLabels::NAMES.into_iter().zip(self.shown.0);
        labels.filter(|(_, is_shown)| !is_shown).map(|(name, _)| name.to_owned()).collect()
    }

    /// What policy has said so far: verdict, rule and reason, each empty where there is none, and how often.
    pub fn verdicts(&self) -> Vec<([String; 3], u64)> {
        let mut sums: BTreeMap<Box<[u8]>, u64> = BTreeMap::new();
        for worker in &self.workers {
            let cells = worker.cells();
            cells.verdicts.each(|key, counter| *sums.entry(key.into()).or_default() += counter.get());
        }
        let told = |(key, count): (Box<[u8]>, u64)| {
            let mut values = labels::values(&key).map(Cow::into_owned);
            ([(); 3].map(|()| values.next().unwrap_or_default()), count)
        };
        sums.into_iter().map(told).collect()
    }

    /// What requests and connections came to until now, for reports of what they come to since.
    pub fn load(&self) -> Load {
        Load::read(self.workers.iter().map(WorkerMetrics::cells))
    }

    /// Everything, in the Prometheus text format 0.0.4.
    pub fn render(&self) -> String {
        render::text(self)
    }

    /// The same as OpenMetrics 1.0, with an exemplar beside each bucket that a recorded request was counted in.
    pub fn render_open(&self) -> String {
        render::open(self)
    }
}

// === impl Sample ===

impl Sample {
    /// Lines of a log that were dropped so far.
    pub(super) fn lines_dropped(log: &str, count: u64) -> Self {
        Self { family: &families::LOG_DROPPED, labels: vec![log.to_owned()], value: count as f64 }
    }

    /// What became of spans so far.
    pub(super) fn spans(counts: &Counts) -> [Self; 4] {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64;
        let dropped = |cause: &str, count| Self {
            family: &families::SPANS_DROPPED,
            labels: vec![cause.to_owned()],
            value: read(count),
        };
        let all = |family, count| Self { family, labels: Vec::new(), value: read(count) };
        [
            all(&families::SPANS_EXPORTED, &counts.exported),
            dropped("queue_full", &counts.queue_full),
            dropped("exporter", &counts.refused),
            all(&families::SPAN_EXPORT_FAILURES, &counts.failures),
        ]
    }

    /// What became of taps so far; nothing where there never was one.
    pub(super) fn taps(taps: &Taps) -> Vec<Self> {
        let Some(counts) = taps.counts() else { return Vec::new() };
        let running = Self { family: &families::TAPS, labels: Vec::new(), value: taps.count() as f64 };
        let of = |(result, count): (&str, &AtomicU64)| Self {
            family: &families::TAP_REQUESTS,
            labels: vec![result.to_owned()],
            value: count.load(Ordering::Relaxed) as f64,
        };
        let results =
            [("shown", &counts.shown), ("over_rate", &counts.over_rate), ("dropped", &counts.dropped)];
        std::iter::once(running).chain(results.map(of)).collect()
    }
}

impl std::fmt::Debug for ExtraFn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExtraFn")
    }
}
