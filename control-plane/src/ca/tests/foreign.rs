//! A mesh whose identities others issue.

use tulle_api::ca::istio_certificate_service_server::IstioCertificateService as _;
use tulle_certs::issue::{Authority, ROOT_LIFETIME};
use tulle_identity::{Files, Given};

use super::*;
use crate::ca::ledger::Ledger;

/// What somebody else issues, in files.
struct Place {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Place {
    fn new() -> Self {
        let authority = Authority::generate(&domain(), ROOT_LIFETIME, now()).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), authority }
    }

    fn write(&self, id: &SpiffeId) {
        let key = PrivateKey::generate().unwrap();
        let issued = self.authority.issue(&csr(&key, None).unwrap(), id, HOUR, now()).unwrap();
        let chain: String = issued.chain.iter().map(|der| pem::encode_certificate(der)).collect();
        for (name, text) in
            [("cert", chain), ("key", key.to_pem().to_string()), ("roots", self.authority.bundle().to_pem())]
        {
            fs::write(self.dir.path().join(name), text).unwrap();
        }
    }

    fn given(&self) -> Given {
        let [cert, key, bundle] = ["cert", "key", "roots"].map(|name| self.dir.path().join(name));
        Given::Files(Files { cert, key, bundle, wanted: Some(control_plane_id(&domain())) })
    }

    async fn open(&self) -> Foreign {
        Foreign::open(&self.dir.path().join("state"), self.given(), &domain()).await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn the_sources_certificate_is_waited_for_and_taken_anew_and_nothing_is_issued() {
    let place = Place::new();
    // Somebody else's would not be found by proxies.
    place.write(&id("web"));
    assert!(tokio::time::timeout(HOUR, place.open()).await.is_err());
    place.write(&control_plane_id(&domain()));
    let foreign = place.open().await;
    let first = foreign.creds().unwrap();
    assert_eq!(first.id(), &control_plane_id(&domain()));
    assert_eq!(**first.bundle(), *place.authority.bundle());
    assert!(foreign.not_after().unwrap() > now() + 24 * HOUR, "the root's");

    place.write(&control_plane_id(&domain()));
    while foreign.creds().unwrap().chain() == first.chain() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (ask, _) = request(0);
    let service = NoCertificates { given: "the files a".to_owned() };
    let status = service.create_certificate(ask).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(
        status.message().contains("the files a") && status.message().contains("WORKLOAD_API"),
        "{status}"
    );
}

#[tokio::test(start_paused = true)]
async fn grants_are_read_from_the_state_folder_which_gets_no_authority() {
    let place = Place::new();
    place.write(&control_plane_id(&domain()));
    let state = place.dir.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("grants.json"), format!(r#"{{"{}": ["web"]}}"#, id("web"))).unwrap();
    let foreign = place.open().await;
    assert_eq!(foreign.may_register(&id("web"), "web"), Ok(()));
    assert!(foreign.may_register(&id("web"), "orders").is_err() && !foreign.has_joined(&id("orders")));
    assert!(state.join("token-key.pem").exists() && !state.join("ca-key.pem").exists());
}

#[tokio::test(start_paused = true)]
async fn a_join_token_grants_services_to_who_has_proved_its_identity_and_nothing_once_it_is_revoked() {
    let place = Place::new();
    place.write(&control_plane_id(&domain()));
    let foreign = place.open().await;
    let state = place.dir.path().join("state");
    let tokens = stored_signer(&state).unwrap().expect("it issues nothing");
    let mint =
        |name: &str, service: &str| tokens.mint(&id(name), &[service.to_owned()], HOUR, now()).unwrap();
    let good = mint("web", "web");
    foreign.grant_to(&id("web"), &good, now()).await.unwrap();
    assert_eq!(foreign.may_register(&id("web"), "web"), Ok(()));
    let error = foreign.grant_to(&id("orders"), &good, now()).await.unwrap_err().to_string();
    assert!(error.contains("sa/web") && error.contains("sa/orders"), "{error}");
    assert!(foreign.may_register(&id("orders"), "web").is_err());
    let stranger = JoinTokens::generate().unwrap().mint(&id("web"), &["api".into()], HOUR, now()).unwrap();
    assert!(matches!(
        foreign.grant_to(&id("web"), &stranger, now()).await,
        Err(GrantError::Token(TokenError::Signature))
    ));

    let claims = tulle_certs::token::claims_of(&good).unwrap();
    let change = |ledger: Ledger| Some(ledger.with_revoked(&claims.jti, Some(&claims), now()));
    change_ledger_of(&state, change).await.unwrap();
    assert!(matches!(foreign.grant_to(&id("web"), &good, now()).await, Err(GrantError::Revoked(_))));
    assert!(foreign.may_register(&id("web"), "web").is_err(), "what it has granted counts no more");
    // One that is good for one time may be shown on each stream, by whom it is for, and used for nothing else.
    let once = tokens.mint_once(&id("web"), &["once".to_owned()], HOUR, now()).unwrap();
    for _ in 0..2 {
        foreign.grant_to(&id("web"), &once, now()).await.unwrap();
    }
    assert_eq!(foreign.may_register(&id("web"), "once"), Ok(()));
    let spent = tokens.mint_once(&id("web"), &["twice".to_owned()], HOUR, now()).unwrap();
    let claims = tulle_certs::token::claims_of(&spent).unwrap();
    change_ledger_of(&state, |ledger: Ledger| ledger.with_used(&claims, now())).await.unwrap();
    assert!(matches!(foreign.grant_to(&id("web"), &spent, now()).await, Err(GrantError::Used(_))));
    // An authority of ours is none of these.
    let ours = tempfile::tempdir().unwrap();
    open(ours.path());
    assert!(stored_signer(ours.path()).unwrap().is_none());
    assert!(stored_signer(&ours.path().join("nowhere")).unwrap().is_none());
}
