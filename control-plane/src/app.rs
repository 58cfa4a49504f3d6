//! The wiring: a configuration becomes a running control plane.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tonic::service::InterceptorLayer;
use tonic::transport::Server;
use tulle_api::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use tulle_api::v1::proxy_server::ProxyServer;

use crate::ads::Ads;
use crate::ca::{self, Ca};
use crate::config::{Config, LogFormat};
use crate::index::Index;
use crate::metrics::Metrics;
use crate::model::{Publisher, Settings};
use crate::report::Reports;
use crate::source::{Folder, Watch};
use crate::state_dir::StateDir;
use crate::{admin, server};

/// Runs a control plane until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting, with the remedy.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(config))
}

/// Installs the log of a program that is a control plane and nothing else.
///
/// # Errors
/// When the level cannot be read.
pub fn install_log(config: &Config) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log_level)
        .with_context(|| format!("--log-level (TULLE_CONTROL_PLANE_LOG_LEVEL): {:?}", config.log_level))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stdout);
    let installed = match config.log_format {
        LogFormat::Json => log.json().flatten_event(true).try_init(),
        LogFormat::Text => log.with_ansi(false).try_init(),
    };
    installed.map_err(|error| anyhow::anyhow!("cannot install the log: {error}"))
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let metrics = Metrics::new()?;
    let folder = Arc::new(StateDir::open(&config.state_dir)?);
    let ca = open_ca(config, &folder, &metrics)?;
    let (yaml, read) = Folder::open(&config.config_dir)?;
    let mut index = Index::default();
    index.change(read.changes);
    index.set_bundle(config.trust_domain.as_str(), authorities(&ca));
    let settings = Settings { trust_domain: Some(config.trust_domain.as_str().into()) };
    let publisher = Publisher::new(index, settings, read.findings);
    tokio::spawn({
        let publisher = Arc::clone(&publisher);
        async move { publisher.run().await }
    });
    let watch = {
        let publisher = Arc::clone(&publisher);
        Watch::start(yaml, move |read| publisher.apply(read.changes, read.findings))
            .context("cannot watch the folder of YAML")?
    };
    tokio::spawn(show(Arc::clone(&publisher), metrics.clone()));

    let admin_listener = listen(config.metrics_address, "metrics").await?;
    let grpc_listener = listen(config.grpc_address, "grpc").await?;
    let bound =
        BTreeMap::from([("metrics", admin_listener.local_addr()?), ("grpc", grpc_listener.local_addr()?)]);
    let ready = Arc::new(AtomicBool::new(false));
    tokio::spawn(admin::serve(admin_listener, metrics.clone(), Arc::clone(&ready)));
    let reports = Reports::open(
        Arc::clone(&publisher),
        ca.clone(),
        metrics.clone(),
        Arc::clone(&folder),
        config.registration_grace,
    )
    .await;
    if let Some(path) = &config.addresses_file {
        write_addresses(path, &bound).with_context(|| format!("cannot write {}", path.display()))?;
    }
    // Everything has been read: from here on, what is absent is absent.
    ready.store(true, Ordering::Release);
    tracing::info!(?bound, config_dir = %config.config_dir.display(), "the control plane runs");

    let grpc = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .layer(InterceptorLayer::new(server::identify))
        .add_service(AggregatedDiscoveryServiceServer::new(Ads::new(publisher.models(), metrics.clone())))
        .add_service(ProxyServer::new(reports))
        .add_service(ca.service())
        .serve_with_incoming(server::incoming(grpc_listener, ca, metrics));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Streams live for ever, so there is no waiting for them: proxies keep what they have and come back.
    tokio::select! {
        ended = grpc => ended.context("the gRPC port failed")?,
        _ = terminate.recv() => tracing::info!("ending"),
        _ = interrupt.recv() => tracing::info!("ending"),
    }
    drop(watch);
    Ok(())
}

fn open_ca(config: &Config, folder: &StateDir, metrics: &Metrics) -> anyhow::Result<Ca> {
    let certificates = metrics.certificates.clone();
    let options = ca::Options {
        lifetime: config.leaf_lifetime,
        observer: Box::new(move |outcome| certificates.with_label_values(&[outcome.word()]).inc()),
    };
    let ca = Ca::open_with(folder.path(), &config.trust_domain, SystemTime::now(), options)?;
    let expires = ca.not_after().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    metrics.issuer_expires.set(i64::try_from(expires).unwrap_or(i64::MAX));
    Ok(ca)
}

fn authorities(ca: &Ca) -> Vec<Bytes> {
    ca.bundle().roots().iter().map(|root| Bytes::copy_from_slice(root)).collect()
}

/// Keeps the metrics of the model and of the findings.
async fn show(publisher: Arc<Publisher>, metrics: Metrics) {
    let (mut models, mut findings) = (publisher.models(), publisher.findings());
    metrics.set_findings(&findings.borrow_and_update());
    loop {
        tokio::select! {
            changed = models.changed() => match changed {
                Ok(()) => metrics.models.inc(),
                Err(_) => return,
            },
            changed = findings.changed() => match changed {
                Ok(()) => metrics.set_findings(&findings.borrow_and_update()),
                Err(_) => return,
            },
        }
    }
}

async fn listen(address: SocketAddr, name: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
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
