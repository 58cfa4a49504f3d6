//! `tulle version`.

use anyhow::Result;
use serde_json::json;

use crate::output::{self, Format};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tulle version\n  tulle version -o json")]
pub(crate) struct VersionArgs {
    /// How to print it.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

/// Prints the version. Proxy, control plane and command are always built together.
///
/// # Errors
/// Those of standard output.
pub(crate) fn run(arguments: &VersionArgs) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    match arguments.output {
        Format::Json => output::print_json(&json!({ "version": version })),
        Format::Table => output::print(&format!("tulle {version}")),
    }
}
