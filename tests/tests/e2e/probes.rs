//! What a pod's container asks of its proxy: probes in the kubelet's place, and the drain of its `preStop` hook.

use std::sync::Arc;

use http::Response;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use tulle_certs::serving::ServingAuthority;
use tulle_tests::app::{App, full};
use tulle_tests::{Program, Wire, Workload, World, binary};

/// An HTTPS server that nobody trusts, with one of these protocols; it answers 204 where it is asked as the probe says.
async fn https(alpn: &'static [u8]) -> App {
    let now = std::time::SystemTime::now();
    let day = std::time::Duration::from_secs(86_400);
    let authority = ServingAuthority::generate("nobody", day, now).unwrap();
    let serving = authority.issue(&["elsewhere.example".to_owned()], day, now).unwrap();
    let config = serving.server_config(&[alpn]).unwrap();
    App::tcp(move |stream: TcpStream| {
        let acceptor = TlsAcceptor::from(Arc::clone(&config));
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                let host = request.uri().host().map(str::to_owned);
                let host = host.or_else(|| Some(request.headers().get("host")?.to_str().ok()?.to_owned()));
                let is_right =
                    request.uri().path_and_query().is_some_and(|path| path.as_str() == "/health?a=1&b=%20")
                        && host.as_deref() == Some("vault.example")
                        && request.headers().get("x-probe").is_some_and(|value| value == "yes");
                let status = if is_right { 204 } else { 418 };
                Ok::<_, std::convert::Infallible>(Response::builder().status(status).body(full("")).unwrap())
            });
            let io = TokioIo::new(stream);
            if is_http2 {
                let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                drop(builder.serve_connection(io, service).await);
            } else {
                drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
            }
        }
    })
    .await
}

async fn probe(web: &Workload, path: &str) -> (u16, String) {
    let mut wire = Wire::connect(web.public()).await;
    wire.send(format!("GET {path} HTTP/1.1\r\nhost: 10.0.0.1:15020\r\nuser-agent: kube-probe/1.31\r\nconnection: close\r\n\r\n")).await;
    let (head, body) = wire.response().await;
    (head.status(), String::from_utf8(body).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn r25_probes_are_made_to_listeners_https_servers_and_dead_ports() {
    let world = World::strict().await;
    let (listener, vault, vault2) = (App::echo().await, https(b"http/1.1").await, https(b"h2").await);
    let dead = TcpSocket::new_v4().unwrap();
    dead.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let tcp = |kind: &str, port: u16| {
        format!(r#"{{"container": "db", "kind": "{kind}", "port": {port}, "tcp": {{}}}}"#)
    };
    let asked =
        r#"{"path": "/health?a=1&b=%20", "headers": [["Host", "vault.example"], ["x-probe", "yes"]]}"#;
    let tls = |name: &str, port: u16, asked: &str| {
        format!(
            r#"{{"container": "{name}", "kind": "readiness", "port": {port}, "timeout": 60, "https": {asked}}}"#
        )
    };
    let made = [
        tcp("liveness", listener.address().port()),
        tcp("readiness", dead.local_addr().unwrap().port()),
        tls("vault", vault.address().port(), asked),
        tls("vault2", vault2.address().port(), asked),
        tls("other", vault.address().port(), r#"{"path": "/"}"#),
    ];
    let probes = format!(r#"{{"made": [{}]}}"#, made.join(", "));
    let web = world.workload("web").setting("--probes", &probes).start().await;
    assert_eq!(probe(&web, "/probe/db/liveness").await.0, 200);
    let (status, why) = probe(&web, "/probe/db/readiness").await;
    assert!(status == 503 && why.contains("cannot connect"), "{status} {why}");
    assert_eq!(probe(&web, "/probe/vault/readiness").await.0, 200);
    assert_eq!(probe(&web, "/probe/vault2/readiness").await.0, 200);
    assert_eq!(probe(&web, "/probe/other/readiness").await.0, 418);
    assert_eq!(probe(&web, "/probe/vault/liveness").await.0, 404);
    // The loopback listener knows nothing of them.
    let mut wire = Wire::connect(web.admin()).await;
    wire.send("GET /probe/db/liveness HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert_eq!(wire.response().await.0.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn r05_the_proxys_own_program_begins_its_drain() {
    let world = World::strict().await;
    let orders = App::http1(async |_| Response::new(full("hello"))).await;
    world.service("orders", "http");
    let orders = world.workload("orders").serves("orders", orders.address()).start().await;
    let drain = |address: String| {
        Program::new("drain", binary("tulle-proxy")).arg("drain").flag("--admin-address", address)
    };
    let done = drain(orders.admin().to_string()).output();
    assert!(done.status.success(), "{done:?}");
    orders.unready().await;
    // Where there is no proxy it says so, at once.
    let free = TcpSocket::new_v4().unwrap();
    free.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = free.local_addr().unwrap().to_string();
    let failed = drain(nobody.clone()).output();
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && said.contains(&nobody) && said.contains("drain"), "{said}");
}
