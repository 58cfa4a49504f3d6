//! Two proxies that run, and what is known of them.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tulle_tests::{Folder, Process, Program};

use crate::backend::Backend;
use crate::bare::Speaks;
use crate::load::{http1, http2, tcp};
use crate::pki::Pki;
use tulle_tests::usage::{self, Cpu};

/// What a pair is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Purpose {
    /// What clients and the backend speak.
    pub(crate) speaks: Speaks,
    /// How many routes are looked at in vain before the one that fits.
    pub(crate) routes: usize,
    /// How many rules of a policy there are, of which the last lets a request in.
    pub(crate) rules: usize,
}

/// What peers are started with.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) folder: Folder,
    pub(crate) pki: Pki,
    pub(crate) backend: Backend,
    /// How many files each process may have open.
    pub(crate) files: usize,
}

/// A pair that runs. It ends when this is dropped.
pub(crate) struct Pair {
    /// Where the client connects.
    pub(crate) front: SocketAddr,
    /// The two proxies' processes; none where there is no proxy.
    pub(crate) proxies: Option<Proxies>,
    /// How long it took from the start until it may be used.
    pub(crate) ready: Option<Duration>,
    /// Where its logs are, if not in the site's folder.
    pub(crate) folder: Option<Folder>,
    /// Where there are rules: who counts what they say, and the one that must let requests in.
    pub(crate) judged: Option<(SocketAddr, &'static str)>,
    /// Whatever must live as long.
    _held: Box<dyn std::any::Any>,
}

/// The processes of a pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proxies {
    pub(crate) outbound: u32,
    pub(crate) inbound: u32,
}

/// What both have used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) outbound: Cpu,
    pub(crate) inbound: Cpu,
}

/// Descriptors for anything else.
const SPARE_FILES: usize = 1000;
/// How long a pair may take until it forwards.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

// === impl Site ===

impl Site {
    /// The backend's address for what is spoken.
    pub(crate) fn backend(&self, speaks: Speaks) -> SocketAddr {
        match speaks {
            Speaks::Http1 => self.backend.http1,
            Speaks::Http2 => self.backend.http2,
            Speaks::Tcp => self.backend.echo,
        }
    }

    /// How many connections a proxy can carry, each with a descriptor on either side.
    pub(crate) fn connections(&self) -> usize {
        self.files.saturating_sub(SPARE_FILES) / 2
    }

    /// Writes a configuration file.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path(name);
        std::fs::write(&path, text).expect("a file");
        path
    }

    /// Starts a program that ends with the benchmark, however that ends.
    pub(crate) fn start(&self, program: Program) -> Process {
        Process::start(leashed(program), &self.folder)
    }
}

/// The same program, which ends when this one does.
pub(crate) fn leashed(program: Program) -> Program {
    let exec = ["exec", "--parent", &std::process::id().to_string(), "--"].map(Into::into);
    let own = std::env::current_exe().expect("this program");
    let arguments =
        exec.into_iter().chain([program.path.into_os_string()]).chain(program.arguments).collect();
    Program { path: own, arguments, ..program }
}

/// An address that was free a moment ago, for programs that cannot be asked which they took.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound address")
}

// === impl Pair ===

impl Pair {
    pub(crate) fn new(front: SocketAddr, proxies: Option<Proxies>, held: impl std::any::Any) -> Self {
        Self { front, proxies, ready: None, folder: None, judged: None, _held: Box::new(held) }
    }

    /// Two processes, the outbound one first.
    pub(crate) fn of(front: SocketAddr, processes: [Process; 2]) -> Self {
        let proxies = Proxies { outbound: processes[0].pid(), inbound: processes[1].pid() };
        Self::new(front, Some(proxies), processes)
    }

    /// Waits until something passes through both, let in by the rule that is meant to, where there are rules.
    pub(crate) async fn forwards(&self, speaks: Speaks) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let before = self.let_in().await;
            let tried = match speaks {
                Speaks::Http1 => http1::idle(self.front, 1).await.map(drop),
                Speaks::Http2 => http2::one(self.front).await,
                Speaks::Tcp => {
                    let echo = tokio::time::timeout(Duration::from_secs(2), tcp::idle(self.front, 1)).await;
                    echo.map_err(std::io::Error::other).and_then(|echo| echo.map(drop))
                }
            };
            let after = self.let_in().await;
            let (by_rule, by_others) = (after.0 - before.0, after.1 - before.1);
            match tried {
                Ok(()) if self.judged.is_none() || (by_rule > 0.5 && by_others < 0.5) => return Ok(()),
                Ok(()) if begun.elapsed() > PATIENCE => {
                    let rule = self.judged.map(|(_, rule)| rule).unwrap_or_default();
                    return Err(format!(
                        "a request was let in by {rule} {by_rule} times, by other rules {by_others} times"
                    ));
                }
                Err(error) if begun.elapsed() > PATIENCE => {
                    return Err(format!("it does not forward: {error}"));
                }
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// How many requests were let in so far by the rule that is meant to, and by others.
    async fn let_in(&self) -> (f64, f64) {
        let Some((metrics, rule)) = self.judged else { return (0.0, 0.0) };
        let metrics = tulle_tests::scrape(metrics).await;
        let count = |labels: &[(&str, &str)]| metrics.sum("tulle_policy_verdicts_total", labels);
        let by_rule = count(&[("verdict", "allow"), ("rule", rule)]);
        (by_rule, count(&[("verdict", "allow")]) - by_rule)
    }

    /// Empties the logs, which grow by gigabytes otherwise.
    pub(crate) fn empty_logs(&self, site: &Site) {
        let folder = self.folder.as_ref().unwrap_or(&site.folder);
        for entry in std::fs::read_dir(folder.run()).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|ending| ending == "out" || ending == "err") {
                let _ = std::fs::File::options().write(true).truncate(true).open(entry.path());
            }
        }
    }

    pub(crate) fn used(&self) -> Used {
        self.proxies.map_or_else(Used::default, |proxies| Used {
            outbound: usage::cpu(proxies.outbound),
            inbound: usage::cpu(proxies.inbound),
        })
    }

    /// What the two hold of memory: outbound, inbound.
    pub(crate) fn resident(&self) -> Option<(u64, u64)> {
        self.proxies.map(|proxies| (usage::resident(proxies.outbound), usage::resident(proxies.inbound)))
    }
}
