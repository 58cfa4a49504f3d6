//! Asking, from the request to the change of it, with an authorizer on the other end of a real connection.

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request as Call, Response as Answered, Status as Refused};
use tulle_api::ext_authz::authorization_server::{Authorization, AuthorizationServer};
use tulle_api::ext_authz::check_response::HttpResponse;
use tulle_api::ext_authz::{
    CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue as Told, HeaderValueOption, HttpStatus,
    OkHttpResponse, Status,
};
use tulle_certs::jwks::KeySet;

use super::*;
use crate::forward::tests::{knows, lone_worker};
use crate::policy::{ExternalSpec, Inbound, InboundSpec, Open, PortPolicy, TlsKind, external_example};
use crate::state::{Mode, ObjectName};
use crate::token::{AuthenticationSpec, ClaimHeader, IssuerSpec, KeysSpec, Place};

type Says = fn(&CheckRequest) -> Option<CheckResponse>;

/// Remembers what it is asked; where it has nothing to say, it never answers.
#[derive(Clone)]
struct Scripted {
    asked: Arc<Mutex<Vec<CheckRequest>>>,
    says: Says,
}

#[tonic::async_trait]
impl Authorization for Scripted {
    async fn check(&self, call: Call<CheckRequest>) -> Result<Answered<CheckResponse>, Refused> {
        assert!(call.metadata().contains_key("grpc-timeout"));
        let question = call.into_inner();
        let said = (self.says)(&question);
        self.asked.lock().push(question);
        match said {
            Some(answer) => Ok(Answered::new(answer)),
            None => std::future::pending().await,
        }
    }
}

struct Scene {
    worker: Arc<Worker>,
    guard: policy::Guard,
    authorizer: Scripted,
}

impl Scene {
    async fn new(says: Says, change: impl FnOnce(ExternalSpec) -> ExternalSpec) -> Self {
        let authorizer = Scripted { asked: Arc::default(), says };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server =
            tonic::transport::Server::builder().add_service(AuthorizationServer::new(authorizer.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let worker = lone_worker("orders");
        knows(&worker, "opa", &[address]);
        let scene = Self { guard: guard(&worker), worker, authorizer };
        scene.follows(change(spec()));
        scene
    }

    fn follows(&self, spec: ExternalSpec) {
        let store = &self.worker.proxy.store;
        let old = store.load().inbound.clone();
        let spec = InboundSpec {
            workload: ObjectName::new("default", "orders"),
            mode: Mode::Permissive,
            ports: vec![(80, PortPolicy { protocol: Protocol::Http, mode: Mode::Permissive })],
            rules: Vec::new(),
            policies: Vec::new(),
            trust_domain: None,
            unspoken: Default::default(),
            rate_limits: Vec::new(),
            connection_ages: Vec::new(),
            access_logs: Vec::new(),
            samplings: Vec::new(),
            access_log: Default::default(),
            sampling: Default::default(),
            authentications: Vec::new(),
            external: vec![spec],
        };
        let inbound = Arc::new(Inbound::after(old.as_deref(), spec, Instant::now()));
        store.update(|snapshot| snapshot.inbound = Some(inbound));
    }

    async fn ask(&self, request: &mut Request<Body>) -> Result<Vec<Arc<Changes>>, Fault> {
        let asker = Asker {
            worker: &self.worker,
            guard: &self.guard,
            client: ([10, 0, 0, 9], 4711).into(),
            application: ([10, 0, 0, 1], 8080).into(),
            framing: Framing::Http1,
        };
        match about(asker, request) {
            Some(about) => ask(asker, about, None, request).await,
            None => panic!("nobody is asked"),
        }
    }

    fn asked(&self) -> usize {
        self.authorizer.asked.lock().len()
    }

    fn counts(&self, result: &str, cached: bool) -> bool {
        let text = self.worker.proxy.telemetry.metrics.render();
        let labels = [format!("result=\"{result}\""), format!("cached=\"{cached}\"")];
        text.lines().any(|line| {
            line.starts_with("tulle_external_checks_total")
                && labels.iter().all(|label| line.contains(label.as_str()))
        })
    }
}

fn guard(worker: &Worker) -> policy::Guard {
    worker.proxy.connections.register(Open {
        port: 80,
        peer: Some("spiffe://cluster.local/ns/default/sa/web".parse().unwrap()),
        tls: TlsKind::Mesh,
        client: [10, 0, 0, 9].into(),
        outside: None,
    })
}

fn spec() -> ExternalSpec {
    ExternalSpec {
        service: ObjectName::new("default", "opa"),
        service_port: 80,
        ..external_example("default/opa")
    }
}

fn request(target: &str) -> Request<Body> {
    Request::post(target)
        .header("host", "orders:8080")
        .header("x-role", "admin")
        .header("accept", "a")
        .header("accept", "b")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .body(Body::full(Bytes::from_static(b"{\"id\":1}")))
        .unwrap()
}

fn ok(code: i32, http_response: Option<HttpResponse>) -> Option<CheckResponse> {
    Some(CheckResponse { status: Some(Status { code, message: String::new() }), http_response })
}

fn lets_in(_: &CheckRequest) -> Option<CheckResponse> {
    let header = Told { key: "x-role".to_owned(), value: "reader".to_owned(), raw_value: Bytes::new() };
    let headers = vec![HeaderValueOption { header: Some(header), append: None, append_action: 0 }];
    ok(0, Some(HttpResponse::OkResponse(OkHttpResponse { headers, ..OkHttpResponse::default() })))
}

fn denies(_: &CheckRequest) -> Option<CheckResponse> {
    let status = Some(HttpStatus { code: 401 });
    let denied = DeniedHttpResponse { status, headers: Vec::new(), body: "who are you?".to_owned() };
    ok(16, Some(HttpResponse::DeniedResponse(denied)))
}

#[tokio::test]
async fn an_authorizer_is_told_who_asks_for_what_and_changes_the_request() {
    let context = vec![("tier".to_owned(), "gold".to_owned())];
    let scene = Scene::new(lets_in, |spec| ExternalSpec { body_bytes: 100, context, ..spec }).await;
    let mut request = request("/cart?a=b");
    scene.ask(&mut request).await.unwrap();
    assert_eq!(request.headers()["x-role"], "reader");
    assert!(!request.headers().contains_key("x-hop"));
    assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), "{\"id\":1}");

    let told = scene.authorizer.asked.lock().remove(0).attributes.unwrap();
    assert_eq!(told.context_extensions["tier"], "gold");
    let (source, destination) = (told.source.unwrap(), told.destination.unwrap());
    assert_eq!(source.principal, "spiffe://cluster.local/ns/default/sa/web");
    assert_eq!(destination.principal, "spiffe://cluster.local/ns/default/sa/orders");
    assert_eq!(destination.service, "default/orders");
    let address = format!("{:?} {:?}", source.address.unwrap(), destination.address.unwrap());
    for part in ["10.0.0.9", "4711", "10.0.0.1", "80"] {
        assert!(address.contains(part), "{part}: {address}");
    }
    let http = told.request.unwrap().http.unwrap();
    assert_eq!((&*http.method, &*http.path, &*http.host), ("POST", "/cart?a=b", "orders:8080"));
    assert_eq!((&*http.protocol, &*http.scheme, http.size), ("HTTP/1.1", "http", 8));
    assert_eq!(http.body, "{\"id\":1}");
    for (name, value) in [
        (":path", Some("/cart?a=b")),
        (":authority", Some("orders:8080")),
        ("accept", Some("a,b")),
        ("x-role", Some("admin")),
        ("x-envoy-auth-partial-body", Some("false")),
        ("x-hop", None),
        ("connection", None),
        ("host", None),
    ] {
        assert_eq!(http.headers.get(name).map(String::as_str), value, "{name}");
    }
    assert!(scene.counts("allowed", false));
}

#[tokio::test]
async fn a_denial_is_the_authorizers_and_a_dry_run_denies_nothing() {
    let scene = Scene::new(denies, |spec| spec).await;
    let fault = scene.ask(&mut request("/")).await.unwrap_err();
    assert_eq!(fault.reason, Reason::DeniedExternally);
    let speaker = crate::forward::fault::Speaker::new(None, crate::telemetry::metrics::Direction::Inbound);
    let response = fault.response(&speaker, false, false);
    assert_eq!(response.status(), 401);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "who are you?");
    scene.follows(ExternalSpec { dry_run: true, ..spec() });
    let mut request = request("/");
    assert!(scene.ask(&mut request).await.unwrap().is_empty());
    assert_eq!(request.headers()["x-role"], "admin");
    assert!(scene.counts("denied", false) && scene.asked() == 2);
}

#[tokio::test]
async fn without_an_answer_the_failure_mode_decides() {
    let soon = Duration::from_millis(50);
    let scene = Scene::new(|_| None, |spec| ExternalSpec { timeout: soon, ..spec }).await;
    let fault = scene.ask(&mut request("/")).await.unwrap_err();
    assert_eq!(fault.reason, Reason::AuthorizerUnavailable);
    assert!(fault.detail.contains("50ms"), "{}", fault.detail);
    assert!(scene.counts("timed_out", false));
    scene.follows(ExternalSpec { timeout: soon, failure_allows: true, ..spec() });
    assert!(scene.ask(&mut request("/")).await.unwrap().is_empty());

    let garbage: Says = |_| Some(CheckResponse::default());
    let scene = Scene::new(garbage, |spec| spec).await;
    let fault = scene.ask(&mut request("/")).await.unwrap_err();
    assert_eq!(fault.reason, Reason::AuthorizerUnavailable);
    assert!(scene.counts("failed", false));

    let nowhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    knows(&scene.worker, "opa", &[nowhere]);
    let fault = scene.ask(&mut request("/")).await.unwrap_err();
    assert_eq!(fault.reason, Reason::AuthorizerUnavailable);
    assert!(fault.detail.contains("cannot connect"), "{}", fault.detail);
}

#[tokio::test]
async fn the_same_question_is_asked_once_for_as_long_as_its_answer_holds() {
    let cached = |spec: ExternalSpec| ExternalSpec {
        cache: Some(Duration::from_secs(60)),
        cache_headers: vec![HeaderName::from_static("x-role")],
        ..spec
    };
    let scene = Scene::new(lets_in, cached).await;
    for times in 1..3 {
        let mut request = request("/");
        scene.ask(&mut request).await.unwrap();
        assert_eq!(request.headers()["x-role"], "reader", "what is cached changes as much");
        assert_eq!(scene.asked(), 1, "{times}");
    }
    assert!(scene.counts("allowed", true));
    scene.ask(&mut request("/other")).await.unwrap();
    let mut other = request("/");
    other.headers_mut().insert("x-role", "root".parse().unwrap());
    scene.ask(&mut other).await.unwrap();
    assert_eq!(scene.asked(), 3);
    scene.follows(cached(spec()));
    scene.ask(&mut request("/")).await.unwrap();
    assert_eq!(scene.asked(), 3, "nothing has changed");
    scene.follows(ExternalSpec { body_bytes: 100, ..cached(spec()) });
    scene.ask(&mut request("/")).await.unwrap();
    let mut other = request("/");
    *other.body_mut() = Body::full(Bytes::from_static(b"{\"id\":2}"));
    scene.ask(&mut other).await.unwrap();
    assert_eq!(scene.asked(), 5);
}

#[tokio::test]
async fn nobody_is_answered_with_what_was_said_of_another() {
    let cached = |spec: ExternalSpec| ExternalSpec { cache: Some(Duration::from_secs(60)), ..spec };
    let scene = Scene::new(lets_in, cached).await;
    let claims_to_headers =
        vec![ClaimHeader { header: HeaderName::from_static("x-user"), claim: vec!["sub".into()] }];
    let keys =
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"}]}"#;
    let issuer = IssuerSpec {
        issuer: "https://issuer".into(),
        audiences: Vec::new(),
        keys: KeysSpec::Inline(Arc::new(KeySet::read(keys.as_bytes()).unwrap())),
        from: vec![Place::bearer()],
        claims_to_headers,
        forward: false,
        leeway: Duration::ZERO,
    };
    let tokens = AuthenticationSpec {
        name: "default/tokens".into(),
        ports: Vec::new(),
        routes: Vec::new(),
        issuers: vec![issuer],
        required: false,
        dry_run: false,
    };
    let store = &scene.worker.proxy.store;
    let spec = store.load().inbound.as_ref().unwrap().spec().clone();
    let spec = InboundSpec { authentications: vec![tokens], ..spec };
    store.update(|snapshot| snapshot.inbound = Some(Arc::new(Inbound::new(spec, Instant::now()))));
    // By whatever a client shows who it is, and by what its token has said, which is gone.
    for (times, (name, value)) in [
        ("x-user", "ann"),
        ("x-user", "bob"),
        ("authorization", "Basic YTpi"),
        ("cookie", "session=1"),
        ("cookie", "session=2"),
    ]
    .into_iter()
    .enumerate()
    {
        for _ in 0..2 {
            let mut request = request("/");
            request.headers_mut().insert(name, value.parse().unwrap());
            scene.ask(&mut request).await.unwrap();
            assert_eq!(scene.asked(), times + 1, "{name}: {value}");
        }
    }
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_or_told_in_part_and_passes_whole() {
    let scene = Scene::new(lets_in, |spec| ExternalSpec { body_bytes: 4, ..spec }).await;
    let fault = scene.ask(&mut request("/")).await.unwrap_err();
    assert_eq!((fault.reason, scene.asked()), (Reason::BodyTooLarge, 0));
    scene.follows(ExternalSpec { body_bytes: 4, partial_body: true, ..spec() });
    let mut whole = request("/");
    scene.ask(&mut whole).await.unwrap();
    assert_eq!(whole.into_body().collect().await.unwrap().to_bytes(), "{\"id\":1}");
    let mut binary = request("/");
    *binary.body_mut() = Body::full(Bytes::from_static(b"\xff\xfe"));
    scene.ask(&mut binary).await.unwrap();
    let told = scene.authorizer.asked.lock();
    let http = |at: usize| told[at].attributes.clone().unwrap().request.unwrap().http.unwrap();
    assert_eq!((&*http(0).body, &*http(0).headers["x-envoy-auth-partial-body"]), ("{\"id", "true"));
    assert_eq!((&*http(1).body, http(1).raw_body), ("", Bytes::from_static(b"\xff\xfe")));
}

#[tokio::test]
async fn no_client_keeps_its_body_from_an_authorizer_by_what_it_says_of_it() {
    let scene = Scene::new(lets_in, |spec| ExternalSpec { body_bytes: 100, ..spec }).await;
    let mut upgrade = request("/");
    upgrade.headers_mut().insert("connection", "upgrade".parse().unwrap());
    upgrade.headers_mut().insert("upgrade", "nothing".parse().unwrap());
    scene.ask(&mut upgrade).await.unwrap();
    assert_eq!(upgrade.headers()["upgrade"], "nothing", "it asks for it all the same");
    let mut http1 = request("/");
    http1.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    scene.ask(&mut http1).await.unwrap();
    let mut grpc = request("/");
    *grpc.version_mut() = Version::HTTP_2;
    grpc.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    grpc.headers_mut().insert("x-envoy-auth-partial-body", "false".parse().unwrap());
    scene.ask(&mut grpc).await.unwrap();
    let told = scene.authorizer.asked.lock();
    let http = |at: usize| told[at].attributes.clone().unwrap().request.unwrap().http.unwrap();
    for at in [0, 1] {
        let http = http(at);
        let partial = &*http.headers["x-envoy-auth-partial-body"];
        assert_eq!((&*http.body, partial), ("{\"id\":1}", "false"), "{at}");
    }
    assert!(http(2).body.is_empty() && http(2).raw_body.is_empty());
    assert_eq!(http(2).headers["x-envoy-auth-partial-body"], "true", "and it is not the client's word");
}

#[tokio::test]
async fn an_authorizer_is_told_of_the_only_host_that_a_request_names() {
    let scene = Scene::new(lets_in, |spec| spec).await;
    let fault = scene.ask(&mut request("http://public/")).await.unwrap_err();
    assert_eq!((fault.reason, scene.asked()), (Reason::MalformedRequest, 0));
    scene.ask(&mut request("http://orders:8080/")).await.unwrap();
    assert_eq!(scene.asked(), 1);
}

#[tokio::test]
async fn what_is_not_http_does_not_get_around_an_authorizer() {
    let scene = Scene::new(lets_in, |spec| spec).await;
    let fault = opaque(&scene.worker, &scene.guard).unwrap_err();
    assert_eq!(fault.reason, Reason::AuthorizerUnavailable);
    for may in [
        ExternalSpec { failure_allows: true, ..spec() },
        ExternalSpec { dry_run: true, ..spec() },
        ExternalSpec { not_ports: vec![80], ..spec() },
    ] {
        scene.follows(may);
        assert!(opaque(&scene.worker, &scene.guard).is_ok());
    }
}
