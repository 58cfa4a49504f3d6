//! What may be asked of a tap: the query of `/tap`, which `tulle tap` writes and the control plane reads.
//!
//! Decides what is a question at all; what there is to be asked about, [`super::Taps`] knows.

use std::fmt;
use std::time::Duration;

use http::{HeaderName, Method};
use tulle_api::v1;

use crate::object::NamespacedName;

/// What a proxy shows in a second unless it is asked for another rate.
pub const PER_SECOND: u32 = 100;
/// More cannot be asked for.
pub const MAX_PER_SECOND: u32 = 1000;
/// Names of header fields, and statuses.
const MAX_LISTED: usize = 32;

/// Whose requests are shown, and which of them. What is `None` or empty says nothing; all that is said must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Whose.
    pub of: Of,
    /// Those to the workload, or those from it.
    pub side: Option<Side>,
    /// As it is spelled.
    pub method: Option<String>,
    /// What the path begins with.
    pub path: Option<String>,
    /// The Service that was dialled, or a backend: `<namespace>/<name>[:<port>]`.
    pub service: Option<String>,
    /// `<namespace>/<name>`.
    pub route: Option<String>,
    /// The other workload: a SPIFFE ID, or `<namespace>/<workload or service account>`.
    pub peer: Option<String>,
    /// `404`, `5xx`, `200-299`.
    pub statuses: Vec<String>,
    /// A reason's code; `*`: any.
    pub reason: Option<String>,
    /// Header fields that are shown; `*`: all.
    pub fields: Vec<String>,
    /// How many each proxy may show in a second.
    pub per_second: u32,
}

/// Whose requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Of {
    /// Everybody's.
    #[default]
    All,
    /// Those of the workloads of a namespace.
    Namespace(String),
    /// Those of a workload, `<namespace>/<name>`.
    Workload(String),
    /// Those of the workloads that are endpoints of a Service, `<namespace>/<name>`.
    Service(String),
}

/// Where a workload's requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// To it.
    Inbound,
    /// From it.
    Outbound,
}

// === impl Question ===

impl Default for Question {
    fn default() -> Self {
        Self {
            of: Of::All,
            side: None,
            method: None,
            path: None,
            service: None,
            route: None,
            peer: None,
            statuses: Vec::new(),
            reason: None,
            fields: Vec::new(),
            per_second: PER_SECOND,
        }
    }
}

impl Question {
    /// As the query of `/tap`.
    pub fn query(&self) -> String {
        let one = |name: &'static str, value: &Option<String>| value.clone().map(|value| (name, value));
        let of = (self.of != Of::All).then(|| ("of", self.of.to_string()));
        let side = self.side.map(|side| ("side", side.as_str().to_owned()));
        let pairs = of
            .into_iter()
            .chain(side)
            .chain(one("method", &self.method))
            .chain(one("path", &self.path))
            .chain(one("service", &self.service))
            .chain(one("route", &self.route))
            .chain(one("peer", &self.peer))
            .chain(self.statuses.iter().map(|status| ("status", status.clone())))
            .chain(one("reason", &self.reason))
            .chain(self.fields.iter().map(|field| ("field", field.clone())))
            .chain([("per_second", self.per_second.to_string())]);
        let pairs: Vec<String> = pairs.map(|(name, value)| format!("{name}={}", encode(&value))).collect();
        pairs.join("&")
    }

    /// Reads a query.
    ///
    /// # Errors
    /// What it says is no question: the field, and what is wrong with it.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut question = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value).ok_or_else(|| format!("{name}: not UTF-8 in percent encoding"))?;
            let wrong = |why: String| format!("{name}: {why}");
            match name {
                "of" => question.of = Of::parse(&value).map_err(wrong)?,
                "side" => question.side = Some(Side::parse(&value).map_err(wrong)?),
                "method" => question.method = Some(method(&value).map_err(wrong)?),
                "path" => question.path = Some(path(&value).map_err(wrong)?),
                "service" => question.service = Some(service(&value).map_err(wrong)?),
                "route" => question.route = Some(object(&value).map_err(wrong)?),
                "peer" => question.peer = Some(peer(&value).map_err(wrong)?),
                "status" => question.statuses.push(status(&value).map_err(wrong)?),
                "reason" => question.reason = Some(reason(&value).map_err(wrong)?),
                "field" => question.fields.push(field(&value).map_err(wrong)?),
                "per_second" => question.per_second = per_second(&value).map_err(wrong)?,
                _ => {
                    return Err(format!(
                        "there is no `{name}`; there are of, side, method, path, service, route, peer, status, reason, \
                         field and per_second"
                    ));
                }
            }
        }
        for (name, count) in [("status", question.statuses.len()), ("field", question.fields.len())] {
            if count > MAX_LISTED {
                return Err(format!("{name}: {count} are more than {MAX_LISTED}"));
            }
        }
        Ok(question)
    }

    /// As a proxy is asked; `peers`: whom [`Question::peer`] means.
    pub(super) fn asked(&self, id: u64, lifetime: Duration, peers: Vec<String>) -> Result<v1::Tap, String> {
        let side = match self.side {
            None => v1::TapSide::Either,
            Some(Side::Inbound) => v1::TapSide::Inbound,
            Some(Side::Outbound) => v1::TapSide::Outbound,
        };
        let range = |text: &String| {
            let range = tulle_api::access_log_statuses(text).map_err(|error| format!("status: {error}"))?;
            Ok(v1::StatusRange { first: (*range.start()).into(), last: (*range.end()).into() })
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Ok(v1::Tap {
            id,
            lifetime_milliseconds: u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX),
            per_second: self.per_second,
            filter: Some(v1::TapFilter {
                side: side.into(),
                method: text(&self.method),
                path_prefix: text(&self.path),
                service: text(&self.service),
                route: text(&self.route),
                peers,
                statuses: self.statuses.iter().map(range).collect::<Result<_, String>>()?,
                reason: text(&self.reason),
            }),
            fields: self.fields.clone(),
        })
    }
}

/// A token, as it is spelled: methods are not compared otherwise (RFC 9110 §9.1).
///
/// # Errors
/// It is none.
pub fn method(text: &str) -> Result<String, String> {
    match Method::from_bytes(text.as_bytes()) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("{text:?} is no method, such as GET")),
    }
}

/// What a path begins with.
///
/// # Errors
/// No path does.
pub fn path(text: &str) -> Result<String, String> {
    match text {
        _ if text.contains(['?', '#']) => Err(format!("{text:?} has a query, which is never looked at")),
        _ if text.starts_with('/') || text == "*" => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is no path: it begins with /")),
    }
}

/// `<namespace>/<name>`.
///
/// # Errors
/// It is none.
pub fn object(text: &str) -> Result<String, String> {
    match NamespacedName::parse(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("{text:?} is not NAMESPACE/NAME: lower case letters, digits, `-`")),
    }
}

/// `<namespace>/<name>`, or `<namespace>/<name>:<port>`.
///
/// # Errors
/// It is none.
pub fn service(text: &str) -> Result<String, String> {
    let (name, port) = text.split_once(':').unwrap_or((text, "1"));
    object(name)?;
    match port.parse::<u16>() {
        Ok(1..) => Ok(text.to_owned()),
        _ => Err(format!("{port:?} is no port")),
    }
}

/// A SPIFFE ID, or `<namespace>/<name>`.
///
/// # Errors
/// It is none.
pub fn peer(text: &str) -> Result<String, String> {
    if text.starts_with("spiffe://") {
        return match tulle_certs::SpiffeId::parse(text) {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(format!("{text:?} is no SPIFFE ID of a mesh: {error}")),
        };
    }
    object(text).map_err(|error| format!("{error}, nor a SPIFFE ID"))
}

/// A status of HTTP, a class or a range of them.
///
/// # Errors
/// It is none.
pub fn status(text: &str) -> Result<String, String> {
    tulle_api::access_log_statuses(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// The code of a reason, or `*` for any.
///
/// # Errors
/// None is spelled so.
pub fn reason(text: &str) -> Result<String, String> {
    let is_code = !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if is_code || text == "*" { Ok(text.to_owned()) } else { Err(format!("{text:?} is no reason's code")) }
}

/// The name of a header field, or `*` for all; in lower case.
///
/// # Errors
/// None is spelled so.
pub fn field(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    match HeaderName::from_bytes(text.as_bytes()) {
        Ok(name) => Ok(name.as_str().to_owned()),
        Err(_) => Err(format!("{text:?} is no header field's name")),
    }
}

/// How many in a second.
///
/// # Errors
/// It is not from 1 to [`MAX_PER_SECOND`].
pub fn per_second(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX_PER_SECOND).contains(number));
    number.ok_or_else(|| format!("{text:?} is not from 1 to {MAX_PER_SECOND}"))
}

// === impl Of ===

impl Of {
    fn parse(text: &str) -> Result<Self, String> {
        let (kind, name) = text.split_once('/').unwrap_or((text, ""));
        match kind {
            "namespace" if NamespacedName::parse(&format!("{name}/x")).is_some() => {
                Ok(Self::Namespace(name.to_owned()))
            }
            "workload" => object(name).map(Self::Workload),
            "service" => object(name).map(Self::Service),
            _ => Err(format!(
                "{text:?} is not namespace/NAME, workload/NAMESPACE/NAME or service/NAMESPACE/NAME"
            )),
        }
    }
}

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Namespace(name) => write!(f, "namespace/{name}"),
            Self::Workload(name) => write!(f, "workload/{name}"),
            Self::Service(name) => write!(f, "service/{name}"),
        }
    }
}

// === impl Side ===

impl Side {
    fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "inbound" => Ok(Self::Inbound),
            "outbound" => Ok(Self::Outbound),
            _ => Err(format!("{text:?} is neither inbound nor outbound")),
        }
    }
}

/// RFC 3986 §2.1, of all that is not unreserved.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

fn decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            _ => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_as_it_was_asked() {
        let text = |text: &str| Some(text.to_owned());
        let full = Question {
            of: Of::Service("shop/orders".to_owned()),
            side: Some(Side::Outbound),
            method: text("M-SEARCH"),
            path: text("/ä b&c=%2F"),
            service: text("shop/orders:80"),
            route: text("shop/split"),
            peer: text("spiffe://cluster.local/ns/shop/sa/web"),
            statuses: vec!["404".to_owned(), "5xx".to_owned()],
            reason: text("*"),
            fields: vec!["x-a".to_owned(), "*".to_owned()],
            per_second: 7,
        };
        for question in [
            full.clone(),
            Question::default(),
            Question { of: Of::Namespace("shop".to_owned()), side: Some(Side::Inbound), ..full.clone() },
            Question { of: Of::Workload("shop/web".to_owned()), peer: text("shop/web"), ..full },
        ] {
            assert_eq!(Question::parse(&question.query()), Ok(question.clone()), "{}", question.query());
        }
        assert_eq!(Question::parse(""), Ok(Question::default()));
    }

    #[test]
    fn what_is_no_question_is_named() {
        for (query, expected) in [
            ("of=pod/a/b", "of: \"pod/a/b\" is not namespace/NAME"),
            ("of=workload/web", "of: \"web\" is not NAMESPACE/NAME"),
            ("of=namespace/a/b", "of: "),
            ("side=up", "side: \"up\" is neither inbound nor outbound"),
            ("method=a%20b", "method: \"a b\" is no method"),
            ("path=a", "path: \"a\" is no path"),
            ("path=/a%3Fb", "path: \"/a?b\" has a query"),
            ("service=shop/a:0", "service: \"0\" is no port"),
            ("peer=web", "peer: \"web\" is not NAMESPACE/NAME"),
            ("peer=spiffe://x", "peer: \"spiffe://x\" is no SPIFFE ID"),
            ("status=700", "status: `700` is no status"),
            ("reason=Denied", "reason: \"Denied\" is no reason's code"),
            ("field=a%20b", "field: \"a b\" is no header field's name"),
            ("per_second=0", "per_second: \"0\" is not from 1 to 1000"),
            ("per_second=1001", "per_second: \"1001\" is not from 1 to 1000"),
            ("path=%2", "path: not UTF-8 in percent encoding"),
            ("path=%ff", "path: not UTF-8 in percent encoding"),
            ("what=1", "there is no `what`"),
        ] {
            let error = Question::parse(query).unwrap_err();
            assert!(error.starts_with(expected), "{query}: {error}");
        }
        let many = "status=404&".repeat(33);
        assert_eq!(Question::parse(&many).unwrap_err(), "status: 33 are more than 32");
    }
}
