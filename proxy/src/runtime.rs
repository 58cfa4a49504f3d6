//! Threads: one for each core that the proxy may use, each with a runtime, listeners and connections of its own.
//!
//! A connection stays on the worker that serves it, with its upstream connections. The kernel shares accepted sockets
//! out by hash; when one worker is well ahead of another, it hands the raw socket over. Called by `app`.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use crate::accept::{self, Acceptor, OriginalDst};
use crate::forward::{Proxy, Worker, inbound, outbound, refused};
use crate::telemetry::Reason;
use crate::telemetry::metrics::Direction;

/// One worker's share of a listener, before it runs.
#[derive(Debug)]
pub struct Listener {
    pub socket: StdListener,
    pub original: OriginalDst,
    pub direction: Direction,
}

/// The worker threads; they end when this is dropped or [`Workers::stop`]ped.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    proxy: Arc<Proxy>,
}

/// What the workers know of each other.
#[derive(Debug)]
struct Peers {
    queues: Vec<mpsc::UnboundedSender<Raw>>,
    active: Vec<AtomicUsize>,
    limit: usize,
}

/// An accepted socket on its way to the worker that will serve it.
#[derive(Debug)]
struct Raw {
    stream: StdStream,
    client: SocketAddr,
    own: SocketAddr,
    original: OriginalDst,
    direction: Direction,
}

/// A connection counted on its worker.
struct Active {
    peers: Arc<Peers>,
    worker: usize,
}

/// How many connections a worker may be ahead of the least loaded before it hands new ones over; where that one has fewer, as
/// many as it has, so that few long connections are shared out too.
const LEAD: usize = 8;

/// Starts a worker for each element of `listeners`. `limit` bounds the connections of all workers together.
///
/// # Errors
/// When a thread or its runtime cannot be had.
pub fn start(proxy: &Arc<Proxy>, listeners: Vec<Vec<Listener>>, limit: usize) -> io::Result<Workers> {
    let (queues, inboxes): (Vec<_>, Vec<_>) = listeners.iter().map(|_| mpsc::unbounded_channel()).unzip();
    let active = listeners.iter().map(|_| AtomicUsize::new(0)).collect();
    let peers = Arc::new(Peers { queues, active, limit });
    let stop = watch::Sender::new(false);
    let (mut threads, mut runtimes) = (Vec::new(), Vec::new());
    for (index, (listeners, inbox)) in listeners.into_iter().zip(inboxes).enumerate() {
        let worker = Worker::new(index, Arc::clone(proxy));
        let (peers, mut stopped) = (Arc::clone(&peers), stop.subscribe());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtimes.push(runtime.metrics());
        let body = move || {
            runtime.block_on(async {
                tokio::select! {
                    error = run(&worker, listeners, inbox, &peers) => {
                        tracing::error!(worker = worker.index, ?error, "a worker ended");
                    }
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            });
        };
        threads.push(std::thread::Builder::new().name(format!("worker-{index}")).spawn(body)?);
    }
    proxy.telemetry.metrics.busy(runtimes);
    Ok(Workers { threads, stop, proxy: Arc::clone(proxy) })
}

async fn run(
    worker: &Arc<Worker>,
    listeners: Vec<Listener>,
    mut inbox: mpsc::UnboundedReceiver<Raw>,
    peers: &Arc<Peers>,
) -> io::Result<()> {
    let mut accepting = tokio::task::JoinSet::new();
    for Listener { socket, original, direction } in listeners {
        let acceptor = Acceptor::new(socket, original)?;
        accepting.spawn(accept(Arc::clone(worker), acceptor, direction, Arc::clone(peers)));
    }
    let mut sweep = tokio::time::interval(Duration::from_secs(1));
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(raw) = inbox.recv() => {
                let Raw { stream, client, own, original, direction } = raw;
                match TcpStream::from_std(stream) {
                    Ok(stream) => serve(worker, peers, stream, client, own, &original, direction),
                    // It is about this one connection: the worker goes on.
                    Err(error) => tracing::warn!(%error, %client, "cannot take a connection over"),
                }
            }
            due = sweep.tick() => {
                worker.metrics.lag(due.elapsed());
                worker.sweep();
            }
            Some(ended) = accepting.join_next() => return ended.map_err(io::Error::other),
        }
    }
}

async fn accept(worker: Arc<Worker>, acceptor: Acceptor, direction: Direction, peers: Arc<Peers>) {
    let own = acceptor.local_addr();
    loop {
        let (stream, client) = acceptor.next(|| worker.metrics.accept_error()).await;
        let target = peers.choose(worker.index);
        if target == worker.index {
            serve(&worker, &peers, stream, client, own, acceptor.original(), direction);
            continue;
        }
        worker.metrics.handed_over();
        match stream.into_std() {
            Ok(stream) => {
                let raw = Raw { stream, client, own, original: acceptor.original().clone(), direction };
                // A worker that is gone takes the whole proxy with it.
                drop(peers.queues[target].send(raw));
            }
            Err(error) => tracing::warn!(%error, "cannot hand a connection over"),
        }
    }
}

fn serve(
    worker: &Arc<Worker>,
    peers: &Arc<Peers>,
    stream: TcpStream,
    client: SocketAddr,
    own: SocketAddr,
    original: &OriginalDst,
    direction: Direction,
) {
    let Some(active) = Active::enter(peers, worker.index) else {
        let detail = format!("the proxy holds {} connections, its limit", peers.limit);
        refused(worker, direction, client, Reason::Overloaded, &detail);
        return crate::io::reset_on_drop(&stream);
    };
    let accepted = match accept::admit(stream, client, own, original, direction == Direction::Inbound) {
        Ok(accepted) => accepted,
        Err(error) => {
            return refused(worker, direction, client, Reason::LoopDetected, &error.to_string());
        }
    };
    let worker = Arc::clone(worker);
    let work = worker.proxy.drain.work();
    tokio::spawn(async move {
        let _counted = (active, work);
        match direction {
            Direction::Inbound => inbound::serve(&worker, accepted).await,
            Direction::Outbound => outbound::serve(&worker, accepted).await,
        }
    });
}

// === impl Peers ===

impl Peers {
    /// The worker that should serve the next connection which `own` has accepted.
    fn choose(&self, own: usize) -> usize {
        let load = |worker: usize| self.active[worker].load(Ordering::Relaxed);
        let least = (0..self.active.len()).min_by_key(|worker| load(*worker)).unwrap_or(own);
        if load(own) > load(least) + load(least).clamp(1, LEAD) { least } else { own }
    }
}

// === impl Active ===

impl Active {
    fn enter(peers: &Arc<Peers>, worker: usize) -> Option<Self> {
        let total: usize = peers.active.iter().map(|active| active.load(Ordering::Relaxed)).sum();
        if total >= peers.limit {
            return None;
        }
        peers.active[worker].fetch_add(1, Ordering::Relaxed);
        Some(Self { peers: Arc::clone(peers), worker })
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.peers.active[self.worker].fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Workers ===

impl Workers {
    /// Ends the workers, and whatever they still serve.
    pub fn stop(mut self) {
        self.proxy.stop();
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker had panicked");
            }
        }
    }

    /// Whether a worker has ended by itself, which it never should.
    pub fn is_broken(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where `connections` end up that the kernel all gives to the first of `workers`.
    fn shared_out(workers: usize, connections: usize) -> Vec<usize> {
        let active = (0..workers).map(|_| AtomicUsize::new(0)).collect();
        let peers = Peers { queues: Vec::new(), active, limit: usize::MAX };
        for _ in 0..connections {
            peers.active[peers.choose(0)].fetch_add(1, Ordering::Relaxed);
        }
        peers.active.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn connections_stay_unless_their_worker_is_well_ahead() {
        for (workers, connections, expected) in [
            (2, 1, vec![1, 0]),
            (2, 2, vec![2, 0]),
            (2, 3, vec![2, 1]),
            (2, 4, vec![3, 1]),
            (2, 5, vec![3, 2]),
            (2, 60, vec![34, 26]),
            (3, 6, vec![3, 2, 1]),
            (1, 9, vec![9]),
        ] {
            assert_eq!(shared_out(workers, connections), expected, "{connections} on {workers}");
        }
    }
}
