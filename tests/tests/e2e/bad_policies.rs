//! Policies that should not be: told with place and remedy by `tulle check` and by the control plane that runs, while what was in force
//! stays, and everybody else's too.

use std::fmt::Write as _;

use serde_json::Value;
use tulle_tests::{Folder, Program, Wire, World, binary, eventually};

/// What becomes of a policy that is written so.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    /// It is refused: what it said before holds.
    Refused,
    /// It is taken, with a warning.
    Warned,
}
use Then::{Refused, Warned};

/// The kind, its spec but for `targetRefs`, the field that is told, a part of the message.
type Case = (&'static str, &'static str, &'static str, &'static str, Then);

const TRAFFIC: &str = "TrafficPolicy";
const LIMIT: &str = "RateLimitPolicy";
const FAULT: &str = "FaultPolicy";
const TELEMETRY: &str = "TelemetryPolicy";

const CASES: &[Case] = &[
    // Budgets and retries.
    (
        TRAFFIC,
        "retryBudget: {percent: 0, minimumRetryRate: {count: 0}}",
        "retryBudget",
        "requests are never sent again but as without",
        Warned,
    ),
    (TRAFFIC, "retryBudget: {percent: 101}", "retryBudget.percent", "101 is out of bounds", Refused),
    (TRAFFIC, "retryBudget: {percent: -1}", "retryBudget.percent", "-1 is out of bounds", Refused),
    (TRAFFIC, "retryBudget: {percent: 2.5}", "retryBudget.percent", "must be a whole number", Refused),
    (TRAFFIC, "retryBudget: {percent: 20%}", "retryBudget.percent", "the text `20%`", Refused),
    (TRAFFIC, "retryBudget: {interval: 0s}", "retryBudget.interval", "`0s` is too short", Refused),
    (
        TRAFFIC,
        "{retry: {backoff: {base: 2s}}, timeouts: {request: 1s}}",
        "retry.backoff.base",
        "there is never time for a retry",
        Warned,
    ),
    (
        TRAFFIC,
        "retry: {backoff: {base: 2s, maximum: 1s}}",
        "retry.backoff.maximum",
        "shorter than `base`",
        Refused,
    ),
    (TRAFFIC, "retry: {attempts: 101}", "retry.attempts", "101 is out of bounds", Refused),
    (TRAFFIC, "retry: {attempts: 1e400}", "retry.attempts", "whole number", Refused),
    (TRAFFIC, "retry: {attempts: 99999999999999999999}", "retry.attempts", "whole number", Refused),
    (TRAFFIC, "retry: {maximumBodyBytes: 2147483648}", "retry.maximumBodyBytes", "2147483648", Refused),
    (TRAFFIC, "retry: {statuses: [200]}", "retry.statuses[0]", "200 is out of bounds", Refused),
    (TRAFFIC, "retry: {grpcCodes: [BROKEN]}", "retry.grpcCodes[0]", "`BROKEN` is none of", Refused),
    (TRAFFIC, "{timeouts: {request: 1s, perTry: 2s}}", "timeouts.perTry", "may not last longer", Refused),
    // Limits.
    (
        TRAFFIC,
        "limits: {maximumConnections: 0}",
        "limits.maximumConnections",
        "0 would let nothing through",
        Refused,
    ),
    (
        TRAFFIC,
        "limits: {maximumRequestsPerEndpoint: -5}",
        "limits.maximumRequestsPerEndpoint",
        "-5 would let nothing",
        Refused,
    ),
    (TRAFFIC, "limits: {maximumPending: 99999999999}", "limits.maximumPending", "99999999999", Refused),
    (TRAFFIC, "limits: {maximumRequests: .nan}", "limits.maximumRequests", "whole number", Refused),
    (
        LIMIT,
        "limits: [{rate: {requests: 0}}]",
        "limits[0].rate.requests",
        "0 would let nothing through",
        Refused,
    ),
    (
        LIMIT,
        "limits: [{rate: {requests: 5, burst: 0}}]",
        "limits[0].rate.burst",
        "0 is out of bounds",
        Refused,
    ),
    (LIMIT, "limits: [{rate: {requests: 5, per: 0s}}]", "limits[0].rate.per", "`0s` is too short", Refused),
    (
        LIMIT,
        "limits: [{rate: {requests: 2147483647, per: 1ms}}]",
        "limits[0].rate.requests",
        "more than one each nanosecond",
        Refused,
    ),
    (LIMIT, "limits: []", "limits", "the policy limits nothing", Refused),
    (LIMIT, "limits: [{by: {}, rate: {requests: 5}}]", "limits[0].by", "it is not clear", Refused),
    // Load balancing and outliers.
    (
        TRAFFIC,
        "loadBalancer: {algorithm: Fastest}",
        "loadBalancer.algorithm",
        "`Fastest` is none of",
        Refused,
    ),
    (
        TRAFFIC,
        "loadBalancer: {algorithm: Maglev}",
        "loadBalancer.hashOn",
        "needs to know what it goes by",
        Refused,
    ),
    (TRAFFIC, "loadBalancer: {hashOn: [{header: a}]}", "loadBalancer.hashOn", "goes by no hash", Refused),
    (
        TRAFFIC,
        "loadBalancer: {algorithm: RingHash, hashOn: [{header: a, cookie: b}]}",
        "loadBalancer.hashOn[0]",
        "not clear what is hashed",
        Refused,
    ),
    (
        TRAFFIC,
        "loadBalancer: {panicThresholdPercent: 101}",
        "loadBalancer.panicThresholdPercent",
        "101 is out of bounds",
        Refused,
    ),
    (
        TRAFFIC,
        "loadBalancer: {algoritm: Maglev}",
        "loadBalancer.algoritm",
        "is not known and is ignored",
        Warned,
    ),
    (TRAFFIC, "outlierDetection: {}", "outlierDetection", "no criterion", Refused),
    (
        TRAFFIC,
        "outlierDetection: {successRate: {standardDeviations: .nan}}",
        "outlierDetection.successRate.standardDeviations",
        "",
        Refused,
    ),
    (
        TRAFFIC,
        "outlierDetection: {successRate: {standardDeviations: 1e400}}",
        "outlierDetection.successRate.standardDeviations",
        "",
        Refused,
    ),
    (
        TRAFFIC,
        "outlierDetection: {consecutive5xx: 5, ejectionTime: 1h}",
        "outlierDetection.maximumEjectionTime",
        "shorter than `ejectionTime`",
        Refused,
    ),
    (TRAFFIC, "healthCheck: {interval: 1s}", "healthCheck", "not clear how endpoints are asked", Refused),
    // Faults.
    (
        FAULT,
        "rules: [{abort: {percent: 101, httpStatus: 503}}]",
        "rules[0].abort.percent",
        "101 is out of bounds",
        Refused,
    ),
    (
        FAULT,
        "rules: [{abort: {percent: -0.1, httpStatus: 503}}]",
        "rules[0].abort.percent",
        "-0.1 is out of bounds",
        Refused,
    ),
    (FAULT, "rules: [{abort: {percent: .nan, httpStatus: 503}}]", "rules[0].abort.percent", "", Refused),
    (FAULT, "rules: [{abort: {percent: 1e400, httpStatus: 503}}]", "rules[0].abort.percent", "", Refused),
    (
        FAULT,
        "rules: [{abort: {httpStatus: 99}}]",
        "rules[0].abort.httpStatus",
        "99 is out of bounds",
        Refused,
    ),
    (
        FAULT,
        "rules: [{abort: {httpStatus: 503, grpcStatus: UNAVAILABLE}}]",
        "rules[0].abort",
        "not clear what the answer is",
        Refused,
    ),
    (FAULT, "rules: [{}]", "rules[0]", "nothing goes wrong", Refused),
    (FAULT, "rule: [{abort: {httpStatus: 503}}]", "", "`rules`", Refused),
    // What is told.
    (
        TELEMETRY,
        "tracing: {sampling: {percent: 101}}",
        "tracing.sampling.percent",
        "101 is out of bounds",
        Refused,
    ),
    (
        TELEMETRY,
        "tracing: {sampling: {percent: 0.00001}}",
        "tracing.sampling.percent",
        "so little that it is never",
        Refused,
    ),
    (TELEMETRY, "tracing: {sampling: {percent: 5%}}", "tracing.sampling.percent", "the text `5%`", Refused),
    (
        TELEMETRY,
        "tracing: {sampling: {parentBased: maybe}}",
        "tracing.sampling.parentBased",
        "the text `maybe`",
        Refused,
    ),
    (TELEMETRY, "tracing: {sampling: {}}", "", "the policy says nothing", Warned),
    (TELEMETRY, "accessLog: {format: xml}", "accessLog.format", "`xml` is none of", Refused),
    (TELEMETRY, "accessLog: {statuses: ['600']}", "accessLog.statuses[0]", "`600` is no status", Refused),
    // Times.
    (TRAFFIC, "timeouts: {request: 10}", "timeouts.request", "the number 10", Refused),
    (TRAFFIC, "timeouts: {request: '10'}", "timeouts.request", "`10` is not a duration", Refused),
    (TRAFFIC, "timeouts: {request: 1.5s}", "timeouts.request", "`1.5s` is not a duration", Refused),
    (TRAFFIC, "timeouts: {request: -1s}", "timeouts.request", "`-1s` is not a duration", Refused),
    (TRAFFIC, "timeouts: {request: 1d}", "timeouts.request", "`1d` is not a duration", Refused),
    (TRAFFIC, "timeouts: {request: 5us}", "timeouts.request", "`5us` is not a duration", Refused),
    (TRAFFIC, "timeouts: {request: '1 s'}", "timeouts.request", "`1 s` is not a duration", Refused),
    (TRAFFIC, "timeouts: {request: ''}", "timeouts.request", "`` is not a duration", Refused),
    (TRAFFIC, "timeouts: {request: PT5S}", "timeouts.request", "`PT5S` is not a duration", Refused),
    (TRAFFIC, "timeouts: {request: 100000h}", "timeouts.request", "`100000h` is not a duration", Refused),
    (TRAFFIC, "timeouts: {request: 1h1m1s1ms1h}", "timeouts.request", "is not a duration", Refused),
    (TRAFFIC, "timeouts: {request: null, idle: [1s]}", "timeouts.idle", "a list", Refused),
    (TRAFFIC, "timeouts: {deadlineHeader: 'a b'}", "timeouts.deadlineHeader", "`a b`", Refused),
];

/// What is in force before, by kind.
fn good(kind: &str) -> &'static str {
    match kind {
        TRAFFIC => "timeouts: {request: 7s}",
        LIMIT => "limits: [{rate: {requests: 7}}]",
        TELEMETRY => "tracing: {sampling: {percent: 7}}",
        _ => "rules: [{delay: {percent: 7, duration: 7s}}]",
    }
}

/// A policy on the Service of its own name.
fn policy(kind: &str, name: &str, spec: &str) -> String {
    let spec = spec.strip_prefix('{').and_then(|spec| spec.strip_suffix('}')).unwrap_or(spec);
    let direction = if kind == LIMIT { "direction: Outbound, " } else { "" };
    format!(
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: default}}\nspec: {{targetRefs: [{{group: '', \
         kind: Service, name: {name}}}], {direction}{spec}}}\n"
    )
}

/// What the control plane tells proxies of a Service; nothing where there is none.
async fn resource(world: &World, name: &str) -> Vec<u8> {
    let mut wire = Wire::connect(world.metrics_address()).await;
    let path = format!("/resources/Service/default/{name}");
    wire.send(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")).await;
    wire.response().await.1
}

/// The same, once it is no longer `before`.
async fn changed(world: &World, name: &str, before: &[u8]) -> Vec<u8> {
    eventually(&format!("the Service {name} is another"), async || {
        let now = resource(world, name).await;
        if now == before { Err("it is as before".to_owned()) } else { Ok(now) }
    })
    .await
}

/// Exit status and answer of `tulle check -o json`.
fn check(folder: &std::path::Path) -> (i32, Value) {
    let output = Program::new("check", binary("tulle"))
        .arg("check")
        .flag("--config-dir", folder)
        .flag("-o", "json")
        .output();
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

/// The finding of `object` at `field` that has this message.
fn finding<'f>(checked: &'f Value, object: &str, field: &str, message: &str) -> &'f Value {
    let is_it = |one: &&Value| {
        one["object"] == object
            && one["field"].as_str().unwrap_or_default() == field
            && one["message"].as_str().unwrap().contains(message)
    };
    let findings = checked["findings"].as_array().unwrap();
    findings.iter().find(is_it).unwrap_or_else(|| panic!("{object}: {field}: {message}: {checked:#}"))
}

fn services(names: impl Iterator<Item = String>) -> String {
    names.fold(String::new(), |mut all, name| {
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: NAME, namespace: default}\nspec: {clusterIP: None, ports: [{name: main, port: 80, appProtocol: http}]}";
        writeln!(all, "---\n{}", service.replace("NAME", &name)).unwrap();
        all
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_policy_is_told_with_place_and_remedy_and_what_was_in_force_stays() {
    let long = format!(
        "limits: [{{by: {{header: a}}, rate: {{requests: 5}}, overrides: [{}]}}]",
        "{values: [a], rate: {requests: 1}}, ".repeat(100_000)
    );
    let deep = format!("limits: {}{}", "[".repeat(20_000), "]".repeat(20_000));
    let mut cases: Vec<(&str, &str, String, &str, Then)> = Vec::new();
    cases.extend(
        CASES
            .iter()
            .map(|(kind, spec, field, message, then)| (*kind, *spec, (*field).to_owned(), *message, *then)),
    );
    cases.push((LIMIT, &long, "limits[0].overrides".to_owned(), "100000 entries: more than the 64", Refused));
    let world = World::strict().await;
    let name = |i: usize| format!("case-{i}");
    let mut names: Vec<String> = (0..cases.len()).map(name).collect();
    names.extend(["deep".to_owned(), "bystander".to_owned()]);
    world.yaml("services.yaml", &services(names.iter().cloned()));
    let mut bare = Vec::new();
    for name in &names {
        bare.push(changed(&world, name, &[]).await);
    }
    for (i, (kind, ..)) in cases.iter().enumerate() {
        world.yaml(&format!("{i}.yaml"), &policy(kind, &name(i), good(kind)));
    }
    world.yaml("deep.yaml", &policy(LIMIT, "deep", good(LIMIT)));
    world.yaml("bystander.yaml", &policy(TRAFFIC, "bystander", "timeouts: {request: 3s}"));
    let (status, checked) = check(&world.config_folder());
    assert_eq!((status, &checked["findings"]), (0, &serde_json::json!([])), "all is good: {checked:#}");
    let mut before = Vec::new();
    for (name, bare) in names.iter().zip(&bare) {
        before.push(changed(&world, name, bare).await);
    }

    let (alone, mut silent) = (Folder::new(), Vec::new());
    for (i, (kind, spec, field, message, then)) in cases.iter().enumerate() {
        let text = policy(kind, &name(i), spec);
        // By itself, so that its exit status is its own.
        let folder = alone.path(&name(i));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("all.yaml"), format!("{text}{}", services([name(i)].into_iter())))
            .unwrap();
        let (status, checked) = check(&folder);
        assert_eq!(status, i32::from(*then == Refused), "{kind}: {field}: {checked:#}");
        let field = if field.is_empty() { "spec".to_owned() } else { format!("spec.{field}") };
        let object = format!("{kind} default/{}", name(i));
        let told = finding(&checked, &object, &field, message);
        assert_eq!(told["severity"], if *then == Refused { "error" } else { "warning" }, "{told}");
        assert!(told["line"].is_u64() && told["file"].as_str().unwrap().ends_with("all.yaml"), "{told}");
        if told["hint"].as_str().is_none_or(str::is_empty) {
            silent.push(told.to_string());
        }
        world.yaml(&format!("{i}.yaml"), &text);
    }
    assert!(silent.is_empty(), "no remedy: {silent:#?}");
    world.yaml("deep.yaml", &policy(LIMIT, "deep", &deep));

    for (i, (kind, _, field, message, _)) in cases.iter().enumerate() {
        let object = format!("{kind} default/{}", name(i));
        world.control_plane_says(&[&object, field, message]).await;
    }
    world.control_plane_says(&["deep.yaml", "recursion limit exceeded"]).await;
    for (i, (name, before)) in names.iter().zip(&before).enumerate() {
        if cases.get(i).is_some_and(|case| case.4 == Warned) {
            changed(&world, name, before).await;
        } else {
            assert_eq!(resource(&world, name).await, *before, "{name} has lost what was in force");
        }
    }
    // What is mended is taken.
    let mended = cases.len() - 1;
    world.yaml(&format!("{mended}.yaml"), &policy(LIMIT, &name(mended), "limits: [{rate: {requests: 9}}]"));
    changed(&world, &names[mended], &before[mended]).await;
    // All the others at once tell no less than each by itself.
    let (status, checked) = check(&world.config_folder());
    assert_eq!(status, 1);
    assert!(checked["findings"].as_array().unwrap().len() > cases.len(), "{checked:#}");
}

/// `metadata`, `targetRefs`, and conditions at the first target, the field of a finding and a part of its message, if there is one.
type Attachment = (&'static str, &'static str, &'static str, &'static str, &'static str);

const ATTACHMENTS: &[Attachment] = &[
    ("name: nothing", "", "", "spec.targetRefs", "the policy is attached to nothing"),
    (
        "name: foreign",
        "{kind: Pod, name: shop}",
        "",
        "spec.targetRefs[0].kind",
        "cannot be attached to a `Pod`",
    ),
    (
        "name: group",
        "{group: apps, kind: Service, name: shop}",
        "",
        "spec.targetRefs[0].group",
        "`apps` has no kind Service",
    ),
    (
        "name: abroad",
        "{kind: Service, name: shop, namespace: other}",
        "",
        "spec.targetRefs[0].namespace",
        "in the namespace `other`",
    ),
    (
        "name: absent",
        "{kind: Service, name: shoq}",
        "TargetNotFound",
        "spec.targetRefs[0].name",
        "there is no Service default/shoq",
    ),
    (
        "name: portless",
        "{kind: Service, name: shop, sectionName: mian}",
        "TargetNotFound",
        "spec.targetRefs[0].sectionName",
        "has no port called `mian`",
    ),
    (
        "name: ruleless",
        "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop, sectionName: a}",
        "TargetNotFound",
        "spec.targetRefs[0].sectionName",
        "has no rule called `a`",
    ),
    (
        "name: routeless",
        "{group: gateway.networking.k8s.io, kind: GRPCRoute, name: shop}",
        "TargetNotFound",
        "spec.targetRefs[0].name",
        "there is no GRPCRoute default/shop",
    ),
    // On the same port: the oldest holds.
    (
        "name: old, creationTimestamp: '2024-01-01T00:00:00Z'",
        "{kind: Service, name: shop, sectionName: main}",
        "Accepted Programmed",
        "",
        "",
    ),
    (
        "name: elder, creationTimestamp: '2024-01-01T00:00:00Z'",
        "{kind: Service, name: two}",
        "Accepted Programmed",
        "",
        "",
    ),
    (
        "name: young, creationTimestamp: '2025-01-01T00:00:00Z'",
        "{kind: Service, name: shop, sectionName: main}",
        "Conflicted",
        "spec.targetRefs[0]",
        "TrafficPolicy default/old is attached to Service default/shop, `main`, too and holds, being older",
    ),
    // Of the same age: the first by name.
    (
        "name: elder-too, creationTimestamp: '2024-01-01T00:00:00Z'",
        "{kind: Service, name: two}",
        "Conflicted",
        "spec.targetRefs[0]",
        "TrafficPolicy default/elder is attached to Service default/two too and holds, being the first by name",
    ),
    // Less specific: what is said for the port is not said by this one.
    (
        "name: whole",
        "{kind: Service, name: shop}",
        "Accepted Overridden",
        "spec.targetRefs[0]",
        "`timeouts.request` at port 80 by TrafficPolicy default/old",
    ),
    // Two ports, of which one is named: the other is left to the Service's.
    ("name: half", "{kind: Service, name: pair}", "Accepted PartiallyProgrammed", "", ""),
    ("name: port", "{kind: Service, name: pair, sectionName: one}", "Accepted Programmed", "", ""),
];

#[test]
fn where_a_policy_holds_and_which_one_holds_instead_is_told() {
    let folder = Folder::new();
    let config = folder.path("all");
    std::fs::create_dir(&config).unwrap();
    let mut text = services(["shop", "two"].map(str::to_owned).into_iter());
    text += "---\napiVersion: v1\nkind: Service\nmetadata: {name: pair}\nspec: {ports: [{name: one, port: 80, appProtocol: http}, {name: two, port: 81, appProtocol: http}]}\n\
             ---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: shop}\nspec: {parentRefs: [{group: '', kind: Service, name: shop}], rules: [{backendRefs: [{name: shop, port: 80}]}]}\n";
    for (metadata, targets, ..) in ATTACHMENTS {
        writeln!(
            text,
            "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{{metadata}}}\nspec: {{targetRefs: [{targets}], timeouts: {{request: 3s}}}}"
        )
        .unwrap();
    }
    std::fs::write(config.join("all.yaml"), text).unwrap();
    let (status, checked) = check(&config);
    assert_eq!(status, 1);
    let policies = checked["policies"].as_array().unwrap();
    for (metadata, _, conditions, field, message) in ATTACHMENTS {
        let name = metadata.strip_prefix("name: ").unwrap().split(',').next().unwrap();
        if !field.is_empty() {
            let told = finding(&checked, &format!("TrafficPolicy default/{name}"), field, message);
            assert!(told["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "no remedy: {told}");
        }
        let policy = policies.iter().find(|policy| policy["name"] == name);
        let Some(policy) = policy else {
            assert_eq!(*conditions, "", "{name} is refused: {checked:#}");
            continue;
        };
        let reasons = policy["ancestors"][0]["conditions"].as_array().unwrap().iter();
        let reasons: Vec<&str> = reasons.map(|one| one["reason"].as_str().unwrap()).collect();
        assert_eq!(reasons.join(" "), *conditions, "{name}: {policy:#}");
    }
}

#[test]
fn where_a_policy_holds_for_workloads_is_told() {
    let folder = Folder::new();
    let config = folder.path("all");
    std::fs::create_dir(&config).unwrap();
    let of = |name: &str, created: &str, targets: &str| {
        format!(
            "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: {TELEMETRY}\nmetadata: {{name: {name}, namespace: shop, creationTimestamp: \
             '{created}-01-01T00:00:00Z'}}\nspec: {{{targets}accessLog: {{format: ecs}}}}\n"
        )
    };
    let web = "targetRefs: [{group: policy.tulle.dev, kind: Workload, name: web}], ";
    let text = [
        of("web", "2024", web),
        of("web-too", "2025", web),
        of("all", "2024", ""),
        of("all-too", "2025", ""),
        of("port", "2024", &web.replace("web}", "web, sectionName: http}")),
    ];
    std::fs::write(config.join("all.yaml"), text.concat()).unwrap();
    let output = Program::new("check", binary("tulle")).arg("check").flag("--config-dir", &config).output();
    let shown = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    for line in [
        "TelemetryPolicy shop/web at Workload shop/web: Accepted, Programmed",
        "TelemetryPolicy shop/all at Namespace shop: Accepted, Programmed",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    let (status, checked) = check(&config);
    assert_eq!(status, 1);
    for (name, field, message) in [
        ("web-too", "spec.targetRefs[0]", "web is attached to Workload shop/web too and holds, being older"),
        ("all-too", "spec", "all is attached to Namespace shop too and holds, being older"),
        ("port", "spec.targetRefs[0].sectionName", "a workload has neither ports nor rules"),
    ] {
        let told = finding(&checked, &format!("{TELEMETRY} shop/{name}"), field, message);
        assert!(told["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "no remedy: {told}");
    }
}
