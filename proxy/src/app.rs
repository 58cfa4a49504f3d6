//! The wiring: a configuration becomes a running proxy. `main`, the `tulle` binary and tests call it.
//!
//! The calling thread becomes the control thread: certificates, ADS, the admin listeners, the logs. Workers get threads
//! of their own. Nothing here decides about traffic.

mod ending;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tulle_api::discovery::Node;
use tulle_api::v1::{Locality, RegisteredPort, RegisteredService, Registration};
use tulle_certs::Alpn;

use self::ending::Told;
use crate::accept::{self, Namespace, OriginalDst};
use crate::admin::{self, AdminState, Face};
use crate::config::{BoundAddresses, Config};
use crate::control::ads::Ads;
use crate::control::apply::Applier;
use crate::control::balancers;
use crate::control::channel;
use crate::control::collector::Sender;
use crate::control::gate::Gate;
use crate::control::identity::{Identity, Source};
use crate::control::jwks::Keeper;
use crate::control::report::{Registered, Report};
use crate::control::session::Session;
use crate::dns;
use crate::drain;
use crate::endpoint::Endpoint;
use crate::forward::{OwnEndpoints, Proxy, Settings};
use crate::health::Prober;
use crate::memory::{self, Tide};
use crate::policy;
use crate::runtime::{self, Listener, Workers};
use crate::state::{ObjectName, Store, Want};
use crate::telemetry::metrics::Direction;
use crate::telemetry::{Diagnostics, Telemetry};
use crate::wire::{h1, http2};

/// How long the last report of what was carried may take when the proxy ends.
const LAST_REPORT: Duration = Duration::from_secs(1);

/// Runs a proxy until it is told to end, and through its drain ([`ending`]).
///
/// # Errors
/// What keeps it from starting.
pub fn run(config: &Config, diagnostics: Option<Diagnostics>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(control(config, diagnostics))
}

async fn control(config: &Config, diagnostics: Option<Diagnostics>) -> anyhow::Result<()> {
    if let Some(mark) = config.intercept.proxy_mark {
        may_mark(mark)?;
    }
    let files = raise_file_limit();
    let workers = config.worker_count();
    let telemetry = Telemetry::new(config, workers, diagnostics);
    let (signal, watch) = drain::channel();
    let signal = Arc::new(signal);
    let (store, wants) = Store::new(config.discovery_timeout);
    let identity = Identity::new();
    let mut bound = BoundAddresses::default();
    let listeners = bind(config, workers, &mut bound)?;
    let proxy = Arc::new(Proxy::new(
        Arc::new(store),
        identity.cell(),
        settings(config),
        telemetry.clone(),
        watch,
        own_endpoints(config, &bound),
        config.workload.as_ref().map(ToString::to_string),
    ));
    let (shutdown, stop) = watch::channel(false);
    let (registered, registration_state) = watch::channel(Registered::default());
    let registration = config.control_plane_address.as_ref().and_then(|_| registration(config, &bound));
    let admin = Arc::new(Admin {
        proxy: Arc::clone(&proxy),
        identity: Arc::clone(&identity),
        telemetry: telemetry.clone(),
        drain: Arc::clone(&signal),
        shutdown,
        controlled: config.control_plane_address.is_some(),
        registered: registration.as_ref().map(|_| registration_state),
        prober: prober_of(config, proxy.drain.clone())?,
    });
    serve_admin(config, &admin, &mut bound).await?;
    let logs = tokio::spawn({
        let telemetry = telemetry.clone();
        async move { telemetry.run_logs().await }
    });
    let dns = bind_dns(config, &mut bound).await?;
    serve_dns(config, dns, &proxy)?;
    let registering = Registering { registration, registered };
    let reporting = start_control(config, workers, &identity, wants, registering, &admin)?;
    tokio::spawn(balancers::keep_time(Arc::clone(&proxy.store)));
    telemetry.metrics.balancers({
        let store = Arc::clone(&proxy.store);
        move || balancers::counted(&store)
    });
    tokio::spawn(prober(&proxy).run());
    tokio::spawn(keeper(&proxy).run());
    let (tracing_ends, stop_tracing) = oneshot::channel();
    let tracing = tokio::spawn(sender(config, &telemetry)?.keep(
        config.tracing.clone(),
        Arc::clone(&proxy.store),
        stop_tracing,
    ));
    let threads = runtime::start(&proxy, listeners, config.connection_limit(files))
        .context("cannot start the workers")?;
    if let Some(path) = &config.addresses_file {
        bound.write(path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    tracing::info!(workers, addresses = %bound.to_json(), "the proxy runs");
    tokio::select! {
        () = ending::wait(config, &signal, Told::new(stop)?) => {}
        broken = look_after(&admin, &threads) => return broken,
    }
    threads.stop();
    drop(tracing_ends);
    let last_report = async {
        if let Some(reporting) = reporting {
            reporting.end().await;
        }
    };
    drop(tokio::join!(tracing, last_report));
    logs.abort();
    telemetry.flush();
    Ok(())
}

/// What sends spans, as the configuration says.
fn sender(config: &Config, telemetry: &Telemetry) -> anyhow::Result<Sender> {
    let mark = config.intercept.proxy_mark;
    let mut sender = Sender::new(telemetry.clone(), config.workload.clone(), mark);
    sender
        .set(&config.tracing)
        .map_err(anyhow::Error::msg)
        .context("requests cannot be traced as OTEL_EXPORTER_OTLP_… says")?;
    Ok(sender)
}

/// What makes probes in the kubelet's place, if any is declared.
fn prober_of(config: &Config, drain: drain::Watch) -> anyhow::Result<Option<admin::Prober>> {
    if config.probes.made.is_empty() {
        return Ok(None);
    }
    let mark = config.intercept.proxy_mark;
    let prober = admin::Prober::new(&config.probes, config.probes_address, mark, drain);
    prober.map(Some).context("TULLE_PROXY_PROBES cannot be made")
}

fn settings(config: &Config) -> Settings {
    Settings {
        connect_timeout: config.connect_timeout,
        idle_timeout: config.idle_timeout,
        detect_timeout: config.detect_timeout,
        http1: h1::Settings {
            limits: h1::Limits { head: config.max_head_bytes, ..h1::Limits::default() },
            head_timeout: config.header_read_timeout,
            ..h1::Settings::default()
        },
        http2: http2::Limits {
            max_header_list: u32::try_from(config.max_head_bytes).unwrap_or(u32::MAX),
            ..http2::Limits::default()
        },
        opaque_ports: config.opaque_ports.clone(),
        mark: config.intercept.proxy_mark,
        namespace: namespace(config),
        probes: config.probes.allowed.clone(),
        client_cert: config.inbound_client_cert_header,
    }
}

fn namespace(config: &Config) -> Option<Namespace> {
    config.namespace_socket.as_deref().map(Namespace::new)
}

/// Without the capability every dial would fail, one by one.
fn may_mark(mark: u32) -> anyhow::Result<()> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    socket2::SockRef::from(&socket).set_mark(mark).with_context(|| {
        format!(
            "cannot set TULLE_PROXY_INTERCEPT_PROXY_MARK={mark:#x} on connections: grant CAP_NET_ADMIN, or have the rules tell \
             the proxy by its user (TULLE_PROXY_INTERCEPT_PROXY_UID)"
        )
    })
}

/// Takes as many file descriptors as the kernel will give; returns how many.
fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(1024),
    }
}

/// Binds every data listener, for each worker.
fn bind(
    config: &Config,
    workers: usize,
    bound: &mut BoundAddresses,
) -> Result<Vec<Vec<Listener>>, accept::ListenError> {
    let mut listeners: Vec<Vec<Listener>> = (0..workers).map(|_| Vec::new()).collect();
    let namespace = namespace(config);
    let mut add = |name: &str, address: SocketAddr, direction: Direction, original: &OriginalDst| {
        let sockets = match &namespace {
            Some(namespace) if name == BoundAddresses::OUTBOUND => {
                namespace.bind(address, workers, config.listen_backlog, name)?
            }
            _ => accept::bind(address, workers, config.listen_backlog, name)?,
        };
        if let Some(address) = sockets.first().and_then(|socket| socket.local_addr().ok()) {
            bound.insert(name, address);
        }
        for (worker, socket) in listeners.iter_mut().zip(sockets) {
            worker.push(Listener { socket, original: original.clone(), direction });
        }
        Ok(())
    };
    for address in &config.outbound_listen {
        add(BoundAddresses::OUTBOUND, *address, Direction::Outbound, &OriginalDst::Kernel)?;
    }
    for service in &config.outbound_services {
        let name = ObjectName::new(&service.service.namespace, &service.service.name);
        let original = OriginalDst::Service { service: name, port: service.port };
        add(&BoundAddresses::outbound_service(service), service.listen, Direction::Outbound, &original)?;
    }
    for address in &config.inbound_listen {
        add(BoundAddresses::INBOUND, *address, Direction::Inbound, &OriginalDst::Kernel)?;
    }
    for port in &config.inbound_ports {
        let original = OriginalDst::Application { application: port.application };
        add(&BoundAddresses::inbound_port(port), port.listen, Direction::Inbound, &original)?;
    }
    Ok(listeners)
}

async fn bind_dns(config: &Config, bound: &mut BoundAddresses) -> anyhow::Result<Vec<dns::Sockets>> {
    let mut bound_sockets = Vec::with_capacity(config.dns_listen.len());
    for address in &config.dns_listen {
        let sockets = match namespace(config) {
            Some(namespace) => {
                let bound =
                    namespace.bind_both(*address).and_then(|(udp, tcp)| dns::Sockets::from_std(udp, tcp));
                bound.map_err(|source| accept::ListenError::new(*address, BoundAddresses::DNS, source))?
            }
            None => dns::Sockets::bind(*address).await?,
        };
        bound.insert(BoundAddresses::DNS, sockets.address()?);
        bound_sockets.push(sockets);
    }
    Ok(bound_sockets)
}

/// Answers questions about names, on the control thread.
fn serve_dns(config: &Config, sockets: Vec<dns::Sockets>, proxy: &Proxy) -> anyhow::Result<()> {
    if sockets.is_empty() {
        return Ok(());
    }
    let own = sockets.iter().map(dns::Sockets::address).collect::<io::Result<Vec<SocketAddr>>>()?;
    let servers = match &config.dns_servers {
        None => dns::Servers::File("/etc/resolv.conf".into()),
        Some(servers) => dns::Servers::Fixed(servers.clone()),
    };
    let namespace =
        config.workload.as_ref().map_or_else(|| "default".into(), |workload| workload.namespace.clone());
    let (store, metrics) = (Arc::clone(&proxy.store), Arc::clone(proxy.telemetry.metrics.control()));
    let asking = crate::io::resolver::Sockets::marked(config.intercept.proxy_mark);
    let dns = dns::Dns::new(store, metrics, namespace, &config.cluster_domain, servers, own, asking)?;
    let dns = Arc::new(dns);
    for sockets in sockets {
        tokio::spawn(sockets.serve(Arc::clone(&dns)));
    }
    Ok(())
}

/// The stream of reports, on which one is made when the proxy ends.
struct Reporting {
    ends: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Reporting {
    /// Says what was carried last, as far as the control plane takes that quickly.
    async fn end(self) {
        drop(self.ends);
        if tokio::time::timeout(LAST_REPORT, self.task).await.is_err() {
            tracing::debug!("the control plane did not take the last report in time");
        }
    }
}

/// Starts the tasks that speak with the control plane, if there is one.
fn start_control(
    config: &Config,
    workers: usize,
    identity: &Arc<Identity>,
    wants: mpsc::UnboundedReceiver<Want>,
    registering: Registering,
    admin: &Arc<Admin>,
) -> anyhow::Result<Option<Reporting>> {
    let proxy = &admin.proxy;
    let Registering { registration, registered } = registering;
    let metrics = proxy.telemetry.metrics.control();
    let source = Source::of(config).map_err(anyhow::Error::msg)?;
    if let Some(source) = source.clone() {
        tokio::spawn(Arc::clone(identity).keep(source, Arc::clone(metrics)));
    }
    let (Some(address), Some(workload)) = (&config.control_plane_address, &config.workload) else {
        return Ok(None);
    };
    let channel = {
        let identity = Arc::clone(identity);
        let way = channel::Way { address: address.clone(), mark: config.intercept.proxy_mark };
        channel::lazy(&way, move || {
            let mut creds = identity.current()?;
            if let Some(source) = &source {
                creds = source.toward_control_plane(creds, SystemTime::now());
            }
            Some(creds.client(&tulle_certs::control_plane_id(&creds.id().trust_domain()), Alpn::Grpc))
        })?
    };
    let workload = ObjectName::new(&workload.namespace, &workload.name);
    let node = Node {
        id: workload.to_string(),
        user_agent_name: "tulle-proxy".to_owned(),
        user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Node::default()
    };
    let gate = Gate::new(registration.as_ref().map(ports).unwrap_or_default());
    let applier = Applier::new(
        Arc::clone(&proxy.store),
        Arc::clone(&proxy.connections),
        Arc::clone(identity),
        workload,
        gate,
        workers,
    )
    .in_zone(&config.locality.zone);
    let ads = Ads {
        channel: channel.clone(),
        identity: Arc::clone(identity),
        session: Session::new(node.clone()),
        applier,
        wants,
        registered: registered.subscribe(),
        metrics: Arc::clone(metrics),
    };
    tokio::spawn(ads.run());
    let (sender, receiver) = watch::channel(None);
    let report = Report {
        channel,
        node,
        identity: Arc::clone(identity),
        store: Arc::clone(&proxy.store),
        registration: receiver,
        registered,
        token_file: config.register_token_file.clone(),
        metrics: proxy.telemetry.metrics.clone(),
        load_interval: config.load_report_interval,
        taps: Arc::clone(&proxy.telemetry.taps),
    };
    let (ends, stop) = oneshot::channel();
    let task = tokio::spawn(report.run(stop));
    if let Some(registration) = registration {
        tokio::spawn(register(Arc::clone(admin), registration, sender));
    }
    Ok(Some(Reporting { ends, task }))
}

/// What asks endpoints whether they serve, where policies say so.
fn prober(proxy: &Arc<Proxy>) -> Prober {
    let dial = proxy.dial(proxy.telemetry.metrics.unseen());
    let own = {
        let proxy = Arc::clone(proxy);
        move |endpoint: &Endpoint| proxy.own_application(endpoint)
    };
    let tell = {
        let store = Arc::clone(&proxy.store);
        move |service: &ObjectName, port: u16, endpoint: &Arc<Endpoint>, healthy: bool| {
            let endpoints = store.load().services.get(service).and_then(|service| service.endpoints());
            if let Some(port) = endpoints.as_ref().and_then(|endpoints| endpoints.port(port)) {
                port.set_healthy(endpoint, healthy, store.nanos());
            }
        }
    };
    let (metrics, traces) = (proxy.telemetry.metrics.clone(), Arc::clone(&proxy.telemetry.traces));
    Prober::new(Arc::clone(&proxy.store), dial, own, tell, metrics, traces)
}

/// What fetches the keys of tokens' issuers, where policies say so.
fn keeper(proxy: &Arc<Proxy>) -> Keeper {
    let dial = proxy.dial(proxy.telemetry.metrics.unseen());
    let own = {
        let proxy = Arc::clone(proxy);
        move |endpoint: &Endpoint| proxy.own_application(endpoint)
    };
    Keeper::new(Arc::clone(&proxy.store), dial, own, Arc::clone(proxy.telemetry.metrics.control()))
}

/// What is to be registered, and where it is told that it has been.
struct Registering {
    registration: Option<Registration>,
    registered: watch::Sender<Registered>,
}

/// Makes this workload known once it is configured otherwise, and an endpoint that is used once its policy is in force:
/// the policy exists only from the registration on.
async fn register(
    admin: Arc<Admin>,
    registration: Registration,
    register: watch::Sender<Option<Registration>>,
) {
    let mut changes = admin.proxy.store.changes();
    admin.identity.ready().await;
    while admin.proxy.store.load().mesh.is_none() {
        drop(changes.changed().await);
    }
    register.send_replace(Some(Registration { ready: false, ..registration.clone() }));
    while admin.readiness().is_err() {
        // The policy is the last to come; the store does not know of all that readiness asks for.
        drop(tokio::time::timeout(Duration::from_millis(100), changes.changed()).await);
    }
    register.send_replace(Some(Registration { ready: true, ..registration.clone() }));
    // However it was begun: by a signal or by `/drain`.
    admin.drain.started().await;
    register.send_replace(Some(Registration { ready: false, ..registration }));
    // The registration's stream lives as long as its sender: it ends with the process.
    register.closed().await;
}

/// The ports that are registered.
fn ports(registration: &Registration) -> Vec<u16> {
    let ports = registration.services.iter().flat_map(|service| &service.ports);
    ports.filter_map(|port| u16::try_from(port.port).ok()).collect()
}

/// Where others find this workload.
fn own_endpoints(config: &Config, bound: &BoundAddresses) -> OwnEndpoints {
    let listeners = config.inbound_ports.iter().filter_map(|port| {
        let listener = bound.get(&BoundAddresses::inbound_port(port))?;
        Some((SocketAddr::new(config.advertised_ip(port)?, listener.port()), port.application))
    });
    OwnEndpoints { listeners: listeners.collect(), redirected: !config.inbound_listen.is_empty() }
}

/// This workload as an endpoint, if it has inbound ports that belong to services.
fn registration(config: &Config, bound: &BoundAddresses) -> Option<Registration> {
    let mut services: Vec<RegisteredService> = Vec::new();
    let mut address = None;
    for port in &config.inbound_ports {
        let Some(listener) = bound.get(&BoundAddresses::inbound_port(port)) else { continue };
        for service in &port.services {
            address = address.or_else(|| config.advertised_ip(port));
            let registered =
                RegisteredPort { service_port: u32::from(service.port), port: u32::from(listener.port()) };
            match services.iter_mut().find(|known| known.name == service.service) {
                Some(known) => known.ports.push(registered),
                None => services
                    .push(RegisteredService { name: service.service.clone(), ports: vec![registered] }),
            }
        }
    }
    let locality = Locality { region: config.locality.region.clone(), zone: config.locality.zone.clone() };
    Some(Registration { address: address?.to_string(), services, locality: Some(locality), ready: true })
}

async fn serve_admin(config: &Config, admin: &Arc<Admin>, bound: &mut BoundAddresses) -> anyhow::Result<()> {
    let faces = [
        (BoundAddresses::ADMIN, config.admin_address, Face::Local),
        (BoundAddresses::METRICS, config.metrics_address, Face::Public),
    ];
    for (name, address, face) in faces {
        let Some(address) = address else { continue };
        for listener in accept::bind(address, 1, config.listen_backlog, name)? {
            let listener = TcpListener::from_std(listener)?;
            bound.insert(name, listener.local_addr()?);
            let state: Arc<dyn AdminState> = Arc::clone(admin) as _;
            tokio::spawn(admin::serve(admin::Listener::Tcp(listener), face, state));
        }
    }
    if let Some(path) = &config.admin_socket {
        let listener =
            admin::bind_unix(path).with_context(|| format!("cannot listen on {}", path.display()))?;
        let state: Arc<dyn AdminState> = Arc::clone(admin) as _;
        tokio::spawn(admin::serve(admin::Listener::Unix(listener), Face::LocalSocket, state));
    }
    Ok(())
}

/// Looks after the workers and the memory, until it is dropped.
///
/// # Errors
/// When a worker has ended by itself.
async fn look_after(admin: &Admin, threads: &Workers) -> anyhow::Result<()> {
    let mut look = tokio::time::interval(Duration::from_secs(1));
    let mut tide = Tide::default();
    loop {
        look.tick().await;
        if threads.is_broken() {
            anyhow::bail!("a worker thread has ended; see the log above");
        }
        if let Some(over) = tide.look(admin.drain.left(), admin.readiness().is_ok()) {
            memory::give_back(over);
        }
    }
}

/// What the admin listeners show and do.
struct Admin {
    proxy: Arc<Proxy>,
    identity: Arc<Identity>,
    telemetry: Telemetry,
    drain: Arc<drain::Signal>,
    shutdown: watch::Sender<bool>,
    /// Whether a control plane is to be waited for.
    controlled: bool,
    /// What became of the registration; `None`: there is nothing to register.
    registered: Option<watch::Receiver<Registered>>,
    /// What makes the kubelet's probes, where there are any.
    prober: Option<admin::Prober>,
}

impl AdminState for Admin {
    fn readiness(&self) -> Result<(), String> {
        let snapshot = self.proxy.store.load();
        let unregistered =
            self.registered.as_ref().is_some_and(|registered| registered.borrow().streams == 0);
        let policy = match (&self.registered, unregistered) {
            (_, true) => "not registered with the control plane yet",
            (Some(_), false) => "no InboundPolicy that knows of the registration received yet",
            (None, false) => "no InboundPolicy received yet",
        };
        let missing: Vec<&str> = [
            (self.drain.is_draining(), "the proxy is draining"),
            (self.proxy.creds.load().is_none() && self.controlled, "no certificate yet"),
            (snapshot.mesh.is_none() && self.controlled, "no Mesh received yet"),
            (snapshot.inbound.is_none() && self.controlled, policy),
            (snapshot.egress.is_none() && self.controlled, "no EgressPolicy received yet"),
        ]
        .into_iter()
        .filter_map(|(is_missing, what)| is_missing.then_some(what))
        .collect();
        if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
    }

    fn metrics(&self) -> String {
        self.telemetry.metrics.render()
    }

    fn open_metrics(&self) -> String {
        self.telemetry.metrics.render_open()
    }

    fn config_dump(&self) -> Value {
        let mut dump = dump(&self.proxy);
        if let Some(registered) = &self.registered {
            let Registered { streams, pending } = registered.borrow().clone();
            dump["registration"] = json!({ "streams": streams, "pending": pending });
        }
        dump
    }

    fn connections(&self) -> Value {
        let open = self.proxy.connections.list();
        open.into_iter()
            .map(|open| {
                json!({
                    "port": open.port,
                    "client": open.client.to_string(),
                    "peer": open.peer.map(|peer| peer.to_string()),
                    "tls": format!("{:?}", open.tls),
                    "outside": open.outside.map(|outside| json!({
                        "address": outside.address.to_string(),
                        "name": outside.name.as_str(),
                    })),
                })
            })
            .collect()
    }

    fn certs(&self) -> Value {
        match self.identity.load().as_deref() {
            Some(creds) => {
                let Self { identity, .. } = self;
                admin::certs(creds, identity.source(), identity.renews_at(), SystemTime::now())
            }
            None => Value::Null,
        }
    }

    fn authz(&self, parameters: Vec<(String, String)>) -> Result<Value, String> {
        let snapshot = self.proxy.store.load();
        let Some(policy) = &snapshot.inbound else { return Ok(Value::Null) };
        if parameters.is_empty() {
            let mut shown = policy::in_force(policy);
            let verdicts = self.telemetry.metrics.verdicts().into_iter().map(|([verdict, rule, reason], count)| {
                json!({ "verdict": verdict, "rule": rule, "reason": reason, "count": count })
            });
            shown["verdicts"] = verdicts.collect();
            return Ok(shown);
        }
        let domain = policy.spec().trust_domain.clone().unwrap_or_default();
        Ok(policy::Question::read(parameters, &domain)?.answer(policy))
    }

    fn log_level(&self) -> Option<String> {
        self.telemetry.log_level().map(crate::telemetry::LogLevel::get)
    }

    fn set_log_level(&self, directives: &str) -> Result<(), String> {
        match self.telemetry.log_level() {
            Some(level) => level.set(directives),
            None => Err("the log level of this proxy cannot be changed".to_owned()),
        }
    }

    fn drain(&self) {
        self.drain.start();
    }

    fn shutdown(&self) {
        self.shutdown.send_replace(true);
    }

    fn prober(&self) -> Option<&admin::Prober> {
        self.prober.as_ref()
    }
}

/// The snapshot, for people.
fn dump(proxy: &Proxy) -> Value {
    let snapshot = proxy.store.load();
    let services: Value = snapshot
        .services
        .values()
        .map(|service| {
            let endpoints: Vec<Value> = service
                .endpoints()
                .iter()
                .flat_map(|set| {
                    set.all()
                        .map(|member| {
                            json!({
                                "address": member.endpoint.address.to_string(),
                                "peer": format!("{:?}", member.endpoint.peer),
                                "state": member.state().as_str(),
                                "weight": member.weight,
                                "zone": member.zone.as_deref(),
                                "ready": member.ready,
                                "in_flight": member.endpoint.load.in_flight(),
                            })
                        })
                        .collect::<Vec<_>>()
                })
                .collect();
            json!({
                "name": service.name.to_string(),
                "service": format!("{:?}", service.info()),
                "routes": format!("{:?}", service.routes().map(|table| table.routes().clone())),
                "endpoints": endpoints,
            })
        })
        .collect();
    json!({
        "workload": format!("{:?}", snapshot.workload),
        "mesh": format!("{:?}", snapshot.mesh),
        "inbound_policy": format!("{:?}", snapshot.inbound.as_ref().map(|inbound| inbound.spec())),
        "egress_policy": format!("{:?}", snapshot.egress.as_ref().map(|egress| egress.spec())),
        "addresses": snapshot.addresses.iter()
            .map(|(ip, info)| (ip.to_string(), format!("{:?}", info.info).into()))
            .collect::<serde_json::Map<_, _>>(),
        "services": services,
    })
}

impl From<accept::ListenError> for io::Error {
    fn from(error: accept::ListenError) -> Self {
        Self::other(error)
    }
}
