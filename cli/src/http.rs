//! The smallest HTTP/1.1 client that the command needs: GET (and a POST without a body), a small answer or one that comes line by line, connections kept for the next request.
//!
//! Used by the demo's services and its driver, to read `/metrics` and `/ready`, and by the verbs that ask a control plane or a proxy. Plain HTTP
//! on purpose: certificates are the proxies' business, and what a demo's service says to its proxy is not encrypted.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;

/// No answer that the command reads is larger: `/metrics` at its limit of lines is below 1 MiB, and `/load` of a hundred thousand edges below
/// this.
const MAX_BODY: usize = 64 << 20;

/// An address that requests are sent to, and the connections to it that wait for the next one.
#[derive(Debug)]
pub(crate) struct Origin {
    /// Looked up for each connection where it begins with a name.
    address: String,
    host: HeaderValue,
    idle: Mutex<Vec<SendRequest<Empty<Bytes>>>>,
}

// === impl Origin ===

impl Origin {
    /// `host` is what the `Host` field says; by default the address.
    pub(crate) fn new(address: SocketAddr, host: Option<&str>) -> Result<Self> {
        let address = address.to_string();
        Self::at(&address, host.unwrap_or(&address))
    }

    /// The origin `<name>:<port>`, whose addresses are asked for as any program does.
    pub(crate) fn named(host: &str) -> Result<Self> {
        Self::at(host, host)
    }

    fn at(address: &str, host: &str) -> Result<Self> {
        let host = HeaderValue::from_str(host).with_context(|| format!("`{host}` cannot be a Host field"))?;
        Ok(Self { address: address.to_owned(), host, idle: Mutex::new(Vec::new()) })
    }

    /// Where the requests go.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// GET `path` (with its query). A kept connection that turns out to be closed is replaced; a GET may be sent twice.
    ///
    /// # Errors
    /// No connection, a malformed or oversize answer, or none within `timeout`.
    pub(crate) async fn get(
        &self,
        path: &str,
        headers: &HeaderMap,
        timeout: Duration,
    ) -> Result<Response<Bytes>> {
        self.ask(&Method::GET, path, headers, timeout).await
    }

    /// POST to `path`, without a body, over a connection of its own: it is sent once.
    ///
    /// # Errors
    /// As [`Origin::get`].
    pub(crate) async fn post(
        &self,
        path: &str,
        headers: &HeaderMap,
        timeout: Duration,
    ) -> Result<Response<Bytes>> {
        self.ask(&Method::POST, path, headers, timeout).await
    }

    async fn ask(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        timeout: Duration,
    ) -> Result<Response<Bytes>> {
        match tokio::time::timeout(timeout, self.attempt(method, path, headers)).await {
            Ok(answer) => answer.with_context(|| format!("{method} http://{}{path}", self.address)),
            Err(_) => bail!("{method} http://{}{path}: no answer within {timeout:?}", self.address),
        }
    }

    /// GET `path`, whose answer is read as it comes, over a connection of its own.
    ///
    /// # Errors
    /// No connection, or no head of an answer within `timeout`.
    pub(crate) async fn open(&self, path: &str, timeout: Duration) -> Result<Response<Incoming>> {
        let opened = async {
            let mut sender = self.connect().await?;
            let mut request = Request::get(path).body(Empty::new()).context("the path")?;
            request.headers_mut().insert(header::HOST, self.host.clone());
            sender.send_request(request).await.context("no answer")
        };
        match tokio::time::timeout(timeout, opened).await {
            Ok(answer) => answer.with_context(|| format!("GET http://{}{path}", self.address)),
            Err(_) => bail!("GET http://{}{path}: no answer within {timeout:?}", self.address),
        }
    }

    async fn attempt(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<Response<Bytes>> {
        loop {
            let kept = if *method == Method::GET { self.kept() } else { None };
            let (mut sender, reused) = match kept {
                Some(sender) => (sender, true),
                None => (self.connect().await?, false),
            };
            let request = Request::builder().method(method).uri(path);
            let mut request = request.body(Empty::new()).context("the path")?;
            *request.headers_mut() = headers.clone();
            request.headers_mut().insert(header::HOST, self.host.clone());
            if sender.ready().await.is_err() {
                if reused {
                    continue;
                }
                bail!("the connection was closed before a request was sent");
            }
            let response = match sender.send_request(request).await {
                Ok(response) => response,
                Err(_) if reused => continue,
                Err(error) => return Err(error).context("no answer"),
            };
            let (head, body) = response.into_parts();
            let body =
                Limited::new(body, MAX_BODY).collect().await.map_err(|error| anyhow::anyhow!(error))?;
            if !sender.is_closed() {
                self.idle.lock().push(sender);
            }
            return Ok(Response::from_parts(head, body.to_bytes()));
        }
    }

    /// The connection that was used last, so that those of a past burst close by their idle limit.
    fn kept(&self) -> Option<SendRequest<Empty<Bytes>>> {
        let mut idle = self.idle.lock();
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(&self.address).await.context("connect")?;
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.context("HTTP/1.1")?;
        tokio::spawn(async move {
            // How it ended is told to whoever waits for an answer.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    async fn read_request(stream: &mut TcpStream) -> Option<String> {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).await.ok()? == 0 {
                return None;
            }
            text.push(byte[0]);
        }
        String::from_utf8(text).ok()
    }

    #[tokio::test]
    async fn a_connection_is_kept_and_replaced_once_the_server_closes_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = Origin::new(listener.local_addr().unwrap(), Some("orders:8080")).unwrap();
        let server = tokio::spawn(async move {
            let mut requests = Vec::new();
            for requests_per_connection in [2, 1] {
                let (mut stream, _) = listener.accept().await.unwrap();
                for _ in 0..requests_per_connection {
                    requests.push(read_request(&mut stream).await.unwrap());
                    stream.write_all(ANSWER).await.unwrap();
                }
            }
            requests
        });
        for path in ["/1", "/2", "/3"] {
            let answer = origin.get(path, &HeaderMap::new(), Duration::from_secs(5)).await.unwrap();
            assert_eq!(answer.body(), "ok");
        }
        let requests = server.await.unwrap();
        assert_eq!(requests.len(), 3);
        assert!(requests[0].starts_with("GET /1 HTTP/1.1\r\nhost: orders:8080\r\n"), "{}", requests[0]);
    }

    #[tokio::test]
    async fn nobody_there_says_where() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let origin = Origin::new(address, None).unwrap();
        let error = origin.get("/ready", &HeaderMap::new(), Duration::from_secs(5)).await.unwrap_err();
        assert!(format!("{error:#}").contains(&format!("GET http://{address}/ready: connect")), "{error:#}");
    }
}
