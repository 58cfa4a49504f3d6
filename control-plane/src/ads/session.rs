//! One proxy's delta ADS stream, without I/O: what it subscribes to, what it was told, what it made of it.
//!
//! Decides which resources the next response carries, and which ACK or NACK speaks of which resource. It must
//! never send what did not change, never keep a second copy of a resource, and never let a proxy that is slow
//! or silent make it grow: **per type, at most one response is in flight**, and what changes meanwhile is not
//! queued but looked up anew when the answer arrives. So memory follows the number of subscriptions alone, the
//! newest state always wins, and a NACK can only be about one thing. The price is a round trip between two
//! responses of the same type.
//!
//! Called by [the shell](super::serve), which owns the stream and the clock, and by the simulation that runs
//! it against the proxy's own end.

mod view;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use prost::{Message, Name};
use tulle_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource, Status};
use tulle_api::{ResourceType, VIEW, v1};

pub use self::view::Compared;
use super::View;
use super::caller::Caller;
use crate::model::Encoded;

/// A response stops growing here and the rest follows in the next one, so that a client's limit on the size of
/// a message is never met. A single larger resource still goes out, alone.
const RESPONSE_BYTES: usize = 1 << 20;

/// Names that one stream may hold, over all types. A proxy keeps at most 10,000 absent addresses; services in
/// use come on top.
const MAX_SUBSCRIPTIONS: usize = 100_000;

/// The longest name there can be is `Routes`': three DNS labels or subdomains and two slashes.
const MAX_NAME_BYTES: usize = 640;

/// What is kept of a NACK, per resource and per text. A proxy of ours tells one fault a resource.
const MAX_FAULTS: usize = 4;
const MAX_FAULT_BYTES: usize = 512;

/// The server's end of one stream.
#[derive(Debug)]
pub struct Session {
    /// The namespace of the caller's SPIFFE ID.
    namespace: String,
    /// Known from the first message on.
    caller: Option<Caller>,
    channels: BTreeMap<ResourceType, Channel>,
    /// Answers that need no state, in order: absences of what cannot be subscribed to.
    refusals: VecDeque<DeltaDiscoveryResponse>,
    /// The client wants to compare.
    view_due: bool,
    last_nonce: u64,
}

/// Why a stream ends. Everything that concerns only some names is answered within the stream instead.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// The first message has no `node`.
    #[error("the first request of the stream carries no `node`: set node.id to <namespace>/<workload>")]
    NodeMissing,
    /// `Node.id` is not `<namespace>/<workload>`.
    #[error("node.id {0:?} is not of the form <namespace>/<workload>")]
    NodeMalformed(String),
    /// The caller speaks for another namespace.
    #[error("node.id {node:?} is not in {namespace:?}, the namespace of the caller's certificate")]
    NodeForeign {
        /// What the caller said.
        node: String,
        /// What its certificate says.
        namespace: String,
    },
    /// The caller's certificate is of another service account than the pod runs as.
    #[error(
        "node.id {node:?} is a pod of the service account {service_account:?}, and the caller's certificate is of {id}"
    )]
    NodeNotYours {
        /// What the caller said.
        node: String,
        /// What its certificate says.
        id: String,
        /// What the pod runs as.
        service_account: String,
    },
    /// There is no such pod, or it is not known yet.
    #[error("node.id {0:?} is no pod that is known (yet); connect again")]
    NodeUnknown(String),
    /// More names than a proxy has any use for.
    #[error("more than {MAX_SUBSCRIPTIONS} subscriptions on one stream: unsubscribe from what is idle")]
    TooManySubscriptions,
}

/// What a request amounted to, for metrics and logs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// `None`: a type that this control plane does not serve.
    pub resource_type: Option<ResourceType>,
    /// The answer that it carried to an earlier response.
    pub verdict: Verdict,
    /// Names that were answered as absent because the caller may not ask for them, or nobody can.
    pub refused: Vec<RefusedName>,
    /// Whether the client holds what the model says, if it has compared.
    pub compared: Option<Compared>,
}

/// A client's answer to a response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verdict {
    /// The request answers nothing, or nothing that is still waited for.
    #[default]
    None,
    /// Everything was accepted.
    Ack,
    /// Some was rejected; see [`Session::rejected`].
    Nack,
}

/// A name that is answered as absent whatever the model holds.
#[derive(Debug, PartialEq, Eq)]
pub struct RefusedName {
    /// As it was asked for, cut to a sane length.
    pub name: String,
    /// A stable label: `unknown_type`, `wildcard`, `name_too_long` or `not_permitted`.
    pub reason: &'static str,
}

/// A resource that the client refused and has not accepted since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected<'a> {
    /// The type of the resource.
    pub resource_type: ResourceType,
    /// Its name.
    pub name: &'a str,
    /// The version that was refused.
    pub version: &'a str,
    /// The version that the client still runs on, if it has one.
    pub running: Option<&'a str>,
    /// What the client said of it.
    pub faults: &'a [Fault],
}

/// One reason of a rejection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Field path; empty for the whole resource.
    pub field: String,
    /// The client's words.
    pub reason: String,
}

/// One type's part of a stream.
#[derive(Debug, Default)]
struct Channel {
    subscriptions: BTreeMap<Arc<str>, Subscription>,
    /// Names to compare with the model at the next chance.
    due: BTreeSet<Arc<str>>,
    /// The model changed: every name is due.
    all_due: bool,
    in_flight: Option<InFlight>,
    /// Of the last subscription.
    serial: u64,
}

#[derive(Debug)]
struct Subscription {
    /// Tells it from an earlier one to the same name.
    serial: u64,
    permitted: bool,
    told: Told,
    /// The version that the client last accepted.
    acked: Option<Arc<str>>,
    /// Rare, and so elsewhere.
    rejected: Option<Box<Rejection>>,
}

/// What the client was last told about a name, whether or not it has answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    /// Nothing that it still holds: it waits for an answer.
    Nothing,
    Absent,
    Version(Arc<str>),
}

#[derive(Debug)]
struct Rejection {
    version: Arc<str>,
    faults: Vec<Fault>,
}

#[derive(Debug)]
struct InFlight {
    nonce: u64,
    sent: Vec<Sent>,
}

/// One name in a response.
#[derive(Debug)]
struct Sent {
    name: Arc<str>,
    told: Told,
    /// Of the subscription that it answers.
    serial: u64,
}

/// What one response tells.
#[derive(Default)]
struct Batch {
    sent: Vec<Sent>,
    resources: Vec<Resource>,
    removed: Vec<String>,
}

// === impl Refusal ===

impl Refusal {
    /// A stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NodeMissing => "node_missing",
            Self::NodeMalformed(_) => "node_malformed",
            Self::NodeForeign { .. } => "node_foreign",
            Self::NodeNotYours { .. } => "node_not_yours",
            Self::NodeUnknown(_) => "node_unknown",
            Self::TooManySubscriptions => "too_many_subscriptions",
        }
    }
}

// === impl Session ===

impl Session {
    /// The state of a new stream from a caller whose SPIFFE ID lies in `namespace`.
    pub fn new(namespace: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            caller: None,
            channels: BTreeMap::new(),
            refusals: VecDeque::new(),
            view_due: false,
            last_nonce: 0,
        }
    }

    /// Who calls, as soon as the first message has said so.
    pub fn caller(&self) -> Option<&Caller> {
        self.caller.as_ref()
    }

    /// Takes one request in. Call [`poll`](Self::poll) afterwards until it has nothing.
    pub fn receive(&mut self, mut request: DeltaDiscoveryRequest) -> Result<Received, Refusal> {
        let caller = match &self.caller {
            Some(caller) => caller.clone(),
            None => {
                let node = request.node.take().ok_or(Refusal::NodeMissing)?;
                self.caller.insert(Caller::new(&self.namespace, &node.id)?).clone()
            }
        };
        // Before anything is kept of them.
        if request.resource_names_subscribe.len() > MAX_SUBSCRIPTIONS {
            return Err(Refusal::TooManySubscriptions);
        }
        let mut refused = Vec::new();
        if request.type_url == v1::View::type_url() {
            return Ok(self.receive_about_view(&request));
        }
        let Some(resource_type) = ResourceType::from_type_url(&request.type_url) else {
            let names = request.resource_names_subscribe;
            refused.extend(names.iter().map(|name| RefusedName::new(name, "unknown_type")));
            self.refuse(request.type_url, names);
            return Ok(Received { refused, ..Received::default() });
        };

        let channel = self.channels.entry(resource_type).or_default();
        let verdict = channel.settle(&request.response_nonce, request.error_detail.as_ref());
        for name in &request.resource_names_unsubscribe {
            channel.unsubscribe(name);
        }
        let mut impossible = Vec::new();
        for name in request.resource_names_subscribe {
            let reason = if name == "*" {
                "wildcard"
            } else if name.len() > MAX_NAME_BYTES {
                "name_too_long"
            } else {
                let permitted = caller.may(resource_type, &name);
                if !permitted {
                    refused.push(RefusedName::new(&name, "not_permitted"));
                }
                channel.subscribe(&name, permitted, request.initial_resource_versions.get(&name));
                continue;
            };
            refused.push(RefusedName::new(&name, reason));
            impossible.push(name);
        }
        self.refuse(request.type_url, impossible);
        if self.channels.values().map(|channel| channel.subscriptions.len()).sum::<usize>()
            > MAX_SUBSCRIPTIONS
        {
            return Err(Refusal::TooManySubscriptions);
        }
        Ok(Received { resource_type: Some(resource_type), verdict, refused, compared: None })
    }

    /// A question whether both ends agree, or what came of the last one.
    fn receive_about_view(&mut self, request: &DeltaDiscoveryRequest) -> Received {
        self.view_due |= request.resource_names_subscribe.iter().any(|name| name == VIEW);
        let answers = !request.response_nonce.is_empty();
        let compared = answers.then(|| Compared::read(request.error_detail.as_ref()));
        Received { compared, ..Received::default() }
    }

    /// The model is another one: whatever is subscribed to is compared again.
    pub fn model_changed(&mut self) {
        for channel in self.channels.values_mut() {
            channel.all_due = true;
        }
    }

    /// A resource is not as it was, if it is subscribed to: it is compared again. [`ResourceType::Routes`] are named by their
    /// service, whoever they are for. Whether it is.
    pub fn changed(&mut self, resource_type: ResourceType, name: &str) -> bool {
        let Some(channel) = self.channels.get_mut(&resource_type) else { return false };
        match resource_type {
            ResourceType::Routes => channel.changed(&format!("{}/{name}", self.namespace)),
            _ => channel.changed(name),
        }
    }

    /// The next response, if there is anything to say that may be said now.
    pub fn poll(&mut self, view: &impl View) -> Option<DeltaDiscoveryResponse> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(refusal);
        }
        for (resource_type, channel) in &mut self.channels {
            if channel.in_flight.is_some() {
                continue;
            }
            let Some(batch) = channel.collect(*resource_type, view) else { continue };
            self.last_nonce += 1;
            channel.in_flight = Some(InFlight { nonce: self.last_nonce, sent: batch.sent });
            return Some(DeltaDiscoveryResponse {
                system_version_info: String::new(),
                resources: batch.resources,
                type_url: resource_type.type_url().to_owned(),
                nonce: self.last_nonce.to_string(),
                removed_resources: batch.removed,
            });
        }
        // After all else: who reads it has read all that could be told.
        std::mem::take(&mut self.view_due).then(|| self.view(view))
    }

    /// What the client has refused and not accepted since, by type and name.
    pub fn rejected(&self) -> impl Iterator<Item = Rejected<'_>> {
        self.channels.iter().flat_map(|(resource_type, channel)| {
            channel.subscriptions.iter().filter_map(|(name, subscription)| {
                let rejection = subscription.rejected.as_ref()?;
                Some(Rejected {
                    resource_type: *resource_type,
                    name,
                    version: &rejection.version,
                    running: subscription.acked.as_deref(),
                    faults: &rejection.faults,
                })
            })
        })
    }

    /// Every name subscribed to, with the version that the client last accepted.
    pub fn subscriptions(&self) -> impl Iterator<Item = (ResourceType, &str, Option<&str>)> {
        self.channels.iter().flat_map(|(resource_type, channel)| {
            channel
                .subscriptions
                .iter()
                .map(|(name, subscription)| (*resource_type, &**name, subscription.acked.as_deref()))
        })
    }

    /// The version of a resource that the client last accepted.
    pub fn accepted(&self, resource_type: ResourceType, name: &str) -> Option<&Arc<str>> {
        self.channels.get(&resource_type)?.subscriptions.get(name)?.acked.as_ref()
    }

    /// Whether a response of that type waits for its answer.
    pub fn awaits_answer_of(&self, resource_type: ResourceType) -> bool {
        self.channels.get(&resource_type).is_some_and(|channel| channel.in_flight.is_some())
    }

    /// Whether a response of any type waits for its answer.
    pub fn awaits_answer(&self) -> bool {
        self.channels.values().any(|channel| channel.in_flight.is_some())
    }

    /// Answers names as absent without remembering them; the nonce is never waited for.
    fn refuse(&mut self, type_url: String, names: Vec<String>) {
        if names.is_empty() {
            return;
        }
        self.last_nonce += 1;
        self.refusals.push_back(DeltaDiscoveryResponse {
            type_url,
            nonce: self.last_nonce.to_string(),
            removed_resources: names,
            ..Default::default()
        });
    }
}

// === impl Channel ===

impl Channel {
    /// A name that is already subscribed to is answered again, in full: the client may have dropped it, so nothing is
    /// known any more of what it holds. A new one that the client says to hold is answered only if it holds something
    /// else.
    fn subscribe(&mut self, name: &str, permitted: bool, held: Option<&String>) {
        let name: Arc<str> = name.into();
        self.due.insert(Arc::clone(&name));
        let held = held.filter(|version| !version.is_empty() && version.len() <= MAX_NAME_BYTES);
        let held = held.filter(|_| !self.subscriptions.contains_key(&name));
        let held = held.map(|version| Arc::<str>::from(version.as_str()));
        let told = held.clone().map_or(Told::Nothing, Told::Version);
        self.serial += 1;
        let subscription = Subscription { serial: self.serial, permitted, told, acked: held, rejected: None };
        self.subscriptions.insert(name, subscription);
    }

    fn unsubscribe(&mut self, name: &str) {
        self.subscriptions.remove(name);
        self.due.remove(name);
    }

    fn changed(&mut self, name: &str) -> bool {
        let known = self.subscriptions.get_key_value(name);
        self.due.extend(known.map(|(name, _)| Arc::clone(name)));
        known.is_some()
    }

    /// Reads a request as the answer to the response in flight; any other nonce answers nothing.
    fn settle(&mut self, nonce: &str, error: Option<&Status>) -> Verdict {
        let Some(in_flight) = self.in_flight.take_if(|in_flight| nonce.parse() == Ok(in_flight.nonce)) else {
            return Verdict::None;
        };
        let mut faults = error.map(|error| Faults::read(error, &in_flight.sent));
        for Sent { name, told, serial } in in_flight.sent {
            // Gone, or subscribed anew since the response left: then the answer is not about what it holds now.
            let subscription = self.subscriptions.get_mut(&name);
            let Some(subscription) = subscription.filter(|now| now.serial == serial) else { continue };
            match (faults.as_mut().and_then(|faults| faults.take(&name)), told) {
                (Some(faults), Told::Version(version)) => {
                    subscription.rejected = Some(Box::new(Rejection { version, faults }));
                }
                (_, Told::Version(version)) => {
                    subscription.acked = Some(version);
                    subscription.rejected = None;
                }
                (_, Told::Absent | Told::Nothing) => {
                    subscription.acked = None;
                    subscription.rejected = None;
                }
            }
        }
        if error.is_some() { Verdict::Nack } else { Verdict::Ack }
    }

    /// Compares what is due with the model. `None`: nothing to tell.
    fn collect(&mut self, resource_type: ResourceType, view: &impl View) -> Option<Batch> {
        if !self.all_due && self.due.is_empty() {
            return None;
        }
        let mut batch = Batch::default();
        let mut bytes = 0;
        let due: Vec<Arc<str>> = if std::mem::take(&mut self.all_due) {
            self.due.clear();
            self.subscriptions.keys().cloned().collect()
        } else {
            std::mem::take(&mut self.due).into_iter().collect()
        };
        let mut due = due.into_iter();
        for name in due.by_ref() {
            let Some(subscription) = self.subscriptions.get_mut(&name) else { continue };
            let encoded = if subscription.permitted { view.get(resource_type, &name) } else { None };
            let now =
                encoded.as_ref().map_or(Told::Absent, |encoded| Told::Version(Arc::clone(&encoded.version)));
            if now == subscription.told {
                continue;
            }
            subscription.told = now.clone();
            match encoded {
                Some(encoded) => {
                    bytes += encoded.bytes.len() + name.len();
                    batch.resources.push(to_resource(&encoded, &name));
                }
                None => {
                    bytes += name.len();
                    batch.removed.push(name.to_string());
                }
            }
            batch.sent.push(Sent { name, told: now, serial: subscription.serial });
            if bytes >= RESPONSE_BYTES {
                break;
            }
        }
        self.due.extend(due);
        (!batch.sent.is_empty()).then_some(batch)
    }
}

// === impl Faults ===

/// A NACK, read: faults by resource, or one for the whole response.
enum Faults {
    Named(BTreeMap<String, Vec<Fault>>),
    Whole(Fault),
}

impl Faults {
    /// A NACK that names no resource of the response, as other clients send them, rejects all of it.
    fn read(error: &Status, sent: &[Sent]) -> Self {
        let offered = sent.iter().filter(|sent| sent.told != Told::Absent);
        let offered: HashSet<&str> = offered.map(|sent| &*sent.name).collect();
        let mut named: BTreeMap<String, Vec<Fault>> = BTreeMap::new();
        for detail in &error.details {
            if detail.type_url != v1::Rejection::type_url() {
                continue;
            }
            let Ok(rejection) = v1::Rejection::decode(&*detail.value) else { continue };
            if !offered.contains(&*rejection.resource) {
                continue;
            }
            let faults = named.entry(rejection.resource).or_default();
            if faults.len() < MAX_FAULTS {
                faults.push(Fault {
                    field: cut(&rejection.field, MAX_FAULT_BYTES).to_owned(),
                    reason: cut(&rejection.reason, MAX_FAULT_BYTES).to_owned(),
                });
            }
        }
        if named.is_empty() {
            let reason = cut(&error.message, MAX_FAULT_BYTES).to_owned();
            return Self::Whole(Fault { field: String::new(), reason });
        }
        Self::Named(named)
    }

    fn take(&mut self, name: &str) -> Option<Vec<Fault>> {
        match self {
            Self::Named(named) => named.remove(name),
            Self::Whole(fault) => Some(vec![fault.clone()]),
        }
    }
}

// === impl RefusedName ===

impl RefusedName {
    fn new(name: &str, reason: &'static str) -> Self {
        Self { name: cut(name, 128).to_owned(), reason }
    }
}

/// `text`, at most `max` bytes of it, cut between characters.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

fn to_resource(encoded: &Encoded, name: &str) -> Resource {
    Resource {
        version: encoded.version.to_string(),
        resource: Some(encoded.to_any()),
        name: name.to_owned(),
        aliases: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
