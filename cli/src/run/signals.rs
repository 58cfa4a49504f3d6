//! Signals that are meant for the program: which, and whether it has had them already.
//!
//! What the terminal sends goes to every process of the group in front, the program among them; what somebody sends to this process goes to
//! it alone. Who has sent it, the kernel tells (`si_code`, sigaction(2)).

use std::fs::{self, File};
use std::thread;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpgrp, getpid, kill_process, waitid};
use rustix::termios::tcgetpgrp;
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use signal_hook::low_level::siginfo::Cause;
use tokio::sync::mpsc;

/// What comes to `tulle run`, except what it was started to ignore: that the program ignores as well.
#[derive(Debug)]
pub(super) struct Signals(mpsc::UnboundedReceiver<Came>);

/// A signal that has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Came {
    pub(super) signal: Signal,
    /// From the kernel, and so of a terminal; not from a process.
    by_kernel: bool,
}

/// Those that end what does not expect them.
pub(crate) const ENDING: [Signal; 4] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM];
/// Stops what does not expect it. Whether we stop is the program's to say: see [`stop_with`].
const STOPPING: Signal = Signal::TSTP;
const OTHERS: [Signal; 5] = [Signal::USR1, Signal::USR2, Signal::WINCH, STOPPING, Signal::CONT];

// === impl Signals ===

impl Signals {
    /// Takes them from now on.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn new() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let taken = ENDING.into_iter().chain(OTHERS).filter(|signal| !is_ignored(&status, *signal));
        let taken = SignalsInfo::<WithOrigin>::new(taken.map(Signal::as_raw));
        let mut taken = taken.context("signals cannot be handled")?;
        let (sender, incoming) = mpsc::unbounded_channel();
        let wait = move || {
            for told in taken.forever() {
                let Some(signal) = Signal::from_named_raw(told.signal) else { continue };
                if sender.send(Came { signal, by_kernel: told.cause == Cause::Kernel }).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(wait).context("signals cannot be handled")?;
        Ok(Self(incoming))
    }

    /// The next.
    pub(super) async fn next(&mut self) -> Came {
        match self.0.recv().await {
            Some(came) => came,
            None => std::future::pending().await,
        }
    }

    /// The next of those that end what does not expect them; until then, there is no program to stop in our stead.
    pub(super) async fn ending(&mut self) -> Signal {
        loop {
            let Came { signal, .. } = self.next().await;
            if ENDING.contains(&signal) {
                return signal;
            }
            if signal == STOPPING {
                stop();
            }
        }
    }
}

// === impl Came ===

impl Came {
    /// Whether the program, in our process group, will have had it as well.
    pub(super) fn is_known(self) -> bool {
        // A shell continues the whole group.
        self.by_kernel || self.signal == Signal::CONT && is_in_front()
    }
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
pub(crate) fn is_ignored(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (signal.as_raw() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nohup_has_ignored_is_ignored() {
        let status = "Name:\ttulle\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert!(is_ignored(status, Signal::HUP));
        assert!(is_ignored(status, Signal::PIPE));
        assert!(!is_ignored(status, Signal::TERM));
        assert!(!is_ignored("", Signal::HUP));
    }
}
