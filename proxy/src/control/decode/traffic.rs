//! `Traffic`: how a port of a service is treated.

use tulle_api::v1;

use super::Result;
use super::health::health_check;
use super::requests::{budget, requests};
use super::rule::Patterns;
use crate::state::Traffic;

/// Of the port at `at`; `patterns`: the regular expressions of all the service's ports.
pub(super) fn traffic(message: Option<v1::Traffic>, patterns: &mut Patterns, at: &str) -> Result<Traffic> {
    let v1::Traffic { health_check: check, retry_budget, requests: of_requests, .. } =
        message.unwrap_or_default();
    let check = check.map(|check| health_check(check, &format!("{at}.health_check")));
    Ok(Traffic {
        health_check: check.transpose()?,
        retry_budget: budget(retry_budget, &format!("{at}.retry_budget"))?,
        requests: requests(of_requests, patterns, &format!("{at}.requests"))?,
    })
}
