//! What one worker thread counts.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::SeriesLabels;
use super::budget::{Budget, Group};
use super::cells::{ByDirection, ConnectionCells, Counter, Histogram, OverflowRequests, RequestCells};
use super::exemplars::Exemplar;
use super::labels::{
    ConnectionLabels, DetectProtocol, DetectResult, Direction, DiscoveryResult, EarlyOpen, EgressLabels,
    ExternalLabels, FaultKind, LimitOutcome, MirrorResult, ReplayCause, RequestLabels, RetryCause,
    RetryOutcome, SessionResult, TokenResult, Unretried, VerdictLabels,
};
use super::pools::PoolCells;
use super::table::Table;
use crate::telemetry::Reason;
use crate::telemetry::trace::Context;

/// The cells of one worker thread. Cheap to clone. All that counts may be called on that thread only. What looks up
/// (`requests`, `connections`, `verdicts`, `pool`) allocates nothing where the labels have been there before.
#[derive(Clone, Debug)]
pub struct WorkerMetrics(Arc<WorkerCells>);

/// On cache lines that no other worker writes.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct WorkerCells {
    budget: Arc<Budget>,
    shown: SeriesLabels,
    /// Of the buckets that are shown.
    bounds: Arc<[u64]>,
    pub(super) requests: Table<RequestCells>,
    pub(super) connections: Table<ConnectionCells>,
    pub(super) verdicts: Table<Counter>,
    pub(super) egress: Table<Counter>,
    pub(super) pools: Table<PoolCells>,
    pub(super) rate_limits: Table<Counter>,
    pub(super) externals: Table<Counter>,
    pub(super) limits: Table<Counter>,

    pub(super) overflow_requests: ByDirection<Arc<RequestCells>>,
    pub(super) overflow: ByDirection<Arc<OverflowRequests>>,
    pub(super) overflow_connections: ByDirection<Arc<ConnectionCells>>,
    pub(super) overflow_verdicts: Arc<Counter>,
    pub(super) overflow_egress: Arc<Counter>,
    pub(super) overflow_pools: Arc<PoolCells>,
    pub(super) overflow_rate_limits: Arc<Counter>,
    pub(super) overflow_externals: Arc<Counter>,
    pub(super) overflow_limits: Arc<Counter>,

    /// By direction, of requests and of responses.
    pub(super) sizes: ByDirection<[Histogram; 2]>,
    pub(super) lag: Histogram,
    pub(super) external_check_duration: Histogram,
    pub(super) requests_started: ByDirection<Counter>,
    pub(super) requests_ended: ByDirection<Counter>,
    /// The last one: success.
    pub(super) handshakes: ByDirection<Vec<Counter>>,
    pub(super) handshake_duration: ByDirection<Histogram>,
    pub(super) refused: ByDirection<Vec<Counter>>,
    pub(super) detected: Vec<Counter>,
    pub(super) detect_duration: Histogram,
    pub(super) opened_early: Vec<Counter>,
    pub(super) discovered: Vec<Counter>,
    pub(super) discovery_duration: Histogram,
    /// The last one: success.
    pub(super) dials: Vec<Counter>,
    pub(super) dial_duration: Histogram,
    pub(super) pool_reused: Counter,
    pub(super) replays: Vec<Counter>,
    pub(super) retries: Vec<Counter>,
    pub(super) unretried: Vec<Counter>,
    pub(super) injected: Vec<Counter>,
    pub(super) mirrors: Vec<Counter>,
    pub(super) sessions: Vec<Counter>,
    /// What was done, then what was only told.
    pub(super) tokens: Vec<Counter>,
    pub(super) accept_errors: Counter,
    pub(super) handed_over: Counter,
}

/// Bounds of sizes: nothing, a small answer, a page, an image, a file.
pub(super) const SIZES: [u64; 7] = [0, 256, 1 << 10, 16 << 10, 256 << 10, 4 << 20, 64 << 20];

/// In place of a name that is not told apart.
const OTHER: &str = "_OTHER";

fn counters(count: usize) -> Vec<Counter> {
    (0..count).map(|_| Counter::default()).collect()
}

// === impl WorkerMetrics ===

impl WorkerMetrics {
    /// `bounds`: of histograms; `finer`: of those of requests.
    pub(super) fn new(
        bounds: &Arc<[u64]>,
        finer: &Arc<[u64]>,
        budget: &Arc<Budget>,
        shown: SeriesLabels,
    ) -> Self {
        let overflow = ByDirection::new(|_| Arc::new(OverflowRequests::new(finer)));
        let histogram = || Histogram::new(bounds);
        let sizes: Arc<[u64]> = SIZES.into();
        let sizes = || Histogram::new(&sizes);
        Self(Arc::new(WorkerCells {
            budget: budget.clone(),
            shown,
            bounds: bounds.clone(),
            requests: Table::default(),
            connections: Table::default(),
            verdicts: Table::default(),
            egress: Table::default(),
            pools: Table::default(),
            rate_limits: Table::default(),
            externals: Table::default(),
            limits: Table::default(),
            overflow_requests: ByDirection::new(|side| {
                Arc::new(RequestCells::new_overflow(overflow.get(side).clone()))
            }),
            overflow,
            overflow_connections: ByDirection::default(),
            overflow_verdicts: Arc::default(),
            overflow_egress: Arc::default(),
            overflow_pools: Arc::default(),
            overflow_rate_limits: Arc::default(),
            overflow_externals: Arc::default(),
            overflow_limits: Arc::default(),
            sizes: ByDirection::new(|_| [sizes(), sizes()]),
            lag: histogram(),
            external_check_duration: histogram(),
            requests_started: ByDirection::default(),
            requests_ended: ByDirection::default(),
            handshakes: ByDirection::new(|_| counters(Reason::COUNT + 1)),
            handshake_duration: ByDirection::new(|_| histogram()),
            refused: ByDirection::new(|_| counters(Reason::COUNT)),
            detected: counters(DetectResult::ALL.len() * DetectProtocol::ALL.len()),
            detect_duration: histogram(),
            opened_early: counters(EarlyOpen::ALL.len()),
            discovered: counters(DiscoveryResult::ALL.len()),
            discovery_duration: histogram(),
            dials: counters(Reason::COUNT + 1),
            dial_duration: histogram(),
            pool_reused: Counter::default(),
            replays: counters(ReplayCause::ALL.len()),
            retries: counters(RetryCause::ALL.len() * RetryOutcome::ALL.len()),
            unretried: counters(Unretried::ALL.len()),
            injected: counters(FaultKind::ALL.len()),
            mirrors: counters(MirrorResult::ALL.len()),
            sessions: counters(SessionResult::ALL.len()),
            tokens: counters(2 * TokenResult::ALL.len()),
            accept_errors: Counter::default(),
            handed_over: Counter::default(),
        }))
    }

    pub(super) fn cells(&self) -> &WorkerCells {
        &self.0
    }

    /// Where requests of these labels are counted: those of the overflow, if there is no room for more.
    pub fn requests(&self, labels: &RequestLabels<'_>) -> Arc<RequestCells> {
        let cells = self.0.requests.get(labels.shown(self.0.shown).values(), |key, count| {
            // A label set costs nothing until it has an outcome; a bound keeps those without any from piling up.
            (count < self.0.budget.most_label_sets()).then(|| {
                let overflow = self.0.overflow.get(labels.direction).clone();
                Arc::new(RequestCells::new(key.into(), overflow, self.0.budget.clone()))
            })
        });
        cells.unwrap_or_else(|| self.0.overflow_requests.get(labels.direction).clone())
    }

    /// Shows the span of a recorded request that was just counted in `histogram` beside its bucket. It ended at `time`.
    #[cold]
    pub fn exemplify(&self, histogram: &Histogram, duration: Duration, of: Context, time: SystemTime) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let at = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        histogram.exemplify(&self.0.bounds, &Exemplar { of, nanos, at });
    }

    /// Where connections of these labels are counted.
    pub fn connections(&self, labels: &ConnectionLabels<'_>) -> Arc<ConnectionCells> {
        let cells =
            self.0.connections.get(labels.shown(self.0.shown).values(), self.admit(Group::Connections));
        cells.unwrap_or_else(|| self.0.overflow_connections.get(labels.direction).clone())
    }

    /// Where verdicts of these labels are counted.
    pub fn verdicts(&self, labels: &VerdictLabels<'_>) -> Arc<Counter> {
        let cells = self.0.verdicts.get(labels.values(), self.admit(Group::Verdicts));
        cells.unwrap_or_else(|| self.0.overflow_verdicts.clone())
    }

    /// Where what leaves the mesh is counted; a name beyond those that are told apart is `_OTHER`.
    pub fn egress(&self, labels: &EgressLabels<'_>) -> Arc<Counter> {
        let named = self.0.egress.get(labels.values(), |key, count| {
            let admitted = labels.name.is_empty() || self.0.budget.admit_name(labels.name);
            if admitted { self.admit(Group::Egress)(key, count) } else { None }
        });
        let other = || {
            let other = EgressLabels { name: OTHER, ..*labels };
            self.0.egress.get(other.values(), self.admit(Group::Egress))
        };
        named.or_else(other).unwrap_or_else(|| self.0.overflow_egress.clone())
    }

    /// Where connections of pools are counted; `service` as [`RequestLabels::service`].
    pub fn pool(&self, service: &str) -> Arc<PoolCells> {
        let cells = self.0.pools.get([service], self.admit(Group::Pools));
        cells.unwrap_or_else(|| self.0.overflow_pools.clone())
    }

    /// Counts a request that the rate limit of that name speaks of, by what came of it: `allowed`, `refused` or, in dry run, `would_refuse`.
    pub fn rate_limit(&self, name: &str, outcome: &'static str) {
        let cells = self.0.rate_limits.get([name, outcome], self.admit(Group::RateLimits));
        cells.unwrap_or_else(|| self.0.overflow_rate_limits.clone()).inc();
    }

    /// Counts a request that an ExternalAuthorization is about.
    pub fn external_check(&self, labels: &ExternalLabels<'_>) {
        let cells = self.0.externals.get(labels.values(), self.admit(Group::Externals));
        cells.unwrap_or_else(|| self.0.overflow_externals.clone()).inc();
    }

    /// How long an authorizer was waited for.
    pub fn external_checked(&self, duration: Duration) {
        self.0.external_check_duration.observe(duration);
    }

    /// Counts a request or a connection that met a limit of a service's port.
    pub fn limit(&self, service: &str, limit: &str, outcome: LimitOutcome) {
        let outcome = match outcome {
            LimitOutcome::Waited => "waited",
            LimitOutcome::Refused => "refused",
        };
        let labels = [service, limit, outcome];
        let cells = self.0.limits.get(labels, self.admit(Group::Limits));
        cells.unwrap_or_else(|| self.0.overflow_limits.clone()).inc();
    }

    fn admit<T: Default>(&self, group: Group) -> impl FnOnce(&[u8], usize) -> Option<Arc<T>> {
        move |key, _| self.0.budget.admit(group, key, 0).then(Arc::default)
    }

    /// How many bytes a request's body and its response's had.
    #[inline]
    pub fn sizes(&self, direction: Direction, request: u64, response: u64) {
        let [requests, responses] = self.0.sizes.get(direction);
        requests.observe_size(request);
        responses.observe_size(response);
    }

    /// How late something was that was due.
    pub fn lag(&self, late: Duration) {
        self.0.lag.observe(late);
    }

    /// A request has begun; it is active until [`WorkerMetrics::request_ended`].
    #[inline]
    pub fn request_began(&self, direction: Direction) {
        self.0.requests_started.get(direction).inc();
    }

    /// A request that had begun has ended.
    #[inline]
    pub fn request_ended(&self, direction: Direction) {
        self.0.requests_ended.get(direction).inc();
    }

    /// A TLS handshake of the mesh, terminated (inbound) or begun (outbound) here.
    pub fn handshake(&self, direction: Direction, result: Result<(), Reason>, duration: Duration) {
        let index = result.err().map_or(Reason::COUNT, Reason::index);
        self.0.handshakes.get(direction)[index].inc();
        self.0.handshake_duration.get(direction).observe(duration);
    }

    /// A connection or request that the proxy itself refused or answered.
    pub fn refused(&self, direction: Direction, reason: Reason) {
        self.0.refused.get(direction)[reason.index()].inc();
    }

    /// How the protocol of a connection was found, and after how long.
    pub fn detect(&self, result: DetectResult, protocol: DetectProtocol, duration: Duration) {
        self.0.detected[result as usize * DetectProtocol::ALL.len() + protocol as usize].inc();
        self.0.detect_duration.observe(duration);
    }

    /// What became of a server that was opened before its client had spoken.
    pub fn opened_early(&self, result: EarlyOpen) {
        self.0.opened_early[result as usize].inc();
    }

    /// The first use of an address or service, and how long it was held.
    pub fn discovery(&self, result: DiscoveryResult, duration: Duration) {
        self.0.discovered[result as usize].inc();
        self.0.discovery_duration.observe(duration);
    }

    /// A connect to an endpoint or to the application, TLS included.
    pub fn dial(&self, result: Result<(), Reason>, duration: Duration) {
        self.0.dials[result.err().map_or(Reason::COUNT, Reason::index)].inc();
        self.0.dial_duration.observe(duration);
    }

    /// One that was not begun, since limits had no room for it.
    pub fn not_dialled(&self, reason: Reason) {
        self.0.dials[reason.index()].inc();
    }

    /// A request went out on a connection that had served another.
    pub fn pool_reused(&self) {
        self.0.pool_reused.inc();
    }

    /// A request was sent once more.
    pub fn replayed(&self, cause: ReplayCause) {
        self.0.replays[cause as usize].inc();
    }

    /// A request was sent again, by a rule or policy, and what became of that.
    pub fn retried(&self, cause: RetryCause, outcome: RetryOutcome) {
        self.0.retries[cause as usize * RetryOutcome::ALL.len() + outcome as usize].inc();
    }

    /// A request was not sent again that a rule or policy wants to be.
    pub fn unretried(&self, why: Unretried) {
        self.0.unretried[why as usize].inc();
    }

    /// A try went wrong on purpose.
    pub fn injected(&self, kind: FaultKind) {
        self.0.injected[kind as usize].inc();
    }

    /// A request of a rule with sessions was answered.
    pub fn session(&self, result: SessionResult) {
        self.0.sessions[result as usize].inc();
    }

    /// A request's token was looked at; `dry_run`: what it came to was only told.
    pub fn token(&self, result: TokenResult, dry_run: bool) {
        let of = if dry_run { TokenResult::ALL.len() } else { 0 };
        self.0.tokens[of + result as usize].inc();
    }

    /// A copy of a request is over, or was not made.
    pub fn mirrored(&self, result: MirrorResult) {
        self.0.mirrors[result as usize].inc();
    }

    /// `accept` failed.
    pub fn accept_error(&self) {
        self.0.accept_errors.inc();
    }

    /// An accepted connection went to a less loaded worker.
    pub fn handed_over(&self) {
        self.0.handed_over.inc();
    }
}
