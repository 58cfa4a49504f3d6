//! What is said of connections to a service's port, and of how much may be under way there at once.

use std::time::Duration;

/// Of one proxy, over all its workers; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub connections: u32,
    pub connections_per_endpoint: u32,
    pub requests: u32,
    pub requests_per_endpoint: u32,
    /// Requests that wait for one of these, or for a connection.
    pub pending: u32,
    /// How long one waits for what the limits keep from it.
    pub queue_timeout: Duration,
}

/// Of durations, `None`: the proxy's own setting; zero: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    pub connect_timeout: Option<Duration>,
    /// Between two requests.
    pub idle_timeout: Option<Duration>,
    /// Takes no new requests after it, give or take a tenth.
    pub maximum_age: Option<Duration>,
    pub keep_alive: Option<KeepAlive>,
}

/// TCP's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// Silence before the first probe.
    pub time: Duration,
    pub interval: Duration,
    /// Unanswered ones before the connection is given up.
    pub probes: u32,
}
