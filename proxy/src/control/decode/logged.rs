//! `AccessLog` and `Sampling`: what is logged and which traces are recorded, of the mesh, of a rule, or of a port.

use std::time::Duration;

use tulle_api::{AccessLogFormat, InvalidAccessLog, v1};

use super::{Result, duration, each, fault};
use crate::route::MILLION;
use crate::telemetry::access::{Errors, Said, Share, Statuses};
use crate::telemetry::trace::Sampling;

/// What is said at `at`.
/// What a resource as a whole says of the access log, if anything.
pub(super) fn said(message: Option<v1::AccessLog>) -> Result<Option<Said>> {
    let said = message.map(|message| access_log(message, "access_log")).transpose()?;
    Ok(said.filter(|said| !said.is_empty()))
}

pub(super) fn access_log(message: v1::AccessLog, at: &str) -> Result<Said> {
    let format = match &*message.format {
        "" => None,
        format => Some(
            format
                .parse::<AccessLogFormat>()
                .map_err(|error: InvalidAccessLog| fault(format!("{at}.format"), error.to_string()))?,
        ),
    };
    let statuses = message.statuses.map(|said| statuses(said, &format!("{at}.statuses"))).transpose()?;
    let is_said = message.min_duration.is_some();
    let min_duration = duration(message.min_duration, &format!("{at}.min_duration"))?;
    Ok(Said {
        format,
        statuses,
        min_duration: min_duration.or_else(|| is_said.then_some(Duration::ZERO)),
        sample: message.sampled.map(Share::millionths),
        errors: message.filters_errors.map(|filters| if filters { Errors::Filtered } else { Errors::Always }),
    })
}

/// Said, be it that there are none.
fn statuses(message: v1::LoggedStatuses, at: &str) -> Result<Statuses> {
    let ranges = each(message.ranges, &format!("{at}.ranges"), |range, at| {
        let status = |status: u32| u16::try_from(status).ok().filter(|status| (100..=599).contains(status));
        match status(range.first).zip(status(range.last)) {
            Some((first, last)) if first <= last => Ok(first..=last),
            _ => Err(fault(at, format!("{} to {} are no statuses", range.first, range.last))),
        }
    })?;
    Ok(if message.all { Statuses::ALL } else { ranges.into_iter().collect() })
}

/// What is said at `at`; empty where nothing is.
pub(super) fn sampling(message: Option<v1::Sampling>, at: &str) -> Result<Sampling> {
    let v1::Sampling { millionths, ignores_parent } = message.unwrap_or_default();
    if let Some(millionths) = millionths.filter(|millionths| *millionths > MILLION) {
        return Err(fault(format!("{at}.millionths"), format!("{millionths} is more than a million")));
    }
    Ok(Sampling { millionths, parent_based: ignores_parent.map(|ignores| !ignores) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_is_said_or_not() {
        let of =
            |millionths, ignores_parent| sampling(Some(v1::Sampling { millionths, ignores_parent }), "a");
        assert_eq!(sampling(None, "a").unwrap(), Sampling::default());
        assert_eq!(of(None, None).unwrap(), Sampling::default());
        let all = Sampling { millionths: Some(0), parent_based: Some(false) };
        assert_eq!(of(Some(0), Some(true)).unwrap(), all);
        assert_eq!(of(Some(MILLION), None).unwrap().millionths, Some(MILLION));
        assert_eq!(of(Some(MILLION + 1), None).unwrap_err().field, "a.millionths");
    }

    #[test]
    fn what_is_absent_is_not_said() {
        assert!(access_log(v1::AccessLog::default(), "").unwrap().is_empty());
    }

    #[test]
    fn what_is_said_is_read() {
        let message = v1::AccessLog {
            format: "ecs".to_owned(),
            statuses: Some(v1::LoggedStatuses {
                ranges: vec![v1::StatusRange { first: 500, last: 599 }],
                all: false,
            }),
            min_duration: Some(prost_types::Duration { seconds: 0, nanos: 0 }),
            sampled: Some(10_000),
            filters_errors: Some(true),
        };
        let expected = Said {
            format: Some(AccessLogFormat::Ecs),
            statuses: Some([500..=599].into_iter().collect()),
            min_duration: Some(Duration::ZERO),
            sample: Share::percent(1.0),
            errors: Some(Errors::Filtered),
        };
        assert_eq!(access_log(message, "").unwrap(), expected);
    }

    #[test]
    fn no_statuses_at_all_are_said_and_are_not_all() {
        let of =
            |said| access_log(v1::AccessLog { statuses: said, ..Default::default() }, "").unwrap().statuses;
        assert_eq!(of(None), None);
        assert_eq!(of(Some(v1::LoggedStatuses::default())), Some(Statuses::from_iter([])));
        let all = v1::LoggedStatuses { all: true, ranges: Vec::new() };
        assert_eq!(of(Some(all)), Some(Statuses::ALL));
    }

    #[test]
    fn what_cannot_be_carried_out_is_rejected_by_its_field() {
        let range = |first, last| {
            Some(v1::LoggedStatuses { ranges: vec![v1::StatusRange { first, last }], all: false })
        };
        for (message, field) in [
            (v1::AccessLog { format: "{user}".to_owned(), ..Default::default() }, "a.format"),
            (v1::AccessLog { format: "xml".to_owned(), ..Default::default() }, "a.format"),
            (v1::AccessLog { statuses: range(500, 499), ..Default::default() }, "a.statuses.ranges[0]"),
            (v1::AccessLog { statuses: range(0, 499), ..Default::default() }, "a.statuses.ranges[0]"),
        ] {
            assert_eq!(access_log(message, "a").unwrap_err().field, field);
        }
    }
}
