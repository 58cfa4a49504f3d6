//! Fetching the keys of tokens' issuers, as policies name them.
//!
//! Decides when a set is fetched: once its policy is there, again before its time is over, at once where a token names a key that it has not
//! ([`Source::wanted`], which bounds how often), and ever more seldom where it fails: the last good set then stays. An answer is bounded in time
//! and length, redirects are not followed, and only https is believed, or the mesh's own TLS where a Service of the mesh serves the set: that is asked as a request
//! of this workload would be. Runs on the control thread; workers only read what is [put](Source::put).

use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tulle_certs::jwks::{KeySet, MAX_SET};

use super::collector;
use crate::endpoint::{Dial, Endpoint};
use crate::policy::Inbound;
use crate::state::{ObjectName, Peer, Store};
use crate::telemetry::metrics::ControlMetrics;
use crate::token::{RemoteSpec, Source};
use crate::wire::Body;

/// How long after a fetch has failed the next is made: doubled each time.
const FIRST_AGAIN: Duration = Duration::from_secs(1);
/// At most, while there are no keys at all; and where there are.
const MOST_WITHOUT: Duration = Duration::from_secs(10);
const MOST_WITH: Duration = Duration::from_secs(60);
/// What servers see.
const USER_AGENT: HeaderValue = HeaderValue::from_static("tulle-jwks");

/// Fetches, until it is dropped. Has nothing to do, and does nothing, while no policy says so.
pub struct Keeper {
    store: Arc<Store>,
    fetcher: Arc<Fetcher>,
}

/// How sets are fetched.
struct Fetcher {
    store: Arc<Store>,
    dial: Dial,
    own: Own,
    metrics: Arc<ControlMetrics>,
}

/// The application's address behind an endpoint that is this very workload.
type Own = Box<dyn Fn(&Endpoint) -> Option<SocketAddr> + Send + Sync>;

// === impl Keeper ===

impl Keeper {
    /// Connects as `dial` says; what is this workload itself by `own` is asked directly.
    pub fn new(
        store: Arc<Store>,
        dial: Dial,
        own: impl Fn(&Endpoint) -> Option<SocketAddr> + Send + Sync + 'static,
        metrics: Arc<ControlMetrics>,
    ) -> Self {
        let fetcher = Fetcher { store: Arc::clone(&store), dial, own: Box::new(own), metrics };
        Self { store, fetcher: Arc::new(fetcher) }
    }

    pub async fn run(self) {
        let mut changes = self.store.changes();
        let mut seen: Option<Arc<Inbound>> = None;
        let (mut tasks, mut kept) = (JoinSet::new(), Vec::new());
        loop {
            changes.borrow_and_update();
            let inbound = self.store.load().inbound.clone();
            if inbound.as_ref().map(Arc::as_ptr) != seen.as_ref().map(Arc::as_ptr) {
                self.follow(inbound.as_deref(), &mut tasks, &mut kept);
                seen = inbound;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes up what the policy names, and lets go of what it no longer does.
    fn follow(&self, inbound: Option<&Inbound>, tasks: &mut JoinSet<()>, kept: &mut Vec<Kept>) {
        let all = inbound.and_then(Inbound::authentications);
        let wanted: Vec<&Arc<Source>> = all.into_iter().flat_map(|all| all.sources()).collect();
        kept.retain(|one| {
            let stays = wanted.iter().any(|source| Arc::ptr_eq(source, &one.source));
            if !stays {
                one.task.abort();
                self.fetcher.metrics.jwks_ends(&one.source.spec.url.to_string());
            }
            stays
        });
        for source in wanted {
            if kept.iter().any(|one| Arc::ptr_eq(source, &one.source)) {
                continue;
            }
            let (fetcher, source) = (Arc::clone(&self.fetcher), Arc::clone(source));
            let task = tasks.spawn({
                let source = Arc::clone(&source);
                async move { fetcher.keep(&source).await }
            });
            kept.push(Kept { source, task });
        }
        // Only those end that were let go of.
        while tasks.try_join_next().is_some() {}
    }
}

/// A source that is fetched from.
struct Kept {
    source: Arc<Source>,
    task: tokio::task::AbortHandle,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keeper")
    }
}

// === impl Fetcher ===

impl Fetcher {
    async fn keep(&self, source: &Source) {
        let spec = &source.spec;
        let url = spec.url.to_string();
        self.metrics.jwks_begins(&url);
        let mut failures = 0_u32;
        loop {
            let fetched = tokio::time::timeout(spec.timeout, Box::pin(self.fetch(spec))).await;
            let fetched = fetched.unwrap_or_else(|_| Err(format!("no answer within {:?}", spec.timeout)));
            self.metrics.jwks_fetched(&url, fetched.is_ok());
            let wait = match fetched {
                Ok(keys) => {
                    if failures > 0 || source.current().is_none_or(|known| *known != keys) {
                        let (count, skipped) = (keys.count(), keys.skipped().join("; "));
                        tracing::info!(url, count, skipped, "fetched the keys of an issuer of tokens");
                    }
                    failures = 0;
                    source.put(Some(keys));
                    // Not all proxies at once, and before its time is over.
                    spec.refresh.mul_f64(0.75 + rand::random::<f64>() / 5.0)
                }
                Err(error) => {
                    let kept = source.current().is_some();
                    // Each time, it would be a line in some seconds for as long as it lasts.
                    if failures.is_power_of_two() || failures == 0 {
                        tracing::warn!(
                            url,
                            error,
                            kept,
                            failures,
                            "the keys of an issuer of tokens could not be fetched"
                        );
                    }
                    failures = failures.saturating_add(1);
                    source.put(None);
                    let most = if kept { MOST_WITH } else { MOST_WITHOUT };
                    let doubled = FIRST_AGAIN.saturating_mul(2_u32.saturating_pow((failures - 1).min(10)));
                    doubled.min(most).mul_f64(0.75 + rand::random::<f64>() / 2.0)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = source.wanted() => {}
            }
        }
    }

    async fn fetch(&self, spec: &RemoteSpec) -> Result<KeySet, String> {
        let text = match &spec.service {
            Some((service, port)) => self.within(spec, service, *port).await?,
            None => outside(spec, self.dial.mark).await?,
        };
        KeySet::read(&text).map_err(|error| error.to_string())
    }

    /// From a Service of the mesh: as this workload, by mutual TLS where its endpoints are in the mesh.
    async fn within(&self, spec: &RemoteSpec, service: &ObjectName, port: u16) -> Result<Bytes, String> {
        let found = self.store.service(service).await.map_err(|unanswered| unanswered.to_string())?;
        let none = || format!("the Service {service} has no endpoint at its port {port}");
        let endpoint = {
            let endpoints = found.serving(port).ok_or_else(none)?;
            let members = &endpoints.port(port).ok_or_else(none)?.members;
            let ready: Vec<_> = members.iter().filter(|member| member.ready).collect();
            let one = rand::random::<u32>() as usize % ready.len().max(1);
            Arc::clone(&ready.get(one).ok_or_else(none)?.endpoint)
        };
        let (address, peer) = match (self.own)(&endpoint) {
            // No connection leads back here, and none is needed.
            Some(application) => (application, Peer::Plaintext),
            None => (endpoint.address, endpoint.peer.clone()),
        };
        let endpoint = Endpoint::new(address, peer, None, "".into(), 0);
        let dial = Dial { timeout: spec.timeout, ..self.dial.clone() };
        let client = dial.http1(&endpoint).await.map_err(|error| error.to_string())?;
        let mut request = request(&spec.url, Body::empty())?;
        let answer = client.send(&mut request, Body::empty(), drop, drop).await;
        let answer = answer.map_err(|error| format!("{address}: {}", error.failure))?;
        taken(answer.map(Body::http1)).await
    }
}

/// From a server outside the mesh, who is known by its name.
async fn outside(spec: &RemoteSpec, mark: Option<u32>) -> Result<Bytes, String> {
    let host = spec.url.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("`{host}`: {error}"))?;
    let roots = roots(&spec.roots)?;
    let certificates =
        tulle_certs::pem::certificates(&roots).map_err(|error| format!("the roots: {error}"))?;
    let client = tulle_certs::outside::client(certificates, &[b"http/1.1"])
        .map_err(|error| format!("the roots: {error}"))?;
    let stream = collector::reach(host, spec.url.port_u16().unwrap_or(443), mark).await;
    let stream = stream.map_err(|error| error.to_string())?;
    let stream =
        TlsConnector::from(client).connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let request = request(&spec.url, Empty::<Bytes>::new())?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        taken(answer).await
    };
    // The connection is driven here, and ends with the answer.
    let mut answer = pin!(answer);
    tokio::select! {
        answer = answer.as_mut() => answer,
        driven = connection => {
            driven.map_err(|error| error.to_string())?;
            answer.await
        }
    }
}

/// Those that are written in the policy, else the system's, as its file has them now.
fn roots(written: &str) -> Result<String, String> {
    if !written.is_empty() {
        return Ok(written.to_owned());
    }
    let path = collector::system_roots()
        .ok_or("this system has no roots to know the server by: write them in `jwks.roots`")?;
    std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
}

fn request<B>(url: &Uri, body: B) -> Result<Request<B>, String> {
    let host = url.authority().map_or("", |authority| authority.as_str());
    let host = HeaderValue::from_str(host).map_err(|error| error.to_string())?;
    let path = url.path_and_query().cloned();
    let mut request = Request::new(body);
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    let accept = HeaderValue::from_static("application/jwk-set+json, application/json");
    let fields = [
        (header::HOST, host),
        (header::ACCEPT, accept),
        (header::USER_AGENT, USER_AGENT),
        (header::CONNECTION, HeaderValue::from_static("close")),
    ];
    *request.headers_mut() = HeaderMap::from_iter(fields);
    Ok(request)
}

/// The set in an answer: as much of it as may be.
async fn taken<B>(answer: Response<B>) -> Result<Bytes, String>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    let (head, mut body) = answer.into_parts();
    if head.status != StatusCode::OK {
        let why = head.headers.get("x-tulle-error").and_then(|reason| reason.to_str().ok());
        let why = match why {
            Some(reason) => format!(" ({reason})"),
            None if head.status.is_redirection() => ", a redirect, which is not followed".to_owned(),
            None => String::new(),
        };
        return Err(format!("it answered {}{why}", head.status));
    }
    let mut text = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        if let Ok(data) = frame.into_data() {
            if text.len() + data.len() > MAX_SET {
                return Err(format!("its answer is longer than {MAX_SET} bytes"));
            }
            text.extend_from_slice(&data);
        }
    }
    Ok(text.freeze())
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    fn answer(status: u16, text: Vec<u8>) -> Response<Full<Bytes>> {
        let mut answer = Response::new(Full::new(Bytes::from(text)));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        answer
    }

    #[tokio::test]
    async fn an_answer_is_taken_whole_or_not_at_all() {
        assert_eq!(taken(answer(200, b"{}".to_vec())).await, Ok(Bytes::from_static(b"{}")));
        assert_eq!(taken(answer(200, vec![b' '; MAX_SET])).await.map(|text| text.len()), Ok(MAX_SET));
        let long = taken(answer(200, vec![b' '; MAX_SET + 1])).await.unwrap_err();
        assert!(long.contains("longer"), "{long}");
        let moved = taken(answer(302, Vec::new())).await.unwrap_err();
        assert!(moved.contains("not followed"), "{moved}");
        let refused = taken(answer(503, b"{}".to_vec())).await.unwrap_err();
        assert!(refused.contains("503"), "{refused}");
    }

    #[test]
    fn a_question_is_for_the_path_and_names_the_host() {
        let of = |url: &str| {
            let request = request(&url.parse().unwrap(), ()).unwrap();
            (request.uri().to_string(), request.headers()["host"].to_str().unwrap().to_owned())
        };
        let expected = ("/realms/shop/certs?x=1".to_owned(), "id.example:8443".to_owned());
        assert_eq!(of("https://id.example:8443/realms/shop/certs?x=1"), expected);
        assert_eq!(of("https://id.example"), ("/".to_owned(), "id.example".to_owned()));
    }
}
