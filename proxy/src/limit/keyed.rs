//! Counts by key, of which there are never more than so many. Pure: the clock is handed in.
//!
//! A key is known by its hash alone, which is keyed by chance for each process: what clients send is not kept, and nobody can make two
//! of their values meet. What is at rest is forgotten, which changes nothing (see [`pace`](super::pace)). Once there is no room,
//! keys without a count of their own share one: whoever invents keys to get ever new counts is held by that.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;

/// Counts of one limit, at most.
#[cfg(test)]
pub(super) const MAX_KEYS: usize = SHARDS * MAX_IN_SHARD;
/// They are spread over this many locks, so that workers seldom meet.
const SHARDS: usize = 16;
const MAX_IN_SHARD: usize = 625;

/// See the module. A count is a TAT.
#[derive(Debug)]
pub(super) struct Keyed {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    /// Of the keys for which there is no room.
    pub(super) shared: AtomicU64,
}

#[derive(Clone, Debug, Default)]
struct Shard {
    counts: HashMap<u64, u64, foldhash::fast::RandomState>,
    /// Before this time none is at rest.
    until: u64,
}

/// A key, as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hash(u64);

// === impl Keyed ===

impl Default for Keyed {
    fn default() -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self { hasher: RandomState::new(), shards, shared: AtomicU64::new(0) }
    }
}

impl Keyed {
    pub(super) fn hash(&self, key: &[u8]) -> Hash {
        Hash(self.hasher.hash_one(key))
    }

    fn shard(&self, Hash(hash): Hash) -> &Mutex<Shard> {
        &self.shards[hash as usize % SHARDS]
    }

    /// Whether the key has a count, or may get one.
    pub(super) fn has_room(&self, hash: Hash, now: u64) -> bool {
        let mut shard = self.shard(hash).lock();
        shard.counts.contains_key(&hash.0) || shard.has_room(now)
    }

    /// The key's count.
    pub(super) fn get(&self, hash: Hash) -> u64 {
        self.shard(hash).lock().counts.get(&hash.0).copied().unwrap_or(0)
    }

    /// Changes the key's count, which gets one if there is room. `change` gives what it becomes; without that it stays.
    pub(super) fn update<E>(
        &self,
        hash: Hash,
        now: u64,
        change: impl FnOnce(u64) -> Result<u64, E>,
    ) -> Option<Result<(), E>> {
        let mut shard = self.shard(hash).lock();
        if let Some(count) = shard.counts.get_mut(&hash.0) {
            return Some(change(*count).map(|to| *count = to));
        }
        if !shard.has_room(now) {
            return None;
        }
        Some(change(0).map(|to| {
            shard.until = shard.until.min(to);
            shard.counts.insert(hash.0, to);
        }))
    }

    /// The same keys, with other counts.
    pub(super) fn map(&self, mut change: impl FnMut(u64) -> u64) -> Self {
        let shards = std::array::from_fn(|index| {
            let mut shard = self.shards[index].lock().clone();
            shard.counts.values_mut().for_each(|count| *count = change(*count));
            shard.until = 0;
            Mutex::new(shard)
        });
        let shared = AtomicU64::new(change(self.shared.load(std::sync::atomic::Ordering::Relaxed)));
        Self { hasher: self.hasher.clone(), shards, shared }
    }

    /// How many have a count of their own.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().counts.len()).sum()
    }
}

impl Shard {
    /// Whether one more fits, which forgets what is at rest only when it must. Giving back may let one rest earlier than is believed
    /// here: then it is forgotten a little later.
    fn has_room(&mut self, now: u64) -> bool {
        if self.counts.len() >= MAX_IN_SHARD && now >= self.until {
            self.counts.retain(|_, count| *count > now);
            self.until = self.counts.values().copied().min().unwrap_or(u64::MAX);
        }
        self.counts.len() < MAX_IN_SHARD
    }
}
