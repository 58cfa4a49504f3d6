//! For seeded tests: every case is made from one number, which a failure prints and `TULLE_SEED` replays. And for tests
//! of what something allocates: a count by thread.

#[path = "../../tests/allocations.rs"]
mod allocations;

pub(crate) use self::allocations::allocations;

/// A small, fast, repeatable generator (splitmix64).
pub(crate) struct Rng(u64);

// === impl Rng ===

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`; 0 for 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Uniform in `0.0..1.0`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Changes, removes, inserts or doubles bytes here and there.
    pub(crate) fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 if !bytes.is_empty() => bytes[at] = self.next() as u8,
                1 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                2 if !bytes.is_empty() => drop(bytes.remove(at)),
                3 => bytes.truncate(at),
                _ => {
                    let more: Vec<u8> = (0..self.below(5)).map(|_| self.next() as u8).collect();
                    bytes.splice(at..at, more);
                }
            }
        }
    }
}

/// Runs `case` for the seeds `0..count`, or only for the one that `TULLE_SEED` names; `TULLE_SEEDS_TIMES` makes it so
/// many times as many.
pub(crate) fn seeds(count: u64, case: impl Fn(u64, Rng)) {
    #[allow(clippy::disallowed_methods, reason = "replays or lengthens a test; not configuration")]
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let all = 0..count * number("TULLE_SEEDS_TIMES").unwrap_or(1);
    let range = number("TULLE_SEED").map_or(all, |seed| seed..seed + 1);
    for seed in range {
        let failed = Failed(seed);
        case(seed, Rng::new(seed));
        std::mem::forget(failed);
    }
}

/// Tells the seed when a case panics.
struct Failed(u64);

impl Drop for Failed {
    fn drop(&mut self) {
        eprintln!("failed with TULLE_SEED={}", self.0);
    }
}
