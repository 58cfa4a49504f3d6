//! The rules over several fields that API servers evaluate (CEL), beside what our own reading says of the same objects: what a cluster
//! takes must be what a folder takes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cel::{Context, Env};
use serde_json::{Value, json};

use super::{definitions, is_taken, specimen};

/// An object of each kind that every rule is about, and that all of them take.
const GOOD: [(&str, &str); 4] = [
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
];

/// A change of the good object: the kind (none: each), where, what stands there then, and the rules that refuse it.
type Case = (&'static str, &'static str, &'static str, &'static [&'static str]);

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
const FAULT: &str = "spec.rules[]: at least one of delay and abort";
const ABORT: &str = "spec.rules[].abort: exactly one of httpStatus and grpcStatus";

const CASES: &[Case] = &[
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
];

/// A value as rules see it: with defaults, and without what is null.
fn seen(schema: &Value, value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut all: serde_json::Map<String, Value> = fields.clone();
            all.retain(|_, value| !value.is_null());
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                if !field["default"].is_null() {
                    all.entry(name.as_str()).or_insert_with(|| field["default"].clone());
                }
            }
            let all = all.into_iter().map(|(name, value)| {
                let value = seen(&schema["properties"][&name], &value);
                (name, value)
            });
            Value::Object(all.collect())
        }
        Value::Array(items) => items.iter().map(|item| seen(&schema["items"], item)).collect(),
        other => other.clone(),
    }
}

/// Calls `each` for every rule, by its path and message, with what it is about in `value`; with nothing where `value` has no such field.
fn walk(
    schema: &Value,
    value: Option<&Value>,
    path: &str,
    each: &mut impl FnMut(String, &str, Option<&Value>),
) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let named = format!("{path}: {}", rule["message"].as_str().unwrap());
        each(named, rule["rule"].as_str().unwrap(), value);
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        walk(field, value.and_then(|value| value.get(name)), &path, each);
    }
    if schema["items"].is_object() {
        let path = format!("{path}[]");
        let items = value.and_then(Value::as_array).filter(|items| !items.is_empty());
        for item in items.into_iter().flatten() {
            walk(&schema["items"], Some(item), &path, each);
        }
        if items.is_none() {
            walk(&schema["items"], None, &path, each);
        }
    }
}

#[test]
fn an_api_servers_rules_refuse_what_our_reading_refuses() {
    let env = Arc::new(Env::stdlib());
    let schemas: BTreeMap<String, Value> = definitions()
        .into_iter()
        .map(|mut definition| {
            let kind = definition["spec"]["names"]["kind"].as_str().unwrap().to_owned();
            (kind, definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take())
        })
        .collect();
    let mut rules = BTreeSet::new();
    for (kind, schema) in &schemas {
        walk(schema, None, "", &mut |named, _, _| {
            rules.insert((kind.as_str(), named));
        });
    }
    assert!(!rules.is_empty());
    let (mut held, mut refused) = (BTreeSet::new(), BTreeSet::new());
    let mut judge = |kind: &'static str, object: &Value, expected: &BTreeSet<&str>| {
        let schema = &schemas[kind];
        let mut broken = BTreeSet::new();
        walk(schema, Some(&seen(schema, object)), "", &mut |named, rule, value| {
            let Some(value) = value else { return };
            let program = env.compile(rule).unwrap_or_else(|error| panic!("{named}: {error}"));
            let mut context = Context::with_env(Arc::clone(&env));
            context.add_variable("self", value.clone()).unwrap();
            match program.execute(&context) {
                Ok(cel::Value::Bool(true)) => held.insert((kind, named)),
                Ok(cel::Value::Bool(false)) => broken.insert(named),
                other => panic!("{kind} {named}: {other:?} of {value}"),
            };
        });
        assert_eq!(
            broken.iter().map(String::as_str).collect::<BTreeSet<_>>(),
            *expected,
            "{kind}: {object:#}"
        );
        assert_eq!(is_taken(object), broken.is_empty(), "our reading: {kind}: {object:#}");
        refused.extend(broken.into_iter().map(|named| (kind, named)));
    };
    for (kind, spec) in GOOD {
        judge(kind, &specimen(kind, spec), &BTreeSet::new());
        for (of, at, text, expected) in CASES {
            if of.is_empty() || *of == kind {
                let mut object = specimen(kind, spec);
                set(&mut object, at, serde_json::from_str(text).unwrap());
                judge(kind, &object, &expected.iter().copied().collect());
            }
        }
    }
    for (what, judged) in [("refuses nothing", refused), ("takes nothing", held)] {
        let silent: Vec<_> = rules.difference(&judged).collect();
        assert_eq!(silent, Vec::<&(&str, String)>::new(), "{what} of what stands above");
    }
}

/// Also where nothing stands yet.
fn set(object: &mut Value, at: &str, value: Value) {
    let (parent, field) = at.rsplit_once('/').unwrap();
    match object.pointer_mut(parent).unwrap() {
        Value::Array(items) => items[field.parse::<usize>().unwrap()] = value,
        parent => parent[field] = value,
    }
}

#[test]
fn what_is_null_or_left_out_is_as_its_default() {
    let schema = json!({"properties": {
        "a": {"default": 1}, "b": {"nullable": true}, "c": {"items": {"properties": {"d": {"default": {}, "properties": {"e": {"default": 2}}}}}},
    }});
    let value = json!({"a": null, "b": null, "c": [{}]});
    assert_eq!(seen(&schema, &value), json!({"a": 1, "c": [{"d": {"e": 2}}]}));
}
