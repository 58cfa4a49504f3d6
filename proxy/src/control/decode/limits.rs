//! `Limits` and `Connections`: how much may be under way at a port at once, and what becomes of connections there.

use std::time::Duration;

use tulle_api::v1;

use super::{Result, duration, fault};
use crate::state::{Connections, KeepAlive, Limits};

/// How long one waits where that is not said.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(1);
/// The kernel takes no more (tcp(7)): seconds, and probes.
const MAX_KEEP_ALIVE: Duration = Duration::from_secs(32_767);
const MAX_PROBES: u32 = 127;

/// Those at `at`.
pub(super) fn limits(message: v1::Limits, at: &str) -> Result<Limits> {
    Ok(Limits {
        connections: message.maximum_connections,
        connections_per_endpoint: message.maximum_connections_per_endpoint,
        requests: message.maximum_requests,
        requests_per_endpoint: message.maximum_requests_per_endpoint,
        pending: message.maximum_pending,
        queue_timeout: said(message.queue_timeout, &format!("{at}.queue_timeout"))?.unwrap_or(QUEUE_TIMEOUT),
    })
}

/// What is said at `at`.
pub(super) fn connections(message: v1::Connections, at: &str) -> Result<Connections> {
    let keep_alive = message.keep_alive.map(|one| keep_alive(one, &format!("{at}.keep_alive")));
    Ok(Connections {
        connect_timeout: said(message.connect_timeout, &format!("{at}.connect_timeout"))?,
        idle_timeout: said(message.idle_timeout, &format!("{at}.idle_timeout"))?,
        maximum_age: duration(message.maximum_age, &format!("{at}.maximum_age"))?,
        keep_alive: keep_alive.transpose()?,
    })
}

fn keep_alive(message: v1::KeepAlive, at: &str) -> Result<KeepAlive> {
    let time = |message, field: &str| {
        let at = format!("{at}.{field}");
        let time = duration(message, &at)?.ok_or_else(|| fault(&*at, "is missing or zero"))?;
        // In whole seconds, as the kernel counts.
        Ok(time.clamp(Duration::from_secs(1), MAX_KEEP_ALIVE))
    };
    match message.probes {
        0 => Err(fault(format!("{at}.probes"), "is not at least 1")),
        probes => Ok(KeepAlive {
            time: time(message.time, "time")?,
            interval: time(message.interval, "interval")?,
            probes: probes.min(MAX_PROBES),
        }),
    }
}

/// A duration of which 0 is said too.
fn said(message: Option<prost_types::Duration>, at: &str) -> Result<Option<Duration>> {
    let is_said = message.is_some();
    Ok(duration(message, at)?.or_else(|| is_said.then_some(Duration::ZERO)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn zero_is_said_and_absent_is_not() {
        let none = limits(v1::Limits::default(), "limits").unwrap();
        assert_eq!(none, Limits { queue_timeout: QUEUE_TIMEOUT, ..Limits::default() });
        let at_once = v1::Limits { queue_timeout: seconds(0), maximum_pending: 7, ..Default::default() };
        let at_once = limits(at_once, "limits").unwrap();
        assert_eq!((at_once.queue_timeout, at_once.pending), (Duration::ZERO, 7));
        assert_eq!(connections(v1::Connections::default(), "at").unwrap(), Connections::default());
        let of = connections(v1::Connections { idle_timeout: seconds(0), ..Default::default() }, "at");
        assert_eq!(of.unwrap().idle_timeout, Some(Duration::ZERO));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let whole = v1::KeepAlive { time: seconds(1), interval: seconds(1), probes: 1 };
        for (field, keep_alive) in [
            ("time", v1::KeepAlive { time: None, ..whole }),
            ("interval", v1::KeepAlive { interval: seconds(0), ..whole }),
            ("probes", v1::KeepAlive { probes: 0, ..whole }),
        ] {
            let message = v1::Connections { keep_alive: Some(keep_alive), ..Default::default() };
            assert_eq!(connections(message, "at").unwrap_err().field, format!("at.keep_alive.{field}"));
        }
        let message = v1::Connections { maximum_age: seconds(-1), ..Default::default() };
        assert_eq!(connections(message, "at").unwrap_err().field, "at.maximum_age");
        let message = v1::Limits { queue_timeout: seconds(-1), ..Default::default() };
        assert_eq!(limits(message, "at").unwrap_err().field, "at.queue_timeout");
    }
}
