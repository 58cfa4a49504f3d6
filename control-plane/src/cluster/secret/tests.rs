use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::sync::watch;
use tulle_certs::SpiffeId;

use super::*;
use crate::ca::ledger::Ledger;
use crate::ca::{Options, change_ledger_in};
use crate::cluster::testing::{ApiServer, Failure};
use crate::metrics::Metrics;

const PATH: &str = "/api/v1/namespaces/tulle-system/secrets/tulle-identity";

fn domain() -> TrustDomain {
    TrustDomain::default()
}

fn secret(server: &Arc<ApiServer>) -> Secret {
    Secret::new(server.client(), "tulle-system")
}

async fn ca(server: &Arc<ApiServer>) -> Ca {
    let secret = secret(server);
    let kept = secret.open(&domain(), SystemTime::now()).await.unwrap();
    Ca::with_store(Arc::new(secret), kept, &domain(), SystemTime::now(), Options::default()).unwrap()
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&domain(), "shop", account).unwrap()
}

fn held(held: bool) -> (watch::Sender<bool>, Holder) {
    let (sender, receiver) = watch::channel(held);
    (sender, Holder::of(receiver))
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

#[tokio::test]
async fn replicas_that_start_together_have_one_root() {
    let server = ApiServer::start();
    let opening = (0..5).map(|_| ca(&server));
    let replicas = futures_util::future::join_all(opening).await;
    let pins: Vec<_> = replicas.iter().map(Ca::pin).collect();
    assert!(pins.iter().all(|pin| *pin == pins[0]), "{pins:?}");
    assert!(server.asked(&Method::PATCH, "secrets") >= 2, "the test is of a race");
    let token = replicas[0].tokens().mint(&id("web"), &[], Duration::from_secs(60), SystemTime::now());
    assert!(replicas[4].tokens().verify(&token.unwrap(), SystemTime::now()).is_ok());
    assert_eq!(ca(&server).await.pin(), pins[0], "and keep it");
}

#[tokio::test]
async fn a_root_that_is_given_is_used_and_what_is_missing_is_added() {
    let given = {
        let server = ApiServer::start();
        ca(&server).await;
        server.object(PATH).unwrap()
    };
    let server = ApiServer::start();
    let mut mine = given.clone();
    mine["metadata"] = json!({"name": SECRET, "labels": {"mine": "yes"}});
    mine["data"].as_object_mut().unwrap().remove("token-key.pem");
    mine["data"]["note"] = json!("eA==");
    server.put(PATH, mine);
    ca(&server).await;
    let now = server.object(PATH).unwrap();
    assert_eq!(now["data"]["ca.pem"], given["data"]["ca.pem"]);
    assert!(now["data"]["token-key.pem"].is_string());
    assert_eq!((&now["data"]["note"], &now["metadata"]["labels"]["mine"]), (&json!("eA=="), &json!("yes")));

    let half = ApiServer::start();
    let mut only = given;
    only["data"].as_object_mut().unwrap().remove("ca-key.pem");
    half.put(PATH, only);
    let error = secret(&half).open(&domain(), SystemTime::now()).await.unwrap_err().to_string();
    assert!(error.contains("tulle-identity, key ca-key.pem is missing"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_at_the_start_is_waited_for_and_then_named() {
    let server = ApiServer::start();
    server.fail(|_, _| Some(Failure::Status(503)));
    let error = secret(&server).open(&domain(), SystemTime::now()).await.unwrap_err().to_string();
    assert!(error.contains("Secret tulle-system/tulle-identity") && error.contains("503"), "{error}");
    server.fail(|_, _| Some(Failure::Status(403)));
    let error = secret(&server).open(&domain(), SystemTime::now()).await.unwrap_err().to_string();
    assert!(error.contains("rights"), "{error}");
}

#[tokio::test]
async fn grants_of_several_replicas_add_up() {
    let server = ApiServer::start();
    let replicas = [ca(&server).await, ca(&server).await];
    let granting = (0..10).map(|number| {
        let replica = &replicas[number % 2];
        async move { replica.grant(&id(&format!("w{number}")), &[format!("s{number}")]).await.unwrap() }
    });
    futures_util::future::join_all(granting).await;
    let later = ca(&server).await;
    for number in 0..10 {
        assert_eq!(later.may_register(&id(&format!("w{number}")), &format!("s{number}")), Ok(()));
    }
}

#[tokio::test]
async fn replicas_notice_what_others_write_and_refuse_what_cannot_be_used() {
    let server = ApiServer::start();
    let (first, second) = (ca(&server).await, ca(&server).await);
    let (_sender, holder) = held(false);
    let watching = tokio::spawn(secret(&server).watch(second.clone(), holder));
    first.grant(&id("web"), &["web".into()]).await.unwrap();
    soon("the grant is known", || second.may_register(&id("web"), "web").is_ok()).await;

    let good = server.object(PATH).unwrap();
    let mut broken = good.clone();
    broken["data"]["ca.pem"] = json!("eA==");
    server.put(PATH, broken);
    let other = ApiServer::start();
    ca(&other).await;
    let mut bundles = second.bundles();
    assert!(!bundles.has_changed().unwrap());
    let mut replaced = good;
    for key in ["ca.pem", "ca-key.pem"] {
        replaced["data"][key] = other.object(PATH).unwrap()["data"][key].clone();
    }
    server.put(PATH, replaced);
    bundles.changed().await.unwrap();
    soon("the new root issues", || second.pin() != first.pin()).await;
    assert_eq!(**second.creds().bundle(), *second.bundle());
    watching.abort();
}

#[tokio::test]
async fn a_new_root_without_a_key_of_join_tokens_gets_the_one_in_use() {
    let (server, other) = (ApiServer::start(), ApiServer::start());
    let (ca, new) = (ca(&server).await, ca(&other).await);
    ca.grant(&id("web"), &["web".into()]).await.unwrap();
    let (_sender, holder) = held(true);
    let watching = tokio::spawn(secret(&server).watch(ca.clone(), holder));
    let (before, root) = (server.object(PATH).unwrap(), other.object(PATH).unwrap());
    let mut replaced = before.clone();
    replaced["data"] = json!({"ca.pem": root["data"]["ca.pem"], "ca-key.pem": root["data"]["ca-key.pem"]});
    server.put(PATH, replaced);
    soon("the new root issues", || ca.pin() == new.pin()).await;
    let after = server.object(PATH).unwrap();
    assert_eq!(after["data"]["ca.pem"], root["data"]["ca.pem"]);
    for key in ["token-key.pem", "grants.json"] {
        assert_eq!(after["data"][key], before["data"][key], "{key}");
    }
    watching.abort();
}

#[tokio::test]
async fn a_join_token_that_is_revoked_in_the_secret_is_so_for_every_replica() {
    let server = ApiServer::start();
    let replicas = [ca(&server).await, ca(&server).await];
    replicas[0].grant(&id("web"), &["web".into()]).await.unwrap();
    let (_sender, holder) = held(false);
    let watching = replicas.each_ref().map(|ca| {
        let (ca, holder) = (ca.clone(), holder.clone());
        tokio::spawn(secret(&server).watch(ca, holder))
    });
    let revoked = |ledger: Ledger| Some(ledger.with_revoked("stolen", None, SystemTime::now()));
    let before = change_ledger_in(&secret(&server), revoked).await.unwrap();
    assert_eq!(before, Ledger::default());
    soon("all know it", || replicas.iter().all(|ca| ca.is_revoked("stolen"))).await;
    // What others keep there is as it was; who starts later knows it too.
    assert!(server.object(PATH).unwrap()["data"]["grants.json"].is_string());
    assert!(ca(&server).await.is_revoked("stolen"));
    watching.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_secret_that_is_deleted_is_written_again_by_the_holder_of_the_lease() {
    let server = ApiServer::start();
    let ca = ca(&server).await;
    ca.grant(&id("web"), &["web".into()]).await.unwrap();
    let (sender, holder) = held(false);
    let watching = tokio::spawn(secret(&server).watch(ca.clone(), holder));
    soon("the watch is open", || server.asked(&Method::GET, "secrets") >= 4).await;
    let before = server.object(PATH).unwrap();
    server.delete(PATH);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.object(PATH), None, "who does not hold the lease does not write");
    sender.send_replace(true);
    soon("it is back", || server.object(PATH).is_some()).await;
    let grants = |object: &Value| object["data"]["grants.json"].clone();
    let after = server.object(PATH).unwrap();
    assert_eq!((&after["data"]["ca.pem"], grants(&after)), (&before["data"]["ca.pem"], grants(&before)));
    watching.abort();
}

#[tokio::test]
async fn a_secret_that_is_gone_with_the_api_servers_store_is_written_again() {
    let server = ApiServer::start();
    let ca = ca(&server).await;
    let (_sender, holder) = held(true);
    let watching = tokio::spawn(secret(&server).watch(ca.clone(), holder));
    soon("the watch is open", || server.asked(&Method::GET, "secrets") >= 3).await;
    let before = server.object(PATH).unwrap();
    let asked = server.asked(&Method::GET, "secrets");
    server.fail(|_, _| Some(Failure::Status(503)));
    server.empty();
    soon("it is asked for in vain", || server.asked(&Method::GET, "secrets") > asked).await;
    server.mend();
    soon("it is back", || server.object(PATH).is_some()).await;
    let after = server.object(PATH).unwrap();
    for key in ["ca.pem", "ca-key.pem", "token-key.pem"] {
        assert_eq!(after["data"][key], before["data"][key], "{key}");
    }
    watching.abort();
}

#[tokio::test]
async fn a_secret_that_is_emptied_is_filled_again() {
    let server = ApiServer::start();
    let ca = ca(&server).await;
    let (_sender, holder) = held(true);
    let watching = tokio::spawn(secret(&server).watch(ca.clone(), holder));
    let good = server.object(PATH).unwrap();
    let back = || server.object(PATH).is_some_and(|now| now["data"] == good["data"]);
    for emptied in [json!({}), json!({"ca.pem": "", "ca-key.pem": ""})] {
        let mut object = good.clone();
        object["data"] = emptied;
        server.put(PATH, object);
        soon("it is filled", back).await;
    }
    // Somebody's own root, half of which is there: that is nothing to mix with ours.
    let mut half = good.clone();
    half["data"] = json!({"ca.pem": "eA=="});
    server.put(PATH, half.clone());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.object(PATH).unwrap()["data"], half["data"]);
    watching.abort();
}

#[tokio::test]
async fn what_is_destroyed_of_a_secret_is_written_again_and_who_starts_meanwhile_waits_for_it() {
    let server = ApiServer::start();
    let running = ca(&server).await;
    let (sender, holder) = held(false);
    let writes = Metrics::new().unwrap().identity_writes;
    let watching = tokio::spawn(secret(&server).counting(writes.clone()).watch(running.clone(), holder));
    let mut told = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": BUNDLE}});
    told["data"] = json!({"ca.crt": "-----BEGIN CERTIFICATE-----"});
    server.put("/api/v1/namespaces/tulle-system/configmaps/tulle-trust-bundle", told);
    let good = server.object(PATH).unwrap();
    // The second is not even text.
    for (key, text) in [("ca-key.pem", None), ("ca.pem", Some("/w==")), ("token-key.pem", Some("eA=="))] {
        let mut broken = good.clone();
        match text {
            Some(text) => broken["data"][key] = json!(text),
            None => drop(broken["data"].as_object_mut().unwrap().remove(key)),
        }
        server.put(PATH, broken);
        let starting = tokio::spawn({
            let secret = secret(&server);
            async move { secret.open(&domain(), SystemTime::now()).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        sender.send_replace(true);
        assert_eq!(starting.await.unwrap().unwrap(), running.kept(), "{key}");
        assert_eq!(server.object(PATH).unwrap()["data"], good["data"], "{key}");
        sender.send_replace(false);
    }
    assert_eq!(writes.with_label_values(&["written"]).get(), 3);
    watching.abort();
}

#[tokio::test(start_paused = true)]
async fn what_is_destroyed_and_nobody_mends_is_named_with_the_remedy() {
    let server = ApiServer::start();
    ca(&server).await;
    let mut told = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": BUNDLE}});
    told["data"] = json!({"ca.crt": "-----BEGIN CERTIFICATE-----"});
    server.put("/api/v1/namespaces/tulle-system/configmaps/tulle-trust-bundle", told);
    let mut broken = server.object(PATH).unwrap();
    broken["data"]["ca-key.pem"] = json!("eA==");
    server.put(PATH, broken);
    let error = secret(&server).open(&domain(), SystemTime::now()).await.unwrap_err().to_string();
    for said in ["key ca-key.pem", BUNDLE, "restore the Secret from its backup", "repair --force"] {
        assert!(error.contains(said), "{said}: {error}");
    }
    let error = secret(&server).repair(None, false, SystemTime::now()).await.unwrap_err().to_string();
    assert!(error.contains("key ca-key.pem") && error.contains("writes it again"), "{error}");
    assert!(secret(&server).repair(None, true, SystemTime::now()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn no_new_root_is_made_while_the_config_map_says_that_there_is_one() {
    let server = ApiServer::start();
    let path = "/api/v1/namespaces/tulle-system/configmaps/tulle-trust-bundle";
    let mut told = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": BUNDLE}});
    told["data"] = json!({"ca.crt": "-----BEGIN CERTIFICATE-----"});
    server.put(path, told);
    let error = secret(&server).open(&domain(), SystemTime::now()).await.unwrap_err().to_string();
    assert!(error.contains(SECRET) && error.contains(BUNDLE) && error.contains("restore"), "{error}");
    assert_eq!(server.object(PATH), None);
    // One that runs writes it again, and who starts takes that.
    let other = ApiServer::start();
    let kept = ca(&other).await;
    let starting = tokio::spawn({
        let secret = secret(&server);
        async move { secret.open(&domain(), SystemTime::now()).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.put(PATH, other.object(PATH).unwrap());
    assert_eq!(starting.await.unwrap().unwrap(), kept.kept());
}

#[tokio::test]
async fn beside_an_issuer_what_is_lost_is_told_from_what_never_was() {
    let server = ApiServer::start();
    let beside = secret(&server).beside_issuer();
    let lost = async || matches!(beside.is_new("", false).await, Err(ApiError::Lost(_)));
    assert!(!lost().await, "a first start");
    beside.open(&domain(), SystemTime::now()).await.unwrap();
    let first = server.object(PATH).unwrap();
    let mut told = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": BUNDLE}});
    told["data"] = json!({"ca.crt": "-----BEGIN CERTIFICATE-----"});
    server.put("/api/v1/namespaces/tulle-system/configmaps/tulle-trust-bundle", told);
    server.delete(PATH);
    assert!(lost().await);
    // The mesh goes on all the same: its root is the issuer's.
    beside.open(&domain(), SystemTime::now()).await.unwrap();
    let again = server.object(PATH).unwrap();
    assert_ne!(first["data"]["token-key.pem"], again["data"]["token-key.pem"]);
}

#[tokio::test]
async fn tokens_are_made_with_what_is_kept_and_pin_the_root_that_proxies_trust() {
    let server = ApiServer::start();
    let kept = secret(&server);
    assert!(kept.stored_tokens().await.is_err(), "nothing is made");
    assert!(server.object(PATH).is_none());
    let ca = ca(&server).await;
    let stored = kept.stored_tokens().await.unwrap();
    let token = stored.tokens.mint(&id("web"), &[], Duration::from_secs(60), SystemTime::now()).unwrap();
    assert!(ca.tokens().verify(&token, SystemTime::now()).is_ok());
    assert_eq!((stored.pin, stored.trust_domain), (ca.pin(), Some(domain())));

    // Beside an issuer, whose root proxies are told.
    let beside = ApiServer::start();
    secret(&beside).beside_issuer().open(&domain(), SystemTime::now()).await.unwrap();
    let tell = |roots: String| {
        let mut told = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": BUNDLE}});
        told["data"] = json!({ KEY: roots });
        beside.put("/api/v1/namespaces/tulle-system/configmaps/tulle-trust-bundle", told);
    };
    let root = ca.bundle().to_pem();
    tell(root.clone());
    assert_eq!(secret(&beside).stored_tokens().await.unwrap().pin, ca.pin());
    let other = Ca::open(tempfile::tempdir().unwrap().path(), &domain(), SystemTime::now()).unwrap();
    tell(root + &other.bundle().to_pem());
    let error = secret(&beside).stored_tokens().await.unwrap_err().to_string();
    assert!(error.contains("2 roots") && error.contains("tulle-trust-bundle"), "{error}");
}
