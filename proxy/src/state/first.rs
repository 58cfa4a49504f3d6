//! Who speaks first on a port, as far as it was seen.

use std::collections::HashMap;
use std::hash::Hash;

use foldhash::fast::RandomState;
use parking_lot::Mutex;

/// Who said the first word on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    Client,
    /// As with SMTP, MySQL or FTP: a client that knows this waits.
    Server,
}

/// Who was last seen to speak first, by port or address. Bounded: what is forgotten is only seen again.
#[derive(Debug)]
pub struct Spoken<K>(Mutex<HashMap<K, First, RandomState>>);

/// Ports or addresses that are remembered.
const MAX: usize = 1024;

// === impl Spoken ===

impl<K> Default for Spoken<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Copy + Eq + Hash> Spoken<K> {
    /// Who spoke first there when that was last seen.
    pub fn first(&self, at: K) -> Option<First> {
        self.0.lock().get(&at).copied()
    }

    /// What is seen now replaces what was seen before.
    pub fn saw(&self, at: K, first: First) {
        let mut seen = self.0.lock();
        if seen.len() >= MAX && !seen.contains_key(&at) {
            let any = seen.keys().next().copied();
            any.and_then(|any| seen.remove(&any));
        }
        seen.insert(at, first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_now_replaces_what_was_seen_before_and_no_more_is_kept_than_the_bound() {
        let spoken = Spoken::default();
        assert_eq!(spoken.first(1), None);
        for first in [First::Client, First::Server] {
            spoken.saw(1, first);
            assert_eq!(spoken.first(1), Some(first));
        }
        for port in 0..2 * MAX {
            spoken.saw(port, First::Client);
            assert_eq!(spoken.first(port), Some(First::Client));
        }
        assert_eq!(spoken.0.lock().len(), MAX);
    }
}
