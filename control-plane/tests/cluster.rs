//! The binary at the API server of a cluster: what it says while that is away, and once everything has been read.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says where")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// An API server with one Service, which is busy until it is told otherwise.
async fn api_server(serves: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serves = Arc::clone(&serves);
            let service = service_fn(move |request| {
                let serves = Arc::clone(&serves);
                async move { Ok::<_, Infallible>(answer(&request, serves.load(Ordering::Relaxed)).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

async fn answer(request: &Request<Incoming>, serves: bool) -> Response<Full<Bytes>> {
    let query = request.uri().query().unwrap_or_default();
    let (code, text) = if !serves {
        (StatusCode::SERVICE_UNAVAILABLE, "etcd is away".to_owned())
    } else if query.contains("watch=true") {
        // Nothing happens.
        std::future::pending().await
    } else if request.uri().path() == "/api/v1/services" {
        let service = json!({
            "metadata": {"namespace": "shop", "name": "orders", "resourceVersion": "1"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]},
        });
        let list = json!({"metadata": {"resourceVersion": "1"}, "items": [service]});
        (StatusCode::OK, list.to_string())
    } else if query.contains("limit=") {
        (StatusCode::OK, json!({"metadata": {"resourceVersion": "1"}, "items": []}).to_string())
    } else {
        (StatusCode::NOT_FOUND, json!({"kind": "Status", "code": 404}).to_string())
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    response
}

/// Ends with the test.
struct ControlPlane(Child);

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

impl ControlPlane {
    fn start(folder: &Path, api_server: SocketAddr) -> Self {
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "t",
            "clusters": [{"name": "t", "cluster": {"server": format!("http://{api_server}")}}],
            "users": [{"name": "t", "user": {"token": "t"}}],
            "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}],
        });
        std::fs::write(folder.join("kubeconfig"), kubeconfig.to_string()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_tulle-control-plane"))
            .env("KUBECONFIG", folder.join("kubeconfig"))
            .args(["--source", "kubernetes", "--log-level", "warn"])
            .args(["--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"])
            .arg("--state-dir")
            .arg(folder.join("state"))
            .arg("--addresses-file")
            .arg(folder.join("addresses"))
            .spawn()
            .unwrap();
        Self(child)
    }

    /// SIGTERM, and what comes of it.
    async fn stop(mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        eventually("it ends", async || self.0.try_wait().unwrap()).await
    }
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..1_800 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not so: {what}");
}

async fn metrics_address(folder: &Path) -> SocketAddr {
    eventually("its ports are bound", async || {
        let text = std::fs::read_to_string(folder.join("addresses")).ok()?;
        let bound: serde_json::Value = serde_json::from_str(&text).unwrap();
        bound["metrics"].as_str().unwrap().parse().ok()
    })
    .await
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    // A resource is a protobuf, with text in it.
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_lives_while_the_api_server_is_away_and_is_ready_once_everything_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let serves = Arc::new(AtomicBool::new(false));
    let control_plane = ControlPlane::start(folder.path(), api_server(Arc::clone(&serves)).await);
    let metrics = metrics_address(folder.path()).await;
    assert!(get(metrics, "/live").await.starts_with("HTTP/1.1 200"));
    let ready = get(metrics, "/ready").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("sources have not been read"), "{ready}");
    eventually("it is told why", async || {
        let page = get(metrics, "/metrics").await;
        let told = r#"tulle_control_plane_watch_errors_total{kind="Service",reason="refused"}"#;
        page.contains(told).then_some(())
    })
    .await;
    serves.store(true, Ordering::Relaxed);
    eventually("it is ready", async || {
        get(metrics, "/ready").await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    assert!(get(metrics, "/resources/Service/shop/orders").await.contains("10.96.0.7"));
    assert!(control_plane.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_when_it_is_told_to_though_it_never_was_ready() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane =
        ControlPlane::start(folder.path(), api_server(Arc::new(AtomicBool::new(false))).await);
    metrics_address(folder.path()).await;
    assert!(control_plane.stop().await.success());
}
