//! What the proxy answers when it cannot pass on an answer: whose side, which status, why.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::headers;
use crate::telemetry::Reason;
use crate::telemetry::metrics::Direction;
use crate::wire::{Body, Processed};

/// A request's end that the proxy itself brings about. It never happens silently: the reason stands in the answer,
/// the metric and the log.
#[derive(Debug)]
pub(super) struct Fault {
    pub reason: Reason,
    /// Whether the request may have been acted on.
    pub processed: Processed,
    /// What exactly went wrong, for people.
    pub detail: Box<str>,
}

/// Who speaks in `x-tulle-error-by`: `<namespace>/<workload>/<inbound|outbound>`.
#[derive(Clone, Debug)]
pub(super) struct Speaker(HeaderValue);

// === impl Fault ===

impl Fault {
    /// A fault before anything was sent.
    pub(super) fn unsent(reason: Reason, detail: impl Into<Box<str>>) -> Self {
        Self { reason, processed: Processed::No, detail: detail.into() }
    }

    /// A fault after which nobody can say whether the request was acted on.
    pub(super) fn maybe(reason: Reason, detail: impl Into<Box<str>>) -> Self {
        Self { reason, processed: Processed::Maybe, detail: detail.into() }
    }

    /// The answer: plain text, or for gRPC a response of nothing but trailers (gRPC over HTTP/2, "Responses").
    /// `to_mesh` adds for the other proxy whether the request was processed.
    pub(super) fn response(&self, speaker: &Speaker, grpc: bool, to_mesh: bool) -> Response<Body> {
        let text = format!("{}: {}", self.reason.message(), self.detail);
        let mut response = if grpc {
            let mut response = Response::new(Body::empty());
            let fields = response.headers_mut();
            fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            fields.insert(GRPC_STATUS, HeaderValue::from(u16::from(self.reason.grpc_status())));
            fields.insert(GRPC_MESSAGE, grpc_message(&text));
            response
        } else {
            let mut response = Response::new(Body::full(format!("{text}\n").into()));
            *response.status_mut() = self.status();
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, plain);
            response
        };
        self.mark(response.headers_mut(), speaker, to_mesh);
        response
    }

    fn status(&self) -> StatusCode {
        let status = self.reason.status().and_then(|status| StatusCode::from_u16(status).ok());
        status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
    }

    fn mark(&self, fields: &mut HeaderMap, speaker: &Speaker, to_mesh: bool) {
        fields.insert(headers::ERROR, HeaderValue::from_static(self.reason.code()));
        fields.insert(headers::ERROR_BY, speaker.0.clone());
        if to_mesh {
            let processed = match self.processed {
                Processed::No => "no",
                Processed::Maybe => "maybe",
            };
            fields.insert(headers::PROCESSED, HeaderValue::from_static(processed));
        }
    }
}

pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Percent-encoded, as gRPC wants its messages.
fn grpc_message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' => encoded.push_str("%25"),
            b' '..=b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::from_str(&encoded).unwrap_or_else(|_| HeaderValue::from_static(""))
}

// === impl Speaker ===

impl Speaker {
    pub(super) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub(super) fn new(workload: Option<&str>, direction: Direction) -> Arc<Self> {
        let text = format!("{}/{}", workload.unwrap_or("unknown"), direction.as_str());
        Arc::new(Self(
            HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(direction.as_str())),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault() -> Fault {
        Fault::unsent(Reason::ConnectFailed, "10.0.0.1:80: höchst unerfreulich")
    }

    #[test]
    fn an_http_answer_names_reason_and_speaker() {
        let speaker = Speaker::new(Some("shop/web"), Direction::Outbound);
        let response = fault().response(&speaker, false, false);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["x-tulle-error"], "connect_failed");
        assert_eq!(response.headers()["x-tulle-error-by"], "shop/web/outbound");
        assert!(!response.headers().contains_key("x-tulle-processed"));
    }

    #[test]
    fn a_grpc_answer_is_a_status_and_a_message() {
        let speaker = Speaker::new(None, Direction::Inbound);
        let response = fault().response(&speaker, true, true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert!(response.headers()["grpc-message"].to_str().unwrap().contains("h%C3%B6chst"));
        assert_eq!(response.headers()["x-tulle-processed"], "no");
    }
}
