use std::collections::BTreeMap;
use std::net::IpAddr;

use prost::{Message, Name};

use super::*;
use crate::finding::Finding;
use crate::index::Registration;
use crate::object::{Kind, Object, ObjectKey};
use crate::source::read_text;

fn index(text: &str) -> (Index, Vec<Finding>) {
    let read = read_text(text);
    let mut index = Index::default();
    index.change(read.changes);
    index.take_dirty();
    let mut found = findings(&index, &Settings::default());
    found.extend(read.findings);
    found.sort();
    (index, found)
}

fn model(text: &str) -> Model {
    Model::build(&index(text).0, Settings::default())
}

fn get<M: Message + Name + Default>(model: &Model, name: &str) -> Option<M> {
    let resource_type = ResourceType::from_type_url(&M::type_url()).unwrap();
    let encoded = model.get(resource_type, name)?;
    assert_eq!(encoded.resource_type, resource_type);
    Some(M::decode(encoded.bytes.clone()).unwrap())
}

fn routes(model: &Model, name: &str) -> v1::Routes {
    get(model, name).unwrap()
}

fn name(text: &str) -> NamespacedName {
    NamespacedName::parse(text).unwrap()
}

/// A registration of `default/<workload>` at `address`: (service, service port, port).
fn registration(workload: &str, address: &str, ports: &[(&str, u32, u32)]) -> Registration {
    let services = ports.iter().map(|(service, service_port, port)| v1::RegisteredService {
        name: (*service).to_owned(),
        ports: vec![v1::RegisteredPort { service_port: *service_port, port: *port }],
    });
    let said = v1::Registration {
        address: address.to_owned(),
        services: services.collect(),
        locality: None,
        ready: true,
    };
    let id = format!("spiffe://cluster.local/ns/default/sa/{workload}");
    Registration::read(NamespacedName::new("default", workload), id, &said).unwrap()
}

fn spiffe(id: &str) -> Option<v1::Peer> {
    Some(v1::Peer { peer: Some(v1::peer::Peer::SpiffeId(id.to_owned())) })
}

fn plaintext() -> Option<v1::Peer> {
    Some(v1::Peer { peer: Some(v1::peer::Peer::Plaintext(v1::Plaintext {})) })
}

const ORDERS: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders}
spec:
  clusterIPs: [10.96.0.7, 'fd00::7']
  ports:
  - {name: http, port: 80}
  - {name: admin, port: 81, appProtocol: http}
";

fn slice(annotation: &str) -> String {
    format!(
        "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: orders-1
  labels: {{kubernetes.io/service-name: orders}}
  annotations: {{{annotation}}}
addressType: IPv6
ports: [{{name: http, port: 8080}}]
endpoints:
- addresses: ['2001:DB8:0::1']
  zone: a
  targetRef: {{kind: Pod, name: orders-x}}
- addresses: ['2001:db8::2']
  conditions: {{ready: false}}
- addresses: ['2001:db8::3']
  conditions: {{ready: false, serving: true, terminating: true}}
- addresses: ['2001:db8::4']
  conditions: {{ready: false, serving: false, terminating: true}}
"
    )
}

#[test]
fn an_empty_folder_has_a_mesh_and_a_policy_for_whoever_comes() {
    let model = model("");
    let mesh: v1::Mesh = get(&model, "mesh").unwrap();
    assert_eq!(mesh.trust_domain, "cluster.local");
    assert_eq!(mesh.mtls(), v1::MtlsMode::Permissive);
    assert_eq!(get::<v1::Mesh>(&model, "other"), None);
    let policy: v1::InboundPolicy = get(&model, "default/new").unwrap();
    assert_eq!(policy.mode(), v1::MtlsMode::Permissive);
    assert_eq!((policy.ports.len(), policy.rules.len()), (0, 0));
    for unnamed in ["", "new", "a/b/c", "default/", "/x", "Default/x"] {
        assert_eq!(get::<v1::InboundPolicy>(&model, unnamed), None, "{unnamed:?}");
    }
    assert_eq!(get::<v1::Workload>(&model, "default/new"), None);
    assert_eq!(get::<v1::Routes>(&model, "default/default/new"), None);
}

#[test]
fn a_slice_is_in_the_mesh_only_if_annotated() {
    let cases = [
        ("", plaintext()),
        ("tulle.dev/identity: shop/orders", spiffe("spiffe://cluster.local/ns/shop/sa/orders")),
        ("tulle.dev/identity: 'spiffe://example.org/x'", spiffe("spiffe://example.org/x")),
    ];
    for (annotation, peer) in cases {
        let model = model(&format!("{ORDERS}{}", slice(annotation)));
        let endpoints: v1::Endpoints = get(&model, "default/orders").unwrap();
        let seen: Vec<_> = endpoints.endpoints.iter().map(|one| (one.address.as_str(), one.ready)).collect();
        assert_eq!(seen, [("2001:db8::1", true), ("2001:db8::2", false), ("2001:db8::3", false)]);
        let first = &endpoints.endpoints[0];
        assert_eq!(first.workload, "default/orders-x");
        assert_eq!(first.locality.as_ref().unwrap().zone, "a");
        let port = v1::EndpointPort { service_port: 80, port: 8080, peer: peer.clone() };
        assert_eq!(first.ports, [port]);
        // Dialled directly, by its canonical name: the same peer, and who is behind it; also while it goes away.
        for address in ["2001:db8::1", "2001:db8::4"] {
            let address: v1::Address = get(&model, address).unwrap();
            let Some(v1::address::Target::Host(host)) = address.target else {
                panic!("not a host: {address:?}");
            };
            assert_eq!((host.ports[0].port, &host.ports[0].peer), (8080, &peer));
        }
    }
}

#[test]
fn an_identity_that_cannot_be_read_never_becomes_plaintext() {
    let (index, found) = index(&format!("{ORDERS}{}", slice("tulle.dev/identity: orders")));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].field.as_deref(), Some("metadata.annotations[\"tulle.dev/identity\"]"));
    let model = Model::build(&index, Settings::default());
    let endpoints: v1::Endpoints = get(&model, "default/orders").unwrap();
    assert_eq!(endpoints.endpoints, []);
}

#[test]
fn a_virtual_ip_leads_to_its_service() {
    let model = model(ORDERS);
    for ip in ["10.96.0.7", "fd00::7"] {
        let address: v1::Address = get(&model, ip).unwrap();
        let service = v1::ObjectName { namespace: "default".to_owned(), name: "orders".to_owned() };
        assert_eq!(address.target, Some(v1::address::Target::Service(service)));
    }
    assert_eq!(get::<v1::Address>(&model, "10.96.0.8"), None);
}

#[test]
fn a_registered_workload_is_an_endpoint_and_knows_its_ports() {
    let (mut index, _) = index(ORDERS);
    index.register(registration("orders-1", "127.0.0.1", &[("orders", 80, 40001), ("later", 9, 40002)]));
    let model = Model::build(&index, Settings::default());
    let id = "spiffe://cluster.local/ns/default/sa/orders-1";
    let endpoints: v1::Endpoints = get(&model, "default/orders").unwrap();
    assert_eq!(endpoints.endpoints.len(), 1);
    let endpoint = &endpoints.endpoints[0];
    assert_eq!((endpoint.address.as_str(), endpoint.workload.as_str()), ("127.0.0.1", "default/orders-1"));
    assert_eq!(endpoint.ports, [v1::EndpointPort { service_port: 80, port: 40001, peer: spiffe(id) }]);
    let workload: v1::Workload = get(&model, "default/orders-1").unwrap();
    assert_eq!(workload.spiffe_id, id);
    let policy: v1::InboundPolicy = get(&model, "default/orders-1").unwrap();
    let ports: Vec<_> = policy.ports.iter().map(|port| (port.port, port.protocol())).collect();
    assert_eq!(ports, [(40001, v1::Protocol::Http), (40002, v1::Protocol::Unspecified)]);
    assert!(policy.ports.iter().all(|port| port.mode() == v1::MtlsMode::Permissive));

    // Two replicas on one address are two endpoints.
    index.register(registration("orders-2", "127.0.0.1", &[("orders", 80, 40003)]));
    let model = Model::build(&index, Settings::default());
    let endpoints: v1::Endpoints = get(&model, "default/orders").unwrap();
    assert_eq!(endpoints.endpoints.len(), 2);
    let address: v1::Address = get(&model, "127.0.0.1").unwrap();
    let Some(v1::address::Target::Host(host)) = address.target else {
        panic!("not a host");
    };
    let hosts: Vec<_> = host.ports.iter().map(|port| (port.port, port.workload.as_str())).collect();
    let first = "default/orders-1";
    assert_eq!(hosts, [(40001, first), (40002, first), (40003, "default/orders-2")]);
}

#[test]
fn a_registration_is_believed_over_a_slice() {
    let (mut index, _) = index(&format!("{ORDERS}{}", slice("")));
    index.register(registration("orders-1", "2001:db8::1", &[("orders", 80, 8080)]));
    let model = Model::build(&index, Settings::default());
    let endpoints: v1::Endpoints = get(&model, "default/orders").unwrap();
    assert_eq!(endpoints.endpoints.len(), 3);
    assert_eq!(endpoints.endpoints[0].workload, "default/orders-1");
    let address: v1::Address = get(&model, "2001:db8::1").unwrap();
    let Some(v1::address::Target::Host(host)) = address.target else {
        panic!("not a host");
    };
    assert_eq!(host.ports[0].peer, spiffe("spiffe://cluster.local/ns/default/sa/orders-1"));
}

const MESH: &str = "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: Mesh\nmetadata: {name: mesh}\n";

#[test]
fn the_mesh_sets_mode_trust_domain_and_networks() {
    let text = format!(
        "{ORDERS}{}{MESH}spec: {{mtls: strict, trustDomain: example.org, networks: ['fd00::/8', 10.0.0.0/8]}}\n",
        slice("tulle.dev/identity: shop/orders")
    );
    let model = model(&text);
    let mesh: v1::Mesh = get(&model, "mesh").unwrap();
    assert_eq!((mesh.mtls(), mesh.trust_domain.as_str()), (v1::MtlsMode::Strict, "example.org"));
    assert_eq!(mesh.networks, ["10.0.0.0/8", "fd00::/8"]);
    let endpoints: v1::Endpoints = get(&model, "default/orders").unwrap();
    assert_eq!(endpoints.endpoints[0].ports[0].peer, spiffe("spiffe://example.org/ns/shop/sa/orders"));
    let policy: v1::InboundPolicy = get(&model, "default/new").unwrap();
    assert_eq!(policy.mode(), v1::MtlsMode::Strict);
}

#[test]
fn without_mtls_every_peer_is_plaintext() {
    let (mut index, _) = index(&format!("{ORDERS}{MESH}spec: {{mtls: 'off'}}\n"));
    index.register(registration("orders-1", "127.0.0.1", &[("orders", 80, 40001)]));
    let model = Model::build(&index, Settings::default());
    let endpoints: v1::Endpoints = get(&model, "default/orders").unwrap();
    assert_eq!(endpoints.endpoints[0].ports[0].peer, plaintext());
    let policy: v1::InboundPolicy = get(&model, "default/orders-1").unwrap();
    assert_eq!(policy.ports[0].mode(), v1::MtlsMode::Off);
}

#[test]
fn the_trust_domain_of_the_authority_stays_in_force() {
    let (index, _) = index(&format!("{MESH}spec: {{trustDomain: example.org}}\n"));
    let settings = Settings { trust_domain: Some("cluster.local".into()) };
    let found = findings(&index, &settings);
    assert_eq!(found[0].field.as_deref(), Some("spec.trustDomain"));
    let mesh: v1::Mesh = get(&Model::build(&index, settings), "mesh").unwrap();
    assert_eq!(mesh.trust_domain, "cluster.local");
}

/// An HTTPRoute `<namespace>/<name>` to `default/orders`, with what follows `spec:` after the parent.
fn route(namespace: &str, name: &str, port: &str, rules: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  parentRefs: [{{group: '', kind: Service, name: orders, namespace: default{port}}}]
  rules: {rules}
"
    )
}

const TO_ORDERS: &str = "[{backendRefs: [{name: orders, namespace: default, port: 80}]}]";

fn route_names(routes: &v1::Routes) -> Vec<(&str, Vec<u32>)> {
    let http = routes.http.iter();
    http.map(|route| (route.name.as_ref().unwrap().name.as_str(), route.ports.clone())).collect()
}

#[test]
fn a_consumers_routes_take_the_producers_place_for_its_namespace_only() {
    let text = format!(
        "{ORDERS}{}{}{}",
        route("default", "produced", "", TO_ORDERS),
        route("shop", "consumed", "", TO_ORDERS),
        route("cafe", "partly", ", port: 81", TO_ORDERS),
    );
    let (index, found) = index(&text);
    assert_eq!(found, []);
    let model = Model::build(&index, Settings::default());
    let all = routes(&model, "default/default/orders");
    assert_eq!(route_names(&all), [("produced", vec![])]);
    assert_eq!(all.client_namespace, "");
    let shop = routes(&model, "shop/default/orders");
    assert_eq!(route_names(&shop), [("consumed", vec![])]);
    assert_eq!(shop.client_namespace, "shop");
    // On the port that the consumer leaves alone, the producer's route stays.
    let cafe = routes(&model, "cafe/default/orders");
    assert_eq!(route_names(&cafe), [("partly", vec![81]), ("produced", vec![80])]);
    // Everybody else shares one encoded resource.
    let of = |client: &str| model.get(ResourceType::Routes, &format!("{client}/default/orders")).unwrap();
    assert!(Arc::ptr_eq(&of("default"), &of("elsewhere")));
    assert_ne!(of("default").version, of("shop").version);
}

#[test]
fn older_routes_come_first_and_those_without_an_age_last() {
    let aged = |name: &str, created: &str| {
        route("default", name, "", TO_ORDERS)
            .replace("metadata: {", &format!("metadata: {{creationTimestamp: {created}, "))
    };
    let text = format!(
        "{ORDERS}{}{}{}",
        route("default", "a", "", TO_ORDERS),
        aged("b", "2024-05-01T00:00:00Z"),
        aged("c", "2023-05-01T00:00:00Z")
    );
    let all = routes(&model(&text), "x/default/orders");
    let names: Vec<_> = route_names(&all).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["c", "b", "a"]);
}

#[test]
fn weights_matches_and_timeouts_are_passed_on() {
    let rules = "
  - name: split
    matches: [{path: {value: /a}}, {path: {type: Exact, value: /b}}, {}]
    backendRefs: [{name: orders, port: 80, weight: 9}, {name: orders, port: 81}, {name: orders, port: 81, weight: 0}]
    timeouts: {request: 1m30s, backendRequest: 300ms}
  - backendRefs: [{name: orders, port: 80}]
    timeouts: {request: 0s}
";
    let all = routes(
        &model(&format!("{ORDERS}{}", route("default", "r", ", sectionName: admin", rules))),
        "x/default/orders",
    );
    let route = &all.http[0];
    assert_eq!(route.ports, [81]);
    let rule = &route.rules[0];
    assert_eq!(rule.name, "split");
    let paths: Vec<_> = rule.matches.iter().map(|one| one.path.clone().unwrap()).collect();
    use v1::http_match::Path;
    assert_eq!(paths, [Path::Prefix("/a".into()), Path::Exact("/b".into()), Path::Prefix("/".into())]);
    let weights: Vec<_> = rule.backends.iter().map(|one| (one.port, one.weight)).collect();
    assert_eq!(weights, [(80, 9), (81, 1), (81, 0)]);
    let seconds = |duration: &Option<prost_types::Duration>| duration.as_ref().map(|d| (d.seconds, d.nanos));
    assert_eq!(seconds(&rule.request_timeout), Some((90, 0)));
    assert_eq!(seconds(&rule.backend_request_timeout), Some((0, 300_000_000)));
    assert_eq!(seconds(&route.rules[1].request_timeout), None);
    assert_eq!(route.rules[1].matches.len(), 1);
}

/// What a rule says, the fields that are found wrong, and how many rules are served (none: the route is refused).
#[test]
fn a_rule_is_served_as_written_or_not_at_all() {
    const BACKEND: &str = "backendRefs: [{name: orders, port: 80}]";
    let cases: &[(&str, &[&str], Option<usize>)] = &[
        ("{BACKEND}", &[], Some(1)),
        (
            "{matches: [{path: {value: /}, headers: [{name: a, value: b}]}], BACKEND}",
            &["spec.rules[0].matches[0].headers"],
            Some(0),
        ),
        (
            "{matches: [{queryParams: [{name: a, value: b}]}], BACKEND}",
            &["spec.rules[0].matches[0].queryParams"],
            Some(0),
        ),
        ("{matches: [{method: GET}], BACKEND}", &["spec.rules[0].matches[0].method"], Some(0)),
        (
            "{matches: [{path: {value: /}}, {path: {type: RegularExpression, value: /.*}}], BACKEND}",
            &["spec.rules[0].matches[1].path.type"],
            Some(0),
        ),
        (
            "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 1}}}], BACKEND}",
            &["spec.rules[0].filters"],
            Some(0),
        ),
        (
            "{backendRefs: [{name: orders, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [a]}}]}]}",
            &["spec.rules[0].backendRefs[0].filters"],
            Some(0),
        ),
        ("{retry: {attempts: 2}, BACKEND}", &["spec.rules[0].retry"], Some(1)),
        ("{}", &["spec.rules[0].backendRefs"], Some(1)),
        ("{matches: [{path: {value: a}}], BACKEND}", &["spec.rules[0].matches[0].path.value"], None),
        ("{matches: [{path: {value: /a//b}}], BACKEND}", &["spec.rules[0].matches[0].path.value"], None),
        ("{matches: [{path: {value: /a/..}}], BACKEND}", &["spec.rules[0].matches[0].path.value"], None),
        ("{backendRefs: [{name: orders}]}", &["spec.rules[0].backendRefs[0].port"], None),
        (
            "{backendRefs: [{name: orders, port: 80, weight: 1000001}]}",
            &["spec.rules[0].backendRefs[0].weight"],
            None,
        ),
        (
            "{backendRefs: [{name: orders, port: 80, weight: 1.5}]}",
            &["spec.rules[0].backendRefs[0].weight"],
            None,
        ),
        ("{timeouts: {request: 10}, BACKEND}", &["spec.rules[0].timeouts.request"], None),
        ("{timeouts: {request: 1d}, BACKEND}", &["spec.rules[0].timeouts.request"], None),
        (
            "{timeouts: {request: 1s, backendRequest: 2s}, BACKEND}",
            &["spec.rules[0].timeouts.backendRequest"],
            None,
        ),
        ("{name: a, BACKEND}, {name: a, BACKEND}", &["spec.rules[1].name"], None),
    ];
    for (rule, fields, served) in cases {
        let rules = format!("[{}]", rule.replace("BACKEND", BACKEND));
        let (index, found) = index(&format!("{ORDERS}{}", route("default", "r", "", &rules)));
        let seen: Vec<_> = found.iter().map(|finding| finding.field.clone().unwrap_or_default()).collect();
        assert_eq!(seen, *fields, "{rule}: {found:#?}");
        assert!(found.iter().all(|finding| finding.line == Some(16)), "{rule}: {found:#?}");
        let all = routes(&Model::build(&index, Settings::default()), "x/default/orders");
        assert_eq!(all.http.first().map(|route| route.rules.len()), *served, "{rule}");
    }
}

#[test]
fn a_reference_that_does_not_resolve_is_an_invalid_backend() {
    let cases = [
        ("name: gone, port: 80", Some("spec.rules[0].backendRefs[0]")),
        ("name: orders, port: 82", Some("spec.rules[0].backendRefs[0]")),
        ("name: orders, port: 80, kind: Secret", Some("spec.rules[0].backendRefs[0]")),
        ("name: cups, namespace: cafe, port: 1", Some("spec.rules[0].backendRefs[0]")),
        ("name: plates, namespace: cafe, port: 1", None),
        ("name: orders, namespace: default, port: 80", None),
    ];
    let cafe = "
---
{apiVersion: v1, kind: Service, metadata: {name: cups, namespace: cafe}, spec: {ports: [{port: 1}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: plates, namespace: cafe}, spec: {ports: [{port: 1}]}}
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: g, namespace: cafe}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}]
  to: [{group: '', kind: Service, name: plates}]
";
    for (backend, field) in cases {
        let rules = format!("[{{backendRefs: [{{{backend}}}, {{name: orders, port: 80}}]}}]");
        let (index, found) = index(&format!("{ORDERS}{}{cafe}", route("default", "r", "", &rules)));
        let seen: Vec<_> = found.iter().filter_map(|finding| finding.field.as_deref()).collect();
        assert_eq!(seen, Vec::from_iter(field), "{backend}: {found:#?}");
        let all = routes(&Model::build(&index, Settings::default()), "x/default/orders");
        let backends = &all.http[0].rules[0].backends;
        assert_eq!(backends[0].invalid.is_empty(), field.is_none(), "{backend}");
        assert_eq!(backends[1].invalid, "");
    }
    // A consumer's route may send requests back to the service that its clients dialled.
    let (index, found) = index(&format!("{ORDERS}{}", route("shop", "r", "", TO_ORDERS)));
    assert_eq!(found, []);
    let all = routes(&Model::build(&index, Settings::default()), "shop/default/orders");
    assert_eq!(all.http[0].rules[0].backends[0].invalid, "");
}

#[test]
fn a_parent_that_does_not_resolve_is_told() {
    let cases = [
        (", port: 82", "spec.parentRefs[0].port"),
        (", sectionName: nope", "spec.parentRefs[0].sectionName"),
        (", sectionName: admin, port: 80", "spec.parentRefs[0].sectionName"),
    ];
    for (port, field) in cases {
        let (index, found) = index(&format!("{ORDERS}{}", route("default", "r", port, TO_ORDERS)));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].field.as_deref(), Some(field));
        let all = routes(&Model::build(&index, Settings::default()), "x/default/orders");
        assert_eq!(all.http, []);
    }
    let (_, found) = index(&route("default", "r", "", "[{backendRefs: [{name: orders, port: 80}]}]"));
    let fields: Vec<_> = found.iter().filter_map(|finding| finding.field.as_deref()).collect();
    assert_eq!(fields, ["spec.parentRefs[0].name", "spec.rules[0].backendRefs[0]"]);
}

/// (port, rest of the port, annotation) and what is spoken there.
#[test]
fn the_most_explicit_word_on_a_protocol_wins() {
    use v1::Protocol;
    let cases = [
        ("80", "", "", Protocol::Unspecified),
        ("80", ", appProtocol: http", "", Protocol::Http),
        ("80", ", appProtocol: kubernetes.io/h2c", "", Protocol::Http2),
        ("80", ", appProtocol: grpc, name: http-x", "", Protocol::Grpc),
        ("80", ", name: grpc-x", "", Protocol::Grpc),
        ("80", ", name: http", "", Protocol::Http),
        ("80", ", name: http2-x", "", Protocol::Http2),
        ("80", ", name: httpx", "", Protocol::Unspecified),
        ("80", ", name: mongo", "", Protocol::Tcp),
        ("443", ", name: https", "", Protocol::Tls),
        ("3306", "", "", Protocol::Tcp),
        ("3306", ", appProtocol: http", "", Protocol::Http),
        ("3306", "", "1-10", Protocol::Unspecified),
        ("8080", ", appProtocol: http", "1,8000-9000", Protocol::Tcp),
        ("80", ", appProtocol: htpp", "", Protocol::Unspecified),
    ];
    for (port, rest, opaque, expected) in cases {
        let annotation = match opaque {
            "" => String::new(),
            ports => format!(", annotations: {{config.tulle.dev/opaque-ports: '{ports}'}}"),
        };
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s{annotation}}}, spec: {{ports: [{{port: {port}{rest}}}]}}}}"
        );
        let service: v1::Service = get(&model(&text), "default/s").unwrap();
        assert_eq!(service.ports[0].protocol(), expected, "{text}");
    }
}

fn policy(name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec:\n  targetRefs: [{{kind: Service, name: orders}}]\n{rest}\n"
    )
}

#[test]
fn policies_speak_of_the_ports_that_clients_dial() {
    let text = format!(
        "{ORDERS}{}{}",
        policy(
            "p",
            "  rules: [{name: web, from: [{identities: [shop/web, 'spiffe://other/x']}], toPorts: [81]}, {from: [{identities: [a/b]}]}]"
        ),
        policy("q", ""),
    );
    let (mut index, found) = index(&text);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].message.contains("another trust domain"));
    index.register(registration(
        "o",
        "127.0.0.1",
        &[("orders", 80, 40080), ("orders", 81, 40081), ("else", 81, 40082)],
    ));
    index.register(registration("p", "127.0.0.1", &[("orders", 80, 40090)]));
    index.register(registration("q", "127.0.0.1", &[("else", 80, 40100)]));
    let model = Model::build(&index, Settings::default());
    let rules = |workload: &str| -> Vec<(String, Vec<u32>, Vec<String>)> {
        let policy: v1::InboundPolicy = get(&model, workload).unwrap();
        policy.rules.into_iter().map(|rule| (rule.name, rule.ports, rule.identities)).collect()
    };
    let id = |who: &str| format!("spiffe://{who}");
    let a = || vec![id("cluster.local/ns/a/sa/b")];
    let web = vec![id("cluster.local/ns/shop/sa/web"), id("other/x")];
    assert_eq!(
        rules("default/o"),
        [
            ("default/p/1".to_owned(), vec![40080, 40081], a()),
            ("default/p/web".to_owned(), vec![40081], web),
            ("default/q/none".to_owned(), vec![40080, 40081], vec![]),
        ]
    );
    // A rule that speaks of none of a workload's ports must not speak of all of them.
    assert_eq!(
        rules("default/p"),
        [("default/p/1".to_owned(), vec![40090], a()), ("default/q/none".to_owned(), vec![40090], vec![])]
    );
    assert_eq!(rules("default/q"), []);
}

#[test]
fn a_policy_holds_for_a_port_that_no_service_names() {
    let (index, _) =
        index(&format!("{ORDERS}{}{}", slice("").replace("name: http", "name: nameless"), policy("q", "")));
    let model = Model::build(&index, Settings::default());
    let policy: v1::InboundPolicy = get(&model, "default/orders-x").unwrap();
    assert_eq!(policy.rules[0].ports, [8080]);
}

#[test]
fn wrong_policies_are_refused_with_the_field() {
    let cases = [
        ("  rules: [{from: [{identities: [shop]}]}]", "spec.rules[0].from[0].identities[0]"),
        ("  rules: [{from: [{identities: ['spiffe://a']}]}]", "spec.rules[0].from[0].identities[0]"),
        ("  rules: [{from: []}]", "spec.rules[0].from"),
        ("  rules: [{from: [{identities: [a/b]}], toPorts: [0]}]", "spec.rules[0].toPorts[0]"),
        ("  rules: [{from: [{identities: [a/b]}], toPorts: [82]}]", "spec.rules[0].toPorts[0]"),
        ("  rules: [{name: a/b, from: [{identities: [a/b]}]}]", "spec.rules[0].name"),
        ("  action: DENY", "spec.action"),
    ];
    for (rest, field) in cases {
        let (_, found) = index(&format!("{ORDERS}{}", policy("p", rest)));
        assert!(found.iter().any(|f| f.field.as_deref() == Some(field)), "{rest}: {found:#?}");
    }
}

#[test]
fn a_slice_that_fits_no_service_is_told() {
    let (_, found) = index(&slice(""));
    assert_eq!(found[0].field.as_deref(), Some("metadata.labels[\"kubernetes.io/service-name\"]"));
    let (_, found) = index(&format!("{ORDERS}{}", slice("").replace("name: http", "name: web")));
    assert_eq!(found[0].field.as_deref(), Some("ports[0]"));
    let (_, found) = index(&format!("{ORDERS}---{}", ORDERS.replace("name: orders", "name: twin")));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert_eq!(found[0].field.as_deref(), Some("spec.clusterIP"));
}

#[test]
fn versions_are_the_same_everywhere_and_change_only_with_the_content() {
    let text = format!("{ORDERS}{}", route("default", "r", "", TO_ORDERS));
    let model = model(&text);
    // Recorded: another release must not send everything anew without a reason.
    let version = |kind: ResourceType, name: &str| model.get(kind, name).unwrap().version.to_string();
    assert_eq!(version(ResourceType::Mesh, "mesh"), "92ca91e295462aa62e85380cf5a7d267");
    assert_eq!(version(ResourceType::Service, "default/orders"), "e50faa36dc018a0ecff7534b37b8b4bc");

    let mut index = index(&text).0;
    let first = Model::build(&index, Settings::default());
    assert_eq!(first, model);
    // Applied again, and another object: what did not change keeps even its place in memory.
    index.change(read_text(&text).changes);
    index.register(registration("web", "127.0.0.1", &[("web", 1, 2)]));
    let dirty = index.take_dirty();
    let second = first.next(&index, &dirty);
    for kind in [ResourceType::Service, ResourceType::Endpoints, ResourceType::Routes] {
        let name = if kind == ResourceType::Routes { "x/default/orders" } else { "default/orders" };
        let (before, after) = (first.get(kind, name).unwrap(), second.get(kind, name).unwrap());
        assert!(Arc::ptr_eq(&before, &after), "{kind}");
    }
    assert_ne!(first, second);
}

#[test]
fn a_bundle_is_passed_on_as_given() {
    let mut index = Index::default();
    index.set_bundle("cluster.local", vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")]);
    let dirty = index.take_dirty();
    let model = Model::build(&Index::default(), Settings::default()).next(&index, &dirty);
    let bundle: v1::TrustBundle = get(&model, "cluster.local").unwrap();
    assert_eq!(bundle.x509_authorities, [&b"one"[..], &b"two"[..]]);
}

/// A xorshift, so that a failure can be replayed by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

const NAMESPACES: [&str; 2] = ["default", "shop"];
const SERVICES: [&str; 3] = ["a", "b", "c"];
const IPS: [&str; 3] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];

/// One object of any kind, in few enough places that they meet.
fn random_object(random: &mut Random) -> String {
    let (namespace, service, other) =
        (random.pick(&NAMESPACES), random.pick(&SERVICES), random.pick(&SERVICES));
    let (ip, port) = (random.pick(&IPS), random.pick(&["80", "81"]));
    let named = random.pick(&["http", "web", ""]);
    match random.below(6) {
        0 | 1 => format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: {namespace}}}\nspec: {{clusterIP: {ip}, ports: [{{port: {port}, name: '{named}'}}]}}\n"
        ),
        2 => format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s-{other}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{name: '{named}', port: 8080}}]\nendpoints: [{{addresses: [{ip}], targetRef: {{kind: Pod, name: pod-{other}}}}}]\n"
        ),
        3 => {
            let parent = random.pick(&NAMESPACES);
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r-{other}, namespace: {namespace}}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: {service}, namespace: {parent}}}]\n  rules: [{{backendRefs: [{{name: {other}, namespace: {parent}, port: {port}}}]}}]\n"
            )
        }
        4 => format!(
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p-{other}, namespace: {namespace}}}\nspec: {{targetRefs: [{{kind: Service, name: {service}}}], rules: [{{from: [{{identities: [x/{other}]}}], toPorts: [{port}]}}]}}\n"
        ),
        _ if random.below(3) == 0 => format!(
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: mesh}}\nspec: {{mtls: {}}}\n",
            random.pick(&["strict", "permissive", "'off'"])
        ),
        _ => format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: {namespace}}}\nspec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {}}}], to: [{{group: '', kind: Service}}]}}\n",
            random.pick(&NAMESPACES)
        ),
    }
}

fn parse(text: &str) -> Object {
    let read = read_text(text);
    match read.changes.into_iter().next() {
        Some(crate::index::Change::Apply(object, _)) => *object,
        other => panic!("{other:?}: {text}\n{:#?}", read.findings),
    }
}

/// Everything that can be asked for, by type and name.
fn dump(model: &Model) -> BTreeMap<String, Arc<str>> {
    let mut all = BTreeMap::new();
    for kind in ResourceType::ALL {
        for name in model.names(kind) {
            let clients: &[&str] = if kind == ResourceType::Routes { &["default/", "shop/"] } else { &[""] };
            for client in clients {
                let name = format!("{client}{name}");
                all.insert(format!("{kind}/{name}"), model.get(kind, &name).unwrap().version.clone());
            }
        }
    }
    all
}

#[test]
fn a_model_kept_through_changes_equals_one_built_from_scratch() {
    for seed in 1..=60_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut kept = Index::default();
        let mut objects: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        let mut registrations: BTreeMap<NamespacedName, Registration> = BTreeMap::new();
        let mut model = Model::build(&kept, Settings::default());
        for step in 0..30 {
            for _ in 0..=random.below(3) {
                change(&mut random, &mut kept, &mut objects, &mut registrations);
            }
            let dirty = kept.take_dirty();
            model = model.next(&kept, &dirty);

            let mut fresh = Index::default();
            for registration in registrations.values() {
                fresh.register(registration.clone());
            }
            fresh.reset(objects.values().map(|object| (object.clone(), None)));
            let scratch = Model::build(&fresh, Settings::default());
            assert_eq!(dump(&model), dump(&scratch), "seed {seed}, step {step}");
            assert!(model == scratch, "seed {seed}, step {step}");
        }
    }
}

fn change(
    random: &mut Random,
    index: &mut Index,
    objects: &mut BTreeMap<ObjectKey, Object>,
    registrations: &mut BTreeMap<NamespacedName, Registration>,
) {
    match random.below(10) {
        0..=4 => {
            let object = parse(&random_object(random));
            objects.insert(object.key(), object.clone());
            index.apply(object, None);
        }
        5 | 6 => {
            let at = random.below(objects.len().max(1) as u64);
            let key = objects.keys().nth(usize::try_from(at).unwrap()).cloned();
            let key = key.unwrap_or_else(|| ObjectKey { kind: Kind::Service, name: name("x/y") });
            objects.remove(&key);
            index.delete(&key);
        }
        7 | 8 => {
            let workload = random.pick(&["w1", "w2"]);
            let port = u32::try_from(80 + random.below(2)).unwrap();
            let new = registration(workload, random.pick(&IPS), &[(random.pick(&SERVICES), port, 8080)]);
            registrations.insert(new.workload.clone(), new.clone());
            index.register(new);
        }
        _ => {
            let workload = NamespacedName::new("default", random.pick(&["w1", "w2"]));
            registrations.remove(&workload);
            index.unregister(&workload);
        }
    }
}

#[test]
fn a_registration_that_cannot_be_dialled_is_refused() {
    let said = |address: &str, service: &str, port: u32| v1::Registration {
        address: address.to_owned(),
        services: vec![v1::RegisteredService {
            name: service.to_owned(),
            ports: vec![v1::RegisteredPort { service_port: 80, port }],
        }],
        locality: None,
        ready: true,
    };
    let cases = [
        (said("localhost", "a", 1), "address"),
        (said("0.0.0.0", "a", 1), "address"),
        (said("::1", "a/b", 1), "services[0].name"),
        (said("::1", "a", 0), "services[0].ports[0].port"),
        (said("::1", "a", 65_536), "services[0].ports[0].port"),
    ];
    for (said, field) in cases {
        let error = Registration::read(name("default/w"), "spiffe://a/b", &said).unwrap_err();
        assert_eq!(error.field, field);
    }
    let mapped =
        Registration::read(name("default/w"), "spiffe://a/b", &said("::ffff:10.0.0.1", "a", 1)).unwrap();
    assert_eq!(mapped.address, "10.0.0.1".parse::<IpAddr>().unwrap());
}

#[tokio::test]
async fn a_registration_is_answered_once_its_policy_is_published() {
    let (index, _) = index(&format!("{ORDERS}{}", policy("p", "")));
    let publisher = Publisher::new(index, Settings::default(), Vec::new());
    let running = publisher.clone();
    let task = tokio::spawn(async move { running.run().await });
    let before: v1::InboundPolicy = get(&publisher.model(), "default/o").unwrap();
    assert_eq!(before.rules, []);

    let ports = [("orders", 80, 40080), ("orders", 85, 40085), ("later", 1, 2)];
    let registered = publisher.register(registration("o", "127.0.0.1", &ports)).await;
    assert_eq!(registered.pending, ["later", "orders:85"]);
    let after: v1::InboundPolicy = get(&publisher.model(), "default/o").unwrap();
    assert_eq!(after.rules.len(), 1);

    // The stream that is replaced must not take its successor with it.
    let again = publisher.register(registration("o", "127.0.0.1", &ports)).await;
    publisher.unregister(&name("default/o"), registered.id);
    publisher.settle().await;
    assert!(get::<v1::Workload>(&publisher.model(), "default/o").is_some());
    publisher.unregister(&name("default/o"), again.id);
    publisher.settle().await;
    assert!(get::<v1::Workload>(&publisher.model(), "default/o").is_none());
    task.abort();
}

#[tokio::test]
async fn many_changes_are_published_as_one_and_no_change_as_none() {
    let publisher = Publisher::new(Index::default(), Settings::default(), Vec::new());
    let running = publisher.clone();
    let task = tokio::spawn(async move { running.run().await });
    let mut models = publisher.models();
    models.mark_unchanged();
    for name in ["a", "b", "c"] {
        let read = read_text(&ORDERS.replace("orders", name));
        publisher.apply(read.changes, read.findings);
    }
    publisher.settle().await;
    assert_eq!(models.borrow_and_update().names(ResourceType::Service).len(), 3);
    let read = read_text(&ORDERS.replace("orders", "a"));
    publisher.apply(read.changes, read.findings);
    publisher.settle().await;
    assert!(!models.has_changed().unwrap());
    // The same virtual IP three times.
    assert_eq!(publisher.findings().borrow().len(), 4);
    task.abort();
}
