//! The objects of an API server whose status is written: where each kind is, and what their status says now.

use std::time::Duration;

use futures_util::{StreamExt as _, pin_mut};
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::said::Form;
use crate::cluster::{ApiError, asked, backoff, follow as watched};
use crate::object::{Kind, NamespacedName, ObjectKey};
use crate::source::versions;

/// How often is looked whether a kind has been installed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Every kind of which something is said.
pub(super) const KINDS: [Kind; 13] = [
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::ExternalAuthorization,
    Kind::RequestAuthentication,
    Kind::EgressPolicy,
    Kind::TrafficPolicy,
    Kind::RateLimitPolicy,
    Kind::FaultPolicy,
    Kind::TelemetryPolicy,
];

/// An object, as far as it matters here.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) generation: i64,
    /// Of the object, for a write to be refused where it has changed.
    pub(super) version: String,
    pub(super) status: Value,
    /// What it is attached to.
    pub(super) refs: Vec<Value>,
    /// Since when it is of this generation, as far as we have seen.
    pub(super) since: Instant,
}

/// What a watch of one kind tells.
pub(super) struct Told {
    pub(super) kind: Kind,
    pub(super) resource: ApiResource,
    pub(super) event: Event<DynamicObject>,
}

// === impl Live ===

impl Live {
    /// Which one an object is.
    pub(super) fn key(kind: Kind, object: &DynamicObject) -> ObjectKey {
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        let name = object.metadata.name.as_deref().unwrap_or_default();
        ObjectKey { kind, name: NamespacedName::new(namespace, name) }
    }

    /// `None`: there is nothing to say of it. `before`: what was known of it, whose time holds for as long as its generation does: what others write
    /// into it must not keep it young.
    pub(super) fn read(
        kind: Kind,
        object: DynamicObject,
        before: Option<(i64, Instant)>,
    ) -> (ObjectKey, Option<Self>) {
        let key = Self::key(kind, &object);
        let namespace = object.metadata.namespace.unwrap_or_default();
        let generation = object.metadata.generation.unwrap_or_default();
        let since = before.filter(|(known, _)| *known == generation).map(|(_, since)| since);
        let Some(form) = Form::of(kind) else { return (key, None) };
        let mut data = object.data;
        let live = Self {
            generation,
            version: object.metadata.resource_version.unwrap_or_default(),
            status: data["status"].take(),
            refs: form.refs(&namespace, &data["spec"]),
            since: since.unwrap_or_else(Instant::now),
        };
        let ends = object.metadata.deletion_timestamp.is_some();
        (key, (!ends).then_some(live))
    }
}

/// Tells what becomes of all objects of a kind, for as long as somebody listens.
pub(super) async fn follow(client: Client, kind: Kind, tell: mpsc::Sender<Told>) {
    let mut failures = 0;
    loop {
        let resource = match locate(&client, kind).await {
            Ok(Some(resource)) => resource,
            Ok(None) => {
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            Err(error) => {
                failures += 1;
                tracing::debug!(%kind, %error, "cannot ask where a kind is; trying again");
                tokio::time::sleep(backoff(failures)).await;
                continue;
            }
        };
        let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let events = watched(objects, watcher::Config::default());
        pin_mut!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    // That a list begins says nothing of how it ends.
                    if !matches!(event, Event::Init) {
                        failures = 0;
                    }
                    if tell.send(Told { kind, resource: resource.clone(), event }).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    failures += 1;
                    tracing::debug!(%kind, %error, "cannot watch a kind; trying again");
                    // Its definition may have been removed, or have another version now.
                    if failures > 3 {
                        tokio::time::sleep(backoff(failures)).await;
                        break;
                    }
                }
            }
        }
    }
}

/// The best version in which the kind is served; `None`: it is not.
async fn locate(client: &Client, kind: Kind) -> Result<Option<ApiResource>, ApiError> {
    for version in versions(kind) {
        let listed = match asked(client.list_api_group_resources(version)).await {
            Ok(listed) => listed,
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error),
        };
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        if let Some(found) =
            listed.resources.iter().find(|one| one.kind == kind.as_str() && !one.name.contains('/'))
        {
            return Ok(Some(ApiResource {
                group: group.to_owned(),
                version: version.to_owned(),
                api_version: listed.group_version.clone(),
                kind: found.kind.clone(),
                plural: found.name.clone(),
            }));
        }
    }
    Ok(None)
}
