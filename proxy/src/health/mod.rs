//! Active health checks: who is asked whether it serves, and who is told what came of it.
//!
//! Asks the endpoints of those ports of services in use whose TrafficPolicy has a health check, on the control thread,
//! for as long as it has one and the service is in use. It decides that an endpoint is unhealthy or healthy again, and
//! nothing else: what that means for requests is the balancer's. It must never ask where no policy says so, nor take
//! an endpoint for unhealthy of which a policy no longer says that it is asked. Started by `app`.

mod ask;
mod schedule;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::RandomState;
use tokio::task::JoinSet;

use self::ask::{Check, Failure};
use self::schedule::{Id, Schedule, Ticket};
use crate::endpoint::{Dial, Endpoint};
use crate::state::{ObjectName, Peer, Protocol, ServicePort, Store};
use crate::telemetry::Metrics;
use crate::telemetry::trace::Traces;
use crate::wire::Framing;

/// Asks, until it is dropped. Has nothing to do, and does nothing, while no policy says so.
pub struct Prober {
    store: Arc<Store>,
    dial: Dial,
    own: Own,
    tell: Tell,
    metrics: Metrics,
    traces: Arc<Traces>,
    schedule: Schedule,
    watched: HashMap<Id, Watched, RandomState>,
    /// Checks under way.
    asked: JoinSet<(Ticket, Result<(), Failure>)>,
}

/// The application's address behind an endpoint that is this very workload.
type Own = Box<dyn Fn(&Endpoint) -> Option<SocketAddr> + Send>;

/// Hears that an endpoint of a service's port is healthy from now on, or is not.
type Tell = Box<dyn Fn(&ObjectName, u16, &Arc<Endpoint>, bool) + Send>;

/// An endpoint that is asked.
struct Watched {
    endpoint: Arc<Endpoint>,
    service: ObjectName,
    port: u16,
    check: Arc<Check>,
    /// It is still to be asked, as far as the present look has come.
    seen: bool,
}

// === impl Prober ===

impl Prober {
    /// Connects as `dial` says; what is this workload itself by `own` is asked directly; `tell` hears what changes, and
    /// with each check that an endpoint is unhealthy still: its policy may have gone and come back unseen. All endpoints
    /// are healthy at first. Where `traces` says that requests are traced, those of checks say that they are not.
    pub fn new(
        store: Arc<Store>,
        dial: Dial,
        own: impl Fn(&Endpoint) -> Option<SocketAddr> + Send + 'static,
        tell: impl Fn(&ObjectName, u16, &Arc<Endpoint>, bool) + Send + 'static,
        metrics: Metrics,
        traces: Arc<Traces>,
    ) -> Self {
        Self {
            store,
            dial,
            own: Box::new(own),
            tell: Box::new(tell),
            metrics,
            traces,
            schedule: Schedule::default(),
            watched: HashMap::default(),
            asked: JoinSet::new(),
        }
    }

    pub async fn run(mut self) {
        let mut changes = self.store.changes();
        loop {
            changes.borrow_and_update();
            self.follow();
            // What the next change brings may be there before it.
            loop {
                self.begin();
                let wake = self.schedule.wake();
                let due = async {
                    match wake {
                        Some(at) => tokio::time::sleep_until(at.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    changed = changes.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    Some(over) = self.asked.join_next() => {
                        // A check that panicked would stay under way, and its endpoint as it is; none does.
                        if let Ok((ticket, result)) = over {
                            self.answered(ticket, &result);
                        }
                    }
                    () = due => {}
                }
            }
        }
    }

    /// Takes up what the snapshot says is to be asked, and lets go of what no longer is.
    fn follow(&mut self) {
        let (store, now) = (Arc::clone(&self.store), Instant::now());
        let snapshot = store.load();
        for service in snapshot.services.values() {
            let Some(info) = service.info() else { continue };
            for port in &info.ports {
                let Some(check) = Check::of(&service.name, port) else { continue };
                let (check, endpoints) = (Arc::new(check), service.endpoints());
                for member in
                    endpoints.iter().filter_map(|all| all.port(port.port)).flat_map(|port| &port.members)
                {
                    self.watch(&member.endpoint, &service.name, port.port, &check, now);
                }
            }
        }
        if self.watched.is_empty() {
            return;
        }
        let gone = self.watched.extract_if(|_, watched| !std::mem::take(&mut watched.seen));
        for (id, watched) in gone {
            if self.schedule.remove(id) {
                let Watched { endpoint, service, port, .. } = &watched;
                (self.tell)(service, *port, endpoint, true);
            }
        }
    }

    fn watch(
        &mut self,
        endpoint: &Arc<Endpoint>,
        service: &ObjectName,
        port: u16,
        check: &Arc<Check>,
        now: Instant,
    ) {
        let id = Arc::as_ptr(endpoint).addr();
        if let Some(watched) = self.watched.get_mut(&id) {
            watched.seen = true;
            if watched.check == *check {
                return;
            }
            watched.check = Arc::clone(check);
        } else {
            let (endpoint, service, check) = (Arc::clone(endpoint), service.clone(), Arc::clone(check));
            self.watched.insert(id, Watched { endpoint, service, port, check, seen: true });
        }
        self.schedule.put(id, &check.check, now, rand::random());
    }

    /// Begins what is due.
    fn begin(&mut self) {
        while let Some(ticket) = self.schedule.next(Instant::now()) {
            let Some(Watched { endpoint, check, .. }) = self.watched.get(&ticket.id) else { continue };
            let (dial, check) = (self.dial.clone(), Arc::clone(check));
            let asked = match (self.own)(endpoint) {
                // No connection leads back here, and none is needed.
                Some(application) => (application, Peer::Plaintext),
                None => (endpoint.address, endpoint.peer.clone()),
            };
            // Apart from the one that requests go to, which has nothing to do with this connection.
            let asked = Endpoint::new(asked.0, asked.1, None, "".into(), 0);
            let tracer = self.traces.get();
            self.asked
                .spawn(async move { (ticket, ask::ask(&dial, &asked, &check, tracer.as_deref()).await) });
        }
    }

    fn answered(&mut self, ticket: Ticket, result: &Result<(), Failure>) {
        let id = ticket.id;
        let outcome = result.as_ref().err().map_or("passed", Failure::outcome);
        let verdict =
            result.as_ref().map_or_else(|failure| failure.is_a_verdict().then_some(false), |()| Some(true));
        let changed = self.schedule.answered(ticket, verdict, Instant::now(), rand::random());
        let Some(watched) = self.watched.get(&id) else { return };
        let (service, address) = (&*watched.endpoint.service, watched.endpoint.address);
        self.metrics.health_checked(service, outcome);
        if let Err(cause) = result {
            tracing::debug!(%address, service, %cause, "an endpoint failed a health check");
        }
        match (changed, result) {
            (Some(true), _) => {
                tracing::info!(%address, service, "an endpoint passes its health checks again")
            }
            (Some(false), Err(cause)) => {
                tracing::warn!(%address, service, %cause, "an endpoint fails its health checks");
            }
            _ => {}
        }
        let healthy = self.schedule.is_healthy(id);
        if changed.is_some() || !healthy {
            let Watched { endpoint, service, port, .. } = watched;
            (self.tell)(service, *port, endpoint, healthy);
        }
    }
}

impl fmt::Debug for Prober {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prober").field("watched", &self.watched.len()).finish_non_exhaustive()
    }
}

// === impl Check ===

impl Check {
    fn of(service: &ObjectName, port: &ServicePort) -> Option<Self> {
        let check = port.traffic.health_check.clone()?;
        let framing = match port.protocol {
            Protocol::Http2 | Protocol::Grpc => Framing::Http2,
            Protocol::Detect | Protocol::Http | Protocol::Tcp | Protocol::Tls => Framing::Http1,
        };
        // Names of Services are labels (RFC 1123 §2.1), which can be hosts.
        let host = format!("{}.{}", service.name, service.namespace).parse().ok()?;
        Some(Self { check, framing, host })
    }
}

#[cfg(test)]
mod tests;
