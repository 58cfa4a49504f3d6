//! TrafficPolicy.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attached::{Duration, GrpcCode, Present, SectionTargetRef, interval, not_zero, rule};
use super::status::PolicyStatus;

/// How clients treat a Service, or the requests that follow a route. What is not written stays as it is without the
/// policy. Of several policies the most specific holds, section by section: what a route says itself, then a policy on its rule,
/// on the route, on the Service's port, on the Service. Of two on the very same target the older holds.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[kube(
    group = "policy.tulle.dev",
    version = "v1alpha1",
    kind = "TrafficPolicy",
    plural = "trafficpolicies",
    namespaced,
    status = "PolicyStatus",
    label("gateway.networking.k8s.io/policy", "Inherited"),
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("self.targetRefs.all(t, t.kind == 'Service') || !(has(self.loadBalancer) || has(self.outlierDetection) || has(self.healthCheck) || has(self.limits) || has(self.connections) || has(self.retryBudget))", "of requests that follow a route only timeouts and retry can be said")
]))]
pub struct TrafficPolicySpec {
    /// Services, HTTPRoutes and GRPCRoutes in the policy's own namespace. On a route only `timeouts` and `retry` mean
    /// anything.
    #[schemars(length(min = 1, max = 16))]
    #[schemars(extend("x-kubernetes-validations" = [
        rule("self.all(a, self.exists_one(b, b.kind == a.kind && b.name == a.name && (has(b.sectionName) ? b.sectionName : '') == (has(a.sectionName) ? a.sectionName : '')))", "each target once")
    ]))]
    pub target_refs: Vec<SectionTargetRef>,
    /// Which endpoint a request goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// Which endpoints get nothing for a while, since requests to them fail: at least one of the criteria, and how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// How endpoints are asked whether they serve; those that do not get nothing. Exactly one of `http`, `grpc` and `tcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// How much one client's proxy sends at once, over all its connections. What is not written has no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// How long connections are waited for and kept. What is not written is as the client's proxy is set; `0s` is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connections>,
    /// How long a request may take. What is not written is said by a less specific policy, or has no limit; `0s` is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// When a request is sent again. What may have been processed is not, unless its method is idempotent or the answer is one of
    /// `statuses` or `grpcCodes`. Without it, once more is sent only what provably was not processed, and what is idempotent and got no
    /// byte of an answer on a connection that had served before and broke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// How many retries there may be beside first tries, from one client's proxy to a port of the Service; those of an
    /// HTTPRoute's own `retry` too (GEP-3388).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
}

/// Which endpoint a request goes to.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("(self.algorithm in ['RingHash', 'Maglev']) == (has(self.hashOn) && self.hashOn.size() > 0)", "RingHash and Maglev need hashOn, and the others go by no hash")
]))]
pub struct LoadBalancer {
    /// How one is chosen; `PeakEwma` by default.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// What `RingHash` and `Maglev` go by, and nothing else does: the first of these that a request has. In each, exactly one
    /// of the fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub hash_on: Vec<HashOn>,
    /// New endpoints get their share little by little.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUp>,
    /// Endpoints in the client's own zone are preferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zones: Option<Zones>,
    /// When fewer than this many of a hundred endpoints can be used, all are used: it is then more likely that what finds
    /// them bad is wrong, and the few could not bear the load. 0: only when none can be used.
    #[serde(default = "fifty")]
    #[schemars(range(min = 0, max = 100))]
    pub panic_threshold_percent: i32,
}

/// How an endpoint is chosen.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Algorithm {
    /// The better of two by latency and requests in flight.
    #[default]
    PeakEwma,
    /// The better of two by requests in flight.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// By a hash on a ring: requests with the same hash go to the same endpoint, and few change when endpoints come and go.
    RingHash,
    /// Likewise, by Maglev's table: more even, and a few more change.
    Maglev,
}

/// What is hashed: exactly one of these.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("[has(self.header), has(self.cookie), has(self.queryParameter), has(self.source)].exists_one(one, one)", "exactly one of header, cookie, queryParameter and source")
]))]
pub struct HashOn {
    /// A header, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// A cookie, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// A parameter of the query, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_parameter: Option<String>,
    /// The client's address: `{}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Present>,
}

/// How new endpoints get their share.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WarmUp {
    /// How long until an endpoint gets as much as the others.
    #[schemars(extend("x-kubernetes-validations" = [not_zero()]))]
    pub duration: Duration,
    /// What it gets at first, in percent of the others' share.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 100))]
    pub minimum_percent: i32,
}

/// How much the client's own zone takes before others do.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Zones {
    /// The most that an endpoint of the zone may get, in percent of what each would if there were no zones.
    #[serde(default = "hundred_and_fifty")]
    #[schemars(range(min = 100, max = 100_000))]
    pub maximum_load_percent: i32,
    /// Average latency of its endpoints from which on more and more goes elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [not_zero()]))]
    pub latency: Option<Duration>,
    /// Likewise, requests in flight to one of its endpoints, from one client's proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub requests_in_flight: Option<i32>,
    /// Likewise, answers 429 and 503 in a hundred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub refused_percent: Option<i32>,
}

/// Which endpoints get nothing for a while: at least one of the criteria, and how.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("has(self.consecutive5xx) || has(self.consecutiveGatewayErrors) || has(self.consecutiveConnectFailures) || has(self.consecutiveGrpcErrors) || has(self.successRate) || has(self.failurePercentage)", "at least one criterion says which endpoints are ejected"),
    rule("duration(self.maximumEjectionTime) >= duration(self.ejectionTime)", "maximumEjectionTime is at least as long as ejectionTime")
]))]
pub struct OutlierDetection {
    /// So many failures in a row: answers of 5xx, and no answer.
    #[serde(default, rename = "consecutive5xx", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub consecutive_5xx: Option<i32>,
    /// So many in a row of 502, 503, 504, and no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub consecutive_gateway_errors: Option<i32>,
    /// So many connections in a row that could not be opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub consecutive_connect_failures: Option<i32>,
    /// So many answers in a row with one of `grpcCodes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub consecutive_grpc_errors: Option<i32>,
    /// What counts as a failure of an endpoint in gRPC. By default what says that a server is broken, and not that a request
    /// is.
    #[serde(default = "broken", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub grpc_codes: Vec<GrpcCode>,
    /// Endpoints that fail much more often than the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
    /// Endpoints that fail more often than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_percentage: Option<FailurePercentage>,
    /// The window of `successRate` and `failurePercentage`.
    #[serde(default = "ten_seconds")]
    #[schemars(extend("x-kubernetes-validations" = [interval()]))]
    pub interval: Duration,
    /// How long an endpoint gets nothing the first time; each time in a row so much longer.
    #[serde(default = "thirty_seconds")]
    #[schemars(extend("x-kubernetes-validations" = [not_zero()]))]
    pub ejection_time: Duration,
    /// How long at most.
    #[serde(default = "five_minutes")]
    #[schemars(extend("x-kubernetes-validations" = [not_zero()]))]
    pub maximum_ejection_time: Duration,
    /// Of a hundred endpoints, how many at most at a time; one may always be, of two or more.
    #[serde(default = "fifty")]
    #[schemars(range(min = 1, max = 100))]
    pub maximum_ejected_percent: i32,
}

/// Endpoints that fail much more often than the others.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SuccessRate {
    /// By how many standard deviations below the mean; counted to the thousandth.
    #[serde(default = "deviations")]
    #[schemars(range(min = 0.001, max = 1000.0))]
    pub standard_deviations: f64,
    /// Of how many endpoints with `minimumRequests` there must be to compare.
    #[serde(default = "five")]
    #[schemars(range(min = 1))]
    pub minimum_endpoints: i32,
    /// Requests within the window for an endpoint to be looked at.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1))]
    pub minimum_requests: i32,
}

/// Endpoints that fail more often than this.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailurePercentage {
    /// Failures in a hundred requests.
    #[serde(default = "eighty_five")]
    #[schemars(range(min = 1, max = 100))]
    pub threshold_percent: i32,
    /// Requests within the window for an endpoint to be looked at.
    #[serde(default = "fifty")]
    #[schemars(range(min = 1))]
    pub minimum_requests: i32,
}

/// How endpoints are asked whether they serve: exactly one of `http`, `grpc` and `tcp`, and how often.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("[has(self.http), has(self.grpc), has(self.tcp)].exists_one(one, one)", "exactly one of http, grpc and tcp")
]))]
pub struct HealthCheck {
    /// A GET; answers of 200 to 399 are good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpHealthCheck>,
    /// `grpc.health.v1.Health/Check`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcHealthCheck>,
    /// A connection, with the handshake where the endpoint is in the mesh: `{}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Present>,
    /// How often.
    #[serde(default = "ten_seconds")]
    #[schemars(extend("x-kubernetes-validations" = [interval()]))]
    pub interval: Duration,
    /// How long an answer may take.
    #[serde(default = "one_second")]
    #[schemars(extend("x-kubernetes-validations" = [not_zero()]))]
    pub timeout: Duration,
    /// Good answers in a row until an endpoint serves again.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 100))]
    pub healthy_threshold: i32,
    /// Bad or no answers in a row until an endpoint gets nothing.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_threshold: i32,
}

/// A GET.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpHealthCheck {
    /// What is asked for.
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,
    /// The Host header; `<Service>.<namespace>` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

/// `grpc.health.v1.Health/Check`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrpcHealthCheck {
    /// The gRPC service that is asked about; the server as a whole by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// How much one client's proxy sends at once, over all its connections. What is not written has no limit.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Connections to all endpoints together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub maximum_connections: Option<i32>,
    /// Connections to each endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub maximum_connections_per_endpoint: Option<i32>,
    /// Requests in flight to all endpoints together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub maximum_requests: Option<i32>,
    /// Requests in flight to each endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub maximum_requests_per_endpoint: Option<i32>,
    /// Requests that wait for one of these, or for a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub maximum_pending: Option<i32>,
    /// How long one waits. `0s`: none does.
    #[serde(default = "one_second")]
    pub queue_timeout: Duration,
}

/// How long connections are waited for and kept. What is not written is as the client's proxy is set; `0s` is no limit.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connections {
    /// Until a connection is open, with its handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Duration>,
    /// Without a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// After this, give or take a tenth, a connection takes no new requests; clients outside the mesh are asked to open another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum_age: Option<Duration>,
    /// TCP's keep-alive; the defaults are what proxies do without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<KeepAlive>,
}

/// TCP's keep-alive; the defaults are what proxies do without it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeepAlive {
    /// Silence before the first probe, 1s to 32767s.
    #[serde(default = "thirty_seconds")]
    #[schemars(extend("x-kubernetes-validations" = [rule("duration(self) >= duration('1s') && duration(self) <= duration('32767s')", "1s to 32767s")]))]
    pub time: Duration,
    /// Between two probes, 1s to 32767s.
    #[serde(default = "ten_seconds")]
    #[schemars(extend("x-kubernetes-validations" = [rule("duration(self) >= duration('1s') && duration(self) <= duration('32767s')", "1s to 32767s")]))]
    pub interval: Duration,
    /// Unanswered ones before the connection is given up.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 127))]
    pub probes: i32,
}

/// How long a request may take. What is not written is said by a less specific policy, or has no limit; `0s` is no limit.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("!has(self.request) || !has(self.perTry) || duration(self.request) == duration('0s') || duration(self.perTry) <= duration(self.request)", "perTry is at most as long as request")
]))]
pub struct Timeouts {
    /// The whole request, from its head to the answer's end, with every retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// One try, until the answer's head; `timeouts.backendRequest` of an HTTPRoute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try: Option<Duration>,
    /// Without a byte of either body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Duration>,
    /// A request header that says in milliseconds how long the client waits; it is passed on with what is left.
    /// `grpc-timeout` is obeyed without being named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub deadline_header: Option<String>,
}

/// When a request is sent again. What may have been processed is not, unless its method is idempotent or the answer is one of
/// `statuses` or `grpcCodes`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// How often, after the first time. 0: never, whatever has failed.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub attempts: i32,
    /// Answers of these statuses are not taken, whatever the method: each 400 to 599.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), inner(range(min = 400, max = 599)))]
    pub statuses: Vec<i32>,
    /// Answers of nothing but one of these statuses of gRPC are not taken, whatever the method.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub grpc_codes: Vec<GrpcCode>,
    /// What else a request is sent again for; all of them by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub causes: Vec<RetryCause>,
    /// How long is waited before: longer each time, by chance, and never less than the answer asks for (`Retry-After`).
    #[serde(default)]
    pub backoff: Backoff,
    /// Also what may have been processed, whatever the method: the application must bear to get a request twice.
    #[serde(default)]
    pub non_idempotent: bool,
    /// How many bytes of a body are kept to be sent again; a longer one is sent once.
    #[serde(default = "sixty_four_kibibytes")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub maximum_body_bytes: i32,
}

/// What a request is sent again for.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
pub enum RetryCause {
    /// No connection could be opened.
    ConnectFailure,
    /// The connection broke before the answer.
    Reset,
    /// The server refused the HTTP/2 stream.
    RefusedStream,
    /// `timeouts.perTry` was over.
    Timeout,
}

/// How long is waited before a request is sent again: longer each time, by chance, and never less than the answer asks for
/// (`Retry-After`).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("!has(self.maximum) || duration(self.maximum) >= duration(self.base)", "maximum is at least as long as base")
]))]
pub struct Backoff {
    /// Before the first time, at least.
    #[serde(default = "twenty_five_milliseconds")]
    pub base: Duration,
    /// Before any, at most; ten times `base` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<Duration>,
}

/// How many retries there may be beside first tries, from one client's proxy to a port of the Service (GEP-3388).
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetryBudget {
    /// Of a hundred requests within `interval`.
    #[serde(default = "twenty")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: i32,
    /// How long a request counts.
    #[serde(default = "ten_seconds")]
    #[schemars(extend("x-kubernetes-validations" = [not_zero()]))]
    pub interval: Duration,
    /// So many there may be at any rate.
    #[serde(default)]
    pub minimum_retry_rate: RetryRate,
}

/// A number within a time.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetryRate {
    /// How many.
    #[serde(default = "ten")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub count: i32,
    /// Within how long.
    #[serde(default = "one_second")]
    #[schemars(extend("x-kubernetes-validations" = [not_zero()]))]
    pub interval: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: twenty_five_milliseconds(), maximum: None }
    }
}

impl Default for RetryRate {
    fn default() -> Self {
        Self { count: ten(), interval: one_second() }
    }
}

/// What fields are where they are not written.
macro_rules! defaults {
    ($($name:ident: $type:ty = $value:expr;)*) => {
        $(fn $name() -> $type { $value })*
    };
}

defaults! {
    one: i32 = 1;
    three: i32 = 3;
    five: i32 = 5;
    ten: i32 = 10;
    twenty: i32 = 20;
    fifty: i32 = 50;
    eighty_five: i32 = 85;
    hundred: i32 = 100;
    hundred_and_fifty: i32 = 150;
    sixty_four_kibibytes: i32 = 65_536;
    deviations: f64 = 1.9;
    twenty_five_milliseconds: Duration = Duration::of("25ms");
    one_second: Duration = Duration::of("1s");
    ten_seconds: Duration = Duration::of("10s");
    thirty_seconds: Duration = Duration::of("30s");
    five_minutes: Duration = Duration::of("5m");
    broken: Vec<GrpcCode> = vec![GrpcCode::Internal, GrpcCode::Unavailable, GrpcCode::DataLoss];
}
