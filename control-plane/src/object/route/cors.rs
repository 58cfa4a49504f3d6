//! CORS (GEP-1767): who may read answers, and the Gateway API's own rules for how that is written.

use std::collections::BTreeSet;

use super::matches::check_name;
use super::{at_most, is_hostname};
use crate::finding::Notes;

/// How many origins, and headers of each sort, the Gateway API allows.
const MAX_NAMES: usize = 64;
/// How many methods the Gateway API allows.
const MAX_METHODS: usize = 9;
/// How long a preflight's answer holds unless the filter says, in seconds.
const MAX_AGE: i32 = 5;

/// Who may read the answers, and ask for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// `*`, or `<http|https>://<host>[:<port>]`, where the host may be `*` or begin with `*.`.
    pub origins: Vec<String>,
    /// Whether requests may carry cookies and the like.
    pub credentials: bool,
    /// `*`, or methods.
    pub methods: Vec<String>,
    /// `*`, or headers of requests.
    pub headers: Vec<String>,
    /// `*`, or headers of answers that may be read.
    pub expose: Vec<String>,
    /// How long a preflight's answer holds, in seconds.
    pub max_age: u32,
}

/// CORS as it is written.
pub(super) struct WrittenCors<'a> {
    pub(super) origins: &'a [String],
    pub(super) credentials: Option<bool>,
    pub(super) methods: &'a [String],
    pub(super) headers: &'a [String],
    pub(super) expose: &'a [String],
    pub(super) max_age: Option<i32>,
}

/// The generated types differ by name only.
macro_rules! written_cors {
    ($cors:expr) => {
        $cors.as_ref().map(|one| $crate::object::route::cors::WrittenCors {
            origins: one.allow_origins.as_deref().unwrap_or_default(),
            credentials: one.allow_credentials,
            methods: one.allow_methods.as_deref().unwrap_or_default(),
            headers: one.allow_headers.as_deref().unwrap_or_default(),
            expose: one.expose_headers.as_deref().unwrap_or_default(),
            max_age: one.max_age,
        })
    };
}
pub(super) use written_cors;

/// `at` is the field.
pub(super) fn read(at: &str, written: &WrittenCors<'_>, notes: &mut Notes) -> Cors {
    check_list(&format!("{at}.allowOrigins"), written.origins, MAX_NAMES, notes, |field, one, notes| {
        if !is_origin(one) {
            let hint =
                "`http://` or `https://`, then a host, `*` or `*.` and a host, then perhaps a port; no path";
            notes.refuse(field, format!("`{one}` is not an origin"), hint);
        }
    });
    check_list(&format!("{at}.allowMethods"), written.methods, MAX_METHODS, notes, |field, one, notes| {
        const METHODS: [&str; 9] =
            ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
        if !METHODS.contains(&one) {
            notes.refuse(field, format!("`{one}` is not a method"), "in capital letters, such as `PUT`");
        }
    });
    for (field, names) in [("allowHeaders", written.headers), ("exposeHeaders", written.expose)] {
        check_list(&format!("{at}.{field}"), names, MAX_NAMES, notes, |field, one, notes| {
            check_name(field, one, notes);
        });
    }
    let max_age = written.max_age.unwrap_or(MAX_AGE);
    if max_age < 1 {
        notes.refuse(format!("{at}.maxAge"), format!("{max_age} is not above 0"), "whole seconds");
    }
    if written.origins.is_empty() {
        notes.warn(
            at,
            "no origin is allowed, so pages of other origins can read nothing",
            "name `allowOrigins`",
        );
    }
    let anybody = |one: &String| matches!(one.as_str(), "*" | "http://*" | "https://*");
    if written.credentials == Some(true) && written.origins.iter().any(anybody) {
        notes.warn(
            format!("{at}.allowCredentials"),
            "pages of any origin at all may act for, and read the answers of, whoever is signed in",
            "name in `allowOrigins` the origins that may",
        );
    }
    Cors {
        origins: written.origins.to_vec(),
        credentials: written.credentials.unwrap_or_default(),
        methods: written.methods.to_vec(),
        headers: written.headers.to_vec(),
        expose: written.expose.to_vec(),
        max_age: max_age.unsigned_abs(),
    }
}

/// Each once; `*` by itself or not at all.
fn check_list(
    field: &str,
    list: &[String],
    max: usize,
    notes: &mut Notes,
    check: impl Fn(String, &str, &mut Notes),
) {
    at_most(max, list.len(), field, notes);
    let mut seen = BTreeSet::new();
    for (index, one) in list.iter().enumerate() {
        let at = format!("{field}[{index}]");
        if !seen.insert(one) {
            notes.refuse(at, format!("`{one}` is there twice"), "remove one");
        } else if one != "*" {
            check(at, one, notes);
        } else if list.len() > 1 {
            notes.refuse(at, "`*` stands by itself or not at all", "remove it or the others");
        }
    }
}

fn is_origin(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else {
        return false;
    };
    let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
    let is_port = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    let name = host.strip_prefix("*.").unwrap_or(host).to_ascii_lowercase();
    (host == "*" || is_hostname(&name) || name.parse::<std::net::Ipv4Addr>().is_ok())
        && port.is_none_or(is_port)
}
