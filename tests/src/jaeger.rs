//! A real Jaeger, and the traces in it, as its own query API tells them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde_json::Value;
use tokio::net::TcpStream;

use crate::process::{Folder, Process, Program};
use crate::{Wire, eventually};

/// Where Jaeger's query API is, unless it is told otherwise: it is alone in its network.
const QUERY: u16 = 16686;
/// Where it takes OTLP over gRPC.
pub const GRPC: u16 = 4317;

/// A Jaeger that keeps what it takes in memory.
#[derive(Debug)]
pub struct Jaeger {
    process: Process,
    host: Ipv4Addr,
}

/// One span of a trace, as Jaeger tells it.
#[derive(Debug)]
pub struct Span {
    pub id: String,
    /// Of the span that it is a child of.
    pub parent: Option<String>,
    pub service: String,
    tags: Vec<(String, Value)>,
    /// Microseconds since 1970.
    pub start: u64,
    /// Microseconds.
    pub duration: u64,
}

// === impl Jaeger ===

impl Jaeger {
    /// Starts the program that `.ci/run` builds, listening at `host`, and waits until it answers.
    ///
    /// # Panics
    /// There is none, or it ends.
    pub async fn start(folder: &Folder, host: Ipv4Addr) -> Self {
        let path = std::env::var_os("TULLE_TEST_JAEGER");
        let path: PathBuf =
            path.expect("TULLE_TEST_JAEGER names Jaeger's program; `.ci/run telemetry` builds it").into();
        let program = Program::new("jaeger", path).env("JAEGER_LISTEN_HOST", host.to_string());
        let mut jaeger = Self { process: Process::start(program, folder), host };
        eventually("Jaeger answers", async || match jaeger.process.ended() {
            Some(status) => panic!("Jaeger ended: {status}\n{}", jaeger.process.tail()),
            None => ask(jaeger.host, "/api/services").await.map(drop),
        })
        .await;
        jaeger
    }

    /// The traces in which `service` has a span, each with its spans in the order of their beginnings.
    ///
    /// # Errors
    /// It does not answer, or with something else.
    pub async fn traces(&self, service: &str) -> Result<Vec<Vec<Span>>, String> {
        let answer = ask(self.host, &format!("/api/traces?service={service}&limit=1000")).await?;
        let traces = answer["data"].as_array().ok_or_else(|| format!("no list: {answer}"))?;
        Ok(traces.iter().map(spans).collect())
    }

    /// The services that have told it anything.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn services(&self) -> Result<Value, String> {
        Ok(ask(self.host, "/api/services").await?["data"].take())
    }

    /// Ends it.
    pub async fn stop(mut self) {
        self.process.stop().await;
    }
}

// === impl Span ===

impl Span {
    /// A tag's value; null where there is none.
    pub fn tag(&self, key: &str) -> &Value {
        self.tags.iter().find(|(name, _)| name == key).map_or(&Value::Null, |(_, value)| value)
    }

    /// Who tells it, of which side, about which other side.
    pub fn hop(&self) -> [String; 2] {
        [self.service.clone(), self.tag("span.kind").as_str().unwrap_or_default().to_owned()]
    }
}

/// Every hop of one trace of the demo's services: who told it and from which side, in their order, each a child of the one before and begun within it.
///
/// # Panics
/// It is not so.
pub fn assert_whole(spans: &[Span]) {
    let hops: Vec<_> = spans.iter().map(Span::hop).collect();
    let last = hops.last().map(|[service, _]| service.as_str()).unwrap_or_default();
    assert!(["payments-v1", "payments-v2"].contains(&last), "{hops:?}");
    let expected = [["web", "client"], ["orders", "server"], ["orders", "client"], [last, "server"]];
    assert_eq!(hops, expected.map(|hop| hop.map(str::to_owned)), "{spans:#?}");
    assert_eq!(spans[0].parent, None, "{spans:#?}");
    for pair in spans.windows(2) {
        let [outer, inner] = pair else { unreachable!("windows of two") };
        assert_eq!(inner.parent.as_deref(), Some(outer.id.as_str()), "{spans:#?}");
        // One machine, one clock; Jaeger counts whole microseconds. Who answers may hear later than who asked that the answer has arrived.
        let begun = outer.start..=outer.start + outer.duration;
        assert!(begun.contains(&inner.start), "{spans:#?}");
    }
    for span in spans {
        assert_eq!(span.tag("http.request.method"), "GET", "{span:#?}");
        assert_eq!(span.tag("http.response.status_code"), 200, "{span:#?}");
        assert_eq!(*span.tag("error"), Value::Null, "{span:#?}");
    }
}

async fn ask(host: Ipv4Addr, path: &str) -> Result<Value, String> {
    let stream = TcpStream::connect(SocketAddr::from((host, QUERY))).await;
    let mut wire = Wire::new(stream.map_err(|error| error.to_string())?);
    wire.send(format!("GET {path} HTTP/1.1\r\nhost: jaeger\r\nconnection: close\r\n\r\n")).await;
    let (head, body) = wire.response().await;
    if head.status() != 200 {
        return Err(format!("{head:?}: {}", String::from_utf8_lossy(&body)));
    }
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

fn spans(trace: &Value) -> Vec<Span> {
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("no text in {trace}")).to_owned();
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no number in {trace}"));
    let span = |span: &Value| Span {
        id: text(&span["spanID"]),
        parent: span["references"].as_array().and_then(|references| {
            let parent = references.iter().find(|reference| reference["refType"] == "CHILD_OF")?;
            Some(text(&parent["spanID"]))
        }),
        service: text(&trace["processes"][text(&span["processID"])]["serviceName"]),
        tags: span["tags"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|tag| (text(&tag["key"]), tag["value"].clone()))
            .collect(),
        start: number(&span["startTime"]),
        duration: number(&span["duration"]),
    };
    let mut spans: Vec<Span> = trace["spans"].as_array().into_iter().flatten().map(span).collect();
    spans.sort_by_key(|span| span.start);
    spans
}
