//! Making a connection to an endpoint: TCP, then TLS if it is in the mesh, within one time limit.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tulle_certs::{Alpn, Creds};

use super::Endpoint;
use crate::accept;
use crate::io::Io;
use crate::state::Peer;
use crate::tls;
use crate::wire::{h1, http2};

/// What a dial needs besides the endpoint.
#[derive(Clone, Debug)]
pub struct Dial {
    /// Ours; without them no mesh endpoint is dialled.
    pub creds: Option<Arc<Creds>>,
    pub timeout: Duration,
    pub http1: h1::Limits,
    pub http2: http2::Limits,
}

/// Why there is no connection. No request was sent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot connect to {address}: {source}")]
    Tcp { address: std::net::SocketAddr, source: io::Error },
    #[error("no connection to {0} within {1:?}")]
    TimedOut(std::net::SocketAddr, Duration),
    #[error("no certificate of our own yet, and {0} must be dialled with one")]
    NoIdentity(std::net::SocketAddr),
    #[error("{address}: {source}")]
    Tls { address: std::net::SocketAddr, source: tls::ConnectError },
    #[error("{address} does not speak HTTP/2: {source}")]
    Http2 { address: std::net::SocketAddr, source: hyper::Error },
    #[error("{0} accepts HTTP/2 connections and closes them at once")]
    Closed(std::net::SocketAddr),
    #[error("the dial of {0} was given up: the worker ends")]
    Ended(std::net::SocketAddr),
}

// === impl Dial ===

impl Dial {
    pub async fn http1(&self, endpoint: &Endpoint) -> Result<h1::Client<Io>, ConnectError> {
        Ok(h1::Client::new(self.open(endpoint, Alpn::Http1).await?, self.http1))
    }

    pub async fn http2(&self, endpoint: &Endpoint) -> Result<http2::Sender, ConnectError> {
        let io = self.open(endpoint, Alpn::H2).await?;
        // Servers of gRPC hang up on clients that ask too often whether they are there; other proxies do not mind.
        let ping = matches!(endpoint.peer, Peer::Mesh(_));
        http2::connect(io, &self.http2, ping)
            .await
            .map_err(|source| ConnectError::Http2 { address: endpoint.address, source })
    }

    pub async fn opaque(&self, endpoint: &Endpoint) -> Result<Io, ConnectError> {
        self.open(endpoint, Alpn::Tcp).await
    }

    async fn open(&self, endpoint: &Endpoint, alpn: Alpn) -> Result<Io, ConnectError> {
        let address = endpoint.address;
        tokio::time::timeout(self.timeout, self.dial(endpoint, alpn))
            .await
            .unwrap_or(Err(ConnectError::TimedOut(address, self.timeout)))
    }

    async fn dial(&self, endpoint: &Endpoint, alpn: Alpn) -> Result<Io, ConnectError> {
        let address = endpoint.address;
        let stream = connect(address).await.map_err(|source| ConnectError::Tcp { address, source })?;
        match &endpoint.peer {
            Peer::Plaintext => Ok(Io::tcp(stream)),
            Peer::Mesh(id) => {
                let creds = self.creds.as_ref().ok_or(ConnectError::NoIdentity(address))?;
                tls::connect(stream, creds, id, alpn)
                    .await
                    .map_err(|source| ConnectError::Tls { address, source })
            }
        }
    }
}

async fn connect(address: std::net::SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let stream = socket.connect(address).await?;
    accept::tune(&stream);
    Ok(stream)
}
