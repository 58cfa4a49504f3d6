use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::policy::{Connections, Open, TlsKind};

fn rule(name: &str, action: Action) -> EgressRule {
    EgressRule { name: name.into(), action, networks: Vec::new(), ports: Vec::new(), names: Names::Any }
}

fn hosts(names: &[&str]) -> Names {
    Names::Host(names.iter().map(|name| name.parse().unwrap()).collect())
}

fn sni(names: &[&str]) -> Names {
    Names::Sni(names.iter().map(|name| name.parse().unwrap()).collect())
}

fn egress(action: Action, rules: Vec<EgressRule>) -> Egress {
    Egress::new(EgressSpec { action, action_name: "shop/p".into(), rules })
}

fn http(name: &str) -> Name {
    Name::Http(name.into())
}

fn tls(name: &str) -> Name {
    Name::Tls(Some(name.into()))
}

fn judge(policy: &Egress, address: &str, name: Name) -> String {
    match policy.evaluate(&Outside { address: address.parse().unwrap(), name }) {
        Verdict::Allow { rule } => format!("allow {rule}"),
        Verdict::Audit { rule } => format!("audit {rule}"),
        Verdict::Deny { reason, rule } => format!("{reason} {}", rule.unwrap_or_default()),
    }
}

#[test]
fn r18_where_no_rule_describes_a_destination_the_default_holds() {
    for (action, expected) in [
        (Action::Allow, "allow shop/p"),
        (Action::Audit, "audit shop/p"),
        (Action::Deny, "egress_denied shop/p"),
    ] {
        let elsewhere = EgressRule { ports: vec![1], ..rule("r", Action::Audit) };
        assert_eq!(judge(&egress(action, vec![elsewhere]), "192.0.2.1:443", tls("a.b")), expected);
    }
}

#[test]
fn r18_a_rule_describes_by_all_of_its_fields_and_any_value_of_each() {
    let both = EgressRule {
        networks: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        ports: vec![80, 443],
        names: sni(&["api.example.com", "*.example.org"]),
        ..rule("r", Action::Allow)
    };
    let policy = egress(Action::Deny, vec![both]);
    for (address, name, allowed) in [
        ("10.1.2.3:443", tls("api.example.com"), true),
        ("[fd00::1]:80", tls("api.example.com"), true),
        ("10.1.2.3:443", tls("a.b.example.org"), true),
        ("10.1.2.3:443", tls("example.org"), false),
        ("10.1.2.3:443", tls("aexample.org"), false),
        ("10.1.2.3:443", tls("xapi.example.com"), false),
        ("10.1.2.3:444", tls("api.example.com"), false),
        ("192.0.2.1:443", tls("api.example.com"), false),
        ("[2001:db8::1]:443", tls("api.example.com"), false),
        // Nobody is named, or in another way.
        ("10.1.2.3:443", Name::None, false),
        ("10.1.2.3:443", Name::Tls(None), false),
        ("10.1.2.3:80", http("api.example.com"), false),
    ] {
        let said = judge(&policy, address, name.clone());
        assert_eq!(said.starts_with("allow"), allowed, "{address} {name:?}: {said}");
    }
}

#[test]
fn r18_a_rule_that_denies_somewhere_is_not_passed_by_without_a_name() {
    let by_host = || EgressRule { names: hosts(&["evil.example"]), ..rule("r", Action::Deny) };
    let at_port = || EgressRule { ports: vec![80], ..by_host() };
    let in_network = || EgressRule { networks: vec!["192.0.2.0/24".parse().unwrap()], ..by_host() };
    let by_sni = || EgressRule { names: sni(&["evil.example"]), ..at_port() };
    for (said, rule, name, denied) in [
        ("bytes", at_port(), Name::None, true),
        ("bytes", in_network(), Name::None, true),
        ("no Host", at_port(), http(""), true),
        ("another Host", at_port(), http("good.example"), false),
        ("TLS is not HTTP", at_port(), Name::Tls(None), false),
        ("bytes", by_sni(), Name::None, true),
        ("no server name", by_sni(), Name::Tls(None), true),
        ("another server name", by_sni(), tls("good.example"), false),
        ("HTTP is not TLS", by_sni(), http(""), false),
        // By name alone, it binds who gives one.
        ("bytes", by_host(), Name::None, false),
        ("no Host", by_host(), http(""), false),
        ("elsewhere", EgressRule { ports: vec![81], ..by_host() }, Name::None, false),
        // To hide a name earns nothing that is allowed by it.
        ("audited", EgressRule { action: Action::Audit, ..at_port() }, Name::None, false),
    ] {
        let verdict = judge(&egress(Action::Allow, vec![rule.clone()]), "192.0.2.1:80", name);
        let expected = if denied { "egress_denied r" } else { "allow shop/p" };
        assert_eq!(verdict, expected, "{said}: {rule:?}");
    }
}

#[test]
fn r18_hosts_compare_without_case_and_the_roots_dot() {
    let policy = egress(
        Action::Deny,
        vec![EgressRule { names: hosts(&["API.Example.com"]), ..rule("r", Action::Allow) }],
    );
    for host in ["api.example.com", "Api.Example.Com", "api.example.com."] {
        assert_eq!(judge(&policy, "192.0.2.1:80", http(host)), "allow r", "{host}");
    }
    for host in ["", ".", "api.example.com..", "é.example.com"] {
        assert_eq!(judge(&policy, "192.0.2.1:80", http(host)), "egress_denied shop/p", "{host}");
    }
}

#[test]
fn r18_the_strictest_rule_holds_in_whatever_order_and_of_equals_the_first_is_named() {
    let (allow, audit, deny) = (rule("a", Action::Allow), rule("b", Action::Audit), rule("c", Action::Deny));
    let second = rule("d", Action::Deny);
    let at = |rules: &[&EgressRule]| {
        let policy = egress(Action::Deny, rules.iter().map(|rule| (*rule).clone()).collect());
        judge(&policy, "192.0.2.1:80", Name::None)
    };
    assert_eq!(at(&[&allow, &audit]), "audit b");
    assert_eq!(at(&[&audit, &allow]), "audit b");
    for rules in [[&allow, &audit, &deny], [&deny, &audit, &allow], [&audit, &deny, &allow]] {
        assert_eq!(at(&rules), "egress_denied c");
    }
    assert_eq!(at(&[&second, &deny]), "egress_denied d");
    // A rule that allows takes the place of a default that denies.
    assert_eq!(at(&[&allow]), "allow a");
}

#[test]
fn r18_a_name_is_awaited_only_where_it_may_help() {
    let named = || EgressRule { names: sni(&["a.example"]), ports: vec![443], ..rule("n", Action::Allow) };
    let to: SocketAddr = "192.0.2.1:443".parse().unwrap();
    for (policy, awaited) in [
        (egress(Action::Deny, vec![named()]), true),
        (egress(Action::Allow, vec![named()]), false),
        (egress(Action::Deny, vec![EgressRule { ports: vec![80], ..named() }]), false),
        (egress(Action::Deny, vec![EgressRule { action: Action::Deny, ..named() }]), false),
        // Denied only for want of a name.
        (egress(Action::Allow, vec![EgressRule { action: Action::Deny, ..named() }]), true),
        (
            egress(
                Action::Deny,
                vec![EgressRule { action: Action::Deny, ..named() }, rule("any", Action::Audit)],
            ),
            true,
        ),
        // Decided by the address alone, whichever way.
        (egress(Action::Deny, vec![named(), rule("any", Action::Deny)]), false),
        (egress(Action::Deny, vec![named(), rule("any", Action::Allow)]), false),
    ] {
        assert_eq!(policy.awaits_a_name(to), awaited, "{policy:?}");
    }
}

#[test]
fn r18_a_change_revokes_what_leaves_the_mesh_and_nothing_else() {
    let connections = Connections::new();
    let client = IpAddr::from([10, 0, 0, 1]);
    let open = Open { port: 443, peer: None, tls: TlsKind::ApplicationTls, client, outside: None };
    let outside = |name: Name| {
        let outside = Outside { address: "192.0.2.1:443".parse().unwrap(), name };
        connections.register(Open { outside: Some(Box::new(outside)), ..open.clone() })
    };
    let inbound = connections.register(open.clone());
    let (good, bad) = (outside(tls("good.example")), outside(tls("bad.example")));
    let policy =
        egress(Action::Allow, vec![EgressRule { names: sni(&["bad.example"]), ..rule("r", Action::Deny) }]);
    assert!(good.judge_egress(&policy).is_allowed() && !inbound.judge_egress(&policy).is_allowed());
    assert_eq!(connections.rejudge_egress(&policy), 1);
    assert!(bad.is_revoked() && !good.is_revoked() && !inbound.is_revoked());
    assert!(
        matches!(bad.revoked_by(), Some(Verdict::Deny { reason: Denial::EgressDenied, rule: Some(rule) }) if **rule == *"r")
    );
    // What lets others in has no say about what goes out.
    assert_eq!(connections.revoke_all(), 1);
    assert!(inbound.is_revoked() && !good.is_revoked());
}
