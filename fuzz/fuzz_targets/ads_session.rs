//! The two ends of delta ADS, each against a peer that keeps to nothing.
//!
//! The first byte chooses the end; then each step is a byte that chooses what happens and the bytes that it takes.
#![no_main]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use prost::Message;
use prost_types::Any;
use tulle_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status};
use tulle_api::{ResourceType, v1};
use tulle_control_plane::ads::session::Verdict;
use tulle_control_plane::ads::{self, View};
use tulle_control_plane::model::Encoded;
use tulle_fuzz::Reader;
use tulle_proxy::control::session::{ResourceName, Session};

const URLS: [&str; 3] = [
    "type.googleapis.com/tulle.v1.Service",
    "type.googleapis.com/tulle.v1.Workload",
    "type.googleapis.com/envoy.config.cluster.v3.Cluster",
];
const NAMES: [&str; 6] = ["shop/web", "shop/orders", "bank/ledger", "*", "", "shop/web/x"];

fuzz_target!(|data: &[u8]| {
    let mut reader = Reader(data);
    if reader.byte() & 1 == 0 {
        proxy(&mut reader);
    } else {
        control_plane(&mut reader);
    }
});

fn url(reader: &mut Reader<'_>) -> String {
    URLS[reader.below(URLS.len())].to_owned()
}

fn name(reader: &mut Reader<'_>) -> String {
    NAMES[reader.below(NAMES.len())].to_owned()
}

fn names(reader: &mut Reader<'_>) -> Vec<String> {
    (0..reader.below(4)).map(|_| name(reader)).collect()
}

// === The proxy's end ===

fn proxy(reader: &mut Reader<'_>) {
    let node = Node { id: "shop/web".to_owned(), ..Node::default() };
    let mut session = Session::new(node.clone());
    let mut wanted: BTreeSet<ResourceName> = BTreeSet::new();
    let mut told_node = false;
    while !reader.is_empty() {
        let resource = ResourceName { type_url: url(reader), name: name(reader) };
        let said = match reader.below(8) {
            0 => {
                session.open();
                told_node = false;
                vec![]
            }
            1 => {
                session.unsubscribe(&resource);
                wanted.remove(&resource);
                assert_eq!(session.held(&resource.type_url, &resource.name), None);
                vec![]
            }
            2 => {
                session.subscribe_again(resource.clone());
                wanted.insert(resource);
                vec![]
            }
            3 => {
                session.subscribe(resource.clone());
                wanted.insert(resource);
                vec![]
            }
            4 => {
                let said = session.requests();
                assert!(session.requests().is_empty(), "nothing is said twice");
                for request in &said {
                    for name in &request.resource_names_subscribe {
                        let resource =
                            ResourceName { type_url: request.type_url.clone(), name: name.clone() };
                        assert!(wanted.contains(&resource), "{resource:?} is not wanted");
                    }
                }
                said
            }
            _ => vec![hear(&mut session, &wanted, reader)],
        };
        for request in said {
            assert_eq!(request.node.is_some(), !std::mem::replace(&mut told_node, true));
            assert!(request.node.is_none_or(|said| said == node));
        }
        for url in URLS {
            let count = wanted.iter().filter(|resource| resource.type_url == url).count();
            assert_eq!(session.wanted(url), count);
        }
    }
}

/// One response, and the answer to it.
fn hear(
    session: &mut Session,
    wanted: &BTreeSet<ResourceName>,
    reader: &mut Reader<'_>,
) -> DeltaDiscoveryRequest {
    let response = response(reader);
    let (nonce, type_url) = (response.nonce.clone(), response.type_url.clone());
    let versions: Vec<(String, String)> =
        response.resources.iter().map(|one| (one.name.clone(), one.version.clone())).collect();
    let is_wanted =
        |name: &str| wanted.contains(&ResourceName { type_url: type_url.clone(), name: name.to_owned() });
    let foreign = response.resources.iter().any(|one| {
        is_wanted(&one.name) && one.resource.as_ref().is_none_or(|body| body.type_url != type_url)
    });
    let update = session.receive(response);
    assert!(update.resources.iter().all(|one| is_wanted(&one.name) && one.resource.type_url == type_url));
    assert!(update.removed.iter().all(|name| is_wanted(name)));

    let refused = reader.below(3) == 0;
    let rejected: Vec<v1::Rejection> = update
        .resources
        .iter()
        .filter(|_| refused)
        .map(|one| v1::Rejection {
            resource: one.name.clone(),
            reason: "é".repeat(400),
            ..Default::default()
        })
        .collect();
    let answer = session.answer(&update, &rejected);
    assert_eq!((&answer.type_url, &answer.response_nonce), (&type_url, &nonce));
    assert_eq!(answer.error_detail.is_some(), foreign || !rejected.is_empty());
    if let Some(status) = &answer.error_detail {
        let told: BTreeSet<String> = status
            .details
            .iter()
            .map(|detail| v1::Rejection::decode(&*detail.value).expect("is one").resource)
            .collect();
        assert!(rejected.iter().all(|rejection| told.contains(&rejection.resource)));
    } else {
        for one in &update.resources {
            let held = session.held(&type_url, &one.name).expect("was accepted");
            assert!(versions.contains(&(one.name.clone(), held.to_owned())));
        }
    }
    answer
}

fn response(reader: &mut Reader<'_>) -> DeltaDiscoveryResponse {
    if reader.below(4) == 0 {
        return DeltaDiscoveryResponse::decode(reader.block()).unwrap_or_default();
    }
    let type_url = url(reader);
    let resources = (0..reader.below(4)).map(|_| {
        let foreign = reader.below(5) == 0;
        let body = Any { type_url: if foreign { url(reader) } else { type_url.clone() }, value: vec![] };
        let resource = (reader.below(7) != 0).then_some(body);
        let version = reader.below(3).to_string();
        Resource { name: name(reader), version, resource, ..Resource::default() }
    });
    let resources = resources.collect();
    let nonce = reader.byte().to_string();
    DeltaDiscoveryResponse {
        type_url,
        resources,
        nonce,
        removed_resources: names(reader),
        ..DeltaDiscoveryResponse::default()
    }
}

// === The control plane's end ===

/// Resources by type and name.
struct World(BTreeMap<(ResourceType, String), Arc<Encoded>>);

impl View for World {
    fn get(&self, resource_type: ResourceType, name: &str) -> Option<Arc<Encoded>> {
        self.0.get(&(resource_type, name.to_owned())).cloned()
    }
}

fn control_plane(reader: &mut Reader<'_>) {
    let mut session = ads::Session::new("shop");
    let mut world = World(BTreeMap::new());
    let mut heard = Heard::default();
    while !reader.is_empty() {
        if reader.below(3) == 0 {
            let key = (ResourceType::ALL[reader.below(ResourceType::ALL.len())], name(reader));
            match reader.below(4) {
                0 => drop(world.0.remove(&key)),
                content => {
                    let content = v1::ObjectName { namespace: content.to_string(), ..Default::default() };
                    world.0.insert(key.clone(), Arc::new(Encoded::new(key.0, &content)));
                }
            }
            session.model_changed();
        } else {
            let request = request(reader, &heard);
            heard.note(&request);
            match session.receive(request.clone()) {
                Ok(received) => {
                    assert_eq!(received.resource_type, ResourceType::from_type_url(&request.type_url));
                    assert!(request.error_detail.is_some() || received.verdict != Verdict::Nack);
                }
                Err(_) => return,
            }
        }
        let mut responses = 0;
        while let Some(response) = session.poll(&world) {
            responses += 1;
            assert!(responses < 1000, "it talks for ever");
            heard.check(&response, &world);
        }
        check(&session);
    }
}

/// What the peer of the control plane has said and heard.
#[derive(Default)]
struct Heard {
    last_nonce: u64,
    /// The last response of each type, unless it was answered.
    in_flight: HashMap<String, String>,
}

impl Heard {
    fn note(&mut self, request: &DeltaDiscoveryRequest) {
        if self.in_flight.get(&request.type_url).is_some_and(|nonce| is_same(nonce, &request.response_nonce))
        {
            self.in_flight.remove(&request.type_url);
        }
    }

    fn check(&mut self, response: &DeltaDiscoveryResponse, world: &World) {
        let nonce: u64 = response.nonce.parse().expect("is a number");
        assert!(nonce > self.last_nonce, "nonces grow");
        self.last_nonce = nonce;
        assert!(!response.resources.is_empty() || !response.removed_resources.is_empty());
        let Some(resource_type) = ResourceType::from_type_url(&response.type_url) else {
            assert!(response.resources.is_empty());
            return;
        };
        for one in &response.resources {
            let there = world.get(resource_type, &one.name).expect("what is not there is not sent");
            assert_eq!(*one.version, *there.version);
            assert_eq!(one.resource.as_ref(), Some(&there.to_any()));
            let own = matches!(
                resource_type,
                ResourceType::Workload | ResourceType::InboundPolicy | ResourceType::EgressPolicy
            );
            assert!(!own || one.name == "shop/web", "{} is for another workload", one.name);
            let routes = resource_type == ResourceType::Routes;
            assert!(!routes || one.name.starts_with("shop/"), "{} is for another namespace", one.name);
        }
        // What cannot be subscribed to is answered at once, and never waited for.
        let impossible = response.removed_resources.iter().all(|name| name == "*");
        if !response.resources.is_empty() || !impossible {
            let before = self.in_flight.insert(response.type_url.clone(), response.nonce.clone());
            assert_eq!(before, None, "two responses of a type are under way");
        }
    }
}

fn is_same(nonce: &str, said: &str) -> bool {
    said.parse::<u64>().is_ok_and(|said| said.to_string() == nonce)
}

fn check(session: &ads::Session) {
    let subscriptions: Vec<_> = session.subscriptions().collect();
    assert!(subscriptions.iter().all(|(_, name, _)| *name != "*"));
    for rejected in session.rejected() {
        assert!(
            subscriptions
                .iter()
                .any(|(kind, name, _)| *kind == rejected.resource_type && *name == rejected.name)
        );
        assert!(!rejected.faults.is_empty() && rejected.faults.len() <= 16);
        assert!(rejected.faults.iter().all(|fault| fault.reason.len() <= 1024 && fault.field.len() <= 1024));
    }
    if session.caller().is_none() {
        assert!(subscriptions.is_empty() && !session.awaits_answer());
    }
}

fn request(reader: &mut Reader<'_>, heard: &Heard) -> DeltaDiscoveryRequest {
    if reader.below(6) == 0 {
        return DeltaDiscoveryRequest::decode(reader.block()).unwrap_or_default();
    }
    let type_url = match reader.below(4) {
        0 => url(reader),
        _ => ResourceType::ALL[reader.below(ResourceType::ALL.len())].type_url().to_owned(),
    };
    let id = ["shop/web", "shop/web", "shop/web", "bank/web", "shop"][reader.below(5)];
    let node = (reader.below(8) != 0).then(|| Node { id: id.to_owned(), ..Node::default() });
    let response_nonce = match reader.below(4) {
        0 => reader.byte().to_string(),
        1 => String::new(),
        _ => heard.in_flight.get(&type_url).cloned().unwrap_or_default(),
    };
    let error_detail = (reader.below(4) == 0).then(|| Status {
        code: 3,
        message: "é".repeat(reader.below(3) * 600),
        details: (0..reader.below(20))
            .map(|_| Any {
                type_url: "type.googleapis.com/tulle.v1.Rejection".to_owned(),
                value: v1::Rejection { resource: name(reader), ..Default::default() }.encode_to_vec(),
            })
            .collect(),
    });
    let versions = names(reader).into_iter().map(|name| (name, reader.below(3).to_string())).collect();
    DeltaDiscoveryRequest {
        node,
        type_url,
        resource_names_subscribe: names(reader),
        resource_names_unsubscribe: names(reader),
        initial_resource_versions: versions,
        response_nonce,
        error_detail,
    }
}
