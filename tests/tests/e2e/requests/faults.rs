//! What goes wrong on purpose, and what becomes of it.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;
use tulle_tests::{eventually, within};

use super::{PLENTY, Shop, grpc_status, visits};

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_seen_by_retries_and_timeouts_as_a_backends() {
    let traffic = format!("  retry: {{attempts: 2, statuses: [503], backoff: {{base: 1ms}}}}\n  {PLENTY}");
    let faults = "  rules:
  - {name: abort, headers: [{name: x-chaos, value: abort}], abort: {httpStatus: 503}}
  - {name: teapot, headers: [{name: x-chaos, value: teapot}], abort: {httpStatus: 418}}
  - {name: code, headers: [{name: x-chaos, value: code}], abort: {grpcStatus: RESOURCE_EXHAUSTED}}
  - {name: hold, headers: [{name: x-chaos, value: hold}], delay: {duration: 600s}}
  - {name: slow, headers: [{name: x-chaos, value: slow}], delay: {duration: 500ms}}
  - {name: never, headers: [{name: x-chaos, value: never}], abort: {percent: 0, httpStatus: 503}}";
    let shop = Shop::start("http", "request: 30s, perTry: 2s", &traffic, faults).await;
    eventually("the faults are in force", async || {
        let head = shop.ask("GET", "/probe", "x-chaos: teapot", b"").await;
        if head.status() == 418 { Ok(()) } else { Err(format!("{head:?}")) }
    })
    .await;
    // What is asked for, the status and its reason, how often the application was asked, and how often it was tried.
    for (chaos, script, outcome, times, attempts) in [
        ("abort", "200", "503 fault_injected", 0, 3),
        ("teapot", "200", "418 fault_injected", 0, 1),
        ("code", "200", "429 fault_injected", 0, 1),
        ("hold", "200", "504 backend_timeout", 0, 3),
        ("slow", "503,200", "200 ", 2, 2),
        ("never", "200", "200 ", 1, 1),
        ("other", "200", "200 ", 1, 1),
    ] {
        let (path, started) = (format!("/{chaos}"), Instant::now());
        let fields = format!("x-chaos: {chaos}\r\nx-script: {script}");
        let head = shop.ask("GET", &path, &fields, b"").await;
        assert_eq!(format!("{} {}", head.status(), head.reason().unwrap_or_default()), outcome, "{chaos}");
        assert_eq!(visits(&shop.seen, &path).len(), times, "{chaos}");
        let record = shop.web.logs(&[("path", json!(path))]).await;
        assert_eq!(record["attempts"], json!(attempts), "{record}");
        let least = match chaos {
            "hold" => 6,
            "slow" => 1,
            _ => 0,
        };
        assert!(started.elapsed() >= Duration::from_secs(least), "{chaos}");
    }
    let metrics = shop.web.metrics().await;
    let injected = |kind| metrics.sum("tulle_faults_injected_total", &[("kind", kind)]);
    assert_eq!(injected("delay"), 5.0);
    assert!(injected("abort") >= 6.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_a_share_are_mended_by_retries_also_for_grpc() {
    let traffic =
        format!("  retry: {{attempts: 40, grpcCodes: [UNAVAILABLE], backoff: {{base: 0s}}}}\n  {PLENTY}");
    let faults = "  rules:
  - {headers: [{name: x-chaos, value: all}], abort: {grpcStatus: DATA_LOSS}}
  - {abort: {percent: 50, grpcStatus: UNAVAILABLE}}";
    let shop = Shop::start("kubernetes.io/h2c", "request: 60s", &traffic, faults).await;
    let mut sender = shop.http2().await;
    eventually("the faults are in force", async || {
        let answer = shop.call(&mut shop.http2().await, "/a/probe", &[("x-chaos", "all")]).await;
        if grpc_status(&answer) == "15" { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    for _ in 0..40 {
        let answer = shop.call(&mut sender, "/a/call", &[]).await;
        assert_eq!(grpc_status(&answer), "0", "{answer:?}");
    }
    assert_eq!(visits(&shop.seen, "/a/call").len(), 40, "faults reach nobody");
    // Of 40 times one in two: less than 5 is one of ten thousand million.
    assert!(shop.retried(&[("cause", "status")]).await >= 5.0);
}

/// So many times it may happen that is drawn so many times with that chance: five standard deviations, which it leaves once in two
/// million.
fn about(times: f64, chance: f64) -> std::ops::RangeInclusive<f64> {
    let (mean, deviation) = (times * chance, (times * chance * (1.0 - chance)).sqrt());
    mean - 5.0 * deviation..=mean + 5.0 * deviation
}

impl Shop {
    async fn injected(&self, kind: &str) -> f64 {
        self.web.metrics().await.sum("tulle_faults_injected_total", &[("kind", kind)])
    }
}

const DELAYS: &str = "  rules:
  - {name: teapot, headers: [{name: x-chaos, value: teapot}], abort: {grpcStatus: DATA_LOSS}}
  - {name: some, headers: [{name: x-chaos, value: some}], delay: {percent: 30, duration: 1ms}}
  - {name: hangs, headers: [{name: x-chaos, value: hangs}], delay: {percent: 40, duration: 600s}}
  - {name: both, headers: [{name: x-chaos, value: both}], delay: {percent: 50, duration: 1ms}, abort: {percent: 20, grpcStatus: UNAVAILABLE}}";
const TIMES: usize = 400;

#[tokio::test(flavor = "multi_thread")]
async fn as_many_requests_are_held_as_the_share_says_and_none_but_those_with_the_header() {
    let traffic = format!(
        "  retry: {{attempts: 100, statuses: [503], causes: [Timeout], backoff: {{base: 0s}}}}\n  {PLENTY}"
    );
    let shop = Shop::start("http", "request: 120s, perTry: 1s", &traffic, DELAYS).await;
    eventually("the faults are in force", async || {
        let head = shop.ask("GET", "/probe", "x-chaos: teapot", b"").await;
        if head.reason() == Some("fault_injected") { Ok(()) } else { Err(format!("{head:?}")) }
    })
    .await;
    let before = shop.injected("abort").await;
    let mut wire = shop.web.connect("shop").await;
    let mut by_some = None;
    for chaos in ["some", "none"] {
        for _ in 0..TIMES {
            let fields = format!("host: shop\r\nx-chaos: {chaos}\r\n");
            wire.send(format!("GET /{chaos} HTTP/1.1\r\n{fields}\r\n")).await;
            assert_eq!(wire.response().await.0.status(), 200);
        }
        assert!(visits(&shop.seen, &format!("/{chaos}")).len() >= TIMES);
        let held = shop.injected("delay").await;
        assert!(about(TIMES as f64, 0.3).contains(&held), "{chaos}: {held}");
        assert_eq!(*by_some.get_or_insert(held), held, "{chaos}");
    }
    // A try that is held for longer than it may take is made again, and that one may be held too.
    let (held, retried) = (shop.injected("delay").await, shop.retried(&[("cause", "late")]).await);
    const HUNG: usize = 24;
    let mut asked = JoinSet::new();
    for _ in 0..HUNG {
        let mut wire = shop.web.connect("shop").await;
        asked.spawn(async move {
            wire.send("GET /hangs HTTP/1.1\r\nhost: shop\r\nx-chaos: hangs\r\n\r\n").await;
            wire.response().await.0.status()
        });
    }
    assert!(within("answers", asked.join_all()).await.iter().all(|status| *status == 200));
    let held = shop.injected("delay").await - held;
    let retried = shop.retried(&[("cause", "late")]).await - retried;
    // Of 24, none at all is held once in two hundred thousand times.
    assert!(held >= 1.0 && retried >= held, "{held} held, {retried} sent again");
    assert_eq!(shop.injected("abort").await, before, "and nothing else goes wrong");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_held_and_answered_by_their_shares_and_mended_by_retries() {
    let traffic =
        format!("  retry: {{attempts: 100, grpcCodes: [UNAVAILABLE], backoff: {{base: 0s}}}}\n  {PLENTY}");
    let shop = Shop::start("kubernetes.io/h2c", "request: 120s", &traffic, DELAYS).await;
    let mut sender = shop.http2().await;
    eventually("the faults are in force", async || {
        let answer = shop.call(&mut shop.http2().await, "/a/probe", &[("x-chaos", "teapot")]).await;
        if grpc_status(&answer) == "15" { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let (aborted, held) = (shop.injected("abort").await, shop.injected("delay").await);
    for _ in 0..TIMES {
        let answer = shop.call(&mut sender, "/a/both", &[("x-chaos", "both")]).await;
        assert_eq!(grpc_status(&answer), "0", "{answer:?}");
    }
    let (aborted, held) = (shop.injected("abort").await - aborted, shop.injected("delay").await - held);
    assert_eq!(visits(&shop.seen, "/a/both").len(), TIMES, "what is answered reaches nobody");
    assert_eq!(shop.retried(&[("cause", "status")]).await, aborted);
    // Each try is drawn anew, for each by itself.
    let tries = TIMES as f64 + aborted;
    assert!(about(tries, 0.2).contains(&aborted), "{aborted} of {tries} answered");
    assert!(about(tries, 0.5).contains(&held), "{held} of {tries} held");
    // A delay is a part of the time that the client gives.
    let fields = [("x-chaos", "hangs"), ("grpc-timeout", "300m")];
    let mut late = 0;
    for _ in 0..40 {
        let answer = shop.call(&mut sender, "/a/hangs", &fields).await;
        match grpc_status(&answer) {
            "4" => late += 1,
            status => assert_eq!(status, "0", "{answer:?}"),
        }
    }
    assert!(late >= 1, "none was late");
}
