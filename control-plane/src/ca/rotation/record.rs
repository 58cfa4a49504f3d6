//! How far a rotation of the root is, as it is kept (`rotation.json`): all that the next step needs, keys included.
//!
//! Pure. It is written whole or not at all, before anything of it is told, and while it is there it says which root is in use: a control plane that is killed
//! between two writes goes on by it. `ca-key.pem` and `ca.pem` stay those of the old root until that is retired, so that an older version of the
//! control plane, which does not know this record, still finds an authority that everybody trusts.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// What is under way.
    #[serde(flatten)]
    pub state: State,
    /// What somebody has asked for and nobody has done yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Wanted>,
    /// The roots that there have been, the last one last, for who still goes by their pins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<Former>,
    /// How long leaves live, in seconds, as whoever steps was last started with; 0 if nobody has said it yet.
    pub lifetime: u64,
    /// When the last leaf has ended that was issued for a longer life than that, in seconds of Unix time.
    #[serde(skip_serializing_if = "is_nothing")]
    pub outlive: u64,
    /// When the last rotation was complete, in seconds of Unix time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<u64>,
}

/// The states of a rotation, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum State {
    /// None is under way.
    #[default]
    Idle,
    /// The new root is told beside the old one, which issues.
    Published(Change),
    /// The new one issues; not every replica is known to have heard of that.
    Switched(Change),
    /// Every replica issues under the new one. What was issued under the old one runs out.
    Draining {
        /// From which root to which.
        #[serde(flatten)]
        change: Change,
        /// When the last of it has, in seconds of Unix time.
        until: u64,
    },
    /// The new root is alone, and takes the old one's place in the store.
    Retired(Change),
}

/// From which root to which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The pin of the root that is followed.
    pub from: String,
    /// That root, as PEM.
    pub root: String,
    /// The one that follows.
    pub next: Next,
    /// When the state began, in seconds of Unix time.
    pub since: u64,
    /// Why there is a rotation.
    pub why: Why,
}

/// A root that follows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    /// Its pin.
    pub pin: String,
    /// Its key, as PEM.
    #[serde(with = "secret")]
    pub key: Zeroizing<String>,
    /// As PEM.
    pub certificate: String,
    /// Its certificate by the root before, as PEM, where that could sign one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
}

/// Why a root is rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Somebody has asked for it.
    Asked,
    /// The root was near its end.
    Schedule,
    /// The old root could not be used any more.
    Repair,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// A new root.
    Rotation,
    /// No new root after all.
    Abort,
}

/// A root that there has been.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    /// As PEM.
    pub root: String,
    /// The certificate that it has signed for its successor, as PEM.
    pub bridge: String,
    /// When either ends, in seconds of Unix time.
    pub until: u64,
}

/// So many former roots are shown at most: each lengthens every handshake with the control plane by a kilobyte.
const FORMER: usize = 4;

// === impl Record ===

impl Record {
    /// What is kept; nothing kept is a record of nothing.
    ///
    /// # Errors
    /// What is wrong with it: where there was a rotation, it holds a key.
    pub fn read(text: Option<&str>) -> Result<Self, String> {
        match text.map(str::trim).filter(|text| !text.is_empty()) {
            None => Ok(Self::default()),
            // Not the parser's own words, which may quote a key.
            Some(text) => serde_json::from_str(text)
                .map_err(|error| format!("line {}, column {}", error.line(), error.column())),
        }
    }

    /// As it is kept.
    pub fn to_text(&self) -> String {
        // Names and texts are always JSON.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// The rotation that is under way.
    pub fn change(&self) -> Option<&Change> {
        match &self.state {
            State::Idle => None,
            State::Published(change) | State::Switched(change) | State::Retired(change) => Some(change),
            State::Draining { change, .. } => Some(change),
        }
    }

    /// Whether one is.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Whether the new root is the one that issues.
    pub fn has_switched(&self) -> bool {
        !matches!(self.state, State::Idle | State::Published(_))
    }

    /// Where a new root is told from now on.
    pub fn published(&self, (from, root): (String, String), next: Next, why: Why, now: SystemTime) -> Self {
        let change = Change { from, root, next, since: seconds(now), why };
        Self { state: State::Published(change), wanted: None, ..self.clone() }
    }

    /// Where nothing is under way any more, without a new root.
    pub fn abandoned(&self) -> Self {
        Self { state: State::Idle, wanted: None, ..self.clone() }
    }

    /// Where the new root is in place.
    pub fn completed(&self, now: SystemTime) -> Self {
        Self { state: State::Idle, completed: Some(seconds(now)), ..self.clone() }
    }

    /// Where the old root, which ended or ends at `until`, is one that there has been.
    pub(super) fn with_former(&self, until: SystemTime, now: SystemTime) -> Self {
        let now = seconds(now);
        let former = |change: &Change| {
            let bridge = change.next.bridge.clone()?;
            Some(Former { root: change.root.clone(), bridge, until: seconds(until) })
        };
        let last = self.change().and_then(former);
        // Without its own bridge none of those before leads to the new root.
        let before = if last.is_some() { self.former.as_slice() } else { &[] };
        let mut former: Vec<Former> = before.iter().cloned().chain(last).collect();
        // One that has ended vouches for nobody, and neither do those before it, which lead through it.
        if let Some(ended) = former.iter().rposition(|one| one.until <= now) {
            former.drain(..=ended);
        }
        former.drain(..former.len().saturating_sub(FORMER));
        Self { former, ..self.clone() }
    }
}

// === impl State ===

impl State {
    /// Every word, in order, for metrics.
    pub const WORDS: [&str; 5] = ["idle", "published", "switched", "draining", "retired"];

    /// Its word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Published(_) => "published",
            Self::Switched(_) => "switched",
            Self::Draining { .. } => "draining",
            Self::Retired(_) => "retired",
        }
    }
}

impl Change {
    /// The same, as of now.
    pub(super) fn at(&self, now: SystemTime) -> Self {
        Self { since: seconds(now), ..self.clone() }
    }
}

impl Why {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Schedule => "schedule",
            Self::Repair => "repair",
        }
    }
}

impl std::fmt::Debug for Next {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Next").field("pin", &self.pin).finish_non_exhaustive()
    }
}

/// Keys are wiped when they are dropped.
mod secret {
    use serde::{Deserialize as _, Deserializer, Serializer};
    use zeroize::Zeroizing;

    pub(super) fn serialize<S: Serializer>(
        key: &Zeroizing<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(key)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Zeroizing<String>, D::Error> {
        String::deserialize(deserializer).map(Zeroizing::new)
    }
}

fn is_nothing(number: &u64) -> bool {
    *number == 0
}

/// Seconds of Unix time; 0 for earlier times.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Nanoseconds of Unix time, for numbers that nobody has used before.
pub(super) fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The time of so many seconds of Unix time.
pub(crate) fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old(root: &str) -> (String, String) {
        ("old".to_owned(), root.to_owned())
    }

    fn next(pin: &str) -> Next {
        Next {
            pin: pin.to_owned(),
            key: Zeroizing::new("the key".to_owned()),
            certificate: format!("certificate of {pin}"),
            bridge: Some(format!("bridge to {pin}")),
        }
    }

    #[test]
    fn every_state_is_read_as_it_was_written() {
        let idle = Record { lifetime: 60, outlive: 7, completed: Some(9), ..Record::default() };
        let published = idle.published(old("root"), next("new"), Why::Asked, time(100));
        let change = published.change().unwrap().clone();
        let asked = Record { wanted: Some(Wanted::Abort), ..published.clone() };
        let states = [
            State::Idle,
            State::Switched(change.clone()),
            State::Draining { change: change.clone(), until: 160 },
            State::Retired(change),
        ];
        let records = states.map(|state| Record { state, ..idle.clone() });
        for record in records.into_iter().chain([published, asked]) {
            let text = record.to_text();
            assert!(text.contains(&format!("\"phase\": \"{}\"", record.state.word())), "{text}");
            assert_eq!(Record::read(Some(&text)).unwrap(), record, "{text}");
        }
        assert_eq!(Record::read(None).unwrap(), Record::default());
        assert_eq!(Record::read(Some("\n")).unwrap(), Record::default());
    }

    #[test]
    fn nothing_shows_the_key() {
        let record = Record::default().published(old("root"), next("new"), Why::Asked, time(1));
        assert!(!format!("{record:?}").contains("the key"));
        let damaged = record.to_text().replace("\"since\": 1", "\"since\": \"the key\"");
        let error = Record::read(Some(&damaged)).unwrap_err();
        assert!(error.contains("line") && !error.contains("the key"), "{error}");
    }

    #[test]
    fn former_roots_are_those_that_still_lead_to_the_present_one() {
        // The record after one more rotation, at a time.
        let rotated = |record: &Record, root: &str, bridge: bool, until: u64, now: u64| {
            let next = if bridge { next("new") } else { Next { bridge: None, ..next("new") } };
            let begun = record.published(old(root), next, Why::Asked, time(now));
            begun.with_former(time(until), time(now)).completed(time(now))
        };
        let roots = |record: &Record| record.former.iter().map(|one| one.root.clone()).collect::<Vec<_>>();
        let mut record = Record::default();
        for (root, until) in [("root 1", 500), ("root 2", 300), ("root 3", 900), ("root 4", 900)] {
            record = rotated(&record, root, true, until, 200);
        }
        assert_eq!(roots(&record), ["root 1", "root 2", "root 3", "root 4"]);
        let later = rotated(&record, "root 5", true, 900, 400);
        assert_eq!(roots(&later), ["root 3", "root 4", "root 5"], "the first leads through the second");
        let full = rotated(&rotated(&later, "root 6", true, 900, 400), "root 7", true, 900, 400);
        assert_eq!(roots(&full), ["root 4", "root 5", "root 6", "root 7"]);
        assert!(rotated(&full, "root 8", false, 900, 400).former.is_empty());
    }
}
