//! The kubelet's probes of this pod: which of them the proxy makes in the kubelet's place, and which of them policy lets in.
//!
//! Both are what the pod's own specification says, and cannot change while the pod lives: so the injector says them once, in a
//! variable, and no policy need speak of them. What is not said here is not asked and not let in.

use std::fmt;
use std::time::Duration;

use http::header::UPGRADE;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body::Body;
use serde_json::{Map, Value};

use super::parse::Parsed;

/// What is declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// Served at `/probe/<container>/<kind>` of the public listener.
    pub made: Vec<MadeProbe>,
    /// Let in from clients without an identity, whatever the policy of their port.
    pub allowed: Vec<AllowedProbe>,
}

/// A probe that the proxy makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeProbe {
    /// `/probe/<container>/<kind>`.
    pub path: String,
    /// Of the application.
    pub port: u16,
    pub question: ProbeQuestion,
    /// What it is beside a question; `None`: a probe, which may be made as often as it is asked for.
    pub hook: Option<Hook>,
    /// As long as the kubelet waits.
    pub timeout: Duration,
}

/// A hook of a container: it does something, where a probe only asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// When the container has started.
    PostStart,
    /// Before it is told to end.
    PreStop,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeQuestion {
    /// Whether a connection comes about.
    Tcp,
    /// Whether a GET is answered with a status from 200 to 399.
    Http { tls: bool, path: PathAndQuery, headers: HeaderMap },
}

/// A probe that the kubelet makes by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedProbe {
    /// Of the application.
    pub port: u16,
    /// `None`: the health check of gRPC.
    pub path: Option<PathAndQuery>,
}

/// What the kubelet's probes of gRPC call (gRPC's health checking protocol).
const GRPC_CHECK: &str = "/grpc.health.v1.Health/Check";
/// More probes than any pod has.
const MOST: usize = 1000;
/// The most that the kubelet may wait, and the longest of its hooks.
const LONGEST: u64 = 3600;

// === impl Probes ===

impl Probes {
    /// The probe that is served there.
    pub fn at(&self, path: &str) -> Option<&MadeProbe> {
        self.made.iter().find(|probe| probe.path == path)
    }
}

// === impl AllowedProbe ===

impl AllowedProbe {
    /// Whether this is the request. One that asks for another protocol never is, nor a GET with a body: the answer to it may be a tunnel to the
    /// application, past every policy.
    pub fn is<B: Body>(&self, port: u16, request: &Request<B>) -> bool {
        if self.port != port || request.headers().contains_key(UPGRADE) {
            return false;
        }
        let asked = request.uri().path_and_query();
        match &self.path {
            Some(path) => {
                *request.method() == Method::GET && asked == Some(path) && request.body().is_end_stream()
            }
            None => {
                *request.method() == Method::POST && asked.is_some_and(|asked| asked.as_str() == GRPC_CHECK)
            }
        }
    }
}

impl fmt::Display for AllowedProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}{path}", self.port),
            None => write!(f, "{}{GRPC_CHECK}", self.port),
        }
    }
}

/// Of JSON, as the injector writes it.
pub(super) fn probes(value: &str) -> Parsed<Probes> {
    let value: Value = serde_json::from_str(value).map_err(|error| format!("not JSON: {error}"))?;
    let object = value.as_object().ok_or("not an object")?;
    only(object, &["made", "allowed"])?;
    let probes =
        Probes { made: each(object, "made", made_probe)?, allowed: each(object, "allowed", allowed_probe)? };
    for (index, probe) in probes.made.iter().enumerate() {
        if probes.made[..index].iter().any(|other| other.path == probe.path) {
            return Err(format!("there are two probes at {}", probe.path));
        }
    }
    Ok(probes)
}

fn each<T>(
    object: &Map<String, Value>,
    key: &str,
    one: fn(&Map<String, Value>) -> Parsed<T>,
) -> Parsed<Vec<T>> {
    let Some(value) = object.get(key) else { return Ok(Vec::new()) };
    let items = value.as_array().ok_or_else(|| format!("`{key}` is not a list"))?;
    if items.len() > MOST {
        return Err(format!("`{key}` has more than {MOST} entries"));
    }
    let of = |(index, item): (usize, &Value)| {
        let object = item.as_object().ok_or_else(|| format!("{key}[{index}] is not an object"))?;
        one(object).map_err(|error| format!("{key}[{index}]: {error}"))
    };
    items.iter().enumerate().map(of).collect()
}

fn made_probe(object: &Map<String, Value>) -> Parsed<MadeProbe> {
    only(object, &["container", "kind", "port", "tcp", "http", "https", "timeout"])?;
    let segment = |key: &str| {
        let text = text(object, key)?;
        // Names of containers, and of probes.
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        match !text.is_empty() && text.bytes().all(allowed) {
            true => Ok(text),
            false => Err(format!("`{key}` is not lower-case letters, digits and `-`")),
        }
    };
    let questions = ["tcp", "http", "https"].map(|key| (key, object.get(key)));
    let mut asked = questions.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let question = match (asked.next(), asked.next()) {
        (Some(("tcp", _)), None) => ProbeQuestion::Tcp,
        (Some((scheme, value)), None) => {
            let said = value.as_object().ok_or_else(|| format!("`{scheme}` is not an object"))?;
            only(said, &["path", "headers"])?;
            ProbeQuestion::Http { tls: scheme == "https", path: path(said)?, headers: headers(said)? }
        }
        _ => return Err("there is to be one of `tcp`, `http` and `https`".to_owned()),
    };
    let timeout = object.get("timeout").map_or(Some(1), Value::as_u64);
    let timeout = timeout.filter(|timeout| (1..=LONGEST).contains(timeout));
    let kind = segment("kind")?;
    let hook = match kind {
        "post-start" => Some(Hook::PostStart),
        "pre-stop" => Some(Hook::PreStop),
        _ => None,
    };
    Ok(MadeProbe {
        path: format!("/probe/{}/{kind}", segment("container")?),
        port: port(object)?,
        question,
        hook,
        timeout: Duration::from_secs(timeout.ok_or("`timeout` is not a number of seconds from 1 to 3600")?),
    })
}

fn allowed_probe(object: &Map<String, Value>) -> Parsed<AllowedProbe> {
    only(object, &["port", "path", "grpc"])?;
    let port = port(object)?;
    match (object.contains_key("path"), object.get("grpc").and_then(Value::as_bool)) {
        (true, None) => Ok(AllowedProbe { port, path: Some(path(object)?) }),
        (false, Some(true)) => Ok(AllowedProbe { port, path: None }),
        _ => Err("there is to be `path`, or `grpc: true`".to_owned()),
    }
}

fn only(object: &Map<String, Value>, known: &[&str]) -> Parsed<()> {
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(format!("`{key}` is not known")),
        None => Ok(()),
    }
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Parsed<&'a str> {
    object.get(key).and_then(Value::as_str).ok_or_else(|| format!("`{key}` is not text"))
}

fn port(object: &Map<String, Value>) -> Parsed<u16> {
    let port = object.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    port.filter(|port| *port > 0).ok_or_else(|| "`port` is not a port from 1 to 65535".to_owned())
}

fn path(object: &Map<String, Value>) -> Parsed<PathAndQuery> {
    let text = text(object, "path")?;
    let parsed = PathAndQuery::try_from(text).ok().filter(|_| text.starts_with('/'));
    parsed.ok_or_else(|| format!("`{text}` is not a path"))
}

/// `[["name", "value"], …]`.
fn headers(object: &Map<String, Value>) -> Parsed<HeaderMap> {
    let mut headers = HeaderMap::new();
    let Some(said) = object.get("headers") else { return Ok(headers) };
    for pair in said.as_array().ok_or("`headers` is not a list")? {
        let parts = pair.as_array().map(Vec::as_slice);
        let Some([Value::String(name), Value::String(value)]) = parts else {
            return Err("`headers` is not a list of pairs of name and value".to_owned());
        };
        let parsed = (HeaderName::try_from(name.as_str()), HeaderValue::from_str(value));
        let (Ok(name), Ok(value)) = parsed else { return Err(format!("`{name}` is not a header")) };
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{Empty, Full};

    use super::*;

    const WRITTEN: &str = r#"{
        "made": [
            {"container": "db", "kind": "liveness", "port": 5432, "tcp": {}},
            {"container": "web", "kind": "readiness", "port": 8443, "timeout": 7,
             "https": {"path": "/healthz?full=1&x=%20", "headers": [["Host", "web.example"], ["x-a", "1"], ["x-a", "2"]]}}
        ],
        "allowed": [{"port": 8080, "path": "/ready?deep=1"}, {"port": 9000, "grpc": true}]
    }"#;

    #[test]
    fn what_is_declared_is_read() {
        let probes = probes(WRITTEN).unwrap();
        let db = probes.at("/probe/db/liveness").unwrap();
        assert_eq!((db.port, &db.question, db.timeout), (5432, &ProbeQuestion::Tcp, Duration::from_secs(1)));
        let web = probes.at("/probe/web/readiness").unwrap();
        let ProbeQuestion::Http { tls: true, path, headers } = &web.question else { panic!("{web:?}") };
        assert_eq!(path, "/healthz?full=1&x=%20");
        assert_eq!(headers["host"], "web.example");
        assert_eq!(headers.get_all("x-a").iter().count(), 2);
        assert_eq!(web.timeout, Duration::from_secs(7));
        for unknown in
            ["/probe/db/readiness", "/probe/db/liveness/", "/probe/db", "/probe/", "/probe//liveness"]
        {
            assert_eq!(probes.at(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn a_probe_is_let_in_by_exactly_its_port_method_path_and_query() {
        let probes = probes(WRITTEN).unwrap();
        let allowed = |port: u16, method: &str, uri: &str| {
            let request = Request::builder().method(method).uri(uri).body(Empty::<Bytes>::new()).unwrap();
            probes.allowed.iter().any(|probe| probe.is(port, &request))
        };
        assert!(allowed(8080, "GET", "/ready?deep=1"));
        assert!(allowed(9000, "POST", "http://x:9000/grpc.health.v1.Health/Check"));
        for (port, method, uri) in [
            (8081, "GET", "/ready?deep=1"),
            (9000, "GET", "/ready?deep=1"),
            (8080, "POST", "/ready?deep=1"),
            (8080, "HEAD", "/ready?deep=1"),
            (8080, "GET", "/ready"),
            (8080, "GET", "/ready?deep=1&x=2"),
            (8080, "GET", "/ready/?deep=1"),
            (8080, "GET", "/x/../ready?deep=1"),
            (8080, "GET", "//ready?deep=1"),
            (8080, "GET", "/Ready?deep=1"),
            (8080, "POST", "/grpc.health.v1.Health/Check"),
            (9000, "GET", "/grpc.health.v1.Health/Check"),
            (9000, "POST", "/grpc.health.v1.Health/Watch"),
            (9000, "POST", "/grpc.health.v1.Health/Check?x"),
            (8080, "OPTIONS", "*"),
        ] {
            assert!(!allowed(port, method, uri), "{port} {method} {uri}");
        }
    }

    #[test]
    fn a_request_that_asks_for_a_tunnel_or_has_a_body_is_no_probe() {
        let probes =
            probes(r#"{"allowed": [{"port": 80, "path": "/"}, {"port": 80, "grpc": true}]}"#).unwrap();
        let allowed = |method: &str, path: &str, upgrade: Option<&str>, body: &'static str| {
            let mut request = Request::builder().method(method).uri(path);
            if let Some(protocol) = upgrade {
                request = request.header("connection", "upgrade").header("upgrade", protocol);
            }
            let request = request.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap();
            probes.allowed.iter().any(|probe| probe.is(80, &request))
        };
        assert!(allowed("GET", "/", None, ""));
        assert!(!allowed("GET", "/", Some("websocket"), ""));
        assert!(!allowed("GET", "/", Some("h2c"), ""));
        assert!(!allowed("CONNECT", "/", None, ""));
        assert!(!allowed("GET", "/", None, "a"));
        // The question of gRPC is a body.
        assert!(allowed("POST", GRPC_CHECK, None, "abcde"));
        assert!(!allowed("POST", GRPC_CHECK, Some("websocket"), "abcde"));
    }

    #[test]
    fn what_cannot_be_a_probe_is_refused_and_named() {
        for (text, says) in [
            ("[]", "not an object"),
            ("{", "not JSON"),
            (r#"{"mad": []}"#, "`mad`"),
            (r#"{"made": {}}"#, "not a list"),
            (r#"{"made": [1]}"#, "made[0]"),
            (r#"{"made": [{"container": "a/b", "kind": "x", "port": 1, "tcp": {}}]}"#, "`container`"),
            (r#"{"made": [{"container": "a", "kind": "", "port": 1, "tcp": {}}]}"#, "`kind`"),
            (r#"{"made": [{"container": "a", "kind": "x", "port": 0, "tcp": {}}]}"#, "`port`"),
            (r#"{"made": [{"container": "a", "kind": "x", "port": 70000, "tcp": {}}]}"#, "`port`"),
            (r#"{"made": [{"container": "a", "kind": "x", "port": 1}]}"#, "one of"),
            (
                r#"{"made": [{"container": "a", "kind": "x", "port": 1, "tcp": {}, "http": {"path": "/"}}]}"#,
                "one of",
            ),
            (
                r#"{"made": [{"container": "a", "kind": "x", "port": 1, "https": {"path": "x"}}]}"#,
                "not a path",
            ),
            (
                r#"{"made": [{"container": "a", "kind": "x", "port": 1, "tcp": {}, "timeout": 0}]}"#,
                "`timeout`",
            ),
            (
                r#"{"made": [{"container": "a", "kind": "x", "port": 1, "http": {"path": "/", "headers": [["a b", "c"]]}}]}"#,
                "not a header",
            ),
            (
                r#"{"made": [{"container": "a", "kind": "x", "port": 1, "tcp": {}}, {"container": "a", "kind": "x", "port": 2, "tcp": {}}]}"#,
                "two probes",
            ),
            (r#"{"allowed": [{"port": 1}]}"#, "`path`, or"),
            (r#"{"allowed": [{"port": 1, "path": "/", "grpc": true}]}"#, "`path`, or"),
        ] {
            let error = probes(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
