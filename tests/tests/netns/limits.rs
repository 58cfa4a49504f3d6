//! What is sent again and what is refused, in pods behind the rules: retries and their budget (R4), rate limits (R16).

use std::net::SocketAddr;

use tulle_tests::eventually;
use tulle_tests::netns::in_a_node;
use tulle_tests::pod::{Cluster, Pod, VirtualIps};
use tulle_tests::rates::{BURST, is_kept_to};
use tulle_tests::script::{Seen, scripted, visits};

use super::mesh::says_its_name;
use super::resilience::{answers, meshed};

/// A TrafficPolicy or RateLimitPolicy of this name, for the Service of this name.
fn policy(cluster: &Cluster, kind: &str, name: &str, spec: &str) {
    let text = format!(
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n  \
         targetRefs: [{{group: \"\", kind: Service, name: {name}}}]\n  {spec}\n"
    );
    cluster.world().yaml(&format!("policy-{name}.yaml"), &text);
}

/// The answer's status and reason.
async fn asked(web: &Pod, to: VirtualIps, method: &str, path: &str, script: &str) -> String {
    let mut wire = web.connect(SocketAddr::new(to.v4, 8080));
    let body = if method == "POST" { "hello" } else { "" };
    wire.send(format!(
        "{method} {path} HTTP/1.1\r\nhost: orders\r\nconnection: close\r\nx-script: {script}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
    .await;
    let head = wire.response().await.0;
    format!("{} {}", head.status(), head.reason().unwrap_or_default())
}

#[test]
fn r04_nothing_is_sent_again_that_was_not_asked_for_and_the_application_sees_no_second_post() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let (web, orders) = (cluster.meshed("web").await, cluster.meshed("orders").await);
        let seen = Seen::default();
        let _app = scripted(orders.listen("[::]:8080"), &seen);
        // The policies before their Services, so that nobody hears of those without them.
        let retry = "attempts: 2, statuses: [503], causes: [Reset], backoff: {base: 1ms}";
        policy(&cluster, "TrafficPolicy", "retried", &format!("retry: {{{retry}}}"));
        policy(&cluster, "TrafficPolicy", "twice", &format!("retry: {{{retry}, nonIdempotent: true}}"));
        let [bare, retried, twice] =
            ["bare", "retried", "twice"].map(|name| (name, cluster.service(name, "http", &[&orders])));
        for (_, to) in [bare, retried, twice] {
            answers(&web, SocketAddr::new(to.v4, 8080), false).await;
        }
        for ((service, to), method, script, outcome, times) in [
            (bare, "GET", "503,200", "503 ", 1),
            (bare, "GET", "reset,200", "502 upstream_reset", 1),
            (bare, "POST", "reset,200", "502 upstream_reset", 1),
            (retried, "GET", "503,503,200", "200 ", 3),
            (retried, "GET", "reset,200", "200 ", 2),
            (retried, "POST", "reset,200", "502 upstream_reset", 1),
            (twice, "POST", "reset,200", "200 ", 2),
        ] {
            let path = format!("/{service}/{method}/{script}");
            assert_eq!(asked(&web, to, method, &path, script).await, outcome, "{path}");
            assert_eq!(visits(&seen, &path).len(), times, "{path}");
        }
        for number in 0..60 {
            let (path, fails) = (format!("/post/{number}"), number % 3 == 0);
            let said = asked(&web, retried.1, "POST", &path, if fails { "reset" } else { "200" }).await;
            assert_eq!(said, if fails { "502 upstream_reset" } else { "200 " }, "{path}");
            assert_eq!(visits(&seen, &path).len(), 1, "{path}");
        }
        let metrics = web.metrics().await;
        assert_eq!(metrics.sum("tulle_retries_withheld_total", &[("cause", "method")]), 21.0);
        assert_eq!(metrics.sum("tulle_retries_total", &[("outcome", "answered")]), 3.0);
    });
}

/// Two rules that are of one Service, each with a retry of its own.
const ROUTES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders}
spec:
  parentRefs: [{group: \"\", kind: Service, name: orders, port: 8080}]
  rules:
  - {matches: [{path: {value: /one}}], backendRefs: [{name: orders, port: 8080}], retry: {attempts: 3, codes: [503], backoff: 1ms}}
  - {matches: [{path: {value: /two}}], backendRefs: [{name: orders, port: 8080}], retry: {attempts: 3, codes: [503], backoff: 1ms}}
";

#[test]
fn r04_one_budget_holds_for_all_routes_and_workers() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let web = meshed(&cluster, "web", &[("--workers", "4")]).await;
        let orders = cluster.meshed("orders").await;
        let seen = Seen::default();
        let _app = scripted(orders.listen("[::]:8080"), &seen);
        let budget =
            "retryBudget: {percent: 20, interval: 600s, minimumRetryRate: {count: 10, interval: 600s}}";
        policy(&cluster, "TrafficPolicy", "orders", budget);
        cluster.world().yaml("route.yaml", ROUTES);
        let to = cluster.service("orders", "http", &[&orders]);
        eventually("its routes are known, none of which is for this path", async || {
            let said = asked(&web, to, "GET", "/", "").await;
            if said == "404 route_not_found" { Ok(()) } else { Err(said) }
        })
        .await;
        let script = "503,".repeat(200);
        let ask = async |requests: usize| {
            for number in 0..requests {
                let path = ["/one", "/two"][number % 2];
                assert_eq!(asked(&web, to, "GET", path, &script).await, "503 ");
            }
            visits(&seen, "/one").len() + visits(&seen, "/two").len()
        };
        // The least that there always is, then a fifth of them: in all, and not of each.
        let few = ask(30).await;
        assert_eq!(few, 30 + 10);
        let many = ask(70).await;
        assert!((100 + 18..=100 + 20).contains(&many), "{many}");
        let withheld = web.metrics().await.sum("tulle_retries_withheld_total", &[("cause", "budget")]);
        assert!(withheld >= 80.0, "{withheld}");
    });
}

#[test]
fn r16_within_two_percent_of_the_rate_pass_over_ten_seconds_at_four_times_as_many() {
    const RATE: u32 = 25;
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let [web, inbound, outbound] =
            cluster.meshed_in(["web", "inbound", "outbound"].map(|name| (name, ""))).await;
        let _apps = [&inbound, &outbound].map(says_its_name);
        let kept = async |direction: &str, pod: &Pod| {
            let limits = format!(
                "direction: {direction}\n  limits: [{{name: all, rate: {{requests: {RATE}, per: 1s, burst: {}}}}}]",
                RATE * BURST
            );
            policy(&cluster, "RateLimitPolicy", pod.name(), &limits);
            let to = cluster.service(pod.name(), "http", &[pod]).v4;
            web.reaches(to, pod.name()).await;
            is_kept_to(direction, &web.namespace().dial(SocketAddr::new(to, 8080)), RATE).await;
        };
        tokio::join!(kept("Inbound", &inbound), kept("Outbound", &outbound));
        for (pod, by) in [(&inbound, "default/inbound/all"), (&web, "default/outbound/all")] {
            let refused = [("limit", by), ("outcome", "refused")];
            assert!(pod.metrics().await.sum("tulle_rate_limit_requests_total", &refused) > 0.0, "{by}");
        }
    });
}
