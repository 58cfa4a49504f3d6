//! Making a connection to an endpoint: a place under its limits, then TCP, then TLS if it is in the mesh, within one time limit. Every
//! dial is counted, and timed from when it has its place: what it waited for that says nothing of the endpoint.
//!
//! The limit is for the other side. While this worker is kept from the processor, or has a thousand other things to do
//! first, no time passes: else a burst would make every dial fail that it caused.

use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tulle_certs::{Alpn, Creds, Refusal};

use super::gate::ConnectionSeat;
use super::{Endpoint, Full};
use crate::accept::{self, Namespace};
use crate::io::{Io, streams};
use crate::state::Peer;
use crate::telemetry::Reason;
use crate::telemetry::metrics::{Direction, WorkerMetrics};
use crate::tls;
use crate::wire::{h1, http2};

/// What a dial needs besides the endpoint.
#[derive(Clone, Debug)]
pub struct Dial {
    /// Ours, as they are at each dial; without them no mesh endpoint is dialled.
    pub creds: Arc<ArcSwapOption<Creds>>,
    pub timeout: Duration,
    /// The mark of our connections.
    pub mark: Option<u32>,
    /// Where endpoints on no particular address are.
    pub namespace: Option<Namespace>,
    pub http1: h1::Limits,
    pub http2: http2::Limits,
    /// Of the worker that dials.
    pub metrics: WorkerMetrics,
}

/// A connection's place, which is the connection's own.
pub type Seated = Weak<ConnectionSeat>;

/// Why there is no connection. No request was sent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot connect to {address}: {source}")]
    Tcp { address: std::net::SocketAddr, source: io::Error },
    #[error("cannot connect to {address}: this proxy has nothing left to do it with: {source}")]
    Exhausted { address: std::net::SocketAddr, source: io::Error },
    #[error("no connection to {0} within {1:?}")]
    TimedOut(std::net::SocketAddr, Duration),
    #[error("no certificate of our own yet, and {0} must be dialled with one")]
    NoIdentity(std::net::SocketAddr),
    #[error("{address}: {source}")]
    Tls { address: std::net::SocketAddr, source: tls::ConnectError },
    #[error("{address} does not speak HTTP/2: {source}")]
    Http2 { address: std::net::SocketAddr, source: http2::Error },
    #[error("{0} accepts HTTP/2 connections and closes them at once")]
    Closed(std::net::SocketAddr),
    #[error("no connection to an endpoint may be made: {0}")]
    Limited(Box<Full>),
    #[error("nobody waits for the connection any more")]
    Unwanted,
    #[error("the dial of {0} was given up: the worker ends")]
    Ended(std::net::SocketAddr),
}

// === impl ConnectError ===

impl ConnectError {
    /// Whether it tells of this proxy, and nothing of the endpoint.
    pub fn is_our_own(&self) -> bool {
        match self {
            Self::NoIdentity(_)
            | Self::Exhausted { .. }
            | Self::Limited(_)
            | Self::Ended(_)
            | Self::Unwanted => true,
            Self::Tls { source, .. } => matches!(source, tls::ConnectError::OwnCertificateExpired),
            Self::Tcp { .. } | Self::TimedOut(..) | Self::Http2 { .. } | Self::Closed(_) => false,
        }
    }

    /// Who came by then has waited for as long as our own limits let anybody; `None`: it is not these that have no room.
    pub(super) fn waited_from(&self) -> Option<Instant> {
        let Self::Limited(full) = self else { return None };
        Instant::now().checked_sub(full.waited)
    }

    /// As it is told to clients, counted and logged.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Tcp { .. } | Self::Closed(_) => Reason::ConnectFailed,
            Self::TimedOut(..) => Reason::ConnectTimeout,
            Self::NoIdentity(_) => Reason::NotReady,
            Self::Ended(_) | Self::Unwanted => Reason::Draining,
            Self::Limited(_) | Self::Exhausted { .. } => Reason::Overloaded,
            Self::Http2 { source, .. } if tls::refused_by_peer(source) => Reason::PeerRefusedTls,
            Self::Http2 { .. } => Reason::UpstreamMalformed,
            Self::Tls { source, .. } => match source {
                tls::ConnectError::Refused { refusal: Refusal::WrongIdentity, .. } => {
                    Reason::PeerIdentityMismatch
                }
                tls::ConnectError::RefusedByPeer(_) => Reason::PeerRefusedTls,
                tls::ConnectError::OwnCertificateExpired => Reason::NotReady,
                tls::ConnectError::Refused { .. } | tls::ConnectError::Failed(_) => Reason::TlsFailed,
            },
        }
    }
}

// === impl Dial ===

impl Dial {
    pub async fn http1(&self, endpoint: &Endpoint) -> Result<h1::Client<Io>, ConnectError> {
        self.http1_if(endpoint, Instant::now(), || true).await
    }

    /// As [`Dial::http1`], unless it is no longer `wanted` once there is a place for it. `since`: as of [`Endpoint::seat`].
    pub(super) async fn http1_if(
        &self,
        endpoint: &Endpoint,
        since: Instant,
        wanted: impl Fn() -> bool + Send,
    ) -> Result<h1::Client<Io>, ConnectError> {
        let seat = self.seat(endpoint, since, wanted).await?;
        let (io, _) = self.counted(self.open(endpoint, Alpn::Http1, seat)).await?;
        Ok(h1::Client::new(io, self.http1))
    }

    /// A connection for many streams; its own task is spawned on the current runtime.
    pub(super) async fn streams(
        &self,
        endpoint: &Endpoint,
        since: Instant,
    ) -> Result<(streams::Opener, Seated), ConnectError> {
        let seat = self.seat(endpoint, since, || true).await?;
        let (io, seat) = self.counted(self.open(endpoint, Alpn::Streams, seat)).await?;
        io.shared_by_many();
        let (opener, mut driver) = streams::dialled(io);
        let address = endpoint.address;
        tokio::spawn(async move {
            // Only who dials opens streams.
            if let Err(error) = driver.next().await {
                tracing::debug!(%error, %address, "a connection of streams to an endpoint ended");
            }
        });
        Ok((opener, seat))
    }

    pub async fn http2(&self, endpoint: &Endpoint) -> Result<(http2::Sender, Seated), ConnectError> {
        self.http2_since(endpoint, Instant::now()).await
    }

    /// `since`: as of [`Endpoint::seat`].
    pub(super) async fn http2_since(
        &self,
        endpoint: &Endpoint,
        since: Instant,
    ) -> Result<(http2::Sender, Seated), ConnectError> {
        let seat = self.seat(endpoint, since, || true).await?;
        let connect = async {
            let (io, seat) = self.open(endpoint, Alpn::H2, seat).await?;
            // Servers of gRPC hang up on clients that ask too often whether they are there; other proxies do not mind.
            let ping = matches!(endpoint.peer, Peer::Mesh(_));
            let sender = http2::connect(io, &self.http2, ping)
                .await
                .map_err(|source| ConnectError::Http2 { address: endpoint.address, source })?;
            Ok((sender, seat))
        };
        self.counted(connect).await
    }

    pub async fn opaque(&self, endpoint: &Endpoint) -> Result<Io, ConnectError> {
        let gate = endpoint.room.gate();
        let pending = gate.map(|gate| gate.pend(&self.metrics)).transpose();
        let _pending = pending.map_err(|full| ConnectError::Limited(Box::new(full)))?;
        let seat = self.seat(endpoint, Instant::now(), || true).await?;
        Ok(self.counted(self.open(endpoint, Alpn::Tcp, seat)).await?.0)
    }

    /// A place for a connection, unless it is no longer `wanted` once there is one. `since`: as of [`Endpoint::seat`].
    async fn seat(
        &self,
        endpoint: &Endpoint,
        since: Instant,
        wanted: impl Fn() -> bool + Send,
    ) -> Result<Option<ConnectionSeat>, ConnectError> {
        let seat = endpoint.seat(&self.metrics, since, wanted).await;
        if let Err(error) = &seat
            && !matches!(error, ConnectError::Unwanted)
        {
            self.metrics.not_dialled(error.reason());
        }
        seat
    }

    async fn counted<T>(
        &self,
        dial: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, ConnectError> {
        let started = Instant::now();
        let dialled = dial.await;
        let result = dialled.as_ref().map(drop).map_err(ConnectError::reason);
        self.metrics.dial(result, started.elapsed());
        dialled
    }

    /// A connection, which holds its place for as long as it lives, unless that is given up before.
    async fn open(
        &self,
        endpoint: &Endpoint,
        alpn: Alpn,
        seat: Option<ConnectionSeat>,
    ) -> Result<(Io, Seated), ConnectError> {
        let address = endpoint.address;
        let timeout = endpoint.room.said().connect_timeout.unwrap_or(self.timeout);
        let dial = self.dial(endpoint, alpn);
        let io = match timeout.is_zero() {
            true => dial.await?,
            false => within(timeout, dial).await.unwrap_or(Err(ConnectError::TimedOut(address, timeout)))?,
        };
        Ok(match seat.map(Arc::new) {
            Some(seat) => {
                let seated = Arc::downgrade(&seat);
                (io.holding(Box::new(seat)), seated)
            }
            None => (io, Seated::new()),
        })
    }

    async fn dial(&self, endpoint: &Endpoint, alpn: Alpn) -> Result<Io, ConnectError> {
        let address = endpoint.address;
        let stream = match &self.namespace {
            Some(namespace) if address.ip().is_unspecified() => namespace.connect(address.port()).await,
            _ => crate::io::connect(address, self.mark).await,
        };
        let stream = stream.map_err(|source| match crate::io::is_exhausted(&source, address.ip()) {
            true => ConnectError::Exhausted { address, source },
            false => ConnectError::Tcp { address, source },
        })?;
        accept::tune(&stream);
        if let Some(keep_alive) = endpoint.room.said().keep_alive {
            accept::keep_alive(&stream, &keep_alive);
        }
        match &endpoint.peer {
            Peer::Plaintext => Ok(Io::tcp(stream)),
            Peer::Mesh(id) => {
                let creds = self.creds.load_full().ok_or(ConnectError::NoIdentity(address))?;
                let started = Instant::now();
                let connected = tls::connect(stream, &creds, id, alpn)
                    .await
                    .map_err(|source| ConnectError::Tls { address, source });
                let result = connected.as_ref().map(drop).map_err(ConnectError::reason);
                self.metrics.handshake(Direction::Outbound, result, started.elapsed());
                connected
            }
        }
    }
}

/// What `future` comes to, unless it takes longer than `limit`, not counting the time for which this thread was late to
/// look at it: the limit is waited for in parts, and a part that took too long counts once.
pub async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    const PARTS: u32 = 10;
    let over = async {
        for _ in 0..PARTS {
            tokio::time::sleep(limit / PARTS).await;
        }
    };
    tokio::select! {
        biased;
        output = future => Some(output),
        () = over => None,
    }
}
