//! What proxies carried in the last minute, from what each reports of itself: the answer of `/load`, as JSON.
//!
//! Decides what is kept, and for how long. A report counts for the proxy whose stream it came over, whatever it says; a proxy whose
//! stream has ended is forgotten when its last report is a minute old. What is kept is bounded, over all proxies and for each
//! stream: what is too much takes the place of the stream's own oldest reports, and where that is not enough, something is said to be
//! missing. Pure: times are passed in. [`crate::report`] brings the reports, [`crate::admin`] answers, and
//! `tulle stat | edges | routes` read [`Seen`] back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost::Message;
use serde::{Deserialize, Serialize};
use tulle_api::{LATENCY_BOUNDS, Latencies, ResourceType, v1};

use crate::model::Model;

/// How far back is looked.
const WINDOW: Duration = Duration::from_secs(60);
/// A report that comes sooner after the last one is not taken, unless the proxy says that it is its last: that is taken once.
const SOONEST: Duration = Duration::from_millis(500);
/// No report of ours has more rows.
const MAX_ROWS: usize = 256;
/// No name of ours is longer: labels of metrics are cut before.
const MAX_TEXT: usize = 512;
/// Bytes kept of one stream. A minute of full reports, one every 5 s, takes less than half.
const MAX_OF_STREAM: usize = 2 << 20;
/// Bytes kept of all streams.
const MAX_OF_ALL: usize = 128 << 20;
/// What a stream takes by itself, about.
const STREAM: usize = 512;
/// Labels by which a proxy can be told to tell nothing apart.
const NAMES: [&str; 4] = ["peer", "service", "route", "backend"];

/// The reports of the last minute. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Loads(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    streams: u64,
    reporting: BTreeMap<u64, Reporting>,
    /// Of all streams.
    bytes: usize,
    /// When what is too old was last let go, of all streams.
    forgot: Option<Instant>,
}

/// One stream's.
#[derive(Debug)]
struct Reporting {
    node: String,
    identity: String,
    began: Instant,
    ended: Option<Instant>,
    last: Option<Instant>,
    reports: VecDeque<Report>,
    /// Those that `reports` points to, each once.
    kinds: BTreeSet<Arc<Labels>>,
    untold: BTreeSet<String>,
    bytes: usize,
    is_cut: bool,
    /// Its last report has come.
    is_over: bool,
}

#[derive(Debug)]
struct Report {
    at: Instant,
    milliseconds: u64,
    counts: Box<[Counts]>,
}

/// What a report says of one kind.
#[derive(Debug)]
struct Counts {
    labels: Arc<Labels>,
    requests: u64,
    failures: u64,
    latencies: Box<[(u32, u32)]>,
    open_connections: u64,
    bytes_sent: u64,
    bytes_received: u64,
}

/// A stream's place among those that report; its proxy is forgotten some time after it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    loads: Loads,
    id: u64,
}

/// What the proxies carried, and what there is to be called.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// How far back is looked.
    pub window_seconds: u64,
    /// By name and identity. The replicas of a workload are one.
    pub proxies: Vec<ProxyLoad>,
    /// Every Service, as `<namespace>/<name>`.
    pub services: BTreeMap<String, Meshed>,
}

/// The endpoints of a Service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meshed {
    /// All of them.
    pub endpoints: u64,
    /// Those that are in the mesh.
    pub meshed: u64,
}

/// What the proxies of one workload carried.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProxyLoad {
    /// `<namespace>/<workload>`.
    pub proxy: String,
    /// Its SPIFFE ID.
    pub identity: String,
    /// How many of them are connected.
    pub connected: u64,
    /// How many were at once, within what is looked back on.
    pub most_connected: u64,
    /// Whether anything is known of what they carried, be it that it was nothing.
    pub has_reported: bool,
    /// There was no room to tell everything apart, or for everything at all.
    pub is_cut: bool,
    /// Labels by which they tell nothing apart, as they were told to.
    pub untold: BTreeSet<String>,
    /// What they carried.
    pub rows: Vec<Row>,
}

/// What is told apart: as in the metrics of the proxy, whose labels these are. Empty: does not apply, or is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Labels {
    /// To the proxy's application; otherwise from it.
    pub inbound: bool,
    /// `mtls`, `none`, `app`, `own`.
    pub tls: String,
    /// The SPIFFE ID of the other workload.
    pub peer: String,
    /// `<namespace>/<name>:<port>`.
    pub service: String,
    /// `<namespace>/<name>`.
    pub route: String,
    /// `<namespace>/<name>:<port>`.
    pub backend: String,
    /// Everything of this direction that was not told apart.
    pub rest: bool,
}

/// Requests and connections of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Which kind.
    #[serde(flatten)]
    pub labels: Labels,
    /// All of them.
    pub requests: u64,
    /// Of these.
    pub failures: u64,
    /// Buckets of [`Latencies`] that hold anything: the number of each and its requests.
    pub latencies: Vec<(u32, u64)>,
    /// Requests a second, of the proxies that are connected.
    pub requests_per_second: f64,
    /// Now.
    pub open_connections: u64,
    /// On connections without HTTP, to whom opened them.
    pub bytes_sent: u64,
    /// On connections without HTTP, from whom opened them.
    pub bytes_received: u64,
    /// Of these two, a second, of the proxies that are connected.
    pub bytes_per_second: [f64; 2],
}

// === impl Loads ===

impl Loads {
    /// A proxy whose reports are taken from now on.
    pub(crate) fn enter(&self, node: &str, identity: &str, now: Instant) -> Place {
        let mut kept = self.0.lock();
        kept.forget(now);
        kept.streams += 1;
        let id = kept.streams;
        kept.reporting.insert(id, Reporting::new(node, identity, now));
        kept.bytes += STREAM;
        Place { loads: self.clone(), id }
    }

    /// What is known now.
    pub fn seen(&self, model: &Model, now: Instant) -> Seen {
        let services = model.names(ResourceType::Service);
        let services = services.into_iter().map(|name| (name.to_string(), meshed(model, &name))).collect();
        let mut kept = self.0.lock();
        kept.forget(now);
        let mut workloads: BTreeMap<(&str, &str), Vec<&Reporting>> = BTreeMap::new();
        for one in kept.reporting.values() {
            workloads.entry((&one.node, &one.identity)).or_default().push(one);
        }
        let proxies = workloads.into_values().map(|replicas| ProxyLoad::of(&replicas)).collect();
        Seen { window_seconds: WINDOW.as_secs(), proxies, services }
    }
}

fn meshed(model: &Model, service: &str) -> Meshed {
    // Without endpoints there is no such resource, or an empty one.
    let encoded = model.get(ResourceType::Endpoints, service);
    let told = encoded.and_then(|encoded| v1::Endpoints::decode(&*encoded.bytes).ok()).unwrap_or_default();
    let is_meshed = |endpoint: &&v1::Endpoint| {
        let mut peers = endpoint.ports.iter().filter_map(|port| port.peer.as_ref()?.peer.as_ref());
        peers.any(|peer| matches!(peer, v1::peer::Peer::SpiffeId(_)))
    };
    let meshed = told.endpoints.iter().filter(is_meshed).count();
    Meshed { endpoints: told.endpoints.len() as u64, meshed: meshed as u64 }
}

/// Whether it is older than is looked back.
fn is_old(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) > WINDOW
}

// === impl Kept ===

impl Kept {
    /// Lets go what is too old. Not at each report, of which there are as many as there are streams.
    fn forget(&mut self, now: Instant) {
        self.forgot = Some(now);
        self.reporting.retain(|_, one| {
            one.forget(now);
            one.ended.is_none() || !one.reports.is_empty()
        });
        self.bytes = self.reporting.values().map(|one| one.bytes).sum();
    }

    fn take(&mut self, id: u64, load: v1::Load, now: Instant) {
        if self.forgot.is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_secs(1)) {
            self.forget(now);
        }
        let Some(one) = self.reporting.get_mut(&id) else { return };
        let others = self.bytes - one.bytes;
        one.take(load, now, MAX_OF_STREAM.min(MAX_OF_ALL.saturating_sub(others)));
        self.bytes = others + one.bytes;
    }

    fn leave(&mut self, id: u64) {
        let Some(one) = self.reporting.get_mut(&id) else { return };
        one.ended = Some(Instant::now());
        // Of whom nothing is known there is nothing to remember.
        if one.reports.is_empty() {
            self.bytes -= one.bytes;
            self.reporting.remove(&id);
        }
    }
}

// === impl Reporting ===

impl Reporting {
    fn new(node: &str, identity: &str, now: Instant) -> Self {
        Self {
            node: node.to_owned(),
            identity: identity.to_owned(),
            began: now,
            ended: None,
            last: None,
            reports: VecDeque::new(),
            kinds: BTreeSet::new(),
            untold: BTreeSet::new(),
            bytes: STREAM,
            is_cut: false,
            is_over: false,
        }
    }

    fn take(&mut self, load: v1::Load, now: Instant, room: usize) {
        let is_soon = self.last.is_some_and(|last| now.saturating_duration_since(last) < SOONEST);
        if self.is_over || (is_soon && !load.is_last) {
            self.is_cut = true;
            return;
        }
        self.last = Some(now);
        self.is_over = load.is_last;
        self.untold = load.untold.into_iter().filter(|name| NAMES.contains(&&**name)).collect();
        let told = load.rows.len();
        let rows = load.rows.into_iter().filter(is_like_ours).take(MAX_ROWS);
        let counts: Box<[Counts]> = rows.map(|row| self.counts(row)).collect();
        self.is_cut = counts.len() < told;
        let report = Report { at: now, milliseconds: load.milliseconds.min(600_000), counts };
        self.bytes += report.bytes();
        self.reports.push_back(report);
        if self.bytes > room {
            while self.bytes > room && self.let_go_oldest() {}
            self.is_cut |= self.reports.is_empty();
            self.let_go_kinds();
        }
    }

    fn counts(&mut self, row: v1::LoadRow) -> Counts {
        let latencies = row.latency_buckets.into_iter().zip(row.latency_counts);
        let v1::LoadRow { inbound, tls, peer, service, route, backend, rest, .. } = row;
        let labels = Labels { inbound, tls, peer, service, route, backend, rest };
        let labels = match self.kinds.get(&labels) {
            Some(known) => Arc::clone(known),
            None => {
                let labels = Arc::new(labels);
                self.bytes += labels.bytes();
                self.kinds.insert(Arc::clone(&labels));
                labels
            }
        };
        Counts {
            labels,
            requests: row.requests,
            failures: row.failures,
            latencies: latencies.map(|(at, count)| (at, u32::try_from(count).unwrap_or(u32::MAX))).collect(),
            open_connections: row.open_connections,
            bytes_sent: row.bytes_sent,
            bytes_received: row.bytes_received,
        }
    }

    fn forget(&mut self, now: Instant) {
        let before = self.reports.len();
        while self.reports.front().is_some_and(|report| is_old(report.at, now)) {
            self.let_go_oldest();
        }
        if self.reports.len() < before {
            self.let_go_kinds();
        }
    }

    fn let_go_oldest(&mut self) -> bool {
        let oldest = self.reports.pop_front();
        self.bytes -= oldest.as_ref().map_or(0, Report::bytes);
        oldest.is_some()
    }

    /// Lets go the kinds of which no report tells any more.
    fn let_go_kinds(&mut self) {
        let bytes = &mut self.bytes;
        self.kinds.retain(|labels| {
            let is_used = Arc::strong_count(labels) > 1;
            *bytes -= if is_used { 0 } else { labels.bytes() };
            is_used
        });
    }

    /// Of how much time its reports tell, in seconds.
    fn seconds(&self) -> f64 {
        self.reports.iter().map(|report| report.milliseconds).sum::<u64>() as f64 / 1e3
    }
}

/// Whether it may be kept, and shown on a terminal: no proxy of ours says anything else.
fn is_like_ours(row: &v1::LoadRow) -> bool {
    let texts = [&row.tls, &row.peer, &row.service, &row.route, &row.backend];
    texts.iter().all(|text| text.len() <= MAX_TEXT && text.bytes().all(|byte| byte.is_ascii_graphic()))
        && row.latency_buckets.len() <= LATENCY_BOUNDS.len() + 1
        && row.latency_buckets.len() == row.latency_counts.len()
}

// === impl Report ===

impl Report {
    fn bytes(&self) -> usize {
        let counts = self.counts.iter().map(|one| size_of::<Counts>() + size_of_val(&*one.latencies));
        size_of::<Self>() + counts.sum::<usize>()
    }
}

// === impl Place ===

impl Place {
    /// Takes in what the stream's proxy says of itself.
    pub(crate) fn take(&self, load: v1::Load, now: Instant) {
        self.loads.0.lock().take(self.id, load, now);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.loads.0.lock().leave(self.id);
    }
}

// === impl ProxyLoad ===

impl ProxyLoad {
    /// What proxies of one name and identity say; there is at least one.
    fn of(replicas: &[&Reporting]) -> Self {
        let mut load = Self::default();
        let mut rows: BTreeMap<&Labels, (Row, Latencies)> = BTreeMap::new();
        for replica in replicas {
            load.proxy.clone_from(&replica.node);
            load.identity.clone_from(&replica.identity);
            load.connected += u64::from(replica.ended.is_none());
            load.has_reported |= !replica.reports.is_empty();
            load.is_cut |= replica.is_cut || replica.kinds.iter().any(|labels| labels.rest);
            load.untold.extend(replica.untold.iter().cloned());
            replica.add_to(&mut rows);
        }
        load.most_connected = most_at_once(replicas);
        let finish = |(labels, (row, latencies)): (&Labels, (Row, Latencies))| Row {
            labels: labels.clone(),
            latencies: latencies.sparse().collect(),
            ..row
        };
        load.rows = rows.into_iter().map(finish).collect();
        load
    }
}

impl Reporting {
    fn add_to<'a>(&'a self, rows: &mut BTreeMap<&'a Labels, (Row, Latencies)>) {
        let seconds = self.seconds();
        // Who is gone carries nothing now, and who came back is told by its new stream.
        let rate = if self.ended.is_none() && seconds > 0.0 { 1.0 / seconds } else { 0.0 };
        for told in self.reports.iter().flat_map(|report| &report.counts) {
            let (row, latencies) = rows.entry(&told.labels).or_default();
            row.requests = row.requests.saturating_add(told.requests);
            row.failures = row.failures.saturating_add(told.failures);
            row.requests_per_second += told.requests as f64 * rate;
            row.bytes_sent = row.bytes_sent.saturating_add(told.bytes_sent);
            row.bytes_received = row.bytes_received.saturating_add(told.bytes_received);
            row.bytes_per_second[0] += told.bytes_sent as f64 * rate;
            row.bytes_per_second[1] += told.bytes_received as f64 * rate;
            told.latencies.iter().for_each(|(bucket, count)| latencies.add(*bucket, u64::from(*count)));
        }
        // Open are those of which the last report tells.
        let last = self.reports.back().filter(|_| self.ended.is_none());
        for told in last.into_iter().flat_map(|report| &report.counts) {
            let (row, _) = rows.entry(&told.labels).or_default();
            row.open_connections = row.open_connections.saturating_add(told.open_connections);
        }
    }
}

/// How many streams were open at the same time. Who has come back does not count twice.
fn most_at_once(replicas: &[&Reporting]) -> u64 {
    let began = replicas.iter().map(|one| (one.began, 1));
    let ended = replicas.iter().filter_map(|one| Some((one.ended?, -1)));
    let mut events: Vec<(Instant, i64)> = began.chain(ended).collect();
    // Who ends makes room for who begins in the same moment.
    events.sort_unstable();
    let mut open = 0;
    let counts = events.into_iter().map(|(_, change)| {
        open += change;
        open
    });
    counts.max().unwrap_or(0).unsigned_abs()
}

// === impl Labels ===

impl Labels {
    fn bytes(&self) -> usize {
        let texts = [&self.tls, &self.peer, &self.service, &self.route, &self.backend];
        size_of::<Self>() + texts.map(String::len).iter().sum::<usize>()
    }
}

// === impl Row ===

impl Row {
    /// Its latencies, to be added up with others'.
    pub fn latencies(&self) -> Latencies {
        let mut latencies = Latencies::default();
        self.latencies.iter().for_each(|(bucket, count)| latencies.add(*bucket, *count));
        latencies
    }
}

// === impl Seen ===

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| std::fmt::Error)?)
    }
}

#[cfg(test)]
mod tests;
