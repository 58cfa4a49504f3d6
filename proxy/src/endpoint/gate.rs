//! How much may be under way at once, to a service's port and to one of its endpoints, and who waits.
//!
//! Decides who gets a place: whoever has waited longest, on whichever worker. Waiting is bounded by time, and by number only where that is said.
//! A place is a value that gives it back when it is dropped, so that none is lost, whatever becomes of who had it. Where nothing is limited, only
//! connections are counted, when they are made. What a change of the limits finds under way stays.
//!
//! A request first takes a place at its service, then one at an endpoint; a connection first one at its endpoint, then at the service. Where
//! connections are at their limit, idle ones make room, and those that take nothing new, also another worker's ([`Gate::make_room`]). Such a
//! connection gives its place up at once, and its socket is closed by the task that serves it, a moment later.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{ConnectError, Endpoint};
use crate::limit::Seats;
use crate::state::{Connections, Limits};
use crate::telemetry::metrics::{LimitOutcome, LimitUse, WorkerMetrics};

/// One port of a service.
#[derive(Debug)]
pub struct Gate {
    /// `<namespace>/<name>:<port>`
    service: Box<str>,
    /// Whether anything is said, and whether requests are limited: all that most requests look at.
    is_said: AtomicBool,
    limits_requests: AtomicBool,
    said: ArcSwap<Said>,
    requests: Seats,
    /// Who has a place at the service and waits for one at any endpoint.
    any: Seats,
    connections: Seats,
    pending: Seats,
    endpoints: Mutex<Vec<Weak<Endpoint>>>,
}

#[derive(Debug, Default)]
struct Said {
    limits: Option<Limits>,
    connections: Connections,
}

/// What is counted of one endpoint.
#[derive(Debug, Default)]
pub struct Room {
    gate: OnceLock<Arc<Gate>>,
    requests: Seats,
    connections: Seats,
    /// Where connections are limited, when one last got its place.
    seated: Mutex<Option<std::time::Instant>>,
}

/// No place became free in time.
#[derive(Debug, thiserror::Error)]
#[error("{limit} of {service} is {most}, and none was free within {waited:?}")]
pub struct Full {
    service: Box<str>,
    limit: &'static str,
    most: u32,
    pub(super) waited: Duration,
    /// Another endpoint may have room.
    pub of_endpoint: bool,
}

/// A request's place at a service.
#[derive(Debug)]
#[must_use = "the place is free again once this is dropped"]
pub struct ServiceSeat(Arc<Gate>);

/// A request's place at an endpoint.
#[derive(Debug)]
#[must_use = "the place is free again once this is dropped"]
pub struct RequestSeat {
    room: Arc<Room>,
    service: ServiceSeat,
}

/// A connection's.
#[derive(Debug)]
#[must_use = "the place is free again once this is dropped"]
pub struct ConnectionSeat {
    room: Arc<Room>,
    /// `None`: of the endpoint's alone, so far.
    gate: Option<Arc<Gate>>,
    /// Before its connection is over.
    is_given: AtomicBool,
}

/// Whoever wants one endpoint and no other: when it waits no more, others may have its room.
struct WakesAny<'a>(&'a Gate);

/// Somebody who waits, where their number is limited.
#[derive(Debug)]
#[must_use = "nobody waits any more once this is dropped"]
pub(super) struct Pending(Arc<Gate>);

/// How long whoever waits may, and who counts it.
#[derive(Debug)]
pub struct Patience<'a> {
    /// `None`: for as long as it takes.
    by: Option<Instant>,
    all: Duration,
    /// Whether it counts among those who wait: a dial does not, but the requests for which it is.
    counts: bool,
    metrics: &'a WorkerMetrics,
}

// === impl Gate ===

impl Gate {
    pub fn new(service: &str) -> Arc<Self> {
        Arc::new(Self {
            service: service.into(),
            is_said: AtomicBool::new(false),
            limits_requests: AtomicBool::new(false),
            said: ArcSwap::default(),
            requests: Seats::default(),
            any: Seats::default(),
            connections: Seats::default(),
            pending: Seats::default(),
            endpoints: Mutex::default(),
        })
    }

    /// What holds from now on.
    pub fn say(&self, limits: Option<Limits>, connections: Connections) {
        self.said.store(Arc::new(Said { limits, connections }));
        self.is_said.store(limits.is_some() || connections != Connections::default(), Relaxed);
        let of_requests = limits.is_some_and(|one| one.requests > 0 || one.requests_per_endpoint > 0);
        self.limits_requests.store(of_requests, Relaxed);
        // There may be more places now.
        [&self.requests, &self.any, &self.connections].into_iter().for_each(Seats::wake);
        for endpoint in self.endpoints() {
            [&endpoint.room.requests, &endpoint.room.connections].into_iter().for_each(Seats::wake);
        }
    }

    #[inline]
    pub(super) fn limits_pending(&self) -> bool {
        self.limits().is_some_and(|limits| limits.pending > 0)
    }

    fn limits(&self) -> Option<Limits> {
        if self.is_said.load(Relaxed) { self.said.load().limits } else { None }
    }

    /// An endpoint is one of the port's.
    pub(super) fn joined(self: &Arc<Self>, endpoint: &Arc<Endpoint>) {
        if endpoint.room.gate.set(Arc::clone(self)).is_ok() {
            let mut endpoints = self.endpoints.lock();
            endpoints.retain(|one| one.strong_count() > 0);
            endpoints.push(Arc::downgrade(endpoint));
        }
    }

    /// Other endpoints than before may take requests: there may be one with room for who waits for any.
    pub fn changed(&self) {
        self.any.wake();
    }

    fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// What is taken of each limit that there is, of those per endpoint where most is, and how many wait.
    pub fn read(&self) -> Vec<LimitUse> {
        let Some(limits) = self.limits() else { return Vec::new() };
        let endpoints = self.endpoints();
        let of = |seats: &Seats| (seats.taken(), seats.waiting());
        let each = |seats: fn(&Room) -> &Seats| {
            let all = endpoints.iter().map(|endpoint| of(seats(&endpoint.room)));
            all.fold((0, 0), |(most, waiting), (taken, wait)| (taken.max(most), waiting + wait))
        };
        let (fullest, own) = each(|room| &room.requests);
        let used = [
            (limits.requests, REQUESTS, of(&self.requests)),
            // Who waits there wants that one and no other.
            (limits.requests_per_endpoint, REQUESTS_EACH, (fullest, own + self.any.waiting())),
            (limits.connections, CONNECTIONS, of(&self.connections)),
            (limits.connections_per_endpoint, CONNECTIONS_EACH, each(|room| &room.connections)),
            (limits.pending, PENDING, (self.pending.taken(), 0)),
        ];
        let said = used.into_iter().filter(|(most, ..)| *most > 0);
        said.map(|(_, limit, (used, waiting))| LimitUse {
            service: self.service.clone(),
            limit,
            used,
            waiting,
        })
        .collect()
    }

    /// A request's place at the service.
    ///
    /// # Errors
    /// None was free in time.
    pub async fn request(self: &Arc<Self>, patience: &Patience<'_>) -> Result<ServiceSeat, Full> {
        let most = || self.limits().map_or(0, |limits| limits.requests);
        let take = || self.requests.take(most()).then(|| ServiceSeat(Arc::clone(self)));
        self.or_wait(&self.requests, (REQUESTS, most(), false), patience, take, |_| true).await
    }

    /// What `take` gives, which looks for an endpoint with room: at `only`, of those who want no other, else at any.
    ///
    /// # Errors
    /// None was free in time.
    pub async fn endpoint<T>(
        self: &Arc<Self>,
        only: Option<&Room>,
        patience: &Patience<'_>,
        take: impl FnMut() -> Option<T>,
    ) -> Result<T, Full> {
        let most = self.limits().map_or(0, |limits| limits.requests_per_endpoint);
        let line = only.map_or(&self.any, |room| &room.requests);
        // Dropped once that one waits no more, whatever became of it.
        let _next = only.map(|_| WakesAny(self));
        self.or_wait(line, (REQUESTS_EACH, most, true), patience, take, |_| true).await
    }

    /// A connection's place among `seats`, of which `most` says how many there are; `make_room` has what idles there go.
    ///
    /// # Errors
    /// None was free in time, or the connection is not `wanted` any more once it is its turn.
    async fn connection(
        self: &Arc<Self>,
        seats: &Seats,
        (limit, most, of_endpoint): (&'static str, fn(&Limits) -> u32, bool),
        patience: &Patience<'_>,
        wanted: impl Fn() -> bool,
        make_room: impl Fn() -> bool,
    ) -> Result<(), ConnectError> {
        let most = || self.limits().map_or(0, |limits| most(&limits));
        // What is given: whether there is a place; without one it is not wanted.
        let take = || {
            if !wanted() {
                return Some(false);
            }
            // Also where another dial got what was left, or what room was made.
            (seats.take(most()) || (make_room() && seats.take(most()))).then_some(true)
        };
        match self.or_wait(seats, (limit, most(), of_endpoint), patience, take, |taken| *taken).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(ConnectError::Unwanted),
            Err(full) => Err(ConnectError::Limited(Box::new(full))),
        }
    }

    /// That of whoever comes now.
    pub fn patience<'a>(&self, metrics: &'a WorkerMetrics) -> Patience<'a> {
        let all = self.limits().map_or(Duration::ZERO, |limits| limits.queue_timeout);
        Patience { by: Instant::now().checked_add(all), all, counts: true, metrics }
    }

    /// At once, if nobody waits or there is no limit; else in line. `is_place`: whether what is taken is one, and not the news that none is wanted any more,
    /// which nobody has waited for.
    async fn or_wait<T>(
        self: &Arc<Self>,
        line: &Seats,
        (limit, most, of_endpoint): (&'static str, u32, bool),
        patience: &Patience<'_>,
        mut take: impl FnMut() -> Option<T>,
        is_place: fn(&T) -> bool,
    ) -> Result<T, Full> {
        // Where nothing is limited any more, nobody's turn is taken: who waits is only not awake yet.
        if (most == 0 || line.waiting() == 0)
            && let Some(taken) = take()
        {
            return Ok(taken);
        }
        let waited = async {
            if patience.all.is_zero() {
                return None;
            }
            match patience.by {
                Some(by) => tokio::time::timeout_at(by, line.wait(take)).await.ok(),
                None => Some(line.wait(take).await),
            }
        };
        let pending = if patience.counts { self.pend(patience.metrics)? } else { None };
        let taken = waited.await;
        drop(pending);
        let outcome = taken
            .as_ref()
            .map_or(Some(LimitOutcome::Refused), |taken| is_place(taken).then_some(LimitOutcome::Waited));
        if let Some(outcome) = outcome {
            patience.metrics.limit(&self.service, limit, outcome);
        }
        let (service, waited) = (self.service.clone(), patience.all);
        taken.ok_or(Full { service, limit, most, waited, of_endpoint })
    }

    /// One more who waits; `None`: their number is not limited.
    pub(super) fn pend(self: &Arc<Self>, metrics: &WorkerMetrics) -> Result<Option<Pending>, Full> {
        let Some(most) = self.limits().map(|limits| limits.pending).filter(|most| *most > 0) else {
            return Ok(None);
        };
        if self.pending.take(most) {
            return Ok(Some(Pending(Arc::clone(self))));
        }
        metrics.limit(&self.service, PENDING, LimitOutcome::Refused);
        let (service, waited) = (self.service.clone(), Duration::ZERO);
        Err(Full { service, limit: PENDING, most, waited, of_endpoint: false })
    }

    /// What has come to take nothing new since somebody began to wait for a connection makes room; the worker's sweep calls it.
    pub fn sweep(&self) {
        if self.connections.waiting() > 0 {
            self.make_room();
        }
    }

    /// Makes room for a connection at one of the port's endpoints that there are or were, on whichever worker; whether there was any to make.
    fn make_room(&self) -> bool {
        self.endpoints().iter().any(|endpoint| endpoint.make_room())
    }
}

/// As metrics and errors tell them.
const REQUESTS: &str = "requests";
const REQUESTS_EACH: &str = "requests_per_endpoint";
const CONNECTIONS: &str = "connections";
const CONNECTIONS_EACH: &str = "connections_per_endpoint";
const PENDING: &str = "pending";

// === impl Room ===

impl Room {
    /// The endpoint's port, if it is of a service.
    pub fn gate(&self) -> Option<&Arc<Gate>> {
        self.gate.get()
    }

    /// The same, where requests there are limited.
    #[inline]
    pub fn limited(&self) -> Option<&Arc<Gate>> {
        self.gate.get().filter(|gate| gate.limits_requests.load(Relaxed))
    }

    /// What is said of connections.
    #[inline]
    pub(super) fn said(&self) -> Connections {
        match self.gate.get() {
            Some(gate) if gate.is_said.load(Relaxed) => gate.said.load().connections,
            _ => Connections::default(),
        }
    }

    fn most(&self, of: fn(&Limits) -> u32) -> u32 {
        self.gate.get().and_then(|gate| gate.limits()).map_or(0, |limits| of(&limits))
    }

    /// Whether one more request would fit that could go elsewhere: who wants this one and no other, and waits for it, comes before.
    pub fn has_room(&self) -> bool {
        let most = self.most(|limits| limits.requests_per_endpoint);
        most == 0 || (self.requests.waiting() == 0 && self.requests.has_room(most))
    }

    /// How many requests have a place.
    #[cfg(test)]
    pub fn requests(&self) -> u32 {
        self.requests.taken()
    }

    /// A place for a request that has one at the service; that comes back where there is none.
    ///
    /// # Errors
    /// There is no room.
    pub fn request(self: &Arc<Self>, service: ServiceSeat) -> Result<RequestSeat, ServiceSeat> {
        match self.requests.take(self.most(|limits| limits.requests_per_endpoint)) {
            true => Ok(RequestSeat { room: Arc::clone(self), service }),
            false => Err(service),
        }
    }

    /// Whether it is limited how many connections there may be: who waits for one may do so for that alone.
    pub(super) fn limits_connections(&self) -> bool {
        let limits = self.gate.get().and_then(|gate| gate.limits());
        limits.is_some_and(|limits| limits.connections > 0 || limits.connections_per_endpoint > 0)
    }

    /// Where that is limited, since when the connection that was dialled last has its place: what went before was our own limits'.
    pub fn seated(&self) -> Option<std::time::Instant> {
        *self.seated.lock()
    }

    /// Whether connections are waited for, here or at another endpoint of the port.
    pub fn is_short(&self) -> bool {
        self.gate.get().is_some_and(|gate| {
            gate.is_said.load(Relaxed) && (self.connections.waiting() > 0 || gate.connections.waiting() > 0)
        })
    }
}

impl Endpoint {
    /// A place for a new connection; `None`: it is of no service. `since`: when the one came that waits longest for it, who has no more patience
    /// than others.
    ///
    /// # Errors
    /// None was free in time, or the connection is not `wanted` any more once it is its turn.
    pub(super) async fn seat(
        &self,
        metrics: &WorkerMetrics,
        since: std::time::Instant,
        wanted: impl Fn() -> bool,
    ) -> Result<Option<ConnectionSeat>, ConnectError> {
        let room = &self.room;
        let Some(gate) = room.gate.get() else { return Ok(None) };
        let patience = gate.patience(metrics);
        let by = Instant::from_std(since).checked_add(patience.all);
        let patience = Patience { by, counts: false, ..patience };
        let each = (CONNECTIONS_EACH, (|limits| limits.connections_per_endpoint) as fn(&Limits) -> u32, true);
        gate.connection(&room.connections, each, &patience, &wanted, || self.make_room()).await?;
        let mut seat = ConnectionSeat { room: Arc::clone(room), gate: None, is_given: AtomicBool::default() };
        let all = (CONNECTIONS, (|limits| limits.connections) as fn(&Limits) -> u32, false);
        gate.connection(&gate.connections, all, &patience, &wanted, || gate.make_room()).await?;
        seat.gate = Some(Arc::clone(gate));
        if room.limits_connections() {
            *room.seated.lock() = Some(std::time::Instant::now());
        }
        Ok(Some(seat))
    }

    /// The same at this one.
    pub(super) fn make_room(&self) -> bool {
        self.pools.iter().any(|pool| pool.evict())
    }
}

// === impl the places ===

impl Drop for WakesAny<'_> {
    fn drop(&mut self) {
        self.0.any.wake();
    }
}

impl Drop for ServiceSeat {
    fn drop(&mut self) {
        self.0.requests.give();
    }
}

impl Drop for RequestSeat {
    fn drop(&mut self) {
        self.room.requests.give();
        self.service.0.any.wake();
    }
}

impl ConnectionSeat {
    /// The connection takes nothing new, and only lets end what it carries: its place is another's, or who asks for much would keep out
    /// everybody else for as long as its answer lasts. Whether it had not yet been given.
    pub(super) fn give(&self) -> bool {
        if self.is_given.swap(true, Relaxed) {
            return false;
        }
        self.room.connections.give();
        if let Some(gate) = &self.gate {
            gate.connections.give();
        }
        true
    }
}

impl Drop for ConnectionSeat {
    fn drop(&mut self) {
        self.give();
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.give();
    }
}

#[cfg(test)]
mod tests;
