//! TelemetryPolicies and the Mesh's access log, from YAML to what proxies are told: of the log, and of traces.

use super::*;
use crate::finding::Severity;

fn telemetry(name: &str, target: &str, says: &str) -> String {
    format!(
        "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: TelemetryPolicy\nmetadata: {{name: {name}}}\nspec: {{targetRefs: [{target}], \
         {says}}}\n"
    )
}

fn policy(name: &str, target: &str, access_log: &str) -> String {
    telemetry(name, target, &format!("accessLog: {access_log}"))
}

fn sampled(name: &str, target: &str, sampling: &str) -> String {
    telemetry(name, target, &format!("tracing: {{sampling: {sampling}}}"))
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
        statuses: Some(v1::LoggedStatuses {
            ranges: vec![
                v1::StatusRange { first: 404, last: 404 },
                v1::StatusRange { first: 500, last: 599 },
            ],
            all: false,
        }),
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
    let of = |rule: usize| (of(rule).format, of(rule).sampled, of(rule).statuses.unwrap().ranges.len());
    assert_eq!(of(0), ("json".to_owned(), Some(0), 1));
    assert_eq!(of(1), ("ecs".to_owned(), Some(1_000_000), 1));
}

#[test]
fn an_empty_list_of_statuses_is_said_and_is_not_all() {
    let said = |statuses: &str| {
        let text = format!(
            "{ORDERS}{}{}",
            policy("all", AT_ORDERS, "{statuses: ['404']}"),
            policy("one", AT_HTTP, &format!("{{statuses: {statuses}}}"))
        );
        let told = told(&text);
        let service: v1::Service = get(&model(&text), "default/orders").unwrap();
        let requests = service.ports[0].traffic.clone().unwrap().requests.unwrap();
        (requests.access_log.unwrap().statuses.unwrap(), told)
    };
    let (none, told) = said("[]");
    assert_eq!((none, told.is_empty()), (v1::LoggedStatuses::default(), true), "{told:?}");
    let (all, told) = said("[all]");
    assert_eq!((all.all, all.ranges.len(), told.is_empty()), (true, 0, true), "{told:?}");
    let (general, _) = said("null");
    assert_eq!((general.all, general.ranges.len()), (false, 1), "what is not said the Service's says");
}

#[test]
fn sampling_on_a_service_is_its_clients_and_its_workloads() {
    let text = format!(
        "{ORDERS}{}{}",
        sampled("all", AT_ORDERS, "{percent: 5, parentBased: false}"),
        sampled("one", AT_HTTP, "{percent: 0}")
    );
    assert_eq!(told(&text), [""; 0]);
    let mut index = index(&text).0;
    register(&mut index, registration("w", "10.0.0.1", &[("orders", 80, 8080), ("orders", 81, 8081)]));
    let model = Model::build(&index, Settings::default());
    let of = |millionths| Some(v1::Sampling { millionths: Some(millionths), ignores_parent: Some(true) });
    let expected = [of(0), of(50_000)];
    let service: v1::Service = get(&model, "default/orders").unwrap();
    let requests = service.ports.into_iter().map(|port| port.traffic.unwrap().requests.unwrap());
    let requests: Vec<_> = requests.collect();
    assert_eq!(requests.iter().map(|said| said.sampling).collect::<Vec<_>>(), expected);
    assert!(requests.iter().all(|said| said.access_log.is_none()), "nothing is said of it");
    let inbound: v1::InboundPolicy = get(&model, "default/w").unwrap();
    assert_eq!(inbound.ports.iter().map(|port| port.sampling).collect::<Vec<_>>(), expected);
    assert!(inbound.ports.iter().all(|port| port.access_log.is_none()));
}

#[test]
fn sampling_on_a_route_is_its_rules_field_by_field() {
    let rules = "[{name: a, backendRefs: [{name: orders, port: 80}]}, {name: b, backendRefs: [{name: orders, port: 80}]}]";
    let text = format!(
        "{ORDERS}{}{}{}",
        route("default", "r", "", rules),
        sampled("all", AT_ROUTE, "{percent: 100, parentBased: true}"),
        sampled("one", AT_RULE, "{percent: 0}")
    );
    assert_eq!(told(&text), [""; 0]);
    let routes = routes(&model(&text), "default/default/orders");
    let of = |rule: usize| routes.http[0].rules[rule].requests.clone().unwrap().sampling;
    let sampling = |millionths| Some(v1::Sampling { millionths, ignores_parent: Some(false) });
    assert_eq!((of(0), of(1)), (sampling(Some(0)), sampling(Some(1_000_000))));
}

#[test]
fn sampling_that_a_rule_overrides_is_told() {
    let rules = "[{name: a, backendRefs: [{name: orders, port: 80}]}]";
    let both = "{percent: 1, parentBased: true}";
    let text = format!(
        "{ORDERS}{}{}{}",
        route("default", "r", "", rules),
        sampled("all", AT_ROUTE, both),
        sampled("one", AT_RULE, both)
    );
    let said = told(&text);
    let expected =
        "`tracing.sampling.parentBased`, `tracing.sampling.percent` at rule 0 by TelemetryPolicy default/one";
    assert!(said.len() == 1 && said[0].contains(expected), "{said:#?}");
}

fn of_namespace(namespace: &str, name: &str, created: &str, targets: &str, says: &str) -> String {
    format!(
        "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: TelemetryPolicy\nmetadata: {{name: {name}, namespace: {namespace}{created}}}\nspec: \
         {{{targets}{says}}}\n"
    )
}

const AT_WEB: &str = "targetRefs: [{group: policy.tulle.dev, kind: Workload, name: web}], ";

#[test]
fn a_policy_on_a_workload_is_its_proxys_own_known_or_not() {
    let text = [
        ORDERS.to_owned(),
        of_namespace("default", "all", "", "", "accessLog: {format: ecs}, tracing: {sampling: {percent: 5}}"),
        of_namespace(
            "default",
            "web",
            "",
            AT_WEB,
            "accessLog: {samplePercent: 0}, tracing: {sampling: {percent: 100}}",
        ),
        of_namespace("shop", "web", "", AT_WEB, "accessLog: {format: apache}"),
        policy("orders", AT_ORDERS, "{format: none}"),
    ];
    let text = text.concat();
    assert_eq!(told(&text), [""; 0]);
    let mut index = index(&text).0;
    for workload in ["w", "web"] {
        register(&mut index, registration(workload, "10.0.0.1", &[("orders", 80, 8080)]));
    }
    let known = Model::build(&index, Settings::default());
    let of = |model: &Model, name: &str| {
        let said: v1::InboundPolicy = get(model, name).unwrap();
        let log = said.access_log.unwrap_or_default();
        (log.format, log.sampled, said.sampling.and_then(|said| said.millionths))
    };
    for model in [model(&text), known.clone()] {
        assert_eq!(of(&model, "default/web"), ("ecs".to_owned(), Some(0), Some(1_000_000)));
        assert_eq!(of(&model, "default/w"), ("ecs".to_owned(), None, Some(50_000)));
        assert_eq!(of(&model, "shop/web"), ("apache".to_owned(), None, None));
        assert_eq!(of(&model, "shop/w"), (String::new(), None, None));
    }
    // The Service's is of its port, and not of all.
    let port = get::<v1::InboundPolicy>(&known, "default/web").unwrap().ports.remove(0);
    assert_eq!(port.access_log.unwrap().format, "none");
    let service: v1::Service = get(&known, "default/orders").unwrap();
    assert!(
        service.ports.iter().all(|port| port
            .traffic
            .as_ref()
            .unwrap()
            .requests
            .as_ref()
            .unwrap()
            .sampling
            .is_none())
    );
}

#[test]
fn of_two_policies_on_a_workload_or_a_namespace_the_older_holds() {
    let at = |year: &str| format!(", creationTimestamp: '{year}-01-01T00:00:00Z'");
    for targets in ["", AT_WEB] {
        let text = of_namespace("default", "young", &at("2025"), targets, "accessLog: {format: ecs}")
            + &of_namespace("default", "old", &at("2024"), targets, "accessLog: {format: apache}");
        let said: v1::InboundPolicy = get(&model(&text), "default/web").unwrap();
        assert_eq!(said.access_log.unwrap().format, "apache", "{targets}");
        let found = told(&text);
        let object = if targets.is_empty() { "Namespace default" } else { "Workload default/web" };
        let expected =
            format!("TelemetryPolicy default/old is attached to {object} too and holds, being older");
        assert!(found.len() == 1 && found[0].contains(&expected), "{found:#?}");
    }
}

#[test]
fn what_cannot_be_a_workload_is_told() {
    for (target, expected) in [
        ("{group: apps, kind: Workload, name: web}", "spec.targetRefs[0].group: `apps` has no kind Workload"),
        ("{kind: Workload, name: web}", "spec.targetRefs[0].group: `` has no kind Workload"),
        ("{group: policy.tulle.dev, kind: Workload, name: W_b}", "spec.targetRefs[0].name: `W_b` cannot be"),
        (
            "{group: policy.tulle.dev, kind: Workload, name: web, sectionName: http}",
            "spec.targetRefs[0].sectionName: a workload has neither ports nor rules",
        ),
        (
            "{group: policy.tulle.dev, kind: Workload, name: web, namespace: shop}",
            "spec.targetRefs[0].namespace",
        ),
        ("{kind: Namespace, name: shop}", "spec.targetRefs[0].kind: the policy cannot be attached to"),
    ] {
        let text = of_namespace(
            "default",
            "p",
            "",
            &format!("targetRefs: [{target}], "),
            "accessLog: {format: ecs}",
        );
        let found = told(&text);
        assert!(found.iter().any(|one| one.contains(expected)), "{target}: {found:#?}");
        let said: v1::InboundPolicy = get(&model(&text), "default/web").unwrap();
        assert_eq!(said.access_log, None, "{target}");
    }
    // Nobody else's policies are about workloads.
    let of_traffic = AT_WEB.to_owned() + "timeouts: {request: 3s}";
    let text = of_namespace("default", "p", "", "", &of_traffic).replace("TelemetryPolicy", "TrafficPolicy");
    assert!(told(&text).iter().any(|one| one.contains("cannot be attached to a `Workload`")));
}

#[test]
fn what_is_bad_of_sampling_is_told_by_field() {
    for (says, expected, is_refused) in [
        ("tracing: {sampling: {percent: 101}}", "spec.tracing.sampling.percent: 101 is out of bounds", true),
        ("tracing: {sampling: {percent: -1}}", "spec.tracing.sampling.percent: -1 is out of bounds", true),
        ("tracing: {sampling: {percent: 0.00001}}", "is so little that it is never", true),
        ("tracing: {sampling: {percent: 5%}}", "spec.tracing.sampling.percent", true),
        ("tracing: {sampling: {parentBased: maybe}}", "spec.tracing.sampling.parentBased", true),
        ("tracing: {sampling: {}}", "spec: the policy says nothing", false),
        ("tracing: {}", "spec: the policy says nothing", false),
        ("tracing: {sampling: {ratio: 0.5, percent: 5}}", "ratio", false),
        ("tracing: {collector: 'http://c:4317', sampling: {percent: 5}}", "collector", false),
    ] {
        let text = format!("{ORDERS}{}", telemetry("p", AT_ORDERS, says));
        let (said, found) = (told(&text), index(&text).1);
        assert!(said.iter().any(|one| one.contains(expected)), "{says}: {said:#?}");
        let errors = found.iter().filter(|one| one.severity == Severity::Error).count();
        assert_eq!(errors > 0, is_refused, "{says}: {said:#?}");
        let nothing = said.iter().any(|one| one.contains("says nothing"));
        assert!(!(is_refused && nothing), "what is refused is said: {said:#?}");
        let service: v1::Service = get(&model(&text), "default/orders").unwrap();
        assert!(!is_refused || service.ports[0].traffic.is_none(), "{says}");
    }
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
        ("{minDuration: soon}", "spec.accessLog.minDuration: `soon` is not a duration", true),
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
        let nothing = said.iter().any(|one| one.contains("says nothing"));
        assert!(!(is_refused && nothing), "what is refused is said: {said:#?}");
        let service: v1::Service = get(&model(&text), "default/orders").unwrap();
        assert!(!is_refused || service.ports[0].traffic.is_none(), "{spec}");
    }
}
