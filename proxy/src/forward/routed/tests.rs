use std::sync::Arc;
use std::time::Instant;

use futures_util::poll;
use http::{Request, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::super::{Worker, outbound, tests};
use crate::accept::{Accepted, Destination};
use crate::route::{Backend, Routes, StreamRoute, Table};
use crate::state::{ObjectName, ServiceState};

/// A proxy whose clients dial `shop`, a service with one application, to which `v1` leads as well.
struct Bench {
    worker: Arc<Worker>,
    near: TcpListener,
    application: TcpListener,
    shop: Arc<ServiceState>,
    v1: Arc<ServiceState>,
}

fn name(service: &str) -> ObjectName {
    ObjectName::new("default", service)
}

async fn bench() -> Bench {
    let worker = tests::lone_worker("web");
    let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = [application.local_addr().unwrap()];
    let [shop, v1] = ["shop", "v1"].map(|service| tests::knows(&worker, service, &endpoints));
    Bench { worker, near, application, shop, v1 }
}

impl Bench {
    /// A client's connection, and its service.
    async fn client(&self) -> (TcpStream, impl Future<Output = ()> + Send + use<>) {
        let stream = TcpStream::connect(self.near.local_addr().unwrap()).await.unwrap();
        let (accepted, client) = self.near.accept().await.unwrap();
        let destination = Destination::Service { service: name("shop"), port: 80 };
        let accepted = Accepted { stream: accepted, client, destination, at: Instant::now() };
        let worker = Arc::clone(&self.worker);
        (stream, async move { outbound::serve(&worker, accepted).await })
    }

    /// From now on all connections to `shop` follow a route to `v1`.
    fn routed(&self) {
        let backend = Backend {
            service: name("v1"),
            port: 80,
            label: "default/v1:80".into(),
            weight: 1,
            invalid: None,
            filters: None,
        };
        let route = StreamRoute {
            name: name("tcp"),
            label: "default/tcp".into(),
            ports: vec![80],
            server_names: Vec::new(),
            backends: [backend].into(),
        };
        let routes = Routes {
            client_namespace: "default".into(),
            service: name("shop"),
            routes: Vec::new(),
            streams: vec![route],
        };
        self.shop.set_routes(Some(Arc::new(Table::new(routes))));
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n";

#[tokio::test]
async fn a_connection_served_as_http_does_not_outlive_the_first_route_for_connections() {
    let bench = bench().await;
    let (mut client, served) = bench.client().await;
    let served = tokio::spawn(served);
    client.write_all(GET).await.unwrap();
    let (mut application, _) = bench.application.accept().await.unwrap();
    let mut request = [0; GET.len()];
    application.read_exact(&mut request).await.unwrap();
    application.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok") {
        assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
    }
    bench.routed();
    client.write_all(GET).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("x-tulle-error: route_changed\r\n"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    served.await.unwrap();
    assert!(poll!(Box::pin(application.read(&mut request))).is_pending(), "it was asked again");
}

#[tokio::test]
async fn an_http2_connection_is_told_to_go_by_its_next_request() {
    let bench = bench().await;
    let (client, served) = bench.client().await;
    let served = tokio::spawn(served);
    let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = || Request::get("http://shop/").version(Version::HTTP_2).body(()).unwrap();
    let (first, _) = requests.send_request(request(), true).unwrap();
    let (application, _) = bench.application.accept().await.unwrap();
    let mut application = h2::server::handshake(application).await.unwrap();
    let (_, mut answer) = application.accept().await.unwrap().unwrap();
    tokio::spawn(async move { application.accept().await.map(drop) });
    bench.routed();
    let (second, _) = requests.send_request(request(), true).unwrap();
    let refused = second.await.unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["x-tulle-error"], "route_changed");
    // What was under way goes on.
    answer.send_response(http::Response::new(()), true).unwrap();
    assert_eq!(first.await.unwrap().status(), 200);
    // Nobody gives up the sender: it is the proxy that closes.
    connection.await.unwrap().unwrap();
    served.await.unwrap();
}

#[tokio::test]
async fn what_turns_out_not_to_be_http_does_not_go_round_a_route_that_has_come_meanwhile() {
    let bench = bench().await;
    let (mut client, served) = bench.client().await;
    let mut served = Box::pin(served);
    assert!(poll!(&mut served).is_pending());
    bench.routed();
    client.write_all(b"\x00\x01").await.unwrap();
    served.await;
    assert_eq!(client.read(&mut [0; 1]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(poll!(Box::pin(bench.application.accept())).is_pending(), "it was connected");
}

#[tokio::test]
async fn the_backend_of_a_relayed_connection_counts_as_used() {
    let bench = bench().await;
    bench.routed();
    let unused = Arc::strong_count(&bench.v1);
    let (client, served) = bench.client().await;
    let served = tokio::spawn(served);
    let (mut application, _) = bench.application.accept().await.unwrap();
    application.write_all(b"hello").await.unwrap();
    let mut client = client;
    client.read_exact(&mut [0; 5]).await.unwrap();
    assert!(Arc::strong_count(&bench.v1) > unused);
    drop((client, application));
    served.await.unwrap();
    assert_eq!(Arc::strong_count(&bench.v1), unused);
}
