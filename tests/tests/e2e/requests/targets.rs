//! What each kind of policy is attached to, in what is really served: faults and rate limits of Services, ports, routes and rules, also of
//! GRPCRoutes; which of two on the same target holds; and what counts over several routes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Response;
use serde_json::json;
use tulle_tests::app::{App, full};
use tulle_tests::{Head, Workload, World, eventually};

use super::{PLENTY, Shop, grpc_status, visits};

/// A Service with two ports, for both of which there is an application.
const TWO_PORTS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec: {clusterIP: None, ports: [{name: main, port: 8080, \
                         appProtocol: http}, {name: admin, port: 8081, appProtocol: http}]}\n";

/// A route of this kind, whose rules are for paths that begin with their names, and for all of gRPC's methods of services of that name.
fn route(kind: &str, name: &str, rules: &[&str]) -> String {
    let mut yaml = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n  parentRefs: [{{group: \"\", \
         kind: Service, name: shop, port: 8080}}]\n  rules:\n"
    );
    for rule in rules {
        let found = if kind == "HTTPRoute" {
            format!("path: {{value: /{rule}}}")
        } else {
            format!("method: {{service: {rule}}}")
        };
        yaml += &format!(
            "  - {{name: {rule}, matches: [{{{found}}}], backendRefs: [{{name: shop, port: 8080}}]}}\n"
        );
    }
    yaml
}

/// What a policy is attached to, at each level, from the least specific on.
fn target(kind: &str, level: &str) -> String {
    let of_route = format!("group: gateway.networking.k8s.io, kind: {kind}, name: shop");
    let of_service = "group: \"\", kind: Service, name: shop";
    match level {
        "service" => format!("{{{of_service}}}"),
        "port" => format!("{{{of_service}, sectionName: main}}"),
        "route" => format!("{{{of_route}}}"),
        "rule" => format!("{{{of_route}, sectionName: rule}}"),
        other => panic!("{other}"),
    }
}

fn policy(kind: &str, metadata: &str, target: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{{metadata}}}\nspec:\n  targetRefs: [{target}]\n{spec}\n"
    )
}

/// `web`, and `shop`, which answers at both of its ports.
async fn two_ports() -> (World, Workload, [App; 2], Workload) {
    let world = World::strict().await;
    world.yaml("service-shop.yaml", TWO_PORTS);
    let apps = [App::saying("main").await, App::saying("admin").await];
    let shop =
        world.workload("shop").serves("shop", apps[0].address()).serves("shop:8081", apps[1].address());
    let shop = shop.start().await;
    shop.counts("tulle_registered", &[], 1.0).await;
    let web = world.workload("web").calls("shop").calls("shop:8081").start().await;
    (world, web, apps, shop)
}

async fn ask(web: &Workload, port: u16, path: &str, chaos: &str) -> Head {
    let mut wire = web.connect(&format!("shop:{port}")).await;
    wire.send(format!("GET {path} HTTP/1.1\r\nhost: shop\r\nx-chaos: {chaos}\r\n\r\n")).await;
    wire.response().await.0
}

const LEVELS: [(&str, u16); 4] = [("service", 461), ("port", 462), ("route", 463), ("rule", 464)];

#[tokio::test(flavor = "multi_thread")]
async fn of_faults_the_rules_come_before_the_routes_and_both_before_the_ports_or_the_services() {
    let (world, web, _apps, _shop) = two_ports().await;
    world.yaml(
        "routes.yaml",
        &[route("HTTPRoute", "shop", &["rule", "route"]), route("HTTPRoute", "others", &["other"])].concat(),
    );
    for (level, status) in LEVELS {
        let rules = format!(
            "  rules:\n  - {{name: all, headers: [{{name: x-chaos, value: all}}], abort: {{httpStatus: {status}}}}}\n  \
             - {{name: own, headers: [{{name: x-chaos, value: {level}}}], abort: {{httpStatus: {status}}}}}"
        );
        let policy = policy("FaultPolicy", &format!("name: of-{level}"), &target("HTTPRoute", level), &rules);
        world.yaml(&format!("faults-{level}.yaml"), &policy);
    }
    // Where each of them holds: at a rule that has its own, at one whose route has one, at one of another route, and at the other port.
    const PLACES: [(u16, &str); 4] =
        [(8080, "/rule/a"), (8080, "/route/a"), (8080, "/other/a"), (8081, "/admin")];
    let all_become = async |expected: [u16; 4]| {
        eventually(&format!("all are answered by {expected:?}"), async || {
            let mut statuses = Vec::new();
            for (port, path) in PLACES {
                statuses.push(ask(&web, port, path, "all").await.status());
            }
            if statuses == expected { Ok(()) } else { Err(format!("{statuses:?}")) }
        })
        .await;
    };
    all_become([464, 463, 462, 461]).await;
    // What is replaced is not looked at any more; what a rule or route says and what a port or Service says is put together.
    for ((port, path), answered) in PLACES.into_iter().zip([
        [200, 462, 200, 464],
        [200, 462, 463, 200],
        [200, 462, 200, 200],
        [461, 200, 200, 200],
    ]) {
        for ((level, _), status) in LEVELS.into_iter().zip(answered) {
            let head = ask(&web, port, path, level).await;
            let reason = (status != 200).then_some("fault_injected");
            assert_eq!((head.status(), head.reason()), (status, reason), "{level} at {port}{path}");
        }
    }
    for (path, level) in [("/rule/told", "rule"), ("/route/told", "route"), ("/other/told", "port")] {
        ask(&web, 8080, path, "all").await;
        let record = web.logs(&[("path", json!(path))]).await;
        let by = format!("fault default/of-{level}/all");
        assert!(record["detail"].as_str().is_some_and(|detail| detail.contains(&by)), "{record}");
        let to = format!("http://shop:8080{path}");
        let said = world.explain(&["--from", "default/web", "--to", &to, "--header", "x-chaos: all"]);
        assert_eq!(said["requests"]["fault"]["rule"], json!(format!("default/of-{level}/all")), "{said}");
        let by_route = if level == "port" { json!([]) } else { json!(["fault"]) };
        assert_eq!(said["requests"]["by_route"], by_route, "{said}");
    }
    for (gone, expected) in [
        ("rule", [463, 463, 462, 461]),
        ("route", [462, 462, 462, 461]),
        ("port", [461, 461, 461, 461]),
        ("service", [200, 200, 200, 200]),
    ] {
        world.remove_yaml(&format!("faults-{gone}.yaml"));
        all_become(expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_fault_policies_on_the_same_target_the_older_is_served_and_then_the_first_by_name() {
    let (world, web, _apps, _shop) = two_ports().await;
    world.yaml("routes.yaml", &route("HTTPRoute", "shop", &["rule"]));
    let (one, two) =
        (", creationTimestamp: '2024-01-01T00:00:00Z'", ", creationTimestamp: '2024-01-01T00:00:01Z'");
    let mut status = 410;
    for (level, _) in LEVELS {
        let mut fault = |name: &str, created: &str| {
            status += 1;
            let rules = format!("  rules: [{{abort: {{httpStatus: {status}}}}}]");
            let metadata = format!("name: {name}{created}");
            (policy("FaultPolicy", &metadata, &target("HTTPRoute", level), &rules), status)
        };
        for (of_a, of_b, winner) in
            [(two, one, "b"), ("", one, "b"), (one, "", "a"), (one, one, "a"), ("", "", "a")]
        {
            let [a, b] = [fault("a", of_a), fault("b", of_b)];
            let (holds, other) = if winner == "a" { (&a, &b) } else { (&b, &a) };
            let becomes = async |what: &str, expected: u16, never: u16| {
                eventually(&format!("{level}: {what} with {of_a} and {of_b}"), async || {
                    let status = ask(&web, 8080, "/rule/a", "").await.status();
                    assert_ne!(status, never, "{level}: {what} with {of_a} and {of_b}");
                    if status == expected { Ok(()) } else { Err(status.to_string()) }
                })
                .await;
            };
            world.yaml("faults.yaml", &[&*a.0, &*b.0].concat());
            becomes(&format!("{winner} holds"), holds.1, other.1).await;
            // Nobody but the one that holds: the other takes its place.
            world.yaml("faults.yaml", &other.0);
            becomes("the other is left", other.1, 200).await;
        }
        world.remove_yaml("faults.yaml");
    }
}

impl Shop {
    /// As [`Shop::with`], over HTTP or gRPC, whose Service has this besides a TrafficPolicy, and two routes: `shop`, and `others` for all else.
    async fn routed(kind: &str, traffic: &str, faults: &str, policies: &str) -> Self {
        let protocol = if kind == "HTTPRoute" { "http" } else { "kubernetes.io/h2c" };
        let mut rest = route(kind, "others", &["other"]);
        rest += "  - {backendRefs: [{name: shop, port: 8080}]}\n";
        let more = [&*route(kind, "shop", &["rule", "route", "too"]), &rest, policies].concat();
        Self::with(protocol, "request: 60s", traffic, faults, &more).await
    }

    /// Asks as clients of such a route do: the status, gRPC's if that is spoken, the reason that a proxy gives, and the limit that it names.
    async fn told(&self, kind: &str, path: &str, fields: &[(&str, &str)]) -> [String; 3] {
        if kind == "HTTPRoute" {
            let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            let head = self.ask("GET", path, &fields.join("\r\n"), b"").await;
            let field = |name| head.get(name).unwrap_or_default().to_owned();
            return [head.status().to_string(), field("x-tulle-error"), field("ratelimit")];
        }
        let answer = self.call(&mut self.http2().await, path, fields).await;
        let field = |name| answer.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        [grpc_status(&answer).to_owned(), field("x-tulle-error"), field("ratelimit")]
    }
}

/// So many with the field `x-limited: <by>`, and one with `x-probe: <name>`, by which the policy is known to be in force.
fn often(name: &str, target: &str, direction: &str, by: &str, requests: u32) -> String {
    let direction = if direction.is_empty() { String::new() } else { format!("  direction: {direction}\n") };
    let limit = |name: &str, header: &str, value: &str, requests: u32| {
        format!(
            "  - {{name: {name}, headers: [{{name: {header}, value: {value}}}], rate: {{requests: {requests}, per: 1h}}}}\n"
        )
    };
    let limits = [limit("few", "x-limited", by, requests), limit("probe", "x-probe", name, 1)].concat();
    policy("RateLimitPolicy", &format!("name: {name}"), target, &format!("{direction}  limits:\n{limits}"))
}

/// Each of these with the field, of paths of its own: how many pass, and by which limits the others are refused.
async fn limited(shop: &Shop, kind: &str, at: &str, by: &str, count: usize) -> (usize, Vec<String>) {
    let (good, refused) = if kind == "HTTPRoute" { ("200", "429") } else { ("0", "8") };
    let script = if kind == "HTTPRoute" { "503,200" } else { "14,0" };
    let (mut passed, mut names) = (0, Vec::new());
    for number in 0..count {
        let path = format!("/{at}/{by}{number}");
        let [status, reason, limit] =
            shop.told(kind, &path, &[("x-limited", by), ("x-script", script)]).await;
        let times = visits(&shop.seen, &path).len();
        if status == good {
            assert_eq!(times, 2, "{path} is counted once, and sent again");
            passed += 1;
        } else {
            assert_eq!((&*status, &*reason, times), (refused, "rate_limited", 0), "{path}");
            names.push(limit.split('"').nth(1).unwrap().to_owned());
        }
    }
    (passed, names)
}

/// Rate limits of a rule, of its route and of the Service, outbound and inbound.
async fn limits_of_routes(kind: &str) {
    let policies = [
        often("of-rule", &target(kind, "rule"), "", "out", 3),
        often("of-route", &target(kind, "route"), "", "out", 5),
        often("of-service", &target(kind, "service"), "Outbound", "out", 10),
        often("of-server", &target(kind, "service"), "Inbound", "in", 2),
    ];
    let again = format!(
        "  retry: {{attempts: 2, statuses: [503], grpcCodes: [UNAVAILABLE], backoff: {{base: 1ms}}}}\n  {PLENTY}"
    );
    let shop = Shop::routed(kind, &again, "", &policies.concat()).await;
    for (name, at) in
        [("of-rule", "rule"), ("of-route", "route"), ("of-service", "other"), ("of-server", "other")]
    {
        eventually(&format!("{name} is in force"), async || {
            let [status, reason, limit] =
                shop.told(kind, &format!("/{at}/probe"), &[("x-probe", name)]).await;
            if reason != "rate_limited" {
                return Err(format!("{status} {reason}"));
            }
            assert!(limit.starts_with(&format!("\"default/{name}/probe\"")), "{limit}");
            Ok(())
        })
        .await;
    }
    let named = |name: &str, times: usize| vec![format!("default/{name}/few"); times];
    // A rule's own in place of its route's, which has one count for all of its other rules.
    assert_eq!(limited(&shop, kind, "rule", "out", 5).await, (3, named("of-rule", 2)));
    assert_eq!(limited(&shop, kind, "route", "out", 3).await, (3, vec![]));
    assert_eq!(limited(&shop, kind, "too", "out", 4).await, (2, named("of-route", 2)));
    // And beside these the Service's, of which what they have refused has used nothing.
    assert_eq!(limited(&shop, kind, "other", "out", 4).await, (2, named("of-service", 2)));
    let allowed = |name: &str| [("limit", format!("default/{name}/few")), ("outcome", "allowed".to_owned())];
    let metrics = shop.web.metrics().await;
    for (name, count) in [("of-rule", 3.0), ("of-route", 5.0), ("of-service", 10.0)] {
        let labels = allowed(name);
        let labels: Vec<_> = labels.iter().map(|(label, value)| (*label, value.as_str())).collect();
        let counted = metrics.sum("tulle_rate_limit_requests_total", &labels);
        assert!((counted - count).abs() < 0.5, "{name}: {counted}");
    }
    // The server's own proxy counts what comes, from all rules and of each try.
    let [_, reason, _] = shop.told(kind, "/rule/in", &[("x-limited", "in")]).await;
    assert_eq!(reason, "");
    let [_, reason, _] = shop.told(kind, "/other/in", &[("x-limited", "in")]).await;
    assert_eq!(reason, "");
    let [_, reason, limit] = shop.told(kind, "/route/in", &[("x-limited", "in")]).await;
    assert_eq!(reason, "rate_limited");
    assert!(limit.starts_with("\"default/of-server/few\""), "{limit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_limits_of_an_http_routes_rule_hold_in_place_of_the_routes_and_beside_the_services() {
    limits_of_routes("HTTPRoute").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_limits_of_a_grpc_routes_rule_hold_in_place_of_the_routes_and_beside_the_services() {
    limits_of_routes("GRPCRoute").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_retries_timeouts_and_faults_of_a_grpc_route_and_of_its_rule_hold_before_the_services() {
    let at = |level: &str| target("GRPCRoute", level);
    let fault = |name: &str, abort: &str| {
        format!(
            "  rules: [{{headers: [{{name: x-chaos, value: all}}], abort: {{grpcStatus: {abort}}}}}, {{headers: [{{name: x-chaos, \
             value: {name}}}], abort: {{grpcStatus: {abort}}}}}]"
        )
    };
    let policies = [
        policy(
            "TrafficPolicy",
            "name: of-rule",
            &at("rule"),
            "  timeouts: {deadlineHeader: x-rule, request: 3s, perTry: 0s}\n  retry: {attempts: 3, grpcCodes: [ABORTED], backoff: {base: 1ms}}",
        ),
        policy(
            "TrafficPolicy",
            "name: of-route",
            &at("route"),
            "  timeouts: {deadlineHeader: x-route, perTry: 2s}\n  retry: {attempts: 2, grpcCodes: [UNAVAILABLE], backoff: {base: 1ms}}",
        ),
        policy("FaultPolicy", "name: of-rule", &at("rule"), &fault("rule", "DATA_LOSS")),
        policy("FaultPolicy", "name: of-route", &at("route"), &fault("route", "OUT_OF_RANGE")),
    ];
    let of_service = format!(
        "  retry: {{attempts: 1, grpcCodes: [UNAVAILABLE, ABORTED], backoff: {{base: 1ms}}}}\n  {PLENTY}"
    );
    let faults = fault("service", "FAILED_PRECONDITION");
    let shop = Shop::routed("GRPCRoute", &of_service, &faults, &policies.concat()).await;
    for (path, field, expected) in [
        ("/rule/probe", ("x-rule", "0"), "4"),
        ("/route/probe", ("x-route", "0"), "4"),
        ("/rule/probe", ("x-chaos", "rule"), "15"),
        ("/route/probe", ("x-chaos", "route"), "11"),
        ("/other/probe", ("x-chaos", "service"), "9"),
    ] {
        eventually(&format!("{field:?} is in force at {path}"), async || {
            let [status, ..] = shop.told("GRPCRoute", path, &[field]).await;
            if status == expected { Ok(()) } else { Err(status) }
        })
        .await;
    }
    // What the application does, the status and its reason, and how often it was asked.
    for (path, script, outcome, times) in [
        ("/rule/a", "10,10,10,0", "0 ", 4),
        ("/rule/not_named", "14,0", "14 ", 1),
        ("/rule/late", "silent", "4 request_timeout", 1),
        ("/route/a", "14,14,14,0", "14 ", 3),
        ("/route/not_named", "10,0", "10 ", 1),
        ("/route/late", "silent", "4 backend_timeout", 1),
        ("/other/a", "14,10,0", "10 ", 2),
    ] {
        let [status, reason, _] = shop.told("GRPCRoute", path, &[("x-script", script)]).await;
        assert_eq!(format!("{status} {reason}"), outcome, "{path}");
        assert_eq!(visits(&shop.seen, path).len(), times, "{path}");
    }
    for (at, chaos, status) in [
        ("rule", "all", "15"),
        ("rule", "rule", "15"),
        ("rule", "route", "0"),
        ("rule", "service", "9"),
        ("route", "all", "11"),
        ("route", "rule", "0"),
        ("route", "route", "11"),
        ("route", "service", "9"),
        ("other", "all", "9"),
        ("other", "route", "0"),
    ] {
        let path = format!("/{at}/{chaos}");
        let [said, reason, _] = shop.told("GRPCRoute", &path, &[("x-chaos", chaos)]).await;
        assert_eq!((&*said, &*reason), (status, if status == "0" { "" } else { "fault_injected" }), "{path}");
        assert_eq!(visits(&shop.seen, &path).len(), usize::from(status == "0"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_a_budget_counts_over_all_routes_to_a_port_and_each_port_has_its_own() {
    let asked = Arc::new(AtomicUsize::new(0));
    let failing = {
        let asked = Arc::clone(&asked);
        move |_| {
            asked.fetch_add(1, Ordering::SeqCst);
            async { Response::builder().status(503).body(full("no")).unwrap() }
        }
    };
    let world = World::strict().await;
    let apps = [App::http1(failing.clone()).await, App::http1(failing).await];
    let budget = "  retryBudget: {percent: 0, minimumRetryRate: {count: 5, interval: 1h}}";
    world.yaml("policy.yaml", &policy("TrafficPolicy", "name: shop", &target("", "service"), budget));
    // Two routes of the Service's own, one of another Service's that leads to it, and one to its other port.
    let to = |name: &str, parent: &str, port: u16| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}}}\nspec:\n  parentRefs: [{{group: \"\", \
             kind: Service, name: {parent}, port: 8080}}]\n  rules:\n  - matches: [{{path: {{value: /{name}}}}}]\n    retry: {{codes: [503], \
             attempts: 9, backoff: 0s}}\n    backendRefs: [{{name: shop, port: {port}}}]\n"
        )
    };
    let routes = [
        to("one", "shop", 8080),
        to("two", "shop", 8080),
        to("three", "front", 8080),
        to("admin", "front", 8081),
    ];
    world.yaml("routes.yaml", &routes.concat());
    world.service("front", "http");
    world.yaml("service-shop.yaml", TWO_PORTS);
    let shop =
        world.workload("shop").serves("shop", apps[0].address()).serves("shop:8081", apps[1].address());
    let shop = shop.start().await;
    shop.counts("tulle_registered", &[], 1.0).await;
    let web = world.workload("web").calls("shop").calls("front").start().await;
    let ask = async |service: &str, path: &str| {
        let mut wire = web.connect(service).await;
        wire.send(format!("GET {path} HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n")).await;
        let (head, body) = wire.response().await;
        assert_eq!((head.status(), head.reason(), &*body), (503, None, &b"no"[..]), "{path}: {head:?}");
    };
    for number in 1..=10 {
        for (service, path) in [("shop", "/one"), ("shop", "/two"), ("front", "/three")] {
            ask(service, path).await;
        }
        let most = asked.load(Ordering::SeqCst);
        assert!(most <= 3 * number + 5, "{most} after {number} requests of each route");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 30 + 5);
    for _ in 0..10 {
        ask("front", "/admin").await;
    }
    assert_eq!(asked.load(Ordering::SeqCst), 40 + 10);
    let withheld = web.metrics().await.sum("tulle_retries_withheld_total", &[("cause", "budget")]);
    assert!(withheld >= 30.0, "{withheld}");
    drop((shop, apps));
}
