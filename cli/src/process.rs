//! The processes of `tulle demo` and `tulle run`: started from this binary, watched, and ended with it; and where they
//! listen, once they do.
//!
//! Three things see to it that none outlives the command: dropping a [`Process`] kills it and waits for it; each asks
//! the kernel to be killed when its parent dies, whatever the cause ([`follow_parent`]); and each is in a process
//! group of its own, so that Ctrl-C reaches the command alone, which ends the others in order.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use http::HeaderMap;
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};

use crate::http::Origin;

/// How long any one thing may take to get ready. Generous: a debug build on a busy machine is meant too.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(60);
pub(crate) const POLL: Duration = Duration::from_millis(25);

/// How much of a log is shown of a process that ended.
const TAIL_BYTES: u64 = 8 << 10;
const TAIL_LINES: usize = 20;

/// How to start a process.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// What it is called, in messages and by its log.
    pub(crate) name: String,
    /// What follows `tulle internal`.
    pub(crate) arguments: Vec<String>,
    /// Variables that it has beside ours.
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Process {
    program: Program,
    child: Child,
    log: PathBuf,
}

/// What an addresses file says: listener → address.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct Addresses(BTreeMap<String, SocketAddr>);

/// Ends this process when its parent dies. For the first lines of `main`, before there are other threads.
///
/// The kernel sends the signal when the *thread* that started the process ends: all are started from the only thread.
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
    /// Starts `program` with its output in `<logs>/<name>.log`.
    pub(crate) fn start(program: Program, input: Stdio, logs: &Path) -> Result<Self> {
        let parent = ["--parent".to_owned(), getpid().as_raw_nonzero().to_string()];
        Self::spawn(program, &parent, input, None, logs)
    }

    /// Starts `program`, which sees to it by itself that it ends once its standard input does, and writes to `Process::output`.
    pub(crate) fn start_piped(program: Program, logs: &Path) -> Result<Self> {
        Self::spawn(program, &[], Stdio::piped(), Some(Stdio::piped()), logs)
    }

    fn spawn(
        program: Program,
        flags: &[String],
        input: Stdio,
        output: Option<Stdio>,
        logs: &Path,
    ) -> Result<Self> {
        let mut command = Command::new(executable());
        command.arg0("tulle").arg("internal").args(flags).args(&program.arguments);
        Self::spawn_as(program, command, input, output, logs)
    }

    /// As [`Process::start`], by a command that sees to it that what it starts ends with us.
    pub(crate) fn start_as(program: Program, command: Command, input: Stdio, logs: &Path) -> Result<Self> {
        Self::spawn_as(program, command, input, None, logs)
    }

    fn spawn_as(
        program: Program,
        mut command: Command,
        input: Stdio,
        output: Option<Stdio>,
        logs: &Path,
    ) -> Result<Self> {
        let log = logs.join(format!("{}.log", program.name));
        let errors = OpenOptions::new().create(true).append(true).open(&log);
        let errors = errors.with_context(|| format!("cannot write {}", log.display()))?;
        let output = match output {
            Some(output) => output,
            None => errors.try_clone().context("the log's descriptor")?.into(),
        };
        // Settings of a mesh that is run in earnest from the same shell are not meant for this one; nor is what is said of the
        // telemetry of a program that is run in it.
        let meant_for_others = |name: &str| name.starts_with("TULLE_") || name.starts_with("OTEL_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| meant_for_others(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        let environment = program.environment.iter().map(|(name, value)| (name, value));
        let child = command
            .envs(environment)
            .stdin(input)
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

    /// The other ends of its pipes, where it has them: dropping the first asks it to end.
    pub(crate) fn pipes(&mut self) -> (Option<ChildStdin>, Option<ChildStdout>) {
        (self.child.stdin.take(), self.child.stdout.take())
    }

    /// Asks for its end, and waits for it for at most `patience`.
    pub(crate) async fn end(mut self, patience: Duration) {
        if self.ended().is_none()
            && let Some(pid) = i32::try_from(self.id()).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        let begun = Instant::now();
        while self.ended().is_none() && begun.elapsed() < patience {
            tokio::time::sleep(POLL / 5).await;
        }
    }

    /// Waits for its addresses file, which is moved into its place whole.
    pub(crate) async fn addresses(&mut self, file: &Path) -> Result<Addresses> {
        let begun = Instant::now();
        loop {
            if let Some(addresses) = Addresses::read(file)? {
                return Ok(addresses);
            }
            self.still_starting(begun, READY_WITHIN, "it did not say where it listens")?;
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until `/ready` is answered with 200.
    pub(crate) async fn ready(&mut self, origin: &Origin, within: Duration) -> Result<()> {
        let begun = Instant::now();
        while let Err(why) = is_ready(origin).await {
            let why = format!("http://{}/ready says: {why}", origin.address());
            self.still_starting(begun, within, &why)?;
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn still_starting(&mut self, begun: Instant, within: Duration, why: &str) -> Result<()> {
        let name = self.name().to_owned();
        if let Some(status) = self.ended() {
            bail!("{name} ended while it started ({status}); {}", self.log_tail());
        }
        if begun.elapsed() > within {
            bail!("{name} is not ready after {within:?}: {why}; {}", self.log_tail());
        }
        Ok(())
    }

    /// The process's log.
    pub(crate) fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
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
        // Nothing of ours is worth a slow end. An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Addresses ===

impl Addresses {
    /// `None` if there is no such file yet.
    pub(crate) fn read(file: &Path) -> Result<Option<Self>> {
        let Ok(text) = fs::read(file) else { return Ok(None) };
        serde_json::from_slice(&text).map(Some).with_context(|| format!("{}", file.display()))
    }

    pub(crate) fn get(&self, name: &str) -> Result<SocketAddr> {
        let known = || self.0.keys().cloned().collect::<Vec<_>>().join(", ");
        self.0.get(name).copied().with_context(|| format!("no listener `{name}` among {}", known()))
    }

    /// The first listener whose name begins so.
    pub(crate) fn first(&self, prefix: &str) -> Option<SocketAddr> {
        self.0.iter().find(|(name, _)| name.starts_with(prefix)).map(|(_, address)| *address)
    }
}

/// Whether `/ready` is answered with 200; if not, why.
pub(crate) async fn is_ready(origin: &Origin) -> Result<(), String> {
    match origin.get("/ready", &HeaderMap::new(), READY_WITHIN).await {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(String::from_utf8_lossy(answer.body()).trim().to_owned()),
        Err(error) => Err(format!("{error:#}")),
    }
}

pub(crate) fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// This binary, also where it was replaced on disk since it was started.
pub(crate) fn executable() -> PathBuf {
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
        fs::write(&path, lines.join("\n")).unwrap();
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
