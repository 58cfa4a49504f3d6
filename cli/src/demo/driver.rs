//! The demo's client: steady requests to `web`'s application, as a browser would send them.
//!
//! Open loop: a request is due whenever the clock says so, however long the answers take, so that a stall shows as
//! latency and not as silence. Its own count is beside the edges' in the verdict: what the proxies did not notice, the
//! client does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::http::Origin;

/// How long the client waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that may wait for their answers at one time.
const MAX_IN_FLIGHT: usize = 1024;

/// What came of the requests.
#[derive(Debug, Clone)]
pub(crate) struct Traffic {
    /// Those that were answered or failed.
    pub(crate) requests: u64,
    /// Without an answer, or answered with another status than 2xx.
    pub(crate) failed: u64,
    /// Due, but not sent, since too many were on their way.
    pub(crate) skipped: u64,
    pub(crate) last_failure: Option<String>,
    /// In microseconds.
    latency: Histogram<u64>,
}

/// Sends until told to stop.
#[derive(Debug)]
pub(crate) struct Driver {
    origin: Arc<Origin>,
    interval: Duration,
    traffic: Arc<Mutex<Traffic>>,
    in_flight: Arc<Semaphore>,
}

// === impl Driver ===

impl Driver {
    /// `rps` requests per second, more than zero.
    pub(crate) fn new(origin: Origin, rps: f64) -> Result<Self> {
        Ok(Self {
            origin: Arc::new(origin),
            interval: Duration::from_secs_f64(1.0 / rps),
            traffic: Arc::new(Mutex::new(Traffic::new()?)),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
        })
    }

    /// What came of the requests so far.
    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic.lock().clone()
    }

    /// Sends a request at each interval until `stop` is done, then waits for the answers to those that were sent.
    pub(crate) async fn run(&self, stop: impl Future<Output = ()>) {
        let mut due = tokio::time::interval(self.interval);
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut requests = JoinSet::new();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                _ = due.tick() => self.send(&mut requests),
                Some(_) = requests.join_next() => {}
            }
        }
        while requests.join_next().await.is_some() {}
    }

    fn send(&self, requests: &mut JoinSet<()>) {
        let Ok(permit) = Arc::clone(&self.in_flight).try_acquire_owned() else {
            self.traffic.lock().skipped += 1;
            return;
        };
        let (origin, traffic) = (Arc::clone(&self.origin), Arc::clone(&self.traffic));
        requests.spawn(async move {
            let sent = Instant::now();
            let answer = origin.get("/", &HeaderMap::new(), TIMEOUT).await;
            let failure = match answer {
                Ok(answer) if answer.status().is_success() => None,
                Ok(answer) => Some(failure(answer.status(), answer.body())),
                Err(error) => Some(format!("{error:#}")),
            };
            traffic.lock().count(sent.elapsed(), failure);
            drop(permit);
        });
    }
}

/// The status and, from the innermost service that tells one, the error.
fn failure(status: http::StatusCode, body: &[u8]) -> String {
    let mut body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let mut why = String::new();
    loop {
        if let Some(error) = body["error"].as_str() {
            why = format!(": {} says {error}", body["service"].as_str().unwrap_or("a service"));
        }
        match body.get_mut("upstream") {
            Some(upstream) => body = upstream.take(),
            None => return format!("status {}{why}", status.as_u16()),
        }
    }
}

// === impl Traffic ===

impl Traffic {
    pub(crate) fn new() -> Result<Self> {
        let latency =
            Histogram::new_with_bounds(1, 60_000_000, 3).context("the client's latency histogram")?;
        Ok(Self { requests: 0, failed: 0, skipped: 0, last_failure: None, latency })
    }

    fn count(&mut self, latency: Duration, failure: Option<String>) {
        self.requests += 1;
        self.latency.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        if failure.is_some() {
            self.failed += 1;
            self.last_failure = failure;
        }
    }

    /// The latency that the share `q` (0 to 1) of the requests did not exceed.
    pub(crate) fn quantile(&self, q: f64) -> Option<Duration> {
        (self.requests > 0).then(|| Duration::from_micros(self.latency.value_at_quantile(q)))
    }
}
