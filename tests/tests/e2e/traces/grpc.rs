//! Spans of gRPC's calls: what they are told by, whatever becomes of them and however often they are sent (R20).

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderName, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tulle_tests::app::{App, Body, full};
use tulle_tests::{Workload, World, eventually, within};

use super::collector::{Collector, Span};
use super::{ALWAYS, of, traced};

/// A message of gRPC, as it is framed.
const MESSAGE: &[u8] = b"\0\0\0\0\x02ok";
const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Whose child each call was told to be, by its path.
type Parents = Arc<Mutex<HashMap<String, Vec<String>>>>;

/// Does what a method's name says.
async fn application(parents: &Parents) -> App {
    let parents = Arc::clone(parents);
    App::http2(move |request: Request<Incoming>| {
        let parents = Arc::clone(&parents);
        async move {
            let (head, body) = request.into_parts();
            let parent = head.headers["traceparent"].to_str().unwrap()[36..52].to_owned();
            let visit = {
                let mut parents = parents.lock().unwrap();
                let visits = parents.entry(head.uri.path().to_owned()).or_default();
                visits.push(parent);
                visits.len()
            };
            let answer = Response::builder().header("content-type", "application/grpc");
            let message = || Ok::<_, Infallible>(Frame::data(Bytes::from_static(MESSAGE)));
            let ends = |status: u32| HeaderMap::from_iter([(STATUS, status.into())]);
            let body = match head.uri.path().rsplit('/').next().unwrap() {
                "Silent" => return std::future::pending().await,
                "Absent" => return answer.header(STATUS, "5").body(full("")).unwrap(),
                "Flaky" if visit == 1 => return answer.header(STATUS, "14").body(full("")).unwrap(),
                "Unknown" => return answer.header(STATUS, "12").body(full("")).unwrap(),
                "Stalls" => {
                    BodyExt::boxed(StreamBody::new(stream::iter([message()]).chain(stream::pending())))
                }
                "Echo" => BodyExt::boxed(
                    body.map_err(|error| -> Infallible { panic!("{error}") })
                        .with_trailers(std::future::ready(Some(Ok(ends(0))))),
                ),
                "Breaks" => {
                    BodyExt::boxed(StreamBody::new(stream::iter([message(), Ok(Frame::trailers(ends(13)))])))
                }
                _ => BodyExt::boxed(StreamBody::new(stream::iter([message(), Ok(Frame::trailers(ends(0)))]))),
            };
            answer.body(body).unwrap()
        }
    })
    .await
}

/// `web`, which calls `shop`.
struct Shop {
    collector: Collector,
    parents: Parents,
    world: World,
    web: Workload,
    shop: Workload,
    _app: App,
}

impl Shop {
    async fn start() -> Self {
        let collector = Collector::grpc().await;
        let (url, parents, world) = (collector.url(), Parents::default(), World::strict().await);
        world.service("shop", "kubernetes.io/h2c");
        let app = application(&parents).await;
        let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*url), ALWAYS];
        let shop = traced(&world, "shop", &settings, |it| it.serves("shop", app.address())).await;
        shop.counts("tulle_registered", &[], 1.0).await;
        let web = traced(&world, "web", &settings, |it| it.calls("shop")).await;
        Self { collector, parents, world, web, shop, _app: app }
    }

    async fn sender(&self) -> SendRequest<Body> {
        let stream = TcpStream::connect(self.web.outbound("shop")).await.unwrap();
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// The head of what `path` answers in this trace.
    async fn call(&self, path: &str, trace: u32, fields: &[(&str, &str)], body: Body) -> Response<Incoming> {
        let request = Request::post(format!("http://shop{path}")).header("te", "trailers");
        let request = request.header("content-type", "application/grpc");
        let request = request.header("traceparent", format!("00-{trace:032x}-{:016x}-01", 7));
        let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let request = request.body(body).unwrap();
        within(path, self.sender().await.send_request(request)).await.unwrap()
    }

    /// The status that a whole call comes to.
    async fn status(&self, path: &str, trace: u32, fields: &[(&str, &str)]) -> String {
        let answer = self.call(path, trace, fields, full(MESSAGE)).await;
        let (head, body) = answer.into_parts();
        let rest = within(path, body.collect()).await.unwrap();
        let fields = rest.trailers().unwrap_or(&head.headers);
        fields.get(STATUS).map_or("", |status| status.to_str().unwrap()).to_owned()
    }

    /// So many spans of this trace.
    async fn spans(&self, trace: u32, count: usize) -> Vec<Span> {
        let trace = format!("{trace:032x}");
        eventually(&format!("{count} spans of {trace}"), async || {
            let spans = self.collector.collected.all().into_iter().filter(|span| span.trace == trace);
            let spans: Vec<_> = spans.collect();
            if spans.len() == count { Ok(spans) } else { Err(format!("{spans:#?}")) }
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_calls_are_told_by_the_conventions_of_rpc_and_blamed_on_whom_they_should_be() {
    let shop = Shop::start().await;
    // The method, its status, and whether it is an error to the client, and to the server.
    for (trace, (method, code, status, errors)) in [
        ("Get", "0", "OK", [false, false]),
        ("Absent", "5", "NOT_FOUND", [true, false]),
        ("Breaks", "13", "INTERNAL", [true, true]),
        ("Unknown", "12", "UNIMPLEMENTED", [true, true]),
    ]
    .into_iter()
    .enumerate()
    {
        let (path, trace) = (format!("/shop.v1.Orders/{method}"), trace as u32 + 1);
        assert_eq!(shop.status(&path, trace, &[]).await, code, "{path}");
        let spans = shop.spans(trace, 2).await;
        let [web, orders] = [of(&spans, "web", SpanKind::Client), of(&spans, "shop", SpanKind::Server)];
        assert_eq!((&*web.parent, &orders.parent), ("0000000000000007", &web.id));
        assert_eq!(shop.parents.lock().unwrap()[&path], std::slice::from_ref(&orders.id));
        assert_eq!([web.is_error, orders.is_error], errors, "{spans:#?}");
        let whole = path.trim_start_matches('/');
        // What the application does not know may be any name whatever: it is no name of a span.
        let (name, told, original) =
            if code == "12" { ("grpc", "_OTHER", whole) } else { (whole, whole, "") };
        for (span, is_error) in [web, orders].into_iter().zip(errors) {
            assert_eq!(span.name, name);
            for (key, value) in [
                ("rpc.system.name", "grpc"),
                ("rpc.method", told),
                ("rpc.method_original", original),
                ("rpc.response.status_code", status),
                ("error.type", if is_error { status } else { "" }),
                ("server.address", "shop"),
                ("http.request.method", ""),
                ("url.full", ""),
                // The names of before.
                ("rpc.system", "grpc"),
                ("rpc.service", if original.is_empty() { "shop.v1.Orders" } else { "" }),
                ("rpc.grpc.status_code", code),
            ] {
                assert_eq!(span.get(key), value, "{path} {key}: {span:#?}");
            }
        }
        let record = shop.web.logs(&[("path", path.into())]).await;
        assert_eq!(record["span_id"], *web.id, "{record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_streams_span_ends_when_the_stream_does_however_that_is() {
    let shop = Shop::start().await;
    let (messages, body) = mpsc::channel(1);
    let message = || Ok::<_, Infallible>(Frame::data(Bytes::from_static(MESSAGE)));
    messages.send(message()).await.unwrap();
    let body = BodyExt::boxed(StreamBody::new(ReceiverStream::new(body)));
    let mut answer = shop.call("/shop.Orders/Echo", 1, &[], body).await.into_body();
    for number in 0..3 {
        if number > 0 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            messages.send(message()).await.unwrap();
        }
        let echo = within("an echo", answer.frame()).await.unwrap().unwrap();
        assert_eq!(echo.into_data().unwrap(), MESSAGE);
    }
    assert!(shop.collector.collected.all().is_empty(), "it is not over");
    drop(messages);
    let end = within("the end", answer.frame()).await.unwrap().unwrap();
    assert_eq!(end.into_trailers().unwrap()[STATUS], "0");
    for span in shop.spans(1, 2).await {
        assert!(span.end - span.start >= 400_000_000, "{span:#?}");
        assert_eq!((span.is_error, span.get("rpc.response.status_code")), (false, "OK"), "{span:#?}");
    }
    // Its client does not want any more of it.
    let mut answer = shop.call("/shop.Orders/Stalls", 2, &[], full(MESSAGE)).await.into_body();
    within("a message", answer.frame()).await.unwrap().unwrap();
    drop(answer);
    for span in shop.spans(2, 2).await {
        let told = (span.get("tulle.reason"), span.get("rpc.response.status_code"), span.is_error);
        assert_eq!(told, ("client_closed", "CANCELLED", false), "{span:#?}");
    }
    // It takes longer than its client has said that it may.
    assert_eq!(shop.status("/shop.Orders/Silent", 3, &[("grpc-timeout", "300m")]).await, "4");
    let spans = shop.spans(3, 2).await;
    let web = of(&spans, "web", SpanKind::Client);
    let told = (web.get("tulle.reason"), web.get("rpc.response.status_code"), web.is_error);
    assert_eq!(told, ("deadline_exceeded", "DEADLINE_EXCEEDED", true), "{web:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_call_that_is_sent_again_has_one_span_of_its_client_and_an_event_for_each_try_that_failed() {
    let shop = Shop::start().await;
    shop.world.yaml(
        "retry.yaml",
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: shop}\nspec:\n  targetRefs: [{group: '', kind: \
         Service, name: shop}]\n  retry: {attempts: 2, grpcCodes: [UNAVAILABLE], backoff: {base: 1ms}}\n  retryBudget: {percent: \
         100, minimumRetryRate: {count: 1000, interval: 1s}}\n",
    );
    let tries = AtomicU32::new(0);
    let trace = eventually("the policy is in force", async || {
        let trace = tries.fetch_add(1, Relaxed) + 1;
        let status = shop.status(&format!("/shop.Orders{trace}/Flaky"), trace, &[]).await;
        if status == "0" { Ok(trace) } else { Err(status) }
    })
    .await;
    let spans = shop.spans(trace, 3).await;
    let web = of(&spans, "web", SpanKind::Client);
    let told = (web.get("rpc.response.status_code"), web.get("http.request.resend_count"), web.is_error);
    assert_eq!(told, ("OK", "1", false), "{web:#?}");
    let [(name, retry)] = &web.events[..] else { panic!("{web:#?}") };
    assert_eq!((&**name, &*retry["rpc.response.status_code"]), ("tulle.retry", "UNAVAILABLE"));
    assert_eq!(retry["tulle.endpoint"], shop.shop.inbound().to_string());
    assert!(!retry.contains_key("http.response.status_code"), "a 200 that says nothing: {retry:?}");
    let mut orders: Vec<_> = spans.iter().filter(|span| span.kind == SpanKind::Server).collect();
    orders.sort_by_key(|span| span.start);
    assert!(orders.iter().all(|span| span.parent == web.id), "{orders:#?}");
    let told = |span: &Span| (span.get("rpc.response.status_code").to_owned(), span.is_error);
    assert_eq!(told(orders[0]), ("UNAVAILABLE".to_owned(), true));
    assert_eq!(told(orders[1]), ("OK".to_owned(), false));
    let parents = shop.parents.lock().unwrap()[&format!("/shop.Orders{trace}/Flaky")].clone();
    assert_eq!(parents, [&*orders[0].id, &*orders[1].id]);
}
