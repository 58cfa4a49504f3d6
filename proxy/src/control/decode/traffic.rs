//! `Traffic`: how a port of a service is treated.

use tulle_api::v1;

use super::Result;
use super::balance::{load_balancer, outliers};
use super::health::health_check;
use super::limits::{connections, limits};
use super::requests::{budget, requests};
use super::rule::Patterns;
use crate::state::Traffic;

/// Of the port at `at`; `patterns`: the regular expressions of all the service's ports.
pub(super) fn traffic(message: Option<v1::Traffic>, patterns: &mut Patterns, at: &str) -> Result<Traffic> {
    let v1::Traffic {
        load_balancer: balancer,
        outlier_detection,
        health_check: check,
        retry_budget,
        requests: of_requests,
        limits: of_limits,
        connections: of_connections,
    } = message.unwrap_or_default();
    let balancer = balancer.map(|balancer| load_balancer(balancer, &format!("{at}.load_balancer")));
    let outlier_detection = outlier_detection.map(|one| outliers(one, &format!("{at}.outlier_detection")));
    let check = check.map(|check| health_check(check, &format!("{at}.health_check")));
    Ok(Traffic {
        load_balancer: balancer.transpose()?,
        outlier_detection: outlier_detection.transpose()?,
        health_check: check.transpose()?,
        limits: of_limits.map(|one| limits(one, &format!("{at}.limits"))).transpose()?,
        connections: connections(of_connections.unwrap_or_default(), &format!("{at}.connections"))?,
        retry_budget: budget(retry_budget, &format!("{at}.retry_budget"))?,
        requests: requests(of_requests, patterns, &format!("{at}.requests"))?,
    })
}
