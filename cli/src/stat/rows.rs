//! Reports added up to the lines that are shown. Pure.
//!
//! What a client's proxy and its server's both report is counted once: Services, edges and routes are what proxies of clients say, and
//! workloads what their own proxies say. Of a client without a proxy only the server's tells.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;
use tulle_api::Latencies;
use tulle_control_plane::load::{Labels, ProxyLoad, Row, Seen};

use crate::screen::milliseconds;

/// What is printed.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    /// How far back is looked.
    window_seconds: u64,
    rows: Vec<Line>,
    /// Proxies of which not everything is known, or not everything told apart.
    incomplete: BTreeSet<String>,
    #[serde(skip)]
    headings: &'static [&'static str],
    #[serde(skip)]
    when_empty: &'static str,
}

/// One line: what it is about, and the golden metrics of it.
#[derive(Debug, Serialize)]
struct Line {
    #[serde(flatten)]
    about: BTreeMap<&'static str, String>,
    #[serde(flatten)]
    golden: Golden,
}

#[derive(Debug, PartialEq, Serialize)]
struct Golden {
    requests: u64,
    failures: u64,
    /// 0 to 1; null without requests.
    success_rate: Option<f64>,
    rps: f64,
    latency_p50_ms: Option<f64>,
    latency_p95_ms: Option<f64>,
    latency_p99_ms: Option<f64>,
    open_connections: u64,
}

/// What is added up.
#[derive(Debug, Default)]
struct Sum {
    requests: u64,
    failures: u64,
    rps: f64,
    latencies: Latencies,
    open_connections: u64,
}

const STAT: &[&str] = &["NAME", "MESHED"];
const EDGES: &[&str] = &["SRC", "DST", "SRC_IDENTITY", "DST_IDENTITY", "SECURED"];
const ROUTES: &[&str] = &["ROUTE", "SERVICE", "BACKEND"];
const GOLDEN: [&str; 6] = ["SUCCESS", "RPS", "LATENCY_P50", "LATENCY_P95", "LATENCY_P99", "TCP_CONN"];
/// In place of a name that is not known.
const UNKNOWN: &str = "unknown";

/// A line per Service, also of those that nobody called.
pub(super) fn services(seen: &Seen, namespace: Option<&str>, name: Option<&str>) -> Result<Table> {
    if let Some(name) = name {
        exists(seen, name)?;
    }
    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    for (proxy, row) in outbound(seen) {
        sums.entry(without_port(&row.labels.service)).or_default().add(proxy, row);
    }
    let wanted = seen.services.iter().filter(|(service, _)| is_wanted(service, namespace, name));
    let line = |(service, meshed): (&String, &tulle_control_plane::load::Meshed)| {
        let meshed = format!("{}/{}", meshed.meshed, meshed.endpoints);
        let about = BTreeMap::from([("name", service.clone()), ("meshed", meshed)]);
        Line { about, golden: sums.remove(service.as_str()).unwrap_or_default().golden() }
    };
    let rows = wanted.map(line).collect();
    Ok(Table::new(seen, rows, STAT, "no Service there"))
}

/// A line per workload that has a proxy.
pub(super) fn workloads(seen: &Seen, namespace: Option<&str>, name: Option<&str>) -> Result<Table> {
    let mut sums: BTreeMap<&str, (u64, u64, Sum)> = BTreeMap::new();
    for proxy in &seen.proxies {
        let (connected, all, sum) = sums.entry(&proxy.proxy).or_default();
        *connected += u64::from(proxy.connected);
        *all += 1;
        // What it refused before it was known whose it is belongs to it as well.
        for row in proxy.rows.iter().filter(|row| row.labels.inbound) {
            sum.add(proxy, row);
        }
    }
    let wanted = sums.into_iter().filter(|(workload, _)| is_wanted(workload, namespace, name));
    let rows: Vec<Line> = wanted
        .map(|(workload, (connected, all, sum))| {
            let about = [("name", workload.to_owned()), ("meshed", format!("{}/{all}", connected.min(all)))];
            Line { about: about.into(), golden: sum.golden() }
        })
        .collect();
    if let (Some(name), true) = (name, rows.is_empty()) {
        let known: BTreeSet<&str> = seen.proxies.iter().map(|proxy| &*proxy.proxy).collect();
        let known: Vec<&str> = known.into_iter().take(20).collect();
        bail!(
            "no proxy of a workload {name} has reported in the last minute; there are {}",
            known.join(", ")
        );
    }
    Ok(Table::new(seen, rows, STAT, "no workload there has a proxy that reports"))
}

/// A line per route and backend of Services.
pub(super) fn routes(seen: &Seen, namespace: Option<&str>, service: Option<&str>) -> Result<Table> {
    if let Some(service) = service {
        exists(seen, service)?;
    }
    let mut sums: BTreeMap<[&str; 3], Sum> = BTreeMap::new();
    for (proxy, row) in outbound(seen) {
        let Labels { service: of, route, backend, .. } = &row.labels;
        if !is_wanted(without_port(of), namespace, service) || row.requests == 0 && row.open_connections == 0
        {
            continue;
        }
        let route = if route.is_empty() { "[default]" } else { route };
        let backend = if backend.is_empty() && !row.labels.peer.is_empty() { of } else { backend };
        sums.entry([&**of, route, backend]).or_default().add(proxy, row);
    }
    let rows = sums.into_iter().map(|([service, route, backend], sum)| {
        let about = [("service", service), ("route", route), ("backend", backend)];
        Line { about: about.map(|(key, value)| (key, value.to_owned())).into(), golden: sum.golden() }
    });
    Ok(Table::new(seen, rows.collect(), ROUTES, "nothing was called in the last minute"))
}

/// A line per pair of who calls and who is called.
pub(super) fn edges(seen: &Seen, namespace: Option<&str>) -> Table {
    let mut sums: BTreeMap<[&str; 5], Sum> = BTreeMap::new();
    for (proxy, row) in outbound(seen) {
        let Labels { service, backend, peer, tls, .. } = &row.labels;
        let called = without_port(if backend.is_empty() { service } else { backend });
        let edge = [&*proxy.proxy, called, &*proxy.identity, peer, tls];
        sums.entry(edge).or_default().add(proxy, row);
    }
    // Of others' calls only the called one's proxy tells.
    let told: BTreeSet<&str> = seen.proxies.iter().map(|proxy| &*proxy.identity).collect();
    for proxy in &seen.proxies {
        let rows = proxy.rows.iter().filter(|row| row.labels.inbound && !row.labels.rest);
        for row in rows.filter(|row| !told.contains(&*row.labels.peer)) {
            let edge = [UNKNOWN, &*proxy.proxy, &*row.labels.peer, &*proxy.identity, &*row.labels.tls];
            sums.entry(edge).or_default().add(proxy, row);
        }
    }
    let is_wanted =
        |[from, to, ..]: &[&str; 5]| is_wanted(from, namespace, None) || is_wanted(to, namespace, None);
    let rows = sums.into_iter().filter(|(edge, _)| is_wanted(edge)).map(|(edge, sum)| {
        let keys = ["src", "dst", "src_identity", "dst_identity", "secured"];
        let about = keys.into_iter().zip(edge.map(str::to_owned)).collect();
        Line { about, golden: sum.golden() }
    });
    Table::new(seen, rows.collect(), EDGES, "nobody called anybody in the last minute")
}

fn exists(seen: &Seen, service: &str) -> Result<()> {
    if !seen.services.contains_key(service) {
        bail!("the control plane knows no Service {service}");
    }
    Ok(())
}

/// What clients' proxies say of Services.
fn outbound(seen: &Seen) -> impl Iterator<Item = (&ProxyLoad, &Row)> {
    let rows = seen.proxies.iter().flat_map(|proxy| proxy.rows.iter().map(move |row| (proxy, row)));
    rows.filter(|(_, row)| !row.labels.inbound && !row.labels.rest && !row.labels.service.is_empty())
}

fn without_port(service: &str) -> &str {
    service.rsplit_once(':').map_or(service, |(service, _)| service)
}

fn is_wanted(full: &str, namespace: Option<&str>, name: Option<&str>) -> bool {
    let of = full.split_once('/').map_or("", |(namespace, _)| namespace);
    namespace.is_none_or(|namespace| namespace == of) && name.is_none_or(|name| name == full)
}

// === impl Sum ===

impl Sum {
    fn add(&mut self, proxy: &ProxyLoad, row: &Row) {
        self.requests += row.requests;
        self.failures += row.failures;
        if proxy.seconds > 0.0 {
            self.rps += row.requests as f64 / proxy.seconds;
        }
        self.latencies.merge(&row.latencies());
        self.open_connections += row.open_connections;
    }

    fn golden(self) -> Golden {
        let milliseconds = |q| {
            let latency: Option<Duration> = self.latencies.quantile(q);
            latency.map(|latency| (latency.as_secs_f64() * 1e6).round() / 1e3)
        };
        let ok = self.requests.saturating_sub(self.failures);
        Golden {
            requests: self.requests,
            failures: self.failures,
            success_rate: (self.requests > 0).then(|| ok as f64 / self.requests as f64),
            rps: (self.rps * 1e3).round() / 1e3,
            latency_p50_ms: milliseconds(0.5),
            latency_p95_ms: milliseconds(0.95),
            latency_p99_ms: milliseconds(0.99),
            open_connections: self.open_connections,
        }
    }
}

// === impl Golden ===

impl Golden {
    fn cells(&self) -> [String; 6] {
        let none = || "-".to_owned();
        let latency = |latency: Option<f64>| {
            latency.map_or_else(none, |latency| milliseconds(Duration::from_secs_f64(latency / 1e3)))
        };
        // Only a success without exception is 100 %.
        let success =
            |rate: f64| format!("{:.2}%", if rate < 1.0 { (rate * 100.0).min(99.99) } else { 100.0 });
        [
            self.success_rate.map_or_else(none, success),
            if self.requests == 0 { none() } else { format!("{:.1}", self.rps) },
            latency(self.latency_p50_ms),
            latency(self.latency_p95_ms),
            latency(self.latency_p99_ms),
            self.open_connections.to_string(),
        ]
    }
}

// === impl Table ===

impl Table {
    fn new(
        seen: &Seen,
        rows: Vec<Line>,
        headings: &'static [&'static str],
        when_empty: &'static str,
    ) -> Self {
        let incomplete = seen.proxies.iter().filter(|proxy| proxy.is_cut);
        let incomplete = incomplete.map(|proxy| proxy.proxy.clone()).collect();
        Self { window_seconds: seen.window_seconds, rows, incomplete, headings, when_empty }
    }

    /// As text.
    pub(super) fn lines(&self) -> Vec<String> {
        let headings = self.headings.iter().chain(&GOLDEN).map(|heading| (*heading).to_owned());
        let mut cells: Vec<Vec<String>> = vec![headings.collect()];
        for Line { about, golden } in &self.rows {
            let text = |heading: &&str| match about.get(&*heading.to_ascii_lowercase()) {
                Some(text) if !text.is_empty() => text.clone(),
                _ => "-".to_owned(),
            };
            cells.push(self.headings.iter().map(text).chain(golden.cells()).collect());
        }
        let widths: Vec<usize> = (0..self.headings.len() + GOLDEN.len())
            .map(|at| {
                cells.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let line = |row: &Vec<String>| {
            let mut text = String::new();
            for (at, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                // Numbers are set to the right.
                let is_number = at >= self.headings.len();
                text.push_str(&if is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") });
                text.push_str("   ");
            }
            text.trim_end().to_owned()
        };
        let mut lines: Vec<String> = match self.rows.is_empty() {
            true => vec![self.when_empty.to_owned()],
            false => cells.iter().map(line).collect(),
        };
        if !self.incomplete.is_empty() {
            let proxies: Vec<&str> = self.incomplete.iter().map(String::as_str).collect();
            lines.push(format!(
                "not all is here of {}: there is more than their reports tell apart",
                proxies.join(", ")
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use tulle_control_plane::load::Meshed;

    use super::*;

    fn row(service: &str, route: &str, backend: &str, [requests, failures]: [u64; 2]) -> Row {
        let labels = Labels {
            tls: "mtls".to_owned(),
            peer: "spiffe://a/ns/shop/sa/orders".to_owned(),
            service: service.to_owned(),
            route: route.to_owned(),
            backend: backend.to_owned(),
            ..Labels::default()
        };
        let latencies = vec![(20, requests)];
        Row { labels, requests, failures, latencies, open_connections: 1, ..Row::default() }
    }

    fn inbound(mut row: Row, peer: &str) -> Row {
        row.labels =
            Labels { inbound: true, peer: peer.to_owned(), tls: row.labels.tls, ..Labels::default() };
        row
    }

    fn proxy(name: &str, seconds: f64, rows: Vec<Row>) -> ProxyLoad {
        let identity = format!("spiffe://a/ns/{}", name.replace('/', "/sa/"));
        ProxyLoad { proxy: name.to_owned(), identity, connected: true, seconds, is_cut: false, rows }
    }

    fn seen() -> Seen {
        let orders = || row("shop/orders:80", "shop/by-path", "shop/orders-v2:80", [100, 1]);
        let proxies = vec![
            proxy("shop/web", 10.0, vec![orders()]),
            // Reports since half as long ago, and of two ports.
            proxy("shop/web", 5.0, vec![orders(), row("shop/orders:81", "", "", [50, 0])]),
            proxy(
                "shop/orders",
                10.0,
                vec![inbound(orders(), "spiffe://a/ns/shop/sa/web"), inbound(row("", "", "", [3, 0]), "")],
            ),
        ];
        let services =
            [("shop/orders", Meshed { endpoints: 3, meshed: 2 }), ("bank/idle", Meshed::default())];
        let services = services.map(|(name, meshed)| (name.to_owned(), meshed)).into();
        Seen { window_seconds: 60, proxies, services }
    }

    #[test]
    fn services_add_up_over_clients_with_rates_of_each_ones_time() {
        let table = services(&seen(), None, None).unwrap();
        let lines = table.lines();
        assert_eq!(
            lines[0],
            "NAME          MESHED   SUCCESS    RPS   LATENCY_P50   LATENCY_P95   LATENCY_P99   TCP_CONN"
        );
        assert_eq!(
            lines[1],
            "bank/idle     0/0            -      -             -             -             -          0"
        );
        assert!(lines[2].starts_with("shop/orders   2/3       99.20%   40.0       1.75 ms"), "{}", lines[2]);
        assert_eq!(services(&seen(), Some("bank"), None).unwrap().rows.len(), 1);
        let one = serde_json::to_value(services(&seen(), None, Some("shop/orders")).unwrap()).unwrap();
        assert_eq!(
            (&one["rows"][0]["requests"], &one["rows"][0]["meshed"]),
            (&250.into(), &"2/3".into()),
            "{one}"
        );
        let error = services(&seen(), None, Some("shop/none")).unwrap_err().to_string();
        assert_eq!(error, "the control plane knows no Service shop/none");
    }

    #[test]
    fn workloads_are_what_their_own_proxies_say() {
        let table = workloads(&seen(), Some("shop"), None).unwrap();
        let said: Vec<_> = table.rows.iter().map(|row| (&*row.about["name"], row.golden.requests)).collect();
        assert_eq!(said, [("shop/orders", 103), ("shop/web", 0)]);
        assert_eq!(table.rows[1].about["meshed"], "2/2");
        let error = workloads(&seen(), None, Some("shop/none")).unwrap_err().to_string();
        assert!(error.contains("there are shop/orders, shop/web"), "{error}");
    }

    #[test]
    fn an_edge_is_told_once_and_who_has_no_proxy_is_unknown() {
        let table = edges(&seen(), None);
        let said: Vec<_> = table
            .rows
            .iter()
            .map(|row| (&*row.about["src"], &*row.about["dst"], row.golden.requests))
            .collect();
        let expected = [
            ("shop/web", "shop/orders", 50),
            ("shop/web", "shop/orders-v2", 200),
            ("unknown", "shop/orders", 3),
        ];
        assert_eq!(said, expected);
        assert!(edges(&seen(), Some("bank")).rows.is_empty());
        assert_eq!(edges(&seen(), Some("bank")).lines(), ["nobody called anybody in the last minute"]);
    }

    #[test]
    fn routes_are_told_by_backend_and_what_no_route_takes_too() {
        let table = routes(&seen(), None, Some("shop/orders")).unwrap();
        let said: Vec<_> = table
            .rows
            .iter()
            .map(|row| {
                (&*row.about["service"], &*row.about["route"], &*row.about["backend"], row.golden.requests)
            })
            .collect();
        let expected = [
            ("shop/orders:80", "shop/by-path", "shop/orders-v2:80", 200),
            ("shop/orders:81", "[default]", "shop/orders:81", 50),
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn what_is_missing_is_said() {
        let mut seen = seen();
        seen.proxies[0].is_cut = true;
        let lines = services(&seen, None, None).unwrap().lines();
        assert_eq!(
            lines.last().unwrap(),
            "not all is here of shop/web: there is more than their reports tell apart"
        );
    }
}
