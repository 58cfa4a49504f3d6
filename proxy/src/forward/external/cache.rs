//! Answers that hold for the same question for a while.
//!
//! Bounded, and a worker's own: one that is full forgets what it has known longest. Only what an authorizer has said is kept, never that it has
//! said nothing; and nothing of it once the policies have changed.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::answer::Decision;

/// A digest of all that makes a question the same: nobody finds another with it.
pub(super) type Key = [u8; 32];

/// So many answers one worker keeps.
const MOST: usize = 4096;
/// How long, in nanoseconds, it is not said again that authorizers do not answer.
const QUIET: u64 = 10_000_000_000;

/// One worker's.
#[derive(Debug, Default)]
pub(in crate::forward) struct Cache {
    kept: Mutex<Kept>,
    /// When it was last said that an authorizer does not answer, by the proxy's clock; 0: never.
    complained: AtomicU64,
}

#[derive(Debug, Default)]
struct Kept {
    /// Of the policies whose answers these are.
    generation: u64,
    answers: HashMap<Key, Answer, RandomState>,
    /// Oldest first; what was answered again is there again.
    order: VecDeque<(Key, Instant)>,
}

#[derive(Debug)]
struct Answer {
    until: Instant,
    decision: Arc<Decision>,
}

// === impl Cache ===

impl Cache {
    /// What was answered, if that holds `now` under the policies of this generation.
    pub(super) fn get(&self, key: &Key, generation: u64, now: Instant) -> Option<Arc<Decision>> {
        let mut kept = self.kept.lock();
        kept.of(generation);
        let answer = kept.answers.get(key).filter(|answer| answer.until > now)?;
        Some(Arc::clone(&answer.decision))
    }

    /// Keeps an answer `until` then.
    pub(super) fn put(&self, key: Key, generation: u64, until: Instant, decision: Arc<Decision>) {
        let mut kept = self.kept.lock();
        kept.of(generation);
        while kept.order.len() >= MOST {
            let Some((oldest, ended)) = kept.order.pop_front() else { break };
            // One that was answered again since stays.
            if kept.answers.get(&oldest).is_some_and(|answer| answer.until == ended) {
                kept.answers.remove(&oldest);
            }
        }
        kept.order.push_back((key, until));
        kept.answers.insert(key, Answer { until, decision });
    }

    /// Logs that an authorizer does not answer, not too often. `now`: by the proxy's clock.
    pub(super) fn complain(&self, policy: &str, detail: &str, now: u64) {
        let last = self.complained.load(Relaxed);
        if last == 0 || now.saturating_sub(last) >= QUIET {
            self.complained.store(now.max(1), Relaxed);
            tracing::warn!(policy, detail, "an authorizer cannot be asked");
        }
    }
}

// === impl Kept ===

impl Kept {
    fn of(&mut self, generation: u64) {
        if self.generation != generation {
            *self = Self { generation, ..Self::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::answer::Changes;
    use super::*;

    fn key(number: usize) -> Key {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&(number as u64).to_be_bytes());
        key
    }

    fn allowed() -> Arc<Decision> {
        Arc::new(Decision::Allowed(Arc::new(Changes::default())))
    }

    #[test]
    fn an_answer_holds_for_its_time_and_its_policies() {
        let (cache, now) = (Cache::default(), Instant::now());
        cache.put(key(1), 7, now + Duration::from_secs(1), allowed());
        assert!(cache.get(&key(1), 7, now).is_some());
        assert!(cache.get(&key(2), 7, now).is_none());
        assert!(cache.get(&key(1), 7, now + Duration::from_secs(1)).is_none());
        assert!(cache.get(&key(1), 8, now).is_none());
        assert!(cache.get(&key(1), 7, now).is_none(), "what has changed back has changed");
    }

    #[test]
    fn no_more_are_kept_than_there_is_room_for_and_the_newest_stay() {
        let (cache, now) = (Cache::default(), Instant::now());
        let until = |number: usize| now + Duration::from_secs(number as u64 + 1);
        for number in 0..3 * MOST {
            cache.put(key(number), 1, until(number), allowed());
        }
        let kept = |number: usize| cache.get(&key(number), 1, now).is_some();
        assert!(kept(3 * MOST - 1) && kept(2 * MOST) && !kept(2 * MOST - 1));
        // One that is answered again and again is kept, once.
        for number in 0..3 * MOST {
            cache.put(key(1), 1, until(number), allowed());
        }
        assert!(kept(1));
        let held = cache.kept.lock();
        assert!(held.answers.len() <= MOST && held.order.len() <= MOST);
    }
}
