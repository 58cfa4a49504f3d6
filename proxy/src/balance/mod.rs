//! Which endpoint takes a request: peak-EWMA, the better of two drawn at random.
//!
//! Decides from each endpoint's [`Load`], a few atomics that all workers share: a moving average of latency that
//! jumps up at once and comes down over ten seconds, times the requests in flight. It must never read a clock, make
//! randomness, allocate on a pick or lock. Called by `forward`; the loads live in `endpoint`.
//!
//! Times are nanoseconds of one monotonic clock, whose zero does not matter.

mod load;
mod pick;

pub use load::{DECAY, Load, UNKNOWN_LATENCY};
pub use pick::{Candidate, pick};

#[cfg(test)]
mod tests;
