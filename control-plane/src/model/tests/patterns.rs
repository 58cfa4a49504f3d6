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
