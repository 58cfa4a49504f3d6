//! The record by the Elastic Common Schema: what Elasticsearch, Logstash and Kibana read without a parser.
//!
//! Objects are nested, since Logstash and ingest pipelines take a dot in a name for a letter. What the schema has no field for
//! is under `tulle`, by the names of the JSON form.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::UNIX_EPOCH;

use super::Record;
use super::json::{bounded, escape, nanos};
use crate::telemetry::digits::decimal;
use crate::telemetry::metrics::{Direction, TlsKind};
use crate::telemetry::reason::Reason;
use crate::telemetry::timestamp::write_rfc3339;
use crate::telemetry::trace::Digits;

/// Whose field list is kept to.
const VERSION: &str = "8.12.0";

// === impl Record ===

impl Record<'_> {
    /// Appends the record as one JSON object.
    pub(super) fn write_ecs(&self, out: &mut Vec<u8>) {
        out.reserve(2048);
        out.extend_from_slice(b"{\"@timestamp\":\"");
        write_rfc3339(out, self.time);
        out.push(b'"');
        object(out, "ecs", |out| text(out, "version", VERSION));
        object(out, "event", |out| self.write_event(out));
        object(out, "network", |out| {
            // From the point of view of the workload's host.
            let direction = match self.direction {
                Direction::Inbound => "ingress",
                Direction::Outbound => "egress",
            };
            text(out, "direction", direction);
            text(out, "transport", "tcp");
            let protocol = match (self.version, self.protocol) {
                (_, "gRPC") => "grpc",
                (Some(_), _) => "http",
                (None, "TLS") => "tls",
                (None, _) => "",
            };
            text(out, "protocol", protocol);
        });
        if let Some(version) = self.version {
            object(out, "http", |out| self.write_http(version, out));
        }
        object(out, "url", |out| {
            let (domain, port) = domain_and_port(self.authority);
            text(out, "domain", domain);
            number(out, "port", port.map(u64::from));
            text(out, "path", self.path_alone());
        });
        // Bytes of bodies stand with the request and the response that they are of.
        let is_http = self.version.is_some();
        object(out, "source", |out| {
            address(out, self.client);
            number(out, "bytes", (!is_http).then_some(self.bytes_in));
        });
        object(out, "destination", |out| {
            address(out, self.endpoint);
            number(out, "bytes", (!is_http).then_some(self.bytes_out));
        });
        let established = match self.tls {
            TlsKind::Mtls | TlsKind::App => Some(true),
            TlsKind::None => Some(false),
            TlsKind::Own | TlsKind::Unknown => None,
        };
        object(out, "tls", |out| {
            if let Some(established) = established {
                name(out, "established");
                out.extend_from_slice(if established { b"true" } else { b"false" });
            }
        });
        let (trace, span) = (self.trace_id.map(Digits::from), self.span_id.map(Digits::from));
        object(out, "trace", |out| text(out, "id", trace.as_ref().map_or("", Digits::as_str)));
        object(out, "span", |out| text(out, "id", span.as_ref().map_or("", Digits::as_str)));
        if let Some(reason) = self.reason {
            object(out, "error", |out| {
                text(out, "code", reason.code());
                name(out, "message");
                out.push(b'"');
                out.extend_from_slice(reason.message().as_bytes());
                if !self.detail.is_empty() {
                    out.extend_from_slice(b": ");
                    escape(out, bounded(self.detail));
                }
                out.push(b'"');
            });
        }
        object(out, "tulle", |out| self.write_ours(out));
        out.extend_from_slice(b"}\n");
    }

    fn write_event(&self, out: &mut Vec<u8>) {
        let is_refused = matches!(
            self.reason,
            Some(
                Reason::PolicyDenied
                    | Reason::EgressDenied
                    | Reason::MtlsRequired
                    | Reason::IdentityRequired
                    | Reason::RateLimited
            )
        );
        let (category, type_) = match (self.version, self.reason) {
            (Some(_), None) => ("\"web\"", "\"access\""),
            (Some(_), Some(_)) => ("\"web\"", "\"access\",\"error\""),
            (None, _) if is_refused => ("\"network\"", "\"connection\",\"denied\""),
            (None, _) => ("\"network\"", "\"connection\",\"end\""),
        };
        let failed = self.common_status().is_some_and(|status| status >= 400);
        let outcome = match (self.reason, self.version, self.status) {
            (Some(_), ..) => "failure",
            _ if failed => "failure",
            (None, Some(_), None) => "unknown",
            _ => "success",
        };
        text(out, "kind", "event");
        list(out, "category", category);
        list(out, "type", type_);
        text(out, "outcome", outcome);
        text(out, "module", "tulle");
        text(out, "dataset", "tulle.access");
        name(out, "start");
        out.push(b'"');
        write_rfc3339(out, self.time.checked_sub(self.duration).unwrap_or(UNIX_EPOCH));
        out.push(b'"');
        name(out, "end");
        out.push(b'"');
        write_rfc3339(out, self.time);
        out.push(b'"');
        number(out, "duration", Some(nanos(self.duration)));
    }

    fn write_http(&self, version: http::Version, out: &mut Vec<u8>) {
        let version = match version {
            http::Version::HTTP_10 => "1.0",
            http::Version::HTTP_2 => "2",
            _ => "1.1",
        };
        text(out, "version", version);
        object(out, "request", |out| {
            text(out, "method", self.method);
            object(out, "body", |out| number(out, "bytes", Some(self.bytes_in)));
        });
        object(out, "response", |out| {
            number(out, "status_code", self.status.map(u64::from));
            object(out, "body", |out| number(out, "bytes", Some(self.bytes_out)));
        });
    }

    fn write_ours(&self, out: &mut Vec<u8>) {
        text(out, "direction", self.direction.as_str());
        text(out, "protocol", self.protocol);
        number(out, "grpc_status", self.grpc_status.map(u64::from));
        text(out, "by", self.by);
        // Of an error it is in the error's message.
        text(out, "detail", if self.reason.is_some() { "" } else { self.detail });
        text(out, "source", self.source);
        text(out, "destination", self.destination);
        text(out, "service", self.service);
        text(out, "route", self.route);
        text(out, "backend", self.backend);
        text(out, "session", self.session);
        text(out, "detected", self.detected);
        text(out, "rule", self.rule);
        text(out, "would_deny", self.would_deny);
        text(out, "issuer", self.issuer);
        text(out, "tls", self.tls.as_str());
        number(out, "processing_ns", self.processing.map(nanos));
        number(out, "attempts", Some(self.attempts.into()));
        number(out, "connection", Some(self.connection));
    }
}

/// The host, in brackets where it is an IPv6 address, and the port.
fn domain_and_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':').map(|(domain, port)| (domain, port.parse())) {
        Some((domain, Ok(port))) if !domain.contains(':') || domain.ends_with(']') => (domain, Some(port)),
        _ => (authority, None),
    }
}

fn name(out: &mut Vec<u8>, name: &str) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

/// An object; nothing if nothing is written into it.
fn object(out: &mut Vec<u8>, called: &str, write: impl FnOnce(&mut Vec<u8>)) {
    let before = out.len();
    name(out, called);
    out.push(b'{');
    let begun = out.len();
    write(out);
    if out.len() == begun {
        out.truncate(before);
    } else {
        out.push(b'}');
    }
}

fn text(out: &mut Vec<u8>, called: &str, value: &str) {
    if !value.is_empty() {
        name(out, called);
        out.push(b'"');
        escape(out, bounded(value));
        out.push(b'"');
    }
}

fn number(out: &mut Vec<u8>, called: &str, value: Option<u64>) {
    if let Some(value) = value {
        name(out, called);
        decimal(out, value, 1);
    }
}

/// Words of ours, in quotes.
fn list(out: &mut Vec<u8>, called: &str, words: &str) {
    name(out, called);
    out.push(b'[');
    out.extend_from_slice(words.as_bytes());
    out.push(b']');
}

fn address(out: &mut Vec<u8>, value: Option<SocketAddr>) {
    if let Some(value) = value {
        for called in ["address", "ip"] {
            name(out, called);
            // A scope is none of an address's (RFC 4007 §11), and Elasticsearch takes none.
            let ip = match value {
                SocketAddr::V4(value) => IpAddr::V4(*value.ip()),
                SocketAddr::V6(value) => IpAddr::V6(*value.ip()),
            };
            // Writing to a Vec cannot fail.
            drop(write!(out, "\"{ip}\""));
        }
        number(out, "port", Some(value.port().into()));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::super::tests::{full, nasty};
    use super::*;

    /// From the field list that is published with ECS 8.12 (`generated/csv/fields.csv` of elastic/ecs): what is used of it,
    /// with its type.
    const PUBLISHED: &[(&str, &str)] = &[
        ("@timestamp", "date"),
        ("destination.address", "keyword"),
        ("destination.bytes", "long"),
        ("destination.ip", "ip"),
        ("destination.port", "long"),
        ("ecs.version", "keyword"),
        ("error.code", "keyword"),
        ("error.message", "match_only_text"),
        ("event.category", "keyword[]"),
        ("event.dataset", "keyword"),
        ("event.duration", "long"),
        ("event.end", "date"),
        ("event.kind", "keyword"),
        ("event.module", "keyword"),
        ("event.outcome", "keyword"),
        ("event.start", "date"),
        ("event.type", "keyword[]"),
        ("http.request.body.bytes", "long"),
        ("http.request.method", "keyword"),
        ("http.response.body.bytes", "long"),
        ("http.response.status_code", "long"),
        ("http.version", "keyword"),
        ("network.direction", "keyword"),
        ("network.protocol", "keyword"),
        ("network.transport", "keyword"),
        ("source.address", "keyword"),
        ("source.bytes", "long"),
        ("source.ip", "ip"),
        ("source.port", "long"),
        ("span.id", "keyword"),
        ("tls.established", "boolean"),
        ("trace.id", "keyword"),
        ("url.domain", "keyword"),
        ("url.path", "wildcard"),
        ("url.port", "long"),
    ];

    /// The values that are used of those that the schema allows, where it allows only some ("ECS Categorization Fields"; `network.direction`).
    const ALLOWED: &[(&str, &[&str])] = &[
        ("event.kind", &["event"]),
        ("event.category", &["web", "network"]),
        // Of `web`: access, error, info. Of `network`: access, allowed, connection, denied, end, info, protocol, start.
        ("event.type", &["access", "error", "connection", "denied", "end"]),
        ("event.outcome", &["success", "failure", "unknown"]),
        ("network.direction", &["ingress", "egress"]),
    ];

    fn ecs(record: &Record<'_>) -> Value {
        let mut out = Vec::new();
        record.write_ecs(&mut out);
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        serde_json::from_slice(&out).unwrap()
    }

    /// The fields by their full names.
    fn fields(value: &Value) -> BTreeMap<String, Value> {
        fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
            match value {
                Value::Object(object) => {
                    assert!(!object.is_empty(), "{prefix}");
                    for (name, value) in object {
                        assert!(!name.contains('.'), "{name}: Logstash would take it for one name");
                        let dot = if prefix.is_empty() { "" } else { "." };
                        flatten(&format!("{prefix}{dot}{name}"), value, into);
                    }
                }
                _ => drop(into.insert(prefix.to_owned(), value.clone())),
            }
        }
        let mut all = BTreeMap::new();
        flatten("", value, &mut all);
        all
    }

    fn is_of(value: &Value, kind: &str) -> bool {
        match kind {
            "keyword" | "match_only_text" | "wildcard" => value.is_string(),
            "keyword[]" => {
                value.as_array().is_some_and(|all| !all.is_empty() && all.iter().all(Value::is_string))
            }
            "long" => value.as_i64().is_some(),
            "boolean" => value.is_boolean(),
            "ip" => value.as_str().is_some_and(|ip| ip.parse::<IpAddr>().is_ok()),
            "date" => value.as_str().is_some_and(|date| date.len() == 27 && date.ends_with('Z')),
            other => panic!("{other}"),
        }
    }

    fn connection() -> Record<'static> {
        Record {
            protocol: "TLS",
            version: None,
            method: "",
            path: "",
            status: None,
            grpc_status: None,
            ..full()
        }
    }

    #[test]
    fn every_field_is_published_or_ours_and_of_its_type() {
        let scoped = Some("[fe80::1%3]:80".parse().unwrap());
        let records = [
            full(),
            Record {
                grpc_status: None,
                status: Some(200),
                reason: None,
                detail: "odd",
                tls: TlsKind::Own,
                ..full()
            },
            Record { authority: "payments:80", ..full() },
            Record { direction: Direction::Inbound, protocol: "gRPC", status: None, reason: None, ..full() },
            connection(),
            Record { reason: Some(Reason::PolicyDenied), client: scoped, ..connection() },
            Record { protocol: "TCP", reason: None, tls: TlsKind::None, ..connection() },
            Record::default(),
        ];
        let mut seen = BTreeMap::new();
        for record in &records {
            for (name, value) in fields(&ecs(record)) {
                if let Some(ours) = name.strip_prefix("tulle.") {
                    assert!(tulle_api::ACCESS_LOG_FIELDS.contains(&ours), "{name}");
                    assert!(value.is_string() || value.as_i64().is_some(), "{name}: {value}");
                    continue;
                }
                let published = PUBLISHED.iter().find(|(known, _)| *known == name);
                let (_, kind) = published.unwrap_or_else(|| panic!("{name} is no field of ECS"));
                assert!(is_of(&value, kind), "{name} is no {kind}: {value}");
                if let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) {
                    let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                    let fits = |value: &Value| value.as_str().is_some_and(|value| allowed.contains(&value));
                    assert!(values.iter().all(fits), "{name}: {value}");
                }
                seen.insert(name, ());
            }
        }
        // None stands in the list without being used.
        assert!(seen.keys().map(String::as_str).eq(PUBLISHED.iter().map(|(name, _)| *name)), "{seen:?}");
    }

    #[test]
    fn a_request_is_told_as_the_schema_tells_it() {
        assert_eq!(
            ecs(&Record { authority: "payments:8080", ..full() }),
            json!({
                "@timestamp": "2026-11-21T05:01:39.123456Z",
                "ecs": { "version": VERSION },
                "event": {
                    "kind": "event", "category": ["web"], "type": ["access", "error"], "outcome": "failure",
                    "module": "tulle", "dataset": "tulle.access",
                    "start": "2026-11-21T05:01:39.120456Z", "end": "2026-11-21T05:01:39.123456Z", "duration": 3_000_000,
                },
                "network": { "direction": "egress", "transport": "tcp", "protocol": "http" },
                "http": {
                    "version": "1.1",
                    "request": { "method": "POST", "body": { "bytes": 1 } },
                    "response": { "status_code": 503, "body": { "bytes": 2 } },
                },
                "url": { "domain": "payments", "port": 8080, "path": "/pay" },
                "source": { "address": "127.0.0.1", "ip": "127.0.0.1", "port": 4000 },
                "destination": { "address": "::1", "ip": "::1", "port": 5000 },
                "tls": { "established": true },
                "trace": { "id": "4bf92f3577b34da6a3ce929d0e0e4736" },
                "span": { "id": "00f067aa0ba902b7" },
                "error": { "code": "connect_failed", "message": "the connection could not be made: connection refused" },
                "tulle": {
                    "direction": "outbound", "protocol": "HTTP/1.1", "grpc_status": 14, "by": "default/orders/outbound",
                    "source": "spiffe://cluster.local/ns/default/sa/orders",
                    "destination": "spiffe://cluster.local/ns/default/sa/payments", "service": "default/payments:80",
                    "route": "default/split", "backend": "default/payments-v1:80", "session": "kept",
                    "detected": "server_first", "rule": "default/allow/web",
                    "would_deny": "default/trial/admin", "issuer": "https://issuer.example", "tls": "mtls", "processing_ns": 4000,
                    "attempts": 1, "connection": 7,
                },
            })
        );
    }

    #[test]
    fn a_connection_has_its_bytes_and_is_no_request() {
        let value = ecs(&Record { reason: None, ..connection() });
        assert_eq!(value["source"]["bytes"], 1);
        assert_eq!(value["destination"]["bytes"], 2);
        assert_eq!(value["event"]["category"], json!(["network"]));
        assert_eq!(value["event"]["outcome"], "success");
        assert!(value.get("http").is_none() && value.get("error").is_none(), "{value}");
        let refused = ecs(&Record { reason: Some(Reason::MtlsRequired), ..connection() });
        assert_eq!(refused["event"]["type"], json!(["connection", "denied"]));
    }

    #[test]
    fn what_clients_send_comes_back_as_it_was() {
        let nasty = nasty();
        let value = ecs(&Record { path: &nasty, authority: &nasty, detail: &nasty, ..full() });
        assert_eq!(value["url"]["path"], nasty);
        assert_eq!(value["url"]["domain"], nasty);
        assert!(value["error"]["message"].as_str().unwrap().ends_with(&nasty));
    }

    #[test]
    fn an_authority_is_taken_apart_where_it_can_be() {
        for (authority, domain, port) in [
            ("orders", "orders", None),
            ("orders:8080", "orders", Some(8080)),
            ("[::1]:80", "[::1]", Some(80)),
            ("[::1]", "[::1]", None),
            ("::1:80", "::1:80", None),
            ("orders:http", "orders:http", None),
            ("orders:99999", "orders:99999", None),
        ] {
            assert_eq!(domain_and_port(authority), (domain, port), "{authority}");
        }
    }
}
