//! Signals that are meant for the program: which, and whether it has had them already.

use std::fs::{self, File};

use anyhow::{Context as _, Result};
use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// What comes to `tulle run`, except what it was started to ignore: that the program ignores as well.
#[derive(Debug)]
pub(super) struct Signals {
    incoming: mpsc::UnboundedReceiver<SignalKind>,
}

/// Those that end what does not expect them.
const ENDING: [SignalKind; 4] =
    [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit(), SignalKind::terminate()];
const OTHERS: [SignalKind; 3] =
    [SignalKind::user_defined1(), SignalKind::user_defined2(), SignalKind::window_change()];
/// Those that a terminal sends to every process of the group in front.
const OF_TERMINALS: [SignalKind; 4] =
    [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit(), SignalKind::window_change()];

// === impl Signals ===

impl Signals {
    /// Takes them from now on.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn new() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let (sender, incoming) = mpsc::unbounded_channel();
        for kind in ENDING.into_iter().chain(OTHERS).filter(|kind| !is_ignored(&status, *kind)) {
            let mut signals = signal(kind).context("signals cannot be handled")?;
            let sender = sender.clone();
            tokio::spawn(async move { while signals.recv().await.is_some() && sender.send(kind).is_ok() {} });
        }
        Ok(Self { incoming })
    }

    /// The next.
    pub(super) async fn next(&mut self) -> SignalKind {
        match self.incoming.recv().await {
            Some(kind) => kind,
            None => std::future::pending().await,
        }
    }

    /// The next of those that end what does not expect them.
    pub(super) async fn ending(&mut self) -> SignalKind {
        loop {
            let kind = self.next().await;
            if ENDING.contains(&kind) {
                return kind;
            }
        }
    }
}

/// Whether the program, in our process group, will have had the signal from the terminal.
pub(super) fn is_known(kind: SignalKind) -> bool {
    let in_front = || File::open("/dev/tty").ok().and_then(|terminal| tcgetpgrp(terminal).ok());
    OF_TERMINALS.contains(&kind) && in_front() == Some(getpgrp())
}

/// By `/proc/<pid>/status`.
fn is_ignored(status: &str, kind: SignalKind) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nohup_has_ignored_is_ignored() {
        let status = "Name:\ttulle\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert!(is_ignored(status, SignalKind::hangup()));
        assert!(is_ignored(status, SignalKind::pipe()));
        assert!(!is_ignored(status, SignalKind::terminate()));
        assert!(!is_ignored("", SignalKind::hangup()));
    }
}
