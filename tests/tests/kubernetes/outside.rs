//! A workload outside the cluster: it joins by a token, and what it registers is an EndpointSlice with a lease on the real API server, by which
//! every replica knows it.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Response;
use serde_json::{Value, json};
use tulle_tests::app::{App, full};
use tulle_tests::netns::in_a_node;
use tulle_tests::pod::Pod;
use tulle_tests::{DEADLINE, Process, Program, binary, eventually, eventually_within};

use crate::chart::SYSTEM;
use crate::mesh::{Mesh, SHOP};

/// The Service that it registers for, and its service account.
const LEDGER: &str = "ledger";
/// A lease (30 s), and how long it is over before it is taken away: passes before anything can happen.
const LEASE: Duration = Duration::from_secs(62);
/// Where its proxy is dialled.
const PORT: u16 = 9080;

/// A join token, made by `tulle token create` with the keys of the mesh's Secret.
async fn token(mesh: &Mesh) -> PathBuf {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": SYSTEM, "name": "tulle-identity"},
    });
    let secret = mesh.server.administrator().now(&secret).await.unwrap();
    let state = mesh.server.folder().path("state");
    fs::create_dir(&state).unwrap();
    for name in ["ca.pem", "ca-key.pem", "token-key.pem"] {
        let path = state.join(name);
        fs::write(&path, STANDARD.decode(secret["data"][name].as_str().unwrap()).unwrap()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let path = mesh.server.folder().path("ledger.token");
    let made = Program::new("token", binary("tulle"))
        .arg("token")
        .arg("create")
        .flag("--state-dir", &state)
        .flag("--workload-identity", format!("{SHOP}/{LEDGER}"))
        .flag("--service", LEDGER)
        .flag("--out", &path)
        .output();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    path
}

/// Its proxy, which registers at the first replica.
fn start(mesh: &Mesh, machine: &Pod, token: &Path) -> Process {
    let control_plane = SocketAddr::new(mesh.replicas[0].pod.v4().into(), 15012);
    let address = machine.v4();
    let program = Program::new("ledger-vm", binary("tulle-proxy"))
        .flag("--workload", format!("{SHOP}/ledger-vm"))
        .flag("--control-plane-address", control_plane.to_string())
        .flag("--identity-token-file", token)
        .flag("--inbound-listen", "none")
        .flag("--outbound-listen", "none")
        .flag("--inbound-ports", format!("{address}:{PORT}=127.0.0.1:8080/{LEDGER}:80"))
        .flag("--outbound-services", "none")
        .flag("--admin-address", "none")
        .flag("--metrics-address", format!("{address}:15020"))
        .flag("--log-format", "text");
    machine.namespace().enter(|| Process::start(program, mesh.server.folder()))
}

/// What control planes have written of registrations.
async fn slices(mesh: &Mesh) -> Vec<Value> {
    let ours = "labelSelector=endpointslice.kubernetes.io%2Fmanaged-by%3Dtulle-control-plane";
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/{SHOP}/endpointslices?{ours}");
    let list = mesh.server.administrator().get(&path).await.unwrap();
    list["items"].as_array().unwrap().clone()
}

/// Waits until there is one.
async fn written(mesh: &Mesh) -> Value {
    eventually("the registration is an EndpointSlice", async || match &*slices(mesh).await {
        [slice] => Ok(slice.clone()),
        other => Err(format!("{other:#?}")),
    })
    .await
}

/// Waits until there is none.
async fn gone(mesh: &Mesh) {
    eventually("the EndpointSlice is gone", async || match &*slices(mesh).await {
        [] => Ok(()),
        other => Err(format!("{other:#?}")),
    })
    .await;
}

fn says(slice: &Value, annotation: &str) -> String {
    let said = slice["metadata"]["annotations"][format!("tulle.dev/{annotation}")].as_str();
    said.unwrap_or_else(|| panic!("no {annotation}: {slice:#}")).to_owned()
}

#[test]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
fn what_is_registered_outside_the_cluster_is_reached_from_it_for_as_long_as_its_lease_lasts() {
    in_a_node(async || {
        let mut mesh = Mesh::start(2).await;
        let web = mesh.app("web").await;
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": LEDGER, "namespace": SHOP},
            "spec": {"ports": [{"name": "main", "port": 80, "appProtocol": "http"}]},
        });
        let service = mesh.server.administrator().apply(&service).await.unwrap();
        let to = SocketAddr::new(service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap(), 80);
        let machine = mesh.outside("ledger-vm");
        let listener = machine.listen("127.0.0.1:8080");
        let _app = App::http1_on(listener, |_| async { Response::new(full("ledger")) });
        let token = token(&mesh).await;

        let mut ledger = start(&mesh, &machine, &token);
        let slice = written(&mesh).await;
        let labels = &slice["metadata"]["labels"];
        assert_eq!(labels["kubernetes.io/service-name"], LEDGER, "{slice:#}");
        assert_eq!(slice["metadata"]["ownerReferences"], Value::Null, "{slice:#}");
        assert_eq!(slice["endpoints"][0]["addresses"], json!([machine.v4().to_string()]));
        assert_eq!(slice["ports"], json!([{"name": "main", "port": PORT, "protocol": "TCP"}]));
        for (annotation, expected) in [
            ("identity", format!("{SHOP}/{LEDGER}")),
            ("workload", "ledger-vm".to_owned()),
            ("service-ports", format!("80:{PORT}")),
            ("lease-duration", "30s".to_owned()),
        ] {
            assert_eq!(says(&slice, annotation), expected, "{annotation}");
        }
        assert!(!says(&slice, "lease-holder").is_empty());
        eventually("the lease is renewed", async || match &*slices(&mesh).await {
            [now] if says(now, "lease-renewed") != says(&slice, "lease-renewed") => Ok(()),
            other => Err(format!("{other:#?}")),
        })
        .await;

        web.gets(to, LEDGER).await;
        let id = |account: &str| json!(format!("spiffe://cluster.local/ns/{SHOP}/sa/{account}"));
        let went = [("direction", json!("outbound")), ("destination", id(LEDGER)), ("tls", json!("mtls"))];
        web.process("tulle-proxy").logs(&went).await;
        let came = [("direction", json!("inbound")), ("source", id("web")), ("status", json!(200))];
        ledger.logs(&came).await;

        // An end in order takes it away at once.
        assert!(ledger.stop().await.success(), "{}", ledger.tail());
        gone(&mesh).await;

        // It and its replica end at once, and neither can say so: it counts on until the lease has run out.
        let mut ledger = start(&mesh, &machine, &token);
        written(&mesh).await;
        web.gets(to, LEDGER).await;
        mesh.replicas[0].process_mut("control-plane").kill().await;
        ledger.kill().await;
        mesh.replicas.remove(0);
        mesh.announce().await;
        assert_eq!(slices(&mesh).await.len(), 1, "nobody has taken it away");
        eventually_within(DEADLINE + LEASE, "no proxy is told of it any more", async || {
            let mut wire = web.pod.connect(to);
            wire.send("GET / HTTP/1.1\r\nhost: ledger\r\nconnection: close\r\n\r\n").await;
            let head = wire.response().await.0;
            if head.reason() == Some("no_healthy_endpoint") { Ok(()) } else { Err(format!("{head:?}")) }
        })
        .await;
        gone(&mesh).await;
        mesh.nothing_was_forbidden();
    });
}
