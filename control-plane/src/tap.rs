//! Taps: requests as they end, told by the proxies to people who look on (`tulle tap`, `tulle top`).
//!
//! Decides which proxies are asked, and keeps asking: each Report stream compares what is wanted of its proxy with what it was told
//! ([`Place`]), so that a proxy that comes later or again joins, and one that hears no more stops by itself. Whoever looks on reads [`Watching`], line by
//! line; a slow reader loses lines, which are counted and told, and holds up nobody. [`crate::admin`] asks, [`crate::report`] has the streams.

mod line;
pub mod question;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tulle_api::v1::report_response::Response;
use tulle_api::{ResourceType, v1};

pub use self::line::{Field, Line, Request, printable};
pub use self::question::{Of, Question, Side};
use crate::ending::Ending;
use crate::metrics::Metrics;
use crate::model::{Model, Publisher};

/// At the same time; a proxy takes no more either.
const MAX_TAPS: usize = 8;
/// Lines that wait for a reader.
const ROOM: usize = 1024;
/// A proxy that is not asked again within this time stops.
const LIFETIME: Duration = Duration::from_secs(30);
/// So often each is asked again.
const AGAIN: Duration = Duration::from_secs(10);
/// A reader that hears nothing for so long hears an empty line: so both ends notice that the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// No proxy of ours tells more of one request.
const MAX_REQUEST: usize = 16 << 10;
/// Names of proxies that a line has.
const NAMED: usize = 8;

/// All taps. Cheap to clone.
#[derive(Clone)]
pub struct Taps(Arc<Inner>);

struct Inner {
    publisher: Arc<Publisher>,
    metrics: Metrics,
    ending: Ending,
    state: Mutex<State>,
    /// Changes with what is wanted of proxies.
    wanted: watch::Sender<u64>,
    /// Changes with who takes part in any.
    members: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// Of taps and streams.
    numbers: u64,
    running: BTreeMap<u64, Running>,
    /// The proxies that can be asked, by stream.
    proxies: BTreeMap<u64, Proxy>,
}

#[derive(Clone)]
struct Proxy {
    node: String,
    identity: String,
}

struct Running {
    of: Of,
    asked: v1::Tap,
    lines: mpsc::Sender<Line>,
    unread: Arc<AtomicU64>,
    /// Streams whose proxies were asked.
    members: BTreeSet<u64>,
}

/// One stream's proxy, and what it was asked for.
pub(crate) struct Place {
    taps: Taps,
    id: u64,
    node: String,
    told: BTreeSet<u64>,
    again: Instant,
    wanted: watch::Receiver<u64>,
}

/// One tap, for whoever reads it. It is over when this is dropped.
pub struct Watching {
    taps: Taps,
    id: u64,
    lines: mpsc::Receiver<Line>,
    unread: Arc<AtomicU64>,
    members: watch::Receiver<u64>,
    /// The number of members that was told last.
    told: Option<usize>,
    ending: Ending,
    over: bool,
}

/// Why there is no such tap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The question has no answer, whatever the mesh is like.
    #[error("{0}")]
    Invalid(String),
    /// There is nothing of that name.
    #[error("{0}")]
    Unknown(String),
    /// As many run as may.
    #[error("{MAX_TAPS} taps run already: end one first")]
    TooMany,
}

// === impl Taps ===

impl Taps {
    /// None yet. They end with the control plane.
    pub fn new(publisher: Arc<Publisher>, metrics: Metrics, ending: Ending) -> Self {
        let (wanted, members) = (watch::Sender::new(0), watch::Sender::new(0));
        Self(Arc::new(Inner { publisher, metrics, ending, state: Mutex::default(), wanted, members }))
    }

    /// Begins a tap.
    ///
    /// # Errors
    /// There is nothing of that name, or no room.
    pub fn begin(&self, question: &Question) -> Result<Watching, Refusal> {
        let model = self.0.publisher.model();
        let mut state = self.0.state.lock();
        state.find(&model, &question.of)?;
        if let Some(service) = &question.service {
            find_service(&model, service.split(':').next().unwrap_or_default())?;
        }
        if state.running.len() >= MAX_TAPS {
            return Err(Refusal::TooMany);
        }
        let peers = question.peer.as_deref().map(|peer| state.identities(&model, peer)).unwrap_or_default();
        state.numbers += 1;
        let id = state.numbers;
        let asked = question.asked(id, LIFETIME, peers).map_err(Refusal::Invalid)?;
        let (lines, read) = mpsc::channel(ROOM);
        let unread = Arc::new(AtomicU64::new(0));
        let running = Running {
            of: question.of.clone(),
            asked,
            lines,
            unread: Arc::clone(&unread),
            members: BTreeSet::new(),
        };
        state.running.insert(id, running);
        self.0.metrics.taps.inc();
        drop(state);
        tracing::info!(id, of = %question.of, "a tap begins");
        self.0.wanted.send_modify(|number| *number += 1);
        Ok(Watching {
            taps: self.clone(),
            id,
            lines: read,
            unread,
            members: self.0.members.subscribe(),
            told: None,
            ending: self.0.ending.clone(),
            over: false,
        })
    }

    /// A proxy that can be asked from now on.
    pub(crate) fn enter(&self, node: &str, identity: &str) -> Place {
        let mut wanted = self.0.wanted.subscribe();
        // What is wanted already is wanted of this one too.
        wanted.mark_changed();
        let mut state = self.0.state.lock();
        state.numbers += 1;
        let id = state.numbers;
        state.proxies.insert(id, Proxy { node: node.to_owned(), identity: identity.to_owned() });
        Place {
            taps: self.clone(),
            id,
            node: node.to_owned(),
            told: BTreeSet::new(),
            again: Instant::now(),
            wanted,
        }
    }
}

// === impl State ===

impl State {
    /// Whether there is anything that is asked for.
    fn find(&self, model: &Model, of: &Of) -> Result<(), Refusal> {
        match of {
            Of::All => Ok(()),
            Of::Service(name) => find_service(model, name),
            Of::Workload(name) => {
                let known = || model.get(ResourceType::Workload, name).is_some();
                if self.proxies.values().any(|proxy| proxy.node == *name) || known() {
                    return Ok(());
                }
                let workloads = model.names(ResourceType::Workload);
                let all = self.proxies.values().map(|proxy| &*proxy.node);
                Err(unknown("workload", name, all.chain(workloads.iter().map(|name| &**name))))
            }
            Of::Namespace(namespace) => {
                let kinds = [ResourceType::Workload, ResourceType::Service];
                let names: Vec<_> = kinds.into_iter().flat_map(|kind| model.names(kind)).collect();
                let all = self.proxies.values().map(|proxy| &*proxy.node);
                let all = all.chain(names.iter().map(|name| &**name));
                let namespaces: BTreeSet<&str> =
                    all.filter_map(|name| Some(name.split_once('/')?.0)).collect();
                if namespaces.contains(&**namespace) {
                    return Ok(());
                }
                Err(unknown("namespace", namespace, namespaces.into_iter()))
            }
        }
    }

    /// The SPIFFE IDs that are meant by one of them, or by `<namespace>/<workload or service account>`.
    fn identities(&self, model: &Model, peer: &str) -> Vec<String> {
        if peer.starts_with("spiffe://") {
            return vec![peer.to_owned()];
        }
        let of_workload = self.proxies.values().filter(|proxy| proxy.node == peer);
        let mut all: BTreeSet<String> = of_workload.map(|proxy| proxy.identity.clone()).collect();
        if let Some((namespace, account)) = peer.split_once('/') {
            all.insert(format!("spiffe://{}/ns/{namespace}/sa/{account}", model.trust_domain()));
        }
        all.into_iter().collect()
    }
}

fn find_service(model: &Model, name: &str) -> Result<(), Refusal> {
    if model.get(ResourceType::Service, name).is_some() {
        return Ok(());
    }
    let names = model.names(ResourceType::Service);
    Err(unknown("Service", name, names.iter().map(|name| &**name)))
}

fn unknown<'a>(kind: &str, name: &str, known: impl Iterator<Item = &'a str>) -> Refusal {
    let known: BTreeSet<&str> = known.collect();
    let near = tulle_api::nearest(name, known.iter().copied());
    let some: Vec<&str> = known.iter().copied().take(NAMED).collect();
    let rest = if known.len() > NAMED { ", …" } else { "" };
    let there_are = match (near, some.is_empty()) {
        (Some(near), _) => format!("did you mean {near}?"),
        (None, true) => "it knows none".to_owned(),
        (None, false) => format!("there are {}{rest}", some.join(", ")),
    };
    Refusal::Unknown(format!("the control plane knows no {kind} {name}; {there_are}"))
}

/// The identities of a Service's endpoints.
fn identities_of(model: &Model, service: &str) -> BTreeSet<String> {
    let encoded = model.get(ResourceType::Endpoints, service);
    let told = encoded.and_then(|encoded| v1::Endpoints::decode(&*encoded.bytes).ok()).unwrap_or_default();
    let ports = told.endpoints.into_iter().flat_map(|endpoint| endpoint.ports);
    let identity = |port: v1::EndpointPort| match port.peer?.peer? {
        v1::peer::Peer::SpiffeId(id) => Some(id),
        v1::peer::Peer::Plaintext(_) => None,
    };
    ports.filter_map(identity).collect()
}

// === impl Running ===

impl Running {
    fn is_of(&self, model: &Model, proxy: &Proxy) -> bool {
        match &self.of {
            Of::All => true,
            Of::Namespace(namespace) => proxy.node.split_once('/').is_some_and(|(of, _)| of == namespace),
            Of::Workload(name) => proxy.node == *name,
            Of::Service(name) => identities_of(model, name).contains(&proxy.identity),
        }
    }

    fn tell(&self, line: Line, metrics: &Metrics) {
        if self.lines.try_send(line).is_err() {
            self.unread.fetch_add(1, Relaxed);
            metrics.tap_lines_dropped.inc();
        }
    }
}

// === impl Place ===

impl Place {
    /// Waits until the proxy may have to be told something.
    pub(crate) async fn wait(&mut self) {
        let at = (!self.told.is_empty()).then_some(self.again);
        let again = async {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.wanted.changed() => {
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            () = again => {}
        }
    }

    /// What the proxy has to be told.
    pub(crate) fn due(&mut self) -> Vec<Response> {
        let now = Instant::now();
        let again = now >= self.again;
        if again {
            self.again = now + AGAIN;
        }
        let model = self.taps.0.publisher.model();
        let mut responses = Vec::new();
        let mut state = self.taps.0.state.lock();
        let State { running, proxies, .. } = &mut *state;
        let Some(proxy) = proxies.get(&self.id) else { return responses };
        let mut joined = false;
        let mut wanted = BTreeSet::new();
        for (id, tap) in running.iter_mut() {
            if !tap.is_of(&model, proxy) {
                joined |= tap.members.remove(&self.id);
                continue;
            }
            wanted.insert(*id);
            joined |= tap.members.insert(self.id);
            if again || !self.told.contains(id) {
                responses.push(Response::Tap(tap.asked.clone()));
            }
        }
        drop(state);
        responses.extend(self.told.difference(&wanted).map(|over| Response::TapOver(*over)));
        self.told = wanted;
        if joined {
            self.taps.0.members.send_modify(|number| *number += 1);
        }
        responses
    }

    /// Takes in what the proxy shows.
    pub(crate) fn take(&self, tapped: v1::Tapped) {
        let v1::Tapped { id, requests, over_rate, dropped, refused } = tapped;
        let (metrics, state) = (&self.taps.0.metrics, self.taps.0.state.lock());
        let Some(running) = state.running.get(&id).filter(|running| running.members.contains(&self.id))
        else {
            // It ends meanwhile.
            return;
        };
        let proxy = || self.node.clone();
        for request in requests {
            if request.encoded_len() <= MAX_REQUEST {
                running.tell(Line::Request(Box::new(Request::new(proxy(), request))), metrics);
            }
        }
        if over_rate > 0 || dropped > 0 {
            running.tell(Line::Missed { proxy: proxy(), over_rate, dropped }, metrics);
        }
        if !refused.is_empty() {
            let why = refused.chars().take(256).collect();
            running.tell(Line::Refused { proxy: proxy(), why }, metrics);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.taps.0.state.lock();
        state.proxies.remove(&self.id);
        let mut left = false;
        for running in state.running.values_mut() {
            left |= running.members.remove(&self.id);
        }
        drop(state);
        if left {
            self.taps.0.members.send_modify(|number| *number += 1);
        }
    }
}

// === impl Watching ===

impl Watching {
    /// What is to be read next; `None`: it is over.
    pub async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        if self.told.is_none() {
            return Some(Bytes::from(self.members().map(|line| line.to_string()).unwrap_or_default()));
        }
        let mut lines = Vec::new();
        let mut also = None;
        tokio::select! {
            () = self.ending.wait() => {
                self.over = true;
                also = Some(Line::Over { why: "the control plane is ending".to_owned() });
            }
            Ok(()) = self.members.changed() => also = self.members(),
            _ = self.lines.recv_many(&mut lines, 64) => {}
            () = tokio::time::sleep(HEARTBEAT) => return Some(Bytes::from_static(b"\n")),
        }
        let unread = self.unread.swap(0, Relaxed);
        if unread > 0 {
            lines.push(Line::Unread { lines: unread });
        }
        lines.extend(also);
        let text: String = lines.iter().map(ToString::to_string).collect();
        Some(Bytes::from(text))
    }

    /// Who takes part, if that is news.
    fn members(&mut self) -> Option<Line> {
        let state = self.taps.0.state.lock();
        let members = state.running.get(&self.id).map(|running| &running.members)?;
        let names = members.iter().filter_map(|id| state.proxies.get(id)).map(|proxy| proxy.node.clone());
        let (count, names) = (members.len(), names.take(NAMED).collect());
        drop(state);
        let news = self.told != Some(count);
        self.told = Some(count);
        news.then_some(Line::Watching { proxies: count, names })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.taps.0.state.lock().running.remove(&self.id);
        self.taps.0.metrics.taps.dec();
        tracing::info!(id = self.id, "a tap is over");
        self.taps.0.wanted.send_modify(|number| *number += 1);
    }
}

#[cfg(test)]
mod tests;
