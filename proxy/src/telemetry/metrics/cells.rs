//! What is counted, where it is counted.
//!
//! A cell belongs to one worker thread: only that thread writes it, so an increment is a plain load and store, no
//! locked instruction and no shared cache line. Others read it at a scrape, and may see it a moment late.
//! Were a cell written by two threads, increments would be lost, nothing worse.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use super::budget::{Budget, Group};
use super::exemplars::{Exemplar, Exemplars};
use super::labels::{Direction, Outcome};

/// A count that one thread writes and any reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// Durations or sizes, counted by bucket; one thread writes and any reads.
#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds in nanoseconds or bytes, ascending.
    bounds: Arc<[u64]>,
    /// One more than there are bounds.
    buckets: Box<[Counter]>,
    sum: Counter,
    /// From the first on.
    exemplars: OnceLock<Exemplars>,
}

/// The requests of one label set on one worker. Look it up once for a connection and route, and keep it.
#[derive(Debug)]
pub struct RequestCells {
    key: Box<[u8]>,
    /// What of these labels does not fit under the cap is counted here.
    overflow: Arc<OverflowRequests>,
    /// `None`: this *is* the overflow.
    own: Option<OwnRequests>,
}

/// Outcomes in the order of their first occurrence: an append-only list, walked without a lock. The most frequent
/// outcome is nearly always the first.
#[derive(Debug)]
struct OwnRequests {
    budget: Arc<Budget>,
    first: OnceLock<Box<OutcomeNode>>,
    /// Those that the nodes point to, by method and status; locked when a new one comes and at a scrape.
    durations: Mutex<Vec<(u64, Arc<Histogram>)>>,
}

#[derive(Debug)]
struct OutcomeNode {
    outcome: u64,
    /// `None`: counted in the overflow.
    count: Option<Counter>,
    /// `None`: likewise.
    duration: Option<Arc<Histogram>>,
    next: OnceLock<Box<Self>>,
}

/// What did not fit under the cap, for one direction.
#[derive(Debug)]
pub(super) struct OverflowRequests {
    pub(super) count: Counter,
    pub(super) duration: Histogram,
}

/// The connections of one label set on one worker.
#[derive(Debug, Default)]
pub struct ConnectionCells {
    opened: Counter,
    closed: Counter,
    sent: Counter,
    received: Counter,
}

/// A connection that counts as open for as long as this lives.
#[derive(Debug)]
pub struct OpenConnection(Arc<ConnectionCells>);

// === impl Counter ===

impl Counter {
    /// Adds one. Only the owning thread may.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`. Only the owning thread may.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The count, from any thread.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

// === impl Histogram ===

impl Histogram {
    pub(super) fn new(bounds: &Arc<[u64]>) -> Self {
        let buckets = (0..=bounds.len()).map(|_| Counter::default()).collect();
        Self { bounds: bounds.clone(), buckets, sum: Counter::default(), exemplars: OnceLock::new() }
    }

    /// Counts one duration. Only the owning thread may.
    #[inline]
    pub fn observe(&self, duration: Duration) {
        self.observe_size(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts so many bytes, where the bounds are in bytes. Only the owning thread may.
    #[inline]
    pub(super) fn observe_size(&self, size: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < size);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.inc();
        }
        self.sum.add(size);
    }

    /// Links the bucket of `shown`, which are bounds of buckets too, to a request that was counted here. Only the owning thread may.
    #[cold]
    pub(super) fn exemplify(&self, shown: &[u64], exemplar: &Exemplar) {
        let exemplars = self.exemplars.get_or_init(|| Exemplars::new(shown.len() + 1));
        exemplars.put(shown.partition_point(|bound| *bound < exemplar.nanos), exemplar);
    }

    /// By bucket as it is shown.
    pub(super) fn exemplars(&self) -> Option<&Exemplars> {
        self.exemplars.get()
    }

    /// Each upper bound, the last one endless, with how many durations lie between it and the one before it.
    pub(super) fn by_bound(&self) -> impl Iterator<Item = (u64, u64)> {
        let bounds = self.bounds.iter().copied().chain([u64::MAX]);
        bounds.zip(self.buckets.iter().map(Counter::get))
    }

    /// The counts by bucket, not cumulative, and the sum, in the unit of the bounds.
    pub(super) fn read(&self) -> (impl Iterator<Item = u64>, u64) {
        (self.buckets.iter().map(Counter::get), self.sum.get())
    }
}

// === impl RequestCells ===

/// How many distinct outcomes of one label set are told apart, so that an application that answers with random
/// statuses makes neither memory nor the walk grow.
const MAX_OUTCOMES: usize = 64;

impl RequestCells {
    pub(super) fn new(key: Box<[u8]>, overflow: Arc<OverflowRequests>, budget: Arc<Budget>) -> Self {
        let own = OwnRequests { budget, first: OnceLock::new(), durations: Mutex::default() };
        Self { key, overflow, own: Some(own) }
    }

    pub(super) fn new_overflow(overflow: Arc<OverflowRequests>) -> Self {
        Self { key: Box::default(), overflow, own: None }
    }

    /// Counts one request that ended with `outcome` after `duration`, in this histogram among others. Only the owning thread may.
    #[inline]
    pub fn record(&self, outcome: Outcome, duration: Duration) -> &Histogram {
        let packed = outcome.pack();
        let mut slot = self.own.as_ref().map(|own| &own.first);
        while let Some(node) = slot.and_then(OnceLock::get) {
            if node.outcome == packed {
                return self.count(node, duration);
            }
            slot = Some(&node.next);
        }
        match self.own.as_ref().and_then(|own| own.append(&self.key, outcome, &self.overflow.duration)) {
            Some(node) => self.count(node, duration),
            None => {
                self.overflow.count.inc();
                self.overflow.duration.observe(duration);
                &self.overflow.duration
            }
        }
    }

    #[inline]
    fn count<'a>(&'a self, node: &'a OutcomeNode, duration: Duration) -> &'a Histogram {
        node.count.as_ref().unwrap_or(&self.overflow.count).inc();
        let histogram = node.duration.as_deref().unwrap_or(&self.overflow.duration);
        histogram.observe(duration);
        histogram
    }

    /// Every outcome that has its own series, packed, with its count.
    pub(super) fn counts(&self) -> impl Iterator<Item = (u64, u64)> {
        let first = self.own.as_ref().and_then(|own| own.first.get());
        std::iter::successors(first, |node| node.next.get())
            .filter_map(|node| Some((node.outcome, node.count.as_ref()?.get())))
    }

    /// Every method and status that has its own histogram.
    pub(super) fn durations(&self) -> Vec<(u64, Arc<Histogram>)> {
        self.own.as_ref().map(|own| own.durations.lock().clone()).unwrap_or_default()
    }
}

impl OwnRequests {
    /// The node of an outcome that has none yet; `None` if there are too many.
    #[cold]
    fn append(&self, key: &[u8], outcome: Outcome, like: &Histogram) -> Option<&OutcomeNode> {
        let mut slot = &self.first;
        let mut length = 0;
        while let Some(node) = slot.get() {
            slot = &node.next;
            length += 1;
        }
        if length >= MAX_OUTCOMES {
            return None;
        }
        let packed = outcome.pack();
        let admitted = self.budget.admit(Group::Requests, key, packed);
        let node = OutcomeNode {
            outcome: packed,
            count: admitted.then(Counter::default),
            duration: self.duration(key, outcome.duration_key(), like),
            next: OnceLock::new(),
        };
        Some(slot.get_or_init(|| Box::new(node)))
    }

    fn duration(&self, key: &[u8], method_and_status: u64, like: &Histogram) -> Option<Arc<Histogram>> {
        let mut durations = self.durations.lock();
        if let Some((_, histogram)) = durations.iter().find(|(key, _)| *key == method_and_status) {
            return Some(histogram.clone());
        }
        if !self.budget.admit(Group::Durations, key, method_and_status) {
            return None;
        }
        let histogram = Arc::new(Histogram::new(&like.bounds));
        durations.push((method_and_status, histogram.clone()));
        Some(histogram)
    }
}

// === impl OverflowRequests ===

impl OverflowRequests {
    pub(super) fn new(bounds: &Arc<[u64]>) -> Self {
        Self { count: Counter::default(), duration: Histogram::new(bounds) }
    }
}

// === impl ConnectionCells ===

impl ConnectionCells {
    /// Counts a connection as open until the result is dropped. Only the owning thread may.
    pub fn open(self: &Arc<Self>) -> OpenConnection {
        self.opened.inc();
        OpenConnection(self.clone())
    }

    /// Bytes that went to the side that opened the connection.
    #[inline]
    pub fn sent(&self, bytes: u64) {
        self.sent.add(bytes);
    }

    /// Bytes that came from the side that opened the connection.
    #[inline]
    pub fn received(&self, bytes: u64) {
        self.received.add(bytes);
    }

    /// Opened, closed, sent, received.
    pub(super) fn read(&self) -> [u64; 4] {
        [self.opened.get(), self.closed.get(), self.sent.get(), self.received.get()]
    }
}

// === impl OpenConnection ===

impl OpenConnection {
    /// Where the connection is counted.
    pub fn cells(&self) -> &Arc<ConnectionCells> {
        &self.0
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.closed.inc();
    }
}

/// A pair of values for each direction.
#[derive(Debug, Default)]
pub(super) struct ByDirection<T>([T; 2]);

impl<T> ByDirection<T> {
    pub(super) fn new(mut make: impl FnMut(Direction) -> T) -> Self {
        Self([make(Direction::Inbound), make(Direction::Outbound)])
    }

    #[inline]
    pub(super) fn get(&self, direction: Direction) -> &T {
        match direction {
            Direction::Inbound => &self.0[0],
            Direction::Outbound => &self.0[1],
        }
    }
}
