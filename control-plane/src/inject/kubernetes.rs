//! The injector in a cluster ([`Injector`]): where the webhook's keys are ([`Cluster`]), what is known of namespaces ([`Known`]), and the replica that
//! leads telling of Pods without the proxy that they should have (`tell`).

mod tell;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Namespace as KubeNamespace, Secret};
use kube::api::{Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use self::tell::Teller;
use super::keys::{self, Store, Stored};
use super::webhook::{self, Namespaces, Webhook};
use super::{Namespace, Settings};
use crate::cluster::{ApiError, WatchFailures, asked, follow, maker, put_secret};
use crate::metrics::Metrics;
use crate::model::Publisher;

/// All of it, to be started.
pub struct Injector {
    /// Of the API server.
    pub client: Client,
    /// What holds for all Pods; its namespace is the control plane's.
    pub settings: Settings,
    /// Where the API server calls.
    pub listener: TcpListener,
    /// Knows every Pod.
    pub publisher: Arc<Publisher>,
    /// What is counted.
    pub metrics: Metrics,
    /// Whether this replica writes.
    pub leads: watch::Receiver<bool>,
}

/// The Secret `tulle-webhook`, and the MutatingWebhookConfiguration of that name.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
    /// As whom it makes the Secret.
    maker: String,
}

/// Namespaces as the API server tells them.
#[derive(Clone)]
pub struct Known {
    store: reflector::Store<PartialObjectMeta<KubeNamespace>>,
    /// The first list is done. The store's own word of it wakes only one who waits.
    listed: watch::Receiver<bool>,
}

/// How long a namespace that has just been made may take to be told.
const PATIENCE: Duration = Duration::from_secs(1);

const FIELDS: [&str; 4] = ["ca.crt", "ca.key", "tls.crt", "tls.key"];

// === impl Injector ===

impl Injector {
    /// Starts the webhook, its certificates, and the telling of Pods without a proxy: until the tasks are dropped. What is returned ends once the
    /// API server can be answered: there is a certificate, and namespaces are known.
    pub fn start(self, tasks: &mut JoinSet<()>) -> impl Future<Output = ()> + Send + use<> {
        let Self { client, settings, listener, publisher, metrics, leads } = self;
        let (known, watching) = Known::watch(client.clone());
        tasks.spawn(watching);
        let (serves, mut tls) = watch::channel(None);
        let store = Cluster::new(client.clone(), &settings.namespace);
        let names = keys::names(&settings.namespace);
        tasks.spawn(keys::keep(store, names, leads.clone(), serves));
        let webhook = Webhook::new(settings.clone(), known.clone(), metrics.clone());
        tasks.spawn(webhook::serve(listener, tls.clone(), Arc::new(webhook)));
        let teller = Teller { client, publisher, known: known.clone(), settings, metrics };
        tasks.spawn(teller.run(leads));
        async move {
            drop(tls.wait_for(Option::is_some).await);
            known.listed().await;
        }
    }
}

// === impl Cluster ===

impl Cluster {
    /// Of the control plane in `namespace`.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned(), maker: maker() }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn configurations(&self) -> Api<MutatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }
}

impl Store for Cluster {
    async fn read(&self) -> Result<Option<(Stored, String)>, String> {
        let secrets = self.secrets();
        let Some(secret) = asked(secrets.get_opt(keys::NAME)).await.map_err(told)? else { return Ok(None) };
        let version = secret.resource_version().unwrap_or_default();
        let data = secret.data.unwrap_or_default();
        // What is missing is made anew, as what cannot be read is.
        let text = |field: &str| {
            data.get(field).map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default()
        };
        let [authorities, authority_key, certificate, key] = FIELDS.map(text);
        let (authority_key, key) = (Zeroizing::new(authority_key), Zeroizing::new(key));
        Ok(Some((Stored { authorities, authority_key, certificate, key }, version)))
    }

    async fn write(&self, stored: &Stored, version: Option<&str>) -> Result<(), String> {
        let values = [&stored.authorities, &*stored.authority_key, &stored.certificate, &*stored.key];
        let data: BTreeMap<String, ByteString> = FIELDS
            .iter()
            .zip(values)
            .map(|(field, value)| ((*field).to_owned(), ByteString(value.as_bytes().to_vec())))
            .collect();
        let secrets = self.secrets();
        put_secret(&secrets, keys::NAME, data, version, &self.maker).await.map_err(told)
    }

    async fn published(&self) -> Result<Option<String>, String> {
        let configurations = self.configurations();
        let Some(found) = asked(configurations.get_opt(keys::NAME)).await.map_err(told)? else {
            return Ok(None);
        };
        let bundles: Vec<String> = found
            .webhooks
            .unwrap_or_default()
            .into_iter()
            .map(|webhook| webhook.client_config.ca_bundle.map(|bundle| bundle.0).unwrap_or_default())
            .map(|bundle| String::from_utf8_lossy(&bundle).into_owned())
            .collect();
        // Where they differ, all are told anew.
        let same = bundles.windows(2).all(|pair| pair[0] == pair[1]);
        Ok(Some(bundles.into_iter().next().filter(|_| same).unwrap_or_default()))
    }

    async fn publish(&self, bundle: &str) -> Result<(), String> {
        let configurations = self.configurations();
        let Some(found) = asked(configurations.get_opt(keys::NAME)).await.map_err(told)? else {
            return Ok(());
        };
        let bundle = ByteString(bundle.as_bytes().to_vec());
        let webhooks: Vec<_> = found
            .webhooks
            .unwrap_or_default()
            .iter()
            .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        let patch = json!({ "webhooks": webhooks });
        // By the webhooks' names: nothing else of them is touched.
        let patch = Patch::Strategic(&patch);
        asked(configurations.patch(keys::NAME, &PatchParams::default(), &patch)).await.map(drop).map_err(told)
    }
}

fn told(error: ApiError) -> String {
    error.to_string()
}

// === impl Known ===

impl Known {
    /// What is known from now on; nothing before the first list. The task ends with the last of its kind that looks.
    pub fn watch(client: Client) -> (Self, impl Future<Output = ()> + Send) {
        let (store, writer) = reflector::store();
        let (is_listed, listed) = watch::channel(false);
        let namespaces: Api<PartialObjectMeta<KubeNamespace>> = Api::all(client);
        let events = follow(namespaces, watcher::Config::default());
        let told = reflector::reflector(writer, events);
        let task = async move {
            let (mut told, mut failures) = (std::pin::pin!(told), WatchFailures::of("namespaces"));
            while let Some(event) = told.next().await {
                match event {
                    Ok(event) => {
                        failures.heard(&event);
                        if matches!(event, watcher::Event::InitDone) {
                            is_listed.send_replace(true);
                        }
                    }
                    Err(error) => failures.tell(&error),
                }
            }
        };
        (Self { store, listed }, task)
    }

    /// Returns once the first list is done.
    pub async fn listed(&self) {
        // An error says that nobody lists any more: that is no reason to wait.
        drop(self.listed.clone().wait_for(|listed| *listed).await);
    }

    /// All of them.
    pub fn all(&self) -> Vec<Namespace> {
        self.store.state().iter().map(|found| of(found)).collect()
    }
}

impl Namespaces for Known {
    async fn namespace(&self, name: &str) -> Option<Namespace> {
        let found = async {
            loop {
                if let Some(found) = self.store.get(&ObjectRef::new(name)) {
                    return of(&found);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.ok()
    }
}

fn of(found: &PartialObjectMeta<KubeNamespace>) -> Namespace {
    let (labels, annotations) = (found.labels().clone(), found.annotations().clone());
    Namespace { name: found.name_any(), labels, annotations }
}

#[cfg(test)]
mod tests;
