//! The demo's processes: started from this binary, watched, and ended with it.
//!
//! Three things see to it that none outlives the demo: dropping a [`Process`] kills it and waits for it; each asks
//! the kernel to be killed when its parent dies, whatever the cause ([`follow_parent`]); and each is in a process
//! group of its own, so that Ctrl-C reaches the demo alone, which ends the others in order.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

/// How much of a log is shown of a process that ended.
const TAIL_BYTES: u64 = 8 << 10;
const TAIL_LINES: usize = 20;

/// How to start one of the demo's processes.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// What it is called, in messages and by its log.
    pub(crate) name: String,
    /// What follows `tulle internal`.
    pub(crate) arguments: Vec<String>,
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Process {
    program: Program,
    child: Child,
    log: PathBuf,
}

/// Ends this process when its parent dies. For the first lines of `main`, before there are other threads.
///
/// The kernel sends the signal when the *thread* that started the process ends: the demo starts all of them from its
/// only thread.
///
/// # Errors
/// The parent has already gone.
pub(crate) fn follow_parent(parent: i32) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("PR_SET_PDEATHSIG")?;
    // It may have died before the kernel was asked.
    if getppid().map(Pid::as_raw_nonzero).is_none_or(|pid| pid.get() != parent) {
        bail!("the process that started this one has ended");
    }
    Ok(())
}

// === impl Process ===

impl Process {
    /// Starts `program` with its output in `<logs>/<name>.log`; `input` becomes its standard input.
    pub(crate) fn start(program: Program, input: Option<TcpListener>, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{}.log", program.name));
        let output = OpenOptions::new().create(true).append(true).open(&log);
        let output = output.with_context(|| format!("cannot write {}", log.display()))?;
        let errors = output.try_clone().context("the log's descriptor")?;
        let mut command = Command::new(executable());
        // Settings of a mesh that is run in earnest from the same shell are not meant for this one.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TULLE_"))
        {
            command.env_remove(name);
        }
        let child = command
            .arg0("tulle")
            .args(["internal", "--parent", &getpid().as_raw_nonzero().to_string()])
            .args(&program.arguments)
            .stdin(input.map_or_else(Stdio::null, |listener| Stdio::from(OwnedFd::from(listener))))
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", program.name))?;
        Ok(Self { program, child, log })
    }

    pub(crate) fn name(&self) -> &str {
        &self.program.name
    }

    pub(crate) fn program(&self) -> &Program {
        &self.program
    }

    /// What [`Process::program`] says from now on: how to start it again.
    pub(crate) fn set_program(&mut self, program: Program) {
        self.program = program;
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How the process ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The end of the process's log, for people.
    pub(crate) fn log_tail(&self) -> String {
        let name = self.name();
        match tail(&self.log) {
            Ok(text) if text.is_empty() => format!("({name} logged nothing)"),
            Ok(text) => format!("the end of {name}'s log:\n{text}"),
            Err(error) => format!("({name}'s log cannot be read: {error})"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing in the demo is worth a slow end. An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This binary, also where it was replaced on disk since it was started.
fn executable() -> PathBuf {
    std::env::current_exe().ok().filter(|path| path.exists()).unwrap_or_else(|| "/proc/self/exe".into())
}

/// The last lines of the file, each indented.
fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    Ok(last.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let lines: Vec<String> = (0..2_000).map(|number| format!("line {number}")).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let tail = tail(&path).unwrap();
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("  line 1999"), "{tail}");
    }

    #[test]
    fn another_parent_is_an_error() {
        // This sets the test process's own signal as well: whoever runs the tests outlives them.
        assert!(follow_parent(i32::MAX).is_err());
    }
}
