//! An application that answers with what it was asked, and asking it: what tables of routing cases are made of.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::app::{Body, full};
use crate::within;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub fields: HeaderMap,
    /// What the application saw, if one was asked.
    pub seen: Option<Value>,
}

/// Says who it is and what it was asked.
pub fn mirror(name: &'static str, request: &Request<Incoming>) -> Response<Body> {
    let host = request.headers().get("host").map(|host| host.to_str().unwrap());
    let mut fields = serde_json::Map::new();
    for field in request.headers().keys() {
        fields.insert(field.to_string(), joined(request.headers(), field.as_str()).into());
    }
    let seen = json!({
        "backend": name,
        "method": request.method().as_str(),
        "target": request.uri().path_and_query().map(|target| target.as_str()),
        "host": request.uri().authority().map(http::uri::Authority::as_str).or(host),
        "fields": fields,
    });
    let answer = Response::builder().header("x-set", "own").header("x-add", "own").header("x-remove", "own");
    answer.body(full(seen.to_string())).unwrap()
}

/// All lines of a field.
fn joined(fields: &HeaderMap, name: &str) -> Option<String> {
    let lines: Vec<_> = fields.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

/// Asks `METHOD TARGET [name:value …]` over a connection, by HTTP/1.1, or by HTTP/2 as a gRPC client does; for `default_host` unless a
/// field says another.
///
/// # Panics
/// If the connection ends before the answer.
pub async fn ask(stream: TcpStream, grpc: bool, default_host: &str, asked: &str) -> Answer {
    let mut words = asked.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let mut fields: Vec<_> = words.map(|word| word.split_once(':').unwrap()).collect();
    let host = fields.iter().position(|(name, _)| *name == "host");
    let host = host.map_or(default_host, |at| fields.remove(at).1);
    let mut request = Request::builder().method(method);
    let stream = TokioIo::new(stream);
    let response = if grpc {
        request = request.version(Version::HTTP_2).uri(format!("http://{host}{target}"));
        request = request.header("content-type", "application/grpc").header("te", "trailers");
        let request = with(request, &fields);
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream);
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        within(asked, sender.send_request(request)).await
    } else {
        let request = with(request.uri(target).header("host", host), &fields);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        within(asked, sender.send_request(request)).await
    };
    let (head, body) = response.unwrap_or_else(|error| panic!("{asked}: {error}")).into_parts();
    let body = within(asked, body.collect()).await.unwrap().to_bytes();
    // Whatever a proxy answers itself is no JSON that names a backend.
    let seen = serde_json::from_slice(&body).ok().filter(|seen: &Value| seen["backend"].is_string());
    Answer { status: head.status.as_u16(), fields: head.headers, seen }
}

fn with(request: http::request::Builder, fields: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(Empty::new()).unwrap()
}

// === impl Answer ===

impl Answer {
    /// The application, or the status with the proxy's reason, if it gives one.
    pub fn by(&self) -> String {
        match (&self.seen, joined(&self.fields, "x-tulle-error")) {
            (Some(seen), None) if self.status == 200 => seen["backend"].as_str().unwrap().to_owned(),
            (_, Some(reason)) => format!("{} {reason}", self.status),
            _ => self.status.to_string(),
        }
    }

    /// What the application saw of it, `method`, `target` or `host`; `-` if none was asked.
    pub fn saw(&self, what: &str) -> &str {
        self.seen.as_ref().and_then(|seen| seen[what].as_str()).unwrap_or("-")
    }

    /// All lines of a field as the application saw it, or `-`.
    pub fn saw_field(&self, name: &str) -> &str {
        self.seen.as_ref().and_then(|seen| seen["fields"][name].as_str()).unwrap_or("-")
    }

    /// All lines of a field of the answer, or `-`.
    pub fn field(&self, name: &str) -> String {
        joined(&self.fields, name).unwrap_or_else(|| "-".to_owned())
    }
}
