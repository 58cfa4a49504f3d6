use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::service::service_fn;
use tokio::net::TcpListener;

use super::*;

fn request(path: &str) -> Request<Bytes> {
    Request::get(path).header(USER_AGENT, "kube-probe/1.31").body(Bytes::new()).unwrap()
}

fn prober(made: &str) -> Prober {
    let (signal, drain) = drain::channel();
    // A signal that is gone begins the drain.
    Box::leak(Box::new(signal));
    prober_of(made, drain)
}

fn prober_of(made: &str, drain: drain::Watch) -> Prober {
    let written = format!(r#"{{"made": [{made}]}}"#);
    let arguments = ["x", "--probes", &written].map(Into::into);
    let loaded = crate::config::load(clap::Command::new("x"), arguments, []).unwrap();
    Prober::new(&loaded.config.probes, loaded.config.probes_address, None, drain).unwrap()
}

async fn said(prober: &Prober, path: &str) -> (u16, String) {
    let answer = prober.answer(&request(path)).await;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// An application that answers each request with `status`, a header of its own, and what it was asked; how often it was.
async fn application(status: u16) -> (u16, Arc<AtomicUsize>) {
    let (port, asked, _) = application_at(0, status).await;
    (port, asked)
}

/// As [`application`], at a port; and what ends it.
async fn application_at(port: u16, status: u16) -> (u16, Arc<AtomicUsize>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let (port, asked) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    count.fetch_add(1, Ordering::SeqCst);
                    let field = |name: &str| {
                        request
                            .headers()
                            .get(name)
                            .and_then(|value| value.to_str().ok())
                            .unwrap_or("-")
                            .to_owned()
                    };
                    let text = format!(
                        "{} {} {} {}",
                        request.uri(),
                        field("host"),
                        field("user-agent"),
                        field("x-a")
                    );
                    let response =
                        Response::builder().status(status).header("location", "http://elsewhere.example/");
                    async move { response.body(Full::new(Bytes::from(text))) }
                });
                let served = hyper::server::conn::http1::Builder::new();
                drop(served.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    (port, asked, serving)
}

/// A port that nobody listens on; taken while the socket lives.
fn dead() -> (TcpSocket, u16) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

#[tokio::test]
async fn a_tcp_probe_passes_where_somebody_listens_and_only_there() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_held, dead) = dead();
    let probe = |kind: &str, port: u16| {
        format!(r#"{{"container": "db", "kind": "{kind}", "port": {port}, "tcp": {{}}}}"#)
    };
    let port = listener.local_addr().unwrap().port();
    let prober = prober(&[probe("liveness", port), probe("readiness", dead)].join(","));
    assert_eq!(said(&prober, "/probe/db/liveness").await.0, 200);
    let (status, why) = said(&prober, "/probe/db/readiness").await;
    assert_eq!(status, 503);
    assert!(why.contains(&format!("cannot connect to 127.0.0.1:{dead}")), "{why}");
}

#[tokio::test]
async fn only_what_is_declared_is_asked() {
    let (port, asked) = application(200).await;
    let prober = prober(&format!(
        r#"{{"container": "web", "kind": "liveness", "port": {port}, "http": {{"path": "/live"}}}}"#
    ));
    for path in
        ["/probe/web/readiness", "/probe/web/liveness/", "/probe/web", "/probe/", "/probe/web/liveness/../x"]
    {
        assert_eq!(said(&prober, path).await.0, 404, "{path}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    // Neither a query nor a header of whoever asks goes further.
    let mut request = request("/probe/web/liveness?path=/other&host=10.0.0.1");
    request.headers_mut().insert("x-a", HeaderValue::from_static("mine"));
    request.headers_mut().insert(HOST, HeaderValue::from_static("10.0.0.1"));
    let answer = prober.answer(&request).await;
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, format!("/live 127.0.0.1:{port} kube-probe/1.31 -"));
}

#[tokio::test]
async fn the_path_the_query_and_the_headers_are_those_declared() {
    let (port, _) = application(200).await;
    let prober = prober(&format!(
        r#"{{"container": "web", "kind": "startup", "port": {port},
            "http": {{"path": "/up?deep=1&x=%20", "headers": [["Host", "web.example"], ["x-a", "b"], ["User-Agent", "mine"]]}}}}"#
    ));
    let (status, body) = said(&prober, "/probe/web/startup").await;
    assert_eq!((status, body.as_str()), (200, "/up?deep=1&x=%20 web.example mine b"));
}

#[tokio::test]
async fn the_status_is_the_applications_and_a_redirection_is_not_followed() {
    for (status, told) in [(204, 200), (302, 200), (404, 404), (500, 500), (503, 503)] {
        let (port, asked) = application(status).await;
        let prober = prober(&format!(
            r#"{{"container": "a", "kind": "readiness", "port": {port}, "http": {{"path": "/"}}}}"#
        ));
        let answer = prober.answer(&request("/probe/a/readiness")).await;
        assert_eq!(answer.status(), told, "{status}");
        assert!(!answer.headers().contains_key("location"));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn who_does_not_answer_in_time_or_speaks_no_tls_does_not_pass() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let silent_prober = prober(&format!(
        r#"{{"container": "a", "kind": "liveness", "port": {port}, "https": {{"path": "/"}}, "timeout": 1}}"#
    ));
    let (status, why) = said(&silent_prober, "/probe/a/liveness").await;
    assert_eq!(status, 503);
    assert!(why.contains("within 1s"), "{why}");
    let (port, _) = application(200).await;
    let plain = prober(&format!(
        r#"{{"container": "a", "kind": "liveness", "port": {port}, "https": {{"path": "/"}}, "timeout": 60}}"#
    ));
    let (status, why) = said(&plain, "/probe/a/liveness").await;
    assert_eq!(status, 503);
    assert!(why.contains("TLS handshake"), "{why}");
}

#[tokio::test]
async fn those_who_ask_at_the_same_time_share_a_probe() {
    let (port, asked) = application(200).await;
    let prober = prober(&format!(
        r#"{{"container": "a", "kind": "liveness", "port": {port}, "http": {{"path": "/"}}}}"#
    ));
    let many = (0..100).map(|_| said(&prober, "/probe/a/liveness"));
    for (status, _) in futures_util::future::join_all(many).await {
        assert_eq!(status, 200);
    }
    assert!(asked.load(Ordering::SeqCst) <= 3, "{asked:?}");
    // Later ones have a probe of their own.
    let before = asked.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(1)).await;
    said(&prober, "/probe/a/liveness").await;
    assert_eq!(asked.load(Ordering::SeqCst), before + 1);
}

#[tokio::test]
async fn a_hook_is_made_once_for_each_start_of_the_application() {
    let (port, asked, serving) = application_at(0, 202).await;
    let prober = prober(&format!(
        r#"{{"container": "a", "kind": "post-start", "port": {port}, "http": {{"path": "/warm-up"}}}}"#
    ));
    for _ in 0..3 {
        assert_eq!(said(&prober, "/probe/a/post-start").await.0, 200);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    // A container that starts anew listens anew.
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    assert_eq!(said(&prober, "/probe/a/post-start").await.0, 503);
    let (_, asked, _) = application_at(port, 500).await;
    for _ in 0..3 {
        assert_eq!(said(&prober, "/probe/a/post-start").await.0, 500);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_hook_of_the_end_waits_for_the_drain() {
    let (port, asked) = application(200).await;
    let (signal, drain) = drain::channel();
    let prober = prober_of(
        &format!(
            r#"{{"container": "a", "kind": "pre-stop", "port": {port}, "http": {{"path": "/shutdown"}}}}"#
        ),
        drain,
    );
    let begin = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        signal.start();
    };
    let ((status, _), ()) = tokio::join!(said(&prober, "/probe/a/pre-stop"), begin);
    assert_eq!((status, asked.load(Ordering::SeqCst)), (200, 1));
    assert_eq!(said(&prober, "/probe/a/pre-stop").await.0, 200);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hook_of_the_end_is_refused_while_the_proxy_does_not_drain() {
    let (port, asked) = application(200).await;
    let prober = prober(&format!(
        r#"{{"container": "a", "kind": "pre-stop", "port": {port}, "http": {{"path": "/shutdown"}}}}"#
    ));
    let (status, why) = said(&prober, "/probe/a/pre-stop").await;
    assert_eq!((status, asked.load(Ordering::SeqCst)), (503, 0));
    assert!(why.contains("does not drain"), "{why}");
}
