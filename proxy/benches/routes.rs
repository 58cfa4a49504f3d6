//! What a match costs in a table of a thousand routes: `cargo bench -p tulle-proxy --bench routes`.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tulle_proxy::route::{
    Asked, Conditions, HeaderMatch, Match, PathMatch, Pattern, RequestMatch, Route, RouteKind, RouteRule,
    Routes, Rule, Table, ValueMatch,
};
use tulle_proxy::state::ObjectName;

const ROUTES: usize = 1_000;
const TENANT: HeaderName = HeaderName::from_static("x-tenant");

fn table(hosts: bool, one: impl Fn(usize) -> RequestMatch) -> Table {
    let routes = (0..ROUTES).map(|i| {
        let name = ObjectName::new("shop", &format!("route-{i}"));
        let rule = Rule {
            name: "".into(),
            label: name.to_string().into(),
            route: name.clone(),
            kind: RouteKind::Http,
            invalid: None,
            filters: None,
            backends: Box::default(),
            requests: None,
            session: None,
        };
        let hostnames = hosts.then(|| format!("{i}.example.com").parse().ok()).flatten();
        let rules = vec![RouteRule { matches: vec![one(i)], rule: Arc::new(rule) }];
        Route { name, ports: Vec::new(), hostnames: hostnames.into_iter().collect(), rules }
    });
    let service = ObjectName::new("shop", "orders");
    Table::new(Routes { client_namespace: "".into(), service, routes: routes.collect(), streams: Vec::new() })
}

fn by(path: PathMatch) -> RequestMatch {
    RequestMatch { path, when: None }
}

fn by_tenant(i: usize) -> RequestMatch {
    let value = ValueMatch::Exact(i.to_string().into_bytes().into());
    let headers = vec![HeaderMatch { name: TENANT, value }];
    let when = Some(Arc::new(Conditions { headers, ..Conditions::default() }));
    RequestMatch { path: PathMatch::Prefix("/".into()), when }
}

fn by_pattern(i: usize) -> RequestMatch {
    let text = format!("/{i}/[0-9]+");
    by(Pattern::new(&text).map_or_else(|_| PathMatch::Exact(text.into()), PathMatch::Pattern))
}

fn matches(c: &mut Criterion) {
    let mut headers = HeaderMap::new();
    for name in ["host", "accept", "user-agent", "traceparent"] {
        headers.insert(name, HeaderValue::from_static("some value of some length"));
    }
    headers.insert(TENANT, HeaderValue::from_static("990"));
    let mut one = |name: &str, table: &Table, authority: &str, path: &str| {
        let asked =
            Asked { method: &Method::GET, authority, path, query: "page=2&size=50", headers: &headers };
        assert!(matches!(table.find(80, &asked), Match::Rule(_)), "{name}");
        c.bench_function(name, |b| b.iter(|| matches!(table.find(80, black_box(&asked)), Match::Rule(_))));
    };
    let orders = "orders.shop:8080";
    one(
        "exact path",
        &table(false, |i| by(PathMatch::Exact(format!("/api/{i}").into()))),
        orders,
        "/api/990",
    );
    let prefixes = table(false, |i| by(PathMatch::Prefix(format!("/api/v1/{i}").into())));
    one("prefix", &prefixes, orders, "/api/v1/990/items/17");
    one("host", &table(true, |_| by(PathMatch::Prefix("/".into()))), "990.example.com:8080", "/api/v1/990");
    one("header", &table(false, by_tenant), orders, "/api/v1/990");
    one("pattern, one after the other", &table(false, by_pattern), orders, "/990/17");
}

criterion_group!(benches, matches);
criterion_main!(benches);
