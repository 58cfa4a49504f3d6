//! Who is connected, and what each has refused: kept for as long as the streams live.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use tulle_api::ResourceType;

use super::session::{Fault, Session};

/// The proxies with an open ADS stream. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Proxies(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    streams: AtomicU64,
    connected: Mutex<BTreeMap<u64, Connected>>,
}

/// One proxy, as its stream is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// `<namespace>/<workload>`; empty before the first message.
    pub node: String,
    /// From its certificate.
    pub identity: String,
    /// When its stream began.
    pub since: SystemTime,
    /// The version of its trust domain's roots that it has last accepted.
    pub bundle: Option<Arc<str>>,
    /// What it has refused and not accepted since.
    pub rejected: Vec<RejectedResource>,
}

/// A resource that a proxy runs without, or with an older version of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedResource {
    /// Its type.
    pub resource_type: ResourceType,
    /// Its name within the type.
    pub name: String,
    /// The version that was refused.
    pub version: String,
    /// The version that the proxy still runs on, if it has one.
    pub running: Option<String>,
    /// What the proxy said of it.
    pub faults: Vec<Fault>,
}

/// A stream's place in the list; gives it up when dropped.
#[derive(Debug)]
pub(super) struct Place {
    proxies: Proxies,
    id: u64,
    rejects: bool,
    bundle: Option<Arc<str>>,
}

// === impl Proxies ===

impl Proxies {
    /// Everyone who is connected, oldest first.
    pub fn list(&self) -> Vec<Connected> {
        self.0.connected.lock().values().cloned().collect()
    }

    /// How many are connected.
    pub fn len(&self) -> usize {
        self.0.connected.lock().len()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn enter(&self, identity: &str) -> Place {
        let id = self.0.streams.fetch_add(1, Ordering::Relaxed);
        let connected = Connected {
            node: String::new(),
            identity: identity.to_owned(),
            since: SystemTime::now(),
            bundle: None,
            rejected: Vec::new(),
        };
        self.0.connected.lock().insert(id, connected);
        Place { proxies: self.clone(), id, rejects: false, bundle: None }
    }
}

// === impl Place ===

impl Place {
    /// Says who it is.
    pub(super) fn introduce(&self, node: &str) {
        if let Some(connected) = self.proxies.0.connected.lock().get_mut(&self.id) {
            node.clone_into(&mut connected.node);
        }
    }

    /// Takes over which version of the roots it has accepted.
    pub(super) fn note_bundle(&mut self, accepted: Option<&Arc<str>>) {
        if self.bundle.as_ref() == accepted {
            return;
        }
        self.bundle = accepted.cloned();
        if let Some(connected) = self.proxies.0.connected.lock().get_mut(&self.id) {
            connected.bundle.clone_from(&self.bundle);
        }
    }

    /// Takes over what the session knows to be refused; `nacked`: there is news.
    pub(super) fn note(&mut self, session: &Session, nacked: bool) {
        // Nearly always there is nothing, before and after.
        if !nacked && !self.rejects {
            return;
        }
        let rejected: Vec<RejectedResource> = session
            .rejected()
            .map(|rejected| RejectedResource {
                resource_type: rejected.resource_type,
                name: rejected.name.to_owned(),
                version: rejected.version.to_owned(),
                running: rejected.running.map(str::to_owned),
                faults: rejected.faults.to_vec(),
            })
            .collect();
        self.rejects = !rejected.is_empty();
        if let Some(connected) = self.proxies.0.connected.lock().get_mut(&self.id) {
            connected.rejected = rejected;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.proxies.0.connected.lock().remove(&self.id);
    }
}
