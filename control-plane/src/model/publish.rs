//! The shell around the index: takes changes in, rebuilds, and hands out the newest snapshot.
//!
//! Changes come from several sides (the source's thread, the Report streams, the certificate authority) and are taken
//! in at once under a lock that is never held across an await. One task, [`Publisher::run`], rebuilds: at once, but at most
//! once in [`COALESCE`], so a change that comes alone waits for nothing and a burst of them costs two rebuilds. A waiter learns
//! when its change is published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

use super::{
    Model, PolicyStatus, RouteStatus, Settings, access_statuses, findings, policy_statuses, route_statuses,
};
use crate::finding::{Finding, Severity};
use crate::index::{Change, Dirty, Index, Registration, RegistrationId};
use crate::object::{AccessTarget, Identity, Kind, NamespacedName, Object, ObjectKey, Pod};

/// The least time between two publications; what changes meanwhile is published together.
const COALESCE: Duration = Duration::from_millis(5);
/// Everything is looked over for what is wrong with it: so many times longer than that takes is the time after it, so that a
/// cluster in which endpoints come and go all the time costs a twentieth of a core for it at most.
const REST: u32 = 19;

/// How many findings of one file are logged at once, of errors and of warnings each: a file that is no configuration has one for each
/// of its documents, and must not fill the disk with them.
const LOGGED: usize = 50;

/// Owns the index; publishes models. Shared by everything that changes what is known.
#[derive(Debug)]
pub struct Publisher {
    settings: Settings,
    state: Mutex<State>,
    /// What the pods of a cluster run as. Apart, since every stream that begins asks: the rest is locked for as long as models are made of it.
    accounts: RwLock<BTreeMap<NamespacedName, Box<str>>>,
    changed: Notify,
    model: watch::Sender<Arc<Model>>,
    /// How often Services have changed, or may have.
    services: watch::Sender<u64>,
    /// The namespaces that have a Pod with a proxy.
    meshed: watch::Sender<BTreeSet<Arc<str>>>,
    findings: watch::Sender<Arc<[Finding]>>,
    /// How often what is said of routes and policies has changed, or may have.
    judged: watch::Sender<u64>,
    /// The number of the newest change that the published model holds.
    published: watch::Sender<u64>,
    /// The same of the findings.
    looked_over: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    index: Index,
    /// Number of the last change.
    changes: u64,
    /// When the oldest change came that is not published.
    waiting_since: Option<Instant>,
    /// Whether what is found wrong may have changed.
    objects_changed: bool,
    /// Until then nobody looks for it.
    rests_until: Option<Instant>,
    source_findings: Vec<Finding>,
}

/// A registration that will be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// What its workload is told then.
    pub registered: Registered,
    /// For [`Publisher::wait_for`].
    pub change: u64,
}

/// A registration that is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// For [`Publisher::unregister`].
    pub id: RegistrationId,
    /// Services of the registration that exist in no source (yet), or lack the port (`<name>:<port>`).
    pub pending: Vec<String>,
}

// === impl Publisher ===

impl Publisher {
    /// Publishes what the sources have read first; `found` is what they found wrong with it.
    pub fn new(mut index: Index, settings: Settings, found: Vec<Finding>) -> Arc<Self> {
        index.take_dirty();
        let model = Arc::new(Model::build(&index, settings.clone()));
        let all = gather(&index, &settings, &found);
        log(&[], &all);
        let meshed = index.meshed_namespaces().cloned().collect();
        let accounts =
            index.pods().filter_map(|pod| Some((pod.name.clone(), Box::<str>::from(account(pod)?))));
        Arc::new(Self {
            accounts: RwLock::new(accounts.collect()),
            state: Mutex::new(State {
                index,
                changes: 0,
                waiting_since: None,
                objects_changed: false,
                rests_until: None,
                source_findings: found,
            }),
            settings,
            changed: Notify::new(),
            model: watch::Sender::new(model),
            services: watch::Sender::new(0),
            meshed: watch::Sender::new(meshed),
            findings: watch::Sender::new(all),
            judged: watch::Sender::new(0),
            published: watch::Sender::new(0),
            looked_over: watch::Sender::new(0),
        })
    }

    /// The newest snapshot, and every later one; a slow reader skips to the newest.
    pub fn models(&self) -> watch::Receiver<Arc<Model>> {
        self.model.subscribe()
    }

    /// Changes whenever Services have, and with them what is pending of a registration.
    pub fn services(&self) -> watch::Receiver<u64> {
        self.services.subscribe()
    }

    /// The namespaces that have a Pod with a proxy, labelled or not.
    pub fn meshed_namespaces(&self) -> watch::Receiver<BTreeSet<Arc<str>>> {
        self.meshed.subscribe()
    }

    /// The newest snapshot.
    pub fn model(&self) -> Arc<Model> {
        self.model.borrow().clone()
    }

    /// What is wrong with what people wrote, sorted.
    pub fn findings(&self) -> watch::Receiver<Arc<[Finding]>> {
        self.findings.subscribe()
    }

    /// Changes whenever what [`Publisher::judgements`] says may have.
    pub fn judged(&self) -> watch::Receiver<u64> {
        self.judged.subscribe()
    }

    /// What has become of each route and policy that is not refused.
    pub fn judgements(&self) -> (Vec<RouteStatus>, Vec<PolicyStatus>) {
        let state = self.state.lock();
        let mut policies = policy_statuses(&state.index);
        policies.extend(access_statuses(&state.index));
        (route_statuses(&state.index), policies)
    }

    /// What a pod runs as; `None`: no such pod is known.
    pub fn service_account_of(&self, pod: &NamespacedName) -> Option<String> {
        self.accounts.read().get(pod).map(|account| account.to_string())
    }

    /// Of the Pods without a proxy those that are `wanted`.
    pub fn bare_pods(&self, wanted: impl Fn(&Pod) -> bool) -> Vec<Pod> {
        self.state.lock().index.bare_pods().filter(|pod| wanted(pod)).cloned().collect()
    }

    /// How many objects there are by kind and by the worst that is found wrong with each: `error`, `warning` or `ok`. One that could not
    /// be read counts too, where so much could be read as what it is.
    pub fn objects(&self) -> BTreeMap<(Kind, &'static str), usize> {
        let findings = self.findings.borrow().clone();
        let mut worst: BTreeMap<ObjectKey, Severity> = BTreeMap::new();
        for finding in findings.iter() {
            let Some(key) = finding.object.as_deref().and_then(ObjectKey::parse) else { continue };
            // Errors come first.
            worst
                .entry(key)
                .and_modify(|worst| *worst = finding.severity.min(*worst))
                .or_insert(finding.severity);
        }
        let state = self.state.lock();
        let mut counts: BTreeMap<(Kind, &'static str), usize> = BTreeMap::new();
        for kind in Kind::ALL {
            counts.insert((kind, "ok"), state.index.count(kind));
        }
        for (key, severity) in worst {
            if state.index.holds(&key) {
                counts.entry((key.kind, "ok")).and_modify(|count| *count -= 1);
            }
            let status = if severity == Severity::Error { "error" } else { "warning" };
            *counts.entry((key.kind, status)).or_default() += 1;
        }
        counts
    }

    /// Takes in a source's changes, and everything that it now finds wrong.
    pub fn apply(&self, changes: Vec<Change>, found: Vec<Finding>) {
        self.update(|state| {
            self.note_accounts(&changes);
            let changed = state.index.change(changes);
            state.objects_changed |= changed || state.source_findings != found;
            state.source_findings = found;
        });
    }

    /// As [`apply`](Self::apply), where it finds wrong what it found before.
    pub fn change(&self, changes: Vec<Change>) {
        self.update(|state| {
            self.note_accounts(&changes);
            state.objects_changed |= state.index.change(changes);
        });
    }

    fn note_accounts(&self, changes: &[Change]) {
        let of_pods = |change: &&Change| match change {
            Change::Apply(object, _) => matches!(**object, Object::Pod(_)),
            Change::Delete(key) => key.kind == Kind::Pod,
        };
        let mut changes = changes.iter().filter(of_pods).peekable();
        if changes.peek().is_none() {
            return;
        }
        let mut accounts = self.accounts.write();
        for change in changes {
            match change {
                Change::Apply(object, _) => {
                    let Object::Pod(pod) = &**object else { continue };
                    match account(pod) {
                        Some(account) => drop(accounts.insert(pod.name.clone(), account.into())),
                        None => drop(accounts.remove(&pod.name)),
                    }
                }
                Change::Delete(key) => drop(accounts.remove(&key.name)),
            }
        }
    }

    /// Sets the DER certificates that vouch for a trust domain.
    pub fn set_bundle(&self, trust_domain: &str, authorities: Vec<Bytes>) {
        self.update(|state| state.index.set_bundle(trust_domain, authorities));
    }

    /// Takes a registration in, in place of an earlier one, and returns at once. It is in force when
    /// [`Publisher::wait_for`] returns.
    pub fn submit(&self, registration: Registration, replaces: Option<RegistrationId>) -> Submitted {
        let submitted = {
            let mut state = self.state.lock();
            state.change();
            let id = RegistrationId(state.changes);
            let pending = pending(&state.index, &registration.ports);
            warn_of_rivals(&state.index, &registration);
            state.index.register(id, registration);
            if let Some(before) = replaces {
                state.index.unregister(before);
            }
            Submitted { registered: Registered { id, pending }, change: state.changes }
        };
        self.changed.notify_one();
        submitted
    }

    /// [`Publisher::submit`], and waits until a snapshot with it is published.
    pub async fn register(&self, registration: Registration, replaces: Option<RegistrationId>) -> Registered {
        let submitted = self.submit(registration, replaces);
        self.wait_for(submitted.change).await;
        submitted.registered
    }

    /// Forgets a registration.
    pub fn unregister(&self, id: RegistrationId) {
        self.update(|state| state.index.unregister(id));
    }

    /// What a Service calls its port of that number, which may be empty; `None`: there is no such port.
    pub fn port_name(&self, service: &NamespacedName, number: u16) -> Option<String> {
        let state = self.state.lock();
        state.index.service(service)?.port(number).map(|port| port.name.to_string())
    }

    /// The services of a registration that do not exist (yet), or lack the port (`<name>:<port>`).
    pub fn pending(&self, registration: &Registration) -> Vec<String> {
        pending(&self.state.lock().index, &registration.ports)
    }

    /// Returns once everything taken in so far is published, what is wrong with it too.
    pub async fn settle(&self) {
        let number = self.state.lock().changes;
        self.wait_for(number).await;
        let mut looked_over = self.looked_over.subscribe();
        // The sender lives in self, so this ends only when the number is reached.
        let _closed = looked_over.wait_for(|reached| *reached >= number).await;
    }

    /// Publishes what changes, until it is dropped.
    pub async fn run(&self) {
        let mut owed: Option<Instant> = None;
        loop {
            match owed {
                None => self.changed.notified().await,
                Some(at) => {
                    // Whichever comes first.
                    let _late = tokio::time::timeout_at(at.into(), self.changed.notified()).await;
                }
            }
            owed = self.publish();
            tokio::time::sleep(COALESCE).await;
        }
    }

    /// Publishes what has changed, now. Some: what is found wrong is not, and this is to be called again then.
    pub fn publish(&self) -> Option<Instant> {
        let mut state = self.state.lock();
        let dirty: Dirty = state.index.take_dirty();
        if !dirty.is_empty() {
            let current = self.model();
            let next = current.next(&state.index, &dirty);
            let next = Arc::new(next.taken_in_at(state.waiting_since));
            let is_new = match next.changed_since(current.number()) {
                Some(mut changed) => changed.next().is_some(),
                None => *current != *next,
            };
            if is_new {
                self.model.send_replace(next);
            }
            if dirty.all || !dirty.services.is_empty() {
                self.services.send_modify(|times| *times += 1);
            }
            if dirty.all || !dirty.workloads.is_empty() {
                self.meshed.send_if_modified(|known| {
                    let differs = !known.iter().eq(state.index.meshed_namespaces());
                    if differs {
                        *known = state.index.meshed_namespaces().cloned().collect();
                    }
                    differs
                });
            }
        }
        state.waiting_since = None;
        let number = state.changes;
        // What policies come to depends on who is registered; nothing else that can be found wrong does.
        let depends = || {
            let mut access = state.index.access_policies().flat_map(|stored| &stored.object.targets);
            state.index.resilience().next().is_some() || access.any(AccessTarget::is_route)
        };
        let others = !dirty.workloads.is_empty() && depends();
        state.objects_changed |= others;
        let owed = state.rests_until.filter(|until| state.objects_changed && *until > Instant::now());
        if owed.is_none() && std::mem::take(&mut state.objects_changed) {
            let began = Instant::now();
            self.judged.send_modify(|times| *times += 1);
            let all = gather(&state.index, &self.settings, &state.source_findings);
            state.rests_until = Some(began + began.elapsed() * (1 + REST));
            let before = self.findings.borrow().clone();
            if before != all {
                log(&before, &all);
                self.findings.send_replace(all);
            }
        }
        drop(state);
        let reach = |reached: &mut u64| {
            let later = number > *reached;
            *reached = number.max(*reached);
            later
        };
        self.published.send_if_modified(reach);
        if owed.is_none() {
            self.looked_over.send_if_modified(reach);
        }
        owed
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        {
            let mut state = self.state.lock();
            state.change();
            change(&mut state);
        }
        self.changed.notify_one();
    }

    /// Returns once the change of that number is published.
    pub async fn wait_for(&self, number: u64) {
        let mut published = self.published.subscribe();
        // The sender lives in self, so this ends only when the number is reached.
        let _closed = published.wait_for(|reached| *reached >= number).await;
    }
}

// === impl State ===

impl State {
    fn change(&mut self) {
        self.changes += 1;
        self.waiting_since.get_or_insert_with(Instant::now);
    }
}

/// What a pod runs as.
fn account(pod: &Pod) -> Option<&str> {
    match &pod.identity {
        Identity::ServiceAccount { name, .. } => Some(name),
        Identity::Spiffe(_) => None,
    }
}

fn pending(index: &Index, ports: &[(NamespacedName, u16, u16)]) -> Vec<String> {
    let mut pending: Vec<String> = ports
        .iter()
        .filter_map(|(name, port, _)| match index.service(name) {
            None => Some(name.name.to_string()),
            Some(service) if service.port(*port).is_none() => Some(format!("{}:{port}", name.name)),
            Some(_) => None,
        })
        .collect();
    pending.dedup();
    pending
}

/// Two workloads on one address and port: one of them is mistaken, and clients can be told of one only.
fn warn_of_rivals(index: &Index, registration: &Registration) {
    let others = index.registrations_at(registration.address);
    for other in others.filter(|other| other.workload != registration.workload) {
        let shared = |port: u16| other.ports.iter().any(|(_, _, theirs)| *theirs == port);
        if let Some((_, _, port)) = registration.ports.iter().find(|(_, _, port)| shared(*port)) {
            tracing::warn!(
                workload = %registration.workload,
                other = %other.workload,
                "both say that they are at {} port {port}; one of them is mistaken",
                registration.address
            );
        }
    }
}

fn gather(index: &Index, settings: &Settings, found: &[Finding]) -> Arc<[Finding]> {
    let mut all = findings(index, settings);
    all.extend_from_slice(found);
    all.sort();
    all.dedup();
    all.into()
}

/// What is new, as lines: of each file the first [`LOGGED`] errors and warnings, and how many there are more. Both are sorted, and so by file.
pub(super) fn news(before: &[Finding], after: &[Finding]) -> Vec<(Severity, String)> {
    let mut lines = Vec::new();
    for of_file in after.chunk_by(|one, next| one.file == next.file) {
        let mut counts = [(Severity::Error, 0), (Severity::Warning, 0)];
        for finding in of_file.iter().filter(|finding| before.binary_search(finding).is_err()) {
            let count = counts.iter_mut().find(|(severity, _)| *severity == finding.severity);
            let Some((_, count)) = count else { continue };
            *count += 1;
            if *count <= LOGGED {
                lines.push((finding.severity, finding.to_string()));
            }
        }
        for (severity, count) in counts.into_iter().filter(|(_, count)| *count > LOGGED) {
            let more = Finding {
                file: of_file[0].file.clone(),
                line: None,
                column: None,
                severity,
                object: None,
                field: None,
                message: format!("and {} more", count - LOGGED),
                hint: Some("`tulle check --config-dir` shows all".to_owned()),
            };
            lines.push((severity, more.to_string()));
        }
    }
    lines
}

/// Logs what is new, and that what was wrong is mended. Both are sorted.
fn log(before: &[Finding], after: &[Finding]) {
    for (severity, line) in news(before, after) {
        match severity {
            Severity::Error => tracing::error!("{line}"),
            Severity::Warning => tracing::warn!("{line}"),
        }
    }
    if !before.is_empty() && after.is_empty() {
        tracing::info!("everything that was wrong with the configuration is mended");
    }
}
