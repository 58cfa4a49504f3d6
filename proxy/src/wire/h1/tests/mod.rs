//! The codec by table, by seed and against hyper; the shells over in-memory streams.

mod bodies;
mod costs;
mod exchanges;
mod heads;
mod leaving;
mod mutations;
mod oracle;
mod upgrades;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::{Body, Client, Closed, HeadError, SendError, Settings, Transport, serve};

/// Serves one end of a stream with `handler` in a task; returns the other end.
fn served<H, F, B>(handler: H) -> (DuplexStream, tokio::task::JoinHandle<Closed>)
where
    H: FnMut(Request<Body>) -> F + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    served_until(handler, std::future::pending())
}

fn served_until<H, F, B>(
    handler: H,
    drain: impl Future<Output = ()> + Send + 'static,
) -> (DuplexStream, tokio::task::JoinHandle<Closed>)
where
    H: FnMut(Request<Body>) -> F + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let (client, server) = tokio::io::duplex(512 * 1024);
    let task = tokio::spawn(serve(server, &[], Settings::default(), handler, refusal, drain));
    (client, task)
}

fn refusal(error: HeadError) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(error.to_string().into()));
    *response.status_mut() = error.status();
    response
}

/// Answers with the request's body.
async fn echo(request: Request<Body>) -> Response<Body> {
    Response::new(request.into_body())
}

/// Answers with what it saw of the request.
async fn describe(request: Request<Body>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let text = match body.collect().await {
        Ok(body) => {
            let trailers = body.trailers().cloned();
            let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            format!("{} {} {body:?} {trailers:?}", parts.method, parts.uri)
        }
        Err(error) => format!("{} {} broke: {error}", parts.method, parts.uri),
    };
    Response::new(Full::new(text.into()))
}

/// Sends `bytes`, ends the sending side and returns all that comes back.
async fn converse(mut io: DuplexStream, bytes: &[u8]) -> String {
    io.write_all(bytes).await.unwrap();
    io.shutdown().await.unwrap();
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// Sends a request that is in one piece.
async fn send<I, B>(
    client: Client<I>,
    request: Request<B>,
    interim: impl FnMut(Response<()>),
    done: impl FnOnce(Client<I>) + Send + 'static,
) -> Result<Response<Body>, Box<SendError<B>>>
where
    I: Transport,
    B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    client.send(&mut Request::from_parts(parts, ()), body, interim, done).await
}

/// Reads until what came ends with `end`.
async fn read_until(io: &mut DuplexStream, end: &str) -> String {
    let mut got = String::new();
    while !got.ends_with(end) {
        let mut byte = [0];
        assert_eq!(io.read(&mut byte).await.unwrap(), 1, "ended after {got:?}, before {end:?}");
        got.push(char::from(byte[0]));
    }
    got
}
