//! Identities that others issue: a Workload API and a certificate service that are none of ours, and files. The control plane issues nothing in these meshes.

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tulle_certs::issue::Authority;
use tulle_certs::key::csr;
use tulle_certs::serving::ServingAuthority;
use tulle_certs::{PrivateKey, SpiffeId, TrustBundle, control_plane_id, pem};
use tulle_tests::app::App;
use tulle_tests::identity::{authority, spiffe_id, trust_domain};
use tulle_tests::{Folder, Mode, Process, Program, Wire, Workload, World, binary, eventually, peer, within};

const HOUR: Duration = Duration::from_secs(3600);
const GET: &str = "GET / HTTP/1.1\r\nhost: orders\r\n\r\n";

/// A certificate with those above it, and its key.
struct Issued {
    id: SpiffeId,
    chain: Vec<Vec<u8>>,
    key: PrivateKey,
}

/// `control-plane`, or a workload of that name.
fn id_of(name: &str) -> SpiffeId {
    match name {
        "control-plane" => control_plane_id(&trust_domain()),
        name => spiffe_id(&trust_domain(), name),
    }
}

fn issue(authority: &Authority, name: &str) -> Issued {
    let (key, id) = (PrivateKey::generate().unwrap(), id_of(name));
    let issued = authority.issue(&csr(&key, None).unwrap(), &id, HOUR, SystemTime::now()).unwrap();
    Issued { id, chain: issued.chain.iter().map(|der| der.to_vec()).collect(), key }
}

fn both(old: &Authority, new: &Authority) -> TrustBundle {
    let mut bundle = old.bundle().clone();
    bundle.merge(new.bundle()).unwrap();
    bundle
}

/// A folder for the control plane's state in which these may register for the service of their name.
fn state_folder(folder: &Folder, names: &[&str]) -> PathBuf {
    let state = folder.path("state");
    std::fs::DirBuilder::new().mode(0o700).create(&state).unwrap();
    let grants: serde_json::Map<String, Value> =
        names.iter().map(|name| (id_of(name).to_string(), json!([name]))).collect();
    std::fs::write(state.join("grants.json"), Value::from(grants).to_string()).unwrap();
    state
}

async fn asks(wire: &mut Wire) {
    wire.send(GET).await;
    let (head, body) = wire.response().await;
    assert_eq!((head.status(), body.as_slice()), (200, b"hello".as_slice()), "{head:?}");
}

/// Waits until the proxy has obtained so many certificates.
async fn obtained(workload: &Workload, count: u32) {
    workload.counts("tulle_identity_renewals_total", &[("result", "ok")], f64::from(count)).await;
}

async fn says(workload: &Workload, words: &[&str]) {
    eventually(&format!("{} says {words:?}", workload.name()), async || {
        let said = workload.diagnostics();
        let found = said.lines().any(|line| words.iter().all(|word| line.contains(word)));
        if found { Ok(()) } else { Err(said) }
    })
    .await;
}

/// A Workload API in Python, with a socket for each of these.
struct Agent {
    folder: Folder,
    names: Vec<&'static str>,
    process: Option<Process>,
}

impl Agent {
    fn new(names: &[&'static str]) -> Self {
        Self { folder: Folder::new(), names: names.to_vec(), process: None }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.path(&format!("{name}.sock"))
    }

    fn address(&self, name: &str) -> String {
        format!("unix://{}", self.socket(name).display())
    }

    /// What it tells from now on: to each a new certificate, and these roots. To who is not among them: nothing.
    fn tell(&self, authority: &Authority, bundle: &TrustBundle, names: &[&str]) {
        let roots: Vec<u8> = bundle.roots().iter().flat_map(|root| root.to_vec()).collect();
        let told = |name: &&str| {
            let said = match names.contains(name) {
                true => {
                    let Issued { id, chain, key } = issue(authority, name);
                    let key = pem::blocks(&key.to_pem()).unwrap()[0].der.to_vec();
                    json!([{
                        "spiffe_id": id.to_string(),
                        "x509_svid": STANDARD.encode(chain.concat()),
                        "x509_svid_key": STANDARD.encode(key),
                        "bundle": STANDARD.encode(&roots),
                    }])
                }
                false => json!("no identity issued"),
            };
            ((*name).to_owned(), said)
        };
        let all: serde_json::Map<String, Value> = self.names.iter().map(told).collect();
        std::fs::write(self.folder.path("told.new"), Value::from(all).to_string()).unwrap();
        std::fs::rename(self.folder.path("told.new"), self.folder.path("told.json")).unwrap();
    }

    /// Starts it; `None` where there is no Python.
    async fn start(&mut self) -> Option<()> {
        let program = peer::python("workload_api.py")?.arg(self.folder.path("told.json"));
        let socket = |name: &&str| format!("{name}={}", self.socket(name).display());
        let program = self.names.iter().map(socket).fold(program, |program, one| program.arg(one));
        self.process = Some(Process::start(program, &self.folder));
        for name in &self.names {
            let path = self.socket(name);
            eventually("the agent serves", async || {
                let connected = tokio::net::UnixStream::connect(&path).await;
                connected.map(drop).map_err(|error| error.to_string())
            })
            .await;
        }
        Some(())
    }

    async fn kill(&mut self) {
        self.process.take().unwrap().kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_of_a_workload_api_rotates_leaves_and_roots_without_losing_a_connection() {
    let all = ["control-plane", "orders", "web"];
    let mut agent = Agent::new(&["control-plane", "orders", "web", "late"]);
    let (old, new) = (authority(&trust_domain()), authority(&trust_domain()));
    agent.tell(&old, old.bundle(), &all);
    let Some(()) = agent.start().await else { return };
    let state = state_folder(&agent.folder, &["orders"]);
    let address = agent.address("control-plane");
    let world = World::start_with(Mode::Strict, |program| {
        program.without("--state-dir").flag("--state-dir", state).flag("--identity-workload-api", address)
    })
    .await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let orders = world.workload("orders").serves("orders", app.address());
    let orders = orders.setting("--identity-workload-api", &agent.address("orders")).start().await;
    // As every workload is told it where there is SPIRE.
    let web = world
        .workload("web")
        .calls("orders")
        .program(|program| program.env("SPIFFE_ENDPOINT_SOCKET", agent.address("web")));
    let web = web.start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    web.reaches("orders").await;
    let mut wire = web.connect("orders").await;
    asks(&mut wire).await;

    // New leaves; both roots; leaves of the new root; the new root alone.
    let steps = [
        (&old, old.bundle().clone()),
        (&old, both(&old, &new)),
        (&new, both(&old, &new)),
        (&new, new.bundle().clone()),
    ];
    for (step, (authority, bundle)) in steps.iter().enumerate() {
        agent.tell(authority, bundle, &all);
        for workload in [&orders, &web] {
            obtained(workload, u32::try_from(step).unwrap() + 2).await;
        }
        asks(&mut wire).await;
        web.reaches("orders").await;
    }
    let identity = Program::new("identity", binary("tulle")).arg("identity");
    let shown = identity.flag("--admin", web.admin().to_string()).flag("--output", "json").output();
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["source"], format!("the Workload API at {}", agent.address("web")), "{shown}");
    assert_eq!(shown["trust_bundles"][0]["roots"][0]["pin"], new.pin().unwrap().to_string(), "{shown}");

    // Without the agent all goes on; once it is back, so does what it tells.
    agent.kill().await;
    says(&web, &["the Workload API at", "the old one serves on"]).await;
    asks(&mut wire).await;
    web.reaches("orders").await;
    agent.tell(&new, new.bundle(), &all);
    agent.start().await.unwrap();
    obtained(&web, 6).await;
    asks(&mut wire).await;

    // Who is not registered is told so, and is in as soon as it is.
    let late = world.workload("late").setting("--identity-workload-api", &agent.address("late"));
    let late = late.start_unready().await;
    says(&late, &["no identity issued", "register"]).await;
    agent.tell(&new, new.bundle(), &["control-plane", "orders", "web", "late"]);
    obtained(&late, 1).await;

    // The control plane has made no authority of its own.
    assert!(!agent.folder.path("state/ca-key.pem").exists());
}

/// Certificate, key and roots as files, one after the other.
fn write_files(folder: &Path, authority: &Authority, issued: &Issued) -> [PathBuf; 3] {
    let paths = ["cert.pem", "key.pem", "roots.pem"]
        .map(|kind| folder.join(format!("{}-{kind}", issued.id.service_account())));
    let chain: String = issued.chain.iter().map(|der| pem::encode("CERTIFICATE", der)).collect();
    std::fs::write(&paths[0], chain).unwrap();
    std::fs::write(&paths[1], issued.key.to_pem().as_bytes()).unwrap();
    std::fs::write(&paths[2], authority.bundle().to_pem()).unwrap();
    paths
}

const FILE_FLAGS: [&str; 3] = ["--identity-cert-file", "--identity-key-file", "--identity-trust-bundle-file"];

/// A token of a pod of that service account.
fn pod_token(name: &str) -> String {
    let claims = json!({
        "aud": ["istio-ca"],
        "kubernetes.io": {"namespace": "default", "serviceaccount": {"name": name}},
    });
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_of_files_and_a_certificate_service_as_strict_as_istio_csr() {
    let (folder, authority) = (Folder::new(), authority(&trust_domain()));
    let path = |name: &str| folder.path(name);
    let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
    let serving = ServingAuthority::generate("Test", HOUR, SystemTime::now()).unwrap();
    let server = serving.issue(&["istio-csr.test".to_owned()], HOUR, SystemTime::now()).unwrap();
    write("ca.pem", &authority.bundle().to_pem());
    write("ca-key.pem", &authority.key().to_pem());
    write("server.pem", &server.chain_pem());
    write("server-key.pem", &server.key_pem());
    write("server-roots.pem", &serving.certificate_pem());
    write("tokens.json", &json!({ pod_token("web"): id_of("web").to_string() }).to_string());
    let Some(program) = peer::python("certificate_service.py") else { return };
    let mut service = Process::start(program.arg(path("")), &folder);
    let port: u16 = eventually("the certificate service prints its port", async || {
        assert!(service.ended().is_none(), "{}", service.tail());
        service.stdout().trim().parse().map_err(|_| "not yet".to_owned())
    })
    .await;

    let state = state_folder(&folder, &[]);
    let own = write_files(&path(""), &authority, &issue(&authority, "control-plane"));
    let world = World::start_with(Mode::Strict, |program| {
        let program = program.without("--state-dir").flag("--state-dir", &state);
        FILE_FLAGS.iter().zip(&own).fold(program, |program, (flag, path)| program.flag(flag, path))
    })
    .await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let first = issue(&authority, "orders");
    let files = write_files(&path(""), &authority, &first);
    // What it may register for is said by a token, which is no identity here.
    let token = Program::new("token", binary("tulle")).arg("token").arg("create");
    let token = token.flag("--state-dir", &state).flag("--workload-identity", "default/orders");
    let output = token.flag("--service", "orders").flag("--out", path("orders.token")).output();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let orders = world.workload("orders").serves("orders", app.address());
    let orders = orders.setting("--register-token-file", path("orders.token").to_str().unwrap());
    let orders = FILE_FLAGS
        .iter()
        .zip(&files)
        .fold(orders, |orders, (flag, path)| orders.setting(flag, path.to_str().unwrap()));
    let orders = orders.start().await;
    write("web.token", &pod_token("web"));
    write("thief.token", &pod_token("thief"));
    let by_service = |name: &str| {
        let token = path(&format!("{name}.token"));
        let workload = world.workload(name).calls("orders");
        let workload = workload.setting("--identity-ca-address", &format!("127.0.0.1:{port}"));
        let workload = workload.setting("--identity-ca-server-name", "istio-csr.test");
        let workload =
            workload.setting("--identity-ca-roots-file", path("server-roots.pem").to_str().unwrap());
        workload.setting("--identity-token-file", token.to_str().unwrap())
    };
    let web = by_service("web").start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    web.reaches("orders").await;
    let mut wire = web.connect("orders").await;
    asks(&mut wire).await;
    let asked = std::fs::read_to_string(path("asked.log")).unwrap();
    assert_eq!(asked.trim(), format!("issued for {}", id_of("web")));

    // The files are changed one by one, as whoever renews them does.
    let second = issue(&authority, "orders");
    let chain: String = second.chain.iter().map(|der| pem::encode("CERTIFICATE", der)).collect();
    std::fs::write(&files[0], chain).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    asks(&mut wire).await;
    web.reaches("orders").await;
    std::fs::write(&files[1], second.key.to_pem().as_bytes()).unwrap();
    obtained(&orders, 2).await;
    asks(&mut wire).await;
    web.reaches("orders").await;
    assert!(!orders.diagnostics().contains("not issued for this private key"), "{}", orders.diagnostics());

    // A token that the service does not know; its own words are told, with what may be wrong.
    let thief = by_service("thief").start_unready().await;
    says(&thief, &["request authenticate failure", "audience", &port.to_string()]).await;

    // The service is gone: what it has issued serves on.
    within("the service ends", service.kill()).await;
    asks(&mut wire).await;
    web.reaches("orders").await;
}

/// As an operator does it, in a folder.
fn openssl(folder: &Path, command: &str) {
    let arguments = command.split_whitespace();
    let output = std::process::Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "openssl {command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A key, and the certificate of a root or of an intermediate under one, in a new state folder.
fn made_by_openssl(folder: &Folder, own: &str, above: Option<&str>) -> PathBuf {
    let state = folder.path("state");
    std::fs::DirBuilder::new().mode(0o700).create(&state).unwrap();
    let root = above.unwrap_or(own);
    openssl(&state, &format!("genpkey {root} -out root-key.pem"));
    let usage = "-addext keyUsage=critical,keyCertSign,cRLSign";
    openssl(
        &state,
        &format!("req -x509 -new -key root-key.pem -subj /CN=Company -days 30 {usage} -out root.pem"),
    );
    if above.is_none() {
        std::fs::rename(state.join("root-key.pem"), state.join("ca-key.pem")).unwrap();
        std::fs::rename(state.join("root.pem"), state.join("ca.pem")).unwrap();
    } else {
        openssl(&state, &format!("genpkey {own} -out ca-key.pem"));
        openssl(&state, "req -new -key ca-key.pem -subj /CN=Issuer -out issuer.csr");
        let extensions = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n";
        std::fs::write(state.join("issuer.ext"), extensions).unwrap();
        let by = "-CA root.pem -CAkey root-key.pem -CAcreateserial -days 20 -extfile issuer.ext";
        openssl(&state, &format!("x509 -req -in issuer.csr {by} -out issuer.pem"));
        let chain = ["issuer.pem", "root.pem"].map(|name| std::fs::read_to_string(state.join(name)).unwrap());
        std::fs::write(state.join("ca.pem"), chain.concat()).unwrap();
        std::fs::remove_file(state.join("root-key.pem")).unwrap();
    }
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(state.join("ca-key.pem"), private).unwrap();
    state
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_under_roots_and_intermediates_that_openssl_made() {
    const P256: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256";
    const P384: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-384";
    const ED25519: &str = "-algorithm ED25519";
    const RSA: &str = "-algorithm RSA -pkeyopt rsa_keygen_bits:3072";
    if peer::python("certificate_service.py").is_none() {
        return;
    }
    let kinds = [
        (P256, None),
        (P384, None),
        (ED25519, None),
        (P256, Some(RSA)),
        (P384, Some(P256)),
        (ED25519, Some(P384)),
    ];
    for (own, above) in kinds {
        let folder = Folder::new();
        let state = made_by_openssl(&folder, own, above);
        let world = World::start_with(Mode::Strict, |program| {
            program.without("--state-dir").flag("--state-dir", &state)
        })
        .await;
        world.service("orders", "http");
        let app = App::saying("hello").await;
        let token = |name: &str, services: &[&str]| {
            let path = folder.path(&format!("{name}.token"));
            let program = Program::new("token", binary("tulle")).arg("token").arg("create");
            let program = program.flag("--state-dir", &state).flag("--out", &path);
            let program = program.flag("--workload-identity", format!("default/{name}"));
            let program = services.iter().fold(program, |program, one| program.flag("--service", *one));
            let output = program.output();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            path.to_str().unwrap().to_owned()
        };
        let orders = world.workload("orders").serves("orders", app.address());
        let orders = orders.setting("--identity-token-file", &token("orders", &["orders"])).start().await;
        let web = world.workload("web").calls("orders");
        let web = web.setting("--identity-token-file", &token("web", &[])).start().await;
        orders.counts("tulle_registered", &[], 1.0).await;
        web.reaches("orders").await;
        let record = orders.logs(&[("direction", json!("inbound")), ("status", json!(200))]).await;
        assert_eq!(
            (&record["tls"], &record["source"]),
            (&json!("mtls"), &json!(web.identity())),
            "{own} {above:?}"
        );
    }
}
