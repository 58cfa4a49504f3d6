//! Who is waited for, by what each replica says of itself and of the proxies that are connected to it.
//!
//! Pure. What somebody has said counts for [`FRESH`] from when it was seen to be new, by one's own clock: times that others write are compared with no clock,
//! as with leases. What was there when one began to look may be old, so it counts only once it has been followed by something newer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::record::{Record, State};
use crate::ads::Connected;

/// For so long what a replica has said of itself counts.
pub(super) const FRESH: Duration = Duration::from_secs(30);
/// So many proxies that are waited for are named; the others are counted.
const NAMED: usize = 20;

/// What a replica says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Another one in each report.
    pub number: u64,
    /// The pin of the root under which it issues.
    pub issues: String,
    /// The version of the roots that it tells proxies; the same text at every replica that tells the same. Empty: not yet those that it is to tell.
    pub bundle: String,
    /// How many proxies are connected to it.
    pub connected: usize,
    /// Of those that have not accepted these roots, some.
    pub behind: Vec<String>,
    /// How many there are beside those.
    pub more: usize,
    /// How long the leaves live that it issues, in seconds.
    pub lifetime: u64,
}

/// What each replica says, by its name.
pub type Reports = BTreeMap<String, Report>;

/// When what was said is known to have been new.
#[derive(Debug, Default)]
pub(super) struct Heard(BTreeMap<String, Last>);

/// What one has said last.
#[derive(Debug)]
struct Last {
    number: u64,
    /// When it was first heard at all.
    first: Instant,
    /// When it was seen to be another one than before.
    changed: Option<Instant>,
}

/// Somebody who is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waited {
    /// Which replica; empty where there is only one, or where it is not known which there are.
    pub replica: String,
    /// What it has not done.
    pub why: Lacks,
    /// The proxies that are meant, if any are: some of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxies: Vec<String>,
    /// How many there are beside those.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: usize,
}

/// What is not done yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lacks {
    /// The replica has said nothing lately.
    Silent,
    /// It does not tell the new root yet.
    OldBundle,
    /// It does not issue under the new root yet.
    OldIssuer,
    /// Proxies have not accepted the new root yet.
    Proxies,
    /// Which replicas there are cannot be asked.
    Unknown,
}

// === impl Report ===

impl Report {
    /// Of a replica that issues under the root with the pin `issues` and tells `bundle`, and of its proxies. Without a number.
    pub fn of(issues: String, bundle: &str, proxies: &[Connected], lifetime: Duration) -> Self {
        let behind = proxies.iter().filter(|proxy| proxy.bundle.as_deref() != Some(bundle));
        // One that has said nothing yet is known by its certificate only.
        let name = |proxy: &Connected| match proxy.node.is_empty() {
            true => proxy.identity.clone(),
            false => proxy.node.clone(),
        };
        let mut behind: Vec<String> = behind.map(name).collect();
        behind.sort();
        let more = behind.len().saturating_sub(NAMED);
        behind.truncate(NAMED);
        let bundle = bundle.to_owned();
        let (connected, lifetime) = (proxies.len(), lifetime.as_secs());
        Self { number: 0, issues, bundle, connected, behind, more, lifetime }
    }

    fn lacks(&self, record: &Record, bundle: &str) -> Option<Lacks> {
        let change = record.change()?;
        match &record.state {
            State::Published(_) if self.bundle.is_empty() || self.bundle != bundle => Some(Lacks::OldBundle),
            State::Published(_) => (!self.behind.is_empty()).then_some(Lacks::Proxies),
            State::Switched(_) => (self.issues != change.next.pin).then_some(Lacks::OldIssuer),
            _ => None,
        }
    }
}

// === impl Heard ===

impl Heard {
    /// Takes in what is said at `tick`.
    pub(super) fn hear(&mut self, said: &Reports, tick: Instant) {
        self.0.retain(|replica, _| said.contains_key(replica));
        for (replica, report) in said {
            let first = || Last { number: report.number, first: tick, changed: None };
            let last = self.0.entry(replica.clone()).or_insert_with(first);
            if last.number != report.number {
                (last.number, last.changed) = (report.number, Some(tick));
            }
        }
    }

    /// Whether `replica` is known for so short a time that it may yet turn out to run.
    pub(super) fn is_new(&self, replica: &str, tick: Instant) -> bool {
        let new = |last: &Last| last.changed.is_none() && tick.saturating_duration_since(last.first) <= FRESH;
        self.0.get(replica).is_some_and(new)
    }

    /// Whether what `replica` says counts at `tick`.
    pub(super) fn counts(&self, replica: &str, tick: Instant) -> bool {
        let since = self.0.get(replica).and_then(|last| last.changed);
        since.is_some_and(|since| tick.saturating_duration_since(since) <= FRESH)
    }
}

/// Who is waited for: of `own`, which is of this moment, and of the `others` that there are, whose reports count at `tick` or not.
pub(super) fn waited_for(
    record: &Record,
    own: (&str, &Report),
    others: &[String],
    said: &Reports,
    heard: &Heard,
    tick: Instant,
) -> Vec<Waited> {
    let waited = |replica: &str, why: Lacks, report: Option<&Report>| {
        let of_proxies = report.filter(|_| why == Lacks::Proxies);
        let proxies = of_proxies.map(|report| report.behind.clone()).unwrap_or_default();
        let more = of_proxies.map_or(0, |report| report.more);
        Waited { replica: replica.to_owned(), why, proxies, more }
    };
    let (name, report) = own;
    let bundle = &report.bundle;
    let mut all = Vec::new();
    all.extend(report.lacks(record, bundle).map(|why| waited(name, why, Some(report))));
    if !matches!(record.state, State::Published(_) | State::Switched(_)) {
        return all;
    }
    for other in others.iter().filter(|other| *other != name) {
        match said.get(other).filter(|_| heard.counts(other, tick)) {
            None => all.push(waited(other, Lacks::Silent, None)),
            Some(report) => {
                all.extend(report.lacks(record, bundle).map(|why| waited(other, why, Some(report))));
            }
        }
    }
    all
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use zeroize::Zeroizing;

    use super::super::record::{Next, Why};
    use super::*;

    fn published() -> Record {
        let next = Next {
            pin: "new".to_owned(),
            key: Zeroizing::default(),
            certificate: String::new(),
            bridge: None,
        };
        let old = ("old".to_owned(), String::new());
        Record::default().published(old, next, Why::Asked, SystemTime::now())
    }

    fn switched() -> Record {
        let record = published();
        Record { state: State::Switched(record.change().unwrap().clone()), ..record }
    }

    fn proxy(node: &str, bundle: Option<&str>) -> Connected {
        Connected {
            node: node.to_owned(),
            identity: "spiffe://td/ns/shop/sa/web".to_owned(),
            since: SystemTime::now(),
            bundle: bundle.map(Into::into),
            rejected: Vec::new(),
        }
    }

    fn report(number: u64, issues: &str, proxies: &[Connected]) -> Report {
        Report { number, ..Report::of(issues.to_owned(), "both", proxies, Duration::from_secs(60)) }
    }

    fn of(waited: &[Waited]) -> Vec<(&str, Lacks)> {
        waited.iter().map(|one| (one.replica.as_str(), one.why)).collect()
    }

    #[test]
    fn a_proxy_is_waited_for_until_it_has_accepted_the_very_bundle() {
        let proxies = [
            proxy("shop/web", Some("both")),
            proxy("shop/orders", Some("old alone")),
            proxy("", None),
            proxy("shop/new", None),
        ];
        let own = report(0, "old", &proxies);
        let waited =
            waited_for(&published(), ("", &own), &[], &Reports::new(), &Heard::default(), Instant::now());
        assert_eq!(of(&waited), [("", Lacks::Proxies)]);
        assert_eq!(waited[0].proxies, ["shop/new", "shop/orders", "spiffe://td/ns/shop/sa/web"]);
        let own = report(0, "old", &proxies[..1]);
        let none =
            waited_for(&published(), ("", &own), &[], &Reports::new(), &Heard::default(), Instant::now());
        assert!(none.is_empty());
        let many: Vec<Connected> = (0..50).map(|number| proxy(&format!("shop/{number:02}"), None)).collect();
        let own = report(0, "old", &many);
        assert_eq!((own.behind.len(), own.more, own.connected), (NAMED, 30, 50));
    }

    #[test]
    fn what_another_replica_says_counts_once_it_is_known_to_be_new_and_for_half_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let own = report(0, "old", &[]);
        let others = ["b".to_owned()];
        let mut heard = Heard::default();
        let waited = |said: &Reports, heard: &Heard, tick| {
            waited_for(&published(), ("a", &own), &others, said, heard, tick)
        };
        let mut said = Reports::new();
        assert_eq!(of(&waited(&said, &heard, at(0))), [("b", Lacks::Silent)]);
        // What is there at the beginning may be of yesterday.
        said.insert("b".to_owned(), report(7, "old", &[]));
        heard.hear(&said, at(1));
        assert_eq!(of(&waited(&said, &heard, at(1))), [("b", Lacks::Silent)]);
        heard.hear(&said, at(5));
        assert_eq!(of(&waited(&said, &heard, at(5))), [("b", Lacks::Silent)]);
        said.insert("b".to_owned(), report(8, "old", &[]));
        heard.hear(&said, at(10));
        assert!(waited(&said, &heard, at(10)).is_empty());
        heard.hear(&said, at(40));
        assert!(waited(&said, &heard, at(40)).is_empty());
        assert_eq!(of(&waited(&said, &heard, at(41))), [("b", Lacks::Silent)]);
        // Whoever takes over begins to listen anew.
        said.insert("b".to_owned(), report(9, "old", &[]));
        heard.hear(&said, at(42));
        assert!(waited(&said, &heard, at(42)).is_empty());
        let mut heard = Heard::default();
        heard.hear(&said, at(43));
        assert!(heard.is_new("b", at(73)) && !heard.is_new("b", at(74)) && !heard.is_new("c", at(43)));
        assert_eq!(of(&waited(&said, &heard, at(43))), [("b", Lacks::Silent)]);
    }

    #[test]
    fn every_replica_that_there_is_must_have_done_it() {
        let start = Instant::now();
        let others = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let said = |b: Report, c: Report| Reports::from([("b".to_owned(), b), ("c".to_owned(), c)]);
        let mut heard = Heard::default();
        heard.hear(&said(report(1, "old", &[]), report(1, "old", &[])), start);
        let old = Report { bundle: "old alone".to_owned(), ..report(2, "old", &[]) };
        let behind = report(2, "old", &[proxy("shop/web", None)]);
        let now = said(old, behind);
        heard.hear(&now, start);
        let own = report(0, "new", &[]);
        let waited = waited_for(&published(), ("a", &own), &others, &now, &heard, start);
        assert_eq!(of(&waited), [("b", Lacks::OldBundle), ("c", Lacks::Proxies)]);
        assert_eq!(waited[1].proxies, ["shop/web"]);
        // Proxies do not matter any more.
        let now = said(report(3, "old", &[]), report(3, "new", &[proxy("shop/web", None)]));
        heard.hear(&now, start);
        let waited = waited_for(&switched(), ("a", &own), &others, &now, &heard, start);
        assert_eq!(of(&waited), [("b", Lacks::OldIssuer)]);
        // One that is gone is nobody.
        let alone = waited_for(&switched(), ("a", &own), &["c".to_owned()], &now, &heard, start);
        assert!(alone.is_empty());
        let idle = waited_for(&Record::default(), ("a", &own), &others, &Reports::new(), &heard, start);
        assert!(idle.is_empty());
    }
}
