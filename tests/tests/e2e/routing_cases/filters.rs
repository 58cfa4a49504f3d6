//! What filters change on the way there and back, and what they answer.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tulle_tests::app::App;
use tulle_tests::eventually;

use super::{FIELDS, Shop};

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_changed_on_the_way_there_and_back() {
    let shop = Shop::start(false).await;
    let rules = "
- matches: [{path: {value: /request}}]
  filters:
  - type: RequestHeaderModifier
    requestHeaderModifier:
      set: [{name: X-Set, value: set}, {name: X-New, value: new}]
      add: [{name: X-Add, value: added}]
      remove: [X-Remove]
  backendRefs: [{name: v1, port: 8080}]
- matches: [{path: {value: /backend}}]
  filters:
  - {type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Add, value: rule}], set: [{name: X-Set, value: rule}]}}
  backendRefs:
  - name: v1
    port: 8080
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Add, value: v1}], set: [{name: X-Set, value: v1}]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Set, value: v1}], remove: [X-Add]}}
  - name: v2
    port: 8080
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Add, value: v2}], remove: [X-Set]}}
- matches: [{path: {value: /response}}]
  filters:
  - type: ResponseHeaderModifier
    responseHeaderModifier:
      set: [{name: X-Set, value: set}, {name: X-New, value: new}]
      add: [{name: X-Add, value: added}]
      remove: [X-Remove]
  backendRefs: [{name: v2, port: 8080}]
- matches: [{path: {value: /none}}]
  backendRefs: [{name: v1, port: 8080}]";
    shop.rules("headers", rules).await;
    let names = ["x-set", "x-add", "x-remove", "x-new", "x-other"];
    for (path, saw, got) in [
        ("/request", ["set", "own,added", "-", "new", "own"], ["own", "own", "own", "-", "-"]),
        ("/response", ["own", "own", "own", "-", "own"], ["set", "own,added", "-", "new", "-"]),
        ("/none", ["own", "own", "own", "-", "own"], ["own", "own", "own", "-", "-"]),
    ] {
        let answer = shop.ask(&format!("GET {path} {FIELDS}")).await;
        assert_eq!(names.map(|name| answer.saw_field(name)), saw, "{path}, as the application sees it");
        assert_eq!(names.map(|name| answer.field(name)), got, "{path}, as it is answered");
        assert_eq!((answer.saw("target"), answer.saw("host")), (path, "shop"));
    }
    let mut asked = [0; 2];
    // Neither is picked with a probability of 2^-63.
    for _ in 0..64 {
        let answer = shop.ask(&format!("GET /backend {FIELDS}")).await;
        let first = answer.by() == "v1";
        asked[usize::from(first)] += 1;
        let saw = ["x-set", "x-add"].map(|name| answer.saw_field(name));
        assert_eq!(saw, if first { ["v1", "own,rule,v1"] } else { ["-", "own,rule,v2"] });
        let got = ["x-set", "x-add"].map(|name| answer.field(name));
        assert_eq!(got, if first { ["v1", "-"] } else { ["own", "own"] });
    }
    assert!(asked.iter().all(|times| *times > 0), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_hosts_are_rewritten() {
    let shop = Shop::start(false).await;
    let mut rules = String::new();
    for (at, rewrite) in [
        ("/prefix/one", "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /one}}"),
        ("/strip", "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}"),
        ("/full/one", "{path: {type: ReplaceFullPath, replaceFullPath: /one}}"),
        ("/host", "{hostname: one.example.org}"),
        ("/both", "{hostname: one.example.org, path: {type: ReplacePrefixMatch, replacePrefixMatch: /two/}}"),
    ] {
        write!(
            rules,
            "
- matches: [{{path: {{value: {at}}}}}]
  filters:
  - {{type: URLRewrite, urlRewrite: {rewrite}}}
  - {{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: X-Set, value: set}}]}}}}
  backendRefs: [{{name: v1, port: 8080}}]"
        )
        .unwrap();
    }
    shop.rules("rewrite", &rules).await;
    for (asked, target, host) in [
        ("/prefix/one/two", "/one/two", "shop"),
        ("/prefix/one", "/one", "shop"),
        ("/prefix/one/two?q=/prefix/one", "/one/two?q=/prefix/one", "shop"),
        ("/strip/three", "/three", "shop"),
        ("/strip", "/", "shop"),
        ("/full/one/two?q=1", "/one?q=1", "shop"),
        ("/host/a", "/host/a", "one.example.org"),
        ("/both/a", "/two/a", "one.example.org"),
    ] {
        let answer = shop.ask(&format!("GET {asked} {FIELDS}")).await;
        assert_eq!((answer.saw("target"), answer.saw("host")), (target, host), "{asked}");
        assert_eq!((answer.saw_field("x-set"), answer.saw_field("x-remove")), ("set", "own"), "{asked}");
    }
    // What the client sent is what is logged.
    shop.web.logs(&[("path", json!("/full/one/two")), ("authority", json!("shop"))]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_answered_without_a_backend() {
    let shop = Shop::start(false).await;
    let mut cases = Vec::new();
    let mut rules = String::new();
    for (at, redirect, asked, status, location) in [
        ("/host", "{hostname: example.org}", "/host/a?q=1", 302, "http://example.org:8080/host/a?q=1"),
        (
            "/status",
            "{hostname: example.org, statusCode: 301}",
            "/status",
            301,
            "http://example.org:8080/status",
        ),
        (
            "/prefix",
            "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}",
            "/prefix/lemon?q",
            302,
            "http://shop:8080/new/lemon?q",
        ),
        (
            "/strip",
            "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}",
            "/strip/lemon",
            302,
            "http://shop:8080/lemon",
        ),
        (
            "/full",
            "{path: {type: ReplaceFullPath, replaceFullPath: /new}}",
            "/full/lemon?q",
            302,
            "http://shop:8080/new?q",
        ),
        ("/port", "{port: 8083}", "/port", 302, "http://shop:8083/port"),
        ("/port80", "{port: 80}", "/port80", 302, "http://shop/port80"),
        ("/https", "{scheme: https}", "/https", 302, "https://shop/https"),
        ("/http", "{scheme: http}", "/http", 302, "http://shop/http"),
        (
            "/https8443",
            "{scheme: https, port: 8443, hostname: example.org}",
            "/https8443",
            302,
            "https://example.org:8443/https8443",
        ),
        ("/303", "{scheme: https, statusCode: 303}", "/303", 303, "https://shop/303"),
        ("/307", "{scheme: https, statusCode: 307}", "/307", 307, "https://shop/307"),
        ("/308", "{scheme: https, statusCode: 308}", "/308", 308, "https://shop/308"),
    ] {
        write!(
            rules,
            "\n- matches: [{{path: {{value: {at}}}}}]\n  filters:\n  - {{type: RequestRedirect, requestRedirect: {redirect}}}"
        )
        .unwrap();
        cases.push((asked, status, location));
    }
    rules.push_str(
        "\n  - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Set, value: set}]}}",
    );
    shop.rules("redirect", &rules).await;
    for &(asked, status, location) in &cases {
        for method in ["GET", "POST"] {
            let answer = shop.ask(&format!("{method} {asked}")).await;
            assert_eq!((answer.by(), answer.field("location")), (status.to_string(), location.to_owned()));
            // The last rule has a modifier besides.
            assert_eq!(answer.field("x-set"), if status == 308 { "set" } else { "-" }, "{asked}");
            assert!(answer.seen.is_none(), "{asked} reached an application");
        }
    }
    let answer = shop.ask("GET /host host:other.example:1234").await;
    assert_eq!(answer.field("location"), "http://example.org:8080/host");
    let answer = shop.ask("GET /port host:other.example:1234").await;
    assert_eq!(answer.field("location"), "http://other.example:8083/port");
    let record = shop.web.logs(&[("path", json!("/307")), ("status", json!(307))]).await;
    assert_eq!((&record["route"], &record["backend"]), (&json!("default/shop"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirected_body_is_never_taken_for_the_next_request() {
    let shop = Shop::start(false).await;
    let rules = "
- matches: [{path: {value: /old}}]
  filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, statusCode: 307}}]
- backendRefs: [{name: v1, port: 8080}]";
    shop.rules("body", rules).await;
    for (fields, body) in [
        ("content-length: 33\r\n", "GET /new HTTP/1.1\r\nhost: shop\r\n\r\n".to_owned()),
        (
            "transfer-encoding: chunked\r\n",
            "21\r\nGET /new HTTP/1.1\r\nhost: shop\r\n\r\n\r\n0\r\n\r\n".to_owned(),
        ),
        // A client that waits to be told to go on is not kept waiting, and sends nothing.
        ("content-length: 5\r\nexpect: 100-continue\r\n", String::new()),
    ] {
        let mut wire = shop.web.connect("shop").await;
        wire.send(format!("POST /old HTTP/1.1\r\nhost: shop\r\n{fields}\r\n{body}")).await;
        let (head, _) = wire.response().await;
        assert_eq!(
            (head.status(), head.get("location")),
            (307, Some("http://example.org:8080/old")),
            "{fields}"
        );
        if head.has("connection", "close") {
            assert_eq!(wire.to_end_or_reset().await, b"", "{fields}");
        } else {
            wire.send("GET /next HTTP/1.1\r\nhost: shop\r\n\r\n").await;
            let (head, body) = wire.response().await;
            let seen: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((head.status(), &seen["target"]), (200, &json!("/next")), "{fields}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_not_served_as_if_less_was_asked() {
    let shop = Shop::start(false).await;
    shop.go(
        "unserved",
        "
- matches: [{path: {value: /extension}}]
  filters: [{type: ExtensionRef, extensionRef: {group: example.org, kind: Filter, name: other}}]
  backendRefs: [{name: v1, port: 8080}]
- matches: [{path: {value: /backend}}]
  backendRefs:
  - {name: v1, port: 8080, filters: [{type: URLRewrite, urlRewrite: {hostname: other}}]}
- matches: [{path: {value: /pattern}, headers: [{name: version, type: RegularExpression, value: '('}]}]
  backendRefs: [{name: v2, port: 8080}]
- backendRefs: [{name: v1, port: 8080}]",
        &[
            ("GET /extension", "500 route_invalid"),
            ("GET /backend", "500 backend_not_found"),
            ("GET /pattern version:(", "v1"),
            ("GET /", "v1"),
        ],
    )
    .await;
}

/// After the conformance suite's `HTTPRouteCORS`.
#[tokio::test(flavor = "multi_thread")]
async fn pages_of_allowed_origins_may_read_answers_and_are_told_beforehand() {
    let shop = Shop::start(false).await;
    let mut rules = String::new();
    for (at, cors) in [
        (
            "/exact",
            "{allowOrigins: ['https://a.example', 'https://*.b.example'], allowMethods: [GET, PUT], allowHeaders: [x-one, x-two], exposeHeaders: [x-set, x-add], maxAge: 3600}",
        ),
        ("/all", "{allowOrigins: ['*'], allowMethods: ['*'], allowHeaders: ['*'], exposeHeaders: ['*']}"),
        ("/creds", "{allowOrigins: ['*'], allowCredentials: true, allowMethods: ['*'], allowHeaders: ['*']}"),
    ] {
        write!(
            rules,
            "
- matches: [{{path: {{value: {at}}}}}]
  filters:
  - {{type: CORS, cors: {cors}}}
  - {{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-new, value: new}}]}}}}
  backendRefs: [{{name: v1, port: 8080}}]"
        )
        .unwrap();
    }
    shop.rules("cors", &rules).await;
    let names =
        ["origin", "credentials", "methods", "headers"].map(|name| format!("access-control-allow-{name}"));
    let preflight = "access-control-request-method:PUT access-control-request-headers:x-one";
    for (path, origin, expected, age) in [
        ("/exact", "https://a.example", ["https://a.example", "-", "GET, PUT", "x-one, x-two"], "3600"),
        (
            "/exact",
            "https://x.y.b.example",
            ["https://x.y.b.example", "-", "GET, PUT", "x-one, x-two"],
            "3600",
        ),
        ("/exact", "https://b.example", ["-"; 4], "-"),
        ("/exact", "http://a.example", ["-"; 4], "-"),
        ("/exact", "https://a.example:8443", ["-"; 4], "-"),
        ("/all", "https://any.example", ["https://any.example", "-", "PUT", "x-one"], "5"),
        ("/creds", "https://any.example", ["https://any.example", "true", "PUT", "x-one"], "5"),
    ] {
        let answer = shop.ask(&format!("OPTIONS {path}/x origin:{origin} {preflight}")).await;
        assert_eq!((answer.status, &answer.seen), (204, &None), "{path} {origin}: no application is asked");
        let got = names.each_ref().map(|name| answer.field(name));
        assert_eq!(got, expected, "{path} {origin}");
        assert_eq!(answer.field("access-control-max-age"), age, "{path} {origin}");
        assert_eq!((answer.field("x-new").as_str(), answer.field("x-tulle-error").as_str()), ("new", "-"));
    }
    for (asked, expected) in [
        ("GET /exact origin:https://a.example", ["https://a.example", "-", "x-set, x-add", "Origin"]),
        ("GET /exact origin:https://c.example", ["-", "-", "-", "Origin"]),
        ("GET /exact", ["-", "-", "-", "Origin"]),
        ("GET /all origin:https://c.example", ["https://c.example", "-", "*", "Origin"]),
        ("OPTIONS /exact origin:https://a.example", ["https://a.example", "-", "x-set, x-add", "Origin"]),
    ] {
        let answer = shop.ask(asked).await;
        assert_eq!(answer.by(), "v1", "{asked}");
        let rest = ["access-control-allow-credentials", "access-control-expose-headers", "vary"];
        let got = [
            answer.field("access-control-allow-origin"),
            answer.field(rest[0]),
            answer.field(rest[1]),
            answer.field(rest[2]),
        ];
        assert_eq!(got, expected, "{asked}");
    }
    let answer = shop.ask("GET /creds origin:https://c.example cookie:a=b").await;
    assert_eq!(answer.field("access-control-allow-credentials"), "true");
}

/// After the conformance suite's `HTTPRouteRequestMirror` and `HTTPRouteRequestPercentageMirror`.
#[tokio::test(flavor = "multi_thread")]
async fn copies_go_to_a_mirror_that_nobody_waits_for() {
    let shop = Shop::start(false).await;
    shop.world.service("silent", "http");
    // It takes what it is sent, and never answers.
    let app = App::wire(async move |mut wire: tulle_tests::Wire| drop(wire.to_end_or_reset().await)).await;
    let _silent = shop.world.workload("silent").serves("silent", app.address()).start().await;
    let mut rules = String::new();
    for (at, mirror) in [
        ("/all", "{backendRef: {name: v2, port: 8080}}"),
        ("/none", "{backendRef: {name: v2, port: 8080}, percent: 0}"),
        ("/half", "{backendRef: {name: v2, port: 8080}, fraction: {numerator: 1, denominator: 2}}"),
        ("/nobody", "{backendRef: {name: nobody, port: 8080}}"),
        ("/silent", "{backendRef: {name: silent, port: 8080}}"),
    ] {
        write!(
            rules,
            "
- matches: [{{path: {{value: {at}}}}}]
  filters:
  - {{type: RequestMirror, requestMirror: {mirror}}}
  - {{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-set, value: set}}]}}}}
  backendRefs: [{{name: v1, port: 8080}}]"
        )
        .unwrap();
    }
    shop.rules("mirror", &rules).await;
    for _ in 0..20 {
        for path in ["/all/x", "/none/x", "/half/x", "/nobody/x", "/silent/x"] {
            assert_eq!(shop.ask(&format!("GET {path}")).await.by(), "v1");
        }
    }
    let mirrored = &shop._versions[1].1;
    mirrored.logs(&[("path", json!("/all/x")), ("status", json!(200))]).await;
    // Nothing is copied any more once each that was is told of by both: all, none, and half of it by chance, but neither none nor all of
    // that, save with a probability of 2^-19.
    let web = &shop.web;
    eventually("the copies have answers", async || {
        let answered = web.metrics().await.sum("tulle_mirrors_total", &[("result", "answered")]);
        let log = mirrored.access_log();
        let seen = |path: &str| log.iter().filter(|record| record["path"] == path).count();
        let [all, none, half, nobody] = ["/all/x", "/none/x", "/half/x", "/nobody/x"].map(seen);
        let is_so = all == 20 && none == 0 && (1..20).contains(&half) && nobody == 0;
        let told =
            format!("{all} of all, {none} of none, {half} of half, {nobody} of nobody: {answered} answered");
        if is_so && answered == (all + half) as f64 { Ok(()) } else { Err(told) }
    })
    .await;
    // A body goes to both.
    let mut wire = web.connect("shop").await;
    wire.send("POST /all/body HTTP/1.1\r\nhost: shop\r\ncontent-length: 5\r\n\r\nhello").await;
    assert_eq!(wire.response().await.0.status(), 200);
    for version in [&shop._versions[0].1, mirrored] {
        version.logs(&[("path", json!("/all/body")), ("status", json!(200)), ("bytes_in", json!(5))]).await;
    }
}
