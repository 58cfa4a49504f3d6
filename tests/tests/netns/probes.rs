//! The kubelet's probes in a pod behind the rules, in strict mode (R25): those that stay are let in by exactly their port and path, those that
//! lead to the proxy are made by it, where a connection through the rules would always come about.

use std::net::SocketAddr;

use tulle_tests::app::{App, full};
use tulle_tests::eventually;
use tulle_tests::netns::in_a_node;
use tulle_tests::pod::{Cluster, Pod};

const PROBES: &str = r#"{
    "made": [
        {"container": "web", "kind": "liveness", "port": 8080, "tcp": {}},
        {"container": "db", "kind": "liveness", "port": 5432, "tcp": {}}
    ],
    "allowed": [{"port": 8080, "path": "/ready?deep=1"}]
}"#;

/// The status and reason of a GET by somebody without an identity: the kubelet, or not.
async fn asks(node: &Pod, to: SocketAddr, path: &str) -> String {
    let mut wire = node.connect(to);
    wire.send(format!(
        "GET {path} HTTP/1.1\r\nhost: {to}\r\nuser-agent: kube-probe/1.31\r\nconnection: close\r\n\r\n"
    ))
    .await;
    let head = wire.response().await.0;
    format!("{} {}", head.status(), head.reason().unwrap_or_default())
}

#[test]
fn r25_probes_pass_under_strict_mutual_tls_by_exactly_their_port_and_path() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let (node, mut orders) = (cluster.pod("node"), cluster.pod("orders"));
        let address = orders.v4().to_string();
        orders.join(&cluster, &[], &[("--probes", PROBES), ("--probes-address", &address)]).await;
        let _app = App::http1_on(orders.listen("[::]:8080"), async |_| http::Response::new(full("up")));
        let _other = App::http1_on(orders.listen("[::]:9090"), async |_| http::Response::new(full("up")));
        cluster.service("orders", "http", &[&orders]);
        let at = |port| SocketAddr::new(orders.v4().into(), port);
        eventually("the probe passes", async || match &*asks(&node, at(8080), "/ready?deep=1").await {
            "200 " => Ok(()),
            said => Err(said.to_owned()),
        })
        .await;
        assert_eq!(asks(&node, SocketAddr::new(orders.v6().into(), 8080), "/ready?deep=1").await, "200 ");
        for (port, path) in [
            (8080, "/"),
            (8080, "/ready"),
            (8080, "/ready?deep=2"),
            (8080, "/ready/?deep=1"),
            (8080, "/x/../ready?deep=1"),
            (9090, "/ready?deep=1"),
        ] {
            assert_eq!(asks(&node, at(port), path).await, "403 mtls_required", "{port}{path}");
        }
        // Nor does a connection become another's for a probe on it.
        let mut wire = node.connect(at(8080));
        for (path, status) in [("/ready?deep=1", 200), ("/", 403)] {
            wire.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
            assert_eq!(wire.response().await.0.status(), status, "{path}");
        }
        orders.logs(&[("rule", "probe".into())]).await;
        let allowed = orders
            .metrics()
            .await
            .sum("tulle_policy_verdicts_total", &[("verdict", "allow"), ("rule", "probe")]);
        assert!(allowed >= 3.0, "{allowed}");
    });
}

#[test]
fn r25_a_probe_that_connects_is_made_by_the_proxy_and_finds_what_is_dead() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let (node, mut orders) = (cluster.pod("node"), cluster.pod("orders"));
        let address = orders.v4().to_string();
        orders.join(&cluster, &[], &[("--probes", PROBES), ("--probes-address", &address)]).await;
        let probe = |path| asks(&node, orders.public(), path);
        assert_eq!(probe("/probe/web/liveness").await, "503 ");
        let app = App::tcp_on(orders.listen("[::]:8080"), async |_| ());
        assert_eq!(probe("/probe/web/liveness").await, "200 ");
        assert_eq!(probe("/probe/db/liveness").await, "503 ");
        // Through the rules a connection to the dead port comes about all the same.
        assert!(node.try_connect(SocketAddr::new(orders.v4().into(), 5432)).is_ok());
        for nothing in ["/probe/web/readiness", "/probe/other/liveness", "/probe/"] {
            assert_eq!(probe(nothing).await, "404 ", "{nothing}");
        }
        drop(app);
        eventually("the probe fails", async || {
            match &*asks(&node, orders.public(), "/probe/web/liveness").await {
                "503 " => Ok(()),
                said => Err(said.to_owned()),
            }
        })
        .await;
    });
}
