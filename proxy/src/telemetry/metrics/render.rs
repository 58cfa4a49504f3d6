//! The scrape: all workers' cells added up, as families of the `prometheus` crate, and those as text.

use std::collections::BTreeMap;

use prometheus::proto;
use prometheus::{Encoder as _, TextEncoder};
use tulle_api::openmetrics;

use super::cells::{Counter, Histogram};
use super::exemplars::{Exemplar, Exemplars};
use super::families::{self, FAMILIES, Family, Kind};
use super::labels::{
    ConnectionLabels, DetectProtocol, DetectResult, Direction, DiscoveryResult, EarlyOpen, EgressLabels,
    ExternalLabels, FaultKind, MirrorResult, Outcome, PoolClose, ReplayCause, RequestLabels, RetryCause,
    RetryOutcome, SessionResult, TokenResult, Unretried, VerdictLabels, values,
};
use super::pools::{PoolCells, Pooled};
use super::table::Table;
use super::worker::{SIZES, WorkerCells};
use super::{Metrics, Sample, process};
use crate::telemetry::Reason;

/// Series of one scrape by family.
#[derive(Default)]
struct Scrape {
    series: BTreeMap<&'static str, Vec<proto::Metric>>,
    /// Of each bucket of each series, in order, where they are asked for.
    exemplars: Option<BTreeMap<&'static str, Vec<Option<Exemplar>>>>,
}

/// A histogram added up over workers.
#[derive(Clone, Default)]
struct Sum {
    buckets: Vec<u64>,
    /// Of the values, in the unit of the bounds.
    total: u64,
    /// The latest of each bucket that is shown.
    exemplars: Vec<Option<Exemplar>>,
}

type ReadHistogram = fn(&WorkerCells) -> &Histogram;
type Labels<'a> = [(&'static str, &'a str)];

pub(super) fn text(metrics: &Metrics) -> String {
    scrape(metrics, Scrape::default()).encode()
}

pub(super) fn open(metrics: &Metrics) -> String {
    let mut scrape = scrape(metrics, Scrape { exemplars: Some(BTreeMap::new()), ..Scrape::default() });
    let of_families = scrape.exemplars.take().unwrap_or_default();
    let mut of_families: BTreeMap<_, _> =
        of_families.into_iter().map(|(family, all)| (family, all.into_iter())).collect();
    openmetrics::with_exemplars(&scrape.encode(), |family| of_families.get_mut(family)?.next()?)
}

fn scrape(metrics: &Metrics, mut scrape: Scrape) -> Scrape {
    let workers: Vec<&WorkerCells> = metrics.workers.iter().map(|worker| worker.cells()).collect();
    let limited = requests(&mut scrape, metrics, &workers)
        | connections(&mut scrape, &workers)
        | verdicts(&mut scrape, &workers)
        | egress(&mut scrape, &workers)
        | rate_limits(&mut scrape, &workers)
        | externals(&mut scrape, &workers)
        | limits(&mut scrape, &workers)
        | pools(&mut scrape, &workers);
    let unchecked = |(labels, _): &(Vec<String>, f64)| labels.iter().all(|label| label != "true");
    let limited = limited | !metrics.control.read(&families::HEALTH_CHECKS).iter().all(unchecked);
    bounded(&mut scrape, metrics, &workers);
    scrape.value(&families::WORKERS, &[], workers.len() as f64);
    let build = [("component", "proxy"), ("version", env!("CARGO_PKG_VERSION"))];
    scrape.value(&families::BUILD_INFO, &build, 1.0);
    for (family, value) in process::read() {
        scrape.value(family, &[], value);
    }
    let mut samples = Vec::new();
    for extra in metrics.extra.lock().iter() {
        extra.0(&mut samples);
    }
    let overflows = |sample: &Sample| sample.labels.last().is_some_and(|label| label == "true");
    let limited = limited || samples.iter().any(overflows);
    scrape.value(&families::SERIES_LIMITED, &[], f64::from(u8::from(limited)));
    for Sample { family, labels, value } in &samples {
        let labels: Vec<_> = family.labels.iter().copied().zip(labels.iter().map(String::as_str)).collect();
        scrape.value(family, &labels, *value);
    }
    for family in FAMILIES {
        for (labels, value) in metrics.control.read(family) {
            let labels: Vec<_> =
                family.labels.iter().copied().zip(labels.iter().map(String::as_str)).collect();
            scrape.value(family, &labels, value);
        }
    }
    scrape
}

/// Whether anything went to an overflow series.
fn requests(scrape: &mut Scrape, metrics: &Metrics, workers: &[&WorkerCells]) -> bool {
    let mut counts: BTreeMap<(Box<[u8]>, u64), u64> = BTreeMap::new();
    let mut durations: BTreeMap<(Box<[u8]>, u64), Sum> = BTreeMap::new();
    for worker in workers {
        worker.requests.each(|key, cells| {
            for (outcome, count) in cells.counts() {
                *counts.entry((key.into(), outcome)).or_default() += count;
            }
            for (outcome, histogram) in cells.durations() {
                durations.entry((key.into(), outcome)).or_default().add(&histogram);
            }
        });
    }
    for ((key, outcome), count) in &counts {
        let texts = OutcomeTexts::new(*outcome);
        let values: Vec<_> = values(key).collect();
        let labels: Vec<_> = names_and(&RequestLabels::NAMES, &values).chain(texts.all()).collect();
        scrape.value(&families::REQUESTS, &labels, *count as f64);
    }
    for ((key, outcome), sum) in &durations {
        let texts = OutcomeTexts::new(*outcome);
        let values: Vec<_> = values(key).collect();
        let mut labels: Vec<_> =
            names_and(&RequestLabels::NAMES, &values).chain(texts.of_duration()).collect();
        // The direction is in the family's name.
        let (_, direction) = labels.remove(0);
        let inbound = direction == Direction::Inbound.as_str();
        let family = if inbound { &families::SERVER_DURATION } else { &families::CLIENT_DURATION };
        scrape.histogram(family, &labels, &sum.folded(&metrics.finer, &metrics.bounds), &metrics.bounds);
    }
    let mut limited = false;
    for side in Direction::ALL {
        let count: u64 = workers.iter().map(|worker| worker.overflow.get(side).count.get()).sum();
        let sum = Sum::of(workers.iter().map(|worker| &worker.overflow.get(side).duration));
        if count > 0 {
            scrape.value(
                &families::REQUESTS,
                &[("direction", side.as_str()), ("overflow", "true")],
                count as f64,
            );
        }
        if sum.count() > 0 {
            let family = match side {
                Direction::Inbound => &families::SERVER_DURATION,
                Direction::Outbound => &families::CLIENT_DURATION,
            };
            let folded = sum.folded(&metrics.finer, &metrics.bounds);
            scrape.histogram(family, &[("overflow", "true")], &folded, &metrics.bounds);
        }
        limited |= count > 0 || sum.count() > 0;
    }
    limited
}

fn connections(scrape: &mut Scrape, workers: &[&WorkerCells]) -> bool {
    let mut sums: BTreeMap<Box<[u8]>, [u64; 4]> = BTreeMap::new();
    for worker in workers {
        worker.connections.each(|key, cells| add(sums.entry(key.into()).or_default(), cells.read()));
    }
    for (key, sum) in &sums {
        let values: Vec<_> = values(key).collect();
        let labels: Vec<_> = names_and(&ConnectionLabels::NAMES, &values).collect();
        scrape.connections(&labels, *sum);
    }
    let mut limited = false;
    for side in Direction::ALL {
        let mut sum = [0; 4];
        workers.iter().for_each(|worker| add(&mut sum, worker.overflow_connections.get(side).read()));
        if sum != [0; 4] {
            limited = true;
            scrape.connections(&[("direction", side.as_str()), ("overflow", "true")], sum);
        }
    }
    limited
}

fn verdicts(scrape: &mut Scrape, workers: &[&WorkerCells]) -> bool {
    let counters = workers.iter().map(|worker| (&worker.verdicts, &*worker.overflow_verdicts));
    counted(scrape, &families::POLICY_VERDICTS, &VerdictLabels::NAMES, counters)
}

fn egress(scrape: &mut Scrape, workers: &[&WorkerCells]) -> bool {
    let counters = workers.iter().map(|worker| (&worker.egress, &*worker.overflow_egress));
    counted(scrape, &families::EGRESS, &EgressLabels::NAMES, counters)
}

fn rate_limits(scrape: &mut Scrape, workers: &[&WorkerCells]) -> bool {
    let counters = workers.iter().map(|worker| (&worker.rate_limits, &*worker.overflow_rate_limits));
    counted(scrape, &families::RATE_LIMITS, &["limit", "outcome"], counters)
}

fn externals(scrape: &mut Scrape, workers: &[&WorkerCells]) -> bool {
    let counters = workers.iter().map(|worker| (&worker.externals, &*worker.overflow_externals));
    counted(scrape, &families::EXTERNAL_CHECKS, &ExternalLabels::NAMES, counters)
}

fn limits(scrape: &mut Scrape, workers: &[&WorkerCells]) -> bool {
    let counters = workers.iter().map(|worker| (&worker.limits, &*worker.overflow_limits));
    counted(scrape, &families::LIMITS, &["service", "limit", "outcome"], counters)
}

/// A family of counters, with each worker's and its overflow.
fn counted<'a>(
    scrape: &mut Scrape,
    family: &'static Family,
    names: &'static [&'static str],
    workers: impl Iterator<Item = (&'a Table<Counter>, &'a Counter)>,
) -> bool {
    let mut sums: BTreeMap<Box<[u8]>, u64> = BTreeMap::new();
    let mut overflow = 0;
    for (table, over) in workers {
        table.each(|key, counter| *sums.entry(key.into()).or_default() += counter.get());
        overflow += over.get();
    }
    for (key, count) in &sums {
        let values: Vec<_> = values(key).collect();
        let labels: Vec<_> = names_and(names, &values).collect();
        scrape.value(family, &labels, *count as f64);
    }
    if overflow > 0 {
        scrape.value(family, &[("overflow", "true")], overflow as f64);
    }
    overflow > 0
}

fn pools(scrape: &mut Scrape, workers: &[&WorkerCells]) -> bool {
    let mut sums: BTreeMap<Box<[u8]>, Pooled> = BTreeMap::new();
    let mut overflow = Pooled::default();
    let mut closed = [0; PoolClose::ALL.len()];
    let mut add = |sum: &mut Pooled, cells: &PoolCells| {
        let pooled = cells.read();
        sum.open += pooled.open;
        sum.idle += pooled.idle;
        closed.iter_mut().zip(PoolClose::ALL).for_each(|(sum, cause)| *sum += cells.closed(*cause));
    };
    for worker in workers {
        worker.pools.each(|key, cells| add(sums.entry(key.into()).or_default(), cells));
        add(&mut overflow, &worker.overflow_pools);
    }
    for (key, pooled) in &sums {
        let values: Vec<_> = values(key).collect();
        let labels: Vec<_> = names_and(&["service"], &values).collect();
        scrape.pool(&labels, *pooled);
    }
    // An overflow that is empty again stays, as every series does.
    let overflowed = workers.iter().any(|worker| worker.overflow_pools.is_used());
    if overflowed {
        scrape.pool(&[("overflow", "true")], overflow);
    }
    for (cause, count) in PoolClose::ALL.iter().zip(closed) {
        scrape.value(&families::POOL_CLOSED, &[("cause", cause.as_str())], count as f64);
    }
    overflowed
}

/// Families whose labels are bounded by themselves.
fn bounded(scrape: &mut Scrape, metrics: &Metrics, workers: &[&WorkerCells]) {
    let total = |read: &dyn Fn(&WorkerCells) -> u64| workers.iter().map(|worker| read(worker)).sum::<u64>();
    for side in Direction::ALL {
        let direction = ("direction", side.as_str());
        let started = total(&|worker| worker.requests_started.get(side).get());
        let ended = total(&|worker| worker.requests_ended.get(side).get());
        scrape.value(&families::REQUESTS_ACTIVE, &[direction], started.saturating_sub(ended) as f64);
        for reason in Reason::ALL {
            let count = total(&|worker| worker.refused.get(side)[reason.index()].get());
            scrape.nonzero(&families::REFUSED, &[direction, ("reason", reason.code())], count);
        }
        for (result, reason, index) in results() {
            let count = total(&|worker| worker.handshakes.get(side)[index].get());
            scrape.nonzero(
                &families::TLS_HANDSHAKES,
                &[direction, ("result", result), ("reason", reason)],
                count,
            );
        }
        let sum = Sum::of(workers.iter().map(|worker| worker.handshake_duration.get(side)));
        scrape.histogram(&families::TLS_HANDSHAKE_DURATION, &[direction], &sum, &metrics.bounds);
    }
    for result in DetectResult::ALL {
        for protocol in DetectProtocol::ALL {
            let index = *result as usize * DetectProtocol::ALL.len() + *protocol as usize;
            let count = total(&|worker| worker.detected[index].get());
            let labels = [("result", result.as_str()), ("protocol", protocol.as_str())];
            scrape.nonzero(&families::DETECT, &labels, count);
        }
    }
    for result in EarlyOpen::ALL {
        let count = total(&|worker| worker.opened_early[*result as usize].get());
        scrape.value(&families::OPENED_EARLY, &[("result", result.as_str())], count as f64);
    }
    for (result, reason, index) in results() {
        let count = total(&|worker| worker.dials[index].get());
        scrape.nonzero(&families::POOL_DIALS, &[("result", result), ("reason", reason)], count);
    }
    for result in DiscoveryResult::ALL {
        let count = total(&|worker| worker.discovered[*result as usize].get());
        scrape.value(&families::DISCOVERY, &[("result", result.as_str())], count as f64);
    }
    for cause in ReplayCause::ALL {
        let count = total(&|worker| worker.replays[*cause as usize].get());
        scrape.value(&families::REPLAYS, &[("cause", cause.as_str())], count as f64);
    }
    for cause in RetryCause::ALL {
        for outcome in RetryOutcome::ALL {
            let index = *cause as usize * RetryOutcome::ALL.len() + *outcome as usize;
            let count = total(&|worker| worker.retries[index].get());
            let labels = [("cause", cause.as_str()), ("outcome", outcome.as_str())];
            scrape.value(&families::RETRIES, &labels, count as f64);
        }
    }
    for cause in Unretried::ALL {
        let count = total(&|worker| worker.unretried[*cause as usize].get());
        scrape.value(&families::UNRETRIED, &[("cause", cause.as_str())], count as f64);
    }
    for kind in FaultKind::ALL {
        let count = total(&|worker| worker.injected[*kind as usize].get());
        scrape.value(&families::FAULTS, &[("kind", kind.as_str())], count as f64);
    }
    for result in MirrorResult::ALL {
        let count = total(&|worker| worker.mirrors[*result as usize].get());
        scrape.value(&families::MIRRORS, &[("result", result.as_str())], count as f64);
    }
    for result in SessionResult::ALL {
        let count = total(&|worker| worker.sessions[*result as usize].get());
        scrape.value(&families::SESSIONS, &[("result", result.as_str())], count as f64);
    }
    for (of, mode) in ["enforced", "dry_run"].into_iter().enumerate() {
        for result in TokenResult::ALL {
            let index = of * TokenResult::ALL.len() + *result as usize;
            let count = total(&|worker| worker.tokens[index].get());
            scrape.nonzero(&families::TOKENS, &[("result", result.as_str()), ("mode", mode)], count);
        }
    }
    scrape.value(&families::POOL_REUSED, &[], total(&|worker| worker.pool_reused.get()) as f64);
    scrape.value(&families::ACCEPT_ERRORS, &[], total(&|worker| worker.accept_errors.get()) as f64);
    scrape.value(&families::HANDED_OVER, &[], total(&|worker| worker.handed_over.get()) as f64);
    for (side, [requests, responses]) in [
        (Direction::Inbound, [&families::SERVER_REQUEST_SIZE, &families::SERVER_RESPONSE_SIZE]),
        (Direction::Outbound, [&families::CLIENT_REQUEST_SIZE, &families::CLIENT_RESPONSE_SIZE]),
    ] {
        for (index, family) in [requests, responses].into_iter().enumerate() {
            let sum = Sum::of(workers.iter().map(|worker| &worker.sizes.get(side)[index]));
            scrape.histogram(family, &[], &sum, &SIZES);
        }
    }
    let histograms: [(&'static Family, ReadHistogram); 5] = [
        (&families::DETECT_DURATION, |worker| &worker.detect_duration),
        (&families::DISCOVERY_DURATION, |worker| &worker.discovery_duration),
        (&families::POOL_DIAL_DURATION, |worker| &worker.dial_duration),
        (&families::WORKER_LAG, |worker| &worker.lag),
        (&families::EXTERNAL_CHECK_DURATION, |worker| &worker.external_check_duration),
    ];
    for (family, read) in histograms {
        let sum = Sum::of(workers.iter().map(|worker| read(worker)));
        scrape.histogram(family, &[], &sum, &metrics.bounds);
    }
}

/// Result, reason and index of tables that count failures by reason and success last.
fn results() -> impl Iterator<Item = (&'static str, &'static str, usize)> {
    let failed = Reason::ALL.iter().map(|reason| ("failed", reason.code(), reason.index()));
    failed.chain([("ok", "", Reason::COUNT)])
}

fn add(sum: &mut [u64; 4], other: [u64; 4]) {
    for (sum, other) in sum.iter_mut().zip(other) {
        *sum += other;
    }
}

fn names_and<'a>(
    names: &'static [&'static str],
    values: &'a [std::borrow::Cow<'_, str>],
) -> impl Iterator<Item = (&'static str, &'a str)> {
    names.iter().copied().zip(values.iter().map(AsRef::as_ref))
}

/// The label values of an outcome.
struct OutcomeTexts {
    method: &'static str,
    status: String,
    grpc_status: String,
    reason: &'static str,
    reason_by: &'static str,
}

// === impl OutcomeTexts ===

impl OutcomeTexts {
    fn new(packed: u64) -> Self {
        let outcome = Outcome::unpack(packed);
        Self {
            method: outcome.method.as_str(),
            status: if outcome.status == 0 { String::new() } else { outcome.status.to_string() },
            grpc_status: match outcome.grpc_status {
                None => String::new(),
                Some(status @ 0..=16) => status.to_string(),
                Some(_) => "_OTHER".to_owned(),
            },
            reason: outcome.reason.map_or("", Reason::code),
            reason_by: match outcome.reason {
                None => "",
                Some(_) if outcome.by_peer => "peer",
                Some(_) => "self",
            },
        }
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.of_duration().chain([
            ("grpc_status", self.grpc_status.as_str()),
            ("reason", self.reason),
            ("reason_by", self.reason_by),
        ])
    }

    fn of_duration(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [("method", self.method), ("status", self.status.as_str())].into_iter()
    }
}

// === impl Sum ===

impl Sum {
    fn of<'a>(histograms: impl Iterator<Item = &'a Histogram>) -> Self {
        let mut sum = Self::default();
        histograms.for_each(|histogram| sum.add(histogram));
        sum
    }

    fn add(&mut self, histogram: &Histogram) {
        let (buckets, total) = histogram.read();
        self.total += total;
        if let Some(exemplars) = histogram.exemplars() {
            self.exemplify(exemplars);
        }
        for (index, count) in buckets.enumerate() {
            match self.buckets.get_mut(index) {
                Some(bucket) => *bucket += count,
                None => self.buckets.push(count),
            }
        }
    }

    fn exemplify(&mut self, exemplars: &Exemplars) {
        for (index, one) in exemplars.read().enumerate() {
            match self.exemplars.get_mut(index) {
                Some(latest) if one.map(|one| one.at) > latest.map(|latest| latest.at) => *latest = one,
                Some(_) => {}
                None => self.exemplars.push(one),
            }
        }
    }

    fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The same by fewer bounds, all of which are among the finer ones.
    fn folded(&self, finer: &[u64], bounds: &[u64]) -> Self {
        let mut buckets = vec![0; bounds.len() + 1];
        for (bound, count) in finer.iter().copied().chain([u64::MAX]).zip(&self.buckets) {
            buckets[bounds.partition_point(|own| *own < bound)] += count;
        }
        Self { buckets, total: self.total, exemplars: self.exemplars.clone() }
    }
}

// === impl Scrape ===

impl Scrape {
    fn push(&mut self, family: &'static Family, labels: &Labels<'_>, fill: impl FnOnce(&mut proto::Metric)) {
        let pair = |(name, value): &(&str, &str)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        let labels = labels.iter().filter(|(_, value)| !value.is_empty()).map(pair).collect();
        let mut metric = proto::Metric::from_label(labels);
        fill(&mut metric);
        self.series.entry(family.name).or_default().push(metric);
    }

    fn value(&mut self, family: &'static Family, labels: &Labels<'_>, value: f64) {
        self.push(family, labels, |metric| match family.kind {
            Kind::Counter => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            Kind::Gauge | Kind::Histogram => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        });
    }

    /// What may take many values, most of which never occur.
    fn nonzero(&mut self, family: &'static Family, labels: &Labels<'_>, count: u64) {
        if count > 0 {
            self.value(family, labels, count as f64);
        }
    }

    fn histogram(&mut self, family: &'static Family, labels: &Labels<'_>, sum: &Sum, bounds: &[u64]) {
        if let Some(exemplars) = &mut self.exemplars {
            let of_buckets = (0..=bounds.len()).map(|index| sum.exemplars.get(index).copied().flatten());
            exemplars.entry(family.name).or_default().extend(of_buckets);
        }
        self.push(family, labels, |metric| {
            let mut histogram = proto::Histogram::default();
            let unit = if family.name.ends_with("_bytes") { 1.0 } else { 1e9 };
            let mut cumulative = 0;
            let bucket = |(bound, count): (&u64, &u64)| {
                cumulative += count;
                let mut bucket = proto::Bucket::default();
                bucket.set_upper_bound(*bound as f64 / unit);
                bucket.set_cumulative_count(cumulative);
                bucket
            };
            let buckets: Vec<_> = bounds.iter().zip(&sum.buckets).map(bucket).collect();
            histogram.set_bucket(buckets);
            histogram.set_sample_count(sum.count());
            histogram.set_sample_sum(sum.total as f64 / unit);
            metric.set_histogram(histogram);
        });
    }

    fn connections(&mut self, labels: &Labels<'_>, [opened, closed, sent, received]: [u64; 4]) {
        self.value(&families::CONNECTIONS, labels, opened as f64);
        self.value(&families::CONNECTIONS_ACTIVE, labels, opened.saturating_sub(closed) as f64);
        for (way, bytes) in [("sent", sent), ("received", received)] {
            let labels: Vec<_> = labels.iter().copied().chain([("way", way)]).collect();
            self.value(&families::CONNECTION_BYTES, &labels, bytes as f64);
        }
    }

    fn pool(&mut self, labels: &Labels<'_>, Pooled { open, idle }: Pooled) {
        self.value(&families::POOL_CONNECTIONS, labels, open as f64);
        self.value(&families::POOL_IDLE, labels, idle as f64);
    }

    fn encode(mut self) -> String {
        let families: Vec<_> = FAMILIES
            .iter()
            .filter_map(|family| {
                let mut of_family = proto::MetricFamily::default();
                of_family.set_name(family.name.to_owned());
                of_family.set_help(family.help.to_owned());
                of_family.set_field_type(match family.kind {
                    Kind::Counter => proto::MetricType::COUNTER,
                    Kind::Gauge => proto::MetricType::GAUGE,
                    Kind::Histogram => proto::MetricType::HISTOGRAM,
                });
                of_family.set_metric(self.series.remove(family.name)?);
                Some(of_family)
            })
            .collect();
        let mut out = Vec::with_capacity(64 * 1024);
        if let Err(error) = TextEncoder::new().encode(&families, &mut out) {
            // Only a family without series or name fails, and there is none.
            tracing::error!(%error, "metrics cannot be written");
        }
        String::from_utf8(out).unwrap_or_default()
    }
}
