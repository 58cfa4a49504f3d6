//! Somebody between a control plane and its API server, who passes on what is asked and what is answered, until told to answer by
//! himself, as an API server, or what stands before it, does on a bad day.
//!
//! He has the server's own certificate and address, at another port. Whenever he is told to answer otherwise, all connections are cut: what was
//! under way is asked anew.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Request, Response, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::ApiServer;
use crate::Wire;

/// Ends with all connections when it is dropped.
#[derive(Debug)]
pub struct Between {
    address: SocketAddr,
    says: watch::Sender<Says>,
    asked: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// What the API server answers.
    TheTruth,
    /// 429, and to come again in a second.
    TooMany,
    /// 410 to every watch; the others get the truth.
    Gone,
    /// 500.
    Failed,
    /// 200 with what is no JSON.
    Garbage,
    /// 200 with the beginning of an answer, and then nothing.
    Half,
    /// A reset, to whoever connects.
    Reset,
}

type Body = BoxBody<Bytes, hyper::Error>;

/// The real one.
#[derive(Clone)]
struct Real {
    address: SocketAddr,
    tls: TlsConnector,
}

// === impl Between ===

impl Between {
    /// Passes everything on to `server`.
    pub async fn start(server: &ApiServer) -> Self {
        let read = |name: &str| fs::read(server.folder().path(name)).expect("a file");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&read("root.pem")).expect("a root")).expect("a root");
        #[allow(clippy::disallowed_methods, reason = "not one of ours: that is the point")]
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let chain = vec![CertificateDer::from_pem_slice(&read("server.pem")).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_slice(&read("server-key.pem")).expect("a key");
        #[allow(clippy::disallowed_methods, reason = "not one of ours: that is the point")]
        let own = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate");
        let acceptor = TlsAcceptor::from(Arc::new(own));
        let real = Real { address: server.address(), tls: TlsConnector::from(Arc::new(client)) };

        let listener = TcpListener::bind((server.address().ip(), 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (says, saying) = watch::channel(Says::TheTruth);
        let asked = Arc::<AtomicU64>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, acceptor, real, saying, Arc::clone(&asked)));
        Self { address, says, asked, _tasks: tasks }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts all connections, and answers so from now on.
    pub fn say(&self, says: Says) {
        self.says.send_replace(says);
    }

    /// How many requests have come; each connection that was reset is one.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    real: Real,
    saying: watch::Receiver<Says>,
    asked: Arc<AtomicU64>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        while connections.try_join_next().is_some() {}
        let mut changes = saying.clone();
        let says = *changes.borrow_and_update();
        if says == Says::Reset {
            asked.fetch_add(1, Ordering::Relaxed);
            Wire::new(stream).reset();
            continue;
        }
        let served = serve(stream, acceptor.clone(), real.clone(), says, Arc::clone(&asked));
        connections.spawn(async move {
            tokio::select! {
                () = served => {}
                _ = changes.changed() => {}
            }
        });
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, real: Real, says: Says, asked: Arc<AtomicU64>) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = service_fn(move |request| {
        asked.fetch_add(1, Ordering::Relaxed);
        let real = real.clone();
        async move { Ok::<_, Infallible>(answer(request, &real, says).await) }
    });
    // An error: whoever asked has gone.
    let _ended =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, real: &Real, says: Says) -> Response<Body> {
    let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    match says {
        Says::TooMany => {
            let mut response = refusal(429, "TooManyRequests", "too many requests, please try again later");
            response.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from_static("1"));
            response
        }
        Says::Gone if is_watch => refusal(410, "Expired", "too old resource version"),
        Says::Failed => refusal(500, "InternalError", "etcdserver: no leader"),
        Says::Garbage => json(200, "{\"kind\": <html>\n".into()),
        Says::Half => {
            let begun = Frame::data(Bytes::from_static(b"{\"kind\": \"List\", \"apiVersion\": \"v1\", \"it"));
            let body = stream::iter([Ok(begun)]).chain(stream::pending());
            json(200, Bytes::new()).map(|_| BodyExt::boxed(StreamBody::new(body)))
        }
        Says::TheTruth | Says::Gone | Says::Reset => match real.ask(request).await {
            Ok(response) => response.map(BodyExt::boxed),
            Err(error) => refusal(503, "ServiceUnavailable", &error.to_string()),
        },
    }
}

fn refusal(code: u16, reason: &str, message: &str) -> Response<Body> {
    let status = serde_json::json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    json(code, status.to_string().into())
}

fn json(code: u16, body: Bytes) -> Response<Body> {
    let response = Response::builder().status(code).header(header::CONTENT_TYPE, "application/json");
    response.body(Full::new(body).map_err(|never| match never {}).boxed()).expect("a response")
}

// === impl Real ===

impl Real {
    async fn ask(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(self.address).await?;
        let stream = self.tls.connect(ServerName::from(self.address.ip()), stream).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender.send_request(request).await?)
    }
}
