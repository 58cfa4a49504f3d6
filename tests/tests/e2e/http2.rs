//! HTTP/2 with prior knowledge, as applications speak it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tulle_tests::app::{App, full};
use tulle_tests::{Workload, within};

use super::Pair;

async fn connect<B>(workload: &Workload, service: &str) -> SendRequest<B>
where
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
{
    let stream = TcpStream::connect(workload.outbound(service)).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = within("an HTTP/2 handshake", handshake).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://orders{path}")).body(Empty::new()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_streams_share_a_connection_and_wait_for_each_other() {
    // Nobody is answered before all have asked: they are all open at once.
    let barrier = Arc::new(Barrier::new(100));
    let app = App::http2(move |request: Request<Incoming>| {
        let barrier = Arc::clone(&barrier);
        async move {
            assert_eq!(request.version(), Version::HTTP_2);
            if request.uri().path() != "/warm" {
                barrier.wait().await;
            }
            Response::new(full(request.uri().path().to_owned()))
        }
    })
    .await;
    let pair = Pair::start(app, "kubernetes.io/h2c").await;
    let sender = connect(&pair.web, "orders").await;
    assert_eq!(sender.clone().send_request(get("/warm")).await.unwrap().status(), 200);
    let mut answers = tokio::task::JoinSet::new();
    for n in 0..100 {
        let mut sender = sender.clone();
        answers.spawn(async move {
            let response = sender.send_request(get(&format!("/{n}"))).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, format!("/{n}"));
        });
    }
    within("a hundred answers", async {
        while let Some(answer) = answers.join_next().await {
            answer.unwrap();
        }
    })
    .await;
    let metrics = pair.web.metrics().await;
    assert!(metrics.sum("tulle_requests_total", &[("direction", "outbound"), ("status", "200")]) >= 101.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass_in_both_directions() {
    let app = App::http2(async move |request: Request<Incoming>| {
        let collected = request.into_body().collect().await.unwrap();
        let asked = collected.trailers().and_then(|trailers| trailers.get("x-sum").cloned());
        let mut trailers = HeaderMap::new();
        trailers.insert("x-answer", asked.unwrap_or_else(|| "nothing".parse().unwrap()));
        let frames = [Frame::data(Bytes::from("data")), Frame::trailers(trailers)];
        let stream = futures_util::stream::iter(frames.map(Ok::<_, Infallible>));
        Response::new(StreamBody::new(stream).boxed())
    })
    .await;
    let pair = Pair::start(app, "kubernetes.io/h2c").await;
    let mut sender = connect(&pair.web, "orders").await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    let frames = [Frame::data(Bytes::from("abc")), Frame::trailers(trailers)];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, Infallible>)));
    let request = Request::post("http://orders/").body(body).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-answer"], "7");
    assert_eq!(collected.to_bytes(), "data");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_directions_of_a_stream_flow_at_once() {
    // Echoes frame by frame; the client sends the next only after the last has come back.
    let app =
        App::http2(async move |request: Request<Incoming>| Response::new(echo(request.into_body()))).await;
    let pair = Pair::start(app, "kubernetes.io/h2c").await;
    let mut sender = connect(&pair.web, "orders").await;
    let (frames, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let request = Request::post("http://orders/").body(body).unwrap();
    let response = within("the head", sender.send_request(request)).await.unwrap();
    let mut body = response.into_body();
    for n in 0..20 {
        let word = Bytes::from(format!("word {n}"));
        frames.send(Ok(Frame::data(word.clone()))).await.unwrap();
        let frame = within("an echo", body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), word);
    }
    drop(frames);
    // The end may come as an empty frame that says so.
    while let Some(frame) = within("the end", body.frame()).await {
        assert!(frame.unwrap().into_data().unwrap().is_empty());
    }
}

fn echo(body: Incoming) -> tulle_tests::app::Body {
    // An error ends the echo as the end does.
    let frames = futures_util::stream::unfold(body, |mut body| async move {
        let frame = body.frame().await?.ok()?;
        Some((Ok::<_, Infallible>(frame), body))
    });
    StreamBody::new(Box::pin(frames)).boxed_unsync_to_boxed()
}

/// A stream is not `Sync`, which [`tulle_tests::app::Body`] is.
trait ToBoxed {
    fn boxed_unsync_to_boxed(self) -> tulle_tests::app::Body;
}

impl<B> ToBoxed for B
where
    B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    fn boxed_unsync_to_boxed(mut self) -> tulle_tests::app::Body {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(frame) = self.frame().await {
                if sender.send(frame).await.is_err() {
                    return;
                }
            }
        });
        StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver)).boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_the_client_gives_up_ends_at_the_application_too() {
    let open = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&open);
    let app = App::http2(move |request: Request<Incoming>| {
        let open = Arc::clone(&count);
        async move {
            if request.uri().path() == "/warm" {
                return Response::new(full("ok"));
            }
            open.fetch_add(1, Ordering::SeqCst);
            let guard = Open(open);
            let _ = request.into_body().collect().await;
            drop(guard);
            Response::new(full("never"))
        }
    })
    .await;
    let pair = Pair::start(app, "kubernetes.io/h2c").await;
    let mut sender = connect(&pair.web, "orders").await;
    let (frames, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let request = Request::post("http://orders/slow").body(body).unwrap();
    let asked = tokio::spawn(sender.send_request(request));
    frames.send(Ok(Frame::data(Bytes::from("x")))).await.unwrap();
    tulle_tests::eventually("the application has the stream", async || {
        (open.load(Ordering::SeqCst) == 1).then_some(()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    asked.abort();
    tulle_tests::eventually("the stream is gone at the application", async || {
        (open.load(Ordering::SeqCst) == 0).then_some(()).ok_or_else(|| "it is still open".to_owned())
    })
    .await;
    drop(frames);
}

/// Counts down when its stream ends, however it does.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http1_and_http2_clients_share_an_undeclared_port() {
    let app = App::http1(async move |request: Request<Incoming>| {
        assert_eq!(request.version(), Version::HTTP_11);
        Response::new(full("one"))
    })
    .await;
    let pair = Pair::start(app, "").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    assert_eq!(wire.response().await.1, b"one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_grpc_call_is_answered_with_a_grpc_status() {
    let app = App::http2(async move |_: Request<Incoming>| Response::new(full("never"))).await;
    let pair = Pair::start(app, "kubernetes.io/h2c").await;
    pair.world.yaml(
        "policy.yaml",
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: nobody\n  namespace: \
         default\nspec:\n  targetRefs:\n    - {group: \"\", kind: Service, name: orders}\n  action: ALLOW\n  rules:\n    - \
         name: other\n      from:\n        - identities: [\"default/other\"]\n",
    );
    let mut sender = connect(&pair.web, "orders").await;
    tulle_tests::eventually("the call is denied", async || {
        let request = Request::post("http://orders/shop.Orders/Place")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from_static(b"\0\0\0\0\0")))
            .unwrap();
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.headers().get("grpc-status").cloned();
        let reason = response.headers().get("x-tulle-error").cloned();
        match (status, reason) {
            (Some(status), Some(reason)) if status == "7" && reason == "policy_denied" => {
                assert_eq!(response.status(), 200);
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_connect_is_a_tunnel() {
    let app = App::http2(async move |request: Request<Incoming>| {
        assert_eq!(request.method(), http::Method::CONNECT);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
            let mut word = [0; 4];
            while stream.read_exact(&mut word).await.is_ok() {
                stream.write_all(&word).await.unwrap();
            }
            stream.shutdown().await.unwrap();
        });
        Response::new(full(""))
    })
    .await;
    let pair = Pair::start(app, "kubernetes.io/h2c").await;
    let mut sender = connect(&pair.web, "orders").await;
    let request = Request::connect("payments:443").body(Empty::<Bytes>::new()).unwrap();
    let response = within("the head", sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    let upgraded = within("the tunnel", hyper::upgrade::on(response)).await.unwrap();
    let mut wire = tulle_tests::Wire::new(TokioIo::new(upgraded));
    for word in ["ping", "pong"] {
        wire.send(word).await;
        assert_eq!(wire.exactly(4).await, word.as_bytes());
    }
    wire.finish().await;
    assert_eq!(wire.to_end().await, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_stop_nobody_else() {
    let large = Bytes::from(vec![b'x'; 1 << 20]);
    let app = App::http2(move |request: Request<Incoming>| {
        let body = if request.uri().path() == "/large" { large.clone() } else { Bytes::from("xx") };
        async move { Response::new(full(body)) }
    })
    .await;
    let pair = Pair::start(app, "kubernetes.io/h2c").await;
    let mut lazy = connect(&pair.web, "orders").await;
    let mut unread = Vec::new();
    for _ in 0..120 {
        let response = within("a head", lazy.send_request(get("/large"))).await.unwrap();
        unread.push(response.into_body());
    }
    for _ in 0..10 {
        let mut other = connect(&pair.web, "orders").await;
        let response = within("a head", other.send_request(get("/"))).await.unwrap();
        let body = within("a body", response.into_body().collect()).await.unwrap();
        assert_eq!(body.to_bytes(), "xx");
    }
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_names_two_hosts_is_refused_and_its_connection_goes_on() {
    let app = App::http2(async move |_: Request<Incoming>| Response::new(full("ok"))).await;
    let pair = Pair::start(app, "kubernetes.io/h2c").await;
    let mut sender = connect(&pair.web, "orders").await;
    for (host, status) in [("admin", 400), ("orders", 200)] {
        let request =
            Request::get("http://orders/").header("host", host).body(Empty::<Bytes>::new()).unwrap();
        let response = within("a head", sender.send_request(request)).await.unwrap();
        assert_eq!(response.status(), status);
        let reason = response.headers().get("x-tulle-error").map(|reason| reason.to_str().unwrap());
        assert_eq!(reason, (status == 400).then_some("malformed_request"));
    }
}
