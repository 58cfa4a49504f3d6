//! Which records are written and how: what the places that may say so have said, and what it comes to.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use tulle_api::{ACCESS_LOG_ALL, AccessLogFormat};

use super::Record;

/// What one place says of the access log: the process's settings, a policy, the mesh. What it leaves open the next place says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// In which form.
    pub format: Option<AccessLogFormat>,
    /// Only requests that were answered with one of these; of none, where there are none.
    pub statuses: Option<Statuses>,
    /// Only what has taken so long or longer.
    pub min_duration: Option<Duration>,
    /// Only so many of them, by chance.
    pub sample: Option<Share>,
    /// What becomes of errors.
    pub errors: Option<Errors>,
}

/// What holds for a record, once all places were asked: which records are written, those that every condition describes, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holds<'a> {
    pub(super) format: &'a AccessLogFormat,
    /// `None`: any, and none at all.
    statuses: Option<&'a [RangeInclusive<u16>]>,
    min_duration: Duration,
    share: Share,
    errors: Errors,
}

/// Statuses of HTTP; `None`: whichever it is, and none at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statuses(Option<Box<[RangeInclusive<u16>]>>);

/// A part of all, counted in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u32);

/// What becomes of a record that has a reason: a proxy made the answer, refused, or gave up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Errors {
    /// It is written whatever the conditions are.
    #[default]
    Always,
    /// It is one like any other.
    Filtered,
}

// === impl Said ===

impl Said {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

// === impl Holds ===

impl<'a> Holds<'a> {
    const EVERYTHING: Self = Self {
        format: &AccessLogFormat::Json,
        statuses: None,
        min_duration: Duration::ZERO,
        share: Share::ALL,
        errors: Errors::Always,
    };

    /// What the first place that says it says, field by field; where nobody does, every record is written, as JSON.
    pub(super) fn of(places: [Option<&'a Said>; 5]) -> Self {
        if places.iter().all(Option::is_none) {
            return Self::EVERYTHING;
        }
        let mut format = None;
        let mut statuses = None;
        let (mut min_duration, mut share, mut errors) = (None, None, None);
        for said in places.into_iter().flatten() {
            format = format.or(said.format.as_ref());
            statuses = statuses.or(said.statuses.as_ref());
            min_duration = min_duration.or(said.min_duration);
            share = share.or(said.sample);
            errors = errors.or(said.errors);
        }
        Self {
            format: format.unwrap_or(&AccessLogFormat::Json),
            statuses: statuses.and_then(|statuses| statuses.0.as_deref()),
            min_duration: min_duration.unwrap_or_default(),
            share: share.unwrap_or(Share::ALL),
            errors: errors.unwrap_or_default(),
        }
    }

    /// Whether `record` is written. `draw` gives a number by chance.
    pub(super) fn has(&self, record: &Record<'_>, draw: impl FnOnce() -> u32) -> bool {
        if *self.format == AccessLogFormat::None {
            return false;
        }
        if self.errors == Errors::Always && record.reason.is_some() {
            return true;
        }
        let answered = |ranges: &[RangeInclusive<u16>]| {
            record.common_status().is_some_and(|status| ranges.iter().any(|range| range.contains(&status)))
        };
        self.statuses.is_none_or(answered) && record.duration >= self.min_duration && self.share.takes(draw)
    }
}

// === impl Statuses ===

impl Statuses {
    /// Whatever the status is, and where there is none.
    pub const ALL: Self = Self(None);

    /// Whether it is one of them.
    pub(in crate::telemetry) fn has(&self, status: u16) -> bool {
        self.0.as_deref().is_none_or(|ranges| ranges.iter().any(|range| range.contains(&status)))
    }
}

impl fmt::Display for Statuses {
    /// `404, 500-599`, `none` or `all`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = match self.0.as_deref() {
            None => return f.write_str(ACCESS_LOG_ALL),
            Some([]) => return f.write_str("none"),
            Some(ranges) => ranges,
        };
        for (index, range) in ranges.iter().enumerate() {
            let (comma, first, last) = (if index > 0 { ", " } else { "" }, range.start(), range.end());
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl FromIterator<RangeInclusive<u16>> for Statuses {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<u16>>>(ranges: I) -> Self {
        Self(Some(ranges.into_iter().collect()))
    }
}

// === impl Share ===

impl Share {
    /// The whole.
    pub const ALL: Self = Self(1_000_000);

    /// So many of a hundred; `None` unless it is from 0 to 100.
    pub fn percent(percent: f64) -> Option<Self> {
        // Within bounds: the cast cannot change it.
        (0.0..=100.0).contains(&percent).then(|| Self((percent * 10_000.0).round() as u32))
    }

    /// So many of a million; more are all.
    pub fn millionths(millionths: u32) -> Self {
        Self(millionths.min(Self::ALL.0))
    }

    /// So many of a hundred.
    pub fn as_percent(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }

    fn takes(self, draw: impl FnOnce() -> u32) -> bool {
        self == Self::ALL || (u64::from(draw()) * u64::from(Self::ALL.0)) >> 32 < u64::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Reason;

    fn statuses(text: &str) -> Option<Statuses> {
        Some(text.split(',').map(|one| tulle_api::access_log_statuses(one).unwrap()).collect())
    }

    fn filter(said: Said) -> impl Fn(&Record<'_>) -> bool {
        move |record| Holds::of([Some(&said), None, None, None, None]).has(record, || u32::MAX)
    }

    #[test]
    fn where_nobody_says_anything_it_is_as_if_somebody_had_said_nothing() {
        let (said, nobody) = (Said::default(), Holds::of([None; 5]));
        let somebody = Holds::of([None, Some(&said), None, None, None]);
        assert_eq!(format!("{nobody:?}"), format!("{somebody:?}"));
    }

    #[test]
    fn every_condition_must_describe_a_record() {
        let slow = Duration::from_millis(250);
        let passes =
            filter(Said { statuses: statuses("404,5xx"), min_duration: Some(slow), ..Said::default() });
        for (status, duration, expected) in
            [(500, 250, true), (599, 300, true), (404, 250, true), (500, 249, false), (200, 300, false)]
        {
            let duration = Duration::from_millis(duration);
            let record = Record { status: Some(status), duration, ..Record::default() };
            assert_eq!(passes(&record), expected, "{status} {duration:?}");
        }
        assert!(!passes(&Record { duration: slow, ..Record::default() }), "what has no status is not of one");
    }

    #[test]
    fn of_no_status_nothing_is_written_but_errors() {
        let none = Said { statuses: Some(Statuses::from_iter([])), ..Said::default() };
        let record = Record { status: Some(503), ..Record::default() };
        assert!(!filter(none.clone())(&record));
        assert!(!filter(none.clone())(&Record::default()), "nor what has none");
        let failed = Record { reason: Some(Reason::ConnectFailed), ..record };
        assert!(filter(none.clone())(&failed));
        assert!(!filter(Said { errors: Some(Errors::Filtered), ..none })(&failed));
    }

    #[test]
    fn errors_pass_unless_they_are_filtered_too() {
        let record = Record { status: Some(503), reason: Some(Reason::ConnectFailed), ..Record::default() };
        let said = Said { sample: Share::percent(0.0), statuses: statuses("404"), ..Said::default() };
        assert!(filter(said.clone())(&record));
        assert!(!filter(Said { errors: Some(Errors::Filtered), ..said.clone() })(&record));
        assert!(!filter(said)(&Record { reason: None, ..record }));
    }

    #[test]
    fn no_log_has_no_errors_either() {
        let record = Record { reason: Some(Reason::ConnectFailed), ..Record::default() };
        assert!(!filter(Said { format: Some(AccessLogFormat::None), ..Said::default() })(&record));
    }

    #[test]
    fn a_share_is_taken_of_the_numbers_that_can_be_drawn() {
        let share = |percent| Share::percent(percent).unwrap();
        assert!(share(100.0).takes(|| u32::MAX));
        assert!(share(99.9999).takes(|| 0) && !share(99.9999).takes(|| u32::MAX));
        assert!(share(50.0).takes(|| u32::MAX / 2 - 1) && !share(50.0).takes(|| u32::MAX / 2 + 1));
        assert!(share(0.0001).takes(|| 0) && !share(0.0).takes(|| 0));
        for wrong in [-1.0, 100.1, f64::NAN] {
            assert_eq!(Share::percent(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_one_place_leaves_open_the_next_says() {
        let first = Said { format: Some(AccessLogFormat::Ecs), ..Said::default() };
        let format = Some(AccessLogFormat::Apache);
        let next = Said { format, sample: Share::percent(1.0), statuses: statuses("5xx"), ..Said::default() };
        let nothing = Said::default();
        let holds = Holds::of([None, Some(&first), Some(&nothing), None, Some(&next)]);
        assert_eq!((holds.format, holds.share), (&AccessLogFormat::Ecs, Share(10_000)));
        assert_eq!(holds.statuses, Some(&[500..=599][..]));
        // None are said too, and so are all.
        let first_says = |statuses| {
            let said = Said { statuses: Some(statuses), ..Said::default() };
            Holds::of([Some(&said), Some(&next), None, None, None]).statuses.map(<[_]>::len)
        };
        assert_eq!(first_says(Statuses::from_iter([])), Some(0));
        assert_eq!(first_says(Statuses::ALL), None);
        assert_eq!(*Holds::of([None; 5]).format, AccessLogFormat::Json);
    }
}
