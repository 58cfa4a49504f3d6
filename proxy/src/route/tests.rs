use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::host::RequestHost;
use super::*;
use crate::state::ObjectName;
use crate::testing::{Rng, allocations, seeds};

mod precedence;

fn rule(route: &str, name: &str, matches: Vec<RequestMatch>, weights: &[u32]) -> RouteRule {
    let backends = weights.iter().enumerate().map(|(i, weight)| Backend {
        service: ObjectName::new("shop", &format!("v{i}")),
        port: 80,
        label: format!("shop/v{i}:80").into(),
        weight: *weight,
        invalid: None,
        filters: None,
    });
    let rule = Rule {
        name: name.into(),
        route: ObjectName::new("shop", route),
        label: format!("shop/{route}").into(),
        kind: RouteKind::Http,
        invalid: None,
        filters: None,
        backends: backends.collect(),
        requests: None,
        session: None,
    };
    RouteRule { matches, rule: Arc::new(rule) }
}

/// What a request must have, in words: `GET`, `a:x` for a header, `a:~x` for one that a pattern describes, `?a=x` for a query
/// parameter; and a path: `=/a` exact, `~/a` a pattern, `*/a` a gRPC method of any service, `/a` a prefix.
fn one(text: &str) -> RequestMatch {
    let value = |text: &str| match text.strip_prefix('~') {
        Some(pattern) => ValueMatch::Pattern(Pattern::new(pattern).unwrap()),
        None => ValueMatch::Exact(text.as_bytes().into()),
    };
    let mut path = PathMatch::Prefix("/".into());
    let mut when = Conditions::default();
    for word in text.split_whitespace() {
        if let Some((name, text)) = word.strip_prefix('?').and_then(|word| word.split_once('=')) {
            when.query.push(QueryMatch { name: name.into(), value: value(text) });
        } else if let Some(exact) = word.strip_prefix('=') {
            path = PathMatch::Exact(exact.into());
        } else if let Some(pattern) = word.strip_prefix('~') {
            path = PathMatch::Pattern(Pattern::new(pattern).unwrap());
        } else if let Some(method) = word.strip_prefix('*') {
            path = PathMatch::Method(Pattern::new(&format!("/[^/]+{method}")).unwrap());
        } else if word.starts_with('/') {
            path = PathMatch::Prefix(word.into());
        } else if let Some((name, text)) = word.split_once(':') {
            when.headers.push(HeaderMatch { name: name.parse().unwrap(), value: value(text) });
        } else {
            when.method = Some(word.parse().unwrap());
        }
    }
    RequestMatch { path, when: (!when.is_empty()).then(|| Arc::new(when)) }
}

/// A route whose rules are named by their one match; `` takes everything.
fn route(name: &str, ports: &[u16], hostnames: &[&str], rules: &[&str]) -> Route {
    let matches = |text: &str| if text.is_empty() { vec![] } else { vec![one(text)] };
    Route {
        name: ObjectName::new("shop", name),
        ports: ports.to_vec(),
        hostnames: hostnames.iter().map(|name| name.parse().unwrap()).collect(),
        rules: rules.iter().map(|text| rule(name, text, matches(text), &[1])).collect(),
    }
}

fn table(routes: Vec<Route>) -> Table {
    Table::new(Routes {
        client_namespace: "".into(),
        service: ObjectName::new("shop", "orders"),
        routes,
        streams: Vec::new(),
    })
}

/// A request in words: a method, headers `a:x`, a target with its query.
struct Request {
    method: Method,
    authority: String,
    target: String,
    headers: HeaderMap,
}

impl Request {
    fn new(authority: &str, words: &str) -> Self {
        let (authority, target) = (authority.to_owned(), String::new());
        let mut request = Self { method: Method::GET, authority, target, headers: HeaderMap::new() };
        for word in words.split_whitespace() {
            if word.starts_with('/') {
                request.target = word.to_owned();
            } else if let Some((name, value)) = word.split_once(':') {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                request.headers.append(name, HeaderValue::from_str(value).unwrap());
            } else {
                request.method = word.parse().unwrap();
            }
        }
        request
    }

    fn asked(&self) -> Asked<'_> {
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        Asked { method: &self.method, authority: &self.authority, path, query, headers: &self.headers }
    }
}

fn told(found: Match<'_>) -> String {
    match found {
        Match::NoRoutes => "no routes".to_owned(),
        Match::NotFound => "not found".to_owned(),
        Match::TooLong(what) => format!("{what:?}"),
        Match::Rule(Found { rule, .. }) => format!("{}{}", rule.route.name, rule.name),
    }
}

/// `<route><rule>`, or how there is none.
fn find(table: &Table, port: u16, host: &str, path: &str) -> String {
    let headers = HeaderMap::new();
    let asked = Asked { method: &Method::GET, authority: host, path, query: "", headers: &headers };
    told(table.find(port, &asked))
}

/// The same for a request in words.
fn ask(table: &Table, words: &str) -> String {
    told(table.find(80, &Request::new("any", words).asked()))
}

#[test]
fn an_exact_path_comes_before_the_longest_prefix() {
    let table = table(vec![route("r", &[], &[], &["/", "/a", "/a/b", "=/a/b", "=/a/b/", "/a/b/c/"])]);
    for (path, expected) in [
        ("/", "r/"),
        ("/x", "r/"),
        ("/a", "r/a"),
        ("/a/", "r/a"),
        ("/ab", "r/"),
        ("/a/x/b", "r/a"),
        ("/a/b", "r=/a/b"),
        ("/a/b/", "r=/a/b/"),
        ("/a/bc", "r/a"),
        ("/a/b/x", "r/a/b"),
        ("/a/b/c", "r/a/b/c/"),
        ("/a/b/c/d", "r/a/b/c/"),
        ("/A", "r/"),
        ("//a", "r/"),
        ("/a//b", "r/a"),
        ("*", "r/"),
        ("", "r/"),
    ] {
        assert_eq!(find(&table, 80, "any", path), expected, "{path}");
    }
}

#[test]
fn without_a_match_it_is_not_found_and_without_a_route_there_is_nothing_to_find() {
    let some = table(vec![route("r", &[8080], &[], &["/a"])]);
    assert_eq!(find(&some, 8080, "any", "/a"), "r/a");
    for path in ["/", "/b", "*", "", "a"] {
        assert_eq!(find(&some, 8080, "any", path), "not found");
    }
    assert_eq!(find(&some, 80, "any", "/a"), "no routes");
    assert_eq!(find(&table(vec![]), 80, "any", "/a"), "no routes");
    // A route without rules is attached all the same.
    assert_eq!(find(&table(vec![route("r", &[], &[], &[])]), 80, "any", "/"), "not found");
}

#[test]
fn hosts_go_from_exact_over_the_longest_wildcard_to_none() {
    let table = table(vec![
        route("any", &[], &[], &["/", "=/exact"]),
        route("com", &[], &["*.com"], &["/a"]),
        route("example", &[], &["*.example.com"], &["/a", "/b"]),
        route("exact", &[], &["www.example.com"], &["/a"]),
    ]);
    for (host, path, expected) in [
        ("www.example.com", "/a", "exact/a"),
        ("WWW.Example.COM:8080", "/a", "exact/a"),
        ("www.example.com.", "/a", "exact/a"),
        // What the most specific host has no rule for goes to the next.
        ("www.example.com", "/b", "example/b"),
        ("www.example.com", "/exact", "any=/exact"),
        ("x.example.com", "/a", "example/a"),
        ("x.y.example.com", "/a", "example/a"),
        ("example.com", "/a", "com/a"),
        ("example.com", "/b", "any/"),
        (".example.com", "/a", "com/a"),
        ("com", "/a", "any/"),
        ("orders", "/a", "any/"),
        ("", "/a", "any/"),
        ("[::1]:80", "/a", "any/"),
        (&"a".repeat(300), "/a", "any/"),
    ] {
        assert_eq!(find(&table, 80, host, path), expected, "{host} {path}");
    }
}

#[test]
fn of_equal_matches_the_older_route_and_the_earlier_rule_win() {
    let table = table(vec![
        route("old", &[], &[], &["/a"]),
        route("new", &[], &[], &["/a", "/b", "=/b"]),
        route("newest", &[], &[], &["/b", "=/b", ""]),
    ]);
    assert_eq!(find(&table, 80, "any", "/a"), "old/a");
    assert_eq!(find(&table, 80, "any", "/b"), "new=/b");
    assert_eq!(find(&table, 80, "any", "/b/"), "new/b");
    assert_eq!(find(&table, 80, "any", "/c"), "newest");
}

#[test]
fn routes_of_a_port_are_joined_by_those_of_every_port() {
    let table = table(vec![route("every", &[], &[], &["/a"]), route("named", &[80, 81], &[], &["/"])]);
    assert_eq!(find(&table, 80, "any", "/a"), "every/a");
    assert_eq!(find(&table, 81, "any", "/"), "named/");
    assert_eq!(find(&table, 82, "any", "/a"), "every/a");
    assert_eq!(find(&table, 82, "any", "/"), "not found");
}

#[test]
fn host_names_are_read_strictly() {
    for good in ["a", "a.b", "*.a", "*.a.b-c_d", "A.B", "a.b."] {
        assert!(good.parse::<Hostname>().is_ok(), "{good}");
    }
    assert_eq!("*.A.b.".parse::<Hostname>().unwrap().to_string(), "*.a.b");
    for bad in ["", "*", "*.", "*a", "a.*", "a..b", ".a", "a:80", "[::1]", "a b", "ä", &"a.".repeat(200)] {
        assert!(bad.parse::<Hostname>().is_err(), "{bad}");
    }
}

#[test]
fn a_requests_host_is_compared_without_port_case_and_final_dot() {
    for (authority, host) in [
        ("A.b:80", "a.b"),
        ("a.b:", "a.b"),
        ("a.b.", "a.b"),
        ("a.b.:80", "a.b"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        ("::1", "::1"),
        ("a:b", "a:b"),
        ("10.0.0.1:80", "10.0.0.1"),
        ("ä", "ä"),
    ] {
        assert_eq!(RequestHost::new(authority).unwrap().as_str(), host, "{authority}");
    }
    assert!(
        RequestHost::new("").is_none()
            && RequestHost::new(":80").is_none()
            && RequestHost::new(".").is_none()
    );
}

#[test]
fn backends_are_picked_by_weight() {
    let rule = rule("r", "", vec![], &[0, 3, 1, 0]).rule;
    let mut counts = [0; 4];
    const N: u64 = 40_000;
    for i in 0..N {
        let backend = pick(&rule.backends, i * (u64::MAX / N)).unwrap();
        counts[backend.service.name[1..].parse::<usize>().unwrap()] += 1;
    }
    assert_eq!((counts[0], counts[3]), (0, 0));
    assert!((29_990..=30_010).contains(&counts[1]), "{counts:?}");
    assert!(
        pick(&rule.backends, 0).is_some_and(|b| b.weight == 3)
            && pick(&rule.backends, u64::MAX).is_some_and(|b| b.weight == 1)
    );
}

#[test]
fn nothing_is_picked_without_weight() {
    for weights in [&[] as &[u32], &[0], &[0, 0]] {
        for random in [0, 1, u64::MAX] {
            assert!(pick(&rule("r", "", vec![], weights).rule.backends, random).is_none());
        }
    }
    assert!(pick(&rule("r", "", vec![], &[1_000_000; 4096]).rule.backends, u64::MAX).is_some());
}

#[test]
fn any_text_is_matched_without_harm() {
    let table = table(vec![route("r", &[], &["*.b.c", "a.b.c"], &["/a/b", "=/c", "/"])]);
    seeds(300, |_, mut rng: Rng| {
        for sample in ["a.b.c:80", "[::1]:80", "/a/b/c?d", "x.b.c.", "äöü.b.c"] {
            let mut bytes = sample.as_bytes().to_vec();
            rng.mutate(&mut bytes);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert_ne!(find(&table, 80, &text, "/a/b"), "no routes");
            assert_ne!(find(&table, 80, "a.b.c", &text), "no routes");
        }
    });
}

#[test]
fn a_path_of_thousands_of_slashes_is_no_work() {
    let table = table(vec![route("r", &[], &[], &["/", "/a/b/c/d/e/f"])]);
    let path = "/".repeat(64 * 1024);
    assert_eq!(find(&table, 80, "any", &path), "r/");
}
