//! Filters: what is passed on, and which go together.

use super::*;
use v1::http_filter::Filter;

const BACKEND: &str = "backendRefs: [{name: orders, port: 80}]";

/// Line and field of each finding.
type Found = Vec<(Option<u32>, String)>;

/// The rules of the route, if it is served.
fn read(rules: &str) -> (Option<Vec<v1::HttpRule>>, Found) {
    let rules = rules.replace("BACKEND", BACKEND);
    let (index, found) = index(&format!("{ORDERS}{}", route("default", "r", "", &rules)));
    let seen = found.iter().map(|one| (one.line, one.field.clone().unwrap_or_default()));
    let all = routes(&Model::build(&index, Settings::default()), "x/default/orders");
    (all.http.into_iter().next().map(|route| route.rules), seen.collect())
}

fn headers(pairs: &[(&str, &str)]) -> Vec<v1::Header> {
    let header = |(name, value): &(&str, &str)| v1::Header { name: (*name).into(), value: (*value).into() };
    pairs.iter().map(header).collect()
}

/// The filters of the only rule, and of its first backend, as the wire has them.
fn passed_on(rule: &str) -> [Vec<Filter>; 2] {
    let rules = format!("[{}]", rule.replace("BACKEND", BACKEND));
    let (index, _) = index(&format!("{ORDERS}{}", route("default", "r", "", &rules)));
    let read = &index.routes().next().unwrap_or_else(|| panic!("{rule}")).object.rules[0];
    assert_eq!(read.fault, None, "{rule}");
    let of_backend = read.backends.first().map(|backend| backend.filters.as_slice());
    [&read.filters, of_backend.unwrap_or_default()]
        .map(|filters| wire::filters(filters.iter()).into_iter().map(|one| one.filter.unwrap()).collect())
}

#[test]
fn header_modifiers_are_passed_on_in_order() {
    let modifier =
        "{set: [{name: A, value: b}], add: [{name: c, value: d}, {name: e, value: 'f g'}], remove: [h]}";
    let expected = v1::HeaderModifier {
        set: headers(&[("A", "b")]),
        add: headers(&[("c", "d"), ("e", "f g")]),
        remove: vec!["h".to_owned()],
    };
    let response = format!("{{type: ResponseHeaderModifier, responseHeaderModifier: {modifier}}}");
    let request = format!("{{type: RequestHeaderModifier, requestHeaderModifier: {modifier}}}");
    let both = [Filter::ResponseHeaders(expected.clone()), Filter::RequestHeaders(expected.clone())];
    assert_eq!(passed_on(&format!("{{filters: [{response}, {request}], BACKEND}}"))[0], both);
    let rule = format!("{{backendRefs: [{{name: orders, port: 80, filters: [{response}, {request}]}}]}}");
    assert_eq!(passed_on(&rule), [vec![], both.to_vec()]);
}

#[test]
fn redirects_and_rewrites_are_passed_on() {
    use v1::path_modifier::Modifier;

    let path = |modifier| Some(v1::PathModifier { modifier: Some(modifier) });
    let redirect = v1::Redirect { status: 302, ..Default::default() };
    let cases = [
        ("{}", redirect.clone()),
        (
            "{scheme: https, hostname: a.example, port: 8443, statusCode: 308}",
            v1::Redirect {
                scheme: "https".into(),
                hostname: "a.example".into(),
                port: 8443,
                status: 308,
                ..redirect.clone()
            },
        ),
        (
            "{path: {type: ReplaceFullPath, replaceFullPath: /b}}",
            v1::Redirect { path: path(Modifier::Full("/b".into())), ..redirect.clone() },
        ),
        (
            "{path: {type: ReplacePrefixMatch, replacePrefixMatch: ''}}",
            v1::Redirect { path: path(Modifier::Prefix(String::new())), ..redirect },
        ),
    ];
    for (written, expected) in cases {
        let rule = format!(
            "{{matches: [{{path: {{value: /a}}}}], filters: [{{type: RequestRedirect, requestRedirect: {written}}}]}}"
        );
        assert_eq!(passed_on(&rule)[0], [Filter::Redirect(expected)], "{written}");
    }
    let rewrite = "{hostname: a.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}";
    assert_eq!(
        passed_on(&format!("{{filters: [{{type: URLRewrite, urlRewrite: {rewrite}}}], BACKEND}}"))[0],
        [Filter::Rewrite(v1::Rewrite {
            hostname: "a.example".into(),
            path: path(Modifier::Prefix("/b".into()))
        })],
    );
}

/// What a rule says, and the field that refuses the route, in the Gateway API's own rules.
#[test]
fn what_the_gateway_api_forbids_is_refused() {
    const SET: &str = "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}";
    const TO: &str = "{type: RequestRedirect, requestRedirect: {scheme: https}}";
    const PREFIX: &str =
        "{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}";
    let cases = [
        ("{filters: [TO], BACKEND}", "filters[0]"),
        ("{filters: [TO, {type: URLRewrite, urlRewrite: {hostname: a}}]}", "filters"),
        ("{filters: [SET, SET], BACKEND}", "filters[1]"),
        ("{filters: [{type: RequestHeaderModifier}], BACKEND}", "filters[0].requestHeaderModifier"),
        (
            "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {}, urlRewrite: {}}], BACKEND}",
            "filters[0].urlRewrite",
        ),
        (
            "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: 'a:', value: b}]}}], BACKEND}",
            "filters[0].requestHeaderModifier.set[0].name",
        ),
        (
            "{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: a, value: \"b\\n\"}]}}], BACKEND}",
            "filters[0].responseHeaderModifier.add[0].value",
        ),
        (
            "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: ['']}}], BACKEND}",
            "filters[0].requestHeaderModifier.remove[0]",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 304}}]}",
            "filters[0].requestRedirect.statusCode",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {port: 0}}]}",
            "filters[0].requestRedirect.port",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {scheme: ftp}}]}",
            "filters[0].requestRedirect.scheme",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {hostname: '*.a'}}]}",
            "filters[0].requestRedirect.hostname",
        ),
        (
            "{filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replacePrefixMatch: /}}}], BACKEND}",
            "filters[0].urlRewrite.path.replacePrefixMatch",
        ),
        (
            "{matches: [{path: {value: /a}}, {path: {value: /c}}], filters: [PREFIX], BACKEND}",
            "filters[0].urlRewrite.path.replacePrefixMatch",
        ),
        (
            "{matches: [{path: {type: Exact, value: /a}}], filters: [PREFIX], BACKEND}",
            "filters[0].urlRewrite.path.replacePrefixMatch",
        ),
        ("{backendRefs: [{name: orders, port: 80, filters: [SET, SET]}]}", "backendRefs[0].filters[1]"),
        ("{filters: [{type: Unheard}], BACKEND}", "filters[0].type"),
    ];
    for (rule, field) in cases {
        let rule = rule.replace("SET", SET).replace("PREFIX", PREFIX).replace("TO", TO);
        let (rules, found) = read(&format!("[{rule}]"));
        let at = (Some(16), format!("spec.rules[0].{field}"));
        assert!(found.contains(&at), "{rule}: {found:#?}");
        assert_eq!(rules, None, "{rule}");
    }
}

#[test]
fn a_rule_with_what_cannot_be_done_answers_500_to_all_that_it_matches() {
    let cases = [
        ("{type: ExtensionRef, extensionRef: {group: a, kind: B, name: c}}", "extensionRef"),
        (
            "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: a}}}",
            "urlRewrite.path.replaceFullPath",
        ),
    ];
    for (filter, field) in cases {
        let written =
            format!("[{{matches: [{{path: {{value: /a}}}}], filters: [{filter}], BACKEND}}, {{BACKEND}}]");
        let (rules, found) = read(&written);
        assert_eq!(found, [(Some(16), format!("spec.rules[0].filters[0].{field}"))]);
        let rules = rules.unwrap();
        assert_eq!((rules[0].matches.len(), rules[0].backends.len(), rules[0].filters.len()), (1, 0, 0));
        assert_eq!(rules[1].backends.len(), 1);
    }
    // Of a backend, it is that backend's share.
    let rule = "[{backendRefs: [{name: orders, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: a}}]}, {name: orders, port: 81}]}]";
    let (rules, found) = read(rule);
    assert_eq!(found, [(Some(16), "spec.rules[0].backendRefs[0].filters[0]".to_owned())]);
    let backends = &rules.unwrap()[0].backends;
    assert_eq!(backends[0].invalid, "the filter URLRewrite of a backend is not supported");
    assert_eq!((backends[0].filters.len(), backends[1].invalid.as_str()), (0, ""));
}

#[test]
fn there_are_only_so_many_of_everything() {
    let repeated = |one: &str, count: usize| vec![one; count].join(", ");
    let cases = [
        (format!("[{}]", repeated("{BACKEND}", 17)), "spec.rules"),
        (format!("[{{matches: [{}], BACKEND}}]", repeated("{}", 65)), "spec.rules[0].matches"),
        (
            format!("[{}]", repeated(&format!("{{matches: [{}], BACKEND}}", repeated("{}", 50)), 3)),
            "spec.rules",
        ),
        (
            format!("[{{backendRefs: [{}]}}]", repeated("{name: orders, port: 80}", 17)),
            "spec.rules[0].backendRefs",
        ),
    ];
    for (rules, field) in cases {
        let (rules, found) = read(&rules);
        assert_eq!(found.iter().map(|(_, field)| field.as_str()).collect::<Vec<_>>(), [field]);
        assert_eq!(rules, None);
    }
}

#[test]
fn hostnames_of_a_route_to_a_service_are_not_looked_at() {
    let text = route("default", "r", "", TO_ORDERS).replace("rules:", "hostnames: [a.example]\n  rules:");
    let (index, found) = index(&format!("{ORDERS}{text}"));
    let fields: Vec<_> = found.iter().map(|one| (one.severity, one.field.as_deref())).collect();
    assert_eq!(fields, [(crate::finding::Severity::Warning, Some("spec.hostnames"))]);
    let all = routes(&Model::build(&index, Settings::default()), "x/default/orders");
    assert_eq!(all.http[0].hostnames, [""; 0]);
}

#[test]
fn what_no_filter_changes_is_an_error_and_the_rest_holds() {
    let modifier = "{set: [{name: Host, value: a}, {name: x-mine, value: b}], add: [{name: X-Tulle-Error, value: c}], remove: [TE]}";
    let (served, found) = read(&format!(
        "[{{filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {modifier}}}], BACKEND}}]"
    ));
    assert_eq!(served.unwrap()[0].backends.len(), 1);
    let mut fields: Vec<_> =
        found.iter().map(|(_, field)| field.rsplit_once("Modifier.").unwrap().1).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["add[0].name", "remove[0]", "set[0].name"]);
}

#[test]
fn cors_is_passed_on() {
    let filter = "{type: CORS, cors: {allowOrigins: ['https://a.example', 'http://*.b.example:8080', 'https://*'], \
                  allowCredentials: true, allowMethods: [PUT], allowHeaders: ['*'], exposeHeaders: [X-A, x-b], maxAge: 60}}";
    let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let expected = v1::Cors {
        allow_origins: all(&["https://a.example", "http://*.b.example:8080", "https://*"]),
        allow_credentials: true,
        allow_methods: all(&["PUT"]),
        allow_headers: all(&["*"]),
        expose_headers: all(&["X-A", "x-b"]),
        max_age: 60,
    };
    assert_eq!(passed_on(&format!("{{filters: [{filter}], BACKEND}}"))[0], [Filter::Cors(expected)]);
    let plain = "{filters: [{type: CORS, cors: {allowOrigins: ['*']}}], BACKEND}";
    let expected = v1::Cors { allow_origins: all(&["*"]), max_age: 5, ..Default::default() };
    assert_eq!(passed_on(plain)[0], [Filter::Cors(expected)]);
}

#[test]
fn cors_that_lets_anybody_act_for_whoever_is_signed_in_is_warned_of_and_served() {
    for (origins, credentials, is_warned_of) in [
        ("'*'", "true", true),
        ("'https://*'", "true", true),
        ("'*'", "false", false),
        ("'https://*.example'", "true", false),
    ] {
        let cors = format!("{{allowOrigins: [{origins}], allowCredentials: {credentials}}}");
        let (rules, found) = read(&format!("[{{filters: [{{type: CORS, cors: {cors}}}], BACKEND}}]"));
        let fields: Vec<_> = found.iter().map(|(_, field)| field.as_str()).collect();
        let field = "spec.rules[0].filters[0].cors.allowCredentials";
        assert_eq!(fields, if is_warned_of { vec![field] } else { vec![] }, "{cors}");
        assert_eq!(rules.unwrap()[0].filters.len(), 1, "{cors}");
    }
}

#[test]
fn cors_that_the_gateway_api_forbids_is_refused() {
    for (cors, field) in [
        ("allowOrigins: ['*', 'https://a.example']", "allowOrigins[0]"),
        ("allowOrigins: [a.example]", "allowOrigins[0]"),
        ("allowOrigins: ['https://a.example:x']", "allowOrigins[0]"),
        ("allowOrigins: ['https://a.*.example']", "allowOrigins[0]"),
        ("allowOrigins: ['https://a.example', 'https://a.example']", "allowOrigins[1]"),
        ("allowOrigins: ['*'], allowMethods: [put]", "allowMethods[0]"),
        ("allowOrigins: ['*'], allowMethods: [PUT, '*']", "allowMethods[1]"),
        ("allowOrigins: ['*'], allowHeaders: ['a b']", "allowHeaders[0]"),
        ("allowOrigins: ['*'], exposeHeaders: [a, a]", "exposeHeaders[1]"),
        ("allowOrigins: ['*'], maxAge: 0", "maxAge"),
    ] {
        let (rules, found) = read(&format!("[{{filters: [{{type: CORS, cors: {{{cors}}}}}], BACKEND}}]"));
        let fields: Vec<_> = found.iter().map(|(_, field)| field.as_str()).collect();
        assert_eq!(fields, [format!("spec.rules[0].filters[0].cors.{field}")], "{cors}");
        assert_eq!(rules, None, "{cors}");
    }
}

#[test]
fn mirrors_are_passed_on_by_their_share() {
    let to = "backendRef: {name: orders, port: 80}";
    for (written, share) in [
        (to.to_string(), (100, 100)),
        (format!("{to}, percent: 0"), (0, 100)),
        (format!("{to}, fraction: {{numerator: 1}}"), (1, 100)),
        (format!("{to}, fraction: {{numerator: 1, denominator: 3}}"), (1, 3)),
    ] {
        let filter = format!("{{type: RequestMirror, requestMirror: {{{written}}}}}");
        let (rules, found) = read(&format!("[{{filters: [{filter}, {filter}], BACKEND}}]"));
        assert_eq!(found, [], "{written}");
        let mirror = v1::Mirror {
            service: Some(v1::ObjectName { namespace: "default".into(), name: "orders".into() }),
            port: 80,
            numerator: share.0,
            denominator: share.1,
            invalid: String::new(),
        };
        let filters: Vec<_> =
            rules.unwrap()[0].filters.iter().map(|one| one.filter.clone().unwrap()).collect();
        assert_eq!(filters, [Filter::Mirror(mirror.clone()), Filter::Mirror(mirror)], "{written}");
    }
    for (written, field) in [
        (format!("{to}, percent: 101"), "percent"),
        (format!("{to}, percent: 1, fraction: {{numerator: 1}}"), "percent"),
        (format!("{to}, fraction: {{numerator: 4, denominator: 3}}"), "fraction"),
        (format!("{to}, fraction: {{numerator: 0, denominator: 0}}"), "fraction"),
        ("backendRef: {name: orders}".to_owned(), "backendRef.port"),
    ] {
        let filter = format!("{{type: RequestMirror, requestMirror: {{{written}}}}}");
        let (rules, found) = read(&format!("[{{filters: [{filter}], BACKEND}}]"));
        let fields: Vec<_> = found.iter().map(|(_, field)| field.as_str()).collect();
        assert_eq!(fields, [format!("spec.rules[0].filters[0].requestMirror.{field}")], "{written}");
        assert_eq!(rules, None, "{written}");
    }
}

#[test]
fn a_mirror_to_nobody_gets_nothing_and_the_rule_holds() {
    let filter = "{type: RequestMirror, requestMirror: {backendRef: {name: nobody, port: 80}}}";
    let (rules, found) = read(&format!("[{{filters: [{filter}], BACKEND}}]"));
    let fields: Vec<_> = found.iter().map(|(_, field)| field.as_str()).collect();
    assert_eq!(fields, ["spec.rules[0].filters[0].requestMirror.backendRef"]);
    let rules = rules.unwrap();
    assert_eq!((rules[0].backends.len(), rules[0].invalid.as_str()), (1, ""));
    let Some(Filter::Mirror(mirror)) = &rules[0].filters[0].filter else { panic!("{rules:?}") };
    assert_eq!((mirror.numerator, mirror.invalid.as_str()), (0, "there is no Service default/nobody"));
}
