//! How each algorithm spreads requests (R14, R15).

use tulle_tests::load::Speech;
use tulle_tests::named::{Clients, moved};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn each_algorithm_spreads_requests_over_the_endpoints() {
    let shop = Shop::start(false, &["a", "b", "c"]).await;
    // By name: the least and the most that an endpoint may get of 300 requests, one after the other. By chance it is 100 ± 8.2: of
    // those that draw, none is out by five times that; of those that hash, the same users are always there.
    let cases = [
        ("LeastRequest", 59..=141),
        ("RoundRobin", 100..=100),
        ("Random", 59..=141),
        ("RingHash", 40..=170),
        ("Maglev", 55..=145),
    ];
    for (algorithm, expected) in cases {
        let by_hash = matches!(algorithm, "RingHash" | "Maglev");
        let hash = if by_hash { ", hashOn: [{header: x-user}, {queryParameter: user}]" } else { "" };
        // The threshold tells the default from no policy.
        let spec = format!("  loadBalancer: {{algorithm: {algorithm}, panicThresholdPercent: 30{hash}}}");
        shop.policy(&spec, &format!("algorithm: {algorithm}")).await;
        shop.endpoints("usable", 3).await;
        let counts = if by_hash {
            let places = shop.places(300).await;
            assert_eq!(places, shop.places(300).await, "{algorithm}: the same user, the same endpoint");
            assert_eq!(shop.ask("/?x=1&user=7", "").await.1, places[7], "however it is told");
            places.into_iter().fold(Counts::new(), |mut counts, by| {
                *counts.entry(by).or_default() += 1;
                counts
            })
        } else {
            shop.counts(300).await
        };
        assert_eq!(counts.len(), 3, "{algorithm}: {counts:?}");
        assert!(counts.values().all(|count| expected.contains(count)), "{algorithm}: {counts:?}");
    }
    // The default too, unless one has just been held up by the machine for long.
    shop.policy("  loadBalancer: {panicThresholdPercent: 30}", "algorithm: PeakEwma").await;
    eventually("the default spreads them", async || {
        let counts = shop.counts(300).await;
        let is_even = counts.len() == 3 && counts.values().all(|count| (59..=141).contains(count));
        if is_even { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
}

/// By default: two endpoints, and two more that come while long connections are in use.
async fn scale_out(speech: Speech, at_once: usize) {
    let http2 = speech != Speech::Http1;
    let mut shop = Shop::start(http2, &["a", "b"]).await;
    let mut clients = Clients::connect(&shop.web.outbound("shop").into(), speech, at_once).await;
    eventually("it answers", async || clients.ask().await).await;
    clients.counts(400).await;
    shop.add("c", http2, 100, "a").await;
    shop.add("d", http2, 100, "a").await;
    // By chance alone it is 1,000 ± 27: none is out by five times that. What else there may be is a machine that is held up.
    eventually("within 15 %", async || {
        let counts = clients.counts(4_000).await;
        println!("{speech:?}, {at_once} at once: {counts:?}");
        let is_even = counts.len() == 4 && counts.values().all(|count| (850..=1150).contains(count));
        if is_even { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_http1_is_spread_evenly_over_endpoints_that_come() {
    for at_once in [1, 20] {
        scale_out(Speech::Http1, at_once).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_http2_is_spread_evenly_over_endpoints_that_come() {
    for at_once in [1, 20] {
        scale_out(Speech::Http2, at_once).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_grpc_is_spread_evenly_over_endpoints_that_come() {
    for at_once in [1, 20] {
        scale_out(Speech::Grpc, at_once).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_of_endpoints_are_kept_to() {
    let mut shop = Shop::start(false, &["a"]).await;
    shop.add("b", false, 300, "a").await;
    shop.policy("  loadBalancer: {algorithm: RoundRobin}", "algorithm: RoundRobin").await;
    shop.endpoints("usable", 2).await;
    assert_eq!(shop.counts(400).await, Counts::from([("a".to_owned(), 100), ("b".to_owned(), 300)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_a_hash_moves_few_users_when_an_endpoint_comes_and_none_when_it_goes_again() {
    for algorithm in ["RingHash", "Maglev"] {
        let mut shop = Shop::start(false, &["a", "b", "c", "d"]).await;
        let spec = format!("  loadBalancer: {{algorithm: {algorithm}, hashOn: [{{header: x-user}}]}}");
        shop.policy(&spec, &format!("algorithm: {algorithm}")).await;
        shop.endpoints("usable", 4).await;
        // A fifth is 0.2 ± 0.019, by where the endpoints are on the ring and by chance.
        let before = shop.places(1000).await;
        shop.add("e", false, 100, "a").await;
        shop.endpoints("usable", 5).await;
        let part = moved(&before, &shop.places(1000).await);
        assert!(part > 0.0 && part <= 0.25 + 0.05, "{algorithm}: {part}");
        shop.remove("e");
        shop.endpoints("usable", 4).await;
        assert_eq!(shop.places(1000).await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomers_share_grows_while_it_warms_up() {
    let mut shop = Shop::start(false, &["a", "b"]).await;
    shop.policy("  loadBalancer: {algorithm: RoundRobin, warmUp: {duration: 8s}}", "algorithm: RoundRobin")
        .await;
    shop.endpoints("usable", 2).await;
    let added = std::time::Instant::now();
    shop.add("c", false, 100, "a").await;
    shop.endpoints("warming", 1).await;
    // What it gets until its share is whole, of at most so much as the time since allows.
    let (mut got, mut asked, mut most) = (0.0, 0.0, 0.0);
    let mut variance: f64 = 0.0;
    let mut wire = shop.web.connect("shop").await;
    while added.elapsed() < Duration::from_secs(5) {
        let by = ask(&mut wire, "/", "").await.1;
        // Its turn comes with each third, and is taken so often; who does not take it leaves it to the next.
        let share = (0.1 + 0.9 * added.elapsed().as_secs_f64() / 8.0).min(1.0);
        let chance = share / (2.0 + share);
        (got, asked) = (got + f64::from(u8::from(by == "c")), asked + 1.0);
        (most, variance) = (most + chance, variance + chance * (1.0 - chance));
    }
    assert!(got > 0.0, "nothing of {asked}");
    assert!(got <= most + 5.0 * variance.sqrt() + 1.0, "{got} of {asked}, more than {most}");
    assert!(most < asked / 3.0 * 0.8, "{most} of {asked}: this shows nothing");
    shop.endpoints("usable", 3).await;
    let third = |by: &str| (by.to_owned(), 100);
    assert_eq!(shop.counts(300).await, Counts::from([third("a"), third("b"), third("c")]));
}
