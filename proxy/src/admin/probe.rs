//! `/probe/<container>/<kind>`: the kubelet's probes that the proxy makes in its place.
//!
//! A connection that the kernel leads to the proxy always comes about, so that a probe that only connects would always pass; and one with TLS of the
//! application's own has no identity, which strict mutual TLS asks for. So the injector leads these two kinds here, and the proxy connects
//! where the application listens, as the kubelet would have: at the pod's address, without verifying a certificate, with the headers and the query that
//! were declared. What can be asked is what the configuration says, no more: neither the path nor a header of the request chooses where a connection
//! goes. Whoever can reach the listener may ask; of each probe one is under way at a time, and those who ask meanwhile share the next, so that
//! many who ask neither load the application nor keep the kubelet waiting.
//!
//! A hook does something (`GET /shutdown`), and whoever asks cannot be told from the kubelet. So one is made once for each start of the application,
//! which is told by the sockets that listen at its port, since a container that starts anew has others; who asks again is told what came of it. One
//! of the end is made only once this proxy drains: the kubelet runs all hooks of a pod's end at once, the proxy's own, which begins
//! the drain, among them, so that one which comes a moment sooner is held until then.

use std::fs::File;
use std::io;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{ALLOW, CONNECTION, HOST, HeaderValue, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tulle_certs::outside::{self, OutsideError};

use super::{Answer, TEXT, respond, text};
use crate::config::{Hook, MadeProbe, ProbeQuestion, Probes};
use crate::drain;

/// Makes probes.
#[derive(Debug)]
pub struct Prober {
    probes: Probes,
    /// Of each probe the last one; locked while one is under way.
    last: Vec<Mutex<Option<Last>>>,
    application: IpAddr,
    mark: Option<u32>,
    drain: drain::Watch,
    tls: Arc<ClientConfig>,
}

/// One that was made.
#[derive(Debug)]
struct Last {
    begun: Instant,
    answer: Answer,
    /// Of a hook: what listened at its port then, by the kernel's numbers.
    sockets: Vec<u64>,
}

/// How long a hook of the end waits for the drain to begin.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
/// The state of sockets that listen, as `/proc/net/tcp` has it (proc_pid_net(5)).
const LISTENS: &str = "0A";

/// Of an answer's body, no more is passed on; the kubelet shows as much.
const MAX_BODY: usize = 10 * 1024;
/// Where the kubelet names itself, so does the probe.
static NAMELESS: HeaderValue = HeaderValue::from_static("tulle-probe");

/// Why a probe does not pass.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, #[source] io::Error),
    #[error("{0} does not complete a TLS handshake: {1}")]
    Tls(SocketAddr, #[source] io::Error),
    #[error("{0} does not answer a request: {1}")]
    Http(SocketAddr, #[source] hyper::Error),
    #[error("the probe cannot be sent: {0}")]
    Request(#[from] http::Error),
}

// === impl Prober ===

impl Prober {
    /// `application`: where it is; `mark`: of the proxy's own connections; `drain`: of this proxy.
    ///
    /// # Errors
    /// When the provider of TLS cannot do what is asked.
    pub fn new(
        probes: &Probes,
        application: IpAddr,
        mark: Option<u32>,
        drain: drain::Watch,
    ) -> Result<Self, OutsideError> {
        let tls = outside::unverified(&[b"h2", b"http/1.1"])?;
        let last = probes.made.iter().map(|_| Mutex::default()).collect();
        Ok(Self { probes: probes.clone(), last, application, mark, drain, tls })
    }

    /// What the kubelet is told: 200 where the probe passes; else the application's own status, or 503 with why there is none.
    pub(super) async fn answer(&self, request: &Request<Bytes>) -> Answer {
        let known = self.probes.made.iter().zip(&self.last);
        let Some((probe, last)) = known.into_iter().find(|(probe, _)| probe.path == request.uri().path())
        else {
            return text(StatusCode::NOT_FOUND, "this pod declares no such probe\n");
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "a probe takes GET, HEAD\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        if probe.hook == Some(Hook::PreStop)
            && tokio::time::timeout(DRAIN_PATIENCE, self.drain.draining()).await.is_err()
        {
            return refused("the pod does not end: its proxy does not drain");
        }
        let asked = Instant::now();
        let mut last = last.lock().await;
        // Looked at before the hook is made: what begins to listen meanwhile counts as another start, and never the other way round.
        let sockets = if probe.hook.is_some() { listening(probe.port) } else { Vec::new() };
        let is_known =
            |last: &&Last| last.begun >= asked || last.sockets.iter().any(|socket| sockets.contains(socket));
        if let Some(last) = last.as_ref().filter(is_known) {
            return last.answer.clone();
        }
        let begun = Instant::now();
        let named = request.headers().get(USER_AGENT).unwrap_or(&NAMELESS);
        let answer = match tokio::time::timeout(probe.timeout, self.make(probe, named)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(failure)) => refused(&failure.to_string()),
            Err(_) => refused(&format!("no answer within {:?}", probe.timeout)),
        };
        *last = Some(Last { begun, answer: answer.clone(), sockets });
        answer
    }

    async fn make(&self, probe: &MadeProbe, named: &HeaderValue) -> Result<Answer, Failure> {
        let to = SocketAddr::new(self.application, probe.port);
        let stream = self.connect(to).await.map_err(|error| Failure::Connect(to, error))?;
        match &probe.question {
            ProbeQuestion::Tcp => Ok(text(StatusCode::OK, format!("{to} takes connections\n"))),
            ProbeQuestion::Http { tls: false, path, headers } => {
                let request = request("http", to, path, headers, named, Version::HTTP_11)?;
                ask(to, stream, request).await
            }
            ProbeQuestion::Http { tls: true, path, headers } => {
                let name = ServerName::from(to.ip());
                let connector = TlsConnector::from(Arc::clone(&self.tls));
                let handshake = connector.connect(name, stream).await;
                let stream = handshake.map_err(|error| Failure::Tls(to, error))?;
                let version = match stream.get_ref().1.alpn_protocol() {
                    Some(b"h2") => Version::HTTP_2,
                    _ => Version::HTTP_11,
                };
                let request = request("https", to, path, headers, named, version)?;
                ask(to, stream, request).await
            }
        }
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = if to.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
        if let Some(mark) = self.mark {
            SockRef::from(&socket).set_mark(mark)?;
        }
        socket.connect(to).await
    }
}

/// What listens at `port` in the network of this process, by the kernel's numbers of sockets. None where that cannot be read.
fn listening(port: u16) -> Vec<u64> {
    let mut sockets = Vec::new();
    for path in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let Ok(file) = File::open(path) else { continue };
        // Those that listen come first: the connections after them, of which there may be many, are not read.
        for line in BufReader::new(file).lines().skip(1).map_while(Result::ok) {
            let mut fields = line.split_ascii_whitespace();
            let (Some(address), Some(LISTENS)) = (fields.nth(1), fields.nth(1)) else { break };
            let at = address.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            if at == Some(port) {
                // After queues, timer, retransmissions, user and timeout.
                sockets.extend(fields.nth(5).and_then(|inode| inode.parse::<u64>().ok()));
            }
        }
    }
    sockets
}

fn refused(why: &str) -> Answer {
    text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
}

/// The declared headers, and what every request has where they do not say it.
fn request(
    scheme: &str,
    to: SocketAddr,
    path: &PathAndQuery,
    headers: &HeaderMap,
    named: &HeaderValue,
    version: Version,
) -> Result<Request<Empty<Bytes>>, http::Error> {
    let mut headers = headers.clone();
    let said = headers.get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let authority = said.unwrap_or_else(|| to.to_string());
    if !headers.contains_key(USER_AGENT) {
        headers.insert(USER_AGENT, named.clone());
    }
    let uri = if version == Version::HTTP_2 {
        headers.remove(HOST);
        headers.remove(CONNECTION);
        Uri::builder().scheme(scheme).authority(authority).path_and_query(path.clone()).build()?
    } else {
        headers.insert(HOST, HeaderValue::from_str(&authority)?);
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        Uri::from(path.clone())
    };
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = uri;
    *request.version_mut() = version;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Sends the request; what the kubelet is told of the answer.
async fn ask<S>(to: SocketAddr, stream: S, request: Request<Empty<Bytes>>) -> Result<Answer, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error| Failure::Http(to, error);
    let io = TokioIo::new(stream);
    // The connection is driven here: it ends with this future.
    if request.version() == Version::HTTP_2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(failed)?;
        let answered = async { passed_on(sender.send_request(request).await.map_err(failed)?).await };
        driven(to, answered, connection).await
    } else {
        let (mut sender, connection) = http1::handshake(io).await.map_err(failed)?;
        let answered = async { passed_on(sender.send_request(request).await.map_err(failed)?).await };
        driven(to, answered, connection).await
    }
}

async fn driven(
    to: SocketAddr,
    answered: impl Future<Output = Result<Answer, Failure>>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> Result<Answer, Failure> {
    let (mut answered, mut connection) = (std::pin::pin!(answered), std::pin::pin!(connection));
    tokio::select! {
        answer = answered.as_mut() => answer,
        ended = connection.as_mut() => match ended {
            // What came before the end is there to be read.
            Ok(()) => answered.await,
            Err(error) => Err(Failure::Http(to, error)),
        },
    }
}

/// The kubelet takes a status below 400 for good, and would follow a redirection, which is none of its ways here: so it gets 200 for it.
async fn passed_on(response: Response<Incoming>) -> Result<Answer, Failure> {
    let (head, mut body) = response.into_parts();
    let status = match head.status.as_u16() {
        200..400 => StatusCode::OK,
        _ => head.status,
    };
    let mut read = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            read.extend_from_slice(&data);
        }
        if read.len() >= MAX_BODY {
            read.truncate(MAX_BODY);
            break;
        }
    }
    Ok(respond(status, TEXT, read.freeze()))
}

#[cfg(test)]
mod tests;
