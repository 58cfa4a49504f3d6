//! Routes: whose they are, and what becomes of what is written in them.

use super::*;

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
    let requests = |rule: &v1::HttpRule| rule.requests.clone().unwrap();
    assert_eq!(seconds(&requests(rule).request_timeout), Some((90, 0)));
    assert_eq!(seconds(&requests(rule).backend_request_timeout), Some((0, 300_000_000)));
    // No limit is said too, before what a policy says.
    assert_eq!(seconds(&requests(&route.rules[1]).request_timeout), Some((0, 0)));
    assert_eq!(route.rules[1].matches.len(), 1);
}

#[test]
fn when_requests_are_sent_again_is_passed_on_with_what_is_left_to_us() {
    let backend = "backendRefs: [{name: orders, port: 80}]";
    let rules = [
        "retry: {codes: [503, 500], attempts: 3, backoff: 100ms}",
        "retry: {}",
        "retry: {attempts: 0, backoff: 0s}",
        "name: none",
    ];
    let rules = rules.map(|rule| format!("{{{rule}, {backend}}}")).join(", ");
    let all = routes(
        &model(&format!("{ORDERS}{}", route("default", "r", "", &format!("[{rules}]")))),
        "x/default/orders",
    );
    let retry = |codes: &[u32], attempts, milliseconds: i32| {
        let backoff = prost_types::Duration { seconds: 0, nanos: milliseconds * 1_000_000 };
        Some(v1::Retry { codes: codes.to_vec(), attempts, backoff: Some(backoff), ..Default::default() })
    };
    let seen: Vec<_> = all.http[0].rules.iter().map(|rule| rule.requests.clone().unwrap().retry).collect();
    assert_eq!(seen, [retry(&[500, 503], 3, 100), retry(&[], 1, 25), retry(&[], 0, 0), None]);
}

#[test]
fn a_grpc_route_has_no_retry() {
    let rules = "[{retry: {codes: [503]}, backendRefs: [{name: orders, port: 80}]}]";
    let (_, found) = index(&format!("{ORDERS}{}", grpc_route("default", "r", "", rules)));
    let told: Vec<_> = found.iter().map(|finding| (finding.field.as_deref(), finding.severity)).collect();
    assert_eq!(told, [(Some("spec.rules[0].retry"), crate::finding::Severity::Warning)], "{found:#?}");
}

/// What a rule says, the fields that are found wrong, and how many rules are served (none: the route is refused).
#[test]
fn a_rule_is_served_as_written_or_not_at_all() {
    const BACKEND: &str = "backendRefs: [{name: orders, port: 80}]";
    let cases: &[(&str, &[&str], Option<usize>)] = &[
        ("{BACKEND}", &[], Some(1)),
        (
            "{matches: [{path: {value: /}, headers: [{name: a, value: b}], queryParams: [{name: a, value: b}], method: GET}], BACKEND}",
            &[],
            Some(1),
        ),
        (
            "{matches: [{headers: [{name: a, value: b}, {name: A, value: c}]}], BACKEND}",
            &["spec.rules[0].matches[0].headers[1].name"],
            Some(1),
        ),
        ("{matches: [{queryParams: [{name: a, value: b}, {name: A, value: c}]}], BACKEND}", &[], Some(1)),
        (
            "{matches: [{headers: [{name: 'a b', value: b}]}], BACKEND}",
            &["spec.rules[0].matches[0].headers[0].name"],
            None,
        ),
        (
            "{matches: [{headers: [{name: a, value: ' b'}]}], BACKEND}",
            &["spec.rules[0].matches[0].headers[0].value"],
            None,
        ),
        (
            "{matches: [{queryParams: [{name: a, value: ''}]}], BACKEND}",
            &["spec.rules[0].matches[0].queryParams[0].value"],
            None,
        ),
        ("{matches: [{method: PURGE}], BACKEND}", &["spec.rules[0].matches[0].method"], None),
        (
            "{matches: [{path: {value: /}}, {path: {type: RegularExpression, value: '/[a-z]+'}}], BACKEND}",
            &[],
            Some(1),
        ),
        // What a rule with a regular expression that is none means, cannot be told; the others hold.
        (
            "{matches: [{path: {type: RegularExpression, value: '/('}}], BACKEND}, {BACKEND}",
            &["spec.rules[0].matches[0].path.value"],
            Some(1),
        ),
        (
            "{matches: [{headers: [{name: a, type: RegularExpression, value: 'a)|(?:b'}]}], BACKEND}",
            &["spec.rules[0].matches[0].headers[0].value"],
            Some(0),
        ),
        (
            "{matches: [{queryParams: [{name: a, type: RegularExpression, value: '(a{1000}){1000}'}]}], BACKEND}",
            &["spec.rules[0].matches[0].queryParams[0].value"],
            Some(0),
        ),
        ("{retry: {codes: [400, 503, 599], attempts: 2, backoff: 100ms}, BACKEND}", &[], Some(1)),
        ("{retry: {codes: [399]}, BACKEND}", &["spec.rules[0].retry.codes[0]"], None),
        ("{retry: {codes: [503, 600]}, BACKEND}", &["spec.rules[0].retry.codes[1]"], None),
        ("{retry: {codes: [503, 503]}, BACKEND}", &["spec.rules[0].retry.codes[1]"], None),
        ("{retry: {attempts: -1}, BACKEND}", &["spec.rules[0].retry.attempts"], None),
        ("{retry: {attempts: 100}, BACKEND}", &[], Some(1)),
        ("{retry: {attempts: 101}, BACKEND}", &["spec.rules[0].retry.attempts"], None),
        ("{retry: {backoff: 100}, BACKEND}", &["spec.rules[0].retry.backoff"], None),
        // Accepted, with a word that it comes to nothing.
        (
            "{retry: {backoff: 1s}, timeouts: {request: 1s}, BACKEND}",
            &["spec.rules[0].retry.backoff"],
            Some(1),
        ),
        ("{retry: {attempts: 0, backoff: 1s}, timeouts: {request: 1s}, BACKEND}", &[], Some(1)),
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
        ("{matches: [{path: {value: '/a b'}}], BACKEND}", &["spec.rules[0].matches[0].path.value"], None),
        ("{matches: [{path: {value: /a%2}}], BACKEND}", &["spec.rules[0].matches[0].path.value"], None),
        ("{matches: [{path: {value: '/a?b'}}], BACKEND}", &["spec.rules[0].matches[0].path.value"], None),
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
