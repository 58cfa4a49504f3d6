//! HTTP/2 requests and gRPC calls, by hyper.

use std::io::Error;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::{Generator, Result};

/// Requests on `streams` streams of one connection.
pub(super) async fn requests(generator: &Rc<Generator>, streams: usize, grpc: bool) -> Result<()> {
    let stream = generator.connect().await?;
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_max_send_streams(Some(1000));
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(Error::other)?;
    let connection = tokio::spawn(connection);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..streams {
        let (generator, sender) = (Rc::clone(generator), sender.clone());
        tasks.spawn_local(async move { one_stream(&generator, sender, grpc).await });
    }
    let mut ended = Ok(());
    while let Some(task) = tasks.join_next().await {
        ended = ended.and(task.map_err(Error::other)?);
    }
    connection.abort();
    ended
}

/// One request on a connection of its own.
pub(crate) async fn one(target: SocketAddr) -> Result<()> {
    let stream = TcpStream::connect(target).await?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(Error::other)?;
    let connection = tokio::spawn(connection);
    let request = Request::builder().uri("http://orders/api").body(Full::<Bytes>::default());
    let response = sender.send_request(request.map_err(Error::other)?).await.map_err(Error::other);
    connection.abort();
    match response?.status() {
        http::StatusCode::OK => Ok(()),
        other => Err(Error::other(other.to_string())),
    }
}

async fn one_stream(generator: &Generator, mut sender: SendRequest<Full<Bytes>>, grpc: bool) -> Result<()> {
    while let Some(due) = generator.next().await {
        let request = Request::builder()
            .uri("http://orders/api/v1/orders/42?full=true")
            .header("user-agent", "bench/1.0")
            .header("x-request-id", "5f0c6f0e-5a0e-4b5e-9d38-0123456789ab");
        let request = if grpc {
            let message = Bytes::from_static(b"\0\0\0\0\x10\x0a\x0e0123456789abcd");
            let request = request.method("POST").uri("http://orders/bench.Orders/Get");
            request
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Full::new(message))
        } else {
            request.body(Full::default())
        };
        let response = sender.send_request(request.map_err(Error::other)?).await.map_err(Error::other)?;
        if response.status() != 200 {
            return Err(Error::other(format!("{response:?}")));
        }
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(Error::other)?;
        let status = body.trailers().and_then(|trailers| trailers.get("grpc-status"));
        if grpc && status.is_none_or(|status| status != "0") {
            // A proxy's own answer has its status and why in the head.
            let (head, trailers) = (&head.headers, body.trailers());
            return Err(Error::other(format!("a call without a good status: {head:?}, {trailers:?}")));
        }
        generator.answered(due);
    }
    Ok(())
}
