//! A service as its clients here use it: stable across updates, so that a connection may hold on to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::{ObjectName, ServiceInfo, Spoken};
use crate::endpoint::EndpointSet;
use crate::route;

/// What the control plane has answered about one resource.
#[derive(Debug)]
pub enum Answer<T> {
    /// Nothing yet.
    Awaited,
    /// There is no such resource (now; it stays subscribed).
    Absent,
    Here(Arc<T>),
}

/// One service: its ports, routes and endpoints, each replaced as a whole when it changes.
#[derive(Debug)]
pub struct ServiceState {
    pub name: ObjectName,
    info: ArcSwap<Answer<ServiceInfo>>,
    routes: ArcSwap<Answer<route::Table>>,
    endpoints: ArcSwapOption<EndpointSet>,
    /// Who speaks first, by port.
    pub spoken: Spoken<u16>,
    /// When it was last used, in seconds of the proxy's own clock.
    used: AtomicU64,
}

// === impl ServiceState ===

impl ServiceState {
    pub fn new(name: ObjectName) -> Self {
        Self {
            name,
            info: ArcSwap::from_pointee(Answer::Awaited),
            routes: ArcSwap::from_pointee(Answer::Awaited),
            endpoints: ArcSwapOption::empty(),
            spoken: Spoken::default(),
            used: AtomicU64::new(0),
        }
    }

    /// Whether everything has been answered that a request needs.
    pub fn is_answered(&self) -> bool {
        !matches!(**self.info.load(), Answer::Awaited)
            && !matches!(**self.routes.load(), Answer::Awaited)
            && self.endpoints.load().is_some()
    }

    /// The service itself; `None` when there is none (yet).
    pub fn info(&self) -> Option<Arc<ServiceInfo>> {
        here(&self.info)
    }

    /// The routes of clients in our namespace; `None` when none are attached.
    pub fn routes(&self) -> Option<Arc<route::Table>> {
        here(&self.routes)
    }

    pub fn endpoints(&self) -> Option<Arc<EndpointSet>> {
        self.endpoints.load_full()
    }

    /// `now` in seconds of a clock of the caller's, the same for all calls.
    pub fn touch(&self, now: u64) {
        self.used.store(now, Ordering::Relaxed);
    }

    pub fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn set_info(&self, info: Option<Arc<ServiceInfo>>) {
        self.info.store(Arc::new(info.map_or(Answer::Absent, Answer::Here)));
    }

    pub(crate) fn set_routes(&self, routes: Option<Arc<route::Table>>) {
        self.routes.store(Arc::new(routes.map_or(Answer::Absent, Answer::Here)));
    }

    pub(crate) fn set_endpoints(&self, endpoints: EndpointSet) {
        self.endpoints.store(Some(Arc::new(endpoints)));
    }
}

fn here<T>(answer: &ArcSwap<Answer<T>>) -> Option<Arc<T>> {
    match &**answer.load() {
        Answer::Here(value) => Some(Arc::clone(value)),
        Answer::Awaited | Answer::Absent => None,
    }
}
