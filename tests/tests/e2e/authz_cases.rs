//! What AuthorizationPolicies let in: policies as they are written, who asks what, and the answer. The cases are in `authz_cases/cases.txt`,
//! the ways around a policy among them: spellings of paths, hosts, methods and headers that somebody else might read otherwise.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tulle_certs::alpn::HTTP1;
use tulle_tests::app::App;
use tulle_tests::echo;
use tulle_tests::identity::{self, Identity};
use tulle_tests::{Mode, Program, Wire, Workload, World, binary, eventually};

use super::Pair;

const CASES: &str = include_str!("authz_cases/cases.txt");

/// What is in force, and what is asked then.
#[derive(Default)]
struct Group<'c> {
    name: &'c str,
    /// Objects of YAML, each as a whole.
    objects: Vec<String>,
    /// What is asked, and the answer.
    cases: Vec<(&'c str, &'c str)>,
}

fn groups() -> Vec<Group<'static>> {
    let mut groups: Vec<Group<'static>> = Vec::new();
    for line in CASES.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("== ") {
            groups.push(Group { name, ..Group::default() });
            continue;
        }
        let group = groups.last_mut().expect("a group before anything else");
        if let Some(name) = line.strip_prefix("policy ") {
            group.objects.push(policy(name));
        } else if line == "object" {
            group.objects.push(String::new());
        } else if let Some(inner) = line.strip_prefix("  ") {
            let object = group.objects.last_mut().expect("an object before its lines");
            let is_spec = object.contains("kind: AuthorizationPolicy");
            writeln!(object, "{}{inner}", if is_spec { "  " } else { "" }).unwrap();
        } else {
            let (asked, answer) = line.split_once(" => ").unwrap_or_else(|| panic!("no case: {line}"));
            group.cases.push((asked, answer));
        }
    }
    groups
}

fn policy(name: &str) -> String {
    format!(
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: default}}\nspec:\n"
    )
}

impl Group<'_> {
    /// As a file, with a policy besides that tells by its name that all is in force.
    fn yaml(&self, marker: &str) -> String {
        let target = "  targetRefs: [{group: \"\", kind: Service, name: orders}]\n";
        let mut all: Vec<String> = self.objects.clone();
        for object in all.iter_mut().filter(|object| object.contains("kind: AuthorizationPolicy")) {
            if !object.contains("targetRefs") {
                object.push_str(target);
            }
        }
        let nobody =
            "  action: AUDIT\n  rules: [{name: here, from: [{serviceAccounts: [default/nobody]}]}]\n";
        all.push(format!("{}{target}{nobody}", policy(marker)));
        all.join("---\n")
    }
}

/// `orders`, which serves `orders`, `calls` and `bytes`, and who calls it.
struct Scene {
    world: World,
    orders: Workload,
    web: Workload,
    identities: HashMap<String, Identity>,
    _apps: [App; 3],
}

impl Scene {
    async fn start() -> Self {
        let world = World::start(Mode::Permissive).await;
        for (service, protocol) in [("orders", "http"), ("calls", "kubernetes.io/h2c"), ("bytes", "tcp")] {
            world.service(service, protocol);
        }
        let orders_app =
            App::http1(async |request: Request<Incoming>| echo::mirror("orders", &request)).await;
        let calls_app = App::http2(async |request: Request<Incoming>| echo::mirror("calls", &request)).await;
        let bytes_app = App::echo().await;
        let orders = world
            .workload("orders")
            .serves("orders", orders_app.address())
            .serves("calls", calls_app.address())
            .serves("bytes", bytes_app.address())
            .start()
            .await;
        let web = world.workload("web").calls("calls").calls("bytes").start().await;
        orders.counts("tulle_registered", &[], 1.0).await;
        let _apps = [orders_app, calls_app, bytes_app];
        Self { world, orders, web, identities: HashMap::new(), _apps }
    }

    /// Puts a group in force.
    async fn set(&self, number: usize, group: &Group<'_>) {
        let marker = format!("marker-{number}");
        self.world.yaml("authz.yaml", &group.yaml(&marker));
        let told = format!("default/{marker}/here");
        eventually(&format!("{:?} is in force", group.name), async || {
            let dump = self.orders.config_dump().await;
            if dump.contains(&told) { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    }

    async fn ask(&mut self, asked: &str) -> String {
        let (who, asked) = asked.split_once(' ').unwrap_or((asked, ""));
        match who {
            "bytes" => self.say().await,
            "grpc" => {
                let stream = TcpStream::connect(self.web.outbound("calls")).await.unwrap();
                let by = echo::ask(stream, true, "calls", asked).await.by();
                if by == "calls" { "ok".to_owned() } else { by }
            }
            "nobody" => http(Wire::connect(self.orders.inbound()).await, asked).await,
            who => {
                let world = &self.world;
                let identity = self.identities.entry(who.to_owned()).or_insert_with(|| {
                    let (namespace, account) = who.split_once('/').unwrap();
                    let id = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
                    world.certificate_naming(&[&id])
                });
                let wire = identity::connect(self.orders.inbound(), Some(&*identity), &[HTTP1]).await;
                http(wire.expect("the handshake is not the policy"), asked).await
            }
        }
    }

    /// Bytes that are no HTTP.
    async fn say(&self) -> String {
        let mut wire = self.web.connect("bytes").await;
        let _ = wire.try_send("no HTTP\n").await;
        let _ = tokio::io::AsyncWriteExt::shutdown(wire.stream()).await;
        if wire.to_end_or_reset().await == b"no HTTP\n" { "ok".to_owned() } else { "closed".to_owned() }
    }
}

/// Asks `METHOD TARGET [name:value …]`, byte by byte as it is written.
async fn http<S: AsyncRead + AsyncWrite + Unpin>(mut wire: Wire<S>, asked: &str) -> String {
    let mut words = asked.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let mut fields: Vec<_> = words.map(|word| word.split_once(':').unwrap()).collect();
    let host = fields.iter().position(|(name, _)| *name == "host").map(|at| fields.remove(at).1);
    let version = if host == Some("-") { "1.0" } else { "1.1" };
    let mut request =
        format!("{method} {target} HTTP/{version}\r\nconnection: close\r\ncontent-length: 0\r\n");
    if let Some(host) = Some(host.unwrap_or("orders")).filter(|host| *host != "-") {
        write!(request, "host: {host}\r\n").unwrap();
    }
    for (name, value) in fields {
        write!(request, "{name}: {value}\r\n").unwrap();
    }
    wire.send(request + "\r\n").await;
    let Some(head) = wire.try_head().await else { return "closed".to_owned() };
    let body = String::from_utf8_lossy(&wire.body(&head).await).trim().to_owned();
    match (head.status(), head.reason()) {
        (200, None) => "ok".to_owned(),
        (status, reason) => format!("{status} {} {body}", reason.unwrap_or("-")),
    }
}

/// Whether an answer is as is said: the beginning of it, and what else it has.
fn fits(answer: &str, expected: &str) -> bool {
    let mut words = expected.splitn(3, ' ');
    let (first, second, rest) = (words.next().unwrap(), words.next(), words.next().unwrap_or(""));
    let start = second.map_or_else(|| first.to_owned(), |second| format!("{first} {second}"));
    answer.starts_with(&start) && answer.contains(rest)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_ask_what() {
    let groups = groups();
    let count: usize = groups.iter().map(|group| group.cases.len()).sum();
    assert!(count >= 250, "{count} cases");
    let mut scene = Scene::start().await;
    let mut wrong = Vec::new();
    for (number, group) in groups.iter().enumerate() {
        scene.set(number, group).await;
        for (asked, expected) in &group.cases {
            let answer = scene.ask(asked).await;
            if !fits(&answer, expected) {
                wrong.push(format!("{}: {asked}: {answer:?} instead of {expected:?}", group.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}

/// What `tulle authz` says of this proxy.
fn authz(orders: &Workload, arguments: &[&str]) -> Value {
    let program = Program::new("authz", binary("tulle")).arg("authz");
    let program = arguments.iter().fold(program, |program, one| program.arg(*one));
    let program = program.flag("--admin", orders.admin().to_string()).flag("--output", "json");
    let output = program.output();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn tulle_authz_says_what_is_in_force_and_what_it_would_say() {
    let pair = Pair::start(App::saying("hello").await, "http").await;
    let rules = "  action: ALLOW\n  rules: [{name: cart, from: [{serviceAccounts: [default/web]}], to: [{paths: [\"/cart/*\"]}]}]\n";
    pair.world.yaml("policy.yaml", &on_orders("allow", rules));
    let mut wire = pair.web.connect("orders").await;
    eventually("the policy is in force", async || {
        wire.send(GET).await;
        let (head, _) = wire.response().await;
        if head.status() == 403 { Ok(()) } else { Err(head.line) }
    })
    .await;
    let port = pair.orders.inbound().port().to_string();
    let check = |identity: &str, path: &str| {
        authz(&pair.orders, &["check", "--port", &port, "--identity", identity, "--path", path])
    };
    let allowed = check("default/web", "/cart/1");
    assert_eq!((&allowed["verdict"], &allowed["rule"]), (&json!("allow"), &json!("default/allow/cart")));
    for (identity, path, reason) in [
        ("default/web", "/admin", "policy_denied"),
        ("default/other", "/cart/1", "policy_denied"),
        ("default/web", "/cart/%2e%2e/admin", "policy_denied"),
        ("default/web", "/cart/..%2fadmin", "malformed_request"),
    ] {
        let denied = check(identity, path);
        assert_eq!(
            (&denied["verdict"], &denied["reason"]),
            (&json!("deny"), &json!(reason)),
            "{identity} {path}"
        );
    }
    let bytes = authz(&pair.orders, &["check", "--port", &port, "--identity", "default/web"]);
    assert_eq!(bytes["verdict"], "deny");

    let shown = authz(&pair.orders, &[]);
    assert_eq!(shown["workload"], "default/orders");
    let names: Vec<_> = shown["policies"].as_array().unwrap().iter().map(|policy| &policy["name"]).collect();
    assert_eq!(names, [&json!("default/allow")]);
    let verdicts = shown["verdicts"].as_array().unwrap();
    assert!(verdicts.iter().any(|one| one["reason"] == "policy_denied"), "{shown:#}");
}

fn on_orders(name: &str, spec: &str) -> String {
    format!("{}  targetRefs: [{{group: \"\", kind: Service, name: orders}}]\n{spec}", policy(name))
}

const GET: &str = "GET /admin HTTP/1.1\r\nhost: orders\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_is_told_by_the_metric_and_the_log_with_its_rule_and_so_is_a_dry_run() {
    let pair = Pair::start(App::saying("hello").await, "http").await;
    let mut wire = pair.web.connect("orders").await;
    let mut ask = async || {
        wire.send(GET).await;
        wire.response().await.0
    };
    assert_eq!(ask().await.status(), 200);
    let rule = "  rules: [{name: admin, to: [{paths: [/admin]}]}]\n";
    pair.world.yaml("policy.yaml", &on_orders("trial", &format!("  action: DENY\n  mode: DryRun\n{rule}")));
    let told = [("would_deny", json!("default/trial/admin"))];
    eventually("the dry run is told of", async || {
        assert_eq!(ask().await.status(), 200, "it does nothing");
        let log = pair.orders.access_log();
        let is_told = log.iter().any(|record| told.iter().all(|(name, value)| record[*name] == *value));
        if is_told { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    let labels = [("verdict", "would_deny"), ("rule", "default/trial/admin")];
    pair.orders.counts("tulle_policy_verdicts_total", &labels, 1.0).await;
    assert_eq!(pair.orders.logs(&told).await["rule"], "default");

    pair.world.yaml("policy.yaml", &on_orders("trial", &format!("  action: DENY\n{rule}")));
    let head = eventually("it is in force", async || {
        let head = ask().await;
        if head.status() == 403 { Ok(head) } else { Err(head.line) }
    })
    .await;
    assert_eq!(head.reason(), Some("policy_denied"));
    assert_eq!(head.get("x-tulle-error-by"), Some("default/orders/inbound"));
    let labels = [("verdict", "deny"), ("rule", "default/trial/admin"), ("reason", "policy_denied")];
    pair.orders.counts("tulle_policy_verdicts_total", &labels, 1.0).await;
    let denied = [("reason", json!("policy_denied")), ("direction", json!("inbound"))];
    let record = pair.orders.logs(&denied).await;
    assert_eq!(
        (&record["rule"], &record["status"]),
        (&json!("default/trial/admin"), &json!(403)),
        "{record}"
    );
    assert_eq!(record["source"], json!(pair.web.identity()));

    pair.world.yaml("policy.yaml", &on_orders("trial", &format!("  action: AUDIT\n{rule}")));
    eventually("it is let in and told", async || {
        let status = ask().await.status();
        let labels = [("verdict", "audit"), ("rule", "default/trial/admin")];
        let count = pair.orders.metrics().await.sum("tulle_policy_verdicts_total", &labels);
        if status == 200 && count >= 1.0 { Ok(()) } else { Err(format!("{status} {count}")) }
    })
    .await;
}

/// Answers with a line a moment, for ever.
async fn ticking() -> App {
    App::wire(async |mut wire: Wire| {
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        while wire.try_send("2\r\n.\n\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_ends_the_requests_that_it_denies_and_no_others() {
    let pair = Pair::start(ticking().await, "http").await;
    let open = async |path: &str| {
        let mut wire = pair.web.connect("orders").await;
        wire.send(format!("GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n")).await;
        assert_eq!(wire.head().await.status(), 200);
        assert_eq!(wire.until(b".\n\r\n").await.unwrap(), b"2\r\n.\n\r\n");
        wire
    };
    let (mut denied, mut allowed) = (open("/watch").await, open("/other").await);
    let rule = "  action: DENY\n  rules: [{name: watch, to: [{paths: [/watch]}]}]\n";
    pair.world.yaml("policy.yaml", &on_orders("deny", rule));
    // Broken off, and not ended: the last chunk never comes.
    let rest = denied.to_end_or_reset().await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
    let fields = [("path", json!("/watch")), ("direction", json!("inbound"))];
    assert_eq!(pair.orders.logs(&fields).await["reason"], "policy_denied");
    // More than what may have been on its way.
    for _ in 0..40 {
        assert_eq!(allowed.until(b".\n\r\n").await.unwrap(), b"2\r\n.\n\r\n");
    }
    let mut wire = pair.web.connect("orders").await;
    wire.send("GET /watch HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    assert_eq!(wire.response().await.0.reason(), Some("policy_denied"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_is_judged_by_what_it_asks_of_itself() {
    let world = World::strict().await;
    let app = App::saying("hello").await;
    world.service("orders", "http");
    let orders = world.workload("orders").serves("orders", app.address()).calls("orders").start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    orders.reaches("orders").await;
    world.yaml(
        "policy.yaml",
        &on_orders("deny", "  action: DENY\n  rules: [{name: admin, to: [{paths: [/admin]}]}]\n"),
    );
    let mut wire = orders.connect("orders").await;
    let head = eventually("the policy holds for itself too", async || {
        wire.send(GET).await;
        let (head, _) = wire.response().await;
        if head.status() == 403 { Ok(head) } else { Err(head.line) }
    })
    .await;
    assert_eq!(head.get("x-tulle-error-by"), Some("default/orders/outbound"));
    wire.send("GET /%2fadmin HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    assert_eq!(wire.response().await.0.reason(), Some("malformed_request"));
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    assert_eq!(wire.response().await.0.status(), 200);
}
