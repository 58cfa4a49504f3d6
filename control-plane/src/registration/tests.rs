use std::collections::BTreeSet;

use super::*;
use crate::index::Index;
use crate::model::Settings;
use crate::source::read_text;

const ORDERS: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\nspec: {ports: [{port: 80}]}\n";

struct Setup {
    registrations: Arc<Registrations>,
    publisher: Arc<Publisher>,
}

impl Setup {
    /// A control plane that starts on a state folder.
    fn new(dir: &std::path::Path) -> Self {
        let folder = Arc::new(StateDir::open(dir).unwrap());
        let mut index = Index::default();
        index.change(read_text(ORDERS).changes);
        let publisher = Publisher::new(index, Settings::default(), Vec::new());
        let registrations = Arc::new(Registrations::open(
            Arc::clone(&publisher),
            Box::new(permit),
            Some(folder),
            Metrics::new().unwrap(),
            Duration::from_secs(30),
        ));
        let running = Arc::clone(&publisher);
        tokio::spawn(async move { running.run().await });
        let kept = Arc::clone(&registrations);
        tokio::spawn(async move { kept.keep().await });
        Self { registrations, publisher }
    }

    async fn register(&self, said: &v1::Registration, replaces: Option<RegistrationId>) -> RegistrationId {
        let registered = self.registrations.register(&workload(), &id(), said, replaces).await;
        registered.unwrap().1.id
    }

    async fn endpoints(&self) -> BTreeSet<(String, bool)> {
        self.publisher.settle().await;
        let encoded = self.publisher.model().get(tulle_api::ResourceType::Endpoints, "shop/orders").unwrap();
        let endpoints: v1::Endpoints = prost::Message::decode(encoded.bytes.clone()).unwrap();
        endpoints.endpoints.into_iter().map(|endpoint| (endpoint.address, endpoint.ready)).collect()
    }
}

fn permit(id: &SpiffeId, service: &str) -> Result<(), NotGranted> {
    match service {
        "orders" | "later" => Ok(()),
        _ => Err(NotGranted { id: id.clone(), service: service.to_owned() }),
    }
}

fn workload() -> NamespacedName {
    NamespacedName::parse("shop/orders-1").unwrap()
}

fn id() -> SpiffeId {
    SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/orders").unwrap()
}

fn said(address: &str, service: &str) -> v1::Registration {
    v1::Registration {
        address: address.to_owned(),
        services: vec![v1::RegisteredService {
            name: service.to_owned(),
            ports: vec![v1::RegisteredPort { service_port: 80, port: 8080 }],
        }],
        locality: Some(v1::Locality { region: "r".to_owned(), zone: "z".to_owned() }),
        ready: true,
    }
}

fn endpoints(addresses: &[&str]) -> BTreeSet<(String, bool)> {
    addresses.iter().map(|address| ((*address).to_owned(), true)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_registration_lives_as_long_as_its_stream() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path());
    let first = setup.register(&said("10.0.0.1", "orders"), None).await;
    let second = setup.register(&said("10.0.0.2", "orders"), None).await;
    assert_eq!(setup.endpoints().await, endpoints(&["10.0.0.1", "10.0.0.2"]), "replicas of one name");
    // The same stream says something else: one endpoint, changed.
    let draining = v1::Registration { ready: false, ..said("10.0.0.1", "orders") };
    let first = setup.register(&draining, Some(first)).await;
    let expected = BTreeSet::from([("10.0.0.1".to_owned(), false), ("10.0.0.2".to_owned(), true)]);
    assert_eq!(setup.endpoints().await, expected);
    setup.registrations.unregister(first);
    assert_eq!(setup.endpoints().await, endpoints(&["10.0.0.2"]));
    setup.registrations.unregister(second);
    assert_eq!(setup.endpoints().await, endpoints(&[]));
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_is_told_it_is_registered_outlives_a_kill_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path());
    for address in ["10.0.0.1", "10.0.0.2", "10.0.0.3"] {
        setup.register(&said(address, "orders"), None).await;
        let kept = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(kept.contains(address), "{kept}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_it_is_served_until_it_is_back_or_the_grace_is_over() {
    let dir = tempfile::tempdir().unwrap();
    {
        let setup = Setup::new(dir.path());
        setup.register(&said("10.0.0.1", "orders"), None).await;
        setup.register(&said("10.0.0.2", "orders"), None).await;
        let third = setup.register(&said("10.0.0.3", "orders"), None).await;
        setup.registrations.unregister(third);
        setup.registrations.close();
        // Streams that end with the control plane take nothing with them.
        setup.registrations.unregister(RegistrationId(1));
    }
    // The first folder's lock is free once its tasks are gone; here they are, so another folder stands in.
    let again = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join(FILE), again.path().join(FILE)).unwrap();
    let setup = Setup::new(again.path());
    assert_eq!(setup.endpoints().await, endpoints(&["10.0.0.1", "10.0.0.2"]), "at once");
    tokio::time::sleep(Duration::from_secs(29)).await;
    // One is back, from the same place.
    setup.register(&said("10.0.0.1", "orders"), None).await;
    assert_eq!(setup.endpoints().await, endpoints(&["10.0.0.1", "10.0.0.2"]));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(setup.endpoints().await, endpoints(&["10.0.0.1"]));
    // The file says so too: a second restart must not bring the other one back.
    let kept = std::fs::read_to_string(again.path().join(FILE)).unwrap();
    assert!(kept.contains("10.0.0.1") && !kept.contains("10.0.0.2"), "{kept}");
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_stood_still_takes_no_endpoint_away_whose_workload_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path());
    let back = setup.register(&said("10.0.0.1", "orders"), None).await;
    let gone = setup.register(&said("10.0.0.2", "orders"), None).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    // Nothing ran for so long; then the streams are found broken.
    tokio::time::advance(Duration::from_secs(13)).await;
    setup.registrations.ended(back);
    setup.registrations.ended(gone);
    assert_eq!(setup.endpoints().await, endpoints(&["10.0.0.1", "10.0.0.2"]));
    let back = setup.register(&said("10.0.0.1", "orders"), None).await;
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(setup.endpoints().await, endpoints(&["10.0.0.1"]), "the other had its grace");
    setup.registrations.ended(back);
    assert_eq!(setup.endpoints().await, endpoints(&[]), "it ran all the while");
}

#[tokio::test(start_paused = true)]
async fn a_workload_whose_certificate_has_expired_has_a_moment_to_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path());
    let old = setup.register(&said("10.0.0.1", "orders"), None).await;
    setup.registrations.expired(old);
    setup.registrations.unregister(old);
    assert_eq!(setup.endpoints().await, endpoints(&["10.0.0.1"]));
    let new = setup.register(&said("10.0.0.1", "orders"), None).await;
    tokio::time::sleep(2 * REJOIN).await;
    assert_eq!(setup.endpoints().await, endpoints(&["10.0.0.1"]), "it is back");
    setup.registrations.expired(new);
    tokio::time::sleep(2 * REJOIN).await;
    assert_eq!(setup.endpoints().await, endpoints(&[]), "it is not");
}

#[tokio::test(start_paused = true)]
async fn a_standstill_takes_no_time_from_workloads_that_are_waited_for_already() {
    let dir = tempfile::tempdir().unwrap();
    let before = Setup::new(dir.path());
    before.register(&said("10.0.0.1", "orders"), None).await;
    before.registrations.close();
    let again = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join(FILE), again.path().join(FILE)).unwrap();
    // One is waited for since the restart, one since a standstill, one since its certificate expired.
    let setup = Setup::new(again.path());
    let stood = setup.register(&said("10.0.0.2", "orders"), None).await;
    let expired = setup.register(&said("10.0.0.3", "orders"), None).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    tokio::time::advance(Duration::from_secs(4)).await;
    setup.registrations.ended(stood);
    tokio::time::sleep(Duration::from_secs(12)).await;
    setup.registrations.expired(expired);
    // All of their times are over by the clock when this is.
    tokio::time::advance(Duration::from_secs(60)).await;
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(setup.endpoints().await, endpoints(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]));
    setup.register(&said("10.0.0.2", "orders"), None).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(setup.endpoints().await, endpoints(&["10.0.0.2"]), "the others had their grace");
}

#[tokio::test(start_paused = true)]
async fn what_expires_at_the_end_of_a_standstill_has_its_grace() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path());
    let old = setup.register(&said("10.0.0.1", "orders"), None).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    tokio::time::advance(Duration::from_secs(13)).await;
    setup.registrations.expired(old);
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(setup.endpoints().await, endpoints(&["10.0.0.1"]));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(setup.endpoints().await, endpoints(&[]), "it is not back");
}

#[tokio::test(start_paused = true)]
async fn what_no_token_names_is_refused_and_what_was_registered_stays() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path());
    let first = setup.register(&said("10.0.0.1", "orders"), None).await;
    let refused = |said: v1::Registration| {
        let registrations = Arc::clone(&setup.registrations);
        async move { registrations.register(&workload(), &id(), &said, Some(first)).await.unwrap_err() }
    };
    let error = refused(said("10.0.0.1", "web")).await;
    assert!(matches!(error, Refusal::NotGranted(_)));
    assert!(error.to_string().contains("--service web"), "{error}");
    assert!(matches!(refused(said("nowhere", "orders")).await, Refusal::Malformed(_)));
    let mut large = said("10.0.0.1", "orders");
    large.services = vec![large.services[0].clone(); MAX_PORTS];
    assert!(matches!(refused(large).await, Refusal::TooLarge));
    assert_eq!(setup.endpoints().await, endpoints(&["10.0.0.1"]));
    // A service that no source has is waited for.
    let pending = setup.registrations.register(&workload(), &id(), &said("10.0.0.1", "later"), None).await;
    assert_eq!(pending.unwrap().1.pending, ["later"]);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_file_or_entry_costs_only_itself() {
    for (content, expected) in [
        ("{", endpoints(&[])),
        (
            r#"[{"workload":"nowhere","spiffe_id":"x","address":"10.0.0.9","services":[],"ready":true},
                {"workload":"shop/orders-1","spiffe_id":"spiffe://cluster.local/ns/shop/sa/orders","address":"10.0.0.1",
                 "services":[{"name":"orders","ports":[[80,8080]]}],"ready":true}]"#,
            endpoints(&["10.0.0.1"]),
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), content).unwrap();
        assert_eq!(Setup::new(dir.path()).endpoints().await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_workloads_name_is_one_identitys_for_as_long_as_it_is_registered() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path());
    let held = setup.register(&said("10.0.0.1", "orders"), None).await;
    let other = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap();
    let by_other =
        async || setup.registrations.register(&workload(), &other, &said("10.0.0.1", "orders"), None).await;
    let error = by_other().await.unwrap_err();
    assert!(matches!(error, Refusal::Taken { .. }), "{error}");
    assert!(error.to_string().contains("sa/orders"), "{error}");
    assert_eq!(setup.endpoints().await, endpoints(&["10.0.0.1"]));
    // Also while its workload is waited for.
    setup.registrations.expired(held);
    assert!(matches!(by_other().await, Err(Refusal::Taken { .. })));
    assert_eq!(setup.endpoints().await, endpoints(&["10.0.0.1"]));
    tokio::time::sleep(2 * REJOIN).await;
    by_other().await.unwrap();
}
