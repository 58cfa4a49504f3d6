//! HTTP/2 (RFC 9113) by hyper and h2.

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Notify;

use super::{Body, BodyError, Processed};
use crate::drain;
use crate::io::Io;

/// What a connection may ask of us.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a decoded header block.
    pub max_header_list: u32,
    pub max_concurrent_streams: u32,
    /// Bytes in flight for one stream: the bound on what a slow reader costs.
    pub stream_window: u32,
    /// Streams that may have as much in flight before they wait for each other on one connection; of our own, no more share
    /// one.
    pub shared_by: u32,
    /// Bytes that one stream may have waiting to be written, however much its receiver allows.
    pub send_buffer: usize,
    /// A peer that answers no ping for this long, asked every `keep_alive`, is gone.
    pub keep_alive: Duration,
}

/// A connection that requests can be sent on, shared by cloning.
#[derive(Clone, Debug)]
pub struct Sender {
    requests: SendRequest<Body>,
    /// What the server last allowed.
    max_streams: Arc<AtomicUsize>,
    /// What we allow.
    shared_by: usize,
}

/// A request that got no response.
#[derive(Debug)]
pub struct SendError {
    pub source: hyper::Error,
    pub processed: Processed,
    /// The request, when nothing of it has been taken.
    pub request: Option<Box<Request<Body>>>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_header_list: 128 * 1024,
            max_concurrent_streams: 1024,
            stream_window: 128 * 1024,
            shared_by: 100,
            send_buffer: 64 * 1024,
            keep_alive: Duration::from_secs(30),
        }
    }
}

impl Limits {
    fn connection_window(&self) -> u32 {
        self.stream_window.saturating_mul(self.shared_by)
    }
}

/// How long a connection that is new when the drain begins, or comes later, has for its first request: who dials a
/// proxy that drains, because it has not heard of it yet, is served once and told then.
const NEWCOMER: Duration = Duration::from_secs(1);

/// Serves requests on `io` until the client is done, or, once `drain` begins, until those under way are
/// (GOAWAY in two phases, RFC 9113 §6.8).
///
/// # Errors
/// What broke the connection.
pub async fn serve<H, F, B>(io: Io, limits: &Limits, handler: H, drain: &drain::Watch) -> hyper::Result<()>
where
    H: Fn(Request<Body>) -> F,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = bytes::Bytes, Error = BodyError> + Send + 'static,
{
    let (begun, heard) = (tokio::time::Instant::now(), Notify::new());
    let service = service_fn(|request: Request<Incoming>| {
        heard.notify_one();
        let response = handler(request.map(Body::incoming));
        async move { Ok::<_, std::convert::Infallible>(response.await) }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_header_list_size(limits.max_header_list)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window())
        .max_send_buf_size(limits.send_buffer)
        .keep_alive_interval(limits.keep_alive)
        .keep_alive_timeout(limits.keep_alive)
        .auto_date_header(false)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let told = async {
        drain.draining().await;
        // Past that time, at once.
        drop(tokio::time::timeout_at(begun + NEWCOMER, heard.notified()).await);
    };
    tokio::select! {
        result = connection.as_mut() => return result,
        () = told => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// Opens HTTP/2 with prior knowledge on `io`; the connection's own task is spawned on the current runtime. With `ping`
/// the peer is asked every [`Limits::keep_alive`] whether it is still there.
///
/// # Errors
/// When the peer does not speak HTTP/2.
pub async fn connect(io: Io, limits: &Limits, ping: bool) -> hyper::Result<Sender> {
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_header_list_size(limits.max_header_list)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window())
        .max_send_buf_size(limits.send_buffer)
        .keep_alive_interval(ping.then_some(limits.keep_alive))
        .keep_alive_timeout(limits.keep_alive)
        .handshake(TokioIo::new(io))
        .await?;
    let max_streams = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
    let allowed = Arc::clone(&max_streams);
    tokio::spawn(async move {
        let mut connection = std::pin::pin!(connection);
        let ended = std::future::poll_fn(|cx| {
            let ended = connection.as_mut().poll(cx);
            // Polled for every request at least, so that it is known before it matters.
            allowed.store(connection.current_max_send_streams(), Ordering::Relaxed);
            ended
        });
        if let Err(error) = ended.await {
            tracing::debug!(%error, "HTTP/2 connection to an endpoint ended");
        }
    });
    let shared_by = usize::try_from(limits.shared_by).unwrap_or(usize::MAX);
    Ok(Sender { requests: sender, max_streams, shared_by })
}

// === impl Sender ===

impl Sender {
    /// Whether new requests can go on this connection.
    pub fn is_open(&self) -> bool {
        !self.requests.is_closed()
    }

    /// How many streams may share the connection: as many as the server takes at a time, and as there is window for, so
    /// that nobody waits because of somebody else who does not read.
    pub fn max_streams(&self) -> usize {
        self.max_streams.load(Ordering::Relaxed).min(self.shared_by)
    }

    /// Sends a request and returns the head of its response; the bodies stream on, and `done` is dropped once that of
    /// the response has ended or is no longer wanted.
    ///
    /// # Errors
    /// When no response came; it tells whether the request may be sent again.
    pub async fn send<D>(&mut self, request: Request<Body>, done: D) -> Result<Response<Body>, SendError>
    where
        D: Send + 'static,
    {
        if let Err(source) = self.requests.ready().await {
            return Err(SendError { source, processed: Processed::No, request: Some(Box::new(request)) });
        }
        match self.requests.try_send_request(request).await {
            Ok(response) => Ok(response.map(|body| Body::incoming(body).then(move || drop(done)))),
            Err(mut error) => {
                let request = error.take_message().map(Box::new);
                let source = error.into_error();
                let processed =
                    if request.is_some() || unprocessed(&source) { Processed::No } else { Processed::Maybe };
                Err(SendError { source, processed, request })
            }
        }
    }
}

/// Whether the server said that it did not look at the request: REFUSED_STREAM (RFC 9113 §8.7), or a GOAWAY
/// whose last stream lies before it.
fn unprocessed(error: &hyper::Error) -> bool {
    h2_error(error).is_some_and(|h2| {
        h2.is_remote()
            && (h2.is_go_away() || (h2.is_reset() && h2.reason() == Some(h2::Reason::REFUSED_STREAM)))
    })
}

fn h2_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a h2::Error> {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(h2) = error.downcast_ref() {
            return Some(h2);
        }
        source = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A client that allows everything and reads nothing.
    #[tokio::test]
    async fn what_waits_to_be_written_is_bounded_by_us_and_not_by_the_clients_windows() {
        const STREAMS: usize = 100;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let (_signal, drain) = drain::channel();
        let taken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&taken);
        let answer = move |_| {
            let count = Arc::clone(&count);
            async move {
                let frames = std::iter::repeat_with(move || {
                    count.fetch_add(16 * 1024, Ordering::Relaxed);
                    Ok::<_, BodyError>(http_body::Frame::data(bytes::Bytes::from_static(&[0; 16 * 1024])))
                });
                Response::new(http_body_util::StreamBody::new(tokio_stream::iter(frames)))
            }
        };
        tokio::spawn(async move { serve(Io::tcp(server), &Limits::default(), answer, &drain).await });
        let (mut requests, connection) = h2::client::Builder::new()
            .initial_window_size(i32::MAX as u32)
            .initial_connection_window_size(i32::MAX as u32)
            .handshake::<_, bytes::Bytes>(client)
            .await
            .unwrap();
        let mut answers = Vec::new();
        for _ in 0..STREAMS {
            let request = Request::get("http://orders/").version(http::Version::HTTP_2).body(()).unwrap();
            answers.push(requests.send_request(request, true).unwrap());
        }
        // Polled until the requests are written and something comes; never again.
        let mut connection = std::pin::pin!(connection);
        while taken.load(Ordering::Relaxed) == 0 {
            assert!(futures_util::poll!(connection.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        let (mut last, mut same) = (0, 0);
        while same < 1000 {
            tokio::task::yield_now().await;
            let now = taken.load(Ordering::Relaxed);
            same = if now == last { same + 1 } else { 0 };
            last = now;
        }
        // What the kernel holds on loopback comes on top.
        assert!(last < STREAMS * 100 * 1024 + (8 << 20), "{last} bytes wait");
    }

    #[tokio::test]
    async fn a_connection_that_comes_during_the_drain_is_served_its_first_request() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let (signal, drain) = drain::channel();
        signal.start();
        let limits = Limits { max_concurrent_streams: 77, ..Limits::default() };
        let serving = tokio::spawn(async move {
            let answer = |_| async { Response::new(Body::empty()) };
            serve(Io::tcp(server), &limits, answer, &drain).await
        });
        let (sender, connection) = h2::client::handshake(client).await.unwrap();
        tokio::spawn(connection);
        // The server's settings have come, and with them whatever it said at first.
        while sender.current_max_send_streams() != 77 {
            tokio::task::yield_now().await;
        }
        let request = Request::get("http://orders/").version(http::Version::HTTP_2).body(()).unwrap();
        let (response, _) = sender.ready().await.unwrap().send_request(request, true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
        serving.await.unwrap().unwrap();
    }
}
