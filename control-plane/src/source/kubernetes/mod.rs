//! A Kubernetes API server: every kind that means something to the mesh, listed once and watched from there.
//!
//! One task for each kind (`watch`), which asks (`wire`) and says what has changed and what is wrong; one task that gathers what they
//! say and hands it to the [`Publisher`], so that what comes together is published together. What an object means is decided where it is
//! decided for a folder's (`super::decode`). Never writes anything. With the API server away, or saying what cannot be understood, what
//! was last read is served on.
//!
//! Nothing is published before each kind has been read once, or is known to be absent: half of a cluster is not what is there.

mod find;
mod plugin;
mod resource;
mod watch;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::{mpsc, watch as latest};
use tokio::task::JoinSet;
use tokio::time::error::Elapsed;

pub use self::find::{FindError, configuration};
pub use self::plugin::{ClientError, PluginError, client};
use self::resource::Resource;
use self::watch::{Told, Watcher};
use crate::finding::Finding;
use crate::index::Change;
use crate::metrics::Metrics;
use crate::model::Publisher;
use crate::object::{Kind, ObjectKey, PodForm};

/// What a connection to the API server may take.
pub(crate) const CONNECT: Duration = Duration::from_secs(30);
/// What watchers may have said before it is taken in; then they wait.
const QUEUE: usize = 256;

/// An API server that cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody says where it is.
    #[error(
        "cannot find a Kubernetes API server: {0} (--source kubernetes takes what KUBECONFIG or ~/.kube/config says, or else the service account of its pod)"
    )]
    NotFound(#[source] Box<FindError>),
    /// What is said of it cannot be used.
    #[error("cannot use what is said of the Kubernetes API server: {0}")]
    Unusable(#[source] Box<ClientError>),
}

/// How patient the watches are. All of them are stretched by chance, so that nothing is asked of an API server all at once.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The wait after the first failure; after each more it doubles …
    pub first: Duration,
    /// … up to this.
    pub longest: Duration,
    /// How often is asked whether an absent kind has been installed.
    pub look_again: Duration,
    /// After silence for so long a watch is taken for dead: an API server sends a bookmark about once a minute.
    pub silence: Duration,
    /// How long a watch lasts before it is opened anew.
    pub lifetime: Duration,
}

/// An API server that is read for as long as this lives.
#[derive(Debug)]
pub struct Cluster {
    /// Whether everything has been read once.
    read: latest::Receiver<bool>,
    /// Aborted with it.
    _tasks: JoinSet<()>,
}

/// What is known to be wrong, and what waits to be published.
#[derive(Default)]
struct Gathered {
    /// Kinds that have not been read yet.
    missing: BTreeSet<Kind>,
    waiting: Vec<Change>,
    of_objects: BTreeMap<ObjectKey, Vec<Finding>>,
    of_kinds: BTreeMap<Kind, Finding>,
    findings_changed: bool,
}

/// Finds the API server as `kubectl` does, or from the pod that this runs in.
///
/// # Errors
/// There is none to be found, or what is said of it cannot be used.
pub async fn connect() -> Result<Client, ConnectError> {
    let found = configuration(None, None).await;
    let mut config = found.map_err(|error| ConnectError::NotFound(Box::new(error)))?;
    config.connect_timeout = Some(CONNECT);
    // Each kind's own patience says when is asked again.
    config.default_retry = false;
    client(config).await.map_err(|error| ConnectError::Unusable(Box::new(error)))
}

/// What is at the end of the sources of a client's error: there it says what happened. `connect`: what a connection may take.
pub fn innermost(error: &(dyn Error + 'static), connect: Duration) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    words(last, connect)
}

/// What an error says itself; of a connection that took too long, how long that is, which the library leaves out.
fn words(error: &(dyn Error + 'static), connect: Duration) -> String {
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match inner.is_some_and(|inner| inner.is::<Elapsed>()) {
        true => format!("no connection within {connect:?}"),
        false => error.to_string(),
    }
}

/// The definitions of the kinds that not every cluster has, by their names, each with the versions of it that are read, the best first.
pub fn definitions() -> Vec<(String, &'static [&'static str])> {
    let optional = Resource::all().into_iter().filter(|resource| !resource.always);
    optional.map(|resource| (resource.name(), resource.versions())).collect()
}

// === impl Pace ===

impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(200),
            longest: Duration::from_secs(30),
            look_again: Duration::from_secs(20),
            silence: Duration::from_secs(150),
            lifetime: Duration::from_secs(300),
        }
    }
}

// === impl Cluster ===

impl Cluster {
    /// Begins to read; `publisher` is told once everything has been read, and from then on of every change.
    pub fn start(client: Client, publisher: Arc<Publisher>, metrics: &Metrics, pace: Pace) -> Self {
        let (tell, told) = mpsc::channel(QUEUE);
        let mut tasks = JoinSet::new();
        let resources = Resource::all();
        let gathered =
            Gathered { missing: resources.iter().map(|one| one.kind).collect(), ..Gathered::default() };
        for resource in resources {
            let watcher = Watcher::new(client.clone(), resource, tell.clone(), metrics.clone(), pace);
            // Of Pods there are many, and little of each is kept.
            if resource.kind == Kind::Pod {
                tasks.spawn(watcher.run::<PodForm>());
            } else {
                tasks.spawn(watcher.run::<serde_json::Value>());
            }
        }
        let (done, read) = latest::channel(false);
        tasks.spawn(gather(gathered, publisher, told, done));
        Self { read, _tasks: tasks }
    }

    /// Returns once everything has been read and is published.
    pub async fn read(&self) {
        let mut read = self.read.clone();
        // An error: the tasks are gone, and so is whoever waits.
        let _gone = read.wait_for(|read| *read).await;
    }
}

async fn gather(
    mut gathered: Gathered,
    publisher: Arc<Publisher>,
    mut told: mpsc::Receiver<Told>,
    done: latest::Sender<bool>,
) {
    let mut batch = Vec::with_capacity(QUEUE);
    while told.recv_many(&mut batch, QUEUE).await > 0 {
        for one in batch.drain(..) {
            gathered.take(one);
        }
        let complete = gathered.missing.is_empty();
        match gathered.next() {
            Some((changes, Some(findings))) => publisher.apply(changes, findings),
            Some((changes, None)) => publisher.change(changes),
            None => {}
        }
        if complete && !*done.borrow() {
            publisher.settle().await;
            done.send_replace(true);
        }
    }
}

// === impl Gathered ===

impl Gathered {
    fn take(&mut self, told: Told) {
        match told {
            Told::Objects { changes, findings } => {
                self.waiting.extend(changes);
                for (key, found) in findings {
                    self.findings_changed |= match found.is_empty() {
                        true => self.of_objects.remove(&key).is_some(),
                        false => self.of_objects.get(&key) != Some(&found),
                    };
                    if !found.is_empty() {
                        self.of_objects.insert(key, found);
                    }
                }
            }
            Told::Trouble(kind, finding) => {
                let before = match finding {
                    Some(finding) => self.of_kinds.insert(kind, finding.clone()) != Some(finding),
                    None => self.of_kinds.remove(&kind).is_some(),
                };
                self.findings_changed |= before;
            }
            Told::Read(kind) => {
                self.missing.remove(&kind);
            }
        }
    }

    /// What is to be published now, if anything is, and what is found wrong, if that has changed. What keeps a kind from being read is told before
    /// anything is.
    fn next(&mut self) -> Option<(Vec<Change>, Option<Vec<Finding>>)> {
        let changes = if self.missing.is_empty() { std::mem::take(&mut self.waiting) } else { Vec::new() };
        if !std::mem::take(&mut self.findings_changed) {
            return (!changes.is_empty()).then_some((changes, None));
        }
        let findings = self.of_objects.values().flatten().chain(self.of_kinds.values());
        let mut findings: Vec<Finding> = findings.cloned().collect();
        findings.sort();
        Some((changes, Some(findings)))
    }
}

#[cfg(test)]
mod tests;
