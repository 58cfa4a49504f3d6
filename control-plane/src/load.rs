//! What proxies carried in the last minute, from what each reports of itself: the answer of `/load`, as JSON.
//!
//! Decides what is kept, and for how long. A report counts for the proxy whose stream it came over, whatever it says; a proxy whose
//! stream has ended is forgotten when its last report is a minute old. What is kept is bounded, over all proxies and for each
//! stream, and what there was no room for is said to be missing. Pure: times are passed in. [`crate::report`] brings the
//! reports, [`crate::admin`] answers, and `tulle stat | edges | routes` read [`Seen`] back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost::Message;
use serde::{Deserialize, Serialize};
use tulle_api::{Latencies, ResourceType, v1};

use crate::model::Model;

/// How far back is looked.
const WINDOW: Duration = Duration::from_secs(60);
/// A report that comes sooner after the last one is not taken.
const SOONEST: Duration = Duration::from_millis(500);
/// No report of ours has more rows.
const MAX_ROWS: usize = 256;
/// Of all reports that are kept, which then take some 100 MB at most.
const MAX_KEPT: usize = 200_000;

/// The reports of the last minute. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Loads(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    streams: u64,
    proxies: BTreeMap<u64, Reporting>,
    /// In all reports.
    rows: usize,
}

/// One stream's.
#[derive(Debug)]
struct Reporting {
    node: String,
    identity: String,
    ended: Option<Instant>,
    last: Option<Instant>,
    reports: VecDeque<Report>,
    is_cut: bool,
}

#[derive(Debug)]
struct Report {
    at: Instant,
    load: v1::Load,
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
    /// By name; several of a name are several streams.
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

/// What one proxy carried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyLoad {
    /// `<namespace>/<workload>`.
    pub proxy: String,
    /// Its SPIFFE ID.
    pub identity: String,
    /// Whether its stream is open.
    pub connected: bool,
    /// How much time its reports tell of; 0: there is none yet.
    pub seconds: f64,
    /// It, or the control plane, had no room to tell everything apart, or everything at all.
    pub is_cut: bool,
    /// What it carried in that time.
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
    /// Now.
    pub open_connections: u64,
    /// On connections without HTTP, to whom opened them.
    pub bytes_sent: u64,
    /// On connections without HTTP, from whom opened them.
    pub bytes_received: u64,
}

// === impl Loads ===

impl Loads {
    /// A proxy whose reports are taken from now on.
    pub(crate) fn enter(&self, node: &str, identity: &str, now: Instant) -> Place {
        let mut kept = self.0.lock();
        kept.forget(now);
        kept.streams += 1;
        let id = kept.streams;
        let reporting = Reporting {
            node: node.to_owned(),
            identity: identity.to_owned(),
            ended: None,
            last: None,
            reports: VecDeque::new(),
            is_cut: false,
        };
        kept.proxies.insert(id, reporting);
        Place { loads: self.clone(), id }
    }

    /// What is known now.
    pub fn seen(&self, model: &Model, now: Instant) -> Seen {
        let services = model.names(ResourceType::Service);
        let services = services.into_iter().map(|name| (name.to_string(), meshed(model, &name))).collect();
        let mut kept = self.0.lock();
        kept.forget(now);
        let mut proxies: Vec<ProxyLoad> = kept.proxies.values().map(Reporting::seen).collect();
        drop(kept);
        proxies.sort_by(|a, b| a.proxy.cmp(&b.proxy));
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

// === impl Kept ===

impl Kept {
    /// Lets go what is too old.
    fn forget(&mut self, now: Instant) {
        let is_old = |at: Instant| now.saturating_duration_since(at) > WINDOW;
        for reporting in self.proxies.values_mut() {
            let old = reporting.reports.iter().take_while(|report| is_old(report.at)).count();
            self.rows -= reporting.reports.drain(..old).map(|report| report.load.rows.len()).sum::<usize>();
        }
        self.proxies.retain(|_, one| !(one.reports.is_empty() && one.ended.is_some_and(is_old)));
    }

    fn take(&mut self, id: u64, mut load: v1::Load, now: Instant) {
        self.forget(now);
        let room = MAX_KEPT - self.rows;
        let Some(reporting) = self.proxies.get_mut(&id) else { return };
        if reporting.last.is_some_and(|last| now.saturating_duration_since(last) < SOONEST) {
            reporting.is_cut = true;
            return;
        }
        reporting.last = Some(now);
        let allowed = room.min(MAX_ROWS);
        reporting.is_cut = load.rows.len() > allowed;
        load.rows.truncate(allowed);
        load.rows.shrink_to_fit();
        self.rows += load.rows.len();
        reporting.reports.push_back(Report { at: now, load });
    }
}

// === impl Reporting ===

impl Reporting {
    fn seen(&self) -> ProxyLoad {
        let mut rows: BTreeMap<Labels, (Row, Latencies)> = BTreeMap::new();
        let milliseconds: u64 = self.reports.iter().map(|report| report.load.milliseconds.min(600_000)).sum();
        for Report { load, .. } in &self.reports {
            for told in &load.rows {
                let labels = Labels::of(told);
                let (row, latencies) = rows.entry(labels).or_default();
                row.requests = row.requests.saturating_add(told.requests);
                row.failures = row.failures.saturating_add(told.failures);
                row.bytes_sent = row.bytes_sent.saturating_add(told.bytes_sent);
                row.bytes_received = row.bytes_received.saturating_add(told.bytes_received);
                for (bucket, count) in told.latency_buckets.iter().zip(&told.latency_counts) {
                    latencies.add(*bucket, *count);
                }
            }
        }
        if let Some(last) = self.reports.back().filter(|_| self.ended.is_none()) {
            for told in &last.load.rows {
                if let Some((row, _)) = rows.get_mut(&Labels::of(told)) {
                    row.open_connections = told.open_connections;
                }
            }
        }
        let is_cut = self.is_cut || rows.keys().any(|labels| labels.rest);
        let finish = |(labels, (row, latencies)): (Labels, (Row, Latencies))| Row {
            labels,
            latencies: latencies.sparse().collect(),
            ..row
        };
        ProxyLoad {
            proxy: self.node.clone(),
            identity: self.identity.clone(),
            connected: self.ended.is_none(),
            seconds: milliseconds as f64 / 1e3,
            is_cut,
            rows: rows.into_iter().map(finish).collect(),
        }
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
        if let Some(reporting) = self.loads.0.lock().proxies.get_mut(&self.id) {
            reporting.ended = Some(Instant::now());
        }
    }
}

// === impl Labels ===

impl Labels {
    fn of(told: &v1::LoadRow) -> Self {
        Self {
            inbound: told.inbound,
            tls: told.tls.clone(),
            peer: told.peer.clone(),
            service: told.service.clone(),
            route: told.route.clone(),
            backend: told.backend.clone(),
            rest: told.rest,
        }
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
mod tests {
    use super::*;

    fn row(service: &str, requests: u64) -> v1::LoadRow {
        let (latency_buckets, latency_counts) = (vec![20], vec![requests]);
        v1::LoadRow {
            service: service.to_owned(),
            requests,
            open_connections: requests,
            latency_buckets,
            latency_counts,
            ..v1::LoadRow::default()
        }
    }

    fn load(rows: Vec<v1::LoadRow>) -> v1::Load {
        v1::Load { milliseconds: 5000, rows }
    }

    fn model() -> Model {
        Model::build(&crate::index::Index::default(), crate::model::Settings::default())
    }

    #[test]
    fn reports_add_up_for_a_minute_and_a_proxy_is_forgotten_after_its_stream() {
        let (loads, start) = (Loads::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let place = loads.enter("shop/web", "spiffe://a/ns/shop/sa/web", start);
        let seen = loads.seen(&model(), start);
        assert_eq!((seen.proxies.len(), seen.proxies[0].seconds), (1, 0.0), "{seen}");
        place.take(load(vec![row("shop/a:80", 10), row("shop/b:80", 1)]), at(5));
        place.take(load(vec![row("shop/a:80", 20)]), at(10));
        let seen = loads.seen(&model(), at(10));
        let proxy = &seen.proxies[0];
        assert_eq!((proxy.seconds, proxy.connected, proxy.is_cut), (10.0, true, false));
        let said: Vec<_> = proxy.rows.iter().map(|row| (row.requests, row.open_connections)).collect();
        assert_eq!(said, [(30, 20), (1, 0)], "connections are those of the last report");
        assert_eq!(proxy.rows[0].latencies, [(20, 30)]);
        assert_eq!(serde_json::from_str::<Seen>(&seen.to_string()).unwrap(), seen);
        let seen = loads.seen(&model(), at(66));
        assert_eq!(seen.proxies[0].rows.len(), 1, "the first report is too old: {seen}");
        drop(place);
        let seen = loads.seen(&model(), at(66));
        assert!(!seen.proxies[0].connected && seen.proxies[0].rows[0].open_connections == 0, "{seen}");
        assert!(loads.seen(&model(), at(1000)).proxies.is_empty());
        assert_eq!(loads.0.lock().rows, 0);
    }

    #[test]
    fn what_is_too_much_is_not_kept_and_is_said_to_be_missing() {
        let (loads, start) = (Loads::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        let place = loads.enter("shop/web", "i", start);
        place.take(load((0..1000).map(|i| row(&format!("shop/s{i}:80"), 1)).collect()), at(1000));
        let seen = loads.seen(&model(), at(1000));
        assert_eq!((seen.proxies[0].rows.len(), seen.proxies[0].is_cut), (MAX_ROWS, true));
        place.take(load(vec![row("shop/a:80", 1)]), at(7000));
        assert!(!loads.seen(&model(), at(7000)).proxies[0].is_cut, "the last report was whole");
        place.take(load(vec![row("shop/a:80", 7)]), at(7100));
        let seen = loads.seen(&model(), at(7100));
        let of_a = seen.proxies[0].rows.iter().find(|row| row.labels.service == "shop/a:80").unwrap();
        assert_eq!((of_a.requests, seen.proxies[0].is_cut), (1, true), "too soon after the last");
        // However many proxies say how much, memory is bounded.
        let places: Vec<Place> =
            (0..1000).map(|i| loads.enter(&format!("shop/p{i}"), "i", at(8000))).collect();
        for place in &places {
            place.take(load((0..300).map(|i| row(&format!("shop/s{i}:80"), 1)).collect()), at(9000));
        }
        assert_eq!(loads.0.lock().rows, MAX_KEPT);
        assert!(loads.seen(&model(), at(9000)).proxies.iter().any(|one| one.is_cut && one.rows.is_empty()));
        assert_eq!(loads.seen(&model(), at(90_000)).proxies[0].rows.len(), 0);
        assert_eq!(loads.0.lock().rows, 0);
    }
}
