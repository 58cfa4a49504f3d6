//! `tulle internal …`: the processes of `tulle demo` and `tulle run`, each the library's program under this binary's name.
//!
//! Hidden: who runs a proxy or a control plane in earnest has `tulle-proxy` and `tulle-control-plane`, with the same
//! flags.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use tulle_proxy::config::{self, ConfigError};
use tulle_proxy::{app, telemetry};

use crate::run::{EnterArgs, NamespaceArgs, enter, hold_namespace};
use crate::{process, service};

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
    /// A proxy.
    #[command(disable_help_flag = true)]
    Proxy {
        /// The flags of `tulle-proxy`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<OsString>,
    },
    /// A network namespace, for as long as standard input is open.
    Namespace(NamespaceArgs),
    /// A program in such a namespace.
    Enter(EnterArgs),
    /// One of the demo's small services.
    Service(service::ServiceArgs),
}

/// Runs the program to its end.
///
/// # Errors
/// It cannot start.
pub(crate) fn run(arguments: InternalArgs) -> Result<ExitCode> {
    if let Some(parent) = arguments.parent {
        process::follow_parent(parent)?;
    }
    match arguments.program {
        Program::ControlPlane(config) => {
            tulle_control_plane::app::install_log(&config)?;
            tulle_control_plane::app::run(&config)?;
        }
        Program::Proxy { flags } => proxy(flags)?,
        Program::Namespace(arguments) => hold_namespace(&arguments)?,
        Program::Enter(arguments) => return enter(&arguments),
        Program::Service(arguments) => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
            runtime.block_on(service::run(arguments))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The proxy's binary with flags, and with what OpenTelemetry's variables say: only the command that started it sets those.
fn proxy(flags: Vec<OsString>) -> Result<()> {
    let name = "tulle internal proxy";
    let arguments = std::iter::once(name.into()).chain(flags);
    // Other variables speak of other proxies.
    let environment = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTEL_"));
    let loaded = match config::load(clap::Command::new(name), arguments, environment) {
        Ok(loaded) => loaded,
        Err(ConfigError::Arguments(error)) => error.exit(),
        Err(error) => return Err(error.into()),
    };
    let diagnostics = telemetry::diagnostics::install(&loaded.config.log_level, loaded.config.log_format)?;
    app::run(&loaded.config, Some(diagnostics))
}
