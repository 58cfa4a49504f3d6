//! How rules keep clients at one endpoint.

use tulle_api::v1;

use super::rule::header_name;
use super::{Result, duration, fault};
use crate::route::{Backend, Session, TokenPlace, backend_id};

/// The session of the rule at `at`.
pub(super) fn session(message: v1::SessionPersistence, backends: &[Backend], at: &str) -> Result<Session> {
    let at = format!("{at}.session_persistence");
    let name = header_name(&message.name, &format!("{at}.name"))?;
    let absolute_timeout = duration(message.absolute_timeout, &format!("{at}.absolute_timeout"))?;
    let permanent = message.permanent;
    if permanent && absolute_timeout.is_none() {
        return Err(fault(format!("{at}.absolute_timeout"), "is missing, and the cookie is permanent"));
    }
    let place = match v1::SessionTokenPlace::try_from(message.place) {
        // Case and all: a cookie's name has the same characters as a field's (RFC 6265 §4.1.1).
        Ok(v1::SessionTokenPlace::Cookie) => TokenPlace::Cookie { name: message.name.into(), permanent },
        Ok(v1::SessionTokenPlace::Header) => TokenPlace::Header(name),
        Ok(v1::SessionTokenPlace::Unspecified) | Err(_) => {
            return Err(fault(format!("{at}.place"), format!("{} is not known", message.place)));
        }
    };
    Ok(Session {
        place,
        scope: message.scope.into(),
        absolute_timeout,
        idle_timeout: duration(message.idle_timeout, &format!("{at}.idle_timeout"))?,
        backends: backends.iter().map(|backend| backend_id(&backend.label)).collect(),
    })
}
