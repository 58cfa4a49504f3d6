//! Starts the demo's mesh, waits until it is ready and keeps watch over its processes.
//!
//! Every process comes from this binary. Services run as `tulle run` runs programs, each in a [`Room`] of its own, and know
//! nothing of the mesh. Where the kernel forbids that, they call each other by their proxies' ports: applications' sockets are
//! bound here and handed down as standard input then, as `web`'s, whom the driver calls, always is. Proxies and the
//! control plane bind port 0 and tell where in their addresses files.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use http::HeaderMap;

use super::jaeger::Jaeger;
use super::scrape;
use super::topology::{self, NAMESPACE, PORT, WORKLOADS, Workload};
use crate::http::Origin;
use crate::process::{Addresses, POLL, Process, Program, READY_WITHIN, executable, strings};
use crate::run::Room;
use crate::token;

/// How long requests of others may keep counts from being read when they are at rest.
const SETTLED_WITHIN: Duration = Duration::from_secs(2);
/// Where a service listens in a room: on each of its addresses, at its port.
const IN_ROOM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT);
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(2);
/// Latencies on one machine are far below the first of the default buckets.
const BUCKETS: &str = "100us,250us,500us,750us,1ms,1500us,2ms,3ms,4ms,5ms,7500us,10ms,15ms,25ms,50ms,75ms,100ms,\
                       250ms,500ms,1s,2500ms,5s,10s";

/// The folders of one demo.
#[derive(Debug, Clone)]
pub(crate) struct Folders {
    pub(crate) config: PathBuf,
    pub(crate) logs: PathBuf,
    state: PathBuf,
    run: PathBuf,
}

/// The running demo. Dropping it ends every process.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) folders: Folders,
    /// `web`'s application.
    pub(crate) front: SocketAddr,
    control_plane: Process,
    control_plane_metrics: SocketAddr,
    services: Vec<Process>,
    proxies: Vec<Proxy>,
    /// Of each workload; none where the kernel forbids them.
    rooms: Vec<Room>,
    /// What is otherwise than expected, for people.
    pub(crate) notices: Vec<String>,
}

#[derive(Debug)]
struct Proxy {
    workload: Workload,
    process: Process,
    metrics: Origin,
    addresses: Addresses,
}

// === impl Folders ===

impl Folders {
    /// Makes the folders, and writes the YAML, under `root`.
    pub(crate) fn create(root: &Path) -> Result<Self> {
        let folders = Self {
            config: root.join("config"),
            logs: root.join("logs"),
            state: root.join("state"),
            run: root.join("run"),
        };
        for folder in [&folders.logs, &folders.run] {
            fs::create_dir(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        topology::write_yaml(&folders.config)
            .with_context(|| format!("cannot write {}", folders.config.display()))?;
        Ok(folders)
    }

    /// Where the HTTPRoute with the weights is.
    pub(crate) fn route(&self) -> PathBuf {
        self.config.join(topology::ROUTE_FILE)
    }

    fn addresses(&self, name: &str) -> PathBuf {
        self.run.join(format!("{name}.addresses.json"))
    }

    fn token(&self, name: &str) -> PathBuf {
        self.run.join(format!("{name}.token"))
    }
}

// === impl Mesh ===

impl Mesh {
    /// Starts everything and returns once a request to `web` is answered by every service on its way.
    ///
    /// # Errors
    /// What did not start, with the end of its log. All that had started has ended by then.
    pub(crate) async fn start(folders: Folders, jaeger: Option<&Jaeger>) -> Result<Self> {
        let (mut control_plane, addresses) = start_control_plane(&folders).await?;
        let (grpc, control_plane_metrics) = (addresses.get("grpc")?, addresses.get("metrics")?);
        let (rooms, notices) = match open_rooms(&folders) {
            Ok(rooms) => (rooms, Vec::new()),
            Err(error) => {
                let why = tulle_control_plane::app::describe(&error);
                let notice = format!("services call each other by explicit ports, since {why}");
                eprintln!("tulle: {notice}");
                (Vec::new(), vec![notice])
            }
        };
        let mut started = Vec::new();
        for (index, workload) in WORKLOADS.into_iter().enumerate() {
            let listener = TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1")?;
            let bound = listener.local_addr().context("a listener's address")?;
            let room = rooms.get(index);
            let process = start_proxy(&folders, &workload, grpc, room, bound, jaeger)?;
            started.push((workload, process, room, listener, bound));
        }
        let front = started.first().map(|(.., bound)| *bound).context("no workload")?;
        let (mut proxies, mut services) = (Vec::new(), Vec::new());
        for (workload, mut process, room, listener, bound) in started {
            let addresses = process.addresses(&folders.addresses(&proxy_name(&workload))).await?;
            let metrics = Origin::new(addresses.get("metrics")?, None)?;
            process.ready(&metrics, READY_WITHIN).await?;
            services.push(match room {
                Some(room) => start_in_room(&folders, &workload, room, (bound == front).then_some(listener))?,
                None => start_service(&folders, &workload, &addresses, listener)?,
            });
            proxies.push(Proxy { workload, process, metrics, addresses });
        }
        if control_plane.ended().is_some() {
            bail!("the control plane ended\n{}", control_plane.log_tail());
        }
        let mut mesh =
            Self { folders, front, control_plane, control_plane_metrics, services, proxies, rooms, notices };
        mesh.answered().await?;
        Ok(mesh)
    }

    /// The address that a workload's proxy takes mTLS on.
    pub(crate) fn inbound_of(&self, workload: &str) -> Option<SocketAddr> {
        let proxy = self.proxies.iter().find(|proxy| proxy.workload.name == workload)?;
        proxy.addresses.first("inbound/")
    }

    /// The address of a workload's proxy's admin listener.
    pub(crate) fn admin_of(&self, workload: &str) -> Option<SocketAddr> {
        let proxy = self.proxies.iter().find(|proxy| proxy.workload.name == workload)?;
        proxy.addresses.first("admin")
    }

    /// Where the control plane is asked by `tulle stat` and its like.
    pub(crate) fn control_plane_metrics(&self) -> SocketAddr {
        self.control_plane_metrics
    }

    pub(crate) fn control_plane_pid(&self) -> u32 {
        self.control_plane.id()
    }

    /// What every proxy counts now, by workload.
    ///
    /// # Errors
    /// A proxy that does not answer, with the end of its log.
    pub(crate) async fn scrape(&self) -> Result<Vec<(&'static str, Vec<scrape::Line>)>> {
        let mut scrapes = Vec::new();
        for proxy in self.proxies.iter().filter(|proxy| proxy.workload.upstream.is_some()) {
            let answer = proxy.metrics.get("/metrics", &HeaderMap::new(), SCRAPE_TIMEOUT).await;
            let answer = answer.with_context(|| proxy.process.log_tail())?;
            scrapes.push((proxy.workload.name, scrape::parse(&String::from_utf8_lossy(answer.body()))));
        }
        Ok(scrapes)
    }

    /// As [`scrape`](Self::scrape), once nothing is under way: a request is counted a moment after its answer has come.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn settled(&self) -> Result<Vec<(&'static str, Vec<scrape::Line>)>> {
        let begun = Instant::now();
        loop {
            let scrapes = self.scrape().await?;
            let mut lines = scrapes.iter().flat_map(|(_, lines)| lines);
            let active = lines.any(|line| line.name == "tulle_requests_active" && line.value > 0.0);
            if !active || begun.elapsed() > SETTLED_WITHIN {
                return Ok(scrapes);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Looks after the processes. The control plane may go: the proxies carry on, and it is started again, as whatever
    /// supervises it elsewhere would do.
    ///
    /// # Errors
    /// Any other process that ended, with the end of its log.
    pub(crate) fn watch(&mut self) -> Result<()> {
        let proxies = self.proxies.iter_mut().map(|proxy| &mut proxy.process);
        for process in proxies.chain(&mut self.services) {
            if let Some(status) = process.ended() {
                bail!("{} ended ({status}); {}", process.name(), process.log_tail());
            }
        }
        for room in &mut self.rooms {
            room.watch()?;
        }
        if let Some(status) = self.control_plane.ended() {
            let program = self.control_plane.program().clone();
            self.control_plane = Process::start(program, Stdio::null(), &self.folders.logs)?;
            let pid = self.control_plane.id();
            self.notices.push(format!("the control plane ended ({status}); started again as pid {pid}"));
        }
        Ok(())
    }

    /// Waits until requests to `web` come back from both versions of payments: from then on none may fail.
    async fn answered(&mut self) -> Result<()> {
        let web = Origin::new(self.front, None)?;
        let begun = Instant::now();
        let mut seen = Vec::new();
        loop {
            let answer = web.get("/", &HeaderMap::new(), READY_WITHIN).await?;
            if answer.status().is_success() {
                let body: serde_json::Value =
                    serde_json::from_slice(answer.body()).context("web's answer")?;
                let version = body["upstream"]["upstream"]["version"].as_str().unwrap_or_default().to_owned();
                if !seen.contains(&version) {
                    seen.push(version);
                }
                if seen.len() == 2 {
                    return Ok(());
                }
                continue;
            }
            seen.clear();
            self.watch()?;
            if begun.elapsed() > READY_WITHIN {
                let status = answer.status().as_u16();
                let body = String::from_utf8_lossy(answer.body()).into_owned();
                let proxies: Vec<_> = self.proxies.iter().map(|proxy| proxy.process.log_tail()).collect();
                bail!("web still answers {status} after {READY_WITHIN:?}: {body}\n{}", proxies.join("\n"));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

async fn start_control_plane(folders: &Folders) -> Result<(Process, Addresses)> {
    let program = |grpc: SocketAddr, metrics: SocketAddr| Program {
        name: "control-plane".to_owned(),
        arguments: strings(&[
            "control-plane",
            "--config-dir",
            &folders.config.to_string_lossy(),
            "--state-dir",
            &folders.state.to_string_lossy(),
            "--grpc-address",
            &grpc.to_string(),
            "--metrics-address",
            &metrics.to_string(),
            "--addresses-file",
            &folders.addresses("control-plane").to_string_lossy(),
            "--log-format",
            "text",
        ]),
        environment: Vec::new(),
    };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut process = Process::start(program(any, any), Stdio::null(), &folders.logs)?;
    let addresses = process.addresses(&folders.addresses("control-plane")).await?;
    process.ready(&Origin::new(addresses.get("metrics")?, None)?, READY_WITHIN).await?;
    // Started again, it must be found where it was.
    process.set_program(program(addresses.get("grpc")?, addresses.get("metrics")?));
    Ok((process, addresses))
}

fn start_proxy(
    folders: &Folders,
    workload: &Workload,
    control_plane: SocketAddr,
    room: Option<&Room>,
    bound: SocketAddr,
    jaeger: Option<&Jaeger>,
) -> Result<Process> {
    let Workload { name, services, upstream, .. } = workload;
    let application = room.map_or(bound, |_| IN_ROOM);
    let token_file = folders.token(name);
    let token = token::create(
        &folders.state,
        &token::Request {
            trust_domain: None,
            identity: &format!("{NAMESPACE}/{name}"),
            services: &strings(services),
            lifetime: Duration::from_secs(3600),
            once: false,
        },
    )?;
    token::write(&token, &token_file)?;
    let registered: String = services.iter().map(|name| format!("/{name}:{PORT}")).collect();
    let mut arguments = strings(&[
        "proxy",
        "--workload",
        &format!("{NAMESPACE}/{name}"),
        "--control-plane-address",
        &control_plane.to_string(),
        "--identity-token-file",
        &token_file.to_string_lossy(),
        "--inbound-listen",
        "none",
        "--inbound-ports",
        &format!("127.0.0.1:0={application}{registered}"),
        "--admin-address",
        "127.0.0.1:0",
        "--metrics-address",
        "127.0.0.1:0",
        "--metrics-latency-buckets",
        BUCKETS,
        "--workers",
        "1",
        "--addresses-file",
        &folders.addresses(&proxy_name(workload)).to_string_lossy(),
        "--log-format",
        "text",
        "--access-log",
        "none",
    ]);
    match (room, upstream) {
        (Some(room), _) => arguments.extend(room.proxy_flags()),
        (None, Some(upstream)) => {
            let listener = format!("127.0.0.1:0={NAMESPACE}/{upstream}:{PORT}");
            arguments.extend(strings(&["--outbound-listen", "none", "--outbound-services", &listener]));
        }
        (None, None) => arguments.extend(strings(&["--outbound-listen", "none"])),
    }
    let environment = jaeger.map(Jaeger::variables).unwrap_or_default();
    let program = Program { name: proxy_name(workload), arguments, environment };
    Process::start(program, Stdio::null(), &folders.logs)
}

/// A room for each workload. What a room refuses is nothing that the demo's services do.
fn open_rooms(folders: &Folders) -> Result<Vec<Room>> {
    let open = |workload: Workload| Room::open(workload.name, &folders.run, &folders.logs, NAMESPACE, |_| ());
    WORKLOADS.into_iter().map(open).collect()
}

/// A service as anybody would write it: it listens on its port and calls the next by its name.
fn start_in_room(
    folders: &Folders,
    workload: &Workload,
    room: &Room,
    front: Option<TcpListener>,
) -> Result<Process> {
    let mut arguments = service_arguments(workload);
    arguments.extend(strings(&["--listen", &IN_ROOM.to_string()]));
    if front.is_some() {
        arguments.push("--front".to_owned());
    }
    if let Some(upstream) = workload.upstream {
        arguments.extend(strings(&["--upstream", &format!("http://{upstream}:{PORT}")]));
    }
    let mut program = vec![executable().into_os_string(), "internal".into()];
    program.extend(arguments.iter().map(Into::into));
    let command = room.command(&program);
    let input = front.map_or_else(Stdio::null, |front| OwnedFd::from(front).into());
    let program = Program { name: workload.name.to_owned(), arguments, environment: Vec::new() };
    Process::start_as(program, command, input, &folders.logs)
}

fn service_arguments(workload: &Workload) -> Vec<String> {
    strings(&["service", "--name", workload.application, "--version", workload.version])
}

fn start_service(
    folders: &Folders,
    workload: &Workload,
    addresses: &Addresses,
    listener: TcpListener,
) -> Result<Process> {
    let mut arguments = service_arguments(workload);
    if let Some(upstream) = workload.upstream {
        let address = addresses.get(&format!("outbound/{NAMESPACE}/{upstream}:{PORT}"))?;
        arguments.extend(strings(&["--upstream", &format!("{upstream}:{PORT}={address}")]));
    }
    let program = Program { name: workload.name.to_owned(), arguments, environment: Vec::new() };
    Process::start(program, OwnedFd::from(listener).into(), &folders.logs)
}

fn proxy_name(workload: &Workload) -> String {
    format!("{}-proxy", workload.name)
}
