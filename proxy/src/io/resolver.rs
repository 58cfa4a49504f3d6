//! How the resolver opens its sockets: as the proxy's own, with its mark, so that where queries of names are intercepted
//! it does not ask itself.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime};
use socket2::SockRef;
use tokio::net::{TcpStream, UdpSocket};

/// Sockets with this mark, if there is one.
#[derive(Clone, Default)]
pub struct Sockets {
    runtime: TokioRuntimeProvider,
    mark: Option<u32>,
}

type Opening<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl Sockets {
    pub fn marked(mark: Option<u32>) -> Self {
        Self { runtime: TokioRuntimeProvider::default(), mark }
    }
}

impl RuntimeProvider for Sockets {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.runtime.create_handle()
    }

    /// From whichever address: we never ask for another.
    fn connect_tcp(
        &self,
        server: SocketAddr,
        _from: Option<SocketAddr>,
        patience: Option<Duration>,
    ) -> Opening<Self::Tcp> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let mark = self.mark;
        Box::pin(async move {
            let connected =
                tokio::time::timeout(patience.unwrap_or(PATIENCE), super::connect(server, mark)).await;
            let stream = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            stream.set_nodelay(true)?;
            Ok(AsyncIoTokioAsStd(stream))
        })
    }

    fn bind_udp(&self, local: SocketAddr, _server: SocketAddr) -> Opening<Self::Udp> {
        let mark = self.mark;
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            if let Some(mark) = mark {
                SockRef::from(&socket).set_mark(mark)?;
            }
            Ok(socket)
        })
    }
}
