//! An endpoint: an address, whom to expect there, how busy it is, and the connections to it.
//!
//! The pool belongs to the endpoint, so that a connection cannot serve another identity; each worker has its own.
//! `forward` asks for connections; `control` makes endpoints and carries them over updates.

mod connect;
mod entry;
mod set;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tulle_certs::SpiffeId;

pub use connect::{ConnectError, Dial};
pub use set::{EndpointSet, Member};

use self::entry::{Entry, Ticket, Waiter};

use crate::balance::Load;
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
    /// How long the server was seen to keep idle connections, in milliseconds; 0: not known.
    learned_idle: AtomicU64,
}

/// One worker's connections to one endpoint.
#[derive(Debug, Default)]
struct Pool {
    http1: Mutex<Entry<Http1Waiter>>,
    http2: Mutex<Shared>,
}

/// An HTTP/1 connection for one exchange.
#[derive(Debug)]
pub struct Http1 {
    pub client: h1::Client,
    /// It has served another request before.
    pub reused: bool,
}

type Http1Waiter = oneshot::Sender<Result<Http1, Arc<ConnectError>>>;
type Http2Waiter = oneshot::Sender<Result<http2::Sender, Arc<ConnectError>>>;

/// The HTTP/2 connection that all requests share, and who waits for the one dial.
#[derive(Debug, Default)]
struct Shared {
    connection: Option<http2::Sender>,
    waiting: Vec<Http2Waiter>,
    dialling: bool,
}

/// Told of each dial and how long it took, for metrics.
pub trait Observe: Fn(Result<(), &ConnectError>, Duration) + Clone + Send + 'static {}

impl<F: Fn(Result<(), &ConnectError>, Duration) + Clone + Send + 'static> Observe for F {}

/// A server that closes sooner after its last answer has restarted or failed: no idle limit is to be learned from that.
const LEAST_LEARNED: Duration = Duration::from_millis(500);

// === impl Endpoint ===

impl Endpoint {
    pub fn new(address: SocketAddr, peer: Peer, workload: Option<ObjectName>, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            address,
            peer,
            workload,
            load: Load::default(),
            pools: (0..workers).map(|_| Pool::default()).collect(),
            learned_idle: AtomicU64::new(0),
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
            tokio::spawn(Arc::clone(self).dial_http1(worker, ticket, dial(), observe));
        }
        receiver.await.unwrap_or_else(|_| Err(Arc::new(ConnectError::Ended(self.address))))
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
                Ok(client) => entry.lock().dialled(ticket, client, Instant::now()),
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
    fn idle_http1(&self, worker: usize, limit: Duration) -> Option<h1::Client> {
        let limit = self.idle_limit(limit);
        loop {
            let entry::Idle { mut connection, since } = self.pools[worker].http1.lock().take()?;
            let age = since.elapsed();
            if !connection.is_alive() {
                self.saw_close(age);
            } else if age < limit {
                return Some(connection);
            }
        }
    }

    /// Gives a connection back once its exchange is over.
    pub fn keep_http1(&self, worker: usize, connection: h1::Client) {
        if let Some(limit) = connection.idle_hint() {
            self.learn_idle(limit);
        }
        self.pools[worker].http1.lock().give(connection, Instant::now());
    }

    /// The worker's shared HTTP/2 connection; one dial serves all who wait for it, and so does its error.
    ///
    /// # Errors
    /// The dial's own.
    pub async fn http2(
        self: &Arc<Self>,
        worker: usize,
        dial: impl FnOnce() -> Dial,
        observe: impl Observe,
    ) -> Result<http2::Sender, Arc<ConnectError>> {
        let receiver = {
            let mut shared = self.pools[worker].http2.lock();
            if let Some(connection) = shared.connection.as_ref().filter(|connection| connection.is_open()) {
                return Ok(connection.clone());
            }
            let (sender, receiver) = oneshot::channel();
            shared.waiting.push(sender);
            if !shared.dialling {
                shared.dialling = true;
                tokio::spawn(Arc::clone(self).dial_http2(worker, dial(), observe));
            }
            receiver
        };
        receiver.await.unwrap_or_else(|_| Err(Arc::new(ConnectError::Ended(self.address))))
    }

    async fn dial_http2(self: Arc<Self>, worker: usize, dial: Dial, observe: impl Observe) {
        let started = Instant::now();
        let dialled = dial.http2(&self).await;
        observe(dialled.as_ref().map(drop), started.elapsed());
        let dialled = dialled.map_err(Arc::new);
        let waiting = {
            let mut shared = self.pools[worker].http2.lock();
            shared.dialling = false;
            shared.connection = dialled.as_ref().ok().cloned();
            std::mem::take(&mut shared.waiting)
        };
        for waiter in waiting {
            let _ = waiter.send(dialled.clone());
        }
    }

    /// Drops what has been idle for longer than `limit`; the worker's sweep calls it.
    pub fn sweep(&self, worker: usize, limit: Duration) {
        let limit = self.idle_limit(limit);
        let pool = &self.pools[worker];
        let mut shortest = None;
        pool.http1.lock().retain(|idle| {
            let age = idle.since.elapsed();
            let alive = idle.connection.is_alive();
            if !alive {
                shortest = Some(shortest.map_or(age, |s: Duration| s.min(age)));
            }
            alive && age < limit
        });
        if let Some(age) = shortest {
            self.saw_close(age);
        }
        pool.http2.lock().connection.take_if(|connection| !connection.is_open());
    }

    /// Connections that are idle or shared, for metrics.
    pub fn pooled(&self) -> usize {
        let pooled =
            |pool: &Pool| pool.http1.lock().idle() + usize::from(pool.http2.lock().connection.is_some());
        self.pools.iter().map(pooled).sum()
    }

    fn idle_limit(&self, configured: Duration) -> Duration {
        match self.learned_idle.load(Ordering::Relaxed) {
            0 => configured,
            learned => configured.min(Duration::from_millis(learned) * 4 / 5),
        }
    }

    /// The server closed a connection after it was idle for `age`.
    fn saw_close(&self, age: Duration) {
        if age >= LEAST_LEARNED {
            self.learn_idle(age);
        }
    }

    /// The server closes connections, as was seen or as it says, after they were idle for `limit`.
    fn learn_idle(&self, limit: Duration) {
        let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        let known = self.learned_idle.load(Ordering::Relaxed);
        if known == 0 || millis < known {
            self.learned_idle.store(millis, Ordering::Relaxed);
        }
    }
}

// === impl Http1Waiter ===

impl Waiter for Http1Waiter {
    type Connection = h1::Client;

    fn give(self, client: h1::Client, fresh: bool) -> Result<(), h1::Client> {
        match self.send(Ok(Http1 { client, reused: !fresh })) {
            Ok(()) | Err(Err(_)) => Ok(()),
            Err(Ok(http1)) => Err(http1.client),
        }
    }

    fn is_gone(&self) -> bool {
        self.is_closed()
    }
}
