//! Connections and streams that stop being HTTP: upgrades (RFC 9110 §7.8) and CONNECT (§9.3.6, RFC 9113 §8.5, RFC 8441).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{h1, http2};
use crate::io::{Meter, Transport, relay};

/// One side's connection or stream, for when it has stopped being HTTP.
#[derive(Debug)]
pub struct Upgrade(Side);

#[derive(Debug)]
enum Side {
    Client(h1::OnUpgrade),
    Server(h1::Switched),
    Http2(http2::OnTunnel),
    /// Nothing that could stop being HTTP.
    None,
}

/// The client's side, counted: of a stream of HTTP/2, which shares its connection, nobody else does.
struct Counted {
    inner: Box<dyn Transport>,
    meter: Arc<Meter>,
}

/// Relays between the two sides until both are done. `meter` counts what comes from the client and goes to it.
///
/// # Errors
/// When either side breaks, or never got as far.
pub async fn tunnel(client: Upgrade, server: Upgrade, meter: Arc<Meter>) -> io::Result<()> {
    let (client, server) = (client.ready().await?, server.ready().await?);
    relay(Counted { inner: client, meter }, server).await.map_err(|broken| broken.source)
}

// === impl Counted ===

impl Counted {
    fn count_sent(&self, result: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(n)) = result {
            self.meter.add_sent(*n);
        }
    }
}

impl Transport for Counted {
    fn abort(&mut self) {
        self.inner.abort();
    }

    fn may_half_close(&self) -> bool {
        self.inner.may_half_close()
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.meter.add_received(buf.filled().len() - before);
        result
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.count_sent(&result);
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.count_sent(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

// === impl Upgrade ===

impl Upgrade {
    /// The side of the client that sent `request`.
    pub fn of_request<B>(request: &Request<B>) -> Self {
        // It stays there: the request may be sent once more, and is asked again then.
        let http1 = request.extensions().get().map(h1::Exchange::on_upgrade).map(Side::Client);
        let http2 = || request.extensions().get().cloned().map(Side::Http2);
        Self(http1.or_else(http2).unwrap_or(Side::None))
    }

    /// The side of the server that sent `response`.
    pub fn of_response<B>(response: &mut Response<B>) -> Self {
        let http1 = response.extensions_mut().remove().map(Side::Server);
        let http2 = || response.extensions_mut().remove().map(Side::Http2);
        Self(http1.or_else(http2).unwrap_or(Side::None))
    }

    /// Whether this answer to a request of `method` ends HTTP on its connection or stream.
    pub fn is_agreed(method: &Method, status: StatusCode) -> bool {
        status == StatusCode::SWITCHING_PROTOCOLS || (method == Method::CONNECT && status.is_success())
    }

    async fn ready(self) -> io::Result<Box<dyn Transport>> {
        let stayed = || io::Error::other("the connection stayed HTTP");
        Ok(match self.0 {
            Side::Client(client) => Box::new(client.await.ok_or_else(stayed)?),
            Side::Server(server) => Box::new(server.take().ok_or_else(stayed)?),
            Side::Http2(stream) => Box::new(stream.tunnel().await.ok_or_else(stayed)?),
            Side::None => return Err(stayed()),
        })
    }
}
