//! What leaves the mesh, by EgressPolicy: from YAML to the bytes on the wire.

use std::net::{IpAddr, SocketAddr};

use http::Response;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tulle_tests::app::{App, full};
use tulle_tests::identity::{self, Identity};
use tulle_tests::netns::in_a_node;
use tulle_tests::pod::{Cluster, Pod};
use tulle_tests::{Wire, eventually};

use super::mesh::says_its_name;

/// A meshed pod `web`, and a pod outside the mesh that speaks HTTP on 8080, TLS of its own on 8443, and returns what it gets
/// on 6379, an opaque port, and 7777.
struct Border {
    cluster: Cluster,
    web: Pod,
    outside: Pod,
    _apps: [App; 4],
}

impl Border {
    async fn new() -> Self {
        let cluster = Cluster::strict().await;
        let (web, outside) = (cluster.meshed("web").await, cluster.pod("outside"));
        let own = Identity::issue(&identity::authority(&identity::trust_domain()), "own");
        let acceptor = tokio_rustls::TlsAcceptor::from(own.server(&[]));
        let tls = App::tcp_on(outside.listen("[::]:8443"), move |stream| {
            let acceptor = acceptor.clone();
            async move {
                // A client that is denied never gets here.
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut buffer = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    stream.write_all(&buffer[..count]).await.unwrap();
                }
            }
        });
        let echo = |port| {
            App::tcp_on(outside.listen(port), async |mut stream: TcpStream| {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            })
        };
        let apps = [says_its_name(&outside), tls, echo("[::]:6379"), echo("[::]:7777")];
        Self { cluster, web, outside, _apps: apps }
    }

    /// Writes the policy of the namespace: what follows `spec:`.
    fn policy(&self, spec: &str) {
        self.cluster.world().yaml("egress.yaml", &policy("leave", spec));
    }

    fn addresses(&self) -> [IpAddr; 2] {
        [self.outside.v4().into(), self.outside.v6().into()]
    }

    /// What `http://<to>:8080/` answers with this `Host`: the body, or the status and the reason.
    async fn get(&self, to: IpAddr, host: &str) -> Result<String, (u16, String, String)> {
        let mut wire = self.web.connect(SocketAddr::new(to, 8080));
        wire.send(format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")).await;
        let (head, body) = wire.response().await;
        let body = String::from_utf8(body).expect("text");
        match head.reason() {
            None => Ok(body),
            Some(reason) => {
                assert_eq!(head.get("x-tulle-error-by"), Some("default/web/outbound"));
                Err((head.status(), reason.to_owned(), body))
            }
        }
    }

    /// Waits until a request to `host` is answered from outside, or denied.
    async fn settles(&self, host: &str, allowed: bool) {
        let [v4, _] = self.addresses();
        eventually(&format!("{host} is allowed: {allowed}"), async || match self.get(v4, host).await {
            Ok(_) if allowed => Ok(()),
            Err((403, reason, _)) if !allowed && reason == "egress_denied" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// A TLS connection to the server outside under this name.
    async fn tls(&self, to: IpAddr, name: &str) -> std::io::Result<Wire<TlsStream<TcpStream>>> {
        let stream = self.web.connect(SocketAddr::new(to, 8443)).into_stream();
        identity::connect_as(stream, name).await
    }

    /// Whether bytes to `port` come back.
    async fn echoes(&self, to: IpAddr, port: u16) -> bool {
        let Ok(mut wire) = self.web.try_connect(SocketAddr::new(to, port)) else { return false };
        let _ = wire.try_send(b"\x00\x01ping").await;
        let mut came = [0; 6];
        matches!(wire.stream().read_exact(&mut came).await, Ok(6)) && came == *b"\x00\x01ping"
    }

    /// Waits for a line of the access log about a refused connection to `authority`.
    async fn refused(&self, authority: &str) -> Value {
        self.web.logs(&[("reason", json!("egress_denied")), ("authority", json!(authority))]).await
    }

    async fn counts(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.web.metrics().await.sum(name, labels)
    }
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: {name}, namespace: default}}\nspec: {spec}\n"
    )
}

#[test]
fn r18_http_leaves_by_host_allowed_denied_or_audited_and_a_change_holds_at_once() {
    in_a_node(async || {
        let border = Border::new().await;
        for to in border.addresses() {
            assert_eq!(border.get(to, "anything.example").await.as_deref(), Ok("outside"));
        }
        border.policy(
            "{action: deny, rules: [{name: good, action: allow, hosts: [good.example, '*.good.example']}, \
             {name: watched, action: audit, hosts: [watched.example]}, {name: bad, action: deny, hosts: [bad.good.example]}]}",
        );
        border.settles("other.example", false).await;
        for to in border.addresses() {
            for host in ["good.example", "Good.Example:8080", "a.b.good.example", "watched.example"] {
                assert_eq!(border.get(to, host).await.as_deref(), Ok("outside"), "{host}");
            }
            for (host, by) in [("bad.good.example", "default/leave/bad"), ("other.example", "default/leave")]
            {
                let (status, reason, body) = border.get(to, host).await.expect_err("denied");
                assert_eq!((status, reason.as_str()), (403, "egress_denied"), "{host}");
                let expected = format!("({host}) is outside the mesh, and denied by {by}\n");
                assert!(body.ends_with(&expected), "{body}");
            }
        }
        let record =
            border.web.logs(&[("status", json!(403)), ("authority", json!("bad.good.example"))]).await;
        assert_eq!((&record["reason"], &record["direction"]), (&json!("egress_denied"), &json!("outbound")));
        let record = border.web.logs(&[("authority", json!("watched.example"))]).await;
        assert_eq!((&record["rule"], &record["status"]), (&json!("default/leave/watched"), &json!(200)));
        let audited = |verdict: &'static str, name: &'static str| {
            [("verdict", verdict), ("protocol", "http"), ("name", name)]
        };
        assert_eq!(border.counts("tulle_egress_total", &audited("audit", "watched.example")).await, 2.0);
        assert_eq!(border.counts("tulle_egress_total", &audited("deny", "bad.good.example")).await, 2.0);
        assert!(border.counts("tulle_egress_total", &audited("allow", "good.example")).await >= 4.0);
        let verdict = [("verdict", "audit"), ("rule", "default/leave/watched")];
        assert_eq!(border.counts("tulle_policy_verdicts_total", &verdict).await, 2.0);
        let refused = [("direction", "outbound"), ("reason", "egress_denied")];
        assert!(border.counts("tulle_refused_total", &refused).await >= 4.0);
        eventually("what is audited is told", async || {
            let said = border.web.diagnostics();
            let told = |line: &str| {
                line.contains("audited what leaves the mesh") && line.contains("name=\"watched.example\"")
            };
            if said.lines().any(told) { Ok(()) } else { Err(said) }
        })
        .await;

        // A connection that is kept gets the new policy with its next request.
        let [v4, _] = border.addresses();
        let mut kept = border.web.connect(SocketAddr::new(v4, 8080));
        let get = "GET / HTTP/1.1\r\nhost: good.example\r\n\r\n";
        kept.send(get).await;
        assert_eq!(kept.response().await.0.status(), 200);
        border.policy("{action: allow, rules: [{action: deny, hosts: [good.example]}]}");
        border.settles("good.example", false).await;
        border.settles("other.example", true).await;
        kept.send(get).await;
        let (head, _) = kept.response().await;
        assert_eq!((head.status(), head.reason()), (403, Some("egress_denied")));
    });
}

#[test]
fn r18_tls_leaves_by_server_name_and_is_reset_where_it_may_not() {
    in_a_node(async || {
        let border = Border::new().await;
        border.policy(
            "{action: deny, rules: [{action: allow, sni: [api.example.com, '*.example.org']}, \
             {action: allow, ports: [8443], hosts: [bad.example.com]}]}",
        );
        border.settles("other.example", false).await;
        for to in border.addresses() {
            for name in ["api.example.com", "a.example.org"] {
                let mut wire = border.tls(to, name).await.expect("allowed");
                wire.send("ping").await;
                assert_eq!(wire.exactly(4).await, b"ping");
                drop(wire);
                let record = border.web.logs(&[("authority", json!(name))]).await;
                assert_eq!((&record["tls"], &record["protocol"]), (&json!("app"), &json!("TLS")), "{record}");
                assert_eq!(record["rule"], "default/leave/0", "{record}");
            }
            // Of a rule for HTTP, TLS is none.
            for name in ["bad.example.com", "example.org"] {
                let error = border.tls(to, name).await.expect_err("denied");
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                let detail = border.refused(name).await["detail"].as_str().unwrap_or_default().to_owned();
                assert!(
                    detail.contains("8443") && detail.contains(name) && detail.contains("default/leave"),
                    "{detail}"
                );
            }
        }
        let named = |verdict: &'static str, name: &'static str| {
            [("verdict", verdict), ("protocol", "tls"), ("name", name)]
        };
        assert_eq!(border.counts("tulle_egress_total", &named("allow", "api.example.com")).await, 2.0);
        assert_eq!(border.counts("tulle_egress_total", &named("deny", "example.org")).await, 2.0);

        // A connection that is open is cut when it may no longer be.
        let [v4, _] = border.addresses();
        let mut open = border.tls(v4, "api.example.com").await.expect("allowed");
        open.send("ping").await;
        assert_eq!(open.exactly(4).await, b"ping");
        border.policy("{action: allow, rules: [{name: closed, action: deny, sni: [api.example.com]}]}");
        assert_eq!(open.to_end_or_reset().await, b"");
        let record = border.refused("api.example.com").await;
        assert!(
            record["detail"].as_str().is_some_and(|said| said.contains("policy has changed")),
            "{record}"
        );
        // Everybody else may now, and who says nothing too.
        border.tls(v4, "other.example").await.expect("allowed");
        assert!(border.echoes(v4, 7777).await);
    });
}

#[test]
fn r18_what_an_upgrade_has_turned_into_a_stream_is_cut_too() {
    in_a_node(async || {
        let border = Border::new().await;
        let _app = App::tcp_on(border.outside.listen("[::]:9000"), async |stream| {
            let mut wire = Wire::new(stream);
            wire.head().await;
            wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
                .await;
            let (mut reader, mut writer) = wire.into_stream().into_split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        });
        border.policy("{action: deny, rules: [{action: allow, hosts: [good.example]}]}");
        border.settles("good.example", true).await;
        let mut stream = border.web.connect(SocketAddr::new(border.outside.v4().into(), 9000));
        stream
            .send("GET / HTTP/1.1\r\nhost: good.example\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
            .await;
        assert_eq!(stream.head().await.status(), 101);
        stream.send("ping").await;
        assert_eq!(stream.exactly(4).await, b"ping");
        border.policy("{action: deny}");
        assert_eq!(stream.to_end_or_reset().await, b"");
        let cut =
            [("reason", json!("egress_denied")), ("protocol", json!("HTTP/1.1")), ("tls", json!("none"))];
        border.web.logs(&cut).await;
    });
}

#[test]
fn r18_addresses_and_ports_decide_for_whatever_is_spoken() {
    in_a_node(async || {
        let border = Border::new().await;
        let [v4, v6] = border.addresses();
        border.policy(&format!(
            "{{action: deny, rules: [{{action: allow, cidrs: ['{v4}/32'], ports: [8080, 6379]}}]}}"
        ));
        border.settles("any.example", true).await;
        eventually("the other family is denied", async || match border.get(v6, "any.example").await {
            Err((403, reason, _)) if reason == "egress_denied" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        assert!(border.echoes(v4, 6379).await, "an opaque port");
        for (to, port) in [(v6, 6379), (v4, 7777), (v6, 7777)] {
            assert!(!border.echoes(to, port).await, "{to} {port}");
        }
        assert!(border.tls(v4, "any.example").await.is_err());
        // IPv6 in its turn, with a range within that is denied.
        border.policy(
            "{action: deny, rules: [{action: allow, cidrs: ['fd77::/64']}, {action: deny, ports: [7777]}]}",
        );
        border.settles("any.example", false).await;
        assert_eq!(border.get(v6, "any.example").await.as_deref(), Ok("outside"));
        assert!(border.echoes(v6, 6379).await && !border.echoes(v6, 7777).await);
        border.tls(v6, "any.example").await.expect("allowed");
        assert!(
            border.counts("tulle_egress_total", &[("verdict", "deny"), ("protocol", "tcp")]).await >= 4.0
        );
    });
}

#[test]
fn r18_what_is_in_the_mesh_is_none_of_its_business_and_a_host_leads_nowhere_else() {
    in_a_node(async || {
        let border = Border::new().await;
        let orders = border.cluster.meshed("orders").await;
        let _app = says_its_name(&orders);
        let _scraped =
            App::http1_on(orders.listen("[::]:9100"), |_| async { Response::new(full("undeclared")) });
        let to = border.cluster.service("orders", "http", &[&orders]);
        border.web.reaches(to.v4, "orders").await;
        border.policy("{action: deny, rules: [{action: allow, hosts: [orders.default.svc.cluster.local]}]}");
        border.settles("other.example", false).await;
        // By its virtual IP, and directly.
        for ip in [to.v4, to.v6, orders.v4().into(), orders.v6().into()] {
            assert_eq!(border.web.curl(ip).await.as_deref(), Ok("orders"), "{ip}");
        }
        // A port that no Service names is not in the mesh.
        let said = border.web.curl_port(SocketAddr::new(orders.v4().into(), 9100)).await.expect_err("denied");
        assert!(said.contains("denied by default/leave"), "{said}");
        // A name that is allowed, or a service's, changes nothing about where it goes.
        for ip in border.addresses() {
            let answer = border.get(ip, "orders.default.svc.cluster.local").await;
            assert_eq!(answer.as_deref(), Ok("outside"));
        }
        // Loopback is untouched.
        let _own = says_its_name(&border.web);
        for ip in ["127.0.0.1", "::1"] {
            assert_eq!(border.web.curl(ip.parse().expect("an address")).await.as_deref(), Ok("web"), "{ip}");
        }
    });
}

#[test]
fn r18_a_policy_by_target_the_meshs_default_and_a_mistake() {
    in_a_node(async || {
        let border = Border::new().await;
        let other = border.cluster.meshed("other").await;
        border.cluster.service("web", "http", &[&border.web]);
        let [v4, _] = border.addresses();
        border.policy("{targetRefs: [{group: '', kind: Service, name: web}], action: deny}");
        border.settles("any.example", false).await;
        assert_eq!(other.curl(v4).await.as_deref(), Ok("outside"), "it is not behind the Service");
        // A mistake is told with its place, and what was good holds.
        border.policy("{targetRefs: [{group: '', kind: Service, name: web}], action: dney}");
        border
            .cluster
            .world()
            .control_plane_says(&["egress.yaml:4:", "EgressPolicy default/leave", "spec.action", "dney"])
            .await;
        border.settles("any.example", false).await;
        border.policy("{targetRefs: [{group: '', kind: Service, name: wbe}], action: deny}");
        border
            .cluster
            .world()
            .control_plane_says(&[
                "spec.targetRefs[0].name",
                "no Service default/wbe",
                "correct the reference",
            ])
            .await;
        border.settles("any.example", true).await;
        // One that is wrong from its beginning lets nothing out.
        let mistake = policy("mistake", "{rules: [{action: allow, host: [a.example]}]}");
        border.cluster.world().yaml("mistake.yaml", &mistake);
        border.settles("any.example", false).await;
        border.cluster.world().yaml("mistake.yaml", &policy("mistake", "{action: allow}"));
        border.settles("any.example", true).await;
    });
}
