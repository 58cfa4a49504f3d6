//! The better of two drawn at random.

use super::Load;
use super::draws::Draws;

/// One endpoint as the balancer sees it.
#[derive(Clone, Copy, Debug)]
pub enum Candidate<'a> {
    Ready(&'a Load),
    /// Starting or draining: picked only when none is ready.
    Standby(&'a Load),
    /// Not to be picked: this request has tried it, say.
    Excluded,
}

/// Picks one of `n` endpoints, which `candidate` describes by their numbers; `None` if all are excluded.
///
/// `random` is one uniformly random number. Of two different endpoints drawn with it, the one with the lower
/// [`Load::cost`] is taken. Usually looks at two endpoints only; at all of them when one of those is not ready.
pub fn pick<'a>(
    n: usize,
    candidate: impl Fn(usize) -> Candidate<'a>,
    now: u64,
    random: u64,
) -> Option<usize> {
    let mut random = Draws(random);
    if n >= 2 {
        let first = random.below(n);
        let second = (first + 1 + random.below(n - 1)) % n;
        if let (Candidate::Ready(a), Candidate::Ready(b)) = (candidate(first), candidate(second)) {
            return Some(if b.cost(now, 1.0).is_less_than(a.cost(now, 1.0)) { second } else { first });
        }
    }
    let (mut ready, mut standby) = (Pair::default(), Pair::default());
    for i in 0..n {
        match candidate(i) {
            Candidate::Ready(load) => ready.offer(i, load, &mut random),
            Candidate::Standby(load) => standby.offer(i, load, &mut random),
            Candidate::Excluded => {}
        }
    }
    ready.better(now).or_else(|| standby.better(now))
}

/// Two, uniformly at random, of those offered so far (reservoir sampling), in random order.
#[derive(Default)]
struct Pair<'a> {
    offered: usize,
    kept: [Option<(usize, &'a Load)>; 2],
}

// === impl Pair ===

impl<'a> Pair<'a> {
    fn offer(&mut self, i: usize, load: &'a Load, random: &mut Draws) {
        let place = match self.offered {
            0 => 0,
            1 => 1,
            n => random.below(n + 1),
        };
        self.offered += 1;
        if self.offered == 2 && random.below(2) == 0 {
            // Ties go to the first: let it be either.
            self.kept = [Some((i, load)), self.kept[0]];
        } else if let Some(kept) = self.kept.get_mut(place) {
            *kept = Some((i, load));
        }
    }

    fn better(&self, now: u64) -> Option<usize> {
        match self.kept {
            [Some((i, a)), Some((j, b))] => {
                Some(if b.cost(now, 1.0).is_less_than(a.cost(now, 1.0)) { j } else { i })
            }
            [first, _] => first.map(|(i, _)| i),
        }
    }
}
