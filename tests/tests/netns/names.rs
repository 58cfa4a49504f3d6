//! Names in pods without cluster DNS: queries are led to the proxy, wherever they were going.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use tulle_tests::eventually;
use tulle_tests::netns::in_a_node;
use tulle_tests::pod::{Cluster, Pod};

use crate::mesh::says_its_name;

fn name_server(pod: &Pod, address: [u8; 4]) -> tokio::task::JoinHandle<()> {
    answers_names(pod.namespace().enter(|| UdpSocket::bind("[::]:53")).expect("a port"), address)
}

/// A name server that has one address for every name, and no other kind of record.
pub(crate) fn answers_names(socket: UdpSocket, address: [u8; 4]) -> tokio::task::JoinHandle<()> {
    socket.set_nonblocking(true).expect("a socket");
    let socket = tokio::net::UdpSocket::from_std(socket).expect("a runtime");
    tokio::spawn(async move {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query).await {
            // The question (RFC 1035 §4.1): after twelve bytes, labels, a zero, type and class.
            let labels = 12 + query[12..length].iter().position(|byte| *byte == 0).expect("a name");
            let question = &query[12..labels + 5];
            let is_a = question[question.len() - 4..] == [0, 1, 0, 1];
            let mut answer = query[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            answer.extend(question);
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(address);
            }
            let _ = socket.send_to(&answer, from).await;
        }
    })
}

#[test]
fn plain_urls_by_name_lead_into_the_mesh_and_out_of_it() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let (orders, outside) = (cluster.meshed("orders").await, cluster.pod("outside"));
        let _apps = [says_its_name(&orders), says_its_name(&outside)];
        let server = name_server(&outside, outside.v4().octets());
        let mut web = cluster.pod("web");
        let servers = SocketAddr::new(outside.v4().into(), 53).to_string();
        let flags = [("--dns-listen", "127.0.0.1:15053,[::1]:15053"), ("--dns-servers", servers.as_str())];
        web.join(&cluster, &["--dns=true"], &flags).await;
        cluster.service("orders", "http", &[&orders]);
        // Nobody has these addresses: the queries never get there.
        for nobody in ["10.96.0.10", "fd96::10"].map(|ip| ip.parse::<IpAddr>().expect("an address")) {
            for (url, what) in [
                ("http://orders:8080", "orders"),
                ("http://orders.default.svc.cluster.local:8080", "orders"),
                ("http://outside.example:8080", "outside"),
            ] {
                eventually(&format!("{url} is answered"), async || {
                    match web.curl_by_name(url, nobody).await {
                        Ok(said) if said == what => Ok(()),
                        Ok(said) | Err(said) => Err(said),
                    }
                })
                .await;
            }
        }
        server.abort();
    });
}
