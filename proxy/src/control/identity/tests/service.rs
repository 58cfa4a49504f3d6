//! Another certificate service, as cert-manager's istio-csr: known by its name and by roots of its own.

use rustls::pki_types::ServerName;
use tulle_certs::alpn;
use tulle_certs::serving::ServingAuthority;

use super::*;
use crate::control::identity::Service;

/// What a pod of `shop/web` is given.
fn pod_token() -> String {
    use base64::Engine as _;
    let claims =
        r#"{"aud": ["istio-ca"], "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "web"}}}"#;
    let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims);
    format!("e30.{encoded}.c2ln")
}

struct Place {
    dir: tempfile::TempDir,
    server: ControlPlane,
}

impl Place {
    /// A server called `istio-csr.test`, and the files to ask it with.
    async fn new(state: &Arc<State>) -> Self {
        let authority = ServingAuthority::generate("Test", HOUR, now()).unwrap();
        let serving = authority.issue(&["istio-csr.test".to_owned()], HOUR, now()).unwrap();
        let tls = serving.server_config(&[alpn::GRPC]).unwrap();
        let place =
            Self { dir: tempfile::tempdir().unwrap(), server: ControlPlane::start_behind(state, tls).await };
        place.write("roots", &authority.certificate_pem());
        place.write("token", &pod_token());
        place
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn service(&self) -> Service {
        let Source::ControlPlane { way, token_file, .. } = self.server.source(self.dir.path().join("token"))
        else {
            panic!("a control plane's")
        };
        Service {
            way,
            token_file,
            name: ServerName::try_from("istio-csr.test").unwrap(),
            roots_file: self.dir.path().join("roots"),
            wanted: None,
            bundle_file: None,
            trust_domain: None,
        }
    }
}

async fn obtain(identity: &Identity, service: Service) -> Result<bool, String> {
    identity.obtain(&Source::Service(Box::new(service))).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_token_is_shown_each_time_and_its_service_account_is_who_we_become() {
    let state = State::new();
    let mut place = Place::new(&state).await;
    let identity = Identity::new();
    assert_eq!(obtain(&identity, place.service()).await, Ok(true));
    let first = identity.current().unwrap();
    assert_eq!(first.id(), &web());
    assert_eq!(**first.bundle(), *state.authority.bundle(), "the root is the last of the answer");
    assert_eq!(obtain(&identity, place.service()).await, Ok(true));
    assert_ne!(first.key().public_key(), identity.current().unwrap().key().public_key());
    assert_eq!([place.server.asked.recv().await, place.server.asked.recv().await], [Some("pod"); 2]);

    // Another's certificate is not taken.
    let orders = SpiffeId::new(&TrustDomain::default(), "shop", "orders").unwrap();
    let error = obtain(&identity, Service { wanted: Some(orders), ..place.service() }).await.unwrap_err();
    assert!(error.contains("sa/orders") && error.contains("sa/web"), "{error}");
}

#[tokio::test]
async fn what_is_wrong_is_told_with_the_servers_address_or_the_file() {
    let state = State::new();
    let place = Place::new(&state).await;
    let identity = Identity::new();
    let address = place.server.address.to_string();
    let refused = async |service: Service, words: &[&str]| {
        let error = obtain(&identity, service).await.unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
        assert!(!error.contains(&pod_token()), "the token is a secret");
    };
    // Somebody else's certificate, though of a good root.
    let other = Service { name: ServerName::try_from("other.test").unwrap(), ..place.service() };
    refused(other, &[address.as_str(), "the certificate service"]).await;
    place.write("roots", &ServingAuthority::generate("Other", HOUR, now()).unwrap().certificate_pem());
    refused(place.service(), &[address.as_str(), "tls_unknown_root"]).await;
    place.write("roots", "");
    refused(place.service(), &["roots", "CERTIFICATE"]).await;

    let place = Place::new(&state).await;
    let address = place.server.address.to_string();
    place.write("token", "\n");
    refused(place.service(), &["token", "there is no token"]).await;
    place.write("token", "a.b.c");
    refused(place.service(), &["token", "TULLE_PROXY_IDENTITY_SPIFFE_ID"]).await;
    // A join token of another control plane.
    let foreign = JoinTokens::generate().unwrap().mint(&web(), &[], HOUR, now()).unwrap();
    place.write("token", &foreign);
    let service = Service { wanted: Some(web()), ..place.service() };
    refused(service, &[address.as_str(), "issued no certificate", "audience"]).await;
    let missing = Service { roots_file: place.dir.path().join("nothing"), ..place.service() };
    place.write("token", &pod_token());
    refused(missing, &["nothing"]).await;
    assert!(identity.current().is_none());
}
