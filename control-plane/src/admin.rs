//! `/metrics`, `/ready` and `/live` over HTTP; GET and HEAD only. Nothing here changes anything.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::ads::Proxies;
use crate::ca::Ca;
use crate::metrics::{Gauges, Metrics};
use crate::model::Publisher;
use crate::youngest::Youngest;

/// Connections at a time. For one more the oldest is closed: who opens many and says nothing, or reads no answer, must not
/// keep others from asking whether the control plane lives.
const CONNECTIONS: usize = 128;

/// How far the control plane is.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

const STARTING: u8 = 0;
const READY: u8 = 1;

/// What the pages are made of.
pub struct Pages {
    /// Counters.
    pub metrics: Metrics,
    /// Whence the model and the findings.
    pub publisher: Arc<Publisher>,
    /// Who is connected.
    pub proxies: Proxies,
    /// Whose certificates expire.
    pub ca: Ca,
    /// Shown by `/ready`.
    pub readiness: Arc<Readiness>,
}

// === impl Readiness ===

impl Readiness {
    /// Everything has been read and every port is bound.
    pub fn ready(&self) {
        self.0.store(READY, Ordering::Release);
    }

    /// New proxies are better off elsewhere.
    pub fn ending(&self) {
        self.0.store(READY + 1, Ordering::Release);
    }

    fn answer(&self) -> (StatusCode, &'static str) {
        match self.0.load(Ordering::Acquire) {
            READY => (StatusCode::OK, "ready\n"),
            STARTING => (StatusCode::SERVICE_UNAVAILABLE, "the sources have not been read yet\n"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "the control plane is ending\n"),
        }
    }
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, pages: Arc<Pages>) {
    let mut connections = Youngest::new(CONNECTIONS, Duration::ZERO);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        connections.room().await;
        let pages = Arc::clone(&pages);
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let response = pages.answer(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection to the metrics port ended");
            }
        });
    }
}

// === impl Pages ===

impl Pages {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/metrics" => match self.metrics() {
                Ok(body) => {
                    let mut response = Response::new(Full::new(body.into()));
                    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                    response.headers_mut().insert(header::CONTENT_TYPE, kind);
                    response
                }
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            "/ready" => {
                let (status, body) = self.readiness.answer();
                text(status, body)
            }
            "/live" => text(StatusCode::OK, "live\n"),
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /ready and /live\n"),
        }
    }

    fn metrics(&self) -> prometheus::Result<Vec<u8>> {
        let findings = self.publisher.findings().borrow().clone();
        self.metrics.render(&Gauges {
            model: &self.publisher.model(),
            findings: &findings,
            proxies: &self.proxies.list(),
            leaf_expires: self.ca.creds_at(SystemTime::now()).not_after(),
            issuer_expires: self.ca.not_after(),
        })
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
