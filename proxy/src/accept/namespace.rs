//! Sockets of another network namespace: `tulle run` has its proxy, outside, listen in and dial into the one that its
//! program is in.
//!
//! A socket belongs for ever to the namespace that it was made in, whoever holds it. So a process within makes what it is
//! asked for ([`serve`]) and passes it out over a unix socket, on a connection for each ([`Namespace`]). It never sees a
//! byte of what the sockets carry.

use std::io::{self, BufRead as _, BufReader, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream as StdStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::{TcpSocket, TcpStream};

/// How long whoever has connected may take to say what they want.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest thing that is said, either way.
const MAX_LINE: usize = 128;

/// Another network namespace, by the unix socket of a process within.
#[derive(Clone, Debug)]
pub struct Namespace {
    path: Arc<Path>,
}

/// Makes sockets in the calling process's network namespace and passes them to whoever asks, for ever.
pub fn serve(listener: &UnixListener) -> ! {
    loop {
        match listener.accept() {
            // Who asks and goes away gets nothing.
            Ok((stream, _)) => drop(answer(&stream)),
            // Out of descriptors: the next try may succeed.
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn answer(stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).take(MAX_LINE as u64).read_line(&mut line)?;
    match make(line.trim_end()) {
        Ok(socket) => {
            let fds = [socket.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&fds));
            sendmsg(stream, &[IoSlice::new(b"+")], &mut control, SendFlags::NOSIGNAL)?;
            Ok(())
        }
        Err(error) => {
            // In one write, as the other end reads it in one.
            let number = error.raw_os_error().unwrap_or_default();
            (&*stream).write_all(format!("-{number}").as_bytes())
        }
    }
}

/// `listen <address> <backlog>`, `datagrams <address>` or `stream <IP>`.
fn make(line: &str) -> io::Result<OwnedFd> {
    let unknown = || io::Error::from(rustix::io::Errno::INVAL);
    let mut words = line.split(' ');
    let (Some(what), Some(address)) = (words.next(), words.next()) else { return Err(unknown()) };
    match what {
        "listen" => {
            let backlog = words.next().and_then(|backlog| backlog.parse().ok()).ok_or_else(unknown)?;
            super::bind_one(address.parse().map_err(|_| unknown())?, backlog).map(OwnedFd::from)
        }
        "datagrams" => {
            let socket = UdpSocket::bind(address.parse::<SocketAddr>().map_err(|_| unknown())?)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        }
        "stream" => {
            let ip: IpAddr = address.parse().map_err(|_| unknown())?;
            let domain = Domain::for_address(SocketAddr::new(ip, 0));
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        }
        _ => Err(unknown()),
    }
}

// === impl Namespace ===

impl Namespace {
    /// The one whose process listens on the unix socket `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.into() }
    }

    /// As [`super::bind`], there; not for port 0.
    ///
    /// # Errors
    /// When the address cannot be bound, or nobody is there.
    pub fn bind(
        &self,
        address: SocketAddr,
        workers: usize,
        backlog: u32,
        purpose: &str,
    ) -> Result<Vec<TcpListener>, super::ListenError> {
        let listen = || self.ask(&format!("listen {address} {backlog}")).map(TcpListener::from);
        let sockets: io::Result<Vec<_>> = (0..workers).map(|_| listen()).collect();
        sockets.map_err(|source| super::ListenError::new(address, purpose, source))
    }

    /// Binds a port for datagrams and connections, there.
    ///
    /// # Errors
    /// When it cannot be bound, or nobody is there.
    pub fn bind_both(&self, address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
        let datagrams = self.ask(&format!("datagrams {address}"))?;
        let listener = self.ask(&format!("listen {address} 64"))?;
        Ok((datagrams.into(), listener.into()))
    }

    /// Connects to `port` of the namespace's loopback, by whichever family somebody listens on.
    ///
    /// # Errors
    /// As `connect(2)`; also when nobody is there any more.
    pub async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        match self.connect_to((Ipv4Addr::LOCALHOST, port).into()).await {
            Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                self.connect_to((Ipv6Addr::LOCALHOST, port).into()).await.map_err(|_| refused)
            }
            result => result,
        }
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let mut stream = tokio::net::UnixStream::connect(&self.path).await?;
        stream.write_all(format!("stream {}\n", address.ip()).as_bytes()).await?;
        let socket = stream.async_io(Interest::READABLE, || receive(&stream)).await?;
        TcpSocket::from_std_stream(StdStream::from(socket)).connect(address).await
    }

    fn ask(&self, line: &str) -> io::Result<OwnedFd> {
        let mut stream = UnixStream::connect(&self.path)?;
        writeln!(stream, "{line}")?;
        receive(&stream)
    }
}

/// The answer to one question.
fn receive(stream: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; MAX_LINE];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut text)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut sockets) = message
            && let Some(socket) = sockets.next()
        {
            return Ok(socket);
        }
    }
    let said = String::from_utf8_lossy(&text[..received.bytes]);
    match said.strip_prefix('-').and_then(|error| error.parse().ok()) {
        Some(error) => Err(io::Error::from_raw_os_error(error)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent in the tests' own namespace.
    fn agent() -> (tempfile::TempDir, Namespace) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sockets");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || serve(&listener));
        (folder, Namespace::new(&path))
    }

    #[tokio::test]
    async fn listeners_and_connections_are_passed_out() {
        let (_folder, namespace) = agent();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = namespace.bind(any, 1, 16, "test").unwrap().remove(0);
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (connected, accepted) = tokio::join!(namespace.connect(port), listener.accept());
        assert_eq!(connected.unwrap().local_addr().unwrap(), accepted.unwrap().1);
    }

    #[tokio::test]
    async fn an_application_on_the_other_family_is_found() {
        let (_folder, namespace) = agent();
        let Ok(listener) = tokio::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await else { return };
        let port = listener.local_addr().unwrap().port();
        let (connected, _accepted) = tokio::join!(namespace.connect(port), listener.accept());
        assert!(connected.unwrap().peer_addr().unwrap().is_ipv6());
    }

    #[tokio::test]
    async fn what_the_kernel_refuses_there_is_said_here() {
        let (folder, namespace) = agent();
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let held = TcpListener::bind(taken).unwrap();
        let refused = namespace.bind(held.local_addr().unwrap(), 1, 16, "outbound").unwrap_err().to_string();
        assert!(refused.contains("another program has the port"), "{refused}");
        let closed = namespace.connect(1).await.unwrap_err();
        assert_eq!(closed.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(namespace.ask("anything").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let gone = Namespace::new(&folder.path().join("gone")).connect(1).await.unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }
}
