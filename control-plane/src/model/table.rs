//! Named values in shards, so that the next snapshot copies only the shards in which something changed.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use foldhash::HashMap;
use foldhash::fast::FixedState;

/// A mesh of 10,000 services then copies some 40 entries for a change.
const SHARDS: usize = 256;

type Shard<V> = Arc<HashMap<Arc<str>, V>>;

/// A map from name to value; a clone shares all of it, and copies a shard when it first writes to it.
#[derive(Debug, Clone)]
pub(super) struct Table<V> {
    shards: Box<[Shard<V>]>,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        let empty = Shard::<V>::default();
        Self { shards: vec![empty; SHARDS].into_boxed_slice() }
    }
}

// === impl Table ===

impl<V: Clone + PartialEq> Table<V> {
    pub(super) fn get(&self, name: &str) -> Option<&V> {
        self.shards.get(shard(name))?.get(name)
    }

    /// Sets or removes; a value equal to the present one leaves that in its place. Says whether there is a difference.
    pub(super) fn set(&mut self, name: String, value: Option<V>) -> bool {
        let Some(shard) = self.shards.get_mut(shard(&name)) else {
            return false;
        };
        if shard.get(name.as_str()) == value.as_ref() {
            return false;
        }
        let entries = Arc::make_mut(shard);
        match value {
            Some(value) => {
                entries.insert(name.into(), value);
            }
            None => {
                entries.remove(name.as_str());
            }
        }
        true
    }

    /// Sets these and removes all others.
    pub(super) fn replace(&mut self, values: impl IntoIterator<Item = (String, Option<V>)>) {
        let mut stale = self.clone();
        for (name, value) in values {
            if value.is_some() {
                stale.set(name.clone(), None);
                self.set(name, value);
            }
        }
        for name in stale.names() {
            self.set(name.to_string(), None);
        }
    }

    pub(super) fn names(&self) -> Vec<Arc<str>> {
        let names = self.shards.iter().flat_map(|shard| shard.keys().cloned());
        let mut names: Vec<Arc<str>> = names.collect();
        names.sort_unstable();
        names
    }
}

impl<V: PartialEq> PartialEq for Table<V> {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&Shard<V>, &Shard<V>)| Arc::ptr_eq(a, b) || a == b;
        self.shards.iter().zip(&other.shards).all(same)
    }
}

fn shard(name: &str) -> usize {
    let mut hasher = FixedState::default().build_hasher();
    hasher.write(name.as_bytes());
    usize::try_from(hasher.finish() % SHARDS as u64).unwrap_or_default()
}
