//! An endpoint: an address, whom to expect there, how busy it is, and the connections to it.
//!
//! The pool belongs to the endpoint, so that a connection cannot serve another identity; each worker has its own.
//! `forward` asks for connections; `control` makes endpoints and carries them over updates.

mod connect;
mod set;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tulle_certs::SpiffeId;

pub use connect::{ConnectError, Dial};
pub use set::{EndpointSet, Member};

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
    http1: Mutex<Vec<Idle>>,
    http2: Mutex<Option<http2::Sender>>,
    /// Held while a shared connection is being made, so that one dial serves all who wait.
    dialling: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Idle {
    connection: h1::Client,
    since: Instant,
}

/// Idle connections that one worker keeps to one endpoint, at most.
const MAX_IDLE: usize = 512;

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

    /// A connection that waits for its next request, the one used last first; `None`: dial one.
    pub fn idle_http1(&self, worker: usize, limit: Duration) -> Option<h1::Client> {
        let limit = self.idle_limit(limit);
        loop {
            let Idle { mut connection, since } = self.pools[worker].http1.lock().pop()?;
            let age = since.elapsed();
            if !connection.is_alive() {
                self.learn_idle(age);
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
        let mut pool = self.pools[worker].http1.lock();
        if pool.len() < MAX_IDLE {
            pool.push(Idle { connection, since: Instant::now() });
        }
    }

    /// The worker's shared HTTP/2 connection, dialled by `dial` unless there is an open one.
    ///
    /// # Errors
    /// The dial's own.
    pub async fn http2(&self, worker: usize, dial: Dial<'_>) -> Result<http2::Sender, ConnectError> {
        let pool = &self.pools[worker];
        if let Some(sender) = pool.open_http2() {
            return Ok(sender);
        }
        let _dialling = pool.dialling.lock().await;
        if let Some(sender) = pool.open_http2() {
            return Ok(sender);
        }
        let sender = dial.http2(self).await?;
        *pool.http2.lock() = Some(sender.clone());
        Ok(sender)
    }

    /// Drops what has been idle for longer than `limit`; the worker's sweep calls it.
    pub fn sweep(&self, worker: usize, limit: Duration) {
        let limit = self.idle_limit(limit);
        let pool = &self.pools[worker];
        let mut shortest = None;
        pool.http1.lock().retain_mut(|idle| {
            let age = idle.since.elapsed();
            let alive = idle.connection.is_alive();
            if !alive {
                shortest = Some(shortest.map_or(age, |s: Duration| s.min(age)));
            }
            alive && age < limit
        });
        if let Some(age) = shortest {
            self.learn_idle(age);
        }
        pool.http2.lock().take_if(|sender| !sender.is_open());
    }

    /// Connections that are idle or shared, for metrics.
    pub fn pooled(&self) -> usize {
        self.pools.iter().map(|p| p.http1.lock().len() + usize::from(p.http2.lock().is_some())).sum()
    }

    fn idle_limit(&self, configured: Duration) -> Duration {
        match self.learned_idle.load(Ordering::Relaxed) {
            0 => configured,
            learned => configured.min(Duration::from_millis(learned) * 4 / 5),
        }
    }

    /// The server was seen to close, or says that it closes, a connection after it was idle for `limit`.
    fn learn_idle(&self, limit: Duration) {
        let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        let known = self.learned_idle.load(Ordering::Relaxed);
        if known == 0 || millis < known {
            self.learned_idle.store(millis, Ordering::Relaxed);
        }
    }
}

// === impl Pool ===

impl Pool {
    fn open_http2(&self) -> Option<http2::Sender> {
        self.http2.lock().as_ref().filter(|sender| sender.is_open()).cloned()
    }
}
