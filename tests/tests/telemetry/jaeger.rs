//! The demo's traces in a real Jaeger.

use std::net::Ipv4Addr;

use tulle_tests::jaeger::{Jaeger, assert_whole};
use tulle_tests::netns::in_a_node;
use tulle_tests::{Folder, Process, Program, binary, eventually};

/// Where Jaeger takes OTLP over gRPC and HTTP.
const OTLP: [(&str, &str); 2] = [("127.0.0.1:4317", "grpc"), ("http://127.0.0.1:4318", "http/protobuf")];

/// The demo's three services in Jaeger, over both forms of OTLP.
#[test]
#[ignore = "needs Jaeger, which `.ci/run telemetry` builds"]
fn r20_a_trace_of_the_demo_holds_every_hop_in_its_order() {
    for (collector, protocol) in OTLP {
        in_a_node(async || {
            let folder = Folder::new();
            let jaeger = Jaeger::start(&folder, Ipv4Addr::LOCALHOST).await;
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
                let traces = jaeger.traces("web").await?;
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
