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
