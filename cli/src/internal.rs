//! `tulle internal …`: the demo's own processes, each the library's program under this binary's name.
//!
//! Hidden: who runs a proxy or a control plane in earnest has `tulle-proxy` and `tulle-control-plane`, with the same
//! flags.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Subcommand;

use crate::{demo, service};

#[derive(Debug, clap::Args)]
pub(crate) struct InternalArgs {
    /// End with this process, the one that started it.
    #[arg(long, value_name = "PID")]
    parent: Option<i32>,
    #[command(subcommand)]
    program: Program,
}

#[derive(Debug, Subcommand)]
enum Program {
    /// A control plane.
    ControlPlane(Box<tulle_control_plane::config::Config>),
    /// One of the demo's small services.
    Service(service::ServiceArgs),
}

/// Runs the program to its end.
///
/// # Errors
/// It cannot start.
pub(crate) fn run(arguments: InternalArgs) -> Result<ExitCode> {
    if let Some(parent) = arguments.parent {
        demo::follow_parent(parent)?;
    }
    match arguments.program {
        Program::ControlPlane(config) => {
            tulle_control_plane::app::install_log(&config)?;
            tulle_control_plane::app::run(&config)?;
        }
        Program::Service(arguments) => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
            runtime.block_on(service::run(arguments))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
