//! The one drain primitive: a signal that everything which serves watches, and a count of the work that is left.
//!
//! Draining begins once and is never taken back, so that whatever says it first, by whichever way, sets the time at which
//! it must be over. Each connection holds a [`Work`] while it lives; [`Signal::quiet`] waits until there has been none for a
//! while: those who have not heard of the drain still come, and are served. `app` owns the [`Signal`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Starts the drain and waits for its end.
#[derive(Debug)]
pub struct Signal {
    /// Since when.
    draining: watch::Sender<Option<Instant>>,
    work: Arc<watch::Sender<usize>>,
}

/// Sees the drain begin.
#[derive(Clone, Debug)]
pub struct Watch {
    draining: watch::Receiver<Option<Instant>>,
    work: Arc<watch::Sender<usize>>,
}

/// Something that must end before the proxy may.
#[derive(Debug)]
pub struct Work(Arc<watch::Sender<usize>>);

/// A signal and a watch on it.
pub fn channel() -> (Signal, Watch) {
    let (sender, draining) = watch::channel(None);
    let work = Arc::new(watch::Sender::new(0));
    (Signal { draining: sender, work: Arc::clone(&work) }, Watch { draining, work })
}

// === impl Signal ===

impl Signal {
    /// Begins the drain. Further calls do nothing.
    pub fn start(&self) {
        self.draining.send_if_modified(|draining| {
            let begins = draining.is_none();
            draining.get_or_insert_with(Instant::now);
            begins
        });
    }

    pub fn is_draining(&self) -> bool {
        self.draining.borrow().is_some()
    }

    /// Returns when the drain begins, at once if it already has; says when that was.
    pub async fn started(&self) -> Instant {
        let mut draining = self.draining.subscribe();
        // It never fails: the sender is ours.
        let since = draining.wait_for(Option::is_some).await.ok().and_then(|since| *since);
        since.unwrap_or_else(Instant::now)
    }

    /// How much work there is.
    pub fn left(&self) -> usize {
        *self.work.borrow()
    }

    /// Returns once there has been no work for `lull`.
    pub async fn quiet(&self, lull: Duration) {
        let mut work = self.work.subscribe();
        loop {
            // It never fails: the sender is ours.
            drop(work.wait_for(|left| *left == 0).await);
            // Seen with the wait above: any change from here on is work that came, be it over already.
            if tokio::time::timeout(lull, work.changed()).await.is_err() {
                return;
            }
        }
    }
}

// === impl Watch ===

impl Watch {
    pub fn is_draining(&self) -> bool {
        self.draining.borrow().is_some()
    }

    /// Returns when the drain begins, at once if it already has.
    pub async fn draining(&self) {
        let mut receiver = self.draining.clone();
        // An error means that the signal is gone, and with it the proxy: the same as draining.
        drop(receiver.wait_for(Option::is_some).await);
    }

    /// Counts as work until the result is dropped.
    pub fn work(&self) -> Work {
        self.work.send_modify(|left| *left += 1);
        Work(Arc::clone(&self.work))
    }
}

// === impl Work ===

impl Drop for Work {
    fn drop(&mut self) {
        self.0.send_modify(|left| *left -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LULL: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn it_is_quiet_a_lull_after_the_last_work() {
        let (signal, watch) = channel();
        let (one, two) = (watch.work(), watch.work());
        signal.start();
        watch.draining().await;
        assert!(watch.is_draining() && signal.is_draining());
        let begun = signal.started().await;
        let work = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(one);
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(two);
            // Somebody who has not heard yet.
            tokio::time::sleep(LULL / 2).await;
            drop(watch.work());
        };
        tokio::join!(work, signal.quiet(LULL));
        assert_eq!(begun.elapsed(), Duration::from_secs(4) + LULL / 2 + LULL);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_who_says_so_begins_the_drain() {
        let (signal, _watch) = channel();
        signal.start();
        let begun = signal.started().await;
        tokio::time::sleep(LULL).await;
        signal.start();
        assert_eq!(signal.started().await, begun);
        signal.quiet(LULL).await;
        assert_eq!(begun.elapsed(), LULL * 2);
    }
}
