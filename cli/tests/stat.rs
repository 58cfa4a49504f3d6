//! `tulle stat | edges | routes` as their users run them, with control planes that say what a test wants.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tulle_control_plane::load::{Labels, Meshed, ProxyLoad, Row, Seen};

fn tulle(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tulle")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Answers each connection with the next of these, and the last for ever; `None`: closes it without an answer.
fn control_plane(answers: Vec<Option<(u16, String)>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (at, stream) in listener.incoming().enumerate() {
            let Some((status, body)) = &answers[at.min(answers.len() - 1)] else { continue };
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            assert!(request.starts_with(b"GET /load HTTP/1.1\r\n"));
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            // Who asked may be gone.
            let _gone = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    address
}

/// What a control plane says that one proxy is connected to, which sent so many requests to a Service.
fn seen(proxy: &str, requests: u64) -> String {
    let service = "shop/orders:80".to_owned();
    let labels =
        Labels { tls: "mtls".to_owned(), peer: "spiffe://a/b".to_owned(), service, ..Labels::default() };
    let row = Row { labels, requests, requests_per_second: requests as f64 / 60.0, ..Row::default() };
    let proxy = ProxyLoad {
        proxy: proxy.to_owned(),
        identity: "spiffe://a/c".to_owned(),
        connected: 1,
        most_connected: 1,
        has_reported: true,
        rows: vec![row],
        ..ProxyLoad::default()
    };
    let services = [("shop/orders".to_owned(), Meshed { endpoints: 2, meshed: 1 })].into();
    Seen { window_seconds: 60, proxies: vec![proxy], services }.to_string()
}

fn says(proxy: &str, requests: u64) -> String {
    control_plane(vec![Some((200, seen(proxy, requests)))]).to_string()
}

/// Where nobody listens.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn wrong_arguments_say_what_is_meant() {
    for (arguments, status, part) in [
        (&["stat", "pods"][..], 2, "[possible values: services, workloads]"),
        (&["stat", "services", "Shop/Orders"], 2, "is not NAMESPACE/NAME or NAME"),
        (&["stat", "services", "orders"], 1, "of which namespace? say NAMESPACE/orders, or add --namespace"),
        (&["stat", "services", "shop/orders", "-n", "bank"], 1, "shop/orders is not in the namespace bank"),
        (&["stat", "--to", "shop/orders"], 1, "--to is for `tulle stat workloads`"),
        (&["stat", "workloads", "--to", "shop/a", "--from", "shop/b"], 2, "cannot be used with"),
        (&["stat", "-n", "a/b"], 2, "is not the name of a namespace"),
        (&["edges", "--from", "web"], 1, "of which namespace? say NAMESPACE/web"),
        (&["edges", "shop/web"], 2, "unexpected argument"),
        (&["routes", "orders"], 1, "of which namespace?"),
        (&["routes", "--control-plane", "localhost"], 2, "--control-plane"),
        (&["routes", "-o", "yaml"], 2, "[possible values: table, wide, json]"),
    ] {
        let output = tulle(arguments);
        assert_eq!((output.status.code(), stdout(&output)), (Some(status), String::new()), "{arguments:?}");
        assert!(stderr(&output).contains(part), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn what_is_not_there_is_named() {
    let address = says("shop/web", 30);
    for (arguments, part) in [
        (&["stat", "services", "shop/order"][..], "the control plane knows no Service shop/order"),
        (
            &["stat", "workloads", "shop/orders"],
            "no proxy of a workload shop/orders has reported in the last minute; there are shop/web",
        ),
        (&["edges", "--to", "shop/nobody"], "no proxy of a workload shop/nobody"),
        (&["routes", "shop/orders", "--from", "shop/we"], "there are shop/web"),
    ] {
        let output = tulle(&[arguments, &["--control-plane", &address]].concat());
        assert_eq!((output.status.code(), stdout(&output)), (Some(1), String::new()), "{arguments:?}");
        assert!(stderr(&output).contains(part), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_control_plane_that_does_not_answer_is_named_with_what_to_do() {
    let (gone, old) =
        (nobody(), control_plane(vec![Some((404, "there are /metrics\n".to_owned()))]).to_string());
    let other = control_plane(vec![Some((200, "{\"proxies\": 7}".to_owned()))]).to_string();
    let quiet = control_plane(vec![Some((200, Seen::default().to_string()))]).to_string();
    for (address, part) in [
        (
            &gone,
            "--control-plane ADDRESS says where it is, and in a cluster `kubectl port-forward` leads there",
        ),
        (&old, "answers /load with 404 Not Found: there are /metrics"),
        (&other, "is it another version?"),
        (&quiet, "no proxy reports to the control plane at 127.0.0.1:"),
    ] {
        let output = tulle(&["stat", "--control-plane", address]);
        assert_eq!((output.status.code(), stdout(&output)), (Some(1), String::new()), "{part}");
        assert!(stderr(&output).contains(part) && stderr(&output).contains(address), "{}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    }
}

#[test]
fn control_planes_add_up_and_one_that_is_gone_is_named() {
    let (one, other, gone) = (says("shop/web", 30), says("shop/web", 60), nobody());
    let planes = ["--control-plane", &one, "--control-plane", &other, "--control-plane", &gone];
    let output = tulle(&[&["stat"], &planes[..]].concat());
    let text = stdout(&output);
    assert!(output.status.success(), "{}", stderr(&output));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].starts_with("shop/orders   1/2      100.00%   1.5 "), "{text}");
    assert!(
        lines[2].starts_with("what its proxies carry is not here: no control plane's metrics port at "),
        "{text}"
    );
    assert!(lines[2].contains(&gone) && lines.len() == 3, "{text}");
    let output = tulle(&[&["stat", "workloads", "-o", "json"], &planes[..]].concat());
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["rows"][0]["meshed"], "2/2", "{json}");
    assert_eq!(json["unreachable"].as_array().unwrap().len(), 1, "{json}");
    assert_eq!((&json["incomplete"], &json["untold"]), (&serde_json::json!([]), &serde_json::json!({})));
}

#[test]
fn who_watches_waits_for_a_control_plane_that_is_restarted() {
    let said = |requests| Some((200, seen("shop/web", requests)));
    let address = control_plane(vec![said(1), None, None, said(2)]).to_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tulle"))
        .args(["stat", "--watch", "-o", "json", "--control-plane", &address])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for requests in [1, 2] {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["rows"][0]["requests"], requests, "{line}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(told.starts_with("tulle: no control plane's metrics port at "), "{told}");
}
