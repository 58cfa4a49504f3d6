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
        self.report()
    }

    /// What was carried since the last report, due or not: there will be no other. `None`: none are made.
    pub(super) fn last(mut self) -> Option<v1::Load> {
        self.due.is_some().then(|| v1::Load { is_last: true, ..self.report() })
    }

    fn report(&mut self) -> v1::Load {
        let (load, now) = (self.metrics.load(), Instant::now());
        let rows = load.since(&self.told);
        let elapsed = now.duration_since(std::mem::replace(&mut self.at, now));
        self.told = load;
        let milliseconds = elapsed.as_millis().try_into().unwrap_or(u64::MAX);
        v1::Load { milliseconds, rows, untold: self.metrics.untold(), is_last: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{Direction, Method, Outcome, RequestLabels, TlsKind};

    #[tokio::test(start_paused = true)]
    async fn the_last_report_is_of_what_the_one_before_does_not_tell() {
        let metrics = Metrics::new(1, 2000, &[]);
        let worker = metrics.worker(0);
        let labels = RequestLabels {
            direction: Direction::Outbound,
            tls: TlsKind::Mtls,
            peer: "",
            service: "shop/orders:80",
            route: "",
            backend: "",
        };
        let record = || {
            let (method, reason) = (Method::Get, None);
            let outcome = Outcome { method, status: 200, grpc_status: None, reason, by_peer: false };
            worker.requests(&labels).record(outcome, Duration::from_millis(1));
        };
        let mut loads = Loads::new(&metrics, Some(Duration::from_secs(5)));
        record();
        let due = loads.next().await;
        assert_eq!((due.rows[0].requests, due.is_last), (1, false));
        (0..3).for_each(|_| record());
        let last = loads.last().unwrap();
        assert_eq!((last.rows[0].requests, last.is_last), (3, true));
        assert!(Loads::new(&metrics, None).last().is_none(), "nothing is reported");
    }
}
