//! For whom a policy holds, by what it is attached to: what a rule says itself, before a policy on the rule, before one on its route,
//! before one on the Service; each field by itself. And each of a retry's causes alone.

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use serde_json::json;
use tulle_tests::app::App;
use tulle_tests::frames::{Frames, rst_stream};
use tulle_tests::{Wire, Workload, World, eventually, within};

use super::{PLENTY, Shop, visits};
use crate::hostile::connect2;
use crate::mtls::endpoint_slice;

/// An HTTPRoute of these rules, each by its name: `(name, backend, more)`, for paths that begin with it.
fn route(name: &str, service: &str, rules: &[(&str, &str, &str)]) -> String {
    let mut yaml = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}}}\nspec:\n  parentRefs:\n  - {{group: \"\", \
         kind: Service, name: {service}, port: 8080}}\n  rules:\n"
    );
    for (name, backend, more) in rules {
        yaml += &format!(
            "  - name: {name}\n    matches: [{{path: {{value: /{name}}}}}]\n    backendRefs: [{{name: {backend}, port: 8080}}]\n{more}"
        );
    }
    yaml
}

/// A TrafficPolicy on a route, or on its rule of that name.
fn policy(name: &str, route: &str, rule: &str, spec: &str) -> String {
    let section = if rule.is_empty() { String::new() } else { format!(", sectionName: {rule}") };
    format!(
        "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}}}\nspec:\n  targetRefs:\n  - {{group: \
         gateway.networking.k8s.io, kind: HTTPRoute, name: {route}{section}}}\n{spec}\n"
    )
}

/// Waits until a rule's own policy is in force, by the header that it names for deadlines.
async fn in_force(web: &Workload, service: &str, rule: &str, header: &str) {
    eventually(&format!("the policy of {rule} is in force"), async || {
        let mut wire = web.connect(service).await;
        wire.send(format!("GET /{rule}/probe HTTP/1.1\r\nhost: {service}\r\n{header}: 0\r\n\r\n")).await;
        let (head, _) = wire.response().await;
        if head.reason() == Some("deadline_exceeded") { Ok(()) } else { Err(format!("{head:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_what_is_said_nearest_to_a_request_holds_for_it_each_field_by_itself() {
    let own = "    retry: {codes: [500], attempts: 4, backoff: 1ms}\n";
    let rules = [("own", "shop", own), ("rule", "shop", ""), ("route", "shop", "")];
    let whole = "  timeouts: {deadlineHeader: x-route}\n  retry: {attempts: 2, statuses: [503], backoff: {base: 1ms}}";
    let one = "  timeouts: {deadlineHeader: x-rule, request: 3s, perTry: 0s}\n  \
               retry: {attempts: 3, statuses: [502], backoff: {base: 1ms}}";
    let more = [
        route("shop", "shop", &rules),
        policy("of-route", "shop", "", whole),
        policy("of-rule", "shop", "rule", one),
        "---\n".to_owned(),
        route("others", "shop", &[("other", "shop", ""), ("probe", "shop", "")]),
    ];
    let of_service =
        format!("  retry: {{attempts: 1, statuses: [503, 504], backoff: {{base: 1ms}}}}\n  {PLENTY}");
    let shop = Shop::with("http", "request: 60s, perTry: 2s", &of_service, "", &more.concat()).await;
    in_force(&shop.web, "shop", "rule", "x-rule").await;
    in_force(&shop.web, "shop", "route", "x-route").await;
    // What the application does, the outcome, how often it was asked, and how often `tulle explain` says it may be asked again.
    for (path, script, outcome, times, again) in [
        ("/other/a", "503,503,200", "503 ", 2, 1),
        ("/other/late", "silent,silent,200", "504 backend_timeout", 2, 1),
        ("/route/a", "503,503,503,200", "503 ", 3, 2),
        ("/route/not-named", "504,200", "504 ", 1, 2),
        // Its time for each try is the Service's.
        ("/route/late", "silent,silent,200", "200 ", 3, 2),
        ("/rule/a", "502,502,502,200", "200 ", 4, 3),
        ("/rule/not-named", "503,200", "503 ", 1, 3),
        // It says itself that a try may take as long as the request.
        ("/rule/late", "silent,200", "504 request_timeout", 1, 3),
        ("/own/a", "500,500,500,500,200", "200 ", 5, 4),
        ("/own/not-named", "503,200", "503 ", 1, 4),
        ("/own/late", "silent,200", "200 ", 2, 4),
    ] {
        let head = shop.ask("GET", path, &format!("x-script: {script}"), b"").await;
        assert_eq!(format!("{} {}", head.status(), head.reason().unwrap_or_default()), outcome, "{path}");
        assert_eq!(visits(&shop.seen, path).len(), times, "{path}");
        let to = format!("http://shop:8080{path}");
        let explained = shop.world.explain(&["--from", "default/web", "--to", &to]);
        assert_eq!(explained["requests"]["retry"]["attempts"], json!(again), "{path}: {explained}");
        let by_route = match path.split('/').nth(1).unwrap() {
            "rule" => json!(["request_timeout", "backend_timeout", "deadline_header", "retry"]),
            "route" | "own" => json!(["deadline_header", "retry"]),
            _ => json!([]),
        };
        assert_eq!(explained["requests"]["by_route"], by_route, "{path}: {explained}");
    }
}

/// Each cause alone, all others, and any method: by what the rule is named.
const CAUSES: [(&str, &str); 9] = [
    ("connect", "causes: [ConnectFailure]"),
    ("not-connect", "causes: [RefusedStream, Reset, Timeout]"),
    ("reset", "causes: [Reset]"),
    ("not-reset", "causes: [ConnectFailure, RefusedStream, Timeout]"),
    ("timeout", "causes: [Timeout]"),
    ("not-timeout", "causes: [ConnectFailure, RefusedStream, Reset]"),
    ("refused", "causes: [RefusedStream]"),
    ("not-refused", "causes: [ConnectFailure, Reset, Timeout]"),
    ("any-method", "nonIdempotent: true"),
];

/// An HTTPRoute to `service` with a rule for each of the causes, and their policies.
fn causes(service: &str, backend: impl Fn(&str) -> &'static str) -> String {
    let names = CAUSES.iter().map(|(name, _)| *name).chain(["probe"]);
    let rules: Vec<_> = names.map(|name| (name, backend(name), "")).collect();
    let policies = CAUSES.iter().map(|(name, says)| {
        let spec = format!(
            "  timeouts: {{perTry: 2s, deadlineHeader: x-{name}}}\n  retry: {{attempts: 3, {says}, backoff: {{base: 1ms}}}}"
        );
        policy(&format!("{service}-{name}"), service, name, &spec)
    });
    [route(service, service, &rules)].into_iter().chain(policies).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_a_retry_is_for_the_causes_that_it_names_and_for_any_method_only_where_it_says_so() {
    let yaml = causes("shop", |name| if name.ends_with("connect") { "dead" } else { "shop" });
    let shop = Shop::with("http", "request: 60s", &format!("  {PLENTY}"), "", &yaml).await;
    shop.world.service("dead", "http");
    // Nobody listens there any more.
    let nobody = App::saying("nobody").await;
    nobody.stop().await;
    shop.world.yaml("dead.yaml", &endpoint_slice("dead", nobody.address(), None));
    for (name, _) in CAUSES {
        in_force(&shop.web, "shop", name, &format!("x-{name}")).await;
    }
    eventually("the dead endpoint is known", async || {
        let head = shop.ask("GET", "/not-connect/probe", "", b"").await;
        if head.reason() == Some("connect_failed") { Ok(()) } else { Err(format!("{head:?}")) }
    })
    .await;
    let broken = "502 upstream_reset";
    for (method, path, script, outcome, times, attempts) in [
        ("GET", "/connect/get", "", "503 connect_failed", 0, 4),
        ("POST", "/connect/post", "", "503 connect_failed", 0, 4),
        // As without a retry.
        ("GET", "/not-connect/get", "", "503 connect_failed", 0, 2),
        ("POST", "/not-connect/post", "", "503 connect_failed", 0, 2),
        ("GET", "/reset/get", "reset,reset,200", "200 ", 3, 3),
        ("POST", "/reset/post", "reset,200", broken, 1, 1),
        ("GET", "/not-reset/get", "reset,200", broken, 1, 1),
        ("GET", "/timeout/get", "silent,200", "200 ", 2, 2),
        ("POST", "/timeout/post", "silent,200", "504 backend_timeout", 1, 1),
        ("GET", "/not-timeout/get", "silent,200", "504 backend_timeout", 1, 1),
        ("POST", "/any-method/reset", "reset,reset,200", "200 ", 3, 3),
        ("PATCH", "/any-method/late", "silent,200", "200 ", 2, 2),
    ] {
        let head = shop.ask(method, path, &format!("x-script: {script}"), b"hello").await;
        let told = format!("{} {}", head.status(), head.reason().unwrap_or_default());
        let record = shop.web.logs(&[("path", json!(path))]).await;
        let seen = visits(&shop.seen, path).len();
        assert_eq!(
            (&*told, seen, &record["attempts"]),
            (outcome, times, &json!(attempts)),
            "{method} {path}"
        );
    }
}

/// Refuses every stream, unread.
async fn refusing(wire: Wire) {
    let Some(mut frames) = Frames::accept(wire, &[]).await else { return };
    while let Some((stream, _)) = frames.request().await {
        if frames.try_send(rst_stream(stream, 7)).await.is_none() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_a_stream_that_was_refused_is_sent_again_for_that_cause_alone() {
    let world = World::strict().await;
    let app = App::wire(refusing).await;
    for service in ["plain", "meshed"] {
        world.service(service, "kubernetes.io/h2c");
    }
    world.yaml("plain-slice.yaml", &endpoint_slice("plain", app.address(), None));
    world.yaml("plain.yaml", &causes("plain", |_| "plain"));
    world.yaml("meshed.yaml", &causes("meshed", |_| "meshed"));
    let orders = world.workload("orders").serves("meshed", app.address()).start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = world.workload("web").calls("plain").calls("meshed").start().await;
    for service in ["plain", "meshed"] {
        let mut requests = connect2(web.outbound(service)).await;
        for rule in ["refused", "not-refused"] {
            let path = format!("/{rule}/probe");
            eventually("the policy is in force", async || {
                let deadline = (&*format!("x-{rule}"), "0");
                let told = post(&mut requests, &path, deadline).await;
                if told == "504 deadline_exceeded" { Ok(()) } else { Err(told) }
            })
            .await;
            let path = format!("/{rule}/post");
            assert_eq!(post(&mut requests, &path, ("x-none", "")).await, "502 upstream_reset", "{service}");
            let of_service = json!(format!("default/{service}:8080"));
            let record = web.logs(&[("path", json!(path)), ("service", of_service)]).await;
            let attempts = if rule == "refused" { 4 } else { 2 };
            assert_eq!(record["attempts"], json!(attempts), "{service} {rule}");
        }
    }
}

/// A POST with a body, and its status and reason.
async fn post(requests: &mut SendRequest<Bytes>, path: &str, (name, value): (&str, &str)) -> String {
    let request = Request::post(format!("http://orders{path}")).header(name, value).body(()).unwrap();
    let mut ready = within("room", requests.clone().ready()).await.unwrap();
    let (answer, mut upload) = ready.send_request(request, false).unwrap();
    let _ = upload.send_data(Bytes::from_static(b"hello"), true);
    let answer = within("an answer", answer).await.unwrap();
    let reason = answer.headers().get("x-tulle-error").map_or("", |reason| reason.to_str().unwrap());
    format!("{} {reason}", answer.status().as_u16())
}
