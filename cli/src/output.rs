//! Standard output whose reader may leave: `tulle completion bash | head` is no error.

use std::io::{self, ErrorKind, Write as _};

use anyhow::{Context as _, Result};

/// How findings and facts are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// One JSON object.
    Json,
}

/// Prints `text` and a line's end.
///
/// # Errors
/// Those of standard output, except that its reader has gone.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("standard output"),
    }
}

/// Prints `value` as JSON, for people and programs alike.
///
/// # Errors
/// As [`print()`].
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(&serde_json::to_string_pretty(value).context("JSON")?)
}
