//! `Traffic`: how a port of a service is treated.

use tulle_api::v1;

use super::Result;
use crate::state::Traffic;

/// Of the port at `at`.
pub(super) fn traffic(message: Option<v1::Traffic>, _at: &str) -> Result<Traffic> {
    let v1::Traffic { .. } = message.unwrap_or_default();
    Ok(Traffic {})
}
