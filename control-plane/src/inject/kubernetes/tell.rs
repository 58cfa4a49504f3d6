//! Telling of Pods that run without the proxy that they should have: by an event of each, the metric, and the log; and of namespaces whose labels are misspelt.
//!
//! The index knows every Pod, and whether it is in the mesh: of the API server only those are asked for that are not, where they ask or their namespace does. These
//! are read whole, since what keeps a Pod from having a proxy may be anywhere in it, but not all of them each time: those that are new or have changed, and of the
//! others a few in turn ([`Looked::due`], pure). Each is told of once.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;

use super::{Known, told};
use crate::cluster::asked;
use crate::inject::unmeshed::{Unmeshed, misspelt_labels, reasons, unmeshed};
use crate::inject::{INJECT, Namespace, Settings};
use crate::metrics::Metrics;
use crate::model::Publisher;
use crate::object::{self, NamespacedName};

/// How often Pods are looked over.
const LOOK: Duration = Duration::from_secs(60);
/// Of those that are new or have changed so many are read in one round; more in the next ones …
const MOST: usize = 250;
/// … and so many of the others, those first that were not read for the longest time.
const AGAIN: usize = 25;

/// Who tells.
pub(super) struct Teller {
    pub(super) client: Client,
    pub(super) publisher: Arc<Publisher>,
    pub(super) known: Known,
    pub(super) settings: Settings,
    pub(super) metrics: Metrics,
}

/// A Pod that may have to be told of, as the index knows it, in its namespace.
type Candidates = BTreeMap<NamespacedName, (object::Pod, Namespace)>;

/// What has come of the rounds so far.
#[derive(Default)]
struct Looked {
    round: u64,
    seen: BTreeMap<NamespacedName, Seen>,
    /// UIDs and reasons.
    told: BTreeSet<(String, &'static str)>,
    /// Of labels of namespaces, with the namespaces' names.
    misspelt: BTreeSet<(String, String)>,
}

/// A Pod when it was last read.
struct Seen {
    round: u64,
    pod: object::Pod,
    namespace: Namespace,
    said: Option<Said>,
}

/// What is to be said of a Pod.
struct Said {
    uid: String,
    version: Option<String>,
    unmeshed: Unmeshed,
}

// === impl Teller ===

impl Teller {
    /// Tells while `leads` says so.
    pub(super) async fn run(self, mut leads: watch::Receiver<bool>) {
        self.known.listed().await;
        let mut looked = Looked::default();
        loop {
            if !*leads.borrow_and_update() {
                looked = Looked::default();
                self.metrics.unmeshed.reset();
                if leads.changed().await.is_err() {
                    return;
                }
                continue;
            }
            if let Err(error) = self.look(&mut looked).await {
                tracing::warn!(%error, "cannot look for pods without a proxy; trying again");
            }
            self.tell(&mut looked).await;
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                changed = leads.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn look(&self, looked: &mut Looked) -> Result<(), String> {
        let all = self.known.all();
        let wrong = all.iter().flat_map(|namespace| {
            let told = misspelt_labels(namespace).into_iter();
            told.map(|warning| (namespace.name.clone(), warning))
        });
        for (namespace, warning) in looked.misspelt(wrong.collect()) {
            tracing::warn!("{warning}");
            if let Err(error) = self.write_misspelt(&namespace, warning).await {
                tracing::debug!(%error, "cannot write an event");
            }
        }
        let namespaces: BTreeMap<String, Namespace> =
            all.into_iter().map(|namespace| (namespace.name.clone(), namespace)).collect();
        let asks = |namespace: &Namespace| namespace.labels.get(INJECT).is_some_and(|said| said == "enabled");
        let bare = self
            .publisher
            .bare_pods(|pod| pod.asks || namespaces.get(&*pod.name.namespace).is_some_and(asks));
        let candidates: Candidates = bare
            .into_iter()
            .filter_map(|pod| {
                let namespace = namespaces.get(&*pod.name.namespace)?.clone();
                Some((pod.name.clone(), (pod, namespace)))
            })
            .collect();
        for name in looked.due(&candidates) {
            let Some((pod, namespace)) = candidates.get(&name) else { continue };
            let said = self.read(&name, namespace).await?;
            let seen = Seen { round: looked.round, pod: pod.clone(), namespace: namespace.clone(), said };
            looked.seen.insert(name, seen);
        }
        Ok(())
    }

    async fn read(&self, name: &NamespacedName, namespace: &Namespace) -> Result<Option<Said>, String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &name.namespace);
        // To get one by its name takes a right of its own.
        let parameters = ListParams::default().fields(&format!("metadata.name={}", name.name));
        let Some(pod) = asked(pods.list(&parameters)).await.map_err(told)?.items.pop() else {
            return Ok(None);
        };
        let value = serde_json::to_value(&pod).map_err(|error| error.to_string())?;
        let (uid, version) = (pod.metadata.uid.unwrap_or_default(), pod.metadata.resource_version);
        let said = unmeshed(&value, namespace, &self.settings);
        Ok(said.map(|unmeshed| Said { uid, version, unmeshed }))
    }

    async fn tell(&self, looked: &mut Looked) {
        let said = || looked.seen.values().filter_map(|seen| seen.said.as_ref());
        for reason in reasons() {
            let count = said().filter(|said| said.unmeshed.reason == reason).count();
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.metrics.unmeshed.with_label_values(&[reason]).set(count);
        }
        let mut still = BTreeSet::new();
        for said in said() {
            let Unmeshed { namespace, pod, reason, message } = &said.unmeshed;
            let key = (said.uid.clone(), *reason);
            if !looked.told.contains(&key) {
                tracing::warn!(pod = %format!("{namespace}/{pod}"), reason, "{message}");
                if let Err(error) = self.write_event(said).await {
                    tracing::debug!(%error, "cannot write an event");
                }
            }
            still.insert(key);
        }
        looked.told = still;
    }

    /// By a name of the Pod's and the reason: another replica that leads later does not write it anew.
    async fn write_event(&self, said: &Said) -> Result<(), String> {
        let Unmeshed { namespace, pod, reason, message } = &said.unmeshed;
        let name = format!("tulle.{}.{}", said.uid, reason.replace('_', "-"));
        let about = ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some(namespace.clone()),
            name: Some(pod.clone()),
            uid: Some(said.uid.clone()),
            resource_version: said.version.clone(),
            ..ObjectReference::default()
        };
        self.warn(name, about, "NotInMesh", format!("no proxy ({reason}): {message}")).await
    }

    /// In the namespace itself, where those look whose Pods are not in the mesh.
    async fn write_misspelt(&self, namespace: &str, warning: String) -> Result<(), String> {
        // Of the same warning always the same.
        let mut hasher = DefaultHasher::new();
        warning.hash(&mut hasher);
        let name = format!("tulle.{namespace}.{:016x}", hasher.finish());
        let about = ObjectReference {
            kind: Some("Namespace".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(namespace.to_owned()),
            ..ObjectReference::default()
        };
        self.warn(name, about, "Misspelt", warning).await
    }

    async fn warn(
        &self,
        name: String,
        about: ObjectReference,
        reason: &str,
        message: String,
    ) -> Result<(), String> {
        let namespace = about.namespace.clone().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let now = Some(Time(Timestamp::now()));
        let event = Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: ObjectReference { api_version: Some("v1".to_owned()), ..about },
            type_: Some("Warning".to_owned()),
            reason: Some(reason.to_owned()),
            message: Some(message),
            source: Some(EventSource { component: Some("tulle-control-plane".to_owned()), host: None }),
            first_timestamp: now.clone(),
            last_timestamp: now,
            count: Some(1),
            ..Event::default()
        };
        let creating = async {
            match events.create(&PostParams::default(), &event).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
                created => created.map(drop),
            }
        };
        asked(creating).await.map_err(told)
    }
}

// === impl Looked ===

impl Looked {
    /// Begins a round: which are to be read.
    fn due(&mut self, candidates: &Candidates) -> Vec<NamespacedName> {
        self.round += 1;
        self.seen.retain(|name, _| candidates.contains_key(name));
        let (mut new, mut others) = (Vec::new(), Vec::new());
        for (name, (pod, namespace)) in candidates {
            match self.seen.get(name) {
                Some(seen) if seen.pod == *pod && seen.namespace == *namespace => {
                    others.push((seen.round, name.clone()));
                }
                _ => new.push(name.clone()),
            }
        }
        others.sort();
        new.truncate(MOST);
        new.extend(others.into_iter().take(AGAIN).map(|(_, name)| name));
        new
    }

    /// What is new of it.
    fn misspelt(&mut self, wrong: BTreeSet<(String, String)>) -> Vec<(String, String)> {
        let new = wrong.difference(&self.misspelt).cloned().collect();
        self.misspelt = wrong;
        new
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::testing::ApiServer;
    use crate::finding::Notes;
    use crate::index::Index;
    use crate::object::Object;

    fn bare(name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"containers": [{"name": "web", "image": "web:1"}]},
        })
    }

    fn read(pod: &Value) -> object::Pod {
        let form = serde_json::from_value(pod.clone()).unwrap();
        let Some(Object::Pod(pod)) = Object::pod(&form, &mut Notes::default()) else { panic!("no pod") };
        pod
    }

    fn candidates(pods: impl IntoIterator<Item = Value>) -> Candidates {
        let pods = pods.into_iter().map(|pod| read(&pod));
        pods.map(|pod| (pod.name.clone(), (pod, Namespace::default()))).collect()
    }

    fn take(looked: &mut Looked, candidates: &Candidates) -> Vec<NamespacedName> {
        let due = looked.due(candidates);
        for name in &due {
            let (pod, namespace) = candidates[name].clone();
            looked.seen.insert(name.clone(), Seen { round: looked.round, pod, namespace, said: None });
        }
        due
    }

    #[test]
    fn what_is_new_or_changed_is_read_first_and_everything_in_turn() {
        let names = (0..MOST + 100).map(|number| format!("web-{number:03}"));
        let mut all = candidates(names.map(|name| bare(&name)));
        let mut looked = Looked::default();
        assert_eq!(take(&mut looked, &all).len(), MOST);
        let second = take(&mut looked, &all);
        assert_eq!(second.len(), 100 + AGAIN, "those that were left over, and some of the others");
        let again = |taken: &[NamespacedName]| taken.iter().map(|name| name.name.to_string()).max().unwrap();
        assert_eq!((again(&second), take(&mut looked, &all).len()), ("web-349".to_owned(), AGAIN));
        let mut changed = bare("web-300");
        changed["metadata"]["labels"] = json!({"a": "b"});
        all.extend(candidates([changed]));
        let fourth = take(&mut looked, &all);
        assert_eq!((fourth.len(), &*fourth[0].name), (1 + AGAIN, "web-300"));
        let mut rest: BTreeSet<NamespacedName> = all.keys().cloned().collect();
        for _ in 0..=all.len() / AGAIN {
            for name in take(&mut looked, &all) {
                rest.remove(&name);
            }
        }
        assert_eq!(rest, BTreeSet::new());
        looked.due(&Candidates::new());
        assert!(looked.seen.is_empty());
    }

    #[tokio::test]
    async fn a_pod_outside_the_mesh_is_told_of_once_whoever_leads() {
        let server = ApiServer::start();
        let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {INJECT: "enabled"}}});
        server.put("/api/v1/namespaces/shop", shop);
        server.put("/api/v1/namespaces/shop/pods/web", bare("web"));
        let uid = server.object("/api/v1/namespaces/shop/pods/web").unwrap()["metadata"]["uid"].clone();
        let path = format!("/api/v1/namespaces/shop/events/tulle.{}.not-injected", uid.as_str().unwrap());
        for leader in 1..=2 {
            let mut index = Index::of_cluster();
            index.apply(Object::Pod(read(&bare("web"))), None);
            let publisher = Publisher::new(index, crate::model::Settings::default(), Vec::new());
            let (known, watching) = Known::watch(server.client());
            let metrics = Metrics::new().unwrap();
            let told = metrics.unmeshed.with_label_values(&["not_injected"]);
            let teller =
                Teller { client: server.client(), publisher, known, settings: Settings::default(), metrics };
            let (_leads, led) = watch::channel(true);
            let tasks = [tokio::spawn(watching), tokio::spawn(teller.run(led))];
            for _ in 0..2000 {
                if server.asked(&Method::POST, "events") == leader && told.get() == 1 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!((server.asked(&Method::POST, "events"), told.get()), (leader, 1));
            assert_eq!(server.object(&path).unwrap()["involvedObject"]["name"], "web");
            for task in tasks {
                task.abort();
            }
        }
    }
}
