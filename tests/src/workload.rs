//! A workload: a proxy, and the application that the test put behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde_json::Value;

use crate::process::{Process, Program};
use crate::wait::eventually;
use crate::world::{World, qualified, scrape};
use crate::{Metrics, Wire, binary};

/// What a workload's proxy is to be started with.
#[derive(Debug)]
pub struct WorkloadBuilder<'a> {
    world: &'a World,
    name: String,
    /// Each with the services' ports that it is registered for.
    applications: Vec<(SocketAddr, Vec<String>)>,
    outbound: Vec<String>,
    program: Program,
}

/// A proxy that runs, and is ready.
#[derive(Debug)]
pub struct Workload {
    namespace: String,
    name: String,
    process: Process,
    addresses: BTreeMap<String, SocketAddr>,
    application: Option<SocketAddr>,
}

/// Waits until `/ready` says 200.
pub(crate) async fn ready(process: &mut Process, metrics: SocketAddr) {
    let name = process.program().name.clone();
    eventually(&format!("{name} is ready"), async || {
        if let Some(status) = process.ended() {
            panic!("{name} ended while starting: {status}\n{}", process.tail());
        }
        let stream = tokio::net::TcpStream::connect(metrics).await.map_err(|error| error.to_string())?;
        let mut wire = Wire::new(stream);
        wire.send("GET /ready HTTP/1.1\r\nhost: ready\r\nconnection: close\r\n\r\n").await;
        let (head, body) = wire.response().await;
        let said = String::from_utf8_lossy(&body).into_owned();
        if head.status() == 200 { Ok(()) } else { Err(said) }
    })
    .await;
}

/// Waits until `/ready` says no, or nothing any more.
pub(crate) async fn unready(name: &str, metrics: SocketAddr) {
    eventually(&format!("{name} is not ready"), async || {
        let Ok(stream) = tokio::net::TcpStream::connect(metrics).await else { return Ok(()) };
        let mut wire = Wire::new(stream);
        wire.send("GET /ready HTTP/1.1\r\nhost: ready\r\nconnection: close\r\n\r\n").await;
        match wire.try_head().await {
            Some(head) if head.status() == 200 => Err("it is ready".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

/// `<name>:<port>`; 8080 unless it is said.
fn with_port(service: &str) -> String {
    if service.contains(':') { service.to_owned() } else { format!("{service}:8080") }
}

/// `<namespace>/<name>:<port>`; [`NAMESPACE`] and 8080 unless they are said.
fn dialled(service: &str) -> String {
    let (namespace, service) = qualified(service);
    format!("{namespace}/{}", with_port(service))
}

// === impl WorkloadBuilder ===

impl<'a> WorkloadBuilder<'a> {
    pub(crate) fn new(world: &'a World, name: &str) -> Self {
        let program = Program::new(name.replace('/', "-"), binary("tulle-proxy"));
        let (applications, outbound) = (Vec::new(), Vec::new());
        Self { world, name: name.to_owned(), applications, outbound, program }
    }

    /// Makes it an endpoint of a service of its namespace, `<name>[:<port>]`; without a port, of 8080.
    #[must_use]
    pub fn serves(mut self, service: &str, application: SocketAddr) -> Self {
        let service = with_port(service);
        match self.applications.iter_mut().find(|(known, _)| *known == application) {
            Some((_, services)) => services.push(service),
            None => self.applications.push((application, vec![service])),
        }
        self
    }

    /// Gives it a listener that leads to a service, `[<namespace>/]<name>[:<port>]`; without a port, to 8080.
    #[must_use]
    pub fn calls(mut self, service: &str) -> Self {
        self.outbound.push(format!("127.0.0.1:0={}", dialled(service)));
        self
    }

    /// Adds a setting: a flag of the proxy's.
    #[must_use]
    pub fn setting(mut self, flag: &str, value: &str) -> Self {
        self.program = self.program.flag(flag, value);
        self
    }

    /// Changes what is started: the program and what it has been given so far.
    #[must_use]
    pub fn program(mut self, change: impl FnOnce(Program) -> Program) -> Self {
        self.program = change(self.program);
        self
    }

    /// Starts the proxy, and waits until it is ready.
    pub async fn start(self) -> Workload {
        let mut workload = self.start_unready().await;
        ready(&mut workload.process, workload.addresses["metrics"]).await;
        workload
    }

    /// Starts the proxy, and waits until its listeners are bound.
    pub async fn start_unready(self) -> Workload {
        let Self { world, name, applications, outbound, program } = self;
        let (namespace, name) = qualified(&name);
        let folder = world.folder();
        let addresses = program.addresses_file(&folder.run());
        let registered =
            |services: &[String]| services.iter().map(|one| format!("/{one}")).collect::<String>();
        let inbound = applications
            .iter()
            .map(|(application, services)| format!("127.0.0.1:0={application}{}", registered(services)));
        let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(",") };
        let has = |flag: &str| program.arguments.iter().any(|argument| argument == flag);
        let mut defaults = vec![
            ("--workload", format!("{namespace}/{name}")),
            ("--control-plane-address", world.grpc().to_string()),
            ("--inbound-listen", "none".to_owned()),
            ("--outbound-listen", "none".to_owned()),
            ("--inbound-ports", list(inbound.collect())),
            ("--outbound-services", list(outbound)),
            ("--admin-address", "127.0.0.1:0".to_owned()),
            ("--metrics-address", "127.0.0.1:0".to_owned()),
            ("--workers", "2".to_owned()),
            ("--log-format", "text".to_owned()),
        ];
        defaults.retain(|(flag, _)| !has(flag));
        let sources = ["--identity-cert-file", "--identity-token-file", "--identity-workload-api"];
        let told = program.environment.iter().any(|(name, _)| name == "SPIFFE_ENDPOINT_SOCKET");
        let token = (!told && !sources.into_iter().any(has)).then(|| {
            let services = applications.iter().flat_map(|(_, services)| services);
            let names: BTreeSet<_> =
                services.filter_map(|one| Some(one.split_once(':')?.0.to_owned())).collect();
            world.token(&format!("{namespace}/{name}"), &Vec::from_iter(names))
        });
        let mut program = program.flag("--addresses-file", addresses);
        for (flag, value) in defaults {
            program = program.flag(flag, value);
        }
        if let Some(token) = token {
            program = program.flag("--identity-token-file", token);
        }
        let mut process = Process::start(program, folder);
        let addresses = process.addresses().await;
        let application = applications.first().map(|(application, _)| *application);
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Workload { namespace, name, process, addresses, application }
    }
}

// === impl Workload ===

impl Workload {
    /// Its name, which is also its service account's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its SPIFFE ID.
    pub fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.namespace, self.name)
    }

    /// The proxy's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Where the application dials a service, `[<namespace>/]<name>[:<port>]`.
    pub fn outbound(&self, service: &str) -> SocketAddr {
        self.listener(&format!("outbound/{}", dialled(service)))
    }

    /// Where other workloads dial its first application.
    pub fn inbound(&self) -> SocketAddr {
        let application = self.application.expect("a workload that serves something");
        self.listener(&format!("inbound/{application}"))
    }

    /// Where intercepted connections to its applications arrive.
    pub fn intercepting_inbound(&self) -> SocketAddr {
        self.listener("inbound")
    }

    /// Where it answers questions about names.
    pub fn dns(&self) -> SocketAddr {
        self.addresses["dns"]
    }

    /// The loopback admin listener.
    pub fn admin(&self) -> SocketAddr {
        self.listener("admin")
    }

    /// The listener of `/metrics` and `/ready`.
    pub fn public(&self) -> SocketAddr {
        self.listener("metrics")
    }

    fn listener(&self, name: &str) -> SocketAddr {
        *self.addresses.get(name).unwrap_or_else(|| panic!("no listener {name} in {:?}", self.addresses))
    }

    /// What the proxy counts.
    pub async fn metrics(&self) -> Metrics {
        scrape(self.listener("metrics")).await
    }

    /// What the proxy itself shows that it uses: JSON.
    pub async fn config_dump(&self) -> String {
        let mut admin = Wire::connect(self.admin()).await;
        admin.send("GET /config_dump HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
        String::from_utf8(admin.response().await.1).expect("text")
    }

    /// Waits until the sum of samples is at least `least`.
    pub async fn counts(&self, name: &str, labels: &[(&str, &str)], least: f64) {
        eventually(&format!("{} counts {name}{labels:?} to {least}", self.name), async || {
            let sum = self.metrics().await.sum(name, labels);
            if sum >= least { Ok(()) } else { Err(format!("{sum}")) }
        })
        .await;
    }

    /// The access log so far.
    pub fn access_log(&self) -> Vec<Value> {
        self.process.access_log()
    }

    /// The lines of the access log so far, in whatever form they are.
    pub fn access_lines(&self) -> Vec<String> {
        self.process.stderr().lines().map(str::to_owned).collect()
    }

    /// Waits for a record of the access log whose fields have these values.
    pub async fn logs(&self, fields: &[(&str, Value)]) -> Value {
        self.process.logs(fields).await
    }

    /// What the proxy said of itself so far.
    pub fn diagnostics(&self) -> String {
        self.process.stdout()
    }

    /// Waits until `/ready` says no, or nothing any more.
    pub async fn unready(&self) {
        unready(&self.name, self.public()).await;
    }

    /// Waits until no connection of its application's is open.
    pub async fn idle(&self) {
        eventually(&format!("{} has no connection", self.name), async || {
            let open = self.metrics().await.sum("tulle_connections_active", &[("direction", "outbound")]);
            if open < 0.5 { Ok(()) } else { Err(open.to_string()) }
        })
        .await;
    }

    /// A connection to a service, as the application makes it.
    pub async fn connect(&self, service: &str) -> Wire {
        Wire::connect(self.outbound(service)).await
    }

    /// Waits until a GET of the service is answered by an application: from then on none may fail.
    pub async fn reaches(&self, service: &str) {
        eventually(&format!("{} reaches {service}", self.name), async || {
            let mut wire = self.connect(service).await;
            wire.send(format!("GET / HTTP/1.1\r\nhost: {service}\r\nconnection: close\r\n\r\n")).await;
            let (head, _) = wire.response().await;
            head.reason().map_or(Ok(()), |reason| Err(format!("{} {reason}", head.line)))
        })
        .await;
    }
}
