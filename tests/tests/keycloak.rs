//! Tokens of a real Keycloak, by the client-credentials flow (RFC 6749 §4.4), its keys fetched through the mesh, and rotated as its administrators do.
//!
//! Keycloak is a workload of the mesh. Its distribution is a Maven artifact, at the version of `tests/peers/keycloak/pom.xml`; it needs Java 17
//! and takes half a minute to start.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::large_futures, reason = "tests")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tulle_tests::app::{App, full};
use tulle_tests::{Folder, Head, Process, Program, Wire, Workload, World, eventually};

/// It builds itself at its first start.
const START: Duration = Duration::from_secs(300);
/// How its own log says where it listens.
const LISTENS: &str = "Listening on: http://";

struct Keycloak {
    address: SocketAddr,
    process: Process,
}

impl Keycloak {
    /// Starts it with the realm `shop` (`tests/peers/keycloak/shop.json`), in memory.
    async fn start(folder: &Folder) -> Self {
        let path = std::env::var_os("TULLE_TEST_KEYCLOAK");
        let unpacked: PathBuf = path
            .expect("TULLE_TEST_KEYCLOAK names the folder of Keycloak's distribution; `.ci/run keycloak` unpacks it")
            .into();
        // It writes into its own folder.
        let own = folder.path("keycloak");
        let copied = Command::new("cp").arg("-r").arg(&unpacked).arg(&own).status().unwrap();
        assert!(copied.success(), "{} cannot be copied", unpacked.display());
        let temporary = folder.path("java");
        std::fs::create_dir(&temporary).unwrap();
        let realm = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/keycloak/shop.json");
        std::fs::create_dir_all(own.join("data/import")).unwrap();
        std::fs::copy(realm, own.join("data/import/shop.json")).unwrap();
        let program = Program::new("keycloak", "/bin/bash")
            .arg(own.join("bin/kc.sh"))
            .arg("start-dev")
            .arg("--http-host=127.0.0.1")
            .arg("--http-port=0")
            .arg("--db=dev-mem")
            .arg("--import-realm")
            // It would leave both in /tmp.
            .env("JAVA_OPTS_APPEND", format!("-Djava.io.tmpdir={} -XX:-UsePerfData", temporary.display()))
            .env("KC_BOOTSTRAP_ADMIN_USERNAME", "admin")
            .env("KC_BOOTSTRAP_ADMIN_PASSWORD", "admin");
        let mut process = Process::start(program, folder);
        let listens = async {
            loop {
                if let Some(status) = process.ended() {
                    panic!("Keycloak ended: {status}\n{}", process.tail());
                }
                let said = process.stdout();
                let address: Option<SocketAddr> = said
                    .split_once(LISTENS)
                    .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
                if let Some(address) = address {
                    return address;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let address = tokio::time::timeout(START, listens).await.expect("Keycloak starts");
        Self { address, process }
    }

    /// What `iss` says in its tokens.
    fn issuer(&self) -> String {
        format!("http://{}/realms/shop", self.address)
    }

    async fn post(&self, path: &str, headers: &str, body: &str) -> (Head, Vec<u8>) {
        let mut wire = Wire::connect(self.address).await;
        wire.send(format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        ))
        .await;
        wire.response().await
    }

    async fn granted(&self, realm: &str, form: &str) -> String {
        let path = format!("/realms/{realm}/protocol/openid-connect/token");
        let (head, body) =
            self.post(&path, "content-type: application/x-www-form-urlencoded\r\n", form).await;
        assert_eq!(head.status(), 200, "{form}: {}", String::from_utf8_lossy(&body));
        let answer: Value = serde_json::from_slice(&body).unwrap();
        answer["access_token"].as_str().unwrap().to_owned()
    }

    /// A token of a client of the realm, by its own secret.
    async fn token(&self, client: &str) -> String {
        let form = format!("grant_type=client_credentials&client_id={client}&client_secret={client}-secret");
        self.granted("shop", &form).await
    }

    /// Signs with a new key from now on; the old one is still in the set.
    async fn rotate(&self) {
        let form = "grant_type=password&client_id=admin-cli&username=admin&password=admin";
        let admin = self.granted("master", form).await;
        let key = json!({
            "name": "newer", "providerId": "rsa-generated", "providerType": "org.keycloak.keys.KeyProvider",
            "config": { "priority": ["500"], "active": ["true"], "enabled": ["true"], "keySize": ["2048"], "algorithm": ["RS256"] },
        });
        let headers = format!("authorization: Bearer {admin}\r\ncontent-type: application/json\r\n");
        let (head, body) = self.post("/admin/realms/shop/components", &headers, &key.to_string()).await;
        assert_eq!(head.status(), 201, "{}", String::from_utf8_lossy(&body));
    }
}

async fn ask(by: &Workload, token: &str) -> (Head, String) {
    let mut wire = by.connect("orders").await;
    let token = if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
    wire.send(format!("GET /cart HTTP/1.1\r\nhost: orders\r\n{token}connection: close\r\n\r\n")).await;
    let (head, body) = wire.response().await;
    (head, String::from_utf8_lossy(&body).into_owned())
}

async fn answers(by: &Workload, token: &str, status: u16, reason: Option<&str>) -> (Head, String) {
    eventually(&format!("{status} {reason:?} is answered"), async || {
        let (head, body) = ask(by, token).await;
        let is_so = (head.status(), head.reason()) == (status, reason);
        if is_so { Ok((head, body)) } else { Err(format!("{head:?} {body}")) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Keycloak, which `.ci/run keycloak` unpacks"]
async fn r17_tokens_of_a_keycloak_in_the_mesh_are_taken_and_its_rotation_is_followed() {
    let folder = Folder::new();
    let mut keycloak = Keycloak::start(&folder).await;
    let world = World::strict().await;
    for service in ["keycloak", "orders"] {
        world.service(service, "http");
    }
    let app = App::http1(async |request: Request<Incoming>| {
        let told = |name: &str| {
            let value = request.headers().get(name).map(|value| value.to_str().unwrap());
            format!("{name}={}\n", value.unwrap_or("-"))
        };
        Response::new(full(format!("{}{}", told("x-client"), told("authorization"))))
    })
    .await;
    world.yaml(
        "tokens.yaml",
        &format!(
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{name: keycloak}}\nspec:\n  \
             targetRefs: [{{group: '', kind: Service, name: orders}}]\n  issuers:\n  - issuer: {}\n    audiences: [orders]\n    jwks:\n      \
             url: http://keycloak.default:8080/realms/shop/protocol/openid-connect/certs\n      service: {{name: keycloak, port: 8080}}\n    \
             claimsToHeaders: [{{header: x-client, claim: azp}}]\n---\napiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{name: buyers}}\nspec:\n  targetRefs: [{{group: '', kind: Service, name: orders}}]\n  rules:\n  - when: [{{claim: \
             realm_access.roles, values: [buyer]}}]\n",
            keycloak.issuer()
        ),
    );
    let server = world.workload("keycloak").serves("keycloak", keycloak.address).start().await;
    server.counts("tulle_registered", &[], 1.0).await;
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = world.workload("web").calls("orders").start().await;

    answers(&web, "", 401, Some("token_required")).await;
    let old = keycloak.token("web").await;
    let (_, told) = answers(&web, &old, 200, None).await;
    assert_eq!(told, "x-client=web\nauthorization=-\n");
    // As the workload, by mutual TLS.
    server
        .logs(&[("source", json!(orders.identity())), ("tls", json!("mtls")), ("status", json!(200))])
        .await;
    // Not for this audience; and for it, but of somebody who is no buyer.
    let (head, _) = answers(&web, &keycloak.token("other").await, 401, Some("token_invalid")).await;
    assert!(head.get("www-authenticate").is_some_and(|asks| asks.contains("audience")), "{head:?}");
    let (head, _) = answers(&web, &keycloak.token("guest").await, 403, Some("policy_denied")).await;
    assert!(head.get("www-authenticate").is_some_and(|asks| asks.contains("insufficient_scope")), "{head:?}");

    keycloak.rotate().await;
    let new = keycloak.token("web").await;
    assert_ne!(new.split('.').next(), old.split('.').next(), "another key");
    answers(&web, &new, 200, None).await;
    assert_eq!(ask(&web, &old).await.0.status(), 200, "the old key is in the set still");

    // Without Keycloak, what was fetched last goes on to verify.
    let last = keycloak.token("web").await;
    keycloak.process.stop().await;
    assert_eq!(ask(&web, &last).await.0.status(), 200);
}
