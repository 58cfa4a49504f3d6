//! `HealthCheck`: how the endpoints of a port are asked whether they serve.

use std::time::Duration;

use tulle_api::v1;
use tulle_api::v1::health_check::Kind;

use super::{Result, duration, fault};
use crate::state::{HealthCheck, Question};

/// The one at `at`.
pub(super) fn health_check(message: v1::HealthCheck, at: &str) -> Result<HealthCheck> {
    let question = match message.kind.ok_or_else(|| fault(format!("{at}.kind"), "is missing"))? {
        Kind::Http(v1::HttpHealthCheck { path, host }) => {
            // What follows a `#` would not be sent.
            let is_path = path.starts_with('/') && !path.contains('#');
            let read = is_path.then(|| path.parse().ok()).flatten();
            let read =
                read.ok_or_else(|| fault(format!("{at}.http.path"), format!("{path:?} is no path")))?;
            let host = match &*host {
                "" => None,
                host => Some(host.parse().map_err(|error| {
                    fault(format!("{at}.http.host"), format!("{host:?} is no host: {error}"))
                })?),
            };
            Question::Http { path: read, host }
        }
        Kind::Grpc(v1::GrpcHealthCheck { service }) => Question::Grpc { service: service.into() },
        Kind::Tcp(v1::TcpHealthCheck {}) => Question::Tcp,
    };
    let interval = time(message.interval, &format!("{at}.interval"))?;
    if interval < MIN_INTERVAL {
        return Err(fault(format!("{at}.interval"), format!("{interval:?} is less than {MIN_INTERVAL:?}")));
    }
    Ok(HealthCheck {
        question,
        interval,
        timeout: time(message.timeout, &format!("{at}.timeout"))?,
        healthy_threshold: threshold(message.healthy_threshold, &format!("{at}.healthy_threshold"))?,
        unhealthy_threshold: threshold(message.unhealthy_threshold, &format!("{at}.unhealthy_threshold"))?,
    })
}

/// Asking all the time is no way to find out whether somebody is well.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

fn time(message: Option<prost_types::Duration>, at: &str) -> Result<Duration> {
    duration(message, at)?.ok_or_else(|| fault(at, "is missing"))
}

fn threshold(message: u32, at: &str) -> Result<u32> {
    if message == 0 { Err(fault(at, "is 0: at least 1 is needed")) } else { Ok(message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> v1::HealthCheck {
        v1::HealthCheck {
            kind: Some(Kind::Http(v1::HttpHealthCheck { path: "/healthz?full".into(), host: String::new() })),
            interval: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
            timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            healthy_threshold: 1,
            unhealthy_threshold: 3,
        }
    }

    #[test]
    fn a_health_check_is_read_whole() {
        let expected = HealthCheck {
            question: Question::Http { path: "/healthz?full".parse().unwrap(), host: None },
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            healthy_threshold: 1,
            unhealthy_threshold: 3,
        };
        assert_eq!(health_check(message(), "at").unwrap(), expected);
        let kinds = [
            (
                Kind::Http(v1::HttpHealthCheck { path: "/".into(), host: "orders.shop:8080".into() }),
                Question::Http {
                    path: "/".parse().unwrap(),
                    host: Some("orders.shop:8080".parse().unwrap()),
                },
            ),
            (
                Kind::Grpc(v1::GrpcHealthCheck { service: "shop.Orders".into() }),
                Question::Grpc { service: "shop.Orders".into() },
            ),
            (Kind::Tcp(v1::TcpHealthCheck {}), Question::Tcp),
        ];
        for (kind, question) in kinds {
            let read = health_check(v1::HealthCheck { kind: Some(kind), ..message() }, "at").unwrap();
            assert_eq!(read, HealthCheck { question, ..expected.clone() });
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused_by_its_field() {
        let http = |path: &str, host: &str| {
            let kind = Kind::Http(v1::HttpHealthCheck { path: path.into(), host: host.into() });
            v1::HealthCheck { kind: Some(kind), ..message() }
        };
        let zero = Some(prost_types::Duration::default());
        let short = Some(prost_types::Duration { seconds: 0, nanos: 9_999_999 });
        let cases = [
            (v1::HealthCheck { kind: None, ..message() }, "at.kind"),
            (http("", ""), "at.http.path"),
            (http("healthz", ""), "at.http.path"),
            (http("/a b", ""), "at.http.path"),
            (http("/a#b", ""), "at.http.path"),
            (http("/a\r\nx: y", ""), "at.http.path"),
            (http("/", "orders/shop"), "at.http.host"),
            (http("/", "a\r\nx: y"), "at.http.host"),
            (v1::HealthCheck { interval: None, ..message() }, "at.interval"),
            (v1::HealthCheck { interval: zero, ..message() }, "at.interval"),
            (v1::HealthCheck { interval: short, ..message() }, "at.interval"),
            (v1::HealthCheck { timeout: None, ..message() }, "at.timeout"),
            (v1::HealthCheck { healthy_threshold: 0, ..message() }, "at.healthy_threshold"),
            (v1::HealthCheck { unhealthy_threshold: 0, ..message() }, "at.unhealthy_threshold"),
        ];
        for (message, field) in cases {
            assert_eq!(health_check(message.clone(), "at").unwrap_err().field, field, "{message:?}");
        }
    }
}
