//! What processes cost, as the kernel accounts for it.

use std::fs;
use std::ops::Sub;

/// CPU time that was used, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    /// The scheduler's sum, exact to a nanosecond.
    pub total: f64,
    /// How the kernel divides it, by estimate.
    user: f64,
    system: f64,
}

/// What a process and its children hold, in bytes.
pub fn resident(pid: u32) -> u64 {
    family(pid).into_iter().map(|pid| status(pid, "VmRSS:")).sum()
}

/// What a process holds, and the most that it has held, in bytes.
pub fn resident_and_peak(pid: u32) -> (u64, u64) {
    (status(pid, "VmRSS:"), status(pid, "VmHWM:"))
}

fn status(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

/// The size of a process's executable, in bytes.
pub fn binary(pid: u32) -> u64 {
    fs::metadata(format!("/proc/{pid}/exe")).map_or(0, |metadata| metadata.len())
}

/// CPU time of a process and its children so far.
pub fn cpu(pid: u32) -> Cpu {
    family(pid).into_iter().map(of_process).fold(Cpu::default(), |sum, one| Cpu {
        total: sum.total + one.total,
        user: sum.user + one.user,
        system: sum.system + one.system,
    })
}

/// A process and all that descend from it.
pub fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        let children =
            fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    found
}

fn of_process(pid: u32) -> Cpu {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command's name may hold anything; the fields follow its closing parenthesis.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    let (user, system) = (field(11), field(12));
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanoseconds: f64 = tasks
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<f64>().ok())
        .sum();
    Cpu { total: nanoseconds / 1e3, user, system }
}

// === impl Cpu ===

impl Cpu {
    /// The part of the total that was spent in the kernel.
    pub fn system(self) -> f64 {
        let estimated = self.user + self.system;
        if estimated > 0.0 { self.total * self.system / estimated } else { 0.0 }
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            total: self.total - earlier.total,
            user: self.user - earlier.user,
            system: self.system - earlier.system,
        }
    }
}
