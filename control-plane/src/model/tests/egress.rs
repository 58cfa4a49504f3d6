//! What a workload is told that it may reach outside the mesh.

use super::*;

/// An EgressPolicy `<namespace>/<name>` with what follows `spec:`.
fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn egress(model: &Model, workload: &str) -> v1::EgressPolicy {
    get(model, workload).unwrap()
}

fn names(policy: &v1::EgressPolicy) -> Vec<&str> {
    policy.rules.iter().map(|rule| rule.name.as_str()).collect()
}

const MESH: &str =
    "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: Mesh\nmetadata: {name: mesh}\nspec: {egress: audit}\n";

#[test]
fn r18_without_a_policy_the_meshs_default_holds_for_whoever_comes() {
    for (yaml, action) in [("", v1::EgressAction::Allow), (MESH, v1::EgressAction::Audit)] {
        let policy = egress(&model(yaml), "default/new");
        assert_eq!((policy.action(), policy.action_name.as_str(), policy.rules.len()), (action, "mesh", 0));
    }
    for unnamed in ["", "new", "a/b/c", "default/"] {
        assert_eq!(get::<v1::EgressPolicy>(&model(""), unnamed), None, "{unnamed:?}");
    }
}

#[test]
fn r18_a_policy_without_targets_is_for_its_namespace_and_no_other() {
    let rules = "{action: deny, rules: [{action: allow, sni: [api.example.com, '*.example.org'], ports: [443]}, \
                 {name: intra, action: audit, cidrs: [10.1.2.3/8, 'fd00::/8']}, {action: deny, hosts: [bad.example.com]}]}";
    let model = model(&(policy("shop", "p", rules) + MESH));
    let policy = egress(&model, "shop/web");
    assert_eq!((policy.action(), policy.action_name.as_str()), (v1::EgressAction::Deny, "shop/p"));
    assert_eq!(names(&policy), ["shop/p/0", "shop/p/intra", "shop/p/2"]);
    let [tls, networks, http] = policy.rules.as_slice() else { panic!("{policy:?}") };
    assert_eq!(
        (tls.action(), &tls.sni[..], &tls.ports[..]),
        (
            v1::EgressAction::Allow,
            &["api.example.com".to_owned(), "*.example.org".to_owned()][..],
            &[443][..]
        )
    );
    assert_eq!(
        (networks.action(), &networks.networks[..]),
        (v1::EgressAction::Audit, &["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()][..])
    );
    assert_eq!(
        (http.action(), &http.hosts[..]),
        (v1::EgressAction::Deny, &["bad.example.com".to_owned()][..])
    );
    assert_eq!(egress(&model, "default/web").action_name, "mesh");
    // It is encoded once for all of them.
    let of = |name: &str| model.get(ResourceType::EgressPolicy, name).unwrap();
    assert!(Arc::ptr_eq(&of("shop/web"), &of("shop/orders")));
}

#[test]
fn r18_a_policy_with_targets_is_for_the_workloads_behind_them_beside_their_namespaces() {
    let all = policy("default", "all", "{action: deny, rules: [{action: deny, cidrs: [169.254.0.0/16]}]}");
    let some = policy(
        "default",
        "some",
        "{targetRefs: [{kind: Service, name: orders}], rules: [{action: allow, hosts: ['*.example.com']}]}",
    );
    let (mut index, found) = index(&(ORDERS.to_owned() + &slice("") + &all + &some));
    assert_eq!(found, []);
    register(&mut index, registration("orders-1", "192.0.2.1", &[("orders", 80, 8080)]));
    let model = Model::build(&index, Settings::default());
    for workload in ["default/orders-x", "default/orders-1"] {
        let policy = egress(&model, workload);
        assert_eq!(names(&policy), ["default/all/0", "default/some/0"], "{workload}");
        assert_eq!(policy.action_name, "default/all");
    }
    assert_eq!(names(&egress(&model, "default/web")), ["default/all/0"]);
}

#[test]
fn r18_a_policy_says_whether_the_workload_was_registered_when_it_was_made() {
    let some = policy("default", "some", "{targetRefs: [{kind: Service, name: orders}], action: deny}");
    let all = policy("default", "all", "{action: audit}");
    for (yaml, before, after) in
        [("", "mesh", "mesh"), (&*all, "default/all", "default/all"), (&*some, "mesh", "default/some")]
    {
        let (mut index, _) = index(&(ORDERS.to_owned() + &slice("") + yaml));
        let model = Model::build(&index, Settings::default());
        let unknown = egress(&model, "default/orders-1");
        assert_eq!((&*unknown.action_name, unknown.registered), (before, false));
        for (workload, number) in [("orders-1", 1), ("orders-2", 2)] {
            let address = format!("192.0.2.{number}");
            register(&mut index, registration(workload, &address, &[("orders", 80, 8080)]));
        }
        let dirty = index.take_dirty();
        let model = model.next(&index, &dirty);
        for workload in ["default/orders-1", "default/orders-2"] {
            let policy = egress(&model, workload);
            assert_eq!((&*policy.action_name, policy.registered), (after, true), "{workload}");
        }
        assert!(!egress(&model, "default/orders-x").registered, "a slice is no registration");
        let of = |name: &str| model.get(ResourceType::EgressPolicy, name).unwrap();
        let shared = Arc::ptr_eq(&of("default/orders-1"), &of("default/orders-2"));
        assert_eq!(shared, yaml != some, "encoded once where it holds for the namespace");
    }
}

#[test]
fn r18_the_strictest_default_of_several_policies_holds() {
    let three = policy("default", "a", "{action: allow}")
        + &policy("default", "b", "{action: deny}")
        + &policy("default", "c", "{action: audit}");
    let policy = egress(&model(&three), "default/web");
    assert_eq!((policy.action(), policy.action_name.as_str()), (v1::EgressAction::Deny, "default/b"));
}

#[test]
fn r18_what_is_wrong_is_told_with_its_place_and_what_to_do() {
    for (spec, field, message, hint) in [
        ("{rules: [{action: permit, ports: [1]}]}", "spec.rules[0].action", "permit", ""),
        ("{rules: [{ports: [1]}]}", "spec.rules[0]", "action", ""),
        ("{action: block}", "spec.action", "block", ""),
        ("{rules: [{action: deny}]}", "spec.rules[0]", "describes no destination", "the policy's `action`"),
        (
            "{rules: [{action: deny, cidrs: [10.0.0.0/33]}]}",
            "spec.rules[0].cidrs[0]",
            "not a CIDR block",
            "10.0.0.0/8",
        ),
        ("{rules: [{action: deny, cidrs: [example.com]}]}", "spec.rules[0].cidrs[0]", "not a CIDR block", ""),
        ("{rules: [{action: deny, ports: [0]}]}", "spec.rules[0].ports[0]", "0 is not a port", "1 to 65535"),
        (
            "{rules: [{action: deny, sni: ['*']}]}",
            "spec.rules[0].sni[0]",
            "`*` is not a host name",
            "*.example.com",
        ),
        ("{rules: [{action: deny, sni: [a.*.com]}]}", "spec.rules[0].sni[0]", "not a host name", ""),
        (
            "{rules: [{action: deny, hosts: [Example.com]}]}",
            "spec.rules[0].hosts[0]",
            "not a host name",
            "lower case",
        ),
        (
            "{rules: [{action: deny, hosts: ['example.com:80']}]}",
            "spec.rules[0].hosts[0]",
            "not a host name",
            "no port",
        ),
        (
            "{rules: [{action: deny, hosts: [10.0.0.1]}]}",
            "spec.rules[0].hosts[0]",
            "not a host name",
            "no IP address",
        ),
        (
            "{rules: [{action: deny, sni: [a.com], hosts: [a.com]}]}",
            "spec.rules[0].hosts",
            "no connection has both",
            "two rules",
        ),
        (
            "{rules: [{name: a/b, action: deny, ports: [1]}]}",
            "spec.rules[0].name",
            "cannot be a rule's name",
            "without `/`",
        ),
        (
            "{rules: [{name: a, action: deny, ports: [1]}, {name: a, action: allow, ports: [2]}]}",
            "spec.rules[1].name",
            "two rules are called `a`",
            "rename one",
        ),
        (
            "{targetRefs: [{kind: Namespace, name: shop}], action: deny}",
            "spec.targetRefs[0].kind",
            "cannot be attached to a `Namespace`",
            "kind: Service",
        ),
        (
            "{targetRefs: [{kind: Service, name: nobody}], action: deny}",
            "spec.targetRefs[0].name",
            "no Service shop/nobody",
            "correct the reference",
        ),
        ("{}", "spec", "does nothing", "action: allow"),
        (
            "{rules: [{action: deny, host: [a.com], ports: [1]}]}",
            "spec.rules[0].host",
            "not known",
            "slip of the pen",
        ),
    ] {
        let (_, found) = index(&policy("shop", "p", spec));
        let finding = found.iter().find(|finding| finding.field.as_deref() == Some(field));
        let finding = finding.unwrap_or_else(|| panic!("{spec}: {found:#?}"));
        assert!(finding.message.contains(message), "{spec}: {finding}");
        assert!(finding.hint.as_deref().unwrap_or_default().contains(hint), "{spec}: {finding}");
        assert!(
            finding.line.is_some() && finding.object.as_deref() == Some("EgressPolicy shop/p"),
            "{finding:?}"
        );
    }
}
