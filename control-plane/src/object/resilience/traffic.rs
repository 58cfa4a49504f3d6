//! TrafficPolicy: what holds for a Service's endpoints and connections.

use std::time::Duration;

use tulle_api::v1;

use super::{MAX_LIST, at_most, check_name, grpc_codes, on_the_wire, requests, time, time_from, within};
use crate::finding::Notes;
use crate::kinds::{self, Algorithm};

/// What asks or reckons again and again does so at most as often as this.
const MIN_INTERVAL: Duration = Duration::from_millis(10);
/// A time that must not be 0.
pub(super) const MIN_TIME: Duration = Duration::from_nanos(1);
/// The longest that Linux waits between two keep-alive probes (`MAX_TCP_KEEPIDLE`).
const MAX_KEEP_ALIVE: Duration = Duration::from_secs(32_767);
/// Of `zones`.
const MAXIMUM_LOAD: u32 = 150;

/// What the whole policy says.
pub(super) fn read(spec: &kinds::TrafficPolicySpec, notes: &mut Notes) -> v1::Traffic {
    let traffic = v1::Traffic {
        load_balancer: spec.load_balancer.as_ref().map(|one| load_balancer(one, notes)),
        outlier_detection: spec.outlier_detection.as_ref().map(|one| outlier_detection(one, notes)),
        health_check: spec.health_check.as_ref().map(|one| health_check(one, notes)),
        limits: spec.limits.as_ref().map(|one| limits(one, notes)),
        connections: spec.connections.as_ref().map(|one| connections(one, notes)),
        retry_budget: spec.retry_budget.as_ref().map(|one| requests::budget(one, notes)),
        requests: requests::read(spec, notes),
    };
    if traffic == v1::Traffic::default() && !notes.refused() {
        notes.warn(
            "spec",
            "the policy says nothing but what it is attached to, so it does nothing",
            "write `loadBalancer`, `outlierDetection`, `healthCheck`, `limits`, `connections`, `timeouts`, `retry` or `retryBudget`",
        );
    }
    traffic
}

/// The fields that are written and say something of Services only.
pub(super) fn of_services_only(traffic: &v1::Traffic) -> impl Iterator<Item = &'static str> {
    let fields = [
        ("loadBalancer", traffic.load_balancer.is_some()),
        ("outlierDetection", traffic.outlier_detection.is_some()),
        ("healthCheck", traffic.health_check.is_some()),
        ("limits", traffic.limits.is_some()),
        ("connections", traffic.connections.is_some()),
        ("retryBudget", traffic.retry_budget.is_some()),
    ];
    fields.into_iter().filter(|(_, is_there)| *is_there).map(|(field, _)| field)
}

/// What `zones: {}` is.
pub fn zones_by_default() -> v1::ZonePreference {
    v1::ZonePreference { maximum_load_percent: MAXIMUM_LOAD, ..Default::default() }
}

fn load_balancer(written: &kinds::LoadBalancer, notes: &mut Notes) -> v1::LoadBalancer {
    let at = "spec.loadBalancer";
    let algorithm = match written.algorithm {
        Algorithm::PeakEwma => v1::Algorithm::PeakEwma,
        Algorithm::LeastRequest => v1::Algorithm::LeastRequest,
        Algorithm::RoundRobin => v1::Algorithm::RoundRobin,
        Algorithm::Random => v1::Algorithm::Random,
        Algorithm::RingHash => v1::Algorithm::RingHash,
        Algorithm::Maglev => v1::Algorithm::Maglev,
    };
    let hashes = matches!(algorithm, v1::Algorithm::RingHash | v1::Algorithm::Maglev);
    if hashes && written.hash_on.is_empty() {
        notes.refuse(
            format!("{at}.hashOn"),
            format!("`{:?}` needs to know what it goes by", written.algorithm),
            "write `hashOn: [{header: …}]`, or a `cookie`, a `queryParameter` or `source: {}`",
        );
    }
    if !hashes && !written.hash_on.is_empty() {
        notes.refuse(
            format!("{at}.hashOn"),
            format!("`{:?}` goes by no hash", written.algorithm),
            "remove it, or write `algorithm: RingHash` or `Maglev`",
        );
    }
    at_most(MAX_LIST, written.hash_on.len(), "spec.loadBalancer.hashOn", notes);
    let hash = written.hash_on.iter().enumerate();
    let hash = hash.filter_map(|(index, key)| hash_key(&format!("{at}.hashOn[{index}]"), key, notes));
    v1::LoadBalancer {
        algorithm: algorithm.into(),
        hash: hash.collect(),
        warm_up: written.warm_up.as_ref().map(|one| v1::WarmUp {
            duration: on_the_wire(time_from(
                MIN_TIME,
                &format!("{at}.warmUp.duration"),
                &one.duration,
                notes,
            )),
            minimum_percent: within(
                format!("{at}.warmUp.minimumPercent"),
                one.minimum_percent,
                1..=100,
                notes,
            ),
        }),
        zones: written.zones.as_ref().map(|one| zones(&format!("{at}.zones"), one, notes)),
        panic_percent: within(
            format!("{at}.panicThresholdPercent"),
            written.panic_threshold_percent,
            0..=100,
            notes,
        ),
    }
}

fn hash_key(at: &str, written: &kinds::HashOn, notes: &mut Notes) -> Option<v1::HashKey> {
    use v1::hash_key::Key;

    let mut named = |field: &str, name: &Option<String>| {
        let name = name.as_ref()?;
        check_name(format!("{at}.{field}"), name, notes);
        Some(name.clone())
    };
    let header = named("header", &written.header);
    let cookie = named("cookie", &written.cookie);
    let query = named("queryParameter", &written.query_parameter);
    let keys = [
        header.map(|name| Key::Header(name.to_ascii_lowercase())),
        cookie.map(Key::Cookie),
        query.map(Key::QueryParameter),
        written.source.map(|_| Key::Source(v1::Source {})),
    ];
    let mut keys = keys.into_iter().flatten();
    match (keys.next(), keys.next()) {
        (Some(key), None) => Some(v1::HashKey { key: Some(key) }),
        _ => {
            let hint = "write exactly one of `header`, `cookie`, `queryParameter` and `source: {}`";
            notes.refuse(at, "it is not clear what is hashed", hint);
            None
        }
    }
}

fn zones(at: &str, written: &kinds::Zones, notes: &mut Notes) -> v1::ZonePreference {
    let mut number = |field: &str, number: i32, least: i32, most: i32| {
        within(format!("{at}.{field}"), number, least..=most, notes)
    };
    v1::ZonePreference {
        maximum_load_percent: number("maximumLoadPercent", written.maximum_load_percent, 100, 100_000),
        in_flight: written
            .requests_in_flight
            .map_or(0, |in_flight| number("requestsInFlight", in_flight, 1, i32::MAX)),
        refused_percent: written
            .refused_percent
            .map_or(0, |percent| number("refusedPercent", percent, 1, 100)),
        latency: on_the_wire(
            written
                .latency
                .as_ref()
                .and_then(|latency| time_from(MIN_TIME, &format!("{at}.latency"), latency, notes)),
        ),
    }
}

fn outlier_detection(written: &kinds::OutlierDetection, notes: &mut Notes) -> v1::OutlierDetection {
    let at = "spec.outlierDetection";
    let mut count = |field: &str, number: Option<i32>| {
        number.map_or(0, |number| within(format!("{at}.{field}"), number, 1..=i32::MAX, notes))
    };
    let consecutive = [
        count("consecutive5xx", written.consecutive_5xx),
        count("consecutiveGatewayErrors", written.consecutive_gateway_errors),
        count("consecutiveConnectFailures", written.consecutive_connect_failures),
        count("consecutiveGrpcErrors", written.consecutive_grpc_errors),
    ];
    let [five, gateway, connect, grpc] = consecutive;
    let is_nothing = consecutive == [0; 4]
        && written.success_rate.is_none()
        && written.failure_percentage.is_none()
        && !notes.refused();
    if is_nothing {
        notes.refuse(
            at,
            "no criterion says which endpoints are ejected",
            "write one, such as `consecutiveGatewayErrors: 5`",
        );
    }
    if written.grpc_codes.is_empty() {
        notes.refuse(format!("{at}.grpcCodes"), "the list is empty", "leave it out for its default");
    }
    let first = time_from(MIN_TIME, &format!("{at}.ejectionTime"), &written.ejection_time, notes);
    let field = format!("{at}.maximumEjectionTime");
    let most = time_from(MIN_TIME, &field, &written.maximum_ejection_time, notes);
    if let (Some(first), Some(most)) = (first, most)
        && most < first
    {
        notes.refuse(field, "shorter than `ejectionTime`", "make it at least as long");
    }
    v1::OutlierDetection {
        consecutive_5xx: five,
        consecutive_gateway_errors: gateway,
        consecutive_connect_failures: connect,
        consecutive_grpc_errors: grpc,
        grpc_codes: grpc_codes(&written.grpc_codes),
        success_rate: written.success_rate.as_ref().map(|one| success_rate(one, notes)),
        failure_percentage: written.failure_percentage.as_ref().map(|one| failure_percentage(one, notes)),
        interval: on_the_wire(time_from(MIN_INTERVAL, &format!("{at}.interval"), &written.interval, notes)),
        base_ejection: on_the_wire(first),
        maximum_ejection: on_the_wire(most),
        maximum_ejected_percent: within(
            format!("{at}.maximumEjectedPercent"),
            written.maximum_ejected_percent,
            1..=100,
            notes,
        ),
    }
}

fn success_rate(written: &kinds::SuccessRate, notes: &mut Notes) -> v1::SuccessRate {
    let at = "spec.outlierDetection.successRate";
    let deviations = written.standard_deviations;
    if !(0.001..=1000.0).contains(&deviations) {
        let message = format!("{deviations} is out of bounds");
        notes.refuse(format!("{at}.standardDeviations"), message, "0.001 to 1000");
    }
    let mut number = |field: &str, number: i32| within(format!("{at}.{field}"), number, 1..=i32::MAX, notes);
    v1::SuccessRate {
        // In bounds where it counts; the cast saturates elsewhere.
        deviations: (deviations * 1000.0).round() as u32,
        minimum_endpoints: number("minimumEndpoints", written.minimum_endpoints),
        minimum_requests: number("minimumRequests", written.minimum_requests),
    }
}

fn failure_percentage(written: &kinds::FailurePercentage, notes: &mut Notes) -> v1::FailurePercentage {
    let at = "spec.outlierDetection.failurePercentage";
    v1::FailurePercentage {
        threshold_percent: within(
            format!("{at}.thresholdPercent"),
            written.threshold_percent,
            1..=100,
            notes,
        ),
        minimum_requests: within(
            format!("{at}.minimumRequests"),
            written.minimum_requests,
            1..=i32::MAX,
            notes,
        ),
    }
}

fn health_check(written: &kinds::HealthCheck, notes: &mut Notes) -> v1::HealthCheck {
    use v1::health_check::Kind;

    let at = "spec.healthCheck";
    let http = written.http.as_ref().map(|http| {
        // As the proxy reads it; what follows a `#` would not be sent.
        let is_path = http.path.starts_with('/')
            && http.path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
            && http.path.parse::<http::uri::PathAndQuery>().is_ok();
        if !is_path || http.path.len() > 1024 {
            notes.refuse(
                format!("{at}.http.path"),
                format!("`{}` cannot be a path", http.path),
                "it begins with `/`, and is as it is sent: printable ASCII without blanks, quoted where RFC 3986 wants it, at most 1024 characters",
            );
        }
        let host = http.host.clone().unwrap_or_default();
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        let is_host = host.bytes().all(is_host) && host.parse::<http::uri::Authority>().is_ok();
        if http.host.is_some() && !is_host {
            let hint = "a host name, and a port if need be, such as `orders.shop:8080`";
            notes.refuse(format!("{at}.http.host"), format!("`{host}` cannot be a Host header"), hint);
        }
        Kind::Http(v1::HttpHealthCheck { path: http.path.clone(), host })
    });
    let grpc = written
        .grpc
        .as_ref()
        .map(|grpc| Kind::Grpc(v1::GrpcHealthCheck { service: grpc.service.clone().unwrap_or_default() }));
    let kinds = [http, grpc, written.tcp.map(|_| Kind::Tcp(v1::TcpHealthCheck {}))];
    let mut kinds = kinds.into_iter().flatten();
    let (kind, other) = (kinds.next(), kinds.next());
    if kind.is_none() || other.is_some() {
        let hint = "write exactly one of `http: {path: …}`, `grpc: {}` and `tcp: {}`";
        notes.refuse(at, "it is not clear how endpoints are asked", hint);
    }
    let interval = time_from(MIN_INTERVAL, &format!("{at}.interval"), &written.interval, notes);
    let timeout = time_from(MIN_TIME, &format!("{at}.timeout"), &written.timeout, notes);
    v1::HealthCheck {
        kind,
        interval: on_the_wire(interval),
        timeout: on_the_wire(timeout),
        healthy_threshold: within(
            format!("{at}.healthyThreshold"),
            written.healthy_threshold,
            1..=100,
            notes,
        ),
        unhealthy_threshold: within(
            format!("{at}.unhealthyThreshold"),
            written.unhealthy_threshold,
            1..=100,
            notes,
        ),
    }
}

fn limits(written: &kinds::Limits, notes: &mut Notes) -> v1::Limits {
    let at = "spec.limits";
    let mut limit = |field: &str, number: Option<i32>| {
        let Some(number) = number else {
            return 0;
        };
        if number < 1 {
            notes.refuse(
                format!("{at}.{field}"),
                format!("{number} would let nothing through"),
                "1 or more; leave it out for no limit, and write `queueTimeout: 0s` where no request is to wait",
            );
        }
        u32::try_from(number).unwrap_or_default()
    };
    v1::Limits {
        maximum_connections: limit("maximumConnections", written.maximum_connections),
        maximum_connections_per_endpoint: limit(
            "maximumConnectionsPerEndpoint",
            written.maximum_connections_per_endpoint,
        ),
        maximum_requests: limit("maximumRequests", written.maximum_requests),
        maximum_requests_per_endpoint: limit(
            "maximumRequestsPerEndpoint",
            written.maximum_requests_per_endpoint,
        ),
        maximum_pending: limit("maximumPending", written.maximum_pending),
        queue_timeout: on_the_wire(time(&format!("{at}.queueTimeout"), &written.queue_timeout, notes)),
    }
}

fn connections(written: &kinds::Connections, notes: &mut Notes) -> v1::Connections {
    let at = "spec.connections";
    let mut maybe = |field: &str, written: &Option<kinds::Duration>| {
        on_the_wire(written.as_ref().and_then(|one| time(&format!("{at}.{field}"), one, notes)))
    };
    v1::Connections {
        connect_timeout: maybe("connectTimeout", &written.connect_timeout),
        idle_timeout: maybe("idleTimeout", &written.idle_timeout),
        maximum_age: maybe("maximumAge", &written.maximum_age),
        keep_alive: written.keep_alive.as_ref().map(|one| keep_alive(one, notes)),
    }
}

fn keep_alive(written: &kinds::KeepAlive, notes: &mut Notes) -> v1::KeepAlive {
    let at = "spec.connections.keepAlive";
    let mut seconds = |field: &str, written: &kinds::Duration| {
        let field = format!("{at}.{field}");
        let read = time(&field, written, notes)?;
        if read < Duration::from_secs(1) || read > MAX_KEEP_ALIVE {
            notes.refuse(field, format!("`{}` is out of bounds", written.0), "1s to 32767s");
        }
        Some(read)
    };
    v1::KeepAlive {
        time: on_the_wire(seconds("time", &written.time)),
        interval: on_the_wire(seconds("interval", &written.interval)),
        probes: within(format!("{at}.probes"), written.probes, 1..=127, notes),
    }
}
