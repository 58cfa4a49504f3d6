//! HTTP/1 by hyper, until our own codec takes its place.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::{Body, BodyError, Processed, Upgrade};
use crate::drain;
use crate::io::Io;

/// Bounds on what a peer may send.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How large a head may be, in bytes.
    pub max_head: usize,
    /// How long a head may take, from its first byte.
    pub head_timeout: Duration,
}

/// A client's connection between two exchanges.
#[derive(Debug)]
pub struct Client {
    requests: SendRequest<Body>,
    /// When its task ended.
    closed: Arc<OnceLock<Instant>>,
    idle_hint: Option<Duration>,
}

/// A request that got no answer.
#[derive(Debug)]
pub struct SendError {
    pub source: hyper::Error,
    pub processed: Processed,
    /// Whether any byte of an answer came.
    pub answered: bool,
    /// Whether what came was no HTTP.
    pub malformed: bool,
    pub request: Option<Box<Request<Body>>>,
}

/// # Errors
/// What broke the connection.
pub async fn serve<H, F, B>(io: Io, limits: &Limits, handler: H, drain: &drain::Watch) -> hyper::Result<()>
where
    H: Fn(Request<Body>) -> F,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = bytes::Bytes, Error = BodyError> + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let response = handler(request.map(Body::incoming));
        async move { Ok::<_, Infallible>(response.await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(limits.max_head.max(8192))
        .preserve_header_case(true)
        .auto_date_header(false)
        .half_close(true)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result,
        () = drain.draining() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

// === impl Client ===

impl Client {
    /// # Errors
    /// Never, today.
    pub async fn new(io: Io, limits: &Limits) -> hyper::Result<Self> {
        let (sender, connection) = hyper::client::conn::http1::Builder::new()
            .preserve_header_case(true)
            .max_buf_size(limits.max_head.max(8192))
            .handshake(TokioIo::new(io))
            .await?;
        let closed = Arc::new(OnceLock::new());
        let ended = Arc::clone(&closed);
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "HTTP/1 connection to an endpoint ended");
            }
            let _ = ended.set(Instant::now());
        });
        Ok(Self { requests: sender, closed, idle_hint: None })
    }

    /// When it was closed, as closely as is known; `None` while it is open.
    pub fn closed(&self) -> Option<Instant> {
        match self.closed.get() {
            Some(at) => Some(*at),
            None => self.requests.is_closed().then(Instant::now),
        }
    }

    /// For how long the server says that it keeps the connection when idle: `Keep-Alive: timeout` of its last answer.
    pub fn idle_hint(&self) -> Option<Duration> {
        self.idle_hint
    }

    /// Sends a request; once its answer is over, the connection goes to `done`.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn send(
        mut self,
        request: Request<Body>,
        done: impl FnOnce(Self) + Send + 'static,
    ) -> Result<Response<Body>, SendError> {
        if let Err(source) = self.requests.ready().await {
            let request = Some(Box::new(request));
            return Err(SendError {
                source,
                processed: Processed::No,
                answered: false,
                malformed: false,
                request,
            });
        }
        let method = request.method().clone();
        match self.requests.try_send_request(request).await {
            Ok(response) if Upgrade::is_agreed(&method, response.status()) => {
                Ok(response.map(Body::incoming))
            }
            Ok(response) => {
                self.idle_hint = keep_alive(response.headers());
                Ok(response.map(|body| Body::incoming(body).then(move || done(self))))
            }
            Err(mut error) => {
                let request = error.take_message().map(Box::new);
                let source = error.into_error();
                let processed = if request.is_some() { Processed::No } else { Processed::Maybe };
                let malformed = source.is_parse();
                Err(SendError { source, processed, answered: malformed, malformed, request })
            }
        }
    }
}

/// The `timeout` of a `Keep-Alive` field (draft-thomson-hybi-http-timeout §2, as servers send it), in whole seconds.
fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    value.split(',').find_map(|parameter| {
        let (name, seconds) = parameter.split_once('=')?;
        let is_timeout = name.trim().eq_ignore_ascii_case("timeout");
        is_timeout.then(|| seconds.trim().parse().ok().map(Duration::from_secs)).flatten()
    })
}
