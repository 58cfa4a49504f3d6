use std::sync::Arc;

use http::header::{HeaderName, ORIGIN};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use super::*;

#[derive(Default)]
struct Fake {
    missing: Mutex<Option<String>>,
    done: Mutex<Vec<String>>,
    no_log: bool,
    prober: Option<Prober>,
}

impl AdminState for Fake {
    fn readiness(&self) -> Result<(), String> {
        self.missing.lock().clone().map_or(Ok(()), Err)
    }
    fn metrics(&self) -> String {
        "x 1\n".to_owned()
    }
    fn open_metrics(&self) -> String {
        "x 1\n# EOF\n".to_owned()
    }
    fn config_dump(&self) -> Value {
        json!({"services": []})
    }
    fn connections(&self) -> Value {
        json!([])
    }
    fn certs(&self) -> Value {
        Value::Null
    }
    fn authz(&self, parameters: Vec<(String, String)>) -> Result<Value, String> {
        if parameters.is_empty() { Err("nothing is asked".to_owned()) } else { Ok(json!(parameters)) }
    }
    fn log_level(&self) -> Option<String> {
        (!self.no_log).then(|| "info".to_owned())
    }
    fn set_log_level(&self, directives: &str) -> Result<(), String> {
        if directives == "bad" {
            return Err("no level".to_owned());
        }
        self.done.lock().push(directives.to_owned());
        Ok(())
    }
    fn drain(&self) {
        self.done.lock().push("drain".to_owned());
    }
    fn shutdown(&self) {
        self.done.lock().push("shutdown".to_owned());
    }
    fn prober(&self) -> Option<&Prober> {
        self.prober.as_ref()
    }
}

fn ask(
    face: Face,
    method: &str,
    uri: &str,
    headers: &[(&str, &str)],
    body: &'static str,
    state: &Fake,
) -> Answer {
    let mut request =
        Request::builder().method(method).uri(uri).body(Bytes::from_static(body.as_bytes())).unwrap();
    for (name, value) in headers {
        request
            .headers_mut()
            .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    answer(face, &request, state)
}

fn get(face: Face, path: &str, state: &Fake) -> Answer {
    ask(face, "GET", path, &[("host", "localhost:15000")], "", state)
}

async fn body(answer: Answer) -> String {
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn the_public_face_serves_metrics_and_probes() {
    let state = Fake::default();
    let metrics = get(Face::Public, "/metrics?name=x", &state);
    assert_eq!(metrics.headers()[CONTENT_TYPE], "text/plain; version=0.0.4");
    assert_eq!(body(metrics).await, "x 1\n");
    let accept = ("accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    let metrics = ask(Face::Public, "GET", "/metrics", &[accept], "", &state);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(metrics.headers()[CONTENT_TYPE], kind);
    assert_eq!(body(metrics).await, "x 1\n# EOF\n");
    assert_eq!(get(Face::Public, "/live", &state).status(), 200);
    assert_eq!(get(Face::Public, "/ready", &state).status(), 200);
    *state.missing.lock() = Some("no certificate yet".to_owned());
    let ready = get(Face::Public, "/ready", &state);
    assert_eq!(ready.status(), 503);
    assert!(body(ready).await.contains("no certificate yet"));
}

#[test]
fn the_public_face_changes_nothing() {
    let state = Fake::default();
    for path in PUBLIC.iter().chain(LOCAL).map(|known| known.path) {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
            let status = ask(Face::Public, method, path, &[], "", &state).status();
            assert!(status == 405 || status == 404, "{method} {path}: {status}");
        }
    }
    for path in LOCAL.iter().map(|known| known.path) {
        assert_eq!(get(Face::Public, path, &state).status(), 404, "{path}");
    }
    assert!(state.done.lock().is_empty());
}

#[tokio::test]
async fn what_policy_is_asked_comes_decoded() {
    let state = Fake::default();
    let answer = get(Face::Local, "/authz?port=80&path=%2Fa%252F+b&x&=%zz", &state);
    assert_eq!(answer.status(), 200);
    let asked: Value = serde_json::from_str(&body(answer).await).unwrap();
    assert_eq!(asked, json!([["port", "80"], ["path", "/a%2F b"], ["x", ""], ["", "%zz"]]));
    let answer = get(Face::Local, "/authz", &state);
    assert_eq!(answer.status(), 400);
    assert_eq!(body(answer).await, "nothing is asked\n");
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let state = Fake::default();
    let answer = get(Face::Local, "/drain", &state);
    assert_eq!(answer.status(), 405);
    assert_eq!(answer.headers()[ALLOW], "POST");
    let answer = ask(Face::Local, "DELETE", "/log-level", &[], "", &state);
    assert_eq!(answer.headers()[ALLOW], "GET, HEAD, PUT");
    let answer = get(Face::Local, "/nonsense", &state);
    assert_eq!(answer.status(), 404);
    assert!(body(answer).await.contains("/config_dump"));
}

#[tokio::test]
async fn the_local_face_does_what_it_is_told() {
    let state = Fake::default();
    let host = &[("host", "[::1]:15000")];
    assert_eq!(body(get(Face::Local, "/log-level", &state)).await, "info\n");
    assert_eq!(ask(Face::Local, "PUT", "/log-level", host, " debug\n", &state).status(), 200);
    assert_eq!(ask(Face::Local, "PUT", "/log-level", host, "bad", &state).status(), 400);
    assert_eq!(ask(Face::Local, "PUT", "/log-level", host, "", &state).status(), 400);
    assert_eq!(ask(Face::Local, "POST", "/drain", host, "", &state).status(), 202);
    assert_eq!(ask(Face::LocalSocket, "POST", "/shutdown", &[("host", "any")], "", &state).status(), 202);
    assert_eq!(*state.done.lock(), ["debug", "drain", "shutdown"]);
    let dump: Value = serde_json::from_str(&body(get(Face::Local, "/config_dump", &state)).await).unwrap();
    assert_eq!(dump, json!({"services": []}));
    let silent = Fake { no_log: true, ..Fake::default() };
    assert_eq!(get(Face::Local, "/log-level", &silent).status(), 501);
}

#[test]
fn web_pages_cannot_reach_the_local_face() {
    let state = Fake::default();
    for (headers, allowed) in [
        (vec![("host", "localhost")], true),
        (vec![("host", "LOCALHOST:15000")], true),
        (vec![("host", "127.0.0.1:15000")], true),
        (vec![("host", "127.8.8.8")], true),
        (vec![("host", "[::1]")], true),
        (vec![], true),
        (vec![("host", "localhost"), ("sec-fetch-site", "none")], true),
        (vec![("host", "attacker.example")], false),
        (vec![("host", "localhost.attacker.example:15000")], false),
        (vec![("host", "10.0.0.1:15000")], false),
        (vec![("host", "localhost"), ("host", "attacker.example")], false),
        (vec![("host", "")], false),
        (vec![("host", "127.0.0.1"), ("origin", "http://attacker.example")], false),
        (vec![("host", "127.0.0.1"), ("origin", "null")], false),
        (vec![("host", "127.0.0.1"), ("sec-fetch-site", "cross-site")], false),
    ] {
        let status = ask(Face::Local, "POST", "/shutdown", &headers, "", &state).status();
        assert_eq!(status, if allowed { 202 } else { 403 }, "{headers:?}");
    }
    let absolute =
        ask(Face::Local, "POST", "http://attacker.example/shutdown", &[("host", "localhost")], "", &state);
    assert_eq!(absolute.status(), 403);
    assert!(!HeaderMap::new().contains_key(ORIGIN));
}

/// Starts a listener and returns its address.
async fn started(face: Face) -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (address, tokio::spawn(serve(Listener::Tcp(listener), face, Arc::new(Fake::default()))))
}

async fn exchange(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may answer and close before it has read all.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn it_speaks_http() {
    let (address, task) = started(Face::Public).await;
    let answer = exchange(address, "GET /metrics HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nx 1\n"), "{answer}");
    let answer = exchange(address, "HEAD /metrics HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("content-length: 4\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    task.abort();
}

#[tokio::test]
async fn heads_and_bodies_are_bounded() {
    let (address, task) = started(Face::Local).await;
    let large = "x".repeat(5000);
    let request = format!(
        "PUT /log-level HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 5000\r\n\r\n{large}"
    );
    assert!(exchange(address, &request).await.starts_with("HTTP/1.1 413"));
    let head = format!("GET /certs HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    let answer = exchange(address, &head).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert!(exchange(address, "nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_nothing_is_closed() {
    let (address, task) = started(Face::Public).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /met").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"));
    task.abort();
}

#[tokio::test]
async fn who_opens_many_connections_and_says_nothing_keeps_nobody_from_asking() {
    let (address, task) = started(Face::Public).await;
    let mut silent = Vec::new();
    for _ in 0..serve::MAX_CONNECTIONS {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let answer = exchange(address, "GET /live HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    // It did not wait for them to be given up: only the oldest had to go.
    assert_eq!(silent[0].read(&mut [0]).await.unwrap(), 0);
    let mut newest = silent.pop().unwrap();
    newest.write_all(b"GET /live HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    newest.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    task.abort();
}

#[tokio::test]
async fn who_opens_many_connections_cuts_off_nobody_elses_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let written = format!(
        r#"{{"made": [{{"container": "a", "kind": "liveness", "port": {}, "http": {{"path": "/"}}, "timeout": 60}}]}}"#,
        silent.local_addr().unwrap().port()
    );
    let loaded =
        crate::config::load(clap::Command::new("x"), ["x", "--probes", &written].map(Into::into), []);
    let config = loaded.unwrap().config;
    let (_signal, drain) = crate::drain::channel();
    let prober = Prober::new(&config.probes, config.probes_address, None, drain).unwrap();
    let state = Fake { prober: Some(prober), ..Fake::default() };
    let task = tokio::spawn(serve(Listener::Tcp(listener), Face::Public, Arc::new(state)));
    let mut asking = TcpStream::connect(address).await.unwrap();
    asking.write_all(b"GET /probe/a/liveness HTTP/1.1\r\nhost: any\r\n\r\n").await.unwrap();
    // It is under way once the application is asked.
    let (mut application, _) = silent.accept().await.unwrap();
    let mut many = Vec::new();
    for _ in 0..2 * serve::MAX_CONNECTIONS {
        many.push(TcpStream::connect(address).await.unwrap());
    }
    assert_eq!(many[0].read(&mut [0]).await.unwrap(), 0, "the oldest that asks nothing goes");
    application.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    asking.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    task.abort();
}

#[tokio::test]
async fn the_unix_socket_is_for_its_owner_and_replaces_a_dead_one() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    drop(bind_unix(&path).unwrap());
    assert!(path.exists(), "left behind");
    let listener = bind_unix(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(bind_unix(&path).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    let task = tokio::spawn(serve(Listener::Unix(listener), Face::LocalSocket, Arc::new(Fake::default())));
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /certs HTTP/1.1\r\nhost: tulle\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("null\n"), "{answer}");
    task.abort();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(bind_unix(&file).unwrap_err().to_string().contains("no socket"));
}
