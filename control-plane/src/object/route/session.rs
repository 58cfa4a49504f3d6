//! `sessionPersistence`, as written: how a rule's clients stay at one endpoint (GEP-1619).

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::digest;

use super::{Effect, Fault, RouteKind};
use crate::finding::Notes;
use crate::object::NamespacedName;

/// The longest name that the Gateway API allows, in characters.
const MAX_NAME: usize = 128;

/// How a rule's clients stay at one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionPersistence {
    /// Of the cookie, or of the header in lower case; made from `scope` where none is written.
    pub name: String,
    /// A header in place of a cookie.
    pub is_header: bool,
    /// Tells the rule from all others, for as long as it is in its place or has its name.
    pub scope: String,
    /// How long a session lasts.
    pub absolute_timeout: Option<Duration>,
    /// How long it lasts without a request.
    pub idle_timeout: Option<Duration>,
    /// Clients keep the cookie for `absolute_timeout`.
    pub permanent: bool,
}

/// As it is written, whatever the kind of route.
pub(super) struct WrittenSession<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) is_header: bool,
    pub(super) absolute_timeout: Option<&'a str>,
    pub(super) idle_timeout: Option<&'a str>,
    /// None: there is no `cookieConfig`.
    pub(super) permanent: Option<bool>,
}

/// The rule that it is of.
pub(super) struct Of<'a> {
    pub(super) kind: RouteKind,
    pub(super) route: &'a NamespacedName,
    pub(super) index: usize,
    /// May be empty.
    pub(super) name: &'a str,
}

/// The generated types differ by name only.
macro_rules! written_session {
    ($session:expr, $type:ident, $lifetime:ident) => {
        $session.as_ref().map(|one| $crate::object::route::session::WrittenSession {
            name: one.session_name.as_deref(),
            is_header: one.r#type == Some($type::Header),
            absolute_timeout: one.absolute_timeout.as_deref(),
            idle_timeout: one.idle_timeout.as_deref(),
            permanent: one
                .cookie_config
                .as_ref()
                .map(|cookie| cookie.lifetime_type == Some($lifetime::Permanent)),
        })
    };
}
pub(super) use written_session;

/// None where none is written, or, told, where it is not valid.
pub(super) fn read(
    of: &Of<'_>,
    written: Option<&WrittenSession<'_>>,
    fault: &mut Option<Fault>,
    notes: &mut Notes,
) -> Option<SessionPersistence> {
    let written = written?;
    let at = format!("spec.rules[{}].sessionPersistence", of.index);
    let rule = if of.name.is_empty() { of.index.to_string() } else { of.name.to_owned() };
    let scope = format!("{}/{}/{rule}", of.kind, of.route);
    let name = read_name(&at, written, &scope, fault, notes);
    let absolute_timeout =
        read_timeout(format!("{at}.absoluteTimeout"), written.absolute_timeout, fault, notes);
    let idle_timeout = read_timeout(format!("{at}.idleTimeout"), written.idle_timeout, fault, notes);
    if let (Some(absolute), Some(idle)) = (absolute_timeout, idle_timeout)
        && idle > absolute
    {
        notes.warn(
            format!("{at}.idleTimeout"),
            "longer than `absoluteTimeout`, which ends every session before it",
            "make it shorter, or leave it out",
        );
    }
    let permanent = written.permanent.unwrap_or_default();
    if permanent && written.absolute_timeout.is_none() {
        notes.refuse(
            format!("{at}.absoluteTimeout"),
            "must be there where `cookieConfig.lifetimeType` is `Permanent`: it is how long clients keep the cookie",
            "write it, such as `24h`, or leave `lifetimeType` out",
        );
    }
    if written.is_header && written.permanent.is_some() {
        notes.refuse(
            format!("{at}.cookieConfig"),
            "a header is no cookie",
            "remove it, or leave `type: Header` out",
        );
    }
    let is_header = written.is_header;
    Some(SessionPersistence { name: name?, is_header, scope, absolute_timeout, idle_timeout, permanent })
}

fn read_name(
    at: &str,
    written: &WrittenSession<'_>,
    scope: &str,
    fault: &mut Option<Fault>,
    notes: &mut Notes,
) -> Option<String> {
    let field = format!("{at}.sessionName");
    let Some(name) = written.name.filter(|name| !name.is_empty()) else {
        return Some(generated(scope));
    };
    if name.chars().count() > MAX_NAME {
        notes.refuse(field, format!("longer than {MAX_NAME} characters"), "");
        return None;
    }
    // The same characters for both (RFC 6265 §4.1.1, RFC 9110 §5.1).
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let (message, hint) = if !name.bytes().all(is_token) {
        (
            format!("`{name}` cannot be the name of a cookie or of a header"),
            "letters, digits and !#$%&'*+-.^_`|~; without a name, one is made",
        )
    } else if written.is_header && is_taken(name) {
        (format!("the header `{name}` has another meaning"), "a name of your own, such as `x-session`")
    } else if !written.is_header && is_for_secure(name) {
        (
            format!(
                "`{name}` would be dropped: browsers take a cookie whose name begins so only with `Secure`, which sessions' have not"
            ),
            "another beginning than `__Host-` and `__Secure-`",
        )
    } else {
        return Some(if written.is_header { name.to_ascii_lowercase() } else { name.to_owned() });
    };
    Fault { effect: Effect::Refused, field, message }.tell(fault, hint, notes);
    None
}

/// Whether a header says something already, to proxies or to everybody.
fn is_taken(name: &str) -> bool {
    let known =
        ["cookie", "set-cookie", "content-type", "date", "location", "server", "user-agent", "accept"];
    tulle_api::is_protected_header(name) || known.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// Whether browsers take a cookie of the name only if it is `Secure`, whatever the name's case (RFC 6265bis §4.1.3).
fn is_for_secure(name: &str) -> bool {
    let begins = |prefix: &str| name.get(..prefix.len()).is_some_and(|it| it.eq_ignore_ascii_case(prefix));
    begins("__Host-") || begins("__Secure-")
}

/// The same for all proxies and for ever.
fn generated(scope: &str) -> String {
    let hash = digest::digest(&digest::SHA256, scope.as_bytes());
    let digits = hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}"));
    format!("tulle-session-{}", digits.collect::<String>())
}

fn read_timeout(
    field: String,
    text: Option<&str>,
    fault: &mut Option<Fault>,
    notes: &mut Notes,
) -> Option<Duration> {
    let text = text?;
    match text.parse::<gateway_api::Duration>() {
        Ok(read) if !read.is_zero() => Some(Duration::new(read.as_secs(), read.subsec_nanos())),
        Ok(_) => {
            let message = format!("`{text}` is no time for a session to last");
            let hint = "leave it out for sessions that do not end by it";
            Fault { effect: Effect::Refused, field, message }.tell(fault, hint, notes);
            None
        }
        Err(_) => {
            let hint = "whole numbers with units, such as `300ms`, `10s` or `1m30s` (GEP-2257)";
            notes.refuse(field, format!("`{text}` is not a duration"), hint);
            None
        }
    }
}

/// Tells of sessions of one route that share a name: where one client comes by both rules, each ends the other's.
pub(super) fn check_names<'a>(
    sessions: impl Iterator<Item = (usize, &'a SessionPersistence)>,
    notes: &mut Notes,
) {
    let mut known: BTreeMap<(bool, &str), usize> = BTreeMap::new();
    for (index, session) in sessions {
        let first = *known.entry((session.is_header, &session.name)).or_insert(index);
        if first != index {
            notes.warn(
                format!("spec.rules[{index}].sessionPersistence.sessionName"),
                format!("`{}` is the name of the sessions of `rules[{first}]` too: each rule has sessions of its own, and a client that comes by both may lose one with the other", session.name),
                "give each rule's sessions another name, or none",
            );
        }
    }
}
