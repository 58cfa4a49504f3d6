//! A limit on the CPU that a process may use, by the kernel's control groups.

use std::fs;
use std::path::{Path, PathBuf};

/// A group with a quota. It is removed when dropped, once its processes have ended.
pub(crate) struct Quota(PathBuf);

/// The kernel's usual period, in microseconds.
const PERIOD: f64 = 100_000.0;

impl Quota {
    /// Puts a process under a quota of so many cores.
    ///
    /// # Errors
    /// Where groups cannot be made: without root, or without the controller.
    pub(crate) fn of(pid: u32, cores: f64) -> Result<Self, String> {
        let name = format!("tulle-bench-{pid}");
        let quota = (cores * PERIOD).round();
        let first = Path::new("/sys/fs/cgroup/cpu");
        let (folder, settings) = if first.is_dir() {
            (
                first.join(name),
                vec![("cpu.cfs_period_us", PERIOD.to_string()), ("cpu.cfs_quota_us", quota.to_string())],
            )
        } else {
            (Path::new("/sys/fs/cgroup").join(name), vec![("cpu.max", format!("{quota} {PERIOD}"))])
        };
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let group = Self(folder);
        for (file, value) in settings.into_iter().chain([("cgroup.procs", pid.to_string())]) {
            let path = group.0.join(file);
            fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(group)
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // Whoever is still in it goes back to the root group.
        if let (Ok(processes), Some(parent)) =
            (fs::read_to_string(self.0.join("cgroup.procs")), self.0.parent())
        {
            for process in processes.lines() {
                let _ = fs::write(parent.join("cgroup.procs"), process);
            }
        }
        let _ = fs::remove_dir(&self.0);
    }
}
