//! Plugins that are small scripts: what they are told, what they say, and that none is left behind.

use std::fs;
use std::path::Path;

use super::*;

/// A plugin that is this script. It asks nobody.
fn plugin(script: &str) -> Plugin {
    let exec = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/sh", "args": ["-c", script],
        "env": [{"name": "GIVEN", "value": "of the kubeconfig"}], "interactiveMode": "Never",
    });
    Plugin { exec: serde_json::from_value(exec).unwrap(), patience: None }
}

async fn said(script: &str) -> String {
    match plugin(script).run().await {
        Ok(_) => panic!("`{script}` gives credentials"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn it_is_told_what_client_go_tells_and_its_words_are_taken_in_json_and_yaml() {
    let script = r#"case "$KUBERNETES_EXEC_INFO" in *'"kind":"ExecCredential"'*) ;; *) exit 3 ;; esac
        printf 'kind: ExecCredential\nstatus:\n  token: %s\n' "${GIVEN%% *}""#;
    let credentials = plugin(script).run().await.unwrap();
    assert_eq!(credentials.token.as_deref(), Some("of"));
    let json = r#"echo '{"status": {"clientCertificateData": "a", "clientKeyData": "b", "expirationTimestamp": "2100-01-01T00:00:00Z"}}'"#;
    let credentials = plugin(json).run().await.unwrap();
    assert!(credentials.expiring_token().unwrap().is_none(), "it is the certificate that expires");
    let mut auth = AuthInfo::default();
    credentials.put_into(&mut auth, true).unwrap();
    assert_eq!(auth.client_certificate_data.as_deref(), Some("YQ=="));
    assert!(auth.token.is_none() && auth.client_key_data.is_some());
}

#[tokio::test]
async fn what_gives_no_credentials_is_named_with_the_reason() {
    for (script, why) in [
        ("exit 7", "exit status: 7"),
        ("echo '{}'", "no ExecCredential with a `status`"),
        ("echo '{\"status\": {}}'", "neither a token nor a certificate"),
        ("echo '{\"status\": {\"clientKeyData\": \"a\"}}'", "one is missing"),
        ("printf '\\377'", "not UTF-8"),
    ] {
        let said = said(script).await;
        assert!(said.contains("credential plugin `/bin/sh`") && said.contains(why), "{script}: {said}");
        assert!(!said.contains(script), "arguments may be secrets: {said}");
    }
    let mut absent = plugin("");
    absent.exec.command = Some("/no/such/plugin".to_owned());
    absent.exec.install_hint = Some("install it from example.com".to_owned());
    let said = absent.run().await.err().unwrap().to_string();
    assert!(
        said.contains("`/no/such/plugin` cannot be started") && said.contains("from example.com"),
        "{said}"
    );
}

#[tokio::test]
async fn one_that_never_ends_is_ended_in_time() {
    let mut plugin = plugin("sleep 600");
    plugin.patience = Some(Duration::from_millis(50));
    let said = plugin.run().await.err().unwrap().to_string();
    assert!(said.contains("`/bin/sh` did not end within 50ms"), "{said}");
}

#[tokio::test]
async fn one_that_nobody_waits_for_any_more_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let place = file.display();
    let plugin = plugin(&format!("echo $$ > {place}.new; mv {place}.new {place}; exec sleep 600"));
    let begun = async {
        while !file.exists() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        _ = plugin.run() => panic!("it never ends"),
        () = begun => {}
    }
    let pid = fs::read_to_string(&file).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "{pid} is left behind");
}

#[tokio::test]
async fn a_token_is_asked_for_anew_before_it_expires_and_a_failure_is_not_repeated_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("asked");
    let place = file.display();
    let plugin = plugin(&format!(
        "echo x >> {place}; echo '{{\"status\": {{\"token\": \"next\", \"expirationTimestamp\": \"2100-01-01T00:00:00Z\"}}}}'"
    ));
    let expires = Timestamp::now() - EARLY;
    let held =
        |expires| Mutex::new(Held { token: HeaderValue::from_static("Bearer last"), expires, failed: None });
    let renewed = Renewed { plugin, held: held(expires) };
    for _ in 0..3 {
        assert_eq!(renewed.token().await.unwrap(), "Bearer next");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "x\n", "it was asked once");
    // What fails is told, unless what there is still serves.
    let failing = || self::plugin(&format!("echo x >> {place}; exit 1"));
    for (expires, serves) in [(expires, false), (Timestamp::now() + SignedDuration::from_secs(30), true)] {
        let renewed = Renewed { plugin: failing(), held: held(expires) };
        for _ in 0..3 {
            assert_eq!(renewed.token().await.is_ok(), serves);
        }
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "x\nx\nx\n", "and once of each that fails");
}

#[tokio::test]
async fn the_token_that_expires_is_in_each_request() {
    let token = r#"echo '{"status": {"token": "abc", "expirationTimestamp": "2100-01-01T00:00:00Z"}}'"#;
    let held = Held { token: HeaderValue::from_static("Bearer abc"), expires: Timestamp::MAX, failed: None };
    let service = tower::service_fn(|request: Request<Body>| async move {
        let told = request.headers().get(AUTHORIZATION).cloned().unwrap();
        Ok::<_, std::convert::Infallible>(http::Response::new(Body::from(told.as_bytes().to_vec())))
    });
    let renewed = Renewed { plugin: plugin(token), held: Mutex::new(held) };
    let client = with_token(Client::new(service, "default"), "default".to_owned(), renewed);
    let request = Request::get("/version").body(Vec::new()).unwrap();
    assert_eq!(client.request_text(request).await.unwrap(), "Bearer abc");
}
