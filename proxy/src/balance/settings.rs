//! How the endpoints of a port are balanced, as its TrafficPolicy says.

use std::time::Duration;

/// How one of a port's endpoints is chosen. The default is what holds where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadBalancer {
    pub algorithm: Algorithm,
    /// What [`Algorithm::RingHash`] and [`Algorithm::Maglev`] hash: the first of these that a request has.
    pub hash: Box<[HashKey]>,
    pub warm_up: Option<WarmUp>,
    pub zones: Option<Zones>,
    /// When fewer of a hundred endpoints are usable, all are used; 0: only when none is.
    pub panic_percent: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    #[default]
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Random,
    RingHash,
    Maglev,
}

/// Something of a request that decides where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    Header(http::HeaderName),
    Cookie(Box<str>),
    Query(Box<str>),
    /// The client's IP address.
    Source,
}

/// A new endpoint's share grows from `minimum_percent` of the others' to all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarmUp {
    pub duration: Duration,
    /// 1–100.
    pub minimum_percent: u32,
}

/// How much the own zone takes before others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zones {
    /// The most that one endpoint may get, in percent of what each would without zones; at least 100.
    pub maximum_load_percent: u32,
    /// The average latency of the own zone's endpoints from which on more and more goes elsewhere.
    pub latency: Option<Duration>,
    /// Likewise, of requests in flight to one of them; 0: not looked at.
    pub in_flight: u32,
    /// Likewise, of answers 429 and 503 in a hundred; 0: not looked at.
    pub refused_percent: u32,
}

/// Which endpoints get nothing for a while, since they do not serve; counts that are 0 are not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outliers {
    /// Failures in a row, by [`Detector`](super::Detector).
    pub consecutive: [u32; 4],
    /// gRPC statuses that are failures; bit 1 to bit 16.
    pub grpc_codes: u32,
    pub success_rate: Option<SuccessRate>,
    pub failure_percentage: Option<FailurePercentage>,
    /// The window of the two.
    pub interval: Duration,
    /// How long the first time; each time in a row so much longer, up to `maximum_ejection`.
    pub base_ejection: Duration,
    pub maximum_ejection: Duration,
    /// Of all endpoints; one may always be, of two or more.
    pub maximum_ejected_percent: u32,
}

/// Below the mean of the endpoints by more than so many standard deviations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// In thousandths.
    pub deviations: u32,
    /// Endpoints with `minimum_requests` in the window that there must be.
    pub minimum_endpoints: u32,
    pub minimum_requests: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailurePercentage {
    /// 1–100.
    pub threshold_percent: u32,
    pub minimum_requests: u32,
}

/// What holds for the endpoints of one port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub balancer: LoadBalancer,
    /// `None`: none is ejected.
    pub outliers: Option<Outliers>,
    /// They are asked whether they are healthy.
    pub checked: bool,
}

// === impl LoadBalancer ===

impl LoadBalancer {
    /// Whether endpoints are chosen by something of the request.
    pub fn is_by_hash(&self) -> bool {
        matches!(self.algorithm, Algorithm::RingHash | Algorithm::Maglev)
    }
}

// === impl Policy ===

impl Policy {
    /// Whether anything changes by itself as time passes.
    pub fn is_timed(&self) -> bool {
        self.outliers.is_some()
            || self.checked
            || self.balancer.zones.is_some()
            || self.balancer.warm_up.is_some()
    }

    /// How the share of an endpoint grows that has come, or comes back.
    pub(super) fn growth(&self) -> WarmUp {
        const BACK: WarmUp = WarmUp { duration: Duration::from_secs(10), minimum_percent: 10 };
        self.balancer.warm_up.unwrap_or(BACK)
    }
}
