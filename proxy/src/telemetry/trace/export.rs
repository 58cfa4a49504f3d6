//! Spans on their way to a collector, without anybody ever waiting for it.
//!
//! Workers put spans into a bounded queue ([`Spans`]): where that is full, a span is dropped and counted. The control thread takes batches
//! out of it and drives the SDK's OTLP exporter ([`Exporter::run`]), over gRPC by a channel or over HTTP by a client of ours, both on
//! connections that it is given a way to open ([`Connect`]). A batch that the collector does not take in time, the SDK's own
//! retries included, is dropped and counted too, and then the next one waits longer. There is no thread for it.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use opentelemetry::KeyValue;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tonic::metadata::MetadataMap;
use tonic::transport::Endpoint;

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `grpc`.
    Grpc,
    /// `http/protobuf`.
    Http,
}

/// Where spans go, and who they are from.
#[derive(Clone, Debug, PartialEq)]
pub struct Collector {
    /// Of gRPC only scheme, host and port count; of HTTP it is the very address that is posted to.
    pub endpoint: Uri,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Sent with each batch.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long it may take to have one batch taken.
    pub timeout: Duration,
    /// What is told of this workload: `service.name` and so on.
    pub resource: Vec<(String, String)>,
}

/// How much is held, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Spans that wait at most.
    pub queue: usize,
    /// Spans that are sent at once.
    pub batch: usize,
    /// How long a span waits for others to be sent with.
    pub delay: Duration,
}

/// Opens a connection to the collector, TLS and all.
pub type Connect = Arc<dyn Fn() -> Connecting + Send + Sync>;
type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// Bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What became of spans.
#[derive(Debug, Default)]
pub struct Counts {
    /// A collector has taken them.
    pub exported: AtomicU64,
    /// The queue was full.
    pub queue_full: AtomicU64,
    /// The collector did not take them.
    pub refused: AtomicU64,
    /// Batches that it did not take.
    pub failures: AtomicU64,
}

/// Spans that wait to be sent.
#[derive(Debug)]
pub struct Spans {
    queue: Mutex<Vec<SpanData>>,
    limits: Limits,
    counts: Arc<Counts>,
    wake: Notify,
    closed: AtomicBool,
    /// How many tracers there are whose spans go here.
    tracers: AtomicUsize,
    /// There will be no more of them.
    retired: AtomicBool,
}

/// Sends what is in a queue.
#[derive(Debug)]
pub struct Exporter {
    spans: Arc<Spans>,
    otlp: opentelemetry_otlp::SpanExporter,
    timeout: Duration,
    /// For the log.
    endpoint: String,
    /// Why the last try to connect failed, which the SDK does not tell.
    why: Why,
}

type Why = Arc<Mutex<Option<String>>>;

/// How long the next batch waits at most, once the collector fails.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
const MIN_BACKOFF: Duration = Duration::from_millis(500);
/// So long after the last answer a ping goes out while a batch waits for one, and its own must come within as much.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How much of a collector's answer is read.
const MAX_ANSWER: usize = 64 * 1024;

// === impl Collector ===

impl Collector {
    /// Its address as logs tell it: without a query, which may hold a key.
    pub fn shown(&self) -> String {
        let (scheme, path) = (self.endpoint.scheme_str().unwrap_or("http"), self.endpoint.path());
        let host = self.endpoint.host().unwrap_or_default();
        let port = self.endpoint.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{host}{port}{path}")
    }
}

// === impl Limits ===

impl Default for Limits {
    /// OpenTelemetry's own.
    fn default() -> Self {
        Self { queue: 2048, batch: 512, delay: Duration::from_secs(5) }
    }
}

// === impl Spans ===

impl Spans {
    /// None yet.
    pub fn new(limits: Limits, counts: Arc<Counts>) -> Self {
        let (queue, wake, closed) = (Mutex::default(), Notify::new(), AtomicBool::new(false));
        let (tracers, retired) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { queue, limits, counts, wake, closed, tracers, retired }
    }

    /// A tracer begins to send here.
    pub(super) fn begun(&self) {
        self.tracers.fetch_add(1, SeqCst);
    }

    /// A tracer is gone, and with it all that it traced.
    pub(super) fn ended(&self) {
        if self.tracers.fetch_sub(1, SeqCst) == 1 && self.retired.load(SeqCst) {
            self.close();
        }
    }

    /// Requests that begin from now on are traced otherwise, or not at all: it is closed once those under way are over, whose spans still
    /// come.
    pub fn retire(&self) {
        self.retired.store(true, SeqCst);
        if self.tracers.load(SeqCst) == 0 {
            self.close();
        }
    }

    /// Adds what `span` makes, or drops and counts it where there is no room. Waits for nobody.
    pub fn push(&self, span: impl FnOnce() -> SpanData) {
        if self.is_closed() {
            // Nobody sends it any more: the proxy ends.
            self.counts.refused.fetch_add(1, Relaxed);
            return;
        }
        if self.queue.lock().len() >= self.limits.queue {
            self.counts.queue_full.fetch_add(1, Relaxed);
            return;
        }
        // Made while nobody is kept from the queue; so it may come to hold a few more, one for each other worker.
        let span = span();
        let waiting = {
            let mut queue = self.queue.lock();
            queue.push(span);
            queue.len()
        };
        if waiting == 1 || waiting == self.limits.batch {
            self.wake.notify_one();
        }
    }

    /// Some of what waits, the oldest first.
    pub(super) fn take(&self) -> Vec<SpanData> {
        let mut queue = self.queue.lock();
        if queue.len() <= self.limits.batch {
            return mem::take(&mut queue);
        }
        let rest = queue.split_off(self.limits.batch);
        mem::replace(&mut queue, rest)
    }

    fn waiting(&self) -> usize {
        self.queue.lock().len()
    }

    /// Nothing is waited for any more: what is there is sent, and then it is over.
    pub fn close(&self) {
        self.closed.store(true, Relaxed);
        self.wake.notify_one();
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Waits until there is something to send, and until there is a batch of it or the first has waited for long enough.
    /// False: it is over.
    async fn ready(&self) -> bool {
        while self.waiting() == 0 {
            if self.is_closed() {
                return false;
            }
            self.wake.notified().await;
        }
        let mut delay = pin!(tokio::time::sleep(self.limits.delay));
        while self.waiting() < self.limits.batch && !self.is_closed() {
            tokio::select! {
                () = self.wake.notified() => {}
                () = delay.as_mut() => break,
            }
        }
        true
    }

    /// Lets time pass, unless it is closed.
    async fn pause(&self, time: Duration) {
        let mut over = pin!(tokio::time::sleep(time));
        while !self.is_closed() {
            tokio::select! {
                () = self.wake.notified() => {}
                () = over.as_mut() => return,
            }
        }
    }
}

// === impl Exporter ===

impl Exporter {
    /// Sends what is in `spans` to `collector`, over connections that `connect` opens. Must be called within a runtime.
    ///
    /// # Errors
    /// What cannot be used of the collector's description.
    pub fn new(collector: &Collector, spans: Arc<Spans>, connect: Connect) -> Result<Self, String> {
        let why = Why::default();
        let connect = telling(connect, &why);
        let mut otlp = match collector.protocol {
            Protocol::Grpc => grpc(collector, connect)?,
            Protocol::Http => by_http(collector, connect)?,
        };
        let attributes =
            collector.resource.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
        otlp.set_resource(&Resource::builder_empty().with_attributes(attributes).build());
        Ok(Self { spans, otlp, timeout: collector.timeout, endpoint: collector.shown(), why })
    }

    /// Sends until the queue is [closed](Spans::close) and empty. For the control thread.
    pub async fn run(self) {
        let mut failures = 0;
        while self.spans.ready().await {
            let batch = self.spans.take();
            let (count, counts) = (batch.len() as u64, &self.spans.counts);
            // The SDK's limit is between two tries; a collector that never answers is not bound by it.
            let sent = tokio::time::timeout(self.timeout, self.otlp.export(batch)).await;
            let error = match sent {
                Ok(Ok(())) => {
                    counts.exported.fetch_add(count, Relaxed);
                    if mem::take(&mut failures) > 0 {
                        tracing::info!(collector = %self.endpoint, "spans are exported again");
                    }
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {:?}", self.timeout),
            };
            let error = self.why.lock().take().unwrap_or(error);
            counts.refused.fetch_add(count, Relaxed);
            counts.failures.fetch_add(1, Relaxed);
            if failures == 0 {
                tracing::warn!(collector = %self.endpoint, error, spans = count, "spans cannot be exported and are dropped");
            } else {
                tracing::debug!(collector = %self.endpoint, error, spans = count, "spans cannot be exported");
            }
            failures += 1;
            self.spans.pause(backoff(failures)).await;
        }
    }
}

/// Says in `why` how connecting ended: `None`, well.
fn telling(connect: Connect, why: &Why) -> Connect {
    let why = Arc::clone(why);
    Arc::new(move || {
        let (opening, why) = (connect(), Arc::clone(&why));
        Box::pin(async move {
            let opened = opening.await;
            *why.lock() = opened.as_ref().err().map(io::Error::to_string);
            opened
        })
    })
}

/// How long to wait after so many failures in a row.
fn backoff(failures: u32) -> Duration {
    (MIN_BACKOFF * 2_u32.pow(failures.saturating_sub(1).min(8))).min(MAX_BACKOFF)
}

fn grpc(collector: &Collector, connect: Connect) -> Result<opentelemetry_otlp::SpanExporter, String> {
    // The connection that it is given is TLS already where that is asked for.
    let authority = collector.endpoint.authority().ok_or("it names no host")?;
    let endpoint = Endpoint::from_shared(format!("http://{authority}")).map_err(|error| error.to_string())?;
    let connector = tower::service_fn(move |_: Uri| {
        let opening = connect();
        async move { opening.await.map(TokioIo::new) }
    });
    let channel = endpoint
        .timeout(collector.timeout)
        // Else a connection whose other end is gone without a word would be asked for ever.
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .connect_with_connector_lazy(connector);
    let headers = collector.headers.iter().cloned().collect();
    opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_channel(channel)
        .with_metadata(MetadataMap::from_headers(headers))
        .with_timeout(collector.timeout)
        .build()
        .map_err(|error| error.to_string())
}

fn by_http(collector: &Collector, connect: Connect) -> Result<opentelemetry_otlp::SpanExporter, String> {
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let headers: HashMap<String, String> =
        collector.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let target =
        collector.endpoint.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(Client { connect, target })
        .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
        // The SDK writes its requests' address into the log; what is secret of it only the client knows.
        .with_endpoint(collector.shown())
        .with_headers(headers)
        .with_timeout(collector.timeout)
        .build()
        .map_err(|error| error.to_string())
}

/// HTTP/1.1, on a connection for each batch: there is one in some seconds.
struct Client {
    connect: Connect,
    /// What is posted to, with the query.
    target: PathAndQuery,
}

impl Client {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let stream = TokioIo::new((self.connect)().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        let (mut parts, body) = request.into_parts();
        let host = parts.uri.authority().ok_or("the collector's address names no host")?.as_str();
        parts.headers.insert(http::header::HOST, HeaderValue::from_str(host)?);
        parts.uri = Uri::from(self.target.clone());
        let answer = async {
            let answer = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok(Response::from_parts(parts, body))
        };
        // The connection is driven here, and ends with the answer.
        let mut answer = pin!(answer);
        tokio::select! {
            answer = answer.as_mut() => answer,
            driven = connection => {
                driven?;
                answer.await
            }
        }
    }
}

impl HttpClient for Client {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(self.send(request))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::InstrumentationScope;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::telemetry::access::Record;
    use crate::telemetry::trace::{How, Propagation, Sampler, Tracer, Tracing, Values};

    fn queue(limits: Limits) -> (Arc<Spans>, Arc<Counts>) {
        let counts = Arc::<Counts>::default();
        (Arc::new(Spans::new(limits, Arc::clone(&counts))), counts)
    }

    fn begin(tracer: &Arc<Tracer>) -> Tracing {
        Tracing::begin(Arc::clone(tracer), &http::HeaderMap::new(), &Values::default())
    }

    /// So many spans.
    fn fill(spans: &Arc<Spans>, count: usize) {
        let sampler = Sampler { parent_based: false, ratio: 1.0 };
        let how =
            How { sampler, keeps_sampler: false, propagation: Propagation::AsItComes, connections: false };
        let tracer = Arc::new(Tracer::new(how, Arc::clone(spans)));
        for _ in 0..count {
            begin(&tracer).end(&Record::default());
        }
    }

    fn collector(address: std::net::SocketAddr) -> (Collector, Connect) {
        let collector = Collector {
            endpoint: format!("http://{address}/v1/traces").parse().unwrap(),
            protocol: Protocol::Http,
            headers: vec![(HeaderName::from_static("x-key"), HeaderValue::from_static("secret"))],
            timeout: Duration::from_secs(5),
            resource: vec![("service.name".to_owned(), "web".to_owned())],
        };
        let connect: Connect = Arc::new(move || {
            Box::pin(async move {
                let stream = TcpStream::connect(address).await?;
                Ok(Box::new(stream) as Box<dyn Stream>)
            })
        });
        (collector, connect)
    }

    fn read(count: &AtomicU64) -> u64 {
        count.load(Relaxed)
    }

    #[test]
    fn what_finds_the_queue_full_is_dropped_and_counted() {
        let (spans, counts) = queue(Limits { queue: 3, batch: 2, ..Limits::default() });
        fill(&spans, 5);
        assert_eq!((spans.waiting(), read(&counts.queue_full)), (3, 2));
        assert_eq!((spans.take().len(), spans.take().len(), spans.take().len()), (2, 1, 0));
        spans.push(|| unreachable_if_full(&spans));
        assert_eq!(spans.waiting(), 1);
    }

    fn unreachable_if_full(spans: &Spans) -> SpanData {
        assert!(spans.queue.try_lock().is_some(), "a span is made while nobody is kept from the queue");
        let (other, _) = queue(Limits::default());
        fill(&other, 1);
        let mut span = other.take().remove(0);
        span.instrumentation_scope = InstrumentationScope::default();
        span
    }

    #[tokio::test(start_paused = true)]
    async fn a_span_waits_for_others_but_not_for_ever_and_a_batch_does_not_wait() {
        let limits = Limits { queue: 10, batch: 3, delay: Duration::from_secs(5) };
        let (spans, _) = queue(limits);
        let started = tokio::time::Instant::now();
        fill(&spans, 1);
        assert!(spans.ready().await);
        assert_eq!(started.elapsed(), limits.delay);
        fill(&spans, 2);
        assert!(spans.ready().await);
        assert_eq!(started.elapsed(), limits.delay, "there is a batch");
        spans.close();
        assert!(spans.ready().await, "what is there is sent");
        spans.take();
        assert!(!spans.ready().await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_when_tracing_changes_is_still_sent() {
        let (spans, counts) = queue(Limits::default());
        let sampler = Sampler { parent_based: false, ratio: 1.0 };
        let how =
            How { sampler, keeps_sampler: false, propagation: Propagation::AsItComes, connections: false };
        let tracer = Arc::new(Tracer::new(how, Arc::clone(&spans)));
        let mut under_way = begin(&tracer);
        drop(tracer);
        spans.retire();
        under_way.end(&Record::default());
        assert!(spans.ready().await);
        assert_eq!((spans.take().len(), read(&counts.refused)), (1, 0));
        drop(under_way);
        assert!(!spans.ready().await, "it was the last");
        // Without any under way it is over at once.
        let (spans, _) = queue(Limits::default());
        spans.retire();
        assert!(!spans.ready().await);
    }

    #[test]
    fn the_log_tells_no_secret_of_a_collectors_address() {
        let (collector, _) = collector("127.0.0.1:4318".parse().unwrap());
        for (endpoint, shown) in [
            ("https://c.example/v1/traces?key=secret", "https://c.example/v1/traces"),
            ("http://[::1]:4318", "http://[::1]:4318/"),
        ] {
            let collector = Collector { endpoint: endpoint.parse().unwrap(), ..collector.clone() };
            assert_eq!(collector.shown(), shown);
        }
    }

    /// What a request has before its body.
    async fn head_of(stream: &mut TcpStream) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap()
    }

    #[tokio::test]
    async fn the_sdks_own_lines_tell_no_secret_either_and_the_collector_gets_it() {
        use std::io::{Read as _, Seek as _};

        use crate::config::LogFormat;
        use crate::telemetry::diagnostics;
        use crate::telemetry::lines::LineOutput;

        let mut file = tempfile::tempfile().unwrap();
        let output = LineOutput::new(file.try_clone().unwrap());
        let (subscriber, _) = diagnostics::subscriber("trace", LogFormat::Text, &output).unwrap();
        let logged = tracing::subscriber::set_default(subscriber);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (spans, counts) = queue(Limits::default());
        let (collector, connect) = collector(address);
        let endpoint = format!("http://{address}/v1/traces?key=hush").parse().unwrap();
        let collector = Collector { endpoint, ..collector };
        let exporter = Exporter::new(&collector, Arc::clone(&spans), connect).unwrap();
        // The SDK, whose lines are there only with a feature of its own, has nothing that it could tell.
        assert!(!format!("{:?}", exporter.otlp).contains("hush"), "{exporter:?}");
        fill(&spans, 1);
        spans.close();
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = head_of(&mut stream).await;
            assert!(head.starts_with("POST /v1/traces?key=hush HTTP/1.1\r\n"), "{head}");
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            stream
        };
        let ((), _stream) = tokio::join!(exporter.run(), answer);
        assert_eq!(read(&counts.refused), 1);
        drop(logged);
        output.flush(Duration::ZERO);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert!(
            text.contains("status code: 403") && text.contains(&format!("http://{address}/v1/traces")),
            "{text}"
        );
        assert!(!text.contains("hush"), "{text}");
    }

    #[test]
    fn a_collector_that_fails_is_asked_less_and_less_often() {
        let waits: Vec<_> = (1..8).map(|failures| backoff(failures).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert_eq!(backoff(u32::MAX), MAX_BACKOFF);
    }

    #[tokio::test]
    async fn batches_are_posted_and_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (spans, counts) = queue(Limits { batch: 10, ..Limits::default() });
        let (collector, connect) = collector(listener.local_addr().unwrap());
        let exporter = Exporter::new(&collector, Arc::clone(&spans), connect).unwrap();
        fill(&spans, 4);
        spans.close();
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = head_of(&mut stream).await.to_ascii_lowercase();
            assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
            assert!(head.contains("x-key: secret\r\n"), "{head}");
            assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            stream
        };
        let ((), _stream) = tokio::join!(exporter.run(), answer);
        assert_eq!((read(&counts.exported), read(&counts.failures)), (4, 0));
    }

    #[tokio::test]
    async fn a_collector_that_never_answers_is_given_up_and_what_it_was_given_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for protocol in [Protocol::Http, Protocol::Grpc] {
            let (spans, counts) = queue(Limits { batch: 2, ..Limits::default() });
            let (collector, connect) = collector(listener.local_addr().unwrap());
            let collector = Collector { protocol, timeout: Duration::from_millis(50), ..collector };
            let exporter = Exporter::new(&collector, Arc::clone(&spans), connect).unwrap();
            fill(&spans, 3);
            spans.close();
            exporter.run().await;
            assert_eq!((read(&counts.refused), read(&counts.failures)), (3, 2), "{protocol:?}");
            assert_eq!(read(&counts.exported), 0);
        }
    }

    #[tokio::test]
    async fn a_collector_that_is_not_there_is_no_more_than_counted() {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (spans, counts) = queue(Limits::default());
        let (collector, connect) = collector(address);
        let collector = Collector { protocol: Protocol::Grpc, ..collector };
        let exporter = Exporter::new(&collector, Arc::clone(&spans), connect).unwrap();
        fill(&spans, 1);
        spans.close();
        exporter.run().await;
        assert_eq!((read(&counts.refused), read(&counts.failures)), (1, 1));
    }
}
