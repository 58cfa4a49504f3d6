//! Which traces are recorded, by TelemetryPolicies: from YAML to the spans that a collector has.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tulle_tests::app::App;
use tulle_tests::{Mode, Wire, World, eventually};

use super::collector::{Collector, Span};
use super::{SPAN, TRACE, answer, lines, of, traced};

/// The rest of a Mesh that has proxies trace to there, of what begins with them nothing.
fn mesh(mtls: &str, collector: &Collector) -> String {
    format!(
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: mesh}}\nspec: {{mtls: {mtls}, trustDomain: cluster.local, \
         networks: [127.0.0.0/8], tracing: {{collector: '{}', sampling: {{percent: 0}}}}}}\n",
        collector.url()
    )
}

const SERVICE: &str = "{group: '', kind: Service, name: orders}";
const RULE: &str = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop, sectionName: health}";
const ROUTE: &str = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop}";

fn policy(name: &str, target: &str, sampling: &str) -> String {
    format!(
        "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: TelemetryPolicy\nmetadata: {{name: {name}}}\nspec: {{targetRefs: [{target}], \
         tracing: {{sampling: {sampling}}}}}\n"
    )
}

const ROUTES: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders, port: 8080}]
  rules:
  - {name: health, matches: [{path: {value: /healthz}}], backendRefs: [{name: orders, port: 8080}]}
  - {name: few, matches: [{path: {value: /few}}], backendRefs: [{name: orders, port: 8080}]}
";

/// An application that answers with the headers of traces that it got.
async fn telling() -> App {
    App::wire(async |mut wire: Wire| {
        while let Some(head) = wire.try_head().await {
            answer(&mut wire, &lines(&head)).await;
        }
    })
    .await
}

/// What the application got as `traceparent`; none if it got none.
async fn asked(wire: &mut Wire, path: &str, flags: Option<&str>) -> Option<String> {
    let line = flags.map(|flags| format!("traceparent: 00-{TRACE}-{SPAN}-{flags}\r\n")).unwrap_or_default();
    wire.send(format!("GET {path} HTTP/1.1\r\nhost: orders\r\n{line}\r\n")).await;
    let (head, body) = wire.response().await;
    assert_eq!(head.status(), if path == "/nowhere" { 404 } else { 200 }, "{head:?}");
    let body = String::from_utf8(body).unwrap();
    body.strip_prefix("traceparent: ").map(|value| value.trim_end().to_owned())
}

/// Asks until what the application gets says so: until what was written has arrived everywhere.
async fn told(wire: &mut Wire, path: &str, flags: Option<&str>, expected: &str) {
    eventually(&format!("{path} with {flags:?} is told {expected}"), async || {
        match asked(wire, path, flags).await {
            Some(traceparent) if traceparent.ends_with(expected) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// The path that a span tells: that of a client's proxy in its URL.
fn path(span: &Span) -> &str {
    let url = span.get("url.full").strip_prefix("http://");
    let at = url.and_then(|url| Some(&url[url.find('/')?..]));
    at.unwrap_or_else(|| span.get("url.path"))
}

/// The spans that have this path, once there are so many.
async fn with_path(collector: &Collector, expected: &str, count: usize) -> Vec<Span> {
    eventually(&format!("{count} spans of {expected}"), async || {
        let all = collector.collected.all();
        let found: Vec<Span> = all.into_iter().filter(|span| path(span) == expected).collect();
        if found.len() >= count { Ok(found) } else { Err(format!("{found:#?}")) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_rule_comes_before_its_route_that_before_the_service_and_all_before_the_mesh() {
    let collector = Collector::grpc().await;
    let world = World::strict().await;
    world.yaml("mesh.yaml", &mesh("strict", &collector));
    world.service("orders", "http");
    let app = telling().await;
    let orders = traced(&world, "orders", &[], |it| it.serves("orders", app.address())).await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = traced(&world, "web", &[], |it| it.calls("orders")).await;
    let mut wire = web.connect("orders").await;
    told(&mut wire, "/mesh", None, "-00").await;
    // The Service: all that begins here. What says no keeps to it, and so does what says yes under a rule at 0.
    let all = policy("all", SERVICE, "{percent: 100}");
    world.yaml("policies.yaml", &all);
    told(&mut wire, "/service", None, "-01").await;
    let routes = |route: &str, rule: &str| {
        world.yaml(
            "policies.yaml",
            &format!("{all}{ROUTES}{}{}", policy("route", ROUTE, route), policy("rule", RULE, rule)),
        );
    };
    routes("{percent: 100}", "{percent: 0}");
    told(&mut wire, "/healthz/yet", None, "-00").await;
    for _ in 0..10 {
        assert!(asked(&mut wire, "/healthz", None).await.unwrap().ends_with("-00"));
        assert!(asked(&mut wire, "/few/no", Some("00")).await.unwrap().ends_with("-00"));
    }
    let own = asked(&mut wire, "/few/begins", None).await.unwrap();
    let spans = with_path(&collector, "/few/begins", 2).await;
    let (client, server) = (of(&spans, "web", SpanKind::Client), of(&spans, "orders", SpanKind::Server));
    assert_eq!((&*client.parent, &server.parent, &server.trace), ("", &client.id, &client.trace));
    assert_eq!(client.get("tulle.route"), "default/shop");
    assert_eq!(own, format!("00-{}-{}-01", server.trace, server.id));
    assert!(client.start <= server.start && client.end >= client.start, "{spans:#?}");
    assert!(asked(&mut wire, "/healthz/traced", Some("01")).await.unwrap().ends_with("-01"));
    let spans = with_path(&collector, "/healthz/traced", 2).await;
    let client = of(&spans, "web", SpanKind::Client);
    assert_eq!((&*client.trace, &*client.parent), (TRACE, SPAN));
    // No rule takes it, so that the Service's is left.
    assert_eq!(asked(&mut wire, "/nowhere", None).await, None);
    let spans = with_path(&collector, "/nowhere", 1).await;
    assert_eq!(spans[0].get("tulle.reason"), "route_not_found");
    // Whatever the headers say: none of the one, all of the other.
    routes("{percent: 100, parentBased: false}", "{percent: 0}");
    told(&mut wire, "/few/yes", Some("00"), "-01").await;
    told(&mut wire, "/healthz/yet", Some("01"), "-00").await;
    for _ in 0..10 {
        let passed = asked(&mut wire, "/healthz/never", Some("01")).await.unwrap();
        assert_eq!(passed, format!("00-{TRACE}-{SPAN}-00"), "there is no span between");
    }
    // What is wrong is told, and what was in force stays.
    routes("{percent: 100}", "{percent: 101}");
    world.control_plane_says(&["spec.tracing.sampling.percent", "101 is out of bounds"]).await;
    for _ in 0..10 {
        assert!(asked(&mut wire, "/healthz", None).await.unwrap().ends_with("-00"));
    }
    // What follows is the last to be sent: of what was not to be recorded nothing came before it.
    assert!(asked(&mut wire, "/few/last", None).await.unwrap().ends_with("-01"));
    with_path(&collector, "/few/last", 2).await;
    let all = collector.collected.all();
    let paths: BTreeSet<&str> = all.iter().map(path).collect();
    for never in ["/mesh", "/few/no", "/healthz", "/healthz/never"] {
        assert!(!paths.contains(never), "{paths:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_services_sampling_is_for_what_comes_from_outside_too_and_a_proxys_own_wins() {
    let collector = Collector::grpc().await;
    let world = World::start(Mode::Permissive).await;
    world.yaml("mesh.yaml", &mesh("permissive", &collector));
    world.service("orders", "http");
    world.service("own", "http");
    let app = telling().await;
    let orders = traced(&world, "orders", &[], |it| it.serves("orders", app.address())).await;
    let never = [("OTEL_TRACES_SAMPLER", "parentbased_always_off")];
    let own = traced(&world, "own", &never, |it| it.serves("own", app.address())).await;
    for workload in [&orders, &own] {
        workload.counts("tulle_registered", &[], 1.0).await;
    }
    let mut outside = Wire::connect(orders.inbound()).await;
    told(&mut outside, "/mesh", None, "-00").await;
    let on_own = SERVICE.replace("orders", "own");
    let all = format!(
        "{}{}",
        policy("orders", SERVICE, "{percent: 100}"),
        policy("own", &on_own, "{percent: 100, parentBased: false}")
    );
    world.yaml("policies.yaml", &all);
    told(&mut outside, "/outside", None, "-01").await;
    let spans = with_path(&collector, "/outside", 1).await;
    assert_eq!((&*spans[0].service, spans[0].kind, &*spans[0].parent), ("orders", SpanKind::Server, ""));
    assert!(asked(&mut outside, "/no", Some("00")).await.unwrap().ends_with("-00"));
    // Its settings say it already.
    let mut wire = Wire::connect(own.inbound()).await;
    for _ in 0..10 {
        assert!(asked(&mut wire, "/own", None).await.unwrap().ends_with("-00"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_workloads_own_sampling_is_for_all_that_begins_with_it() {
    let collector = Collector::grpc().await;
    let world = World::strict().await;
    world.yaml("mesh.yaml", &mesh("strict", &collector));
    world.service("orders", "http");
    let app = telling().await;
    let orders = traced(&world, "orders", &[], |it| it.serves("orders", app.address())).await;
    orders.counts("tulle_registered", &[], 1.0).await;
    // Both only call others: nobody knows of them but by their names.
    let web = traced(&world, "web", &[], |it| it.calls("orders")).await;
    let shop = traced(&world, "shop", &[], |it| it.calls("orders")).await;
    let (mut of_web, mut of_shop) = (web.connect("orders").await, shop.connect("orders").await);
    for wire in [&mut of_web, &mut of_shop] {
        told(wire, "/mesh", None, "-00").await;
    }
    // All of the namespace, and less specific than any of them.
    let everybody = policy("everybody", "", "{percent: 100}");
    world.yaml("policies.yaml", &everybody);
    for wire in [&mut of_web, &mut of_shop] {
        told(wire, "/namespace", None, "-01").await;
    }
    let web_alone = policy("web", "{group: policy.tulle.dev, kind: Workload, name: web}", "{percent: 0}");
    world.yaml("policies.yaml", &format!("{everybody}{web_alone}"));
    told(&mut of_web, "/workload", None, "-00").await;
    for _ in 0..10 {
        assert!(asked(&mut of_web, "/none", None).await.unwrap().ends_with("-00"));
    }
    assert!(asked(&mut of_shop, "/all", None).await.unwrap().ends_with("-01"));
    let spans = with_path(&collector, "/all", 2).await;
    assert_eq!(of(&spans, "shop", SpanKind::Client).parent, "");
    // What is said of where a request goes is more specific than what is said of who asks.
    let service = policy("service", SERVICE, "{percent: 100}");
    world.yaml("policies.yaml", &format!("{everybody}{web_alone}{service}"));
    told(&mut of_web, "/service", None, "-01").await;
    let all = collector.collected.all();
    assert!(!all.iter().any(|span| path(span) == "/none"), "{all:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_health_check_says_that_it_is_not_recorded_so_that_nobody_begins_a_trace_with_it() {
    let collector = Collector::grpc().await;
    let world = World::strict().await;
    world.yaml("mesh.yaml", &mesh("strict", &collector).replace("percent: 0", "percent: 100"));
    world.service("orders", "http");
    world.yaml(
        "health.yaml",
        &format!(
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: health}}\nspec: {{targetRefs: [{SERVICE}], \
             healthCheck: {{http: {{path: /check}}, interval: 100ms}}}}\n"
        ),
    );
    let checks: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = Arc::clone(&checks);
    let app = App::wire(move |mut wire: Wire| {
        let heard = Arc::clone(&heard);
        async move {
            while let Some(head) = wire.try_head().await {
                if head.line.contains("/check") {
                    heard.lock().unwrap().push(lines(&head));
                }
                answer(&mut wire, &lines(&head)).await;
            }
        }
    })
    .await;
    let orders = traced(&world, "orders", &[], |it| it.serves("orders", app.address())).await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = traced(&world, "web", &[], |it| it.calls("orders")).await;
    let mut wire = web.connect("orders").await;
    told(&mut wire, "/begins", None, "-01").await;
    // One that is under way may have begun before anything was traced.
    let before = checks.lock().unwrap().len() + 1;
    let later = eventually("checks", async || {
        let all = checks.lock().unwrap();
        if all.len() >= before + 5 { Ok(all[before..].to_vec()) } else { Err(format!("{all:?}")) }
    })
    .await;
    for said in &later {
        assert!(said.starts_with("traceparent: 00-") && said.ends_with("-00\r\n"), "{later:?}");
    }
    with_path(&collector, "/begins", 2).await;
    let all = collector.collected.all();
    assert!(!all.iter().any(|span| path(span) == "/check"), "{all:#?}");
}
