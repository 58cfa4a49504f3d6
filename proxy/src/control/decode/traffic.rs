//! `Traffic`: how a port of a service is treated.

use tulle_api::v1;

use super::Result;
use super::requests::{budget, requests};
use super::rule::Patterns;
use crate::state::Traffic;

/// Of the port at `at`; `patterns`: the regular expressions of all the service's ports.
pub(super) fn traffic(message: Option<v1::Traffic>, patterns: &mut Patterns, at: &str) -> Result<Traffic> {
    let v1::Traffic { retry_budget, requests: of_requests, .. } = message.unwrap_or_default();
    Ok(Traffic {
        retry_budget: budget(retry_budget, &format!("{at}.retry_budget"))?,
        requests: requests(of_requests, patterns, &format!("{at}.requests"))?,
    })
}
