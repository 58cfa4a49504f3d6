//! The one drain primitive: a signal that everything which serves holds a [`Watch`] of.
//!
//! Draining begins once and is never taken back. Whoever holds a [`Watch`] is still at work; [`Signal::drained`]
//! waits until the last is dropped. `app` owns the [`Signal`].

use tokio::sync::watch;

/// Starts the drain and waits for its end.
#[derive(Debug)]
pub struct Signal(watch::Sender<bool>);

/// Held by whatever must end before the proxy may.
#[derive(Clone, Debug)]
pub struct Watch(watch::Receiver<bool>);

/// A signal and its first watch.
pub fn channel() -> (Signal, Watch) {
    let (sender, receiver) = watch::channel(false);
    (Signal(sender), Watch(receiver))
}

// === impl Signal ===

impl Signal {
    /// Begins the drain. Further calls do nothing.
    pub fn start(&self) {
        self.0.send_replace(true);
    }

    pub fn is_draining(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once every watch has been dropped.
    pub async fn drained(&self) {
        self.0.closed().await;
    }
}

// === impl Watch ===

impl Watch {
    pub fn is_draining(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when the drain begins, at once if it already has.
    pub async fn draining(&self) {
        let mut receiver = self.0.clone();
        // An error means that the signal is gone, and with it the proxy: the same as draining.
        drop(receiver.wait_for(|draining| *draining).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn drained_waits_for_the_last_watch() {
        let (signal, watch) = channel();
        let other = watch.clone();
        signal.start();
        watch.draining().await;
        assert!(watch.is_draining());
        drop(watch);
        let waiting = signal.drained();
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(other);
        waiting.await;
    }
}
