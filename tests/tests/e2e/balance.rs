//! Which endpoint takes a request, by what a TrafficPolicy says, through the real binaries.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tulle_tests::app::{App, Body, full};
use tulle_tests::{Wire, Workload, World, eventually};

mod hashes;
mod outliers;
mod spread;
mod zones;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// `web`, which calls `shop`, whose endpoints, outside the mesh, say who they are.
struct Shop {
    world: World,
    web: Workload,
    servers: BTreeMap<String, Server>,
}

struct Server {
    how: Arc<How>,
    app: App,
}

/// How a server answers.
struct How {
    status: AtomicU16,
    /// The status is that of each so manieth answer, and the others' is 200.
    each: AtomicU64,
    asked: AtomicU64,
    /// Milliseconds before each.
    delay: AtomicU64,
    /// Requests for `/hold` are answered one for each that this lets go, in no order.
    released: watch::Sender<u64>,
    held: AtomicU64,
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
        let how = Arc::<How>::default();
        let answer = {
            let (name, how) = (name.to_owned(), Arc::clone(&how));
            move |request: Request<Incoming>| {
                let (name, how) = (name.clone(), Arc::clone(&how));
                async move { how.answer(&request, &name).await }
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
        self.servers.insert(name.to_owned(), Server { how, app });
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
        self.answers_each(name, 1, status);
    }

    /// Each so manieth answer has the status.
    fn answers_each(&self, name: &str, each: u64, status: u16) {
        let how = &self.servers[name].how;
        how.each.store(each, Relaxed);
        how.status.store(status, Relaxed);
    }

    /// The sum of a metric of the client's proxy.
    async fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.web.metrics().await.sum(name, labels)
    }
}

// === impl How ===

impl Default for How {
    fn default() -> Self {
        Self {
            status: AtomicU16::new(200),
            each: AtomicU64::new(1),
            asked: AtomicU64::default(),
            delay: AtomicU64::default(),
            released: watch::Sender::new(0),
            held: AtomicU64::default(),
        }
    }
}

impl How {
    async fn answer(&self, request: &Request<Incoming>, name: &str) -> Response<Body> {
        if request.uri().path() == "/hold" {
            let turn = self.held.fetch_add(1, Relaxed);
            let _ = self.released.subscribe().wait_for(|released| *released > turn).await;
            return Response::new(full(name.to_owned()));
        }
        let delay = self.delay.load(Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        let asked = self.asked.fetch_add(1, Relaxed);
        let is_its_turn = asked.is_multiple_of(self.each.load(Relaxed));
        let status = if is_its_turn { self.status.load(Relaxed) } else { 200 };
        if !request.headers().contains_key("te") {
            return Response::builder().status(status).body(full(name.to_owned())).unwrap();
        }
        // gRPC tells it last.
        let status = if status == 200 { "0" } else { "14" };
        let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static(status))]);
        let body = full(name.to_owned()).with_trailers(async move { Some(Ok(trailers)) });
        Response::new(body.boxed())
    }
}

async fn ask(wire: &mut Wire, path: &str, fields: &str) -> (u16, String) {
    wire.send(format!("GET {path} HTTP/1.1\r\nhost: shop\r\n{fields}\r\n")).await;
    let (head, body) = wire.response().await;
    (head.status(), String::from_utf8(body).unwrap())
}

/// A connection of HTTP/2.
async fn http2(shop: &Shop) -> hyper::client::conn::http2::SendRequest<Body> {
    let stream = TcpStream::connect(shop.web.outbound("shop")).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A call's status, and who answers it.
async fn call(sender: &mut hyper::client::conn::http2::SendRequest<Body>) -> (String, String) {
    let request = Request::post("http://shop/shop.Orders/Get").header("te", "trailers");
    let request = request.header("content-type", "application/grpc").body(full("")).unwrap();
    let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    // The proxy's own answers have none.
    let status = answer.trailers().map(|trailers| trailers[GRPC_STATUS].to_str().unwrap().to_owned());
    (status.unwrap_or_default(), String::from_utf8(answer.to_bytes().to_vec()).unwrap())
}
