//! Signals that are meant for the program: which, and whether it has had them already.

use std::fs::{self, File};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpgrp, getpid, kill_process, waitid};
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
/// Stops what does not expect it. Whether we stop is the program's to say: see [`stop_with`].
const STOPPING: SignalKind = SignalKind::from_raw(Signal::TSTP.as_raw());
const CONTINUING: SignalKind = SignalKind::from_raw(Signal::CONT.as_raw());
const OTHERS: [SignalKind; 5] = [
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
    SignalKind::window_change(),
    STOPPING,
    CONTINUING,
];
/// Those that a terminal, or the shell at it, sends to every process of the group in front.
const OF_TERMINALS: [SignalKind; 6] = [
    SignalKind::hangup(),
    SignalKind::interrupt(),
    SignalKind::quit(),
    SignalKind::window_change(),
    STOPPING,
    CONTINUING,
];

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

    /// The next of those that end what does not expect them; until then, there is no program to stop in our stead.
    pub(super) async fn ending(&mut self) -> SignalKind {
        loop {
            let kind = self.next().await;
            if ENDING.contains(&kind) {
                return kind;
            }
            if kind == STOPPING {
                stop();
            }
        }
    }
}

/// Whether the program, in our process group, will have had the signal from the terminal.
pub(super) fn is_known(kind: SignalKind) -> bool {
    OF_TERMINALS.contains(&kind) && is_in_front()
}

/// Stops if the program has, so that the shell, which waits for us, takes the terminal back as it would from the program
/// alone; and goes on with it. A program that is not in front is stopped without anybody's waiting for it.
pub(super) fn stop_with(program: Pid) {
    let stopped = waitid(WaitId::Pid(program), WaitIdOptions::STOPPED | WaitIdOptions::NOHANG);
    if matches!(stopped, Ok(Some(_))) && is_in_front() {
        stop();
        // Whoever continued us may not have meant the whole group.
        let _ = kill_process(program, Signal::CONT);
    }
}

/// Until somebody continues this process.
fn stop() {
    let _ = kill_process(getpid(), Signal::STOP);
}

/// Whether our process group has the terminal.
fn is_in_front() -> bool {
    let in_front = File::open("/dev/tty").ok().and_then(|terminal| tcgetpgrp(terminal).ok());
    in_front == Some(getpgrp())
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
