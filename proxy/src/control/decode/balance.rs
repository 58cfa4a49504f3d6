//! `LoadBalancer` and `OutlierDetection`: which endpoint takes a request, and which gets none.

use std::time::Duration;

use http::HeaderName;
use tulle_api::v1;

use super::{Result, duration, each, fault};
use crate::balance::{
    Algorithm, FailurePercentage, HashKey, LoadBalancer, Outliers, SuccessRate, WarmUp, Zones,
};

pub(super) fn load_balancer(message: v1::LoadBalancer, at: &str) -> Result<LoadBalancer> {
    let algorithm = match v1::Algorithm::try_from(message.algorithm) {
        Ok(v1::Algorithm::PeakEwma) => Algorithm::PeakEwma,
        Ok(v1::Algorithm::LeastRequest) => Algorithm::LeastRequest,
        Ok(v1::Algorithm::RoundRobin) => Algorithm::RoundRobin,
        Ok(v1::Algorithm::Random) => Algorithm::Random,
        Ok(v1::Algorithm::RingHash) => Algorithm::RingHash,
        Ok(v1::Algorithm::Maglev) => Algorithm::Maglev,
        Err(_) => {
            return Err(fault(format!("{at}.algorithm"), format!("{} is not known", message.algorithm)));
        }
    };
    let warm_up = match message.warm_up {
        None => None,
        Some(warm_up) => duration(warm_up.duration, &format!("{at}.warm_up.duration"))?
            .map(|duration| {
                let minimum_percent =
                    within(warm_up.minimum_percent, 1, 100, &format!("{at}.warm_up.minimum_percent"))?;
                Ok(WarmUp { duration, minimum_percent })
            })
            .transpose()?,
    };
    Ok(LoadBalancer {
        algorithm,
        hash: each(message.hash, &format!("{at}.hash"), hash_key)?.into(),
        warm_up,
        zones: message.zones.map(|zones| self::zones(zones, &format!("{at}.zones"))).transpose()?,
        panic_percent: within(message.panic_percent, 0, 100, &format!("{at}.panic_percent"))?,
    })
}

fn hash_key(message: v1::HashKey, at: &str) -> Result<HashKey> {
    use v1::hash_key::Key;
    let named = |name: String, field: &str| match name.is_empty() {
        true => Err(fault(format!("{at}.{field}"), "is empty")),
        false => Ok(name),
    };
    Ok(match message.key.ok_or_else(|| fault(at, "is of no known kind"))? {
        Key::Header(name) => HashKey::Header(HeaderName::from_lowercase(name.as_bytes()).map_err(|_| {
            fault(format!("{at}.header"), format!("{name:?} is no header's name in lower case"))
        })?),
        Key::Cookie(name) => HashKey::Cookie(named(name, "cookie")?.into()),
        Key::QueryParameter(name) => HashKey::Query(named(name, "query_parameter")?.into()),
        Key::Source(_) => HashKey::Source,
    })
}

fn zones(message: v1::ZonePreference, at: &str) -> Result<Zones> {
    let most = message.maximum_load_percent;
    Ok(Zones {
        maximum_load_percent: within(most, 100, u32::MAX, &format!("{at}.maximum_load_percent"))?,
        latency: duration(message.latency, &format!("{at}.latency"))?,
        in_flight: message.in_flight,
        refused_percent: within(message.refused_percent, 0, 100, &format!("{at}.refused_percent"))?,
    })
}

pub(super) fn outliers(message: v1::OutlierDetection, at: &str) -> Result<Outliers> {
    let codes = each(message.grpc_codes, &format!("{at}.grpc_codes"), |code, at| within(code, 1, 16, at))?;
    let needed = |value, field: &str| {
        let at = format!("{at}.{field}");
        duration(value, &at)?.ok_or_else(|| fault(at, "is missing or 0"))
    };
    let success_rate = message.success_rate.map(|rate| SuccessRate {
        deviations: rate.deviations,
        minimum_endpoints: rate.minimum_endpoints,
        minimum_requests: rate.minimum_requests,
    });
    let failure_percentage = message.failure_percentage.map(|percentage| {
        let at = format!("{at}.failure_percentage.threshold_percent");
        let threshold_percent = within(percentage.threshold_percent, 1, 100, &at)?;
        Ok(FailurePercentage { threshold_percent, minimum_requests: percentage.minimum_requests })
    });
    let has_window = success_rate.is_some() || failure_percentage.is_some();
    Ok(Outliers {
        consecutive: [
            message.consecutive_5xx,
            message.consecutive_gateway_errors,
            message.consecutive_connect_failures,
            message.consecutive_grpc_errors,
        ],
        grpc_codes: codes.into_iter().fold(0, |all, code| all | 1 << code),
        success_rate,
        failure_percentage: failure_percentage.transpose()?,
        interval: if has_window { needed(message.interval, "interval")? } else { Duration::ZERO },
        base_ejection: needed(message.base_ejection, "base_ejection")?,
        maximum_ejection: needed(message.maximum_ejection, "maximum_ejection")?,
        maximum_ejected_percent: within(
            message.maximum_ejected_percent,
            1,
            100,
            &format!("{at}.maximum_ejected_percent"),
        )?,
    })
}

fn within(number: u32, least: u32, most: u32, at: &str) -> Result<u32> {
    match (least..=most).contains(&number) {
        true => Ok(number),
        false if most == u32::MAX => Err(fault(at, format!("{number} is less than {least}"))),
        false => Err(fault(at, format!("{number} is not from {least} to {most}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    fn hash(key: v1::hash_key::Key) -> v1::HashKey {
        v1::HashKey { key: Some(key) }
    }

    fn detection() -> v1::OutlierDetection {
        v1::OutlierDetection {
            consecutive_gateway_errors: 5,
            grpc_codes: vec![14, 4],
            success_rate: Some(v1::SuccessRate {
                deviations: 1900,
                minimum_endpoints: 5,
                minimum_requests: 100,
            }),
            interval: seconds(10),
            base_ejection: seconds(30),
            maximum_ejection: seconds(300),
            maximum_ejected_percent: 10,
            ..v1::OutlierDetection::default()
        }
    }

    #[test]
    fn a_load_balancer_is_read_whole() {
        use v1::hash_key::Key;
        assert_eq!(load_balancer(v1::LoadBalancer::default(), "at").unwrap(), LoadBalancer::default());
        let message = v1::LoadBalancer {
            algorithm: v1::Algorithm::Maglev.into(),
            hash: vec![
                hash(Key::Header("x-user".into())),
                hash(Key::Cookie("id".into())),
                hash(Key::QueryParameter("u".into())),
                hash(Key::Source(v1::Source {})),
            ],
            warm_up: Some(v1::WarmUp { duration: seconds(30), minimum_percent: 10 }),
            zones: Some(v1::ZonePreference { maximum_load_percent: 150, ..Default::default() }),
            panic_percent: 50,
        };
        let expected = LoadBalancer {
            algorithm: Algorithm::Maglev,
            hash: Box::new([
                HashKey::Header(HeaderName::from_static("x-user")),
                HashKey::Cookie("id".into()),
                HashKey::Query("u".into()),
                HashKey::Source,
            ]),
            warm_up: Some(WarmUp { duration: Duration::from_secs(30), minimum_percent: 10 }),
            zones: Some(Zones { maximum_load_percent: 150, latency: None, in_flight: 0, refused_percent: 0 }),
            panic_percent: 50,
        };
        assert_eq!(load_balancer(message, "at").unwrap(), expected);
    }

    #[test]
    fn outlier_detection_is_read_whole() {
        let read = outliers(detection(), "at").unwrap();
        assert_eq!((read.consecutive, read.grpc_codes), ([0, 5, 0, 0], 1 << 14 | 1 << 4));
        assert_eq!(read.maximum_ejection, Duration::from_secs(300));
        // Nothing is counted in a window: it need not be said.
        let without = v1::OutlierDetection { success_rate: None, interval: None, ..detection() };
        assert!(outliers(without, "at").is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_field() {
        use v1::hash_key::Key;
        let balancers = [
            (v1::LoadBalancer { algorithm: 9, ..Default::default() }, "at.algorithm"),
            (v1::LoadBalancer { panic_percent: 101, ..Default::default() }, "at.panic_percent"),
            (v1::LoadBalancer { hash: vec![v1::HashKey { key: None }], ..Default::default() }, "at.hash[0]"),
            (
                v1::LoadBalancer { hash: vec![hash(Key::Header("X-User".into()))], ..Default::default() },
                "at.hash[0].header",
            ),
            (
                v1::LoadBalancer { hash: vec![hash(Key::Cookie(String::new()))], ..Default::default() },
                "at.hash[0].cookie",
            ),
            (
                v1::LoadBalancer {
                    warm_up: Some(v1::WarmUp { duration: seconds(1), minimum_percent: 0 }),
                    ..Default::default()
                },
                "at.warm_up.minimum_percent",
            ),
            (
                v1::LoadBalancer { zones: Some(v1::ZonePreference::default()), ..Default::default() },
                "at.zones.maximum_load_percent",
            ),
        ];
        for (message, field) in balancers {
            assert_eq!(load_balancer(message, "at").unwrap_err().field, field);
        }
        let detections = [
            (v1::OutlierDetection { interval: None, ..detection() }, "at.interval"),
            (v1::OutlierDetection { base_ejection: None, ..detection() }, "at.base_ejection"),
            (v1::OutlierDetection { maximum_ejection: seconds(0), ..detection() }, "at.maximum_ejection"),
            (
                v1::OutlierDetection { maximum_ejected_percent: 0, ..detection() },
                "at.maximum_ejected_percent",
            ),
            (v1::OutlierDetection { grpc_codes: vec![17], ..detection() }, "at.grpc_codes[0]"),
            (
                v1::OutlierDetection {
                    failure_percentage: Some(v1::FailurePercentage::default()),
                    ..detection()
                },
                "at.failure_percentage.threshold_percent",
            ),
        ];
        for (message, field) in detections {
            assert_eq!(outliers(message, "at").unwrap_err().field, field);
        }
    }
}
