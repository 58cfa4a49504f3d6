//! Servers that speak first, and clients that are late, wherever they are dialled: nothing is declared.

use std::net::SocketAddr;

use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tulle_tests::app::App;
use tulle_tests::netns::in_a_node;
use tulle_tests::pod::{Cluster, Pod};
use tulle_tests::{Wire, eventually};

/// Greets on 8080 whoever connects, and answers a line.
fn greets(pod: &Pod) -> App {
    App::tcp_on(pod.listen("[::]:8080"), |stream: TcpStream| async move {
        let mut wire = Wire::new(stream);
        wire.send("220 ready\r\n").await;
        if let Some(line) = wire.until(b"\r\n").await {
            wire.send([b"you said ", &line[..]].concat()).await;
        }
    })
}

#[test]
fn r01_a_server_that_speaks_first_is_heard_at_virtual_ips_at_pods_and_outside_the_mesh() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let (web, mail) = (cluster.meshed("web").await, cluster.meshed("mail").await);
        let outside = cluster.pod("outside");
        let _apps = [greets(&mail), greets(&outside)];
        let service = cluster.service("mail", "", &[&mail]);
        for (ips, tls) in [
            ([service.v4, service.v6], "mtls"),
            ([mail.v4().into(), mail.v6().into()], "mtls"),
            ([outside.v4().into(), outside.v6().into()], "none"),
        ] {
            for ip in ips {
                eventually("it is known who answers there", async || {
                    let mut wire = web.connect(SocketAddr::new(ip, 8080));
                    let read = wire.stream().read_exact(&mut [0; 3]).await;
                    read.map(drop).map_err(|error| error.to_string())
                })
                .await;
            }
            for ip in [ips[0], ips[1], ips[0], ips[1]] {
                let mut wire = web.connect(SocketAddr::new(ip, 8080));
                assert_eq!(wire.line().await, "220 ready");
                wire.send("HELO\r\n").await;
                assert_eq!(wire.line().await, "you said HELO");
            }
            let record = web.logs(&[("detected", json!("server_first")), ("tls", json!(tls))]).await;
            assert_eq!(record["direction"], "outbound", "{record}");
        }
    });
}

#[test]
fn r01_a_late_request_to_an_address_outside_the_mesh_is_http() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let (web, outside) = (cluster.meshed("web").await, cluster.pod("outside"));
        let (opened, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        let _app = App::tcp_on(outside.listen("[::]:8080"), move |stream: TcpStream| {
            let _ = opened.send(());
            async move {
                let mut wire = Wire::new(stream);
                while wire.try_head().await.is_some() {
                    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                }
            }
        });
        let mut wire = web.connect(SocketAddr::new(outside.v4().into(), 8080));
        accepted.recv().await.expect("the server is opened though nothing was said");
        wire.send("GET /late HTTP/1.1\r\nhost: outside\r\n\r\n").await;
        assert_eq!(wire.response().await.1, b"ok");
        let record = web.logs(&[("protocol", json!("HTTP/1.1")), ("path", json!("/late"))]).await;
        assert_eq!(record["status"], 200, "{record}");
    });
}
