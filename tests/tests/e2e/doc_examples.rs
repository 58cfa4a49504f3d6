//! Each example of docs/routing.md does what its text says: it is served as it is written, beside the page's Services, and asked.
//!
//! An example is known by its heading. One that is not in [`run`] fails the test, and so does a use that the page must show and
//! does not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tulle_tests::app::{App, full};
use tulle_tests::echo::{self, Answer};
use tulle_tests::{Wire, Workload, World, binary, eventually};

use super::routing_kinds::client_hello;

const PAGE: &str = include_str!("../../../docs/routing.md");

/// What the page must have a working example for.
const NEEDED: &[&str] = &[
    "Canary",
    "Blue/green",
    "A/B by header",
    "Version by path",
    "Mirror, for a dark launch",
    "Retry",
    "Timeouts",
    "Sessions",
    "gRPC by method",
    "TCP",
];

/// The page's Services with who answers for them, and `web`, which calls `orders`.
struct Shop {
    world: World,
    web: Workload,
    versions: Vec<(App, Workload)>,
}

/// The blocks in `language`, each with its heading; a heading's second has ` (2)` after it. What stands before the first heading has
/// none.
fn blocks(language: &str) -> Vec<(String, &'static str)> {
    let mut found: Vec<(String, &str)> = Vec::new();
    for section in PAGE.split("\n## ") {
        let heading = if section.starts_with("# ") { "" } else { section.lines().next().unwrap_or("") };
        let fence = format!("```{language}\n");
        let texts = section.split(&*fence).skip(1).filter_map(|rest| rest.split_once("```"));
        for (number, (text, _)) in (1..).zip(texts) {
            let heading = if number == 1 { heading.to_owned() } else { format!("{heading} ({number})") };
            found.push((heading, text));
        }
    }
    found
}

/// An application that says who it is and what it was asked; below `/slow` and `/reports` it takes its time, and `/busy` it answers
/// with 503 twice.
async fn answering(name: &'static str) -> App {
    let asked = Arc::new(AtomicU32::new(0));
    App::http1(move |request: Request<Incoming>| {
        let asked = Arc::clone(&asked);
        async move {
            let path = request.uri().path();
            if path == "/busy" && asked.fetch_add(1, Ordering::Relaxed) < 2 {
                return Response::builder().status(503).body(full("")).unwrap();
            }
            if ["/slow", "/reports"].iter().any(|slow| path.starts_with(slow)) {
                tokio::time::sleep(Duration::from_millis(1500)).await;
            }
            echo::mirror(name, &request)
        }
    })
    .await
}

/// What a server that greets each connection says, or that it was refused.
async fn greeted(client: &Workload, service: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(client.outbound(service)).await else {
        return "refused".to_owned();
    };
    let mut said = String::new();
    match tulle_tests::within("a greeting", stream.read_to_string(&mut said)).await {
        Ok(_) if !said.is_empty() => said,
        _ => "refused".to_owned(),
    }
}

// === impl Shop ===

impl Shop {
    async fn start(services: &str) -> Self {
        let world = World::strict().await;
        world.yaml("services.yaml", services);
        let mut versions = Vec::new();
        for name in ["orders", "orders-v1", "orders-v2"] {
            let app = answering(name).await;
            let service = format!("{name}:80");
            let workload = world.workload(name).serves(&service, app.address()).start().await;
            versions.push((app, workload));
        }
        let web = world.workload("web").calls("orders:80").start().await;
        Self { world, web, versions }
    }

    /// Asks `METHOD TARGET [name:value …]` of `orders`.
    async fn ask(&self, asked: &str) -> Answer {
        ask(&self.web, "orders:80", false, asked).await
    }

    /// The example is in force, by one request that is answered in another way without it.
    async fn until(&self, asked: &str, by: &str) {
        becomes(&self.web, "orders:80", false, asked, by).await;
    }

    async fn by(&self, cases: &[(&str, &str)]) {
        for (asked, by) in cases {
            assert_eq!(self.ask(asked).await.by(), *by, "{asked}");
        }
    }

    /// How many of 300 requests each answers.
    async fn shares(&self, asked: &str) -> BTreeMap<String, u32> {
        let mut shares = BTreeMap::new();
        for _ in 0..300 {
            *shares.entry(self.ask(asked).await.by()).or_default() += 1;
        }
        shares
    }

    /// What serves a port of an example's own, and its proxy.
    async fn serves(&self, app: App, workload: &str, service: &str) -> (App, Workload) {
        let started = self.world.workload(workload).serves(service, app.address()).start().await;
        (app, started)
    }
}

async fn ask(client: &Workload, service: &str, grpc: bool, asked: &str) -> Answer {
    let stream = TcpStream::connect(client.outbound(service)).await.unwrap();
    let host = service.rsplit('/').next().unwrap();
    echo::ask(stream, grpc, host, asked).await
}

async fn becomes(client: &Workload, service: &str, grpc: bool, asked: &str, expected: &str) {
    eventually(&format!("{asked} is answered by {expected}"), async || {
        let by = ask(client, service, grpc, asked).await.by();
        if by == expected { Ok(()) } else { Err(by) }
    })
    .await;
}

/// A tenth of `of`: five standard deviations around it.
fn is_near_a_tenth(of: f64, count: f64) -> bool {
    let off = 5.0 * (of * 0.09).sqrt();
    (count - of / 10.0).abs() < off && count > 0.0
}

fn is_a_tenth(of: f64, count: f64) {
    assert!(is_near_a_tenth(of, count), "{count} of {of} is not a tenth");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_example_of_the_page_on_routing_does_what_its_text_says() {
    let mut examples = blocks("yaml");
    let (heading, services) = examples.remove(0);
    assert_eq!(heading, "", "the page begins with the Services that its examples are about");
    let headings: BTreeSet<&str> = examples.iter().map(|(heading, _)| heading.as_str()).collect();
    let missing: Vec<_> = NEEDED.iter().filter(|needed| !headings.contains(**needed)).collect();
    assert!(missing.is_empty(), "docs/routing.md has no example of {missing:?}");
    let shop = Shop::start(services).await;
    for (heading, text) in &examples {
        // Nothing is left of the example before.
        shop.until("GET /", "orders").await;
        shop.until("GET /cart", "orders").await;
        shop.world.yaml("example.yaml", text);
        run(&shop, heading, text).await;
        shop.world.remove_yaml("example.yaml");
    }
}

/// Asks what the text around the example speaks of.
async fn run(shop: &Shop, heading: &str, text: &str) {
    match heading {
        "Canary" => {
            shop.until("GET /", "orders-v1").await;
            let shares = shop.shares("GET /").await;
            is_a_tenth(300.0, shares["orders-v2"].into());
            assert_eq!(shares["orders-v1"] + shares["orders-v2"], 300);
        }
        "Blue/green" => blue_green(shop, text).await,
        "A/B by header" => {
            shop.until("GET / x-group:b", "orders-v2").await;
            assert_eq!(shop.ask("GET / x-group:b").await.field("x-served-to"), "b");
            for other in ["GET /", "GET / x-group:c"] {
                let answer = shop.ask(other).await;
                assert_eq!((answer.by().as_str(), answer.saw_field("x-group")), ("orders-v1", "a"));
                assert_eq!(answer.field("x-served-to"), "-");
            }
        }
        "Version by path" => {
            shop.until("GET /v2", "orders-v2").await;
            shop.by(&[("GET /", "orders-v1"), ("GET /v2/items", "orders-v2"), ("GET /v20", "orders-v1")])
                .await;
        }
        "Redirect" => {
            shop.until("POST /old/7?full", "308").await;
            let answer = shop.ask("POST /old/7?full").await;
            assert_eq!(answer.field("location"), "https://shop.example.org/orders/7?full");
            shop.by(&[("GET /new", "orders")]).await;
        }
        "Rewrite" => {
            shop.until("GET /api/orders/7", "orders-v1").await;
            let answer = shop.ask("GET /api/orders/7").await;
            assert_eq!((answer.saw("target"), answer.saw("host")), ("/7", "orders.internal"));
        }
        "Mirror, for a dark launch" => {
            shop.until("GET /", "orders-v1").await;
            let copies =
                async || shop.web.metrics().await.sum("tulle_mirrors_total", &[("result", "answered")]);
            let before = copies().await;
            assert_eq!(shop.shares("GET /copied").await, BTreeMap::from([("orders-v1".to_owned(), 300)]));
            let (_, new) = shop.versions.last().unwrap();
            let logged =
                || new.access_log().iter().filter(|record| record["path"] == "/copied").count() as f64;
            eventually("the new version has answered copies of a tenth", async || {
                let (sent, answered) = (logged(), copies().await - before);
                let is_all = answered >= sent && is_near_a_tenth(300.0, sent);
                if is_all { Ok(()) } else { Err(format!("{answered} of {sent}")) }
            })
            .await;
        }
        "Retry" => {
            shop.until("GET /", "orders-v1").await;
            shop.by(&[("POST /busy", "orders-v1")]).await;
            let record = shop.web.logs(&[("path", json!("/busy"))]).await;
            assert_eq!(record["attempts"], json!(3), "{record}");
        }
        "CORS" => cors(shop).await,
        "Timeouts" => {
            shop.until("GET /slow", "504 backend_timeout").await;
            shop.by(&[("GET /reports/all", "orders-v1")]).await;
            // A second may be too short for one answer of a busy machine, but not for all.
            shop.until("GET /", "orders-v1").await;
        }
        "Sessions" => sessions(shop).await,
        "gRPC by method" => {
            let app = async |name: &'static str| {
                App::http2(async move |request| echo::mirror(name, &request)).await
            };
            let _running = [
                shop.serves(app("stock").await, "stock", "stock:9090").await,
                shop.serves(app("stock-reports").await, "stock-reports", "stock-reports:9090").await,
            ];
            let till = shop.world.workload("stock-client").calls("stock:9090").start().await;
            for (call, by) in [
                ("/shop.v1.Stock/Report", "stock-reports"),
                ("/shop.v1.Stock/Take", "stock"),
                ("/other.Svc/Report", "stock"),
            ] {
                becomes(&till, "stock:9090", true, &format!("POST {call}"), by).await;
            }
        }
        "TCP" => tcp(shop).await,
        "TLS by server name" => tls(shop).await,
        "A client's own route" => {
            let next = answering("orders-next").await;
            let _next = shop.serves(next, "cafe/orders-next", "orders-next:80").await;
            let till = shop.world.workload("cafe/till").calls("default/orders:80").start().await;
            becomes(&till, "default/orders:80", false, "GET /", "orders-next").await;
            shop.by(&[("GET /", "orders")]).await;
        }
        "A client's own route (2)" => grant(shop).await,
        other => panic!("docs/routing.md has an example that is not run: {other:?}; say here what it does"),
    }
}

async fn blue_green(shop: &Shop, text: &str) {
    shop.until("GET /", "orders-v1").await;
    for _ in 0..20 {
        shop.by(&[("GET /", "orders-v1"), ("GET / x-preview:green", "orders-v2")]).await;
    }
    let switched = text.replace("weight: 1}", "weight: -}").replace("weight: 0}", "weight: 1}");
    shop.world.yaml("example.yaml", &switched.replace("weight: -}", "weight: 0}"));
    eventually("everybody gets green", async || {
        let by = shop.ask("GET /").await.by();
        assert!(by == "orders-v1" || by == "orders-v2", "{by}: no request fails");
        if by == "orders-v2" { Ok(()) } else { Err(by) }
    })
    .await;
    assert_eq!(shop.shares("GET /").await, BTreeMap::from([("orders-v2".to_owned(), 300)]));
}

async fn cors(shop: &Shop) {
    let preflight = |from: &str| format!("OPTIONS / origin:{from} access-control-request-method:PUT");
    let from = "https://shop.example.org";
    shop.until(&preflight(from), "204").await;
    for from in [from, "https://m.shop.example.org"] {
        let answer = shop.ask(&preflight(from)).await;
        let fields = ["origin", "credentials", "methods", "headers"];
        let said = fields.map(|name| answer.field(&format!("access-control-allow-{name}")));
        assert_eq!(said, [from, "true", "GET, PUT", "content-type"].map(str::to_owned));
        assert_eq!(answer.field("access-control-max-age"), "600");
        let answer = shop.ask(&format!("GET / origin:{from}")).await;
        assert_eq!(
            (answer.by().as_str(), answer.field("access-control-allow-origin").as_str()),
            ("orders", from)
        );
        assert_eq!(answer.field("access-control-expose-headers"), "etag");
    }
    let other = shop.ask("GET / origin:https://example.org").await;
    assert_eq!((other.by().as_str(), other.field("access-control-allow-origin").as_str()), ("orders", "-"));
    shop.by(&[("PUT /", "orders")]).await;
}

async fn sessions(shop: &Shop) {
    shop.until("GET /", "orders-v1").await;
    for first in ["orders-v1", "orders-v2"] {
        let cookie = eventually(&format!("a session at {first}"), async || {
            let answer = shop.ask("GET /cart").await;
            if answer.by() == first { Ok(answer.field("set-cookie")) } else { Err(answer.by()) }
        })
        .await;
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert!(pair.starts_with("cart=") && attributes.starts_with("Path=/cart; "), "{cookie}");
        for _ in 0..10 {
            let answer = shop.ask(&format!("GET /cart/items cookie:{pair}")).await;
            assert_eq!(answer.by(), first);
        }
    }
}

async fn tcp(shop: &Shop) {
    let app = async |name: &'static str| {
        App::wire(move |mut wire: Wire| async move {
            wire.send(name).await;
            wire.finish().await;
        })
        .await
    };
    let _running = [
        shop.serves(app("db").await, "db", "db:5432").await,
        shop.serves(app("db-next").await, "db-next", "db-next:5432").await,
    ];
    let till = shop.world.workload("db-client").calls("db:5432").start().await;
    for name in ["db", "db-next"] {
        eventually(&format!("{name} greets"), async || {
            let said = greeted(&till, "db:5432").await;
            if said == name { Ok(()) } else { Err(said) }
        })
        .await;
    }
    let mut next = 0;
    for _ in 0..300 {
        let said = greeted(&till, "db:5432").await;
        assert!(said == "db" || said == "db-next", "{said}");
        next += u32::from(said == "db-next");
    }
    is_a_tenth(300.0, next.into());
}

async fn tls(shop: &Shop) {
    let app = async |name: &'static str| {
        App::wire(move |mut wire: Wire| async move {
            let said = wire.to_end().await;
            wire.send(format!("{name} {}", said.len())).await;
            wire.finish().await;
        })
        .await
    };
    let _running = [
        shop.serves(app("front").await, "front", "front:443").await,
        shop.serves(app("front-a").await, "front-a", "front-a:443").await,
    ];
    let till = shop.world.workload("front-client").calls("front:443").start().await;
    for (server, by) in [
        (Some("a.example.com"), "front-a"),
        (Some("b.example.com"), "front"),
        (Some("a.example.org"), ""),
        (None, ""),
    ] {
        let hello = client_hello(server);
        let expected = if by.is_empty() { String::new() } else { format!("{by} {}", hello.len()) };
        eventually(&format!("{server:?} gets to {by:?}"), async || {
            let mut wire = till.connect("front:443").await;
            if wire.try_send(&hello).await.is_ok() {
                wire.finish().await;
            }
            let said = String::from_utf8(wire.to_end_or_reset().await).unwrap();
            if said == expected { Ok(()) } else { Err(said) }
        })
        .await;
    }
}

async fn grant(shop: &Shop) {
    let example = std::fs::read_to_string(shop.world.config_folder().join("example.yaml")).unwrap();
    shop.world.yaml(
        "beside.yaml",
        "
{apiVersion: v1, kind: Service, metadata: {name: orders-archive, namespace: store}, spec: {ports: [{name: http, port: 80}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: cafe}
spec:
  parentRefs: [{group: '', kind: Service, name: orders, namespace: default, port: 80}]
  rules: [{backendRefs: [{name: orders-archive, namespace: store, port: 80}]}]
",
    );
    let archive = answering("orders-archive").await;
    let _archive = shop.serves(archive, "store/orders-archive", "orders-archive:80").await;
    let till = shop.world.workload("cafe/clerk").calls("default/orders:80").start().await;
    becomes(&till, "default/orders:80", false, "GET /", "orders-archive").await;
    shop.world.remove_yaml("example.yaml");
    becomes(&till, "default/orders:80", false, "GET /", "500 backend_not_found").await;
    shop.world.yaml("example.yaml", &example);
    becomes(&till, "default/orders:80", false, "GET /", "orders-archive").await;
    shop.world.remove_yaml("beside.yaml");
}

/// `tulle explain`, as the page has it typed: of a running control plane, and of a folder.
#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_page_on_routing_explain() {
    let yaml = blocks("yaml");
    let by_header = yaml.iter().find(|(heading, _)| heading == "A/B by header").unwrap().1;
    let shop = Shop::start(yaml[0].1).await;
    shop.world.yaml("example.yaml", by_header);
    shop.until("GET / x-group:b", "orders-v2").await;
    std::os::unix::fs::symlink(shop.world.config_folder(), shop.world.folder().path("mesh")).unwrap();
    let (_, commands) = blocks("sh").remove(0);
    let said: Vec<String> = commands
        .lines()
        .map(|line| {
            let running = if line.contains("--config-dir") {
                String::new()
            } else {
                format!(" --control-plane {}", shop.world.metrics_address())
            };
            let tulle = binary("tulle");
            let path = tulle.parent().map_or("", |folder: &Path| folder.to_str().unwrap());
            let mut command = Command::new("sh");
            command.arg("-c").arg(format!("PATH={path}:$PATH; {line}{running}"));
            let output = command.current_dir(shop.world.folder().path("")).output().unwrap();
            let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(complaint.is_empty(), "{line}: {complaint}");
            String::from_utf8(output.stdout).unwrap()
        })
        .collect();
    let [running, folder] = &said[..] else { panic!("{said:?}") };
    assert!(
        running.contains("header x-group: b") && running.contains("100.0 %  default/orders-v2:80"),
        "{running}"
    );
    let folder: serde_json::Value = serde_json::from_str(folder).unwrap();
    assert_eq!(folder["taken"]["rule"]["index"], 1, "{folder}");
}
