//! One worker's HTTP/1 connections to one endpoint, and the requests that wait for one. Pure: no clock, no I/O.
//!
//! A request takes an idle connection, or waits: for the next one that another request gives back, or for a dial,
//! whichever comes first. So a burst costs as many connections as it needs and no more. How many are dialled at a time
//! is felt for, as TCP feels for its window: one more with each that succeeds, half as many with each that fails.
//! Handshakes that compete with each other for the processor all time out, and would again if as many were begun again.
//! The failure of one dial is nobody's error while the endpoint serves: whoever waits does so for as long as connections
//! come, and is told once none has come during a whole dial.
//! The shell ([`super::Endpoint`]) holds it under a lock, never across an `await`.

use std::collections::VecDeque;
use std::time::Instant;

/// Connections dialled at one time, at most.
pub(super) const MAX_DIALS: usize = 64;
/// And before anything is known.
const FIRST_DIALS: usize = 8;
/// Idle connections that are kept, at most.
const MAX_IDLE: usize = 512;

/// Whoever waits for a connection.
pub(super) trait Waiter {
    /// A connection.
    type Connection;

    /// Gives it a connection, which comes back if nobody waits any more.
    fn give(self, connection: Self::Connection, fresh: bool) -> Result<(), Self::Connection>;

    /// Whether nobody waits any more.
    fn is_gone(&self) -> bool;
}

/// See the module.
#[derive(Debug)]
pub(super) struct Entry<W: Waiter> {
    /// Ascending by time.
    idle: Vec<Idle<W::Connection>>,
    /// Each with its number and when it came.
    waiting: VecDeque<(u64, Instant, W)>,
    dialling: usize,
    /// How many may be dialled at one time, and how many ever.
    limit: usize,
    max_limit: usize,
    /// The number of the next waiter.
    next: u64,
    /// Connections that have come, dialled or given back.
    came: u64,
}

/// A connection between two exchanges.
#[derive(Debug)]
pub(super) struct Idle<C> {
    pub(super) connection: C,
    pub(super) since: Instant,
}

/// Leave to dial; to be answered by [`Entry::dialled`] or [`Entry::failed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) struct Ticket {
    /// Who waited before the dial began.
    before: u64,
    /// [`Entry::came`] when it began.
    came: u64,
}

// === impl Entry ===

impl<W: Waiter> Default for Entry<W> {
    fn default() -> Self {
        Self::limited(FIRST_DIALS, MAX_DIALS)
    }
}

impl<W: Waiter> Entry<W> {
    /// One whose dials follow each other: the first may serve all.
    pub(super) fn one_by_one() -> Self {
        Self::limited(1, 1)
    }

    fn limited(limit: usize, max_limit: usize) -> Self {
        let (idle, waiting) = (Vec::new(), VecDeque::new());
        Self { idle, waiting, dialling: 0, limit, max_limit, next: 0, came: 0 }
    }

    /// The idle connection that was used last.
    pub(super) fn take(&mut self) -> Option<Idle<W::Connection>> {
        self.idle.pop()
    }

    /// The idle connection that has been so longest.
    pub(super) fn oldest(&mut self) -> Option<Idle<W::Connection>> {
        (!self.idle.is_empty()).then(|| self.idle.remove(0))
    }

    /// Waits, there being no idle connection; with a ticket, the caller must dial.
    pub(super) fn wait(&mut self, waiter: W, now: Instant) -> Option<Ticket> {
        self.waiting.push_back((self.next, now, waiter));
        self.next += 1;
        self.ticket()
    }

    /// Another dial, if more wait than are dialled for.
    fn ticket(&mut self) -> Option<Ticket> {
        (self.dialling < self.limit && self.dialling < self.waiting.len()).then(|| {
            self.dialling += 1;
            Ticket { before: self.next, came: self.came }
        })
    }

    /// A connection came back from an exchange.
    pub(super) fn give(&mut self, connection: W::Connection, now: Instant) {
        self.place(connection, false, now);
    }

    /// A dial came to a connection; for each ticket, the caller must dial once more.
    pub(super) fn dialled(
        &mut self,
        _: Ticket,
        connection: W::Connection,
        now: Instant,
    ) -> [Option<Ticket>; 2] {
        self.dialling = self.dialling.saturating_sub(1);
        self.limit = (self.limit + 1).min(self.max_limit);
        self.place(connection, true, now);
        [self.ticket(), self.ticket()]
    }

    /// When the one came that waits longest.
    pub(super) fn first_came(&self) -> Option<Instant> {
        self.waiting.front().map(|(_, came, _)| *came)
    }

    /// A dial failed: everyone who waited when it began is to be told, unless a connection has come since; or, where it was our own limits that it
    /// waited for in vain, who came `by` then, and so has waited for as long as they let anybody. With a ticket, the caller must dial for those
    /// who wait on.
    pub(super) fn failed(&mut self, ticket: Ticket, by: Option<Instant>) -> (Vec<W>, Option<Ticket>) {
        self.dialling = self.dialling.saturating_sub(1);
        self.limit = (self.limit / 2).max(1);
        let told = match by {
            Some(by) => self.waiting.partition_point(|(_, came, _)| *came <= by),
            None if self.came == ticket.came => {
                self.waiting.partition_point(|(number, ..)| *number < ticket.before)
            }
            None => 0,
        };
        let told = self.waiting.drain(..told).map(|(.., waiter)| waiter).collect();
        (told, self.ticket())
    }

    /// Whether each of the dials is for somebody: connections may have been given back meanwhile.
    pub(super) fn wants_dials(&mut self) -> bool {
        self.forget_gone();
        self.dialling <= self.waiting.len()
    }

    /// A dial was not begun, since nobody wanted it; with a ticket, somebody wants one again.
    pub(super) fn unwanted(&mut self, _: Ticket) -> Option<Ticket> {
        self.dialling = self.dialling.saturating_sub(1);
        self.ticket()
    }

    /// To whoever waits longest, else to the idle ones.
    fn place(&mut self, mut connection: W::Connection, fresh: bool, now: Instant) {
        self.came += 1;
        while let Some((.., waiter)) = self.waiting.pop_front() {
            match waiter.give(connection, fresh) {
                Ok(()) => {
                    self.forget_gone();
                    return;
                }
                Err(back) => connection = back,
            }
        }
        if self.idle.len() < MAX_IDLE {
            self.idle.push(Idle { connection, since: now });
        }
    }

    /// Who has left does not ask for a dial.
    fn forget_gone(&mut self) {
        while self.waiting.front().is_some_and(|(.., waiter)| waiter.is_gone()) {
            self.waiting.pop_front();
        }
    }

    /// Keeps the idle connections that `keep` says.
    pub(super) fn retain(&mut self, keep: impl FnMut(&mut Idle<W::Connection>) -> bool) {
        self.idle.retain_mut(keep);
    }

    /// Idle connections.
    pub(super) fn idle(&self) -> usize {
        self.idle.len()
    }
}

#[cfg(test)]
mod tests;
