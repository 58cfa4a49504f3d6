//! The listeners: accept, bound, hand to [`answer`](super::answer).

use std::cmp::Reverse;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Connections at a time. For one more another is closed, of the client that has most of them: who opens many must not keep others from
/// asking whether the proxy lives, nor cut off what they are being answered.
pub(super) const MAX_CONNECTIONS: usize = 128;
/// Bytes of a head.
const MAX_HEAD: usize = 16 * 1024;
/// Bytes of a body: of a log level.
const MAX_BODY: usize = 4 * 1024;
/// What the paths of probes begin with.
const PROBE: &str = "/probe/";
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

/// A connection that is served.
struct Open {
    task: AbortHandle,
    client: Option<IpAddr>,
    /// Whether a request is being answered.
    busy: Arc<AtomicBool>,
}

/// Serves for ever. Dropped, it closes the listener and every connection.
pub async fn serve(listener: Listener, face: Face, state: Arc<dyn AdminState>) {
    let mut connections = JoinSet::new();
    // The oldest first.
    let mut open: Vec<Open> = Vec::new();
    loop {
        let busy = Arc::new(AtomicBool::new(false));
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, client)| {
                let task = connections.spawn(connection(stream, face, state.clone(), Arc::clone(&busy)));
                Open { task, client: Some(client.ip()), busy }
            }),
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                let task = connections.spawn(connection(stream, face, state.clone(), Arc::clone(&busy)));
                Open { task, client: None, busy }
            }),
        };
        while connections.try_join_next().is_some() {}
        open.retain(|connection| !connection.task.is_finished());
        match accepted {
            Ok(connection) => open.push(connection),
            Err(error) => {
                tracing::debug!(%error, "admin: accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        if open.len() > MAX_CONNECTIONS {
            open.remove(superfluous(&open)).task.abort();
        }
    }
}

/// Which of too many is closed: of the client that has most one that is not being answered, and the oldest of those. The newest, who cannot have asked
/// yet, goes last.
fn superfluous(open: &[Open]) -> usize {
    let newest = open.len() - 1;
    let of_client = |client: Option<IpAddr>| open.iter().filter(|other| other.client == client).count();
    let rank = |at: &usize| {
        let Open { client, busy, .. } = &open[*at];
        (of_client(*client), *at != newest, !busy.load(Ordering::Relaxed), Reverse(*at))
    };
    (0..open.len()).max_by_key(rank).unwrap_or(newest)
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
    busy: Arc<AtomicBool>,
) {
    let answering = Arc::clone(&busy);
    let service = service_fn(move |request| {
        let (state, busy) = (state.clone(), Arc::clone(&answering));
        async move {
            busy.store(true, Ordering::Relaxed);
            let answer = respond(request, face, &*state).await;
            busy.store(false, Ordering::Relaxed);
            Ok::<_, Infallible>(answer)
        }
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
            loop {
                match tokio::time::timeout(PATIENCE, served.as_mut()).await {
                    Ok(ended) => break ended,
                    // A hook may take long; its time is bounded by itself.
                    Err(_) if busy.load(Ordering::Relaxed) => {}
                    Err(_) => break Ok(()),
                }
            }
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
    let request = Request::from_parts(head, body);
    match state.prober().filter(|_| face == Face::Public && request.uri().path().starts_with(PROBE)) {
        Some(prober) => prober.answer(&request).await,
        None => answer(face, &request, state),
    }
}
