//! Servers that answer with their names, and clients that count who answered (R14, R15, R24).

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Wire;
use crate::app::{App, Body, full};
use crate::load::{Dial, Speech};

/// A server that says who it is.
#[derive(Debug)]
pub struct Named {
    pub how: Arc<How>,
    pub app: App,
}

/// How a server answers.
#[derive(Debug)]
pub struct How {
    pub status: AtomicU16,
    /// The status is that of each so manieth answer, and the others' is 200.
    pub each: AtomicU64,
    /// Requests so far, but for `/hold`.
    pub asked: AtomicU64,
    /// Milliseconds before each.
    pub delay: AtomicU64,
    /// Requests for `/hold` are answered one for each that this lets go, in no order.
    pub released: watch::Sender<u64>,
    pub held: AtomicU64,
}

/// How many were answered by whom.
pub type Counts = BTreeMap<String, usize>;

/// Clients of one application, each of which has one request at a time.
#[derive(Debug)]
pub struct Clients {
    speech: Speech,
    all: Vec<Client>,
}

/// A client's connection.
#[derive(Debug)]
enum Client {
    Http1(Wire),
    Http2(SendRequest<Body>),
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Who answers a GET over HTTP/1, and with which status.
pub async fn ask(wire: &mut Wire, path: &str, fields: &str) -> (u16, String) {
    wire.send(format!("GET {path} HTTP/1.1\r\nhost: shop\r\n{fields}\r\n")).await;
    let (head, body) = wire.response().await;
    (head.status(), String::from_utf8(body).unwrap())
}

/// Who answers so many, one after the other, on one connection.
///
/// # Panics
/// If one is not answered with 200.
pub async fn counts(wire: &mut Wire, requests: usize) -> Counts {
    let mut counts = Counts::new();
    for _ in 0..requests {
        let (status, by) = ask(wire, "/", "").await;
        assert_eq!(status, 200, "{by}");
        *counts.entry(by).or_default() += 1;
    }
    counts
}

/// Where so many users are, each by its `x-user`.
pub async fn places(wire: &mut Wire, users: usize) -> Vec<String> {
    let mut places = Vec::new();
    for user in 0..users {
        places.push(ask(wire, "/", &format!("x-user: {user}\r\n")).await.1);
    }
    places
}

/// The part of them that are elsewhere than before.
pub fn moved(before: &[String], after: &[String]) -> f64 {
    before.iter().zip(after).filter(|(a, b)| a != b).count() as f64 / before.len() as f64
}

/// A connection of HTTP/2.
///
/// # Panics
/// If there is none to be had.
pub async fn http2(to: &Dial) -> SendRequest<Body> {
    let stream = to.connect().await.unwrap();
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A gRPC call's status, and who answers it.
///
/// # Panics
/// If it has no answer.
pub async fn call(sender: &mut SendRequest<Body>) -> (String, String) {
    let request = Request::post("http://shop/shop.Orders/Get").header("te", "trailers");
    let request = request.header("content-type", "application/grpc").body(full("")).unwrap();
    let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    // The proxy's own answers have none.
    let status = answer.trailers().map(|trailers| trailers[GRPC_STATUS].to_str().unwrap().to_owned());
    (status.unwrap_or_default(), String::from_utf8(answer.to_bytes().to_vec()).unwrap())
}

// === impl Named ===

impl Named {
    /// Which speaks HTTP/2, also gRPC's, or HTTP/1.
    pub fn start(listener: TcpListener, http2: bool, name: &str) -> Self {
        let how = Arc::<How>::default();
        let answer = {
            let (name, how) = (name.to_owned(), Arc::clone(&how));
            move |request: Request<Incoming>| {
                let (name, how) = (name.clone(), Arc::clone(&how));
                async move { how.answer(&request, &name).await }
            }
        };
        let app = if http2 { App::http2_on(listener, answer) } else { App::http1_on(listener, answer) };
        Self { how, app }
    }
}

// === impl How ===

impl Default for How {
    fn default() -> Self {
        Self {
            status: AtomicU16::new(200),
            each: AtomicU64::new(1),
            asked: AtomicU64::default(),
            delay: AtomicU64::default(),
            released: watch::Sender::new(0),
            held: AtomicU64::default(),
        }
    }
}

impl How {
    async fn answer(&self, request: &Request<Incoming>, name: &str) -> Response<Body> {
        if request.uri().path() == "/hold" {
            let turn = self.held.fetch_add(1, Relaxed);
            let _ = self.released.subscribe().wait_for(|released| *released > turn).await;
            return Response::new(full(name.to_owned()));
        }
        let delay = self.delay.load(Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        let asked = self.asked.fetch_add(1, Relaxed);
        let is_its_turn = asked.is_multiple_of(self.each.load(Relaxed));
        let status = if is_its_turn { self.status.load(Relaxed) } else { 200 };
        if !request.headers().contains_key("te") {
            return Response::builder().status(status).body(full(name.to_owned())).unwrap();
        }
        // gRPC tells it last.
        let status = if status == 200 { "0" } else { "14" };
        let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static(status))]);
        let body = full(name.to_owned()).with_trailers(async move { Some(Ok(trailers)) });
        Response::new(body.boxed())
    }
}

// === impl Clients ===

impl Clients {
    /// So many of them, which share one connection if it is HTTP/2.
    ///
    /// # Panics
    /// If there is none to be had.
    pub async fn connect(to: &Dial, speech: Speech, count: usize) -> Self {
        let mut all = Vec::new();
        if speech == Speech::Http1 {
            for _ in 0..count {
                all.push(Client::Http1(Wire::new(to.connect().await.unwrap())));
            }
        } else {
            let sender = http2(to).await;
            all.extend((0..count).map(|_| Client::Http2(sender.clone())));
        }
        Self { speech, all }
    }

    /// Who answers one of them.
    ///
    /// # Errors
    /// The status, if it is not that all is well.
    pub async fn ask(&mut self) -> Result<String, String> {
        self.all[0].ask(self.speech).await
    }

    /// Who answers so many requests of theirs, each of which sends its next once the last is answered.
    ///
    /// # Panics
    /// If one is answered otherwise than that all is well.
    pub async fn counts(&mut self, requests: usize) -> Counts {
        let (each, speech) = (requests / self.all.len(), self.speech);
        let mut running = JoinSet::new();
        for mut client in self.all.drain(..) {
            running.spawn(async move {
                let mut counts = Counts::new();
                for _ in 0..each {
                    *counts.entry(client.ask(speech).await.unwrap()).or_default() += 1;
                }
                (client, counts)
            });
        }
        let mut all = Counts::new();
        for (client, counts) in running.join_all().await {
            self.all.push(client);
            for (by, count) in counts {
                *all.entry(by).or_default() += count;
            }
        }
        all
    }
}

impl Client {
    async fn ask(&mut self, speech: Speech) -> Result<String, String> {
        let (is_well, status, by) = match self {
            Self::Http1(wire) => {
                let (status, by) = ask(wire, "/", "").await;
                (status == 200, status.to_string(), by)
            }
            Self::Http2(sender) if speech == Speech::Grpc => {
                let (status, by) = call(sender).await;
                (status == "0", status, by)
            }
            Self::Http2(sender) => {
                let request = Request::get("http://shop/").body(full("")).unwrap();
                let response = sender.send_request(request).await.unwrap();
                let status = response.status();
                let body = response.into_body().collect().await.unwrap();
                let by = String::from_utf8(body.to_bytes().to_vec()).unwrap();
                (status == 200, status.to_string(), by)
            }
        };
        if is_well { Ok(by) } else { Err(format!("{status}: {by}")) }
    }
}
