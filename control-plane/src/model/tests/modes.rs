//! mTLS modes: what a workload's proxy is told, and what its clients are told of it.

use serde_json::json;

use super::*;
use crate::finding::Notes;

fn mode(name: &str, created: &str, targets: &str, mtls: &str) -> String {
    let created =
        if created.is_empty() { String::new() } else { format!(", creationTimestamp: '{created}'") };
    format!(
        "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: {name}{created}}}\nspec: {{targetRefs: [{targets}], mtls: '{mtls}'}}\n"
    )
}

const AT_ORDERS: &str = "{kind: Service, name: orders}";
const AT_HTTP: &str = "{kind: Service, name: orders, sectionName: http}";
const AT_WORKLOAD: &str = "{group: policy.tulle.dev, kind: Workload, name: o}";
const PERMISSIVE: v1::MtlsMode = v1::MtlsMode::Permissive;
const STRICT: v1::MtlsMode = v1::MtlsMode::Strict;
const OFF: v1::MtlsMode = v1::MtlsMode::Off;
const ID: &str = "spiffe://cluster.local/ns/default/sa/o";

fn world(text: &str) -> Index {
    let (mut index, found) = index(&format!("{ORDERS}{text}"));
    assert!(found.iter().all(|one| one.message.contains("being")), "{found:#?}");
    register(&mut index, registration("o", "10.0.0.1", &[("orders", 80, 8080), ("orders", 81, 8081)]));
    index
}

/// Of all ports that are not served, and of 8080 and 8081.
fn modes(model: &Model) -> [v1::MtlsMode; 3] {
    let policy: v1::InboundPolicy = get(model, "default/o").unwrap();
    assert_eq!(policy.ports.iter().map(|one| one.port).collect::<Vec<_>>(), [8080, 8081]);
    [policy.mode(), policy.ports[0].mode(), policy.ports[1].mode()]
}

/// Whom clients expect at both ports, by the Service and by the address.
fn peers(model: &Model) -> [Option<v1::Peer>; 2] {
    let endpoints: v1::Endpoints = get(model, "default/orders").unwrap();
    let by_service = endpoints.endpoints[0].ports.iter().map(|port| port.peer.clone()).collect::<Vec<_>>();
    let address: v1::Address = get(model, "10.0.0.1").unwrap();
    let Some(v1::address::Target::Host(host)) = address.target else { panic!("{address:?}") };
    let by_address: Vec<_> = host.ports.iter().map(|port| port.peer.clone()).collect();
    assert_eq!(by_service, by_address);
    by_service.try_into().unwrap()
}

#[test]
fn the_most_specific_mode_holds() {
    let cases = [
        (String::new(), [PERMISSIVE; 3]),
        (mode("n", "", "", "strict"), [STRICT; 3]),
        (
            format!("{}{}", mode("n", "", "", "strict"), mode("w", "", AT_WORKLOAD, "permissive")),
            [PERMISSIVE; 3],
        ),
        (
            format!("{}{}", mode("w", "", AT_WORKLOAD, "strict"), mode("s", "", AT_ORDERS, "off")),
            [STRICT, OFF, OFF],
        ),
        (
            format!("{}{}", mode("s", "", AT_ORDERS, "strict"), mode("p", "", AT_HTTP, "permissive")),
            [PERMISSIVE, PERMISSIVE, STRICT],
        ),
        (format!("{MESH_OFF}{}", mode("p", "", AT_HTTP, "strict")), [OFF, STRICT, OFF]),
    ];
    for (text, expected) in cases {
        let index = world(&text);
        let model = Model::build(&index, Settings::default());
        assert_eq!(modes(&model), expected, "{text}");
        let expect = |mode: v1::MtlsMode| if mode == OFF { plaintext() } else { spiffe(ID) };
        assert_eq!(peers(&model), [expect(expected[1]), expect(expected[2])], "{text}");
    }
}

fn dry(name: &str, targets: &str, mtls: &str) -> String {
    mode(name, "", targets, mtls).replace("spec: {", "spec: {mode: DryRun, ")
}

/// Policies in dry run that deny whoever proves no identity: names, ports, and ports left out.
fn told_of(text: &str) -> Vec<(String, Vec<u32>, Vec<u32>)> {
    let model = Model::build(&world(text), Settings::default());
    assert_eq!(
        modes(&model),
        modes(&Model::build(&world(&without_dry(text)), Settings::default())),
        "{text}"
    );
    let policy: v1::InboundPolicy = get(&model, "default/o").unwrap();
    let policies = policy.policies.into_iter().filter(|one| one.dry_run).map(|one| {
        let [rule] = &one.rules[..] else { panic!("{one:?}") };
        let prefix = v1::text_match::Match::Prefix(String::new());
        let everybody = vec![v1::TextMatch { r#match: Some(prefix) }];
        assert_eq!((one.action(), rule.name.as_str()), (v1::AccessAction::Deny, "strict"));
        assert_eq!((rule.from.len(), &rule.from[0].not_identities), (1, &everybody));
        let left_out = rule.to.first().map(|to| to.not_ports.clone()).unwrap_or_default();
        (one.name.clone(), one.ports.clone(), left_out)
    });
    policies.collect()
}

fn without_dry(text: &str) -> String {
    let documents = text.split("---\n").filter(|one| !one.is_empty() && !one.contains("DryRun"));
    documents.map(|one| format!("---\n{one}")).collect()
}

#[test]
fn a_mode_in_dry_run_changes_none_and_tells_whom_strict_would_refuse() {
    let of = |name: &str, ports: &[u32], left_out: &[u32]| {
        (format!("default/{name}"), ports.to_vec(), left_out.to_vec())
    };
    let namespace = dry("n", "", "strict");
    let at_http = mode("p", "", AT_HTTP, "permissive");
    let strict_at_http = mode("p", "", AT_HTTP, "strict");
    let permissive = mode("w", "", "", "permissive");
    for (text, expected) in [
        (namespace.clone(), vec![of("n", &[], &[])]),
        (dry("s", AT_ORDERS, "strict"), vec![of("s", &[8080, 8081], &[])]),
        // What holds is as specific, or less: it would be in that one's place.
        (format!("{permissive}{namespace}"), vec![of("n", &[], &[])]),
        (format!("{permissive}{}", dry("s", AT_HTTP, "strict")), vec![of("s", &[8080], &[])]),
        // It is more specific, or strict by itself.
        (format!("{at_http}{namespace}"), vec![of("n", &[], &[8080])]),
        (format!("{strict_at_http}{namespace}"), vec![of("n", &[], &[8080])]),
        (format!("{at_http}{}", dry("s", AT_ORDERS, "strict")), vec![of("s", &[8081], &[])]),
        (format!("{}{namespace}", mode("w", "", "", "strict")), vec![]),
        // It refuses nobody.
        (dry("n", "", "off"), vec![]),
        (dry("n", "", "permissive"), vec![]),
        (format!("{namespace}{}", dry("p", AT_HTTP, "permissive")), vec![of("n", &[], &[8080])]),
    ] {
        assert_eq!(told_of(&text), expected, "{text}");
    }
}

#[test]
fn one_in_dry_run_takes_no_place_of_one_that_is_in_force_on_the_same_target() {
    let old = mode("a", "2026-01-01T00:00:00Z", AT_ORDERS, "off").replace("spec: {", "spec: {mode: DryRun, ");
    let index = world(&format!("{old}{}", mode("b", "2026-02-01T00:00:00Z", AT_ORDERS, "strict")));
    assert_eq!(modes(&Model::build(&index, Settings::default())), [PERMISSIVE, STRICT, STRICT]);
    assert_eq!(findings(&index, &Settings::default()), []);
    assert!(access_statuses(&index).iter().all(|one| one.ancestors[0].conditions[0].reason == "Accepted"));
}

const MESH_OFF: &str =
    "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: Mesh\nmetadata: {name: mesh}\nspec: {mtls: 'off'}\n";

#[test]
fn of_two_on_the_very_same_target_the_older_holds() {
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    let text = format!("{}{}", mode("a", new, AT_ORDERS, "strict"), mode("b", old, AT_ORDERS, "off"));
    let index = world(&text);
    assert_eq!(modes(&Model::build(&index, Settings::default())), [PERMISSIVE, OFF, OFF]);
    let found = findings(&index, &Settings::default());
    let [finding] = &found[..] else { panic!("{found:#?}") };
    assert_eq!(
        finding.message,
        "PeerAuthentication default/b is attached to Service default/orders too and holds, being older; nothing of this policy holds there"
    );
    let shown = access_statuses(&index).into_iter().map(|one| {
        let condition = &one.ancestors[0].conditions[0];
        (one.name, condition.status, condition.reason)
    });
    let expected = [("a".to_owned(), "False", "Conflicted"), ("b".to_owned(), "True", "Accepted")];
    assert_eq!(shown.collect::<Vec<_>>(), expected);
    // Two that are as specific and not the same: the strictest.
    let other = "---\napiVersion: v1\nkind: Service\nmetadata: {name: admin}\nspec: {ports: [{name: http, port: 90}]}\n";
    let text = format!(
        "{other}{}{}",
        mode("a", "", AT_ORDERS, "off"),
        mode("b", "", "{kind: Service, name: admin}", "strict")
    );
    let mut index = world(&text);
    register(
        &mut index,
        registration("o", "10.0.0.1", &[("orders", 80, 8080), ("orders", 81, 8081), ("admin", 90, 8080)]),
    );
    assert_eq!(modes(&Model::build(&index, Settings::default())), [PERMISSIVE, STRICT, OFF]);
}

#[test]
fn clients_follow_a_change_of_mode() {
    let mut index = world("");
    index.take_dirty();
    let model = Model::build(&index, Settings::default());
    assert_eq!(peers(&model), [spiffe(ID), spiffe(ID)]);
    index.change(read_text(&mode("p", "", AT_HTTP, "off")).changes);
    let dirty = index.take_dirty();
    let off = model.next(&index, &dirty);
    assert_eq!(peers(&off), [plaintext(), spiffe(ID)]);
    // The port that the policy names is another one now.
    let renamed =
        ORDERS.replace("name: http, port: 80", "name: web, port: 80").replace("name: admin", "name: http");
    index.change(read_text(&renamed).changes);
    let dirty = index.take_dirty();
    let other = off.next(&index, &dirty);
    assert_eq!(peers(&other), [spiffe(ID), plaintext()]);
    assert_eq!(other, Model::build(&index, Settings::default()));
    index.delete(&ObjectKey { kind: Kind::PeerAuthentication, name: name("default/p") });
    let dirty = index.take_dirty();
    assert_eq!(peers(&other.next(&index, &dirty)), [spiffe(ID), spiffe(ID)]);
}

#[test]
fn a_default_policy_that_asks_for_an_identity_is_stricter_than_any_mode() {
    let pod = |default: &str| {
        let pod = json!({
            "metadata": {"namespace": "default", "name": "o", "labels": {"app": "o"},
                "annotations": {"tulle.dev/status": "{}", "config.tulle.dev/default-inbound-policy": default}},
            "spec": {"serviceAccountName": "o", "initContainers": [{"name": "tulle-proxy"}], "containers": [{"name": "app"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        });
        Object::pod(&serde_json::from_value(pod).unwrap(), &mut Notes::default()).unwrap()
    };
    let service = "
apiVersion: v1
kind: Service
metadata: {name: orders}
spec: {clusterIP: 10.96.0.7, selector: {app: o}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orders-1, labels: {kubernetes.io/service-name: orders}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: o, namespace: default}}]
";
    let judged = |text: &str, default: &str| {
        let mut index = Index::of_cluster();
        index.change(read_text(&format!("{service}{text}")).changes);
        index.apply(pod(default), None);
        let model = Model::build(&index, Settings::default());
        let policy: v1::InboundPolicy = get(&model, "default/o").unwrap();
        let endpoints: v1::Endpoints = get(&model, "default/orders").unwrap();
        let told = findings(&index, &Settings::default());
        let told: Vec<String> =
            told.into_iter().map(|one| format!("{}: {}", one.object.unwrap(), one.message)).collect();
        (policy.mode(), policy.ports[0].mode(), endpoints.endpoints[0].ports[0].peer.clone(), told.join("; "))
    };
    let off = mode("p", "", AT_ORDERS, "off");
    let asks = "default/o ask for an identity by `config.tulle.dev/default-inbound-policy`; `strict` holds there, being stricter";
    let expected = (STRICT, STRICT, spiffe(ID), format!("PeerAuthentication default/p: {asks}"));
    assert_eq!(judged(&off, "all-authenticated"), expected);
    assert_eq!(
        judged(MESH_OFF, "cluster-authenticated"),
        (STRICT, STRICT, spiffe(ID), format!("Mesh mesh: {asks}"))
    );
    assert_eq!(judged(&off, "all-unauthenticated"), (PERMISSIVE, OFF, plaintext(), String::new()));
    let says = "default/o say by `config.tulle.dev/default-inbound-policy` that no identity is needed; `strict` holds, being stricter";
    let strict = mode("p", "", "", "strict");
    let expected = (STRICT, STRICT, spiffe(ID), format!("PeerAuthentication default/p: {says}"));
    assert_eq!(judged(&strict, "all-unauthenticated"), expected);
    assert_eq!(judged(&strict, "audit"), (STRICT, STRICT, spiffe(ID), String::new()));
}

#[test]
fn whoever_comes_to_a_namespace_is_told_its_mode() {
    let model = model(&mode("n", "", "", "strict"));
    let of = |name: &str| get::<v1::InboundPolicy>(&model, name).unwrap().mode();
    assert_eq!((of("default/new"), of("shop/new")), (STRICT, PERMISSIVE));
}
