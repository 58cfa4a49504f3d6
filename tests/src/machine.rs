//! The machine that the run had, and how much of it somebody else took meanwhile.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Time of all cores since boot, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    busy: f64,
    stolen: f64,
}

/// What `/proc/stat` counts in.
const TICKS: f64 = 100.0;

impl Busy {
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        let at: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        let at = |index: usize| at.get(index).copied().unwrap_or(0.0) / TICKS;
        // user, nice, system, idle, iowait, irq, softirq, steal
        Self { busy: at(0) + at(1) + at(2) + at(5) + at(6), stolen: at(7) }
    }

    /// Cores that were busy since `earlier`, which was `seconds` ago.
    pub fn cores_since(self, earlier: Self, seconds: f64) -> f64 {
        (self.busy - earlier.busy) / seconds
    }

    /// Cores that the hypervisor kept for others since `earlier`.
    pub fn stolen_since(self, earlier: Self, seconds: f64) -> f64 {
        (self.stolen - earlier.stolen) / seconds
    }
}

/// Raises this process's limit of open files as far as it may: many machines allow many only to those who ask.
///
/// # Panics
/// If it may not.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

/// Cores, processor, kernel: a line for the head of the report.
pub fn describe() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{cores} cores, {model}, Linux {}", kernel.trim())
}
