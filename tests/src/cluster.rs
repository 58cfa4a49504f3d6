//! A real Kubernetes API server with an etcd of its own: a cluster without controllers, and without nodes unless a test has a
//! [`node`] of its own.
//!
//! [`ApiServer`] starts both in a folder and on loopback; [`Caller`] asks the server as somebody: as the administrator, or as a service
//! account by a token that the server itself issued. What controllers and kubelets do elsewhere, tests do here: nobody makes a
//! namespace's service accounts, a Service's EndpointSlices or a pod's status, and nobody collects what is owned by what was deleted.
//!
//! `TULLE_TEST_KUBE_APISERVER` names the server's program, which `.ci/run kubernetes` builds (`tests/peers/kubernetes`); etcd is Debian's.
//! Whoever asks for a server has both: what is missing fails the test.

mod between;
mod caller;
mod controllers;
pub mod kubelet;
pub mod node;
mod yaml;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

pub use self::between::{Between, Says};
pub use self::caller::{Caller, Refused};
pub use self::yaml::documents;
use crate::process::{Folder, Process, Program};
use crate::wait::eventually;

/// The administrator's token: good at this one server, which nobody but this machine reaches.
const ADMINISTRATOR: &str = "administrator";

/// Where etcd listens, in its folder: a socket of Unix, so that nobody can take its port. The number is a part of the name.
const ETCD: &str = "etcd:1";
/// Where it would listen for others of its kind.
const ETCD_PEER: &str = "peer:1";

/// The virtual IPs that the server gives to Services.
const SERVICE_NETWORKS: &str = "10.96.0.0/16,fd96::/112";

/// An API server that is ready, and its etcd. Both end when it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    server: Process,
    etcd: Process,
    folder: Folder,
    /// Bound and never listened at: the port stays this server's while it is down.
    _port: Socket,
    address: SocketAddr,
    /// PEM.
    root: String,
    administrator: Caller,
}

// === impl ApiServer ===

impl ApiServer {
    /// Starts both, and waits until the server is ready.
    ///
    /// # Panics
    /// If the server's program is not named, or one of the two ends.
    pub async fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST).await
    }

    /// As [`ApiServer::start`], at an address that pods reach.
    pub async fn start_at(ip: Ipv4Addr) -> Self {
        let path = std::env::var_os("TULLE_TEST_KUBE_APISERVER");
        let path =
            path.expect("TULLE_TEST_KUBE_APISERVER names kube-apiserver; `.ci/run kubernetes` builds it");
        let folder = Folder::new();
        let etcd = start_etcd(&folder);
        let port = reserve(ip);
        let address = port.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
        let root = credentials(&folder, ip);
        let server = Process::start(program(Path::new(&path), &folder, address), &folder);
        let administrator = Caller::new(&address, &root, ADMINISTRATOR);
        let mut server = Self { server, etcd, folder, _port: port, address, root, administrator };
        server.ready().await;
        server
    }

    async fn ready(&mut self) {
        let (server, administrator) = (&mut self.server, &self.administrator);
        eventually("the API server is ready", async || {
            if let Some(status) = server.ended() {
                panic!("kube-apiserver ended while starting: {status}\n{}", server.tail());
            }
            administrator.text("/readyz").await.map_err(|refused| refused.to_string())?;
            // Made by a loop of the server's own, for which its readiness does not wait.
            let default = administrator.get("/api/v1/namespaces/default").await;
            default.map(drop).map_err(|refused| refused.to_string())
        })
        .await;
    }

    /// Everything of this server; its logs are under `run`.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Who may do everything.
    pub fn administrator(&self) -> &Caller {
        &self.administrator
    }

    /// Somebody with this token.
    pub fn caller(&self, token: &str) -> Caller {
        Caller::new(&self.address, &self.root, token)
    }

    /// A client's configuration with this token, as `KUBECONFIG` names it.
    pub fn kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        let root = self.folder.path("root.pem");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{
                "name": "test",
                "cluster": {"server": format!("https://{}", self.address), "certificate-authority": root},
            }],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        let path = self.folder.path(&format!("{name}.kubeconfig"));
        // JSON is YAML.
        fs::write(&path, config.to_string()).expect("a file");
        path
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes a namespace with these labels, its service account `default`, and its ConfigMap of the server's root, as controllers do.
    pub async fn namespace(&self, name: &str, labels: Value) {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        });
        self.administrator.apply(&namespace).await.expect("a namespace");
        self.account(name, "default").await;
        let root = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt", "namespace": name},
            "data": {"ca.crt": self.root},
        });
        self.administrator.apply(&root).await.expect("a ConfigMap");
    }

    /// Makes a service account.
    pub async fn account(&self, namespace: &str, name: &str) {
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace},
        });
        self.administrator.apply(&account).await.expect("a service account");
    }

    /// A token of a service account, as a kubelet asks for it: for an audience (the server itself if empty), bound to a pod if one is given.
    pub async fn token(&self, namespace: &str, account: &str, audience: &str, pod: Option<&Value>) -> String {
        let audiences = if audience.is_empty() { vec![] } else { vec![audience] };
        let mut request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": audiences, "expirationSeconds": 3600},
        });
        if let Some(pod) = pod {
            request["spec"]["boundObjectRef"] = json!({
                "apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"],
            });
        }
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let answer = self.administrator.post(&path, &request).await.expect("a token");
        answer["status"]["token"].as_str().expect("a token").to_owned()
    }

    /// Installs custom resource definitions, and waits until objects of them may be made.
    pub async fn define(&self, definitions: &[Value]) {
        for definition in definitions {
            self.administrator.apply(definition).await.unwrap_or_else(|refused| {
                panic!("{}: {refused}", definition["metadata"]["name"]);
            });
        }
        for definition in definitions.iter().filter(|one| one["kind"] == "CustomResourceDefinition") {
            self.established(definition["metadata"]["name"].as_str().expect("a name")).await;
        }
    }

    async fn established(&self, name: &str) {
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        eventually(&format!("{name} is established"), async || {
            let definition = self.administrator.get(&path).await.map_err(|refused| refused.to_string())?;
            let conditions = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let is = |kind: &str, status: &str| {
                conditions.iter().any(|condition| condition["type"] == kind && condition["status"] == status)
            };
            assert!(!is("NonStructuralSchema", "True"), "{name}: {conditions:#?}");
            if !is("Established", "True") {
                return Err(format!("{conditions:#?}"));
            }
            // What is established is served a moment later.
            let spec = &definition["spec"];
            let text = |value: &Value| value.as_str().expect("text").to_owned();
            for version in
                spec["versions"].as_array().expect("versions").iter().filter(|one| one["served"] == true)
            {
                let (group, version) = (text(&spec["group"]), text(&version["name"]));
                let path = format!("/apis/{group}/{version}/{}", text(&spec["names"]["plural"]));
                self.administrator.get(&path).await.map_err(|refused| refused.to_string())?;
            }
            Ok(())
        })
        .await;
    }

    /// `kill -9` for the server; etcd stays.
    pub async fn kill(&mut self) {
        self.server.kill().await;
    }

    /// SIGTERM for the server, and waits until it has ended; etcd stays.
    pub async fn stop(&mut self) {
        self.server.stop().await;
    }

    /// Starts the server again, at the same address, and waits until it is ready.
    pub async fn start_again(&mut self) {
        self.server = Process::start(self.server.program().clone(), &self.folder);
        self.ready().await;
    }

    /// Takes a backup of all that there is, for which both end and start again.
    pub async fn back_up(&mut self) {
        self.exchange(copy).await;
    }

    /// Puts that in the place of all that there is, versions included, for which both end and start again.
    pub async fn restore(&mut self) {
        self.exchange(|data, backup| {
            fs::remove_dir_all(data).expect("what there was goes");
            copy(backup, data);
        })
        .await;
    }

    async fn exchange(&mut self, change: impl FnOnce(&Path, &Path)) {
        self.server.kill().await;
        self.etcd.stop().await;
        let own = self.folder.path("etcd");
        change(&own.join("data"), &own.join("backup"));
        self.etcd = Process::start(self.etcd.program().clone(), &self.folder);
        self.start_again().await;
    }

    /// Both processes' last lines.
    pub fn tail(&self) -> String {
        self.server.tail() + &self.etcd.tail()
    }
}

fn start_etcd(folder: &Folder) -> Process {
    let own = folder.path("etcd");
    fs::create_dir(&own).expect("a folder");
    // Names of sockets are looked for where it runs.
    let line = format!(
        "cd {}; exec etcd --data-dir=data --listen-client-urls=unix://{ETCD} --advertise-client-urls=unix://{ETCD} \
         --listen-peer-urls=unix://{ETCD_PEER} --initial-advertise-peer-urls=unix://{ETCD_PEER} \
         --initial-cluster=default=unix://{ETCD_PEER} --logger=zap --log-level=warn",
        own.display()
    );
    Process::start(Program::new("etcd", "sh").flag("-ec", line), folder)
}

/// A folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    // Else etcd refuses it.
    fs::set_permissions(to, fs::metadata(from).expect("a folder").permissions()).expect("a mode");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy(&from, &to),
            false => drop(fs::copy(&from, &to).expect("a file")),
        }
    }
}

/// A port that nobody else will be given: the server shares it by `SO_REUSEPORT`.
fn reserve(ip: Ipv4Addr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    socket.set_reuse_port(true).expect("a port may be shared");
    socket.bind(&SocketAddr::from((ip, 0)).into()).expect("a port");
    socket
}

/// Writes the server's certificate, the key by which it signs tokens, and who its administrator is. Gives the root, PEM.
fn credentials(folder: &Folder, ip: Ipv4Addr) -> String {
    let write = |name: &str, text: &str| fs::write(folder.path(name), text).expect("a file");
    let root_key = rcgen::KeyPair::generate().expect("a key");
    let mut root = rcgen::CertificateParams::default();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    root.distinguished_name.push(rcgen::DnType::CommonName, "the API server's root");
    let root = root.self_signed(&root_key).expect("a root").pem();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&root, root_key).expect("an issuer");
    let key = rcgen::KeyPair::generate().expect("a key");
    // Also at the virtual IP, at which pods of a real node ask it.
    let names = [ip.to_string(), "10.96.0.1".to_owned(), "kubernetes.default.svc".to_owned()];
    let mut own = rcgen::CertificateParams::new(names).expect("names");
    own.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let own = own.signed_by(&key, &issuer).expect("a certificate");
    write("root.pem", &root);
    write("server.pem", &own.pem());
    write("server-key.pem", &key.serialize_pem());
    let accounts = rcgen::KeyPair::generate().expect("a key");
    write("accounts-key.pem", &accounts.serialize_pem());
    write("accounts.pem", &accounts.public_key_pem());
    write("tokens.csv", &format!("{ADMINISTRATOR},administrator,1,\"system:masters\"\n"));
    root
}

fn program(path: &Path, folder: &Folder, address: SocketAddr) -> Program {
    Program::new("kube-apiserver", path)
        .flag("--etcd-servers", format!("unix://{}/{ETCD}", folder.path("etcd").display()))
        .flag("--bind-address", address.ip().to_string())
        .flag("--advertise-address", address.ip().to_string())
        .flag("--secure-port", address.port().to_string())
        .arg("--permit-port-sharing")
        .flag("--tls-cert-file", folder.path("server.pem"))
        .flag("--tls-private-key-file", folder.path("server-key.pem"))
        .flag("--token-auth-file", folder.path("tokens.csv"))
        .flag("--service-account-issuer", "https://kubernetes.default.svc")
        .flag("--service-account-signing-key-file", folder.path("accounts-key.pem"))
        .flag("--service-account-key-file", folder.path("accounts.pem"))
        .flag("--authorization-mode", "RBAC")
        // What is on by default has the webhooks, limits and service accounts; with this, whoever makes an object that another owns
        // must be allowed to, as some distributions have it.
        .flag("--enable-admission-plugins", "OwnerReferencesPermissionEnforcement")
        .flag("--service-cluster-ip-range", SERVICE_NETWORKS)
        .flag("--endpoint-reconciler-type", "none")
        // Webhooks are called at the addresses behind their Service: there is no kube-proxy.
        .arg("--enable-aggregator-routing")
}
