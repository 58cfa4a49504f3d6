//! The floor: a pair of nothing but hyper, tokio's current-thread runtime and rustls. No routes, no policy, no
//! metrics, no log, no balancing. What Tulle costs more than this is what its features cost.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;

use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::pki::{NAME, Pki, Side};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// One proxy of the bare pair.
#[derive(Debug, clap::Args)]
pub(crate) struct Half {
    #[arg(long, value_enum)]
    side: Side,
    #[arg(long)]
    listen: SocketAddr,
    /// What it forwards to.
    #[arg(long)]
    to: SocketAddr,
    /// What its clients speak.
    #[arg(long, value_enum)]
    from_speaks: Speaks,
    /// What it speaks on.
    #[arg(long, value_enum)]
    to_speaks: Speaks,
    #[arg(long)]
    pki: PathBuf,
}

/// A protocol of one leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Speaks {
    Http1,
    Http2,
    Tcp,
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}
type Io = Box<dyn Stream>;

/// The connections of the next leg.
struct Upstream {
    to: SocketAddr,
    speaks: Speaks,
    tls: Option<TlsConnector>,
    idle: RefCell<Vec<http1::SendRequest<Incoming>>>,
    shared: RefCell<Option<http2::SendRequest<Incoming>>>,
    dialling: tokio::sync::Mutex<()>,
}

/// Tasks stay on the one thread.
#[derive(Clone, Copy, Debug)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

// === impl Speaks ===

impl Speaks {
    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
            Self::Tcp => b"tcp",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
        }
    }
}

// === impl Half ===

impl Half {
    pub(crate) fn run(self) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, self.serve()).map_err(|error| format!("{}: {error}", self.listen))
    }

    async fn serve(&self) -> Result<(), Error> {
        let pki = Pki::at(&self.pki);
        let acceptor =
            (self.side == Side::Inbound).then(|| TlsAcceptor::from(pki.server(self.from_speaks.alpn())));
        let connector =
            (self.side == Side::Outbound).then(|| TlsConnector::from(pki.client(self.to_speaks.alpn())));
        let upstream = Rc::new(Upstream {
            to: self.to,
            speaks: self.to_speaks,
            tls: connector,
            idle: RefCell::default(),
            shared: RefCell::default(),
            dialling: tokio::sync::Mutex::default(),
        });
        let listener = TcpListener::bind(self.listen).await?;
        let speaks = self.from_speaks;
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            let (acceptor, upstream) = (acceptor.clone(), Rc::clone(&upstream));
            tokio::task::spawn_local(async move {
                let io: Io = match acceptor {
                    None => Box::new(stream),
                    Some(acceptor) => match acceptor.accept(stream).await {
                        Ok(stream) => Box::new(stream),
                        Err(_) => return,
                    },
                };
                serve_connection(io, speaks, upstream).await;
            });
        }
    }
}

async fn serve_connection(mut io: Io, speaks: Speaks, upstream: Rc<Upstream>) {
    let next = Rc::clone(&upstream);
    let service = service_fn(move |request| {
        let upstream = Rc::clone(&upstream);
        async move { upstream.send(request).await }
    });
    match speaks {
        Speaks::Http1 => {
            let builder = hyper::server::conn::http1::Builder::new();
            let _ = builder.serve_connection(TokioIo::new(io), service).await;
        }
        Speaks::Http2 => {
            let mut builder = hyper::server::conn::http2::Builder::new(Local);
            let _ = builder.max_concurrent_streams(1000).serve_connection(TokioIo::new(io), service).await;
        }
        Speaks::Tcp => {
            if let Ok(mut next) = next.dial().await {
                let _ = tokio::io::copy_bidirectional(&mut io, &mut next).await;
            }
        }
    }
}

// === impl Upstream ===

impl Upstream {
    async fn dial(&self) -> Result<Io, Error> {
        let stream = TcpStream::connect(self.to).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls.connect(ServerName::try_from(NAME)?, stream).await?),
        })
    }

    async fn send(&self, mut request: Request<Incoming>) -> Result<Response<Incoming>, Error> {
        match self.speaks {
            Speaks::Http2 => {
                *request.version_mut() = Version::HTTP_2;
                if request.uri().authority().is_none() {
                    let host = request.headers_mut().remove("host").ok_or("no host")?;
                    let mut parts = std::mem::take(request.uri_mut()).into_parts();
                    parts.scheme = Some(Scheme::HTTP);
                    parts.authority = Some(Authority::try_from(host.as_bytes())?);
                    *request.uri_mut() = Uri::from_parts(parts)?;
                }
                let mut response = self.shared().await?.send_request(request).await?;
                *response.version_mut() = Version::default();
                Ok(response)
            }
            _ => {
                *request.version_mut() = Version::HTTP_11;
                if let Some(authority) = request.uri().authority() {
                    let host = authority.as_str().parse()?;
                    request.headers_mut().insert("host", host);
                    let mut parts = std::mem::take(request.uri_mut()).into_parts();
                    (parts.scheme, parts.authority) = (None, None);
                    *request.uri_mut() = Uri::from_parts(parts)?;
                }
                let mut sender = match self.idle() {
                    Some(idle) => idle,
                    None => {
                        let (sender, connection) = http1::handshake(TokioIo::new(self.dial().await?)).await?;
                        tokio::task::spawn_local(connection);
                        sender
                    }
                };
                let response = sender.send_request(request).await?;
                self.idle.borrow_mut().push(sender);
                Ok(response)
            }
        }
    }

    /// A connection whose last response is over.
    fn idle(&self) -> Option<http1::SendRequest<Incoming>> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|sender| !sender.is_closed());
        let ready = idle.iter().rposition(http1::SendRequest::is_ready)?;
        Some(idle.swap_remove(ready))
    }

    async fn shared(&self) -> Result<http2::SendRequest<Incoming>, Error> {
        let _one_at_a_time = self.dialling.lock().await;
        if let Some(shared) = self.shared.borrow().as_ref().filter(|shared| !shared.is_closed()) {
            return Ok(shared.clone());
        }
        let mut builder = http2::Builder::new(Local);
        builder.initial_max_send_streams(Some(1000));
        let (sender, connection) = builder.handshake(TokioIo::new(self.dial().await?)).await?;
        tokio::task::spawn_local(connection);
        *self.shared.borrow_mut() = Some(sender.clone());
        Ok(sender)
    }
}
