//! A room for one program: its network namespace, and what `/etc` says there of names.
//!
//! Holds the process within the namespace ([`super::namespace`]) and says how a program is started there
//! ([`mod@super::enter`]), and how the proxy outside is to be. Used by `tulle run` and by the demo.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::getpid;
use tulle_proxy::config::DNS_PORT;
use tulle_proxy::intercept::ENCLOSED_PORT;

use super::namespace::{IPV6, READY};
use crate::process::{Process, Program, executable, strings};

/// How long the processes of a room may take to be killed.
const END_WITHIN: Duration = Duration::from_secs(6);
/// An address that nobody has (RFC 5737), so that queries to it are led to the proxy as those to any other are.
const NAME_SERVER: &str = "192.0.2.53";

/// Dropping it ends every process in it.
#[derive(Debug)]
pub(crate) struct Room {
    namespace: Process,
    /// Open for as long as the room is to be.
    hold: Option<ChildStdin>,
    socket: PathBuf,
    ipv6: bool,
    /// File → what it is seen in place of.
    replaced: Vec<(PathBuf, &'static str)>,
}

// === impl Room ===

impl Room {
    /// Makes one, with its files in `folder`, for a workload of `namespace`; what it refuses from then on is told to
    /// `refused`, on a thread of its own, until the room is gone.
    ///
    /// # Errors
    /// The kernel forbids it; then nothing is left.
    pub(crate) fn open(
        name: &str,
        folder: &Path,
        logs: &Path,
        namespace: &str,
        refused: impl Fn(&str) + Send + 'static,
    ) -> Result<Self> {
        let socket = folder.join(format!("{name}.sockets"));
        let arguments = strings(&["namespace", "--socket", &socket.to_string_lossy()]);
        let program = Program { name: format!("{name}-namespace"), arguments, environment: Vec::new() };
        let mut process = Process::start_piped(program, logs)?;
        let (hold, output) = process.pipes();
        let mut lines = BufReader::new(output.context("a pipe")?);
        let mut first = String::new();
        lines.read_line(&mut first).context("the namespace's process")?;
        let Some(has) = first.trim_end().strip_prefix(READY) else {
            let log = process.log_text();
            bail!("{}", log.trim().strip_prefix("tulle: ").unwrap_or("the namespace's process ended"));
        };
        let ipv6 = has.trim() == IPV6;
        tell(lines, refused)?;
        let replaced = replacements(folder, name, namespace)?;
        Ok(Self { namespace: process, hold, socket, ipv6, replaced })
    }

    /// The proxy's flags.
    pub(crate) fn proxy_flags(&self) -> Vec<String> {
        let listen = |port: u16| {
            let v6 = if self.ipv6 { format!(",[::1]:{port}") } else { String::new() };
            format!("127.0.0.1:{port}{v6}")
        };
        strings(&[
            "--outbound-listen",
            &listen(ENCLOSED_PORT),
            "--dns-listen",
            &listen(DNS_PORT),
            "--namespace-socket",
            &self.socket.to_string_lossy(),
        ])
    }

    /// A program in the room, that ends when the calling thread does.
    pub(crate) fn command(&self, program: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(executable());
        command
            .arg0("tulle")
            .args(["internal", "enter", "--with", &getpid().as_raw_nonzero().to_string()])
            .args(["--namespace", &self.namespace.id().to_string()]);
        for (file, place) in &self.replaced {
            command.args(["--replace", &format!("{}={place}", file.display())]);
        }
        command.arg("--").args(program);
        command
    }

    /// Fails once the process that holds the namespace has ended, which it never should.
    pub(crate) fn watch(&mut self) -> Result<()> {
        match self.namespace.ended() {
            Some(status) => {
                bail!("the namespace's process ended ({status}); {}", self.namespace.log_tail())
            }
            None => Ok(()),
        }
    }
}

/// Ends every process in the room, and the namespace.
impl Drop for Room {
    fn drop(&mut self) {
        drop(self.hold.take());
        let begun = Instant::now();
        while self.namespace.ended().is_none() && begun.elapsed() < END_WITHIN {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Reads what was refused until the other end is closed.
fn tell(lines: BufReader<ChildStdout>, refused: impl Fn(&str) + Send + 'static) -> Result<()> {
    let body = move || lines.lines().map_while(Result::ok).for_each(|line| refused(&line));
    std::thread::Builder::new().name("refused".to_owned()).spawn(body).context("a thread")?;
    Ok(())
}

/// Writes what stands in place of `/etc/resolv.conf` and, where it would have names looked up past the proxy,
/// `/etc/nsswitch.conf`.
fn replacements(folder: &Path, name: &str, namespace: &str) -> Result<Vec<(PathBuf, &'static str)>> {
    const RESOLVER: &str = "/etc/resolv.conf";
    const SWITCH: &str = "/etc/nsswitch.conf";
    const CACHE: &str = "/run/nscd/socket";
    let mut replaced = Vec::new();
    let mut write = |file: &str, text: String, place| {
        let path = folder.join(format!("{name}.{file}"));
        fs::write(&path, text)
            // Also for other users that the program may become.
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o644)))
            .with_context(|| format!("cannot write {}", path.display()))?;
        replaced.push((path, place));
        anyhow::Ok(())
    };
    let text = fs::read_to_string(RESOLVER).with_context(|| {
        format!("{RESOLVER} cannot be read; the program would not find names: make one, if only an empty one")
    })?;
    write("resolv.conf", resolver(&text, namespace), RESOLVER)?;
    if let Some(text) = fs::read_to_string(SWITCH).ok().and_then(|text| switch(&text)) {
        write("nsswitch.conf", text, SWITCH)?;
    }
    // The cache of another network's names. Where nobody answers, programs look for themselves.
    if Path::new(CACHE).exists() {
        replaced.push(("/dev/null".into(), CACHE));
    }
    Ok(replaced)
}

/// `/etc/resolv.conf` with the proxy as its only server, and the workload's namespace searched first.
fn resolver(text: &str, namespace: &str) -> String {
    let lines = || text.lines().map(str::trim);
    let last = |keys: &[&str]| {
        lines().rev().find_map(|line| {
            let (key, rest) = line.split_once(char::is_whitespace)?;
            keys.contains(&key).then(|| rest.trim())
        })
    };
    let search = last(&["search", "domain"]).unwrap_or_default();
    let mut out = format!("nameserver {NAME_SERVER}\nsearch {namespace}.svc.cluster.local {search}\n");
    if let Some(options) = last(&["options"]) {
        out.push_str(&format!("options {options}\n"));
    }
    out
}

/// `/etc/nsswitch.conf` without what looks names up elsewhere than in files and DNS; `None` if it is so already.
fn switch(text: &str) -> Option<String> {
    let hosts = |line: &str| line.trim_start().starts_with("hosts:");
    let asks_others = |line: &str| {
        let services = line.split_once(':').map_or("", |(_, services)| services);
        let services = services.split('#').next().unwrap_or_default();
        services.split_whitespace().any(|service| !matches!(service, "files" | "dns" | "myhostname"))
    };
    if !text.lines().any(|line| hosts(line) && asks_others(line)) {
        return None;
    }
    let lines = text.lines().map(|line| if hosts(line) { "hosts: files dns" } else { line });
    Some(lines.map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_domains_and_options_stay_and_the_servers_go() {
        let text = "# by somebody\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch corp.example lan\n";
        let expected =
            "nameserver 192.0.2.53\nsearch shop.svc.cluster.local corp.example lan\noptions edns0 trust-ad\n";
        assert_eq!(resolver(text, "shop"), expected);
        assert_eq!(
            resolver("nameserver 10.0.0.1", "default").lines().nth(1),
            Some("search default.svc.cluster.local ")
        );
    }

    #[test]
    fn names_are_looked_up_in_files_and_dns_only() {
        assert_eq!(switch("passwd: files systemd\nhosts: files dns\n"), None);
        assert_eq!(switch(""), None);
        let text = "passwd: files systemd\nhosts: files resolve [!UNAVAIL=return] dns\nnetworks: files\n";
        let expected = "passwd: files systemd\nhosts: files dns\nnetworks: files\n";
        assert_eq!(switch(text).as_deref(), Some(expected));
    }
}
