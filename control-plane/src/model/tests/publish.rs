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

#[test]
fn a_file_that_is_full_of_faults_is_logged_in_some_lines() {
    use super::super::publish::news;
    use crate::finding::Severity;

    let lines_of = |text: &str| -> Vec<String> {
        news(&[], &read_text(text).findings).into_iter().map(|(_, line)| line).collect()
    };
    let unknown = "apiVersion: v7\nkind: Thing\nmetadata: {name: a}\n---\n";
    assert_eq!(lines_of(&unknown.repeat(50)).len(), 50);
    // Errors are told beside as many warnings.
    let text = format!("{}{}", unknown.repeat(1000), "kind: Service\n---\n".repeat(60));
    let found = read_text(&text).findings;
    let lines = lines_of(&text);
    assert_eq!((found.len(), lines.len()), (1060, 102), "{lines:#?}");
    let more: Vec<_> = lines.iter().filter(|line| line.contains(" more ")).collect();
    assert_eq!(
        more,
        [
            "conf/a.yaml: error: and 10 more (`tulle check --config-dir` shows all)",
            "conf/a.yaml: warning: and 950 more (`tulle check --config-dir` shows all)",
        ]
    );
    // What was told is not told again, and does not count.
    assert_eq!(news(&found, &found), []);
    let mut after = found.clone();
    let other = read_text("kind: Service\n").findings.remove(0);
    after.push(Finding { file: Some("conf/b.yaml".to_owned()), ..other });
    let news = news(&found, &after);
    assert!(matches!(&news[..], [(Severity::Error, line)] if line.starts_with("conf/b.yaml:1")), "{news:?}");
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
    look_over(&publisher).await;
    assert_eq!(uncounted().as_deref(), Some("2001:db8::2"));
    publisher.unregister(submitted.registered.id);
    look_over(&publisher).await;
    assert_eq!(uncounted().as_deref(), Some("2001:db8::1"));
}

/// Publishes, and waits for what is found wrong as long as the publisher rests.
async fn look_over(publisher: &Publisher) {
    while let Some(until) = publisher.publish() {
        tokio::time::sleep_until(until.into()).await;
    }
}
