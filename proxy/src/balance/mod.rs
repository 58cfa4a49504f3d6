//! Which endpoint takes a request.
//!
//! Without a policy: peak-EWMA, the better of two drawn at random ([`pick()`]), from each endpoint's [`Load`], a few atomics
//! that all workers share: a moving average of latency that goes up within a few answers and comes down over ten seconds,
//! times the requests in flight. Where a TrafficPolicy or weights say more, a [`Plan`] of the port decides, which knows the other
//! algorithms, zones and shares that grow, and each endpoint's [`Standing`]: whether it is ejected or unhealthy, which its
//! port's [`Group`] decides from what requests come to and from the time.
//!
//! It must never read a clock, make randomness, allocate on a pick or lock there. Called by `forward`; the loads and
//! standings live in `endpoint`, whose sets hold groups and plans.
//!
//! Times are nanoseconds of one monotonic clock, whose zero does not matter.

mod draws;
mod group;
mod load;
mod pick;
mod plan;
mod settings;
mod standing;
mod table;
mod zones;

pub use draws::hash;
pub use group::{Cause, Change, Counted, Detector, Group, Outcome, Seen};
pub use load::{Cost, DECAY, Held, Load, UNKNOWN_LATENCY};
pub use pick::{Candidate, pick};
pub use plan::Plan;
pub use settings::{
    Algorithm, FailurePercentage, HashKey, LoadBalancer, Outliers, Policy, SuccessRate, WarmUp, Zones,
};
pub use standing::{Standing, State};

#[cfg(test)]
mod tests;
