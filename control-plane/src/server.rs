//! The one gRPC port: TLS, who calls, and the services behind it.
//!
//! A client certificate is optional at the TLS level, since a workload that joins has none yet; each service asks for
//! what it needs. Who was verified goes with every request of the connection as [`ca::Caller`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tulle_certs::{refusal, refusal_of_io};

use crate::ca::{self, Ca};
use crate::metrics::Metrics;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A connection whose handshake is done.
pub struct Secured {
    stream: TlsStream<TcpStream>,
    caller: Option<ca::Caller>,
}

/// Accepts connections and does their handshakes, each in a task of its own: one that stalls holds up no other.
pub fn incoming(
    listener: TcpListener,
    ca: Ca,
    metrics: Metrics,
) -> impl Stream<Item = Result<Secured, io::Error>> {
    let (secured, stream) = mpsc::channel(64);
    tokio::spawn(async move {
        loop {
            let (socket, client) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept; trying again");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                },
                () = secured.closed() => return,
            };
            let (ca, metrics, secured) = (ca.clone(), metrics.clone(), secured.clone());
            tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE, secure(socket, &ca)).await {
                    Ok(Ok(connection)) => drop(secured.send(Ok(connection)).await),
                    Ok(Err(error)) => {
                        let reason = refusal_of_io(&error).map_or("tls_failed", refusal::Refusal::reason);
                        metrics.refused.with_label_values(&[reason]).inc();
                        tracing::warn!(%client, reason, %error, "refused a connection");
                    }
                    Err(_) => metrics.refused.with_label_values(&["tls_timeout"]).inc(),
                }
            });
        }
    });
    ReceiverStream::new(stream)
}

async fn secure(socket: TcpStream, ca: &Ca) -> io::Result<Secured> {
    socket.set_nodelay(true)?;
    let stream = TlsAcceptor::from(ca.creds().control_plane()).accept(socket).await?;
    let (_, session) = stream.get_ref();
    let caller = ca::Caller::of(session.peer_certificates())
        .map_err(|refusal| io::Error::new(io::ErrorKind::InvalidData, refusal.reason()))?;
    Ok(Secured { stream, caller })
}

// === impl Secured ===

impl Connected for Secured {
    type ConnectInfo = Option<ca::Caller>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.caller.clone()
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
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

/// Moves the verified caller to where the services look for it.
///
/// # Errors
/// Never; tonic's interceptors may.
pub fn identify(mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    let caller = request.extensions().get::<Option<ca::Caller>>().cloned().flatten();
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
    Ok(request)
}
