//! What the proxy shows, and lets be done to it, over HTTP: two faces.
//!
//! - [`Face::Public`], on every address: `/metrics`, `/ready`, `/live`, and `/probe/…` as it is declared ([`probe`]); GET and HEAD only. Nothing
//!   here changes anything.
//! - [`Face::Local`], on loopback or a unix socket only: what is held, what policy says, and `/log-level`, `/drain`, `/shutdown`. Never keys.
//!
//! A browser on this host can be made to send requests to loopback by any page that it visits. So the local face takes
//! only a Host that is this host, by name or address (DNS rebinding), and nothing that says that a page of elsewhere
//! sends it (`Origin`, `Sec-Fetch-Site`).
//!
//! Runs on the control thread. Connections, heads, bodies and times are bounded. `app` gives an [`AdminState`].

mod certs;
mod drain;
mod probe;
mod serve;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::Value;
use tulle_api::openmetrics;

pub use self::certs::certs;
pub use self::drain::{DrainError, drain, drain_command};
pub use self::probe::Prober;
pub use self::serve::{Listener, bind_unix, serve};

/// What the listeners ask of the proxy. Answers are made on the control thread: quickly, and without waiting.
pub trait AdminState: Send + Sync + 'static {
    /// Whether traffic may come; the error says what is missing, for people.
    ///
    /// # Errors
    /// What is missing.
    fn readiness(&self) -> Result<(), String>;

    /// The metrics, in the Prometheus text format.
    fn metrics(&self) -> String;

    /// The same as OpenMetrics.
    fn open_metrics(&self) -> String;

    /// Everything that the control plane has told. Never a key.
    fn config_dump(&self) -> Value;

    /// The open connections that policy judges: inbound ones, and those that leave the mesh.
    fn connections(&self) -> Value;

    /// This workload's certificate and whom it trusts: [`certs()`], or null where there is none yet.
    fn certs(&self) -> Value;

    /// The policies for what comes in and what they have said; null where there is none yet. With `parameters`, what they would say of that.
    ///
    /// # Errors
    /// Which parameter is wrong, and why.
    fn authz(&self, parameters: Vec<(String, String)>) -> Result<Value, String>;

    /// What is logged; `None` where it cannot be changed.
    fn log_level(&self) -> Option<String>;

    /// Sets what is logged.
    ///
    /// # Errors
    /// What is wrong with it.
    fn set_log_level(&self, directives: &str) -> Result<(), String>;

    /// Begins to drain: not ready any more, connections are told to end, and go on until they have. The process ends once its
    /// application has too.
    fn drain(&self);

    /// Begins to drain, and ends the process then.
    fn shutdown(&self);

    /// What makes the kubelet's probes; `None`: none is declared.
    fn prober(&self) -> Option<&Prober> {
        None
    }
}

/// Which requests a listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// For anyone.
    Public,
    /// For who can reach this host's loopback.
    Local,
    /// For who can open a unix socket: no browser can, so nothing is said of Host.
    LocalSocket,
}

#[derive(Clone, Copy)]
enum Page {
    Metrics,
    Ready,
    Live,
    ConfigDump,
    Connections,
    Certs,
    Authz,
    LogLevel,
    Drain,
    Shutdown,
}

struct Path {
    path: &'static str,
    page: Page,
    /// As the header `Allow` says it.
    methods: &'static str,
}

const PUBLIC: &[Path] = &[
    Path { path: "/metrics", page: Page::Metrics, methods: "GET, HEAD" },
    Path { path: "/ready", page: Page::Ready, methods: "GET, HEAD" },
    Path { path: "/live", page: Page::Live, methods: "GET, HEAD" },
];

const LOCAL: &[Path] = &[
    Path { path: "/config_dump", page: Page::ConfigDump, methods: "GET, HEAD" },
    Path { path: "/connections", page: Page::Connections, methods: "GET, HEAD" },
    Path { path: "/certs", page: Page::Certs, methods: "GET, HEAD" },
    Path { path: "/authz", page: Page::Authz, methods: "GET, HEAD" },
    Path { path: "/log-level", page: Page::LogLevel, methods: "GET, HEAD, PUT" },
    Path { path: "/drain", page: Page::Drain, methods: "POST" },
    Path { path: "/shutdown", page: Page::Shutdown, methods: "POST" },
];

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

type Answer = Response<Full<Bytes>>;

// === impl Face ===

impl Face {
    const fn paths(self) -> &'static [Path] {
        match self {
            Self::Public => PUBLIC,
            Self::Local | Self::LocalSocket => LOCAL,
        }
    }
}

/// The answer to one request, whose body has been read. Pure but for what `state` does.
fn answer(face: Face, request: &Request<Bytes>, state: &dyn AdminState) -> Answer {
    if face == Face::Local
        && let Err(refusal) = check_origin(request)
    {
        return text(StatusCode::FORBIDDEN, refusal);
    }
    let path = request.uri().path();
    let Some(known) = face.paths().iter().find(|known| known.path == path) else {
        let mut body = String::from("not found; this listener serves:\n");
        for Path { path, methods, .. } in face.paths() {
            body.push_str(&format!("{path} ({methods})\n"));
        }
        return text(StatusCode::NOT_FOUND, body);
    };
    if !known.methods.split(", ").any(|method| method == request.method().as_str()) {
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes {}\n", known.methods));
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static(known.methods));
        return answer;
    }
    page(known.page, request, state)
}

fn page(page: Page, request: &Request<Bytes>, state: &dyn AdminState) -> Answer {
    match page {
        Page::Metrics => metrics(request, state),
        Page::Ready => match state.readiness() {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(missing) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}\n")),
        },
        Page::Live => text(StatusCode::OK, "live\n"),
        Page::ConfigDump => json(&state.config_dump()),
        Page::Connections => json(&state.connections()),
        Page::Certs => json(&state.certs()),
        Page::Authz => match state.authz(parameters(request.uri().query().unwrap_or(""))) {
            Ok(value) => json(&value),
            Err(problem) => text(StatusCode::BAD_REQUEST, format!("{problem}\n")),
        },
        Page::LogLevel if request.method() == Method::PUT => set_log_level(request.body(), state),
        Page::LogLevel => match state.log_level() {
            Some(level) => text(StatusCode::OK, level + "\n"),
            None => no_log_level(),
        },
        Page::Drain => {
            state.drain();
            text(StatusCode::ACCEPTED, "draining\n")
        }
        Page::Shutdown => {
            state.shutdown();
            text(StatusCode::ACCEPTED, "draining, then ending\n")
        }
    }
}

/// The names and values of a query, decoded (WHATWG URL, "application/x-www-form-urlencoded parsing").
fn parameters(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

/// What is meant by `text`; a `%` without two digits means itself.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digit = |at: usize| after.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high << 4 | low) as u8);
                rest = &after[2..];
            }
            (first, ..) => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// In the form that is asked for.
fn metrics(request: &Request<Bytes>, state: &dyn AdminState) -> Answer {
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    match accept.is_some_and(openmetrics::is_wanted) {
        true => respond(StatusCode::OK, openmetrics::CONTENT_TYPE, state.open_metrics()),
        false => respond(StatusCode::OK, prometheus::TEXT_FORMAT, state.metrics()),
    }
}

fn set_log_level(body: &Bytes, state: &dyn AdminState) -> Answer {
    if state.log_level().is_none() {
        return no_log_level();
    }
    let level = std::str::from_utf8(body).unwrap_or_default().trim();
    if level.is_empty() {
        return text(
            StatusCode::BAD_REQUEST,
            "the body is to be a level: error, warn, info, debug, or directives\n",
        );
    }
    match state.set_log_level(level) {
        Ok(()) => text(StatusCode::OK, format!("{level}\n")),
        Err(problem) => text(StatusCode::BAD_REQUEST, format!("{problem}\n")),
    }
}

fn no_log_level() -> Answer {
    text(StatusCode::NOT_IMPLEMENTED, "this process has no log of its own\n")
}

/// Whether the request may come from this host's own tools; the error says why not.
fn check_origin(request: &Request<Bytes>) -> Result<(), &'static str> {
    let headers = request.headers();
    if tulle_api::is_from_a_page(|name| headers.get(name).map(HeaderValue::as_bytes)) {
        return Err("refused: the request comes from a web page\n");
    }
    // An authority in the request line takes the place of Host (RFC 9112 §3.2.2).
    let named = match request.uri().host() {
        Some(host) => Some(host),
        None => host(headers)?,
    };
    match named {
        Some(host) if !is_this_host(host) => Err("refused: Host is to be localhost or a loopback address\n"),
        _ => Ok(()),
    }
}

/// The Host header without its port. HTTP/1.0 has none, and browsers never send that.
fn host(headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    let mut values = headers.get_all(HOST).iter();
    let (first, more) = (values.next(), values.next());
    if more.is_some() {
        return Err("refused: more than one Host\n");
    }
    let Some(value) = first else { return Ok(None) };
    let value = value.to_str().map_err(|_| "refused: Host is not text\n")?;
    let port_at = value.rfind(':').filter(|at| !value[*at..].contains(']'));
    Ok(Some(port_at.map_or(value, |at| &value[..at])))
}

fn is_this_host(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn json(value: &Value) -> Answer {
    respond(StatusCode::OK, JSON, format!("{value:#}\n"))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    respond(status, TEXT, body)
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}
