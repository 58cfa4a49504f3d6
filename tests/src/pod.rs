//! A mesh of pods: each a network namespace with an address of both families on one bridge, services with virtual IPs at which
//! nobody listens (no kube-proxy: they are the node's, which refuses what comes), our rules installed by the real command,
//! and real proxies behind them.
//!
//! A [`Cluster`] is made inside [`in_a_node`](crate::netns::in_a_node). The control plane runs on the node.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitStatus;

use serde_json::Value;

use crate::netns::{Namespace, has_users, shell};
use crate::process::{Folder, Process, Program};
use crate::wait::eventually;
use crate::workload::{ready, unready};
use crate::world::{NAMESPACE, qualified, scrape};
use crate::{Metrics, Mode, Wire, World, binary};

/// Seconds that curl waits for an answer: less than [`eventually`] does.
const PATIENCE: &str = "60";
/// The proxy's user, and its mark where there is only one user.
const PROXY_UID: u32 = 1337;
const MARK: &str = "0x1337";
/// The user of everything else.
const NOBODY: u32 = 65534;

/// What a proxy is started with where its test says nothing else: it waits for as long as a busy machine takes.
const DEFAULTS: [(&str, &str); 3] =
    [("--workers", "2"), ("--discovery-timeout", "60s"), ("--connect-timeout", "60s")];

/// A node with a bridge for pods.
#[derive(Debug)]
pub struct Network {
    folder: Folder,
    pods: Cell<u8>,
}

/// A node with a bridge, and the control plane on it.
#[derive(Debug)]
pub struct Cluster {
    world: World,
    network: Network,
    services: Cell<u8>,
}

/// A network namespace on the bridge, with or without a proxy.
#[derive(Debug)]
pub struct Pod {
    /// Its Kubernetes namespace.
    of: String,
    name: String,
    /// Nowhere in particular if empty.
    zone: &'static str,
    namespace: Namespace,
    number: u8,
    folder: Folder,
    proxy: Option<Process>,
    runs: Cell<usize>,
}

/// What a Service says about its port.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Of the Service, and of the pods behind it.
    pub number: u16,
    /// Its name, whose prefix may declare what it speaks.
    pub name: &'static str,
    /// Nothing declared if empty.
    pub app_protocol: &'static str,
}

/// A service's virtual IPs.
#[derive(Clone, Copy, Debug)]
pub struct VirtualIps {
    pub v4: IpAddr,
    pub v6: IpAddr,
}

/// How a program ended and what it wrote to standard output and standard error.
#[derive(Debug)]
pub struct Ran {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

// === impl Network ===

impl Network {
    /// Makes a bridge where the calling thread is; pods' logs go to `folder`.
    pub fn start(folder: &Folder) -> Self {
        make_bridge();
        Self::of(folder)
    }

    fn of(folder: &Folder) -> Self {
        Self { folder: folder.clone(), pods: Cell::new(1) }
    }

    /// A pod `[<namespace>/]<name>` without a proxy.
    pub fn pod(&self, name: &str) -> Pod {
        let (of, name) = qualified(name);
        let number = self.pods.get() + 1;
        self.pods.set(number);
        let namespace = Namespace::new();
        shell(&format!(
            "ip link add pod{number} type veth peer name eth0 netns {}; ip link set pod{number} master pods up",
            namespace.pid()
        ));
        namespace.shell(&format!(
            "ip link set eth0 up; ip addr add 10.77.0.{number}/24 dev eth0; ip addr add fd77::{number:x}/64 dev eth0 nodad
             ip route add default via 10.77.0.1; ip -6 route add default via fd77::1"
        ));
        Pod {
            of: of.to_owned(),
            name: name.to_owned(),
            zone: "",
            namespace,
            number,
            folder: self.folder.clone(),
            proxy: None,
            runs: Cell::new(0),
        }
    }
}

// === impl Cluster ===

impl Cluster {
    /// In strict mode.
    pub async fn strict() -> Self {
        Self::start(Mode::Strict).await
    }

    /// Makes a bridge where the calling thread is, and starts the control plane there.
    pub async fn start(mode: Mode) -> Self {
        make_bridge();
        let world = World::start_with(mode, |control_plane| {
            control_plane.without("--grpc-address").flag("--grpc-address", "10.77.0.1:0")
        })
        .await;
        let mode = if mode == Mode::Strict { "strict" } else { "permissive" };
        world.yaml(
            "mesh.yaml",
            &format!(
                "apiVersion: policy.tulle.dev/v1alpha1\nkind: Mesh\nmetadata:\n  name: mesh\nspec:\n  mtls: {mode}\n  \
                 trustDomain: cluster.local\n  networks: [10.77.0.0/24, 10.96.0.0/16, 'fd77::/64', 'fd96::/64']\n"
            ),
        );
        let network = Network::of(world.folder());
        Self { world, network, services: Cell::new(0) }
    }

    /// The control plane and its folder of YAML.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// A pod `[<namespace>/]<name>` without a proxy.
    pub fn pod(&self, name: &str) -> Pod {
        self.network.pod(name)
    }

    /// A pod with our rules and a proxy, which is ready.
    pub async fn meshed(&self, name: &str) -> Pod {
        let mut pod = self.pod(name);
        pod.join(self, &[], &[]).await;
        pod
    }

    /// As [`Cluster::meshed`], of so many, which start together: by name and zone.
    pub async fn meshed_in<const N: usize>(&self, pods: [(&str, &'static str); N]) -> [Pod; N] {
        let mut pods = pods.map(|(name, zone)| Pod { zone, ..self.pod(name) });
        futures_util::future::join_all(pods.iter_mut().map(|pod| pod.join(self, &[], &[]))).await;
        pods
    }

    /// A Service whose port 8080 speaks `app_protocol` (nothing declared if empty), with virtual IPs, and the pods behind
    /// it; those with a proxy are known to be in the mesh.
    pub fn service(&self, name: &str, app_protocol: &'static str, pods: &[&Pod]) -> VirtualIps {
        let pods: Vec<_> = pods.iter().map(|pod| (*pod, pod.name())).collect();
        self.service_as(name, app_protocol, &pods)
    }

    /// As [`Cluster::service`], with the service account that is expected of each pod.
    pub fn service_as(&self, name: &str, app_protocol: &'static str, pods: &[(&Pod, &str)]) -> VirtualIps {
        let pods: Vec<_> =
            pods.iter().map(|(pod, account)| (*pod, pod.proxy.is_some().then_some(*account))).collect();
        self.service_of(name, &Port { number: 8080, name: "main", app_protocol }, &pods)
    }

    /// A Service with one port, and the pods behind it with the service account that is expected of each; `None` is outside
    /// the mesh.
    pub fn service_of(&self, name: &str, port: &Port, pods: &[(&Pod, Option<&str>)]) -> VirtualIps {
        let number = self.services.get() + 1;
        self.services.set(number);
        let v4 = Ipv4Addr::new(10, 96, 0, number);
        let v6 = Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, number.into());
        let ips = VirtualIps { v4: v4.into(), v6: v6.into() };
        self.change(name, port, ips, pods);
        ips
    }

    /// Writes what [`Cluster::service_of`] did once more, with other pods behind it.
    pub fn change(&self, name: &str, port: &Port, ips: VirtualIps, pods: &[(&Pod, Option<&str>)]) {
        let VirtualIps { v4, v6 } = ips;
        self.write(name, port, &format!("clusterIP: {v4}\n  clusterIPs: [{v4}, '{v6}']"), pods);
    }

    /// As [`Cluster::service`], without virtual IPs: its name means its pods.
    pub fn headless(&self, name: &str, app_protocol: &'static str, pods: &[&Pod]) {
        let pods: Vec<_> = pods.iter().map(|pod| (*pod, Some(pod.name()))).collect();
        self.write(name, &Port { number: 8080, name: "main", app_protocol }, "clusterIP: None", &pods);
    }

    /// Writes a Service, with what is said of its virtual IPs, and a slice for each pod and family.
    fn write(&self, name: &str, port: &Port, virtual_ips: &str, pods: &[(&Pod, Option<&str>)]) {
        let Port { number: port, name: port_name, app_protocol } = port;
        let declared =
            if app_protocol.is_empty() { String::new() } else { format!(", appProtocol: {app_protocol}") };
        let mut yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  \
             {virtual_ips}\n  ports: [{{name: {port_name}, port: {port}{declared}}}]\n"
        );
        for (pod, account) in pods {
            let identity = account.map(|account| format!("tulle.dev/identity: {NAMESPACE}/{account}"));
            let identity = identity.unwrap_or_default();
            let zone = if pod.zone.is_empty() { String::new() } else { format!("    zone: {}\n", pod.zone) };
            for (family, address) in [("IPv4", IpAddr::V4(pod.v4())), ("IPv6", IpAddr::V6(pod.v6()))] {
                yaml.push_str(&format!(
                    "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{}-{}\n  \
                     namespace: {NAMESPACE}\n  labels: {{kubernetes.io/service-name: {name}}}\n  annotations: {{{identity}}}\n\
                     addressType: {family}\nports: [{{name: {port_name}, port: {port}, protocol: TCP}}]\nendpoints:\n  \
                     - addresses: ['{address}']\n    conditions: {{ready: true}}\n{zone}    \
                     targetRef: {{kind: Pod, name: {}, namespace: {NAMESPACE}}}\n",
                    pod.name,
                    family.to_ascii_lowercase(),
                    pod.name
                ));
            }
        }
        self.world.yaml(&format!("service-{name}.yaml"), &yaml);
    }
}

// === impl Pod ===

impl Pod {
    /// Installs our rules by these flags, sees by the real check that they hold, and starts a proxy with those, in place of
    /// [`DEFAULTS`] where they say the same.
    pub async fn join(&mut self, cluster: &Cluster, rules: &[&str], flags: &[(&str, &str)]) {
        let own: &[&str] = if has_users() { &[] } else { &["--proxy-mark", MARK] };
        for verb in ["install", "check"] {
            let arguments = [&["intercept", verb], own, rules].concat();
            // What an init container has is CAP_NET_ADMIN; the check has nothing.
            let ran = if verb == "install" {
                self.start(binary("tulle-proxy"), &arguments, None)
            } else {
                self.start(binary("tulle-proxy"), &arguments, Some(NOBODY))
            };
            let ran = ended(ran).await;
            assert!(ran.status.success(), "{verb}: {ran:?}");
        }
        let workload = format!("{}/{}", self.of, self.name);
        let token = cluster.world.token(&workload, &[]);
        let mut program = as_user(Some(PROXY_UID), &self.name, binary("tulle-proxy"))
            .flag("--workload", workload)
            .flag("--control-plane-address", cluster.world.grpc().to_string())
            .flag("--identity-token-file", token)
            .flag("--log-format", "text");
        if !has_users() {
            program = program.flag("--intercept-proxy-mark", MARK);
        }
        let locality = format!("here/{}", self.zone);
        let own = [("--locality", &*locality)];
        let own = if self.zone.is_empty() { &own[..0] } else { &own };
        let said = |flag: &str| flags.iter().any(|(said, _)| *said == flag);
        let more = DEFAULTS.iter().chain(own).filter(|(flag, _)| !said(flag));
        for (flag, value) in more.chain(flags) {
            program = program.flag(flag, *value);
        }
        let mut proxy = self.namespace.enter(|| Process::start(program, &self.folder));
        ready(&mut proxy, self.public()).await;
        self.proxy = Some(proxy);
    }

    /// Its name, which is also its service account's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its SPIFFE ID.
    pub fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.of, self.name)
    }

    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, self.number.into())
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A listener in it; for [`App::http1_on`](crate::app::App::http1_on).
    ///
    /// # Panics
    /// If the port is taken.
    pub fn listen(&self, address: &str) -> TcpListener {
        self.namespace
            .enter(|| TcpListener::bind(address))
            .unwrap_or_else(|error| panic!("{address}: {error}"))
    }

    /// As [`Pod::connect`], for whoever speaks more than bytes.
    ///
    /// # Panics
    /// If it is refused.
    pub fn stream(&self, to: SocketAddr) -> tokio::net::TcpStream {
        let stream = self.try_stream(to).unwrap_or_else(|error| panic!("{to}: {error}"));
        tokio::net::TcpStream::from_std(stream).expect("a runtime")
    }

    fn try_stream(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let stream = self.namespace.enter(|| TcpStream::connect_timeout(&to, crate::DEADLINE))?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// A connection that a program in it makes.
    ///
    /// # Panics
    /// If it is refused.
    pub fn connect(&self, to: SocketAddr) -> Wire {
        self.try_connect(to).unwrap_or_else(|error| panic!("{to}: {error}"))
    }

    /// As [`Pod::connect`].
    ///
    /// # Errors
    /// If it is refused, or reset as soon as it is made.
    pub fn try_connect(&self, to: SocketAddr) -> std::io::Result<Wire> {
        tokio::net::TcpStream::from_std(self.try_stream(to)?).map(Wire::new)
    }

    /// Runs a program in it, to its end, as a user who is not the proxy's.
    pub async fn run(&self, program: &str, arguments: &[&str]) -> Ran {
        ended(self.start(program, arguments, Some(NOBODY))).await
    }

    /// What curl is answered by `http://<to>:8080/`, or why it is not.
    pub async fn curl(&self, to: IpAddr) -> Result<String, String> {
        self.curl_port(SocketAddr::new(to, 8080)).await
    }

    /// What curl is answered by `http://<to>/`, or why it is not.
    pub async fn curl_port(&self, to: SocketAddr) -> Result<String, String> {
        let url = format!("http://{to}/");
        let ran = self.run("curl", &["-sS", "--fail-with-body", "--max-time", PATIENCE, &url]).await;
        if ran.status.success() { Ok(ran.stdout) } else { Err(ran.stdout + &ran.stderr) }
    }

    /// What curl is answered by a URL with a name, where `server` is the name server.
    pub async fn curl_by_name(&self, url: &str, server: IpAddr) -> Result<String, String> {
        let file = self.folder.run().join(format!("{}.resolv.conf", self.name));
        std::fs::write(&file, format!("nameserver {server}\n")).expect("a file");
        // A view of the machine's files in which that one is the resolver's.
        let line = format!(
            "mount --bind {} /etc/resolv.conf; exec curl -sS --fail-with-body --max-time {PATIENCE} {url}",
            file.display()
        );
        let ran = ended(self.start("unshare", &["-m", "sh", "-ec", &line], None)).await;
        if ran.status.success() { Ok(ran.stdout) } else { Err(ran.stdout + &ran.stderr) }
    }

    /// Asks until curl is answered `what`.
    pub async fn reaches(&self, to: IpAddr, what: &str) {
        eventually(&format!("{} is answered by {to}", self.name), async || match self.curl(to).await {
            Ok(said) if said == what => Ok(()),
            Ok(said) | Err(said) => Err(said),
        })
        .await;
    }

    /// Starts lines of shell in it as root, who is not the proxy either, in a view of its own: of the processes, so that all
    /// that they start ends with them; of the files, with an empty `/run`, and no name server to wait for. `$DIR` is a new
    /// folder.
    pub fn shell(&self, lines: &str) -> Process {
        let folder = self.folder.path(&format!("{}-{}", self.name, self.runs.get()));
        std::fs::create_dir(&folder).expect("a folder");
        let resolver = folder.join("resolv.conf");
        std::fs::write(&resolver, "nameserver 127.0.0.1\n").expect("a file");
        let lines = format!(
            "DIR={}; cd $DIR; mount -t tmpfs run /run; mount --bind resolv.conf /etc/resolv.conf\n{lines}",
            folder.display()
        );
        let own = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec", &lines];
        self.start("unshare", &own, None)
    }

    fn start(
        &self,
        program: impl Into<std::path::PathBuf>,
        arguments: &[&str],
        user: Option<u32>,
    ) -> Process {
        self.runs.set(self.runs.get() + 1);
        let name = format!("{}-run-{}", self.name, self.runs.get());
        let mut program = as_user(user, &name, program);
        for argument in arguments {
            program = program.arg(argument);
        }
        self.namespace.enter(|| Process::start(program, &self.folder))
    }

    /// The proxy's process.
    ///
    /// # Panics
    /// If it has none.
    pub fn proxy(&mut self) -> &mut Process {
        self.proxy.as_mut().expect("a pod with a proxy")
    }

    /// What the proxy counts.
    pub async fn metrics(&self) -> Metrics {
        scrape(self.public()).await
    }

    /// Where the proxy tells everybody what it counts, and whether it is ready.
    pub fn public(&self) -> SocketAddr {
        SocketAddr::new(self.v4().into(), 15020)
    }

    /// What the proxy's admin listener says to a request like `GET /config_dump`.
    ///
    /// # Panics
    /// If that is not that all is well.
    pub async fn admin(&self, request: &str) -> String {
        let mut wire = self.connect(SocketAddr::from(([127, 0, 0, 1], 15000)));
        wire.send(format!("{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")).await;
        let (head, body) = wire.response().await;
        assert!(head.status() < 300, "{request}: {head:?}");
        String::from_utf8(body).expect("text")
    }

    /// Waits until the proxy says that it is not ready, or nothing any more.
    pub async fn unready(&self) {
        unready(&self.name, self.public()).await;
    }

    /// What the proxy said of itself so far.
    ///
    /// # Panics
    /// If it has no proxy.
    pub fn diagnostics(&self) -> String {
        self.proxy.as_ref().expect("a pod with a proxy").stdout()
    }

    /// The proxy's access log so far.
    ///
    /// # Panics
    /// If it has no proxy.
    pub fn access_log(&self) -> Vec<Value> {
        self.proxy.as_ref().expect("a pod with a proxy").access_log()
    }

    /// Waits for a record of the access log whose fields have these values.
    ///
    /// # Panics
    /// If it has no proxy.
    pub async fn logs(&self, fields: &[(&str, Value)]) -> Value {
        self.proxy.as_ref().expect("a pod with a proxy").logs(fields).await
    }
}

/// A bridge, and addresses of Services that are the node's own.
fn make_bridge() {
    shell(
        "ip link add pods type bridge; ip link set pods up
         ip addr add 10.77.0.1/24 dev pods; ip addr add fd77::1/64 dev pods nodad
         ip route add local 10.96.0.0/16 dev lo; ip -6 route add local fd96::/64 dev lo",
    );
}

/// Runs a program as another user, where there are others; it may read and write what the test's own may.
fn as_user(user: Option<u32>, name: &str, program: impl Into<std::path::PathBuf>) -> Program {
    let program = program.into();
    let Some(user) = user.filter(|_| has_users()) else { return Program::new(name, program) };
    const FILES: &str = "+dac_override,+dac_read_search";
    Program::new(name, "setpriv")
        .arg(format!("--reuid={user}"))
        .arg(format!("--regid={user}"))
        .arg("--clear-groups")
        .arg(format!("--inh-caps=-all,{FILES}"))
        .arg(format!("--ambient-caps=-all,{FILES}"))
        .arg(format!("--bounding-set=-all,{FILES}"))
        .arg(program)
}

async fn ended(mut process: Process) -> Ran {
    let status = process.wait().await;
    Ran { status, stdout: process.stdout(), stderr: process.stderr() }
}
