//! The listeners: accept, bound, hand to [`answer`](super::answer).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{AbortHandle, JoinSet};

use super::{AdminState, Answer, Face, answer, text};

/// Connections at a time. For one more the oldest is closed: who opens many and says nothing must not keep others from
/// asking whether the proxy lives.
pub(super) const MAX_CONNECTIONS: usize = 128;
/// Bytes of a head.
const MAX_HEAD: usize = 16 * 1024;
/// Bytes of a body: of a log level.
const MAX_BODY: usize = 4 * 1024;
/// For a head or a body to come, and for the last answer to go.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection is closed after this, at the next pause between requests.
const LIFETIME: Duration = Duration::from_secs(60);
/// Between accepts that fail, for want of descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where requests come from.
#[derive(Debug)]
pub enum Listener {
    /// For [`Face::Public`] and [`Face::Local`].
    Tcp(TcpListener),
    /// For [`Face::LocalSocket`].
    Unix(UnixListener),
}

/// Serves for ever. Dropped, it closes the listener and every connection.
pub async fn serve(listener: Listener, face: Face, state: Arc<dyn AdminState>) {
    let mut connections = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = match &listener {
            Listener::Tcp(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| connections.spawn(connection(stream, face, state.clone()))),
            Listener::Unix(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| connections.spawn(connection(stream, face, state.clone()))),
        };
        while connections.try_join_next().is_some() {}
        oldest.retain(|connection| !connection.is_finished());
        match accepted {
            Ok(connection) => oldest.push_back(connection),
            Err(error) => {
                tracing::debug!(%error, "admin: accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        if oldest.len() > MAX_CONNECTIONS
            && let Some(connection) = oldest.pop_front()
        {
            connection.abort();
        }
    }
}

/// Binds a unix socket that only this user may open. A socket that a process which has ended left behind is replaced.
///
/// # Errors
/// Those of the file system; `AddrInUse` if somebody listens there, or if what is there is no socket.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        let in_use = |what: &str| {
            io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("{}: {what}; choose another path", path.display()),
            )
        };
        if !metadata.file_type().is_socket() {
            return Err(in_use("is there already and no socket"));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(in_use("another process listens there"));
        }
        std::fs::remove_file(path)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The file is made with the socket's mode (unix(7)), so that there is no moment when others may open it.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(128)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(std::os::fd::OwnedFd::from(socket)))
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    face: Face,
    state: Arc<dyn AdminState>,
) {
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(respond(request, face, &*state).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(MAX_HEAD)
        .max_headers(64)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    let ended = match tokio::time::timeout(LIFETIME, served.as_mut()).await {
        Ok(ended) => ended,
        Err(_) => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(PATIENCE, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "admin: a connection ended early");
    }
}

async fn respond(request: Request<Incoming>, face: Face, state: &dyn AdminState) -> Answer {
    let (head, body) = request.into_parts();
    let body = match tokio::time::timeout(PATIENCE, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large\n"),
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n"),
    };
    answer(face, &Request::from_parts(head, body), state)
}
