//! One control plane as one of several replicas in a cluster: what `app` starts beside everything else.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::Client;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tulle_certs::TrustDomain;

use super::{Bundles, Holder, Issuer, Others, Reviews, Secret, Slices, Statuses, campaign, chance};
use crate::ca::{self, Ca, CaError, Kept, Store};
use crate::ending::Ending;
use crate::metrics::Metrics;
use crate::model::Publisher;
use crate::registration::Registrations;

/// A replica that has not begun.
pub struct Replica {
    client: Client,
    /// The control plane's own.
    namespace: String,
    /// The pod's name.
    pod: Option<String>,
    /// Where the issuing certificate comes from, if not from ourselves.
    issuer: Option<Issuer>,
    metrics: Metrics,
}

/// A replica at work.
pub struct Running {
    holder: Holder,
    others: Arc<Others>,
    campaign: JoinHandle<()>,
    /// Whether it is known what is registered at the other replicas.
    registered: watch::Receiver<bool>,
    /// Aborted with it.
    _tasks: JoinSet<()>,
}

// === impl Replica ===

impl Replica {
    /// Of the control plane in `namespace`.
    pub fn new(client: Client, namespace: impl Into<String>, metrics: Metrics) -> Self {
        Self { client, namespace: namespace.into(), pod: None, issuer: None, metrics }
    }

    /// In the pod of that name, which the Lease will tell.
    pub fn in_pod(self, pod: Option<String>) -> Self {
        Self { pod, ..self }
    }

    /// With an issuing certificate that cert-manager writes into this Secret, under which certificates live as long as this.
    pub fn issued_by(self, secret: Option<&str>, lifetime: Duration) -> Self {
        let issuer = secret.map(|name| Issuer::new(self.client.clone(), &self.namespace, name, lifetime));
        Self { issuer, ..self }
    }

    /// The authority that all replicas share; made, if there is none yet, or waited for where cert-manager makes it.
    ///
    /// # Errors
    /// When the Secret cannot be read, made or used.
    pub async fn authority(&self, domain: &TrustDomain, options: ca::Options) -> Result<Ca, CaError> {
        let (store, kept): (Arc<dyn Store>, Kept) = match &self.issuer {
            None => {
                let secret = Secret::new(self.client.clone(), &self.namespace);
                let kept = secret.open(domain, SystemTime::now()).await?;
                secret.clone().beside_issuer().forget_roots().await?;
                (Arc::new(secret), kept)
            }
            Some(issuer) => {
                let kept = issuer.open(domain).await?;
                (Arc::new(issuer.clone()), kept)
            }
        };
        let reviews = Reviews::new(self.client.clone(), self.metrics.token_reviews.clone());
        let options = ca::Options { reviewer: Some(Arc::new(reviews)), ..options };
        Ca::with_store(store, kept, domain, SystemTime::now(), options)
    }

    /// Begins to ask for the lease, to write, and to notice what others write, until the control plane ends.
    pub fn start(
        self,
        ca: &Ca,
        publisher: &Arc<Publisher>,
        registrations: &Arc<Registrations>,
        ending: &Ending,
    ) -> Running {
        let Self { client, namespace, pod, issuer, metrics } = self;
        let (held, receiver) = watch::channel(false);
        let holder = Holder::of(receiver);
        let others = Arc::new(Others::new(client.clone(), &namespace, pod.as_deref(), holder.clone()));
        let name = name(pod);
        let mut tasks = JoinSet::new();
        let secret = match &issuer {
            None => Secret::new(client.clone(), &namespace),
            Some(issuer) => issuer.beside().clone(),
        };
        let secret = secret.counting(metrics.identity_writes.clone());
        tasks.spawn(secret.watch(ca.clone(), holder.clone()));
        if let Some(issuer) = issuer {
            tasks.spawn(issuer.watch(ca.clone()));
        }
        let (bundles, meshed) = (Bundles::new(client.clone(), &namespace), publisher.meshed_namespaces());
        tasks.spawn(bundles.keep(ca.bundles(), meshed, holder.clone()));
        let statuses = Statuses::new(client.clone(), Arc::clone(publisher), metrics.status_writes.clone());
        tasks.spawn(statuses.keep(holder.clone()));
        let slices = Slices::new(
            client.clone(),
            name.clone(),
            ca.trust_domain().clone(),
            Arc::clone(registrations),
            Arc::clone(publisher),
            metrics.registration_writes.clone(),
        );
        let registered = slices.read();
        tasks.spawn(slices.keep(holder.clone(), ending.clone()));
        tasks.spawn(show(holder.clone(), metrics));
        let campaign = tokio::spawn(campaign(client, namespace, name, held, ending.clone()));
        Running { holder, others, campaign, registered, _tasks: tasks }
    }
}

// === impl Running ===

impl Running {
    /// Whether this replica holds the lease.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// The other replicas, as a rotation of the root sees them.
    pub fn others(&self) -> Arc<Others> {
        Arc::clone(&self.others)
    }

    /// Returns once it is known what is registered at the other replicas: before, nobody may be told that it is not there.
    pub async fn read(&self) {
        let mut registered = self.registered.clone();
        // An error: the tasks are gone, and so is whoever waits.
        let _gone = registered.wait_for(|registered| *registered).await;
    }

    /// Returns once the lease is given back, after the control plane has begun to end.
    pub async fn stop(self) {
        // It ends in time by itself, whatever the API server does.
        if let Err(error) = self.campaign.await {
            tracing::debug!(%error, "the lease was not given back");
        }
    }
}

/// The pod's name or else the host's, which in a pod may be its node's, and some chance: who comes back under the same name is another.
fn name(pod: Option<String>) -> String {
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:08x}", pod.unwrap_or_else(host).trim(), chance())
}

async fn show(mut holder: Holder, metrics: Metrics) {
    loop {
        holder.held().await;
        metrics.lease_held.set(1);
        holder.lost().await;
        metrics.lease_held.set(0);
    }
}
