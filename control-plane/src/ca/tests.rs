use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use tonic::{Code, Request, Status};
use tulle_api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tulle_certs::issue::split_chain;
use tulle_certs::pem;

use super::*;

mod foreign;
mod pods;
mod revoked;

const HOUR: Duration = Duration::from_secs(3600);

fn domain() -> TrustDomain {
    TrustDomain::default()
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&domain(), "shop", account).unwrap()
}

fn now() -> SystemTime {
    SystemTime::now()
}

fn open(dir: &Path) -> Ca {
    Ca::open(dir, &domain(), now()).unwrap()
}

/// The same, and what becomes of each request for a certificate.
fn observed(dir: &Path) -> (Ca, Arc<Mutex<Vec<Outcome>>>) {
    let seen: Arc<Mutex<Vec<Outcome>>> = Arc::default();
    let told = seen.clone();
    let observer = Box::new(move |outcome| told.lock().push(outcome));
    let ca = Ca::open_with(dir, &domain(), now(), Options { observer, ..Options::default() }).unwrap();
    (ca, seen)
}

fn certificate(
    ca: &Ca,
    request: &Request<IstioCertificateRequest>,
    now: SystemTime,
) -> Result<IstioCertificateResponse, Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(CertificateService::new(ca.clone()).answer(request, now))
}

fn request(seconds: i64) -> (Request<IstioCertificateRequest>, PrivateKey) {
    let key = PrivateKey::generate().unwrap();
    let csr = csr(&key, None).unwrap();
    (Request::new(IstioCertificateRequest { csr, validity_duration: seconds, metadata: None }), key)
}

fn bearer(request: &mut Request<IstioCertificateRequest>, token: &str) {
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
}

#[test]
fn a_token_gives_its_identity_and_the_certificate_renews_itself() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    let token = ca.tokens().mint(&id("web"), &["web".into()], HOUR, now()).unwrap();
    let (mut ask, key) = request(0);
    bearer(&mut ask, &token);
    let answer = certificate(&ca, &ask, now()).unwrap();
    let (chain, bundle) = split_chain(&answer.cert_chain, &domain()).unwrap();
    assert_eq!(&bundle, &*ca.bundle());
    let creds = Creds::new(chain, key, ca.bundle(), now()).unwrap();
    assert_eq!(creds.id(), &id("web"));
    let left = creds.not_after().duration_since(now()).unwrap();
    assert!(left > 23 * HOUR && left <= 24 * HOUR, "{left:?}");

    // Renewal: the certificate itself, no token.
    let (mut ask, key) = request(60);
    let caller = Caller::of(Some(creds.chain())).unwrap().unwrap();
    assert_eq!((&caller.id, caller.not_after), (creds.id(), creds.not_after()));
    ask.extensions_mut().insert(caller.clone());
    let answer = certificate(&ca, &ask, now()).unwrap();
    let (chain, _) = split_chain(&answer.cert_chain, &domain()).unwrap();
    let renewed = Creds::new(chain, key, ca.bundle(), now()).unwrap();
    assert_eq!(renewed.id(), &id("web"));
    assert!(renewed.not_after().duration_since(now()).unwrap() <= Duration::from_secs(60));

    let status = certificate(&ca, &ask, caller.not_after + Duration::from_secs(1)).unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("expired"), "{status}");
}

#[test]
fn what_a_token_grants_adds_up_per_identity_and_survives_renewal_and_restart() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    let join = |ca: &Ca, account: &str, services: &[String]| {
        let token = ca.tokens().mint(&id(account), services, HOUR, now()).unwrap();
        let (mut ask, _) = request(0);
        bearer(&mut ask, &token);
        certificate(ca, &ask, now()).unwrap();
    };
    join(&ca, "web", &["web".into()]);
    join(&ca, "web", &["api".into()]);
    join(&ca, "orders", &[]);
    let (mut ask, _) = request(0);
    ask.extensions_mut().insert(Caller { id: id("web"), not_after: now() + HOUR, lineage: None });
    certificate(&ca, &ask, now()).unwrap();
    drop(ca);

    let ca = open(dir.path());
    assert_eq!(ca.may_register(&id("web"), "web"), Ok(()));
    assert_eq!(ca.may_register(&id("web"), "api"), Ok(()));
    for (account, name) in [("web", "orders"), ("orders", "orders"), ("unknown", "web")] {
        let refusal = ca.may_register(&id(account), name).unwrap_err().to_string();
        assert!(refusal.contains(&format!("{name:?}")), "{refusal}");
        let remedy = format!("--workload-identity shop/{account} --service {name}");
        assert!(refusal.contains(&remedy), "{refusal}");
    }
    let mode = fs::metadata(dir.path().join("grants.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    for damaged in [b"{".as_slice(), b"\xe3\x11", b""] {
        fs::write(dir.path().join("grants.json"), damaged).unwrap();
        assert!(open(dir.path()).may_register(&id("web"), "web").is_err(), "damaged: nobody may");
    }
}

#[test]
fn many_who_join_at_once_are_all_granted_what_their_tokens_say() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    let grants = |account: usize| (id(&format!("w{account}")), [format!("s{account}")]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let joins = (0..50).map(async |account| {
            let (id, services) = grants(account);
            ca.grant(&id, &services).await.unwrap();
            assert_eq!(ca.may_register(&id, &services[0]), Ok(()), "as soon as it is answered");
        });
        futures_util::future::join_all(joins).await;
    });
    drop(ca);
    let ca = open(dir.path());
    for (id, [service]) in (0..50).map(grants) {
        assert_eq!(ca.may_register(&id, &service), Ok(()), "kept");
    }
}

#[test]
fn every_refusal_has_its_status_and_is_observed() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, seen) = observed(dir.path());
    let mint = |id: &SpiffeId| ca.tokens().mint(id, &[], HOUR, now()).unwrap();
    let other_ca = tempfile::tempdir().unwrap();
    let foreign = open(other_ca.path()).tokens().mint(&id("web"), &[], HOUR, now()).unwrap();
    let old = ca.tokens().mint(&id("web"), &[], HOUR, now() - 2 * HOUR).unwrap();
    let elsewhere = SpiffeId::parse("spiffe://elsewhere.example/ns/shop/sa/web").unwrap();

    let (ask, _) = request(0);
    let refuse = |ask: &Request<IstioCertificateRequest>, code, outcome, word: &str| {
        let status = certificate(&ca, ask, now()).unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(word), "{status}");
        assert_eq!(seen.lock().pop(), Some(outcome));
    };
    refuse(&ask, Code::Unauthenticated, Outcome::Unauthenticated, "required");
    for (token, code, outcome, word) in [
        ("rubbish".to_owned(), Code::Unauthenticated, Outcome::Unauthenticated, "malformed"),
        (foreign, Code::Unauthenticated, Outcome::Unauthenticated, "signature"),
        (old, Code::Unauthenticated, Outcome::Unauthenticated, "expired"),
        (mint(&elsewhere), Code::PermissionDenied, Outcome::Denied, "trust domain"),
        (mint(&control_plane_id(&domain())), Code::PermissionDenied, Outcome::Denied, "control plane's own"),
    ] {
        let (mut ask, _) = request(0);
        bearer(&mut ask, &token);
        refuse(&ask, code, outcome, word);
    }
    let (mut ask, _) = request(0);
    ask.metadata_mut().insert("authorization", "Basic eA==".parse().unwrap());
    refuse(&ask, Code::Unauthenticated, Outcome::Unauthenticated, "Bearer");

    let (mut ask, _) = request(0);
    bearer(&mut ask, &mint(&id("web")));
    ask.extensions_mut().insert(Caller { id: id("orders"), not_after: now() + HOUR, lineage: None });
    refuse(&ask, Code::PermissionDenied, Outcome::Denied, "sa/orders");

    let (mut ask, _) = request(-1);
    bearer(&mut ask, &mint(&id("web")));
    refuse(&ask, Code::InvalidArgument, Outcome::BadRequest, "negative");
    let (mut ask, _) = request(0);
    ask.get_mut().csr = pem::encode("CERTIFICATE REQUEST", b"x");
    bearer(&mut ask, &mint(&id("web")));
    refuse(&ask, Code::InvalidArgument, Outcome::BadRequest, "PKCS#10");
}

#[test]
fn the_root_survives_a_restart_and_its_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("new/state");
    let first = open(&state);
    let mode = |name: &str| fs::metadata(state.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca-key.pem"), mode("token-key.pem")), (0o600, 0o600));
    let second = open(&state);
    assert_eq!(first.pin(), second.pin());
    let token = first.tokens().mint(&id("web"), &[], HOUR, now()).unwrap();
    assert!(second.tokens().verify(&token, now()).is_ok());
    let StoredTokens { tokens, pin, trust_domain } = stored_tokens(&state).unwrap();
    assert_eq!((pin, trust_domain), (first.pin(), Some(domain())));
    assert!(first.tokens().verify(&tokens.mint(&id("web"), &[], HOUR, now()).unwrap(), now()).is_ok());
    assert!(!state.join("ca-key.pem.new").exists());
}

#[test]
fn wrong_permissions_are_refused_with_the_remedy() {
    for name in ["ca-key.pem", "token-key.pem"] {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path());
        fs::set_permissions(dir.path().join(name), Permissions::from_mode(0o640)).unwrap();
        let error = Ca::open(dir.path(), &domain(), now()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("0640") && error.contains("chmod 600"), "{error}");
    }
}

#[test]
fn half_an_authority_is_not_silently_replaced() {
    for (gone, there) in [("ca-key.pem", "ca.pem"), ("ca.pem", "ca-key.pem")] {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path());
        fs::remove_file(dir.path().join(gone)).unwrap();
        let error = Ca::open(dir.path(), &domain(), now()).unwrap_err();
        assert!(matches!(error, CaError::Half { .. }), "{error}");
        assert!(error.to_string().contains(there), "{error}");
        assert!(!dir.path().join(gone).exists());
    }
}

#[test]
fn damaged_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    fs::write(dir.path().join("ca.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    let error = Ca::open(dir.path(), &domain(), now()).unwrap_err().to_string();
    assert!(error.contains("ca.pem") && error.contains("line 1"), "{error}");

    fs::write(dir.path().join("ca-key.pem"), "garbage").unwrap();
    let error = Ca::open(dir.path(), &domain(), now()).unwrap_err().to_string();
    assert!(error.contains("ca-key.pem: "), "{error}");

    // The certificate of another key.
    fs::remove_file(dir.path().join("ca-key.pem")).unwrap();
    fs::remove_file(dir.path().join("ca.pem")).unwrap();
    open(dir.path());
    let other = tempfile::tempdir().unwrap();
    open(other.path());
    fs::copy(other.path().join("ca.pem"), dir.path().join("ca.pem")).unwrap();
    let error = Ca::open(dir.path(), &domain(), now()).unwrap_err().to_string();
    assert!(error.contains("issued for the private key"), "{error}");

    let missing = stored_tokens(&dir.path().join("nowhere")).unwrap_err().to_string();
    assert!(missing.contains("state folder"), "{missing}");
}

#[test]
fn the_own_certificate_is_renewed_when_due_and_only_then() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { lifetime: HOUR, ..Options::default() };
    let ca = Ca::open_with(dir.path(), &domain(), now(), options).unwrap();
    let first = ca.creds();
    assert_eq!(first.id(), &control_plane_id(&domain()));
    assert_eq!(first.chain().len(), 2, "the root is presented too");
    assert!(Arc::ptr_eq(&first, &ca.creds_at(now() + HOUR / 2)));
    let later = now() + HOUR * 3 / 4;
    let second = ca.creds_at(later);
    assert!(!Arc::ptr_eq(&first, &second));
    assert!(second.not_after() > first.not_after());
    assert!(Arc::ptr_eq(&second, &ca.creds_at(later + Duration::from_secs(60))));
}

#[test]
fn an_expired_root_keeps_the_old_certificate_and_does_not_try_all_the_time() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    let end = ca.not_after() + HOUR;
    let held = ca.creds();
    for second in 0..3 {
        assert!(Arc::ptr_eq(&held, &ca.creds_at(end + Duration::from_millis(second * 100))));
    }
    assert_eq!(ca.0.renewal.lock().failures, 1);
}

#[test]
fn pem_is_taken_as_people_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let pin = open(dir.path()).pin();
    for file in ["ca-key.pem", "ca.pem"] {
        let path = dir.path().join(file);
        let text = fs::read_to_string(&path).unwrap();
        // In place, so that it stays readable by us alone.
        fs::write(&path, format!("Subject: somebody\n{text}\n \nnotes\n").replace('\n', "\r\n")).unwrap();
    }
    assert_eq!(open(dir.path()).pin(), pin);
    assert_eq!(stored_tokens(dir.path()).unwrap().pin, pin);
}

#[test]
fn debug_shows_no_key() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    let shown = format!("{ca:?}{:?}{:?}", ca.tokens(), ca.creds());
    for file in ["ca-key.pem", "token-key.pem"] {
        let key = fs::read_to_string(dir.path().join(file)).unwrap();
        assert!(key.lines().filter(|line| !line.starts_with('-')).all(|line| !shown.contains(line)));
    }
}
