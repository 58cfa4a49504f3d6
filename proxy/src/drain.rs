//! The one drain primitive: a signal that everything which serves watches, and a count of the work that is left.
//!
//! Draining begins once and is never taken back. Each connection holds a [`Work`] while it lives;
//! [`Signal::drained`] waits until there is none. `app` owns the [`Signal`].

use std::sync::Arc;

use tokio::sync::watch;

/// Starts the drain and waits for its end.
#[derive(Debug)]
pub struct Signal {
    draining: watch::Sender<bool>,
    work: Arc<watch::Sender<usize>>,
}

/// Sees the drain begin.
#[derive(Clone, Debug)]
pub struct Watch {
    draining: watch::Receiver<bool>,
    work: Arc<watch::Sender<usize>>,
}

/// Something that must end before the proxy may.
#[derive(Debug)]
pub struct Work(Arc<watch::Sender<usize>>);

/// A signal and a watch on it.
pub fn channel() -> (Signal, Watch) {
    let (sender, draining) = watch::channel(false);
    let work = Arc::new(watch::Sender::new(0));
    (Signal { draining: sender, work: Arc::clone(&work) }, Watch { draining, work })
}

// === impl Signal ===

impl Signal {
    /// Begins the drain. Further calls do nothing.
    pub fn start(&self) {
        self.draining.send_replace(true);
    }

    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Returns when the drain begins, at once if it already has.
    pub async fn started(&self) {
        // It never fails: the sender is ours.
        drop(self.draining.subscribe().wait_for(|draining| *draining).await);
    }

    /// How much work there is.
    pub fn left(&self) -> usize {
        *self.work.borrow()
    }

    /// Returns once there is no work left.
    pub async fn drained(&self) {
        drop(self.work.subscribe().wait_for(|left| *left == 0).await);
    }
}

// === impl Watch ===

impl Watch {
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Returns when the drain begins, at once if it already has.
    pub async fn draining(&self) {
        let mut receiver = self.draining.clone();
        // An error means that the signal is gone, and with it the proxy: the same as draining.
        drop(receiver.wait_for(|draining| *draining).await);
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

    #[tokio::test]
    async fn drained_waits_for_the_last_work() {
        let (signal, watch) = channel();
        let (one, two) = (watch.work(), watch.work());
        signal.start();
        watch.draining().await;
        signal.started().await;
        assert!(watch.is_draining() && signal.is_draining());
        drop(one);
        let waiting = signal.drained();
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(two);
        waiting.await;
    }

    #[tokio::test]
    async fn without_work_a_drain_is_over_at_once() {
        let (signal, _watch) = channel();
        signal.start();
        signal.drained().await;
    }
}
