//! A real Jaeger, and the demo's traces in it, as its own query API tells them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde_json::Value;
use tokio::net::TcpStream;
use tulle_tests::netns::in_a_node;
use tulle_tests::{Folder, Process, Program, Wire, binary, eventually};

/// Where Jaeger's query API is, and where it takes OTLP over gRPC and HTTP, unless it is told otherwise: it is alone in its
/// network.
const QUERY: u16 = 16686;
const OTLP: [(&str, &str); 2] = [("127.0.0.1:4317", "grpc"), ("http://127.0.0.1:4318", "http/protobuf")];

/// One span of a trace, as Jaeger tells it.
#[derive(Debug)]
struct Span {
    id: String,
    /// Of the span that it is a child of.
    parent: Option<String>,
    service: String,
    tags: Vec<(String, Value)>,
    /// Microseconds.
    start: u64,
    duration: u64,
}

/// The program that `.ci/run` builds.
fn jaeger() -> PathBuf {
    let path = std::env::var_os("TULLE_TEST_JAEGER");
    path.expect("TULLE_TEST_JAEGER names Jaeger's program; `.ci/run telemetry` builds it").into()
}

async fn ask(path: &str) -> Result<Value, String> {
    let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, QUERY))).await;
    let mut wire = Wire::new(stream.map_err(|error| error.to_string())?);
    wire.send(format!("GET {path} HTTP/1.1\r\nhost: jaeger\r\nconnection: close\r\n\r\n")).await;
    let (head, body) = wire.response().await;
    if head.status() != 200 {
        return Err(format!("{head:?}: {}", String::from_utf8_lossy(&body)));
    }
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

/// The traces that begin at `web`, each with its spans in the order of their beginnings.
async fn traces() -> Result<Vec<Vec<Span>>, String> {
    let answer = ask("/api/traces?service=web&limit=1000").await?;
    let traces = answer["data"].as_array().ok_or_else(|| format!("no list: {answer}"))?;
    Ok(traces.iter().map(spans).collect())
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

impl Span {
    fn tag(&self, key: &str) -> &Value {
        self.tags.iter().find(|(name, _)| name == key).map_or(&Value::Null, |(_, value)| value)
    }

    /// Who tells it, of which side, about which other side.
    fn hop(&self) -> [String; 2] {
        [self.service.clone(), self.tag("span.kind").as_str().unwrap_or_default().to_owned()]
    }
}

/// Every hop of one trace: who told it and from which side, in their order, each a child of the one before and begun within it.
fn assert_whole(spans: &[Span]) {
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

/// The demo's three services in Jaeger, over both forms of OTLP.
#[test]
#[ignore = "needs Jaeger, which `.ci/run telemetry` builds"]
fn r20_a_trace_of_the_demo_holds_every_hop_in_its_order() {
    for (collector, protocol) in OTLP {
        in_a_node(async || {
            let folder = Folder::new();
            let mut jaeger = Process::start(Program::new("jaeger", jaeger()), &folder);
            eventually("Jaeger answers", async || match jaeger.ended() {
                Some(status) => panic!("Jaeger ended: {status}\n{}", jaeger.tail()),
                None => ask("/api/services").await.map(drop),
            })
            .await;
            let demo = Program::new("demo", binary("tulle"))
                .arg("demo")
                .flag("--for", "5s")
                .flag("--rps", "20")
                .flag("--jaeger", collector)
                .env("TMPDIR", folder.path(""));
            let mut demo = Process::start(demo, &folder);
            let ended = demo.wait().await;
            assert!(ended.success(), "{protocol}: {}", demo.tail());
            let traces = eventually("all that the demo sent is there", async || {
                let traces = traces().await?;
                // 20 a second for 5 s; a trace that has not come as a whole will.
                match traces.iter().find(|spans| spans.len() != 4) {
                    Some(spans) => Err(format!("{protocol}: not of four spans: {spans:#?}")),
                    None if traces.len() < 60 => Err(format!("{protocol}: {} traces", traces.len())),
                    None => Ok(traces),
                }
            })
            .await;
            traces.iter().for_each(|spans| assert_whole(spans));
            jaeger.stop().await;
        });
    }
}
