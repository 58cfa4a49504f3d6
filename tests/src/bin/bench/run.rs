//! The run: rounds of purposes of peers, and what each scenario measures.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};
use tulle_tests::Folder;

use crate::Options;
use crate::backend::Backend;
use crate::bare::Speaks;
use crate::cgroup::Quota;
use crate::load::{self, Load, Pace, Plan, Traffic, http1, tcp};
use crate::pair::{Pair, Site, Used};
use crate::peers::Peer;
use crate::pki::Pki;
use crate::report::{Report, Sample};
use crate::scenario::{Kind, Scenario};
use tulle_tests::machine::{self, Busy};
use tulle_tests::usage;

/// A program that ends when the benchmark does, however that ends.
#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    #[arg(long)]
    parent: i32,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// How a run measures.
struct Run {
    options: Options,
    site: Site,
}

/// Where the harness looks for Tulle's binaries.
const BINARIES: &str = "TULLE_TEST_BIN_DIR";
/// Ports that the kernel gives out for connections to one address, usually.
const PORTS: usize = 27_000;
/// How long after a burst its memory should be back.
const AFTERWARDS: Duration = Duration::from_secs(60);

// === impl Exec ===

impl Exec {
    pub(crate) fn run(self) -> Result<(), String> {
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| error.to_string())?;
        // It may have ended before the kernel was asked.
        if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(self.parent) {
            return Err("the benchmark has ended".to_owned());
        }
        let (program, arguments) = self.command.split_first().ok_or("no program")?;
        let error = Command::new(program).args(arguments).exec();
        Err(format!("{}: {error}", program.display()))
    }
}

pub(crate) fn run(mut options: Options) -> Result<(), String> {
    with_binaries(options.bin_dir.take(), "dist")?;
    if options.quick {
        options.rounds = 1;
        options.seconds = options.seconds.min(1.0);
    }
    let folder = Folder::new();
    let files = usize::try_from(load::raise_file_limit(70_000)).unwrap_or(usize::MAX);
    let site = Site { pki: Pki::generate(&folder.path("pki")), folder, backend: Backend::start(), files };
    until_told(Run { options, site }.all())
}

/// Runs until `work` is done or the benchmark is told to end. Either way what was started ends, and what was made is removed.
pub(crate) fn until_told(work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    // On the first thread: children end with the thread that started them.
    runtime.map_err(|error| error.to_string())?.block_on(async {
        let mut told = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        tokio::select! {
            done = work => done,
            _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
            _ = told.recv() => Err("told to end".to_owned()),
        }
    })
}

/// Sees to it that [`tulle_tests::binary`] finds the binaries of `folder`, or newly built ones with the proxy by `profile`:
/// becomes this program again with the variable that says so.
pub(crate) fn with_binaries(folder: Option<PathBuf>, profile: &str) -> Result<(), String> {
    if std::env::var_os(BINARIES).is_some() {
        return Ok(());
    }
    let folder = folder.map_or_else(|| build(profile), Ok)?;
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let arguments = std::env::args_os().skip(1);
    Err(Command::new(own).args(arguments).env(BINARIES, folder).exec().to_string())
}

/// Builds the proxy by `profile`, and what is not measured with less patience. Says where they are.
fn build(profile: &str) -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no workspace")?;
    let target = root.join("target");
    let folder = target.join("bench").join(profile);
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let all = [
        (profile, "tulle-proxy", "tulle-proxy"),
        ("release", "tulle-control-plane", "tulle-control-plane"),
        ("release", "tulle-cli", "tulle"),
    ];
    for (profile, package, binary) in all {
        eprintln!("building {binary} by profile {profile}");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args([
            "build",
            "--quiet",
            "--locked",
            "--profile",
            profile,
            "--package",
            package,
            "--target-dir",
        ]);
        let built =
            build.arg(&target).current_dir(root).status().map_err(|error| format!("cargo: {error}"))?;
        if !built.success() {
            return Err(format!("{package} does not build"));
        }
        std::fs::copy(target.join(profile).join(binary), folder.join(binary))
            .map_err(|error| format!("{binary}: {error}"))?;
    }
    Ok(folder)
}

// === impl Run ===

impl Run {
    async fn all(mut self) -> Result<(), String> {
        let mut report = Report::new(machine::describe(), &self.options);
        let mut peers = Vec::new();
        for peer in std::mem::take(&mut self.options.peers) {
            match peer.version(&self.options) {
                Ok(version) => {
                    report.version(peer, version);
                    peers.push(peer);
                }
                Err(why) => {
                    eprintln!("missing: {}: {why}", peer.name());
                    report.missing(peer, why);
                }
            }
        }
        let groups = groups(&self.options.scenarios);
        for round in 1..=self.options.rounds {
            for group in &groups {
                for peer in &peers {
                    eprintln!("round {round} of {}: {}: {}", self.options.rounds, peer.name(), names(group));
                    self.group(*peer, group, &mut report).await;
                }
                report.save(&self.options.output)?;
            }
        }
        println!("{}", report.markdown());
        eprintln!("saved to {0} and {0}'s .json", self.options.output.display());
        Ok(())
    }

    /// Scenarios that share a pair.
    async fn group(&self, peer: Peer, group: &[Scenario], report: &mut Report) {
        let Some(first) = group.first() else { return };
        let purpose = first.purpose();
        if let Some(why) = peer.lacks(purpose) {
            return group.iter().for_each(|scenario| report.lacks(*scenario, peer, why.to_owned()));
        }
        let pair = match peer.start(purpose, &self.site, &self.options).await {
            Ok(pair) => pair,
            Err(error) => {
                eprintln!("{error}");
                return group.iter().for_each(|scenario| report.lacks(*scenario, peer, error.clone()));
            }
        };
        for scenario in group {
            match self.measure(*scenario, &pair).await {
                Ok(sample) => report.add(*scenario, peer, sample),
                Err(error) => {
                    eprintln!("{}: {}: {error}", peer.name(), scenario.name());
                    report.lacks(*scenario, peer, error);
                }
            }
            pair.empty_logs(&self.site);
        }
    }

    async fn measure(&self, scenario: Scenario, pair: &Pair) -> Result<Sample, String> {
        match scenario.kind() {
            Kind::Load(plan, rate) => self.load(plan, rate, pair).await,
            Kind::Body(bytes) => body(scenario.purpose().speaks, bytes, pair).await,
            Kind::Idle(count) => self.idle(scenario.purpose().speaks, count, pair).await,
            Kind::Quota(plan, rate, cores) => self.quota(plan, rate, cores, pair).await,
            Kind::Burst(connections) => self.burst(connections, pair).await,
            Kind::Start => Ok(started(pair)),
        }
    }

    fn seconds(&self) -> Duration {
        Duration::from_secs_f64(self.options.seconds)
    }

    async fn load(&self, plan: Plan, rate: u32, pair: &Pair) -> Result<Sample, String> {
        let mut sample = Sample::new();
        self.closed(plan, pair, &mut sample).await?;
        memory(pair, "loaded", &mut sample);
        self.open(Plan { pace: Pace::Rate(rate), ..plan }, pair, &mut sample).await?;
        Ok(sample)
    }

    /// Cost and throughput.
    async fn closed(&self, plan: Plan, pair: &Pair, sample: &mut Sample) -> Result<(), String> {
        let load = Load::start(plan, pair.front);
        tokio::time::sleep(self.seconds() / 3).await;
        let (busy, own) = (Busy::now(), usage::cpu(std::process::id()));
        let (before, answered, begun) = (pair.used(), load.answered(), Instant::now());
        tokio::time::sleep(self.seconds()).await;
        let (used, requests) = (pair.used(), load.answered() - answered);
        let took = begun.elapsed().as_secs_f64();
        let (after, own) = (Busy::now(), usage::cpu(std::process::id()) - own);
        finish(load, requests)?;
        let requests = requests as f64;
        sample.insert("rps", requests / took);
        if pair.proxies.is_some() {
            costs(before, used, requests, sample);
        }
        sample.insert("others", (after.cores_since(busy, took) - own.total / 1e6 / took).max(0.0));
        sample.insert("stolen", after.stolen_since(busy, took));
        Ok(())
    }

    /// Latencies.
    async fn open(&self, plan: Plan, pair: &Pair, sample: &mut Sample) -> Result<(), String> {
        let load = Load::start(plan, pair.front);
        tokio::time::sleep(self.seconds() / 3).await;
        let answered = load.answered();
        load.record(true);
        tokio::time::sleep(self.seconds()).await;
        load.record(false);
        let requests = load.answered() - answered;
        let latencies = finish(load, requests)?;
        let milliseconds = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e6;
        sample.insert("p50", milliseconds(0.5));
        sample.insert("p99", milliseconds(0.99));
        sample.insert("p999", milliseconds(0.999));
        Ok(())
    }

    async fn idle(&self, speaks: Speaks, wanted: usize, pair: &Pair) -> Result<Sample, String> {
        let wanted = if self.options.quick { wanted / 30 } else { wanted };
        let count = wanted.min(self.site.connections()).min(PORTS);
        if count < wanted {
            eprintln!(
                "{count} connections in place of {wanted}: {} files may be open, {PORTS} ports be used",
                self.site.files
            );
        }
        let mut sample = Sample::new();
        let Some((outbound, inbound)) = pair.resident() else { return Ok(sample) };
        let held = match speaks {
            Speaks::Tcp => tcp::idle(pair.front, count).await,
            _ => http1::idle(pair.front, count).await,
        };
        let held = held.map_err(|error| format!("of {count} idle connections one failed: {error}"))?;
        // Longer than pooled connections may idle.
        tokio::time::sleep(Duration::from_secs(5)).await;
        if let Some((outbound_now, inbound_now)) = pair.resident() {
            let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / 1024.0 / count as f64;
            sample.insert("idle_out", each(outbound_now, outbound));
            sample.insert("idle_in", each(inbound_now, inbound));
        }
        sample.insert("connections", held.len() as f64);
        drop(held);
        tokio::time::sleep(Duration::from_secs(if self.options.quick { 2 } else { 10 })).await;
        memory(pair, "after", &mut sample);
        Ok(sample)
    }

    async fn quota(&self, plan: Plan, rate: u32, cores: f64, pair: &Pair) -> Result<Sample, String> {
        let Some(proxies) = pair.proxies else { return Ok(Sample::new()) };
        let _limits = [Quota::of(proxies.outbound, cores)?, Quota::of(proxies.inbound, cores)?];
        let mut sample = Sample::new();
        let before = pair.used();
        let begun = Instant::now();
        self.open(Plan { pace: Pace::Rate(rate), ..plan }, pair, &mut sample).await?;
        let requests = begun.elapsed().as_secs_f64() * f64::from(rate);
        costs(before, pair.used(), requests, &mut sample);
        Ok(sample)
    }

    async fn burst(&self, connections: usize, pair: &Pair) -> Result<Sample, String> {
        let mut sample = Sample::new();
        if pair.proxies.is_none() {
            return Ok(sample);
        }
        memory(pair, "fresh", &mut sample);
        let few = Plan { traffic: Traffic::Http1, connections: connections / 100, pace: Pace::Closed };
        self.closed(few, pair, &mut Sample::new()).await?;
        memory(pair, "before", &mut sample);
        self.closed(Plan { connections, ..few }, pair, &mut Sample::new()).await?;
        memory(pair, "loaded", &mut sample);
        let afterwards = if self.options.quick { AFTERWARDS / 10 } else { AFTERWARDS };
        tokio::time::sleep(afterwards).await;
        memory(pair, "after", &mut sample);
        Ok(sample)
    }
}

/// How the pair came up, and what it weighs.
fn started(pair: &Pair) -> Sample {
    let mut sample = Sample::new();
    if let (Some(proxies), Some(ready)) = (pair.proxies, pair.ready) {
        sample.insert("ready", ready.as_secs_f64() * 1e3);
        sample.insert("binary", usage::binary(proxies.outbound) as f64 / 1e6);
    }
    memory(pair, "fresh", &mut sample);
    sample
}

/// CPU seconds for each gibibyte.
async fn body(speaks: Speaks, bytes: u64, pair: &Pair) -> Result<Sample, String> {
    let others = if speaks == Speaks::Tcp { 4 } else { 0 };
    let others = tcp::idle(pair.front, others).await.map_err(|error| format!("no echo: {error}"))?;
    let before = pair.used();
    let begun = Instant::now();
    http1::download(pair.front, bytes).await.map_err(|error| format!("the body broke off: {error}"))?;
    let took = begun.elapsed().as_secs_f64();
    let used = pair.used();
    let mut sample = Sample::new();
    sample.insert("gib_s", bytes as f64 / f64::from(1 << 30) / took);
    if pair.proxies.is_some() {
        sample.insert("gib_out", (used.outbound - before.outbound).total / 1e6);
        sample.insert("gib_in", (used.inbound - before.inbound).total / 1e6);
    }
    memory(pair, "loaded", &mut sample);
    drop(others);
    Ok(sample)
}

fn finish(load: Load, requests: u64) -> Result<hdrhistogram::Histogram<u64>, String> {
    let seen = load.stop();
    let why = seen.error.unwrap_or_default();
    if requests == 0 {
        return Err(format!("nothing was answered: {why}"));
    }
    if seen.failed > 0 {
        return Err(format!("{} requests failed beside {requests} answered: {why}", seen.failed));
    }
    Ok(seen.latencies)
}

fn costs(before: Used, after: Used, requests: f64, sample: &mut Sample) {
    let (outbound, inbound) = (after.outbound - before.outbound, after.inbound - before.inbound);
    sample.insert("out", outbound.total / requests);
    sample.insert("out_system", outbound.system() / requests);
    sample.insert("in", inbound.total / requests);
    sample.insert("in_system", inbound.system() / requests);
    sample.insert("each", (outbound.total + inbound.total) / 2.0 / requests);
}

/// The larger of the two, in MiB: what a user would notice.
fn memory(pair: &Pair, when: &'static str, sample: &mut Sample) {
    if let Some((outbound, inbound)) = pair.resident() {
        sample.insert(when, outbound.max(inbound) as f64 / f64::from(1 << 20));
    }
}

/// Scenarios by what they share a pair for, in their order.
fn groups(scenarios: &[Scenario]) -> Vec<Vec<Scenario>> {
    let mut shared: BTreeMap<usize, Vec<Scenario>> = BTreeMap::new();
    for (at, scenario) in scenarios.iter().enumerate() {
        let same = |other: &Scenario| !other.alone() && other.purpose() == scenario.purpose();
        let first = scenarios.iter().position(same).filter(|_| !scenario.alone()).unwrap_or(at);
        shared.entry(first).or_default().push(*scenario);
    }
    shared.into_values().collect()
}

fn names(group: &[Scenario]) -> String {
    group.iter().map(|scenario| scenario.name()).collect::<Vec<_>>().join(", ")
}
