//! What the proxy says about its own work: `tracing` events as lines on standard output.
//!
//! Lines take the way of [`LineOutput`], so that a reader who does not read stops nobody. The level can be changed while
//! the proxy runs ([`LogLevel`]). Only `main` installs this, once per process.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tracing::Subscriber;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Registry, fmt, reload};
use tulle_api::{InvalidLogLevel, log_filter};

use super::lines::{LineOutput, Lines};
use crate::config::LogFormat;

/// How long the end of the process waits for whoever reads the log.
const LAST_FLUSH: Duration = Duration::from_secs(1);

/// Reads and changes what is logged. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogLevel {
    handle: reload::Handle<Targets, Registry>,
    directives: Arc<Mutex<String>>,
}

/// Diagnostics that were installed.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    output: LineOutput,
    level: LogLevel,
}

/// Diagnostics that cannot be installed.
#[derive(Debug, thiserror::Error)]
pub enum DiagnosticsError {
    /// Not a level or directives.
    #[error(transparent)]
    Level(#[from] InvalidLogLevel),
    /// There are some already.
    #[error("diagnostics are installed already: {0}")]
    Installed(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// A line is an event: `tracing_subscriber` writes each with one call.
struct LineWriter<'a>(&'a Lines);

struct MakeLineWriter(Arc<Lines>);

/// Makes a subscriber that writes to `output`.
///
/// # Errors
/// The level, if it is none.
pub fn subscriber(
    level: &str,
    format: LogFormat,
    output: &LineOutput,
) -> Result<(impl Subscriber + Send + Sync + use<>, LogLevel), DiagnosticsError> {
    let filter = log_filter(level)?;
    let (filter, handle) = reload::Layer::new(filter);
    let writer = MakeLineWriter(output.queue());
    let (json, text) = match format {
        LogFormat::Json => (Some(fmt::layer().json().flatten_event(true).with_writer(writer)), None),
        LogFormat::Text => (None, Some(fmt::layer().with_ansi(false).with_writer(writer))),
    };
    let level = LogLevel { handle, directives: Arc::new(Mutex::new(level.to_owned())) };
    Ok((Registry::default().with(filter).with(json).with(text), level))
}

/// Sends this process's events to standard output from now on.
///
/// # Errors
/// The level is none, or another subscriber is installed.
pub fn install(level: &str, format: LogFormat) -> Result<Diagnostics, DiagnosticsError> {
    let output = LineOutput::prompt(io::stdout());
    let (subscriber, level) = subscriber(level, format, &output)?;
    tracing::subscriber::set_global_default(subscriber)?;
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new({
        let output = output.clone();
        move |info| {
            output.flush(LAST_FLUSH);
            before(info);
        }
    }));
    Ok(Diagnostics { output, level })
}

// === impl Diagnostics ===

impl Diagnostics {
    /// Where lines go: `run` it on the control thread.
    pub fn output(&self) -> &LineOutput {
        &self.output
    }

    /// Reads and changes what is logged.
    pub fn level(&self) -> &LogLevel {
        &self.level
    }

    /// Writes what is left. To be called before the process ends.
    pub fn flush(&self) {
        self.output.flush(LAST_FLUSH);
    }
}

// === impl LogLevel ===

impl LogLevel {
    /// As it was last set.
    pub fn get(&self) -> String {
        self.directives.lock().clone()
    }

    /// Sets it, for everything that is logged from now on.
    ///
    /// # Errors
    /// What is wrong with the directives; nothing is changed then.
    pub fn set(&self, directives: &str) -> Result<(), String> {
        let filter = log_filter(directives).map_err(|error| error.to_string())?;
        let mut current = self.directives.lock();
        self.handle.reload(filter).map_err(|error| error.to_string())?;
        directives.clone_into(&mut current);
        Ok(())
    }
}

// === impl LineWriter ===

impl io::Write for LineWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.append(|out| out.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> fmt::MakeWriter<'a> for MakeLineWriter {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    fn logged(format: LogFormat, work: impl FnOnce(&LogLevel)) -> String {
        let mut file = tempfile::tempfile().unwrap();
        let output = LineOutput::new(file.try_clone().unwrap());
        let (subscriber, level) = subscriber("info", format, &output).unwrap();
        tracing::subscriber::with_default(subscriber, || work(&level));
        output.flush(Duration::ZERO);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn json_lines_hold_the_fields() {
        let text = logged(LogFormat::Json, |_| {
            tracing::info!(port = 15001, "listening");
            tracing::debug!("not this");
        });
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["message"], "listening");
        assert_eq!(value["port"], 15001);
        assert_eq!(value["level"], "INFO");
    }

    #[test]
    fn the_level_changes_while_it_runs() {
        let text = logged(LogFormat::Text, |level| {
            tracing::debug!("first");
            level.set("debug").unwrap();
            assert_eq!(level.get(), "debug");
            tracing::debug!("second");
            assert!(level.set("a=b=c").is_err());
            assert_eq!(level.get(), "debug");
        });
        assert!(!text.contains("first") && text.contains("second"), "{text}");
    }

    #[test]
    fn a_bad_level_is_an_error() {
        let output = LineOutput::new(tempfile::tempfile().unwrap());
        assert!(matches!(subscriber("a=b=c", LogFormat::Text, &output), Err(DiagnosticsError::Level(_))));
    }
}
