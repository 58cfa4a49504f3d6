//! Endpoints that fail are out for a while, by each criterion.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_fails_is_ejected_and_comes_back_once_it_serves() {
    let shop = Shop::start(false, &["a", "b", "c"]).await;
    let spec = "  loadBalancer: {algorithm: RoundRobin, panicThresholdPercent: 0}
  outlierDetection: {consecutive5xx: 3, ejectionTime: 400ms, maximumEjectionTime: 400ms}";
    shop.policy(spec, "algorithm: RoundRobin").await;
    shop.endpoints("usable", 3).await;
    shop.answers("b", 500);
    let mut wire = shop.web.connect("shop").await;
    let mut failed = 0;
    // Three in a row, of which each third comes here.
    for _ in 0..30 {
        failed += usize::from(ask(&mut wire, "/", "").await.0 == 500);
    }
    // Beside these, one for each time that it was tried meanwhile.
    let metrics = shop.web.metrics().await;
    let ejections = metrics.sum("tulle_balancer_ejections_total", &[]);
    assert!(ejections >= 1.0 && failed as f64 <= 3.0 + ejections, "{failed} failed, {ejections} ejections");
    let labels = [("service", "default/shop:8080"), ("cause", "consecutive_5xx")];
    assert_eq!(metrics.sum("tulle_balancer_ejections_total", &labels), 1.0);
    eventually("it is told", async || {
        let told = shop.web.diagnostics();
        if told.contains("ejected an endpoint") { Ok(()) } else { Err(told) }
    })
    .await;
    // It is tried, fails, and is out for as long again, for as long as it does not serve.
    eventually("it is tried and ejected again", async || {
        ask(&mut wire, "/", "").await;
        let labels = [("cause", "probation")];
        let again = shop.web.metrics().await.sum("tulle_balancer_ejections_total", &labels);
        if again >= 1.0 { Ok(()) } else { Err(format!("{again}")) }
    })
    .await;
    shop.answers("b", 200);
    eventually("it serves again", async || {
        let (status, by) = ask(&mut wire, "/", "").await;
        assert_eq!(status, 200, "{by}");
        if by == "b" { Ok(()) } else { Err(by) }
    })
    .await;
    assert_eq!(shop.sum("tulle_balancer_panics_total", &[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_nobody_listens_on_is_ejected_and_nobody_is_told() {
    let shop = Shop::start(false, &["a", "b"]).await;
    let spec = "  loadBalancer: {algorithm: RoundRobin, panicThresholdPercent: 0}
  outlierDetection: {consecutiveConnectFailures: 2, ejectionTime: 1h, maximumEjectionTime: 1h}";
    shop.policy(spec, "algorithm: RoundRobin").await;
    shop.endpoints("usable", 2).await;
    shop.servers["b"].app.stop().await;
    assert_eq!(shop.counts(40).await, Counts::from([("a".to_owned(), 40)]));
    shop.endpoints("ejected", 1).await;
    // The last that is left stays, whatever it does.
    shop.answers("a", 503);
    for _ in 0..5 {
        assert_eq!(shop.ask("/", "").await, (503, "a".to_owned()));
    }
    shop.endpoints("usable", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_grpc_says_last_ejects_too() {
    let shop = Shop::start(true, &["a", "b"]).await;
    let spec = "  loadBalancer: {algorithm: RoundRobin, panicThresholdPercent: 0}
  outlierDetection: {consecutiveGrpcErrors: 3, ejectionTime: 1h, maximumEjectionTime: 1h}";
    let call = async || call(&mut http2(&shop.web.outbound("shop").into()).await).await;
    eventually("it answers", async || {
        let (status, _) = call().await;
        if status == "0" { Ok(()) } else { Err(status) }
    })
    .await;
    shop.policy_of(spec, "algorithm: RoundRobin").await;
    shop.endpoints("usable", 2).await;
    shop.answers("b", 500);
    let mut failed = 0;
    for _ in 0..20 {
        failed += usize::from(call().await.0 == "14");
    }
    assert_eq!(failed, 3);
    shop.endpoints("ejected", 1).await;
    assert_eq!(call().await, ("0".to_owned(), "a".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_leaves_an_ejected_endpoint_and_is_told_so_by_a_new_token() {
    let shop = Shop::start(false, &["a", "b"]).await;
    let spec = "  loadBalancer: {algorithm: RoundRobin, panicThresholdPercent: 0}
  outlierDetection: {consecutive5xx: 2, ejectionTime: 1h, maximumEjectionTime: 1h}";
    shop.policy(spec, "algorithm: RoundRobin").await;
    shop.world.yaml(
        "route.yaml",
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: shop, port: 8080}]
  rules: [{backendRefs: [{name: shop, port: 8080}], sessionPersistence: {sessionName: id}}]
",
    );
    shop.endpoints("usable", 2).await;
    let mut wire = shop.web.connect("shop").await;
    let mut token = String::new();
    eventually("a session at b", async || {
        wire.send("GET / HTTP/1.1\r\nhost: shop\r\n\r\n").await;
        let (head, body) = wire.response().await;
        let cookie = head.get("set-cookie").and_then(|cookie| cookie.split(';').next());
        token = format!("cookie: {}\r\n", cookie.ok_or("no session")?);
        if body == b"b" { Ok(()) } else { Err(String::from_utf8(body).unwrap()) }
    })
    .await;
    shop.answers("b", 500);
    for _ in 0..2 {
        assert_eq!(ask(&mut wire, "/", &token).await, (500, "b".to_owned()));
    }
    wire.send(format!("GET / HTTP/1.1\r\nhost: shop\r\n{token}\r\n")).await;
    let (head, body) = wire.response().await;
    assert_eq!((head.status(), &*body), (200, b"a".as_slice()));
    assert!(head.get("set-cookie").is_some(), "{head:?}");
}

/// Nobody comes back within the test.
const LONG: &str = "ejectionTime: 1h, maximumEjectionTime: 1h";

impl Shop {
    /// Four endpoints, or five, that take turns, and what ejects them.
    async fn watched(names: &[&str], panic: u32, outliers: &str) -> Self {
        let shop = Self::start(false, names).await;
        let spec = format!(
            "  loadBalancer: {{algorithm: RoundRobin, panicThresholdPercent: {panic}}}
  outlierDetection: {{{outliers}, {LONG}}}"
        );
        shop.policy(&spec, "algorithm: RoundRobin").await;
        shop.endpoints("usable", names.len()).await;
        shop
    }

    async fn ejections(&self, cause: &str) -> f64 {
        let labels = [("service", "default/shop:8080"), ("cause", cause)];
        self.sum("tulle_balancer_ejections_total", &labels).await
    }

    /// Asks so often, and says who answered what how often.
    async fn answered(&self, requests: usize) -> BTreeMap<(String, u16), usize> {
        let mut wire = self.web.connect("shop").await;
        let mut counts = BTreeMap::new();
        for _ in 0..requests {
            let (status, by) = ask(&mut wire, "/", "").await;
            *counts.entry((by, status)).or_default() += 1;
        }
        counts
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_errors_in_a_row_eject_and_other_errors_do_not() {
    let shop = Shop::watched(&["a", "b"], 0, "consecutiveGatewayErrors: 3").await;
    shop.answers("b", 500);
    assert_eq!(shop.answered(40).await[&("b".to_owned(), 500)], 20);
    assert_eq!(shop.sum("tulle_balancer_ejections_total", &[]).await, 0.0);
    shop.answers("b", 503);
    assert_eq!(shop.answered(40).await[&("b".to_owned(), 503)], 3);
    shop.endpoints("ejected", 1).await;
    assert_eq!(shop.ejections("consecutive_gateway_errors").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_fails_much_more_than_the_others_is_ejected_and_nobody_when_all_fail() {
    let criterion = "interval: 500ms, successRate: {minimumRequests: 5}";
    let shop = Shop::watched(&["a", "b", "c", "d", "e"], 0, criterion).await;
    shop.answers_each("c", 2, 500);
    eventually("it is ejected", async || {
        shop.answered(100).await;
        let ejected = shop.ejections("success_rate").await;
        if ejected == 1.0 { Ok(()) } else { Err(format!("{ejected}")) }
    })
    .await;
    shop.endpoints("ejected", 1).await;
    assert!(shop.answered(40).await.keys().all(|(by, _)| by != "c"));
    // The four that are left are too few to compare by default, whatever they do.
    for name in ["a", "b"] {
        shop.answers(name, 500);
    }
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        shop.answered(50).await;
    }
    assert_eq!(shop.sum("tulle_balancer_ejections_total", &[]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_fails_so_often_by_itself_is_ejected() {
    let criterion = "interval: 500ms, failurePercentage: {thresholdPercent: 40, minimumRequests: 5}";
    let shop = Shop::watched(&["a", "b", "c"], 0, criterion).await;
    // A fifth is less, and a half more.
    shop.answers_each("a", 5, 500);
    shop.answers_each("b", 2, 500);
    eventually("it is ejected", async || {
        shop.answered(150).await;
        let ejected = shop.ejections("failure_percentage").await;
        if ejected == 1.0 { Ok(()) } else { Err(format!("{ejected}")) }
    })
    .await;
    shop.endpoints("ejected", 1).await;
    assert!(shop.answered(40).await.keys().all(|(by, _)| by != "b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_are_ejected_than_may_be_and_the_others_are_counted() {
    let shop = Shop::watched(&["a", "b", "c", "d"], 0, "consecutive5xx: 2, maximumEjectedPercent: 49").await;
    for name in ["b", "c"] {
        shop.answers(name, 500);
    }
    shop.answered(80).await;
    shop.endpoints("ejected", 1).await;
    assert_eq!(shop.ejections("consecutive_5xx").await, 1.0);
    assert!(shop.sum("tulle_balancer_ejections_withheld_total", &[]).await >= 1.0);
    // Whoever it is, the other stays.
    let answered = shop.answered(30).await;
    assert_eq!(answered.values().copied().collect::<Vec<_>>(), [10, 10, 10], "{answered:?}");
    assert_eq!(answered.keys().filter(|(_, status)| *status == 500).count(), 1, "{answered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_too_few_are_left_all_are_used() {
    let shop =
        Shop::watched(&["a", "b", "c", "d"], 50, "consecutive5xx: 2, maximumEjectedPercent: 100").await;
    for name in ["b", "c"] {
        shop.answers(name, 500);
    }
    shop.answered(40).await;
    shop.endpoints("ejected", 2).await;
    // Half of them is enough.
    let answered = shop.answered(40).await;
    assert!(answered.keys().all(|(by, _)| by == "a" || by == "d"), "{answered:?}");
    assert_eq!(shop.sum("tulle_balancer_panics_total", &[]).await, 0.0);
    shop.answers("d", 500);
    shop.answered(10).await;
    shop.endpoints("ejected", 3).await;
    eventually("all are used", async || {
        let answered = shop.answered(40).await;
        let is_even = answered.len() == 4 && answered.values().all(|count| *count == 10);
        if is_even { Ok(()) } else { Err(format!("{answered:?}")) }
    })
    .await;
    let before = shop.sum("tulle_balancer_panics_total", &[]).await;
    shop.answered(40).await;
    assert_eq!(shop.sum("tulle_balancer_panics_total", &[]).await, before + 40.0);
    shop.endpoints("ejected", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_under_way_at_an_endpoint_that_is_ejected_end_as_they_would_have() {
    let shop = Shop::watched(&["a", "b"], 0, "consecutive5xx: 2").await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut wire = shop.web.connect("shop").await;
        held.push(tokio::spawn(async move { ask(&mut wire, "/hold", "").await }));
    }
    // By turns: one is at each.
    let how = &shop.servers["b"].how;
    eventually("one is there", async || {
        let there = how.held.load(Relaxed);
        if there == 1 { Ok(()) } else { Err(there.to_string()) }
    })
    .await;
    shop.answers("b", 500);
    shop.answered(20).await;
    shop.endpoints("ejected", 1).await;
    for name in ["a", "b"] {
        shop.servers[name].how.released.send_replace(1);
    }
    let mut ends = Vec::new();
    for one in held {
        ends.push(one.await.unwrap());
    }
    ends.sort();
    assert_eq!(ends, [(200, "a".to_owned()), (200, "b".to_owned())]);
    shop.endpoints("ejected", 1).await;
}
