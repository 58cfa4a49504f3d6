//! Reads a cluster: everything that checks look at, in a few seconds, by many small requests that each end in time.
//!
//! Decides nothing but what there is to be asked. A part that cannot be read is [`Unread`], and the others are read all the same. Secrets are
//! never read. What is created are reviews, which nobody keeps, and one Pod as a dry run.

pub(crate) mod api;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tulle_control_plane::inject::{INJECT, Settings, is_injected};

pub(crate) use self::api::client;
use self::api::{Api, connect, segment};
use super::judge::{control_plane, mesh};
use super::rights::{CONTROL_PLANE, ESCALATE, INSTALL, Right};
use super::seen::{Lease, Part, Seen, Stage, Trial, Unread, name, namespace, said, text};
use crate::brief::brief;
use crate::demo::scrape::{self, Line};

/// What is to be looked at.
pub(super) struct Asked {
    pub(super) stage: Stage,
    pub(super) namespace: String,
    pub(super) context: Option<String>,
    pub(super) kubeconfig: Option<PathBuf>,
}

/// Of the Deployment, its Service, service account, Lease and ConfigMap.
const CONTROL_PLANE_NAME: &str = "tulle-control-plane";
/// Requests at a time.
const AT_A_TIME: usize = 8;
/// How often a Lease is looked at that may be an old one's.
const LOOK: Duration = Duration::from_secs(2);
/// The level of Pod Security under which our own container for the rules may be made.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";

/// All of it. Never fails: what keeps it from being read is a part of what was seen.
pub(super) async fn read(asked: &Asked) -> Seen {
    let now = SystemTime::now();
    let connected = connect(asked.context.as_deref(), asked.kubeconfig.as_deref()).await;
    let (api, server) = match connected {
        Ok(api) => {
            let server = api.server().to_owned();
            (Ok(api), server)
        }
        Err(why) => (Err(Unread::Failed(brief(&why, std::env::args_os()))), String::new()),
    };
    let mut seen = Seen::new(asked.stage, now, server, asked.namespace.clone());
    let api = match api {
        Ok(api) => api,
        Err(unread) => {
            seen.version = Err(unread);
            return seen;
        }
    };
    seen.version =
        api.get("/version", "get /version").await.map(|said| text(&said, "/gitVersion").to_owned());
    if matches!(seen.version, Err(Unread::Failed(_))) {
        return seen;
    }
    platform(&api, &mut seen).await;
    match asked.stage {
        Stage::Before => seen.rights = rights(&api, &seen.namespace).await,
        Stage::After => installed(&api, &mut seen).await,
    }
    seen
}

/// What is looked at in either stage.
async fn platform(api: &Api, seen: &mut Seen) {
    let deployment =
        format!("/apis/apps/v1/namespaces/{}/deployments/{CONTROL_PLANE_NAME}", segment(&seen.namespace));
    let needs = format!("get deployments in {}", seen.namespace);
    let cilium = "/api/v1/namespaces/kube-system/configmaps/cilium-config";
    let webhooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    (seen.definitions, seen.nodes, seen.cilium, seen.webhooks, seen.namespaces, seen.deployment) = tokio::join!(
        definitions(api),
        api.list("/api/v1/nodes", "list nodes", |node| Some(node_of(&node))),
        api.find(cilium, "get configmaps in kube-system"),
        api.list(webhooks, "list mutatingwebhookconfigurations", Some),
        api.list("/api/v1/namespaces", "list namespaces", |namespace| {
            Some(json!({"metadata": {
                "name": namespace["metadata"]["name"], "labels": namespace["metadata"]["labels"],
                "annotations": namespace["metadata"]["annotations"],
            }}))
        }),
        api.find(&deployment, &needs),
    );
}

async fn definitions(api: &Api) -> Part<BTreeMap<String, Option<Value>>> {
    let names: Vec<String> =
        tulle_control_plane::source::kubernetes::definitions().into_iter().map(|(name, _)| name).collect();
    let mut found = BTreeMap::new();
    // One by one: all that a cluster has may be hundreds, each with its schema.
    let all = names.iter().map(|name| async move {
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        (name.clone(), api.find(&path, "get customresourcedefinitions").await)
    });
    let all: Vec<_> = stream::iter(all).buffered(AT_A_TIME).collect().await;
    for (name, definition) in all {
        found.insert(name, definition?);
    }
    Ok(found)
}

fn node_of(node: &Value) -> Value {
    json!({"metadata": {"name": node["metadata"]["name"]}, "status": {"nodeInfo": node["status"]["nodeInfo"]}})
}

/// Whether whoever asks may install.
async fn rights(api: &Api, namespace: &str) -> Part<Vec<(Right, bool)>> {
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let asked = INSTALL.iter().chain([&ESCALATE]).map(|right| (*right, right.mine(namespace)));
    reviews(api, path, "create selfsubjectaccessreviews", asked.collect()).await
}

async fn reviews(api: &Api, path: &str, needs: &str, asked: Vec<(Right, Value)>) -> Part<Vec<(Right, bool)>> {
    let all = asked.into_iter().map(|(right, review)| async move {
        let answer = api.post(path, needs, &review).await?;
        Ok((right, answer.pointer("/status/allowed") == Some(&Value::Bool(true))))
    });
    let all: Vec<Part<(Right, bool)>> = stream::iter(all).buffered(AT_A_TIME).collect().await;
    all.into_iter().collect()
}

/// What there is to be asked of a mesh.
async fn installed(api: &Api, seen: &mut Seen) {
    // Without one there is nothing to ask, and one check says so. Where that is not known, the others may know better.
    if matches!(seen.deployment, Ok(None)) {
        return;
    }
    let home = segment(&seen.namespace);
    let account = |right: &Right| (*right, right.of_account(&seen.namespace, CONTROL_PLANE_NAME));
    let selector = format!("labelSelector=app.kubernetes.io%2Fname%3D{CONTROL_PLANE_NAME}");
    let replicas = format!("/api/v1/namespaces/{home}/pods?{selector}");
    let config = format!("/api/v1/namespaces/{home}/configmaps/{CONTROL_PLANE_NAME}");
    let bundles = "/api/v1/configmaps?fieldSelector=metadata.name%3Dtulle-trust-bundle";
    let (in_home, configmaps) = (format!("list pods in {home}"), format!("get configmaps in {home}"));
    let (rights, replicas, config, bundles, pods, trial, lease) = tokio::join!(
        reviews(
            api,
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            "create subjectaccessreviews",
            CONTROL_PLANE.iter().map(account).collect()
        ),
        api.list(&replicas, &in_home, |pod| Some(slim(pod))),
        api.find(&config, &configmaps),
        api.list(bundles, "list configmaps", Some),
        pods(api, seen),
        trial(api, seen),
        lease(api, &home),
    );
    seen.settings = config.and_then(|config| {
        let said = config.as_ref().map(|config| text(config, "/data/injection.json")).unwrap_or_default();
        let settings = serde_json::from_str::<Settings>(said);
        settings.map_err(|why| {
            Unread::Failed(format!("injection.json of the ConfigMap {CONTROL_PLANE_NAME}: {why}"))
        })
    });
    (seen.rights, seen.replicas, seen.bundles, seen.pods) = (rights, replicas, bundles, pods);
    (seen.trial, seen.lease) = (trial, lease);
    ask_replicas(api, seen).await;
    ask_proxies(api, seen).await;
}

/// What every replica that is ready counts, and whether its webhook is reached.
async fn ask_replicas(api: &Api, seen: &mut Seen) {
    let Ok(replicas) = &seen.replicas else { return };
    let up: Vec<String> =
        replicas.iter().filter(|pod| control_plane::is_ready(pod)).map(|pod| name(pod).to_owned()).collect();
    let home = &seen.namespace;
    let asked = join_all(up.iter().map(|pod| async move {
        let hook = format!("https:{pod}:15017");
        tokio::join!(page(api, home, pod, 15014), async { api.through(home, &hook, "ready").await.map(drop) })
    }));
    for (pod, (page, hook)) in up.iter().zip(asked.await) {
        seen.pages.insert(pod.clone(), page);
        seen.hooks.insert(pod.clone(), hook);
    }
}

/// The proxies that may be meant by what the control plane counts.
async fn ask_proxies(api: &Api, seen: &mut Seen) {
    let asked = mesh::to_ask(seen);
    let all = asked.iter().map(|at| async move {
        let (namespace, pod) = at.split_once('/').unwrap_or_default();
        (at.clone(), page(api, namespace, pod, 15020).await)
    });
    seen.proxies = stream::iter(all).buffered(AT_A_TIME).collect::<Vec<_>>().await.into_iter().collect();
}

async fn page(api: &Api, namespace: &str, pod: &str, port: u16) -> Part<Vec<Line>> {
    let text = api.through(namespace, &format!("{pod}:{port}"), "metrics").await?;
    Ok(scrape::parse(&text))
}

/// The Pods that have a proxy, or whose namespace or who themselves say anything of one.
async fn pods(api: &Api, seen: &Seen) -> Part<Vec<Value>> {
    let asking: Vec<&str> = match &seen.namespaces {
        Ok(all) => all.iter().filter(|object| mesh::asks(&namespace(object))).map(name).collect(),
        Err(_) => Vec::new(),
    };
    let path = "/api/v1/pods?fieldSelector=status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed";
    let keep = |pod: Value| {
        let matters = is_injected(&pod)
            || asking.contains(&text(&pod, "/metadata/namespace"))
            || ["labels", "annotations"].iter().any(|of| !said(&pod, of, INJECT).is_empty());
        matters.then(|| slim(pod))
    };
    api.list(path, "list pods", keep).await
}

/// A Pod without what no check looks at: there may be thousands.
fn slim(mut pod: Value) -> Value {
    if let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    for list in ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"] {
        let containers = pod.pointer_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            for field in ["env", "envFrom", "args", "command", "volumeMounts"] {
                container.remove(field);
            }
        }
    }
    pod
}

/// What becomes of a Pod that asks for a proxy: a dry run, where the webhook is called as it is for every other.
async fn trial(api: &Api, seen: &Seen) -> Part<Trial> {
    let at = trial_namespace(seen);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "tulle-check-", "labels": {INJECT: "enabled"}},
        "spec": {"containers": [{"name": "check", "image": "tulle-check"}]},
    });
    let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", segment(&at));
    match api.try_out(&path, &format!("create pods in {at}"), &pod).await? {
        Ok(made) if is_injected(&made) => Ok(Trial::Injected),
        Ok(_) => Ok(Trial::Left),
        Err(why) => Ok(Trial::Refused(why)),
    }
}

/// A namespace that asks for proxies and takes what they need; else `default`, where a Pod may ask by itself.
fn trial_namespace(seen: &Seen) -> String {
    let all = seen.namespaces.as_deref().unwrap_or_default();
    let fit = all.iter().find(|object| {
        said(object, "labels", INJECT) == "enabled"
            && name(object) != seen.namespace
            && !matches!(said(object, "labels", POD_SECURITY), "baseline" | "restricted")
    });
    fit.map_or_else(|| "default".to_owned(), |object| name(object).to_owned())
}

/// The Lease, looked at again where it may be one that nobody renews.
async fn lease(api: &Api, home: &str) -> Part<Option<Lease>> {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{home}/leases/{CONTROL_PLANE_NAME}");
    let needs = format!("get leases in {home}");
    let Some(first) = api.find(&path, &needs).await? else { return Ok(None) };
    let mut lease = lease_of(&first);
    if lease.holder.is_empty() || lease.is_fresh(SystemTime::now()) {
        return Ok(Some(lease));
    }
    let until = tokio::time::Instant::now() + lease.duration.min(Duration::from_secs(15)) + 2 * LOOK;
    while tokio::time::Instant::now() < until && !lease.moves {
        tokio::time::sleep(LOOK).await;
        let again = api.find(&path, &needs).await?.unwrap_or_default();
        lease.moves = text(&again, "/spec/renewTime") != text(&first, "/spec/renewTime");
    }
    Ok(Some(lease))
}

fn lease_of(object: &Value) -> Lease {
    let seconds = object.pointer("/spec/leaseDurationSeconds").and_then(Value::as_u64);
    Lease {
        holder: text(object, "/spec/holderIdentity").to_owned(),
        renewed: text(object, "/spec/renewTime").parse::<Timestamp>().ok().map(SystemTime::from),
        duration: Duration::from_secs(seconds.unwrap_or(15)),
        moves: false,
    }
}

#[cfg(test)]
mod tests;
