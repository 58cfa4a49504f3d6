//! What is explained: the shape of `-o json`.

use serde::{Serialize, Serializer};
use tulle_certs::SpiffeId;
use tulle_proxy::state::{ObjectName, Protocol};
use tulle_proxy::telemetry::Reason;

/// What becomes of a request.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    /// Method and URL.
    pub request: String,
    pub from: From,
    pub to: To,
    /// The rule that takes it. Null: no route is attached to the port, and it goes to the Service itself, or none takes it.
    pub taken: Option<Taken>,
    /// What the rule and the policies of the Service have done for it.
    pub requests: Handled,
    /// All other rules of the routes to the Service, in order.
    pub not_taken: Vec<NotTaken>,
    /// Where it may go; empty when the proxy answers it itself.
    pub backends: Vec<Share>,
    /// What the client gets from the proxy, wherever the request would go. Null: somebody serves it.
    pub fails: Option<Failure>,
    /// Whether some of such requests, or all, would get an error of a proxy.
    pub some_fail: bool,
    /// Whether rules that name identities decide, and the client's is not known.
    pub cannot_tell: bool,
    /// What is to be known beside it.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct From {
    #[serde(serialize_with = "shown")]
    pub workload: ObjectName,
    /// Null: not known, so that it cannot be told whom rules that name identities let in.
    #[serde(serialize_with = "maybe_shown")]
    pub identity: Option<SpiffeId>,
}

#[derive(Debug, Serialize)]
pub(super) struct To {
    /// `<namespace>/<name>`
    pub service: String,
    pub port: u16,
    pub protocol: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct Taken {
    pub rule: RuleName,
    /// What all holds of the request: the match that led here.
    pub because: Vec<String>,
    pub filters: Vec<String>,
    /// The proxy's own answer, with its `Location`.
    pub redirect: Option<Redirected>,
    /// How its clients stay at one endpoint.
    pub session: Option<Session>,
}

/// What a client's token is found by, and what ends its session. The token itself only the proxies can read.
#[derive(Debug, Serialize)]
pub(super) struct Session {
    /// `cookie` or `header`
    pub place: &'static str,
    pub name: String,
    /// Of the cookie that such a request would be answered with.
    pub path: Option<String>,
    pub absolute_timeout: Option<String>,
    pub idle_timeout: Option<String>,
    /// Clients keep the cookie for the absolute timeout.
    pub permanent: bool,
}

/// What is done for a request; durations are for people: `5s`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Handled {
    pub request_timeout: Option<String>,
    pub backend_timeout: Option<String>,
    pub idle_timeout: Option<String>,
    /// In which header the client may say how long it waits.
    pub deadline_header: Option<String>,
    /// Null: what provably was not processed is sent once more.
    pub retry: Option<Retried>,
    /// What goes wrong on purpose.
    pub fault: Option<Injected>,
    /// Of how many of a hundred that begin a trace it is recorded; null: as the mesh says.
    pub sampling_percent: Option<f64>,
    /// Whether what its headers say of its trace holds; null: as the mesh says.
    pub sampling_parent_based: Option<bool>,
    /// What the client's proxy logs of it.
    pub access_log: Logged,
    /// Which of the fields above are said by the rule that takes the request, or a policy on it or its route. `tulle check` names them.
    pub by_route: Vec<&'static str>,
    /// Which are said by a policy on the client's workload, or on its namespace; all others, by policies on the port or its Service.
    pub by_workload: Vec<&'static str>,
}

/// As TelemetryPolicies have it; null: as the mesh says.
#[derive(Debug, Default, Serialize)]
pub(super) struct Logged {
    /// `json`, `apache`, `ecs`, `none`, or a template.
    pub format: Option<String>,
    /// `404, 500-599`, `all` or `none`.
    pub statuses: Option<String>,
    /// For people: `250ms`.
    pub min_duration: Option<String>,
    pub sample_percent: Option<f64>,
    /// Whether that also decides on what a proxy answered, refused or gave up by itself.
    pub filters_errors: Option<bool>,
}

#[derive(Debug, Serialize)]
pub(super) struct Injected {
    /// `<namespace>/<policy>/<rule>`
    pub rule: String,
    /// Of how many of a hundred tries, and for how long.
    pub delay: Option<(f64, String)>,
    /// Of how many of a hundred tries, and with which status.
    pub abort: Option<(f64, String)>,
}

#[derive(Debug, Serialize)]
pub(super) struct Retried {
    /// How often, after the first time.
    pub attempts: u32,
    /// Statuses of answers that are not taken.
    pub codes: Box<[u16]>,
    /// Likewise gRPC's.
    pub grpc_codes: Vec<u32>,
    /// The least time before; for people.
    pub backoff: String,
    /// Whether it is sent again also where it got no answer and may have been processed: its method is idempotent, or that does not matter.
    pub unanswered: bool,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct RuleName {
    pub kind: &'static str,
    /// `<namespace>/<name>`
    pub route: String,
    /// In the route as it is served, from 0: what `tulle check` says to be left out is not counted.
    pub index: usize,
    /// Empty: it has none.
    pub name: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Redirected {
    pub status: u16,
    pub location: String,
}

#[derive(Debug, Serialize)]
pub(super) struct NotTaken {
    pub rule: RuleName,
    /// One for each of its matches.
    pub because: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Share {
    /// `<namespace>/<name>:<port>`
    pub service: String,
    /// Of all requests that the rule takes.
    pub percent: f64,
    pub filters: Vec<String>,
    /// The path and host that the backend sees, where a filter changes them.
    pub sees: Option<String>,
    pub endpoints: Vec<Endpoint>,
    /// What this share's clients get from a proxy.
    pub fails: Option<Failure>,
}

#[derive(Debug, Serialize)]
pub(super) struct Endpoint {
    pub address: String,
    /// `<namespace>/<name>`; null: not known.
    pub workload: Option<String>,
    /// Whom its proxy must prove to be; null: it is spoken to in plaintext.
    pub identity: Option<String>,
    pub ready: bool,
    /// Null: no proxy that judges is known there.
    pub policy: Option<Judged>,
}

#[derive(Debug, Serialize)]
pub(super) struct Judged {
    /// Null: it cannot be told without the client's identity.
    pub allowed: Option<bool>,
    /// The rule that let it in, or refused it by name.
    pub rule: Option<String>,
    /// Why it is refused.
    pub reason: Option<&'static str>,
}

/// A proxy's own answer.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Failure {
    /// As in `x-tulle-error`.
    pub reason: &'static str,
    /// Of HTTP; a call of gRPC gets 200 and its own.
    pub status: Option<u16>,
    pub grpc_status: Option<u8>,
    pub detail: String,
    pub remedy: &'static str,
}

// === impl Answer ===

impl Answer {
    /// As calls of gRPC get it: what the client's proxy answers `by_rule` of a GRPCRoute or `by_type` of the request's content, and
    /// what the server's proxy does by type alone.
    pub(super) fn of_grpc(mut self, by_rule: bool, by_type: bool) -> Self {
        let shares = self.backends.iter_mut().flat_map(|share| &mut share.fails);
        for failure in self.fails.iter_mut().chain(shares) {
            let of_server = ["policy_denied", "mtls_required", "identity_required", "policy_unavailable"];
            if by_type || (by_rule && !of_server.contains(&failure.reason)) {
                failure.of_grpc();
            }
        }
        self
    }
}

// === impl Failure ===

impl Failure {
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        let (status, detail) = (reason.status(), detail.into());
        Self { reason: reason.code(), status, grpc_status: None, detail, remedy: reason.remedy() }
    }

    /// As a call of gRPC gets it.
    fn of_grpc(&mut self) {
        self.grpc_status = Reason::from_code(self.reason).map(Reason::grpc_status);
        self.status = self.status.map(|_| 200);
    }
}

/// As it is written in `appProtocol`, or what is done for want of it.
pub(super) fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Detect => "detected",
        Protocol::Http => "http",
        Protocol::Http2 => "http2",
        Protocol::Grpc => "grpc",
        Protocol::Tcp => "tcp",
        Protocol::Tls => "tls",
    }
}

fn shown<S: Serializer>(value: &impl ToString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&value.to_string())
}

fn maybe_shown<S: Serializer>(value: &Option<impl ToString>, to: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(ToString::to_string).serialize(to)
}
