//! Traces (R20): spans with the right parents whatever headers an application knows, and a collector that nobody waits for.

mod collector;
mod exemplars;
mod grpc;
mod policies;
mod random;
mod tls;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;
use tulle_tests::app::App;
use tulle_tests::{Head, Wire, Workload, World, eventually};

use self::collector::{Collector, Span};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
/// The headers that an application passes on.
const PASSED: [&str; 9] = [
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
];

/// What a workload is started with.
type Settings<'a> = &'a [(&'a str, &'a str)];

/// `web` → `orders` → `payments`: each application of the first two passes on what headers of traces it got.
struct Chain {
    _world: World,
    web: Workload,
    orders: Workload,
    _payments: Workload,
    _apps: [App; 2],
}

impl Chain {
    async fn start(settings: Settings<'_>) -> Self {
        let world = World::strict().await;
        world.service("orders", "http");
        world.service("payments", "http");
        let told = App::wire(async |mut wire: Wire| {
            while let Some(head) = wire.try_head().await {
                answer(&mut wire, &lines(&head)).await;
            }
        })
        .await;
        let payments = traced(&world, "payments", settings, |it| it.serves("payments", told.address())).await;
        let next: Arc<OnceLock<SocketAddr>> = Arc::default();
        let known = Arc::clone(&next);
        let passes = App::wire(move |mut wire: Wire| {
            let known = Arc::clone(&known);
            async move {
                while let Some(head) = wire.try_head().await {
                    let mut on = Wire::connect(*known.get().unwrap()).await;
                    on.send(format!("GET /pay HTTP/1.1\r\nhost: payments\r\n{}\r\n", lines(&head))).await;
                    let (_, body) = on.response().await;
                    let got = lines(&head);
                    answer(&mut wire, &format!("{got}---\r\n{}", String::from_utf8(body).unwrap())).await;
                }
            }
        })
        .await;
        payments.counts("tulle_registered", &[], 1.0).await;
        let orders =
            traced(&world, "orders", settings, |it| it.serves("orders", passes.address()).calls("payments"))
                .await;
        next.set(orders.outbound("payments")).unwrap();
        orders.counts("tulle_registered", &[], 1.0).await;
        let web = traced(&world, "web", settings, |it| it.calls("orders")).await;
        Self { _world: world, web, orders, _payments: payments, _apps: [passes, told] }
    }

    /// Asks `orders` with these lines of headers; what `orders` and `payments` got of them.
    async fn ask(&self, fields: &str) -> [Head; 2] {
        let mut wire = self.web.connect("orders").await;
        wire.send(format!("GET /order?secret=1 HTTP/1.1\r\nhost: orders\r\n{fields}\r\n")).await;
        let (head, body) = wire.response().await;
        assert_eq!(head.status(), 200, "{head:?}");
        let body = String::from_utf8(body).unwrap();
        let (one, two) = body.split_once("---\r\n").unwrap();
        [one, two].map(|lines| Head::parse(format!("GET / HTTP/1.1\r\n{lines}\r\n").as_bytes()))
    }
}

/// The lines of the headers that are passed on, as they came.
fn lines(head: &Head) -> String {
    let passed = head.fields.iter().filter(|(name, _)| PASSED.contains(&name.to_ascii_lowercase().as_str()));
    passed.map(|(name, value)| format!("{name}: {value}\r\n")).collect()
}

async fn answer(wire: &mut Wire, body: &str) {
    wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
}

type Building<'a> = tulle_tests::WorkloadBuilder<'a>;

async fn traced<'a>(
    world: &'a World,
    name: &str,
    settings: Settings<'_>,
    change: impl FnOnce(Building<'a>) -> Building<'a>,
) -> Workload {
    let builder = change(world.workload(name));
    let with = |program: tulle_tests::Program| {
        let program = program.env("OTEL_BSP_SCHEDULE_DELAY", "50");
        settings.iter().fold(program, |program, (name, value)| program.env(name, *value))
    };
    builder.program(with).start().await
}

/// The span of that service and kind.
fn of<'a>(spans: &'a [Span], service: &str, kind: SpanKind) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|span| span.service == service && span.kind == kind).collect();
    assert_eq!(found.len(), 1, "{service} {kind:?}: {spans:#?}");
    found[0]
}

/// The four spans of a chain, each the parent of the next.
fn chained(spans: &[Span]) -> [&Span; 4] {
    let chain = [
        of(spans, "web", SpanKind::Client),
        of(spans, "orders", SpanKind::Server),
        of(spans, "orders", SpanKind::Client),
        of(spans, "payments", SpanKind::Server),
    ];
    for pair in chain.windows(2) {
        assert_eq!((&pair[1].parent, &pair[1].trace), (&pair[0].id, &pair[0].trace), "{spans:#?}");
    }
    chain
}

const ALWAYS: (&str, &str) = ("OTEL_TRACES_SAMPLER", "parentbased_always_on");

#[tokio::test(flavor = "multi_thread")]
async fn r20_spans_have_the_right_parents_whatever_headers_an_application_knows() {
    let collector = Collector::grpc().await;
    let url = collector.url();
    let chain = Chain::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url), ALWAYS]).await;
    let multi = format!("X-B3-TraceId: {TRACE}\r\nX-B3-SpanId: {SPAN}\r\nX-B3-Sampled: 1\r\n");
    let short = &TRACE[16..];
    let debug = format!("X-B3-TraceId: {short}\r\nX-B3-SpanId: {SPAN}\r\nX-B3-Flags: 1\r\n");
    let ids = [("x-b3-traceid", "TRACE"), ("x-b3-spanid", "SPAN"), ("x-b3-parentspanid", "PARENT")];
    let mut seen = 0;
    for (fields, trace, b3) in [
        // None: the proxy begins a trace.
        (String::new(), None, vec![]),
        (format!("traceparent: 00-{TRACE}-{SPAN}-01\r\n"), Some(TRACE), vec![]),
        (format!("Traceparent: cc-{TRACE}-{SPAN}-01-later\r\n"), Some(TRACE), vec![]),
        (format!("b3: {TRACE}-{SPAN}-1\r\n"), Some(TRACE), vec![("b3", "TRACE-SPAN-1-PARENT")]),
        (format!("b3: {TRACE}-{SPAN}\r\n"), Some(TRACE), vec![("b3", "TRACE-SPAN-1-PARENT")]),
        (format!("b3: {short}-{SPAN}-d\r\n"), Some(short), vec![("b3", "TRACE-SPAN-d-PARENT")]),
        (multi, Some(TRACE), [("x-b3-sampled", "1")].into_iter().chain(ids).collect()),
        (debug, Some(short), [("x-b3-flags", "1")].into_iter().chain(ids).collect()),
        // Malformed: as if there were none.
        (format!("traceparent: 00-{TRACE}-{SPAN}\r\n"), None, vec![]),
        ("traceparent: ~nonsense\r\nb3: x-y-z\r\nx-b3-traceid: 7\r\n".to_owned(), None, vec![]),
    ] {
        let got = chain.ask(&fields).await;
        seen += 4;
        let spans = collector.collected.spans(seen).await.split_off(seen - 4);
        let [web, orders, out, payments] = chained(&spans);
        let parent = if trace.is_some() { SPAN } else { "" };
        assert_eq!(web.parent, parent, "{fields}");
        match trace {
            Some(trace) => {
                assert_eq!(web.trace.trim_start_matches('0'), trace.trim_start_matches('0'), "{fields}")
            }
            None => assert_ne!(web.trace, TRACE, "{fields}"),
        }
        // What the applications get is the child of their proxy's span, in W3C's form and in that in which it came.
        for (head, span) in got.iter().zip([orders, payments]) {
            assert_eq!(
                head.get("traceparent").unwrap(),
                format!("00-{}-{}-01", span.trace, span.id),
                "{fields}"
            );
            let Some(trace) = trace else { continue };
            // The flag, the parent and an ID of 64 bits as well, though another proxy was between, which added `traceparent`.
            let told: BTreeMap<_, _> = head
                .fields
                .iter()
                .filter(|(name, _)| name.to_ascii_lowercase().contains("b3"))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
                .collect();
            let value = |form: &str| {
                form.replace("TRACE", trace).replace("SPAN", &span.id).replace("PARENT", &span.parent)
            };
            let expected = b3.iter().map(|(name, form)| ((*name).to_owned(), value(form)));
            assert_eq!(told, expected.collect(), "{fields}");
        }
        assert!(web.start <= orders.start && orders.start <= out.start, "{spans:#?}");
        assert!(web.end > web.start);
    }
    chain.web.counts("tulle_trace_spans_exported_total", &[], 10.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_other_headers_of_traces_pass_byte_for_byte() {
    let collector = Collector::grpc().await;
    let url = collector.url();
    let chain = Chain::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url), ALWAYS]).await;
    let (state, baggage) = ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "userId=alice;p=1 , x=%20y");
    for traceparent in [format!("traceparent: 00-{TRACE}-{SPAN}-01\r\n"), String::new()] {
        let fields = format!("{traceparent}TraceState: {state}\r\nBaggage: {baggage}\r\nbaggage: more=1\r\n");
        for head in chain.ask(&fields).await {
            let passed: Vec<_> =
                head.fields.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("traceparent")).collect();
            let line = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            let expected = [line("TraceState", state), line("Baggage", baggage), line("baggage", "more=1")];
            assert_eq!(passed, expected.iter().collect::<Vec<_>>());
        }
    }
    let spans = collector.collected.spans(8).await;
    let told = spans.iter().find(|span| span.trace == TRACE && span.service == "web").unwrap();
    assert_eq!(told.state, state);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_no_header_is_touched() {
    for settings in
        [&[][..], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"), ("OTEL_SDK_DISABLED", "true")]]
    {
        let chain = Chain::start(settings).await;
        let fields = format!("TraceParent: 00-{TRACE}-{SPAN}-01\r\nx-B3-sampled: 1\r\n");
        for fields in [&*fields, ""] {
            for head in chain.ask(fields).await {
                assert_eq!(lines(&head), fields);
            }
        }
        assert!(!chain.web.metrics().await.has("tulle_trace_spans_exported_total"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_what_is_recorded_is_decided_once_for_all() {
    let collector = Collector::grpc().await;
    let url = collector.url();
    let chain = Chain::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &url),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
    ])
    .await;
    // Whatever the ratio, no is no; the headers pass as they are.
    for fields in [
        format!("traceparent: 00-{TRACE}-{SPAN}-00\r\n"),
        format!("traceparent: 00-{TRACE}-{SPAN}-00\r\nb3: {TRACE}-{SPAN}-0\r\n"),
    ] {
        for head in chain.ask(&fields).await {
            assert_eq!(lines(&head), fields);
        }
    }
    for head in chain.ask("b3: 0\r\n").await {
        assert!(
            head.get("b3").unwrap().ends_with("-0") && head.get("traceparent").unwrap().ends_with("-00"),
            "{head:?}"
        );
    }
    // Of those that begin here, all proxies record the same ones.
    let (mut recorded, mut not) = (0, 0);
    for _ in 0..40 {
        let [one, two] = chain.ask("").await;
        let flags = |head: &Head| head.get("traceparent").unwrap()[53..].to_owned();
        assert_eq!(flags(&one), flags(&two));
        if flags(&one) == "01" { recorded += 1 } else { not += 1 }
    }
    assert!(recorded > 0 && not > 0, "{recorded} {not}");
    let spans = collector.collected.spans(4 * recorded).await;
    for span in spans.iter().filter(|span| span.service == "web") {
        let of_trace: Vec<_> = spans.iter().filter(|other| other.trace == span.trace).cloned().collect();
        chained(&of_trace);
        assert_eq!(span.parent, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_propagators_and_samplers_are_those_that_are_said() {
    let collector = Collector::http().await;
    let url = format!("{}/v1/traces", collector.url());
    let chain = Chain::start(&[
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &url),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20secret"),
        ("OTEL_TRACES_SAMPLER", "always_on"),
        ("OTEL_PROPAGATORS", "b3multi,jaeger"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    ])
    .await;
    let traceparent = format!("00-{TRACE}-{SPAN}-00");
    let got = chain.ask(&format!("traceparent: {traceparent}\r\n")).await;
    let spans = collector.collected.spans(4).await;
    let [web, orders, _, payments] = chained(&spans);
    assert_eq!(web.parent, "", "what is not asked for is not read");
    for (head, span) in got.iter().zip([orders, payments]) {
        assert_eq!(head.get("traceparent"), Some(&*traceparent));
        assert_eq!((head.get("x-b3-spanid"), head.get("x-b3-sampled")), (Some(&*span.id), Some("1")));
    }
    assert_eq!(collector.collected.key().as_deref(), Some("a secret"));
    for (key, value) in [
        ("service.name", "web"),
        ("service.namespace", "default"),
        ("deployment.environment.name", "test"),
        ("telemetry.distro.name", "tulle-proxy"),
    ] {
        assert_eq!(web.resource[key], value, "{key}");
    }
    assert!(chain.web.diagnostics().contains("`jaeger` is not known"), "{}", chain.web.diagnostics());
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_span_says_what_the_log_says_and_the_log_names_the_span() {
    let collector = Collector::grpc().await;
    let url = collector.url();
    let chain = Chain::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url), ALWAYS]).await;
    chain.ask("").await;
    let spans = collector.collected.spans(4).await;
    let [web, orders, ..] = chained(&spans);
    assert_eq!((&*web.name, &*orders.name), ("GET", "GET"));
    let orders_id = chain.orders.identity();
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("url.full", "http://orders:8080/order"),
        ("server.address", "orders"),
        ("server.port", "8080"),
        ("network.protocol.version", "1.1"),
        ("tulle.service", "default/orders:8080"),
        ("tulle.destination", &orders_id),
        ("tulle.tls", "mtls"),
    ] {
        assert_eq!(web.get(key), value, "{key}");
    }
    let web_id = chain.web.identity();
    for (key, value) in
        [("url.path", "/order"), ("tulle.source", &web_id), ("tulle.verdict", "allow"), ("tulle.tls", "mtls")]
    {
        assert_eq!(orders.get(key), value, "{key}");
    }
    assert_eq!(web.get("network.peer.port"), chain.orders.inbound().port().to_string());
    assert!(!web.is_error && !orders.is_error);
    assert!(!format!("{spans:?}").contains("secret=1"));
    chain.web.logs(&[("trace_id", json!(web.trace)), ("span_id", json!(web.id))]).await;
    chain
        .orders
        .logs(&[
            ("trace_id", json!(orders.trace)),
            ("span_id", json!(orders.id)),
            ("direction", json!("inbound")),
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_a_line_names_the_trace_that_its_request_is_in_and_no_other() {
    let collector = Collector::grpc().await;
    let url = collector.url();
    let short = &TRACE[16..];
    let padded = format!("{short:0>32}");
    // What comes in, and the trace that it is of; of the others one begins here, if requests are traced.
    let cases = [
        (format!("traceparent: 00-{TRACE}-{SPAN}-01\r\n"), Some(TRACE)),
        (format!("b3: {TRACE}-{SPAN}-1\r\n"), Some(TRACE)),
        (format!("X-B3-TraceId: {short}\r\nX-B3-SpanId: {SPAN}\r\n"), Some(&*padded)),
        (format!("traceparent: 00-{TRACE}-{}-01\r\n", "0".repeat(16)), None),
        (format!("traceparent: 00-{TRACE}-{SPAN}\r\nx-b3-traceid: {TRACE}\r\n"), None),
    ];
    let world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let orders = traced(&world, "orders", &[], |it| it.serves("orders", app.address())).await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let to = ("OTEL_EXPORTER_OTLP_ENDPOINT", &*url);
    let samplers = [
        ("on", vec![to, ("OTEL_TRACES_SAMPLER", "always_on")]),
        ("off", vec![to, ("OTEL_TRACES_SAMPLER", "always_off")]),
        ("untraced", vec![]),
    ];
    for (name, settings) in samplers {
        let web = traced(&world, name, &settings, |it| it.calls("orders")).await;
        for (number, (fields, trace)) in cases.iter().enumerate() {
            let (path, mut wire) = (format!("/{name}/{number}"), web.connect("orders").await);
            wire.send(format!("GET {path} HTTP/1.1\r\nhost: orders\r\n{fields}\r\n")).await;
            assert_eq!(wire.response().await.0.status(), 200);
            let said = [("path", json!(path))];
            let (line, next) = (web.logs(&said).await, orders.logs(&said).await);
            let said = line["trace_id"].as_str();
            match (trace, name) {
                (Some(trace), _) => assert_eq!(said, Some(*trace), "{line}"),
                (None, "untraced") => assert_eq!(said, None, "{line}"),
                (None, _) => assert!(said.is_some_and(|said| said != TRACE), "{line}"),
            }
            assert_eq!(next["trace_id"].as_str(), said, "both proxies name the same: {next}");
            assert_eq!(line["span_id"].is_string(), name == "on", "{line}");
            if name == "on" {
                let span = collector.collected.spans(number + 1).await.remove(number);
                assert_eq!((said, line["span_id"].as_str()), (Some(&*span.trace), Some(&*span.id)));
            }
        }
    }
    assert_eq!(collector.collected.all().len(), cases.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_what_a_proxy_answers_itself_and_what_it_sends_again_is_told() {
    let collector = Collector::grpc().await;
    let url = collector.url();
    let world = World::strict().await;
    world.service("orders", "http");
    // Closes every connection that has served one request, without a word: the next is sent again.
    let app = App::wire(async |mut wire: Wire| {
        if wire.try_head().await.is_some() {
            answer(&mut wire, "ok").await;
        }
    })
    .await;
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*url), ALWAYS];
    let orders = traced(&world, "orders", &settings, |it| it.serves("orders", app.address())).await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = traced(&world, "web", &settings, |it| it.calls("orders").calls("nowhere")).await;
    let mut wire = web.connect("nowhere").await;
    wire.send("GET / HTTP/1.1\r\nhost: nowhere\r\n\r\n").await;
    let (head, _) = wire.response().await;
    let reason = head.get("x-tulle-error").unwrap().to_owned();
    let spans = collector.collected.spans(1).await;
    assert!(spans[0].is_error);
    assert_eq!((spans[0].get("tulle.reason"), spans[0].get("error.type")), (&*reason, &*reason));
    assert_eq!(spans[0].get("tulle.reason_by"), "default/web/outbound");
    world.yaml(
        "retry.yaml",
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: nobody\n  namespace: default\n\
         spec:\n  targetRefs:\n    - {group: \"\", kind: Service, name: orders}\n  action: ALLOW\n  rules:\n    - name: other\n      \
         from:\n        - identities: [\"default/other\"]\n",
    );
    eventually("the request is denied", async || {
        let mut wire = web.connect("orders").await;
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        let (head, _) = wire.response().await;
        if head.status() == 403 { Ok(()) } else { Err(head.line.clone()) }
    })
    .await;
    let spans = eventually("both spans of the denied request", async || {
        let all = collector.collected.all().into_iter();
        let denied: Vec<_> = all.filter(|span| span.get("tulle.reason") == "policy_denied").collect();
        if denied.len() == 2 { Ok(denied) } else { Err(format!("{denied:#?}")) }
    })
    .await;
    let (out, into) = (of(&spans, "web", SpanKind::Client), of(&spans, "orders", SpanKind::Server));
    assert_eq!((out.get("tulle.reason"), out.is_error), ("policy_denied", true));
    assert_eq!((into.get("tulle.verdict"), into.get("tulle.reason")), ("deny", "policy_denied"));
    assert!(!into.is_error, "a 403 is its client's business");
    assert_eq!(out.get("tulle.reason_by"), "default/orders/inbound");
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_request_that_is_sent_again_has_one_span_that_says_so() {
    let collector = Collector::grpc().await;
    let url = collector.url();
    let world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*url), ALWAYS];
    // An application that nothing listens at, and one that answers.
    let gone = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let one = traced(&world, "orders", &settings, |it| it.serves("orders", gone)).await;
    let two = traced(&world, "orders-2", &settings, |it| it.serves("orders", app.address())).await;
    for workload in [&one, &two] {
        workload.counts("tulle_registered", &[], 1.0).await;
    }
    let web = traced(&world, "web", &settings, |it| it.calls("orders")).await;
    let again = eventually("a request that was sent again", async || {
        let mut wire = web.connect("orders").await;
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        assert_eq!(wire.response().await.0.status(), 200);
        let spans = collector.collected.all();
        let again = spans
            .iter()
            .find(|span| span.service == "web" && !span.get("http.request.resend_count").is_empty())
            .cloned();
        again.ok_or_else(|| format!("{spans:#?}"))
    })
    .await;
    assert_eq!(again.get("http.request.resend_count"), "1");
    let [(name, told)] = &again.events[..] else { panic!("{again:#?}") };
    assert_eq!(name, "tulle.retry");
    assert_eq!(told["tulle.endpoint"], one.inbound().to_string());
    assert_eq!(told["http.response.status_code"], "503");
    assert_eq!(again.get("tulle.endpoint"), two.inbound().to_string());
    let refused = eventually("the span of the endpoint that could not", async || {
        let spans = collector.collected.all();
        let refused = spans.iter().find(|span| span.parent == again.id && span.service == "orders").cloned();
        refused.ok_or_else(|| format!("{spans:#?}"))
    })
    .await;
    assert!(refused.is_error && !again.is_error);
    assert_eq!(refused.get("tulle.reason"), "connect_failed");
}

/// The longest that a request took, of so many.
async fn slowest(web: &Workload, requests: usize) -> Duration {
    let (mut slowest, mut wire) = (Duration::ZERO, web.connect("orders").await);
    for _ in 0..requests {
        let started = Instant::now();
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        assert_eq!(wire.response().await.0.status(), 200);
        slowest = slowest.max(started.elapsed());
    }
    slowest
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_collector_that_never_answers_is_gone_or_comes_late_harms_nobody() {
    let mute = StdListener::bind("127.0.0.1:0").unwrap();
    let late = StdListener::bind("127.0.0.1:0").unwrap();
    let (mute_url, late_address) =
        (format!("http://{}", mute.local_addr().unwrap()), late.local_addr().unwrap());
    drop(late);
    let late_url = format!("http://{late_address}");
    let world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let small: [(&str, &str); 4] = [
        ALWAYS,
        ("OTEL_BSP_MAX_QUEUE_SIZE", "20"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "5000"),
    ];
    let with = |url| [&small[..], &[("OTEL_EXPORTER_OTLP_ENDPOINT", url)]].concat();
    let orders = traced(&world, "orders", &with(&late_url), |it| it.serves("orders", app.address())).await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = traced(&world, "web", &with(&mute_url), |it| it.calls("orders")).await;
    let took = slowest(&web, 200).await;
    assert!(took < Duration::from_secs(4), "{took:?}");
    for (workload, queue) in
        [(&web, "queue_full"), (&orders, "queue_full"), (&web, "exporter"), (&orders, "exporter")]
    {
        workload.counts("tulle_trace_spans_dropped_total", &[("cause", queue)], 1.0).await;
    }
    for workload in [&web, &orders] {
        workload.counts("tulle_trace_export_failures_total", &[], 1.0).await;
        let metrics = workload.metrics().await;
        assert!(metrics.sum("tulle_trace_spans_exported_total", &[]).abs() < 0.1, "{metrics:?}");
        eventually("the log says so", async || {
            let said = workload.diagnostics();
            if said.contains("spans cannot be exported") { Ok(()) } else { Err(said) }
        })
        .await;
    }
    // It comes late.
    let listener = eventually("the address is free", async || {
        StdListener::bind(late_address).map_err(|error| error.to_string())
    })
    .await;
    let collector = Collector::grpc_on(listener).await;
    eventually("spans arrive", async || {
        slowest(&web, 1).await;
        if collector.collected.all().is_empty() { Err("none".to_owned()) } else { Ok(()) }
    })
    .await;
    orders.counts("tulle_trace_spans_exported_total", &[], 1.0).await;
    drop(mute);
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_the_last_spans_are_sent_when_a_proxy_ends() {
    let collector = Collector::grpc().await;
    let url = collector.url();
    let world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let slow = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*url), ALWAYS, ("OTEL_BSP_SCHEDULE_DELAY", "600000")];
    let orders = traced(&world, "orders", &[], |it| it.serves("orders", app.address())).await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let mut web = traced(&world, "web", &slow, |it| it.calls("orders")).await;
    slowest(&web, 3).await;
    assert!(collector.collected.all().is_empty());
    assert!(web.process().stop().await.success());
    assert_eq!(collector.collected.all().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_variable_stops_the_start_and_is_named() {
    let world = World::strict().await;
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
    ] {
        let program = tulle_tests::Program::new("bad", tulle_tests::binary("tulle-proxy")).env(name, value);
        let output = program.output();
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && said.contains(name) && said.contains(value), "{said}");
    }
    drop(world);
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_the_mesh_says_where_spans_go_and_a_change_is_in_force_at_once() {
    let (first, second, own) = (Collector::grpc().await, Collector::http().await, Collector::grpc().await);
    let world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let own_url = own.url();
    let orders = traced(&world, "orders", &[("OTEL_EXPORTER_OTLP_ENDPOINT", &own_url)], |it| {
        it.serves("orders", app.address())
    })
    .await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = traced(&world, "web", &[], |it| it.calls("orders")).await;
    let says = |collector: &Collector, more: &str| {
        world.yaml(
            "mesh.yaml",
            &format!(
                "apiVersion: policy.tulle.dev/v1alpha1\nkind: Mesh\nmetadata:\n  name: mesh\nspec:\n  mtls: strict\n  trustDomain: \
                 cluster.local\n  networks: [127.0.0.0/8]\n  tracing:\n    collector: {}\n{more}    sampling: {{percent: 100}}\n",
                collector.url()
            ),
        );
    };
    for (collector, more) in [(&first, ""), (&second, "    protocol: http/protobuf\n")] {
        says(collector, more);
        eventually("spans arrive where the mesh says", async || {
            slowest(&web, 1).await;
            if collector.collected.all().is_empty() { Err("none".to_owned()) } else { Ok(()) }
        })
        .await;
        let spans = collector.collected.all();
        assert!(spans.iter().all(|span| span.service == "web"), "a variable wins: {spans:#?}");
    }
    let sent = first.collected.all().len();
    slowest(&web, 5).await;
    assert_eq!(first.collected.all().len(), sent);
    // Its own collector, and of the mesh what it does not say.
    eventually("spans arrive where the variable says", async || {
        let spans = own.collected.all();
        if spans.iter().any(|span| span.service == "orders") { Ok(()) } else { Err("none".to_owned()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_connections_that_carry_no_http_are_traced_where_that_is_asked_for() {
    let collector = Collector::grpc().await;
    let url = collector.url();
    let world = World::strict().await;
    world.service("orders", "tcp");
    let app = App::echo().await;
    let settings =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", &*url), ALWAYS, ("TULLE_PROXY_TRACING_CONNECTIONS", "true")];
    let orders = traced(&world, "orders", &settings[..2], |it| it.serves("orders", app.address())).await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = traced(&world, "web", &settings, |it| it.calls("orders")).await;
    let mut wire = web.connect("orders").await;
    wire.send("hello").await;
    assert_eq!(wire.exactly(5).await, b"hello");
    wire.finish().await;
    let spans = collector.collected.spans(1).await;
    let span = of(&spans, "web", SpanKind::Client);
    assert_eq!((&*span.name, span.get("network.transport")), ("TCP default/orders:8080", "tcp"));
    assert_eq!((span.get("tulle.bytes_in"), span.get("tulle.bytes_out")), ("5", "5"));
    assert_eq!(span.get("tulle.destination"), orders.identity());
    assert!(span.end > span.start && span.parent.is_empty());
    web.logs(&[("trace_id", json!(span.trace)), ("protocol", json!("TCP"))]).await;
    orders.logs(&[("protocol", json!("TCP"))]).await;
    assert_eq!(collector.collected.all().len(), 1, "the other proxy was not asked to");
}
