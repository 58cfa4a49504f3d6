//! Applications of the tests' own.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::Wire;

/// The body of an application's answer.
pub type Body = BoxBody<Bytes, Infallible>;

/// A listener and whatever it does with its connections. Ends when dropped, its connections with it.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    task: JoinHandle<()>,
    /// Holds the port, without listening, once stopped.
    kept: Mutex<Option<TcpSocket>>,
}

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

// === impl App ===

impl App {
    /// Calls `serve` for each connection.
    pub async fn tcp<F, R>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self::tcp_on(StdListener::bind("127.0.0.1:0").expect("a free port"), serve)
    }

    /// As [`App::tcp`], on a listener of the test's own: in another network namespace, say.
    pub fn tcp_on<F, R>(listener: StdListener, serve: F) -> Self
    where
        F: Fn(TcpStream) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        listener.set_nonblocking(true).expect("a socket");
        let listener = TcpListener::from_std(listener).expect("a runtime");
        let address = listener.local_addr().expect("a bound address");
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let _ = stream.set_nodelay(true);
                connections.spawn(serve(stream));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, task, kept: Mutex::default() }
    }

    /// As [`App::tcp`], with bytes as they are.
    pub async fn wire<F, R>(serve: F) -> Self
    where
        F: Fn(Wire) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self::tcp(move |stream| serve(Wire::new(stream))).await
    }

    /// Sends back whatever comes, and ends when the client does.
    pub async fn echo() -> Self {
        Self::tcp(async move |mut stream: TcpStream| {
            let (mut reader, mut writer) = stream.split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut writer).await;
        })
        .await
    }

    /// HTTP/1.1 by hyper.
    pub async fn http1<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::http1_on(StdListener::bind("127.0.0.1:0").expect("a free port"), answer)
    }

    /// As [`App::http1`], on a listener of the test's own.
    pub fn http1_on<F, R>(listener: StdListener, answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let answer = Arc::new(answer);
        Self::tcp_on(listener, move |stream| {
            let answer = Arc::clone(&answer);
            async move {
                let service = service_fn(move |request| {
                    let response = answer(request);
                    async move { Ok::<_, Infallible>(response.await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .preserve_header_case(true)
                    .serve_connection(TokioIo::new(stream), service);
                let _ = connection.with_upgrades().await;
            }
        })
    }

    /// HTTP/2 with prior knowledge, by hyper.
    pub async fn http2<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::http2_on(StdListener::bind("127.0.0.1:0").expect("a free port"), answer)
    }

    /// As [`App::http2`], on a listener of the test's own.
    pub fn http2_on<F, R>(listener: StdListener, answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let answer = Arc::new(answer);
        Self::tcp_on(listener, move |stream| {
            let answer = Arc::clone(&answer);
            async move {
                let service = service_fn(move |request| {
                    let response = answer(request);
                    async move { Ok::<_, Infallible>(response.await) }
                });
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        })
    }

    /// HTTP/1.1; answers every request with `text`.
    pub async fn saying(text: &'static str) -> Self {
        Self::http1(move |_| async move { Response::new(full(text)) }).await
    }

    /// Closes the listener and every connection, and keeps the port, so that nobody else comes to listen on it.
    ///
    /// # Panics
    ///
    /// When another has taken the port at once.
    pub async fn stop(&self) {
        self.task.abort();
        let kept = crate::eventually("the application's port is closed", async || {
            if TcpStream::connect(self.address).await.is_ok() {
                return Err("it still listens".to_owned());
            }
            // Its connections may have the port still; with this set, they are no hindrance.
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.set_reuseaddr(true).expect("a socket");
            socket.bind(self.address).map_err(|error| format!("its port cannot be kept: {error}"))?;
            Ok(socket)
        })
        .await;
        *self.kept.lock().expect("no panic") = Some(kept);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}
