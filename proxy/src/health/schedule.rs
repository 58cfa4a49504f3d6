//! When which endpoint is asked, and what its answers come to. Pure: no clock, no randomness, no I/O.
//!
//! An endpoint is asked soon after it is first seen, and then once in an interval, give or take a tenth, so that neither
//! the endpoints of one proxy nor the proxies of one endpoint keep step. It is taken for healthy until so many checks in
//! a row have failed, and for unhealthy until so many in a row have passed. At most [`MAX_ASKED`] are asked at one time:
//! the others are asked in their turn, late.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use crate::state::HealthCheck;

/// Endpoints that are asked at one time, at most.
pub(super) const MAX_ASKED: usize = 64;
/// The first check is made within a tenth of the interval, and this at most.
const FIRST: Duration = Duration::from_secs(1);

/// Longer than any proxy lives.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Who is asked; the caller's number for an endpoint.
pub(super) type Id = usize;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    endpoints: HashMap<Id, Endpoint, RandomState>,
    due: BTreeSet<(Instant, Id)>,
    asked: usize,
    /// The number of the next change of an endpoint's check.
    next: u64,
}

#[derive(Debug)]
struct Endpoint {
    pace: Pace,
    /// Changes when its check does: an answer to the one before tells nothing.
    number: u64,
    turn: Turn,
    healthy: bool,
    /// Answers in a row that say otherwise.
    against: u32,
}

/// How often it is asked, and how many answers in a row count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    interval: Duration,
    healthy_threshold: u32,
    unhealthy_threshold: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It is to be asked then.
    Due(Instant),
    /// It was asked then, and has not answered.
    Asked(Instant),
}

/// Leave to ask; to be given back to [`Schedule::answered`].
#[derive(Debug)]
#[must_use]
pub(super) struct Ticket {
    pub(super) id: Id,
    number: u64,
}

// === impl Schedule ===

impl Schedule {
    /// `id` is to be asked, from soon on, and likewise if it is already but otherwise; what is known of it stays.
    /// `random` is any uniformly random number, here and elsewhere.
    pub(super) fn put(&mut self, id: Id, check: &HealthCheck, now: Instant, random: u64) {
        let pace = Pace {
            interval: check.interval.min(LONGEST),
            healthy_threshold: check.healthy_threshold,
            unhealthy_threshold: check.unhealthy_threshold,
        };
        let at = now + (check.interval / 10).min(FIRST).mul_f64(unit(random));
        let healthy = self.take(id).is_none_or(|before| before.healthy);
        self.due.insert((at, id));
        let endpoint = Endpoint { pace, number: self.next, turn: Turn::Due(at), healthy, against: 0 };
        self.endpoints.insert(id, endpoint);
        self.next += 1;
    }

    /// `id` is not asked any more. Whether it was unhealthy.
    pub(super) fn remove(&mut self, id: Id) -> bool {
        self.take(id).is_some_and(|endpoint| !endpoint.healthy)
    }

    fn take(&mut self, id: Id) -> Option<Endpoint> {
        let endpoint = self.endpoints.remove(&id)?;
        if let Turn::Due(at) = endpoint.turn {
            self.due.remove(&(at, id));
        }
        Some(endpoint)
    }

    /// Whom to ask now, if anybody.
    pub(super) fn next(&mut self, now: Instant) -> Option<Ticket> {
        let (at, id) = *self.due.first().filter(|_| self.asked < MAX_ASKED)?;
        if at > now {
            return None;
        }
        self.due.remove(&(at, id));
        let endpoint = self.endpoints.get_mut(&id)?;
        endpoint.turn = Turn::Asked(now);
        self.asked += 1;
        Some(Ticket { id, number: endpoint.number })
    }

    /// When to call [`Schedule::next`] again, if nothing else happens; `None`: not before an answer.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.due.first().filter(|_| self.asked < MAX_ASKED).map(|(at, _)| *at)
    }

    /// Whether it is taken for healthy; who is not asked is.
    pub(super) fn is_healthy(&self, id: Id) -> bool {
        self.endpoints.get(&id).is_none_or(|endpoint| endpoint.healthy)
    }

    /// A check that was begun is over: it passed, or did not, or tells nothing of its endpoint. Whether that is healthy from now
    /// on, if it has changed.
    pub(super) fn answered(
        &mut self,
        ticket: Ticket,
        verdict: Option<bool>,
        now: Instant,
        random: u64,
    ) -> Option<bool> {
        let Ticket { id, number } = ticket;
        self.asked = self.asked.saturating_sub(1);
        let endpoint = self.endpoints.get_mut(&id).filter(|endpoint| endpoint.number == number)?;
        if let Turn::Asked(since) = endpoint.turn {
            let interval = endpoint.pace.interval.mul_f64(0.9 + 0.2 * unit(random));
            let at = (since + interval).max(now);
            endpoint.turn = Turn::Due(at);
            self.due.insert((at, id));
        }
        endpoint.answered(verdict?)
    }
}

// === impl Endpoint ===

impl Endpoint {
    fn answered(&mut self, passed: bool) -> Option<bool> {
        if passed == self.healthy {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = match passed {
            true => self.pace.healthy_threshold,
            false => self.pace.unhealthy_threshold,
        };
        if self.against < needed {
            return None;
        }
        (self.healthy, self.against) = (passed, 0);
        Some(passed)
    }
}

/// From 0 to 1.
fn unit(random: u64) -> f64 {
    random as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests;
