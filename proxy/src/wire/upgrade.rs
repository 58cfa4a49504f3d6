//! Connections and streams that stop being HTTP: upgrades (RFC 9110 §7.8) and CONNECT (§9.3.6, RFC 9113 §8.5, RFC 8441).

use std::io;

use http::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::h1;
use crate::io::{Transport, relay};

/// One side's connection or stream, for when it has stopped being HTTP.
#[derive(Debug)]
pub struct Upgrade(Side);

#[derive(Debug)]
enum Side {
    Client(h1::OnUpgrade),
    Server(h1::Switched),
    Http2(hyper::upgrade::OnUpgrade),
}

/// Relays between the two sides until both are done.
///
/// # Errors
/// When either side breaks, or never got as far.
pub async fn tunnel(client: Upgrade, server: Upgrade) -> io::Result<()> {
    let (client, server) = (client.ready().await?, server.ready().await?);
    relay(client, server).await
}

// === impl Upgrade ===

impl Upgrade {
    /// The side of the client that sent `request`.
    pub fn of_request<B>(request: &mut Request<B>) -> Self {
        let http1 = request.extensions().get().map(h1::Exchange::on_upgrade);
        let http2 = || {
            let stream = hyper::upgrade::on(&mut *request);
            // The request may be sent once more, and is asked again then.
            request.extensions_mut().insert(stream.clone());
            Side::Http2(stream)
        };
        Self(http1.map_or_else(http2, Side::Client))
    }

    /// The side of the server that sent `response`.
    pub fn of_response<B>(response: &mut Response<B>) -> Self {
        let http1 = response.extensions_mut().remove();
        Self(http1.map_or_else(|| Side::Http2(hyper::upgrade::on(response)), Side::Server))
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
            Side::Http2(stream) => Box::new(TokioIo::new(stream.await.map_err(io::Error::other)?)),
        })
    }
}

/// An HTTP/2 stream; its drop is its end.
impl Transport for TokioIo<hyper::upgrade::Upgraded> {}
