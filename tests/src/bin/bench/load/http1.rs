//! HTTP/1.1 requests, as bytes.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Generator, Result};

/// What a client of some library sends.
const REQUEST: &str = "GET /api/v1/orders/42?full=true HTTP/1.1\r\nhost: orders\r\nuser-agent: bench/1.0\r\naccept: application/json\r\n\
                       accept-encoding: gzip\r\nx-request-id: 5f0c6f0e-5a0e-4b5e-9d38-0123456789ab\r\n";

/// Requests on one connection.
pub(super) async fn kept(generator: &Generator) -> Result<()> {
    let request = format!("{REQUEST}\r\n");
    let mut stream = generator.connect().await?;
    let mut read = Vec::with_capacity(16 * 1024);
    while let Some(due) = generator.next().await {
        stream.write_all(request.as_bytes()).await?;
        response(&mut stream, &mut read).await?;
        generator.answered(due);
    }
    Ok(())
}

/// A request on a connection of its own, again and again.
pub(super) async fn fresh(generator: &Generator) -> Result<()> {
    let request = format!("{REQUEST}connection: close\r\n\r\n");
    let mut read = Vec::with_capacity(16 * 1024);
    while let Some(due) = generator.next().await {
        let mut stream = generator.connect().await?;
        stream.write_all(request.as_bytes()).await?;
        response(&mut stream, &mut read).await?;
        generator.answered(due);
    }
    Ok(())
}

/// Connections that each have made one request and stay.
pub(crate) async fn idle(target: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let mut open = Vec::with_capacity(count);
    let mut read = Vec::with_capacity(16 * 1024);
    for number in 0..count {
        let mut stream = super::tcp::from_source(target, number).await?;
        stream.write_all(format!("{REQUEST}\r\n").as_bytes()).await?;
        response(&mut stream, &mut read).await?;
        open.push(stream);
    }
    Ok(open)
}

/// `count` bytes of body, thrown away; how many came.
pub(crate) async fn download(target: SocketAddr, count: u64) -> Result<u64> {
    let mut stream = TcpStream::connect(target).await?;
    let request = format!("GET /bytes/{count} HTTP/1.1\r\nhost: orders\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = vec![0; 256 * 1024];
    let mut came = 0;
    let mut head = Vec::new();
    while came < count {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if came == 0 {
            head.extend_from_slice(&buffer[..read]);
            if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                check(&head[..end + 4])?;
                came = (head.len() - end - 4) as u64;
            }
        } else {
            came += read as u64;
        }
    }
    Ok(came)
}

/// Reads one response with its body.
pub(super) async fn response(stream: &mut TcpStream, read: &mut Vec<u8>) -> Result<()> {
    read.clear();
    loop {
        if stream.read_buf(read).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let length = check(&read[..end + 4])?;
            while read.len() < end + 4 + length {
                if stream.read_buf(read).await? == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            }
            return Ok(());
        }
    }
}

/// A head must say 200 and how long its body is.
fn check(head: &[u8]) -> Result<usize> {
    let text = std::str::from_utf8(head).map_err(|_| Error::other("a head that is not text"))?;
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        return Err(Error::other(text.to_owned()));
    }
    let length = lines.filter_map(|line| line.split_once(':'));
    let mut length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.next().and_then(|(_, value)| value.trim().parse().ok());
    length.ok_or_else(|| Error::other(format!("no content-length: {text}")))
}
