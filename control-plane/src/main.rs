//! The control plane's binary: configuration in, exit status out.

use std::process::ExitCode;

use tulle_control_plane::app;
use tulle_control_plane::config::{self, Config};

fn main() -> ExitCode {
    let config = Config::load(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let ended = app::install_log(&config).and_then(|()| {
        for name in config::unknown_variables(std::env::vars_os().map(|(name, _)| name)) {
            tracing::warn!("the variable {name} is no setting; see --help for those that there are");
        }
        app::run(&config)
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tulle-control-plane: {}", app::describe(&error));
            ExitCode::FAILURE
        }
    }
}
