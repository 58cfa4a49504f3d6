//! One worker's HTTP/2 connections to one endpoint, as plain state: no I/O, no clock, no task.
//!
//! Decides which connection a stream goes on, and when a further one is dialled: when those that there are carry as many
//! streams as their server takes. At most one dial is under way; it serves all who wait, and its error reaches
//! all whom it is for and no connection can serve. Never hands out a connection that is closed or was told to go away, and never
//! forgets who waits. The shell ([`super::Endpoint`]) holds it under a lock, never across an `await`.
//!
//! `C` is a connection, `W` whoever waits for one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What must be known of a connection.
pub(super) trait Connection: Clone {
    /// Whether it takes new streams: not closed, and no GOAWAY (RFC 9113 §6.8) came.
    fn is_open(&mut self) -> bool;

    /// How many streams it carries at a time (SETTINGS_MAX_CONCURRENT_STREAMS, RFC 9113 §6.5.2, or fewer).
    fn max_streams(&self) -> usize;
}

/// Connections, at most; streams beyond what they take share them, and wait inside.
const MAX_CONNECTIONS: usize = 8;
/// How long a connection without streams is kept.
const IDLE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Shared<C, W> {
    /// Oldest first, and used in this order, so that those beyond need fall idle.
    connections: Vec<Used<C>>,
    /// Each with when its connection must have been dialled at the earliest.
    waiting: VecDeque<(Option<Instant>, W)>,
    dialling: bool,
    next: u64,
}

#[derive(Debug)]
struct Used<C> {
    id: Id,
    connection: C,
    dialled: Instant,
    streams: usize,
    /// When the last stream ended.
    since: Instant,
}

/// Which of the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(u64);

/// A place for one stream, to be given back by [`Shared::finish`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place<C> {
    pub(super) id: Id,
    pub(super) connection: C,
}

/// The answer to whoever needs a place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Checkout<C> {
    Ready(Place<C>),
    /// Wait, and start the one dial.
    Dial,
    /// Wait for the dial that is under way.
    Wait,
}

/// A place for somebody who waited.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Served<C, W> {
    pub(super) waiter: W,
    pub(super) place: Place<C>,
}

/// What a dial's end leads to.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) struct Dialled<C, W> {
    pub(super) served: Vec<Served<C, W>>,
    /// Nobody can serve these: the dial failed, and its error is for all of them.
    pub(super) failed: Vec<W>,
    /// Dial once more: some still wait.
    pub(super) again: bool,
}

// === impl Shared ===

impl<C, W> Default for Shared<C, W> {
    fn default() -> Self {
        Self { connections: Vec::new(), waiting: VecDeque::new(), dialling: false, next: 0 }
    }
}

impl<C: Connection, W> Shared<C, W> {
    /// A place for one stream; else `waiter` makes who waits for one. `fresh`: on no connection that was dialled before, as long as others
    /// can be dialled.
    pub(super) fn checkout(&mut self, fresh: Option<Instant>, waiter: impl FnOnce() -> W) -> Checkout<C> {
        self.forget_closed();
        if let Some(place) = self.place(fresh) {
            return Checkout::Ready(place);
        }
        self.waiting.push_back((fresh, waiter()));
        if std::mem::replace(&mut self.dialling, true) { Checkout::Wait } else { Checkout::Dial }
    }

    /// A stream is over; its place may serve somebody.
    pub(super) fn finish(&mut self, id: Id, now: Instant) -> Option<Served<C, W>> {
        if let Some(used) = self.connections.iter_mut().find(|used| used.id == id) {
            used.streams = used.streams.saturating_sub(1);
            used.since = now;
        }
        if self.waiting.is_empty() {
            return None;
        }
        self.forget_closed();
        self.serve()
    }

    /// The dial has come to a connection.
    pub(super) fn dialled(&mut self, mut connection: C, now: Instant) -> Dialled<C, W> {
        if !connection.is_open() {
            // Whoever accepts and closes at once is not dialled in circles.
            return self.failed(|_| true);
        }
        self.forget_closed();
        let id = Id(self.next);
        self.next += 1;
        self.connections.push(Used { id, connection, dialled: now, streams: 0, since: now });
        let served = std::iter::from_fn(|| self.serve()).collect();
        self.dialling = !self.waiting.is_empty();
        Dialled { served, failed: Vec::new(), again: self.dialling }
    }

    /// Who waits longest.
    pub(super) fn first(&self) -> Option<&W> {
        self.waiting.front().map(|(_, waiter)| waiter)
    }

    /// The dial has failed: who waits shares the connections that there are, or learns of it if it is for `them`; the others need another.
    pub(super) fn failed(&mut self, them: impl Fn(&W) -> bool) -> Dialled<C, W> {
        self.forget_closed();
        let mut served = Vec::new();
        while !self.waiting.is_empty()
            && let Some(place) = self.least_used()
            && let Some((_, waiter)) = self.waiting.pop_front()
        {
            served.push(Served { waiter, place });
        }
        let told = self.waiting.iter().take_while(|(_, waiter)| them(waiter)).count();
        let failed = self.waiting.drain(..told).map(|(_, waiter)| waiter).collect();
        self.dialling = !self.waiting.is_empty();
        Dialled { served, failed, again: self.dialling }
    }

    /// Takes out what is closed or has been without streams for `idle`, or for long, to be dropped outside the lock.
    pub(super) fn sweep(&mut self, now: Instant, idle: Option<Duration>) -> Vec<C> {
        let idle = idle.unwrap_or(IDLE);
        let expired = |used: &mut Used<C>| {
            let unused = used.streams == 0 && now.saturating_duration_since(used.since) >= idle;
            unused || !used.connection.is_open()
        };
        self.connections.extract_if(.., expired).map(|used| used.connection).collect()
    }

    /// Takes out those without streams that were dialled before.
    pub(super) fn take_older(&mut self, than: Instant) -> Vec<C> {
        let older = |used: &mut Used<C>| used.streams == 0 && used.dialled < than;
        self.connections.extract_if(.., older).map(|used| used.connection).collect()
    }

    /// Takes out one without streams.
    pub(super) fn evict(&mut self) -> Option<C> {
        let at = self.connections.iter().position(|used| used.streams == 0)?;
        Some(self.connections.remove(at).connection)
    }

    /// Connections that are kept.
    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Connections without streams.
    pub(super) fn idle(&self) -> usize {
        self.connections.iter().filter(|used| used.streams == 0).count()
    }

    /// Every connection.
    pub(super) fn all(&self) -> impl Iterator<Item = &C> {
        self.connections.iter().map(|used| &used.connection)
    }

    /// Likewise.
    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut C> {
        self.connections.iter_mut().map(|used| &mut used.connection)
    }

    /// Streams on all connections.
    #[cfg(test)]
    pub(super) fn streams(&self) -> usize {
        self.connections.iter().map(|used| used.streams).sum()
    }

    /// On the first connection that has one, or on the least used when there may be no more connections.
    fn place(&mut self, fresh: Option<Instant>) -> Option<Place<C>> {
        let has_room = |used: &Used<C>| {
            used.streams < used.connection.max_streams() && fresh.is_none_or(|fresh| used.dialled >= fresh)
        };
        match self.connections.iter().position(has_room) {
            Some(at) => self.connections.get_mut(at).map(Used::place),
            None if self.connections.len() >= MAX_CONNECTIONS => self.least_used(),
            None => None,
        }
    }

    fn least_used(&mut self) -> Option<Place<C>> {
        self.connections.iter_mut().min_by_key(|used| used.streams).map(Used::place)
    }

    fn serve(&mut self) -> Option<Served<C, W>> {
        let fresh = self.waiting.front()?.0;
        let place = self.place(fresh)?;
        self.waiting.pop_front().map(|(_, waiter)| Served { waiter, place })
    }

    /// Those that are closed take nothing new; streams that they still carry go on without us.
    fn forget_closed(&mut self) {
        self.connections.retain_mut(|used| used.connection.is_open());
    }
}

// === impl Used ===

impl<C: Clone> Used<C> {
    fn place(&mut self) -> Place<C> {
        self.streams += 1;
        Place { id: self.id, connection: self.connection.clone() }
    }
}

#[cfg(test)]
mod tests;
