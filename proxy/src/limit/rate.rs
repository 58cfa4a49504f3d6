//! Limits on how often: which of them speak of a request, what each counts by, and whether there is room in all of them.
//!
//! All that speak of a request must have room; one that is refused uses up none of them. Counts are the whole proxy's: total in one atomic
//! each, by key under [`keyed`](super::keyed)'s locks, never across an `await`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use http::HeaderName;
use smallvec::SmallVec;
use tulle_certs::SpiffeId;

use super::keyed::{Hash, Keyed};
use super::pace::{Pace, Rate};
use crate::route::{Asked, HeaderMatch};

/// One limit, as it is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// `<namespace>/<policy>/<limit>`: each once.
    pub name: Arc<str>,
    /// Requests that have all of them; none: all requests.
    pub headers: Vec<HeaderMatch>,
    pub key: Key,
    pub rate: Rate,
    /// In place of `rate` for these values of the key. The first that names a value counts.
    pub overrides: Vec<(Vec<Box<str>>, Rate)>,
    /// Inbound: those that clients dial; empty: every port.
    pub ports: Vec<u16>,
    /// It refuses nothing: what it would have refused is told.
    pub dry_run: bool,
}

/// What has a count of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// All requests together.
    All,
    /// Each identity; those without one together.
    Identity,
    /// Each value of the header; those without it together.
    Header(HeaderName),
}

/// A request, as far as limits look at it.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    pub asked: Asked<'a>,
    /// Who asks.
    pub identity: Option<&'a SpiffeId>,
    /// That the client dialled, where limits speak of ports.
    pub port: u16,
}

/// No room: in this limit it takes longest until there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub name: Arc<str>,
    pub rate: Rate,
    /// Until one more would fit; more than nothing.
    pub wait: Duration,
}

/// Limits that hold together, and what they have counted.
#[derive(Debug)]
pub struct RateLimits {
    limits: Box<[Limit]>,
    has_dry_runs: bool,
    /// From which on nanoseconds are counted.
    since: Instant,
}

#[derive(Debug)]
struct Limit {
    said: RateLimit,
    pace: Pace,
    /// By values of the key that are named; their counts are those of the same place in [`Counts::named`].
    named: HashMap<Box<[u8]>, (usize, Rate), RandomState>,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Counts {
    /// Of all, or of what has no key.
    one: AtomicU64,
    named: Box<[AtomicU64]>,
    /// Of the values that are not named.
    others: Option<Keyed>,
}

/// One of a limit's counts, and how fast it may go.
#[derive(Clone, Copy)]
struct Slot<'a> {
    limit: &'a Limit,
    rate: &'a Rate,
    pace: Pace,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    One,
    Named(usize),
    Other(Hash),
    /// For which there is no room.
    Shared,
}

// === impl RateLimits ===

impl RateLimits {
    /// `None`: there are none. What `old` has counted stays: what has the same name and counts by the same goes on, also at another rate.
    pub fn new(said: &[RateLimit], old: Option<&Self>, now: Instant) -> Option<Self> {
        if said.is_empty() {
            return None;
        }
        let since = old.map_or(now, |old| old.since);
        let limit = |said: &RateLimit| {
            let known = old.and_then(|old| old.limits.iter().find(|known| known.said.name == said.name));
            Limit::new(said.clone(), known, nanos(since, now))
        };
        let has_dry_runs = said.iter().any(|said| said.dry_run);
        Some(Self { limits: said.iter().map(limit).collect(), has_dry_runs, since })
    }

    /// Counts a request in all limits that speak of it; `told` hears of each of these by name, whether it had room: of all that had
    /// where all had, else of those that had none.
    ///
    /// # Errors
    /// One of them has no room; then the request is counted in none.
    pub fn take(
        &self,
        asking: &Asking<'_>,
        now: Instant,
        told: impl FnMut(&Arc<str>, bool),
    ) -> Result<(), Refused> {
        self.take_of(|_| true, asking, now, told)
    }

    /// As [`RateLimits::take`], of those `among` which are so named.
    ///
    /// # Errors
    /// As there.
    pub fn take_of(
        &self,
        among: impl Fn(&str) -> bool,
        asking: &Asking<'_>,
        now: Instant,
        mut told: impl FnMut(&Arc<str>, bool),
    ) -> Result<(), Refused> {
        self.take_mode(false, among, asking, now, &mut told)
    }

    /// The same of limits in dry run, of a request that all others have let through; the name of one that has no room for it.
    pub fn would_refuse(
        &self,
        among: impl Fn(&str) -> bool,
        asking: &Asking<'_>,
        now: Instant,
        mut told: impl FnMut(&Arc<str>, bool),
    ) -> Option<Arc<str>> {
        if !self.has_dry_runs {
            return None;
        }
        self.take_mode(true, among, asking, now, &mut told).err().map(|refused| refused.name)
    }

    fn take_mode(
        &self,
        dry_run: bool,
        among: impl Fn(&str) -> bool,
        asking: &Asking<'_>,
        now: Instant,
        told: &mut impl FnMut(&Arc<str>, bool),
    ) -> Result<(), Refused> {
        let now = nanos(self.since, now);
        let of = self.limits.iter().filter(|limit| limit.said.dry_run == dry_run && among(&limit.said.name));
        let slots: SmallVec<[Slot<'_>; 4]> = of.filter_map(|limit| limit.slot(asking, now)).collect();
        // Looked at before any is changed, so that only who meets another at the same moment takes what is given back.
        if slots.len() > 1 {
            let refused = slots.iter().filter_map(|slot| {
                let refused = slot.refused(slot.pace.next(slot.tat(), now).err()?);
                told(&slot.limit.said.name, false);
                Some(refused)
            });
            if let Some(refused) = refused.max_by_key(|refused| refused.wait) {
                return Err(refused);
            }
        }
        for (index, slot) in slots.iter().enumerate() {
            if let Err(wait) = slot.change(now, |tat| slot.pace.next(tat, now)) {
                for taken in &slots[..index] {
                    let _: Result<(), u64> = taken.change(now, |tat| Ok(taken.pace.back(tat)));
                }
                told(&slot.limit.said.name, false);
                return Err(slot.refused(wait));
            }
        }
        slots.iter().for_each(|slot| told(&slot.limit.said.name, true));
        Ok(())
    }

    /// How many keys have a count of their own.
    #[cfg(test)]
    pub(super) fn keys(&self) -> usize {
        self.limits.iter().filter_map(|limit| limit.counts.others.as_ref()).map(Keyed::len).sum()
    }
}

fn nanos(since: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(since).as_nanos()).unwrap_or(u64::MAX)
}

// === impl Limit ===

impl Limit {
    fn new(said: RateLimit, known: Option<&Self>, now: u64) -> Self {
        let pace = Pace::new(&said.rate);
        let mut named: HashMap<Box<[u8]>, (usize, Rate), RandomState> = HashMap::default();
        for (values, rate) in &said.overrides {
            for value in values {
                let next = named.len();
                named.entry(value.as_bytes().into()).or_insert((next, *rate));
            }
        }
        let known = known.filter(|known| known.said.key == said.key);
        let counts = match known {
            Some(known) if known.said.rate == said.rate && known.named == named => Arc::clone(&known.counts),
            known => Arc::new(Counts::new(&said.key, &named, pace, known, now)),
        };
        Self { said, pace, named, counts }
    }

    /// Where a request is counted; `None`: the limit does not speak of it.
    fn slot(&self, asking: &Asking<'_>, now: u64) -> Option<Slot<'_>> {
        let Asking { asked, identity, port } = asking;
        let RateLimit { headers, key, ports, .. } = &self.said;
        if !ports.is_empty() && !ports.contains(port) {
            return None;
        }
        // Nobody gets around a limit by what is too long to be looked at.
        if !headers.iter().all(|header| header.describes(asked).unwrap_or(true)) {
            return None;
        }
        Some(match key {
            Key::All => self.by(None, now),
            Key::Identity => self.by(identity.map(|id| id.as_str().as_bytes()), now),
            Key::Header(name) => asked.with_header(name, |value| self.by(value, now)),
        })
    }

    fn by(&self, value: Option<&[u8]>, now: u64) -> Slot<'_> {
        let of = |place| Slot { limit: self, rate: &self.said.rate, pace: self.pace, place };
        let (Some(value), Some(others)) = (value, &self.counts.others) else { return of(Place::One) };
        if let Some((index, rate)) = self.named.get(value) {
            return Slot { limit: self, rate, pace: Pace::new(rate), place: Place::Named(*index) };
        }
        let hash = others.hash(value);
        of(if others.has_room(hash, now) { Place::Other(hash) } else { Place::Shared })
    }
}

// === impl Counts ===

impl Counts {
    /// `known`: of before, at another rate.
    fn new(
        key: &Key,
        named: &HashMap<Box<[u8]>, (usize, Rate), RandomState>,
        pace: Pace,
        known: Option<&Limit>,
        now: u64,
    ) -> Self {
        let moved = |count: &AtomicU64, from: &Pace, to: &Pace| from.moved_to(to, count.load(Relaxed), now);
        let one = known.map_or(0, |known| moved(&known.counts.one, &known.pace, &pace));
        let mut counts: Box<[AtomicU64]> = named.iter().map(|_| AtomicU64::new(0)).collect();
        for (value, (index, rate)) in named {
            let before = known.and_then(|known| {
                let (index, rate) = known.named.get(value)?;
                Some((known.counts.named.get(*index)?, Pace::new(rate)))
            });
            if let (Some((before, from)), Some(count)) = (before, counts.get_mut(*index)) {
                *count.get_mut() = moved(before, &from, &Pace::new(rate));
            }
        }
        let others = match (key, known.and_then(|known| Some((&known.pace, known.counts.others.as_ref()?)))) {
            (Key::All, _) => None,
            (_, None) => Some(Keyed::default()),
            (_, Some((from, others))) => Some(others.map(|tat| from.moved_to(&pace, tat, now))),
        };
        Self { one: AtomicU64::new(one), named: counts, others }
    }
}

// === impl Slot ===

impl Slot<'_> {
    fn refused(&self, wait: u64) -> Refused {
        let name = Arc::clone(&self.limit.said.name);
        Refused { name, rate: *self.rate, wait: Duration::from_nanos(wait) }
    }

    fn tat(&self) -> u64 {
        match (self.place, &self.limit.counts.others) {
            (Place::Other(hash), Some(others)) => others.get(hash),
            _ => self.atomic().map_or(0, |count| count.load(Relaxed)),
        }
    }

    /// Changes the count; without a new one it stays.
    fn change<E>(&self, now: u64, mut change: impl FnMut(u64) -> Result<u64, E>) -> Result<(), E> {
        if let (Place::Other(hash), Some(others)) = (self.place, &self.limit.counts.others)
            && let Some(changed) = others.update(hash, now, &mut change)
        {
            return changed;
        }
        let Some(count) = self.atomic() else { return Ok(()) };
        let mut tat = count.load(Relaxed);
        loop {
            match count.compare_exchange_weak(tat, change(tat)?, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => tat = other,
            }
        }
    }

    /// `None` where there is none of that place, which is never.
    fn atomic(&self) -> Option<&AtomicU64> {
        let counts = &*self.limit.counts;
        match self.place {
            Place::One => Some(&counts.one),
            Place::Named(index) => counts.named.get(index),
            Place::Other(_) | Place::Shared => counts.others.as_ref().map(|others| &others.shared),
        }
    }
}
