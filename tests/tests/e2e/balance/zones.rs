//! The own zone is preferred, until it is overloaded (R24).

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn r24_the_own_zone_is_preferred_and_no_endpoint_gets_more_than_half_as_much_again() {
    let mut shop = Shop::start(false, &["near"]).await;
    for far in ["far-1", "far-2", "far-3", "far-4"] {
        shop.add(far, false, 100, "b").await;
    }
    shop.policy("  loadBalancer: {algorithm: RoundRobin, zones: {}}", "maximum_load_percent: 150").await;
    shop.endpoints("usable", 5).await;
    let requests = 4000;
    let counts = shop.counts(requests).await;
    let mean = requests as f64 / 5.0;
    // The zone's share is kept to in any stretch of requests, by less than two of them.
    assert!(counts.values().all(|count| (*count as f64) < 1.5 * mean + 2.0), "{counts:?}");
    assert!(counts["near"] as f64 > 1.5 * mean - 2.0, "{counts:?}");
    let metrics = shop.web.metrics().await;
    let picks = |zone| metrics.sum("tulle_balancer_zone_picks_total", &[("zone", zone)]);
    assert!(picks("own") >= counts["near"] as f64 && picks("other") > 0.0);
    // A zone that is large enough, of nine endpoints in thirteen, takes all.
    for near in 2..=9 {
        let near = &*format!("near-{near}");
        shop.add(near, false, 100, "a").await;
    }
    shop.endpoints("usable", 13).await;
    eventually("the own zone takes all", async || {
        let counts = shop.counts(100).await;
        if counts.keys().all(|by| by.starts_with("near")) { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
}

/// One endpoint here and one elsewhere, of which the own takes all until it is overloaded.
async fn two_zones(limit: &str) -> Shop {
    let mut shop = Shop::start(false, &["near"]).await;
    shop.add("far", false, 100, "b").await;
    let spec = format!("  loadBalancer: {{zones: {{maximumLoadPercent: 200, {limit}}}}}");
    shop.policy(&spec, "maximum_load_percent: 200").await;
    shop.endpoints("usable", 2).await;
    assert_eq!(shop.counts(50).await, Counts::from([("near".to_owned(), 50)]));
    assert_eq!(shop.zone_picks("other").await, 0.0);
    shop
}

impl Shop {
    async fn zone_picks(&self, zone: &str) -> f64 {
        self.sum("tulle_balancer_zone_picks_total", &[("zone", zone)]).await
    }

    /// Asks until the share of the own zone in the last hundred requests `is` so, by the answers and by the metric.
    async fn share_of_near(&self, what: &str, is: impl Fn(f64) -> bool) {
        let mut wire = self.web.connect("shop").await;
        eventually(what, async || {
            let (own, other) = (self.zone_picks("own").await, self.zone_picks("other").await);
            let mut near = 0;
            for _ in 0..100 {
                near += usize::from(ask(&mut wire, "/", "").await.1 == "near");
            }
            let (own, other) = (self.zone_picks("own").await - own, self.zone_picks("other").await - other);
            assert_eq!((own, other), (near as f64, 100.0 - near as f64));
            if is(near as f64 / 100.0) { Ok(()) } else { Err(format!("{near} %")) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r24_what_is_too_slow_in_the_own_zone_spills_over_and_comes_back() {
    let shop = two_zones("latency: 40ms").await;
    let delay = &shop.servers["near"].how.delay;
    delay.store(100, Relaxed);
    shop.share_of_near("most goes elsewhere", |share| share < 0.5).await;
    delay.store(0, Relaxed);
    shop.share_of_near("all is back", |share| share == 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r24_what_the_own_zone_refuses_spills_over_and_comes_back() {
    let shop = two_zones("refusedPercent: 20").await;
    shop.answers("near", 429);
    shop.share_of_near("most goes elsewhere", |share| share < 0.5).await;
    shop.answers("near", 200);
    shop.share_of_near("all is back", |share| share == 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r24_what_is_too_much_at_once_spills_over_and_comes_back_only_once_it_is_well_below() {
    let shop = two_zones("requestsInFlight: 20").await;
    let how = &shop.servers["near"].how;
    let mut held = JoinSet::new();
    for _ in 0..20 {
        let mut wire = shop.web.connect("shop").await;
        held.spawn(async move { ask(&mut wire, "/hold", "").await });
    }
    eventually("all are there", async || {
        let there = how.held.load(Relaxed);
        if there == 20 { Ok(()) } else { Err(there.to_string()) }
    })
    .await;
    shop.share_of_near("nearly all goes elsewhere", |share| share <= 0.1).await;
    // 17 to 18 of 20 are below the limit, and not by a fifth: nothing comes back, though for two seconds a fifth of all could.
    how.released.send_replace(3);
    for _ in 0..3 {
        assert_eq!(held.join_next().await.unwrap().unwrap(), (200, "near".to_owned()));
    }
    let (begun, mut wire) = (std::time::Instant::now(), shop.web.connect("shop").await);
    let (mut near, mut all) = (0.0, 0.0_f64);
    while begun.elapsed() < Duration::from_secs(4) || all < 200.0 {
        let by = ask(&mut wire, "/", "").await.1;
        if begun.elapsed() > Duration::from_secs(2) {
            (near, all) = (near + f64::from(u8::from(by == "near")), all + 1.0);
        }
    }
    // What had gone elsewhere was 80 % or more of all: the share of near is at most 0.2, and by chance five times its deviation more.
    let most = 0.2 + 5.0 * (0.2 * 0.8 / all).sqrt();
    assert!(near / all < most, "{near} of {all}");
    how.released.send_replace(20);
    assert!(held.join_all().await.iter().all(|answer| *answer == (200, "near".to_owned())));
    shop.share_of_near("all is back", |share| share == 1.0).await;
}

impl Shop {
    /// The Service, with this `trafficDistribution`, if any.
    fn distributes(&self, how: &str) {
        let how = if how.is_empty() { String::new() } else { format!(", trafficDistribution: {how}") };
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: shop, namespace: default}}\nspec: {{clusterIP: None, ports: [{{name: main, \
             port: 8080, appProtocol: http}}]{how}}}\n"
        );
        self.world.yaml("service-shop.yaml", &service);
    }

    /// Asks until `is` so of a hundred requests.
    async fn asked_until(&self, what: &str, is: impl Fn(&Counts) -> bool) {
        eventually(what, async || {
            let counts = self.counts(100).await;
            if is(&counts) { Ok(()) } else { Err(format!("{counts:?}")) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r24_a_services_own_traffic_distribution_prefers_the_zone_without_a_policy() {
    let mut shop = Shop::start(false, &["near-1", "near-2", "near-3"]).await;
    shop.add("far", false, 100, "b").await;
    let all = |counts: &Counts| counts.len() == 4;
    let near = |counts: &Counts| counts.len() == 3 && !counts.contains_key("far");
    // The Service may be known before its endpoints are.
    eventually("it answers", async || {
        let (status, by) = shop.ask("/", "").await;
        if status == 200 { Ok(()) } else { Err(by) }
    })
    .await;
    shop.asked_until("all are used", all).await;
    for how in ["PreferSameZone", "PreferClose", "PreferSameNode"] {
        shop.distributes(how);
        shop.asked_until(&format!("{how}: the own zone takes all"), near).await;
        let before = (shop.zone_picks("own").await, shop.zone_picks("other").await);
        assert!(near(&shop.counts(100).await), "{how}");
        let after = (shop.zone_picks("own").await, shop.zone_picks("other").await);
        assert_eq!((after.0 - before.0, after.1 - before.1), (100.0, 0.0), "{how}");
        // A wish that is not known is none.
        let other = if how == "PreferClose" { "Nearby" } else { "" };
        shop.distributes(other);
        shop.asked_until(&format!("{how} is taken back: all are used"), all).await;
    }
    shop.world
        .control_plane_says(&["spec.trafficDistribution", "`PreferSameNode` is taken for `PreferSameZone`"])
        .await;
    shop.world.control_plane_says(&["spec.trafficDistribution", "`Nearby` is not known"]).await;

    // Who does not know its zone, or has no endpoint in its own, prefers nobody.
    shop.distributes("PreferSameZone");
    shop.asked_until("the own zone takes all", near).await;
    for (name, locality) in [("nowhere", None), ("elsewhere", Some("here/c"))] {
        let web = shop.world.workload(name).calls("shop");
        let web =
            locality.into_iter().fold(web, |web, locality| web.setting("--locality", locality)).start().await;
        let mut by = Counts::new();
        eventually(&format!("{name}: all are used"), async || {
            let mut wire = web.connect("shop").await;
            let (_, name) = ask(&mut wire, "/", "").await;
            *by.entry(name).or_default() += 1;
            let all = ["near-1", "near-2", "near-3", "far"].iter().all(|name| by.contains_key(*name));
            if all { Ok(()) } else { Err(format!("{by:?}")) }
        })
        .await;
    }
    // The other zone's own.
    let there = shop.world.workload("there").calls("shop").setting("--locality", "here/b").start().await;
    eventually("the endpoints are known", async || {
        let usable = there.metrics().await.sum("tulle_balancer_endpoints", &[("state", "usable")]);
        let mut wire = there.connect("shop").await;
        let (status, by) = ask(&mut wire, "/", "").await;
        if usable == 4.0 && status == 200 { Ok(()) } else { Err(format!("{usable} {status} {by}")) }
    })
    .await;
    let (mut wire, mut far) = (there.connect("shop").await, 0.0);
    for _ in 0..400 {
        far += f64::from(u8::from(ask(&mut wire, "/", "").await.1 == "far"));
    }
    // Half as much again as a quarter: 150 of 400, and by chance five times 9.7 more or less.
    assert!((101.0..=199.0).contains(&far), "{far}");
    drop(there);

    // Without an endpoint in the own zone all goes elsewhere.
    for name in ["near-1", "near-2", "near-3"] {
        shop.remove(name);
    }
    shop.endpoints("usable", 1).await;
    shop.asked_until("the other zone takes all", |counts| counts.keys().all(|by| by == "far")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r24_a_policys_zones_hold_before_the_services_traffic_distribution() {
    let mut shop = Shop::start(false, &["near"]).await;
    shop.add("far", false, 100, "b").await;
    shop.distributes("PreferSameZone");
    // Of two, half as much again: three quarters, and by chance five times 8.7 of 400 more or less.
    let share = |counts: &Counts| counts.get("near").copied().unwrap_or_default();
    shop.policy("  loadBalancer: {algorithm: RoundRobin}", "algorithm: RoundRobin").await;
    shop.endpoints("usable", 2).await;
    eventually("the Service's own is in force beside the policy", async || {
        let dump = shop.web.config_dump().await;
        if dump.contains("maximum_load_percent: 150") { Ok(()) } else { Err(dump) }
    })
    .await;
    let near = share(&shop.counts(400).await);
    assert!((256..=344).contains(&near), "{near}");
    let all = "  loadBalancer: {algorithm: RoundRobin, zones: {maximumLoadPercent: 200}}";
    shop.policy_of(all, "maximum_load_percent: 200").await;
    shop.asked_until("all stays", |counts| share(counts) == 100).await;
    // As much as without zones.
    let even = "  loadBalancer: {algorithm: RoundRobin, zones: {maximumLoadPercent: 100}}";
    shop.policy_of(even, "maximum_load_percent: 100").await;
    let near = share(&shop.counts(400).await);
    assert!((150..=250).contains(&near), "{near}");
}
