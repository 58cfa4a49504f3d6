//! `bench costs`: instructions and system calls that a request costs each proxy, beside those that `tests/costs.json` has.
//!
//! They do not depend on how fast or how busy the machine is, so CI can hold them. A pair serves some requests that do not
//! count, then so many that do: what starting, connecting and warming up cost is in neither figure.

mod record;
mod tool;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tulle_tests::Folder;

use self::record::{Figures, Record};
use self::tool::Tool;
use crate::backend::Backend;
use crate::load::{Load, Pace, Plan};
use crate::pair::Site;
use crate::peers::{Peer, tulle};
use crate::pki::Pki;
use crate::run::{until_told, with_binaries};
use crate::scenario::{Kind, Scenario};

/// Instructions and system calls for a request, compared with those on record.
#[derive(Debug, clap::Args)]
pub(crate) struct Costs {
    /// Which scenarios.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = SCENARIOS)]
    scenarios: Vec<Scenario>,
    /// Puts the figures on record in place of comparing them.
    #[arg(long)]
    record: bool,
    /// How often each is counted; the least counts.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// A folder of Tulle's binaries of profile release. Not given: they are built.
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Whose: `tulle`, which is on record, `tulle-silent` or `tulle-traced`, whose figures are only shown.
    #[arg(long, value_enum, default_value = "tulle")]
    peer: Peer,
    /// Where to leave callgrind's files, by scenario and side, for `callgrind_annotate`.
    #[arg(long)]
    keep: Option<PathBuf>,
}

const SCENARIOS: [Scenario; 8] = [
    Scenario::Http1One,
    Scenario::Http1,
    Scenario::Rules,
    Scenario::Http1New,
    Scenario::Http2,
    Scenario::Grpc,
    Scenario::Tcp,
    Scenario::TcpNew,
];
const SIDES: [&str; 2] = ["outbound", "inbound"];
/// Requests that do not count.
const WARM: usize = 512;
/// How often more is counted what has grown: what something else on the machine caused is not there each time.
const AGAIN: usize = 2;
/// How long requests may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is counted with.
struct Counting {
    options: Costs,
    site: Site,
}

// === impl Costs ===

impl Costs {
    pub(crate) fn run(mut self) -> Result<(), String> {
        if !matches!(self.peer, Peer::Tulle | Peer::Silent | Peer::Traced)
            || (self.record && self.peer != Peer::Tulle)
        {
            return Err("--peer: only tulle, tulle-silent and tulle-traced are counted, and only tulle is put on record".to_owned());
        }
        let versions = [Tool::Callgrind.version()?, Tool::Strace.version()?];
        with_binaries(self.bin_dir.take(), "release")?;
        let folder = Folder::new();
        let site =
            Site { pki: Pki::generate(&folder.path("pki")), folder, backend: Backend::start(), files: 1024 };
        let counting = Counting { options: self, site };
        until_told(counting.all(&versions.join(", ")))
    }
}

fn grew(record: Option<&Record>, scenario: Scenario, least: &BTreeMap<String, Figures>) -> bool {
    let only = BTreeMap::from([(scenario.name().to_owned(), least.clone())]);
    record.is_some_and(|record| record.allows(&only, "").is_err())
}

// === impl Counting ===

impl Counting {
    async fn all(&self, tools: &str) -> Result<(), String> {
        let shown = self.options.peer != Peer::Tulle;
        let record = if self.options.record || shown { None } else { Some(Record::read()?) };
        let mut now = BTreeMap::new();
        for scenario in &self.options.scenarios {
            let mut rounds = Vec::new();
            let least = loop {
                let figures = self.scenario(*scenario).await?;
                eprint!("{}", record::shown(&scenario.name(), &figures));
                rounds.push(figures);
                let least = record::least(rounds.clone());
                let enough =
                    self.options.rounds + if grew(record.as_ref(), *scenario, &least) { AGAIN } else { 0 };
                if rounds.len() >= enough {
                    break least;
                }
            };
            now.insert(scenario.name().to_owned(), least);
        }
        match record {
            None if shown => Ok(()),
            Some(record) => record.allows(&now, tools),
            None => {
                let record = Record::read().unwrap_or_default().with(&now, tools);
                record.keeps_budgets(&now)?;
                record.write()
            }
        }
    }

    /// Both sides' figures.
    async fn scenario(&self, scenario: Scenario) -> Result<BTreeMap<String, Figures>, String> {
        let instructions = self.counted(Tool::Callgrind, scenario).await?;
        let calls = self.counted(Tool::Strace, scenario).await?;
        let both = instructions.into_iter().zip(calls);
        let figures = both.map(|(instructions, calls)| Figures {
            instructions: instructions.values().sum(),
            system_calls: calls,
        });
        Ok(SIDES.map(str::to_owned).into_iter().zip(figures).collect())
    }

    /// Counts for a request: outbound, inbound.
    async fn counted(&self, tool: Tool, scenario: Scenario) -> Result<[BTreeMap<String, f64>; 2], String> {
        let Kind::Load(plan, _) = scenario.kind() else {
            return Err(format!("{} is no scenario of requests", scenario.name()));
        };
        let purpose = scenario.purpose();
        let set = |program| tool.wrapped(self.options.peer.set(program, &self.site), &self.site);
        let mut pair = tulle::start(purpose, &self.site, set).await;
        if matches!(tool, Tool::Callgrind) {
            // A proxy that reads its clock for the page of metrics dies under valgrind, which hides the kernel's own library from it.
            pair.judged = None;
        }
        pair.forwards(purpose.speaks).await?;
        let proxies = pair.proxies.ok_or("no proxies")?;
        let load = Load::start(Plan { pace: Pace::Granted, ..plan }, pair.front);
        answered(&load, WARM).await?;
        let count = requests(scenario);
        let counts = tool.during(proxies, &self.site, answered(&load, count)).await?;
        load.stop();
        if let (Tool::Callgrind, Some(keep)) = (tool, &self.options.keep) {
            for (side, pid) in SIDES.into_iter().zip([proxies.outbound, proxies.inbound]) {
                let to = keep.join(format!("callgrind.{}.{side}", scenario.name()));
                let copied = std::fs::create_dir_all(keep)
                    .and_then(|()| std::fs::copy(tool::dumped(pid, &self.site), &to));
                copied.map_err(|error| format!("{}: {error}", to.display()))?;
            }
        }
        let each = |counts: tool::Counts| {
            counts.into_iter().map(|(name, total)| (name, total as f64 / count as f64)).collect()
        };
        Ok(counts.map(each))
    }
}

/// Requests that count. Handshakes cost more, and differ less.
fn requests(scenario: Scenario) -> usize {
    if scenario == Scenario::TcpNew { 256 } else { 2048 }
}

/// Has so many more requests sent, and waits until they are answered.
async fn answered(load: &Load, requests: usize) -> Result<(), String> {
    let begun = Instant::now();
    let due = load.answered() + requests as u64;
    load.grant(requests);
    while load.answered() < due {
        if let Some(error) = load.failure() {
            return Err(format!("a request failed: {error}"));
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!(
                "{} of {requests} requests were not answered within {PATIENCE:?}",
                due - load.answered()
            ));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
