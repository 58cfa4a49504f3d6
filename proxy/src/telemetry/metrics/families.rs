//! The table of metric families.

/// What a family's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; starts at 0 when the proxy does.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations by bucket.
    Histogram,
}

/// Metrics of one name.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// The name.
    pub name: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// The labels' names. A label whose value is empty is left out.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

macro_rules! families {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(crate) static $constant: Family =
            Family { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*

        /// Every family, in the order of `/metrics` and of the reference page.
        pub(crate) static FAMILIES: &[&Family] = &[$(&$constant),*];
    };
}

families! {
    REQUESTS = Counter "tulle_requests_total"
        ["direction", "tls", "peer", "service", "route", "backend", "method", "status", "grpc_status", "reason", "reason_by", "overflow"]
        "Requests that ended, answered by whomever.";
    REQUESTS_ACTIVE = Gauge "tulle_requests_active" ["direction"]
        "Requests that have begun and not ended.";
    SERVER_DURATION = Histogram "http_server_request_duration_seconds"
        ["tls", "peer", "service", "route", "backend", "method", "status", "overflow"]
        "Inbound: from a request's head to the response's end.";
    CLIENT_DURATION = Histogram "http_client_request_duration_seconds"
        ["tls", "peer", "service", "route", "backend", "method", "status", "overflow"]
        "Outbound: from a request's head to the response's end, all tries together.";
    SERVER_REQUEST_SIZE = Histogram "http_server_request_body_size_bytes" []
        "Inbound: the bytes of requests' bodies.";
    SERVER_RESPONSE_SIZE = Histogram "http_server_response_body_size_bytes" []
        "Inbound: the bytes of responses' bodies.";
    CLIENT_REQUEST_SIZE = Histogram "http_client_request_body_size_bytes" []
        "Outbound: the bytes of requests' bodies.";
    CLIENT_RESPONSE_SIZE = Histogram "http_client_response_body_size_bytes" []
        "Outbound: the bytes of responses' bodies.";
    CONNECTIONS = Counter "tulle_connections_total" ["direction", "tls", "peer", "service", "route", "backend", "overflow"]
        "Connections that were accepted.";
    CONNECTIONS_ACTIVE = Gauge "tulle_connections_active" ["direction", "tls", "peer", "service", "route", "backend", "overflow"]
        "Accepted connections that are open.";
    CONNECTION_BYTES = Counter "tulle_connection_bytes_total" ["direction", "tls", "peer", "service", "route", "backend", "overflow", "way"]
        "Bytes on accepted connections: received from the side that opened the connection, or sent to it.";
    REFUSED = Counter "tulle_refused_total" ["direction", "reason"]
        "Connections and requests that the proxy itself refused or answered; the reasons are in errors.md.";
    POLICY_VERDICTS = Counter "tulle_policy_verdicts_total" ["verdict", "rule", "reason", "overflow"]
        "What policy said, by the rule that decided.";
    EGRESS = Counter "tulle_egress_total" ["verdict", "protocol", "name", "overflow"]
        "What left the mesh, or would have: requests of HTTP in plain text (http), connections with TLS of the application's own (tls) and others (tcp).";
    TLS_HANDSHAKES = Counter "tulle_tls_handshakes_total" ["direction", "result", "reason"]
        "Handshakes of the mesh's TLS; result is ok or failed.";
    TLS_HANDSHAKE_DURATION = Histogram "tulle_tls_handshake_duration_seconds" ["direction"]
        "How long handshakes took, also failed ones.";
    DETECT = Counter "tulle_detect_total" ["result", "protocol"]
        "How the protocols of connections were found: detected, from the client's first bytes; declared; server_first; timeout or limit, too little came in time or too much that tells nothing; closed, the client left before; or drained, the proxy drains and has closed a connection whose client had not said it in time.";
    DETECT_DURATION = Histogram "tulle_detect_duration_seconds" []
        "Until the protocol was known or the server had spoken, from accept or the end of the handshake on.";
    OPENED_EARLY = Counter "tulle_detect_opened_early_total" ["result"]
        "Servers that were opened before their clients had spoken: used, unused (the client spoke HTTP or the mesh's TLS), or failed.";
    DISCOVERY = Counter "tulle_discovery_total" ["result"]
        "First uses of an address or service.";
    DISCOVERY_DURATION = Histogram "tulle_discovery_duration_seconds" []
        "How long first uses were held for the control plane's answer.";
    POOL_DIALS = Counter "tulle_pool_dials_total" ["result", "reason"]
        "Connects to endpoints and to the application; result is ok or failed.";
    POOL_DIAL_DURATION = Histogram "tulle_pool_dial_duration_seconds" []
        "How long connects took, TLS included, also failed ones; without what they waited before for a place under limits.";
    POOL_CONNECTIONS = Gauge "tulle_pool_connections" ["service", "overflow"]
        "Connections of pools, in use and idle, by the service that the endpoint is of; to the application and to addresses of no service without that label.";
    POOL_IDLE = Gauge "tulle_pool_connections_idle" ["service", "overflow"]
        "Of these, the connections that serve no request.";
    POOL_CLOSED = Counter "tulle_pool_closed_total" ["cause"]
        "Connections that left a pool.";
    POOL_REUSED = Counter "tulle_pool_reused_total" []
        "Requests sent on a connection that had served another.";
    REPLAYS = Counter "tulle_replays_total" ["cause"]
        "Requests sent once more without configuration, and opaque connections made at another endpoint.";
    RETRIES = Counter "tulle_retries_total" ["cause", "outcome"]
        "Requests sent again because a rule's or policy's retry says so, each time once it is over; cause is unprocessed, broken, late, or status; outcome is answered, failed (again), or unfinished (its time was over or its client gone).";
    UNRETRIED = Counter "tulle_retries_withheld_total" ["cause"]
        "Requests not sent again that a rule's or policy's retry is for, by what forbade it: attempts, body (too long to be kept), time, method (not idempotent), budget, or pushback (the server does not want it, or not for so long).";
    FAULTS = Counter "tulle_faults_injected_total" ["kind"]
        "Tries that a FaultPolicy held (delay) or answered in their backend's place (abort).";
    MIRRORS = Counter "tulle_mirrors_total" ["result"]
        "Copies of requests that RequestMirror asks for; result is answered, failed, timed_out, or dropped where too many were under way.";
    RATE_LIMITS = Counter "tulle_rate_limit_requests_total" ["limit", "outcome", "overflow"]
        "Requests that rate limits speak of, by the limit's name; outcome is allowed, by all of them, or refused, by this one; of a limit in dry run, would_refuse in its place.";
    EXTERNAL_CHECKS = Counter "tulle_external_checks_total" ["policy", "result", "cached", "enforced", "overflow"]
        "Requests that an ExternalAuthorization is about, by what came of asking: allowed, denied, failed (no answer, or none that can be read), timed_out, or too_large (its body, so that nobody was asked); cached is true where the answer to the same question was at hand, enforced is false in a dry run.";
    EXTERNAL_CHECK_DURATION = Histogram "tulle_external_check_duration_seconds" []
        "How long authorizers were waited for, connecting included, also in vain.";
    LIMITS = Counter "tulle_limit_reached_total" ["service", "limit", "outcome", "overflow"]
        "Requests and connections that found no place under a limit of a TrafficPolicy: waited, let through after a while, or refused. Those that nobody wants any more before either are not counted.";
    LIMIT_USED = Gauge "tulle_limit_used" ["service", "limit", "overflow"]
        "What is under way of what a TrafficPolicy limits, all workers together; under a limit per endpoint: at the one where most is.";
    LIMIT_WAITING = Gauge "tulle_limit_waiting" ["service", "limit", "overflow"]
        "Requests and dials that wait for a place under it.";
    SESSIONS = Counter "tulle_sessions_total" ["result"]
        "Answered requests of rules with sessionPersistence: kept at their endpoint; new, without a token; moved to another endpoint; expired, their session's time being over; or invalid, with a token that none of the mesh's proxies made for the rule.";
    TOKENS = Counter "tulle_tokens_total" ["result", "mode"]
        "Requests of which a RequestAuthentication speaks, by what became of their token: verified, or cached (it was a moment ago); absent where none is needed, missing where one is; refused as several (that differ), too_long, malformed, algorithm, issuer, audience, expired, not_yet, key (none of the issuer's fits it), signature, claim (one cannot be a header's value), or no_keys (the issuer's are not there). Under mode dry_run: what policies in DryRun would have refused.";
    JWKS_FETCHES = Counter "tulle_jwks_fetches_total" ["url", "result"]
        "Sets of keys of issuers that were asked for; result is ok, or failed: then the last good ones stay.";
    JWKS_FETCHED = Gauge "tulle_jwks_last_fetch_timestamp_seconds" ["url"]
        "When keys were last fetched and good.";
    BALANCER_ENDPOINTS = Gauge "tulle_balancer_endpoints" ["service", "state", "overflow"]
        "Endpoints of services whose TrafficPolicy, or whose endpoints' weights, say how they are balanced: usable, warming (its share grows), probation (back from an ejection, and tried), ejected, unhealthy (by health checks), or unready.";
    BALANCER_EJECTIONS = Counter "tulle_balancer_ejections_total" ["service", "cause", "overflow"]
        "Endpoints of such services that were ejected, by what was too much: consecutive_5xx, consecutive_gateway_errors, consecutive_connect_failures, consecutive_grpc_errors, success_rate, failure_percentage, or probation (the first failure after the one before). Gone with the service, once that has not been used for ten minutes.";
    BALANCER_WITHHELD = Counter "tulle_balancer_ejections_withheld_total" ["service", "overflow"]
        "Ejections of endpoints that were not made, since too many would have been ejected.";
    BALANCER_PANICS = Counter "tulle_balancer_panics_total" ["service", "overflow"]
        "Requests, each time they are sent, and connections that went to an endpoint while too few were usable, so that ejected and unhealthy ones were used too.";
    BALANCER_ZONES = Counter "tulle_balancer_zone_picks_total" ["service", "zone", "overflow"]
        "Requests, each time they are sent, and connections that went to endpoints of the proxy's own zone (own) and of others (other), where that zone is preferred.";
    ACCEPT_ERRORS = Counter "tulle_accept_errors_total" []
        "Accepts that failed, for want of file descriptors mostly.";
    HANDED_OVER = Counter "tulle_accept_handed_over_total" []
        "Accepted connections that went to a less loaded worker.";
    HEALTH_CHECKS = Counter "tulle_health_checks_total" ["service", "outcome", "overflow"]
        "Active health checks of endpoints, by what came of them: passed, refused (the answer says otherwise), broken (there was no proper answer), connect_failed, timed_out, or not_asked (this proxy had no valid certificate, nothing left to connect with, or was ending: it tells nothing of the endpoint).";
    ADS_CONNECTED = Gauge "tulle_ads_connected" []
        "1 while the stream to the control plane is up.";
    ADS_CONNECTIONS = Counter "tulle_ads_connections_total" []
        "Streams to the control plane that came up.";
    ADS_ACKS = Counter "tulle_ads_acks_total" ["type"]
        "Responses that were applied as they are.";
    ADS_NACKS = Counter "tulle_ads_nacks_total" ["type"]
        "Responses with resources that were rejected.";
    ADS_RESOURCES = Gauge "tulle_ads_resources" ["type"]
        "Resources that are held.";
    ADS_SUBSCRIPTIONS = Gauge "tulle_ads_subscriptions" ["type"]
        "Names that are subscribed to.";
    ADS_REJECTED = Gauge "tulle_ads_rejected_resources" ["type"]
        "Resources whose newest version was rejected; what was held before is still in use.";
    ADS_COMPARISONS = Counter "tulle_ads_comparisons_total" ["result"]
        "Comparisons of what is held with what the control plane says: equal, different, or unsettled (too much was under way; asked again).";
    ADS_DIFFERENCES = Counter "tulle_ads_differences_total" ["type"]
        "Differences that comparisons found: one for each type in which both ends differ, and for each resource that is not in use as it was told.";
    ADS_REPAIRS = Counter "tulle_ads_repairs_total" []
        "Streams that were opened anew because something had been lost.";
    ADS_LAST_UPDATE = Gauge "tulle_ads_last_update_timestamp_seconds" []
        "When the last response came.";
    REGISTERED = Gauge "tulle_registered" []
        "1 while the control plane holds this workload's registration.";
    IDENTITY_EXPIRATION = Gauge "tulle_identity_cert_expiration_timestamp_seconds" ["kind"]
        "When a certificate in use expires: leaf, issuer, root.";
    IDENTITY_RENEWALS = Counter "tulle_identity_renewals_total" ["result"]
        "Certificates that were asked for; result is ok or failed.";
    DNS_QUERIES = Counter "tulle_dns_queries_total" ["result"]
        "Questions about names: answered from the mesh (mesh), known not to exist there (absent), answered by the name servers (forwarded), by nobody (failed), not of a kind that is answered (refused), or unreadable (malformed).";
    LOG_DROPPED = Counter "tulle_log_lines_dropped_total" ["log"]
        "Lines that were dropped because nobody read them fast enough.";
    SPANS_EXPORTED = Counter "tulle_trace_spans_exported_total" []
        "Spans that a collector has taken; this and the next two are there once one is configured.";
    SPANS_DROPPED = Counter "tulle_trace_spans_dropped_total" ["cause"]
        "Spans that were dropped: queue_full, too many were waiting to be sent; exporter, the collector did not take them.";
    SPAN_EXPORT_FAILURES = Counter "tulle_trace_export_failures_total" []
        "Batches of spans that the collector did not take, in time or at all.";
    TAPS = Gauge "tulle_taps" []
        "Taps that run (`tulle tap`, `tulle top`); this and the next are there once one has.";
    TAP_REQUESTS = Counter "tulle_tap_requests_total" ["result"]
        "Requests that taps were to show: shown; over_rate, more in a second than a tap asks for; dropped, no room on the way to the control plane.";
    BUILD_INFO = Gauge "tulle_build_info" ["component", "version"]
        "Always 1.";
    WORKERS = Gauge "tulle_workers" []
        "Worker threads.";
    WORKER_BUSY = Counter "tulle_worker_busy_seconds_total" ["worker"]
        "How long a worker was not waiting for anything: by a rate, the share of its time.";
    WORKER_LAG = Histogram "tulle_worker_lag_seconds" []
        "How late workers were at a task that is due each second: what else is due waits as long. Timers are to the millisecond.";
    SERIES_LIMITED = Gauge "tulle_metrics_limited" []
        "1 once the cap on lines has sent something to an overflow series.";
    PROCESS_CPU = Counter "process_cpu_seconds_total" []
        "CPU time, user and system.";
    PROCESS_RSS = Gauge "process_resident_memory_bytes" []
        "Resident memory.";
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes" []
        "Virtual memory.";
    PROCESS_FDS = Gauge "process_open_fds" []
        "Open file descriptors.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" []
        "File descriptors that may be open.";
    PROCESS_THREADS = Gauge "process_threads" []
        "Threads.";
    PROCESS_START = Gauge "process_start_time_seconds" []
        "When the process started.";
}

/// The text of `docs/reference/metrics.md`.
pub fn reference() -> String {
    use std::fmt::Write as _;
    let mut out = String::from(INTRODUCTION);
    for family in FAMILIES {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "—".to_owned() } else { labels.join(", ") };
        let _ = writeln!(out, "| `{}` | {kind} | {labels} | {} |", family.name, family.help);
    }
    out.push_str(LABELS);
    out
}

const INTRODUCTION: &str = "# tulle-proxy: metrics

`GET /metrics` on port 15020, in the Prometheus text format, or as OpenMetrics for who asks for that (`Accept: application/openmetrics-text`). Times are in seconds, sizes in bytes. Names and buckets of request durations are
those of OpenTelemetry. This page is made from the table in `proxy/src/telemetry/metrics/families.rs`.

| metric | kind | labels | meaning |
| --- | --- | --- | --- |
";

const LABELS: &str = "
## Labels

A label whose value is empty is left out.

| label | values |
| --- | --- |
| `direction` | `inbound`: to the application of this proxy; `outbound`: from it |
| `tls` | on the way between workloads: `mtls`, of the mesh, with certificates on both sides; `none`, plain text; `app`, the application's own TLS, which the proxy does not look into; `own`, no such way: a workload asks itself; none where it is not known: no endpoint was chosen, or the connection's requests go to many |
| `peer` | the SPIFFE ID of the other workload: inbound the client's, outbound the server's |
| `service` | `<namespace>/<name>:<port>` of the service that was dialled; never the Host header |
| `route` | `<namespace>/<name>` of the route that matched |
| `backend` | `<namespace>/<name>:<port>` of the backend that was chosen |
| `method` | a method of RFC 9110 or `PATCH`; any other is `_OTHER` |
| `status` | the response's status; none if there was no response |
| `grpc_status` | the number of gRPC's status, from trailers or head; `_OTHER` if it is not one |
| `reason` | a reason of [errors.md](errors.md), if the proxy made the answer, refused or gave up |
| `reason_by` | with `reason`: `self`, this proxy; `peer`, that of the other workload, as its answer says (`x-tulle-error`) |
| `verdict` | `allow`; `audit`, let through and logged; `deny`; `would_deny`, let through, and refused if the policies in dry run were in force: counted besides what was said of it |
| `name` | of `tulle_egress_total`: the request's host or TLS's server name, as the client gives it; `_OTHER` beyond the first 100 |
| `limit` | the name of a limit: `<namespace>/<policy>/<limit>` of a RateLimitPolicy; of `tulle_limit_…`: `connections`, `connections_per_endpoint`, `requests`, `requests_per_endpoint` or `pending` |
| `cause` | of `tulle_pool_closed_total`: `idle`, it had idled for too long; `peer`, the server closed it while it was idle (a shared HTTP/2 connection: at any time); `ended`, its exchange was the last, since it failed, was given up or upgraded, or the answer forbids another; `retired`, its endpoint went away; `limit`, it was idle, and another was needed that the limit on connections leaves no room for; `age`, it had reached its maximum age |
| `worker` | a worker's number, from 0 |
| `overflow` | `true` for what no longer fits, see below |

No label takes a value that a client chooses freely, but for the 100 first names of `tulle_egress_total`. `/metrics` has at most `TULLE_PROXY_METRICS_MAX_SERIES` lines (2000): what comes beyond is counted
in series of `overflow=\"true\"` with the direction only, and `tulle_metrics_limited` is 1. Histograms may take three quarters of the lines, so that
counts of errors find room when latencies no longer do. `TULLE_PROXY_METRICS_LABELS` says which of `peer`, `service`, `route` and `backend` requests and
connections are told apart by: fewer series for a workload that many call. `TULLE_PROXY_METRICS_LATENCY_BUCKETS` says the bounds of durations. No series is ever taken away: a counter starts anew only when the proxy does.
";
