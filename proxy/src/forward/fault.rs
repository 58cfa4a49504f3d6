//! What the proxy answers when it cannot pass on an answer: whose side, which status, why.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::headers;
use crate::limit::{Rate, Refused};
use crate::route::Abort;
use crate::telemetry::Reason;
use crate::telemetry::metrics::Direction;
use crate::token::Refusal;
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
    /// The detail is for our own log alone: the client is told the reason.
    pub is_confidential: bool,
    /// What is answered in place of what the reason says.
    pub answer: Option<InPlace>,
    /// What is asked of the client, or said of its token.
    pub challenge: Option<Challenge>,
}

/// What somebody has answered in a fault's place.
#[derive(Clone, Debug)]
pub(super) enum InPlace {
    /// Its status.
    Abort(Abort),
    /// All of it.
    Reply(Box<Reply>),
}

/// What an authorizer answers to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub status: StatusCode,
    /// None that frames the message, belongs to the hop, or is under a name of ours.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// For a client of gRPC, its message. Empty: what is told of the fault.
    pub body: String,
}

/// What `www-authenticate` says (RFC 6750 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token is needed. Who has not shown any is not told of an error (RFC 6750 §3.1).
    Token,
    /// The one that came is not taken, since this.
    Invalid(Refusal),
    /// It is, and nothing that it says allows the request.
    Scope,
}

/// Who speaks in `x-tulle-error-by`: `<namespace>/<workload>/<inbound|outbound>`.
#[derive(Clone, Debug)]
pub(super) struct Speaker(HeaderValue);

// === impl Fault ===

impl Fault {
    /// A fault before anything was sent.
    pub(super) fn unsent(reason: Reason, detail: impl Into<Box<str>>) -> Self {
        Self::new(reason, Processed::No, detail)
    }

    /// A fault after which nobody can say whether the request was acted on.
    pub(super) fn maybe(reason: Reason, detail: impl Into<Box<str>>) -> Self {
        Self::new(reason, Processed::Maybe, detail)
    }

    /// A fault of which that is known.
    pub(super) fn new(reason: Reason, processed: Processed, detail: impl Into<Box<str>>) -> Self {
        let detail = detail.into();
        Self { reason, processed, detail, is_confidential: false, answer: None, challenge: None }
    }

    /// The same, of which its client hears no more than the reason.
    pub(super) fn in_confidence(self) -> Self {
        Self { is_confidential: true, ..self }
    }

    /// The same, with what its client is to hear of tokens.
    pub(super) fn challenging(self, challenge: Challenge) -> Self {
        Self { challenge: Some(challenge), ..self }
    }

    /// The same, answered so.
    pub(super) fn answering(self, answer: Abort) -> Self {
        Self { answer: Some(InPlace::Abort(answer)), ..self }
    }

    /// The same, with all of this as its answer.
    pub(super) fn replying(self, reply: Reply) -> Self {
        Self { answer: Some(InPlace::Reply(Box::new(reply))), ..self }
    }

    /// Of a request that a rate limit has no room for.
    pub(super) fn limited(refused: &Refused) -> Self {
        let Refused { name, rate, wait } = refused;
        let Rate { requests, per, burst } = rate;
        let detail = format!("{name} allows {requests} in {per:?}, {burst} at once; again in {wait:?}");
        Self::unsent(Reason::RateLimited, detail)
    }

    /// The answer: plain text, or for gRPC a response of nothing but trailers (gRPC over HTTP/2, "Responses").
    /// `to_mesh` adds for the other proxy whether the request was processed.
    pub(super) fn response(&self, speaker: &Speaker, grpc: bool, to_mesh: bool) -> Response<Body> {
        let reply = self.reply();
        let said = reply.map(|reply| reply.body.as_str()).filter(|body| !body.is_empty());
        let text = match said {
            Some(body) => body.to_owned(),
            None if self.is_confidential => self.reason.message().to_owned(),
            None => format!("{}: {}", self.reason.message(), self.detail),
        };
        let mut response = if grpc {
            let mut response = Response::new(Body::empty());
            let fields = response.headers_mut();
            fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            let status: u16 = match &self.answer {
                Some(InPlace::Abort(abort)) => abort.grpc().into(),
                Some(InPlace::Reply(reply)) => Abort::Http(reply.status).grpc().into(),
                None => self.reason.grpc_status().into(),
            };
            fields.insert(GRPC_STATUS, HeaderValue::from(status));
            fields.insert(GRPC_MESSAGE, grpc_message(&text));
            response
        } else {
            let status = self.status();
            // Answers of these statuses have no content (RFC 9110 §15).
            let is_empty = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED];
            let body = match said {
                _ if is_empty.contains(&status) => String::new(),
                Some(_) => text,
                None => format!("{text}\n"),
            };
            let mut response = Response::new(Body::full(body.into()));
            *response.status_mut() = status;
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, plain);
            response
        };
        if let Some(reply) = reply {
            reply.write(response.headers_mut(), grpc);
        }
        self.mark(response.headers_mut(), speaker, to_mesh);
        if let Some(challenge) = self.challenge {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.value(speaker));
        }
        response
    }

    fn reply(&self) -> Option<&Reply> {
        match &self.answer {
            Some(InPlace::Reply(reply)) => Some(reply),
            Some(InPlace::Abort(_)) | None => None,
        }
    }

    fn status(&self) -> StatusCode {
        match &self.answer {
            Some(InPlace::Abort(abort)) => return abort.http(),
            Some(InPlace::Reply(reply)) => return reply.status,
            None => {}
        }
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

// === impl Reply ===

impl Reply {
    /// Its headers, in place of those of the same name. What makes an answer gRPC's stays.
    fn write(&self, fields: &mut HeaderMap, grpc: bool) {
        let is_kept = |name: &HeaderName| {
            grpc && (*name == header::CONTENT_TYPE || *name == GRPC_STATUS || *name == GRPC_MESSAGE)
        };
        let headers = || self.headers.iter().filter(|(name, _)| !is_kept(name));
        for (name, _) in headers() {
            fields.remove(name);
        }
        for (name, value) in headers() {
            fields.append(name.clone(), value.clone());
        }
    }
}

/// The end of a response of gRPC that is broken off.
pub(super) fn grpc_trailers(reason: Reason) -> HeaderMap {
    let status = HeaderValue::from(u16::from(reason.grpc_status()));
    HeaderMap::from_iter([(GRPC_STATUS, status), (GRPC_MESSAGE, grpc_message(reason.message()))])
}

pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// When there is room again (RFC 9110 §10.2.3; gRPC's retry design, "Pushback"), and what the limit is
/// (draft-ietf-httpapi-ratelimit-headers, sections 3 and 4).
pub(super) fn mark_limited(refused: &Refused, fields: &mut HeaderMap, grpc: bool) {
    let Refused { name, rate, wait } = refused;
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    fields.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    if grpc {
        let millis = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        fields.insert(GRPC_PUSHBACK, HeaderValue::from(millis.max(1)));
    }
    // A String of RFC 8941, section 3.3.3; names of objects have nothing to escape.
    let name: String = name.chars().filter(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\')).collect();
    // Windows are whole seconds.
    let window = match rate.per.subsec_nanos() {
        0 => format!(";w={}", rate.per.as_secs()),
        _ => String::new(),
    };
    let values = [
        (RATE_LIMIT, format!("\"{name}\";r=0;t={}", seconds.max(1))),
        (RATE_LIMIT_POLICY, format!("\"{name}\";q={}{window}", rate.requests)),
    ];
    for (field, value) in values {
        if let Ok(value) = HeaderValue::from_str(&value) {
            fields.insert(field, value);
        }
    }
}

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

// === impl Challenge ===

impl Challenge {
    /// The realm is the workload; the words are ours, so that nothing in them needs an escape.
    fn value(self, speaker: &Speaker) -> HeaderValue {
        let realm = speaker.as_str().rsplit_once('/').map_or("", |(workload, _)| workload);
        let value = match self {
            Self::Token => format!("Bearer realm=\"{realm}\""),
            Self::Invalid(refusal) => {
                // Of what RFC 6750 §3 allows: no quotation marks, which names of claims have in our words.
                let description = refusal.to_string().replace('`', "");
                format!(
                    "Bearer realm=\"{realm}\", error=\"invalid_token\", error_description=\"{description}\""
                )
            }
            Self::Scope => format!("Bearer realm=\"{realm}\", error=\"insufficient_scope\""),
        };
        HeaderValue::from_str(&value).unwrap_or_else(|_| HeaderValue::from_static("Bearer"))
    }
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
    use std::time::Duration;

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
    fn what_is_told_in_confidence_is_in_no_answer() {
        let speaker = Speaker::new(Some("shop/web"), Direction::Inbound);
        let fault = Fault::unsent(Reason::PolicyDenied, "the rule shop/secret/plans").in_confidence();
        let response = fault.response(&speaker, true, true);
        let told = format!("{:?}", response.headers());
        assert!(!told.contains("secret") && told.contains("policy_denied"), "{told}");
        let response = fault.response(&speaker, false, false);
        assert_eq!(
            (response.status().as_u16(), &response.headers()["x-tulle-error"]),
            (403, &"policy_denied".parse().unwrap())
        );
        let told = http_body::Body::size_hint(response.body()).exact();
        assert_eq!(told, Some(Reason::PolicyDenied.message().len() as u64 + 1));
    }

    #[test]
    fn what_is_over_a_rate_limit_is_told_when_to_ask_again_in_whole_seconds_and_never_at_once() {
        let speaker = Speaker::new(None, Direction::Inbound);
        let of = |wait: u64, per: u64, grpc| {
            let rate = Rate { requests: 10, per: Duration::from_millis(per), burst: 2 };
            let refused = Refused { name: "shop/web/all".into(), rate, wait: Duration::from_micros(wait) };
            let mut response = Fault::limited(&refused).response(&speaker, grpc, false);
            mark_limited(&refused, response.headers_mut(), grpc);
            response
        };
        for (wait, told) in [(1, "1"), (1_000_000, "1"), (1_000_001, "2"), (3_600_000_000, "3600")] {
            let response = of(wait, 60_000, false);
            assert_eq!(response.status(), 429);
            let fields = response.headers();
            assert_eq!(fields["retry-after"], told);
            assert_eq!(fields["ratelimit"], format!("\"shop/web/all\";r=0;t={told}"));
            assert_eq!(fields["ratelimit-policy"], "\"shop/web/all\";q=10;w=60");
            assert_eq!(fields["x-tulle-error"], "rate_limited");
        }
        assert_eq!(of(1, 500, false).headers()["ratelimit-policy"], "\"shop/web/all\";q=10");
        let response = of(1_001, 1000, true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "8");
        assert_eq!(response.headers()["grpc-retry-pushback-ms"], "2");
    }

    #[test]
    fn who_is_asked_for_a_token_is_told_what_was_wrong_with_it() {
        let speaker = Speaker::new(Some("shop/web"), Direction::Inbound);
        let of = |challenge, grpc| {
            let fault = Fault::unsent(Reason::TokenInvalid, "shop/tokens").challenging(challenge);
            let response = fault.response(&speaker, grpc, false);
            let status = response.headers().get("grpc-status").cloned();
            (
                response.status().as_u16(),
                status,
                response.headers()["www-authenticate"].to_str().unwrap().to_owned(),
            )
        };
        assert_eq!(of(Challenge::Token, false), (401, None, "Bearer realm=\"shop/web\"".to_owned()));
        let invalid = "Bearer realm=\"shop/web\", error=\"invalid_token\", \
            error_description=\"the token does not say when it expires (exp)\"";
        assert_eq!(of(Challenge::Invalid(Refusal::Endless), false), (401, None, invalid.to_owned()));
        let grpc = of(Challenge::Invalid(Refusal::Endless), true);
        assert_eq!((grpc.0, grpc.1.unwrap()), (200, "16".parse::<HeaderValue>().unwrap()));
        assert!(of(Challenge::Scope, false).2.ends_with("error=\"insufficient_scope\""));
    }

    #[test]
    fn an_injected_answer_has_the_status_of_its_kind() {
        let speaker = Speaker::new(None, Direction::Outbound);
        let of = |abort, grpc| {
            let fault = Fault::unsent(Reason::FaultInjected, "fault shop/chaos/first").answering(abort);
            let response = fault.response(&speaker, grpc, false);
            assert_eq!(response.headers()["x-tulle-error"], "fault_injected");
            let status =
                response.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned());
            (response.status().as_u16(), status, http_body::Body::is_end_stream(response.body()))
        };
        let status = |status| Abort::Http(StatusCode::from_u16(status).unwrap());
        assert_eq!(of(status(418), false), (418, None, false));
        assert_eq!(of(status(204), false), (204, None, true));
        assert_eq!(of(status(503), true), (200, Some("14".to_owned()), true));
        assert_eq!(of(Abort::Grpc(8), true), (200, Some("8".to_owned()), true));
        assert_eq!(of(Abort::Grpc(8), false), (429, None, false));
    }

    #[test]
    fn an_authorizers_answer_is_passed_on_and_marked() {
        let speaker = Speaker::new(None, Direction::Inbound);
        let field = |name: &'static str, value: &'static str| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let of = |status: u16, body: &str, grpc| {
            let reply = Reply {
                status: StatusCode::from_u16(status).unwrap(),
                headers: vec![
                    field("content-type", "text/html"),
                    field("grpc-status", "0"),
                    field("set-cookie", "a=1"),
                    field("set-cookie", "b=2"),
                ],
                body: body.to_owned(),
            };
            let fault = Fault::unsent(Reason::DeniedExternally, "shop/opa").replying(reply);
            let response = fault.response(&speaker, grpc, false);
            assert_eq!(response.headers()["x-tulle-error"], "denied_externally");
            assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
            response
        };
        let response = of(302, "<p>elsewhere", false);
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (302, &"text/html".parse().unwrap())
        );
        assert_eq!(http_body::Body::size_hint(response.body()).exact(), Some(12));
        for (status, grpc) in [(401, "16"), (403, "7"), (404, "12"), (429, "14"), (418, "2")] {
            let response = of(status, "no: 100%", true);
            let fields = response.headers();
            assert_eq!((response.status().as_u16(), &fields["grpc-status"]), (200, &grpc.parse().unwrap()));
            assert_eq!(
                (&fields["content-type"], &fields["grpc-message"]),
                (&"application/grpc".parse().unwrap(), &"no: 100%25".parse().unwrap())
            );
        }
        let said = of(403, "", true).headers()["grpc-message"].to_str().unwrap().to_owned();
        assert!(said.contains("shop/opa"), "{said}");
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
