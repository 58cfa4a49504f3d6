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
use super::{Http1Waiter, Http2Waiter, Seated, Way};
use crate::io::streams::{Opener, Stream};
use crate::telemetry::metrics::{PoolCells, PoolClose, PooledConnection, WorkerMetrics};
use crate::wire::http2;

#[derive(Debug)]
pub(super) struct Pool {
    http1: Mutex<Entry<Http1Waiter>>,
    /// As `http1`, of those that are streams on `carriers`.
    streams: Mutex<Entry<Http1Waiter>>,
    /// The first the most used.
    carriers: Mutex<Vec<Carrier>>,
    /// For how long the server keeps idle HTTP/1 connections.
    idle_limit: Mutex<IdleLimit>,
    http2: Mutex<Shared<SharedConnection, Http2Waiter>>,
    /// Where it is counted, from its first connection on.
    cells: OnceLock<Arc<PoolCells>>,
}

/// A connection of many streams.
#[derive(Debug)]
pub(super) struct Carrier {
    pub(super) opener: Opener,
    /// When it is too old for another.
    pub(super) until: Option<Instant>,
    pub(super) seat: Seated,
}

/// An HTTP/2 connection; open for its pool for as long as that or a stream holds on to it.
#[derive(Clone, Debug)]
pub(super) struct SharedConnection {
    pub(super) sender: http2::Sender,
    pub(super) pooled: Arc<PooledConnection>,
    /// When it is too old for another stream.
    pub(super) until: Option<Instant>,
    pub(super) seat: Seated,
}

// === impl Pool ===

impl Default for Pool {
    fn default() -> Self {
        Self {
            http1: Mutex::default(),
            streams: Mutex::new(Entry::one_by_one()),
            carriers: Mutex::default(),
            idle_limit: Mutex::default(),
            http2: Mutex::default(),
            cells: OnceLock::new(),
        }
    }
}

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
    pub(super) fn http1<R>(&self, way: Way, change: impl FnOnce(&mut Entry<Http1Waiter>) -> R) -> R {
        let mut entry = match way {
            Way::Own => self.http1.lock(),
            Way::Shared => self.streams.lock(),
        };
        let before = entry.idle();
        let result = change(&mut entry);
        self.count_idle(before, entry.idle());
        result
    }

    /// A new stream, if a connection has room for it.
    pub(super) fn stream(&self) -> Option<(Stream, Option<Instant>)> {
        let carriers = self.carriers.lock();
        let open = carriers.iter().filter(|carrier| carrier.is_open());
        open.filter_map(|carrier| Some((carrier.opener.open()?, carrier.until))).next()
    }

    /// A connection for streams was dialled; the first of them, unless it has already ended.
    pub(super) fn share(&self, carrier: Carrier) -> Option<(Stream, Option<Instant>)> {
        let (stream, until) = (carrier.opener.open(), carrier.until);
        self.carriers.lock().push(carrier);
        Some((stream?, until))
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
        self.http1.lock().idle() + self.streams.lock().idle() + self.http2.lock().connections()
    }

    /// Drops what has been idle for longer than `configured`, or than the server allows, and what is too old; `shared`: as
    /// `configured`, for shared HTTP/2 connections, where it is said.
    pub(super) fn sweep(&self, now: Instant, configured: Duration, shared: Option<Duration>) {
        let mut closed = Vec::new();
        let limit = self.idle_limit(now, configured);
        let mut keep = |idle: &mut super::entry::Idle<super::Kept>| match idle.connection.client.closed() {
            Some(at) => {
                idle.connection.pooled.closing(PoolClose::Peer);
                closed.push((at, idle.since));
                false
            }
            None if idle.connection.is_old(now) => {
                idle.connection.pooled.closing(PoolClose::Age);
                false
            }
            None if now.saturating_duration_since(idle.since) < limit => true,
            None => {
                idle.connection.pooled.closing(PoolClose::Idle);
                false
            }
        };
        self.http1(Way::Own, |entry| entry.retain(&mut keep));
        self.http1(Way::Shared, |entry| entry.retain(&mut keep));
        for (at, since) in closed {
            self.saw_close(at, since);
        }
        self.carriers.lock().retain(|carrier| {
            // One that is too old keeps what it carries.
            let _ = carrier.is_open();
            carrier.opener.is_open() && !carrier.opener.is_idle()
        });
        self.sweep_http2(now, shared);
    }

    /// Drops the HTTP/2 connections that serve nobody and were dialled before.
    pub(super) fn drop_older_http2(&self, than: Instant) {
        Self::close_idle(self.http2(|connections| connections.take_older(than)));
    }

    fn sweep_http2(&self, now: Instant, idle: Option<Duration>) {
        Self::close_idle(self.http2(|connections| connections.sweep(now, idle)));
    }

    fn close_idle(expired: Vec<SharedConnection>) {
        for mut connection in expired {
            if shared::Connection::is_open(&mut connection) {
                connection.pooled.closing(PoolClose::Idle);
            }
        }
    }

    /// Makes room for a connection: one that takes nothing new gives its place up, or one that serves nobody is closed; whether there was one.
    /// Any thread may call it.
    pub(super) fn evict(&self) -> bool {
        if self.gives_up() {
            return true;
        }
        let idle = self.http1.lock().oldest();
        if let Some(idle) = &idle {
            idle.connection.pooled.closing(PoolClose::Limit);
        }
        let shared = if idle.is_none() { self.http2.lock().evict() } else { None };
        if let Some(shared) = &shared {
            shared.pooled.closing(PoolClose::Limit);
            // Its task closes it, when that next runs: who needs the place may not be there any more by then.
            give_up(&shared.seat);
        }
        let evicted = idle.is_some() || shared.is_some();
        if let Some(cells) = self.cells.get().filter(|_| evicted) {
            cells.dropped(1);
        }
        evicted || self.evict_carrier() || (self.let_go_streams() && self.evict_carrier())
    }

    /// Has a connection that takes nothing new give its place up, though it still carries something. Nobody else may look any more: its endpoint
    /// need not be in the set.
    fn gives_up(&self) -> bool {
        self.carriers.lock().iter().any(Carrier::gives_up)
            || self.http2.lock().all_mut().any(SharedConnection::gives_up)
    }

    /// Closes a connection of streams of which nobody here has any; it ends once the server has let go of the last.
    fn evict_carrier(&self) -> bool {
        let mut carriers = self.carriers.lock();
        let unused = carriers.iter().rposition(|carrier| carrier.opener.is_unused());
        unused.map(|at| give_up(&carriers.remove(at).seat)).is_some()
    }

    /// Drops the streams that serve nobody, so that their connections may be closed; whether there were any.
    fn let_go_streams(&self) -> bool {
        let idle: Vec<_> = {
            let mut streams = self.streams.lock();
            std::iter::from_fn(|| streams.take()).collect()
        };
        idle.iter().for_each(|one| one.connection.pooled.closing(PoolClose::Limit));
        if let Some(cells) = self.cells.get() {
            cells.dropped(idle.len());
        }
        !idle.is_empty()
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
        let http1 = [self.http1.get_mut(), self.streams.get_mut()];
        let idle: usize = http1.iter().map(|entry| entry.idle()).sum();
        cells.dropped(idle + self.http2.get_mut().idle());
        for entry in http1 {
            entry.retain(|idle| {
                idle.connection.pooled.closing(PoolClose::Retired);
                false
            });
        }
        for connection in self.http2.get_mut().all() {
            connection.pooled.closing(PoolClose::Retired);
        }
    }
}

fn is_past(until: Option<Instant>) -> bool {
    until.is_some_and(|until| Instant::now() >= until)
}

/// Whether it had not yet.
fn give_up(seat: &Seated) -> bool {
    seat.upgrade().is_some_and(|seat| seat.give())
}

// === impl Carrier ===

impl Carrier {
    /// Whether it takes new streams; without that it has given its place up.
    fn is_open(&self) -> bool {
        let is_open = self.takes_new();
        if !is_open {
            give_up(&self.seat);
        }
        is_open
    }

    fn takes_new(&self) -> bool {
        !is_past(self.until) && self.opener.is_open()
    }

    /// Whether it takes nothing new, and has given its place up only now.
    fn gives_up(&self) -> bool {
        !self.takes_new() && give_up(&self.seat)
    }
}

// === impl SharedConnection ===

impl SharedConnection {
    fn takes_new(&mut self) -> bool {
        let is_old = is_past(self.until);
        if is_old {
            self.pooled.closing(PoolClose::Age);
        }
        !is_old && self.sender.is_open()
    }

    /// As of a [`Carrier`].
    fn gives_up(&mut self) -> bool {
        !self.takes_new() && give_up(&self.seat)
    }
}

impl shared::Connection for SharedConnection {
    /// Without that it has given its place up.
    fn is_open(&mut self) -> bool {
        let is_open = self.takes_new();
        if !is_open {
            give_up(&self.seat);
        }
        is_open
    }

    fn max_streams(&self) -> usize {
        self.sender.max_streams()
    }
}
