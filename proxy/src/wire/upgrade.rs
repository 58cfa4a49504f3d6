//! Connections and streams that stop being HTTP: upgrades (RFC 9110 §7.8) and CONNECT (§9.3.6, RFC 9113 §8.5, RFC 8441).

use std::io;
use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};

use super::{h1, http2};
use crate::io::{Meter, Metered, Transport, relay};

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

/// Relays between the two sides until both are done. `meter` counts what comes from the client and goes to it: a stream of HTTP/2, which
/// shares its connection, nobody else counts.
///
/// # Errors
/// When either side breaks, or never got as far.
pub async fn tunnel(client: Upgrade, server: Upgrade, meter: Arc<Meter>) -> io::Result<()> {
    let (client, server) = (client.ready().await?, server.ready().await?);
    relay(Metered::new(client, meter), server).await.map_err(|broken| broken.source)
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
