//! What every connection is served with: the proxy's shared state, and one worker's own.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tulle_certs::Creds;

use super::admit;
use super::external;
use super::fault::Speaker;
use super::mirror;
use super::queue;
use crate::accept::Namespace;
use crate::config::{AllowedProbe, ClientCert};
use crate::drain;
use crate::endpoint::{Dial, Endpoint};
use crate::policy;
use crate::state::{AddressInfo, ObjectName, Peer, Protocol, ServiceState, Spoken, Store, Unanswered};
use crate::telemetry::metrics::{Direction, DiscoveryResult, WorkerMetrics};
use crate::telemetry::{AccessLog, Telemetry};
use crate::token;
use crate::wire::{h1, http2};

/// What the configuration says about forwarding.
#[derive(Clone, Debug)]
pub struct Settings {
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
    /// For the rest of what has begun.
    pub detect_timeout: Duration,
    pub http1: h1::Settings,
    pub http2: http2::Limits,
    /// Ports whose bytes are never looked at unless they are declared to speak something.
    pub opaque_ports: crate::config::PortSet,
    /// The mark of the proxy's own connections.
    pub mark: Option<u32>,
    /// Where applications on no particular address are.
    pub namespace: Option<Namespace>,
    /// What is let in without an identity ([`admit::judge_request`](super::admit)).
    pub probes: Vec<AllowedProbe>,
    /// Whether the application is told who its clients have proven to be.
    pub client_cert: ClientCert,
}

/// Where this very workload is an endpoint. Addresses alone do not tell: on one machine many workloads may share one.
#[derive(Clone, Debug, Default)]
pub struct OwnEndpoints {
    /// The inbound listeners, by the address that others dial, and the application behind each.
    pub listeners: HashMap<SocketAddr, SocketAddr, RandomState>,
    /// Whether what is dialled at the workload's addresses, at whichever port, is redirected to this proxy, as in a pod:
    /// then those addresses are nobody else's.
    pub redirected: bool,
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
    /// Who speaks first at addresses that belong to no service: the application's ports, addresses dialled directly.
    pub spoken: Spoken<SocketAddr>,
    own: OwnEndpoints,
    workload: Option<String>,
    speakers: [Arc<Speaker>; 2],
    started: Instant,
    next_connection: AtomicU64,
    /// What is still served is cut off: the drain has taken as long as it may.
    stopped: AtomicBool,
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
    /// Room for copies of requests.
    pub(super) mirrors: mirror::Places,
    /// What authorizers have answered.
    pub(super) external: external::Cache,
    /// Tokens that were verified.
    pub(super) tokens: Mutex<token::Cache>,
}

/// Loose endpoints that one worker remembers; those without connections go first.
const MAX_LOOSE: usize = 1024;

// === impl OwnEndpoints ===

impl OwnEndpoints {
    /// The application that answers at `address`, if that is this workload's; `known`: whether an IP address is one of
    /// the workload's.
    fn application(&self, address: SocketAddr, known: impl FnOnce(&IpAddr) -> bool) -> Option<SocketAddr> {
        match self.listeners.get(&address) {
            Some(application) => Some(*application),
            None => (self.redirected && known(&address.ip())).then_some(address),
        }
    }
}

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
        own: OwnEndpoints,
        workload: Option<String>,
    ) -> Self {
        queue::show(&store, &telemetry.metrics);
        let speaker = |direction| Speaker::new(workload.as_deref(), direction);
        let started = store.started();
        Self {
            store,
            creds,
            connections: Arc::new(policy::Connections::new()),
            settings,
            telemetry,
            drain,
            spoken: Spoken::default(),
            own,
            speakers: [speaker(Direction::Inbound), speaker(Direction::Outbound)],
            workload,
            started,
            next_connection: AtomicU64::new(1),
            stopped: AtomicBool::new(false),
        }
    }

    /// Has what is told from now on of what is cut off say why.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether what is still served is cut off.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// `<namespace>/<name>`, when there is one.
    pub fn workload(&self) -> Option<&str> {
        self.workload.as_deref()
    }

    /// The application behind `endpoint`, if that is this very workload: its address, its port and its identity.
    pub fn own_application(&self, endpoint: &Endpoint) -> Option<SocketAddr> {
        let identity = endpoint.identity()?;
        let known = |ip: &IpAddr| {
            self.store.load().workload.as_ref().is_some_and(|workload| workload.addresses.contains(ip))
        };
        let application = self.own.application(endpoint.address, known)?;
        self.creds.load().as_ref().is_some_and(|creds| creds.id() == identity).then_some(application)
    }

    /// What a dial goes by; counted in `metrics`.
    pub fn dial(&self, metrics: WorkerMetrics) -> Dial {
        let settings = &self.settings;
        Dial {
            creds: Arc::clone(&self.creds),
            timeout: settings.connect_timeout,
            mark: settings.mark,
            namespace: settings.namespace.clone(),
            http1: settings.http1.limits,
            http2: settings.http2.clone(),
            metrics,
        }
    }

    /// Nanoseconds on the proxy's own monotonic clock.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// That time, on the same clock.
    pub(super) fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
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
        let (loose, mirrors, tokens) = (Mutex::default(), mirror::Places::default(), Mutex::default());
        let external = external::Cache::default();
        Arc::new(Self { index, proxy, metrics, access, loose, mirrors, external, tokens })
    }

    /// The drain, and how long whoever has not said what it speaks is still listened to then: as long as anybody who has begun.
    pub(super) fn last_word(&self) -> (&drain::Watch, Duration) {
        (&self.proxy.drain, self.proxy.settings.detect_timeout)
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

    /// Closes pooled connections that have idled too long, and tells of what is audited from now on; the worker calls it once a second.
    pub fn sweep(&self) {
        admit::tell_of_audited(self);
        let limit = self.proxy.settings.idle_timeout;
        for service in self.proxy.store.load().services.values() {
            if let Some(endpoints) = service.endpoints() {
                for member in endpoints.all() {
                    member.endpoint.sweep(self.index, limit);
                }
            }
            service.gates().iter().for_each(|(_, gate)| gate.sweep());
        }
        for endpoint in self.loose.lock().values() {
            endpoint.sweep(self.index, limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_ones_own_by_its_port_and_without_it_only_where_it_is_redirected() {
        let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let listener = (address("127.0.0.1:40001"), address("127.0.0.1:8080"));
        let mut own = OwnEndpoints { listeners: HashMap::from_iter([listener]), redirected: false };
        let known = |ip: &IpAddr| *ip == IpAddr::from([127, 0, 0, 1]);
        assert_eq!(own.application(listener.0, known), Some(listener.1));
        // Another workload's, on the same machine.
        assert_eq!(own.application(address("127.0.0.1:40002"), known), None);
        own.redirected = true;
        assert_eq!(own.application(listener.0, known), Some(listener.1));
        assert_eq!(own.application(address("127.0.0.1:40002"), known), Some(address("127.0.0.1:40002")));
        assert_eq!(own.application(address("127.0.0.2:40001"), known), None);
    }
}
