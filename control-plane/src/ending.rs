//! How every part hears that the control plane ends.

use tokio::sync::watch;

/// Begins the end when told to, or when dropped.
#[derive(Debug)]
pub struct End(watch::Sender<bool>);

/// Waits for the end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ending(watch::Receiver<bool>);

/// One end, and those who wait for it.
pub fn channel() -> (End, Ending) {
    let (sender, receiver) = watch::channel(false);
    (End(sender), Ending(receiver))
}

impl End {
    /// Everybody hears of it.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }
}

impl Ending {
    /// Returns once the control plane ends; at once if it is ending.
    pub async fn wait(&mut self) {
        // An error says that the sender is gone: that is an end too.
        let _gone = self.0.wait_for(|ending| *ending).await;
    }
}
