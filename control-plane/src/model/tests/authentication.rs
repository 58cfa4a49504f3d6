//! RequestAuthentications, from YAML to what the workloads' proxies are told.

use super::*;
use crate::finding::Severity;

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  {spec}\n  issuers: [{{issuer: 'https://a', audiences: [orders], jwks: {{url: 'https://a/keys'}}}}]\n"
    )
}

/// `default/o` serves both ports of Orders at 8080 and 8081.
fn served(text: &str) -> (v1::InboundPolicy, Vec<Finding>) {
    let (mut index, found) = index(&format!("{ORDERS}{text}"));
    register(&mut index, registration("o", "10.0.0.1", &[("orders", 80, 8080), ("orders", 81, 8081)]));
    let model = Model::build(&index, Settings::default());
    (get(&model, "default/o").unwrap(), found)
}

/// Names, ports, and whether a token is needed.
fn told(text: &str) -> Vec<(String, Vec<u32>, bool)> {
    let (policy, found) = served(text);
    assert_eq!(found, [], "{text}");
    policy.authentications.into_iter().map(|one| (one.name, one.ports, one.required)).collect()
}

#[test]
fn a_policy_is_told_where_it_speaks_of_the_workload() {
    let of = |name: &str, ports: &[u32], required| vec![(name.to_owned(), ports.to_vec(), required)];
    let at = |target: &str| format!("targetRefs: [{{{target}}}]");
    assert_eq!(told(""), []);
    assert_eq!(told(&policy("default", "p", "mode: Enforce")), of("default/p", &[], true));
    assert_eq!(told(&policy("default", "p", "required: false")), of("default/p", &[], false));
    assert_eq!(told(&policy("shop", "p", "required: false")), [], "another namespace's");
    let orders = policy("default", "p", &at("kind: Service, name: orders"));
    assert_eq!(told(&orders), of("default/p", &[8080, 8081], true));
    let http = policy("default", "p", &at("kind: Service, name: orders, sectionName: http"));
    assert_eq!(told(&http), of("default/p", &[8080], true));
    let workload = "group: policy.tulle.dev, kind: Workload, name: o";
    let both = format!("targetRefs: [{{kind: Service, name: orders}}, {{{workload}}}]");
    assert_eq!(told(&policy("default", "p", &both)), of("default/p", &[], true), "as one");
    let two = format!("{}{}", policy("default", "a", "mode: Enforce"), http);
    let names: Vec<String> = told(&two).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["default/a", "default/p"]);
}

#[test]
fn a_policy_on_a_route_is_about_the_requests_that_follow_it() {
    let rules = "[{matches: [{path: {value: /admin}}], backendRefs: [{name: orders, port: 80}]}]";
    let target = "targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}]";
    let text = format!("{}{}", route("default", "r", ", port: 80", rules), policy("default", "p", target));
    let (policy, found) = served(&text);
    assert_eq!(found, []);
    let [one] = &policy.authentications[..] else { panic!("{policy:?}") };
    assert_eq!((&one.ports[..], one.routes.len(), one.routes[0].matches.len()), (&[8080][..], 1, 1));
}

#[test]
fn a_service_of_keys_that_is_not_there_is_told() {
    let with = |service: &str| {
        policy("default", "p", "mode: Enforce")
            .replace("https://a/keys'", &format!("http://keys/certs', service: {{{service}}}"))
    };
    for (service, field, said) in [
        ("name: orders, port: 80", "", ""),
        ("name: keys, port: 80", "spec.issuers[0].jwks.service.name", "there is no Service default/keys"),
        ("namespace: auth, name: keys, port: 80", "spec.issuers[0].jwks.service.name", "Service auth/keys"),
        ("name: orders, port: 82", "spec.issuers[0].jwks.service.port", "has no port 82"),
    ] {
        let (_, found) = index(&format!("{ORDERS}{}", with(service)));
        match field {
            "" => assert_eq!(found, [], "{service}"),
            field => {
                let [one] = &found[..] else { panic!("{service}: {found:#?}") };
                assert_eq!((one.field.as_deref(), one.severity), (Some(field), Severity::Error), "{service}");
                assert!(one.message.contains(said), "{service}: {}", one.message);
            }
        }
    }
}

/// A name, its ports, and of how many identities or rules.
type Judge<'a> = (&'a str, &'a [u32], usize);

/// What older proxies go by, and what newer ones do: names, ports and how many identities or rules.
fn judged(policy: &v1::InboundPolicy) -> (Vec<Judge<'_>>, Vec<Judge<'_>>) {
    let rules = policy.rules.iter().map(|one| (&*one.name, &one.ports[..], one.identities.len()));
    let policies = policy.policies.iter().map(|one| (&*one.name, &one.ports[..], one.rules.len()));
    (rules.collect(), policies.collect())
}

#[test]
fn a_proxy_that_knows_no_tokens_lets_nobody_in_where_they_are_looked_at() {
    let http = "targetRefs: [{kind: Service, name: orders, sectionName: http}]";
    let nothing = ("default/control-plane:rules-are-for-older-proxies", &[][..], 0);
    let (told, _) = served(&policy("default", "p", http));
    let closed = ("default/p/request-authentication", &[8080][..], 0);
    assert_eq!(judged(&told), (vec![closed], vec![nothing]));
    assert_eq!(told.policies[0].action(), v1::AccessAction::Audit, "newer proxies let in as before");
    // Where no token is needed one that is not valid is refused all the same.
    let (told, _) = served(&policy("default", "p", "required: false"));
    assert_eq!(judged(&told), (vec![("default/p/request-authentication", &[][..], 0)], vec![nothing]));
    // Whoever is allowed by rules is so at other ports only, and the policy is told in whole.
    let allow = "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: default}\n\
                 spec: {targetRefs: [{kind: Service, name: orders}], rules: [{from: [{identities: [default/web]}]}]}\n";
    let (told, _) = served(&format!("{}{allow}", policy("default", "p", http)));
    let allowed = ("default/a/0", &[8081][..], 1);
    assert_eq!(judged(&told), (vec![allowed, closed], vec![("default/a", &[8080, 8081][..], 1)]));
    // What only tells closes nothing.
    let (told, _) = served(&policy("default", "p", "mode: DryRun"));
    assert_eq!(judged(&told), (vec![], vec![]));
}
