//! Traffic at a steady pace, by clients that behave well: what they lost, somebody else has lost.
//!
//! A well-behaved client asks on a connection for as long as that is offered, and on a new one after `connection: close`, a GOAWAY or the
//! end of an idle connection. It asks once more only where a GOAWAY says that its stream was not looked at (RFC 9113 §6.8): an
//! answer that is not the application's is lost. [`Orders`] is the application, and knows what it was asked twice.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::app::{App, Body};

/// What an application speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    Http1,
    Http2,
    Grpc,
}

/// What became of all requests.
#[derive(Debug, Default)]
pub struct Tally {
    asked: AtomicU64,
    lost: Mutex<Vec<String>>,
}

/// How often the application has seen each request.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Mutex<HashMap<String, u32>>>);

/// The application: answers what [`Load`] asks.
#[derive(Debug)]
pub struct Orders;

/// Whom an application dials, and from which network namespace.
#[derive(Clone)]
pub struct Dial {
    to: SocketAddr,
    socket: Arc<dyn Fn() -> std::io::Result<TcpSocket> + Send + Sync>,
}

/// One application's traffic to one service.
#[derive(Debug)]
pub struct Load {
    /// How many requests each lane still makes; `None`: for ever.
    left: watch::Sender<Option<u32>>,
    lanes: JoinSet<()>,
}

/// How many ask, how often, for how long.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Connections, each with one request at a time.
    pub lanes: u32,
    /// Requests a second, of all of them.
    pub rate: u32,
    /// How long a stream lasts; beside the lanes there is always one.
    pub stream: Duration,
}

type Full1 = Full<Bytes>;

/// A connection, once there is one.
enum Sender {
    Http1(http1::SendRequest<Full1>),
    Http2(http2::SendRequest<Full1>),
}

/// One message of gRPC, as it is framed.
const MESSAGE: &[u8] = b"\0\0\0\0\x02ok";
/// Attempts to have a request taken: a connection may end before it is, and then it was not asked.
const TAKEN: usize = 10;

// === impl Speech ===

impl Speech {
    pub const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Grpc];

    /// What a Service declares.
    pub const fn app_protocol(self) -> &'static str {
        match self {
            Self::Http1 => "http",
            Self::Http2 => "kubernetes.io/h2c",
            Self::Grpc => "grpc",
        }
    }

    /// A service's name.
    pub const fn service(self) -> &'static str {
        match self {
            Self::Http1 => "one",
            Self::Http2 => "two",
            Self::Grpc => "calls",
        }
    }
}

// === impl Dial ===

impl Dial {
    /// By sockets that `socket` makes.
    pub fn new(
        to: SocketAddr,
        socket: impl Fn() -> std::io::Result<TcpSocket> + Send + Sync + 'static,
    ) -> Self {
        Self { to, socket: Arc::new(socket) }
    }

    /// A connection.
    ///
    /// # Errors
    /// If there is none to be had.
    pub async fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = (self.socket)()?.connect(self.to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl From<SocketAddr> for Dial {
    fn from(to: SocketAddr) -> Self {
        Self::new(to, if to.is_ipv4() { TcpSocket::new_v4 } else { TcpSocket::new_v6 })
    }
}

impl std::fmt::Debug for Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dial({})", self.to)
    }
}

// === impl Seen ===

impl Seen {
    /// Requests that must not be repeated and were seen more than once.
    pub fn twice(&self) -> Vec<String> {
        let seen = self.0.lock().expect("no panic");
        seen.iter().filter(|(_, times)| **times > 1).map(|(path, times)| format!("{path}: {times}")).collect()
    }

    /// How many different ones.
    pub fn count(&self) -> usize {
        self.0.lock().expect("no panic").len()
    }

    /// Whether no request came to both.
    pub fn shares_nothing_with(&self, other: &Self) -> bool {
        let (one, other) = (self.0.lock().expect("no panic"), other.0.lock().expect("no panic"));
        one.keys().all(|path| !other.contains_key(path))
    }

    pub(crate) fn note(&self, method: &str, path: &str) {
        if method == "POST" {
            *self.0.lock().expect("no panic").entry(path.to_owned()).or_default() += 1;
        }
    }
}

// === impl Orders ===

impl Orders {
    /// A new one, of which `seen` is told.
    pub async fn start(speech: Speech, seen: &Seen) -> App {
        Self::start_on(TcpListener::bind("127.0.0.1:0").expect("a free port"), speech, seen)
    }

    /// As [`Orders::start`], on a listener of the test's own.
    pub fn start_on(listener: TcpListener, speech: Speech, seen: &Seen) -> App {
        let seen = seen.clone();
        let answer = move |request: Request<Incoming>| {
            let seen = seen.clone();
            async move {
                let path = request.uri().path_and_query().map_or("", |path| path.as_str());
                seen.note(request.method().as_str(), path);
                let stream = request.uri().path().strip_prefix("/stream/");
                let lasts = stream.and_then(|rest| rest.split('/').next()?.parse().ok());
                drop(request.into_body().collect().await);
                Self::answer(speech, lasts.map(Duration::from_millis))
            }
        };
        match speech {
            Speech::Http1 => App::http1_on(listener, answer),
            Speech::Http2 | Speech::Grpc => App::http2_on(listener, answer),
        }
    }

    /// One message; or one every 50 ms, for as long as it is asked for.
    fn answer(speech: Speech, lasts: Option<Duration>) -> Response<Body> {
        const EVERY: Duration = Duration::from_millis(50);
        let messages = lasts.map_or(1, |lasts| {
            1 + u32::try_from(lasts.as_millis() / EVERY.as_millis()).expect("not for weeks")
        });
        let begun = tokio::time::Instant::now();
        let messages = stream::unfold(0, move |sent| async move {
            if sent == messages {
                return None;
            }
            tokio::time::sleep_until(begun + EVERY * sent).await;
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(MESSAGE))), sent + 1))
        });
        let response = Response::builder();
        if speech != Speech::Grpc {
            return response.body(BodyExt::boxed(StreamBody::new(messages))).expect("a response");
        }
        let mut status = HeaderMap::new();
        status.insert("grpc-status", http::HeaderValue::from_static("0"));
        let messages = messages.chain(stream::once(async { Ok(Frame::trailers(status)) }));
        let response = response.header(header::CONTENT_TYPE, "application/grpc");
        response.body(BodyExt::boxed(StreamBody::new(messages))).expect("a response")
    }
}

// === impl Tally ===

impl Tally {
    /// How many requests were made.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Says what was lost, if anything was.
    ///
    /// # Panics
    /// Then.
    pub fn assert_nothing_lost(&self) {
        let lost = self.lost.lock().expect("no panic");
        assert!(
            lost.is_empty(),
            "{} of {} lost: {:#?}",
            lost.len(),
            self.asked(),
            &lost[..lost.len().min(20)]
        );
    }

    fn note(&self, result: Result<(), String>, what: impl FnOnce() -> String) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = result {
            self.lost.lock().expect("no panic").push(format!("{}: {error}", what()));
        }
    }
}

/// How often each of two sides is restarted, and under how much load (R6).
#[derive(Clone, Copy, Debug)]
pub struct Restarts {
    /// Of each side.
    pub number: usize,
    /// Of each of the three protocols.
    pub pace: Pace,
    /// What a proxy that drains is given.
    pub grace: &'static str,
}

// === impl Restarts ===

impl Restarts {
    /// Ten in the long form; in the short one so many, with this grace.
    pub fn of_this_run(number: usize, grace: &'static str) -> Self {
        let (number, grace) = if crate::long() { (10, "60s") } else { (number, grace) };
        Self { number, pace: Pace::of_restarts(), grace }
    }
}

// === impl Pace ===

impl Pace {
    /// Of each protocol while both sides are restarted (R6): a thousand requests a second of all three and streams of 30 s in the long form.
    fn of_restarts() -> Self {
        if crate::long() {
            Self { lanes: 16, rate: 334, stream: Duration::from_secs(30) }
        } else {
            Self { lanes: 6, rate: 67, stream: Duration::from_secs(2) }
        }
    }

    /// Says whether so many loads at this pace asked for less than nine tenths of what they should have in so long, in the long form, where the machine has nothing else to do.
    ///
    /// # Panics
    /// Then.
    pub fn assert_kept(&self, tally: &Tally, loads: usize, lasted: Duration) {
        let least = 0.9 * f64::from(self.rate) * loads as f64 * lasted.as_secs_f64();
        let asked = tally.asked() as f64;
        assert!(!crate::long() || asked >= least, "{asked} requests in {lasted:?}, and not {least}");
    }
}

// === impl Load ===

impl Load {
    /// Begins to ask `to`; `name` tells its requests from those of others.
    pub fn start(tally: &Arc<Tally>, speech: Speech, to: impl Into<Dial>, name: &str, pace: Pace) -> Self {
        let to = to.into();
        let (left, watched) = watch::channel(None);
        let mut lanes = JoinSet::new();
        let every = Duration::from_secs(1) * pace.lanes / pace.rate;
        for lane in 0..pace.lanes {
            let name = format!("{name}/{}/{lane}", speech.service());
            let ask = Lane {
                tally: Arc::clone(tally),
                speech,
                to: to.clone(),
                name,
                stream: None,
                left: watched.clone(),
            };
            // Not all at once.
            lanes.spawn(ask.run(every * lane / pace.lanes, every));
        }
        if !pace.stream.is_zero() {
            let (tally, name, stream) =
                (Arc::clone(tally), format!("{name}/{}/stream", speech.service()), Some(pace.stream));
            lanes.spawn(Lane { tally, speech, to, name, stream, left: watched }.run(Duration::ZERO, every));
        }
        Self { left, lanes }
    }

    /// Lets each lane ask so many times more, and waits until all have been answered.
    ///
    /// # Panics
    /// If a lane has.
    pub async fn leave_after(self, more: u32) {
        self.left.send_replace(Some(more));
        self.lanes.join_all().await;
    }
}

/// One after the other, on one connection.
struct Lane {
    tally: Arc<Tally>,
    speech: Speech,
    to: Dial,
    name: String,
    stream: Option<Duration>,
    left: watch::Receiver<Option<u32>>,
}

impl Lane {
    async fn run(mut self, first: Duration, every: Duration) {
        tokio::time::sleep(first).await;
        let mut pace = tokio::time::interval(every);
        let (mut sender, mut made, mut last) = (None, 0_u32, None);
        loop {
            pace.tick().await;
            if let Some(more) = *self.left.borrow_and_update() {
                // A stream that has begun is the last.
                let more = if self.stream.is_some() { 0 } else { more };
                if made >= *last.get_or_insert(made + more) {
                    return;
                }
            }
            let path = match self.stream {
                None => format!("/{}/{made}", self.name),
                Some(lasts) => format!("/stream/{}/{}/{made}", lasts.as_millis(), self.name),
            };
            // A stream is asked for by GET, since it is not counted.
            let method = match self.speech {
                Speech::Grpc => Method::POST,
                _ if made.is_multiple_of(2) => Method::GET,
                _ => Method::POST,
            };
            let answered = self.ask(&mut sender, &method, &path).await;
            self.tally.note(answered, || format!("{:?} {method} {path}", self.speech));
            made += 1;
        }
    }

    async fn ask(&self, sender: &mut Option<Sender>, method: &Method, path: &str) -> Result<(), String> {
        let (body, uri) = match self.speech {
            Speech::Http1 => (&b"hello"[..], path.to_owned()),
            Speech::Http2 => (&b"hello"[..], format!("http://orders{path}")),
            Speech::Grpc => (MESSAGE, format!("http://orders{path}")),
        };
        let body = if *method == Method::GET { &b""[..] } else { body };
        let mut request = Request::builder().method(method).uri(uri).header(header::HOST, "orders");
        if self.speech == Speech::Grpc {
            request = request.header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
        }
        let mut request =
            request.body(Full::new(Bytes::from_static(body))).map_err(|error| error.to_string())?;
        for _ in 0..TAKEN {
            let connection = match sender {
                Some(connection) => connection,
                None => sender.insert(self.connect().await?),
            };
            match connection.send(request).await {
                Ok(response) => return self.check(response).await,
                Err((Some(back), _)) => {
                    (request, *sender) = (back, None);
                }
                Err((None, error)) => {
                    *sender = None;
                    return Err(error);
                }
            }
        }
        Err(format!("no connection of {TAKEN} took it"))
    }

    async fn connect(&self) -> Result<Sender, String> {
        let stream = self.to.connect().await.map_err(|error| format!("connecting: {error}"))?;
        let io = TokioIo::new(stream);
        let failed = |error: hyper::Error| format!("connecting: {error}");
        Ok(match self.speech {
            Speech::Http1 => {
                let (sender, connection) = http1::handshake(io).await.map_err(failed)?;
                tokio::spawn(connection);
                Sender::Http1(sender)
            }
            Speech::Http2 | Speech::Grpc => {
                let handshake = http2::handshake(TokioExecutor::new(), io);
                let (sender, connection) = handshake.await.map_err(failed)?;
                tokio::spawn(connection);
                Sender::Http2(sender)
            }
        })
    }

    async fn check(&self, response: Response<Incoming>) -> Result<(), String> {
        let (head, body) = response.into_parts();
        let reason = head.headers.get("x-tulle-error").cloned();
        if head.status != 200 || reason.is_some() {
            return Err(format!("{} {reason:?} {:?}", head.status, head.headers.get("grpc-message")));
        }
        let body = body.collect().await.map_err(|error| format!("within the body: {error:?}"))?;
        let status = body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
        if self.speech == Speech::Grpc && status.as_ref().is_none_or(|status| status != "0") {
            return Err(format!("grpc-status {status:?}, {:?}", body.trailers()));
        }
        let messages = self.stream.map_or(1, |lasts| 1 + lasts.as_millis() / 50);
        let (has, whole) = (body.to_bytes().len() as u128, messages * MESSAGE.len() as u128);
        if has == whole { Ok(()) } else { Err(format!("{has} of {whole} bytes")) }
    }
}

// === impl Sender ===

impl Sender {
    /// The request back, where it was not taken.
    async fn send(
        &mut self,
        request: Request<Full1>,
    ) -> Result<Response<Incoming>, (Option<Request<Full1>>, String)> {
        let ready = match self {
            Self::Http1(sender) => sender.ready().await,
            Self::Http2(sender) => sender.ready().await,
        };
        if let Err(error) = ready {
            return Err((Some(request), error.to_string()));
        }
        // hyper's HTTP/2 tells of a GOAWAY also where it has sent the request, whose stream it then resets: what asks once more is another.
        let mut again = request.clone();
        *again.uri_mut() = format!("{}?again", request.uri()).parse().expect("a URI");
        let sent = match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let h2 = std::error::Error::source(error.error())
                .and_then(|source| source.downcast_ref::<h2::Error>());
            let left_behind = h2.is_some_and(|error| error.is_go_away() && error.is_remote());
            let untaken = error.take_message().or_else(|| left_behind.then_some(again));
            (untaken, format!("{:?}", error.error()))
        })
    }
}
