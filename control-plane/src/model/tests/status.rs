//! Conditions of routes.

use super::*;

/// Each condition of the first parent: type, status, reason and whether something is said.
fn conditions(text: &str) -> Vec<(&'static str, &'static str, &'static str, bool)> {
    let statuses = route_statuses(&index(text).0);
    let conditions = statuses[0].parents[0].conditions.iter();
    conditions.map(|one| (one.condition, one.status, one.reason, !one.message.is_empty())).collect()
}

#[test]
fn conditions_have_the_gateway_apis_reasons() {
    const ACCEPTED: (&str, &str, &str, bool) = ("Accepted", "True", "Accepted", false);
    const RESOLVED: (&str, &str, &str, bool) = ("ResolvedRefs", "True", "ResolvedRefs", false);
    let refused = |reason| ("Accepted", "False", reason, true);
    let unresolved = |reason| ("ResolvedRefs", "False", reason, true);
    let broken = "{matches: [{path: {type: RegularExpression, value: '('}}]}";
    let sends = |backend: &str| format!("[{{backendRefs: [{{{backend}}}]}}]");
    let cases = [
        ("", TO_ORDERS.to_owned(), vec![ACCEPTED, RESOLVED]),
        (", port: 82", TO_ORDERS.to_owned(), vec![refused("NoMatchingParent"), RESOLVED]),
        (", sectionName: nope", TO_ORDERS.to_owned(), vec![refused("NoMatchingParent"), RESOLVED]),
        ("", sends("name: gone, port: 80"), vec![ACCEPTED, unresolved("BackendNotFound")]),
        ("", sends("name: orders, port: 82"), vec![ACCEPTED, unresolved("BackendNotFound")]),
        ("", sends("name: a, kind: Secret"), vec![ACCEPTED, unresolved("InvalidKind")]),
        ("", sends("name: a, namespace: cafe, port: 1"), vec![ACCEPTED, unresolved("RefNotPermitted")]),
        ("", format!("[{broken}]"), vec![refused("UnsupportedValue"), RESOLVED]),
        (
            "",
            format!("[{broken}, {{backendRefs: [{{name: orders, port: 80}}]}}]"),
            vec![ACCEPTED, RESOLVED, ("PartiallyInvalid", "True", "UnsupportedValue", true)],
        ),
    ];
    for (port, rules, expected) in cases {
        let text = format!("{ORDERS}{}", route("default", "r", port, &rules));
        assert_eq!(conditions(&text), expected, "{port} {rules}");
    }
    assert_eq!(conditions(&route("default", "r", "", "[{}]"))[0], refused("NoMatchingParent"));
}

#[test]
fn an_http_route_whose_every_port_a_grpc_route_takes_is_not_accepted() {
    let text = |ports: &str| {
        let http = route("default", "a", "", TO_ORDERS);
        format!("{ORDERS}{http}{}", grpc_route("default", "b", ports, TO_ORDERS))
    };
    assert_eq!(conditions(&text(", port: 80"))[0].1, "True");
    assert_eq!(conditions(&text(""))[0], ("Accepted", "False", "Conflicted", true));
}

#[test]
fn a_status_is_printed_as_kubernetes_has_it() {
    let text = format!("{ORDERS}{}", route("default", "r", ", port: 80", TO_ORDERS));
    let printed = serde_json::to_value(route_statuses(&index(&text).0)).unwrap();
    let condition =
        |name: &str| serde_json::json!({"type": name, "status": "True", "reason": name, "message": ""});
    let parent = serde_json::json!({"group": "", "kind": "Service", "namespace": "default", "name": "orders", "port": 80});
    let conditions = [condition("Accepted"), condition("ResolvedRefs")];
    assert_eq!(
        printed,
        serde_json::json!([{
            "kind": "HTTPRoute", "namespace": "default", "name": "r",
            "parents": [{"parentRef": parent, "conditions": conditions}],
        }])
    );
}
