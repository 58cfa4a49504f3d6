//! A connection on which a test says exactly what it means, byte by byte, as client or as server.

use std::io;
use std::net::{Shutdown, SocketAddr};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::wait::within;

/// One end of a connection, with what has been read and not yet used.
#[derive(Debug)]
pub struct Wire<S = TcpStream> {
    stream: S,
    read: Vec<u8>,
}

/// The head of a request or a response, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The first line.
    pub line: String,
    /// Names with their case, in order.
    pub fields: Vec<(String, String)>,
}

/// `data` as one chunk of each of these sizes in turn, and the last chunk.
pub fn chunked(data: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in data.chunks(size) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

// === impl Wire ===

impl Wire {
    /// Connects.
    ///
    /// # Panics
    /// If nobody listens.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = within("a TCP connection", TcpStream::connect(address)).await;
        let stream = stream.unwrap_or_else(|error| panic!("{address}: {error}"));
        stream.set_nodelay(true).expect("a TCP socket");
        Self::new(stream)
    }

    /// Shuts the reading side: whatever comes from now on is not read.
    pub fn deafen(&mut self) {
        // The other side may have broken it by then.
        let _ = SockRef::from(&self.stream).shutdown(Shutdown::Read);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Of a stream that nothing was read from.
    pub fn new(stream: S) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// The stream; what was read ahead is lost.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// The stream, to read from it or write to it directly.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Writes all of it.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("the peer reads");
    }

    /// Writes all of it, or says why the peer does not take it.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        within("a write", async {
            self.stream.write_all(bytes.as_ref()).await?;
            self.stream.flush().await
        })
        .await
    }

    /// Ends the connection by a reset: what has been written and not been read may be lost too.
    pub fn reset(self)
    where
        S: std::os::fd::AsFd,
    {
        SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO)).expect("a TCP socket");
    }

    /// Says that nothing more will be written.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.expect("the connection lives");
    }

    /// Reads more; false at the end.
    async fn more(&mut self) -> io::Result<bool> {
        self.read.reserve(16 * 1024);
        Ok(within("a read", self.stream.read_buf(&mut self.read)).await? > 0)
    }

    /// Everything up to and with `end`; `None` if the connection ends before its first byte.
    pub async fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        let mut from = 0;
        loop {
            if let Some(at) = self.read[from..].windows(end.len()).position(|window| window == end) {
                return Some(self.read.drain(..from + at + end.len()).collect());
            }
            from = self.read.len().saturating_sub(end.len());
            let more = self.more().await.unwrap_or_else(|error| panic!("{error}, after {:?}", self.shown()));
            if !more {
                assert!(self.read.is_empty(), "the connection ends within {:?}", self.shown());
                return None;
            }
        }
    }

    /// The next head; `None` at the end of the connection.
    pub async fn try_head(&mut self) -> Option<Head> {
        self.until(b"\r\n\r\n").await.map(|bytes| Head::parse(&bytes))
    }

    /// The next head.
    ///
    /// # Panics
    /// At the end of the connection.
    pub async fn head(&mut self) -> Head {
        self.try_head().await.expect("a head, and not the end of the connection")
    }

    /// As many bytes.
    pub async fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            assert!(self.more().await.expect("a read"), "the connection ends after {:?}", self.shown());
        }
        self.read.drain(..count).collect()
    }

    /// As many bytes; `None` if the connection ends or breaks before.
    pub async fn try_exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.read.len() < count {
            if !self.more().await.unwrap_or(false) {
                return None;
            }
        }
        Some(self.read.drain(..count).collect())
    }

    /// A line, without its end.
    pub async fn line(&mut self) -> String {
        let mut line = self.until(b"\r\n").await.expect("a line");
        line.truncate(line.len() - 2);
        String::from_utf8(line).expect("text")
    }

    /// A chunked body and its trailers.
    pub async fn chunks(&mut self) -> (Vec<u8>, Vec<(String, String)>) {
        let mut body = Vec::new();
        loop {
            let line = self.line().await;
            let size = line.split(';').next().unwrap_or_default();
            let size =
                usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("not a chunk's size: {line}"));
            if size == 0 {
                break;
            }
            body.extend(self.exactly(size).await);
            assert_eq!(self.line().await, "", "the end of a chunk");
        }
        let mut trailers = Vec::new();
        loop {
            let line = self.line().await;
            match line.split_once(':') {
                Some((name, value)) => trailers.push((name.to_owned(), value.trim().to_owned())),
                None => return (body, trailers),
            }
        }
    }

    /// The body that `head` announces; with no framing, what comes until the end.
    pub async fn body(&mut self, head: &Head) -> Vec<u8> {
        if head.has("transfer-encoding", "chunked") {
            return self.chunks().await.0;
        }
        match head.get("content-length") {
            Some(length) => self.exactly(length.parse().expect("a length")).await,
            None if head.line.starts_with("HTTP/") => self.to_end().await,
            None => Vec::new(),
        }
    }

    /// A response with its body.
    pub async fn response(&mut self) -> (Head, Vec<u8>) {
        let head = self.head().await;
        let body = self.body(&head).await;
        (head, body)
    }

    /// Some bytes: of what was read ahead, if there is any; 0 at the end.
    pub async fn take_or_read(&mut self, buffer: &mut [u8]) -> usize {
        if self.read.is_empty() {
            return within("a read", self.stream.read(buffer)).await.expect("the connection lives");
        }
        let count = buffer.len().min(self.read.len());
        buffer[..count].copy_from_slice(&self.read[..count]);
        self.read.drain(..count);
        count
    }

    /// Everything until the end.
    pub async fn to_end(&mut self) -> Vec<u8> {
        while self.more().await.unwrap_or_else(|error| panic!("{error}, after {:?}", self.shown())) {}
        std::mem::take(&mut self.read)
    }

    /// Everything until the end or a reset.
    pub async fn to_end_or_reset(&mut self) -> Vec<u8> {
        while self.more().await.unwrap_or(false) {}
        std::mem::take(&mut self.read)
    }

    /// Everything until the end, and whether that was a reset.
    pub async fn to_end_and_how(&mut self) -> (Vec<u8>, bool) {
        let broken = loop {
            match self.more().await {
                Ok(true) => {}
                Ok(false) => break false,
                Err(_) => break true,
            }
        };
        (std::mem::take(&mut self.read), broken)
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.read[..self.read.len().min(2000)]).into_owned()
    }
}

// === impl Head ===

impl Head {
    /// Of a head with its end.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let field = |line: &str| {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            (name.to_owned(), value.trim().to_owned())
        };
        Self { line, fields: lines.map(field).collect() }
    }

    /// The status of a response.
    ///
    /// # Panics
    /// On a request.
    pub fn status(&self) -> u16 {
        let status = self.line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
        status
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("not a status line: {}", self.line))
    }

    /// The first value of a field, whatever the case of its name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(had, _)| had.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All values of a field.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields
            .iter()
            .filter(move |(had, _)| had.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Whether a list field holds `token`.
    pub fn has(&self, name: &str, token: &str) -> bool {
        self.all(name).flat_map(|value| value.split(',')).any(|had| had.trim().eq_ignore_ascii_case(token))
    }

    /// The proxy's reason, if a proxy made the answer.
    pub fn reason(&self) -> Option<&str> {
        self.get("x-tulle-error")
    }
}
