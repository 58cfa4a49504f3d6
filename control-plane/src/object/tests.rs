use super::*;

#[test]
fn names_are_those_of_kubernetes() {
    let cases = [
        ("a", true, true),
        ("web-1", true, true),
        ("a.b", false, true),
        ("", false, false),
        ("-a", false, false),
        ("a-", false, false),
        ("a..b", false, false),
        ("A", false, false),
        ("a_b", false, false),
        ("a/b", false, false),
        ("é", false, false),
    ];
    for (text, label, subdomain) in cases {
        assert_eq!((is_label(text), is_subdomain(text)), (label, subdomain), "{text:?}");
    }
    assert!(is_label(&"a".repeat(63)) && !is_label(&"a".repeat(64)));
    assert!(!is_subdomain(&"a".repeat(254)));
}

#[test]
fn identities_are_spiffe_ids_or_service_accounts() {
    let id = |text: &str| Identity::parse(text).map(|identity| identity.spiffe_id("cluster.local"));
    let cases = [
        ("shop/web", Some("spiffe://cluster.local/ns/shop/sa/web")),
        ("spiffe://example.org/ns/a/sa/B_c.d", Some("spiffe://example.org/ns/a/sa/B_c.d")),
        ("web", None),
        ("shop/web/x", None),
        ("Shop/web", None),
        ("spiffe://example.org", None),
        ("spiffe://example.org/", None),
        ("spiffe://Example.org/ns/a/sa/b", None),
        ("spiffe://example.org/ns//sa/b", None),
        ("spiffe://example.org/ns/a/sa/..", None),
        ("spiffe://example.org/ns/a/sa/%20b", None),
        ("spiffe:///ns/a/sa/b", None),
        ("", None),
    ];
    for (text, expected) in cases {
        assert_eq!(id(text).as_deref(), expected, "{text:?}");
    }
}

#[test]
fn an_identity_that_every_proxy_would_reject_with_all_that_holds_it_is_no_identity() {
    for text in
        ["spiffe://example.org/a", "spiffe://example.org/ns/a/sa/b/c", "spiffe://example.org/sa/a/ns/b"]
    {
        assert_eq!(Identity::parse(text), None, "{text:?}");
    }
}

#[test]
fn a_grant_is_for_the_kinds_that_it_names() {
    use gateway_api::experimental::referencegrants::{
        ReferenceGrantFrom, ReferenceGrantSpec, ReferenceGrantTo,
    };
    let from = |kind: &str| ReferenceGrantFrom {
        group: "gateway.networking.k8s.io".to_owned(),
        kind: kind.to_owned(),
        namespace: "shop".to_owned(),
    };
    let to = |kind: &str, name: Option<&str>| ReferenceGrantTo {
        group: String::new(),
        kind: kind.to_owned(),
        name: name.map(str::to_owned),
    };
    let cases = [
        (from("HTTPRoute"), to("Service", None), true),
        (from("HTTPRoute"), to("Service", Some("cups")), true),
        (from("HTTPRoute"), to("Service", Some("plates")), false),
        (from("HTTPRoute"), to("Secret", None), false),
        (from("GRPCRoute"), to("Service", None), false),
        (from("Gateway"), to("Service", None), false),
    ];
    for (from, to, allowed) in cases {
        let mut object = ReferenceGrant::new("g", ReferenceGrantSpec { from: vec![from], to: vec![to] });
        object.metadata.namespace = Some("cafe".to_owned());
        let grant = Grant::read(&object);
        assert_eq!(
            grant.allows(RouteKind::Http, "shop", &NamespacedName::new("cafe", "cups")),
            allowed,
            "{grant:?}"
        );
        let is_for_grpc = grant.from.iter().any(|(kind, _)| *kind == Kind::GrpcRoute);
        assert_eq!(grant.allows(RouteKind::Grpc, "shop", &NamespacedName::new("cafe", "cups")), is_for_grpc);
        assert!(!grant.allows(RouteKind::Http, "elsewhere", &NamespacedName::new("cafe", "cups")));
        assert!(!grant.allows(RouteKind::Http, "shop", &NamespacedName::new("bar", "cups")));
    }
}
