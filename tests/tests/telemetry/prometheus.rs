//! A real Prometheus scrapes a mesh in which much happens: it takes all that is exposed, and every query of the dashboards and every
//! shipped rule has something to say of it.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use http::Response;
use serde_json::Value;
use tokio::task::JoinSet;
use tulle_tests::app::{App, full};
use tulle_tests::{Folder, Process, Program, Wire, Workload, World, eventually};

const POLICIES: &str = "
apiVersion: policy.tulle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: orders, namespace: default}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  action: ALLOW
  rules: [{name: web, from: [{identities: [default/web]}]}]
---
apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: orders, namespace: default}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  loadBalancer: {algorithm: RoundRobin, panicThresholdPercent: 0}
  outlierDetection: {consecutive5xx: 3, ejectionTime: 500ms, maximumEjectionTime: 500ms}
---
apiVersion: policy.tulle.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: scarce, namespace: default}
spec:
  targetRefs: [{group: '', kind: Service, name: scarce}]
  direction: Inbound
  limits: [{name: few, rate: {requests: 1, per: 1s, burst: 1}}]
";

/// `attempts`: of retries.
fn route(attempts: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: orders, namespace: default}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: orders}}]\n  rules:\n  - retry: {{codes: [503], attempts: {attempts}, \
         backoff: 1ms}}\n    backendRefs: [{{name: orders, port: 8080}}]\n"
    )
}

/// Where the shipped files are.
fn shipped(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/tulle/files").join(folder);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{}", folder.display());
    files
}

/// What `promtool` says to `input`; it must find nothing wrong.
fn promtool(arguments: &[&str], files: &[PathBuf], input: &str) -> String {
    let mut child = Command::new("promtool")
        .args(arguments)
        .args(files)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's package prometheus (.ci/run install)");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {}\n{said}", output.status);
    said
}

/// A page, in the form that `accept` asks for, with its content type.
async fn page(address: SocketAddr, path: &str, accept: &str) -> (String, String) {
    let mut wire = Wire::connect(address).await;
    wire.send(format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\nconnection: close\r\n\r\n"
    ))
    .await;
    let (head, body) = wire.response().await;
    let body = String::from_utf8(body).unwrap();
    assert_eq!(head.status(), 200, "{path}: {head:?} {body}");
    (head.get("content-type").unwrap_or_default().to_owned(), body)
}

/// `web`, which may call `orders`, and `other`, which may not; one of the two that serve `orders` fails each time.
struct Mesh {
    world: World,
    workloads: Vec<Workload>,
    _apps: Vec<App>,
}

impl Mesh {
    async fn start() -> Self {
        let world = World::strict().await;
        world.yaml("policies.yaml", POLICIES);
        world.yaml("route.yaml", &route(1));
        world.service("orders", "http");
        world.service("scarce", "http");
        let failing = App::http1(|_| async {
            let mut answer = Response::new(full("no"));
            *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            answer
        })
        .await;
        let apps = vec![App::saying("ok").await, failing, App::saying("ok").await];
        let mut workloads = Vec::new();
        let services = [("good", "orders"), ("bad", "orders"), ("scarce", "scarce")];
        for ((name, service), app) in services.into_iter().zip(&apps) {
            let workload = world.workload(name).serves(service, app.address()).start().await;
            workload.counts("tulle_registered", &[], 1.0).await;
            workloads.push(workload);
        }
        // All that it asks is traced, though nobody takes the spans.
        let traces = |program: Program| {
            let program = program.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9");
            program.env("OTEL_TRACES_SAMPLER", "always_on")
        };
        let web = world.workload("web").calls("orders").calls("scarce").program(traces);
        workloads.push(web.start().await);
        workloads.push(world.workload("other").calls("orders").start().await);
        Self { world, workloads, _apps: apps }
    }

    fn named(&self, name: &str) -> &Workload {
        self.workloads.iter().find(|workload| workload.name() == name).unwrap()
    }

    /// Requests of every fate, again and again, while the result lives; and whoever talks to the control plane in clear.
    fn traffic(&self) -> JoinSet<()> {
        let (web, other) = (self.named("web"), self.named("other"));
        let targets = [
            (web.outbound("orders"), "orders"),
            (web.outbound("scarce"), "scarce"),
            (other.outbound("orders"), "orders"),
        ];
        let mut tasks = JoinSet::new();
        for (address, host) in targets {
            tasks.spawn(async move {
                loop {
                    let mut wire = Wire::connect(address).await;
                    for _ in 0..10 {
                        wire.send(format!(
                            "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 5\r\n\r\nhello"
                        ))
                        .await;
                        wire.response().await;
                        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    }
                }
            });
        }
        let control_plane = self.world.grpc();
        tasks.spawn(async move {
            loop {
                let mut wire = Wire::connect(control_plane).await;
                wire.send("GET / HTTP/1.1\r\n\r\n").await;
                wire.to_end_or_reset().await;
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        });
        tasks
    }
}

/// On a port of loopback.
struct Prometheus {
    process: Process,
    address: SocketAddr,
    _folder: Folder,
}

// === impl Prometheus ===

impl Prometheus {
    /// Scrapes a mesh twice a second, with the shipped rules.
    async fn start(mesh: &Mesh) -> Self {
        let folder = Folder::new();
        let mut config = String::from(
            "global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}\nrule_files:\n",
        );
        for file in shipped("rules") {
            config += &format!("- {}\n", file.canonicalize().unwrap().display());
        }
        config += &format!(
            "scrape_configs:\n- job_name: tulle-control-plane\n  static_configs:\n  - targets: ['{}']\n- job_name: tulle-proxy\n  \
             static_configs:\n",
            mesh.world.metrics_address()
        );
        for workload in &mesh.workloads {
            let (address, name) = (workload.public(), workload.name());
            config += &format!("  - {{targets: ['{address}'], labels: {{workload: default/{name}}}}}\n");
        }
        let file = folder.path("prometheus.yaml");
        std::fs::write(&file, config).unwrap();
        // A port that was free a moment ago; somebody else may have taken it since.
        for attempt in 0..5 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let program = Program::new("prometheus", "prometheus")
                .arg(format!("--config.file={}", file.display()))
                .arg(format!("--storage.tsdb.path={}", folder.path(&format!("data-{attempt}")).display()))
                .arg("--enable-feature=exemplar-storage")
                .arg(format!("--web.listen-address={address}"));
            let mut process = Process::start(program, &folder);
            let is_ready = eventually("prometheus is ready, or has ended", async || {
                if process.ended().is_some() {
                    return Ok(false);
                }
                let Ok(stream) = tokio::net::TcpStream::connect(address).await else {
                    return Err("it does not listen".to_owned());
                };
                let mut wire = Wire::new(stream);
                wire.send("GET /-/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
                let status = wire.try_head().await.map(|head| head.status());
                if status == Some(200) { Ok(true) } else { Err(format!("{status:?}")) }
            })
            .await;
            if is_ready {
                return Self { process, address, _folder: folder };
            }
        }
        panic!("prometheus does not start, see its log");
    }

    async fn api(&self, path: &str) -> Value {
        let (_, body) = page(self.address, path, "application/json").await;
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].clone()
    }

    /// What a query comes to now: labels and value of each series.
    async fn query(&self, query: &str) -> Vec<(BTreeMap<String, String>, f64)> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let data = self.api(&format!("/api/v1/query?query={encoded}")).await;
        let series = data["result"].as_array().unwrap().iter().map(|one| {
            let labels = serde_json::from_value(one["metric"].clone()).unwrap();
            (labels, one["value"][1].as_str().unwrap().parse().unwrap())
        });
        series.collect()
    }

    /// What was kept of the exemplars of these series in the last hour.
    async fn exemplars(&self, series: &str) -> Value {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let (start, end) = (now - 3600, now + 60);
        self.api(&format!("/api/v1/query_exemplars?query={series}&start={start}&end={end}")).await
    }

    /// Waits until a query has an answer that is a number.
    async fn answers(&self, what: &str, query: &str) {
        eventually(&format!("{what} has data: {query}"), async || {
            let series = self.query(query).await;
            if series.iter().any(|(_, value)| !value.is_nan()) { Ok(()) } else { Err(format!("{series:?}")) }
        })
        .await;
    }
}

/// A dashboard as Grafana would load it.
struct Dashboard {
    title: String,
    json: Value,
}

impl Dashboard {
    fn all() -> Vec<Self> {
        let read = |path: PathBuf| {
            let json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap())
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
            assert_eq!(json["uid"], *stem, "a dashboard's uid is its file's name");
            Self { title: json["title"].as_str().unwrap().to_owned(), json }
        };
        shipped("dashboards").into_iter().map(read).collect()
    }

    fn variables(&self) -> impl Iterator<Item = &Value> {
        self.json["templating"]["list"].as_array().unwrap().iter()
    }

    /// Of each panel: where it is, and the query with everything chosen.
    fn queries(&self) -> Vec<(String, String)> {
        let mut queries = Vec::new();
        for panel in self.json["panels"].as_array().unwrap() {
            let title = format!("{}, {}", self.title, panel["title"]);
            for target in panel["targets"].as_array().into_iter().flatten() {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
                let mut query = target["expr"].as_str().unwrap().replace("$__rate_interval", "1m");
                for variable in self.variables() {
                    query = query.replace(&format!("${}", variable["name"].as_str().unwrap()), ".*");
                }
                assert!(!query.contains('$'), "{title}: a variable that the dashboard has not: {query}");
                queries.push((title.clone(), query));
            }
        }
        queries
    }

    /// Of each variable that is asked for: a query, and the label whose values it takes.
    fn label_values(&self) -> Vec<(String, String)> {
        let queries = self.variables().filter_map(|variable| variable["query"]["query"].as_str());
        let parts = queries.map(|query| {
            let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
            let (series, label) = inner.and_then(|inner| inner.rsplit_once(", ")).unwrap();
            (series.to_owned(), label.to_owned())
        });
        parts.collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs prometheus"]
async fn a_real_prometheus_scrapes_a_mesh_and_every_query_of_the_dashboards_returns_data() {
    let mesh = Mesh::start().await;
    let mut prometheus = Prometheus::start(&mesh).await;
    eventually("every target is up", async || {
        let targets = prometheus.api("/api/v1/targets").await;
        let targets = targets["activeTargets"].as_array().unwrap();
        let is_up = |target: &Value| target["health"] == "up" && target["lastError"] == "";
        if targets.len() == 6 && targets.iter().all(is_up) { Ok(()) } else { Err(format!("{targets:?}")) }
    })
    .await;
    // From here on, so that what is counted has grown between two scrapes.
    let traffic = mesh.traffic();
    let refused = r#"tulle_requests_total{direction="inbound",reason="policy_denied"} > 0"#;
    prometheus.answers("a refusal", refused).await;
    prometheus.answers("a route in use", r#"tulle_requests_total{route="default/orders"} > 0"#).await;
    mesh.world.yaml("route.yaml", &route(2));
    for (what, query) in [
        ("a retry", r#"tulle_retries_total{cause="status",outcome="answered"} > 0"#),
        ("an ejection", "tulle_balancer_ejections_total > 0"),
        ("a limit", r#"tulle_rate_limit_requests_total{outcome="refused"} > 0"#),
        ("a change", "tulle_control_plane_convergence_duration_seconds_count > 0"),
    ] {
        prometheus.answers(what, query).await;
    }
    eventually("exemplars are kept", async || {
        let series = prometheus.exemplars("http_client_request_duration_seconds_bucket").await;
        let is_one = |labels: &Value| labels["workload"] == "default/web" && labels["le"].is_string();
        let found = series.as_array().unwrap().iter().find(|one| is_one(&one["seriesLabels"]));
        let exemplar = found.ok_or_else(|| series.to_string())?["exemplars"][0].clone();
        let length = |label: &str| exemplar["labels"][label].as_str().map(str::len);
        assert_eq!((length("trace_id"), length("span_id")), (Some(32), Some(16)), "{exemplar}");
        Ok(())
    })
    .await;
    let dashboards = Dashboard::all();
    assert_eq!(dashboards.len(), 5);
    let mut count = 0;
    for dashboard in &dashboards {
        for (series, label) in dashboard.label_values() {
            let found = prometheus.query(&series).await;
            assert!(found.iter().any(|(labels, _)| labels.contains_key(&label)), "{series}: no {label}");
        }
        for (panel, query) in dashboard.queries() {
            prometheus.answers(&panel, &query).await;
            count += 1;
        }
    }
    assert!(count > 60, "{count}");
    let rules = prometheus.api("/api/v1/rules").await;
    let rules =
        rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
    let (mut recorded, mut alerts) = (Vec::new(), 0);
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        match rule["type"].as_str() {
            Some("recording") => recorded.push(rule["name"].as_str().unwrap().to_owned()),
            _ => alerts += 1,
        }
    }
    assert!(recorded.len() > 7 && alerts > 10, "{recorded:?}, {alerts}");
    for name in recorded {
        prometheus.answers("a rule", &name).await;
    }
    // It asked for OpenMetrics, which has no line of its own for a counter's family.
    let metadata = prometheus.api("/api/v1/metadata?metric=tulle_requests").await;
    assert_eq!(metadata["tulle_requests"][0]["type"], "counter", "{metadata}");
    drop(traffic);
    assert!(prometheus.process.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs promtool"]
async fn promtool_finds_nothing_wrong_with_what_is_exposed_and_both_forms_say_the_same() {
    let mesh = Mesh::start().await;
    let traffic = mesh.traffic();
    mesh.named("web").counts("tulle_requests_total", &[], 20.0).await;
    mesh.named("web").counts("tulle_balancer_ejections_total", &[], 1.0).await;
    drop(traffic);
    let accept = "application/openmetrics-text";
    assert!(page(mesh.named("web").public(), "/metrics", accept).await.1.contains(" # {trace_id=\""));
    let proxies = mesh.workloads.iter().map(Workload::public);
    for address in proxies.chain([mesh.world.metrics_address()]) {
        let (kind, text) = page(address, "/metrics", "*/*").await;
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        let said = promtool(&["check", "metrics"], &[], &text);
        assert_eq!(said.trim(), "", "{address}");
        let (kind, open) =
            page(address, "/metrics", "application/openmetrics-text;version=1.0.0,*/*;q=0.1").await;
        assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        assert!(open.ends_with("\n# EOF\n"), "{open}");
        assert!(!text.contains(" # {"), "{text}");
        // A bucket's bound is written otherwise.
        let series = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            let lines = lines.filter_map(|line| line.split(" # ").next());
            lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.replace(".0\"}", "\"}"))).collect()
        };
        let (text, open) = (series(&text), series(&open));
        assert!(text.len() > 50 && text.iter().all(|one| open.contains(one)), "{text:#?}\n{open:#?}");
    }
}

#[test]
#[ignore = "needs promtool"]
fn the_shipped_rules_do_what_their_tests_say() {
    let rules = shipped("rules");
    promtool(&["check", "rules"], &rules, "");
    let tests = ["alerts.yaml", "recording.yaml"]
        .map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join("rules").join(name));
    promtool(&["test", "rules"], &tests, "");
}

#[test]
fn each_alert_has_a_test_and_a_paragraph_and_each_recording_rule_a_test() {
    let page = include_str!("../../../docs/observability.md");
    let tests = concat!(include_str!("../../rules/alerts.yaml"), include_str!("../../rules/recording.yaml"));
    let rules: String = shipped("rules").iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let after = |word: &str| -> Vec<String> {
        rules.lines().filter_map(|line| line.trim().strip_prefix(word)).map(str::to_owned).collect()
    };
    let (alerts, records) = (after("- alert: "), after("- record: "));
    assert!(alerts.len() > 10 && records.len() > 7, "{alerts:?} {records:?}");
    for alert in &alerts {
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert} is never seen to fire");
        assert!(tests.contains(&format!("alertname: {alert},")), "{alert} is never seen to be silent");
        assert!(
            page.contains(&format!("\n#### {alert}\n")),
            "{alert} has no heading in docs/observability.md"
        );
        let link = format!("runbook_url: docs/observability.md#{}", alert.to_lowercase());
        assert!(rules.contains(&link), "{link}");
    }
    for record in &records {
        assert!(tests.contains(&format!("labels: '{record}{{")), "{record} has no test");
    }
}
