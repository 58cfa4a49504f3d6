//! What is published when, and which registrations are taken.

use super::*;

#[test]
fn a_registration_that_cannot_be_dialled_is_refused() {
    let said = |address: &str, service: &str, port: u32| v1::Registration {
        address: address.to_owned(),
        services: vec![v1::RegisteredService {
            name: service.to_owned(),
            ports: vec![v1::RegisteredPort { service_port: 80, port }],
        }],
        locality: None,
        ready: true,
    };
    let cases = [
        (said("localhost", "a", 1), "address"),
        (said("0.0.0.0", "a", 1), "address"),
        (said("::1", "a/b", 1), "services[0].name"),
        (said("::1", "a", 0), "services[0].ports[0].port"),
        (said("::1", "a", 65_536), "services[0].ports[0].port"),
    ];
    for (said, field) in cases {
        let error = Registration::read(name("default/w"), "spiffe://a/b", &said).unwrap_err();
        assert_eq!(error.field, field);
    }
    let mapped =
        Registration::read(name("default/w"), "spiffe://a/b", &said("::ffff:10.0.0.1", "a", 1)).unwrap();
    assert_eq!(mapped.address, "10.0.0.1".parse::<IpAddr>().unwrap());
}

#[tokio::test]
async fn a_registration_is_answered_once_its_policy_is_published() {
    let (index, _) = index(&format!("{ORDERS}{}", policy("p", "")));
    let publisher = Publisher::new(index, Settings::default(), Vec::new());
    let running = publisher.clone();
    let task = tokio::spawn(async move { running.run().await });
    let before: v1::InboundPolicy = get(&publisher.model(), "default/o").unwrap();
    assert_eq!(before.rules, []);

    let ports = [("orders", 80, 40080), ("orders", 85, 40085), ("later", 1, 2)];
    let registered = publisher.register(registration("o", "127.0.0.1", &ports), None).await;
    assert_eq!(registered.pending, ["later", "orders:85"]);
    let after: v1::InboundPolicy = get(&publisher.model(), "default/o").unwrap();
    assert_eq!(after.rules.len(), 1);

    // The stream that is replaced must not take its successor with it.
    let again = publisher.register(registration("o", "127.0.0.1", &ports), None).await;
    publisher.unregister(registered.id);
    publisher.settle().await;
    assert!(get::<v1::Workload>(&publisher.model(), "default/o").is_some());
    publisher.unregister(again.id);
    publisher.settle().await;
    assert!(get::<v1::Workload>(&publisher.model(), "default/o").is_none());
    task.abort();
}

#[tokio::test]
async fn many_changes_are_published_as_one_and_no_change_as_none() {
    let publisher = Publisher::new(Index::default(), Settings::default(), Vec::new());
    let running = publisher.clone();
    let task = tokio::spawn(async move { running.run().await });
    let mut models = publisher.models();
    models.mark_unchanged();
    for name in ["a", "b", "c"] {
        let read = read_text(&ORDERS.replace("orders", name));
        publisher.apply(read.changes, read.findings);
    }
    publisher.settle().await;
    assert_eq!(models.borrow_and_update().names(ResourceType::Service).len(), 3);
    let read = read_text(&ORDERS.replace("orders", "a"));
    publisher.apply(read.changes, read.findings);
    publisher.settle().await;
    assert!(!models.has_changed().unwrap());
    // The same virtual IP three times.
    assert_eq!(publisher.findings().borrow().len(), 4);
    task.abort();
}

#[tokio::test]
async fn what_is_wrong_is_looked_at_again_when_a_workload_registers_or_leaves() {
    let limits = "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {name: l}\nspec: {targetRefs: [{kind: Service, name: orders}], limits: [{rate: {requests: 1}}]}\n";
    let (index, _) = index(&format!("{ORDERS}{}{limits}", slice("")));
    let publisher = Publisher::new(index, Settings::default(), Vec::new());
    let uncounted = || {
        let found = publisher.findings().borrow().clone();
        let told = found.iter().find_map(|one| one.message.strip_prefix("nobody counts what goes to "));
        told.and_then(|told| told.split_once(" and ")).map(|(first, _)| first.to_owned())
    };
    assert_eq!(uncounted().as_deref(), Some("2001:db8::1"));
    let registration = registration("o", "2001:db8::1", &[("orders", 80, 8080)]);
    let submitted = publisher.submit(registration, None);
    publisher.publish();
    assert_eq!(uncounted().as_deref(), Some("2001:db8::2"));
    publisher.unregister(submitted.registered.id);
    publisher.publish();
    assert_eq!(uncounted().as_deref(), Some("2001:db8::1"));
}
