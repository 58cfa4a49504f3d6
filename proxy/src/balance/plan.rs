//! The pick where a policy, weights or zones say more than the default: one of the algorithms, for a set of endpoints.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;

use super::draws::{Draws, mix, unit};
use super::group::{Group, Seen};
use super::settings::{Algorithm, HashKey, Policy, WarmUp};
use super::standing::{GROWING, LOCAL, PROBATION};
use super::table::{Maglev, Ring, Shares, Wheel};
use super::zones::WHOLE;

/// How one of a port's endpoints is chosen. Made when the endpoints or the policy change; its larger tables at the first
/// pick, or at once if the plan before it had its own.
#[derive(Debug)]
pub struct Plan {
    algorithm: Algorithm,
    growth: WarmUp,
    zones: bool,
    /// What a request is hashed by; empty where it is not.
    keys: Box<[HashKey]>,
    /// The own zone's, if it is preferred, and all others.
    sides: [Side; 2],
}

#[derive(Debug, Default)]
struct Side {
    /// Numbers of endpoints, and for each its name's hash and its weight.
    numbers: Vec<u32>,
    members: Vec<(u64, u32)>,
    table: OnceLock<Table>,
}

#[derive(Debug)]
enum Table {
    /// All weights are the same.
    Even,
    Shares(Shares),
    Wheel(Wheel),
    Ring(Ring),
    Maglev(Maglev),
}

/// Draws, before all endpoints are looked at.
const TRIES: usize = 8;
/// Steps on a ring or table, likewise.
const STEPS: usize = 256;

/// One pick's circumstances.
struct Pick<'p, L> {
    plan: &'p Plan,
    group: &'p Group,
    look: L,
    now: u64,
    /// Also what is unhealthy or ejected.
    panicking: bool,
}

// === impl Plan ===

impl Plan {
    /// For endpoints by the hashes of their names, in order. `None`: the default pick does.
    pub fn new<'a>(policy: &Policy, members: impl Iterator<Item = (u64, Seen<'a>)>) -> Option<Self> {
        let zones = policy.balancer.zones.is_some();
        let mut sides = [Side::default(), Side::default()];
        for (i, (name, seen)) in (0..).zip(members) {
            let side = &mut sides[usize::from(zones && !seen.standing.has(LOCAL))];
            side.numbers.push(i);
            side.members.push((name, seen.weight.max(1)));
        }
        let all = sides.iter().flat_map(|side| &side.members);
        let is_even = all.clone().zip(all.skip(1)).all(|(a, b)| a.1 == b.1);
        if *policy == Policy::default() && is_even {
            return None;
        }
        let algorithm = policy.balancer.algorithm;
        let keys = if policy.balancer.is_by_hash() { policy.balancer.hash.clone() } else { Box::default() };
        Some(Self { algorithm, growth: policy.growth(), zones, keys, sides })
    }

    /// What a request's key is made of, for [`Plan::pick`].
    pub fn keys(&self) -> &[HashKey] {
        &self.keys
    }

    /// Makes the tables, if those of `old` were used.
    pub fn prepare(&self, old: &Self) {
        for (side, old) in self.sides.iter().zip(&old.sides) {
            if old.table.get().is_some() {
                side.table(self.algorithm);
            }
        }
    }

    /// The number of the endpoint that takes a request; `None` if all are excluded, which `look` says of one by `None`. `key`:
    /// the hash of what the request goes by. Those not ready come last, and before them those that are unhealthy or ejected.
    pub fn pick<'a>(
        &self,
        group: &Group,
        look: impl Fn(usize) -> Option<Seen<'a>>,
        key: Option<u64>,
        now: u64,
        random: u64,
    ) -> Option<usize> {
        let mut draws = Draws(random);
        let pick = Pick { plan: self, group, look, now, panicking: group.is_panicking() };
        let first = usize::from(self.zones && !pick.is_local(key, &mut draws));
        let picked = [first, 1 - first].into_iter().find_map(|side| pick.side(side, key, &mut draws));
        picked.or_else(|| {
            let any = |ready| {
                let all = self.sides.iter().flat_map(Side::named);
                pick.scan(all, key, &mut draws, |seen| seen.ready == ready)
            };
            [true, false].into_iter().find_map(any)
        })
    }
}

// === impl Pick ===

impl<'a, L: Fn(usize) -> Option<Seen<'a>>> Pick<'_, L> {
    fn is_local(&self, key: Option<u64>, draws: &mut Draws) -> bool {
        let share = self.group.local_share.load(Relaxed);
        // The same key stays in the same zone.
        match key {
            Some(key) => unit(mix(!key)) < share as f64 / WHOLE,
            None => self.group.owed.takes(share, draws.next()),
        }
    }

    fn side(&self, number: usize, key: Option<u64>, draws: &mut Draws) -> Option<usize> {
        let side = &self.plan.sides[number];
        if side.numbers.is_empty() {
            return None;
        }
        let table = side.table(self.plan.algorithm);
        let picked = match (table, key) {
            (Table::Ring(ring), Some(key)) => self.hashed(side, key, ring.from(key)),
            (Table::Maglev(maglev), Some(key)) => self.hashed(side, key, maglev.from(key)),
            _ => match self.plan.algorithm {
                Algorithm::PeakEwma => self.better(side, table, draws, |one, other| {
                    let cost = |seen: &Seen<'_>| seen.load.cost(self.now, f64::from(seen.weight) / 100.0);
                    cost(one).is_less_than(cost(other))
                }),
                Algorithm::LeastRequest => self.better(side, table, draws, |one, other| {
                    let busy = |seen: &Seen<'_>| f64::from(seen.load.in_flight()) / f64::from(seen.weight);
                    busy(one) < busy(other)
                }),
                Algorithm::RoundRobin => self.turn(number, table, draws),
                Algorithm::Random | Algorithm::RingHash | Algorithm::Maglev => {
                    (0..TRIES).find_map(|_| self.drawn(side, table, draws)).map(|(i, ..)| i)
                }
            },
        };
        picked.or_else(|| {
            // What is on probation, and was just tried, only where there is nobody else.
            let takes = |anyway| {
                self.scan(side.named(), key, draws, |seen| {
                    self.may_take(seen) && (anyway || !self.holds_back(seen))
                })
            };
            [false, true].into_iter().find_map(takes)
        })
    }

    fn holds_back(&self, seen: &Seen<'_>) -> bool {
        !self.panicking && seen.standing.is_held_back(seen.load.in_flight() == 0, self.now)
    }

    fn may_take(&self, seen: &Seen<'_>) -> bool {
        if self.panicking { seen.ready } else { seen.may_take() }
    }

    /// Whether an endpoint takes this request: a part of them, while its share grows; one at a time, while it is on probation.
    /// The second: it has to be tried.
    fn admits(&self, seen: &Seen<'_>, chance: impl FnOnce() -> f64) -> (bool, bool) {
        let flags = seen.standing.flags();
        if flags & (PROBATION | GROWING) == 0 || self.panicking {
            return (self.may_take(seen), false);
        }
        if !self.may_take(seen) {
            return (false, false);
        }
        if flags & PROBATION != 0 {
            let tried = seen.standing.may_try(seen.load.in_flight() == 0, self.now);
            return (tried, tried);
        }
        (chance() < seen.standing.share(flags, self.now, self.plan.growth), false)
    }

    /// One drawn by weight, unless it is out.
    fn drawn(&self, side: &Side, table: &Table, draws: &mut Draws) -> Option<(usize, Seen<'a>, bool)> {
        let at = match table {
            Table::Shares(shares) => shares.draw(draws.next()),
            _ => draws.below(side.numbers.len()),
        };
        let i = *side.numbers.get(at)? as usize;
        let seen = (self.look)(i)?;
        let (admitted, tried) = self.admits(&seen, || unit(draws.next()));
        admitted.then_some((i, seen, tried))
    }

    /// The better of two, drawn by weight.
    fn better(
        &self,
        side: &Side,
        table: &Table,
        draws: &mut Draws,
        is_better: impl Fn(&Seen<'a>, &Seen<'a>) -> bool,
    ) -> Option<usize> {
        let mut first = None;
        let is_even = matches!(table, Table::Even);
        for _ in 0..TRIES {
            let Some((i, seen, tried)) = self.drawn(side, table, draws) else { continue };
            if tried {
                return Some(i);
            }
            match first {
                None => first = Some((i, seen)),
                // Of equals, two different ones; else each as often as its weight says, also twice.
                Some((one, _)) if one == i && is_even && side.numbers.len() > 1 => {}
                Some((one, other)) => return Some(if is_better(&seen, &other) { i } else { one }),
            }
        }
        first.map(|(i, _)| i)
    }

    /// Whose turn it is.
    fn turn(&self, number: usize, table: &Table, draws: &mut Draws) -> Option<usize> {
        let side = &self.plan.sides[number];
        let round = if let Table::Wheel(wheel) = table { wheel.len() } else { side.numbers.len() };
        (0..round.min(4 * STEPS)).find_map(|_| {
            let turn = self.group.turn[number].fetch_add(1, Relaxed);
            let at = if let Table::Wheel(wheel) = table { wheel.at(turn) } else { turn % side.numbers.len() };
            let i = *side.numbers.get(at)? as usize;
            let seen = (self.look)(i)?;
            self.admits(&seen, || unit(draws.next())).0.then_some(i)
        })
    }

    /// The first of those that a key belongs to that takes it.
    fn hashed(&self, side: &Side, key: u64, order: impl Iterator<Item = usize>) -> Option<usize> {
        order.take(STEPS).find_map(|at| {
            let (i, (name, _)) = (*side.numbers.get(at)? as usize, *side.members.get(at)?);
            let seen = (self.look)(i)?;
            // What has come to an endpoint whose share grows stays there.
            self.admits(&seen, || unit(mix(key ^ name))).0.then_some(i)
        })
    }

    /// One of all, told by their hashed names, that `takes`, by weight and share; the same for the same key, whatever their order.
    fn scan(
        &self,
        all: impl Iterator<Item = (usize, u64)>,
        key: Option<u64>,
        draws: &mut Draws,
        takes: impl Fn(&Seen<'a>) -> bool,
    ) -> Option<usize> {
        let (mut total, mut best) = (0.0, None);
        let mut most = 0;
        for (i, name) in all {
            let Some(seen) = (self.look)(i).filter(|seen| takes(seen)) else { continue };
            if let Some(key) = key {
                let rank = mix(key ^ name);
                if best.is_none() || rank > most {
                    (most, best) = (rank, Some(i));
                }
                continue;
            }
            let flags = seen.standing.flags();
            let weight = f64::from(seen.weight) * seen.standing.share(flags, self.now, self.plan.growth);
            total += weight;
            if draws.chance(weight / total) {
                best = Some(i);
            }
        }
        if let Some(seen) = best.and_then(&self.look) {
            seen.standing.tried(self.now);
        }
        best
    }
}

// === impl Side ===

impl Side {
    /// Its endpoints, with the hashes of their names.
    fn named(&self) -> impl Iterator<Item = (usize, u64)> {
        self.numbers.iter().zip(&self.members).map(|(i, (name, _))| (*i as usize, *name))
    }

    fn table(&self, algorithm: Algorithm) -> &Table {
        self.table.get_or_init(|| {
            let weights = || self.members.iter().map(|(_, weight)| *weight).collect::<Vec<_>>();
            let is_even = self.members.windows(2).all(|two| two[0].1 == two[1].1);
            match algorithm {
                Algorithm::RingHash => Table::Ring(Ring::new(&self.members)),
                Algorithm::Maglev => Table::Maglev(Maglev::new(&self.members)),
                _ if is_even => Table::Even,
                Algorithm::RoundRobin => Table::Wheel(Wheel::new(&weights())),
                _ => Table::Shares(Shares::new(&weights())),
            }
        })
    }
}
