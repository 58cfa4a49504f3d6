//! That twice as much costs twice as much, and not four times: what is found wrong is looked for while nothing can be published.

use super::resilience::policy;
use super::*;
use crate::testing::allocations;

/// So many HTTPRoutes, each with so many rules and as many TrafficPolicies, one on each rule; all to one Service, or each to its own.
fn mesh(routes: usize, rules: usize, is_one: bool) -> Index {
    let mut text = String::new();
    for route in 0..routes {
        let service = if is_one { 0 } else { route };
        if service == route {
            text += &format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{service}}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n"
            );
        }
        let each = (0..rules).map(|rule| {
            format!(
                "\n  - {{name: rule{rule}, matches: [{{path: {{value: /{rule}}}}}], backendRefs: [{{name: s{service}, port: 80}}]}}"
            )
        });
        text += &format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{route}}}\nspec:\n  \
             parentRefs: [{{group: '', kind: Service, name: s{service}}}]\n  rules:{}\n",
            each.collect::<String>()
        );
        for rule in 0..rules {
            let at = format!(
                "{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r{route}, sectionName: rule{rule}}}"
            );
            let says = "  timeouts: {request: 3s}\n  retry: {attempts: 2}";
            text += &policy("TrafficPolicy", &format!("p{route}-{rule}"), &at, says);
        }
    }
    let (index, found) = index(&text);
    assert_eq!(found, []);
    index
}

/// What it takes to find out that nothing is wrong.
fn cost(index: &Index) -> f64 {
    let before = allocations();
    assert_eq!(findings(index, &Settings::default()), []);
    assert_eq!(
        route_statuses(index).len() + policy_statuses(index).len(),
        index.routes().count() + index.resilience().count()
    );
    (allocations() - before) as f64
}

#[test]
fn what_is_found_wrong_costs_twice_as_much_for_twice_as_many() {
    let least = cost(&mesh(10, 8, false));
    for (what, twice) in [
        ("routes", cost(&mesh(20, 8, false)) / least),
        ("rules and policies of each route", cost(&mesh(10, 16, false)) / least),
        ("routes of one Service", cost(&mesh(20, 8, true)) / cost(&mesh(10, 8, true))),
    ] {
        assert!(twice < 2.1, "{what}: {twice:.2} times as much");
    }
}
