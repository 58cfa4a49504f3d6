use super::*;

mod outliers;
mod plans;
mod shares;

use crate::testing::{Rng, seeds};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

fn ready<'a>(loads: &'a [Load]) -> impl Fn(usize) -> Candidate<'a> {
    |i| Candidate::Ready(&loads[i])
}

fn loads(n: usize) -> Vec<Load> {
    (0..n).map(|_| Load::new()).collect()
}

/// The cost of one more request, as one number.
fn cost(load: &Load, now: u64) -> f64 {
    let Cost { latency, queue } = load.cost(now, 1.0);
    latency * queue
}

// === one load ===

#[test]
fn latency_goes_up_within_a_few_answers_and_comes_down_slowly() {
    let load = Load::new();
    assert_eq!(load.latency(0), None);
    let at = |now: u64, latency: u64| {
        load.start(now - latency);
        load.finish(now, latency, true);
        load.latency(now).unwrap() / MS as f64
    };
    assert_eq!(at(SECOND, 10 * MS), 10.0);
    // One slow answer is one, and sixteen are what it is like.
    let after = at(SECOND + MS, 90 * MS);
    assert!(after > 14.9 && after < 15.1, "{after}");
    (2..17).for_each(|n| assert!(at(SECOND + n * MS, 90 * MS) < 90.0));
    let after = at(SECOND + 17 * MS, 10 * MS);
    assert!(after > 60.0 && after < 65.0, "{after}");
    let later = at(SECOND + 17 * MS + DECAY, 10 * MS);
    assert!(later > 14.0 && later < 15.5, "{later}");
    assert_eq!(load.in_flight(), 0);
}

#[test]
fn differences_that_mean_nothing_do_not_decide_and_requests_in_flight_do() {
    // Latencies of two, requests in flight at each, and whether the first is better, or neither.
    let cases = [
        (MS / 10, MS / 5, 0, 0, None),
        (MS / 10, 4 * MS, 0, 0, None),
        (MS / 10, 4 * MS, 1, 0, Some(false)),
        (20 * MS, 29 * MS, 0, 0, None),
        (20 * MS, 29 * MS, 4, 3, Some(false)),
        (20 * MS, 40 * MS, 0, 0, Some(true)),
        (MS, 10 * MS, 0, 0, Some(true)),
        // Ten times slower is worth some queueing …
        (10 * MS, 100 * MS, 4, 0, Some(true)),
        // … and as much less than it is slower.
        (10 * MS, 30 * MS, 2, 0, Some(false)),
    ];
    for (a, b, busy_a, busy_b, expected) in cases {
        let two = loads(2);
        for (load, latency, busy) in [(&two[0], a, busy_a), (&two[1], b, busy_b)] {
            load.start(0);
            load.finish(SECOND, latency, true);
            (0..busy).for_each(|_| load.start(SECOND));
        }
        let (a_cost, b_cost) = (two[0].cost(SECOND, 1.0), two[1].cost(SECOND, 1.0));
        let better = match (a_cost.is_less_than(b_cost), b_cost.is_less_than(a_cost)) {
            (false, false) => None,
            (first, second) => {
                assert_ne!(first, second);
                Some(first)
            }
        };
        assert_eq!(better, expected, "{a} {b} {busy_a} {busy_b}");
    }
}

#[test]
fn what_is_not_used_is_forgotten_bit_by_bit() {
    let load = Load::new();
    load.start(0);
    load.finish(100 * MS, 100 * MS, true);
    let e = load.latency(100 * MS + DECAY).unwrap() / load.latency(100 * MS).unwrap();
    assert!((e - (-1.0_f64).exp()).abs() < 1e-9, "{e}");
}

#[test]
fn a_fast_failure_does_not_look_like_a_fast_answer() {
    let (good, bad) = (Load::new(), Load::new());
    for now in 1..50 {
        good.start(now * MS);
        good.finish(now * MS, 5 * MS, true);
        bad.start(now * MS);
        bad.finish(now * MS, MS / 10, false);
    }
    assert!(cost(&bad, 50 * MS) > 10.0 * cost(&good, 50 * MS));
    assert!(bad.latency(50 * MS).unwrap() <= 10.0 * SECOND as f64);
}

#[test]
fn silence_counts_while_an_answer_is_owed_and_not_while_a_response_goes_on() {
    let load = Load::new();
    load.start(0);
    load.finish(20 * MS, 20 * MS, true);
    let idle = cost(&load, 20 * MS);
    load.start(20 * MS);
    assert!(cost(&load, SECOND) >= 2.0 * 0.97 * SECOND as f64);
    load.answer(3 * SECOND, 20 * MS, true);
    // The response is streaming: one more in flight, and no silence.
    assert!(cost(&load, 30 * SECOND) <= 2.0 * idle);
    load.end();
    assert!(cost(&load, 30 * SECOND) < idle);
}

#[test]
fn a_silent_endpoint_is_tried_at_times_and_has_its_share_again_once_it_answers() {
    let load = Load::new();
    load.start(0);
    load.finish(20 * MS, 20 * MS, true);
    let idle = cost(&load, 20 * MS);
    // A long poll.
    load.start(20 * MS);
    assert!(cost(&load, 900 * MS) > 20.0 * idle);
    assert!(cost(&load, 1100 * MS) <= 2.0 * idle, "it may be tried");
    load.start(1100 * MS);
    assert!(cost(&load, 1200 * MS) > 20.0 * idle, "not again at once");
    // The longer it is silent, the rarer.
    load.start(20 * SECOND);
    assert!(cost(&load, 24 * SECOND) > 20.0 * idle);
    assert!(cost(&load, 27 * SECOND) <= 4.0 * idle);
    load.finish(27 * SECOND, 20 * MS, true);
    assert!(cost(&load, 27 * SECOND + 100 * MS) <= 30.0 * idle, "it lives: it is silent since then");
}

#[test]
fn giving_up_counts_only_if_it_took_longer_than_usual() {
    let load = Load::new();
    load.start(0);
    load.finish(10 * MS, 10 * MS, true);
    load.start(10 * MS);
    load.abandon(12 * MS, 2 * MS);
    assert!(load.latency(12 * MS).unwrap() <= 10.0 * MS as f64);
    load.start(12 * MS);
    load.abandon(SECOND, SECOND - 12 * MS);
    assert!(load.latency(SECOND).unwrap() > 900.0 * MS as f64);
    assert_eq!(load.in_flight(), 0);
}

#[test]
fn counts_never_wrap_whatever_the_caller_does() {
    let load = Load::new();
    load.finish(1, 1, true);
    load.end();
    load.abandon(2, 1);
    assert_eq!(load.in_flight(), 0);
    assert!(cost(&load, 3).is_finite());
    // Times that go backwards, as they do between threads.
    load.start(100);
    load.finish(50, 10, true);
    assert!(cost(&load, 0).is_finite());
}

#[test]
fn threads_may_share_a_load() {
    let load = Load::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for now in 0..10_000 {
                    load.start(now * 1000);
                    load.finish(now * 1000, 5 * MS, now % 100 != 0);
                }
            });
        }
    });
    assert_eq!(load.in_flight(), 0);
    assert!(load.latency(SECOND).is_some_and(|latency| latency > 0.0 && latency <= 10.0 * SECOND as f64));
}

// === picks ===

#[test]
fn nobody_is_picked_of_none() {
    let one = loads(1);
    assert_eq!(pick(0, |_| Candidate::Excluded, 0, 7), None);
    assert_eq!(pick(3, |_| Candidate::Excluded, 0, 7), None);
    assert_eq!(pick(1, ready(&one), 0, 7), Some(0));
}

#[test]
fn the_better_of_two_is_picked() {
    let two = loads(2);
    for (load, latency) in two.iter().zip([10 * MS, 20 * MS]) {
        load.start(0);
        load.finish(MS, latency, true);
    }
    seeds(300, |_, mut rng| {
        assert_eq!(pick(2, ready(&two), MS, rng.next()), Some(0));
    });
}

#[test]
fn standby_is_picked_only_when_none_is_ready_and_the_excluded_never() {
    seeds(500, |_, mut rng| {
        let all = loads(1 + rng.below(8));
        let kinds: Vec<usize> = all.iter().map(|_| rng.below(3)).collect();
        let candidate = |i: usize| match kinds[i] {
            0 => Candidate::Ready(&all[i]),
            1 => Candidate::Standby(&all[i]),
            _ => Candidate::Excluded,
        };
        let best = kinds.iter().min().copied().filter(|kind| *kind < 2);
        for _ in 0..20 {
            let picked = pick(all.len(), candidate, 0, rng.next());
            assert_eq!(picked.map(|i| kinds[i]), best, "{kinds:?}");
        }
    });
}

#[test]
fn picks_among_equals_are_uniform_also_when_some_are_out() {
    const PICKS: usize = 20_000;
    for n in [2, 3, 10] {
        for out in [0, 1, 4] {
            let all = loads(n + out);
            // Spread the excluded among the others.
            let excluded = |i: usize| i % 2 == 1 && i / 2 < out || i >= n + out;
            let candidate =
                |i: usize| if excluded(i) { Candidate::Excluded } else { Candidate::Ready(&all[i]) };
            let remaining = (0..n + out).filter(|i| !excluded(*i)).count();
            let mut rng = Rng::new(n as u64);
            let mut counts = vec![0_usize; n + out];
            for _ in 0..PICKS {
                counts[pick(n + out, candidate, 0, rng.next()).unwrap()] += 1;
            }
            let expected = PICKS as f64 / remaining as f64;
            let chi: f64 = (0..n + out)
                .filter(|i| !excluded(*i))
                .map(|i| (counts[i] as f64 - expected).powi(2) / expected)
                .sum();
            // At most 13 degrees of freedom: 40 is beyond one in ten thousand.
            assert!(chi < 40.0, "{counts:?}: {chi}");
        }
    }
}

// === a simulated service ===

/// Servers with a latency each, under a stream of requests that arrive at random.
struct World {
    now: u64,
    loads: Vec<Load>,
    rng: Rng,
    /// When, which endpoint, begun when, well or not.
    ends: std::collections::BinaryHeap<std::cmp::Reverse<(u64, usize, u64, bool)>>,
    picked: Vec<usize>,
    most_in_flight: Vec<u32>,
}

impl World {
    fn new(n: usize, rng: Rng) -> Self {
        Self {
            now: SECOND,
            loads: loads(n),
            rng,
            ends: std::collections::BinaryHeap::new(),
            picked: vec![0; n],
            most_in_flight: vec![0; n],
        }
    }

    /// Sends `requests`, on average `gap` apart; `serve` gives the latency and the success of one at an endpoint.
    fn run(&mut self, requests: usize, gap: u64, mut serve: impl FnMut(usize, &mut Rng) -> (u64, bool)) {
        for _ in 0..requests {
            self.now += (-(1.0 - self.rng.unit()).ln() * gap as f64) as u64;
            self.settle();
            let i = pick(self.loads.len(), ready(&self.loads), self.now, self.rng.next()).unwrap();
            self.loads[i].start(self.now);
            self.picked[i] += 1;
            self.most_in_flight[i] = self.most_in_flight[i].max(self.loads[i].in_flight());
            let (latency, success) = serve(i, &mut self.rng);
            self.ends.push(std::cmp::Reverse((self.now + latency, i, self.now, success)));
        }
    }

    fn settle(&mut self) {
        while let Some(std::cmp::Reverse((end, i, begun, success))) = self.ends.peek().copied() {
            if end > self.now {
                break;
            }
            self.ends.pop();
            self.loads[i].finish(end, end - begun, success);
        }
    }

    fn share(&self, i: usize) -> f64 {
        self.picked[i] as f64 / self.picked.iter().sum::<usize>() as f64
    }
}

/// Around `mean`, never less than half of it.
fn around(mean: u64, rng: &mut Rng) -> u64 {
    mean / 2 + (rng.unit() * mean as f64) as u64
}

#[test]
fn equals_get_equal_shares() {
    seeds(60, |_, rng| {
        let n = 5;
        let mut world = World::new(n, rng);
        world.run(8_000, MS, |_, rng| (around(5 * MS, rng), true));
        for i in 0..n {
            let share = world.share(i);
            assert!((0.17..0.23).contains(&share), "endpoint {i} got {share}: {:?}", world.picked);
        }
    });
}

#[test]
fn the_faster_get_more() {
    seeds(60, |_, rng| {
        let mut world = World::new(4, rng);
        // The first two are ten times slower.
        world.run(5_000, MS, |i, rng| (around(if i < 2 { 50 * MS } else { 5 * MS }, rng), true));
        let (slow, fast) = (world.share(0) + world.share(1), world.share(2) + world.share(3));
        assert!(fast > 3.0 * slow, "{:?}", world.picked);
        assert!(world.picked.iter().all(|n| *n > 0));
    });
}

#[test]
fn an_endpoint_that_hangs_gets_little() {
    seeds(25, |_, rng| {
        let mut world = World::new(4, rng);
        world.run(2_000, MS, |_, rng| (around(5 * MS, rng), true));
        world.picked.fill(0);
        // For a quarter of a minute, one never answers.
        world.run(15_000, MS, |i, rng| (if i == 0 { 3600 * SECOND } else { around(5 * MS, rng) }, true));
        assert!(world.share(0) < 0.002, "{:?}", world.picked);
    });
}

#[test]
fn an_endpoint_that_fails_fast_is_no_black_hole_and_is_used_again_when_mended() {
    seeds(25, |_, rng| {
        let mut world = World::new(4, rng);
        world.run(1_000, 10 * MS, |_, rng| (around(5 * MS, rng), true));
        world.picked.fill(0);
        world.run(
            3_000,
            10 * MS,
            |i, rng| if i == 0 { (MS / 10, false) } else { (around(5 * MS, rng), true) },
        );
        assert!(world.share(0) < 0.01, "{:?}", world.picked);
        // Two minutes to come back, then it has its share again.
        world.run(12_000, 10 * MS, |_, rng| (around(5 * MS, rng), true));
        world.picked.fill(0);
        world.run(4_000, 10 * MS, |_, rng| (around(5 * MS, rng), true));
        assert!(world.share(0) > 0.15, "{:?}", world.picked);
    });
}

#[test]
fn a_newcomer_is_used_at_once_and_not_flooded() {
    seeds(60, |_, rng| {
        let mut world = World::new(5, rng);
        for load in &world.loads[..4] {
            load.start(SECOND - 5 * MS);
            load.finish(SECOND, 5 * MS, true);
        }
        // The last has never been used; it warms up: its first answers are slow.
        world.run(1_000, MS / 4, |i, rng| (around(if i == 4 { 200 * MS } else { 5 * MS }, rng), true));
        assert!(world.picked[4] > 0);
        assert!(world.most_in_flight[4] <= 3, "{} at once", world.most_in_flight[4]);
    });
}

#[test]
fn a_burst_at_the_start_is_spread() {
    seeds(100, |_, rng| {
        let mut world = World::new(8, rng);
        world.run(800, 1, |_, _| (SECOND, true));
        for n in &world.picked {
            assert!((80..=120).contains(n), "{:?}", world.picked);
        }
    });
}

#[test]
fn unequal_capacity_is_not_overrun() {
    // One endpoint of four has a quarter of the others' capacity: its latency grows with what is in flight there.
    seeds(40, |_, rng| {
        let mut world = World::new(4, rng);
        let flights: Vec<std::cell::Cell<u32>> = (0..4).map(|_| std::cell::Cell::new(0)).collect();
        for _ in 0..30 {
            for (flight, load) in flights.iter().zip(&world.loads) {
                flight.set(load.in_flight());
            }
            world.run(500, MS, |i, rng| {
                let unit = if i == 0 { 4 * MS } else { MS };
                (around(unit * (1 + u64::from(flights[i].get())), rng), true)
            });
        }
        assert!(world.share(0) < 0.2, "{:?}", world.picked);
    });
}
