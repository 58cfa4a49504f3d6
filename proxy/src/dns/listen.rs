//! Where questions arrive, over UDP and TCP.
//!
//! Decides how many may be under way at once; what comes beyond waits in the kernel's buffers, or is asked again.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::Dns;

/// Questions over UDP that are being answered; most wait for a name server outside.
const MAX_QUESTIONS: usize = 512;
/// Open TCP connections.
const MAX_CONNECTIONS: usize = 64;
/// A TCP connection without a question ends after so long (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(10);

/// Before another try, when the system refuses.
const PAUSE: Duration = Duration::from_millis(100);

/// A port, bound for both.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

/// A port cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen for DNS on {address} over {protocol}: {error}; is another program there? (TULLE_PROXY_DNS_LISTEN)"
)]
pub struct BindError {
    /// Which one.
    pub address: SocketAddr,
    /// `UDP` or `TCP`.
    pub protocol: &'static str,
    /// Why.
    #[source]
    pub error: io::Error,
}

// === impl Sockets ===

impl Sockets {
    /// Binds `address`; port 0 takes one that is free for both.
    ///
    /// # Errors
    /// When it is taken, or may not be had.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let mut tries = 0;
        loop {
            let failed = |protocol, error| BindError { address, protocol, error };
            let udp = UdpSocket::bind(address).await.map_err(|error| failed("UDP", error))?;
            let bound = udp.local_addr().map_err(|error| failed("UDP", error))?;
            match TcpListener::bind(bound).await {
                Ok(tcp) => return Ok(Self { udp, tcp }),
                // A free port for the one need not be free for the other.
                Err(_) if address.port() == 0 && tries < 16 => tries += 1,
                Err(error) => return Err(failed("TCP", error)),
            }
        }
    }

    /// Of sockets that are bound already, to one port.
    ///
    /// # Errors
    /// When they cannot be given to the current runtime.
    pub fn from_std(udp: std::net::UdpSocket, tcp: std::net::TcpListener) -> io::Result<Self> {
        Ok(Self { udp: UdpSocket::from_std(udp)?, tcp: TcpListener::from_std(tcp)? })
    }

    /// Where it is.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Answers until it is dropped.
    pub async fn serve(self, dns: Arc<Dns>) {
        tokio::join!(datagrams(self.udp, Arc::clone(&dns)), connections(self.tcp, dns));
    }
}

async fn datagrams(socket: UdpSocket, dns: Arc<Dns>) {
    let socket = Arc::new(socket);
    let room = Arc::new(Semaphore::new(MAX_QUESTIONS));
    let mut space = vec![0; 4096];
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let (length, from) = match socket.recv_from(&mut space).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "cannot receive questions about names");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let question = space.get(..length).unwrap_or_default().to_vec();
        let (socket, dns) = (Arc::clone(&socket), Arc::clone(&dns));
        tokio::spawn(async move {
            let _place = place;
            let Some((response, payload)) = dns.answer(&question).await else { return };
            if let Some(bytes) = fitting(&response, usize::from(payload)) {
                // Who asks again gets another.
                drop(socket.send_to(&bytes, from).await);
            }
        });
    }
}

/// Cut, and marked so that it is asked for again over TCP, if it is too large for a datagram (RFC 2181 §9).
fn fitting(response: &Message, payload: usize) -> Option<Vec<u8>> {
    let bytes = response.to_vec().ok()?;
    if bytes.len() <= payload { Some(bytes) } else { response.truncate().to_vec().ok() }
}

async fn connections(listener: TcpListener, dns: Arc<Dns>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let dns = Arc::clone(&dns);
                tokio::spawn(async move {
                    let _place = place;
                    if let Err(error) = connection(stream, &dns).await {
                        tracing::debug!(%error, "a DNS connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a DNS connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Messages after their lengths (RFC 1035 §4.2.2), one answer at a time.
async fn connection(mut stream: TcpStream, dns: &Dns) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let read = async {
            let length = stream.read_u16().await?;
            let mut question = vec![0; usize::from(length)];
            stream.read_exact(&mut question).await?;
            Ok::<_, io::Error>(question)
        };
        let Ok(question) = tokio::time::timeout(IDLE, read).await else { return Ok(()) };
        let Some((response, _)) = dns.answer(&question?).await else { return Ok(()) };
        let bytes = response.to_vec().map_err(io::Error::other)?;
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &bytes].concat();
        match tokio::time::timeout(IDLE, stream.write_all(&framed)).await {
            Ok(written) => written?,
            Err(_) => return Ok(()),
        }
    }
}
