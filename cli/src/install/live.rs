//! What a dry run finds in the cluster itself, beside what Helm remembers: objects that somebody has changed since, and pods whose proxy would be
//! another. Reads only, and what cannot be read is said: the rest goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use futures_util::stream::{self, StreamExt as _};
use serde_json::Value;
use tulle_control_plane::inject::manifest::documents;
use tulle_control_plane::inject::{Namespace, Settings};

use super::drift::{self, shown};
use super::restart::{self, Change};
use crate::check::read::api::{Api, connect, segment};
use crate::check::seen::{Part, Unread, name, namespace, text};

/// What is looked at.
pub(super) struct Asked<'a> {
    pub(super) context: Option<&'a str>,
    pub(super) kubeconfig: Option<&'a Path>,
    /// The control plane's namespace.
    pub(super) namespace: &'a str,
    /// What Helm has put there; empty: nothing.
    pub(super) before: &'a str,
    /// What it would put there.
    pub(super) after: &'a str,
}

/// Requests at a time.
const AT_A_TIME: usize = 8;
/// Places of one object that are shown.
const MOST: usize = 10;

/// Lines, each with its end; none if all is as Helm remembers it, and no pod's proxy changes.
pub(super) async fn read(asked: &Asked<'_>) -> String {
    let api = match connect(asked.context, asked.kubeconfig).await {
        Ok(api) => api,
        Err(why) => return unread("the cluster", &why),
    };
    told(&api, asked).await
}

async fn told(api: &Api, asked: &Asked<'_>) -> String {
    // Without an answer every other request would say the same, and take its time.
    if let Err(why @ Unread::Failed(_)) = api.get("/version", "get /version").await {
        return unread("the cluster", &why.to_string());
    }
    let mut text = match objects(asked.before) {
        Ok(objects) => drifted(api, &objects).await,
        Err(why) => unread("the objects of the release", &why),
    };
    match objects(asked.after).map(|objects| settings(&objects, asked.namespace)) {
        Ok(Some(settings)) => match changes(api, &settings).await {
            Ok(changes) => text.push_str(&restart::table(changes)),
            Err(why) => text.push_str(&unread("pods", &why.to_string())),
        },
        Ok(None) => text.push_str(&unread(
            "pods",
            "no ConfigMap of the chart has an injection.json that this version reads",
        )),
        Err(why) => text.push_str(&unread("pods", &why)),
    }
    text
}

fn unread(what: &str, why: &str) -> String {
    format!("? {what}: not looked at: {why}\n")
}

/// The objects of a manifest.
fn objects(manifest: &str) -> Result<Vec<Value>, String> {
    let documents = documents(manifest).map_err(|error| format!("what Helm says is not read: {error}"))?;
    Ok(documents.into_iter().filter_map(|document| document.value).collect())
}

/// A line for each object that is not as it was put there, and one below it for each place.
async fn drifted(api: &Api, objects: &[Value]) -> String {
    // Secrets are never read.
    let all = objects.iter().filter(|object| text(object, "/kind") != "Secret");
    let all = all.filter_map(|object| Some((object, path(object)?)));
    let found = all.map(|(object, (path, needs))| async move {
        let live = api.find(&path, &needs).await;
        (object, live)
    });
    let found: Vec<(&Value, Part<Option<Value>>)> = stream::iter(found).buffered(AT_A_TIME).collect().await;
    let (mut said, mut missing) = (String::new(), BTreeSet::new());
    for (object, live) in found {
        match live {
            Ok(live) => write_drift(&mut said, object, live.as_ref()),
            Err(why) => {
                missing.insert(why.to_string());
            }
        }
    }
    for why in missing {
        said.push_str(&unread("objects of the release", &why));
    }
    said
}

fn write_drift(out: &mut String, object: &Value, live: Option<&Value>) {
    let home = text(object, "/metadata/namespace");
    let place = if home.is_empty() { name(object).to_owned() } else { format!("{home}/{}", name(object)) };
    let kind = text(object, "/kind");
    let Some(live) = live else {
        let _ = writeln!(out, "! {kind} {place}: drift: it is not there any more");
        return;
    };
    let differences = drift::between(object, live);
    if differences.is_empty() {
        return;
    }
    let _ = writeln!(out, "! {kind} {place}: drift: changed since it was put there");
    for one in differences.iter().take(MOST) {
        let (live, said) = (shown(&one.live), shown(&one.said));
        let _ = writeln!(out, "    {}: {live} in the cluster, {said} as it was put there", one.at);
    }
    if differences.len() > MOST {
        let _ = writeln!(out, "    and {} more", differences.len() - MOST);
    }
}

/// Where the API server has an object, and what it takes to read it; `None`: it names none.
fn path(object: &Value) -> Option<(String, String)> {
    let (version, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
    let (home, name) = (text(object, "/metadata/namespace"), name(object));
    if [version, kind, name].contains(&"") {
        return None;
    }
    let root = if version.contains('/') { "apis" } else { "api" };
    let plural = plural(kind);
    let (within, of) = match home {
        "" => (String::new(), String::new()),
        home => (format!("namespaces/{}/", segment(home)), format!(" in {home}")),
    };
    Some((format!("/{root}/{version}/{within}{plural}/{}", segment(name)), format!("get {plural}{of}")))
}

/// As API servers call the kinds that a chart of ours has.
fn plural(kind: &str) -> String {
    let kind = kind.to_ascii_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if kind.ends_with('s') || kind.ends_with("sh") => format!("{kind}es"),
        None => format!("{kind}s"),
    }
}

/// What the injector would go by.
fn settings(objects: &[Value], home: &str) -> Option<Settings> {
    let mut maps = objects.iter().filter(|object| text(object, "/kind") == "ConfigMap");
    let said = maps.find_map(|map| map["data"]["injection.json"].as_str())?;
    let settings = serde_json::from_str::<Settings>(said).ok()?;
    Some(Settings { namespace: home.to_owned(), ..settings })
}

/// What becomes of every pod that runs.
async fn changes(api: &Api, settings: &Settings) -> Part<Vec<Change>> {
    let namespaces = api.list("/api/v1/namespaces", "list namespaces", |object| {
        let one = namespace(&object);
        Some((one.name.clone(), one))
    });
    let namespaces: BTreeMap<String, Namespace> = namespaces.await?.into_iter().collect();
    let path = "/api/v1/pods?fieldSelector=status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed";
    api.list(path, "list pods", |pod| {
        restart::of(&pod, namespaces.get(text(&pod, "/metadata/namespace"))?, settings)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use http::{Request, Response, StatusCode};
    use kube::Client;
    use kube::client::Body;
    use serde_json::json;
    use tulle_control_plane::inject::{Decision, INJECT, inject};

    use super::*;

    const BEFORE: &str = "\
---
# Source: tulle/templates/deployment.yaml
apiVersion: apps/v1
kind: Deployment
metadata:
  name: tulle-control-plane
  namespace: tulle-system
spec:
  replicas: 1
---
apiVersion: v1
kind: Secret
metadata:
  name: not-read
  namespace: tulle-system
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: tulle-control-plane
  namespace: tulle-system
data:
  injection.json: '{\"imageTag\": \"0.1.0\"}'
";

    /// An API server that answers by path.
    fn server(answers: impl Fn(&str) -> (u16, Value) + Clone + Send + Sync + 'static) -> Api {
        let service = tower::service_fn(move |request: Request<Body>| {
            let (code, answer) = answers(request.uri().path());
            let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            async move { Ok::<_, Infallible>(response) }
        });
        Api::new(Client::new(service, "default"), "https://here".to_owned(), Duration::from_secs(5))
    }

    fn asked(before: &'static str) -> Asked<'static> {
        Asked { context: None, kubeconfig: None, namespace: "tulle-system", before, after: BEFORE }
    }

    fn refused(code: u16) -> (u16, Value) {
        (
            code,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "no"}),
        )
    }

    fn cluster(path: &str) -> (u16, Value) {
        let labels = json!({INJECT: "enabled"});
        match path {
            "/version" => (200, json!({"gitVersion": "v1.33.0"})),
            "/apis/apps/v1/namespaces/tulle-system/deployments/tulle-control-plane" => (
                200,
                json!({"metadata": {"name": "tulle-control-plane"}, "spec": {"replicas": 5, "paused": true}}),
            ),
            "/api/v1/namespaces" => {
                (200, json!({"items": [{"metadata": {"name": "shop", "labels": labels}}]}))
            }
            "/api/v1/pods" => {
                let pod = json!({
                    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "orders", "namespace": "shop"},
                    "spec": {"containers": [{"name": "app", "image": "app"}]},
                });
                let shop = Namespace {
                    name: "shop".to_owned(),
                    labels: [(INJECT.to_owned(), "enabled".to_owned())].into(),
                    ..Namespace::default()
                };
                let old = Settings {
                    namespace: "tulle-system".to_owned(),
                    image_tag: "0.0.9".to_owned(),
                    ..Settings::default()
                };
                let Decision::Inject { pod, .. } = inject(&pod, &shop, &old) else { panic!("is injected") };
                (200, json!({"items": [*pod]}))
            }
            _ => refused(404),
        }
    }

    #[tokio::test]
    async fn drift_and_pods_with_an_older_proxy_are_told() {
        let said = told(&server(cluster), &asked(BEFORE)).await;
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(
            lines[..4],
            [
                "! Deployment tulle-system/tulle-control-plane: drift: changed since it was put there",
                "    spec.replicas: 5 in the cluster, 1 as it was put there",
                "! ConfigMap tulle-system/tulle-control-plane: drift: it is not there any more",
                "What changes once pods are made anew:",
            ]
        );
        let of_pod = lines[5];
        assert!(of_pod.starts_with("  shop/Pod/orders     1  image "), "{said}");
        assert!(of_pod.contains(":0.0.9 → ") && of_pod.ends_with(":0.1.0"), "{said}");
        assert_eq!(lines.len(), 6, "{said}");
        // Before an install there is nothing that could have been changed.
        assert!(told(&server(cluster), &asked("")).await.starts_with("What changes"));
    }

    #[tokio::test]
    async fn what_may_not_be_read_is_said_and_the_rest_goes_on() {
        let said = told(
            &server(|path| if path == "/api/v1/pods" { refused(403) } else { cluster(path) }),
            &asked(BEFORE),
        )
        .await;
        assert!(
            said.starts_with("! Deployment ")
                && said.ends_with("? pods: not looked at: you may not list pods\n")
        );
        let said = told(&server(|_| refused(500)), &asked(BEFORE)).await;
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("? the cluster: not looked at: https://here answers 500"), "{said}");
    }

    #[test]
    fn objects_are_where_the_api_server_has_them() {
        let at = |version: &str, kind: &str, metadata: Value| {
            path(&json!({"apiVersion": version, "kind": kind, "metadata": metadata})).unwrap_or_default()
        };
        let home = || json!({"name": "a", "namespace": "b"});
        let paths = |path: &str, needs: &str| (path.to_owned(), needs.to_owned());
        assert_eq!(
            at("networking.k8s.io/v1", "NetworkPolicy", home()),
            paths("/apis/networking.k8s.io/v1/namespaces/b/networkpolicies/a", "get networkpolicies in b")
        );
        assert_eq!(
            at("policy.tulle.dev/v1alpha1", "Mesh", json!({"name": "mesh"})),
            paths("/apis/policy.tulle.dev/v1alpha1/meshes/mesh", "get meshes")
        );
        assert_eq!(
            at("v1", "Service", home()),
            paths("/api/v1/namespaces/b/services/a", "get services in b")
        );
        assert_eq!(path(&json!({"kind": "Service"})), None);
    }
}
