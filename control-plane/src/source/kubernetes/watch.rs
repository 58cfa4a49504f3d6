//! One kind: where it is, all of it once, and from there what changes.
//!
//! Decides what is asked next, given what came of the question before ([`Step::after`]), and what an object's coming and going means
//! ([`Held`]). What could not be followed is listed again, and what is missing then is gone; whatever fails is asked again after a wait
//! that grows ([`Patience`]), and meanwhile what was last read is served on. `wire` asks and reads.
//!
//! Whose store was emptied, or is a backup, has lower versions than what was read: a watch from there on is open and silent, for it tells only what is later.
//! So before a watch is resumed, one cheap question tells the version that there is now, and a lower one has all listed again. A store that has
//! overtaken what was read by then cannot be told so; after an outage all is therefore listed once more when the next watch ends in its time.

use std::cmp::Ordering;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, SystemTime};

use kube::Client;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::decode::{Content, Decoded};
use super::Pace;
use super::resource::Resource;
use super::wire::{self, Event, Failure, Item};
use crate::finding::{Finding, Note, Severity};
use crate::index::Change;
use crate::metrics::Metrics;
use crate::object::{Kind, NamespacedName, ObjectKey};

/// An API server that has too much to do is left alone for as long as it says, but not for ever.
const LONGEST_REST: Duration = Duration::from_secs(300);

/// So many times in a row a watch is refused before all is listed.
const REFUSALS: u32 = 5;
/// So many times in a row it is forbidden before that is told: an API server that has just started denies everybody until it has read its own roles.
const DENIALS: u32 = 3;

/// What a watcher says.
#[derive(Debug)]
pub(super) enum Told {
    /// What has changed, and what is wrong with each of these objects now.
    Objects { changes: Vec<Change>, findings: Vec<(ObjectKey, Vec<Finding>)> },
    /// What keeps a kind from being read, or that nothing does.
    Trouble(Kind, Option<Finding>),
    /// All of a kind has been read once, or there is no such kind.
    Read(Kind),
}

/// What is asked next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Where the kind is.
    Locate,
    /// The same, after a while: it is not there.
    LookAgain,
    /// All of it.
    List { path: String },
    /// What has happened since.
    Watch { path: String, version: String },
}

/// Reads one kind, for as long as it is polled.
pub(super) struct Watcher {
    client: Client,
    resource: Resource,
    tell: mpsc::Sender<Told>,
    metrics: Metrics,
    pace: Pace,
    patience: Patience,
    held: Held,
    /// Whether the kind has been read once, and that is told.
    read: bool,
    /// What is in the log: nothing, that the kind is absent, or what keeps it from being read.
    logged: Option<&'static str>,
    /// So many times in a row it was forbidden.
    denied: u32,
    /// The next watch goes on from an earlier one, and not from a list.
    resumes: bool,
    /// There was an outage since the last list.
    doubtful: bool,
}

/// How long to wait after failures in a row.
#[derive(Debug)]
struct Patience {
    pace: Pace,
    failures: u32,
}

/// What is in force of a kind, as far as must be known of it here.
#[derive(Debug, Default)]
struct Held {
    objects: BTreeMap<NamespacedName, Version>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Version {
    /// What is in force is what was once written; not what stands in for it.
    good: bool,
    /// Something is in force.
    known: bool,
    /// Something is found wrong with it.
    wrong: bool,
}

// === impl Step ===

impl Step {
    /// What is asked after this has failed, so often in a row.
    fn after(self, failure: &Failure, failures: u32, always: bool) -> Self {
        match (self, failure) {
            // Its definition may have gone, or the version may be served no more.
            (Self::List { .. } | Self::Watch { .. }, Failure::NotFound(_)) if !always => Self::Locate,
            // Whoever asks the same again gets the same again.
            (Self::Watch { path, .. }, Failure::Gone(_) | Failure::Garbage(_) | Failure::Rewound { .. }) => {
                Self::List { path }
            }
            // An API server that was put back to an older state knows no such version yet, and may never.
            (Self::Watch { path, .. }, Failure::Refused { .. }) if failures >= REFUSALS => {
                Self::List { path }
            }
            (step, _) => step,
        }
    }
}

// === impl Patience ===

impl Patience {
    fn new(pace: Pace) -> Self {
        Self { pace, failures: 0 }
    }

    /// `chance`: 0 to 1.
    fn wait(&mut self, failure: &Failure, chance: f64) -> Duration {
        let doubled = self.pace.first.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        // Between half and all of it, so that what failed together does not come back together.
        let wait = doubled.min(self.pace.longest).mul_f64(0.5 + chance / 2.0);
        match failure {
            Failure::TooMany { wait: Some(asked), .. } => {
                asked.mul_f64(1.0 + chance / 4.0).clamp(wait, LONGEST_REST.max(wait))
            }
            _ => wait,
        }
    }

    fn recovered(&mut self) {
        self.failures = 0;
    }
}

fn chance() -> f64 {
    let drawn = RandomState::new().build_hasher().finish();
    f64::from(u32::try_from(drawn >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

// === impl Held ===

impl Held {
    /// Takes in what an object is now.
    fn apply(
        &mut self,
        decoded: Decoded,
        told: &mut Vec<Change>,
        findings: &mut Vec<(ObjectKey, Vec<Finding>)>,
    ) {
        let Decoded { key, content, notes } = decoded;
        let before = self.objects.get(&key.name).copied().unwrap_or_default();
        let mut now = Version { wrong: !notes.is_empty(), ..before };
        match content {
            Content::Good(object) => {
                now = Version { good: true, known: true, ..now };
                told.push(Change::Apply(Box::new(object), None));
            }
            // The last good version holds.
            Content::Refused { .. } if before.good => {}
            Content::Refused { fallback: Some(object) } => {
                now = Version { good: false, known: true, ..now };
                told.push(Change::Apply(Box::new(object), None));
            }
            Content::Refused { fallback: None } | Content::Unknown => {}
        }
        if now.wrong || before.wrong {
            let notes = notes.into_iter();
            findings.push((key.clone(), notes.map(|note| Finding::new(note, Some(&key), None)).collect()));
        }
        self.objects.insert(key.name, now);
    }

    fn delete(
        &mut self,
        key: ObjectKey,
        told: &mut Vec<Change>,
        findings: &mut Vec<(ObjectKey, Vec<Finding>)>,
    ) {
        let Some(before) = self.objects.remove(&key.name) else {
            return;
        };
        if before.wrong {
            findings.push((key.clone(), Vec::new()));
        }
        if before.known {
            told.push(Change::Delete(key));
        }
    }

    /// What is held and not in `seen`.
    fn missing(&self, seen: &BTreeSet<NamespacedName>) -> Vec<NamespacedName> {
        self.objects.keys().filter(|name| !seen.contains(*name)).cloned().collect()
    }
}

// === impl Watcher ===

impl Watcher {
    pub(super) fn new(
        client: Client,
        resource: Resource,
        tell: mpsc::Sender<Told>,
        metrics: Metrics,
        pace: Pace,
    ) -> Self {
        let (patience, held) = (Patience::new(pace), Held::default());
        Self {
            client,
            resource,
            tell,
            metrics,
            pace,
            patience,
            held,
            read: false,
            logged: None,
            denied: 0,
            resumes: false,
            doubtful: false,
        }
    }

    /// Reads until it is dropped.
    pub(super) async fn run<T: Item>(mut self) {
        let mut step = Step::Locate;
        loop {
            let asked = match &mut step {
                Step::Locate => self.locate().await,
                Step::LookAgain => {
                    tokio::time::sleep(self.pace.look_again.mul_f64(1.0 + chance() / 2.0)).await;
                    Ok(Step::Locate)
                }
                Step::List { path } => self.list::<T>(path).await,
                // The version moves on while it is watched, and stays where it is if the watch fails.
                Step::Watch { path, version } => self.watch::<T>(path, version).await,
            };
            step = match asked {
                Ok(next) => next,
                Err(failure) => {
                    self.failed(&failure).await;
                    self.doubtful |= failure.is_outage();
                    tokio::time::sleep(self.patience.wait(&failure, chance())).await;
                    step.after(&failure, self.patience.failures, self.resource.always)
                }
            };
        }
    }

    fn kind(&self) -> &'static str {
        self.resource.kind.as_str()
    }

    async fn locate(&mut self) -> Result<Step, Failure> {
        let resource = self.resource;
        for version in resource.versions() {
            if resource.always || wire::serves(&self.client, version, resource.plural).await? {
                return Ok(Step::List { path: resource.path(version) });
            }
        }
        // Its objects are there, and what is held of them must not go because nobody here can read them: a policy would be in force no more.
        let served = wire::versions(&self.client, resource.group(), resource.plural).await?;
        if let Some(found) =
            resource.versions().iter().find(|version| served.iter().any(|one| one == *version))
        {
            return Ok(Step::List { path: resource.path(found) });
        }
        if !served.is_empty() {
            // Another project's kinds may be of a version that is too new for who starts now; ours came with a chart of ours.
            if !resource.is_ours() {
                self.has_read().await;
            }
            return Err(Failure::OtherVersion(served.join(" and ")));
        }
        self.absent().await;
        Ok(Step::LookAgain)
    }

    async fn absent(&mut self) {
        if self.logged.replace("absent") != Some("absent") {
            tracing::info!(
                kind = self.kind(),
                "the API server has no {}; they are read once their definition is installed",
                self.resource.name()
            );
        }
        self.patience.recovered();
        // Its objects went with the definition.
        self.prune(&BTreeSet::new()).await;
        self.tell(Told::Trouble(self.resource.kind, None)).await;
        self.metrics.forget_watch(self.kind());
        self.has_read().await;
    }

    /// Reads everything, page by page, so that a page of it is in memory at a time.
    async fn list<T: Item>(&mut self, path: &str) -> Result<Step, Failure> {
        self.metrics.lists.with_label_values(&[self.kind()]).inc();
        self.connected(false);
        let mut seen = BTreeSet::new();
        let mut token = String::new();
        loop {
            let page = wire::list::<T>(&self.client, path, &self.resource, &token).await?;
            let (mut changes, mut findings) = (Vec::with_capacity(page.items.len()), Vec::new());
            for item in page.items {
                match item.decode(self.resource.kind) {
                    Ok(decoded) => {
                        seen.insert(decoded.key.name.clone());
                        self.held.apply(decoded, &mut changes, &mut findings);
                    }
                    Err(note) => self.unnamed(&note),
                }
            }
            self.tell(Told::Objects { changes, findings }).await;
            token = page.metadata.token;
            if token.is_empty() {
                self.prune(&seen).await;
                self.reads_again().await;
                self.has_read().await;
                (self.resumes, self.doubtful) = (false, false);
                return Ok(Step::Watch { path: path.to_owned(), version: page.metadata.resource_version });
            }
        }
    }

    async fn watch<T: Item>(&mut self, path: &str, version: &mut String) -> Result<Step, Failure> {
        let list = Step::List { path: path.to_owned() };
        if self.resumes {
            let now = wire::version(&self.client, path).await?;
            match wire::order(&now, version) {
                Some(Ordering::Less) => return Err(Failure::Rewound { read: version.clone(), now }),
                Some(_) => {}
                None => return Ok(list),
            }
        }
        self.resumes = true;
        let lifetime = self.pace.lifetime.mul_f64(0.75 + chance() / 4.0);
        let began = Instant::now();
        let events = wire::watch(&self.client, path, &self.resource, version, lifetime).await;
        let mut events = events?;
        self.connected(true);
        self.reads_again().await;
        // One that lasts is no storm: what fails later begins with a short wait again.
        let long = self.pace.first.saturating_mul(5);
        let lasts = |began: Instant| began.elapsed() >= long;
        let mut heard = false;
        let ended = loop {
            let next = tokio::time::timeout(self.pace.silence, events.next::<T>()).await;
            if lasts(began) {
                self.patience.recovered();
            }
            match next {
                Ok(Ok(Some(event))) => {
                    heard = true;
                    if let Err(failure) = self.happened(event, version).await {
                        break Err(failure);
                    }
                }
                // A dead connection says nothing either; to ask again costs little.
                Ok(Ok(None)) | Err(_) => break Ok(()),
                Ok(Err(failure)) => break Err(failure),
            }
        };
        self.connected(false);
        ended?;
        if !heard && !lasts(began) {
            return Err(Failure::Short);
        }
        if self.doubtful {
            return Ok(list);
        }
        Ok(Step::Watch { path: path.to_owned(), version: version.clone() })
    }

    async fn happened<T: Item>(&mut self, event: Event<T>, version: &mut String) -> Result<(), Failure> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.metrics.watch_events.with_label_values(&[self.kind()]).set(seconds);
        let (item, is_there) = match event {
            Event::Bookmark(reached) => {
                goes_on(version, &reached)?;
                *version = reached;
                return Ok(());
            }
            Event::Applied(item) => (item, true),
            Event::Deleted(item) => (item, false),
        };
        let reached = item.version().map(str::to_owned);
        if let Some(reached) = &reached {
            goes_on(version, reached)?;
        }
        let (mut changes, mut findings) = (Vec::new(), Vec::new());
        match item.decode(self.resource.kind) {
            Ok(decoded) if is_there => self.held.apply(decoded, &mut changes, &mut findings),
            Ok(decoded) => self.held.delete(decoded.key, &mut changes, &mut findings),
            Err(note) => self.unnamed(&note),
        }
        if !changes.is_empty() || !findings.is_empty() {
            self.tell(Told::Objects { changes, findings }).await;
        }
        // Only now: what is dropped before it is told must come again.
        if let Some(reached) = reached {
            *version = reached;
        }
        Ok(())
    }

    /// An API server has no such object; whoever sent it is something else.
    fn unnamed(&self, note: &Note) {
        self.metrics.watch_errors.with_label_values(&[self.kind(), "garbage"]).inc();
        tracing::warn!(kind = self.kind(), field = note.field, "{}", note.message);
    }

    async fn prune(&mut self, seen: &BTreeSet<NamespacedName>) {
        let (mut changes, mut findings) = (Vec::new(), Vec::new());
        for name in self.held.missing(seen) {
            let key = ObjectKey { kind: self.resource.kind, name };
            self.held.delete(key, &mut changes, &mut findings);
        }
        if !changes.is_empty() || !findings.is_empty() {
            self.tell(Told::Objects { changes, findings }).await;
        }
    }

    async fn failed(&mut self, failure: &Failure) {
        let reason = failure.reason();
        self.metrics.watch_errors.with_label_values(&[self.kind(), reason]).inc();
        let name = self.resource.name();
        let is_denied = matches!(failure, Failure::Forbidden(_));
        self.denied = if is_denied { self.denied.saturating_add(1) } else { 0 };
        let is_lasting = self.denied >= DENIALS;
        // Once for as long as it lasts; what comes of itself in a cluster's life, only to who looks closely.
        let ordinary = matches!(failure, Failure::Gone(_) | Failure::Short) || (is_denied && !is_lasting);
        if ordinary || self.logged.replace(reason) == Some(reason) {
            tracing::debug!(kind = self.kind(), reason, "{name} cannot be read: {failure}");
        } else {
            tracing::warn!(
                kind = self.kind(),
                reason,
                "{name} cannot be read: {failure}; what was last read of them is served on, and they are asked for again"
            );
        }
        let trouble = match failure {
            Failure::Forbidden(said) if is_lasting => forbidden(&self.resource, said),
            Failure::OtherVersion(served) => other_version(&self.resource, served),
            _ => return,
        };
        self.tell(Told::Trouble(self.resource.kind, Some(trouble))).await;
    }

    /// What kept the kind from being read is over.
    async fn reads_again(&mut self) {
        self.denied = 0;
        match self.logged.take() {
            None => return,
            Some("absent") => {
                tracing::info!(kind = self.kind(), "{} are there, and are read", self.resource.name());
            }
            Some(_) => tracing::info!(kind = self.kind(), "{} are read again", self.resource.name()),
        }
        self.tell(Told::Trouble(self.resource.kind, None)).await;
    }

    async fn has_read(&mut self) {
        if !std::mem::replace(&mut self.read, true) {
            self.tell(Told::Read(self.resource.kind)).await;
        }
    }

    fn connected(&self, is_open: bool) {
        self.metrics.watch_connected.with_label_values(&[self.kind()]).set(is_open.into());
    }

    async fn tell(&self, told: Told) {
        // Nobody listens: everything ends.
        let _ended = self.tell.send(told).await;
    }
}

/// A watch tells what is later than what it has told.
fn goes_on(read: &str, now: &str) -> Result<(), Failure> {
    match wire::order(now, read) {
        Some(Ordering::Less) => Err(Failure::Rewound { read: read.to_owned(), now: now.to_owned() }),
        _ => Ok(()),
    }
}

/// What is missing in the control plane's role, and where to add it.
fn forbidden(resource: &Resource, said: &str) -> Finding {
    let group = match resource.group() {
        "" => "the core API group".to_owned(),
        group => format!("the API group `{group}`"),
    };
    of_a_kind(
        format!(
            "the control plane may not read {}: {said}; what was last read of them is served on",
            resource.name()
        ),
        format!(
            "let its ClusterRole `list` and `watch` the resource `{}` of {group}; docs/kubernetes.md has all that it needs",
            resource.plural
        ),
    )
}

/// What is installed is of another version than what is read.
fn other_version(resource: &Resource, served: &str) -> Finding {
    of_a_kind(
        format!(
            "the API server has {} only as {served}, and the control plane reads {}; what was last read of them is served on",
            resource.name(),
            resource.versions().join(" or "),
        ),
        "install the definitions that belong to this version of the control plane, or the control plane that belongs to them"
            .to_owned(),
    )
}

/// About a whole kind, and no object of it.
fn of_a_kind(message: String, hint: String) -> Finding {
    Finding {
        file: None,
        line: None,
        column: None,
        severity: Severity::Error,
        object: None,
        field: None,
        message,
        hint: Some(hint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace::default()
    }

    #[test]
    fn each_failure_waits_longer_up_to_a_bound_and_not_all_alike() {
        let mut patience = Patience::new(pace());
        let lost = Failure::Short;
        let waits: Vec<Duration> = (0..12).map(|_| patience.wait(&lost, 1.0)).collect();
        assert_eq!(waits[..3], [200, 400, 800].map(Duration::from_millis));
        assert_eq!(waits[11], Duration::from_secs(30));
        assert_eq!(patience.wait(&lost, 0.0), Duration::from_secs(15));
        patience.recovered();
        assert_eq!(patience.wait(&lost, 1.0), Duration::from_millis(200));
    }

    #[test]
    fn who_has_too_much_to_do_is_left_alone_as_long_as_it_asks() {
        let mut patience = Patience::new(pace());
        let busy =
            |seconds| Failure::TooMany { message: String::new(), wait: Some(Duration::from_secs(seconds)) };
        assert_eq!(patience.wait(&busy(8), 0.0), Duration::from_secs(8));
        assert_eq!(patience.wait(&busy(8), 1.0), Duration::from_secs(10));
        assert_eq!(patience.wait(&busy(100_000), 1.0), LONGEST_REST);
        assert!(
            patience.wait(&busy(0), 1.0) > Duration::from_secs(1),
            "but not at once, however often it says so"
        );
    }

    #[test]
    fn what_could_not_be_followed_is_listed_and_what_was_only_cut_is_resumed() {
        let watch = || Step::Watch { path: "/p".to_owned(), version: "7".to_owned() };
        let list = || Step::List { path: "/p".to_owned() };
        let rewound = Failure::Rewound { read: "7".to_owned(), now: "3".to_owned() };
        for failure in [Failure::Gone(String::new()), Failure::Garbage(String::new()), rewound] {
            assert_eq!(watch().after(&failure, 9, false), list());
        }
        let busy = Failure::TooMany { message: String::new(), wait: None };
        for failure in
            [Failure::Unreachable(String::new()), busy, Failure::Forbidden(String::new()), Failure::Short]
        {
            assert_eq!(watch().after(&failure, 9, false), watch());
            assert_eq!(list().after(&failure, 9, false), list());
        }
        let refused = Failure::Refused { code: 504, message: String::new() };
        assert_eq!(watch().after(&refused, REFUSALS - 1, false), watch());
        assert_eq!(watch().after(&refused, REFUSALS, false), list(), "the version may be of another life");
        let absent = Failure::NotFound(String::new());
        assert_eq!(watch().after(&absent, 1, false), Step::Locate);
        assert_eq!(list().after(&absent, 1, true), list(), "Services are always there");
    }
}
