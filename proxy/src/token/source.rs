//! Keys that are fetched: the last good ones, and who waits for others.
//!
//! Read by workers, without a lock; written by `control/jwks.rs`, which alone does I/O. A flood of tokens of keys that nobody has leads to one fetch
//! in [`AGAIN`]: more would make this proxy a weapon against the issuer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tulle_certs::jwks::KeySet;

use super::RemoteSpec;

/// How long a request waits for the first keys, or for others that may have its own.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long after one fetch that was asked for the next may be.
const AGAIN: Duration = Duration::from_secs(10);

/// Where keys come from, and those that came last.
#[derive(Debug)]
pub struct Source {
    pub spec: RemoteSpec,
    keys: ArcSwapOption<KeySet>,
    /// How many fetches are over.
    fetched: watch::Sender<u64>,
    wanted: Notify,
    /// Others are asked for, and that fetch is not over.
    awaited: AtomicBool,
    asked: Mutex<Option<Instant>>,
}

// === impl Source ===

impl Source {
    pub fn new(spec: RemoteSpec) -> Self {
        Self {
            spec,
            keys: ArcSwapOption::empty(),
            fetched: watch::Sender::new(0),
            wanted: Notify::new(),
            awaited: AtomicBool::new(false),
            asked: Mutex::new(None),
        }
    }

    /// The last good ones.
    pub fn current(&self) -> Option<Arc<KeySet>> {
        self.keys.load_full()
    }

    /// As [`Source::current`], waiting a moment where nothing has been fetched yet.
    pub(super) async fn keys(&self) -> Option<Arc<KeySet>> {
        if let Some(keys) = self.current() {
            return Some(keys);
        }
        self.after(0).await;
        self.current()
    }

    /// Others than these, if there are any once they have been fetched anew. `None`: there are not, or it was tried a moment ago.
    pub(super) async fn newer(&self, than: &Arc<KeySet>) -> Option<Arc<KeySet>> {
        let other = || self.current().filter(|keys| !Arc::ptr_eq(keys, than));
        if let Some(other) = other() {
            return Some(other);
        }
        let before = *self.fetched.borrow();
        if !self.awaited.load(Ordering::Acquire) {
            if !self.may_ask() {
                return None;
            }
            self.awaited.store(true, Ordering::Release);
            self.wanted.notify_one();
        }
        self.after(before).await;
        other()
    }

    fn may_ask(&self) -> bool {
        let (mut asked, now) = (self.asked.lock(), Instant::now());
        if asked.is_some_and(|asked| now.duration_since(asked) < AGAIN) {
            return false;
        }
        *asked = Some(now);
        true
    }

    /// Waits until more fetches than so many are over, for as long as a request may.
    async fn after(&self, count: u64) {
        let mut fetched = self.fetched.subscribe();
        let over = async {
            while *fetched.borrow_and_update() <= count {
                if fetched.changed().await.is_err() {
                    return;
                }
            }
        };
        // In vain, it goes on with what there is.
        drop(tokio::time::timeout(PATIENCE, over).await);
    }

    /// Resolves when a worker needs other keys than these.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// A fetch is over; `None`: it has failed, and the last good keys stay.
    pub fn put(&self, keys: Option<KeySet>) {
        if let Some(keys) = keys
            && self.current().is_none_or(|known| *known != keys)
        {
            self.keys.store(Some(Arc::new(keys)));
        }
        self.awaited.store(false, Ordering::Release);
        self.fetched.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{remote, set};
    use super::*;

    fn source() -> Arc<Source> {
        Arc::new(Source::new(remote()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_keys_are_waited_for_and_not_for_ever() {
        let source = source();
        let began = Instant::now();
        assert!(source.keys().await.is_none());
        assert_eq!(began.elapsed(), PATIENCE);
        let (keys, ()) = tokio::join!(source.keys(), async { source.put(Some(set(1))) });
        assert!(keys.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_after_a_fetch_that_failed_is_told_at_once() {
        let source = source();
        source.put(None);
        let began = Instant::now();
        assert!(source.keys().await.is_none());
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_fetch_keeps_the_last_good_keys_and_the_same_set_is_the_same_object() {
        let source = source();
        source.put(Some(set(1)));
        let first = source.current().unwrap();
        source.put(None);
        source.put(Some(set(1)));
        assert!(Arc::ptr_eq(&first, &source.current().unwrap()));
        source.put(Some(set(2)));
        assert!(!Arc::ptr_eq(&first, &source.current().unwrap()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_unknown_keys_is_one_fetch() {
        let source = source();
        source.put(Some(set(1)));
        let keys = source.current().unwrap();
        let counted = Arc::new(Mutex::new(0));
        let fetcher = tokio::spawn({
            let (source, counted) = (Arc::clone(&source), Arc::clone(&counted));
            async move {
                loop {
                    source.wanted().await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    *counted.lock() += 1;
                    source.put(Some(set(1)));
                }
            }
        });
        let flood = (0..1000).map(|_| source.newer(&keys));
        assert!(futures_util::future::join_all(flood).await.iter().all(Option::is_none));
        let began = Instant::now();
        assert!(source.newer(&keys).await.is_none());
        assert_eq!((*counted.lock(), began.elapsed()), (1, Duration::ZERO), "and the next is not waited for");
        tokio::time::advance(AGAIN).await;
        assert!(source.newer(&keys).await.is_none());
        assert_eq!(*counted.lock(), 2);
        fetcher.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_new_is_there_once_it_has_been_fetched() {
        let source = source();
        source.put(Some(set(1)));
        let keys = source.current().unwrap();
        let fetch = async {
            source.wanted().await;
            source.put(Some(set(2)));
        };
        let (newer, ()) = tokio::join!(source.newer(&keys), fetch);
        assert!(newer.is_some_and(|newer| *newer == set(2)));
    }
}
