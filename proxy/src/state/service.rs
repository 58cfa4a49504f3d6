//! A service as its clients here use it: stable across updates, so that a connection may hold on to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;

use super::{ObjectName, ServiceInfo, Spoken, Traffic};
use crate::endpoint::{EndpointSet, Gate};
use crate::limit::{RateLimit, RateLimits};
use crate::route::{self, Budget};

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
    /// What was taken of the budgets for what is sent again, by port.
    budgets: Mutex<Vec<(u16, Arc<Budget>)>>,
    /// What is under way, and waits, by port.
    gates: Mutex<Vec<(u16, Arc<Gate>)>>,
    /// What rate limits of the ports and of the routes have counted; `None`: there are none.
    rates: ArcSwapOption<RateLimits>,
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
            budgets: Mutex::default(),
            gates: Mutex::default(),
            rates: ArcSwapOption::empty(),
            used: AtomicU64::new(0),
        }
    }

    /// Whether everything has been answered that a request needs.
    pub fn is_answered(&self) -> bool {
        let are_answered = match &**self.info.load() {
            Answer::Awaited => false,
            Answer::Absent => !matches!(**self.routes.load(), Answer::Awaited),
            Answer::Here(_) => self.has_routes(),
        };
        are_answered && self.endpoints.load().is_some()
    }

    /// Every service that there is has routes, be they none: that there is no such resource was said while there was no service, and they are on their
    /// way. Whoever went there until they come would do so past what they say.
    fn has_routes(&self) -> bool {
        matches!(**self.routes.load(), Answer::Here(_))
    }

    /// Whether it is there and its routes are on their way, which takes no more than a moment: what goes to it waits for them.
    pub fn awaits_routes(&self) -> bool {
        matches!(**self.info.load(), Answer::Here(_)) && !self.has_routes()
    }

    /// The service itself; `None` when there is none (yet).
    pub fn info(&self) -> Option<Arc<ServiceInfo>> {
        here(&self.info)
    }

    /// How the port is treated; `None` where the service does not have it, or is not known.
    pub fn traffic(&self, port: u16) -> Option<Arc<Traffic>> {
        match &**self.info.load() {
            Answer::Here(info) => info.port(port).map(|port| Arc::clone(&port.traffic)),
            Answer::Awaited | Answer::Absent => None,
        }
    }

    /// The budget for what is sent again to the port. It survives updates that leave it as it is.
    pub fn retry_budget(&self, port: u16) -> Arc<Budget> {
        let spec = self.traffic(port).map(|traffic| traffic.retry_budget).unwrap_or_default();
        let mut budgets = self.budgets.lock();
        match budgets.iter_mut().find(|(of, _)| *of == port) {
            Some((_, budget)) => {
                if *budget.spec() != spec {
                    *budget = Arc::new(Budget::new(spec));
                }
                Arc::clone(budget)
            }
            None => {
                let budget = Arc::new(Budget::new(spec));
                budgets.push((port, Arc::clone(&budget)));
                budget
            }
        }
    }

    /// What limits what is under way, by port.
    pub fn gates(&self) -> Vec<(u16, Arc<Gate>)> {
        self.gates.lock().clone()
    }

    fn gate(&self, port: u16) -> Arc<Gate> {
        let mut gates = self.gates.lock();
        if let Some((_, gate)) = gates.iter().find(|(of, _)| *of == port) {
            return Arc::clone(gate);
        }
        let gate = Gate::new(&format!("{}:{port}", self.name));
        tell(self.info().as_deref(), port, &gate);
        gates.push((port, Arc::clone(&gate)));
        gate
    }

    /// The routes of clients in our namespace; `None` when none are attached.
    pub fn routes(&self) -> Option<Arc<route::Table>> {
        here(&self.routes)
    }

    pub fn endpoints(&self) -> Option<Arc<EndpointSet>> {
        self.endpoints.load_full()
    }

    /// Those that requests and connections to the port go to: none of a port that the service is not known to have, nor before its routes are known. Endpoints
    /// may be told before their service, since an answer about it is under way already; whoever went there until it comes would do so past all limits.
    pub fn serving(&self, port: u16) -> Option<Arc<EndpointSet>> {
        let is_known = match &**self.info.load() {
            Answer::Here(info) => info.port(port).is_some() && self.has_routes(),
            Answer::Awaited | Answer::Absent => false,
        };
        if is_known { self.endpoints() } else { None }
    }

    /// `now` in seconds of a clock of the caller's, the same for all calls.
    pub fn touch(&self, now: u64) {
        self.used.store(now, Ordering::Relaxed);
    }

    pub fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn set_info(&self, info: Option<Arc<ServiceInfo>>) {
        // Before anybody comes who goes by it. One that is gone keeps its limits: who waits must not go past them to endpoints that are about to
        // go too.
        if info.is_some() {
            for (port, gate) in self.gates() {
                tell(info.as_deref(), port, &gate);
            }
        }
        self.info.store(Arc::new(info.map_or(Answer::Absent, Answer::Here)));
        self.set_rates();
    }

    /// What counts requests by all rate limits that there are of the service; `None`: there are none.
    pub fn rates(&self) -> Option<Arc<RateLimits>> {
        self.rates.load_full()
    }

    /// Takes up what ports and routes say of rates; what has been counted stays.
    fn set_rates(&self) {
        let (info, routes) = (self.info(), self.routes());
        let ports = info.iter().flat_map(|info| &info.ports);
        let ports = ports.filter_map(|port| port.traffic.requests.as_deref());
        let routes = routes.iter().flat_map(|table| &table.routes().routes);
        let rules = routes.flat_map(|route| &route.rules);
        let rules = rules.filter_map(|rule| rule.rule.requests.as_deref());
        let mut all: Vec<RateLimit> = Vec::new();
        for limit in ports.chain(rules).flat_map(|said| &said.rate_limits) {
            if all.iter().all(|known| known.name != limit.name) {
                all.push(limit.clone());
            }
        }
        let old = self.rates.load_full();
        if old.is_some() || !all.is_empty() {
            self.rates.store(RateLimits::new(&all, old.as_deref(), Instant::now()).map(Arc::new));
        }
    }

    pub(crate) fn set_routes(&self, routes: Option<Arc<route::Table>>) {
        self.routes.store(Arc::new(routes.map_or(Answer::Absent, Answer::Here)));
        self.set_rates();
        // Without them there were no endpoints.
        self.gates().iter().for_each(|(_, gate)| gate.changed());
    }

    pub(crate) fn set_endpoints(&self, endpoints: EndpointSet) {
        endpoints.join(|port| self.gate(port));
        self.endpoints.store(Some(Arc::new(endpoints)));
        self.gates().iter().for_each(|(_, gate)| gate.changed());
    }
}

/// What is said of the port, where it is known.
fn tell(info: Option<&ServiceInfo>, port: u16, gate: &Gate) {
    let traffic = info.and_then(|info| info.port(port)).map(|port| &*port.traffic);
    let (limits, connections) =
        traffic.map(|traffic| (traffic.limits, traffic.connections)).unwrap_or_default();
    gate.say(limits, connections);
}

fn here<T>(answer: &ArcSwap<Answer<T>>) -> Option<Arc<T>> {
    match &**answer.load() {
        Answer::Here(value) => Some(Arc::clone(value)),
        Answer::Awaited | Answer::Absent => None,
    }
}
