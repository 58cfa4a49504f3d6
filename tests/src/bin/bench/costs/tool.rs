//! What counts: callgrind runs a proxy on a processor of its own, strace stops it at each system call. Neither knows of time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tulle_tests::{Process, Program};

use crate::pair::{Proxies, Site, leashed};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    /// Instructions of user space.
    Callgrind,
    /// System calls.
    Strace,
}

/// What was counted of a process, by name: `instructions`, or each system call.
pub(crate) type Counts = BTreeMap<String, u64>;

/// How long strace may take to get hold of a proxy.
const PATIENCE: Duration = Duration::from_secs(10);

// === impl Tool ===

impl Tool {
    /// What the tool calls itself, or why it cannot be used.
    pub(crate) fn version(self) -> Result<String, String> {
        let name = match self {
            Self::Callgrind => "valgrind",
            Self::Strace => "strace",
        };
        let output = Command::new(name).arg("--version").stdin(Stdio::null()).output();
        let output =
            output.map_err(|error| format!("{name}: {error}; it is Debian's package of that name"))?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or(name).to_owned())
    }

    /// A proxy such that it can be counted.
    pub(crate) fn wrapped(self, program: Program, site: &Site) -> Program {
        if self == Self::Strace {
            return leashed(program);
        }
        let options = [
            "--tool=callgrind".to_owned(),
            format!("--callgrind-out-file={}", site.folder.path("callgrind.%p").display()),
            format!("--vgdb-prefix={}", vgdb(site).display()),
        ];
        let options = options.map(Into::into).into_iter();
        let arguments = options.chain([program.path.into_os_string()]).chain(program.arguments).collect();
        leashed(Program { path: "valgrind".into(), arguments, ..program })
    }

    /// What both proxies use while `work` is done: outbound, inbound.
    pub(crate) async fn during(
        self,
        proxies: Proxies,
        site: &Site,
        work: impl Future<Output = Result<(), String>>,
    ) -> Result<[Counts; 2], String> {
        let pids = [proxies.outbound, proxies.inbound];
        match self {
            Self::Callgrind => {
                pids.iter().try_for_each(|pid| dump(*pid, site))?;
                work.await?;
                pids.iter().try_for_each(|pid| dump(*pid, site))?;
                Ok([instructions(&dumped(pids[0], site))?, instructions(&dumped(pids[1], site))?])
            }
            Self::Strace => {
                let traces = [trace(pids[0], site).await?, trace(pids[1], site).await?];
                work.await?;
                let [outbound, inbound] = traces;
                Ok([traced(outbound, site).await?, traced(inbound, site).await?])
            }
        }
    }
}

// --- callgrind --------------------------------------------------------------------------------------------------------

/// Has callgrind write what it counted since it last did.
fn dump(pid: u32, site: &Site) -> Result<(), String> {
    let prefix = format!("--vgdb-prefix={}", vgdb(site).display());
    let said = Command::new("vgdb").args([prefix, format!("--pid={pid}"), "dump".to_owned()]).output();
    let said = said.map_err(|error| format!("vgdb: {error}"))?;
    let text = || String::from_utf8_lossy(&said.stderr).into_owned();
    if said.status.success() { Ok(()) } else { Err(format!("callgrind does not answer:\n{}", text())) }
}

/// Where valgrind is talked to.
fn vgdb(site: &Site) -> PathBuf {
    site.folder.path("vgdb")
}

/// What callgrind wrote the second time, which [`Tool::during`] has it do.
pub(crate) fn dumped(pid: u32, site: &Site) -> PathBuf {
    site.folder.path(&format!("callgrind.{pid}.2"))
}

fn instructions(path: &Path) -> Result<Counts, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
    let total = total.ok_or_else(|| format!("{}: no totals", path.display()))?;
    Ok(Counts::from([("instructions".to_owned(), total)]))
}

// --- strace -----------------------------------------------------------------------------------------------------------

/// Follows a process with all its threads.
async fn trace(pid: u32, site: &Site) -> Result<Process, String> {
    let program = Program::new(format!("strace-{pid}"), "strace").arg("-cf").flag("-U", "calls,name");
    let program = program.flag("-o", summary(pid, site)).flag("-p", pid.to_string());
    let mut strace = site.start(program);
    let begun = Instant::now();
    while !traces(strace.pid(), pid) {
        if strace.ended().is_some() || begun.elapsed() > PATIENCE {
            return Err(format!("strace cannot follow the proxy: {}", strace.stderr().trim()));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(strace)
}

/// Whether every thread of `pid` is followed by `tracer`.
fn traces(tracer: u32, pid: u32) -> bool {
    let wanted = format!("TracerPid:\t{tracer}");
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line == wanted)
    })
}

/// Lets go of the process, and reads what was counted.
async fn traced(mut strace: Process, site: &Site) -> Result<Counts, String> {
    strace.signal(Signal::INT);
    strace.wait().await;
    let of = strace.program().name.trim_start_matches("strace-").parse().unwrap_or(0);
    let path = summary(of, site);
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(calls(&text))
}

fn summary(pid: u32, site: &Site) -> PathBuf {
    site.folder.path(&format!("strace.{pid}"))
}

/// Lines of a count and a name, between a head, rules and the total.
fn calls(text: &str) -> Counts {
    let lines = text.lines().filter_map(|line| {
        let (count, name) = line.trim().split_once(char::is_whitespace)?;
        Some((name.trim().to_owned(), count.parse().ok()?))
    });
    lines.filter(|(name, _)| name != "total").collect()
}
