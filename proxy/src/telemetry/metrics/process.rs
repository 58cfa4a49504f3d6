//! What the kernel knows about this process.

use std::fs;
use std::sync::LazyLock;
use std::time::SystemTime;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::control::seconds;
use super::families::{self, Family};

/// Close enough to when the process started: the first time that anyone asks, which [`super::Metrics::new`] is not
/// far behind of.
static STARTED: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);

pub(super) fn start() {
    LazyLock::force(&STARTED);
}

/// What cannot be read is left out.
pub(super) fn read() -> Vec<(&'static Family, f64)> {
    let mut out = Vec::with_capacity(8);
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    out.push((&families::PROCESS_CPU, cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9));
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // `VmRSS:	    1234 kB` (proc_pid_status(5)).
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    out.extend(field("VmRSS").map(|kib| (&families::PROCESS_RSS, kib * 1024.0)));
    out.extend(field("VmSize").map(|kib| (&families::PROCESS_VIRTUAL, kib * 1024.0)));
    out.extend(field("Threads").map(|threads| (&families::PROCESS_THREADS, threads)));
    if let Ok(folder) = fs::read_dir("/proc/self/fd") {
        // Less the descriptor that reads the folder.
        out.push((&families::PROCESS_FDS, folder.count().saturating_sub(1) as f64));
    }
    let limit = getrlimit(Resource::Nofile).current;
    out.push((&families::PROCESS_MAX_FDS, limit.map_or(f64::INFINITY, |limit| limit as f64)));
    out.push((&families::PROCESS_START, seconds(*STARTED)));
    out
}
