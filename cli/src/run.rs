//! `tulle run`: a program in the mesh, as it is and without privileges.
//!
//! The program gets a network namespace of its own ([`room`]) whose every connection leads to a proxy that is started
//! beside it, outside; it is a child of this process and is otherwise as if it had been run bare: same user, folder,
//! terminal, descriptors, variables, signals, exit status. One thread: it starts the processes, passes signals on
//! ([`signals`]), keeps watch. However it ends, also by `kill -9`, no process, rule or namespace stays,
//! and no file for longer than until the next comes ([`Folder`]).

mod control_plane;
mod enter;
mod namespace;
mod room;
mod signals;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use http::HeaderMap;
use rustix::process::{Pid, kill_process};
use tokio::signal::unix::{SignalKind, signal};
use tulle_certs::token::TokenFile;
use tulle_control_plane::object::{NamespacedName, is_label};
use tulle_proxy::config::RESERVED_PORTS;

use self::control_plane::ControlPlane;
pub(crate) use self::enter::{EnterArgs, run as enter};
use self::enter::{NOT_EXECUTABLE, NOT_FOUND};
pub(crate) use self::namespace::{NamespaceArgs, run as hold_namespace};
pub(crate) use self::room::Room;
use self::signals::{Came, Signals};
pub(crate) use self::signals::{ENDING, is_ignored};
use crate::folder::Folder;
use crate::http::Origin;
use crate::process::{Process, Program, strings};
use crate::token;

/// As of `env`, `timeout` and `nohup`: it is not the program's own.
const FAILED: u8 = 125;
/// How long the proxy may take to have its certificate and configuration, and to be registered.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// After so long it is said what is waited for.
const SAY_AFTER: Duration = Duration::from_secs(3);
/// How long the proxy may take to write what it has to say.
const PROXY_ENDS_WITHIN: Duration = Duration::from_secs(1);
/// A control plane may be away for so long before a workload that has lost its certificate cannot join again.
const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);

const EXAMPLES: &str = "\
Examples:
  tulle run --config-dir mesh/ --service orders --port 8080 -- ./orders
  tulle run --config-dir mesh/ -- curl http://orders:8080
  tulle run --control-plane cp.example:15012 --token web.token --service web --port 80:3000 -- npm start

All who name the same folder are in one mesh: the first of them starts its control
plane, and whoever is left carries it on. With --control-plane, one that runs elsewhere.

TCP connections and questions about names lead through the proxy, all others are
refused and told on standard error. localhost is the program's own: nothing outside
is reached by it. Nothing of the program is changed, and nothing needs root.

Exit status: the program's; 128 and the signal's number if a signal ended it;
  125  the program was not run, or its proxy was lost; standard error says why
  126  the program cannot be executed
  127  there is no such program
  2    wrong arguments";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RunArgs {
    /// The service that the program is; may be repeated. Without it the program only calls others.
    #[arg(long = "service", value_name = "NAME", requires = "ports", value_parser = service)]
    services: Vec<String>,
    /// Where the program listens; with `SERVICE-PORT:PORT` where its service is reached at another port. May be repeated.
    #[arg(long = "port", value_name = "PORT", requires = "services", value_parser = port)]
    ports: Vec<Port>,
    /// The folder of YAML that describes the mesh.
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "control_plane",
        conflicts_with = "control_plane"
    )]
    config_dir: Option<PathBuf>,
    /// Where the control plane of that folder keeps its keys [default: a folder of yours in $XDG_RUNTIME_DIR or /tmp].
    #[arg(long, value_name = "DIR", requires = "config_dir")]
    state_dir: Option<PathBuf>,
    /// A control plane that runs already.
    #[arg(long, value_name = "HOST:PORT", requires = "token")]
    control_plane: Option<String>,
    /// The file of `tulle token create` to join it with.
    #[arg(long, value_name = "FILE", requires = "control_plane")]
    token: Option<PathBuf>,
    /// Who the program is: its namespace and service account [default: default/SERVICE, or default/PROGRAM].
    #[arg(long, value_name = "NAMESPACE/SERVICE-ACCOUNT", conflicts_with = "token")]
    workload_identity: Option<String>,
    /// Where others reach the program's proxy [default: this machine's address on the way to the control plane, any port].
    #[arg(long, value_name = "IP[:PORT]", requires = "services", value_parser = listen)]
    listen: Option<SocketAddr>,
    /// Keep the proxy's diagnostics and access log here.
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// The program, and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// A port of the program's, and its service's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Port {
    service: u16,
    application: u16,
}

fn service(text: &str) -> Result<String> {
    if !is_label(text) {
        bail!("expected the name of a Service: lower-case letters, digits and `-`, at most 63");
    }
    Ok(text.to_owned())
}

fn port(text: &str) -> Result<Port> {
    let (service, application) = text.split_once(':').unwrap_or((text, text));
    let number = |text: &str| {
        let port: u16 = text.parse().ok().filter(|port| *port != 0).context("expected a port, 1 to 65535")?;
        anyhow::Ok(port)
    };
    let port = Port { service: number(service)?, application: number(application)? };
    if RESERVED_PORTS.contains(&port.application) {
        bail!("ports 15000 to 15090 are the proxy's; have the program listen on another");
    }
    Ok(port)
}

fn listen(text: &str) -> Result<SocketAddr> {
    let alone = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0));
    let address =
        alone.or_else(|_| text.parse()).context("expected an IP address, and a port if you like")?;
    if address.ip().is_unspecified() {
        bail!("others dial this address: name one of this machine's own");
    }
    Ok(address)
}

/// Runs the program to its end.
///
/// # Errors
/// None: what keeps the program from running is printed, and is an exit status of its own.
pub(crate) fn run(arguments: &RunArgs) -> Result<ExitCode> {
    let [program, ..] = arguments.program.as_slice() else { return Ok(FAILED.into()) };
    if let Err((status, why)) = find(program) {
        say(&format!("{}: {why}", program.display()));
        return Ok(status.into());
    }
    Ok(match meshed(arguments) {
        Ok(status) => status,
        Err(error) => {
            say(&tulle_control_plane::app::describe(&error));
            FAILED
        }
    }
    .into())
}

fn say(text: &str) {
    // In one piece: the program writes there too.
    let _ = std::io::stderr().write_all(format!("tulle: {text}\n").as_bytes());
}

/// Looks for a program as `execvp` will, before anything is started for it.
fn find(program: &OsStr) -> Result<(), (u8, &'static str)> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let has_folder = program.as_encoded_bytes().contains(&b'/');
    let places = if has_folder { vec![program.into()] } else { std::env::split_paths(&path).collect() };
    let mut found = Err((NOT_FOUND, "there is no such program"));
    for place in places {
        let place = if has_folder { place } else { place.join(program) };
        match fs::metadata(&place) {
            Ok(file) if file.is_dir() => found = Err((NOT_EXECUTABLE, "it is a folder")),
            Ok(file) if file.permissions().mode() & 0o111 == 0 => {
                found = Err((NOT_EXECUTABLE, "it may not be executed; `chmod +x` allows it"));
            }
            Ok(_) => return Ok(()),
            Err(_) => {}
        }
    }
    found
}

fn meshed(arguments: &RunArgs) -> Result<u8> {
    // One thread: the kernel ends the children when the thread that started them ends.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    // Before there is anything to clean up.
    let mut signals = {
        let _entered = runtime.enter();
        Signals::new()?
    };
    let folder = Folder::of_run()?;
    let status = runtime.block_on(async {
        let mesh = tokio::select! {
            mesh = Mesh::join(arguments, folder.path()) => mesh?,
            signal = signals.ending() => return Ok(exit_status(ExitStatus::from_raw(signal.as_raw()))),
        };
        mesh.run(&arguments.program, &mut signals).await
    });
    folder.close()?;
    status
}

/// What the program runs in.
struct Mesh {
    room: Room,
    proxy: Process,
    /// Looks after a control plane of ours.
    tending: Option<tokio::task::JoinHandle<()>>,
}

/// How the workload joins.
struct Joining {
    workload: NamespacedName,
    control_plane: String,
    token: PathBuf,
    listen: SocketAddr,
}

// === impl Mesh ===

impl Mesh {
    /// Starts all but the program.
    async fn join(arguments: &RunArgs, folder: &Path) -> Result<Self> {
        let logs = arguments.log_dir.as_deref().unwrap_or(folder);
        fs::create_dir_all(logs).with_context(|| format!("--log-dir {}", logs.display()))?;
        let (joining, control_plane) = match (&arguments.token, &arguments.config_dir) {
            (Some(token), _) => (elsewhere(arguments, token)?, None),
            (None, Some(config)) => {
                let joined = ControlPlane::join(config, arguments.state_dir.as_deref(), logs).await?;
                (here(arguments, &joined, folder)?, Some(joined))
            }
            (None, None) => bail!("name a folder of YAML (--config-dir), or a control plane"),
        };
        let namespace = &joining.workload.namespace;
        let refused = |what: &str| {
            say(&format!("refused {what}: only TCP and questions about names leave `tulle run`"))
        };
        let room = Room::open("program", folder, logs, namespace, refused)?;
        let proxy = start_proxy(arguments, &joining, &room, folder, logs).await?;
        let tending = control_plane.map(|mut control_plane| {
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(control_plane::LOOK).await;
                    control_plane.tend().await;
                }
            })
        });
        Ok(Self { room, proxy, tending })
    }

    /// Runs the program in it; its status is that of the exit.
    async fn run(mut self, program: &[OsString], signals: &mut Signals) -> Result<u8> {
        let mut ended = signal(SignalKind::child()).context("signals cannot be handled")?;
        let mut child = self.room.command(program).spawn().context("cannot start the program")?;
        let status = self.watch(&mut child, &mut ended, signals).await;
        if status.is_err() {
            // What cannot speak with anybody any more is not left running.
            let _ = child.kill();
            let _ = child.wait();
        }
        let Self { room, proxy, tending } = self;
        drop(room);
        proxy.end(PROXY_ENDS_WITHIN).await;
        if let Some(tending) = tending {
            tending.abort();
            let _ = tending.await;
        }
        status
    }

    async fn watch(
        &mut self,
        child: &mut Child,
        ended: &mut tokio::signal::unix::Signal,
        signals: &mut Signals,
    ) -> Result<u8> {
        loop {
            if let Some(status) = child.try_wait().context("cannot wait for the program")? {
                return Ok(exit_status(status));
            }
            if let Some(pid) = pid_of(child) {
                signals::stop_with(pid);
            }
            self.room.watch()?;
            if let Some(status) = self.proxy.ended() {
                bail!("the proxy ended ({status}); {}", self.proxy.log_tail());
            }
            tokio::select! {
                _ = ended.recv() => {}
                came = signals.next() => pass_on(came, child),
            }
        }
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

fn pass_on(came: Came, child: &Child) {
    if let (false, Some(pid)) = (came.is_known(), pid_of(child)) {
        // It may just have ended.
        let _ = kill_process(pid, came.signal);
    }
}

/// As shells say it.
fn exit_status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED)
}

/// To a control plane that runs elsewhere.
fn elsewhere(arguments: &RunArgs, token: &Path) -> Result<Joining> {
    let claims = TokenFile::read(token).and_then(|file| file.claims()).context("--token")?;
    if let Ok(since) = SystemTime::now().duration_since(claims.exp) {
        bail!(
            "--token {}: it expired {} minutes ago; make another with `tulle token create`",
            token.display(),
            since.as_secs() / 60
        );
    }
    if let Some(service) = arguments.services.iter().find(|service| !claims.services.contains(*service)) {
        let granted = claims.services.join(", ");
        bail!(
            "--service {service}: the token in {} is for {}; make one with `tulle token create --service {service}`",
            token.display(),
            if granted.is_empty() { "no service" } else { &granted }
        );
    }
    let control_plane = arguments.control_plane.clone().unwrap_or_default();
    let listen = match arguments.listen {
        Some(listen) => listen,
        None => SocketAddr::new(way_to(&control_plane)?, 0),
    };
    let workload = NamespacedName {
        namespace: claims.sub.namespace().into(),
        name: claims.sub.service_account().into(),
    };
    Ok(Joining { workload, control_plane, token: token.to_owned(), listen })
}

/// This machine's address on the way to `address`; nothing is sent.
fn way_to(address: &str) -> Result<IpAddr> {
    let way = |any: &str| {
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        socket.local_addr()
    };
    let way = way("0.0.0.0:0").or_else(|_| way("[::]:0"));
    let way = way.with_context(|| {
        format!("--control-plane {address}: there is no way there; is the name right, and has it a port?")
    })?;
    Ok(way.ip())
}

/// To the control plane of a folder, on this machine.
fn here(arguments: &RunArgs, control_plane: &ControlPlane, folder: &Path) -> Result<Joining> {
    let identity = match &arguments.workload_identity {
        Some(identity) => identity.clone(),
        None => format!("default/{}", name_of(arguments)),
    };
    let token = token::create(
        control_plane.state(),
        &token::Request {
            trust_domain: None,
            identity: &identity,
            services: &arguments.services,
            lifetime: TOKEN_LIFETIME,
            once: false,
        },
    )?;
    let path = folder.join("token");
    token::write(&token, &path)?;
    let workload = NamespacedName::parse(&identity).context("--workload-identity")?;
    let listen = arguments.listen.unwrap_or_else(|| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
    Ok(Joining { workload, control_plane: control_plane.grpc()?.to_string(), token: path, listen })
}

/// The first service, or as much of the program's name as a name may have.
fn name_of(arguments: &RunArgs) -> String {
    if let Some(service) = arguments.services.first() {
        return service.clone();
    }
    let program = arguments.program.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    let program = program.to_string_lossy().to_ascii_lowercase();
    let name: String =
        program.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "program".to_owned() } else { name.to_owned() }
}

async fn start_proxy(
    arguments: &RunArgs,
    joining: &Joining,
    room: &Room,
    folder: &Path,
    logs: &Path,
) -> Result<Process> {
    let addresses = folder.join("proxy.addresses.json");
    let inbound = |port: &Port| {
        let Port { service, application } = port;
        let services: String = arguments.services.iter().map(|name| format!("/{name}:{service}")).collect();
        format!("{}=0.0.0.0:{application}{services}", joining.listen)
    };
    let inbound: Vec<String> = arguments.ports.iter().map(inbound).collect();
    let inbound = if inbound.is_empty() { "none".to_owned() } else { inbound.join(",") };
    let mut flags = strings(&[
        "proxy",
        "--workload",
        &joining.workload.to_string(),
        "--control-plane-address",
        &joining.control_plane,
        "--identity-token-file",
        &joining.token.to_string_lossy(),
        "--inbound-listen",
        "none",
        "--inbound-ports",
        &inbound,
        "--admin-address",
        "127.0.0.1:0",
        "--metrics-address",
        "127.0.0.1:0",
        "--addresses-file",
        &addresses.to_string_lossy(),
        "--drain-grace",
        "0s",
        "--log-format",
        "text",
    ]);
    flags.extend(room.proxy_flags());
    let program = Program { name: "proxy".to_owned(), arguments: flags, environment: Vec::new() };
    let mut proxy = Process::start(program, Stdio::null(), logs)?;
    let addresses = proxy.addresses(&addresses).await?;
    let metrics = Origin::new(addresses.get("metrics")?, None)?;
    let waiting = async {
        tokio::time::sleep(SAY_AFTER).await;
        say(&format!("waiting for the control plane at {}", joining.control_plane));
        std::future::pending().await
    };
    tokio::select! {
        ready = proxy.ready(&metrics, READY_WITHIN) => ready?,
        () = waiting => {}
    }
    if !arguments.services.is_empty() {
        is_known(&Origin::new(addresses.get("admin")?, None)?).await?;
    }
    Ok(proxy)
}

/// Fails if a service, or a port of it, that the workload is registered for is none of the mesh's.
async fn is_known(admin: &Origin) -> Result<()> {
    let answer = admin.get("/config_dump", &HeaderMap::new(), READY_WITHIN).await?;
    let dump: serde_json::Value =
        serde_json::from_slice(answer.body()).context("the proxy's configuration")?;
    let pending = dump["registration"]["pending"].as_array().map(Vec::as_slice).unwrap_or_default();
    if pending.is_empty() {
        return Ok(());
    }
    let pending: Vec<_> = pending.iter().filter_map(serde_json::Value::as_str).collect();
    bail!(
        "the mesh has no such service or port: {}; write a Service for it, or correct --service and --port",
        pending.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_two_and_never_the_proxys() {
        assert_eq!(port("8080").unwrap(), Port { service: 8080, application: 8080 });
        assert_eq!(port("80:3000").unwrap(), Port { service: 80, application: 3000 });
        assert!(port("15001").is_err() && port("0").is_err() && port("http").is_err());
        assert!(port("15001:80").is_ok());
    }

    #[test]
    fn an_address_to_listen_on_is_one_that_others_can_dial() {
        assert_eq!(listen("10.0.0.1").unwrap(), "10.0.0.1:0".parse().unwrap());
        assert_eq!(listen("[fd00::1]:7").unwrap(), "[fd00::1]:7".parse().unwrap());
        assert!(listen("0.0.0.0:80").is_err() && listen("orders").is_err());
    }

    #[test]
    fn a_program_is_looked_for_as_the_system_will() {
        assert_eq!(find(OsStr::new("sh")), Ok(()));
        assert_eq!(find(OsStr::new("no-such-program")).unwrap_err().0, NOT_FOUND);
        assert_eq!(find(OsStr::new("./no-such-program")).unwrap_err().0, NOT_FOUND);
        assert_eq!(find(OsStr::new("/etc/passwd")).unwrap_err().0, NOT_EXECUTABLE);
        assert_eq!(find(OsStr::new("/etc")).unwrap_err().0, NOT_EXECUTABLE);
    }

    #[test]
    fn the_status_is_what_a_shell_would_say() {
        assert_eq!(exit_status(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(exit_status(ExitStatus::from_raw(15)), 143);
    }
}
