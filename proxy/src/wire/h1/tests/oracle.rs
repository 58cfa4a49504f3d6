//! hyper at the other end.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::io::DuplexStream;

use super::super::{Body, Client, Exchange, Limits};
use super::{send, served};

type Any = BoxBody<Bytes, Infallible>;

fn chunks(pieces: Vec<Bytes>, trailers: Option<HeaderMap>) -> Any {
    let data = pieces.into_iter().map(Frame::data);
    let frames: Vec<_> = data.chain(trailers.map(Frame::trailers)).map(Ok).collect();
    StreamBody::new(tokio_stream::iter(frames)).boxed()
}

/// hyper's server: answers with the request's body, framed as the request asks by its path.
async fn origin(request: Request<Incoming>) -> Result<Response<Any>, Infallible> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned();
    let body = body.to_bytes();
    let mut response = match path.as_str() {
        "/chunked" => Response::new(chunks(body.chunks(1000).map(Bytes::copy_from_slice).collect(), None)),
        "/trailers" => {
            let mut response = Response::new(chunks(vec![body], trailers));
            response.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
            response
        }
        "/empty" => {
            let mut response = Response::new(Empty::new().boxed());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        _ => Response::new(Full::new(body).boxed()),
    };
    response.headers_mut().insert("x-method", HeaderValue::from_str(parts.method.as_str()).unwrap());
    Ok(response)
}

fn hyper_origin() -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(16 * 1024);
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(theirs), hyper::service::service_fn(origin));
    tokio::spawn(async move { connection.with_upgrades().await.unwrap() });
    ours
}

/// Our proxy between hyper's client and hyper's server, over one connection on each side.
async fn proxy() -> hyper::client::conn::http1::SendRequest<Any> {
    let pool = Arc::new(Mutex::new(vec![Client::new(hyper_origin(), Limits::default())]));
    let (io, _closed) = served(move |request: Request<Body>| {
        let pool = Arc::clone(&pool);
        async move {
            let client = pool.lock().pop().unwrap();
            let exchange = request.extensions().get::<Exchange>().unwrap().clone();
            let interim = |response: Response<()>| assert!(exchange.interim(&response));
            send(client, request, interim, move |client| pool.lock().push(client)).await.unwrap()
        }
    });
    let (sender, connection) =
        hyper::client::conn::http1::Builder::new().handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn exchanges_of_hyper_with_itself_pass_unchanged() {
    let mut sender = proxy().await;
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let method = [Method::GET, Method::POST, Method::PUT, Method::HEAD, Method::DELETE]
            [rng.random_range(0..5)]
        .clone();
        let path = ["/full", "/chunked", "/trailers", "/empty"][rng.random_range(0..4)];
        let mut data =
            vec![
                0;
                if rng.random_bool(0.2) { rng.random_range(0..200_000) } else { rng.random_range(0..50) }
            ];
        rng.fill_bytes(&mut data);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from(seed));
        // hyper sends no body of unknown length with some methods.
        let kinds = if matches!(method, Method::POST | Method::PUT) { 3 } else { 1 };
        let body = match rng.random_range(0..kinds) {
            0 => Full::new(data.clone().into()).boxed(),
            1 => chunks(data.chunks(rng.random_range(1..5000)).map(Bytes::copy_from_slice).collect(), None),
            _ => chunks(vec![data.clone().into()], Some(trailers.clone())),
        };
        let with_trailers = http_body::Body::size_hint(&body).exact().is_none();
        let request = Request::builder()
            .method(&method)
            .uri(path)
            .header("host", "a")
            .header("te", "trailers")
            .header("trailer", "x-sum")
            .body(body)
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let expected = if path == "/empty" { StatusCode::NO_CONTENT } else { StatusCode::OK };
        assert_eq!(response.status(), expected, "seed {seed}");
        assert_eq!(response.headers()["x-method"], method.as_str(), "seed {seed}");
        let body = response.into_body().collect().await.unwrap();
        if let Some(got) = body.trailers() {
            assert!(with_trailers && *got == trailers, "seed {seed}: {got:?}");
        }
        let body = body.to_bytes();
        if method == Method::HEAD || path == "/empty" {
            assert!(body.is_empty(), "seed {seed}");
        } else {
            assert!(body == data, "seed {seed}: {} of {} bytes came back", body.len(), data.len());
        }
    }
}

#[tokio::test]
async fn hypers_client_upgrades_through_us() {
    let (io, _closed) = served(|request: Request<Body>| {
        let upgrade = request.extensions().get::<Exchange>().unwrap().on_upgrade();
        tokio::spawn(async move {
            let mut upgraded = upgrade.await.unwrap();
            let (mut read, mut write) = tokio::io::split(&mut upgraded);
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        });
        async {
            let mut response = Response::new(Empty::<Bytes>::new());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
            response.headers_mut().insert("upgrade", HeaderValue::from_static("echo"));
            response
        }
    });
    let (mut sender, connection) =
        hyper::client::conn::http1::Builder::new().handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request =
        Request::get("/").header("host", "a").header("connection", "upgrade").header("upgrade", "echo");
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 101);
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    tokio::io::AsyncWriteExt::write_all(&mut io, b"hello").await.unwrap();
    let mut echo = [0; 5];
    tokio::io::AsyncReadExt::read_exact(&mut io, &mut echo).await.unwrap();
    assert_eq!(&echo, b"hello");
}
