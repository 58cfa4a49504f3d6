//! Cells by their labels, found again without building anything: a look-up hashes the values and compares them where
//! they lie, those of the last first.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::labels::{self, Key};

/// One worker's cells of one kind. Locked by their own thread when looking up, and for a moment by a scrape.
#[derive(Debug)]
pub(super) struct Table<T> {
    hasher: RandomState,
    entries: Mutex<Entries<T>>,
}

#[derive(Debug)]
struct Entries<T> {
    by_hash: HashMap<u64, Vec<Entry<T>>, RandomState>,
    count: usize,
    /// What was asked for last, which most often is asked for next.
    last: Option<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    key: Arc<[u8]>,
    cells: Arc<T>,
}

// === impl Table ===

impl<T> Default for Table<T> {
    fn default() -> Self {
        let entries = Entries { by_hash: HashMap::default(), count: 0, last: None };
        Self { hasher: RandomState::default(), entries: Mutex::new(entries) }
    }
}

impl<T> Table<T> {
    /// The cells of these values. Where there are none yet, `make` is told the key and how many there are of others, and
    /// makes them; `None`: there is no room.
    #[inline]
    pub(super) fn get<const N: usize>(
        &self,
        values: [&str; N],
        make: impl FnOnce(&[u8], usize) -> Option<Arc<T>>,
    ) -> Option<Arc<T>> {
        let mut entries = self.entries.lock();
        if let Some(last) = entries.last.as_ref().filter(|last| is(&last.key, &values)) {
            return Some(Arc::clone(&last.cells));
        }
        let hash = self.hash(values.iter().map(|value| value.as_bytes()));
        let known = entries.by_hash.get(&hash).into_iter().flatten().find(|entry| is(&entry.key, &values));
        match known {
            Some(entry) => {
                let cells = Arc::clone(&entry.cells);
                entries.last = Some(Entry { key: Arc::clone(&entry.key), cells: Arc::clone(&cells) });
                Some(cells)
            }
            None => self.make(&mut entries, &labels::key(values), make),
        }
    }

    /// New cells, unless the key, cut and cleaned, is known after all.
    #[cold]
    fn make(
        &self,
        entries: &mut Entries<T>,
        key: &Key,
        make: impl FnOnce(&[u8], usize) -> Option<Arc<T>>,
    ) -> Option<Arc<T>> {
        let hash = self.hash(labels::parts(key));
        let known = entries.by_hash.get(&hash).into_iter().flatten().find(|entry| *entry.key == **key);
        if let Some(entry) = known {
            return Some(Arc::clone(&entry.cells));
        }
        let cells = make(key, entries.count)?;
        let entry = Entry { key: Arc::from(&**key), cells: Arc::clone(&cells) };
        entries.by_hash.entry(hash).or_default().push(entry);
        entries.count += 1;
        Some(cells)
    }

    fn hash<'a>(&self, values: impl Iterator<Item = &'a [u8]>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for value in values {
            hasher.write(value);
            hasher.write_u8(labels::SEPARATOR);
        }
        hasher.finish()
    }

    /// Every key and its cells. The lock is held for as long as it takes to copy pointers to them.
    pub(super) fn list(&self) -> Vec<(Arc<[u8]>, Arc<T>)> {
        let entries = self.entries.lock();
        let all = entries.by_hash.values().flatten();
        all.map(|entry| (Arc::clone(&entry.key), Arc::clone(&entry.cells))).collect()
    }

    /// Calls `each` with every key and its cells.
    pub(super) fn each(&self, mut each: impl FnMut(&[u8], &T)) {
        for entry in self.entries.lock().by_hash.values().flatten() {
            each(&entry.key, &entry.cells);
        }
    }
}

/// Whether a key is that of `values`, none of which needs to be cut or cleaned.
fn is<const N: usize>(key: &[u8], values: &[&str; N]) -> bool {
    let rest = values.iter().try_fold(key, |key, value| match key.strip_prefix(value.as_bytes())? {
        [labels::SEPARATOR, rest @ ..] => Some(rest),
        _ => None,
    });
    rest.is_some_and(<[u8]>::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_again_also_those_that_are_cut_or_cleaned() {
        let table = Table::<u8>::default();
        let get = |values: [&str; 2]| table.get(values, |_, count| u8::try_from(count).ok().map(Arc::new));
        let long = "x".repeat(2000);
        let sets = [["a", "b"], ["ab", ""], ["", "ab"], [&long, "y"], ["tab\t", "z"]];
        for (index, values) in sets.into_iter().enumerate() {
            assert_eq!(usize::from(*get(values).unwrap()), index, "{values:?} is new");
        }
        for (index, values) in sets.into_iter().enumerate() {
            assert_eq!(usize::from(*get(values).unwrap()), index, "{values:?} is known");
        }
        let mut keys = 0;
        table.each(|_, _| keys += 1);
        assert_eq!(keys, sets.len());
        assert!(table.get(["no", "room"], |_, _| None).is_none());
        table.each(|_, _| keys += 1);
        assert_eq!(keys, 2 * sets.len(), "what has no room is not kept");
    }
}
