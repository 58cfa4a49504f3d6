use std::collections::BTreeMap;

use prost_types::Any;

use super::*;

/// A model of names and contents.
#[derive(Default)]
struct World(BTreeMap<(ResourceType, String), Arc<Encoded>>);

impl World {
    fn set(&mut self, resource_type: ResourceType, name: &str, content: &str) {
        let body = v1::ObjectName { namespace: content.to_owned(), name: String::new() };
        self.0.insert((resource_type, name.to_owned()), Arc::new(Encoded::new(resource_type, &body)));
    }

    fn remove(&mut self, resource_type: ResourceType, name: &str) {
        self.0.remove(&(resource_type, name.to_owned()));
    }

    fn version(&self, resource_type: ResourceType, name: &str) -> String {
        self.0[&(resource_type, name.to_owned())].version.to_string()
    }
}

impl View for World {
    fn get(&self, resource_type: ResourceType, name: &str) -> Option<Arc<Encoded>> {
        self.0.get(&(resource_type, name.to_owned())).cloned()
    }
}

const SERVICE: ResourceType = ResourceType::Service;

fn node(id: &str) -> Option<tulle_api::discovery::Node> {
    Some(tulle_api::discovery::Node { id: id.to_owned(), ..Default::default() })
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn subscribe(resource_type: ResourceType, wanted: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: node("shop/web"),
        type_url: resource_type.type_url().to_owned(),
        resource_names_subscribe: names(wanted),
        ..Default::default()
    }
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..Default::default()
    }
}

fn nack(response: &DeltaDiscoveryResponse, rejected: &[(&str, &str)]) -> DeltaDiscoveryRequest {
    let details = rejected.iter().map(|(resource, reason)| {
        let rejection = v1::Rejection {
            resource: (*resource).to_owned(),
            field: "ports[0]".to_owned(),
            reason: (*reason).to_owned(),
        };
        Any { type_url: v1::Rejection::type_url(), value: rejection.encode_to_vec() }
    });
    let status = Status { code: 3, message: "no".to_owned(), details: details.collect() };
    DeltaDiscoveryRequest { error_detail: Some(status), ..ack(response) }
}

/// What a response says: names sent and names removed.
fn said(response: &DeltaDiscoveryResponse) -> (Vec<&str>, Vec<&str>) {
    let sent = response.resources.iter().map(|resource| &*resource.name);
    (sent.collect(), response.removed_resources.iter().map(String::as_str).collect())
}

fn world() -> World {
    let mut world = World::default();
    world.set(SERVICE, "shop/a", "1");
    world.set(SERVICE, "shop/b", "1");
    world
}

/// A stream on which `shop/a` and `shop/b` have been sent and accepted.
fn settled(world: &World) -> Session {
    let mut session = Session::new("shop");
    session.receive(subscribe(SERVICE, &["shop/a", "shop/b"])).unwrap();
    let response = session.poll(world).unwrap();
    session.receive(ack(&response)).unwrap();
    assert_eq!(session.poll(world), None);
    session
}

#[test]
fn every_name_is_answered_whether_or_not_it_exists() {
    let mut world = world();
    let mut session = Session::new("shop");
    session.receive(subscribe(SERVICE, &["shop/a", "shop/none"])).unwrap();
    let response = session.poll(&world).unwrap();
    assert_eq!(said(&response), (vec!["shop/a"], vec!["shop/none"]));
    assert_eq!(response.resources[0].version, world.version(SERVICE, "shop/a"));
    session.receive(ack(&response)).unwrap();
    assert_eq!(session.poll(&world), None);
    // The absent name stays subscribed.
    world.set(SERVICE, "shop/none", "1");
    session.model_changed();
    let response = session.poll(&world).unwrap();
    assert_eq!(said(&response), (vec!["shop/none"], vec![]));
}

#[test]
fn what_did_not_change_is_not_sent() {
    let mut world = world();
    let mut session = settled(&world);
    session.model_changed();
    assert_eq!(session.poll(&world), None);
    world.set(SERVICE, "shop/b", "2");
    world.set(SERVICE, "shop/c", "1");
    session.model_changed();
    let response = session.poll(&world).unwrap();
    assert_eq!(said(&response), (vec!["shop/b"], vec![]));
}

#[test]
fn one_response_is_in_flight_and_the_newest_state_follows_it() {
    let mut world = world();
    let mut session = Session::new("shop");
    session.receive(subscribe(SERVICE, &["shop/a"])).unwrap();
    let first = session.poll(&world).unwrap();
    for content in ["2", "3", "4"] {
        world.set(SERVICE, "shop/a", content);
        session.model_changed();
        assert_eq!(session.poll(&world), None, "the answer to the first is still due");
    }
    // Other types are not held up.
    session.receive(subscribe(ResourceType::Endpoints, &["shop/a"])).unwrap();
    assert_eq!(session.poll(&world).unwrap().type_url, ResourceType::Endpoints.type_url());
    session.receive(ack(&first)).unwrap();
    let second = session.poll(&world).unwrap();
    assert_eq!(second.resources[0].version, world.version(SERVICE, "shop/a"));
    session.receive(ack(&second)).unwrap();
    assert_eq!(session.poll(&world), None);
}

#[test]
fn what_changed_and_changed_back_while_waiting_is_not_sent() {
    let mut world = world();
    let mut session = Session::new("shop");
    session.receive(subscribe(SERVICE, &["shop/a"])).unwrap();
    let first = session.poll(&world).unwrap();
    world.set(SERVICE, "shop/a", "2");
    session.model_changed();
    world.set(SERVICE, "shop/a", "1");
    session.model_changed();
    session.receive(ack(&first)).unwrap();
    assert_eq!(session.poll(&world), None);
}

#[test]
fn a_new_stream_is_told_only_what_differs_from_what_it_holds() {
    let mut world = world();
    world.set(SERVICE, "shop/c", "1");
    let mut request = subscribe(SERVICE, &["shop/a", "shop/b", "shop/c", "shop/gone"]);
    let a = world.version(SERVICE, "shop/a");
    request.initial_resource_versions.extend([
        ("shop/a".to_owned(), a.clone()),
        ("shop/b".to_owned(), "old".to_owned()),
        ("shop/gone".to_owned(), "old".to_owned()),
        ("shop/not-asked-for".to_owned(), "old".to_owned()),
    ]);
    let mut session = Session::new("shop");
    session.receive(request).unwrap();
    let response = session.poll(&world).unwrap();
    assert_eq!(said(&response), (vec!["shop/b", "shop/c"], vec!["shop/gone"]));
    assert!(session.subscriptions().any(|held| held == (SERVICE, "shop/a", Some(&*a))));
    session.receive(ack(&response)).unwrap();
    assert_eq!(session.poll(&world), None);
}

#[test]
fn a_repeated_subscription_is_answered_in_full() {
    let world = world();
    let mut session = settled(&world);
    let mut request = subscribe(SERVICE, &["shop/a"]);
    // Not even what it says to hold makes a difference: it asks.
    let version = world.version(SERVICE, "shop/a");
    request.initial_resource_versions.insert("shop/a".to_owned(), version);
    session.receive(request).unwrap();
    assert_eq!(said(&session.poll(&world).unwrap()), (vec!["shop/a"], vec![]));
}

#[test]
fn what_is_unsubscribed_is_sent_no_more_and_may_be_asked_for_anew() {
    let mut world = world();
    let mut session = settled(&world);
    let unsubscribe = DeltaDiscoveryRequest {
        resource_names_unsubscribe: names(&["shop/a", "shop/never"]),
        ..subscribe(SERVICE, &[])
    };
    session.receive(unsubscribe.clone()).unwrap();
    world.set(SERVICE, "shop/a", "2");
    session.model_changed();
    assert_eq!(session.poll(&world), None);
    // Both in one request: it ends subscribed, and is answered.
    let both = DeltaDiscoveryRequest { resource_names_subscribe: names(&["shop/a"]), ..unsubscribe };
    session.receive(both).unwrap();
    assert_eq!(said(&session.poll(&world).unwrap()), (vec!["shop/a"], vec![]));
}

#[test]
fn a_nack_is_kept_by_resource_until_something_better_is_accepted() {
    let mut world = world();
    let mut session = settled(&world);
    let good = world.version(SERVICE, "shop/a");
    world.set(SERVICE, "shop/a", "bad");
    world.set(SERVICE, "shop/b", "2");
    session.model_changed();
    let response = session.poll(&world).unwrap();
    let received = session.receive(nack(&response, &[("shop/a", "is 0")])).unwrap();
    assert_eq!(received.verdict, Verdict::Nack);
    let bad = world.version(SERVICE, "shop/a");
    let faults = [Fault { field: "ports[0]".to_owned(), reason: "is 0".to_owned() }];
    let kept: Vec<Rejected<'_>> = session.rejected().collect();
    let expected = Rejected {
        resource_type: SERVICE,
        name: "shop/a",
        version: &bad,
        running: Some(&good),
        faults: &faults,
    };
    assert_eq!(kept, [expected]);
    // Refused once, it is not offered again; the other one was accepted.
    session.model_changed();
    assert_eq!(session.poll(&world), None);
    let b = world.version(SERVICE, "shop/b");
    assert!(session.subscriptions().any(|held| held == (SERVICE, "shop/b", Some(&*b))));
    // Back to what the client runs on: it must hear that the refused version is void.
    world.set(SERVICE, "shop/a", "1");
    session.model_changed();
    let response = session.poll(&world).unwrap();
    assert_eq!(session.receive(ack(&response)).unwrap().verdict, Verdict::Ack);
    assert_eq!(session.rejected().count(), 0);
}

#[test]
fn a_nack_that_names_nothing_of_the_response_rejects_all_of_it() {
    let world = world();
    let garbage = Any { type_url: v1::Rejection::type_url(), value: vec![0xff; 9] };
    for details in [vec![], vec![garbage], vec![Any::default()]] {
        let mut session = Session::new("shop");
        session.receive(subscribe(SERVICE, &["shop/a", "shop/b", "shop/none"])).unwrap();
        let response = session.poll(&world).unwrap();
        let mut request = nack(&response, &[("shop/other", "x")]);
        if let Some(status) = &mut request.error_detail {
            status.details.extend(details);
        }
        session.receive(request).unwrap();
        let rejected: Vec<&str> = session.rejected().map(|rejected| rejected.name).collect();
        assert_eq!(rejected, ["shop/a", "shop/b"]);
        assert!(session.rejected().all(|rejected| rejected.faults[0].reason == "no"));
    }
}

#[test]
fn what_a_nack_says_is_kept_within_bounds() {
    let world = world();
    let mut session = Session::new("shop");
    session.receive(subscribe(SERVICE, &["shop/a"])).unwrap();
    let response = session.poll(&world).unwrap();
    let long = "é".repeat(5000);
    session.receive(nack(&response, &[("shop/a", &*long); 100])).unwrap();
    let rejected = session.rejected().next().unwrap();
    assert_eq!(rejected.faults.len(), MAX_FAULTS);
    assert!(rejected.faults.iter().all(|fault| fault.reason.len() <= MAX_FAULT_BYTES));
}

#[test]
fn a_stale_nonce_answers_nothing_but_its_subscriptions_count() {
    let world = world();
    let mut session = Session::new("shop");
    session.receive(subscribe(SERVICE, &["shop/a"])).unwrap();
    let response = session.poll(&world).unwrap();
    for nonce in ["0", "999", "", "x", "18446744073709551616"] {
        let mut request = nack(&response, &[("shop/a", "x")]);
        request.response_nonce = nonce.to_owned();
        request.resource_names_subscribe = names(&["shop/b"]);
        assert_eq!(session.receive(request).unwrap().verdict, Verdict::None, "{nonce}");
    }
    assert!(session.awaits_answer());
    // Another type's request does not answer it either.
    let mut request = ack(&response);
    request.type_url = ResourceType::Endpoints.type_url().to_owned();
    assert_eq!(session.receive(request).unwrap().verdict, Verdict::None);
    session.receive(ack(&response)).unwrap();
    assert_eq!(said(&session.poll(&world).unwrap()), (vec!["shop/b"], vec![]));
}

#[test]
fn an_unknown_type_is_answered_as_absent_and_costs_nothing() {
    let world = world();
    let mut session = Session::new("shop");
    let request = DeltaDiscoveryRequest {
        node: node("shop/web"),
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        resource_names_subscribe: names(&["x", "*"]),
        ..Default::default()
    };
    let received = session.receive(request.clone()).unwrap();
    assert_eq!(received.resource_type, None);
    assert_eq!(received.refused[0].reason, "unknown_type");
    let response = session.poll(&world).unwrap();
    assert_eq!((&response.type_url, said(&response)), (&request.type_url, (vec![], vec!["x", "*"])));
    session.receive(DeltaDiscoveryRequest { type_url: request.type_url, ..ack(&response) }).unwrap();
    assert_eq!((session.poll(&world), session.subscriptions().count()), (None, 0));
    // The stream goes on.
    session.receive(subscribe(SERVICE, &["shop/a"])).unwrap();
    assert!(session.poll(&world).is_some());
}

#[test]
fn wildcards_long_names_and_what_is_not_permitted_are_absent() {
    let mut world = world();
    world.set(ResourceType::InboundPolicy, "shop/orders", "1");
    world.set(ResourceType::InboundPolicy, "shop/web", "1");
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    let mut session = Session::new("shop");
    let received = session.receive(subscribe(SERVICE, &["*", &long, "shop/a"])).unwrap();
    let reasons: Vec<&str> = received.refused.iter().map(|refused| refused.reason).collect();
    assert_eq!(reasons, ["wildcard", "name_too_long"]);
    assert_eq!(said(&session.poll(&world).unwrap()), (vec![], vec!["*", &*long]));
    assert_eq!(said(&session.poll(&world).unwrap()), (vec!["shop/a"], vec![]));

    let own = subscribe(ResourceType::InboundPolicy, &["shop/orders", "shop/web"]);
    let received = session.receive(own).unwrap();
    assert_eq!(received.refused, [RefusedName { name: "shop/orders".to_owned(), reason: "not_permitted" }]);
    assert_eq!(said(&session.poll(&world).unwrap()), (vec!["shop/web"], vec!["shop/orders"]));
}

#[test]
fn a_stream_begins_with_a_node_that_fits_the_certificate() {
    let mut request = subscribe(SERVICE, &["shop/a"]);
    request.node = None;
    assert_eq!(Session::new("shop").receive(request.clone()), Err(Refusal::NodeMissing));
    request.node = node("web");
    assert!(matches!(Session::new("shop").receive(request.clone()), Err(Refusal::NodeMalformed(_))));
    request.node = node("bank/web");
    assert!(matches!(Session::new("shop").receive(request.clone()), Err(Refusal::NodeForeign { .. })));
    // Later nodes have no say.
    let mut session = settled(&world());
    session.receive(request).unwrap();
    assert_eq!(session.caller().map(Caller::node), Some("shop/web"));
}

#[test]
fn a_large_answer_comes_in_parts() {
    let mut world = World::default();
    let content = "x".repeat(300 << 10);
    let wanted: Vec<String> = (0..10).map(|i| format!("shop/s{i}")).collect();
    for name in &wanted {
        world.set(SERVICE, name, &content);
    }
    let mut session = Session::new("shop");
    let mut request = subscribe(SERVICE, &[]);
    request.resource_names_subscribe = wanted.clone();
    session.receive(request).unwrap();
    let mut told = Vec::new();
    while let Some(response) = session.poll(&world) {
        assert!(response.encoded_len() < 2 * RESPONSE_BYTES);
        told.extend(response.resources.iter().map(|resource| resource.name.clone()));
        session.receive(ack(&response)).unwrap();
    }
    assert_eq!(told, wanted);
}

#[test]
fn subscriptions_without_end_end_the_stream() {
    let subscribe_to = |session: &mut Session, type_url: &str, names: std::ops::Range<usize>| {
        let mut request = subscribe(SERVICE, &[]);
        request.type_url = type_url.to_owned();
        request.resource_names_subscribe = names.map(|i| i.to_string()).collect();
        session.receive(request).map(|received| received.refused.len())
    };
    let service = SERVICE.type_url();
    for at_once in [service, ResourceType::Routes.type_url(), "type.googleapis.com/x.Y"] {
        let mut session = Session::new("shop");
        let refusal = subscribe_to(&mut session, at_once, 0..MAX_SUBSCRIPTIONS + 1);
        assert_eq!(refusal, Err(Refusal::TooManySubscriptions), "{at_once}");
        assert_eq!(session.subscriptions().count(), 0, "nothing is kept of them");
    }
    let mut session = Session::new("shop");
    assert_eq!(subscribe_to(&mut session, service, 0..MAX_SUBSCRIPTIONS), Ok(0));
    let one_more = subscribe_to(&mut session, service, MAX_SUBSCRIPTIONS..MAX_SUBSCRIPTIONS + 1);
    assert_eq!(one_more, Err(Refusal::TooManySubscriptions));
}

#[test]
fn a_removed_resource_is_told_once() {
    let mut world = world();
    let mut session = settled(&world);
    world.remove(SERVICE, "shop/a");
    session.model_changed();
    let response = session.poll(&world).unwrap();
    assert_eq!(said(&response), (vec![], vec!["shop/a"]));
    session.receive(ack(&response)).unwrap();
    session.model_changed();
    assert_eq!(session.poll(&world), None);
}

fn ask_view() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: node("shop/web"),
        type_url: v1::View::type_url(),
        resource_names_subscribe: names(&[VIEW]),
        ..Default::default()
    }
}

fn view_of(response: &DeltaDiscoveryResponse) -> v1::View {
    assert_eq!(response.type_url, v1::View::type_url());
    v1::View::decode(&*response.resources[0].resource.as_ref().unwrap().value).unwrap()
}

#[test]
fn a_view_says_what_the_model_says_and_not_what_was_told() {
    let mut world = world();
    let mut session = settled(&world);
    session.receive(ask_view()).unwrap();
    let before = view_of(&session.poll(&world).unwrap());
    assert!(session.poll(&world).is_none(), "one answer a question");
    assert_eq!(before.types.len(), 1);
    assert_eq!((before.types[0].type_url.as_str(), &*before.types[0].in_flight), (SERVICE.type_url(), ""));
    // The model is another, and the session has not been told.
    world.set(SERVICE, "shop/a", "2");
    assert!(session.poll(&world).is_none());
    session.receive(ask_view()).unwrap();
    let after = view_of(&session.poll(&world).unwrap());
    assert_eq!(after.types[0].names, before.types[0].names);
    assert_ne!(after.types[0].hash, before.types[0].hash);
}

#[test]
fn a_view_comes_after_all_that_can_be_told_and_names_what_is_under_way() {
    let mut session = Session::new("shop");
    session.receive(ask_view()).unwrap();
    session.receive(subscribe(SERVICE, &["shop/a"])).unwrap();
    let world = world();
    let told = session.poll(&world).unwrap();
    assert_eq!(said(&told).0, ["shop/a"]);
    let view = view_of(&session.poll(&world).unwrap());
    assert_eq!(view.types[0].in_flight, told.nonce);
}

#[test]
fn what_a_comparison_came_to_is_read_and_kept_within_bounds() {
    let world = world();
    let mut session = settled(&world);
    session.receive(ask_view()).unwrap();
    let view = session.poll(&world).unwrap();
    assert_eq!(session.receive(ack(&view)).unwrap().compared, Some(Compared::Equal));
    let long = Status { message: "ü".repeat(10_000), ..Status::default() };
    let different = DeltaDiscoveryRequest { error_detail: Some(long), ..ack(&view) };
    let received = session.receive(different).unwrap();
    let Some(Compared::Different(in_what)) = received.compared else { panic!("{received:?}") };
    assert_eq!(in_what.len(), MAX_FAULT_BYTES);
    assert_eq!((received.verdict, session.rejected().count()), (Verdict::None, 0));
}
