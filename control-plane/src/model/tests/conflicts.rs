//! Which policies hold where several are attached to the same, or one to several, and what each is told.

use super::resilience::{AT_HTTP, AT_ORDERS, AT_ROUTE, policy, status, told, traffic};
use super::*;

#[test]
fn of_two_policies_on_the_same_target_the_older_holds_and_the_other_is_told() {
    let dated = |name: &str, created: &str, requests: u32| {
        let text =
            policy("TrafficPolicy", name, AT_ORDERS, &format!("  limits: {{maximumRequests: {requests}}}"));
        text.replace(&format!("name: {name}}}"), &format!("name: {name}{created}}}"))
    };
    let cases = [
        // By age, where it is told; else by name.
        (", creationTimestamp: '2024-01-02T00:00:00Z'", ", creationTimestamp: '2024-01-01T00:00:00Z'", "b"),
        ("", ", creationTimestamp: '2024-01-01T00:00:00Z'", "b"),
        ("", "", "a"),
        // As a clock has it that was wrong: what is to come is younger than all that was, and older than what has no age.
        (", creationTimestamp: '2999-01-01T00:00:00Z'", ", creationTimestamp: '2024-01-01T00:00:00Z'", "b"),
        (", creationTimestamp: '2999-01-02T00:00:00Z'", ", creationTimestamp: '2999-01-01T00:00:00Z'", "b"),
        ("", ", creationTimestamp: '2999-01-01T00:00:00Z'", "b"),
        (", creationTimestamp: '1969-12-31T23:59:59Z'", ", creationTimestamp: '1970-01-01T00:00:00Z'", "a"),
        (", creationTimestamp: '2024-01-01T00:00:00Z'", ", creationTimestamp: '2024-01-01T00:00:00Z'", "a"),
    ];
    for (a, b, winner) in cases {
        let text = format!("{ORDERS}{}{}", dated("a", a, 1), dated("b", b, 2));
        let (loser, limit) = if winner == "a" { ("b", 1) } else { ("a", 2) };
        assert_eq!(traffic(&model(&text), 80).unwrap().limits.unwrap().maximum_requests, limit);
        assert_eq!(status(&text, winner)[0].1, "True");
        let (condition, status, reason, message) = status(&text, loser).remove(0);
        assert_eq!((condition, status, reason), ("Accepted", "False", "Conflicted"));
        assert!(message.starts_with(&format!("TrafficPolicy default/{winner} ")), "{message}");
        let because = if a == b { ", being the first by name" } else { ", being older" };
        assert!(message.ends_with(because), "{message}");
        assert_eq!(told(&text).len(), 1);
    }
}

#[test]
fn of_many_in_conflict_one_holds_and_each_other_names_it() {
    let all = ["c", "a", "d", "b"]
        .map(|name| policy("FaultPolicy", name, AT_HTTP, "  rules: [{abort: {httpStatus: 503}}]"));
    let text = format!("{ORDERS}{}", all.concat());
    assert_eq!(status(&text, "a")[1].2, "Programmed");
    for name in ["b", "c", "d"] {
        let states = status(&text, name);
        let [(condition, is_so, reason, message)] = &states[..] else { panic!("{states:?}") };
        assert_eq!((*condition, *is_so, *reason), ("Accepted", "False", "Conflicted"));
        assert_eq!(
            *message,
            "FaultPolicy default/a is attached to Service default/orders, `http`, too and holds, being the first by name"
        );
    }
    // When it goes, the next one holds.
    let gone =
        text.replace(&policy("FaultPolicy", "a", AT_HTTP, "  rules: [{abort: {httpStatus: 503}}]"), "");
    assert_eq!(status(&gone, "b")[1].2, "Programmed");
    assert!(status(&gone, "c")[0].3.starts_with("FaultPolicy default/b "));
}

#[test]
fn who_counts_tells_policies_apart_which_are_no_conflict_then() {
    let limits = "  limits: [{rate: {requests: 5}}]";
    let inbound = policy("RateLimitPolicy", "inbound", AT_ORDERS, limits);
    let outbound =
        policy("RateLimitPolicy", "outbound", AT_ORDERS, &format!("  direction: Outbound\n{limits}"));
    let text = format!("{ORDERS}{inbound}{outbound}");
    for name in ["inbound", "outbound"] {
        assert_eq!(status(&text, name)[1].2, "Programmed");
    }
}

#[test]
fn a_policy_has_a_state_at_each_of_its_targets() {
    let limits = "  limits: {maximumRequests: 3}";
    let admin = "{group: '', kind: Service, name: orders, sectionName: admin}";
    let gone = "{group: '', kind: Service, name: gone}";
    let text = format!(
        "{ORDERS}{}{}",
        policy("TrafficPolicy", "p", &format!("{AT_HTTP}, {gone}, {admin}"), limits),
        policy("TrafficPolicy", "o", admin, limits),
    );
    let [_, p] = &policy_statuses(&index(&text).0)[..] else { panic!() };
    let states = p.ancestors.iter().map(|one| {
        let target = (one.ancestor_ref.name.as_str(), one.ancestor_ref.section_name.as_deref());
        (target, one.conditions.iter().map(|one| one.reason).collect::<Vec<_>>())
    });
    let expected = [
        (("orders", Some("http")), vec!["Accepted", "Programmed"]),
        (("gone", None), vec!["TargetNotFound"]),
        (("orders", Some("admin")), vec!["Conflicted"]),
    ];
    assert_eq!(states.collect::<Vec<_>>(), expected);
    assert_eq!(told(&text).len(), 2);
}

#[test]
fn a_policy_that_is_refused_has_findings_and_no_state() {
    for targets in ["", AT_ROUTE, "{kind: Service, name: orders, namespace: shop}"] {
        let text = format!("{ORDERS}{}", policy("TrafficPolicy", "p", targets, "  loadBalancer: {}"));
        assert_eq!(policy_statuses(&index(&text).0), [], "{targets}");
        assert!(!told(&text).is_empty(), "{targets}");
    }
}
