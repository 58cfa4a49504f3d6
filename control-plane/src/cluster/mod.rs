//! Everything that writes to the API server of Kubernetes, or asks it, beside the watches of [`crate::source`].
//!
//! - `lease`: which of several replicas writes (`Lease`); all of them serve;
//! - `secret`: where the authority keeps its keys, in place of the state folder;
//! - `issuer`: the Secret of an issuing certificate that cert-manager makes, in place of our own root;
//! - `bundle`: the mesh's roots, as a ConfigMap in each namespace whose pods are injected;
//! - `review`: whom a pod's token is of (`TokenReview`);
//! - `status`: what has become of routes and policies, in their `status`;
//! - `slices`: what is registered here, where the other replicas see it (`EndpointSlice`), and what they have registered;
//! - `others`: the other replicas, as a rotation of the root sees them;
//! - `follow`: watches of what is written here, which list anew after each failure;
//! - `replica`: all of these together, as `app` starts them.
//!
//! What is decided is decided without I/O and told by the modules' own documentation; here is what they share. A running mesh
//! never depends on any of it: with the API server away, proxies keep what they have, and who asks for a certificate is told to ask again.

mod bundle;
mod follow;
mod issuer;
mod lease;
mod others;
mod replica;
mod review;
mod secret;
mod seen;
mod slices;
mod status;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use serde_json::json;
use tokio::time::Instant;

pub use self::bundle::{BUNDLE, Bundles};
pub(crate) use self::follow::{follow, follow_object};
pub use self::issuer::Issuer;
pub use self::lease::{Holder, LEASE, campaign};
pub use self::others::Others;
pub use self::replica::{Replica, Running};
pub use self::review::{Reviews, is_of_kubernetes};
pub use self::secret::{SECRET, Secret};
pub use self::slices::{NOT_OURS, Slices};
pub use self::status::{CONTROLLER, Statuses};
use crate::source::kubernetes::{CONNECT, innermost};

/// Who writes, as the API server remembers it of each field.
pub(crate) const MANAGER: &str = "tulle-control-plane";
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(4);
/// Retries of what failed come after this, doubled each time …
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// … up to this.
const LAST_WAIT: Duration = Duration::from_secs(30);
/// What stays wrong is told again after this.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Why a request to the API server did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer in time.
    #[error("the API server did not answer within {REQUEST:?}")]
    TimedOut,
    /// It may not be asked.
    #[error(
        "the API server forbids it: {0}; give the control plane's service account the rights of its ClusterRole and Role"
    )]
    Forbidden(String),
    /// It said no.
    #[error("the API server refuses: {}", .0.message)]
    Refused(Box<kube::core::Status>),
    /// What must not be made anew is not there.
    #[error("{0}")]
    Lost(String),
    /// It could not be asked.
    #[error("the API server could not be asked: {0}")]
    Unreachable(String),
}

// === impl ApiError ===

impl ApiError {
    /// There is no such object.
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(status) if status.is_not_found())
    }

    /// It has changed since it was read, or somebody else has made it.
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(status) if status.is_conflict() || status.is_already_exists())
    }

    /// Nothing can be made any more in a namespace that is being deleted.
    fn is_of_terminating(&self) -> bool {
        matches!(self, Self::Forbidden(message) if message.contains("because it is being terminated"))
    }

    /// The request itself is wrong, and would be again.
    fn is_invalid(&self) -> bool {
        matches!(self, Self::Refused(status) if status.is_invalid() || status.code == 400)
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.is_forbidden() => Self::Forbidden(status.message),
            kube::Error::Api(status) => Self::Refused(status),
            other => Self::Unreachable(innermost(&other, CONNECT)),
        }
    }
}

/// One request, which ends in time.
pub(crate) async fn asked<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match tokio::time::timeout(REQUEST, request).await {
        Ok(answer) => answer.map_err(ApiError::from),
        Err(_) => Err(ApiError::TimedOut),
    }
}

/// What is told of the failures of one watch, which is opened again by itself. At an API server that is away or starts again every one fails, and the
/// source says so. That it is forbidden somebody has to mend.
#[derive(Debug)]
pub(crate) struct WatchFailures {
    /// What is watched.
    what: String,
    /// When it was last told that it may not be; none since it has worked.
    told: Option<Instant>,
}

// === impl WatchFailures ===

impl WatchFailures {
    /// Of a watch of `what`.
    pub(crate) fn of(what: impl Into<String>) -> Self {
        Self { what: what.into(), told: None }
    }

    /// The watch works: that it is forbidden would be told at once.
    pub(crate) fn worked(&mut self) {
        self.told = None;
    }

    /// As [`Self::worked`], unless the event says nothing of it: [`watcher::Event::Init`] comes before each try to list.
    pub(crate) fn heard<K>(&mut self, event: &watcher::Event<K>) {
        if !matches!(event, watcher::Event::Init) {
            self.worked();
        }
    }

    /// Tells of one: that it is forbidden once, and while it stays so each minute.
    pub(crate) fn tell(&mut self, error: &watcher::Error) {
        use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
        let forbidden = match error {
            InitialListFailed(kube::Error::Api(status))
            | WatchStartFailed(kube::Error::Api(status))
            | WatchFailed(kube::Error::Api(status))
            | WatchError(status) => status.is_forbidden(),
            _ => false,
        };
        let is_due = forbidden && self.is_due(Instant::now());
        let what = &self.what;
        if is_due {
            tracing::warn!(%error, "may not watch {what}: give the control plane's service account the rights of its ClusterRole and Role; trying again");
        } else {
            tracing::debug!(%error, "cannot watch {what}; trying again");
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let due = self.told.is_none_or(|told| now.duration_since(told) >= SAY_AGAIN);
        if due {
            self.told = Some(now);
        }
        due
    }
}

/// How long to wait after so many failures in a row.
fn backoff(failures: u32) -> Duration {
    (FIRST_WAIT * 2_u32.saturating_pow(failures.saturating_sub(1).min(10))).min(LAST_WAIT)
}

/// Writes the Secret `name` in place of the one that was read as of `version`, or makes it where there was none: somebody else's write in
/// between is a conflict.
pub(crate) async fn put_secret(
    secrets: &Api<core::Secret>,
    name: &str,
    data: BTreeMap<String, ByteString>,
    version: Option<&str>,
    maker: &str,
) -> Result<(), ApiError> {
    let Some(version) = version else {
        return asked(make_secret(secrets, name, data, maker)).await;
    };
    let patch = Patch::Merge(json!({ "metadata": { "resourceVersion": version }, "data": data }));
    asked(secrets.patch(name, &parameters(), &patch)).await.map(drop)
}

/// Makes the Secret `name`. By server-side apply, which Kubernetes authorizes by the object's name, as it does not a POST; and without force: `maker` is a name of
/// the caller's alone ([`maker`]), so that of several who make it at once one has, and the others conflict with that one's fields.
async fn make_secret(
    secrets: &Api<core::Secret>,
    name: &str,
    data: BTreeMap<String, ByteString>,
    maker: &str,
) -> kube::Result<()> {
    let metadata =
        ObjectMeta { name: Some(name.to_owned()), labels: Some(labels()), ..ObjectMeta::default() };
    let secret = core::Secret {
        metadata,
        type_: Some("Opaque".to_owned()),
        data: Some(data),
        ..core::Secret::default()
    };
    secrets.patch(name, &PatchParams::apply(maker), &Patch::Apply(&secret)).await.map(drop)
}

/// As whom this process makes what only one may make.
pub(crate) fn maker() -> String {
    format!("{MANAGER}-{:08x}", chance())
}

/// For names that nobody else has.
fn chance() -> u32 {
    // The hasher's keys are random, and of each its own.
    let hasher = std::hash::RandomState::new();
    std::hash::BuildHasher::hash_one(&hasher, std::process::id()) as u32
}

/// Of a patch: who writes.
fn parameters() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

/// What everything of ours is marked with.
fn labels() -> BTreeMap<String, String> {
    let labels = [("app.kubernetes.io/part-of", "tulle"), ("app.kubernetes.io/managed-by", MANAGER)];
    labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_is_forbidden_is_told_of_once_a_minute_and_not_at_every_try() {
        let (mut failures, begun) = (WatchFailures::of("namespaces"), Instant::now());
        let told = (0..150).filter(|second| failures.is_due(begun + Duration::from_secs(*second))).count();
        assert_eq!(told, 3, "at once, after one minute and after two");
    }

    #[test]
    fn that_a_watch_is_forbidden_is_told_at_once_if_it_has_worked_in_between() {
        let (mut failures, now) = (WatchFailures::of("namespaces"), Instant::now());
        assert!(failures.is_due(now));
        failures.heard(&watcher::Event::<core::Secret>::Init);
        assert!(!failures.is_due(now), "nothing has been listed yet");
        failures.heard(&watcher::Event::<core::Secret>::InitDone);
        assert!(failures.is_due(now));
    }
}
