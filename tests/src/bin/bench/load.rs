//! The load generator: a thread with as many connections as asked for, and what it saw.
//!
//! Closed loop: each connection (or stream) sends its next request when the last was answered; tells throughput and
//! cost. Open loop: requests are due at a fixed rate whatever the answers do, and a latency counts from the moment
//! when its request was due, so that a stall is seen by every request that it delays (no coordinated omission).

pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod tcp;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Requests on connections that are kept.
    Http1,
    /// A connection for each request.
    Http1New,
    /// Requests on so many streams of each connection.
    Http2 { streams: usize },
    /// Unary calls on so many streams of each connection.
    Grpc { streams: usize },
    /// A hundred bytes and their echo.
    Tcp,
    /// The same with a connection for each.
    TcpNew,
}

/// How much to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) traffic: Traffic,
    pub(crate) connections: usize,
    pub(crate) pace: Pace,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// When the last was answered.
    Closed,
    /// So many per second, whatever the answers do.
    Rate(u32),
    /// When the last was answered, but no more than were granted ([`Load::grant`]).
    Granted,
}

/// Load that is under way.
pub(crate) struct Load {
    shared: Arc<Shared>,
    thread: JoinHandle<Histogram<u64>>,
}

/// What was seen of a load.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Latencies in nanoseconds.
    pub(crate) latencies: Histogram<u64>,
    pub(crate) failed: u64,
    /// The last failure.
    pub(crate) error: Option<String>,
}

#[derive(Default)]
struct Shared {
    answered: AtomicU64,
    failed: AtomicU64,
    recording: AtomicBool,
    stop: AtomicBool,
    granted: Granted,
    error: std::sync::Mutex<Option<String>>,
}

/// What the tasks of the generator's thread share.
struct Generator {
    target: SocketAddr,
    shared: Arc<Shared>,
    pace: Pace,
    latencies: RefCell<Histogram<u64>>,
    /// Of an open loop: when requests were due that nobody has taken yet.
    due: Option<Due>,
    connected: Cell<usize>,
}

/// Requests that may be sent at [`Pace::Granted`].
struct Granted(Semaphore);

struct Due {
    times: RefCell<std::collections::VecDeque<Instant>>,
    waiting: Semaphore,
}

type Result<T> = std::io::Result<T>;

/// How long what is under way may take when the load is stopped.
const LAST: Duration = Duration::from_secs(1);
/// How long after a failure a connection is tried again.
const PAUSE: Duration = Duration::from_millis(20);

// === impl Load ===

impl Load {
    pub(crate) fn start(plan: Plan, target: SocketAddr) -> Self {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, generate(plan, target, of_thread))
        });
        Self { shared, thread }
    }

    /// Requests answered so far.
    pub(crate) fn answered(&self) -> u64 {
        self.shared.answered.load(Relaxed)
    }

    /// Lets so many more requests be sent.
    pub(crate) fn grant(&self, requests: usize) {
        self.shared.granted.0.add_permits(requests);
    }

    /// The last failure, if anything failed.
    pub(crate) fn failure(&self) -> Option<String> {
        self.shared.error.lock().expect("no panic").clone()
    }

    /// Whether latencies count from now on.
    pub(crate) fn record(&self, on: bool) {
        self.shared.recording.store(on, Relaxed);
    }

    pub(crate) fn stop(self) -> Seen {
        self.shared.stop.store(true, Relaxed);
        self.shared.granted.0.close();
        let latencies = self.thread.join().expect("the load generator's thread");
        let error = self.shared.error.lock().expect("no panic").take();
        Seen { latencies, failed: self.shared.failed.load(Relaxed), error }
    }
}

async fn generate(plan: Plan, target: SocketAddr, shared: Arc<Shared>) -> Histogram<u64> {
    let pace = plan.pace;
    let due =
        matches!(pace, Pace::Rate(_)).then(|| Due { times: RefCell::default(), waiting: Semaphore::new(0) });
    let latencies = RefCell::new(Histogram::new(3).expect("three digits"));
    let generator = Rc::new(Generator { target, shared, pace, latencies, due, connected: Cell::default() });
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..plan.connections {
        let generator = Rc::clone(&generator);
        tasks.spawn_local(async move {
            while !generator.stopped() {
                let ended = match plan.traffic {
                    Traffic::Http1 => http1::kept(&generator).await,
                    Traffic::Http1New => http1::fresh(&generator).await,
                    Traffic::Http2 { streams } => http2::requests(&generator, streams, false).await,
                    Traffic::Grpc { streams } => http2::requests(&generator, streams, true).await,
                    Traffic::Tcp => tcp::kept(&generator).await,
                    Traffic::TcpNew => tcp::fresh(&generator).await,
                };
                if let Err(error) = ended {
                    generator.failed(&error);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
    }
    if let Pace::Rate(rate) = pace {
        generator.schedule(rate).await.expect("a timer");
    }
    while !generator.stopped() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // What is under way ends: whoever resets a hundred streams at once is taken for an attacker, by the proxy's own peer too.
    let ended = async { while tasks.join_next().await.is_some() {} };
    drop(tokio::time::timeout(LAST, ended).await);
    generator.latencies.replace(Histogram::new(3).expect("three digits"))
}

/// Raises the number of files that this process and its children may have open; says what it came to.
pub(crate) fn raise_file_limit(wanted: u64) -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let hard = now.maximum.unwrap_or(u64::MAX);
    let raised = Rlimit { current: Some(wanted), maximum: Some(wanted.max(hard)) };
    if setrlimit(Resource::Nofile, raised).is_err() {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted.min(hard)), maximum: now.maximum });
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

// === impl Granted ===

impl Default for Granted {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

// === impl Generator ===

impl Generator {
    fn stopped(&self) -> bool {
        self.shared.stop.load(Relaxed)
    }

    /// When the next request is due: now, unless there is a rate. `None`: no more.
    async fn next(&self) -> Option<Instant> {
        if let Some(due) = &self.due {
            due.waiting.acquire().await.ok()?.forget();
            return due.times.borrow_mut().pop_front();
        }
        if self.pace == Pace::Granted {
            self.shared.granted.0.acquire().await.ok()?.forget();
        }
        (!self.stopped()).then(Instant::now)
    }

    fn answered(&self, since: Instant) {
        self.shared.answered.fetch_add(1, Relaxed);
        if self.shared.recording.load(Relaxed) {
            let nanoseconds = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.latencies.borrow_mut().record(nanoseconds).ok();
        }
    }

    fn failed(&self, error: &std::io::Error) {
        if !self.stopped() {
            self.shared.failed.fetch_add(1, Relaxed);
            *self.shared.error.lock().expect("no panic") = Some(error.to_string());
        }
    }

    /// A connection; from ever other loopback addresses, so that ports do not run out.
    async fn connect(&self) -> Result<TcpStream> {
        let number = self.connected.get();
        self.connected.set(number.wrapping_add(1));
        let stream = tcp::from_source(self.target, number).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Makes requests due at `rate` per second until the load is stopped.
    async fn schedule(&self, rate: u32) -> Result<()> {
        let Some(due) = &self.due else { return Ok(()) };
        let period = Duration::from_secs(1) / rate;
        let timer = timer(period)?;
        let mut at = Instant::now() + period;
        while !self.stopped() {
            let mut expired = [0; 8];
            timer.readable().await?.try_io(|fd| Ok(rustix::io::read(fd, &mut expired)?)).ok();
            for _ in 0..u64::from_ne_bytes(expired) {
                due.times.borrow_mut().push_back(at);
                due.waiting.add_permits(1);
                at += period;
            }
        }
        due.waiting.close();
        Ok(())
    }
}

/// tokio's own timers are no finer than a millisecond.
fn timer(period: Duration) -> Result<AsyncFd<OwnedFd>> {
    let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let period = Timespec { tv_sec: 0, tv_nsec: i64::from(period.subsec_nanos()) };
    timerfd_settime(&fd, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: period, it_value: period })?;
    #[expect(deprecated, reason = "its successor is unsafe; an owned descriptor never changes")]
    AsyncFd::new(fd)
}
