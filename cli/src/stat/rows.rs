//! Reports added up to the lines that are shown. Pure.
//!
//! What a client's proxy and its server's both report is counted once: Services, edges and routes are what proxies of clients say, and
//! workloads what their own proxies say. Of a client without a proxy only the server's tells.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use tulle_control_plane::load::{Labels, Meshed, ProxyLoad, Row, Seen};

use super::table::{Columns, Line, Sum, Table};

/// What is asked for; names are `<namespace>/<name>`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted<'a> {
    /// Only what is of this namespace.
    pub(super) namespace: Option<&'a str>,
    /// Only what a line of this name is about.
    pub(super) name: Option<&'a str>,
    /// Only what this workload sends.
    pub(super) from: Option<&'a str>,
    /// Only what is sent to this.
    pub(super) to: Option<&'a str>,
}

const STAT: Columns = Columns { about: &["NAME", "MESHED"], wide: &[] };
const EDGES: Columns = Columns { about: &["SRC", "DST", "SECURED"], wide: &["SRC_IDENTITY", "DST_IDENTITY"] };
const ROUTES: Columns = Columns { about: &["ROUTE", "SERVICE", "BACKEND"], wide: &[] };
/// In place of a name that is not known.
pub(super) const UNKNOWN: &str = "unknown";
/// What no route takes.
const DEFAULT: &str = "[default]";

/// A line per Service, also of those that nobody called.
pub(super) fn services(seen: &Seen, wanted: &Wanted<'_>) -> Result<Table> {
    has_service(seen, wanted.name)?;
    has_workload(seen, wanted.from)?;
    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    for (proxy, row) in outbound(seen) {
        if wanted.sends(proxy) {
            sums.entry(without_port(&row.labels.service)).or_default().add(row);
        }
    }
    let services = seen.services.iter().filter(|(service, _)| wanted.shows(service));
    let line = |(service, meshed): (&String, &Meshed)| {
        let meshed = format!("{}/{}", meshed.meshed, meshed.endpoints);
        let about = BTreeMap::from([("name", service.clone()), ("meshed", meshed)]);
        Line { about, golden: sums.remove(service.as_str()).unwrap_or_default().golden() }
    };
    let rows = services.map(line).collect();
    Ok(Table::new(seen, rows, STAT, "no Service there"))
}

/// A line per workload that has a proxy: what it serves, or what it sends to a Service.
pub(super) fn workloads(seen: &Seen, wanted: &Wanted<'_>) -> Result<Table> {
    has_workload(seen, wanted.name)?;
    has_workload(seen, wanted.from)?;
    has_service(seen, wanted.to)?;
    let senders: BTreeSet<&str> =
        seen.proxies.iter().filter(|proxy| wanted.sends(proxy)).map(|proxy| &*proxy.identity).collect();
    let counts = |row: &Row| match wanted.to {
        Some(service) => !row.labels.inbound && without_port(&row.labels.service) == service,
        // What it refused before it was known whose it is belongs to it as well.
        None => row.labels.inbound && (wanted.from.is_none() || senders.contains(&*row.labels.peer)),
    };
    let mut sums: BTreeMap<&str, ([u64; 2], Sum)> = BTreeMap::new();
    for proxy in seen.proxies.iter().filter(|proxy| wanted.shows(&proxy.proxy)) {
        let ([connected, most], sum) = sums.entry(&proxy.proxy).or_default();
        *connected += proxy.connected;
        *most += proxy.most_connected;
        proxy.rows.iter().filter(|row| counts(row)).for_each(|row| sum.add(row));
    }
    let line = |(workload, ([connected, most], sum)): (&str, ([u64; 2], Sum))| {
        let about = [("name", workload.to_owned()), ("meshed", format!("{connected}/{most}"))];
        Line { about: about.into(), golden: sum.golden() }
    };
    let rows = sums.into_iter().map(line);
    // Who has nothing to do with the other is not asked about.
    let is_any = |line: &Line| line.golden.requests > 0 || line.golden.open_connections > 0;
    let rows = rows.filter(|line| wanted.from.or(wanted.to).is_none() || is_any(line)).collect();
    Ok(Table::new(seen, rows, STAT, "no workload there that a proxy reports of"))
}

/// A line per route and backend of Services.
pub(super) fn routes(seen: &Seen, wanted: &Wanted<'_>) -> Result<Table> {
    has_service(seen, wanted.name)?;
    has_workload(seen, wanted.from)?;
    let mut sums: BTreeMap<[&str; 3], Sum> = BTreeMap::new();
    let mut ways: BTreeMap<&str, BTreeSet<[&str; 3]>> = BTreeMap::new();
    let is_shown = |(proxy, row): &(&ProxyLoad, &Row)| {
        wanted.sends(proxy)
            && wanted.shows(without_port(&row.labels.service))
            && (row.requests > 0 || row.open_connections > 0)
    };
    for (_, row) in outbound(seen).filter(is_shown).filter(|(_, row)| !is_bare(row)) {
        let Labels { service, route, backend, peer, tls, .. } = &row.labels;
        let route = if route.is_empty() { DEFAULT } else { route };
        let backend = if backend.is_empty() && !peer.is_empty() { service } else { backend };
        let line = [&**service, route, backend];
        sums.entry(line).or_default().add(row);
        if row.requests > 0 && !tls.is_empty() {
            ways.entry(service).or_default().insert(line);
        }
    }
    for (_, row) in outbound(seen).filter(is_shown).filter(|(_, row)| is_bare(row)) {
        let service = &*row.labels.service;
        add_bare(&mut sums, ways.get(service), [service, DEFAULT, ""], row);
    }
    let rows = sums.into_iter().map(|([service, route, backend], sum)| {
        let about = [("service", service), ("route", route), ("backend", backend)];
        Line { about: about.map(|(key, value)| (key, value.to_owned())).into(), golden: sum.golden() }
    });
    Ok(Table::new(seen, rows.collect(), ROUTES, "nothing was called in the last minute"))
}

/// A line per pair of who calls and who is called.
pub(super) fn edges(seen: &Seen, wanted: &Wanted<'_>) -> Result<Table> {
    has_workload(seen, wanted.from.filter(|from| *from != UNKNOWN))?;
    if has_service(seen, wanted.to).is_err() {
        has_workload(seen, wanted.to)?;
    }
    let mut sums: BTreeMap<[&str; 5], Sum> = BTreeMap::new();
    let mut ways: BTreeMap<[&str; 2], BTreeSet<[&str; 5]>> = BTreeMap::new();
    for (proxy, row) in outbound(seen).filter(|(_, row)| !is_bare(row)) {
        let Labels { service, backend, peer, tls, .. } = &row.labels;
        let called = without_port(if backend.is_empty() { service } else { backend });
        let edge = [&*proxy.proxy, called, tls, &*proxy.identity, peer];
        sums.entry(edge).or_default().add(row);
        if row.requests > 0 && !tls.is_empty() {
            ways.entry([&*proxy.proxy, service]).or_default().insert(edge);
        }
    }
    for (proxy, row) in outbound(seen).filter(|(_, row)| is_bare(row)) {
        let service = &*row.labels.service;
        let alone = [&*proxy.proxy, without_port(service), "", &*proxy.identity, ""];
        add_bare(&mut sums, ways.get(&[&*proxy.proxy, service]), alone, row);
    }
    // Of others' calls only the called one's proxy tells.
    let told: BTreeSet<&str> = seen.proxies.iter().map(|proxy| &*proxy.identity).collect();
    for proxy in &seen.proxies {
        let rows = proxy.rows.iter().filter(|row| row.labels.inbound && !row.labels.rest);
        for row in rows.filter(|row| !told.contains(&*row.labels.peer)) {
            let edge = [UNKNOWN, &*proxy.proxy, &*row.labels.tls, &*row.labels.peer, &*proxy.identity];
            sums.entry(edge).or_default().add(row);
        }
    }
    let is_wanted = |[from, to, ..]: &[&str; 5]| {
        (is_of(from, wanted.namespace) || is_of(to, wanted.namespace))
            && wanted.from.is_none_or(|wanted| wanted == *from)
            && wanted.to.is_none_or(|wanted| wanted == *to)
    };
    let rows = sums.into_iter().filter(|(edge, _)| is_wanted(edge)).map(|(edge, sum)| {
        let keys = ["src", "dst", "secured", "src_identity", "dst_identity"];
        let about = keys.into_iter().zip(edge.map(str::to_owned)).collect();
        Line { about, golden: sum.golden() }
    });
    Ok(Table::new(seen, rows.collect(), EDGES, "nobody called anybody in the last minute"))
}

fn has_service(seen: &Seen, service: Option<&str>) -> Result<()> {
    match service {
        Some(service) if !seen.services.contains_key(service) => {
            bail!("the control plane knows no Service {service}")
        }
        _ => Ok(()),
    }
}

fn has_workload(seen: &Seen, workload: Option<&str>) -> Result<()> {
    let Some(workload) = workload else { return Ok(()) };
    let known: BTreeSet<&str> = seen.proxies.iter().map(|proxy| &*proxy.proxy).collect();
    if !known.contains(workload) {
        let known: Vec<&str> = known.into_iter().take(20).collect();
        bail!(
            "no proxy of a workload {workload} has reported in the last minute; there are {}",
            known.join(", ")
        );
    }
    Ok(())
}

/// What clients' proxies say of Services.
fn outbound(seen: &Seen) -> impl Iterator<Item = (&ProxyLoad, &Row)> {
    let rows = seen.proxies.iter().flat_map(|proxy| proxy.rows.iter().map(move |row| (proxy, row)));
    rows.filter(|(_, row)| !row.labels.inbound && !row.labels.rest && !row.labels.service.is_empty())
}

/// Whether it tells only of connections from the application, and not of how their requests go on: those tell of that themselves.
fn is_bare(row: &Row) -> bool {
    let Labels { tls, peer, route, backend, .. } = &row.labels;
    row.requests == 0 && tls.is_empty() && peer.is_empty() && route.is_empty() && backend.is_empty()
}

/// Adds connections to the one line that their requests go by. Where these go by several, they belong to none; where there are no requests, to
/// `alone`.
fn add_bare<K: Ord + Copy>(sums: &mut BTreeMap<K, Sum>, ways: Option<&BTreeSet<K>>, alone: K, row: &Row) {
    let line = match ways.map(|ways| (ways.len(), ways.first())) {
        Some((1, Some(only))) => *only,
        Some(_) => return,
        None => alone,
    };
    sums.entry(line).or_default().add(row);
}

fn without_port(service: &str) -> &str {
    service.rsplit_once(':').map_or(service, |(service, _)| service)
}

fn is_of(full: &str, namespace: Option<&str>) -> bool {
    let of = full.split_once('/').map_or("", |(namespace, _)| namespace);
    namespace.is_none_or(|namespace| namespace == of)
}

// === impl Wanted ===

impl Wanted<'_> {
    fn shows(&self, full: &str) -> bool {
        is_of(full, self.namespace) && self.name.is_none_or(|name| name == full)
    }

    fn sends(&self, proxy: &ProxyLoad) -> bool {
        self.from.is_none_or(|from| from == proxy.proxy)
    }
}

#[cfg(test)]
mod tests {
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
        Row {
            labels,
            requests,
            failures,
            latencies: vec![(20, requests)],
            requests_per_second: requests as f64 / 10.0,
            open_connections: 1,
            bytes_sent: 40_000,
            bytes_received: 10,
            bytes_per_second: [4000.0, 1.0],
        }
    }

    fn inbound(mut row: Row, peer: &str) -> Row {
        row.labels =
            Labels { inbound: true, peer: peer.to_owned(), tls: row.labels.tls, ..Labels::default() };
        row
    }

    fn proxy(name: &str, [connected, most_connected]: [u64; 2], rows: Vec<Row>) -> ProxyLoad {
        let identity = format!("spiffe://a/ns/{}", name.replace('/', "/sa/"));
        ProxyLoad {
            proxy: name.to_owned(),
            identity,
            connected,
            most_connected,
            has_reported: true,
            rows,
            ..ProxyLoad::default()
        }
    }

    fn seen() -> Seen {
        let orders = || row("shop/orders:80", "shop/by-path", "shop/orders-v2:80", [100, 1]);
        let web = "spiffe://a/ns/shop/sa/web";
        let proxies = vec![
            proxy("shop/web", [1, 1], vec![orders()]),
            // Of another control plane, and of two ports.
            proxy("shop/web", [1, 2], vec![orders(), row("shop/orders:81", "", "", [50, 0])]),
            proxy("shop/orders", [1, 1], vec![inbound(orders(), web), inbound(row("", "", "", [3, 0]), "")]),
        ];
        let services =
            [("shop/orders", Meshed { endpoints: 3, meshed: 2 }), ("bank/idle", Meshed::default())];
        let services = services.map(|(name, meshed)| (name.to_owned(), meshed)).into();
        Seen { window_seconds: 60, proxies, services }
    }

    fn named(name: &str) -> Wanted<'_> {
        Wanted { name: Some(name), ..Wanted::default() }
    }

    fn of(namespace: &str) -> Wanted<'_> {
        Wanted { namespace: Some(namespace), ..Wanted::default() }
    }

    fn from(from: &str) -> Wanted<'_> {
        Wanted { from: Some(from), ..Wanted::default() }
    }

    fn to(to: &str) -> Wanted<'_> {
        Wanted { to: Some(to), ..Wanted::default() }
    }

    /// What the lines are about, by these keys, and the requests of each.
    fn said<'a, const N: usize>(table: &'a Table, keys: [&str; N]) -> Vec<([&'a str; N], u64)> {
        table.rows.iter().map(|row| (keys.map(|key| &*row.about[key]), row.golden.requests)).collect()
    }

    #[test]
    fn services_add_up_over_clients() {
        let table = services(&seen(), &Wanted::default()).unwrap();
        let lines = table.lines(false);
        assert_eq!(
            lines[0],
            "NAME          MESHED   SUCCESS    RPS   LATENCY_P50   LATENCY_P95   LATENCY_P99   TCP_CONN"
        );
        assert_eq!(
            lines[1],
            "bank/idle     0/0            -      -             -             -             -          0"
        );
        assert!(lines[2].starts_with("shop/orders   2/3       99.20%   25.0       1.75 ms"), "{}", lines[2]);
        let wide = table.lines(true);
        assert!(wide[0].ends_with("   READ_BYTES/SEC   WRITE_BYTES/SEC"), "{}", wide[0]);
        assert!(wide[2].ends_with("              3 B          11.7 KiB"), "{}", wide[2]);
        assert_eq!(services(&seen(), &of("bank")).unwrap().rows.len(), 1);
        let one = serde_json::to_value(services(&seen(), &named("shop/orders")).unwrap()).unwrap();
        let one = &one["rows"][0];
        assert_eq!((&one["requests"], &one["meshed"]), (&250.into(), &"2/3".into()), "{one}");
        assert_eq!((&one["read_bytes"], &one["write_bytes"]), (&30.into(), &120_000.into()), "{one}");
        let error = services(&seen(), &named("shop/none")).unwrap_err().to_string();
        assert_eq!(error, "the control plane knows no Service shop/none");
    }

    #[test]
    fn only_what_one_workload_sends_is_shown_if_it_is_asked_for() {
        let mut seen = seen();
        let rows = vec![row("shop/orders:80", "", "", [7, 0])];
        seen.proxies.push(proxy("shop/other", [1, 1], rows));
        let requests = |table: Result<Table>| said(&table.unwrap(), []).iter().map(|row| row.1).sum::<u64>();
        assert_eq!(requests(services(&seen, &from("shop/other"))), 7);
        assert_eq!(requests(routes(&seen, &from("shop/other"))), 7);
        assert_eq!(requests(edges(&seen, &from("shop/other"))), 7);
        assert_eq!(requests(edges(&seen, &from("unknown"))), 3);
        assert_eq!(requests(workloads(&seen, &from("shop/web"))), 100);
        assert_eq!(requests(workloads(&seen, &from("shop/other"))), 0);
        let table = workloads(&seen, &to("shop/orders")).unwrap();
        assert_eq!(said(&table, ["name"]), [(["shop/other"], 7), (["shop/web"], 250)]);
        assert_eq!(requests(edges(&seen, &to("shop/orders"))), 60);
        for wanted in [from("shop/none"), to("shop/none")] {
            assert!(edges(&seen, &wanted).is_err() && workloads(&seen, &wanted).is_err());
        }
    }

    #[test]
    fn workloads_are_what_their_own_proxies_say() {
        let table = workloads(&seen(), &of("shop")).unwrap();
        assert_eq!(said(&table, ["name"]), [(["shop/orders"], 103), (["shop/web"], 0)]);
        assert_eq!(table.rows[1].about["meshed"], "2/3");
        let error = workloads(&seen(), &named("shop/none")).unwrap_err().to_string();
        assert!(error.contains("there are shop/orders, shop/web"), "{error}");
    }

    #[test]
    fn an_edge_is_told_once_and_who_has_no_proxy_is_unknown() {
        let table = edges(&seen(), &Wanted::default()).unwrap();
        let expected = [
            (["shop/web", "shop/orders"], 50),
            (["shop/web", "shop/orders-v2"], 200),
            (["unknown", "shop/orders"], 3),
        ];
        assert_eq!(said(&table, ["src", "dst"]), expected);
        let lines = table.lines(false);
        assert!(lines[0].starts_with("SRC        DST              SECURED   SUCCESS"), "{}", lines[0]);
        assert!(!lines[0].contains("IDENTITY"), "{}", lines[0]);
        let wide = table.lines(true);
        assert!(
            wide[1].ends_with("   spiffe://a/ns/shop/sa/web   spiffe://a/ns/shop/sa/orders"),
            "{}",
            wide[1]
        );
        let none = edges(&seen(), &of("bank")).unwrap();
        assert_eq!(none.lines(false), ["nobody called anybody in the last minute"]);
    }

    #[test]
    fn routes_are_told_by_backend_and_what_no_route_takes_too() {
        let table = routes(&seen(), &named("shop/orders")).unwrap();
        let expected = [
            (["shop/orders:80", "shop/by-path", "shop/orders-v2:80"], 200),
            (["shop/orders:81", "[default]", "shop/orders:81"], 50),
        ];
        assert_eq!(said(&table, ["service", "route", "backend"]), expected);
    }

    #[test]
    fn the_applications_own_connections_make_no_edge_without_protection() {
        let bare = |service: &str| {
            let labels = Labels { service: service.to_owned(), ..Labels::default() };
            Row { labels, open_connections: 7, ..Row::default() }
        };
        let split = |backend: &str| row("shop/split:80", "shop/by-weight", backend, [10, 0]);
        let mut plain = bare("shop/plain:80");
        plain.labels.tls = "none".to_owned();
        // What reached no server goes no way.
        let lost = Row { requests: 3, failures: 3, open_connections: 0, ..bare("shop/orders:80") };
        let rows = vec![
            row("shop/orders:80", "", "", [50, 0]),
            bare("shop/orders:80"),
            split("shop/v1:80"),
            split("shop/v2:80"),
            bare("shop/split:80"),
            bare("shop/idle:80"),
            plain,
            lost,
        ];
        let seen = Seen { proxies: vec![proxy("shop/web", [1, 1], rows)], ..Seen::default() };
        let conns = |table: Table, keys: [&str; 2]| -> Vec<(String, String, u64)> {
            let line = |row: Line| {
                let [a, b] = keys.map(|key| row.about[key].clone());
                (a, b, row.golden.open_connections)
            };
            table.rows.into_iter().map(line).collect()
        };
        let owned = |rows: &[(&str, &str, u64)]| -> Vec<(String, String, u64)> {
            rows.iter().map(|(a, b, open)| ((*a).to_owned(), (*b).to_owned(), *open)).collect()
        };
        let edges = conns(edges(&seen, &Wanted::default()).unwrap(), ["dst", "secured"]);
        assert_eq!(
            edges,
            owned(&[
                ("shop/idle", "", 7),
                ("shop/orders", "", 0),
                ("shop/orders", "mtls", 8),
                ("shop/plain", "none", 7),
                ("shop/v1", "mtls", 1),
                ("shop/v2", "mtls", 1),
            ])
        );
        let routes = conns(routes(&seen, &Wanted::default()).unwrap(), ["service", "backend"]);
        assert_eq!(
            routes,
            owned(&[
                ("shop/idle:80", "", 7),
                ("shop/orders:80", "", 0),
                ("shop/orders:80", "shop/orders:80", 8),
                ("shop/plain:80", "", 7),
                ("shop/split:80", "shop/v1:80", 1),
                ("shop/split:80", "shop/v2:80", 1),
            ])
        );
    }

    #[test]
    fn what_is_missing_is_said() {
        let mut seen = seen();
        seen.proxies[0].is_cut = true;
        seen.proxies[2].untold = ["route", "peer"].map(str::to_owned).into();
        let mut table = services(&seen, &Wanted::default()).unwrap();
        table.unreachable.push("no control plane's metrics port at 127.0.0.1:1".to_owned());
        let lines = table.lines(false);
        assert_eq!(
            lines[lines.len() - 3..],
            [
                "not all is here of shop/web: there is more than their reports tell apart",
                "not told apart by peer, route, as TULLE_PROXY_METRICS_LABELS says there: shop/orders",
                "what its proxies carry is not here: no control plane's metrics port at 127.0.0.1:1",
            ]
        );
        for name in ["a", "b", "c", "d", "e", "f"] {
            seen.proxies
                .push(ProxyLoad { is_cut: true, ..proxy(&format!("shop/{name}"), [1, 1], Vec::new()) });
        }
        let lines = services(&seen, &Wanted::default()).unwrap().lines(false);
        assert!(lines[3].contains("of shop/a, shop/b, shop/c, shop/d, shop/e and 2 more: "), "{}", lines[3]);
    }
}
