use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose as Usage};
use serde_json::{Value, json};
use tulle_certs::issue::{Issued, ROOT_LIFETIME};
use tulle_certs::key::csr;
use tulle_certs::{PrivateKey, SpiffeId};

use super::*;
use crate::ca::Options;
use crate::cluster::testing::ApiServer;
use crate::cluster::{Holder, SECRET};

const NAME: &str = "tulle-identity-issuer";
const PATH: &str = "/api/v1/namespaces/tulle-system/secrets/tulle-identity-issuer";
const OWN: &str = "/api/v1/namespaces/tulle-system/secrets/tulle-identity";
const HOUR: Duration = Duration::from_secs(3600);

fn domain() -> TrustDomain {
    TrustDomain::default()
}

fn now() -> SystemTime {
    SystemTime::now()
}

/// A root of somebody else's.
fn root() -> Authority {
    Authority::generate(&TrustDomain::new("company.example").unwrap(), ROOT_LIFETIME, now()).unwrap()
}

/// What cert-manager writes of an issuing certificate under `root`.
fn written(root: &Authority, change: impl FnOnce(&mut CertificateParams)) -> Value {
    let key = PrivateKey::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "tulle");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![Usage::KeyCertSign, Usage::CrlSign, Usage::DigitalSignature];
    params.not_before = (now() - HOUR).into();
    params.not_after = (now() + HOUR * 24 * 90).into();
    change(&mut params);
    let issuer = rcgen::Issuer::from_ca_cert_der(root.root(), root.key().clone()).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    secret(&key.to_pem(), &certificate, &pem::encode_certificate(root.root()))
}

fn secret(key: &str, certificate: &str, root: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME}, "type": "kubernetes.io/tls",
        "data": {KEY: STANDARD.encode(key), CERTIFICATE: STANDARD.encode(certificate), ROOT: STANDARD.encode(root)},
    })
}

fn issuer(server: &Arc<ApiServer>) -> Issuer {
    Issuer { settle: Duration::from_secs(1), ..Issuer::new(server.client(), "tulle-system", NAME, HOUR) }
}

async fn ca(server: &Arc<ApiServer>) -> Ca {
    let issuer = issuer(server);
    let kept = issuer.open(&domain()).await.unwrap();
    Ca::with_store(Arc::new(issuer), kept, &domain(), now(), Options::default()).unwrap()
}

/// The certificate that it would give.
fn issued(ca: &Ca) -> Issued {
    let kept = ca.kept();
    let authority = Authority::from_pem(&kept[CA_KEY], &kept[CA_CERTIFICATES], &domain(), now()).unwrap();
    let request = csr(&PrivateKey::generate().unwrap(), None).unwrap();
    authority.issue(&request, &SpiffeId::new(&domain(), "shop", "web").unwrap(), HOUR, now()).unwrap()
}

fn has(ca: &Ca, root: &Authority) -> bool {
    ca.bundle().roots().contains(root.root())
}

/// Waits for what watches bring about.
async fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not so: {what}");
}

/// Why `object` is refused.
fn refusal(server: &Arc<ApiServer>, object: Value) -> String {
    let read = issuer(server).read(&serde_json::from_value(object).unwrap(), &domain(), now());
    read.err().expect("refused").to_string()
}

#[tokio::test]
async fn an_intermediate_issues_and_its_root_is_trusted() {
    let (server, root) = (ApiServer::start(), root());
    server.put(PATH, written(&root, |_| {}));
    let ca = ca(&server).await;
    assert_eq!(ca.bundle().roots(), [root.root().clone()]);
    assert_eq!(ca.pin(), root.pin().unwrap());
    let issued = issued(&ca);
    assert_eq!((issued.chain.len(), &issued.root), (2, root.root()));
    // Our own certificate has the root too, so that pins can be checked.
    assert_eq!(ca.creds().chain().last(), Some(root.root()));
    let own = server.object(OWN).unwrap();
    let mut names: Vec<&str> = own["data"].as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["roots.json", "token-key.pem"], "no key of the issuer's is written anywhere");
    assert_eq!(server.asked(&Method::PATCH, NAME), 0);
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_comes_later_is_waited_for() {
    let (server, root) = (ApiServer::start(), root());
    let opening = tokio::spawn({
        let server = Arc::clone(&server);
        async move { ca(&server).await.pin() }
    });
    tokio::time::sleep(Duration::from_secs(300)).await;
    server.put(PATH, written(&root, |params| params.is_ca = IsCa::ExplicitNoCa));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!opening.is_finished());
    server.put(PATH, written(&root, |_| {}));
    assert_eq!(opening.await.unwrap(), root.pin().unwrap());
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_with_its_field_and_a_remedy() {
    let (server, root) = (ApiServer::start(), root());
    let good = written(&root, |_| {});
    let with = |field: &str, value: &str| {
        let mut object = good.clone();
        object["data"][field] = json!(value);
        object
    };
    let other = written(&root, |_| {});
    let stranger = self::root();
    let strangers = STANDARD.encode(pem::encode_certificate(stranger.root()));
    let cases = [
        (with(KEY, ""), KEY, "missing"),
        (with(CERTIFICATE, ""), CERTIFICATE, "missing"),
        (with(CERTIFICATE, "eA=="), CERTIFICATE, "no CERTIFICATE block"),
        (with(ROOT, "eA=="), ROOT, "no CERTIFICATE block"),
        (with(KEY, other["data"][KEY].as_str().unwrap()), CERTIFICATE, "delete the Secret"),
        (with(ROOT, ""), ROOT, "the whole chain"),
        (with(ROOT, &strangers), ROOT, "the root of"),
        (written(&root, |params| params.is_ca = IsCa::ExplicitNoCa), CERTIFICATE, "isCA: true"),
        (
            written(&root, |params| params.key_usages = vec![Usage::DigitalSignature]),
            CERTIFICATE,
            "cert sign",
        ),
        (
            written(&root, |params| params.not_after = (now() - HOUR / 2).into()),
            CERTIFICATE,
            "describe certificate",
        ),
        (written(&root, |params| params.not_before = (now() + HOUR).into()), CERTIFICATE, "mend the clock"),
    ];
    for (object, field, word) in cases {
        let error = refusal(&server, object);
        let place = format!("Secret tulle-system/{NAME}, key {field}: ");
        assert!(error.starts_with(&place) && error.contains(word), "{error}");
    }
}

#[tokio::test]
async fn a_path_length_that_forbids_an_intermediate_is_refused() {
    let server = ApiServer::start();
    let key = PrivateKey::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, "narrow");
    params.not_after = (now() + HOUR * 24 * 365).into();
    let above = params.self_signed(&key).unwrap();
    let above = [above.pem(), key.to_pem().to_string()];
    let middle = Authority::from_pem(&above[1], &above[0], &domain(), now()).unwrap();
    // It issues by itself, but nobody below it may.
    let itself = serde_json::from_value(secret(&above[1], &above[0], &above[0])).unwrap();
    assert!(issuer(&server).read(&itself, &domain(), now()).is_ok());
    let error = refusal(&server, written(&middle, |_| {}));
    assert!(
        error.contains("key tls.crt") && error.contains("the path length of CN=narrow allows 0 CAs"),
        "{error}"
    );
}

#[tokio::test]
async fn a_renewed_intermediate_is_taken_up_and_a_bad_one_is_not() {
    let (server, root) = (ApiServer::start(), root());
    server.put(PATH, written(&root, |_| {}));
    let ca = ca(&server).await;
    let watching = tokio::spawn(issuer(&server).watch(ca.clone()));
    let first = ca.kept()[CA_KEY].clone();
    server.put(PATH, written(&root, |params| params.is_ca = IsCa::ExplicitNoCa));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(ca.kept()[CA_KEY], first);
    server.put(PATH, written(&root, |_| {}));
    soon("the renewed one issues", || ca.kept()[CA_KEY] != first).await;
    assert_eq!(issued(&ca).root, *root.root());
    assert_eq!(ca.bundle().roots().len(), 1);
    let second = ca.kept()[CA_KEY].clone();
    server.delete(PATH);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(ca.kept()[CA_KEY], second);
    watching.abort();
}

#[tokio::test]
async fn a_new_root_is_told_before_it_issues_and_the_old_one_stays() {
    let (server, old, new) = (ApiServer::start(), root(), root());
    server.put(PATH, written(&old, |_| {}));
    let ca = ca(&server).await;
    let watching = tokio::spawn(issuer(&server).watch(ca.clone()));
    server.put(PATH, written(&new, |_| {}));
    soon("the new root is told", || has(&ca, &new)).await;
    assert_eq!(issued(&ca).root, *old.root(), "proxies do not know the new one yet");
    soon("the new root issues", || issued(&ca).root == *new.root()).await;
    assert!(has(&ca, &old));
    watching.abort();
    // Also for who starts then.
    let later = self::ca(&server).await;
    assert_eq!(later.bundle().roots(), [new.root().clone(), old.root().clone()]);
    assert_eq!(issued(&later).root, *new.root());
    // Once leaves under it have run out, it is gone.
    let roots = STANDARD.decode(server.object(OWN).unwrap()["data"]["roots.json"].as_str().unwrap()).unwrap();
    let mut roots: Value = serde_json::from_slice(&roots).unwrap();
    let until = roots[1]["until"].as_u64().unwrap();
    let left = Duration::from_secs(until) - now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert!(left > HOUR && left < 2 * HOUR, "{left:?}");
    roots[1]["until"] = json!(until - 7200);
    let mut own = server.object(OWN).unwrap();
    own["data"]["roots.json"] = json!(STANDARD.encode(roots.to_string()));
    server.put(OWN, own);
    assert_eq!(self::ca(&server).await.bundle().roots(), [new.root().clone()]);
}

#[tokio::test]
async fn the_root_of_an_authority_of_our_own_stays_for_a_while() {
    let (server, root) = (ApiServer::start(), root());
    let own = Secret::new(server.client(), "tulle-system").open(&domain(), now()).await.unwrap();
    let own = Authority::from_pem(&own[CA_KEY], &own[CA_CERTIFICATES], &domain(), now()).unwrap();
    let before = server.object(OWN).unwrap();
    server.put(PATH, written(&root, |_| {}));
    let ca = ca(&server).await;
    assert_eq!(ca.bundle().roots(), [root.root().clone(), own.root().clone()]);
    let after = server.object(OWN).unwrap();
    for key in ["ca.pem", "ca-key.pem", "token-key.pem"] {
        assert_eq!(after["data"][key], before["data"][key], "{key} is for the way back");
    }
}

#[tokio::test]
async fn our_own_secret_is_written_again_without_the_issuers_key() {
    let (server, root) = (ApiServer::start(), root());
    server.put(PATH, written(&root, |_| {}));
    let ca = ca(&server).await;
    let before = server.object(OWN).unwrap();
    let (_sender, receiver) = tokio::sync::watch::channel(true);
    let watching = tokio::spawn(issuer(&server).beside().clone().watch(ca.clone(), Holder::of(receiver)));
    server.delete(OWN);
    soon("it is back", || server.object(OWN).is_some()).await;
    assert_eq!(server.object(OWN).unwrap()["data"], before["data"]);
    assert_eq!(server.object(OWN).unwrap()["metadata"]["name"], SECRET);
    watching.abort();
}
