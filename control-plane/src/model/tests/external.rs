//! ExternalAuthorizations, from YAML to what the workloads' proxies are told.

use super::*;

const OPA: &str = "---
apiVersion: v1
kind: Service
metadata: {name: opa}
spec:
  ports: [{name: grpc, port: 9191, appProtocol: grpc}, {name: http, port: 8181}]
";

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: ExternalAuthorization\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{{spec}}}\n"
    )
}

const AT_ORDERS: &str = "targetRefs: [{kind: Service, name: orders}]";
const ASKS: &str = "service: {name: opa, port: 9191}";

/// `default/o` serves both ports of Orders at 8080 and 8081, and `default/opa` those of OPA at 19191 and 18181.
fn served(text: &str) -> (Index, Vec<String>) {
    let (mut index, found) = index(&format!("{ORDERS}{OPA}{text}"));
    register(&mut index, registration("o", "10.0.0.1", &[("orders", 80, 8080), ("orders", 81, 8081)]));
    register(&mut index, registration("opa", "10.0.0.2", &[("opa", 9191, 19191), ("opa", 8181, 18181)]));
    let told = found.into_iter().map(|one| format!("{}: {}", one.field.unwrap_or_default(), one.message));
    (index, told.collect())
}

fn of(index: &Index, workload: &str) -> Vec<v1::ExternalAuthorization> {
    let model = Model::build(index, Settings::default());
    get::<v1::InboundPolicy>(&model, &format!("default/{workload}")).unwrap().external
}

/// Names, ports, and ports left out.
fn places(told: &[v1::ExternalAuthorization]) -> Vec<(&str, &[u32], &[u32])> {
    told.iter().map(|one| (one.name.as_str(), &one.ports[..], &one.not_ports[..])).collect()
}

#[test]
fn a_policy_speaks_of_the_ports_of_its_targets_and_says_what_is_written() {
    let spec = format!("{AT_ORDERS}, {ASKS}, failureMode: Allow, timeout: 300ms");
    let (index, found) = served(&policy("default", "ask", &spec));
    assert_eq!(found, [""; 0]);
    let told = of(&index, "o");
    assert_eq!(places(&told), [("default/ask", &[8080, 8081][..], &[][..])]);
    let one = &told[0];
    let service = v1::ObjectName { namespace: "default".to_owned(), name: "opa".to_owned() };
    assert_eq!((&one.service, one.service_port), (&Some(service), 9191));
    assert!(one.failure_allows && !one.dry_run && one.invalid.is_empty() && one.routes.is_empty());
    assert_eq!(of(&index, "opa"), []);
    let at_http = "targetRefs: [{kind: Service, name: orders, sectionName: http}]";
    let (index, _) = served(&policy("default", "ask", &format!("{at_http}, {ASKS}")));
    assert_eq!(places(&of(&index, "o")), [("default/ask", &[8080][..], &[][..])]);
}

#[test]
fn nobody_is_asked_about_the_port_of_an_authorizer_whoever_it_is() {
    // Of all workloads of the namespace: at the authorizer, of all ports but that one.
    let everywhere = policy("default", "all", ASKS);
    let (index, found) = served(&everywhere);
    assert_eq!(found, [""; 0]);
    assert_eq!(places(&of(&index, "o")), [("default/all", &[][..], &[][..])]);
    assert_eq!(places(&of(&index, "opa")), [("default/all", &[][..], &[19191][..])]);
    // By another policy, that names the authorizer's Service itself.
    let other = policy(
        "default",
        "other",
        "targetRefs: [{kind: Service, name: opa}], service: {name: orders, port: 80}",
    );
    let (index, _) = served(&format!("{everywhere}{other}"));
    assert_eq!(
        places(&of(&index, "opa")),
        [("default/all", &[][..], &[19191][..]), ("default/other", &[18181][..], &[][..])]
    );
    assert_eq!(places(&of(&index, "o")), [("default/all", &[][..], &[8080][..])]);
    // One that may not be asked takes nothing out.
    let stranger = policy("else", "far", "service: {name: orders, namespace: default, port: 80}");
    let (index, found) = served(&format!("{everywhere}{stranger}"));
    assert_eq!(places(&of(&index, "o")), [("default/all", &[][..], &[][..])]);
    assert!(found[0].starts_with("spec.service.namespace: "), "{found:?}");
    // And its own Service's other port is as any.
    let own = policy("default", "own", &format!("targetRefs: [{{kind: Service, name: opa}}], {ASKS}"));
    let (index, found) = served(&own);
    assert_eq!(places(&of(&index, "opa")), [("default/own", &[18181][..], &[][..])]);
    assert!(found[0].starts_with("spec.targetRefs[0]: port 9191"), "{found:?}");
}

#[test]
fn who_cannot_be_asked_is_told_and_what_becomes_of_requests() {
    for (service, field) in [
        ("{name: opa, port: 1}", "port"),
        ("{name: nobody, port: 1}", "name"),
        ("{name: opa, namespace: auth, port: 9191}", "namespace"),
    ] {
        let (index, found) = served(&policy("default", "ask", &format!("{AT_ORDERS}, service: {service}")));
        let [told] = &found[..] else { panic!("{found:?}") };
        assert!(told.starts_with(&format!("spec.service.{field}: ")), "{told}");
        assert!(told.contains("503 `authorizer_unavailable`"), "{told}");
        assert!(!of(&index, "o")[0].invalid.is_empty());
        let statuses = access_statuses(&index);
        let condition = &statuses[0].ancestors[0].conditions[1];
        assert_eq!(
            (condition.condition, condition.status, condition.reason),
            ("Programmed", "False", "Invalid")
        );
    }
    let grant = "---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: a, namespace: auth}
spec:
  from: [{group: policy.tulle.dev, kind: ExternalAuthorization, namespace: default}]
  to: [{group: '', kind: Service}]
---
apiVersion: v1
kind: Service
metadata: {name: opa, namespace: auth}
spec: {ports: [{name: grpc, port: 9191}]}
";
    let asks = format!("{AT_ORDERS}, service: {{name: opa, namespace: auth, port: 9191}}");
    let (index, found) = served(&format!("{grant}{}", policy("default", "ask", &asks)));
    assert_eq!(found, [""; 0]);
    assert_eq!(of(&index, "o")[0].invalid, "");
    assert_eq!(access_statuses(&index)[0].ancestors[0].conditions.len(), 1);
}

#[test]
fn of_a_route_its_requests_are_asked_about() {
    let rules = format!(
        "[{{name: closed, matches: [{{path: {{type: PathPrefix, value: /admin}}}}], {}}}]",
        &TO_ORDERS[2..TO_ORDERS.len() - 2]
    );
    let target = "targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}]";
    let text = format!(
        "{}{}",
        route("default", "r", ", port: 80", &rules),
        policy("default", "ask", &format!("{target}, {ASKS}"))
    );
    let (index, _) = served(&text);
    let told = of(&index, "o");
    assert_eq!(places(&told), [("default/ask", &[8080][..], &[][..])]);
    let path = told[0].routes[0].matches[0].path.clone();
    assert_eq!(path, Some(v1::http_match::Path::Prefix("/admin".to_owned())));
}

#[test]
fn one_that_cannot_be_read_refuses_what_it_would_have_asked_about() {
    let broken = |rest: &str| served(&policy("default", "ask", &format!("{AT_ORDERS}, service: 7{rest}"))).0;
    let told = of(&broken(""), "o");
    assert_eq!(places(&told), [("default/ask", &[8080, 8081][..], &[][..])]);
    assert!(!told[0].invalid.is_empty() && !told[0].failure_allows);
    for rest in [", mode: DryRun", ", failureMode: Allow"] {
        assert_eq!(of(&broken(rest), "o"), [], "{rest}");
    }
}

#[test]
fn a_proxy_that_cannot_ask_anybody_lets_nobody_in_where_somebody_is_asked() {
    let of = |spec: &str, workload: &str| {
        let (index, _) = served(&policy("default", "ask", spec));
        let model = Model::build(&index, Settings::default());
        let told = get::<v1::InboundPolicy>(&model, &format!("default/{workload}")).unwrap();
        let rules = told.rules.into_iter().map(|one| (one.name, one.ports, one.identities.len()));
        (rules.collect::<Vec<_>>(), told.policies.len())
    };
    let closed = |ports: &[u32]| vec![("default/ask/external-authorization".to_owned(), ports.to_vec(), 0)];
    for rest in ["", ", failureMode: Allow"] {
        assert_eq!(of(&format!("{AT_ORDERS}, {ASKS}{rest}"), "o"), (closed(&[8080, 8081]), 1), "{rest}");
    }
    assert_eq!(of(&format!("{AT_ORDERS}, {ASKS}, mode: DryRun"), "o"), (vec![], 0));
    // The authorizer's own port too: rules cannot leave one out.
    assert_eq!(of(ASKS, "opa"), (closed(&[]), 1));
}

#[test]
fn what_comes_and_goes_reaches_every_workload_that_it_is_about() {
    let (mut index, _) = served("");
    let mut model = Model::build(&index, Settings::default());
    let policies = [
        policy("default", "all", ASKS),
        policy("default", "all", "service: {name: orders, port: 81}"),
        policy("default", "all", &format!("{AT_ORDERS}, {ASKS}")),
    ];
    let others = OPA.replace("port: 9191", "port: 9192");
    for text in policies.iter().map(String::as_str).chain([others.as_str(), OPA]) {
        index.change(read_text(text).changes);
        let dirty = index.take_dirty();
        model = model.next(&index, &dirty);
        assert!(model == Model::build(&index, Settings::default()), "{text}");
    }
    index.delete(&ObjectKey { kind: Kind::ExternalAuthorization, name: name("default/all") });
    let dirty = index.take_dirty();
    assert!(model.next(&index, &dirty) == Model::build(&index, Settings::default()));
}
