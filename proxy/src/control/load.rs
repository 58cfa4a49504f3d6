//! When a load report is due, and what is in it. Nothing is kept between two streams: a report tells of its own stream's time.

use std::time::{Duration, Instant};

use tokio::time::{Interval, MissedTickBehavior};
use tulle_api::v1;

use crate::telemetry::metrics::{Load, Metrics};

/// The reports of one stream.
pub(super) struct Loads {
    metrics: Metrics,
    /// `None`: never.
    due: Option<Interval>,
    told: Load,
    at: Instant,
}

// === impl Loads ===

impl Loads {
    /// From now on, every so often; `None`: never.
    pub(super) fn new(metrics: &Metrics, every: Option<Duration>) -> Self {
        let due = every.map(|every| {
            let mut due = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            due
        });
        let told = if due.is_some() { metrics.load() } else { Load::default() };
        Self { told, metrics: metrics.clone(), due, at: Instant::now() }
    }

    /// The next report, once it is due. Nothing is lost when it is not waited for to the end.
    pub(super) async fn next(&mut self) -> v1::Load {
        match &mut self.due {
            Some(due) => due.tick().await,
            None => std::future::pending().await,
        };
        let (load, now) = (self.metrics.load(), Instant::now());
        let rows = load.since(&self.told);
        let elapsed = now.duration_since(std::mem::replace(&mut self.at, now));
        self.told = load;
        let milliseconds = elapsed.as_millis().try_into().unwrap_or(u64::MAX);
        v1::Load { milliseconds, rows, untold: self.metrics.untold() }
    }
}
