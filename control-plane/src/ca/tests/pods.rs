//! Certificates by the token of a pod's service account.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;

/// As Kubernetes projects it.
fn token() -> String {
    let claims = r#"{"aud": ["tulle"], "kubernetes.io": {"namespace": "shop", "pod": {"name": "web-1", "uid": "u"}, "serviceaccount": {"name": "web", "uid": "v"}}}"#;
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}

/// Says always the same.
struct Says(Result<Bearer, ReviewError>);

#[tonic::async_trait]
impl Reviewer for Says {
    async fn review(&self, _: &str, _: Option<std::net::IpAddr>) -> Result<Bearer, ReviewError> {
        self.0.clone()
    }
}

fn reviewed(dir: &Path, answer: Result<Bearer, ReviewError>) -> Ca {
    let options = Options { reviewer: Some(Arc::new(Says(answer))), ..Options::default() };
    Ca::open_with(dir, &domain(), now(), options).unwrap()
}

fn bearer_of(namespace: &str, account: &str) -> Bearer {
    Bearer { namespace: namespace.into(), service_account: account.into(), pod: "web-1".into() }
}

#[test]
fn a_pod_is_given_the_identity_that_the_api_server_says_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    // Not what the token says of itself.
    let ca = reviewed(dir.path(), Ok(bearer_of("shop", "orders")));
    let (mut ask, key) = request(0);
    bearer(&mut ask, &token());
    let answer = certificate(&ca, &ask, now()).unwrap();
    let (chain, bundle) = split_chain(&answer.cert_chain, &domain()).unwrap();
    let creds = Creds::new(chain, key, Arc::new(bundle), now()).unwrap();
    assert_eq!(creds.id(), &id("orders"));
    assert!(!ca.has_joined(&id("orders")), "it may register nothing");

    let (mut ask, _) = request(0);
    bearer(&mut ask, &token());
    ask.extensions_mut().insert(Caller { id: id("web"), not_after: now() + HOUR, lineage: None });
    let status = certificate(&ca, &ask, now()).unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
}

#[test]
fn what_the_api_server_refuses_or_cannot_say_gives_no_certificate() {
    let cases = [
        (Err(ReviewError::Refused("it is bound to no pod".into())), Code::Unauthenticated, "bound to no pod"),
        (Err(ReviewError::Unavailable("no answer".into())), Code::Unavailable, "ask again"),
        (Ok(bearer_of("tulle-system", "tulle-control-plane")), Code::PermissionDenied, "control plane's own"),
        (Ok(bearer_of("shop", "we b")), Code::Unauthenticated, "not valid"),
    ];
    for (answer, code, word) in cases {
        let dir = tempfile::tempdir().unwrap();
        let ca = reviewed(dir.path(), answer);
        let (mut ask, _) = request(0);
        bearer(&mut ask, &token());
        let status = certificate(&ca, &ask, now()).unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(word) && !status.message().contains(&token()), "{status}");
    }
}

#[test]
fn without_an_api_server_a_pods_token_is_told_as_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    let (mut ask, _) = request(0);
    bearer(&mut ask, &token());
    let status = certificate(&ca, &ask, now()).unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("--source kubernetes"), "{status}");
}

#[test]
fn a_pods_certificate_is_not_renewed_without_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let ca = reviewed(dir.path(), Ok(bearer_of("shop", "web")));
    let caller = |account: &str| Caller { id: id(account), not_after: now() + HOUR, lineage: None };
    let (mut ask, _) = request(0);
    ask.extensions_mut().insert(caller("web"));
    let status = certificate(&ca, &ask, now()).unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(status.message().contains("token of its pod"), "{status}");
    bearer(&mut ask, &token());
    certificate(&ca, &ask, now()).unwrap();
    assert!(!ca.has_joined(&id("web")));

    // What has joined with a join token is no pod: it goes on by its certificate, also after a restart, and where the token grants nothing.
    let (mut ask, _) = request(0);
    bearer(&mut ask, &ca.tokens().mint(&id("vm"), &[], HOUR, now()).unwrap());
    let answer = certificate(&ca, &ask, now()).unwrap();
    let (chain, _) = split_chain(&answer.cert_chain, &domain()).unwrap();
    let joined = Caller::of(Some(chain.as_slice())).unwrap().unwrap();
    drop(ca);
    let ca = reviewed(dir.path(), Ok(bearer_of("shop", "web")));
    let (mut ask, _) = request(0);
    ask.extensions_mut().insert(joined);
    certificate(&ca, &ask, now()).unwrap();

    // A pod of that very identity has not joined by it.
    let (mut ask, _) = request(0);
    ask.extensions_mut().insert(caller("vm"));
    let status = certificate(&ca, &ask, now()).unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
}
