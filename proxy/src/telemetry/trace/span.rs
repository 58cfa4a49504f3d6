//! A request or connection that is over, as a span.
//!
//! Pure. Names and attributes are those of OpenTelemetry's semantic conventions 1.42: HTTP (stable), RPC for gRPC, network; what they
//! have no name for begins with `tulle.`. Called for what is recorded only, on the worker that served it. What a span holds is what a
//! line of the access log does: never headers, bodies or the query of a path.

use std::net::SocketAddr;
use std::time::SystemTime;

use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::context::Context;
use crate::telemetry::access::Record;
use crate::telemetry::metrics::Direction;
use crate::telemetry::reason::Reason;

/// What is known of a span beside what its request's record says.
#[derive(Debug)]
pub(super) struct Known {
    /// The span itself.
    pub(super) context: Context,
    /// Its parent, which another process has told.
    pub(super) parent: Option<SpanId>,
    /// When it began.
    pub(super) started: SystemTime,
    /// What `tracestate` said.
    pub(super) state: TraceState,
    /// What happened meanwhile.
    pub(super) events: Vec<Event>,
}

/// Statuses of gRPC.
const CANCELLED: u32 = 1;
const UNIMPLEMENTED: u32 = 12;
/// How many bytes of a value are told, as in the access log.
const MAX_VALUE: usize = 1024;

/// The span of what `record` tells, in this scope.
pub(super) fn finished(record: &Record<'_>, known: Known, scope: &InstrumentationScope) -> SpanData {
    let Known { context, parent, started, state, events } = known;
    let mut span_events = SpanEvents::default();
    span_events.events = events;
    SpanData {
        span_context: SpanContext::new(context.trace, context.span, TraceFlags::SAMPLED, false, state),
        parent_span_id: parent.unwrap_or(SpanId::INVALID),
        parent_span_is_remote: parent.is_some(),
        span_kind: match record.direction {
            Direction::Inbound => SpanKind::Server,
            Direction::Outbound => SpanKind::Client,
        },
        name: name(record).into(),
        start_time: started,
        end_time: started + record.duration,
        attributes: attributes(record),
        dropped_attributes_count: 0,
        events: span_events,
        links: SpanLinks::default(),
        status: status(record),
        instrumentation_scope: scope.clone(),
    }
}

/// What a record is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Http,
    Grpc,
    Stream,
}

fn kind(record: &Record<'_>) -> Kind {
    match record.protocol {
        "gRPC" => Kind::Grpc,
        "TCP" | "TLS" => Kind::Stream,
        _ => Kind::Http,
    }
}

/// Few different ones: never a path, but that of gRPC, which is a method's name.
fn name(record: &Record<'_>) -> String {
    match kind(record) {
        Kind::Grpc => cut(grpc_method(record).unwrap_or("grpc")).to_owned(),
        Kind::Stream if record.service.is_empty() => record.protocol.to_owned(),
        Kind::Stream => format!("{} {}", record.protocol, record.service),
        Kind::Http => match method(record) {
            "_OTHER" => "HTTP".to_owned(),
            method => method.to_owned(),
        },
    }
}

/// `package.Service/Method`; `None`: it is none, or the application does not know it. Such may be any that a client makes up.
fn grpc_method<'a>(record: &Record<'a>) -> Option<&'a str> {
    let whole = path(record).strip_prefix('/')?;
    let (service, method) = whole.split_once('/')?;
    let is_name = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    (record.grpc_status != Some(UNIMPLEMENTED) && is_name(service) && is_name(method)).then_some(whole)
}

fn path<'a>(record: &Record<'a>) -> &'a str {
    record.path.split('?').next().unwrap_or_default()
}

fn method<'a>(record: &Record<'a>) -> &'a str {
    match record.method {
        "GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE" | "PATCH" => {
            record.method
        }
        _ => "_OTHER",
    }
}

fn cut(value: &str) -> &str {
    &value[..value.floor_char_boundary(MAX_VALUE)]
}

/// Attributes on their way into a span; what is empty or unknown is left out.
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn text(&mut self, key: &'static str, value: &str) {
        if !value.is_empty() {
            self.0.push(KeyValue::new(key, cut(value).to_owned()));
        }
    }

    fn word(&mut self, key: &'static str, value: &'static str) {
        if !value.is_empty() {
            self.0.push(KeyValue::new(key, value));
        }
    }

    fn number(&mut self, key: &'static str, value: u64) {
        self.0.push(KeyValue::new(key, Value::I64(i64::try_from(value).unwrap_or(i64::MAX))));
    }

    fn address(&mut self, [ip, port]: [&'static str; 2], address: Option<SocketAddr>) {
        if let Some(address) = address {
            self.0.push(KeyValue::new(ip, address.ip().to_canonical().to_string()));
            self.number(port, address.port().into());
        }
    }
}

fn attributes(record: &Record<'_>) -> Vec<KeyValue> {
    let mut all = Attributes(Vec::with_capacity(32));
    let kind = kind(record);
    let (server, port) = server(record);
    all.text("server.address", server);
    if let Some(port) = port {
        all.number("server.port", port.into());
    }
    let peer = match record.direction {
        Direction::Inbound => {
            let client = record.client.map(|client| client.ip().to_canonical().to_string());
            all.text("client.address", &client.unwrap_or_default());
            record.client
        }
        Direction::Outbound => record.endpoint,
    };
    all.address(["network.peer.address", "network.peer.port"], peer);
    match kind {
        Kind::Stream => {
            all.word("network.transport", "tcp");
            all.number("tulle.bytes_in", record.bytes_in);
            all.number("tulle.bytes_out", record.bytes_out);
        }
        Kind::Http => http(&mut all, record, server, port),
        Kind::Grpc => {
            all.word("rpc.system.name", "grpc");
            // The names of before, `rpc.service` and `rpc.grpc.status_code` among them, which many tools still look for.
            all.word("rpc.system", "grpc");
            let method = grpc_method(record);
            all.text("rpc.method", method.unwrap_or("_OTHER"));
            match method.and_then(|method| method.split_once('/')) {
                Some((service, _)) => all.text("rpc.service", service),
                None => all.text("rpc.method_original", path(record).trim_start_matches('/')),
            }
            // Who does not want the answer any more ends the call by that status, and nobody else says one.
            let gone = (record.reason == Some(Reason::ClientClosed)).then_some(CANCELLED);
            if let Some(code) = record.grpc_status.or(gone) {
                all.text("rpc.response.status_code", &grpc_name(code));
                all.number("rpc.grpc.status_code", code.into());
            }
            if let Some(status) = record.status {
                all.number("http.response.status_code", status.into());
            }
        }
    }
    if let Some(resent) = record.attempts.checked_sub(1).filter(|resent| *resent > 0) {
        all.number("http.request.resend_count", resent.into());
    }
    if let Some(error) = error_type(record) {
        all.text("error.type", &error);
    }
    ours(&mut all, record);
    all.0
}

fn http(all: &mut Attributes, record: &Record<'_>, server: &str, port: Option<u16>) {
    let method = method(record);
    all.text("http.request.method", method);
    if method == "_OTHER" {
        all.text("http.request.method_original", record.method);
    }
    if let Some(status) = record.status {
        all.number("http.response.status_code", status.into());
    }
    all.word("network.protocol.name", "http");
    all.text(
        "network.protocol.version",
        match record.protocol {
            "HTTP/2" => "2",
            version => version.strip_prefix("HTTP/").unwrap_or_default(),
        },
    );
    all.word("url.scheme", "http");
    match record.direction {
        Direction::Inbound => all.text("url.path", path(record)),
        Direction::Outbound => {
            let host = if server.contains(':') { format!("[{server}]") } else { server.to_owned() };
            let port = port.filter(|port| *port != 80).map(|port| format!(":{port}")).unwrap_or_default();
            all.text("url.full", &format!("http://{host}{port}{}", path(record)));
        }
    }
    all.number("http.request.body.size", record.bytes_in);
    all.number("http.response.body.size", record.bytes_out);
}

/// What no convention has a name for.
fn ours(all: &mut Attributes, record: &Record<'_>) {
    all.word("tulle.direction", record.direction.as_str());
    all.text("tulle.service", record.service);
    all.text("tulle.route", record.route);
    all.text("tulle.backend", record.backend);
    if let Some(endpoint) = record.endpoint {
        all.text("tulle.endpoint", &endpoint.to_string());
    }
    all.text("tulle.source", record.source);
    all.text("tulle.destination", record.destination);
    all.word("tulle.tls", record.tls.as_str());
    all.word("tulle.verdict", verdict(record));
    all.text("tulle.rule", record.rule);
    all.text("tulle.would_deny", record.would_deny);
    all.text("tulle.token.issuer", record.issuer);
    all.text("tulle.session", record.session);
    all.text("tulle.detected", record.detected);
    all.word("tulle.reason", record.reason.map_or("", Reason::code));
    all.text("tulle.reason_by", record.by);
    all.text("tulle.detail", record.detail);
    all.number("tulle.attempts", record.attempts.into());
    all.number("tulle.connection", record.connection);
}

/// What policy and rate limits said, if they were asked.
fn verdict(record: &Record<'_>) -> &'static str {
    match record.reason {
        Some(
            Reason::PolicyDenied
            | Reason::EgressDenied
            | Reason::MtlsRequired
            | Reason::IdentityRequired
            | Reason::PolicyUnavailable
            | Reason::TokenRequired
            | Reason::TokenInvalid
            | Reason::JwksUnavailable
            | Reason::DeniedExternally
            | Reason::AuthorizerUnavailable
            | Reason::BodyTooLarge
            | Reason::RateLimited,
            // Said by this proxy, and not by that of the other workload.
        ) if record.by.ends_with(record.direction.as_str()) => "deny",
        _ if !record.rule.is_empty() => "allow",
        _ => "",
    }
}

/// Whom the client asked for: by name where it says one, and the port.
fn server<'a>(record: &Record<'a>) -> (&'a str, Option<u16>) {
    let dialled = record.service.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse().ok()?)));
    let port = dialled.map(|(_, port)| port).or_else(|| record.endpoint.map(|endpoint| endpoint.port()));
    let name = match (record.authority, dialled) {
        ("", Some((name, _))) => name,
        (authority, _) => authority,
    };
    (name, port)
}

/// `Error` for what the other side should not have answered: 5xx where it is the client, and also 4xx where it is the server.
fn status(record: &Record<'_>) -> Status {
    match error_type(record) {
        None => Status::Unset,
        Some(_) => Status::error(record.reason.map_or("", Reason::message)),
    }
}

/// Why it is an error, if it is: the reason, else the status.
fn error_type(record: &Record<'_>) -> Option<String> {
    let is_server = record.direction == Direction::Inbound;
    let of_reason = || record.reason.map(|reason| reason.code().to_owned());
    let is_refused = |status: u16| status >= if is_server { 500 } else { 400 };
    if let Some(status) = record.status.filter(|status| is_refused(*status)) {
        return Some(of_reason().unwrap_or_else(|| status.to_string()));
    }
    if kind(record) == Kind::Grpc
        && let Some(code) = record.grpc_status
    {
        // Semantic conventions for gRPC: what a server is not to blame for is no error of its span.
        let is_error = if is_server { matches!(code, 2 | 4 | 12..=15) } else { code != 0 };
        return is_error.then(|| of_reason().unwrap_or_else(|| grpc_name(code)));
    }
    match record.reason {
        // Whoever asked does not want to know any more.
        None | Some(Reason::ClientClosed) => None,
        // It was refused, or broken off after its head. What else has an answer is what that says.
        Some(_) if record.status.is_none_or(|status| status < 400) => of_reason(),
        Some(_) => None,
    }
}

/// As gRPC spells its status codes.
pub(crate) fn grpc_name(code: u32) -> String {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let name = usize::try_from(code).ok().and_then(|code| NAMES.get(code));
    name.map_or_else(|| code.to_string(), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests;
