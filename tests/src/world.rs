//! A mesh on loopback: a folder of YAML, a control plane, workloads.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::Value;
use tulle_certs::issue::Authority;

use crate::identity::{Identity, trust_domain};
use crate::process::{Folder, Process, Program};
use crate::wait::eventually;
use crate::workload::{WorkloadBuilder, ready};
use crate::{Metrics, binary};

/// The namespace of what tests make without naming another.
pub const NAMESPACE: &str = "default";

/// The namespace and the name in `[<namespace>/]<name>`; [`NAMESPACE`] if none is said.
pub(crate) fn qualified(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or((NAMESPACE, name))
}

/// The mesh's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Plain text is refused.
    Strict,
    /// Plain text is taken too.
    Permissive,
}

/// A mesh. Everything in it ends when it is dropped.
#[derive(Debug)]
pub struct World {
    folder: Folder,
    control_plane: Process,
    grpc: SocketAddr,
    metrics: SocketAddr,
}

// === impl World ===

impl World {
    /// A control plane in strict mode.
    pub async fn strict() -> Self {
        Self::start(Mode::Strict).await
    }

    /// A control plane, ready, with a `Mesh` and nothing else.
    pub async fn start(mode: Mode) -> Self {
        Self::start_with(mode, |program| program).await
    }

    /// As [`World::start`], with settings of the test's own.
    pub async fn start_with(mode: Mode, settings: impl FnOnce(Program) -> Program) -> Self {
        let folder = Folder::new();
        fs::create_dir(folder.path("config")).expect("a folder");
        let mode = match mode {
            Mode::Strict => "strict",
            Mode::Permissive => "permissive",
        };
        let mesh = format!(
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: Mesh\nmetadata:\n  name: mesh\nspec:\n  mtls: {mode}\n  \
             trustDomain: cluster.local\n  networks: [127.0.0.0/8]\n"
        );
        fs::write(folder.path("config/mesh.yaml"), mesh).expect("a file");

        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut control_plane = Process::start(settings(control_plane(&folder, any, any)), &folder);
        let addresses = control_plane.addresses().await;
        let (grpc, metrics) = (addresses["grpc"], addresses["metrics"]);
        ready(&mut control_plane, metrics).await;
        Self { folder, control_plane, grpc, metrics }
    }

    /// Everything of this world.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The folder of YAML.
    pub fn config_folder(&self) -> PathBuf {
        self.folder.path("config")
    }

    /// Where the control plane keeps its keys.
    pub fn state_folder(&self) -> PathBuf {
        self.folder.path("state")
    }

    /// The control plane.
    pub fn control_plane(&mut self) -> &mut Process {
        &mut self.control_plane
    }

    /// The control plane's gRPC port.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// The control plane's HTTP port.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// Writes a file of YAML, whole at once, as editors and `kubectl` do.
    pub fn yaml(&self, name: &str, text: &str) {
        let path = self.config_folder().join(name);
        let temporary = self.folder.path(&format!("{name}.new"));
        fs::write(&temporary, text).expect("a file");
        fs::rename(temporary, path).expect("a file in the config folder");
    }

    /// Removes a file of YAML.
    pub fn remove_yaml(&self, name: &str) {
        fs::remove_file(self.config_folder().join(name)).expect("a file in the config folder");
    }

    /// A `Service` whose one port, 8080, speaks `app_protocol` (nothing declared if empty).
    pub fn service(&self, name: &str, app_protocol: &str) {
        let declared = if app_protocol.is_empty() {
            String::new()
        } else {
            format!("      appProtocol: {app_protocol}\n")
        };
        self.yaml(
            &format!("service-{name}.yaml"),
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {NAMESPACE}\nspec:\n  \
                 clusterIP: None\n  ports:\n    - name: main\n      port: 8080\n{declared}"
            ),
        );
    }

    /// A workload, `[<namespace>/]<name>`, whose identity is `spiffe://cluster.local/ns/<namespace>/sa/<name>`.
    pub fn workload(&self, name: &str) -> WorkloadBuilder<'_> {
        WorkloadBuilder::new(self, name)
    }

    /// Writes a join token for `[<namespace>/]<name>` as `tulle token create` makes it, and says where.
    pub fn token(&self, name: &str, services: &[String]) -> PathBuf {
        let (namespace, name) = qualified(name);
        let path = self.folder.run().join(format!("{namespace}-{name}.token"));
        let mut program = Program::new("token", binary("tulle"))
            .arg("token")
            .arg("create")
            .flag("--state-dir", self.state_folder())
            .flag("--workload-identity", format!("{namespace}/{name}"))
            .flag("--out", &path);
        for service in services {
            program = program.flag("--service", service);
        }
        let output = program.output();
        assert!(output.status.success(), "no token: {}", String::from_utf8_lossy(&output.stderr));
        path
    }

    /// What `tulle explain -o json` says of the running control plane's resources.
    pub fn explain(&self, arguments: &[&str]) -> Value {
        let program = Program::new("explain", binary("tulle"))
            .arg("explain")
            .flag("--control-plane", self.metrics.to_string())
            .flag("--output", "json");
        let output = arguments.iter().fold(program, |program, one| program.arg(*one)).output();
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// The mesh's own certificate authority, by its key: what a thief of it could issue.
    pub fn authority(&self) -> Authority {
        let (key, certificates) = self.authority_pem();
        Authority::from_pem(&key, &certificates, &trust_domain(), SystemTime::now()).expect("the mesh's root")
    }

    /// A certificate that the mesh's root signed and that names these URIs.
    pub fn certificate_naming(&self, uris: &[&str]) -> Identity {
        let (key, certificates) = self.authority_pem();
        Identity::naming(&key, &certificates, uris)
    }

    /// A certificate that the mesh's root signed for this URI, and for a key that is too weak.
    pub fn certificate_of_a_weak_key(&self, uri: &str) -> Identity {
        let (key, certificates) = self.authority_pem();
        Identity::of_a_weak_key(&key, &certificates, uri)
    }

    fn authority_pem(&self) -> (String, String) {
        let read = |name: &str| {
            fs::read_to_string(self.state_folder().join(name)).expect("a file of the state folder")
        };
        (read("ca-key.pem"), read("ca.pem"))
    }

    /// `kill -9` for the control plane.
    pub async fn kill_control_plane(&mut self) {
        self.control_plane.kill().await;
    }

    /// Starts the control plane again, on the same ports and folders, and waits until it is ready.
    pub async fn restart_control_plane(&mut self) {
        self.restart_control_plane_with(|program| program).await;
    }

    /// As [`World::restart_control_plane`], with settings of the test's own.
    pub async fn restart_control_plane_with(&mut self, settings: impl FnOnce(Program) -> Program) {
        let program = settings(control_plane(&self.folder, self.grpc, self.metrics));
        self.control_plane = Process::start(program, &self.folder);
        ready(&mut self.control_plane, self.metrics).await;
    }

    /// What the control plane counts.
    pub async fn metrics(&self) -> Metrics {
        scrape(self.metrics).await
    }

    /// Waits until the control plane's log has a line that holds all of `words`.
    pub async fn control_plane_says(&self, words: &[&str]) -> String {
        eventually(&format!("the control plane says {words:?}"), async || {
            let log = self.control_plane.stdout();
            let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
            line.map(str::to_owned).ok_or_else(|| "no such line".to_owned())
        })
        .await
    }
}

fn control_plane(folder: &Folder, grpc: SocketAddr, metrics: SocketAddr) -> Program {
    let program = Program::new("control-plane", binary("tulle-control-plane"));
    let addresses = program.addresses_file(&folder.run());
    program
        .flag("--config-dir", folder.path("config"))
        .flag("--state-dir", folder.path("state"))
        .flag("--grpc-address", grpc.to_string())
        .flag("--metrics-address", metrics.to_string())
        .flag("--addresses-file", addresses)
        .flag("--log-format", "text")
}

/// What `/metrics` says.
pub async fn scrape(address: SocketAddr) -> Metrics {
    let mut wire = crate::Wire::connect(address).await;
    wire.send("GET /metrics HTTP/1.1\r\nhost: metrics\r\nconnection: close\r\n\r\n").await;
    let (head, body) = wire.response().await;
    assert_eq!(head.status(), 200, "{head:?}");
    Metrics::parse(&String::from_utf8(body).expect("text"))
}
