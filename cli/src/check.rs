//! `tulle check`: what is wrong, before anybody has to find it out: in a folder of YAML (`folder`), or with a mesh in a Kubernetes cluster.
//!
//! Of a cluster everything that matters is read first (`read`), then judged by pure functions (`judge`), a line for each check of one table
//! (`catalogue`), from which the reference is made too. Reads only: what it asks the API server to create is a dry run or a question.

mod catalogue;
mod folder;
mod judge;
pub(crate) mod read;
mod rights;
pub(crate) mod seen;
mod text;
mod version;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde::Serialize;

use self::judge::{Check, Level};
use self::read::Asked;
pub(crate) use self::read::client;
use self::seen::Stage;
use crate::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  tulle check --pre                        before `tulle install`: may you, and will it work?
  tulle check                              the mesh in the cluster of the current context
  tulle check --context staging -o json | jq '.checks[] | select(.status != \"ok\")'
  tulle check --config-dir mesh/           a folder of YAML

Of a cluster it prints a line for each check, by a name that stays (docs/reference/checks.md), and
below what is not well what to do about it. What you may not read is said, and the rest goes on.

Of a folder it prints a line for each finding, in the form that editors jump from:
  FILE:LINE:COLUMN: error: KIND NAMESPACE/NAME: FIELD: MESSAGE (WHAT TO DO)
and one for each Service that a route is attached to, with the conditions that the Gateway API has for it:
  KIND NAMESPACE/NAME at Service NAMESPACE/NAME: Accepted, ResolvedRefs
and one for each target of a TrafficPolicy, RateLimitPolicy, FaultPolicy or TelemetryPolicy, with those that GEP-713 has for it:
  KIND NAMESPACE/NAME at KIND NAMESPACE/NAME: Accepted, Programmed

Exit status:
  0  no errors (there may be warnings)
  1  errors, or the folder or the cluster cannot be read
  2  wrong arguments";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CheckArgs {
    /// Look over this folder of YAML, as the control plane that is to serve it would; no cluster is asked.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["pre", "namespace", "context", "kubeconfig"])]
    config_dir: Option<PathBuf>,
    /// Whether the cluster is fit for the mesh, and you may install it; nothing of it needs to be there yet.
    #[arg(long)]
    pre: bool,
    /// The control plane's namespace.
    #[arg(long, short, value_name = "NAME", default_value = "tulle-system")]
    namespace: String,
    /// The context of the kubeconfig. By default the current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The kubeconfig. By default as kubectl finds it.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// How to print what is found.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Debug, Serialize)]
struct Checked {
    ok: bool,
    errors: usize,
    warnings: usize,
    checks: Vec<Check>,
}

/// Checks the folder, or the cluster.
///
/// # Errors
/// Those of standard output. That neither can be read is told as what is found is, so that `-o json` is JSON whatever is wrong.
pub(crate) fn run(arguments: &CheckArgs) -> Result<ExitCode> {
    if let Some(folder) = &arguments.config_dir {
        return folder::run(folder, arguments.output);
    }
    let asked = Asked {
        stage: if arguments.pre { Stage::Before } else { Stage::After },
        namespace: arguments.namespace.clone(),
        context: arguments.context.clone(),
        kubeconfig: arguments.kubeconfig.clone(),
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    let seen = runtime.block_on(read::read(&asked));
    // A connection that never came about must not keep the command from ending.
    runtime.shutdown_background();
    let checks = judge::judge(&seen);
    let count = |level| checks.iter().filter(|check| check.status == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    let checked = Checked { ok: errors == 0, errors, warnings, checks };
    match arguments.output {
        Format::Json => output::print_json(&checked)?,
        Format::Table => output::print(&text::table(&checked.checks, asked.stage))?,
    }
    Ok(if checked.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `1 error`, `2 errors`, `2 proxies`.
fn count(number: usize, noun: &str) -> String {
    match (number, noun.strip_suffix("xy")) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{number} {stem}xies"),
        (_, None) => format!("{number} {noun}s"),
    }
}
