//! What requests and connections come to, for reports to the control plane.
//!
//! Made of the cells that metrics are made of, when a report is due: a request pays no more for it than the finer bounds of its duration, and a worker waits for it
//! no longer than it takes to copy pointers. A report is bounded: what there is no room for is told in one row.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use tulle_api::{LATENCY_BOUNDS, Latencies, request_failed, v1};

use super::cells::{Histogram, RequestCells};
use super::labels::{self, Direction, Method, Outcome};
use super::worker::WorkerCells;
use crate::telemetry::Reason;

/// Rows that tell of one kind each; one more for each direction tells of the rest. So a report stays below a megabyte.
const MAX_ROWS: usize = 254;

/// What was counted until some moment.
#[derive(Debug, Default)]
pub struct Load(BTreeMap<Kind, Sums>);

/// What is told apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Labels as [`super::RequestLabels`] has them, which are those of connections too.
    Labels(Arc<[u8]>),
    /// What metrics do not tell apart either; inbound or not.
    Rest(bool),
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Sums {
    requests: u64,
    failures: u64,
    latencies: Option<Box<Latencies>>,
    opened: u64,
    closed: u64,
    sent: u64,
    received: u64,
}

/// The bounds by which requests are counted: `bounds`, and between them those of reports.
pub(super) fn finer(bounds: &[u64]) -> Arc<[u64]> {
    let mut finer: Vec<u64> = bounds.iter().copied().chain(LATENCY_BOUNDS).collect();
    finer.sort_unstable();
    finer.dedup();
    finer.into()
}

/// Whether an outcome is a failure, as the rules for Prometheus have it too.
fn is_failure(outcome: Outcome) -> bool {
    let Outcome { method, status, grpc_status, reason, .. } = outcome;
    let status = (status != 0).then_some(status);
    request_failed(method.as_str(), status, grpc_status, reason.map_or("", Reason::code))
}

// === impl Load ===

impl Load {
    pub(super) fn read<'a>(workers: impl Iterator<Item = &'a WorkerCells>) -> Self {
        let mut load = Self::default();
        for worker in workers {
            for (key, cells) in worker.requests.list() {
                load.sums(Kind::Labels(key)).requests(&cells);
            }
            for (key, cells) in worker.connections.list() {
                load.sums(Kind::Labels(key)).connections(cells.read());
            }
            for side in Direction::ALL {
                let over = worker.overflow.get(side);
                let sums = load.sums(Kind::Rest(side == Direction::Inbound));
                sums.requests += over.count.get();
                sums.latencies(&over.duration);
                sums.connections(worker.overflow_connections.get(side).read());
            }
        }
        load
    }

    fn sums(&mut self, kind: Kind) -> &mut Sums {
        self.0.entry(kind).or_default()
    }

    /// What was counted since `earlier`, and which connections are open.
    pub fn since(&self, earlier: &Self) -> Vec<v1::LoadRow> {
        let none = Sums::default();
        let since = self.0.iter().map(|(kind, now)| (kind, now.since(earlier.0.get(kind).unwrap_or(&none))));
        let mut changed: Vec<(&Kind, Sums)> = since.filter(|(_, sums)| sums.is_any()).collect();
        // Those that matter most have a row each.
        changed.sort_by_key(|(_, load)| Reverse((load.requests, load.open(), load.sent)));
        let mut rows = Vec::with_capacity(changed.len().min(MAX_ROWS + 2));
        let mut rest: BTreeMap<bool, Sums> = BTreeMap::new();
        for (kind, sums) in changed {
            match kind {
                Kind::Labels(key) if rows.len() < MAX_ROWS => rows.push(row(key, sums)),
                Kind::Labels(key) => rest.entry(is_inbound(key)).or_default().add(&sums),
                Kind::Rest(inbound) => rest.entry(*inbound).or_default().add(&sums),
            }
        }
        rows.extend(rest.into_iter().map(|(inbound, sums)| v1::LoadRow {
            inbound,
            rest: true,
            ..sums.into_row()
        }));
        rows
    }
}

fn is_inbound(key: &[u8]) -> bool {
    labels::parts(key).next() == Some(Direction::Inbound.as_str().as_bytes())
}

fn row(key: &[u8], sums: Sums) -> v1::LoadRow {
    let mut values = labels::values(key).skip(1).map(std::borrow::Cow::into_owned);
    let mut next = || values.next().unwrap_or_default();
    v1::LoadRow {
        inbound: is_inbound(key),
        tls: next(),
        peer: next(),
        service: next(),
        route: next(),
        backend: next(),
        ..sums.into_row()
    }
}

// === impl Sums ===

impl Sums {
    fn requests(&mut self, cells: &RequestCells) {
        for (outcome, count) in cells.counts() {
            self.requests += count;
            self.failures += if is_failure(Outcome::unpack(outcome)) { count } else { 0 };
        }
        for (key, histogram) in cells.durations() {
            // A tunnel's duration is how long it was used.
            if Outcome::unpack(key).method != Method::Connect && Outcome::unpack(key).status != 101 {
                self.latencies(&histogram);
            }
        }
    }

    fn latencies(&mut self, histogram: &Histogram) {
        let latencies = self.latencies.get_or_insert_default();
        for (bound, count) in histogram.by_bound().filter(|(_, count)| *count > 0) {
            latencies.add_up_to(bound, count);
        }
    }

    fn connections(&mut self, [opened, closed, sent, received]: [u64; 4]) {
        self.opened += opened;
        self.closed += closed;
        self.sent += sent;
        self.received += received;
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        if let Some(other) = &other.latencies {
            self.latencies.get_or_insert_default().merge(other);
        }
        self.connections([other.opened, other.closed, other.sent, other.received]);
    }

    /// Counts since `earlier`; connections as they are.
    fn since(&self, earlier: &Self) -> Self {
        let latencies = match (&self.latencies, &earlier.latencies) {
            (Some(now), Some(then)) => Some(Box::new(now.since(then))),
            (now, _) => now.clone(),
        };
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            failures: self.failures.saturating_sub(earlier.failures),
            latencies,
            opened: self.opened,
            closed: self.closed,
            sent: self.sent.saturating_sub(earlier.sent),
            received: self.received.saturating_sub(earlier.received),
        }
    }

    fn open(&self) -> u64 {
        self.opened.saturating_sub(self.closed)
    }

    fn is_any(&self) -> bool {
        let is_any = self.requests > 0 || self.open() > 0 || self.sent > 0 || self.received > 0;
        // Latencies have no room where counts still have.
        is_any || self.latencies.as_ref().is_some_and(|latencies| latencies.count() > 0)
    }

    fn into_row(self) -> v1::LoadRow {
        let (latency_buckets, latency_counts) =
            self.latencies.iter().flat_map(|latencies| latencies.sparse()).unzip();
        v1::LoadRow {
            requests: self.requests,
            failures: self.failures,
            latency_buckets,
            latency_counts,
            open_connections: self.open(),
            bytes_sent: self.sent,
            bytes_received: self.received,
            ..v1::LoadRow::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{ConnectionLabels, Metrics, RequestLabels, TlsKind};
    use super::*;

    fn labels(service: &str) -> RequestLabels<'_> {
        RequestLabels {
            direction: Direction::Outbound,
            tls: TlsKind::Mtls,
            peer: "spiffe://a/ns/b/sa/c",
            service,
            route: "",
            backend: "",
        }
    }

    const OK: Outcome =
        Outcome { method: Method::Get, status: 200, grpc_status: None, reason: None, by_peer: false };

    #[test]
    fn a_report_tells_what_came_since_the_last_over_all_workers() {
        let metrics = Metrics::new(2, 2000, &[Duration::from_millis(5), Duration::from_millis(10)]);
        let record = |worker: usize, outcome, millis| {
            let cells = metrics.worker(worker).requests(&labels("shop/orders:80"));
            cells.record(outcome, Duration::from_millis(millis));
        };
        record(0, OK, 3);
        let first = metrics.load();
        record(0, OK, 3);
        record(1, Outcome { status: 503, ..OK }, 7);
        let connections = metrics.worker(1).connections(&ConnectionLabels {
            direction: Direction::Outbound,
            tls: TlsKind::Mtls,
            peer: "spiffe://a/ns/b/sa/c",
            service: "shop/orders:80",
            route: "",
            backend: "",
        });
        let open = connections.open();
        let rows = metrics.load().since(&first);
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!((rows[0].requests, rows[0].failures, rows[0].open_connections), (2, 1, 1));
        assert_eq!(
            (&*rows[0].service, &*rows[0].peer, rows[0].rest),
            ("shop/orders:80", "spiffe://a/ns/b/sa/c", false)
        );
        assert_eq!(rows[0].latency_counts, [1, 1]);
        drop(open);
        let now = metrics.load();
        assert!(now.since(&metrics.load()).is_empty(), "nothing has changed");
        // What `/metrics` shows is what it always was.
        let text = metrics.render();
        assert!(text.contains("status=\"200\",le=\"0.005\"} 2"), "{text}");
        assert!(
            text.contains("status=\"503\",le=\"0.005\"} 0") && text.contains("status=\"503\",le=\"0.01\"} 1")
        );
    }

    #[test]
    fn a_report_is_bounded_and_says_what_it_does_not_tell_apart() {
        let metrics = Metrics::new(1, 1_000_000, &[Duration::from_millis(5)]);
        for service in 0..1000 {
            let cells = metrics.worker(0).requests(&labels(&format!("shop/s{service}:80")));
            for _ in 0..=service {
                cells.record(OK, Duration::from_millis(1));
            }
        }
        let rows = metrics.load().since(&Load::default());
        assert_eq!(rows.len(), MAX_ROWS + 1);
        assert_eq!(rows[0].service, "shop/s999:80", "the busiest are told apart");
        let rest = rows.last().unwrap();
        assert!(rest.rest && rest.service.is_empty() && !rest.inbound, "{rest:?}");
        assert_eq!(rows.iter().map(|row| row.requests).sum::<u64>(), 1000 * 1001 / 2);
        let encoded =
            prost::Message::encoded_len(&v1::Load { milliseconds: 5000, rows, ..v1::Load::default() });
        assert!(encoded < 64 * 1024, "{encoded}");
    }

    #[test]
    fn failures_are_those_of_the_rules_for_prometheus() {
        let cases = include_str!("../../../../tests/rules/failures.txt").lines();
        for case in cases.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = case.split_whitespace().collect();
            let [method, status, grpc_status, reason, expected] = words[..] else { panic!("{case}") };
            let said =
                |text: &str| (text != "-").then(|| if text == "_OTHER" { 17 } else { text.parse().unwrap() });
            let outcome = Outcome {
                method: *Method::ALL.iter().find(|one| one.as_str() == method).unwrap(),
                status: status.parse().unwrap_or(0),
                grpc_status: said(grpc_status),
                reason: (reason != "-").then(|| Reason::from_code(reason).expect(case)),
                by_peer: false,
            };
            // As it is counted.
            let outcome = Outcome::unpack(outcome.pack());
            assert_eq!(is_failure(outcome), expected == "failed", "{case}");
        }
    }
}
