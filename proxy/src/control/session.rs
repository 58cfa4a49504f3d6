//! The proxy's end of delta ADS, without I/O: what is wanted, what is held, what to say next.
//!
//! Decides what a [`DeltaDiscoveryRequest`] says; never what a resource means. [`super::ads`] carries the messages and
//! hands each [`Update`] to whoever decodes it, who answers with what it rejected ([`Session::answer`]): an ACK, or a
//! NACK that names every rejected resource. A rejected resource's version is not remembered as held: its last good
//! version, if there is one, stays in use and is what a reconnect says to hold.
//!
//! After a reconnect ([`Session::open`]) everything wanted is asked for again, with the versions that are held: what
//! has not changed is not sent again, and what is gone is told as removed. That is also how everything is mended that was lost
//! on the way: now and then both ends compare ([`Session::ask_view`]), and where they differ the stream is opened anew.

mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use prost::Message;
use prost_types::Any;
use tulle_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status};
use tulle_api::v1::Rejection;

pub use self::view::{Compared, Difference};

/// A resource's type URL and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceName {
    pub type_url: String,
    pub name: String,
}

/// What one response says, to be decoded and answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    pub type_url: String,
    pub resources: Vec<Received>,
    /// Names that do not exist (any more); they stay subscribed.
    pub removed: Vec<String>,
    nonce: String,
    /// What the envelope itself got wrong, with the version.
    malformed: Vec<(Rejection, String)>,
}

/// One resource as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    pub name: String,
    version: String,
    pub resource: Any,
}

/// One proxy's session with its control plane, over all its streams.
#[derive(Debug)]
pub struct Session {
    node: Node,
    types: BTreeMap<String, Subscription>,
    /// Whether the stream's first message, which alone carries the node, is still to be sent.
    first: bool,
    /// Whether it is to be asked what ought to be held.
    ask_view: bool,
}

#[derive(Debug, Default)]
struct Subscription {
    wanted: BTreeSet<String>,
    /// Versions of what has been accepted.
    held: HashMap<String, String>,
    /// Versions of what has been rejected since.
    rejected: HashMap<String, String>,
    /// Wanted, and nothing of it is known.
    unanswered: BTreeSet<String>,
    /// Wanted, and not said on this stream yet.
    subscribe: BTreeSet<String>,
    /// No longer wanted, and not said yet.
    unsubscribe: BTreeSet<String>,
    /// To be answered in any case, and so not said to be held.
    again: BTreeSet<String>,
    /// Whether this stream has heard of this type.
    opened: bool,
    /// The nonce of the last response on this stream.
    heard: String,
    /// Whether names were said since it was last asked what ought to be held.
    said_since: bool,
    /// Whether a response was answered since.
    answered_since: bool,
}

/// `INVALID_ARGUMENT`, the code of a NACK.
const INVALID_ARGUMENT: i32 = 3;
/// How much of a rejection's text is sent, in bytes.
const MAX_TEXT: usize = 512;
/// Rejections that a NACK's message spells out; its details list all of them.
const TOLD: usize = 8;

// === impl Session ===

impl Session {
    pub fn new(node: Node) -> Self {
        Self { node, types: BTreeMap::new(), first: true, ask_view: false }
    }

    /// Begins a stream: everything is to be said anew.
    pub fn open(&mut self) {
        self.first = true;
        self.ask_view = false;
        for subscription in self.types.values_mut() {
            subscription.opened = false;
            subscription.heard.clear();
            subscription.unsubscribe.clear();
            subscription.subscribe = subscription.wanted.clone();
            // Either it is told again, or what is held is what there is.
            subscription.rejected.clear();
            let unknown = subscription.wanted.iter().filter(|name| !subscription.held.contains_key(*name));
            subscription.unanswered = unknown.cloned().collect();
        }
    }

    pub fn subscribe(&mut self, resource: ResourceName) {
        let ResourceName { type_url, name } = resource;
        let subscription = self.types.entry(type_url).or_default();
        if subscription.wanted.insert(name.clone()) {
            subscription.unsubscribe.remove(&name);
            subscription.unanswered.insert(name.clone());
            subscription.subscribe.insert(name);
        }
    }

    /// Forgets a resource, with its version.
    pub fn unsubscribe(&mut self, resource: &ResourceName) {
        let Some(subscription) = self.types.get_mut(&resource.type_url) else { return };
        if subscription.wanted.remove(&resource.name) {
            subscription.held.remove(&resource.name);
            subscription.rejected.remove(&resource.name);
            subscription.unanswered.remove(&resource.name);
            subscription.again.remove(&resource.name);
            subscription.subscribe.remove(&resource.name);
            // It may be asked for anew and still be subscribed to from before: that must end too.
            if subscription.opened {
                subscription.unsubscribe.insert(resource.name.clone());
            }
        }
    }

    /// Asks for a resource once more, wanted already or not: it comes in full, as it is when the question arrives (xDS,
    /// "Subscribing to resources"). What is held of it stays in use until then.
    pub fn subscribe_again(&mut self, resource: ResourceName) {
        if let Some(subscription) = self.types.get_mut(&resource.type_url)
            && subscription.wanted.contains(&resource.name)
        {
            subscription.again.insert(resource.name.clone());
            subscription.subscribe.insert(resource.name);
        } else {
            self.subscribe(resource);
        }
    }

    /// What was held of a resource is not there any more, which must not happen: it is asked for again, and not said to be held.
    pub fn lost(&mut self, resource: ResourceName) {
        if let Some(subscription) = self.types.get_mut(&resource.type_url) {
            subscription.held.remove(&resource.name);
        }
        self.subscribe_again(resource);
    }

    /// What is to be said now; to be sent in order.
    pub fn requests(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        for (type_url, subscription) in &mut self.types {
            let news = !subscription.subscribe.is_empty() || !subscription.unsubscribe.is_empty();
            if !news {
                continue;
            }
            subscription.said_since = true;
            let initial = if std::mem::replace(&mut subscription.opened, true) {
                HashMap::new()
            } else {
                let held = subscription.held.iter().filter(|(name, _)| !subscription.again.contains(*name));
                held.map(|(name, version)| (name.clone(), version.clone())).collect()
            };
            requests.push(DeltaDiscoveryRequest {
                node: std::mem::take(&mut self.first).then(|| self.node.clone()),
                type_url: type_url.clone(),
                resource_names_subscribe: std::mem::take(&mut subscription.subscribe).into_iter().collect(),
                resource_names_unsubscribe: std::mem::take(&mut subscription.unsubscribe)
                    .into_iter()
                    .collect(),
                initial_resource_versions: initial,
                ..DeltaDiscoveryRequest::default()
            });
        }
        requests.extend(self.view_request());
        requests
    }

    /// Takes a response. What is not wanted (any more) is left out.
    pub fn receive(&mut self, response: DeltaDiscoveryResponse) -> Update {
        let DeltaDiscoveryResponse { type_url, nonce, resources, mut removed_resources, .. } = response;
        if let Some(subscription) = self.types.get_mut(&type_url) {
            subscription.heard.clone_from(&nonce);
        }
        let wanted = self.types.get(&type_url).map(|subscription| &subscription.wanted);
        let is_wanted = |name: &String| wanted.is_some_and(|wanted| wanted.contains(name));
        removed_resources.retain(is_wanted);
        let mut received: Vec<Received> = Vec::new();
        let mut malformed = Vec::new();
        for Resource { name, version, resource, .. } in resources {
            if !is_wanted(&name) {
                continue;
            }
            match resource.filter(|body| body.type_url == type_url) {
                Some(resource) => received.push(Received { name, version, resource }),
                None => {
                    let reason = format!("its body is not a {type_url}");
                    malformed.push((Rejection { resource: name, field: String::new(), reason }, version));
                }
            }
        }
        Update { type_url, resources: received, removed: removed_resources, nonce, malformed }
    }

    /// The answer to an update of which `rejected` could not be used and all else is in use now: an ACK when
    /// nothing was rejected, else a NACK.
    pub fn answer(&mut self, update: &Update, rejected: &[Rejection]) -> DeltaDiscoveryRequest {
        let bad: HashSet<&str> = rejected.iter().map(|rejection| &*rejection.resource).collect();
        if let Some(subscription) = self.types.get_mut(&update.type_url) {
            subscription.answered_since = true;
            for name in &update.removed {
                subscription.answered(name);
                subscription.held.remove(name);
            }
            for resource in &update.resources {
                subscription.answered(&resource.name);
                if !subscription.wanted.contains(&resource.name) {
                    continue;
                }
                let good = !bad.contains(&*resource.name);
                let versions = if good { &mut subscription.held } else { &mut subscription.rejected };
                versions.insert(resource.name.clone(), resource.version.clone());
            }
            for (Rejection { resource, .. }, version) in &update.malformed {
                subscription.answered(resource);
                subscription.rejected.insert(resource.clone(), version.clone());
            }
        }
        let rejected: Vec<&Rejection> =
            update.malformed.iter().map(|(rejection, _)| rejection).chain(rejected).collect();
        DeltaDiscoveryRequest {
            node: std::mem::take(&mut self.first).then(|| self.node.clone()),
            type_url: update.type_url.clone(),
            response_nonce: update.nonce.clone(),
            error_detail: (!rejected.is_empty()).then(|| nack(&rejected)),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// How many resources of a type are wanted.
    pub fn wanted(&self, type_url: &str) -> usize {
        self.types.get(type_url).map_or(0, |subscription| subscription.wanted.len())
    }

    /// How many resources of a type are held.
    pub fn holds(&self, type_url: &str) -> usize {
        self.types.get(type_url).map_or(0, |subscription| subscription.held.len())
    }

    /// Of how many resources of a type the newest version was rejected.
    pub fn rejects(&self, type_url: &str) -> usize {
        self.types.get(type_url).map_or(0, |subscription| subscription.rejected.len())
    }

    /// Everything that has been told and accepted, by type URL and name, and whether it is held: if not, there is no such resource.
    pub fn told(&self) -> impl Iterator<Item = (&str, &str, bool)> {
        self.types.iter().flat_map(|(type_url, subscription)| {
            let told = subscription.wanted.iter().map(|name| (name, subscription.held.contains_key(name)));
            // Of what was rejected there may be an older version.
            let told = told.filter(|(name, is_held)| {
                let is_absent =
                    !subscription.unanswered.contains(*name) && !subscription.rejected.contains_key(*name);
                *is_held || is_absent
            });
            told.map(|(name, is_held)| (&**type_url, &**name, is_held))
        })
    }

    /// The version that is held of a resource.
    pub fn held(&self, type_url: &str, name: &str) -> Option<&str> {
        self.types.get(type_url)?.held.get(name).map(String::as_str)
    }
}

// === impl Subscription ===

impl Subscription {
    /// Something has been told about a name.
    fn answered(&mut self, name: &str) {
        self.unanswered.remove(name);
        self.again.remove(name);
        self.rejected.remove(name);
    }
}

fn nack(rejected: &[&Rejection]) -> Status {
    let rejected: Vec<Rejection> = rejected.iter().map(|rejection| shortened(rejection)).collect();
    let told = rejected.iter().take(TOLD);
    let mut message: Vec<String> =
        told.map(|Rejection { resource, field, reason }| format!("{resource}: {field}: {reason}")).collect();
    if rejected.len() > TOLD {
        message.push(format!("and {} more", rejected.len() - TOLD));
    }
    Status {
        code: INVALID_ARGUMENT,
        message: message.join("; "),
        details: rejected
            .iter()
            .map(|rejection| Any {
                type_url: tulle_api::type_url::<Rejection>(),
                value: rejection.encode_to_vec(),
            })
            .collect(),
    }
}

/// A NACK must fit into a message, however much is wrong.
fn shortened(rejection: &Rejection) -> Rejection {
    let cut = |text: &str| text[..text.floor_char_boundary(MAX_TEXT)].to_owned();
    Rejection {
        resource: rejection.resource.clone(),
        field: cut(&rejection.field),
        reason: cut(&rejection.reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "type.googleapis.com/tulle.v1.Service";

    fn named(name: &str) -> ResourceName {
        ResourceName { type_url: SERVICE.to_owned(), name: name.to_owned() }
    }

    fn session() -> Session {
        Session::new(Node { id: "shop/web".to_owned(), ..Node::default() })
    }

    fn response(nonce: &str, resources: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            type_url: SERVICE.to_owned(),
            nonce: nonce.to_owned(),
            resources: resources
                .iter()
                .map(|(name, version)| Resource {
                    name: (*name).to_owned(),
                    version: (*version).to_owned(),
                    resource: Some(Any { type_url: SERVICE.to_owned(), value: Vec::new() }),
                    ..Resource::default()
                })
                .collect(),
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }

    #[test]
    fn only_a_streams_first_message_carries_the_node() {
        let mut session = session();
        session.subscribe(named("a/a"));
        assert!(session.requests()[0].node.is_some());
        session.subscribe(named("a/b"));
        let later = session.requests();
        assert_eq!(later[0].resource_names_subscribe, ["a/b"]);
        assert!(later[0].node.is_none());
        assert!(session.requests().is_empty(), "nothing is said twice");
        session.open();
        assert!(session.requests()[0].node.is_some());
    }

    #[test]
    fn a_new_stream_tells_what_is_held_and_asks_again_for_what_was_rejected() {
        let mut session = session();
        session.subscribe(named("a/good"));
        session.subscribe(named("a/bad"));
        session.requests();
        let update = session.receive(response("1", &[("a/good", "v1"), ("a/bad", "v2")], &[]));
        let rejected = [Rejection {
            resource: "a/bad".to_owned(),
            field: "ports[0].port".to_owned(),
            reason: "is 0".to_owned(),
        }];
        let nack = session.answer(&update, &rejected);
        assert_eq!(nack.response_nonce, "1");
        let status = nack.error_detail.expect("is a NACK");
        assert!(status.message.contains("a/bad: ports[0].port: is 0"));
        assert_eq!(Rejection::decode(&status.details[0].value[..]).unwrap(), rejected[0]);
        session.open();
        let again = &session.requests()[0];
        assert_eq!(again.resource_names_subscribe, ["a/bad", "a/good"]);
        assert_eq!(again.initial_resource_versions, HashMap::from([("a/good".to_owned(), "v1".to_owned())]));
    }

    #[test]
    fn what_is_no_longer_wanted_is_unsubscribed_and_ignored() {
        let mut session = session();
        session.subscribe(named("a/a"));
        session.requests();
        session.unsubscribe(&named("a/a"));
        assert_eq!(session.requests()[0].resource_names_unsubscribe, ["a/a"]);
        let late = session.receive(response("1", &[("a/a", "v1")], &["a/b"]));
        assert!(late.resources.is_empty() && late.removed.is_empty());
        assert!(session.answer(&late, &[]).error_detail.is_none());
        assert_eq!(session.held(SERVICE, "a/a"), None);
    }

    #[test]
    fn what_is_asked_for_again_is_not_said_to_be_held() {
        let mut session = session();
        session.subscribe(named("a/a"));
        session.requests();
        let update = session.receive(response("1", &[("a/a", "v1")], &[]));
        session.answer(&update, &[]);
        session.subscribe_again(named("a/a"));
        assert_eq!(session.requests()[0].resource_names_subscribe, ["a/a"]);
        session.subscribe_again(named("a/a"));
        session.open();
        let again = session.requests();
        assert_eq!(again.len(), 1);
        assert!(again[0].initial_resource_versions.is_empty(), "else it would not be sent");
    }

    #[test]
    fn a_removed_resource_stays_wanted() {
        let mut session = session();
        session.subscribe(named("a/a"));
        session.requests();
        let update = session.receive(response("1", &[("a/a", "v1")], &[]));
        session.answer(&update, &[]);
        let gone = session.receive(response("2", &[], &["a/a"]));
        assert_eq!(gone.removed, ["a/a"]);
        session.answer(&gone, &[]);
        assert_eq!((session.wanted(SERVICE), session.held(SERVICE, "a/a")), (1, None));
    }

    #[test]
    fn the_last_good_version_of_what_is_rejected_stays_held() {
        let mut session = session();
        session.subscribe(named("a/a"));
        session.requests();
        let good = session.receive(response("1", &[("a/a", "v1")], &[]));
        session.answer(&good, &[]);
        let bad = session.receive(response("2", &[("a/a", "v2")], &[]));
        let rejected = Rejection { resource: "a/a".to_owned(), ..Rejection::default() };
        assert!(session.answer(&bad, &[rejected]).error_detail.is_some());
        assert_eq!(session.held(SERVICE, "a/a"), Some("v1"));
    }

    #[test]
    fn a_want_that_comes_and_goes_between_requests_ends_the_subscription_from_before() {
        let mut session = session();
        session.subscribe(named("a/a"));
        session.requests();
        session.unsubscribe(&named("a/a"));
        session.subscribe(named("a/a"));
        session.unsubscribe(&named("a/a"));
        assert_eq!(session.requests()[0].resource_names_unsubscribe, ["a/a"]);
    }

    #[test]
    fn a_body_of_another_type_is_rejected() {
        let mut session = session();
        session.subscribe(named("a/a"));
        session.subscribe(named("a/b"));
        session.requests();
        let mut response = response("1", &[("a/a", "v1"), ("a/b", "v1")], &[]);
        response.resources[0].resource = None;
        let update = session.receive(response);
        assert_eq!(update.resources.len(), 1);
        let status = session.answer(&update, &[]).error_detail.expect("is a NACK");
        assert!(status.message.contains("a/a"), "{}", status.message);
        assert_eq!((session.held(SERVICE, "a/a"), session.held(SERVICE, "a/b")), (None, Some("v1")));
    }
}
