//! The algorithms, by statistics over seeds, and what changes them: weights, a growing share, zones, too few left.

use std::time::Duration;

use super::super::standing::{EJECTED, PROBATION, PROBE, UNHEALTHY};
use super::*;
use crate::testing::allocations;

/// The endpoints of a port.
pub(super) struct Port {
    pub policy: Policy,
    pub group: Group,
    pub plan: Option<Plan>,
    pub ends: Vec<End>,
}

pub(super) struct End {
    pub name: u64,
    pub load: Load,
    pub standing: Standing,
    pub ready: bool,
    pub weight: u32,
}

pub(super) const ALGORITHMS: [Algorithm; 6] = [
    Algorithm::PeakEwma,
    Algorithm::LeastRequest,
    Algorithm::RoundRobin,
    Algorithm::Random,
    Algorithm::RingHash,
    Algorithm::Maglev,
];

pub(super) fn end(name: u64, weight: u32) -> End {
    let (load, standing) = (Load::new(), Standing::default());
    End { name: hash(&name.to_le_bytes()), load, standing, ready: true, weight }
}

pub(super) fn by(algorithm: Algorithm) -> Policy {
    // Also the default has a plan where endpoints may be unhealthy.
    Policy { balancer: LoadBalancer { algorithm, ..LoadBalancer::default() }, outliers: None, checked: true }
}

impl End {
    pub(super) fn seen(&self) -> Seen<'_> {
        Seen { load: &self.load, standing: &self.standing, ready: self.ready, weight: self.weight }
    }
}

impl Port {
    pub(super) fn new(policy: Policy, weights: &[u32]) -> Self {
        let ends = (0..).zip(weights).map(|(name, weight)| end(name, *weight)).collect();
        let mut port = Self { policy, group: Group::new(0), plan: None, ends };
        port.update(&[], 0);
        port
    }

    /// Endpoints have come or gone.
    pub(super) fn update(&mut self, gone: &[End], now: u64) {
        let gone = gone.iter().map(|end| &end.standing);
        self.group.update(&self.policy, self.ends.iter().map(End::seen), gone, now);
        self.plan = Plan::new(&self.policy, self.ends.iter().map(|end| (end.name, end.seen())));
    }

    pub(super) fn settle(&self, now: u64) -> Vec<(usize, Change)> {
        self.group.settle(self.ends.iter().map(End::seen), now)
    }

    pub(super) fn pick(&self, key: Option<u64>, now: u64, random: u64) -> Option<usize> {
        let look = |i: usize| Some(self.ends[i].seen());
        self.plan.as_ref().unwrap().pick(&self.group, look, key, now, random)
    }

    /// A request is picked for, and sent there.
    fn send(&self, key: Option<u64>, now: u64, random: u64) -> usize {
        let i = self.pick(key, now, random).unwrap();
        self.group.sent(&self.ends[i].standing);
        i
    }

    /// How many of so many requests of different clients each gets, none of which is answered before the last is sent …
    fn spread(&self, requests: usize, rng: &mut Rng) -> Vec<usize> {
        let mut counts = vec![0; self.ends.len()];
        for _ in 0..requests {
            let key = self.policy.balancer.is_by_hash().then(|| rng.next());
            let i = self.send(key, SECOND, rng.next());
            self.ends[i].load.start(SECOND);
            counts[i] += 1;
        }
        // … all then within the same time.
        self.ends.iter().for_each(|end| {
            while end.load.in_flight() > 0 {
                end.load.finish(SECOND, MS, true)
            }
        });
        counts
    }

    fn shares(&self, requests: usize, rng: &mut Rng) -> Vec<f64> {
        self.spread(requests, rng).into_iter().map(|n| n as f64 / requests as f64).collect()
    }
}

#[test]
fn the_default_needs_no_plan_and_weights_do() {
    assert!(Port::new(Policy::default(), &[100, 100, 100]).plan.is_none());
    assert!(Port::new(Policy::default(), &[100, 50, 100]).plan.is_some());
    assert!(Port::new(by(Algorithm::Random), &[100, 100]).plan.is_some());
}

#[test]
fn each_algorithm_spreads_evenly_over_equals() {
    const REQUESTS: usize = 20_000;
    for algorithm in ALGORITHMS {
        for n in [2, 3, 10] {
            let port = Port::new(by(algorithm), &vec![100; n]);
            let counts = port.spread(REQUESTS, &mut Rng::new(n as u64));
            let expected = REQUESTS as f64 / n as f64;
            let chi: f64 = counts.iter().map(|n| (*n as f64 - expected).powi(2) / expected).sum();
            match algorithm {
                // A ring's points are as they fall: within a fifth.
                Algorithm::RingHash => {
                    let off = counts.iter().map(|n| (*n as f64 - expected).abs() / expected);
                    assert!(off.fold(0.0, f64::max) < 0.2, "{n}: {counts:?}");
                }
                // Exact.
                Algorithm::RoundRobin => assert!(chi < 0.01, "{n}: {counts:?}"),
                // 9 degrees of freedom at most: beyond one in ten thousand.
                _ => assert!(chi < 34.0, "{algorithm:?} {n}: {counts:?}"),
            }
        }
    }
}

#[test]
fn each_algorithm_follows_weights() {
    for algorithm in ALGORITHMS {
        let weights = [100, 400, 200, 100, 200];
        let shares = Port::new(by(algorithm), &weights).shares(20_000, &mut Rng::new(7));
        let within = match algorithm {
            Algorithm::RoundRobin => 0.001,
            Algorithm::Random | Algorithm::Maglev => 0.015,
            _ => 0.04,
        };
        for (share, weight) in shares.iter().zip(weights) {
            assert!((share - f64::from(weight) / 1000.0).abs() < within, "{algorithm:?}: {shares:?}");
        }
    }
}

#[test]
fn round_robin_takes_turns_over_all_workers_and_spreads_what_one_gets() {
    let port = Port::new(by(Algorithm::RoundRobin), &[300, 100]);
    let order: Vec<_> = (0..8).map(|_| port.pick(None, 0, 1).unwrap()).collect();
    assert_eq!(order.iter().filter(|i| **i == 1).count(), 2, "{order:?}");
    assert!(order.windows(2).all(|two| two != [1, 1]), "{order:?}");
    let port = Port::new(by(Algorithm::RoundRobin), &[100; 4]);
    let picked: Vec<_> = std::thread::scope(|scope| {
        let picks = || (0..1000).map(|_| port.pick(None, 0, 1).unwrap()).collect::<Vec<_>>();
        let threads = [scope.spawn(picks), scope.spawn(picks)];
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    for i in 0..4 {
        assert_eq!(picked.iter().filter(|picked| **picked == i).count(), 500);
    }
}

#[test]
fn those_that_are_out_leave_the_others_an_even_share() {
    for algorithm in ALGORITHMS {
        let mut port = Port::new(by(algorithm), &[100; 8]);
        port.ends[1].ready = false;
        port.ends[4].standing.set(EJECTED);
        port.group.set_healthy(&port.ends[6].standing, false, port.ends.iter().map(End::seen), 0);
        let shares = port.shares(20_000, &mut Rng::new(3));
        for (i, share) in shares.iter().enumerate() {
            match i {
                1 | 4 | 6 => assert_eq!(*share, 0.0, "{algorithm:?} {shares:?}"),
                _ => assert!((0.13..0.28).contains(share), "{algorithm:?} {shares:?}"),
            }
        }
        assert_eq!(port.group.counted().panics, 0);
    }
}

#[test]
fn r15_a_hash_moves_little_when_one_endpoint_comes_or_goes_or_is_out() {
    const KEYS: u64 = 5_000;
    for algorithm in [Algorithm::RingHash, Algorithm::Maglev] {
        for n in [2_usize, 3, 10, 40] {
            let mut port = Port::new(by(algorithm), &vec![100; n]);
            let placed = |port: &Port| -> Vec<u64> {
                let mut rng = Rng::new(1);
                let place =
                    |k: u64| port.ends[port.pick(Some(hash(&k.to_le_bytes())), 0, rng.next()).unwrap()].name;
                (0..KEYS).map(place).collect()
            };
            let before = placed(&port);
            assert_eq!(before, placed(&port), "the same key, the same endpoint");
            let moved =
                |other: &[u64]| before.iter().zip(other).filter(|(a, b)| a != b).count() as f64 / KEYS as f64;
            let most = 1.0 / n as f64 + 0.05;
            port.ends.insert(n / 2, end(1000, 100));
            port.update(&[], 0);
            let one_more = moved(&placed(&port));
            assert!(one_more > 0.0 && one_more <= most, "{algorithm:?} {n}: {one_more}");
            let gone = port.ends.remove(n / 2);
            port.update(&[gone], 0);
            assert_eq!(moved(&placed(&port)), 0.0, "as it was");
            // Out for a while: only what was its own goes elsewhere, and comes back.
            let out = port.ends[n - 1].name;
            port.ends[n - 1].standing.set(EJECTED);
            let without = placed(&port);
            assert!(before.iter().zip(&without).all(|(a, b)| if *a == out { b != a } else { a == b }));
            port.ends[n - 1].standing.clear(EJECTED);
            assert_eq!(moved(&placed(&port)), 0.0);
        }
    }
}

#[test]
fn a_hash_is_the_same_in_every_proxy_and_version() {
    assert_eq!(hash(b"10.0.0.1:8080"), 16_626_783_001_958_982_370);
}

#[test]
fn a_request_without_a_key_goes_anywhere() {
    for algorithm in [Algorithm::RingHash, Algorithm::Maglev] {
        let port = Port::new(by(algorithm), &[100; 4]);
        let mut rng = Rng::new(1);
        let mut counts = [0; 4];
        (0..4000).for_each(|_| counts[port.pick(None, 0, rng.next()).unwrap()] += 1);
        assert!(counts.iter().all(|n| (850..1150).contains(n)), "{counts:?}");
    }
}

#[test]
fn tables_are_bounded_and_the_smallest_weight_is_there() {
    for algorithm in ALGORITHMS {
        let weights: Vec<u32> = (0..2000).map(|i| if i % 2 == 0 { 1 } else { 1000 }).collect();
        let port = Port::new(by(algorithm), &weights);
        let mut rng = Rng::new(1);
        assert!(port.pick(Some(rng.next()), 0, rng.next()).is_some());
    }
    let port = Port::new(by(Algorithm::RoundRobin), &[1, 1000]);
    let mut rng = Rng::new(1);
    assert!((0..2100).any(|_| port.pick(None, 0, rng.next()) == Some(0)));
}

#[test]
fn a_pick_allocates_nothing() {
    for algorithm in ALGORITHMS {
        let mut port = Port::new(by(algorithm), &[100, 200, 100, 300]);
        port.ends[1].ready = false;
        port.ends[2].standing.grow(0);
        let mut rng = Rng::new(1);
        port.pick(Some(1), 1, 1);
        let before = allocations();
        (0..200).for_each(|_| assert!(port.pick(Some(rng.next()), 1, rng.next()).is_some()));
        assert_eq!(allocations() - before, 0, "{algorithm:?}");
    }
}

#[test]
fn a_new_endpoints_share_grows_and_never_falls() {
    let warm_up = Some(WarmUp { duration: Duration::from_secs(10), minimum_percent: 10 });
    for algorithm in ALGORITHMS {
        let mut policy = by(algorithm);
        policy.balancer.warm_up = warm_up;
        let port = Port::new(policy, &[100; 4]);
        port.ends[3].standing.grow(0);
        let mut before = 0.0;
        for second in [0, 2, 4, 6, 8, 10, 12] {
            let now = second * SECOND;
            port.settle(now);
            let mut rng = Rng::new(5);
            let mut counts = [0_usize; 4];
            for _ in 0..8_000 {
                let i = port.pick(Some(rng.next()), now, rng.next()).unwrap();
                counts[i] += 1;
                // Each is as busy as the others.
                port.ends.iter().for_each(|end| {
                    end.load.start(now);
                    end.load.finish(now, MS, true);
                });
            }
            let share = counts[3] as f64 / 8_000.0;
            assert!(share > before - 0.015, "{algorithm:?} at {second}: {share} after {before}");
            let most = 0.25 * (0.1 + 0.9 * second as f64 / 10.0).min(1.0);
            assert!(share < most * 1.35 + 0.02 && share > most * 0.6, "{algorithm:?} at {second}: {share}");
            before = share;
        }
        assert_eq!(port.ends[3].standing.state(true), State::Usable);
    }
}

#[test]
fn a_growing_share_does_not_move_keys_to_and_fro() {
    let mut policy = by(Algorithm::Maglev);
    policy.balancer.warm_up = Some(WarmUp { duration: Duration::from_secs(10), minimum_percent: 10 });
    let port = Port::new(policy, &[100; 4]);
    port.ends[3].standing.grow(0);
    for key in 0..500_u64 {
        let key = hash(&key.to_le_bytes());
        let places: Vec<_> = (0..=10).map(|s| port.pick(Some(key), s * SECOND, 1).unwrap()).collect();
        let moves = places.windows(2).filter(|two| two[0] != two[1]).count();
        assert!(moves <= 1, "{places:?}");
    }
}

#[test]
fn too_few_left_means_all_but_those_not_ready() {
    let mut policy = by(Algorithm::RoundRobin);
    policy.balancer.panic_percent = 50;
    let mut port = Port::new(policy, &[100; 6]);
    port.ends[0].ready = false;
    (1..4).for_each(|i| port.ends[i].standing.set(UNHEALTHY));
    port.update(&[], 0);
    assert!(port.group.is_panicking());
    let counts = port.spread(1000, &mut Rng::new(1));
    assert_eq!(counts, [0, 200, 200, 200, 200, 200]);
    assert_eq!(port.group.counted().panics, 1000);
    port.ends[1].standing.clear(UNHEALTHY);
    port.update(&[], 0);
    assert!(!port.group.is_panicking());
    assert_eq!(port.spread(900, &mut Rng::new(1)), [0, 300, 0, 0, 300, 300]);
}

#[test]
fn without_a_threshold_all_are_used_only_when_none_is_left_and_those_not_ready_last() {
    for algorithm in ALGORITHMS {
        let mut port = Port::new(by(algorithm), &[100; 3]);
        port.ends[0].ready = false;
        port.ends[1].standing.set(UNHEALTHY);
        port.update(&[], 0);
        let mut rng = Rng::new(1);
        let mut only = |port: &Port| {
            let first = port.pick(Some(1), 0, 1).unwrap();
            (0..50).all(|_| port.pick(Some(rng.next()), 0, rng.next()) == Some(first)).then_some(first)
        };
        assert_eq!(only(&port), Some(2));
        port.ends[2].ready = false;
        // Also before anybody has looked again.
        assert_eq!(only(&port), Some(1));
        port.update(&[], 0);
        assert_eq!(only(&port), Some(1));
        port.ends[1].ready = false;
        port.update(&[], 0);
        assert!(port.pick(Some(1), 0, 1).is_some());
    }
}

// === zones ===

fn zoned(zones: Zones, local: usize, others: usize, algorithm: Algorithm) -> Port {
    let mut policy = by(algorithm);
    policy.balancer.zones = Some(zones);
    let mut port = Port::new(policy, &vec![100; local + others]);
    port.ends[..local].iter().for_each(|end| end.standing.set_local(true));
    port.update(&[], 0);
    port
}

fn preference() -> Zones {
    Zones { maximum_load_percent: 150, latency: None, in_flight: 0, refused_percent: 0 }
}

#[test]
fn r24_no_endpoint_gets_more_than_its_cap_however_skewed_the_zones_are() {
    for algorithm in ALGORITHMS {
        for (local, others) in [(1, 4), (4, 1), (2, 2), (3, 6), (1, 1)] {
            let port = zoned(preference(), local, others, algorithm);
            let counts = port.spread(20_000, &mut Rng::new(1));
            let mean = 20_000.0 / (local + others) as f64;
            // What a hash decides comes on top, and within a zone of several what chance does; where neither has a say, a request.
            let cap = match algorithm {
                Algorithm::RingHash => 1.8,
                Algorithm::RoundRobin => 1.5 + 1.0 / mean,
                _ if local == 1 && algorithm != Algorithm::Maglev => 1.5 + 1.0 / mean,
                _ => 1.55,
            };
            let most = *counts.iter().max().unwrap() as f64 / mean;
            assert!(most <= cap, "{algorithm:?} {local}:{others} {counts:?}");
            let here: usize = counts[..local].iter().sum();
            let fair = local as f64 / (local + others) as f64;
            let expected = (fair * 1.5).min(1.0);
            assert!((here as f64 / 20_000.0 - expected).abs() < 0.03, "{algorithm:?} {counts:?}");
            assert_eq!(port.group.counted().zones, [here as u64, 20_000 - here as u64]);
        }
    }
}

#[test]
fn r24_the_own_zones_share_is_kept_to_in_any_stretch_and_over_all_workers() {
    // One of five endpoints here, which takes three of ten.
    let port = zoned(preference(), 1, 4, Algorithm::PeakEwma);
    let picks: Vec<bool> = {
        let mut rng = Rng::new(1);
        (0..2_000).map(|_| port.send(None, SECOND, rng.next()) == 0).collect()
    };
    for stretch in [10, 100, 1_000] {
        for picks in picks.windows(stretch) {
            let here = picks.iter().filter(|here| **here).count() as f64;
            assert!((here - 0.3 * stretch as f64).abs() < 2.0, "{here} of {stretch}");
        }
    }
    // Whoever asks for something else by turns is not sent elsewhere with it.
    for (every, first) in [(2, 0), (2, 1), (10, 0), (10, 5)] {
        let picks = picks.iter().skip(first).step_by(every);
        let share = picks.clone().filter(|here| **here).count() as f64 / picks.count() as f64;
        assert!((share - 0.3).abs() < 0.12, "each {every}. from {first} on: {share}");
    }
    let here: usize = std::thread::scope(|scope| {
        let picks = |seed| {
            let mut rng = Rng::new(seed);
            (0..1_000).filter(|_| port.send(None, SECOND, rng.next()) == 0).count()
        };
        let threads = [1, 2].map(|seed| scope.spawn(move || picks(seed)));
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    // Each may have picked before the other's was sent.
    assert!((597..=603).contains(&here), "{here}");
}

#[test]
fn r24_what_is_picked_again_is_counted_where_it_is_sent() {
    // Of what is picked for the own zone, which gets three of ten, each second is picked once more, since its endpoint has no room just then.
    let port = zoned(preference(), 1, 4, Algorithm::PeakEwma);
    let (mut rng, mut has_room, mut here) = (Rng::new(1), false, 0);
    for _ in 0..2_000 {
        let mut i = port.pick(None, SECOND, rng.next()).unwrap();
        if i == 0 {
            has_room = !has_room;
            if !has_room {
                let others = |i: usize| (i > 0).then(|| port.ends[i].seen());
                i = port.plan.as_ref().unwrap().pick(&port.group, others, None, SECOND, rng.next()).unwrap();
            }
        }
        port.group.sent(&port.ends[i].standing);
        here += usize::from(i == 0);
    }
    assert!((598..=602).contains(&here), "{here}");
}

#[test]
fn r24_what_was_long_owed_is_not_made_up_for_all_at_once() {
    let port = zoned(preference(), 1, 4, Algorithm::Random);
    // Sessions, which nobody picks for, all elsewhere; then as many requests that are picked for.
    (0..1_000).for_each(|_| port.group.sent(&port.ends[1].standing));
    let mut rng = Rng::new(1);
    let here = (0..1_000).filter(|_| port.send(None, SECOND, rng.next()) == 0).count();
    assert!((300..320).contains(&here), "{here}");
}

#[test]
fn all_stay_in_the_own_zone_where_that_is_large_enough() {
    for algorithm in ALGORITHMS {
        let port = zoned(preference(), 4, 2, algorithm);
        assert_eq!(port.spread(2000, &mut Rng::new(1))[4..], [0, 0]);
    }
}

#[test]
fn without_anybody_left_in_the_own_zone_the_others_take_over() {
    for algorithm in ALGORITHMS {
        let port = zoned(preference(), 2, 2, algorithm);
        port.ends[..2].iter().for_each(|end| end.standing.set(EJECTED));
        // At once, before anybody has looked again.
        let counts = port.spread(1000, &mut Rng::new(1));
        assert_eq!(counts[..2], [0, 0]);
        assert_eq!(counts.iter().sum::<usize>(), 1000);
    }
}

#[test]
fn r24_what_is_too_much_goes_elsewhere_bit_by_bit_and_comes_back_well_after() {
    let zones = Zones { latency: Some(Duration::from_millis(100)), in_flight: 0, ..preference() };
    let port = zoned(zones, 3, 3, Algorithm::Random);
    let mut now = SECOND;
    // The local part after so many looks at a latency.
    let mut after = |looks: usize, latency: u64| {
        for _ in 0..looks {
            now += 60 * SECOND;
            port.ends[..3].iter().for_each(|end| {
                end.load.start(now - latency);
                end.load.finish(now, latency, true);
            });
            port.settle(now);
        }
        let mut rng = Rng::new(9);
        (0..10_000).filter(|_| port.send(None, now, rng.next()) < 3).count() as f64 / 10_000.0
    };
    let calm = after(1, 10 * MS);
    assert!(calm > 0.74 && calm < 1.0 + f64::EPSILON, "{calm}");
    let mut before = calm;
    for _ in 0..8 {
        let part = after(2, 150 * MS);
        assert!(part < before && before - part < 0.15, "{before} → {part}");
        before = part;
    }
    // Never so much elsewhere that one there gets more than its cap.
    let least = after(100, 900 * MS);
    assert!((0.22..0.28).contains(&least), "{least}");
    // Just below the limit nothing comes back; well below it does, bit by bit.
    assert!((after(20, 90 * MS) - least).abs() < 0.02);
    let some = after(60, 20 * MS);
    assert!(some > least + 0.05 && some < 0.99, "{some}");
    assert!(after(100, 20 * MS) > 0.74);
}

#[test]
fn refusals_and_queues_spill_too() {
    let port = zoned(Zones { refused_percent: 20, ..preference() }, 2, 2, Algorithm::Random);
    let share = |port: &Port| {
        let mut rng = Rng::new(9);
        (0..4000).filter(|_| port.send(None, 0, rng.next()) < 2).count() as f64 / 4000.0
    };
    let calm = share(&port);
    for look in 0..20 {
        (0..10).for_each(|n| {
            let status = if n < 5 { 429 } else { 200 };
            assert_eq!(port.group.record(&port.ends[0].standing, Outcome::Status(status), look), None);
        });
        port.settle(look * MS);
    }
    let spilt = share(&port);
    assert!(spilt < calm - 0.2, "{calm} → {spilt}");
    let port = zoned(Zones { in_flight: 5, ..preference() }, 2, 2, Algorithm::Random);
    port.ends[..2].iter().for_each(|end| (0..8).for_each(|_| end.load.start(0)));
    (0..20).for_each(|look| drop(port.settle(look * MS)));
    assert!(share(&port) < calm - 0.2);
}

#[test]
fn probation_is_one_request_at_a_time() {
    for algorithm in ALGORITHMS {
        let port = Port::new(by(algorithm), &[100; 3]);
        port.ends[2].standing.set(PROBATION);
        let mut rng = Rng::new(1);
        let mut picks = 0;
        for _ in 0..300 {
            let i = port.pick(Some(rng.next()), 0, rng.next()).unwrap();
            port.ends[i].load.start(0);
            picks += usize::from(i == 2);
        }
        assert_eq!(picks, 1, "{algorithm:?}");
        // What has long been under way there, a stream, does not keep it out.
        let now = PROBE;
        let tried = (0..300).filter(|_| port.pick(Some(rng.next()), now, rng.next()) == Some(2));
        assert_eq!(tried.count(), 1, "{algorithm:?}");
    }
}

#[test]
fn the_last_resort_goes_by_the_endpoints_and_not_by_their_order() {
    let place = |algorithm, names: [u64; 5]| {
        let mut port = Port::new(by(algorithm), &[]);
        port.ends = names.into_iter().map(|name| end(name, 100)).collect();
        // Nobody is ready, so that no table is asked.
        port.ends.iter_mut().for_each(|end| end.ready = false);
        port.update(&[], 0);
        let picked = (0..100_u64).map(|key| port.pick(Some(hash(&key.to_le_bytes())), 0, 1).unwrap());
        picked.map(|i| names[i]).collect::<Vec<_>>()
    };
    for algorithm in [Algorithm::RingHash, Algorithm::Maglev] {
        let all = place(algorithm, [1, 2, 3, 4, 5]);
        assert_eq!(place(algorithm, [4, 1, 5, 3, 2]), all);
        // Each has some.
        assert!((1..=5).all(|name| all.contains(&name)), "{all:?}");
    }
}
