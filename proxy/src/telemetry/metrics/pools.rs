//! Connections of pools, counted from their dial until they have left their pool.
//!
//! Pools belong to one worker thread, but an endpoint that an update takes away drops its idle connections on the control
//! thread: what ends a connection is counted with locked instructions, which are few beside the system calls of a
//! close. All else is counted by the pool's own thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use super::cells::Counter;
use super::labels::PoolClose;

/// The pooled connections to one service (or to all that is no service) on one worker.
#[derive(Debug, Default)]
pub struct PoolCells {
    opened: Counter,
    closed: [AtomicU64; PoolClose::ALL.len()],
    idle_begun: Counter,
    idle_ended: Counter,
    /// Of pools that were dropped, by whichever thread.
    idle_dropped: AtomicU64,
}

/// A connection that counts as its pool's for as long as this lives.
#[derive(Debug)]
#[must_use = "the connection counts as closed once this is dropped"]
pub struct PooledConnection {
    cells: Arc<PoolCells>,
    cause: AtomicU8,
}

/// What is shown of pools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pooled {
    pub(super) open: u64,
    pub(super) idle: u64,
}

// === impl PoolCells ===

impl PoolCells {
    /// Counts a connection as open until the result is dropped, and then as closed for `cause`, if nothing else was said
    /// of it. Only the owning thread may.
    pub fn open(self: &Arc<Self>, cause: PoolClose) -> PooledConnection {
        self.opened.inc();
        PooledConnection { cells: Arc::clone(self), cause: AtomicU8::new(cause as u8) }
    }

    /// A pool had `before` connections that serve no request and has `now`. Only the owning thread may.
    #[inline]
    pub fn idle(&self, before: usize, now: usize) {
        if now > before {
            self.idle_begun.add((now - before) as u64);
        } else if now < before {
            self.idle_ended.add((before - now) as u64);
        }
    }

    /// A pool was dropped that had `idle` of them. Any thread may.
    pub fn dropped(&self, idle: usize) {
        self.idle_dropped.fetch_add(idle as u64, Relaxed);
    }

    /// What has ended is read first, so that a scrape never sees more ended than begun.
    pub(super) fn read(&self) -> Pooled {
        let closed: u64 = self.closed.iter().map(|count| count.load(Relaxed)).sum();
        let ended = self.idle_ended.get() + self.idle_dropped.load(Relaxed);
        let open = self.opened.get().saturating_sub(closed);
        // An HTTP/2 connection that its server closes is still among the idle ones until the next sweep.
        Pooled { open, idle: self.idle_begun.get().saturating_sub(ended).min(open) }
    }

    /// Whether there has been any connection.
    pub(super) fn is_used(&self) -> bool {
        self.opened.get() > 0
    }

    pub(super) fn closed(&self, cause: PoolClose) -> u64 {
        self.closed[cause as usize].load(Relaxed)
    }
}

// === impl PooledConnection ===

impl PooledConnection {
    /// Says why it will be closed.
    pub fn closing(&self, cause: PoolClose) {
        self.cause.store(cause as u8, Relaxed);
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        if let Some(closed) = self.cells.closed.get(usize::from(self.cause.load(Relaxed))) {
            closed.fetch_add(1, Relaxed);
        }
    }
}
