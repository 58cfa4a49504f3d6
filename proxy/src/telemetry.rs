//! What the proxy tells about itself: metrics, access log, diagnostics, reasons.
//!
//! A leaf: every room may call it, and it calls none. `app` makes one [`Telemetry`], hands each worker thread its
//! [`WorkerTelemetry`], and runs the log's writer on the control thread.

pub mod access;
pub mod diagnostics;
mod digits;
pub mod lines;
pub mod metrics;
pub mod reason;
pub mod tap;
pub(crate) mod timestamp;
pub mod trace;

#[cfg(test)]
pub(crate) mod docs;

use std::sync::Arc;

use tulle_api::AccessLogFormat;

use self::access::Said;
pub use self::access::{AccessLog, Record};
pub use self::diagnostics::{Diagnostics, LogLevel};
use self::lines::LineOutput;
pub use self::metrics::{Metrics, WorkerMetrics};
pub use self::reason::Reason;
use self::tap::Taps;
use self::trace::export::Counts;
use self::trace::{Spans, Tracer, Traces};
use crate::config::Config;

/// All of it, for one proxy. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// What is measured.
    pub metrics: Metrics,
    /// How requests are traced, if they are.
    pub traces: Arc<Traces>,
    /// Who looks on.
    pub taps: Arc<Taps>,
    spans: Arc<Counts>,
    access: Option<LineOutput>,
    /// What the process's own settings say of the access log.
    said: Said,
    diagnostics: Option<Diagnostics>,
}

/// What one worker thread tells. Cheap to clone; for that thread only.
#[derive(Clone, Debug)]
pub struct WorkerTelemetry {
    /// What it counts.
    pub metrics: WorkerMetrics,
    /// What it logs.
    pub access: AccessLog,
}

// === impl Telemetry ===

impl Telemetry {
    /// For `workers` worker threads. The access log goes to standard error. `diagnostics` are those that `main`
    /// installed, if any.
    pub fn new(config: &Config, workers: usize, diagnostics: Option<Diagnostics>) -> Self {
        let wanted = config.access_log.format != Some(AccessLogFormat::None);
        let access = wanted.then(|| LineOutput::new(std::io::stderr()));
        Self::with_access_output(config, workers, diagnostics, access)
    }

    /// As [`Telemetry::new`], with the access log sent elsewhere, or nowhere.
    pub fn with_access_output(
        config: &Config,
        workers: usize,
        diagnostics: Option<Diagnostics>,
        access: Option<LineOutput>,
    ) -> Self {
        let metrics = Metrics::showing(
            config.metrics_labels,
            workers,
            config.metrics_max_series,
            &config.metrics_latency_buckets,
            config.load_report_interval.is_some(),
        );
        let (traces, spans, taps) = (Arc::default(), Arc::default(), Arc::default());
        let said = config.access_log.clone();
        let telemetry = Self { metrics, traces, taps, spans, access, said, diagnostics };
        let outputs = [("access", telemetry.access.clone()), ("diagnostics", telemetry.diagnostics_output())];
        telemetry.metrics.at_scrape(move |samples| {
            for (log, output) in &outputs {
                samples.extend(
                    output.as_ref().map(|output| metrics::Sample::lines_dropped(log, output.dropped())),
                );
            }
        });
        let (traces, spans) = (Arc::clone(&telemetry.traces), Arc::clone(&telemetry.spans));
        telemetry.metrics.at_scrape(move |samples| {
            if traces.were_on() {
                samples.extend(metrics::Sample::spans(&spans));
            }
        });
        let taps = Arc::clone(&telemetry.taps);
        telemetry.metrics.at_scrape(move |samples| samples.extend(metrics::Sample::taps(&taps)));
        telemetry
    }

    /// A queue of spans.
    pub fn spans(&self, limits: trace::Limits) -> Arc<Spans> {
        Arc::new(Spans::new(limits, Arc::clone(&self.spans)))
    }

    /// From now on requests are traced so, into that queue, or not at all.
    pub fn trace(&self, how: Option<(trace::How, Arc<Spans>)>) {
        self.traces.set(how.map(|(how, spans)| Arc::new(Tracer::new(how, spans))));
    }

    fn diagnostics_output(&self) -> Option<LineOutput> {
        self.diagnostics.as_ref().map(|diagnostics| diagnostics.output().clone())
    }

    /// For the worker thread of that index. To be called once for each.
    pub fn worker(&self, index: usize) -> WorkerTelemetry {
        let log = |output: &LineOutput| AccessLog::new(output.queue(), self.said.clone());
        let access = self.access.as_ref().map_or_else(AccessLog::disabled, log);
        WorkerTelemetry { metrics: self.metrics.worker(index), access }
    }

    /// Reads and changes what is logged; `None` where no diagnostics are installed.
    pub fn log_level(&self) -> Option<&LogLevel> {
        self.diagnostics.as_ref().map(Diagnostics::level)
    }

    /// Writes the logs, for ever. For the control thread.
    pub async fn run_logs(&self) {
        let run = |output: Option<LineOutput>| async move {
            match output {
                Some(output) => output.run().await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(run(self.access.clone()), run(self.diagnostics_output()));
    }

    /// Writes what is left of the logs. To be called before the process ends.
    pub fn flush(&self) {
        const LIMIT: std::time::Duration = std::time::Duration::from_secs(1);
        for output in [self.access.clone(), self.diagnostics_output()].into_iter().flatten() {
            output.flush(LIMIT);
        }
    }
}
