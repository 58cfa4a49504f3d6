//! Every reason that a proxy gives, given by the real binaries: in the answer to HTTP and to gRPC, in the metric and in the log, by the
//! proxy that it is of. [`ELSEWHERE`] names the tests that hold the reasons whose story is told in another module.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tulle_certs::alpn::{HTTP1, MESH};
use tulle_proxy::telemetry::Reason;
use tulle_tests::app::App;
use tulle_tests::echo::ask;
use tulle_tests::identity::{self, Identity};
use tulle_tests::{Mode, Wire, Workload, World, eventually};

use super::Pair;
use super::mtls::endpoint_slice;
use super::rolling::drain;

const GET: &str = "GET /cart HTTP/1.1\r\nhost: orders\r\n\r\n";

/// A request that a proxy answers itself.
struct Case {
    reason: Reason,
    /// Whose proxy, and which side of it.
    by: &'static str,
    /// As a client of HTTP/1 sends it; empty: only gRPC is told.
    http: &'static str,
    /// As a client of gRPC asks it; empty: only HTTP/1 is told.
    grpc: &'static str,
}

const CALL: &str = "POST /shop.Orders/Place";

/// A token of `https://issuer.example` that is valid until 2100, but for its signature.
macro_rules! unsigned {
    () => {
        "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwiZXhwIjo0MTAyNDQ0ODAwfQ.AA"
    };
}
const WEB: &str = "default/web/outbound";
const BACK: &str = "default/back/inbound";

/// Each is asked of the Service that is called like the reason, with dashes.
const CASES: &[Case] = &[
    Case {
        reason: Reason::MalformedRequest,
        by: WEB,
        http: "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        grpc: "",
    },
    Case { reason: Reason::RouteNotFound, by: WEB, http: GET, grpc: CALL },
    Case { reason: Reason::RouteWithoutBackend, by: WEB, http: GET, grpc: CALL },
    Case { reason: Reason::RouteInvalid, by: WEB, http: GET, grpc: CALL },
    Case { reason: Reason::BackendNotFound, by: WEB, http: GET, grpc: CALL },
    Case { reason: Reason::NoHealthyEndpoint, by: WEB, http: GET, grpc: CALL },
    Case { reason: Reason::ConnectFailed, by: BACK, http: GET, grpc: CALL },
    Case { reason: Reason::UpstreamReset, by: BACK, http: GET, grpc: "" },
    Case { reason: Reason::UpstreamMalformed, by: BACK, http: GET, grpc: "" },
    Case { reason: Reason::RequestTimeout, by: WEB, http: GET, grpc: CALL },
    Case { reason: Reason::BackendTimeout, by: WEB, http: GET, grpc: CALL },
    Case {
        reason: Reason::DeadlineExceeded,
        by: WEB,
        http: "GET /cart HTTP/1.1\r\nhost: orders\r\nx-deadline: 300\r\n\r\n",
        grpc: "POST /shop.Orders/Place grpc-timeout:300m",
    },
    Case { reason: Reason::FaultInjected, by: WEB, http: GET, grpc: CALL },
    Case { reason: Reason::PolicyDenied, by: BACK, http: GET, grpc: CALL },
    Case { reason: Reason::TokenRequired, by: BACK, http: GET, grpc: CALL },
    Case {
        reason: Reason::TokenInvalid,
        by: BACK,
        http: "GET /cart HTTP/1.1\r\nhost: orders\r\nx-token: nonsense\r\n\r\n",
        grpc: "POST /shop.Orders/Place x-token:nonsense",
    },
    Case {
        reason: Reason::JwksUnavailable,
        by: BACK,
        http: concat!("GET /cart HTTP/1.1\r\nhost: orders\r\nx-token: ", unsigned!(), "\r\n\r\n"),
        grpc: concat!("POST /shop.Orders/Place x-token:", unsigned!()),
    },
    Case { reason: Reason::RateLimited, by: WEB, http: GET, grpc: CALL },
];

/// The others: the file of tests, and the test in it.
const ELSEWHERE: &[(Reason, &str, &str)] = &[
    (Reason::RouteChanged, "e2e/reasons.rs", "a_connection_older_than_its_ports_routes_is_told_so"),
    (
        Reason::ConnectTimeout,
        "e2e/connections.rs",
        "a_connection_is_waited_for_as_long_as_connect_timeout_says",
    ),
    (Reason::TlsFailed, "e2e/mtls.rs", "a_server_of_another_root_and_a_server_without_tls_get_no_byte"),
    (
        Reason::PeerIdentityMismatch,
        "e2e/mtls.rs",
        "a_server_with_another_identity_than_expected_gets_no_byte",
    ),
    (Reason::PeerRefusedTls, "e2e/reasons.rs", "a_server_that_refuses_our_certificate_is_told_apart"),
    (Reason::IdleTimeout, "e2e/requests.rs", "what_is_idle_is_cut_and_what_moves_is_not"),
    (
        Reason::EgressDenied,
        "netns/egress.rs",
        "r18_http_leaves_by_host_allowed_denied_or_audited_and_a_change_holds_at_once",
    ),
    (Reason::MtlsRequired, "e2e/mtls.rs", "plain_text_is_refused_in_strict_mode"),
    (
        Reason::IdentityRequired,
        "e2e/reasons.rs",
        "whoever_has_no_identity_is_told_so_where_policy_asks_for_one",
    ),
    (
        Reason::DeniedExternally,
        "e2e/ext_authz.rs",
        "an_authorizer_lets_in_changes_and_denies_in_its_own_words",
    ),
    (Reason::AuthorizerUnavailable, "e2e/ext_authz.rs", "without_an_answer_the_failure_mode_decides"),
    (
        Reason::BodyTooLarge,
        "e2e/ext_authz.rs",
        "a_body_is_told_as_far_as_it_may_be_and_reaches_the_application_whole",
    ),
    (
        Reason::DiscoveryUnavailable,
        "e2e/policy.rs",
        "a_proxy_that_starts_before_its_control_plane_refuses_until_it_is_configured",
    ),
    (
        Reason::PolicyUnavailable,
        "e2e/policy.rs",
        "a_proxy_that_starts_before_its_control_plane_refuses_until_it_is_configured",
    ),
    (
        Reason::NotReady,
        "e2e/policy.rs",
        "a_proxy_that_starts_before_its_control_plane_refuses_until_it_is_configured",
    ),
    (Reason::Overloaded, "e2e/connections.rs", "no_more_requests_wait_than_maximum_pending_says"),
    (Reason::HeadTooLarge, "e2e/bad_input.rs", "a_head_that_is_too_large_is_answered_with_431"),
    (Reason::LoopDetected, "e2e/reasons.rs", "a_connection_to_the_proxys_own_port_is_refused"),
    (
        Reason::DetectTimeout,
        "e2e/routing_kinds.rs",
        "who_never_finishes_a_client_hello_is_not_waited_for_without_end",
    ),
    (Reason::Draining, "e2e/reasons.rs", "a_request_that_meets_the_end_of_a_drained_connection_is_told_so"),
    (
        Reason::ClientClosed,
        "e2e/routing_cases/retries.rs",
        "nothing_is_sent_again_for_a_client_that_has_left",
    ),
    (Reason::TlsNoCertificate, "e2e/mtls.rs", "every_wrong_certificate_is_refused_with_a_reason_of_its_own"),
    (Reason::TlsUnknownRoot, "e2e/mtls.rs", "every_wrong_certificate_is_refused_with_a_reason_of_its_own"),
    (
        Reason::TlsOtherTrustDomain,
        "e2e/mtls.rs",
        "every_wrong_certificate_is_refused_with_a_reason_of_its_own",
    ),
    (Reason::TlsExpired, "e2e/mtls.rs", "every_wrong_certificate_is_refused_with_a_reason_of_its_own"),
    (Reason::TlsNotYetValid, "e2e/mtls.rs", "every_wrong_certificate_is_refused_with_a_reason_of_its_own"),
    (Reason::TlsNoSpiffeId, "e2e/mtls.rs", "every_wrong_certificate_is_refused_with_a_reason_of_its_own"),
    (Reason::TlsSeveralUris, "e2e/mtls.rs", "every_wrong_certificate_is_refused_with_a_reason_of_its_own"),
    (Reason::TlsWeakKey, "e2e/mtls.rs", "every_wrong_certificate_is_refused_with_a_reason_of_its_own"),
    (Reason::TlsBadSignature, "e2e/mtls.rs", "every_wrong_certificate_is_refused_with_a_reason_of_its_own"),
    (Reason::TlsMalformed, "e2e/bad_input.rs", "garbage_in_place_of_tls_is_counted_and_closed"),
];

#[test]
fn r19_every_reason_has_a_test_that_has_a_proxy_give_it() {
    for reason in Reason::ALL {
        if CASES.iter().any(|case| case.reason == *reason) {
            continue;
        }
        let held = ELSEWHERE.iter().find(|(held, ..)| held == reason);
        let (_, file, test) = held.unwrap_or_else(|| panic!("{reason} has no case"));
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        let (_, after) =
            text.split_once(&format!("fn {test}(")).unwrap_or_else(|| panic!("{file}: no {test}"));
        // To the end of the function.
        let body = after.split_once("\n}\n").map_or(after, |(body, _)| body);
        assert!(body.contains(&format!("\"{reason}\"")), "{file}: {test} says nothing of {reason}");
    }
    for (reason, ..) in ELSEWHERE {
        assert!(!CASES.iter().any(|case| case.reason == *reason), "{reason} is held twice");
    }
}

const POLICIES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: route-not-found}
spec:
  parentRefs: [{group: '', kind: Service, name: route-not-found, port: 8080}]
  rules: [{matches: [{path: {type: Exact, value: /only}}], backendRefs: [{name: connect-failed, port: 8080}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: route-without-backend}
spec:
  parentRefs: [{group: '', kind: Service, name: route-without-backend, port: 8080}]
  rules: [{name: empty}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: route-invalid}
spec:
  parentRefs: [{group: '', kind: Service, name: route-invalid, port: 8080}]
  rules:
  - filters: [{type: ExtensionRef, extensionRef: {group: a.example, kind: A, name: a}}]
    backendRefs: [{name: connect-failed, port: 8080}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: backend-not-found}
spec:
  parentRefs: [{group: '', kind: Service, name: backend-not-found, port: 8080}]
  rules: [{backendRefs: [{name: nobody, port: 8080}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: request-timeout}
spec:
  parentRefs: [{group: '', kind: Service, name: request-timeout, port: 8080}]
  rules: [{timeouts: {request: 300ms}, backendRefs: [{name: request-timeout, port: 8080}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: backend-timeout}
spec:
  parentRefs: [{group: '', kind: Service, name: backend-timeout, port: 8080}]
  rules: [{timeouts: {backendRequest: 300ms}, backendRefs: [{name: backend-timeout, port: 8080}]}]
---
apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: deadline-exceeded}
spec:
  targetRefs: [{group: '', kind: Service, name: deadline-exceeded}]
  timeouts: {deadlineHeader: x-deadline}
---
apiVersion: policy.tulle.dev/v1alpha1
kind: FaultPolicy
metadata: {name: fault-injected}
spec:
  targetRefs: [{group: '', kind: Service, name: fault-injected}]
  rules: [{abort: {httpStatus: 503}}]
---
apiVersion: policy.tulle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: policy-denied}
spec:
  targetRefs: [{group: '', kind: Service, name: policy-denied}]
  rules: [{from: [{identities: [default/other]}]}]
---
apiVersion: policy.tulle.dev/v1alpha1
kind: RequestAuthentication
metadata: {name: token-required}
spec:
  targetRefs: [{group: '', kind: Service, name: token-required}, {group: '', kind: Service, name: token-invalid}]
  issuers:
  - issuer: https://issuer.example
    audiences: [orders]
    jwks: {inline: '{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE\"}]}'}
    from: [{header: x-token}]
---
apiVersion: policy.tulle.dev/v1alpha1
kind: RequestAuthentication
metadata: {name: jwks-unavailable}
spec:
  targetRefs: [{group: '', kind: Service, name: jwks-unavailable}]
  issuers:
  - issuer: https://issuer.example
    jwks: {url: 'https://127.0.0.1:9/keys'}
    from: [{header: x-token}]
---
apiVersion: policy.tulle.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: rate-limited}
spec:
  targetRefs: [{group: '', kind: Service, name: rate-limited}]
  direction: Outbound
  limits: [{rate: {requests: 1, per: 1h}}]
";

/// Nobody listens there.
fn closed() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn service_of(reason: Reason) -> String {
    reason.code().replace('_', "-")
}

/// Asks by HTTP/1 until the reason is given, and looks at the whole answer.
async fn told_by_http(case: &Case, web: &Workload) {
    let (reason, service) = (case.reason, service_of(case.reason));
    let (head, body) = eventually(&format!("{reason} is told"), async || {
        let mut wire = web.connect(&service).await;
        wire.send(case.http).await;
        let (head, body) = wire.response().await;
        if head.reason() == Some(reason.code()) { Ok((head, body)) } else { Err(format!("{head:?}")) }
    })
    .await;
    assert_eq!(
        (Some(head.status()), head.get("x-tulle-error-by")),
        (reason.status(), Some(case.by)),
        "{reason}"
    );
    let text = String::from_utf8(body).unwrap();
    assert!(text.starts_with(reason.message()), "{reason}: {text}");
}

/// The same by gRPC, whose clients read a status and a message.
async fn told_by_grpc(case: &Case, web: &Workload) {
    let (reason, service) = (case.reason, service_of(case.reason));
    let answer = eventually(&format!("{reason} is told to gRPC"), async || {
        let stream = TcpStream::connect(web.outbound(&service)).await.unwrap();
        let answer = ask(stream, true, "orders", case.grpc).await;
        if answer.field("x-tulle-error") == reason.code() { Ok(answer) } else { Err(format!("{answer:?}")) }
    })
    .await;
    assert_eq!(answer.status, 200, "{reason}");
    assert_eq!(answer.field("x-tulle-error-by"), case.by, "{reason}");
    assert_eq!(answer.field("grpc-status"), reason.grpc_status().to_string(), "{reason}");
    assert!(answer.field("grpc-message").starts_with(reason.message()), "{reason}: {answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r19_a_reason_is_told_in_the_answer_the_metric_and_the_log_to_http_and_to_grpc() {
    let world = World::strict().await;
    let silent = App::wire(async |mut wire: Wire| drop(wire.to_end_or_reset().await)).await;
    let leaves = App::wire(async |mut wire: Wire| drop(wire.try_head().await)).await;
    let garbled = App::wire(async |mut wire: Wire| {
        wire.try_head().await;
        wire.send("220 mail.example ESMTP\r\n").await;
    })
    .await;
    let mut web = world.workload("web");
    for case in CASES {
        let service = service_of(case.reason);
        world.service(&service, "http");
        web = web.calls(&service);
    }
    world.yaml("policies.yaml", POLICIES);
    let mut back = world.workload("back");
    for (reason, application) in [
        (Reason::MalformedRequest, silent.address()),
        (Reason::ConnectFailed, closed()),
        (Reason::UpstreamReset, leaves.address()),
        (Reason::UpstreamMalformed, garbled.address()),
        (Reason::RequestTimeout, silent.address()),
        (Reason::BackendTimeout, silent.address()),
        (Reason::DeadlineExceeded, silent.address()),
        (Reason::FaultInjected, closed()),
        (Reason::PolicyDenied, closed()),
        (Reason::TokenRequired, closed()),
        (Reason::TokenInvalid, closed()),
        (Reason::JwksUnavailable, closed()),
        (Reason::RateLimited, closed()),
    ] {
        back = back.serves(&service_of(reason), application);
    }
    let back = back.start().await;
    back.counts("tulle_registered", &[], 1.0).await;
    let web = web.start().await;
    for case in CASES {
        let code = case.reason.code();
        if !case.http.is_empty() {
            told_by_http(case, &web).await;
        }
        if !case.grpc.is_empty() {
            told_by_grpc(case, &web).await;
        }
        let (speaker, direction) = if case.by == WEB { (&web, "outbound") } else { (&back, "inbound") };
        speaker.counts("tulle_requests_total", &[("reason", code), ("direction", direction)], 1.0).await;
        let fields = [("reason", json!(code)), ("by", json!(case.by)), ("direction", json!(direction))];
        if let Some(status) = case.reason.status().filter(|_| !case.http.is_empty()) {
            let of_http = [&fields[..], &[("status", json!(status))]].concat();
            speaker.logs(&of_http).await;
        }
        if !case.grpc.is_empty() {
            let status = json!(case.reason.grpc_status());
            let of_grpc = [&fields[..], &[("protocol", json!("gRPC")), ("grpc_status", status)]].concat();
            speaker.logs(&of_grpc).await;
        }
    }
}

/// An application that nobody is to reach, and the workload `orders` before it, behind an AuthorizationPolicy of these rules.
async fn orders_behind(world: &World, policy: &str, rules: &str) -> (App, Workload) {
    world.service("orders", "http");
    let text = format!(
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {policy}}}\nspec:\n  targetRefs: [{{group: '', \
         kind: Service, name: orders}}]\n  rules: {rules}\n"
    );
    world.yaml("policy.yaml", &text);
    let app = App::saying("secret").await;
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    (app, orders)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_identity_is_told_so_where_policy_asks_for_one() {
    let world = World::start(Mode::Permissive).await;
    let (_app, orders) = orders_behind(&world, "web", "[{from: [{identities: [default/web]}]}]").await;
    eventually("the policy is in force", async || {
        let mut wire = Wire::connect(orders.inbound()).await;
        wire.send(GET).await;
        let (head, _) = wire.response().await;
        let told = (head.status(), head.reason(), head.get("x-tulle-error-by"));
        let expected = (403, Some("identity_required"), Some("default/orders/inbound"));
        if told == expected { Ok(()) } else { Err(format!("{head:?}")) }
    })
    .await;
    orders.counts("tulle_requests_total", &[("reason", "identity_required")], 1.0).await;
    orders.logs(&[("reason", json!("identity_required")), ("status", json!(403))]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_asked_for_an_identity_where_policy_lets_nobody_in() {
    for mode in [Mode::Permissive, Mode::Strict] {
        let world = World::start(mode).await;
        let (_app, orders) = orders_behind(&world, "closed", "[]").await;
        eventually("the policy is in force", async || {
            let mut wire = Wire::connect(orders.inbound()).await;
            wire.send(GET).await;
            let (head, _) = wire.response().await;
            if (head.status(), head.reason()) == (403, Some("policy_denied")) {
                return Ok(());
            }
            Err(format!("{head:?}"))
        })
        .await;
        let labels = [("verdict", "deny"), ("rule", "default/closed/none"), ("reason", "policy_denied")];
        orders.counts("tulle_policy_verdicts_total", &labels, 1.0).await;
        let record = orders.logs(&[("reason", json!("policy_denied"))]).await;
        assert!(record["detail"].as_str().unwrap().contains("default/closed/none"), "{record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_to_the_proxys_own_port_is_refused() {
    let world = World::strict().await;
    // Nobody was redirected to it: where the connection was going is the listener itself.
    let web = world.workload("web").setting("--inbound-listen", "127.0.0.1:0").start().await;
    let mut wire = Wire::connect(web.intercepting_inbound()).await;
    let _ = wire.try_send(GET).await;
    assert_eq!(wire.to_end_or_reset().await, b"");
    web.counts("tulle_refused_total", &[("reason", "loop_detected"), ("direction", "inbound")], 1.0).await;
    web.logs(&[("reason", json!("loop_detected")), ("by", json!("default/web/inbound"))]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_older_than_its_ports_routes_is_told_so() {
    let pair = Pair::start(App::saying("hello").await, "http").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send(GET).await;
    assert_eq!(wire.response().await.0.status(), 200);
    pair.world.yaml(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata: {name: bytes}\nspec:\n  parentRefs: [{group: '', kind: \
         Service, name: orders, port: 8080}]\n  rules: [{backendRefs: [{name: orders, port: 8080}]}]\n",
    );
    let head = eventually("the route is in force", async || {
        wire.send(GET).await;
        let (head, _) = wire.response().await;
        if head.status() == 200 { Err(format!("{head:?}")) } else { Ok(head) }
    })
    .await;
    assert_eq!((head.status(), head.reason()), (503, Some("route_changed")));
    assert_eq!(head.get("x-tulle-error-by"), Some(WEB));
    pair.web.counts("tulle_requests_total", &[("reason", "route_changed")], 1.0).await;
    pair.web.logs(&[("reason", json!("route_changed")), ("status", json!(503))]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_our_certificate_is_told_apart() {
    let world = World::strict().await;
    let orders = Identity::issue(&world.authority(), "orders");
    let strangers = identity::authority(&identity::trust_domain());
    let acceptor = tokio_rustls::TlsAcceptor::from(orders.server_for_clients_of(&strangers, &MESH));
    let picky = App::tcp(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        }
    })
    .await;
    world.yaml("endpoints.yaml", &endpoint_slice("orders", picky.address(), Some("default/orders")));
    world.service("orders", "http");
    let web = world.workload("web").calls("orders").start().await;
    let head = eventually("it is told apart", async || {
        let mut wire = web.connect("orders").await;
        wire.send(GET).await;
        let (head, _) = wire.response().await;
        if head.reason() == Some("peer_refused_tls") { Ok(head) } else { Err(format!("{head:?}")) }
    })
    .await;
    assert_eq!((head.status(), head.get("x-tulle-error-by")), (503, Some(WEB)));
    web.counts("tulle_requests_total", &[("reason", "peer_refused_tls")], 1.0).await;
    web.logs(&[("reason", json!("peer_refused_tls")), ("status", json!(503))]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_meets_the_end_of_a_drained_connection_is_told_so() {
    let pair = Pair::start(App::saying("hello").await, "http").await;
    // As another proxy, whose connection is idle when the drain begins; it would ask another endpoint then.
    let web = Identity::issue(&pair.world.authority(), "web");
    let mut wire = identity::connect(pair.orders.inbound(), Some(&web), &[HTTP1]).await.unwrap();
    wire.send(GET).await;
    assert_eq!(wire.response().await.1, b"hello");
    drain(&pair.orders).await;
    let head = tokio::time::timeout(Duration::from_secs(30), wire.head()).await.unwrap();
    assert_eq!((head.status(), head.reason()), (503, Some("draining")));
    assert_eq!((head.get("x-tulle-processed"), head.has("connection", "close")), (Some("no"), true));
}
