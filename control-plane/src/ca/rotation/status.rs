//! How far a rotation is, as it is told: the answer of `/identity`, as JSON, which `tulle identity rotate-root` reads back. No key is in it.

use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tulle_certs::Pin;

use super::agreement::Waited;
use super::keeper::Progress;
use super::machine::{due_at, settle, slack};
use super::record::{State, Wanted, time};
use crate::ca::Ca;

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whom the roots vouch for.
    pub trust_domain: String,
    /// The root under which certificates are issued.
    pub root: Ends,
    /// The issuing certificate and those above it, together.
    pub issuer: Ends,
    /// Pins of all roots that proxies trust.
    pub trusted: Vec<String>,
    /// How long certificates of workloads live, in seconds.
    pub leaf_lifetime_seconds: u64,
    /// Why the root cannot be rotated here, and what to do instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_rotated_here: Option<String>,
    /// When the schedule begins a rotation; none if it never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_at: Option<String>,
    /// What is under way.
    pub rotation: Rotation,
    /// What a rotation takes.
    pub plan: Plan,
}

/// A certificate's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// Of its key; empty where it does not matter.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pin: String,
    /// RFC 3339, UTC.
    pub not_after: String,
    /// Less than zero if it has ended.
    pub expires_in_seconds: i64,
}

/// What is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// `idle`, `published`, `switched`, `draining` or `retired`.
    pub phase: String,
    /// What is asked for and not begun yet: `rotation` or `abort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Wanted>,
    /// Why there is a rotation: `asked`, `schedule` or `repair`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The pins of the old and the new root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// See `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// When the phase began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// When the old root is retired, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// The same, from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_in_seconds: Option<i64>,
    /// Who is waited for.
    pub waits_for: Vec<Waited>,
    /// How many proxies are connected to the replica that answers.
    pub connected: usize,
    /// Whether the replica that answers takes the steps.
    pub leads: bool,
    /// When the last rotation was complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<String>,
}

/// What a rotation takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// For so many seconds every connected proxy must be known to have the new root.
    pub settle_seconds: u64,
    /// So long both roots are trusted after the switch.
    pub drain_seconds: u64,
    /// Proxies that are connected here, and would be waited for.
    pub proxies: Vec<String>,
    /// How many there are beside those.
    pub more: usize,
}

/// So many proxies are named.
const NAMED: usize = 20;

impl Status {
    /// Of an authority, and how far its keeper is, at `now`.
    pub fn of(ca: &Ca, progress: &Progress, proxies: &[String], now: SystemTime) -> Self {
        let (record, root) = (ca.record(), ca.root());
        let seen = progress.seen();
        let lifetime = ca.lifetime();
        let not_rotated_here = ca.can_rotate().err().map(|why| why.to_string());
        let due = due_at(&root, seen.before).filter(|_| root.ours && not_rotated_here.is_none());
        let change = record.change();
        let until = match &record.state {
            State::Draining { until, .. } => Some(time(*until)),
            _ => None,
        };
        let rotation = Rotation {
            phase: record.state.word().to_owned(),
            wanted: record.wanted,
            why: change.map(|change| change.why.word().to_owned()),
            from: change.map(|change| change.from.clone()),
            to: change.map(|change| change.next.pin.clone()),
            since: change.map(|change| shown(time(change.since))),
            until: until.map(shown),
            until_in_seconds: until.map(|until| left(until, now)),
            waits_for: seen.waits_for,
            connected: proxies.len(),
            leads: seen.leads,
            completed: record.completed.map(|at| shown(time(at))),
        };
        let longest = lifetime.max(Duration::from_secs(record.lifetime));
        let outlive = time(record.outlive).duration_since(now).unwrap_or_default();
        let plan = Plan {
            settle_seconds: settle(lifetime).as_secs(),
            drain_seconds: longest.max(outlive).saturating_add(slack(longest)).as_secs(),
            proxies: proxies.iter().take(NAMED).cloned().collect(),
            more: proxies.len().saturating_sub(NAMED),
        };
        Self {
            trust_domain: ca.trust_domain().to_string(),
            root: Ends { pin: ca.pin().to_string(), ..Ends::of(ca.root_validity().1, now) },
            issuer: Ends::of(ca.validity().1, now),
            trusted: ca.bundle().pins().iter().map(Pin::to_string).collect(),
            leaf_lifetime_seconds: lifetime.as_secs(),
            not_rotated_here,
            scheduled_at: due.map(shown),
            rotation,
            plan,
        }
    }
}

impl Ends {
    fn of(until: SystemTime, now: SystemTime) -> Self {
        Self { pin: String::new(), not_after: shown(until), expires_in_seconds: left(until, now) }
    }
}

/// Seconds from now.
fn left(until: SystemTime, now: SystemTime) -> i64 {
    match until.duration_since(now) {
        Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        Err(over) => -i64::try_from(over.duration().as_secs()).unwrap_or(i64::MAX),
    }
}

/// RFC 3339, in whole seconds.
pub(super) fn shown(at: SystemTime) -> String {
    let seconds = i64::try_from(super::record::seconds(at)).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}
