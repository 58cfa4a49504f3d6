//! What is asked of resilience, as programs in pods meet it: through the rules, and proxies that stand in the way of programs which know nothing of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tulle_tests::ages::{aging, watch};
use tulle_tests::app::App;
use tulle_tests::closing::{Closing, LONG, SHORT, around_the_end, closes_after_a_second};
use tulle_tests::load::{Load, Pace, Speech, Tally};
use tulle_tests::machine::raise_file_limit;
use tulle_tests::netns::in_a_node;
use tulle_tests::pod::{Cluster, Pod, Port};
use tulle_tests::{Wire, eventually, long};

use super::mesh::says_its_name;

/// A pod in the mesh whose proxy has these flags.
pub(crate) async fn meshed(cluster: &Cluster, name: &str, flags: &[(&str, &str)]) -> Pod {
    let mut pod = cluster.pod(name);
    pod.join(cluster, &[], flags).await;
    pod
}

/// Waits until a GET over HTTP/1.1 or HTTP/2 is answered by an application: from then on none may fail.
pub(crate) async fn answers(pod: &Pod, to: SocketAddr, http2: bool) {
    eventually(&format!("{} is answered by {to}", pod.name()), async || {
        let version = if http2 { "--http2-prior-knowledge" } else { "--http1.1" };
        let url = format!("http://{to}/");
        let own = ["-sS", "--fail-with-body", "-o", "/dev/null", "--max-time", "60", version, &url];
        let ran = pod.run("curl", &own).await;
        if ran.status.success() { Ok(()) } else { Err(ran.stderr) }
    })
    .await;
}

/// `web`, `orders`, and where the one dials the other; `app` is called for the application.
async fn pair(
    cluster: &Cluster,
    protocol: &'static str,
    flags: &[(&str, &str)],
    app: impl FnOnce(&Pod) -> App,
) -> (Pod, Pod, App, SocketAddr) {
    let (web, orders) = (meshed(cluster, "web", flags).await, meshed(cluster, "orders", flags).await);
    let app = app(&orders);
    let to = SocketAddr::new(cluster.service("orders", protocol, &[&orders]).v4, 8080);
    answers(&web, to, protocol == "grpc").await;
    (web, orders, app, to)
}

#[test]
fn r02_a_burst_of_connections_through_the_rules_meets_no_error_of_the_proxies() {
    raise_file_limit();
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let (web, _orders, _app, to) = pair(&cluster, "http", &[], says_its_name).await;
        let to = web.namespace().dial(to);
        let count = if long() { 2_000 } else { 500 };
        let mut asked = JoinSet::new();
        for _ in 0..count {
            let to = to.clone();
            asked.spawn(async move {
                let mut wire = Wire::new(to.connect().await.expect("a connection"));
                wire.send("GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await;
                let (head, body) = wire.response().await;
                assert_eq!((head.status(), head.reason(), &body[..]), (200, None, &b"orders"[..]));
            });
        }
        assert_eq!(asked.join_all().await.len(), count);
    });
}

#[test]
fn r03_requests_around_the_moment_when_the_server_closes_are_neither_lost_nor_served_twice() {
    raise_file_limit();
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let closing = Closing::default();
        let app = |pod: &Pod| closes_after_a_second(pod.listen("[::]:8080"), &closing);
        // One worker has one pool: what it has seen of the server it knows for all.
        let (web, _orders, _app, to) = pair(&cluster, "http", &[("--workers", "1")], app).await;
        let (lanes, rounds) = if long() { LONG } else { SHORT };
        around_the_end(&web.namespace().dial(to), &closing, lanes, rounds).await;
    });
}

#[test]
fn r14_a_servers_maximum_connection_age_fails_no_call_and_ends_streams_with_a_status() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let (age, grace) = (Duration::from_secs(2), Duration::from_secs(1));
        let app = |pod: &Pod| aging(pod.listen("[::]:8080"), age, grace);
        let (web, _orders, _app, to) = pair(&cluster, "grpc", &[], app).await;
        let (to, tally) = (web.namespace().dial(to), Arc::<Tally>::default());
        let (pace, streams, times) = if long() {
            (Pace { lanes: 8, rate: 200, stream: Duration::ZERO }, 20, 150)
        } else {
            (Pace { lanes: 8, rate: 80, stream: Duration::ZERO }, 6, 2)
        };
        let load = Load::start(&tally, Speech::Grpc, to.clone(), "web", pace);
        let watches: JoinSet<_> = (0..streams).map(|_| watch(to.clone(), times)).collect();
        let wrong: Vec<String> = watches.join_all().await.concat();
        load.leave_after(0).await;
        tally.assert_nothing_lost();
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}

const SESSIONS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders}
spec:
  parentRefs: [{group: \"\", kind: Service, name: orders, port: 8080}]
  rules: [{backendRefs: [{name: orders, port: 8080}], sessionPersistence: {sessionName: id}}]
";

/// Who answers a request with these fields, and the session's token if one is told.
async fn asked(web: &Pod, to: SocketAddr, fields: &str) -> (String, Option<String>) {
    let mut wire = web.connect(to);
    wire.send(format!("GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n{fields}\r\n")).await;
    let (head, body) = wire.response().await;
    let cookie = head.get("set-cookie").and_then(|cookie| cookie.split(';').next());
    (String::from_utf8(body).expect("text"), cookie.map(str::to_owned))
}

#[test]
fn r15_a_session_stays_where_it_is_while_others_come_and_go() {
    const PORT: Port = Port { number: 8080, name: "main", app_protocol: "http" };
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let web = cluster.meshed("web").await;
        let pods = cluster.meshed_in(["one", "two", "three", "four"].map(|name| (name, ""))).await;
        let _apps = pods.each_ref().map(says_its_name);
        let some = |numbers: &[usize]| -> Vec<_> {
            numbers.iter().map(|number| (&pods[*number], Some(pods[*number].name()))).collect()
        };
        cluster.world().yaml("route.yaml", SESSIONS);
        let ips = cluster.service_of("orders", &PORT, &some(&[0, 1]));
        let to = SocketAddr::new(ips.v4, 8080);
        answers(&web, to, false).await;
        let token = eventually("a session at two", async || match asked(&web, to, "").await {
            (by, Some(token)) if by == "two" => Ok(token),
            (by, token) => Err(format!("{by}, {token:?}")),
        })
        .await;
        let token = format!("cookie: {token}\r\n");
        // More of them, others, and nobody else.
        for numbers in [&[0, 1, 2, 3][..], &[1, 2, 3], &[1, 3], &[0, 1], &[1]] {
            cluster.change("orders", &PORT, ips, &some(numbers));
            let expected: Vec<_> = numbers.iter().map(|number| pods[*number].name().to_owned()).collect();
            eventually(&format!("new sessions are at {expected:?}"), async || {
                let mut by = Vec::new();
                for _ in 0..expected.len() * 8 {
                    by.push(asked(&web, to, "").await.0);
                    assert_eq!(asked(&web, to, &token).await.0, "two");
                }
                by.sort_unstable();
                by.dedup();
                let mut expected = expected.clone();
                expected.sort_unstable();
                if by == expected { Ok(()) } else { Err(format!("{by:?}")) }
            })
            .await;
        }
    });
}
