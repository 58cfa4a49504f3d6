//! How a port of a service is treated, as its TrafficPolicy says: decoded, compiled where it pays.

/// What holds for one port of a service. The default: nothing is said, and what the proxy does of itself holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {}
