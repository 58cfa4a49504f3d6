//! The control plane at scale: thousands of simulated proxies against the real `tulle-control-plane`, and what that costs it.
//!
//! `docs/performance.md` says how to read the table.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark says what went wrong by ending")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tulle_tests::fleet::{Counted, Fleet, GENERATIONS, Plan, Random, Source};
use tulle_tests::machine::{self, Busy};
use tulle_tests::{Mode, World, usage};

#[derive(Debug, Parser)]
#[command(name = "simulate", about = "A control plane and thousands of simulated proxies")]
struct Options {
    /// Simulated proxies; each is two file descriptors of this machine, one of them of this process.
    #[arg(long, default_value_t = 1000)]
    proxies: usize,
    /// Services.
    #[arg(long, default_value_t = 1000)]
    services: usize,
    /// Endpoints of each service.
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// Services that each proxy uses; 0: all.
    #[arg(long, default_value_t = 15)]
    uses: usize,
    /// Changes of endpoints in a second.
    #[arg(long, default_value_t = 100.0)]
    changes: f64,
    /// For how long they are made.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Where endpoints come from.
    #[arg(long, value_enum, default_value_t = From::Reports)]
    source: From,
    /// Kills the control plane afterwards, starts it again, and measures the return of all.
    #[arg(long)]
    restart: bool,
    /// Begins the sequence of changes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum From {
    /// Workloads register over their Report streams.
    Reports,
    /// EndpointSlices in the folder.
    Files,
}

/// How long anything may take that is bound to happen.
const PATIENCE: Duration = Duration::from_secs(180);
/// For how long a mesh without changes is looked at.
const IDLE: Duration = Duration::from_secs(3);

/// One phase, as measured.
struct Phase {
    began: Instant,
    busy: Busy,
    control_plane: usage::Cpu,
    own: usage::Cpu,
    counted: Counted,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let options = Options::parse();
    raise_file_limit();
    match run(&options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simulate: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<(), String> {
    let plan = Plan {
        proxies: options.proxies,
        services: options.services,
        endpoints: options.endpoints,
        uses: if options.uses == 0 { options.services } else { options.uses.min(options.services) },
        source: match options.source {
            From::Reports => Source::Reports,
            From::Files => Source::Files,
        },
    };
    if options.changes * options.seconds > f64::from(GENERATIONS) {
        return Err(format!("at most {GENERATIONS} changes can be told apart: fewer --changes or --seconds"));
    }
    println!("{}", machine::describe());
    println!(
        "{} proxies, {} services of {} endpoints each, {} used by each proxy, endpoints from {:?}\n",
        plan.proxies, plan.services, plan.endpoints, plan.uses, plan.source
    );
    println!("{HEAD}");
    let world = World::start_with(Mode::Strict, |program| program.flag("--log-level", "warn")).await;
    let mut fleet = Fleet::start(plan, world);
    let mut random = Random(options.seed);

    let phase = Phase::begin(&mut fleet);
    fleet.ready(PATIENCE).await?;
    phase.end(&mut fleet, "all join at once", 0);

    let phase = Phase::begin(&mut fleet);
    tokio::time::sleep(IDLE).await;
    phase.end(&mut fleet, "nothing changes", 0);

    changes(&mut fleet, options, "changes", &mut random).await?;
    if options.restart {
        fleet.world().kill_control_plane().await;
        fleet.disturbed(PATIENCE).await?;
        let begun = Instant::now();
        fleet.world().restart_control_plane().await;
        let up = begun.elapsed();
        // Of the new process, all counts.
        let phase = Phase { began: begun, control_plane: usage::Cpu::default(), ..Phase::begin(&mut fleet) };
        fleet.ready(PATIENCE).await?;
        phase.end(
            &mut fleet,
            &format!("killed and started again (ready after {:.0} ms), all return", up.as_secs_f64() * 1e3),
            0,
        );
        changes(&mut fleet, options, "changes after that", &mut random).await?;
    }
    Ok(())
}

async fn changes(
    fleet: &mut Fleet,
    options: &Options,
    name: &str,
    random: &mut Random,
) -> Result<(), String> {
    fleet.ledger().take_latencies();
    let phase = Phase::begin(fleet);
    let made = fleet.change_for(options.changes, Duration::from_secs_f64(options.seconds), random).await;
    fleet.converge(PATIENCE).await?;
    phase.end(fleet, name, made);
    Ok(())
}

const HEAD: &str = "| phase | s | cores | MiB (peak) | changes | arrivals | p50 ms | p99 ms | max ms | MB sent | of it resources | least \
                    | responses | resources | unasked, repeated | failures | cores of the simulator | of others |\n\
                    | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |";

// === impl Phase ===

impl Phase {
    fn begin(fleet: &mut Fleet) -> Self {
        Self {
            began: Instant::now(),
            busy: Busy::now(),
            control_plane: usage::cpu(fleet.world().control_plane().pid()),
            own: usage::cpu(std::process::id()),
            counted: fleet.ledger().counted(),
        }
    }

    fn end(self, fleet: &mut Fleet, name: &str, changes: u64) {
        let seconds = self.began.elapsed().as_secs_f64();
        let pid = fleet.world().control_plane().pid();
        let counted = fleet.ledger().counted() - self.counted;
        let cores = |now: usage::Cpu, then: usage::Cpu| (now - then).total / 1e6 / seconds;
        let control_plane = cores(usage::cpu(pid), self.control_plane);
        let family = cores(usage::cpu(std::process::id()), self.own);
        let others = Busy::now().cores_since(self.busy, seconds) - family;
        let latencies: Histogram<u64> = fleet.ledger().take_latencies();
        let millis = |at: f64| format!("{:.1}", latencies.value_at_quantile(at) as f64 / 1e3);
        let [p50, p99, max] =
            if latencies.is_empty() { [const { String::new() }; 3] } else { [0.5, 0.99, 1.0].map(millis) };
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let (resident, peak) = usage::resident_and_peak(pid);
        println!(
            "| {name} | {seconds:.1} | {control_plane:.2} | {:.0} ({:.0}) | {changes} | {} | {p50} | {p99} | {max} | {:.1} | {:.1} | {:.1} | {} | {} | {}, {} | {} | {:.2} | {:.2} |",
            resident as f64 / 1048576.0,
            peak as f64 / 1048576.0,
            latencies.len(),
            megabytes(counted.wire_in),
            megabytes(counted.resource_bytes),
            megabytes(counted.least_bytes),
            counted.responses,
            counted.resources,
            counted.unasked,
            counted.repeated,
            counted.failures,
            family - control_plane,
            others.max(0.0),
        );
    }
}

/// Each proxy's connection is a descriptor.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        eprintln!("cannot raise the limit of open files: {error}");
    }
}
