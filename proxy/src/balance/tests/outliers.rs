//! Which endpoints are ejected, for how long, and how they come back.

use std::time::Duration;

use super::super::standing::{EJECTED, PROBATION};
use super::plans::{ALGORITHMS, End, Port, by, end};
use super::*;

fn outliers() -> Outliers {
    Outliers {
        consecutive: [0; 4],
        grpc_codes: 1 << 14,
        success_rate: None,
        failure_percentage: None,
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(10),
        maximum_ejection: Duration::from_secs(35),
        maximum_ejected_percent: 50,
    }
}

fn watching(outliers: Outliers, n: usize) -> Port {
    Port::new(Policy { outliers: Some(outliers), ..by(Algorithm::Random) }, &vec![100; n])
}

fn record(port: &Port, i: usize, outcome: Outcome, now: u64) -> Option<Change> {
    port.group.record(&port.ends[i].standing, outcome, now)
}

fn ejected(port: &Port) -> usize {
    port.ends.iter().filter(|end| end.standing.has(EJECTED)).count()
}

#[test]
fn each_detector_counts_its_own_failures_in_a_row() {
    use Outcome::{ConnectFailed, Grpc, NoAnswer, Status};
    // Which detector, with a threshold of three, and what it comes to.
    let cases: [(usize, &[Outcome], Option<Cause>); 14] = [
        (0, &[Status(500), Status(503), Status(599)], Some(Cause::FiveXx)),
        (0, &[Status(500), NoAnswer, ConnectFailed], Some(Cause::FiveXx)),
        (0, &[Status(500), Status(500), Status(200), Status(500)], None),
        (0, &[Status(404), Status(429), Status(400), Status(499)], None),
        (1, &[Status(502), Status(503), Status(504)], Some(Cause::Gateway)),
        (1, &[NoAnswer, ConnectFailed, Status(503)], Some(Cause::Gateway)),
        (1, &[Status(502), Status(503), Status(500), Status(504)], None),
        (2, &[ConnectFailed, ConnectFailed, ConnectFailed], Some(Cause::Connect)),
        (2, &[ConnectFailed, ConnectFailed, Status(503), ConnectFailed], None),
        (2, &[NoAnswer, NoAnswer, NoAnswer], None),
        (3, &[Grpc(14), Grpc(14), Grpc(14)], Some(Cause::Grpc)),
        (3, &[Grpc(14), NoAnswer, Grpc(14), Grpc(14)], Some(Cause::Grpc)),
        (3, &[Grpc(14), Grpc(14), Grpc(0), Grpc(14)], None),
        (3, &[Grpc(5), Grpc(13), Grpc(5), Grpc(99)], None),
    ];
    for (detector, outcomes, expected) in cases {
        let mut rules = outliers();
        rules.consecutive[detector] = 3;
        let port = watching(rules, 4);
        let changes: Vec<_> = outcomes.iter().filter_map(|outcome| record(&port, 0, *outcome, 0)).collect();
        let time = Duration::from_secs(10);
        let told: Vec<_> = expected.map(|cause| Change::Ejected { cause, time }).into_iter().collect();
        assert_eq!(changes, told, "{detector} {outcomes:?}");
        assert_eq!(port.ends[0].standing.is_usable(), expected.is_none());
        assert!(record(&port, 1, Status(500), 0).is_none(), "each endpoint has its own counts");
    }
}

#[test]
fn an_ejection_lasts_longer_each_time_and_good_behaviour_is_remembered() {
    let mut rules = outliers();
    rules.consecutive[0] = 1;
    let port = watching(rules, 4);
    let mut now = 0;
    let time = |change: Option<Change>| match change {
        Some(Change::Ejected { time, .. }) => time.as_secs(),
        other => panic!("{other:?}"),
    };
    for (expected, cause) in
        [(10, Cause::FiveXx), (20, Cause::Probation), (30, Cause::Probation), (35, Cause::Probation)]
    {
        let change = record(&port, 0, Outcome::Status(500), now);
        assert!(matches!(change, Some(Change::Ejected { cause: why, .. }) if why == cause), "{change:?}");
        assert_eq!(time(change), expected);
        assert!(port.settle(now + (expected - 1) * SECOND).is_empty());
        now += expected * SECOND;
        assert_eq!(port.settle(now), [(0, Change::Probation)]);
        assert!(port.ends[0].standing.is_usable());
    }
    // One success, and its share grows.
    assert_eq!(record(&port, 0, Outcome::Status(200), now), None);
    assert_eq!(port.ends[0].standing.state(true), State::Warming);
    port.settle(now + 10 * SECOND);
    assert_eq!(port.ends[0].standing.state(true), State::Usable);
    // Two of the four are forgotten by now.
    port.settle(now + 20 * SECOND);
    assert_eq!(time(record(&port, 0, Outcome::Status(500), now + 20 * SECOND)), 30);
}

#[test]
fn probation_is_failed_by_what_the_policy_names_and_passed_by_what_it_takes() {
    use Outcome::{ConnectFailed, Grpc, NoAnswer, Status};
    use State::{Ejected, Probation, Warming};
    // Which detector there is, and what becomes of an endpoint on probation by each outcome.
    let cases: [(usize, &[(Outcome, State)]); 4] = [
        (0, &[(Status(500), Ejected), (NoAnswer, Ejected), (Status(200), Warming), (Status(404), Warming)]),
        (
            1,
            &[
                (Status(500), Warming),
                (Status(503), Ejected),
                (ConnectFailed, Ejected),
                (Status(200), Warming),
            ],
        ),
        (2, &[(Status(503), Warming), (NoAnswer, Warming), (ConnectFailed, Ejected), (Status(200), Warming)]),
        // What says nothing of gRPC neither fails it nor lets it off.
        (3, &[(Grpc(14), Ejected), (NoAnswer, Probation), (ConnectFailed, Probation), (Grpc(0), Warming)]),
    ];
    let tried = |rules: Outliers, outcome| {
        let port = watching(rules, 4);
        port.ends[0].standing.set(PROBATION);
        record(&port, 0, outcome, SECOND);
        port.ends[0].standing.state(true)
    };
    for (detector, outcomes) in cases {
        for (outcome, becomes) in outcomes {
            let mut rules = outliers();
            rules.consecutive[detector] = 5;
            assert_eq!(tried(rules, *outcome), *becomes, "{detector} {outcome:?}");
        }
    }
    // A window's criteria go by all.
    let rule = FailurePercentage { threshold_percent: 85, minimum_requests: 50 };
    for (outcome, becomes) in [(Status(500), Ejected), (Grpc(14), Ejected), (Status(200), Warming)] {
        let rules = Outliers { failure_percentage: Some(rule), ..outliers() };
        assert_eq!(tried(rules, outcome), becomes, "{outcome:?}");
    }
}

#[test]
fn no_more_are_ejected_than_may_be() {
    for (n, percent, most) in
        [(1, 100, 1), (2, 10, 1), (2, 1, 1), (10, 10, 1), (10, 35, 3), (10, 100, 10), (3, 50, 1)]
    {
        let mut rules = outliers();
        rules.consecutive[0] = 1;
        rules.maximum_ejected_percent = percent;
        let port = watching(rules, n);
        let changes = (0..n).filter_map(|i| record(&port, i, Outcome::Status(500), 0)).count();
        assert_eq!((changes, ejected(&port)), (most, most), "{n} {percent}");
        assert_eq!(port.group.counted().withheld, (n - most) as u64);
        assert_eq!(port.group.counted().ejections[0], most as u64);
    }
    let mut rules = outliers();
    rules.consecutive[0] = 1;
    let port = watching(rules, 1);
    assert_eq!(record(&port, 0, Outcome::Status(500), 0), None, "the only one");
}

#[test]
fn one_that_succeeds_much_less_than_the_others_stands_out() {
    let mut rules = outliers();
    rules.success_rate = Some(SuccessRate { deviations: 1900, minimum_endpoints: 5, minimum_requests: 100 });
    let window = |port: &Port, failing: &[(usize, u32)], requests: u32, now: u64| {
        for i in 0..port.ends.len() {
            let failures = failing.iter().find(|(one, _)| *one == i).map_or(1, |(_, failures)| *failures);
            for request in 0..requests {
                let status = if request < failures { 500 } else { 200 };
                assert_eq!(record(port, i, Outcome::Status(status), now), None);
            }
        }
        port.settle(now)
    };
    let changes = window(&watching(rules.clone(), 6), &[(2, 40)], 100, 10 * SECOND);
    assert!(matches!(changes[..], [(2, Change::Ejected { cause: Cause::SuccessRate, .. })]), "{changes:?}");
    // Too few requests, too few endpoints, before the window ends, and all alike.
    assert!(window(&watching(rules.clone(), 6), &[(2, 40)], 99, 10 * SECOND).is_empty());
    assert!(window(&watching(rules.clone(), 4), &[(2, 40)], 100, 10 * SECOND).is_empty());
    assert!(window(&watching(rules.clone(), 6), &[(2, 40)], 100, 9 * SECOND).is_empty());
    assert!(window(&watching(rules, 6), &[], 100, 10 * SECOND).is_empty());
}

#[test]
fn one_that_fails_too_often_is_out_whatever_the_others_do() {
    let mut rules = outliers();
    rules.failure_percentage = Some(FailurePercentage { threshold_percent: 30, minimum_requests: 20 });
    let port = watching(rules, 4);
    for request in 0..20 {
        let status =
            |percent| if request * 100 < percent * 20 { Outcome::Status(503) } else { Outcome::Status(200) };
        for (i, percent) in [30, 25, 60, 90].into_iter().enumerate() {
            record(&port, i, status(percent), 0);
        }
    }
    // Two of four at most: the worst.
    let changes = port.settle(10 * SECOND);
    assert_eq!(changes.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [3, 2]);
    assert!(port.settle(20 * SECOND).iter().all(|(_, change)| *change == Change::Probation), "a new window");
}

#[test]
fn a_change_of_others_touches_neither_load_nor_ejection() {
    let mut rules = outliers();
    rules.consecutive[0] = 1;
    let mut port = watching(rules, 4);
    record(&port, 1, Outcome::Status(500), 0);
    port.ends[1].load.start(0);
    port.ends[2].standing.grow(5);
    let gone = port.ends.remove(0);
    port.ends.push(end(99, 100));
    port.update(&[gone], SECOND);
    assert!(port.ends[0].standing.has(EJECTED) && port.ends[0].load.in_flight() == 1);
    assert_eq!(port.ends[1].standing.state(true), State::Warming);
    assert_eq!(port.settle(10 * SECOND), [(0, Change::Probation)]);
}

#[test]
fn those_that_are_left_are_not_ejected_beyond_the_share() {
    let mut rules = outliers();
    rules.consecutive[0] = 1;
    let mut port = watching(rules, 8);
    (0..4).for_each(|i| assert!(record(&port, i, Outcome::Status(500), i as u64).is_some()));
    assert_eq!(ejected(&port), 4);
    let gone: Vec<End> = port.ends.drain(4..).collect();
    port.update(&gone, 0);
    assert_eq!(ejected(&port), 2);
    assert!(
        port.ends[2].standing.has(EJECTED) && port.ends[3].standing.has(EJECTED),
        "the last are still out"
    );
    assert_eq!(record(&port, 0, Outcome::Status(500), 9), None, "no more than that");
    // One that is gone counts for nobody.
    assert_eq!(port.group.record(&gone[0].standing, Outcome::Status(500), 9), None);
    port.policy.outliers = None;
    port.update(&[], 0);
    assert_eq!(ejected(&port), 0);
    assert!(!port.group.is_watched());
}

/// Servers that fail by turns, endpoints that come and go, workers that see little of each other's: whatever happens,
/// some things hold.
#[test]
fn whatever_happens_no_ejected_endpoint_is_picked_and_no_more_are_ejected_than_may_be() {
    seeds(30, |seed, mut rng| {
        let mut policy = by(ALGORITHMS[seed as usize % ALGORITHMS.len()]);
        policy.balancer.panic_percent = if rng.one_in(2) { 0 } else { 40 };
        policy.balancer.warm_up =
            rng.one_in(2).then_some(WarmUp { duration: Duration::from_secs(5), minimum_percent: 10 });
        policy.balancer.zones = rng.one_in(2).then_some(Zones {
            maximum_load_percent: 150,
            latency: Some(Duration::from_millis(20)),
            in_flight: 20,
            refused_percent: 10,
        });
        let mut rules = outliers();
        rules.consecutive = [5, 3, 2, 0];
        rules.base_ejection = Duration::from_secs(2);
        rules.interval = Duration::from_secs(1);
        rules.failure_percentage = Some(FailurePercentage { threshold_percent: 50, minimum_requests: 10 });
        rules.maximum_ejected_percent = 1 + rng.below(100) as u32;
        policy.outliers = Some(rules.clone());
        let n = 2 + rng.below(8);
        let mut port = Port::new(policy, &(0..n).map(|_| *rng.choose(&[50, 100, 200])).collect::<Vec<_>>());
        let mut failing = vec![0_usize; n];
        let mut names = 1000;
        let mut under_way: Vec<(u64, u64, u64)> = Vec::new();
        let (mut now, mut used) = (SECOND, std::collections::BTreeSet::new());
        for step in 0..4_000_u64 {
            now += rng.below(4 * MS as usize) as u64;
            if step % 50 == 0 {
                port.settle(now);
            }
            if rng.one_in(400) {
                let mut gone = Vec::new();
                if port.ends.len() > 1 && rng.one_in(2) {
                    let i = rng.below(port.ends.len());
                    failing.remove(i);
                    gone.push(port.ends.remove(i));
                } else {
                    names += 1;
                    port.ends.push(end(names, 100));
                    failing.push(0);
                    port.ends.last().unwrap().standing.grow(now);
                }
                under_way.retain(|(_, _, name)| gone.iter().all(|end: &End| end.name != *name));
                let i = rng.below(port.ends.len());
                port.ends[i].ready = !rng.one_in(3);
                port.ends.iter().for_each(|end| end.standing.set_local(end.name % 2 == 0));
                port.update(&gone, now);
            }
            if rng.one_in(100) {
                let i = rng.below(failing.len());
                failing[i] = *rng.choose(&[0, 0, 30, 100]);
            }
            let Some(i) = port.pick(Some(rng.next()), now, rng.next()) else { panic!("nobody") };
            let picked = &port.ends[i];
            let usable = port.ends.iter().any(|end| end.seen().may_take());
            if usable && !port.group.is_panicking() {
                assert!(picked.seen().may_take(), "{:?}", picked.standing.state(picked.ready));
            }
            if port.ends.iter().any(|end| end.ready) {
                assert!(picked.ready);
            }
            used.insert(picked.name);
            picked.load.start(now);
            under_way.push((now + (1 + rng.below(20) as u64) * MS, now, picked.name));
            under_way.sort_unstable();
            while under_way.first().is_some_and(|(at, ..)| *at <= now) {
                let (at, begun, name) = under_way.remove(0);
                let Some(i) = port.ends.iter().position(|end| end.name == name) else { continue };
                let bad = rng.below(100) < failing[i];
                port.ends[i].load.finish(at, at - begun, !bad);
                let outcome = match (bad, rng.below(3)) {
                    (false, _) => Outcome::Status(200),
                    (true, 0) => Outcome::Status(503),
                    (true, 1) => Outcome::NoAnswer,
                    (true, _) => Outcome::ConnectFailed,
                };
                record(&port, i, outcome, at);
            }
            assert!(
                ejected(&port) <= rules.most(port.ends.len()),
                "{} of {}",
                ejected(&port),
                port.ends.len()
            );
        }
        for (_, begun, name) in under_way {
            let end = port.ends.iter().find(|end| end.name == name).unwrap();
            end.load.finish(now, now - begun, true);
        }
        assert!(port.ends.iter().all(|end| end.load.in_flight() == 0));
        // Once all serve again, all come back.
        for step in 0..4_000_u64 {
            now += 5 * MS;
            if step % 20 == 0 {
                port.settle(now);
            }
            let i = port.pick(Some(rng.next()), now, rng.next()).unwrap();
            port.ends[i].load.start(now);
            port.ends[i].load.finish(now + MS, MS, true);
            record(&port, i, Outcome::Status(200), now + MS);
        }
        for end in &port.ends {
            assert!(!end.standing.has(EJECTED));
            assert!(!end.standing.has(PROBATION) || !end.ready, "it was tried");
        }
    });
}

#[test]
fn threads_never_eject_more_than_may_be() {
    let mut rules = outliers();
    rules.consecutive[0] = 2;
    rules.maximum_ejected_percent = 30;
    let port = watching(rules, 10);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let port = &port;
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                for now in 0..20_000 {
                    let status = *rng.choose(&[200, 500]);
                    record(port, rng.below(10), Outcome::Status(status), now * MS);
                    if now % 100 == 0 {
                        port.settle(now * MS);
                    }
                }
            });
        }
    });
    // Nobody else changes anything now: what is counted is what there is.
    assert!(ejected(&port) <= 3);
    (0..10).for_each(|i| {
        (0..2).for_each(|_| {
            record(&port, i, Outcome::Status(500), 0);
        })
    });
    assert_eq!(ejected(&port), 3);
}
