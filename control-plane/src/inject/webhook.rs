//! The webhook over TLS: `POST /inject` for the API server, `/ready` for who looks.
//!
//! Anybody who reaches the port may ask; what is answered says nothing but what is known of namespaces' labels, and costs a bounded time and memory. A
//! connection is one of so many, and for one more the oldest is closed, first of those that have never had a Pod answered. All bodies together are one of so many
//! bytes, half of which are for the others; only what a review is about is read before its turn, since JSON taken apart is many times larger: so many have their
//! turn at a time, and the others wait for a while, and are refused then. The API server keeps connections open, so that a new certificate
//! is for new ones.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_rustls::TlsAcceptor;

use super::review::{self, Malformed, Outcome, Reviewed};
use super::{Namespace, Reason, Settings};
use crate::metrics::Metrics;
use crate::youngest::{Proof, Youngest};

/// Connections at a time: API servers have a few each.
const CONNECTIONS: usize = 256;
/// What a connection has at least before it must go for another.
const AT_LEAST: Duration = Duration::from_secs(1);
/// How long a handshake may take, and then the head of a request, its body, and its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The API server takes no larger objects (etcd's limit is 1.5 MiB), and the review of a new one holds one.
const MAX_BODY: usize = 3 << 20;
/// Of all bodies together: so much for connections that have had a Pod answered, and so much for all others.
const BODIES: usize = 16 << 20;
/// Reviews that are taken apart at a time. Each is done within milliseconds, and takes at most some 60 MB.
const REVIEWS: usize = 2;
/// How long a review waits for its turn: the API server, which waits 5 s unless it is told otherwise, is answered before it gives up.
const TURN: Duration = Duration::from_secs(3);
/// Requests of a connection at a time.
const STREAMS: u32 = 8;
/// What may wait of a body, and of a connection, before it is read.
const WINDOW: u32 = 64 << 10;

/// What is known of namespaces.
pub trait Namespaces: Send + Sync + 'static {
    /// One by name; `None`: it is not known (yet).
    fn namespace(&self, name: &str) -> impl Future<Output = Option<Namespace>> + Send;
}

/// Answers reviews.
pub struct Webhook<N> {
    /// What holds for all Pods.
    pub settings: Settings,
    /// Whose labels decide.
    pub namespaces: N,
    /// What is counted.
    pub metrics: Metrics,
    /// The bytes of bodies that may still come, from known connections and from others.
    known: Semaphore,
    others: Semaphore,
    /// Of those that are taken apart.
    turns: Semaphore,
}

/// Serves until it is dropped. `tls`: what with, once there is something; connections from before are closed.
pub async fn serve<N: Namespaces>(
    listener: TcpListener,
    tls: watch::Receiver<Option<Arc<ServerConfig>>>,
    webhook: Arc<Webhook<N>>,
) {
    let mut connections = Youngest::new(CONNECTIONS, AT_LEAST);
    loop {
        connections.room().await;
        let Ok((stream, client)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(config) = tls.borrow().clone() else {
            tracing::debug!(%client, "closed a connection to the webhook: there is no certificate yet");
            continue;
        };
        let proof = Proof::default();
        let task = connection(stream, client, config, Arc::clone(&webhook), proof.clone());
        connections.spawn_proving(task, proof);
    }
}

async fn connection<N: Namespaces>(
    stream: TcpStream,
    client: SocketAddr,
    config: Arc<ServerConfig>,
    webhook: Arc<Webhook<N>>,
    proof: Proof,
) {
    let secured = tokio::time::timeout(PATIENCE, TlsAcceptor::from(config).accept(stream)).await;
    let stream = match secured {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%client, %error, "a connection to the webhook did not become TLS");
            return;
        }
        Err(_) => return,
    };
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(move |request| {
        let (webhook, proof) = (Arc::clone(&webhook), proof.clone());
        async move { Ok::<_, Infallible>(webhook.answer(request, &proof).await) }
    });
    let io = TokioIo::new(stream);
    let served = match is_http2 {
        true => {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(Some(PATIENCE))
                .keep_alive_timeout(PATIENCE)
                .max_concurrent_streams(STREAMS)
                .initial_stream_window_size(WINDOW)
                .initial_connection_window_size(2 * WINDOW)
                .serve_connection(io, service)
                .await
        }
        false => {
            hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(WINDOW as usize)
                .serve_connection(io, service)
                .await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%client, %error, "a connection to the webhook ended early");
    }
}

// === impl Webhook ===

impl<N: Namespaces> Webhook<N> {
    /// Of all of these.
    pub fn new(settings: Settings, namespaces: N, metrics: Metrics) -> Self {
        let [known, others] = [(); 2].map(|()| Semaphore::new(BODIES));
        Self { settings, namespaces, metrics, known, others, turns: Semaphore::new(REVIEWS) }
    }

    async fn answer(&self, request: Request<Incoming>, proof: &Proof) -> Response<Full<Bytes>> {
        let started = Instant::now();
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/ready") => text(StatusCode::OK, "ready\n"),
            (&Method::POST, "/inject") => {
                let budget = if proof.is_given() { &self.known } else { &self.others };
                let body = tokio::time::timeout(PATIENCE, read(request.into_body(), budget)).await;
                let late = || (StatusCode::REQUEST_TIMEOUT, "the body did not come in time".to_owned());
                match body.unwrap_or_else(|_| Err(late())) {
                    Ok((body, _its_part)) => self.review(&body, started, proof).await,
                    Err((status, why)) => {
                        let is_large = status == StatusCode::PAYLOAD_TOO_LARGE;
                        self.count(if is_large { "too_large" } else { "malformed" }, "", started);
                        text(status, format!("{why}\n"))
                    }
                }
            }
            (_, "/inject") => text(StatusCode::METHOD_NOT_ALLOWED, "/inject takes POST\n"),
            (_, "/ready") => text(StatusCode::METHOD_NOT_ALLOWED, "/ready takes GET and HEAD\n"),
            _ => text(StatusCode::NOT_FOUND, "there are POST /inject and GET /ready\n"),
        }
    }

    async fn review(&self, body: &[u8], started: Instant, proof: &Proof) -> Response<Full<Bytes>> {
        let namespace = match review::namespace_of(body) {
            Some(name) => self.namespaces.namespace(&name).await,
            None => None,
        };
        let Ok(Ok(_turn)) = tokio::time::timeout(TURN, self.turns.acquire()).await else {
            self.count("busy", "", started);
            tracing::warn!("the webhook has too many reviews to answer; its failure policy decides");
            return text(StatusCode::SERVICE_UNAVAILABLE, "there are too many reviews; ask again\n");
        };
        // From here on nothing is waited for.
        let review = match review::read(body) {
            Ok(review) => review,
            Err(large @ Malformed::TooLarge) => {
                self.count("too_large", "", started);
                tracing::warn!(error = %large, "the webhook cannot answer; its failure policy decides");
                return text(StatusCode::PAYLOAD_TOO_LARGE, format!("{large}\n"));
            }
            Err(malformed) => {
                self.count("malformed", "", started);
                tracing::warn!(error = %malformed, "the webhook was asked what is no review");
                return text(StatusCode::BAD_REQUEST, format!("{malformed}\n"));
            }
        };
        let reviewed = match review::review(&review, namespace.as_ref(), &self.settings) {
            Ok(reviewed) => reviewed,
            Err(unknown) => {
                self.count("failed", Reason::NamespaceUnknown.as_str(), started);
                tracing::warn!(error = %unknown, "the webhook cannot answer; its failure policy decides");
                return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{unknown}\n"));
            }
        };
        let Reviewed { answer, pod, outcome, reason, message, warnings } = reviewed;
        proof.give();
        let word = reason.map_or("", Reason::as_str);
        self.count(outcome.as_str(), word, started);
        match outcome {
            Outcome::Injected => tracing::info!(%pod, ?warnings, "injected a proxy"),
            Outcome::Left if reason.is_some_and(Reason::is_worth_telling) => {
                tracing::warn!(%pod, reason = word, ?warnings, "left a pod without a proxy: {message}");
            }
            Outcome::Left => tracing::debug!(%pod, reason = word, ?warnings, "left a pod as it is"),
            Outcome::Refused => tracing::warn!(%pod, reason = word, "refused a pod: {message}"),
        }
        let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
        let json = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response
    }

    fn count(&self, outcome: &str, reason: &str, started: Instant) {
        self.metrics.injections.with_label_values(&[outcome, reason]).inc();
        self.metrics.injection_duration.observe(started.elapsed().as_secs_f64());
    }
}

/// A body with its part of the budget, which it waits for; or what is answered in its place.
async fn read(
    mut body: Incoming,
    budget: &Semaphore,
) -> Result<(Vec<u8>, SemaphorePermit<'_>), (StatusCode, String)> {
    let unavailable = |_| (StatusCode::SERVICE_UNAVAILABLE, "the control plane ends".to_owned());
    let (mut bytes, mut part) = (Vec::new(), budget.acquire_many(0).await.map_err(unavailable)?);
    while let Some(frame) = body.frame().await {
        let cannot =
            |error: hyper::Error| (StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}"));
        let Ok(data) = frame.map_err(cannot)?.into_data() else { continue };
        let more = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if bytes.len() + data.len() > MAX_BODY {
            let why = format!("the body is larger than {MAX_BODY} bytes");
            return Err((StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        part.merge(budget.acquire_many(more).await.map_err(unavailable)?);
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, part))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests;
