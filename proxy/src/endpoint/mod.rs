//! An endpoint: an address, whom to expect there, how busy it is, and the connections to it.
//!
//! The pool belongs to the endpoint, so that a connection cannot serve another identity; each worker has its own.
//! `forward` asks for connections; `control` makes endpoints and carries them over updates.

mod connect;
mod entry;
mod idle;
mod set;
mod shared;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tulle_certs::SpiffeId;

pub use connect::{ConnectError, Dial};
pub use set::{EndpointSet, Member};

use self::entry::{Entry, Ticket, Waiter};
use self::idle::IdleLimit;
use self::shared::{Checkout, Dialled, Shared};

use crate::balance::Load;
use crate::io::Io;
use crate::state::{ObjectName, Peer};
use crate::wire::{h1, http2};

/// Somewhere that requests and connections can be sent.
#[derive(Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub peer: Peer,
    pub workload: Option<ObjectName>,
    pub load: Load,
    pools: Box<[Pool]>,
}

/// One worker's connections to one endpoint.
#[derive(Debug, Default)]
struct Pool {
    http1: Mutex<Entry<Http1Waiter>>,
    /// For how long the server keeps idle HTTP/1 connections.
    idle_limit: Mutex<IdleLimit>,
    http2: Mutex<Shared<http2::Sender, Http2Waiter>>,
}

/// An HTTP/1 connection for one exchange.
#[derive(Debug)]
pub struct Http1 {
    pub client: h1::Client<Io>,
    /// It has served another request before.
    pub reused: bool,
}

/// A place for one stream on a shared HTTP/2 connection.
#[derive(Debug)]
pub struct Http2 {
    pub sender: http2::Sender,
    pub place: Place,
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
type Http2Waiter = oneshot::Sender<Result<Http2, Arc<ConnectError>>>;
type Served = shared::Served<http2::Sender, Http2Waiter>;

/// Told of each dial and how long it took, for metrics.
pub trait Observe: Fn(Result<(), &ConnectError>, Duration) + Clone + Send + 'static {}

impl<F: Fn(Result<(), &ConnectError>, Duration) + Clone + Send + 'static> Observe for F {}

// === impl Endpoint ===

impl Endpoint {
    pub fn new(address: SocketAddr, peer: Peer, workload: Option<ObjectName>, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            address,
            peer,
            workload,
            load: Load::default(),
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

    /// A connection for one exchange: idle, or given back by another request, or new, whichever there is first. It
    /// dials in a task of its own, so that a request that leaves does not take the dial with it.
    ///
    /// # Errors
    /// That of a dial which began after this request had come.
    pub async fn http1(
        self: &Arc<Self>,
        worker: usize,
        idle: Duration,
        dial: impl FnOnce() -> Dial,
        observe: impl Observe,
    ) -> Result<Http1, Arc<ConnectError>> {
        if let Some(client) = self.idle_http1(worker, idle) {
            return Ok(Http1 { client, reused: true });
        }
        let (sender, receiver) = oneshot::channel();
        let ticket = self.pools[worker].http1.lock().wait(sender);
        if let Some(ticket) = ticket {
            Self::spawn_http1(Arc::clone(self), worker, ticket, dial(), observe);
        }
        receiver.await.unwrap_or_else(|_| Err(Arc::new(ConnectError::Ended(self.address))))
    }

    fn spawn_http1(self: Arc<Self>, worker: usize, ticket: Ticket, dial: Dial, observe: impl Observe) {
        tokio::spawn(self.dial_http1(worker, ticket, dial, observe));
    }

    /// Dials for as long as more wait than others dial for.
    async fn dial_http1(self: Arc<Self>, worker: usize, ticket: Ticket, dial: Dial, observe: impl Observe) {
        let entry = &self.pools[worker].http1;
        let mut next = Some(ticket);
        while let Some(ticket) = next {
            let started = Instant::now();
            let dialled = dial.http1(&self).await;
            observe(dialled.as_ref().map(drop), started.elapsed());
            next = match dialled {
                Ok(client) => {
                    let [next, more] = entry.lock().dialled(ticket, client, Instant::now());
                    if let Some(more) = more {
                        let (dial, observe) = (dial.clone(), observe.clone());
                        Self::spawn_http1(Arc::clone(&self), worker, more, dial, observe);
                    }
                    next
                }
                Err(error) => {
                    let (told, more) = entry.lock().failed(ticket);
                    let error = Arc::new(error);
                    for waiter in told {
                        let _ = waiter.send(Err(Arc::clone(&error)));
                    }
                    more
                }
            };
        }
    }

    /// A connection that waits for its next request, the one used last first.
    fn idle_http1(&self, worker: usize, configured: Duration) -> Option<h1::Client<Io>> {
        let pool = &self.pools[worker];
        loop {
            let entry::Idle { mut connection, since } = pool.http1.lock().take()?;
            let now = Instant::now();
            match connection.closed() {
                Some(at) => pool.saw_close(at, since),
                None if now.saturating_duration_since(since) < pool.idle_limit(now, configured) => {
                    return Some(connection);
                }
                None => {}
            }
        }
    }

    /// Gives a connection back once its exchange is over.
    pub fn keep_http1(&self, worker: usize, mut connection: h1::Client<Io>) {
        let pool = &self.pools[worker];
        if let Some(timeout) = connection.idle_hint() {
            pool.idle_limit.lock().state(timeout);
        }
        if connection.closed().is_none() {
            pool.http1.lock().give(connection, Instant::now());
        }
    }

    /// A place on one of the worker's shared HTTP/2 connections; one dial serves all who wait for it, and so does
    /// its error.
    ///
    /// # Errors
    /// The dial's own.
    pub async fn http2(
        self: &Arc<Self>,
        worker: usize,
        dial: impl FnOnce() -> Dial,
        observe: impl Observe,
    ) -> Result<Http2, Arc<ConnectError>> {
        let mut receiver = None;
        let checkout = self.pools[worker].http2.lock().checkout(|| {
            let (sender, waits) = oneshot::channel();
            receiver = Some(waits);
            sender
        });
        match checkout {
            Checkout::Ready(place) => return Ok(self.placed(worker, place)),
            Checkout::Dial => drop(tokio::spawn(Arc::clone(self).dial_http2(worker, dial(), observe))),
            Checkout::Wait => {}
        }
        let ended = || Err(Arc::new(ConnectError::Ended(self.address)));
        match receiver {
            Some(receiver) => receiver.await.unwrap_or_else(|_| ended()),
            None => ended(),
        }
    }

    /// Dials for as long as somebody waits.
    async fn dial_http2(self: Arc<Self>, worker: usize, dial: Dial, observe: impl Observe) {
        let mut again = true;
        while again {
            let started = Instant::now();
            let dialled = dial.http2(&self).await;
            observe(dialled.as_ref().map(drop), started.elapsed());
            let mut error = None;
            let dialled = {
                let mut shared = self.pools[worker].http2.lock();
                match dialled {
                    Ok(sender) => shared.dialled(sender, Instant::now()),
                    Err(cause) => {
                        error = Some(Arc::new(cause));
                        shared.failed()
                    }
                }
            };
            let Dialled { served, failed, again: more } = dialled;
            for served in served {
                self.serve_http2(worker, served);
            }
            let error = error.unwrap_or_else(|| Arc::new(ConnectError::Closed(self.address)));
            for waiter in failed {
                let _ = waiter.send(Err(Arc::clone(&error)));
            }
            again = more;
        }
    }

    fn placed(self: &Arc<Self>, worker: usize, place: shared::Place<http2::Sender>) -> Http2 {
        let shared::Place { id, connection: sender } = place;
        Http2 { sender, place: Place { endpoint: Arc::clone(self), worker, id: Some(id) } }
    }

    /// Gives a place to who waited for it; when nobody does any more, to the next.
    fn serve_http2(self: &Arc<Self>, worker: usize, served: Served) {
        let mut next = Some(served);
        while let Some(shared::Served { waiter, place }) = next {
            next = match waiter.send(Ok(self.placed(worker, place))) {
                Ok(()) | Err(Err(_)) => None,
                Err(Ok(mut unwanted)) => unwanted.place.finish(),
            };
        }
    }

    /// Drops what has been idle for longer than `configured`, or than the server allows; the worker's sweep calls it.
    pub fn sweep(&self, worker: usize, configured: Duration) {
        let pool = &self.pools[worker];
        let now = Instant::now();
        let mut closed = Vec::new();
        let limit = pool.idle_limit(now, configured);
        pool.http1.lock().retain(|idle| match idle.connection.closed() {
            Some(at) => {
                closed.push((at, idle.since));
                false
            }
            None => now.saturating_duration_since(idle.since) < limit,
        });
        for (at, since) in closed {
            pool.saw_close(at, since);
        }
        let expired = pool.http2.lock().sweep(now);
        drop(expired);
    }

    /// Connections that are idle or shared, for metrics.
    pub fn pooled(&self) -> usize {
        self.pools.iter().map(|pool| pool.http1.lock().idle() + pool.http2.lock().connections()).sum()
    }
}

// === impl Pool ===

impl Pool {
    fn idle_limit(&self, now: Instant, configured: Duration) -> Duration {
        self.idle_limit.lock().at(now, configured)
    }

    /// The server closed a connection at `at` that had been idle from `since` on.
    fn saw_close(&self, at: Instant, since: Instant) {
        self.idle_limit.lock().observe(at, at.saturating_duration_since(since));
    }
}

// === impl Place ===

impl Place {
    /// Gives the place back; it may be somebody's.
    fn finish(&mut self) -> Option<Served> {
        let id = self.id.take()?;
        self.endpoint.pools[self.worker].http2.lock().finish(id, Instant::now())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(served) = self.finish() {
            self.endpoint.serve_http2(self.worker, served);
        }
    }
}

impl shared::Connection for http2::Sender {
    fn is_open(&self) -> bool {
        Self::is_open(self)
    }

    fn max_streams(&self) -> usize {
        Self::max_streams(self)
    }
}

// === impl Http1Waiter ===

impl Waiter for Http1Waiter {
    type Connection = h1::Client<Io>;

    fn give(self, client: h1::Client<Io>, fresh: bool) -> Result<(), h1::Client<Io>> {
        match self.send(Ok(Http1 { client, reused: !fresh })) {
            Ok(()) | Err(Err(_)) => Ok(()),
            Err(Ok(http1)) => Err(http1.client),
        }
    }

    fn is_gone(&self) -> bool {
        self.is_closed()
    }
}

#[cfg(test)]
mod tests;
