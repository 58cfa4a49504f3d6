//! Tokens of requests (R17): which are taken and which refused, and why; what the application is told; how keys are fetched, and what happens
//! when they are not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use jsonwebtoken::{EncodingKey, Header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;
use tulle_certs::alpn::HTTP1;
use tulle_certs::serving::ServingAuthority;
use tulle_tests::app::{App, full};
use tulle_tests::identity::{self, Identity};
use tulle_tests::tokens::{TokenKey, in_seconds, set};
use tulle_tests::{Head, Wire, Workload, World, eventually};

const ISSUER: &str = "https://issuer.example";

/// Says what it was asked: each header of the request in a line.
async fn echoing() -> App {
    App::http1(async |request: Request<Incoming>| {
        let lines = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
        Response::new(full(lines.collect::<String>()))
    })
    .await
}

/// A policy for the Service `orders`; `issuer` besides `issuer`, and `spec` besides `targetRefs` and `issuers`, each a list of `name: value`.
fn policy(issuer: &str, spec: &str) -> String {
    let spec = spec.split(';').filter(|one| !one.is_empty()).map(|one| format!("  {}\n", one.trim()));
    let issuer = issuer.split('\n').filter(|one| !one.is_empty()).map(|one| format!("    {one}\n"));
    format!(
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{name: tokens}}\nspec:\n  \
         targetRefs: [{{group: '', kind: Service, name: orders}}]\n{}  issuers:\n  - issuer: {ISSUER}\n{}",
        spec.collect::<String>(),
        issuer.collect::<String>()
    )
}

fn inline(keys: &[&TokenKey], more: &str) -> String {
    format!("audiences: [orders]\njwks: {{inline: '{}'}}\n{more}", set(keys))
}

/// What is good of a token of `zebulon`.
fn good() -> Value {
    json!({
        "iss": ISSUER, "sub": "zebulon", "aud": ["orders", "other"], "exp": in_seconds(600), "iat": in_seconds(0),
        "realm_access": { "roles": ["admin"] },
    })
}

fn with(field: &str, value: Value) -> Value {
    let mut claims = good();
    claims[field] = value;
    claims
}

fn without(field: &str) -> Value {
    let mut claims = good();
    claims.as_object_mut().unwrap().remove(field);
    claims
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

/// Asks `orders` with these headers.
async fn ask(by: &Workload, headers: &str) -> (Head, String) {
    let mut wire = by.connect("orders").await;
    wire.send(format!("GET /cart HTTP/1.1\r\nhost: orders\r\n{headers}connection: close\r\n\r\n")).await;
    let (head, body) = wire.response().await;
    (head, String::from_utf8_lossy(&body).into_owned())
}

/// Waits until `orders` answers so.
async fn answers(by: &Workload, headers: &str, status: u16, reason: Option<&str>) -> (Head, String) {
    eventually(&format!("{status} {reason:?} is answered"), async || {
        let (head, body) = ask(by, headers).await;
        let is_so = (head.status(), head.reason()) == (status, reason);
        if is_so { Ok((head, body)) } else { Err(format!("{head:?} {body}")) }
    })
    .await
}

struct Shop {
    world: World,
    web: Workload,
    orders: Workload,
    _app: App,
}

impl Shop {
    /// `web` → `orders`, which echoes what it is asked; under this policy, once that is in force.
    async fn under(policy: &str) -> Self {
        Self::serving(echoing().await, policy).await
    }

    /// The same with another application as `orders`.
    async fn serving(app: App, policy: &str) -> Self {
        let world = World::strict().await;
        world.service("orders", "http");
        world.yaml("tokens.yaml", policy);
        let orders = world.workload("orders").serves("orders", app.address()).start().await;
        orders.counts("tulle_registered", &[], 1.0).await;
        let web = world.workload("web").calls("orders").start().await;
        Self { world, web, orders, _app: app }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_a_token_is_taken_told_on_and_taken_out_and_all_others_are_refused() {
    let (key, stranger) = (TokenKey::new("a"), TokenKey::new("a"));
    let told =
        "claimsToHeaders: [{header: x-user, claim: sub}, {header: x-roles, claim: realm_access.roles}]";
    let shop = Shop::under(&policy(&inline(&[&key], told), "")).await;
    let (head, _) = answers(&shop.web, "", 401, Some("token_required")).await;
    assert_eq!(head.get("www-authenticate"), Some("Bearer realm=\"default/orders\""), "{head:?}");
    assert_eq!(head.get("x-tulle-error-by"), Some("default/orders/inbound"));

    let token = key.sign(&good());
    let claimed = "x-user: eve\r\nX_User: eve\r\nX-Roles: root\r\nx_roles: root\r\n";
    let (head, told) = ask(&shop.web, &format!("{}{claimed}", bearer(&token))).await;
    assert_eq!(head.status(), 200, "{head:?} {told}");
    // base64 of `["admin"]`.
    assert!(told.contains("x-user: zebulon\n") && told.contains("x-roles: WyJhZG1pbiJd\n"), "{told}");
    assert!(!told.contains("authorization") && !told.contains("eve") && !told.contains("root"), "{told}");
    // Again, from memory.
    assert_eq!(ask(&shop.web, &bearer(&token)).await.0.status(), 200);
    shop.orders.counts("tulle_tokens_total", &[("result", "cached"), ("mode", "enforced")], 1.0).await;

    let hs = EncodingKey::from_secret(key.public().to_string().as_bytes());
    let hs = jsonwebtoken::encode(&Header::default(), &good(), &hs).unwrap();
    let none = format!("eyJhbGciOiJub25lIn0.{}.", token.split('.').nth(1).unwrap());
    let long = key.sign(&with("more", json!("a".repeat(20_000))));
    let mut changed = token.clone().into_bytes();
    let middle = token.find('.').unwrap() + 20;
    changed[middle] = if changed[middle] == b'A' { b'B' } else { b'A' };
    let changed = String::from_utf8(changed).unwrap();
    for (token, result) in [
        ("nonsense".to_owned(), "malformed"),
        (format!("{token}.{token}"), "malformed"),
        (changed, ""),
        (long, "too_long"),
        (none, "algorithm"),
        (hs, "algorithm"),
        (stranger.sign(&good()), "signature"),
        (TokenKey::new("b").sign(&good()), "key"),
        (key.sign(&with("iss", json!("https://issuer.example/"))), "issuer"),
        (key.sign(&without("iss")), "issuer"),
        (key.sign(&with("aud", json!("others"))), "audience"),
        (key.sign(&without("aud")), "audience"),
        (key.sign(&with("exp", json!(in_seconds(-70)))), "expired"),
        (key.sign(&without("exp")), "expired"),
        (key.sign(&with("exp", json!(in_seconds(600).to_string()))), "malformed"),
        (key.sign(&with("nbf", json!(in_seconds(120)))), "not_yet"),
        (key.sign(&with("iat", json!(in_seconds(120)))), "not_yet"),
        (key.sign(&with("sub", json!("zebulon\r\nx-admin: 1"))), "claim"),
    ] {
        let (head, body) = ask(&shop.web, &bearer(&token)).await;
        assert_eq!((head.status(), head.reason()), (401, Some("token_invalid")), "{result}: {head:?}");
        let asks = head.get("www-authenticate").unwrap_or_default();
        assert!(
            asks.starts_with(
                "Bearer realm=\"default/orders\", error=\"invalid_token\", error_description=\""
            ),
            "{result}: {asks}"
        );
        assert!(!body.contains(&token) && !body.contains("zebulon"), "{result}: {body}");
        if !result.is_empty() {
            shop.orders.counts("tulle_tokens_total", &[("result", result)], 1.0).await;
        }
    }
    // Within the leeway of a minute.
    for claims in [with("exp", json!(in_seconds(-30))), with("nbf", json!(in_seconds(30)))] {
        assert_eq!(ask(&shop.web, &bearer(&key.sign(&claims))).await.0.status(), 200, "{claims}");
    }
    let two = format!("{}{}", bearer(&token), bearer(&key.sign(&with("sub", json!("bob")))));
    let (head, _) = ask(&shop.web, &two).await;
    assert_eq!((head.status(), head.reason()), (401, Some("token_invalid")));
    shop.orders.counts("tulle_tokens_total", &[("result", "several")], 1.0).await;
    let of = [("reason", json!("token_invalid")), ("status", json!(401)), ("rule", json!("default/tokens"))];
    let record = shop.orders.logs(&of).await;
    let said = shop.orders.diagnostics() + &shop.orders.access_lines().join("\n");
    assert!(!said.contains(&token) && !said.contains("zebulon"), "a token or a claim was logged: {record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_gets_past_no_policy_that_wants_tokens_or_tells_claims() {
    let (key, told) = (TokenKey::new("a"), "claimsToHeaders: [{header: x-user, claim: sub}]");
    for (issuer, spec) in [("", ""), (told, "required: false")] {
        let shop = Shop::under(&policy(&inline(&[&key], issuer), spec)).await;
        answers(&shop.web, "authorization: Bearer nonsense\r\n", 401, Some("token_invalid")).await;
        // The second is a request to servers that leave out more than one empty line.
        for said in ["no HTTP at all\n", "\r\n\r\nGET / HTTP/1.1\r\nhost: orders\r\nx-user: eve\r\n\r\n"] {
            let mut wire = shop.web.connect("orders").await;
            let _ = wire.try_send(said).await;
            assert_eq!(wire.to_end_or_reset().await, b"", "{spec}: {said}");
        }
        shop.orders.logs(&[("reason", json!("token_required")), ("protocol", json!("TCP"))]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_may_be_left_out_and_may_go_on_where_the_policy_says_so() {
    let key = TokenKey::new("a");
    let more = "from: [{header: X-Token}, {header: authorization, prefix: 'Token '}]\nforward: true\n\
                claimsToHeaders: [{header: x-user, claim: sub}]";
    let shop = Shop::under(&policy(&inline(&[&key], more), "required: false")).await;
    let token = key.sign(&good());
    answers(&shop.web, "x-token: nonsense\r\n", 401, Some("token_invalid")).await;
    // Without a token, what a client claims of itself is not believed either.
    let (head, told) = ask(&shop.web, "x-user: eve\r\n").await;
    assert_eq!(head.status(), 200);
    assert!(!told.contains("eve"), "{told}");
    let (head, told) = ask(&shop.web, &format!("x-token: {token}\r\n")).await;
    assert_eq!(head.status(), 200);
    assert!(told.contains("x-user: zebulon\n") && told.contains(&format!("x-token: {token}\n")), "{told}");
    let (_, told) = ask(&shop.web, &format!("authorization: token {token}\r\n")).await;
    assert!(told.contains("x-user: zebulon\n") && told.contains(&token), "{told}");
    // Where nobody looks for one, there is none.
    let (_, told) = ask(&shop.web, &bearer(&token)).await;
    assert!(!told.contains("x-user"), "{told}");
    shop.orders.counts("tulle_tokens_total", &[("result", "absent")], 2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_claims_in_trailers_is_not_believed_nor_does_it_take_a_claim_away() {
    let key = TokenKey::new("a");
    let app = App::wire(async move |mut wire: Wire| {
        while let Some(mut head) = wire.try_head().await {
            if head.has("transfer-encoding", "chunked") {
                head.fields.extend(wire.chunks().await.1);
            }
            let seen: String = head.fields.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
            wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{seen}", seen.len())).await;
        }
    })
    .await;
    let told = "claimsToHeaders: [{header: x-user, claim: sub}]";
    let shop = Shop::serving(app, &policy(&inline(&[&key], told), "required: false")).await;
    answers(&shop.web, "authorization: Bearer nonsense\r\n", 401, Some("token_invalid")).await;
    // Past the client's own proxy, which makes `Connection` anew.
    let web = Identity::issue(&shop.world.authority(), "web");
    let mut wire = identity::connect(shop.orders.inbound(), Some(&web), &[HTTP1]).await.unwrap();
    let token = bearer(&key.sign(&good()));
    for (token, told) in [("", ""), (&*token, "x-user: zebulon\n")] {
        wire.send(format!(
            "POST / HTTP/1.1\r\nhost: orders\r\n{token}connection: x-user\r\ntransfer-encoding: chunked\r\n\r\n\
             1\r\na\r\n0\r\nx-user: eve\r\nX_User: eve\r\nx-sum: 1\r\n\r\n"
        ))
        .await;
        let (head, body) = wire.response().await;
        let seen = String::from_utf8_lossy(&body).to_lowercase();
        assert_eq!(head.status(), 200, "{head:?} {seen}");
        assert!(seen.contains(told) && seen.contains("x-sum: 1\n") && !seen.contains("eve"), "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_and_changes_nothing() {
    let key = TokenKey::new("a");
    let more = "claimsToHeaders: [{header: x-user, claim: sub}]";
    let shop = Shop::under(&policy(&inline(&[&key], more), "mode: DryRun")).await;
    let dry = |result| [("result", result), ("mode", "dry_run")];
    eventually("the policy is in force", async || {
        let (head, told) = ask(&shop.web, "x-user: eve\r\nauthorization: Bearer nonsense\r\n").await;
        assert_eq!(head.status(), 200);
        assert!(told.contains("x-user: eve\n") && told.contains("Bearer nonsense"), "{told}");
        let count = shop.orders.metrics().await.sum("tulle_tokens_total", &dry("malformed"));
        (count > 0.5).then_some(()).ok_or_else(|| "nothing is told".to_owned())
    })
    .await;
    assert_eq!(ask(&shop.web, "").await.0.status(), 200);
    shop.orders.counts("tulle_tokens_total", &dry("missing"), 1.0).await;
    shop.orders.logs(&[("would_deny", json!("default/tokens")), ("status", json!(200))]).await;
    assert!(shop.orders.diagnostics().contains("would have been refused for its token"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_asks_itself_needs_a_token_too() {
    let key = TokenKey::new("a");
    let world = World::strict().await;
    world.service("orders", "http");
    let more = "claimsToHeaders: [{header: x-user, claim: sub}]";
    world.yaml("tokens.yaml", &policy(&inline(&[&key], more), ""));
    let app = echoing().await;
    let orders = world.workload("orders").serves("orders", app.address()).calls("orders").start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let (head, _) = answers(&orders, "", 401, Some("token_required")).await;
    assert_eq!(head.get("x-tulle-error-by"), Some("default/orders/outbound"));
    let (head, told) = ask(&orders, &format!("{}x-user: eve\r\n", bearer(&key.sign(&good())))).await;
    assert_eq!(head.status(), 200, "{head:?}");
    assert!(
        told.contains("x-user: zebulon\n") && !told.contains("eve") && !told.contains("authorization"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_be_read_takes_nobodys_token_until_it_is_mended() {
    let key = TokenKey::new("a");
    let mended = policy(&inline(&[&key], ""), "");
    let shop = Shop::under(&mended.replace("\"kty\"", "\"kt\"")).await;
    let token = bearer(&key.sign(&good()));
    answers(&shop.web, &token, 401, Some("token_required")).await;
    shop.world.yaml("tokens.yaml", &mended);
    answers(&shop.web, &token, 200, None).await;
    // From then on the last good version holds.
    shop.world.yaml("tokens.yaml", &mended.replace("\"kty\"", "\"kt\""));
    shop.world.control_plane_says(&["jwks.inline"]).await;
    assert_eq!(ask(&shop.web, &token).await.0.status(), 200);
}

/// What a server of keys does next.
#[derive(Clone)]
enum Answer {
    Keys(String),
    Status(u16),
    /// So many bytes.
    Long(usize),
    Never,
}

/// A server of keys, and how often it was asked.
#[derive(Clone)]
struct Keys {
    next: Arc<Mutex<Answer>>,
    asked: Arc<AtomicU64>,
}

impl Keys {
    fn new(next: Answer) -> Self {
        Self { next: Arc::new(Mutex::new(next)), asked: Arc::default() }
    }

    fn say(&self, next: Answer) {
        *self.next.lock() = next;
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    async fn answer(&self) -> Response<tulle_tests::app::Body> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let next = self.next.lock().clone();
        match next {
            Answer::Keys(text) => Response::new(full(text)),
            Answer::Status(status) => {
                let answer = Response::builder().status(status).header("location", "/elsewhere");
                answer.body(full("")).unwrap()
            }
            Answer::Long(length) => Response::new(full(Bytes::from(vec![b' '; length]))),
            Answer::Never => std::future::pending().await,
        }
    }

    async fn app(&self) -> App {
        let keys = self.clone();
        App::http1(move |_| {
            let keys = keys.clone();
            async move { keys.answer().await }
        })
        .await
    }
}

/// `web` → `orders`, whose issuer's keys a workload of the mesh serves.
async fn fetching(keys: &Keys, more: &str) -> (Shop, Workload, App) {
    let jwks = "audiences: [orders]\njwks:\n  url: http://keys.default/certs\n  service: {name: keys, port: 8080}\n  timeout: 1s\n";
    let shop = Shop::under(&policy(&format!("{jwks}{more}"), "")).await;
    shop.world.service("keys", "http");
    let app = keys.app().await;
    let server = shop.world.workload("keys").serves("keys", app.address()).start().await;
    server.counts("tulle_registered", &[], 1.0).await;
    (shop, server, app)
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_keys_are_fetched_through_the_mesh_rotated_and_kept() {
    let (first, second) = (TokenKey::new("first"), TokenKey::new("second"));
    let keys = Keys::new(Answer::Keys(set(&[&first])));
    let (shop, server, _app) = fetching(&keys, "").await;
    let (old, new) = (bearer(&first.sign(&good())), bearer(&second.sign(&good())));
    answers(&shop.web, &old, 200, None).await;
    // As `orders`, over mutual TLS.
    let of_orders =
        [("source", json!(shop.orders.identity())), ("tls", json!("mtls")), ("path", json!("/certs"))];
    server.logs(&of_orders).await;
    let refused = ask(&shop.web, &new).await.0;
    assert_eq!((refused.status(), refused.reason()), (401, Some("token_invalid")));

    // A key that is new is fetched when a token first names it, though not each time that one does.
    let before = keys.asked();
    for _ in 0..50 {
        let unknown = bearer(&TokenKey::new("unknown").sign(&good()));
        assert_eq!(ask(&shop.web, &unknown).await.0.status(), 401);
    }
    let asked = keys.asked() - before;
    assert!(asked <= 2, "{asked} times for fifty tokens");
    keys.say(Answer::Keys(set(&[&second])));
    let rotated = Instant::now();
    answers(&shop.web, &new, 200, None).await;
    assert!(rotated.elapsed() < Duration::from_secs(60), "before the set's time was over");
    answers(&shop.web, &old, 401, Some("token_invalid")).await;

    // What goes wrong from then on changes nothing.
    for wrong in
        [Answer::Status(500), Answer::Long(10_000_000), Answer::Keys("<html>".to_owned()), Answer::Never]
    {
        keys.say(wrong);
        let before = keys.asked();
        eventually("it is asked again", async || {
            drop(ask(&shop.web, &old).await);
            if keys.asked() > before { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        assert_eq!(ask(&shop.web, &new).await.0.status(), 200);
    }
    let failed = [("result", "failed"), ("url", "http://keys.default/certs")];
    shop.orders.counts("tulle_jwks_fetches_total", &failed, 3.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_there_are_no_keys_nobody_gets_in_and_once_they_come_everybody_does() {
    let key = TokenKey::new("a");
    let keys = Keys::new(Answer::Never);
    let (shop, _server, _app) = fetching(&keys, "").await;
    let token = bearer(&key.sign(&good()));
    let (head, _) = answers(&shop.web, &token, 503, Some("jwks_unavailable")).await;
    assert_eq!(head.get("www-authenticate"), None);
    let asked = Instant::now();
    let (head, _) = ask(&shop.web, &token).await;
    assert_eq!((head.status(), head.reason()), (503, Some("jwks_unavailable")));
    assert!(
        asked.elapsed() < Duration::from_secs(10),
        "nobody waits for a server that is known not to answer"
    );
    assert_eq!(ask(&shop.web, "").await.0.reason(), Some("token_required"), "that is known without keys");
    keys.say(Answer::Long(10_000_000));
    shop.orders.counts("tulle_jwks_fetches_total", &[("result", "failed")], 2.0).await;
    keys.say(Answer::Keys(set(&[&key])));
    answers(&shop.web, &token, 200, None).await;
    let metrics = shop.orders.metrics().await;
    assert!(metrics.sum("tulle_jwks_last_fetch_timestamp_seconds", &[]) > 1e9);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_outside_the_mesh_are_fetched_by_tls_and_redirects_are_not_followed() {
    let key = TokenKey::new("a");
    let day = Duration::from_secs(24 * 3600);
    let authority = ServingAuthority::generate("issuer", day, SystemTime::now()).unwrap();
    let serving = authority.issue(&["localhost".to_owned()], day, SystemTime::now()).unwrap();
    let acceptor = TlsAcceptor::from(serving.server_config(&[b"http/1.1"]).unwrap());
    let keys = Keys::new(Answer::Status(302));
    let app = App::tcp({
        let keys = keys.clone();
        move |stream| {
            let (acceptor, keys) = (acceptor.clone(), keys.clone());
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut asked = vec![0; 4096];
                let Ok(_) = stream.read(&mut asked).await else { return };
                keys.asked.fetch_add(1, Ordering::SeqCst);
                let next = keys.next.lock().clone();
                let answer = match next {
                    Answer::Keys(text) => {
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len())
                    }
                    _ => "HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n".to_owned(),
                };
                drop(stream.write_all(answer.as_bytes()).await);
                drop(stream.shutdown().await);
            }
        }
    })
    .await;
    let port = app.address().port();
    let roots = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let of = |pem: &str| {
        let jwks = format!("  url: https://localhost:{port}/keys\n  timeout: 2s\n  roots: |\n{}", roots(pem));
        policy(&format!("audiences: [orders]\njwks:\n{jwks}"), "")
    };
    let stranger = ServingAuthority::generate("stranger", day, SystemTime::now()).unwrap();
    let shop = Shop::under(&of(&stranger.certificate_pem())).await;
    let token = bearer(&key.sign(&good()));
    answers(&shop.web, &token, 503, Some("jwks_unavailable")).await;
    assert_eq!(keys.asked(), 0, "whoever is not known by the roots is not asked");
    shop.world.yaml("tokens.yaml", &of(&authority.certificate_pem()));
    eventually("the redirect is not followed", async || {
        let said = shop.orders.diagnostics();
        if said.contains("a redirect, which is not followed") { Ok(()) } else { Err(said) }
    })
    .await;
    keys.say(Answer::Keys(set(&[&key])));
    answers(&shop.web, &token, 200, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_decide_what_is_allowed_and_who_may_not_is_told_so() {
    let key = TokenKey::new("a");
    let shop = Shop::under(&policy(&inline(&[&key], ""), "")).await;
    shop.world.yaml(
        "allow.yaml",
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: admins}\nspec:\n  targetRefs: [{group: '', \
         kind: Service, name: orders}]\n  rules: [{when: [{claim: realm_access.roles, values: [admin]}]}]\n",
    );
    let admin = bearer(&key.sign(&good()));
    let guest = bearer(&key.sign(&with("realm_access", json!({ "roles": ["guest"] }))));
    let (head, _) = answers(&shop.web, &guest, 403, Some("policy_denied")).await;
    let asks = head.get("www-authenticate");
    assert_eq!(asks, Some("Bearer realm=\"default/orders\", error=\"insufficient_scope\""), "{head:?}");
    answers(&shop.web, &admin, 200, None).await;
    answers(&shop.web, "", 401, Some("token_required")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_may_count_by_a_claim() {
    let key = TokenKey::new("a");
    let told = "claimsToHeaders: [{header: x-user, claim: sub}]";
    let shop = Shop::under(&policy(&inline(&[&key], told), "")).await;
    shop.world.yaml(
        "limit.yaml",
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {name: users}\nspec:\n  targetRefs: [{group: '', \
         kind: Service, name: orders}]\n  limits: [{by: {header: x-user}, rate: {requests: 1, per: 1h}}]\n",
    );
    let (ann, bob) = (bearer(&key.sign(&good())), bearer(&key.sign(&with("sub", json!("bob")))));
    answers(&shop.web, &ann, 429, Some("rate_limited")).await;
    // Whoever calls himself otherwise is counted by his token all the same.
    let (head, _) = ask(&shop.web, &format!("{ann}x-user: carol\r\n")).await;
    assert_eq!(head.status(), 429);
    assert_eq!(ask(&shop.web, &bob).await.0.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_token_is_refused_before_its_body_is_read() {
    let key = TokenKey::new("a");
    let shop = Shop::under(&policy(&inline(&[&key], ""), "")).await;
    answers(&shop.web, "", 401, Some("token_required")).await;
    let mut wire: Wire = shop.web.connect("orders").await;
    wire.send("POST /cart HTTP/1.1\r\nhost: orders\r\ncontent-length: 1000000\r\n\r\n").await;
    let (head, _) = wire.response().await;
    assert_eq!((head.status(), head.reason()), (401, Some("token_required")));
}
