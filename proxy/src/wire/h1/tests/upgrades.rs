use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Empty;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::{Body, Client, Closed, Exchange, Failure, Limits, OnUpgrade, Switched};
use super::{read_until, send, served};

const UPGRADE: &[u8] = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";

fn switching(status: StatusCode) -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = status;
    response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
    response.headers_mut().insert("upgrade", HeaderValue::from_static("echo"));
    response
}

fn client() -> (Client<DuplexStream>, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    (Client::new(ours, Limits::default()), theirs)
}

#[tokio::test]
async fn the_connection_is_handed_over_with_what_was_read_too_far() {
    for (request, status) in [
        (UPGRADE, StatusCode::SWITCHING_PROTOCOLS),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", StatusCode::OK),
    ] {
        let asked = Arc::new(Mutex::new(None));
        let handler = {
            let asked = Arc::clone(&asked);
            move |request: Request<Body>| {
                *asked.lock() = request.extensions().get().map(Exchange::on_upgrade);
                async move { switching(status) }
            }
        };
        let (mut io, closed) = served(handler);
        io.write_all(&[request, b"early"].concat()).await.unwrap();
        let head = read_until(&mut io, "\r\n\r\n").await;
        assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        assert!(head.contains("connection: upgrade"), "{head}");
        assert!(matches!(closed.await.unwrap(), Closed::Upgraded));
        let on_upgrade: OnUpgrade = asked.lock().take().unwrap();
        let mut upgraded = on_upgrade.await.unwrap();
        io.write_all(b" and late").await.unwrap();
        io.shutdown().await.unwrap();
        let mut got = String::new();
        upgraded.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "early and late");
        upgraded.write_all(b"answer").await.unwrap();
        upgraded.shutdown().await.unwrap();
        let mut answer = String::new();
        io.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
    }
}

#[tokio::test]
async fn who_waits_for_an_upgrade_that_is_refused_is_told() {
    let asked = Arc::new(Mutex::new(None));
    let handler = {
        let asked = Arc::clone(&asked);
        move |request: Request<Body>| {
            *asked.lock() = request.extensions().get().map(Exchange::on_upgrade);
            async { Response::new(Empty::<Bytes>::new()) }
        }
    };
    let (mut io, _closed) = served(handler);
    io.write_all(UPGRADE).await.unwrap();
    read_until(&mut io, "\r\n\r\n").await;
    let on_upgrade: OnUpgrade = asked.lock().take().unwrap();
    assert!(on_upgrade.await.is_none());
    // It stays HTTP.
    io.write_all(UPGRADE).await.unwrap();
    read_until(&mut io, "\r\n\r\n").await;
}

#[tokio::test]
async fn a_server_that_switches_hands_over_its_connection() {
    let (client, mut server) = client();
    let request = Request::get("/chat").header("connection", "upgrade").header("upgrade", "echo");
    server.write_all(&[SWITCHING, b"early"].concat()).await.unwrap();
    let given_back = |_: Client<DuplexStream>| panic!("it is no longer HTTP");
    let response =
        send(client, request.body(Empty::<Bytes>::new()).unwrap(), |_| (), given_back).await.unwrap();
    assert_eq!(response.status(), 101);
    let switched = response.extensions().get::<Switched>().unwrap();
    let mut upgraded = switched.take().unwrap();
    assert!(switched.take().is_none());
    drop(server);
    let mut got = String::new();
    upgraded.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "early");
}

#[tokio::test]
async fn a_server_may_not_switch_unasked() {
    let (client, mut server) = client();
    server.write_all(SWITCHING).await.unwrap();
    let request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
    let error = send(client, request, |_| (), drop).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Response(_)), "{error:?}");
}
