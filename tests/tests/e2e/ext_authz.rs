//! Another program is asked whether requests are let in: by an ExternalAuthorization, through the mesh, with an authorizer that the test plays.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use tulle_api::ext_authz::authorization_server::{Authorization, AuthorizationServer};
use tulle_api::ext_authz::check_response::HttpResponse;
use tulle_api::ext_authz::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption,
    HttpStatus, OkHttpResponse, QueryParameter, Status,
};
use tulle_tests::app::{App, full};
use tulle_tests::echo::{self, Answer};
use tulle_tests::{Wire, Workload, World, eventually};

/// Who is asked, in the mesh as `opa`. It goes by the path: what it says is in [`says`].
struct Authorizer {
    asked: Arc<Mutex<Vec<AttributeContext>>>,
    address: SocketAddr,
}

#[derive(Clone)]
struct Scripted(Arc<Mutex<Vec<AttributeContext>>>);

/// `web` → `orders`, about whose requests `opa` is asked.
struct Scene {
    world: World,
    authorizer: Authorizer,
    opa: Workload,
    orders: Workload,
    web: Workload,
    _app: App,
}

fn option(key: &str, value: &str) -> HeaderValueOption {
    let header = HeaderValue { key: key.to_owned(), value: value.to_owned(), ..HeaderValue::default() };
    HeaderValueOption { header: Some(header), append: None, append_action: 0 }
}

fn answer(code: i32, http_response: HttpResponse) -> Option<CheckResponse> {
    let status = Status { code, message: "as the test has it".to_owned() };
    Some(CheckResponse { status: Some(status), http_response: Some(http_response) })
}

/// `None`: it never answers.
fn says(path: &str) -> Option<CheckResponse> {
    match path.split('?').next().unwrap_or_default() {
        "/never" => None,
        "/no" => {
            let denied = DeniedHttpResponse {
                status: Some(HttpStatus { code: 401 }),
                headers: vec![option("www-authenticate", "Bearer"), option("x-tulle-error", "forged")],
                body: "who are you?".to_owned(),
            };
            answer(16, HttpResponse::DeniedResponse(denied))
        }
        "/garbage" => Some(CheckResponse::default()),
        _ => {
            let parameter = QueryParameter { key: "user".to_owned(), value: "ann".to_owned() };
            let ok = OkHttpResponse {
                headers: vec![option("x-user", "ann"), option("accept", "nothing"), option("cookie", "a=1")],
                headers_to_remove: vec!["authorization".to_owned()],
                response_headers_to_add: vec![option("x-decided", "yes")],
                query_parameters_to_set: vec![parameter],
                query_parameters_to_remove: Vec::new(),
            };
            answer(0, HttpResponse::OkResponse(ok))
        }
    }
}

#[tonic::async_trait]
impl Authorization for Scripted {
    async fn check(
        &self,
        call: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        let attributes = call.into_inner().attributes.unwrap();
        let path = attributes.request.clone().unwrap().http.unwrap().path;
        self.0.lock().push(attributes);
        match says(&path) {
            Some(answer) => Ok(tonic::Response::new(answer)),
            None => std::future::pending().await,
        }
    }
}

impl Authorizer {
    async fn start() -> Self {
        let asked = Arc::<Mutex<Vec<AttributeContext>>>::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = AuthorizationServer::new(Scripted(Arc::clone(&asked)));
        let server = tonic::transport::Server::builder().add_service(server);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { asked, address }
    }

    fn count(&self) -> usize {
        self.asked.lock().len()
    }

    /// What it was told last.
    fn told(&self) -> AttributeContext {
        self.asked.lock().last().cloned().unwrap()
    }
}

/// `rest`: more of the spec, in YAML.
fn policy(targets: &str, rest: &str) -> String {
    format!(
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: ExternalAuthorization\nmetadata: {{name: ask}}\nspec:\n  \
         targetRefs: {targets}\n  service: {{name: opa, port: 8080}}\n{rest}"
    )
}

const ORDERS: &str = "[{kind: Service, name: orders}]";

/// Says what it was asked, or gives back the body that it got.
async fn app() -> App {
    App::http1(|request: Request<Incoming>| async move {
        let seen = echo::mirror("orders", &request);
        let body = request.into_body().collect().await.unwrap().to_bytes();
        if body.is_empty() { seen } else { Response::new(full(body)) }
    })
    .await
}

impl Scene {
    async fn start(targets: &str, rest: &str, protocol: &str) -> Self {
        let world = World::strict().await;
        let (authorizer, app) = (Authorizer::start().await, app().await);
        world.yaml("policy.yaml", &policy(targets, rest));
        world.service("opa", "grpc");
        world.service("orders", protocol);
        let opa = world.workload("opa").serves("opa", authorizer.address).start().await;
        opa.counts("tulle_registered", &[], 1.0).await;
        // Each worker remembers answers by itself.
        let orders = world.workload("orders").serves("orders", app.address()).calls("orders");
        let orders = orders.setting("--workers", "1").start().await;
        orders.counts("tulle_registered", &[], 1.0).await;
        let web = world.workload("web").calls("orders").start().await;
        Self { world, authorizer, opa, orders, web, _app: app }
    }

    /// `METHOD TARGET [name:value …]`, as `who`.
    async fn ask(&self, who: &Workload, grpc: bool, asked: &str) -> Answer {
        let stream = TcpStream::connect(who.outbound("orders")).await.unwrap();
        echo::ask(stream, grpc, "orders", asked).await
    }

    /// Waits until the policy as it is now has such a request answered so.
    async fn comes_to(&self, asked: &str, expected: &str) {
        eventually(&format!("{asked}: {expected}"), async || {
            let by = self.ask(&self.web, false, asked).await.by();
            if by == expected { Ok(()) } else { Err(by) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorizer_lets_in_changes_and_denies_in_its_own_words() {
    let rest = "  allowedHeaders: [Cookie]\n  context: {tier: gold}\n";
    let scene = Scene::start(ORDERS, rest, "http").await;
    let answer =
        scene.ask(&scene.web, false, "GET /cart?a=b authorization:secret x-user:eve accept:all").await;
    assert_eq!(answer.by(), "orders", "{answer:?}");
    assert_eq!(answer.saw("target"), "/cart?a=b&user=ann");
    for (field, seen) in [("x-user", "ann"), ("cookie", "a=1"), ("authorization", "-"), ("accept", "all")] {
        assert_eq!(answer.saw_field(field), seen, "{field}");
    }
    assert_eq!(answer.field("x-decided"), "yes");

    let told = scene.authorizer.told();
    let (source, destination) = (told.source.unwrap(), told.destination.unwrap());
    assert_eq!((source.principal, destination.principal), (scene.web.identity(), scene.orders.identity()));
    assert_eq!(told.context_extensions["tier"], "gold");
    let http = told.request.unwrap().http.unwrap();
    assert_eq!((&*http.method, &*http.path, &*http.host), ("GET", "/cart?a=b", "orders"));
    assert_eq!(http.headers["authorization"], "secret");
    // It is asked through the mesh.
    let record = scene.opa.logs(&[("grpc_status", json!(0))]).await;
    assert_eq!((&record["tls"], &record["source"]), (&json!("mtls"), &json!(scene.orders.identity())));

    let denied = scene.ask(&scene.web, false, "GET /no").await;
    assert_eq!(denied.by(), "401 denied_externally");
    assert_eq!(
        (&*denied.field("www-authenticate"), &*denied.field("x-tulle-error-by")),
        ("Bearer", "default/orders/inbound")
    );
    let denied = scene.ask(&scene.web, true, "POST /no").await;
    assert_eq!((denied.status, &*denied.field("grpc-status")), (200, "16"));
    assert_eq!(
        (&*denied.field("grpc-message"), &*denied.field("x-tulle-error")),
        ("who are you?", "denied_externally")
    );

    let of = [("reason", json!("denied_externally")), ("rule", json!("default/ask")), ("status", json!(401))];
    let record = scene.orders.logs(&of).await;
    assert!(record["detail"].as_str().unwrap().contains("as the test has it"), "{record}");
    let labels = [("policy", "default/ask"), ("result", "denied"), ("cached", "false"), ("enforced", "true")];
    scene.orders.counts("tulle_external_checks_total", &labels, 2.0).await;
    scene.orders.counts("tulle_external_check_duration_seconds_count", &[], 3.0).await;
    scene.orders.counts("tulle_refused_total", &[("reason", "denied_externally")], 2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_the_failure_mode_decides() {
    let mut scene = Scene::start(ORDERS, "  timeout: 300ms\n", "http").await;
    scene.comes_to("GET /", "orders").await;
    let refused = scene.ask(&scene.web, false, "GET /never").await;
    assert_eq!(refused.by(), "503 authorizer_unavailable");
    let refused = scene.ask(&scene.web, true, "POST /never").await;
    assert_eq!(
        (&*refused.field("grpc-status"), &*refused.field("x-tulle-error")),
        ("14", "authorizer_unavailable")
    );
    assert_eq!(scene.ask(&scene.web, false, "GET /garbage").await.by(), "503 authorizer_unavailable");
    scene.orders.logs(&[("reason", json!("authorizer_unavailable")), ("rule", json!("default/ask"))]).await;
    for result in ["timed_out", "failed"] {
        scene.orders.counts("tulle_external_checks_total", &[("result", result)], 1.0).await;
    }
    scene.world.yaml("policy.yaml", &policy(ORDERS, "  timeout: 300ms\n  failureMode: Allow\n"));
    scene.comes_to("GET /garbage", "orders").await;
    assert_eq!(scene.ask(&scene.web, false, "GET /no").await.by(), "401 denied_externally");
    // Nobody is there any more.
    scene.opa.process().kill().await;
    scene.comes_to("GET /no", "orders").await;
    scene.world.yaml("policy.yaml", &policy(ORDERS, "  timeout: 300ms\n"));
    scene.comes_to("GET /", "503 authorizer_unavailable").await;
    // Who may not be asked is not.
    let elsewhere = policy(ORDERS, "").replace("name: opa,", "name: opa, namespace: elsewhere,");
    scene.world.yaml("policy.yaml", &elsewhere);
    eventually("it says why", async || {
        let answer = scene.ask(&scene.web, false, "GET /").await;
        assert_eq!(answer.by(), "503 authorizer_unavailable");
        let record = scene.orders.logs(&[("reason", json!("authorizer_unavailable"))]).await;
        let lines = scene.orders.access_lines();
        if lines.iter().any(|line| line.contains("may not refer to")) {
            Ok(())
        } else {
            Err(record.to_string())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_told_as_far_as_it_may_be_and_reaches_the_application_whole() {
    let scene = Scene::start(ORDERS, "  body: {maxBytes: 8}\n", "http").await;
    let mut wire = scene.web.connect("orders").await;
    wire.send("POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 5\r\n\r\nhello").await;
    assert_eq!(wire.response().await.1, b"hello");
    let http = |told: AttributeContext| told.request.unwrap().http.unwrap();
    let told = http(scene.authorizer.told());
    assert_eq!((&*told.body, told.size, &*told.headers["x-envoy-auth-partial-body"]), ("hello", 5, "false"));

    wire.send("POST / HTTP/1.1\r\nhost: orders\r\ntransfer-encoding: chunked\r\n\r\n6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n").await;
    let (head, _) = wire.response().await;
    assert_eq!((head.status(), head.reason()), (413, Some("body_too_large")), "{head:?}");
    scene.orders.logs(&[("reason", json!("body_too_large"))]).await;
    let grpc = scene.ask(&scene.web, true, "POST /no").await;
    assert_eq!(&*grpc.field("x-tulle-error"), "denied_externally");
    assert!(http(scene.authorizer.told()).body.is_empty());

    scene.world.yaml("policy.yaml", &policy(ORDERS, "  body: {maxBytes: 8, partial: true}\n"));
    let long = "x".repeat(100_000);
    eventually("its beginning is told", async || {
        let mut wire = scene.web.connect("orders").await;
        wire.send(format!("POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: {}\r\n\r\n{long}", long.len()))
            .await;
        let (head, body) = wire.response().await;
        match head.status() {
            200 if body == long.as_bytes() => Ok(()),
            status => Err(format!("{status}: {} bytes", body.len())),
        }
    })
    .await;
    let told = http(scene.authorizer.told());
    assert_eq!((&*told.body, &*told.headers["x-envoy-auth-partial-body"]), ("xxxxxxxx", "true"));

    // A client that waits to be asked for its body is.
    let mut wire = scene.web.connect("orders").await;
    wire.send("POST / HTTP/1.1\r\nhost: orders\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n").await;
    assert_eq!(wire.head().await.status(), 100);
    wire.send("later").await;
    assert_eq!(wire.response().await.1, b"later");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_while_policy_changes_is_judged_by_the_new_one_before_it_is_sent() {
    let scene = Scene::start(ORDERS, "  body: {maxBytes: 8}\n", "http").await;
    scene.comes_to("GET /late", "orders").await;
    let allowed = [("verdict", "allow")];
    let before = scene.orders.metrics().await.sum("tulle_policy_verdicts_total", &allowed);
    let mut wire = scene.web.connect("orders").await;
    wire.send("POST /late HTTP/1.1\r\nhost: orders\r\ncontent-length: 5\r\n\r\nlate").await;
    eventually("it is let in, and waited for", async || {
        let now = scene.orders.metrics().await.sum("tulle_policy_verdicts_total", &allowed);
        if now > before { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    scene.world.yaml(
        "denial.yaml",
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: late}\nspec:\n  targetRefs: [{kind: Service, \
         name: orders}]\n  action: DENY\n  rules: [{to: [{paths: [/late]}]}]\n",
    );
    scene.comes_to("GET /late", "403 policy_denied").await;
    wire.send("r").await;
    let (head, body) = wire.response().await;
    assert_eq!((head.status(), head.reason()), (403, Some("policy_denied")), "{head:?} {body:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_holds_for_the_same_question_and_its_time() {
    let rest = "  cache: {for: 1h, headers: [authorization]}\n";
    let scene = Scene::start(ORDERS, rest, "http").await;
    for asked in ["GET /a authorization:1", "GET /a authorization:1 x-other:2", "GET /no", "GET /no"] {
        scene.ask(&scene.web, false, asked).await;
    }
    assert_eq!(scene.authorizer.count(), 2);
    for result in ["allowed", "denied"] {
        let labels = [("result", result), ("cached", "true")];
        scene.orders.counts("tulle_external_checks_total", &labels, 1.0).await;
    }
    let answer = scene.ask(&scene.web, false, "GET /a authorization:1").await;
    assert_eq!((answer.saw_field("x-user"), scene.authorizer.count()), ("ann", 2));
    let others = [
        "GET /a authorization:2",
        "GET /a?b authorization:1",
        "HEAD /a authorization:1",
        "GET /a host:b authorization:1",
    ];
    for (more, asked) in others.iter().enumerate() {
        scene.ask(&scene.web, false, asked).await;
        assert_eq!(scene.authorizer.count(), 3 + more, "{asked}");
    }
    // Another client, on the same address.
    let batch = scene.world.workload("batch").calls("orders").start().await;
    scene.ask(&batch, false, "GET /a authorization:1").await;
    assert_eq!(scene.authorizer.count(), 7);
    // With the policy its answers change.
    scene.world.yaml("policy.yaml", &policy(ORDERS, &format!("{rest}  timeout: 2s\n")));
    eventually("it is asked again", async || {
        scene.ask(&scene.web, false, "GET /a authorization:1").await;
        if scene.authorizer.count() == 8 { Ok(()) } else { Err(scene.authorizer.count().to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_what_it_would_have_refused_and_changes_nothing() {
    let scene = Scene::start(ORDERS, "  mode: DryRun\n", "http").await;
    for asked in ["GET /no", "GET /never", "GET /yes"] {
        let answer = scene.ask(&scene.web, false, asked).await;
        assert_eq!((&*answer.by(), answer.saw_field("x-user")), ("orders", "-"), "{asked}");
    }
    for result in ["denied", "timed_out", "allowed"] {
        let labels = [("result", result), ("enforced", "false")];
        scene.orders.counts("tulle_external_checks_total", &labels, 1.0).await;
    }
    scene.orders.logs(&[("would_deny", json!("default/ask")), ("status", json!(200))]).await;
    for reason in ["denied_externally", "authorizer_unavailable"] {
        eventually(reason, async || {
            let said = scene.orders.diagnostics();
            let told = said.lines().any(|line| line.contains("dry run") && line.contains(reason));
            if told { Ok(()) } else { Err("nothing is told".to_owned()) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorizer_is_not_asked_about_being_asked_and_one_asks_itself_by_the_same_policy() {
    // Of every workload of the namespace, the authorizer's own among them.
    let scene = Scene::start("[]", "", "http").await;
    assert_eq!(scene.ask(&scene.web, false, "GET /a").await.by(), "orders");
    assert_eq!(scene.authorizer.count(), 1);
    let by_itself = scene.ask(&scene.orders, false, "GET /no").await;
    assert_eq!(
        (&*by_itself.by(), &*by_itself.field("x-tulle-error-by")),
        ("401 denied_externally", "default/orders/outbound")
    );
    let let_in = scene.ask(&scene.orders, false, "GET /a").await;
    assert_eq!(
        (&*let_in.by(), let_in.saw_field("x-user"), &*let_in.field("x-decided")),
        ("orders", "ann", "yes")
    );
    assert_eq!(scene.authorizer.count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_does_not_get_around_an_authorizer() {
    let scene = Scene::start(ORDERS, "", "").await;
    assert_eq!(scene.ask(&scene.web, false, "GET /no").await.by(), "401 denied_externally");
    let mut wire = scene.web.connect("orders").await;
    let _ = wire.try_send(b"\x00\x01 GET /no HTTP/1.1\r\n\r\n").await;
    let _ = wire.stream().shutdown().await;
    assert_eq!(wire.to_end_or_reset().await, b"");
    let record = scene.orders.logs(&[("reason", json!("authorizer_unavailable"))]).await;
    assert!(record["detail"].as_str().unwrap().contains("is not HTTP"), "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_a_route_is_about_what_the_route_matches() {
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: admin}\nspec:\n  \
                 parentRefs: [{group: '', kind: Service, name: orders}]\n  rules:\n  \
                 - {name: closed, matches: [{path: {type: PathPrefix, value: /no}}], backendRefs: [{name: orders, port: 8080}]}\n  \
                 - {name: open, matches: [{path: {type: PathPrefix, value: /}}], backendRefs: [{name: orders, port: 8080}]}\n";
    let target = "[{group: gateway.networking.k8s.io, kind: HTTPRoute, name: admin, sectionName: closed}]";
    let scene = Scene::start(target, "", "http").await;
    scene.world.yaml("route.yaml", route);
    scene.comes_to("GET /no", "401 denied_externally").await;
    let asked = scene.authorizer.count();
    assert_eq!(scene.ask(&scene.web, false, "GET /other").await.by(), "orders");
    assert_eq!(scene.authorizer.count(), asked);
}

/// Two workloads behind one Service: when one is gone, the other is asked.
#[tokio::test(flavor = "multi_thread")]
async fn another_authorizer_is_asked_when_one_is_gone() {
    let mut scene = Scene::start(ORDERS, "", "http").await;
    let second = Authorizer::start().await;
    let other = scene.world.workload("opa-2").serves("opa", second.address).start().await;
    other.counts("tulle_registered", &[], 1.0).await;
    eventually("both are asked", async || {
        assert_eq!(scene.ask(&scene.web, false, "GET /a").await.by(), "orders");
        if second.count() > 0 && scene.authorizer.count() > 0 { Ok(()) } else { Err("one only".to_owned()) }
    })
    .await;
    scene.opa.process().kill().await;
    let mut wire: Wire = scene.web.connect("orders").await;
    for _ in 0..30 {
        wire.send("GET /a HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        let (head, _) = wire.response().await;
        assert_eq!((head.status(), head.reason()), (200, None), "{head:?}");
    }
}
