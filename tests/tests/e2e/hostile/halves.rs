//! Servers that close one half of their connection while a request's body is still coming.
//!
//! Who says that nothing more comes has not answered: the client is told at once, though its own half is open. Who only reads no more may
//! still answer, and that counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::Request;
use tokio::io::AsyncWriteExt;
use tulle_tests::app::App;
use tulle_tests::frames::{END_STREAM, Frames, HEADERS, data, headers};
use tulle_tests::{Wire, within};

use super::{LEGS, Stage, connect2};

/// Closes its writing half, or its reading half and then answers, as soon as it has a head.
async fn halves(mut wire: Wire, answer: Vec<u8>, deaf: bool) {
    if deaf {
        wire.deafen();
        wire.send(answer).await;
        // Whoever closes what has not been read resets it.
        return std::future::pending().await;
    }
    wire.stream().shutdown().await.unwrap();
    wire.to_end_or_reset().await;
}

async fn http1(mut wire: Wire, deaf: Arc<AtomicBool>) {
    if wire.try_head().await.is_some() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        halves(wire, answer.to_vec(), deaf.load(Ordering::SeqCst)).await;
    }
}

async fn http2(wire: Wire, deaf: Arc<AtomicBool>) {
    let Some(mut frames) = Frames::accept(wire, &[]).await else { return };
    while let Some(frame) = frames.next().await {
        if frame.kind == HEADERS {
            let head = headers(0, frame.stream, &[(":status", "200")]);
            let answer = [head, data(END_STREAM, frame.stream, "hello")].concat();
            return halves(frames.into_wire(), answer, deaf.load(Ordering::SeqCst)).await;
        }
    }
}

/// What the client is told of a request whose body never ends.
async fn ask1(stage: &Stage, service: &str) -> String {
    let mut wire = stage.web.connect(service).await;
    let fields = "host: orders\r\ntransfer-encoding: chunked";
    wire.send(format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n5\r\nhello\r\n")).await;
    let (head, body) = wire.response().await;
    match head.reason() {
        Some(reason) => {
            format!("{} {reason} by {}", head.status(), head.get("x-tulle-error-by").unwrap_or_default())
        }
        None => format!("{} {}", head.status(), String::from_utf8_lossy(&body)),
    }
}

/// The same by HTTP/2.
async fn ask2(stage: &Stage, service: &str) -> String {
    let mut requests = connect2(stage.web.outbound(service)).await.ready().await.unwrap();
    let request = Request::post("http://orders/").body(()).unwrap();
    let (answer, mut upload) = requests.send_request(request, false).unwrap();
    upload.send_data(Bytes::from_static(b"hello"), false).unwrap();
    let (head, mut stream) = within("an answer", answer).await.unwrap().into_parts();
    let text = |name: &str| head.headers.get(name).map_or("", |value| value.to_str().unwrap());
    if head.headers.contains_key("x-tulle-error") {
        return format!("{} {} by {}", head.status.as_u16(), text("x-tulle-error"), text("x-tulle-error-by"));
    }
    let data = within("a body", stream.data()).await.unwrap().unwrap();
    format!("{} {}", head.status.as_u16(), String::from_utf8_lossy(&data))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_closes_one_half_during_an_upload_has_answered_or_its_client_is_told() {
    let deaf = Arc::<AtomicBool>::default();
    let (of1, of2) = (Arc::clone(&deaf), Arc::clone(&deaf));
    let app1 = App::wire(move |wire| http1(wire, Arc::clone(&of1))).await;
    let app2 = App::wire(move |wire| http2(wire, Arc::clone(&of2))).await;
    let mut stages = [Stage::new(app1, "http").await, Stage::new(app2, "kubernetes.io/h2c").await];
    for (service, by) in LEGS {
        for is_deaf in [false, true] {
            deaf.store(is_deaf, Ordering::SeqCst);
            let expected =
                if is_deaf { "200 hello".to_owned() } else { format!("502 upstream_reset by {by}") };
            let [of_http1, of_http2] = &stages;
            assert_eq!(ask1(of_http1, service).await, expected, "{service}");
            assert_eq!(ask2(of_http2, service).await, expected, "{service}, HTTP/2");
        }
    }
    for stage in &mut stages {
        stage.is_at_rest().await;
    }
}
