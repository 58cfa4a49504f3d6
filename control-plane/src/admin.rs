//! `/metrics`, `/ready` and `/live` over HTTP, and to callers on this host `/resources/TYPE/NAME`, `/endpoints`, `/load`, `/identity` and `/tap`; GET and
//! HEAD only. None of these changes anything, but that proxies show requests for as long as somebody reads `/tap`. What does is [`identity`]'s: `POST`
//! to `/identity/rotate-root` and `/identity/abort-rotation`.
//!
//! A resource says who may call whom and where everybody is, which is nobody's business who can merely reach this port: it is for
//! whoever is on the control plane's host already, or is let there by `kubectl port-forward`. A page of a browser on that host
//! is neither: what it asks for says that a page asks, or names another host than this one's loopback.

mod identity;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prost::Message as _;
use tokio::net::TcpListener;
use tulle_api::{ResourceType, openmetrics, v1};

use crate::ads::Proxies;
use crate::asking::Reporters;
use crate::ca::rotation::Progress;
use crate::load::Loads;
use crate::metrics::{Gauges, Metrics};
use crate::model::Publisher;
use crate::tap::{Question, Refusal, Taps, Watching};
use crate::trust::Trust;
use crate::youngest::Youngest;

/// Connections at a time. For one more the oldest is closed: who opens many and says nothing, or reads no answer, must not
/// keep others from asking whether the control plane lives.
const CONNECTIONS: usize = 128;

/// What proxies add to requests of others.
const FORWARDED: [&str; 4] = ["forwarded", "via", "x-forwarded-for", "x-real-ip"];

/// How far the control plane is.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

const STARTING: u8 = 0;
const READY: u8 = 1;
const BEGINNING: &str = "the certificate authority is not open yet: the log says what is waited for\n";

/// What the pages are made of.
pub struct Pages {
    /// Counters.
    pub metrics: Metrics,
    /// Whence the model and the findings.
    pub publisher: Arc<Publisher>,
    /// Who is connected.
    pub proxies: Proxies,
    /// Who can be asked what it uses.
    pub reporters: Reporters,
    /// What proxies carry.
    pub loads: Loads,
    /// Who looks on at requests.
    pub taps: Taps,
    /// Whose certificates expire.
    pub trust: Trust,
    /// How far a rotation of the root is.
    pub rotation: Progress,
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

/// Serves `/live` and `/ready` before there is anything to make pages of: it lives, and is not ready. Until it is dropped.
pub async fn serve_beginning(listener: &TcpListener) -> Infallible {
    let mut connections = Youngest::new(CONNECTIONS, Duration::ZERO);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        connections.room().await;
        connections.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let answer = match (request.method(), request.uri().path()) {
                    (&Method::GET | &Method::HEAD, "/live") => text(StatusCode::OK, "live\n"),
                    _ => text(StatusCode::SERVICE_UNAVAILABLE, BEGINNING),
                };
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            // Each connection is for one request: what comes next may be for whoever serves by then.
            let served = speech().keep_alive(false).serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection to the metrics port ended");
            }
        });
    }
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, pages: Arc<Pages>) {
    let mut connections = Youngest::new(CONNECTIONS, Duration::ZERO);
    loop {
        let Ok((stream, client)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        connections.room().await;
        let pages = Arc::clone(&pages);
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let pages = Arc::clone(&pages);
                async move {
                    let answer = match request.uri().path() {
                        "/tap" => pages.tap(&request, client),
                        _ => pages.answer(&request, client).await.map(BodyExt::boxed_unsync),
                    };
                    Ok::<_, Infallible>(answer)
                }
            });
            let served = speech().serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection to the metrics port ended");
            }
        });
    }
}

fn speech() -> http1::Builder {
    let mut speech = http1::Builder::new();
    speech.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
    speech
}

// === impl Pages ===

impl Pages {
    async fn answer(&self, request: &Request<Incoming>, client: SocketAddr) -> Response<Full<Bytes>> {
        if let Some(wanted) = identity::wanted(request.uri().path()) {
            return self.want(wanted, request, client).await;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/metrics" => match self.metrics() {
                Ok(body) => {
                    let (body, kind) = match wants_openmetrics(request) {
                        true => (openmetrics::from_text(&body), openmetrics::CONTENT_TYPE),
                        false => (body, "text/plain; version=0.0.4; charset=utf-8"),
                    };
                    let mut response = Response::new(Full::new(body.into()));
                    let kind = header::HeaderValue::from_static(kind);
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
            path if path.starts_with("/resources/")
                || path.starts_with("/endpoints")
                || matches!(path, "/load" | "/identity") =>
            {
                if let Err(why) = check_caller(request, client) {
                    return text(StatusCode::FORBIDDEN, why);
                }
                if path == "/identity" {
                    return self.identity();
                }
                if path == "/load" {
                    return json(&self.loads.seen(&self.publisher.model(), Instant::now()));
                }
                match (path.strip_prefix("/resources/"), path.strip_prefix("/endpoints")) {
                    (Some(resource), _) => self.resource(resource),
                    (None, Some("" | "/")) => self.endpoints("").await,
                    (None, Some(rest)) if rest.starts_with('/') => self.endpoints(&rest[1..]).await,
                    _ => nothing_there(),
                }
            }
            _ => nothing_there(),
        }
    }

    /// Requests as they end, an object on each line, for as long as whoever asks stays.
    fn tap(&self, request: &Request<Incoming>, client: SocketAddr) -> Response<Lines> {
        let refused = |status, why: String| text(status, why).map(BodyExt::boxed_unsync);
        if *request.method() != Method::GET {
            let mut response = refused(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
            response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET"));
            return response;
        }
        if let Err(why) = check_caller(request, client) {
            return refused(StatusCode::FORBIDDEN, why.to_owned());
        }
        let question = Question::parse(request.uri().query().unwrap_or_default()).map_err(Refusal::Invalid);
        match question.and_then(|question| self.taps.begin(&question)) {
            Ok(watching) => lines(watching),
            Err(refusal) => {
                let status = match refusal {
                    Refusal::Invalid(_) => StatusCode::BAD_REQUEST,
                    Refusal::Unknown(_) => StatusCode::NOT_FOUND,
                    Refusal::TooMany => StatusCode::SERVICE_UNAVAILABLE,
                };
                refused(status, format!("{refusal}\n"))
            }
        }
    }

    /// What the control plane says of a service's endpoints, or of all that are in use, and what each proxy uses.
    async fn endpoints(&self, service: &str) -> Response<Full<Bytes>> {
        let proxies = self.reporters.ask(service).await;
        let seen =
            crate::diagnostics::endpoints(&self.publisher.model(), service, &self.proxies.list(), proxies);
        json(&seen)
    }

    /// The encoded resource `TYPE/NAME`, or 204 where there is none of that name.
    fn resource(&self, named: &str) -> Response<Full<Bytes>> {
        let named =
            named.split_once('/').and_then(|(kind, name)| Some((ResourceType::from_name(kind)?, name)));
        let Some((kind, name)) = named else {
            let kinds = ResourceType::ALL.map(ResourceType::as_str).join(", ");
            return text(
                StatusCode::NOT_FOUND,
                format!("expected /resources/TYPE/NAME with a TYPE of {kinds}\n"),
            );
        };
        let Some(resource) = self.publisher.model().get(kind, name) else {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NO_CONTENT;
            return response;
        };
        let mut response = Response::new(Full::new(public(kind, &resource.bytes)));
        let protobuf = header::HeaderValue::from_static("application/x-protobuf");
        response.headers_mut().insert(header::CONTENT_TYPE, protobuf);
        response
    }

    fn metrics(&self) -> prometheus::Result<String> {
        let findings = self.publisher.findings().borrow().clone();
        let (leaf_expires, issuer_expires, root_expires) = self.trust.expires();
        self.metrics.render(&Gauges {
            model: &self.publisher.model(),
            findings: &findings,
            objects: self.publisher.objects(),
            proxies: &self.proxies.list(),
            leaf_expires,
            issuer_expires,
            root_expires,
        })
    }
}

/// A resource as others than proxies may see it: without the key of sessions.
fn public(kind: ResourceType, bytes: &Bytes) -> Bytes {
    if kind != ResourceType::Mesh {
        return bytes.clone();
    }
    let mesh = v1::Mesh::decode(bytes.clone()).unwrap_or_default();
    v1::Mesh { session_key: Bytes::new(), ..mesh }.encode_to_vec().into()
}

/// Whether what is for this host's own tools may be told; the error says why not. Merely to ask costs the proxies something, so that no
/// page of a browser may, whatever it could read of the answer.
fn check_caller<B>(request: &Request<B>, client: SocketAddr) -> Result<(), &'static str> {
    if tulle_api::is_from_a_page(|name| request.headers().get(name).map(header::HeaderValue::as_bytes)) {
        return Err("refused: the request comes from a web page\n");
    }
    if !(client.ip().to_canonical().is_loopback() && is_for_loopback(request)) {
        return Err(
            "this is for callers on the control plane's own host, at its loopback address (kubectl port-forward)\n",
        );
    }
    Ok(())
}

/// Whether `Host` names this host's loopback, as no page does that a browser got elsewhere (DNS rebinding), and nobody says to
/// have forwarded it for another.
fn is_for_loopback<B>(request: &Request<B>) -> bool {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = host.and_then(|host| host.parse::<http::uri::Authority>().ok());
    authority.is_some_and(|authority| {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost")
            || host.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback())
    }) && !FORWARDED.iter().any(|name| request.headers().contains_key(*name))
}

fn wants_openmetrics(request: &Request<Incoming>) -> bool {
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(openmetrics::is_wanted)
}

/// A body that may come in pieces.
type Lines = UnsyncBoxBody<Bytes, Infallible>;

fn lines(watching: Watching) -> Response<Lines> {
    let pieces = futures_util::stream::unfold(watching, |mut watching| async move {
        let lines = watching.next().await?;
        Some((Ok(Frame::data(lines)), watching))
    });
    let mut response = Response::new(StreamBody::new(pieces).boxed_unsync());
    let kind = header::HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn nothing_there() -> Response<Full<Bytes>> {
    let there_are = "there are /metrics, /ready, /live, /resources/TYPE/NAME, /endpoints[/NAMESPACE/SERVICE], /load, /identity and /tap\n";
    text(StatusCode::NOT_FOUND, there_are)
}

fn json(body: &impl ToString) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.to_string().into()));
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_sessions_is_for_proxies_only() {
        let session_key = Bytes::from_static(&[7; 32]);
        let mesh = v1::Mesh { trust_domain: "a".to_owned(), session_key, ..v1::Mesh::default() };
        let shown = public(ResourceType::Mesh, &mesh.encode_to_vec().into());
        let expected = v1::Mesh { session_key: Bytes::new(), ..mesh };
        assert_eq!(v1::Mesh::decode(shown).unwrap(), expected);
        let other = Bytes::from_static(b"x");
        assert_eq!(public(ResourceType::Routes, &other), other);
    }

    #[test]
    fn what_is_for_this_hosts_tools_is_told_to_no_page_and_no_other_host() {
        let here = "127.0.0.1:40000";
        for (client, headers, allowed) in [
            (here, vec![("host", "localhost:15014")], true),
            ("[::ffff:127.0.0.1]:40000", vec![("host", "[::1]:15014")], true),
            // Typed into a browser's address bar.
            (here, vec![("host", "127.0.0.1"), ("sec-fetch-site", "none")], true),
            (here, vec![], false),
            (here, vec![("host", "attacker.example")], false),
            (here, vec![("host", "localhost"), ("x-forwarded-for", "10.0.0.1")], false),
            (here, vec![("host", "localhost"), ("origin", "http://attacker.example")], false),
            (here, vec![("host", "localhost"), ("origin", "null")], false),
            (here, vec![("host", "localhost"), ("sec-fetch-site", "cross-site")], false),
            (here, vec![("host", "localhost"), ("sec-fetch-site", "same-site")], false),
            ("10.0.0.1:40000", vec![("host", "localhost")], false),
        ] {
            let mut request = Request::builder().uri("/load");
            for (name, value) in &headers {
                request = request.header(*name, *value);
            }
            let checked = check_caller(&request.body(()).unwrap(), client.parse().unwrap());
            assert_eq!(checked.is_ok(), allowed, "{client} {headers:?}: {checked:?}");
        }
    }
}
