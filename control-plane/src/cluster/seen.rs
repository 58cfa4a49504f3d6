//! What a watch has told so far: complete once the first list is, and again after each list that was begun anew.

use std::collections::BTreeMap;

use kube::runtime::watcher::Event;

/// By key, what matters of each object.
#[derive(Debug)]
pub(super) struct Seen<K, V> {
    all: BTreeMap<K, V>,
    /// A list that is under way; what it does not name is gone when it is done.
    listed: Option<BTreeMap<K, V>>,
    complete: bool,
}

impl<K, V> Default for Seen<K, V> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), listed: None, complete: false }
    }
}

// === impl Seen ===

impl<K: Ord, V> Seen<K, V> {
    /// Takes in an event; `read` says what matters of an object, and nothing of one that does not. Says whether anything may have changed.
    pub(super) fn take_in<O>(&mut self, event: Event<O>, read: impl Fn(O) -> (K, Option<V>)) -> bool {
        match event {
            Event::Init => self.listed = Some(BTreeMap::new()),
            Event::InitApply(object) => {
                if let (key, Some(value)) = read(object) {
                    self.listed.get_or_insert_default().insert(key, value);
                }
            }
            Event::InitDone => {
                self.all = self.listed.take().unwrap_or_default();
                self.complete = true;
                return true;
            }
            Event::Apply(object) => {
                match read(object) {
                    (key, Some(value)) => self.all.insert(key, value),
                    (key, None) => self.all.remove(&key),
                };
                return true;
            }
            Event::Delete(object) => {
                self.all.remove(&read(object).0);
                return true;
            }
        }
        false
    }

    /// Everything there is; nothing can be told by what is absent until [`Seen::is_complete`].
    pub(super) fn all(&self) -> &BTreeMap<K, V> {
        &self.all
    }

    /// The same, for what was written since.
    pub(super) fn all_mut(&mut self) -> &mut BTreeMap<K, V> {
        &mut self.all
    }

    /// Whether the first list is done.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }
}
