use super::*;

use clap::Parser as _;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    arguments: ExplainArgs,
}

const SHOP: &str = "
apiVersion: policy.tulle.dev/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec: {mtls: strict, networks: [127.0.0.0/8]}
---
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: default}
spec: {clusterIP: 10.96.0.7, ports: [{port: 80, appProtocol: http}, {port: 5432, appProtocol: tcp}, {port: 90}]}
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: default}
spec: {ports: [{name: http, port: 80, appProtocol: http}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: v1-a, namespace: default, labels: {kubernetes.io/service-name: v1}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [127.0.0.9], conditions: {ready: true}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: shop, port: 80}]
  rules:
  - name: moved
    matches: [{path: {type: PathPrefix, value: /old}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 301}
  - matches:
    - {path: {type: PathPrefix, value: /b}, method: POST, headers: [{name: x-group, value: b}], queryParams: [{name: q, value: '1'}]}
    filters:
    - type: URLRewrite
      urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /c}}
    timeouts: {request: 5s, backendRequest: 1s}
    retry: {codes: [503, 500], attempts: 2, backoff: 100ms}
    backendRefs:
    - {name: v1, port: 80, weight: 3}
    - {name: absent, port: 80, weight: 1}
  - matches: [{path: {type: PathPrefix, value: /b/c}}, {path: {type: Exact, value: /exact}}]
    backendRefs: [{name: v1, port: 80, weight: 0}]
  - matches: [{path: {type: PathPrefix, value: /copied}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: absent, port: 80}}}]
    backendRefs: [{name: v1, port: 80}]
";

/// Of a port of its own.
const KEPT: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: kept, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: v1, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /cart}}]
    sessionPersistence: {sessionName: cart, absoluteTimeout: 24h, idleTimeout: 10m, cookieConfig: {lifetimeType: Permanent}}
    backendRefs: [{name: v1, port: 80}]
  - sessionPersistence: {type: Header, sessionName: X-Session}
    backendRefs: [{name: v1, port: 80}]
";

/// Beside the route for requests, one for connections.
const STREAMS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: whole, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: shop, port: 90}]
  rules: [{backendRefs: [{name: v1, port: 80}]}]
";

/// What is said of traces, twice.
const SAMPLED: &str = "
apiVersion: policy.tulle.dev/v1alpha1
kind: TelemetryPolicy
metadata: {name: v1, namespace: default}
spec: {targetRefs: [{group: '', kind: Service, name: v1}], tracing: {sampling: {percent: 5, parentBased: false}}}
---
apiVersion: policy.tulle.dev/v1alpha1
kind: TelemetryPolicy
metadata: {name: kept, namespace: default}
spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: kept}], tracing: {sampling: {percent: 0.5}}}
";

/// What is said of workloads: of all of a namespace, and of one of them.
const WORKLOADS: &str = "
apiVersion: policy.tulle.dev/v1alpha1
kind: TelemetryPolicy
metadata: {name: all, namespace: shop}
spec: {accessLog: {minDuration: 1s}}
---
apiVersion: policy.tulle.dev/v1alpha1
kind: TelemetryPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRefs: [{group: policy.tulle.dev, kind: Workload, name: web}]
  accessLog: {format: '{status} {{x}}', minDuration: 250ms, statuses: [], samplePercent: 5, errors: Filtered}
  tracing: {sampling: {percent: 20}}
---
apiVersion: policy.tulle.dev/v1alpha1
kind: TelemetryPolicy
metadata: {name: logged, namespace: default}
spec: {targetRefs: [{group: '', kind: Service, name: v1, sectionName: http}], accessLog: {statuses: ['404', 5xx]}}
";

fn explained(line: &str) -> Result<Answer> {
    asked("default/web", line)
}

fn asked(from: &str, line: &str) -> Result<Answer> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shop.yaml"), SHOP).unwrap();
    std::fs::write(folder.path().join("streams.yaml"), STREAMS).unwrap();
    std::fs::write(folder.path().join("kept.yaml"), KEPT).unwrap();
    std::fs::write(folder.path().join("sampled.yaml"), SAMPLED).unwrap();
    std::fs::write(folder.path().join("workloads.yaml"), WORKLOADS).unwrap();
    let dir = folder.path().to_str().unwrap();
    let words = ["explain", "--config-dir", dir, "--from", from].into_iter();
    let line = Line::try_parse_from(words.chain(line.split(' '))).unwrap();
    explain(&Mesh::of_folder(folder.path()).unwrap(), &line.arguments.question().unwrap())
}

fn shown(line: &str) -> String {
    text::lines(&explained(line).unwrap())
}

#[test]
fn a_rule_is_named_with_what_it_does_and_the_others_with_what_is_missing() {
    let expected = "\
POST http://shop/b/x?q=1
from  default/web (its identity is not known; see --identity)
to    Service default/shop port 80 (http)
HTTPRoute default/shop rules[1]: path prefix /b, method POST, header x-group: b, query parameter q: 1
  rewrites the path prefix to \"/c\"
  within 5s (request; by the route)
  within 1s (each try; by the route)
  is sent again up to 2 times, after 100ms or more, where it was not processed or answered 500, 503 (by the route)
   75.0 %  default/v1:80
           sees POST /c/x?q=1 of shop
           127.0.0.9:8080: plaintext
   25.0 %  default/absent:80
           sees POST /c/x?q=1 of shop
           fails: 500 backend_not_found: there is no Service default/absent
not taken:
  HTTPRoute default/shop rules[0] (moved): not path prefix /old
  HTTPRoute default/shop rules[2]: not path prefix /b/c; or not path /exact
  HTTPRoute default/shop rules[3]: not path prefix /copied";
    assert_eq!(shown("--to http://shop/b/x?q=1 -X POST -H x-group:b"), expected);
}

#[test]
fn a_session_is_told_with_what_carries_and_what_ends_it() {
    let line = |line: &str| {
        let shown = shown(line);
        shown.lines().find(|line| line.contains("session")).unwrap_or_else(|| panic!("{shown}")).to_owned()
    };
    assert_eq!(
        line("--to http://v1/cart/items"),
        "  with a session's token in the cookie cart for /cart: to the session's endpoint while it is ready, whatever the shares are, \
         for 86400s at most, for which clients keep it, until idle for 600s"
    );
    assert_eq!(
        line("--to http://v1/"),
        "  with a session's token in the header x-session: to the session's endpoint while it is ready, whatever the shares are"
    );
    let taken = explained("--to http://v1/cart").unwrap().taken.unwrap();
    let expected = serde_json::json!({
        "place": "cookie", "name": "cart", "path": "/cart", "absolute_timeout": "86400s", "idle_timeout": "600s", "permanent": true,
    });
    assert_eq!(serde_json::to_value(taken.session).unwrap(), expected);
    assert!(explained("--to http://shop/b/c").unwrap().taken.unwrap().session.is_none());
}

#[test]
fn which_traces_are_recorded_is_told_and_who_says_it() {
    let shown = shown("--to http://v1/cart");
    for expected in [
        "  where it begins a trace, 0.5 % are recorded (by the route)",
        "  its trace is recorded whatever its headers say (by the Service)",
    ] {
        assert!(shown.lines().any(|line| line == expected), "{shown}");
    }
    let requests = explained("--to http://v1/cart").unwrap().requests;
    assert_eq!((requests.sampling_percent, requests.sampling_parent_based), (Some(0.5), Some(false)));
    assert_eq!(requests.by_route, ["sampling_percent"]);
    let nobody = explained("--to http://shop/b").unwrap().requests;
    assert_eq!((nobody.sampling_percent, nobody.sampling_parent_based), (None, None));
}

#[test]
fn what_is_said_of_the_workload_and_of_its_namespace_is_told_too() {
    let told = |from: &str| {
        let answer = asked(from, "--to http://v1.default/cart").unwrap();
        (text::lines(&answer), answer.requests)
    };
    let (shown, requests) = told("shop/web");
    for expected in [
        // A Service is more specific than a workload.
        "  where it begins a trace, 0.5 % are recorded (by the route)",
        "  is logged as {status} {{x}} (by the workload or its namespace)",
        "  is logged if it is answered 404, 500-599 (by the Service)",
        "  is logged if it takes 250ms or longer (by the workload or its namespace)",
        "  is logged 5 % of the times (by the workload or its namespace)",
        "  is logged where a proxy fails it only as all else is (by the workload or its namespace)",
    ] {
        assert!(shown.lines().any(|line| line == expected), "{expected}\n{shown}");
    }
    assert_eq!(requests.by_route, ["sampling_percent"]);
    let by = ["format", "min_duration", "sample_percent", "filters_errors"];
    assert_eq!(requests.by_workload, by.map(|field| format!("access_log.{field}")));
    let (shown, requests) = told("shop/other");
    assert!(
        shown.contains("  is logged if it takes 1s or longer (by the workload or its namespace)"),
        "{shown}"
    );
    assert_eq!(requests.by_workload, ["access_log.min_duration"]);
    let (_, requests) = told("default/web");
    assert!(requests.by_workload.is_empty());
    let nobody = asked("shop/web", "--to http://shop.default/copied").unwrap().requests;
    assert_eq!((nobody.sampling_percent, nobody.by_workload[0]), (Some(20.0), "sampling_percent"));
}

#[test]
fn each_missing_condition_is_told() {
    let answer = explained("--to http://shop/b?q=2").unwrap();
    assert_eq!(answer.fails.as_ref().unwrap().reason, "route_not_found");
    let missing = "not method POST; not header x-group: b; not query parameter q: 1";
    assert_eq!(answer.not_taken[1].because, [missing]);
    assert_eq!(answer.not_taken[2].because, ["not path prefix /b/c", "not path /exact"]);
}

#[test]
fn a_redirect_is_told_with_its_location() {
    let answer = explained("--to http://shop.default.svc.cluster.local/old/x").unwrap();
    let redirect = answer.taken.unwrap().redirect.unwrap();
    let location = "http://shop.default.svc.cluster.local/new/x".to_owned();
    assert_eq!((redirect.status, redirect.location), (301, location));
    assert!(answer.backends.is_empty() && answer.fails.is_none());
}

#[test]
fn what_a_proxy_would_answer_itself_fails() {
    let long = format!("--to http://shop/ -H x-long:{}", "a".repeat(128 * 1024));
    for (line, reason) in [
        ("--to http://shop/ -H host:a -H host:b", "malformed_request"),
        ("--to http://shop/ -H host:a/b", "malformed_request"),
        ("--to http://shop/ -X POST -H content-length:1 -H transfer-encoding:chunked", "malformed_request"),
        (&long, "head_too_large"),
        ("--to http://shop/b/c", "route_without_backend"),
        ("--to http://10.96.0.7/none", "route_not_found"),
        ("--to http://v1.default:80/ --identity spiffe://cluster.local/ns/default/sa/web", ""),
    ] {
        let fails = explained(line).unwrap().fails.map_or("", |fails| fails.reason);
        assert_eq!(fails, reason, "{line}");
    }
}

#[test]
fn a_call_of_grpc_gets_its_own_status() {
    let line = "--to http://shop/x.Y/Z -X POST -H content-type:application/grpc";
    let fails = explained(line).unwrap().fails.unwrap();
    assert_eq!((fails.status, fails.grpc_status), (Some(200), Some(12)));
    assert!(shown(line).contains("fails: gRPC status 12 route_not_found"), "{}", shown(line));
}

#[test]
fn what_differs_from_what_was_meant_is_noted() {
    for (line, expected) in [
        ("--to http://shop:81/", "declares no port 81; it has 80, 90, 5432"),
        ("--to http://shop/b -H x-tulle-error:1", "taken away"),
    ] {
        let notes = explained(line).unwrap().notes;
        assert!(notes.iter().any(|note| note.contains(expected)), "{line}: {notes:?}");
    }
    for (line, expected) in [("--to http://u:p@shop:80/", "shop"), ("--to http://shop:5433/", "shop:5433")] {
        let words = ["explain", "--from", "a/b"].into_iter().chain(line.split(' '));
        let line = Line::try_parse_from(words).unwrap();
        assert_eq!(host(line.arguments.to.as_ref().unwrap()).unwrap(), expected);
    }
}

#[test]
fn the_match_that_takes_it_is_told_and_not_the_first_that_would() {
    let told = |line| explained(line).unwrap().taken.unwrap().because;
    assert_eq!(told("--to http://shop/exact"), ["path /exact"]);
}

#[test]
fn an_earlier_rule_is_told_from_one_that_does_not_match() {
    let answer = explained("--to http://shop/b/c?q=1 -X POST -H x-group:b").unwrap();
    assert_eq!(answer.taken.unwrap().rule.index, 2);
    assert_eq!(answer.not_taken[1].because[0], "another rule comes first, by the order of precedence");
}

#[test]
fn what_cannot_be_asked_about_is_told_with_the_remedy() {
    for (line, expected) in [
        ("--to http://nobody/", "there is no Service default/nobody"),
        ("--to http://shop:5432/", "declared to speak tcp"),
        ("--to http://shop:90/", "follow its TLSRoutes or TCPRoutes (default/whole)"),
        ("--to http://192.0.2.1/", "is no address of the mesh"),
        ("--to http://www.example.com/", "is no name of a Service"),
    ] {
        let error = format!("{:#}", explained(line).unwrap_err());
        assert!(error.contains(expected), "{line}: {error}");
    }
    for (bad, expected) in [
        (["--from", "web"], "is not <namespace>/<name>"),
        (["--from", "shop/we?b"], "is not the name of a workload"),
        (["--to", "https://shop/"], "https is between"),
        (["--to", "/path"], "names no host"),
        (["--to", "http://shop:65536/"], "has no port between 1 and 65535"),
        (["--to", "http://u@shop:0/"], "has no port between 1 and 65535"),
        (["-X", "CONNECT"], "asks for a connection"),
        (["-H", "no-colon"], "expected `NAME: VALUE`"),
        (["--identity", "web"], "invalid value"),
    ] {
        let good = [["--from", "a/b"], ["--to", "http://c/"]].into_iter().filter(|good| good[0] != bad[0]);
        let words = ["explain"].into_iter().chain(good.flatten()).chain(bad);
        let error = Line::try_parse_from(words).err().unwrap();
        assert!(error.to_string().contains(expected), "{bad:?}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn a_mirror_that_is_not_there_is_told() {
    let told = explained("--to http://shop/copied").unwrap().taken.unwrap().filters;
    assert_eq!(told, ["copies nothing to default/absent:80: there is no Service default/absent"]);
}

#[test]
fn names_end_in_the_domain_of_the_cluster() {
    let line = "--to http://shop.default.svc.corp.example/old";
    assert!(explained(&format!("{line} --cluster-domain corp.example")).unwrap().taken.is_some());
    assert!(explained(line).is_err());
}
