//! What an authorizer is told of a request: Envoy's `CheckRequest`.
//!
//! Pure. Told are who asks, as far as that is proven, and whom; the request's head, with the pseudo-headers of HTTP/2 whatever the version,
//! as Envoy tells it; and the beginning of its body where the policy wants that.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use aws_lc_rs::digest::{Context, SHA256};
use http::{HeaderMap, HeaderName, Request, Version, header};
use http_body::Body as _;
use tulle_api::ext_authz::attribute_context::{HttpRequest, Peer, Request as Asked};
use tulle_api::ext_authz::{Address, AttributeContext, CheckRequest, SocketAddress, address, socket_address};

use super::Asker;
use super::cache::Key;
use crate::forward::headers;
use crate::policy::{External, Open, TlsKind};
use crate::wire::{Beginning, Body};

/// Says beside a body whether that is only its beginning, as Envoy does; and where nothing could be told of one that is asked for, that there may be
/// more. What a client sends under this name is never told then.
const PARTIAL: &str = "x-envoy-auth-partial-body";
/// What its client calls the request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is asked.
pub(super) struct Question {
    pub message: CheckRequest,
    /// `None`: no answer holds for another.
    pub key: Option<Key>,
    /// Of the policies that have it asked.
    pub generation: u64,
}

/// The body is longer than may be told, and no part of it may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// What this one is told of the body, of which so much is known; `None`: nothing.
///
/// # Errors
/// [`TooLong`].
pub(super) fn told_of(external: &External, body: &Option<Beginning>) -> Result<Option<Beginning>, TooLong> {
    let spec = external.spec();
    let Some(Beginning { data, is_whole }) = body.as_ref().filter(|_| spec.body_bytes > 0) else {
        return Ok(None);
    };
    let most = usize::try_from(spec.body_bytes).unwrap_or(usize::MAX);
    let is_whole = *is_whole && data.len() <= most;
    if !is_whole && !spec.partial_body {
        return Err(TooLong);
    }
    Ok(Some(Beginning { data: data.slice(..data.len().min(most)), is_whole }))
}

// === impl Question ===

impl Question {
    /// About a request, of whose body this is told, and of whose headers these are `made` here; under the policies of this generation.
    pub(super) fn new(
        asker: Asker<'_>,
        external: &External,
        generation: u64,
        request: &Request<Body>,
        (body, made): (Option<Beginning>, &[HeaderName]),
    ) -> Self {
        let (spec, open) = (external.spec(), asker.guard.open());
        let key = spec.cache.map(|_| key(external, open, request, (body.as_ref(), made)));
        let proxy = &asker.worker.proxy;
        let own = proxy.creds.load().as_ref().map(|creds| creds.id().as_str().to_owned());
        let source = Peer {
            address: Some(told_address(asker.client)),
            service: String::new(),
            principal: proven(open).to_owned(),
        };
        let destination = Peer {
            address: Some(told_address(SocketAddr::new(asker.application.ip(), open.port))),
            service: proxy.workload().unwrap_or_default().to_owned(),
            principal: own.unwrap_or_default(),
        };
        let asked = Asked { time: Some(SystemTime::now().into()), http: Some(http(external, request, body)) };
        let attributes = AttributeContext {
            source: Some(source),
            destination: Some(destination),
            request: Some(asked),
            context_extensions: spec.context.iter().cloned().collect(),
        };
        Self { message: CheckRequest { attributes: Some(attributes) }, key, generation }
    }
}

/// Who the client has proven to be; empty: nobody.
fn proven(open: &Open) -> &str {
    let peer = open.peer.as_ref().filter(|_| open.tls == TlsKind::Mesh);
    peer.map_or("", |peer| peer.as_str())
}

fn told_address(of: SocketAddr) -> Address {
    let port = socket_address::PortSpecifier::PortValue(of.port().into());
    let address = SocketAddress { address: of.ip().to_canonical().to_string(), port_specifier: Some(port) };
    Address { address: Some(address::Address::SocketAddress(address)) }
}

fn http(external: &External, request: &Request<Body>, body: Option<Beginning>) -> HttpRequest {
    let fields = request.headers();
    let id = fields.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let scheme = request.uri().scheme_str().unwrap_or("http");
    let size = request.body().size_hint().exact().and_then(|size| i64::try_from(size).ok());
    let mut told = HttpRequest {
        id: id.map_or_else(|| rand::random::<u64>().to_string(), str::to_owned),
        method: request.method().as_str().to_owned(),
        headers: told_headers(external, fields),
        path: path(request).to_owned(),
        host: headers::authority(request).to_owned(),
        scheme: scheme.to_owned(),
        size: size.unwrap_or(-1),
        protocol: match request.version() {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        }
        .to_owned(),
        ..HttpRequest::default()
    };
    for (name, value) in [
        (":method", told.method.clone()),
        (":path", told.path.clone()),
        (":authority", told.host.clone()),
        (":scheme", told.scheme.clone()),
    ] {
        told.headers.insert(name.to_owned(), value);
    }
    if let Some(Beginning { data, is_whole }) = body {
        told.headers.insert(PARTIAL.to_owned(), (!is_whole).to_string());
        match std::str::from_utf8(&data) {
            Ok(text) => told.body = text.to_owned(),
            // Cut within a character.
            Err(error) if !is_whole && error.error_len().is_none() => {
                told.body = String::from_utf8_lossy(&data[..error.valid_up_to()]).into_owned();
            }
            Err(_) => told.raw_body = data,
        }
    } else if external.spec().body_bytes > 0 {
        told.headers.insert(PARTIAL.to_owned(), true.to_string());
    }
    told
}

/// The target, as it was sent, query and all; empty for CONNECT.
fn path(request: &Request<Body>) -> &str {
    request.uri().path_and_query().map_or("", |target| target.as_str())
}

/// Several lines of a name are one value (RFC 9110 §5.3; of cookies, RFC 9113 §8.2.3).
fn told_headers(external: &External, fields: &HeaderMap) -> HashMap<String, String> {
    let mut told = HashMap::with_capacity(fields.len() + 5);
    for name in fields.keys().filter(|name| external.is_told(name)) {
        let values = fields.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        let values: Vec<Cow<'_, str>> = values.collect();
        let between = if *name == header::COOKIE { "; " } else { "," };
        told.insert(name.as_str().to_owned(), values.join(between));
    }
    told
}

/// By which questions differ where the policy does not say by which headers they do.
const WHO: [HeaderName; 2] = [header::AUTHORIZATION, header::COOKIE];

/// All that makes a question the same, each part with its length before it, so that none runs into the next. By what is `made` here they always
/// differ: a policy may name `authorization`, which is gone once its token has been verified, and only its claims are told.
fn key(
    external: &External,
    open: &Open,
    request: &Request<Body>,
    (body, made): (Option<&Beginning>, &[HeaderName]),
) -> Key {
    let spec = external.spec();
    let mut digest = Context::new(&SHA256);
    let mut part = |bytes: &[u8]| {
        digest.update(&(bytes.len() as u64).to_be_bytes());
        digest.update(bytes);
    };
    part(spec.name.as_bytes());
    part(&open.port.to_be_bytes());
    part(proven(open).as_bytes());
    match open.client.to_canonical() {
        IpAddr::V4(ip) => part(&ip.octets()),
        IpAddr::V6(ip) => part(&ip.octets()),
    }
    part(request.method().as_str().as_bytes());
    part(headers::authority(request).as_bytes());
    part(path(request).as_bytes());
    let who = WHO;
    let named = if spec.cache_headers.is_empty() { &who[..] } else { &spec.cache_headers[..] };
    for name in named.iter().chain(made) {
        let values = request.headers().get_all(name);
        part(name.as_str().as_bytes());
        part(&(values.iter().count() as u64).to_be_bytes());
        values.iter().for_each(|value| part(value.as_bytes()));
    }
    if let Some(Beginning { data, is_whole }) = body {
        part(&[u8::from(*is_whole)]);
        part(data);
    }
    digest.finish().as_ref().try_into().unwrap_or_default()
}
