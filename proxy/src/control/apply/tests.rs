use std::net::Ipv4Addr;
use std::time::Duration;

use prost::Message;
use tulle_api::discovery::{DeltaDiscoveryResponse, Node, Resource};

use super::super::session::Session;
use super::*;

struct Bench {
    applier: Applier,
    session: Session,
    store: Arc<Store>,
    next: u64,
}

impl Bench {
    /// Of the workload `shop/web`, which registers `ports`.
    fn new(ports: &[u16]) -> Self {
        let (store, _wants) = Store::new(Duration::from_millis(1));
        let store = Arc::new(store);
        let applier = Applier::new(
            Arc::clone(&store),
            Arc::new(policy::Connections::new()),
            Identity::new(),
            ObjectName::new("shop", "web"),
            Gate::new(ports.to_vec()),
            1,
        );
        let mut session = Session::new(Node::default());
        for resource in applier.always("cluster.local".to_owned()) {
            session.subscribe(resource);
        }
        Self { applier, session, store, next: 0 }
    }

    fn want(&mut self, want: &Want) -> usize {
        let resources = self.applier.want(want);
        let count = resources.len();
        resources.into_iter().for_each(|resource| self.session.subscribe(resource));
        count
    }

    fn told<M: Message + Name>(&mut self, resources: &[(&str, Vec<u8>)], removed: &[String]) -> Applied {
        self.next += 1;
        let resources = resources.iter().map(|(name, value)| Resource {
            name: (*name).to_owned(),
            version: self.next.to_string(),
            resource: Some(prost_types::Any { type_url: M::type_url(), value: value.clone() }),
            aliases: Vec::new(),
        });
        let update = self.session.receive(DeltaDiscoveryResponse {
            type_url: M::type_url(),
            nonce: self.next.to_string(),
            resources: resources.collect(),
            removed_resources: removed.to_vec(),
            ..DeltaDiscoveryResponse::default()
        });
        let applied = self.applier.apply(&update);
        self.session.answer(&update, &applied.rejected);
        applied
    }

    fn policy(&mut self, ports: &[u32]) -> Applied {
        let mode = v1::MtlsMode::Strict.into();
        let port = |port: &u32| v1::InboundPort { port: *port, mode, ..Default::default() };
        let workload = v1::ObjectName { namespace: "shop".to_owned(), name: "web".to_owned() };
        let policy = v1::InboundPolicy {
            workload: Some(workload),
            mode,
            ports: ports.iter().map(port).collect(),
            ..Default::default()
        };
        self.told::<v1::InboundPolicy>(&[("shop/web", policy.encode_to_vec())], &[])
    }

    fn ports_in_force(&self) -> Option<usize> {
        self.store.load().inbound.as_ref().map(|inbound| inbound.spec().ports.len())
    }
}

fn ip(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + number).into()
}

#[test]
fn nobody_is_let_in_by_a_policy_from_before_the_registration() {
    let mut bench = Bench::new(&[8080]);
    assert!(bench.policy(&[]).rejected.is_empty(), "it is not wrong, only not the one");
    assert_eq!(bench.ports_in_force(), None);
    bench.applier.registered().into_iter().for_each(|again| bench.session.subscribe_again(again));
    let asked = bench.session.requests();
    assert!(asked.iter().any(|request| request.resource_names_subscribe == ["shop/web"]));
    bench.policy(&[]);
    assert_eq!(bench.ports_in_force(), None, "it was under way already");
    bench.policy(&[8080]);
    assert_eq!(bench.ports_in_force(), Some(1));
    bench.policy(&[]);
    assert_eq!(bench.ports_in_force(), Some(1), "a lost registration opens nothing");
    bench.told::<v1::InboundPolicy>(&[], &["shop/web".to_owned()]);
    assert_eq!(bench.ports_in_force(), None, "without any policy nothing is let in");
}

#[test]
fn what_cannot_be_read_is_rejected_by_name_and_the_last_good_stays() {
    let mut bench = Bench::new(&[]);
    bench.policy(&[8080]);
    bench.want(&Want::Address(ip(1)));
    let applied = bench.told::<v1::InboundPolicy>(&[("shop/web", vec![0xff; 40])], &[]);
    assert_eq!(applied.rejected[0].resource, "shop/web");
    assert_eq!(bench.ports_in_force(), Some(1));
    let workload = v1::ObjectName { namespace: "shop".to_owned(), name: "other".to_owned() };
    let other = v1::InboundPolicy { workload: Some(workload), mode: 2, ..v1::InboundPolicy::default() };
    let applied = bench.told::<v1::InboundPolicy>(&[("shop/web", other.encode_to_vec())], &[]);
    assert_eq!(applied.rejected.len(), 1, "a policy of another workload");
    assert_eq!(bench.ports_in_force(), Some(1));
}

#[test]
fn r18_an_egress_policy_stays_in_force_until_there_is_another() {
    let mut bench = Bench::new(&[]);
    let in_force = |bench: &Bench| bench.store.load().egress.as_ref().map(|egress| egress.spec().action);
    assert_eq!(in_force(&bench), None, "nothing leaves before it is there");
    let name = "shop/web".to_owned();
    let deny =
        v1::EgressPolicy { action: 3, action_name: "shop/p".to_owned(), ..v1::EgressPolicy::default() };
    // A control plane that does not know the kind has no policy that could deny anything.
    bench.told::<v1::EgressPolicy>(&[], std::slice::from_ref(&name));
    assert_eq!(in_force(&bench), Some(Action::Allow));
    bench.told::<v1::EgressPolicy>(&[(&name, deny.encode_to_vec())], &[]);
    assert_eq!(in_force(&bench), Some(Action::Deny));
    // One that no longer says anything, or nothing that can be read, opens nothing.
    bench.told::<v1::EgressPolicy>(&[], std::slice::from_ref(&name));
    assert_eq!(in_force(&bench), Some(Action::Deny));
    let applied = bench.told::<v1::EgressPolicy>(&[(&name, vec![0xff; 40])], &[]);
    assert_eq!((applied.rejected.len(), in_force(&bench)), (1, Some(Action::Deny)));
}

#[test]
fn r18_nothing_leaves_by_a_policy_from_before_the_registration_or_after_its_loss() {
    let name = "shop/web";
    let policy = |action: v1::EgressAction, registered| {
        let action_name = "shop/p".to_owned();
        v1::EgressPolicy { action: action.into(), action_name, rules: Vec::new(), registered }.encode_to_vec()
    };
    let in_force = |bench: &Bench| bench.store.load().egress.as_ref().map(|egress| egress.spec().action);
    let (allow, deny) = (v1::EgressAction::Allow, v1::EgressAction::Deny);
    let mut bench = Bench::new(&[8080]);
    let applied = bench.told::<v1::EgressPolicy>(&[(name, policy(allow, false))], &[]);
    assert!(applied.rejected.is_empty(), "it is not wrong, only not the one");
    bench.told::<v1::EgressPolicy>(&[(name, policy(allow, true))], &[]);
    assert_eq!(in_force(&bench), None, "an older life's");
    bench.session.requests();
    bench.applier.registered().into_iter().for_each(|again| bench.session.subscribe_again(again));
    let asked = bench.session.requests();
    let again = |request: &tulle_api::discovery::DeltaDiscoveryRequest| {
        request.type_url == v1::EgressPolicy::type_url() && request.resource_names_subscribe == [name]
    };
    assert!(asked.iter().any(again), "{asked:?}");
    bench.told::<v1::EgressPolicy>(&[(name, policy(allow, false))], &[]);
    assert_eq!(in_force(&bench), None, "it was under way already");
    bench.told::<v1::EgressPolicy>(&[(name, policy(deny, true))], &[]);
    assert_eq!(in_force(&bench), Some(Action::Deny));
    bench.told::<v1::EgressPolicy>(&[(name, policy(allow, false))], &[]);
    assert_eq!(in_force(&bench), Some(Action::Deny), "a lost registration opens nothing");
    bench.told::<v1::EgressPolicy>(&[(name, policy(allow, true))], &[]);
    assert_eq!(in_force(&bench), Some(Action::Allow));
    // Who registers nothing is bound by its namespace's at once.
    let mut client = Bench::new(&[]);
    client.told::<v1::EgressPolicy>(&[(name, policy(deny, false))], &[]);
    assert_eq!(in_force(&client), Some(Action::Deny));
}

#[test]
fn absent_addresses_are_bounded_and_the_least_recently_used_go() {
    let mut bench = Bench::new(&[]);
    let names: Vec<String> = (0..10_000).map(|number| ip(number).to_string()).collect();
    for number in 0..10_000 {
        bench.want(&Want::Address(ip(number)));
    }
    assert!(bench.told::<v1::Address>(&[], &names).unwanted.is_empty());
    bench.want(&Want::Address(ip(10_000)));
    let applied = bench.told::<v1::Address>(&[], &[ip(10_000).to_string()]);
    assert_eq!(applied.unwanted.len(), 1_001);
    applied.unwanted.iter().for_each(|resource| bench.session.unsubscribe(resource));
    assert_eq!(bench.store.load().addresses.len(), 9_000);
    assert_eq!(bench.session.wanted(&v1::Address::type_url()), 9_000);
}

#[test]
fn addresses_that_nobody_answers_about_do_not_pile_up() {
    let mut bench = Bench::new(&[]);
    for number in 0..10_000 {
        assert_eq!(bench.want(&Want::Address(ip(number))), 1);
    }
    assert_eq!(bench.want(&Want::Address(ip(20_000))), 0);
    assert_eq!(bench.want(&Want::Address(ip(1))), 1, "asked about already");
    bench.told::<v1::Address>(&[], &[ip(1).to_string()]);
    assert_eq!(bench.want(&Want::Address(ip(20_000))), 1, "an answer makes room");
}

#[test]
fn a_service_that_is_taken_up_while_it_is_forgotten_is_kept_up_to_date() {
    let mut bench = Bench::new(&[]);
    let orders = ObjectName::new("shop", "orders");
    bench.want(&Want::Service(orders.clone()));
    let later = UNUSED + 10;
    // A worker that looks it up has the snapshot, and nothing out of it yet.
    let reader = bench.store.load();
    assert!(bench.applier.forget_at(later).is_empty());
    let taken = Arc::clone(&reader.services[&orders]);
    drop(reader);
    assert!(Arc::ptr_eq(&taken, &bench.store.load().services[&orders]));
    assert!(bench.applier.forget_at(later).is_empty(), "a connection holds on to it");
    drop(taken);
    assert_eq!(bench.applier.forget_at(later).len(), 3);
    assert!(bench.store.load().services.is_empty());
}

#[test]
fn a_replica_of_the_workload_on_another_host_is_not_taken_for_this_one() {
    let mut bench = Bench::new(&[]);
    let workload = v1::Workload {
        name: Some(v1::ObjectName { namespace: "shop".to_owned(), name: "web".to_owned() }),
        spiffe_id: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
        // The second is of a network for documentation (RFC 5737).
        addresses: vec!["127.0.0.1".to_owned(), "192.0.2.7".to_owned()],
        locality: None,
    };
    let applied = bench.told::<v1::Workload>(&[("shop/web", workload.encode_to_vec())], &[]);
    assert!(applied.rejected.is_empty(), "{:?}", applied.rejected);
    let known = bench.store.load().workload.as_ref().map(|workload| workload.addresses.clone());
    assert_eq!(known, Some(vec![IpAddr::from([127, 0, 0, 1])]));
}

#[test]
fn routes_of_which_one_rule_cannot_be_read_are_used_and_it_is_told() {
    let mut bench = Bench::new(&[]);
    let orders = ObjectName::new("shop", "orders");
    bench.want(&Want::Service(orders.clone()));
    let rule = |path| v1::HttpRule {
        matches: vec![v1::HttpMatch { path, ..v1::HttpMatch::default() }],
        ..v1::HttpRule::default()
    };
    let name = || Some(v1::ObjectName { namespace: "shop".to_owned(), name: "orders".to_owned() });
    let rules = vec![rule(None), rule(Some(v1::http_match::Path::Prefix("/".to_owned())))];
    let route = v1::HttpRoute { name: name(), rules, ..v1::HttpRoute::default() };
    let message = v1::Routes { service: name(), http: vec![route.clone()], ..v1::Routes::default() };
    let applied = bench.told::<v1::Routes>(&[("shop/shop/orders", message.encode_to_vec())], &[]);
    let fields: Vec<_> = applied.rejected.iter().map(|one| one.field.as_str()).collect();
    assert_eq!(fields, ["http[0].rules[0].matches[0].path"]);
    assert!(applied.meanwhile("shop/shop/orders").contains("answered 500"));
    let routes = bench.store.load().services[&orders].routes().unwrap();
    assert_eq!(routes.routes().routes[0].rules.len(), 2);

    // Once there is a good version, it stays.
    let good =
        v1::HttpRoute { rules: vec![rule(Some(v1::http_match::Path::Prefix("/".to_owned())))], ..route };
    let good = v1::Routes { http: vec![good], ..message.clone() };
    assert!(bench.told::<v1::Routes>(&[("shop/shop/orders", good.encode_to_vec())], &[]).rejected.is_empty());
    let applied = bench.told::<v1::Routes>(&[("shop/shop/orders", message.encode_to_vec())], &[]);
    assert_eq!(applied.rejected.len(), 1);
    assert!(applied.meanwhile("shop/shop/orders").contains("stays so"));
    let routes = bench.store.load().services[&orders].routes().unwrap();
    assert_eq!(routes.routes().routes[0].rules.len(), 1);
}

#[test]
fn a_service_that_comes_to_be_is_served_once_its_routes_have_come_too() {
    let mut bench = Bench::new(&[]);
    let orders = ObjectName::new("shop", "orders");
    bench.want(&Want::Service(orders.clone()));
    let name = || Some(v1::ObjectName { namespace: "shop".to_owned(), name: "orders".to_owned() });
    let port = v1::ServicePort { port: 80, protocol: v1::Protocol::Http.into(), ..Default::default() };
    let service = v1::Service { name: name(), addresses: Vec::new(), ports: vec![port] };
    let endpoints = v1::Endpoints { name: name(), endpoints: Vec::new() };
    let routes = v1::Routes { service: name(), ..v1::Routes::default() };
    let (named, of_routes) = ("shop/orders", "shop/shop/orders");
    let is_served = |bench: &Bench| bench.store.load().services[&orders].serving(80).is_some();
    // Twice: it goes, and comes again.
    for _ in 0..2 {
        bench.told::<v1::Service>(&[], &[named.to_owned()]);
        bench.told::<v1::Endpoints>(&[], &[named.to_owned()]);
        bench.told::<v1::Routes>(&[], &[of_routes.to_owned()]);
        assert!(bench.store.knows_service(&orders), "that there is none is an answer");
        assert!(!is_served(&bench));
        // In the order in which a control plane tells them.
        bench.told::<v1::Service>(&[(named, service.encode_to_vec())], &[]);
        assert!(!bench.store.knows_service(&orders) && !is_served(&bench));
        bench.told::<v1::Endpoints>(&[(named, endpoints.encode_to_vec())], &[]);
        assert!(!bench.store.knows_service(&orders) && !is_served(&bench), "its routes may be about to come");
        let applied = bench.told::<v1::Routes>(&[(of_routes, routes.encode_to_vec())], &[]);
        assert!(applied.rejected.is_empty(), "{:?}", applied.rejected);
        assert!(bench.store.knows_service(&orders) && is_served(&bench));
    }
}

/// As requests are, on another thread: as soon as it can be used, it is used as the Service says.
#[test]
fn a_service_that_is_told_after_its_endpoints_is_used_with_its_balancer_at_once() {
    let orders = ObjectName::new("shop", "orders");
    let name = || Some(v1::ObjectName { namespace: "shop".to_owned(), name: "orders".to_owned() });
    let balancer = v1::LoadBalancer { algorithm: v1::Algorithm::RoundRobin.into(), ..Default::default() };
    let traffic = v1::Traffic { load_balancer: Some(balancer), ..v1::Traffic::default() };
    let port = v1::ServicePort { port: 80, traffic: Some(traffic), ..v1::ServicePort::default() };
    let service = v1::Service { name: name(), addresses: Vec::new(), ports: vec![port] }.encode_to_vec();
    let peer = v1::Peer { peer: Some(v1::peer::Peer::Plaintext(v1::Plaintext {})) };
    let address = |last: u8| v1::Endpoint {
        address: format!("10.0.0.{last}"),
        ports: vec![v1::EndpointPort { service_port: 80, port: 8080, peer: Some(peer.clone()) }],
        ready: true,
        ..v1::Endpoint::default()
    };
    let endpoints =
        v1::Endpoints { name: name(), endpoints: (1..=200).map(address).collect() }.encode_to_vec();
    let routes = v1::Routes { service: name(), ..v1::Routes::default() }.encode_to_vec();
    for _ in 0..20 {
        let mut bench = Bench::new(&[]);
        bench.want(&Want::Service(orders.clone()));
        bench.told::<v1::Endpoints>(&[("shop/orders", endpoints.clone())], &[]);
        bench.told::<v1::Routes>(&[("shop/shop/orders", routes.clone())], &[]);
        let state = Arc::clone(&bench.store.load().services[&orders]);
        let waits = Arc::new(std::sync::Barrier::new(2));
        let user = std::thread::spawn({
            let waits = Arc::clone(&waits);
            move || {
                waits.wait();
                loop {
                    if let Some(endpoints) = state.serving(80) {
                        return endpoints.port(80).unwrap().plan.is_some();
                    }
                }
            }
        });
        waits.wait();
        let applied = bench.told::<v1::Service>(&[("shop/orders", service.clone())], &[]);
        assert!(applied.rejected.is_empty(), "{:?}", applied.rejected);
        assert!(user.join().unwrap());
    }
}

#[test]
fn r07_what_is_not_in_use_as_it_was_told_is_asked_for_again() {
    let mut bench = Bench::new(&[]);
    let name = ObjectName::new("shop", "orders");
    bench.want(&Want::Service(name.clone()));
    bench.want(&Want::Address(ip(1)));
    bench.want(&Want::Address(ip(2)));
    bench.session.requests();
    assert!(bench.applier.lost(&bench.session).is_empty(), "nothing has been told yet");
    let object = || Some(v1::ObjectName { namespace: "shop".to_owned(), name: "orders".to_owned() });
    let endpoints = v1::Endpoints { name: object(), endpoints: Vec::new() };
    assert!(
        bench.told::<v1::Endpoints>(&[("shop/orders", endpoints.encode_to_vec())], &[]).rejected.is_empty()
    );
    let addresses = [ip(1).to_string(), ip(2).to_string()];
    bench.told::<v1::Address>(&[], &addresses);
    bench.told::<v1::Service>(&[], &["shop/orders".to_owned()]);
    bench.told::<v1::Routes>(&[], &["shop/shop/orders".to_owned()]);
    assert!(bench.applier.lost(&bench.session).is_empty());

    // Nothing does this; if something did, nobody would hear of a change of either.
    bench.store.update(|snapshot| {
        snapshot.addresses.remove(&ip(1));
        snapshot.services.insert(name.clone(), Arc::new(ServiceState::new(name.clone())));
    });
    let lost = bench.applier.lost(&bench.session);
    assert_eq!(lost, [address(ip(1)), resource::<v1::Endpoints>("shop/orders".to_owned())]);
    lost.into_iter().for_each(|lost| bench.session.lost(lost));
    let asked: Vec<Vec<String>> =
        bench.session.requests().into_iter().map(|request| request.resource_names_subscribe).collect();
    assert_eq!(asked, [[ip(1).to_string()], ["shop/orders".to_owned()]]);
}

#[test]
fn r07_the_endpoints_of_a_service_that_has_gone_are_emptied() {
    let mut bench = Bench::new(&[]);
    let name = ObjectName::new("shop", "orders");
    bench.want(&Want::Service(name.clone()));
    let object = || Some(v1::ObjectName { namespace: "shop".to_owned(), name: "orders".to_owned() });
    let peer = v1::Peer { peer: Some(v1::peer::Peer::Plaintext(v1::Plaintext {})) };
    let port = v1::EndpointPort { service_port: 80, port: 8080, peer: Some(peer) };
    let endpoint =
        v1::Endpoint { address: "10.0.0.9".to_owned(), ports: vec![port], ready: true, ..Default::default() };
    let endpoints = v1::Endpoints { name: object(), endpoints: vec![endpoint] };
    bench.told::<v1::Endpoints>(&[("shop/orders", endpoints.encode_to_vec())], &[]);
    let count = |bench: &Bench| {
        let service = Arc::clone(&bench.store.load().services[&name]);
        service.endpoints().map(|set| set.all().count())
    };
    assert_eq!(count(&bench), Some(1));
    bench.told::<v1::Endpoints>(&[], &["shop/orders".to_owned()]);
    assert_eq!(count(&bench), Some(0));
}
