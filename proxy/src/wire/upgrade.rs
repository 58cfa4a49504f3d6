//! Connections that stop being HTTP: upgrades (RFC 9110 §7.8) and CONNECT (§9.3.6).

use std::io;

use http::{Method, Request, Response, StatusCode};
use tokio::io::copy_bidirectional;

use super::h1;

/// One side's connection, for when it has stopped being HTTP.
#[derive(Debug)]
pub struct Upgrade(Side);

#[derive(Debug)]
enum Side {
    Client(Option<h1::OnUpgrade>),
    Server(Option<h1::Switched>),
}

/// Relays between the two sides until both are done.
///
/// # Errors
/// When either side breaks, or never got as far.
pub async fn tunnel(client: Upgrade, server: Upgrade) -> io::Result<()> {
    let (mut client, mut server) = (client.ready().await?, server.ready().await?);
    let ended = copy_bidirectional(&mut client, &mut server).await;
    if ended.is_err() {
        client.abort();
        server.abort();
    }
    ended.map(drop)
}

// === impl Upgrade ===

impl Upgrade {
    /// The side of the client that sent `request`.
    pub fn of_request<B>(request: &mut Request<B>) -> Self {
        Self(Side::Client(request.extensions().get().map(h1::Exchange::on_upgrade)))
    }

    /// The side of the server that sent `response`.
    pub fn of_response<B>(response: &mut Response<B>) -> Self {
        Self(Side::Server(response.extensions_mut().remove()))
    }

    /// Whether this answer to a request of `method` ends HTTP on its connection.
    pub fn is_agreed(method: &Method, status: StatusCode) -> bool {
        status == StatusCode::SWITCHING_PROTOCOLS || (method == Method::CONNECT && status.is_success())
    }

    async fn ready(self) -> io::Result<h1::Upgraded> {
        let upgraded = match self.0 {
            Side::Client(None) | Side::Server(None) => None,
            Side::Client(Some(client)) => client.await,
            Side::Server(Some(server)) => server.take(),
        };
        upgraded.ok_or_else(|| io::Error::other("the connection stayed HTTP"))
    }
}
