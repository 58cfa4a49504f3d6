//! Real servers, each with its own real client, through two proxies in strict mode behind the real rules.
//!
//! Ignored by `cargo test`: they need Debian's packages of all these servers, and root. `.ci/run servers` installs them and
//! runs this; a program that is missing fails its test. See docs/testing.md.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod databases;
mod queues;
mod shells;
mod web;

use std::net::SocketAddr;

use serde_json::{Value, json};
use tulle_tests::pod::{Cluster, Pod, Port};
use tulle_tests::{Process, deep, eventually};

/// Two pods in a strict mesh: the clients', and the servers' with a Service for each port.
pub(crate) struct Mesh {
    _cluster: Cluster,
    client: Pod,
    server: Pod,
    ports: Vec<(Port, [SocketAddr; 2])>,
}

/// A port about which nothing is said.
pub(crate) const fn undeclared(number: u16) -> Port {
    Port { number, name: "main", app_protocol: "" }
}

/// A port whose `appProtocol` is said.
pub(crate) const fn declared(number: u16, app_protocol: &'static str) -> Port {
    Port { number, name: "main", app_protocol }
}

/// A port whose name says what it speaks.
pub(crate) const fn named(number: u16, name: &'static str) -> Port {
    Port { number, name, app_protocol: "" }
}

/// The bytes of what is called large: less than what each server takes at once.
pub(crate) fn large() -> usize {
    if deep() { 60_000_000 } else { 4_000_000 }
}

fn service(port: &Port) -> String {
    format!("default/p{0}:{0}", port.number)
}

// === impl Mesh ===

impl Mesh {
    /// Both pods behind our rules, and Services with these ports, which must differ.
    pub(crate) async fn start(ports: &[Port]) -> Self {
        let cluster = Cluster::strict().await;
        let (mut client, mut server) = (cluster.pod("client"), cluster.pod("server"));
        let services = ports.iter().map(|port| {
            let ips = cluster.service_of(&format!("p{}", port.number), port, &[(&server, Some("server"))]);
            (*port, [ips.v4, ips.v6].map(|ip| SocketAddr::new(ip, port.number)))
        });
        let ports = services.collect();
        server.join(&cluster, &[], &[]).await;
        client.join(&cluster, &[], &[]).await;
        Self { _cluster: cluster, client, server, ports }
    }

    /// Starts a server by lines of shell, and waits until it listens on all these ports.
    pub(crate) async fn serve(&self, lines: &str, ports: &[Port]) -> Process {
        let mut process = self.server.shell(lines);
        for port in ports {
            let own = SocketAddr::from(([127, 0, 0, 1], port.number));
            eventually(&format!("port {} is listened on", port.number), async || {
                if let Some(status) = process.ended() {
                    panic!("the server ended: {status}\n{}", process.tail());
                }
                // Loopback is not led through the proxy.
                let connect = || std::net::TcpStream::connect(own);
                self.server.namespace().enter(connect).map(drop).map_err(|error| error.to_string())
            })
            .await;
        }
        process
    }

    /// Each port's virtual IPs, of both families.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.ports.iter().flat_map(|(_, addresses)| *addresses)
    }

    /// What lines of shell in the client's pod write; they must succeed.
    pub(crate) async fn client(&self, lines: &str) -> String {
        let mut process = self.client.shell(lines);
        let status = process.wait().await;
        assert!(status.success(), "{lines}: {status}\n{}", process.tail());
        process.stdout()
    }

    /// Opaque bytes have gone to each port through both proxies, under mutual TLS: at least so many up and down. Nothing
    /// else was on the way.
    pub(crate) async fn has_relayed(&self, up: usize, down: usize) {
        for (port, _) in &self.ports {
            for record in self.ways(port, &[("protocol", json!("TCP"))]).await {
                assert!(record["reason"].is_null(), "{record}");
            }
            let service = service(port);
            eventually(&format!("{service} has had {up} and {down} bytes"), async || {
                let log = self.client.access_log();
                let sum = |field: &str| {
                    let of_port = log.iter().filter(|record| record["service"] == service);
                    of_port.filter_map(|record| record[field].as_u64()).sum::<u64>()
                };
                let sums = [sum("bytes_in"), sum("bytes_out")].map(|sum| usize::try_from(sum).unwrap());
                if sums[0] >= up && sums[1] >= down { Ok(()) } else { Err(format!("{sums:?}")) }
            })
            .await;
        }
        self.nothing_in_plaintext();
    }

    /// What both proxies told of a connection or request to this port that has these fields; each names the other.
    pub(crate) async fn ways(&self, port: &Port, fields: &[(&str, Value)]) -> [Value; 2] {
        let went = [fields, &[("direction", json!("outbound")), ("service", json!(service(port)))]].concat();
        let went = self.client.logs(&went).await;
        assert_eq!(
            (&went["tls"], &went["destination"]),
            (&json!("mtls"), &json!(self.server.identity())),
            "{went}"
        );
        let came =
            [fields, &[("direction", json!("inbound")), ("endpoint", went["endpoint"].clone())]].concat();
        let came = self.server.logs(&came).await;
        assert_eq!(
            (&came["tls"], &came["source"]),
            (&json!("mtls"), &json!(self.client.identity())),
            "{came}"
        );
        [went, came]
    }

    /// Whatever went or came was under mutual TLS.
    pub(crate) fn nothing_in_plaintext(&self) {
        for record in self.client.access_log().into_iter().chain(self.server.access_log()) {
            assert_eq!(record["tls"], "mtls", "{record}");
        }
    }
}
