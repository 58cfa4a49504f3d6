//! What has become of routes and policies, in their `status`: `parents` of the Gateway API's routes, `ancestors` of our policies (GEP-713).
//!
//! What is said follows from the index ([`crate::model`]); of an object that the source refuses it is what is wrong with it. Only the holder of
//! the lease writes, only what differs from what is there, only entries of [`CONTROLLER`], to the version that was read, and so many in a second ([`PACE`]).
//! Never said of a generation that has not been judged: where the source is behind, or ahead of us, nothing is written until it is not.

mod live;
mod said;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch};
use kube::runtime::watcher::Event;
use kube::{Api, Client};
use prometheus::IntCounterVec;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::live::{KINDS, Live, Told};
use self::said::{Form, Judgement};
use super::lease::Holder;
use super::seen::Seen;
use super::{ApiError, asked, backoff, parameters};
use crate::finding::Finding;
use crate::model::Publisher;
use crate::object::{Kind, ObjectKey};

/// As whom we say it.
pub const CONTROLLER: &str = "tulle.dev/control-plane";
/// The least time between two writes.
const PACE: Duration = Duration::from_millis(50);
/// What comes together is looked at together.
const GATHER: Duration = Duration::from_millis(200);
/// An object is taken for refused when it has findings and another generation than what is in force, for so long: before, the source may only be behind.
const SETTLED: Duration = Duration::from_secs(2);

/// Writes them. See the module.
pub struct Statuses {
    client: Client,
    publisher: Arc<Publisher>,
    outcomes: IntCounterVec,
}

/// What the API server has, and what is to be done about it.
#[derive(Default)]
struct Objects {
    of: BTreeMap<Kind, (ApiResource, Seen<ObjectKey, Live>)>,
    /// Failures in a row, and when to try again.
    retry: BTreeMap<ObjectKey, (u32, Instant)>,
}

/// A write that is due.
struct Write {
    key: ObjectKey,
    resource: ApiResource,
    form: Form,
    live: Live,
    judgement: Judgement,
}

/// How a write has ended.
enum Written {
    /// The status is this now; or there was nothing to write.
    Stored(Option<Live>),
    /// The object is gone.
    Gone,
    /// It is worth another try.
    Failed,
}

// === impl Statuses ===

impl Statuses {
    /// `outcomes` is told how each write ends.
    pub fn new(client: Client, publisher: Arc<Publisher>, outcomes: IntCounterVec) -> Self {
        for outcome in ["written", "conflict", "gone", "failed"] {
            outcomes.with_label_values(&[outcome]);
        }
        Self { client, publisher, outcomes }
    }

    /// Writes while the lease is held. Runs until it is dropped.
    pub async fn keep(self, mut holder: Holder) {
        let mut holding = holder.clone();
        loop {
            holder.held().await;
            tokio::select! {
                () = self.keep_held() => return,
                () = holding.lost() => {}
            }
        }
    }

    async fn keep_held(&self) {
        let (tell, mut told) = mpsc::channel(256);
        let mut watches = JoinSet::new();
        for kind in KINDS {
            watches.spawn(live::follow(self.client.clone(), kind, tell.clone()));
        }
        let mut judged = self.publisher.judged();
        let mut objects = Objects::default();
        let mut next = None;
        loop {
            let again = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(one) = told.recv() => objects.take_in(one),
                changed = judged.changed() => if changed.is_err() {
                    return;
                },
                () = again => {}
            }
            meanwhile(&mut told, &mut objects, tokio::time::sleep(GATHER)).await;
            while let Ok(one) = told.try_recv() {
                objects.take_in(one);
            }
            judged.mark_unchanged();
            let (writes, look_again) = self.due(&objects);
            next = look_again;
            for write in writes {
                if !objects.is_current(&write) {
                    // It has changed since, and is looked at anew.
                    next = Some(Instant::now());
                    continue;
                }
                let written = meanwhile(&mut told, &mut objects, self.write(&write)).await;
                if let Some(until) = objects.written(&write, written) {
                    next = Some(next.map_or(until, |next: Instant| next.min(until)));
                }
                meanwhile(&mut told, &mut objects, tokio::time::sleep(PACE)).await;
            }
        }
    }

    /// What differs from what should be said, and when to look again where that is not known yet.
    fn due(&self, objects: &Objects) -> (Vec<Write>, Option<Instant>) {
        let (routes, policies) = self.publisher.judgements();
        let mut judgements: BTreeMap<ObjectKey, Judgement> = routes
            .iter()
            .filter_map(Judgement::of_route)
            .chain(policies.iter().filter_map(Judgement::of_policy))
            .collect();
        let findings = self.publisher.findings();
        let findings = findings.borrow().clone();
        let mut wrong: BTreeMap<ObjectKey, Vec<&Finding>> = BTreeMap::new();
        for finding in findings.iter() {
            if let Some(key) = finding.object.as_deref().and_then(ObjectKey::parse) {
                wrong.entry(key).or_default().push(finding);
            }
        }
        let now = Instant::now();
        let (mut writes, mut next) = (Vec::new(), None);
        let mut later = |at: Instant| next = Some(next.map_or(at, |next: Instant| next.min(at)));
        for (kind, (resource, seen)) in &objects.of {
            let Some(form) = Form::of(*kind) else { continue };
            for (key, live) in seen.all() {
                let judged = judgements.remove(key).filter(|one| one.generation == Some(live.generation));
                let message = wrong.get(key).map(|findings| said::errors(findings)).unwrap_or_default();
                let judgement = match judged {
                    Some(judgement) => judgement,
                    None if message.is_empty() => continue,
                    None if live.since + SETTLED > now => {
                        later(live.since + SETTLED);
                        continue;
                    }
                    None => Judgement::refused(*kind, &live.refs, live.generation, &message),
                };
                if form.put(&live.status, &judgement.entries, live.generation, "").is_none() {
                    continue;
                }
                if let Some((_, until)) = objects.retry.get(key).filter(|(_, until)| *until > now) {
                    later(*until);
                    continue;
                }
                let (key, resource, live) = (key.clone(), resource.clone(), live.clone());
                writes.push(Write { key, resource, form, live, judgement });
            }
        }
        (writes, next)
    }

    /// Writes one status.
    async fn write(&self, write: &Write) -> Written {
        let Write { key, resource, form, live, judgement } = write;
        let api: Api<DynamicObject> = if key.name.namespace.is_empty() {
            Api::all_with(self.client.clone(), resource)
        } else {
            Api::namespaced_with(self.client.clone(), &key.name.namespace, resource)
        };
        let Some(list) = form.put(&live.status, &judgement.entries, live.generation, &now()) else {
            return Written::Stored(None);
        };
        let patch = Patch::Merge(patch(&live.version, *form, list));
        match asked(api.patch_status(&key.name.name, &parameters(), &patch)).await {
            Ok(object) => {
                self.count("written");
                Written::Stored(Live::read(key.kind, object, Some((live.generation, live.since))).1)
            }
            // The watch tells what it is now.
            Err(error) if error.is_conflict() => {
                self.count("conflict");
                Written::Failed
            }
            Err(error) => self.refused(key, &error),
        }
    }

    fn refused(&self, key: &ObjectKey, error: &ApiError) -> Written {
        if error.is_not_found() {
            self.count("gone");
            return Written::Gone;
        }
        self.count("failed");
        if error.is_invalid() {
            tracing::error!(object = %key, %error, "the API server does not take the status");
        } else {
            tracing::warn!(object = %key, %error, "cannot write the status; trying again");
        }
        Written::Failed
    }

    fn count(&self, outcome: &str) {
        self.outcomes.with_label_values(&[outcome]).inc();
    }
}

// === impl Objects ===

impl Objects {
    fn take_in(&mut self, told: Told) {
        let Told { kind, resource, event } = told;
        let (known, seen) = self.of.entry(kind).or_insert_with(|| (resource.clone(), Seen::default()));
        *known = resource;
        let before = match &event {
            Event::Apply(object) | Event::InitApply(object) => seen.all().get(&Live::key(kind, object)),
            Event::Delete(_) | Event::Init | Event::InitDone => None,
        };
        let before = before.map(|live| (live.generation, live.since));
        seen.take_in(event, |object| Live::read(kind, object, before));
    }

    /// Whether the object is as it was when the write was found to be due.
    fn is_current(&self, write: &Write) -> bool {
        let seen = self.of.get(&write.key.kind).and_then(|(_, seen)| seen.all().get(&write.key));
        seen.is_some_and(|live| live.version == write.live.version)
    }

    /// Takes in how a write has ended; when to try again, if that is worth it.
    fn written(&mut self, write: &Write, written: Written) -> Option<Instant> {
        let Write { key, form, judgement, .. } = write;
        let right = match written {
            Written::Stored(None) => true,
            Written::Stored(Some(live)) => {
                // A server may store it otherwise, where its definition of the kind lacks a field: written once more at once, it would be for ever.
                let right = form.put(&live.status, &judgement.entries, live.generation, "").is_none();
                // Where the watch was faster, what it says may be newer.
                if self.is_current(write) {
                    self.keep(key, live);
                }
                right
            }
            Written::Gone => {
                self.forget(key);
                true
            }
            Written::Failed => false,
        };
        if right {
            self.retry.remove(key);
            return None;
        }
        let (failures, until) = self.retry.entry(key.clone()).or_insert_with(|| (0, Instant::now()));
        *failures += 1;
        *until = Instant::now() + backoff(*failures);
        Some(*until)
    }

    /// It was deleted meanwhile, or its kind was.
    fn forget(&mut self, key: &ObjectKey) {
        if let Some((_, seen)) = self.of.get_mut(&key.kind) {
            seen.all_mut().remove(key);
        }
    }

    /// What was read or written, in place of what the watch has told so far.
    fn keep(&mut self, key: &ObjectKey, live: Live) {
        if let Some((_, seen)) = self.of.get_mut(&key.kind) {
            seen.all_mut().insert(key.clone(), live);
        }
    }
}

/// Carries something out, and takes in meanwhile what the watches tell: one whose word is not taken for long ends.
async fn meanwhile<T>(
    told: &mut mpsc::Receiver<Told>,
    objects: &mut Objects,
    what: impl Future<Output = T>,
) -> T {
    let mut what = pin!(what);
    loop {
        tokio::select! {
            biased;
            done = &mut what => return done,
            Some(one) = told.recv() => objects.take_in(one),
        }
    }
}

fn patch(version: &str, form: Form, list: Value) -> Value {
    let mut status = json!({});
    status[form.list] = list;
    json!({ "metadata": { "resourceVersion": version }, "status": status })
}

/// As Kubernetes writes it.
fn now() -> String {
    let now = serde_json::to_value(Time(Timestamp::now())).unwrap_or_default();
    now.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
