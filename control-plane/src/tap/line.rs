//! What whoever looks on reads: JSON, an object on each line.

use serde::{Deserialize, Serialize};
use tulle_api::{request_failed, v1};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A request, or a connection without HTTP, has ended.
    Request(Box<Request>),
    /// A proxy left some out.
    Missed {
        /// `<namespace>/<workload>`.
        proxy: String,
        /// There were more in a second than was asked for.
        over_rate: u64,
        /// There was no room on their way to the control plane.
        dropped: u64,
    },
    /// So many lines were left out since they were not read in time.
    Unread {
        /// How many.
        lines: u64,
    },
    /// Who is asked now.
    Watching {
        /// How many proxies.
        proxies: usize,
        /// Some of them.
        names: Vec<String>,
    },
    /// A proxy takes no part.
    Refused {
        /// `<namespace>/<workload>`.
        proxy: String,
        /// In its own words.
        why: String,
    },
    /// Nothing follows.
    Over {
        /// Why not.
        why: String,
    },
}

/// As in the proxy's access log. What is empty, or `None`, does not apply or is not known, and is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    /// When it ended, RFC 3339.
    pub timestamp: String,
    /// Whose proxy tells of it: `<namespace>/<workload>`.
    pub workload: String,
    /// `inbound` or `outbound`.
    pub direction: String,
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2`, `gRPC`, `TCP`, `TLS`.
    pub protocol: String,
    /// The request's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// Without its query.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub authority: String,
    /// HTTP's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
    /// gRPC's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u32>,
    /// Why a proxy answered, refused or gave up.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Which proxy.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// What lay behind it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The trace that it belongs to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trace_id: String,
    /// The address of whoever opened the connection.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client: String,
    /// The client's SPIFFE ID.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// The server's SPIFFE ID.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub destination: String,
    /// `<namespace>/<name>:<port>`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// `<namespace>/<name>`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub route: String,
    /// `<namespace>/<name>:<port>`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub backend: String,
    /// Where it was sent.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// The rule of a policy that let it in or out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// `mtls`, `none`, `app`, `own`.
    pub tls: String,
    /// Of bodies, or of a connection, from the client.
    pub bytes_in: u64,
    /// To the client.
    pub bytes_out: u64,
    /// The whole time.
    pub duration_ns: u64,
    /// The proxy's own part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processing_ns: Option<u64>,
    /// How often it was sent.
    pub attempts: u32,
    /// The connection that it came by.
    pub connection: u64,
    /// Fields of the request that were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<Field>,
    /// Fields of the response that were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<Field>,
}

/// A header field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// In lower case.
    pub name: String,
    /// `[redacted]` where it may be a secret.
    pub value: String,
}

/// Text whose characters do what they show: what would steer a terminal or turn the direction of writing is escaped, as JSON has it.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            // None of these needs a surrogate.
            shown.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            shown.push(character);
        }
    }
    shown
}

// === impl Line ===

impl std::fmt::Display for Line {
    /// With its end.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = serde_json::to_string(self).map_err(|_| std::fmt::Error)?;
        writeln!(f, "{}", printable(&text))
    }
}

// === impl Request ===

impl Request {
    pub(super) fn new(workload: String, told: v1::TappedRequest) -> Self {
        let fields = |fields: Vec<v1::TappedField>| {
            fields.into_iter().map(|field| Field { name: field.name, value: field.value }).collect()
        };
        Self {
            timestamp: told.timestamp,
            workload,
            direction: if told.inbound { "inbound" } else { "outbound" }.to_owned(),
            protocol: told.protocol,
            method: told.method,
            path: told.path,
            authority: told.authority,
            status: (told.status != 0).then_some(told.status),
            grpc_status: told.grpc_status,
            reason: told.reason,
            by: told.by,
            detail: told.detail,
            trace_id: told.trace_id,
            client: told.client,
            source: told.source,
            destination: told.destination,
            service: told.service,
            route: told.route,
            backend: told.backend,
            endpoint: told.endpoint,
            rule: told.rule,
            tls: told.tls,
            bytes_in: told.bytes_in,
            bytes_out: told.bytes_out,
            duration_ns: told.duration_ns,
            processing_ns: told.processing_ns,
            attempts: told.attempts,
            connection: told.connection,
            request_headers: fields(told.request_fields),
            response_headers: fields(told.response_fields),
        }
    }

    /// Whether a request has failed, as `tulle stat` and the rules for Prometheus have it. Not of a connection without HTTP, which none of
    /// them counts.
    pub fn is_failure(&self) -> bool {
        let status = self.status.map(|status| u16::try_from(status).unwrap_or(u16::MAX));
        request_failed(&self.method, status, self.grpc_status, &self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_back_as_it_was_and_steers_no_terminal() {
        let nasty: String = (0..=0x9f_u8).map(char::from).chain(['\u{202e}', 'ß', '\u{10ffff}']).collect();
        let told = v1::TappedRequest {
            inbound: true,
            path: nasty,
            status: 404,
            request_fields: vec![v1::TappedField { name: "x-a".to_owned(), value: "\u{1b}[2J".to_owned() }],
            ..v1::TappedRequest::default()
        };
        let line = Line::Request(Box::new(Request::new("shop/web".to_owned(), told)));
        let text = line.to_string();
        assert!(text.ends_with("}}\n") && text.trim_end().chars().all(|c| !c.is_control()), "{text}");
        assert!(!text.contains('\u{202e}'));
        assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
        for line in [
            Line::Missed { proxy: "a/b".to_owned(), over_rate: 1, dropped: 2 },
            Line::Unread { lines: 3 },
            Line::Watching { proxies: 1, names: vec!["a/b".to_owned()] },
            Line::Over { why: "x".to_owned() },
        ] {
            assert_eq!(serde_json::from_str::<Line>(&line.to_string()).unwrap(), line);
        }
    }

    #[test]
    fn failures_are_those_of_stat() {
        let request = |method: &str, status: Option<u32>, grpc_status: Option<u32>, reason: &str| Request {
            method: method.to_owned(),
            status,
            grpc_status,
            reason: reason.to_owned(),
            ..Request::default()
        };
        let cases = include_str!("../../../tests/rules/failures.txt").lines();
        for case in cases.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = case.split_whitespace().collect();
            let [method, status, grpc_status, reason, expected] = words[..] else { panic!("{case}") };
            let reason = if reason == "-" { "" } else { reason };
            let request = request(method, status.parse().ok(), grpc_status.parse().ok(), reason);
            assert_eq!(request.is_failure(), expected == "failed", "{case}");
        }
    }
}
