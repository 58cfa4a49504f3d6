//! The way to the control plane: a name or address, TLS as the current identity (or none yet), gRPC on top.
//!
//! Decides which certificate a new connection shows: the one that is current when it is dialled. A connection
//! that has been made keeps its own. Called by `identity` and by the ADS and report streams.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::Resolver;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tulle_certs::{creds, refusal};

use crate::config::HostPort;
use crate::io::resolver::Sockets;

/// How long dialling, TLS included, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A ping goes out after so long, and its answer must come within the next.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait before a stream is opened again after `failures` in a row: a quarter of a second, doubled each
/// time up to five seconds, so that a control plane that comes back is found soon; `jitter` in 0..1 spreads the proxies.
pub fn reconnect_delay(failures: u32, jitter: f64) -> Duration {
    let doubled = Duration::from_millis(250) * 2_u32.pow(failures.saturating_sub(1).min(5));
    doubled.min(Duration::from_secs(5)).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

/// Where the control plane is.
#[derive(Debug, Clone)]
pub struct Way {
    pub address: HostPort,
    /// The mark of our connections.
    pub mark: Option<u32>,
}

/// Why the control plane could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name leads nowhere.
    #[error("the name of {0} cannot be resolved: {1}")]
    Resolve(String, String),
    /// No address answers.
    #[error("{0} cannot be reached: {1}")]
    Connect(String, #[source] io::Error),
    /// It is someone else, or it refuses us.
    #[error("TLS with {0} failed: {why}", why = refusal::describe_io(.1))]
    Tls(String, #[source] io::Error),
    /// It is silent.
    #[error(
        "{0} is not connected within {CONNECT_TIMEOUT:?}: nothing answers there, or the way to it drops what is sent"
    )]
    Late(String),
    /// There is no certificate to show yet.
    #[error("there is no identity yet")]
    NoIdentity,
}

impl DialError {
    /// Why we refused the control plane, if we did.
    pub fn refusal(&self) -> Option<refusal::Refusal> {
        match self {
            Self::Tls(_, error) => refusal::refusal_of_io(error),
            _ => None,
        }
    }
}

/// A channel that goes `way` when it is first used and whenever it has lost its connection; `tls` says with
/// which configuration.
///
/// The names of both ends are in the configuration's verifier; nothing is told from the URI.
pub fn lazy<F>(way: &Way, tls: F) -> Result<Channel, tonic::transport::Error>
where
    F: Fn() -> Option<Arc<ClientConfig>> + Clone + Send + Sync + 'static,
{
    named(way, "the control plane", creds::server_name(), tls)
}

/// A channel of the same kind to `called`, for messages, whose certificate is for `name`.
pub(super) fn named<F>(
    way: &Way,
    called: &'static str,
    name: ServerName<'static>,
    tls: F,
) -> Result<Channel, tonic::transport::Error>
where
    F: Fn() -> Option<Arc<ClientConfig>> + Clone + Send + Sync + 'static,
{
    let Way { address, .. } = way;
    let host = if address.host.contains(':') { format!("[{}]", address.host) } else { address.host.clone() };
    // The scheme is http because the connector does TLS itself.
    let endpoint = Endpoint::from_shared(format!("http://{host}:{}", address.port))?
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let way = way.clone();
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (way, tls, name) = (way.clone(), tls.clone(), name.clone());
        async move {
            let config = tls().ok_or(DialError::NoIdentity)?;
            let dialled = tokio::time::timeout(CONNECT_TIMEOUT, dial(&way, called, name, config)).await;
            // Ours, since tonic's own limit says neither who nor how long.
            let late = |_| DialError::Late(at(&way.address, called));
            dialled.map_err(late)?.map(TokioIo::new)
        }
    })))
}

fn at(address: &HostPort, called: &str) -> String {
    format!("{called} at {}:{}", address.host, address.port)
}

/// Dials every address of the name in turn, then does TLS.
async fn dial(
    way: &Way,
    called: &str,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, DialError> {
    let Way { address, mark } = way;
    let called = at(address, called);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let resolved = resolve(&address.host, *mark).await;
    for ip in resolved.map_err(|why| DialError::Resolve(called.clone(), why))? {
        match crate::io::connect(SocketAddr::new(ip, address.port), *mark).await {
            Ok(stream) => {
                // Small messages both ways: waiting to fill a segment only delays them.
                stream.set_nodelay(true).map_err(|e| DialError::Connect(called.clone(), e))?;
                return TlsConnector::from(config)
                    .connect(name, stream)
                    .await
                    .map_err(|e| DialError::Tls(called, e));
            }
            Err(error) => last = error,
        }
    }
    Err(DialError::Connect(called, last))
}

/// By our own resolver: a static binary cannot use that of glibc.
pub(super) async fn resolve(host: &str, mark: Option<u32>) -> Result<Vec<IpAddr>, String> {
    // The mark is the process's.
    static RESOLVER: OnceCell<Resolver<Sockets>> = OnceCell::const_new();
    if let Ok(ip) = host.parse() {
        return Ok(vec![ip]);
    }
    let resolver = RESOLVER
        .get_or_try_init(|| async { Resolver::builder(Sockets::marked(mark))?.build() })
        .await
        .map_err(|e| e.to_string())?;
    let addresses = resolver.lookup_ip(host).await.map_err(|e| e.to_string())?;
    Ok(addresses.iter().collect())
}
