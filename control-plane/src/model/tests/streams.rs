//! Routes for whole connections.

use super::*;

fn stream_route(kind: &str, name: &str, port: &str, rules: &str) -> String {
    let text = route("default", name, port, rules).replace("HTTPRoute", kind);
    if kind == "TLSRoute" { format!("{text}  hostnames: [a.example.com, '*.example.com']\n") } else { text }
}

fn names(routes: &v1::Routes) -> [Vec<(&str, &[u32])>; 2] {
    let http = routes.http.iter().map(|one| (&*one.name.as_ref().unwrap().name, &*one.ports));
    let streams = routes.streams.iter().map(|one| (&*one.name.as_ref().unwrap().name, &*one.ports));
    [http.collect(), streams.collect()]
}

#[test]
fn routes_for_connections_are_passed_on_whole() {
    let rules = "[{backendRefs: [{name: orders, port: 80, weight: 3}, {name: gone, port: 1}]}]";
    let text = format!(
        "{ORDERS}{}{}",
        stream_route("TLSRoute", "secure", ", port: 80", rules),
        stream_route("TCPRoute", "plain", ", sectionName: admin", TO_ORDERS)
    );
    let all = routes(&model(&text), "x/default/orders");
    assert_eq!(names(&all), [vec![], vec![("plain", &[81][..]), ("secure", &[80][..])]]);
    let [plain, secure] = &all.streams[..] else { panic!("{all:?}") };
    assert_eq!(plain.server_names, [""; 0]);
    assert_eq!(secure.server_names, ["a.example.com", "*.example.com"]);
    let backends: Vec<_> = secure.backends.iter().map(|one| (one.weight, one.invalid.is_empty())).collect();
    assert_eq!(backends, [(3, true), (1, false)]);
    let (_, found) = index(&text);
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert!(
        finding.message.ends_with("its share of the connections is refused with `backend_not_found`"),
        "{finding}"
    );
}

#[test]
fn a_port_has_routes_of_the_first_kind_only() {
    let tcp = stream_route("TCPRoute", "tcp", "", TO_ORDERS);
    let tls = stream_route("TLSRoute", "tls", ", port: 80", TO_ORDERS);
    let http = route("default", "http", ", port: 80", TO_ORDERS);
    for (text, expected) in [
        (format!("{tcp}{tls}"), [vec![], vec![("tcp", &[81][..]), ("tls", &[80][..])]]),
        (format!("{tcp}{tls}{http}"), [vec![("http", &[80][..])], vec![("tcp", &[81][..])]]),
        (format!("{tcp}{http}"), [vec![("http", &[80][..])], vec![("tcp", &[81][..])]]),
    ] {
        let text = format!("{ORDERS}{text}");
        assert_eq!(names(&routes(&model(&text), "x/default/orders")), expected, "{text}");
        let (_, found) = index(&text);
        assert!(
            !found.is_empty() && found.iter().all(|one| one.message.contains("does not hold")),
            "{found:?}"
        );
    }
    let statuses = route_statuses(&index(&format!("{ORDERS}{tls}{http}")).0);
    let of = |kind: &str| statuses.iter().find(|one| one.kind == kind).unwrap();
    assert_eq!(of("TLSRoute").parents[0].conditions[0].reason, "Conflicted");
    assert_eq!(of("HTTPRoute").parents[0].conditions[0].reason, "Accepted");
}

/// What is written, the field that is found wrong, and whether the route is served all the same.
#[test]
fn what_is_wrong_with_a_route_for_connections_is_told() {
    let hosts = |hosts: &str| {
        stream_route("TLSRoute", "r", "", TO_ORDERS).replace("[a.example.com, '*.example.com']", hosts)
    };
    let tcp = |rules: &str| stream_route("TCPRoute", "r", "", rules);
    const BACKEND: &str = "backendRefs: [{name: orders, port: 80}]";
    for (text, field, served) in [
        (hosts("[]"), "spec.hostnames", false),
        (hosts("[192.0.2.1]"), "spec.hostnames[0]", false),
        (hosts("[a.example.com, 'A.example.com']"), "spec.hostnames[1]", false),
        (hosts("['a.*.com']"), "spec.hostnames[0]", false),
        (tcp("[]"), "spec.rules", false),
        (tcp("[{backendRefs: []}]"), "spec.rules[0].backendRefs", false),
        (tcp("[{backendRefs: [{name: orders}]}]"), "spec.rules[0].backendRefs[0].port", false),
        (
            tcp("[{backendRefs: [{name: orders, port: 80, weight: -1}]}]"),
            "spec.rules[0].backendRefs[0].weight",
            false,
        ),
        (tcp(&format!("[{{name: a, {BACKEND}}}, {{name: b, {BACKEND}}}]")), "spec.rules[1]", true),
        (tcp("[{backendRefs: [{name: orders, port: 80, weight: 0}]}]"), "spec.rules[0].backendRefs", true),
        (tcp(&format!("[{{matches: [], {BACKEND}}}]")), "spec.rules[0].matches", true),
    ] {
        let (index, found) = index(&format!("{ORDERS}{text}"));
        let fields: Vec<_> = found.iter().filter_map(|one| one.field.as_deref()).collect();
        assert_eq!(fields, [field], "{text}: {found:?}");
        let all = routes(&Model::build(&index, Settings::default()), "x/default/orders");
        assert_eq!(all.streams.len(), usize::from(served), "{text}");
    }
}

#[test]
fn a_grant_is_for_one_kind() {
    let to_cups = "[{backendRefs: [{name: cups, namespace: cafe, port: 1}]}]";
    let grant = |kind: &str| {
        format!(
            "---
{{apiVersion: v1, kind: Service, metadata: {{name: cups, namespace: cafe}}, spec: {{ports: [{{port: 1}}]}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {{name: g, namespace: cafe}}
spec:
  from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: default}}]
  to: [{{group: '', kind: Service}}]
"
        )
    };
    for (kind, granted) in [("TCPRoute", true), ("TLSRoute", false), ("HTTPRoute", false)] {
        let text = format!("{ORDERS}{}{}", stream_route("TCPRoute", "r", "", to_cups), grant(kind));
        let all = routes(&model(&text), "x/default/orders");
        assert_eq!(all.streams[0].backends[0].invalid.is_empty(), granted, "{kind}");
    }
}
