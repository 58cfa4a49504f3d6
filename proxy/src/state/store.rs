//! The snapshot that every worker reads, and how a worker asks for what is not in it yet.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use foldhash::fast::RandomState;
use tokio::sync::{mpsc, watch};

use super::{AddressInfo, MeshInfo, ObjectName, ServiceState, WorkloadInfo};
use crate::policy;

/// What the proxy knows, at one moment. Cheap to clone: everything large is shared.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub mesh: Option<Arc<MeshInfo>>,
    pub workload: Option<Arc<WorkloadInfo>>,
    /// How inbound connections are treated; `None`: nothing is let in.
    pub inbound: Option<Arc<policy::Inbound>>,
    /// What may be reached outside the mesh; `None`: nothing.
    pub egress: Option<Arc<policy::Egress>>,
    pub addresses: HashMap<IpAddr, Arc<KnownAddress>, RandomState>,
    pub services: HashMap<ObjectName, Arc<ServiceState>, RandomState>,
}

/// The control plane's answer about an address.
#[derive(Debug)]
pub struct KnownAddress {
    /// Who answers there; `None`: nobody of the mesh.
    pub info: Option<Arc<AddressInfo>>,
    /// By the clock of [`Store::now`].
    used: AtomicU64,
}

/// Something that a worker needs and the snapshot lacks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Want {
    Service(ObjectName),
    Address(IpAddr),
}

/// No answer came within the time that a connection or request is held for.
#[derive(Debug, thiserror::Error)]
#[error("the control plane has not answered about {0:?} within {1:?}")]
pub struct Unanswered(pub Want, pub Duration);

/// The snapshot and the way to it; shared by all threads.
#[derive(Debug)]
pub struct Store {
    snapshot: ArcSwap<Snapshot>,
    wants: mpsc::UnboundedSender<Want>,
    changed: watch::Sender<u64>,
    started: Instant,
    patience: Duration,
}

// === impl KnownAddress ===

impl KnownAddress {
    /// `used` in seconds, by the clock of [`Store::now`].
    pub(crate) fn new(info: Option<Arc<AddressInfo>>, used: u64) -> Self {
        Self { info, used: AtomicU64::new(used) }
    }

    pub fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

// === impl Store ===

impl Store {
    /// A store with nothing in it, whose questions arrive at the returned receiver, which `control` reads.
    /// An answer is waited for at most `patience`.
    pub fn new(patience: Duration) -> (Self, mpsc::UnboundedReceiver<Want>) {
        let (wants, questions) = mpsc::unbounded_channel();
        let store = Self {
            snapshot: ArcSwap::default(),
            wants,
            changed: watch::Sender::new(0),
            started: Instant::now(),
            patience,
        };
        (store, questions)
    }

    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Replaces the snapshot by an edited copy and wakes everybody who waits. Only `control` calls this, from one
    /// thread.
    pub(crate) fn update(&self, edit: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = Snapshot::clone(&self.snapshot.load());
        edit(&mut snapshot);
        self.snapshot.store(Arc::new(snapshot));
        self.announce();
    }

    /// Wakes everybody who waits: something within the snapshot has been answered.
    pub(crate) fn announce(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    /// Sees every update from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Seconds since the store was made: the clock of [`ServiceState::touch`].
    pub fn now(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// When the store was made: the zero of every clock of this proxy.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Nanoseconds since then: the clock of `balance`.
    pub fn nanos(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether a service can be used without waiting for the control plane.
    pub fn knows_service(&self, name: &ObjectName) -> bool {
        self.load().services.get(name).is_some_and(|service| service.is_answered())
    }

    /// Whether the control plane has said who answers on `ip`.
    pub fn knows_address(&self, ip: IpAddr) -> bool {
        self.load().addresses.contains_key(&ip)
    }

    /// The service of that name, asked for if it is not known yet, with everything that a request needs.
    ///
    /// # Errors
    /// [`Unanswered`] after the store's patience.
    pub async fn service(&self, name: &ObjectName) -> Result<Arc<ServiceState>, Unanswered> {
        let find = |snapshot: &Snapshot| {
            snapshot.services.get(name).filter(|service| service.is_answered()).cloned()
        };
        let service = self.wait(find, || Want::Service(name.clone())).await?;
        service.touch(self.now());
        Ok(service)
    }

    /// Who answers on `ip`: `None` when the control plane knows nobody there.
    ///
    /// # Errors
    /// [`Unanswered`] after the store's patience.
    pub async fn address(&self, ip: IpAddr) -> Result<Option<Arc<AddressInfo>>, Unanswered> {
        let known = self.wait(|snapshot| snapshot.addresses.get(&ip).cloned(), || Want::Address(ip)).await?;
        known.used.store(self.now(), Ordering::Relaxed);
        Ok(known.info.clone())
    }

    /// How inbound connections are treated; `None` when that is not known within the store's patience either. It is
    /// asked for without this, from the start.
    pub async fn inbound(&self) -> Option<Arc<policy::Inbound>> {
        self.held(|snapshot| snapshot.inbound.clone(), || ()).await
    }

    /// What may be reached outside the mesh; as [`Store::inbound`].
    pub async fn egress(&self) -> Option<Arc<policy::Egress>> {
        self.held(|snapshot| snapshot.egress.clone(), || ()).await
    }

    async fn wait<T>(
        &self,
        find: impl Fn(&Snapshot) -> Option<T>,
        want: impl Fn() -> Want,
    ) -> Result<T, Unanswered> {
        // `control` is gone only when the proxy is.
        let ask = || drop(self.wants.send(want()));
        self.held(find, ask).await.ok_or_else(|| Unanswered(want(), self.patience))
    }

    async fn held<T>(&self, find: impl Fn(&Snapshot) -> Option<T>, ask: impl FnOnce()) -> Option<T> {
        if let Some(found) = find(&self.load()) {
            return Some(found);
        }
        let mut changes = self.changes();
        ask();
        let answered = async {
            loop {
                changes.borrow_and_update();
                if let Some(found) = find(&self.load()) {
                    return found;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(self.patience, answered).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::EndpointSet;

    #[tokio::test(start_paused = true)]
    async fn a_question_is_asked_and_its_answer_awaited() {
        let (store, mut questions) = Store::new(Duration::from_secs(1));
        let orders = ObjectName::new("default", "orders");
        let answer = async {
            assert_eq!(questions.recv().await, Some(Want::Service(orders.clone())));
            let service = Arc::new(ServiceState::new(orders.clone()));
            store.update(|snapshot| {
                snapshot.services.insert(orders.clone(), Arc::clone(&service));
            });
            service.set_info(None);
            service.set_routes(None);
            service.set_endpoints(EndpointSet::default());
            store.announce();
        };
        let (found, ()) = tokio::join!(store.service(&orders), answer);
        assert_eq!(found.expect("is answered").name, orders);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_use_of_a_service_waits_for_its_routes_too() {
        let (store, mut questions) = Store::new(Duration::from_secs(1));
        let orders = ObjectName::new("default", "orders");
        let service = Arc::new(ServiceState::new(orders.clone()));
        let answer = async {
            questions.recv().await;
            store.update(|snapshot| {
                snapshot.services.insert(orders.clone(), Arc::clone(&service));
            });
            service.set_info(None);
            service.set_endpoints(EndpointSet::default());
            store.announce();
        };
        let (found, ()) = tokio::join!(store.service(&orders), answer);
        assert_eq!(
            found.expect_err("nobody has said that there are no routes").0,
            Want::Service(orders.clone())
        );
        service.set_routes(None);
        assert!(store.knows_service(&orders));
    }

    #[tokio::test(start_paused = true)]
    async fn no_answer_is_an_error_after_the_patience() {
        let (store, _questions) = Store::new(Duration::from_secs(1));
        let before = tokio::time::Instant::now();
        let ip = IpAddr::from([10, 0, 0, 1]);
        let error = store.address(ip).await.expect_err("nobody answers");
        assert_eq!(error.0, Want::Address(ip));
        assert_eq!(before.elapsed(), Duration::from_secs(1));
    }
}
