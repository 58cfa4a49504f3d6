//! One process under test.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::wait::eventually;

/// What to run, and under which name its logs are kept.
#[derive(Clone, Debug)]
pub struct Program {
    /// For messages and file names.
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its variables, beside `PATH` and `TMPDIR`; nothing else is inherited.
    pub environment: Vec<(String, OsString)>,
}

/// A world's folder. It goes with the last one who holds it: a process's logs outlive the process.
#[derive(Clone, Debug)]
pub struct Folder(Arc<TempDir>);

/// A started process. It is killed when dropped, and its logs are printed if the test is failing then.
#[derive(Debug)]
pub struct Process {
    program: Program,
    child: Child,
    started: Instant,
    /// Where its logs are.
    folder: Folder,
    ended: Option<ExitStatus>,
}

// === impl Folder ===

impl Folder {
    /// A new one, with a folder for logs, tokens and addresses files in it.
    #[expect(clippy::new_without_default, reason = "a default makes no folder")]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("tulle-test.").tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("run")).expect("a folder");
        Self(Arc::new(folder))
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Where logs, tokens and addresses files are.
    pub fn run(&self) -> PathBuf {
        self.path("run")
    }
}

// === impl Program ===

impl Program {
    /// A program without arguments.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), path: path.into(), arguments: Vec::new(), environment: Vec::new() }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds a flag and its value.
    #[must_use]
    pub fn flag(self, flag: &str, value: impl Into<OsString>) -> Self {
        self.arg(flag).arg(value)
    }

    /// Takes a flag and its value away.
    #[must_use]
    pub fn without(mut self, flag: &str) -> Self {
        if let Some(at) = self.arguments.iter().position(|argument| argument == flag) {
            self.arguments.drain(at..(at + 2).min(self.arguments.len()));
        }
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Where the process tells its bound addresses, when it was started with `--addresses-file` on this.
    pub fn addresses_file(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.addresses.json", self.name))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).env_clear();
        for name in ["PATH", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs it to its end.
    pub fn output(&self) -> std::process::Output {
        let output = self.command().stdin(Stdio::null()).output();
        output.unwrap_or_else(|error| panic!("{} does not start: {error}", self.path.display()))
    }
}

// === impl Process ===

impl Process {
    /// Starts it, with its logs in `folder`. Logs are added to: a second start does not lose those of the first. The addresses that a
    /// forerunner of the same name told are gone: they are not its own.
    pub fn start(program: Program, folder: &Folder) -> Self {
        match fs::remove_file(program.addresses_file(&folder.run())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("an old addresses file: {error}"),
            _ => {}
        }
        let log = |kind: &str| {
            let path = folder.run().join(format!("{}.{kind}", program.name));
            File::options().create(true).append(true).open(path).expect("a log file")
        };
        let started = Instant::now();
        let child = program
            .command()
            .stdin(Stdio::null())
            .stdout(log("out"))
            .stderr(log("err"))
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", program.path.display()));
        Self { program, child, started, folder: folder.clone(), ended: None }
    }

    /// What was started.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// How long ago it was started.
    pub fn running(&self) -> Duration {
        self.started.elapsed()
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it and its forerunners of the same name wrote to standard output.
    pub fn stdout(&self) -> String {
        self.log("out")
    }

    /// Everything that it and its forerunners of the same name wrote to standard error.
    pub fn stderr(&self) -> String {
        self.log("err")
    }

    /// A proxy's access log so far.
    pub fn access_log(&self) -> Vec<Value> {
        self.stderr().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a record of the access log whose fields have these values.
    pub async fn logs(&self, fields: &[(&str, Value)]) -> Value {
        eventually(&format!("{} logs {fields:?}", self.program.name), async || {
            let log = self.access_log();
            let has = |record: &&Value| fields.iter().all(|(field, value)| record[*field] == *value);
            log.iter().find(has).cloned().ok_or_else(|| format!("{log:#?}"))
        })
        .await
    }

    fn log(&self, kind: &str) -> String {
        let path = self.folder.run().join(format!("{}.{kind}", self.program.name));
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child's status");
        }
        self.ended
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> ExitStatus {
        let what = format!("{} ends", self.program.name);
        eventually(&what, async || self.ended().ok_or_else(|| "it still runs".to_owned())).await
    }

    /// Sends a signal; nothing happens if it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none()
            && let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait().await
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait().await;
    }

    /// The addresses that it bound, once it tells them.
    pub async fn addresses(&mut self) -> BTreeMap<String, SocketAddr> {
        let path = self.program.addresses_file(&self.folder.run());
        let what = format!("{} tells its addresses", self.program.name);
        eventually(&what, async || {
            if let Some(status) = self.ended() {
                panic!("{} ended while starting: {status}\n{}", self.program.name, self.tail());
            }
            let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let addresses: BTreeMap<String, String> =
                serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
            let parse = |(name, address): (String, String)| {
                address
                    .parse()
                    .map(|address| (name, address))
                    .map_err(|_| format!("not an address: {address}"))
            };
            addresses.into_iter().map(parse).collect()
        })
        .await
    }

    /// The last lines of both logs.
    pub fn tail(&self) -> String {
        let mut text = String::new();
        for (kind, log) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(12)..];
            text.push_str(&format!("--- {} {kind}\n{}\n", self.program.name, last.join("\n")));
        }
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_has_a_name_that_was_used_before_tells_its_own_addresses() {
        let folder = Folder::new();
        let start = |after: &str, port: u16| {
            let program = Program::new("web", "/bin/sh");
            let file = program.addresses_file(&folder.run());
            let says =
                "sleep $1; echo \"{\\\"a\\\":\\\"127.0.0.1:$2\\\"}\" > $3.new; mv $3.new $3; exec sleep 600";
            let program = program.arg("-c").arg(says).arg("sh").arg(after).arg(port.to_string()).arg(file);
            Process::start(program, &folder)
        };
        let told = async |process: &mut Process| process.addresses().await["a"].port();
        let mut first = start("0", 1);
        assert_eq!(told(&mut first).await, 1);
        // It has not told anything yet when it is asked.
        let mut second = start("0.3", 2);
        assert_eq!(told(&mut second).await, 2);
    }
}
