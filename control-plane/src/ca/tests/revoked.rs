//! Join tokens that are revoked while certificates go back to them.

use super::*;
use crate::ca::ledger::Ledger;

/// Joins by a token, and says what the control plane knows of who shows the certificate.
fn join(ca: &Ca, token: &str) -> Result<Caller, Status> {
    let (mut ask, key) = request(0);
    bearer(&mut ask, token);
    shown(ca, &ask, key)
}

fn renew(ca: &Ca, caller: &Caller) -> Result<Caller, Status> {
    let (mut ask, key) = request(0);
    ask.extensions_mut().insert(caller.clone());
    shown(ca, &ask, key)
}

fn shown(ca: &Ca, ask: &Request<IstioCertificateRequest>, key: PrivateKey) -> Result<Caller, Status> {
    let answer = certificate(ca, ask, now())?;
    let (chain, _) = split_chain(&answer.cert_chain, &domain()).unwrap();
    let creds = Creds::new(chain, key, ca.bundle(), now()).unwrap();
    Ok(Caller::of(Some(creds.chain())).unwrap().unwrap())
}

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn revoke(dir: &Path, token: &str) {
    let claims = tulle_certs::token::claims_of(token).unwrap();
    let change = |ledger: Ledger| Some(ledger.with_revoked(&claims.jti, Some(&claims), now()));
    on_runtime(change_ledger_of(dir, change)).unwrap();
}

#[test]
fn a_revoked_token_and_what_goes_back_to_it_get_no_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, seen) = observed(dir.path());
    let mint = |services: &[&str]| {
        let services: Vec<String> = services.iter().map(|one| (*one).to_owned()).collect();
        ca.tokens().mint(&id("web"), &services, HOUR, now()).unwrap()
    };
    let (stolen, good) = (mint(&["web", "api"]), mint(&["web"]));
    let (first, other) = (join(&ca, &stolen).unwrap(), join(&ca, &good).unwrap());
    assert!(first.lineage.is_some() && first.lineage != other.lineage);
    let renewed = renew(&ca, &first).unwrap();
    assert_eq!(renewed.lineage, first.lineage, "it is handed on");
    assert_eq!(ca.may_register(&id("web"), "api"), Ok(()));

    revoke(dir.path(), &stolen);
    seen.lock().clear();
    for refused in [join(&ca, &stolen), renew(&ca, &first), renew(&ca, &renewed)] {
        let status = refused.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        assert!(status.message().contains("revoked") && status.message().contains("another"), "{status}");
        assert!(!status.message().contains(&stolen), "{status}");
    }
    assert_eq!(*seen.lock(), [Outcome::Revoked; 3]);
    // What another token has granted too stays; those who joined with that one notice nothing.
    assert!(ca.may_register(&id("web"), "api").is_err());
    assert_eq!(ca.may_register(&id("web"), "web"), Ok(()));
    assert!(renew(&ca, &other).is_ok() && join(&ca, &good).is_ok());
    // With a good token, whoever was shut out is in again.
    let (mut ask, key) = request(0);
    ask.extensions_mut().insert(first);
    bearer(&mut ask, &good);
    assert_eq!(shown(&ca, &ask, key).unwrap().lineage, other.lineage);

    // After a restart too.
    drop(ca);
    let ca = open(dir.path());
    assert!(join(&ca, &stolen).is_err() && renew(&ca, &renewed).is_err() && renew(&ca, &other).is_ok());
    revoke(dir.path(), &good);
    assert!(renew(&ca, &other).is_err());
    assert!(!ca.has_joined(&id("web")), "by no token that still counts");
}

#[test]
fn what_was_revoked_long_ago_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    let mint = |services: &[String]| ca.tokens().mint(&id("web"), services, HOUR, now()).unwrap();
    let (stolen, good) = (mint(&["api".to_owned()]), mint(&[]));
    let (first, _) = (join(&ca, &stolen).unwrap(), join(&ca, &good).unwrap());
    revoke(dir.path(), &stolen);
    // The control plane looks over its book, in a year.
    on_runtime(ca.look_at_tokens());
    on_runtime(ca.0.revoked.forget(now() + 365 * 24 * HOUR)).unwrap();
    let kept = fs::read_to_string(dir.path().join("tokens.json")).unwrap();
    assert!(!kept.contains("sa/web"), "only its ID is left: {kept}");
    for ca in [ca.clone(), open(dir.path())] {
        on_runtime(ca.look_at_tokens());
        assert!(ca.may_register(&id("web"), "api").is_err(), "no other token grants it");
        assert!(renew(&ca, &first).is_err(), "however long certificates may have lived");
    }
}

#[test]
fn what_another_replica_is_told_counts_here() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ca = open(dir.path());
    open(elsewhere.path());
    let token = ca.tokens().mint(&id("web"), &[], HOUR, now()).unwrap();
    let caller = join(&ca, &token).unwrap();
    revoke(elsewhere.path(), &token);
    let text = fs::read_to_string(elsewhere.path().join("tokens.json")).unwrap();
    let written = |text: &str| Kept::from([(store::TOKENS, zeroize::Zeroizing::new(text.to_owned()))]);
    ca.take_in(written(&text), &[store::TOKENS], now()).unwrap();
    assert!(join(&ca, &token).is_err() && renew(&ca, &caller).is_err());
    assert_eq!(
        ca.kept().get(store::TOKENS).map(|kept| kept.as_str()),
        Some(text.as_str()),
        "to write it again"
    );
    // What is damaged takes nothing back.
    ca.take_in(written("{"), &[store::TOKENS], now()).unwrap();
    assert!(join(&ca, &token).is_err());
}

#[test]
fn a_damaged_book_keeps_an_authority_from_starting_and_a_running_one_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    let token = ca.tokens().mint(&id("web"), &[], HOUR, now()).unwrap();
    let caller = join(&ca, &token).unwrap();
    revoke(dir.path(), &token);
    assert!(renew(&ca, &caller).is_err());
    fs::write(dir.path().join("tokens.json"), "{").unwrap();
    assert!(renew(&ca, &caller).is_err(), "what was known holds");
    let error = Ca::open(dir.path(), &domain(), now()).unwrap_err().to_string();
    assert!(error.contains("tokens.json") && error.contains("damaged"), "{error}");
    let error = on_runtime(change_ledger_of(dir.path(), Some)).unwrap_err().to_string();
    assert!(error.contains("tokens.json"), "{error}");
    assert_eq!(fs::read_to_string(dir.path().join("tokens.json")).unwrap(), "{", "it is not written over");
}

#[test]
fn those_who_write_the_book_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    open(path);
    on_runtime(async {
        let writes = (0..20).map(|number| async move {
            let jti = format!("t{number}");
            let change = |ledger: Ledger| Some(ledger.with_revoked(&jti, None, now()));
            change_ledger_of(path, change).await.unwrap();
        });
        futures_util::future::join_all(writes).await;
    });
    let ledger = on_runtime(change_ledger_of(dir.path(), |_| None)).unwrap();
    assert_eq!(ledger.entries().count(), 20);
    let mode = fs::metadata(dir.path().join("tokens.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn nothing_is_said_to_be_revoked_in_a_folder_that_is_no_control_planes() {
    let dir = tempfile::tempdir().unwrap();
    for folder in [dir.path().to_owned(), dir.path().join("nowhere")] {
        let change = |ledger: Ledger| Some(ledger.with_revoked("a", None, now()));
        let error = on_runtime(change_ledger_of(&folder, change)).unwrap_err().to_string();
        assert!(error.contains("token-key.pem") && error.contains("state folder"), "{error}");
        assert!(!folder.join("tokens.json").exists());
    }
}

#[test]
fn a_token_that_is_good_for_one_time_gives_one_certificate_which_renews_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, seen) = observed(dir.path());
    let token = ca.tokens().mint_once(&id("web"), &["web".into()], HOUR, now()).unwrap();
    // What cannot be signed does not cost it.
    let mut bad = Request::new(IstioCertificateRequest { csr: "rubbish".into(), ..Default::default() });
    bearer(&mut bad, &token);
    assert_eq!(certificate(&ca, &bad, now()).unwrap_err().code(), Code::InvalidArgument);
    let caller = join(&ca, &token).unwrap();
    assert_eq!(ca.may_register(&id("web"), "web"), Ok(()));
    seen.lock().clear();
    let status = join(&ca, &token).unwrap_err();
    assert_eq!((status.code(), &seen.lock()[..]), (Code::Unauthenticated, &[Outcome::Replayed][..]));
    let jti = tulle_certs::token::claims_of(&token).unwrap().jti;
    assert!(status.message().contains("one time") && status.message().contains(&jti), "{status}");
    assert!(!status.message().contains(&token), "{status}");
    // Neither has it ended: what it gave renews itself, also after a restart, and ends when it is revoked.
    let renewed = renew(&ca, &caller).unwrap();
    drop(ca);
    let ca = open(dir.path());
    assert!(join(&ca, &token).is_err());
    let renewed = renew(&ca, &renewed).unwrap();
    revoke(dir.path(), &token);
    assert!(renew(&ca, &renewed).is_err());
}

#[test]
fn who_has_joined_at_one_replica_by_a_token_for_one_time_is_known_to_another_that_nobody_has_told() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (open(dir.path()), open(dir.path()));
    let token = ca.tokens().mint_once(&id("web"), &["web".into()], HOUR, now()).unwrap();
    join(&ca, &token).unwrap();
    assert!(other.may_register(&id("web"), "web").is_err());
    on_runtime(other.grant_to(&id("web"), &token, now())).unwrap();
    assert_eq!(other.may_register(&id("web"), "web"), Ok(()));
}

#[test]
fn of_those_who_show_a_token_at_once_that_is_good_for_one_time_one_is_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let replicas = [open(dir.path()), open(dir.path()), open(dir.path())];
    let token = replicas[0].tokens().mint_once(&id("web"), &[], HOUR, now()).unwrap();
    let let_in = std::thread::scope(|scope| {
        let asking: Vec<_> = replicas
            .iter()
            .flat_map(|ca| [ca, ca, ca])
            .map(|ca| {
                let token = &token;
                scope.spawn(move || {
                    let (mut ask, _) = request(0);
                    bearer(&mut ask, token);
                    on_runtime(CertificateService::new(ca.clone()).answer(&ask, now())).is_ok()
                })
            })
            .collect();
        asking.into_iter().map(|one| one.join().unwrap()).filter(|is_in| *is_in).count()
    });
    assert_eq!(let_in, 1);
}
