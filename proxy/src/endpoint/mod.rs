//! An endpoint: an address, whom to expect there, how busy it is, and the connections to it.
//!
//! The pool belongs to the endpoint, so that a connection cannot serve another identity; each worker has its own.
//! `forward` asks for connections; `control` makes endpoints and carries them over updates.

mod connect;
mod entry;
mod gate;
mod idle;
mod pool;
mod set;
mod shared;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tulle_certs::SpiffeId;

pub use connect::{ConnectError, Dial, Seated, within};
pub use gate::{ConnectionSeat, Full, Gate, Patience, RequestSeat, Room, ServiceSeat};
pub use set::{EndpointSet, How, Member, Port, tell};

use self::entry::{Ticket, Waiter};
use self::pool::{Carrier, Pool, SharedConnection};
use self::shared::{Checkout, Dialled};

use crate::balance::{self, Group, Load, Standing};
use crate::io::Io;
use crate::state::{ObjectName, Peer};
use crate::telemetry::metrics::{PoolClose, PooledConnection};
use crate::wire::{h1, http2};

/// Somewhere that requests and connections can be sent.
#[derive(Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub peer: Peer,
    pub workload: Option<ObjectName>,
    /// `<namespace>/<name>:<port>` of the service that it is of, for metrics; empty: of none.
    pub service: Arc<str>,
    pub load: Load,
    pub standing: Standing,
    /// The endpoints of its service's port; `None`: it is of none.
    pub group: Option<Arc<Group>>,
    pub room: Arc<Room>,
    pools: Box<[Pool]>,
}

/// An HTTP/1 connection for one exchange.
#[derive(Debug)]
pub struct Http1 {
    pub client: h1::Client<Io>,
    /// To be given back with it, and dropped when it is closed.
    pub pooled: PooledConnection,
    /// It has served another request before, or is a stream of a connection that has.
    pub reused: bool,
    pub way: Way,
    /// When it is too old for another request.
    pub until: Option<Instant>,
    /// It was waited for where our own limits say how many connections there may be.
    pub held: bool,
}

/// What carries an HTTP/1 connection to an endpoint of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A TLS connection of its own.
    Own,
    /// A stream, on a connection that carries others too.
    Shared,
}

/// Which way a request would rather go, and whether it may go the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preferred {
    pub way: Way,
    /// If nothing must be dialled for it, then over that.
    pub or_other: bool,
}

/// An HTTP/1 connection between two exchanges.
#[derive(Debug)]
struct Kept {
    client: h1::Client<Io>,
    pooled: PooledConnection,
    way: Way,
    until: Option<Instant>,
}

/// A place for one stream on a shared HTTP/2 connection.
#[derive(Debug)]
pub struct Http2 {
    pub sender: http2::Sender,
    pub place: Place,
    /// As of an [`Http1`].
    pub held: bool,
}

/// Holds the place until it is dropped, which is when the stream is over.
#[derive(Debug)]
#[must_use = "the place is free again once this is dropped"]
pub struct Place {
    endpoint: Arc<Endpoint>,
    worker: usize,
    /// `None`: already given back.
    id: Option<shared::Id>,
}

type Http1Waiter = oneshot::Sender<Result<Http1, Arc<ConnectError>>>;
type Served = shared::Served<SharedConnection, Http2Waiter>;

/// Who waits for a place on a shared connection, and since when.
#[derive(Debug)]
struct Http2Waiter {
    since: Instant,
    sender: oneshot::Sender<Result<Http2, Arc<ConnectError>>>,
}

// === impl Endpoint ===

impl Endpoint {
    pub fn new(
        address: SocketAddr,
        peer: Peer,
        workload: Option<ObjectName>,
        service: Arc<str>,
        workers: usize,
    ) -> Arc<Self> {
        Self::grouped(address, peer, workload, service, workers, None)
    }

    fn grouped(
        address: SocketAddr,
        peer: Peer,
        workload: Option<ObjectName>,
        service: Arc<str>,
        workers: usize,
        group: Option<Arc<Group>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            address,
            peer,
            workload,
            service,
            load: Load::default(),
            standing: Standing::default(),
            group,
            room: Arc::default(),
            pools: (0..workers).map(|_| Pool::default()).collect(),
        })
    }

    /// Whom to expect, when the endpoint is in the mesh.
    pub fn identity(&self) -> Option<&SpiffeId> {
        match &self.peer {
            Peer::Mesh(id) => Some(id),
            Peer::Plaintext => None,
        }
    }

    /// A connection for one exchange: idle, for less than `idle`, or given back by another request, or new, whichever
    /// there is first; no idle one without `idle`. It dials in a task of its own, so that a request that leaves does not
    /// take the dial with it. A new stream costs no dial, and so counts as idle.
    ///
    /// # Errors
    /// That of a dial which began after this request had come.
    pub async fn http1(
        self: &Arc<Self>,
        worker: usize,
        preferred: Preferred,
        idle: Option<Duration>,
        dial: impl Fn() -> Dial,
    ) -> Result<Http1, Arc<ConnectError>> {
        let Preferred { way, or_other } = preferred;
        if let Some(idle) = idle {
            let other = or_other.then_some(match way {
                Way::Own => Way::Shared,
                Way::Shared => Way::Own,
            });
            for way in [Some(way), other].into_iter().flatten() {
                if let Some(Kept { client, pooled, way, until }) = self.ready_http1(worker, way, idle, &dial)
                {
                    return Ok(Http1 { client, pooled, reused: true, way, until, held: false });
                }
            }
        }
        let _pending = self.pend(&dial)?;
        let (sender, receiver) = oneshot::channel();
        let ticket = self.pools[worker].http1(way, |entry| entry.wait(sender, Instant::now()));
        if let Some(ticket) = ticket {
            Self::spawn_http1(Arc::clone(self), worker, way, ticket, dial());
        }
        let held = self.hold();
        let connection =
            receiver.await.unwrap_or_else(|_| Err(Arc::new(ConnectError::Ended(self.address))))?;
        Ok(Http1 { held: held.is_some(), ..connection })
    }

    /// Who waits for a connection now does so for our own limits, as far as it is not being dialled.
    fn hold(&self) -> Option<balance::Held<'_>> {
        if self.room.limits_connections() { self.load.hold() } else { None }
    }

    /// One more who waits for a connection.
    fn pend(&self, dial: impl FnOnce() -> Dial) -> Result<Option<gate::Pending>, Arc<ConnectError>> {
        let Some(gate) = self.room.gate().filter(|gate| gate.limits_pending()) else { return Ok(None) };
        gate.pend(&dial().metrics).map_err(|full| Arc::new(ConnectError::Limited(Box::new(full))))
    }

    fn spawn_http1(self: Arc<Self>, worker: usize, way: Way, ticket: Ticket, dial: Dial) {
        tokio::spawn(self.dial_http1(worker, way, ticket, dial));
    }

    /// Dials for as long as more wait than others dial for.
    async fn dial_http1(self: Arc<Self>, worker: usize, way: Way, ticket: Ticket, dial: Dial) {
        let pool = &self.pools[worker];
        let mut next = Some(ticket);
        while let Some(ticket) = next {
            let since = pool.http1(way, |entry| entry.first_came()).unwrap_or_else(Instant::now);
            let connected = match way {
                Way::Own => {
                    let wanted = || pool.http1(way, |entry| entry.wants_dials());
                    dial.http1_if(&self, since, wanted).await.map(|client| (client, self.until()))
                }
                Way::Shared => self.stream(pool, since, &dial).await,
            };
            next = match connected {
                Ok((client, until)) => {
                    let pooled = pool.opened(&dial.metrics, &self.service, PoolClose::Ended);
                    let kept = Kept { client, pooled, way, until };
                    let [next, more] = pool.http1(way, |entry| entry.dialled(ticket, kept, Instant::now()));
                    if let Some(more) = more {
                        Self::spawn_http1(Arc::clone(&self), worker, way, more, dial.clone());
                    }
                    self.make_room_if_short(worker);
                    next
                }
                Err(ConnectError::Unwanted) => pool.http1(way, |entry| entry.unwanted(ticket)),
                Err(error) => {
                    let by = error.waited_from();
                    let (told, more) = pool.http1(way, |entry| entry.failed(ticket, by));
                    let error = Arc::new(error);
                    for waiter in told {
                        let _ = waiter.send(Err(Arc::clone(&error)));
                    }
                    more
                }
            };
        }
    }

    /// A stream, for which a connection is dialled if there is none with room. `since`: as of [`Endpoint::seat`].
    async fn stream(
        &self,
        pool: &Pool,
        since: Instant,
        dial: &Dial,
    ) -> Result<(h1::Client<Io>, Option<Instant>), ConnectError> {
        let (stream, until) = match pool.stream() {
            Some(stream) => stream,
            None => {
                let (opener, seat) = dial.streams(self, since).await?;
                pool.share(Carrier { opener, until: self.until(), seat })
                    .ok_or(ConnectError::Closed(self.address))?
            }
        };
        Ok((h1::Client::new(Io::stream(stream), dial.http1), until))
    }

    /// When a connection that is made now is too old for another request: all of them at different times.
    fn until(&self) -> Option<Instant> {
        let age = self.room.said().maximum_age?;
        Instant::now().checked_add(jittered(age))
    }

    /// How long connections may idle.
    fn idle_timeout(&self, configured: Duration) -> Duration {
        match self.room.said().idle_timeout {
            None => configured,
            Some(Duration::ZERO) => Duration::MAX,
            Some(said) => said,
        }
    }

    /// A connection for which nothing must be dialled.
    fn ready_http1(
        &self,
        worker: usize,
        way: Way,
        configured: Duration,
        dial: impl Fn() -> Dial,
    ) -> Option<Kept> {
        let idle = self.idle_http1(worker, way, configured);
        if idle.is_some() || way == Way::Own {
            return idle;
        }
        let pool = &self.pools[worker];
        let ((stream, until), dial) = (pool.stream()?, dial());
        let client = h1::Client::new(Io::stream(stream), dial.http1);
        Some(Kept { client, pooled: pool.opened(&dial.metrics, &self.service, PoolClose::Ended), way, until })
    }

    /// A connection that waits for its next request, the one used last first.
    fn idle_http1(&self, worker: usize, way: Way, configured: Duration) -> Option<Kept> {
        let (pool, configured) = (&self.pools[worker], self.idle_timeout(configured));
        loop {
            let entry::Idle { connection: mut kept, since } = pool.http1(way, |entry| entry.take())?;
            let now = Instant::now();
            match kept.client.closed() {
                Some(at) => {
                    pool.saw_close(at, since);
                    kept.pooled.closing(PoolClose::Peer);
                }
                None if kept.is_old(now) => kept.pooled.closing(PoolClose::Age),
                None if now.saturating_duration_since(since) < pool.idle_limit(now, configured) => {
                    return Some(kept);
                }
                None => kept.pooled.closing(PoolClose::Idle),
            }
        }
    }

    /// Gives a connection back once its exchange is over.
    pub fn keep_http1(&self, worker: usize, connection: Http1) {
        let Http1 { mut client, pooled, way, until, .. } = connection;
        let pool = &self.pools[worker];
        if let Some(timeout) = client.idle_hint() {
            pool.state_limit(timeout);
        }
        if client.closed().is_none() {
            let (kept, now) = (Kept { client, pooled, way, until }, Instant::now());
            if kept.is_old(now) {
                return kept.pooled.closing(PoolClose::Age);
            }
            pool.http1(way, |entry| entry.give(kept, now));
            self.make_room_if_short(worker);
        }
    }

    /// Closes one that serves nobody, where others wait for connections: it may have become idle just now, which wakes nobody.
    fn make_room_if_short(&self, worker: usize) {
        if self.room.is_short() {
            self.pools[worker].evict();
        }
    }

    /// A place on one of the worker's shared HTTP/2 connections; one dial serves all who wait for it, and so does
    /// its error. `fresh`: on none that was dialled before then; of those, the idle ones are closed.
    ///
    /// # Errors
    /// The dial's own.
    pub async fn http2(
        self: &Arc<Self>,
        worker: usize,
        fresh: Option<Instant>,
        dial: impl Fn() -> Dial,
    ) -> Result<Http2, Arc<ConnectError>> {
        if let Some(fresh) = fresh {
            self.pools[worker].drop_older_http2(fresh);
        }
        let mut receiver = None;
        let checkout = self.pools[worker].http2(|shared| {
            shared.checkout(fresh, || {
                let (sender, waits) = oneshot::channel();
                receiver = Some(waits);
                Http2Waiter { since: Instant::now(), sender }
            })
        });
        match checkout {
            Checkout::Ready(place) => return Ok(self.placed(worker, place)),
            Checkout::Dial => drop(tokio::spawn(Arc::clone(self).dial_http2(worker, dial()))),
            Checkout::Wait => {}
        }
        let ended = || Err(Arc::new(ConnectError::Ended(self.address)));
        let _pending = self.pend(&dial)?;
        let Some(receiver) = receiver else { return ended() };
        let held = self.hold();
        let connection = receiver.await.unwrap_or_else(|_| ended())?;
        Ok(Http2 { held: held.is_some(), ..connection })
    }

    /// Dials for as long as somebody waits.
    async fn dial_http2(self: Arc<Self>, worker: usize, dial: Dial) {
        let pool = &self.pools[worker];
        let mut again = true;
        while again {
            let mut error = None;
            let began = Instant::now();
            let since = pool.http2(|shared| shared.first().map(|waiter| waiter.since)).unwrap_or(began);
            let dialled = match dial.http2_since(&self, since).await {
                Ok((sender, seat)) => {
                    let pooled = pool.opened(&dial.metrics, &self.service, PoolClose::Peer);
                    let until = self.until();
                    let connection = SharedConnection { sender, pooled: Arc::new(pooled), until, seat };
                    pool.http2(|shared| shared.dialled(connection, Instant::now()))
                }
                Err(cause) => {
                    // Who came later waits for the next.
                    let by = cause.waited_from().unwrap_or(began);
                    error = Some(Arc::new(cause));
                    pool.http2(|shared| shared.failed(|waiter| waiter.since <= by))
                }
            };
            let Dialled { served, failed, again: more } = dialled;
            for served in served {
                self.serve_http2(worker, served);
            }
            self.make_room_if_short(worker);
            let error = error.unwrap_or_else(|| Arc::new(ConnectError::Closed(self.address)));
            for waiter in failed {
                let _ = waiter.sender.send(Err(Arc::clone(&error)));
            }
            again = more;
        }
    }

    fn placed(self: &Arc<Self>, worker: usize, place: shared::Place<SharedConnection>) -> Http2 {
        let shared::Place { id, connection } = place;
        let place = Place { endpoint: Arc::clone(self), worker, id: Some(id) };
        Http2 { sender: connection.sender, place, held: false }
    }

    /// Gives a place to who waited for it; when nobody does any more, to the next.
    fn serve_http2(self: &Arc<Self>, worker: usize, served: Served) {
        let mut next = Some(served);
        while let Some(shared::Served { waiter, place }) = next {
            next = match waiter.sender.send(Ok(self.placed(worker, place))) {
                Ok(()) | Err(Err(_)) => None,
                Err(Ok(mut unwanted)) => unwanted.place.finish(),
            };
        }
    }

    /// Drops what has been idle for longer than `configured`, or than the server allows; the worker's sweep calls it.
    pub fn sweep(&self, worker: usize, configured: Duration) {
        let said = self.room.said().idle_timeout.map(|_| self.idle_timeout(configured));
        self.pools[worker].sweep(Instant::now(), said.unwrap_or(configured), said);
    }

    /// Connections that are idle or shared.
    pub fn pooled(&self) -> usize {
        self.pools.iter().map(Pool::connections).sum()
    }
}

/// `time`, give or take a tenth.
pub fn jittered(time: Duration) -> Duration {
    let seconds = time.as_secs_f64() * rand::random_range(0.9..1.1);
    Duration::try_from_secs_f64(seconds).unwrap_or(time)
}

// === impl Kept ===

impl Kept {
    fn is_old(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now >= until)
    }
}

// === impl Place ===

impl Place {
    /// Gives the place back; it may be somebody's.
    fn finish(&mut self) -> Option<Served> {
        let id = self.id.take()?;
        self.endpoint.pools[self.worker].http2(|shared| shared.finish(id, Instant::now()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match self.finish() {
            Some(served) => self.endpoint.serve_http2(self.worker, served),
            // Its connection may serve nobody now.
            None => self.endpoint.make_room_if_short(self.worker),
        }
    }
}

// === impl Http1Waiter ===

impl Waiter for Http1Waiter {
    type Connection = Kept;

    fn give(self, Kept { client, pooled, way, until }: Kept, fresh: bool) -> Result<(), Kept> {
        match self.send(Ok(Http1 { client, pooled, reused: !fresh, way, until, held: false })) {
            Ok(()) | Err(Err(_)) => Ok(()),
            Err(Ok(Http1 { client, pooled, way, until, .. })) => Err(Kept { client, pooled, way, until }),
        }
    }

    fn is_gone(&self) -> bool {
        self.is_closed()
    }
}

#[cfg(test)]
mod tests;
