//! AuthorizationPolicies, from YAML to what the workloads' proxies are told, old and new.

use serde_json::{Value, json};

use super::*;
use crate::finding::{Notes, Severity};

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

const AT_ORDERS: &str = "targetRefs: [{kind: Service, name: orders}]";
const WEB: &str = "from: [{identities: [default/web]}]";
const WEB_ID: &str = "spiffe://cluster.local/ns/default/sa/web";

/// `default/o` serves both ports of Orders at 8080 and 8081, and one of another Service at 9090.
fn served(text: &str) -> (Model, Vec<String>) {
    let (mut index, found) = index(&format!("{ORDERS}{text}"));
    register(
        &mut index,
        registration("o", "10.0.0.1", &[("orders", 80, 8080), ("orders", 81, 8081), ("else", 80, 9090)]),
    );
    let told = found.into_iter().map(|one| format!("{}: {}", one.field.unwrap_or_default(), one.message));
    (Model::build(&index, Settings::default()), told.collect())
}

fn of(text: &str) -> v1::InboundPolicy {
    get(&served(text).0, "default/o").unwrap()
}

/// Names, ports and how many identities.
fn rules(policy: &v1::InboundPolicy) -> Vec<(&str, &[u32], usize)> {
    policy.rules.iter().map(|one| (one.name.as_str(), &one.ports[..], one.identities.len())).collect()
}

/// Names, actions and ports.
fn policies(policy: &v1::InboundPolicy) -> Vec<(&str, v1::AccessAction, &[u32])> {
    policy.policies.iter().map(|one| (one.name.as_str(), one.action(), &one.ports[..])).collect()
}

const ALLOW: v1::AccessAction = v1::AccessAction::Allow;
const DENY: v1::AccessAction = v1::AccessAction::Deny;
const AUDIT: v1::AccessAction = v1::AccessAction::Audit;

#[test]
fn what_rules_can_say_is_said_by_rules_alone() {
    let told = of(&policy("default", "p", &format!("{AT_ORDERS}, rules: [{{{WEB}, toPorts: [81]}}]")));
    assert_eq!((rules(&told), policies(&told)), (vec![("default/p/0", &[8081][..], 1)], vec![]));
    assert_eq!(told.rules[0].identities, [WEB_ID]);
    let told = of(&policy("default", "p", &format!("rules: [{{{WEB}}}]")));
    assert_eq!((rules(&told), policies(&told)), (vec![("default/p/0", &[][..], 1)], vec![]), "every port");
    let at_http = "targetRefs: [{kind: Service, name: orders, sectionName: http}]";
    let told = of(&policy("default", "p", at_http));
    assert_eq!((rules(&told), policies(&told)), (vec![("default/p/none", &[8080][..], 0)], vec![]));
}

#[test]
fn what_rules_cannot_say_allows_nobody_by_them() {
    let spec = format!(
        "{AT_ORDERS}, rules: [{{name: get, {WEB}, to: [{{methods: [GET]}}]}}, {{{WEB}, toPorts: [81]}}]"
    );
    let told = of(&policy("default", "p", &spec));
    assert_eq!(policies(&told), [("default/p", ALLOW, &[8080, 8081][..])]);
    let [get, plain] = &told.policies[0].rules[..] else { panic!("{told:?}") };
    assert_eq!(
        (get.name.as_str(), &get.to[0].methods[..], get.to[0].ports.len()),
        ("get", &["GET".to_owned()][..], 0)
    );
    assert_eq!((plain.name.as_str(), &plain.to[0].ports[..]), ("1", &[8081][..]));
    assert_eq!(rules(&told), [("default/p/1", &[8081][..], 1), ("default/p/get", &[8080, 8081][..], 0)]);
    // Nor by prefixes, by `not…`, or by claims.
    for rule in [
        "{from: [{identities: ['default/*']}]}",
        "{from: [{identities: ['*']}]}",
        "{from: [{identities: [default/web], networks: [10.0.0.0/8]}]}",
        "{from: [{notIdentities: [default/web]}]}",
        "{from: [{identities: [default/web]}], when: [{claim: sub}]}",
    ] {
        let told = of(&policy("default", "p", &format!("{AT_ORDERS}, rules: [{rule}]")));
        assert_eq!(rules(&told), [("default/p/0", &[8080, 8081][..], 0)], "{rule}");
        assert_eq!(told.policies[0].rules.len(), 1, "{rule}");
    }
}

#[test]
fn a_policy_on_a_service_and_on_a_route_allows_by_rules_at_the_service_alone() {
    let to_admin = "[{matches: [{path: {value: /x}}], backendRefs: [{name: orders, port: 81}]}]";
    let spec = format!(
        "targetRefs: [{{kind: Service, name: orders, sectionName: http}}, {{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}}], rules: [{{{WEB}}}]"
    );
    let told =
        of(&format!("{}{}", route("default", "r", ", port: 81", to_admin), policy("default", "p", &spec)));
    assert_eq!(rules(&told), [("default/p/0", &[8080][..], 1), ("default/p/0", &[8081][..], 0)]);
    assert_eq!(policies(&told), [("default/p", ALLOW, &[8080][..]), ("default/p", ALLOW, &[8081][..])]);
}

#[test]
fn where_something_is_denied_older_proxies_let_nobody_in() {
    let allow = policy("default", "a", &format!("{AT_ORDERS}, rules: [{{{WEB}}}]"));
    let deny = |rule: &str| policy("default", "d", &format!("{AT_ORDERS}, action: DENY, rules: [{rule}]"));
    let told = of(&format!("{allow}{}", deny("{toPorts: [81], to: [{paths: ['/admin/*']}]}")));
    assert_eq!(policies(&told), [("default/a", ALLOW, &[8080, 8081][..]), ("default/d", DENY, &[8081][..])]);
    assert_eq!(rules(&told), [("default/a/0", &[8080][..], 1), ("default/d/0", &[8081][..], 0)]);
    let told = of(&format!("{allow}{}", deny("{}")));
    assert_eq!(rules(&told), [("default/d/0", &[8080, 8081][..], 0)]);
    // A rule of every port is one of those that are served and not denied, and all others are closed.
    let everywhere = policy("default", "a", &format!("rules: [{{{WEB}}}]"));
    let told = of(&format!("{everywhere}{}", deny("{toPorts: [81]}")));
    assert_eq!(rules(&told), [("default/a/0", &[8080, 9090][..], 1), ("default/d/0", &[][..], 0)]);
    assert_eq!(policies(&told), [("default/a", ALLOW, &[][..]), ("default/d", DENY, &[8081][..])]);
}

#[test]
fn what_only_tells_closes_nothing() {
    for says in ["action: AUDIT", "mode: DryRun", "action: DENY, mode: DryRun"] {
        let told = of(&policy("default", "p", &format!("{AT_ORDERS}, {says}, rules: [{{{WEB}}}]")));
        assert_eq!(rules(&told), [], "{says}");
        let [one] = &told.policies[..] else { panic!("{told:?}") };
        assert_eq!((one.dry_run, one.action() == AUDIT), (says.contains("DryRun"), says.contains("AUDIT")));
    }
}

#[test]
fn ports_are_the_services_or_the_workloads_own() {
    let to = |target: &str| {
        let rule = "{to: [{ports: [80, 8080], notPorts: [81]}, {ports: [82]}]}";
        of(&policy("default", "p", &format!("{target}action: DENY, rules: [{rule}]")))
    };
    let service = to(&format!("{AT_ORDERS}, "));
    let [operation] = &service.policies[0].rules[0].to[..] else { panic!("{service:?}") };
    assert_eq!((&operation.ports[..], &operation.not_ports[..]), (&[8080][..], &[8081][..]));
    let workload = to("targetRefs: [{group: policy.tulle.dev, kind: Workload, name: o}], ");
    let ports: Vec<&[u32]> = workload.policies[0].rules[0].to.iter().map(|one| &one.ports[..]).collect();
    assert_eq!((ports, workload.policies[0].ports.len()), (vec![&[80, 8080][..], &[82][..]], 0));
    // What excepts a port that is not served excepts nothing.
    let rule = "{to: [{notPorts: [82]}, {methods: [GET]}]}";
    let told = of(&policy("default", "p", &format!("{AT_ORDERS}, action: DENY, rules: [{rule}]")));
    assert_eq!(told.policies[0].rules[0].to, []);
    // What no port of the workload is describes nothing, rather than everything.
    let spec = format!("{AT_ORDERS}, rules: [{{{WEB}, to: [{{ports: [82]}}]}}]");
    let (model, told) = served(&policy("default", "p", &spec));
    assert_eq!(told, ["spec.rules[0].to[0].ports[0]: no targeted Service has a port 82"]);
    let none: v1::InboundPolicy = get(&model, "default/o").unwrap();
    assert_eq!(
        (policies(&none), none.policies[0].rules.len()),
        (vec![("default/p", ALLOW, &[8080, 8081][..])], 0)
    );
    assert_eq!(rules(&none), [("default/p/0", &[8080, 8081][..], 0)]);
}

#[test]
fn a_policy_without_targets_is_for_its_namespace_and_whoever_comes_there() {
    let text = policy("default", "p", "action: DENY, rules: [{from: [{notNamespaces: [default]}]}]");
    let (model, told) = served(&text);
    assert_eq!(told, [""; 0]);
    for workload in ["default/o", "default/not-yet-known"] {
        let told: v1::InboundPolicy = get(&model, workload).unwrap();
        assert_eq!(policies(&told), [("default/p", DENY, &[][..])], "{workload}");
        assert_eq!(rules(&told), [("default/p/0", &[][..], 0)], "{workload}");
        assert_eq!(told.workload, Some(build::object_name(&name(workload))));
    }
    let other: v1::InboundPolicy = get(&model, "shop/o").unwrap();
    assert_eq!((policies(&other), rules(&other)), (vec![], vec![]));
}

/// `<namespace>/<name>` with these labels.
fn pod(namespace: &str, name: &str, labels: Value, annotations: Value) -> Object {
    let mut annotations = annotations;
    annotations["tulle.dev/status"] = json!("{}");
    let address = format!("10.1.0.{}", name.bytes().fold(1, |sum, byte| (sum + u32::from(byte)) % 200 + 1));
    let pod = json!({
        "metadata": {"namespace": namespace, "name": name, "labels": labels, "annotations": annotations},
        "spec": {"serviceAccountName": "a", "initContainers": [{"name": "tulle-proxy"}], "containers": [{"name": "app"}]},
        "status": {"phase": "Running", "podIP": address},
    });
    Object::pod(&serde_json::from_value(pod).unwrap(), &mut Notes::default()).unwrap()
}

fn cluster(text: &str, pods: impl IntoIterator<Item = Object>) -> Index {
    let mut index = Index::of_cluster();
    index.change(read_text(text).changes);
    for pod in pods {
        index.apply(pod, None);
    }
    index
}

#[test]
fn a_selector_means_the_pods_of_its_namespace_that_have_all_of_its_labels() {
    let text = policy(
        "shop",
        "p",
        "targetRefs: [{group: policy.tulle.dev, kind: Workload, selector: {matchLabels: {app: a, tier: x}}}], action: DENY, rules: [{}]",
    );
    let pods = || {
        [
            pod("shop", "both", json!({"app": "a", "tier": "x", "z": "1"}), json!({})),
            pod("shop", "one", json!({"app": "a"}), json!({})),
            pod("bank", "abroad", json!({"app": "a", "tier": "x"}), json!({})),
        ]
    };
    let mut index = cluster(&text, pods());
    index.take_dirty();
    let model = Model::build(&index, Settings::default());
    let count =
        |model: &Model, workload: &str| get::<v1::InboundPolicy>(model, workload).unwrap().policies.len();
    let counts = ["shop/both", "shop/one", "bank/abroad", "shop/unknown"].map(|one| count(&model, one));
    assert_eq!(counts, [1, 0, 0, 0]);
    // It follows the labels.
    index.apply(pod("shop", "one", json!({"app": "a", "tier": "x"}), json!({})), None);
    let dirty = index.take_dirty();
    let next = model.next(&index, &dirty);
    assert_eq!(count(&next, "shop/one"), 1);
    let warned = |index: &Index| findings(index, &Settings::default()).len();
    assert_eq!(warned(&index), 0);
    let mut folder = Index::default();
    folder.change(read_text(&text).changes);
    assert_eq!(warned(&folder), 1, "a folder has no labels");
}

const ROUTE: &str = "targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}]";

fn paths(policy: &v1::AccessPolicy) -> Vec<String> {
    let matches = policy.routes.iter().flat_map(|scope| &scope.matches);
    matches.map(|one| format!("{:?} {}", one.path.as_ref().unwrap(), one.headers.len())).collect()
}

#[test]
fn a_policy_on_a_route_is_about_what_its_rules_match() {
    let rules_of = "[{name: a, matches: [{path: {type: Exact, value: /x}}, {path: {value: /y}, headers: [{name: h, value: v}]}], \
                    backendRefs: [{name: orders, port: 80}]}, {name: b, matches: [{path: {value: /z}}], backendRefs: [{name: orders, port: 81}]}]";
    let routed = route("default", "r", ", port: 80", rules_of);
    let spec = format!("{ROUTE}, action: DENY, rules: [{{to: [{{methods: [POST]}}]}}]");
    let told = of(&format!("{routed}{}", policy("default", "p", &spec)));
    // The parent's port sees all rules, and the other what is sent there.
    let shown: Vec<_> = told.policies.iter().map(|one| (&one.ports[..], paths(one).join(", "))).collect();
    let expected = [
        (&[8080][..], r#"Exact("/x") 0, Prefix("/y") 1"#.to_owned()),
        (&[8080, 8081][..], r#"Prefix("/z") 0"#.to_owned()),
    ];
    assert_eq!(shown, expected);
    assert_eq!(rules(&told), [("default/p/0", &[8080, 8081][..], 0)]);
    let one_rule = spec.replace("name: r}", "name: r, sectionName: b}");
    let told = of(&format!("{routed}{}", policy("default", "p", &one_rule)));
    assert_eq!(told.policies.iter().flat_map(paths).collect::<Vec<_>>(), [r#"Prefix("/z") 0"#]);
    for (target, field) in [("name: s}", "name"), ("name: r, sectionName: c}", "sectionName")] {
        let (model, found) =
            served(&format!("{routed}{}", policy("default", "p", &spec.replace("name: r}", target))));
        assert!(
            found.iter().any(|one| one.starts_with(&format!("spec.targetRefs[0].{field}: "))),
            "{found:?}"
        );
        assert_eq!(get::<v1::InboundPolicy>(&model, "default/o").unwrap().policies, []);
    }
}

#[test]
fn a_rewritten_path_is_judged_as_it_arrives() {
    let rule = |path: &str| {
        format!(
            "[{{matches: [{{path: {{value: /old}}}}], filters: [{{type: URLRewrite, urlRewrite: {{path: {path}}}}}], backendRefs: [{{name: orders, port: 80}}]}}]"
        )
    };
    let cases = [
        ("{type: ReplacePrefixMatch, replacePrefixMatch: /new/}", r#"Prefix("/new") 0"#),
        ("{type: ReplacePrefixMatch, replacePrefixMatch: /}", r#"Prefix("/") 0"#),
        ("{type: ReplaceFullPath, replaceFullPath: /new}", r#"Exact("/new") 0"#),
    ];
    for (path, expected) in cases {
        let text = format!(
            "{}{}",
            route("default", "r", "", &rule(path)),
            policy("default", "p", &format!("{ROUTE}, rules: [{{{WEB}}}]"))
        );
        assert_eq!(paths(&of(&text).policies[0]), [expected]);
        let told = served(&text).1;
        assert!(matches!(&told[..], [one] if one.contains("rule 0 rewrites the path")), "{told:?}");
    }
}

#[test]
fn requests_that_cannot_be_told_on_arrival_are_never_judged_more_loosely() {
    let routed = route(
        "default",
        "r",
        "",
        "[{matches: [{path: {value: /x}, headers: [{name: X-Env, value: dev}]}], filters: [{type: RequestHeaderModifier, \
         requestHeaderModifier: {remove: [x-env]}}], backendRefs: [{name: orders, port: 80}]}]",
    );
    let judged = |says: &str| {
        let text =
            format!("{routed}{}", policy("default", "p", &format!("{ROUTE}, {says}, rules: [{{{WEB}}}]")));
        let (model, told) = served(&text);
        assert!(told.iter().any(|one| one.contains("it changes `x-env`, by which it matches")), "{told:?}");
        let policy: v1::InboundPolicy = get(&model, "default/o").unwrap();
        policy.policies.iter().map(|one| (one.action(), one.rules.len(), paths(one))).collect::<Vec<_>>()
    };
    let wider = || vec![r#"Prefix("/x") 0"#.to_owned()];
    assert_eq!(judged("action: ALLOW"), [(ALLOW, 0, wider())], "nobody is allowed");
    assert_eq!(judged("action: DENY"), [(DENY, 1, wider())], "others are denied, too");
    assert_eq!(judged("action: AUDIT"), []);
    assert_eq!(judged("mode: DryRun"), []);
    let text = format!("{ORDERS}{routed}{}", policy("default", "p", &format!("{ROUTE}, rules: [{{{WEB}}}]")));
    let [status] = &access_statuses(&index(&text).0)[..] else { panic!() };
    let conditions: Vec<_> =
        status.ancestors[0].conditions.iter().map(|one| (one.condition, one.reason)).collect();
    assert_eq!(conditions, [("Accepted", "Accepted"), ("Programmed", "PartiallyProgrammed")]);
}

#[test]
fn more_regular_expressions_than_a_proxy_takes_make_a_policy_wider_and_not_refused() {
    let routed = |name: &str| {
        let matches =
            (0..60).map(|one| format!("{{path: {{type: RegularExpression, value: /{name}/{one}}}}}"));
        let matches = matches.collect::<Vec<_>>().join(", ");
        route(
            "default",
            name,
            "",
            &format!("[{{matches: [{matches}], backendRefs: [{{name: orders, port: 80}}]}}]"),
        )
    };
    let target = |name: &str| format!("{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: {name}}}");
    let names = ["ra", "rb", "rc"];
    let routes: String = names.into_iter().map(routed).collect();
    let targets = names.map(target).join(", ");
    for (action, left) in [("DENY", 1), ("ALLOW", 0)] {
        let spec = format!("targetRefs: [{targets}], action: {action}, rules: [{{{WEB}}}]");
        let (mut index, _) = index(&format!("{ORDERS}{routes}{}", policy("default", "p", &spec)));
        register(&mut index, registration("o", "10.0.0.1", &[("orders", 80, 8080), ("orders", 81, 8081)]));
        let judged: v1::InboundPolicy = get(&Model::build(&index, Settings::default()), "default/o").unwrap();
        let shown: Vec<_> =
            judged.policies.iter().map(|one| (paths(one)[0].clone(), one.rules.len())).collect();
        let regex = |path: &str| format!("Regex({path:?}) 0");
        let expected = [(regex("/ra/0"), 1), (regex("/rb/0"), 1), (r#"Prefix("/") 0"#.to_owned(), left)];
        assert_eq!(shown, expected, "{action}");
        let told = findings(&index, &Settings::default());
        let told = told.into_iter().map(|one| one.message).filter(|one| one.contains("there is no room"));
        assert!(told.collect::<String>().starts_with("at default/o there is no room"), "{action}");
    }
}

#[test]
fn nobody_changes_what_another_namespaces_workloads_let_in() {
    // A consumer's route, and a policy on it.
    let consumer = format!(
        "{}{}",
        route("shop", "r", "", "[{backendRefs: [{name: orders, namespace: default, port: 80}]}]"),
        policy("shop", "p", &format!("{ROUTE}, action: DENY, rules: [{{}}]"))
    );
    let (model, told) = served(&consumer);
    let judged: v1::InboundPolicy = get(&model, "default/o").unwrap();
    assert_eq!((judged.policies.len(), judged.rules.len()), (0, 0));
    assert!(
        told.iter().any(|one| one.contains("arrives in other namespaces only (Service default/orders)")),
        "{told:?}"
    );
    let [status] = &access_statuses(&index(&format!("{ORDERS}{consumer}")).0)[..] else { panic!() };
    let condition = &status.ancestors[0].conditions[0];
    assert_eq!((condition.status, condition.reason), ("False", "Invalid"));
    // A Service of theirs in front of another's Pod, by a slice that they write.
    let theirs = "
apiVersion: v1
kind: Service
metadata: {name: trap, namespace: shop}
spec: {ports: [{name: http, port: 80, appProtocol: tcp}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: trap-1, namespace: shop, labels: {kubernetes.io/service-name: trap}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.9.9.9], targetRef: {kind: Pod, name: victim, namespace: bank}}]
";
    let at_trap = "targetRefs: [{kind: Service, name: trap}]";
    let opens =
        policy("shop", "opens", &format!("{at_trap}, rules: [{{from: [{{identities: [shop/web]}}]}}]"));
    let plain = "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: off, namespace: shop}\n\
                 spec: {targetRefs: [{kind: Service, name: trap}], mtls: 'off'}\n";
    let own = policy("bank", "own", "rules: []");
    let victim = || pod("bank", "victim", json!({}), json!({}));
    let with =
        Model::build(&cluster(&format!("{theirs}{opens}{plain}{own}"), [victim()]), Settings::default());
    let without = Model::build(&cluster(&format!("{theirs}{own}"), [victim()]), Settings::default());
    let of = |model: &Model| get::<v1::InboundPolicy>(model, "bank/victim").unwrap();
    assert_eq!(of(&with), of(&without));
    assert_eq!((rules(&of(&with)), of(&with).ports), (vec![("bank/own/none", &[][..], 0)], vec![]));
}

#[test]
fn a_default_policy_that_denies_stands_beside_the_others() {
    let service = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {selector: {app: a}, ports: [{name: http, port: 80, targetPort: 8080}]}
";
    let deny =
        || pod("shop", "o", json!({"app": "a"}), json!({"config.tulle.dev/default-inbound-policy": "deny"}));
    let of = |spec: &str| -> v1::InboundPolicy {
        let text = format!("{service}{}", policy("shop", "p", spec));
        get(&Model::build(&cluster(&text, [deny()]), Settings::default()), "shop/o").unwrap()
    };
    let plain = of(&format!("{AT_ORDERS}, rules: [{{{WEB}}}]"));
    let default = ("shop/annotation:default-inbound-policy/deny", &[][..], 0);
    assert_eq!((rules(&plain), policies(&plain)), (vec![("shop/p/0", &[8080][..], 1), default], vec![]));
    let denying = of(&format!("{AT_ORDERS}, action: DENY, rules: [{{to: [{{paths: [/a]}}]}}]"));
    assert_eq!(
        policies(&denying),
        [("shop/p", DENY, &[8080][..]), ("shop/annotation:default-inbound-policy", ALLOW, &[][..])]
    );
    assert_eq!(rules(&denying), [("shop/p/0", &[8080][..], 0), default]);
}

#[test]
fn rules_about_requests_on_a_port_that_carries_none_are_told() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {ports: [{name: sql, port: 5432, appProtocol: tcp}, {name: web, port: 80, appProtocol: http}]}\n";
    let told = |section: &str, rule: &str| {
        let spec =
            format!("targetRefs: [{{kind: Service, name: db{section}}}], action: DENY, rules: [{rule}]");
        served(&format!("{service}{}", policy("default", "p", &spec))).1
    };
    let found = told(", sectionName: sql", "{to: [{ports: [5432], methods: [GET]}]}");
    assert!(
        matches!(&found[..], [one] if one.starts_with("spec.rules[0]: `0` looks at requests")),
        "{found:?}"
    );
    assert_eq!(told("", "{to: [{methods: [GET]}]}"), [""; 0]);
    assert_eq!(told(", sectionName: sql", "{to: [{ports: [5432]}]}"), [""; 0]);
}

#[test]
fn every_target_has_a_condition() {
    let spec = "targetRefs: [{kind: Service, name: orders, sectionName: http}, {kind: Service, name: gone}, {group: policy.tulle.dev, kind: Workload, name: w}, \
                {group: policy.tulle.dev, kind: Workload, selector: {matchLabels: {app: a, b: c}}}], rules: []";
    let text = format!("{ORDERS}{}{}", policy("default", "p", spec), policy("default", "q", "rules: []"));
    let (index, found) = index(&text);
    let errors: Vec<_> = found.iter().filter(|one| one.severity == Severity::Error).collect();
    assert!(
        matches!(&errors[..], [one] if one.field.as_deref() == Some("spec.targetRefs[1].name")),
        "{found:#?}"
    );
    let shown = access_statuses(&index).into_iter().flat_map(|status| {
        status.ancestors.into_iter().map(move |one| {
            let about = one.ancestor_ref;
            let section = about.section_name.unwrap_or_default();
            format!("{} {} {} {section} {}", status.name, about.kind, about.name, one.conditions[0].reason)
        })
    });
    let expected = [
        "p Service orders http Accepted",
        "p Service gone  TargetNotFound",
        "p Workload w  Accepted",
        "p Workload app=a,b=c  Accepted",
        "q Namespace default  Accepted",
    ];
    assert_eq!(shown.collect::<Vec<_>>(), expected);
}
