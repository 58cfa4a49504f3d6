//! The mesh behind the rules: programs dial plain addresses and listen on their own ports, and nobody notices.

use std::net::{IpAddr, SocketAddr};

use http::Response;
use serde_json::json;
use tulle_tests::app::{App, full};
use tulle_tests::netns::in_a_node;
use tulle_tests::pod::{Cluster, Pod};
use tulle_tests::{Mode, Wire, eventually};

/// An application in `pod` that answers with the pod's name.
pub(crate) fn says_its_name(pod: &Pod) -> App {
    let name = pod.name().to_owned();
    App::http1_on(pod.listen("[::]:8080"), move |_| {
        let name = name.clone();
        async move { Response::new(full(name)) }
    })
}

/// Its addresses, of both families.
fn addresses(pod: &Pod) -> [IpAddr; 2] {
    [pod.v4().into(), pod.v6().into()]
}

#[test]
fn r22_a_plain_url_to_a_virtual_ip_is_mutual_tls_between_the_proxies() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let (web, orders) = (cluster.meshed("web").await, cluster.meshed("orders").await);
        let _app = says_its_name(&orders);
        let to = cluster.service("orders", "http", &[&orders]);
        for (ip, client) in [to.v4, to.v6].into_iter().zip(addresses(&web)) {
            web.reaches(ip, "orders").await;
            // The proxy of the destination has seen who called, from where, and over what.
            let came =
                [("direction", json!("inbound")), ("source", json!(web.identity())), ("status", json!(200))];
            let record = orders.logs(&came).await;
            assert_eq!(record["tls"], "mtls", "{record}");
            assert!(client.is_ipv4() || ip.is_ipv6());
        }
        let went = [
            ("direction", json!("outbound")),
            ("service", json!("default/orders:8080")),
            ("status", json!(200)),
        ];
        let record = web.logs(&went).await;
        assert_eq!(
            (&record["tls"], &record["destination"]),
            (&json!("mtls"), &json!(orders.identity())),
            "{record}"
        );
    });
}

#[test]
fn a_pod_that_is_dialled_directly_must_still_prove_who_it_is() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let (web, orders) = (cluster.meshed("web").await, cluster.meshed("orders").await);
        let _app = says_its_name(&orders);
        cluster.service("orders", "http", &[&orders]);
        for ip in addresses(&orders) {
            web.reaches(ip, "orders").await;
            let to = SocketAddr::new(ip, 8080).to_string();
            let record = web.logs(&[("endpoint", json!(to)), ("status", json!(200))]).await;
            assert_eq!(
                (&record["tls"], &record["destination"]),
                (&json!("mtls"), &json!(orders.identity())),
                "{record}"
            );
        }
        // Somebody else at that address: never in plaintext.
        cluster.world().yaml("service-orders.yaml", "");
        let stranger = cluster.meshed("stranger").await;
        let _app = says_its_name(&stranger);
        cluster.service_as("orders", "http", &[(&stranger, "orders")]);
        for ip in addresses(&stranger) {
            eventually("the stranger is refused", async || match web.curl(ip).await {
                Err(said) if said.contains("not who it should be") => Ok(()),
                Ok(said) | Err(said) => Err(said),
            })
            .await;
        }
    });
}

#[test]
fn a_headless_service_means_its_pods_and_each_must_prove_who_it_is() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let pods = [cluster.meshed("db-0").await, cluster.meshed("db-1").await];
        let _apps = pods.each_ref().map(says_its_name);
        let mut web = cluster.pod("web");
        let flags = [("--dns-listen", "127.0.0.1:15053,[::1]:15053")];
        web.join(&cluster, &["--dns=true"], &flags).await;
        cluster.headless("db", "http", &[&pods[0], &pods[1]]);
        let nobody = "10.96.0.10".parse().expect("an address");
        eventually("the name means a pod", async || match web.curl_by_name("http://db:8080", nobody).await {
            Ok(said) if said.starts_with("db-") => Ok(()),
            Ok(said) | Err(said) => Err(said),
        })
        .await;
        // Each of them, by what a client has looked up.
        for pod in &pods {
            for ip in addresses(pod) {
                assert_eq!(web.curl(ip).await.as_deref(), Ok(pod.name()));
                let to = SocketAddr::new(ip, 8080).to_string();
                let record = web.logs(&[("endpoint", json!(to)), ("status", json!(200))]).await;
                assert_eq!(
                    (&record["tls"], &record["destination"]),
                    (&json!("mtls"), &json!(pod.identity())),
                    "{record}"
                );
            }
        }
    });
}

#[test]
fn r13_strict_mode_lets_nobody_in_from_outside_the_mesh() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let (outsider, orders) = (cluster.pod("outsider"), cluster.meshed("orders").await);
        let _app = says_its_name(&orders);
        cluster.service("orders", "http", &[&orders]);
        for ip in addresses(&orders) {
            let said = outsider.curl(ip).await.expect_err("a refusal");
            assert!(said.contains("from the mesh only"), "{said}");
        }
        // Its metrics are for everybody, and its other ports lead nowhere.
        let metrics = outsider.run("curl", &["-sS", &format!("http://{}:15020/metrics", orders.v4())]).await;
        assert!(metrics.stdout.contains("tulle_build_info"), "{metrics:?}");
        for port in [15001, 15006] {
            for ip in addresses(&orders) {
                outsider.curl_port(SocketAddr::new(ip, port)).await.expect_err("a loop");
            }
        }
    });
}

#[test]
fn permissive_mode_lets_plain_text_in_at_the_address_that_was_dialled() {
    in_a_node(async || {
        let cluster = Cluster::start(Mode::Permissive).await;
        let (outsider, orders) = (cluster.pod("outsider"), cluster.meshed("orders").await);
        // It listens on one address only: the proxy dials that, not loopback.
        let v4 = App::http1_on(orders.listen(&format!("{}:8080", orders.v4())), |_| async {
            Response::new(full("four"))
        });
        let _v6 = App::http1_on(orders.listen(&format!("[{}]:8080", orders.v6())), |_| async {
            Response::new(full("six"))
        });
        outsider.reaches(orders.v4().into(), "four").await;
        outsider.reaches(orders.v6().into(), "six").await;
        drop(v4);
        let said = outsider.curl(orders.v4().into()).await.expect_err("nobody listens there any more");
        assert!(said.contains("cannot connect to 10.77.0."), "{said}");
    });
}

#[test]
fn what_is_outside_the_mesh_is_passed_through() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let (web, outside) = (cluster.meshed("web").await, cluster.pod("outside"));
        let _app = says_its_name(&outside);
        for ip in addresses(&outside) {
            web.reaches(ip, "outside").await;
            let to = SocketAddr::new(ip, 8080).to_string();
            let record = web.logs(&[("endpoint", json!(to)), ("status", json!(200))]).await;
            assert_eq!(record["direction"], "outbound", "{record}");
        }
        // Bytes of no protocol, to a port that is opaque.
        let _echo = App::tcp_on(outside.listen("[::]:6379"), async |mut stream: tokio::net::TcpStream| {
            let (mut reader, mut writer) = stream.split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        });
        for ip in addresses(&outside) {
            let mut wire: Wire = web.connect(SocketAddr::new(ip, 6379));
            wire.send(b"\x00\x01PING").await;
            assert_eq!(wire.exactly(6).await, b"\x00\x01PING");
        }
    });
}

#[test]
fn loopback_and_the_pods_own_addresses_are_untouched() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let web = cluster.meshed("web").await;
        let _app = says_its_name(&web);
        cluster.service("web", "http", &[&web]);
        let loopback = ["127.0.0.1", "127.9.9.9", "::1"].map(|ip| ip.parse().expect("an address"));
        for ip in loopback.into_iter().chain(addresses(&web)) {
            assert_eq!(web.curl(ip).await.as_deref(), Ok("web"), "{ip}");
        }
        assert_eq!(web.access_log(), Vec::<serde_json::Value>::new());
    });
}

#[test]
fn a_pod_that_calls_its_own_service_asks_its_own_policy_and_no_other() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let web = cluster.meshed("web").await;
        let _app = says_its_name(&web);
        let to = cluster.service("web", "http", &[&web]);
        for ip in [to.v4, to.v6] {
            web.reaches(ip, "web").await;
        }
        // To an address of its own, of either family.
        let own = addresses(&web).map(|ip| json!(SocketAddr::new(ip, 8080).to_string()));
        eventually("the way to itself is logged", async || {
            let log = web.access_log();
            let went =
                |record: &serde_json::Value| own.contains(&record["endpoint"]) && record["status"] == 200;
            if log.iter().filter(|record| went(record)).count() >= 2 {
                Ok(())
            } else {
                Err(format!("{log:#?}"))
            }
        })
        .await;
        let log = web.access_log();
        assert!(log.iter().all(|record| record["direction"] == "outbound"), "{log:#?}");
        cluster.world().yaml(
            "others.yaml",
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {name: others, namespace: default}\nspec:\n  targetRefs: [{group: '', kind: Service, name: web}]\n  \
             action: ALLOW\n  rules: [{name: others, from: [{identities: [default/orders]}]}]\n",
        );
        for ip in [to.v4, to.v6] {
            eventually("the pod may not call itself", async || match web.curl(ip).await {
                Err(said) if said.contains("403") && said.contains("no rule of port 8080") => Ok(()),
                Ok(said) | Err(said) => Err(said),
            })
            .await;
        }
    });
}

#[test]
fn r22_a_request_goes_through_the_rules_byte_for_byte() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let (web, orders) = (cluster.meshed("web").await, cluster.meshed("orders").await);
        const REQUEST: &str = "POST /A%2fb/../c?q=%20 HTTP/1.1\r\nHOST: Orders:8080\r\nX-cAsE: Kept\r\nx-again: 1\r\n\
                               X-Again: 2\r\ncontent-LENGTH: 4\r\n\r\nbody";
        let _app = App::tcp_on(orders.listen("[::]:8080"), async |stream| {
            let mut wire = Wire::new(stream);
            let came = wire.exactly(REQUEST.len()).await;
            let same = if came == REQUEST.as_bytes() { "same" } else { "other" };
            wire.send(format!("HTTP/1.1 200 Fine By Me\r\nX-SAME: {same}\r\ncontent-length: 0\r\n\r\n"))
                .await;
        });
        let to = cluster.service("orders", "http", &[&orders]);
        for ip in [to.v4, to.v6] {
            let said = eventually("the application answers", async || {
                let mut wire = web.connect(SocketAddr::new(ip, 8080));
                wire.send(REQUEST).await;
                let (head, _) = wire.response().await;
                if head.status() == 200 { Ok(head) } else { Err(format!("{head:?}")) }
            })
            .await;
            assert!(said.fields.contains(&("X-SAME".to_owned(), "same".to_owned())), "{said:?}");
            assert_eq!(said.line, "HTTP/1.1 200 Fine By Me");
        }
    });
}
