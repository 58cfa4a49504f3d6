//! The application behind every pair: as cheap as can be, so that what is measured is the proxies.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Where it listens, by what is spoken there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backend {
    pub(crate) http1: SocketAddr,
    pub(crate) http2: SocketAddr,
    pub(crate) echo: SocketAddr,
}

/// The usual answer's body.
const BODY: [u8; 128] = [b'x'; 128];
/// What a large body is written in.
const CHUNK: usize = 256 * 1024;

// === impl Backend ===

impl Backend {
    /// Starts it on a thread of its own, which ends with the process.
    pub(crate) fn start() -> Self {
        let bind = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.set_nonblocking(true).expect("a socket");
            let socket = socket2::SockRef::from(&listener);
            socket.listen(4096).expect("a listener");
            (listener.local_addr().expect("a bound address"), listener)
        };
        let ((http1, first), (http2, second), (echo, third)) = (bind(), bind(), bind());
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                tokio::join!(
                    listen(first, serve_http1),
                    listen(second, serve_http2),
                    listen(third, serve_echo)
                );
            });
        });
        Self { http1, http2, echo }
    }
}

async fn listen<F>(listener: std::net::TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::from_std(listener).expect("a runtime");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        tokio::spawn(serve(stream));
    }
}

/// `GET /bytes/<count>` is answered with so many bytes, everything else with a few.
async fn serve_http1(stream: TcpStream) -> std::io::Result<()> {
    answers(stream, Vec::with_capacity(16 * 1024)).await
}

/// `read` has come already.
async fn answers(mut stream: TcpStream, mut read: Vec<u8>) -> std::io::Result<()> {
    let usual = [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 128\r\nserver: bench\r\n\r\n"
            .as_slice(),
        &BODY,
    ]
    .concat();
    loop {
        while let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            match count(&read[..end]) {
                None => stream.write_all(&usual).await?,
                Some(count) => {
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {count}\r\n\r\n");
                    stream.write_all(head.as_bytes()).await?;
                    let chunk = vec![b'x'; CHUNK];
                    let mut left = count;
                    while left > 0 {
                        let now = left.min(CHUNK as u64);
                        stream.write_all(&chunk[..usize::try_from(now).unwrap_or(CHUNK)]).await?;
                        left -= now;
                    }
                }
            }
            read.drain(..end + 4);
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
}

fn count(head: &[u8]) -> Option<u64> {
    let rest = head.strip_prefix(b"GET /bytes/")?;
    let digits = rest.split(|byte| *byte == b' ').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

async fn serve_http2(stream: TcpStream) -> std::io::Result<()> {
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(1000)
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await;
    Ok(())
}

/// gRPC's unary call gets a message and trailers, other requests the usual body.
async fn answer(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let grpc = request.headers().get("content-type").is_some_and(|kind| kind == "application/grpc");
    if !grpc {
        let mut response = Response::new(Full::new(Bytes::from_static(&BODY)).boxed());
        response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
        return Ok(response);
    }
    let _ = request.into_body().collect().await;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    // No compression, 16 bytes: a field that no message has, so that a collector's client reads it too.
    let message = Bytes::from_static(b"\0\0\0\0\x10\x7a\x0e0123456789abcd");
    let frames = [Ok(Frame::data(message)), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed();
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// Who asks for many bytes gets those.
async fn serve_echo(mut stream: TcpStream) -> std::io::Result<()> {
    // Small: thirty thousand idle ones are held.
    let mut buffer = [0; 512];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        if buffer[..count].starts_with(b"GET /bytes/") {
            return Box::pin(answers(stream, buffer[..count].to_vec())).await;
        }
        stream.write_all(&buffer[..count]).await?;
    }
}
