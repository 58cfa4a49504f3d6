//! When it is said that a certificate ends: 60, 30 and 7 days ahead, and once it has.
//!
//! Pure; the time is passed in. Of each certificate each of these is said once. One that was made for less than twice as long is not warned of so early: a
//! leaf of a day never has 60 days.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::record::seconds;

const DAY: u64 = 86_400;
/// Days ahead, the last first.
const AHEAD: [u64; 3] = [7, 30, 60];

/// What was said.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    /// By kind: when the certificate ends, and how many days ahead that was said last.
    said: BTreeMap<&'static str, (u64, u64)>,
}

/// Something to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Warning {
    /// How many days are left, whole ones; `None`: it has ended.
    pub(super) days: Option<u64>,
    /// Whether it presses.
    pub(super) presses: bool,
}

// === impl Warnings ===

impl Warnings {
    /// What there is to say of the certificate of this kind now.
    pub(super) fn due(
        &mut self,
        kind: &'static str,
        (from, until): (SystemTime, SystemTime),
        now: SystemTime,
    ) -> Option<Warning> {
        let life = until.duration_since(from).unwrap_or_default();
        let (ahead, days) = match until.duration_since(now) {
            Err(_) => (0, None),
            Ok(left) => {
                let passed = |days: &&u64| {
                    let ahead = Duration::from_secs(**days * DAY);
                    left <= ahead && life > ahead * 2
                };
                (*AHEAD.iter().find(passed)?, Some(left.as_secs() / DAY))
            }
        };
        let known = self.said.insert(kind, (seconds(until), ahead));
        let again = known.is_some_and(|(end, said)| end == seconds(until) && said <= ahead);
        if again {
            self.said.extend(known.map(|known| (kind, known)));
            return None;
        }
        Some(Warning { days, presses: ahead <= AHEAD[0] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(days: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(days * DAY)
    }

    #[test]
    fn each_is_said_once() {
        let mut warnings = Warnings::default();
        let root = (at(1000), at(4650));
        let mut said = Vec::new();
        for day in 1000..4660 {
            for _ in 0..3 {
                if let Some(Warning { days, presses }) = warnings.due("root", root, at(day)) {
                    said.push((day, days, presses));
                }
            }
        }
        assert_eq!(
            said,
            [(4590, Some(60), false), (4620, Some(30), false), (4643, Some(7), true), (4651, None, true)]
        );
        // The next one begins anew, and who comes late hears what presses most.
        assert_eq!(warnings.due("root", (at(4600), at(8000)), at(4660)), None);
        let late = Warnings::default().due("root", root, at(4645));
        assert_eq!(late, Some(Warning { days: Some(5), presses: true }));
    }

    #[test]
    fn what_lives_shortly_is_warned_of_only_when_it_has_ended() {
        let mut warnings = Warnings::default();
        let leaf = (at(100), at(101));
        assert_eq!(warnings.due("leaf", leaf, at(100)), None);
        assert_eq!(warnings.due("leaf", leaf, at(102)), Some(Warning { days: None, presses: true }));
        // Ninety days: not 60 ahead, but 30.
        let issuer = (at(100), at(190));
        assert_eq!(warnings.due("issuer", issuer, at(131)), None);
        assert!(warnings.due("issuer", issuer, at(161)).is_some());
    }
}
