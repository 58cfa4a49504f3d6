//! In a pod: its service account's token, which is written anew now and then, and the mesh's roots in a file.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;

/// As Kubernetes projects it; `number` tells one from the next.
fn token(number: u32) -> String {
    let claims = format!(
        r#"{{"aud": ["tulle"], "jti": "{number}", "kubernetes.io": {{"namespace": "shop", "pod": {{"name": "web-1", "uid": "u"}}, "serviceaccount": {{"name": "web", "uid": "v"}}}}}}"#
    );
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}

/// A pod's two files.
struct Pod {
    dir: tempfile::TempDir,
}

impl Pod {
    fn new(roots: &TrustBundle) -> Self {
        let pod = Self { dir: tempfile::tempdir().unwrap() };
        pod.write("token", &token(1));
        pod.write("ca.crt", &roots.to_pem());
        pod
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn source(&self, cp: &ControlPlane) -> Source {
        let Source::ControlPlane { way, token_file, .. } = cp.source(self.dir.path().join("token")) else {
            panic!("a control plane's")
        };
        let bundle_file = Some(self.dir.path().join("ca.crt"));
        Source::ControlPlane { way, token_file, bundle_file, trust_domain: None }
    }
}

#[tokio::test]
async fn a_pod_joins_by_the_token_of_its_service_account() {
    let state = State::new();
    let mut cp = ControlPlane::start(&state).await;
    let pod = Pod::new(state.authority.bundle());
    let source = pod.source(&cp);
    let identity = Identity::new();
    identity.obtain(&source).await.unwrap();
    assert_eq!(identity.ready().await.id(), &web());
    assert_eq!(cp.asked.recv().await, Some("pod"));
    // And shows it again each time, as it is written by then.
    pod.write("token", &token(2));
    identity.obtain(&source).await.unwrap();
    assert_eq!(cp.asked.recv().await, Some("pod"));
}

#[tokio::test]
async fn the_trust_domain_is_that_of_the_roots_or_the_one_that_is_set() {
    let domain = TrustDomain::new("example.org").unwrap();
    let authority = Authority::generate(&domain, ROOT_LIFETIME, now()).unwrap();
    let state = Arc::new(State { authority, tokens: JoinTokens::generate().unwrap(), lifetime: HOUR });
    let cp = ControlPlane::start_as(&state, &control_plane_id(&domain)).await;
    let pod = Pod::new(state.authority.bundle());
    let identity = Identity::new();
    identity.obtain(&pod.source(&cp)).await.unwrap();
    assert_eq!(identity.ready().await.id().trust_domain(), domain);

    let Source::ControlPlane { way, token_file, bundle_file, .. } = pod.source(&cp) else {
        panic!("a control plane's")
    };
    let other = Some(TrustDomain::default());
    let source = Source::ControlPlane { way, token_file, bundle_file, trust_domain: other };
    let error = Identity::new().obtain(&source).await.unwrap_err().to_string();
    assert!(error.contains("tls_"), "its control plane is another: {error}");
}

#[tokio::test]
async fn without_roots_a_pod_has_nobody_to_trust() {
    let state = State::new();
    let mut cp = ControlPlane::start(&state).await;
    let pod = Pod::new(state.authority.bundle());
    let error = Identity::new().obtain(&cp.source(pod.dir.path().join("token"))).await.unwrap_err();
    assert!(error.to_string().contains("IDENTITY_TRUST_BUNDLE_FILE"), "{error}");
    pod.write("ca.crt", "");
    let error = Identity::new().obtain(&pod.source(&cp)).await.unwrap_err();
    assert!(error.to_string().contains("ca.crt"), "{error}");
    assert!(cp.asked.try_recv().is_err());
}

#[tokio::test]
async fn roots_in_the_file_are_the_control_planes_and_never_a_peers() {
    let (mesh, other) = (State::new(), State::new());
    let mut cp = ControlPlane::start(&mesh).await;
    let pod = Pod::new(mesh.authority.bundle());
    let mut both = mesh.authority.bundle().clone();
    both.merge(other.authority.bundle()).unwrap();
    pod.write("ca.crt", &both.to_pem());
    let (source, identity) = (pod.source(&cp), Identity::new());
    for _ in 0..2 {
        identity.obtain(&source).await.unwrap();
        assert!(cp.asked.recv().await.is_some());
        assert_eq!(**identity.current().unwrap().bundle(), *mesh.authority.bundle());
    }
    let creds = identity.current().unwrap();
    let toward = |source: &Source| source.toward_control_plane(Arc::clone(&creds), now());
    assert_eq!(**toward(&source).bundle(), both);
    // Half of a file: what the control plane has told goes on.
    pod.write("ca.crt", "-----BEGIN CERTIFICATE-----\n");
    assert!(Arc::ptr_eq(&toward(&source), &creds));
    pod.write("ca.crt", &mesh.authority.bundle().to_pem());
    assert!(Arc::ptr_eq(&toward(&source), &creds), "nothing new");
}

#[tokio::test]
async fn a_control_plane_with_a_new_root_is_known_by_the_file() {
    let (old, new) = (State::new(), State::new());
    let pod = Pod::new(new.authority.bundle());
    let mut cp = ControlPlane::start(&new).await;
    let identity = Identity::fixed(old.creds(&web()));
    identity.obtain(&pod.source(&cp)).await.unwrap();
    assert!(cp.asked.recv().await.is_some());
    assert!(identity.current().unwrap().bundle().roots().contains(&new.authority.bundle().roots()[0]));
}
