//! One worker's connections to one endpoint: the entries under their locks, and what is counted of them.
//!
//! Every change of an entry goes through here, so that the idle connections that metrics show are those that there are.
//! No lock is held across an `await`.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::entry::Entry;
use super::idle::IdleLimit;
use super::shared::{self, Shared};
use super::{Http1Waiter, Http2Waiter};
use crate::telemetry::metrics::{PoolCells, PoolClose, PooledConnection, WorkerMetrics};
use crate::wire::http2;

#[derive(Debug, Default)]
pub(super) struct Pool {
    http1: Mutex<Entry<Http1Waiter>>,
    /// For how long the server keeps idle HTTP/1 connections.
    idle_limit: Mutex<IdleLimit>,
    http2: Mutex<Shared<SharedConnection, Http2Waiter>>,
    /// Where it is counted, from its first connection on.
    cells: OnceLock<Arc<PoolCells>>,
}

/// An HTTP/2 connection; open for its pool for as long as that or a stream holds on to it.
#[derive(Clone, Debug)]
pub(super) struct SharedConnection {
    pub(super) sender: http2::Sender,
    pub(super) pooled: Arc<PooledConnection>,
}

// === impl Pool ===

impl Pool {
    /// Counts a connection that was dialled.
    pub(super) fn opened(
        &self,
        metrics: &WorkerMetrics,
        service: &str,
        cause: PoolClose,
    ) -> PooledConnection {
        self.cells.get_or_init(|| metrics.pool(service)).open(cause)
    }

    /// Reads or changes the HTTP/1 connections.
    pub(super) fn http1<R>(&self, change: impl FnOnce(&mut Entry<Http1Waiter>) -> R) -> R {
        let mut entry = self.http1.lock();
        let before = entry.idle();
        let result = change(&mut entry);
        self.count_idle(before, entry.idle());
        result
    }

    /// Reads or changes the HTTP/2 connections.
    pub(super) fn http2<R>(&self, change: impl FnOnce(&mut Shared<SharedConnection, Http2Waiter>) -> R) -> R {
        let mut shared = self.http2.lock();
        let before = shared.idle();
        let result = change(&mut shared);
        self.count_idle(before, shared.idle());
        result
    }

    fn count_idle(&self, before: usize, now: usize) {
        if let Some(cells) = self.cells.get() {
            cells.idle(before, now);
        }
    }

    /// Connections that are idle or shared.
    pub(super) fn connections(&self) -> usize {
        self.http1.lock().idle() + self.http2.lock().connections()
    }

    /// Drops what has been idle for longer than `configured`, or than the server allows.
    pub(super) fn sweep(&self, now: Instant, configured: Duration) {
        let mut closed = Vec::new();
        let limit = self.idle_limit(now, configured);
        let keep = |idle: &mut super::entry::Idle<super::Kept>| match idle.connection.client.closed() {
            Some(at) => {
                idle.connection.pooled.closing(PoolClose::Peer);
                closed.push((at, idle.since));
                false
            }
            None if now.saturating_duration_since(idle.since) < limit => true,
            None => {
                idle.connection.pooled.closing(PoolClose::Idle);
                false
            }
        };
        self.http1(|entry| entry.retain(keep));
        for (at, since) in closed {
            self.saw_close(at, since);
        }
        let expired = self.http2(|shared| shared.sweep(now));
        for connection in expired {
            if shared::Connection::is_open(&connection) {
                connection.pooled.closing(PoolClose::Idle);
            }
        }
    }

    pub(super) fn idle_limit(&self, now: Instant, configured: Duration) -> Duration {
        self.idle_limit.lock().at(now, configured)
    }

    /// The server says for how long it keeps idle connections.
    pub(super) fn state_limit(&self, timeout: Duration) {
        self.idle_limit.lock().state(timeout);
    }

    /// The server closed a connection at `at` that had been idle from `since` on.
    pub(super) fn saw_close(&self, at: Instant, since: Instant) {
        self.idle_limit.lock().observe(at, at.saturating_duration_since(since));
    }
}

impl Drop for Pool {
    /// Streams and exchanges hold on to their endpoint: what is left is idle. Any thread may come here.
    fn drop(&mut self) {
        let Some(cells) = self.cells.get() else { return };
        cells.dropped(self.http1.get_mut().idle() + self.http2.get_mut().idle());
        self.http1.get_mut().retain(|idle| {
            idle.connection.pooled.closing(PoolClose::Retired);
            false
        });
        for connection in self.http2.get_mut().all() {
            connection.pooled.closing(PoolClose::Retired);
        }
    }
}

// === impl SharedConnection ===

impl shared::Connection for SharedConnection {
    fn is_open(&self) -> bool {
        self.sender.is_open()
    }

    fn max_streams(&self) -> usize {
        self.sender.max_streams()
    }
}
