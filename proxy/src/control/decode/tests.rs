use std::time::SystemTime;

use tulle_certs::issue::Authority;

use super::*;
use crate::route::{Asked, Match, Table};
use crate::testing::seeds;

fn name(namespace: &str, name: &str) -> Option<v1::ObjectName> {
    Some(v1::ObjectName { namespace: namespace.to_owned(), name: name.to_owned() })
}

fn plaintext() -> Option<v1::Peer> {
    Some(v1::Peer { peer: Some(v1::peer::Peer::Plaintext(v1::Plaintext {})) })
}

fn endpoints() -> v1::Endpoints {
    let port = v1::EndpointPort { service_port: 80, port: 8080, peer: plaintext() };
    v1::Endpoints {
        name: name("shop", "orders"),
        endpoints: vec![v1::Endpoint {
            address: "10.0.0.1".to_owned(),
            ports: vec![port],
            ready: true,
            ..v1::Endpoint::default()
        }],
    }
}

fn routes() -> v1::Routes {
    let backend =
        v1::WeightedBackend { service: name("shop", "v1"), port: 80, weight: 1, ..Default::default() };
    let path = Some(v1::http_match::Path::Prefix("/a".to_owned()));
    v1::Routes {
        client_namespace: String::new(),
        service: name("shop", "orders"),
        streams: Vec::new(),
        http: vec![v1::HttpRoute {
            name: name("shop", "split"),
            rules: vec![v1::HttpRule {
                matches: vec![v1::HttpMatch { path, ..Default::default() }],
                backends: vec![backend],
                ..v1::HttpRule::default()
            }],
            ..v1::HttpRoute::default()
        }],
    }
}

fn header(name: &str, value: v1::value_match::Value) -> v1::ValueMatch {
    v1::ValueMatch { name: name.to_owned(), value: Some(value) }
}

fn exact(name: &str) -> v1::ValueMatch {
    header(name, v1::value_match::Value::Exact("x".to_owned()))
}

fn rejected<M: Name>(message: &M, name: &str) -> (String, String) {
    let rejection = decode(&M::type_url(), name, &message.encode_to_vec()).expect_err("is rejected");
    assert_eq!(rejection.resource, name);
    (rejection.field, rejection.reason)
}

#[test]
fn endpoints_are_decoded() {
    let bytes = endpoints().encode_to_vec();
    let decoded = decode(&v1::Endpoints::type_url(), "shop/orders", &bytes).unwrap();
    let Decoded::Endpoints(decoded) = decoded else { panic!("{decoded:?}") };
    assert_eq!(decoded.endpoints[0].addr, "10.0.0.1:8080".parse().unwrap());
    assert_eq!(decoded.endpoints[0].peer, Peer::Plaintext);
}

#[test]
fn a_missing_peer_is_never_taken_for_plaintext() {
    let mut message = endpoints();
    message.endpoints[0].ports[0].peer = None;
    assert_eq!(rejected(&message, "shop/orders").0, "endpoints[0].ports[0].peer");
}

#[test]
fn each_fault_is_named_by_its_path() {
    let mut message = endpoints();
    message.endpoints[0].ports[0].port = 70_000;
    assert_eq!(rejected(&message, "shop/orders").0, "endpoints[0].ports[0].port");
    let mut message = endpoints();
    message.endpoints[0].address = "orders".to_owned();
    assert_eq!(rejected(&message, "shop/orders").0, "endpoints[0].address");
    assert_eq!(rejected(&endpoints(), "shop/web").0, "name");
    let mut message = routes();
    message.http[0].rules[0].matches[0].path = Some(v1::http_match::Path::Exact("a".to_owned()));
    assert_eq!(invalid(&message), "http[0].rules[0].matches[0].exact");
    let mut message = routes();
    message.http[0].rules[0].backends[0].weight = 1_000_001;
    assert_eq!(invalid(&message), "http[0].rules[0].backends[0].weight");
    let mut message = routes();
    message.http[0].ports = vec![0];
    assert_eq!(rejected(&message, "web/shop/orders").0, "http[0].ports[0]");
    let message = v1::InboundPolicy { workload: name("shop", "web"), ..v1::InboundPolicy::default() };
    assert_eq!(rejected(&message, "shop/web"), ("mode".to_owned(), "is not set".to_owned()));
}

#[test]
fn matches_are_decoded_whole() {
    use crate::route::{PathMatch, RouteKind, ValueMatch};
    let mut message = routes();
    message.http[0].kind = 1;
    let one = &mut message.http[0].rules[0].matches[0];
    one.method = "POST".to_owned();
    one.headers = vec![exact("X-A"), header("b", v1::value_match::Value::Regex("b+".to_owned()))];
    one.query = vec![exact("q")];
    let any = v1::http_match::Path::Regex("/[^/]+/Get".to_owned());
    message.http[0].rules[0].matches.push(v1::HttpMatch { path: Some(any), ..Default::default() });
    let decoded = decode(&v1::Routes::type_url(), "web/shop/orders", &message.encode_to_vec()).unwrap();
    let Decoded::Routes(decoded) = decoded else { panic!("{decoded:?}") };
    let rule = &decoded.routes[0].rules[0];
    assert_eq!(rule.rule.kind, RouteKind::Grpc);
    let when = rule.matches[0].when.as_ref().unwrap();
    assert_eq!(when.method, Some(http::Method::POST));
    assert_eq!(when.headers[0].name, "x-a");
    assert!(matches!(&when.headers[1].value, ValueMatch::Pattern(pattern) if pattern.as_str() == "b+"));
    assert_eq!(&*when.query[0].name, "q");
    assert!(matches!(rule.matches[1].path, PathMatch::Method(_)));
    assert!(rule.matches[1].when.is_none());
}

/// What `web/shop/orders` is decoded to.
fn decoded(message: &v1::Routes) -> Routes {
    match decode(&v1::Routes::type_url(), "web/shop/orders", &message.encode_to_vec()) {
        Ok(Decoded::Routes(routes)) => routes,
        other => panic!("{other:?}"),
    }
}

/// The field for which the first rule is not carried out.
fn invalid(message: &v1::Routes) -> String {
    let decoded = decoded(message);
    let rejections = rejections("web/shop/orders", &decoded);
    assert_eq!(rejections.len(), 1, "{rejections:?}");
    let rule = &decoded.routes[0].rules[0].rule;
    assert!(rule.invalid.is_some() && rule.backends.is_empty() && rule.filters.is_none(), "{rule:?}");
    rejections[0].field.clone()
}

#[test]
fn routes_for_connections_are_decoded_and_rejected_by_field() {
    let backend =
        v1::WeightedBackend { service: name("shop", "orders"), port: 8080, weight: 2, ..Default::default() };
    let stream = v1::StreamRoute {
        name: name("shop", "db"),
        ports: vec![5432],
        server_names: vec!["*.Example.com".to_owned()],
        backends: vec![backend],
    };
    let with = |stream: &v1::StreamRoute| v1::Routes { streams: vec![stream.clone()], ..routes() };
    let decoded = decoded(&with(&stream));
    let [route] = &decoded.streams[..] else { panic!("{decoded:?}") };
    assert_eq!((&*route.label, &route.ports[..], route.server_names.len()), ("shop/db", &[5432][..], 1));
    assert_eq!((&*route.backends[0].label, route.backends[0].weight), ("shop/orders:8080", 2));
    type Spoil = fn(&mut v1::StreamRoute);
    let faults: &[(&str, Spoil)] = &[
        ("name", |stream| stream.name = None),
        ("ports[0]", |stream| stream.ports[0] = 65_536),
        ("server_names[0]", |stream| stream.server_names[0] = "a b".to_owned()),
        ("backends[0].port", |stream| stream.backends[0].port = 0),
        ("backends[0].weight", |stream| stream.backends[0].weight = 1_000_001),
    ];
    for (field, spoil) in faults {
        let mut stream = stream.clone();
        spoil(&mut stream);
        assert_eq!(rejected(&with(&stream), "web/shop/orders").0, format!("streams[0].{field}"));
    }
}

#[test]
fn a_rule_is_refused_rather_than_half_understood() {
    type Spoil = fn(&mut v1::HttpRoute);
    fn one(route: &mut v1::HttpRoute) -> &mut v1::HttpMatch {
        &mut route.rules[0].matches[0]
    }
    let faults: &[(&str, Spoil)] = &[
        ("kind", |route| route.kind = 9),
        ("rules[0].matches[0].path", |route| one(route).path = None),
        ("rules[0].matches[0].prefix", |route| {
            one(route).path = Some(v1::http_match::Path::Prefix("a".to_owned()))
        }),
        ("rules[0].matches[0].regex", |route| {
            one(route).path = Some(v1::http_match::Path::Regex("(".to_owned()))
        }),
        ("rules[0].matches[0].method", |route| one(route).method = "A B".to_owned()),
        ("rules[0].matches[0].headers[0].name", |route| one(route).headers = vec![exact("a b")]),
        ("rules[0].matches[0].headers[1].name", |route| one(route).headers = vec![exact("a"), exact("A")]),
        ("rules[0].matches[0].headers[0].value", |route| {
            one(route).headers = vec![v1::ValueMatch { name: "a".to_owned(), value: None }];
        }),
        ("rules[0].matches[0].headers[0].regex", |route| {
            one(route).headers = vec![header("a", v1::value_match::Value::Regex("[".to_owned()))];
        }),
        ("rules[0].matches[0].query[0].name", |route| one(route).query = vec![exact("")]),
        ("rules[0].matches[0].query[1].name", |route| one(route).query = vec![exact("a"), exact("a")]),
        ("rules[0].requests.retry.codes[1]", |route| {
            let retry = Some(v1::Retry { codes: vec![503, 600], ..Default::default() });
            route.rules[0].requests = Some(v1::RequestPolicy { retry, ..Default::default() });
        }),
        ("rules[0].requests.retry.backoff", |route| {
            let backoff = Some(prost_types::Duration { seconds: -1, nanos: 0 });
            let retry = Some(v1::Retry { backoff, ..Default::default() });
            route.rules[0].requests = Some(v1::RequestPolicy { retry, ..Default::default() });
        }),
    ];
    for (field, spoil) in faults {
        let mut message = routes();
        spoil(&mut message.http[0]);
        assert_eq!(invalid(&message), format!("http[0].{field}"));
    }
}

/// What the routes do with a request, with a route of one backend, `else`, for whatever is left.
fn done(message: &v1::Routes, method: &str, path: &str, fields: &[(&str, &str)]) -> String {
    let mut message = message.clone();
    let mut other = routes().http.remove(0);
    other.name = name("shop", "else");
    other.rules[0].matches.clear();
    message.http.push(other);
    let table = Table::new(decoded(&message));
    let fields = fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    let method = method.parse().unwrap();
    let asked = Asked { method: &method, authority: "orders", path, query: "", headers: &fields };
    match table.find(80, &asked) {
        Match::Rule(found) if found.rule.invalid.is_some() => "refused".to_owned(),
        Match::Rule(found) => found.rule.route.name.to_string(),
        other => format!("{other:?}"),
    }
}

#[test]
fn what_an_unread_rule_may_be_for_goes_nowhere_else_and_the_rest_holds() {
    let mut message = routes();
    let one = &mut message.http[0].rules[0].matches[0];
    one.headers = vec![header("a", v1::value_match::Value::Regex("(".to_owned())), exact("b")];
    for (path, fields, expected) in [
        ("/a", &[("b", "x")][..], "refused"),
        ("/a", &[("b", "x"), ("a", "1")], "refused"),
        ("/a", &[("b", "y")], "else"),
        ("/b", &[("b", "x")], "else"),
    ] {
        assert_eq!(done(&message, "GET", path, fields), expected, "{path} {fields:?}");
    }
    message.http[0].rules[0].matches[0] = v1::HttpMatch { method: "POST".to_owned(), ..Default::default() };
    for (method, path, expected) in
        [("POST", "/a", "refused"), ("POST", "", "refused"), ("GET", "/a", "else")]
    {
        assert_eq!(done(&message, method, path, &[]), expected, "{method} {path}");
    }
}

#[test]
fn what_the_control_plane_cannot_serve_is_no_fault_of_decoding() {
    let mut message = routes();
    message.http[0].rules[0].invalid = "spec.rules[0]: why".to_owned();
    let decoded = decoded(&message);
    assert_eq!(rejections("web/shop/orders", &decoded), []);
    let invalid = decoded.routes[0].rules[0].rule.invalid.as_ref();
    assert_eq!(invalid.map(ToString::to_string).as_deref(), Some("spec.rules[0]: why"));
    assert_eq!(done(&message, "GET", "/a", &[]), "refused");
}

#[test]
fn there_are_only_so_many_patterns() {
    let mut message = routes();
    let regex = |i| Some(v1::http_match::Path::Regex(format!("/a{}", i % (tulle_api::PATTERNS + 1))));
    let all =
        (0..2 * tulle_api::PATTERNS + 2).map(|i| v1::HttpMatch { path: regex(i), ..Default::default() });
    message.http[0].rules =
        all.map(|one| v1::HttpRule { matches: vec![one], ..Default::default() }).collect();
    let fields: Vec<_> =
        rejections("web/shop/orders", &decoded(&message)).into_iter().map(|it| it.field).collect();
    let last = tulle_api::PATTERNS;
    let at = [last, 2 * last + 1].map(|i| format!("http[0].rules[{i}].matches[0].regex"));
    assert_eq!(fields, at);
}

fn filter(filter: v1::http_filter::Filter) -> v1::HttpFilter {
    v1::HttpFilter { filter: Some(filter) }
}

fn sets(name: &str) -> v1::HttpFilter {
    let header = v1::Header { name: name.to_owned(), value: "v".to_owned() };
    let modifier = v1::HeaderModifier { set: vec![header], ..Default::default() };
    filter(v1::http_filter::Filter::RequestHeaders(modifier))
}

fn rewrites(path: v1::path_modifier::Modifier) -> v1::HttpFilter {
    let path = Some(v1::PathModifier { modifier: Some(path) });
    filter(v1::http_filter::Filter::Rewrite(v1::Rewrite { path, ..Default::default() }))
}

fn redirects(status: u32) -> v1::HttpFilter {
    filter(v1::http_filter::Filter::Redirect(v1::Redirect { status, ..Default::default() }))
}

#[test]
fn no_filter_changes_what_frames_a_message_or_is_ours() {
    let mut message = routes();
    let names = [
        "X-Mine",
        "Expect",
        "Content-Length",
        "transfer-encoding",
        "Connection",
        "Host",
        "x-tulle-error",
        "TE",
    ];
    let mut all = v1::HeaderModifier::default();
    for name in names {
        all.set.push(v1::Header { name: name.to_owned(), value: "v".to_owned() });
        all.remove.push(name.to_owned());
    }
    all.add = all.set.clone();
    message.http[0].rules[0].filters = vec![filter(v1::http_filter::Filter::ResponseHeaders(all))];
    let decoded = decode(&v1::Routes::type_url(), "web/shop/orders", &message.encode_to_vec()).unwrap();
    let Decoded::Routes(decoded) = decoded else { panic!("{decoded:?}") };
    let modifier = &decoded.routes[0].rules[0].rule.filters.as_ref().unwrap().response;
    let left = modifier.set.iter().chain(&modifier.add).map(|(name, _)| name).chain(&modifier.remove);
    assert_eq!(left.collect::<Vec<_>>(), ["x-mine"; 3]);
}

#[test]
fn a_filter_is_refused_rather_than_half_understood() {
    use v1::path_modifier::Modifier;
    type Spoil = fn(&mut v1::HttpRule);
    let faults: &[(&str, Spoil)] = &[
        ("filters[0]", |rule| rule.filters = vec![v1::HttpFilter { filter: None }]),
        ("filters[1]", |rule| rule.filters = vec![sets("a"), sets("b")]),
        ("filters[0].request_headers.set[0].name", |rule| rule.filters = vec![sets("a b")]),
        ("filters[0].redirect", |rule| rule.filters = vec![redirects(302)]),
        ("filters[0].redirect.status", |rule| {
            rule.backends.clear();
            rule.filters = vec![redirects(300)];
        }),
        ("filters", |rule| {
            rule.backends.clear();
            rule.filters = vec![redirects(302), rewrites(Modifier::Full("/".to_owned()))];
        }),
        ("filters[0].rewrite.path.full", |rule| {
            rule.filters = vec![rewrites(Modifier::Full("/a?b".to_owned()))]
        }),
        ("filters[0].rewrite.path.full", |rule| rule.filters = vec![rewrites(Modifier::Full(String::new()))]),
        ("filters[0].rewrite.path.prefix", |rule| {
            rule.filters = vec![rewrites(Modifier::Prefix("a".to_owned()))]
        }),
        ("filters[0].rewrite.path.prefix", |rule| {
            rule.matches[0].path = Some(v1::http_match::Path::Exact("/a".to_owned()));
            rule.filters = vec![rewrites(Modifier::Prefix("/b".to_owned()))];
        }),
        ("backends[0].filters[0].rewrite", |rule| {
            rule.backends[0].filters = vec![rewrites(Modifier::Full("/b".to_owned()))];
        }),
    ];
    for (field, spoil) in faults {
        let mut message = routes();
        spoil(&mut message.http[0].rules[0]);
        assert_eq!(invalid(&message), format!("http[0].rules[0].{field}"));
    }
}

#[test]
fn routes_of_all_clients_and_of_one_are_decoded_and_anothers_are_not() {
    let url = v1::Routes::type_url();
    assert!(decode(&url, "web/shop/orders", &routes().encode_to_vec()).is_ok());
    let mut message = routes();
    message.client_namespace = "web".to_owned();
    assert!(decode(&url, "web/shop/orders", &message.encode_to_vec()).is_ok());
    assert_eq!(rejected(&message, "other/shop/orders").0, "client_namespace");
}

/// A sound resource of each type, with its name and its type URL.
fn samples() -> Vec<(String, &'static str, Vec<u8>)> {
    fn sample<M: Name>(name: &'static str, message: &M) -> (String, &'static str, Vec<u8>) {
        (M::type_url(), name, message.encode_to_vec())
    }
    let id = || "spiffe://cluster.local/ns/shop/sa/web".to_owned();
    let peer = Some(v1::Peer { peer: Some(v1::peer::Peer::SpiffeId(id())) });
    let host = v1::Host {
        ports: vec![v1::HostPort {
            port: 80,
            workload: "shop/web".to_owned(),
            protocol: 1,
            peer: peer.clone(),
        }],
        other: Some(v1::OtherPorts {
            workload: "shop/web".to_owned(),
            peer,
            opaque: vec![v1::PortRange { first: 3306, last: 3306 }],
            skipped: vec![v1::PortRange { first: 15_000, last: 15_090 }],
        }),
    };
    let locality = Some(v1::Locality { region: "r".to_owned(), zone: "z".to_owned() });
    let day = Duration::from_secs(86_400);
    let ca = Authority::generate(&TrustDomain::default(), day, SystemTime::now()).unwrap();
    vec![
        sample(
            "10.0.0.1",
            &v1::Address { ip: "10.0.0.1".to_owned(), target: Some(v1::address::Target::Host(host)) },
        ),
        sample(
            "fd00::1",
            &v1::Address {
                ip: "fd00::1".to_owned(),
                target: name("shop", "orders").map(v1::address::Target::Service),
            },
        ),
        sample(
            "shop/orders",
            &v1::Service {
                name: name("shop", "orders"),
                addresses: vec!["10.1.0.1".to_owned()],
                ports: vec![v1::ServicePort {
                    port: 80,
                    name: "http".to_owned(),
                    protocol: 1,
                    traffic: None,
                }],
            },
        ),
        sample("shop/orders", &endpoints()),
        sample("web/shop/orders", &routes()),
        sample(
            "shop/web",
            &v1::Workload {
                name: name("shop", "web"),
                spiffe_id: id(),
                addresses: vec!["10.0.0.1".to_owned()],
                locality,
            },
        ),
        sample("shop/web", &policy()),
        sample("shop/web", &egress()),
        sample(
            "mesh",
            &v1::Mesh {
                trust_domain: "cluster.local".to_owned(),
                mtls: 2,
                networks: vec!["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()],
                session_key: vec![7; 32].into(),
                tracing: Some(tracing()),
                access_log: Some(v1::AccessLog { format: "ecs".to_owned(), ..Default::default() }),
            },
        ),
        sample(
            "cluster.local",
            &v1::TrustBundle {
                trust_domain: "cluster.local".to_owned(),
                x509_authorities: vec![ca.root().to_vec().into()],
            },
        ),
    ]
}

fn egress() -> v1::EgressPolicy {
    let rule = v1::EgressRule {
        name: "shop/p/r".to_owned(),
        action: 1,
        networks: vec!["10.0.0.0/8".to_owned()],
        ports: vec![443],
        sni: vec!["*.example.com".to_owned()],
        hosts: Vec::new(),
    };
    v1::EgressPolicy { action: 3, action_name: "shop/p".to_owned(), rules: vec![rule], registered: true }
}

fn policy() -> v1::InboundPolicy {
    let identities = vec!["spiffe://cluster.local/ns/shop/sa/web".to_owned()];
    v1::InboundPolicy {
        workload: name("shop", "web"),
        mode: 2,
        ports: vec![v1::InboundPort { port: 80, protocol: 1, mode: 1, ..Default::default() }],
        rules: vec![v1::AllowRule { name: "shop/p/r".to_owned(), ports: vec![80], identities }],
        ..Default::default()
    }
}

#[test]
fn a_sound_resource_of_each_type_is_decoded() {
    for (url, name, bytes) in samples() {
        assert!(decode(&url, name, &bytes).is_ok(), "{url} {name}: {:?}", decode(&url, name, &bytes));
        // Under another name, none is.
        let rejection = decode(&url, "other", &bytes).unwrap_err();
        assert_eq!(rejection.resource, "other");
    }
    let rejection = decode("type.googleapis.com/tulle.v1.Unheard", "a", &[]).unwrap_err();
    assert!(rejection.reason.contains("tulle.v1.Unheard"), "{}", rejection.reason);
}

#[test]
fn an_empty_message_of_any_type_is_rejected() {
    for (url, name, _) in samples() {
        assert!(!decode(&url, name, &[]).unwrap_err().reason.is_empty());
    }
}

#[test]
fn a_policy_is_rejected_rather_than_half_understood() {
    type Spoil = fn(&mut v1::InboundPolicy);
    let faults: &[(&str, Spoil)] = &[
        ("workload", |policy| policy.workload = name("shop", "orders")),
        ("workload", |policy| policy.workload = None),
        ("mode", |policy| policy.mode = 9),
        ("ports[0].mode", |policy| policy.ports[0].mode = 0),
        ("default_networks[0]", |policy| policy.default_networks = vec!["10.0.0.0/33".to_owned()]),
        ("ports[0].protocol", |policy| policy.ports[0].protocol = 99),
        ("ports[1].port", |policy| policy.ports.push(policy.ports[0].clone())),
        ("access_log.format", |policy| {
            policy.access_log = Some(v1::AccessLog { format: "xml".to_owned(), ..Default::default() });
        }),
        ("sampling.millionths", |policy| {
            policy.sampling = Some(v1::Sampling { millionths: Some(1_000_001), ignores_parent: None });
        }),
        ("ports[0].sampling.millionths", |policy| {
            policy.ports[0].sampling =
                Some(v1::Sampling { millionths: Some(1_000_001), ignores_parent: None });
        }),
        ("rules[0].name", |policy| policy.rules[0].name.clear()),
        ("rules[0].ports[0]", |policy| policy.rules[0].ports[0] = 0),
        ("rules[0].identities[1]", |policy| policy.rules[0].identities.push("spiffe://a/b".to_owned())),
    ];
    for (field, spoil) in faults {
        let mut policy = policy();
        spoil(&mut policy);
        assert_eq!(rejected(&policy, "shop/web").0, *field);
    }
}

fn tracing() -> v1::Tracing {
    let sampling = v1::Sampling { millionths: Some(50_000), ignores_parent: None };
    v1::Tracing {
        collector: "http://collector:4317".to_owned(),
        protocol: 0,
        sampling: Some(sampling),
        connections: true,
    }
}

#[test]
fn what_the_mesh_says_of_tracing_is_what_variables_could_say() {
    let mesh = |tracing| v1::Mesh {
        trust_domain: "cluster.local".to_owned(),
        mtls: 2,
        tracing,
        ..v1::Mesh::default()
    };
    let of = |tracing| match decode(&v1::Mesh::type_url(), "mesh", &mesh(Some(tracing)).encode_to_vec()) {
        Ok(Decoded::Mesh(mesh)) => mesh.tracing.unwrap(),
        other => panic!("{other:?}"),
    };
    let read = of(tracing());
    assert_eq!(read.connections, Some(true));
    assert_eq!(read.sampling(), trace::Sampler { parent_based: true, ratio: 0.05 });
    assert_eq!(read.collector(None, "").unwrap().protocol, trace::Protocol::Grpc);
    let other = v1::Sampling { millionths: Some(1_000_000), ignores_parent: Some(true) };
    let other = of(v1::Tracing { protocol: 2, sampling: Some(other), ..tracing() });
    assert_eq!(other.sampling(), trace::Sampler { parent_based: false, ratio: 1.0 });
    let collector = other.collector(None, "").unwrap();
    assert_eq!(collector.endpoint, "http://collector:4317/v1/traces");
    let plain = of(v1::Tracing { sampling: None, ..tracing() });
    assert_eq!(plain.sampling(), trace::Sampler::DEFAULT);
    let faults = [
        ("tracing.collector", v1::Tracing { collector: "collector:4317".to_owned(), ..tracing() }),
        ("tracing.protocol", v1::Tracing { protocol: 9, ..tracing() }),
    ];
    for (field, tracing) in faults {
        assert_eq!(rejected(&mesh(Some(tracing)), "mesh").0, field);
    }
}

#[test]
fn r18_an_egress_policy_is_rejected_rather_than_half_understood() {
    type Spoil = fn(&mut v1::EgressPolicy);
    let faults: &[(&str, Spoil)] = &[
        ("action", |policy| policy.action = 0),
        ("action", |policy| policy.action = 9),
        ("action_name", |policy| policy.action_name.clear()),
        ("rules[0].name", |policy| policy.rules[0].name.clear()),
        ("rules[0].action", |policy| policy.rules[0].action = 0),
        ("rules[0].networks[0]", |policy| policy.rules[0].networks[0] = "10.0.0.0/33".to_owned()),
        ("rules[0].ports[0]", |policy| policy.rules[0].ports[0] = 65_536),
        ("rules[0].sni[0]", |policy| policy.rules[0].sni[0] = "*".to_owned()),
        ("rules[0].hosts[0]", |policy| policy.rules[0].hosts = vec!["a:80".to_owned()]),
        ("rules[0].hosts", |policy| policy.rules[0].hosts = vec!["a.example".to_owned()]),
    ];
    for (field, spoil) in faults {
        let mut policy = egress();
        spoil(&mut policy);
        assert_eq!(rejected(&policy, "shop/web").0, *field);
    }
    assert_eq!(rejected(&egress(), "web").0, "", "no workload's name");
}

#[test]
fn addresses_are_canonical_and_can_be_dialled() {
    let service = || name("shop", "orders").map(v1::address::Target::Service);
    let spelled = v1::Address { ip: "fd00:0::1".to_owned(), target: service() };
    assert_eq!(rejected(&spelled, "fd00:0::1").0, "ip");
    for address in ["0.0.0.0", "::", "224.0.0.1", ""] {
        let mut message = endpoints();
        message.endpoints[0].address = address.to_owned();
        assert_eq!(rejected(&message, "shop/orders").0, "endpoints[0].address");
    }
}

#[test]
fn no_bytes_make_it_panic() {
    let samples = samples();
    seeds(400, |_, mut rng| {
        for (url, name, bytes) in &samples {
            let mut bytes = bytes.clone();
            for _ in 0..10 {
                rng.mutate(&mut bytes);
                if let Err(rejection) = decode(url, name, &bytes) {
                    assert!(!rejection.reason.is_empty());
                    assert_eq!(rejection.resource, *name);
                }
            }
            // One type's bytes as another's.
            let (other, ..) = rng.choose(&samples);
            let _ = decode(other, name, &bytes);
        }
    });
}
