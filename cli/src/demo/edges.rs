//! What flows along each edge, from the counters of the calling workload's proxy.
//!
//! Pure: times and the text of `/metrics` come in, [`Row`]s go out. The live table looks at the last seconds, so that a
//! changed weight shows at once; the summary and the verdict look at everything since traffic began.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tulle_api::request_failed;

use super::histogram::Histogram;
use super::scrape::Line;

/// Rates are over this long: short enough that a changed weight shows within a second.
const RATE_WINDOW: Duration = Duration::from_secs(2);
/// Quantiles want more observations.
const LATENCY_WINDOW: Duration = Duration::from_secs(10);

/// Who calls whom, and with which identity the called must answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) from: String,
    pub(crate) to: String,
    /// What the calling proxy calls `to` in its metrics: `<namespace>/<service>:<port>`.
    pub(crate) backend: String,
    /// The SPIFFE ID that the called workload has.
    pub(crate) identity: String,
}

/// What one proxy counted for one edge since it started.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Counters {
    requests: f64,
    failed: f64,
    mutual_tls: f64,
    latency: Histogram,
    /// Requests by the identity that the peer proved.
    identities: BTreeMap<String, f64>,
    /// Failed requests by the proxy's reason, else by status.
    failures: BTreeMap<String, f64>,
}

/// All edges' counters at one time, in the order of the edges.
#[derive(Debug, Clone)]
struct Sample {
    at: Instant,
    counters: Vec<Counters>,
}

/// The samples of the last seconds and the one before traffic.
#[derive(Debug)]
pub(crate) struct History {
    edges: Vec<Edge>,
    baseline: Sample,
    recent: VecDeque<Sample>,
}

/// One line of the table, one element of `edges` in JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    /// 0 to 1; `None` without requests.
    pub(crate) success_rate: Option<f64>,
    pub(crate) rps: f64,
    /// Of the requests that left `from`; `None` without requests, or where there is only one such edge.
    pub(crate) share: Option<f64>,
    pub(crate) p50: Option<Duration>,
    pub(crate) p99: Option<Duration>,
    /// Every request went over mutual TLS, and every answer came from the expected identity.
    pub(crate) mtls: bool,
    /// The identity that answered; several with commas; empty when none did.
    pub(crate) identity: String,
    /// Why requests failed, in short.
    pub(crate) failures: Vec<String>,
}

/// A workload's `/metrics`, read into lines; the workload's name beside it.
pub(crate) type Scrapes<'a> = &'a [(&'a str, Vec<Line>)];

// === impl Counters ===

impl Counters {
    /// Sums up the series of outbound requests to `backend`.
    fn read(lines: &[Line], backend: &str) -> Self {
        let mut counters = Self::default();
        for line in lines {
            // Where no route chose a backend, it is the service itself.
            let chosen = Some(line.label("backend")).filter(|chosen| !chosen.is_empty());
            if chosen.unwrap_or_else(|| line.label("service")) != backend {
                continue;
            }
            match line.name.as_str() {
                "http_client_request_duration_seconds_bucket" => {
                    counters.latency.add(line.label("le"), line.value)
                }
                "tulle_requests_total" if line.label("direction") == "outbound" => counters.count(line),
                _ => {}
            }
        }
        counters
    }

    fn count(&mut self, line: &Line) {
        if line.value <= 0.0 {
            return;
        }
        self.requests += line.value;
        let (status, reason) = (line.label("status"), line.label("reason"));
        let grpc_status = line.label("grpc_status").parse().ok();
        if request_failed(line.label("method"), status.parse().ok(), grpc_status, reason) {
            self.failed += line.value;
            let why = if reason.is_empty() { format!("status {status}") } else { reason.to_owned() };
            *self.failures.entry(why).or_default() += line.value;
        }
        if line.label("tls") == "mtls" {
            self.mutual_tls += line.value;
        }
        let peer = line.label("peer");
        if !peer.is_empty() {
            *self.identities.entry(peer.to_owned()).or_default() += line.value;
        }
    }

    fn since(&self, earlier: &Self) -> Self {
        // A proxy that began anew counts from zero: all of it is new.
        if self.requests < earlier.requests {
            return self.clone();
        }
        let of_each = |now: &BTreeMap<String, f64>, then: &BTreeMap<String, f64>| {
            let since = now.iter().map(|(key, count)| (key.clone(), count - then.get(key).unwrap_or(&0.0)));
            since.filter(|(_, count)| *count > 0.0).collect()
        };
        Self {
            requests: self.requests - earlier.requests,
            failed: self.failed - earlier.failed,
            mutual_tls: self.mutual_tls - earlier.mutual_tls,
            latency: self.latency.since(&earlier.latency),
            identities: of_each(&self.identities, &earlier.identities),
            failures: of_each(&self.failures, &earlier.failures),
        }
    }
}

// === impl History ===

impl History {
    /// `scrapes` are of before any traffic.
    pub(crate) fn new(edges: Vec<Edge>, at: Instant, scrapes: Scrapes<'_>) -> Self {
        let baseline = Sample::read(&edges, at, scrapes);
        Self { recent: VecDeque::from([baseline.clone()]), baseline, edges }
    }

    /// Takes in what the proxies count now.
    pub(crate) fn push(&mut self, at: Instant, scrapes: Scrapes<'_>) {
        self.recent.push_back(Sample::read(&self.edges, at, scrapes));
        // The last sample that is as old as the longest window stays.
        while self.recent.get(1).is_some_and(|second| at.duration_since(second.at) >= LATENCY_WINDOW) {
            self.recent.pop_front();
        }
    }

    /// The edges as they are now; counts are since the beginning.
    pub(crate) fn live(&self) -> Vec<Row> {
        let rates = self.window(RATE_WINDOW);
        let latencies = self.window(LATENCY_WINDOW);
        self.rows(rates, latencies)
    }

    /// The edges over all the time.
    pub(crate) fn total(&self) -> Vec<Row> {
        self.rows(&self.baseline, &self.baseline)
    }

    /// How long traffic has been looked at.
    pub(crate) fn elapsed(&self) -> Duration {
        self.last().at.duration_since(self.baseline.at)
    }

    fn last(&self) -> &Sample {
        self.recent.back().unwrap_or(&self.baseline)
    }

    /// The latest sample that is at least `age` old, or the oldest.
    fn window(&self, age: Duration) -> &Sample {
        let now = self.last().at;
        let old = self.recent.iter().rev().find(|sample| now.duration_since(sample.at) >= age);
        old.or_else(|| self.recent.front()).unwrap_or(&self.baseline)
    }

    fn rows(&self, rates: &Sample, latencies: &Sample) -> Vec<Row> {
        let now = self.last();
        let seconds = now.at.duration_since(rates.at).as_secs_f64();
        let recent: Vec<f64> =
            now.counters.iter().zip(&rates.counters).map(|(now, then)| now.since(then).requests).collect();
        let mut rows = Vec::with_capacity(self.edges.len());
        for (index, edge) in self.edges.iter().enumerate() {
            let total = now.counters[index].since(&self.baseline.counters[index]);
            let latency = now.counters[index].latency.since(&latencies.counters[index].latency);
            let siblings = || self.edges.iter().zip(&recent).filter(|(other, _)| other.from == edge.from);
            let leaving: f64 = siblings().map(|(_, requests)| requests).sum();
            let share = (siblings().count() > 1 && leaving > 0.0).then(|| recent[index] / leaving);
            let only_expected = total.identities.keys().all(|identity| *identity == edge.identity);
            rows.push(Row {
                from: edge.from.clone(),
                to: edge.to.clone(),
                requests: total.requests as u64,
                failed: total.failed as u64,
                success_rate: (total.requests > 0.0).then(|| 1.0 - total.failed / total.requests),
                rps: if seconds > 0.0 { recent[index] / seconds } else { 0.0 },
                share,
                p50: latency.quantile(0.5),
                p99: latency.quantile(0.99),
                mtls: total.requests > 0.0
                    && total.mutual_tls >= total.requests
                    && !total.identities.is_empty()
                    && only_expected,
                identity: total.identities.into_keys().collect::<Vec<_>>().join(","),
                failures: total.failures.into_keys().collect(),
            });
        }
        rows
    }
}

// === impl Sample ===

impl Sample {
    fn read(edges: &[Edge], at: Instant, scrapes: Scrapes<'_>) -> Self {
        let counters = edges.iter().map(|edge| {
            let scrape = scrapes.iter().find(|(workload, _)| *workload == edge.from);
            scrape.map_or_else(Counters::default, |(_, lines)| Counters::read(lines, &edge.backend))
        });
        Self { at, counters: counters.collect() }
    }
}

#[cfg(test)]
mod tests;
