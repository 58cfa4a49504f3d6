//! TrafficPolicies, RateLimitPolicies and FaultPolicies, from YAML to what proxies are told.

use super::*;
use crate::finding::Severity;

pub(super) fn policy(kind: &str, name: &str, targets: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n  targetRefs: [{targets}]\n{spec}\n"
    )
}

pub(super) const AT_ORDERS: &str = "{group: '', kind: Service, name: orders}";
pub(super) const AT_HTTP: &str = "{group: '', kind: Service, name: orders, sectionName: http}";
pub(super) const AT_ROUTE: &str = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}";
const AT_RULE: &str = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: a}";

/// The findings that are errors or warnings of policies, as `field: message`.
pub(super) fn told(text: &str) -> Vec<String> {
    let found = index(text).1.into_iter();
    found.map(|one| format!("{}: {}", one.field.unwrap_or_default(), one.message)).collect()
}

/// How the port of `default/orders` with that number is treated.
pub(super) fn traffic(model: &Model, port: u32) -> Option<v1::Traffic> {
    let service: v1::Service = get(model, "default/orders").unwrap();
    service.ports.into_iter().find(|one| one.port == port).unwrap().traffic
}

fn time(millis: i64) -> Option<prost_types::Duration> {
    let nanos = i32::try_from(millis % 1000).unwrap() * 1_000_000;
    Some(prost_types::Duration { seconds: millis / 1000, nanos })
}

/// `accepted, programmed` with reasons and messages, of the policy's first target.
pub(super) fn status(text: &str, name: &str) -> Vec<(&'static str, &'static str, &'static str, String)> {
    let statuses = policy_statuses(&index(text).0);
    let of = statuses.into_iter().find(|status| status.name == name).unwrap();
    let conditions = of.ancestors[0].conditions.iter();
    conditions.map(|one| (one.condition, one.status, one.reason, one.message.clone())).collect()
}

#[test]
fn every_section_of_a_traffic_policy_reaches_every_port() {
    let spec = "
  loadBalancer:
    algorithm: RingHash
    hashOn: [{header: X-User}, {cookie: sid}, {queryParameter: q}, {source: {}}]
    warmUp: {duration: 30s}
    zones: {latency: 5ms, requestsInFlight: 20, refusedPercent: 10}
    panicThresholdPercent: 30
  outlierDetection:
    consecutive5xx: 5
    consecutiveGatewayErrors: 4
    consecutiveConnectFailures: 3
    consecutiveGrpcErrors: 2
    successRate: {}
    failurePercentage: {}
  healthCheck: {http: {path: /healthz}}
  limits: {maximumConnections: 1, maximumConnectionsPerEndpoint: 2, maximumRequests: 3, maximumRequestsPerEndpoint: 4, maximumPending: 5}
  connections: {connectTimeout: 2s, idleTimeout: 0s, maximumAge: 10m, keepAlive: {}}
  timeouts: {request: 3s, perTry: 1s, idle: 1m, deadlineHeader: X-Deadline}
  retry: {attempts: 2, statuses: [503, 502], grpcCodes: [UNAVAILABLE], causes: [Reset, ConnectFailure], backoff: {maximum: 1s}, nonIdempotent: true}
  retryBudget: {percent: 10}";
    let text = format!("{ORDERS}{}", policy("TrafficPolicy", "p", AT_ORDERS, spec));
    assert_eq!(told(&text), [""; 0]);
    let model = model(&text);
    let key = |key| v1::HashKey { key: Some(key) };
    let expected = v1::Traffic {
        load_balancer: Some(v1::LoadBalancer {
            algorithm: v1::Algorithm::RingHash.into(),
            hash: vec![
                key(v1::hash_key::Key::Header("x-user".to_owned())),
                key(v1::hash_key::Key::Cookie("sid".to_owned())),
                key(v1::hash_key::Key::QueryParameter("q".to_owned())),
                key(v1::hash_key::Key::Source(v1::Source {})),
            ],
            warm_up: Some(v1::WarmUp { duration: time(30_000), minimum_percent: 10 }),
            zones: Some(v1::ZonePreference {
                maximum_load_percent: 150,
                latency: time(5),
                in_flight: 20,
                refused_percent: 10,
            }),
            panic_percent: 30,
        }),
        outlier_detection: Some(v1::OutlierDetection {
            consecutive_5xx: 5,
            consecutive_gateway_errors: 4,
            consecutive_connect_failures: 3,
            consecutive_grpc_errors: 2,
            grpc_codes: vec![13, 14, 15],
            success_rate: Some(v1::SuccessRate {
                deviations: 1900,
                minimum_endpoints: 5,
                minimum_requests: 100,
            }),
            failure_percentage: Some(v1::FailurePercentage { threshold_percent: 85, minimum_requests: 50 }),
            interval: time(10_000),
            base_ejection: time(30_000),
            maximum_ejection: time(300_000),
            maximum_ejected_percent: 50,
        }),
        health_check: Some(v1::HealthCheck {
            kind: Some(v1::health_check::Kind::Http(v1::HttpHealthCheck {
                path: "/healthz".to_owned(),
                host: String::new(),
            })),
            interval: time(10_000),
            timeout: time(1000),
            healthy_threshold: 1,
            unhealthy_threshold: 3,
        }),
        limits: Some(v1::Limits {
            maximum_connections: 1,
            maximum_connections_per_endpoint: 2,
            maximum_requests: 3,
            maximum_requests_per_endpoint: 4,
            maximum_pending: 5,
            queue_timeout: time(1000),
        }),
        connections: Some(v1::Connections {
            connect_timeout: time(2000),
            idle_timeout: time(0),
            maximum_age: time(600_000),
            keep_alive: Some(v1::KeepAlive { time: time(30_000), interval: time(10_000), probes: 3 }),
        }),
        retry_budget: Some(v1::RetryBudget {
            percent: 10,
            interval: time(10_000),
            minimum_retries: 10,
            minimum_interval: time(1000),
        }),
        requests: Some(v1::RequestPolicy {
            request_timeout: time(3000),
            backend_request_timeout: time(1000),
            idle_timeout: time(60_000),
            deadline_header: "x-deadline".to_owned(),
            retry: Some(v1::Retry {
                codes: vec![502, 503],
                attempts: 2,
                backoff: time(25),
                maximum_backoff: time(1000),
                grpc_codes: vec![14],
                causes: vec![v1::RetryCause::ConnectFailure.into(), v1::RetryCause::Reset.into()],
                non_idempotent: true,
                maximum_body: 65_536,
            }),
            ..Default::default()
        }),
    };
    for port in [80, 81] {
        assert_eq!(traffic(&model, port), Some(expected.clone()), "{port}");
    }
}

#[test]
fn what_a_port_says_holds_before_what_its_service_says_field_by_field() {
    let whole = "
  limits: {maximumRequests: 3}
  retry: {attempts: 5}
  timeouts: {request: 3s, idle: 1m}";
    let port = "
  limits: {maximumConnections: 7}
  timeouts: {request: 0s}";
    let text = format!(
        "{ORDERS}{}{}",
        policy("TrafficPolicy", "whole", AT_ORDERS, whole),
        policy("TrafficPolicy", "port", AT_HTTP, port)
    );
    assert_eq!(told(&text), [""; 0]);
    let both = traffic(&model(&text), 80).unwrap();
    assert_eq!(both.limits.as_ref().map(|one| (one.maximum_requests, one.maximum_connections)), Some((0, 7)));
    let requests = both.requests.unwrap();
    assert_eq!((requests.request_timeout, requests.idle_timeout), (time(0), time(60_000)));
    assert_eq!(requests.retry.unwrap().attempts, 5);
    let other = traffic(&model(&text), 81).unwrap();
    assert_eq!(other.limits.map(|one| one.maximum_requests), Some(3));
    let by = "`limits`, `timeouts.request` at port 80 by TrafficPolicy default/port";
    assert_eq!(
        status(&text, "whole"),
        [
            ("Accepted", "True", "Accepted", String::new()),
            ("Programmed", "True", "PartiallyProgrammed", by.to_owned())
        ]
    );
    assert_eq!(status(&text, "port")[1], ("Programmed", "True", "Programmed", String::new()));
}

#[test]
fn a_route_says_it_before_a_policy_on_its_rule_and_that_before_one_on_the_route() {
    let rules = "[{name: a, timeouts: {request: 9s}, backendRefs: [{name: orders, port: 80}]}, {name: b, backendRefs: [{name: orders, port: 80}]}]";
    let text = format!(
        "{ORDERS}{}{}{}{}",
        route("default", "r", "", rules),
        policy(
            "TrafficPolicy",
            "on-route",
            AT_ROUTE,
            "  timeouts: {request: 3s, perTry: 1s, idle: 2s}\n  retry: {}"
        ),
        policy("TrafficPolicy", "on-rule", AT_RULE, "  timeouts: {request: 4s, perTry: 2s}"),
        policy("TrafficPolicy", "on-service", AT_ORDERS, "  timeouts: {deadlineHeader: x-d}")
    );
    assert_eq!(told(&text), [""; 0]);
    let routes = routes(&model(&text), "default/default/orders");
    let of = |rule: usize| routes.http[0].rules[rule].requests.clone().unwrap();
    let said = |one: v1::RequestPolicy| (one.request_timeout, one.backend_request_timeout, one.idle_timeout);
    assert_eq!(said(of(0)), (time(9000), time(2000), time(2000)));
    assert_eq!(said(of(1)), (time(3000), time(1000), time(2000)));
    assert_eq!(of(1).retry.unwrap().attempts, 1);
    // The proxy falls back to the port.
    assert_eq!(of(0).deadline_header, "");
    assert_eq!(status(&text, "on-rule")[1].3, "`timeouts.request` at rule 0 by HTTPRoute default/r itself");
    assert_eq!(
        status(&text, "on-route")[1].3,
        "`timeouts.request` at rule 0 by HTTPRoute default/r itself; `timeouts.perTry` at rule 0 by TrafficPolicy default/on-rule"
    );
}

#[test]
fn a_grpc_routes_rules_take_retries() {
    let text = format!(
        "{ORDERS}{}{}",
        grpc_route("default", "r", "", "[{backendRefs: [{name: orders, port: 80}]}]"),
        policy(
            "TrafficPolicy",
            "p",
            "{group: gateway.networking.k8s.io, kind: GRPCRoute, name: r}",
            "  retry: {grpcCodes: [UNAVAILABLE, ABORTED]}"
        )
    );
    assert_eq!(told(&text), [""; 0]);
    let routes = routes(&model(&text), "default/default/orders");
    let retry = routes.http[0].rules[0].requests.clone().unwrap().retry.unwrap();
    assert_eq!(retry.grpc_codes, [10, 14]);
}

#[test]
fn a_policy_of_which_nothing_is_left_is_told() {
    let limits = "  limits: {maximumRequests: 3}";
    let at = |port: &str| format!("{{group: '', kind: Service, name: orders, sectionName: {port}}}");
    let whole = policy("TrafficPolicy", "whole", AT_ORDERS, limits);
    let http = policy("TrafficPolicy", "http", &at("http"), limits);
    let text = format!("{ORDERS}{whole}{http}");
    assert_eq!(status(&text, "whole")[1].2, "PartiallyProgrammed");
    assert_eq!(told(&text), [""; 0]);
    let text = format!("{text}{}", policy("TrafficPolicy", "admin", &at("admin"), limits));
    let by = "`limits` at port 80 by TrafficPolicy default/http; `limits` at port 81 by TrafficPolicy default/admin";
    assert_eq!(status(&text, "whole")[0].1, "True");
    assert_eq!(status(&text, "whole")[1], ("Programmed", "False", "Overridden", by.to_owned()));
    assert_eq!(
        told(&text),
        [format!(
            "spec.targetRefs[0]: all that the policy says there is said by what is more specific: {by}"
        )]
    );
}

#[test]
fn a_target_that_is_not_there_is_told_and_the_policy_holds_elsewhere() {
    let gone = "{group: '', kind: Service, name: gone}";
    let no_port = "{group: '', kind: Service, name: orders, sectionName: web}";
    let spec = "  limits: {maximumRequests: 3}";
    let text = format!("{ORDERS}{}", policy("TrafficPolicy", "p", &format!("{gone}, {AT_ORDERS}"), spec));
    assert_eq!(status(&text, "p")[0].2, "TargetNotFound");
    assert_eq!(
        told(&text),
        ["spec.targetRefs[0].name: there is no Service default/gone; the policy is not attached there"]
    );
    assert!(traffic(&model(&text), 80).is_some());
    let text = format!("{ORDERS}{}", policy("TrafficPolicy", "p", no_port, spec));
    assert_eq!(status(&text, "p")[0].2, "TargetNotFound");
    assert_eq!(
        told(&text),
        [
            "spec.targetRefs[0].sectionName: Service default/orders has no port called `web`; the policy is not attached there"
        ]
    );
    assert!(traffic(&model(&text), 80).is_none());
}

#[test]
fn a_service_that_prefers_its_zone_has_the_defaults_unless_a_policy_says_more() {
    let close = ORDERS.replace("spec:\n", "spec:\n  trafficDistribution: PreferClose\n");
    let zones = |text: &str| traffic(&model(text), 80).unwrap().load_balancer.unwrap().zones.unwrap();
    assert_eq!(zones(&close), v1::ZonePreference { maximum_load_percent: 150, ..Default::default() });
    let p = |spec: &str| format!("{close}{}", policy("TrafficPolicy", "p", AT_ORDERS, spec));
    assert_eq!(zones(&p("  loadBalancer: {algorithm: Random}")).maximum_load_percent, 150);
    assert_eq!(zones(&p("  loadBalancer: {zones: {maximumLoadPercent: 200}}")).maximum_load_percent, 200);
    let node = ORDERS.replace("spec:\n", "spec:\n  trafficDistribution: PreferSameNode\n");
    assert_eq!(zones(&node).maximum_load_percent, 150);
    assert!(told(&node)[0].contains("taken for `PreferSameZone`"), "{:?}", told(&node));
    let unknown = ORDERS.replace("spec:\n", "spec:\n  trafficDistribution: Nearby\n");
    assert_eq!(told(&unknown).len(), 1);
    assert_eq!(traffic(&model(&unknown), 80), None);
}

#[test]
fn where_endpoints_can_be_ejected_there_is_a_panic_threshold() {
    for spec in ["  outlierDetection: {consecutive5xx: 5}", "  healthCheck: {tcp: {}}", "  loadBalancer: {}"]
    {
        let text = format!("{ORDERS}{}", policy("TrafficPolicy", "p", AT_ORDERS, spec));
        assert_eq!(traffic(&model(&text), 80).unwrap().load_balancer.unwrap().panic_percent, 50, "{spec}");
    }
}

#[test]
fn a_slices_weight_is_its_endpoints() {
    let weight = |annotation: &str| {
        let (index, found) = index(&format!("{ORDERS}{}", slice(annotation)));
        let model = Model::build(&index, Settings::default());
        let endpoints: v1::Endpoints = get(&model, "default/orders").unwrap();
        (endpoints.endpoints[0].weight, found.len())
    };
    assert_eq!(weight(""), (0, 0));
    assert_eq!(weight("tulle.dev/weight: '25'"), (25, 0));
    assert_eq!(weight("tulle.dev/weight: '0'"), (0, 1));
    assert_eq!(weight("tulle.dev/weight: heavy"), (0, 1));
}

#[test]
fn rate_limits_are_counted_behind_the_service_unless_they_are_the_clients() {
    let spec = "
  limits:
  - name: tenants
    headers: [{name: X-Plan, value: free}]
    by: {header: X-Tenant}
    rate: {requests: 10, per: 1m}
    overrides: [{values: [big], rate: {requests: 100, burst: 5}}]
  - by: {identity: {}}
    rate: {requests: 3}
    overrides: [{values: [shop/web], rate: {requests: 4}}]";
    let rate = |requests, millis, burst| Some(v1::Rate { requests, per: time(millis), burst });
    let expected = |ports: &[u32]| {
        let tenants = v1::RateLimit {
            name: "default/p/tenants".to_owned(),
            headers: vec![v1::ValueMatch {
                name: "x-plan".to_owned(),
                value: Some(v1::value_match::Value::Exact("free".to_owned())),
            }],
            key: Some(v1::rate_limit::Key::Header("x-tenant".to_owned())),
            rate: rate(10, 60_000, 10),
            overrides: vec![v1::RateOverride { values: vec!["big".to_owned()], rate: rate(100, 1000, 5) }],
            ports: ports.to_vec(),
            dry_run: None,
        };
        let identities = v1::RateLimit {
            name: "default/p/1".to_owned(),
            headers: Vec::new(),
            key: Some(v1::rate_limit::Key::Identity(v1::IdentityKey {})),
            rate: rate(3, 1000, 3),
            overrides: vec![v1::RateOverride {
                values: vec!["spiffe://cluster.local/ns/shop/sa/web".to_owned()],
                rate: rate(4, 1000, 4),
            }],
            ports: ports.to_vec(),
            dry_run: None,
        };
        (tenants, identities)
    };
    let built = |targets: &str, more: &str| {
        let text = format!("{ORDERS}{}", policy("RateLimitPolicy", "p", targets, &format!("{more}{spec}")));
        let mut index = index(&text).0;
        register(&mut index, registration("w", "10.0.0.1", &[("orders", 80, 8080), ("orders", 81, 8081)]));
        Model::build(&index, Settings::default())
    };
    let inbound = |model: &Model| get::<v1::InboundPolicy>(model, "default/w").unwrap().rate_limits;

    let whole = built(AT_ORDERS, "");
    let (tenants, identities) = expected(&[8080, 8081]);
    assert_eq!(inbound(&whole), [identities, tenants]);
    assert_eq!(traffic(&whole, 80), None);

    let port = built(AT_HTTP, "");
    assert_eq!(inbound(&port)[0].ports, [8080]);

    let outbound = built(AT_HTTP, "\n  direction: Outbound");
    let (tenants, identities) = expected(&[]);
    assert_eq!(traffic(&outbound, 80).unwrap().requests.unwrap().rate_limits, [tenants, identities]);
    assert_eq!(traffic(&outbound, 81), None);
    assert_eq!(inbound(&outbound), []);
}

#[test]
fn rate_limits_and_faults_of_a_route_are_its_rules() {
    let limit = "  limits: [{rate: {requests: 5}}]";
    let fault = "  rules: [{delay: {percent: 12.5, duration: 100ms}, abort: {percent: 0.01, grpcStatus: UNAVAILABLE}}, {abort: {httpStatus: 503}}]";
    let rules = "[{name: a, backendRefs: [{name: orders, port: 80}]}, {name: b, backendRefs: [{name: orders, port: 80}]}]";
    let text = format!(
        "{ORDERS}{}{}{}{}",
        route("default", "r", "", rules),
        policy("RateLimitPolicy", "l", AT_RULE, limit),
        policy("FaultPolicy", "f", AT_ROUTE, fault),
        policy("FaultPolicy", "g", AT_HTTP, "  rules: [{name: late, delay: {duration: 1s}}]")
    );
    assert_eq!(told(&text), [""; 0]);
    let model = model(&text);
    let routes = routes(&model, "default/default/orders");
    let of = |rule: usize| routes.http[0].rules[rule].requests.clone().unwrap();
    assert_eq!(of(0).rate_limits.len(), 1);
    assert_eq!(of(1).rate_limits.len(), 0);
    for rule in [0, 1] {
        let faults = of(rule).faults;
        assert_eq!(
            faults[0],
            v1::Fault {
                name: "default/f/0".to_owned(),
                headers: Vec::new(),
                delayed: 125_000,
                delay: time(100),
                aborted: 100,
                abort: Some(v1::fault::Abort::GrpcStatus(14)),
            }
        );
        assert_eq!(
            (faults[1].aborted, &faults[1].abort),
            (1_000_000, &Some(v1::fault::Abort::HttpStatus(503)))
        );
    }
    let at_port = traffic(&model, 80).unwrap().requests.unwrap().faults;
    assert_eq!((at_port[0].name.as_str(), at_port[0].delayed), ("default/g/late", 1_000_000));
    assert_eq!(traffic(&model, 81), None);
}

#[test]
fn clients_outside_the_mesh_are_asked_to_open_another_connection_too() {
    let text =
        format!("{ORDERS}{}", policy("TrafficPolicy", "p", AT_HTTP, "  connections: {maximumAge: 1h}"));
    let mut index = index(&text).0;
    register(&mut index, registration("w", "10.0.0.1", &[("orders", 80, 8080), ("orders", 81, 8081)]));
    let policy: v1::InboundPolicy = get(&Model::build(&index, Settings::default()), "default/w").unwrap();
    let ages: Vec<_> = policy.ports.iter().map(|port| (port.port, port.maximum_connection_age)).collect();
    assert_eq!(ages, [(8080, time(3_600_000)), (8081, None)]);
}

/// (kind, what is in the spec after the targets, a part of what is told, whether the policy is refused)
const BAD: [(&str, &str, &str, bool); 44] = [
    ("TrafficPolicy", "", "spec: the policy says nothing", false),
    (
        "TrafficPolicy",
        "loadBalancer: {algorithm: Fastest}",
        "spec.loadBalancer.algorithm: `Fastest` is none of",
        true,
    ),
    (
        "TrafficPolicy",
        "loadBalancer: {algorithm: Maglev}",
        "spec.loadBalancer.hashOn: `Maglev` needs to know",
        true,
    ),
    (
        "TrafficPolicy",
        "loadBalancer: {hashOn: [{header: x}]}",
        "spec.loadBalancer.hashOn: `PeakEwma` goes by no hash",
        true,
    ),
    (
        "TrafficPolicy",
        "loadBalancer: {algorithm: RingHash, hashOn: [{}]}",
        "hashOn[0]: it is not clear what",
        true,
    ),
    (
        "TrafficPolicy",
        "loadBalancer: {algorithm: RingHash, hashOn: [{header: x, source: {}}]}",
        "hashOn[0]: it is not clear",
        true,
    ),
    (
        "TrafficPolicy",
        "loadBalancer: {algorithm: RingHash, hashOn: [{header: 'a b'}]}",
        "hashOn[0].header: `a b`",
        true,
    ),
    (
        "TrafficPolicy",
        "loadBalancer: {panicThresholdPercent: 101}",
        "panicThresholdPercent: 101 is out of bounds",
        true,
    ),
    ("TrafficPolicy", "loadBalancer: {warmUp: {}}", "`duration` is missing", true),
    ("TrafficPolicy", "loadBalancer: {warmUp: {duration: 0s}}", "warmUp.duration: `0s` is too short", true),
    (
        "TrafficPolicy",
        "loadBalancer: {zones: {maximumLoadPercent: 99}}",
        "maximumLoadPercent: 99 is out of bounds",
        true,
    ),
    ("TrafficPolicy", "outlierDetection: {}", "spec.outlierDetection: no criterion", true),
    ("TrafficPolicy", "outlierDetection: {consecutive5xx: 0}", "consecutive5xx: 0 is out of bounds", true),
    (
        "TrafficPolicy",
        "outlierDetection: {consecutiveGrpcErrors: 1, grpcCodes: [BROKEN]}",
        "grpcCodes[0]: `BROKEN` is none of",
        true,
    ),
    (
        "TrafficPolicy",
        "outlierDetection: {consecutive5xx: 1, grpcCodes: []}",
        "grpcCodes: the list is empty",
        true,
    ),
    (
        "TrafficPolicy",
        "outlierDetection: {successRate: {standardDeviations: -1}}",
        "standardDeviations: -1 is out of bounds",
        true,
    ),
    (
        "TrafficPolicy",
        "outlierDetection: {consecutive5xx: 1, maximumEjectionTime: 1s}",
        "maximumEjectionTime: shorter than",
        true,
    ),
    (
        "TrafficPolicy",
        "outlierDetection: {consecutive5xx: 1, interval: 1ms}",
        "interval: `1ms` is too short",
        true,
    ),
    ("TrafficPolicy", "healthCheck: {}", "spec.healthCheck: it is not clear how", true),
    ("TrafficPolicy", "healthCheck: {tcp: {}, grpc: {}}", "spec.healthCheck: it is not clear how", true),
    ("TrafficPolicy", "healthCheck: {http: {path: healthz}}", "http.path: `healthz` cannot be a path", true),
    (
        "TrafficPolicy",
        "limits: {maximumRequests: 0}",
        "limits.maximumRequests: 0 would let nothing through",
        true,
    ),
    (
        "TrafficPolicy",
        "connections: {keepAlive: {time: 100ms}}",
        "keepAlive.time: `100ms` is out of bounds",
        true,
    ),
    (
        "TrafficPolicy",
        "timeouts: {request: 1s, perTry: 2s}",
        "timeouts.perTry: one try may not last longer",
        true,
    ),
    ("TrafficPolicy", "timeouts: {request: soon}", "timeouts.request: `soon` is not a duration", true),
    (
        "TrafficPolicy",
        "timeouts: {deadlineHeader: Grpc-Timeout}",
        "deadlineHeader: `grpc-timeout` is obeyed",
        true,
    ),
    (
        "TrafficPolicy",
        "{timeouts: {request: 25ms}, retry: {}}",
        "retry.backoff.base: as long as the whole",
        false,
    ),
    ("TrafficPolicy", "retry: {attempts: 101}", "retry.attempts: 101 is out of bounds", true),
    ("TrafficPolicy", "retry: {statuses: [200]}", "retry.statuses[0]: 200 is out of bounds", true),
    ("TrafficPolicy", "retry: {backoff: {base: 2s, maximum: 1s}}", "backoff.maximum: shorter than", true),
    ("TrafficPolicy", "retry: {causes: [Always]}", "retry.causes[0]: `Always` is none of", true),
    (
        "TrafficPolicy",
        "retryBudget: {percent: 0, minimumRetryRate: {count: 0}}",
        "spec.retryBudget: 0 percent, and 0",
        false,
    ),
    ("TrafficPolicy", "retryBudget: {percent: 120}", "retryBudget.percent: 120 is out of bounds", true),
    ("RateLimitPolicy", "limits: []", "spec.limits: the policy limits nothing", true),
    (
        "RateLimitPolicy",
        "limits: [{rate: {requests: 0}}]",
        "limits[0].rate.requests: 0 would let nothing",
        true,
    ),
    (
        "RateLimitPolicy",
        "limits: [{rate: {requests: 9, per: 0s}}]",
        "limits[0].rate.per: `0s` is too short",
        true,
    ),
    ("RateLimitPolicy", "limits: [{rate: {requests: 1}, by: {}}]", "limits[0].by: it is not clear", true),
    (
        "RateLimitPolicy",
        "limits: [{rate: {requests: 1}, overrides: [{values: [a], rate: {requests: 1}}]}]",
        "overrides: all requests are counted together",
        true,
    ),
    (
        "RateLimitPolicy",
        "limits: [{rate: {requests: 1}, by: {identity: {}}, overrides: [{values: [web], rate: {requests: 1}}]}]",
        "values[0]: `web` is not an identity",
        true,
    ),
    (
        "RateLimitPolicy",
        "limits: [{rate: {requests: 1}, headers: [{name: a, value: '(', type: RegularExpression}]}]",
        "headers[0].value: `(` cannot be used",
        true,
    ),
    ("FaultPolicy", "rules: []", "spec.rules: nothing goes wrong", true),
    ("FaultPolicy", "rules: [{}]", "spec.rules[0]: nothing goes wrong", true),
    (
        "FaultPolicy",
        "rules: [{abort: {percent: 101, httpStatus: 503}}]",
        "abort.percent: 101 is out of bounds",
        true,
    ),
    ("FaultPolicy", "rules: [{abort: {percent: 1}}]", "abort: it is not clear what the answer is", true),
];

#[test]
fn what_is_bad_is_told_by_field_and_takes_nothing_else_down() {
    for (kind, spec, expected, is_refused) in BAD {
        let spec = match spec.strip_prefix('{') {
            Some(fields) => fields.trim_end_matches('}').replacen("}, ", "}\n  ", 1) + "}",
            None => spec.to_owned(),
        };
        let good = policy("TrafficPolicy", "good", AT_HTTP, "  limits: {maximumRequests: 3}");
        let text = format!("{ORDERS}{good}{}", policy(kind, "bad", AT_ORDERS, &format!("  {spec}")));
        let (index, found) = index(&text);
        let told: Vec<String> = found
            .iter()
            .map(|one| format!("{}: {}", one.field.as_deref().unwrap_or(""), one.message))
            .collect();
        assert!(told.iter().any(|one| one.contains(expected)), "{spec}: {told:#?}");
        let errors = found.iter().filter(|one| one.severity == Severity::Error).count();
        assert_eq!(errors > 0, is_refused, "{spec}: {told:#?}");
        assert!(found.iter().all(|one| one.hint.is_some() || one.field.is_none()), "{spec}: {found:#?}");
        let traffic = traffic(&Model::build(&index, Settings::default()), 80).unwrap();
        assert_eq!(traffic.limits.unwrap().maximum_requests, 3);
    }
}

#[test]
fn a_back_off_that_something_else_leaves_no_time_for_is_told() {
    let retry = policy("TrafficPolicy", "p", AT_ORDERS, "  retry: {backoff: {base: 2s}}");
    let time = |target: &str, request: &str| {
        policy("TrafficPolicy", "q", target, &format!("  timeouts: {{request: {request}}}"))
    };
    let of = |more: &str| told(&format!("{ORDERS}{retry}{more}"));
    assert_eq!(
        of(&time(AT_HTTP, "2s")),
        [
            "spec.retry.backoff.base: at port 80 of Service default/orders a request may take no longer than that: there is never time for a retry"
        ]
    );
    assert_eq!(of(&time(AT_HTTP, "3s")), [""; 0]);
    assert_eq!(of(&time(AT_HTTP, "0s")), [""; 0]);
    let rules = "[{name: a, timeouts: {request: 10ms}, backendRefs: [{name: orders, port: 80}]}]";
    let of_route = policy("TrafficPolicy", "r", AT_ROUTE, "  retry: {}");
    let told = told(&format!("{ORDERS}{}{of_route}", route("default", "r", "", rules)));
    assert!(told[0].contains("at rule 0 of HTTPRoute default/r"), "{told:?}");
}

#[test]
fn what_is_said_of_requests_where_there_are_none_is_told() {
    let opaque =
        "apiVersion: v1\nkind: Service\nmetadata: {name: orders}\nspec: {ports: [{name: tcp, port: 80}]}\n";
    for (kind, spec, expected) in [
        ("TrafficPolicy", "  retry: {}", 1),
        ("FaultPolicy", "  rules: [{abort: {httpStatus: 503}}]", 1),
        ("RateLimitPolicy", "  limits: [{rate: {requests: 1}}]", 1),
        ("TrafficPolicy", "  limits: {maximumConnections: 1}", 0),
    ] {
        let p = policy(kind, "p", AT_ORDERS, spec);
        assert_eq!(told(&format!("{opaque}{p}")).len(), expected, "{spec}");
        assert_eq!(told(&format!("{ORDERS}{p}")), [""; 0], "{spec}");
    }
}

#[test]
fn a_policy_is_attached_to_what_it_can_be_on_only() {
    let cases = [
        ("", "spec.targetRefs: the policy is attached to nothing"),
        ("{kind: Pod, name: a}", "spec.targetRefs[0].kind: the policy cannot be attached to a `Pod`"),
        (
            "{group: gateway.networking.k8s.io, kind: TCPRoute, name: a}",
            "kind: the policy cannot be attached to a `TCPRoute`",
        ),
        ("{kind: HTTPRoute, name: r}", "spec.targetRefs[0].group: `` has no kind HTTPRoute"),
        (
            "{kind: Service, name: orders, namespace: shop}",
            "spec.targetRefs[0].namespace: the policy cannot be attached to what is in the namespace `shop`",
        ),
        (
            "{kind: Service, name: orders}, {kind: Service, name: orders}",
            "spec.targetRefs[1]: Service default/orders is a target twice",
        ),
        (AT_ROUTE, "spec.loadBalancer: `loadBalancer` cannot be said of requests that follow a route"),
    ];
    for (targets, expected) in cases {
        let text = format!("{ORDERS}{}", policy("TrafficPolicy", "p", targets, "  loadBalancer: {}"));
        let told = told(&text);
        assert!(told.iter().any(|one| one.contains(expected)), "{targets}: {told:#?}");
        assert_eq!(traffic(&model(&text), 80), None, "{targets}");
    }
    let inbound =
        policy("RateLimitPolicy", "p", AT_ROUTE, "  direction: Inbound\n  limits: [{rate: {requests: 1}}]");
    assert!(told(&inbound)[1].contains("spec.direction: "), "{:#?}", told(&inbound));
}

#[test]
fn limits_that_nobody_keeps_are_told() {
    let slice = |identity: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: orders-{}\n  labels: {{kubernetes.io/service-name: orders}}\n  \
             annotations: {{{identity}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [10.0.0.1]}}, {{addresses: [10.0.0.2]}}]\n",
            identity.len()
        )
    };
    let limit = "limits: [{rate: {requests: 1}}]";
    let inbound = policy("RateLimitPolicy", "p", AT_ORDERS, &format!("  {limit}"));
    let outbound = policy("RateLimitPolicy", "p", AT_ORDERS, &format!("  direction: Outbound\n  {limit}"));
    let (bare, meshed) = (slice(""), slice("tulle.dev/identity: default/orders"));
    assert_eq!(
        told(&format!("{ORDERS}{bare}{inbound}")),
        [
            "spec.targetRefs[0]: nobody counts what goes to 10.0.0.1 and 1 more of Service default/orders: no proxy stands there"
        ]
    );
    for held in [format!("{bare}{outbound}"), format!("{meshed}{inbound}"), inbound] {
        assert_eq!(told(&format!("{ORDERS}{held}")), [""; 0], "{held}");
    }
}

#[test]
fn counting_by_identity_where_there_is_one_only_is_told_of_routes_too() {
    let rules = "[{name: a, backendRefs: [{name: orders, port: 80}]}]";
    let route = route("default", "r", "", rules);
    let limits = "  limits: [{by: {identity: {}}, rate: {requests: 1}}]";
    let told = |targets: &str, spec: &str| {
        let policy = policy("RateLimitPolicy", "p", targets, spec);
        told(&format!("{ORDERS}{route}{policy}"))
    };
    for at in [told(AT_ROUTE, limits), told(AT_ORDERS, &format!("  direction: Outbound\n{limits}"))] {
        assert_eq!(at.len(), 1, "{at:?}");
        assert!(
            at[0].starts_with("spec.limits[0].by: a client's proxy sends for one identity only"),
            "{at:?}"
        );
    }
    assert_eq!(told(AT_ORDERS, limits), [""; 0]);
    // The Service's own proxies do tell identities apart.
    assert_eq!(told(&format!("{AT_ORDERS}, {AT_ROUTE}"), limits), [""; 0]);
}
