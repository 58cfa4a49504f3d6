//! Objects of our kinds, and changes of them, with what is to be said of each: to our own reading (the tests beside this), and to a real
//! API server (`tests/tests/kubernetes`, which takes this very file).

use serde_json::Value;

/// An object of each kind that every rule is about, and that all of them take.
pub(crate) const GOOD: [(&str, &str); 10] = [
    (
        "TrafficPolicy",
        "
loadBalancer: {algorithm: Maglev, hashOn: [{header: a}], warmUp: {duration: 1s}, zones: {latency: 1ms}}
outlierDetection: {consecutive5xx: 5, interval: 10ms, ejectionTime: 1s, maximumEjectionTime: 1s}
healthCheck: {tcp: {}, interval: 10ms, timeout: 1ms}
connections: {keepAlive: {time: 1s, interval: 32767s}}
timeouts: {request: 1s, perTry: 1s}
retry: {backoff: {base: 1ms, maximum: 1ms}}
retryBudget: {interval: 1s, minimumRetryRate: {interval: 1s}}
",
    ),
    (
        "RateLimitPolicy",
        "
direction: Inbound
limits: [{by: {header: a}, rate: {requests: 5, per: 1ms}, overrides: [{values: [a], rate: {requests: 5, per: 1ms}}]}]
",
    ),
    ("FaultPolicy", "rules: [{delay: {duration: 1ms}, abort: {httpStatus: 503}}]"),
    ("TelemetryPolicy", "accessLog: {format: json}"),
    (
        "AuthorizationPolicy",
        "
action: ALLOW
rules: [{from: [{identities: [a/b]}], to: [{methods: [GET]}], when: [{header: a, values: [b]}]}]
",
    ),
    ("PeerAuthentication", "mtls: strict"),
    ("ExternalAuthorization", "service: {name: a, port: 1}\ntimeout: 1m\ncache: {for: 1ms, headers: [a]}"),
    (
        "RequestAuthentication",
        "
issuers:
- issuer: a
  audiences: [b]
  jwks: {url: 'https://a/keys', refresh: 1m, timeout: 1s}
  claimsToHeaders: [{header: x-a, claim: sub}]
  leeway: 1s
",
    ),
    (
        "EgressPolicy",
        "
action: audit
rules: [{name: a, action: allow, sni: [a.example], ports: [443]}, {name: b, action: deny, hosts: [b.example]}]
",
    ),
    ("Mesh", "mtls: strict"),
];

/// A change of the good object: the kind (none: each whose targets have sections), where, what stands there then, and the rules that refuse it.
pub(crate) type Case = (&'static str, &'static str, &'static str, &'static [&'static str]);

const ONCE: &str = "spec.targetRefs: each target once";
const TARGET: &str = "spec.targetRefs[]: a Service of the group \"\", or an HTTPRoute or a GRPCRoute of the group gateway.networking.k8s.io";
const ANY_TARGET: &str = "spec.targetRefs[]: a Service of the group \"\", a Workload of the group policy.tulle.dev, or an HTTPRoute or a GRPCRoute of the group gateway.networking.k8s.io";
const WHOLE: &str = "spec.targetRefs[]: a Workload has no sections";
const ROUTE: &str = "spec: of requests that follow a route only timeouts and retry can be said";
const HASH: &str = "spec.loadBalancer: RingHash and Maglev need hashOn, and the others go by no hash";
const KEY: &str = "spec.loadBalancer.hashOn[]: exactly one of header, cookie, queryParameter and source";
const CRITERION: &str = "spec.outlierDetection: at least one criterion says which endpoints are ejected";
const EJECTION: &str = "spec.outlierDetection: maximumEjectionTime is at least as long as ejectionTime";
const CHECK: &str = "spec.healthCheck: exactly one of http, grpc and tcp";
const KEEP_TIME: &str = "spec.connections.keepAlive.time: 1s to 32767s";
const KEEP_INTERVAL: &str = "spec.connections.keepAlive.interval: 1s to 32767s";
const TRY: &str = "spec.timeouts: perTry is at most as long as request";
const BACKOFF: &str = "spec.retry.backoff: maximum is at least as long as base";
const INBOUND: &str = "spec: what follows a route is counted by clients: direction Outbound";
const OVERRIDES: &str = "spec.limits[]: overrides need by, which tells requests apart";
const BY: &str = "spec.limits[].by: exactly one of identity and header";
const RATE: &str = "spec.limits[].rate: at most one request each nanosecond of per";
const OTHER_RATE: &str = "spec.limits[].overrides[].rate: at most one request each nanosecond of per";
const FAULT: &str = "spec.rules[]: at least one of delay and abort";
const ABORT: &str = "spec.rules[].abort: exactly one of httpStatus and grpcStatus";
const SERVICES: &str = "spec.targetRefs: Services of the group \"\"";
const NAMES: &str = "spec.rules: rules have different names";
const DESTINATION: &str = "spec.rules[]: at least one of cidrs, ports, sni and hosts";
const HOST: &str = "spec.rules[]: not both sni and hosts";
/// Of the object as a whole.
const ONLY: &str = ": there is one Mesh, named mesh";

const NAMED: &str = "spec.targetRefs[]: a name; of a Workload, a name or a selector";
const NO_ROUTES: &str = "spec.targetRefs: a Service or a Workload: who a client is shows before what it asks";
const EVERYBODY: &str =
    "spec: a rule that allows says who, what or when; everybody is from: [{networks: [0.0.0.0/0, '::/0']}]";
const SOURCE: &str = "spec.rules[].from[]: a source says who";
const OPERATION: &str = "spec.rules[].to[]: an operation says what";
const CONDITION: &str = "spec.rules[].when[]: exactly one of header, claim and claimPath";

const KEYS: &str = "spec.issuers[].jwks: exactly one of inline and url";
const FETCHED: &str =
    "spec.issuers[].jwks: inline keys are not fetched: refresh, timeout, service and roots are for a url";
const HTTPS: &str = "spec.issuers[].jwks: https://; http:// with a service, which is asked through the mesh";
const ROOTS: &str = "spec.issuers[].jwks: a service is known by its identity, not by roots";
const CLAIM: &str = "spec.issuers[].claimsToHeaders[]: exactly one of claim and claimPath";

pub(crate) const CASES: &[Case] = &[
    ("RequestAuthentication", "/spec/targetRefs", "[]", &[]),
    ("RequestAuthentication", "/spec/targetRefs/0/group", r#""apps""#, &[ANY_TARGET]),
    ("RequestAuthentication", "/spec/targetRefs/0/name", r#""""#, &[NAMED]),
    (
        "RequestAuthentication",
        "/spec/targetRefs/0",
        r#"{"group": "policy.tulle.dev", "kind": "Workload", "name": "a", "sectionName": "b"}"#,
        &[WHOLE],
    ),
    ("RequestAuthentication", "/spec/issuers/0/leeway", r#""5m""#, &[]),
    ("RequestAuthentication", "/spec/issuers/0/leeway", r#""301s""#, &["spec.issuers[].leeway: 5m or less"]),
    ("RequestAuthentication", "/spec/issuers/0/jwks/refresh", r#""10s""#, &[]),
    (
        "RequestAuthentication",
        "/spec/issuers/0/jwks/refresh",
        r#""9s""#,
        &["spec.issuers[].jwks.refresh: 10s or more"],
    ),
    (
        "RequestAuthentication",
        "/spec/issuers/0/jwks/timeout",
        r#""0s""#,
        &["spec.issuers[].jwks.timeout: more than 0s"],
    ),
    (
        "RequestAuthentication",
        "/spec/issuers/0/jwks/timeout",
        r#""31s""#,
        &["spec.issuers[].jwks.timeout: 30s or less"],
    ),
    ("RequestAuthentication", "/spec/issuers/0/jwks", "{}", &[KEYS]),
    (
        "RequestAuthentication",
        "/spec/issuers/0/jwks",
        r#"{"inline": "{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE\"}]}"}"#,
        &[],
    ),
    (
        "RequestAuthentication",
        "/spec/issuers/0/jwks",
        r#"{"refresh": "1m", "inline": "{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE\"}]}"}"#,
        &[FETCHED],
    ),
    ("RequestAuthentication", "/spec/issuers/0/jwks/url", r#""http://a/keys""#, &[HTTPS]),
    ("RequestAuthentication", "/spec/issuers/0/jwks/service", r#"{"name": "a", "port": 80}"#, &[HTTPS]),
    (
        "RequestAuthentication",
        "/spec/issuers/0/jwks",
        r#"{"url": "http://a/keys", "service": {"namespace": "b", "name": "a", "port": 80}}"#,
        &[],
    ),
    (
        "RequestAuthentication",
        "/spec/issuers/0/jwks",
        r#"{"url": "http://a/keys", "service": {"name": "a", "port": 80}, "roots": "a"}"#,
        &[ROOTS],
    ),
    ("RequestAuthentication", "/spec/issuers/0/claimsToHeaders/0/claim", "null", &[CLAIM]),
    ("RequestAuthentication", "/spec/issuers/0/claimsToHeaders/0/claimPath", r#"["a.b"]"#, &[CLAIM]),
    (
        "RequestAuthentication",
        "/spec/issuers/0/claimsToHeaders/0",
        r#"{"header": "x-a", "claimPath": ["a.b"]}"#,
        &[],
    ),
    ("AuthorizationPolicy", "/spec/targetRefs", "[]", &[]),
    ("AuthorizationPolicy", "/spec/targetRefs/0/group", r#""apps""#, &[ANY_TARGET]),
    ("AuthorizationPolicy", "/spec/targetRefs/0/name", r#""""#, &[NAMED]),
    (
        "AuthorizationPolicy",
        "/spec/targetRefs/0",
        r#"{"group": "policy.tulle.dev", "kind": "Workload", "selector": {"matchLabels": {"app": "a"}}}"#,
        &[],
    ),
    (
        "AuthorizationPolicy",
        "/spec/targetRefs/0",
        r#"{"group": "policy.tulle.dev", "kind": "Workload", "name": "a", "selector": {"matchLabels": {"app": "a"}}}"#,
        &[NAMED],
    ),
    (
        "AuthorizationPolicy",
        "/spec/targetRefs/0",
        r#"{"kind": "Service", "name": "a", "selector": {"matchLabels": {"app": "a"}}}"#,
        &[NAMED],
    ),
    (
        "AuthorizationPolicy",
        "/spec/targetRefs/0",
        r#"{"group": "policy.tulle.dev", "kind": "Workload", "name": "a", "sectionName": "b"}"#,
        &[WHOLE],
    ),
    (
        "AuthorizationPolicy",
        "/spec/targetRefs/0",
        r#"{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "a", "sectionName": "b"}"#,
        &[],
    ),
    ("AuthorizationPolicy", "/spec/rules", "[]", &[]),
    ("AuthorizationPolicy", "/spec/rules/0", "{}", &[EVERYBODY]),
    ("AuthorizationPolicy", "/spec/rules/0", r#"{"when": []}"#, &[EVERYBODY]),
    ("AuthorizationPolicy", "/spec/rules/0", r#"{"when": [{"header": "a"}]}"#, &[]),
    ("AuthorizationPolicy", "/spec/rules/0", r#"{"to": [{"notPaths": ["/a"]}]}"#, &[]),
    ("AuthorizationPolicy", "/spec/rules/0/from/0", "{}", &[SOURCE]),
    ("AuthorizationPolicy", "/spec/rules/0/from/0", r#"{"notNetworks": ["10.0.0.1"]}"#, &[]),
    ("AuthorizationPolicy", "/spec/rules/0/to/0", "{}", &[OPERATION]),
    ("AuthorizationPolicy", "/spec/rules/0/to/0", r#"{"notPorts": [1]}"#, &[]),
    ("AuthorizationPolicy", "/spec/rules/0/when/0", r#"{"header": "a", "claim": "b"}"#, &[CONDITION]),
    ("AuthorizationPolicy", "/spec/rules/0/when/0", r#"{"values": ["b"]}"#, &[CONDITION]),
    ("AuthorizationPolicy", "/spec/rules/0/when/0", r#"{"claimPath": ["a.b", "c"]}"#, &[]),
    ("ExternalAuthorization", "/spec/targetRefs", "[]", &[]),
    ("ExternalAuthorization", "/spec/targetRefs/0/group", r#""apps""#, &[ANY_TARGET]),
    ("ExternalAuthorization", "/spec/targetRefs/0/name", r#""""#, &[NAMED]),
    (
        "ExternalAuthorization",
        "/spec/targetRefs/0",
        r#"{"group": "policy.tulle.dev", "kind": "Workload", "name": "a", "sectionName": "b"}"#,
        &[WHOLE],
    ),
    (
        "ExternalAuthorization",
        "/spec/targetRefs/0",
        r#"{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "a", "sectionName": "b"}"#,
        &[],
    ),
    ("ExternalAuthorization", "/spec/timeout", r#""0s""#, &["spec.timeout: more than 0s"]),
    ("ExternalAuthorization", "/spec/timeout", r#""1m1ms""#, &["spec.timeout: 1m at most"]),
    ("ExternalAuthorization", "/spec/cache/for", r#""0ms""#, &["spec.cache.for: more than 0s"]),
    ("PeerAuthentication", "/spec/targetRefs", "[]", &[]),
    ("PeerAuthentication", "/spec/targetRefs/0/group", r#""apps""#, &[ANY_TARGET]),
    ("PeerAuthentication", "/spec/targetRefs/0/name", r#""""#, &[NAMED]),
    (
        "PeerAuthentication",
        "/spec/targetRefs/0",
        r#"{"group": "policy.tulle.dev", "kind": "Workload", "name": "a", "sectionName": "b"}"#,
        &[WHOLE],
    ),
    (
        "PeerAuthentication",
        "/spec/targetRefs/0",
        r#"{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "a"}"#,
        &[NO_ROUTES],
    ),
    (
        "",
        "/spec/targetRefs",
        r#"[{"kind": "Service", "name": "a"}, {"kind": "Service", "name": "a"}]"#,
        &[ONCE],
    ),
    (
        "",
        "/spec/targetRefs",
        r#"[{"kind": "Service", "name": "a"}, {"kind": "Service", "name": "a", "group": "core", "sectionName": ""}]"#,
        &[ONCE],
    ),
    (
        "",
        "/spec/targetRefs",
        r#"[{"kind": "Service", "name": "a", "sectionName": "b"}, {"kind": "Service", "name": "a", "sectionName": "b"}]"#,
        &[ONCE],
    ),
    (
        "",
        "/spec/targetRefs",
        r#"[{"kind": "Service", "name": "a", "sectionName": "b"}, {"kind": "Service", "name": "a"}, {"kind": "Service", "name": "b"}]"#,
        &[],
    ),
    ("", "/spec/targetRefs/0/group", r#""core""#, &[]),
    ("TrafficPolicy", "/spec/targetRefs/0/group", r#""apps""#, &[TARGET]),
    ("RateLimitPolicy", "/spec/targetRefs/0/group", r#""apps""#, &[TARGET]),
    ("FaultPolicy", "/spec/targetRefs/0/group", r#""apps""#, &[TARGET]),
    ("TelemetryPolicy", "/spec/targetRefs/0/group", r#""apps""#, &[ANY_TARGET]),
    ("TelemetryPolicy", "/spec/targetRefs/0/kind", r#""Pod""#, &[ANY_TARGET]),
    ("TelemetryPolicy", "/spec/targetRefs", "[]", &[]),
    (
        "TelemetryPolicy",
        "/spec/targetRefs/0",
        r#"{"group": "policy.tulle.dev", "kind": "Workload", "name": "a"}"#,
        &[],
    ),
    ("TelemetryPolicy", "/spec/targetRefs/0", r#"{"kind": "Workload", "name": "a"}"#, &[ANY_TARGET]),
    (
        "TelemetryPolicy",
        "/spec/targetRefs/0",
        r#"{"group": "policy.tulle.dev", "kind": "Workload", "name": "a", "sectionName": "b"}"#,
        &[WHOLE],
    ),
    (
        "FaultPolicy",
        "/spec/targetRefs/0",
        r#"{"group": "policy.tulle.dev", "kind": "Workload", "name": "a"}"#,
        &[TARGET],
    ),
    ("FaultPolicy", "/spec/targetRefs/0/kind", r#""Pod""#, &[TARGET]),
    ("FaultPolicy", "/spec/targetRefs/0/kind", r#""HTTPRoute""#, &[TARGET]),
    (
        "FaultPolicy",
        "/spec/targetRefs/0",
        r#"{"group": "gateway.networking.k8s.io", "kind": "TCPRoute", "name": "a"}"#,
        &[TARGET],
    ),
    (
        "FaultPolicy",
        "/spec/targetRefs/0",
        r#"{"group": "gateway.networking.k8s.io", "kind": "GRPCRoute", "name": "a", "sectionName": "b"}"#,
        &[],
    ),
    (
        "FaultPolicy",
        "/spec/targetRefs",
        r#"[{"kind": "Service", "name": "a"}, {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "a"}]"#,
        &[],
    ),
    (
        "TrafficPolicy",
        "/spec/targetRefs",
        r#"[{"kind": "Service", "name": "a"}, {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "a"}]"#,
        &[ROUTE],
    ),
    (
        "TrafficPolicy",
        "/spec",
        r#"{"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "a"}], "timeouts": {"request": "1s"}, "retry": {}}"#,
        &[],
    ),
    ("TrafficPolicy", "/spec/loadBalancer/hashOn", "null", &[HASH]),
    ("TrafficPolicy", "/spec/loadBalancer/algorithm", r#""RingHash""#, &[]),
    ("TrafficPolicy", "/spec/loadBalancer/algorithm", r#""PeakEwma""#, &[HASH]),
    ("TrafficPolicy", "/spec/loadBalancer", r#"{"algorithm": "Random"}"#, &[]),
    ("TrafficPolicy", "/spec/loadBalancer", r#"{"hashOn": [{"source": {}}]}"#, &[HASH]),
    ("TrafficPolicy", "/spec/loadBalancer/hashOn/0", "{}", &[KEY]),
    ("TrafficPolicy", "/spec/loadBalancer/hashOn/0", r#"{"header": "a", "source": {}}"#, &[KEY]),
    ("TrafficPolicy", "/spec/loadBalancer/hashOn/0", r#"{"header": null, "queryParameter": "a"}"#, &[]),
    (
        "TrafficPolicy",
        "/spec/loadBalancer/warmUp/duration",
        r#""0s""#,
        &["spec.loadBalancer.warmUp.duration: more than 0s"],
    ),
    (
        "TrafficPolicy",
        "/spec/loadBalancer/zones/latency",
        r#""0ms""#,
        &["spec.loadBalancer.zones.latency: more than 0s"],
    ),
    ("TrafficPolicy", "/spec/outlierDetection/consecutive5xx", "null", &[CRITERION]),
    ("TrafficPolicy", "/spec/outlierDetection", r#"{"successRate": {}}"#, &[]),
    (
        "TrafficPolicy",
        "/spec/outlierDetection",
        r#"{"consecutive5xx": 1, "maximumEjectionTime": "29s"}"#,
        &[EJECTION],
    ),
    (
        "TrafficPolicy",
        "/spec/outlierDetection",
        r#"{"consecutive5xx": 1, "ejectionTime": "5m1s"}"#,
        &[EJECTION],
    ),
    (
        "TrafficPolicy",
        "/spec/outlierDetection/interval",
        r#""9ms""#,
        &["spec.outlierDetection.interval: 10ms or more"],
    ),
    (
        "TrafficPolicy",
        "/spec/outlierDetection/ejectionTime",
        r#""0h""#,
        &["spec.outlierDetection.ejectionTime: more than 0s"],
    ),
    (
        "TrafficPolicy",
        "/spec/outlierDetection/maximumEjectionTime",
        r#""0s""#,
        &[EJECTION, "spec.outlierDetection.maximumEjectionTime: more than 0s"],
    ),
    ("TrafficPolicy", "/spec/healthCheck/tcp", "null", &[CHECK]),
    ("TrafficPolicy", "/spec/healthCheck", r#"{"tcp": {}, "http": {"path": "/"}}"#, &[CHECK]),
    ("TrafficPolicy", "/spec/healthCheck", r#"{"grpc": {}}"#, &[]),
    ("TrafficPolicy", "/spec/healthCheck/interval", r#""9ms""#, &["spec.healthCheck.interval: 10ms or more"]),
    ("TrafficPolicy", "/spec/healthCheck/timeout", r#""0s""#, &["spec.healthCheck.timeout: more than 0s"]),
    ("TrafficPolicy", "/spec/connections/keepAlive/time", r#""999ms""#, &[KEEP_TIME]),
    ("TrafficPolicy", "/spec/connections/keepAlive/time", r#""9h6m8s""#, &[KEEP_TIME]),
    ("TrafficPolicy", "/spec/connections/keepAlive/interval", r#""32768s""#, &[KEEP_INTERVAL]),
    ("TrafficPolicy", "/spec/connections/keepAlive", "{}", &[]),
    ("TrafficPolicy", "/spec/timeouts/perTry", r#""1s1ms""#, &[TRY]),
    ("TrafficPolicy", "/spec/timeouts/perTry", r#""1000ms""#, &[]),
    // No limit of the whole; and no limit of a try, which the whole's then is.
    ("TrafficPolicy", "/spec/timeouts/request", r#""0s""#, &[]),
    ("TrafficPolicy", "/spec/timeouts/perTry", r#""0s""#, &[]),
    ("TrafficPolicy", "/spec/timeouts/request", "null", &[]),
    ("TrafficPolicy", "/spec/retry/backoff/maximum", r#""0s""#, &[BACKOFF]),
    ("TrafficPolicy", "/spec/retry/backoff", r#"{"maximum": "24ms"}"#, &[BACKOFF]),
    ("TrafficPolicy", "/spec/retry/backoff", r#"{"base": "1h"}"#, &[]),
    ("TrafficPolicy", "/spec/retryBudget/interval", r#""0s""#, &["spec.retryBudget.interval: more than 0s"]),
    ("TrafficPolicy", "/spec/retryBudget/interval", r#""1ms""#, &[]),
    (
        "TrafficPolicy",
        "/spec/retryBudget/minimumRetryRate/interval",
        r#""0s""#,
        &["spec.retryBudget.minimumRetryRate.interval: more than 0s"],
    ),
    (
        "RateLimitPolicy",
        "/spec/targetRefs/0",
        r#"{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "a"}"#,
        &[INBOUND],
    ),
    ("RateLimitPolicy", "/spec/direction", "null", &[]),
    ("RateLimitPolicy", "/spec/limits/0/by", "null", &[OVERRIDES]),
    ("RateLimitPolicy", "/spec/limits/0", r#"{"rate": {"requests": 1}, "overrides": []}"#, &[]),
    ("RateLimitPolicy", "/spec/limits/0/by", "{}", &[BY]),
    ("RateLimitPolicy", "/spec/limits/0/by", r#"{"identity": {}, "header": "a"}"#, &[BY]),
    ("RateLimitPolicy", "/spec/limits/0/rate/per", r#""0s""#, &["spec.limits[].rate.per: more than 0s"]),
    (
        "RateLimitPolicy",
        "/spec/limits/0/overrides/0/rate/per",
        r#""0s""#,
        &["spec.limits[].overrides[].rate.per: more than 0s"],
    ),
    ("RateLimitPolicy", "/spec/limits/0/rate/requests", "1000000", &[]),
    ("RateLimitPolicy", "/spec/limits/0/rate/requests", "1000001", &[RATE]),
    ("RateLimitPolicy", "/spec/limits/0/rate", r#"{"requests": 1000000000}"#, &[]),
    ("RateLimitPolicy", "/spec/limits/0/rate", r#"{"requests": 1000000001}"#, &[RATE]),
    ("RateLimitPolicy", "/spec/limits/0/rate", r#"{"requests": 2147483647, "per": "99999h"}"#, &[]),
    ("RateLimitPolicy", "/spec/limits/0/overrides/0/rate/requests", "1000001", &[OTHER_RATE]),
    ("FaultPolicy", "/spec/rules/0", "{}", &[FAULT]),
    ("FaultPolicy", "/spec/rules/0/abort", "null", &[]),
    ("FaultPolicy", "/spec/rules/0/delay", "null", &[]),
    (
        "FaultPolicy",
        "/spec/rules/0/delay/duration",
        r#""0m""#,
        &["spec.rules[].delay.duration: more than 0s"],
    ),
    ("FaultPolicy", "/spec/rules/0/abort", "{}", &[ABORT]),
    ("FaultPolicy", "/spec/rules/0/abort", r#"{"httpStatus": 503, "grpcStatus": "UNAVAILABLE"}"#, &[ABORT]),
    ("FaultPolicy", "/spec/rules/0/abort", r#"{"grpcStatus": "UNAVAILABLE"}"#, &[]),
    ("EgressPolicy", "/spec/targetRefs", "[]", &[]),
    ("EgressPolicy", "/spec/targetRefs/0/kind", r#""Workload""#, &[SERVICES]),
    ("EgressPolicy", "/spec/targetRefs/0/group", r#""core""#, &[SERVICES]),
    ("EgressPolicy", "/spec/rules", "[]", &[]),
    ("EgressPolicy", "/spec/rules/1/name", "null", &[]),
    ("EgressPolicy", "/spec/rules/1/name", r#""a""#, &[NAMES]),
    ("EgressPolicy", "/spec/rules/0", r#"{"action": "allow"}"#, &[DESTINATION]),
    (
        "EgressPolicy",
        "/spec/rules/0",
        r#"{"action": "allow", "cidrs": [], "ports": [], "sni": [], "hosts": []}"#,
        &[DESTINATION],
    ),
    ("EgressPolicy", "/spec/rules/0", r#"{"action": "allow", "ports": [443]}"#, &[]),
    ("EgressPolicy", "/spec/rules/0/cidrs", r#"["192.0.2.0/24"]"#, &[]),
    ("EgressPolicy", "/spec/rules/0/hosts", "[]", &[]),
    ("EgressPolicy", "/spec/rules/0/hosts", r#"["a.example"]"#, &[HOST]),
    ("Mesh", "/spec/egress", r#""deny""#, &[]),
    ("Mesh", "/metadata/name", r#""other""#, &[ONLY]),
];

/// Those of the good object of this kind.
pub(crate) fn changes(kind: &str) -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(move |(of, ..)| match *of {
        "" => !["EgressPolicy", "Mesh"].contains(&kind),
        of => of == kind,
    })
}

/// Objects in which every field with bounds is written somewhere.
pub(crate) const SPECIMENS: [(&str, &str); 9] = [
    (
        "TrafficPolicy",
        "
loadBalancer:
  algorithm: Maglev
  hashOn: [{header: a}]
  warmUp: {duration: 1s, minimumPercent: 5}
  zones: {maximumLoadPercent: 120, requestsInFlight: 5, refusedPercent: 5}
  panicThresholdPercent: 5
outlierDetection:
  consecutive5xx: 5
  consecutiveGatewayErrors: 5
  consecutiveConnectFailures: 5
  consecutiveGrpcErrors: 5
  successRate: {standardDeviations: 5, minimumEndpoints: 5, minimumRequests: 5}
  failurePercentage: {thresholdPercent: 5, minimumRequests: 5}
  maximumEjectedPercent: 5
healthCheck: {tcp: {}, healthyThreshold: 5, unhealthyThreshold: 5}
limits: {maximumConnections: 5, maximumConnectionsPerEndpoint: 5, maximumRequests: 5, maximumRequestsPerEndpoint: 5, maximumPending: 5}
connections: {keepAlive: {probes: 5}}
retry: {attempts: 5, statuses: [500], maximumBodyBytes: 5}
retryBudget: {percent: 5, minimumRetryRate: {count: 5}}
",
    ),
    (
        "RateLimitPolicy",
        "limits: [{by: {header: a}, rate: {requests: 5, burst: 5}, overrides: [{values: [a], rate: {requests: 5, burst: 5}}]}]",
    ),
    ("FaultPolicy", "rules: [{delay: {duration: 1s, percent: 5}, abort: {httpStatus: 500, percent: 5}}]"),
    ("FaultPolicy", "rules: [{delay: {duration: 1s}}]"),
    ("Mesh", "tracing: {collector: 'http://a:4317', sampling: {percent: 5}}\naccessLog: {samplePercent: 5}"),
    ("AuthorizationPolicy", "rules: [{from: [{networks: [10.0.0.1]}], toPorts: [5], to: [{ports: [5], notPorts: [5]}]}]"),
    ("ExternalAuthorization", "service: {name: a, port: 5}\nbody: {maxBytes: 5}"),
    ("TelemetryPolicy", "accessLog: {format: json, statuses: [5xx], samplePercent: 5}\ntracing: {sampling: {percent: 5}}"),
    (
        "RequestAuthentication",
        "issuers: [{issuer: a, audiences: [b], jwks: {url: 'http://a/keys', service: {name: a, port: 80}}}]",
    ),
];

/// Where numbers have bounds, by the path through the schema, and what they are.
pub(crate) fn bounds(schema: &Value, path: &str, found: &mut Vec<(String, Option<f64>, Option<f64>)>) {
    let bound = |name: &str| schema[name].as_f64();
    if bound("minimum").is_some() || bound("maximum").is_some() {
        found.push((path.to_owned(), bound("minimum"), bound("maximum")));
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        bounds(field, &format!("{path}/{name}"), found);
    }
    if schema["items"].is_object() {
        bounds(&schema["items"], &format!("{path}/0"), found);
    }
}

/// An object of this kind in YAML, with this spec, and a Service as its target where it has one.
pub(crate) fn text(kind: &str, spec: &str) -> String {
    let (name, targets) = match kind {
        "Mesh" => ("mesh", ""),
        _ => ("a", "targetRefs: [{kind: Service, name: a}]\n"),
    };
    let text = format!("{targets}{spec}").replace('\n', "\n  ");
    format!(
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n  {text}\n"
    )
}

/// Writes a value there, also where nothing stands yet.
pub(crate) fn set(object: &mut Value, at: &str, value: Value) {
    let (parent, field) = at.rsplit_once('/').unwrap();
    match object.pointer_mut(parent).unwrap() {
        Value::Array(items) => items[field.parse::<usize>().unwrap()] = value,
        // Null is no value of anything in Kubernetes: the field is left out.
        Value::Object(fields) if value.is_null() => drop(fields.remove(field)),
        parent => parent[field] = value,
    }
}
