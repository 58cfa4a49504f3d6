//! `RateLimit`: how often.

use std::collections::HashSet;

use tulle_api::v1;

use super::rule::{Patterns, header_name, value};
use super::{Result, duration, each, fault, port};
use crate::limit::{Key, Rate, RateLimit};
use crate::route::HeaderMatch;

/// Those at `at`.
pub(super) fn rate_limits(
    messages: Vec<v1::RateLimit>,
    patterns: &mut Patterns,
    at: &str,
) -> Result<Vec<RateLimit>> {
    let mut names = HashSet::new();
    each(messages, at, |message, at| {
        let limit = rate_limit(message, patterns, at)?;
        if !names.insert(limit.name.clone()) {
            return Err(fault(format!("{at}.name"), format!("{:?} is there twice", limit.name)));
        }
        Ok(limit)
    })
}

fn rate_limit(message: v1::RateLimit, patterns: &mut Patterns, at: &str) -> Result<RateLimit> {
    use v1::rate_limit::Key as Said;
    if message.name.is_empty() {
        return Err(fault(format!("{at}.name"), "is missing"));
    }
    let (said, overrides, dry_run) = match message.dry_run {
        Some(dry_run) => (dry_run.rate, dry_run.overrides, true),
        None => (message.rate, message.overrides, false),
    };
    let of = if dry_run { format!("{at}.dry_run") } else { at.to_owned() };
    Ok(RateLimit {
        name: message.name.into(),
        headers: each(message.headers, &format!("{at}.headers"), |header, at| {
            let name = header_name(&header.name, &format!("{at}.name"))?;
            Ok(HeaderMatch { name, value: value(patterns, header.value, at)? })
        })?,
        key: match message.key {
            None => Key::All,
            Some(Said::Identity(_)) => Key::Identity,
            Some(Said::Header(name)) => Key::Header(header_name(&name, &format!("{at}.header"))?),
        },
        rate: rate(said, &format!("{of}.rate"))?,
        overrides: each(overrides, &format!("{of}.overrides"), |one, at| {
            let values = one.values.into_iter().map(String::into_boxed_str).collect();
            Ok((values, rate(one.rate, &format!("{at}.rate"))?))
        })?,
        ports: each(message.ports, &format!("{at}.ports"), port)?,
        dry_run,
    })
}

fn rate(message: Option<v1::Rate>, at: &str) -> Result<Rate> {
    let v1::Rate { requests, per, burst } = message.ok_or_else(|| fault(at, "is missing"))?;
    let some = |number: u32, field: &str| match number {
        0 => Err(fault(format!("{at}.{field}"), "is not at least 1")),
        number => Ok(number),
    };
    let per_at = format!("{at}.per");
    Ok(Rate {
        requests: some(requests, "requests")?,
        per: duration(per, &per_at)?.ok_or_else(|| fault(per_at, "is not more than nothing"))?,
        burst: some(burst, "burst")?,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn message() -> v1::RateLimit {
        let rate = |requests| {
            let per = Some(prost_types::Duration { seconds: 2, nanos: 0 });
            Some(v1::Rate { requests, per, burst: 3 })
        };
        let value = Some(v1::value_match::Value::Exact("beta".to_owned()));
        let (name, values) = ("x-track".to_owned(), vec!["a".to_owned()]);
        v1::RateLimit {
            name: "shop/web/all".to_owned(),
            headers: vec![v1::ValueMatch { name, value }],
            key: Some(v1::rate_limit::Key::Header("x-user".to_owned())),
            rate: rate(10),
            overrides: vec![v1::RateOverride { values, rate: rate(20) }],
            ports: vec![80],
            dry_run: None,
        }
    }

    #[test]
    fn a_limit_is_decoded_as_a_whole() {
        let limit = rate_limits(vec![message()], &mut Patterns::default(), "rate_limits").unwrap().remove(0);
        let rate = Rate { requests: 10, per: Duration::from_secs(2), burst: 3 };
        assert_eq!((limit.rate, &*limit.name, &limit.ports), (rate, "shop/web/all", &vec![80]));
        assert_eq!(limit.key, Key::Header("x-user".parse().unwrap()));
        assert_eq!(limit.overrides, [(vec!["a".into()], Rate { requests: 20, ..rate })]);
        assert_eq!(limit.headers.len(), 1);
    }

    #[test]
    fn a_limit_in_dry_run_has_the_rate_that_it_would_have() {
        let mut message = message();
        let rate = message.rate.take().unwrap();
        let would_be = Some(v1::Rate { requests: 7, ..rate });
        let overrides = message.overrides.drain(..).collect();
        message.dry_run = Some(v1::DryRunRate { rate: would_be, overrides });
        let read = |message| rate_limits(vec![message], &mut Patterns::default(), "rate_limits");
        let limit = read(message.clone()).unwrap().remove(0);
        assert!(limit.dry_run && limit.rate.requests == 7 && limit.overrides.len() == 1, "{limit:?}");
        message.dry_run = Some(v1::DryRunRate::default());
        assert_eq!(read(message).unwrap_err().field, "rate_limits[0].dry_run.rate");
    }

    #[test]
    fn what_makes_no_limit_is_rejected_where_it_stands() {
        let of = |change: fn(&mut v1::RateLimit)| {
            let mut message = message();
            change(&mut message);
            rate_limits(vec![message], &mut Patterns::default(), "rate_limits").unwrap_err().field
        };
        for (change, field) in [
            ((|limit| limit.name.clear()) as fn(&mut v1::RateLimit), "name"),
            (|limit| limit.rate = None, "rate"),
            (|limit| limit.rate.as_mut().unwrap().requests = 0, "rate.requests"),
            (|limit| limit.rate.as_mut().unwrap().burst = 0, "rate.burst"),
            (|limit| limit.rate.as_mut().unwrap().per = None, "rate.per"),
            (|limit| limit.rate.as_mut().unwrap().per = Some(prost_types::Duration::default()), "rate.per"),
            (|limit| limit.overrides[0].rate = None, "overrides[0].rate"),
            (|limit| limit.headers[0].value = None, "headers[0].value"),
            (|limit| limit.key = Some(v1::rate_limit::Key::Header(" ".to_owned())), "header"),
            (|limit| limit.ports[0] = 0, "ports[0]"),
        ] {
            assert_eq!(of(change), format!("rate_limits[0].{field}"));
        }
        let twice =
            rate_limits(vec![message(), message()], &mut Patterns::default(), "rate_limits").unwrap_err();
        assert_eq!(twice.field, "rate_limits[1].name");
    }
}
