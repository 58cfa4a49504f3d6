//! The proxy's binary: configuration in, exit status out.

use std::process::ExitCode;

use tulle_proxy::{admin, app, config, intercept, telemetry};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tulle-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let command = clap::Command::new("tulle-proxy")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Tulle's data plane: a small proxy beside every service");
    let command = config::with_flags(command).subcommand(intercept::command());
    let matches = command.subcommand(admin::drain_command()).get_matches();
    match matches.subcommand() {
        Some(("intercept", matches)) => return Ok(intercept::run(matches, std::env::vars_os())?),
        Some((_, matches)) => return Ok(admin::drain(matches, std::env::vars_os())?),
        None => {}
    }
    let config::Loaded { config, warnings } = config::from_matches(&matches, std::env::vars_os())?;
    let diagnostics = telemetry::diagnostics::install(&config.log_level, config.log_format)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    app::run(&config, Some(diagnostics))
}
