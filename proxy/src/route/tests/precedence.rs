//! Who comes first, and against the letter of the specification, by seed.

use super::*;

#[test]
fn on_one_path_a_method_comes_first_then_most_headers_then_most_query_parameters() {
    let table = table(vec![
        route(
            "r",
            &[],
            &[],
            &["/a", "/a ?q=1 ?p=1", "/a x:1", "/a x:1 y:1", "/a x:1 ?q=1", "POST /a", "POST /a x:1"],
        ),
        route("s", &[], &[], &["=/a x:1 y:1", "/ x:9"]),
    ]);
    for (words, expected) in [
        ("/a", "r/a"),
        ("/a?q=1", "r/a"),
        ("/a?q=1&p=1", "r/a ?q=1 ?p=1"),
        ("/a?q=1&p=1 x:1", "r/a x:1 ?q=1"),
        ("/a?p=1 x:1", "r/a x:1"),
        ("/a/ x:1 y:1", "r/a x:1 y:1"),
        ("/a x:1 y:1", "s=/a x:1 y:1"),
        ("POST /a y:1", "rPOST /a"),
        ("POST /a x:1", "rPOST /a x:1"),
        ("POST /a x:1 y:1", "s=/a x:1 y:1"),
        // Case counts in methods and values, not in names.
        ("post /a", "r/a"),
        ("/a X:1", "r/a x:1"),
        ("/b x:9", "s/ x:9"),
        ("/b x:8", "not found"),
    ] {
        assert_eq!(ask(&table, words), expected, "{words}");
    }
}

#[test]
fn a_request_that_a_longer_path_does_not_take_goes_back_to_the_shorter() {
    let table = table(vec![route("r", &[], &[], &["/", "/a x:1", "/a/b/c/d x:2", "=/a/b x:3"])]);
    for (words, expected) in [
        ("/a/b/c/d/e x:2", "r/a/b/c/d x:2"),
        ("/a/b/c/d x:1", "r/a x:1"),
        ("/a/b x:3", "r=/a/b x:3"),
        ("/a/b", "r/"),
    ] {
        assert_eq!(ask(&table, words), expected, "{words}");
    }
    let hosts = super::table(vec![route("named", &[], &["a.b"], &["/ x:1"]), route("any", &[], &[], &["/"])]);
    assert_eq!(find(&hosts, 80, "a.b", "/"), "any/");
}

#[test]
fn patterns_come_between_exact_paths_and_prefixes() {
    let table = table(vec![route("r", &[], &[], &["/a/b", "=/a/b/1", "~/a/b/[0-9]+", "~/a/b/1.* x:1"])]);
    for (words, expected) in [
        ("/a/b/1", "r=/a/b/1"),
        ("/a/b/12", "r~/a/b/[0-9]+"),
        ("/a/b/12 x:1", "r~/a/b/1.* x:1"),
        ("/a/b/12/c", "r/a/b"),
        ("/a/b/12?c=1", "r~/a/b/[0-9]+"),
    ] {
        assert_eq!(ask(&table, words), expected, "{words}");
    }
}

/// `GRPCRoute`: more characters in the service, then in the method.
#[test]
fn a_grpc_method_of_any_service_comes_after_services_and_before_everything() {
    let table =
        table(vec![route("r", &[], &[], &["/", "*/Get x:1", "*/Get", "/shop.Orders", "=/shop.Orders/Put"])]);
    for (words, expected) in [
        ("/shop.Orders/Get", "r/shop.Orders"),
        ("/shop.Orders/Put", "r=/shop.Orders/Put"),
        ("/other/Get", "r*/Get"),
        ("/other/Get x:1", "r*/Get x:1"),
        ("/other/Put", "r/"),
    ] {
        assert_eq!(ask(&table, words), expected, "{words}");
    }
}

#[test]
fn lines_of_one_header_are_one_value() {
    let rules = ["/ x:a,b", "/ x:~a,.*c", "/ host:shop:80"];
    let table = table(vec![route("r", &[], &[], &rules)]);
    assert_eq!(ask(&table, "/ x:a x:b"), "r/ x:a,b");
    assert_eq!(ask(&table, "/ x:a,b"), "r/ x:a,b");
    assert_eq!(ask(&table, "/ x:a x:b x:c"), "r/ x:~a,.*c");
    assert_eq!(ask(&table, "/ x:a"), "not found");
    assert_eq!(told(table.find(80, &Request::new("shop:80", "/").asked())), "r/ host:shop:80");
    assert_eq!(told(table.find(80, &Request::new("shop:80", "/ host:b").asked())), "r/ host:shop:80");
    assert_eq!(told(table.find(80, &Request::new("b", "/ host:shop:80").asked())), "not found");
}

#[test]
fn query_parameters_are_read_as_applications_read_them() {
    let table = table(vec![route("r", &[], &[], &["/ ?a-b=x", "/ ?c=~.+:.+", "/ ?e="])]);
    for (query, expected) in [
        ("a-b=x", "r/ ?a-b=x"),
        ("a%2Db=%78", "r/ ?a-b=x"),
        ("z=1&a-b=x&a-b=y", "r/ ?a-b=x"),
        ("a-b=y&a-b=x", "not found"),
        ("A-B=x", "not found"),
        ("a-b=X", "not found"),
        ("a-b=x%", "not found"),
        ("c=1%3a2", "r/ ?c=~.+:.+"),
        ("c=+:%20", "r/ ?c=~.+:.+"),
        ("e", "r/ ?e="),
        ("e=", "r/ ?e="),
        ("e=1", "not found"),
        ("", "not found"),
        ("&&=&", "not found"),
    ] {
        assert_eq!(ask(&table, &format!("/?{query}")), expected, "{query}");
    }
}

#[test]
fn a_match_tells_how_much_of_the_path_its_prefix_takes() {
    let table = table(vec![route("r", &[], &[], &["/a/", "=/b", "~/c.*", ""])]);
    for (path, expected) in [("/a/x", 2), ("/a", 2), ("/b", 0), ("/c", 0), ("/d", 0)] {
        let Match::Rule(found) = table.find(80, &Request::new("any", path).asked()) else { panic!("{path}") };
        assert_eq!(found.prefix, expected, "{path}");
    }
}

#[test]
fn many_rules_that_one_value_tells_apart_are_found_by_it() {
    let header: Vec<_> = (0..1_000).map(|i| format!("/ tenant:{i}")).collect();
    let query: Vec<_> = (0..1_000).map(|i| format!("/q ?tenant={i} all:1")).collect();
    let plain = ["/", "/ tenant:7 x:1", "/ x:1 y:1", "/ tenant:~7.*", "/q"].map(String::from);
    let rules: Vec<_> = header.iter().chain(&query).chain(&plain).map(String::as_str).collect();
    let table = table(vec![route("r", &[], &[], &rules)]);
    for (words, expected) in [
        ("/ tenant:7", "r/ tenant:7"),
        ("/ tenant:7 x:1", "r/ tenant:7 x:1"),
        ("/ tenant:7 x:1 y:1", "r/ tenant:7 x:1"),
        ("/ tenant:8 x:1 y:1", "r/ x:1 y:1"),
        ("/ tenant:7777", "r/ tenant:~7.*"),
        ("/ tenant:x", "r/"),
        ("/ tenant:7 tenant:8", "r/ tenant:~7.*"),
        ("/q?tenant=7 all:1", "r/q ?tenant=7 all:1"),
        ("/q?tenant=7", "r/q"),
    ] {
        assert_eq!(ask(&table, words), expected, "{words}");
    }
}

#[test]
fn what_is_too_long_for_patterns_is_told_where_one_would_be_tried() {
    let table = table(vec![route("r", &[], &[], &["~/x/.+", "/ h:~a+", "/ ?q=~a+", "/"])]);
    let long = "a".repeat(tulle_api::PATTERN_INPUT);
    for (words, expected) in [
        (format!("/{long}"), "Path"),
        (format!("/{}", &long[1..]), "r/"),
        (format!("/ h:{long}"), "r/ h:~a+"),
        (format!("/ h:a h:{long}"), "Header(\"h\")"),
        (format!("/ other:{long}a"), "r/"),
        (format!("/?q={long}a"), "Query(\"q\")"),
        (format!("/?p={long}&q=a"), "r/ ?q=~a+"),
    ] {
        assert_eq!(ask(&table, &words), expected, "{} bytes: {}", words.len(), &words[..9]);
    }
}

#[test]
fn a_match_allocates_nothing() {
    let rules: Vec<_> = (0..100).map(|i| format!("/ tenant:{i} ?q=~[0-9]+")).collect();
    let rules: Vec<_> =
        rules.iter().map(String::as_str).chain(["~/x/.+ y:~a.*", "=/x/y ?a=b", "POST /"]).collect();
    let table = table(vec![route("r", &[], &["*.example.com"], &rules)]);
    let requests = ["/x/y?q=1 y:a y:b", "/ tenant:99?q=2 y:c", "POST /z?a=%41", "/none"];
    let requests = requests.map(|words| Request::new("www.example.com", words));
    let all = || requests.iter().filter(|one| matches!(table.find(80, &one.asked()), Match::Rule(_))).count();
    let first = all();
    let before = allocations();
    // A pattern makes room for its work when this thread first uses it.
    assert_eq!(all(), first);
    assert_eq!(allocations(), before);
}

/// Whether `path` has `prefix`, element by element.
fn has_prefix(path: &str, prefix: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    prefix.is_empty() || path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
}

/// How specific a path is that describes this one: its kind, then its length.
fn path_rank(path: &PathMatch, asked: &str) -> Option<(usize, usize)> {
    match path {
        PathMatch::Exact(exact) => (**exact == *asked).then_some((4, 0)),
        PathMatch::Pattern(pattern) => pattern.is_match(asked.as_bytes()).then_some((3, 0)),
        PathMatch::Prefix(prefix) if &**prefix == "/" => Some((0, 0)),
        PathMatch::Prefix(prefix) => has_prefix(asked, prefix).then_some((2, prefix.len())),
        PathMatch::Method(method) => method.is_match(asked.as_bytes()).then_some((1, method.as_str().len())),
    }
}

fn host_rank(route: &Route, host: &str) -> Option<(usize, usize)> {
    let of = |name: &Hostname| match name {
        Hostname::Exact(name) => (**name == *host).then_some((2, 0)),
        Hostname::Suffix(name) => {
            let labels = host.strip_suffix(&**name);
            labels.is_some_and(|labels| labels.len() > 1 && labels.ends_with('.')).then_some((1, name.len()))
        }
    };
    if route.hostnames.is_empty() { Some((0, 0)) } else { route.hostnames.iter().filter_map(of).max() }
}

/// Whether a value that is there, and is no pattern, is the one asked for.
fn is(value: &ValueMatch, found: Option<String>) -> bool {
    match value {
        ValueMatch::Exact(exact) => found.is_some_and(|found| found.as_bytes() == &**exact),
        ValueMatch::Pattern(pattern) => found.is_some_and(|found| pattern.is_match(found.as_bytes())),
    }
}

fn holds(when: &Conditions, asked: &Asked<'_>) -> bool {
    let header = |name: &HeaderName| {
        let values: Vec<_> =
            asked.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
        (!values.is_empty()).then(|| values.join(","))
    };
    let parameter = |name: &str| {
        let mut all = asked.query.split('&').filter_map(|one| one.split_once('='));
        all.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    };
    when.method.as_ref().is_none_or(|method| method == asked.method)
        && when.headers.iter().all(|one| is(&one.value, header(&one.name)))
        && when.query.iter().all(|one| is(&one.value, parameter(&one.name)))
}

/// Every match of every route, compared by Gateway API's criteria: slow and plain.
fn reference(routes: &[Route], port: u16, asked: &Asked<'_>) -> String {
    let host = asked.authority.to_ascii_lowercase();
    let mut attached = false;
    let mut all = Vec::new();
    for route in routes.iter().filter(|route| route.ports.is_empty() || route.ports.contains(&port)) {
        attached = true;
        let Some(host) = host_rank(route, &host) else { continue };
        for rule in &route.rules {
            let everything = [one("/")];
            let matches = if rule.matches.is_empty() { &everything[..] } else { &rule.matches };
            for one in matches {
                let when = one.when.as_deref().cloned().unwrap_or_default();
                if let Some(path) = path_rank(&one.path, asked.path).filter(|_| holds(&when, asked)) {
                    let rest = (when.method.is_some(), when.headers.len(), when.query.len());
                    all.push(((host, path, rest), format!("{}{}", rule.rule.route.name, rule.rule.name)));
                }
            }
        }
    }
    // Stable: of equals the first stays before the others.
    all.sort_by(|(a, _), (b, _)| b.cmp(a));
    match all.into_iter().next() {
        _ if !attached => "no routes".to_owned(),
        None => "not found".to_owned(),
        Some((_, name)) => name,
    }
}

#[test]
fn the_table_finds_what_the_specification_says() {
    const PATHS: &[&str] = &["/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c", "/ab", "/b", "/a//b", "//", "/b/a"];
    const PATTERNS: &[&str] = &["~/a.*", "~/a/[bc]", "~.*b", "~/", "*/b", "*/.*"];
    const HOSTNAMES: &[&str] = &["a.b.c", "b.c", "c", "*.c", "*.b.c", "*.a.b.c"];
    const HOSTS: &[&str] = &["a.b.c", "b.c", "c", "x.a.b.c", "X.c", "y.x.b.c", "z", ".c"];
    const RULES: &[&str] = &["GET", "POST", "x:1", "y:1", "y:~[12]", "?q=1", "?p=1", "?p=~[12]"];
    const REQUEST: &[&str] =
        &["POST", "x:1", "y:1", "y:2", "y:1 y:2", "?q=1", "?p=1", "?p=2&q=1", "?p=2&p=1"];
    fn some<'a>(rng: &mut Rng, below: usize, from: &[&'a str]) -> Vec<&'a str> {
        (0..rng.below(below)).map(|_| *rng.choose(from)).collect()
    }
    fn random_match(rng: &mut Rng, crowd: bool) -> RequestMatch {
        let path = match rng.below(if crowd { 1 } else { 4 }) {
            0 => format!("/a tenant:{}", rng.below(6)),
            1 => (*rng.choose(PATTERNS)).to_owned(),
            2 => format!("={}", rng.choose(PATHS)),
            _ => (*rng.choose(PATHS)).to_owned(),
        };
        one(&format!("{path} {}", some(rng, 3, RULES).join(" ")))
    }
    seeds(500, |seed, mut rng: Rng| {
        // At times so many on one path that they are found by a value.
        let crowd = seed % 5 == 0;
        let routes: Vec<Route> = (0..rng.below(5))
            .map(|i| {
                let name = format!("r{i}");
                let hostnames = if crowd { vec![] } else { some(&mut rng, 3, HOSTNAMES) };
                Route {
                    name: ObjectName::new("shop", &name),
                    ports: (0..rng.below(3)).map(|_| 80 + rng.below(2) as u16).collect(),
                    hostnames: hostnames.iter().map(|name| name.parse().unwrap()).collect(),
                    rules: (0..rng.below(if crowd { 20 } else { 4 }))
                        .map(|j| {
                            let matches = (0..rng.below(3)).map(|_| random_match(&mut rng, crowd)).collect();
                            rule(&name, &format!("-{j}"), matches, &[1])
                        })
                        .collect(),
                }
            })
            .collect();
        let table = table(routes.clone());
        for _ in 0..40 {
            let (port, host, path) = (80 + rng.below(3) as u16, *rng.choose(HOSTS), *rng.choose(PATHS));
            let (query, rest): (Vec<_>, Vec<_>) =
                some(&mut rng, 4, REQUEST).into_iter().partition(|word| word.starts_with('?'));
            let query = query.first().copied().unwrap_or("");
            let words = format!("{path}{query} tenant:{} {}", rng.below(8), rest.join(" "));
            let request = Request::new(host, &words);
            let found = told(table.find(port, &request.asked()));
            assert_eq!(
                found,
                reference(&routes, port, &request.asked()),
                "{port} {host} {words}\n{routes:#?}"
            );
        }
    });
}
