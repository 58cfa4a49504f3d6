//! The one gRPC port: TLS, and who is behind a connection.
//!
//! A client certificate is optional at the TLS level, since a workload that joins has none yet; each service asks for
//! what it needs. Who was verified goes with every request of the connection as [`ca::Caller`]. A connection ends with
//! the certificate that it was made with, so that a proxy that is not renewed any more loses its streams too.

use std::future::Future as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use prometheus::IntGauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tulle_certs::refusal_of_io;

use crate::ca;
use crate::metrics::Metrics;
use crate::trust::Trust;
use crate::youngest::Youngest;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How many handshakes may be under way. Further connections wait in the kernel, until one is done or the oldest has had
/// its time.
const HANDSHAKES: usize = 1024;
/// How long a handshake may take at least, however many wait.
const AT_LEAST: Duration = Duration::from_secs(1);
/// How long a connection without a client certificate lasts: long enough to ask for one.
const ANONYMOUS: Duration = Duration::from_secs(60);
/// A certificate that lives longer is looked at again then.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Secured {
    stream: TlsStream<TcpStream>,
    client: IpAddr,
    caller: Option<ca::Caller>,
    /// When the caller's certificate expires, or its time to ask for one. `None`: it has.
    expires: Option<Pin<Box<Sleep>>>,
    _counted: Counted,
}

#[derive(Debug)]
struct Counted(IntGauge);

/// Accepts connections and does their handshakes, each in a task of its own: one that stalls holds up no other.
pub fn incoming(
    listener: TcpListener,
    trust: Trust,
    metrics: Metrics,
) -> impl Stream<Item = Result<Secured, io::Error>> {
    let (secured, stream) = mpsc::channel(64);
    tokio::spawn(accept(listener, trust, metrics, secured));
    ReceiverStream::new(stream)
}

async fn accept(
    listener: TcpListener,
    trust: Trust,
    metrics: Metrics,
    secured: mpsc::Sender<Result<Secured, io::Error>>,
) {
    let mut handshakes = Youngest::new(HANDSHAKES, AT_LEAST);
    loop {
        let accepted = async {
            if handshakes.room().await {
                metrics.refused.with_label_values(&["overloaded"]).inc();
                tracing::debug!("gave up the oldest handshake: others wait");
            }
            listener.accept().await
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = secured.closed() => return,
        };
        let (socket, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (trust, counted, secured) = (trust.clone(), metrics.clone(), secured.clone());
        handshakes.spawn(async move {
            if let Some(connection) = handshake(socket, client, &trust, &counted).await {
                // Closed: the control plane ends.
                let _closed = secured.send(Ok(connection)).await;
            }
        });
    }
}

/// `None`: refused, counted and logged.
async fn handshake(
    socket: TcpStream,
    client: SocketAddr,
    trust: &Trust,
    metrics: &Metrics,
) -> Option<Secured> {
    let refused = |reason: &str, error: &dyn std::fmt::Display| {
        metrics.refused.with_label_values(&[reason]).inc();
        tracing::warn!(%client, reason, %error, "refused a connection");
    };
    match tokio::time::timeout(HANDSHAKE, secure(socket, trust, metrics)).await {
        Ok(Ok(connection)) => return Some(connection),
        // Who only looks whether the port is open is not worth a warning.
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            tracing::debug!(%client, %error, "a connection was closed before its handshake was done");
        }
        Ok(Err(error)) => {
            refused(reason(&error), &error);
        }
        Err(elapsed) => refused("tls_timeout", &elapsed),
    }
    None
}

fn reason(error: &io::Error) -> &'static str {
    match refusal_of_io(error) {
        Some(refusal) => refusal.reason(),
        None if error.get_ref().is_some_and(|inner| inner.is::<NoProtocol>()) => "tls_no_protocol",
        None => "tls_failed",
    }
}

/// A client that did not say by ALPN that it speaks HTTP/2 (RFC 9113 §3.2): gRPC always does.
#[derive(Debug, thiserror::Error)]
#[error("the client offers no protocol by ALPN; this port speaks gRPC (`h2`) only")]
struct NoProtocol;

async fn secure(socket: TcpStream, trust: &Trust, metrics: &Metrics) -> io::Result<Secured> {
    socket.set_nodelay(true)?;
    let client = socket.peer_addr()?.ip().to_canonical();
    let own = trust.creds().ok_or_else(|| io::Error::other("the control plane has no certificate yet"))?;
    let stream = TlsAcceptor::from(own.control_plane()).accept(socket).await?;
    let (_, session) = stream.get_ref();
    if session.alpn_protocol().is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, NoProtocol));
    }
    let caller = ca::Caller::of(session.peer_certificates())
        .map_err(|refusal| io::Error::new(io::ErrorKind::InvalidData, refusal.reason()))?;
    let left = caller.as_ref().map_or(ANONYMOUS, |caller| {
        caller.not_after.duration_since(SystemTime::now()).unwrap_or_default().min(LONGEST)
    });
    if left.is_zero() {
        // TLS counts in whole seconds, and lets in who has just expired.
        let expired = rustls::Error::from(rustls::CertificateError::Expired);
        return Err(io::Error::new(io::ErrorKind::InvalidData, expired));
    }
    metrics.connections.inc();
    Ok(Secured {
        stream,
        client,
        caller,
        expires: Some(Box::pin(tokio::time::sleep(left))),
        _counted: Counted(metrics.connections.clone()),
    })
}

// === impl Counted ===

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

// === impl Secured ===

impl Connected for Secured {
    type ConnectInfo = (ca::Client, Option<ca::Caller>);

    fn connect_info(&self) -> Self::ConnectInfo {
        (ca::Client(self.client), self.caller.clone())
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // HTTP/2 always reads, so this is asked in time.
        if let Some(expires) = &mut self.expires
            && expires.as_mut().poll(cx).is_ready()
        {
            self.expires = None;
            if self.caller.is_none() {
                return Poll::Ready(Err(io::Error::other("the client has no certificate yet")));
            }
            tracing::info!(caller = ?self.caller, "closed a connection whose certificate has expired");
            return Poll::Ready(Err(io::Error::other("the client's certificate has expired")));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Moves the client's address and the verified caller to where the services look for it.
///
/// # Errors
/// Never; tonic's interceptors may.
pub fn identify(mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    let known = request.extensions().get::<(ca::Client, Option<ca::Caller>)>().cloned();
    if let Some((client, caller)) = known {
        request.extensions_mut().insert(client);
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
    }
    Ok(request)
}

/// Whether a stream ended because of a message that does not decode; else its caller has gone.
pub(crate) fn is_malformed(status: &tonic::Status) -> bool {
    // What comes from the connection has a cause, what comes from the codec has none.
    status.code() == tonic::Code::Internal && std::error::Error::source(status).is_none()
}
