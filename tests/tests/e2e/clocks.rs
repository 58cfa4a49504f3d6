//! A clock that is off by an hour, to either side: what depends on it is not done, and what is told names the clocks.
//!
//! Nobody's clock is turned: the certificates are of another hour.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tulle_certs::issue::Authority;
use tulle_certs::key::csr;
use tulle_certs::pem::encode_certificate;
use tulle_certs::{PrivateKey, control_plane_id};
use tulle_tests::identity::{self, Identity};
use tulle_tests::{Process, Program, Workload, World, binary, eventually, within};

const HOUR: Duration = Duration::from_secs(3600);

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

async fn says(workload: &Workload, words: &[&str]) {
    eventually(&format!("{} says {words:?}", workload.name()), async || {
        let said = workload.diagnostics();
        let told = said.lines().any(|line| words.iter().all(|word| line.contains(word)));
        if told { Ok(()) } else { Err(said) }
    })
    .await;
}

/// Somebody with the control plane's name and a certificate that was issued `at` some other time, who lets everybody in.
async fn control_plane(authority: &Authority, at: SystemTime) -> SocketAddr {
    let (key, id) = (PrivateKey::generate().unwrap(), control_plane_id(authority.trust_domain()));
    let request = csr(&key, Some(&id)).unwrap();
    let issued = authority.issue(&request, &id, HOUR, at).unwrap();
    let shown = Identity { chain: issued.chain_with_root(), key };
    let acceptor = TlsAcceptor::from(shown.server(&[b"h2"]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Whoever refuses the certificate has left by then.
            drop(acceptor.accept(stream).await);
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_hour_is_not_used() {
    let world = World::strict().await;
    let (authority, now) = (world.authority(), SystemTime::now());
    for (name, at, lifetime, reason) in [
        ("early", now + HOUR, HOUR, "tls_not_yet_valid"),
        ("late", now - HOUR * 3 / 4, HOUR / 12, "tls_expired"),
    ] {
        let given = Identity::issue_at(&authority, name, at, lifetime);
        let path = |what: &str| world.folder().path(&format!("{name}-{what}.pem"));
        let chain: String = given.chain.iter().map(|certificate| encode_certificate(certificate)).collect();
        write(&path("cert"), &chain);
        write(&path("key"), &given.key.to_pem());
        write(&path("roots"), &authority.bundle().to_pem());
        let workload = world
            .workload(name)
            .setting("--identity-cert-file", &path("cert").display().to_string())
            .setting("--identity-key-file", &path("key").display().to_string())
            .setting("--identity-trust-bundle-file", &path("roots").display().to_string())
            .start_unready()
            .await;
        says(&workload, &[reason, "compare", "clocks"]).await;
        workload.unready().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_a_control_plane_of_another_hour_is_told_so() {
    let world = World::strict().await;
    let authority = identity::authority(&identity::trust_domain());
    let early = control_plane(&authority, SystemTime::now() + HOUR).await;
    let file = fs::read_to_string(world.token("web", &[])).unwrap();
    let token = file.lines().find(|line| line.split('.').count() == 3).unwrap();
    let path = world.folder().path("early.token");
    write(&path, &format!("{token}\n{}\n", authority.pin().unwrap()));
    let web = world
        .workload("web")
        .setting("--control-plane-address", &early.to_string())
        .setting("--identity-token-file", &path.display().to_string())
        .start_unready()
        .await;
    says(&web, &["tls_not_yet_valid", "compare", "clocks"]).await;
    web.unready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_does_not_start_with_a_root_of_an_hour_to_come() {
    let world = World::strict().await;
    let state = world.folder().path("early-state");
    fs::create_dir(&state).unwrap();
    // A new root is back-dated by an hour.
    let at = SystemTime::now() + HOUR * 2;
    let early = Authority::generate(&identity::trust_domain(), HOUR * 24, at).unwrap();
    write(&state.join("ca-key.pem"), &early.key().to_pem());
    write(&state.join("ca.pem"), &encode_certificate(early.root()));
    let program = Program::new("early", binary("tulle-control-plane"))
        .flag("--config-dir", world.config_folder())
        .flag("--state-dir", &state)
        .flag("--grpc-address", "127.0.0.1:0")
        .flag("--metrics-address", "127.0.0.1:0");
    let mut process = Process::start(program, world.folder());
    let status = within("the control plane ends", process.wait()).await;
    let said = format!("{}{}", process.stdout(), process.stderr());
    assert!(!status.success() && said.contains("mend the clock"), "{said}");
}
