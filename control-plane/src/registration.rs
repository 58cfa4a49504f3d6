//! Workloads that made themselves endpoints: who may, for how long, and across a restart.
//!
//! Decides whether a registration is taken (its services must be granted, its workload's name must not be another identity's),
//! and when it ends: with its stream; and after a restart or a standstill of the control
//! plane, when its workload is back or the grace period is over, so that a control plane that was killed or frozen takes no
//! endpoint away. What is registered is kept in the state folder, and a workload is told that it is registered only once
//! that is written; changes that come during a write are written together by the next one. Called by [`crate::report`]; tells the [`Publisher`].
//!
//! One of several control planes in a cluster has no such folder: [`crate::cluster`] keeps what is registered here where the others see
//! it, and says what they have registered ([`Part`]). What is registered here is believed before what is told of the same place, so that
//! a workload that goes from one control plane to another is one endpoint all the while.

mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tulle_api::v1;
use tulle_certs::SpiffeId;

use self::told::Told;
pub use self::told::{HeldPart, Part};
use crate::ca::NotGranted;
use crate::index::{Registration, RegistrationError, RegistrationId};
use crate::metrics::Metrics;
use crate::model::{Publisher, Registered};
use crate::object::NamespacedName;
use crate::pulse::Pulse;
use crate::state_dir::StateDir;

const FILE: &str = "registrations.json";

/// The least time between two writes of the file …
const GATHER: Duration = Duration::from_millis(20);
/// … and how many times longer than a write the time after it is.
const REST: u32 = 4;

/// How long a workload whose certificate has expired may take to come back with another one.
const REJOIN: Duration = Duration::from_secs(10);
/// The same of one whose stream broke, where there are other control planes: they have not missed it yet.
const RETURN: Duration = Duration::from_secs(3);

/// A workload serves a few services on a few ports.
const MAX_PORTS: usize = 1000;

/// Everything that is registered. Shared by the streams.
pub struct Registrations {
    publisher: Arc<Publisher>,
    permit: Permit,
    /// `None`: a restart forgets them.
    folder: Option<Arc<StateDir>>,
    /// Others are told of it.
    shared: bool,
    metrics: Metrics,
    /// After a restart or a standstill.
    grace: Duration,
    pulse: Pulse,
    held: Mutex<Held>,
    changed: Notify,
    /// The number of the newest change that the file holds, or could not be made to hold.
    written: watch::Sender<u64>,
}

/// Whether an identity may register itself for a service of its namespace.
pub type Permit = Box<dyn Fn(&SpiffeId, &str) -> Result<(), NotGranted> + Send + Sync>;

#[derive(Debug, Default)]
struct Held {
    /// By streams that are open.
    live: BTreeMap<RegistrationId, Known>,
    /// Whose workloads are waited for: since a restart or a standstill, or since their certificates expired.
    awaited: BTreeMap<RegistrationId, Known>,
    /// Of both, by workload.
    by_workload: BTreeMap<Arc<str>, BTreeSet<RegistrationId>>,
    /// By streams of other control planes.
    told: Vec<Told>,
    /// Number of the last change.
    changes: u64,
    /// The control plane is ending: streams end with it, and what they registered is for the next one.
    closing: bool,
}

/// What must be known of a registration beside what is published.
#[derive(Debug)]
struct Known {
    workload: Arc<str>,
    spiffe_id: String,
    address: String,
    /// [`Stored`] as JSON, made once and not at each write of the file.
    line: String,
    /// As others are told of it.
    parts: Vec<Arc<Part>>,
    since: tokio::time::Instant,
}

/// A registration as it is kept in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Stored {
    workload: String,
    spiffe_id: String,
    address: String,
    services: Vec<StoredService>,
    #[serde(default)]
    region: String,
    #[serde(default)]
    zone: String,
    ready: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StoredService {
    name: String,
    /// (service port, port)
    ports: Vec<(u32, u32)>,
}

/// Why a registration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It cannot be read.
    #[error(transparent)]
    Malformed(#[from] RegistrationError),
    /// It is too large.
    #[error("registration: more than {MAX_PORTS} services and ports")]
    TooLarge,
    /// The caller may not be an endpoint of a service.
    #[error("registration: {0}")]
    NotGranted(#[from] NotGranted),
    /// Somebody else is the workload of that name.
    #[error(
        "registration: the workload {workload} is registered by {holder}, and replicas of one workload have one identity; give this one another name (the proxy's --workload)"
    )]
    Taken {
        /// Which name.
        workload: String,
        /// Whose it is, for as long as it is registered.
        holder: String,
    },
}

// === impl Registrations ===

impl Registrations {
    /// Takes up what was registered before a restart; it is published when this returns.
    /// They have `grace` to come back.
    pub fn open(
        publisher: Arc<Publisher>,
        permit: Permit,
        folder: Option<Arc<StateDir>>,
        metrics: Metrics,
        grace: Duration,
    ) -> Self {
        let mut held = Held::default();
        for stored in folder.as_deref().map(read).unwrap_or_default() {
            match stored.registration() {
                Ok(registration) => {
                    let submitted = publisher.submit(registration, None);
                    held.wait_for(submitted.registered.id, Known::new(&stored, Vec::new()));
                }
                Err(error) => {
                    tracing::warn!(workload = stored.workload, %error, "left out a registration of {FILE}");
                }
            }
        }
        if !held.awaited.is_empty() {
            publisher.publish();
            tracing::info!(workloads = held.awaited.len(), "serving registrations from before the restart");
        }
        let held = Mutex::new(held);
        let written = watch::Sender::new(0);
        let (pulse, changed) = (Pulse::default(), Notify::new());
        Self { publisher, permit, folder, shared: false, metrics, grace, pulse, held, changed, written }
    }

    /// With other control planes, which [`crate::cluster`] tells of what is registered here, in place of a file.
    pub fn shared(self) -> Self {
        Self { shared: true, ..self }
    }

    /// Keeps the file, and ends what has not come back after the grace. Runs until it is dropped.
    pub async fn keep(self: Arc<Self>) {
        let restored: Vec<RegistrationId> = self.held.lock().awaited.keys().copied().collect();
        let expire = async {
            self.pulse.wait(self.grace, self.grace).await;
            self.expire(&restored);
        };
        let write = async {
            if self.shared {
                return;
            }
            loop {
                self.changed.notified().await;
                let begun = Instant::now();
                let writing = Arc::clone(&self);
                // The disk must not keep anybody else waiting.
                let _panicked = tokio::task::spawn_blocking(move || writing.write()).await;
                tokio::time::sleep(GATHER.max(begun.elapsed() * REST)).await;
            }
        };
        tokio::join!(expire, write, self.pulse.run());
    }

    /// Takes a registration in, in place of an earlier one of the same stream, and returns once a model that contains it
    /// is published and the file holds it.
    ///
    /// # Errors
    /// What is wrong with it; the earlier one stays.
    pub async fn register(
        &self,
        workload: &NamespacedName,
        id: &SpiffeId,
        said: &v1::Registration,
        replaces: Option<RegistrationId>,
    ) -> Result<(Registration, Registered), Refusal> {
        let ports = said.services.iter().map(|service| service.ports.len() + 1).sum::<usize>();
        if ports > MAX_PORTS {
            return Err(Refusal::TooLarge);
        }
        let registration = Registration::read(workload.clone(), id.as_str(), said)?;
        for service in &said.services {
            (self.permit)(id, &service.name)?;
        }
        let parts = if self.shared { Part::of(&registration, id) } else { Vec::new() };
        let known = Known::new(&Stored::new(workload, id, said), parts);
        let (submitted, change) = {
            let mut held = self.held.lock();
            held.check_name(&known)?;
            let submitted = self.publisher.submit(registration.clone(), replaces);
            if let Some(before) = replaces {
                held.remove(before);
            }
            // It is back: what it was before is void.
            for before in held.awaited_at(&known) {
                held.remove(before);
                self.publisher.unregister(before);
            }
            held.live_from(submitted.registered.id, known);
            held.changes += 1;
            self.settle(&mut held);
            self.show(&held);
            (submitted, held.changes)
        };
        self.changed.notify_one();
        self.publisher.wait_for(submitted.change).await;
        // The sender lives as long as `self`: there is no error.
        let mut written = self.written.subscribe();
        let _written = written.wait_for(|written| *written >= change).await;
        Ok((registration, submitted.registered))
    }

    /// A stream has ended, and with it what it registered; but where this control plane itself stood still, all streams have: what
    /// they registered waits for them, as after a restart.
    pub fn ended(self: &Arc<Self>, id: RegistrationId) {
        if self.pulse.stood_still() {
            self.await_return(id, self.grace);
        } else {
            self.unregister(id);
        }
    }

    /// A stream broke: where there are other control planes, its workload is at one of them in a moment, or here again.
    pub fn broken(self: &Arc<Self>, id: RegistrationId) {
        if self.shared && !self.pulse.stood_still() {
            self.await_return(id, RETURN);
        } else {
            self.ended(id);
        }
    }

    /// A stream has ended because its certificate has expired: a proxy that has another one is back at once, so what
    /// it registered waits for it, for [`REJOIN`]; after a standstill for the grace too, since a proxy that could not renew
    /// meanwhile does that first.
    pub fn expired(self: &Arc<Self>, id: RegistrationId) {
        self.await_return(id, REJOIN);
    }

    fn unregister(&self, id: RegistrationId) {
        let mut held = self.held.lock();
        if held.closing {
            return;
        }
        if held.live.contains_key(&id) {
            held.remove(id);
            // What is told of it first, so that it is there all the while.
            self.settle(&mut held);
            self.publisher.unregister(id);
            self.show(&held);
            drop(held);
            self.changed.notify_one();
        }
    }

    /// The control plane ends: from here on nothing is forgotten, and the file holds what is registered now.
    pub fn close(&self) {
        self.held.lock().closing = true;
        self.write();
    }

    fn await_return(self: &Arc<Self>, id: RegistrationId, patience: Duration) {
        let mut held = self.held.lock();
        let Some(known) = held.live.remove(&id) else { return };
        held.wait_for(id, known);
        self.show(&held);
        drop(held);
        let registrations = Arc::clone(self);
        tokio::spawn(async move {
            registrations.pulse.wait(patience, registrations.grace).await;
            registrations.expire(&[id]);
        });
    }

    /// Ends those that are still waited for.
    fn expire(&self, awaited: &[RegistrationId]) {
        let mut held = self.held.lock();
        if held.closing {
            return;
        }
        for id in awaited {
            if let Some(known) = held.awaited.contains_key(id).then(|| held.remove(*id)).flatten() {
                tracing::warn!(workload = &*known.workload, "a registered workload has not come back");
                self.settle(&mut held);
                self.publisher.unregister(*id);
                self.changed.notify_one();
            }
        }
    }

    fn show(&self, held: &Held) {
        self.metrics.registrations.set(i64::try_from(held.live.len()).unwrap_or(i64::MAX));
    }

    fn write(&self) {
        if self.shared {
            return;
        }
        let (change, text) = {
            let held = self.held.lock();
            (held.changes, held.text())
        };
        let kept = self.folder.as_ref().map_or(Ok(()), |folder| folder.write(FILE, text.as_bytes()));
        if let Err(error) = kept {
            tracing::error!(%error, "cannot keep the registrations in {FILE}; a restart would forget them");
        }
        // Also when it failed: a full disk must not take endpoints away.
        self.kept(change);
    }

    /// What was registered up to that change is where it is kept, or could not be brought there.
    pub fn kept(&self, change: u64) {
        self.written.send_if_modified(|written| std::mem::replace(written, change.max(*written)) < change);
    }
}

// === impl Held ===

impl Held {
    /// A workload's name is its identity's for as long as it is registered: what is known of a workload (its policy, its
    /// addresses) is gathered over all registrations of the name, and nobody may add to another's.
    fn check_name(&self, new: &Known) -> Result<(), Refusal> {
        let mut known = self.of_workload(&new.workload).map(|(_, known)| known);
        let here = known.find(|known| known.spiffe_id != new.spiffe_id).map(|known| known.spiffe_id.as_str());
        let told = || self.told.iter().find(|told| told.takes(&new.workload, &new.spiffe_id));
        let holder = here.or_else(|| Some(told()?.part.identity.as_str()));
        holder.map_or(Ok(()), |holder| {
            Err(Refusal::Taken { workload: new.workload.to_string(), holder: holder.to_owned() })
        })
    }

    /// Those of the same workload at the same address that are waited for.
    fn awaited_at(&self, new: &Known) -> Vec<RegistrationId> {
        let before = self.of_workload(&new.workload).filter(|(_, before)| before.address == new.address);
        before.map(|(id, _)| id).filter(|id| self.awaited.contains_key(id)).collect()
    }

    fn of_workload(&self, workload: &str) -> impl Iterator<Item = (RegistrationId, &Known)> {
        let ids = self.by_workload.get(workload).into_iter().flatten();
        ids.filter_map(|id| Some((*id, self.live.get(id).or_else(|| self.awaited.get(id))?)))
    }

    fn live_from(&mut self, id: RegistrationId, known: Known) {
        self.by_workload.entry(Arc::clone(&known.workload)).or_default().insert(id);
        self.live.insert(id, known);
    }

    fn wait_for(&mut self, id: RegistrationId, known: Known) {
        self.by_workload.entry(Arc::clone(&known.workload)).or_default().insert(id);
        self.awaited.insert(id, known);
    }

    fn remove(&mut self, id: RegistrationId) -> Option<Known> {
        let known = self.live.remove(&id).or_else(|| self.awaited.remove(&id))?;
        if let Some(ids) = self.by_workload.get_mut(&known.workload) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_workload.remove(&known.workload);
            }
        }
        Some(known)
    }

    /// A JSON list of [`Stored`], a line each.
    fn text(&self) -> String {
        let lines = || self.awaited.values().chain(self.live.values()).map(|known| &known.line);
        let mut text = String::with_capacity(lines().map(|line| line.len() + 2).sum::<usize>() + 4);
        for (at, line) in lines().enumerate() {
            text.push_str(if at == 0 { "[\n" } else { ",\n" });
            text.push_str(line);
        }
        text.push_str(if text.is_empty() { "[]\n" } else { "\n]\n" });
        text
    }
}

// === impl Known ===

impl Known {
    fn new(stored: &Stored, parts: Vec<Arc<Part>>) -> Self {
        Self {
            parts,
            since: tokio::time::Instant::now(),
            workload: stored.workload.as_str().into(),
            spiffe_id: stored.spiffe_id.clone(),
            address: stored.address.clone(),
            // Text, numbers and lists are always JSON.
            line: serde_json::to_string(stored).unwrap_or_default(),
        }
    }
}

/// A file that cannot be read costs nothing but the grace: workloads come back by themselves.
fn read(folder: &StateDir) -> Vec<Stored> {
    let read = folder.read(FILE).and_then(|bytes| match bytes {
        Some(bytes) => serde_json::from_slice(&bytes).map_err(std::io::Error::from),
        None => Ok(Vec::new()),
    });
    read.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read {FILE}; workloads are endpoints again once they have registered");
        Vec::new()
    })
}

// === impl Stored ===

impl Stored {
    fn new(workload: &NamespacedName, id: &SpiffeId, said: &v1::Registration) -> Self {
        let locality = said.locality.clone().unwrap_or_default();
        let services = said.services.iter().map(|service| StoredService {
            name: service.name.clone(),
            ports: service.ports.iter().map(|port| (port.service_port, port.port)).collect(),
        });
        Self {
            workload: workload.to_string(),
            spiffe_id: id.to_string(),
            address: said.address.clone(),
            services: services.collect(),
            region: locality.region,
            zone: locality.zone,
            ready: said.ready,
        }
    }

    /// Read as if it had just been said: the file may have been edited.
    fn registration(&self) -> Result<Registration, RegistrationError> {
        let workload = NamespacedName::parse(&self.workload).ok_or_else(|| RegistrationError {
            field: "workload".to_owned(),
            message: format!("{:?} is not <namespace>/<name>", self.workload),
        })?;
        let services = self.services.iter().map(|service| v1::RegisteredService {
            name: service.name.clone(),
            ports: service
                .ports
                .iter()
                .map(|(service_port, port)| v1::RegisteredPort { service_port: *service_port, port: *port })
                .collect(),
        });
        let said = v1::Registration {
            address: self.address.clone(),
            services: services.collect(),
            locality: Some(v1::Locality { region: self.region.clone(), zone: self.zone.clone() }),
            ready: self.ready,
        };
        Registration::read(workload, self.spiffe_id.as_str(), &said)
    }
}

#[cfg(test)]
mod tests;
