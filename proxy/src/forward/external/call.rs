//! A question on its way to an authorizer, and the answer's way back: gRPC, through the mesh.
//!
//! Decides which endpoint of its Service is asked, and whether another is when that one cannot be reached or its connection was at its end:
//! a question asked twice does no harm. Everything is within the policy's time, which whoever asks keeps, and the authorizer is told what is
//! left of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use prost::Message as _;
use tulle_api::ext_authz::{CheckRequest, CheckResponse};

use super::{Asker, Trouble};
use crate::endpoint::Endpoint;
use crate::forward::admit;
use crate::forward::again::{Cause, Failing};
use crate::forward::asked::Asked;
use crate::forward::deadline::{GRPC_TIMEOUT, as_grpc_timeout};
use crate::forward::exchange::{self, Failed, Fields, Leg, Tunnels};
use crate::forward::fault::{Fault, GRPC_STATUS};
use crate::forward::headers;
use crate::forward::in_flight::InFlight;
use crate::forward::record::grpc_status;
use crate::forward::target::{self, Target};
use crate::policy::ExternalSpec;
use crate::wire::{Body, Framing};

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// The same as spans have it.
pub(super) const METHOD: &str = "envoy.service.auth.v3.Authorization/Check";
const USER_AGENT: HeaderValue = HeaderValue::from_static("tulle-ext-authz");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Of an answer, no more is read.
const MAX_ANSWER: usize = 1024 * 1024;
/// How often a question is asked, at most.
const TRIES: usize = 3;
/// By which the authorizer's own spans are the request's children.
const TRACE: [&str; 9] = [
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "baggage",
];

/// What a request says of its trace.
pub(super) fn trace(fields: &HeaderMap) -> HeaderMap {
    let mut own = HeaderMap::new();
    for name in TRACE.map(HeaderName::from_static) {
        for value in fields.get_all(&name) {
            own.append(name.clone(), value.clone());
        }
    }
    own
}

/// Asks, and reads what is answered. `fields`: what the authorizer is told of the trace.
pub(super) async fn check(
    asker: Asker<'_>,
    spec: &ExternalSpec,
    message: &CheckRequest,
    fields: &HeaderMap,
) -> Result<CheckResponse, Trouble> {
    let began = Instant::now();
    let told = framed(message);
    let service = target::service(asker.worker, &spec.service).await.map_err(|fault| in_words(&fault))?;
    let target = Target::Service(service, spec.service_port);
    let mut failed: Vec<Failing> = Vec::new();
    loop {
        let left = spec.timeout.saturating_sub(began.elapsed());
        let mut request =
            question(spec, told.clone(), fields, &as_grpc_timeout(left)).map_err(Trouble::Other)?;
        let endpoint = {
            let asked = Asked { client: asker.client, request: Some(&request) };
            target.pick(asker.worker, &failed, &asked).map_err(|fault| in_words(&fault))?
        };
        let fault = match Box::pin(send(asker, &endpoint, left, &mut request)).await {
            Ok(answer) => return answer,
            Err(Failed { fault, again, .. }) => {
                let reached = match again {
                    Some(Cause::Unreached | Cause::Full | Cause::Slow) => Some(false),
                    Some(Cause::Ended | Cause::Stale | Cause::Unprocessed) => Some(true),
                    Some(Cause::Broken | Cause::Late | Cause::Status) | None => None,
                };
                if let Some(reached) = reached.filter(|_| failed.len() + 1 < TRIES) {
                    failed.push(Failing { endpoint, reached });
                    continue;
                }
                fault
            }
        };
        return Err(in_words(&fault));
    }
}

fn in_words(fault: &Fault) -> Trouble {
    Trouble::Other(format!("{}: {}", fault.reason.message(), fault.detail))
}

/// To this endpoint; to the application itself, if it is that of this very workload.
async fn send(
    asker: Asker<'_>,
    endpoint: &Arc<Endpoint>,
    left: Duration,
    request: &mut Request<Body>,
) -> Result<Result<CheckResponse, Trouble>, Failed> {
    let worker = asker.worker;
    let application = worker.proxy.own_application(endpoint);
    let own = admit::own(worker, endpoint, application, asker.client, Some(&mut *request)).await;
    let own = own.map_err(|fault| Failed { fault, again: None, whole: false })?;
    let now = worker.proxy.now();
    let mut in_flight = InFlight::start(worker, endpoint, now);
    in_flight.until = now.saturating_add(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX));
    let (to, guard) = match &own {
        Some(own) => (&own.application, Some(&own.guard)),
        None => (endpoint, None),
    };
    let (framing, tunnels, mut lent) = (Framing::Http2, &Tunnels::default(), Fields::default());
    let begun = &in_flight.begun;
    let leg = Leg { endpoint: to, framing, limit: None, tunnels, fresh: None, keep: false, guard, begun };
    let sent = admit::unless_revoked(worker, guard, exchange::send(worker, leg, request, &mut lent)).await;
    let answered = worker.proxy.now();
    let mut response = sent.inspect_err(|failed| {
        if let Some(outcome) = in_flight.failed(failed, answered) {
            in_flight.tell(outcome);
        }
    })?;
    in_flight.answered(!response.status().is_server_error(), answered);
    headers::take_ours(response.headers_mut(), &to.peer);
    in_flight.came_to(&response, true);
    let answer = read(response).await;
    match &answer {
        Ok(_) => in_flight.is_over(Some(0)),
        Err(Unread { status: Some(status), .. }) => in_flight.is_over(Some(*status)),
        Err(Unread { status: None, .. }) => in_flight.broke(),
    }
    Ok(answer.map_err(|unread| Trouble::Other(unread.why)))
}

fn question(
    spec: &ExternalSpec,
    told: Bytes,
    fields: &HeaderMap,
    timeout: &str,
) -> Result<Request<Body>, String> {
    let ExternalSpec { service, service_port, .. } = spec;
    let authority = format!("{}.{}:{service_port}", service.name, service.namespace);
    let authority = Authority::try_from(authority).map_err(|error| error.to_string())?;
    let path = PathAndQuery::from_static(CHECK);
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path).build();
    let mut request = Request::new(Body::full(told));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::USER_AGENT, USER_AGENT);
    if let Ok(timeout) = HeaderValue::from_str(timeout) {
        headers.insert(GRPC_TIMEOUT, timeout);
    }
    headers.extend(fields.clone());
    Ok(request)
}

/// A message of gRPC, not compressed (gRPC over HTTP/2, "Length-Prefixed-Message").
fn framed(message: &CheckRequest) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(length + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    framed.extend_from_slice(&message.encode_to_vec());
    framed.freeze()
}

/// What was answered is no answer.
struct Unread {
    why: String,
    /// As gRPC has it, where it says one.
    status: Option<u32>,
}

impl From<String> for Unread {
    fn from(why: String) -> Self {
        Self { why, status: None }
    }
}

/// What is answered, if it is one message and the status says that all is well.
async fn read(response: Response<Body>) -> Result<CheckResponse, Unread> {
    let (head, mut body) = response.into_parts();
    if let Some(code) = head.headers.get(headers::ERROR) {
        return Err(format!("its proxy says {}", String::from_utf8_lossy(code.as_bytes())).into());
    }
    if head.status != StatusCode::OK {
        return Err(format!("it answered {}", head.status).into());
    }
    let (mut data, mut end) = (BytesMut::new(), head.headers);
    while let Some(frame) = body.frame().await {
        match frame.map_err(|error| error.to_string())?.into_data() {
            Ok(piece) => data.extend_from_slice(&piece),
            Err(frame) => end.extend(frame.into_trailers().unwrap_or_default()),
        }
        if data.len() > MAX_ANSWER {
            return Err(format!("its answer is longer than {MAX_ANSWER} bytes").into());
        }
    }
    match grpc_status(&end) {
        Some(0) => Ok(decoded(&data)?),
        Some(code) => {
            let said = end.get(GRPC_MESSAGE).map(|said| String::from_utf8_lossy(said.as_bytes()));
            let why = format!("it answered with gRPC status {code}: {}", said.unwrap_or_default());
            Err(Unread { why, status: Some(code) })
        }
        None => Err(format!("its answer is not gRPC's: it has no {GRPC_STATUS}").into()),
    }
}

fn decoded(data: &[u8]) -> Result<CheckResponse, String> {
    let length = data.get(1..5).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
    let length = length.and_then(|length| usize::try_from(length).ok());
    let message = match (data.first(), length) {
        (Some(0), Some(length)) if data.len() == length.saturating_add(5) => &data[5..],
        _ => return Err("its answer is not one message of gRPC".to_owned()),
    };
    CheckResponse::decode(message).map_err(|error| format!("its answer is no CheckResponse: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_framed_and_read_again_and_nothing_else_is() {
        let framed = framed(&CheckRequest::default());
        assert_eq!(&framed[..], [0; 5]);
        assert_eq!(decoded(&framed), Ok(CheckResponse::default()));
        for garbage in
            [&b""[..], b"\0", b"\0\0\0\0\x01", b"\x01\0\0\0\0", b"\0\0\0\0\0x", b"\0\0\0\0\x01\xff"]
        {
            assert!(decoded(garbage).is_err(), "{garbage:?}");
        }
    }
}
