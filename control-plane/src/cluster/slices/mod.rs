//! What is registered here, where the other replicas see it, and what they have registered: EndpointSlices with a lease.
//!
//! A workload outside the cluster registers over a stream to one replica. Each service of such a registration is an EndpointSlice beside the
//! workload's Service (`text` says what is in it, and what is believed of one), written by the replica that has the stream, renewed every
//! ten seconds, and deleted when the stream ends in order. When a replica dies its slices count on for most of a minute, and the
//! replica that a workload comes back to takes its slice over. `book` decides which are written and deleted, and which count; this carries it
//! out and tells [`Registrations`], which decides what is in force. Slices that nobody stands for any more are deleted by the holder of the lease.

mod book;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, pin_mut, stream};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use parking_lot::Mutex;
use prometheus::IntCounterVec;
use tokio::sync::{Notify, watch};
use tulle_certs::TrustDomain;

use self::book::{Book, Done, Slice, Step};
pub use self::text::NOT_OURS;
use self::text::OURS;
use super::lease::Holder;
use super::{ApiError, MANAGER, WatchFailures, asked, follow};
use crate::ending::Ending;
use crate::model::Publisher;
use crate::object::NamespacedName;
use crate::registration::Registrations;

/// Requests under way at once.
const AT_ONCE: usize = 16;
/// After an answer that did not come, or that cannot be had.
const AGAIN: Duration = Duration::from_secs(1);
/// What comes together is looked at together.
const GATHER: Duration = Duration::from_millis(10);
/// It is looked again after this, whatever happens.
const TICK: Duration = Duration::from_secs(2);

/// Keeps them. See the module.
pub struct Slices {
    client: Client,
    /// This replica's, which no other has.
    name: String,
    domain: TrustDomain,
    registrations: Arc<Registrations>,
    publisher: Arc<Publisher>,
    outcomes: IntCounterVec,
    book: Mutex<Book>,
    /// The book has changed.
    stirred: Notify,
    /// The watch is to be opened anew.
    deaf: Notify,
    /// All slices have been read once.
    read: watch::Sender<bool>,
    /// What was last logged of a slice that cannot be used, by its name; of an outage, without one.
    logged: Mutex<BTreeMap<Option<NamespacedName>, String>>,
}

// === impl Slices ===

impl Slices {
    /// Of the replica called `name`, which no other is. `outcomes` is told how each write ends.
    pub fn new(
        client: Client,
        name: String,
        domain: TrustDomain,
        registrations: Arc<Registrations>,
        publisher: Arc<Publisher>,
        outcomes: IntCounterVec,
    ) -> Self {
        for outcome in ["written", "deleted", "conflict", "failed"] {
            outcomes.with_label_values(&[outcome]);
        }
        let book = Mutex::new(Book::new(name.clone()));
        let (stirred, deaf) = (Notify::new(), Notify::new());
        let (read, logged) = (watch::Sender::new(false), Mutex::default());
        Self { client, name, domain, registrations, publisher, outcomes, book, stirred, deaf, read, logged }
    }

    /// Whether what the others have registered has been read once.
    pub fn read(&self) -> watch::Receiver<bool> {
        self.read.subscribe()
    }

    /// Tells the others, and takes in what they tell, until the control plane ends: then all stays as it is, for whoever has the
    /// workloads next.
    pub async fn keep(self, holder: Holder, mut ending: Ending) {
        tokio::select! {
            ((), ()) = async { tokio::join!(self.follow(), self.write(holder)) } => {}
            () = ending.wait() => {}
        }
    }

    /// Takes in what the API server says of slices.
    async fn follow(&self) {
        loop {
            tokio::select! {
                () = self.listen() => return,
                () = self.deaf.notified() => {}
            }
        }
    }

    async fn listen(&self) {
        let slices: Api<EndpointSlice> = Api::all(self.client.clone());
        let ours = watcher::Config::default().labels(OURS);
        let events = follow(slices, ours);
        pin_mut!(events);
        let (mut listed, mut failures) = (None, WatchFailures::of("EndpointSlices of ours"));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    failures.heard(&event);
                    self.happened(event, &mut listed);
                }
                Err(error) => failures.tell(&error),
            }
        }
    }

    fn happened(&self, event: Event<EndpointSlice>, listed: &mut Option<BTreeSet<NamespacedName>>) {
        let changed = match event {
            Event::Init => {
                *listed = Some(BTreeSet::new());
                return;
            }
            Event::InitApply(slice) => {
                let (key, slice) = self.understand(&slice);
                listed.get_or_insert_default().insert(key.clone());
                self.book.lock().see(now(), key, Some(slice));
                return;
            }
            Event::InitDone => {
                self.book.lock().listed(&listed.take().unwrap_or_default());
                true
            }
            Event::Apply(slice) => {
                let (key, slice) = self.understand(&slice);
                self.book.lock().see(now(), key, Some(slice))
            }
            Event::Delete(slice) => {
                let (key, _) = text::read(&slice, &self.domain);
                self.logged.lock().remove(&Some(key.clone()));
                self.book.lock().see(now(), key, None)
            }
        };
        self.tell(changed);
        self.stirred.notify_one();
        // Only after a list has been told.
        if listed.is_none() {
            self.read.send_replace(true);
        }
    }

    fn understand(&self, slice: &EndpointSlice) -> (NamespacedName, Slice) {
        let (key, slice) = text::read(slice, &self.domain);
        match &slice.part {
            Ok(_) => drop(self.logged.lock().remove(&Some(key.clone()))),
            Err(error) => self.warn(Some(&key), || {
                format!("an EndpointSlice that says that a control plane manages it is no registration, and is left out: {error}")
            }),
        }
        (key, slice)
    }

    /// What the others stand for, if it may have changed.
    fn tell(&self, changed: bool) {
        if changed {
            let others = self.book.lock().others();
            self.registrations.tell(others);
        }
    }

    /// Writes what is due, and asks before a lease is taken for over.
    async fn write(&self, holder: Holder) {
        let mut became = holder.clone();
        let (mut not_before, mut asks_not_before) = (now(), now());
        loop {
            self.registrations.look_again();
            let (change, parts) = self.registrations.parts();
            let begun = now();
            let (steps, due, asks) = {
                let mut book = self.book.lock();
                book.hold(parts);
                let (steps, due) = book.steps(begun, holder.is_held());
                (steps, due, book.asks_at())
            };
            let mut answered = true;
            if begun >= not_before {
                answered = self.carry_out(steps).await;
                if answered && asks.is_some_and(|at| at.max(asks_not_before) <= begun) {
                    answered = self.ask().await;
                    // However much is about to run out.
                    asks_not_before = now() + AGAIN;
                }
            }
            // Also where it could not be written: an API server that is away must not keep a workload from serving.
            self.registrations.kept(change);
            if !answered {
                not_before = now() + AGAIN;
            }
            let asks = asks.map(|at| at.max(asks_not_before));
            let next = [due, asks].into_iter().flatten().fold(begun + TICK, Instant::min).max(not_before);
            tokio::select! {
                () = self.registrations.changed() => {}
                () = self.stirred.notified() => {}
                () = tokio::time::sleep_until(next.into()) => {}
                // What nobody stands for is this replica's to delete.
                () = became.held(), if !holder.is_held() => {}
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Takes the steps, many at once, until one is not answered: then the others would not be either. Says whether all were.
    async fn carry_out(&self, steps: Vec<Step>) -> bool {
        let steps = stream::iter(steps).map(|step| self.take(step)).buffer_unordered(AT_ONCE);
        pin_mut!(steps);
        while let Some(answered) = steps.next().await {
            if !answered {
                return false;
            }
        }
        true
    }

    async fn take(&self, step: Step) -> bool {
        let sent = now();
        let done = match &step {
            Step::Write(part) => {
                let name = |number| {
                    let service =
                        NamespacedName::new(part.workload.namespace.clone(), Arc::clone(&part.service));
                    self.publisher.port_name(&service, number)
                };
                let slice = text::write(part, &self.name, Timestamp::now(), name);
                self.apply(&part.key, slice).await
            }
            Step::Delete(key, version) => self.delete(key, version).await,
        };
        let (outcome, done, answered) = match done {
            Ok(done) => (outcome(&done), done, true),
            Err(error) => {
                let answered = !matches!(error, ApiError::TimedOut | ApiError::Unreachable(_));
                let key = match &step {
                    Step::Write(part) => part.key.clone(),
                    Step::Delete(key, _) => key.clone(),
                };
                self.warn(answered.then_some(&key), || {
                    format!(
                        "cannot tell the other control planes what is registered here; trying again: {error}"
                    )
                });
                ("failed", Done::Failed, answered)
            }
        };
        if answered {
            self.logged.lock().remove(&None);
        }
        self.outcomes.with_label_values(&[outcome]).inc();
        let changed = self.book.lock().done(sent, now(), &step, done);
        self.tell(changed);
        answered
    }

    async fn apply(&self, key: &NamespacedName, slice: EndpointSlice) -> Result<Done, ApiError> {
        let parameters = PatchParams::apply(MANAGER).force();
        let slices = self.of(key);
        let written = asked(slices.patch(&key.name, &parameters, &Patch::Apply(&slice))).await?;
        self.logged.lock().remove(&Some(key.clone()));
        Ok(Done::Written(text::read(&written, &self.domain).1))
    }

    async fn delete(&self, key: &NamespacedName, version: &str) -> Result<Done, ApiError> {
        let condition = Preconditions { resource_version: Some(version.to_owned()), uid: None };
        let parameters = DeleteParams::default().preconditions(condition);
        match asked(self.of(key).delete(&key.name, &parameters)).await {
            Ok(_) => {
                tracing::debug!(slice = %key, "deleted the slice of a registration that is over");
                Ok(Done::Deleted)
            }
            Err(error) if error.is_not_found() => Ok(Done::Deleted),
            Err(error) if error.is_conflict() => Ok(Done::Outrun),
            Err(error) => Err(error),
        }
    }

    fn of(&self, key: &NamespacedName) -> Api<EndpointSlice> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    /// Asks for all slices, since leases are about to run out. Says whether there was an answer.
    async fn ask(&self) -> bool {
        let sent = now();
        let slices: Api<EndpointSlice> = Api::all(self.client.clone());
        match asked(slices.list(&ListParams::default().labels(OURS))).await {
            Ok(list) => {
                let all = list.items.iter().map(|slice| text::read(slice, &self.domain)).collect();
                let (changed, deaf) = self.book.lock().answered(sent, now(), &all);
                self.tell(changed);
                if deaf {
                    tracing::warn!("the watch of EndpointSlices of ours hears nothing; opening it anew");
                    self.deaf.notify_one();
                }
                true
            }
            Err(error) => {
                self.warn(None, || {
                    format!("cannot ask whether registrations of other control planes are renewed; they are served on: {error}")
                });
                false
            }
        }
    }

    /// Logs it, unless the same was logged of it last.
    fn warn(&self, key: Option<&NamespacedName>, message: impl FnOnce() -> String) {
        let message = message();
        let before = self.logged.lock().insert(key.cloned(), message.clone());
        if before.as_ref() != Some(&message) {
            match key {
                Some(key) => tracing::warn!(slice = %key, "{message}"),
                None => tracing::warn!("{message}"),
            }
        }
    }
}

fn outcome(done: &Done) -> &'static str {
    match done {
        Done::Written(_) => "written",
        Done::Deleted => "deleted",
        Done::Outrun => "conflict",
        Done::Failed => "failed",
    }
}

/// Tokio's, which tests hold and set.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
