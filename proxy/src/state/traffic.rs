//! How a port of a service is treated, as its TrafficPolicy says: decoded, compiled where it pays.

use super::{Connections, HealthCheck, Limits};
use crate::balance::{LoadBalancer, Outliers};
use crate::route::{BudgetSpec, RequestPolicy};

/// What holds for one port of a service. The default: nothing is said, and what the proxy does of itself holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// How many of the requests that come here may be sent again.
    pub retry_budget: BudgetSpec,
    /// For what the rule that a request follows, if there is one, does not say; `None`: nothing.
    pub requests: Option<Box<RequestPolicy>>,
    /// `None`: no endpoint is asked.
    pub health_check: Option<HealthCheck>,
    /// `None`: peak EWMA, without a warm-up, zones or a panic threshold.
    pub load_balancer: Option<LoadBalancer>,
    /// `None`: no endpoint is ejected.
    pub outlier_detection: Option<Outliers>,
    /// `None`: no limits.
    pub limits: Option<Limits>,
    pub connections: Connections,
}
