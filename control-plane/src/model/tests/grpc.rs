//! GRPCRoutes: methods are paths, and a port belongs to one kind of route.

use super::*;
use v1::http_match::Path;

/// The kinds and ports of what clients in namespace `x` follow to `default/orders`.
fn followed(routes: &v1::Routes) -> Vec<(&str, v1::RouteKind, Vec<u32>)> {
    let http = routes.http.iter();
    http.map(|route| (route.name.as_ref().unwrap().name.as_str(), route.kind(), route.ports.clone()))
        .collect()
}

#[test]
fn methods_are_paths() {
    let exact = |path: &str| Some(Path::Exact(path.to_owned()));
    let prefix = |path: &str| Some(Path::Prefix(path.to_owned()));
    let regex = |path: &str| Some(Path::Regex(path.to_owned()));
    let cases = [
        ("{}", prefix("/")),
        ("{method: {service: shop.v1.Orders, method: List}}", exact("/shop.v1.Orders/List")),
        ("{method: {type: Exact, service: shop.v1.Orders}}", prefix("/shop.v1.Orders")),
        ("{method: {service: '', method: List}}", regex("/[^/]+/List")),
        ("{method: {type: RegularExpression, service: 'a|b', method: 'Get.*'}}", regex("/(?:a|b)/(?:Get.*)")),
        ("{method: {type: RegularExpression, method: 'a|b'}}", regex("/[^/]+/(?:a|b)")),
        ("{method: {type: RegularExpression, service: 'a|b'}}", regex("/(?:a|b)/[^/]+")),
    ];
    for (one, path) in cases {
        let rules = format!("[{{matches: [{one}], backendRefs: [{{name: orders, port: 80}}]}}]");
        let (index, found) = index(&format!("{ORDERS}{}", grpc_route("default", "r", "", &rules)));
        assert_eq!(found, [], "{one}");
        let all = routes(&Model::build(&index, Settings::default()), "x/default/orders");
        assert_eq!(all.http[0].kind(), v1::RouteKind::Grpc);
        assert_eq!(all.http[0].rules[0].matches[0].path, path, "{one}");
    }
    let rules = "[{backendRefs: [{name: orders, port: 80}]}]";
    let all =
        routes(&model(&format!("{ORDERS}{}", grpc_route("default", "r", "", rules))), "x/default/orders");
    assert_eq!(all.http[0].rules[0].matches, [v1::HttpMatch { path: prefix("/"), ..Default::default() }]);
}

/// What a match says, the field that is found wrong, and how many rules are served (none: the route is refused).
#[test]
fn a_method_that_is_none_is_told() {
    let cases = [
        ("{method: {}}", "method", None),
        ("{method: {service: 'a/b'}}", "method.service", None),
        ("{method: {service: a, method: b.c}}", "method.method", None),
        ("{method: {service: '1a'}}", "method.service", None),
        ("{method: {type: RegularExpression, service: '('}}", "method.service", Some(0)),
        ("{headers: [{name: 'a b', value: c}]}", "headers[0].name", None),
    ];
    for (one, field, served) in cases {
        let rules = format!("[{{matches: [{one}], backendRefs: [{{name: orders, port: 80}}]}}]");
        let (index, found) = index(&format!("{ORDERS}{}", grpc_route("default", "r", "", &rules)));
        let seen: Vec<_> = found.iter().filter_map(|finding| finding.field.clone()).collect();
        assert_eq!(seen, [format!("spec.rules[0].matches[0].{field}")], "{one}");
        assert!(found.iter().all(|finding| finding.line == Some(16)), "{one}: {found:#?}");
        let all = routes(&Model::build(&index, Settings::default()), "x/default/orders");
        assert_eq!(all.http.first().map(|route| route.rules.len()), served, "{one}");
    }
}

#[test]
fn a_port_with_a_grpc_route_has_no_http_route() {
    use v1::RouteKind::{Grpc, Http};

    let text = format!(
        "{ORDERS}{}{}{}{}",
        route("default", "http", "", TO_ORDERS),
        grpc_route("default", "grpc", ", port: 81", TO_ORDERS),
        // A consumer's routes take the producer's place, whatever their kind.
        route("shop", "http", ", port: 81", TO_ORDERS),
        grpc_route("cafe", "grpc", "", TO_ORDERS),
    );
    let (index, found) = index(&text);
    let seen: Vec<_> = found.iter().map(|one| (one.object.as_deref(), one.field.as_deref())).collect();
    assert_eq!(seen, [(Some("HTTPRoute default/http"), Some("spec.parentRefs[0]"))]);
    let model = Model::build(&index, Settings::default());
    let of = |client: &str| routes(&model, &format!("{client}/default/orders"));
    assert_eq!(followed(&of("x")), [("grpc", Grpc, vec![81]), ("http", Http, vec![80])]);
    assert_eq!(followed(&of("shop")), [("http", Http, vec![80]), ("http", Http, vec![81])]);
    assert_eq!(followed(&of("cafe")), [("grpc", Grpc, vec![])]);
}

#[test]
fn an_http_route_and_a_grpc_route_may_have_one_name() {
    let http = route("default", "r", ", port: 80", TO_ORDERS);
    let grpc = grpc_route("default", "r", ", port: 81", TO_ORDERS);
    let (mut index, found) = index(&format!("{ORDERS}{http}{grpc}"));
    assert_eq!(found, []);
    let kinds = |index: &Index| {
        let all = routes(&Model::build(index, Settings::default()), "x/default/orders");
        all.http.iter().map(v1::HttpRoute::kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&index), [v1::RouteKind::Grpc, v1::RouteKind::Http]);
    index.delete(&ObjectKey { kind: Kind::GrpcRoute, name: name("default/r") });
    assert_eq!(kinds(&index), [v1::RouteKind::Http]);
}
