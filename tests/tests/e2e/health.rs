//! Active health checks: who fails them gets nothing while another does not.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tulle_tests::app::{self, App};
use tulle_tests::{Wire, Workload, World, eventually, within};

use super::mtls::endpoint_slice;

/// An application whose health can be told, which counts its requests beside checks, and the checks.
struct Patient {
    app: App,
    well: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    checked: Arc<AtomicUsize>,
}

impl Patient {
    /// `checked` says which requests are checks, and `answer` what they are answered, to the well and to the others.
    async fn start(http2: bool, check: &'static str, answer: fn(bool) -> Response<app::Body>) -> Self {
        let well = Arc::new(AtomicBool::new(true));
        let (served, checked) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counts = (Arc::clone(&well), Arc::clone(&served), Arc::clone(&checked));
        let answers = move |request: Request<Incoming>| {
            let (well, served, checked) = &counts;
            let response = if request.uri().path() == check {
                assert_eq!(request.headers()["user-agent"], "tulle-health-check");
                checked.fetch_add(1, Ordering::SeqCst);
                answer(well.load(Ordering::SeqCst))
            } else {
                served.fetch_add(1, Ordering::SeqCst);
                Response::new(app::full("hello"))
            };
            async move {
                // Whoever has sent a body wants it read.
                drop(request.into_body().collect().await);
                response
            }
        };
        let app = if http2 { App::http2(answers).await } else { App::http1(answers).await };
        Self { app, well, served, checked }
    }

    async fn http1() -> Self {
        Self::start(false, "/healthz", |well| {
            let mut response = Response::new(app::full(""));
            *response.status_mut() = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            response
        })
        .await
    }

    async fn grpc() -> Self {
        Self::start(true, "/grpc.health.v1.Health/Check", |well| {
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from(0))]);
            let message = [0, 0, 0, 0, 2, 8, if well { 1 } else { 2 }];
            let body = Full::new(Bytes::copy_from_slice(&message));
            let body = body.with_trailers(async move { Some(Ok::<_, Infallible>(trailers)) });
            let mut response = Response::new(body.boxed());
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            response
        })
        .await
    }

    fn is(&self, well: bool) {
        self.well.store(well, Ordering::SeqCst);
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }
}

/// A policy by which endpoints take turns, and which asks them by `kind`, often; empty: not at all.
fn policy(kind: &str) -> String {
    let check = match kind {
        "" => String::new(),
        kind => format!(
            "  healthCheck:\n    {kind}\n    interval: 50ms\n    timeout: 10s\n    healthyThreshold: 2\n    \
             unhealthyThreshold: 2\n"
        ),
    };
    format!(
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata:\n  name: orders\n  namespace: default\nspec:\n  \
         targetRefs: [{{group: \"\", kind: Service, name: orders}}]\n  loadBalancer: {{algorithm: RoundRobin}}\n{check}"
    )
}

/// `web`, and two endpoints of `orders`, by the states that `web` has them in.
struct Ward {
    world: World,
    web: Workload,
    orders: Vec<Workload>,
}

impl Ward {
    async fn start(patients: &[&Patient], protocol: &str) -> Self {
        let world = World::strict().await;
        world.service("orders", protocol);
        let mut orders = Vec::new();
        for (name, patient) in ["orders", "orders-2"].into_iter().zip(patients) {
            let one = world.workload(name).serves("orders", patient.app.address()).start().await;
            one.counts("tulle_registered", &[], 1.0).await;
            orders.push(one);
        }
        let web = world.workload("web").calls("orders").start().await;
        Self { world, web, orders }
    }

    /// Waits until the endpoints are what is said, of those that there are.
    async fn are(&self, states: &[(&str, bool)]) {
        let expected: BTreeMap<String, bool> =
            states.iter().map(|(address, unhealthy)| ((*address).to_owned(), *unhealthy)).collect();
        eventually(&format!("the endpoints' being unhealthy is {expected:?}"), async || {
            let shown = unhealthy(&self.web).await;
            if shown == expected { Ok(()) } else { Err(format!("{shown:?}")) }
        })
        .await;
    }

    /// As [`Ward::are`], of the workloads that serve `orders`.
    async fn workloads_are(&self, unhealthy: &[bool]) {
        let addresses: Vec<String> = self.orders.iter().map(|one| one.inbound().to_string()).collect();
        let states: Vec<_> = addresses.iter().map(String::as_str).zip(unhealthy.iter().copied()).collect();
        self.are(&states).await;
    }
}

/// By address, whether `web` has an endpoint of its only service for unhealthy.
async fn unhealthy(web: &Workload) -> BTreeMap<String, bool> {
    let dump: Value = serde_json::from_str(&web.config_dump().await).unwrap();
    let endpoints = dump["services"][0]["endpoints"].as_array().cloned().unwrap_or_default();
    let endpoints = endpoints
        .iter()
        .map(|one| (one["address"].as_str().unwrap().to_owned(), one["state"] == "unhealthy"));
    endpoints.collect()
}

/// A client of `orders`.
trait Client {
    /// Asks once, and is answered 200.
    async fn ask(&mut self);
}

struct Http1(Wire);

impl Client for Http1 {
    async fn ask(&mut self) {
        self.0.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        assert_eq!(self.0.response().await.0.status(), 200);
    }
}

struct Http2(hyper::client::conn::http2::SendRequest<Empty<Bytes>>);

impl Http2 {
    async fn connect(web: &Workload) -> Self {
        let stream = TokioIo::new(TcpStream::connect(web.outbound("orders")).await.unwrap());
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream);
        let (sender, connection) = within("an HTTP/2 handshake", handshake).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }
}

impl Client for Http2 {
    async fn ask(&mut self) {
        let request = Request::post("http://orders/shop.Orders/List").body(Empty::new()).unwrap();
        let response = within("an answer", self.0.send_request(request)).await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap();
    }
}

/// Asks until both have served one more.
async fn both_serve(client: &mut impl Client, patients: [&Patient; 2]) {
    let before = patients.map(Patient::served);
    for _ in 0..10_000 {
        client.ask().await;
        if patients.map(Patient::served).iter().zip(before).all(|(now, before)| *now > before) {
            return;
        }
    }
    panic!("one gets no requests");
}

/// Asks often, and sees that only `well` serves.
async fn only_serves(client: &mut impl Client, well: &Patient, other: &Patient) {
    let before = (well.served(), other.served());
    for _ in 0..100 {
        client.ask().await;
    }
    assert_eq!((well.served() - before.0, other.served() - before.1), (100, 0));
}

/// The whole course of two endpoints, of which the second falls ill, then both, until nobody asks any more.
async fn course(ward: &Ward, client: &mut impl Client, check: &str, [one, two]: [&Patient; 2]) {
    client.ask().await;
    ward.world.yaml("policy.yaml", &policy(""));
    ward.workloads_are(&[false, false]).await;
    two.is(false);
    // Nobody asks.
    both_serve(client, [one, two]).await;
    ward.world.yaml("policy.yaml", &policy(check));
    ward.workloads_are(&[false, true]).await;
    only_serves(client, one, two).await;
    two.is(true);
    ward.workloads_are(&[false, false]).await;
    both_serve(client, [one, two]).await;
    one.is(false);
    ward.workloads_are(&[true, false]).await;
    only_serves(client, two, one).await;
    // None is well: better one of these than nobody.
    two.is(false);
    ward.workloads_are(&[true, true]).await;
    both_serve(client, [one, two]).await;
    two.is(true);
    ward.workloads_are(&[true, false]).await;
    only_serves(client, two, one).await;
    // Without a check in the policy, nobody is asked or passed over.
    ward.world.yaml("policy.yaml", &policy(""));
    ward.workloads_are(&[false, false]).await;
    both_serve(client, [one, two]).await;
    for outcome in ["passed", "refused"] {
        let labels = [("service", "default/orders:8080"), ("outcome", outcome)];
        ward.web.counts("tulle_health_checks_total", &labels, 2.0).await;
    }
    assert!(one.checked.load(Ordering::SeqCst) > 0);
    let log = ward.web.diagnostics();
    assert!(log.contains("an endpoint fails its health checks"), "{log}");
    assert!(log.contains("an endpoint passes its health checks again"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_fails_checks_by_http_gets_no_requests_until_it_passes_them() {
    let (one, two) = (Patient::http1().await, Patient::http1().await);
    let ward = Ward::start(&[&one, &two], "http").await;
    let mut client = Http1(ward.web.connect("orders").await);
    course(&ward, &mut client, "http: {path: /healthz}", [&one, &two]).await;
    // To the other side they are requests of this workload; on this side they leave no trace among requests.
    let record = ward.orders[0].logs(&[("path", json!("/healthz"))]).await;
    assert_eq!(record["source"], json!(ward.web.identity()), "{record}");
    let own = ward.web.access_log();
    assert!(own.iter().all(|record| record["path"] != "/healthz"), "{own:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_say_serving_by_grpc_gets_no_requests_until_it_does() {
    let (one, two) = (Patient::grpc().await, Patient::grpc().await);
    let ward = Ward::start(&[&one, &two], "grpc").await;
    let mut client = Http2::connect(&ward.web).await;
    course(&ward, &mut client, "grpc: {service: shop.Orders}", [&one, &two]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_no_connections_is_found_out_before_a_request_is() {
    let one = Patient::http1().await;
    let world = World::strict().await;
    world.service("orders", "http");
    // Off the mesh, where a connection is all that there is to see; beside a workload, whose proxy's handshake counts.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = closed.local_addr().unwrap();
    world.yaml("slice.yaml", &endpoint_slice("orders", address, None));
    let orders = world.workload("orders").serves("orders", one.app.address()).start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = world.workload("web").calls("orders").start().await;
    world.yaml("policy.yaml", &policy("tcp: {}"));
    let mut client = Http1(web.connect("orders").await);
    client.ask().await;
    let ward = Ward { world, web, orders: vec![orders] };
    let (meshed, bare) = (ward.orders[0].inbound().to_string(), address.to_string());
    ward.are(&[(&meshed, false), (&bare, true)]).await;
    let failed = [("result", "failed")];
    let before = ward.web.metrics().await.sum("tulle_pool_dials_total", &failed);
    let served = one.served();
    for _ in 0..100 {
        Http1(ward.web.connect("orders").await).ask().await;
    }
    assert_eq!(one.served() - served, 100);
    let after = ward.web.metrics().await.sum("tulle_pool_dials_total", &failed);
    assert!((after - before).abs() < 0.1, "{before} → {after}: somebody has tried");
    let passed = [("service", "default/orders:8080"), ("outcome", "passed")];
    ward.web.counts("tulle_health_checks_total", &passed, 2.0).await;
    let failed = [("service", "default/orders:8080"), ("outcome", "connect_failed")];
    ward.web.counts("tulle_health_checks_total", &failed, 2.0).await;
    // Somebody listens there now.
    let listener = closed.listen(64).unwrap().into_std().unwrap();
    let late = App::http1_on(listener, |_| async { Response::new(app::full("late")) });
    ward.are(&[(&meshed, false), (&bare, false)]).await;
    late.stop().await;
    ward.are(&[(&meshed, false), (&bare, true)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_policy_does_not_let_in_finds_nobody_healthy_and_says_so() {
    let (one, two) = (Patient::http1().await, Patient::http1().await);
    let ward = Ward::start(&[&one, &two], "http").await;
    ward.world.yaml("policy.yaml", &policy("http: {path: /healthz}"));
    ward.world.yaml(
        "allow.yaml",
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: orders\n  namespace: default\nspec:\n  \
         targetRefs: [{group: \"\", kind: Service, name: orders}]\n  action: ALLOW\n  rules:\n    - from:\n        - identities: \
         [default/other]\n",
    );
    let mut wire = ward.web.connect("orders").await;
    eventually("its requests are denied", async || {
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        let head = wire.response().await.0;
        if head.reason() == Some("policy_denied") { Ok(()) } else { Err(format!("{head:?}")) }
    })
    .await;
    ward.workloads_are(&[true, true]).await;
    // As before: it is told why.
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    let head = wire.response().await.0;
    assert_eq!((head.status(), head.reason()), (403, Some("policy_denied")));
    ward.world.remove_yaml("allow.yaml");
    ward.workloads_are(&[false, false]).await;
}
