//! The wiring: a configuration becomes a running control plane. `main`, the `tulle` binary and tests call it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use bytes::Bytes;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinHandle, JoinSet};
use tonic::service::InterceptorLayer;
use tonic::transport::Server;
use tracing_subscriber::layer::SubscriberExt;
use tulle_api::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use tulle_api::v1::proxy_server::ProxyServer;

use crate::admin::{self, Pages, Readiness};
use crate::ads::{Ads, Proxies};
use crate::asking::Reporters;
use crate::ca::{self, Ca};
use crate::config::{Config, LogFormat};
use crate::ending::{self, End, Ending};
use crate::index::Index;
use crate::load::Loads;
use crate::metrics::Metrics;
use crate::model::{Publisher, Settings};
use crate::registration::Registrations;
use crate::report::Reports;
use crate::server;
use crate::source::{Folder, Watch};
use crate::state_dir::StateDir;
use crate::tap::Taps;

/// A dead proxy's connection is noticed within these two together.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams end by themselves when the control plane does; connections have this long to follow.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// A reconnect names everything that a proxy uses in few messages.
const MAX_REQUEST: usize = 16 << 20;
/// A registration is small.
const MAX_REPORT: usize = 1 << 20;

/// A control plane that runs. Dropped, it ends at once, as if it were killed.
pub struct ControlPlane {
    grpc_address: SocketAddr,
    metrics_address: SocketAddr,
    publisher: Arc<Publisher>,
    proxies: Proxies,
    ca: Ca,
    registrations: Arc<Registrations>,
    readiness: Arc<Readiness>,
    end: End,
    grpc: JoinHandle<Result<(), tonic::transport::Error>>,
    watch: Watch,
    /// Aborted with it.
    _tasks: JoinSet<()>,
    state_dir: Arc<StateDir>,
}

/// Runs a control plane until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting, with the remedy.
pub fn run(config: &Config) -> anyhow::Result<()> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // Who writes more into a file than it may hold is ended, unless there is a handler: then it is an error.
        drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
        let mut control_plane = ControlPlane::start(config).await?;
        tokio::select! {
            failed = control_plane.failed() => return Err(failed),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ending");
        control_plane.stop().await;
        Ok(())
    })
}

/// Takes as many file descriptors as the kernel will give: each proxy needs one.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, ?limit, "cannot raise the limit of open files");
    }
}

/// An error in one line: what failed, and each cause that the text does not tell already.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Installs the log of a program that is a control plane and nothing else.
///
/// # Errors
/// When there is a log already.
pub fn install_log(config: &Config) -> anyhow::Result<()> {
    let (json, text) = match config.log_format {
        LogFormat::Json => (Some(tracing_subscriber::fmt::layer().json().flatten_event(true)), None),
        LogFormat::Text => (None, Some(tracing_subscriber::fmt::layer().with_ansi(false))),
    };
    let log = tracing_subscriber::registry().with(config.log_level.clone()).with(json).with(text);
    tracing::subscriber::set_global_default(log).context("cannot install the log")
}

// === impl ControlPlane ===

impl ControlPlane {
    /// Starts everything; when this returns, the sources have been read and every port is bound.
    ///
    /// # Errors
    /// What keeps it from starting, with the remedy.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let metrics = Metrics::new()?;
        let state_dir = Arc::new(StateDir::open(&config.state_dir)?);
        let ca = open_ca(config, &state_dir, &metrics)?;
        let (yaml, read) = Folder::open(&config.config_dir)?;
        let mut index = Index::default();
        index.change(read.changes);
        index.set_bundle(config.trust_domain.as_str(), authorities(&ca));
        let settings = Settings {
            trust_domain: Some(config.trust_domain.as_str().into()),
            session_key: Some(ca.session_key()),
        };
        let publisher = Publisher::new(index, settings, read.findings);
        let granting = ca.clone();
        let registrations = Registrations::open(
            Arc::clone(&publisher),
            Box::new(move |id, service| granting.may_register(id, service)),
            Arc::clone(&state_dir),
            metrics.clone(),
            config.registration_grace,
        );
        let registrations = Arc::new(registrations);
        let metrics_listener = listen(config.metrics_address, "metrics").await?;
        let grpc_listener = listen(config.grpc_address, "grpc").await?;
        let (metrics_address, grpc_address) = (metrics_listener.local_addr()?, grpc_listener.local_addr()?);

        let watch = {
            let publisher = Arc::clone(&publisher);
            Watch::start(yaml, move |read| publisher.apply(read.changes, read.findings))
                .context("cannot watch the folder of YAML")?
        };
        let mut tasks = JoinSet::new();
        let (running, models) = (Arc::clone(&publisher), publisher.models());
        tasks.spawn(async move { running.run().await });
        tasks.spawn(count_models(models, metrics.clone()));
        let kept = Arc::clone(&registrations);
        tasks.spawn(async move { kept.keep().await });

        let (end, ending) = ending::channel();
        let proxies = Proxies::default();
        let reporters = Reporters::default();
        let loads = Loads::default();
        let taps = Taps::new(Arc::clone(&publisher), metrics.clone(), ending.clone());
        let readiness = Arc::new(Readiness::default());
        let pages = Pages {
            metrics: metrics.clone(),
            publisher: Arc::clone(&publisher),
            proxies: proxies.clone(),
            reporters: reporters.clone(),
            loads: loads.clone(),
            taps: taps.clone(),
            ca: ca.clone(),
            readiness: Arc::clone(&readiness),
        };
        tasks.spawn(admin::serve(metrics_listener, Arc::new(pages)));
        let ads = Ads::new(publisher.models(), metrics.clone(), proxies.clone(), ending.clone());
        let reports = Reports::new(
            Arc::clone(&registrations),
            Arc::clone(&publisher),
            reporters,
            loads,
            taps,
            metrics.clone(),
            ending.clone(),
        );
        let grpc = serve_grpc(grpc_listener, ads, reports, ca.clone(), metrics, ending);
        let bound = BTreeMap::from([("metrics", metrics_address), ("grpc", grpc_address)]);
        if let Some(path) = &config.addresses_file {
            write_addresses(path, &bound).with_context(|| format!("cannot write {}", path.display()))?;
        }
        // Everything has been read: from here on, what is absent is absent.
        readiness.ready();
        tracing::info!(?bound, config_dir = %config.config_dir.display(), "the control plane runs");
        Ok(Self {
            grpc_address,
            metrics_address,
            publisher,
            proxies,
            ca,
            registrations,
            readiness,
            end,
            grpc,
            watch,
            _tasks: tasks,
            state_dir,
        })
    }

    /// Where proxies call.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// Where `/metrics`, `/ready` and `/live` are.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics_address
    }

    /// What is known, and what is published of it.
    pub fn publisher(&self) -> &Arc<Publisher> {
        &self.publisher
    }

    /// Who is connected, and what each has rejected.
    pub fn proxies(&self) -> &Proxies {
        &self.proxies
    }

    /// The authority.
    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// Returns only if it cannot go on.
    pub async fn failed(&mut self) -> anyhow::Error {
        match (&mut self.grpc).await {
            Ok(Ok(())) => anyhow::anyhow!("the gRPC port ended"),
            Ok(Err(error)) => anyhow::Error::new(error).context("the gRPC port failed"),
            Err(error) => anyhow::Error::new(error).context("the gRPC port failed"),
        }
    }

    /// Ends: streams are told so and proxies keep what they have; what is registered is kept for the next start.
    pub async fn stop(mut self) {
        self.readiness.ending();
        self.registrations.close();
        self.end.begin();
        if tokio::time::timeout(LAST_WORDS, &mut self.grpc).await.is_err() {
            self.grpc.abort();
        }
        drop(self.watch);
        self.state_dir.release();
    }
}

fn serve_grpc(
    listener: TcpListener,
    ads: Ads,
    reports: Reports,
    ca: Ca,
    metrics: Metrics,
    mut ending: Ending,
) -> JoinHandle<Result<(), tonic::transport::Error>> {
    let ads = AggregatedDiscoveryServiceServer::new(ads).max_decoding_message_size(MAX_REQUEST);
    let reports = ProxyServer::new(reports).max_decoding_message_size(MAX_REPORT);
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .layer(InterceptorLayer::new(server::identify))
        .add_service(ads)
        .add_service(reports)
        .add_service(ca.service());
    let incoming = server::incoming(listener, ca, metrics);
    tokio::spawn(async move { router.serve_with_incoming_shutdown(incoming, ending.wait()).await })
}

fn open_ca(config: &Config, state_dir: &StateDir, metrics: &Metrics) -> anyhow::Result<Ca> {
    let certificates = metrics.certificates.clone();
    let options = ca::Options {
        lifetime: config.leaf_lifetime,
        observer: Box::new(move |outcome| certificates.with_label_values(&[outcome.word()]).inc()),
    };
    Ok(Ca::open_with(state_dir.path(), &config.trust_domain, SystemTime::now(), options)?)
}

fn authorities(ca: &Ca) -> Vec<Bytes> {
    ca.bundle().roots().iter().map(|root| Bytes::copy_from_slice(root)).collect()
}

async fn count_models(mut models: tokio::sync::watch::Receiver<Arc<crate::model::Model>>, metrics: Metrics) {
    while models.changed().await.is_ok() {
        metrics.models.inc();
    }
}

async fn listen(address: SocketAddr, name: &str) -> anyhow::Result<TcpListener> {
    let mut bound = TcpListener::bind(address).await;
    if bound.is_err() && address.ip() == std::net::Ipv6Addr::UNSPECIFIED {
        // Every address, on a host without IPv6.
        let every = SocketAddr::from(([0, 0, 0, 0], address.port()));
        bound = TcpListener::bind(every).await.or(bound);
    }
    bound.with_context(|| {
        format!("cannot listen on {address} (--{name}-address): another program may have the port")
    })
}

/// Whole or not at all: who waits for the file must not read half of it.
fn write_addresses(path: &Path, bound: &BTreeMap<&str, SocketAddr>) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    std::fs::write(&temporary, serde_json::to_vec(bound)?)?;
    std::fs::rename(&temporary, path)
}
