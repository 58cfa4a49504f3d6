//! Taking connections in: accept loops, limits, and where a connection was really going.
//!
//! Decides nothing but whether a connection is taken at all; `runtime` runs [`Acceptor::next`] on each worker and
//! gives what it returns to `forward`.

mod namespace;
mod original;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::state::KeepAlive;

pub use namespace::{Namespace, serve as serve_namespace};
pub use original::{Destination, OriginalDst, Refused};

/// A connection that an application or a peer has opened.
#[derive(Debug)]
pub struct Accepted {
    pub stream: TcpStream,
    pub client: SocketAddr,
    pub destination: Destination,
    /// When it was.
    pub at: Instant,
}

/// One worker's share of a listener.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    original: OriginalDst,
    own: SocketAddr,
}

/// Why a listener cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({purpose}): {error}{}", hint(error))]
pub struct ListenError {
    address: SocketAddr,
    purpose: String,
    /// Not a source: it is in the text.
    error: io::Error,
}

impl ListenError {
    /// `purpose` says what the listener would be for, or the setting that names it.
    pub(crate) fn new(address: SocketAddr, purpose: &str, error: io::Error) -> Self {
        Self { address, purpose: purpose.to_owned(), error }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another program has the port: stop it or choose another address",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need a privilege: choose a higher one or grant CAP_NET_BIND_SERVICE"
        }
        io::ErrorKind::AddrNotAvailable => "; the address is not one of this machine's",
        _ => "",
    }
}

/// Binds `workers` sockets to `address`, one for each worker, among which the kernel shares connections out
/// (`SO_REUSEPORT`). Port 0 takes a free one, the same for all. `purpose` is for the error's text.
///
/// # Errors
/// When the address cannot be bound.
pub fn bind(
    address: SocketAddr,
    workers: usize,
    backlog: u32,
    purpose: &str,
) -> Result<Vec<StdListener>, ListenError> {
    let failed = |source| ListenError::new(address, purpose, source);
    let address = without_ipv6(address);
    // Another program's group must not be joined unnoticed: a socket that asks to share nothing finds out.
    if address.port() != 0 {
        let probe = socket(address).map_err(failed)?;
        probe.bind(&address.into()).map_err(failed)?;
    }
    let mut address = address;
    let mut sockets = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket = bind_one(address, backlog).map_err(failed)?;
        address = socket.local_addr().unwrap_or(address);
        sockets.push(socket);
    }
    Ok(sockets)
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// Every address of both families is every address of IPv4 where the kernel has no other.
fn without_ipv6(address: SocketAddr) -> SocketAddr {
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
    match socket(address) {
        Err(error) if address == both && is_no_family(&error) => {
            (Ipv4Addr::UNSPECIFIED, address.port()).into()
        }
        _ => address,
    }
}

/// Whether the kernel does not know the family of addresses at all.
pub(crate) fn is_no_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

fn bind_one(address: SocketAddr, backlog: u32) -> io::Result<StdListener> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    tune(&socket);
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// What data sockets do where no policy says otherwise; so do the defaults of a TrafficPolicy's `keepAlive`.
pub const KEEP_ALIVE: KeepAlive =
    KeepAlive { time: Duration::from_secs(30), interval: Duration::from_secs(10), probes: 3 };

/// The options that every data socket has: no Nagle, and dead peers found in a minute. Of a listener, the sockets that it
/// accepts have them from the kernel, which spares five system calls for each.
pub fn tune<'a>(socket: impl Into<SockRef<'a>>) {
    let socket = socket.into();
    // A socket whose peer has already gone refuses options; reading it will tell.
    drop(socket.set_tcp_nodelay(true));
    keep_alive(socket, &KEEP_ALIVE);
}

/// When a peer that is silent is asked whether it is still there.
pub fn keep_alive<'a>(socket: impl Into<SockRef<'a>>, said: &KeepAlive) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(said.time)
        .with_interval(said.interval)
        .with_retries(said.probes);
    // A socket whose peer has already gone refuses options; reading it will tell.
    drop(socket.into().set_tcp_keepalive(&keepalive));
}

// === impl Acceptor ===

impl Acceptor {
    /// # Errors
    /// When the socket cannot be given to the current runtime.
    pub fn new(listener: StdListener, original: OriginalDst) -> io::Result<Self> {
        let own = listener.local_addr()?;
        // Somebody else may have bound it.
        tune(&listener);
        Ok(Self { listener: TcpListener::from_std(listener)?, original, own })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.own
    }

    pub fn original(&self) -> &OriginalDst {
        &self.original
    }

    /// The next socket, raw: [`admit`] is for the worker that will serve it.
    ///
    /// Never fails: when the process has no descriptor left, it waits for one. `failed` is told of each such failure.
    pub async fn next(&self, failed: impl Fn()) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                // A dual-stack listener shows IPv4 clients as mapped addresses.
                Ok((stream, client)) => return (stream, canonical(client)),
                Err(error) if is_about_one_connection(&error) => {
                    tracing::debug!(%error, "a connection went away before it was accepted");
                }
                Err(error) => {
                    failed();
                    tracing::warn!(%error, listener = %self.own, "cannot accept; trying again");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

/// Finds where a raw socket was going; `inbound` when that is this workload's application.
///
/// # Errors
/// When it was going to the proxy itself, which would loop.
pub fn admit(
    stream: TcpStream,
    client: SocketAddr,
    own: SocketAddr,
    original: &OriginalDst,
    inbound: bool,
) -> Result<Accepted, Refused> {
    let destination = original.of(&stream, own, inbound)?;
    Ok(Accepted { stream, client, destination, at: Instant::now() })
}

/// An IPv4 address as such, if it is mapped into IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn the_workers_of_one_listener_share_one_port() {
        let sockets = bind(any(), 2, 16, "test").expect("binds");
        assert_eq!(sockets[0].local_addr().unwrap(), sockets[1].local_addr().unwrap());
    }

    #[test]
    fn a_port_that_another_group_has_is_refused_with_a_remedy() {
        let taken = bind(any(), 1, 16, "test").expect("binds");
        let error = bind(taken[0].local_addr().unwrap(), 1, 16, "outbound").expect_err("is taken");
        let text = error.to_string();
        assert!(text.contains("outbound") && text.contains("another program has the port"), "{text}");
    }

    #[tokio::test]
    async fn what_is_accepted_has_the_options_of_its_listener() {
        let socket = bind(any(), 1, 16, "test").expect("binds").remove(0);
        let acceptor = Acceptor::new(socket, OriginalDst::Kernel).expect("is registered");
        let (_client, (stream, _)) =
            tokio::join!(TcpStream::connect(acceptor.local_addr()), acceptor.next(|| ()));
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
    }

    #[tokio::test]
    async fn a_connection_to_the_proxys_own_port_is_refused_as_a_loop() {
        let socket = bind(any(), 1, 16, "test").expect("binds").remove(0);
        let acceptor = Acceptor::new(socket, OriginalDst::Kernel).expect("is registered");
        let own = acceptor.local_addr();
        let (_client, (stream, client)) = tokio::join!(TcpStream::connect(own), acceptor.next(|| ()));
        let refused = admit(stream, client, own, acceptor.original(), true).expect_err("is a loop");
        assert!(matches!(refused, Refused::Loop(address) if address == own), "{refused}");
    }
}
