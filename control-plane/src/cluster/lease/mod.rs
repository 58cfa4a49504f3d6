//! Which of several replicas writes: the holder of the Lease `tulle-control-plane`.
//!
//! [`Candidate`] decides, without I/O and by the clock that is passed in: when to ask, when to write, and whether the lease is held. As in
//! client-go, the times that others have written are never compared with a clock of ours: another's lease has ended once it has been
//! *seen unchanged* for as long as it says that it lasts, within bounds, and one's own is held only until [`HOLDS`] after the request that renewed it was
//! sent. So clocks may differ by hours, as long as they run equally fast. [`campaign`] carries it out and tells [`Holder`]s.
//!
//! Losing the lease is no failure: all replicas serve, and one that is not the holder only does not write.

mod campaign;

use std::time::{Duration, Instant};

use super::SAY_AGAIN;

pub use self::campaign::{Holder, campaign};

/// What the Lease is called.
pub const LEASE: &str = "tulle-control-plane";
/// After so long without a change others may take it …
const DURATION: Duration = Duration::from_secs(15);
/// … or after as long as its holder asks for, which is never believed for longer than this: none of ours asks for more, and with a holder that is gone, or
/// never was, nobody would write.
const LONGEST: Duration = Duration::from_secs(60);
/// … and after so long its holder no longer believes in it.
const HOLDS: Duration = Duration::from_secs(10);
/// How often the holder renews it.
const RENEW: Duration = Duration::from_secs(5);
/// How often others look at it.
const LOOK: Duration = Duration::from_secs(2);
/// After a request that failed.
const RETRY: Duration = Duration::from_secs(1);
/// After somebody else was quicker.
const AGAIN: Duration = Duration::from_millis(200);

/// A Lease, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Nobody, if empty.
    pub holder: String,
    /// What the holder has written; only ever compared for being the same.
    pub renewed: String,
    /// What it says that it lasts.
    pub duration: Duration,
    /// How often it has changed hands.
    pub transitions: i32,
    /// Of the object.
    pub version: String,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Read the Lease, and say what is there: [`Candidate::read`].
    Read,
    /// Make it, as ours: [`Candidate::written`].
    Create,
    /// Write it as ours, provided that it is still of this version: [`Candidate::written`].
    Write {
        /// Of what was last seen.
        version: String,
        /// How often it will have changed hands.
        transitions: i32,
        /// Whether it was ours already.
        renewal: bool,
    },
    /// Nothing, until then.
    Wait(Instant),
}

/// One replica that wants the lease.
#[derive(Debug)]
pub(super) struct Candidate {
    name: String,
    /// What was last seen, and when it was first seen so.
    seen: Option<(Record, Instant)>,
    /// There is none.
    absent: bool,
    /// Until when it is ours, if it is.
    until: Option<Instant>,
    /// Not before.
    next: Instant,
    /// What was seen may be out of date.
    stale: bool,
    /// When it was last told that another asks for too long, since it does.
    told: Option<Instant>,
}

// === impl Record ===

impl Record {
    /// For how long it counts after it was seen to change. Not for less than its holder believes in it, if that is one of ours.
    fn lasts(&self) -> Duration {
        self.duration.clamp(DURATION, LONGEST)
    }
}

// === impl Candidate ===

impl Candidate {
    /// By a name that no other replica has, and that is not used again.
    pub(super) fn new(name: impl Into<String>, now: Instant) -> Self {
        Self { name: name.into(), seen: None, absent: false, until: None, next: now, stale: true, told: None }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Until when the lease is held; `None` if it is not.
    pub(super) fn holds_until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// What to do now.
    pub(super) fn step(&mut self, now: Instant) -> Step {
        if self.next > now {
            return Step::Wait(self.next);
        }
        if self.stale {
            return Step::Read;
        }
        if self.absent {
            return Step::Create;
        }
        let Some((record, since)) = &self.seen else { return Step::Read };
        let ours = record.holder == self.name;
        if ours || record.holder.is_empty() || *since + record.lasts() <= now {
            return Step::Write {
                version: record.version.clone(),
                transitions: if ours { record.transitions } else { record.transitions.saturating_add(1) },
                renewal: ours,
            };
        }
        self.stale = true;
        self.next = now + LOOK;
        Step::Wait(self.next)
    }

    /// The Lease was read; `None`: there is none.
    pub(super) fn read(&mut self, now: Instant, record: Option<Record>) {
        self.stale = false;
        self.absent = record.is_none();
        let Some(record) = record else {
            self.seen = None;
            self.until = None;
            return;
        };
        if record.holder != self.name {
            self.until = None;
        }
        let same = self.seen.as_ref().is_some_and(|(before, _)| *before == record);
        if !same {
            self.seen = Some((record, now));
        }
    }

    /// What another has written, if that says that it lasts for longer than is believed, and it is time to tell: at once, and then each minute.
    pub(super) fn excessive(&mut self, now: Instant) -> Option<&Record> {
        let (record, _) = self.seen.as_ref()?;
        let is_ours = record.holder.is_empty() || record.holder == self.name;
        if is_ours || record.duration <= LONGEST {
            self.told = None;
            return None;
        }
        if self.told.is_some_and(|told| now < told + SAY_AGAIN) {
            return None;
        }
        self.told = Some(now);
        Some(record)
    }

    /// It was written as ours, by a request that was sent at `sent`.
    pub(super) fn written(&mut self, sent: Instant, record: Record) {
        self.absent = false;
        self.stale = false;
        self.seen = Some((record, sent));
        self.until = Some(sent + HOLDS);
        self.next = sent + RENEW;
    }

    /// It was not written, since somebody else has written it meanwhile, or it is gone.
    pub(super) fn outrun(&mut self, now: Instant) {
        self.next = now + AGAIN;
        self.stale = true;
    }

    /// It is not wanted any more: the version to write it with as nobody's, if it is ours, and how often it has changed hands.
    pub(super) fn give_back(&mut self, now: Instant) -> Option<(String, i32)> {
        self.holds_until(now)?;
        self.until = None;
        let (record, _) = self.seen.as_ref()?;
        Some((record.version.clone(), record.transitions))
    }

    /// The API server could not be asked, or did not do it. What is held stays held until its end.
    pub(super) fn failed(&mut self, now: Instant) {
        self.next = now + RETRY;
        // A request without an answer may have been carried out.
        self.stale = true;
    }
}

#[cfg(test)]
mod tests;
