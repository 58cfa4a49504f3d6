//! A collector of traces, by OTLP over gRPC and over HTTP.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::span::{Event, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use tokio_stream::wrappers::TcpListenerStream;
use tulle_tests::app::App;
use tulle_tests::{Wire, eventually};

/// A span, as a test looks at it.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) service: String,
    pub(super) resource: HashMap<String, String>,
    pub(super) trace: String,
    pub(super) id: String,
    /// Empty: it has none.
    pub(super) parent: String,
    pub(super) state: String,
    pub(super) name: String,
    pub(super) kind: SpanKind,
    pub is_error: bool,
    pub(super) attributes: HashMap<String, String>,
    pub(super) events: Vec<(String, HashMap<String, String>)>,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// Holds what it was sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Collected {
    spans: Arc<Mutex<Vec<Span>>>,
    /// The metadata of the last batch.
    keys: Arc<Mutex<Option<String>>>,
}

/// One that runs.
pub(super) struct Collector {
    pub(super) address: SocketAddr,
    pub(super) collected: Collected,
    _app: Option<App>,
    task: Option<tokio::task::JoinHandle<()>>,
}

// === impl Collected ===

impl Collected {
    fn add(&self, request: ExportTraceServiceRequest, key: Option<String>) {
        *self.keys.lock().unwrap() = key;
        let mut spans = self.spans.lock().unwrap();
        for of in request.resource_spans {
            let resource = text(of.resource.unwrap_or_default().attributes);
            for span in of.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let hex = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                let events = span.events.into_iter();
                spans.push(Span {
                    service: resource.get("service.name").cloned().unwrap_or_default(),
                    resource: resource.clone(),
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    state: span.trace_state,
                    name: span.name,
                    kind: SpanKind::try_from(span.kind).unwrap(),
                    is_error: span.status.is_some_and(|status| status.code() == StatusCode::Error),
                    attributes: text(span.attributes),
                    events: events.map(|Event { name, attributes, .. }| (name, text(attributes))).collect(),
                    start: span.start_time_unix_nano,
                    end: span.end_time_unix_nano,
                });
            }
        }
    }

    /// All that are there.
    pub(super) fn all(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    /// The value of `x-key` that came with the last batch.
    pub(super) fn key(&self) -> Option<String> {
        self.keys.lock().unwrap().clone()
    }

    /// Waits for so many spans; there must not be more.
    pub(super) async fn spans(&self, count: usize) -> Vec<Span> {
        let spans = eventually(&format!("{count} spans"), async || {
            let all = self.all();
            if all.len() >= count { Ok(all) } else { Err(format!("{all:#?}")) }
        })
        .await;
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }
}

fn text(attributes: Vec<KeyValue>) -> HashMap<String, String> {
    let value = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.into_iter().map(|KeyValue { key, value: of, .. }| (key, value(of))).collect()
}

#[tonic::async_trait]
impl TraceService for Collected {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let key = request.metadata().get("x-key").map(|key| key.to_str().unwrap().to_owned());
        self.add(request.into_inner(), key);
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

// === impl Collector ===

impl Collector {
    /// Takes OTLP over gRPC.
    pub(super) async fn grpc() -> Self {
        Self::grpc_on(StdListener::bind("127.0.0.1:0").unwrap()).await
    }

    /// The same, on a listener of the test's own.
    pub(super) async fn grpc_on(listener: StdListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
        let collected = Collected::default();
        let service = TraceServiceServer::new(collected.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        let task = tokio::spawn(async move { server.serve_with_incoming(listener).await.unwrap() });
        Self { address, collected, _app: None, task: Some(task) }
    }

    /// Takes OTLP over HTTP.
    pub(super) async fn http() -> Self {
        let collected = Collected::default();
        let into = collected.clone();
        let app = App::wire(move |mut wire: Wire| {
            let into = into.clone();
            async move {
                while let Some(head) = wire.try_head().await {
                    let body = wire.body(&head).await;
                    assert_eq!(head.line, "POST /v1/traces HTTP/1.1");
                    assert_eq!(head.get("content-type"), Some("application/x-protobuf"));
                    let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
                    into.add(request, head.get("x-key").map(str::to_owned));
                    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            }
        })
        .await;
        Self { address: app.address(), collected, _app: Some(app), task: None }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

// === impl Span ===

impl Span {
    /// An attribute; empty where there is none.
    pub(super) fn get(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}
