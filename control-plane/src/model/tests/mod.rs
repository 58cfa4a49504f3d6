use std::collections::BTreeMap;
use std::net::IpAddr;

use prost::{Message, Name};

mod access;
mod authentication;
mod conflicts;
mod cost;
mod egress;
mod external;
mod filters;
mod grpc;
mod incremental;
mod modes;
mod patterns;
mod pods;
mod publish;
mod resilience;
mod routes;
mod sessions;
mod status;
mod streams;
mod telemetry;
mod virtual_ips;

use super::*;
use crate::finding::Finding;
use crate::index::{Registration, RegistrationId};
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

/// The only registration of its workload.
fn register(index: &mut Index, registration: Registration) {
    index.register(sole(&registration.workload), registration);
}

fn sole(workload: &NamespacedName) -> RegistrationId {
    RegistrationId(workload.name.bytes().fold(7, |id, byte| id * 31 % 1_000_003 + u64::from(byte)))
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

/// The same as a GRPCRoute.
fn grpc_route(namespace: &str, name: &str, port: &str, rules: &str) -> String {
    route(namespace, name, port, rules).replace("HTTPRoute", "GRPCRoute")
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
        ("tulle.dev/identity: 'spiffe://example.org/ns/a/sa/b'", spiffe("spiffe://example.org/ns/a/sa/b")),
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
fn a_workload_of_a_slice_without_an_identity_is_not_told_as_one_with_an_empty_identity() {
    let of = |annotation| {
        get::<v1::Workload>(&model(&format!("{ORDERS}{}", slice(annotation))), "default/orders-x")
    };
    assert_eq!(of(""), None);
    let known = of("tulle.dev/identity: shop/orders").unwrap();
    assert_eq!(known.spiffe_id, "spiffe://cluster.local/ns/shop/sa/orders");
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
    register(
        &mut index,
        registration("orders-1", "127.0.0.1", &[("orders", 80, 40001), ("later", 9, 40002)]),
    );
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
    register(&mut index, registration("orders-2", "127.0.0.1", &[("orders", 80, 40003)]));
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
fn replicas_of_one_name_have_a_registration_each() {
    let (mut index, _) = index(ORDERS);
    let replica = |address: &str, ready| Registration {
        ready,
        ..registration("orders-1", address, &[("orders", 80, 40001)])
    };
    index.register(RegistrationId(1), replica("10.0.0.1", true));
    index.register(RegistrationId(2), replica("10.0.0.2", true));
    // The first one's process has come back before its old stream was missed, and is not ready yet.
    index.register(RegistrationId(3), replica("10.0.0.1", false));
    let endpoints = |index: &Index| -> Vec<(String, bool)> {
        let model = Model::build(index, Settings::default());
        let endpoints: v1::Endpoints = get(&model, "default/orders").unwrap();
        endpoints.endpoints.into_iter().map(|endpoint| (endpoint.address, endpoint.ready)).collect()
    };
    let (first, second) = ("10.0.0.1".to_owned(), "10.0.0.2".to_owned());
    assert_eq!(endpoints(&index), [(first.clone(), false), (second.clone(), true)]);
    let workload: v1::Workload = get(&Model::build(&index, Settings::default()), "default/orders-1").unwrap();
    assert_eq!(workload.addresses, [&*first, &*second]);
    // The old stream ends at last: the new one stays.
    index.unregister(RegistrationId(1));
    assert_eq!(endpoints(&index), [(first, false), (second.clone(), true)]);
    index.unregister(RegistrationId(3));
    assert_eq!(endpoints(&index), [(second, true)]);
}

#[test]
fn a_registration_is_believed_over_a_slice() {
    let (mut index, _) = index(&format!("{ORDERS}{}", slice("")));
    register(&mut index, registration("orders-1", "2001:db8::1", &[("orders", 80, 8080)]));
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
    // What is written, and where the virtual IPs lie that follow from names.
    assert_eq!(mesh.networks, ["10.0.0.0/8", "fd00::/8", "198.18.0.0/15", "fd74:756c:6c65::/48"]);
    let endpoints: v1::Endpoints = get(&model, "default/orders").unwrap();
    assert_eq!(endpoints.endpoints[0].ports[0].peer, spiffe("spiffe://example.org/ns/shop/sa/orders"));
    let policy: v1::InboundPolicy = get(&model, "default/new").unwrap();
    assert_eq!(policy.mode(), v1::MtlsMode::Strict);
}

#[test]
fn without_mtls_every_peer_is_plaintext() {
    let (mut index, _) = index(&format!("{ORDERS}{MESH}spec: {{mtls: 'off'}}\n"));
    register(&mut index, registration("orders-1", "127.0.0.1", &[("orders", 80, 40001)]));
    let model = Model::build(&index, Settings::default());
    let endpoints: v1::Endpoints = get(&model, "default/orders").unwrap();
    assert_eq!(endpoints.endpoints[0].ports[0].peer, plaintext());
    let policy: v1::InboundPolicy = get(&model, "default/orders-1").unwrap();
    assert_eq!(policy.ports[0].mode(), v1::MtlsMode::Off);
}

#[test]
fn the_trust_domain_of_the_authority_stays_in_force() {
    let (index, _) = index(&format!("{MESH}spec: {{trustDomain: example.org}}\n"));
    let settings = Settings { trust_domain: Some("cluster.local".into()), ..Settings::default() };
    let found = findings(&index, &settings);
    assert_eq!(found[0].field.as_deref(), Some("spec.trustDomain"));
    let mesh: v1::Mesh = get(&Model::build(&index, settings), "mesh").unwrap();
    assert_eq!(mesh.trust_domain, "cluster.local");
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
            "  rules: [{name: web, from: [{identities: [shop/web, 'spiffe://other/ns/x/sa/y']}], toPorts: [81]}, {from: [{identities: [a/b]}]}]"
        ),
        policy("q", ""),
    );
    let (mut index, found) = index(&text);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found.iter().any(|one| one.message.contains("another trust domain")));
    assert!(found.iter().any(|one| one.message == "the policy has no rule, so it allows nobody"));
    register(
        &mut index,
        registration("o", "127.0.0.1", &[("orders", 80, 40080), ("orders", 81, 40081), ("else", 81, 40082)]),
    );
    register(&mut index, registration("p", "127.0.0.1", &[("orders", 80, 40090)]));
    register(&mut index, registration("q", "127.0.0.1", &[("else", 80, 40100)]));
    let model = Model::build(&index, Settings::default());
    let rules = |workload: &str| -> Vec<(String, Vec<u32>, Vec<String>)> {
        let policy: v1::InboundPolicy = get(&model, workload).unwrap();
        policy.rules.into_iter().map(|rule| (rule.name, rule.ports, rule.identities)).collect()
    };
    let id = |who: &str| format!("spiffe://{who}");
    let a = || vec![id("cluster.local/ns/a/sa/b")];
    let web = vec![id("cluster.local/ns/shop/sa/web"), id("other/ns/x/sa/y")];
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
        ("  action: REFUSE", "spec.action"),
        ("  rules: [{}]", "spec.rules[0]"),
        ("  action: DENY", "spec.rules"),
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
    assert_eq!(version(ResourceType::Mesh, "mesh"), "b528bf5ff0f5156c67690c375395e4ed");
    assert_eq!(version(ResourceType::Service, "default/orders"), "e50faa36dc018a0ecff7534b37b8b4bc");

    let mut index = index(&text).0;
    let first = Model::build(&index, Settings::default());
    assert_eq!(first, model);
    // Applied again, and another object: what did not change keeps even its place in memory.
    index.change(read_text(&text).changes);
    register(&mut index, registration("web", "127.0.0.1", &[("web", 1, 2)]));
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
