//! Opaque bytes and their echo.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::{Generator, Result};

/// What is echoed: nothing that could be taken for HTTP or TLS.
const PING: [u8; 100] = [0x80; 100];

pub(super) async fn kept(generator: &Generator) -> Result<()> {
    let mut stream = generator.connect().await?;
    while let Some(due) = generator.next().await {
        echo(&mut stream).await?;
        generator.answered(due);
    }
    Ok(())
}

pub(super) async fn fresh(generator: &Generator) -> Result<()> {
    while let Some(due) = generator.next().await {
        let mut stream = generator.connect().await?;
        echo(&mut stream).await?;
        generator.answered(due);
    }
    Ok(())
}

/// Connections that each have had one echo and stay.
pub(crate) async fn idle(target: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let mut open = Vec::with_capacity(count);
    for number in 0..count {
        let mut stream = from_source(target, number).await?;
        echo(&mut stream).await?;
        open.push(stream);
    }
    Ok(open)
}

/// A connection from one of many loopback addresses, by number.
pub(super) async fn from_source(target: SocketAddr, number: usize) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let last = u8::try_from(number % 200).unwrap_or(0) + 1;
    socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 1, last)), 0))?;
    socket.connect(target).await
}

async fn echo(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&PING).await?;
    let mut buffer = [0; PING.len()];
    stream.read_exact(&mut buffer).await.map(drop)
}
