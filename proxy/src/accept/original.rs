//! Where a connection was really going.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::config::RESERVED_PORTS;
use crate::state::ObjectName;

/// How a listener learns where its connections were going.
#[derive(Clone, Debug)]
pub enum OriginalDst {
    /// Redirected by the kernel, which remembers (`SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST`).
    Kernel,
    /// The listener stands for one port of one service.
    Service { service: ObjectName, port: u16 },
    /// The listener stands for an application's port: connections are judged by the port that clients dialled,
    /// the listener's, and go to `application`.
    Application { application: SocketAddr },
}

/// Where a connection was going.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To an address.
    Address(SocketAddr),
    /// To a service, by name.
    Service { service: ObjectName, port: u16 },
    /// To this workload's application, dialled at `port`.
    Application { application: SocketAddr, port: u16 },
}

/// Why a connection is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("the connection was made to the proxy's own port {0}; nothing lies behind it")]
    Loop(SocketAddr),
    #[error("the kernel does not know where the connection was going: {0}; was it redirected?")]
    NoOriginalDestination(#[source] io::Error),
}

// === impl OriginalDst ===

impl OriginalDst {
    pub(super) fn of(
        &self,
        stream: &TcpStream,
        own: SocketAddr,
        inbound: bool,
    ) -> Result<Destination, Refused> {
        match self {
            Self::Kernel => kernel(stream, own, inbound).map(Destination::Address),
            Self::Service { service, port } => {
                Ok(Destination::Service { service: service.clone(), port: *port })
            }
            Self::Application { application } => {
                Ok(Destination::Application { application: *application, port: own.port() })
            }
        }
    }
}

fn kernel(stream: &TcpStream, own: SocketAddr, inbound: bool) -> Result<SocketAddr, Refused> {
    let local = stream.local_addr().map_err(Refused::NoOriginalDestination)?;
    let socket = SockRef::from(stream);
    // A dual-stack socket carries IPv4 connections as mapped addresses, and their destination is asked for as IPv4.
    let found =
        if local.ip().to_canonical().is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let original = match found {
        Ok(address) => address.as_socket().unwrap_or(local),
        // No connection tracking, no redirect: the connection was made to us directly.
        Err(error) if error.kind() == io::ErrorKind::NotFound => local,
        Err(error) => return Err(Refused::NoOriginalDestination(error)),
    };
    let (original, local) = (super::canonical(original), super::canonical(local));
    let own = original == local && original.port() == own.port();
    // Out of the pod these ports are others': a Prometheus scrapes them.
    if own || (inbound && RESERVED_PORTS.contains(&original.port())) {
        return Err(Refused::Loop(original));
    }
    Ok(original)
}
