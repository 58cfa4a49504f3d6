//! What `tulle tap` shows is what happens, no more of it than may be shown, and nobody waits for who looks on.

use std::sync::atomic::{AtomicUsize, Ordering};

use http::Response;
use rustix::process::Signal;
use serde_json::Value;
use tokio::task::JoinSet;
use tulle_tests::app::{App, full};
use tulle_tests::{Process, Program, Wire, Workload, World, binary, eventually};

use super::Pair;

/// Starts a tap that prints JSON, and waits until it watches so many proxies.
async fn tap(world: &World, arguments: &[&str], proxies: usize) -> Process {
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    let name = format!("tap-{}", STARTED.fetch_add(1, Ordering::Relaxed));
    let program = Program::new(name, binary("tulle")).arg("tap");
    let program = arguments.iter().fold(program, |program, one| program.arg(*one));
    let program = program.flag("--control-plane", world.metrics_address().to_string());
    let tap = Process::start(program.flag("--output", "json"), world.folder());
    let expected = match proxies {
        0 => "no proxy is watched".to_owned(),
        1 => "watching 1 proxy".to_owned(),
        _ => format!("watching {proxies} proxies"),
    };
    says(&tap, &expected).await;
    tap
}

/// Waits until it says so on standard error.
async fn says(tap: &Process, expected: &str) {
    eventually(&format!("the tap says {expected:?}"), async || {
        let said = tap.stderr();
        if said.contains(expected) { Ok(()) } else { Err(said) }
    })
    .await;
}

fn shown(tap: &Process) -> Vec<Value> {
    tap.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Waits until it has shown so many, at least.
async fn shows(tap: &Process, count: usize) -> Vec<Value> {
    eventually(&format!("{count} requests are shown"), async || {
        let shown = shown(tap);
        if shown.len() >= count { Ok(shown) } else { Err(format!("{shown:#?}\n{}", tap.stderr())) }
    })
    .await
}

/// Waits until a proxy runs so many taps.
async fn runs(workload: &Workload, taps: f64) {
    eventually(&format!("{} runs {taps} taps", workload.name()), async || {
        let running = workload.metrics().await.sum("tulle_taps", &[]);
        if (running - taps).abs() < 0.1 { Ok(()) } else { Err(running.to_string()) }
    })
    .await;
}

/// Answers with the status that ends the path, and a secret.
async fn application() -> App {
    App::http1(async |request| {
        let status = request.uri().path().rsplit('/').next().and_then(|last| last.parse().ok());
        let response = Response::builder().status(status.unwrap_or(200_u16));
        response.header("set-cookie", "id=s3cr3t").header("x-kept", "told").body(full("hello")).unwrap()
    })
    .await
}

async fn ask(web: &Workload, method: &str, target: &str) -> u16 {
    let mut wire = web.connect("orders").await;
    let fields =
        "authorization: Bearer s3cr3t\r\nx-request: told\r\nx-api-key: s3cr3t\r\nconnection: close\r\n";
    wire.send(format!("{method} {target} HTTP/1.1\r\nhost: orders\r\n{fields}\r\n")).await;
    wire.response().await.0.status()
}

/// Which path, in which direction.
fn paths(requests: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut paths: Vec<_> =
        requests.iter().map(|one| (text(&one["direction"]), text(&one["path"]))).collect();
    paths.sort();
    paths
}

fn both(direction: [&str; 2], path: &str) -> Vec<(String, String)> {
    direction.map(|one| (one.to_owned(), path.to_owned())).to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_shown_by_workload_path_status_method_and_peer_and_secrets_are_not() {
    let pair = Pair::start(application().await, "http").await;
    let sides = ["inbound", "outbound"];
    let by_path = ["--path", "/api", "--header", "*"];
    let mut by_path = tap(&pair.world, &by_path, 2).await;
    let by_status = tap(&pair.world, &["--status", "4xx,500", "--namespace", "default"], 2).await;
    let served = tap(&pair.world, &["default/orders", "--peer", "default/web", "--method", "POST"], 1).await;
    let of_service = tap(&pair.world, &["service/orders", "-n", "default"], 1).await;
    let sent = tap(&pair.world, &["default/web", "--to", "default/orders", "--max-rps", "1000"], 1).await;
    let by_reason = tap(&pair.world, &["--reason", "any", "--direction", "inbound"], 2).await;
    runs(&pair.orders, 5.0).await;
    runs(&pair.web, 4.0).await;
    assert_eq!(ask(&pair.web, "GET", "/api/v1?token=s3cr3t").await, 200);
    assert_eq!(ask(&pair.web, "GET", "/other/404").await, 404);
    assert_eq!(ask(&pair.web, "POST", "/other").await, 200);
    // Who has no certificate is refused, and by a reason.
    let mut stranger = Wire::connect(pair.orders.inbound()).await;
    stranger.send("GET /stranger HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    assert_eq!(stranger.response().await.0.status(), 403);

    let requests = shows(&by_path, 2).await;
    assert_eq!(paths(&requests), both(sides, "/api/v1"));
    for request in &requests {
        let text = request.to_string();
        assert!(!text.contains("s3cr3t"), "{text}");
        let fields = |key: &str| -> Vec<(String, String)> {
            let fields = request[key].as_array().unwrap().iter();
            fields
                .map(|one| (one["name"].as_str().unwrap().into(), one["value"].as_str().unwrap().into()))
                .collect()
        };
        let has = |key: &str, name: &str, value: &str| {
            assert!(fields(key).contains(&(name.to_owned(), value.to_owned())), "{text}");
        };
        has("request_headers", "authorization", "[redacted]");
        has("request_headers", "x-api-key", "[redacted]");
        has("request_headers", "x-request", "told");
        has("response_headers", "set-cookie", "[redacted]");
        has("response_headers", "x-kept", "told");
        assert_eq!(
            (&request["status"], &request["method"], &request["tls"]),
            (&200.into(), &"GET".into(), &"mtls".into())
        );
        let ends = (pair.web.identity(), pair.orders.identity());
        match request["direction"].as_str().unwrap() {
            "inbound" => {
                assert_eq!(
                    (&request["workload"], &request["source"]),
                    (&"default/orders".into(), &ends.0.into())
                );
            }
            _ => {
                assert_eq!(
                    (&request["workload"], &request["destination"]),
                    (&"default/web".into(), &ends.1.into())
                );
                assert_eq!(request["service"], "default/orders:8080");
            }
        }
        assert!(request["duration_ns"].as_u64().unwrap() > 0, "{text}");
    }
    let refused = ("inbound".to_owned(), "/stranger".to_owned());
    let mut expected = both(sides, "/other/404");
    expected.insert(1, refused.clone());
    assert_eq!(paths(&shows(&by_status, 3).await), expected);
    assert_eq!(paths(&shows(&served, 1).await), [("inbound".to_owned(), "/other".to_owned())]);
    assert_eq!(shows(&of_service, 4).await.len(), 4);
    let outbound = |path: &str| ("outbound".to_owned(), path.to_owned());
    let expected = ["/api/v1", "/other", "/other/404"].map(outbound);
    assert_eq!(paths(&shows(&sent, 3).await), expected);
    let requests = shows(&by_reason, 1).await;
    assert_eq!((paths(&requests), &requests[0]["reason"]), (vec![refused], &"mtls_required".into()));
    // Ended by Ctrl-C, it is over at the proxies too; the others go on.
    by_path.signal(Signal::INT);
    assert!(by_path.wait().await.success(), "{}", by_path.stderr());
    runs(&pair.orders, 4.0).await;
    drop((by_status, served, of_service, sent, by_reason));
    runs(&pair.orders, 0.0).await;
    runs(&pair.web, 0.0).await;
    assert!(pair.world.metrics().await.sum("tulle_control_plane_taps", &[]).abs() < 0.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tap_of_a_busy_proxy_leaves_out_what_is_too_much_and_says_so_and_nothing_waits_for_it() {
    let pair = Pair::start(application().await, "http").await;
    let few = tap(&pair.world, &["default/web", "--max-rps", "5"], 1).await;
    let many = tap(&pair.world, &["default/web", "--max-rps", "1000", "--header", "*"], 1).await;
    runs(&pair.web, 2.0).await;
    let to = pair.web.outbound("orders");
    let asked: JoinSet<usize> = (0..8)
        .map(|_| async move {
            let mut wire = Wire::connect(to).await;
            for _ in 0..400 {
                wire.send("GET /busy HTTP/1.1\r\nhost: orders\r\n\r\n").await;
                assert_eq!(wire.response().await.0.status(), 200);
            }
            400
        })
        .collect();
    assert_eq!(asked.join_all().await.iter().sum::<usize>(), 3200);
    says(&few, "not shown of default/web: ").await;
    says(&few, "beyond 5 a second (--max-rps)").await;
    // Each was shown or counted, by both.
    let of = |result: &'static str| [("result", result)];
    eventually("every request is accounted for", async || {
        let metrics = pair.web.metrics().await;
        let [shown_, over, dropped] = ["shown", "over_rate", "dropped"]
            .map(|result| metrics.sum("tulle_tap_requests_total", &of(result)));
        let all = shown_ + over + dropped;
        let shown = shown(&few).len() + shown(&many).len();
        let as_said = shown as f64 <= shown_ && over > 2000.0 && (all - 6400.0).abs() < 0.1;
        if as_said { Ok(()) } else { Err(format!("{shown} of {shown_}, {over}, {dropped}")) }
    })
    .await;
    assert!(shown(&few).len() < 1000, "{}", shown(&few).len());
    assert!(!shown(&many).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_looks_on_and_does_not_read_holds_up_nobody() {
    let pair = Pair::start(application().await, "http").await;
    let mut deaf = Wire::connect(pair.world.metrics_address()).await;
    deaf.send("GET /tap?of=workload/default/web&per_second=1000&field=* HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await;
    assert_eq!(deaf.head().await.status(), 200);
    runs(&pair.web, 1.0).await;
    for _ in 0..20 {
        let mut wire = pair.web.connect("orders").await;
        for _ in 0..100 {
            wire.send("GET /unread HTTP/1.1\r\nhost: orders\r\n\r\n").await;
            assert_eq!(wire.response().await.0.status(), 200);
        }
    }
    // Who reads is not kept waiting by who does not.
    let reader = tap(&pair.world, &["default/web", "--path", "/read"], 1).await;
    runs(&pair.web, 2.0).await;
    assert_eq!(ask(&pair.web, "GET", "/read").await, 200);
    shows(&reader, 1).await;
    drop((deaf, reader));
    runs(&pair.web, 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tap_waits_for_proxies_that_come_and_ends_with_the_control_plane() {
    let app = application().await;
    let mut world = World::strict().await;
    world.service("orders", "http");
    let mut early = tap(&world, &["--direction", "inbound"], 0).await;
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    says(&early, "watching 1 proxy: default/orders").await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = world.workload("web").calls("orders").start().await;
    says(&early, "watching 2 proxies").await;
    runs(&orders, 1.0).await;
    assert_eq!(ask(&web, "GET", "/later").await, 200);
    shows(&early, 1).await;
    // Who comes in place of another joins too. It has a name of its own, since it would find the other's addresses by that one's.
    drop(orders);
    says(&early, "watching 1 proxy: default/web").await;
    let orders = world.workload("orders-2").serves("orders", app.address()).start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    runs(&orders, 1.0).await;
    // Told by the control plane that it ends, or not.
    world.control_plane().signal(Signal::TERM);
    assert_eq!(early.wait().await.code(), Some(1));
    assert!(early.stderr().contains("ask again once it is back"), "{}", early.stderr());
    runs(&web, 0.0).await;
    runs(&orders, 0.0).await;
    world.control_plane().wait().await;
    world.restart_control_plane().await;
    let mut late = tap(&world, &["--direction", "inbound"], 2).await;
    runs(&orders, 1.0).await;
    // It may hear only now where that is.
    web.reaches("orders").await;
    assert_eq!(ask(&web, "GET", "/again").await, 200);
    shows(&late, 1).await;
    world.kill_control_plane().await;
    assert_eq!(late.wait().await.code(), Some(1));
    assert!(late.stderr().contains("has gone, and with it the tap"), "{}", late.stderr());
    runs(&web, 0.0).await;
}

/// What is said of a tap that cannot be.
fn refused(world: &World, arguments: &[&str]) -> (Option<i32>, String) {
    let program = Program::new("tap", binary("tulle")).arg("tap");
    let program = arguments.iter().fold(program, |program, one| program.arg(*one));
    let output = program.flag("--control-plane", world.metrics_address().to_string()).output();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_tapped_is_said_with_what_can() {
    let pair = Pair::start(application().await, "http").await;
    for (arguments, status, expected) in [
        (&["default/wbe"][..], 1, "knows no workload default/wbe; did you mean default/web?"),
        (&["service/default/none"], 1, "knows no Service default/none; there are default/orders"),
        (&["-n", "elsewhere"], 1, "knows no namespace elsewhere; there are default"),
        (&["web"], 1, "of which namespace? say NAMESPACE/web, or add --namespace"),
        (&["--to", "default/none"], 1, "knows no Service default/none"),
        (&["--status", "7xx"], 2, "`7xx` is no status"),
        (&["--path", "api"], 2, "it begins with /"),
        (&["--reason", "polcy_denied"], 2, "did you mean policy_denied?"),
        (&["--header", "a b"], 2, "is no header field's name"),
        (&["--max-rps", "0"], 2, "is not from 1 to 1000"),
        (&["--peer", "a/b/c"], 1, "--peer: "),
    ] {
        let (found, said) = refused(&pair.world, arguments);
        assert_eq!(found, Some(status), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    let taps: Vec<Process> = {
        let mut taps = Vec::new();
        for _ in 0..8 {
            taps.push(tap(&pair.world, &[], 2).await);
        }
        taps
    };
    let (status, said) = refused(&pair.world, &[]);
    assert!(status == Some(1) && said.contains("8 taps run already"), "{said}");
    drop(taps);
    // Nothing of it for pages of browsers, and HEAD starts nothing.
    for (head, status) in [
        ("GET /tap HTTP/1.1\r\nhost: evil.example", 403),
        ("GET /tap HTTP/1.1\r\nhost: localhost\r\nsec-fetch-site: cross-site", 403),
        ("GET /tap HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example", 403),
        ("GET /load HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example", 403),
        ("GET /endpoints HTTP/1.1\r\nhost: localhost\r\nsec-fetch-site: cross-site", 403),
        ("HEAD /tap HTTP/1.1\r\nhost: localhost", 405),
        ("GET /tap?status=abc HTTP/1.1\r\nhost: localhost", 400),
    ] {
        let mut wire = Wire::connect(pair.world.metrics_address()).await;
        wire.send(format!("{head}\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(wire.head().await.status(), status, "{head}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let program = Program::new("tap", binary("tulle")).arg("tap").flag("--control-plane", nobody.to_string());
    let output = program.output();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains(&format!("no control plane's metrics port at {nobody} (see --control-plane)")),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn top_adds_up_what_is_asked_by_who_asks_whom_method_and_path() {
    let pair = Pair::start(application().await, "http").await;
    let program = Program::new("top", binary("tulle")).arg("top").arg("default/orders");
    let program = program.flag("--control-plane", pair.world.metrics_address().to_string());
    let mut top = Process::start(program.flag("--output", "json"), pair.world.folder());
    runs(&pair.orders, 1.0).await;
    for (method, path, times) in [("GET", "/often", 5), ("POST", "/often/500", 2), ("GET", "/once", 1)] {
        for _ in 0..times {
            ask(&pair.web, method, path).await;
        }
    }
    let last = eventually("all are counted", async || {
        let said = top.stdout();
        let last = said.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
        last.filter(|last| last["requests"] == 8).ok_or(said)
    })
    .await;
    let rows: Vec<_> = last["rows"].as_array().unwrap().iter().collect();
    let of = |row: &Value| (row["path"].clone(), row["count"].clone(), row["success_rate"].clone());
    assert_eq!(of(rows[0]), ("/often".into(), 5.into(), 1.0.into()));
    assert_eq!(of(rows[1]), ("/often/500".into(), 2.into(), 0.0.into()));
    assert_eq!(
        (&rows[0]["source"], &rows[0]["destination"], &rows[0]["method"]),
        (&"default/web".into(), &"default/orders".into(), &"GET".into())
    );
    let took = |row: &Value, which: &str| row[which].as_f64().unwrap();
    assert!(0.0 < took(rows[0], "best_ms") && took(rows[0], "best_ms") <= took(rows[0], "last_ms"));
    assert!(took(rows[0], "last_ms") <= took(rows[0], "worst_ms"));
    assert_eq!(last["not_shown"], 0);
    top.signal(Signal::INT);
    assert!(top.wait().await.success());
    runs(&pair.orders, 0.0).await;
}
