//! The shell around [`Candidate`]: its requests, and who is told.

use std::pin::pin;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Candidate, DURATION, LEASE, LONGEST, Record, Step};
use crate::cluster::{ApiError, SAY_AGAIN, asked, labels, parameters};
use crate::ending::Ending;

/// How long giving the lease back may take, when the control plane ends.
const RELEASE: Duration = Duration::from_secs(2);

/// Whether this replica holds the lease. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Holder(watch::Receiver<bool>);

// === impl Holder ===

impl Holder {
    /// Who holds the lease whenever `held` says so.
    pub fn of(held: watch::Receiver<bool>) -> Self {
        Self(held)
    }

    /// To be looked at together with other things.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.0.clone()
    }

    /// Now.
    pub fn is_held(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once it is held, at once if it is; never, when it cannot be any more.
    pub async fn held(&mut self) {
        self.wait_for(true).await;
    }

    /// Returns once it is not held, at once if it is not.
    pub async fn lost(&mut self) {
        self.wait_for(false).await;
    }

    async fn wait_for(&mut self, wanted: bool) {
        if self.0.wait_for(|held| *held == wanted).await.is_err() && wanted {
            std::future::pending::<()>().await;
        }
    }
}

/// Keeps asking for the lease in `namespace`, until the control plane ends; then gives it back.
///
/// `name` must be of this process alone.
pub async fn campaign(
    client: Client,
    namespace: String,
    name: String,
    held: watch::Sender<bool>,
    mut ending: Ending,
) {
    let mut shell = Shell {
        leases: Api::namespaced(client, &namespace),
        namespace,
        candidate: Candidate::new(name, now()),
        held,
        failing: None,
    };
    tokio::select! {
        () = shell.run() => {}
        () = ending.wait() => {}
    }
    shell.held.send_replace(false);
    shell.release().await;
}

/// Tokio's, which tests hold and set.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

struct Shell {
    leases: Api<Lease>,
    namespace: String,
    candidate: Candidate,
    held: watch::Sender<bool>,
    /// When it was last told that the lease cannot be asked for, while it cannot: once a minute.
    failing: Option<Instant>,
}

impl Shell {
    async fn run(&mut self) {
        loop {
            let sent = now();
            self.tell(sent);
            match self.candidate.step(sent) {
                Step::Wait(until) => {
                    let until = self.candidate.holds_until(sent).map_or(until, |end| end.min(until));
                    tokio::time::sleep_until(until.into()).await;
                }
                Step::Read => {
                    let leases = self.leases.clone();
                    let read = async move { asked(leases.get_opt(LEASE)).await };
                    match self.meanwhile(read).await {
                        Ok(lease) => {
                            self.mended();
                            self.candidate.read(now(), lease.as_ref().map(record));
                            self.warn();
                        }
                        Err(error) => self.failed(&error),
                    }
                }
                Step::Create => {
                    let lease = self.lease();
                    let manager = self.candidate.name().to_owned();
                    let leases = self.leases.clone();
                    // Of several who make it at once one has made it, and the others conflict with that one's fields.
                    let create = async move {
                        asked(leases.patch(LEASE, &PatchParams::apply(&manager), &Patch::Apply(&lease))).await
                    };
                    let made = self.meanwhile(create).await;
                    self.written(sent, made);
                }
                Step::Write { version, transitions, renewal } => {
                    let patch = self.patch(&version, transitions, renewal);
                    let leases = self.leases.clone();
                    let write = async move { asked(leases.patch(LEASE, &parameters(), &patch)).await };
                    let written = self.meanwhile(write).await;
                    self.written(sent, written);
                }
            }
        }
    }

    /// Carries a request out, and says in time that the lease is no longer held, should it take too long.
    async fn meanwhile<T>(&self, request: impl Future<Output = T>) -> T {
        let mut request = pin!(request);
        if let Some(end) = self.candidate.holds_until(now()) {
            tokio::select! {
                done = &mut request => return done,
                () = tokio::time::sleep_until(end.into()) => self.tell(now()),
            }
        }
        request.await
    }

    fn written(&mut self, sent: Instant, written: Result<Lease, ApiError>) {
        match written {
            Ok(lease) => {
                self.mended();
                self.candidate.written(sent, record(&lease));
            }
            Err(error) if error.is_conflict() || error.is_not_found() => {
                self.candidate.outrun(now());
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &ApiError) {
        let now = now();
        if self.failing.is_none_or(|told| told + SAY_AGAIN <= now) {
            self.failing = Some(now);
            tracing::warn!(%error, lease = LEASE, "cannot ask for the lease; trying again");
        }
        self.candidate.failed(now);
    }

    /// Tells of a lease that lasts for longer than anybody of ours asks for.
    fn warn(&mut self) {
        let Some(Record { holder, duration, .. }) = self.candidate.excessive(now()) else { return };
        tracing::warn!(
            lease = LEASE,
            holder,
            ?duration,
            "the lease is another's, and says that it lasts for longer than a control plane of this mesh asks for; it is taken over once it has not changed for {LONGEST:?}. Does its holder \
             renew it, and is no control plane of this mesh, end it, and then delete the Lease (`kubectl -n {} delete lease {LEASE}`): until then no status, no ConfigMap with roots \
             and no key of the authority is written",
            self.namespace
        );
    }

    fn mended(&mut self) {
        if self.failing.take().is_some() {
            tracing::info!(lease = LEASE, "the lease can be asked for again");
        }
    }

    fn tell(&self, now: Instant) {
        let holds = self.candidate.holds_until(now).is_some();
        let changed = self.held.send_if_modified(|held| std::mem::replace(held, holds) != holds);
        if changed {
            let name = self.candidate.name();
            if holds {
                tracing::info!(lease = LEASE, name, "this replica holds the lease");
            } else {
                tracing::warn!(lease = LEASE, name, "this replica has lost the lease");
            }
        }
    }

    /// As it is made.
    fn lease(&self) -> Lease {
        let now = MicroTime(Timestamp::now());
        Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_owned()),
                labels: Some(labels()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                acquire_time: Some(now.clone()),
                holder_identity: Some(self.candidate.name().to_owned()),
                lease_duration_seconds: Some(seconds(DURATION)),
                lease_transitions: Some(0),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }

    /// As it is written, to a version that was seen.
    fn patch(&self, version: &str, transitions: i32, renewal: bool) -> Patch<Value> {
        let now = MicroTime(Timestamp::now());
        let mut spec = json!({
            "holderIdentity": self.candidate.name(),
            "leaseDurationSeconds": seconds(DURATION),
            "leaseTransitions": transitions,
            "renewTime": now,
        });
        if !renewal {
            spec["acquireTime"] = json!(now);
        }
        Patch::Merge(json!({ "metadata": { "resourceVersion": version }, "spec": spec }))
    }

    async fn release(&mut self) {
        let Some((version, transitions)) = self.candidate.give_back(now()) else { return };
        let given = async {
            match self.write_as_nobodys(&version, transitions).await {
                // A renewal was under way when the end came, and has been carried out.
                Err(error) if error.is_conflict() => {
                    let lease = asked(self.leases.get_opt(LEASE)).await?;
                    let ours = lease.as_ref().map(record).filter(|now| now.holder == self.candidate.name());
                    match ours {
                        Some(now) => self.write_as_nobodys(&now.version, now.transitions).await,
                        None => Ok(()),
                    }
                }
                given => given,
            }
        };
        match tokio::time::timeout(RELEASE, given).await {
            Ok(Ok(())) => tracing::info!(lease = LEASE, "gave the lease back"),
            // Another takes it once it has ended.
            Ok(Err(error)) => tracing::warn!(%error, lease = LEASE, "cannot give the lease back"),
            Err(_) => tracing::warn!(lease = LEASE, "cannot give the lease back: no answer in time"),
        }
    }

    async fn write_as_nobodys(&self, version: &str, transitions: i32) -> Result<(), ApiError> {
        let spec =
            json!({ "holderIdentity": null, "leaseDurationSeconds": 1, "leaseTransitions": transitions });
        let patch = Patch::Merge(json!({ "metadata": { "resourceVersion": version }, "spec": spec }));
        asked(self.leases.patch(LEASE, &parameters(), &patch)).await.map(drop)
    }
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        renewed: spec.renew_time.map(|at| at.0.to_string()).unwrap_or_default(),
        duration: duration.map_or(DURATION, Duration::from_secs),
        transitions: spec.lease_transitions.unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}
