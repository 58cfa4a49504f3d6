//! What an AuthorizationPolicy says, as it is read, and what is said of one that cannot be meant.

use super::*;
use crate::finding::Severity;
use crate::source::parse_one;

fn read(spec: &str) -> (Authorization, Vec<(Severity, String)>) {
    let spec: kinds::AuthorizationPolicySpec = serde_json::from_value(parse_one(spec)).unwrap();
    let mut notes = Notes::default();
    let read = Authorization::read(&NamespacedName::new("shop", "p"), &spec, &mut notes);
    (read, notes.into_inner().into_iter().map(|note| (note.severity, note.field)).collect())
}

fn good(rule: &str) -> Rule {
    let (mut read, told) = read(&format!("{{action: DENY, rules: [{rule}]}}"));
    assert_eq!(told, [], "{rule}");
    read.rules.remove(0)
}

fn shown(one: &v1::TextMatch) -> String {
    use v1::text_match::Match;

    match one.r#match.as_ref().unwrap() {
        Match::Exact(text) => text.clone(),
        Match::Prefix(text) => format!("{text}…"),
        Match::Suffix(text) => format!("…{text}"),
    }
}

#[test]
fn identities_are_exact_or_begin_or_end_so() {
    let of = |text: &str| {
        let rule = good(&format!("{{from: [{{identities: ['{text}']}}]}}"));
        let source = &rule.from[0];
        assert_eq!(source.others.any_identity, source.identities.is_empty());
        source.identities.iter().map(|one| shown(&one.on_the_wire("cluster.local"))).collect::<String>()
    };
    let cases = [
        ("shop/web", "spiffe://cluster.local/ns/shop/sa/web"),
        ("spiffe://other/ns/a/sa/b", "spiffe://other/ns/a/sa/b"),
        ("shop/*", "spiffe://cluster.local/ns/shop/sa/…"),
        ("shop/web-*", "spiffe://cluster.local/ns/shop/sa/web-…"),
        ("spiffe://other/*", "spiffe://other/…"),
        ("*/sa/web", "…/sa/web"),
        ("*", ""),
    ];
    for (text, expected) in cases {
        assert_eq!(of(text), expected, "{text}");
    }
    let not = good("{from: [{notIdentities: ['*']}]}");
    assert_eq!(shown(&not.from[0].not_identities[0].on_the_wire("x")), "…", "whoever proves none is left");
    assert!(!not.from[0].others.any_identity);
}

#[test]
fn sources_are_as_the_wire_has_them() {
    let rule = good(
        "{from: [{namespaces: [shop, 'team-*', '*-dev'], serviceAccounts: [web, b/c, 'b/*', '*/job'], networks: [10.1.2.3, 10.0.0.7/8, '::1'], \
         requestPrincipals: ['https://idp/alice', '*'], notNamespaces: [x], notServiceAccounts: [y/z], notNetworks: ['fd00::/8'], \
         notRequestPrincipals: ['https://idp/*']}]}",
    );
    let others = &rule.from[0].others;
    let all = |texts: &[v1::TextMatch]| texts.iter().map(shown).collect::<Vec<_>>().join(" ");
    assert_eq!(all(&others.namespaces), "shop team-… …-dev");
    assert_eq!(all(&others.service_accounts), "shop/web b/c b/… …/job");
    assert_eq!(others.networks, ["10.1.2.3/32", "10.0.0.0/8", "::1/128"]);
    assert_eq!(all(&others.request_principals), "https://idp/alice …");
    let not = [&others.not_namespaces, &others.not_service_accounts, &others.not_request_principals];
    assert_eq!(not.map(|one| all(one)), ["x", "y/z", "https://idp/…"]);
    assert_eq!(others.not_networks, ["fd00::/8"]);
}

#[test]
fn operations_and_conditions_are_as_the_wire_has_them() {
    use v1::access_condition::Of;
    use v1::path_match::Match;

    let rule = good(
        "{to: [{ports: [80], notPorts: [81], hosts: ['Shop.Example.com.', '*.example.com', '[0::1]'], methods: [GET], notMethods: [PURGE], \
         paths: [/a, '/a/*', '*/b', '/a/{*}/b', '/a/{**}', '/*'], grpcMethods: [shop.Orders/Get, 'shop.Orders/*', '*/Get']}], \
         when: [{header: X-Env, values: [prod, 'canary-*']}, {claim: realm_access.roles, notValues: [admin]}, {claimPath: ['a.b', c]}]}",
    );
    let to = &rule.to[0];
    assert_eq!((&to.ports[..], &to.not_ports[..]), (&[80][..], &[81][..]));
    assert_eq!(to.hosts.iter().map(shown).collect::<Vec<_>>(), ["shop.example.com", "….example.com", "::1"]);
    assert_eq!((&to.methods[..], &to.not_methods[..]), (&["GET".to_owned()][..], &["PURGE".to_owned()][..]));
    let text = |text: &str| text.to_owned();
    let paths: Vec<Match> = to.paths.iter().map(|path| path.r#match.clone().unwrap()).collect();
    let expected = [
        Match::Exact(text("/a")),
        Match::Prefix(text("/a/")),
        Match::Suffix(text("/b")),
        Match::Template(text("/a/{*}/b")),
        Match::Template(text("/a/{**}")),
        Match::Prefix(text("/")),
    ];
    assert_eq!(paths, expected);
    assert_eq!(to.grpc_methods, ["shop.Orders/Get", "shop.Orders/*", "*/Get"]);
    let of: Vec<Of> = rule.when.iter().map(|one| one.of.clone().unwrap()).collect();
    let claim = |steps: &[&str]| {
        Of::Claim(v1::ClaimPath { elements: steps.iter().copied().map(str::to_owned).collect() })
    };
    assert_eq!(of, [Of::Header(text("x-env")), claim(&["realm_access", "roles"]), claim(&["a.b", "c"])]);
    let values = rule.when.iter().map(|one| (one.values.len(), one.not_values.len()));
    assert_eq!(values.collect::<Vec<_>>(), [(2, 0), (0, 1), (0, 0)]);
}

/// Each rule, and the field that refuses it.
#[test]
fn what_nobody_can_mean_is_refused_where_it_stands() {
    let cases = [
        ("{from: []}", "from"),
        ("{from: [{}]}", "from[0]"),
        ("{from: [{identities: []}]}", "from[0].identities"),
        ("{from: [{identities: [web]}]}", "from[0].identities[0]"),
        ("{from: [{identities: ['a/*/b']}]}", "from[0].identities[0]"),
        ("{from: [{identities: ['*/b*']}]}", "from[0].identities[0]"),
        ("{from: [{identities: ['shop*']}]}", "from[0].identities[0]"),
        ("{from: [{namespaces: [a/b]}]}", "from[0].namespaces[0]"),
        ("{from: [{namespaces: ['a*b']}]}", "from[0].namespaces[0]"),
        ("{from: [{serviceAccounts: ['web*']}]}", "from[0].serviceAccounts[0]"),
        ("{from: [{serviceAccounts: [a/b/c]}]}", "from[0].serviceAccounts[0]"),
        ("{from: [{networks: [10.0.0.0/99]}]}", "from[0].networks[0]"),
        ("{from: [{requestPrincipals: [alice]}]}", "from[0].requestPrincipals[0]"),
        ("{to: []}", "to"),
        ("{to: [{}]}", "to[0]"),
        ("{to: [{ports: [0]}]}", "to[0].ports[0]"),
        ("{to: [{hosts: ['a:80']}]}", "to[0].hosts[0]"),
        ("{when: [{header: Host, values: [a]}]}", "when[0].header"),
        ("{to: [{hosts: ['a/b']}]}", "to[0].hosts[0]"),
        ("{to: [{methods: [get]}]}", "to[0].methods[0]"),
        ("{to: [{methods: ['G*']}]}", "to[0].methods[0]"),
        ("{to: [{methods: ['a b']}]}", "to[0].methods[0]"),
        ("{to: [{paths: [a]}]}", "to[0].paths[0]"),
        ("{to: [{paths: ['/a*b']}]}", "to[0].paths[0]"),
        ("{to: [{paths: ['/a?b']}]}", "to[0].paths[0]"),
        ("{to: [{paths: [/a//b]}]}", "to[0].paths[0]"),
        ("{to: [{paths: [/a/../b]}]}", "to[0].paths[0]"),
        ("{to: [{paths: ['/a%2Fb']}]}", "to[0].paths[0]"),
        ("{to: [{paths: ['/a%2']}]}", "to[0].paths[0]"),
        ("{to: [{paths: ['/%252f']}]}", "to[0].paths[0]"),
        ("{to: [{paths: ['/a%00']}]}", "to[0].paths[0]"),
        ("{to: [{paths: ['/%c0%af']}]}", "to[0].paths[0]"),
        ("{to: [{paths: ['/a/{b}']}]}", "to[0].paths[0]"),
        ("{to: [{paths: ['/a/{*}x']}]}", "to[0].paths[0]"),
        ("{to: [{paths: ['/{**}/a']}]}", "to[0].paths[0]"),
        ("{to: [{paths: ['/{*}/*']}]}", "to[0].paths[0]"),
        ("{to: [{grpcMethods: [/a.B/C]}]}", "to[0].grpcMethods[0]"),
        ("{to: [{grpcMethods: ['*/*']}]}", "to[0].grpcMethods[0]"),
        ("{to: [{grpcMethods: [a.B]}]}", "to[0].grpcMethods[0]"),
        ("{when: [{header: 'a b'}]}", "when[0].header"),
        ("{when: [{header: a, claim: b}]}", "when[0]"),
        ("{when: [{values: [b]}]}", "when[0]"),
        ("{when: [{claim: a..b}]}", "when[0].claim"),
        ("{when: [{claimPath: []}]}", "when[0].claimPath"),
        ("{when: [{header: a, values: []}]}", "when[0].values"),
        ("{when: [{header: a, values: ['a*b']}]}", "when[0].values[0]"),
    ];
    for (rule, field) in cases {
        let (_, told) = read(&format!("{{action: DENY, rules: [{rule}]}}"));
        assert_eq!(told, [(Severity::Error, format!("spec.rules[0].{field}"))], "{rule}");
    }
    for taken in ["'/a/.*'", "'*..html'", "/%C3%A9", "'/é'", "'/100%25'", "/a;b=c", "'*'"] {
        good(&format!("{{to: [{{paths: [{taken}]}}]}}"));
    }
}

#[test]
fn a_policy_that_describes_nothing_says_so_and_one_that_would_allow_all_is_refused() {
    for action in ["ALLOW", "DENY", "AUDIT"] {
        let (none, told) = read(&format!("{{action: {action}, rules: []}}"));
        assert_eq!((none.rules.len(), told), (0, vec![(Severity::Warning, "spec.rules".to_owned())]));
        let (_, told) = read(&format!("{{action: {action}, rules: [{{toPorts: [80]}}]}}"));
        let refused = vec![(Severity::Error, "spec.rules[0]".to_owned())];
        assert_eq!(told, if action == "ALLOW" { refused } else { vec![] }, "{action}");
    }
    let (read, told) = read("{mode: DryRun, rules: [{from: [{networks: [0.0.0.0/0, '::/0']}]}]}");
    assert_eq!((read.action, read.dry_run, told), (v1::AccessAction::Allow, true, vec![]));
}
