//! Who stays with whom: sessions in cookies and headers, and what ends or moves them.

use std::collections::BTreeMap;

use serde_json::json;
use tokio::net::TcpStream;
use tulle_tests::app::App;
use tulle_tests::echo::{self, Answer};
use tulle_tests::{Wire, Workload, World, eventually};

/// `web`, which calls `shop`, and replicas of `shop` and of others, whose applications say who they are.
struct Shop {
    world: World,
    web: Workload,
    grpc: bool,
    replicas: BTreeMap<&'static str, (App, Workload)>,
}

// === impl Shop ===

impl Shop {
    /// `replicas`: each with the Service that it is an endpoint of.
    async fn start(grpc: bool, replicas: &[(&'static str, &str)]) -> Self {
        let world = World::strict().await;
        for service in ["shop", "v1", "v2"] {
            world.service(service, if grpc { "kubernetes.io/h2c" } else { "http" });
        }
        let web = world.workload("web").calls("shop").start().await;
        let mut shop = Self { world, web, grpc, replicas: BTreeMap::new() };
        for (name, service) in replicas {
            shop.add(name, service).await;
        }
        shop
    }

    async fn add(&mut self, name: &'static str, service: &str) {
        let answer = async move |request| echo::mirror(name, &request);
        let app = if self.grpc { App::http2(answer).await } else { App::http1(answer).await };
        let workload = self.world.workload(name).serves(service, app.address()).start().await;
        self.replicas.insert(name, (app, workload));
    }

    /// Writes a route of these rules.
    fn write(&self, rules: &str) {
        let kind = if self.grpc { "GRPCRoute" } else { "HTTPRoute" };
        let text = format!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: shop}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: shop, port: 8080}}]
  rules: {rules}
"
        );
        self.world.yaml("route.yaml", &text);
    }

    /// And waits until each of `names` has answered `asked`.
    async fn rules(&self, rules: &str, asked: &str, names: &[&str]) {
        self.write(rules);
        self.reaches(asked, names).await;
    }

    async fn reaches(&self, asked: &str, names: &[&str]) {
        for name in names {
            eventually(&format!("{name} answers {asked}"), async || {
                let by = self.ask(asked).await.by();
                if by == *name { Ok(()) } else { Err(by) }
            })
            .await;
        }
    }

    /// Asks, on a connection of its own.
    async fn ask(&self, asked: &str) -> Answer {
        ask(&self.web, self.grpc, asked).await
    }

    /// A token of each of these, once sessions are kept at all.
    async fn first_tokens<'n>(&self, names: &[&'n str]) -> BTreeMap<&'n str, String> {
        eventually("sessions are kept", async || {
            let cookie = self.ask("GET /").await.field("set-cookie");
            if cookie == "-" { Err("no cookie".to_owned()) } else { Ok(()) }
        })
        .await;
        self.at_each("GET /", names).await
    }

    /// Opens sessions until there is one at each of `names`: its token by name.
    async fn at_each<'n>(&self, asked: &str, names: &[&'n str]) -> BTreeMap<&'n str, String> {
        let mut found = BTreeMap::new();
        for name in names {
            let token = eventually(&format!("a session at {name}"), async || {
                let answer = self.ask(asked).await;
                if answer.by() == *name { Ok(token(&answer)) } else { Err(answer.by()) }
            })
            .await;
            found.insert(*name, token);
        }
        found
    }

    async fn counted(&self, result: &str) -> f64 {
        self.web.metrics().await.sum("tulle_sessions_total", &[("result", result)])
    }
}

async fn ask(web: &Workload, grpc: bool, asked: &str) -> Answer {
    let stream = TcpStream::connect(web.outbound("shop")).await.unwrap();
    echo::ask(stream, grpc, "shop", asked).await
}

/// The token that came with an answer, by cookie or header.
fn token(answer: &Answer) -> String {
    let cookie = answer.field("set-cookie");
    match cookie.split_once('=') {
        Some((_, rest)) => rest.split(';').next().unwrap().to_owned(),
        None => answer.field("x-session"),
    }
}

const COOKIE: &str = "[{backendRefs: [{name: shop, port: 8080}], sessionPersistence: {sessionName: id}}]";

#[tokio::test(flavor = "multi_thread")]
async fn r15_a_session_stays_where_it_is_whatever_becomes_of_other_endpoints_and_of_proxies() {
    let mut shop = Shop::start(false, &[("a", "shop"), ("b", "shop"), ("c", "shop")]).await;
    shop.rules(COOKIE, "GET /", &["a", "b", "c"]).await;
    let tokens = shop.first_tokens(&["a", "b", "c"]).await;
    let with = |token: &str| format!("GET /x cookie:theme=dark;id={token};lang=de");
    for (name, token) in &tokens {
        assert!(!token.contains('.') && token.len() == 72, "{token}");
        for _ in 0..10 {
            let answer = shop.ask(&with(token)).await;
            assert_eq!((answer.by().as_str(), answer.field("set-cookie").as_str()), (*name, "-"));
            assert_eq!(answer.saw_field("cookie"), "theme=dark; lang=de", "the application sees its own");
        }
    }
    let first = shop.ask("GET /").await.field("set-cookie");
    assert!(first.starts_with("id=") && first.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{first}");

    // On one connection, clients of many sessions.
    let mut wire = Wire::connect(shop.web.outbound("shop")).await;
    for (name, token) in tokens.iter().cycle().take(9) {
        wire.send(format!("GET / HTTP/1.1\r\nHost: shop\r\nCookie: id={token}\r\n\r\n")).await;
        let (head, body) = wire.response().await;
        let seen: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((head.status(), seen["backend"].as_str()), (200, Some(*name)));
        assert!(seen["fields"].get("cookie").is_none(), "{seen}");
    }
    shop.web.logs(&[("path", json!("/x")), ("session", json!("kept"))]).await;

    // Damaged, and nobody's.
    let damaged = {
        let token = &tokens["a"];
        let other = if token.starts_with('A') { "B" } else { "A" };
        format!("{other}{}", &token[1..])
    };
    for forged in [damaged.as_str(), "10.0.0.1:8080", "", "AAAA"] {
        let answer = shop.ask(&format!("GET / cookie:id={forged}")).await;
        assert_eq!((answer.status, answer.saw_field("cookie")), (200, &*format!("id={forged}")));
        assert!(answer.field("set-cookie").starts_with("id="), "it has a session now: {forged}");
    }
    assert_eq!(shop.counted("invalid").await, 4.0);
    assert!(shop.counted("kept").await >= 39.0 && shop.counted("new").await >= 4.0);
    assert_eq!(shop.counted("moved").await, 0.0);

    // Another of them, another proxy, and both halves anew.
    shop.add("d", "shop").await;
    shop.reaches("GET /", &["d"]).await;
    let other = shop.world.workload("other").calls("shop").start().await;
    for (name, token) in &tokens {
        assert_eq!(shop.ask(&with(token)).await.by(), *name);
        assert_eq!(ask(&other, false, &with(token)).await.by(), *name, "by another proxy");
    }
    shop.world.kill_control_plane().await;
    shop.world.restart_control_plane().await;
    let anew = shop.world.workload("anew").calls("shop").start().await;
    eventually("all endpoints are known again", async || {
        for (name, token) in &tokens {
            let by = ask(&anew, false, &with(token)).await.by();
            if by != *name {
                return Err(format!("{by} instead of {name}"));
            }
        }
        Ok(())
    })
    .await;

    // Its own endpoint goes: it moves once, and nobody else does.
    drop(shop.replicas.remove("b"));
    let moved = eventually("the session moves", async || {
        let answer = shop.ask(&with(&tokens["b"])).await;
        assert_ne!(answer.by(), "b");
        if answer.status == 200 { Ok((answer.by(), token(&answer))) } else { Err(answer.by()) }
    })
    .await;
    assert!(shop.counted("moved").await >= 1.0);
    for _ in 0..5 {
        let answer = shop.ask(&with(&moved.1)).await;
        assert_eq!((answer.by(), answer.field("set-cookie").as_str()), (moved.0.clone(), "-"));
    }
    for name in ["a", "c"] {
        assert_eq!(shop.ask(&with(&tokens[name])).await.by(), name);
    }
    assert_eq!(shop.counted("expired").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_dies_unseen_costs_its_session_no_request() {
    let mut shop = Shop::start(false, &[("a", "shop"), ("b", "shop")]).await;
    shop.rules(COOKIE, "GET /", &["a", "b"]).await;
    let tokens = shop.first_tokens(&["a", "b"]).await;
    // So that nobody tells that it is gone.
    shop.world.kill_control_plane().await;
    shop.replicas.get_mut("a").unwrap().1.process().kill().await;
    let answer = shop.ask(&format!("GET / cookie:id={}", tokens["a"])).await;
    assert_eq!(answer.by(), "b");
    let next = token(&answer);
    assert_ne!(next, tokens["a"]);
    assert_eq!(shop.ask(&format!("GET / cookie:id={next}")).await.field("set-cookie"), "-");
    assert_eq!(shop.counted("moved").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_drains_hands_its_sessions_on() {
    let mut shop = Shop::start(false, &[("a", "shop"), ("b", "shop")]).await;
    shop.rules(COOKIE, "GET /", &["a", "b"]).await;
    let tokens = shop.first_tokens(&["a", "b"]).await;
    shop.replicas.get_mut("a").unwrap().1.process().signal(rustix::process::Signal::TERM);
    let next = eventually("the session goes on elsewhere", async || {
        let answer = shop.ask(&format!("GET / cookie:id={}", tokens["a"])).await;
        assert_eq!(answer.status, 200, "no request is lost: {}", answer.by());
        if answer.by() == "b" { Ok(token(&answer)) } else { Err(answer.by()) }
    })
    .await;
    assert_eq!(shop.ask(&format!("GET / cookie:id={next}")).await.field("set-cookie"), "-");
    assert_eq!(shop.ask(&format!("GET / cookie:id={}", tokens["b"])).await.by(), "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_stays_with_its_backend_whatever_the_weights_are() {
    let mut shop = Shop::start(false, &[("a", "v1"), ("b", "v1"), ("c", "v2")]).await;
    let split = |first: u32, second: u32| {
        format!(
            "[{{sessionPersistence: {{sessionName: id}}, backendRefs: [{{name: v1, port: 8080, weight: {first}}}, {{name: v2, port: 8080, \
             weight: {second}}}]}}, {{matches: [{{path: {{value: /of/{first}}}}}], backendRefs: [{{name: v2, port: 8080}}]}}]"
        )
    };
    shop.rules(&split(1, 1), "GET /of/1", &["c"]).await;
    let tokens = shop.at_each("GET /", &["a", "b", "c"]).await;
    let with = |name: &str| format!("GET / cookie:id={}", tokens[name]);
    for name in ["a", "b", "c"].repeat(4) {
        assert_eq!(shop.ask(&with(name)).await.by(), name);
    }
    shop.write(&split(0, 1));
    eventually("nobody new goes to v1", async || {
        let mut answers = Vec::new();
        for _ in 0..20 {
            answers.push(shop.ask("GET /").await.by());
        }
        if answers.iter().all(|by| by == "c") { Ok(()) } else { Err(format!("{answers:?}")) }
    })
    .await;
    for name in ["a", "b", "c"].repeat(2) {
        assert_eq!(shop.ask(&with(name)).await.by(), name, "a weight of 0 ends no session");
    }
    // Not to the other endpoint of what takes nobody new.
    drop(shop.replicas.remove("a"));
    eventually("the session follows the weights when its endpoint is gone", async || {
        let by = shop.ask(&with("a")).await.by();
        if by == "c" { Ok(()) } else { Err(by) }
    })
    .await;
    assert_eq!(shop.ask(&with("b")).await.by(), "b");
    let said = shop.world.explain(&["--from", "default/web", "--to", "http://shop:8080/"]);
    let session = &said["taken"]["session"];
    assert_eq!((session["place"].as_str(), session["name"].as_str()), (Some("cookie"), Some("id")), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_end_by_their_timeouts_and_tokens_go_in_headers_too() {
    let shop = Shop::start(false, &[("a", "shop"), ("b", "shop")]).await;
    let rules = "
  - matches: [{path: {value: /idle}}]
    backendRefs: [{name: shop, port: 8080}]
    sessionPersistence: {type: Header, sessionName: X-Session, idleTimeout: 1h}
  - matches: [{path: {value: /short}}]
    backendRefs: [{name: shop, port: 8080}]
    sessionPersistence: {type: Header, sessionName: x-session, absoluteTimeout: 300ms}
  - matches: [{path: {value: /both}}]
    backendRefs: [{name: shop, port: 8080}]
    sessionPersistence: {type: Header, sessionName: x-session, absoluteTimeout: 1h, idleTimeout: 200ms}
  - backendRefs: [{name: shop, port: 8080}]";
    shop.rules(rules, "GET /idle", &["a", "b"]).await;
    eventually("sessions are kept", async || {
        let token = shop.ask("GET /idle").await.field("x-session");
        if token == "-" { Err("no token".to_owned()) } else { Ok(()) }
    })
    .await;
    for name in ["a", "b"] {
        let mut token = shop.at_each("GET /idle", &[name]).await.remove(name).unwrap();
        for _ in 0..5 {
            let answer = shop.ask(&format!("GET /idle x-session:{token} x-other:own")).await;
            assert_eq!((answer.by().as_str(), answer.saw_field("x-session")), (name, "-"));
            // It was seen just now.
            token = answer.field("x-session");
            assert_eq!(token.len(), 72);
        }
    }
    assert_eq!(shop.ask("GET / x-session:own").await.saw_field("x-session"), "own", "no rule of sessions");
    for path in ["/short", "/both"] {
        let token = shop.ask(&format!("GET {path}")).await.field("x-session");
        let expired = shop.counted("expired").await;
        eventually("the session is over", async || {
            shop.ask(&format!("GET {path} x-session:{token}")).await;
            if shop.counted("expired").await > expired { Ok(()) } else { Err("it is kept".to_owned()) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_rule_has_sessions_of_its_own_and_cookies_for_its_paths() {
    let shop = Shop::start(false, &[("a", "shop"), ("b", "shop")]).await;
    let rules = "
  - matches: [{path: {value: /api/v1/}}, {path: {type: Exact, value: /one}}, {path: {type: RegularExpression, value: '/p1/p2/[^/]+/p3'}}]
    backendRefs: [{name: shop, port: 8080}]
    sessionPersistence: {}
  - name: kept
    matches: [{path: {value: /kept}}]
    filters:
    - {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [set-cookie]}}
    - {type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /elsewhere}}}
    backendRefs: [{name: shop, port: 8080}]
    sessionPersistence: {absoluteTimeout: 5m, cookieConfig: {lifetimeType: Permanent}}
  - matches: [{path: {value: /same}}]
    backendRefs: [{name: shop, port: 8080}]
    sessionPersistence: {sessionName: id}
  - matches: [{path: {value: /same}, headers: [{name: other, value: x}]}]
    backendRefs: [{name: shop, port: 8080}]
    sessionPersistence: {sessionName: id}";
    shop.rules(rules, "GET /kept", &["a", "b"]).await;
    let set = async |path: &str| shop.ask(&format!("GET {path}")).await.field("set-cookie");
    eventually("sessions are kept", async || {
        let cookie = set("/kept").await;
        if cookie == "-" { Err("no cookie".to_owned()) } else { Ok(()) }
    })
    .await;
    let mut names = Vec::new();
    for (path, attributes) in [
        ("/api/v1/items?q", "Path=/api/v1; HttpOnly; SameSite=Lax"),
        ("/one", "Path=/one; HttpOnly; SameSite=Lax"),
        ("/p1/p2/x/p3", "Path=/p1/p2; HttpOnly; SameSite=Lax"),
        ("/kept/it", "Path=/kept; HttpOnly; SameSite=Lax; Max-Age=300"),
    ] {
        let cookie = set(path).await;
        let (pair, rest) = cookie.split_once("; ").unwrap();
        assert_eq!(rest, attributes, "{path}");
        names.push(pair.split_once('=').unwrap().0.to_owned());
    }
    // Made of the rule, and the same for every match of it.
    assert!(
        names[0].starts_with("tulle-session-") && names[0] == names[1] && names[1] == names[2],
        "{names:?}"
    );
    assert_ne!(names[2], names[3]);

    // Of the same name, and yet good for the one rule only.
    let tokens = shop.at_each("GET /same", &["a", "b"]).await;
    let invalid = shop.counted("invalid").await;
    for (name, token) in &tokens {
        assert_eq!(shop.ask(&format!("GET /same cookie:id={token}")).await.by(), *name);
        let answer = shop.ask(&format!("GET /same other:x cookie:id={token}")).await;
        assert!(answer.field("set-cookie").starts_with("id="));
    }
    assert_eq!(shop.counted("invalid").await, invalid + 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_grpc_stay_with_their_endpoint() {
    let shop = Shop::start(true, &[("a", "shop"), ("b", "shop")]).await;
    let rules = "
  - matches: [{method: {service: shop.Carts}}]
    backendRefs: [{name: shop, port: 8080}]
    sessionPersistence: {sessionName: cart}
  - matches: [{method: {service: shop.Orders, method: Place}}]
    backendRefs: [{name: shop, port: 8080}]
    sessionPersistence: {type: Header, sessionName: x-session}";
    shop.rules(rules, "POST /shop.Carts/Add", &["a", "b"]).await;
    for (call, carry) in
        [("POST /shop.Carts/Add", "cookie:a=1;cart="), ("POST /shop.Orders/Place", "x-session:")]
    {
        eventually("sessions are kept", async || {
            let token = token(&shop.ask(call).await);
            if token == "-" { Err("no token".to_owned()) } else { Ok(()) }
        })
        .await;
        for (name, token) in shop.at_each(call, &["a", "b"]).await {
            for _ in 0..8 {
                let answer = shop.ask(&format!("{call} {carry}{token}")).await;
                assert_eq!((answer.by().as_str(), self::token(&answer).as_str()), (name, "-"), "{call}");
            }
        }
    }
    let cookie = shop.ask("POST /shop.Carts/Add").await.field("set-cookie");
    assert!(cookie.starts_with("cart=") && cookie.contains("; Path=/shop.Carts; "), "{cookie}");
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_for_a_sessions_service_takes_no_longer_than_the_rule_lets_a_request() {
    let mut shop = Shop::start(false, &[("a", "v1"), ("b", "v2")]).await;
    let rules = |weight: u32| {
        format!(
            "[{{backendRefs: [{{name: v1, port: 8080}}, {{name: v2, port: 8080, weight: {weight}}}], timeouts: {{request: 2s}}, \
             sessionPersistence: {{sessionName: id}}}}]"
        )
    };
    shop.rules(&rules(1), "GET /", &["b"]).await;
    let token = shop.at_each("GET /", &["b"]).await.remove("b").unwrap();
    shop.write(&rules(0));
    // It has never had to do with `v2`, and asks longer than the rule allows.
    let late = shop.world.workload("late").calls("shop").setting("--discovery-timeout", "600s").start().await;
    eventually("the weights are in force", async || {
        let mut by = BTreeMap::new();
        for _ in 0..20 {
            *by.entry(ask(&shop.web, false, "GET /").await.by()).or_insert(0) += 1;
        }
        if by.get("a") == Some(&20) { Ok(()) } else { Err(format!("{by:?}")) }
    })
    .await;
    eventually("it has the rules", async || {
        let by = ask(&late, false, "GET /").await.by();
        if by == "a" { Ok(()) } else { Err(by) }
    })
    .await;
    shop.world.kill_control_plane().await;
    let by = ask(&late, false, &format!("GET / cookie:id={token}")).await.by();
    assert_eq!(by, "504 request_timeout");
}
