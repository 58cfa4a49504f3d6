//! Who may speak to whom: mutual TLS, refusals and their reasons.

use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tulle_certs::TrustDomain;
use tulle_certs::alpn::{HTTP1, MESH};
use tulle_tests::app::App;
use tulle_tests::identity::{self, Identity};
use tulle_tests::{Head, Mode, Wire, Workload, World, eventually};

use super::Pair;

const GET: &str = "GET /cart HTTP/1.1\r\nhost: orders\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_between_workloads_goes_over_mutual_tls() {
    let pair = Pair::start(App::saying("hello").await, "http").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send(GET).await;
    let (head, body) = wire.response().await;
    assert_eq!((head.status(), body.as_slice()), (200, b"hello".as_slice()));
    assert!(head.fields.iter().all(|(name, _)| !name.starts_with("x-tulle-")), "{head:?}");

    let out = pair.web.logs(&[("path", json!("/cart")), ("direction", json!("outbound"))]).await;
    assert_eq!(out["tls"], "mtls", "{out}");
    assert_eq!(out["destination"], json!(pair.orders.identity()), "{out}");
    assert_eq!(out["service"], "default/orders:8080", "{out}");
    assert_eq!(out["status"], 200, "{out}");
    let inbound = pair.orders.logs(&[("path", json!("/cart")), ("direction", json!("inbound"))]).await;
    assert_eq!(inbound["tls"], "mtls", "{inbound}");
    assert_eq!(inbound["source"], json!(pair.web.identity()), "{inbound}");

    let metrics = pair.orders.metrics().await;
    let labels = [("direction", "inbound"), ("tls", "mtls"), ("status", "200")];
    assert!(metrics.sum("tulle_requests_total", &labels) >= 1.0);
    assert!(metrics.sum("tulle_identity_cert_expiration_timestamp_seconds", &[("kind", "leaf")]) > 0.0);
    assert!(metrics.has("tulle_build_info"));
}

/// The handshake itself succeeds for the client in TLS 1.3: the refusal comes with the first read.
async fn refused(pair: &Pair, identity: Option<&Identity>, reason: &str) {
    let connected = identity::connect(pair.orders.inbound(), identity, &[HTTP1]).await;
    refused_as(pair, connected, reason).await;
}

async fn refused_as(pair: &Pair, connected: std::io::Result<Wire<TlsStream<TcpStream>>>, reason: &str) {
    if let Ok(mut wire) = connected {
        let _ = wire.try_send(GET).await;
        let mut answer = Vec::new();
        let read = tulle_tests::within("the refusal", wire.stream().read_to_end(&mut answer)).await;
        assert!(answer.is_empty(), "{reason}: answered {:?}", String::from_utf8_lossy(&answer));
        assert!(read.is_err(), "{reason}: a clean end, without an alert");
    }
    pair.orders.counts("tulle_refused_total", &[("reason", reason)], 1.0).await;
    let record = pair.orders.logs(&[("reason", json!(reason))]).await;
    assert_eq!(record["direction"], "inbound", "{record}");
    assert!(record["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_certificate_is_refused_with_a_reason_of_its_own() {
    let pair = Pair::start(App::saying("secret").await, "http").await;
    let mesh = pair.world.authority();
    let other_domain = TrustDomain::new("elsewhere.example").unwrap();

    refused(&pair, None, "tls_no_certificate").await;

    let stranger = identity::authority(&identity::trust_domain());
    refused(&pair, Some(&Identity::issue(&stranger, "web")), "tls_unknown_root").await;

    let foreign = identity::authority(&other_domain);
    refused(&pair, Some(&Identity::issue(&foreign, "web")), "tls_other_trust_domain").await;

    let past = SystemTime::now() - Duration::from_secs(40 * 60);
    let expired = Identity::issue_at(&mesh, "web", past, Duration::from_secs(60));
    refused(&pair, Some(&expired), "tls_expired").await;

    let future = SystemTime::now() + Duration::from_secs(3600);
    let early = Identity::issue_at(&mesh, "web", future, Duration::from_secs(60));
    refused(&pair, Some(&early), "tls_not_yet_valid").await;

    let nobody = pair.world.certificate_naming(&[]);
    refused(&pair, Some(&nobody), "tls_no_spiffe_id").await;

    let admin = pair.web.identity().replace("/web", "/admin");
    let both = pair.world.certificate_naming(&[&pair.web.identity(), &admin]);
    refused(&pair, Some(&both), "tls_several_uris").await;

    // Nobody has its key, and so it must be looked at before what the client proves.
    let weak = pair.world.certificate_of_a_weak_key(&pair.web.identity());
    let weak = identity::connect_as_a_thief(pair.orders.inbound(), &weak, &[HTTP1]).await;
    refused_as(&pair, weak, "tls_weak_key").await;

    let web = Identity::issue(&mesh, "web");
    let thief = identity::connect_as_a_thief(pair.orders.inbound(), &web, &[HTTP1]).await;
    refused_as(&pair, thief, "tls_bad_signature").await;

    // The same client with a certificate of the mesh is let in: it is not the client that was refused.
    let mut wire = identity::connect(pair.orders.inbound(), Some(&web), &[HTTP1]).await.unwrap();
    wire.send(GET).await;
    assert_eq!(wire.response().await.1, b"secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_is_refused_in_strict_mode() {
    let pair = Pair::start(App::saying("secret").await, "http").await;
    let mut wire = Wire::connect(pair.orders.inbound()).await;
    wire.send(GET).await;
    let (head, body) = wire.response().await;
    assert_eq!((head.status(), head.reason()), (403, Some("mtls_required")));
    assert_eq!(head.get("x-tulle-error-by"), Some("default/orders/inbound"));
    assert!(!String::from_utf8_lossy(&body).contains("secret"));
    pair.orders.counts("tulle_requests_total", &[("reason", "mtls_required")], 1.0).await;
    pair.orders.logs(&[("reason", json!("mtls_required")), ("status", json!(403))]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applications_own_tls_is_refused_in_strict_mode() {
    let pair = Pair::start(App::saying("secret").await, "http").await;
    let connected = identity::connect(pair.orders.inbound(), None, &[b"http/1.1"]).await;
    assert!(connected.is_err(), "nobody should have answered the ClientHello");
    pair.orders.counts("tulle_refused_total", &[("reason", "mtls_required")], 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_is_taken_in_permissive_mode() {
    let world = World::start(Mode::Permissive).await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    let mut wire = Wire::connect(orders.inbound()).await;
    wire.send(GET).await;
    assert_eq!(wire.response().await.1, b"hello");
    let record = orders.logs(&[("path", json!("/cart"))]).await;
    assert_eq!((&record["tls"], &record["source"]), (&json!("none"), &json!(null)), "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_no_rule_allows_is_denied_until_one_does() {
    let pair = Pair::start(App::saying("hello").await, "http").await;
    let policy = |who: &str| {
        format!(
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: callers\n  \
             namespace: default\nspec:\n  targetRefs:\n    - {{group: \"\", kind: Service, name: orders}}\n  \
             action: ALLOW\n  rules:\n    - name: only\n      from:\n        - identities: [\"{who}\"]\n"
        )
    };
    pair.world.yaml("policy.yaml", &policy("default/billing"));
    // One connection all the while: policy is looked at for each request.
    let mut wire = pair.web.connect("orders").await;
    let mut status = async |wanted: u16| {
        eventually(&format!("status {wanted}"), async || {
            wire.send(GET).await;
            let (head, _) = wire.response().await;
            if head.status() == wanted { Ok(head) } else { Err(head.line) }
        })
        .await
    };
    let head = status(403).await;
    assert_eq!(head.reason(), Some("policy_denied"));
    assert_eq!(head.get("x-tulle-error-by"), Some("default/orders/inbound"));
    pair.world.yaml("policy.yaml", &policy("default/web"));
    status(200).await;
    let allowed = [("verdict", "allow"), ("rule", "default/callers/only")];
    pair.orders.counts("tulle_policy_verdicts_total", &allowed, 1.0).await;
    pair.orders.logs(&[("reason", json!("policy_denied")), ("source", json!(pair.web.identity()))]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_policy_cuts_an_opaque_connection_that_it_no_longer_allows() {
    let pair = Pair::start(App::echo().await, "tcp").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send("ping").await;
    assert_eq!(wire.exactly(4).await, b"ping");
    pair.world.yaml(
        "policy.yaml",
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: nobody\n  namespace: \
         default\nspec:\n  targetRefs:\n    - {group: \"\", kind: Service, name: orders}\n  action: ALLOW\n  rules:\n    - \
         name: other\n      from:\n        - identities: [\"default/other\"]\n",
    );
    assert_eq!(wire.to_end_or_reset().await, b"");
    pair.orders.logs(&[("reason", json!("policy_denied")), ("direction", json!("inbound"))]).await;
    let reason = [("direction", "inbound"), ("reason", "policy_denied")];
    assert!(pair.orders.metrics().await.sum("tulle_refused_total", &reason) >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_identity_than_expected_gets_no_byte() {
    let world = World::strict().await;
    // In the mesh's eyes `orders` is there; who listens has a good certificate, of `billing`.
    let billing = Identity::issue(&world.authority(), "billing");
    let acceptor = tokio_rustls::TlsAcceptor::from(billing.server(&MESH));
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let imposter = App::tcp(move |stream| {
        let (acceptor, heard) = (acceptor.clone(), heard.clone());
        async move {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let mut bytes = Vec::new();
                let _ = stream.read_to_end(&mut bytes).await;
                let _ = heard.send(bytes);
            }
        }
    })
    .await;
    world.yaml("endpoints.yaml", &endpoint_slice("orders", imposter.address(), Some("default/orders")));
    world.service("orders", "http");
    let web = world.workload("web").calls("orders").start().await;
    let head = told(&web, "orders").await;
    assert_eq!((head.status(), head.reason()), (503, Some("peer_identity_mismatch")));
    assert_eq!(head.get("x-tulle-error-by"), Some("default/web/outbound"));
    assert!(hears.try_recv().unwrap_or_default().is_empty(), "the imposter was told something");
    let record = web.logs(&[("reason", json!("peer_identity_mismatch"))]).await;
    assert!(record["detail"].as_str().unwrap().contains("billing"), "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_root_and_a_server_without_tls_get_no_byte() {
    let world = World::strict().await;
    let stranger = identity::authority(&identity::trust_domain());
    let acceptor = tokio_rustls::TlsAcceptor::from(Identity::issue(&stranger, "orders").server(&MESH));
    let other_root = App::tcp(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let _ = acceptor.accept(stream).await;
        }
    })
    .await;
    let plain = App::saying("hello").await;
    for (service, app) in [("orders", &other_root), ("billing", &plain)] {
        let identity = format!("default/{service}");
        world.yaml(
            &format!("endpoints-{service}.yaml"),
            &endpoint_slice(service, app.address(), Some(&identity)),
        );
        world.service(service, "http");
    }
    let web = world.workload("web").calls("orders").calls("billing").start().await;
    for service in ["orders", "billing"] {
        let head = told(&web, service).await;
        assert_eq!((head.status(), head.reason()), (503, Some("tls_failed")), "{service}");
    }
}

/// What `web` is told once it knows the service's endpoints.
async fn told(web: &Workload, service: &str) -> Head {
    eventually("its endpoints are known", async || {
        let mut wire = web.connect(service).await;
        wire.send(GET).await;
        let (head, _) = wire.response().await;
        if head.reason() == Some("no_healthy_endpoint") { Err(format!("{head:?}")) } else { Ok(head) }
    })
    .await
}

/// An endpoint of a service in the folder: in the mesh, with this identity, or off it.
pub(super) fn endpoint_slice(service: &str, address: std::net::SocketAddr, identity: Option<&str>) -> String {
    let annotations =
        identity.map_or_else(String::new, |id| format!("  annotations:\n    tulle.dev/identity: {id}\n"));
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-1\n  namespace: default\n  \
         labels:\n    kubernetes.io/service-name: {service}\n{annotations}addressType: IPv4\nports:\n  - name: main\n    \
         port: {}\nendpoints:\n  - addresses: [\"{}\"]\n    conditions:\n      ready: true\n",
        address.port(),
        address.ip()
    )
}
