//! Which endpoint takes a request, by what a TrafficPolicy says, through the real binaries.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tulle_tests::app::{App, full};
use tulle_tests::{Wire, Workload, World, eventually};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// `web`, which calls `shop`, whose endpoints, outside the mesh, say who they are.
struct Shop {
    world: World,
    web: Workload,
    servers: BTreeMap<String, Server>,
}

struct Server {
    /// What it answers with.
    status: Arc<AtomicU16>,
    app: App,
}

/// How many were answered by whom.
type Counts = BTreeMap<String, usize>;

// === impl Shop ===

impl Shop {
    async fn start(http2: bool, names: &[&str]) -> Self {
        let world = World::strict().await;
        world.service("shop", if http2 { "kubernetes.io/h2c" } else { "http" });
        let web = world.workload("web").calls("shop").setting("--locality", "here/a").start().await;
        let mut shop = Self { world, web, servers: BTreeMap::new() };
        for name in names {
            shop.add(name, http2, 100, "a").await;
        }
        shop
    }

    async fn add(&mut self, name: &str, http2: bool, weight: u32, zone: &str) {
        let status = Arc::new(AtomicU16::new(200));
        let answer = {
            let (name, status) = (name.to_owned(), Arc::clone(&status));
            move |request: Request<Incoming>| {
                let status = status.load(Ordering::Relaxed);
                let response = match request.headers().contains_key("te") {
                    // gRPC tells it last.
                    true => {
                        let status = if status == 200 { "0" } else { "14" };
                        let trailers =
                            HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static(status))]);
                        let body = full(name.clone()).with_trailers(async move { Some(Ok(trailers)) });
                        Response::new(body.boxed())
                    }
                    false => Response::builder().status(status).body(full(name.clone())).unwrap(),
                };
                async move { response }
            }
        };
        let app = if http2 { App::http2(answer).await } else { App::http1(answer).await };
        let port = app.address().port();
        let slice = format!(
            "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: shop-{name}
  namespace: default
  labels: {{kubernetes.io/service-name: shop}}
  annotations: {{tulle.dev/weight: \"{weight}\"}}
addressType: IPv4
ports: [{{name: main, port: {port}}}]
endpoints: [{{addresses: [127.0.0.1], zone: {zone}, conditions: {{ready: true}}}}]
"
        );
        self.world.yaml(&format!("slice-{name}.yaml"), &slice);
        self.servers.insert(name.to_owned(), Server { status, app });
    }

    fn remove(&mut self, name: &str) {
        self.world.remove_yaml(&format!("slice-{name}.yaml"));
        self.servers.remove(name);
    }

    /// Writes a policy, and waits until the proxy holds to it: the dump shows `seen`.
    async fn policy(&self, spec: &str, seen: &str) {
        // Asked for at the first use.
        self.ask("/", "").await;
        self.policy_of(spec, seen).await;
    }

    /// Likewise, of a service in use.
    async fn policy_of(&self, spec: &str, seen: &str) {
        let text = format!(
            "
apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: shop, namespace: default}}
spec:
  targetRefs: [{{group: \"\", kind: Service, name: shop}}]
{spec}
"
        );
        self.world.yaml("policy.yaml", &text);
        eventually(&format!("{seen} is in force"), async || {
            let dump = self.web.config_dump().await;
            if dump.contains(seen) { Ok(()) } else { Err(dump) }
        })
        .await;
    }

    /// Waits until the proxy counts so many endpoints in a state.
    async fn endpoints(&self, state: &str, count: usize) {
        eventually(&format!("{count} endpoints are {state}"), async || {
            let labels = [("service", "default/shop:8080"), ("state", state)];
            let shown = self.web.metrics().await.sum("tulle_balancer_endpoints", &labels);
            if shown == count as f64 { Ok(()) } else { Err(format!("{shown}")) }
        })
        .await;
    }

    /// Who answers a GET, and with which status.
    async fn ask(&self, path: &str, fields: &str) -> (u16, String) {
        let mut wire = self.web.connect("shop").await;
        ask(&mut wire, path, fields).await
    }

    /// One after the other, on one connection.
    async fn counts(&self, requests: usize) -> Counts {
        let mut wire = self.web.connect("shop").await;
        let mut counts = Counts::new();
        for _ in 0..requests {
            let (status, by) = ask(&mut wire, "/", "").await;
            assert_eq!(status, 200, "{by}");
            *counts.entry(by).or_default() += 1;
        }
        counts
    }

    /// Where so many users are.
    async fn places(&self, users: usize) -> Vec<String> {
        let mut wire = self.web.connect("shop").await;
        let mut places = Vec::new();
        for user in 0..users {
            places.push(ask(&mut wire, "/", &format!("x-user: {user}\r\n")).await.1);
        }
        places
    }

    fn answers(&self, name: &str, status: u16) {
        self.servers[name].status.store(status, Ordering::Relaxed);
    }
}

async fn ask(wire: &mut Wire, path: &str, fields: &str) -> (u16, String) {
    wire.send(format!("GET {path} HTTP/1.1\r\nhost: shop\r\n{fields}\r\n")).await;
    let (head, body) = wire.response().await;
    (head.status(), String::from_utf8(body).unwrap())
}

fn moved(before: &[String], after: &[String]) -> f64 {
    before.iter().zip(after).filter(|(a, b)| a != b).count() as f64 / before.len() as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn each_algorithm_spreads_requests_over_the_endpoints() {
    let shop = Shop::start(false, &["a", "b", "c"]).await;
    // By name: the least and the most that an endpoint may get of 300 requests, one after the other.
    let cases = [
        ("PeakEwma", 1..=298),
        ("LeastRequest", 60..=140),
        ("RoundRobin", 100..=100),
        ("Random", 60..=140),
        ("RingHash", 40..=170),
        ("Maglev", 60..=140),
    ];
    for (algorithm, expected) in cases {
        let by_hash = matches!(algorithm, "RingHash" | "Maglev");
        let hash = if by_hash { ", hashOn: [{header: x-user}, {queryParameter: user}]" } else { "" };
        // The threshold tells the default from no policy.
        let spec = format!("  loadBalancer: {{algorithm: {algorithm}, panicThresholdPercent: 30{hash}}}");
        shop.policy(&spec, &format!("algorithm: {algorithm}")).await;
        shop.endpoints("usable", 3).await;
        let counts = if by_hash {
            let places = shop.places(300).await;
            assert_eq!(places, shop.places(300).await, "{algorithm}: the same user, the same endpoint");
            assert_eq!(shop.ask("/?x=1&user=7", "").await.1, places[7], "however it is told");
            places.into_iter().fold(Counts::new(), |mut counts, by| {
                *counts.entry(by).or_default() += 1;
                counts
            })
        } else {
            shop.counts(300).await
        };
        assert_eq!(counts.len(), 3, "{algorithm}: {counts:?}");
        assert!(counts.values().all(|count| expected.contains(count)), "{algorithm}: {counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_of_endpoints_are_kept_to() {
    let mut shop = Shop::start(false, &["a"]).await;
    shop.add("b", false, 300, "a").await;
    shop.policy("  loadBalancer: {algorithm: RoundRobin}", "algorithm: RoundRobin").await;
    shop.endpoints("usable", 2).await;
    assert_eq!(shop.counts(400).await, Counts::from([("a".to_owned(), 100), ("b".to_owned(), 300)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_a_hash_moves_few_users_when_an_endpoint_comes_and_none_when_it_goes_again() {
    for algorithm in ["RingHash", "Maglev"] {
        let mut shop = Shop::start(false, &["a", "b", "c", "d"]).await;
        let spec = format!("  loadBalancer: {{algorithm: {algorithm}, hashOn: [{{header: x-user}}]}}");
        shop.policy(&spec, &format!("algorithm: {algorithm}")).await;
        shop.endpoints("usable", 4).await;
        let before = shop.places(500).await;
        shop.add("e", false, 100, "a").await;
        shop.endpoints("usable", 5).await;
        let part = moved(&before, &shop.places(500).await);
        assert!(part > 0.0 && part <= 0.25 + 0.05, "{algorithm}: {part}");
        shop.remove("e");
        shop.endpoints("usable", 4).await;
        assert_eq!(shop.places(500).await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_fails_is_ejected_and_comes_back_once_it_serves() {
    let shop = Shop::start(false, &["a", "b", "c"]).await;
    let spec = "  loadBalancer: {algorithm: RoundRobin, panicThresholdPercent: 0}
  outlierDetection: {consecutive5xx: 3, ejectionTime: 400ms, maximumEjectionTime: 400ms}";
    shop.policy(spec, "algorithm: RoundRobin").await;
    shop.endpoints("usable", 3).await;
    shop.answers("b", 500);
    let mut wire = shop.web.connect("shop").await;
    let mut failed = 0;
    // Three in a row, of which each third comes here.
    for _ in 0..30 {
        failed += usize::from(ask(&mut wire, "/", "").await.0 == 500);
    }
    // Beside these, one for each time that it was tried meanwhile.
    let metrics = shop.web.metrics().await;
    let ejections = metrics.sum("tulle_balancer_ejections_total", &[]);
    assert!(ejections >= 1.0 && failed as f64 <= 3.0 + ejections, "{failed} failed, {ejections} ejections");
    let labels = [("service", "default/shop:8080"), ("cause", "consecutive_5xx")];
    assert_eq!(metrics.sum("tulle_balancer_ejections_total", &labels), 1.0);
    eventually("it is told", async || {
        let told = shop.web.diagnostics();
        if told.contains("ejected an endpoint") { Ok(()) } else { Err(told) }
    })
    .await;
    // It is tried, fails, and is out for as long again, for as long as it does not serve.
    eventually("it is tried and ejected again", async || {
        ask(&mut wire, "/", "").await;
        let labels = [("cause", "probation")];
        let again = shop.web.metrics().await.sum("tulle_balancer_ejections_total", &labels);
        if again >= 1.0 { Ok(()) } else { Err(format!("{again}")) }
    })
    .await;
    shop.answers("b", 200);
    eventually("it serves again", async || {
        let (status, by) = ask(&mut wire, "/", "").await;
        assert_eq!(status, 200, "{by}");
        if by == "b" { Ok(()) } else { Err(by) }
    })
    .await;
    assert_eq!(metrics.sum("tulle_balancer_panics_total", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_nobody_listens_on_is_ejected_and_nobody_is_told() {
    let shop = Shop::start(false, &["a", "b"]).await;
    let spec = "  loadBalancer: {algorithm: RoundRobin, panicThresholdPercent: 0}
  outlierDetection: {consecutiveConnectFailures: 2, ejectionTime: 1h, maximumEjectionTime: 1h}";
    shop.policy(spec, "algorithm: RoundRobin").await;
    shop.endpoints("usable", 2).await;
    shop.servers["b"].app.stop().await;
    assert_eq!(shop.counts(40).await, Counts::from([("a".to_owned(), 40)]));
    shop.endpoints("ejected", 1).await;
    // The last that is left stays, whatever it does.
    shop.answers("a", 503);
    for _ in 0..5 {
        assert_eq!(shop.ask("/", "").await, (503, "a".to_owned()));
    }
    shop.endpoints("usable", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_grpc_says_last_ejects_too() {
    let shop = Shop::start(true, &["a", "b"]).await;
    let spec = "  loadBalancer: {algorithm: RoundRobin, panicThresholdPercent: 0}
  outlierDetection: {consecutiveGrpcErrors: 3, ejectionTime: 1h, maximumEjectionTime: 1h}";
    let call = async || {
        let stream = TcpStream::connect(shop.web.outbound("shop")).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://shop/shop.Orders/Get").header("te", "trailers");
        let request = request.header("content-type", "application/grpc").body(full("")).unwrap();
        let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        // The proxy's own answers have none.
        let status = answer.trailers().map(|trailers| trailers[GRPC_STATUS].to_str().unwrap().to_owned());
        (status.unwrap_or_default(), String::from_utf8(answer.to_bytes().to_vec()).unwrap())
    };
    eventually("it answers", async || {
        let (status, _) = call().await;
        if status == "0" { Ok(()) } else { Err(status) }
    })
    .await;
    shop.policy_of(spec, "algorithm: RoundRobin").await;
    shop.endpoints("usable", 2).await;
    shop.answers("b", 500);
    let mut failed = 0;
    for _ in 0..20 {
        failed += usize::from(call().await.0 == "14");
    }
    assert_eq!(failed, 3);
    shop.endpoints("ejected", 1).await;
    assert_eq!(call().await, ("0".to_owned(), "a".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_leaves_an_ejected_endpoint_and_is_told_so_by_a_new_token() {
    let shop = Shop::start(false, &["a", "b"]).await;
    let spec = "  loadBalancer: {algorithm: RoundRobin, panicThresholdPercent: 0}
  outlierDetection: {consecutive5xx: 2, ejectionTime: 1h, maximumEjectionTime: 1h}";
    shop.policy(spec, "algorithm: RoundRobin").await;
    shop.world.yaml(
        "route.yaml",
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: shop, port: 8080}]
  rules: [{backendRefs: [{name: shop, port: 8080}], sessionPersistence: {sessionName: id}}]
",
    );
    shop.endpoints("usable", 2).await;
    let mut wire = shop.web.connect("shop").await;
    let mut token = String::new();
    eventually("a session at b", async || {
        wire.send("GET / HTTP/1.1\r\nhost: shop\r\n\r\n").await;
        let (head, body) = wire.response().await;
        let cookie = head.get("set-cookie").and_then(|cookie| cookie.split(';').next());
        token = format!("cookie: {}\r\n", cookie.ok_or("no session")?);
        if body == b"b" { Ok(()) } else { Err(String::from_utf8(body).unwrap()) }
    })
    .await;
    shop.answers("b", 500);
    for _ in 0..2 {
        assert_eq!(ask(&mut wire, "/", &token).await, (500, "b".to_owned()));
    }
    wire.send(format!("GET / HTTP/1.1\r\nhost: shop\r\n{token}\r\n")).await;
    let (head, body) = wire.response().await;
    assert_eq!((head.status(), &*body), (200, b"a".as_slice()));
    assert!(head.get("set-cookie").is_some(), "{head:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r24_the_own_zone_is_preferred_and_no_endpoint_gets_more_than_half_as_much_again() {
    let mut shop = Shop::start(false, &["near"]).await;
    for far in ["far-1", "far-2", "far-3", "far-4"] {
        shop.add(far, false, 100, "b").await;
    }
    shop.policy("  loadBalancer: {algorithm: RoundRobin, zones: {}}", "maximum_load_percent: 150").await;
    shop.endpoints("usable", 5).await;
    let requests = 1000;
    let counts = shop.counts(requests).await;
    let mean = requests as f64 / 5.0;
    // By chance a little more.
    assert!(counts.values().all(|count| (*count as f64) < 1.7 * mean), "{counts:?}");
    assert!(counts["near"] as f64 > 1.3 * mean, "{counts:?}");
    let metrics = shop.web.metrics().await;
    let picks = |zone| metrics.sum("tulle_balancer_zone_picks_total", &[("zone", zone)]);
    assert!(picks("own") >= counts["near"] as f64 && picks("other") > 0.0);
    // A zone that is large enough takes all.
    for near in ["near-2", "near-3", "near-4", "near-5", "near-6", "near-7"] {
        shop.add(near, false, 100, "a").await;
    }
    shop.endpoints("usable", 11).await;
    eventually("the own zone takes all", async || {
        let counts = shop.counts(100).await;
        if counts.keys().all(|by| by.starts_with("near")) { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_requests_of_one_long_connection_are_spread_over_endpoints_that_come() {
    let mut shop = Shop::start(true, &["a", "b"]).await;
    let stream = TcpStream::connect(shop.web.outbound("shop")).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    // Eight at a time, as of a busy client.
    let load = async |requests: usize| {
        let mut counts = Counts::new();
        for _ in 0..requests / 8 {
            let mut answers = tokio::task::JoinSet::new();
            for _ in 0..8 {
                let mut sender = sender.clone();
                answers.spawn(async move {
                    let request =
                        Request::get("http://shop/").body(http_body_util::Empty::<bytes::Bytes>::new());
                    let response = sender.send_request(request.unwrap()).await.unwrap();
                    let body = response.into_body().collect().await.unwrap();
                    String::from_utf8(body.to_bytes().to_vec()).unwrap()
                });
            }
            for by in answers.join_all().await {
                *counts.entry(by).or_default() += 1;
            }
        }
        counts
    };
    eventually("both answer", async || {
        let counts = load(16).await;
        if counts.len() == 2 { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
    shop.add("c", true, 100, "a").await;
    shop.add("d", true, 100, "a").await;
    // As it is by default, the new ones get their part at once; how even it is depends on how fast each answers.
    eventually("all four answer", async || {
        let counts = load(160).await;
        let is_spread = counts.len() == 4 && counts.values().all(|count| *count >= 8);
        if is_spread { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
    // By turns it does not: within 15 %.
    let text = "
apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: shop, namespace: default}
spec:
  targetRefs: [{group: \"\", kind: Service, name: shop}]
  loadBalancer: {algorithm: RoundRobin}
";
    shop.world.yaml("policy.yaml", text);
    eventually("within 15 %", async || {
        let counts = load(400).await;
        let is_even = counts.len() == 4 && counts.values().all(|count| (85..=115).contains(count));
        if is_even { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
    assert_eq!(shop.servers.len(), 4);
}
