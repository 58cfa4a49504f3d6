//! How long a server keeps idle connections, as far as it can be known. Pure: times are handed in.
//!
//! A connection that the server is just closing must not take a request, and the only way to know is its habit.

use std::time::{Duration, Instant};

/// A single close is believed for this long.
const SUSPICION: Duration = Duration::from_secs(60);

/// Closes within this time of each other have one cause (a restart, say) and do not confirm each other.
const TOGETHER: Duration = Duration::from_millis(50);

/// No server's idle limit is this short: it closed for another reason (`Connection: close`).
const SHORTEST: Duration = Duration::from_millis(20);

/// How long connections may idle here: what is configured, or 80 % of what the server allows where that is less.
///
/// What the server allows is learned from what it says (`Keep-Alive: timeout`) and from when it closes. One close after
/// some idle time may mean anything, a restart too, so it counts for a minute only; a second one after about the same
/// time means a limit, which counts from then on.
#[derive(Clone, Debug, Default)]
pub(super) struct IdleLimit {
    stated: Option<Duration>,
    confirmed: Option<Duration>,
    /// After how long, and when.
    suspected: Option<(Duration, Instant)>,
}

// === impl IdleLimit ===

impl IdleLimit {
    /// The limit at `now`, and never more than `configured`.
    pub(super) fn at(&self, now: Instant, configured: Duration) -> Duration {
        let suspected = self
            .suspected
            .filter(|(_, at)| now.saturating_duration_since(*at) < SUSPICION)
            .map(|(idle, _)| idle);
        let learned = [self.stated, self.confirmed, suspected].into_iter().flatten().min();
        // Divided first: a server may say any time.
        learned.map_or(configured, |learned| configured.min(learned / 5 * 4))
    }

    /// The server says how long it keeps idle connections; what it says last counts.
    pub(super) fn state(&mut self, timeout: Duration) {
        self.stated = Some(timeout);
    }

    /// The server closed a connection at `at` that had idled for `idle`.
    pub(super) fn observe(&mut self, at: Instant, idle: Duration) {
        if idle < SHORTEST || self.confirmed.is_some_and(|confirmed| idle >= confirmed) {
            return;
        }
        match self.suspected {
            Some((known, when)) if apart(at, when) <= TOGETHER => {
                self.suspected = Some((known.min(idle), when));
            }
            Some((known, _)) if idle * 5 >= known * 4 && idle * 4 <= known * 5 => {
                self.confirmed = Some(known.min(idle));
                self.suspected = None;
            }
            _ => self.suspected = Some((idle, at)),
        }
    }
}

fn apart(a: Instant, b: Instant) -> Duration {
    a.saturating_duration_since(b).max(b.saturating_duration_since(a))
}

#[cfg(test)]
mod tests;
