//! The demo as a stranger runs it: traffic over mutual TLS in the YAML's proportion, and nothing left behind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// A debug build on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(120);

/// One demo at a time: nine processes of a debug build are enough for two cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A demo with a temporary folder of its own, so that what it leaves can be counted.
struct Demo {
    temporary: TempDir,
    command: Command,
    _alone: MutexGuard<'static, ()>,
}

impl Demo {
    fn new(arguments: &[&str]) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let temporary = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tulle"));
        command.arg("demo").args(arguments).env("TMPDIR", temporary.path()).stdin(Stdio::null());
        Self { temporary, command, _alone: alone }
    }

    fn output(&mut self) -> Output {
        self.command.output().unwrap()
    }

    fn spawn(&mut self) -> Child {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// What the demo left in its temporary folder.
    fn left(&self) -> Vec<PathBuf> {
        fs::read_dir(self.temporary.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

/// Processes that have `folder` among their arguments: the demo's children, wherever they hang.
fn processes_of(folder: &Path) -> Vec<u32> {
    let folder = folder.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&arguments).contains(&folder) {
            found.push(pid);
        }
    }
    found
}

/// Direct children of a process, by the kernel's own list.
fn children_of(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// A control plane, four proxies, four services; and where the kernel allows it, a network namespace for each service.
fn is_all(children: &[u32]) -> bool {
    matches!(children.len(), 9 | 13)
}

fn is_running(pid: u32) -> bool {
    // A zombie has ended; whoever reaps it is not the demo's business.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z')))
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not after {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_edge_carries_traffic_over_mtls_in_the_proportion_of_the_yaml() {
    let mut demo = Demo::new(&["--for", "8s", "--output", "json", "--rps", "40"]);
    let output = demo.output();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["ok"], &report["problems"]), (&true.into(), &Value::Array(Vec::new())));
    let edges = report["edges"].as_array().unwrap();
    let names: Vec<_> = edges.iter().map(|edge| (edge["from"].as_str(), edge["to"].as_str())).collect();
    let expected = [("web", "orders"), ("orders", "payments-v1"), ("orders", "payments-v2")];
    assert_eq!(names, expected.map(|(from, to)| (Some(from), Some(to))));
    for edge in edges {
        assert_eq!((&edge["mtls"], &edge["success_rate"]), (&true.into(), &1.0.into()), "{edge}");
        let identity = format!("spiffe://cluster.local/ns/demo/sa/{}", edge["to"].as_str().unwrap());
        assert_eq!(edge["identity"], identity);
        assert!(edge["p50_ms"].as_f64().unwrap() > 0.0, "{edge}");
        assert!(edge["p99_ms"].as_f64() >= edge["p50_ms"].as_f64(), "{edge}");
        assert!(edge["rps"].as_f64().unwrap() > 0.0, "{edge}");
    }
    let requests = |index: usize| edges[index]["requests"].as_u64().unwrap();
    // Nobody else calls: what goes in comes out, and every request that the client saw answered is counted.
    assert_eq!(requests(0), report["client"]["requests"].as_u64().unwrap());
    assert_eq!(requests(0), requests(1) + requests(2));
    let share = requests(2) as f64 / requests(0) as f64;
    // 320 requests, a tenth of them: the standard deviation is 1.7 %.
    assert!((0.04..0.16).contains(&share), "{share}");
    assert_eq!(demo.left(), Vec::<PathBuf>::new());
    assert_eq!(processes_of(demo.temporary.path()), Vec::<u32>::new());
}

/// A demo that runs, and what it said so far.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(demo: &mut Demo) -> Self {
        let mut child = demo.spawn();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What follows `word` on the next line that begins with it.
    fn says(&mut self, word: &str) -> String {
        let mut said = Vec::new();
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            said.push(line.clone());
            if let Some(rest) = line.strip_prefix(word) {
                return rest.trim().to_owned();
            }
        }
        let output = self.child.wait().unwrap();
        panic!("the demo ended ({output}) and never said `{word}`, but\n{}", said.join("\n"));
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

fn curl(text: &str) -> Value {
    let url = text.split_whitespace().find(|word| word.starts_with("http://")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let address = url.trim_start_matches("http://").trim_end_matches('/');
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get("/cart").header("host", address);
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap()
    })
}

#[test]
fn a_changed_weight_moves_the_traffic_and_ctrl_c_leaves_nothing() {
    let mut demo = Demo::new(&["--rps", "20"]);
    let mut running = Running::start(&mut demo);
    let web = running.says("web");
    let answer = curl(&web);
    assert_eq!(answer["upstream"]["upstream"]["service"], "payments");
    let yaml = running.says("YAML");
    let yaml = Path::new(yaml.split_whitespace().next().unwrap());
    let route = fs::read_to_string(yaml).unwrap();
    fs::write(yaml, route.replace("weight: 90", "weight: 0")).unwrap();
    let begun = Instant::now();
    // From some request on all go to v2; ten in a row by chance are one in ten thousand million.
    eventually("all requests go to v2", || {
        (0..10).all(|_| curl(&web)["upstream"]["upstream"]["version"] == "v2")
    });
    eprintln!("the weights were followed after {:?}", begun.elapsed());

    let children = children_of(running.child.id());
    assert!(is_all(&children), "{children:?}");
    running.signal(Signal::INT);
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
    assert!(children.iter().all(|pid| !is_running(*pid)));
    assert_eq!(demo.left(), Vec::<PathBuf>::new());
    assert_eq!(processes_of(demo.temporary.path()), Vec::<u32>::new());
}

#[test]
fn kill_9_of_the_demo_leaves_no_process() {
    let mut demo = Demo::new(&["--rps", "20"]);
    let mut running = Running::start(&mut demo);
    running.says("web");
    let children = children_of(running.child.id());
    assert!(is_all(&children), "{children:?}");
    running.signal(Signal::KILL);
    running.child.wait().unwrap();
    eventually("every child has ended", || children.iter().all(|pid| !is_running(*pid)));
}

#[test]
fn kill_9_of_the_control_plane_disturbs_no_request() {
    let mut demo = Demo::new(&["--for", "6s"]);
    let mut running = Running::start(&mut demo);
    let control = running.says("control");
    let pid: u32 = control.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
    let verdict = running.says("ok:");
    assert!(verdict.contains("none failed"), "{verdict}");
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_service_that_dies_is_named_and_the_demo_fails() {
    let mut demo = Demo::new(&["--for", "60s", "--rps", "20"]);
    let mut running = Running::start(&mut demo);
    running.says("web");
    let children = children_of(running.child.id());
    // The last to be started is a service: payments-v2.
    let last = Pid::from_raw((*children.last().unwrap()).try_into().unwrap()).unwrap();
    kill_process(last, Signal::KILL).unwrap();
    let problem = running.says("problem:");
    assert!(problem.contains("payments-v2 ended (signal: 9"), "{problem}");
    assert_eq!(running.child.wait().unwrap().code(), Some(1));
    assert_eq!(demo.left(), Vec::<PathBuf>::new());
}

#[test]
fn a_service_answers_on_the_socket_that_it_is_given() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tulle"))
        .args(["internal", "--parent", &std::process::id().to_string()])
        .args(["service", "--name", "web", "--version", "v1"])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .spawn()
        .unwrap();
    let answer = curl(&format!("http://{address}/"));
    assert_eq!(answer, serde_json::json!({ "service": "web", "version": "v1", "path": "/cart" }));
    child.kill().unwrap();
    child.wait().unwrap();
}
