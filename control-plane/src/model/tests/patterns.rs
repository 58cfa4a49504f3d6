//! Regular expressions of policies, beside what proxies take.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use tulle_api::PATTERNS;

use super::*;

/// How many expressions a policy has at most.
const OF_A_POLICY: usize = 16;

/// A policy of so many expressions that no other has.
fn policy(kind: &str, name: &str, target: &str, patterns: usize) -> String {
    let headers =
        (0..patterns).map(|i| format!("{{name: x-{i}, type: RegularExpression, value: '{name}-{i}.*'}}"));
    let headers = headers.collect::<Vec<_>>().join(", ");
    let spec = match kind {
        "FaultPolicy" => format!("rules: [{{abort: {{httpStatus: 503}}, headers: [{headers}]}}]"),
        _ => format!("limits: [{{rate: {{requests: 5}}, headers: [{headers}]}}]"),
    };
    format!(
        "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{targetRefs: [{target}], {spec}}}\n"
    )
}

/// A Service with so many ports, each with a name.
fn service(name: &str, ports: usize) -> String {
    let ports =
        (0..ports).map(|i| format!("{{name: p{i}, port: {}}}", 80 + i)).collect::<Vec<_>>().join(", ");
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{ports}]}}\n")
}

/// The expressions of a resource, each once, as proxies count them.
fn count<'a>(headers: impl Iterator<Item = &'a v1::ValueMatch>) -> usize {
    let patterns = headers.filter_map(|header| match &header.value {
        Some(v1::value_match::Value::Regex(regex)) => Some(regex.as_str()),
        _ => None,
    });
    patterns.collect::<BTreeSet<_>>().len()
}

fn of_requests(requests: &v1::RequestPolicy) -> impl Iterator<Item = &v1::ValueMatch> {
    let limits = requests.rate_limits.iter().flat_map(|one| &one.headers);
    limits.chain(requests.faults.iter().flat_map(|one| &one.headers))
}

/// The errors of policies, and who is not programmed.
fn told(text: &str) -> (Vec<(String, String)>, Vec<String>) {
    let (index, found) = index(text);
    let told = found.into_iter().map(|one| (one.object.unwrap_or_default(), one.message));
    let statuses = policy_statuses(&index).into_iter().filter(|status| {
        status.ancestors.iter().any(|ancestor| ancestor.conditions.iter().any(|one| one.reason == "Invalid"))
    });
    (told.collect(), statuses.map(|status| status.name).collect())
}

#[test]
fn a_policy_too_many_for_a_service_is_left_out_and_named() {
    let most = PATTERNS / OF_A_POLICY;
    let mut text = service("orders", most + 1);
    for i in 0..=most {
        let target = format!("{{kind: Service, name: orders, sectionName: p{i}}}");
        text += &policy("FaultPolicy", &format!("f{i}"), &target, OF_A_POLICY);
    }
    // Of the last, which is not taken, nothing holds; one without expressions does.
    let last = format!("{{kind: Service, name: orders, sectionName: p{most}}}");
    text += &policy("RateLimitPolicy", "z", &last, 0).replace("spec: {", "spec: {direction: Outbound, ");
    let orders: v1::Service = get(&model(&text), "default/orders").unwrap();
    let ports: Vec<v1::RequestPolicy> =
        orders.ports.into_iter().map(|port| port.traffic.unwrap().requests.unwrap()).collect();
    assert_eq!(count(ports.iter().flat_map(of_requests)), PATTERNS);
    assert!(ports[..most].iter().all(|requests| requests.faults.len() == 1));
    assert_eq!((ports[most].faults.len(), ports[most].rate_limits.len()), (0, 1));
    let (errors, invalid) = told(&text);
    let object = format!("FaultPolicy default/f{most}");
    let [(named, message)] = &errors[..] else { panic!("{errors:?}") };
    assert_eq!(*named, object);
    assert!(
        message.starts_with("for Service default/orders its regular expressions, with those"),
        "{message}"
    );
    assert_eq!(invalid, [format!("f{most}")]);
    // An older one comes first.
    let text = text.replace(
        &format!("metadata: {{name: f{most}}}"),
        &format!("metadata: {{name: f{most}, creationTimestamp: '2024-01-01T00:00:00Z'}}"),
    );
    assert_eq!(told(&text).1, [format!("f{}", most - 1)]);
}

#[test]
fn rules_come_before_the_policies_on_them() {
    let most = PATTERNS / OF_A_POLICY;
    let mut text = service("orders", 1);
    let mut rules = String::new();
    for i in 0..most {
        write!(
            rules,
            "\n  - {{name: r{i}, matches: [{{headers: [{{name: a, type: RegularExpression, value: 'r{i}.*'}}]}}], backendRefs: [{{name: orders, port: 80}}]}}"
        )
        .unwrap();
        let target =
            format!("{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: r{i}}}");
        text += &policy("RateLimitPolicy", &format!("l{i}"), &target, OF_A_POLICY);
    }
    write!(
        text,
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: orders}}]\n  rules:{rules}\n"
    )
    .unwrap();
    let routes = routes(&model(&text), "default/default/orders");
    let rules = &routes.http[0].rules;
    assert_eq!(rules.len(), most, "no rule is left out");
    let matches = count(rules.iter().flat_map(|rule| &rule.matches).flat_map(|one| &one.headers));
    let limits = count(rules.iter().filter_map(|rule| rule.requests.as_ref()).flat_map(of_requests));
    assert_eq!((matches, limits), (most, (most - 1) * OF_A_POLICY));
    assert_eq!(told(&text).1, [format!("l{}", most - 1)]);
}

#[test]
fn what_the_proxy_of_a_workload_counts_is_as_much_as_it_takes() {
    let most = PATTERNS / OF_A_POLICY;
    let mut text = String::new();
    for i in 0..=most {
        text += &service(&format!("s{i}"), 1);
        text += &policy(
            "RateLimitPolicy",
            &format!("l{i}"),
            &format!("{{kind: Service, name: s{i}}}"),
            OF_A_POLICY,
        );
        write!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{i}, labels: {{kubernetes.io/service-name: s{i}}}, annotations: {{tulle.dev/identity: default/all}}}}\naddressType: IPv4\nports: [{{name: p0, port: {}}}]\nendpoints: [{{addresses: [10.0.0.1], targetRef: {{kind: Pod, name: all}}}}]\n",
            8000 + i
        )
        .unwrap();
    }
    let inbound: v1::InboundPolicy = get(&model(&text), "default/all").unwrap();
    assert_eq!(count(inbound.rate_limits.iter().flat_map(|one| &one.headers)), PATTERNS);
    let (errors, invalid) = told(&text);
    assert_eq!(invalid, [format!("l{most}")]);
    assert!(errors[0].1.starts_with("for the workload default/all its regular"), "{errors:?}");
}

#[test]
fn an_expression_that_many_policies_have_counts_once() {
    let mut text = service("orders", 20);
    for i in 0..20 {
        let target = format!("{{kind: Service, name: orders, sectionName: p{i}}}");
        text += &policy("FaultPolicy", "same", &target, OF_A_POLICY)
            .replace("metadata: {name: same}", &format!("metadata: {{name: f{i}}}"));
    }
    assert_eq!(told(&text), (Vec::new(), Vec::new()));
}

/// The conditions of a policy at its first target: statuses, reasons and messages of `Accepted` and `Programmed`.
fn state(text: &str, kind: &str, name: &str) -> Vec<(&'static str, &'static str, String)> {
    let statuses = policy_statuses(&index(text).0);
    let of = statuses.into_iter().find(|one| one.kind == kind && one.name == name).unwrap();
    let conditions = of.ancestors.into_iter().next().unwrap().conditions.into_iter();
    conditions.map(|one| (one.status, one.reason, one.message)).collect()
}

/// A Service of which each port but the last has a policy, which leaves no room for another expression; and the policy of the last.
fn full(kind: &str) -> String {
    let most = PATTERNS / OF_A_POLICY;
    let mut text = service("orders", most + 1);
    for i in 0..=most {
        let target = format!("{{kind: Service, name: orders, sectionName: p{i}}}");
        text += &outbound(kind, &format!("n{i}"), &target, OF_A_POLICY);
    }
    text
}

/// A policy by which clients' proxies go.
fn outbound(kind: &str, name: &str, target: &str, patterns: usize) -> String {
    let text = policy(kind, name, target, patterns);
    match kind {
        "RateLimitPolicy" => text.replace("spec: {", "spec: {direction: Outbound, "),
        _ => text,
    }
}

/// The names of the faults and limits at each port of `default/orders`.
fn at_ports(model: &Model) -> Vec<Vec<String>> {
    let orders: v1::Service = get(model, "default/orders").unwrap();
    let names = orders.ports.into_iter().map(|port| {
        let requests = port.traffic.and_then(|traffic| traffic.requests).unwrap_or_default();
        let faults = requests.faults.into_iter().map(|one| one.name);
        faults.chain(requests.rate_limits.into_iter().map(|one| one.name)).collect()
    });
    names.collect()
}

const WHOLE: &str = "{kind: Service, name: orders}";

#[test]
fn what_the_whole_service_has_holds_at_a_port_whose_own_policy_is_left_out() {
    let last = PATTERNS / OF_A_POLICY;
    for kind in ["FaultPolicy", "RateLimitPolicy"] {
        let text = full(kind) + &outbound(kind, "whole", WHOLE, 0);
        let held = at_ports(&model(&text));
        for (i, names) in held.iter().enumerate() {
            let expected = if i == last { "default/whole/0".to_owned() } else { format!("default/n{i}/0") };
            assert_eq!(*names, [expected], "{kind}, port {i}");
        }
        // Both say so.
        let [accepted, (status, reason, message)] = &state(&text, kind, &format!("n{last}"))[..] else {
            panic!()
        };
        assert_eq!((accepted.0, *status, *reason), ("True", "False", "Invalid"));
        let instead =
            format!("nothing of this policy holds there, and {kind} default/whole holds in its place");
        assert!(
            message.starts_with("for Service default/orders its regular") && message.ends_with(&instead),
            "{message}"
        );
        let (status, reason, message) = state(&text, kind, "whole").remove(1);
        assert_eq!((status, reason), ("True", "PartiallyProgrammed"));
        assert_eq!(message.matches(" at port ").count(), last, "{message}");
        assert!(message.contains(&format!("at port 80 by {kind} default/n0")), "{message}");
        assert!(!message.contains(&format!("n{last}")), "{message}");
        let (errors, invalid) = told(&text);
        assert_eq!((errors.len(), invalid), (1, vec![format!("n{last}")]), "{errors:?}");
    }
}

#[test]
fn a_wider_policy_that_does_not_fit_either_is_told_too_and_takes_nothing_from_others() {
    let last = PATTERNS / OF_A_POLICY;
    let kind = "FaultPolicy";
    // The oldest of all, and still the last to be taken: it is not meant for that port.
    let whole = policy(kind, "whole", WHOLE, OF_A_POLICY)
        .replace("{name: whole}", "{name: whole, creationTimestamp: '2024-01-01T00:00:00Z'}");
    let text = full(kind) + &whole;
    let held = at_ports(&model(&text));
    assert_eq!(held.iter().filter(|names| names.is_empty()).count(), 1);
    assert!(held[last].is_empty());
    let message = state(&text, kind, &format!("n{last}")).remove(1).2;
    assert!(message.ends_with("nothing of this policy holds there"), "{message}");
    let (status, reason, message) = state(&text, kind, "whole").remove(1);
    assert_eq!((status, reason), ("False", "Invalid"));
    assert!(
        message.contains("`rules` at port 80 by FaultPolicy default/n0; ")
            && message.contains("more than the"),
        "{message}"
    );
    assert_eq!(told(&text).1, [format!("n{last}"), "whole".to_owned()]);
    // A port whose own policy is not left out is the narrower's, whatever becomes of the wider.
    let fits = text.replace(&format!("n{last}-"), "n0-");
    let (warned, invalid) = told(&fits);
    assert_eq!((warned.len(), invalid), (1, vec![]), "{warned:?}");
    assert_eq!(state(&fits, kind, "whole")[1].1, "Overridden");
}

#[test]
fn of_two_in_conflict_the_first_is_still_the_one_where_it_is_left_out() {
    let last = PATTERNS / OF_A_POLICY;
    let target = format!("{{kind: Service, name: orders, sectionName: p{last}}}");
    let text = full("FaultPolicy") + &policy("FaultPolicy", "z", &target, 0);
    assert!(at_ports(&model(&text))[last].is_empty());
    let (status, reason, message) = state(&text, "FaultPolicy", "z").remove(0);
    assert_eq!((status, reason), ("False", "Conflicted"));
    let first = format!(
        "FaultPolicy default/n{last} is attached to Service default/orders, `p{last}`, too and comes first, "
    );
    assert!(message.starts_with(&first), "{message}");
}

/// An EndpointSlice that has a workload serve each Service.
fn slices(workload: &str, address: &str, services: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for (i, service) in services.enumerate() {
        write!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {workload}-{service}, labels: {{kubernetes.io/service-name: {service}}}, annotations: {{tulle.dev/identity: default/{workload}}}}}\naddressType: IPv4\nports: [{{name: p0, port: {}}}]\nendpoints: [{{addresses: [{address}], targetRef: {{kind: Pod, name: {workload}}}}}]\n",
            8000 + i
        )
        .unwrap();
    }
    text
}

#[test]
fn a_limit_that_one_of_its_workloads_has_no_room_for_holds_at_the_others_and_says_so() {
    let most = PATTERNS / OF_A_POLICY;
    let kind = "RateLimitPolicy";
    let names = || (0..=most).map(|i| format!("s{i}"));
    let mut text = slices("all", "10.0.0.1", names());
    text += &slices("one", "10.0.0.2", names().skip(most));
    text += &slices("two", "10.0.0.3", names().skip(most));
    for (i, name) in names().enumerate() {
        text += &service(&name, 1);
        let target = format!("{{kind: Service, name: {name}, sectionName: p0}}");
        text += &policy(kind, &format!("l{i}"), &target, OF_A_POLICY);
    }
    let last = format!("l{most}");
    let limits = |text: &str, workload: &str| -> BTreeSet<String> {
        let inbound: v1::InboundPolicy = get(&model(text), workload).unwrap();
        inbound.rate_limits.into_iter().map(|one| one.name).collect()
    };
    let of_last = format!("default/{last}/0");
    assert!(!limits(&text, "default/all").contains(&of_last));
    for workload in ["default/one", "default/two"] {
        assert_eq!(limits(&text, workload), BTreeSet::from([of_last.clone()]));
    }
    let (status, reason, message) = state(&text, kind, &last).remove(1);
    assert_eq!((status, reason), ("True", "PartiallyProgrammed"));
    assert!(message.starts_with("for the workload default/all its regular expressions"), "{message}");
    assert!(message.ends_with("nothing of this policy holds there; it holds at 2 other places"), "{message}");
    assert_eq!(told(&text).0.len(), 1);

    // The whole Service's holds where the port's does not, and only there.
    let text = text + &policy(kind, "whole", &format!("{{kind: Service, name: s{most}}}"), 0);
    assert!(limits(&text, "default/all").contains("default/whole/0"));
    assert_eq!(limits(&text, "default/one"), BTreeSet::from([of_last]));
    let message = state(&text, kind, &last).remove(1).2;
    assert!(
        message
            .ends_with(", and RateLimitPolicy default/whole holds in its place; it holds at 2 other places"),
        "{message}"
    );
    let (status, reason, message) = state(&text, kind, "whole").remove(1);
    assert_eq!((status, reason), ("True", "PartiallyProgrammed"));
    assert_eq!(
        message,
        format!(
            "`limits` at port 80 by RateLimitPolicy default/{last}, but not for the workload default/all"
        )
    );
    assert_eq!(told(&text).0.len(), 1, "no warning that nothing is left of it");
}

#[test]
fn a_rules_policy_that_some_clients_have_no_room_for_holds_for_the_others_and_says_so() {
    let route = |namespace: &str, port: u16, rules: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: {namespace}}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: orders, namespace: default, port: {port}}}]\n  rules:{rules}\n"
        )
    };
    let mut theirs = String::new();
    for i in 0..16 {
        let matches = (0..PATTERNS / 16)
            .map(|j| format!("{{headers: [{{name: a, type: RegularExpression, value: 'r{i}-{j}.*'}}]}}"));
        let matches = matches.collect::<Vec<_>>().join(", ");
        write!(
            theirs,
            "\n  - {{matches: [{matches}], backendRefs: [{{name: orders, namespace: default, port: 81}}]}}"
        )
        .unwrap();
    }
    let target = "group: gateway.networking.k8s.io, kind: HTTPRoute, name: r";
    let mut text = service("orders", 2);
    text += &route("default", 80, "\n  - {name: a, backendRefs: [{name: orders, port: 80}]}");
    text += &route("cafe", 81, &theirs);
    text += &policy("FaultPolicy", "rule", &format!("{{{target}, sectionName: a}}"), 1);
    text += &policy("FaultPolicy", "route", &format!("{{{target}}}"), 0);
    let fault = |client: &str| -> Vec<String> {
        let routes = routes(&model(&text), &format!("{client}/default/orders"));
        let requests = routes.http.into_iter().flat_map(|route| route.rules).filter_map(|rule| rule.requests);
        requests.flat_map(|requests| requests.faults).map(|fault| fault.name).collect()
    };
    assert_eq!(
        (fault("default"), fault("cafe")),
        (vec!["default/rule/0".into()], vec!["default/route/0".into()])
    );
    let (status, reason, message) = state(&text, "FaultPolicy", "rule").remove(1);
    assert_eq!((status, reason), ("True", "PartiallyProgrammed"));
    let cafe = "Service default/orders and clients in the namespace `cafe`";
    assert!(message.starts_with(&format!("for {cafe} its regular expressions")), "{message}");
    assert!(
        message.ends_with(", and FaultPolicy default/route holds in its place; it holds at one other place"),
        "{message}"
    );
    let (_, reason, message) = state(&text, "FaultPolicy", "route").remove(1);
    assert_eq!(reason, "PartiallyProgrammed");
    assert_eq!(message, format!("`rules` at rule 0 by FaultPolicy default/rule, but not for {cafe}"));
}
