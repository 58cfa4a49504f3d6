//! What every connection is served with: the proxy's shared state, and one worker's own.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tulle_certs::Creds;

use super::fault::Speaker;
use crate::drain;
use crate::endpoint::Endpoint;
use crate::policy;
use crate::state::{AddressInfo, ObjectName, Peer, Protocol, ServiceState, Store, Unanswered};
use crate::telemetry::metrics::{Direction, DiscoveryResult, WorkerMetrics};
use crate::telemetry::{AccessLog, Telemetry};
use crate::wire::{h1, http2};

/// What the configuration says about forwarding.
#[derive(Clone, Debug)]
pub struct Settings {
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
    pub detect_timeout: Duration,
    pub http1: h1::Settings,
    pub http2: http2::Limits,
    /// Ports whose bytes are never looked at unless they are declared to speak something.
    pub opaque_ports: crate::config::PortSet,
    /// The mark of the proxy's own connections.
    pub mark: Option<u32>,
}

/// Shared by all threads.
#[derive(Debug)]
pub struct Proxy {
    pub store: Arc<Store>,
    pub creds: Arc<ArcSwapOption<Creds>>,
    pub connections: Arc<policy::Connections>,
    pub settings: Settings,
    pub telemetry: Telemetry,
    pub drain: drain::Watch,
    workload: Option<String>,
    speakers: [Arc<Speaker>; 2],
    started: Instant,
    next_connection: AtomicU64,
}

/// What one worker thread has of its own.
#[derive(Debug)]
pub struct Worker {
    pub index: usize,
    pub proxy: Arc<Proxy>,
    pub metrics: WorkerMetrics,
    pub access: AccessLog,
    /// Endpoints that belong to no service: the application's ports, addresses dialled directly.
    loose: Mutex<HashMap<(SocketAddr, Peer), Arc<Endpoint>, RandomState>>,
}

/// Loose endpoints that one worker remembers; those without connections go first.
const MAX_LOOSE: usize = 1024;

// === impl Settings ===

impl Settings {
    /// What `port` speaks: as declared, else opaque if the configuration says so.
    pub(super) fn protocol(&self, declared: Protocol, port: u16) -> Protocol {
        match declared {
            Protocol::Detect if self.opaque_ports.contains(port) => Protocol::Tcp,
            declared => declared,
        }
    }
}

// === impl Proxy ===

impl Proxy {
    pub fn new(
        store: Arc<Store>,
        creds: Arc<ArcSwapOption<Creds>>,
        settings: Settings,
        telemetry: Telemetry,
        drain: drain::Watch,
        workload: Option<String>,
    ) -> Self {
        let speaker = |direction| Speaker::new(workload.as_deref(), direction);
        Self {
            store,
            creds,
            connections: Arc::new(policy::Connections::new()),
            settings,
            telemetry,
            drain,
            speakers: [speaker(Direction::Inbound), speaker(Direction::Outbound)],
            workload,
            started: Instant::now(),
            next_connection: AtomicU64::new(1),
        }
    }

    /// `<namespace>/<name>`, when there is one.
    pub fn workload(&self) -> Option<&str> {
        self.workload.as_deref()
    }

    /// Nanoseconds on the proxy's own monotonic clock.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Who speaks in `x-tulle-error-by` and in the log.
    pub(super) fn speaker(&self, direction: Direction) -> &Speaker {
        match direction {
            Direction::Inbound => &self.speakers[0],
            Direction::Outbound => &self.speakers[1],
        }
    }

    pub(super) fn connection_id(&self) -> u64 {
        self.next_connection.fetch_add(1, Ordering::Relaxed)
    }
}

// === impl Worker ===

impl Worker {
    pub fn new(index: usize, proxy: Arc<Proxy>) -> Arc<Self> {
        let telemetry = proxy.telemetry.worker(index);
        let (metrics, access) = (telemetry.metrics, telemetry.access);
        Arc::new(Self { index, proxy, metrics, access, loose: Mutex::default() })
    }

    /// The service of that name; its first use waits for the control plane, and is counted.
    pub(super) async fn service(&self, name: &ObjectName) -> Result<Arc<ServiceState>, Unanswered> {
        let store = &self.proxy.store;
        let (first, started) = (!store.knows_service(name), Instant::now());
        let found = store.service(name).await;
        if first {
            let result = match &found {
                Ok(service) if service.info().is_some() => DiscoveryResult::Found,
                Ok(_) => DiscoveryResult::Absent,
                Err(_) => DiscoveryResult::Refused,
            };
            self.metrics.discovery(result, started.elapsed());
        }
        found
    }

    /// Who answers on `ip`; its first use waits for the control plane, and is counted. Without an answer, an address of the
    /// mesh's networks is refused, and any other passed through.
    pub(super) async fn address(&self, ip: IpAddr) -> Result<Option<Arc<AddressInfo>>, Unanswered> {
        let store = &self.proxy.store;
        let (first, started) = (!store.knows_address(ip), Instant::now());
        let (found, result) = match store.address(ip).await {
            Ok(Some(info)) => (Ok(Some(info)), DiscoveryResult::Found),
            Ok(None) => (Ok(None), DiscoveryResult::Absent),
            Err(unanswered) if store.load().mesh.as_ref().is_none_or(|mesh| mesh.contains(ip)) => {
                (Err(unanswered), DiscoveryResult::Refused)
            }
            Err(_) => (Ok(None), DiscoveryResult::PassedThrough),
        };
        if first {
            self.metrics.discovery(result, started.elapsed());
        }
        found
    }

    /// The endpoint at an address that belongs to no service, with its pooled connections.
    pub(super) fn loose_endpoint(&self, address: SocketAddr, peer: &Peer) -> Arc<Endpoint> {
        let mut loose = self.loose.lock();
        if loose.len() >= MAX_LOOSE {
            loose.retain(|_, endpoint| Arc::strong_count(endpoint) > 1 || endpoint.pooled() > 0);
        }
        let endpoint = loose
            .entry((address, peer.clone()))
            .or_insert_with(|| Endpoint::new(address, peer.clone(), None, "".into(), self.index + 1));
        Arc::clone(endpoint)
    }

    /// Closes pooled connections that have idled too long; the worker calls it once a second.
    pub fn sweep(&self) {
        let limit = self.proxy.settings.idle_timeout;
        for service in self.proxy.store.load().services.values() {
            if let Some(endpoints) = service.endpoints() {
                for member in endpoints.all() {
                    member.endpoint.sweep(self.index, limit);
                }
            }
        }
        for endpoint in self.loose.lock().values() {
            endpoint.sweep(self.index, limit);
        }
    }
}
