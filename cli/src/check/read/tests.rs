//! The reader before API servers in memory: pages, what is forbidden, what does not answer, and what is sent.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;

use super::*;

/// Paths, and what was sent there.
type Requests = Mutex<Vec<(String, Value)>>;
type Answers = dyn Fn(&str) -> (u16, Value) + Send + Sync;

/// An API server that answers by path and query; it remembers what was asked and sent.
fn server(answers: impl Fn(&str) -> (u16, Value) + Send + Sync + 'static) -> (Api, Arc<Requests>) {
    let answers: Arc<Answers> = Arc::new(answers);
    let asked = Arc::<Requests>::default();
    let remembered = Arc::clone(&asked);
    let service = tower::service_fn(move |request: Request<Body>| {
        let (answers, asked) = (Arc::clone(&answers), Arc::clone(&remembered));
        async move {
            let (head, body) = request.into_parts();
            let path = head.uri.path_and_query().unwrap().as_str().to_owned();
            let body = body.collect().await.unwrap().to_bytes();
            asked.lock().push((path.clone(), serde_json::from_slice(&body).unwrap_or_default()));
            let (code, answer) = answers(&path);
            if code == 0 {
                std::future::pending::<()>().await;
            }
            let text = match answer {
                Value::String(text) => text,
                other => other.to_string(),
            };
            let mut response = Response::new(Body::from(text.into_bytes()));
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            Ok::<_, Infallible>(response)
        }
    });
    let api =
        Api::new(Client::new(service, "default"), "https://here".to_owned(), Duration::from_millis(200));
    (api, asked)
}

fn status(code: u16, message: &str) -> (u16, Value) {
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message}),
    )
}

#[tokio::test]
async fn a_list_is_read_page_by_page() {
    let (api, asked) = server(|path| {
        let next = if path.contains("continue=b%2B") { "" } else { "b+" };
        (200, json!({"metadata": {"continue": next}, "items": [{"n": 1}, {"n": 2}]}))
    });
    let kept = api
        .list("/api/v1/pods?fieldSelector=x", "list pods", |one| (one["n"] == 2).then_some(one))
        .await
        .unwrap();
    assert_eq!(kept, [json!({"n": 2}), json!({"n": 2})]);
    let asked: Vec<String> = asked.lock().iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(
        asked,
        ["/api/v1/pods?fieldSelector=x&limit=250", "/api/v1/pods?fieldSelector=x&limit=250&continue=b%2B"]
    );
    // A server that goes round in circles, and one that gives no list.
    let (api, _) = server(|_| (200, json!({"metadata": {"continue": "same"}, "items": [1]})));
    assert_eq!(api.list("/api/v1/nodes", "list nodes", Some).await.unwrap().len(), 2);
    let (api, _) = server(|_| (200, json!({"kind": "Pod"})));
    assert_eq!(
        api.list("/x", "list x", Some).await,
        Err(Unread::Failed("https://here/x is no list".to_owned()))
    );
}

#[tokio::test]
async fn what_is_not_answered_says_why() {
    let said = async |code, text: Value| {
        let (api, _) = server(move |_| (code, text.clone()));
        api.get("/version", "get /version").await.unwrap_err()
    };
    assert_eq!(said(403, status(403, "no").1).await, Unread::Forbidden("get /version".to_owned()));
    for (code, text, part) in [
        (401, status(401, "Unauthorized").1, "does not know who you are"),
        (429, status(429, "slow down").1, "https://here answers 429: slow down"),
        (502, json!("<html>"), "https://here answers 502"),
        (200, json!("<html>"), "no JSON"),
        (0, Value::Null, "https://here: no answer within 200ms"),
    ] {
        let Unread::Failed(why) = said(code, text).await else { panic!("{code}") };
        assert!(why.contains(part), "{code}: {why}");
    }
    let (api, _) = server(|_| status(404, "there is none"));
    assert_eq!(api.find("/x", "get x").await, Ok(None));
}

#[tokio::test]
async fn a_pod_for_a_question_is_a_dry_run_where_it_may_be_injected() {
    let mut seen = Seen::new(Stage::After, SystemTime::now(), String::new(), "tulle-system".to_owned());
    let labelled = |name: &str, more: Value| {
        let mut labels = json!({"tulle.dev/inject": "enabled"});
        labels.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"metadata": {"name": name, "labels": labels}})
    };
    seen.namespaces =
        Ok(vec![labelled("safe", json!({POD_SECURITY: "restricted"})), labelled("shop", json!({}))]);
    let tried = async |answer: (u16, Value)| {
        let (api, asked) = server(move |_| answer.clone());
        let trial = trial(&api, &seen).await;
        let (path, pod) = asked.lock()[0].clone();
        assert_eq!(path, "/api/v1/namespaces/shop/pods?dryRun=All");
        assert_eq!(pod["metadata"]["labels"]["tulle.dev/inject"], "enabled");
        trial
    };
    let containers = json!([{"name": "tulle-init"}, {"name": "tulle-proxy"}]);
    let made = json!({"metadata": {"annotations": {"tulle.dev/status": "{}"}}, "spec": {"initContainers": containers}});
    assert_eq!(tried((201, made)).await, Ok(Trial::Injected));
    assert_eq!(tried((201, json!({"metadata": {}}))).await, Ok(Trial::Left));
    assert_eq!(
        tried(status(500, "failed calling webhook")).await,
        Ok(Trial::Refused("failed calling webhook".to_owned()))
    );
    assert_eq!(tried(status(403, "exceeded quota")).await, Ok(Trial::Refused("exceeded quota".to_owned())));
    let mine = "pods is forbidden: User \"x\" cannot create resource \"pods\" in API group \"\"";
    assert_eq!(tried(status(403, mine)).await, Err(Unread::Forbidden("create pods in shop".to_owned())));
    seen.namespaces = Err(Unread::NotAsked);
    assert_eq!(trial_namespace(&seen), "default");
}

#[tokio::test]
async fn a_lease_is_looked_at_again_only_where_it_may_be_an_old_one() {
    let renewed = |time: String| json!({"spec": {"holderIdentity": "a_1", "leaseDurationSeconds": 15, "renewTime": time}});
    let now = Timestamp::now().to_string();
    let (api, asked) = server(move |_| (200, renewed(now.clone())));
    let found = lease(&api, "tulle-system").await.unwrap().unwrap();
    assert!(found.is_fresh(SystemTime::now()) && asked.lock().len() == 1);
    // Of an hour ago, and renewed meanwhile.
    let count = Mutex::new(0);
    let (api, asked) = server(move |_| {
        *count.lock() += 1;
        (200, renewed(format!("2026-01-01T00:00:{:02}.000000Z", *count.lock())))
    });
    let found = lease(&api, "tulle-system").await.unwrap().unwrap();
    assert!(found.moves && asked.lock().len() == 2, "{found:?}");
    let (api, _) = server(|_| status(404, "none"));
    assert_eq!(lease(&api, "tulle-system").await, Ok(None));
}

/// An API server on which nothing is installed.
fn empty(path: &str) -> (u16, Value) {
    match path {
        "/version" => (200, json!({"gitVersion": "v1.31.0"})),
        path if path.ends_with("accessreviews") => (201, json!({"status": {"allowed": true}})),
        path if path.contains("limit=") => (200, json!({"metadata": {}, "items": []})),
        _ => status(404, "none"),
    }
}

#[tokio::test]
async fn a_part_that_may_not_be_read_ends_nothing() {
    let (api, _) = server(|path| if path.contains("/nodes") { status(403, "no") } else { empty(path) });
    let mut seen = Seen::new(Stage::Before, SystemTime::now(), String::new(), "tulle-system".to_owned());
    platform(&api, &mut seen).await;
    seen.rights = rights(&api, "tulle-system").await;
    assert_eq!(seen.nodes, Err(Unread::Forbidden("list nodes".to_owned())));
    assert_eq!((seen.cilium, seen.deployment), (Ok(None), Ok(None)));
    assert_eq!(seen.rights.unwrap().iter().filter(|(_, may)| *may).count(), INSTALL.len() + 1);
    assert_eq!(seen.definitions.unwrap().values().filter(|one| one.is_none()).count(), 15);
}

#[tokio::test]
async fn where_no_control_plane_is_nothing_is_asked_of_it() {
    let (api, asked) = server(empty);
    let mut seen = Seen::new(Stage::After, SystemTime::now(), String::new(), "tulle-system".to_owned());
    platform(&api, &mut seen).await;
    let before = asked.lock().len();
    installed(&api, &mut seen).await;
    assert_eq!(asked.lock().len(), before);
    assert_eq!(seen.pods, Err(Unread::NotAsked));
}

#[test]
fn of_a_pod_only_what_checks_look_at_is_kept() {
    let pod = json!({
        "metadata": {"name": "a", "managedFields": [1]},
        "spec": {"containers": [{"name": "app", "env": [1], "ports": [{"containerPort": 80}]}]},
    });
    let kept = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "app", "ports": [{"containerPort": 80}]}]}});
    assert_eq!(slim(pod), kept);
}

#[tokio::test]
async fn a_kubeconfig_that_is_not_there_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none");
    let Err(why) = connect(None, Some(&missing)).await else { panic!("it is not there") };
    assert!(why.contains("no cluster to look at") && why.contains("none"), "{why}");
}

#[test]
fn what_is_typed_cannot_lead_elsewhere() {
    assert_eq!(segment("tulle-system"), "tulle-system");
    assert_eq!(segment("../x?a=b"), "..%2Fx%3Fa%3Db");
}
