//! Connections that stop being HTTP: upgrades (RFC 9110 §7.8) and CONNECT (§9.3.6).

use std::io;

use http::{Method, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

/// One side's connection, for when it has stopped being HTTP.
#[derive(Debug)]
pub struct Upgrade(OnUpgrade);

/// Relays between the two sides until both are done.
///
/// # Errors
/// When either side breaks, or never got as far.
pub async fn tunnel(client: Upgrade, server: Upgrade) -> io::Result<()> {
    let (client, server) = tokio::try_join!(client.0, server.0).map_err(io::Error::other)?;
    copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await?;
    Ok(())
}

// === impl Upgrade ===

impl Upgrade {
    pub fn of_request<B>(request: &mut Request<B>) -> Self {
        Self(hyper::upgrade::on(request))
    }

    pub fn of_response<B>(response: &mut Response<B>) -> Self {
        Self(hyper::upgrade::on(response))
    }

    /// Whether this answer to a request of `method` ends HTTP on its connection.
    pub fn is_agreed(method: &Method, status: StatusCode) -> bool {
        status == StatusCode::SWITCHING_PROTOCOLS || (method == Method::CONNECT && status.is_success())
    }
}
