//! What is computed once for a set of endpoints, so that a pick need not: by whose weight it is whose turn, and which
//! endpoint a hash belongs to.
//!
//! Members are told by their numbers; what a name or key hashes to is the same in every proxy, and depends on nothing but
//! the endpoint's own name and weight, so that a change of one moves little of what goes to the others (R15).

use super::draws::{GOLDEN, mix};

/// Points of an endpoint of weight 100 on a ring, unless there would be more than [`MAX_POINTS`].
const POINTS: u64 = 200;
const MAX_POINTS: u64 = 32_768;
/// Entries of a Maglev table: a prime.
const ENTRIES: u64 = 65_537;
/// Turns of one round of unequal weights, at most, but for one each.
const MAX_TURNS: u64 = 2_048;

/// Whose turn it is, for unequal weights.
#[derive(Debug)]
pub(super) struct Wheel(Box<[u32]>);

/// Draws by weight.
#[derive(Debug)]
pub(super) struct Shares {
    /// Of all up to here.
    sums: Box<[u64]>,
}

/// Consistent hashing by a ring (as ketama).
#[derive(Debug)]
pub(super) struct Ring(Box<[(u64, u32)]>);

/// Consistent hashing by a table that all endpoints fill in turn (Maglev, NSDI 2016, §3.4).
#[derive(Debug)]
pub(super) struct Maglev(Box<[u32]>);

// === impl Wheel ===

impl Wheel {
    /// Each as often as its weight says, spread evenly.
    pub(super) fn new(weights: &[u32]) -> Self {
        let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, *weight)).max(1);
        let total: u64 = weights.iter().map(|weight| u64::from(*weight / divisor)).sum();
        let scale = (MAX_TURNS as f64 / total.max(1) as f64).min(1.0);
        let mut turns: Vec<(f64, u32)> = Vec::new();
        for (i, weight) in (0..).zip(weights) {
            let n = (f64::from(*weight / divisor) * scale).round().max(1.0);
            turns.extend((0..n as u32).map(|k| ((f64::from(k) + 0.5) / n, i)));
        }
        turns.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        Self(turns.into_iter().map(|(_, i)| i).collect())
    }

    pub(super) fn at(&self, turn: usize) -> usize {
        self.0.get(turn % self.0.len().max(1)).map_or(0, |i| *i as usize)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

// === impl Shares ===

impl Shares {
    pub(super) fn new(weights: &[u32]) -> Self {
        let mut sum = 0;
        let sums = weights.iter().map(|weight| {
            sum += u64::from(*weight);
            sum
        });
        Self { sums: sums.collect() }
    }

    pub(super) fn draw(&self, random: u64) -> usize {
        let total = self.sums.last().copied().unwrap_or_default();
        let at = ((u128::from(random) * u128::from(total)) >> 64) as u64;
        self.sums.partition_point(|sum| *sum <= at)
    }
}

// === impl Ring ===

impl Ring {
    pub(super) fn new(members: &[(u64, u32)]) -> Self {
        let of = |weight: u32, halved: u32| ((u64::from(weight) * POINTS / 100) >> halved).max(1);
        let total = |halved| members.iter().map(|(_, weight)| of(*weight, halved)).sum::<u64>();
        // By halves, so that with one endpoint more or less it is mostly the same.
        let fits = |halved: &u32| total(*halved) <= MAX_POINTS.max(members.len() as u64);
        let halved = (0..32).find(fits).unwrap_or(32);
        let mut points: Vec<(u64, u32)> = Vec::new();
        for (i, (name, weight)) in (0..).zip(members) {
            let point = |k: u64| (mix(name.wrapping_add(k.wrapping_mul(GOLDEN))), i);
            points.extend((1..=of(*weight, halved)).map(point));
        }
        points.sort_unstable();
        Self(points.into())
    }

    /// The endpoints that a key belongs to, the first first; some more than once.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = usize> {
        let at = self.0.partition_point(|(point, _)| *point < key);
        self.0[at..].iter().chain(&self.0[..at]).map(|(_, i)| *i as usize)
    }
}

// === impl Maglev ===

impl Maglev {
    pub(super) fn new(members: &[(u64, u32)]) -> Self {
        const FREE: u32 = u32::MAX;
        let heaviest = f64::from(members.iter().map(|(_, weight)| *weight).max().unwrap_or(1).max(1));
        let mut table = vec![FREE; ENTRIES as usize];
        // Where each looks next, how far it goes on from there, and how many turns it has saved up.
        let mut filling: Vec<(u64, u64, f64)> = members
            .iter()
            .map(|(name, _)| {
                (mix(name ^ GOLDEN) % ENTRIES, mix(name.wrapping_add(GOLDEN)) % (ENTRIES - 1) + 1, 0.0)
            })
            .collect();
        let mut free = if members.is_empty() { 0 } else { ENTRIES };
        while free > 0 {
            for (i, ((at, skip, saved), (_, weight))) in (0..).zip(filling.iter_mut().zip(members)) {
                *saved += f64::from((*weight).max(1)) / heaviest;
                if *saved < 1.0 || free == 0 {
                    continue;
                }
                *saved -= 1.0;
                while table[*at as usize] != FREE {
                    *at = (*at + *skip) % ENTRIES;
                }
                table[*at as usize] = i;
                free -= 1;
            }
        }
        if members.is_empty() {
            table.clear();
        }
        Self(table.into())
    }

    /// The endpoints that a key belongs to, the first first; some more than once.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = usize> {
        let mut key = key;
        std::iter::from_fn(move || {
            let at = (key % ENTRIES) as usize;
            key = mix(key.wrapping_add(GOLDEN));
            self.0.get(at).map(|i| *i as usize)
        })
    }
}
