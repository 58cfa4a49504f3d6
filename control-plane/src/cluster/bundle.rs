//! The mesh's roots where pods can read them: the ConfigMap `tulle-trust-bundle`, key `ca.crt`, in the control plane's namespace and in
//! each namespace whose pods are injected.
//!
//! Decides where it must be (namespaces labelled `tulle.dev/inject=enabled`, those that have a pod with a proxy, which may have asked by itself or come from
//! `tulle inject`, and wherever one of ours is already) and what it must say. A pod waits for it: the kubelet tries to mount it again and again. The holder of the lease keeps it
//! so: one that is changed or deleted is put right as soon as that is seen. A copy is never taken away: pods may still read it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::watch;
use tulle_certs::TrustBundle;

use super::lease::Holder;
use super::seen::Seen;
use super::{ApiError, MANAGER, WatchFailures, asked, backoff, follow, labels};
use crate::object::INJECT;

/// What the ConfigMap is called.
pub const BUNDLE: &str = "tulle-trust-bundle";
/// Its key, as other meshes and cert-manager have it.
pub(super) const KEY: &str = "ca.crt";
/// Everything is looked over after this, if nothing else happens.
const LONGEST: Duration = Duration::from_secs(600);

/// Keeps them. See the module.
pub struct Bundles {
    client: Client,
    /// The control plane's.
    namespace: String,
}

/// What is known of the cluster.
#[derive(Default)]
struct Known {
    /// Namespaces whose pods are injected, and that are not being deleted.
    namespaces: Seen<String, ()>,
    /// Those that have a pod with a proxy.
    meshed: BTreeSet<Arc<str>>,
    /// The ConfigMaps of the name, by namespace.
    copies: Seen<String, Copy>,
}

/// A ConfigMap of the name.
#[derive(Debug, PartialEq, Eq)]
struct Copy {
    text: Option<String>,
    ours: bool,
}

// === impl Bundles ===

impl Bundles {
    /// Of the control plane in `namespace`.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned() }
    }

    /// Keeps the newest of `bundles` everywhere, while the lease is held. `meshed`: the namespaces that have a pod with a proxy. Runs until it is dropped.
    pub async fn keep(
        self,
        bundles: watch::Receiver<Arc<TrustBundle>>,
        meshed: watch::Receiver<BTreeSet<Arc<str>>>,
        mut holder: Holder,
    ) {
        let mut holding = holder.clone();
        loop {
            holder.held().await;
            tokio::select! {
                () = self.keep_held(bundles.clone(), meshed.clone()) => return,
                () = holding.lost() => {}
            }
        }
    }

    async fn keep_held(
        &self,
        mut bundles: watch::Receiver<Arc<TrustBundle>>,
        mut meshed: watch::Receiver<BTreeSet<Arc<str>>>,
    ) {
        let (namespaces, copies) = (
            Api::<PartialObjectMeta<Namespace>>::all(self.client.clone()),
            Api::<ConfigMap>::all(self.client.clone()),
        );
        let injected = watcher::Config::default().labels(&format!("{INJECT}=enabled"));
        let named = watcher::Config::default().fields(&format!("metadata.name={BUNDLE}"));
        let (namespaces, copies) = (follow(namespaces, injected), follow(copies, named));
        pin_mut!(namespaces, copies);
        let mut known = Known::default();
        let mut failures = 0;
        let mut refused =
            (WatchFailures::of("namespaces"), WatchFailures::of("the ConfigMaps tulle-trust-bundle"));
        loop {
            let mut wait = LONGEST;
            if known.is_complete() {
                let text = bundles.borrow_and_update().to_pem();
                known.meshed.clone_from(&meshed.borrow_and_update());
                failures = if self.put_right(&mut known, &text).await { 0 } else { failures + 1 };
                if failures > 0 {
                    wait = backoff(failures);
                }
            }
            tokio::select! {
                Some(event) = namespaces.next() => match event {
                    Ok(event) => {
                        refused.0.heard(&event);
                        known.namespaces.take_in(event, |namespace| {
                            let lives = namespace.metadata.deletion_timestamp.is_none();
                            (namespace.metadata.name.unwrap_or_default(), lives.then_some(()))
                        });
                    }
                    Err(error) => refused.0.tell(&error),
                },
                Some(event) = copies.next() => match event {
                    Ok(event) => {
                        refused.1.heard(&event);
                        known.copies.take_in(event, read);
                    }
                    Err(error) => refused.1.tell(&error),
                },
                changed = bundles.changed() => if changed.is_err() {
                    return;
                },
                changed = meshed.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Writes what is missing or wrong; says whether that could be done.
    async fn put_right(&self, known: &mut Known, text: &str) -> bool {
        let mut good = true;
        for namespace in known.wrong(&self.namespace, text) {
            match self.write(&namespace, text).await {
                Ok(()) => {
                    tracing::info!(namespace, "wrote the ConfigMap {BUNDLE}");
                    let copy = Copy { text: Some(text.to_owned()), ours: true };
                    known.copies.all_mut().insert(namespace, copy);
                }
                // The namespace is gone or going, and with it who would read it; its watch will say so.
                Err(error) if error.is_not_found() || error.is_of_terminating() => {
                    tracing::debug!(namespace, "the namespace is gone");
                }
                Err(error) => {
                    tracing::warn!(namespace, %error, "cannot write the ConfigMap {BUNDLE}; trying again");
                    good = false;
                }
            }
        }
        good
    }

    async fn write(&self, namespace: &str, text: &str) -> Result<(), ApiError> {
        let copy = ConfigMap {
            metadata: ObjectMeta {
                name: Some(BUNDLE.to_owned()),
                namespace: Some(namespace.to_owned()),
                labels: Some(labels()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(KEY.to_owned(), text.to_owned())])),
            ..ConfigMap::default()
        };
        let copies: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let parameters = PatchParams::apply(MANAGER).force();
        asked(copies.patch(BUNDLE, &parameters, &Patch::Apply(&copy))).await.map(drop)
    }
}

// === impl Known ===

impl Known {
    fn is_complete(&self) -> bool {
        self.namespaces.is_complete() && self.copies.is_complete()
    }

    /// Where a ConfigMap must be written.
    fn wrong(&self, own: &str, text: &str) -> BTreeSet<String> {
        let copies = self.copies.all();
        let ours = copies.iter().filter(|(_, copy)| copy.ours).map(|(namespace, _)| namespace.as_str());
        let labelled = self.namespaces.all().keys().map(String::as_str);
        let meshed = self.meshed.iter().map(|namespace| &**namespace);
        let wanted: BTreeSet<&str> = labelled.chain(meshed).chain(ours).chain([own]).collect();
        let right =
            |namespace: &str| copies.get(namespace).is_some_and(|copy| copy.text.as_deref() == Some(text));
        wanted.into_iter().filter(|namespace| !right(namespace)).map(str::to_owned).collect()
    }
}

fn read(copy: ConfigMap) -> (String, Option<Copy>) {
    let ours = copy.metadata.labels.unwrap_or_default();
    let ours = ours.get("app.kubernetes.io/managed-by").is_some_and(|by| by == MANAGER);
    let text = copy.data.unwrap_or_default().remove(KEY);
    (copy.metadata.namespace.unwrap_or_default(), Some(Copy { text, ours }))
}

#[cfg(test)]
mod tests;
