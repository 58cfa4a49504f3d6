//! What an exchange costs.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http::{Request, Response};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};

use super::super::{Body, Client, Limits, Settings, Transport, serve};
use super::{read_until, refusal};

/// Counts reads that found something, and writes.
struct Counting {
    io: DuplexStream,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    reads: AtomicUsize,
    writes: AtomicUsize,
}

impl Counts {
    fn take(&self) -> (usize, usize) {
        (self.reads.swap(0, Ordering::Relaxed), self.writes.swap(0, Ordering::Relaxed))
    }
}

impl Transport for Counting {}

impl AsyncRead for Counting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        self.counts.reads.fetch_add(usize::from(result.is_ready()), Ordering::Relaxed);
        result
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        Pin::new(&mut self.io).poll_write(cx, &all)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_relayed_exchange_takes_one_read_and_one_write_on_each_side() {
    let (front, back) = (Arc::<Counts>::default(), Arc::<Counts>::default());
    let (mut client, io) = tokio::io::duplex(256 * 1024);
    let near = Counting { io, counts: Arc::clone(&front) };
    let (io, mut origin) = tokio::io::duplex(256 * 1024);
    let far = Counting { io, counts: Arc::clone(&back) };
    let pool = Arc::new(Mutex::new(vec![Client::new(far, Limits::default())]));
    let handler = move |request: Request<Body>| {
        let pool = Arc::clone(&pool);
        async move {
            let client = pool.lock().pop().unwrap();
            client.send(request, |_| (), move |client| pool.lock().push(client)).await.unwrap()
        }
    };
    tokio::spawn(serve(near, &[], Settings::default(), handler, refusal, std::future::pending()));
    let body = "x".repeat(5000);
    let exchanges: [(String, String); 4] = [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into()),
        (
            format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n{body}"),
            format!("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{body}"),
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".into(),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n3\r\nabc\r\n0\r\n\r\n".into(),
        ),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n{body}\r\n0\r\n\r\n"
            ),
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n{body}\r\n0\r\n\r\n"),
        ),
    ];
    for (request, response) in exchanges {
        client.write_all(request.as_bytes()).await.unwrap();
        read_until(&mut origin, &request).await;
        origin.write_all(response.as_bytes()).await.unwrap();
        read_until(&mut client, &response).await;
        assert_eq!(front.take(), (1, 1), "front: {}", &request[..20]);
        assert_eq!(back.take(), (1, 1), "back: {}", &request[..20]);
    }
}

#[test]
fn futures_and_bodies_are_small() {
    let io = || tokio::io::duplex(1).0;
    let handler = |_: Request<Body>| async { Response::new(Body::empty()) };
    let serving = serve(io(), &[], Settings::default(), handler, refusal, std::future::pending());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    assert!(size_of_val(&serving) < 3000, "{}", size_of_val(&serving));
    assert!(size_of::<Body>() <= 48, "{}", size_of::<Body>());
    let sending = Client::new(io(), Limits::default()).send(Request::new(Body::empty()), |_| (), drop);
    assert!(size_of_val(&sending) < 1500, "{}", size_of_val(&sending));
}
