//! The command as its users run it: arguments in, output and exit status out.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::SystemTime;

use tulle_api::ResourceType;
use tulle_certs::TrustDomain;
use tulle_certs::token::TokenFile;
use tulle_control_plane::ca::Ca;
use tulle_control_plane::index::Index;
use tulle_control_plane::model::{Model, Settings};
use tulle_control_plane::source::Folder;
use tulle_proxy::control::decode::{Decoded, decode, rejections};

fn tulle(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tulle")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[test]
fn version_is_one_line_or_one_object() {
    let output = tulle(&["version"]);
    assert_eq!((status(&output), stdout(&output)), (0, format!("tulle {}\n", env!("CARGO_PKG_VERSION"))));
    let json: serde_json::Value = serde_json::from_str(&stdout(&tulle(&["version", "-o", "json"]))).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(stdout(&tulle(&["--version"])), stdout(&output));
}

#[test]
fn a_reason_is_explained_and_one_that_there_is_not_brings_near_ones() {
    let output = tulle(&["explain", "no_healthy_endpoint"]);
    let text = stdout(&output);
    assert_eq!(status(&output), 0);
    for part in [
        "no_healthy_endpoint: the backend has no",
        "HTTP status: 503",
        "gRPC status: 14 UNAVAILABLE",
        "Cause: ",
        "What to do: ",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let output = tulle(&["explain", "tls_expired", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&json["reason"], &json["status"]), (&"tls_expired".into(), &serde_json::Value::Null));
    assert_eq!((&json["grpc_status"], &json["grpc_status_name"]), (&14.into(), &"UNAVAILABLE".into()));
    assert!(json["cause"].is_string() && json["remedy"].is_string() && json["message"].is_string(), "{json}");
    let output = tulle(&["explain", "conect-failed"]);
    assert_eq!((status(&output), stdout(&output)), (2, String::new()));
    assert!(stderr(&output).contains("did you mean connect_failed?"), "{}", stderr(&output));
    // Without a reason, what a request needs is asked for.
    let output = tulle(&["explain"]);
    assert!(status(&output) == 2 && stderr(&output).contains("--from"), "{}", stderr(&output));
}

#[test]
fn completion_knows_the_verbs_of_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = tulle(&["completion", shell]);
        assert_eq!(status(&output), 0, "{shell}");
        for verb in ["demo", "check", "identity", "token"] {
            assert!(stdout(&output).contains(verb), "{shell}: {verb}");
        }
    }
    assert_eq!(status(&tulle(&["completion", "cobol"])), 2);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tulle"))
        .args(["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((status(&output), stderr(&output)), (0, String::new()));
}

#[test]
fn wrong_arguments_are_2_and_say_what_is_meant() {
    let two_things = ["check", "--pre", "--config-dir", "mesh"];
    for arguments in [&["dmeo"][..], &["demo", "--for", "10"], &["demo", "--rps", "0"], &two_things, &[]] {
        assert_eq!(status(&tulle(arguments)), 2, "{arguments:?}");
    }
    assert!(stderr(&tulle(&["demo", "--for", "10"])).contains("a number with a unit"));
    assert!(stderr(&tulle(&["dmeo"])).contains("demo"));
}

#[test]
fn help_has_examples_and_exit_status_and_hides_the_internals() {
    assert!(!stdout(&tulle(&["--help"])).contains("internal"));
    for verb in [
        &["demo"][..],
        &["check"],
        &["identity"],
        &["token", "create"],
        &["token", "list"],
        &["token", "revoke"],
    ] {
        let help = stdout(&tulle(&[verb, &["--help"]].concat()));
        assert!(help.contains("Examples:") && help.contains("Exit status:"), "{verb:?}: {help}");
    }
}

fn check(folder: &Path, more: &[&str]) -> Output {
    tulle(&[&["check", "--config-dir", folder.to_str().unwrap()], more].concat())
}

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  ports: [{port: 80}]
";

#[test]
fn check_of_a_cluster_that_does_not_answer_says_where_it_should_be() {
    // Bound, and never listened at.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "a",
        "clusters": [{"name": "a", "cluster": {"server": format!("https://127.0.0.1:{port}")}}],
        "users": [{"name": "a", "user": {}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
    });
    fs::write(&file, config.to_string()).unwrap();
    let file = file.to_str().unwrap();
    for stage in [&[][..], &["--pre"]] {
        let output = tulle(&[&["check", "--kubeconfig", file, "-o", "json"], stage].concat());
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((status(&output), &json["errors"]), (1, &1.into()), "{json}");
        let check = &json["checks"][0];
        assert_eq!((&check["name"], &check["status"]), (&"api-server".into(), &"error".into()));
        assert!(check["message"].as_str().unwrap().contains(&format!("127.0.0.1:{port}")), "{check}");
        assert_eq!(check["link"], "docs/reference/checks.md#api-server");
    }
    let output = tulle(&["check", "--kubeconfig", file, "--context", "b"]);
    assert_eq!(status(&output), 1);
    assert!(
        stdout(&output).contains("error    api-server  there is no cluster to look at"),
        "{}",
        stdout(&output)
    );
    assert!(stdout(&output).contains("there is no context `b`; there are: a"), "{}", stdout(&output));
    assert!(stdout(&output).ends_with("1 error, 0 warnings\n"), "{}", stdout(&output));
}

#[test]
fn what_is_wrong_with_a_long_argument_is_told_without_all_of_it() {
    let long = "x".repeat(20_000);
    let long = long.as_str();
    for (arguments, expected) in
        [(&["demo", "--for", long][..], 2), (&["check", long], 2), (&["check", "--config-dir", long], 1)]
    {
        let output = tulle(arguments);
        assert_eq!(status(&output), expected, "{}", arguments[0]);
        let said = stderr(&output) + &stdout(&output);
        assert!(said.contains("xxx") && said.contains('…') && said.len() < 3_000, "{}", said.len());
    }
}

#[test]
fn check_without_a_kubeconfig_says_what_to_set() {
    for more in [&[][..], &["--context", "a"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_tulle"))
            .args([&["check"], more].concat())
            .env_remove("KUBECONFIG")
            .env_remove("HOME")
            .env_remove("KUBERNETES_SERVICE_HOST")
            .output()
            .unwrap();
        assert_eq!(status(&output), 1, "{}", stderr(&output));
        let said = stdout(&output);
        assert!(said.contains("there is no cluster to look at: no kubeconfig is named"), "{said}");
        assert!(said.contains("set KUBECONFIG to its path, or HOME"), "{said}");
    }
}

#[test]
fn check_of_a_good_folder_is_0() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("web.yaml"), SERVICE).unwrap();
    let output = check(folder.path(), &[]);
    assert_eq!((status(&output), stdout(&output)), (0, "ok: nothing found\n".to_owned()));
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&check(folder.path(), &["-o", "json"]))).unwrap();
    assert_eq!(
        json,
        serde_json::json!({ "ok": true, "errors": 0, "warnings": 0, "findings": [], "routes": [], "policies": [] })
    );
}

#[test]
fn check_of_a_broken_folder_is_1_with_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("web.yaml"), SERVICE.replace("port: 80", "port: 80000")).unwrap();
    let output = check(folder.path(), &[]);
    assert_eq!(status(&output), 1);
    let expected = format!("{}:5:", folder.path().join("web.yaml").display());
    assert!(stdout(&output).contains(&expected), "{}", stdout(&output));
    assert!(stdout(&output).contains("error: Service shop/web: spec.ports[0].port"), "{}", stdout(&output));
    assert!(stdout(&output).ends_with("1 error, 0 warnings\n"), "{}", stdout(&output));
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&check(folder.path(), &["-o", "json"]))).unwrap();
    assert_eq!((&json["ok"], &json["findings"][0]["line"]), (&false.into(), &5.into()));
}

const POLICIES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: orders}
spec:
  ports: [{name: http, port: 80}, {name: admin, port: 81}]
---
apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: old, creationTimestamp: '2024-01-01T00:00:00Z'}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  limits: {maximumRequests: 10}
---
apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: new}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}, {group: '', kind: Service, name: order}]
  limits: {maximumRequests: 20}
---
apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: port}
spec:
  targetRefs: [{group: '', kind: Service, name: orders, sectionName: http}]
  limits: {maximumRequests: 30}
---
apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: broken}
spec:
  targetRefs: [{group: '', kind: Service, name: orders, sectionName: admin}]
  loadBalancer: {algorithm: Fastest}
---
apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: never}
spec:
  targetRefs: [{group: '', kind: Service, name: orders, sectionName: admin}]
  timeouts: {request: 1s}
  retry: {backoff: {base: 1s}}
";

#[test]
fn check_tells_which_policy_holds_which_does_not_and_what_is_wrong_with_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), POLICIES).unwrap();
    let output = check(folder.path(), &[]);
    let text = stdout(&output);
    assert_eq!(status(&output), 1, "{text}");
    for told in [
        "a.yaml:18:16: error: TrafficPolicy default/new: spec.targetRefs[0]: TrafficPolicy default/old is attached to Service \
         default/orders too and holds, being older; nothing of this policy holds there (",
        "TrafficPolicy default/new: spec.targetRefs[1].name: there is no Service default/order; the policy is not attached there (",
        "a.yaml:33:18: error: TrafficPolicy default/broken: spec.loadBalancer.algorithm: `Fastest` is none of the values that \
         there are: `PeakEwma`, `LeastRequest`, `RoundRobin`, `Random`, `RingHash`, `Maglev` (",
        "TrafficPolicy default/broken: until it is mended its last good version holds; without one, its targets are treated as",
        "warning: TrafficPolicy default/never: spec.retry.backoff.base: as long as the whole request may take, or longer: there is never time",
        "\nTrafficPolicy default/old at Service default/orders: Accepted, Programmed (PartiallyProgrammed)\n",
        "\nTrafficPolicy default/new at Service default/orders: not Accepted (Conflicted)\n",
        "\nTrafficPolicy default/new at Service default/order: not Accepted (TargetNotFound)\n",
        "\nTrafficPolicy default/port at Service default/orders (http): Accepted, Programmed\n",
        "\n4 errors, 1 warning\n",
    ] {
        assert!(text.contains(told), "{told}\n\nis not in\n\n{text}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&check(folder.path(), &["-o", "json"]))).unwrap();
    let policies = json["policies"].as_array().unwrap();
    let names: Vec<&str> = policies.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["never", "new", "old", "port"]);
    let held = &policies[2]["ancestors"][0];
    assert_eq!(held["ancestorRef"]["name"], "orders");
    assert_eq!(held["conditions"][1]["message"], "`limits` at port 80 by TrafficPolicy default/port");
}

/// Everything at once, as much and as little of it as is allowed.
const EXTREMES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: orders}
spec:
  trafficDistribution: PreferClose
  ports: [{name: http, port: 80}, {name: admin, port: 81}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orders-1, labels: {kubernetes.io/service-name: orders}, annotations: {tulle.dev/weight: '1000', tulle.dev/identity: default/orders}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [192.0.2.1], targetRef: {kind: Pod, name: orders}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules: [{name: checkout, timeouts: {request: 0s}, backendRefs: [{name: orders, port: 80}]}]
---
apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: most}
spec:
  targetRefs: [{kind: Service, name: orders, sectionName: http}]
  loadBalancer:
    algorithm: RingHash
    hashOn: [{header: a}, {cookie: a}, {queryParameter: a}, {source: {}}]
    warmUp: {duration: 99999h, minimumPercent: 100}
    zones: {maximumLoadPercent: 100000, latency: 99999h, requestsInFlight: 2147483647, refusedPercent: 100}
    panicThresholdPercent: 100
  outlierDetection:
    consecutive5xx: 2147483647
    consecutiveGatewayErrors: 2147483647
    consecutiveConnectFailures: 2147483647
    consecutiveGrpcErrors: 2147483647
    grpcCodes: [CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED,
      RESOURCE_EXHAUSTED, FAILED_PRECONDITION, ABORTED, OUT_OF_RANGE, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS, UNAUTHENTICATED]
    successRate: {standardDeviations: 1000, minimumEndpoints: 2147483647, minimumRequests: 2147483647}
    failurePercentage: {thresholdPercent: 100, minimumRequests: 2147483647}
    interval: 99999h
    ejectionTime: 99999h
    maximumEjectionTime: 99999h
    maximumEjectedPercent: 100
  healthCheck: {http: {path: '/a?b=c', host: 'a.b:80'}, interval: 99999h, timeout: 99999h, healthyThreshold: 100, unhealthyThreshold: 100}
  limits:
    maximumConnections: 2147483647
    maximumConnectionsPerEndpoint: 2147483647
    maximumRequests: 2147483647
    maximumRequestsPerEndpoint: 2147483647
    maximumPending: 2147483647
    queueTimeout: 99999h
  connections: {connectTimeout: 99999h, idleTimeout: 99999h, maximumAge: 99999h, keepAlive: {time: 32767s, interval: 32767s, probes: 127}}
  timeouts: {request: 99999h, perTry: 99999h, idle: 99999h, deadlineHeader: a}
  retry:
    attempts: 100
    statuses: [400, 599]
    grpcCodes: [CANCELLED, UNAUTHENTICATED]
    causes: [ConnectFailure, Reset, RefusedStream, Timeout]
    backoff: {base: 1h, maximum: 99999h}
    nonIdempotent: true
    maximumBodyBytes: 16777216
  retryBudget: {percent: 100, interval: 99999h, minimumRetryRate: {count: 1000000, interval: 99999h}}
---
apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: least}
spec:
  targetRefs: [{kind: Service, name: orders, sectionName: admin}]
  loadBalancer: {warmUp: {duration: 1ms, minimumPercent: 1}, zones: {maximumLoadPercent: 100}, panicThresholdPercent: 0}
  outlierDetection:
    successRate: {standardDeviations: 0.001, minimumEndpoints: 1, minimumRequests: 1}
    failurePercentage: {thresholdPercent: 1, minimumRequests: 1}
    interval: 10ms
    ejectionTime: 1ms
    maximumEjectionTime: 1ms
    maximumEjectedPercent: 1
  healthCheck: {tcp: {}, interval: 10ms, timeout: 1ms, healthyThreshold: 1, unhealthyThreshold: 1}
  limits: {maximumPending: 1, queueTimeout: 0s}
  connections: {connectTimeout: 0s, idleTimeout: 0s, maximumAge: 0s, keepAlive: {time: 1s, interval: 1s, probes: 1}}
  timeouts: {request: 0s, perTry: 0s, idle: 0s}
  retry: {attempts: 0, backoff: {base: 0s, maximum: 0s}, maximumBodyBytes: 1}
  retryBudget: {percent: 0, interval: 1ms, minimumRetryRate: {count: 1, interval: 1ms}}
---
apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: route}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: orders}]
  timeouts: {perTry: 0s, idle: 1ms, deadlineHeader: a}
  retry: {}
---
apiVersion: policy.tulle.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: in}
spec:
  targetRefs: [{kind: Service, name: orders}]
  limits:
  - {rate: {requests: 2147483647, per: 99999h, burst: 2147483647}}
  - {rate: {requests: 1, per: 1ms, burst: 1}, by: {identity: {}}, overrides: [{values: [a/b], rate: {requests: 1}}]}
---
apiVersion: policy.tulle.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: out}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: orders, sectionName: checkout}, {kind: Service, name: orders}]
  direction: Outbound
  limits: [{headers: [{name: a, value: '[a-z]+', type: RegularExpression}], by: {header: a}, rate: {requests: 1}}]
---
apiVersion: policy.tulle.dev/v1alpha1
kind: FaultPolicy
metadata: {name: all}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: orders}, {kind: Service, name: orders}]
  rules:
  - {delay: {duration: 99999h}, abort: {httpStatus: 599}}
  - {delay: {percent: 0, duration: 1ms}, abort: {percent: 0.0001, grpcStatus: CANCELLED}}
";

/// A proxy rejects nothing of what it is told of the folder.
fn proxies_take(folder: &Path) {
    let (_, read) = Folder::open(folder).unwrap();
    let mut index = Index::default();
    index.change(read.changes);
    index.take_dirty();
    let model = Model::build(&index, Settings::default());
    for resource_type in ResourceType::ALL {
        for name in model.names(resource_type) {
            let client = if resource_type == ResourceType::Routes { "default/" } else { "" };
            let name = format!("{client}{name}");
            let encoded = model.get(resource_type, &name).unwrap();
            let decoded = decode(resource_type.type_url(), &name, &encoded.bytes);
            assert!(decoded.is_ok(), "{resource_type} {name}: {decoded:?}");
            if let Ok(Decoded::Routes(routes)) = decoded {
                assert_eq!(rejections(&name, &routes), [], "{name}");
            }
        }
    }
}

#[test]
fn of_too_many_regular_expressions_a_proxy_is_told_what_it_takes() {
    let folder = tempfile::tempdir().unwrap();
    let ports: Vec<String> =
        (0..10).map(|i| format!("{{name: p{i}, port: {}, appProtocol: http}}", 80 + i)).collect();
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: orders}}\nspec: {{ports: [{}]}}\n",
        ports.join(", ")
    );
    for i in 0..10 {
        let headers: Vec<String> = (0..16)
            .map(|j| format!("{{name: x-{j}, type: RegularExpression, value: 'v{i}-{j}.*'}}"))
            .collect();
        text += &format!(
            "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: FaultPolicy\nmetadata: {{name: f{i}}}\nspec: {{targetRefs: [{{kind: Service, name: \
             orders, sectionName: p{i}}}], rules: [{{headers: [{}], abort: {{httpStatus: 503}}}}]}}\n",
            headers.join(", ")
        );
    }
    fs::write(folder.path().join("a.yaml"), text).unwrap();
    let output = check(folder.path(), &[]);
    assert_eq!(status(&output), 1);
    for told in [
        "error: FaultPolicy default/f8: spec.targetRefs[0]: for Service default/orders its regular expressions",
        "error: FaultPolicy default/f9: spec.targetRefs[0]: for Service default/orders its regular expressions",
        "FaultPolicy default/f7 at Service default/orders (p7): Accepted, Programmed\n",
        "FaultPolicy default/f8 at Service default/orders (p8): Accepted, not Programmed (Invalid)\n",
    ] {
        assert!(stdout(&output).contains(told), "{told}: {}", stdout(&output));
    }
    assert!(stdout(&output).ends_with("2 errors, 0 warnings\n"), "{}", stdout(&output));
    proxies_take(folder.path());

    // What the whole Service has holds in place of what is left out, and both say so.
    let whole = "apiVersion: policy.tulle.dev/v1alpha1\nkind: FaultPolicy\nmetadata: {name: whole}\nspec: {targetRefs: [{kind: Service, name: orders}], rules: \
                 [{abort: {httpStatus: 500}}]}\n";
    fs::write(folder.path().join("b.yaml"), whole).unwrap();
    let output = check(folder.path(), &[]);
    assert_eq!(status(&output), 1);
    for told in [
        "128 that a proxy takes; nothing of this policy holds there, and FaultPolicy default/whole holds in its place (",
        "FaultPolicy default/f8 at Service default/orders (p8): Accepted, not Programmed (Invalid)\n",
        "FaultPolicy default/whole at Service default/orders: Accepted, Programmed (PartiallyProgrammed)\n",
    ] {
        assert!(stdout(&output).contains(told), "{told}: {}", stdout(&output));
    }
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&check(folder.path(), &["-o", "json"]))).unwrap();
    let whole = json["policies"].as_array().unwrap().iter().find(|one| one["name"] == "whole").unwrap();
    let message = whole["ancestors"][0]["conditions"][1]["message"].as_str().unwrap();
    assert!(message.contains("`rules` at port 87 by FaultPolicy default/f7"), "{message}");
    assert!(!message.contains("port 88") && !message.contains("port 89"), "{message}");
    proxies_take(folder.path());
}

#[test]
fn check_refuses_a_policy_of_any_kind_that_is_meant_for_another_namespace() {
    let folder = tempfile::tempdir().unwrap();
    let service =
        "apiVersion: v1\nkind: Service\nmetadata: {name: orders}\nspec: {ports: [{name: http, port: 80}]}\n";
    for (kind, says, meanwhile) in [
        (
            "AuthorizationPolicy",
            "rules: [{from: [{identities: [default/web]}]}]",
            "without one, it protects nothing",
        ),
        ("EgressPolicy", "action: deny", "without one, it denies nothing"),
        ("TrafficPolicy", "retry: {}", "without one, its targets are treated as if it were not there"),
        ("RateLimitPolicy", "limits: [{rate: {requests: 1}}]", "without one, it limits nothing"),
        ("FaultPolicy", "rules: [{abort: {httpStatus: 503}}]", "without one, nothing goes wrong by it"),
    ] {
        let of = |namespace: &str| {
            let text = format!(
                "{service}---\napiVersion: policy.tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p}}\nspec: {{targetRefs: [{{kind: Service, name: \
                 orders, namespace: {namespace}}}], {says}}}\n"
            );
            fs::write(folder.path().join("a.yaml"), text).unwrap();
            let output = check(folder.path(), &[]);
            (status(&output), stdout(&output))
        };
        let (status, text) = of("shop");
        assert_eq!(status, 1, "{text}");
        let message = format!(
            "error: {kind} default/p: spec.targetRefs[0].namespace: the policy cannot be attached to what is in the namespace `shop`, only in its own ("
        );
        assert!(text.contains(&message) && text.contains(meanwhile), "{kind}: {text}");
        // Its own may be written.
        let (status, text) = of("default");
        assert_eq!((status, text.contains("error: ")), (0, false), "{kind}: {text}");
    }
}

#[test]
fn a_proxy_takes_the_most_and_the_least_that_policies_can_say() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), EXTREMES).unwrap();
    let output = check(folder.path(), &[]);
    assert_eq!(status(&output), 0, "{}", stdout(&output));
    assert!(stdout(&output).ends_with("ok: nothing found\n"), "{}", stdout(&output));

    proxies_take(folder.path());
}

#[test]
fn check_of_no_folder_names_it() {
    let no_folder = Path::new("/no/such/folder");
    let output = check(no_folder, &[]);
    assert_eq!(status(&output), 1);
    assert!(stdout(&output).starts_with("/no/such/folder: error: the folder cannot be read"), "{output:?}");
    let output = check(no_folder, &["-o", "json"]);
    assert_eq!(status(&output), 1);
    let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&json["errors"], &json["findings"][0]["file"]), (&1.into(), &"/no/such/folder".into()));
}

fn token_create(state: &Path, more: &[&str]) -> Output {
    tulle(&[&["token", "create", "--state-dir", state.to_str().unwrap()], more].concat())
}

#[test]
fn a_token_is_what_the_control_plane_takes() {
    let state = tempfile::tempdir().unwrap();
    fs::set_permissions(state.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let domain = TrustDomain::new("cluster.local").unwrap();
    let ca = Ca::open(state.path(), &domain, SystemTime::now()).unwrap();
    let out = state.path().join("orders.token");
    fs::write(&out, "of old, and readable by all").unwrap();
    fs::set_permissions(&out, fs::Permissions::from_mode(0o644)).unwrap();
    let identity = ["--workload-identity", "shop/orders", "--service", "orders", "--service", "orders-v2"];
    let output = token_create(state.path(), &[&identity[..], &["--out", out.to_str().unwrap()]].concat());
    assert_eq!((status(&output), stdout(&output)), (0, String::new()), "{}", stderr(&output));
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
    let file = TokenFile::read(&out).unwrap();
    assert_eq!(file.pin, ca.pin());
    let claims = ca.tokens().verify(&file.token, SystemTime::now()).unwrap();
    assert_eq!(claims.sub.as_str(), "spiffe://cluster.local/ns/shop/sa/orders");
    assert_eq!(claims.services, ["orders", "orders-v2"]);
    let lifetime = claims.exp.duration_since(SystemTime::now()).unwrap().as_secs();
    assert!((86_000..=86_400).contains(&lifetime), "{lifetime}");

    let printed = token_create(state.path(), &identity);
    assert!(TokenFile::parse(&stdout(&printed)).is_ok(), "{}", stdout(&printed));
}

#[test]
fn a_token_that_cannot_be_made_says_why_and_leaves_nothing() {
    let state = tempfile::tempdir().unwrap();
    let out = state.path().join("token");
    let out = out.to_str().unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["--workload-identity", "shop/orders", "--out", out], "state folder"),
        (&["--workload-identity", "orders", "--out", out], "<namespace>/<service account>"),
        // No policy could name it, and no node ID would fit it.
        (&["--workload-identity", "Shop/orders", "--out", out], "lower-case"),
        (&["--workload-identity", "shop/orders/x", "--out", out], "<namespace>/<service account>"),
        (&["--workload-identity", "shop/orders", "--service", "Orders", "--out", out], "--service `Orders`"),
    ];
    for (arguments, expected) in cases {
        let output = token_create(state.path(), arguments);
        assert_eq!(status(&output), 1, "{arguments:?}");
        assert!(stderr(&output).contains(expected), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    }
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
}

#[test]
fn tokens_are_listed_and_revoked_once() {
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().to_str().unwrap();
    Ca::open(state.path(), &TrustDomain::default(), SystemTime::now()).unwrap();
    let out = state.path().join("orders.token");
    let out = out.to_str().unwrap();
    let created = token_create(state.path(), &["--workload-identity", "shop/orders", "--out", out]);
    assert_eq!(status(&created), 0, "{}", stderr(&created));
    let list = || tulle(&["token", "list", "--state-dir", folder]);
    let listed = stdout(&list());
    let line = listed.lines().find(|line| line.contains("shop/sa/orders")).unwrap_or_default();
    assert!(line.ends_with("valid"), "{listed}");
    let id = line.split(' ').next().unwrap();

    let revoke = |token: &str| tulle(&["token", "revoke", "--state-dir", folder, token]);
    for (token, expected) in [(out, "revoked the join token"), (id, "was revoked before")] {
        let output = revoke(token);
        assert_eq!(status(&output), 0, "{}", stderr(&output));
        let said = stdout(&output);
        assert!(said.contains(expected) && said.contains(id) && said.contains("shop/sa/orders"), "{said}");
    }
    assert!(stdout(&list()).contains("revoked"));
    let mode = fs::metadata(state.path().join("tokens.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let nothing = revoke("not a token");
    assert_eq!(status(&nothing), 1);
    assert!(stderr(&nothing).contains("tulle token list"), "{}", stderr(&nothing));
    let missing = tulle(&["token", "list", "--state-dir", "/no/such/folder"]);
    assert_eq!(status(&missing), 1);
    assert!(stderr(&missing).contains("/no/such/folder"), "{}", stderr(&missing));
}

#[test]
fn a_token_is_of_the_trust_domain_that_the_root_was_made_for() {
    let state = tempfile::tempdir().unwrap();
    let domain = TrustDomain::new("prod.example").unwrap();
    let ca = Ca::open(state.path(), &domain, SystemTime::now()).unwrap();
    let identity = ["--workload-identity", "shop/orders"];
    let file = TokenFile::parse(&stdout(&token_create(state.path(), &identity))).unwrap();
    let claims = ca.tokens().verify(&file.token, SystemTime::now()).unwrap();
    assert_eq!(claims.sub.as_str(), "spiffe://prod.example/ns/shop/sa/orders");
    let output = token_create(state.path(), &[&identity[..], &["--trust-domain", "cluster.local"]].concat());
    assert_eq!(status(&output), 1);
    assert!(stderr(&output).contains("made for `prod.example`"), "{output:?}");
}

#[test]
fn an_error_says_each_thing_once() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let config = folder.path().join("none");
    let (state, config) = (state.to_str().unwrap(), config.to_str().unwrap());
    let arguments = ["internal", "control-plane", "--config-dir", config, "--state-dir", state];
    let output = tulle(&arguments);
    assert_eq!(status(&output), 1);
    assert_eq!(stderr(&output).matches("No such file").count(), 1, "{output:?}");
}

#[test]
fn identity_of_nobody_names_the_address() {
    let output = tulle(&["identity", "--admin", "127.0.0.1:1"]);
    assert_eq!(status(&output), 1);
    assert!(stderr(&output).contains("no proxy's admin listener at 127.0.0.1:1"), "{}", stderr(&output));
}

#[test]
fn a_process_of_the_demo_ends_when_its_parent_has_gone() {
    let output = tulle(&["internal", "--parent", "1", "service", "--name", "a", "--version", "v1"]);
    assert_eq!(status(&output), 1);
    assert!(stderr(&output).contains("has ended"), "{}", stderr(&output));
}
