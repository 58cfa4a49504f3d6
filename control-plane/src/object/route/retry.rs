//! When an HTTPRoute's requests are sent again (GEP-1731).

use std::time::Duration;

use gateway_api::experimental::httproutes::HttpRouteRulesRetry;

use super::http::read_duration;
use crate::finding::Notes;

/// How often a request is sent again unless the route says: as often as Envoy does.
const ATTEMPTS: u32 = 1;
/// How often at most: each time may be load for an application that has too much of it already.
const MAX_ATTEMPTS: u32 = 100;
/// How long is waited before at least, unless the route says: as long as Envoy does.
const BACKOFF: Duration = Duration::from_millis(25);

/// When the requests of a rule are sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Statuses of answers that are not taken: 400 to 599, each once, in order.
    pub codes: Vec<u16>,
    /// How often, after the first time: up to 100.
    pub attempts: u32,
    /// The least time before.
    pub backoff: Duration,
}

// === impl Retry ===

impl Retry {
    /// What is written at `at` of a rule whose requests may take `request_timeout`.
    pub(super) fn read(
        at: &str,
        written: &HttpRouteRulesRetry,
        request_timeout: Option<Duration>,
        notes: &mut Notes,
    ) -> Self {
        let mut codes = Vec::new();
        for (index, code) in written.codes.iter().flatten().enumerate() {
            let field = format!("{at}.codes[{index}]");
            match u16::try_from(*code) {
                Ok(code @ 400..=599) if codes.contains(&code) => {
                    notes.refuse(field, format!("{code} is there twice"), "remove one");
                }
                Ok(code @ 400..=599) => codes.push(code),
                _ => notes.refuse(
                    field,
                    format!("{code} is not a status that a request is sent again for"),
                    "400 to 599, such as 503",
                ),
            }
        }
        codes.sort_unstable();
        let attempts = match written.attempts {
            None => ATTEMPTS,
            Some(attempts) => match u32::try_from(attempts) {
                Ok(attempts @ 0..=MAX_ATTEMPTS) => attempts,
                _ => {
                    let message = format!("{attempts} is not a number of attempts");
                    notes.refuse(format!("{at}.attempts"), message, "0, which is none, to 100");
                    0
                }
            },
        };
        let field = format!("{at}.backoff");
        let backoff = match &written.backoff {
            None => BACKOFF,
            Some(text) => read_duration(&field, text, notes).unwrap_or_default(),
        };
        let request_timeout = request_timeout.filter(|limit| !limit.is_zero());
        if request_timeout.is_some_and(|limit| backoff >= limit) && attempts > 0 {
            notes.warn(
                field,
                "as long as the whole request may take, or longer: there is never time for a retry",
                "make it shorter than `timeouts.request`",
            );
        }
        Self { codes, attempts, backoff }
    }
}
