//! What is begun and must not outlive this command: put down before a signal ends the command itself.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::flag;
use signal_hook::low_level::emulate_default_handler;

use crate::run::{ENDING, is_ignored};

/// How often is looked whether a signal has come.
const LOOK: Duration = Duration::from_millis(20);

/// Does this work; a signal that ends the command drops it first, and with it what it has begun. Afterwards signals do again what they always do, whatever
/// else is done by this: a command does so once. What it was started to ignore (nohup(1)) stays ignored.
///
/// # Errors
/// Signals cannot be handled.
pub(crate) async fn interruptible<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let over = Arc::new(AtomicBool::new(false));
    let mut taken = Vec::new();
    for signal in ENDING.into_iter().filter(|signal| !is_ignored(&status, *signal)) {
        let number = signal.as_raw();
        let came = Arc::new(AtomicBool::new(false));
        flag::register_conditional_default(number, Arc::clone(&over))?;
        flag::register(number, Arc::clone(&came))?;
        taken.push((number, came));
    }
    let come = || taken.iter().find(|(_, came)| came.load(Ordering::SeqCst)).map(|(number, _)| *number);
    let interrupted = async {
        loop {
            if let Some(number) = come() {
                return number;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let done = tokio::select! {
        done = work => Ok(done),
        number = interrupted => Err(number),
    };
    over.store(true, Ordering::SeqCst);
    // One may have come at the very end, when it did nothing yet.
    if let Some(number) = done.as_ref().err().copied().or_else(come) {
        emulate_default_handler(number)?;
    }
    done.map_err(|number| io::Error::other(format!("ended by signal {number}")))
}
