//! How many worker threads a proxy starts (R23).
//!
//! A proxy with more threads than CPU quota is throttled in the middle of requests; one with a thread for every
//! core of a large node wastes memory on pools and metric cells.

use std::fs;
use std::path::Path;

/// What the machine and its control groups allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuLimits {
    /// Cores that this process may run on.
    pub cores: usize,
    /// The tightest CPU quota of the process's control groups, in thousandths of a core.
    pub quota_millis: Option<u64>,
}

/// The quota rounded up, else the request rounded up, else 2; at least 1 and never more than there are cores.
pub fn worker_count(limits: &CpuLimits, request_millis: Option<u64>) -> usize {
    let cores = limits.cores.max(1);
    let wanted = match limits.quota_millis.or(request_millis) {
        Some(millis) => usize::try_from(millis.div_ceil(1000)).unwrap_or(usize::MAX),
        None => 2,
    };
    wanted.clamp(1, cores)
}

// === impl CpuLimits ===

impl CpuLimits {
    /// Reads `/proc` and `/sys`. What cannot be read does not limit.
    pub fn read() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self { cores, quota_millis: quota_millis(&groups, Path::new("/sys/fs/cgroup")) }
    }
}

/// The tightest quota on the way from the process's group to the root, of cgroup v2 (`cpu.max`) and of v1
/// (`cpu.cfs_quota_us`). `groups` is `/proc/self/cgroup`, `root` where control groups are mounted.
fn quota_millis(groups: &str, root: &Path) -> Option<u64> {
    let mut tightest: Option<u64> = None;
    for line in groups.lines() {
        // `hierarchy:controllers:path` (cgroups(7)); of v2 the first is 0 and the second empty.
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let mounts: Vec<_> = if controllers.is_empty() {
            vec![root.to_owned(), root.join("unified")]
        } else if controllers.split(',').any(|controller| controller == "cpu") {
            vec![root.join(controllers), root.join("cpu"), root.join("cpu,cpuacct")]
        } else {
            continue;
        };
        for mount in mounts {
            // Inside a container, the path may be that of the host and lead nowhere: the mount's root is ours then.
            let relative = Path::new(path.trim_start_matches('/'));
            for group in relative.ancestors() {
                let found = quota_of(&mount.join(group));
                tightest = match (tightest, found) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
        }
    }
    tightest
}

fn quota_of(group: &Path) -> Option<u64> {
    let read = |file: &str| fs::read_to_string(group.join(file)).ok();
    let (quota, period) = match read("cpu.max") {
        Some(text) => {
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?)
        }
        // -1, no limit, is no u64.
        None => (
            read("cpu.cfs_quota_us")?.trim().parse::<u64>().ok()?,
            read("cpu.cfs_period_us")?.trim().parse::<u64>().ok()?,
        ),
    };
    quota.checked_mul(1000)?.checked_div(period).map(|millis| millis.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r23_workers_follow_the_limit_then_the_request_then_two() {
        let count = |cores, quota_millis, request| worker_count(&CpuLimits { cores, quota_millis }, request);
        assert_eq!(count(64, None, None), 2);
        assert_eq!(count(1, None, None), 1);
        assert_eq!(count(64, Some(200), None), 1);
        assert_eq!(count(64, Some(2500), Some(100)), 3);
        assert_eq!(count(64, None, Some(4000)), 4);
        assert_eq!(count(2, Some(16_000), None), 2);
        assert_eq!(count(0, Some(0), None), 1);
    }

    fn group(root: &Path, path: &str, files: &[(&str, &str)]) {
        fs::create_dir_all(root.join(path)).unwrap();
        for (name, text) in files {
            fs::write(root.join(path).join(name), text).unwrap();
        }
    }

    #[test]
    fn the_tightest_quota_up_to_the_root_holds_in_v2() {
        let root = tempfile::tempdir().unwrap();
        group(root.path(), "kubepods/pod1/c1", &[("cpu.max", "max 100000\n")]);
        group(root.path(), "kubepods/pod1", &[("cpu.max", "150000 100000\n")]);
        group(root.path(), "kubepods", &[("cpu.max", "800000 100000\n")]);
        assert_eq!(quota_millis("0::/kubepods/pod1/c1\n", root.path()), Some(1500));
    }

    #[test]
    fn v1_quotas_count_and_minus_one_is_none() {
        let root = tempfile::tempdir().unwrap();
        let files = [("cpu.cfs_quota_us", "20000\n"), ("cpu.cfs_period_us", "100000\n")];
        group(root.path(), "cpu,cpuacct/docker/c1", &files);
        group(root.path(), "cpu,cpuacct", &[("cpu.cfs_quota_us", "-1\n"), ("cpu.cfs_period_us", "100000\n")]);
        let groups = "5:memory:/docker/c1\n4:cpu,cpuacct:/docker/c1\n";
        assert_eq!(quota_millis(groups, root.path()), Some(200));
        assert_eq!(quota_millis("4:cpu,cpuacct:/elsewhere\n", root.path()), None);
    }

    #[test]
    fn a_path_of_the_host_falls_back_to_the_mounts_root() {
        let root = tempfile::tempdir().unwrap();
        group(root.path(), "", &[("cpu.max", "50000 100000")]);
        assert_eq!(quota_millis("0::/../../kubepods/gone\n", root.path()), Some(500));
        assert_eq!(quota_millis("nonsense", root.path()), None);
    }

    #[test]
    fn this_machine_can_be_read() {
        assert!(CpuLimits::read().cores >= 1);
    }
}
