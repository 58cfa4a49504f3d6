//! Random numbers from one, and hashes that are the same in every proxy.

/// Random numbers from one (splitmix64).
pub(super) struct Draws(pub(super) u64);

// === impl Draws ===

impl Draws {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// Uniform in `0..n`; 0 for 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// True so often, of 1.
    pub(super) fn chance(&mut self, of: f64) -> bool {
        unit(self.next()) < of
    }
}

pub(super) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads the bits of a number (the end of splitmix64).
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Uniform in `0.0..1.0`, of a number whose bits are spread.
pub(super) fn unit(mixed: u64) -> f64 {
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

/// The hash of what a request goes by, and of an endpoint's name: the same in every proxy and version, so that they agree
/// (FNV-1a, its bits spread).
pub fn hash(bytes: &[u8]) -> u64 {
    let fold = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}
