//! TelemetryPolicies and the Mesh's access log, from YAML to what proxies are told.

use super::*;
use crate::finding::Severity;

fn policy(name: &str, target: &str, access_log: &str) -> String {
    format!(
        "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: TelemetryPolicy\nmetadata: {{name: {name}}}\nspec: {{targetRefs: [{target}], \
         accessLog: {access_log}}}\n"
    )
}

const AT_ORDERS: &str = "{group: '', kind: Service, name: orders}";
const AT_HTTP: &str = "{group: '', kind: Service, name: orders, sectionName: http}";
const AT_ROUTE: &str = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}";
const AT_RULE: &str = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: a}";

fn told(text: &str) -> Vec<String> {
    let found = index(text).1.into_iter();
    found.map(|one| format!("{}: {}", one.field.unwrap_or_default(), one.message)).collect()
}

fn format(format: &str) -> v1::AccessLog {
    v1::AccessLog { format: format.to_owned(), ..Default::default() }
}

#[test]
fn what_the_mesh_logs_reaches_every_proxy() {
    let mesh = |spec: &str| {
        format!(
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: mesh}}\nspec: {{{spec}}}\n"
        )
    };
    let of = |text: &str| get::<v1::Mesh>(&model(text), "mesh").unwrap().access_log;
    assert_eq!(of(&mesh("mtls: strict")), None);
    let all = "accessLog: {format: '{status}', statuses: ['404', 5xx], minDuration: 250ms, samplePercent: 0.5, errors: Filtered}";
    assert_eq!(told(&mesh(all)), [""; 0]);
    let expected = v1::AccessLog {
        format: "{status}".to_owned(),
        statuses: vec![v1::StatusRange { first: 404, last: 404 }, v1::StatusRange { first: 500, last: 599 }],
        min_duration: Some(prost_types::Duration { seconds: 0, nanos: 250_000_000 }),
        sampled: Some(5000),
        filters_errors: Some(true),
    };
    assert_eq!(of(&mesh(all)), Some(expected));
}

#[test]
fn a_policy_on_a_service_is_its_clients_and_its_workloads() {
    let text = format!(
        "{ORDERS}{}{}",
        policy("all", AT_ORDERS, "{format: ecs, errors: Always}"),
        policy("one", AT_HTTP, "{format: none}")
    );
    assert_eq!(told(&text), [""; 0]);
    let mut index = index(&text).0;
    register(&mut index, registration("w", "10.0.0.1", &[("orders", 80, 8080), ("orders", 81, 8081)]));
    let model = Model::build(&index, Settings::default());
    let always = |said| v1::AccessLog { filters_errors: Some(false), ..said };
    let expected = [always(format("none")), always(format("ecs"))].map(Some);
    let service: v1::Service = get(&model, "default/orders").unwrap();
    let outbound = service.ports.into_iter().map(|port| port.traffic.unwrap().requests.unwrap().access_log);
    assert_eq!(outbound.collect::<Vec<_>>(), expected);
    let inbound: v1::InboundPolicy = get(&model, "default/w").unwrap();
    assert_eq!(inbound.ports.into_iter().map(|port| port.access_log).collect::<Vec<_>>(), expected);
}

#[test]
fn a_policy_on_a_route_is_its_rules_field_by_field() {
    let rules = "[{name: a, backendRefs: [{name: orders, port: 80}]}, {name: b, backendRefs: [{name: orders, port: 80}]}]";
    let text = format!(
        "{ORDERS}{}{}{}",
        route("default", "r", "", rules),
        policy("all", AT_ROUTE, "{format: ecs, statuses: ['404'], samplePercent: 100}"),
        policy("one", AT_RULE, "{format: json, samplePercent: 0}")
    );
    assert_eq!(told(&text), [""; 0]);
    let routes = routes(&model(&text), "default/default/orders");
    let of = |rule: usize| routes.http[0].rules[rule].requests.clone().unwrap().access_log.unwrap();
    assert_eq!((&*of(0).format, of(0).sampled, of(0).statuses.len()), ("json", Some(0), 1));
    assert_eq!((&*of(1).format, of(1).sampled, of(1).statuses.len()), ("ecs", Some(1_000_000), 1));
}

#[test]
fn what_is_bad_is_told_by_field() {
    for (spec, expected, is_refused) in [
        ("{format: xml}", "spec.accessLog.format: `xml` is none of json", true),
        (
            "{format: '{statsu}'}",
            "spec.accessLog.format: `{statsu}` is no field; did you mean `{status}`",
            true,
        ),
        ("{statuses: ['200', '600']}", "spec.accessLog.statuses[1]: `600` is no status", true),
        ("{minDuration: 1}", "spec.accessLog.minDuration", true),
        ("{samplePercent: 101}", "spec.accessLog.samplePercent: 101 is out of bounds", true),
        ("{samplePercent: 0.00001}", "is so little that it is never", true),
        ("{errors: Never}", "spec.accessLog.errors", true),
        ("{}", "spec: the policy says nothing", false),
        ("{formt: json}", "formt", false),
    ] {
        let text = format!("{ORDERS}{}", policy("p", AT_ORDERS, spec));
        let found = index(&text).1;
        let said = told(&text);
        assert!(said.iter().any(|one| one.contains(expected)), "{spec}: {said:#?}");
        let errors = found.iter().filter(|one| one.severity == Severity::Error).count();
        assert_eq!(errors > 0, is_refused, "{spec}: {said:#?}");
        let service: v1::Service = get(&model(&text), "default/orders").unwrap();
        assert!(!is_refused || service.ports[0].traffic.is_none(), "{spec}");
    }
}
