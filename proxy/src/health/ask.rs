//! One check: a connection of its own, a question, and what the answer says.
//!
//! A connection of its own each time, since whether an endpoint takes new ones, and proves who it is, is a part of what is
//! asked; and no server closes it at the moment in which it is used again. It is made as requests' are: the identity of
//! an endpoint in the mesh is checked, and its proxy sees a request like any other. Where the proxy traces, a check says of itself that it
//! is not recorded: else an application that traces too would begin a trace with each.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use prost::Message;
use tokio::io::AsyncWriteExt;

use crate::endpoint::{ConnectError, Dial, Endpoint, within};
use crate::state::{HealthCheck, Question};
use crate::telemetry::trace::Tracer;
use crate::wire::{Body, Framing};

/// What servers see.
const USER_AGENT: HeaderValue = HeaderValue::from_static("tulle-health-check");
/// Of an answer's body, no more is read.
const MAX_BODY: usize = 64 * 1024;

/// How the endpoints of one port are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) check: HealthCheck,
    /// What the port speaks; for HTTP.
    pub(super) framing: Framing,
    /// `<service>.<namespace>`.
    pub(super) host: Authority,
}

/// Why a check did not pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("it answered with gRPC status {0}")]
    GrpcStatus(String),
    #[error("it answered that it is {0}")]
    NotServing(&'static str),
    #[error("its answer is not one of grpc.health.v1.Health/Check: {0}")]
    NotGrpc(String),
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

// === impl Failure ===

impl Failure {
    /// Whether it tells something of the endpoint, and not only of this proxy.
    pub(super) fn is_a_verdict(&self) -> bool {
        !matches!(self, Self::Connect(error) if error.is_our_own())
    }

    /// As it is counted.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Connect(error) if error.is_our_own() => "not_asked",
            Self::Connect(ConnectError::TimedOut(..)) | Self::Late(_) => "timed_out",
            Self::Connect(_) => "connect_failed",
            Self::Broken(_) => "broken",
            Self::Status(_) | Self::GrpcStatus(_) | Self::NotServing(_) | Self::NotGrpc(_) => "refused",
        }
    }
}

/// Asks `endpoint` once. `tracer`: where requests are traced.
pub(super) async fn ask(
    dial: &Dial,
    endpoint: &Endpoint,
    check: &Check,
    tracer: Option<&Tracer>,
) -> Result<(), Failure> {
    let timeout = check.check.timeout;
    let dial = Dial { timeout, ..dial.clone() };
    // The head of an answer may say enough though its body never ends.
    let good = AtomicBool::new(false);
    let asked = async {
        match &check.check.question {
            Question::Http { path, host } => {
                let host = host.as_ref().unwrap_or(&check.host);
                let request = http(path, host, check.framing, tracer)?;
                let passes = |status: StatusCode| (200..400).contains(&status.as_u16());
                let head = |status| good.store(passes(status), Ordering::Relaxed);
                let status = send(&dial, endpoint, check.framing, request, head).await?.status();
                if passes(status) { Ok(()) } else { Err(Failure::Status(status)) }
            }
            Question::Grpc { service } => {
                let request = grpc(service, &check.host, tracer)?;
                serving(&send(&dial, endpoint, Framing::Http2, request, drop).await?)
            }
            Question::Tcp => tcp(&dial, endpoint).await,
        }
    };
    match within(timeout, pin!(asked)).await {
        Some(result) => result,
        None if good.load(Ordering::Relaxed) => Ok(()),
        None => Err(Failure::Late(timeout)),
    }
}

async fn tcp(dial: &Dial, endpoint: &Endpoint) -> Result<(), Failure> {
    let mut io = dial.opaque(endpoint).await?;
    // An orderly end; whether the peer is still there to hear of it says nothing.
    drop(io.shutdown().await);
    Ok(())
}

fn http(
    path: &PathAndQuery,
    host: &Authority,
    framing: Framing,
    tracer: Option<&Tracer>,
) -> Result<Request<Body>, Failure> {
    let mut request = request(Method::GET, path.clone(), host, framing, tracer)?;
    if framing == Framing::Http1 {
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(request)
}

fn grpc(service: &str, host: &Authority, tracer: Option<&Tracer>) -> Result<Request<Body>, Failure> {
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let mut request = request(Method::POST, path, host, Framing::Http2, tracer)?;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    *request.body_mut() = Body::full(frame(&HealthCheckRequest { service: service.to_owned() }));
    Ok(request)
}

/// What an answer of `Check` says.
fn serving(answer: &Response<Bytes>) -> Result<(), Failure> {
    if answer.status() != StatusCode::OK {
        return Err(Failure::Status(answer.status()));
    }
    match grpc_status(answer.headers()) {
        Some("0") => {}
        Some(status) => return Err(Failure::GrpcStatus(status.to_owned())),
        None => return Err(Failure::NotGrpc("it has no grpc-status".to_owned())),
    }
    let body = answer.body();
    let length = body.get(1..5).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
    let message = match (body.first(), length) {
        (Some(0), Some(length)) => usize::try_from(length).ok().and_then(|length| body[5..].get(..length)),
        _ => None,
    };
    let message = message.ok_or_else(|| Failure::NotGrpc("it has no message".to_owned()))?;
    let message =
        HealthCheckResponse::decode(message).map_err(|error| Failure::NotGrpc(error.to_string()))?;
    match message.status {
        1 => Ok(()),
        2 => Err(Failure::NotServing("NOT_SERVING")),
        3 => Err(Failure::NotServing("SERVICE_UNKNOWN")),
        _ => Err(Failure::NotServing("UNKNOWN")),
    }
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

fn grpc_status(headers: &HeaderMap) -> Option<&str> {
    headers.get(GRPC_STATUS)?.to_str().ok()
}

/// A message of gRPC, not compressed.
fn frame(message: &impl Message) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(&message.encode_to_vec());
    framed.freeze()
}

fn request(
    method: Method,
    path: PathAndQuery,
    host: &Authority,
    framing: Framing,
    tracer: Option<&Tracer>,
) -> Result<Request<Body>, Failure> {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method;
    *request.uri_mut() = match framing {
        Framing::Http1 => {
            let host = HeaderValue::from_str(host.as_str());
            let host = host.map_err(|error| Failure::Broken(error.to_string()))?;
            request.headers_mut().insert(header::HOST, host);
            Uri::from(path)
        }
        Framing::Http2 => {
            let uri = Uri::builder().scheme(Scheme::HTTP).authority(host.clone()).path_and_query(path);
            uri.build().map_err(|error| Failure::Broken(error.to_string()))?
        }
    };
    request.headers_mut().insert(header::USER_AGENT, USER_AGENT);
    if let Some(tracer) = tracer {
        tracer.decline(request.headers_mut());
    }
    Ok(request)
}

/// The answer, with its trailers among its headers and as much of its body as is read; its status first to `head`.
async fn send(
    dial: &Dial,
    endpoint: &Endpoint,
    framing: Framing,
    mut request: Request<Body>,
    head: impl FnOnce(StatusCode),
) -> Result<Response<Bytes>, Failure> {
    match framing {
        Framing::Http1 => {
            let client = dial.http1(endpoint).await?;
            let body = std::mem::take(request.body_mut());
            let answer = client.send(&mut request, body, drop, drop).await;
            let answer = answer.map_err(|error| Failure::Broken(error.failure.to_string()))?;
            head(answer.status());
            Ok(read(answer.map(Body::http1)).await)
        }
        Framing::Http2 => {
            // The connection ends with its sender.
            let (mut sender, _) = dial.http2(endpoint).await?;
            let answer = sender.send(request, ()).await;
            let answer = answer.map_err(|error| Failure::Broken(error.source.to_string()))?;
            head(answer.status());
            Ok(read(answer).await)
        }
    }
}

/// Reads to the end, so that nobody is broken off who would mind. What is broken off itself has said enough, or misses it.
async fn read(answer: Response<Body>) -> Response<Bytes> {
    let (mut head, mut body) = answer.into_parts();
    let mut read = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        match frame.into_data() {
            Ok(data) => read.extend_from_slice(&data),
            Err(frame) => head.headers.extend(frame.into_trailers().unwrap_or_default()),
        }
        if read.len() > MAX_BODY {
            break;
        }
    }
    Response::from_parts(head, read.freeze())
}

#[cfg(test)]
mod tests;
