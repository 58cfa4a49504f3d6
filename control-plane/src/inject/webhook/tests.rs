use http_body_util::Empty;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tulle_certs::outside;

use super::super::keys::{self, Step, Stored};
use super::super::tests::{namespace, pod};
use super::*;

struct One;

impl Namespaces for One {
    async fn namespace(&self, name: &str) -> Option<Namespace> {
        (name == "shop").then(namespace)
    }
}

fn stored() -> Stored {
    let names = keys::names("tulle-system");
    match keys::step(None, None, &names, std::time::SystemTime::now()).unwrap() {
        Step::Store(stored) => stored,
        other => panic!("{other:?}"),
    }
}

struct Server {
    address: SocketAddr,
    stored: Stored,
    metrics: Metrics,
    tls: watch::Sender<Option<Arc<ServerConfig>>>,
}

async fn server() -> Server {
    let stored = stored();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, metrics) = (listener.local_addr().unwrap(), Metrics::new().unwrap());
    let (tls, served) = watch::channel(Some(stored.server_config().unwrap()));
    let webhook = Webhook::new(Settings::default(), One, metrics.clone());
    tokio::spawn(serve(listener, served, Arc::new(webhook)));
    Server { address, stored, metrics, tls }
}

impl Server {
    async fn connect(&self, trusted: &str, alpn: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
        let roots = rustls::pki_types::CertificateDer::pem_slice_iter(trusted.as_bytes());
        let client = outside::client(roots.map(Result::unwrap).collect(), alpn).unwrap();
        let name = ServerName::try_from(keys::names("tulle-system").remove(0)).unwrap();
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(client).connect(name, stream).await
    }

    /// What is answered to these bytes, until the server closes.
    async fn said(&self, sent: &[u8]) -> String {
        let mut stream = self.connect(&self.stored.authorities, &[b"http/1.1"]).await.unwrap();
        // It may have heard enough before the end.
        drop(stream.write_all(sent).await);
        let mut read = Vec::new();
        drop(stream.read_to_end(&mut read).await);
        String::from_utf8_lossy(&read).into_owned()
    }

    async fn post(&self, body: &[u8]) -> (u16, Value) {
        let mut request = format!(
            "POST /inject?timeout=10s HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend(body);
        let said = self.said(&request).await;
        let (head, body) = said.split_once("\r\n\r\n").unwrap_or((&said, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

fn question(object: &Value) -> Vec<u8> {
    let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    let request =
        json!({"uid": "u", "kind": kind, "operation": "CREATE", "namespace": "shop", "object": object});
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
        .to_string()
        .into_bytes()
}

#[tokio::test]
async fn the_api_server_is_answered_over_tls_that_it_trusts() {
    let server = server().await;
    let (status, answer) = server.post(&question(&pod())).await;
    assert_eq!((status, &answer["response"]["uid"]), (200, &json!("u")));
    assert_eq!(answer["response"]["allowed"], true);
    assert!(answer["response"]["patch"].is_string());
    let counted = server.metrics.injections.with_label_values(&["injected", ""]).get();
    assert_eq!((counted, server.metrics.injection_duration.get_sample_count()), (1, 1));
    // Another's certificate is not taken for it.
    assert!(server.connect(&stored().authorities, &[]).await.is_err());
}

#[tokio::test]
async fn of_a_namespace_that_nobody_knows_the_failure_policy_decides() {
    let server = server().await;
    let mut review: Value = serde_json::from_slice(&question(&pod())).unwrap();
    review["request"]["namespace"] = json!("new");
    assert_eq!(server.post(review.to_string().as_bytes()).await, (500, Value::Null));
    let counted = server.metrics.injections.with_label_values(&["failed", "namespace_unknown"]).get();
    assert_eq!(counted, 1);
}

#[tokio::test]
async fn http2_is_spoken_too() {
    let server = server().await;
    let stream = server.connect(&server.stored.authorities, &[b"h2"]).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://x/ready").body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn rubbish_is_told_so_and_harms_nobody() {
    let server = server().await;
    let mut slow = server.connect(&server.stored.authorities, &[b"http/1.1"]).await.unwrap();
    slow.write_all(b"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").await.unwrap();
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"POST /inject HTTP/1.1\r\n\r\n").await.unwrap();
    for body in ["", "{", "null", "[]", "{\"apiVersion\": \"v1\"}", "\u{0}\u{1}"] {
        assert_eq!(server.post(body.as_bytes()).await.0, 400, "{body:?}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(server.post(deep.as_bytes()).await.0, 400);
    assert_eq!(server.post(&vec![b' '; MAX_BODY + 1]).await.0, 413);
    for (request, status) in [
        ("GET /inject HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "405"),
        ("POST /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", "405"),
        ("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "404"),
        ("GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "200"),
        ("rubbish\r\n\r\n", "400"),
    ] {
        let said = server.said(request.as_bytes()).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {said}");
    }
    assert!(server.metrics.injections.with_label_values(&["malformed", ""]).get() >= 7);
    assert_eq!(server.post(&question(&pod())).await.0, 200);
    drop((slow, plain));
}

#[tokio::test]
async fn who_holds_connections_open_keeps_nobody_out() {
    let server = server().await;
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS + 20 {
        held.push(TcpStream::connect(server.address).await.unwrap());
    }
    let (status, _) = server.post(&question(&pod())).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn who_has_been_answered_is_kept_and_has_bytes_of_its_own() {
    let server = server().await;
    let stream = server.connect(&server.stored.authorities, &[b"h2"]).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let asked = || {
        let mut sender = sender.clone();
        async move {
            let body = Full::new(Bytes::from(question(&pod())));
            let request = Request::post("https://x/inject").body(body).unwrap();
            sender.send_request(request).await.map(|response| response.status().as_u16())
        }
    };
    assert_eq!(asked().await.unwrap(), 200);
    // Others hold connections, and more bytes than there are for them.
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS + 20 {
        held.push(TcpStream::connect(server.address).await.unwrap());
    }
    for _ in 0..BODIES / MAX_BODY + 2 {
        let mut slow = server.connect(&server.stored.authorities, &[b"http/1.1"]).await.unwrap();
        tokio::spawn(async move {
            let head = format!("POST /inject HTTP/1.1\r\nhost: x\r\ncontent-length: {MAX_BODY}\r\n\r\n");
            slow.write_all(head.as_bytes()).await.unwrap();
            drop(slow.write_all(&vec![b' '; MAX_BODY - 1]).await);
            std::future::pending::<()>().await
        });
    }
    assert_eq!(asked().await.unwrap(), 200);
}

#[tokio::test]
async fn so_many_reviews_have_their_turn_and_the_others_wait() {
    let metrics = Metrics::new().unwrap();
    let webhook = Webhook::new(Settings::default(), One, metrics.clone());
    let held = webhook.turns.acquire_many(u32::try_from(REVIEWS).unwrap()).await.unwrap();
    let (body, proof) = (question(&pod()), Proof::default());
    let mut waits = Box::pin(webhook.review(&body, Instant::now(), &proof));
    assert!(by_now(&mut waits).await.is_none(), "it has no turn yet");
    drop(held);
    assert_eq!(waits.await.status(), 200);
}

/// What has come of it by now.
async fn by_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    tokio::select! {
        biased;
        done = future => Some(done),
        () = std::future::ready(()) => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_review_that_never_has_its_turn_is_refused_in_time() {
    let metrics = Metrics::new().unwrap();
    let webhook = Webhook::new(Settings::default(), One, metrics.clone());
    let _held = webhook.turns.acquire_many(u32::try_from(REVIEWS).unwrap()).await.unwrap();
    let answer = webhook.review(&question(&pod()), Instant::now(), &Proof::default()).await;
    assert_eq!(answer.status(), 503);
    assert_eq!(metrics.injections.with_label_values(&["busy", ""]).get(), 1);
}

#[tokio::test]
async fn what_would_take_too_much_memory_is_refused() {
    let server = server().await;
    let mut large = pod();
    large["metadata"]["labels"] = (0..50_000).map(|n| (n.to_string(), json!(""))).collect();
    assert_eq!(server.post(&question(&large)).await.0, 413);
    assert_eq!(server.post(&vec![b' '; MAX_BODY + 1]).await.0, 413);
    assert_eq!(server.metrics.injections.with_label_values(&["too_large", ""]).get(), 2);
}

#[tokio::test]
async fn a_new_certificate_is_served_from_then_on() {
    let server = server().await;
    let next = stored();
    assert!(server.connect(&next.authorities, &[]).await.is_err());
    server.tls.send_replace(Some(next.server_config().unwrap()));
    server.connect(&next.authorities, &[]).await.unwrap();
    assert!(server.connect(&server.stored.authorities, &[]).await.is_err());
}
