//! What is registered here and what the API server has of it: which slices are to be written or deleted, and which of the others' count.
//!
//! Pure; the time is passed in. Level-triggered: it compares what is with what should be, whatever has happened before.
//!
//! - A part that a stream here stands for is written by us, unless another replica has taken it over since: then its proxy has
//!   gone there, and what is left here of its stream is silent.
//! - What we wrote and nobody here stands for any more is deleted, in the version that we know, so that a replica that takes it over
//!   meanwhile keeps it.
//! - Another replica's counts for as long as its lease lasts. As with the Lease, no times of others are compared with a clock of ours: a
//!   lease has run out once it was *seen unchanged* for as long as it says that it lasts. And since a watch that says nothing may be one
//!   that hears nothing, and a replica that cannot write may only be cut off as we are, the API server is asked twice before, [`CONFIRM`]
//!   apart. With it away, no lease ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::object::NamespacedName;
use crate::registration::{HeldPart, Part};

/// How long a slice counts that is not renewed.
pub(super) const LEASE: Duration = Duration::from_secs(30);
/// How often it is renewed; nothing is written more often than that all the time.
pub(super) const RENEW: Duration = Duration::from_secs(10);
/// A change is written at once, the next no sooner than after this, and each more of them after twice as long, up to [`RENEW`] …
const SPACING: Duration = Duration::from_secs(1);
/// … until there was none for so long.
const CALM: Duration = Duration::from_secs(30);
/// How far apart the two answers are that say that nothing has changed. Longer than whoever could not write waits before it tries again.
pub(super) const CONFIRM: Duration = Duration::from_secs(15);
/// The second may come so much later. Then what was said before is too old.
const IN_TIME: Duration = Duration::from_secs(10);
/// A slice that nobody counts any more is deleted after this: should there be anybody who stands for it, that one is quicker.
const REST: Duration = Duration::from_secs(10);
/// After a write that failed, doubled each time up to [`RENEW`].
const RETRY: Duration = Duration::from_secs(1);

/// What a slice says of its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Which replica.
    pub(super) holder: String,
    /// Only ever compared for being the same.
    pub(super) renewed: String,
    pub(super) duration: Duration,
}

/// A slice as the API server has it.
#[derive(Debug, Clone)]
pub(super) struct Slice {
    pub(super) record: Record,
    pub(super) version: String,
    /// RFC 3339, by the API server's clock: in which order slices were made.
    pub(super) created: String,
    /// What it says; or why that is not believed.
    pub(super) part: Result<Arc<Part>, String>,
}

/// What is to be done with a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Write it.
    Write(Arc<Part>),
    /// Delete it, provided that it is still of this version.
    Delete(NamespacedName, String),
}

/// How a step went.
#[derive(Debug)]
pub(super) enum Done {
    /// It was written, and is this now.
    Written(Slice),
    /// It is gone.
    Deleted,
    /// Somebody else was quicker; the watch tells.
    Outrun,
    /// It failed.
    Failed,
}

/// All of it, as one replica knows it.
#[derive(Debug)]
pub(super) struct Book {
    /// Ours; no other replica has the name.
    name: String,
    entries: BTreeMap<NamespacedName, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    held: Option<HeldPart>,
    seen: Option<Seen>,
    /// When we last wrote it.
    wrote: Option<Instant>,
    /// When we last wrote something else than what was there.
    changed: Option<Instant>,
    /// When what is held last became another, and when before.
    stirred: Option<Instant>,
    stirred_before: Option<Instant>,
    /// From the last write to the next change.
    spacing: Duration,
    failures: u32,
    retry_at: Option<Instant>,
}

#[derive(Debug)]
struct Seen {
    slice: Slice,
    /// When its lease was first seen as it is.
    since: Instant,
    /// When it was first seen with its holder.
    taken: Instant,
    /// Since the lease should be over: when the API server first said that it is still the same.
    asked: Option<Instant>,
    /// When it was over.
    over: Option<Instant>,
    /// The API server has said that it is otherwise, and the watch has not.
    missed: bool,
}

// === impl Book ===

impl Book {
    pub(super) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), entries: BTreeMap::new() }
    }

    /// What streams here stand for now.
    pub(super) fn hold(&mut self, parts: Vec<HeldPart>) {
        let mut now: BTreeMap<NamespacedName, HeldPart> = BTreeMap::new();
        for held in parts {
            // Of two streams that speak of the same place the later is believed.
            let entry = now.entry(held.part.key.clone());
            entry
                .and_modify(|other| {
                    if other.since <= held.since {
                        *other = held.clone();
                    }
                })
                .or_insert(held);
        }
        for (key, entry) in &mut self.entries {
            entry.hold(now.remove(key));
        }
        for (key, held) in now {
            self.entries.entry(key).or_default().hold(Some(held));
        }
        self.entries.retain(|_, entry| entry.held.is_some() || entry.seen.is_some());
    }

    /// What the API server says of a slice; `None`: it is gone. Says whether what the others stand for may have changed.
    pub(super) fn see(&mut self, now: Instant, key: NamespacedName, slice: Option<Slice>) -> bool {
        let entry = self.entries.entry(key).or_default();
        let before = entry.seen.take();
        let Some(mut slice) = slice else { return before.is_some() };
        let mut next =
            Seen { since: now, taken: now, asked: None, over: None, missed: false, slice: slice.clone() };
        let Some(before) = before else {
            entry.seen = Some(next);
            return true;
        };
        if let (Ok(part), Ok(known)) = (&mut slice.part, &before.slice.part)
            && part == known
        {
            // Which makes them quick to compare.
            *part = Arc::clone(known);
        }
        if before.slice.record.holder == slice.record.holder {
            next.taken = before.taken;
        }
        let same_lease = before.slice.record == slice.record;
        if same_lease {
            (next.since, next.asked, next.over) = (before.since, before.asked, before.over);
        }
        let changed = before.slice.part != slice.part
            || next.over.is_some() != before.over.is_some()
            || next.taken != before.taken;
        next.slice = slice;
        entry.seen = Some(next);
        changed
    }

    /// All slices have been listed: what is not among them is gone. Says what [`Book::see`] does.
    pub(super) fn listed(&mut self, all: &BTreeSet<NamespacedName>) -> bool {
        let mut changed = false;
        for (_, entry) in self.entries.iter_mut().filter(|(key, _)| !all.contains(*key)) {
            changed |= entry.seen.take().is_some();
        }
        changed
    }

    /// What is to be done, and when to look again. `deletes`: what nobody stands for, too.
    pub(super) fn steps(&self, now: Instant, deletes: bool) -> (Vec<Step>, Option<Instant>) {
        let (mut steps, mut next) = (Vec::new(), None);
        for (key, entry) in &self.entries {
            let Some(due) = entry.due(&self.name, deletes) else { continue };
            let due = entry.retry_at.map_or(due, |retry| due.max(retry));
            if due > now {
                next = Some(next.map_or(due, |next: Instant| next.min(due)));
                continue;
            }
            match (&entry.held, &entry.seen) {
                (Some(held), _) => steps.push(Step::Write(Arc::clone(&held.part))),
                (None, Some(seen)) => steps.push(Step::Delete(key.clone(), seen.slice.version.clone())),
                (None, None) => {}
            }
        }
        (steps, next)
    }

    /// How a step went that was begun at `sent`. Says what [`Book::see`] does.
    pub(super) fn done(&mut self, sent: Instant, now: Instant, step: &Step, done: Done) -> bool {
        let key = match step {
            Step::Write(part) => part.key.clone(),
            Step::Delete(key, _) => key.clone(),
        };
        let entry = self.entries.entry(key.clone()).or_default();
        match (done, step) {
            (Done::Written(slice), Step::Write(part)) => {
                entry.wrote(sent, part, &self.name);
                // Before the watch tells it.
                self.see(now, key, Some(slice))
            }
            (Done::Written(_), Step::Delete(..)) => false,
            (Done::Deleted, _) => {
                (entry.failures, entry.retry_at) = (0, None);
                self.see(now, key, None)
            }
            (Done::Outrun, _) => {
                entry.retry_at = Some(now + RETRY);
                false
            }
            (Done::Failed, _) => {
                let wait = RETRY * 2_u32.saturating_pow(entry.failures.min(8));
                entry.failures += 1;
                entry.retry_at = Some(now + wait.min(RENEW));
                false
            }
        }
    }

    /// When the API server is to be asked for all slices; `None`: no lease of another replica is about to run out.
    pub(super) fn asks_at(&self) -> Option<Instant> {
        let others = self.entries.values().filter_map(|entry| entry.seen.as_ref());
        let others = others.filter(|seen| seen.slice.record.holder != self.name && seen.over.is_none());
        let asked = others.map(|seen| seen.asked.map_or_else(|| seen.ends(), |asked| asked + CONFIRM));
        asked.min()
    }

    /// The API server has answered a question of `sent` with all slices. Says what [`Book::see`] does, and whether the watch hears nothing: what it
    /// had not told when this was last asked, it has not told since.
    pub(super) fn answered(
        &mut self,
        sent: Instant,
        now: Instant,
        all: &BTreeMap<NamespacedName, Slice>,
    ) -> (bool, bool) {
        let (mut changed, mut deaf) = (false, false);
        for (key, entry) in &mut self.entries {
            let Some(seen) = &mut entry.seen else { continue };
            // What it says of others may be older than what the watch has told.
            let same = all.get(key).is_some_and(|slice| slice.record == seen.slice.record);
            if !same {
                (seen.asked, seen.since) = (None, now);
                deaf |= std::mem::replace(&mut seen.missed, true);
            } else if seen.ends() > sent || seen.over.is_some() || seen.slice.record.holder == self.name {
                continue;
            } else if let Some(asked) = seen.asked.filter(|asked| now <= *asked + CONFIRM + IN_TIME) {
                if sent >= asked + CONFIRM {
                    seen.over = Some(now);
                    changed = true;
                }
            } else {
                seen.asked = Some(now);
            }
        }
        (changed, deaf)
    }

    /// What the other replicas stand for, the oldest first.
    pub(super) fn others(&self) -> Vec<Arc<Part>> {
        let seen = self.entries.iter().filter_map(|(key, entry)| Some((key, entry.seen.as_ref()?)));
        let mut parts: Vec<(&str, &NamespacedName, &Arc<Part>)> = seen
            .filter(|(_, seen)| seen.over.is_none() && seen.slice.record.holder != self.name)
            .filter_map(|(key, seen)| {
                Some((seen.slice.created.as_str(), key, seen.slice.part.as_ref().ok()?))
            })
            .collect();
        parts.sort_by_key(|(created, key, _)| (*created, *key));
        parts.into_iter().map(|(_, _, part)| Arc::clone(part)).collect()
    }
}

// === impl Entry ===

impl Entry {
    /// When something is to be done with it, if anything is.
    fn due(&self, us: &str, deletes: bool) -> Option<Instant> {
        let ours = |seen: &Seen| seen.slice.record.holder == us;
        match (&self.held, &self.seen) {
            (Some(held), Some(seen)) if ours(seen) => {
                let renewal = self.wrote.unwrap_or(seen.taken) + RENEW;
                let same = seen.slice.part.as_ref().is_ok_and(|part| *part == held.part);
                Some(if same { renewal } else { self.rested(held).min(renewal) })
            }
            (Some(held), Some(seen)) => {
                // Its proxy has gone there since.
                let elsewhere = seen.over.is_none() && held.since.into_std() <= seen.taken;
                (!elsewhere).then(|| self.rested(held))
            }
            (Some(held), None) => Some(self.rested(held)),
            (None, Some(seen)) if ours(seen) => Some(seen.since),
            (None, Some(seen)) => Some(seen.over.filter(|_| deletes)? + REST),
            (None, None) => None,
        }
    }

    /// When a change may be written.
    fn rested(&self, held: &HeldPart) -> Instant {
        let restless = self.changed.max(self.stirred_before).map(|last| last + CALM);
        let wrote = self.wrote.filter(|wrote| restless.is_some_and(|until| *wrote < until));
        wrote.map_or_else(|| held.since.into_std(), |wrote| wrote + self.spacing)
    }

    fn hold(&mut self, held: Option<HeldPart>) {
        if let Some(held) = &held
            && self.held.as_ref().is_none_or(|before| before.part != held.part)
        {
            self.stirred_before = self.stirred.replace(held.since.into_std());
        }
        self.held = held;
    }

    fn wrote(&mut self, sent: Instant, part: &Arc<Part>, us: &str) {
        (self.failures, self.retry_at) = (0, None);
        let same = |seen: &Seen| seen.slice.part.as_ref() == Ok(part) && seen.slice.record.holder == us;
        if !self.seen.as_ref().is_some_and(same) {
            let restless = self.changed.max(self.stirred_before).is_some_and(|last| sent < last + CALM);
            self.spacing = if restless { (self.spacing * 2).clamp(SPACING, RENEW) } else { SPACING };
            self.changed = Some(sent);
        }
        self.wrote = Some(sent);
    }
}

// === impl Seen ===

impl Seen {
    /// When its lease is over, should nothing change.
    fn ends(&self) -> Instant {
        self.since + self.slice.record.duration
    }
}
