//! What holds where nothing is said: the reference, a section of a policy that is left empty, and a proxy without a policy agree.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::time::Duration;

use tulle_api::ResourceType;
use tulle_control_plane::index::Index;
use tulle_control_plane::model::{Model, Settings};
use tulle_control_plane::source::Folder;
use tulle_proxy::accept::KEEP_ALIVE;
use tulle_proxy::control::decode::{Decoded, decode};
use tulle_proxy::route::{BudgetSpec, Causes, Retry};
use tulle_proxy::state::Traffic;

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: orders}\nspec: {ports: [{name: http, port: 80}]}\n";

/// How a proxy treats the port of a Service whose TrafficPolicy has this spec.
fn decoded(spec: &str) -> Traffic {
    let folder = tempfile::tempdir().unwrap();
    let policy = format!(
        "{SERVICE}---\napiVersion: policy.tulle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p}}\nspec: {{targetRefs: [{{kind: Service, name: \
         orders}}], {spec}}}\n"
    );
    fs::write(folder.path().join("a.yaml"), policy).unwrap();
    let (_, read) = Folder::open(folder.path()).unwrap();
    assert!(
        read.findings.iter().all(|one| one.object.is_none() || spec.ends_with(": {}")),
        "{:?}",
        read.findings
    );
    let mut index = Index::default();
    index.change(read.changes);
    index.take_dirty();
    let model = Model::build(&index, Settings::default());
    let encoded = model.get(ResourceType::Service, "default/orders").unwrap();
    let kind = ResourceType::Service.type_url();
    let Ok(Decoded::Service(service)) = decode(kind, "default/orders", &encoded.bytes) else {
        panic!("not decoded: {spec}");
    };
    Traffic::clone(&service.ports[0].traffic)
}

/// The default of a field of TrafficPolicy, as the reference shows it.
fn documented(field: &str) -> String {
    let page = include_str!("../../docs/reference/policies.md");
    let (_, rest) = page.split_once("<!-- fields of TrafficPolicy -->").unwrap();
    let start = format!("| `{field}` |");
    let row =
        rest.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("no row for {field}"));
    row.split(" | ").nth(2).unwrap().trim().trim_matches('`').to_owned()
}

fn time(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap());
    let number: u64 = number.parse().unwrap();
    match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(60 * number),
        other => panic!("{other}"),
    }
}

#[test]
fn an_empty_budget_is_the_one_that_holds_without_a_policy() {
    let budget = BudgetSpec::default();
    assert_eq!(decoded("retryBudget: {}").retry_budget, budget);
    assert_eq!(documented("retryBudget.percent"), budget.percent.to_string());
    assert_eq!(time(&documented("retryBudget.interval")), budget.interval);
    assert_eq!(documented("retryBudget.minimumRetryRate.count"), budget.minimum.to_string());
    assert_eq!(time(&documented("retryBudget.minimumRetryRate.interval")), budget.minimum_interval);
}

#[test]
fn a_keep_alive_of_which_nothing_is_said_is_the_one_without_a_policy() {
    assert_eq!(decoded("connections: {keepAlive: {}}").connections.keep_alive, Some(KEEP_ALIVE));
    let one = decoded("connections: {keepAlive: {time: 5m}}").connections.keep_alive.unwrap();
    assert_eq!((one.interval, one.probes), (KEEP_ALIVE.interval, KEEP_ALIVE.probes), "the others stay");
    assert_eq!(time(&documented("connections.keepAlive.time")), KEEP_ALIVE.time);
    assert_eq!(time(&documented("connections.keepAlive.interval")), KEEP_ALIVE.interval);
    assert_eq!(documented("connections.keepAlive.probes"), KEEP_ALIVE.probes.to_string());
    let page = include_str!("../../docs/resilience.md");
    let shown = format!(
        "{} s, {} s, {}",
        KEEP_ALIVE.time.as_secs(),
        KEEP_ALIVE.interval.as_secs(),
        KEEP_ALIVE.probes
    );
    assert!(page.contains(&shown), "docs/resilience.md does not say {shown}");
}

#[test]
fn an_empty_retry_is_as_the_reference_says() {
    let retry = decoded("retry: {}").requests.unwrap().retry.unwrap();
    assert_eq!((retry.causes, retry.non_idempotent, retry.maximum_body), (Causes::ALL, false, Retry::BODY));
    assert_eq!((retry.codes.len(), retry.grpc_codes), (0, 0));
    assert_eq!(documented("retry.attempts"), retry.attempts.to_string());
    assert_eq!(time(&documented("retry.backoff.base")), retry.backoff);
    assert_eq!(documented("retry.maximumBodyBytes"), Retry::BODY.to_string());
    assert_eq!(retry.wait(100, 0), retry.backoff * 10, "ten times `base` at most");
}

#[test]
fn what_is_not_written_is_what_a_proxy_does_of_itself() {
    let bare = Traffic::default();
    for spec in ["connections: {}", "timeouts: {}"] {
        assert_eq!(decoded(spec), bare, "{spec}");
    }
    let limits = decoded("limits: {}").limits.unwrap();
    assert_eq!(limits.queue_timeout, time(&documented("limits.queueTimeout")));
    assert_eq!(decoded("limits: {}").load_balancer, None);
    // A default that is written changes nothing, and so the one that is not is the reference's.
    for (section, field) in [
        ("loadBalancer: {FIELD}", "loadBalancer.algorithm"),
        ("loadBalancer: {FIELD}", "loadBalancer.panicThresholdPercent"),
        ("loadBalancer: {warmUp: {duration: 9s, FIELD}}", "loadBalancer.warmUp.minimumPercent"),
        ("loadBalancer: {zones: {FIELD}}", "loadBalancer.zones.maximumLoadPercent"),
        ("outlierDetection: {consecutive5xx: 5, FIELD}", "outlierDetection.interval"),
        ("outlierDetection: {consecutive5xx: 5, FIELD}", "outlierDetection.ejectionTime"),
        ("outlierDetection: {consecutive5xx: 5, FIELD}", "outlierDetection.maximumEjectionTime"),
        ("outlierDetection: {consecutive5xx: 5, FIELD}", "outlierDetection.maximumEjectedPercent"),
        ("outlierDetection: {consecutiveGrpcErrors: 5, FIELD}", "outlierDetection.grpcCodes[]"),
        ("outlierDetection: {successRate: {FIELD}}", "outlierDetection.successRate.standardDeviations"),
        ("outlierDetection: {successRate: {FIELD}}", "outlierDetection.successRate.minimumEndpoints"),
        ("outlierDetection: {successRate: {FIELD}}", "outlierDetection.successRate.minimumRequests"),
        (
            "outlierDetection: {failurePercentage: {FIELD}}",
            "outlierDetection.failurePercentage.thresholdPercent",
        ),
        (
            "outlierDetection: {failurePercentage: {FIELD}}",
            "outlierDetection.failurePercentage.minimumRequests",
        ),
        ("healthCheck: {tcp: {}, FIELD}", "healthCheck.interval"),
        ("healthCheck: {tcp: {}, FIELD}", "healthCheck.timeout"),
        ("healthCheck: {tcp: {}, FIELD}", "healthCheck.healthyThreshold"),
        ("healthCheck: {tcp: {}, FIELD}", "healthCheck.unhealthyThreshold"),
        ("limits: {FIELD}", "limits.queueTimeout"),
        ("retry: {FIELD}", "retry.nonIdempotent"),
    ] {
        let name = field.rsplit('.').next().unwrap().trim_end_matches("[]");
        assert!(!documented(field).is_empty(), "{field} has no default in the reference");
        let with = section.replace("FIELD", &format!("{name}: {}", documented(field)));
        let without = section.replace(", FIELD", "").replace("FIELD", "");
        assert_eq!(decoded(&with), decoded(&without), "{field}");
    }
}
