//! How even the default is among endpoints that do not differ, and what it leaves to those that do (R14), with clients that send their next
//! request once the last is answered.

use super::*;

/// Latencies of an endpoint's answers, in milliseconds: logarithmically normal around `median`.
#[derive(Clone, Copy)]
struct Answers {
    median: f64,
    spread: f64,
    /// How much longer one of a thousand takes, at most.
    pause: f64,
    /// How many times longer the first endpoint's take.
    slower: f64,
}

const fn answers(median: f64, spread: f64, pause: f64, slower: f64) -> Answers {
    Answers { median, spread, pause, slower }
}

// === impl Answers ===

impl Answers {
    fn latency(&self, endpoint: usize, rng: &mut Rng) -> u64 {
        let normal = (-2.0 * (1.0 - rng.unit()).ln()).sqrt() * (std::f64::consts::TAU * rng.unit()).cos();
        let slower = if endpoint == 0 { self.slower } else { 1.0 };
        let usual = self.median * (self.spread * normal).exp() * slower;
        // No two are quite the same.
        let usual = usual * (1.0 + 0.02 * endpoint as f64);
        let pause = if rng.below(1000) == 0 { rng.unit() * self.pause } else { 0.0 };
        ((usual + pause) * MS as f64) as u64
    }
}

// === impl World ===

impl World {
    /// Has `clients` send `requests`, each its next when the one before is answered.
    fn ask(&mut self, clients: usize, requests: usize, answers: &Answers) {
        for _ in 0..requests {
            while self.ends.len() >= clients {
                let first = self.ends.peek().unwrap().0.0;
                self.now = self.now.max(first);
                self.settle();
            }
            self.run(1, 0, |i, rng| (answers.latency(i, rng), true));
        }
    }
}

/// The shares of 4,000 requests, once two of four endpoints have come later.
fn shares(clients: usize, answers: &Answers, rng: Rng) -> Vec<f64> {
    let mut world = World::new(2, rng);
    world.ask(clients, 4_000, answers);
    world.loads.extend(loads(2));
    world.picked.resize(4, 0);
    world.most_in_flight.resize(4, 0);
    world.ask(clients, 4_000, answers);
    world.picked.fill(0);
    world.ask(clients, 4_000, answers);
    (0..4).map(|i| world.share(i)).collect()
}

#[test]
fn r14_shares_of_equals_are_within_15_percent_soon_after_there_are_more() {
    let kinds = [
        answers(0.1, 0.2, 0.0, 1.0),
        answers(0.2, 0.3, 20.0, 1.0),
        answers(2.0, 0.3, 20.0, 1.0),
        answers(5.0, 0.5, 0.0, 1.0),
        answers(20.0, 0.3, 50.0, 1.0),
    ];
    for (kind, answers) in kinds.iter().enumerate() {
        for clients in [1, 20] {
            // 4,000 of them are a quarter each but for 2.7 % by chance alone: 15 % are more than five times that.
            seeds(5, |_, rng| {
                let shares = shares(clients, answers, rng);
                let even = shares.iter().all(|share| (0.25 * 0.85..=0.25 * 1.15).contains(share));
                assert!(even, "kind {kind}, {clients} clients: {shares:?}");
            });
        }
    }
}

#[test]
fn shares_of_the_slower_are_less() {
    // Clients, and the most that one of four endpoints may get, which is slower.
    let cases = [
        (1, answers(20.0, 0.3, 0.0, 2.0), 0.16),
        (20, answers(20.0, 0.3, 0.0, 2.0), 0.18),
        (20, answers(1.0, 0.3, 0.0, 2.0), 0.19),
        (1, answers(5.0, 0.3, 0.0, 10.0), 0.005),
        (20, answers(5.0, 0.3, 0.0, 10.0), 0.02),
        (1, answers(1.0, 0.3, 0.0, 10.0), 0.02),
        (20, answers(0.2, 0.3, 0.0, 10.0), 0.06),
    ];
    for (i, (clients, answers, most)) in cases.iter().enumerate() {
        seeds(5, |_, rng| {
            let shares = shares(*clients, answers, rng);
            assert!(shares[0] <= *most, "case {i}: {shares:?}");
        });
    }
}
