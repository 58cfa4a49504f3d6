//! The demo's client: steady requests to `web`'s application, as a browser would send them.
//!
//! Open loop: a request is due whenever the clock says so, however long the answers take, so that a stall shows as
//! latency and not as silence. Its own count is beside the edges' in the verdict: what the proxies did not notice, the
//! client does. It knows what it asks for, and takes nothing but 2xx for success: a request that policy refuses has not failed by
//! [`tulle_api::request_failed`], by which the edges go, yet it is not what somebody who has just edited the demo's YAML may overlook.

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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// Answers every request on every connection with `answer`.
    async fn server(answer: &'static str) -> Origin {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        Origin::new(address, None).unwrap()
    }

    async fn drive(answer: &'static str, requests: u64) -> Traffic {
        let driver = Driver::new(server(answer).await, 1000.0).unwrap();
        let enough = async {
            while driver.traffic().requests < requests {
                tokio::task::yield_now().await;
            }
        };
        driver.run(enough).await;
        driver.traffic()
    }

    #[tokio::test]
    async fn every_request_that_was_sent_is_counted_once() {
        let traffic = drive("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 20).await;
        assert!(traffic.requests >= 20);
        assert_eq!((traffic.failed, traffic.last_failure), (0, None));
        assert!(traffic.latency.len() == traffic.requests);
    }

    #[tokio::test]
    async fn a_failure_names_the_innermost_service_that_tells_why() {
        let traffic = drive(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 102\r\n\r\n\
             {\"service\":\"web\",\"upstream\":{\"service\":\"orders\",\"error\":\"no_healthy_endpoint\",\"upstream\":\"no text\"}}  ",
            3,
        )
        .await;
        assert_eq!(traffic.failed, traffic.requests);
        assert_eq!(traffic.last_failure.unwrap(), "status 503: orders says no_healthy_endpoint");
    }

    #[tokio::test]
    async fn nobody_there_is_a_failure() {
        let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let driver = Driver::new(Origin::new(unused, None).unwrap(), 1000.0).unwrap();
        let one = async {
            while driver.traffic().requests == 0 {
                tokio::task::yield_now().await;
            }
        };
        driver.run(one).await;
        let traffic = driver.traffic();
        assert_eq!(traffic.failed, traffic.requests);
        assert!(traffic.last_failure.unwrap().contains("connect"));
    }
}
