//! An issuing certificate that cert-manager makes. The test is cert-manager: it writes the Secret, late, badly, and anew. What the chart asks of
//! cert-manager the API server judges by cert-manager's own definition.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose as Usage};
use serde_json::{Value, json};
use tulle_certs::issue::Authority;
use tulle_certs::{Pin, PrivateKey, TrustDomain, pem};
use tulle_tests::eventually;
use tulle_tests::identity::authority;
use tulle_tests::load::{Orders, Seen, Speech, Tally};
use tulle_tests::netns::in_a_node;

use crate::cert_manager;
use crate::chart::{CONTROL_PLANE, SYSTEM};
use crate::mesh::{Mesh, Running, load};

const SECRET: &str = "tulle-identity-issuer";

/// What cert-manager writes for a Certificate that `root` signs, and the pin of its key.
fn written(root: &Authority) -> (Value, String) {
    const HOUR: Duration = Duration::from_secs(3600);
    let key = PrivateKey::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Tulle issuer");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![Usage::KeyCertSign, Usage::CrlSign, Usage::DigitalSignature];
    params.not_before = SystemTime::now().into();
    params.not_after = (SystemTime::now() + 12 * HOUR).into();
    let issuer = rcgen::Issuer::from_ca_cert_der(root.root(), root.key().clone()).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    let data = json!({
        "tls.crt": STANDARD.encode(certificate), "tls.key": STANDARD.encode(key.to_pem().as_str()),
        "ca.crt": STANDARD.encode(pem::encode_certificate(root.root())),
    });
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": SYSTEM, "name": SECRET},
        "type": "kubernetes.io/tls", "data": data,
    });
    (secret, Pin::of_spki(&key.public_key()).to_string())
}

/// Pins of what stands above a pod's leaf, and of the roots that it trusts.
async fn chain(running: &Running) -> [Vec<String>; 2] {
    let shown: Value = serde_json::from_str(&running.pod.admin("GET /certs").await).unwrap();
    let pins = |list: &Value| -> Vec<String> {
        let all = list.as_array().unwrap().iter();
        all.map(|one| one["pin"].as_str().unwrap().to_owned()).collect()
    };
    [pins(&shown["chain"]).split_off(1), pins(&shown["trust_bundles"][0]["roots"])]
}

impl Mesh {
    /// Waits until every replica has logged all of this in one line.
    async fn all_log(&self, words: &[&str]) {
        for replica in &self.replicas {
            eventually(&format!("{words:?} is logged"), async || {
                let log = replica.process("control-plane").stdout();
                let is_there = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
                if is_there { Ok(()) } else { Err(replica.process("control-plane").tail()) }
            })
            .await;
        }
    }

    /// What each replica's `/ready` answers.
    async fn readiness(&self) -> Vec<String> {
        let mut answers = Vec::new();
        for replica in &self.replicas {
            let url = format!("http://{}:15014/ready", replica.pod.v4());
            let asked = replica.pod.run("curl", &["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]).await;
            answers.push(asked.stdout);
        }
        answers
    }
}

#[test]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
fn workloads_chain_to_the_root_of_cert_manager_and_what_it_renews_loses_no_request() {
    in_a_node(async || {
        let identity = json!({
            "issuer": "cert-manager", "leafLifetime": "1m",
            "certManager": {"issuerRef": {"name": "company", "kind": "ClusterIssuer"}},
        });
        let mesh = Mesh::start_with(2, &cert_manager(), json!({"identity": identity})).await;
        let caller = mesh.server.administrator();

        // cert-manager takes its time, and the replicas live on, not ready.
        mesh.all_log(&["waiting for the issuing certificate", SECRET, "describe certificate"]).await;
        assert_eq!(mesh.readiness().await, ["503", "503"]);
        let root = authority(&TrustDomain::new("company.example").unwrap());
        let (secret, first) = written(&root);
        caller.apply(&secret).await.unwrap();
        eventually("the replicas are ready", async || match mesh.readiness().await {
            codes if codes == ["200", "200"] => Ok(()),
            codes => Err(format!("{codes:?}")),
        })
        .await;

        let (web, orders) = futures_util::future::join(mesh.app("web"), mesh.app("orders")).await;
        let seen = Seen::default();
        let _app = Orders::start_on(orders.pod.listen("[::]:8080"), Speech::Http1, &seen);
        let to = mesh.service("orders", &[&orders]).await;
        eventually("web reaches orders", async || web.pod.curl_port(to).await.map(drop)).await;
        let roots = vec![root.pin().unwrap().to_string()];
        for running in [&web, &orders] {
            assert_eq!(chain(running).await, [vec![first.clone()], roots.clone()]);
        }
        let tally = Arc::<Tally>::default();
        let load = load(&web, to, &tally);

        // What cannot be used is refused, and what is in use stays.
        let (next, second) = written(&root);
        let mut broken = next.clone();
        broken["data"]["tls.key"] = secret["data"]["tls.key"].clone();
        caller.apply(&broken).await.unwrap();
        mesh.all_log(&["the issuing certificate cannot be used", SECRET, "tls.crt"]).await;
        // The renewed one is taken up by every replica, and so by every workload when its own is renewed.
        caller.apply(&next).await.unwrap();
        mesh.all_log(&["the certificate authority has changed"]).await;
        let late = mesh.app("late").await;
        assert_eq!(chain(&late).await, [vec![second.clone()], roots.clone()]);
        eventually("late reaches orders", async || late.pod.curl_port(to).await.map(drop)).await;
        for running in [&web, &orders] {
            eventually("it is renewed under the new one", async || match chain(running).await {
                now if now == [vec![second.clone()], roots.clone()] => Ok(()),
                now => Err(format!("{now:?}")),
            })
            .await;
        }
        load.leave_after(0).await;
        tally.assert_nothing_lost();
        assert_eq!(seen.twice(), [""; 0]);

        // It reads that Secret, and may do no more.
        let own = mesh.server.caller(&mesh.server.token(SYSTEM, CONTROL_PLANE, "", None).await);
        assert_eq!(own.now(&secret).await.unwrap()["data"], next["data"]);
        assert_eq!(own.apply(&secret).await.unwrap_err().code, 403);
        mesh.nothing_was_forbidden();
    });
}
