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
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tonic::service::InterceptorLayer;
use tonic::transport::Server;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tulle_api::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use tulle_api::v1::proxy_server::ProxyServer;
use tulle_certs::TrustBundle;

use crate::admin::{self, Pages, Readiness};
use crate::ads::{Ads, Nodes, Proxies, Standing};
use crate::asking::Reporters;
use crate::ca::rotation::{Keeper, Progress};
use crate::ca::{self, Ca, Foreign};
use crate::cluster::{Holder, Replica, Running};
use crate::config::{Config, LogFormat, SourceKind};
use crate::ending::{self, End, Ending};
use crate::finding::Finding;
use crate::index::Index;
use crate::inject;
use crate::inject::kubernetes::Injector;
use crate::load::Loads;
use crate::metrics::Metrics;
use crate::model::{Publisher, Settings};
use crate::registration::Registrations;
use crate::report::Reports;
use crate::server;
use crate::source::kubernetes::{self, Cluster, Pace};
use crate::source::{self, Folder, Read, Source, Watch};
use crate::state_dir::StateDir;
use crate::tap::Taps;
use crate::trust::Trust;

/// A dead proxy's connection is noticed within these two together.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams end by themselves when the control plane does; connections have this long to follow.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How long a replica in a cluster goes on once it is to end: until the API server and proxies have learnt from Endpoints that it does, they call it. With
/// what follows it is less than the 30 s that the chart gives it.
const LINGER: Duration = Duration::from_secs(8);
/// How long a replica that has read everything is not ready yet because its webhook cannot answer: one that was killed holds the lease for 15 s.
const WEBHOOK_PATIENCE: Duration = Duration::from_secs(20);
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
    trust: Trust,
    registrations: Arc<Registrations>,
    readiness: Arc<Readiness>,
    end: End,
    grpc: JoinHandle<Result<(), tonic::transport::Error>>,
    source: Source,
    /// Aborted with it.
    _tasks: JoinSet<()>,
    state_dir: Option<Arc<StateDir>>,
    /// Beside other control planes, in a cluster.
    replica: Option<Running>,
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
        let started = tokio::select! {
            started = ControlPlane::start(config) => Some(started?),
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
        };
        let Some(mut control_plane) = started else {
            tracing::info!("ending before everything has been read");
            return Ok(());
        };
        tokio::select! {
            failed = control_plane.failed() => return Err(failed),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let lingers = control_plane.begin_ending();
        tracing::info!(?lingers, "ending");
        // Who says so twice means at once.
        tokio::select! {
            () = tokio::time::sleep(lingers) => {}
            failed = control_plane.failed() => return Err(failed),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
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
    let log = tracing_subscriber::registry().with(quieted(&config.log_level)).with(json).with(text);
    tracing::subscriber::set_global_default(log).context("cannot install the log")
}

/// Without what kube's client and its watches say of themselves: ours say it once, with what to do. Who asks for details, or names kube's, hears it.
fn quieted(said: &Targets) -> Targets {
    /// Of kube's, what is heard at most: of its client neither each request that failed nor each answer that is no status, but that a file of roots cannot be read again.
    const HEARD: [(&str, LevelFilter); 4] = [
        ("kube_runtime", LevelFilter::ERROR),
        ("kube_client", LevelFilter::ERROR),
        ("kube_client::client::builder", LevelFilter::OFF),
        ("kube_client::client::tls", LevelFilter::WARN),
    ];
    let all = said.default_level().unwrap_or(LevelFilter::OFF);
    if all > LevelFilter::INFO {
        return said.clone();
    }
    HEARD.into_iter().fold(said.clone(), |quieter, (target, most)| {
        let of_crate = target.split("::").next().unwrap_or(target);
        match said.iter().any(|(named, _)| named.starts_with(of_crate)) {
            true => quieter,
            false => quieter.with_target(target, all.min(most)),
        }
    })
}

// === impl ControlPlane ===

impl ControlPlane {
    /// Starts everything; when this returns, the sources have been read and every port is bound.
    ///
    /// # Errors
    /// What keeps it from starting, with the remedy.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let metrics = Metrics::new()?;
        let (unread, mut index, found) = open_source(config).await?;
        if let Some(path) = &config.mesh_file {
            index.set_default_mesh(source::read_mesh(path)?);
        }
        let client = unread.client().filter(|_| config.state_dir.is_none());
        let replica = client.map(|client| Replica::new(client, &config.namespace, metrics.clone()));
        let replica = replica.map(|replica| {
            let issuer = config.issuer_secret.as_deref();
            replica.in_pod(config.pod.clone()).issued_by(issuer, config.leaf_lifetime)
        });
        let opening = open_trust(config, replica.as_ref(), &metrics);
        let may_wait = replica.is_some() || config.identity().is_some();
        let ((trust, state_dir), metrics_listener) = match may_wait {
            // A folder that another has locked is told of before its ports are.
            false => (opening.await?, listen(config.metrics_address, "metrics").await?),
            // It may have to be waited for, and who asks meanwhile whether we live must hear that.
            true => {
                let listener = listen(config.metrics_address, "metrics").await?;
                let opened = tokio::select! {
                    opened = opening => opened?,
                    never = admin::serve_beginning(&listener) => match never {},
                };
                (opened, listener)
            }
        };
        index.set_bundle(config.trust_domain.as_str(), authorities(&trust));
        let settings = Settings {
            trust_domain: Some(config.trust_domain.as_str().into()),
            session_key: Some(trust.session_key()),
        };
        let publisher = Publisher::new(index, settings, found);
        let granting = trust.clone();
        let registrations = Registrations::open(
            Arc::clone(&publisher),
            Box::new(move |id, service| granting.may_register(id, service)),
            state_dir.clone(),
            metrics.clone(),
            config.registration_grace,
        );
        let registrations = Arc::new(if replica.is_some() { registrations.shared() } else { registrations });
        let grpc_listener = listen(config.grpc_address, "grpc").await?;
        let injector = match replica {
            Some(_) => Some(open_injector(config).await?),
            None => None,
        };
        let (metrics_address, grpc_address) = (metrics_listener.local_addr()?, grpc_listener.local_addr()?);

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
        let rotation = Progress::default();
        let pages = Pages {
            metrics: metrics.clone(),
            publisher: Arc::clone(&publisher),
            proxies: proxies.clone(),
            reporters: reporters.clone(),
            loads: loads.clone(),
            taps: taps.clone(),
            trust: trust.clone(),
            rotation: rotation.clone(),
            readiness: Arc::clone(&readiness),
        };
        tasks.spawn(admin::serve(metrics_listener, Arc::new(pages)));
        let mut bound = BTreeMap::from([("metrics", metrics_address), ("grpc", grpc_address)]);
        if let Some((listener, _)) = &injector {
            bound.insert("webhook", listener.local_addr()?);
        }
        if let Some(path) = &config.addresses_file {
            write_addresses(path, &bound).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let client = unread.client();
        let source = unread.start(&publisher, &metrics).await?;
        let nodes = if replica.is_some() { nodes(&publisher, &trust) } else { Nodes::default() };
        let replica = match (replica, trust.ca()) {
            (Some(replica), Some(ca)) => Some(replica.start(ca, &publisher, &registrations, &ending)),
            _ => None,
        };
        let before = config.root_rotate_before;
        let (told, connected) = (Arc::clone(&publisher), proxies.clone());
        if let Some(ca) = trust.ca() {
            let keeper = Keeper::new(ca.clone(), told, connected, before, metrics.clone(), rotation);
            let keeper = match &replica {
                Some(replica) => keeper.beside(replica.others()),
                None => keeper,
            };
            tasks.spawn(keeper.run());
            tasks.spawn(ca.clone().keep_tokens());
        }
        if let Trust::Foreign(foreign) = &trust {
            tasks.spawn(foreign.clone().keep_tokens());
        }
        tasks.spawn(publish_roots(trust.clone(), Arc::clone(&publisher)));
        let serves = match (client, injector, &replica) {
            (Some(client), Some((listener, settings)), Some(replica)) => {
                let (metrics, leads) = (metrics.clone(), replica.holder().watch());
                let publisher = Arc::clone(&publisher);
                let injector = Injector { client, settings, listener, publisher, metrics, leads };
                Some(injector.start(&mut tasks))
            }
            _ => None,
        };
        if let Some(replica) = &replica {
            replica.read().await;
        }
        let ads = Ads::new(publisher.models(), metrics.clone(), proxies.clone(), ending.clone());
        let ads = ads.checking(nodes.clone());
        let reports = Reports::new(
            Arc::clone(&registrations),
            Arc::clone(&publisher),
            reporters,
            loads,
            taps,
            metrics.clone(),
            ending.clone(),
        );
        let reports = reports.checking(nodes).granting(trust.clone());
        let grpc = serve_grpc(grpc_listener, ads, reports, trust.clone(), metrics, ending);
        if let Some(serves) = serves {
            // Whom the API server cannot ask about a pod, it lets through without a proxy. But proxies must not wait for the webhook for ever.
            if tokio::time::timeout(WEBHOOK_PATIENCE, serves).await.is_err() {
                tracing::warn!(
                    "the webhook has no certificate yet, or knows no namespaces; new pods are asked about in vain until it has"
                );
            }
        }
        // Everything has been read: from here on, what is absent is absent.
        readiness.ready();
        tracing::info!(?bound, source = ?config.source, config_dir = ?config.config_dir, "the control plane runs");
        Ok(Self {
            grpc_address,
            metrics_address,
            publisher,
            proxies,
            trust,
            registrations,
            readiness,
            end,
            grpc,
            source,
            _tasks: tasks,
            state_dir,
            replica,
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

    /// Whether this is the control plane that writes to the API server; `None` without one.
    pub fn holder(&self) -> Option<&Holder> {
        self.replica.as_ref().map(Running::holder)
    }

    /// The authority; `None` where identities come from elsewhere.
    pub fn ca(&self) -> Option<&Ca> {
        self.trust.ca()
    }

    /// Returns only if it cannot go on.
    pub async fn failed(&mut self) -> anyhow::Error {
        match (&mut self.grpc).await {
            Ok(Ok(())) => anyhow::anyhow!("the gRPC port ended"),
            Ok(Err(error)) => anyhow::Error::new(error).context("the gRPC port failed"),
            Err(error) => anyhow::Error::new(error).context("the gRPC port failed"),
        }
    }

    /// Is not ready from now on; how long it should go on nevertheless before [`ControlPlane::stop`].
    pub fn begin_ending(&self) -> Duration {
        self.readiness.ending();
        if self.replica.is_some() { LINGER } else { Duration::ZERO }
    }

    /// Ends: streams are told so and proxies keep what they have; what is registered is kept for the next start.
    pub async fn stop(mut self) {
        self.readiness.ending();
        self.registrations.close();
        self.end.begin();
        if tokio::time::timeout(LAST_WORDS, &mut self.grpc).await.is_err() {
            self.grpc.abort();
        }
        if let Some(replica) = self.replica {
            replica.stop().await;
        }
        drop(self.source);
        if let Some(state_dir) = self.state_dir {
            state_dir.release();
        }
    }
}

/// A source before it is watched.
enum Unread {
    /// A folder, read once.
    Folder(Folder),
    /// An API server, not asked yet.
    Kubernetes(Box<kube::Client>),
}

/// What is known before anybody is answered: all of a folder, and nothing yet of a cluster, whose API server may take its time
/// while `/live` must answer.
async fn open_source(config: &Config) -> anyhow::Result<(Unread, Index, Vec<Finding>)> {
    match (config.source, &config.config_dir) {
        (SourceKind::Kubernetes, _) => {
            let client = kubernetes::connect().await?;
            Ok((Unread::Kubernetes(Box::new(client)), Index::of_cluster(), Vec::new()))
        }
        (SourceKind::Folder, None) => anyhow::bail!("a folder of YAML is needed (--config-dir)"),
        (SourceKind::Folder, Some(path)) => {
            let (folder, Read { changes, findings }) = Folder::open(path)?;
            let mut index = Index::default();
            index.change(changes);
            Ok((Unread::Folder(folder), index, findings))
        }
    }
}

impl Unread {
    /// Of the API server, if it is one.
    fn client(&self) -> Option<kube::Client> {
        match self {
            Self::Folder(_) => None,
            Self::Kubernetes(client) => Some((**client).clone()),
        }
    }

    /// Returns once everything has been read; `publisher` is told of what changes then.
    async fn start(self, publisher: &Arc<Publisher>, metrics: &Metrics) -> anyhow::Result<Source> {
        let publisher = Arc::clone(publisher);
        match self {
            Self::Folder(folder) => {
                let on_read = move |read: Read| publisher.apply(read.changes, read.findings);
                let watch = Watch::start(folder, on_read).context("cannot watch the folder of YAML")?;
                Ok(Source::Folder(watch))
            }
            Self::Kubernetes(client) => {
                tracing::info!("reading the cluster");
                let cluster = Cluster::start(*client, publisher, metrics, Pace::default());
                cluster.read().await;
                Ok(Source::Kubernetes(cluster))
            }
        }
    }
}

fn serve_grpc(
    listener: TcpListener,
    ads: Ads,
    reports: Reports,
    trust: Trust,
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
        .add_service(reports);
    let router = match &trust {
        Trust::Own(ca) => router.add_service(ca.service()),
        Trust::Foreign(foreign) => router.add_service(foreign.service()),
    };
    let incoming = server::incoming(listener, trust, metrics);
    tokio::spawn(async move { router.serve_with_incoming_shutdown(incoming, ending.wait()).await })
}

/// The authority, with its keys in the state folder, or in the Secret that it shares with other control planes; or where identities come from
/// in its place, which may have to be waited for.
async fn open_trust(
    config: &Config,
    replica: Option<&Replica>,
    metrics: &Metrics,
) -> anyhow::Result<(Trust, Option<Arc<StateDir>>)> {
    let certificates = metrics.certificates.clone();
    let options = ca::Options {
        lifetime: config.leaf_lifetime,
        observer: Box::new(move |outcome| certificates.with_label_values(&[outcome.word()]).inc()),
        reviewer: None,
    };
    if let Some(replica) = replica {
        return Ok((Trust::Own(replica.authority(&config.trust_domain, options).await?), None));
    }
    let path = config.state_dir.as_ref().context("a state folder is needed (--state-dir)")?;
    let state_dir = Arc::new(StateDir::open(path)?);
    if let Some(given) = config.identity() {
        let foreign = Foreign::open(state_dir.path(), given, &config.trust_domain).await?;
        return Ok((Trust::Foreign(foreign), Some(state_dir)));
    }
    let ca = Ca::open_with(state_dir.path(), &config.trust_domain, SystemTime::now(), options)?;
    Ok((Trust::Own(ca), Some(state_dir)))
}

/// Where the API server asks about new pods, and what these are like with a proxy. Whose control plane it is, is said once.
async fn open_injector(config: &Config) -> anyhow::Result<(TcpListener, inject::Settings)> {
    let settings =
        config.injection_file.as_deref().map(inject::Settings::read).transpose()?.unwrap_or_default();
    let settings = inject::Settings {
        namespace: config.namespace.clone(),
        trust_domain: config.trust_domain.to_string(),
        ..settings
    };
    Ok((listen(config.webhook_address, "webhook").await?, settings))
}

/// A node of a cluster is a pod of its service account; one that is no pod has joined by a token that grants it services.
fn nodes(publisher: &Arc<Publisher>, trust: &Trust) -> Nodes {
    let (publisher, trust) = (Arc::clone(publisher), trust.clone());
    Nodes::by(move |id, node| match publisher.service_account_of(node) {
        Some(account) if account == id.service_account() => Standing::Own,
        Some(account) => Standing::Other(account),
        None if trust.has_joined(id) => Standing::Own,
        None => Standing::Unknown,
    })
}

fn authorities(trust: &Trust) -> Vec<Bytes> {
    trust.bundle().map(|bundle| roots(&bundle)).unwrap_or_default()
}

fn roots(bundle: &TrustBundle) -> Vec<Bytes> {
    bundle.roots().iter().map(|root| Bytes::copy_from_slice(root)).collect()
}

/// Tells proxies of every new root.
async fn publish_roots(trust: Trust, publisher: Arc<Publisher>) {
    let mut bundles = trust.bundles();
    // One that was told since the start is not missed.
    let mut next = trust.bundle();
    while let Some(bundle) = next {
        publisher.set_bundle(trust.trust_domain().as_str(), roots(&bundle));
        next = bundles.next().await;
    }
}

async fn count_models(mut models: watch::Receiver<Arc<crate::model::Model>>, metrics: Metrics) {
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

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn what_kubes_client_says_of_each_request_is_heard_by_who_asks_for_it() {
        const BUILDER: &str = "kube_client::client::builder";
        for (directives, target, level, heard) in [
            // Each connection that is refused, and each answer that is no status.
            ("info", BUILDER, Level::ERROR, false),
            ("info", "kube_client::client", Level::WARN, false),
            ("warn", BUILDER, Level::ERROR, false),
            ("info,tulle_control_plane=debug", BUILDER, Level::ERROR, false),
            ("info", "kube_client::client::tls", Level::WARN, true),
            ("error", "kube_client::client::tls", Level::WARN, false),
            ("info,kube_client=warn", BUILDER, Level::ERROR, true),
            ("info,kube_client::client=info", "kube_client::client", Level::WARN, true),
            ("info,kube_runtime=warn", BUILDER, Level::ERROR, false),
            ("debug", BUILDER, Level::ERROR, true),
            ("info", "tulle_control_plane::source::kubernetes::watch", Level::WARN, true),
        ] {
            let filter = quieted(&tulle_api::log_filter(directives).unwrap());
            assert_eq!(filter.would_enable(target, &level), heard, "{directives} {target} {level}");
        }
    }

    #[test]
    fn what_kubes_watches_say_of_themselves_is_heard_by_who_asks_for_it() {
        for (directives, level, heard) in [
            ("info", Level::WARN, false),
            ("info", Level::ERROR, true),
            ("off", Level::ERROR, false),
            ("tulle_control_plane=info", Level::ERROR, false),
            ("info,kube_runtime=warn", Level::WARN, true),
            ("debug", Level::WARN, true),
        ] {
            let filter = quieted(&tulle_api::log_filter(directives).unwrap());
            assert_eq!(filter.would_enable("kube_runtime::watcher", &level), heard, "{directives} {level}");
            assert!(directives != "info" || filter.would_enable("tulle_control_plane", &Level::INFO));
        }
    }
}
