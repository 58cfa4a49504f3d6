//! What a rule asks of a request beside its path: method, headers, query parameters.

use http::{HeaderMap, HeaderName, Method, header};
use smallvec::SmallVec;
use tulle_api::PATTERN_INPUT;

use super::pattern::Pattern;

/// A request, as far as routes look at it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub method: &'a Method,
    /// The authority as it was sent, of the target or else of `Host`: its port and a dot at its end are left out where
    /// routes compare host names, and letters compare without case.
    pub authority: &'a str,
    /// Without its query; `*`, or empty for CONNECT.
    pub path: &'a str,
    /// What follows the question mark; empty if nothing does.
    pub query: &'a str,
    pub headers: &'a HeaderMap,
}

/// All of these must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Compared case and all (RFC 9110 §9.1); `None`: any.
    pub method: Option<Method>,
    pub headers: Vec<HeaderMatch>,
    pub query: Vec<QueryMatch>,
}

/// A header that is there, with this value. Several lines of a name are one value, joined by commas (RFC 9110 §5.3), in
/// the form without spaces. `host` is the target's authority where it has one, whatever that line says (RFC 9112 §3.2.2), as in HTTP/2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    pub name: HeaderName,
    pub value: ValueMatch,
}

/// A query parameter that is there, with this value; of several with the name, the first. Name and value are compared as
/// applications read them: `%20` and `+` decoded. One without `=` has an empty value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    pub name: Box<str>,
    pub value: ValueMatch,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// Byte for byte.
    Exact(Box<[u8]>),
    Pattern(Pattern),
}

/// Room for a value that does not stand in the request as one piece.
pub(super) type Scratch = SmallVec<[u8; 256]>;

/// Whether a request has all these headers.
pub(super) fn holds(headers: &[HeaderMatch], asked: &Asked<'_>) -> bool {
    headers.iter().all(|one| one.value.takes(|to| header(asked, &one.name, to)))
}

// === impl Conditions ===

impl Conditions {
    pub fn is_empty(&self) -> bool {
        self.method.is_none() && self.headers.is_empty() && self.query.is_empty()
    }

    pub(super) fn hold(&self, asked: &Asked<'_>) -> bool {
        self.method.as_ref().is_none_or(|method| method == asked.method)
            && holds(&self.headers, asked)
            && self.query.iter().all(|one| one.value.takes(|to| parameter(asked.query, &one.name, to)))
    }
}

impl HeaderMatch {
    /// Whether the request has it; `None`: what it has is too long to be compared with a pattern.
    pub fn describes(&self, asked: &Asked<'_>) -> Option<bool> {
        let fits = !self.value.is_pattern() || header_len(asked, &self.name) <= PATTERN_INPUT;
        fits.then(|| self.value.takes(|to| header(asked, &self.name, to)))
    }
}

impl Asked<'_> {
    /// What `read` makes of the value of a header, as a [`HeaderMatch`] sees it.
    pub fn with_header<R>(&self, name: &HeaderName, read: impl FnOnce(Option<&[u8]>) -> R) -> R {
        let mut scratch = Scratch::new();
        match header(self, name, &mut scratch) {
            None => read(None),
            Some(Value::There(value)) => read(Some(value)),
            Some(Value::Made) => read(Some(&scratch)),
        }
    }
}

impl ValueMatch {
    pub(super) fn is_pattern(&self) -> bool {
        matches!(self, Self::Pattern(_))
    }

    fn takes<'a>(&self, value: impl FnOnce(&mut Scratch) -> Option<Value<'a>>) -> bool {
        let mut scratch = Scratch::new();
        let value = value(&mut scratch);
        let value = match value {
            None => return false,
            Some(Value::There(value)) => value,
            Some(Value::Made) => &scratch,
        };
        match self {
            Self::Exact(exact) => **exact == *value,
            Self::Pattern(pattern) => pattern.is_match(value),
        }
    }
}

/// Where a value is.
pub(super) enum Value<'a> {
    There(&'a [u8]),
    /// In the scratch.
    Made,
}

/// The value of a header.
pub(super) fn header<'a>(asked: &Asked<'a>, name: &HeaderName, to: &mut Scratch) -> Option<Value<'a>> {
    if *name == header::HOST {
        return (!asked.authority.is_empty()).then_some(Value::There(asked.authority.as_bytes()));
    }
    let mut values = asked.headers.get_all(name).iter();
    let first = values.next()?;
    let mut values = values.peekable();
    if values.peek().is_none() {
        return Some(Value::There(first.as_bytes()));
    }
    to.extend_from_slice(first.as_bytes());
    for value in values {
        to.push(b',');
        to.extend_from_slice(value.as_bytes());
    }
    Some(Value::Made)
}

/// How long it is.
pub(super) fn header_len(asked: &Asked<'_>, name: &HeaderName) -> usize {
    if *name == header::HOST {
        return asked.authority.len();
    }
    let values = asked.headers.get_all(name).iter().map(|value| value.len() + 1);
    values.sum::<usize>().saturating_sub(1)
}

/// Whether one of a query's parameters, as it is written, is of this name.
pub fn is_parameter(written: &str, name: &str) -> bool {
    let key = written.split_once('=').map_or(written, |(key, _)| key);
    !written.is_empty() && if is_coded(key) { decoded(key).eq(name.bytes()) } else { key == name }
}

/// How long a query parameter is.
pub(super) fn parameter_len(query: &str, name: &str) -> usize {
    let mut scratch = Scratch::new();
    match parameter(query, name, &mut scratch) {
        None => 0,
        Some(Value::There(value)) => value.len(),
        Some(Value::Made) => scratch.len(),
    }
}

/// The value of the first query parameter of a name (WHATWG URL, "application/x-www-form-urlencoded parsing").
pub(super) fn parameter<'a>(query: &'a str, name: &str, to: &mut Scratch) -> Option<Value<'a>> {
    let value = query.split('&').find_map(|one| {
        let (key, value) = one.split_once('=').unwrap_or((one, ""));
        let same = if is_coded(key) { decoded(key).eq(name.bytes()) } else { key == name };
        (same && !one.is_empty()).then_some(value)
    })?;
    if !is_coded(value) {
        return Some(Value::There(value.as_bytes()));
    }
    to.extend(decoded(value));
    Some(Value::Made)
}

fn is_coded(text: &str) -> bool {
    memchr::memchr2(b'%', b'+', text.as_bytes()).is_some()
}

/// The bytes meant by `text`; a `%` without two digits means itself.
fn decoded(text: &str) -> impl Iterator<Item = u8> {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (&first, after) = rest.split_first()?;
        rest = after;
        Some(match (first, after) {
            (b'+', _) => b' ',
            (b'%', [high, low, after @ ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => {
                    rest = after;
                    high << 4 | low
                }
                _ => first,
            },
            _ => first,
        })
    })
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| digit.try_into().ok())
}
