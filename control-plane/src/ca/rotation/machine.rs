//! What the next step of a rotation is, without I/O: by the record, by what is seen of the replicas and their proxies, and by the clocks that are passed in.
//!
//! | state | left when | to |
//! | --- | --- | --- |
//! | idle | somebody asks, or the root is near its end | published |
//! | published | every connected proxy of every replica has had the new bundle for a while; or the old root has ended | switched |
//! | published | somebody has thought better of it | idle |
//! | switched | every replica says that it issues under the new root | draining |
//! | draining | the last leaf under the old root has run out | retired |
//! | retired | the new root has taken the old one's place in the store | idle |
//!
//! It never leaves out a state, never goes back from one in which leaves of the new root exist, and takes silence for nothing but a reason to wait. The
//! time of day is believed as far as it goes as fast as time does: a clock that is set while a control plane runs moves what was reckoned by it.

use std::time::{Duration, Instant, SystemTime};

use super::record::{Change, Record, State, Wanted, Why, seconds, time};

/// A clock that was set by less than this was not.
const SET: i64 = 5;
/// Proxies of whom nobody has heard for the moment (a control plane was started, the lease has changed hands) come back within this, where leaves live long.
const SETTLE: Duration = Duration::from_secs(30);
/// A root of which there is this share left is not rotated for its age: one that lives for less than the schedule would be, for ever.
const SHARE: u32 = 3;

/// What remembers between two steps; nothing that must outlive the process.
#[derive(Debug, Default)]
pub(super) struct Machine {
    /// By both clocks, when the last step was.
    last: Option<(SystemTime, Instant)>,
    /// Since when there is nothing to wait for.
    agreed: Option<Instant>,
}

/// What is seen.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The root that issues, or did until the new one.
    pub(super) root: Root,
    /// How long leaves live here.
    pub(super) lifetime: Duration,
    /// How long they live at whichever replica they live longest, as far as it is known.
    pub(super) longest: Duration,
    /// Whether somebody is waited for: proxies that have not had the bundle, where it is published; replicas that do not issue under the new root, after that.
    pub(super) waits: bool,
    /// A root that ends within this is rotated; zero: none is.
    pub(super) before: Duration,
    /// Whether the record is of another root than the one that is kept, which somebody has put there.
    pub(super) void: bool,
}

/// A root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Its pin.
    pub pin: String,
    /// First and last valid moment.
    pub validity: (SystemTime, SystemTime),
    /// Whether its key is here, so that it can be followed by another of ours.
    pub can_follow: bool,
    /// Whether we have made it; one that was given is only rotated when somebody asks.
    pub ours: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, for now.
    Wait,
    /// Make a new root, and keep [`Record::published`] of it.
    Begin(Why),
    /// Keep this, and go by it.
    Keep(Box<Record>, Event),
    /// Put the new root in the old one's place, then keep [`Record::completed`].
    Replace,
}

/// Why a record is kept anew; for the log and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The new root issues.
    Switched,
    /// What the old one has issued runs out.
    Draining,
    /// The old one is trusted no more.
    Retired,
    /// Nothing came of it: somebody has thought better of it.
    Aborted,
    /// Nothing came of it: somebody has put another root there.
    Void,
    /// What was asked for cannot be done.
    Refused,
    /// The clock was set.
    ClockSet,
    /// Leaves live for another time than before.
    Lifetime,
}

// === impl Step ===

impl Step {
    fn keep(record: Record, event: Event) -> Self {
        Self::Keep(Box::new(record), event)
    }
}

// === impl Machine ===

impl Machine {
    /// Forgets what was seen: somebody else takes the steps.
    pub(super) fn rest(&mut self) {
        *self = Self::default();
    }

    /// The next step. `now` is the time of day, `tick` what no one sets.
    pub(super) fn step(&mut self, record: &Record, seen: &Seen, now: SystemTime, tick: Instant) -> Step {
        let set = self.clock_set_by(now, tick);
        if set != 0 {
            // Who is to be waited for is seen anew as well: the machine may have slept.
            self.agreed = None;
        }
        if seen.void && !record.is_idle() {
            return Step::keep(record.abandoned(), Event::Void);
        }
        if let State::Draining { change, until } = &record.state
            && set != 0
        {
            let state = State::Draining { change: change.clone(), until: until.saturating_add_signed(set) };
            return Step::keep(Record { state, ..record.clone() }, Event::ClockSet);
        }
        if let Some(next) = lifetimes(record, seen, now) {
            return Step::keep(next, Event::Lifetime);
        }
        match &record.state {
            State::Idle => self.idle(record, seen, now, tick),
            State::Published(change) => self.published(record, change, seen, now, tick),
            State::Switched(_) if seen.waits => refused(record),
            State::Switched(change) => {
                let until = drained(record, seen, now);
                let state = State::Draining { change: change.at(now), until: seconds(until) };
                Step::keep(Record { state, wanted: None, ..record.clone() }, Event::Draining)
            }
            State::Draining { until, .. } if seconds(now) < *until => refused(record),
            State::Draining { change, .. } => {
                let state = State::Retired(change.at(now));
                let record = record.with_former(seen.root.validity.1, now);
                Step::keep(Record { state, wanted: None, ..record }, Event::Retired)
            }
            State::Retired(_) => Step::Replace,
        }
    }

    fn idle(&mut self, record: &Record, seen: &Seen, now: SystemTime, tick: Instant) -> Step {
        match record.wanted {
            Some(Wanted::Rotation) if seen.root.can_follow => {
                self.agreed = None;
                return Step::Begin(Why::Asked);
            }
            Some(_) => return Step::keep(record.abandoned(), Event::Refused),
            None => {}
        }
        let due = seen.root.can_follow && seen.root.ours && is_due(&seen.root, seen.before, now);
        if !self.agrees(due, settle(seen.lifetime), tick) {
            return Step::Wait;
        }
        self.agreed = None;
        Step::Begin(Why::Schedule)
    }

    fn published(
        &mut self,
        record: &Record,
        change: &Change,
        seen: &Seen,
        now: SystemTime,
        tick: Instant,
    ) -> Step {
        if record.wanted == Some(Wanted::Abort) {
            return Step::keep(record.abandoned(), Event::Aborted);
        }
        // Nothing can be issued under the old one any more: nobody is helped by waiting.
        let over = seen.root.validity.1 <= now;
        if !over && !self.agrees(!seen.waits, settle(seen.lifetime), tick) {
            return refused(record);
        }
        self.agreed = None;
        let state = State::Switched(change.at(now));
        Step::keep(Record { state, wanted: None, ..record.clone() }, Event::Switched)
    }

    /// Whether something has been so for as long as this, without a break that was seen.
    fn agrees(&mut self, is_so: bool, long: Duration, tick: Instant) -> bool {
        if !is_so {
            self.agreed = None;
            return false;
        }
        let since = *self.agreed.get_or_insert(tick);
        tick.saturating_duration_since(since) >= long
    }

    /// By how many seconds the time of day has gone elsewhere than time since the last step.
    fn clock_set_by(&mut self, now: SystemTime, tick: Instant) -> i64 {
        let Some((then, before)) = self.last.replace((now, tick)) else { return 0 };
        let passed = tick.saturating_duration_since(before).as_secs_f64();
        let said = match now.duration_since(then) {
            Ok(forward) => forward.as_secs_f64(),
            Err(back) => -back.duration().as_secs_f64(),
        };
        let set = (said - passed).round() as i64;
        if set.abs() < SET { 0 } else { set }
    }
}

impl Event {
    /// Its word, for metrics; `None`: it is no step.
    pub(super) fn word(self) -> Option<&'static str> {
        Some(match self {
            Self::Switched => "switched",
            Self::Draining => "draining",
            Self::Retired => "retired",
            Self::Aborted => "aborted",
            Self::Void => "void",
            Self::Refused => "refused",
            Self::ClockSet => "clock_set",
            Self::Lifetime => return None,
        })
    }
}

/// What is asked for in a state in which it cannot be done is forgotten.
fn refused(record: &Record) -> Step {
    match record.wanted {
        Some(_) => Step::keep(Record { wanted: None, ..record.clone() }, Event::Refused),
        None => Step::Wait,
    }
}

/// How long nobody must have been waited for.
pub(super) fn settle(lifetime: Duration) -> Duration {
    (lifetime / 4).clamp(Duration::from_secs(2), SETTLE)
}

/// For this much longer than the leaves under it the old root stays: clocks are not all the same.
pub(super) fn slack(lifetime: Duration) -> Duration {
    (lifetime / 4).clamp(Duration::from_secs(2), Duration::from_secs(600))
}

/// Whether a root is near its end.
pub(super) fn is_due(root: &Root, before: Duration, now: SystemTime) -> bool {
    due_at(root, before).is_some_and(|due| due <= now)
}

/// When a root is near its end; `None`: nobody looks at that.
pub(super) fn due_at(root: &Root, before: Duration) -> Option<SystemTime> {
    let (from, until) = root.validity;
    let life = until.duration_since(from).unwrap_or_default();
    (!before.is_zero()).then(|| until.checked_sub(before.min(life / SHARE))).flatten()
}

/// When everything that was issued under the old root has run out.
fn drained(record: &Record, seen: &Seen, now: SystemTime) -> SystemTime {
    let lifetime = seen.longest.max(seen.lifetime).max(Duration::from_secs(record.lifetime));
    // Nothing outlives its issuer.
    let end = seen.root.validity.1;
    let last = now.checked_add(lifetime).map_or(end, |last| last.max(time(record.outlive)));
    last.min(end).max(now) + slack(lifetime)
}

/// How long leaves live and have lived, if that is news.
fn lifetimes(record: &Record, seen: &Seen, now: SystemTime) -> Option<Record> {
    let lifetime = seen.lifetime.as_secs();
    if record.lifetime == lifetime {
        return None;
    }
    let outlive = match record.lifetime > lifetime {
        true => record.outlive.max(seconds(now).saturating_add(record.lifetime)),
        false => record.outlive,
    };
    let mut next = Record { lifetime, outlive, ..record.clone() };
    // What was reckoned by the shorter life holds for what was issued until then.
    if outlive <= seconds(now) {
        next.outlive = 0;
    }
    Some(next)
}

#[cfg(test)]
mod tests;
